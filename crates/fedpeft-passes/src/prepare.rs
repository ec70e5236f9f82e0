//! From an export to a graph that can be differentiated.

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_onnx::{DType, Graph, Model, Node, opset, surgery};

use crate::{
    PassError, Type,
    fold::fold,
    fuse::fuse,
    infer_graph,
    inputs::{InputDecl, declare},
    lower::lower,
};

/// What to make of a model.
#[derive(Debug, Clone)]
pub struct PrepareOptions {
    /// The value at which to cut.
    pub output: String,
    /// Every input that the cut model reads.
    pub inputs: Vec<InputDecl>,
}

impl PrepareOptions {
    /// Options for a model of one input, `f32` values `[N, ..shape]`.
    pub fn single(output: impl Into<String>, shape: impl Into<Vec<usize>>) -> Self {
        let input = InputDecl { name: None, dtype: DType::F32, shape: shape.into() };
        Self { output: output.into(), inputs: vec![input] }
    }
}

/// A backbone ready for surgery.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// The declared inputs in their order, one output; only the batch is not known.
    pub graph: Graph,
    /// The source model's weights among the initializers: what could be trained.
    pub parameters: BTreeSet<String>,
    /// Type of the output.
    pub output: Type,
}

impl Prepared {
    /// Folds everything that does not depend on the input or on `trainable` parameters.
    pub fn fold_frozen(&mut self, trainable: &BTreeSet<String>) -> Result<(), PassError> {
        keeping_inputs(&mut self.graph, |graph| fold(graph, trainable))
    }
}

/// Cuts `model` at a value, fixes all sizes but the batch, folds, fuses and lowers.
///
/// # Errors
/// [`PassError`] naming the node or value at which preparation stopped.
pub fn prepare(mut model: Model, options: &PrepareOptions) -> Result<Prepared, PassError> {
    opset::upgrade(&mut model)?;
    let mut graph = model.graph;
    surgery::cut(&mut graph, &options.output)?;
    let parameters = name_parameters(&mut graph);
    declare(&mut graph, &options.inputs)?;
    keeping_inputs(&mut graph, |graph| {
        fold(graph, &parameters)?;
        fuse(graph)?;
        lower(graph)?;
        fold(graph, &parameters)
    })?;
    let types = infer_graph(&graph)?;
    let name = &graph.outputs[0].name;
    let output = types
        .get(name)
        .cloned()
        .ok_or_else(|| PassError::Input(format!("{name:?} is computed by nothing")))?;
    let parameters = parameters.into_iter().filter(|name| graph.initializers.contains_key(name)).collect();
    Ok(Prepared { graph, parameters, output })
}

/// Of an input, the model may need no more than its shape, which is known; what comes after the backbone (a
/// pooling, a loss) may need it all the same.
fn keeping_inputs(
    graph: &mut Graph,
    work: impl FnOnce(&mut Graph) -> Result<(), PassError>,
) -> Result<(), PassError> {
    let inputs = graph.inputs.clone();
    work(graph)?;
    graph.inputs = inputs;
    Ok(())
}

/// The model's weights. Anonymous ones (exporters rename what they transpose) are named after the node that
/// reads them, `/encoder/layer.0/key/MatMul` gives `encoder.layer.0.key.weight`, or after the bias that is added
/// to their product.
fn name_parameters(graph: &mut Graph) -> BTreeSet<String> {
    let is_parameter = |t: &fedpeft_onnx::Tensor| t.dtype.is_float() && !t.shape.is_empty() && t.len() > 1;
    let names: Vec<_> =
        graph.initializers.iter().filter(|(_, t)| is_parameter(t)).map(|(n, _)| n.clone()).collect();
    let mut taken: BTreeSet<String> = graph.initializers.keys().cloned().collect();
    let mut renames = BTreeMap::new();
    for name in names.iter().filter(|name| is_anonymous(name)) {
        let reader = graph.nodes.iter().find(|node| node.inputs.contains(name));
        let base = reader.and_then(|node| readable_name(node, name).or_else(|| name_by_bias(graph, node)));
        let Some(base) = base else { continue };
        let unique = (1..)
            .map(|i| if i == 1 { base.clone() } else { format!("{base}.{i}") })
            .find(|n| !taken.contains(n));
        if let Some(unique) = unique {
            taken.insert(unique.clone());
            renames.insert(name.clone(), unique);
        }
    }
    for (old, new) in &renames {
        surgery::redirect(graph, old, new);
        if let Some(tensor) = graph.initializers.remove(old) {
            graph.initializers.insert(new.clone(), tensor);
        }
    }
    names.into_iter().map(|name| renames.get(&name).cloned().unwrap_or(name)).collect()
}

fn is_anonymous(name: &str) -> bool {
    name.starts_with("onnx::") || name.starts_with("val_") || name.chars().all(|c| c.is_ascii_digit())
}

/// `encoder.layer.0.key.weight` for the product to which `encoder.layer.0.key.bias` is added.
fn name_by_bias(graph: &Graph, reader: &Node) -> Option<String> {
    let product = reader.outputs.first().filter(|_| reader.is("MatMul"))?;
    let sum = graph.nodes.iter().find(|node| node.is("Add") && node.inputs.contains(product))?;
    let bias = sum.inputs.iter().find(|input| graph.initializers.contains_key(*input))?;
    Some(format!("{}.weight", bias.strip_suffix(".bias")?))
}

fn readable_name(node: &Node, input: &str) -> Option<String> {
    let (path, op) = node.name.trim_start_matches('/').rsplit_once('/')?;
    let role = match node.op.as_str() {
        "MatMul" | "Gemm" | "Conv" if node.inputs.first().is_some_and(|first| first != input) => {
            "weight".to_owned()
        }
        _ => format!("{}.value", op.to_ascii_lowercase()),
    };
    Some(format!("{}.{role}", path.replace('/', ".")))
}
