//! Clipping and adding one update, and the noise of a release, beside a plain sum of the same update in the same run.
#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

use std::{hint::black_box, io::Cursor, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fedpeft_codec::{Layout, TensorSpec, encode};
use fedpeft_privacy::{NoiseSecret, NoiseStream};
use fedpeft_strategy::{Accumulator, ClippedSum, Weight};

/// Values of the `bias` adapter of a ViT-S with 10 classes, and many more.
const SIZES: [u64; 2] = [57_610, 4_000_000];

fn clipped(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("clipped");
    group.measurement_time(Duration::from_secs(3)).sample_size(10);
    for values in SIZES {
        let layout = Layout::new(vec![TensorSpec { name: "all".into(), shape: vec![values] }]).unwrap();
        let adapter = |seed: f32| encode(&(0..values).map(|at| (at as f32 * seed).sin()).collect::<Vec<_>>());
        let (base, adapter) = (adapter(0.1), adapter(0.001));
        group.throughput(Throughput::Elements(values));
        let mut plain = Accumulator::new(layout.clone()).unwrap();
        let weight = Weight::new(200).unwrap();
        group.bench_function(BenchmarkId::new("plain_add", values), |bench| {
            bench.iter(|| {
                plain.add_spooled(&mut Cursor::new(black_box(&adapter)), weight).unwrap();
            });
        });
        let mut sum = ClippedSum::new(layout, 1.0, 1.0).unwrap();
        group.bench_function(BenchmarkId::new("add", values), |bench| {
            bench.iter(|| {
                sum.add(&mut Cursor::new(black_box(&adapter)), &mut Cursor::new(black_box(&base))).unwrap()
            });
        });
        let mut stream = NoiseStream::new(&NoiseSecret::from([7; 32]), &["bench"]);
        let mut noise = vec![0; values as usize];
        group.bench_function(BenchmarkId::new("noise", values), |bench| {
            bench.iter(|| stream.fill(black_box(&mut noise)));
        });
    }
    group.finish();
}

criterion_group!(benches, clipped);
criterion_main!(benches);
