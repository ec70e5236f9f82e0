//! Which columns of a packed projection reach an operand of attention.

use std::collections::{BTreeSet, HashMap, HashSet};

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{Graph, Model, Node};
use fedpeft_passes::{PassError, Types};
use ndarray::ArrayD;

use super::{
    Linear,
    walk::{Walk, is_layout},
};

/// Columns of `linear`'s output that reach `operand`. Exporters split packed projections in many ways, so
/// they are followed by moving numbered columns through the graph.
pub(super) fn reaching(
    walk: &Walk<'_>,
    linear: &Linear,
    operand: &str,
    types: &Types,
) -> Result<Vec<usize>, PassError> {
    let output = walk.graph.nodes[linear.node].outputs[0].as_str();
    let moved = only_moved(walk, output);
    let frontier = first_moved(walk, operand, &moved);
    let rows = types.get(output).and_then(|ty| ty.rows()).map_or(1, |rows| rows.factor.max(1)) as usize;
    let numbered = ArrayD::from_shape_fn(vec![rows, linear.outputs], |index| index[1] as f64);
    let nodes: Vec<Node> = walk
        .graph
        .nodes
        .iter()
        .filter(|node| {
            node.outputs.iter().any(|name| moved.contains(name.as_str())) && node.outputs[0] != output
        })
        .cloned()
        .collect();
    let constants = nodes
        .iter()
        .flat_map(|node| &node.inputs)
        .filter_map(|name| walk.graph.initializers.get(name).map(|tensor| (name.clone(), tensor.clone())));
    let model =
        Model::new(Graph { initializers: constants.collect(), nodes: nodes.clone(), ..Graph::default() });
    let inputs = HashMap::from([(output.to_owned(), Value::Float(numbered))]);
    let wanted: Vec<&str> = frontier.iter().copied().collect();
    let mut columns = BTreeSet::new();
    for value in Interpreter::new(&model)?.values(&inputs, &wanted)? {
        columns.extend(value.as_float()?.iter().map(|column| *column as usize));
    }
    Ok(columns.into_iter().collect())
}

/// Values that only move those of `start`.
fn only_moved<'a>(walk: &Walk<'a>, start: &'a str) -> HashSet<&'a str> {
    let mut moved = HashSet::from([start]);
    for node in &walk.graph.nodes {
        let computed = |name: &&String| !name.is_empty() && !walk.is_constant(name);
        let mut inputs = node.inputs.iter().filter(computed).peekable();
        if is_layout(node) && inputs.peek().is_some() && inputs.all(|name| moved.contains(name.as_str())) {
            moved.extend(node.outputs.iter().map(String::as_str));
        }
    }
    moved
}

/// The values of `moved` that `operand` is first made of.
fn first_moved<'a>(walk: &Walk<'a>, operand: &'a str, moved: &HashSet<&'a str>) -> BTreeSet<&'a str> {
    let (mut first, mut seen, mut stack) = (BTreeSet::new(), HashSet::new(), vec![operand]);
    while let Some(value) = stack.pop() {
        if moved.contains(value) {
            first.insert(value);
        } else if let Some((_, node)) = walk.producer(value).filter(|_| seen.insert(value)) {
            stack.extend(walk.data_inputs(node));
        }
    }
    first
}
