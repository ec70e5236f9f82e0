//! The gradient of a normalisation's scale: `sum over rows of dY (X - mean) inv_std_dev`.

use fedpeft_onnx::{Graph, Node};

use super::{ours, replace};
use crate::operators::DOMAIN;

pub(super) fn fuse(graph: &mut Graph) -> bool {
    let producers = graph.producers();
    let producer = |value: &str, op: &str| {
        let node = graph.nodes.get(*producers.get(value)?)?;
        node.is(op).then_some(node)
    };
    let found = |sum: &Node| -> Option<Node> {
        let product = producer(sum.input(0)?, "Mul")?;
        let normal = producer(product.input(1)?, "Mul")?;
        let centred = producer(normal.input(0)?, "Sub")?;
        let (x, mean, inv) = (centred.input(0)?, centred.input(1)?, normal.input(1)?);
        // They are statistics of the same rows.
        let norm = graph.nodes.get(*producers.get(mean)?).filter(|node| node.is("LayerNormalization"))?;
        let statistics = norm.outputs.get(1..3)?;
        (norm.input(0)? == x && statistics == [mean, inv]).then(|| {
            ours("LayerNormScaleGrad", &[product.inputs[0].as_str(), x, mean, inv], &[&sum.outputs[0]])
        })
    };
    let sums = graph.nodes.iter().filter(|node| node.op == "ReduceRows" && node.domain == DOMAIN);
    let nodes: Vec<Node> = sums.filter_map(found).collect();
    let fused = !nodes.is_empty();
    replace(graph, nodes);
    fused
}
