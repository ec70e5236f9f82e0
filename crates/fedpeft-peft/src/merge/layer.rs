//! Finding tuned linear layers, and their weights when what tunes them is multiplied in.

use std::collections::{BTreeSet, HashMap};

use fedpeft_interp::Value;
use fedpeft_onnx::{DType, Graph, Node, Tensor};
use fedpeft_passes::PassError;
use ndarray::{Array1, Array2, ArrayD, Axis};

use super::{Change, constants::Constants};

/// A frozen layer and all that tunes it.
pub(super) struct Found {
    /// Index of its `Gemm`.
    pub at: usize,
    /// Index of the node that computes the tuned output; the same where inputs are scaled.
    pub last: usize,
    /// The layer from the untuned input to the tuned output; its weight and bias are still to be named.
    pub node: Node,
    /// Name of the frozen weight.
    pub original: String,
    /// The merged weight, as the frozen one is stored.
    pub weight: Tensor,
    /// The merged bias, where it is another than the frozen one.
    pub bias: Option<Tensor>,
    pub change: Change,
}

/// Every tuned layer of `graph`.
pub(super) fn find(graph: &Graph, learnt: &BTreeSet<String>) -> Result<Vec<Found>, PassError> {
    let finder = Finder { graph, constants: Constants::new(graph, learnt), consumers: graph.consumers() };
    let mut found = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let linear = node.is("Gemm") && node.int("transA").unwrap_or(0) == 0;
        let frozen = |name: &String| finder.constants.is_constant(name) && !finder.constants.is_learnt(name);
        if linear && node.inputs.get(1).is_some_and(frozen) {
            found.extend(finder.layer(index, node)?);
        }
    }
    Ok(found)
}

struct Finder<'a> {
    graph: &'a Graph,
    constants: Constants<'a>,
    consumers: HashMap<&'a str, Vec<usize>>,
}

/// A low-rank update behind a layer.
struct Update {
    a: Array2<f64>,
    b: Array2<f64>,
    scale: f64,
    last: usize,
}

impl<'a> Finder<'a> {
    fn layer(&self, at: usize, node: &'a Node) -> Result<Option<Found>, PassError> {
        let Some(stored) = self.constants.matrix(&node.inputs[1])? else { return Ok(None) };
        let transposed = node.int("transB").unwrap_or(0) != 0;
        let mut weight = if transposed { stored } else { stored.reversed_axes() };
        weight *= f64::from(node.float("alpha").unwrap_or(1.0));
        let mut layer = Layer { node: node.clone(), last: at, weight, bias: None };
        layer.node.attributes.remove("alpha");

        let change = if let Some(Update { a, b, scale, last }) = self.update(at, layer.weight.dim())? {
            layer.weight += &(b.dot(&a) * scale);
            layer.last = last;
            // A row's norm is now that of its magnitude.
            let magnitude = self.gain(&mut layer)?.map(|gain| norms(&layer.weight) * gain.mapv(f64::signum));
            if magnitude.is_some() {
                self.addend(&mut layer)?;
            }
            Change::LowRank { a, b, scale, magnitude }
        } else if let Some(gain) = self.gain(&mut layer)? {
            Change::Outputs(gain)
        } else if let Some(gain) = self.input_scale(&mut layer)? {
            Change::Inputs(gain)
        } else {
            return Ok(None);
        };
        let Layer { mut node, last, weight, bias } = layer;
        node.outputs.clone_from(&self.graph.nodes[last].outputs);
        let weight = if transposed { weight } else { weight.reversed_axes() };
        Ok(Some(Found {
            at,
            last,
            original: self.constants.origin(&self.graph.nodes[at].inputs[1]).to_owned(),
            node,
            weight: narrow(weight.into_dyn())?,
            bias: bias.map(narrow).transpose()?,
            change,
        }))
    }

    /// The only reader of what the node at `index` computes.
    fn reader(&self, index: usize) -> Option<(usize, &'a Node)> {
        let value = self.graph.nodes[index].output(0)?;
        let shown = self.graph.outputs.iter().any(|output| output.name == value);
        match self.consumers.get(value).map(Vec::as_slice) {
            Some(&[reader]) if !shown => Some((reader, &self.graph.nodes[reader])),
            _ => None,
        }
    }

    /// `scale B (A x)` added to the output of the layer at `at`, whose weight is `[out, in]`.
    fn update(&self, at: usize, (outputs, inputs): (usize, usize)) -> Result<Option<Update>, PassError> {
        let frozen = &self.graph.nodes[at];
        let Some((last, outer)) = self.reader(at) else { return Ok(None) };
        // The factor `A` may have stayed as it was.
        let is_product = |node: &Node| {
            node.is("Gemm") && node.int("transB") == Some(1) && self.constants.is_constant(&node.inputs[1])
        };
        let is_update = is_product(outer) && self.constants.is_learnt(&outer.inputs[1]);
        if !is_update || outer.input(2) != frozen.output(0) {
            return Ok(None);
        }
        let inner = self.constants.producer(&outer.inputs[0]).filter(|node| is_product(node));
        let Some(inner) = inner.filter(|inner| inner.inputs[0] == frozen.inputs[0]) else { return Ok(None) };
        let (a, b) = (self.constants.matrix(&inner.inputs[1])?, self.constants.matrix(&outer.inputs[1])?);
        let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
        let fits = a.ncols() == inputs && b.nrows() == outputs && a.nrows() == b.ncols();
        let scale = f64::from(outer.float("alpha").unwrap_or(1.0));
        Ok(fits.then_some(Update { a, b, scale, last }))
    }

    /// Multiplies `layer` by the learnt factors that its output is multiplied by, and returns them.
    fn gain(&self, layer: &mut Layer) -> Result<Option<Array1<f64>>, PassError> {
        let Some((index, product)) = self.reader(layer.last).filter(|(_, node)| node.is("Mul")) else {
            return Ok(None);
        };
        let factor = product.inputs.iter().find(|name| self.constants.is_learnt(name));
        let Some(factor) = factor else { return Ok(None) };
        let gain = self.constants.vector(factor)?.filter(|gain| gain.len() == layer.weight.nrows());
        let Some(gain) = gain else { return Ok(None) };
        if let Some(bias) = layer.node.input(2) {
            let Some(bias) = self.constants.real(bias)? else { return Ok(None) };
            if bias.ndim() > 1 || (bias.ndim() == 1 && ![1, gain.len()].contains(&bias.len())) {
                return Ok(None);
            }
            layer.bias = Some(bias * gain.view().into_dyn());
        }
        layer.weight *= &gain.view().insert_axis(Axis(1));
        layer.last = index;
        Ok(Some(gain))
    }

    /// Takes the bias that is added behind DoRA's gain back into `layer`.
    fn addend(&self, layer: &mut Layer) -> Result<(), PassError> {
        if let Some((index, sum)) = self.reader(layer.last).filter(|(_, node)| node.is("Add"))
            && layer.node.input(2).is_none()
            && let Some(name) = sum.inputs.iter().find(|name| self.constants.is_constant(name))
            && self.constants.vector(name)?.is_some_and(|bias| bias.len() == layer.weight.nrows())
        {
            layer.node.attributes.remove("beta");
            layer.node.inputs.resize(2, String::new());
            layer.node.inputs.push(name.clone());
            layer.last = index;
        }
        Ok(())
    }

    /// Multiplies the weight of `layer` by the learnt factors of its input, and returns them.
    fn input_scale(&self, layer: &mut Layer) -> Result<Option<Array1<f64>>, PassError> {
        let product = self.constants.producer(&layer.node.inputs[0]).filter(|node| node.is("Mul"));
        let Some([left, right]) = product.map(|node| &node.inputs[..]) else { return Ok(None) };
        let (x, factor) = if self.constants.is_learnt(right) { (left, right) } else { (right, left) };
        if !self.constants.is_learnt(factor) {
            return Ok(None);
        }
        let gain = self.constants.vector(factor)?.filter(|gain| gain.len() == layer.weight.ncols());
        if let Some(gain) = &gain {
            layer.weight *= gain;
            layer.node.inputs[0].clone_from(x);
        }
        Ok(gain)
    }
}

/// A layer while it takes up what tunes it.
struct Layer {
    node: Node,
    /// The node that computes its output.
    last: usize,
    /// `[out, in]`
    weight: Array2<f64>,
    bias: Option<ArrayD<f64>>,
}

fn norms(weight: &Array2<f64>) -> Array1<f64> {
    weight.map_axis(Axis(1), |row| row.dot(&row).sqrt())
}

fn narrow(values: ArrayD<f64>) -> Result<Tensor, PassError> {
    Ok(Value::Float(values).to_tensor(DType::F32)?)
}
