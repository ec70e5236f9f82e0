//! Where the sessions of one graph come from: its file, and what is changed for a device and for a size of batches.

use fedpeft_artifacts::{ArtifactFolder, manifest::FileRef};
use fedpeft_onnx::{Dim, Model};
use ort::session::Session;

use crate::{
    ChosenDevice, Runtime, RuntimeError, SessionOptions, Shapes, buffer::Fed, frozen, measured, parts,
    session,
};

/// A graph of the artifacts that sessions are made of.
pub(crate) struct Source {
    pub runtime: Runtime,
    pub folder: ArtifactFolder,
    pub file: FileRef,
    pub device: ChosenDevice,
    pub options: SessionOptions,
    /// What a batch is written to.
    pub fed: Vec<Fed>,
    /// Whether the graph begins with what is fed, and not with the model's inputs.
    pub begins: bool,
}

impl Source {
    /// A session for batches of any size, or for one size in the way that `shapes` says.
    pub fn open(&self, size: Option<usize>, shapes: Shapes) -> Result<Session, RuntimeError> {
        let Self { runtime, folder, file, device, options, fed, begins } = self;
        let recorded = size.is_some() && shapes == Shapes::Recorded;
        session::open_edited(runtime, folder, file, *device, options, recorded, |model| {
            if let (true, Some(begin)) = (*begins, fed.first()) {
                frozen::after(model, &begin.name, folder.manifest())?;
            }
            measured::join(&mut model.graph);
            if let Some(size) = size {
                fix(model, fed, size);
            }
            if recorded {
                parts::of_concats(&mut model.graph);
            }
            Ok(())
        })
    }
}

/// Says of the inputs how large batches are, from which ONNX Runtime infers every other shape.
fn fix(model: &mut Model, fed: &[Fed], size: usize) {
    for input in &mut model.graph.inputs {
        if let Some(fed) = fed.iter().find(|fed| fed.name == input.name) {
            let rest = fed.shape.iter().map(|dim| Dim::Fixed(usize::try_from(*dim).unwrap_or(0)));
            input.shape = Some([Dim::Fixed(size)].into_iter().chain(rest).collect());
        }
    }
}
