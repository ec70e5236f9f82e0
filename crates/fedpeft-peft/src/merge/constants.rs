//! Values that do not depend on a graph's inputs.

use std::collections::{BTreeSet, HashMap, HashSet};

use fedpeft_interp::{Value, eval_node};
use fedpeft_onnx::{Graph, Node};
use fedpeft_passes::PassError;
use ndarray::{Array1, Array2, ArrayD, Ix1, Ix2};

/// The constants of a graph, evaluated in f64 when they are asked for.
pub(super) struct Constants<'a> {
    graph: &'a Graph,
    producers: HashMap<&'a str, usize>,
    constant: HashSet<&'a str>,
    /// Those that depend on what a method learnt.
    learnt: HashSet<&'a str>,
}

impl<'a> Constants<'a> {
    pub fn new(graph: &'a Graph, learnt: &'a BTreeSet<String>) -> Self {
        let mut constant: HashSet<&str> = graph.initializers.keys().map(String::as_str).collect();
        let mut learnt: HashSet<&str> = learnt.iter().map(String::as_str).collect();
        constant.insert("");
        for Node { inputs, outputs, .. } in &graph.nodes {
            if inputs.iter().all(|input| constant.contains(input.as_str())) {
                constant.extend(outputs.iter().map(String::as_str));
                if inputs.iter().any(|input| learnt.contains(input.as_str())) {
                    learnt.extend(outputs.iter().map(String::as_str));
                }
            }
        }
        Self { producers: graph.producers(), graph, constant, learnt }
    }

    /// Whether `value` is constant.
    pub fn is_constant(&self, value: &str) -> bool {
        self.constant.contains(value)
    }

    /// Whether `value` is constant and depends on what a method learnt.
    pub fn is_learnt(&self, value: &str) -> bool {
        self.is_constant(value) && self.learnt.contains(value)
    }

    /// The node that computes `value`.
    pub fn producer(&self, value: &str) -> Option<&'a Node> {
        self.producers.get(value).map(|index| &self.graph.nodes[*index])
    }

    /// The initializer that `value` is, or is another shape of.
    pub fn origin(&self, mut value: &'a str) -> &'a str {
        while let Some(input) = self.producer(value).and_then(|node| node.input(0)) {
            value = input;
        }
        value
    }

    /// `value`, if it is a constant vector.
    pub fn vector(&self, value: &str) -> Result<Option<Array1<f64>>, PassError> {
        Ok(self.real(value)?.and_then(|array| array.into_dimensionality::<Ix1>().ok()))
    }

    /// `value`, if it is a constant matrix.
    pub fn matrix(&self, value: &str) -> Result<Option<Array2<f64>>, PassError> {
        Ok(self.real(value)?.and_then(|array| array.into_dimensionality::<Ix2>().ok()))
    }

    /// `value`, if it is constant and real.
    pub fn real(&self, value: &str) -> Result<Option<ArrayD<f64>>, PassError> {
        if !self.is_constant(value) || value.is_empty() {
            return Ok(None);
        }
        let mut values: HashMap<&str, Value> = HashMap::new();
        for index in self.needed(value) {
            let node = &self.graph.nodes[index];
            for name in node.inputs.iter().filter(|name| !name.is_empty()) {
                if let Some(tensor) =
                    self.graph.initializers.get(name).filter(|_| !values.contains_key(&name[..]))
                {
                    values.insert(name, Value::from_tensor(tensor)?);
                }
            }
            let inputs: Vec<_> = node.inputs.iter().map(|name| values.get(name.as_str())).collect();
            let outputs = eval_node(node, &inputs)?;
            values.extend(node.outputs.iter().map(String::as_str).zip(outputs));
        }
        let value = match values.remove(value) {
            Some(value) => value,
            None => match self.graph.initializers.get(value) {
                Some(tensor) => Value::from_tensor(tensor)?,
                None => return Ok(None),
            },
        };
        Ok(match value {
            Value::Float(array) => Some(array),
            Value::Int(_) | Value::Bool(_) => None,
        })
    }

    /// The nodes behind `value`, in order.
    fn needed(&self, value: &str) -> BTreeSet<usize> {
        let mut needed = BTreeSet::new();
        let mut stack: Vec<usize> = self.producers.get(value).copied().into_iter().collect();
        while let Some(index) = stack.pop() {
            if needed.insert(index) {
                let inputs = &self.graph.nodes[index].inputs;
                stack.extend(inputs.iter().filter_map(|name| self.producers.get(name.as_str())));
            }
        }
        needed
    }
}
