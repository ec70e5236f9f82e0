use std::collections::HashSet;

use proptest::prelude::*;

use super::*;
use crate::labels::Strata;
use crate::table::ClassTable;

fn spec_of(kind: u8, alpha: f64, per_client: u32) -> PartitionSpec {
    match kind {
        0 => PartitionSpec::Iid {},
        1 => PartitionSpec::Dirichlet { alpha: Alpha::new(alpha).unwrap() },
        _ => PartitionSpec::Shards { per_client },
    }
}

/// `classes` classes of `each` examples, interleaved; the pool is every example.
fn balanced(classes: u32, each: usize) -> (Vec<u32>, Vec<u32>) {
    let labels: Vec<u32> = (0..classes * each as u32).map(|i| i % classes).collect();
    ((0..labels.len() as u32).collect(), labels)
}

fn deal_of(clients: u32, samples_per_client: u32, seed: u64) -> Deal {
    Deal { clients, samples_per_client, min_examples: 1, seed }
}

fn table(partition: &Partition, labels: &[u32], classes: u32) -> ClassTable {
    ClassTable::new(partition, &Strata { count: classes, of: labels.to_vec() }, &[])
}

proptest! {
    #[test]
    fn every_example_is_dealt_at_most_once_and_counts_are_exact(
        labels in prop::collection::vec(0_u32..7, 1..400),
        kind in 0_u8..3, alpha in 0.01_f64..10.0, per_client in 1_u32..4,
        clients in 1_u32..12, samples in 0_u32..40, skip in 0_u32..5, seed: u64,
    ) {
        let pool: Vec<u32> = (skip.min(labels.len() as u32 - 1)..labels.len() as u32).collect();
        let deal = deal_of(clients, samples, seed);
        let spec = spec_of(kind, alpha, per_client);
        let Ok(partition) = spec.deal(&pool, &labels, &deal) else {
            // IID and Dirichlet refuse only what cannot be had, except for unlucky draws of everything.
            let enough = samples > 0 && clients as usize * samples as usize <= pool.len();
            prop_assert!(kind == 2 || !enough);
            return Ok(());
        };
        prop_assert_eq!(partition.clients().len(), clients as usize);
        let all: Vec<u32> = partition.clients().concat();
        let distinct: HashSet<u32> = all.iter().copied().collect();
        prop_assert_eq!(all.len(), distinct.len());
        prop_assert!(distinct.iter().all(|example| pool.contains(example)));
        if samples == 0 {
            prop_assert_eq!(all.len(), pool.len());
        } else {
            prop_assert!(partition.clients().iter().all(|client| client.len() == samples as usize));
        }
        prop_assert_eq!(table(&partition, &labels, 7).totals().iter().sum::<u64>(), all.len() as u64);
        prop_assert_eq!(&partition, &spec.deal(&pool, &labels, &deal).unwrap());
        if kind == 2 {
            let rows = table(&partition, &labels, 7).rows;
            prop_assert!(rows.iter().all(|row| row.classes() <= per_client as usize), "{:?}", rows);
        }
    }

    #[test]
    fn iid_sizes_differ_by_at_most_one(count in 20_usize..500, clients in 1_u32..20, seed: u64) {
        let labels = vec![0; count];
        let pool: Vec<u32> = (0..count as u32).collect();
        let partition = PartitionSpec::Iid {}.deal(&pool, &labels, &deal_of(clients, 0, seed)).unwrap();
        let sizes: Vec<_> = partition.clients().iter().map(Vec::len).collect();
        prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
    }

    #[test]
    fn a_large_alpha_is_nearly_uniform(seed: u64, samples in prop::sample::select(vec![0_u32, 1000])) {
        let (pool, labels) = balanced(10, 1000);
        let spec = PartitionSpec::Dirichlet { alpha: Alpha::new(1e6).unwrap() };
        let partition = spec.deal(&pool, &labels, &deal_of(5, samples, seed)).unwrap();
        for row in table(&partition, &labels, 10).rows {
            let share = row.total() as f64 / 10.0;
            for count in &row.counts {
                // Six standard deviations of a multinomial count.
                prop_assert!((*count as f64 - share).abs() < 6.0 * share.sqrt(), "{:?}", row);
            }
        }
    }
}

#[test]
fn a_small_alpha_gives_few_classes() {
    let (pool, labels) = balanced(10, 2000);
    let concentration = |alpha| {
        let spec = PartitionSpec::Dirichlet { alpha: Alpha::new(alpha).unwrap() };
        let partition = spec.deal(&pool, &labels, &deal_of(20, 200, 1)).unwrap();
        let rows = table(&partition, &labels, 10).rows;
        rows.iter().map(|row| *row.counts.iter().max().unwrap() as f64 / 200.0).sum::<f64>() / 20.0
    };
    let (tight, loose, even) = (concentration(0.05), concentration(0.5), concentration(100.0));
    assert!(tight > 0.7 && tight > loose && loose > even && even < 0.2, "{tight} {loose} {even}");
}

#[test]
fn partitions_are_pinned() {
    // A change here changes every partition ever published with a seed.
    let (pool, labels) = balanced(4, 8);
    let dealt = |spec: PartitionSpec, samples| {
        spec.deal(&pool, &labels, &deal_of(2, samples, 1)).unwrap().clients().to_vec()
    };
    assert_eq!(dealt(spec_of(0, 1.0, 0), 5), [[4, 19, 26, 27, 28], [8, 9, 10, 12, 29]]);
    assert_eq!(dealt(spec_of(1, 0.5, 0), 5), [[1, 2, 3, 5, 6], [7, 9, 11, 15, 19]]);
    assert_eq!(dealt(spec_of(2, 1.0, 2), 5), [[1, 3, 5, 7, 11], [0, 2, 4, 6, 8]]);
    let all = dealt(spec_of(1, 0.5, 0), 0);
    assert_eq!(all[0], [1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15, 18, 19, 22, 23, 26, 27]);
    assert_eq!(all[1], [0, 4, 8, 12, 16, 17, 20, 21, 24, 25, 28, 29, 30, 31]);
}

#[test]
fn what_cannot_be_dealt_is_refused() {
    let (pool, labels) = balanced(10, 10);
    let refuse = |spec: PartitionSpec, deal: Deal| spec.deal(&pool, &labels, &deal).unwrap_err();
    let (iid, dirichlet) = (spec_of(0, 1.0, 0), spec_of(1, 0.001, 0));
    assert_eq!(refuse(iid, deal_of(0, 1, 0)), PartitionError::Clients(0));
    assert_eq!(refuse(iid, deal_of(1 << 17, 1, 0)), PartitionError::Clients(1 << 17));
    let error = refuse(iid, deal_of(11, 10, 0));
    assert_eq!(error, PartitionError::TooMany { clients: 11, samples: 10, available: 100 });
    assert_eq!(
        error.to_string(),
        "11 clients x 10 examples = 110 asked, but only 100 are left for training: lower clients or samples_per_client"
    );
    let least = |min_examples, deal| Deal { min_examples, ..deal };
    assert!(matches!(refuse(iid, least(11, deal_of(10, 0, 0))), PartitionError::TooFew { .. }));
    assert!(matches!(refuse(iid, least(6, deal_of(10, 5, 0))), PartitionError::TooFew { .. }));
    let unlucky = refuse(dirichlet, least(5, deal_of(20, 0, 0)));
    assert_eq!(unlucky, PartitionError::Unlucky { clients: 20, min_examples: 5 });
    assert_eq!(refuse(spec_of(2, 1.0, 0), deal_of(2, 0, 0)), PartitionError::Shards(0));
    assert!(matches!(refuse(spec_of(2, 1.0, 4), deal_of(2, 3, 0)), PartitionError::SmallShards { .. }));
    assert!(matches!(refuse(spec_of(2, 1.0, 2), deal_of(2, 0, 0)), PartitionError::ShardClasses { .. }));
    assert!(matches!(refuse(spec_of(2, 1.0, 1), deal_of(2, 20, 0)), PartitionError::ShardClasses { .. }));
    for alpha in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(Alpha::new(alpha).is_err());
    }
    assert_eq!(
        "x".parse::<Alpha>().unwrap_err().to_string(),
        "alpha must be a finite number above 0, not NaN"
    );
}

#[test]
fn specifications_read_strictly() {
    let read = toml::from_str::<PartitionSpec>;
    assert_eq!(read("kind = \"iid\"").unwrap(), PartitionSpec::Iid {});
    assert_eq!(read("kind = \"shards\"\nper_client = 2").unwrap(), PartitionSpec::Shards { per_client: 2 });
    assert_eq!(read("kind = \"dirichlet\"\nalpha = 0.5").unwrap(), PartitionSpec::default());
    for bad in [
        "kind = \"iid\"\nalpha = 1.0",
        "kind = \"dirichlet\"\nalpha = 0.0",
        "kind = \"dirichlet\"",
        "kind = \"x\"",
    ] {
        assert!(read(bad).is_err(), "{bad}");
    }
    let error = read("kind = \"dirichlet\"\nalpha = -1.0").unwrap_err();
    assert!(error.to_string().contains("alpha must be a finite number above 0, not -1"), "{error}");
}
