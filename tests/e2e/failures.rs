//! Processes that are killed in the middle.

use std::path::Path;

use fedpeft_bus::Bus;
use fedpeft_protocol::{Round, event::EventKind};
use fedpeft_testkit::NatsServer;
use rustix::process::Signal;
use tokio::time::timeout;

use crate::support::{PATIENCE, Running, Workspace, child, is_alive, signal, succeed, until};

/// Waits until the tasks of a round are out.
async fn opened(bus: &Bus, wanted: Round) {
    let mut events = bus.events(None, true).await.unwrap();
    let waiting = async {
        loop {
            if matches!(events.next().await.unwrap().kind, EventKind::RoundOpened { round, .. } if round == wanted)
            {
                return;
            }
        }
    };
    timeout(PATIENCE, waiting).await.unwrap();
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[tokio::test]
async fn a_killed_worker_drops_out_and_the_run_goes_on() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let bus = nats.bus().await;
    let (store, log) = (workspace.path("store"), workspace.path("log"));
    // Long rounds, so that the worker dies before its clients have answered.
    let options = ["--server", &nats.url(), "--store", &store.to_string_lossy(), "--local-epochs", "20"];
    let simulation = Running::start(workspace.simulate(&options), &log);
    opened(&bus, 1).await;
    signal(child(&store, "worker-2"), Signal::KILL);
    assert_eq!(simulation.wait(), Some(0), "{}", read(&log));

    let report = workspace.report();
    assert_eq!(report["status"]["state"], "completed");
    let first = &report["rounds"][0];
    let outcome = |index: usize| first["clients"][index]["outcome"].as_str().unwrap();
    assert_eq!([0, 1, 2, 3].map(outcome), ["accepted", "accepted", "dropped", "dropped"]);
    assert_eq!(report["rounds"].as_array().unwrap().len(), 3);
    let told = read(&log);
    assert!(told.contains("worker-2 ended (signal 9): without client-002, client-003"), "{told}");
    assert!(told.contains("client-002 dropped out"), "{told}");
}

#[tokio::test]
async fn a_killed_aggregator_is_started_again_and_changes_nothing() {
    let undisturbed = Workspace::new();
    succeed(undisturbed.simulate(&["--local-epochs", "10"]));

    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let bus = nats.bus().await;
    let (store, log) = (workspace.path("store"), workspace.path("log"));
    let options = ["--server", &nats.url(), "--store", &store.to_string_lossy(), "--local-epochs", "10"];
    let simulation = Running::start(workspace.simulate(&options), &log);
    opened(&bus, 2).await;
    signal(child(&store, "aggregator"), Signal::KILL);
    assert_eq!(simulation.wait(), Some(0), "{}", read(&log));

    let told = read(&log);
    assert!(told.contains("aggregator ended (signal 9) and was started again"), "{told}");
    let report = workspace.report();
    assert_eq!(report["rounds"].as_array().unwrap().len(), 3);
    assert_eq!(report["adapter_sha256"], undisturbed.report()["adapter_sha256"]);
}

#[test]
fn a_killed_simulation_goes_on_from_its_store() {
    let undisturbed = Workspace::new();
    succeed(undisturbed.simulate(&["--local-epochs", "10"]));

    let workspace = Workspace::new();
    let (store, log) = (workspace.path("store"), workspace.path("log"));
    let options = ["--store", &store.to_string_lossy(), "--local-epochs", "10"];
    let simulation = Running::start(workspace.simulate(&options), &log);
    // One row of the table: one round is committed.
    until(|| read(&log).lines().any(|line| line.contains("4/4")).then_some(()));
    let left = child(&store, "aggregator");
    simulation.crash();
    assert!(is_alive(left), "nobody was there to stop it");

    let error = Running::start(workspace.simulate(&[&options[..], &["--rounds", "4"]].concat()), &log);
    assert_eq!(error.wait(), Some(1));
    assert!(read(&log).contains("another configuration"), "{}", read(&log));

    succeed(workspace.simulate(&options));
    assert!(!is_alive(left));
    let report = workspace.report();
    assert_eq!(report["rounds"].as_array().unwrap().len(), 3);
    assert_eq!(report["adapter_sha256"], undisturbed.report()["adapter_sha256"]);
}

#[test]
fn an_interrupt_ends_every_process() {
    let workspace = Workspace::new();
    let (store, log) = (workspace.path("store"), workspace.path("log"));
    let options = ["--store", &store.to_string_lossy(), "--local-epochs", "200"];
    let simulation = Running::start(workspace.simulate(&options), &log);
    let names = ["nats-server", "registry", "exporter", "worker-1", "worker-2", "evaluator", "aggregator"];
    let children = names.map(|name| child(&store, name));
    signal(simulation.pid(), Signal::INT);
    assert_eq!(simulation.wait(), Some(130), "{}", read(&log));
    assert!(read(&log).ends_with("error: interrupted\n"), "{}", read(&log));
    assert!(children.into_iter().all(|pid| !is_alive(pid)));
}

#[test]
fn too_few_clients_left_end_the_run_with_a_reason() {
    let workspace = Workspace::new();
    let (store, log) = (workspace.path("store"), workspace.path("log"));
    let options = ["--store", &store.to_string_lossy(), "--quorum", "3", "--local-epochs", "200"];
    let simulation = Running::start(workspace.simulate(&options), &log);
    until(|| read(&log).contains("metrics on").then_some(()));
    signal(child(&store, "worker-1"), Signal::KILL);
    assert_eq!(simulation.wait(), Some(1));
    let told = read(&log);
    assert!(told.contains("worker-1 ended (signal 9): 2 clients are left, a round needs 3"), "{told}");
}
