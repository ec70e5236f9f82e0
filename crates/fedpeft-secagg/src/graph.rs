//! Who masks with whom, and who holds whose shares.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::members::Member;

/// How members are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Graph {
    /// Everybody with everybody (Bonawitz et al., CCS 2017).
    Complete,
    /// Each with `degree` others (SecAgg+: Bell et al., CCS 2020): the members sit down around a table in random
    /// order, and each is joined to the `degree / 2` next ones on either side (a Harary graph).
    Sparse {
        /// An even number.
        degree: u32,
    },
}

/// A graph over the members of one cohort.
#[derive(Debug, Clone)]
pub struct Topology {
    /// The table, and where each member sits.
    seats: Vec<Member>,
    seat_of: Vec<u32>,
    /// Neighbours on either side; as many as there are, for the complete graph.
    reach: usize,
}

impl Topology {
    /// Seats a cohort in an order drawn from `seed`: members sorted by the SHA-256 digest of seed and member.
    pub fn new(graph: Graph, cohort: usize, seed: &[u8; 32]) -> Self {
        let mut seats: Vec<Member> = (0..cohort as Member).collect();
        let reach = match graph {
            Graph::Complete => cohort,
            Graph::Sparse { degree } => degree as usize / 2,
        };
        if 2 * reach + 1 < cohort {
            seats.sort_by_cached_key(|member| {
                Sha256::new().chain_update(seed).chain_update(member.to_le_bytes()).finalize()
            });
        }
        let mut seat_of = vec![0; cohort];
        for (seat, member) in seats.iter().enumerate() {
            seat_of[*member as usize] = seat as u32;
        }
        Self { seats, seat_of, reach }
    }

    /// The holders of `member`'s shares, ascending: its neighbours and itself.
    pub fn holders(&self, member: Member) -> Vec<Member> {
        let cohort = self.seats.len();
        if 2 * self.reach + 1 >= cohort {
            return (0..cohort as Member).collect();
        }
        let first = self.seat_of[member as usize] as usize + cohort - self.reach;
        let mut holders: Vec<_> =
            (first..=first + 2 * self.reach).map(|seat| self.seats[seat % cohort]).collect();
        holders.sort_unstable();
        holders
    }

    /// How many holders each member's secrets have.
    pub fn holders_each(&self) -> usize {
        self.seats.len().min(2 * self.reach + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn everybody_has_as_many_neighbours_and_is_theirs(cohort in 1usize..80, half in 1u32..20, seed: [u8; 32]) {
            let topology = Topology::new(Graph::Sparse { degree: 2 * half }, cohort, &seed);
            for member in 0..cohort as Member {
                let holders = topology.holders(member);
                prop_assert_eq!(holders.len(), cohort.min(2 * half as usize + 1));
                prop_assert!(holders.is_sorted_by(|a, b| a < b) && holders.contains(&member));
                prop_assert!(holders.iter().all(|other| topology.holders(*other).contains(&member)));
            }
        }
    }

    #[test]
    fn seeds_make_different_graphs_and_one_seed_the_same() {
        let of = |seed: u8| Topology::new(Graph::Sparse { degree: 6 }, 50, &[seed; 32]).holders(7);
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        // Pinned: both sides must draw the same graph, whatever their versions.
        assert_eq!(of(1), PINNED);
    }
    const PINNED: [Member; 7] = [3, 7, 8, 25, 30, 37, 45];

    #[test]
    fn complete_is_everybody() {
        assert_eq!(Topology::new(Graph::Complete, 4, &[0; 32]).holders(2), [0, 1, 2, 3]);
    }
}
