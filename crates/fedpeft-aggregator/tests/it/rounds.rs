//! Rounds that go well.

use fedpeft_codec::decode;
use fedpeft_protocol::{
    event::EventKind,
    round::{ByteKind, Direction, Outcome, Transfer, Work},
    run::RunStatus,
};

use crate::federation::{Federation, assert_close, client, mean, run_id, spec};

#[tokio::test(flavor = "multi_thread")]
async fn three_rounds_with_evaluation_end_as_computed_by_hand() {
    let mut federation = Federation::start(50).await;
    federation.trainers(&[("a", 100), ("b", 50), ("c", 7), ("d", 1)]).await;
    federation.join_evaluator("judge").await;
    let mut judge = federation.player("judge").await;
    tokio::spawn(async move {
        loop {
            let task = judge.task().await;
            assert!(matches!(task.work, Work::Evaluate));
            // A task that decides nothing, such as regression, has a loss alone.
            let accuracy = (task.round == 3).then_some(0.3);
            let outcome = Outcome::Evaluated { examples: 9, loss: 0.5, accuracy, seconds: 0.1 };
            judge.send(&task, &judge.outcome(&task, outcome)).await;
        }
    });
    let _service = federation.aggregator().await;
    let mut wanted = spec(3, 3);
    wanted.evaluation.every = 2;
    federation.create("r", wanted).await.unwrap();
    let view = federation.completed("r").await;

    // Rounds 2 (every second) and 3 (the last) were evaluated.
    let measured: Vec<_> = view.rounds.iter().map(|report| (report.loss, report.accuracy)).collect();
    assert_eq!(measured, [(None, None), (Some(0.5), None), (Some(0.5), Some(0.3))]);
    assert_eq!(view.record.round, 3);
    assert_eq!(view.record.open, None);
    assert_eq!(view.record.adapter, view.rounds[2].adapter);

    let examples = |name: &str| match name {
        "a" => 100,
        "b" => 50,
        "c" => 7,
        _ => 1,
    };
    let mut global = decode(&federation.initial(), &federation.layout).unwrap();
    for report in &view.rounds {
        let names: Vec<_> = report.clients.iter().map(|client| client.client.as_str()).collect();
        assert!(names.len() == 3 && names.is_sorted());
        let mut players = Vec::new();
        for name in names {
            players.push((federation.player(name).await, examples(name)));
        }
        let players: Vec<_> = players.iter().map(|(player, examples)| (player, *examples)).collect();
        let expected = mean(&players, &global);
        global = decode(&federation.adapter(&report.adapter).await, &federation.layout).unwrap();
        assert_close(&global, &expected);

        let total: u64 = players.iter().map(|(_, examples)| examples).sum();
        let loss: f64 = players
            .iter()
            .map(|(_, examples)| {
                (1.0 / f64::from(report.round) + *examples as f64 / 1000.0) * *examples as f64
            })
            .sum();
        assert!((report.train_loss - loss / total as f64).abs() < 1e-12);
        assert_eq!(report.seconds.train, 0.25);
        assert!(report.seconds.total >= report.seconds.evaluate);
    }

    let events = federation.events("r").await;
    let count = |name: &str| events.iter().filter(|kind| kind.name() == name).count();
    assert_eq!((count("round_opened"), count("round_closed")), (3, 3));
    assert_eq!((count("update_accepted"), count("update_rejected")), (9, 0));
    let statuses: Vec<_> = events
        .iter()
        .filter_map(|kind| match kind {
            EventKind::Status { status, adapter_values: 50, backbone_values: 1000, .. } => {
                Some(status.word())
            }
            _ => None,
        })
        .collect();
    assert_eq!(statuses, ["pending", "running", "completed"]);
    let closed: Vec<_> = events
        .into_iter()
        .filter_map(|kind| match kind {
            EventKind::RoundClosed { report } => Some(*report),
            _ => None,
        })
        .collect();
    assert_eq!(closed, view.rounds, "what is announced is what is stored");

    // Acknowledged: nothing of the run is left in the stream of updates, and no task waits.
    assert_eq!(federation.bus.updates(&run_id("r")).await.unwrap().pending(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_those_of_the_messages() {
    let mut federation = Federation::start(1000).await;
    federation.join("a", 10).await;
    let mut a = federation.player("a").await;
    let _service = federation.aggregator().await;
    federation.create("r", spec(1, 1)).await.unwrap();
    let task = a.task().await;
    let down = federation.bus.measure_task(&task, &a.id).unwrap().total;
    let mut update = a.trained(&task, 10).await;
    update.fetched = vec![
        Transfer { direction: Direction::Down, kind: ByteKind::Backbone, size: 5000, payload: 4900 },
        Transfer { direction: Direction::Down, kind: ByteKind::Artifacts, size: 300, payload: 0 },
    ];
    let up = a.send(&task, &update).await;
    let report = federation.completed("r").await.rounds.remove(0);
    assert_eq!((report.bytes_up, report.bytes_down), (up, down + 5300));
    assert_eq!((report.clients[0].bytes_up, report.clients[0].bytes_down), (up, down + 5300));
    let expected = [
        ("down.adapter", 4000),
        ("down.artifacts", 300),
        ("down.backbone", 5000),
        ("down.control", down - 4000),
        ("up.adapter", 4000),
        ("up.control", up - 4000),
    ];
    assert_eq!(report.bytes_by_kind, expected.map(|(key, size)| (key.to_owned(), size)).into());
    assert_eq!(report.clients[0].bytes_by_kind, report.bytes_by_kind);
    let payload = &report.payload_by_kind;
    assert_eq!(
        (payload["up.adapter"], payload["down.backbone"], payload["down.artifacts"]),
        (4000, 4900, 300)
    );
    for key in ["up.control", "down.control"] {
        assert!(payload[key] > 0 && payload[key] < report.bytes_by_kind[key], "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_of_arrival_does_not_change_a_byte() {
    let mut federation = Federation::start(500).await;
    let names = ["a", "b", "c", "d", "e"];
    let mut players = Vec::new();
    for (at, name) in names.iter().enumerate() {
        federation.join(name, 10 + at as u64 * 13).await;
        players.push(federation.player(name).await);
    }
    let _service = federation.aggregator().await;
    let mut results = Vec::new();
    for (run, order) in [("r1", [0, 1, 2, 3, 4]), ("r2", [4, 2, 0, 3, 1]), ("r3", [3, 4, 1, 0, 2])] {
        federation.create(run, spec(2, 5)).await.unwrap();
        for _ in 0..2 {
            let mut tasks = Vec::new();
            for player in &mut players {
                tasks.push(player.task().await);
            }
            for at in order {
                let update = players[at].trained(&tasks[at], 10 + at as u64 * 13).await;
                players[at].send(&tasks[at], &update).await;
            }
        }
        let view = federation.completed(run).await;
        results.push(view.rounds.iter().map(|report| report.adapter).collect::<Vec<_>>());
    }
    assert_ne!(results[0][0], results[0][1]);
    assert!(results.iter().all(|adapters| *adapters == results[0]), "{results:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_waits_for_its_clients() {
    let mut federation = Federation::start(10).await;
    let _service = federation.aggregator().await;
    federation.trainers(&[("a", 5)]).await;
    let mut wanted = spec(1, 3);
    wanted.min_clients = Some(2);
    federation.create("r", wanted).await.unwrap();
    federation.events_until("r", |kind| matches!(kind, EventKind::Waiting { present: 1, needed: 2 })).await;
    assert_eq!(federation.view("r").await.record.status, RunStatus::Pending);
    federation.trainers(&[("b", 5)]).await;
    let view = federation.completed("r").await;
    assert_eq!(view.rounds[0].clients.len(), 2, "a cohort is as large as those present allow");
}

#[tokio::test(flavor = "multi_thread")]
async fn presence_in_the_name_of_another_counts_for_nobody() {
    let mut federation = Federation::start(10).await;
    federation.trainers(&[("a", 5)]).await;
    // The broker lets a client write its own key; what it writes there may name anybody.
    let records = federation.bus.clients().await.unwrap();
    let (mut forged, _) = records.get("a").await.unwrap().unwrap();
    forged.client = client("b");
    records.put("c", &forged).await.unwrap();
    let mut wanted = spec(1, 3);
    wanted.min_clients = Some(2);
    let _service = federation.aggregator().await;
    federation.create("r", wanted).await.unwrap();
    federation.events_until("r", |kind| matches!(kind, EventKind::Waiting { present: 1, needed: 2 })).await;
    assert_eq!(federation.view("r").await.record.status, RunStatus::Pending);
}
