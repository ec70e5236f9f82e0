//! Class mixes from a Dirichlet distribution.

use super::{Alpha, Classes, Deal};
use crate::draw::Draw;

/// Every client draws its own mix of classes, then its examples one by one.
pub(super) fn draw_clients(classes: &Classes, alpha: Alpha, deal: &Deal, draw: &mut Draw) -> Vec<Vec<u32>> {
    let mut stacks = classes.stacks();
    let client = |size: usize| {
        let mut mix = draw.dirichlet(alpha.get(), stacks.len());
        let mut examples = Vec::with_capacity(size);
        while examples.len() < size {
            // A mix whose classes have all run out falls back to what is left of every class.
            let left = || stacks.iter().map(|stack| stack.len() as f64).collect::<Vec<_>>();
            let Some(class) = draw.weighted(&mix).or_else(|| draw.weighted(&left())) else { break };
            match stacks[class].next() {
                Some(&example) => examples.push(example),
                None => mix[class] = 0.0,
            }
        }
        examples
    };
    deal.sizes(classes.total()).into_iter().map(client).collect()
}

/// Every class is split among the clients.
pub(super) fn split_classes(classes: &Classes, alpha: Alpha, deal: &Deal, draw: &mut Draw) -> Vec<Vec<u32>> {
    let equal_share = classes.total().div_ceil(deal.count());
    let mut clients = vec![Vec::new(); deal.count()];
    for class in &classes.0 {
        let drawn = draw.dirichlet(alpha.get(), clients.len());
        let capped: Vec<f64> = drawn
            .iter()
            .zip(&clients)
            .map(|(share, client): (_, &Vec<u32>)| if client.len() < equal_share { *share } else { 0.0 })
            .collect();
        let shares = if capped.iter().sum::<f64>() > 0.0 { capped } else { drawn };
        let total: f64 = shares.iter().sum();

        let mut rest = class.as_slice();
        let (mut sum, mut given) = (0.0, 0);
        let last = shares.iter().rposition(|share| *share > 0.0);
        for (position, (client, share)) in clients.iter_mut().zip(&shares).enumerate() {
            sum += share;
            // The last share takes what rounding leaves, so that no example is lost.
            let until = if Some(position) >= last {
                class.len()
            } else {
                (sum / total * class.len() as f64) as usize
            };
            let (mine, others) = rest.split_at(until.saturating_sub(given).min(rest.len()));
            client.extend_from_slice(mine);
            given += mine.len();
            rest = others;
        }
    }
    clients
}
