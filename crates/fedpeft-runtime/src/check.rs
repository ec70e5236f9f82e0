//! What a graph cannot be given: ONNX Runtime would refuse it in words of its own, or compute nonsense.

use fedpeft_artifacts::manifest::{IGNORED, InputSource, Manifest, TaskSpec};

use crate::{Batch, RuntimeError, Values};

/// Which labels and token ids are possible.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    labels: Allowed,
    /// Position of the token ids among the inputs, and how many there are.
    tokens: Option<(usize, i64)>,
}

#[derive(Debug, Clone, Copy)]
enum Allowed {
    Classes(i64),
    Tokens(i64),
    Shares,
    Numbers,
}

impl Limits {
    pub fn of(manifest: &Manifest) -> Self {
        let labels = match manifest.task {
            TaskSpec::Classification { classes, .. } => Allowed::Classes(classes.into()),
            TaskSpec::CausalLm { vocabulary } => Allowed::Tokens(vocabulary.into()),
            TaskSpec::MultiLabel { .. } => Allowed::Shares,
            TaskSpec::Regression { .. } => Allowed::Numbers,
        };
        let ids = manifest.inputs.iter().position(|input| input.source == InputSource::TokenIds);
        let vocabulary = match (&manifest.text, &manifest.task) {
            (Some(text), _) => Some(text.vocabulary),
            (None, TaskSpec::CausalLm { vocabulary }) => Some(*vocabulary),
            _ => None,
        };
        Self { labels, tokens: ids.zip(vocabulary.map(i64::from)) }
    }

    /// Checks the examples at `indices` in `batch`.
    pub fn check(&self, indices: &[usize], batch: &Batch<'_>) -> Result<(), RuntimeError> {
        let example =
            |at: usize, len: usize| indices.get(at * indices.len() / len.max(1)).copied().unwrap_or(at);
        if let Some((at, vocabulary)) = self.tokens
            && let Some(Values::I64(ids)) = batch.inputs.get(at)
            && let Some(wrong) = ids.iter().position(|id| !(0..vocabulary).contains(id))
        {
            let (example, token) = (example(wrong, ids.len()), ids[wrong]);
            return Err(RuntimeError::Token { example, token, vocabulary });
        }
        let (wrong, len, label) = match (&batch.labels, self.labels) {
            (Values::I64(labels), Allowed::Classes(classes)) => {
                let wrong = labels.iter().position(|label| !(0..classes).contains(label));
                (wrong, labels.len(), wrong.map(|at| labels[at].to_string()))
            }
            (Values::I64(labels), Allowed::Tokens(vocabulary)) => {
                let wrong =
                    labels.iter().position(|label| *label != IGNORED && !(0..vocabulary).contains(label));
                (wrong, labels.len(), wrong.map(|at| labels[at].to_string()))
            }
            (Values::F32(labels), Allowed::Shares) => {
                let wrong = labels.iter().position(|label| !(0.0..=1.0).contains(label));
                (wrong, labels.len(), wrong.map(|at| labels[at].to_string()))
            }
            (Values::F32(labels), _) => {
                let wrong = labels.iter().position(|label| !label.is_finite());
                (wrong, labels.len(), wrong.map(|at| labels[at].to_string()))
            }
            (Values::I64(_), _) => (None, 0, None),
        };
        match wrong.zip(label) {
            Some((at, label)) => {
                let expected = self.labels.to_string();
                Err(RuntimeError::Label { example: example(at, len), label, expected })
            }
            None => Ok(()),
        }
    }
}

impl std::fmt::Display for Allowed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Classes(classes) => write!(formatter, "a class from 0 to {}", classes - 1),
            Self::Tokens(vocabulary) => {
                write!(formatter, "a token from 0 to {}, or {IGNORED}", vocabulary - 1)
            }
            Self::Shares => formatter.write_str("a number from 0 to 1"),
            Self::Numbers => formatter.write_str("a finite number"),
        }
    }
}
