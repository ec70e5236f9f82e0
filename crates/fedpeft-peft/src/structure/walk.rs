//! Walking a graph along the operators that lie between the parts of a transformer.

use std::collections::{BTreeSet, HashMap, HashSet};

use fedpeft_onnx::{Graph, Node};

use super::Linear;

/// Operators that move values without computing. All but `Concat` take their data from the first input.
const LAYOUT: [&str; 14] = [
    "Reshape",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Identity",
    "Cast",
    "Split",
    "Slice",
    "Gather",
    "Dropout",
    "Expand",
    "Concat",
    "Tile",
];

/// Operators that stand between a projection and the product of attention: scaling, rotary positions,
/// normalised queries; and between the two layers of an MLP.
const ELEMENTWISE: [&str; 20] = [
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Neg",
    "Pow",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Tanh",
    "Sigmoid",
    "Erf",
    "Gelu",
    "Relu",
    "Where",
    "Max",
    "Min",
    "Softplus",
    "Abs",
    "Clip",
];

/// Normalisations, whole and in pieces.
const NORM: [&str; 2] = ["LayerNormalization", "ReduceMean"];

/// Whether `node` moves values without computing.
pub(super) fn is_layout(node: &Node) -> bool {
    node.domain.is_empty() && LAYOUT.contains(&node.op.as_str())
}

/// Whether `node` computes value by value.
pub(super) fn is_elementwise(node: &Node) -> bool {
    node.domain.is_empty() && ELEMENTWISE.contains(&node.op.as_str())
}

/// Whether `node` is a piece of a normalisation that no residual addition can be taken for.
pub(super) fn is_norm(node: &Node) -> bool {
    node.domain.is_empty() && NORM.contains(&node.op.as_str())
}

/// A graph with its edges in both directions.
pub(super) struct Walk<'a> {
    pub graph: &'a Graph,
    pub producers: HashMap<&'a str, usize>,
    pub consumers: HashMap<&'a str, Vec<usize>>,
    /// The linear layer that a node is.
    pub linears: HashMap<usize, usize>,
}

impl<'a> Walk<'a> {
    pub fn new(graph: &'a Graph, linears: &[Linear]) -> Self {
        Self {
            graph,
            producers: graph.producers(),
            consumers: graph.consumers(),
            linears: linears.iter().enumerate().map(|(i, linear)| (linear.node, i)).collect(),
        }
    }

    /// The node that computes `value`.
    pub fn producer(&self, value: &str) -> Option<(usize, &'a Node)> {
        let index = *self.producers.get(value)?;
        Some((index, &self.graph.nodes[index]))
    }

    /// Readers of `value`.
    pub fn readers(&self, value: &str) -> impl Iterator<Item = (usize, &'a Node)> {
        let readers = self.consumers.get(value).map_or(&[][..], Vec::as_slice);
        readers.iter().map(|index| (*index, &self.graph.nodes[*index]))
    }

    pub fn is_constant(&self, value: &str) -> bool {
        self.graph.initializers.contains_key(value)
    }

    /// Inputs of `node` through which its data comes.
    pub fn data_inputs(&self, node: &'a Node) -> impl Iterator<Item = &'a str> {
        let take = if is_layout(node) && !node.is("Concat") { 1 } else { node.inputs.len() };
        node.inputs.iter().take(take).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Linear layers from which `value` comes by moving, scaling and normalising; none where something else
    /// lies in between.
    pub fn sources(&self, value: &'a str) -> Option<BTreeSet<usize>> {
        let (mut found, mut seen, mut stack) = (BTreeSet::new(), HashSet::new(), vec![value]);
        while let Some(value) = stack.pop() {
            if !seen.insert(value) {
                continue;
            }
            let Some((index, node)) = self.producer(value) else { continue };
            if let Some(linear) = self.linears.get(&index) {
                found.insert(*linear);
            } else if is_layout(node) || is_elementwise(node) || is_norm(node) {
                stack.extend(self.data_inputs(node));
            } else if self.depends_on_input(value) {
                return None;
            }
        }
        Some(found)
    }

    /// Whether `value` depends on a real-valued linear layer: masks and positions do not.
    fn depends_on_input(&self, value: &'a str) -> bool {
        let (mut seen, mut stack) = (HashSet::new(), vec![value]);
        while let Some(value) = stack.pop() {
            if let Some((index, node)) = self.producer(value).filter(|_| seen.insert(value)) {
                if self.linears.contains_key(&index) {
                    return true;
                }
                stack.extend(node.inputs.iter().map(String::as_str));
            }
        }
        false
    }

    /// The nearest nodes that `stop` accepts, forward from `value` along nodes that `pass` accepts.
    pub fn forward(
        &self,
        value: &'a str,
        pass: impl Fn(&'a Node) -> bool,
        stop: impl Fn(usize, &'a Node) -> bool,
    ) -> BTreeSet<usize> {
        let (mut found, mut seen, mut stack) = (BTreeSet::new(), HashSet::new(), vec![value]);
        while let Some(value) = stack.pop() {
            for (index, node) in
                self.readers(value).filter(|(index, _)| seen.insert(*index)).collect::<Vec<_>>()
            {
                if stop(index, node) {
                    found.insert(index);
                } else if pass(node) {
                    stack.extend(node.outputs.iter().map(String::as_str));
                }
            }
        }
        found
    }

    /// Whether `node` adds two computed values of one rank: a residual connection has this form.
    pub fn adds_two_values(&self, node: &Node) -> bool {
        node.is("Add") && node.inputs.iter().all(|input| !self.is_constant(input))
    }
}
