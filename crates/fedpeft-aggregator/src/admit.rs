//! Admission of one update: everything a stranger may have got wrong is checked before the sum changes.

use std::time::Instant;

use bytes::Bytes;
use fedpeft_bus::{BusError, UpdateDelivery};
use fedpeft_protocol::{
    ClientId, Digest,
    round::{ByteKind, Direction, Outcome, Payload, Transfer, Update},
    subject,
};

use crate::{
    drive::Drive,
    round::{Accepted, Answer, RoundState},
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

/// Checks an update of the open round and adds it to the sum. Nothing, if it repeats an accepted one.
pub(crate) async fn admit(
    drive: &Drive<'_>,
    round: &mut RoundState,
    delivery: UpdateDelivery,
) -> Result<Result<Option<Answer>, Refusal>, Stop> {
    let UpdateDelivery { client, update, measured, .. } = delivery;
    let Some(declared) = round.declared(&client) else {
        let reason = format!("client {client} is not in the cohort of round {}", round.open.round);
        return Ok(Err(Refusal::Stray(reason)));
    };
    let payload = update.as_ref().ok().and_then(payload_of);
    round.ledger.message(&client, Direction::Up, measured, payload);
    let update = match update {
        Ok(update) => update,
        Err(error) if round.answers.contains_key(&client) => {
            return Ok(Err(Refusal::Stray(error.to_string())));
        }
        Err(error) => return Ok(Err(Refusal::Answer(error.to_string()))),
    };
    if let Err(reason) = answers_task(&update, round, drive, &client) {
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
            if let Err(reason) = plausible(examples, declared, loss, seconds) {
                return Ok(Err(Refusal::Answer(reason)));
            }
            let blob = matches!(adapter, Payload::Blob { .. });
            let digest = adapter.digest();
            let accepted = Accepted { update: update.task, digest, examples, loss, seconds, blob };
            let reported = update.fetched.iter().any(is_adapter_upload);
            let bytes = match fetch(drive, round, &client, adapter, reported).await? {
                Ok(bytes) => bytes,
                Err(reason) => return Ok(Err(Refusal::Answer(reason))),
            };
            let added = add(drive, round, bytes, &accepted).await?;
            Ok(added.map(|()| Some(Answer::Accepted(accepted))).map_err(Refusal::Answer))
        }
    }
}

fn payload_of(update: &Update) -> Option<&Payload> {
    match &update.outcome {
        Outcome::Trained { adapter, .. } => Some(adapter),
        Outcome::Evaluated { .. } | Outcome::Failed { .. } => None,
    }
}

fn is_adapter_upload(transfer: &Transfer) -> bool {
    (transfer.direction, transfer.kind) == (Direction::Up, ByteKind::Adapter)
}

/// Whether the update answers the task that this round gave this client.
fn answers_task(
    update: &Update,
    round: &RoundState,
    drive: &Drive<'_>,
    client: &ClientId,
) -> Result<(), String> {
    let open = &round.open;
    if update.epoch != open.epoch {
        return Err(format!(
            "the update has fencing token {}, round {} was opened under {}: it belongs to another attempt",
            update.epoch, open.round, open.epoch
        ));
    }
    let expected = subject::task_id(&drive.record.run, open.round, client, "train", open.epoch);
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

/// The adapter's bytes, not yet checked against their digest where they came in the message.
async fn fetch(
    drive: &Drive<'_>,
    round: &mut RoundState,
    client: &ClientId,
    adapter: Payload,
    reported: bool,
) -> Result<Result<Bytes, String>, Stop> {
    let digest = match adapter {
        Payload::Message { data, .. } => return Ok(Ok(data)),
        Payload::Blob { digest, .. } => digest,
    };
    match drive.bus.get_blob(&digest, drive.model.layout.bytes()).await {
        Ok((bytes, measured)) => {
            // The client knows best what its upload took; where it does not say, what we fetched stands for it.
            if !reported {
                let size = measured.total;
                let transfer = Transfer { direction: Direction::Up, kind: ByteKind::Adapter, size };
                round.ledger.transfer(client, transfer);
            }
            Ok(Ok(bytes))
        }
        Err(error @ (BusError::NoBlob { .. } | BusError::BlobTooLarge { .. } | BusError::Corrupt { .. })) => {
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}

/// Adds the adapter to the sum, if it is what its digest says and what the layout asks for.
async fn add(
    drive: &Drive<'_>,
    round: &mut RoundState,
    bytes: Bytes,
    accepted: &Accepted,
) -> Result<Result<(), String>, Stop> {
    let weight = match drive.strategy.weight(accepted.examples) {
        Ok(weight) => weight,
        Err(error) => return Ok(Err(error.to_string())),
    };
    let (declared, in_message, started) = (accepted.digest, !accepted.blob, Instant::now());
    let added = round
        .with_sum(move |sum| {
            // Blobs were verified while they were fetched.
            if in_message && Digest::of(&bytes) != declared {
                return Err(format!("the adapter's digest is {}, not {declared}", Digest::of(&bytes)));
            }
            sum.add(&bytes, weight).map_err(|error| error.to_string())
        })
        .await?;
    round.folding += started.elapsed();
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
