//! Operators of the domain `fedpeft` as model-local functions: gradients that a runtime may fuse.
//!
//! | operator | inputs | output |
//! | --- | --- | --- |
//! | `GeluGrad` | dY, X | dX, derivative of the exact GELU |
//! | `LayerNormGrad` | dY, X, scale, mean, inv_std_dev | dX, over the last axis |
//! | `SoftmaxGrad` | dY, Y | dX, over the last axis |
//! | `ReduceRows` | X | sum over all axes but the last |
//! | `StopGradient` | X | X, a constant to differentiation |
//! | `Dropout` | X, seed, layer, rate | X / (1 - rate) where a hash of place, seed and layer keeps it, 0 elsewhere |
//!
//! `Dropout` is linear in X and has no state, so that it is its own gradient and its mask is nowhere stored.

use std::collections::BTreeSet;

use fedpeft_onnx::{Function, Model, Node, OPSET, Tensor};

pub use fedpeft_passes::DOMAIN;

/// Version of [`DOMAIN`].
pub const VERSION: i64 = 1;

/// A node of our domain.
pub(crate) fn node(op: &str, inputs: &[&str]) -> Node {
    Node { domain: DOMAIN.into(), ..Node::new(op, inputs, &[]) }
}

/// Adds to `model` the functions that its nodes use.
pub fn attach(model: &mut Model) {
    let nodes = model.graph.nodes.iter().filter(|node| node.domain == DOMAIN);
    let used: BTreeSet<&str> = nodes.map(|node| node.op.as_str()).collect();
    model.functions.extend(all().into_iter().filter(|f| used.contains(f.name.as_str())));
    if !used.is_empty() {
        model.domains.insert(DOMAIN.into(), VERSION);
    }
}

/// Every function of the domain.
pub fn all() -> Vec<Function> {
    vec![gelu_grad(), layer_norm_grad(), softmax_grad(), reduce_rows(), stop_gradient(), dropout()]
}

/// Function bodies, one line a node.
struct Body {
    nodes: Vec<Node>,
}

impl Body {
    fn new() -> Self {
        Self { nodes: Vec::new() }
    }

    fn constant(mut self, name: &str, tensor: Tensor) -> Self {
        self.nodes.push(Node::new("Constant", &[], &[name]).with("value", tensor));
        self
    }

    fn op(self, output: &str, op: &str, inputs: &[&str]) -> Self {
        self.node(Node::new(op, inputs, &[output]))
    }

    fn node(mut self, node: Node) -> Self {
        self.nodes.push(node);
        self
    }

    fn function(self, name: &str, inputs: &[&str], output: &str) -> Function {
        Function {
            domain: DOMAIN.into(),
            name: name.into(),
            inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
            outputs: vec![output.into()],
            nodes: self.nodes,
            opset: OPSET,
        }
    }
}

/// `dX = dY (Phi(x) + x phi(x))`, with the normal distribution's `Phi` and density `phi`.
fn gelu_grad() -> Function {
    Body::new()
        .constant("root_half", Tensor::scalar(std::f32::consts::FRAC_1_SQRT_2))
        .constant("one", Tensor::scalar(1.0))
        .constant("half", Tensor::scalar(0.5))
        .constant("density", Tensor::scalar(0.398_942_3)) // 1 / sqrt(2 pi)
        .op("t", "Mul", &["X", "root_half"])
        .op("erf", "Erf", &["t"])
        .op("erf1", "Add", &["erf", "one"])
        .op("cdf", "Mul", &["erf1", "half"])
        .op("t2", "Mul", &["t", "t"])
        .op("negative", "Neg", &["t2"])
        .op("exp", "Exp", &["negative"])
        .op("xexp", "Mul", &["X", "exp"])
        .op("xpdf", "Mul", &["xexp", "density"])
        .op("slope", "Add", &["cdf", "xpdf"])
        .op("dX", "Mul", &["dY", "slope"])
        .function("GeluGrad", &["dY", "X"], "dX")
}

/// With `g = dY scale` and `h = (X - mean) inv`: `dX = inv (g - mean(g) - h mean(g h))`.
/// (Ba et al., Layer Normalization, arXiv 1607.06450.)
fn layer_norm_grad() -> Function {
    Body::new()
        .constant("last", Tensor::i64([1], &[-1]))
        .op("g", "Mul", &["dY", "scale"])
        .op("centred", "Sub", &["X", "mean"])
        .op("h", "Mul", &["centred", "inv_std_dev"])
        .op("gh", "Mul", &["g", "h"])
        .op("mean_g", "ReduceMean", &["g", "last"])
        .op("mean_gh", "ReduceMean", &["gh", "last"])
        .op("along", "Mul", &["h", "mean_gh"])
        .op("without_mean", "Sub", &["g", "mean_g"])
        .op("projected", "Sub", &["without_mean", "along"])
        .op("dX", "Mul", &["projected", "inv_std_dev"])
        .function("LayerNormGrad", &["dY", "X", "scale", "mean", "inv_std_dev"], "dX")
}

/// `dX = Y (dY - sum(dY Y))`.
fn softmax_grad() -> Function {
    Body::new()
        .constant("last", Tensor::i64([1], &[-1]))
        .op("product", "Mul", &["dY", "Y"])
        .op("sum", "ReduceSum", &["product", "last"])
        .op("centred", "Sub", &["dY", "sum"])
        .op("dX", "Mul", &["Y", "centred"])
        .function("SoftmaxGrad", &["dY", "Y"], "dX")
}

/// Rows flattened, then summed.
fn reduce_rows() -> Function {
    Body::new()
        .constant("rows", Tensor::i64([1], &[-1]))
        .constant("first", Tensor::i64([1], &[0]))
        .node(Node::new("Shape", &["X"], &["columns"]).with("start", -1i64))
        .node(Node::new("Concat", &["rows", "columns"], &["shape"]).with("axis", 0i64))
        .op("matrix", "Reshape", &["X", "shape"])
        .node(Node::new("ReduceSum", &["matrix", "first"], &["Y"]).with("keepdims", 0i64))
        .function("ReduceRows", &["X"], "Y")
}

fn stop_gradient() -> Function {
    Body::new().op("Y", "Identity", &["X"]).function("StopGradient", &["X"], "Y")
}

/// The modulus of the hash: prime, so that raising to the fifth power permutes the residues, and so small that
/// products of residues fit 64 bits.
const PRIME: i64 = (1 << 31) - 1;

/// Numbers the places of X, hashes the numbers, keeps those below a threshold. The hash is a keyed permutation
/// of residues: three rounds of adding a key and raising to the fifth power.
fn dropout() -> Function {
    let mut body = Body::new()
        .constant("zero", Tensor::i64([], &[0]))
        .constant("step", Tensor::i64([], &[1]))
        .constant("prime", Tensor::i64([], &[PRIME]))
        .constant("prime_f", Tensor::scalar(PRIME as f32))
        .constant("one", Tensor::scalar(1.0))
        .constant("none", Tensor::scalar(0.0))
        .constant("spread", Tensor::i64([], &[48_271]))
        .op("shape", "Shape", &["X"])
        .op("count", "Size", &["X"])
        .op("places", "Range", &["zero", "count", "step"])
        .op("key.a", "Mod", &["seed", "prime"])
        .op("layer.a", "Mul", &["layer", "spread"])
        .op("key.b", "Mod", &["layer.a", "prime"])
        .op("key.ab", "Add", &["key.a", "key.b"])
        .op("key.c", "Mod", &["key.ab", "prime"]);
    let mut value = "places".to_owned();
    for (round, key) in ["key.a", "key.b", "key.c"].into_iter().enumerate() {
        let name = |part: &str| format!("round{round}.{part}");
        let steps = [
            ("keyed", "Add", value.as_str(), key),
            ("x", "Mod", &name("keyed"), "prime"),
            ("square", "Mul", &name("x"), &name("x")),
            ("x2", "Mod", &name("square"), "prime"),
            ("fourth", "Mul", &name("x2"), &name("x2")),
            ("x4", "Mod", &name("fourth"), "prime"),
            ("fifth", "Mul", &name("x4"), &name("x")),
            ("x5", "Mod", &name("fifth"), "prime"),
        ];
        for (output, op, a, b) in steps {
            body = body.op(&name(output), op, &[a, b]);
        }
        value = name("x5");
    }
    body.node(Node::new("Cast", &[&value], &["hash"]).with("to", 1i64))
        .op("threshold", "Mul", &["rate", "prime_f"])
        .op("kept.flat", "GreaterOrEqual", &["hash", "threshold"])
        .op("kept", "Reshape", &["kept.flat", "shape"])
        .op("share", "Sub", &["one", "rate"])
        .op("scaled", "Div", &["X", "share"])
        .op("Y", "Where", &["kept", "scaled", "none"])
        .function("Dropout", &["X", "seed", "layer", "rate"], "Y")
}
