//! Aggregators that die, and those that take over.

use std::time::Duration;

use fedpeft_protocol::{
    event::EventKind,
    round::{Outcome, Task, Work},
};

use crate::federation::{Federation, Service, client, run_id, spec};

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_aggregator_is_replaced_without_anybody_training_twice() {
    let mut federation = Federation::start(200).await;
    let mut players = Vec::new();
    for name in ["a", "b", "c"] {
        federation.join(name, 10).await;
        players.push(federation.player(name).await);
    }
    let mut service = federation.aggregator().await;
    let mut results = Vec::new();
    for (run, killed) in [("calm", false), ("stormy", true)] {
        federation.create(run, spec(2, 3)).await.unwrap();
        for _ in 0..2 {
            for (at, player) in players.iter_mut().enumerate() {
                let task = player.task().await;
                player.send(&task, &player.trained(&task, 10 - at as u64).await).await;
                if killed && at == 1 && task.round == 1 {
                    service.kill().await;
                    service = federation.aggregator().await;
                }
            }
        }
        let view = federation.completed(run).await;
        results.push(view.rounds.iter().map(|report| report.adapter).collect::<Vec<_>>());
        for report in &view.rounds {
            assert!(report.clients.iter().all(|client| client.bytes_down > 800 && client.bytes_up > 800));
        }
        for player in &mut players {
            assert!(!player.has_task().await, "nobody is asked again");
        }
        let closed = federation.events(run).await.iter().filter(|kind| kind.name() == "round_closed").count();
        assert_eq!(closed, 2);
    }
    assert_eq!(results[0], results[1], "the same bytes, with and without a crash");
    service.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_evaluation_in_progress_survives_its_owner() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("a", 10)]).await;
    federation.join_evaluator("judge").await;
    let mut judge = federation.player("judge").await;
    let service = federation.aggregator().await;
    let mut wanted = spec(1, 1);
    wanted.evaluation.every = 1;
    federation.create("r", wanted).await.unwrap();
    let first = judge.task().await;
    service.stop().await;
    let _service = federation.aggregator().await;
    let second = judge.task().await;
    assert!(matches!(second.work, Work::Evaluate) && second.epoch > first.epoch);
    let outcome =
        |accuracy| Outcome::Evaluated { examples: 1, loss: 0.1, accuracy: Some(accuracy), seconds: 0.0 };
    judge.send(&first, &judge.outcome(&first, outcome(0.1))).await;
    judge.send(&second, &judge.outcome(&second, outcome(0.9))).await;
    let view = federation.completed("r").await;
    assert_eq!(view.rounds[0].accuracy, Some(0.9));
    let closed: Vec<_> =
        federation.events("r").await.into_iter().filter(|kind| kind.name() == "round_closed").collect();
    assert_eq!(closed, [EventKind::RoundClosed { report: Box::new(view.rounds[0].clone()) }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_aggregators_share_runs() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("a", 10), ("b", 20), ("c", 30)]).await;
    let mut services: Vec<Service> = Vec::new();
    for _ in 0..3 {
        services.push(federation.aggregator().await);
    }
    let runs = ["r1", "r2", "r3", "r4"];
    for run in runs {
        federation.create(run, spec(5, 2)).await.unwrap();
    }
    services.pop().unwrap().stop().await;
    for run in runs {
        let view = federation.completed(run).await;
        assert_eq!(view.rounds.len(), 5);
        let events = federation.events(run).await;
        let closed = events.iter().filter(|kind| kind.name() == "round_closed").count();
        assert_eq!(closed, 5, "each round once");
    }
    for service in services {
        service.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_broker_loses_nothing() {
    let mut federation = Federation::start(20).await;
    for name in ["a", "b"] {
        federation.join(name, 10).await;
    }
    let (mut a, mut b) = (federation.player("a").await, federation.player("b").await);
    let _service = federation.aggregator().await;
    federation.create("r", spec(1, 2)).await.unwrap();
    let task = a.task().await;
    a.send(&task, &a.trained(&task, 10).await).await;
    federation.nats.restart().await;
    let task = b.task().await;
    b.send(&task, &b.trained(&task, 10).await).await;
    let view = federation.completed("r").await;
    assert!(view.rounds[0].clients.iter().all(|client| client.outcome.word() == "accepted"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_replaced_is_sent_again() {
    let mut federation = Federation::start(20).await;
    for name in ["a", "b"] {
        federation.join(name, 40).await;
    }
    let mut a = federation.player("a").await;
    let _service = federation.aggregator().await;
    federation.create("r", spec(1, 2)).await.unwrap();
    let task_a = a.task().await;
    // What an owner of the past might send before the client has begun.
    let stale = Task { round: 0, task: "of yesterday".into(), ..task_a.clone() };
    let stored = async || federation.bus.stored_tasks(&run_id("r")).await.unwrap();
    while !stored().await.contains_key(&client("b")) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    federation.bus.publish_task_again(&stale, &client("b"), None).await.unwrap();
    assert!(stored().await[&client("b")].is(&stale, &client("b")));
    let mut b = federation.player("b").await;
    let mut task_b = b.task().await;
    while task_b.round == 0 {
        task_b = b.task().await;
    }
    assert_eq!((task_b.round, task_b.epoch, &task_b.adapter), (1, task_a.epoch, &task_a.adapter));
    for (player, task) in [(&a, &task_a), (&b, &task_b)] {
        player.send(task, &player.trained(task, 10).await).await;
    }
    let view = federation.completed("r").await;
    assert_eq!(view.rounds[0].clients.len(), 2);
}
