//! Averaging low-rank updates of queries and values, beside the plain mean of the same adapter in the same run.
#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

use std::{hint::black_box, io::Cursor, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use fedpeft_codec::{Layout, TensorSpec, encode};
use fedpeft_strategy::{
    Accumulator, Weight,
    lora::{Pair, ProductMean},
};

const RANK: u64 = 8;
const LAYERS: u64 = 24;
const CLIENTS: u32 = 8;

/// Features of ViT-S and ViT-B.
const FEATURES: [u64; 2] = [384, 768];

fn layout(features: u64) -> Layout {
    let factors = (0..LAYERS).flat_map(|layer| {
        let spec = |role: &str, shape: [u64; 2]| TensorSpec {
            name: format!("{layer}.lora_{role}.weight"),
            shape: shape.to_vec(),
        };
        [spec("A", [RANK, features]), spec("B", [features, RANK])]
    });
    Layout::new(factors.collect()).unwrap()
}

/// Something in common, and something of each client's own.
fn adapter(layout: &Layout, client: u32) -> bytes::Bytes {
    let mut random = fastrand::Rng::with_seed(u64::from(client) + 1);
    let mut common = fastrand::Rng::with_seed(0);
    encode(&(0..layout.values()).map(|_| common.f32() - 0.5 + 0.3 * (random.f32() - 0.5)).collect::<Vec<_>>())
}

fn lora(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("lora");
    group.measurement_time(Duration::from_secs(3)).sample_size(10);
    for features in FEATURES {
        let layout = layout(features);
        let adapters: Vec<_> = (0..CLIENTS).map(|client| adapter(&layout, client)).collect();
        let weight = Weight::new(200).unwrap();
        let empty = Accumulator::new(layout.clone()).unwrap();
        let mut plain = empty.clone();
        group.bench_function(BenchmarkId::new("fedavg_add", features), |bench| {
            bench.iter(|| {
                if plain.updates() == fedpeft_strategy::accumulator::MAX_UPDATES {
                    plain = empty.clone();
                }
                plain.add(black_box(&adapters[0]), weight).unwrap();
            });
        });
        let mut sum = ProductMean::new(layout.clone(), Pair::all(&layout).unwrap()).unwrap();
        for adapter in &adapters {
            sum.add(&mut Cursor::new(adapter), weight).unwrap();
        }
        group.bench_function(BenchmarkId::new("each_mean", features), |bench| {
            bench.iter(|| {
                let mut each = |chunk: &[f64]| {
                    black_box(chunk);
                    Ok(())
                };
                sum.each_mean(&mut each).unwrap()
            });
        });
        group.bench_function(BenchmarkId::new("add", features), |bench| {
            bench.iter(|| sum.add(&mut Cursor::new(black_box(&adapters[0])), weight).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, lora);
criterion_main!(benches);
