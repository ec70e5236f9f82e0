//! Bytes of single clients, for those who ask for it. A name is a label, and labels are bounded: the clients with
//! most bytes are shown, all others together.

use std::{cmp::Reverse, collections::BTreeMap};

use fedpeft_protocol::{ClientId, round::RoundReport};

/// Clients that are told apart in one run; more are counted together from the start.
const REMEMBERED: usize = 4096;
/// No client is called that: it is no identifier.
pub(crate) const OTHERS: &str = "(other)";

/// Bytes up and down.
type Both = (u64, u64);

/// Bytes of the clients of a run.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    named: BTreeMap<ClientId, Both>,
    others: Both,
}

impl Clients {
    pub fn add(&mut self, report: &RoundReport) {
        for client in &report.clients {
            let is_known = self.named.len() < REMEMBERED || self.named.contains_key(&client.client);
            let sum = match is_known {
                true => self.named.entry(client.client.clone()).or_default(),
                false => &mut self.others,
            };
            *sum = plus(*sum, (client.bytes_up, client.bytes_down));
        }
    }

    /// The `count` clients with most bytes, most first, and all others together.
    pub fn top(&self, count: usize) -> Vec<(&str, Both)> {
        let mut all: Vec<_> = self.named.iter().map(|(client, both)| (client.as_str(), *both)).collect();
        all.sort_by_key(|(name, (up, down))| (Reverse(up.saturating_add(*down)), *name));
        let rest = all.split_off(count.min(all.len()));
        let others = rest.into_iter().map(|(_, both)| both).fold(self.others, plus);
        all.push((OTHERS, others));
        all
    }
}

fn plus((up, down): Both, (more_up, more_down): Both) -> Both {
    (up.saturating_add(more_up), down.saturating_add(more_down))
}
