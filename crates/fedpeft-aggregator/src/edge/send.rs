//! Sending the answer to upstream, as often as it takes: the same bytes each time.

use std::sync::Arc;

use fedpeft_bus::UploadKey;
use fedpeft_protocol::{
    Digest, RunId,
    round::{ByteKind, Direction, Outcome, Payload, Task, Transfer, Update},
    run::UpstreamState,
};

use super::{Edge, close};
use crate::{model::ENVELOPE, phase::commit::TAG, record::OwnedRecord, spool::Adapter, stop::Stop};

/// Says that the edge does not do a task. Nothing of it is kept: asked again, it says the same.
pub(super) async fn refusal(edge: &Edge, task: &Task, reason: String) -> Result<(), Stop> {
    // Other processes of this edge say it as well.
    if edge.upstream.is_answered(task, &edge.client).await? {
        return Ok(());
    }
    tracing::warn!(run = %task.run, round = task.round, reason, "task refused");
    publish(edge, task, &close::answer(task, Vec::new(), Outcome::Failed { reason })).await
}

/// Sends what the record says is the answer, unless upstream has it.
pub(super) async fn answer(edge: &Edge, record: &mut OwnedRecord, task: &Task) -> Result<(), Stop> {
    let Some(UpstreamState::Answered { update, kept }) = super::begin::state(record).cloned() else {
        return Ok(());
    };
    if !edge.upstream.is_answered(task, &edge.client).await? {
        let mut update = *update;
        if let (Outcome::Aggregated { sum, .. }, Some(kept)) = (&mut update.outcome, &kept) {
            let sent = fill(edge, task, sum, kept).await?;
            update.fetched.extend(sent);
        }
        publish(edge, task, &update).await?;
    }
    record
        .write(|record| {
            if let Some(upstream) = &mut record.upstream {
                upstream.state = UpstreamState::Sent;
            }
        })
        .await?;
    if let Some(kept) = &kept {
        forget(edge, &task.run, kept).await;
    }
    Ok(())
}

/// Forgets a sum. What cannot be forgotten costs space and nothing else.
pub(super) async fn forget(edge: &Edge, run: &RunId, kept: &Digest) {
    if let Err(error) = edge.shop.bus.delete_blob(kept).await {
        tracing::warn!(%run, %error, "sum that was sent not deleted");
    }
}

async fn publish(edge: &Edge, task: &Task, update: &Update) -> Result<(), Stop> {
    let measured = edge.upstream.publish_update(&task.run, task.round, &edge.client, update).await?;
    tracing::info!(
        run = %task.run, round = task.round,
        outcome = update.outcome.name(), bytes = measured.total, "answered upstream"
    );
    Ok(())
}

/// Puts the kept sum where upstream finds it: into the message where it fits, else into the store of uploads.
async fn fill(edge: &Edge, task: &Task, sum: &mut Payload, kept: &Digest) -> Result<Option<Transfer>, Stop> {
    let (local, spool, size) = (&edge.shop.bus, &edge.shop.spool, sum.size());
    let blob = size + TAG;
    if size + ENVELOPE <= edge.upstream.max_payload() as u64 {
        let (bytes, _) = local.get_blob(kept, blob).await?;
        let data = bytes.slice(..usize::try_from(size).unwrap_or(0).min(bytes.len()));
        *sum = Payload::Message { digest: sum.digest(), data };
        return Ok(None);
    }
    let get = async |file| local.get_blob_into(kept, blob, file).await;
    let Adapter::Spooled(file) = spool.fetched(blob, get).await??.0 else { return Ok(None) };
    let file = Arc::into_inner(file).ok_or_else(|| Stop::Failed("the sum is read elsewhere".into()))?;
    file.set_len(size).map_err(|source| spool.unusable(source))?;
    let key = UploadKey { run: &task.run, round: task.round, client: &edge.client };
    let stored = edge.upstream.put_upload_open(key, &file).await?;
    Ok(Some(stored.measured.transfer(Direction::Up, ByteKind::Adapter)))
}
