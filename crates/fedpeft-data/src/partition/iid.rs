//! Uniformly at random.

use super::Deal;
use crate::draw::Draw;

pub(super) fn deal(pool: &[u32], deal: &Deal, draw: &mut Draw) -> Vec<Vec<u32>> {
    let mut examples = pool.to_vec();
    draw.shuffle(&mut examples);
    let mut examples = examples.into_iter();
    let sizes = deal.sizes(pool.len());
    sizes.into_iter().map(|size| examples.by_ref().take(size).collect()).collect()
}
