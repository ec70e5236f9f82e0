//! Which faults, when, and against whom: all of it drawn from a seed.

use std::time::Duration;

use fedpeft_testkit::Way;
use rand::{Rng as _, RngExt as _, SeedableRng as _, seq::SliceRandom as _};
use rand_chacha::ChaCha8Rng;

use crate::{
    progress::Step,
    world::{CLIENTS, WORKERS},
};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    KillAggregator,
    KillWorker,
    ReplaceWorker,
    KillRegistry,
    KillExporter,
    KillBroker,
    PauseAggregator,
    PauseWorker,
    PauseBroker,
    CutConnection,
    CutTransfer,
    RefuseConnections,
    SilentNetwork,
    CutEverybody,
    ReplayMessages,
    FullDisk,
    AggregatorClock,
    WorkerClock,
}

impl Kind {
    /// The kind for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::KillAggregator => "aggregator killed",
            Self::KillWorker => "worker killed",
            Self::ReplaceWorker => "worker killed, its cache lost",
            Self::KillRegistry => "registry killed",
            Self::KillExporter => "exporter killed",
            Self::KillBroker => "nats-server killed",
            Self::PauseAggregator => "aggregator paused",
            Self::PauseWorker => "worker paused",
            Self::PauseBroker => "nats-server paused",
            Self::CutConnection => "connection cut",
            Self::CutTransfer => "connection cut in a transfer",
            Self::RefuseConnections => "connections refused for a while",
            Self::SilentNetwork => "network silent for a while",
            Self::CutEverybody => "all connections cut at once",
            Self::ReplayMessages => "messages repeated and reordered",
            Self::FullDisk => "disk of nats-server full",
            Self::AggregatorClock => "clock of an aggregator jumps",
            Self::WorkerClock => "clock of a worker jumps",
        }
    }
}

/// How many of each kind fifty faults have.
const DECK: [(Kind, usize); 18] = [
    (Kind::KillAggregator, 6),
    (Kind::KillWorker, 5),
    (Kind::ReplaceWorker, 2),
    (Kind::KillRegistry, 2),
    (Kind::KillExporter, 2),
    (Kind::KillBroker, 4),
    (Kind::PauseAggregator, 4),
    (Kind::PauseWorker, 2),
    (Kind::PauseBroker, 2),
    (Kind::CutConnection, 3),
    (Kind::CutTransfer, 4),
    (Kind::RefuseConnections, 2),
    (Kind::SilentNetwork, 2),
    (Kind::CutEverybody, 1),
    (Kind::ReplayMessages, 4),
    (Kind::FullDisk, 2),
    (Kind::AggregatorClock, 2),
    (Kind::WorkerClock, 1),
];

/// One of each kind that a short schedule has time for.
pub const SHORT: [Kind; 8] = [
    Kind::KillBroker,
    Kind::ReplayMessages,
    Kind::CutTransfer,
    Kind::KillAggregator,
    Kind::KillExporter,
    Kind::CutEverybody,
    Kind::FullDisk,
    Kind::KillRegistry,
];

/// So many kinds, each at least once where there is room, in the order in which they strike.
pub fn deck(seed: u64, faults: usize) -> Vec<Kind> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut kinds: Vec<Kind> = DECK.map(|(kind, _)| kind).into();
    kinds.shuffle(&mut random);
    while kinds.len() < faults {
        let mut more: Vec<Kind> =
            DECK.iter().flat_map(|(kind, count)| std::iter::repeat_n(*kind, count - 1)).collect();
        more.shuffle(&mut random);
        kinds.extend(more);
    }
    kinds.truncate(faults);
    kinds.shuffle(&mut random);
    kinds
}

/// A fault with all that is to be known of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    Kill(Target),
    Replace(usize),
    KillBroker { down: Duration },
    Pause { target: Target, pause: Duration },
    PauseBroker { pause: Duration },
    Cut(Target),
    CutAfter { target: Target, way: Way, bytes: u64 },
    Refuse { target: Target, pause: Duration },
    Silence { target: Target, pause: Duration },
    CutEverybody,
    Replay { messages: usize, seed: u64 },
    FullDisk { full: Duration },
    Clock { target: Target, seconds: i64 },
}

/// Whom it strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The aggregator that drives the run at that moment.
    Owner,
    /// The other one.
    Standby,
    Worker(usize),
    Registry,
    Exporter,
}

/// A fault and its moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Planned {
    pub kind: Kind,
    pub fault: Fault,
    /// The next time that a round comes to this step ...
    pub at: Step,
    /// ... and so long after it.
    pub after: Duration,
    /// Strikes without waiting until the fault before it is overcome.
    pub overlaps: bool,
}

/// Draws a fault of each of `kinds`.
pub fn draw(seed: u64, kinds: &[Kind]) -> Vec<Planned> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let plan = |(i, kind): (usize, &Kind)| {
        let at = match random.random_range(0..8) {
            0 => Step::Opened,
            1 | 2 => Step::Sent,
            3 | 4 => Step::Accepted(random.random_range(1..CLIENTS)),
            5 => Step::Accepted(CLIENTS),
            6 => Step::Committed,
            _ => Step::Closed,
        };
        let after = Duration::from_millis(random.random_range(0..150));
        let overlaps = i > 0 && random.random_range(0..4) == 0;
        Planned { kind: *kind, fault: fault(*kind, &mut random), at, after, overlaps }
    };
    kinds.iter().enumerate().map(plan).collect()
}

fn fault(kind: Kind, random: &mut ChaCha8Rng) -> Fault {
    let aggregator = |random: &mut ChaCha8Rng| {
        if random.random_range(0..5) == 0 { Target::Standby } else { Target::Owner }
    };
    let worker = |random: &mut ChaCha8Rng| random.random_range(0..WORKERS);
    let anybody = |random: &mut ChaCha8Rng| match random.random_range(0..8) {
        0..3 => Target::Owner,
        3..7 => Target::Worker(worker(random)),
        _ => Target::Exporter,
    };
    let seconds = |random: &mut ChaCha8Rng, from: u64, to: u64| {
        Duration::from_millis(random.random_range(from * 1000..to * 1000))
    };
    match kind {
        Kind::KillAggregator => Fault::Kill(aggregator(random)),
        Kind::KillWorker => Fault::Kill(Target::Worker(worker(random))),
        Kind::ReplaceWorker => Fault::Replace(worker(random)),
        Kind::KillRegistry => Fault::Kill(Target::Registry),
        Kind::KillExporter => Fault::Kill(Target::Exporter),
        Kind::KillBroker => Fault::KillBroker { down: seconds(random, 0, 4) },
        // Longer than a lease, or shorter.
        Kind::PauseAggregator => Fault::Pause { target: aggregator(random), pause: seconds(random, 2, 18) },
        // Longer than a presence, or shorter.
        Kind::PauseWorker => {
            Fault::Pause { target: Target::Worker(worker(random)), pause: seconds(random, 2, 20) }
        }
        Kind::PauseBroker => Fault::PauseBroker { pause: seconds(random, 1, 8) },
        Kind::CutConnection => Fault::Cut(anybody(random)),
        Kind::CutTransfer => {
            let way = if random.random() { Way::Up } else { Way::Down };
            let bytes = random.random_range(1..150_000);
            Fault::CutAfter { target: Target::Worker(worker(random)), way, bytes }
        }
        Kind::RefuseConnections => Fault::Refuse { target: anybody(random), pause: seconds(random, 1, 12) },
        Kind::SilentNetwork => Fault::Silence { target: anybody(random), pause: seconds(random, 2, 12) },
        Kind::CutEverybody => Fault::CutEverybody,
        Kind::ReplayMessages => {
            Fault::Replay { messages: random.random_range(8..40), seed: random.next_u64() }
        }
        Kind::FullDisk => Fault::FullDisk { full: seconds(random, 2, 6) },
        Kind::AggregatorClock => Fault::Clock { target: aggregator(random), seconds: jump(random) },
        Kind::WorkerClock => Fault::Clock { target: Target::Worker(worker(random)), seconds: jump(random) },
    }
}

/// A minute to a day, either way.
fn jump(random: &mut ChaCha8Rng) -> i64 {
    let seconds = random.random_range(60..86_400);
    if random.random() { seconds } else { -seconds }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_schedule() {
        let schedule = |seed| draw(seed, &deck(seed, 50));
        assert_eq!(schedule(3), schedule(3));
        assert_ne!(schedule(3), schedule(4));
        let planned = schedule(3);
        assert_eq!(planned.len(), 50);
        assert!(DECK.iter().all(|(kind, _)| planned.iter().any(|planned| planned.kind == *kind)));
        assert!(planned.iter().any(|planned| planned.at == Step::Opened));
        assert!(planned.iter().any(|planned| planned.at == Step::Committed));
    }
}
