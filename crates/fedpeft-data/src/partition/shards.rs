//! Shards of one class each.

use super::{Classes, Deal, PartitionError, equal_parts};
use crate::draw::Draw;

pub(super) fn deal(
    classes: &Classes,
    per_client: u32,
    deal: &Deal,
    draw: &mut Draw,
) -> Result<Vec<Vec<u32>>, PartitionError> {
    if per_client == 0 || per_client > 1 << 16 {
        return Err(PartitionError::Shards(per_client));
    }
    let samples = deal.samples_per_client as usize;
    if samples != 0 && samples < per_client as usize {
        return Err(PartitionError::SmallShards { samples, per_client });
    }
    let shards = deal.count().saturating_mul(per_client as usize);
    let unfillable = PartitionError::ShardClasses { classes: classes.0.len(), shards };
    if shards > classes.total() {
        return Err(unfillable);
    }

    let counts = classes.counts();
    // Sizes of the shards of one client; empty when shards take all there is of their class.
    let sizes = if samples == 0 { Vec::new() } else { equal_parts(samples, per_client as usize) };
    let largest = sizes.first().copied().unwrap_or(1);
    let by_class = allot(&counts, shards, largest).ok_or(unfillable.clone())?;
    if samples == 0 && by_class.contains(&0) {
        return Err(unfillable);
    }

    let mut order: Vec<usize> =
        by_class.iter().enumerate().flat_map(|(class, shards)| std::iter::repeat_n(class, *shards)).collect();
    draw.shuffle(&mut order);

    let mut stacks = classes.stacks();
    let mut parts: Vec<_> = counts
        .iter()
        .zip(&by_class)
        .map(|(count, shards)| equal_parts(*count, *shards).into_iter())
        .collect();
    let client = |shards: &[usize]| {
        let mut examples = Vec::new();
        for (slot, &class) in shards.iter().enumerate() {
            let whole = parts[class].next().unwrap_or(0);
            let size = sizes.get(slot).copied().unwrap_or(whole);
            examples.extend(stacks[class].by_ref().take(size));
        }
        examples
    };
    Ok(order.chunks(per_client as usize).map(client).collect())
}

/// How many shards each class fills: one after another goes to the class whose shards are largest so far
/// (D'Hondt's rule), among those that can still fill one of `size`. `None` when they all run out.
fn allot(counts: &[usize], shards: usize, size: usize) -> Option<Vec<usize>> {
    let mut given = vec![0; counts.len()];
    for _ in 0..shards {
        let next = (0..counts.len()).filter(|&class| (given[class] + 1) * size <= counts[class]).max_by(
            |&a, &b| {
                // counts[a] / (given[a] + 1) against the same of b, without rounding; ties go to the first.
                let (left, right) = (counts[a] * (given[b] + 1), counts[b] * (given[a] + 1));
                left.cmp(&right).then(b.cmp(&a))
            },
        )?;
        given[next] += 1;
    }
    Some(given)
}
