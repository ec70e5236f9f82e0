//! Who holds how many examples of which class.

use serde::{Deserialize, Serialize};

use crate::partition::Partition;

/// The class-by-client table of a partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassTable {
    /// Classes; every row has as many counts.
    pub classes: u32,
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
    pub(crate) fn new(partition: &Partition, labels: &[u8], classes: u32) -> Self {
        let row = |(client, indices): (usize, &Vec<u32>)| {
            let mut counts = vec![0; classes as usize];
            for label in indices.iter().filter_map(|index| labels.get(*index as usize)) {
                if let Some(count) = counts.get_mut(usize::from(*label)) {
                    *count += 1;
                }
            }
            ClassRow { client, counts }
        };
        Self { classes, rows: partition.clients().iter().enumerate().map(row).collect() }
    }

    /// Examples by class over all clients.
    pub fn totals(&self) -> Vec<u64> {
        (0..self.classes as usize)
            .map(|class| self.rows.iter().filter_map(|row| row.counts.get(class)).sum())
            .collect()
    }
}
