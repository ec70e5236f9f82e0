//! A federation whose heads are personal, on the real backbone.

use std::fs;

use fedpeft_testkit::NatsServer;
use serde_json::Value;

use crate::{
    services::on,
    support::{Workspace, succeed, text},
};

/// Values of the head at 384 features and 10 classes.
const HEAD: u64 = 385 * 10;

#[tokio::test(flavor = "multi_thread")]
async fn heads_stay_with_their_clients_and_can_be_exported() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let store = workspace.path("store");
    let (url, folder) = (nats.url(), store.to_str().unwrap().to_owned());
    let options = ["--server", &url, "--store", &folder, "--name", "personal", "--local", "head.*"];

    // Clients must have something to evaluate their models on.
    let refused = workspace.simulate(&options).output().unwrap();
    assert!(text(&refused).contains("client_holdout"), "{}", text(&refused));
    let nothing = ["--local", "haed.*", "--client-holdout", "0.25", "--server", &url];
    let refused = workspace.simulate(&nothing).output().unwrap();
    let told = text(&refused);
    assert!(told.contains("no adapter tensor matches \"haed.*\""), "{told}");

    succeed(workspace.simulate(&[&options[..], &["--client-holdout", "0.25"]].concat()));
    let report = workspace.report();
    let shared = report["totals"]["adapter_bytes"].as_u64().unwrap() / 4;
    for round in report["rounds"].as_array().unwrap() {
        let clients = round["clients"].as_array().unwrap();
        let own = |client: &Value, figure: &str| client["personal"][figure].as_f64().unwrap();
        assert!(clients.iter().all(|client| client["examples"] == 18 && client["personal"]["examples"] == 6));
        let mean = clients.iter().map(|client| own(client, "accuracy") * 6.0).sum::<f64>() / 24.0;
        assert!((round["accuracy"].as_f64().unwrap() - mean).abs() < 1e-12);
        assert_eq!(round["bytes_by_kind"]["up.adapter"].as_u64(), Some(4 * 4 * shared));
    }
    // One in ten would be chance; clients see few classes, and their own heads know which. Losses rise meanwhile:
    // eighteen images are soon known by heart.
    let accuracies: Vec<f64> = report["rounds"]
        .as_array()
        .unwrap()
        .iter()
        .map(|round| round["accuracy"].as_f64().unwrap())
        .collect();
    assert!(accuracies.iter().all(|accuracy| *accuracy > 0.2), "{accuracies:?}");

    // A client's model is the global part with its own head.
    let out = workspace.path("exported");
    let export = ["export", "--run", "personal", "--format", "safetensors", "-o", out.to_str().unwrap()];
    let without = on(&nats, &export).output().unwrap();
    assert!(text(&without).contains("--local"), "{}", text(&without));
    let runs = store.join("cache-state/runs/personal/client-001");
    let head = fs::read_dir(runs).unwrap().map(|entry| entry.unwrap().path()).next().unwrap();
    succeed(on(&nats, &[&export[..], &["--local", head.to_str().unwrap()]].concat()));
    let whole = fs::metadata(out.join("adapter.safetensors")).unwrap().len() / 4;
    assert!(whole > shared + HEAD, "{whole} values with their header, {shared} are shared");
}
