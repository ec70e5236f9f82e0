//! From events on a real broker to the text of a scrape.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::time::Duration;

use fedpeft_bus::{Bus, Place};
use fedpeft_exporter::{Exporter, Ledger, Limits};
use fedpeft_protocol::{
    ClientId, Digest, PROTOCOL_VERSION, RunId,
    event::{Event, EventKind},
    round::{ClientOutcome, ClientReport, PhaseSeconds, RoundReport},
    run::PrivacyState,
    run::RunStatus,
};
use fedpeft_testkit::{NatsServer, locate_binary};
use prometheus::{Registry, TextEncoder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const LIMITS: Limits = Limits { runs: 3, rounds: 2, clients: 0 };

fn event(run: &str, kind: EventKind) -> Event {
    Event { version: PROTOCOL_VERSION, run: RunId::new(run).unwrap(), at_ms: 1, epoch: 1, kind }
}

fn client(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

fn status(run: &str, status: RunStatus) -> Event {
    let kind = EventKind::Status {
        status,
        method: "bias".into(),
        rounds: 3,
        adapter_values: 10,
        backbone_values: 1000,
    };
    event(run, kind)
}

fn report(round: u32, accuracy: Option<f64>) -> RoundReport {
    let one = |name: &str, outcome| ClientReport {
        client: client(name),
        outcome,
        examples: 1,
        bytes_up: 60,
        bytes_down: 70,
        bytes_by_kind: [("up.adapter".to_owned(), 60), ("down.adapter".to_owned(), 70)].into(),
        loss: None,
        train_seconds: 1.0,
        personal: None,
        updates: 0,
        epsilon: None,
    };
    let bytes = [("up.adapter", 100), ("up.control", 20), ("down.adapter", 140), ("sideways.?", 9)];
    RoundReport {
        round,
        loss: accuracy.map(|a| 1.0 - a),
        accuracy,
        train_loss: 0.25,
        bytes_up: 120,
        bytes_down: 140,
        bytes_by_kind: bytes.map(|(key, count)| (key.to_owned(), count)).into(),
        payload_by_kind: [("up.adapter".to_owned(), 90)].into(),
        clients: vec![
            one(
                "a",
                ClientOutcome::Accepted {
                    digest: Digest::of(b"a"),
                    update: "u".into(),
                    weight: 1,
                    staleness: 0,
                },
            ),
            one("b", ClientOutcome::Dropped),
        ],
        secure: None,
        privacy: Some(PrivacyState {
            noise_multiplier: 1.0,
            clip_norm: 0.5,
            epsilon: 0.25 * f64::from(round),
            again: 0,
            release: None,
        }),
        seconds: PhaseSeconds { train: 1.5, total: 2.0, ..Default::default() },
        previous: Digest::of("p"),
        adapter: Digest::of(b"g"),
        residual: None,
        epoch: 1,
        ledger: fedpeft_protocol::ledger::empty(),
    }
}

fn closed(run: &str, round: u32, accuracy: Option<f64>) -> Event {
    event(run, EventKind::RoundClosed { report: Box::new(report(round, accuracy)) })
}

fn accepted(run: &str, round: u32, name: &str) -> Event {
    let kind = EventKind::UpdateAccepted {
        round,
        client: client(name),
        examples: 1,
        loss: 0.1,
        seconds: 1.0,
        size: 60,
    };
    event(run, kind)
}

fn rejected(run: &str, round: u32, name: &str) -> Event {
    event(run, EventKind::UpdateRejected { round, client: client(name), reason: "not finite".into() })
}

/// Three rounds, with what an aggregator says again after a restart.
fn script(run: &str) -> Vec<Event> {
    let opened = |round| EventKind::RoundOpened { round, cohort: vec![client("a"), client("b")] };
    vec![
        status(run, RunStatus::Running),
        event(run, EventKind::Waiting { present: 1, needed: 2 }),
        event(run, opened(1)),
        accepted(run, 1, "a"),
        rejected(run, 1, "b"),
        accepted(run, 1, "a"),
        rejected(run, 1, "b"),
        closed(run, 1, Some(0.5)),
        accepted(run, 1, "a"),
        event(run, opened(2)),
        accepted(run, 2, "a"),
        closed(run, 2, Some(0.75)),
        closed(run, 2, Some(0.75)),
        event(run, opened(3)),
        accepted(run, 3, "a"),
        closed(run, 3, None),
        status(run, RunStatus::Completed),
    ]
}

fn scrape(registry: &Registry) -> String {
    TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
}

/// Folds what is stored and returns the page.
async fn page_of(bus: &Bus, limits: Limits) -> String {
    let registry = Registry::new();
    let exporter = Exporter::new(limits, &registry).unwrap();
    let (caught_up, wait) = tokio::sync::oneshot::channel();
    let bus = bus.clone();
    let following = tokio::spawn(async move { exporter.follow(&bus, || caught_up.send(()).unwrap()).await });
    wait.await.unwrap();
    following.abort();
    scrape(&registry)
}

fn assert_lines(page: &str, lines: &[&str]) {
    for line in lines {
        assert!(page.lines().any(|found| found == *line), "{line:?} is missing in\n{page}");
    }
}

#[tokio::test]
async fn a_scripted_run_gives_exactly_these_metrics_and_a_replay_the_same() {
    let mut server = NatsServer::start().await;
    let bus = server.bus().await;
    for event in script("r") {
        bus.publish_event(&event).await.unwrap();
    }
    let page = page_of(&bus, LIMITS).await;
    assert_lines(
        &page,
        &[
            "fedpeft_run_info{method=\"bias\",run=\"r\",status=\"completed\"} 1",
            "fedpeft_rounds_total{run=\"r\"} 3",
            "fedpeft_rounds_planned{run=\"r\"} 3",
            "fedpeft_round{run=\"r\"} 3",
            "fedpeft_bytes_total{direction=\"up\",kind=\"adapter\",run=\"r\"} 300",
            "fedpeft_bytes_total{direction=\"up\",kind=\"control\",run=\"r\"} 60",
            "fedpeft_payload_bytes_total{direction=\"up\",kind=\"adapter\",run=\"r\"} 270",
            "fedpeft_bytes_total{direction=\"down\",kind=\"adapter\",run=\"r\"} 420",
            "fedpeft_round_bytes{direction=\"up\",kind=\"adapter\",round=\"3\",run=\"r\"} 100",
            "fedpeft_loss{run=\"r\"} 0.25",
            "fedpeft_accuracy{run=\"r\"} 0.75",
            "fedpeft_train_loss{run=\"r\"} 0.25",
            "fedpeft_privacy_clip_norm{run=\"r\"} 0.5",
            "fedpeft_cohort_clients{outcome=\"accepted\",run=\"r\"} 1",
            "fedpeft_cohort_clients{outcome=\"dropped\",run=\"r\"} 1",
            "fedpeft_cohort_clients{outcome=\"failed\",run=\"r\"} 0",
            "fedpeft_round_seconds{phase=\"train\",run=\"r\"} 1.5",
            "fedpeft_updates_accepted_total{run=\"r\"} 3",
            "fedpeft_updates_rejected_total{run=\"r\"} 1",
            "fedpeft_adapter_values{method=\"bias\",run=\"r\"} 10",
            "fedpeft_backbone_values{run=\"r\"} 1000",
            // Three rounds, two models down and one up in each, of 1000 four-byte values.
            "fedpeft_full_finetuning_bytes{run=\"r\"} 36000",
            "# TYPE fedpeft_bytes_total counter",
            "# TYPE fedpeft_accuracy gauge",
            "fedpeft_exporter_events_total 17",
            "fedpeft_exporter_events_pending 0",
        ],
    );
    // Only the last two rounds are shown one by one, nothing is in progress, and odd kinds make no label.
    for absent in ["round=\"1\"", "fedpeft_open_round{", "sideways", "client=\""] {
        assert!(!page.contains(absent), "{absent} is in\n{page}");
    }
    server.restart().await;
    assert_eq!(page_of(&bus, LIMITS).await, page);
}

#[tokio::test]
async fn the_runs_without_news_are_forgotten_first() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    for run in ["r1", "r2", "r3", "r1", "r4"] {
        bus.publish_event(&status(run, RunStatus::Pending)).await.unwrap();
    }
    let page = page_of(&bus, LIMITS).await;
    for (run, kept) in [("r1", true), ("r2", false), ("r3", true), ("r4", true)] {
        assert_eq!(page.contains(&format!("run=\"{run}\"")), kept, "{run}");
    }
}

#[test]
fn an_event_told_twice_counts_once() {
    let mut once = Ledger::new(LIMITS);
    let mut twice = Ledger::new(LIMITS);
    // Messages with two events each.
    let places = (1..).flat_map(|sequence| [1, 2].map(|part| Place { sequence, part }));
    for (place, event) in places.zip(script("r")) {
        once.fold(place, 0, &event);
        twice.fold(place, 0, &event);
        twice.fold(place, 0, &event);
        twice.fold(Place { sequence: 1, part: 1 }, 0, &event);
    }
    assert_eq!(format!("{once:?}"), format!("{twice:?}"));
}

#[test]
fn forged_events_take_bounded_memory_and_stop_nothing() {
    let mut ledger = Ledger::new(LIMITS);
    let mut sequence = 0;
    let mut fold = |event: &Event| {
        sequence += 1;
        ledger.fold(Place { sequence, part: 0 }, 0, event);
    };
    for round in 0..20_000 {
        fold(&accepted("r", u32::MAX - round, "nobody"));
        fold(&rejected("r", u32::MAX - round, "nobody"));
    }
    let mut huge = report(u32::MAX, Some(f64::NAN));
    huge.bytes_by_kind = [("up.adapter".to_owned(), u64::MAX)].into();
    for round in [u32::MAX - 1, u32::MAX, u32::MAX] {
        huge.round = round;
        fold(&event("r", EventKind::RoundClosed { report: Box::new(huge.clone()) }));
    }
    for run in 0..100 {
        fold(&status(&format!("run-{run}"), RunStatus::Running));
    }
    assert!(format!("{ledger:?}").len() < 100_000, "runs and answers are forgotten");
}

async fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[tokio::test]
async fn the_program_serves_the_page_and_ends_in_order() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    for event in script("r") {
        bus.publish_event(&event).await.unwrap();
    }
    let port = free_port();
    let mut program = tokio::process::Command::new(locate_binary("fedpeft-exporter").unwrap())
        .args(["--server", &server.url(), "--http", &format!("127.0.0.1:{port}"), "--log-format", "json"])
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    while TcpStream::connect(("127.0.0.1", port)).await.is_err()
        || !get(port, "/readyz").await.contains(" 200 ")
    {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let page = get(port, "/metrics").await;
    for expected in [
        "fedpeft_rounds_total{run=\"r\"} 3",
        "process_resident_memory_bytes ",
        "process_cpu_seconds_total ",
        "fedpeft_build_info{program=\"fedpeft-exporter\"",
    ] {
        assert!(page.contains(expected), "{expected} is missing in\n{page}");
    }
    assert!(get(port, "/healthz").await.contains("ok"));
    let pid = program.id().unwrap().to_string();
    std::process::Command::new("kill").args(["-s", "TERM", &pid]).status().unwrap();
    assert!(program.wait().await.unwrap().success());
}

#[tokio::test]
async fn the_program_says_in_one_line_why_it_cannot_start() {
    let program = locate_binary("fedpeft-exporter").unwrap();
    let port = free_port();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let free = format!("127.0.0.1:{port}");
    let cases: [(&[&str], &str); 4] = [
        (
            &["--server", "nats://127.0.0.1:1", "--http", &free],
            "cannot reach a NATS server at nats://127.0.0.1:1",
        ),
        (&["--http", &taken], "cannot listen on"),
        (&["--config", "/does/not/exist.toml"], "/does/not/exist.toml"),
        (&["--log", "no=such=filter"], "log filter"),
    ];
    for (arguments, expected) in cases {
        let output = tokio::process::Command::new(&program).args(arguments).output().await.unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("error: ") && stderr.contains(expected), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
}

#[tokio::test]
async fn clients_are_shown_where_asked_for_and_only_so_many() {
    let server = NatsServer::start().await;
    let bus = server.bus().await;
    for event in script("r") {
        bus.publish_event(&event).await.unwrap();
    }
    let lines = |name: &str| {
        ["up} 180", "down} 210"].map(|direction| {
            let (direction, value) = direction.split_once('}').unwrap();
            format!("fedpeft_client_bytes{{client=\"{name}\",direction=\"{direction}\",run=\"r\"}}{value}")
        })
    };
    let page = page_of(&bus, Limits { clients: 1, ..LIMITS }).await;
    for line in lines("a").iter().chain(&lines("(other)")) {
        assert_lines(&page, &[line]);
    }
    assert_eq!(page.matches("client=\"").count(), 4, "{page}");
}
