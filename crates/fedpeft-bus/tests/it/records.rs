use std::time::Duration;

use fedpeft_bus::{Bus, BusConfig, BusError, Change, Lease, Records};
use fedpeft_protocol::{Digest, ModelName, PROTOCOL_VERSION, model::ModelVersion, round::RoundReport};
use fedpeft_testkit::{NatsServer, Proxy, Way};
use futures::TryStreamExt;

fn lease(owner: &str) -> Lease {
    Lease { owner: owner.into() }
}

fn keys(entries: &[fedpeft_bus::Entry<Lease>]) -> Vec<&str> {
    entries.iter().map(|entry| entry.key.as_str()).collect()
}

async fn records() -> (NatsServer, Records<Lease>) {
    let server = NatsServer::start().await;
    let records = server.bus().await.leases().await.unwrap();
    (server, records)
}

#[tokio::test]
async fn compare_and_set_lets_one_writer_win() {
    let (_server, records) = records().await;
    assert_eq!(records.get("run").await.unwrap(), None);
    let first = records.create("run", &lease("a")).await.unwrap();
    assert!(records.create("run", &lease("b")).await.unwrap_err().is_conflict());
    assert!(records.create("run", &lease("a")).await.unwrap_err().is_conflict());
    let second = records.update("run", &lease("b"), first).await.unwrap();
    assert!(records.update("run", &lease("c"), first).await.unwrap_err().is_conflict());
    assert!(records.update("absent", &lease("c"), first).await.unwrap_err().is_conflict());
    assert_eq!(records.get("run").await.unwrap(), Some((lease("b"), second)));
    records.delete("run").await.unwrap();
    records.delete("run").await.unwrap();
    assert_eq!(records.get("run").await.unwrap(), None);
    assert!(records.update("run", &lease("c"), second).await.unwrap_err().is_conflict());
    assert!(records.create("run", &lease("d")).await.unwrap() > second);
}

#[tokio::test]
async fn who_renews_learns_whether_somebody_else_wrote() {
    let (_server, records) = records().await;
    let (first, was_ours) = records.renew("run", &lease("a"), 0).await.unwrap();
    assert!(was_ours);
    let (second, was_ours) = records.renew("run", &lease("a"), first).await.unwrap();
    assert!(was_ours && second > first);
    let (other, was_ours) = records.renew("run", &lease("b"), 0).await.unwrap();
    assert!(!was_ours);
    let (third, was_ours) = records.renew("run", &lease("a"), second).await.unwrap();
    assert!(!was_ours && third > other);
    assert_eq!(records.get("run").await.unwrap(), Some((lease("a"), third)));
}

#[tokio::test]
async fn of_many_concurrent_writers_exactly_one_wins() {
    let (_server, records) = records().await;
    let revision = records.create("run", &lease("start")).await.unwrap();
    let writers = (0..16).map(|index| {
        let records = records.clone();
        tokio::spawn(async move { records.update("run", &lease(&format!("w{index}")), revision).await })
    });
    let results = futures::future::join_all(writers).await;
    let won = results.into_iter().filter(|result| result.as_ref().unwrap().is_ok()).count();
    assert_eq!(won, 1);
}

#[tokio::test]
async fn listing_is_by_prefix_in_order_and_skips_the_deleted() {
    let (_server, records) = records().await;
    assert!(records.list("").await.unwrap().is_empty());
    for key in ["r1", "r10.1", "r1.2", "r1.10", "r1.9", "r2"] {
        records.put(key, &lease(key)).await.unwrap();
    }
    records.delete("r1.9").await.unwrap();
    assert_eq!(keys(&records.list("r1").await.unwrap()), ["r1.10", "r1.2"]);
    assert_eq!(keys(&records.list_top().await.unwrap()), ["r1", "r2"]);
    assert_eq!(records.keys("").await.unwrap(), ["r1", "r1.10", "r1.2", "r10.1", "r2"]);
    assert!(matches!(records.get("a b").await, Err(BusError::Key { .. })));
    assert!(matches!(records.list("*").await, Err(BusError::Key { .. })));
}

#[tokio::test]
async fn long_lists_come_whole() {
    let (_server, records) = records().await;
    for index in 0..600 {
        records.put(&format!("k{index:03}"), &lease("x")).await.unwrap();
    }
    assert_eq!(records.list("").await.unwrap().len(), 600);
    assert_eq!(records.keys("").await.unwrap().len(), 600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_whose_connection_is_cut_comes_whole() {
    let server = NatsServer::start().await;
    let models = server.bus().await.models().await.unwrap();
    let version = |number| ModelVersion {
        version: PROTOCOL_VERSION,
        name: ModelName::new("m").unwrap(),
        number,
        method: "x".repeat(200),
        manifest: Digest::of(b"m"),
        files: vec![],
        published_ms: 0,
    };
    for number in 100..600 {
        models.put(&format!("m.{number}"), &version(number)).await.unwrap();
    }
    let proxy = Proxy::start(&server.url()).await;
    let config = BusConfig { server: proxy.url(), name: "far".into(), ..Default::default() };
    let bus = Bus::connect(&config).await.unwrap();
    let models = bus.models().await.unwrap();
    let before = proxy.passed(Way::Down);
    assert_eq!(models.list("").await.unwrap().len(), 500);
    let whole = proxy.passed(Way::Down) - before;
    assert!(whole > 100_000);
    // In the answer to the first request, between two messages, in the last of them.
    for bytes in [50, 2_000, whole / 4, whole / 2, whole * 3 / 4, whole - 2_000, whole - 700] {
        proxy.cut_after(Way::Down, bytes);
        let listed = tokio::time::timeout(Duration::from_secs(60), models.list("")).await;
        let listed = listed.unwrap_or_else(|_| panic!("hangs when cut after {bytes} of {whole} bytes"));
        assert_eq!(listed.unwrap().len(), 500, "cut after {bytes} of {whole} bytes");
    }
}

#[tokio::test]
async fn a_watch_begins_with_what_is_there_and_survives_the_broker() {
    let (mut server, records) = records().await;
    records.put("a", &lease("1")).await.unwrap();
    records.put("a", &lease("2")).await.unwrap();
    let mut watch = records.watch("").await.unwrap();
    let put = |change: Change<Lease>| match change {
        Change::Put(entry) => (entry.key, entry.value.owner),
        Change::Deleted(key) => panic!("{key} was deleted"),
    };
    assert_eq!(put(watch.next().await), ("a".into(), "2".into()));
    server.restart().await;
    records.put("b", &lease("3")).await.unwrap();
    assert_eq!(put(watch.next().await), ("b".into(), "3".into()));
    records.delete("a").await.unwrap();
    assert_eq!(watch.next().await, Change::Deleted("a".into()));
}

#[tokio::test]
async fn reading_waits_for_a_broker_that_comes_back() {
    let (mut server, records) = records().await;
    let revision = records.create("run", &lease("a")).await.unwrap();
    server.crash().await;
    let reading = {
        let records = records.clone();
        tokio::spawn(async move { records.get("run").await })
    };
    let writing = {
        let records = records.clone();
        tokio::spawn(async move { records.update("run", &lease("b"), revision).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    server.resume().await;
    assert!(reading.await.unwrap().unwrap().is_some());
    writing.await.unwrap().unwrap();
    assert_eq!(records.get("run").await.unwrap().unwrap().0, lease("b"));
}

/// A report that is too large for a message of this broker, and another of the same key.
fn report(clients: usize, seconds: f64) -> RoundReport {
    let client = |number: usize| {
        serde_json::json!({
            "client": format!("c{number:05}"), "outcome": "dropped", "examples": 0, "bytes_up": 0, "bytes_down": 300,
            "loss": null, "train_seconds": 0.0,
        })
    };
    let adapter = Digest::of("adapter").to_string();
    serde_json::from_value(serde_json::json!({
        "round": 1, "loss": null, "accuracy": null, "train_loss": 0.5, "bytes_up": 1, "bytes_down": 2,
        "bytes_by_kind": {}, "clients": (0..clients).map(client).collect::<Vec<_>>(),
        "seconds": {"select": 0.0, "broadcast": 0.0, "train": 0.0, "collect": 0.0, "aggregate": 0.0, "evaluate": 0.0,
            "total": seconds},
        "adapter": adapter,
    }))
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_do_not_fit_a_message_lie_in_blobs() {
    let server = NatsServer::start_with_config("max_payload: 192KB").await;
    let bus = server.bus().await;
    let reports = bus.round_reports().await.unwrap();
    let blobs = async || {
        let client = async_nats::connect(server.url()).await.unwrap();
        let store = async_nats::jetstream::new(client).get_object_store("fedpeft-blobs").await.unwrap();
        store.list().await.unwrap().try_collect::<Vec<_>>().await.unwrap().len()
    };
    let mut watch = reports.watch("r").await.unwrap();
    let (large, larger, small) = (report(3000, 1.0), report(4000, 2.0), report(3, 3.0));
    let first = reports.create("r.1", &large).await.unwrap();
    assert!(reports.create("r.1", &larger).await.unwrap_err().is_conflict());
    assert_eq!(reports.get("r.1").await.unwrap(), Some((large.clone(), first)));
    assert!(matches!(watch.next().await, Change::Put(entry) if entry.value == large));
    reports.create("r.2", &small).await.unwrap();
    let listed = reports.list("r").await.unwrap();
    assert_eq!(listed.iter().map(|entry| entry.value.clients.len()).collect::<Vec<_>>(), [3000, 3]);
    // Another handle knows what it has read.
    let other = bus.round_reports().await.unwrap();
    let (_, found) = other.get("r.1").await.unwrap().unwrap();
    let before = blobs().await;
    let second = other.update("r.1", &larger, found).await.unwrap();
    assert_eq!(blobs().await, before, "one came, one went");
    assert!(reports.update("r.1", &small, first).await.unwrap_err().is_conflict());
    assert_eq!(reports.get("r.1").await.unwrap(), Some((larger, second)));
    let third = reports.update("r.1", &small, second).await.unwrap();
    assert_eq!(reports.get("r.1").await.unwrap(), Some((small, third)));
    assert_eq!(blobs().await, before - 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_shows_each_record_once_however_often_they_are_replaced() {
    let (_server, records) = records().await;
    let keys = ["a", "b", "c.1"];
    for key in keys {
        records.put(key, &lease("first")).await.unwrap();
    }
    let writers: Vec<_> = keys
        .map(|key| {
            let records = records.clone();
            tokio::spawn(async move {
                for turn in 0.. {
                    records.put(key, &lease(&turn.to_string())).await.unwrap();
                }
            })
        })
        .into_iter()
        .collect();
    for _ in 0..300 {
        assert_eq!(self::keys(&records.list("").await.unwrap()), keys);
        assert_eq!(records.keys("").await.unwrap(), keys);
        assert_eq!(self::keys(&records.list_top().await.unwrap()), ["a", "b"]);
        assert_eq!(records.list_as("c", |entry| entry.key).await.unwrap(), ["c.1"]);
    }
    for writer in writers {
        writer.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_many_records_is_whole_while_they_are_replaced() {
    let (_server, records) = records().await;
    let mut keys: Vec<_> = (0..1200).map(|number| format!("k{number:04}")).collect();
    for key in &keys {
        records.put(key, &lease("first")).await.unwrap();
    }
    let writers: Vec<_> = (0..3)
        .map(|part| {
            let (records, own) =
                (records.clone(), keys.iter().skip(part).step_by(3).cloned().collect::<Vec<_>>());
            tokio::spawn(async move {
                for key in own.iter().cycle() {
                    records.put(key, &lease("again")).await.unwrap();
                }
            })
        })
        .collect();
    for _ in 0..20 {
        assert_eq!(records.keys("").await.unwrap(), keys);
    }
    for writer in writers {
        writer.abort();
        let _ = writer.await;
    }
    // What is gone is in no list, though its place is.
    records.delete(&keys.remove(7)).await.unwrap();
    assert_eq!(records.keys("").await.unwrap(), keys);
}
