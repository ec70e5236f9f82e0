//! Unstable clients as an experiment.

use serde_json::Value;

use crate::support::{Workspace, succeed};

/// Who answered in each round, and how.
fn outcomes(report: &Value) -> Vec<Vec<(String, String)>> {
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let rounds = report["rounds"].as_array().unwrap().iter();
    rounds
        .map(|round| {
            let clients = round["clients"].as_array().unwrap().iter();
            clients.map(|client| (word(&client["client"]), word(&client["outcome"]))).collect()
        })
        .collect()
}

#[test]
fn simulated_faults_can_be_repeated() {
    let options = [
        "--name",
        "shaky",
        "--method",
        "head",
        "--rounds",
        "3",
        "--quorum",
        "1",
        "--soft-deadline",
        "15",
        "--participation",
        "0.8",
        "--dropout",
        "0.2",
        "--crash",
        "0.5",
        "--delay",
        "0.3",
        "--stability-seed",
        "2",
    ];
    let (first, second) = (Workspace::new(), Workspace::new());
    let table = succeed(first.simulate(&options));
    succeed(second.simulate(&[&options[..], &["--workers", "4"]].concat()));
    let (first, second) = (first.report(), second.report());
    let seen = outcomes(&first);
    assert_eq!(seen, outcomes(&second));
    assert_eq!(first["adapter_sha256"], second["adapter_sha256"]);
    assert_eq!(first["ledger_sha256"], second["ledger_sha256"]);
    let all: Vec<_> = seen.iter().flatten().collect();
    assert!(all.iter().any(|(_, outcome)| outcome == "dropped"), "{seen:?}");
    assert!(all.iter().any(|(_, outcome)| outcome == "accepted"), "{seen:?}");
    assert!(seen.iter().any(|round| round.len() < 4), "nobody was unavailable: {seen:?}");
    assert!(table.contains("dropped out"), "{table}");
}
