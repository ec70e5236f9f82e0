//! Where a new owner begins.
//!
//! The record tells whether a round is open. If none is, the last committed round may still lack its
//! evaluation or its announcement; the events of the run tell.

use std::time::{Duration, Instant, SystemTime};

use fedpeft_protocol::{Round, event::EventKind, round::ClientOutcome};
use tokio::time::timeout;

use crate::{
    drive::Drive,
    phase::{Phase, evaluate::Committed},
    report, retention,
    round::{RoundState, report_key},
    stop::Stop,
};

/// Events counted as stored may expire before they are read; when none has come for so long, there are none.
const SILENCE: Duration = Duration::from_secs(2);

/// The phase in which the last owner left the run; the first one of a new run.
pub(crate) async fn phase(drive: &Drive<'_>) -> Result<Phase, Stop> {
    forget_counted(drive).await?;
    if let Some(open) = drive.record.open.clone() {
        let mut round = RoundState::new(drive, open, Instant::now()).await?;
        round.taken_over = true;
        return Ok(Phase::Broadcast(Box::new(round)));
    }
    let round = drive.record.round;
    if round == 0 || announced(drive, round).await? {
        return Ok(Phase::Select);
    }
    let stored = drive.bus.round_reports().await?.get(&report_key(&drive.record.run, round)).await?;
    Ok(stored.map_or(Phase::Select, |(stored, revision)| {
        let report = report::read(stored);
        // When it was opened went with the record's open round.
        let length = Duration::try_from_secs_f64(report.seconds.total).unwrap_or_default();
        let began = SystemTime::now().checked_sub(length).unwrap_or(SystemTime::UNIX_EPOCH);
        Phase::Evaluate(Box::new(Committed { report, revision, began }))
    }))
}

/// The last owner may have died between a commit and forgetting its updates; they are no strays.
pub(crate) async fn forget_counted(drive: &Drive<'_>) -> Result<(), Stop> {
    let (run, round) = (&drive.record.run, drive.record.round);
    let reports = drive.bus.round_reports().await?;
    let Some((report, _)) = reports.get(&report_key(run, round)).await? else { return Ok(()) };
    let mark = drive.bus.update_mark().await?;
    drive.record.confirm().await?;
    let accepted = report.clients.iter().filter_map(|client| match client.outcome {
        ClientOutcome::Accepted { staleness, digest, .. } => {
            Some((round.saturating_sub(staleness), &client.client, digest))
        }
        _ => None,
    });
    let accepted: Vec<_> = accepted.collect();
    if !drive.fits_a_message() {
        let uploads = accepted.iter().map(|(began, client, digest)| (*began, (*client).clone(), *digest));
        retention::forget_uploads_of(drive, uploads.collect()).await;
    }
    drive
        .forget_all(accepted.into_iter().map(|(began, client, _)| (began, client)).collect(), mark, None)
        .await
}

/// Whether [`EventKind::RoundClosed`] was published for `round`.
async fn announced(drive: &Drive<'_>, round: Round) -> Result<bool, Stop> {
    let mut events = drive.bus.events(Some(&drive.record.run), true).await?;
    while events.pending() > 0 {
        match timeout(SILENCE, events.next()).await {
            Ok(event) => {
                if matches!(event?.kind, EventKind::RoundClosed { report } if report.round == round) {
                    return Ok(true);
                }
            }
            Err(_) => break,
        }
    }
    Ok(false)
}
