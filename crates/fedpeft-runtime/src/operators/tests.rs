//! Every operator against its portable body, on shapes that need one task and shapes that need many.

use fedpeft_onnx::{DType, Dim, Graph, ValueInfo};
use ort::{session::Session, value::Tensor};

use super::domain;
use crate::toy::{fused, model, runtime};

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
        let mut session = session(graph.clone(), ours);
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

/// A session on our kernels, or on the functions' bodies.
fn session(graph: Graph, ours: bool) -> Session {
    let mut model = model(graph);
    let mut builder = Session::builder(&runtime().environment).unwrap().with_intra_threads(2).unwrap();
    if ours {
        assert!(super::take_over(&mut model));
        assert!(model.functions.is_empty());
        builder = builder.with_operators(domain().unwrap()).unwrap();
    }
    builder.commit_from_memory(&model.to_bytes()).unwrap()
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
fn dropout() {
    for shape in [[1usize, 3], [32 * 17, 384]] {
        let [ours, portable] = [true, false].map(|ours| {
            let dims = |rank| (0..rank).map(|i| Dim::Symbol(format!("d{i}"))).collect();
            let mut graph = Graph { name: "dropout".into(), ..Graph::default() };
            graph.inputs = vec![
                ValueInfo::new("x", DType::F32, dims(2)),
                ValueInfo::new("seed", DType::I64, vec![]),
                ValueInfo::new("layer", DType::I64, vec![]),
                ValueInfo::new("rate", DType::F32, vec![]),
            ];
            graph.outputs = vec![ValueInfo::new("out", DType::F32, dims(2))];
            graph.nodes = vec![fused("Dropout", &["x", "seed", "layer", "rate"], "out")];
            let mut session = session(graph, ours);
            let x: Vec<f32> = (0..shape[0] * shape[1]).map(|i| (i as f32 * 0.37).sin()).collect();
            let outputs = session
                .run(ort::inputs![
                    "x" => Tensor::from_array((shape, x)).unwrap(),
                    "seed" => Tensor::from_array(([0usize; 0], vec![i64::MAX - 12_345])).unwrap(),
                    "layer" => Tensor::from_array(([0usize; 0], vec![77i64])).unwrap(),
                    "rate" => Tensor::from_array(([0usize; 0], vec![0.3f32])).unwrap(),
                ])
                .unwrap();
            outputs["out"].try_extract_tensor::<f32>().unwrap().1.to_vec()
        });
        assert_eq!(ours, portable);
    }
}

#[test]
fn every_kernel_takes_the_place_of_a_body() {
    let bodies: Vec<String> =
        fedpeft_autodiff::functions::all().into_iter().map(|function| function.name).collect();
    assert!(super::NAMES.iter().all(|name| bodies.iter().any(|body| body == name)));
}
