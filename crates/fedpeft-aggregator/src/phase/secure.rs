//! Secure: takes a round whose clients have trained through the stages of secure aggregation, one after the other, so that
//! the sum of their updates comes out and no single one.
//!
//! | then | because |
//! | --- | --- |
//! | commit | all stages have ended, and the masks are off the sum |
//! | failed | too few clients are left in a stage, or shares are false |
//!
//! A stage ends when all who were asked have answered, when those who have not are gone, or at its deadline. Who was in
//! time is written to the record before anybody is asked for the next stage, for a client that is told of two different
//! sets leaves. An owner that takes over folds the same answers under the same decisions ([`admit`](self::admit)), asks
//! the same again, and thus ends with the same sum.

mod admit;
mod ask;
mod collect;

use std::{num::NonZero, sync::Arc, thread};

use fedpeft_protocol::{
    event::EventKind,
    secure::{ClosedStage, SecureStage},
};
use fedpeft_secagg::{Members, ServerError};
use fedpeft_service::now_ms;

pub(super) use admit::admit;

use super::Phase;
use crate::{
    clients::Answer,
    drive::Drive,
    privacy,
    round::{RoundState, Updates},
    secure::Secure,
    stop::Stop,
};

pub(crate) async fn run(drive: &mut Drive<'_>, mut round: Box<RoundState>) -> Result<Phase, Stop> {
    while let Some(stage) = open_stage(&round) {
        // The answers of the first are in: they came with those of training.
        if stage != SecureStage::Advertise {
            ask::all(drive, &mut round).await?;
            collect::run(drive, &mut round).await?;
        }
        close(drive, &mut round, stage).await?;
    }
    unmask(drive, &mut round).await?;
    Ok(Phase::Commit(round))
}

fn open_stage(round: &RoundState) -> Option<SecureStage> {
    round.secure.as_ref().and_then(|secure| secure.stage)
}

/// Decides who was in time, durably.
async fn close(drive: &mut Drive<'_>, round: &mut RoundState, stage: SecureStage) -> Result<(), Stop> {
    let closed = round.with_server(|server| server.close()).await?;
    let members = closed.map_err(|error| failed(round, &error))?.members;
    if stage == SecureStage::Confirm {
        // With the shares that are asked for next, the sum is out.
        privacy::announce(drive, round).await?;
    }
    let at_ms = now_ms();
    let decision = ClosedStage { stage, members: members.as_bytes().to_vec(), at_ms };
    drive
        .record
        .write(|record| {
            let secure = record.open.as_mut().and_then(|open| Arc::make_mut(open).secure.as_mut());
            if let Some(secure) = secure {
                secure.closed.push(decision);
            }
        })
        .await?;
    round.open = drive.record.open.clone().unwrap_or_else(|| round.open.clone());
    let asked = round.secure.as_ref().map_or(0, |secure| secure.asked.len()) as u32;
    end(round, stage, &members, at_ms);
    let clients = members.len() as u32;
    tracing::info!(run = %drive.record.run, round = round.open.round, stage = stage.word(), clients, asked, "stage ended");
    drive.events.emit(EventKind::SecureStageClosed { round: round.open.round, stage, clients, asked });
    Ok(())
}

/// Says of those who were asked and are not among `members` that they have left.
fn end(round: &mut RoundState, stage: SecureStage, members: &Members, at_ms: u64) {
    let Some(secure) = &mut round.secure else { return };
    let stay = secure.clients(members);
    for client in secure.asked.iter().filter(|client| !stay.contains(*client)) {
        let reason = || format!("it did not answer in stage {} of secure aggregation", stage.word());
        secure.left.entry(client.clone()).or_insert_with(reason);
    }
    secure.end(members, at_ms);
    if stage == SecureStage::Mask {
        // From here on it is settled whose updates are in the sum.
        let clients = Arc::make_mut(&mut round.clients);
        let out: Vec<_> = clients.accepted_by().map(|(client, ..)| client.clone()).collect();
        for client in out.into_iter().filter(|client| !stay.contains(client)) {
            if let Some(answer) = clients.answer_mut(&client) {
                let reason = secure.left.get(&client).map_or("it left the round", String::as_str);
                *answer = Answer::Failed(reason.into());
            }
        }
    }
}

/// Ends stages as they were ended before, as far as their answers have been folded.
async fn restore(round: &mut RoundState) -> Result<(), Stop> {
    loop {
        let decided = round.open.secure.as_ref().map_or(&[][..], |secure| &secure.closed);
        let Some(decision) = decided.get(round.secure.as_ref().map_or(0, Secure::ended)).cloned() else {
            return Ok(());
        };
        let stage = crate::secure::stage(decision.stage);
        let bits = decision.members.clone();
        let restored = round
            .with_server(move |server| {
                let size = server.asked(fedpeft_secagg::Stage::Advertise).as_bytes().len() * 8;
                let set = (0..size as u32).filter(|at| bits[*at as usize / 8] & (1 << (at % 8)) != 0);
                let members = Members::of(size, set);
                match members.within(&server.answered(stage)) {
                    false => Ok(None),
                    true => {
                        let closed = fedpeft_secagg::Closed { stage, members: members.clone() };
                        server.restore(&closed).map(|()| Some(members))
                    }
                }
            })
            .await?;
        let Some(members) = restored.map_err(|error| failed(round, &error))? else { return Ok(()) };
        end(round, decision.stage, &members, decision.at_ms);
    }
}

/// Makes sure that all decisions were restored, once all that is stored has been folded.
pub(super) async fn complete(round: &mut RoundState) -> Result<(), Stop> {
    restore(round).await?;
    let decided = round.open.secure.as_ref().map_or(0, |secure| secure.closed.len());
    match round.secure.as_ref().map_or(0, Secure::ended) {
        ended if ended == decided => Ok(()),
        ended => Err(Stop::Failed(format!(
            "round {} cannot go on: answers of stage {} are not stored any more; resume the run to begin it anew",
            round.open.round,
            SecureStage::ALL.get(ended).map_or("none", |stage| stage.word()),
        ))),
    }
}

/// Takes the masks off the sum: the mean of the updates is that of the round.
async fn unmask(drive: &Drive<'_>, round: &mut RoundState) -> Result<(), Stop> {
    let threads = thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
    let unmasked = round
        .with_updates(move |Updates { fold, server, .. }| {
            let Some(server) = server else { return Ok(Ok(0)) };
            let sum = match server.sum(threads) {
                Ok(sum) => sum,
                Err(error) => return Err(error),
            };
            Ok(fold.set_mean(sum.mean()).map(|()| sum.weight()))
        })
        .await?;
    let weight = unmasked.map_err(|error| failed(round, &error))?;
    let weight = weight.map_err(|error| Stop::Failed(error.to_string()))?;
    if weight == 0 {
        return Err(Stop::Failed(format!(
            "round {}: the weights of the masked updates come to nothing: a client deceives; resume the run",
            round.open.round
        )));
    }
    if let Some(secure) = &mut round.secure {
        secure.weight = weight;
    }
    tracing::info!(run = %drive.record.run, round = round.open.round, weight, "masks are off the sum");
    Ok(())
}

fn failed(round: &RoundState, error: &ServerError) -> Stop {
    let left = round.secure.iter().flat_map(|secure| &secure.left);
    let left: Vec<_> = left.map(|(client, reason)| format!("{client}: {reason}")).collect();
    let left = if left.is_empty() { String::new() } else { format!(" ({})", left.join("; ")) };
    Stop::Failed(format!(
        "round {} cannot go on: {error}{left}; cure it and resume the run",
        round.open.round
    ))
}
