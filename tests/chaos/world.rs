//! A whole federation: broker, two aggregators, registry, exporter, workers, an evaluator.

use std::{collections::BTreeMap, path::Path, time::Duration};

use fedpeft_bus::{Bus, BusConfig};
use fedpeft_peft::Method;
use fedpeft_protocol::{
    ModelName, Round, RunId,
    api::{CreateRun, RunRequest},
    run::{RunRecord, RunSpec, RunView},
};
use fedpeft_testkit::locate_binary;
use tempfile::TempDir;
use tokio::{process::Command, sync::Mutex, time::Instant};

use crate::{broker::Broker, model, processes::Process, replay::Tap, schedule::Target};

/// Clients, all of them in every cohort.
pub const CLIENTS: u32 = 6;
/// Worker processes, each with as many clients.
pub const WORKERS: usize = 3;

/// Longer than anything takes that is not stuck.
pub const PATIENCE: Duration = Duration::from_secs(300);
/// Longer than any jump of a clock, so that no round comes to its deadline.
const DEADLINE_SECONDS: f64 = 7.0 * 24.0 * 3600.0;

/// The runs of a trial: one whose adapters travel in messages, one whose adapters travel as blobs.
pub const RUNS: [Method; 2] = [Method::Bias, Method::Full];

/// Everything ends when it is dropped.
pub struct World {
    pub bus: Bus,
    pub tap: Tap,
    /// Aggregators first, then registry, exporter, evaluator and workers.
    pub processes: Vec<Process>,
    pub broker: Mutex<Broker>,
    folder: TempDir,
}

impl World {
    /// Starts everything, and publishes a model for each of [`RUNS`].
    pub async fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("fedpeft-chaos-").tempdir().unwrap();
        let broker = Broker::start(folder.path()).await;
        let config = BusConfig { server: broker.url(), name: "chaos".into(), ..Default::default() };
        let bus = Bus::connect(&config).await.unwrap();
        bus.ensure_topology().await.unwrap();
        let tap = Tap::new(async_nats::connect(broker.url()).await.unwrap()).await;
        let processes = processes(&broker.url(), folder.path()).await;
        let world = Self { bus, tap, processes, broker: Mutex::new(broker), folder };
        assert!(world.ready(PATIENCE).await, "not ready: {}", world.diagnosis());
        for method in RUNS {
            let artifacts = model::artifacts(world.folder.path(), &method);
            let name = ModelName::new(method.name()).unwrap();
            fedpeft_registry::push_folder(&world.bus, &artifacts, &name, |_, _, _| ()).await.unwrap();
        }
        world
    }

    /// Creates the run of a method, named after it.
    pub async fn create(&self, method: Method, rounds: Round, epochs: u32) -> RunId {
        let run = RunId::new(method.name()).unwrap();
        let spec: RunSpec = serde_json::from_value(serde_json::json!({
            "model": { "name": method.name() },
            "rounds": rounds,
            "cohort": CLIENTS,
            "quorum": CLIENTS,
            "round_deadline_seconds": DEADLINE_SECONDS,
            "training": { "local_epochs": epochs, "batch_size": 8, "learning_rate": 0.001 },
            "evaluation": { "every": 1, "deadline_seconds": DEADLINE_SECONDS },
            "seed": 7,
            // So that every sum of the run whose adapters are small can be computed again.
            "keep_updates": method == Method::Bias,
        }))
        .unwrap();
        let request = CreateRun { run: Some(run.clone()), spec };
        let _: RunRecord = self.bus.request("runs.create", &request).await.unwrap();
        run
    }

    /// A run and its rounds. An aggregator that is just starting is asked again.
    pub async fn view(&self, run: &RunId) -> RunView {
        let request = RunRequest { run: run.clone() };
        let give_up = Instant::now() + PATIENCE;
        loop {
            match self.bus.request("runs.get", &request).await {
                Ok(view) => return view,
                Err(error) => assert!(Instant::now() < give_up, "no view of {run}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// What `fedpeft run verify` says of a run that has ended: what it found, or its error.
    pub async fn verify(&self, run: &RunId) -> Result<serde_json::Value, String> {
        let server = self.broker.lock().await.url();
        let mut command = Command::new(locate_binary("fedpeft").unwrap());
        command.args(["run", "verify", run.as_str(), "--json", "--server", &server]);
        let output = command.output().await.unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())
    }

    /// Waits until the exporter has counted as many rounds of a run; whether it ever did.
    pub async fn exported(&self, run: &RunId, rounds: Round) -> bool {
        let line = format!("fedpeft_rounds_total{{run=\"{run}\"}} {rounds}");
        let exporter = self.target(Target::Exporter);
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            let page = exporter.page("/metrics").await.unwrap_or_default();
            if page.lines().any(|found| found == line) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        false
    }

    /// The process that a fault is for.
    pub fn target(&self, target: Target) -> &Process {
        let name = match target {
            Target::Owner => return self.aggregators().0,
            Target::Standby => return self.aggregators().1,
            Target::Worker(index) => format!("worker-{}", index + 1),
            Target::Registry => "registry".into(),
            Target::Exporter => "exporter".into(),
        };
        self.processes.iter().find(|process| process.name == name).unwrap()
    }

    /// The aggregator that drives a run, and the other one: the last to take it drew the highest fencing token.
    fn aggregators(&self) -> (&Process, &Process) {
        let epoch = |process: &Process| {
            let log = std::fs::read_to_string(&process.log).unwrap_or_default();
            let taken = log.lines().rfind(|line| line.contains("driving run"));
            taken.and_then(|line| line.split("epoch=").nth(1)?.split(' ').next()?.parse::<u64>().ok())
        };
        let (first, second) = (&self.processes[0], &self.processes[1]);
        if epoch(first) >= epoch(second) { (first, second) } else { (second, first) }
    }

    /// Waits until every process is up and says that it is ready.
    pub async fn ready(&self, patience: Duration) -> bool {
        let all = async {
            for process in &self.processes {
                while !process.is_ready().await {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        tokio::time::timeout(patience, all).await.is_ok()
    }

    /// What one looks at when nothing goes on.
    pub fn diagnosis(&self) -> String {
        let of = |process: &Process| {
            format!(
                "{} (pid {:?}, started {} times):\n{}\n",
                process.name,
                process.pid(),
                process.starts(),
                process.last_words(30)
            )
        };
        self.processes.iter().map(of).collect()
    }

    /// How often each process was started.
    pub fn starts(&self) -> BTreeMap<String, u32> {
        self.processes.iter().map(|process| (process.name.clone(), process.starts())).collect()
    }
}

async fn processes(broker: &str, folder: &Path) -> Vec<Process> {
    let data = model::data(folder).display().to_string();
    let clients = CLIENTS as usize / WORKERS;
    let worker = |arguments: [String; 3]| {
        let common = ["--data", &data, "--device", "cpu", "--threads", "1"].map(str::to_owned);
        [&common[..], &arguments[..]].concat()
    };
    let mut all = vec![
        ("aggregator-1".to_owned(), "fedpeft-aggregator", vec![]),
        ("aggregator-2".to_owned(), "fedpeft-aggregator", vec![]),
        ("registry".to_owned(), "fedpeft-registry", vec![]),
        ("exporter".to_owned(), "fedpeft-exporter", vec![]),
    ];
    let evaluator = ["--evaluate", "evaluator", "--worker=evaluator"].map(str::to_owned);
    all.push(("evaluator".to_owned(), "fedpeft-worker", worker(evaluator)));
    for index in 0..WORKERS {
        let name = format!("worker-{}", index + 1);
        let arguments = [
            format!("--clients={clients}"),
            format!("--first={}", index * clients),
            format!("--worker={name}"),
        ];
        all.push((name, "fedpeft-worker", worker(arguments)));
    }
    let mut processes = Vec::new();
    for (name, program, arguments) in all {
        processes.push(Process::keep(name, program, arguments, broker, folder).await);
    }
    processes
}
