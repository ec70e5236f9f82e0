//! Workers that go away in the middle of a task, and clients that are simulated to.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use fedpeft_protocol::{
    round::{Outcome, Payload, Task, Work},
    run::{DelaySpec, StabilitySpec},
};

use crate::setup::{Setup, next, train, within};

/// Seconds of training on a slow machine, so that it can be cut off in its middle.
fn long(setup: &Setup, round: u32, client: &str) -> Task {
    let mut task = setup.task(round, client, train());
    if let Work::Train { training, .. } = &mut task.work {
        (training.local_epochs, training.batch_size) = (10_000, 4);
    }
    task
}

/// Steps, and what was trained.
fn trained(outcome: Outcome) -> (u64, bytes::Bytes) {
    let Outcome::Trained { steps, adapter: Payload::Message { data, .. }, .. } = outcome else {
        panic!("{outcome:?}")
    };
    (steps, data)
}

/// The checkpoints in the folder.
fn checkpoints(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.')).collect()
}

async fn checkpointed(folder: &Path) {
    within(async {
        while checkpoints(folder).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_killed_worker_goes_on_where_it_was() {
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    let task = long(&setup, 1, "client-000");
    let calm = setup.folder().join("calm");
    let mut worker = setup.worker(&["--clients", "1", "--state", calm.to_str().unwrap()]);
    setup.present("client-000").await;
    let started = Instant::now();
    setup.send(&task, "client-000").await;
    let expected = trained(next(&mut updates).await.update.unwrap().outcome);
    let undisturbed = started.elapsed();
    // What was sent is forgotten.
    within(async {
        while !checkpoints(&calm).is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    worker.kill().await.unwrap();

    // The same task again, for a client of the same data, in a worker that is killed.
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    let state = setup.folder().join("state");
    let options = ["--clients", "1", "--state", state.to_str().unwrap(), "--checkpoint-seconds", "1"];
    let mut worker = setup.worker(&options);
    setup.present("client-000").await;
    setup.send(&long(&setup, 1, "client-000"), "client-000").await;
    checkpointed(&state).await;
    worker.kill().await.unwrap();
    let restarted = Instant::now();
    let mut worker = setup.worker(&options);
    let delivery = next(&mut updates).await;
    assert_eq!(
        trained(delivery.update.unwrap().outcome),
        expected,
        "the same bytes, after {undisturbed:?}, {:?}",
        restarted.elapsed()
    );
    assert!(!setup.log(&mut worker).await.contains("begins anew"));
}

#[tokio::test]
async fn damaged_checkpoints_are_not_used() {
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    let state = setup.folder().join("state");
    let options = ["--clients", "1", "--state", state.to_str().unwrap(), "--checkpoint-seconds", "1"];
    let task = long(&setup, 1, "client-000");
    let mut worker = setup.worker(&options);
    setup.present("client-000").await;
    setup.send(&task, "client-000").await;
    checkpointed(&state).await;
    worker.kill().await.unwrap();
    let file = checkpoints(&state).remove(0);
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    let mut worker = setup.worker(&options);
    let (steps, _) = trained(next(&mut updates).await.update.unwrap().outcome);
    assert_eq!(steps, 100_000);
    assert!(setup.log(&mut worker).await.contains("checkpoint cannot be used, training begins anew"));
}

#[tokio::test]
async fn sigterm_keeps_the_task_for_the_next_process() {
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    let options = ["--clients", "1", "--drain-seconds", "0", "--checkpoint-seconds", "1"];
    let mut worker = setup.worker(&options);
    setup.present("client-000").await;
    setup.send(&long(&setup, 1, "client-000"), "client-000").await;
    let state = setup.folder().join("cache-state");
    checkpointed(&state).await;
    std::fs::remove_file(checkpoints(&state).remove(0)).unwrap();
    crate::tasks::terminate(&worker);
    assert!(within(worker.wait()).await.unwrap().success());
    assert_eq!(checkpoints(&state).len(), 1);
    let _worker = setup.worker(&options);
    let (steps, _) = trained(next(&mut updates).await.update.unwrap().outcome);
    assert_eq!(steps, 100_000);
}

#[tokio::test]
async fn clocks_that_disagree_do_no_harm() {
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    let _worker = setup.worker(&["--clients", "1"]);
    setup.present("client-000").await;
    for (round, deadline_ms) in [(1, 1), (2, u64::MAX)] {
        let mut task = setup.task(round, "client-000", train());
        task.deadline_ms = deadline_ms;
        setup.send(&task, "client-000").await;
        assert!(matches!(next(&mut updates).await.update.unwrap().outcome, Outcome::Trained { .. }));
    }
}

#[tokio::test]
async fn clients_say_what_they_have() {
    let setup = Setup::new().await;
    let _worker = setup.worker(&["--clients", "1", "--label", "site=eu,tier=a"]);
    let capabilities = setup.present("client-000").await.capabilities;
    assert_eq!(capabilities.labels["site"], "eu");
    assert!(capabilities.free_memory_mib.unwrap() > 0);
}

fn unstable(setup: &Setup, round: u32, client: &str, spec: StabilitySpec) -> Task {
    let mut task = setup.task(round, client, train());
    if let Work::Train { stability, .. } = &mut task.work {
        *stability = Some(spec);
    }
    task
}

#[tokio::test]
async fn faults_are_simulated_on_request_only() {
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    let _worker = setup.worker(&["--clients", "1"]);
    let _unstable = setup.worker(&["--client", "shaky", "--first", "1", "--simulate-faults"]);
    setup.present("client-000").await;
    setup.present("shaky").await;
    let gone = StabilitySpec { dropout: 1.0, ..Default::default() };
    for client in ["shaky", "client-000"] {
        setup.send(&unstable(&setup, 1, client, gone.clone()), client).await;
    }
    assert_eq!(next(&mut updates).await.client.as_str(), "client-000", "its operator did not ask for faults");

    // A crash is survived, and a delay is waited for.
    let shaky = StabilitySpec {
        crash: 1.0,
        restart_seconds: 0.5,
        delay: DelaySpec::Fixed { seconds: 1.0 },
        ..Default::default()
    };
    let started = Instant::now();
    setup.send(&unstable(&setup, 2, "shaky", shaky), "shaky").await;
    let delivery = next(&mut updates).await;
    assert_eq!((delivery.client.as_str(), delivery.round), ("shaky", 2));
    let (_, crashed) = trained(delivery.update.unwrap().outcome);
    assert!(started.elapsed() >= Duration::from_millis(1500));
    let mut calm = setup.task(2, "shaky", train());
    calm.task += "/again";
    calm.epoch = 2;
    setup.send(&calm, "shaky").await;
    let (_, calm) = trained(next(&mut updates).await.update.unwrap().outcome);
    assert_eq!(crashed, calm, "the same bytes as without faults");
}

#[tokio::test]
async fn a_client_that_waits_does_not_stall_the_others() {
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    let _worker = setup.worker(&["--clients", "3", "--simulate-faults"]);
    setup.present("client-002").await;
    let slow = StabilitySpec { delay: DelaySpec::Fixed { seconds: 5.0 }, ..Default::default() };
    for client in ["client-000", "client-001"] {
        setup.send(&unstable(&setup, 1, client, slow.clone()), client).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    setup.send(&setup.task(1, "client-002", train()), "client-002").await;
    assert_eq!(next(&mut updates).await.client.as_str(), "client-002");
}
