//! Whole graphs.

use std::collections::{BTreeSet, HashMap};

use fedpeft_onnx::{Function, Model, Node, opset};

use crate::{
    Value,
    error::{InterpError, Result, invalid, unsupported},
    ops::eval_node,
};

/// Functions may call functions, but not endlessly.
const MAX_DEPTH: usize = 16;
/// Functions that call others twice each unfold into more nodes than any model has.
const MAX_NODES: usize = 1 << 20;

/// Evaluates `model` once; returns its outputs by name.
///
/// # Errors
/// [`InterpError`] naming the node or value at fault.
pub fn eval_graph(
    model: &Model,
    inputs: &HashMap<String, Value>,
) -> std::result::Result<HashMap<String, Value>, InterpError> {
    Interpreter::new(model)?.run(inputs)
}

/// Evaluates one model often: its constants are widened once.
#[derive(Debug)]
pub struct Interpreter<'a> {
    model: &'a Model,
    functions: HashMap<(&'a str, &'a str), &'a Function>,
    constants: HashMap<&'a str, Value>,
}

impl<'a> Interpreter<'a> {
    /// Widens the constants of `model`.
    ///
    /// # Errors
    /// [`InterpError`] where a constant is not inline, or the operator set is not understood.
    pub fn new(model: &'a Model) -> std::result::Result<Self, InterpError> {
        if !(opset::OLDEST..=fedpeft_onnx::OPSET).contains(&model.opset) {
            unsupported!("operator set {} cannot be evaluated: lift the model first", model.opset);
        }
        let mut constants = HashMap::new();
        for (name, tensor) in &model.graph.initializers {
            let value =
                Value::from_tensor(tensor).map_err(|fault| fault.at(format!("initializer {name:?}")))?;
            constants.insert(name.as_str(), value);
        }
        let key = |function: &'a Function| (function.domain.as_str(), function.name.as_str());
        let functions = model.functions.iter().map(|function| (key(function), function)).collect();
        Ok(Self { model, functions, constants })
    }

    /// The model's outputs by name, for `inputs` by name. Inputs may also replace initializers.
    ///
    /// # Errors
    /// [`InterpError`] naming the node or value at fault.
    pub fn run(
        &self,
        inputs: &HashMap<String, Value>,
    ) -> std::result::Result<HashMap<String, Value>, InterpError> {
        let outputs: Vec<&str> = self.model.graph.outputs.iter().map(|output| output.name.as_str()).collect();
        let values = self.values(inputs, &outputs)?;
        Ok(outputs.into_iter().map(str::to_owned).zip(values).collect())
    }

    /// The values named `wanted`, in that order; only nodes that they need are evaluated. Inputs may also
    /// replace initializers and results of nodes.
    ///
    /// # Errors
    /// [`InterpError`] naming the node or value at fault.
    pub fn values(
        &self,
        inputs: &HashMap<String, Value>,
        wanted: &[&str],
    ) -> std::result::Result<Vec<Value>, InterpError> {
        let mut scope: HashMap<&str, &Value> =
            self.constants.iter().map(|(name, value)| (*name, value)).collect();
        scope.extend(inputs.iter().map(|(name, value)| (name.as_str(), value)));
        let mut budget = MAX_NODES;
        self.evaluate(&self.model.graph.nodes, &scope, wanted, 0, &mut budget)
    }

    /// Evaluates the nodes that `wanted` needs, of a graph or of a function's body.
    fn evaluate(
        &self,
        nodes: &[Node],
        given: &HashMap<&str, &Value>,
        wanted: &[&str],
        depth: usize,
        budget: &mut usize,
    ) -> Result<Vec<Value>> {
        let mut computed: HashMap<&str, Value> = HashMap::new();
        for node in needed(nodes, given, wanted) {
            match budget.checked_sub(1) {
                Some(rest) => *budget = rest,
                None => unsupported!("the model's functions unfold into more than {MAX_NODES} nodes"),
            }
            let inputs = node.inputs.iter().map(|name| match name.as_str() {
                "" => Ok(None),
                name => find(given, &computed, name).map(Some),
            });
            let outputs = inputs
                .collect::<Result<Vec<_>>>()
                .and_then(|inputs| self.apply(node, &inputs, depth, budget))
                .map_err(|fault| fault.at(node.label()))?;
            let names = node.outputs.iter().map(String::as_str).zip(outputs);
            computed.extend(names.filter(|(name, _)| !name.is_empty() && !given.contains_key(name)));
        }
        wanted.iter().map(|name| find(given, &computed, name).cloned()).collect()
    }

    /// The outputs of one node: of its function, or of its operator.
    fn apply(
        &self,
        node: &Node,
        inputs: &[Option<&Value>],
        depth: usize,
        budget: &mut usize,
    ) -> Result<Vec<Value>> {
        let Some(function) = self.functions.get(&(node.domain.as_str(), node.op.as_str())) else {
            return eval_node(node, inputs).map_err(|error| match error {
                InterpError::Node { fault, .. } => *fault,
                other => other,
            });
        };
        if depth == MAX_DEPTH {
            unsupported!("functions call each other more than {MAX_DEPTH} deep");
        }
        if inputs.len() > function.inputs.len() || node.outputs.len() > function.outputs.len() {
            invalid!(
                "the function takes {} inputs to {} outputs",
                function.inputs.len(),
                function.outputs.len()
            );
        }
        let formals = function.inputs.iter().map(String::as_str).zip(inputs);
        let given = formals.filter_map(|(name, value)| Some((name, (*value)?))).collect();
        let wanted: Vec<&str> = function.outputs[..node.outputs.len()].iter().map(String::as_str).collect();
        self.evaluate(&function.nodes, &given, &wanted, depth + 1, budget)
    }
}

fn find<'v>(
    given: &HashMap<&str, &'v Value>,
    computed: &'v HashMap<&str, Value>,
    name: &str,
) -> Result<&'v Value> {
    match given.get(name).copied().or_else(|| computed.get(name)) {
        Some(value) => Ok(value),
        None => invalid!("the value {name:?} is not given, and no earlier node computes it"),
    }
}

/// The nodes that `wanted` depends on, in their order.
fn needed<'n>(nodes: &'n [Node], given: &HashMap<&str, &Value>, wanted: &[&str]) -> Vec<&'n Node> {
    let mut open: BTreeSet<&str> = wanted.iter().copied().filter(|name| !given.contains_key(name)).collect();
    let mut needed = Vec::new();
    for node in nodes.iter().rev() {
        if node.outputs.iter().any(|name| open.contains(name.as_str())) {
            let inputs = node.inputs.iter().map(String::as_str);
            open.extend(inputs.filter(|name| !name.is_empty() && !given.contains_key(name)));
            needed.push(node);
        }
    }
    needed.reverse();
    needed
}
