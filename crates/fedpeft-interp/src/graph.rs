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

#[cfg(test)]
mod tests {
    use super::*;
    use fedpeft_onnx::{DType, Data, Dim, Graph, Tensor, ValueInfo};
    use ndarray::{ArrayD, IxDyn};

    fn model(nodes: Vec<Node>, functions: Vec<Function>) -> Model {
        let mut graph = Graph { nodes, ..Graph::default() };
        graph.inputs.push(ValueInfo::new("x", DType::F32, Dim::fixed(&[2])));
        graph.outputs.push(ValueInfo::new("y", DType::F32, Dim::fixed(&[2])));
        graph.initializers.insert("w".into(), Tensor::f32([], &[3.0]));
        Model { functions, ..Model::new(graph) }
    }

    fn function(name: &str, nodes: Vec<Node>) -> Function {
        let own = |name: &str| vec![name.to_owned()];
        Function {
            domain: "local".into(),
            name: name.into(),
            inputs: own("a"),
            outputs: own("b"),
            nodes,
            opset: 20,
        }
    }

    fn call(name: &str, input: &str, output: &str) -> Node {
        Node { domain: "local".into(), ..Node::new(name, &[input], &[output]) }
    }

    fn value(numbers: &[f64]) -> Value {
        Value::Float(ArrayD::from_shape_vec(IxDyn(&[numbers.len()]), numbers.to_vec()).unwrap())
    }

    fn given(name: &str, numbers: &[f64]) -> HashMap<String, Value> {
        HashMap::from([(name.to_owned(), value(numbers))])
    }

    #[test]
    fn functions_are_called() {
        let body = vec![Node::new("Neg", &["a"], &["c"]), Node::new("Exp", &["c"], &["b"])];
        let nodes = vec![Node::new("Mul", &["x", "w"], &["c"]), call("ExpNeg", "c", "y")];
        let model = model(nodes, vec![function("ExpNeg", body)]);
        let outputs = eval_graph(&model, &given("x", &[0.0, 1.0])).unwrap();
        assert_eq!(outputs["y"], value(&[1.0, (-3.0f64).exp()]));
    }

    #[test]
    fn anything_can_be_replaced_and_asked_for() {
        let nodes = vec![Node::new("Mul", &["x", "w"], &["c"]), Node::new("Neg", &["c"], &["y"])];
        let model = model(nodes, vec![]);
        let interpreter = Interpreter::new(&model).unwrap();
        let mut inputs = given("x", &[1.0, 2.0]);
        assert_eq!(
            interpreter.values(&inputs, &["c", "y"]).unwrap(),
            [value(&[3.0, 6.0]), value(&[-3.0, -6.0])]
        );
        inputs.extend(given("w", &[5.0]));
        assert_eq!(interpreter.run(&inputs).unwrap()["y"], value(&[-5.0, -10.0]));
        assert_eq!(interpreter.run(&given("c", &[4.0])).unwrap()["y"], value(&[-4.0]));
    }

    #[test]
    fn what_is_missing_is_named() {
        let model = model(vec![Node::new("Neg", &["x"], &["y"]).named("negate")], vec![]);
        let error = eval_graph(&model, &HashMap::new()).unwrap_err().to_string();
        assert_eq!(error, "Neg \"negate\": the value \"x\" is not given, and no earlier node computes it");
        let mut external = model;
        let data = Data::External { location: "w.bin".into(), offset: 0 };
        external.graph.initializers.get_mut("w").unwrap().data = data;
        assert!(Interpreter::new(&external).unwrap_err().to_string().starts_with("initializer \"w\": "));
    }

    #[test]
    fn endless_functions_end() {
        let recursive = model(vec![call("F", "x", "y")], vec![function("F", vec![call("F", "a", "b")])]);
        assert!(eval_graph(&recursive, &given("x", &[1.0, 1.0])).unwrap_err().is_unsupported());
        let doubling = |i: usize| {
            let next = format!("F{}", i + 1);
            let body = (0..8).map(|step| {
                let names: Vec<String> = (0..=8).map(|n| format!("v{n}")).collect();
                let input = if step == 0 { "a" } else { &names[step] };
                call(&next, input, if step == 7 { "b" } else { &names[step + 1] })
            });
            function(&format!("F{i}"), body.collect())
        };
        let mut functions: Vec<Function> = (0..12).map(doubling).collect();
        functions.push(function("F12", vec![Node::new("Neg", &["a"], &["b"])]));
        let bomb = model(vec![call("F0", "x", "y")], functions);
        assert!(eval_graph(&bomb, &given("x", &[1.0, 1.0])).unwrap_err().is_unsupported());
    }
}
