//! The control API from another language: JSON in, JSON out, with the Python client of NATS.

use std::{
    path::Path,
    process::{Command, Output},
};

use fedpeft_testkit::{NatsServer, assets};
use serde_json::{Value, json};

use crate::{
    services::{Services, on, publish_method},
    support::{Workspace, text, until},
};

/// `examples/control.py`, asking the broker.
fn ask(nats: &NatsServer, endpoint: &str, request: &str) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/control.py");
    let mut python = Command::new("python3");
    // Nothing is written beside the packages: they are known by their digests.
    python.env("PYTHONPATH", assets().python().unwrap()).arg("-B").arg(script);
    python.args(["--server", &nats.url(), endpoint, request]).output().unwrap()
}

fn reply(nats: &NatsServer, endpoint: &str, request: &Value) -> Value {
    let output = ask(nats, endpoint, &request.to_string());
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The one line that a refused request is answered with.
fn refusal(nats: &NatsServer, endpoint: &str, request: &str) -> String {
    let output = ask(nats, endpoint, request);
    let said = text(&output);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    said.trim_end().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn python_creates_lists_and_reads_a_run_with_json() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3 to ask with (Debian: `apt-get install python3`)");
        return;
    }
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    assert_eq!(
        refusal(&nats, "runs.list", "{}"),
        "error: nobody answers to runs.list: is the service running?"
    );
    let _services = Services::start(&nats, &workspace);
    publish_method(&nats, &workspace, "head");
    until(|| on(&nats, &["run", "list"]).output().unwrap().status.success().then_some(()));

    let spec = json!({"model": {"name": "vit"}, "rounds": 2, "cohort": 4, "training": {"batch_size": 8}});
    let created = reply(&nats, "runs.create", &json!({"run": "from-python", "spec": spec}));
    assert_eq!((&created["run"], &created["spec"]["rounds"]), (&json!("from-python"), &json!(2)));
    assert_eq!(created["status"]["state"], "pending");
    let listed = reply(&nats, "runs.list", &json!({}));
    assert_eq!(listed["runs"][0]["run"], "from-python");
    let view = until(|| {
        let view = reply(&nats, "runs.get", &json!({"run": "from-python"}));
        (view["record"]["status"]["state"] == "completed").then_some(view)
    });
    assert_eq!(view["rounds"].as_array().unwrap().len(), 2);
    assert!(view["rounds"][1]["accuracy"].is_f64() && view["rounds"][1]["bytes_up"].is_u64());

    // Whatever is wrong with a request is said in one line, and nothing is created.
    for (endpoint, request, expected) in [
        ("runs.create", "{\"run\": \"bad\"", "error 400: "),
        ("runs.create", r#"{"run": "bad"}"#, "missing field `spec`"),
        ("runs.create", r#"{"run": "a b", "spec": {}}"#, "error 400: "),
        (
            "runs.create",
            r#"{"run": "bad", "spec": {"model": {"name": "vit"}, "rounds": 0, "cohort": 4}}"#,
            "rounds must be at least 1",
        ),
        (
            "runs.create",
            r#"{"run": "bad", "spec": {"model": {"name": "none"}, "rounds": 1, "cohort": 4}}"#,
            "error 404: ",
        ),
        ("runs.get", r#"{"run": "nothing"}"#, "error 404: "),
        ("runs.create", &json!({"run": "from-python", "spec": spec}).to_string(), "error 409: "),
    ] {
        let said = refusal(&nats, endpoint, request);
        assert!(said.contains(expected), "{request} is answered with {said}");
    }
    assert_eq!(reply(&nats, "runs.list", &json!({}))["runs"].as_array().unwrap().len(), 1);
}
