//! The frozen part of a graph whose method trains only what comes after it: it depends on an example and on nothing else.

use std::collections::HashSet;

use fedpeft_artifacts::manifest::{CLIPPED, CORRECT, COUNT, GRADIENT_SUFFIX, LOGITS, LOSS, Manifest};
use fedpeft_onnx::{DType, Graph, Model, Node, OnnxError, ValueInfo, surgery};

/// Values that may be the last frozen one are tried from the last to the first, at most so many: behind it are only a few
/// that a gradient reads, such as its transpose.
const TRIES: usize = 16;

/// The value at which the frozen part of a training graph of `manifest` ends; none where what is trained is woven into it.
pub(crate) fn end(model: &Model, manifest: &Manifest) -> Option<String> {
    let mut frozen: HashSet<&str> = manifest.inputs.iter().map(|input| input.name.as_str()).collect();
    let mut changing: HashSet<&str> = model.graph.inputs.iter().map(|input| input.name.as_str()).collect();
    changing.retain(|name| !frozen.contains(name));
    let mut ends = Vec::new();
    for node in &model.graph.nodes {
        let reads = |set: &HashSet<&str>| node.inputs.iter().any(|name| set.contains(name.as_str()));
        let (changes, follows) = (reads(&changing), reads(&frozen));
        if changes {
            changing.extend(node.outputs.iter().map(String::as_str));
        } else if follows {
            frozen.extend(node.outputs.iter().map(String::as_str));
            ends.extend(node.output(0));
        }
    }
    let fits = |end: &&&str| after(&mut model.clone(), end, manifest).is_ok();
    ends.iter().rev().take(TRIES).find(fits).map(|end| (*end).to_owned())
}

/// Leaves of a graph what comes before `end`, which it then gives.
pub(crate) fn before(model: &mut Model, end: &str) -> Result<(), OnnxError> {
    surgery::cut(&mut model.graph, end)
}

/// Leaves of a graph of `manifest` what comes after `end`, which it then reads in place of the model's inputs.
///
/// # Errors
/// [`OnnxError::NoSuchValue`], where that is not all that it needs of them.
pub(crate) fn after(model: &mut Model, end: &str, manifest: &Manifest) -> Result<(), OnnxError> {
    let graph = &mut model.graph;
    graph.nodes.retain(|node| !node.outputs.iter().any(|output| output == end));
    let given = |name: &str| manifest.inputs.iter().any(|input| input.name == name);
    for node in &mut graph.nodes {
        if is_batch_size(node) && node.input(0).is_some_and(given) {
            node.inputs = vec![end.to_owned()];
        }
    }
    let gradients = manifest.adapter.tensors().iter().map(|spec| format!("{}{GRADIENT_SUFFIX}", spec.name));
    let wanted: HashSet<String> =
        [LOSS, CORRECT, COUNT, CLIPPED, LOGITS].map(str::to_owned).into_iter().chain(gradients).collect();
    graph.outputs.retain(|output| wanted.contains(&output.name));
    graph.inputs.push(ValueInfo { name: end.to_owned(), dtype: DType::F32, shape: None });
    surgery::prune(graph)?;
    let missing = missing(graph)
        .or_else(|| graph.inputs.iter().find(|input| given(&input.name)).map(|i| i.name.clone()));
    match missing {
        Some(name) => Err(OnnxError::NoSuchValue { name, hint: String::new() }),
        None => Ok(()),
    }
}

/// Reads nothing of a value but how many examples it is of.
fn is_batch_size(node: &Node) -> bool {
    node.is("Shape") && node.int("start") == Some(0) && node.int("end") == Some(1)
}

/// A value that is read and that nothing makes.
fn missing(graph: &Graph) -> Option<String> {
    let mut known: HashSet<&str> = graph.inputs.iter().map(|input| input.name.as_str()).collect();
    known.extend(graph.initializers.keys().map(String::as_str));
    known.extend(graph.nodes.iter().flat_map(|node| &node.outputs).map(String::as_str));
    let read = graph.nodes.iter().flat_map(|node| &node.inputs).filter(|name| !name.is_empty());
    let read = read.chain(graph.outputs.iter().map(|output| &output.name));
    read.into_iter().find(|name| !known.contains(name.as_str())).cloned()
}
