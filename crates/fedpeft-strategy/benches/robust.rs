//! Robust means of a round's updates, beside the plain weighted mean of the same updates in the same run.
#![allow(clippy::unwrap_used, reason = "a benchmark has nobody to report an error to")]

use std::{hint::black_box, io::Cursor, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use fedpeft_codec::{Layout, TensorSpec, encode};
use fedpeft_strategy::{Accumulator, Gathered, RobustRule, Weight};

const UPDATES: u64 = 50;
/// Values of the `bias` adapter of a ViT-S with 10 classes.
const VALUES: u64 = 57_610;

fn robust(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("robust");
    group.measurement_time(Duration::from_secs(3)).sample_size(20);
    let layout = Layout::new(vec![TensorSpec { name: "all".into(), shape: vec![VALUES] }]).unwrap();
    let weight = Weight::new(200).unwrap();
    let adapter =
        |seed: u64| encode(&(0..VALUES).map(|at| ((at * seed) as f32 * 0.1).sin()).collect::<Vec<_>>());
    let adapters: Vec<_> = (1..=UPDATES).map(adapter).collect();
    group.bench_function("fedavg", |bench| {
        bench.iter(|| {
            let mut sum = Accumulator::new(layout.clone()).unwrap();
            for adapter in &adapters {
                sum.add(black_box(adapter), weight).unwrap();
            }
            sum.mean().unwrap()
        });
    });
    let mut updates: Vec<_> = adapters
        .iter()
        .map(|adapter| Gathered { adapter: Box::new(Cursor::new(adapter.clone())), weight })
        .collect();
    for (name, rule) in [
        ("median", RobustRule::Median),
        ("trimmed_mean", RobustRule::TrimmedMean { trim: 0.1 }),
        ("krum", RobustRule::Krum { byzantine: 10, keep: 1 }),
        ("multi_krum", RobustRule::Krum { byzantine: 10, keep: 30 }),
        ("geometric_median_8", RobustRule::GeometricMedian { iterations: 8, smoothing: 1e-6 }),
    ] {
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let mut each = |chunk: &[f64]| {
                    black_box(chunk);
                    Ok(())
                };
                rule.aggregate(&layout, black_box(&mut updates), &mut each).unwrap();
            });
        });
    }
    group.finish();
}

criterion_group!(benches, robust);
criterion_main!(benches);
