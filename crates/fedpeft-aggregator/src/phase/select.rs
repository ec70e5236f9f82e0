//! Select: samples the cohort of the next round among the present clients and opens the round.
//!
//! | then | because |
//! | --- | --- |
//! | broadcast | the round is open |
//! | complete | no rounds are left |
//! | stays, for ever | too few clients are present; `waiting` events say so |

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use fedpeft_protocol::{
    ClientId, Round,
    event::EventKind,
    presence::{Capabilities, Presence},
    run::{OpenRound, RunSpec, RunStatus, StabilitySpec},
    secure::IdentityKey,
};
use fedpeft_service::now_ms;
use fedpeft_strategy::{
    Rule,
    accumulator::{MAX_UPDATES, MAX_WEIGHT},
    cohort,
};
use fedpeft_trace::Instrument;
use tokio::time::sleep;

use super::Phase;
use crate::{drive::Drive, model, privacy, round::RoundState, secure, stop::Stop, traced};

/// Draws of availability before everybody is taken: a participation that small has no other end.
const DRAWS: u64 = 1000;
/// Expiry of a client announces itself nowhere, so presence is polled.
const POLL: Duration = Duration::from_millis(500);

pub(crate) async fn run(drive: &mut Drive<'_>) -> Result<Phase, Stop> {
    let round = drive.record.round + 1;
    if drive.record.round >= drive.record.spec.rounds {
        return Ok(Phase::Complete);
    }
    // There may be many clients, those of the last round are held while they are told of, and a look at who is there takes
    // as much again.
    let telling = Instant::now();
    drive.events.told().await;
    let telling = telling.elapsed();
    let (present, started) = enough_clients(drive).await?;
    let started = started.checked_sub(telling).unwrap_or(started);
    let span = traced::phase(drive.record, round, "select");
    open(drive, round, present, started).instrument(span).await
}

async fn open(
    drive: &mut Drive<'_>,
    round: Round,
    present: Trainers,
    started: Instant,
) -> Result<Phase, Stop> {
    let cohort = sampled(drive, &present, round);
    let open = Arc::new(OpenRound {
        round,
        epoch: drive.record.epoch,
        examples: cohort.iter().map(|client| present[client].examples).collect(),
        edges: cohort.iter().filter(|client| present[*client].aggregates).cloned().collect(),
        secure: secure::opened(&drive.record.spec, &cohort, &present)?,
        cohort,
        opened_ms: now_ms(),
    });
    // What follows takes as much again.
    drop(present);
    let begins = drive.record.status == RunStatus::Pending;
    drive
        .record
        .write(|record| {
            record.status = RunStatus::Running;
            record.open = Some(open.clone());
        })
        .await?;
    if begins {
        drive.events.emit(model::status_event(drive.record, Some(&drive.model)));
    }
    let mut state = RoundState::new(drive, open, started).await?;
    state.seconds.select = started.elapsed().as_secs_f64();
    Ok(Phase::Broadcast(Box::new(state)))
}

/// The clients that begin in this round. Those carried over from earlier ones go on, and are not asked again.
pub(crate) fn sampled(drive: &Drive<'_>, present: &Trainers, round: Round) -> Vec<ClientId> {
    let (spec, carried) = (&drive.record.spec, &drive.record.carried);
    if let Some(privacy) = &spec.privacy {
        // Of all clients, whether they are available or not: what is accounted for is the sample.
        let drawn = privacy::sampled(drive, privacy, &present.keys().collect::<Vec<_>>(), round);
        let Some(stability) = &spec.stability else { return drawn };
        let seed = stability.seed.unwrap_or(spec.seed);
        let is_available =
            |client: &ClientId| fedpeft_stability::is_available(stability, seed, round, client);
        return drawn.into_iter().filter(is_available).collect();
    }
    let training: BTreeSet<_> = carried.iter().map(|carried| &carried.client).collect();
    let busy = carried.iter().filter(|carried| present.contains_key(&carried.client)).count();
    let free: Vec<&ClientId> = present.keys().filter(|client| !training.contains(client)).collect();
    let wanted = (spec.sampled() as usize).saturating_sub(busy);
    // An edge simulates the faults of its clients, and none of its own.
    let (edges, free): (Vec<_>, Vec<_>) = free.into_iter().partition(|client| present[*client].aggregates);
    let available = [available(spec, free, round), edges].concat();
    cohort::sample(&available, wanted, spec.seed, round).into_iter().cloned().collect()
}

/// Those of `clients` that a simulated instability makes available in this round. Where they are fewer than the
/// quorum, all are drawn anew, as if time had passed.
fn available<'a>(spec: &RunSpec, clients: Vec<&'a ClientId>, round: Round) -> Vec<&'a ClientId> {
    let Some(stability) = &spec.stability else { return clients };
    let needed = clients.len().min(spec.quorum() as usize);
    for attempt in 0..DRAWS {
        let seed = stability.seed.unwrap_or(spec.seed).wrapping_add(attempt);
        let drawn = clients.iter().filter(|client| {
            fedpeft_stability::is_available(
                &StabilitySpec { seed: Some(seed), ..stability.clone() },
                seed,
                round,
                client,
            )
        });
        let drawn: Vec<_> = drawn.copied().collect();
        if drawn.len() >= needed {
            return drawn;
        }
    }
    clients
}

/// What a client that may be sampled says of itself.
pub(crate) struct Trainer {
    /// Examples it declares.
    pub examples: u64,
    /// Whether it is an edge.
    pub aggregates: bool,
    /// By what others know it in secure aggregation, where the run has that.
    pub identity: Option<Box<IdentityKey>>,
}

/// Clients that may be sampled.
pub(crate) type Trainers = BTreeMap<ClientId, Trainer>;

/// Waits until enough clients are present; returns their declared examples, and when the last look at them began.
async fn enough_clients(drive: &Drive<'_>) -> Result<(Trainers, Instant), Stop> {
    let needed = drive.record.spec.min_clients();
    let mut announced = None;
    loop {
        let started = Instant::now();
        let present = trainers(drive).await?;
        let count = u32::try_from(present.len()).unwrap_or(u32::MAX);
        // A cohort of nobody is never enough.
        if count >= needed.max(1) {
            return Ok((present, started));
        }
        if announced != Some(count) {
            announced = Some(count);
            tracing::info!(run = %drive.record.run, present = count, needed, "waiting for clients");
            drive.events.emit(EventKind::Waiting { present: count, needed });
        }
        sleep(POLL).await;
    }
}

/// Present clients that may be sampled.
pub(crate) async fn trainers(drive: &Drive<'_>) -> Result<Trainers, Stop> {
    let (spec, rule) = (&drive.record.spec, drive.rule()?);
    // What is known of each client goes beyond its share of the sum.
    let plain = spec.uplink.is_plain() && spec.downlink.is_plain();
    let merges = rule.merges() && !spec.has_memory() && !spec.is_personal() && plain;
    let trainer = |Presence { capabilities, .. }| {
        let Capabilities { examples, aggregates, identity, .. } = capabilities;
        Trainer { examples, aggregates, identity: identity.filter(|_| rule == Rule::Secure).map(Box::new) }
    };
    let eligible = |presence: Presence| {
        let checked =
            spec.eligibility.check(&presence).and_then(|()| takes(rule, merges, &presence.capabilities));
        match checked {
            Ok(()) => Some(trainer(presence)),
            Err(reason) => {
                tracing::debug!(run = %drive.record.run, client = %presence.client, reason, "not eligible");
                None
            }
        }
    };
    drive.present(eligible).await
}

/// Whether a round of this rule, and of clients whose updates may be merged, can use what a client offers.
fn takes(rule: Rule, merges: bool, capabilities: &Capabilities) -> Result<(), String> {
    let Capabilities { examples, aggregates, .. } = *capabilities;
    if rule == Rule::Secure && capabilities.identity.is_none() {
        return Err("it has no identity for secure aggregation: upgrade its worker".into());
    }
    match aggregates {
        true if !merges => {
            Err("it is an edge, and the run needs every single update, or encodes them".into())
        }
        true => (1..=MAX_UPDATES * MAX_WEIGHT)
            .contains(&examples)
            .then_some(())
            .ok_or_else(|| format!("it is an edge with {examples} examples")),
        false => rule.weight(examples, 0).map(|_| ()).map_err(|error| error.to_string()),
    }
}
