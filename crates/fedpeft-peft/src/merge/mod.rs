//! Multiplying what a method learnt into the weights that it tuned, so that inference costs what it cost
//! before: the other way round what [`crate::apply`] does for LoRA, DoRA and IA3.

mod constants;
mod layer;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use fedpeft_onnx::{Graph, Node, Tensor, surgery};
use fedpeft_passes::{DOMAIN, PassError};
use ndarray::{Array1, Array2};

use crate::surgery::{
    lowrank::{FACTOR_A, FACTOR_B, MAGNITUDE},
    scale::SCALE,
};
use layer::Found;

/// A linear layer whose weight has changed.
#[derive(Debug, Clone, PartialEq)]
pub struct MergedLayer {
    /// Name of the weight.
    pub weight: String,
    /// What was multiplied into it.
    pub change: Change,
}

/// What a method learnt of one linear layer `y = W x + b`, `W [out, in]`; of all parts of a packed layer together.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// LoRA: `W + scale B A`. DoRA: that with the norm of each row set to its magnitude.
    LowRank {
        /// `[rank, in]`
        a: Array2<f64>,
        /// `[out, rank]`
        b: Array2<f64>,
        /// `alpha / rank` of the method.
        scale: f64,
        /// DoRA's, `[out]`.
        magnitude: Option<Array1<f64>>,
    },
    /// IA3: `y` times this, `[out]`.
    Outputs(Array1<f64>),
    /// IA3: `x` times this, `[in]`.
    Inputs(Array1<f64>),
}

/// Makes the graph inputs named in `adapter` initializers with these values, and folds low-rank updates and
/// scales into the linear layers that they tune. What other methods train keeps its nodes. No operator of our
/// own remains.
///
/// # Errors
/// [`PassError`] where the graph is not one of ours.
pub fn merge(graph: &mut Graph, adapter: BTreeMap<String, Tensor>) -> Result<Vec<MergedLayer>, PassError> {
    let suffixes = [FACTOR_A, FACTOR_B, MAGNITUDE, SCALE];
    let is_learnt = |name: &&String| suffixes.iter().any(|suffix| name.ends_with(suffix));
    let learnt: BTreeSet<String> = adapter.keys().filter(is_learnt).cloned().collect();
    graph.inputs.retain(|input| !adapter.contains_key(&input.name));
    graph.initializers.extend(adapter);
    pass_gradient_stops(graph);
    surgery::prune(graph)?;

    let found = layer::find(graph, &learnt)?;
    let (layers, renames) = replace(graph, found);
    surgery::prune(graph)?;
    restore_names(graph, renames);
    Ok(layers)
}

/// `StopGradient` means something to differentiation alone.
fn pass_gradient_stops(graph: &mut Graph) {
    let stops = |node: &Node| node.domain == DOMAIN && node.op == "StopGradient";
    let (stopped, kept) = std::mem::take(&mut graph.nodes).into_iter().partition(stops);
    graph.nodes = kept;
    for Node { inputs, outputs, .. } in stopped {
        surgery::redirect(graph, &outputs[0], &inputs[0]);
    }
}

/// Puts merged layers where the frozen ones are. Returns the layers, and for each new tensor the name of the one
/// that it stands for.
fn replace(graph: &mut Graph, found: Vec<Found>) -> (Vec<MergedLayer>, Vec<(String, String)>) {
    let (mut layers, mut renames) = (Vec::new(), Vec::new());
    let mut gone = BTreeSet::new();
    let mut nodes: HashMap<usize, Node> = HashMap::new();
    for (number, found) in found.into_iter().enumerate() {
        let Found { at, last, mut node, original, weight, bias, change } = found;
        // Another layer may share the weight, and until unneeded nodes are dropped the norms of DoRA read it.
        let name = format!("merged.{number}.weight");
        node.inputs[1].clone_from(&name);
        graph.initializers.insert(name.clone(), weight);
        renames.push((name, original.clone()));
        if let Some(bias) = bias {
            let name = format!("merged.{number}.bias");
            renames.push((name.clone(), std::mem::replace(&mut node.inputs[2], name.clone())));
            graph.initializers.insert(name, bias);
        }
        gone.insert(last);
        nodes.insert(at, node);
        layers.push(MergedLayer { weight: original, change });
    }
    let old = std::mem::take(&mut graph.nodes).into_iter().enumerate();
    let place = |(index, node): (usize, Node)| match nodes.remove(&index) {
        Some(node) => Some(node),
        None => (!gone.contains(&index)).then_some(node),
    };
    graph.nodes = old.filter_map(place).collect();
    (layers, renames)
}

/// Names merged tensors after those that they stand for: the same, where nothing else reads these.
fn restore_names(graph: &mut Graph, renames: Vec<(String, String)>) {
    for (new, old) in renames {
        let beside =
            (1..).map(|i| if i == 1 { format!("{old}.merged") } else { format!("{old}.merged.{i}") });
        let mut names = std::iter::once(old.clone()).chain(beside);
        if let Some(name) = names.find(|name| !graph.initializers.contains_key(name))
            && let Some(tensor) = graph.initializers.remove(&new)
        {
            surgery::redirect(graph, &new, &name);
            graph.initializers.insert(name, tensor);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use fedpeft_interp::{Interpreter, Value};
    use fedpeft_onnx::{DType, Dim, Model, ValueInfo};
    use ndarray::{ArrayD, IxDyn};

    use super::*;

    fn matrix(rows: usize, columns: usize, first: f32) -> Tensor {
        let values: Vec<f32> = (0..rows * columns).map(|at| first + (at % 5) as f32 * 0.25).collect();
        Tensor::f32([rows, columns], &values)
    }

    /// A layer `[3] -> [4]` with a low-rank update whose weight a second layer shares.
    fn tuned() -> Graph {
        let update = Node::new("Gemm", &["inner", "q.lora_B.weight", "frozen"], &["h"]);
        let value = |name: &str, dims: &[usize]| ValueInfo::new(name, DType::F32, Dim::fixed(dims));
        Graph {
            nodes: vec![
                Node::new("Gemm", &["x", "q.weight", "q.bias"], &["frozen"]),
                Node::new("Gemm", &["x", "q.lora_A.weight"], &["inner"]).with("transB", 1i64),
                update.with("transB", 1i64).with("alpha", 2.0f32),
                Node::new("Gemm", &["h", "q.weight"], &["y"]).with("transB", 1i64),
            ],
            inputs: vec![
                value("x", &[2, 3]),
                value("q.lora_A.weight", &[2, 3]),
                value("q.lora_B.weight", &[4, 2]),
            ],
            outputs: vec![value("y", &[2, 3])],
            initializers: [
                ("q.weight".to_owned(), matrix(3, 4, -0.5)),
                ("q.bias".to_owned(), Tensor::f32([4], &[1.0, 2.0, 3.0, 4.0])),
            ]
            .into(),
            ..Graph::default()
        }
    }

    fn learnt() -> BTreeMap<String, Tensor> {
        [("q.lora_A.weight", matrix(2, 3, 0.5)), ("q.lora_B.weight", matrix(4, 2, -1.0))]
            .map(|(name, tensor)| (name.to_owned(), tensor))
            .into()
    }

    fn run(graph: Graph, adapter: BTreeMap<String, Tensor>) -> ArrayD<f64> {
        let x = ArrayD::from_shape_fn(IxDyn(&[2, 3]), |at| at[0] as f64 - at[1] as f64 * 0.5);
        let mut inputs = HashMap::from([("x".to_owned(), Value::Float(x))]);
        inputs.extend(adapter.into_iter().map(|(name, t)| (name, Value::from_tensor(&t).unwrap())));
        let outputs = Interpreter::new(&Model::new(graph)).unwrap().run(&inputs).unwrap();
        outputs["y"].as_float().unwrap().clone()
    }

    #[test]
    fn a_weight_that_another_layer_shares_keeps_its_values() {
        let mut graph = tuned();
        let layers = merge(&mut graph, learnt()).unwrap();
        assert_eq!(graph.nodes.len(), 2);
        assert_eq!(graph.initializers.keys().collect::<Vec<_>>(), ["q.bias", "q.weight", "q.weight.merged"]);
        assert_eq!(graph.initializers["q.weight"], matrix(3, 4, -0.5));
        assert_eq!(layers[0].weight, "q.weight");
        assert!((run(graph, BTreeMap::new()) - run(tuned(), learnt())).iter().all(|d| d.abs() < 1e-5));
    }

    #[test]
    fn what_has_another_form_keeps_its_nodes() {
        let mut graph = tuned();
        // The frozen value is read once more, so that it must be there.
        graph.nodes.push(Node::new("ReduceSum", &["frozen"], &["sum"]));
        graph.outputs.push(ValueInfo { name: "sum".into(), dtype: DType::F32, shape: None });
        let mut merged = graph.clone();
        assert!(merge(&mut merged, learnt()).unwrap().is_empty());
        assert_eq!(merged.nodes, graph.nodes);
    }

    #[test]
    fn factors_that_do_not_fit_are_left_alone() {
        let mut graph = tuned();
        let mut wrong = learnt();
        wrong.insert("q.lora_A.weight".into(), matrix(5, 3, 0.0));
        assert!(merge(&mut graph, wrong).unwrap().is_empty());
    }
}
