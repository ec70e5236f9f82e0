//! A client's data as the runtime reads it.

use fedpeft_artifacts::manifest::{InputSource, Manifest, TaskSpec};
use fedpeft_data::{ClientData, Input, Prepared};
use fedpeft_runtime::{Batch, Examples, Values};

/// Images with a class each.
pub(crate) struct ClientExamples(Prepared);

impl ClientExamples {
    /// Fits `data` to the inputs and the task of `manifest`; one line where that cannot be.
    pub fn new(data: &ClientData, manifest: &Manifest) -> Result<Self, String> {
        let classes = data.classes();
        match manifest.task {
            TaskSpec::Classification { classes: learned, .. } if learned < classes => {
                return Err(format!(
                    "labels are 0 to {}, the model has {learned} classes: build artifacts with --classes {classes}",
                    classes.saturating_sub(1)
                ));
            }
            TaskSpec::Classification { .. } => {}
            ref other => {
                return Err(format!("images have a class each, the model learns {}", other.name()));
            }
        }
        let [input] = &manifest.inputs[..] else {
            return Err(format!("these are images, the model reads {} inputs", manifest.inputs.len()));
        };
        let InputSource::Image { mean, std } = &input.source else {
            return Err(format!("these are images, the model reads {}", input.source.name()));
        };
        let input = Input::new(&input.shape, mean, std).map_err(|error| error.to_string())?;
        Ok(Self(data.prepare(&input)))
    }
}

impl Examples for ClientExamples {
    fn len(&self) -> usize {
        self.0.data().len()
    }

    fn fill(&self, indices: &[usize], batch: &mut Batch<'_>) -> Result<(), String> {
        match (&mut batch.inputs[..], &mut batch.labels) {
            ([Values::F32(pixels)], Values::I64(labels)) => {
                self.0.fill_batch(indices, pixels, labels).map_err(|error| error.to_string())
            }
            _ => Err("the model does not read one image and one class".to_owned()),
        }
    }
}
