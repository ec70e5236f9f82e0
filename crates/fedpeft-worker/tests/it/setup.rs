//! A broker, a published model, data, and worker processes.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use fedpeft_artifacts::{
    ArtifactFolder, BuildOptions, InputOptions, build,
    manifest::{ElementType, InputSource, TaskSpec},
};
use fedpeft_bus::{Bus, UpdateDelivery, Updates};
use fedpeft_codec::{Layout, encode};
use fedpeft_onnx::{DType, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_peft::Method;
use fedpeft_protocol::{
    ClientId, Digest, PROTOCOL_VERSION, Round, RunId,
    round::{Payload, Task, Work},
    run::TrainingSpec,
    subject,
};
use fedpeft_testkit::{NatsServer, assets};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    process::{Child, Command},
};

use crate::texts;

pub const PIXELS: usize = 8;
const FEATURES: usize = 6;
pub const CLASSES: usize = 3;

/// A backbone that no test waits for: flatten, one hidden layer, GELU.
fn export(path: &Path) {
    let inputs = PIXELS * PIXELS;
    let weights: Vec<f32> =
        (0..inputs * FEATURES).map(|i| ((i * 2_654_435_761) % 997) as f32 / 997.0 - 0.5).collect();
    let dims = |shape: &[usize]| [vec![Dim::Symbol("N".into())], Dim::fixed(shape)].concat();
    let mut graph = Graph { name: "toy".into(), ..Graph::default() };
    graph.inputs.push(ValueInfo::new("x", DType::F32, dims(&[1, PIXELS, PIXELS])));
    graph.outputs.push(ValueInfo::new("features", DType::F32, dims(&[FEATURES])));
    graph.initializers.insert("weight".into(), Tensor::f32([inputs, FEATURES], &weights));
    graph.initializers.insert("bias".into(), Tensor::f32([FEATURES], &[0.1; FEATURES]));
    graph.nodes = vec![
        Node::new("Flatten", &["x"], &["flat"]).with("axis", 1i64),
        Node::new("Gemm", &["flat", "weight", "bias"], &["hidden"]),
        Node::new("Gelu", &["hidden"], &["features"]),
    ];
    Model::new(graph).save(path).unwrap();
}

/// Images whose bright row tells the class, in IDX files, and a TOML description of them.
fn data(folder: &Path) -> PathBuf {
    let file = |name: &str, header: &[u32], body: Vec<u8>| {
        let bytes = header.iter().flat_map(|word| word.to_be_bytes()).chain(body).collect::<Vec<_>>();
        std::fs::write(folder.join(name), bytes).unwrap();
    };
    for (split, count) in [("train", 240usize), ("test", 60)] {
        let pixel = |image: usize, at: usize| {
            let bright = at / PIXELS % CLASSES == image % CLASSES;
            let noise = (image * 31 + at * 17) * 2_654_435_761 % 90;
            u8::try_from(noise + if bright { 150 } else { 0 }).unwrap()
        };
        let pixels = (0..count).flat_map(|image| (0..PIXELS * PIXELS).map(move |at| pixel(image, at)));
        let size = PIXELS as u32;
        file(&format!("{split}-images"), &[0x803, count as u32, size, size], pixels.collect());
        let labels = (0..count).map(|image| (image % CLASSES) as u8).collect();
        file(&format!("{split}-labels"), &[0x801, count as u32], labels);
    }
    let path = folder.join("data.toml");
    let text = "train_images = \"train-images\"\ntrain_labels = \"train-labels\"\n\
        test_images = \"test-images\"\ntest_labels = \"test-labels\"\nclasses = 3\nclients = 4\n\
        samples_per_client = 40\npartition = { kind = \"iid\" }\neval_examples = 60\nseed = 5\n";
    std::fs::write(&path, text).unwrap();
    path
}

pub struct Setup {
    pub server: NatsServer,
    pub bus: Bus,
    pub folder: TempDir,
    pub manifest: Digest,
    pub start: Vec<f32>,
    /// All tensors of the adapter.
    pub layout: Layout,
    data: PathBuf,
}

impl Setup {
    /// Images and a model of them; everything but workers.
    pub async fn new() -> Self {
        Self::of(Method::Bias).await
    }

    /// Likewise, of this method.
    pub async fn of(method: Method) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("toy.onnx");
        export(&model);
        let source = InputSource::Image { mean: vec![0.3], std: vec![0.3] };
        let shape = vec![1, PIXELS, PIXELS];
        let options = BuildOptions {
            inputs: vec![InputOptions { name: None, dtype: ElementType::F32, shape, source }],
            dp_sgd: true,
            ..BuildOptions::image_classification(model, "features", PIXELS, CLASSES as u32, method)
        };
        let data = data(folder.path());
        Self::publish(folder, &options, data).await
    }

    /// Texts and a tiny BERT.
    pub async fn texts() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("bert");
        texts::model(&model);
        let task = TaskSpec::classification(CLASSES as u32);
        let options = BuildOptions::hugging_face(&model, texts::TOKENS, task, Method::Bias).unwrap();
        let data = texts::data(folder.path());
        Self::publish(folder, &options, data).await
    }

    async fn publish(folder: TempDir, options: &BuildOptions, data: PathBuf) -> Self {
        let artifacts = folder.path().join("artifacts");
        build(options, &artifacts).unwrap();
        let opened = ArtifactFolder::open(&artifacts).unwrap();
        let server = NatsServer::start().await;
        let bus = server.bus().await;
        for (file, _) in opened.manifest().all_files() {
            bus.put_blob_file(&opened.file(file), |_| ()).await.unwrap();
        }
        bus.put_blob(std::fs::read(artifacts.join("manifest.json")).unwrap().into()).await.unwrap();
        let (manifest, start) = (opened.digest(), opened.initial_adapter().unwrap());
        let layout = opened.manifest().adapter.clone();
        Self { server, bus, folder, manifest, start, layout, data }
    }

    /// Has every client hold back this share of its examples.
    pub fn hold_back(&self, share: f64) {
        let text = std::fs::read_to_string(&self.data).unwrap();
        std::fs::write(&self.data, format!("client_holdout = {share}\n{text}")).unwrap();
    }

    /// A worker with these arguments; it ends with the test.
    pub fn worker(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fedpeft-worker"));
        command
            .env("FEDPEFT_SERVER", self.server.url())
            .env("FEDPEFT_DEVICE", "cpu")
            .env("FEDPEFT_THREADS", "1")
            .env("FEDPEFT_DATA", &self.data)
            .env("FEDPEFT_ORT_LIB", assets().ort_lib().unwrap())
            .env("FEDPEFT_CACHE", self.cache())
            .args(arguments)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// What a worker has logged, once it is killed.
    pub async fn log(&self, worker: &mut Child) -> String {
        worker.kill().await.unwrap();
        let mut text = String::new();
        worker.stderr.take().unwrap().read_to_string(&mut text).await.unwrap();
        text
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    /// Waits until `client` is present.
    pub async fn present(&self, client: &str) -> fedpeft_protocol::presence::Presence {
        let clients = self.bus.clients().await.unwrap();
        within(async {
            loop {
                if let Some((presence, _)) = clients.get(client).await.unwrap() {
                    return presence;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await
    }

    pub fn task(&self, round: Round, client: &str, work: Work) -> Task {
        let (run, client) = (run(), ClientId::new(client).unwrap());
        Task {
            version: PROTOCOL_VERSION,
            task: subject::task_id(&run, round, &client, work.name(), 1),
            run,
            round,
            epoch: 1,
            manifest: self.manifest,
            adapter: Payload::inline(encode(&self.start)),
            work,
            deadline_ms: fedpeft_service::now_ms() + 60_000,
            downlink: Default::default(),
            residual: None,
            lifetime_ms: 60_000,
        }
    }

    pub async fn send(&self, task: &Task, client: &str) {
        self.bus.publish_task(task, &ClientId::new(client).unwrap()).await.unwrap();
    }

    /// Those of one round of client-000.
    pub async fn updates_of(&self, round: Round) -> Updates {
        self.bus.updates_of(&run(), round, &ClientId::new("client-000").unwrap()).await.unwrap()
    }

    pub async fn updates(&self) -> Updates {
        self.bus.updates(&run()).await.unwrap()
    }
}

pub fn run() -> RunId {
    RunId::new("run").unwrap()
}

pub fn train() -> Work {
    let training =
        TrainingSpec { local_epochs: 4, batch_size: 16, learning_rate: 0.05, ..Default::default() };
    Work::Train {
        training,
        seed: 3,
        rounds: 8,
        stability: None,
        uplink: Default::default(),
        ranks: false,
        memory: None,
        personal: false,
        secure: None,
    }
}

/// A test that hangs fails.
pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(180), future).await.expect("took longer than 180 s")
}

pub async fn next(updates: &mut Updates) -> UpdateDelivery {
    within(updates.next()).await
}
