//! The inference model.

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_artifacts::{ArtifactFolder, manifest::LOGITS};
use fedpeft_onnx::{Model, Tensor, surgery};
use fedpeft_passes::fold;
use fedpeft_peft::merge::{MergedLayer, merge};

use crate::{ExportError, adapter, tidy::tidy, widen::widen};

/// A plain inference model.
#[derive(Debug, Clone)]
pub struct Inference {
    /// `(inputs) -> logits`, of standard operators, for batches of any size.
    pub model: Model,
    /// The layers whose weights the method changed.
    pub merged: Vec<MergedLayer>,
}

/// Makes an inference model from the evaluation graph of `folder` and the adapter `values`, flat in layout order.
/// Labels and loss are gone; the adapter is part of the weights.
///
/// # Errors
/// [`ExportError`] where the adapter is not of this folder, or the folder is damaged.
pub fn inference(folder: &ArtifactFolder, values: &[f32]) -> Result<Inference, ExportError> {
    let manifest = folder.manifest();
    adapter::check(&manifest.adapter, values)?;
    let eval = folder.file(&manifest.files.eval);
    let constants = constants(&Model::load_graph(&eval)?);
    let mut graph = Model::load(&eval)?.graph;
    graph.outputs.retain(|output| output.name == LOGITS);
    surgery::prune(&mut graph)?;
    widen(&mut graph);
    let tensor = |(spec, range): (&fedpeft_codec::TensorSpec, std::ops::Range<usize>)| {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| *dim as usize).collect();
        (spec.name.clone(), Tensor::f32(shape, &values[range]))
    };
    let learnt: BTreeMap<String, Tensor> = manifest.adapter.ranges().map(tensor).collect();
    let merged = merge(&mut graph, learnt)?;
    let weights: BTreeSet<String> =
        graph.initializers.keys().filter(|name| !constants.contains(*name)).cloned().collect();
    fold(&mut graph, &BTreeSet::new())?;
    tidy(&mut graph, &weights)?;
    "fedpeft".clone_into(&mut graph.name);

    let mut model = Model::new(graph);
    model.metadata = BTreeMap::from([
        ("artifacts".to_owned(), folder.digest().to_string()),
        ("inputs".to_owned(), serde_json::to_string(&manifest.inputs)?),
        ("method".to_owned(), serde_json::to_string(&manifest.method)?),
        ("task".to_owned(), serde_json::to_string(&manifest.task)?),
    ]);
    Ok(Inference { model, merged })
}

/// Initializers that are no weights: those are in the file of the backbone.
fn constants(eval: &Model) -> BTreeSet<String> {
    let inline = eval.graph.initializers.iter().filter(|(_, tensor)| tensor.bytes().is_some());
    inline.map(|(name, _)| name.clone()).collect()
}
