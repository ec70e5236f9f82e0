//! Attention and its gradient as operators of ours, for the processor.
//!
//! ```text
//! [N, T, H, D]:  q, k, v -> transpositions, softmax(scale q k^T), product with v, transposition -> y
//!                dy -> transpositions, products, SoftmaxGrad, transpositions -> dq, dk, dv
//! ```
//!
//! Only what is written like this, of few tokens, is replaced. Attention with a mask stays as it is, and so does a gradient
//! that is not taken of all three.

use std::collections::HashMap;

use fedpeft_onnx::{Dim, Graph, Node};

use super::{ours, replace};
use crate::operators::{DOMAIN, SCALE};

/// Where the axes `[N, T, H, D]` are in one head after the other, `[N, H, T, D]`.
const HEADS: [usize; 4] = [0, 2, 1, 3];
/// Where they are when it is transposed, `[N, H, D, T]`.
const TRANSPOSED: [usize; 4] = [0, 2, 3, 1];
/// Exchanges the last two axes.
const EXCHANGED: [usize; 4] = [0, 1, 3, 2];
/// Most tokens. Of more, products take longer than bringing heads together, and ONNX Runtime's are the faster ones.
const TOKENS: i64 = 128;
/// Factors that should be equal are computed in different orders.
const ROUNDING: f32 = 1e-5;

/// Replaces attention wherever it is found; returns whether there was any.
pub(super) fn fuse(graph: &mut Graph) -> bool {
    let nodes = Reader::new(graph).all();
    let fused = !nodes.is_empty();
    replace(graph, nodes);
    fused
}

/// Two axes orders, one after the other.
fn then(first: [usize; 4], second: [usize; 4]) -> [usize; 4] {
    second.map(|axis| first[axis])
}

/// A value as another one with its axes in this order, times a factor.
struct View<'a> {
    of: &'a str,
    order: [usize; 4],
    factor: f32,
}

struct Reader<'a> {
    graph: &'a Graph,
    producers: HashMap<&'a str, usize>,
    readers: HashMap<&'a str, Vec<usize>>,
}

impl<'a> Reader<'a> {
    fn new(graph: &'a Graph) -> Self {
        Self { graph, producers: graph.producers(), readers: graph.consumers() }
    }

    fn all(&self) -> Vec<Node> {
        let softmax = self.graph.nodes.iter().filter(|node| node.is("Softmax"));
        softmax.enumerate().filter_map(|(i, node)| self.attention(i, node)).flatten().collect()
    }

    /// The operators for the attention around the `i`th softmax.
    fn attention(&self, i: usize, softmax: &'a Node) -> Option<Vec<Node>> {
        if ![-1, 3].contains(&softmax.int("axis").unwrap_or(-1)) {
            return None;
        }
        let (input, p) = (softmax.input(0)?, softmax.output(0)?);
        let scores = self.view(input, |_| false);
        let product = self.producer(scores.of).filter(|node| node.is("MatMul"))?;
        let (left, right) = (product.input(0)?, product.input(1)?);
        let (q, k) = (self.view_as(left, HEADS)?, self.view_as(right, TRANSPOSED)?);
        let is_short = |value: &str| self.tokens(value).is_some_and(|tokens| tokens <= TOKENS);
        if scores.order != [0, 1, 2, 3] || !is_short(q.of) || !is_short(k.of) {
            return None;
        }
        let scale = scores.factor * q.factor * k.factor;
        let (shares, v, heads) = self.reading(p, "", "MatMul").find_map(|node| {
            let v = self.view_as(node.input(1)?, HEADS).filter(|v| v.factor == 1.0)?;
            (node.input(0)? == p).then_some((p, v.of, node.output(0)?))
        })?;
        let (y, _) = self.down(heads, HEADS)?;
        let kept = format!("attention.shares.{i}");
        let mut made = vec![ours("Attention", &[q.of, k.of, v], &[y, &kept]).with(SCALE, scale)];
        let Some(softmax_grad) = self.reading(shares, DOMAIN, "SoftmaxGrad").next() else {
            return Some(made);
        };
        let gradients = self.gradients(softmax_grad, [&q, &k], v, scale);
        // Without its gradient, the softmax is needed anyway.
        let (dy, outputs) = gradients?;
        made.push(ours("AttentionGrad", &[dy, q.of, k.of, v, &kept], &outputs).with(SCALE, scale));
        Some(made)
    }

    /// The gradient of the output, and those of queries, keys and values.
    fn gradients(
        &self,
        softmax: &'a Node,
        [q, k]: [&View<'a>; 2],
        v: &str,
        scale: f32,
    ) -> Option<(&'a str, [&'a str; 3])> {
        let (dp, p) = (softmax.input(0)?, softmax.input(1)?);
        let product = self.producer(dp).filter(|node| node.is("MatMul"))?;
        let dy_heads = product.input(0)?;
        let dy = self.view_as(dy_heads, HEADS).filter(|dy| dy.factor == 1.0)?;
        self.view_as(product.input(1)?, TRANSPOSED).filter(|view| view.of == v && view.factor == 1.0)?;
        // dv = p^T dy
        let dv = self.reading(dy_heads, "", "MatMul").find_map(|node| {
            let shares = self.view_as(node.input(0)?, EXCHANGED).filter(|view| view.of == p)?;
            (shares.factor == 1.0 && node.input(1)? == dy_heads).then_some(node.output(0)?)
        })?;
        let (dv, factor) = self.down(dv, HEADS)?;
        if factor != 1.0 {
            return None;
        }
        // Where the product is scaled after it is made, its gradient is scaled before it is used.
        let ds = softmax.output(0)?;
        let (ds, before) = match self.only_reader(ds).and_then(|node| Some((node, self.factor(node, ds)?))) {
            Some((node, factor)) => (node.output(0)?, factor),
            None => (ds, 1.0),
        };
        let (mut dq, mut dk) = (None, None);
        for node in self.reading(ds, "", "MatMul") {
            let (left, right, output) = (node.input(0)?, node.input(1)?, node.output(0)?);
            if left == ds {
                let side = self.view_as(right, HEADS).filter(|side| side.of == k.of)?;
                let (value, after) = self.down(output, HEADS)?;
                dq = Some((value, before * side.factor * after));
            } else {
                let side = self.view_as(left, TRANSPOSED).filter(|side| side.of == q.of)?;
                // Transposed, as keys were.
                let (value, after) = self.down(output, inverse(TRANSPOSED))?;
                dk = Some((value, before * side.factor * after));
            }
        }
        let ((dq, of_q), (dk, of_k)) = (dq?, dk?);
        let fits = |factor: f32| (factor / scale - 1.0).abs() < ROUNDING;
        (fits(of_q) && fits(of_k)).then_some((dy.of, [dq, dk, dv]))
    }

    /// The tokens of a value `[N, T, H, D]`, where the graph says how many.
    fn tokens(&self, value: &str) -> Option<i64> {
        if let Some(Dim::Fixed(tokens)) =
            self.graph.input(value).and_then(|input| input.shape.as_ref()?.get(1))
        {
            return i64::try_from(*tokens).ok();
        }
        let node = self.producer(value).filter(|node| node.is("Reshape"))?;
        let shape = self.graph.initializers.get(node.input(1)?)?.as_i64()?;
        shape.get(1).copied().filter(|tokens| *tokens > 0)
    }

    fn producer(&self, value: &str) -> Option<&'a Node> {
        self.graph.nodes.get(*self.producers.get(value)?)
    }

    fn reading(&self, value: &str, domain: &'static str, op: &'static str) -> impl Iterator<Item = &'a Node> {
        let graph = self.graph;
        let readers = self.readers.get(value).cloned().unwrap_or_default();
        let nodes = readers.into_iter().filter_map(move |index| graph.nodes.get(index));
        nodes.filter(move |node| node.op == op && node.domain == domain)
    }

    /// The node that reads a value, where there is one alone and the graph does not give it.
    fn only_reader(&self, value: &str) -> Option<&'a Node> {
        match self.readers.get(value)?.as_slice() {
            [reader] if self.graph.outputs.iter().all(|output| output.name != value) => {
                self.graph.nodes.get(*reader)
            }
            _ => None,
        }
    }

    /// By what constant a node multiplies `value`.
    fn factor(&self, node: &Node, value: &str) -> Option<f32> {
        let (left, right) = (node.input(0)?, node.input(1)?);
        let constant = |name: &str| match self.graph.initializers.get(name)?.as_f32()?.as_ref() {
            [factor] => Some(*factor),
            _ => None,
        };
        match node.op.as_str() {
            "Mul" if left == value => constant(right),
            "Mul" if right == value => constant(left),
            "Div" if left == value => constant(right).map(f32::recip),
            _ => None,
        }
    }

    /// What a value is a view of: back over transpositions and factors, until `is_it`.
    fn view(&self, value: &'a str, is_it: impl Fn([usize; 4]) -> bool) -> View<'a> {
        let mut view = View { of: value, order: [0, 1, 2, 3], factor: 1.0 };
        while !is_it(view.order)
            && let Some(node) = self.producer(view.of)
        {
            if let Some(order) = order(node)
                && let Some(input) = node.input(0)
            {
                (view.of, view.order) = (input, then(order, view.order));
            } else if let Some((input, factor)) =
                node.inputs.iter().find_map(|input| Some((input, self.factor(node, input)?)))
            {
                (view.of, view.factor) = (input, view.factor * factor);
            } else {
                break;
            }
        }
        view
    }

    /// What a value is a view of with its axes in this order.
    fn view_as(&self, value: &'a str, order: [usize; 4]) -> Option<View<'a>> {
        let view = self.view(value, |found| found == order);
        (view.order == order).then_some(view)
    }

    /// What alone is made of a value by ordering its axes like this, and times what.
    fn down(&self, value: &'a str, wanted: [usize; 4]) -> Option<(&'a str, f32)> {
        let (mut value, mut found, mut factor) = (value, [0, 1, 2, 3], 1.0);
        while found != wanted {
            let node = self.only_reader(value)?;
            match order(node) {
                Some(order) => found = then(found, order),
                None => factor *= self.factor(node, value)?,
            }
            value = node.output(0)?;
        }
        Some((value, factor))
    }
}

fn inverse(order: [usize; 4]) -> [usize; 4] {
    let mut inverse = [0; 4];
    order.iter().enumerate().for_each(|(to, from)| inverse[*from] = to);
    inverse
}

/// The order in which a transposition takes four axes.
fn order(node: &Node) -> Option<[usize; 4]> {
    let perm = node.is("Transpose").then(|| node.ints("perm")).flatten()?;
    let perm: Vec<usize> = perm.iter().filter_map(|axis| usize::try_from(*axis).ok()).collect();
    perm.try_into().ok().filter(|order: &[usize; 4]| order.iter().all(|axis| *axis < 4))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use fedpeft_onnx::{DType, Model, Tensor, ValueInfo, surgery};
    use fedpeft_passes::Builder;
    use ort::value::Tensor as Value;

    use super::*;
    use crate::{ChosenDevice, SessionOptions, operators, session, toy};

    const NAMES: [&str; 3] = ["q", "k", "v"];
    const QUERIES: [usize; 4] = [3, 5, 2, 9];
    const KEYS: [usize; 4] = [3, 7, 2, 9];

    /// How exporters write attention.
    #[derive(Clone, Copy, PartialEq)]
    enum Written {
        /// Queries are scaled, keys transposed at once.
        Scaled,
        /// Queries and keys are scaled by a root, keys brought to heads and then transposed.
        Halved,
        /// Scores are divided.
        Divided,
        /// Scores are masked.
        Masked,
    }

    /// Attention and the gradients of a sum of what it gives.
    fn model(written: Written) -> Model {
        let mut graph = Graph { name: "attention".into(), ..Graph::default() };
        let dims = |[_, t, h, d]: [usize; 4]| {
            vec![Dim::Symbol("batch".into()), Dim::Fixed(t), Dim::Fixed(h), Dim::Fixed(d)]
        };
        for (name, shape) in NAMES.into_iter().zip([QUERIES, KEYS, KEYS]) {
            graph.inputs.push(ValueInfo::new(name, DType::F32, dims(shape)));
        }
        graph.initializers.insert("weights".into(), Tensor::f32([2, 9], &[0.3; 18]));
        graph.initializers.insert("mask".into(), Tensor::f32([7], &[0.0, 0.0, 0.0, 0.0, 0.0, -9.0, -9.0]));
        let mut b = Builder::new(graph, "made.").unwrap();
        let swap = |b: &mut Builder, value: &str, perm: [i64; 4]| {
            b.add(Node::new("Transpose", &[value], &[]).with("perm", perm.to_vec())).unwrap()
        };
        let (half, third, whole) = (b.scalar(3f32.powf(-0.5)), b.scalar(1.0 / 3.0), b.scalar(3.0));
        let (q, v) = (swap(&mut b, "q", [0, 2, 1, 3]), swap(&mut b, "v", [0, 2, 1, 3]));
        let scores = match written {
            Written::Scaled => {
                let (q, k) = (b.op("Mul", &[&q, &third]).unwrap(), swap(&mut b, "k", [0, 2, 3, 1]));
                b.op("MatMul", &[&q, &k]).unwrap()
            }
            Written::Halved => {
                let (q, k) = (b.op("Mul", &[&q, &half]).unwrap(), swap(&mut b, "k", [0, 2, 1, 3]));
                let k = swap(&mut b, &k, [0, 1, 3, 2]);
                let k = b.op("Mul", &[&k, &half]).unwrap();
                b.op("MatMul", &[&q, &k]).unwrap()
            }
            Written::Divided | Written::Masked => {
                let k = swap(&mut b, "k", [0, 2, 3, 1]);
                let scores = b.op("MatMul", &[&q, &k]).unwrap();
                let scores = b.op("Div", &[&scores, &whole]).unwrap();
                if written == Written::Masked { b.op("Add", &[&scores, "mask"]).unwrap() } else { scores }
            }
        };
        let p = b.add(Node::new("Softmax", &[&scores], &[]).with("axis", -1i64)).unwrap();
        let heads = b.op("MatMul", &[&p, &v]).unwrap();
        let y = swap(&mut b, &heads, [0, 2, 1, 3]);
        let weighted = b.op("Mul", &[&y, "weights"]).unwrap();
        // A loss that is not linear, so that its gradient is not the same everywhere.
        let squared = b.op("Mul", &[&weighted, &y]).unwrap();
        let loss = b.add(Node::new("ReduceSum", &[&squared], &[]).with("keepdims", 0i64)).unwrap();
        let names: BTreeSet<String> = NAMES.map(str::to_owned).into();
        b.output(&y, "y").unwrap();
        for (name, gradient) in fedpeft_autodiff::differentiate(&mut b, &loss, &names).unwrap() {
            b.output(&gradient, &format!("{name}.grad")).unwrap();
        }
        let mut graph = b.finish();
        surgery::prune(&mut graph).unwrap();
        toy::model(graph)
    }

    /// What the model gives, as it is or fused.
    fn run(mut model: Model, fused: bool) -> Vec<Vec<f32>> {
        if fused {
            crate::fuse::fuse(&mut model).unwrap();
            operators::take_over(&mut model);
        }
        let options = SessionOptions { threads: 2, ..SessionOptions::default() };
        let (runtime, bytes) = (toy::runtime(), model.to_bytes());
        let mut session = session::commit(
            &runtime,
            &bytes,
            ".",
            session::Form { fused, ..Default::default() },
            ChosenDevice::Cpu,
            &options,
        )
        .unwrap();
        let feeds = NAMES.into_iter().zip([QUERIES, KEYS, KEYS]).enumerate().map(|(n, (name, shape))| {
            let count: usize = shape.iter().product();
            let wave: Vec<f32> = (0..count).map(|i| ((i * 7 + n * 13) as f32 * 0.37).sin() * 2.0).collect();
            (name, Value::from_array((shape, wave)).unwrap())
        });
        let outputs = session.run(feeds.collect::<Vec<_>>()).unwrap();
        let values = |name: &str| outputs[name].try_extract_tensor::<f32>().unwrap().1.to_vec();
        ["y", "q.grad", "k.grad", "v.grad"].map(values).into()
    }

    #[test]
    fn attention_is_found_however_it_is_written_and_computes_the_same() {
        for written in [Written::Scaled, Written::Halved, Written::Divided] {
            let model = model(written);
            let mut fused = model.clone();
            assert!(crate::fuse::fuse(&mut fused).unwrap());
            let count = |op: &str| fused.graph.nodes.iter().filter(|node| node.op == op).count();
            let gone = ["MatMul", "Softmax", "SoftmaxGrad", "Transpose"].map(count);
            assert_eq!((count("Attention"), count("AttentionGrad"), gone), (1, 1, [0; 4]));
            for (wanted, got) in run(model.clone(), false).iter().zip(run(model, true)) {
                assert_eq!(wanted.len(), got.len());
                for (wanted, got) in wanted.iter().zip(got) {
                    assert!((wanted - got).abs() < 1e-5 * wanted.abs().max(1.0), "{got} is not {wanted}");
                }
            }
        }
    }

    #[test]
    fn other_attention_stays_as_it_is() {
        let mut long = model(Written::Scaled);
        long.graph.inputs[1].shape = Some([3, 129, 2, 9].map(Dim::Fixed).into());
        for mut other in [model(Written::Masked), long] {
            let before = other.clone();
            assert!(!crate::fuse::fuse(&mut other).unwrap());
            assert_eq!(other, before);
        }
    }
}
