//! Twenty steps by PyTorch (`tests/golden/optimizers.py`), repeated by the kernels and by the graphs.

use std::collections::BTreeMap;

use fedpeft_artifacts::optimizer::{self, gradient};
use fedpeft_codec::{Layout, TensorSpec};
use fedpeft_protocol::run::{OptimizerSpec, TrainingSpec};
use ort::{memory::Allocator, value::Tensor};
use serde::Deserialize;

use super::{Bound, Form, GraphOptimizer, HostOptimizer, Optimizer, Sessions, transforms};
use crate::{
    ChosenDevice, Runtime, Schedule, SessionOptions, adapter::Adapter, graph::tensors, memory::Residence,
    session, session::Form as SessionForm, toy,
};

#[derive(Deserialize)]
struct Golden {
    shapes: Vec<Vec<u64>>,
    /// Examples of the micro-batches, where there are two.
    weights: [f64; 2],
    start: Vec<f32>,
    gradients: Vec<Vec<f32>>,
    cases: BTreeMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    training: TrainingSpec,
    learning_rates: Vec<f64>,
    parameters: Vec<Vec<f64>>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../../../../tests/golden/optimizers.json")).unwrap()
}

fn layout(shapes: &[Vec<u64>]) -> Layout {
    let spec = |(i, shape): (usize, &Vec<u64>)| TensorSpec { name: format!("t{i}"), shape: shape.clone() };
    Layout::new(shapes.iter().enumerate().map(spec).collect()).unwrap()
}

fn fill(layout: &Layout, tensors: &mut [Tensor<f32>], values: &[f32]) {
    for ((_, range), tensor) in layout.ranges().zip(tensors) {
        tensor.extract_tensor_mut().1.copy_from_slice(&values[range]);
    }
}

fn sessions(runtime: &Runtime, layout: &Layout, training: &TrainingSpec) -> Sessions {
    let model = match training.optimizer {
        OptimizerSpec::Sgd { .. } => optimizer::sgd(layout).unwrap(),
        OptimizerSpec::Adamw { .. } => optimizer::adamw(layout).unwrap(),
    };
    let options = SessionOptions { threads: 1, ..SessionOptions::default() };
    let open = |model: fedpeft_onnx::Model| {
        session::commit(runtime, &model.to_bytes(), ".", SessionForm::default(), ChosenDevice::Cpu, &options)
            .unwrap()
    };
    let (mut step, mut accumulation) = (model.clone(), model);
    gradient::keep(&mut step, transforms(training, false)).unwrap();
    gradient::accumulation(&mut accumulation).unwrap();
    let accumulation = transforms(training, false).accumulate.then(|| open(accumulation));
    Sessions { step: open(step), accumulation }
}

/// The adapter after each step.
fn steps(runtime: &Runtime, golden: &Golden, training: &TrainingSpec, residence: Residence) -> Vec<Vec<f32>> {
    let (layout, allocator) = (layout(&golden.shapes), Allocator::default());
    let mut adapter = Adapter::new(&layout, &allocator, residence).unwrap();
    adapter.write(&layout, &golden.start).unwrap();
    let mut gradients = tensors(&layout, &allocator).unwrap();
    let anchor = if training.proximal_mu > 0.0 { golden.start.clone() } else { Vec::new() };
    let form = match residence {
        Residence::Host => {
            Form::Host(Box::new(HostOptimizer::new(training, anchor, None, &layout, 1).unwrap()))
        }
        Residence::Device => {
            let bound = Bound {
                layout: &layout,
                adapter: adapter.sets_mut(),
                gradients: &gradients,
                anchor: &anchor,
                correction: None,
                allocator: &allocator,
            };
            let optimizer = GraphOptimizer::new(sessions(runtime, &layout, training), training, bound);
            Form::Graph(Box::new(optimizer.unwrap()))
        }
    };
    let mut optimizer = Optimizer::new(form, training);
    let schedule = Schedule::new(training, golden.gradients.len() as u64, 1, 1);
    let last = golden.gradients.len() - 1;
    (0..=last)
        .map(|step| {
            optimizer.begin();
            optimizer.set_learning_rate(schedule.learning_rate(step as u64));
            let (mut own, mut weight) = (step, 1.0);
            if training.accumulate > 1 {
                fill(&layout, &mut gradients, &golden.gradients[step]);
                optimizer.accumulate(&gradients, golden.weights[0]).unwrap();
                (own, weight) = (last - step, golden.weights[1]);
            }
            fill(&layout, &mut gradients, &golden.gradients[own]);
            optimizer.step(&mut adapter, &gradients, weight).unwrap();
            let mut values = Vec::new();
            adapter.read(&mut values).unwrap();
            values
        })
        .collect()
}

fn largest_difference<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[Vec<A>], b: &[Vec<B>]) -> f64 {
    assert_eq!((a.len(), a[0].len()), (b.len(), b[0].len()));
    let pairs = a.iter().flatten().zip(b.iter().flatten());
    pairs.map(|(a, b)| ((*a).into() - (*b).into()).abs()).fold(0.0, f64::max)
}

#[test]
fn kernels_and_graphs_repeat_twenty_steps_of_pytorch() {
    let (runtime, golden) = (toy::runtime(), golden());
    for (name, case) in &golden.cases {
        case.training.validate().unwrap();
        assert_eq!(case.parameters.len(), 20);
        let [host, graph] = [Residence::Host, Residence::Device]
            .map(|residence| steps(&runtime, &golden, &case.training, residence));
        let differences = [
            largest_difference(&host, &case.parameters),
            largest_difference(&graph, &case.parameters),
            largest_difference(&host, &graph),
        ];
        println!("{name}: {differences:?}");
        assert!(differences.iter().all(|difference| *difference < 1e-6), "{name}: {differences:?}");
    }
}

#[test]
fn schedules_are_those_of_transformers() {
    for (name, case) in golden().cases {
        let schedule = Schedule::new(&case.training, 20, 1, 1);
        for (step, wanted) in case.learning_rates.iter().enumerate() {
            let got = schedule.learning_rate(step as u64);
            assert!((got - wanted).abs() < 1e-15, "{name}, step {step}: {got} is not {wanted}");
        }
    }
}

/// Tensors that fill their rows in the joined adapter, and tensors that do not.
#[test]
fn graphs_step_as_kernels_do_whatever_the_sizes() {
    let runtime = toy::runtime();
    let shapes = vec![vec![2, 128], vec![5], vec![130], vec![3, 64, 2], vec![1]];
    let values = layout(&shapes).values();
    let wave = |phase: f32| (0..values).map(|i| (i as f32 * 0.7 + phase).sin() * 0.1).collect::<Vec<f32>>();
    let gradients = (0..5u8).map(|step| wave(f32::from(step))).collect();
    let golden = Golden { shapes, weights: [3.0, 2.0], start: wave(9.0), gradients, cases: BTreeMap::new() };
    let bare = TrainingSpec { learning_rate: 0.05, ..Default::default() };
    let whole = TrainingSpec { accumulate: 2, proximal_mu: 0.1, clip_norm: Some(0.2), ..bare.clone() };
    for training in [bare, whole] {
        let [host, graph] =
            [Residence::Host, Residence::Device].map(|place| steps(&runtime, &golden, &training, place));
        assert!(largest_difference(&host, &graph) < 1e-6, "{training:?}");
    }
}

/// A tensor of several parts and more threads than one, and the norm is still the same number.
#[test]
fn threads_do_not_show_in_a_step() {
    let _library = toy::runtime();
    let layout = layout(&[vec![(1 << 20) + 77], vec![200_000]]);
    let allocator = Allocator::default();
    let values =
        |factor: f32| -> Vec<f32> { (0..layout.values()).map(|i| (i as f32 * factor).sin() * 0.1).collect() };
    let (start, slope) = (values(0.37), values(0.11));
    let mut gradients = tensors(&layout, &allocator).unwrap();
    fill(&layout, &mut gradients, &slope);
    let training =
        TrainingSpec { clip_norm: Some(1.0), proximal_mu: 0.1, accumulate: 2, ..Default::default() };
    let results = [1, 2, 5].map(|threads| {
        let mut adapter = Adapter::new(&layout, &allocator, Residence::Host).unwrap();
        adapter.write(&layout, &start).unwrap();
        let mut optimizer = HostOptimizer::new(&training, values(0.05), None, &layout, threads).unwrap();
        for _ in 0..2 {
            optimizer.begin();
            optimizer.accumulate(&gradients, 3.0);
            optimizer.step(adapter.current_mut(), &gradients, 1.0, 1e-2);
        }
        let mut after = Vec::new();
        adapter.read(&mut after).unwrap();
        after
    });
    assert_ne!(results[0], start);
    assert!(results.iter().all(|after| *after == results[0]));
}
