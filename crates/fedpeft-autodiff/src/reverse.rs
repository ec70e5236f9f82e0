//! The sweep from the loss back to the chosen tensors.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use fedpeft_onnx::Node;
use fedpeft_passes::{Builder, PassError};

use crate::{functions, rules};

/// Why a graph cannot be differentiated.
#[derive(Debug, thiserror::Error)]
pub enum AutodiffError {
    /// An operator on the path has no rule.
    #[error(
        "{node} lies between the loss and {tensor:?}, but operator {op} has no gradient rule: \
         choose a method that does not train it, or export the model without it"
    )]
    NoRule {
        /// Operator and name of the node.
        node: String,
        /// The operator.
        op: String,
        /// A tensor whose gradient needs the rule.
        tensor: String,
    },
    /// A rule does not cover this use of its operator.
    #[error("{node} cannot be differentiated: {reason}")]
    Unsupported {
        /// Operator and name of the node.
        node: String,
        /// What is not covered.
        reason: String,
    },
    /// The loss does not depend on a chosen tensor.
    #[error("the loss does not depend on {0:?}, so it has no gradient")]
    NoPath(String),
    /// The loss is no scalar.
    #[error("the loss {0:?} must be a scalar, its shape is {1}")]
    NotScalar(String, String),
    /// Gradients of each example that do not fit into memory.
    #[error(
        "the gradients of one example take {mebibytes} MiB up to that of {tensor:?}, more than 64: choose a method that \
         trains less, or train without dp_sgd"
    )]
    TooLarge {
        /// The tensor at which it is too much.
        tensor: String,
        /// What the gradients take, up to this one.
        mebibytes: i64,
    },
    /// A rule built something that cannot be.
    #[error(transparent)]
    Pass(#[from] PassError),
}

/// What a rule works with: one node, the gradient of its output, and where to put those of its inputs.
pub(crate) struct Cx<'a> {
    pub b: &'a mut Builder,
    /// The node, and its index in the builder's graph.
    pub node: &'a Node,
    pub index: usize,
    /// Gradients of the outputs; none where the loss does not depend on one.
    pub output_grads: Vec<Option<String>>,
    active: &'a HashSet<String>,
    input_grads: Vec<Option<String>>,
}

impl Cx<'_> {
    /// Name of input `index`.
    pub fn x(&self, index: usize) -> Result<&str, AutodiffError> {
        self.node.input(index).ok_or_else(|| self.unsupported(format!("input {index} is missing")))
    }

    /// Gradient of the first output.
    pub fn dy(&self) -> Result<String, AutodiffError> {
        let first = self.output_grads.first().cloned().flatten();
        first.ok_or_else(|| self.unsupported("the loss depends on one of its further outputs"))
    }

    /// Whether the gradient of input `index` is wanted.
    pub fn wants(&self, index: usize) -> bool {
        self.node.input(index).is_some_and(|name| self.active.contains(name))
    }

    /// Gives the gradient of input `index`, of the input's shape.
    pub fn give(&mut self, index: usize, gradient: String) {
        self.input_grads[index] = Some(gradient);
    }

    /// Gives the gradient of input `index`, summed over what broadcasting repeated.
    pub fn give_unbroadcast(&mut self, index: usize, gradient: &str) -> Result<(), AutodiffError> {
        let target = self.x(index)?.to_owned();
        let summed = rules::unbroadcast(self.b, gradient, &target)?;
        self.give(index, summed);
        Ok(())
    }

    pub fn unsupported(&self, reason: impl Into<String>) -> AutodiffError {
        AutodiffError::Unsupported { node: self.node.label(), reason: reason.into() }
    }
}

/// Appends the gradient of the scalar `loss` with respect to each of `tensors`, and returns the values that
/// hold them.
///
/// # Errors
/// [`AutodiffError`] naming the node or tensor at which differentiation stopped.
pub fn differentiate(
    b: &mut Builder,
    loss: &str,
    tensors: &BTreeSet<String>,
) -> Result<BTreeMap<String, String>, AutodiffError> {
    let shape = &b.ty(loss)?.shape;
    if !shape.is_empty() {
        return Err(AutodiffError::NotScalar(loss.into(), format!("{shape:?}")));
    }
    let nodes = b.graph().nodes.clone();
    let (active, source) = depending_on(&nodes, tensors);
    let mut pending: HashMap<String, Vec<String>> = HashMap::new();
    let seed = b.scalar(1.0);
    pending.insert(loss.to_owned(), vec![seed]);
    for (index, node) in nodes.iter().enumerate().rev() {
        let reads_active = node.inputs.iter().any(|name| active.contains(name));
        if !reads_active || !node.outputs.iter().any(|name| pending.contains_key(name)) {
            continue;
        }
        let rule = rules::find(node).ok_or_else(|| AutodiffError::NoRule {
            node: node.label(),
            op: node.op.clone(),
            tensor: node.inputs.iter().find_map(|name| source.get(name)).cloned().unwrap_or_default(),
        })?;
        let mut output_grads = Vec::with_capacity(node.outputs.len());
        for name in &node.outputs {
            output_grads.push(pending.remove(name).map(|parts| total(b, parts)).transpose()?);
        }
        let input_grads = vec![None; node.inputs.len()];
        let mut cx = Cx { b, node, index, output_grads, active: &active, input_grads };
        rule(&mut cx)?;
        let given = cx.input_grads;
        for (name, gradient) in node.inputs.iter().zip(given) {
            match gradient {
                Some(gradient) if active.contains(name) => {
                    pending.entry(name.clone()).or_default().push(gradient);
                }
                _ => {}
            }
        }
    }
    let mut gradients = BTreeMap::new();
    for tensor in tensors {
        let parts = pending.remove(tensor).ok_or_else(|| AutodiffError::NoPath(tensor.clone()))?;
        gradients.insert(tensor.clone(), total(b, parts)?);
    }
    Ok(gradients)
}

/// Sum of the gradients that reach a value on several paths.
fn total(b: &mut Builder, parts: Vec<String>) -> Result<String, PassError> {
    match <[String; 1]>::try_from(parts) {
        Ok([one]) => Ok(one),
        Err(parts) => b.op("Sum", &parts.iter().map(String::as_str).collect::<Vec<_>>()),
    }
}

/// Values that depend on `tensors`, those included, and for each one tensor it depends on.
fn depending_on(nodes: &[Node], tensors: &BTreeSet<String>) -> (HashSet<String>, HashMap<String, String>) {
    let mut source: HashMap<String, String> =
        tensors.iter().map(|name| (name.clone(), name.clone())).collect();
    let stops = |node: &Node| node.domain == functions::DOMAIN && node.op == "StopGradient";
    for node in nodes.iter().filter(|node| !stops(node)) {
        if let Some(tensor) = node.inputs.iter().find_map(|name| source.get(name)).cloned() {
            for output in node.outputs.iter().filter(|name| !name.is_empty()) {
                source.insert(output.clone(), tensor.clone());
            }
        }
    }
    (source.keys().cloned().collect(), source)
}
