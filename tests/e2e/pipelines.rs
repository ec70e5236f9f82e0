//! Adapters encoded on their way, by real processes on the real backbone.

use serde_json::Value;

use crate::support::{Workspace, succeed, text};

/// A simulation of two rounds with these options.
fn simulated(options: &[&str]) -> Value {
    let workspace = Workspace::new();
    succeed(workspace.simulate(&[&["--rounds", "2"], options].concat()));
    workspace.report()
}

/// Bytes to or from one client in the second round: artifacts were fetched in the first.
fn bytes(report: &Value, field: &str) -> f64 {
    report["rounds"][1]["clients"][0][field].as_f64().unwrap()
}

#[test]
fn lossless_pipelines_change_nothing_and_others_the_size() {
    let plain = simulated(&[]);
    let lossless = simulated(&["--uplink", "delta,zstd", "--downlink", "zstd"]);
    assert_eq!(plain["adapter_sha256"], lossless["adapter_sha256"], "every bit comes back");
    assert!(bytes(&lossless, "bytes_up") < bytes(&plain, "bytes_up"));

    let halves = simulated(&["--uplink", "delta,int8", "--downlink", "fp16"]);
    assert_ne!(plain["adapter_sha256"], halves["adapter_sha256"]);
    let ratio = |field| bytes(&halves, field) / bytes(&plain, field);
    assert!((0.25..0.28).contains(&ratio("bytes_up")), "{}", ratio("bytes_up"));
    assert!((0.5..0.53).contains(&ratio("bytes_down")), "{}", ratio("bytes_down"));
    let loss = |report: &Value| report["rounds"][1]["loss"].as_f64().unwrap();
    assert!((loss(&halves) - loss(&plain)).abs() < 0.05 * loss(&plain));
}

#[test]
fn a_seed_gives_one_adapter_with_error_feedback_and_crashes() {
    let options = ["--uplink", "delta,topk=0.1,int8,zstd", "--threads", "1"];
    let calm = simulated(&[&options[..], &["--workers", "1"]].concat());
    let stormy = simulated(&[&options[..], &["--workers", "2", "--crash", "0.5"]].concat());
    assert_eq!(calm["adapter_sha256"], stormy["adapter_sha256"]);
    let share = bytes(&calm, "bytes_up") / calm["totals"]["adapter_bytes"].as_f64().unwrap();
    assert!(share < 0.06, "{share}");
}

#[test]
fn what_makes_no_pipeline_is_told_before_anything_runs() {
    let workspace = Workspace::new();
    for (options, told) in [
        (["--uplink", "zstd,int8"], "int8 must come before zstd"),
        (["--uplink", "topk=0.1"], "put delta first"),
        (["--downlink", "delta,int8"], "leave delta out"),
    ] {
        let output = workspace.simulate(&options).output().unwrap();
        assert!(!output.status.success());
        assert!(text(&output).contains(told), "{}", text(&output));
    }
}
