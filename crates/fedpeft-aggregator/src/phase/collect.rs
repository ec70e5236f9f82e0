//! Collect: takes updates as they come, folds the good ones at once and refuses the others by name.
//!
//! | then | because |
//! | --- | --- |
//! | commit | every client answered, and the accepted updates reach the quorum |
//! | commit | so at the deadline, without the clients that did not answer |
//! | commit | so when the presence of every client that has not answered has expired |
//! | failed | the quorum was not reached, or cannot be reached any more |

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fedpeft_bus::UpdateDelivery;
use fedpeft_protocol::{ClientId, event::EventKind};
use fedpeft_service::now_ms;
use tokio::time::{self, interval_at, sleep, timeout};

use super::Phase;
use crate::{
    admit::{Refusal, admit},
    drive::Drive,
    round::{Answer, RoundState},
    stop::Stop,
};

/// How often presence is looked up.
const PRESENCE_CHECK: Duration = Duration::from_secs(3);
/// A client is absent once it was missing this often in a row: one look may fall into a gap between heartbeats.
const MISSED_CHECKS: u32 = 2;
/// Updates counted as stored may be purged before they are read; when none has come for so long, there are none.
const SILENCE: Duration = Duration::from_secs(2);

pub(crate) async fn run(drive: &mut Drive<'_>, mut round: Box<RoundState>) -> Result<Phase, Stop> {
    let quorum = drive.record.spec.quorum() as usize;
    let left = round.deadline_ms(&drive.record.spec).saturating_sub(now_ms());
    let deadline = sleep(Duration::from_millis(left));
    tokio::pin!(deadline);
    let mut presence_check = interval_at(time::Instant::now() + PRESENCE_CHECK, PRESENCE_CHECK);
    let mut missed = BTreeMap::new();
    let ended_by = loop {
        let (outstanding, accepted) = (round.outstanding(), round.accepted().count());
        if outstanding.is_empty() {
            break "after all answers";
        }
        if accepted + outstanding.len() < quorum {
            break "with no hope of more";
        }
        tokio::select! {
            biased;
            delivery = drive.updates.next() => take(drive, &mut round, delivery).await?,
            _ = presence_check.tick() => {
                let all_absent = absent(drive, &round, &mut missed).await? == outstanding.len();
                if all_absent && accepted >= quorum {
                    break "after the rest had left";
                }
            }
            () = &mut deadline => break "at its deadline",
        }
    };
    let accepted = round.accepted().count();
    if accepted < quorum {
        return Err(Stop::Failed(format!(
            "round {} had {accepted} of {} updates {ended_by}, the quorum is {quorum}: {}; cure it and resume the run",
            round.open.round,
            round.open.cohort.len(),
            round.shortfall(),
        )));
    }
    let train = round.accepted().map(|accepted| accepted.seconds).fold(0.0, f64::max);
    let waited = round.last_taken.saturating_duration_since(round.sent).as_secs_f64();
    round.seconds.train = train;
    round.seconds.collect = (waited - train).max(0.0);
    Ok(Phase::Commit(round))
}

/// Folds the updates that are stored already.
pub(crate) async fn stored(drive: &mut Drive<'_>, round: &mut RoundState) -> Result<(), Stop> {
    while drive.updates.pending() > 0 {
        match timeout(SILENCE, drive.updates.next()).await {
            Ok(delivery) => take(drive, round, delivery).await?,
            Err(_) => break,
        }
    }
    Ok(())
}

/// Counts the clients that have not answered and are gone.
async fn absent(
    drive: &Drive<'_>,
    round: &RoundState,
    missed: &mut BTreeMap<ClientId, u32>,
) -> Result<usize, Stop> {
    let present = drive.present().await?;
    for client in round.outstanding() {
        let is_present = present.iter().any(|presence| presence.client == client);
        let count = missed.entry(client).or_default();
        *count = if is_present { 0 } else { *count + 1 };
    }
    missed.retain(|client, _| !round.answers.contains_key(client));
    Ok(missed.values().filter(|count| **count >= MISSED_CHECKS).count())
}

/// Takes one update: an answer, a refusal, or a repetition to ignore.
async fn take(drive: &Drive<'_>, round: &mut RoundState, delivery: UpdateDelivery) -> Result<(), Stop> {
    let (number, client) = (delivery.round, delivery.client.clone());
    if number != round.open.round {
        return drive.refuse_closed(number, &client).await;
    }
    let size = delivery.measured.total;
    let answer = match admit(drive, round, delivery).await? {
        Ok(Some(answer)) => answer,
        Ok(None) => return Ok(()),
        Err(Refusal::Stray(reason)) => {
            drive.refuse(number, &client, reason);
            return Ok(());
        }
        Err(Refusal::Answer(reason)) => {
            drive.refuse(number, &client, reason.clone());
            Answer::Rejected(reason)
        }
    };
    if let Answer::Accepted(accepted) = &answer {
        drive.events.emit(EventKind::UpdateAccepted {
            round: number,
            client: client.clone(),
            examples: accepted.examples,
            loss: accepted.loss,
            seconds: accepted.seconds,
            size,
        });
    }
    round.last_taken = Instant::now();
    round.answers.insert(client, answer);
    Ok(())
}
