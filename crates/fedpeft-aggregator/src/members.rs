//! Who is in a round, and what each was asked. A cohort may be large, and the record of the round names it already: it is
//! named a second time only where there are others beside it.

use std::{ops::Deref, sync::Arc};

use fedpeft_protocol::{
    ClientId, Digest, Epoch, Round,
    run::{Carried, OpenRound},
    secure::SecureStage,
};

/// What clients were asked that began together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    /// The round in which they got their tasks: the open one, or, where rounds are buffered, an earlier one.
    pub round: Round,
    /// Fencing token of the tasks.
    pub epoch: Epoch,
    /// The global adapter they began with.
    pub adapter: Digest,
    /// When nobody waits for them any more.
    pub deadline_ms: u64,
    /// Whether they are edges, and answer with sums.
    pub aggregates: bool,
}

/// What a client of the round was asked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Member {
    pub asked: Arc<Asked>,
    /// Examples that it declared: the most its update may weigh.
    pub examples: u64,
}

impl Member {
    /// What its task was, in one word; of secure aggregation, that of a stage.
    pub fn work(&self, stage: Option<SecureStage>) -> &'static str {
        match stage {
            Some(stage) => stage.work(),
            None if self.aggregates => "aggregate",
            None => "train",
        }
    }
}

impl Deref for Member {
    type Target = Asked;

    fn deref(&self) -> &Asked {
        &self.asked
    }
}

/// The clients of a round, sorted by name, each once.
#[derive(Debug, Clone)]
pub(crate) enum Members {
    /// The cohort of a round.
    Cohort { open: Arc<OpenRound>, trainers: Arc<Asked>, edges: Arc<Asked> },
    /// These.
    Listed(Vec<(ClientId, Member)>),
}

impl Members {
    /// The cohort of `open`, which was asked on `adapter` until `deadline_ms`, and those who go on from earlier rounds. Of one
    /// that is in both, the cohort counts.
    pub fn new(open: &Arc<OpenRound>, (adapter, deadline_ms): (Digest, u64), carried: &[Carried]) -> Self {
        let (round, epoch) = (open.round, open.epoch);
        let asked = |aggregates| Arc::new(Asked { round, epoch, adapter, deadline_ms, aggregates });
        let cohort = Self::Cohort { open: open.clone(), trainers: asked(false), edges: asked(true) };
        // Samples come sorted.
        if carried.is_empty() && are_sorted(&open.cohort) && are_sorted(&open.edges) {
            return cohort;
        }
        let sampled = (0..open.cohort.len()).map(|at| (open.cohort[at].clone(), cohort.member(at)));
        let carried = carried.iter().map(|carried| {
            let Carried { client, round, epoch, examples, adapter, deadline_ms } = carried.clone();
            // Sums are for synchronous rounds.
            let asked = Arc::new(Asked { round, epoch, adapter, deadline_ms, aggregates: false });
            (client, Member { asked, examples })
        });
        let mut listed: Vec<_> = sampled.chain(carried).collect();
        listed.sort_by(|(a, _), (b, _)| a.cmp(b));
        listed.dedup_by(|(later, _), (first, _)| later == first);
        Self::Listed(listed)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Cohort { open, .. } => open.cohort.len(),
            Self::Listed(listed) => listed.len(),
        }
    }

    /// The place of a client, if it is one of them.
    pub fn find(&self, client: &ClientId) -> Option<usize> {
        match self {
            Self::Cohort { open, .. } => open.cohort.binary_search(client).ok(),
            Self::Listed(listed) => listed.binary_search_by(|(name, _)| name.cmp(client)).ok(),
        }
    }

    /// The client at a place below [`Self::len`].
    pub fn client(&self, at: usize) -> &ClientId {
        match self {
            Self::Cohort { open, .. } => &open.cohort[at],
            Self::Listed(listed) => &listed[at].0,
        }
    }

    /// What the client at a place below [`Self::len`] was asked.
    pub fn member(&self, at: usize) -> Member {
        match self {
            Self::Cohort { open, trainers, edges } => {
                let is_edge = open.edges.binary_search(&open.cohort[at]).is_ok();
                let asked = if is_edge { edges } else { trainers };
                Member { asked: asked.clone(), examples: open.examples.get(at).copied().unwrap_or(0) }
            }
            Self::Listed(listed) => listed[at].1.clone(),
        }
    }
}

fn are_sorted(clients: &[ClientId]) -> bool {
    clients.is_sorted_by(|a, b| a < b)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> ClientId {
        ClientId::new(name).unwrap()
    }

    fn members(cohort: &[&str], edges: &[&str], carried: &[&str]) -> Members {
        let open = OpenRound {
            round: 3,
            epoch: 7,
            cohort: cohort.iter().map(|name| id(name)).collect(),
            examples: (0..cohort.len() as u64).collect(),
            edges: edges.iter().map(|name| id(name)).collect(),
            opened_ms: 0,
            secure: None,
        };
        let adapter = Digest::of(b"adapter");
        let carried: Vec<_> = carried
            .iter()
            .map(|name| Carried {
                client: id(name),
                round: 1,
                epoch: 2,
                examples: 100,
                adapter,
                deadline_ms: 5,
            })
            .collect();
        Members::new(&Arc::new(open), (adapter, 9), &carried)
    }

    fn told(members: &Members) -> Vec<(&str, u64, Round, bool)> {
        let told = |at| {
            let member = members.member(at);
            (members.client(at).as_str(), member.examples, member.round, member.aggregates)
        };
        (0..members.len()).map(told).collect()
    }

    #[test]
    fn a_cohort_is_named_once() {
        let members = members(&["a", "b", "c"], &["b"], &[]);
        assert!(matches!(members, Members::Cohort { .. }));
        assert_eq!(told(&members), [("a", 0, 3, false), ("b", 1, 3, true), ("c", 2, 3, false)]);
        assert_eq!((members.find(&id("c")), members.find(&id("d"))), (Some(2), None));
    }

    #[test]
    fn others_are_sorted_in() {
        let carried = members(&["b", "d"], &[], &["c", "b", "a"]);
        let told_of = [("a", 100, 1, false), ("b", 0, 3, false), ("c", 100, 1, false), ("d", 1, 3, false)];
        assert_eq!(told(&carried), told_of);
        assert_eq!((carried.find(&id("d")), carried.find(&id("e"))), (Some(3), None));
        let unsorted = members(&["c", "a"], &["c"], &[]);
        assert_eq!(told(&unsorted), [("a", 1, 3, false), ("c", 0, 3, true)]);
    }
}
