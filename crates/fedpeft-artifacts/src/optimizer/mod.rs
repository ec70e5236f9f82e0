//! Optimizer steps as graphs, for devices on which adapter and gradients stay between steps. All tensors are
//! joined into one matrix first ([`rows`]), so that a step costs a dozen operators whatever the number of tensors.
//! Formulas: [`fedpeft_protocol::run::OptimizerSpec`], and [`gradient`] for what comes before.

pub mod gradient;
pub mod rows;

use fedpeft_codec::Layout;
use fedpeft_onnx::{DType, Graph, Model, Node, Tensor};
use fedpeft_passes::{Builder, Extent, PassError, Type};

use self::rows::{ROW, rows};
use crate::manifest::GRADIENT_SUFFIX;

/// Suffix of outputs: the value after the step.
pub const NEXT_SUFFIX: &str = ".next";

/// A graph with the adapter, its gradients, and what every optimizer does with them.
struct Step {
    b: Builder,
    layout: Layout,
}

impl Step {
    fn new(layout: &Layout, constants: &[&str], state: &[&str]) -> Result<Self, PassError> {
        let mut b = Builder::new(Graph { name: "optimizer".into(), ..Graph::default() }, "opt.")?;
        for suffix in ["", GRADIENT_SUFFIX] {
            for tensor in layout.tensors() {
                let shape = tensor.shape.iter().map(|dim| Extent::fixed(*dim as i64)).collect();
                b.input(&format!("{}{suffix}", tensor.name), Type::new(DType::F32, shape));
            }
        }
        for name in gradient::JOINED_INPUTS.iter().chain(state) {
            let shape = vec![Extent::from(rows::total(layout)), Extent::from(ROW)];
            b.input(name, Type::new(DType::F32, shape));
        }
        for name in gradient::CONSTANTS.iter().chain(constants) {
            b.input(name, Type::new(DType::F32, Vec::new()));
        }
        Ok(Self { b, layout: layout.clone() })
    }

    /// All tensors whose name ends with `suffix`, as one matrix called `name`.
    fn join(&mut self, suffix: &str, name: &str) -> Result<(), PassError> {
        let mut parts = Vec::new();
        for tensor in self.layout.tensors() {
            let (value, values) = (format!("{}{suffix}", tensor.name), tensor.values());
            let missing = rows(values) * ROW - values;
            let whole = if missing == 0 {
                value
            } else {
                let flat = self.b.reshape(&value, &[Extent::from(values)])?;
                let pads = self.b.constant(Tensor::i64([2], &[0, missing as i64]));
                self.b.op("Pad", &[&flat, &pads])?
            };
            parts.push(self.b.reshape(&whole, &[Extent::from(rows(values)), Extent::from(ROW)])?);
        }
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        self.b.push(Node::new("Concat", &parts, &[name]).with("axis", 0i64))
    }

    fn op(&mut self, op: &str, inputs: &[&str]) -> Result<String, PassError> {
        self.b.op(op, inputs)
    }

    /// Like [`Self::op`], with a name for the output.
    fn named(&mut self, op: &str, inputs: &[&str], output: &str) -> Result<(), PassError> {
        self.b.push(Node::new(op, inputs, &[output]))
    }

    /// The adapter and its gradient, ready for a step.
    fn begin(&mut self) -> Result<(String, String), PassError> {
        const ADAPTER: &str = "adapter.joined";
        self.join("", ADAPTER)?;
        Ok((ADAPTER.to_owned(), gradient::transform(self, ADAPTER)?))
    }

    /// Gives back the joined adapter as tensors.
    fn finish(mut self, adapter: &str, state: &[(&str, String)]) -> Result<Model, PassError> {
        let sizes: Vec<i64> = self.layout.tensors().iter().map(|t| rows(t.values()) as i64).collect();
        let sizes = self.b.constant(Tensor::i64([sizes.len()], &sizes));
        let mut split = Node::new("Split", &[adapter, &sizes], &[]).with("axis", 0i64);
        split.outputs = self.layout.tensors().iter().map(|t| format!("{}.rows", t.name)).collect();
        self.b.push(split)?;
        for tensor in self.layout.clone().tensors() {
            let shape: Vec<Extent> = tensor.shape.iter().map(|dim| Extent::fixed(*dim as i64)).collect();
            let (mut value, values) = (format!("{}.rows", tensor.name), tensor.values());
            if rows(values) * ROW > values {
                let flat = self.b.reshape(&value, &[Extent::from(rows(values) * ROW)])?;
                let [start, end, axis] =
                    [0, values as i64, 0].map(|number| self.b.constant(Tensor::i64([1], &[number])));
                value = self.b.op("Slice", &[&flat, &start, &end, &axis])?;
            }
            let value = self.b.reshape(&value, &shape)?;
            self.b.output(&value, &format!("{}{NEXT_SUFFIX}", tensor.name))?;
        }
        for (name, value) in state {
            self.b.output(value, &format!("{name}{NEXT_SUFFIX}"))?;
        }
        Ok(Model::new(self.b.finish()))
    }
}

/// SGD: constants `lr`, `momentum_factor`, `weight_decay`, `nesterov` (0 or 1), state `momentum`, zero at first;
/// and the inputs of [`gradient`].
pub fn sgd(layout: &Layout) -> Result<Model, PassError> {
    let mut s = Step::new(layout, &["lr", "momentum_factor", "weight_decay", "nesterov"], &["momentum"])?;
    let (p, g) = s.begin()?;
    let decay = s.op("Mul", &[&p, "weight_decay"])?;
    let d = s.op("Add", &[&g, &decay])?;
    let kept = s.op("Mul", &["momentum", "momentum_factor"])?;
    let v = s.op("Add", &[&kept, &d])?;
    // nesterov ? d + momentum_factor v : v, as v + nesterov (d + momentum_factor v - v)
    let ahead = s.op("Mul", &[&v, "momentum_factor"])?;
    let ahead = s.op("Add", &[&d, &ahead])?;
    let further = s.op("Sub", &[&ahead, &v])?;
    let further = s.op("Mul", &[&further, "nesterov"])?;
    let direction = s.op("Add", &[&v, &further])?;
    let step = s.op("Mul", &[&direction, "lr"])?;
    let next = s.op("Sub", &[&p, &step])?;
    s.finish(&next, &[("momentum", v)])
}

/// AdamW: constants `lr`, `beta1`, `beta2`, `epsilon`, `weight_decay`, `bias1` = 1 - beta1^t, `bias2` =
/// 1 - beta2^t, state `m` and `v`, zero at first; and the inputs of [`gradient`].
pub fn adamw(layout: &Layout) -> Result<Model, PassError> {
    let constants = ["lr", "beta1", "beta2", "epsilon", "weight_decay", "bias1", "bias2"];
    let mut s = Step::new(layout, &constants, &["m", "v"])?;
    let (p, g) = s.begin()?;
    let one = s.b.scalar(1.0);
    let average = |s: &mut Step, old: &str, new: &str, beta: &str| {
        let rest = s.op("Sub", &[&one, beta])?;
        let (kept, added) = (s.op("Mul", &[old, beta])?, s.op("Mul", &[new, &rest])?);
        s.op("Add", &[&kept, &added])
    };
    let squared = s.op("Mul", &[&g, &g])?;
    let m = average(&mut s, "m", &g, "beta1")?;
    let v = average(&mut s, "v", &squared, "beta2")?;
    let first = s.op("Div", &[&m, "bias1"])?;
    let second = s.op("Div", &[&v, "bias2"])?;
    let root = s.op("Sqrt", &[&second])?;
    let denominator = s.op("Add", &[&root, "epsilon"])?;
    let direction = s.op("Div", &[&first, &denominator])?;
    let decay = s.op("Mul", &[&p, "weight_decay"])?;
    let sum = s.op("Add", &[&direction, &decay])?;
    let step = s.op("Mul", &[&sum, "lr"])?;
    let next = s.op("Sub", &[&p, &step])?;
    s.finish(&next, &[("m", m), ("v", v)])
}
