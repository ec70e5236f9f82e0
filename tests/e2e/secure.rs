//! Secure aggregation with real processes.

use fedpeft_protocol::{event::EventKind, secure::SecureStage};
use fedpeft_testkit::NatsServer;
use rustix::process::Signal;
use tokio::time::timeout;

use crate::support::{PATIENCE, Running, Workspace, child, signal, succeed};

const OPTIONS: [&str; 7] =
    ["--secure-aggregation", "--rounds", "1", "--workers", "4", "--stage-deadline", "6"];

#[tokio::test]
async fn a_worker_and_the_aggregator_are_killed_amid_the_stages_and_the_sum_is_the_same() {
    let undisturbed = Workspace::new();
    let told = succeed(undisturbed.simulate(&OPTIONS));
    assert!(told.contains("secure aggregation: sums of 4 updates"), "{told}");

    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let bus = nats.bus().await;
    let (store, log) = (workspace.path("store"), workspace.path("log"));
    let (url, folder) = (nats.url(), store.to_string_lossy().into_owned());
    let options = [&OPTIONS[..], &["--server", &url, "--store", &folder]].concat();
    let mut events = bus.events(None, true).await.unwrap();
    let simulation = Running::start(workspace.simulate(&options), &log);
    let masked = async {
        let is_it = |kind| matches!(kind, EventKind::SecureStageClosed { stage: SecureStage::Mask, .. });
        while !is_it(events.next().await.unwrap().kind) {}
    };
    timeout(PATIENCE, masked).await.unwrap();
    // Its update is in the sum under its own mask, whose seed only the others' shares give.
    signal(child(&store, "worker-4"), Signal::KILL);
    signal(child(&store, "aggregator"), Signal::KILL);
    let ended = simulation.wait();
    let told = std::fs::read_to_string(&log).unwrap();
    assert_eq!(ended, Some(0), "{told}");
    assert!(told.contains("aggregator ended (signal 9) and was started again"), "{told}");

    let (report, calm) = (workspace.report(), undisturbed.report());
    assert_eq!(report["adapter_sha256"], calm["adapter_sha256"]);
    let stages = |report: &serde_json::Value, at: usize| report["rounds"][0]["secure"]["stages"][at].clone();
    assert_eq!((stages(&calm, 2), stages(&calm, 4)), (4.into(), 4.into()));
    assert_eq!(stages(&report, 2), 4);
    // The others were enough, unless it had said all before it was killed.
    assert!(stages(&report, 4).as_u64().unwrap() >= 3);
}
