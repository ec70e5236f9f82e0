//! One task, from its adapter to its update.

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use fedpeft_artifacts::ArtifactFolder;
use fedpeft_bus::{Bus, RecentBlobs, UploadKey};
use fedpeft_codec::{Codec, Pipeline};
use fedpeft_protocol::{
    Digest, PROTOCOL_VERSION,
    round::{ByteKind, Direction, Outcome, Payload, Personal, Task, Transfer, Update, Work},
    secure::SecureTrained,
};
use fedpeft_registry::Cache;
use fedpeft_runtime::{OptimizerState, RuntimeError, Snapshot, Trained};
use fedpeft_service::CancellationToken;
use fedpeft_trace::{Instrument, span};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    task::JoinHandle,
};

use crate::{
    engine::{Done, Engine, EngineError, EngineWork, Job, Next},
    faults::{Crash, Faults},
    keep::Keep,
    local::{self, Beginning, Sent},
    memory::Memory,
    retry::retrying,
    roster::{Hosted, Role},
    secure::{Identities, Sessions, ToSecure},
    spending::Spending,
    state::{self, Checkpoint, StateFolder},
};

/// Bytes of an update beside its adapter, generously.
const ENVELOPE: usize = 8 << 10;

/// Longest reason a failed update gives.
const MAX_REASON: usize = 300;

/// A task, and what its client knows of it.
pub(crate) struct Assignment<'a> {
    pub client: &'a Hosted,
    pub task: &'a Task,
    /// When nobody waits for the update any more, by the clock of this process.
    pub deadline: Instant,
    /// What is to go wrong.
    pub faults: Faults,
}

/// What a task comes to.
pub(crate) enum Answer<'a> {
    /// To be published, and only then to be forgotten.
    Update(Box<Update>, Held<'a>),
    /// Its deadline has passed: nobody waits.
    Late,
    /// This process is told to stop: another, or a later one, should do it.
    HandBack,
}

/// What an update that is not yet sent holds.
#[derive(Default)]
pub(crate) struct Held<'a> {
    keep: Option<Keep>,
    saving: Option<JoinHandle<()>>,
    _sends: Option<SemaphorePermit<'a>>,
}

impl Held<'_> {
    /// Waits until the update would survive this process.
    pub async fn saved(&mut self) {
        if let Some(saving) = self.saving.take()
            && let Err(error) = saving.await
        {
            tracing::warn!(%error, "keeping an update broke off");
        }
    }

    /// Forgets what was kept: the broker has the update.
    pub async fn sent(mut self) {
        self.saved().await;
        if let Some(keep) = self.keep {
            keep.remove();
        }
    }
}

/// How checkpoints are kept.
#[derive(Debug, Clone)]
pub(crate) struct Keeping {
    pub state: StateFolder,
    pub every: Duration,
    /// Identity of the data that this process deals out.
    pub data: Digest,
}

/// Where tasks are done.
pub(crate) struct Workshop {
    pub bus: Bus,
    /// The global adapter, where its blob is what clients get.
    pub recent: RecentBlobs,
    pub cache: Cache,
    pub engine: Engine,
    /// None where nothing is kept.
    pub keeping: Option<Keeping>,
    /// What clients keep from round to round; none where there is no folder for it.
    pub memory: Option<Memory>,
    /// Folder of what must be kept: what private training has cost.
    pub state: PathBuf,
    /// By what the clients are known in secure aggregation, and whom they accept.
    pub identities: Identities,
    /// Where they are in it.
    pub secure: Sessions,
    /// Begin nothing new.
    pub shutdown: CancellationToken,
    /// Stop what is in progress.
    pub abort: CancellationToken,
    /// Clients that hold an adapter: one computes, and one fetches in the meantime.
    pub computing: Semaphore,
    /// Clients that send an update, so that slow ones do not stop the others from computing.
    pub sending: Semaphore,
}

/// Clients for [`Workshop::computing`] and for [`Workshop::sending`].
pub(crate) const AT_ONCE: usize = 2;

impl Workshop {
    /// Does a task.
    pub async fn answer(&self, assignment: &Assignment<'_>) -> Answer<'_> {
        let Assignment { client, task, .. } = assignment;
        let mut held = Held { keep: self.keep(assignment), ..Held::default() };
        let mut fetched = Vec::new();
        let outcome = match self.outcome(assignment, &mut held, &mut fetched).await {
            Ok(outcome) => outcome,
            Err(Failure::HandBack) => {
                held.saved().await;
                return Answer::HandBack;
            }
            Err(Failure::Late) => {
                held.sent().await;
                return Answer::Late;
            }
            Err(Failure::Reason(reason)) => {
                tracing::warn!(client = %client.id, run = %task.run, round = task.round, reason, "task failed");
                Outcome::Failed { reason }
            }
        };
        let (version, epoch, task) = (PROTOCOL_VERSION, task.epoch, task.task.clone());
        Answer::Update(Box::new(Update { version, epoch, task, outcome, fetched }), held)
    }

    fn keep(&self, Assignment { client, task, .. }: &Assignment<'_>) -> Option<Keep> {
        let Work::Train { .. } = task.work else { return None };
        let Keeping { state, every, data } = self.keeping.as_ref()?;
        let data = Digest::of(format!("{data} {}", client.data.len()));
        Some(Keep {
            state: state.clone(),
            client: client.id.clone(),
            key: state::key(task, &client.id, &data),
            every: *every,
            fetched: Vec::new(),
        })
    }

    async fn outcome<'a>(
        &'a self,
        assignment: &Assignment<'_>,
        held: &mut Held<'a>,
        fetched: &mut Vec<Transfer>,
    ) -> Result<Outcome, Failure> {
        if let Some(answer) = self.secured_before(assignment) {
            return Ok(answer);
        }
        if let Work::Secure { stage, after, request } = &assignment.task.work {
            return self.secured(assignment, (*stage, after, request), fetched).await;
        }
        self.may(assignment.task)?;
        let (done, computes) = self.computed(assignment, held.keep.as_ref(), fetched).await?;
        let (result, adapter, personal, beginning, epsilon) = match done {
            Finished::Evaluated(outcome) => return Ok(outcome),
            Finished::Trained { result, adapter, personal, beginning, epsilon } => {
                (result, adapter, personal, beginning, epsilon)
            }
        };
        held.saving = held.keep.as_ref().map(|keep| save(keep, result, adapter.clone(), fetched.clone()));
        let mut computes = Some(computes);
        if !assignment.faults.delay.is_zero() {
            // Only this client waits.
            computes = None;
            self.wait(assignment, assignment.faults.delay).await?;
        }
        held._sends = Some(self.stoppable(&self.abort, self.sending.acquire()).await?.map_err(Failure::new)?);
        drop(computes);
        let Trained { examples, steps, loss, seconds, learning_rates } = result;
        if let Work::Train { secure: Some(params), .. } = &assignment.task.work {
            let loss = if epsilon.is_some() { 0.0 } else { loss };
            let figures = SecureTrained { steps, loss, seconds, personal, epsilon };
            let trained = ToSecure { adapter, beginning, weight: examples, figures };
            return self.advertised(assignment, params, trained, fetched).await;
        }
        let encode = self.sent(assignment, &beginning, adapter, learning_rates).instrument(span!("encode"));
        let Sent { adapter, control } = encode.await?;
        // All of it is in the message, or nothing.
        let size = adapter.len() + control.as_ref().map_or(0, Bytes::len);
        let fits = self.fits(size);
        let adapter = self.payload(assignment, adapter, fits, fetched).await?;
        let control = match control {
            Some(control) => Some(self.payload(assignment, control, fits, fetched).await?),
            None => None,
        };
        // A loss has no noise: it stays here where the adapter's training is private.
        let loss = if epsilon.is_some() { 0.0 } else { loss };
        Ok(Outcome::Trained { examples, steps, loss, seconds, adapter, personal, control, epsilon })
    }

    /// What the task comes to, through simulated crashes, with the right to compute.
    async fn computed(
        &self,
        assignment: &Assignment<'_>,
        keep: Option<&Keep>,
        fetched: &mut Vec<Transfer>,
    ) -> Result<(Finished, SemaphorePermit<'_>), Failure> {
        let mut crash = assignment.faults.crash;
        loop {
            let computes = self.stoppable(&self.shutdown, self.computing.acquire()).await?;
            let computes = computes.map_err(Failure::new)?;
            // What was in memory is lost: all that is left is what was kept.
            fetched.clear();
            let crashed = Arc::new(AtomicBool::new(false));
            let done =
                self.attempt(assignment, keep, fetched, crash.map(|crash| (crash, crashed.clone()))).await;
            match crash.take().filter(|_| crashed.load(Ordering::Relaxed)) {
                None => return Ok((done?, computes)),
                Some(Crash { absence, .. }) => {
                    drop(computes);
                    let Task { run, round, .. } = assignment.task;
                    tracing::info!(client = %assignment.client.id, %run, round, "simulated crash");
                    self.wait(assignment, absence).await?;
                }
            }
        }
    }

    async fn attempt(
        &self,
        assignment: &Assignment<'_>,
        keep: Option<&Keep>,
        fetched: &mut Vec<Transfer>,
        crash: Option<(Crash, Arc<AtomicBool>)>,
    ) -> Result<Finished, Failure> {
        let Assignment { client, task, deadline, .. } = assignment;
        let work = match (&task.work, client.role) {
            (Work::Train { training, seed, rounds, personal, .. }, Role::Trains) => EngineWork::Train {
                training: training.clone(),
                seed: *seed,
                rounds: *rounds,
                round: task.round,
                personal: *personal,
            },
            (Work::Evaluate, Role::Evaluates) => EngineWork::Evaluate,
            (work, _) => return Err(Failure::new(format!("client {} does not {}", client.id, work.name()))),
        };
        let download = self.download(assignment, fetched).instrument(span!("download"));
        let Begun { folder, beginning, residual } = Box::pin(download).await?;
        let adapter = beginning.adapter.clone();
        let turn = self.stoppable(&self.shutdown, self.engine.turn().instrument(span!("wait"))).await?;
        let job = |folder, adapter, fetched: &[Transfer]| {
            let (abort, deadline, crash) = (self.abort.clone(), *deadline, crash.clone());
            let next = Box::new(move |steps, planned| match &crash {
                Some((crash, crashed)) if steps >= crash.step(planned) => {
                    crashed.store(true, Ordering::Relaxed);
                    Next::Stop
                }
                _ if abort.is_cancelled() => Next::HandBack,
                _ if Instant::now() >= deadline => Next::Stop,
                _ => Next::Step,
            });
            let keep = keep.map(|keep| Keep { fetched: fetched.to_vec(), ..keep.clone() });
            let (client, data, held_back) =
                (client.id.clone(), client.data.clone(), client.held_back.clone());
            let correction = beginning.correction();
            let spending = self.spending(assignment)?;
            let (work, residual) = (work.clone(), residual.clone());
            Ok(Job {
                folder,
                adapter,
                residual,
                correction,
                client,
                data,
                held_back,
                work,
                keep,
                spending,
                next,
            })
        };
        let compute = || span!("compute", otel.name = task.work.name());
        let mut done = turn.run(job(folder, adapter.clone(), fetched)?).instrument(compute()).await;
        if let Err(EngineError::Runtime(RuntimeError::Artifacts(error))) = &done {
            tracing::warn!(%error, "cached artifacts are damaged, fetching them again");
            let folder = self.pull(assignment, true, fetched).await?;
            done = turn.run(job(folder, adapter, fetched)?).instrument(compute()).await;
        }
        drop(turn);
        match done {
            Ok(Done::Evaluated(result)) => Ok(Finished::Evaluated(Outcome::Evaluated {
                examples: result.examples,
                loss: result.loss,
                accuracy: result.accuracy,
                seconds: result.seconds,
            })),
            Ok(Done::Trained { result, adapter, personal, fetched: earlier, epsilon }) => {
                fetched.splice(0..0, earlier);
                if let Some(epsilon) = epsilon {
                    let (client, run) = (&client.id, &task.run);
                    tracing::info!(%client, %run, round = task.round, epsilon, "spent on the client's examples");
                }
                let personal = personal.map(|own| Personal {
                    examples: own.examples,
                    loss: own.loss,
                    accuracy: own.accuracy,
                });
                Ok(Finished::Trained { result, adapter: Arc::new(adapter), personal, beginning, epsilon })
            }
            Err(EngineError::Runtime(RuntimeError::Stopped)) if self.abort.is_cancelled() => {
                Err(Failure::HandBack)
            }
            Err(EngineError::Runtime(RuntimeError::Stopped)) => Err(Failure::Late),
            Err(error) => Err(Failure::new(error)),
        }
    }

    /// What the task begins with: artifacts, the global adapter with what the client keeps, and what its factors do not hold.
    async fn download(
        &self,
        assignment: &Assignment<'_>,
        fetched: &mut Vec<Transfer>,
    ) -> Result<Begun, Failure> {
        let task = assignment.task;
        let folder = self.pull(assignment, false, fetched).await?;
        let scope = local::scope(task, folder.manifest())?;
        let codec = Codec::new(task.downlink, scope.shared());
        let shared = self.adapter(assignment, &task.adapter, codec, fetched).await?;
        let server = match local::control(task) {
            Some(control) => {
                let codec = Codec::new(Pipeline::default(), scope.shared());
                Some(self.adapter(assignment, control, codec, fetched).await?)
            }
            None => None,
        };
        let residual = match &task.residual {
            Some(residual) => {
                let layout = local::residual(folder.manifest())?;
                let codec = Codec::new(Pipeline::default(), &layout);
                Some(Arc::new(self.adapter(assignment, residual, codec, fetched).await?))
            }
            None => None,
        };
        let beginning = self.beginning(assignment, scope, &folder, shared, server).await?;
        Ok(Begun { folder, beginning, residual })
    }

    /// The client's account, where the task is private training.
    fn spending(
        &self,
        Assignment { client, task, .. }: &Assignment<'_>,
    ) -> Result<Option<Spending>, Failure> {
        let Work::Train { training, .. } = &task.work else { return Ok(None) };
        let Some(dp_sgd) = training.dp_sgd else { return Ok(None) };
        let (account, examples) = ((&client.id, &task.run), client.data.len());
        Spending::open(&self.state, account, training, dp_sgd, examples).map(Some).map_err(Failure::new)
    }

    /// The artifact folder of a task; `verify` hashes what is cached.
    async fn pull(
        &self,
        Assignment { task, deadline, .. }: &Assignment<'_>,
        verify: bool,
        fetched: &mut Vec<Transfer>,
    ) -> Result<ArtifactFolder, Failure> {
        let pull = retrying("fetching artifacts", *deadline, || {
            fedpeft_registry::pull(&self.bus, &task.manifest, &self.cache, verify, |_, _, _| ())
        });
        let pulled = self.stoppable(&self.abort, Box::pin(pull)).await?.map_err(Failure::new)?;
        fetched.extend(pulled.transfers);
        ArtifactFolder::open(pulled.folder).map_err(Failure::new)
    }

    /// The global adapter of the task, or what has its shape, checked.
    async fn adapter(
        &self,
        Assignment { deadline, .. }: &Assignment<'_>,
        payload: &Payload,
        codec: Codec<'_>,
        fetched: &mut Vec<Transfer>,
    ) -> Result<Vec<f32>, Failure> {
        let bytes = match payload {
            Payload::Message { digest, data } if Digest::of(data) == *digest => data.clone(),
            Payload::Message { .. } => {
                return Err(Failure::new("the adapter in the task does not have the digest it declares"));
            }
            Payload::Blob { digest, size } => {
                let size = *size.min(&codec.most_bytes());
                let get =
                    retrying("fetching an adapter", *deadline, || self.recent.get(&self.bus, digest, size));
                let (bytes, measured) =
                    self.stoppable(&self.abort, Box::pin(get)).await?.map_err(Failure::new)?;
                fetched
                    .extend(measured.map(|measured| measured.transfer(Direction::Down, ByteKind::Adapter)));
                bytes
            }
        };
        codec.decode(&bytes, None).map_err(Failure::new)
    }

    /// Whether what has this size fits an update.
    pub fn fits(&self, size: usize) -> bool {
        size + ENVELOPE <= self.bus.max_payload()
    }

    /// A trained adapter, or what has its shape: in the update or, where that is too large for a message, in the store of
    /// uploads. An upload that broke off, with its connection or with an earlier process, goes on where it stopped.
    pub async fn payload(
        &self,
        Assignment { client, task, deadline, .. }: &Assignment<'_>,
        bytes: Bytes,
        fits: bool,
        fetched: &mut Vec<Transfer>,
    ) -> Result<Payload, Failure> {
        if fits {
            return Ok(Payload::inline(bytes));
        }
        let size = bytes.len() as u64;
        let key = UploadKey { run: &task.run, round: task.round, client: &client.id };
        let put = retrying("storing an adapter", *deadline, || self.bus.put_upload(key, bytes.clone()));
        let stored = self.stoppable(&self.abort, Box::pin(put)).await?.map_err(Failure::new)?;
        fetched.push(stored.measured.transfer(Direction::Up, ByteKind::Adapter));
        Ok(Payload::Blob { digest: stored.digest, size })
    }

    /// Waits as a client that is simulated to be away or slow, but not past the deadline.
    async fn wait(&self, assignment: &Assignment<'_>, time: Duration) -> Result<(), Failure> {
        let left = assignment.deadline.saturating_duration_since(Instant::now());
        self.stoppable(&self.abort, tokio::time::sleep(time.min(left))).await?;
        if time < left { Ok(()) } else { Err(Failure::Late) }
    }

    /// `work`, unless `stop` comes first.
    async fn stoppable<T>(
        &self,
        stop: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(Failure::HandBack),
            done = work => Ok(done),
        }
    }
}

/// What computing begins with.
struct Begun {
    folder: ArtifactFolder,
    beginning: Beginning,
    /// What the LoRA factors of the global adapter do not hold, where there is something.
    residual: Option<Arc<Vec<f32>>>,
}

/// What computing came to.
enum Finished {
    Trained {
        result: Trained,
        adapter: Arc<Vec<f32>>,
        personal: Option<Personal>,
        beginning: Beginning,
        epsilon: Option<f64>,
    },
    Evaluated(Outcome),
}

/// Keeps a result until it is sent, beside everything else that happens.
fn save(keep: &Keep, result: Trained, adapter: Arc<Vec<f32>>, fetched: Vec<Transfer>) -> JoinHandle<()> {
    let keep = keep.clone();
    tokio::task::spawn_blocking(move || {
        let Trained { steps, loss, seconds, .. } = result;
        let (adapter, optimizer) = (adapter.to_vec(), OptimizerState::default());
        // Nothing is added to the mean loss any more.
        keep.save(&Checkpoint {
            snapshot: Snapshot { steps, loss, weight: 1.0, seconds, adapter, optimizer },
            fetched,
        });
    })
}

/// A task without a result.
pub(crate) enum Failure {
    /// This process is told to stop.
    HandBack,
    /// Out of time.
    Late,
    /// One line.
    Reason(String),
}

impl Failure {
    pub fn new(reason: impl std::fmt::Display) -> Self {
        let line = reason.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        Self::Reason(line.chars().take(MAX_REASON).collect())
    }
}
