//! SCAFFOLD and local tensors, by real processes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use fedpeft_artifacts::{
    BuildOptions, InputOptions, build,
    manifest::{ElementType, InputSource},
};
use fedpeft_bus::Bus;
use fedpeft_onnx::{DType, Dim, Graph, Model, Node, Tensor, ValueInfo};
use fedpeft_peft::Method;
use fedpeft_protocol::{
    Digest,
    run::{RunRecord, RunStatus},
};
use fedpeft_testkit::NatsServer;
use serde::Deserialize;

use crate::{
    services::on,
    support::{Running, program, succeed, until},
};

const SIDE: usize = 4;
const NAP: Duration = Duration::from_millis(50);

/// What numpy computed, see `tests/golden/scaffold.py`.
#[derive(Deserialize)]
struct Golden {
    matrix: Vec<Vec<f64>>,
    clients: Vec<Examples>,
    rounds: Vec<Round>,
}

#[derive(Deserialize)]
struct Examples {
    pixels: Vec<Vec<u8>>,
    labels: Vec<u8>,
}

#[derive(Deserialize)]
struct Round {
    adapter: Head,
    control: Head,
}

/// `weight[feature][class]` and `bias[class]`.
#[derive(Deserialize)]
struct Head {
    weight: Vec<Vec<f64>>,
    bias: Vec<f64>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/scaffold.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A broker, registry, aggregator and one worker per client, each with data of its own.
struct Federation {
    nats: NatsServer,
    bus: Bus,
    folder: tempfile::TempDir,
    workers: Vec<Option<Running>>,
    _services: Vec<Running>,
}

const CLIENTS: [&str; 2] = ["one", "two"];

impl Federation {
    async fn start(golden: &Golden) -> Self {
        let nats = NatsServer::start().await;
        let (bus, folder) = (nats.bus().await, tempfile::tempdir().unwrap());
        let service = |name: &str| {
            let mut command = program(name);
            command.args(["--server", &nats.url()]);
            Running::start(command, &folder.path().join(format!("{name}.log")))
        };
        let services = vec![service("fedpeft-registry"), service("fedpeft-aggregator")];
        let artifacts = folder.path().join("artifacts");
        publish(&nats, golden, folder.path(), &artifacts);
        for (name, examples) in CLIENTS.iter().zip(&golden.clients) {
            write_data(folder.path(), name, examples);
        }
        let mut federation = Self { nats, bus, folder, workers: vec![None, None], _services: services };
        (0..CLIENTS.len()).for_each(|client| federation.work(client));
        until(|| on(&federation.nats, &["run", "list"]).output().unwrap().status.success().then_some(()));
        federation
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The state folder of a client's worker.
    fn state(&self, client: usize) -> PathBuf {
        self.path(&format!("{}-state", CLIENTS[client]))
    }

    /// Starts the worker of a client.
    fn work(&mut self, client: usize) {
        let name = CLIENTS[client];
        let mut command = program("fedpeft-worker");
        command.args(["--server", &self.nats.url(), "--client", name, "--threads", "1", "--device", "cpu"]);
        command.args(["--checkpoint-seconds", "1"]);
        let paths =
            [("data", format!("{name}.toml")), ("cache", "cache".into()), ("state", format!("{name}-state"))];
        for (flag, path) in paths {
            command.arg(format!("--{flag}")).arg(self.path(&path));
        }
        self.workers[client] = Some(Running::start(command, &self.path(&format!("{name}.log"))));
    }

    /// Submits a run with these lines in its file.
    fn submit(&self, name: &str, lines: &str) {
        let file = self.path(&format!("{name}.toml"));
        let text = format!("[model]\nname = \"regression\"\n[data]\nclasses = 3\n[run]\ncohort = 2\n{lines}");
        fs::write(&file, text).unwrap();
        succeed(on(&self.nats, &["run", "submit", file.to_str().unwrap(), "--name", name]));
    }

    /// Waits until the run is completed.
    async fn completed(&self, name: &str) -> RunRecord {
        loop {
            let record = self.record(name).await;
            match &record.status {
                RunStatus::Completed => return record,
                RunStatus::Pending | RunStatus::Running => {}
                ended => panic!("{ended:?}"),
            }
            tokio::time::sleep(NAP).await;
        }
    }

    async fn record(&self, name: &str) -> RunRecord {
        self.bus.runs().await.unwrap().get(name).await.unwrap().unwrap().0
    }

    /// A blob of the head's shape: bias, then weight by feature and class.
    async fn head(&self, digest: &Digest) -> Vec<f64> {
        let (bytes, _) = self.bus.get_blob(digest, 1 << 20).await.unwrap();
        let values = bytes.as_chunks::<4>().0.iter().map(|value| f64::from(f32::from_le_bytes(*value)));
        values.collect()
    }
}

/// The backbone is a fixed matrix, so that its head is softmax regression.
fn publish(nats: &NatsServer, golden: &Golden, folder: &Path, artifacts: &Path) {
    let (pixels, features) = (golden.matrix.len(), golden.matrix[0].len());
    let matrix: Vec<f32> = golden.matrix.iter().flatten().map(|value| *value as f32).collect();
    let dims = |shape: &[usize]| [vec![Dim::Symbol("N".into())], Dim::fixed(shape)].concat();
    let mut graph = Graph { name: "matrix".into(), ..Graph::default() };
    graph.inputs.push(ValueInfo::new("x", DType::F32, dims(&[1, SIDE, SIDE])));
    graph.outputs.push(ValueInfo::new("features", DType::F32, dims(&[features])));
    graph.initializers.insert("matrix".into(), Tensor::f32([pixels, features], &matrix));
    graph.nodes = vec![
        Node::new("Flatten", &["x"], &["flat"]).with("axis", 1i64),
        Node::new("MatMul", &["flat", "matrix"], &["features"]),
    ];
    let model = folder.join("matrix.onnx");
    Model::new(graph).save(&model).unwrap();
    let source = InputSource::Image { mean: vec![0.0], std: vec![1.0] };
    let shape = vec![1, SIDE, SIDE];
    let options = BuildOptions {
        inputs: vec![InputOptions { name: None, dtype: ElementType::F32, shape, source }],
        ..BuildOptions::image_classification(model, "features", SIDE, 3, Method::Head)
    };
    build(&options, artifacts).unwrap();
    until(|| on(nats, &["models", "list"]).output().unwrap().status.success().then_some(()));
    succeed(on(nats, &["models", "push", artifacts.to_str().unwrap(), "--name", "regression"]));
}

/// IDX files of a client's examples, and the description of them.
fn write_data(folder: &Path, name: &str, Examples { pixels, labels }: &Examples) {
    let file = |kind: &str, header: &[usize], body: Vec<u8>| {
        let header = header.iter().flat_map(|word| u32::try_from(*word).unwrap().to_be_bytes());
        fs::write(folder.join(format!("{name}-{kind}")), header.chain(body).collect::<Vec<_>>()).unwrap();
    };
    file("images", &[0x803, pixels.len(), SIDE, SIDE], pixels.concat());
    file("labels", &[0x801, labels.len()], labels.clone());
    let text = format!(
        "train_images = \"{name}-images\"\ntrain_labels = \"{name}-labels\"\ntest_images = \"{name}-images\"\n\
         test_labels = \"{name}-labels\"\nclasses = 3\nclients = 1\nsamples_per_client = 0\nmin_examples = 1\n\
         eval_examples = 0\npartition = {{ kind = \"iid\" }}\n"
    );
    fs::write(folder.join(format!("{name}.toml")), text).unwrap();
}

/// In the order of the adapter's tensors, that of their names.
fn flat(head: &Head) -> Vec<f64> {
    head.bias.iter().chain(head.weight.iter().flatten()).copied().collect()
}

fn difference(found: &[f64], wanted: &[f64]) -> f64 {
    assert_eq!(found.len(), wanted.len());
    found.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[tokio::test(flavor = "multi_thread")]
async fn scaffold_goes_the_way_that_numpy_computes() {
    let golden = golden();
    let federation = Federation::start(&golden).await;
    federation.submit(
        "golden",
        "rounds = 4\nstrategy = { kind = \"scaffold\", learning_rate = 0.8, population = 3 }\n\
         evaluation = { every = 0 }\nkeep_updates = true\n[run.training]\nlocal_epochs = 5\nbatch_size = 16\n\
         learning_rate = 0.5\noptimizer = { kind = \"sgd\" }\n",
    );
    let record = federation.completed("golden").await;
    let reports = federation.bus.round_reports().await.unwrap();
    for (number, wanted) in (1..).zip(&golden.rounds) {
        let (report, _) = reports.get(&format!("golden.{number}")).await.unwrap().unwrap();
        let found = federation.head(&report.adapter).await;
        let far = difference(&found, &flat(&wanted.adapter));
        println!("round {number}: {far:e}");
        assert!(far < 1e-6, "round {number}: {far}");
    }
    let control = federation.head(&record.control.unwrap()).await;
    let far = difference(&control, &flat(&golden.rounds.last().unwrap().control));
    println!("control: {far:e}");
    assert!(far < 1e-6, "{far}");
    let verified = succeed(on(&federation.nats, &["run", "verify", "golden"]));
    assert!(verified.contains("4 aggregated again"), "{verified}");
}

/// What a client keeps of a run, by file.
fn kept(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<_> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_killed_changes_nothing_of_what_is_kept() {
    let mut federation = Federation::start(&golden()).await;
    // Rounds of seconds, so that one can be cut off in its middle.
    let lines = "rounds = 3\nseed = 5\nstrategy = { kind = \"scaffold\" }\nevaluation = { every = 0 }\n\
        [run.training]\nlocal_epochs = 20000\nbatch_size = 4\nlearning_rate = 0.01\n\
        optimizer = { kind = \"sgd\" }\nlocal = [\"*bias\"]\n";
    federation.submit("calm", lines);
    let calm = federation.completed("calm").await;
    federation.submit("killed", lines);
    let checkpoint = |state: &Path| {
        let names = fs::read_dir(state).into_iter().flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).find(|name| name.parse::<Digest>().is_ok())
    };
    // In the second round, whose beginning is what the first one left.
    let client = 1;
    let state = federation.state(client);
    while federation.record("killed").await.round < 1 {
        tokio::time::sleep(NAP).await;
    }
    until(|| checkpoint(&state));
    federation.workers[client].take().unwrap().crash();
    federation.work(client);
    let killed = federation.completed("killed").await;
    assert_eq!((killed.adapter, killed.control), (calm.adapter, calm.control));
    for (client, name) in CLIENTS.iter().enumerate() {
        let of = |run: &str| federation.state(client).join("runs").join(run).join(name);
        let (calm, killed) = (kept(&of("calm")), kept(&of("killed")));
        // What was there after the last round and the one before it; only the names of their tasks differ.
        assert_eq!(calm.len(), 2);
        let names =
            |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&calm), names(&killed));
        for ((_, calm), (_, killed)) in calm.iter().zip(&killed) {
            let values = |bytes: &[u8]| bytes[bytes.len() - 4 * 21..].to_vec();
            assert_eq!(values(calm), values(killed));
        }
    }
}
