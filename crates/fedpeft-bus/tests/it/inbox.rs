//! Tasks, from the aggregator to their client.

use std::time::Duration;

use async_nats::jetstream::stream;
use fedpeft_bus::{Bus, BusConfig, BusError, TaskDelivery, Tasks};
use fedpeft_protocol::subject;
use fedpeft_testkit::{NatsServer, Proxy, Way};
use tokio::time::timeout;

use crate::{client_id, run_id, task, update};

const PATIENCE: Duration = Duration::from_secs(20);

async fn next(tasks: &mut Tasks) -> TaskDelivery {
    timeout(PATIENCE, tasks.next()).await.expect("a task comes in time").unwrap()
}

async fn round(tasks: &mut Tasks) -> u32 {
    next(tasks).await.result.unwrap().round
}

async fn nothing_comes(tasks: &mut Tasks) {
    assert!(timeout(Duration::from_millis(1500), tasks.next()).await.is_err());
}

#[tokio::test]
async fn a_task_arrives_as_sent_and_is_measured_alike_on_both_sides() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let (run, client) = (run_id("r"), client_id("c"));
    let mut tasks = bus.tasks(&client).await.unwrap();
    let sent = bus.publish_task(&task(&run, 1), &client).await.unwrap();
    let delivery = next(&mut tasks).await;
    assert_eq!(delivery.result.as_ref().unwrap(), &task(&run, 1));
    assert_eq!((delivery.measured, delivery.was_found), (sent, false));
    assert!(sent.payload > 4 && sent.total > sent.payload);
}

#[tokio::test]
async fn a_newer_task_replaces_the_older_one_and_other_clients_see_none() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let (run, client) = (run_id("r"), client_id("c"));
    for round in 1..=3 {
        bus.publish_task(&task(&run, round), &client).await.unwrap();
    }
    bus.publish_task(&task(&run, 9), &client_id("other")).await.unwrap();
    let mut tasks = bus.tasks(&client).await.unwrap();
    let delivery = next(&mut tasks).await;
    assert_eq!((delivery.result.unwrap().round, delivery.was_found), (3, true));
    nothing_comes(&mut tasks).await;
}

#[tokio::test]
async fn tasks_of_several_runs_are_open_at_once() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let client = client_id("c");
    let mut listening = bus.tasks(&client).await.unwrap();
    for run in ["a", "b", "c"] {
        bus.publish_task(&task(&run_id(run), 1), &client).await.unwrap();
    }
    for tasks in [&mut listening, &mut bus.tasks(&client).await.unwrap()] {
        let mut runs = Vec::new();
        for _ in 0..3 {
            runs.push(next(tasks).await.result.unwrap().run.to_string());
        }
        runs.sort();
        assert_eq!(runs, ["a", "b", "c"]);
    }
}

#[tokio::test]
async fn a_task_that_is_put_back_comes_again_and_one_that_is_not_does_not() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let (run, client) = (run_id("r"), client_id("c"));
    let mut tasks = bus.tasks(&client).await.unwrap();
    bus.publish_task(&task(&run, 1), &client).await.unwrap();
    let first = next(&mut tasks).await;
    first.retry(Duration::from_millis(10));
    let again = next(&mut tasks).await;
    assert_eq!((again.sequence, again.was_found), (first.sequence, true));
    // It is still stored, and known.
    server.restart().await;
    nothing_comes(&mut tasks).await;
    again.retry(Duration::from_secs(1));
    bus.publish_task(&task(&run, 2), &client).await.unwrap();
    assert_eq!(round(&mut tasks).await, 2);
    // What was put back is not the newest any more.
    nothing_comes(&mut tasks).await;
}

#[tokio::test]
async fn the_next_process_of_a_client_finds_its_task_and_whether_it_is_answered() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let (run, client) = (run_id("r"), client_id("c"));
    bus.publish_task(&task(&run, 1), &client).await.unwrap();
    for answered in [false, true] {
        let mut tasks = bus.tasks(&client).await.unwrap();
        let delivery = next(&mut tasks).await;
        assert!(delivery.was_found);
        let task = delivery.result.unwrap();
        assert_eq!(bus.is_answered(&task, &client).await.unwrap(), answered);
        bus.publish_update(&run, 1, &client, &update(&task.task, 8)).await.unwrap();
    }
    let other = fedpeft_protocol::round::Task { task: "task".into(), ..task(&run, 1) };
    assert!(
        !bus.is_answered(&other, &client).await.unwrap(),
        "its name only begins as that of the answered one"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_was_sent_while_the_client_was_cut_off_is_found() {
    let server = NatsServer::start().await;
    let direct = server.bus().await;
    let proxy = Proxy::start(&server.url()).await;
    let config = BusConfig { server: proxy.url(), name: "test".into(), ..Default::default() };
    let bus = Bus::connect(&config).await.unwrap();
    let (run, client) = (run_id("r"), client_id("c"));
    let mut tasks = bus.tasks(&client).await.unwrap();
    // The hint does not come through.
    proxy.cut_after(Way::Down, 1);
    direct.publish_task(&task(&run, 1), &client).await.unwrap();
    assert_eq!(round(&mut tasks).await, 1);
    direct.publish_task(&task(&run, 2), &client).await.unwrap();
    assert_eq!(round(&mut tasks).await, 2);
}

#[tokio::test]
async fn a_broker_that_crashes_loses_no_task() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    let (run, client) = (run_id("r"), client_id("c"));
    let mut tasks = bus.tasks(&client).await.unwrap();
    server.crash().await;
    let late = {
        let (bus, run, client) = (bus.clone(), run.clone(), client.clone());
        tokio::spawn(async move { bus.publish_task(&task(&run, 1), &client).await })
    };
    server.resume().await;
    late.await.unwrap().unwrap();
    assert_eq!(round(&mut tasks).await, 1);
    nothing_comes(&mut tasks).await;
}

/// A stream like ours that gives no hints.
async fn without_hints(server: &NatsServer) {
    let jetstream = async_nats::jetstream::new(async_nats::connect(server.url()).await.unwrap());
    let config = stream::Config {
        name: subject::TASK_STREAM.into(),
        subjects: vec![subject::TASK_SUBJECTS.into()],
        max_messages_per_subject: 1,
        allow_direct: true,
        ..Default::default()
    };
    jetstream.delete_stream(subject::TASK_STREAM).await.unwrap();
    jetstream.create_stream(config).await.unwrap();
}

#[tokio::test]
async fn a_lost_hint_and_a_lie_cost_time_and_nothing_else() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    without_hints(&server).await;
    let (run, client) = (run_id("r"), client_id("c"));
    let mut tasks = bus.tasks(&client).await.unwrap();
    bus.publish_task(&task(&run, 1), &client).await.unwrap();
    nothing_comes(&mut tasks).await;
    let stranger = async_nats::connect(server.url()).await.unwrap();
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Nats-Sequence", "77");
    for name in ["no-such-run", "r"] {
        let hint = format!("fedpeft.v1.hint.c.{name}");
        stranger.publish_with_headers(hint, headers.clone(), "".into()).await.unwrap();
    }
    stranger.publish("fedpeft.v1.hint.c.r", "?".into()).await.unwrap();
    let delivery = next(&mut tasks).await;
    assert_eq!((delivery.result.unwrap().round, delivery.was_found), (1, true));
    nothing_comes(&mut tasks).await;
    // Who makes the streams says so.
    let error = bus.ensure_topology().await.unwrap_err();
    assert!(matches!(&error, BusError::UnfitStream { .. }), "{error}");
    assert!(error.to_string().contains("nats stream rm FEDPEFT_OPEN_TASKS"), "{error}");
}

#[tokio::test]
async fn purged_tasks_are_not_delivered() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    let (client, later) = (client_id("c"), client_id("later"));
    bus.publish_task(&task(&run_id("gone"), 1), &client).await.unwrap();
    bus.publish_task(&task(&run_id("kept"), 1), &client).await.unwrap();
    let mark = bus.task_mark().await.unwrap();
    bus.publish_task(&task(&run_id("gone"), 2), &later).await.unwrap();
    bus.purge_tasks(&run_id("gone"), mark).await.unwrap();
    assert_eq!(round(&mut bus.tasks(&later).await.unwrap()).await, 2, "it came after the mark");
    let mut tasks = bus.tasks(&client).await.unwrap();
    assert_eq!(next(&mut tasks).await.result.unwrap().run, run_id("kept"));
    bus.purge_task(&run_id("kept"), &client, bus.task_mark().await.unwrap()).await.unwrap();
    nothing_comes(&mut bus.tasks(&client).await.unwrap()).await;
}
