//! The training graphs and the evaluation graph.

use std::collections::BTreeSet;

use fedpeft_autodiff::{AutodiffError, clipped_gradients, differentiate, functions};
use fedpeft_onnx::{DType, Graph, Model, Node, surgery};
use fedpeft_passes::{Builder, DOMAIN, PassError, Prepared, Type, sink};
use fedpeft_peft::{HEAD_BIAS, HEAD_WEIGHT, Pooling, head};

use crate::{
    losses,
    manifest::{CLIP_NORM, CLIPPED, GRADIENT_SUFFIX, LOGITS, LOSS, TaskSpec},
};

/// The graphs, and the initial values of the adapter in the order of their names.
pub struct Graphs {
    pub training: Model,
    /// Sums of clipped gradients, where they were asked for.
    pub dp_training: Option<Model>,
    pub eval: Model,
    pub adapter: Vec<(String, fedpeft_onnx::Tensor)>,
}

/// Attaches head and loss to `backbone` and differentiates with respect to `trainable` and the head. `given` are tensors
/// that become inputs and are not trained. `mask` is the input that tells tokens from padding. With `dp_sgd` there is a
/// second training graph.
pub fn build(
    backbone: Prepared,
    (trainable, given): (&BTreeSet<String>, &BTreeSet<String>),
    task: &TaskSpec,
    pooling: Pooling,
    mask: Option<&str>,
    dp_sgd: bool,
) -> Result<Graphs, AutodiffError> {
    let mut graph = backbone.graph;
    let features = graph.outputs[0].name.clone();
    graph.outputs.clear();
    let mut b = Builder::new(graph, "fedpeft.")?;
    let logits = logits(&mut b, &features, task, pooling, mask)?;
    let mut b = Builder::new(sink(b.graph())?, "fedpeft.")?;
    let headed = dp_sgd.then(|| b.graph().clone());
    losses::attach(&mut b, &logits, task)?;
    let mut names = trainable.clone();
    names.extend([HEAD_WEIGHT.to_owned(), HEAD_BIAS.to_owned()]);
    names.retain(|name| b.graph().initializers.contains_key(name));

    let mut eval = Builder::new(without_dropout(b.graph().clone()), "eval.")?;
    eval.output(&logits, LOGITS)?;
    let gradients = differentiate(&mut b, LOSS, &names)?;
    for (name, gradient) in gradients {
        b.output(&gradient, &format!("{name}{GRADIENT_SUFFIX}"))?;
    }
    let (training, adapter) = finish(b.finish(), (&names, given))?;
    let (eval, _) = finish(eval.finish(), (&names, given))?;
    let dp_training = headed.map(|graph| clipping(graph, &logits, task, (&names, given))).transpose()?;
    Ok(Graphs { training, dp_training, eval, adapter })
}

/// The training graph of DP-SGD: in place of the gradient of the mean loss, the sum of every example's gradient of its
/// own loss, clipped to the input [`CLIP_NORM`].
fn clipping(
    graph: Graph,
    logits: &str,
    task: &TaskSpec,
    (names, given): (&BTreeSet<String>, &BTreeSet<String>),
) -> Result<Model, AutodiffError> {
    let mut b = Builder::new(graph, "fedpeft.dp.")?;
    let losses = losses::attach_each(&mut b, logits, task)?;
    b.input(CLIP_NORM, Type::new(DType::F32, Vec::new()));
    let (mut b, clipped) = clipped_gradients(&b.finish(), &losses, CLIP_NORM, names)?;
    let mean = b.add(Node::new("ReduceMean", &[&losses], &[]).with("keepdims", 0i64))?;
    b.output(&mean, LOSS)?;
    b.output(&clipped.count, CLIPPED)?;
    for (name, sum) in &clipped.sums {
        b.output(sum, &format!("{name}{GRADIENT_SUFFIX}"))?;
    }
    Ok(finish(b.finish(), (names, given))?.0)
}

/// Logits of every decision. A language model that ends in its own head needs no other.
fn logits(
    b: &mut Builder,
    features: &str,
    task: &TaskSpec,
    pooling: Pooling,
    mask: Option<&str>,
) -> Result<String, PassError> {
    let width = task.width() as usize;
    match task {
        TaskSpec::CausalLm { .. } if b.ty(features)?.rank() != 3 => Err(PassError::Input(format!(
            "the output {features:?} has shape {:?}: causal-lm needs one vector for each token [N, T, C]",
            b.ty(features)?.shape
        ))),
        TaskSpec::CausalLm { .. } if b.ty(features)?.last() == Some(width as i64) => Ok(features.to_owned()),
        TaskSpec::CausalLm { .. } => head::attach(b, features, width),
        _ => {
            let pooled = head::pool(b, features, pooling, mask)?;
            head::attach(b, &pooled, width)
        }
    }
}

/// Evaluation drops nothing.
fn without_dropout(mut graph: Graph) -> Graph {
    let drops = |node: &Node| node.domain == DOMAIN && node.op == "Dropout";
    let (dropped, kept) = std::mem::take(&mut graph.nodes).into_iter().partition(drops);
    graph.nodes = kept;
    for Node { inputs, outputs, .. } in dropped {
        surgery::redirect(&mut graph, &outputs[0], &inputs[0]);
    }
    graph
}

/// Turns the initializers of the adapter, and of what is given beside it, into inputs, and drops what nothing needs.
fn finish(
    mut graph: Graph,
    (names, given): (&BTreeSet<String>, &BTreeSet<String>),
) -> Result<(Model, Vec<(String, fedpeft_onnx::Tensor)>), PassError> {
    surgery::prune(&mut graph)?;
    let mut adapter = Vec::new();
    for name in names.iter().chain(given) {
        if let Some(tensor) = graph.initializers.remove(name) {
            let dims = fedpeft_onnx::Dim::fixed(&tensor.shape);
            graph.inputs.push(fedpeft_onnx::ValueInfo::new(name.clone(), tensor.dtype, dims));
            if names.contains(name) {
                adapter.push((name.clone(), tensor));
            }
        }
    }
    let mut model = Model::new(graph);
    functions::attach(&mut model);
    Ok((model, adapter))
}
