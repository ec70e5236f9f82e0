//! Putting a method into a backbone.

mod bottleneck;
mod grow;
pub(crate) mod lowrank;
mod packed;
pub(crate) mod scale;
mod tokens;

use std::collections::{BTreeMap, BTreeSet};

use fedpeft_onnx::Tensor;
use fedpeft_passes::{Builder, PassError, Prepared};

use crate::{Method, Peft, Structure, TargetError, init::Init, select};

/// A method that does not fit a model.
#[derive(Debug, thiserror::Error)]
pub enum PeftError {
    /// No tensor of the kind is in the graph.
    #[error("method {method} finds no {kind} in this model: choose another method")]
    Nothing {
        /// The method.
        method: &'static str,
        /// What it looked for.
        kind: &'static str,
    },
    /// A hyper-parameter that this model does not allow.
    #[error("method {method}: {reason}")]
    Misfit {
        /// The method.
        method: &'static str,
        /// What does not fit, and the cure.
        reason: String,
    },
    /// A target that is not there.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The surgery made a graph that cannot be.
    #[error(transparent)]
    Pass(#[from] PassError),
}

impl PeftError {
    pub(crate) fn misfit(method: &'static str, reason: impl Into<String>) -> Self {
        Self::Misfit { method, reason: reason.into() }
    }
}

/// Input of a training graph that has dropout: `i64` scalar, another one for every step.
pub const DROPOUT_SEED: &str = "dropout_seed";

/// Puts `peft` into `backbone` and returns the names of the tensors it trains beside the head. New tensors
/// become initializers, random ones drawn from `seed`.
///
/// # Errors
/// [`PeftError`] in one line, naming the method and what does not fit.
pub fn apply(peft: &Peft, backbone: &mut Prepared, seed: u64) -> Result<BTreeSet<String>, PeftError> {
    let mut trainable = BTreeSet::new();
    // Those that choose come first: what others add is theirs already.
    for method in peft.methods().iter().filter(|method| !method.is_additive()) {
        trainable.extend(select(method, backbone)?);
    }
    for method in peft.methods().iter().filter(|method| method.is_additive()) {
        let structure = Structure::of(backbone)?;
        let init = Init { seed };
        let surgery = Surgery { backbone, structure, init, added: BTreeMap::new() };
        trainable.extend(match method {
            Method::Lora(lora) => surgery.lora(lora)?,
            Method::Dora(lora) => surgery.dora(lora)?,
            Method::Adapter(module) => surgery.bottleneck(module)?,
            Method::Prompt(prompt) => surgery.prompt(prompt)?,
            Method::Prefix(prefix) => surgery.prefix(prefix)?,
            Method::Ia3(ia3) => surgery.ia3(ia3)?,
            Method::Head | Method::Bias | Method::LayerNorm | Method::Full => BTreeSet::new(),
        });
    }
    Ok(trainable)
}

/// A backbone on the table.
struct Surgery<'a> {
    backbone: &'a mut Prepared,
    structure: Structure,
    init: Init,
    /// New tensors by name.
    added: BTreeMap<String, Tensor>,
}

impl Surgery<'_> {
    /// Names a new tensor.
    fn add(&mut self, name: impl Into<String>, tensor: impl FnOnce(Init, &str) -> Tensor) -> String {
        let name = name.into();
        // A module that all blocks share is added by each.
        if !self.added.contains_key(&name) {
            let tensor = tensor(self.init, &name);
            self.added.insert(name.clone(), tensor);
        }
        name
    }

    /// Replaces nodes as `rewrite` says and returns the names of the new tensors.
    fn finish(
        self,
        rewrite: impl FnMut(&mut Builder, usize, fedpeft_onnx::Node) -> Result<(), PeftError>,
    ) -> Result<BTreeSet<String>, PeftError> {
        let graph = &mut self.backbone.graph;
        let names = self.added.keys().cloned().collect();
        if let Some(taken) = self.added.keys().find(|name| graph.initializers.contains_key(*name)) {
            return Err(PassError::Input(format!("the model already has a tensor called {taken:?}")).into());
        }
        graph.initializers.extend(self.added);
        *graph = Builder::rewrite(graph, "peft.", rewrite)?;
        Ok(names)
    }
}
