//! Who holds how many examples of which class.

use serde::{Deserialize, Serialize};

use crate::labels::Strata;
use crate::partition::Partition;

/// The class-by-client table of a partition. Examples with several labels count for their first one, those
/// without any for a class behind the others; where there are no classes, all count for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassTable {
    /// Classes; every row has as many counts.
    pub classes: u32,
    /// What they are called; empty where they are numbers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// One row per client.
    pub rows: Vec<ClassRow>,
}

/// What one client holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassRow {
    /// Position of the client.
    pub client: usize,
    /// Examples by class.
    pub counts: Vec<u64>,
}

impl ClassRow {
    /// Examples in all classes.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Classes with at least one example.
    pub fn classes(&self) -> usize {
        self.counts.iter().filter(|count| **count > 0).count()
    }
}

impl ClassTable {
    pub(crate) fn new(partition: &Partition, strata: &Strata, names: &[String]) -> Self {
        let row = |(client, indices): (usize, &Vec<u32>)| {
            let mut counts = vec![0; strata.count as usize];
            for class in indices.iter().filter_map(|index| strata.of.get(*index as usize)) {
                if let Some(count) = counts.get_mut(*class as usize) {
                    *count += 1;
                }
            }
            ClassRow { client, counts }
        };
        let mut names = names.to_vec();
        if !names.is_empty() && names.len() < strata.count as usize {
            names.push("none".to_owned());
        }
        let rows = partition.clients().iter().enumerate().map(row).collect();
        Self { classes: strata.count, names, rows }
    }

    /// Examples by class over all clients.
    pub fn totals(&self) -> Vec<u64> {
        (0..self.classes as usize)
            .map(|class| self.rows.iter().filter_map(|row| row.counts.get(class)).sum())
            .collect()
    }
}
