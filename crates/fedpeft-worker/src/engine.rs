//! The thread that computes. It owns the one backbone in memory and works for one client after another,
//! while the asynchronous side keeps heartbeats and acknowledgements going.

use std::{path::PathBuf, sync::Arc, thread};

use fedpeft_artifacts::ArtifactFolder;
use fedpeft_data::ClientData;
use fedpeft_protocol::{ClientId, Digest, Round, run::TrainingSpec};
use fedpeft_runtime::{
    Device, Evaluated, OrderSeed, Runtime, RuntimeError, SessionOptions, Trained, Trainer,
};
use tokio::sync::{Mutex, MutexGuard, mpsc, oneshot};

use crate::examples::ClientExamples;

/// What the thread is given.
pub(crate) struct Job {
    pub folder: ArtifactFolder,
    pub adapter: Arc<Vec<f32>>,
    pub data: ClientData,
    pub work: EngineWork,
    /// Asked before every step.
    pub proceed: Box<dyn FnMut() -> bool + Send>,
}

/// What it should do.
#[derive(Clone)]
pub(crate) enum EngineWork {
    Train { training: TrainingSpec, seed: u64, round: Round, client: ClientId },
    Evaluate,
}

/// What came of it.
pub(crate) enum Done {
    Trained { result: Trained, adapter: Vec<f32> },
    Evaluated(Evaluated),
}

/// A job that came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EngineError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("the data does not fit the model: {0}")]
    Data(String),
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
                    let options = SessionOptions {
                        device: pinned(device),
                        threads: options.threads,
                        ..Default::default()
                    };
                    Thread { runtime, options, trainer: None }.run(queue);
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
    trainer: Option<(Digest, Trainer)>,
}

impl Thread {
    fn run(mut self, mut queue: mpsc::Receiver<(Job, Reply)>) {
        while let Some((job, reply)) = queue.blocking_recv() {
            // A client that is gone does not miss its answer.
            let _ = reply.send(self.work(job));
        }
    }

    fn work(&mut self, mut job: Job) -> Result<Done, EngineError> {
        let trainer = self.trainer(job.folder)?;
        let examples =
            ClientExamples::new(&job.data, trainer.artifacts().manifest()).map_err(EngineError::Data)?;
        trainer.set_adapter(&job.adapter)?;
        match job.work {
            EngineWork::Train { training, seed, round, client } => {
                let seed = OrderSeed { run: seed, round, client: client.as_str() };
                let result = trainer.train(&training, &examples, seed, &mut *job.proceed)?;
                let mut adapter = Vec::new();
                trainer.adapter_into(&mut adapter)?;
                Ok(Done::Trained { result, adapter })
            }
            EngineWork::Evaluate => Ok(Done::Evaluated(trainer.evaluate(&examples, &mut *job.proceed)?)),
        }
    }

    /// The trainer of these artifacts; the one of other artifacts goes first, so that one backbone at a
    /// time is in memory.
    fn trainer(&mut self, folder: ArtifactFolder) -> Result<&mut Trainer, RuntimeError> {
        let digest = folder.digest();
        if self.trainer.as_ref().is_some_and(|(current, _)| *current != digest) {
            self.trainer = None;
        }
        let trainer = match self.trainer.take() {
            Some(trainer) => trainer,
            None => (digest, Trainer::new(&self.runtime, folder, self.options.clone())?),
        };
        Ok(&mut self.trainer.insert(trainer).1)
    }
}
