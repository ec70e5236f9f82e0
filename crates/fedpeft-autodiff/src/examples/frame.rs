//! Where the examples of a batch lie in a value.

use std::collections::HashMap;

use fedpeft_onnx::Node;
use fedpeft_passes::{Builder, Extent, PassError};

/// A shape taken apart at its batch axis. Of that axis' `outer * N * inner` places, example `n` has those whose
/// number is `n` when divided by `inner` and taken modulo `N`: rows of tokens are `N * T` or, where an exporter puts
/// tokens first, `T * N`. A value without a batch axis is framed as if one stood in front of it.
#[derive(Debug, Clone)]
pub(super) struct Frame {
    before: Vec<Extent>,
    outer: i64,
    inner: i64,
    after: Vec<Extent>,
    batched: bool,
}

impl Frame {
    /// The frame of a value that has no batch axis.
    pub fn shared(shape: &[Extent]) -> Self {
        Self { before: Vec::new(), outer: 1, inner: 1, after: shape.to_vec(), batched: false }
    }

    fn of(shape: &[Extent], outer: i64) -> Option<Self> {
        let axis = batch_axis(shape)?;
        let size = shape[axis].factor;
        let whole = outer > 0 && size % outer == 0;
        whole.then(|| Self {
            before: shape[..axis].to_vec(),
            outer,
            inner: size / outer,
            after: shape[axis + 1..].to_vec(),
            batched: true,
        })
    }

    /// The batch axis.
    pub fn axis(&self) -> usize {
        self.before.len()
    }

    /// Whether these are rows `[outer N inner, C]`.
    pub fn is_rows(&self) -> bool {
        self.before.is_empty() && self.after.len() == 1
    }

    /// `[outer, N, inner]` as axes, without those of size one.
    fn batch(&self, of_batch: Extent) -> Vec<Extent> {
        let one = |size: &i64| *size != 1;
        let outer = Some(self.outer).filter(one).map(Extent::fixed);
        outer.into_iter().chain([of_batch]).chain(Some(self.inner).filter(one).map(Extent::fixed)).collect()
    }

    /// The shape with N as an axis of its own.
    pub fn apart(&self) -> Vec<Extent> {
        [&self.before[..], &self.batch(Extent::N), &self.after].concat()
    }

    /// Rows `[outer N inner, C]` as `[outer, N, inner, C]`, without `outer` where it is one.
    pub fn rows_apart(&self, columns: Extent) -> Vec<Extent> {
        let outer = (self.outer != 1).then(|| Extent::fixed(self.outer));
        outer.into_iter().chain([Extent::N, Extent::fixed(self.inner), columns]).collect()
    }

    /// `value`, which has this frame, with N as an axis of its own.
    pub fn take_apart(&self, b: &mut Builder, value: &str) -> Result<String, PassError> {
        b.reshape(value, &self.apart())
    }

    /// Every example's copy `[N, ..shape]` of a tensor, so that it broadcasts to [`Self::apart`] as the tensor
    /// broadcasts to the value.
    pub fn place(&self, b: &mut Builder, copies: &str) -> Result<String, PassError> {
        let shape = b.ty(copies)?.shape[1..].to_vec();
        let (before, after) = self.divide(&shape)?;
        let repeats = before.iter().all(|extent| *extent == Extent::fixed(1));
        let mut value = copies.to_owned();
        if !repeats {
            // [N, before, after] becomes [before, N, after].
            value = b.reshape(&value, &[&[Extent::N], &before[..], &after].concat())?;
            let (front, rank) = (before.len() as i64, (1 + before.len() + after.len()) as i64);
            let perm: Vec<i64> = (1..=front).chain([0]).chain(front + 1..rank).collect();
            value = b.add(Node::new("Transpose", &[&value], &[]).with("perm", perm))?;
        }
        let middle = self.batch(Extent::N).into_iter().map(|e| if e.batch { e } else { Extent::fixed(1) });
        let lead = if repeats { Vec::new() } else { before };
        let target: Vec<Extent> = lead.into_iter().chain(middle).chain(after).collect();
        b.reshape(&value, &target)
    }

    /// A tensor of which all examples have one, so that it broadcasts to [`Self::apart`] as it does to the value.
    pub fn stretch(&self, b: &mut Builder, value: &str) -> Result<String, PassError> {
        let shape = b.ty(value)?.shape.clone();
        if !self.batched || shape.len() <= self.after.len() {
            return Ok(value.to_owned());
        }
        let (before, after) = self.divide(&shape)?;
        let middle = vec![Extent::fixed(1); self.batch(Extent::N).len()];
        b.reshape(value, &[before, middle, after].concat())
    }

    /// What of a shape that broadcasts to the value lies before the batch axis and what behind it.
    fn divide(&self, shape: &[Extent]) -> Result<(Vec<Extent>, Vec<Extent>), PassError> {
        let rank = self.before.len() + usize::from(self.batched) + self.after.len();
        let missing = rank.checked_sub(shape.len());
        let missing = missing.ok_or_else(|| PassError::Input(format!("{shape:?} does not broadcast")))?;
        let full = [&vec![Extent::fixed(1); missing], shape].concat();
        if !self.batched {
            return Ok((Vec::new(), full));
        }
        let axis = self.axis();
        if full[axis] != Extent::fixed(1) {
            return Err(PassError::Input(format!("{shape:?} has an example on each of its rows")));
        }
        Ok((full[..axis].to_vec(), full[axis + 1..].to_vec()))
    }
}

/// The one axis whose size depends on the batch.
fn batch_axis(shape: &[Extent]) -> Option<usize> {
    let mut axes = (0..shape.len()).filter(|axis| shape[*axis].batch);
    axes.next().filter(|_| axes.next().is_none())
}

/// Whether a size of `shape` depends on the batch.
pub(super) fn is_batched(shape: &[Extent]) -> bool {
    shape.iter().any(|extent| extent.batch)
}

/// Where the examples lie in the values of a graph, as it is built.
#[derive(Default)]
pub(super) struct Frames {
    /// [`Frame::outer`] of each batched value of which it is known.
    outer: HashMap<String, i64>,
}

impl Frames {
    /// The frame of a batched value, where it is known.
    pub fn get(&self, b: &Builder, value: &str) -> Option<Frame> {
        Frame::of(&b.types().get(value)?.shape, *self.outer.get(value)?)
    }

    /// The batch is the first axis of an input.
    pub fn input(&mut self, name: &str) {
        self.outer.insert(name.to_owned(), 1);
    }

    /// The examples lie in `other` as they do in `value`.
    pub fn same(&mut self, value: &str, other: &str) {
        if let Some(outer) = self.outer.get(value).copied() {
            self.outer.insert(other.to_owned(), outer);
        }
    }

    /// Follows the examples through a node. What they cannot be followed through has no frame.
    pub fn follow(&mut self, b: &Builder, node: &Node) {
        let frames: Vec<(&str, Option<Frame>)> = node
            .inputs
            .iter()
            .filter(|name| b.types().get(name).is_some_and(|ty| is_batched(&ty.shape)))
            .map(|name| (name.as_str(), self.get(b, name)))
            .collect();
        if mixes(b, node, &frames) {
            return;
        }
        for output in node.outputs.iter().filter(|name| !name.is_empty()) {
            let Some(shape) = b.types().get(output).map(|ty| ty.shape.clone()) else { continue };
            let Some(axis) = batch_axis(&shape) else { continue };
            let outer = match (node.op.as_str(), &frames[..]) {
                (_, []) => (shape[axis].factor == 1).then_some(1),
                // What lies in front of an example in memory stays there.
                ("Reshape" | "Flatten" | "Squeeze" | "Unsqueeze", [(_, Some(frame)), ..]) => {
                    let product = |extents: &[Extent]| {
                        extents.iter().try_fold(1, |product, e| Some(product * e.known()?))
                    };
                    let (held, holds) = (product(&frame.before), product(&shape[..axis]));
                    held.zip(holds).and_then(|(held, holds): (i64, i64)| {
                        let all = held * frame.outer;
                        (holds > 0 && all % holds == 0).then(|| all / holds)
                    })
                }
                (_, [(_, first), rest @ ..]) => {
                    let outer = first.as_ref().map(|frame| frame.outer);
                    outer.filter(|outer| {
                        rest.iter().all(|(_, other)| other.as_ref().is_some_and(|f| f.outer == *outer))
                    })
                }
            };
            if let Some(outer) = outer.filter(|outer| Frame::of(&shape, *outer).is_some()) {
                self.outer.insert(output.clone(), outer);
            }
        }
    }
}

/// Whether an operator that works along an axis works along that of the batch.
fn mixes(b: &Builder, node: &Node, frames: &[(&str, Option<Frame>)]) -> bool {
    let Some((first, Some(frame))) = frames.first() else { return false };
    let rank = b.types().get(first).map_or(0, |ty| ty.rank()) as i64;
    let axis = |default: i64| {
        let axis = node.int("axis").unwrap_or(default);
        if axis < 0 { axis + rank } else { axis }
    };
    let batch = frame.axis() as i64;
    match node.op.as_str() {
        "Softmax" | "LogSoftmax" => axis(-1) == batch,
        "LayerNormalization" => axis(-1) <= batch,
        "Concat" | "Split" => axis(0) == batch,
        "CumSum" => true,
        _ => false,
    }
}
