//! Runs whose clients keep something from round to round: local tensors, and SCAFFOLD's control variates.

use fedpeft_codec::encode;
use fedpeft_protocol::{
    Digest,
    round::{MemoryTask, Outcome, Payload, Personal, Task, Update, Work},
    run::{OptimizerSpec, RunSpec, StrategySpec},
};

use crate::federation::{Federation, Player, spec};

fn memory(task: &Task) -> &MemoryTask {
    match &task.work {
        Work::Train { memory: Some(memory), .. } => memory,
        other => panic!("{other:?}"),
    }
}

fn held(payload: &Payload) -> Vec<f32> {
    let Payload::Message { data, .. } = payload else { panic!("{payload:?}") };
    data.as_chunks::<4>().0.iter().map(|value| f32::from_le_bytes(*value)).collect()
}

/// An update of these values, whose client's own model has this accuracy on so many examples.
fn update(player: &Player, task: &Task, values: &[f32], own: (u64, f64)) -> Update {
    let mut update = player.update_with(task, 10, Payload::inline(encode(values)));
    if let Outcome::Trained { personal, .. } = &mut update.outcome {
        *personal = Some(Personal { examples: own.0, loss: 1.0 - own.1, accuracy: Some(own.1) });
    }
    update
}

#[tokio::test(flavor = "multi_thread")]
async fn local_tensors_cross_no_wire_and_clients_hear_what_counted() {
    let mut federation = Federation::start(20).await;
    let mut service = federation.aggregator().await;
    for (name, examples) in [("a", 10), ("b", 10)] {
        federation.join(name, examples).await;
    }
    let (mut a, mut b) = (federation.player("a").await, federation.player("b").await);
    let mut wanted = RunSpec { quorum: Some(1), ..spec(3, 2) };
    wanted.evaluation.every = 1;
    wanted.training.local = vec!["*.weight".to_owned()];
    let created = federation.create("r", wanted).await.unwrap();
    assert_eq!(
        federation.adapter(&created.adapter).await,
        federation.initial().slice(19 * 4..),
        "the bias alone"
    );

    let task = a.task().await;
    assert_eq!((held(&task.adapter).len(), memory(&task).counted), (1, None));
    assert!(matches!(task.work, Work::Train { personal: true, .. }));
    let first = update(&a, &task, &[3.0], (8, 0.5));
    a.send(&task, &first).await;
    let task = b.task().await;
    let whole = b.update_with(&task, 10, Payload::inline(encode(&[1.0; 20])));
    b.send(&task, &whole).await;
    assert!(federation.refusal("r", "b").await.contains("80 bytes"));
    federation.until("r", |record| record.round == 1).await;
    let report = federation.view("r").await.rounds.remove(0);
    assert_eq!((report.accuracy, report.loss), (Some(0.5), Some(0.5)));

    // Another owner hears from the reports what counted. An accuracy is weighted by the examples it was measured on.
    service.kill().await;
    service = federation.aggregator().await;
    let task = a.task().await;
    assert_eq!(memory(&task).counted, Some(Digest::of(encode(&[3.0]))));
    a.send(&task, &update(&a, &task, &[5.0], (6, 1.0))).await;
    let task = b.task().await;
    assert_eq!(memory(&task).counted, None, "b has no update that counts");
    b.send(&task, &update(&b, &task, &[7.0], (2, 0.0))).await;
    federation.until("r", |record| record.round == 2).await;
    let report = federation.view("r").await.rounds.remove(1);
    assert_eq!(report.accuracy, Some(0.75));
    assert_eq!(report.clients[1].personal.unwrap().examples, 2);

    // Nobody holds back more than it trains on.
    let task = a.task().await;
    a.send(&task, &update(&a, &task, &[5.0], (11, 1.0))).await;
    assert!(federation.refusal("r", "a").await.contains("11 examples held back"));
    let task = b.task().await;
    assert_eq!(memory(&task).counted, Some(Digest::of(encode(&[7.0]))));
    b.send(&task, &b.update_with(&task, 10, Payload::inline(encode(&[1.0])))).await;
    let view = federation.completed("r").await;
    assert_eq!((view.rounds[2].accuracy, view.rounds[2].loss), (None, None));
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn globs_that_leave_nothing_or_match_nothing_are_refused() {
    let federation = Federation::start(20).await;
    let _service = federation.aggregator().await;
    for (globs, told) in [
        (&["haed.*"][..], "no adapter tensor matches \"haed.*\": there are head.weight, head.bias"),
        (&["*.bias", "head.weight"], "every adapter tensor"),
        (&["head.[w"], "training.local"),
        (&[""], "training.local"),
    ] {
        let mut wanted = spec(1, 1);
        wanted.training.local = globs.iter().map(|glob| (*glob).to_owned()).collect();
        let error = federation.create("r", wanted).await.unwrap_err().to_string();
        assert!(error.contains(told) && !error.contains('\n'), "{error}");
    }
}

/// An update of a client that moves to `values` and whose control variate changes by `change`.
fn scaffold(player: &Player, task: &Task, values: &[f32], change: Option<Vec<f32>>) -> Update {
    let mut update = player.update_with(task, 10, Payload::inline(encode(values)));
    if let Outcome::Trained { control, .. } = &mut update.outcome {
        *control = change.map(|change| Payload::inline(encode(&change)));
    }
    update
}

#[tokio::test(flavor = "multi_thread")]
async fn control_variates_are_summed_with_the_adapters_or_not_at_all() {
    let mut federation = Federation::start(2).await;
    let mut service = federation.aggregator().await;
    let mut players = Vec::new();
    for name in ["a", "b", "c"] {
        federation.join(name, 10).await;
        players.push(federation.player(name).await);
    }
    let mut wanted = RunSpec {
        strategy: StrategySpec::Scaffold { learning_rate: 0.5, population: Some(4) },
        quorum: Some(2),
        ..spec(2, 3)
    };
    wanted.training.optimizer = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    let created = federation.create("r", wanted).await.unwrap();
    let start = held(&Payload::inline(federation.adapter(&created.adapter).await));
    assert_eq!(federation.adapter(&created.control.unwrap()).await, encode(&[0.0; 2]));

    // c's update has a variate that is no number, and one that is missing, before a good one would come.
    for (at, change) in [(0, vec![1.0, -2.0]), (1, vec![3.0, 0.0]), (2, vec![f32::NAN, 1.0])] {
        let task = players[at].task().await;
        assert_eq!(held(memory(&task).control.as_ref().unwrap()), [0.0, 0.0]);
        let values = [1.0 + at as f32, 2.0];
        players[at].send(&task, &scaffold(&players[at], &task, &values, Some(change))).await;
        if at == 0 {
            // What was accepted is folded again by another owner, once.
            federation
                .events_until("r", |kind| {
                    matches!(kind, fedpeft_protocol::event::EventKind::UpdateAccepted { .. })
                })
                .await;
            service.kill().await;
            service = federation.aggregator().await;
        }
    }
    assert!(federation.refusal("r", "c").await.contains("control variate"));
    let record = federation.until("r", |record| record.round == 1).await;
    // x + 0.5 (mean - x), and c + sum / N.
    let moved = |at: usize, mean: f32| start[at] + 0.5 * (mean - start[at]);
    let next = held(&Payload::inline(federation.adapter(&record.adapter).await));
    assert!((next[0] - moved(0, 1.5)).abs() < 1e-6 && (next[1] - moved(1, 2.0)).abs() < 1e-6, "{next:?}");
    assert_eq!(federation.adapter(&record.control.unwrap()).await, encode(&[1.0, -0.5]));

    for (at, change) in [(0, Some(vec![1.0, 1.0])), (1, Some(vec![-1.0, 0.0])), (2, None)] {
        let task = players[at].task().await;
        assert_eq!(held(memory(&task).control.as_ref().unwrap()), [1.0, -0.5]);
        let counted = (at < 2).then(|| Digest::of(encode(&[1.0 + at as f32, 2.0])));
        assert_eq!(memory(&task).counted, counted);
        players[at].send(&task, &scaffold(&players[at], &task, &[1.0, 2.0], change)).await;
    }
    let view = federation.completed("r").await;
    assert_eq!(view.rounds[1].clients[2].outcome.word(), "rejected");
    assert_eq!(federation.adapter(&view.record.control.unwrap()).await, encode(&[1.0, -0.25]));
    service.stop().await;
}

/// Both travel in the store of uploads where one message would not hold them.
#[tokio::test(flavor = "multi_thread")]
async fn large_control_variates_are_uploads() {
    // Together they are too large for a message of a mebibyte, one of them is not.
    let values = 150_000;
    let mut federation = Federation::start(values).await;
    let _service = federation.aggregator().await;
    federation.join("a", 10).await;
    let mut player = federation.player("a").await;
    let mut wanted =
        RunSpec { strategy: StrategySpec::Scaffold { learning_rate: 1.0, population: None }, ..spec(1, 1) };
    wanted.training.optimizer = OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 };
    federation.create("r", wanted).await.unwrap();
    let task = player.task().await;
    let Some(Payload::Blob { digest, size }) = &memory(&task).control else {
        panic!("{:?}", task.payloads().count())
    };
    assert_eq!(federation.adapter(digest).await, vec![0; usize::try_from(*size).unwrap()]);
    let (adapter, change) = (vec![0.5; values as usize], vec![0.25; values as usize]);
    let mut stored = Vec::new();
    for values in [&adapter, &change] {
        let stored_one = player.upload(&task, values).await;
        stored.push(Payload::Blob { digest: stored_one.digest, size: stored_one.size });
    }
    let mut update = player.update_with(&task, 10, stored.remove(0));
    if let Outcome::Trained { control, .. } = &mut update.outcome {
        *control = Some(stored.remove(0));
    }
    player.send(&task, &update).await;
    let view = federation.completed("r").await;
    assert_eq!(federation.adapter(&view.record.adapter).await, encode(&adapter));
    assert_eq!(federation.adapter(&view.record.control.unwrap()).await, encode(&change));
    assert_eq!(federation.uploads().await, 0, "both go with their round");
}
