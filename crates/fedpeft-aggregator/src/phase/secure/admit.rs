//! Admission of one answer: everything a stranger may have got wrong is checked before the server changes.

use bytes::Bytes;
use fedpeft_bus::{BusError, UpdateDelivery, UploadKey};
use fedpeft_protocol::{
    ClientId, Digest,
    round::{Direction, Outcome, Payload, Update},
    secure::{SecureStage, SecureTrained},
    subject,
};
use fedpeft_secagg::{Message, Session, Taken};

use crate::{
    admit::{Refusal, one_line, plausible, plausible_epsilon, plausible_own},
    clients::{Accepted, Answer, More},
    drive::Drive,
    encoding,
    members::Member,
    round::RoundState,
    stop::Stop,
};

/// Checks an answer of a member of the round and folds it. What it returns is the client's answer to its training; nothing,
/// if it belongs to a later stage or repeats an earlier one.
pub(in crate::phase) async fn admit(
    drive: &Drive<'_>,
    round: &mut RoundState,
    member: &Member,
    delivery: UpdateDelivery,
) -> Result<Result<Option<Answer>, Refusal>, Stop> {
    let UpdateDelivery { client, update, measured, .. } = delivery;
    let payloads = update.iter().flat_map(Update::payloads);
    round.clients_mut().count(&client, measured.message(Direction::Up, payloads));
    // What follows may answer the stage after one that an earlier owner ended here.
    super::restore(round).await?;
    let trained = round.clients.has_answered(&client);
    let refuse = |reason: String| match trained {
        true => Refusal::Stray(reason),
        false => Refusal::Answer(reason),
    };
    let update = match update {
        Ok(update) => update,
        Err(error) => return Ok(Err(refuse(error.to_string()))),
    };
    let stage = match stage_of(drive, member, &client, &update) {
        Ok(stage) => stage,
        Err(reason) => return Ok(Err(Refusal::Stray(reason))),
    };
    round.clients_mut().count(&client, update.fetched);
    let (message, figures) = match update.outcome {
        Outcome::Failed { reason } => return Ok(failed(round, &client, stage, &reason)),
        Outcome::Secured { stage: said, message, trained } if said == stage => (message, trained),
        outcome => {
            let word = outcome.name();
            return Ok(Err(refuse(format!("the task was one of secure aggregation, the update is {word}"))));
        }
    };
    if stage == SecureStage::Advertise
        && let Err(reason) = checked(figures, member)
    {
        return Ok(Err(refuse(reason)));
    }
    let digest = message.digest();
    let Some(session) = round.secure.as_ref().map(|secure| secure.session.clone()) else {
        return Ok(Err(refuse("the round is not secure".to_owned())));
    };
    let bytes = match fetched(drive, &client, member, message, stage, &session).await? {
        Ok(bytes) => bytes,
        Err(reason) => return Ok(leaves(round, &client, stage, reason)),
    };
    let (place, name) = (session.member(client.as_str()), crate::secure::stage(stage));
    let folding = std::time::Instant::now();
    let folded = round
        .with_server(move |server| {
            let message = Message::decode(&bytes, &session).map_err(|error| (false, error.to_string()))?;
            if Some(message.from) != place || message.answer.stage() != name {
                return Err((false, "the message is that of another client or stage".to_owned()));
            }
            let late = server.answered(name).contains(message.from) || server.stage() != Some(name);
            server.take(&message).map_err(|error| (late, error.to_string()))
        })
        .await?;
    round.folding += folding.elapsed();
    match folded {
        Ok(Taken::Repeated) => return Ok(Ok(None)),
        Ok(Taken::New) => {}
        // What comes late or again changes nothing.
        Err((true, reason)) => return Ok(Err(Refusal::Stray(reason))),
        Err((false, reason)) => return Ok(leaves(round, &client, stage, reason)),
    }
    if let Some(secure) = &mut round.secure {
        secure.answered.insert(client.clone());
        secure.said.insert(client.clone(), digest);
    }
    let answer = match (stage, figures) {
        (SecureStage::Advertise, Some(figures)) => Some(accepted(digest, figures, member)),
        (SecureStage::Mask, _) => {
            if let Some(Answer::Accepted(accepted)) = round.clients_mut().answer_mut(&client) {
                (accepted.digest, accepted.stage) = (digest, Some(stage));
            }
            None
        }
        _ => None,
    };
    Ok(Ok(answer))
}

/// The stage that an update answers.
fn stage_of(
    drive: &Drive<'_>,
    member: &Member,
    client: &ClientId,
    update: &Update,
) -> Result<SecureStage, String> {
    if update.epoch != member.epoch {
        return Err(format!(
            "the update has fencing token {}, the tasks of round {} were given under {}: it belongs to another attempt",
            update.epoch, member.round, member.epoch
        ));
    }
    let named = |stage: &SecureStage| {
        subject::task_id(&drive.record.run, member.round, client, stage.work(), member.epoch) == update.task
    };
    SecureStage::ALL.into_iter().find(named).ok_or_else(|| {
        format!("the update answers task {:?}, which is none of this round", one_line(&update.task))
    })
}

/// A client that cannot go on.
fn failed(
    round: &mut RoundState,
    client: &ClientId,
    stage: SecureStage,
    reason: &str,
) -> Result<Option<Answer>, Refusal> {
    let reason = one_line(reason);
    if stage == SecureStage::Advertise {
        return match round.clients.has_answered(client) {
            true => Err(Refusal::Stray("the client has already answered this round".into())),
            false => Ok(Some(Answer::Failed(reason.into()))),
        };
    }
    note(round, client, stage, reason);
    Ok(None)
}

/// A client whose answer cannot be used: before training is answered it is out, later it has dropped out.
fn leaves(
    round: &mut RoundState,
    client: &ClientId,
    stage: SecureStage,
    reason: String,
) -> Result<Option<Answer>, Refusal> {
    if stage == SecureStage::Advertise && !round.clients.has_answered(client) {
        return Err(Refusal::Answer(reason));
    }
    note(round, client, stage, reason.clone());
    Err(Refusal::Stray(reason))
}

fn note(round: &mut RoundState, client: &ClientId, stage: SecureStage, reason: String) {
    if let Some(secure) = &mut round.secure
        && secure.stage == Some(stage)
        && secure.asked.contains(client)
        && !secure.answered.contains(client)
    {
        secure.left.entry(client.clone()).or_insert(format!("{reason} (stage {})", stage.word()));
    }
}

fn checked(figures: Option<SecureTrained>, member: &Member) -> Result<(), String> {
    let Some(SecureTrained { loss, seconds, personal, epsilon, .. }) = figures else {
        return Err("the answer does not say how training went".to_owned());
    };
    plausible(member.examples, member.examples, loss, seconds)?;
    personal.map_or(Ok(()), |own| plausible_own(own, member.examples))?;
    plausible_epsilon(epsilon)
}

/// What its weight is, nobody but the client knows: figures are weighted by the examples that it declared.
fn accepted(digest: Digest, figures: SecureTrained, member: &Member) -> Answer {
    let SecureTrained { loss, seconds, personal, epsilon, .. } = figures;
    let examples = member.examples;
    Answer::Accepted(Accepted {
        digest,
        examples,
        weight: 0,
        loss,
        seconds,
        stage: Some(SecureStage::Advertise),
        more: More { personal, updates: 0, epsilon }.of(),
    })
}

/// The bytes of a message: only a masked update is large enough to be uploaded.
async fn fetched(
    drive: &Drive<'_>,
    client: &ClientId,
    member: &Member,
    message: Payload,
    stage: SecureStage,
    session: &Session,
) -> Result<Result<Bytes, String>, Stop> {
    let (digest, size) = match message {
        Payload::Message { data, digest } if Digest::of(&data) == digest => return Ok(Ok(data)),
        Payload::Message { digest, .. } => {
            return Ok(Err(format!("the message does not have the digest it declares, {digest}")));
        }
        Payload::Blob { digest, size } => (digest, size),
    };
    let most = session.largest_message() as u64;
    if stage != SecureStage::Mask || size > most {
        return Ok(Err(format!("an upload of {size} bytes, where a masked update of {most} is the most")));
    }
    let key = UploadKey { run: &drive.record.run, round: member.round, client };
    let get = async |file| drive.bus.get_upload(key, &digest, size, file).await;
    match drive.spool.fetched(size, get).await? {
        Ok((stored, _)) => {
            encoding::bytes(&stored).map(Ok).map_err(|error| drive.spool.unusable(error).into())
        }
        Err(error @ (BusError::NoBlob { .. } | BusError::BlobTooLarge { .. } | BusError::Corrupt { .. })) => {
            Ok(Err(error.to_string()))
        }
        Err(error) => Err(error.into()),
    }
}
