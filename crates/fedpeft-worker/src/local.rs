//! A task whose client keeps something of its own from round to round: what it begins with, and what it keeps.

use std::{iter, sync::Arc};

use bytes::Bytes;
use fedpeft_artifacts::{ArtifactFolder, manifest::Manifest};
use fedpeft_codec::{
    Base, Codec, Layout, LowRank, Pipeline, Scope, Seed, TensorSpec, as_bytes, encode_shared, validate,
};
use fedpeft_protocol::{
    Digest,
    round::{MemoryTask, Payload, Task, Work},
};

use crate::{
    memory::Memories,
    scaffold::Variates,
    task::{Assignment, Failure, Workshop},
};

/// What tensors of a control variate are called where they are kept: as those of the adapter, after this.
const CONTROL: &str = "control/";
/// What tensors are called that the client's updates left out, likewise.
const LEFT_OUT: &str = "left_out/";

/// What a training begins with.
#[derive(Clone)]
pub(crate) struct Beginning {
    /// Which tensors are shared.
    pub scope: Arc<Scope>,
    /// All tensors.
    pub adapter: Arc<Vec<f32>>,
    /// Of SCAFFOLD.
    pub variates: Option<Arc<Variates>>,
    /// Of an uplink with error feedback: what earlier updates left out, of the shared tensors.
    pub left_out: Option<Arc<Vec<f32>>>,
}

impl Beginning {
    /// What is added to the gradient of every step, of all tensors: nothing to those that are local.
    pub fn correction(&self) -> Option<Vec<f32>> {
        let variates = self.variates.as_ref()?;
        let nothing = vec![0.0; self.scope.local().map_or(0, Layout::values)];
        Some(self.scope.join(&variates.correction(), &nothing))
    }
}

/// What a training leaves for the server.
pub(crate) struct Sent {
    /// The shared tensors, as the uplink encodes them.
    pub adapter: Bytes,
    /// What the client's control variate changed by, as it is.
    pub control: Option<Bytes>,
}

/// Which tensors of the model's adapter cross the wire for this task.
pub(crate) fn scope(task: &Task, manifest: &Manifest) -> Result<Scope, Failure> {
    let globs: &[String] = match &task.work {
        Work::Train { training, .. } => &training.local,
        Work::Secure { .. } | Work::Evaluate | Work::Aggregate { .. } => &[],
    };
    Scope::new(&manifest.adapter, globs).map_err(Failure::new)
}

/// What the residual of a task fills.
pub(crate) fn residual(manifest: &Manifest) -> Result<Layout, Failure> {
    let layout = manifest.residual().map_err(Failure::new)?;
    layout.ok_or_else(|| {
        Failure::new(
            "the task has a residual, and its artifacts take none: build them with --method lora --residual",
        )
    })
}

/// The server's control variate, where the task has one.
pub(crate) fn control(task: &Task) -> Option<&Payload> {
    match &task.work {
        Work::Train { memory: Some(memory), .. } => memory.control.as_ref(),
        Work::Train { .. } | Work::Secure { .. } | Work::Evaluate | Work::Aggregate { .. } => None,
    }
}

/// How the update of a task is encoded.
fn uplink(task: &Task) -> Pipeline {
    match &task.work {
        Work::Train { uplink, .. } => *uplink,
        Work::Secure { .. } | Work::Evaluate | Work::Aggregate { .. } => Pipeline::default(),
    }
}

/// The adapter of less LoRA rank that this client trains, if it does.
fn low_rank<'a>(assignment: &Assignment<'_>, layout: &'a Layout) -> Result<Option<LowRank<'a>>, Failure> {
    let (client, Work::Train { ranks, .. }) = (assignment.client, &assignment.task.work) else {
        return Ok(None);
    };
    match client.lora_rank.and_then(|rank| LowRank::new(layout, rank.into()).map(|low| (rank, low))) {
        Some((rank, _)) if !ranks => Err(Failure::new(format!(
            "client {} trains LoRA of rank {rank} at most, less than the run's: mixed ranks need aggregation lora_product, \
             without dp_sgd, local tensors and error feedback",
            client.id
        ))),
        low => Ok(low.map(|(_, low)| low)),
    }
}

/// The tensors that are kept: the local ones, those of the control variate, and those that were left out. None where
/// nothing is.
fn kept(scope: &Scope, has_control: bool, has_left_out: bool) -> Result<Option<Layout>, Failure> {
    let local = scope.local().into_iter().flat_map(Layout::tensors).cloned();
    let shared = |prefix: &'static str, is_kept: bool| {
        let specs = scope.shared().tensors().iter().filter(move |_| is_kept);
        specs.map(move |spec| TensorSpec { name: format!("{prefix}{}", spec.name), ..spec.clone() })
    };
    let tensors: Vec<TensorSpec> =
        local.chain(shared(CONTROL, has_control)).chain(shared(LEFT_OUT, has_left_out)).collect();
    if tensors.is_empty() {
        return Ok(None);
    }
    Layout::new(tensors).map(Some).map_err(Failure::new)
}

impl Workshop {
    /// What the client of this task keeps of its run.
    fn memories(&self, Assignment { client, task, .. }: &Assignment<'_>) -> Result<Memories, Failure> {
        let Some(memory) = &self.memory else {
            return Err(Failure::new(format!(
                "the run keeps something at its clients, and the worker of {} has no folder for it: start it with --state",
                client.id
            )));
        };
        let Work::Train { memory: Some(MemoryTask { counted, .. }), .. } = &task.work else {
            return Err(Failure::new(
                "the task does not say which update of this client was the last that counts",
            ));
        };
        Ok(memory.of(&task.run, &client.id, *counted))
    }

    /// What training begins with: the shared tensors of the task and the server's control variate, if it has one, and the
    /// client's own as it kept them. Where none of its updates counts yet, its tensors are those of the artifacts, its
    /// control variate is zero, and nothing was left out.
    pub async fn beginning(
        &self,
        assignment: &Assignment<'_>,
        scope: Scope,
        folder: &ArtifactFolder,
        shared: Vec<f32>,
        server: Option<Vec<f32>>,
    ) -> Result<Beginning, Failure> {
        let shared = match low_rank(assignment, scope.shared())? {
            Some(low) => low.pad(&low.cut(&shared)),
            None => shared,
        };
        let (has_control, has_left_out) = (server.is_some(), uplink(assignment.task).feedback());
        let Some(layout) = kept(&scope, has_control, has_left_out)? else {
            let (scope, adapter) = (Arc::new(scope), Arc::new(shared));
            return Ok(Beginning { scope, adapter, variates: None, left_out: None });
        };
        let (memories, folder) = (self.memories(assignment)?, folder.clone());
        blocking(move || {
            let locals = scope.local().map_or(0, Layout::values);
            let mut local = match memories.recall(&layout).map_err(Failure::new)? {
                Some(kept) => kept,
                None => {
                    let initial = folder.initial_adapter().map_err(Failure::new)?;
                    let zeros = iter::repeat_n(0.0, layout.values() - locals);
                    scope.split(&initial).1.into_iter().chain(zeros).collect()
                }
            };
            let mut own = local.split_off(locals.min(local.len()));
            let left_out = has_left_out.then(|| own.split_off(own.len().saturating_sub(shared.len())));
            let variates = server.map(|server| Arc::new(Variates { server, own }));
            let (adapter, left_out) = (Arc::new(scope.join(&shared, &local)), left_out.map(Arc::new));
            Ok(Beginning { adapter, scope: Arc::new(scope), variates, left_out })
        })
        .await
    }

    /// What is sent of a trained adapter, once what the client has after that update is kept. `learning_rates` is the sum
    /// of those of all steps.
    pub async fn sent(
        &self,
        assignment: &Assignment<'_>,
        beginning: &Beginning,
        adapter: Arc<Vec<f32>>,
        learning_rates: f64,
    ) -> Result<Sent, Failure> {
        let task = assignment.task;
        let (uplink, shared) = (uplink(task), beginning.scope.shared());
        let layout = kept(&beginning.scope, beginning.variates.is_some(), beginning.left_out.is_some())?;
        if layout.is_none()
            && let Some(low) = low_rank(assignment, shared)?
        {
            let seed = seed(assignment);
            let base = uplink.delta().then(|| low.cut(&beginning.adapter));
            let codec = Codec::new(uplink, low.layout());
            let encoded = codec.encode(&low.cut(&adapter), base.as_deref().map(Base::new).as_ref(), seed);
            return Ok(Sent { adapter: encoded.map_err(Failure::new)?, control: None });
        }
        if layout.is_none() && uplink.is_plain() {
            finite(shared, &adapter)?;
            return Ok(Sent { adapter: encode_shared(adapter), control: None });
        }
        let memories = match layout {
            Some(layout) => Some((self.memories(assignment)?, layout)),
            None => None,
        };
        let seed = seed(assignment);
        let (beginning, task) = (beginning.clone(), task.task.clone());
        blocking(move || {
            let Beginning { scope, adapter: start, variates, left_out } = &beginning;
            let (layout, (shared, mut own)) = (scope.shared(), scope.split(&adapter));
            let start = scope.split(start).0;
            let base = uplink.delta().then(|| Base::new(&start));
            let codec = Codec::new(uplink, layout);
            let (adapter, left_out) = match left_out {
                None => (codec.encode(&shared, base.as_ref(), seed).map_err(Failure::new)?, None),
                Some(before) => {
                    let encoded = codec.encode_with(&shared, base.as_ref(), seed, before.to_vec());
                    encoded.map(|(bytes, left_out)| (bytes, Some(left_out))).map_err(Failure::new)?
                }
            };
            let change = variates.as_ref().map(|variates| {
                let change = variates.change(&start, &shared, learning_rates);
                own.extend(variates.after(&change));
                change
            });
            let control = match change {
                Some(change) => {
                    finite(layout, &change)?;
                    Some(encode_shared(Arc::new(change)))
                }
                None => None,
            };
            own.extend(left_out.unwrap_or_default());
            if let Some((memories, layout)) = memories {
                finite(&layout, &own)?;
                memories.keep(&task, &Digest::of(&adapter), &layout, &own).map_err(Failure::new)?;
            }
            Ok(Sent { adapter, control })
        })
        .await
    }
}

/// What the randomness of an encoding is drawn from.
fn seed(Assignment { client, task, .. }: &Assignment<'_>) -> Seed {
    let run_seed = if let Work::Train { seed, .. } = task.work { seed } else { 0 };
    Seed::new(run_seed, task.round, client.id.as_str())
}

/// What no message carries is checked here.
fn finite(layout: &Layout, values: &[f32]) -> Result<(), Failure> {
    validate(&as_bytes(values), layout).map_err(Failure::new)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::new)?
}
