//! All updates of a round side by side, a block of values at a time.

use sha2::{Digest, Sha256};

use super::{CHUNK_VALUES, Gathered};
use crate::accumulator::SpoolError;

/// Most values of one update in a block: what all updates of a common round have in it fits a cache.
const WIDEST: usize = 1 << 14;
/// Most values in a block: 64 MiB.
const BLOCK_VALUES: usize = 1 << 24;

/// Updates that are read side by side.
pub(super) struct Rows<'a> {
    updates: Vec<&'a mut Gathered>,
    values: usize,
    block: Vec<u8>,
}

/// The same values of all updates: one row each.
pub(super) struct Block<'a> {
    values: &'a [[u8; 4]],
    width: usize,
}

impl Block<'_> {
    /// Values of each row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The rows, in the order of the updates.
    pub fn rows(&self) -> impl Iterator<Item = &[[u8; 4]]> + Clone {
        self.values.chunks_exact(self.width)
    }
}

impl<'a> Rows<'a> {
    /// Updates of `values` values in the order they come.
    pub fn new(updates: &'a mut [Gathered], values: usize) -> Self {
        Self { updates: updates.iter_mut().collect(), values, block: Vec::new() }
    }

    /// Updates in the order of their contents, and of their weights where those are the same.
    pub fn by_content(updates: &'a mut [Gathered], values: usize) -> Result<Self, SpoolError> {
        let mut rows = Self::new(updates, values);
        let mut digests = vec![Sha256::new(); rows.count()];
        rows.each_block(|block| {
            for (digest, row) in digests.iter_mut().zip(block.rows()) {
                digest.update(row.as_flattened());
            }
            Ok(())
        })?;
        let digests = digests.into_iter().map(Sha256::finalize);
        let mut sorted: Vec<_> = digests.zip(rows.updates).collect();
        sorted.sort_by(|(left, a), (right, b)| left.cmp(right).then(a.weight.cmp(&b.weight)));
        let updates = sorted.into_iter().map(|(_, update)| update).collect();
        Ok(Self { updates, ..rows })
    }

    /// The updates at these places, which ascend.
    pub fn only(self, kept: &[usize]) -> Self {
        let updates = self.updates.into_iter().enumerate();
        let kept = updates.filter(|(at, _)| kept.binary_search(at).is_ok()).map(|(_, update)| update);
        Self { updates: kept.collect(), ..self }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.updates.len()
    }

    /// The weight of each in all.
    pub fn shares(&self) -> Vec<f64> {
        let total: u64 = self.updates.iter().map(|update| update.weight.get()).sum();
        self.updates.iter().map(|update| update.weight.get() as f64 / total as f64).collect()
    }

    /// Reads all updates from their first value to their last.
    pub fn each_block(
        &mut self,
        mut each: impl FnMut(&Block<'_>) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        // Powers of two, so that blocks fill chunks.
        let count = self.count();
        let widest = WIDEST.min(BLOCK_VALUES / count.next_power_of_two()).min(self.values);
        self.block.resize(count * widest * 4, 0);
        for update in &mut self.updates {
            update.adapter.rewind()?;
        }
        let mut first = 0;
        while first < self.values {
            let width = widest.min(self.values - first);
            let block = &mut self.block[..count * width * 4];
            for (update, row) in self.updates.iter_mut().zip(block.chunks_exact_mut(width * 4)) {
                update.adapter.read_exact(row)?;
            }
            each(&Block { values: block.as_chunks::<4>().0, width })?;
            first += width;
        }
        Ok(())
    }

    /// Gives what `make` makes of every block to `each`, in chunks.
    pub fn write(
        &mut self,
        each: &mut dyn FnMut(&[f64]) -> Result<(), SpoolError>,
        mut make: impl FnMut(&Block<'_>, &mut [f64]),
    ) -> Result<(), SpoolError> {
        let mut chunk = Vec::with_capacity(CHUNK_VALUES.min(self.values));
        self.each_block(|block| {
            let filled = chunk.len();
            chunk.resize(filled + block.width(), 0.0);
            make(block, &mut chunk[filled..]);
            if chunk.len() == CHUNK_VALUES {
                each(&chunk)?;
                chunk.clear();
            }
            Ok(())
        })?;
        if chunk.is_empty() { Ok(()) } else { each(&chunk) }
    }

    /// Gives the sum of the updates, each times its weight, to `each`, in chunks.
    pub fn blend(
        &mut self,
        weights: &[f64],
        each: &mut dyn FnMut(&[f64]) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        self.write(each, |block, sums| pulp::Arch::new().dispatch(|| add_weighted(block, weights, sums)))
    }
}

/// Adds every row times its weight to `sums`.
#[inline(always)]
pub(super) fn add_weighted(block: &Block<'_>, weights: &[f64], sums: &mut [f64]) {
    for (row, weight) in block.rows().zip(weights) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += weight * f64::from(f32::from_le_bytes(*value));
        }
    }
}
