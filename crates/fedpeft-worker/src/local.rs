//! A task whose client keeps tensors of its own: what it begins with, and what it keeps.

use std::sync::Arc;

use fedpeft_artifacts::{ArtifactFolder, manifest::Manifest};
use fedpeft_codec::{Layout, Scope};
use fedpeft_protocol::{
    Digest,
    round::{MemoryTask, Task, Work},
};

use crate::{
    memory::Memories,
    task::{Assignment, Failure, Workshop},
};

/// Which tensors of the model's adapter cross the wire for this task.
pub(crate) fn scope(task: &Task, manifest: &Manifest) -> Result<Scope, Failure> {
    let globs: &[String] = match &task.work {
        Work::Train { training, .. } => &training.local,
        Work::Evaluate => &[],
    };
    Scope::new(&manifest.adapter, globs).map_err(Failure::new)
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
        let Work::Train { memory: Some(MemoryTask { counted }), .. } = &task.work else {
            return Err(Failure::new(
                "the task does not say which update of this client was the last that counts",
            ));
        };
        Ok(memory.of(&task.run, &client.id, *counted))
    }

    /// The adapter that training begins with: the shared tensors of the task, and the local ones as the client has
    /// them, or as the artifacts do where none of its updates counts yet.
    pub async fn whole(
        &self,
        assignment: &Assignment<'_>,
        scope: &Scope,
        folder: &ArtifactFolder,
        shared: Vec<f32>,
    ) -> Result<Vec<f32>, Failure> {
        let Some(layout) = scope.local().cloned() else { return Ok(shared) };
        let (memories, folder, scope) = (self.memories(assignment)?, folder.clone(), scope.clone());
        blocking(move || {
            let local = match memories.recall(&layout).map_err(Failure::new)? {
                Some(kept) => kept,
                None => scope.split(&folder.initial_adapter().map_err(Failure::new)?).1,
            };
            Ok(scope.join(&shared, &local))
        })
        .await
    }

    /// The shared part of a trained adapter, once the local part is kept as what the client has after the update that
    /// sends it.
    pub async fn shared(
        &self,
        assignment: &Assignment<'_>,
        scope: &Scope,
        adapter: Arc<Vec<f32>>,
    ) -> Result<Arc<Vec<f32>>, Failure> {
        let Some(layout) = scope.local().cloned() else { return Ok(adapter) };
        let (memories, scope, task) =
            (self.memories(assignment)?, scope.clone(), assignment.task.task.clone());
        blocking(move || {
            let (shared, local) = scope.split(&adapter);
            finite(&layout, &local)?;
            let update = Digest::of(fedpeft_codec::encode(&shared));
            memories.keep(&task, &update, &layout, &local).map_err(Failure::new)?;
            Ok(Arc::new(shared))
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
