//! Which update of each client was the last that counts: what clients that keep something between rounds go on from.

use std::collections::BTreeMap;

use fedpeft_protocol::{
    ClientId, Digest,
    round::{ClientOutcome, ClientReport, RoundReport},
};

/// The last update that counts, of each client that has one. 100 bytes per client of the run, or so.
#[derive(Debug, Default)]
pub(crate) struct Counted(BTreeMap<ClientId, Digest>);

impl Counted {
    /// Of these committed rounds.
    pub fn of(mut reports: Vec<RoundReport>) -> Self {
        let mut counted = Self::default();
        reports.sort_by_key(|report| report.round);
        reports.iter().flat_map(|report| &report.clients).for_each(|client| counted.add(client));
        counted
    }

    /// Another round was committed, in which this became of a client.
    pub fn add(&mut self, client: &ClientReport) {
        if let ClientOutcome::Accepted { digest, .. } = client.outcome {
            self.0.insert(client.client.clone(), digest);
        }
    }

    /// The last update of `client` that counts.
    pub fn last(&self, client: &ClientId) -> Option<Digest> {
        self.0.get(client).copied()
    }
}
