//! The thread that computes. It owns the one backbone in memory and works for one client after another,
//! while the asynchronous side keeps heartbeats and acknowledgements going.

use std::{
    collections::{HashMap, hash_map::Entry},
    path::PathBuf,
    sync::Arc,
    thread,
};

use fedpeft_artifacts::ArtifactFolder;
use fedpeft_data::ClientData;
use fedpeft_protocol::{ClientId, Digest, Round, round::Transfer, run::TrainingSpec};
use fedpeft_runtime::{
    Device, Evaluated, Examples, FeatureExtractor, InMemory, LocalTraining, OrderSeed, Runtime, RuntimeError,
    SessionOptions, Trained, Trainer, Weights,
};
use fedpeft_text::Tokenizer;
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};

use crate::{
    examples::{ClientExamples, tokenizer},
    keep::{self, Keep},
    spending::{Spending, SpendingError},
};

/// What the thread is given.
pub(crate) struct Job {
    pub folder: ArtifactFolder,
    pub adapter: Arc<Vec<f32>>,
    /// What the adapter's LoRA factors do not hold, where there is something.
    pub residual: Option<Arc<Vec<f32>>>,
    /// What is added to the gradient of every step.
    pub correction: Option<Vec<f32>>,
    pub client: ClientId,
    pub data: ClientData,
    /// What the client evaluates its own model on, where it is asked to.
    pub held_back: Option<ClientData>,
    pub work: EngineWork,
    /// Where training is kept meanwhile; nowhere where there is no such place.
    pub keep: Option<Keep>,
    /// What the client's examples have cost, where training is private.
    pub spending: Option<Spending>,
    /// Asked before every step, with the steps done and the steps in all; evaluation has none.
    pub next: Box<dyn FnMut(u64, u64) -> Next + Send>,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another step.
    Step,
    /// Nothing, and keep what is done: it will be gone on with.
    HandBack,
    /// Nothing, and forget what is done.
    Stop,
}

/// What it should do.
#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "a process holds one at a time")]
pub(crate) enum EngineWork {
    Train { training: TrainingSpec, seed: u64, round: Round, rounds: Round, personal: bool },
    Evaluate,
}

/// What came of it.
pub(crate) enum Done {
    Trained {
        result: Trained,
        adapter: Vec<f32>,
        /// What the client's own model came to, where that was asked for and there is something to ask.
        personal: Option<Evaluated>,
        /// What an earlier attempt, which this one went on from, had fetched.
        fetched: Vec<Transfer>,
        /// What the client's examples have cost so far, where training is private.
        epsilon: Option<f64>,
    },
    Evaluated(Evaluated),
}

/// A job that came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("the data does not fit the model: {0}")]
    Data(String),
    #[error(transparent)]
    Spending(#[from] SpendingError),
    #[error("the computing thread has ended")]
    Gone,
}

type Reply = oneshot::Sender<Result<Done, EngineError>>;

/// How the thread computes.
#[derive(Debug, Clone)]
pub(crate) struct EngineOptions {
    pub ort_lib: Option<PathBuf>,
    pub device: Device,
    pub threads: usize,
    pub weights: Weights,
    /// Bytes of features that are kept, at most.
    pub feature_cache: usize,
}

/// Handle on the thread. It ends when all handles are gone.
#[derive(Clone)]
pub(crate) struct Engine {
    queue: Arc<Mutex<mpsc::Sender<(Job, Reply)>>>,
    thread: mpsc::Sender<(Job, Reply)>,
    device: String,
}

impl Engine {
    /// Loads ONNX Runtime, settles the device, and starts the thread.
    pub async fn start(options: EngineOptions) -> anyhow::Result<Self> {
        let (jobs, queue) = mpsc::channel(1);
        let (ready, started) = oneshot::channel();
        thread::Builder::new().name("engine".to_owned()).spawn(move || {
            match Engine::prepare(&options) {
                Ok((runtime, device)) => {
                    // The receiver waits for it below.
                    let _ = ready.send(Ok(device.to_string()));
                    let session = SessionOptions {
                        device: pinned(device),
                        threads: options.threads,
                        weights: options.weights,
                        ..Default::default()
                    };
                    Thread { runtime, options: session, feature_cache: options.feature_cache, loaded: None }
                        .run(queue);
                }
                Err(error) => drop(ready.send(Err(error))),
            }
        })?;
        let device = started.await??;
        Ok(Self { queue: Arc::new(Mutex::new(jobs.clone())), thread: jobs, device })
    }

    fn prepare(options: &EngineOptions) -> Result<(Runtime, fedpeft_runtime::ChosenDevice), RuntimeError> {
        let runtime = Runtime::load(options.ort_lib.as_deref())?;
        let device = runtime.choose(options.device)?;
        Ok((runtime, device))
    }

    /// The device it computes on.
    pub fn device(&self) -> &str {
        &self.device
    }

    /// Waits until the thread has ended, which it does by itself only if it panics.
    pub async fn ended(&self) {
        self.thread.closed().await;
    }

    /// Waits for this client's turn, first come first served.
    pub async fn turn(&self) -> Turn<'_> {
        Turn { queue: self.queue.lock().await }
    }
}

/// `auto` was settled once; sessions must not settle it again, differently.
fn pinned(device: fedpeft_runtime::ChosenDevice) -> Device {
    match device {
        fedpeft_runtime::ChosenDevice::Cpu => Device::Cpu,
        fedpeft_runtime::ChosenDevice::Cuda(number) => Device::Cuda(number),
    }
}

/// The right to the thread. Only who holds it fetches an adapter: waiting clients take no memory.
pub(crate) struct Turn<'a> {
    queue: MutexGuard<'a, mpsc::Sender<(Job, Reply)>>,
}

impl Turn<'_> {
    pub async fn run(&self, job: Job) -> Result<Done, EngineError> {
        let (reply, done) = oneshot::channel();
        self.queue.send((job, reply)).await.map_err(|_| EngineError::Gone)?;
        done.await.unwrap_or(Err(EngineError::Gone))
    }
}

struct Thread {
    runtime: Runtime,
    options: SessionOptions,
    /// Bytes of features that are kept, at most.
    feature_cache: usize,
    loaded: Option<Loaded>,
}

/// Artifacts in use, and what was made for them once.
struct Loaded {
    digest: Digest,
    trainer: Trainer,
    tokenizer: Option<Tokenizer>,
    /// Texts are tokens here, images only know how they are to be resized.
    examples: HashMap<(ClientId, Part), ClientExamples>,
    /// Once a run asked for features.
    features: Option<Features>,
}

/// What the frozen backbone made of examples, and what trains on it.
struct Features {
    extractor: FeatureExtractor,
    trainer: Trainer,
    kept: HashMap<(ClientId, Part), InMemory>,
    bytes: usize,
}

/// Which of a client's examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Part {
    /// Those of its work.
    Own,
    /// Those it holds back from training.
    HeldBack,
}

impl Thread {
    fn run(mut self, mut queue: mpsc::Receiver<(Job, Reply)>) {
        while let Some((job, reply)) = queue.blocking_recv() {
            // A client that is gone does not miss its answer.
            let _ = reply.send(self.work(job));
        }
    }

    fn work(&mut self, mut job: Job) -> Result<Done, EngineError> {
        let most = self.feature_cache;
        let loaded = self.load(job.folder)?;
        let residual = job.residual.as_ref().map(|residual| residual.as_slice());
        loaded.trainer.set_residual(residual)?;
        match job.work {
            EngineWork::Train { training, seed, round, rounds, personal } => {
                let cache = training.cache_features.then_some(most);
                let mut asked = || (job.next)(0, 0) == Next::Step;
                let own = (&job.client, Part::Own, &job.data);
                let (trainer, examples) = loaded.prepare(own, cache, &mut asked)?;
                let seed = OrderSeed { run: seed, round, client: job.client.as_str() };
                let local =
                    LocalTraining { spec: &training, seed, rounds, correction: job.correction.as_deref() };
                let (mut spending, mut refused) = (job.spending, None);
                let mut next = |steps, planned| match spending.as_mut().map(|s| s.before(steps, planned)) {
                    Some(Err(error)) => {
                        refused = Some(error);
                        Next::Stop
                    }
                    _ => (job.next)(steps, planned),
                };
                let keep = job.keep.as_ref();
                let trained = keep::train(trainer, local, &job.adapter, examples, keep, &mut next);
                if let Some(error) = refused {
                    return Err(error.into());
                }
                let (result, fetched) = trained?;
                let epsilon = spending.as_ref().map(Spending::epsilon).transpose()?;
                let mut adapter = Vec::new();
                trainer.adapter_into(&mut adapter)?;
                // What a model does on examples has no noise: it stays here where training is private.
                let personal = match job.held_back.filter(|_| personal && epsilon.is_none()) {
                    Some(held_back) => {
                        let mut asked = || (job.next)(result.steps, result.steps) == Next::Step;
                        let part = (&job.client, Part::HeldBack, &held_back);
                        let (trainer, examples) = loaded.prepare(part, cache, &mut asked)?;
                        trainer.set_adapter(&adapter)?;
                        let mut proceed = || (job.next)(result.steps, result.steps) == Next::Step;
                        Some(trainer.evaluate(examples, &mut proceed)?)
                    }
                    None => None,
                };
                Ok(Done::Trained { result, adapter, personal, fetched, epsilon })
            }
            EngineWork::Evaluate => {
                let own = (&job.client, Part::Own, &job.data);
                let (trainer, examples) = loaded.prepare(own, None, &mut || true)?;
                trainer.set_adapter(&job.adapter)?;
                let mut proceed = || (job.next)(0, 0) == Next::Step;
                Ok(Done::Evaluated(trainer.evaluate(examples, &mut proceed)?))
            }
        }
    }

    /// Loads these artifacts; others go first, so that one backbone at a time is in memory.
    fn load(&mut self, folder: ArtifactFolder) -> Result<&mut Loaded, EngineError> {
        let digest = folder.digest();
        if self.loaded.as_ref().is_some_and(|current| current.digest != digest) {
            self.loaded = None;
        }
        let loaded = match self.loaded.take() {
            Some(loaded) => loaded,
            None => {
                let tokenizer = tokenizer(&folder).map_err(EngineError::Data)?;
                let trainer = Trainer::new(&self.runtime, folder, self.options.clone())?;
                Loaded { digest, trainer, tokenizer, examples: HashMap::new(), features: None }
            }
        };
        Ok(self.loaded.insert(loaded))
    }
}

impl Loaded {
    /// The trainer and this part of the examples of a client, who always has the same data there; their features, and
    /// what trains on these, where all that are kept fit into `cache` bytes. `proceed` is asked meanwhile.
    fn prepare(
        &mut self,
        (client, part, data): (&ClientId, Part, &ClientData),
        cache: Option<usize>,
        proceed: &mut dyn FnMut() -> bool,
    ) -> Result<(&mut Trainer, &dyn Examples), EngineError> {
        let examples = match self.examples.entry((client.clone(), part)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let manifest = self.trainer.artifacts().manifest();
                let fitted = ClientExamples::new(data, manifest, self.tokenizer.as_ref());
                place.insert(fitted.map_err(EngineError::Data)?)
            }
        };
        let Some(most) = cache else { return Ok((&mut self.trainer, examples)) };
        let features = match self.features.take() {
            Some(features) => features,
            None => {
                let (extractor, trainer) = self.trainer.on_features()?;
                Features { extractor, trainer, kept: HashMap::new(), bytes: 0 }
            }
        };
        let features = self.features.insert(features);
        match features.kept.entry((client.clone(), part)) {
            Entry::Occupied(known) => Ok((&mut features.trainer, known.into_mut())),
            Entry::Vacant(_) if features.bytes + examples.len() * features.extractor.width() * 4 > most => {
                tracing::warn!(%client, "features do not fit --feature-cache-mib and are computed in every epoch");
                Ok((&mut self.trainer, examples))
            }
            Entry::Vacant(place) => {
                let made = features.extractor.extract(examples, proceed)?;
                features.bytes += made.bytes();
                Ok((&mut features.trainer, place.insert(made)))
            }
        }
    }
}
