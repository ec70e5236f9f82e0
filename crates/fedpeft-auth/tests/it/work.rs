//! What each role is there for works through the bus.

use fedpeft_bus::BusError;
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION, RunId,
    event::{Event, EventKind},
    presence::{Capabilities, Presence},
    round::{Outcome, Payload, Task, Update, Work},
};

use crate::world::{World, client_id};

fn run() -> RunId {
    RunId::new("r").unwrap()
}

pub fn task() -> Task {
    Task {
        version: PROTOCOL_VERSION,
        run: run(),
        round: 1,
        epoch: 1,
        task: "t".into(),
        manifest: Digest::of(b"m"),
        adapter: Payload::inline(vec![1; 4]),
        work: Work::Evaluate,
        deadline_ms: 1,
        downlink: Default::default(),
        residual: None,
        lifetime_ms: 1,
    }
}

pub fn update(byte: u8) -> Update {
    let adapter = Payload::inline(vec![byte; 8]);
    let outcome = Outcome::Trained {
        examples: 1,
        steps: 1,
        loss: 0.5,
        seconds: 0.1,
        adapter,
        personal: None,
        control: None,
        epsilon: None,
    };
    Update { version: PROTOCOL_VERSION, epoch: 1, task: "t".into(), outcome, fetched: vec![] }
}

pub fn presence(client: &str) -> Presence {
    let capabilities = Capabilities {
        trains: true,
        evaluates: false,
        aggregates: false,
        examples: 1,
        device: "cpu".into(),
        free_memory_mib: None,
        labels: Default::default(),
        identity: None,
    };
    Presence { version: PROTOCOL_VERSION, client: client_id(client), worker: "w".into(), capabilities }
}

#[tokio::test]
async fn a_worker_does_its_work_for_each_of_its_clients() {
    let world = World::new().await;
    let (aggregator, worker) = (world.bus("aggregator").await.unwrap(), world.bus("site").await.unwrap());
    worker.ensure_topology().await.unwrap();
    let artifact = aggregator.put_blob(vec![5; 400_000].into()).await.unwrap().digest;
    assert_eq!(worker.get_blob(&artifact, 1 << 20).await.unwrap().0.len(), 400_000);
    let clients = worker.clients().await.unwrap();
    let mut updates = aggregator.updates(&run()).await.unwrap();
    for name in ["c", "d"] {
        let client = client_id(name);
        let (first, was_first) = clients.renew(name, &presence(name), 0).await.unwrap();
        assert!(was_first && clients.renew(name, &presence(name), first).await.unwrap().1);
        // Another process of this client would do so.
        assert!(!clients.renew(name, &presence(name), 0).await.unwrap().1);
        let mut tasks = worker.tasks(&client).await.unwrap();
        aggregator.publish_task(&task(), &client).await.unwrap();
        assert!(aggregator.stored_tasks(&run()).await.unwrap()[&client].is(&task(), &client));
        let delivery = tasks.next().await.unwrap();
        assert_eq!(delivery.result.as_ref().unwrap().task, "t");
        worker.publish_update(&run(), 1, &client, &update(1)).await.unwrap();
        assert!(worker.is_answered(&task(), &client).await.unwrap());
        assert!(!worker.is_answered(&Task { round: 2, ..task() }, &client).await.unwrap());
        // Whose update it is, the subject says, which the broker guards; the body has no say in it.
        assert_eq!(updates.next().await.client, client);
    }
    let present = aggregator.clients().await.unwrap().list("").await.unwrap();
    assert_eq!(present.iter().map(|entry| entry.key.as_str()).collect::<Vec<_>>(), ["c", "d"]);
    clients.delete("c").await.unwrap();
    assert_eq!(aggregator.clients().await.unwrap().keys("").await.unwrap(), ["d"]);
}

#[tokio::test]
async fn a_worker_that_speaks_for_another_is_told_so_at_once() {
    let world = World::new().await;
    let worker = world.bus("a").await.unwrap();
    let error = worker.publish_update(&run(), 1, &client_id("B"), &update(1)).await.unwrap_err();
    assert!(matches!(error, BusError::Forbidden { .. }), "{error:?}");
    assert!(error.to_string().contains("update of client B"), "{error}");
}

#[tokio::test]
async fn events_reach_the_exporter_and_the_admin() {
    let world = World::new().await;
    let aggregator = world.bus("aggregator").await.unwrap();
    let kind = EventKind::Waiting { present: 1, needed: 2 };
    let event = Event { version: PROTOCOL_VERSION, run: run(), epoch: 1, at_ms: 5, kind };
    aggregator.publish_event(&event).await.unwrap();
    for name in ["exporter", "admin"] {
        let bus = world.bus(name).await.unwrap();
        bus.ensure_topology().await.unwrap();
        assert_eq!(bus.events(None, true).await.unwrap().next().await.unwrap(), event, "{name}");
        let error = bus.publish_event(&event).await.unwrap_err();
        assert!(matches!(error, BusError::Forbidden { .. }), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn services_answer_the_admin_and_nobody_else_may_ask() {
    let world = World::new().await;
    let aggregator = world.bus("aggregator").await.unwrap();
    let mut service = aggregator.service("fedpeft-aggregator", "test").await.unwrap();
    service.endpoint("runs.list", async |(): ()| Ok("none".to_owned())).await.unwrap();
    let admin = world.bus("admin").await.unwrap();
    assert_eq!(admin.request::<_, String>("runs.list", &()).await.unwrap(), "none");
    for name in ["a", "registry", "exporter"] {
        let error = world.bus(name).await.unwrap().request::<_, String>("runs.list", &()).await.unwrap_err();
        assert!(matches!(error, BusError::Forbidden { .. }), "{name}: {error:?}");
    }
}

#[tokio::test]
async fn whoever_comes_before_the_services_is_told_who_makes_the_streams() {
    let world = World::new().await;
    // Another federation, whose services have not been there yet.
    let folder = tempfile::tempdir().unwrap();
    let settings = crate::world::settings(folder.path());
    let mut authority = fedpeft_auth::Authority::init(&folder.path().join("auth"), settings, false).unwrap();
    authority.enrol(&crate::world::enrolment("a", &["a"], None), false).unwrap();
    let nats = fedpeft_testkit::NatsServer::start_with_file(&authority.server_config()).await;
    let early = World { authority, nats, folder };
    for name in ["a", "exporter"] {
        let error = early.bus(name).await.unwrap().ensure_topology().await.unwrap_err();
        assert!(matches!(error, BusError::NoTopology { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains("fedpeft-registry"), "{error}");
    }
    // And credentials of one federation are worth nothing in another.
    let error = early.bus_with(&world.authority.creds("admin")).await.err().unwrap();
    assert!(matches!(error, BusError::Refused { .. }), "{error:?}");
}
