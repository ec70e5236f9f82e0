//! A client's data as the runtime reads it.

use fedpeft_artifacts::manifest::{InputSource, Manifest, TaskSpec};
use fedpeft_data::{ClientData, Column, Input, LabelKind, Prepared};
use fedpeft_runtime::{Batch, Examples, Values};

/// Images with a class each.
pub(crate) struct ClientExamples(Prepared);

impl ClientExamples {
    /// Fits `data` to the inputs and the task of `manifest`; one line where that cannot be.
    pub fn new(data: &ClientData, manifest: &Manifest) -> Result<Self, String> {
        match (&manifest.task, data.label_kind()) {
            (TaskSpec::Classification { classes: learned, .. }, LabelKind::Classes(classes)) => {
                if *learned < classes {
                    return Err(format!(
                        "labels are 0 to {}, the model has {learned} classes: build artifacts with --classes {classes}",
                        classes.saturating_sub(1)
                    ));
                }
            }
            (TaskSpec::MultiLabel { labels, .. }, LabelKind::MultiLabel(found)) if *labels == found => {}
            (TaskSpec::Regression { outputs }, LabelKind::Regression(found)) if *outputs == found => {}
            (TaskSpec::CausalLm { .. }, LabelKind::Tokens) => {}
            (task, found) => {
                let learns = task.name();
                return Err(format!("the model learns {learns}, but the data is labelled with {found}"));
            }
        }
        let [input] = &manifest.inputs[..] else {
            return Err(format!("these are images, the model reads {} inputs", manifest.inputs.len()));
        };
        let InputSource::Image { mean, std } = &input.source else {
            return Err(format!("these are images, the model reads {}", input.source.name()));
        };
        let input = Input::new(&input.shape, mean, std).map_err(|error| error.to_string())?;
        data.prepare_images(&input).map(Self).map_err(|error| error.to_string())
    }
}

impl Examples for ClientExamples {
    fn len(&self) -> usize {
        self.0.data().len()
    }

    fn fill(&self, indices: &[usize], batch: &mut Batch<'_>) -> Result<(), String> {
        let mut inputs: Vec<Column<'_>> = batch.inputs.iter_mut().map(column).collect();
        let labels = column(&mut batch.labels);
        self.0.fill(indices, &mut inputs, labels).map_err(|error| error.to_string())
    }
}

/// The runtime's buffer as the data writes it.
fn column<'a>(values: &'a mut Values<'_>) -> Column<'a> {
    match values {
        Values::F32(values) => Column::F32(values),
        Values::I64(values) => Column::I64(values),
    }
}
