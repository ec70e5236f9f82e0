//! Tensors that never leave their client.

use std::{path::Path, time::Duration};

use fedpeft_codec::Scope;
use fedpeft_protocol::{
    Digest,
    round::{MemoryTask, Outcome, Payload, Personal, Task, Work},
};

use crate::setup::{Setup, next, run, train, within};

/// A task of a run whose heads are personal.
fn personal(setup: &Setup, round: u32, counted: Option<Digest>, epochs: u32) -> Task {
    let mut task = setup.task(round, "client-000", train());
    if let Work::Train { training, memory, personal, .. } = &mut task.work {
        training.local = vec!["head.*".to_owned()];
        (training.local_epochs, training.batch_size) = (epochs, 4);
        (*memory, *personal) = (Some(MemoryTask { counted, control: None }), true);
    }
    let (shared, _) = scope(setup).split(&setup.start);
    task.adapter = Payload::inline(fedpeft_codec::encode(&shared));
    task
}

fn scope(setup: &Setup) -> Scope {
    Scope::new(&setup.layout, &["head.*".to_owned()]).unwrap()
}

struct Trained {
    adapter: bytes::Bytes,
    personal: Option<Personal>,
}

async fn trained(setup: &Setup, task: &Task) -> Trained {
    let mut updates = setup.updates_of(task.round).await;
    setup.send(task, "client-000").await;
    match next(&mut updates).await.update.unwrap().outcome {
        Outcome::Trained { adapter: Payload::Message { data, .. }, personal, .. } => {
            Trained { adapter: data, personal }
        }
        outcome => panic!("{outcome:?}"),
    }
}

async fn reason(setup: &Setup, task: &Task) -> String {
    let mut updates = setup.updates_of(task.round).await;
    setup.send(task, "client-000").await;
    match next(&mut updates).await.update.unwrap().outcome {
        Outcome::Failed { reason } => reason,
        outcome => panic!("{outcome:?}"),
    }
}

/// What client-000 keeps in `state` after the update of these bytes.
fn kept(setup: &Setup, state: &Path, adapter: &[u8]) -> Vec<f32> {
    let name = format!("runs/{}/client-000/{}.safetensors", run(), Digest::of(adapter));
    let bytes = std::fs::read(state.join(name)).unwrap();
    fedpeft_artifacts::read_checkpoint(&bytes, scope(setup).local().unwrap()).unwrap()
}

#[tokio::test]
async fn a_client_goes_on_from_its_last_update_that_counts() {
    let setup = Setup::new().await;
    setup.hold_back(0.25);
    let state = setup.folder().join("state");
    let options = ["--clients", "1", "--state", state.to_str().unwrap()];
    let _worker = setup.worker(&options);
    assert_eq!(setup.present("client-000").await.capabilities.examples, 30);

    let first = trained(&setup, &personal(&setup, 1, None, 4)).await;
    assert_eq!(first.adapter.len() as u64, scope(&setup).shared().bytes(), "the head stays");
    let own = first.personal.unwrap();
    assert_eq!(own.examples, 10);
    assert!(own.accuracy.unwrap() > 0.8, "{own:?}");
    let head = kept(&setup, &state, &first.adapter);
    assert_ne!(head, scope(&setup).split(&setup.start).1);

    // It counted, so the next round begins with that head; another that did not count changes nothing.
    let counted = Some(Digest::of(&first.adapter));
    let second = trained(&setup, &personal(&setup, 2, counted, 4)).await;
    let again = trained(&setup, &personal(&setup, 3, counted, 4)).await;
    assert_ne!(second.adapter, first.adapter);
    let fresh = trained(&setup, &personal(&setup, 4, None, 4)).await;
    assert_ne!(fresh.adapter, again.adapter, "heads differ");
    let lost = reason(&setup, &personal(&setup, 5, Some(Digest::of(&second.adapter)), 4)).await;
    assert!(lost.contains("--state") && lost.contains("client-000"), "{lost}");
}

#[tokio::test]
async fn a_killed_worker_goes_on_with_the_same_head() {
    let mut outcomes = Vec::new();
    for killed in [false, true] {
        let setup = Setup::new().await;
        let state = setup.folder().join("state");
        let options = ["--clients", "1", "--state", state.to_str().unwrap(), "--checkpoint-seconds", "1"];
        let mut worker = setup.worker(&options);
        setup.present("client-000").await;
        let first = trained(&setup, &personal(&setup, 1, None, 4)).await;
        let task = personal(&setup, 2, Some(Digest::of(&first.adapter)), 10_000);
        let mut updates = setup.updates_of(2).await;
        setup.send(&task, "client-000").await;
        if killed {
            checkpointed(&state).await;
            worker.kill().await.unwrap();
            worker = setup.worker(&options);
        }
        let outcome = next(&mut updates).await.update.unwrap().outcome;
        let Outcome::Trained { adapter: Payload::Message { data, .. }, personal: None, .. } = outcome else {
            panic!("{outcome:?}")
        };
        let head = kept(&setup, &state, &data);
        outcomes.push((first.adapter, data, head));
        worker.kill().await.unwrap();
    }
    assert_eq!(outcomes[0], outcomes[1]);
}

/// Waits for a checkpoint of a training in progress.
async fn checkpointed(state: &Path) {
    within(async {
        let files = || std::fs::read_dir(state).into_iter().flatten().flatten();
        while !files().any(|entry| entry.file_name().to_str().unwrap().parse::<Digest>().is_ok()) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn without_a_folder_nothing_is_kept_and_nothing_trained() {
    let setup = Setup::new().await;
    let _worker = setup.worker(&["--clients", "1", "--checkpoint-seconds", "0"]);
    setup.present("client-000").await;
    let reason = reason(&setup, &personal(&setup, 1, None, 1)).await;
    assert!(reason.contains("--state"), "{reason}");
    // Others train as ever.
    let mut plain = setup.task(2, "client-000", train());
    plain.epoch = 2;
    trained(&setup, &plain).await;
}
