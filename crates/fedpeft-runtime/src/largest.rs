//! `ArgMax` as two `TopK`, for CUDA, where ONNX Runtime has no `ArgMax` of our operator set: it would compute it on the
//! processor, and wait for two copies in the middle of a step.
//!
//! ```text
//! largest    TopK(x, 1)                                          [.., 1]
//! places     where x < largest: C, else 0 .. C - 1               [.., C]
//! ArgMax     TopK of the smallest place: the first of equals     [..]
//! ```

use fedpeft_onnx::{Graph, Node, Tensor};

/// Rewrites each `ArgMax` over a last axis of known size that does not stay.
pub(crate) fn from_arg_max(graph: &mut Graph) {
    for node in std::mem::take(&mut graph.nodes) {
        match (node.inputs.as_slice(), node.outputs.as_slice()) {
            ([x], [output])
                if node.is("ArgMax")
                    && node.int("axis") == Some(-1)
                    && node.int("keepdims") == Some(0)
                    && node.int("select_last_index").unwrap_or(0) == 0 =>
            {
                graph.nodes.extend(two_top_k(x, output));
            }
            _ => graph.nodes.push(node),
        }
    }
}

fn two_top_k(x: &str, output: &str) -> Vec<Node> {
    let [one, largest, at, below, count, width, start, step, all, places, least, last, from] = [
        "one", "largest", "at", "below", "count", "width", "start", "step", "all", "places", "least", "last",
        "from",
    ]
    .map(|part| format!("{output}.{part}"));
    let constant = |name: &str, tensor| Node::new("Constant", &[], &[name]).with("value", tensor);
    vec![
        constant(&one, Tensor::i64([1], &[1])),
        constant(&last, Tensor::i64([1], &[-1])),
        constant(&start, Tensor::i64([], &[0])),
        constant(&step, Tensor::i64([], &[1])),
        Node::new("TopK", &[x, &one], &[&largest, &at]).with("axis", -1i64),
        Node::new("Less", &[x, &largest], &[&below]),
        Node::new("Shape", &[x], &[&count]).with("start", -1i64),
        Node::new("Squeeze", &[&count], &[&width]),
        Node::new("Range", &[&start, &width, &step], &[&all]),
        Node::new("Where", &[&below, &count, &all], &[&places]),
        Node::new("TopK", &[&places, &one], &[&least, &from]).with("axis", -1i64).with("largest", 0i64),
        Node::new("Squeeze", &[&least, &last], &[output]),
    ]
}

#[cfg(test)]
mod tests {
    use fedpeft_onnx::{DType, Dim, ValueInfo};
    use ort::value::Tensor;

    use super::*;
    use crate::{ChosenDevice, SessionOptions, session, toy};

    #[test]
    fn the_first_of_the_largest_is_found() {
        let shape = [Dim::Symbol("N".into()), Dim::Fixed(4)];
        let mut graph = Graph { name: "largest".into(), ..Graph::default() };
        graph.inputs.push(ValueInfo::new("x", DType::F32, shape.to_vec()));
        graph.outputs.push(ValueInfo::new("y", DType::I64, vec![Dim::Symbol("N".into())]));
        graph.nodes.push(Node::new("ArgMax", &["x"], &["y"]).with("axis", -1i64).with("keepdims", 0i64));
        from_arg_max(&mut graph);
        assert!(graph.nodes.iter().all(|node| !node.is("ArgMax")));
        let (model, runtime) = (toy::model(graph), toy::runtime());
        let (form, options) = (session::Form::default(), SessionOptions::default());
        let mut session =
            session::commit(&runtime, &model.to_bytes(), ".", form, ChosenDevice::Cpu, &options).unwrap();
        let x = vec![0.0f32, 3.0, 3.0, 1.0, 0.0, 0.0, 0.0, 0.0, -4.0, -3.0, -2.0, -1.0];
        let x = Tensor::from_array(([3i64, 4], x)).unwrap();
        let outputs = session.run(ort::inputs!["x" => x]).unwrap();
        assert_eq!(outputs["y"].try_extract_tensor::<i64>().unwrap().1, [1, 0, 3]);
    }
}
