//! Tasks whose adapters are encoded on their way.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use fedpeft_codec::{Base, Codec, Layout, Pipeline, Seed, TensorSpec, decode};
use fedpeft_protocol::{
    Digest,
    round::{MemoryTask, Outcome, Payload, Task, Work},
};

use crate::setup::{Setup, next, run, train, within};

fn pipeline(text: &str) -> Pipeline {
    text.parse().unwrap()
}

/// A task of a run with this uplink.
fn encoded(setup: &Setup, round: u32, text: &str, counted: Option<Digest>) -> Task {
    let mut task = setup.task(round, "client-000", train());
    if let Work::Train { uplink, memory, .. } = &mut task.work {
        *uplink = pipeline(text);
        *memory = uplink.feedback().then(|| MemoryTask { counted, ..Default::default() });
    }
    task
}

async fn outcome(setup: &Setup, task: &Task) -> Outcome {
    let mut updates = setup.updates_of(task.round).await;
    setup.send(task, "client-000").await;
    next(&mut updates).await.update.unwrap().outcome
}

fn trained(outcome: Outcome) -> Bytes {
    match outcome {
        Outcome::Trained { adapter: Payload::Message { data, .. }, .. } => data,
        outcome => panic!("{outcome:?}"),
    }
}

/// What the aggregator makes of an update.
fn received(setup: &Setup, text: &str, bytes: &[u8]) -> Vec<f32> {
    Codec::new(pipeline(text), &setup.layout).decode(bytes, Some(&Base::new(&setup.start))).unwrap()
}

#[tokio::test]
async fn updates_and_tasks_are_encoded_as_the_run_asks() {
    let mut adapters = Vec::new();
    for text in ["fp32", "delta,zstd", "delta,int8"] {
        let setup = Setup::new().await;
        let _worker = setup.worker(&["--clients", "1"]);
        setup.present("client-000").await;
        let bytes = trained(outcome(&setup, &encoded(&setup, 1, text, None)).await);
        adapters.push(received(&setup, text, &bytes));
    }
    assert_eq!(adapters[0], adapters[1], "lossless");
    assert_ne!(adapters[0], adapters[2]);

    let setup = Setup::new().await;
    let _worker = setup.worker(&["--clients", "1"]);
    setup.present("client-000").await;
    let changes = adapters[0].iter().zip(&setup.start).map(|(value, base)| (value - base).abs());
    let step = changes.fold(0.0, f32::max) / 127.0;
    assert!(adapters[0].iter().zip(&adapters[2]).all(|(a, b)| (a - b).abs() <= step * 1.001));

    // From half the bytes training begins with what they decode to.
    let codec = Codec::new(pipeline("fp16"), &setup.layout);
    let mut task = encoded(&setup, 1, "fp32", None);
    task.downlink = pipeline("fp16");
    let sent = codec.encode(&setup.start, None, Seed::new(0, 0, "")).unwrap();
    let begins = codec.decode(&sent, None).unwrap();
    task.adapter = Payload::inline(sent);
    let from_half = decode(&trained(outcome(&setup, &task).await), &setup.layout).unwrap();
    assert_eq!(begins == setup.start, from_half == adapters[0]);
    assert!(from_half.iter().zip(&adapters[0]).all(|(a, b)| (a - b).abs() < 1e-2));

    // Bytes that are not what the task says of them are named.
    let mut wrong = encoded(&setup, 2, "fp32", None);
    wrong.downlink = pipeline("int8");
    wrong.adapter = task.adapter.clone();
    let Outcome::Failed { reason } = outcome(&setup, &wrong).await else { panic!("trained") };
    assert!(reason.contains("encoded as fp16, the run asks for int8"), "{reason}");
}

/// What client-000 has left out up to the update of these bytes.
fn left_out(setup: &Setup, state: &Path, update: &[u8]) -> Vec<f32> {
    let name = format!("runs/{}/client-000/{}.safetensors", run(), Digest::of(update));
    let named = |spec: &TensorSpec| TensorSpec { name: format!("left_out/{}", spec.name), ..spec.clone() };
    let layout = Layout::new(setup.layout.tensors().iter().map(named).collect()).unwrap();
    fedpeft_artifacts::read_checkpoint(&std::fs::read(state.join(name)).unwrap(), &layout).unwrap()
}

#[tokio::test]
async fn a_killed_worker_sends_what_was_left_out_and_the_same_bytes() {
    const TOPK: &str = "delta,topk=0.1,int8,zstd";
    let mut outcomes = Vec::new();
    for killed in [false, true] {
        let setup = Setup::new().await;
        let state = setup.folder().join("state");
        let options = ["--clients", "1", "--state", state.to_str().unwrap(), "--checkpoint-seconds", "1"];
        let mut worker = setup.worker(&options);
        setup.present("client-000").await;
        let first = trained(outcome(&setup, &encoded(&setup, 1, TOPK, None)).await);
        let rest = left_out(&setup, &state, &first);
        assert!(rest.iter().any(|value| *value != 0.0));

        let mut task = encoded(&setup, 2, TOPK, Some(Digest::of(&first)));
        if let Work::Train { training, .. } = &mut task.work {
            (training.local_epochs, training.batch_size) = (10_000, 4);
        }
        let mut updates = setup.updates_of(2).await;
        setup.send(&task, "client-000").await;
        if killed {
            checkpointed(&state).await;
            worker.kill().await.unwrap();
            worker = setup.worker(&options);
        }
        let second = trained(next(&mut updates).await.update.unwrap().outcome);
        let again = left_out(&setup, &state, &second);

        // From nothing left out the same training sends something else.
        let fresh = trained(outcome(&setup, &encoded(&setup, 3, TOPK, None)).await);
        let carried = trained(outcome(&setup, &encoded(&setup, 4, TOPK, Some(Digest::of(&fresh)))).await);
        assert_ne!(received(&setup, TOPK, &fresh), received(&setup, TOPK, &carried));
        // What did not count is not gone on from, and is not there any more.
        let Outcome::Failed { reason } =
            outcome(&setup, &encoded(&setup, 5, TOPK, Some(Digest::of(&second)))).await
        else {
            panic!("trained")
        };
        assert!(reason.contains("--state") && reason.contains("client-000"), "{reason}");
        outcomes.push((first, rest, second, again));
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
async fn without_a_folder_nothing_is_left_out() {
    let setup = Setup::new().await;
    let _worker = setup.worker(&["--clients", "1", "--checkpoint-seconds", "0"]);
    setup.present("client-000").await;
    let Outcome::Failed { reason } = outcome(&setup, &encoded(&setup, 1, "delta,topk=0.1", None)).await
    else {
        panic!("trained")
    };
    assert!(reason.contains("--state"), "{reason}");
    trained(outcome(&setup, &encoded(&setup, 2, "delta,topk=0.1+forget", None)).await);
}
