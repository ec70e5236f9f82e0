//! The bus against a real broker.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod blobs;
mod connect;
mod inbox;
mod messages;
mod records;
mod service;
mod tls;
mod transfers;

use fedpeft_protocol::{
    ClientId, Digest, PROTOCOL_VERSION, RunId,
    event::{Event, EventKind},
    round::{Outcome, Payload, Task, Update, Work},
};

fn run_id(name: &str) -> RunId {
    RunId::new(name).unwrap()
}

fn client_id(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

fn task(run: &RunId, round: u32) -> Task {
    Task {
        version: PROTOCOL_VERSION,
        run: run.clone(),
        round,
        epoch: 1,
        task: format!("task-{round}"),
        manifest: Digest::of(b"manifest"),
        adapter: Payload::inline(vec![1, 2, 3, 4]),
        work: Work::Evaluate,
        deadline_ms: 1,
        downlink: Default::default(),
        residual: None,
        lifetime_ms: 1,
    }
}

fn update(task: &str, size: usize) -> Update {
    let outcome = Outcome::Trained {
        examples: 3,
        steps: 1,
        loss: 0.5,
        seconds: 0.1,
        adapter: Payload::inline(vec![7; size]),
        personal: None,
        control: None,
        epsilon: None,
    };
    Update { version: PROTOCOL_VERSION, epoch: 1, task: task.into(), outcome, fetched: vec![] }
}

fn event(run: &RunId, present: u32) -> Event {
    let kind = EventKind::Waiting { present, needed: 3 };
    Event { version: PROTOCOL_VERSION, run: run.clone(), at_ms: 5, epoch: 1, kind }
}
