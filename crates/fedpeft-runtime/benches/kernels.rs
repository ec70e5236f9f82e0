//! Kernels against a plain copy of as many values: what memory alone costs.

#![allow(missing_docs, reason = "criterion's macros generate undocumented functions")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fedpeft_runtime::kernels::{
    AdamwStep, Normalized, SgdStep, adamw, gelu_grad, layer_norm_grad, reduce_rows, sgd, softmax_grad,
    squared_norm,
};

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 2_654_435_761) % 1_000) as f32 / 250.0 - 2.0).collect()
}

/// One block of a ViT-S at 56 px, batch 32: 544 rows of 1536, 384 and 17 values.
fn kernels(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("kernels");
    for (name, rows, columns) in [("mlp", 544, 1536), ("hidden", 544, 384), ("attention", 3264, 17)] {
        let (a, b, mut out) = (values(rows * columns), values(rows * columns), vec![0.0; rows * columns]);
        group.throughput(Throughput::Elements((rows * columns) as u64));
        group.bench_function(BenchmarkId::new("copy", name), |bench| bench.iter(|| out.copy_from_slice(&a)));
        group.bench_function(BenchmarkId::new("gelu_grad", name), |bench| {
            bench.iter(|| gelu_grad(&a, &b, &mut out));
        });
        let (scale, mean, inv_std_dev) = (values(columns), values(rows), vec![1.0; rows]);
        let forward = Normalized { x: &b, scale: &scale, mean: &mean, inv_std_dev: &inv_std_dev };
        group.bench_function(BenchmarkId::new("layer_norm_grad", name), |bench| {
            bench.iter(|| layer_norm_grad(&a, forward, None, &mut out));
        });
        group.bench_function(BenchmarkId::new("softmax_grad", name), |bench| {
            bench.iter(|| softmax_grad(&a, &b, columns, &mut out));
        });
        let mut sums = vec![0.0; columns];
        group.bench_function(BenchmarkId::new("reduce_rows", name), |bench| {
            bench.iter(|| reduce_rows(&a, &mut sums));
        });
    }
    group.finish();
}

/// `bias` on a ViT-S has some 55,000 values, `full` 22 million.
fn optimizers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("optimizers");
    for count in [55_000, 22_000_000] {
        let (mut p, g, mut m, mut v) = (values(count), values(count), vec![0.0; count], vec![0.0; count]);
        group.throughput(Throughput::Elements(count as u64));
        group.sample_size(10);
        group.bench_function(BenchmarkId::new("copy", count), |bench| bench.iter(|| p.copy_from_slice(&g)));
        let step = SgdStep { learning_rate: 1e-9, momentum: 0.9, weight_decay: 1e-4, nesterov: true };
        group.bench_function(BenchmarkId::new("sgd", count), |bench| {
            bench.iter(|| sgd(step, &mut p, g[..].into(), &mut m));
        });
        group.bench_function(BenchmarkId::new("norm", count), |bench| {
            bench.iter(|| squared_norm(g[..].into(), &p));
        });
        let step = AdamwStep {
            learning_rate: 1e-9,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            bias1: 0.1,
            bias2: 0.001,
        };
        group.bench_function(BenchmarkId::new("adamw", count), |bench| {
            bench.iter(|| adamw(step, &mut p, g[..].into(), &mut m, &mut v));
        });
    }
    group.finish();
}

criterion_group!(benches, kernels, optimizers);
criterion_main!(benches);
