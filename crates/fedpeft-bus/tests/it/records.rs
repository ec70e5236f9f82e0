use std::time::Duration;

use fedpeft_bus::{Bus, BusConfig, BusError, Change, Lease, Records};
use fedpeft_protocol::{Digest, ModelName, PROTOCOL_VERSION, model::ModelVersion};
use fedpeft_testkit::{NatsServer, Proxy, Way};

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
