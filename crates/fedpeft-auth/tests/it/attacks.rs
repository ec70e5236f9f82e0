//! What a client could try within its permissions, and what comes of it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_nats::{HeaderMap, header::NATS_SEQUENCE};
use bytes::Bytes;
use fedpeft_bus::UploadKey;
use fedpeft_protocol::{Digest, RunId, round::Task, subject, wire::Format};
use futures::StreamExt;

use crate::{
    work::{presence, task, update},
    world::{PATIENCE, Person, World, client_id},
};

fn run() -> RunId {
    RunId::new("r").unwrap()
}

/// The broker replies to whatever subject a request names. Within one account that writes anywhere.
#[tokio::test]
async fn replies_to_a_client_reach_no_subject_but_its_own() {
    let world = World::new().await;
    let aggregator = world.bus("aggregator").await.unwrap();
    let blob = aggregator.put_blob(Bytes::from_static(b"public")).await.unwrap().digest;
    let (runs, mut updates) = (aggregator.runs().await.unwrap(), aggregator.updates(&run()).await.unwrap());
    let attacker = world.person("a").await;
    let wanted = [
        "$KV.fedpeft-runs.r".to_owned(),
        subject::update(&run(), 1, &client_id("B")),
        format!("{}.$KV.fedpeft-clients.B", subject::CLIENT_API),
        "$KV.fedpeft-clients.B".to_owned(),
        "fedpeft.v1.task.B.r".to_owned(),
        "fedpeft.v1.api.runs.cancel".to_owned(),
        "$JS.API.STREAM.DELETE.FEDPEFT_OPEN_TASKS".to_owned(),
    ];
    let mut requests =
        world.person("aggregator").await.client.subscribe("fedpeft.v1.api.runs.>").await.unwrap();
    let own = subject::update(&run(), 1, &client_id("a"));
    let read = format!("{}.DIRECT.GET.OBJ_fedpeft-blobs.$O.fedpeft-blobs.M.{blob}", subject::CLIENT_API);
    let info = format!("{}.STREAM.INFO.FEDPEFT_OPEN_TASKS", subject::CLIENT_API);
    for reply in &wanted {
        for request in [&own, &read, &info] {
            attacker.client.publish_with_reply(request.clone(), reply.clone(), "".into()).await.unwrap();
        }
    }
    // An honest update of B comes after all of that was done.
    world.bus("a").await.unwrap().publish_update(&run(), 2, &client_id("a"), &update(1)).await.unwrap();
    world.bus("B").await.unwrap().publish_update(&run(), 1, &client_id("B"), &update(7)).await.unwrap();
    let mut of_b = Vec::new();
    loop {
        let delivery = updates.next().await;
        if delivery.client == client_id("B") {
            of_b.push(delivery.update.is_ok());
        }
        if !of_b.is_empty() && updates.pending() == 0 {
            break;
        }
    }
    assert_eq!(of_b, [true], "B's update is not alone");
    assert!(runs.keys("").await.unwrap().is_empty(), "a client wrote a run record");
    assert!(
        aggregator.clients().await.unwrap().keys("").await.unwrap().is_empty(),
        "a client wrote presence"
    );
    let tasks = world.person("aggregator").await.stream("FEDPEFT_OPEN_TASKS").await;
    assert_eq!(tasks["state"]["messages"], 0, "a client wrote a task: {tasks}");
    let request = tokio::time::timeout(Duration::from_millis(100), requests.next()).await;
    assert!(request.is_err(), "a client commanded the aggregator: {request:?}");
}

/// A rollup header would have the broker drop all other messages of a stream that allows it.
#[tokio::test]
async fn a_client_cannot_roll_up_what_others_wrote() {
    let world = World::new().await;
    world.bus("B").await.unwrap().clients().await.unwrap().put("B", &presence("B")).await.unwrap();
    let (victim, run) = (client_id("B"), run());
    world.bus("B").await.unwrap().publish_update(&run, 1, &victim, &update(7)).await.unwrap();
    let (key, upload) = (UploadKey { run: &run, round: 1, client: &victim }, Bytes::from(vec![3; 300_000]));
    world.bus("B").await.unwrap().put_upload(key, upload.clone()).await.unwrap();
    let attacker = world.person("a").await;
    for subject in [
        format!("{}.$KV.fedpeft-clients.a", subject::CLIENT_API),
        subject::update(&run, 1, &client_id("a")),
        "$O.fedpeft-uploads.C.a.x".to_owned(),
        "$O.fedpeft-uploads.M.a.x".to_owned(),
    ] {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_ROLLUP, "all");
        let reply = attacker.client.request_with_headers(subject, headers, "x".into()).await.unwrap();
        let text = String::from_utf8_lossy(&reply.payload).into_owned();
        assert!(text.contains("error"), "{text}");
    }
    let aggregator = world.bus("aggregator").await.unwrap();
    assert_eq!(aggregator.clients().await.unwrap().keys("").await.unwrap(), ["B"]);
    assert_eq!(aggregator.updates(&run).await.unwrap().next().await.client, victim);
    let file = tempfile::tempfile().unwrap();
    aggregator.get_upload(key, &Digest::of(&upload), upload.len() as u64, file).await.unwrap();
}

/// The broker drops a message whose deduplication id it has seen, whoever used it first.
#[tokio::test]
async fn a_client_cannot_use_up_the_deduplication_id_of_another() {
    let world = World::new().await;
    let attacker = world.person("a").await;
    let (victim, own) = (client_id("B"), subject::update(&run(), 1, &client_id("a")));
    // What it can know beforehand: everything but the bytes that B is going to send.
    let known = format!("{}/t", subject::update_id(&run(), 1, &victim));
    for id in [known.clone(), format!("{known}/"), format!("{known}/{}", Digest::of(b"guess"))] {
        let mut headers = HeaderMap::new();
        headers.insert(async_nats::header::NATS_MESSAGE_ID, id.as_str());
        attacker.client.request_with_headers(own.clone(), headers, "x".into()).await.unwrap();
    }
    world.bus("B").await.unwrap().publish_update(&run(), 1, &victim, &update(7)).await.unwrap();
    let aggregator = world.bus("aggregator").await.unwrap();
    let mut updates = aggregator.updates(&run()).await.unwrap();
    loop {
        let delivery = updates.next().await;
        if delivery.client == victim {
            return assert!(delivery.update.is_ok());
        }
        assert!(updates.pending() > 0, "B's update is not there");
    }
}

/// A push consumer delivers wherever its maker says, and so do its heartbeats.
async fn deliver(attacker: &Person, name: &str, target: &str) {
    let config = serde_json::json!({"stream_name": "OBJ_fedpeft-blobs", "action": "", "config": {
        "name": name, "filter_subject": "$O.fedpeft-blobs.>", "deliver_subject": target, "ack_policy": "none",
        "idle_heartbeat": 100_000_000, "flow_control": true}});
    let create =
        format!("{}.CONSUMER.CREATE.OBJ_fedpeft-blobs.{name}.$O.fedpeft-blobs.>", subject::CLIENT_API);
    let reply = attacker.client.request(create, config.to_string().into()).await.unwrap();
    let text = String::from_utf8_lossy(&reply.payload).into_owned();
    assert!(text.contains("deliver_subject"), "the attempt is not what it should be: {text}");
}

#[tokio::test]
async fn a_consumer_of_a_client_writes_no_record_no_task_and_no_update() {
    let world = World::new().await;
    let aggregator = world.bus("aggregator").await.unwrap();
    aggregator.put_blob(vec![1; 300_000].into()).await.unwrap();
    world.bus("B").await.unwrap().publish_update(&run(), 1, &client_id("B"), &update(7)).await.unwrap();
    let attacker = world.person("a").await;
    for (name, target) in [
        ("x", "$KV.fedpeft-runs.r"),
        ("y", "fedpeft.v1.update.r.1.B"),
        ("z", "fedpeft.v1.task.B.r"),
        ("w", "$KV.fedpeft-clients.B"),
        ("v", "$JS.API.STREAM.PURGE.FEDPEFT_UPDATES"),
    ] {
        deliver(&attacker, name, target).await;
    }
    // Long enough for many heartbeats.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let witness = world.person("aggregator").await;
    for (stream, stored) in
        [("KV_fedpeft-runs", 0), ("FEDPEFT_UPDATES", 1), ("FEDPEFT_OPEN_TASKS", 0), ("KV_fedpeft-clients", 0)]
    {
        let state = &witness.stream(stream).await["state"];
        assert_eq!(
            (&state["last_seq"], &state["messages"]),
            (&stored.into(), &stored.into()),
            "{stream}: {state}"
        );
    }
}

#[tokio::test]
async fn a_consumer_of_a_client_commands_no_service() {
    let world = World::new().await;
    let aggregator = world.bus("aggregator").await.unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let mut service = aggregator.service("fedpeft-aggregator", "test").await.unwrap();
    let noted = asked.clone();
    let handler = move |run: String| {
        noted.lock().unwrap().push(run);
        std::future::ready(Ok(()))
    };
    service.endpoint("runs.cancel", handler).await.unwrap();
    // A blob that is a request, byte by byte.
    aggregator.put_blob(Format::MessagePack.encode(&"stolen").unwrap().into()).await.unwrap();
    let witness = world.person("aggregator").await;
    let mut seen = witness.client.subscribe("fedpeft.v1.api.runs.cancel").await.unwrap();
    witness.client.flush().await.unwrap();
    deliver(&world.person("a").await, "x", "fedpeft.v1.api.runs.cancel").await;
    // It comes, and heartbeats after it; nobody obeys.
    let arrival = async {
        let (mut bodies, mut heartbeats) = (0, 0);
        while bodies == 0 || heartbeats == 0 {
            let message = seen.next().await.unwrap();
            if message.payload.is_empty() { heartbeats += 1 } else { bodies += 1 }
        }
    };
    tokio::time::timeout(PATIENCE, arrival).await.unwrap();
    let admin = world.bus("admin").await.unwrap();
    admin.request::<_, ()>("runs.cancel", &"meant").await.unwrap();
    assert_eq!(*asked.lock().unwrap(), ["meant"]);
}

/// Clients share an account, and the broker's reply to one may go to the subject at which another waits for hints.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_hints_at_nothing_and_what_it_makes_the_broker_say_hides_no_task() {
    let world = World::new().await;
    let (aggregator, client) = (world.bus("aggregator").await.unwrap(), client_id("B"));
    let attacker = world.person("a").await;
    let hint = |run: &str| format!("fedpeft.v1.hint.B.{run}");
    assert!(!attacker.may_publish(&hint("r")).await && !attacker.may_subscribe(&hint("r")).await);
    // A reply like a hint: with a place in a stream, far behind every task.
    for byte in 0..40 {
        aggregator.put_blob(vec![byte; 10].into()).await.unwrap();
    }
    let read = format!("{}.DIRECT.GET.OBJ_fedpeft-blobs", subject::CLIENT_API);
    let mut seen = world.person("B").await.client.subscribe(subject::hints_of(&client)).await.unwrap();
    let past = r#"{"seq":20,"next_by_subj":">"}"#;
    let flood = tokio::spawn(async move {
        for other in 0.. {
            // Of the run of its next task, and of others.
            for hint in [hint("r"), hint(&format!("x{other}"))] {
                attacker.client.publish_with_reply(read.clone(), hint, past.into()).await.unwrap();
            }
            tokio::task::yield_now().await;
        }
    });
    let forged = tokio::time::timeout(PATIENCE, seen.next()).await.unwrap().unwrap();
    let sequence = forged.headers.unwrap().get(NATS_SEQUENCE).unwrap().as_str().parse::<u64>().unwrap();
    assert!(sequence >= 20, "{sequence}");

    let mut tasks = world.bus("B").await.unwrap().tasks(&client).await.unwrap();
    for round in 1..=3 {
        aggregator.publish_task(&Task { round, ..task() }, &client).await.unwrap();
        let delivery = tokio::time::timeout(PATIENCE, tasks.next()).await.unwrap().unwrap();
        assert_eq!(delivery.result.unwrap().round, round);
    }
    let more = tokio::time::timeout(Duration::from_secs(2), tasks.next()).await;
    assert!(more.is_err(), "a task that nobody sent");
    flood.abort();
}

/// Tags hold the names as they are: upper case is no lower case.
#[tokio::test]
async fn names_differ_by_case() {
    let world = World::new().await;
    let capital = world.person("B").await;
    assert!(capital.may_publish("fedpeft.v1.update.r.1.B").await);
    assert!(!capital.may_publish("fedpeft.v1.update.r.1.b").await);
    let mut inbox = capital.client.subscribe("_INBOX_B.x").await.unwrap();
    assert!(capital.may_subscribe("_INBOX_B.>").await);
    assert!(tokio::time::timeout(Duration::from_millis(10), inbox.next()).await.is_err());
}
