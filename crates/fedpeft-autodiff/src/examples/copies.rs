//! Giving every example its own copy of the trained tensors.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use fedpeft_onnx::{Graph, Node};
use fedpeft_passes::{Builder, Extent};

use super::frame::{Frame, Frames, is_batched};
use crate::{AutodiffError, functions};

pub(super) type Result<T> = std::result::Result<T, AutodiffError>;

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

/// Operators that work value by value on inputs broadcast together.
pub(super) const BROADCAST: &[&str] = &["Add", "Sub", "Mul", "Div", "Pow", "Sum", "Where"];

pub(super) struct Spread {
    pub b: Builder,
    frames: Frames,
    /// By tensor or what is computed from tensors alone, every example's copy of it, `[N, ..shape]`.
    pub copies: HashMap<String, String>,
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
    /// Puts a node into the graph with what its readers need of copies.
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
    pub fn stop(&mut self, value: &str) -> Result<String> {
        if !self.active.contains(value) {
            return Ok(value.to_owned());
        }
        Ok(self.b.add(functions::node("StopGradient", &[value]))?)
    }

    pub fn copy(&self, node: &Node, index: usize) -> Option<String> {
        self.copies.get(node.input(index)?).cloned()
    }

    pub fn frame(&self, node: &Node, value: &str) -> Result<Frame> {
        let frame = self.frames.get(&self.b, value);
        frame.ok_or_else(|| unsupported(node, "the examples of a batch cannot be followed through it"))
    }

    /// An operator whose inputs broadcast, on copies.
    pub fn broadcast(&mut self, node: &Node, frame: &Frame) -> Result<String> {
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
    pub fn expand(&mut self, copies: &str, frame: &Frame, shape: &[Extent]) -> Result<String> {
        let placed = frame.place(&mut self.b, copies)?;
        let target = self.b.extents(&frame.apart())?;
        let value = self.b.op("Expand", &[&placed, &target])?;
        Ok(self.b.reshape(&value, shape)?)
    }
}

pub(super) fn unsupported(node: &Node, reason: &str) -> AutodiffError {
    AutodiffError::Unsupported { node: node.label(), reason: reason.to_owned() }
}
