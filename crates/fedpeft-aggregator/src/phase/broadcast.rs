//! Broadcast: sends every client of the cohort its task.
//!
//! | then | because |
//! | --- | --- |
//! | collect | the tasks are stored by the broker |
//! | secure | it was taken over, and a stage of secure aggregation had ended |
//!
//! Updates of clients that are done before the last has its task are taken at once: the broker still has them in memory, and
//! neither waits for the other.
//!
//! An owner that took the round over first folds what is stored, and then sends tasks only to clients that
//! have not answered: the same tasks under the same names, which the broker and the clients recognise.

use std::time::Instant;

use fedpeft_bus::Bus;
use fedpeft_protocol::{
    ClientId,
    event::EventKind,
    round::{Direction, MemoryTask, Task, Transfer, Work},
    run::OpenRound,
};
use futures::{TryStreamExt, stream::FuturesUnordered};

use super::{Phase, collect};
use crate::{
    drive::{Drive, IN_FLIGHT},
    round::RoundState,
    stop::Stop,
};

pub(crate) async fn run(drive: &mut Drive<'_>, mut round: Box<RoundState>) -> Result<Phase, Stop> {
    let started = Instant::now();
    if round.taken_over {
        collect::stored(drive, &mut round).await?;
        tracing::info!(
            run = %drive.record.run,
            round = round.open.round,
            answers = round.clients.answered(),
            clients = round.clients.len(),
            "round taken over"
        );
    }
    if let Some(secure) = &mut round.secure {
        secure.place_params(drive).await?;
    }
    if !round.taken_over {
        let OpenRound { round, cohort, .. } = &*round.open;
        drive.events.emit(EventKind::RoundOpened { round: *round, cohort: cohort.clone() });
    }
    send_all(drive, &mut round).await?;
    round.sent = Instant::now();
    round.seconds.broadcast = started.elapsed().as_secs_f64();
    if round.has_ended_stages() {
        return Ok(Phase::Secure(round));
    }
    Ok(Phase::Collect(round))
}

/// Sends every client its task, several at once, and takes updates in between. What a task was is forgotten once it is sent: a
/// cohort may be large.
async fn send_all(drive: &mut Drive<'_>, round: &mut RoundState) -> Result<(), Stop> {
    let (bus, wanted) = (drive.bus, round.wants(&drive.record.spec));
    let mut accepted = round.clients.accepted().count();
    let (mut next, mut sending) = (0, FuturesUnordered::new());
    loop {
        while sending.len() < IN_FLIGHT
            && let Some(client) = round.open.cohort.get(next).cloned()
        {
            next += 1;
            let task = train_task(drive, round, &client).await?;
            // Who has not answered before the first stage ended is not waited for.
            let is_settled = round.clients.has_answered(&client) || round.has_ended_stages();
            sending.push(send(bus, client, task, is_settled));
        }
        // What a stage that has ended still gets is not of this phase, and a round that is full takes none.
        let takes = !round.has_ended_stages() && wanted.is_none_or(|wanted| accepted < wanted);
        tokio::select! {
            biased;
            sent = sending.try_next() => match sent? {
                Some((client, transfers)) => round.clients_mut().count(&client, transfers),
                None => return Ok(()),
            },
            delivery = drive.updates.next(), if takes => {
                accepted += collect::take(drive, round, delivery).await?;
            }
        }
    }
}

/// Sends a client its task; measures it only, where nothing is expected of it.
async fn send(
    bus: &Bus,
    client: ClientId,
    task: Task,
    is_settled: bool,
) -> Result<(ClientId, [Transfer; 2]), Stop> {
    let measured = match is_settled {
        true => bus.measure_task(&task, &client)?,
        false => bus.publish_task(&task, &client).await?,
    };
    Ok((client, measured.message(Direction::Down, task.payloads())))
}

/// Sends tasks again that were replaced and whose clients have not answered.
pub(crate) async fn again(drive: &Drive<'_>, round: &mut RoundState) -> Result<(), Stop> {
    let Some(stored) = drive.stored_tasks().await? else { return Ok(()) };
    for at in 0..round.open.cohort.len() {
        let Some(client) = round.open.cohort.get(at).cloned() else { break };
        if round.clients.has_answered(&client) {
            continue;
        }
        let task = train_task(drive, round, &client).await?;
        if let Some(measured) = drive.restore_one(&stored, &client, &task).await? {
            round.clients_mut().count(&client, measured.message(Direction::Down, task.payloads()));
        }
    }
    Ok(())
}

async fn train_task(drive: &Drive<'_>, round: &RoundState, client: &ClientId) -> Result<Task, Stop> {
    let spec = &drive.record.spec;
    if round.clients.member(client).is_some_and(|member| member.aggregates) {
        return edge_task(drive, round, client).await;
    }
    let tasks = round.open.cohort.len();
    let memory = match spec.has_memory() {
        true => {
            Some(MemoryTask { counted: drive.counted.last(client), control: drive.control(tasks).await? })
        }
        false => None,
    };
    let work = Work::Train {
        training: spec.training.clone(),
        seed: spec.seed,
        rounds: spec.rounds,
        stability: spec.stability.clone(),
        uplink: spec.uplink,
        ranks: spec.mixes_ranks(),
        memory,
        personal: spec.is_personal() && spec.evaluates(round.open.round),
        secure: round.secure.as_ref().map(|secure| secure.params.clone()),
    };
    drive.task((round.open.round, round.open.epoch), tasks, client, work, round.deadline_ms(spec)).await
}

async fn edge_task(drive: &Drive<'_>, round: &RoundState, client: &ClientId) -> Result<Task, Stop> {
    let mut spec = Box::new(drive.record.spec.clone());
    // They name those who work for us, not for the edge.
    spec.eligibility.clients.clear();
    let examples = round.clients.member(client).map_or(0, |member| member.examples);
    let (work, deadline) = (Work::Aggregate { spec, examples }, round.deadline_ms(&drive.record.spec));
    let tasks = round.open.cohort.len();
    drive.task((round.open.round, round.open.epoch), tasks, client, work, deadline).await
}
