//! The inference model.

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_artifacts::{ArtifactFolder, manifest::LOGITS};
use fedpeft_onnx::{Model, Tensor, surgery};
use fedpeft_passes::fold;
use fedpeft_peft::merge::{MergedLayer, merge};

use crate::{ExportError, Trained, tidy::tidy, widen::widen};

/// A plain inference model.
#[derive(Debug, Clone)]
pub struct Inference {
    /// `(inputs) -> logits`, of standard operators, for batches of any size.
    pub model: Model,
    /// The layers whose weights the method changed.
    pub merged: Vec<MergedLayer>,
}

/// Makes an inference model from the evaluation graph of `folder` and what was trained. Labels and loss are gone; the
/// adapter, and what its factors do not hold, is part of the weights.
///
/// # Errors
/// [`ExportError`] where the adapter is not of this folder, or the folder is damaged.
pub fn inference<'a>(
    folder: &ArtifactFolder,
    trained: impl Into<Trained<'a>>,
) -> Result<Inference, ExportError> {
    let (manifest, trained) = (folder.manifest(), trained.into());
    let zeros = manifest.residual()?.map(|layout| vec![0.0; layout.values()]);
    let given = Trained { residual: trained.residual.or(zeros.as_deref()), ..trained }.tensors(manifest)?;
    let eval = folder.file(&manifest.files.eval);
    let constants = constants(&Model::load_graph(&eval)?);
    let mut graph = Model::load(&eval)?.graph;
    graph.outputs.retain(|output| output.name == LOGITS);
    surgery::prune(&mut graph)?;
    widen(&mut graph);
    let tensor = |(spec, values): (fedpeft_codec::TensorSpec, &[f32])| {
        let shape: Vec<usize> = spec.shape.iter().map(|dim| *dim as usize).collect();
        (spec.name, Tensor::f32(shape, values))
    };
    let learnt: BTreeMap<String, Tensor> = given.into_iter().map(tensor).collect();
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
