//! What can go wrong between an artifact folder and a trained adapter.

use std::path::PathBuf;

use fedpeft_artifacts::FolderError;

use crate::{ChosenDevice, Device};

/// A session that cannot be made or run.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No ONNX Runtime library was found.
    #[error(
        "ONNX Runtime is not found ({searched}): run `cargo xtask assets`, or name libonnxruntime.so 1.22 or newer with --ort-lib or FEDPEFT_ORT_LIB"
    )]
    LibraryNotFound {
        /// Where it was looked for.
        searched: String,
    },
    /// The file is not a usable ONNX Runtime library.
    #[error(
        "ONNX Runtime cannot be loaded from {path}: {reason}; name libonnxruntime.so 1.22 or newer with --ort-lib or FEDPEFT_ORT_LIB",
        path = path.display()
    )]
    Library {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A process can load one library, and has loaded another.
    #[error("ONNX Runtime is already loaded from {loaded}; start another process to use {asked}", loaded = loaded.display(), asked = asked.display())]
    AlreadyLoaded {
        /// The library in use.
        loaded: PathBuf,
        /// The library asked for.
        asked: PathBuf,
    },
    /// The device cannot be used.
    #[error(
        "device {device} cannot be used: {reason}; use --device cpu, or an ONNX Runtime library with CUDA on a machine with an NVIDIA GPU"
    )]
    Device {
        /// The device asked for.
        device: Device,
        /// Why.
        reason: String,
    },
    /// The artifact folder is incomplete or damaged.
    #[error(transparent)]
    Artifacts(#[from] FolderError),
    /// ONNX Runtime refused a graph.
    #[error("{graph} cannot be used on {device}: {reason}")]
    Graph {
        /// File name of the graph.
        graph: String,
        /// Device it was to run on.
        device: ChosenDevice,
        /// Why.
        reason: String,
    },
    /// ONNX Runtime failed while it ran a graph or moved a tensor.
    #[error("ONNX Runtime failed: {0}")]
    Run(String),
    /// The artifacts cannot clip the gradients of examples.
    #[error(
        "these artifacts were built without dp_sgd: build them again with --dp-sgd (dp_sgd = true in [model]), or train \
         without training.dp_sgd"
    )]
    NoClipping,
    /// The method trains within the backbone.
    #[error(
        "features cannot be cached for method {0}: it trains more than a head behind the backbone; leave out training.cache_features"
    )]
    NotFrozen(String),
    /// The operating system gives no random bytes.
    #[error("the operating system gives no random bytes, without which there is no noise: {0}")]
    Entropy(String),
    /// The values do not fit the artifacts' adapter.
    #[error("the adapter has {got} values, these artifacts need {expected}")]
    Adapter {
        /// Values given.
        got: usize,
        /// Values needed.
        expected: usize,
    },
    /// The values do not fit the artifacts' residuals.
    #[error("the residuals have {got} values, these artifacts take {expected}")]
    Residual {
        /// Values given.
        got: usize,
        /// Values taken.
        expected: usize,
    },
    /// The examples cannot be read.
    #[error("examples cannot be read: {0}")]
    Examples(String),
    /// A label that the task does not have.
    #[error(
        "example {example} has the label {label}, but the model learns {expected}: correct the data, or build artifacts for it"
    )]
    Label {
        /// Position of the example in the client's data.
        example: usize,
        /// Its label.
        label: String,
        /// What is possible.
        expected: String,
    },
    /// A token id that the model has no embedding of.
    #[error(
        "example {example} has the token id {token}, but the model has 0 to {}: use the tokenizer of the model", vocabulary - 1
    )]
    Token {
        /// Position of the example in the client's data.
        example: usize,
        /// The token.
        token: i64,
        /// How many tokens the model has.
        vocabulary: i64,
    },
    /// There is nothing to train or evaluate on.
    #[error("this client has no examples: deal data out to fewer clients, or leave it out")]
    NoExamples,
    /// The loss is no number any more.
    #[error("training diverged: the loss is {loss} at step {step}; lower the learning rate")]
    Diverged {
        /// The optimizer step, counted from 1.
        step: u64,
        /// NaN or infinity.
        loss: f32,
    },
    /// Training cannot go on from there.
    #[error("the snapshot is not of this training: {0}")]
    Snapshot(String),
    /// The caller asked to stop.
    #[error("stopped on request")]
    Stopped,
}

/// ONNX Runtime's messages span lines and can be pages long; ours are one line.
pub(crate) fn one_line(message: impl std::fmt::Display) -> String {
    /// Characters of either end. The start says where, and the end of CUDA's messages why.
    const END: usize = 150;
    let text = message.to_string();
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let at = |(index, _): (usize, char)| index;
    match (line.char_indices().nth(END).map(at), line.char_indices().rev().nth(END - 1).map(at)) {
        (Some(head), Some(tail)) if line.chars().count() > 2 * END => {
            format!("{}...{}", &line[..head], &line[tail..])
        }
        _ => line,
    }
}

impl From<ort::Error> for RuntimeError {
    fn from(error: ort::Error) -> Self {
        Self::Run(one_line(error))
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn messages_become_one_short_line() {
        assert_eq!(super::one_line("a\n  b\tc\n"), "a b c");
        assert_eq!(super::one_line("é".repeat(1000)).chars().count(), 303);
    }
}
