//! Complete: writes that all rounds are done. There is no phase after it.

use fedpeft_protocol::run::RunStatus;

use crate::{drive::Drive, model, stop::Stop};

pub(crate) async fn run(drive: &mut Drive<'_>) -> Result<(), Stop> {
    drive.record.end(RunStatus::Completed).await?;
    drive.bus.purge_tasks(&drive.record.run).await?;
    tracing::info!(run = %drive.record.run, rounds = drive.record.round, adapter = %drive.record.adapter, "run completed");
    drive.events.emit(model::status_event(drive.record, Some(&drive.model)));
    Ok(())
}
