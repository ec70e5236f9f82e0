//! Adapters and pipelines to try.
#![allow(dead_code, reason = "every test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "helpers of tests may unwrap")]

use fedpeft_codec::{Layout, Pipeline, Seed, TensorSpec};
use proptest::{prelude::*, sample::select};

pub fn pipeline(text: &str) -> Pipeline {
    text.parse().unwrap()
}

pub fn seed(number: u64) -> Seed {
    Seed::new(number, 1, "client")
}

/// Tensors `t0`, `t1`, ... of these shapes.
pub fn layout(shapes: &[&[u64]]) -> Layout {
    let specs = shapes.iter().enumerate();
    Layout::new(
        specs.map(|(at, shape)| TensorSpec { name: format!("t{at}"), shape: shape.to_vec() }).collect(),
    )
    .unwrap()
}

/// A pipeline of every kind that has a header.
pub const TEXTS: &[&str] = &[
    "delta",
    "zstd",
    "delta,zstd",
    "fp16",
    "bf16,zstd",
    "int8",
    "int8=channel,zstd",
    "int4=channel+nearest",
    "delta,int4,zstd=1",
    "delta,topk=0.05",
    "delta,topk=0.6,fp16,zstd",
    "delta,topk=0.1+forget,int8=channel,zstd",
    "delta,randk=0.3",
    "delta,randk=0.3+forget,int4",
    "delta,randk=0.1,bf16,zstd",
];

pub fn texts() -> impl Strategy<Value = &'static str> {
    select(TEXTS)
}

/// Any finite value, those close to one another and those of every magnitude.
pub fn finite() -> BoxedStrategy<f32> {
    prop_oneof![
        2 => -1f32..1.0,
        1 => any::<f32>().prop_filter("finite", |value| value.is_finite()),
        1 => select(&[0.0, -0.0, f32::MAX, f32::MIN_POSITIVE, 1e-45][..]),
    ]
    .boxed()
}

/// A layout of some tensors, values, and a base.
pub fn adapter(value: BoxedStrategy<f32>) -> impl Strategy<Value = (Layout, Vec<f32>, Vec<f32>)> {
    let shape = proptest::collection::vec(1u64..8, 0..4);
    proptest::collection::vec(shape, 1..5).prop_flat_map(move |shapes| {
        let shapes: Vec<&[u64]> = shapes.iter().map(Vec::as_slice).collect();
        let layout = layout(&shapes);
        let values = || proptest::collection::vec(value.clone(), layout.values());
        (values(), values()).prop_map({
            let layout = layout.clone();
            move |(values, base)| (layout.clone(), values, base)
        })
    })
}
