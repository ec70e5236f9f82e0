//! The tasks of a stage.

use fedpeft_bus::Measured;
use fedpeft_protocol::{
    ClientId, Digest,
    round::{Direction, Payload, Task, Work},
    secure::SecureStage,
};
use fedpeft_service::now_ms;
use futures::{StreamExt, TryStreamExt, stream};

use crate::{drive::Drive, round::RoundState, stop::Stop};

/// Tasks on their way at once.
const IN_FLIGHT: usize = 16;

/// Sends everybody the task of the open stage; only measures those of clients that have answered.
pub(super) async fn all(drive: &Drive<'_>, round: &mut RoundState) -> Result<(), Stop> {
    if let Some(secure) = &mut round.secure {
        secure.asked_ms = now_ms();
    }
    let Some(secure) = &round.secure else { return Ok(()) };
    let sent: Vec<(ClientId, Measured)> = {
        let round = &*round;
        let send = async |client: &ClientId| {
            let Some(task) = task(drive, round, client).await? else { return Ok(None) };
            let measured = match secure.answered.contains(client) {
                true => drive.bus.measure_task(&task, client)?,
                false => drive.bus.publish_task(&task, client).await?,
            };
            Ok::<_, Stop>(Some((client.clone(), measured)))
        };
        let sending: Vec<_> = secure.asked.iter().map(send).collect();
        let sent: Vec<_> = stream::iter(sending).buffer_unordered(IN_FLIGHT).try_collect().await?;
        sent.into_iter().flatten().collect()
    };
    for (client, measured) in sent {
        round.clients_mut().count(&client, measured.message(Direction::Down, None));
    }
    Ok(())
}

/// Sends tasks again that were replaced and whose clients have not answered.
pub(super) async fn again(drive: &Drive<'_>, round: &mut RoundState) -> Result<(), Stop> {
    let Some(secure) = &round.secure else { return Ok(()) };
    let mut tasks = Vec::new();
    for client in secure.outstanding() {
        tasks.extend(task(drive, round, &client).await?.map(|task| (client, task)));
    }
    for (client, _, measured) in drive.restore(tasks).await? {
        round.clients_mut().count(&client, measured.message(Direction::Down, None));
    }
    Ok(())
}

/// When the open stage ends, whoever has answered by then.
pub(super) fn deadline_ms(drive: &Drive<'_>, round: &RoundState) -> u64 {
    let seconds = drive.record.spec.secure_aggregation.as_ref().map_or(0.0, |secure| secure.stage_seconds);
    let since = round.secure.as_ref().map_or(0, |secure| secure.asked_ms);
    // A conversion of floats to integers saturates.
    since.saturating_add((seconds * 1000.0) as u64)
}

async fn task(drive: &Drive<'_>, round: &RoundState, client: &ClientId) -> Result<Option<Task>, Stop> {
    let Some(secure) = &round.secure else { return Ok(None) };
    let (Some(stage), Some(member)) = (secure.stage, secure.session.member(client.as_str())) else {
        return Ok(None);
    };
    let request = round
        .with_server(move |server| match server.request(member) {
            Ok(Some(request)) => request.encode().map(Some).map_err(|error| error.to_string()),
            Ok(None) => Ok(None),
            Err(error) => Err(error.to_string()),
        })
        .await?;
    let Some(request) = request.map_err(Stop::Failed)? else { return Ok(None) };
    let after = secure.said.get(client).copied().unwrap_or_else(|| Digest::of([]));
    Ok(Some(made(drive, round, client, (stage, after), request)))
}

fn made(
    drive: &Drive<'_>,
    round: &RoundState,
    client: &ClientId,
    (stage, after): (SecureStage, Digest),
    request: Vec<u8>,
) -> Task {
    // Its client has the adapter already, and only its name travels.
    let adapter = Payload::Blob { digest: drive.record.adapter, size: drive.model.layout.bytes() };
    let work = Work::Secure { stage, after, request: Payload::inline(request) };
    let place = (round.open.round, round.open.epoch);
    drive.task_on(adapter, place, client, work, deadline_ms(drive, round))
}
