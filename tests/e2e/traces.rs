//! Traces, as a collector gets them: a receiver of real OTLP, and what real processes send it.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{Router, body::Bytes, extract::State, routing::post};
use fedpeft_protocol::Digest;
use fedpeft_testkit::NatsServer;
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::Span,
};
use prost::Message;
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    services::{json_of, on, publish_method},
    support::{CONFIG, Running, Workspace, program, signal, succeed, until},
};

/// A span, and what its process says of itself.
#[derive(Clone)]
struct Received {
    service: String,
    pid: String,
    span: Span,
}

impl Received {
    fn name(&self) -> &str {
        &self.span.name
    }

    fn attribute(&self, name: &str) -> String {
        text(&self.span.attributes, name)
    }

    fn is_child_of(&self, parent: &Self) -> bool {
        self.span.trace_id == parent.span.trace_id && self.span.parent_span_id == parent.span.span_id
    }
}

fn text(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|pair| pair.key == name);
    match found.and_then(|pair| pair.value.as_ref()?.value.as_ref()) {
        Some(Any::StringValue(text)) => text.clone(),
        Some(Any::IntValue(number)) => number.to_string(),
        _ => String::new(),
    }
}

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Received>>>);

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().route("/v1/traces", post(take)).with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, url)
    }

    fn spans(&self) -> Vec<Received> {
        self.0.lock().unwrap().clone()
    }

    fn named(&self, name: &str) -> Vec<Received> {
        self.spans().into_iter().filter(|received| received.name() == name).collect()
    }
}

async fn take(State(collector): State<Collector>, body: Bytes) -> Vec<u8> {
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let mut kept = collector.0.lock().unwrap();
    for of_resource in request.resource_spans {
        let attributes = of_resource.resource.unwrap_or_default().attributes;
        let (service, pid) = (text(&attributes, "service.name"), text(&attributes, "process.pid"));
        for span in of_resource.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            kept.push(Received { service: service.clone(), pid: pid.clone(), span });
        }
    }
    Vec::new()
}

fn start(nats: &NatsServer, name: &str, log: &Path, collector: &str, arguments: &[&str]) -> Running {
    let mut command = program(name);
    command.args(["--server", &nats.url()]).args(arguments);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", collector).env("OTEL_BSP_SCHEDULE_DELAY", "100");
    Running::start(command, log)
}

/// Ends a service in order: its last spans are sent.
fn stop(service: Running) {
    signal(service.pid(), Signal::TERM);
    assert_eq!(service.wait(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_is_one_trace_across_processes_and_owners() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let (collector, url) = Collector::start().await;
    let start =
        |name: &str, log: &str, arguments: &[&str]| start(&nats, name, &workspace.path(log), &url, arguments);
    let (data, cache) = (workspace.path("run.toml"), workspace.path("cache"));
    std::fs::write(&data, CONFIG.replace("rounds = 3", "rounds = 8")).unwrap();
    let registry = start("fedpeft-registry", "registry.log", &[]);
    let first = start("fedpeft-aggregator", "first.log", &[]);
    publish_method(&nats, &workspace, "head");
    let worker = ["--clients", "4", "--evaluate", "--threads", "1", "--device", "cpu"];
    let paths = ["--data", data.to_str().unwrap(), "--cache", cache.to_str().unwrap()];
    let worker = start("fedpeft-worker", "worker.log", &[&worker[..], &paths[..]].concat());
    until(|| on(&nats, &["run", "list"]).output().unwrap().status.success().then_some(()));

    // Somebody with a trace of their own asks; another one sends rubbish in its place.
    let client = async_nats::connect(nats.url()).await.unwrap();
    let origin = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for header in [origin, "00-rubbish-01", ""] {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("traceparent", header);
        let asked = client.request_with_headers("fedpeft.v1.api.runs.list", headers, "{}".into()).await;
        assert!(asked.unwrap().payload.starts_with(b"{"));
    }

    succeed(on(&nats, &["run", "submit", data.to_str().unwrap(), "--name", "traced"]));
    // The first owner leaves in the middle of a round, whose clients do not answer for a while.
    until(|| (!collector.named("round").is_empty()).then_some(()));
    signal(worker.pid(), Signal::STOP);
    let is_over = |trace: &[u8]| collector.named("round").iter().any(|root| root.span.trace_id == trace);
    let (since, mut open) = (Instant::now(), None);
    let taken_over = until(|| {
        let mut opened = collector.named("broadcast").into_iter().map(|received| received.span.trace_id);
        let last = opened.rfind(|trace| !is_over(trace));
        if last != open {
            open = last.clone();
        }
        open.clone().filter(|_| since.elapsed() > Duration::from_secs(1))
    });
    stop(first);
    let second = start("fedpeft-aggregator", "second.log", &[]);
    until(|| {
        let log = std::fs::read_to_string(workspace.path("second.log")).ok()?;
        log.contains("round taken over").then_some(())
    });
    signal(worker.pid(), Signal::CONT);
    succeed(on(&nats, &["run", "watch", "traced"]));
    let view = json_of(on(&nats, &["run", "get", "traced", "--json"]));

    // A round that nobody ends but who cancels its run.
    signal(worker.pid(), Signal::STOP);
    succeed(on(&nats, &["run", "submit", data.to_str().unwrap(), "--name", "cancelled"]));
    let of_cancelled = |name: &str| {
        let mut found = collector.named(name).into_iter();
        found.find(|received| received.attribute("fedpeft.run") == "cancelled")
    };
    until(|| of_cancelled("broadcast"));
    succeed(on(&nats, &["run", "cancel", "cancelled"]));
    signal(worker.pid(), Signal::CONT);
    let root = until(|| of_cancelled("round"));
    assert!(root.span.status.is_some_and(|status| status.message == "the run was cancelled"));
    assert!(root.span.parent_span_id.is_empty());
    stop(worker);
    stop(second);
    stop(registry);

    let (spans, created) = (collector.spans(), created_ms(&view));
    for round in 1..=8 {
        check_round(&spans, round, created);
    }
    let owners = spans.iter().filter(|received| received.span.trace_id == taken_over);
    let owners: BTreeSet<_> =
        owners.filter(|received| received.name() == "broadcast").map(|received| &received.pid).collect();
    assert_eq!(owners.len(), 2, "both owners are in the trace of the round that was taken over");

    let requests = collector.named("fedpeft.v1.api.runs.list");
    let parents: Vec<_> = requests.iter().map(|request| hex(&request.span.parent_span_id)).collect();
    assert_eq!(parents.iter().filter(|parent| *parent == "b7ad6b7169203331").count(), 1, "{parents:?}");
    assert!(parents.iter().all(|parent| parent.is_empty() || parent == "b7ad6b7169203331"), "{parents:?}");
}

fn created_ms(view: &Value) -> u64 {
    let record = if view["record"].is_object() { &view["record"] } else { view };
    record["created_ms"].as_u64().unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// One round: one trace with one root, phases under it, tasks under the broadcast, answers under the tasks.
fn check_round(spans: &[Received], round: u32, created: u64) {
    let id =
        Digest::of(format!("fedpeft round trace\ntraced\n{created}\n{round}\n")).as_bytes()[..16].to_vec();
    let of_round: Vec<&Received> = spans.iter().filter(|received| received.span.trace_id == id).collect();
    // Whatever says that it is of this round is in this trace, and nothing else is.
    let says = |received: &Received| {
        received.attribute("fedpeft.run") == "traced"
            && received.attribute("fedpeft.round") == round.to_string()
    };
    let claimed = spans.iter().filter(|received| says(received)).count();
    assert_eq!(claimed, of_round.iter().filter(|received| says(received)).count());
    let services: BTreeSet<&str> = of_round.iter().map(|received| received.service.as_str()).collect();
    assert_eq!(services, BTreeSet::from(["fedpeft-aggregator", "fedpeft-worker"]));

    let named = |name: &str| -> Vec<&Received> {
        of_round.iter().copied().filter(|received| received.name() == name).collect()
    };
    let roots: Vec<_> = of_round.iter().filter(|received| received.span.parent_span_id.is_empty()).collect();
    let [root] = roots[..] else { panic!("round {round} has {} roots", roots.len()) };
    assert_eq!((root.name(), root.span.span_id.as_slice()), ("round", &id[8..]));
    let known: BTreeSet<&[u8]> = of_round.iter().map(|received| &received.span.span_id[..]).collect();
    assert_eq!(known.len(), of_round.len());
    for received in &of_round {
        let parent = &received.span.parent_span_id[..];
        assert!(parent.is_empty() || known.contains(parent), "{} has no parent", received.name());
        assert!(received.span.end_time_unix_nano >= received.span.start_time_unix_nano);
    }
    for phase in ["select", "broadcast", "collect", "commit", "evaluate"] {
        // A worker's own evaluation is called so too.
        let mut found = named(phase);
        found.retain(|found| found.service == "fedpeft-aggregator");
        assert!(!found.is_empty() && found.iter().all(|found| found.is_child_of(root)), "{phase} of {round}");
    }
    let train: Vec<_> =
        named("task").into_iter().filter(|task| task.attribute("fedpeft.work") == "train").collect();
    let clients: BTreeSet<_> = train.iter().map(|task| task.attribute("fedpeft.client")).collect();
    assert_eq!(clients.len(), 4);
    for task in train.iter().filter(|task| named("publish").iter().any(|sent| sent.is_child_of(task))) {
        assert!(named("broadcast").iter().any(|sent| task.is_child_of(sent)));
        for step in ["download", "wait", "train", "encode", "publish"] {
            assert!(named(step).iter().any(|found| found.is_child_of(task)), "{step} of round {round}");
        }
    }
    let updates = named("update");
    let taken = updates.iter().filter(|update| {
        let linked = update.span.links.iter().any(|link| {
            named("publish").iter().any(|sent| sent.span.span_id == link.span_id && link.trace_id == id)
        });
        linked && named("collect").iter().chain(&named("broadcast")).any(|phase| update.is_child_of(phase))
    });
    assert!(taken.count() >= 4, "round {round}");
    let evaluation =
        named("task").into_iter().find(|task| task.attribute("fedpeft.work") == "evaluate").unwrap();
    assert!(named("evaluate").iter().any(|phase| evaluation.is_child_of(phase)));
}

/// A collector that is not there, and one that never answers, cost warnings and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_collector_harms_nobody() {
    let (nats, workspace) = (NatsServer::start().await, Workspace::new());
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = async_nats::connect(nats.url()).await.unwrap();
    for address in [closed, mute.local_addr().unwrap()] {
        let log = workspace.path("aggregator.log");
        let aggregator = start(&nats, "fedpeft-aggregator", &log, &format!("http://{address}"), &[]);
        let mut answered = 0;
        while answered < 3 {
            answered += u32::from(client.request("fedpeft.v1.api.runs.list", "{}".into()).await.is_ok());
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        let ending = Instant::now();
        stop(aggregator);
        assert!(ending.elapsed() < Duration::from_secs(8), "{:?}", ending.elapsed());
        let log = std::fs::read_to_string(log).unwrap();
        let warnings = log.matches("the trace collector takes no spans").count();
        assert!(warnings == 1 || (address != closed && warnings == 0), "{log}");
    }
    let mut wrong = program("fedpeft-aggregator");
    let output = wrong.args(["--otlp-endpoint", "grpc://collector:4317"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let line = String::from_utf8_lossy(&output.stderr);
    assert!(line.starts_with("error: --otlp-endpoint") && line.lines().count() == 1, "{line}");
}
