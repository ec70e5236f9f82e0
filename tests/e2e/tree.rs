//! A tree of real processes: a root and two edges, each with a broker, workers at the edges.

use std::fs;

use fedpeft_testkit::NatsServer;
use serde_json::json;

use crate::{
    services::{Services, json_of, on, publish_method},
    support::{CONFIG, Running, Workspace, program, succeed, until},
};

/// Starts a program at a broker, with its log in the workspace.
fn start(workspace: &Workspace, nats: &NatsServer, name: &str, label: &str, arguments: &[&str]) -> Running {
    let mut command = program(name);
    command.args(["--server", &nats.url()]).args(arguments);
    Running::start(command, &workspace.path(&format!("{label}.log")))
}

/// Two clients at an edge that works for `root`.
fn edge(
    workspace: &Workspace,
    nats: &NatsServer,
    root: &NatsServer,
    name: &str,
    first: &str,
) -> [Running; 2] {
    let (upstream, data, cache) =
        (root.url(), workspace.path("run.toml"), workspace.path(&format!("cache-{name}")));
    let client = ["--upstream-client", name, "--edge-min-clients", "2", "--edge-quorum", "2"];
    let works = [&["--upstream", &upstream][..], &client].concat();
    let hosts = ["--clients", "2", "--first", first, "--threads", "1", "--device", "cpu"];
    let paths = ["--data", data.to_str().unwrap(), "--cache", cache.to_str().unwrap()];
    [
        start(workspace, nats, "fedpeft-aggregator", &format!("{name}-aggregator"), &works),
        start(workspace, nats, "fedpeft-worker", &format!("{name}-worker"), &[&hosts[..], &paths].concat()),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn real_training_in_a_tree_gives_the_bytes_of_a_flat_run() {
    let workspace = Workspace::new();
    let (config, two) = (workspace.path("run.toml"), workspace.path("tree.toml"));
    fs::write(&two, CONFIG.replace("cohort = 4", "cohort = 2\nkeep_updates = true")).unwrap();
    let flat = {
        let nats = NatsServer::start().await;
        let _services = Services::start(&nats, &workspace);
        publish_method(&nats, &workspace, "head");
        succeed(on(&nats, &["run", "submit", config.to_str().unwrap(), "--name", "r", "--watch"]));
        json_of(on(&nats, &["run", "report", "r"]))
    };

    let (root, west, east) =
        (NatsServer::start().await, NatsServer::start().await, NatsServer::start().await);
    let _root = ["fedpeft-registry", "fedpeft-aggregator"].map(|name| {
        let running = start(&workspace, &root, name, name, &[]);
        until(|| on(&root, &["models", "list"]).output().unwrap().status.success().then_some(()));
        running
    });
    succeed(on(&root, &["models", "push", workspace.path("vit").to_str().unwrap(), "--name", "vit"]));
    let _west = edge(&workspace, &west, &root, "west", "0");
    let _east = edge(&workspace, &east, &root, "east", "2");
    until(|| on(&root, &["run", "list"]).output().unwrap().status.success().then_some(()));
    succeed(on(&root, &["run", "submit", two.to_str().unwrap(), "--name", "r", "--watch"]));
    let tree = json_of(on(&root, &["run", "report", "r"]));
    assert_eq!(tree["adapter_sha256"], flat["adapter_sha256"]);
    for (tree, flat) in tree["rounds"].as_array().unwrap().iter().zip(flat["rounds"].as_array().unwrap()) {
        assert_eq!(tree["adapter"], flat["adapter"]);
        assert_eq!(
            (&tree["clients"][0]["client"], &tree["clients"][0]["updates"]),
            (&json!("east"), &json!(2))
        );
    }
    let verified = json_of(on(&root, &["run", "verify", "r", "--json"]));
    assert_eq!((&verified["updates"], &verified["aggregated_again"]), (&json!(6), &json!(3)));
    // What an edge did can be seen, and checked, at its own broker.
    let verified = json_of(on(&west, &["run", "verify", "r", "--json"]));
    assert_eq!((&verified["rounds"], &verified["updates"]), (&json!(3), &json!(6)));
}
