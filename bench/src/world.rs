//! A broker, a published model and an aggregator, as processes of their own.

use std::{collections::BTreeMap, process::Stdio};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use fedpeft_artifacts::manifest::{
    BackboneSpec, ElementType, FORMAT_VERSION, FileRef, Files, InputSource, InputSpec, Manifest, TaskSpec,
};
use fedpeft_bus::{
    Bus, BusConfig,
    server::{LocalServer, ServerOptions},
};
use fedpeft_codec::{Layout, TensorSpec, encode};
use fedpeft_protocol::{Digest, ModelName, PROTOCOL_VERSION, model::ModelVersion};
use fedpeft_service::process::memory;
use fedpeft_testkit::{assets, locate_binary};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;
use tokio::process::{Child, Command};

/// Name of the model.
pub const MODEL: &str = "bench";

/// A broker with our streams.
pub struct Broker {
    pub bus: Bus,
    server: LocalServer,
    _store: TempDir,
}

impl Broker {
    pub async fn start() -> Result<Self> {
        let store = tempfile::tempdir()?;
        let options = ServerOptions {
            binary: assets().nats_server()?,
            store: Some(store.path().join("store")),
            port: None,
            config: None,
        };
        let server = LocalServer::start(options).await?;
        let bus = connect(&server.url()).await?;
        bus.ensure_topology().await?;
        Ok(Self { bus, server, _store: store })
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.server.url()
    }

    /// Another connection.
    pub async fn connect(&self) -> Result<Bus> {
        connect(&self.url()).await
    }

    /// Most memory that it was ever resident with, in bytes.
    pub fn peak(&self) -> u64 {
        peak(self.server.pid())
    }
}

/// A connection.
pub async fn connect(server: &str) -> Result<Bus> {
    let config = BusConfig { server: server.into(), name: "bench".into(), ..Default::default() };
    Ok(Bus::connect(&config).await?)
}

fn peak(pid: Option<u32>) -> u64 {
    memory(pid).map_or(0, |memory| memory.peak)
}

/// What the clients meet.
pub struct World {
    pub broker: Broker,
    aggregator: Child,
}

impl World {
    /// Starts it, with a model whose adapter has `values` values.
    pub async fn start(values: u64) -> Result<Self> {
        let broker = Broker::start().await?;
        publish(&broker.bus, values).await?;
        let aggregator = Command::new(locate_binary("fedpeft-aggregator")?)
            .args(["--server", &broker.url(), "--log", "error"])
            // As `fedpeft simulate` and the images have it.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start fedpeft-aggregator")?;
        Ok(Self { broker, aggregator })
    }

    /// Most memory that aggregator and broker were ever resident with, in bytes.
    pub fn peaks(&self) -> (u64, u64) {
        (peak(self.aggregator.id()), self.broker.peak())
    }
}

/// An adapter of these values.
pub fn adapter(values: u64) -> Bytes {
    encode(&(0..values).map(|at| (at as f32).cos()).collect::<Vec<_>>())
}

/// A model that nobody trains: only its adapter is real.
async fn publish(bus: &Bus, values: u64) -> Result<()> {
    let initial = adapter(values);
    let shape = vec![usize::try_from(values)?];
    let view = TensorView::new(Dtype::F32, shape, &initial)?;
    let checkpoint = safetensors::serialize([("head.weight", view)], None)?;
    let file = |name: &str, bytes: &[u8]| {
        let (digest, size) = (Digest::of(bytes), bytes.len() as u64);
        FileRef { name: name.into(), digest, size }
    };
    let manifest = Manifest {
        format: FORMAT_VERSION,
        method: fedpeft_peft::Method::Head.into(),
        adapter: Layout::new(vec![TensorSpec { name: "head.weight".into(), shape: vec![values] }])?,
        excluded: BTreeMap::new(),
        inputs: vec![InputSpec {
            name: "pixels".into(),
            dtype: ElementType::F32,
            shape: vec![1, 2, 2],
            source: InputSource::Values,
        }],
        text: None,
        task: TaskSpec::classification(2),
        backbone: BackboneSpec { values: 1000, storage: Default::default(), source: Digest::of("source") },
        opset: 17,
        files: Files {
            training: file("training.onnx", b"t"),
            eval: file("eval.onnx", b"e"),
            optimizer_sgd: file("sgd.onnx", b"s"),
            dp_training: None,
            optimizer_adamw: file("adamw.onnx", b"a"),
            checkpoint: file("checkpoint.safetensors", &checkpoint),
            backbone: file("backbone.bin", b"b"),
        },
    };
    bus.put_blob(checkpoint.into()).await?;
    for body in ["t", "e", "s", "a", "b"] {
        bus.put_blob(body.into()).await?;
    }
    let manifest = bus.put_blob(manifest.to_json()?.into()).await?.digest;
    let version = ModelVersion {
        version: PROTOCOL_VERSION,
        name: ModelName::new(MODEL)?,
        number: 1,
        method: "head".into(),
        manifest,
        files: vec![],
        published_ms: 1,
    };
    bus.models().await?.put(&format!("{MODEL}.1"), &version).await?;
    Ok(())
}
