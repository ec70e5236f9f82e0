//! The training graph and the evaluation graph.

use std::collections::BTreeSet;

use fedpeft_autodiff::{AutodiffError, differentiate, functions};
use fedpeft_onnx::{DType, Graph, Model, Node, surgery};
use fedpeft_passes::{Builder, Extent, PassError, Prepared, Type};
use fedpeft_peft::{HEAD_BIAS, HEAD_WEIGHT, Pooling, head};

use crate::manifest::{CORRECT, GRADIENT_SUFFIX, LABELS, LOGITS, LOSS};

/// Both graphs, and the initial values of the adapter in the order of their names.
pub struct Graphs {
    pub training: Model,
    pub eval: Model,
    pub adapter: Vec<(String, fedpeft_onnx::Tensor)>,
}

/// Attaches head and loss to `backbone` and differentiates with respect to `trainable` and the head.
pub fn build(
    backbone: Prepared,
    trainable: &BTreeSet<String>,
    classes: usize,
    pooling: Pooling,
) -> Result<Graphs, AutodiffError> {
    let mut graph = backbone.graph;
    let features = graph.outputs[0].name.clone();
    graph.outputs.clear();
    let mut b = Builder::new(graph, "fedpeft.")?;
    b.input(LABELS, Type::new(DType::I64, vec![Extent::N]));
    let logits = head::attach(&mut b, &features, classes, pooling)?;
    b.push(Node::new("SoftmaxCrossEntropyLoss", &[&logits, LABELS], &[LOSS]).with("reduction", "mean"))?;
    b.output(LOSS, LOSS)?;
    count_correct(&mut b, &logits)?;
    let mut names = trainable.clone();
    names.extend([HEAD_WEIGHT.to_owned(), HEAD_BIAS.to_owned()]);

    let mut eval = Builder::new(b.graph().clone(), "eval.")?;
    eval.output(&logits, LOGITS)?;
    let gradients = differentiate(&mut b, LOSS, &names)?;
    for (name, gradient) in gradients {
        b.output(&gradient, &format!("{name}{GRADIENT_SUFFIX}"))?;
    }
    let (training, adapter) = finish(b.finish(), &names)?;
    let (eval, _) = finish(eval.finish(), &names)?;
    Ok(Graphs { training, eval, adapter })
}

fn count_correct(b: &mut Builder, logits: &str) -> Result<(), PassError> {
    let predicted = b.add(Node::new("ArgMax", &[logits], &[]).with("axis", -1i64).with("keepdims", 0i64))?;
    let right = b.op("Equal", &[&predicted, LABELS])?;
    let right = b.add(Node::new("Cast", &[&right], &[]).with("to", i64::from(DType::I64.code())))?;
    let axis = b.ints(&[0]);
    let sum = b.add(Node::new("ReduceSum", &[&right, &axis], &[]).with("keepdims", 0i64))?;
    b.output(&sum, CORRECT)
}

/// Turns the adapter's initializers into inputs, and drops what nothing needs.
fn finish(
    mut graph: Graph,
    names: &BTreeSet<String>,
) -> Result<(Model, Vec<(String, fedpeft_onnx::Tensor)>), PassError> {
    surgery::prune(&mut graph)?;
    let mut adapter = Vec::new();
    for name in names {
        if let Some(tensor) = graph.initializers.remove(name) {
            let dims = fedpeft_onnx::Dim::fixed(&tensor.shape);
            graph.inputs.push(fedpeft_onnx::ValueInfo::new(name.clone(), tensor.dtype, dims));
            adapter.push((name.clone(), tensor));
        }
    }
    let mut model = Model::new(graph);
    functions::attach(&mut model);
    Ok((model, adapter))
}
