//! A simulation from its configuration to its report.

use std::fs;

use serde_json::Value;

use crate::support::{Workspace, succeed};

#[test]
fn a_simulation_trains_and_reports_what_it_cost() {
    let workspace = Workspace::new();
    let store = workspace.path("store");
    let table = succeed(workspace.simulate(&["--store", &store.to_string_lossy()]));
    let header = table.lines().next().unwrap();
    for column in
        ["round", "cohort", "loss", "accuracy", "bytes up", "bytes down", "cumulative MiB", "seconds"]
    {
        assert!(header.contains(column), "{header}");
    }
    assert_eq!(table.lines().filter(|line| line.contains("4/4")).count(), 3, "{table}");

    let report = workspace.report();
    assert_eq!(report["status"]["state"], "completed");
    assert_eq!(report["config"]["run"]["seed"], 7);
    for version in ["fedpeft", "protocol", "onnxruntime", "nats-server"] {
        assert!(report["versions"][version].is_string(), "no version of {version}");
    }
    let rounds = report["rounds"].as_array().unwrap();
    assert_eq!(rounds.len(), 3);
    for round in rounds {
        check_round(round);
    }
    let first = rounds[0]["train_loss"].as_f64().unwrap();
    let last = rounds[2]["train_loss"].as_f64().unwrap();
    assert!(last < first, "training does not help: {first} then {last}");

    let totals = &report["totals"];
    for (total, field) in [(&totals["bytes_up"], "bytes_up"), (&totals["bytes_down"], "bytes_down")] {
        let sum: u64 = rounds.iter().map(|round| round[field].as_u64().unwrap()).sum();
        assert_eq!(total.as_u64(), Some(sum));
    }
    for process in
        ["fedpeft", "nats-server", "registry", "aggregator", "exporter", "worker-1", "worker-2", "evaluator"]
    {
        assert!(totals["peak_rss_bytes"][process].as_u64().unwrap() > 1 << 20, "no memory of {process}");
    }
    assert_eq!(report["adapter_sha256"], rounds[2]["adapter"]);
    assert_eq!(report["adapter_sha256"].as_str().unwrap().len(), 64);

    // What an update costs beyond its adapter: the aim is under two percent at the size of real adapters.
    let adapter = totals["adapter_bytes"].as_f64().unwrap();
    let update = rounds[1]["clients"][0]["bytes_up"].as_f64().unwrap();
    assert!(update / adapter < 1.02, "{update} bytes for an adapter of {adapter}");
    assert_eq!(fs::read_to_string(store.join("processes.json")).unwrap(), "[]\n");
}

fn check_round(round: &Value) {
    assert!(round["loss"].as_f64().unwrap() > 0.0);
    assert!((0.0..=1.0).contains(&round["accuracy"].as_f64().unwrap()));
    let clients = round["clients"].as_array().unwrap();
    assert_eq!(clients.len(), 4);
    for client in clients {
        assert_eq!(client["outcome"], "accepted");
        assert_eq!(client["examples"], 24);
        assert!(client["train_seconds"].as_f64().unwrap() > 0.0);
    }
    for field in ["bytes_up", "bytes_down"] {
        let sum: u64 = clients.iter().map(|client| client[field].as_u64().unwrap()).sum();
        assert_eq!(round[field].as_u64(), Some(sum), "{field}");
    }
    let kinds = round["bytes_by_kind"].as_object().unwrap().iter();
    let of_cohort = kinds.filter(|(kind, _)| !kind.ends_with(".evaluation"));
    let kinds: u64 = of_cohort.map(|(_, bytes)| bytes.as_u64().unwrap()).sum();
    assert_eq!(kinds, round["bytes_up"].as_u64().unwrap() + round["bytes_down"].as_u64().unwrap());
    let seconds = &round["seconds"];
    for phase in ["select", "broadcast", "train", "collect", "aggregate", "evaluate", "total"] {
        assert!(seconds[phase].as_f64().unwrap() >= 0.0, "{phase}");
    }
    assert!(seconds["total"].as_f64().unwrap() >= seconds["train"].as_f64().unwrap());
}

#[test]
fn one_seed_gives_one_adapter_however_the_clients_are_spread() {
    let adapter = |options: &[&str]| {
        let workspace = Workspace::new();
        succeed(workspace.simulate(&[&["--rounds", "2", "--threads", "1"], options].concat()));
        workspace.report()["adapter_sha256"].clone()
    };
    let alone = adapter(&["--workers", "1"]);
    assert_eq!(alone, adapter(&["--workers", "4"]));
    assert_ne!(alone, adapter(&["--workers", "4", "--seed", "8"]));
}

#[test]
fn partial_cohorts_and_other_methods_work_too() {
    let workspace = Workspace::new();
    let options = [
        "--method",
        "head",
        "--cohort",
        "2",
        "--rounds",
        "2",
        "--optimizer",
        "sgd",
        "--momentum",
        "0.9",
        "--lr",
        "0.01",
    ];
    succeed(workspace.simulate(&options));
    let report = workspace.report();
    assert_eq!(report["config"]["model"]["method"][0]["kind"], "head");
    assert_eq!(report["config"]["run"]["training"]["optimizer"]["kind"], "sgd");
    for round in report["rounds"].as_array().unwrap() {
        assert_eq!(round["clients"].as_array().unwrap().len(), 2);
    }
}

#[test]
fn private_clients_tell_what_they_spent_and_not_their_loss() {
    let workspace = Workspace::new();
    let options = ["--rounds", "2", "--dp-sgd-clip", "1", "--dp-sgd-noise", "1.5", "--dp-sgd-epsilon", "50"];
    succeed(workspace.simulate(&options));
    let report = workspace.report();
    assert_eq!(report["status"]["state"], "completed");
    let mut before = 0.0;
    for round in report["rounds"].as_array().unwrap() {
        let clients = round["clients"].as_array().unwrap();
        // All have as many examples, and spend alike.
        let epsilon = clients[0]["epsilon"].as_f64().unwrap();
        assert!(epsilon > before, "{epsilon} after {before}");
        before = epsilon;
        for client in clients {
            assert_eq!((&client["outcome"], &client["loss"]), (&"accepted".into(), &Value::Null));
            assert_eq!(client["epsilon"].as_f64(), Some(epsilon));
        }
    }
}
