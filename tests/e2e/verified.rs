//! Runs that can be checked afterwards.

use std::fs;

use fedpeft_bus::Bus;
use fedpeft_protocol::{Digest, round::ClientOutcome};
use fedpeft_testkit::NatsServer;
use serde_json::{Value, json};

use crate::{
    services::{Services, json_of, on, publish_method},
    support::{CONFIG, Workspace, text},
};

/// Submits the small federation with these lines in `[run]` and waits for its end.
fn completed(nats: &NatsServer, workspace: &Workspace, name: &str, lines: &str) {
    let config = workspace.path(&format!("{name}.toml"));
    fs::write(&config, CONFIG.replace("[run]\n", &format!("[run]\n{lines}\n"))).unwrap();
    let output =
        on(nats, &["run", "submit", config.to_str().unwrap(), "--name", name, "--watch"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

/// Changes the stored report of a run's round.
async fn forge(bus: &Bus, run: &str, round: u32) {
    let (reports, key) = (bus.round_reports().await.unwrap(), format!("{run}.{round}"));
    let (mut report, revision) = reports.get(&key).await.unwrap().unwrap();
    if let ClientOutcome::Accepted { weight, .. } = &mut report.clients[0].outcome {
        *weight += 1;
    }
    reports.update(&key, &report, revision).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ledgers_are_checked_and_rounds_aggregated_again() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let _services = Services::start(&nats, &workspace);
    publish_method(&nats, &workspace, "head");
    completed(&nats, &workspace, "plain", "");
    completed(&nats, &workspace, "kept", "keep_updates = true");
    completed(
        &nats,
        &workspace,
        "buffered",
        "keep_updates = true\nmode = { kind = \"buffered\", buffer = 3 }",
    );

    completed(
        &nats,
        &workspace,
        "median",
        "keep_updates = true\naggregation = { kind = \"median\" }\nstrategy = { kind = \"fedavgm\" }",
    );

    completed(
        &nats,
        &workspace,
        "encoded",
        "keep_updates = true\nuplink = [\"delta\", \"topk=0.5\", \"int8\"]\ndownlink = [\"int8\", \"zstd\"]",
    );

    let verify = |run: &str| -> Value { json_of(on(&nats, &["run", "verify", run, "--json"])) };
    for (run, updates, again) in
        [("plain", 12, 0), ("kept", 12, 3), ("buffered", 9, 3), ("median", 12, 3), ("encoded", 12, 3)]
    {
        let verified = verify(run);
        assert_eq!(verified["rounds"], 3, "{verified}");
        assert_eq!((&verified["updates"], &verified["aggregated_again"]), (&json!(updates), &json!(again)));
        let report = json_of(on(&nats, &["run", "report", run]));
        assert_eq!(verified["ledger_sha256"], report["ledger_sha256"]);
        assert_eq!(verified["adapter_sha256"], report["adapter_sha256"]);
        let entry = &report["rounds"][0]["clients"][0];
        assert!(
            entry["outcome"] != "accepted" || entry["update"].as_str().unwrap().starts_with(run),
            "{entry}"
        );
    }

    let bus = nats.bus().await;
    // A kept update that is gone is named; a changed report does not add up.
    let (view, _) = bus.round_reports().await.unwrap().get("kept.2").await.unwrap().unwrap();
    let digest: Digest = view
        .clients
        .iter()
        .find_map(|client| match &client.outcome {
            ClientOutcome::Accepted { digest, .. } => Some(*digest),
            _ => None,
        })
        .unwrap();
    bus.delete_blob(&digest).await.unwrap();
    forge(&bus, "plain", 2).await;
    for (run, told) in [
        ("kept", "of round 2 cannot be read"),
        ("plain", "does not add up"),
        ("none", "there is no run none"),
    ] {
        let output = on(&nats, &["run", "verify", run]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output).contains(told), "{}", text(&output));
    }
}
