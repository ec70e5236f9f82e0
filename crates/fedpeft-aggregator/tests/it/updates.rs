//! Updates that must not reach the sum.

use std::time::Duration;

use fedpeft_codec::{decode, encode};
use fedpeft_protocol::{
    Digest,
    event::EventKind,
    round::{ClientOutcome, Outcome, Payload, Update},
    subject,
};

use crate::federation::{Federation, PATIENCE, Player, assert_close, mean, run_id, spec};

#[tokio::test(flavor = "multi_thread")]
async fn bad_updates_are_refused_by_name_and_change_nothing() {
    let mut federation = Federation::start(20).await;
    let broker = async_nats::connect(federation.nats.url()).await.unwrap();
    let names = [
        "digest", "examples", "failed", "good-1", "good-2", "length", "lost", "loss", "nan", "none", "huge",
        "garbage",
    ];
    for name in names {
        federation.join(name, 40).await;
    }
    let _service = federation.aggregator().await;
    let mut wanted = spec(1, names.len() as u32);
    wanted.quorum = Some(2);
    federation.create("r", wanted).await.unwrap();

    let mut good = Vec::new();
    for name in names {
        let mut player = federation.player(name).await;
        let task = player.task().await;
        let global = player.global(&task).await;
        let values = player.train(&global);
        let with = |values: &[f32]| Payload::inline(encode(values));
        let honest = player.update_with(&task, 40, with(&values));
        let update = match name {
            "digest" => {
                let data = encode(&values);
                player.update_with(&task, 40, Payload::Message { digest: Digest::of("other"), data })
            }
            "examples" => player.update_with(&task, 41, with(&values)),
            "none" => player.update_with(&task, 0, with(&values)),
            "failed" => player.outcome(&task, Outcome::Failed { reason: "out of\nmemory".into() }),
            "length" => player.update_with(&task, 40, with(&values[..19])),
            "lost" => {
                let digest = Digest::of("nowhere");
                player.update_with(&task, 40, Payload::Blob { digest, size: 80 })
            }
            "loss" => {
                let mut update = honest;
                if let Outcome::Trained { loss, .. } = &mut update.outcome {
                    *loss = f64::NAN;
                }
                update
            }
            "nan" => {
                let mut values = values;
                values[4] = f32::NAN;
                player.update_with(&task, 40, with(&values))
            }
            "huge" => {
                let mut values = values;
                values[19] = 1e30;
                player.update_with(&task, 40, with(&values))
            }
            _ => honest,
        };
        if name == "garbage" {
            let subject = subject::update(&task.run, task.round, &player.id);
            broker.publish(subject, "\u{81}no update".into()).await.unwrap();
            broker.flush().await.unwrap();
            continue;
        }
        player.send(&task, &update).await;
        if name.starts_with("good") {
            good.push((player, 40, global));
        }
    }
    let view = federation.completed("r").await;
    let players: Vec<(&Player, u64)> = good.iter().map(|(player, examples, _)| (player, *examples)).collect();
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    assert_close(&found, &mean(&players, &good[0].2));

    for (name, expected) in [
        ("digest", "digest"),
        ("examples", "41 examples"),
        ("length", "76 bytes"),
        ("lost", "not in the blob store"),
        ("loss", "NaN"),
        ("nan", "value 4 of tensor head.weight is NaN"),
        ("huge", "value 0 of tensor head.bias"),
        ("garbage", "cannot be decoded"),
        ("none", "0 examples"),
    ] {
        let reason = federation.refusal("r", name).await;
        assert!(reason.contains(expected), "{name}: {reason}");
        let report = view.rounds[0].clients.iter().find(|report| report.client.as_str() == name).unwrap();
        assert_eq!(report.outcome, ClientOutcome::Rejected { reason });
        assert_eq!(report.examples, 0);
        assert!(report.bytes_up > 0, "refused bytes crossed the wire as well");
    }
    let failed = view.rounds[0].clients.iter().find(|report| report.client.as_str() == "failed").unwrap();
    assert_eq!(failed.outcome, ClientOutcome::Failed { reason: "out of memory".into() });
    let accepted = federation.events("r").await;
    assert_eq!(accepted.iter().filter(|kind| kind.name() == "update_accepted").count(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn strays_do_not_count_as_answers() {
    let mut federation = Federation::start(20).await;
    for name in ["a", "b"] {
        federation.join(name, 40).await;
    }
    let _service = federation.aggregator().await;
    federation.create("r", spec(1, 2)).await.unwrap();
    let (mut a, mut b) = (federation.player("a").await, federation.player("b").await);
    let (task, task_b) = (a.task().await, b.task().await);
    let garbage = Payload::inline(encode(&[9.0; 20]));

    let wrong_epoch = Update { epoch: task.epoch + 1, ..a.update_with(&task, 40, garbage.clone()) };
    let wrong_task = Update { task: "another".into(), ..a.update_with(&task, 40, garbage.clone()) };
    // Each needs a name of its own, or the broker drops it as a repetition.
    let wrong_epoch = Update { task: format!("{}/epoch", task.task), ..wrong_epoch };
    a.send(&task, &wrong_epoch).await;
    a.send(&task, &wrong_task).await;
    let stranger = federation.player("stranger").await;
    stranger.send(&task, &stranger.update_with(&task, 40, garbage.clone())).await;
    let mut future = task.clone();
    future.round = 9;
    stranger.send(&future, &stranger.update_with(&task, 40, garbage.clone())).await;

    a.send(&task, &a.trained(&task, 40).await).await;
    // A second answer under another deduplication name: the first one stands.
    federation.events_until("r", |kind| matches!(kind, EventKind::UpdateAccepted { .. })).await;
    let raw = federation.nats.bus().await;
    let second = Update { task: task.task.clone(), ..a.update_with(&task, 40, garbage) };
    raw.publish_update(&task.run, task.round, &a.id, &second).await.unwrap();
    b.send(&task_b, &b.trained(&task_b, 10).await).await;

    let view = federation.completed("r").await;
    let global = a.global(&task).await;
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    assert_close(&found, &mean(&[(&a, 40), (&b, 10)], &global));
    let reasons: Vec<_> = federation
        .events("r")
        .await
        .into_iter()
        .filter_map(|kind| match kind {
            EventKind::UpdateRejected { reason, .. } => Some(reason),
            _ => None,
        })
        .collect();
    for expected in ["fencing token", "answers task", "not in the cohort", "round 9 is not open, round 1 is"]
    {
        assert!(reasons.iter().any(|reason| reason.contains(expected)), "{expected}: {reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_update_counts_once() {
    let mut federation = Federation::start(20).await;
    for name in ["a", "b"] {
        federation.join(name, 40).await;
    }
    let (mut a, mut b) = (federation.player("a").await, federation.player("b").await);
    let service = federation.aggregator().await;
    federation.create("r", spec(1, 2)).await.unwrap();
    let (task_a, task_b) = (a.task().await, b.task().await);
    let update = a.trained(&task_a, 30).await;
    a.send(&task_a, &update).await;
    a.send(&task_a, &update).await;
    // Delivered again to another owner, which folds it from the beginning.
    service.stop().await;
    let _service = federation.aggregator().await;
    b.send(&task_b, &b.trained(&task_b, 10).await).await;
    let view = federation.completed("r").await;
    let global = a.global(&task_a).await;
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    assert_close(&found, &mean(&[(&a, 30), (&b, 10)], &global));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_update_is_refused_by_name() {
    let mut federation = Federation::start(20).await;
    for name in ["fast", "late"] {
        federation.join(name, 40).await;
    }
    let (mut fast, mut late) = (federation.player("fast").await, federation.player("late").await);
    let _service = federation.aggregator().await;
    let mut wanted = spec(2, 2);
    wanted.quorum = Some(1);
    wanted.round_deadline_seconds = 4.0;
    federation.create("r", wanted).await.unwrap();
    let (fast_task, late_task) = (fast.task().await, late.task().await);
    fast.send(&fast_task, &fast.trained(&fast_task, 40).await).await;
    // Round 1 closes at its deadline, round 2 opens.
    let fast_task = fast.task().await;
    assert_eq!(fast_task.round, 2);
    late.send(&late_task, &late.trained(&late_task, 40).await).await;
    let reason = federation.refusal("r", "late").await;
    assert!(reason.contains("round 1 is closed") && reason.contains("too late"), "{reason}");
    fast.send(&fast_task, &fast.trained(&fast_task, 40).await).await;
    let late_task = late.task().await;
    assert_eq!(late_task.round, 2);
    late.send(&late_task, &late.trained(&late_task, 40).await).await;
    let view = federation.completed("r").await;
    let outcomes = |round: usize| {
        let clients = view.rounds[round].clients.iter();
        clients.map(|report| (report.client.as_str(), report.outcome.word())).collect::<Vec<_>>()
    };
    assert_eq!(outcomes(0), [("fast", "accepted"), ("late", "dropped")]);
    assert_eq!(outcomes(1), [("fast", "accepted"), ("late", "accepted")]);
    assert_eq!(federation.bus.updates(&run_id("r")).await.unwrap().pending(), 0);
}

/// Two runs of the same model with the same clients: what was honest for one, or for a round before, is sent again.
#[tokio::test(flavor = "multi_thread")]
async fn updates_of_other_runs_and_rounds_do_not_count() {
    let mut federation = Federation::start(20).await;
    for name in ["a", "b"] {
        federation.join(name, 40).await;
    }
    let (mut a, mut b) = (federation.player("a").await, federation.player("b").await);
    let _service = federation.aggregator().await;
    federation.create("first", spec(1, 2)).await.unwrap();
    let (task_a, task_b) = (a.task().await, b.task().await);
    let replayed = a.trained(&task_a, 40).await;
    a.send(&task_a, &replayed).await;
    b.send(&task_b, &b.trained(&task_b, 10).await).await;
    federation.completed("first").await;

    federation.create("second", spec(2, 2)).await.unwrap();
    let (task_a, task_b) = (a.task().await, b.task().await);
    a.send(&task_a, &replayed).await;
    let reason = federation.refusal("second", "a").await;
    assert!(reason.contains("answers task") && reason.contains("first"), "{reason}");
    let honest = a.trained(&task_a, 30).await;
    a.send(&task_a, &honest).await;
    b.send(&task_b, &b.trained(&task_b, 10).await).await;

    let (next_a, next_b) = (a.task().await, b.task().await);
    assert_eq!(next_a.round, 2);
    a.send(&next_a, &honest).await;
    let expected = mean(&[(&a, 30), (&b, 10)], &a.global(&next_a).await);
    a.send(&next_a, &a.trained(&next_a, 30).await).await;
    b.send(&next_b, &b.trained(&next_b, 10).await).await;
    let view = federation.completed("second").await;
    let found = decode(&federation.adapter(&view.record.adapter).await, &federation.layout).unwrap();
    assert_close(&found, &expected);
    let replays = federation.events("second").await.into_iter().filter(
        |kind| matches!(kind, EventKind::UpdateRejected { reason, .. } if reason.contains("answers task")),
    );
    assert_eq!(replays.count(), 2);
}

/// Nobody reads them, so they would fill the broker's disk.
#[tokio::test(flavor = "multi_thread")]
async fn updates_of_runs_that_are_not_active_are_forgotten() {
    let mut federation = Federation::start(20).await;
    federation.join("a", 40).await;
    let mut a = federation.player("a").await;
    let service = federation.aggregator().await;
    federation.create("ended", spec(1, 1)).await.unwrap();
    let task = a.task().await;
    a.send(&task, &a.trained(&task, 40).await).await;
    federation.completed("ended").await;
    federation.create("active", spec(1, 1)).await.unwrap();
    let active = a.task().await;
    service.stop().await;

    let mut stray = task;
    for (run, round) in [("ended", 7), ("ghost", 1)] {
        (stray.run, stray.round) = (run_id(run), round);
        a.send(&stray, &a.update_with(&stray, 40, Payload::inline(encode(&[1.0; 20])))).await;
    }
    a.send(&active, &a.trained(&active, 40).await).await;
    let stored = federation.bus.runs_with_updates(10).await.unwrap();
    assert_eq!(stored, ["active", "ended", "ghost"].map(run_id).into());
    assert_eq!(federation.bus.runs_with_updates(2).await.unwrap().len(), 2);

    let _service = federation.aggregator().await;
    federation.completed("active").await;
    let forgotten = async {
        while !federation.bus.runs_with_updates(10).await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, forgotten).await.expect("they are forgotten in time");
}
