//! Tasks and what comes of them.

use std::time::Duration;

use fedpeft_codec::encode;
use fedpeft_protocol::{
    Digest,
    round::{ByteKind, Outcome, Payload, Work},
};

use crate::setup::{Setup, next, train, within};

#[tokio::test]
async fn clients_train_in_turn_and_the_evaluator_sees_it() {
    let setup = Setup::new().await;
    let _worker = setup.worker(&["--clients", "3", "--evaluate"]);
    let presence = setup.present("client-002").await;
    assert_eq!((presence.capabilities.examples, presence.capabilities.trains), (40, true));
    assert_eq!(presence.capabilities.device, "cpu");
    let presence = setup.present("evaluator").await;
    assert_eq!((presence.capabilities.examples, presence.capabilities.evaluates), (60, true));

    let mut updates = setup.updates().await;
    for client in ["client-000", "client-001", "client-002"] {
        setup.send(&setup.task(1, client, train()), client).await;
    }
    let (mut fetched, mut trained) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let delivery = next(&mut updates).await;
        let update = delivery.update.unwrap();
        assert_eq!((delivery.round, update.epoch), (1, 1));
        let Outcome::Trained { examples, steps, adapter, .. } = update.outcome else {
            panic!("{:?}", update.outcome)
        };
        assert_eq!((examples, steps, adapter.size()), (40, 12, setup.start.len() as u64 * 4));
        let Payload::Message { data, .. } = adapter else { panic!("a small adapter fits the message") };
        assert_ne!(data, encode(&setup.start));
        trained.push(data);
        fetched.extend(update.fetched);
    }
    // One backbone for all three clients.
    let backbones = fetched.iter().filter(|transfer| transfer.kind == ByteKind::Backbone).count();
    assert_eq!(backbones, 1, "{fetched:?}");

    let mut accuracies = Vec::new();
    for (round, adapter) in [(2, encode(&setup.start)), (3, trained[0].clone())] {
        let mut task = setup.task(round, "evaluator", Work::Evaluate);
        task.adapter = Payload::inline(adapter);
        setup.send(&task, "evaluator").await;
        let outcome = next(&mut updates).await.update.unwrap().outcome;
        let Outcome::Evaluated { examples: 60, accuracy, .. } = outcome else { panic!("{outcome:?}") };
        accuracies.push(accuracy);
    }
    assert!(accuracies[1] > accuracies[0] && accuracies[1] > Some(0.8), "{accuracies:?}");
}

#[tokio::test]
async fn one_task_gives_the_same_bytes_in_another_process() {
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    let mut digests = Vec::new();
    for cache in ["one", "two"] {
        let cache = setup.folder.path().join(cache);
        let mut worker = setup.worker(&["--clients", "1", "--cache", cache.to_str().unwrap()]);
        setup.present("client-000").await;
        let mut task = setup.task(1, "client-000", train());
        // Deduplication must not swallow the second answer.
        task.epoch = digests.len() as u64 + 1;
        task.task = format!("attempt-{}", task.epoch);
        setup.send(&task, "client-000").await;
        let outcome = next(&mut updates).await.update.unwrap().outcome;
        let Outcome::Trained { adapter, .. } = outcome else { panic!("{outcome:?}") };
        digests.push(adapter.digest());
        worker.kill().await.unwrap();
    }
    assert_eq!(digests[0], digests[1]);
}

#[tokio::test]
async fn what_cannot_be_done_is_answered_with_one_line() {
    let setup = Setup::new().await;
    let _worker = setup.worker(&["--clients", "1", "--evaluate"]);
    setup.present("evaluator").await;
    let mut updates = setup.updates().await;

    let mut unknown = setup.task(1, "client-000", train());
    unknown.manifest = Digest::of("nothing");
    let mut damaged = setup.task(2, "client-000", train());
    let Payload::Message { data, .. } = &mut damaged.adapter else { unreachable!() };
    *data = encode(&vec![0.5; setup.start.len()]);
    let mut short = setup.task(3, "client-000", train());
    short.adapter = Payload::inline(vec![0; 8]);
    let mut poisoned = setup.task(4, "client-000", train());
    poisoned.adapter = Payload::inline(encode(&vec![f32::NAN; setup.start.len()]));
    let mut missing = setup.task(5, "client-000", train());
    missing.adapter = Payload::Blob { digest: Digest::of("nothing"), size: 4 };
    let mut wild = setup.task(6, "client-000", train());
    if let Work::Train { training, .. } = &mut wild.work {
        training.learning_rate = 1e38;
    }
    let foreign = setup.task(7, "client-000", Work::Evaluate);
    for (task, expected) in [
        (unknown, ""),
        (damaged, "digest"),
        (short, "bytes"),
        (poisoned, "NaN"),
        (missing, ""),
        (wild, ""),
        (foreign, "does not evaluate"),
    ] {
        setup.send(&task, "client-000").await;
        let delivery = next(&mut updates).await;
        assert_eq!(delivery.round, task.round);
        let outcome = delivery.update.unwrap().outcome;
        let Outcome::Failed { reason } = outcome else { panic!("{outcome:?}") };
        assert!(reason.contains(expected) && !reason.contains('\n') && !reason.is_empty(), "{reason}");
    }
}

#[tokio::test]
async fn tasks_past_their_deadline_are_skipped() {
    let setup = Setup::new().await;
    let _worker = setup.worker(&["--clients", "1"]);
    setup.present("client-000").await;
    let mut updates = setup.updates().await;
    let mut late = setup.task(1, "client-000", train());
    (late.deadline_ms, late.lifetime_ms) = (fedpeft_service::now_ms() - 1, 0);
    setup.send(&late, "client-000").await;
    let mut endless = setup.task(2, "client-000", train());
    endless.lifetime_ms = 1_500;
    if let Work::Train { training, .. } = &mut endless.work {
        training.local_epochs = u32::MAX;
    }
    setup.send(&endless, "client-000").await;
    // The endless one is taken off the stream first, or this would replace it.
    tokio::time::sleep(Duration::from_secs(1)).await;
    setup.send(&setup.task(3, "client-000", train()), "client-000").await;
    assert_eq!(next(&mut updates).await.round, 3);
}

#[tokio::test]
async fn damaged_artifacts_are_fetched_again() {
    let setup = Setup::new().await;
    let mut updates = setup.updates().await;
    for round in 1..=2 {
        let mut worker = setup.worker(&["--clients", "1"]);
        setup.present("client-000").await;
        setup.send(&setup.task(round, "client-000", train()), "client-000").await;
        let update = next(&mut updates).await.update.unwrap();
        assert!(matches!(update.outcome, Outcome::Trained { .. }), "{:?}", update.outcome);
        assert!(!update.fetched.is_empty());
        worker.kill().await.unwrap();
        for blob in std::fs::read_dir(setup.cache().join("blobs")).unwrap().flatten() {
            let mut bytes = std::fs::read(blob.path()).unwrap();
            bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1);
            std::fs::write(blob.path(), bytes).unwrap();
        }
    }
}

#[tokio::test]
async fn tasks_of_the_past_are_skipped() {
    let setup = Setup::new().await;
    let _worker = setup.worker(&["--clients", "1"]);
    setup.present("client-000").await;
    let mut updates = setup.updates().await;
    for (epoch, round, answered) in [(2, 5, true), (1, 6, false), (2, 4, false), (2, 6, true)] {
        let mut task = setup.task(round, "client-000", train());
        (task.epoch, task.task) = (epoch, format!("{epoch}/{round}"));
        setup.send(&task, "client-000").await;
        if answered {
            let delivery = next(&mut updates).await;
            assert_eq!((delivery.round, delivery.update.unwrap().epoch), (round, epoch));
        } else {
            // It is taken off the stream first, or the next would replace it.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test]
async fn sigterm_finishes_the_task_and_leaves() {
    let setup = Setup::new().await;
    let mut worker = setup.worker(&["--clients", "2"]);
    setup.present("client-001").await;
    let mut updates = setup.updates().await;
    setup.send(&setup.task(1, "client-000", train()), "client-000").await;
    next(&mut updates).await;
    terminate(&worker);
    assert!(within(worker.wait()).await.unwrap().success());
    let clients = setup.bus.clients().await.unwrap();
    assert!(clients.keys("").await.unwrap().is_empty());
}

#[tokio::test]
async fn tasks_that_sigterm_cuts_off_are_done_by_the_next_process() {
    let setup = Setup::new().await;
    let mut worker = setup.worker(&["--clients", "2", "--drain-seconds", "0"]);
    setup.present("client-001").await;
    let mut updates = setup.updates().await;
    let mut endless = setup.task(1, "client-000", train());
    if let Work::Train { training, .. } = &mut endless.work {
        training.local_epochs = u32::MAX;
    }
    setup.send(&endless, "client-000").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // This one waits for its turn, which never comes here.
    setup.send(&setup.task(1, "client-001", train()), "client-001").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    terminate(&worker);
    assert!(within(worker.wait()).await.unwrap().success());
    let _worker = setup.worker(&["--client", "client-001", "--first", "1"]);
    let delivery = next(&mut updates).await;
    assert_eq!(delivery.client.as_str(), "client-001");
    assert!(matches!(delivery.update.unwrap().outcome, Outcome::Trained { .. }));
}

pub fn terminate(worker: &tokio::process::Child) {
    let pid = worker.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
}
