//! Admission of one update: everything a stranger may have got wrong is checked before the sum changes.

use std::time::Instant;

use fedpeft_bus::{BusError, UpdateDelivery, UploadKey};
use fedpeft_protocol::{
    ClientId, Digest,
    round::{ByteKind, Direction, Outcome, Payload, Transfer, Update},
    subject,
};
use fedpeft_strategy::{SpoolError, Weight};

use crate::{
    drive::Drive,
    round::{Accepted, Answer, Member, RoundState, Updates},
    spool::Adapter,
    stop::Stop,
};

/// No training takes longer than this: a century.
const MAX_SECONDS: f64 = 3.2e9;
/// Longest text of a client that is passed on.
const MAX_REASON: usize = 200;

/// An update that does not reach the sum.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Refusal {
    /// It is the client's answer to its task, and a bad one: nothing better will come.
    Answer(String),
    /// It answers something else; the client's answer is still to come, or has come.
    Stray(String),
}

/// Checks an update of a member of the round and adds it to the sum. Nothing, if it repeats an accepted one.
pub(crate) async fn admit(
    drive: &Drive<'_>,
    round: &mut RoundState,
    member: &Member,
    delivery: UpdateDelivery,
) -> Result<Result<Option<Answer>, Refusal>, Stop> {
    let UpdateDelivery { client, update, measured, .. } = delivery;
    let payload = update.as_ref().ok().and_then(payload_of);
    round.ledger.message(&client, Direction::Up, measured, payload);
    let update = match update {
        Ok(update) => update,
        Err(error) if round.answers.contains_key(&client) => {
            return Ok(Err(Refusal::Stray(error.to_string())));
        }
        Err(error) => return Ok(Err(Refusal::Answer(error.to_string()))),
    };
    if let Err(reason) = answers_task(&update, member, drive, &client) {
        return Ok(Err(Refusal::Stray(reason)));
    }
    if let Some(answer) = round.answers.get(&client) {
        return Ok(repetition(answer, &update));
    }
    for transfer in &update.fetched {
        round.ledger.transfer(&client, *transfer);
    }
    match update.outcome {
        Outcome::Failed { reason } => Ok(Ok(Some(Answer::Failed(one_line(&reason))))),
        Outcome::Evaluated { .. } => {
            Ok(Err(Refusal::Answer("the task was to train, the update is an evaluation".into())))
        }
        Outcome::Trained { examples, loss, seconds, adapter, .. } => {
            if let Err(reason) = plausible(examples, member.examples, loss, seconds) {
                return Ok(Err(Refusal::Answer(reason)));
            }
            let weight = match round.rule().weight(examples, round.open.round - member.round) {
                Ok(weight) => weight,
                Err(error) => return Ok(Err(Refusal::Answer(error.to_string()))),
            };
            let digest = adapter.digest();
            let reported = update.fetched.iter().any(is_adapter_upload);
            let adapter = match fetch(drive, round, (&client, member), adapter, reported).await? {
                Ok(adapter) => adapter,
                Err(reason) => return Ok(Err(Refusal::Answer(reason))),
            };
            if let Err(reason) = add(drive, round, (&client, member), adapter, digest, weight).await? {
                return Ok(Err(Refusal::Answer(reason)));
            }
            let (update, weight) = (update.task, weight.get());
            Ok(Ok(Some(Answer::Accepted(Accepted { update, digest, examples, weight, loss, seconds }))))
        }
    }
}

/// The adapter of an update.
pub(crate) fn payload_of(update: &Update) -> Option<&Payload> {
    match &update.outcome {
        Outcome::Trained { adapter, .. } => Some(adapter),
        Outcome::Evaluated { .. } | Outcome::Failed { .. } => None,
    }
}

fn is_adapter_upload(transfer: &Transfer) -> bool {
    (transfer.direction, transfer.kind) == (Direction::Up, ByteKind::Adapter)
}

/// Whether the update answers the task that this client was given.
fn answers_task(
    update: &Update,
    member: &Member,
    drive: &Drive<'_>,
    client: &ClientId,
) -> Result<(), String> {
    if update.epoch != member.epoch {
        return Err(format!(
            "the update has fencing token {}, the task of round {} was given under {}: it belongs to another attempt",
            update.epoch, member.round, member.epoch
        ));
    }
    let expected = subject::task_id(&drive.record.run, member.round, client, "train", member.epoch);
    if update.task != expected {
        return Err(format!("the update answers task {:?}, not {expected}", one_line(&update.task)));
    }
    Ok(())
}

/// A second answer: the first one stands. One that says the same again is no fault.
fn repetition(answer: &Answer, update: &Update) -> Result<Option<Answer>, Refusal> {
    match (answer, payload_of(update)) {
        (Answer::Accepted(accepted), Some(payload)) if payload.digest() == accepted.digest => Ok(None),
        _ => Err(Refusal::Stray("the client has already answered this round".into())),
    }
}

fn plausible(examples: u64, declared: u64, loss: f64, seconds: f64) -> Result<(), String> {
    if !(1..=declared).contains(&examples) {
        return Err(format!("the update claims {examples} examples, the client declared {declared}"));
    }
    if !loss.is_finite() {
        return Err(format!("the training loss is {loss}: lower the learning rate"));
    }
    if !(0.0..=MAX_SECONDS).contains(&seconds) {
        return Err(format!("the training time is {seconds} seconds"));
    }
    Ok(())
}

/// The adapter, not yet checked against its digest where it came in the message. An upload goes from the object store
/// into a file, and stays in the store until the round is committed.
async fn fetch(
    drive: &Drive<'_>,
    round: &mut RoundState,
    (client, member): (&ClientId, &Member),
    adapter: Payload,
    reported: bool,
) -> Result<Result<Adapter, String>, Stop> {
    let (digest, size) = match adapter {
        Payload::Message { data, .. } => return Ok(Ok(Adapter::Held(data))),
        Payload::Blob { digest, size } => (digest, size),
    };
    let wanted = drive.model.layout.bytes();
    if size != wanted {
        return Ok(Err(format!("the adapter has {size} bytes, this model's have {wanted}")));
    }
    let key = UploadKey { run: &drive.record.run, round: member.round, client };
    let get = async |file| drive.bus.get_upload(key, &digest, size, file).await;
    match drive.spool.fetched(size, get).await? {
        Ok((adapter, measured)) => {
            // The client knows best what its upload took; where it does not say, what we fetched stands for it.
            if !reported {
                let size = measured.total;
                let transfer = Transfer { direction: Direction::Up, kind: ByteKind::Adapter, size };
                round.ledger.transfer(client, transfer);
            }
            Ok(Ok(adapter))
        }
        Err(error @ (BusError::NoBlob { .. } | BusError::BlobTooLarge { .. } | BusError::Corrupt { .. })) => {
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Adds the adapter to the sum, if it is what its digest says, what the layout asks for, and not too far from where
/// it began.
async fn add(
    drive: &Drive<'_>,
    round: &mut RoundState,
    (client, member): (&ClientId, &Member),
    adapter: Adapter,
    digest: Digest,
    weight: Weight,
) -> Result<Result<(), String>, Stop> {
    let spec = &drive.record.spec;
    let (bound, rule) = (spec.max_update_norm, round.rule());
    let base = match bound.is_some() || rule.reads_base() {
        true => drive.global(&member.adapter).await?,
        false => Adapter::none(),
    };
    let (kept, started) = (spec.keep_updates.then(|| adapter.clone()), Instant::now());
    let (spool, name) = (drive.spool.clone(), client.to_string());
    let checked_and_added = move |updates: &mut Updates| -> Result<Result<(), String>, SpoolError> {
        // What was spooled was verified while it was fetched.
        if let Adapter::Held(bytes) = &adapter
            && Digest::of(bytes) != digest
        {
            return Ok(Err(format!("the adapter's digest is {}, not {digest}", Digest::of(bytes))));
        }
        if let Some(norm) = bound {
            let distance = adapter.distance(&base)?;
            // NaN passes here, and is refused by name below.
            if distance > norm {
                return Ok(Err(format!(
                    "the update has an L2 norm of {distance:.6}, max_update_norm is {norm}"
                )));
            }
        }
        match adapter.add_to(&mut updates.fold, &base, weight) {
            Err(SpoolError::Accumulate(error)) => return Ok(Err(error.to_string())),
            added => added?,
        }
        if rule.keeps() {
            let copy = updates.heap.append(&adapter, || spool.growing())?;
            updates.fold.keep(&name, copy, weight);
        }
        Ok(Ok(()))
    };
    let added = round.with_updates(checked_and_added).await?.map_err(|error| drive.broken(error))?;
    round.folding += started.elapsed();
    if let (Ok(()), Some(adapter)) = (&added, kept) {
        drive.store(&adapter).await?;
    }
    Ok(added)
}

/// Text of a stranger as one bounded line.
pub(crate) fn one_line(text: &str) -> String {
    text.chars().take(MAX_REASON).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn implausible_figures_are_refused() {
        assert!(plausible(5, 5, 0.5, 1.0).is_ok());
        for (examples, loss, seconds) in [
            (0, 0.5, 1.0),
            (6, 0.5, 1.0),
            (5, f64::NAN, 1.0),
            (5, f64::INFINITY, 1.0),
            (5, 0.5, -1.0),
            (5, 0.5, f64::NAN),
            (5, 0.5, 1e300),
        ] {
            assert!(plausible(examples, 5, loss, seconds).is_err(), "{examples} {loss} {seconds}");
        }
    }

    #[test]
    fn words_of_strangers_are_one_bounded_line() {
        let line = one_line(&format!("a\r\n\u{1b}[31m{}", "x".repeat(500)));
        assert!(line.starts_with("a   [31m") && line.len() == MAX_REASON);
    }
}
