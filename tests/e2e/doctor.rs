//! `fedpeft doctor` and `fedpeft man`.

use std::fs;

use fedpeft_testkit::{NatsServer, locate_binary};
use serde_json::Value;

use crate::{
    services::{Services, on},
    support::{Workspace, fedpeft, succeed, text, until},
};

fn state<'a>(findings: &'a Value, what: &str) -> &'a Value {
    let finding = findings.as_array().unwrap().iter().find(|finding| finding["what"] == what);
    &finding.unwrap_or_else(|| panic!("nothing about {what} in {findings}"))["state"]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_says_what_is_there_and_what_is_not() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    // A broker and nobody on it.
    let alone = on(&nats, &["doctor", "--json"]).output().unwrap();
    assert_eq!(alone.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&alone.stdout).unwrap();
    for (what, wanted) in [
        ("programs", "ok"),
        ("nats-server", "ok"),
        ("ONNX Runtime", "ok"),
        ("device", "ok"),
        ("disk", "ok"),
        ("broker", "ok"),
        ("JetStream", "ok"),
        ("aggregator", "wrong"),
        ("registry", "wrong"),
        ("clients", "warning"),
    ] {
        assert_eq!(state(&findings, what), wanted, "{what}: {findings}");
    }
    assert!(text(&alone).contains("2 things are wrong"), "{}", text(&alone));

    let _services = Services::start(&nats, &workspace);
    let report = until(|| {
        let output = on(&nats, &["doctor"]).output().unwrap();
        (output.status.success() && text(&output).contains("4 train, 1 evaluate")).then(|| text(&output))
    });
    assert!(report.lines().all(|line| line.starts_with("ok")), "{report}");

    let nobody = fedpeft().args(["doctor", "--server", "nats://127.0.0.1:1"]).output().unwrap();
    assert!(text(&nobody).contains("WRONG    broker"), "{}", text(&nobody));
    let mut broken = std::process::Command::new(locate_binary("fedpeft-worker").unwrap());
    let broken = broken.args(["--check", "--ort-lib", "/nowhere/lib.so"]).output().unwrap();
    assert!(
        text(&broken).contains("/nowhere/lib.so") && text(&broken).lines().count() == 1,
        "{}",
        text(&broken)
    );
}

#[test]
fn every_command_has_a_manual_page() {
    let workspace = Workspace::new();
    let folder = workspace.path("man1");
    let mut man = fedpeft();
    man.args(["man", "-o"]).arg(&folder);
    succeed(man);
    for page in ["fedpeft.1", "fedpeft-run-submit.1", "fedpeft-simulate.1", "fedpeft-doctor.1"] {
        let text = fs::read_to_string(folder.join(page)).unwrap();
        assert!(text.contains(".SH SYNOPSIS") && text.contains("Examples"), "{page}");
    }
}
