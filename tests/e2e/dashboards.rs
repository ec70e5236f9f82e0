//! What operators look at: rules that Prometheus takes, and dashboards whose every query has an answer.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fedpeft_testkit::{NatsServer, assets};
use serde_json::Value;

use crate::{
    services::{on, publish_method},
    support::{CONFIG, Running, Workspace, program, succeed, text, until},
};

fn grafana(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../grafana").join(path)
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn rules_record_and_alert_as_they_say() {
    for arguments in [["check", "rules", "rules.yml"], ["test", "rules", "rules.test.yml"]] {
        let mut promtool = Command::new(assets().prometheus("promtool").unwrap());
        promtool.args(arguments).current_dir(grafana("prometheus"));
        let output = promtool.output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    }
}

/// A Prometheus that scrapes these addresses every second and evaluates our rules.
struct Prometheus {
    _running: Running,
    port: u16,
}

impl Prometheus {
    fn start(workspace: &Workspace, scraped: &[u16]) -> Self {
        let port = free_port();
        let config = fs::read_to_string(grafana("prometheus/prometheus.yml")).unwrap();
        let targets: Vec<String> = scraped.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        let config: Vec<String> = config
            .lines()
            .map(|line| match line.split_once("- targets:") {
                Some((indent, _)) => format!("{indent}- targets: [{}]", targets.join(", ")),
                None => line.replace("interval: 5s", "interval: 1s"),
            })
            .collect();
        let file = workspace.path("prometheus.yml");
        fs::write(&file, config.join("\n")).unwrap();
        fs::copy(grafana("prometheus/rules.yml"), workspace.path("rules.yml")).unwrap();
        let mut command = Command::new(assets().prometheus("prometheus").unwrap());
        command.arg(format!("--config.file={}", file.display()));
        command.arg(format!("--storage.tsdb.path={}", workspace.path("tsdb").display()));
        command.arg(format!("--web.listen-address=127.0.0.1:{port}"));
        Self { _running: Running::start(command, &workspace.path("prometheus.log")), port }
    }

    /// What the API answers to a form.
    fn ask(&self, endpoint: &str, form: &[(&str, &str)]) -> Option<Value> {
        let escaped = |text: &str| -> String {
            text.bytes()
                .map(|byte| {
                    if byte.is_ascii_alphanumeric() {
                        char::from(byte).to_string()
                    } else {
                        format!("%{byte:02X}")
                    }
                })
                .collect()
        };
        let body: Vec<String> = form.iter().map(|(key, value)| format!("{key}={}", escaped(value))).collect();
        let body = body.join("&");
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        let head = "Host: localhost\r\nContent-Type: application/x-www-form-urlencoded";
        write!(
            stream,
            "POST /api/v1/{endpoint} HTTP/1.0\r\n{head}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        serde_json::from_str(page.split_once("\r\n\r\n")?.1).ok()
    }

    /// Series of a query, over the time since `start` or at its end.
    fn series(&self, query: &str, start: u64, instant: bool) -> Result<usize, String> {
        let now = now().to_string();
        let answer = match instant {
            true => self.ask("query", &[("query", query), ("time", &now)]),
            false => {
                let start = start.to_string();
                self.ask("query_range", &[("query", query), ("start", &start), ("end", &now), ("step", "1")])
            }
        };
        let answer = answer.ok_or("no answer")?;
        match answer["data"]["result"].as_array() {
            Some(series) => Ok(series.len()),
            None => Err(answer["error"].to_string()),
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Every query of every panel, with the panel it is from.
fn queries(run: &str) -> Vec<(String, String, bool)> {
    let mut queries = Vec::new();
    let mut seen = BTreeSet::new();
    for entry in fs::read_dir(grafana("dashboards")).unwrap() {
        let path = entry.unwrap().path();
        let board: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let title = board["title"].as_str().unwrap();
        assert!(board["uid"].as_str().unwrap().starts_with("fedpeft-"));
        assert!(seen.insert(board["uid"].to_string()), "{title} has the identity of another");
        let panels = board["panels"].as_array().unwrap();
        let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
        assert_eq!(ids.len(), panels.len(), "{title}");
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            let name = format!("{title}: {}", panel["title"].as_str().unwrap());
            assert!(
                panel["description"].as_str().is_some_and(|text| !text.is_empty()),
                "{name} says what it shows"
            );
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name} has a unit");
            for target in panel["targets"].as_array().unwrap() {
                let expression = target["expr"].as_str().unwrap().replace("$run", run);
                assert!(!expression.contains('$'), "{name}: {expression}");
                queries.push((name.clone(), expression, target["instant"].as_bool().unwrap()));
            }
        }
        for variable in board["templating"]["list"].as_array().unwrap() {
            // label_values(metric{...}, label)
            let Some(definition) = variable["definition"].as_str() else { continue };
            let metric = definition.trim_start_matches("label_values(").rsplit_once(',').unwrap().0;
            queries.push((
                format!("{title}: variable {}", variable["name"]),
                metric.replace("$method", ".*"),
                false,
            ));
        }
    }
    queries
}

#[tokio::test(flavor = "multi_thread")]
async fn every_panel_of_every_dashboard_has_data() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let ports = [free_port(), free_port(), free_port(), free_port()];
    let start = |name: &str, port: u16, arguments: &[&str]| {
        let mut command = program(name);
        command.args(["--server", &nats.url(), "--http", &format!("127.0.0.1:{port}")]).args(arguments);
        Running::start(command, &workspace.path(&format!("{name}.log")))
    };
    let began = now();
    let _services = [
        start("fedpeft-registry", ports[0], &[]),
        start("fedpeft-aggregator", ports[1], &[]),
        start("fedpeft-exporter", ports[2], &[]),
    ];
    let prometheus = Prometheus::start(&workspace, &ports);
    publish_method(&nats, &workspace, "head");
    // It waits for clients first, and it spends epsilon.
    let private = "privacy = { epsilon = 50.0, delta = 1e-3, clip_norm = 1.0 }";
    let config = workspace.path("private.toml");
    fs::write(&config, CONFIG.replace("rounds = 3", &format!("rounds = 6\n{private}"))).unwrap();
    until(|| on(&nats, &["run", "list"]).output().unwrap().status.success().then_some(()));
    succeed(on(&nats, &["run", "submit", config.to_str().unwrap(), "--name", "seen"]));
    until(|| prometheus.series("fedpeft_clients_needed", began, false).ok().filter(|series| *series > 0));
    let (data, cache) = (workspace.path("run.toml"), workspace.path("cache"));
    let worker = ["--clients", "4", "--evaluate", "--threads", "1", "--device", "cpu", "--data"];
    let paths = [data.to_str().unwrap(), "--cache", cache.to_str().unwrap()];
    let _worker = start("fedpeft-worker", ports[3], &[&worker[..], &paths[..]].concat());
    succeed(on(&nats, &["run", "watch", "seen"]));
    until(|| {
        prometheus
            .series("fedpeft_rounds_total{run=\"seen\"} == 6", began, true)
            .ok()
            .filter(|series| *series == 1)
    });
    // Rates take two samples, and rules come after them.
    tokio::time::sleep(Duration::from_secs(4)).await;

    let queries = queries("seen");
    assert!(queries.len() > 30, "{}", queries.len());
    let mut missing = Vec::new();
    for (panel, query, instant) in &queries {
        match prometheus.series(query, began, *instant) {
            Ok(1..) => {}
            Ok(0) => missing.push(format!("{panel}: nothing for {query}")),
            Err(error) => missing.push(format!("{panel}: {error} for {query}")),
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}
