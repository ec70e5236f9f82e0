//! Encoding and decoding by pipeline, beside a plain copy of the same values in the same run.
#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fedpeft_codec::{Base, Codec, Layout, Seed, TensorSpec, encode, validate, view};

/// Values of the `bias` adapter of a ViT-S with 10 classes, and more than a processor's caches hold.
const SIZES: [usize; 2] = [57_610, 8_000_000];

const PIPELINES: [&str; 12] = [
    "delta",
    "fp16",
    "bf16",
    "int8=nearest",
    "int8",
    "int4",
    "delta,int8",
    "delta,topk=0.1",
    "delta,randk=0.1",
    "delta,zstd",
    "int8,zstd",
    "delta,int8,zstd",
];

fn codec(criterion: &mut Criterion) {
    for values in SIZES {
        let layout =
            Layout::new(vec![TensorSpec { name: "all".into(), shape: vec![values as u64] }]).unwrap();
        let base: Vec<f32> = (0..values).map(|at| (at as f32 * 0.001).sin()).collect();
        // A change of some percent, of every size, as training makes it.
        let change = |at: usize| (at as f32 * 0.37).sin().powi(5) * 0.02;
        let adapter: Vec<f32> = base.iter().enumerate().map(|(at, value)| value + change(at)).collect();
        let bytes = encode(&adapter);
        let mut group = criterion.benchmark_group(values.to_string());
        group
            .measurement_time(Duration::from_secs(1))
            .warm_up_time(Duration::from_millis(300))
            .sample_size(10);
        group.throughput(Throughput::Bytes(layout.bytes()));
        let mut copy = vec![0f32; values];
        group.bench_function("memcpy", |bench| {
            bench.iter(|| black_box(&mut copy).copy_from_slice(black_box(&adapter)));
        });
        group.bench_function("encode/fp32", |bench| bench.iter(|| encode(black_box(&adapter))));
        group.bench_function("validate/fp32", |bench| bench.iter(|| validate(black_box(&bytes), &layout)));
        group.bench_function("view/fp32", |bench| bench.iter(|| view(black_box(&bytes), &layout)));
        let (base, seed) = (Base::new(&base), Seed::new(1, 1, "client"));
        for text in PIPELINES {
            let codec = Codec::new(text.parse().unwrap(), &layout);
            let encoded = codec.encode(&adapter, Some(&base), seed).unwrap();
            group.bench_function(BenchmarkId::new("encode", text), |bench| {
                bench.iter(|| codec.encode(black_box(&adapter), Some(&base), seed).unwrap());
            });
            group.bench_function(BenchmarkId::new("decode", text), |bench| {
                bench.iter(|| codec.decode(black_box(&encoded), Some(&base)).unwrap());
            });
        }
        group.finish();
    }
}

criterion_group!(benches, codec);
criterion_main!(benches);
