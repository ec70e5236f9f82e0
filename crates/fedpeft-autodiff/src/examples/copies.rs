//! Giving every example its own copy of the trained tensors.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use fedpeft_onnx::{Graph, Node, Tensor};
use fedpeft_passes::{Builder, Extent};

use super::frame::{Frame, Frames, is_batched};
use crate::{AutodiffError, functions, rules::transposed};

type Result<T> = std::result::Result<T, AutodiffError>;

/// A copy of `graph` in which every trained tensor has copies, with which what `losses` depend on is shadowed; and the
/// copies by tensor.
pub(super) fn spread(
    graph: &Graph,
    losses: &str,
    tensors: &BTreeSet<String>,
) -> Result<(Builder, BTreeMap<String, String>)> {
    let mut spread = Spread {
        b: Builder::without_nodes(graph, "each.")?,
        frames: Frames::default(),
        copies: HashMap::new(),
        active: tensors.iter().cloned().collect(),
        live: live(graph, losses),
    };
    for input in &graph.inputs {
        spread.frames.input(&input.name);
    }
    let mut copies = BTreeMap::new();
    for tensor in tensors {
        let shape = [&[Extent::N], &spread.b.ty(tensor)?.shape[..]].concat();
        let shape = spread.b.extents(&shape)?;
        let copy = spread.b.op("Expand", &[tensor, &shape])?;
        copies.insert(tensor.clone(), copy.clone());
        spread.copies.insert(tensor.clone(), copy);
    }
    for node in &graph.nodes {
        spread.node(node.clone())?;
    }
    Ok((spread.b, copies))
}

/// The graph without shadows, and what values that were renamed are called now. As all copies are equal, what a shadow
/// is worth is what it shadows.
pub(super) fn gather(mut graph: Graph) -> (Graph, impl Fn(&str) -> String) {
    let mut names: HashMap<String, String> = HashMap::new();
    graph.nodes.retain(|node| {
        let (from, to) = match () {
            () if node.domain == functions::DOMAIN && node.op == "Shadow" => {
                (&node.inputs[0], &node.outputs[0])
            }
            () if is_stop(node) => (&node.outputs[0], &node.inputs[0]),
            () => return true,
        };
        names.insert(from.clone(), to.clone());
        false
    });
    let renamed = move |name: &str| {
        let mut name = name;
        while let Some(other) = names.get(name) {
            name = other;
        }
        name.to_owned()
    };
    for node in &mut graph.nodes {
        for name in node.inputs.iter_mut().chain(&mut node.outputs).filter(|name| !name.is_empty()) {
            *name = renamed(name);
        }
    }
    (graph, renamed)
}

/// Operators that work value by value on one input.
const UNARY: &[&str] = &[
    "Identity",
    "Cast",
    "Neg",
    "Abs",
    "Sqrt",
    "Reciprocal",
    "Exp",
    "Log",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Softplus",
    "Relu",
    "Gelu",
];

/// Operators that work value by value on inputs broadcast together.
const BROADCAST: &[&str] = &["Add", "Sub", "Mul", "Div", "Pow", "Sum", "Where"];

struct Spread {
    b: Builder,
    frames: Frames,
    /// By tensor or what is computed from tensors alone, every example's copy of it, `[N, ..shape]`.
    copies: HashMap<String, String>,
    /// Values that depend on a trained tensor.
    active: HashSet<String>,
    /// Values whose gradient the losses have.
    live: HashSet<String>,
}

/// Values on which `losses` depend, for differentiation.
fn live(graph: &Graph, losses: &str) -> HashSet<String> {
    let mut live = HashSet::from([losses.to_owned()]);
    for node in graph.nodes.iter().rev() {
        if !is_stop(node) && node.outputs.iter().any(|name| live.contains(name)) {
            live.extend(node.inputs.iter().cloned());
        }
    }
    live
}

fn is_stop(node: &Node) -> bool {
    node.domain == functions::DOMAIN && node.op == "StopGradient"
}

impl Spread {
    fn node(&mut self, mut node: Node) -> Result<()> {
        let reads_copies = node.inputs.iter().any(|name| self.copies.contains_key(name));
        let outputs = node.outputs.clone();
        let lives = !is_stop(&node) && outputs.iter().any(|name| self.live.contains(name));
        if lives && node.inputs.iter().any(|name| self.active.contains(name)) {
            self.active.extend(outputs.iter().cloned());
        }
        if !reads_copies || !lives {
            self.b.push(node.clone())?;
            self.frames.follow(&self.b, &node);
        } else if self.is_shared(&node)? {
            self.b.push(node.clone())?;
            let copies = self.shared(&node)?;
            self.copies.extend(outputs.iter().cloned().zip(copies));
        } else {
            let plain = self.b.fresh("plain");
            let y = std::mem::replace(&mut node.outputs[0], plain.clone());
            self.b.push(node.clone())?;
            self.frames.follow(&self.b, &node);
            let shadows = self.shadows(&node)?;
            let all: Vec<&str> = [&plain].into_iter().chain(&shadows).map(String::as_str).collect();
            self.b.push(Node { outputs: vec![y.clone()], ..functions::node("Shadow", &all) })?;
            self.frames.same(&plain, &y);
        }
        self.check(&node, &outputs)
    }

    /// Whether `node` reads no value of the batch.
    fn is_shared(&self, node: &Node) -> Result<bool> {
        let mut shared = true;
        for name in node.inputs.iter().filter(|name| !name.is_empty()) {
            shared &= !is_batched(&self.b.ty(name)?.shape);
        }
        let first = node.output(0).filter(|_| node.is("Expand"));
        // An expansion to the batch reads its size, if nothing else.
        let expanded = first.is_some() && self.b.types().ints(&node.inputs[1]).is_some_and(is_batched);
        Ok(shared && !expanded)
    }

    /// Every output that depends on trained tensors keeps the examples apart.
    fn check(&self, node: &Node, outputs: &[String]) -> Result<()> {
        for output in outputs.iter().filter(|name| self.active.contains(*name) && !name.is_empty()) {
            let ty = self.b.ty(output)?;
            let apart = self.copies.contains_key(output) || self.frames.get(&self.b, output).is_some();
            if ty.dtype.is_float() && !apart {
                return Err(unsupported(
                    node,
                    "it mixes the examples of a batch, so that none has a gradient of its own",
                ));
            }
        }
        Ok(())
    }

    /// `value` as a constant to differentiation.
    fn stop(&mut self, value: &str) -> Result<String> {
        if !self.active.contains(value) {
            return Ok(value.to_owned());
        }
        Ok(self.b.add(functions::node("StopGradient", &[value]))?)
    }

    fn copy(&self, node: &Node, index: usize) -> Option<String> {
        self.copies.get(node.input(index)?).cloned()
    }

    /// `node`, which reads tensors alone, on copies; one value for each output.
    fn shared(&mut self, node: &Node) -> Result<Vec<String>> {
        let shape = self.b.ty(&node.outputs[0])?.shape.clone();
        let frame = Frame::shared(&shape);
        let whole = [&[Extent::N], &shape[..]].concat();
        let no =
            || unsupported(node, "it has no form in which every example has its own copy of what is trained");
        let first = self.copy(node, 0);
        let b = &mut self.b;
        let rank = b.ty(&node.inputs[0])?.rank() as i64;
        // Axes count one more from the front, and the same from the back.
        let shift = |axis: i64| if axis < 0 { axis } else { axis + 1 };
        let axis = |default: i64| shift(node.int("axis").unwrap_or(default));
        let with = |copy: &str| {
            let mut node = Node { outputs: Vec::new(), ..node.clone() };
            copy.clone_into(&mut node.inputs[0]);
            node
        };
        let one = match (node.op.as_str(), first) {
            _ if !node.domain.is_empty() => return Err(no()),
            (op, Some(copy)) if UNARY.contains(&op) => b.add(with(&copy))?,
            ("Reshape" | "Flatten" | "Squeeze" | "Unsqueeze", Some(copy)) => b.reshape(&copy, &whole)?,
            (op, _) if BROADCAST.contains(&op) => return Ok(vec![self.broadcast(node, &frame)?]),
            ("MatMul", _) if rank >= 2 && shape.len() >= 2 => return Ok(vec![self.broadcast(node, &frame)?]),
            ("Transpose", Some(copy)) => {
                let reversed = || (0..rank).rev().collect();
                let perm = node.ints("perm").map_or_else(reversed, <[i64]>::to_vec);
                let perm: Vec<i64> = [0].into_iter().chain(perm.into_iter().map(|axis| axis + 1)).collect();
                b.add(with(&copy).with("perm", perm))?
            }
            ("Concat", _) => {
                let mut parts = Vec::new();
                for name in &node.inputs {
                    parts.push(match self.copies.get(name) {
                        Some(copy) => copy.clone(),
                        None => {
                            let target = [&[Extent::N], &b.ty(name)?.shape[..]].concat();
                            let target = b.extents(&target)?;
                            b.op("Expand", &[name, &target])?
                        }
                    });
                }
                b.add(Node { inputs: parts, outputs: Vec::new(), ..node.clone() }.with("axis", axis(0)))?
            }
            ("Slice", Some(copy)) => {
                let starts =
                    b.ty(&node.inputs[1])?.shape.first().and_then(|extent| extent.known()).unwrap_or(0);
                let axes = known(b, node, 3).unwrap_or_else(|| (0..starts).collect());
                let axes: Vec<i64> = axes.into_iter().map(shift).collect();
                let mut slice = with(&copy);
                slice.inputs.resize(slice.inputs.len().max(4), String::new());
                slice.inputs[3] = b.ints(&axes);
                b.add(slice)?
            }
            ("Pad", Some(copy)) => {
                let pads = known(b, node, 1).filter(|pads| pads.len() as i64 == 2 * rank).ok_or_else(no)?;
                let (before, after) = pads.split_at(rank as usize);
                let pads = [&[0], before, &[0], after].concat();
                let mut pad = with(&copy);
                pad.inputs[1] = b.ints(&pads);
                b.add(pad)?
            }
            ("Split", Some(copy)) => {
                let outputs: Vec<String> = node.outputs.iter().map(|_| b.fresh("split")).collect();
                b.push(Node { outputs: outputs.clone(), ..with(&copy) }.with("axis", axis(0)))?;
                return Ok(outputs);
            }
            ("Gather", Some(copy)) if b.types().ints(&node.inputs[1]).is_some_and(|ints| ints.len() == 1) => {
                b.add(with(&copy).with("axis", axis(0)))?
            }
            // The gradient of many indices is known on the first axis: the examples go last meanwhile.
            ("Gather", Some(copy)) if node.int("axis").unwrap_or(0) == 0 => {
                let turn = |rank: i64, by: i64| (0..rank).map(|axis| (axis + by) % rank).collect::<Vec<_>>();
                let last = b.add(Node::new("Transpose", &[&copy], &[]).with("perm", turn(rank + 1, 1)))?;
                let taken = b.add(with(&last))?;
                let rank = whole.len() as i64;
                b.add(Node::new("Transpose", &[&taken], &[]).with("perm", turn(rank, rank - 1)))?
            }
            ("ReduceSum" | "ReduceMean", Some(copy)) => {
                let axes =
                    known(b, node, 1).filter(|axes| !axes.is_empty()).unwrap_or_else(|| (0..rank).collect());
                let axes: Vec<i64> = axes.into_iter().map(shift).collect();
                let axes = b.ints(&axes);
                let mut reduce = with(&copy);
                reduce.inputs = vec![copy, axes];
                b.add(reduce)?
            }
            ("Expand", Some(copy)) => self.expand(&copy, &frame, &whole)?,
            _ => return Err(no()),
        };
        Ok(vec![one])
    }

    /// Values with the same derivative as `node`, which meets the batch, by the copies it reads.
    fn shadows(&mut self, node: &Node) -> Result<Vec<String>> {
        let y = &node.outputs[0];
        let shape = self.b.ty(y)?.shape.clone();
        let frame = self.frame(node, y)?;
        let mut shadows = Vec::new();
        match node.op.as_str() {
            _ if !node.domain.is_empty() => {}
            op if BROADCAST.contains(&op) => {
                let value = self.broadcast(node, &frame)?;
                shadows.push(self.b.reshape(&value, &shape)?);
            }
            "Gemm" => {
                if let Some(copies) = self.copy(node, 1) {
                    shadows.push(self.rows(node, &copies, node.int("transB").unwrap_or(0) != 0)?);
                }
                if let Some(copies) = self.copy(node, 2) {
                    shadows.push(self.expand(&copies, &frame, &shape)?);
                }
                if node.int("transA").unwrap_or(0) != 0 || self.copy(node, 0).is_some() {
                    shadows.clear();
                }
            }
            "MatMul" if frame.is_rows() => {
                if let Some(copies) = self.copy(node, 1) {
                    shadows.push(self.rows(node, &copies, false)?);
                }
            }
            "MatMul" if frame.axis() + 2 < shape.len() => {
                let value = self.broadcast(node, &frame)?;
                shadows.push(self.b.reshape(&value, &shape)?);
            }
            "LayerNormalization" => {
                if let Some(copies) = self.copy(node, 1) {
                    let normal = self.normal(node)?;
                    let normal = frame.take_apart(&mut self.b, &normal)?;
                    let scale = frame.place(&mut self.b, &copies)?;
                    let value = self.b.op("Mul", &[&normal, &scale])?;
                    shadows.push(self.b.reshape(&value, &shape)?);
                }
                if let Some(copies) = self.copy(node, 2) {
                    shadows.push(self.expand(&copies, &frame, &shape)?);
                }
            }
            "Conv" if self.copy(node, 1).is_some() => {
                let reason = "the weight of a convolution with overlapping windows has no gradient for each example: \
                              choose a method that does not train it";
                return Err(unsupported(node, reason));
            }
            "Conv" => {
                if let Some(copies) = self.copy(node, 2) {
                    let one = Extent::fixed(1);
                    let channels = self.b.ty(&copies)?.shape.clone();
                    let spatial = vec![one; shape.len() - 2];
                    let copies = self.b.reshape(&copies, &[&channels[..], &spatial].concat())?;
                    shadows.push(self.expand(&copies, &frame, &shape)?);
                }
            }
            "Expand" => {
                if let Some(copies) = self.copy(node, 0) {
                    shadows.push(self.expand(&copies, &frame, &shape)?);
                }
            }
            "Gather" if node.int("axis").unwrap_or(0) == 0 => shadows.push(self.table(node, &shape)?),
            _ => {}
        }
        let read = node.inputs.iter().filter(|name| self.copies.contains_key(*name)).count();
        if shadows.is_empty() || (!BROADCAST.contains(&node.op.as_str()) && shadows.len() < read) {
            let reason = "it has no form in which every example has its own copy of what is trained: choose a method \
                          that does not train what it reads";
            return Err(unsupported(node, reason));
        }
        Ok(shadows)
    }

    fn frame(&self, node: &Node, value: &str) -> Result<Frame> {
        let frame = self.frames.get(&self.b, value);
        frame.ok_or_else(|| unsupported(node, "the examples of a batch cannot be followed through it"))
    }

    /// An operator whose inputs broadcast, on copies.
    fn broadcast(&mut self, node: &Node, frame: &Frame) -> Result<String> {
        let mut inputs = Vec::new();
        for name in &node.inputs {
            inputs.push(match self.copies.get(name).cloned() {
                Some(copies) => frame.place(&mut self.b, &copies)?,
                None if is_batched(&self.b.ty(name)?.shape) => {
                    let own = self.frame(node, name)?;
                    let value = self.stop(name)?;
                    own.take_apart(&mut self.b, &value)?
                }
                None => {
                    let value = self.stop(name)?;
                    frame.stretch(&mut self.b, &value)?
                }
            });
        }
        Ok(self.b.add(Node { inputs, outputs: Vec::new(), ..node.clone() })?)
    }

    /// Copies of a tensor, repeated to `shape`, that of a value with `frame`.
    fn expand(&mut self, copies: &str, frame: &Frame, shape: &[Extent]) -> Result<String> {
        let placed = frame.place(&mut self.b, copies)?;
        let target = self.b.extents(&frame.apart())?;
        let value = self.b.op("Expand", &[&placed, &target])?;
        Ok(self.b.reshape(&value, shape)?)
    }

    /// Rows of the batch times a matrix, `Gemm` or `MatMul` of two axes. With rows grouped by example it is a product of
    /// `[N, rows, C]` and `[N, C, D]`.
    fn rows(&mut self, node: &Node, copies: &str, is_transposed: bool) -> Result<String> {
        let shape = self.b.ty(&node.outputs[0])?.shape.clone();
        let frame = self.frame(node, &node.inputs[0])?;
        if !frame.is_rows() {
            return Err(unsupported(node, "the batch is not the first axis of its rows"));
        }
        let columns = self.b.ty(&node.inputs[0])?.shape[1];
        let x = self.stop(&node.inputs[0])?;
        let b = &mut self.b;
        let x = b.reshape(&x, &frame.rows_apart(columns))?;
        let mut copies = copies.to_owned();
        if let Some(alpha) = node.float("alpha").filter(|alpha| *alpha != 1.0) {
            let alpha = b.scalar(alpha);
            copies = b.op("Mul", &[&copies, &alpha])?;
        }
        let product = if is_transposed {
            // The matrix first, that its gradient is not a transpose of a product.
            let x = transposed(b, &x)?;
            let product = b.op("MatMul", &[&copies, &x])?;
            transposed(b, &product)?
        } else {
            b.op("MatMul", &[&x, &copies])?
        };
        Ok(b.reshape(&product, &shape)?)
    }

    /// `(X - mean) / deviation` of a normalisation, a constant.
    fn normal(&mut self, node: &Node) -> Result<String> {
        let index = self.b.graph().nodes.len() - 1;
        let x = self.stop(&node.inputs[0])?;
        let mut moments = Vec::new();
        for slot in [1, 2] {
            let moment = self.b.want_output(index, slot)?;
            // They depend on what X depends on.
            moments.push(self.b.add(functions::node("StopGradient", &[&moment]))?);
        }
        let centred = self.b.op("Sub", &[&x, &moments[0]])?;
        Ok(self.b.op("Mul", &[&centred, &moments[1]])?)
    }

    /// Rows of an embedding table: those of all examples' tables one below the other.
    fn table(&mut self, node: &Node, shape: &[Extent]) -> Result<String> {
        let missing = || unsupported(node, "only a table that is indexed by the batch can be copied");
        let copies = self.copy(node, 0).ok_or_else(missing)?;
        let indices = self.frame(node, &node.inputs[1])?;
        let rows = self.b.ty(&copies)?.shape[1..].to_vec();
        let ids = self.stop(&node.inputs[1])?;
        let b = &mut self.b;
        let ids = indices.take_apart(b, &ids)?;
        let size = b.batch_size()?;
        let (zero, step, limit) =
            (b.constant(Tensor::i64([], &[0])), b.constant(Tensor::i64([], &[1])), b.reshape(&size, &[])?);
        let numbers = b.op("Range", &[&zero, &limit, &step])?;
        let height = b.extents(&rows[..1])?;
        let first = b.op("Mul", &[&numbers, &height])?;
        let first = indices.place(b, &first)?;
        let ids = b.op("Add", &[&ids, &first])?;
        let all = rows[0].times(Extent::N).ok_or_else(missing)?;
        let table = b.reshape(&copies, &[&[all], &rows[1..]].concat())?;
        let value = b.op("Gather", &[&table, &ids])?;
        Ok(b.reshape(&value, shape)?)
    }
}

/// The known integers of input `index`.
fn known(b: &Builder, node: &Node, index: usize) -> Option<Vec<i64>> {
    b.types().ints(node.input(index)?)?.iter().map(|extent| extent.known()).collect()
}

fn unsupported(node: &Node, reason: &str) -> AutodiffError {
    AutodiffError::Unsupported { node: node.label(), reason: reason.to_owned() }
}
