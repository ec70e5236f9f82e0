//! Dealing examples out to clients.

mod dirichlet;
mod iid;
mod shards;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::draw::{Draw, Purpose};

/// Most clients that examples are dealt out to.
const MAX_CLIENTS: u32 = 1 << 16;
/// Draws after which a partition that leaves some client too little is given up.
const MAX_DRAWS: u32 = 1000;

/// How examples are dealt out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum PartitionSpec {
    /// Uniformly at random.
    Iid {},
    /// Every client has its own mix of classes, drawn from a symmetric Dirichlet distribution.
    ///
    /// With a fixed number of examples per client, each client draws its mix `q ~ Dir(alpha, .., alpha)` and
    /// then one class after another from `q`, without replacement; a class that has run out gives its share
    /// to those that remain (after Hsu, Qi and Brown, arXiv:1909.06335, whose concentration is our `alpha`
    /// times the number of classes). With all examples, each class is split among the clients in proportions
    /// drawn from `Dir(alpha, .., alpha)`; clients that hold their equal share already take no more of it
    /// (Yurochkin et al., arXiv:1905.12022; Li et al., arXiv:2102.02079).
    Dirichlet {
        /// Concentration: the smaller, the fewer classes a client sees.
        alpha: Alpha,
    },
    /// Every client gets so many shards of one class each (after McMahan et al., arXiv:1602.05629; shards
    /// there may straddle two classes, here they do not).
    Shards {
        /// Shards per client: the most classes a client can see.
        per_client: u32,
    },
}

impl Default for PartitionSpec {
    fn default() -> Self {
        Self::Dirichlet { alpha: Alpha(0.5) }
    }
}

/// Concentration of a Dirichlet distribution: finite and above zero.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct Alpha(f64);

impl Alpha {
    /// Checks that `value` is finite and above zero.
    pub fn new(value: f64) -> Result<Self, PartitionError> {
        if value.is_finite() && value > 0.0 { Ok(Self(value)) } else { Err(PartitionError::Alpha(value)) }
    }

    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl TryFrom<f64> for Alpha {
    type Error = PartitionError;

    fn try_from(value: f64) -> Result<Self, PartitionError> {
        Self::new(value)
    }
}

impl From<Alpha> for f64 {
    fn from(alpha: Alpha) -> Self {
        alpha.0
    }
}

impl FromStr for Alpha {
    type Err = PartitionError;

    fn from_str(text: &str) -> Result<Self, PartitionError> {
        // What is no number is reported as NaN: the cure is the same.
        Self::new(text.parse().unwrap_or(f64::NAN))
    }
}

impl fmt::Display for Alpha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why examples cannot be dealt out as asked.
#[derive(Debug, Clone, Error, PartialEq)]
#[non_exhaustive]
pub enum PartitionError {
    /// The concentration is no positive number.
    #[error("alpha must be a finite number above 0, not {0}")]
    Alpha(f64),
    /// No client, or too many.
    #[error("clients must be between 1 and {MAX_CLIENTS}, not {0}")]
    Clients(u32),
    /// There are no classes to deal out by.
    #[error("the labels are no classes, by which {0} deals out: set partition = {{ kind = \"iid\" }}")]
    NoClasses(&'static str),
    /// No shard per client, or too many.
    #[error("shards per client must be between 1 and 65536, not {0}")]
    Shards(u32),
    /// A client would get fewer examples than shards.
    #[error("samples_per_client = {samples} is fewer than the {per_client} shards each client is to get")]
    SmallShards {
        /// Examples per client.
        samples: usize,
        /// Shards per client.
        per_client: u32,
    },
    /// The shards cannot be filled.
    #[error(
        "{classes} classes cannot fill {shards} shards of one class each: \
         change clients, shards per client or samples_per_client"
    )]
    ShardClasses {
        /// Classes with examples.
        classes: usize,
        /// Shards to fill.
        shards: usize,
    },
    /// There are not enough examples.
    #[error(
        "{clients} clients x {samples} examples = {} asked, but only {available} are left for training: \
         lower clients or samples_per_client", *clients as u64 * *samples as u64
    )]
    TooMany {
        /// Clients.
        clients: u32,
        /// Examples each.
        samples: usize,
        /// Examples there are.
        available: usize,
    },
    /// Clients would get fewer examples than the minimum however they are drawn.
    #[error(
        "{available} examples among {clients} clients leave fewer than min_examples = {min_examples} for each: \
         lower clients or min_examples, or raise samples_per_client"
    )]
    TooFew {
        /// Clients.
        clients: u32,
        /// Least examples of a client.
        min_examples: usize,
        /// Examples to deal out.
        available: usize,
    },
    /// No draw gave every client the minimum.
    #[error(
        "none of {MAX_DRAWS} draws gave every one of {clients} clients at least min_examples = {min_examples}: \
         raise alpha, lower clients or min_examples, or set samples_per_client"
    )]
    Unlucky {
        /// Clients.
        clients: u32,
        /// Least examples of a client.
        min_examples: usize,
    },
}

/// Which examples each client holds: positions in the training file, ascending.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Partition(Vec<Vec<u32>>);

impl Partition {
    /// The examples of each client.
    pub fn clients(&self) -> &[Vec<u32>] {
        &self.0
    }

    /// Examples of all clients together.
    pub fn total(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }
}

/// How much is dealt out, to how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deal {
    pub clients: u32,
    /// Examples per client; 0 deals all of them out.
    pub samples_per_client: u32,
    pub min_examples: u32,
    pub seed: u64,
}

impl Deal {
    fn count(&self) -> usize {
        self.clients as usize
    }

    /// Sizes that differ by at most one and add up to `available`, or the size asked for.
    fn sizes(&self, available: usize) -> Vec<usize> {
        match self.samples_per_client as usize {
            0 => equal_parts(available, self.count()),
            samples => vec![samples; self.count()],
        }
    }
}

/// `total` in so many parts that differ by at most one, the larger ones first.
fn equal_parts(total: usize, parts: usize) -> Vec<usize> {
    (0..parts).map(|part| total / parts + usize::from(part < total % parts)).collect()
}

impl PartitionSpec {
    /// Refuses what would pretend to deal out by class where there are none.
    pub(crate) fn check_without_classes(&self) -> Result<(), PartitionError> {
        match self {
            Self::Iid {} => Ok(()),
            Self::Dirichlet { .. } => Err(PartitionError::NoClasses("dirichlet")),
            Self::Shards { .. } => Err(PartitionError::NoClasses("shards")),
        }
    }

    /// Deals out examples of `pool`, positions in `labels` in the order in which they are to be used.
    pub(crate) fn deal(
        &self,
        pool: &[u32],
        labels: &[u32],
        deal: &Deal,
    ) -> Result<Partition, PartitionError> {
        let &Deal { clients, samples_per_client, .. } = deal;
        if clients == 0 || clients > MAX_CLIENTS {
            return Err(PartitionError::Clients(clients));
        }
        let (samples, min_examples) = (samples_per_client as usize, deal.min_examples as usize);
        let asked = samples.saturating_mul(clients as usize);
        if asked > pool.len() {
            return Err(PartitionError::TooMany { clients, samples, available: pool.len() });
        }
        let available = if samples == 0 { pool.len() } else { asked };
        if available / (clients as usize) < min_examples.max(1) {
            return Err(PartitionError::TooFew { clients, min_examples, available });
        }

        let classes = Classes::new(pool, labels);
        let mut draw = Draw::new(deal.seed, Purpose::Partition);
        for _ in 0..MAX_DRAWS {
            let mut dealt = match *self {
                Self::Iid {} => iid::deal(pool, deal, &mut draw),
                Self::Dirichlet { alpha } if samples == 0 => {
                    dirichlet::split_classes(&classes, alpha, deal, &mut draw)
                }
                Self::Dirichlet { alpha } => dirichlet::draw_clients(&classes, alpha, deal, &mut draw),
                Self::Shards { per_client } => shards::deal(&classes, per_client, deal, &mut draw)?,
            };
            if dealt.iter().all(|client| client.len() >= min_examples.max(1)) {
                // Ascending order hides how they were drawn, so that no trainer can come to depend on it.
                dealt.iter_mut().for_each(|client| client.sort_unstable());
                return Ok(Partition(dealt));
            }
        }
        Err(PartitionError::Unlucky { clients, min_examples })
    }
}

/// The pool by class, each class in the order of the pool; classes without examples are left out.
struct Classes(Vec<Vec<u32>>);

impl Classes {
    fn new(pool: &[u32], labels: &[u32]) -> Self {
        let count = labels.iter().max().map_or(0, |last| *last as usize + 1);
        let mut classes = vec![Vec::new(); count];
        for &example in pool {
            if let Some(&label) = labels.get(example as usize) {
                classes[label as usize].push(example);
            }
        }
        classes.retain(|class| !class.is_empty());
        Self(classes)
    }

    /// How many examples each class holds.
    fn counts(&self) -> Vec<usize> {
        self.0.iter().map(Vec::len).collect()
    }

    fn total(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// Takes examples from the front of a class.
    fn stacks(&self) -> Vec<std::slice::Iter<'_, u32>> {
        self.0.iter().map(|class| class.iter()).collect()
    }
}

#[cfg(test)]
mod tests;
