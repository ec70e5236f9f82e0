//! A broker with a published model, aggregators to start and kill, and clients to play.

use std::{collections::BTreeMap, ops::Range, path::PathBuf, time::Duration};

use bytes::Bytes;
use fedpeft_aggregator::{Aggregator, EdgeOptions, EdgeRounds, Options};
use fedpeft_artifacts::manifest::{
    BackboneSpec, ElementType, FORMAT_VERSION, FileRef, Files, InputSource, InputSpec, Manifest, TaskSpec,
};
use fedpeft_bus::{Bus, BusError, Stored, Tasks, UploadKey};
use fedpeft_codec::{Base, Codec, Layout, Seed, TensorSpec, encode};
use fedpeft_peft::Method;
use fedpeft_privacy::NoiseSecret;
use fedpeft_protocol::{
    ClientId, Digest, ModelName, PROTOCOL_VERSION, Round, RunId,
    api::{CreateRun, RunRequest},
    event::{Event, EventKind},
    model::ModelVersion,
    presence::{Capabilities, Presence},
    round::{Outcome, Payload, Task, Update, Work},
    run::{EvaluationSpec, ModelRef, RunRecord, RunSpec, RunStatus, RunView},
};
use fedpeft_service::CancellationToken;
use fedpeft_testkit::NatsServer;
use safetensors::{Dtype, tensor::TensorView};
use tokio::{task::JoinHandle, time::timeout};

/// Nothing in these tests takes longer, a lease's end included.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The stream behind the object store of uploads.
const UPLOADS: &str = "OBJ_fedpeft-uploads";

pub struct Federation {
    pub nats: NatsServer,
    pub bus: Bus,
    pub layout: Layout,
    method: Method,
    heartbeats: BTreeMap<ClientId, JoinHandle<()>>,
}

/// An aggregator in this process.
pub struct Service {
    task: JoinHandle<()>,
    shutdown: CancellationToken,
}

impl Service {
    /// Ends it as a crash would.
    pub async fn kill(self) {
        self.task.abort();
        let _ = self.task.await;
    }

    /// Ends it as a signal would.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

pub fn client(name: &str) -> ClientId {
    ClientId::new(name).unwrap()
}

pub fn run_id(name: &str) -> RunId {
    RunId::new(name).unwrap()
}

/// A client that trains.
pub fn capabilities(examples: u64) -> Capabilities {
    Capabilities {
        trains: true,
        evaluates: false,
        aggregates: false,
        examples,
        device: "cpu".into(),
        free_memory_mib: None,
        labels: BTreeMap::new(),
        identity: None,
    }
}

pub fn spec(rounds: Round, cohort: u32) -> RunSpec {
    RunSpec {
        round_deadline_seconds: 60.0,
        evaluation: EvaluationSpec { every: 0, deadline_seconds: 20.0, personal: None },
        seed: 7,
        ..RunSpec::new(ModelRef { name: ModelName::new("tiny").unwrap(), version: None }, rounds, cohort)
    }
}

impl Federation {
    /// A broker with version 1 of the model `tiny`, whose adapter has `values` values.
    pub async fn start(values: u64) -> Self {
        let federation = Self::bare(values).await;
        federation.publish_model().await;
        federation
    }

    /// As [`Self::start`], with a broker that takes small messages only.
    pub async fn start_small(values: u64, max_payload: &str) -> Self {
        let nats = NatsServer::start_with_config(&format!("max_payload: {max_payload}")).await;
        let federation = Self::on(nats, values).await;
        federation.publish_model().await;
        federation
    }

    /// A broker without a model, for an edge.
    pub async fn bare(values: u64) -> Self {
        Self::on(NatsServer::start().await, values).await
    }

    /// A broker with version 1 of the model `tiny`, which this method tunes by these tensors.
    pub async fn start_with(method: Method, tensors: &[(&str, &[u64])]) -> Self {
        let spec =
            |(name, shape): &(&str, &[u64])| TensorSpec { name: (*name).into(), shape: shape.to_vec() };
        let mut federation = Self::bare(2).await;
        federation.layout = Layout::new(tensors.iter().map(spec).collect()).unwrap();
        federation.method = method;
        federation.publish_model().await;
        federation
    }

    async fn on(nats: NatsServer, values: u64) -> Self {
        let bus = nats.bus().await;
        let spec = |name: &str, shape: Vec<u64>| TensorSpec { name: name.into(), shape };
        let layout =
            Layout::new(vec![spec("head.weight", vec![values - 1]), spec("head.bias", vec![1])]).unwrap();
        Self { nats, bus, layout, method: Method::Head, heartbeats: BTreeMap::new() }
    }

    async fn publish_model(&self) {
        let initial = self.initial();
        let view = |(spec, range): (&TensorSpec, Range<usize>)| {
            let shape = spec.shape.iter().map(|dim| *dim as usize).collect();
            let data = &initial[range.start * 4..range.end * 4];
            (spec.name.clone(), TensorView::new(Dtype::F32, shape, data).unwrap())
        };
        let checkpoint = safetensors::serialize(self.layout.ranges().map(view), None).unwrap();
        let file = |name: &str, bytes: &[u8]| FileRef {
            name: name.into(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
        };
        let manifest = Manifest {
            format: FORMAT_VERSION,
            method: self.method.clone().into(),
            adapter: self.layout.clone(),
            excluded: BTreeMap::new(),
            inputs: vec![InputSpec {
                name: "pixels".into(),
                dtype: ElementType::F32,
                shape: vec![1, 2, 2],
                source: InputSource::Values,
            }],
            text: None,
            task: TaskSpec::classification(2),
            backbone: BackboneSpec {
                values: 1000,
                storage: Default::default(),
                source: Digest::of("source"),
            },
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
        self.bus.put_blob(checkpoint.into()).await.unwrap();
        for file in ["t", "e", "s", "a", "b"] {
            self.bus.put_blob(file.into()).await.unwrap();
        }
        let manifest = self.bus.put_blob(manifest.to_json().unwrap().into()).await.unwrap().digest;
        let version = ModelVersion {
            version: PROTOCOL_VERSION,
            name: ModelName::new("tiny").unwrap(),
            number: 1,
            method: "head".into(),
            manifest,
            files: vec![],
            published_ms: 1,
        };
        self.bus.models().await.unwrap().put("tiny.1", &version).await.unwrap();
    }

    /// The adapter of the checkpoint.
    pub fn initial(&self) -> Bytes {
        encode(&(0..self.layout.values()).map(|at| (at as f32).cos()).collect::<Vec<_>>())
    }

    pub async fn aggregator(&self) -> Service {
        // A connection of its own, as another process has.
        self.aggregator_on(&self.nats.bus().await, None).await
    }

    /// An aggregator on this connection, with this spool folder.
    pub async fn aggregator_on(&self, bus: &Bus, spool: Option<PathBuf>) -> Service {
        self.start_service(bus, Options { spool, ..Options::default() }).await
    }

    /// An aggregator that draws noise and samples by this secret.
    pub async fn aggregator_with(&self, secret: NoiseSecret) -> Service {
        let options = Options { noise_secret: Some(secret), ..Options::default() };
        Box::pin(self.start_service(&self.nats.bus().await, options)).await
    }

    /// An edge on this broker: client `name` at `upstream`.
    pub async fn edge(&self, upstream: Bus, name: &str, rounds: EdgeRounds) -> Service {
        let edge = Some(EdgeOptions { upstream, client: client(name), rounds });
        self.start_service(&self.nats.bus().await, Options { edge, ..Options::default() }).await
    }

    /// Waits until client `name` offers this many examples.
    pub async fn offers(&self, name: &str, examples: u64) {
        let records = self.bus.clients().await.unwrap();
        let waiting = async {
            while !matches!(records.get(name).await, Ok(Some((presence, _)))
                if presence.capabilities.trains && presence.capabilities.examples == examples)
            {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("it offers them in time");
    }

    async fn start_service(&self, bus: &Bus, options: Options) -> Service {
        let aggregator = Box::pin(Aggregator::start(bus, options)).await.unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let shutdown = shutdown.clone();
            async move { aggregator.run(shutdown).await.unwrap() }
        });
        Service { task, shutdown }
    }

    /// Makes a client present, and keeps it so.
    pub async fn join(&mut self, name: &str, examples: u64) {
        self.present(name, examples, true, false).await;
    }

    pub async fn join_evaluator(&mut self, name: &str) {
        self.present(name, 0, false, true).await;
    }

    async fn present(&mut self, name: &str, examples: u64, trains: bool, evaluates: bool) {
        self.present_with(name, Capabilities { trains, evaluates, ..capabilities(examples) }).await;
    }

    /// Makes a client present that says this of itself, and keeps it so.
    pub async fn present_with(&mut self, name: &str, capabilities: Capabilities) {
        let presence =
            Presence { version: PROTOCOL_VERSION, client: client(name), worker: "test".into(), capabilities };
        let records = self.bus.clients().await.unwrap();
        records.put(name, &presence).await.unwrap();
        let key = name.to_owned();
        let heartbeat = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(3)).await;
                let _ = records.put(&key, &presence).await;
            }
        });
        self.heartbeats.insert(client(name), heartbeat);
    }

    /// Ends a client's presence.
    pub async fn leave(&mut self, name: &str) {
        self.heartbeats.remove(&client(name)).unwrap().abort();
        self.bus.clients().await.unwrap().delete(name).await.unwrap();
    }

    pub async fn create(&self, run: &str, spec: RunSpec) -> Result<RunRecord, BusError> {
        self.bus.request("runs.create", &CreateRun { run: Some(run_id(run)), spec }).await
    }

    pub async fn ask<T: serde::de::DeserializeOwned>(
        &self,
        endpoint: &str,
        run: &str,
    ) -> Result<T, BusError> {
        self.bus.request(endpoint, &RunRequest { run: run_id(run) }).await
    }

    pub async fn view(&self, run: &str) -> RunView {
        self.ask("runs.get", run).await.unwrap()
    }

    /// Waits until the run has ended.
    pub async fn ended(&self, run: &str) -> RunView {
        self.until(run, |record| record.status.is_final()).await;
        self.view(run).await
    }

    pub async fn completed(&self, run: &str) -> RunView {
        let view = self.ended(run).await;
        assert_eq!(view.record.status, RunStatus::Completed);
        view
    }

    /// Waits until the record is as `wanted`.
    pub async fn until(&self, run: &str, wanted: impl Fn(&RunRecord) -> bool) -> RunRecord {
        let records = self.bus.runs().await.unwrap();
        let waiting = async {
            loop {
                if let Ok(Some((record, _))) = records.get(run).await
                    && wanted(&record)
                {
                    return record;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("the run gets there in time")
    }

    /// The adapter of a blob.
    pub async fn adapter(&self, digest: &Digest) -> Bytes {
        self.bus.get_blob(digest, self.layout.bytes()).await.unwrap().0
    }

    /// Sizes of all blobs.
    pub async fn blobs(&self) -> Vec<usize> {
        let client = async_nats::connect(self.nats.url()).await.unwrap();
        let store = async_nats::jetstream::new(client).get_object_store("fedpeft-blobs").await.unwrap();
        let blobs = store.list().await.unwrap();
        futures::TryStreamExt::try_collect::<Vec<_>>(blobs)
            .await
            .unwrap()
            .iter()
            .map(|blob| blob.size)
            .collect()
    }

    /// Messages in the object store of uploads.
    pub async fn uploads(&self) -> u64 {
        let client = async_nats::connect(self.nats.url()).await.unwrap();
        let stream = async_nats::jetstream::new(client).get_stream(UPLOADS).await.unwrap();
        stream.cached_info().state.messages
    }

    /// Events of the run, up to the first that is `last`.
    pub async fn events_until(&self, run: &str, last: impl Fn(&EventKind) -> bool) -> Vec<EventKind> {
        let mut events = self.bus.events(Some(&run_id(run)), true).await.unwrap();
        let mut seen = Vec::new();
        let reading = async {
            loop {
                let Event { kind, .. } = events.next().await.unwrap();
                let ends = last(&kind);
                seen.push(kind);
                if ends {
                    return;
                }
            }
        };
        timeout(PATIENCE, reading).await.expect("the event comes in time");
        seen
    }

    /// Events of a run that has ended.
    pub async fn events(&self, run: &str) -> Vec<EventKind> {
        self.events_until(run, |kind| matches!(kind, EventKind::Status { status, .. } if status.is_final()))
            .await
    }

    /// The refusal of an update of `name`, as announced.
    pub async fn refusal(&self, run: &str, name: &str) -> String {
        let is_it = |kind: &EventKind| matches!(kind, EventKind::UpdateRejected { client, .. } if client.as_str() == name);
        match self.events_until(run, is_it).await.pop() {
            Some(EventKind::UpdateRejected { reason, .. }) => reason,
            other => panic!("{other:?} is no refusal"),
        }
    }

    pub async fn player(&self, name: &str) -> Player {
        let id = client(name);
        let tasks = self.bus.tasks(&id).await.unwrap();
        Player { id, tasks, bus: self.bus.clone(), layout: self.layout.clone() }
    }

    /// Players that train every task they get, with these examples each.
    pub async fn trainers(&mut self, clients: &[(&str, u64)]) {
        for (name, examples) in clients {
            self.join(name, *examples).await;
            let (mut player, examples) = (self.player(name).await, *examples);
            tokio::spawn(async move {
                loop {
                    let task = player.task().await;
                    player.send(&task, &player.trained(&task, examples).await).await;
                }
            });
        }
    }

    /// [`Self::trainers`], of adapters that do not fit a message.
    pub async fn uploaders(&mut self, clients: &[(&str, u64)]) {
        for (name, examples) in clients {
            self.join(name, *examples).await;
            let (mut player, examples) = (self.player(name).await, *examples);
            tokio::spawn(async move {
                loop {
                    let task = player.task().await;
                    player.send(&task, &player.uploaded(&task, examples).await).await;
                }
            });
        }
    }
}

/// A client, played by hand.
pub struct Player {
    pub id: ClientId,
    tasks: Tasks,
    bus: Bus,
    layout: Layout,
}

impl Player {
    /// Its next task.
    pub async fn task(&mut self) -> Task {
        let delivery = timeout(PATIENCE, self.tasks.next()).await.expect("a task comes in time").unwrap();
        delivery.result.unwrap()
    }

    /// Whether a task is waiting for it.
    pub async fn has_task(&mut self) -> bool {
        timeout(Duration::from_millis(700), self.tasks.next()).await.is_ok()
    }

    /// What this client makes of the global adapter: a step that depends on the client and the values.
    pub fn train(&self, global: &[f32]) -> Vec<f32> {
        let pull = self.id.as_str().bytes().map(f32::from).sum::<f32>() / 997.0;
        global.iter().enumerate().map(|(at, v)| v * 0.9 + pull * (at as f32 * 0.37).sin()).collect()
    }

    pub async fn global(&self, task: &Task) -> Vec<f32> {
        let bytes = match &task.adapter {
            Payload::Message { data, .. } => data.clone(),
            Payload::Blob { digest, size } => self.bus.get_blob(digest, *size).await.unwrap().0,
        };
        Codec::new(task.downlink, &self.layout).decode(&bytes, None).unwrap()
    }

    /// What this client makes of the global adapter, as the run has it sent.
    pub async fn encoded(&self, task: &Task) -> Bytes {
        let Work::Train { uplink, seed, .. } = task.work else { panic!("{:?}", task.work) };
        let global = self.global(task).await;
        let (codec, seed) = (Codec::new(uplink, &self.layout), Seed::new(seed, task.round, self.id.as_str()));
        codec.encode(&self.train(&global), Some(&Base::new(&global)), seed).unwrap()
    }

    /// An honest update.
    pub async fn trained(&self, task: &Task, examples: u64) -> Update {
        assert!(matches!(task.work, Work::Train { seed: 7, .. }));
        self.update_with(task, examples, Payload::inline(self.encoded(task).await))
    }

    /// Uploads an adapter for the round of `task`.
    pub async fn upload(&self, task: &Task, adapter: &[f32]) -> Stored {
        let key = UploadKey { run: &task.run, round: task.round, client: &self.id };
        self.bus.put_upload(key, encode(adapter)).await.unwrap()
    }

    /// Uploads what is not plain, for the round of `task`.
    pub async fn put(&self, task: &Task, bytes: Vec<u8>) -> Stored {
        let key = UploadKey { run: &task.run, round: task.round, client: &self.id };
        self.bus.put_upload(key, bytes.into()).await.unwrap()
    }

    /// An honest update whose adapter is uploaded.
    pub async fn uploaded(&self, task: &Task, examples: u64) -> Update {
        let key = UploadKey { run: &task.run, round: task.round, client: &self.id };
        let stored = self.bus.put_upload(key, self.encoded(task).await).await.unwrap();
        self.update_with(task, examples, Payload::Blob { digest: stored.digest, size: stored.size })
    }

    pub fn update_with(&self, task: &Task, examples: u64, adapter: Payload) -> Update {
        let loss = 1.0 / f64::from(task.round) + examples as f64 / 1000.0;
        let outcome = Outcome::Trained {
            examples,
            steps: 3,
            loss,
            seconds: 0.25,
            adapter,
            personal: None,
            control: None,
            epsilon: None,
        };
        self.outcome(task, outcome)
    }

    pub fn outcome(&self, task: &Task, outcome: Outcome) -> Update {
        let (epoch, task) = (task.epoch, task.task.clone());
        Update { version: PROTOCOL_VERSION, epoch, task, outcome, fetched: vec![] }
    }

    /// Publishes an update for the round of `task`; its size on the wire.
    pub async fn send(&self, task: &Task, update: &Update) -> u64 {
        self.bus.publish_update(&task.run, task.round, &self.id, update).await.unwrap().total
    }
}

/// The mean of what these clients, with these examples, make of `global`.
pub fn mean(players: &[(&Player, u64)], global: &[f32]) -> Vec<f32> {
    let total: u64 = players.iter().map(|(_, examples)| examples).sum();
    let trained: Vec<_> =
        players.iter().map(|(player, examples)| (player.train(global), *examples as f64)).collect();
    (0..global.len())
        .map(|at| {
            let sum: f64 = trained.iter().map(|(values, weight)| f64::from(values[at]) * weight).sum();
            (sum / total as f64) as f32
        })
        .collect()
}

/// Adapters that are equal but for the last bit of a mean.
pub fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() <= expected.abs() * 1.2e-7 + 1e-12, "{found} is not {expected}");
    }
}
