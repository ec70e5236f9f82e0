//! Collect: takes updates as they come, folds the good ones at once and refuses the others by name.
//!
//! | then | because |
//! | --- | --- |
//! | secure | as below, where the run has secure aggregation |
//! | commit | it has as many updates as it wants: the cohort, or the buffer |
//! | commit | every client answered, and the accepted updates reach the quorum |
//! | commit | so from the soft deadline on, and at the hard one, without the clients that did not answer |
//! | commit | so when the presence of every client that has not answered has expired |
//! | failed | the quorum was not reached, or cannot be reached any more |

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use fedpeft_bus::UpdateDelivery;
use fedpeft_protocol::{
    ClientId,
    event::{AcceptedUpdate, EventKind},
};
use fedpeft_service::now_ms;
use fedpeft_trace::{Instrument, span};
use tokio::time::{self, interval_at, sleep, timeout};

use super::{Phase, broadcast, secure};
use crate::{
    admit::{Refusal, admit},
    clients::{Accepted, Answer},
    drive::Drive,
    retention,
    round::RoundState,
    stop::Stop,
};

/// How often presence is looked up.
pub(super) const PRESENCE_CHECK: Duration = Duration::from_secs(3);
/// How often it is made sure that the tasks are still there.
pub(super) const TASK_CHECK: Duration = Duration::from_secs(10);
/// How often in a row that is put off while updates come.
const PUT_OFF: u32 = 5;
/// A client is absent once it was missing this often in a row: one look may fall into a gap between heartbeats.
pub(super) const MISSED_CHECKS: u32 = 2;
/// Updates counted as stored may be purged before they are read; when none has come for so long, there are none.
const SILENCE: Duration = Duration::from_secs(2);

pub(crate) async fn run(drive: &mut Drive<'_>, mut round: Box<RoundState>) -> Result<Phase, Stop> {
    let spec = drive.record.spec.clone();
    let quorum = spec.quorum() as usize;
    let opened = round.open.opened_ms;
    // Deadlines are kept by a clock that does not jump.
    let left = |deadline: u64| sleep(Duration::from_millis(deadline.saturating_sub(now_ms())));
    let hard = left(round.deadline_ms(&spec));
    let soft =
        left(spec.soft_deadline_seconds.map_or(u64::MAX, |s| opened.saturating_add((s * 1000.0) as u64)));
    tokio::pin!(hard, soft);
    let mut is_late = false;
    let mut presence_check = interval_at(time::Instant::now() + PRESENCE_CHECK, PRESENCE_CHECK);
    let mut task_check = interval_at(time::Instant::now() + TASK_CHECK, TASK_CHECK);
    let (mut missed, mut put_off) = (BTreeMap::new(), 0);
    let mut accepted = round.clients.accepted().count();
    let ended_by = loop {
        let outstanding = round.clients.waits_for();
        if round.wants(&spec).is_some_and(|wanted| accepted >= wanted) {
            break "with all the updates it wants";
        }
        if outstanding == 0 {
            break "after all answers";
        }
        if is_late && accepted >= quorum {
            break "at its soft deadline";
        }
        if accepted + outstanding < quorum {
            break "with no hope of more";
        }
        tokio::select! {
            biased;
            delivery = drive.updates.next() => accepted += take(drive, &mut round, delivery).await?,
            _ = presence_check.tick() => {
                // Of ten thousand clients a look takes a while, and while updates come somebody is there.
                if round.is_quiet()
                    && absent(drive, &round, &mut missed).await? == outstanding
                    && accepted >= quorum
                {
                    break "after the rest had left";
                }
            }
            _ = task_check.tick() => {
                let put_it_off = !round.is_quiet() && put_off < PUT_OFF;
                put_off = if put_it_off { put_off + 1 } else { 0 };
                if !put_it_off {
                    broadcast::again(drive, &mut round).await?;
                }
            }
            () = &mut hard => break "at its deadline",
            () = &mut soft, if !is_late => is_late = true,
        }
    };
    tracing::debug!(run = %drive.record.run, round = round.open.round, "round closes {ended_by}");
    let accepted = round.clients.accepted().count();
    if accepted < quorum {
        return Err(Stop::Failed(format!(
            "round {} had {accepted} of {} updates {ended_by}, the quorum is {quorum}: {}; cure it and resume the run",
            round.open.round,
            round.clients.len(),
            round.shortfall(),
        )));
    }
    let train = round.clients.accepted().map(|accepted| accepted.seconds).fold(0.0, f64::max);
    let waited = round.last_taken.saturating_duration_since(round.sent).as_secs_f64();
    round.seconds.train = train;
    round.seconds.collect = (waited - train).max(0.0);
    Ok(if round.secure.is_some() { Phase::Secure(round) } else { Phase::Commit(round) })
}

/// Folds the updates that are stored already, and no more than the last owner could have: a round that is full
/// takes none.
pub(crate) async fn stored(drive: &mut Drive<'_>, round: &mut RoundState) -> Result<(), Stop> {
    let wanted = round.wants(&drive.record.spec);
    let mut accepted = round.clients.accepted().count();
    while drive.updates.pending() > 0
        && (round.has_ended_stages() || wanted.is_none_or(|wanted| accepted < wanted))
    {
        match timeout(SILENCE, drive.updates.next()).await {
            Ok(delivery) => accepted += take(drive, round, delivery).await?,
            Err(_) => break,
        }
    }
    if round.has_ended_stages() {
        secure::complete(round).await?;
    }
    Ok(())
}

/// Counts the clients that have not answered and are gone.
async fn absent(
    drive: &Drive<'_>,
    round: &RoundState,
    missed: &mut BTreeMap<ClientId, u32>,
) -> Result<usize, Stop> {
    let present = drive.present_clients().await?;
    // Of many clients, most are there.
    missed.retain(|client, _| !present.contains_key(client) && !round.clients.has_answered(client));
    for client in round.clients.outstanding().filter(|client| !present.contains_key(*client)) {
        *missed.entry(client.clone()).or_default() += 1;
    }
    Ok(missed.values().filter(|count| **count >= MISSED_CHECKS).count())
}

/// Takes one update, and says in the trace of the round where it came from; returns how many were accepted.
pub(super) async fn take(
    drive: &Drive<'_>,
    round: &mut RoundState,
    delivery: UpdateDelivery,
) -> Result<usize, Stop> {
    let span = span!("update", otel.kind = "consumer", fedpeft.client = %delivery.client);
    delivery.origin.link(&span);
    Ok(usize::from(judge(drive, round, delivery).instrument(span).await?))
}

/// An update is an answer, a refusal, or a repetition to ignore; says whether it was accepted.
async fn judge(drive: &Drive<'_>, round: &mut RoundState, delivery: UpdateDelivery) -> Result<bool, Stop> {
    let (number, client) = (delivery.round, delivery.client.clone());
    let size = delivery.measured.total;
    if delivery.update.as_ref().is_ok_and(|update| drive.evaluations.contains(&update.task)) {
        return Ok(false);
    }
    let Some(member) = round.clients.member(&client).filter(|member| member.round == number) else {
        let reason = if number == round.open.round {
            format!("client {client} is not in the cohort of round {number}")
        } else {
            drive.closed(number)
        };
        if !round.refusals.is_flood(&client) {
            drive.refuse(number, &client, reason);
        }
        if number <= drive.record.round {
            for upload in retention::uploads_of(&delivery) {
                retention::forget_upload(drive, number, &client, &upload).await;
            }
        }
        drive.forget(number, &client).await?;
        return Ok(false);
    };
    let uploads = retention::uploads_of(&delivery);
    if !uploads.is_empty() {
        round.uploads.entry(client.clone()).or_default().extend(uploads);
    }
    let admitted = match round.secure.is_some() {
        true => secure::admit(drive, round, &member, delivery).await?,
        false => admit(drive, round, &member, delivery).await?,
    };
    let answer = match admitted {
        Ok(Some(answer)) => answer,
        Ok(None) => return Ok(false),
        Err(refusal) => {
            let is_flood = round.refusals.is_flood(&client);
            let (reason, ends) = match refusal {
                Refusal::Answer(reason) => (reason, true),
                Refusal::Stray(_) if is_flood => {
                    ("the client sends message after message that answers no task".to_owned(), true)
                }
                Refusal::Stray(reason) => (reason, false),
            };
            let ends = ends && !round.clients.has_answered(&client);
            if !is_flood || ends {
                drive.refuse(number, &client, reason.clone());
            }
            if !ends {
                return Ok(false);
            }
            Answer::Rejected(reason.into())
        }
    };
    if let Answer::Accepted(accepted) = &answer {
        let Accepted { examples, loss, seconds, .. } = *accepted;
        let update = AcceptedUpdate { client: client.clone(), examples, loss, seconds, size };
        drive.events.emit(EventKind::UpdatesAccepted { round: round.open.round, updates: vec![update] });
    }
    round.last_taken = Instant::now();
    let is_accepted = matches!(answer, Answer::Accepted(_));
    round.clients_mut().take(&client, answer);
    Ok(is_accepted)
}
