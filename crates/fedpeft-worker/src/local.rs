//! A task whose client keeps something of its own from round to round: what it begins with, and what it keeps.

use std::{iter, sync::Arc};

use fedpeft_artifacts::{ArtifactFolder, manifest::Manifest};
use fedpeft_codec::{Layout, Scope, TensorSpec};
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

/// What a training begins with.
#[derive(Clone)]
pub(crate) struct Beginning {
    /// Which tensors are shared.
    pub scope: Arc<Scope>,
    /// All tensors.
    pub adapter: Arc<Vec<f32>>,
    /// Of SCAFFOLD.
    pub variates: Option<Arc<Variates>>,
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
    /// The shared tensors.
    pub adapter: Arc<Vec<f32>>,
    /// What the client's control variate changed by.
    pub control: Option<Arc<Vec<f32>>>,
}

/// Which tensors of the model's adapter cross the wire for this task.
pub(crate) fn scope(task: &Task, manifest: &Manifest) -> Result<Scope, Failure> {
    let globs: &[String] = match &task.work {
        Work::Train { training, .. } => &training.local,
        Work::Evaluate | Work::Aggregate { .. } => &[],
    };
    Scope::new(&manifest.adapter, globs).map_err(Failure::new)
}

/// The server's control variate, where the task has one.
pub(crate) fn control(task: &Task) -> Option<&Payload> {
    match &task.work {
        Work::Train { memory: Some(memory), .. } => memory.control.as_ref(),
        Work::Train { .. } | Work::Evaluate | Work::Aggregate { .. } => None,
    }
}

/// The tensors that are kept: the local ones, then those of the control variate. None where nothing is.
fn kept(scope: &Scope, has_control: bool) -> Result<Option<Layout>, Failure> {
    let local = scope.local().into_iter().flat_map(Layout::tensors).cloned();
    let control = scope.shared().tensors().iter().filter(|_| has_control);
    let named = |spec: &TensorSpec| TensorSpec { name: format!("{CONTROL}{}", spec.name), ..spec.clone() };
    let tensors: Vec<TensorSpec> = local.chain(control.map(named)).collect();
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
                "the run keeps tensors at its clients, and the worker of {} has no folder for them: start it with --state",
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
    /// client's own as it kept them. Where none of its updates counts yet, its tensors are those of the artifacts and its
    /// control variate is zero.
    pub async fn beginning(
        &self,
        assignment: &Assignment<'_>,
        scope: Scope,
        folder: &ArtifactFolder,
        shared: Vec<f32>,
        server: Option<Vec<f32>>,
    ) -> Result<Beginning, Failure> {
        let Some(layout) = kept(&scope, server.is_some())? else {
            return Ok(Beginning { scope: Arc::new(scope), adapter: Arc::new(shared), variates: None });
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
            let own = local.split_off(locals.min(local.len()));
            let variates = server.map(|server| Arc::new(Variates { server, own }));
            Ok(Beginning { adapter: Arc::new(scope.join(&shared, &local)), scope: Arc::new(scope), variates })
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
        let Some(layout) = kept(&beginning.scope, beginning.variates.is_some())? else {
            return Ok(Sent { adapter, control: None });
        };
        let (memories, beginning) = (self.memories(assignment)?, beginning.clone());
        let task = assignment.task.task.clone();
        blocking(move || {
            let Beginning { scope, adapter: start, variates } = &beginning;
            let (shared, mut own) = scope.split(&adapter);
            let control = variates.as_ref().map(|variates| {
                let change = variates.change(&scope.split(start).0, &shared, learning_rates);
                own.extend(variates.after(&change));
                Arc::new(change)
            });
            finite(&layout, &own)?;
            let update = Digest::of(fedpeft_codec::encode(&shared));
            memories.keep(&task, &update, &layout, &own).map_err(Failure::new)?;
            Ok(Sent { adapter: Arc::new(shared), control })
        })
        .await
    }
}

/// What no message carries is checked here.
fn finite(layout: &Layout, values: &[f32]) -> Result<(), Failure> {
    fedpeft_codec::validate(&fedpeft_codec::encode(values), layout).map_err(Failure::new)
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work).await.map_err(Failure::new)?
}
