//! Every operator against its portable body, on shapes that need one task and shapes that need many.

use fedpeft_onnx::{DType, Dim, Graph, ValueInfo};
use ort::{session::Session, value::Tensor};

use super::domain;
use crate::toy::{functions, fused, model, runtime};

/// Outputs of one node, computed by our kernel and by the function's body.
fn both(op: &str, inputs: &[(&str, &[usize])], rank: usize) -> [Vec<f32>; 2] {
    let symbolic = |name: &str, rank: usize| {
        ValueInfo::new(name, DType::F32, (0..rank).map(|i| Dim::Symbol(format!("{name}{i}"))).collect())
    };
    let mut graph = Graph { name: op.into(), ..Graph::default() };
    graph.inputs = inputs.iter().map(|(name, shape)| symbolic(name, shape.len())).collect();
    graph.outputs = vec![symbolic("out", rank)];
    let names: Vec<&str> = inputs.iter().map(|(name, _)| *name).collect();
    graph.nodes = vec![fused(op, &names, "out")];
    [true, false].map(|ours| {
        let mut model = model(graph.clone());
        let mut builder = Session::builder(&runtime().environment).unwrap().with_intra_threads(2).unwrap();
        if ours {
            assert!(super::take_over(&mut model));
            assert!(model.functions.is_empty());
            builder = builder.with_operators(domain().unwrap()).unwrap();
        }
        let mut session = builder.commit_from_memory(&model.to_bytes()).unwrap();
        let feeds = inputs.iter().enumerate().map(|(k, (name, shape))| {
            let count = shape.iter().product();
            let wave = |i: usize| ((i * 7 + k * 13) as f32 * 0.37).sin() * 2.0;
            let data: Vec<f32> =
                (0..count).map(wave).map(|v| if *name == "inv" { v.abs() + 0.1 } else { v }).collect();
            ((*name).to_owned(), Tensor::from_array((shape.to_vec(), data)).unwrap())
        });
        let outputs = session.run(feeds.collect::<Vec<_>>()).unwrap();
        outputs["out"].try_extract_tensor::<f32>().unwrap().1.to_vec()
    })
}

fn assert_close(op: &str, inputs: &[(&str, &[usize])], rank: usize) {
    let [ours, portable] = both(op, inputs, rank);
    assert_eq!(ours.len(), portable.len(), "{op}");
    let scale = portable.iter().fold(1.0f32, |max, v| max.max(v.abs()));
    for (a, b) in ours.iter().zip(&portable) {
        assert!((a - b).abs() < 5e-6 * scale, "{op} {inputs:?}: {a} is not {b}");
    }
}

#[test]
fn gelu_grad() {
    for shape in [&[1usize, 1][..], &[3, 5, 7], &[64, 17, 96]] {
        assert_close("GeluGrad", &[("dy", shape), ("x", shape)], shape.len());
    }
}

#[test]
fn layer_norm_grad() {
    for shape in [[1usize, 1, 2], [2, 3, 33], [32, 17, 384]] {
        let (stats, columns) = ([shape[0], shape[1], 1], [shape[2]]);
        let inputs: [(&str, &[usize]); 5] =
            [("dy", &shape), ("x", &shape), ("scale", &columns), ("mean", &stats), ("inv", &stats)];
        assert_close("LayerNormGrad", &inputs, 3);
    }
}

#[test]
fn softmax_grad() {
    for shape in [&[4usize, 9][..], &[32, 6, 17, 17]] {
        assert_close("SoftmaxGrad", &[("dy", shape), ("y", shape)], shape.len());
    }
}

#[test]
fn reduce_rows() {
    for shape in [[1usize, 1, 3], [2, 31, 5], [32, 17, 384]] {
        assert_close("ReduceRows", &[("x", &shape)], 1);
    }
}

#[test]
fn every_operator_has_a_body_in_the_tests() {
    let mut names: Vec<String> = functions().into_iter().map(|function| function.name).collect();
    names.sort();
    let mut known = super::NAMES.to_vec();
    known.sort_unstable();
    assert_eq!(names, known);
}
