//! Finding operators that an exporter wrote out in pieces.

use std::collections::HashMap;

use fedpeft_onnx::{Graph, Node, Tensor, surgery};

use crate::PassError;

/// Names of producers and readers, for matching.
struct Matcher<'a> {
    graph: &'a Graph,
    producers: HashMap<&'a str, usize>,
    consumers: HashMap<&'a str, Vec<usize>>,
}

/// Nodes to remove and the one that takes the place of the last of them.
struct Match {
    nodes: Vec<usize>,
    replacement: Node,
}

impl<'a> Matcher<'a> {
    fn new(graph: &'a Graph) -> Self {
        Self { graph, producers: graph.producers(), consumers: graph.consumers() }
    }

    fn producer(&self, name: &str, op: &str) -> Option<(usize, &'a Node)> {
        let index = *self.producers.get(name)?;
        let node = &self.graph.nodes[index];
        node.is(op).then_some((index, node))
    }

    /// The only reader of `name`, if there is one and it applies `op`.
    fn only_reader(&self, name: &str, op: &str) -> Option<(usize, &'a Node)> {
        let is_output = self.graph.outputs.iter().any(|output| output.name == name);
        match self.consumers.get(name).map(Vec::as_slice) {
            Some(&[index]) if !is_output => Some((index, &self.graph.nodes[index])),
            _ => None,
        }
        .filter(|(_, node)| node.is(op))
    }

    fn constant(&self, name: &str) -> Option<&'a Tensor> {
        self.graph.initializers.get(name)
    }

    /// The value of a constant of one element.
    fn number(&self, name: &str) -> Option<f64> {
        match self.constant(name)?.as_f64()?.as_slice() {
            [value] => Some(*value),
            _ => None,
        }
    }

    /// The two inputs of a commutative node, with a constant number last.
    fn with_number(&self, node: &'a Node) -> Option<(&'a str, f64)> {
        let (a, b) = (node.input(0)?, node.input(1)?);
        self.number(b).map(|n| (a, n)).or_else(|| self.number(a).map(|n| (b, n)))
    }

    /// The input of a commutative node that is not `name`.
    fn other(&self, node: &'a Node, name: &str) -> Option<&'a str> {
        match (node.input(0)?, node.input(1)?) {
            (a, b) if a == name => Some(b),
            (a, b) if b == name => Some(a),
            _ => None,
        }
    }

    fn is_last_axis_mean(&self, node: &Node) -> bool {
        let axes = node.input(1).and_then(|name| self.constant(name)).and_then(Tensor::as_i64);
        node.is("ReduceMean") && node.int("keepdims").unwrap_or(1) == 1 && axes.as_deref() == Some(&[-1])
    }
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-4 * b.abs()
}

/// `(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias` over the last axis.
fn layer_norm(m: &Matcher<'_>, start: usize) -> Option<Match> {
    let sub = &m.graph.nodes[start];
    sub.is("Sub").then_some(())?;
    let (x, centred) = (sub.input(0)?, sub.output(0)?);
    let (mean_at, mean) = m.producer(sub.input(1)?, "ReduceMean")?;
    (m.is_last_axis_mean(mean) && mean.input(0)? == x).then_some(())?;
    let readers = m.consumers.get(centred)?;
    let square_at = *readers.iter().find(|i| m.graph.nodes[**i].is("Pow") || m.graph.nodes[**i].is("Mul"))?;
    let square = &m.graph.nodes[square_at];
    let squared = if square.is("Pow") {
        m.number(square.input(1)?)? == 2.0 && square.input(0)? == centred
    } else {
        square.inputs.iter().all(|input| input == centred)
    };
    squared.then_some(())?;
    let (variance_at, variance) = m.only_reader(square.output(0)?, "ReduceMean")?;
    m.is_last_axis_mean(variance).then_some(())?;
    let (add_at, add) = m.only_reader(variance.output(0)?, "Add")?;
    let (_, epsilon) = m.with_number(add)?;
    let (sqrt_at, sqrt) = m.only_reader(add.output(0)?, "Sqrt")?;
    let (div_at, div) = m.only_reader(sqrt.output(0)?, "Div")?;
    let distinct: std::collections::BTreeSet<_> = readers.iter().collect();
    (div.input(0)? == centred && distinct.len() == 2 && distinct.contains(&div_at)).then_some(())?;
    let (scale_at, scale) = m.only_reader(div.output(0)?, "Mul")?;
    let scale_name = m.other(scale, div.output(0)?)?;
    let (bias_at, bias) = m.only_reader(scale.output(0)?, "Add")?;
    let bias_name = m.other(bias, scale.output(0)?)?;
    let flat = |name| m.constant(name).is_some_and(|t| t.shape.len() == 1);
    (flat(scale_name) && flat(bias_name) && m.only_reader(mean.output(0)?, "Sub").is_some()).then_some(())?;
    Some(Match {
        nodes: vec![mean_at, start, square_at, variance_at, add_at, sqrt_at, div_at, scale_at, bias_at],
        replacement: Node::new("LayerNormalization", &[x, scale_name, bias_name], &[bias.output(0)?])
            .with("axis", -1i64)
            .with("epsilon", epsilon as f32)
            .named(bias.name.clone()),
    })
}

/// `x * (1 + erf(x / sqrt 2)) / 2`, in the orders that exporters write it.
fn gelu(m: &Matcher<'_>, start: usize) -> Option<Match> {
    let erf = &m.graph.nodes[start];
    erf.is("Erf").then_some(())?;
    let scaled_at = *m.producers.get(erf.input(0)?)?;
    let scaled = &m.graph.nodes[scaled_at];
    let x = scaled.input(0)?;
    let root_half = match scaled.op.as_str() {
        "Div" => 1.0 / m.number(scaled.input(1)?)?,
        "Mul" => m.number(scaled.input(1)?)?,
        _ => return None,
    };
    close(root_half, std::f64::consts::FRAC_1_SQRT_2).then_some(())?;
    let (add_at, add) = m.only_reader(erf.output(0)?, "Add")?;
    (m.with_number(add)?.1 == 1.0).then_some(())?;
    let (first_at, first) = m.only_reader(add.output(0)?, "Mul")?;
    let factor = m.other(first, add.output(0)?)?;
    let mut nodes = vec![scaled_at, start, add_at, first_at];
    let last = if m.number(factor) == Some(0.5) {
        // x * (0.5 * (1 + erf))
        let (last_at, last) = m.only_reader(first.output(0)?, "Mul")?;
        nodes.push(last_at);
        (m.other(last, first.output(0)?)? == x).then_some(last)?
    } else if factor == x {
        // (x * (1 + erf)) * 0.5
        let (last_at, last) = m.only_reader(first.output(0)?, "Mul")?;
        nodes.push(last_at);
        (m.number(m.other(last, first.output(0)?)?)? == 0.5).then_some(last)?
    } else {
        // (0.5 * x) * (1 + erf)
        let (half_at, half) = m.producer(factor, "Mul")?;
        nodes.push(half_at);
        (m.with_number(half)? == (x, 0.5) && m.only_reader(factor, "Mul").is_some()).then_some(first)?
    };
    m.only_reader(scaled.output(0)?, "Erf")?;
    Some(Match { replacement: Node::new("Gelu", &[x], &[last.output(0)?]).named(last.name.clone()), nodes })
}

/// Applies `find` from every node until it finds nothing more.
fn rewrite(graph: &mut Graph, find: fn(&Matcher<'_>, usize) -> Option<Match>) -> Result<usize, PassError> {
    let matches: Vec<Match> = {
        let matcher = Matcher::new(graph);
        (0..graph.nodes.len()).filter_map(|start| find(&matcher, start)).collect()
    };
    let count = matches.len();
    let mut nodes: Vec<_> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    for Match { nodes: removed, replacement } in matches {
        removed.iter().for_each(|index| nodes[*index] = None);
        if let Some(last) = removed.iter().max() {
            nodes[*last] = Some(replacement);
        }
    }
    graph.nodes = nodes.into_iter().flatten().collect();
    surgery::prune(graph)?;
    Ok(count)
}

/// `(a * c1) (b * c2)` is `(a * (c1 c2)) b`: attention scaled on both sides needs one scaling.
fn merge_scales(graph: &mut Graph) -> Result<(), PassError> {
    let found: Vec<_> = {
        let m = Matcher::new(graph);
        let find = |index: usize| {
            let node = &graph.nodes[index];
            node.is("MatMul").then_some(())?;
            let scale = |input: usize| {
                let (at, mul) = m.producer(node.input(input)?, "Mul")?;
                m.only_reader(mul.output(0)?, "MatMul")?;
                m.with_number(mul).map(|(value, number)| (at, value.to_owned(), number))
            };
            let ((left_at, left, c1), (_, right, c2)) = (scale(0)?, scale(1)?);
            Some((index, left_at, left, right, c1 * c2))
        };
        (0..graph.nodes.len()).filter_map(find).collect()
    };
    for (matmul, mul, left, right, number) in found {
        let name = format!("scale.{matmul}");
        graph.initializers.insert(name.clone(), Tensor::scalar(number as f32));
        graph.nodes[mul].inputs = vec![left, name];
        graph.nodes[matmul].inputs[1] = right;
    }
    Ok(surgery::prune(graph)?)
}

/// Fuses what can be fused.
pub(crate) fn fuse(graph: &mut Graph) -> Result<(), PassError> {
    rewrite(graph, layer_norm)?;
    rewrite(graph, gelu)?;
    merge_scales(graph)
}
