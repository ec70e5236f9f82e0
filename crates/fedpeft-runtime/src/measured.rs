//! What a graph says of its batch, as one tensor: from a device it comes in one copy, not in one for each number.

use fedpeft_artifacts::manifest::{CLIPPED, CORRECT, COUNT, LOSS};
use fedpeft_onnx::{DType, Dim, Graph, Node, Tensor, ValueInfo};

/// The output that holds the loss, right decisions, decisions, and clipped examples where any can be. All of them are
/// exact in f64.
pub(crate) const MEASURED: &str = "fedpeft.measured";

/// Replaces the outputs that are one number by one that holds them all, and gives its length.
pub(crate) fn join(graph: &mut Graph) -> usize {
    let has = |name: &&str| graph.outputs.iter().any(|output| output.name == *name);
    let names: Vec<&str> = [LOSS, CORRECT, COUNT, CLIPPED].into_iter().filter(has).collect();
    graph.outputs.retain(|output| !names.contains(&output.name.as_str()));
    let part = |name: &str, step: &str| format!("{MEASURED}.{name}.{step}");
    let shape = part("one", "shape");
    graph.initializers.insert(shape.clone(), Tensor::i64([1], &[1]));
    for name in &names {
        let (wide, row) = (part(name, "f64"), part(name, "row"));
        graph.nodes.push(Node::new("Cast", &[name], &[&wide]).with("to", i64::from(DType::F64.code())));
        graph.nodes.push(Node::new("Reshape", &[&wide, &shape], &[&row]));
    }
    let rows: Vec<String> = names.iter().map(|name| part(name, "row")).collect();
    let rows: Vec<&str> = rows.iter().map(String::as_str).collect();
    graph.nodes.push(Node::new("Concat", &rows, &[MEASURED]).with("axis", 0i64));
    graph.outputs.push(ValueInfo::new(MEASURED, DType::F64, vec![Dim::Fixed(names.len())]));
    names.len()
}
