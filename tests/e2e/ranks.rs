//! Clients of several LoRA ranks in one run, by real processes on the real backbone.

use serde_json::Value;

use crate::support::{Workspace, succeed, text};

const MIXED: [&str; 6] = ["--method", "lora", "--aggregation", "lora-product", "--lora-ranks", "2,8"];

fn simulated(options: &[&str]) -> Value {
    let workspace = Workspace::new();
    succeed(workspace.simulate(&[&MIXED[..], &["--rounds", "2"], options].concat()));
    workspace.report()
}

/// Bytes that a client sent in the second round.
fn sent(report: &Value, name: &str) -> f64 {
    let clients = report["rounds"][1]["clients"].as_array().unwrap();
    let client = clients.iter().find(|client| client["client"] == name).unwrap();
    assert_eq!(client["outcome"], "accepted", "{client}");
    client["bytes_up"].as_f64().unwrap()
}

#[test]
fn clients_of_less_rank_send_less() {
    let plain = simulated(&[]);
    let (low, full) = (sent(&plain, "client-000"), sent(&plain, "client-001"));
    let adapter = plain["totals"]["adapter_bytes"].as_f64().unwrap();
    // The head, and a quarter of the factors.
    assert!(low < 0.4 * full && full < 1.02 * adapter, "{low} of {full}, an adapter has {adapter}");

    let encoded = simulated(&["--uplink", "delta,zstd"]);
    assert_eq!(plain["adapter_sha256"], encoded["adapter_sha256"], "every bit comes back");
    assert!(sent(&encoded, "client-000") < low);
}

#[test]
fn ranks_are_mixed_only_where_products_are_averaged() {
    for (options, told) in [
        (&["--method", "lora", "--lora-ranks", "2"][..], "lora-product"),
        (&["--method", "lora", "--aggregation", "lora-product", "--lora-ranks", "0"], "at least 1"),
    ] {
        let output = Workspace::new().simulate(options).output().unwrap();
        assert!(!output.status.success());
        assert!(text(&output).contains(told), "{}", text(&output));
    }
}
