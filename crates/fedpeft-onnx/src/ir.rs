//! The graph: nodes that read and write named values.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use crate::{DType, IR_VERSION, OPSET, Tensor};

/// A model: one graph, and functions its nodes may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Version of the file format.
    pub ir_version: i64,
    /// Version of the standard operators (domain `""`).
    pub opset: i64,
    /// Versions of other domains.
    pub domains: BTreeMap<String, i64>,
    /// The graph.
    pub graph: Graph,
    /// Model-local functions, bodies of operators in other domains.
    pub functions: Vec<Function>,
    /// What else there is to say about the model, by name.
    pub metadata: BTreeMap<String, String>,
}

impl Model {
    /// Wraps a graph of standard operators of [`OPSET`].
    pub fn new(graph: Graph) -> Self {
        Self {
            ir_version: IR_VERSION,
            opset: OPSET,
            domains: BTreeMap::new(),
            graph,
            functions: Vec::new(),
            metadata: BTreeMap::new(),
        }
    }
}

/// Nodes, and the values they begin and end with.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Graph {
    /// Name, for people.
    pub name: String,
    /// Nodes, in an order in which each reads only what came before.
    pub nodes: Vec<Node>,
    /// Values the caller gives.
    pub inputs: Vec<ValueInfo>,
    /// Values the caller gets.
    pub outputs: Vec<ValueInfo>,
    /// Constants.
    pub initializers: BTreeMap<String, Tensor>,
}

/// One application of an operator.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Node {
    /// Name, for people; may be empty.
    pub name: String,
    /// Operator.
    pub op: String,
    /// Domain of the operator; empty for standard ones.
    pub domain: String,
    /// Values read; empty where an optional input is absent.
    pub inputs: Vec<String>,
    /// Values written; empty where an optional output is not wanted.
    pub outputs: Vec<String>,
    /// Attributes.
    pub attributes: BTreeMap<String, Attribute>,
}

/// Value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum Attribute {
    /// One real number.
    Float(f32),
    /// One integer.
    Int(i64),
    /// Text.
    String(Bytes),
    /// A tensor.
    Tensor(Tensor),
    /// Real numbers.
    Floats(Vec<f32>),
    /// Integers.
    Ints(Vec<i64>),
    /// Texts.
    Strings(Vec<Bytes>),
}

/// A named value with its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValueInfo {
    /// Name.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Shape; none if the model does not say.
    pub shape: Option<Vec<Dim>>,
}

/// One dimension of a declared shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// A size.
    Fixed(usize),
    /// A name for a size that is known when the model runs.
    Symbol(String),
}

/// An operator defined by a graph of other operators.
#[derive(Debug, Clone, PartialEq)]
pub struct Function {
    /// Domain.
    pub domain: String,
    /// Operator.
    pub name: String,
    /// Formal inputs.
    pub inputs: Vec<String>,
    /// Formal outputs.
    pub outputs: Vec<String>,
    /// Body, in standard operators of `opset`.
    pub nodes: Vec<Node>,
    /// Version of the standard operators in the body.
    pub opset: i64,
}

impl Node {
    /// A node of a standard operator.
    pub fn new(op: &str, inputs: &[&str], outputs: &[&str]) -> Self {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Self { op: op.to_owned(), inputs: own(inputs), outputs: own(outputs), ..Self::default() }
    }

    /// The same node with an attribute.
    pub fn with(mut self, name: &str, value: impl Into<Attribute>) -> Self {
        self.attributes.insert(name.to_owned(), value.into());
        self
    }

    /// The same node with a name.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Whether this is standard operator `op`.
    pub fn is(&self, op: &str) -> bool {
        self.domain.is_empty() && self.op == op
    }

    /// Input `index`, if present.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Output `index`, if wanted.
    pub fn output(&self, index: usize) -> Option<&str> {
        self.outputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// An integer attribute.
    pub fn int(&self, name: &str) -> Option<i64> {
        match self.attributes.get(name) {
            Some(Attribute::Int(value)) => Some(*value),
            _ => None,
        }
    }

    /// An attribute of integers.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        match self.attributes.get(name) {
            Some(Attribute::Ints(values)) => Some(values),
            _ => None,
        }
    }

    /// A real attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        match self.attributes.get(name) {
            Some(Attribute::Float(value)) => Some(*value),
            _ => None,
        }
    }

    /// A text attribute.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.attributes.get(name) {
            Some(Attribute::String(bytes)) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// What to call this node in a message: operator and name, or its first output.
    pub fn label(&self) -> String {
        let name =
            if self.name.is_empty() { self.outputs.first().map_or("?", String::as_str) } else { &self.name };
        format!("{} {name:?}", self.op)
    }
}

impl Graph {
    /// The node that produces each value, by index.
    pub fn producers(&self) -> HashMap<&str, usize> {
        let nodes = self.nodes.iter().enumerate();
        nodes.flat_map(|(i, node)| node.outputs.iter().map(move |name| (name.as_str(), i))).collect()
    }

    /// The nodes that read each value, by index, once per reading input.
    pub fn consumers(&self) -> HashMap<&str, Vec<usize>> {
        let mut consumers: HashMap<&str, Vec<usize>> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for name in node.inputs.iter().filter(|name| !name.is_empty()) {
                consumers.entry(name).or_default().push(i);
            }
        }
        consumers
    }

    /// The graph input named `name`.
    pub fn input(&self, name: &str) -> Option<&ValueInfo> {
        self.inputs.iter().find(|input| input.name == name)
    }
}

impl ValueInfo {
    /// A value with a known shape.
    pub fn new(name: impl Into<String>, dtype: DType, shape: Vec<Dim>) -> Self {
        Self { name: name.into(), dtype, shape: Some(shape) }
    }
}

impl Dim {
    /// Fixed dimensions.
    pub fn fixed(sizes: &[usize]) -> Vec<Self> {
        sizes.iter().map(|size| Self::Fixed(*size)).collect()
    }
}

impl From<i64> for Attribute {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}
impl From<f32> for Attribute {
    fn from(value: f32) -> Self {
        Self::Float(value)
    }
}
impl From<&str> for Attribute {
    fn from(value: &str) -> Self {
        Self::String(Bytes::copy_from_slice(value.as_bytes()))
    }
}
impl From<Vec<i64>> for Attribute {
    fn from(value: Vec<i64>) -> Self {
        Self::Ints(value)
    }
}
impl From<Tensor> for Attribute {
    fn from(value: Tensor) -> Self {
        Self::Tensor(value)
    }
}
