//! Services that are started by hand, around a broker that is there.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Command,
};

use fedpeft_artifacts::ArtifactFolder;
use fedpeft_testkit::{NatsServer, assets};
use serde_json::{Value, json};

use crate::support::{Running, Workspace, fedpeft, program, succeed, until};

/// Registry, aggregator, exporter, one worker with four clients and the evaluator.
pub struct Services {
    _running: Vec<Running>,
    metrics: u16,
}

impl Services {
    pub fn start(nats: &NatsServer, workspace: &Workspace) -> Self {
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let start = |name: &str, arguments: &[&str]| {
            let mut command = program(name);
            command.args(["--server", &nats.url()]).args(arguments);
            Running::start(command, &workspace.path(&format!("{name}.log")))
        };
        let (data, cache) = (workspace.path("run.toml"), workspace.path("cache"));
        let worker = ["--clients", "4", "--evaluate", "--threads", "1", "--device", "cpu"];
        let paths = ["--data", data.to_str().unwrap(), "--cache", cache.to_str().unwrap()];
        let running = vec![
            start("fedpeft-registry", &[]),
            start("fedpeft-aggregator", &[]),
            start("fedpeft-exporter", &["--http", &format!("127.0.0.1:{metrics}")]),
            start("fedpeft-worker", &[&worker[..], &paths[..]].concat()),
        ];
        Self { _running: running, metrics }
    }

    fn scrape(&self) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.metrics)).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        Some(page)
    }
}

/// `fedpeft <arguments> --server <broker>`
pub fn on(nats: &NatsServer, arguments: &[&str]) -> Command {
    let mut command = fedpeft();
    command.args(arguments).args(["--server", &nats.url()]);
    command
}

pub fn json_of(command: Command) -> Value {
    serde_json::from_str(&succeed(command)).unwrap()
}

/// Artifacts of the head at 28 pixels, published as `vit`.
fn publish(nats: &NatsServer, workspace: &Workspace) {
    publish_method(nats, workspace, "head");
}

/// Artifacts of `method` at 28 pixels, published as `vit`.
pub fn publish_method(nats: &NatsServer, workspace: &Workspace, method: &str) {
    publish_with(nats, workspace, &["--method", method]);
}

/// Artifacts of the method that these flags name at 28 pixels, published as `vit`.
pub fn publish_with(nats: &NatsServer, workspace: &Workspace, method: &[&str]) {
    let (model, folder) = (assets().dinov2().unwrap(), workspace.path("vit"));
    let mut build = fedpeft();
    build.args(["artifacts", "build", "--model", model.to_str().unwrap()]);
    build.args(["--output", "/backbone/layernorm/Add_1_output_0", "--input-size", "28"]);
    build.args(method).args(["--classes", "10", "-o", folder.to_str().unwrap()]);
    succeed(build);
    until(|| on(nats, &["models", "list"]).output().unwrap().status.success().then_some(()));
    succeed(on(nats, &["models", "push", folder.to_str().unwrap(), "--name", "vit"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_submitted_watched_and_reported() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let services = Services::start(&nats, &workspace);
    publish(&nats, &workspace);

    let models = json_of(on(&nats, &["models", "list", "--json"]));
    assert_eq!((&models[0]["name"], &models[0]["number"]), (&json!("vit"), &json!(1)));
    let pulled = workspace.path("pulled");
    succeed(on(&nats, &["models", "pull", "vit@1", "-o", pulled.to_str().unwrap()]));
    ArtifactFolder::open(&pulled).unwrap().verify().unwrap();

    until(|| on(&nats, &["run", "list"]).output().unwrap().status.success().then_some(()));
    let config = workspace.path("run.toml");
    let submit = ["run", "submit", config.to_str().unwrap(), "--name", "first", "--watch"];
    let table = succeed(on(&nats, &submit));
    assert_eq!(table.lines().filter(|line| line.contains("4/4")).count(), 3, "{table}");

    let runs = json_of(on(&nats, &["run", "list", "--json"]));
    assert_eq!((&runs[0]["run"], &runs[0]["status"]["state"]), (&json!("first"), &json!("completed")));
    assert!(succeed(on(&nats, &["run", "get", "first"])).contains("completed"));
    let report = json_of(on(&nats, &["run", "report", "first"]));
    assert_eq!(report["rounds"].as_array().unwrap().len(), 3);
    assert_eq!(report["adapter_sha256"], runs[0]["adapter"]);

    let again = on(&nats, &["run", "submit", config.to_str().unwrap(), "--name", "first"]).output().unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("first"));
    let unknown = on(&nats, &["run", "get", "nothing"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("there is no run nothing"));

    // The exporter follows the event stream; the last round reaches it a moment later.
    let page =
        until(|| services.scrape().filter(|page| page.contains("fedpeft_rounds_total{run=\"first\"} 3")));
    let sum = |direction: &str| -> f64 {
        let lines = page.lines().filter(|line| line.starts_with("fedpeft_bytes_total{"));
        let of_direction = lines.filter(|line| line.contains(&format!("direction=\"{direction}\"")));
        let of_direction = of_direction.filter(|line| !line.contains("kind=\"evaluation\""));
        of_direction.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    };
    assert_eq!(sum("up"), report["totals"]["bytes_up"].as_f64().unwrap(), "{page}");
    assert_eq!(sum("down"), report["totals"]["bytes_down"].as_f64().unwrap(), "{page}");
    assert!(page.contains("fedpeft_accuracy{run=\"first\"}"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_control_api_speaks_json_and_runs_can_be_cancelled_and_resumed() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let _services = Services::start(&nats, &workspace);
    publish(&nats, &workspace);
    let client = async_nats::connect(nats.url()).await.unwrap();
    let ask = async |endpoint: &str, request: Value| {
        let subject = format!("fedpeft.v1.api.{endpoint}");
        let reply = client.request(subject, request.to_string().into()).await.unwrap();
        serde_json::from_slice::<Value>(&reply.payload).unwrap_or(Value::Null)
    };
    until(|| on(&nats, &["run", "list"]).output().unwrap().status.success().then_some(()));

    let spec = json!({"model": {"name": "vit"}, "rounds": 500, "cohort": 4, "evaluation": {"every": 0}});
    let created = ask("runs.create", json!({"run": "long", "spec": spec})).await;
    assert_eq!((&created["run"], &created["spec"]["rounds"]), (&json!("long"), &json!(500)));
    let view = loop {
        let view = ask("runs.get", json!({"run": "long"})).await;
        if view["record"]["round"].as_u64() >= Some(2) {
            break view;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    assert_eq!(view["rounds"][0]["clients"][0]["outcome"], "accepted");

    let cancelled = json_of(on(&nats, &["run", "cancel", "long", "--json"]));
    assert_eq!(cancelled["status"]["state"], "cancelled");
    let watched = on(&nats, &["run", "watch", "long"]).output().unwrap();
    assert_eq!(watched.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&watched.stderr).contains("was cancelled"));
    let done = cancelled["round"].as_u64();
    succeed(on(&nats, &["run", "resume", "long"]));
    loop {
        let view = ask("runs.get", json!({"run": "long"})).await;
        if view["record"]["round"].as_u64() > done {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    succeed(on(&nats, &["run", "cancel", "long"]));
}
