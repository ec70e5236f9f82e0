//! `fedpeft doctor`: what a run needs, looked at in the order in which it would be missed.

use std::{path::Path, process::Command as Process, time::Duration};

use anyhow::{Result, bail};
use fedpeft_bus::{Bus, BusConfig, BusError};
use fedpeft_protocol::{
    PROTOCOL_VERSION,
    api::{Empty, RunList},
};
use serde::Serialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::{
    connect::{Connection, block_on},
    output::{self, Output},
    simulate::programs::{self, Places},
};

/// Where to look.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  fedpeft doctor
  fedpeft doctor --server tls://broker:4222 --creds admin.creds --json

Exit status: 0 if nothing is wrong, 1 if anything is. Warnings are not wrong: a machine that only submits runs needs no
ONNX Runtime.")]
pub struct Args {
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    places: Places,
    #[command(flatten)]
    output: Output,
}

/// How a thing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Ok,
    Warning,
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Serialize)]
struct Finding {
    what: &'static str,
    state: State,
    detail: String,
}

/// Programs beside this one that services and simulations need.
const PROGRAMS: [&str; 4] = ["fedpeft-aggregator", "fedpeft-worker", "fedpeft-registry", "fedpeft-exporter"];
/// Room below which artifacts of a small backbone do not fit twice.
const LITTLE_ROOM: u64 = 1 << 30;
/// Services answer at once or not at all.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at everything, and says what cures what is wrong.
pub fn run(args: Args) -> Result<()> {
    let Args { connection, places, output } = args;
    let mut findings = vec![programs(), nats_server(&places)];
    findings.extend(runtime(&places));
    findings.push(room(&places));
    block_on(async {
        findings.extend(broker(&connection.config()).await);
        Ok(())
    })?;
    output.show(&findings, |findings| {
        let lines = findings.iter().map(|Finding { what, state, detail }| {
            let mark = match state {
                State::Ok => "ok     ",
                State::Warning => "warning",
                State::Wrong => "WRONG  ",
            };
            format!("{mark}  {what:<12}  {detail}")
        });
        lines.collect::<Vec<_>>().join("\n")
    })?;
    match findings.iter().filter(|finding| finding.state == State::Wrong).count() {
        0 => Ok(()),
        1 => bail!("one thing is wrong"),
        many => bail!("{many} things are wrong"),
    }
}

fn found(what: &'static str, detail: impl ToString) -> Finding {
    Finding { what, state: State::Ok, detail: detail.to_string() }
}

fn missing(what: &'static str, state: State, detail: impl ToString) -> Finding {
    Finding { what, state, detail: detail.to_string() }
}

fn programs() -> Finding {
    let absent: Vec<&str> = PROGRAMS.into_iter().filter(|name| programs::service(name).is_err()).collect();
    match absent.is_empty() {
        true => found("programs", "aggregator, worker, registry and exporter are here"),
        false => missing(
            "programs",
            State::Warning,
            format!(
                "{} neither beside fedpeft nor in PATH: `fedpeft simulate` needs them",
                absent.join(", ")
            ),
        ),
    }
}

fn nats_server(places: &Places) -> Finding {
    match places.nats_server() {
        Ok(path) => found("nats-server", path.display()),
        Err(error) => {
            missing("nats-server", State::Warning, format!("{error}; `fedpeft simulate` starts one"))
        }
    }
}

/// The library and the device, as the worker finds them.
fn runtime(places: &Places) -> Vec<Finding> {
    let Ok(worker) = programs::service("fedpeft-worker") else { return Vec::new() };
    let mut check = Process::new(worker);
    check.arg("--check");
    if let Ok(library) = places.ort_lib() {
        check.arg("--ort-lib").arg(library);
    }
    let report = match check.output() {
        Ok(output) if output.status.success() => serde_json::from_slice::<Value>(&output.stdout).ok(),
        Ok(output) => {
            let told = String::from_utf8_lossy(&output.stderr);
            let line = told.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            return vec![missing(
                "ONNX Runtime",
                State::Warning,
                format!("{line}; workers on this machine need it"),
            )];
        }
        Err(error) => {
            return vec![missing("ONNX Runtime", State::Warning, format!("fedpeft-worker: {error}"))];
        }
    };
    let text =
        |field: &str| report.as_ref().and_then(|report| report[field].as_str()).unwrap_or("?").to_owned();
    vec![found("ONNX Runtime", text("library")), found("device", text("device"))]
}

fn room(places: &Places) -> Finding {
    let Ok(cache) = places.cache() else {
        return missing(
            "disk",
            State::Warning,
            "there is no home for built artifacts: name a folder with --cache",
        );
    };
    // The folder itself may still have to be made.
    let there = cache.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(there) {
        Ok(stat) => {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let detail = format!("{} free at {}", output::bytes(free), there.display());
            match free < LITTLE_ROOM {
                true => missing(
                    "disk",
                    State::Wrong,
                    format!("{detail}: make room, or name another folder with --cache"),
                ),
                false => found("disk", detail),
            }
        }
        Err(error) => missing("disk", State::Warning, format!("{}: {error}", there.display())),
    }
}

/// The broker, and who is on it.
async fn broker(config: &BusConfig) -> Vec<Finding> {
    let bus = match Bus::connect(config).await {
        Ok(bus) => bus,
        Err(error) => return vec![missing("broker", State::Wrong, error)],
    };
    let mut findings = vec![found(
        "broker",
        format!("{}, messages of up to {}", bus.server(), output::bytes(bus.max_payload() as u64)),
    )];
    match bus.ensure_topology().await {
        Ok(()) => findings.push(found("JetStream", "streams and buckets are there")),
        Err(error) => {
            findings.push(missing("JetStream", State::Wrong, error));
            return findings;
        }
    }
    findings.push(asked(&bus, "aggregator", "runs.list").await);
    findings.push(asked(&bus, "registry", "models.list").await);
    findings.push(clients(&bus).await);
    findings
}

/// Whether a service answers, which takes permission to ask.
async fn asked(bus: &Bus, what: &'static str, endpoint: &str) -> Finding {
    let asking = async {
        match endpoint {
            "runs.list" => {
                let list = bus.request::<_, RunList>(endpoint, &Empty {}).await?;
                let active = list.runs.iter().filter(|run| !run.status.is_final()).count();
                Ok::<_, BusError>(format!("{} runs, {active} of them active", list.runs.len()))
            }
            _ => bus.request::<_, Value>(endpoint, &Empty {}).await.map(|_| "answers".to_owned()),
        }
    };
    match timeout(PATIENCE, asking).await {
        Ok(Ok(detail)) => found(what, detail),
        Ok(Err(error)) => missing(what, State::Wrong, error),
        Err(_) => missing(
            what,
            State::Wrong,
            format!("no answer in {} s: start fedpeft-{what}", PATIENCE.as_secs()),
        ),
    }
}

async fn clients(bus: &Bus) -> Finding {
    let listing = async { bus.clients().await?.list("").await };
    match timeout(PATIENCE, listing).await {
        Ok(Ok(entries)) => {
            let present = entries.iter().map(|entry| &entry.value);
            let other = present.clone().filter(|presence| presence.version != PROTOCOL_VERSION).count();
            let trains = present.clone().filter(|presence| presence.capabilities.trains).count();
            let evaluates = present.filter(|presence| presence.capabilities.evaluates).count();
            let detail = format!("{trains} train, {evaluates} evaluate");
            match (trains, other) {
                (0, _) => missing(
                    "clients",
                    State::Warning,
                    format!("{detail}: start fedpeft-worker where data is"),
                ),
                (_, 0) => found("clients", detail),
                _ => missing(
                    "clients",
                    State::Warning,
                    format!("{detail}; {other} speak another version of the protocol"),
                ),
            }
        }
        // Presence is for the services and the operator.
        Ok(Err(error)) => missing("clients", State::Warning, error),
        Err(_) => missing("clients", State::Warning, "no list of clients in time"),
    }
}
