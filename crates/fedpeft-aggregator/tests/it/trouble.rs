//! Rounds that do not get all they ask for.

use std::time::Duration;

use fedpeft_protocol::{
    event::EventKind,
    round::{ClientOutcome, Outcome},
    run::{RunRecord, RunStatus},
};

use crate::federation::{Federation, spec};

#[tokio::test(flavor = "multi_thread")]
async fn a_round_closes_at_its_deadline_with_a_quorum() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("a", 10), ("b", 20)]).await;
    federation.join("silent", 30).await;
    let mut silent = federation.player("silent").await;
    let _service = federation.aggregator().await;
    let mut wanted = spec(1, 3);
    wanted.round_deadline_seconds = 4.0;
    federation.create("r", wanted).await.unwrap();
    let task = silent.task().await;
    let report = federation.completed("r").await.rounds.remove(0);
    assert_eq!(report.clients[2].client.as_str(), "silent");
    assert_eq!(report.clients[2].outcome, ClientOutcome::Dropped);
    assert_eq!((report.clients[2].examples, report.clients[2].bytes_up), (0, 0));
    assert!(report.clients[2].bytes_down > 0, "its task was sent");
    // Too late for the run, and told so.
    silent.send(&task, &silent.trained(&task, 30).await).await;
    assert!(federation.refusal("r", "silent").await.contains("round 1 is closed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_does_not_wait_for_clients_that_have_left() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("a", 10), ("b", 20)]).await;
    federation.join("leaving", 30).await;
    let mut leaving = federation.player("leaving").await;
    let _service = federation.aggregator().await;
    let mut wanted = spec(1, 3);
    wanted.round_deadline_seconds = 3600.0;
    federation.create("r", wanted).await.unwrap();
    leaving.task().await;
    federation.leave("leaving").await;
    let report = federation.completed("r").await.rounds.remove(0);
    assert_eq!(report.clients[2].outcome, ClientOutcome::Dropped);
}

#[tokio::test(flavor = "multi_thread")]
async fn below_its_quorum_a_run_fails_and_can_be_resumed() {
    let mut federation = Federation::start(20).await;
    federation.join("broken", 10).await;
    federation.join("silent", 10).await;
    let (mut broken, mut silent) = (federation.player("broken").await, federation.player("silent").await);
    let _service = federation.aggregator().await;
    let mut wanted = spec(2, 2);
    wanted.quorum = Some(1);
    wanted.round_deadline_seconds = 3.0;
    federation.create("r", wanted).await.unwrap();
    let task = broken.task().await;
    broken.send(&task, &broken.outcome(&task, Outcome::Failed { reason: "no disk".into() })).await;
    let old_task = silent.task().await;
    let view = federation.ended("r").await;
    let RunStatus::Failed { reason } = &view.record.status else { panic!("{:?}", view.record.status) };
    for expected in ["round 1", "0 of 2", "quorum is 1", "broken failed (no disk)", "silent dropped"] {
        assert!(reason.contains(expected), "{reason}");
    }
    assert_eq!((view.record.open, view.rounds.len()), (None, 0));

    let record: RunRecord = federation.ask("runs.resume", "r").await.unwrap();
    assert_eq!(record.status, RunStatus::Pending);
    // A new attempt at the same round: the update of the old one does not count.
    let task = broken.task().await;
    assert!(task.round == 1 && task.epoch > old_task.epoch);
    silent.send(&old_task, &silent.trained(&old_task, 10).await).await;
    assert!(federation.refusal("r", "silent").await.contains("another attempt"));
    for round in 1..=2 {
        let task = if round == 1 { task.clone() } else { broken.task().await };
        broken.send(&task, &broken.trained(&task, 10).await).await;
        let task = silent.task().await;
        silent.send(&task, &silent.trained(&task, 10).await).await;
    }
    let view = federation.completed("r").await;
    assert!(view.rounds.iter().all(|r| r.clients.iter().all(|c| c.outcome.word() == "accepted")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_without_hope_fails_before_its_deadline() {
    let mut federation = Federation::start(20).await;
    federation.join("a", 10).await;
    federation.join("b", 10).await;
    let mut a = federation.player("a").await;
    let _service = federation.aggregator().await;
    let mut wanted = spec(1, 2);
    wanted.quorum = Some(2);
    wanted.round_deadline_seconds = 3600.0;
    federation.create("r", wanted).await.unwrap();
    let task = a.task().await;
    a.send(&task, &a.outcome(&task, Outcome::Failed { reason: "no".into() })).await;
    assert!(matches!(federation.ended("r").await.record.status, RunStatus::Failed { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_run_stops_and_can_be_resumed() {
    let mut federation = Federation::start(20).await;
    federation.join("a", 10).await;
    let mut a = federation.player("a").await;
    let _service = federation.aggregator().await;
    federation.create("r", spec(2, 1)).await.unwrap();
    let task = a.task().await;
    a.send(&task, &a.trained(&task, 10).await).await;
    let task = a.task().await;
    assert_eq!(task.round, 2);
    let record: RunRecord = federation.ask("runs.cancel", "r").await.unwrap();
    assert_eq!((record.status, record.open), (RunStatus::Cancelled, None));
    let events = federation.events("r").await;
    assert!(matches!(events.last(), Some(EventKind::Status { status: RunStatus::Cancelled, .. })));
    // An update now reaches nobody.
    a.send(&task, &a.trained(&task, 10).await).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(federation.view("r").await.record.round, 1);

    federation.ask::<RunRecord>("runs.resume", "r").await.unwrap();
    let again = a.task().await;
    assert!(again.round == 2 && again.epoch > task.epoch && again.adapter == task.adapter);
    a.send(&again, &a.trained(&again, 10).await).await;
    assert_eq!(federation.completed("r").await.rounds.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_goes_on_without_its_evaluator() {
    let mut federation = Federation::start(20).await;
    federation.trainers(&[("a", 10)]).await;
    federation.join_evaluator("broken").await;
    let mut broken = federation.player("broken").await;
    let _service = federation.aggregator().await;
    let mut wanted = spec(1, 1);
    wanted.evaluation.every = 1;
    federation.create("r", wanted).await.unwrap();
    let task = broken.task().await;
    let outcome = Outcome::Evaluated { examples: 1, loss: 0.1, accuracy: Some(7.0), seconds: 0.0 };
    broken.send(&task, &broken.outcome(&task, outcome)).await;
    let view = federation.completed("r").await;
    assert_eq!(view.rounds[0].accuracy, None);
    assert!(federation.refusal("r", "broken").await.contains("accuracy 7"));
}
