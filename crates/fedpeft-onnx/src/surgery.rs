//! Cutting graphs: keep what a value needs, drop the rest, order what is left.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::{DType, Graph, OnnxError, ValueInfo};

/// Cuts `graph` so that it ends at the value `output`, dropping every node, input and initializer that it
/// does not need.
///
/// # Errors
/// [`OnnxError::NoSuchValue`] with near misses, where nothing produces `output`.
pub fn cut(graph: &mut Graph, output: &str) -> Result<(), OnnxError> {
    let producers = graph.producers();
    if !producers.contains_key(output) {
        return Err(no_such_value(output, producers.keys().copied()));
    }
    graph.outputs = vec![ValueInfo { name: output.to_owned(), dtype: DType::F32, shape: None }];
    prune(graph)
}

/// Drops what no output needs and sorts the nodes.
pub fn prune(graph: &mut Graph) -> Result<(), OnnxError> {
    let mut needed_nodes = BTreeSet::new();
    let mut needed: HashSet<String> = HashSet::new();
    {
        let producers = graph.producers();
        let mut stack: Vec<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
        while let Some(name) = stack.pop() {
            if !needed.insert(name.to_owned()) {
                continue;
            }
            if let Some(&index) = producers.get(name)
                && needed_nodes.insert(index)
            {
                stack.extend(graph.nodes[index].inputs.iter().filter(|n| !n.is_empty()).map(String::as_str));
            }
        }
    }
    let mut index = 0;
    graph.nodes.retain(|_| {
        index += 1;
        needed_nodes.contains(&(index - 1))
    });
    graph.initializers.retain(|name, _| needed.contains(name));
    graph.inputs.retain(|input| needed.contains(&input.name));
    sort(graph)
}

/// Orders the nodes so that each reads only what came before, keeping the given order where it can.
pub fn sort(graph: &mut Graph) -> Result<(), OnnxError> {
    let order = {
        let producers = graph.producers();
        let mut missing = vec![0usize; graph.nodes.len()];
        let mut readers: HashMap<usize, Vec<usize>> = HashMap::new();
        for (i, node) in graph.nodes.iter().enumerate() {
            for name in node.inputs.iter().filter(|name| !name.is_empty()) {
                match producers.get(name.as_str()) {
                    Some(&producer) => {
                        missing[i] += 1;
                        readers.entry(producer).or_default().push(i);
                    }
                    None if graph.initializers.contains_key(name) || graph.input(name).is_some() => {}
                    None => return Err(no_such_value(name, producers.keys().copied())),
                }
            }
        }
        let mut ready: BTreeSet<usize> = (0..missing.len()).filter(|i| missing[*i] == 0).collect();
        let mut order = Vec::with_capacity(missing.len());
        while let Some(i) = ready.pop_first() {
            order.push(i);
            for &reader in readers.get(&i).map_or(&[][..], Vec::as_slice) {
                missing[reader] -= 1;
                if missing[reader] == 0 {
                    ready.insert(reader);
                }
            }
        }
        order
    };
    if order.len() != graph.nodes.len() {
        return Err(OnnxError::Graph("some nodes depend on each other in a circle".into()));
    }
    let mut nodes: Vec<_> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    graph.nodes = order.into_iter().filter_map(|i| nodes[i].take()).collect();
    Ok(())
}

/// Makes every reader of `old` read `new`, graph outputs included.
pub fn redirect(graph: &mut Graph, old: &str, new: &str) {
    let inputs = graph.nodes.iter_mut().flat_map(|node| &mut node.inputs);
    let outputs = graph.outputs.iter_mut().map(|output| &mut output.name);
    for name in inputs.chain(outputs).filter(|name| *name == old) {
        new.clone_into(name);
    }
}

/// Up to three of `known` that resemble `name`, the most similar first.
pub fn near_misses<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut near: Vec<(usize, &str)> = known.map(|other| (distance(name, other), other)).collect();
    near.sort_unstable();
    near.dedup();
    near.iter().take(3).filter(|(d, _)| *d <= name.len() / 2).map(|(_, n)| *n).collect()
}

fn no_such_value<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> OnnxError {
    let near = near_misses(name, known);
    let hint = if near.is_empty() { String::new() } else { format!("; near misses: {}", near.join(", ")) };
    OnnxError::NoSuchValue { name: name.to_owned(), hint }
}

/// Levenshtein distance, by bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dim, Node, Tensor};

    fn graph() -> Graph {
        let mut graph = Graph::default();
        graph.inputs.push(ValueInfo::new("x", DType::F32, Dim::fixed(&[2])));
        graph.initializers.insert("w".into(), Tensor::scalar(1.0));
        graph.initializers.insert("unused".into(), Tensor::scalar(1.0));
        graph.nodes = vec![
            Node::new("Neg", &["b"], &["c"]),
            Node::new("Mul", &["x", "w"], &["b"]),
            Node::new("Exp", &["c"], &["d"]),
        ];
        graph.outputs.push(ValueInfo::new("d", DType::F32, Dim::fixed(&[2])));
        graph
    }

    #[test]
    fn cutting_drops_and_sorts() {
        let mut graph = graph();
        cut(&mut graph, "c").unwrap();
        assert_eq!(graph.nodes.iter().map(|n| n.op.as_str()).collect::<Vec<_>>(), ["Mul", "Neg"]);
        assert_eq!(graph.initializers.keys().collect::<Vec<_>>(), ["w"]);
    }

    #[test]
    fn misses_are_named() {
        let error = cut(&mut graph(), "dd").unwrap_err().to_string();
        assert!(error.contains("\"dd\"") && error.contains("near misses: "), "{error}");
    }

    #[test]
    fn circles_are_refused() {
        let mut graph = graph();
        graph.nodes[1].inputs[0] = "d".into();
        assert!(matches!(sort(&mut graph), Err(OnnxError::Graph(_))));
    }
}
