//! Admission of one update: everything a stranger may have got wrong is checked before the sum changes.

mod sum;

use std::{iter, ops::RangeInclusive, time::Instant};

use fedpeft_bus::{BusError, UpdateDelivery, UploadKey};
use fedpeft_protocol::{
    ClientId, Digest,
    round::{ByteKind, Direction, Outcome, Payload, Personal, Transfer, Update},
    subject,
};
use fedpeft_strategy::{SpoolError, Weight, check_update};

use crate::{
    clients::{Accepted, Answer, More},
    drive::Drive,
    encoding,
    members::Member,
    round::{RoundState, Updates},
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
    let payloads = update.iter().flat_map(Update::payloads);
    round.clients_mut().count(&client, measured.message(Direction::Up, payloads));
    let update = match update {
        Ok(update) => update,
        Err(error) if round.clients.has_answered(&client) => {
            return Ok(Err(Refusal::Stray(error.to_string())));
        }
        Err(error) => return Ok(Err(Refusal::Answer(error.to_string()))),
    };
    if let Err(reason) = answers_task(&update, member, drive, &client) {
        return Ok(Err(Refusal::Stray(reason)));
    }
    if let Some(answer) = round.clients.answer(&client) {
        return Ok(repetition(answer, &update));
    }
    round.clients_mut().count(&client, update.fetched.iter().copied());
    match update.outcome {
        Outcome::Failed { reason } => Ok(Ok(Some(Answer::Failed(one_line(&reason).into())))),
        Outcome::Evaluated { .. } => {
            Ok(Err(Refusal::Answer("the task was to train, the update is an evaluation".into())))
        }
        Outcome::Secured { .. } => {
            Ok(Err(Refusal::Answer("the task was to train, the update is masked".into())))
        }
        Outcome::Aggregated { updates, examples, loss, seconds, sum } => {
            let reported = update.fetched.iter().any(is_adapter_upload);
            let claimed = Accepted {
                digest: sum.digest(),
                examples,
                weight: examples,
                loss,
                seconds,
                stage: None,
                more: More { updates, ..More::default() }.of(),
            };
            let added = sum::admit(drive, round, (&client, member), &claimed, sum, reported).await?;
            Ok(added.map(|()| Some(Answer::Accepted(claimed))).map_err(Refusal::Answer))
        }
        Outcome::Trained { .. } if member.aggregates => {
            Ok(Err(Refusal::Answer("the task was to aggregate, the update is a training".into())))
        }
        Outcome::Trained { examples, loss, seconds, adapter, personal, control, epsilon, .. } => {
            let figures = plausible(examples, member.examples, loss, seconds)
                .and_then(|()| personal.map_or(Ok(()), |own| plausible_own(own, member.examples)))
                .and_then(|()| plausible_epsilon(epsilon));
            if let Err(reason) = figures {
                return Ok(Err(Refusal::Answer(reason)));
            }
            let weight = match round.rule().weight(examples, round.open.round - member.round) {
                Ok(weight) => weight,
                Err(error) => return Ok(Err(Refusal::Answer(error.to_string()))),
            };
            if control.is_some() != drive.record.control.is_some() {
                let word = if control.is_some() { "holds" } else { "lacks" };
                return Ok(Err(Refusal::Answer(format!(
                    "the update {word} a control variate: those of strategy scaffold have one, and no others"
                ))));
            }
            let digest = adapter.digest();
            let reported = update.fetched.iter().any(is_adapter_upload);
            let (layout, mut given) = (&drive.model.layout, Vec::new());
            // Control variates are sent as they are.
            let spec = &drive.record.spec;
            let own = encoding::sizes((spec.uplink, spec.mixes_ranks()), layout);
            let sizes = [own, layout.bytes()..=layout.bytes()];
            for (payload, sizes) in iter::once(adapter).chain(control).zip(sizes) {
                let digest = payload.digest();
                match fetch(drive, round, (&client, member), (payload, "adapter"), sizes, reported).await? {
                    Ok(adapter) => given.push(Given { adapter, digest }),
                    Err(reason) => return Ok(Err(Refusal::Answer(reason))),
                }
            }
            if let Err(reason) = add(drive, round, (&client, member), given, weight).await? {
                return Ok(Err(Refusal::Answer(reason)));
            }
            Ok(Ok(Some(Answer::Accepted(Accepted {
                digest,
                examples,
                weight: weight.get(),
                loss,
                seconds,
                stage: None,
                more: More { personal, updates: 0, epsilon }.of(),
            }))))
        }
    }
}

/// An adapter, or what has its shape, and the digest that it should have.
struct Given {
    adapter: Adapter,
    digest: Digest,
}

impl Given {
    /// Whether it is what its digest says. What was spooled was verified while it was fetched.
    fn verify(&self) -> Result<(), String> {
        let Self { adapter: Adapter::Held(bytes), digest } = self else { return Ok(()) };
        match Digest::of(bytes) {
            found if found != *digest => Err(format!("the adapter's digest is {found}, not {digest}")),
            _ => Ok(()),
        }
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
    let work = if member.aggregates { "aggregate" } else { "train" };
    let expected = subject::task_id(&drive.record.run, member.round, client, work, member.epoch);
    if update.task != expected {
        return Err(format!("the update answers task {:?}, not {expected}", one_line(&update.task)));
    }
    Ok(())
}

/// A second answer: the first one stands. One that says the same again is no fault.
fn repetition(answer: &Answer, update: &Update) -> Result<Option<Answer>, Refusal> {
    match (answer, update.payloads().next()) {
        (Answer::Accepted(accepted), Some(payload)) if payload.digest() == accepted.digest => Ok(None),
        _ => Err(Refusal::Stray("the client has already answered this round".into())),
    }
}

pub(crate) fn plausible_epsilon(epsilon: Option<f64>) -> Result<(), String> {
    match epsilon {
        Some(epsilon) if !(epsilon.is_finite() && epsilon >= 0.0) => {
            Err(format!("the update claims that its training costs an epsilon of {epsilon}"))
        }
        _ => Ok(()),
    }
}

pub(crate) fn plausible(examples: u64, declared: u64, loss: f64, seconds: f64) -> Result<(), String> {
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

/// Whether a client can have come to this with its own model: it holds back no more than it trains on.
pub(crate) fn plausible_own(
    Personal { examples, loss, accuracy }: Personal,
    declared: u64,
) -> Result<(), String> {
    if !(1..=declared).contains(&examples) {
        return Err(format!(
            "the update claims {examples} examples held back, the client declared {declared}"
        ));
    }
    if !loss.is_finite() || !accuracy.is_none_or(|share| (0.0..=1.0).contains(&share)) {
        let accuracy = accuracy.unwrap_or(f64::NAN);
        return Err(format!("the client's own model has loss {loss} and accuracy {accuracy}"));
    }
    Ok(())
}

/// The adapter, or sum, of one of these sizes; not yet checked against its digest where it came in the message. An upload
/// goes from the object store into a file, and stays in the store until the round is committed.
async fn fetch(
    drive: &Drive<'_>,
    round: &mut RoundState,
    (client, member): (&ClientId, &Member),
    (payload, what): (Payload, &str),
    sizes: RangeInclusive<u64>,
    reported: bool,
) -> Result<Result<Adapter, String>, Stop> {
    let (digest, size) = match payload {
        Payload::Message { data, .. } => return Ok(Ok(Adapter::Held(data))),
        Payload::Blob { digest, size } => (digest, size),
    };
    if !sizes.contains(&size) {
        let (least, most) = sizes.into_inner();
        return Ok(Err(match least == most {
            true => format!("the adapter has {size} bytes, this model's have {most}"),
            false => format!("the {what} has {size} bytes, one of this run has {least} to {most}"),
        }));
    }
    let key = UploadKey { run: &drive.record.run, round: member.round, client };
    let get = async |file| drive.bus.get_upload(key, &digest, size, file).await;
    match drive.spool.fetched(size, get).await? {
        Ok((adapter, measured)) => {
            // The client knows best what its upload took; where it does not say, what we fetched stands for it.
            if !reported {
                round.clients_mut().count(client, [measured.transfer(Direction::Up, ByteKind::Adapter)]);
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
/// it began; and with it what its client's control variate changed by, where it has one: both or neither. `given` are
/// these two, or the first alone.
async fn add(
    drive: &Drive<'_>,
    round: &mut RoundState,
    (client, member): (&ClientId, &Member),
    given: Vec<Given>,
    weight: Weight,
) -> Result<Result<(), String>, Stop> {
    let mut given = given.into_iter();
    let (Some(given), control) = (given.next(), given.next()) else { return Ok(Ok(())) };
    let adapter = given.adapter.clone();
    let layout = drive.model.layout.clone();
    let spec = &drive.record.spec;
    let (bound, rule) = (spec.max_update_norm, round.rule());
    let (uplink, ranks) = (spec.uplink, spec.mixes_ranks());
    let decoded = (ranks || !uplink.is_plain()).then(|| drive.target(layout.bytes())).transpose()?;
    let base = match bound.is_some() || rule.reads_base() || uplink.delta() {
        true => drive.global(&member.adapter).await?,
        false => Adapter::none(),
    };
    // It came in a message, is hashed and added.
    let is_light =
        matches!(adapter, Adapter::Held(_)) && decoded.is_none() && control.is_none() && !rule.keeps();
    let (kept, started) = (spec.keep_updates.then(|| adapter.clone()), Instant::now());
    let (spool, name) = (drive.spool.clone(), client.to_string());
    let checked_and_added = move |updates: &mut Updates| -> Result<Result<(), String>, SpoolError> {
        for given in iter::once(&given).chain(&control) {
            if let Err(reason) = given.verify() {
                return Ok(Err(reason));
            }
        }
        if let Some(Given { adapter, .. }) = &control {
            match check_update(&mut *adapter.reader(), &layout) {
                Err(SpoolError::Accumulate(error)) => {
                    return Ok(Err(format!("the control variate cannot be used: {error}")));
                }
                checked => checked?,
            }
        }
        let adapter = match decoded {
            None => adapter,
            Some(target) => match encoding::decoded((uplink, ranks, &layout), &adapter, &base, target)? {
                Ok(adapter) => adapter,
                Err(error) => return Ok(Err(error.to_string())),
            },
        };
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
        if let (Some(Given { adapter, .. }), Some(sum)) = (&control, &mut updates.control) {
            sum.add_spooled(&mut *adapter.reader(), weight)?;
        }
        if rule.keeps() {
            let copy = updates.heap.append(&adapter, || spool.growing())?;
            updates.fold.keep(&name, copy, weight);
        }
        Ok(Ok(()))
    };
    let added = match is_light {
        true => round.with_updates_now(checked_and_added),
        false => round.with_updates(checked_and_added).await?,
    };
    let added = added.map_err(|error| drive.broken(error))?;
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
