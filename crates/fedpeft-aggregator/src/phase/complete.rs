//! Complete: writes that all rounds are done. There is no phase after it.
//!
//! Clients that were too late for the last round still learn so by name, for a while.

use std::time::Duration;

use fedpeft_protocol::run::RunStatus;
use tokio::time::{Instant, timeout_at};

use crate::{drive::Drive, model, retention, stop::Stop};

/// How long updates are still refused by name; later ones are left to the stream's age limit.
const LINGER: Duration = Duration::from_secs(60);

pub(crate) async fn run(drive: &mut Drive<'_>) -> Result<(), Stop> {
    let mark = drive.bus.task_mark().await?;
    drive.record.end(RunStatus::Completed).await?;
    drive.bus.purge_tasks(&drive.record.run, mark).await?;
    tracing::info!(
        run = %drive.record.run,
        rounds = drive.record.round,
        adapter = %drive.record.adapter,
        "run completed"
    );
    drive.events.emit(model::status_event(drive.record, Some(&drive.model)));
    let until = Instant::now() + LINGER;
    while let Ok(late) = timeout_at(until, drive.updates.next()).await {
        drive.refuse(late.round, &late.client, drive.closed(late.round));
        for upload in retention::uploads_of(&late) {
            retention::forget_upload(drive, late.round, &late.client, &upload).await;
        }
        drive.forget(late.round, &late.client).await?;
    }
    Ok(())
}
