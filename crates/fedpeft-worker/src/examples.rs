//! A client's data as the runtime reads it.

use fedpeft_artifacts::{
    ArtifactFolder,
    manifest::{InputSource, InputSpec, Manifest, TaskSpec},
};
use fedpeft_data::{ClientData, Column, Input, LabelKind, Prepared, TextInput, TokenColumn};
use fedpeft_runtime::{Batch, Examples, Values};
use fedpeft_text::Tokenizer;

/// The tokenizer of a model that reads text; none of others.
pub(crate) fn tokenizer(folder: &ArtifactFolder) -> Result<Option<Tokenizer>, String> {
    let Some(text) = &folder.manifest().text else { return Ok(None) };
    let tokenizer = Tokenizer::load(&folder.file(&text.tokenizer), text.max_length as usize)
        .map_err(|error| error.to_string())?;
    tokenizer.check_vocabulary(text.vocabulary as usize).map_err(|error| error.to_string())?;
    Ok(Some(tokenizer))
}

/// A client's examples, fitted to a model.
pub(crate) struct ClientExamples(Prepared);

impl ClientExamples {
    /// Fits `data` to the inputs and the task of `manifest`, whose tokenizer is `tokenizer`; one line where that
    /// cannot be. Texts become tokens now.
    pub fn new(
        data: &ClientData,
        manifest: &Manifest,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Self, String> {
        check_task(data.label_kind(), &manifest.task)?;
        let prepared = match &manifest.inputs[..] {
            [InputSpec { shape, source: InputSource::Image { mean, std }, .. }] => {
                let input = Input::new(shape, mean, std).map_err(|error| error.to_string())?;
                data.prepare_images(&input)
            }
            inputs => {
                let columns = inputs.iter().map(token_column).collect::<Result<Vec<_>, _>>()?;
                let (Some(tokenizer), Some(text)) = (tokenizer, &manifest.text) else {
                    return Err(
                        "the model reads tokens, but its artifacts hold no tokenizer: build them with one"
                            .to_owned(),
                    );
                };
                let tokenize = |text: &str| tokenizer.ids(text).map_err(|error| error.to_string());
                let length = text.max_length as usize;
                let input = TextInput { columns: &columns, length, pad_id: text.pad_id, tokenize: &tokenize };
                data.prepare_texts(&input)
            }
        };
        prepared.map(Self).map_err(|error| error.to_string())
    }
}

fn token_column(input: &InputSpec) -> Result<TokenColumn, String> {
    match &input.source {
        InputSource::TokenIds => Ok(TokenColumn::Ids),
        InputSource::AttentionMask => Ok(TokenColumn::Mask),
        InputSource::TokenTypes => Ok(TokenColumn::Types),
        InputSource::Image { .. } => Err(format!("the model reads {:?} beside other inputs", input.name)),
        InputSource::Values => {
            Err(format!("no kind of data gives the plain values of input {:?}", input.name))
        }
    }
}

/// Whether the model learns what the data is labelled with.
fn check_task(data: LabelKind, task: &TaskSpec) -> Result<(), String> {
    let learned = task.width();
    match (data, task) {
        // A model may know more classes than one dataset has.
        (LabelKind::Classes(classes), TaskSpec::Classification { .. }) if learned < classes => Err(format!(
            "labels are 0 to {}, the model has {learned} classes: build artifacts with --classes {classes}",
            classes.saturating_sub(1)
        )),
        (LabelKind::MultiLabel(width), TaskSpec::MultiLabel { .. })
        | (LabelKind::Regression(width), TaskSpec::Regression { .. })
            if learned != width =>
        {
            Err(format!("examples have {width} labels each, the model learns {}", task.outputs()))
        }
        (LabelKind::Classes(_), TaskSpec::Classification { .. })
        | (LabelKind::MultiLabel(_), TaskSpec::MultiLabel { .. })
        | (LabelKind::Regression(_), TaskSpec::Regression { .. })
        | (LabelKind::Tokens, TaskSpec::CausalLm { .. }) => Ok(()),
        (data, task) => {
            let labels = match data {
                LabelKind::Classes(_) => "a class each",
                LabelKind::MultiLabel(_) => "several labels",
                LabelKind::Regression(_) => "numbers as targets",
                LabelKind::Tokens => "their tokens as targets",
            };
            Err(format!("examples have {labels}, the model learns {}", task.name()))
        }
    }
}

impl Examples for ClientExamples {
    fn len(&self) -> usize {
        self.0.data().len()
    }

    fn fill(&self, indices: &[usize], batch: &mut Batch<'_>) -> Result<(), String> {
        let mut inputs: Vec<Column<'_>> = batch.inputs.iter_mut().map(column).collect();
        self.0.fill(indices, &mut inputs, column(&mut batch.labels)).map_err(|error| error.to_string())
    }
}

fn column<'a>(values: &'a mut Values<'_>) -> Column<'a> {
    match values {
        Values::F32(values) => Column::F32(values),
        Values::I64(values) => Column::I64(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_that_the_model_does_not_learn_are_named() {
        let classes = TaskSpec::classification(3);
        check_task(LabelKind::Classes(3), &classes).unwrap();
        check_task(LabelKind::Classes(2), &classes).unwrap();
        check_task(LabelKind::Tokens, &TaskSpec::CausalLm { vocabulary: 9 }).unwrap();
        let refused = |labels, task: &TaskSpec, expected: &str| {
            let error = check_task(labels, task).unwrap_err();
            assert!(error.contains(expected) && !error.contains('\n'), "{error}");
        };
        refused(LabelKind::Classes(10), &classes, "labels are 0 to 9, the model has 3 classes");
        refused(LabelKind::Tokens, &classes, "their tokens as targets, the model learns classification");
        refused(LabelKind::Classes(3), &TaskSpec::Regression { outputs: 3 }, "the model learns regression");
        let labels = TaskSpec::MultiLabel { labels: 4, pos_weight: vec![] };
        refused(LabelKind::MultiLabel(3), &labels, "3 labels each, the model learns 4 labels");
    }
}
