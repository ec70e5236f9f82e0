//! Large updates travel as blobs, and a round of `full` fine-tuning leaves gigabytes of them. Once their round
//! is committed they are deleted.
//!
//! Blobs are named by content, so two may be one: the update of a cohort of one *is* the next global adapter,
//! and runs with equal seeds send equal updates. A blob that anything may still need stays.

use std::collections::BTreeSet;

use fedpeft_bus::BusError;
use fedpeft_protocol::Digest;

use crate::{drive::Drive, round::RoundState};

/// Deletes the blobs of a committed round's updates. What cannot be deleted costs space and nothing else.
pub(crate) async fn forget_update_blobs(drive: &Drive<'_>, round: &RoundState) {
    let blobs: BTreeSet<Digest> =
        round.accepted().filter(|accepted| accepted.blob).map(|accepted| accepted.digest).collect();
    if blobs.is_empty() {
        return;
    }
    if let Err(error) = forget(drive, blobs).await {
        tracing::warn!(run = %drive.record.run, %error, "blobs of updates not deleted");
    }
}

async fn forget(drive: &Drive<'_>, mut blobs: BTreeSet<Digest>) -> Result<(), BusError> {
    for entry in drive.bus.runs().await?.list_top().await? {
        let other = entry.value;
        let may_share_updates = other.run != drive.record.run && other.manifest == drive.record.manifest;
        if may_share_updates && !other.status.is_final() {
            return Ok(());
        }
        blobs.remove(&other.adapter);
        if other.manifest == drive.record.manifest {
            for report in drive.reports.list(other.run.as_str()).await? {
                blobs.remove(&report.value.adapter);
            }
        }
    }
    for blob in blobs {
        drive.bus.delete_blob(&blob).await?;
    }
    Ok(())
}
