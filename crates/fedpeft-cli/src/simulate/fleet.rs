//! The children of a simulation: which programs, with which arguments.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result};
use fedpeft_bus::BusConfig;

use super::{
    plan::{EVALUATOR, PREFIX, Plan, Worker},
    programs::{self, Places},
    supervisor::{Policy, Program},
};
use crate::connect;

/// Where the programs are.
#[derive(Debug)]
pub struct Fleet {
    nats_server: Option<PathBuf>,
    registry: PathBuf,
    aggregator: PathBuf,
    exporter: PathBuf,
    worker: PathBuf,
    ort_lib: PathBuf,
}

/// How workers are run.
#[derive(Debug, Clone)]
pub struct WorkerOptions<'a> {
    /// Device.
    pub device: &'a str,
    /// File that describes the data.
    pub data: &'a Path,
    /// Folder of the artifacts they pull.
    pub cache: &'a Path,
    /// Most LoRA ranks of clients.
    pub lora_ranks: &'a [u32],
    /// Whether the run may have their clients drop out, crash and be late.
    pub simulate_faults: bool,
    /// Whether they copy frozen weights into the order in which products read them.
    pub pack_weights: bool,
}

impl Fleet {
    /// Finds all programs; a broker only where one of our own is wanted.
    pub fn locate(places: &Places, own_broker: bool) -> Result<Self> {
        Ok(Self {
            nats_server: if own_broker { Some(places.nats_server()?) } else { None },
            registry: programs::service("fedpeft-registry")?,
            aggregator: programs::service("fedpeft-aggregator")?,
            exporter: programs::service("fedpeft-exporter")?,
            worker: programs::service("fedpeft-worker")?,
            ort_lib: places.ort_lib()?,
        })
    }

    /// Whether the broker is ours.
    pub fn has_broker(&self) -> bool {
        self.nats_server.is_some()
    }

    /// A broker that stores in `store`, and its address.
    pub fn broker(&self, store: &Path) -> Result<Option<(Program, BusConfig)>> {
        let Some(binary) = self.nats_server.clone() else { return Ok(None) };
        let port = free_port()?.port().to_string();
        let store = store.as_os_str();
        let args = ["--addr", "127.0.0.1", "--port", &port, "--jetstream", "--store_dir"];
        let args = args.into_iter().map(OsString::from).chain([store.to_owned()]).collect();
        let program = Program { name: "nats-server".to_owned(), binary, args, policy: Policy::Restart };
        Ok(Some((program, BusConfig { server: format!("nats://127.0.0.1:{port}"), ..connect::named() })))
    }

    /// The model registry.
    pub fn registry(&self, broker: &BusConfig) -> Program {
        service("registry", &self.registry, broker, Policy::Restart)
    }

    /// The aggregator.
    pub fn aggregator(&self, broker: &BusConfig) -> Program {
        service("aggregator", &self.aggregator, broker, Policy::Restart)
    }

    /// The exporter, and where it serves metrics.
    pub fn exporter(&self, broker: &BusConfig, address: Option<SocketAddr>) -> Result<(Program, SocketAddr)> {
        let address = address.map_or_else(free_port, Ok)?;
        let mut program = service("exporter", &self.exporter, broker, Policy::Restart);
        program.args.extend(["--http".into(), address.to_string().into()]);
        Ok((program, address))
    }

    /// A worker with its clients.
    pub fn worker(
        &self,
        broker: &BusConfig,
        worker: &Worker,
        threads: u32,
        options: &WorkerOptions<'_>,
    ) -> Program {
        let mut program = self.any_worker(&worker.name, broker, threads, options, Policy::LetGo);
        let hosted = [
            ("--clients", worker.clients.to_string()),
            ("--first", worker.first.to_string()),
            ("--clients-prefix", PREFIX.to_owned()),
        ];
        program.args.extend(hosted.into_iter().flat_map(|(flag, value)| [flag.into(), value.into()]));
        if !options.lora_ranks.is_empty() {
            let ranks: Vec<String> = options.lora_ranks.iter().map(u32::to_string).collect();
            program.args.extend(["--lora-rank".into(), ranks.join(",").into()]);
        }
        program
    }

    /// The worker that evaluates, where the plan has one.
    pub fn evaluator(&self, broker: &BusConfig, plan: &Plan, options: &WorkerOptions<'_>) -> Option<Program> {
        let split = plan.evaluator?;
        let mut program =
            self.any_worker(EVALUATOR, broker, plan.evaluator_threads, options, Policy::Restart);
        program.args.extend(["--evaluate", EVALUATOR, "--evaluate-on", split.word()].map(OsString::from));
        Some(program)
    }

    fn any_worker(
        &self,
        name: &str,
        broker: &BusConfig,
        threads: u32,
        options: &WorkerOptions<'_>,
        policy: Policy,
    ) -> Program {
        let mut program = service(name, &self.worker, broker, policy);
        let own: [(&str, OsString); 7] = [
            ("--worker", name.into()),
            ("--threads", threads.to_string().into()),
            ("--device", options.device.into()),
            ("--data", options.data.into()),
            ("--cache", options.cache.into()),
            ("--ort-lib", self.ort_lib.clone().into()),
            // A task that is cut off is handed back and done again: there is nothing to wait for.
            ("--drain-seconds", "1".into()),
        ];
        program.args.extend(own.into_iter().flat_map(|(flag, value)| [flag.into(), value]));
        if options.simulate_faults {
            program.args.push("--simulate-faults".into());
        }
        if options.pack_weights {
            program.args.push("--pack-weights".into());
        }
        program
    }

    /// Versions of the programs that are not ours.
    pub async fn versions(&self) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        let library = std::fs::canonicalize(&self.ort_lib).unwrap_or_else(|_| self.ort_lib.clone());
        let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if let Some((_, version)) = name.split_once(".so.") {
            versions.insert("onnxruntime".to_owned(), version.to_owned());
        }
        if let Some(binary) = &self.nats_server {
            let answer =
                tokio::process::Command::new(binary).arg("--version").stdin(Stdio::null()).output().await;
            let text = answer.map(|answer| String::from_utf8_lossy(&answer.stdout).trim().to_owned());
            if let Some(version) = text.ok().and_then(|text| Some(text.rsplit_once('v')?.1.to_owned())) {
                versions.insert("nats-server".to_owned(), version);
            }
        }
        versions
    }
}

fn service(name: &str, binary: &Path, broker: &BusConfig, policy: Policy) -> Program {
    let mut args: Vec<OsString> = vec!["--server".into(), broker.server.clone().into()];
    let tls = &broker.tls;
    let files = [
        ("--creds", &broker.creds),
        ("--tls-ca", &tls.ca),
        ("--tls-cert", &tls.cert),
        ("--tls-key", &tls.key),
    ];
    for (flag, file) in files {
        args.extend(file.iter().flat_map(|file| [flag.into(), file.clone().into()]));
    }
    if tls.first {
        args.push("--tls-first=true".into());
    }
    Program { name: name.to_owned(), binary: binary.to_owned(), args, policy }
}

/// A port that nobody uses now.
fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no port of 127.0.0.1 is free")?;
    listener.local_addr().context("no port of 127.0.0.1 is free")
}
