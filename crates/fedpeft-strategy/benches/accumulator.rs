//! Folding one update into the sum, and dividing it, beside a plain copy of the same bytes in the same run.
#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fedpeft_codec::{Layout, TensorSpec, encode};
use fedpeft_strategy::{Accumulator, BATCH, Encoded, Gathering, Weight};

/// Values of the `bias` adapter of a ViT-S with 10 classes, and of the whole ViT-S.
const SIZES: [u64; 2] = [57_610, 22_000_000];

/// Rounds of as many updates as are added at once that a sum takes, some less than it could.
const FULL: usize = 16_000;

/// Bytes from which adapters wait for each other.
const LARGE: usize = 4 << 20;

fn accumulator(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("accumulator");
    group.measurement_time(Duration::from_secs(3)).sample_size(20);
    for values in SIZES {
        let layout = Layout::new(vec![TensorSpec { name: "all".into(), shape: vec![values] }]).unwrap();
        let adapter = encode(&(0..values).map(|at| (at as f32 * 0.001).sin()).collect::<Vec<_>>());
        let weight = Weight::new(200).unwrap();
        group.throughput(Throughput::Bytes(layout.bytes()));
        let mut copy = vec![0u8; adapter.len()];
        group.bench_function(BenchmarkId::new("memcpy", values), |bench| {
            bench.iter(|| black_box(&mut copy).copy_from_slice(black_box(&adapter)));
        });
        let empty = Accumulator::new(layout.clone()).unwrap();
        let mut sum = empty.clone();
        group.bench_function(BenchmarkId::new("add", values), |bench| {
            bench.iter(|| {
                if sum.updates() == fedpeft_strategy::accumulator::MAX_UPDATES {
                    sum = empty.clone();
                }
                sum.add(black_box(&adapter), weight).unwrap();
            });
        });
        // As the aggregator adds them, if they are large; each lies in memory of its own.
        let adapters = [(); BATCH].map(|()| Bytes::copy_from_slice(&adapter));
        if adapter.len() >= LARGE {
            group.bench_function(BenchmarkId::new("add, four at once", values), |bench| {
                bench.iter_custom(|times| {
                    let mut took = Duration::ZERO;
                    for rounds in (0..times).step_by(FULL).map(|done| (times - done).min(FULL as u64)) {
                        let mut sum = Gathering::new(layout.clone()).unwrap();
                        let mut add =
                            |adapter: &Bytes| sum.add(Encoded::Held(adapter.clone()), weight).unwrap();
                        // The first pass over fresh memory is that of the system.
                        adapters.iter().for_each(&mut add);
                        let started = Instant::now();
                        for _ in 0..rounds {
                            adapters.iter().for_each(&mut add);
                        }
                        took += started.elapsed();
                    }
                    took / BATCH as u32
                });
            });
        }
        group.bench_function(BenchmarkId::new("mean", values), |bench| {
            bench.iter(|| black_box(&sum).mean().unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, accumulator);
criterion_main!(benches);
