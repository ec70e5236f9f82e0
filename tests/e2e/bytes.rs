//! The ledger against the broker's own counters, and what every service serves about itself.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
};

use fedpeft_testkit::{NatsServer, assets};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    services::{json_of, on, publish_method},
    support::{Running, Workspace, program, signal, succeed, until},
};

/// A page of a small HTTP server: its status and its body.
fn page(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split_whitespace().nth(1)?.parse().ok()?, body.to_owned()))
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A service with its pages.
struct Service {
    name: &'static str,
    running: Running,
    http: SocketAddr,
}

impl Service {
    fn start(nats: &NatsServer, workspace: &Workspace, name: &'static str, arguments: &[&str]) -> Self {
        let http = free();
        let mut command = program(name);
        command.args(["--server", &nats.url(), "--http", &http.to_string()]).args(arguments);
        let running = Running::start(command, &workspace.path(&format!("{name}.log")));
        let service = Self { name, running, http };
        // Healthy from the first moment on, ready once it does its work.
        until(|| page(http, "/healthz").filter(|(status, _)| *status == 200));
        until(|| page(http, "/readyz").filter(|(status, _)| *status == 200));
        service
    }

    fn metrics(&self) -> String {
        page(self.http, "/metrics").unwrap().1
    }

    /// Bytes on its socket: sent and received.
    fn socket(&self) -> (f64, f64) {
        let metrics = self.metrics();
        let value = |direction: &str| {
            let line = format!("fedpeft_nats_bytes_total{{direction=\"{direction}\"}} ");
            metrics.lines().find_map(|found| found.strip_prefix(&line)).unwrap().parse().unwrap()
        };
        (value("sent"), value("received"))
    }
}

/// The broker's monitoring.
struct Monitor(SocketAddr);

impl Monitor {
    fn read(&self, path: &str) -> Value {
        serde_json::from_str(&page(self.0, path).unwrap().1).unwrap()
    }

    /// What the broker got from and sent to all clients.
    fn total(&self) -> (f64, f64) {
        let varz = self.read("/varz");
        (varz["in_bytes"].as_f64().unwrap(), varz["out_bytes"].as_f64().unwrap())
    }

    /// What it got from and sent to the connections of this name.
    fn connection(&self, name: &str) -> (f64, f64) {
        let connz = self.read("/connz");
        let connections = connz["connections"].as_array().unwrap().iter();
        connections.filter(|connection| connection["name"] == name).fold((0.0, 0.0), |sum, connection| {
            let count = |key: &str| connection[key].as_f64().unwrap();
            (sum.0 + count("in_bytes"), sum.1 + count("out_bytes"))
        })
    }
}

fn assert_near(ours: f64, theirs: f64, share: f64, what: &str) {
    let apart = (ours - theirs).abs() / theirs.max(1.0);
    println!("{what}: ours {ours}, the broker's {theirs}, {:.3} % apart", apart * 100.0);
    assert!(apart <= share, "{what}: ours {ours}, the broker's {theirs}: {:.3} % apart", apart * 100.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_ledger_is_what_the_broker_counts() {
    let monitor = Monitor(free());
    let nats = NatsServer::start_with_config(&format!("http: \"{}\"\n", monitor.0)).await;
    let workspace = Workspace::new();
    let registry = Service::start(&nats, &workspace, "fedpeft-registry", &[]);
    publish_method(&nats, &workspace, "lora");
    let (before, of_registry) = (monitor.total(), registry.socket());

    let (data, cache) = (workspace.path("run.toml"), workspace.path("cache"));
    let hosted = ["--clients", "4", "--evaluate", "--threads", "1", "--device", "cpu"];
    let paths = ["--data", data.to_str().unwrap(), "--cache", cache.to_str().unwrap()];
    let aggregator = Service::start(&nats, &workspace, "fedpeft-aggregator", &[]);
    let exporter = Service::start(&nats, &workspace, "fedpeft-exporter", &["--top-clients", "2"]);
    let worker = Service::start(&nats, &workspace, "fedpeft-worker", &[&hosted[..], &paths[..]].concat());
    succeed(on(&nats, &["run", "submit", data.to_str().unwrap(), "--name", "bytes", "--watch"]));
    let report = json_of(on(&nats, &["run", "report", "bytes"]));
    until(|| exporter.metrics().contains("fedpeft_rounds_total{run=\"bytes\"} 3").then_some(()));
    let services = [&aggregator, &exporter, &worker];

    // The broker's counters are those of bodies and headers; ours are those, and subjects.
    let (sent, received) = monitor.connection("fedpeft-worker");
    let rounds = report["rounds"].as_array().unwrap();
    let kinds = || rounds.iter().flat_map(|round| round["bytes_by_kind"].as_object().unwrap());
    let sum = |part: &str| -> f64 {
        let found = kinds().filter(|(kind, _)| kind.contains(part));
        found.map(|(_, bytes)| bytes.as_f64().unwrap()).sum()
    };
    let ledger = |direction: &str| sum(&format!("{direction}."));
    assert_near(ledger("up"), sent, 0.01, "ledger, up");
    assert_near(ledger("down"), received, 0.01, "ledger, down");

    // The rounds say what it was, payload by payload; the metrics say the same.
    let metrics = exporter.metrics();
    for kind in
        ["up.adapter", "up.control", "up.evaluation", "down.adapter", "down.backbone", "down.evaluation"]
    {
        let sum =
            |map: &str| -> f64 { rounds.iter().map(|round| round[map][kind].as_f64().unwrap_or(0.0)).sum() };
        let (all, payload) = (sum("bytes_by_kind"), sum("payload_by_kind"));
        assert!(payload > 0.0 && payload <= all, "{kind}: {payload} of {all}");
        let (direction, label) = kind.split_once('.').unwrap();
        for (family, value) in [("fedpeft_bytes_total", all), ("fedpeft_payload_bytes_total", payload)] {
            let labels =
                format!("{family}{{direction=\"{direction}\",kind=\"{label}\",run=\"bytes\"}} {value}\n");
            assert!(metrics.contains(&labels), "{labels} is not in\n{metrics}");
        }
    }
    let of_clients: f64 = rounds
        .iter()
        .flat_map(|round| round["clients"].as_array().unwrap())
        .flat_map(|client| client["bytes_by_kind"].as_object().unwrap().values())
        .map(|bytes| bytes.as_f64().unwrap())
        .sum();
    let cohort = ["up", "down"].map(|way| report["totals"][format!("bytes_{way}")].as_f64().unwrap());
    assert_eq!(of_clients, cohort.iter().sum::<f64>());
    assert_eq!(of_clients + sum(".evaluation"), ledger("up") + ledger("down"));
    assert_eq!(
        metrics.matches("fedpeft_client_bytes{").count(),
        2 * 3,
        "two clients and the rest\n{metrics}"
    );

    // All that crossed any socket, protocol lines included, against all that the broker counted.
    let after = monitor.total();
    let mut socket = registry.socket();
    socket = (socket.0 - of_registry.0, socket.1 - of_registry.1);
    for service in services {
        let (sent, received) = service.socket();
        socket = (socket.0 + sent, socket.1 + received);
        println!("{}: {sent} sent, {received} received", service.name);
    }
    println!("received by the broker {}, on sockets {}", after.0 - before.0, socket.0);
    assert_near(socket.1, after.1 - before.1, 0.01, "sockets, down");
    assert_near(socket.0, after.0 - before.0, 0.01, "sockets, up");

    // What they serve is as Prometheus wants it.
    for service in services.into_iter().chain([&registry]) {
        check(service);
    }
    // A service that ends says so before it goes.
    for service in [worker, exporter, aggregator, registry] {
        signal(service.running.pid(), Signal::TERM);
        assert_eq!(service.running.wait(), Some(0), "{}", service.name);
    }
}

/// `promtool check metrics`, and that no label comes from a client without being asked for.
fn check(service: &Service) {
    let metrics = service.metrics();
    let mut promtool = Command::new(assets().prometheus("promtool").unwrap());
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    promtool.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{}: {said}", service.name);
    for family in ["process_resident_memory_bytes", "fedpeft_build_info", "fedpeft_nats_bytes_total"] {
        assert!(metrics.contains(family), "{}: no {family}", service.name);
    }
    for line in metrics.lines().filter(|line| line.contains("client=\"")) {
        assert!(line.starts_with("fedpeft_client_bytes{"), "{line}");
    }
}
