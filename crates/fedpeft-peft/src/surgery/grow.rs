//! More tokens than the graph was prepared for: rewriting nodes for longer sequences.
//!
//! A prepared graph holds the number of tokens T in many places: targets of `Reshape`, masks. Where values
//! grow by some tokens, every node that they reach is rewritten: it is known of each axis whether T is a
//! factor of it and where among its factors, and the rule of each operator says where T goes.

use std::collections::{BTreeMap, HashMap};

use fedpeft_interp::{Interpreter, Value};
use fedpeft_onnx::{DType, Graph, Model, Node, Tensor};
use fedpeft_passes::{Builder, Extent, PassError, Types};

use super::PeftError;

/// An axis of extent `outer * T * inner`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tokens {
    pub outer: (i64, bool),
    pub inner: i64,
}

impl Tokens {
    /// An axis of T alone.
    pub const WHOLE: Self = Self { outer: (1, false), inner: 1 };

    fn outer(self) -> Extent {
        Extent { factor: self.outer.0, batch: self.outer.1 }
    }
}

/// For each axis whether, and how, T is a factor of it.
pub(super) type Axes = Vec<Option<Tokens>>;

/// Values that have grown, and how.
pub(super) struct Growth<'a> {
    /// The graph as it was, and the types in it.
    graph: &'a Graph,
    types: &'a Types,
    method: &'static str,
    /// T.
    tokens: i64,
    added: i64,
    /// The longer value for each that has grown.
    grown: HashMap<String, (String, Axes)>,
    masks: BTreeMap<(String, Axes, bool), String>,
}

type Result<T> = std::result::Result<T, PeftError>;

impl<'a> Growth<'a> {
    pub fn new(graph: &'a Graph, types: &'a Types, method: &'static str, tokens: i64, added: i64) -> Self {
        Self { graph, types, method, tokens, added, grown: HashMap::new(), masks: BTreeMap::new() }
    }

    /// From here on readers of `old` read `new`, which is longer along `axes`.
    pub fn begin(&mut self, old: &str, new: String, axes: Axes) {
        self.grown.insert(old.to_owned(), (new, axes));
    }

    /// Ends all growth and returns the longer value of `old`.
    pub fn end(&mut self, old: &str) -> Option<String> {
        std::mem::take(&mut self.grown).remove(old).map(|(new, _)| new)
    }

    fn shape(&self, name: &str) -> Result<&'a [Extent]> {
        match self.types.get(name) {
            Some(ty) => Ok(&ty.shape),
            None => Err(PassError::Input(format!("the value {name:?} does not exist")).into()),
        }
    }

    fn axes(&self, name: &str) -> Option<&Axes> {
        self.grown.get(name).map(|(_, axes)| axes)
    }

    fn unsupported(&self, node: &Node, reason: &str) -> PeftError {
        let method = self.method;
        PeftError::misfit(
            method,
            format!("{} cannot take more tokens: {reason}; choose another method", node.label()),
        )
    }

    /// The extents of `shape` after growth along `axes`.
    fn longer(&self, shape: &[Extent], axes: &Axes) -> Option<Vec<Extent>> {
        let length = Extent::fixed(self.tokens + self.added);
        let extent = |(extent, tokens): (&Extent, &Option<Tokens>)| match tokens {
            None => Some(*extent),
            Some(tokens) => tokens.outer().times(length)?.times(Extent::fixed(tokens.inner)),
        };
        shape.iter().zip(axes).map(extent).collect()
    }

    /// Pushes `node`, rewritten if it reads what has grown.
    pub fn push(&mut self, b: &mut Builder, mut node: Node) -> Result<()> {
        // Shapes of what enters are read to lay out masks, which grow by rules of their own.
        let measures = node.is("Shape") && b.ty(&node.inputs[0]).is_ok();
        if measures || !node.inputs.iter().any(|input| self.grown.contains_key(input)) {
            return Ok(b.push(node)?);
        }
        let axes = self.rewrite(b, &mut node)?;
        for input in &mut node.inputs {
            if let Some((new, _)) = self.grown.get(input) {
                input.clone_from(new);
            }
        }
        if axes.iter().any(Option::is_some) {
            for output in node.outputs.iter_mut().filter(|output| !output.is_empty()) {
                let longer = b.fresh("longer");
                self.grown.insert(std::mem::replace(output, longer.clone()), (longer, axes.clone()));
            }
        }
        Ok(b.push(node)?)
    }

    /// Changes what must change in `node` beside its inputs' names; returns the axes of its outputs.
    fn rewrite(&mut self, b: &mut Builder, node: &mut Node) -> Result<Axes> {
        let first = node.inputs[0].clone();
        let own = self.axes(&first).cloned();
        let output = self.shape(&node.outputs[0])?;
        let position = |axis: i64, rank: usize| if axis < 0 { axis + rank as i64 } else { axis } as usize;
        match (node.op.as_str(), own) {
            _ if !node.domain.is_empty() => Err(self.unsupported(node, "its operator is not a standard one")),
            ("Add" | "Sub" | "Mul" | "Div" | "Sum" | "Max" | "Min" | "Pow" | "Where", _) => {
                self.broadcast(b, node)
            }
            (
                "Identity" | "Cast" | "Dropout" | "Gelu" | "Relu" | "Erf" | "Tanh" | "Sigmoid" | "Exp"
                | "Sqrt" | "Neg" | "Reciprocal" | "Softplus" | "Clip" | "Softmax" | "IsNaN",
                Some(axes),
            ) => Ok(axes),
            ("LayerNormalization", Some(axes)) if axes.last() == Some(&None) => Ok(axes),
            ("MatMul", _) => self.matmul(node),
            ("Gemm", Some(axes)) if axes[1].is_none() && node.int("transA").unwrap_or(0) == 0 => {
                match node.input(2).and_then(|name| self.axes(name)) {
                    Some(addend) if *addend != axes => {
                        Err(self.unsupported(node, "its addend grows otherwise"))
                    }
                    _ => Ok(axes),
                }
            }
            ("Transpose", Some(axes)) => {
                let rank = axes.len();
                let perm = node.ints("perm").map_or_else(|| (0..rank as i64).rev().collect(), <[_]>::to_vec);
                Ok(perm.iter().map(|axis| axes[position(*axis, rank)]).collect())
            }
            ("Reshape" | "Flatten" | "Squeeze" | "Unsqueeze", Some(axes)) => {
                let placed = self.place(self.shape(&first)?, &axes, output);
                let placed =
                    placed.ok_or_else(|| self.unsupported(node, "its tokens cannot be told apart"))?;
                if node.is("Reshape") {
                    let target = self.longer(output, &placed).and_then(|shape| target(&shape));
                    let target =
                        target.ok_or_else(|| self.unsupported(node, "two of its sizes are not known"))?;
                    node.inputs[1] = b.ints(&target);
                }
                Ok(placed)
            }
            ("Expand", Some(axes)) => {
                let mut placed = vec![None; output.len() - axes.len()];
                placed.extend(axes);
                let shape = self.longer(output, &placed).unwrap_or_default();
                node.inputs[1] = b.extents(&shape)?;
                Ok(placed)
            }
            ("Split" | "Slice" | "Gather", Some(axes)) => self.part(node, axes, output.len()),
            ("Concat", _) => {
                let rank = output.len();
                let along = position(node.int("axis").unwrap_or(0), rank);
                let all: Vec<Axes> = node.inputs.iter().filter_map(|name| self.axes(name).cloned()).collect();
                let axes = all.first().cloned().unwrap_or_default();
                let alike = all.len() == node.inputs.len() && all.iter().all(|other| *other == axes);
                if alike && axes[along].is_none() {
                    Ok(axes)
                } else {
                    Err(self.unsupported(node, "its parts grow unlike"))
                }
            }
            ("ReduceMean" | "ReduceSum", Some(axes)) => {
                let reduced = node.input(1).and_then(|name| self.types.ints(name)).unwrap_or_default();
                let reduced: Vec<usize> = reduced
                    .iter()
                    .filter_map(|axis| axis.known())
                    .map(|axis| position(axis, axes.len()))
                    .collect();
                let kept = node.int("keepdims").unwrap_or(1) != 0;
                if reduced.is_empty() || reduced.iter().any(|axis| axes[*axis].is_some()) {
                    return Err(self.unsupported(node, "it sums over tokens"));
                }
                Ok(axes
                    .into_iter()
                    .enumerate()
                    .filter(|(i, _)| kept || !reduced.contains(i))
                    .map(|(_, a)| a)
                    .collect())
            }
            _ => Err(self.unsupported(node, "no rule says how")),
        }
    }

    /// Operators value by value. Operands that have not grown but have T entries are masks.
    fn broadcast(&mut self, b: &mut Builder, node: &mut Node) -> Result<Axes> {
        let rank = self.shape(&node.outputs[0])?.len();
        let mut axes: Axes = vec![None; rank];
        for input in &node.inputs {
            if let Some(own) = self.axes(input) {
                for (axis, tokens) in axes[rank - own.len()..].iter_mut().zip(own) {
                    *axis = axis.or(*tokens);
                }
            }
        }
        let one = Extent::fixed(1);
        for (index, input) in node.inputs.clone().iter().enumerate() {
            let shape = self.shape(input)?.to_vec();
            let wanted: Axes = axes[rank - shape.len()..]
                .iter()
                .zip(&shape)
                .map(|(tokens, extent)| tokens.filter(|_| *extent != one))
                .collect();
            let own = self.axes(input).cloned().unwrap_or_else(|| vec![None; shape.len()]);
            if own == wanted {
                continue;
            }
            let additive = node.is("Add");
            let selects = node.is("Where") && index == 0;
            if own.iter().any(Option::is_some) || !(additive || selects) {
                return Err(self.unsupported(node, "an operand holds a value for every token"));
            }
            // What a mask says of the new tokens: that they are seen.
            let seen = additive || self.axes(&node.inputs[1]).is_some();
            node.inputs[index] = self.mask(b, node, input, wanted, seen)?;
        }
        Ok(axes)
    }

    /// `mask` for more tokens, in front of the others, which all may see; `seen` is how a selecting mask says
    /// so. Where rows are tokens too, the new ones see what the first one sees or, if the mask is causal, one
    /// another causally.
    fn mask(&mut self, b: &mut Builder, node: &Node, mask: &str, axes: Axes, seen: bool) -> Result<String> {
        let key = (mask.to_owned(), axes, seen);
        if let Some(known) = self.masks.get(&key) {
            return Ok(known.clone());
        }
        let (axes, rank, p) = (&key.1, key.1.len(), self.added);
        let plain = |tokens: &Option<Tokens>| tokens.is_none_or(|tokens| tokens == Tokens::WHOLE);
        let leading = rank.saturating_sub(2);
        if !axes.iter().all(plain) || axes[..leading].iter().any(Option::is_some) {
            return Err(self.unsupported(node, "its mask is laid out in an unknown way"));
        }
        let dtype = b.ty(mask)?.dtype;
        let constant = |allowed: bool| match dtype {
            DType::Bool => Tensor::bool([], &[allowed == seen]),
            _ => Tensor::scalar(if allowed { 0.0 } else { f32::MIN }),
        };
        let pad = |b: &mut Builder, value: &str, axis: usize| {
            let mut pads = vec![0i64; 2 * rank];
            pads[axis] = p;
            let (pads, fill) = (b.ints(&pads), b.constant(constant(true)));
            b.op("Pad", &[value, &pads, &fill])
        };
        let columns = axes[rank - 1].is_some();
        let rows = rank >= 2 && axes[rank - 2].is_some();
        let mut longer = mask.to_owned();
        if columns {
            longer = pad(b, &longer, rank - 1)?;
        }
        if rows && columns && self.is_causal(mask, dtype, seen)? {
            let width = (self.tokens + p) as usize;
            let allowed = |i: usize| i % width <= i / width;
            let count = p as usize * width;
            let block = match dtype {
                DType::Bool => Tensor::bool(
                    [p as usize, width],
                    &(0..count).map(|i| allowed(i) == seen).collect::<Vec<_>>(),
                ),
                _ => {
                    let value = |i: usize| if allowed(i) { 0.0 } else { f32::MIN };
                    Tensor::f32([p as usize, width], &(0..count).map(value).collect::<Vec<_>>())
                }
            };
            let mut shape = self.shape(mask)?[..leading].to_vec();
            shape.extend([Extent::fixed(p), Extent::from(width)]);
            let (block, shape) = (b.constant(block), b.extents(&shape)?);
            let block = b.op("Expand", &[&block, &shape])?;
            longer = b.add(Node::new("Concat", &[&block, &longer], &[]).with("axis", leading as i64))?;
        } else if rows {
            // They see what the first token sees: padding is hidden from all alike.
            let (starts, ends, along) = (b.ints(&[0]), b.ints(&[1]), b.ints(&[leading as i64]));
            let row = b.op("Slice", &[&longer, &starts, &ends, &along])?;
            let mut shape = b.ty(&row)?.shape.clone();
            shape[leading] = Extent::fixed(p);
            let shape = b.extents(&shape)?;
            let block = b.op("Expand", &[&row, &shape])?;
            longer = b.add(Node::new("Concat", &[&block, &longer], &[]).with("axis", leading as i64))?;
        }
        self.masks.insert(key, longer.clone());
        Ok(longer)
    }

    /// Whether the first token may not see the last one though the last may see the first, when nothing is
    /// padding.
    fn is_causal(&self, mask: &str, dtype: DType, seen: bool) -> Result<bool> {
        let mut inputs = HashMap::new();
        for input in &self.graph.inputs {
            let shape: Vec<usize> =
                self.shape(&input.name)?.iter().map(|extent| extent.factor.max(0) as usize).collect();
            let ones = match input.dtype {
                DType::F32 => Value::Float(ndarray::ArrayD::ones(shape)),
                _ => Value::Int(ndarray::ArrayD::ones(shape)),
            };
            inputs.insert(input.name.clone(), ones);
        }
        let mut part = self.graph.clone();
        fedpeft_onnx::surgery::cut(&mut part, mask)
            .or_else(|_| {
                // An initializer is produced by nothing.
                part.nodes.clear();
                part.initializers.retain(|name, _| name == mask);
                Ok::<_, fedpeft_onnx::OnnxError>(())
            })
            .map_err(PassError::from)?;
        let model = Model::new(part);
        let values = Interpreter::new(&model).and_then(|interpreter| interpreter.values(&inputs, &[mask]));
        let value = values.map_err(PassError::from)?.pop();
        let allowed: Option<Vec<bool>> = match (value, dtype) {
            (Some(value), DType::Bool) => {
                Some(value.as_bool().map_err(PassError::from)?.iter().map(|v| *v == seen).collect())
            }
            (Some(value), _) => {
                Some(value.as_float().map_err(PassError::from)?.iter().map(|v| *v > -1e3).collect())
            }
            (None, _) => None,
        };
        let tokens = self.tokens as usize;
        let Some(allowed) = allowed.filter(|all| all.len() >= tokens * tokens) else { return Ok(false) };
        Ok(tokens > 1 && !allowed[tokens - 1] && allowed[(tokens - 1) * tokens])
    }

    /// Products over the last two axes.
    fn matmul(&self, node: &Node) -> Result<Axes> {
        let side = |index: usize| -> Result<Axes> {
            let name = &node.inputs[index];
            Ok(self.axes(name).cloned().unwrap_or(vec![None; self.shape(name)?.len()]))
        };
        let (a, b) = (side(0)?, side(1)?);
        let ([.., a_row, a_inner], [.., b_inner, b_column]) = (&a[..], &b[..]) else {
            return Err(self.unsupported(node, "it multiplies vectors"));
        };
        if a_inner != b_inner {
            return Err(self.unsupported(node, "it sums over tokens"));
        }
        let rank = a.len().max(b.len());
        let at = |axes: &Axes, i: usize| (i + axes.len()).checked_sub(rank).and_then(|i| axes[i]);
        let mut axes: Axes = (0..rank - 2).map(|i| at(&a, i).or(at(&b, i))).collect();
        axes.extend([*a_row, *b_column]);
        Ok(axes)
    }

    /// Operators that take some of one axis, which must not be one of tokens.
    fn part(&self, node: &Node, axes: Axes, output_rank: usize) -> Result<Axes> {
        let rank = axes.len();
        let known = |index: usize| {
            let ints = node.input(index).and_then(|name| self.types.ints(name));
            ints.map(|ints| ints.iter().filter_map(|e| e.known()).collect::<Vec<_>>())
        };
        let touched: Vec<i64> = match node.op.as_str() {
            "Slice" => known(3).unwrap_or_else(|| (0..rank as i64).collect()),
            _ => vec![node.int("axis").unwrap_or(0)],
        };
        let touched: Vec<usize> =
            touched.iter().map(|axis| if *axis < 0 { axis + rank as i64 } else { *axis } as usize).collect();
        if touched.iter().any(|axis| axes.get(*axis).copied().flatten().is_some()) {
            return Err(self.unsupported(node, "it takes some of the tokens"));
        }
        if node.is("Gather") {
            let (at, indices) = (touched[0], output_rank + 1 - rank);
            let mut placed = axes[..at].to_vec();
            placed.extend(vec![None; indices]);
            placed.extend(&axes[at + 1..]);
            return Ok(placed);
        }
        Ok(axes)
    }

    /// Where T goes when a value of shape `from` is laid out as `to`: both are written as factors, and those
    /// of the one are consumed in order to make up the other.
    fn place(&self, from: &[Extent], axes: &Axes, to: &[Extent]) -> Option<Axes> {
        let mut factors: Vec<(Extent, bool)> = Vec::new();
        for (extent, tokens) in from.iter().zip(axes) {
            match tokens {
                None => factors.push((*extent, false)),
                Some(tokens) => factors.extend([
                    (tokens.outer(), false),
                    (Extent::fixed(self.tokens), true),
                    (Extent::fixed(tokens.inner), false),
                ]),
            }
        }
        let one = Extent::fixed(1);
        let mut factors: std::collections::VecDeque<_> =
            factors.into_iter().filter(|(extent, is_tokens)| *is_tokens || *extent != one).collect();
        let mut placed = Vec::new();
        for extent in to {
            let (mut made, mut tokens): (Extent, Option<Tokens>) = (one, None);
            while made != *extent {
                let (factor, is_tokens) = factors.pop_front()?;
                let missing = extent.divided_by(made)?;
                if let Some(rest) = missing.divided_by(factor) {
                    match (&mut tokens, is_tokens) {
                        (None, true) => tokens = Some(Tokens { outer: (made.factor, made.batch), inner: 1 }),
                        (Some(tokens), false) => tokens.inner *= factor.known()?,
                        (Some(_), true) => return None,
                        (None, false) => {}
                    }
                    made = extent.divided_by(rest)?;
                } else {
                    let rest = factor.divided_by(missing).filter(|_| !is_tokens)?;
                    factors.push_front((rest, false));
                    factors.push_front((missing, false));
                }
            }
            placed.push(tokens);
        }
        factors.is_empty().then_some(placed)
    }
}

/// A shape as `Reshape` takes it.
fn target(shape: &[Extent]) -> Option<Vec<i64>> {
    let unknown = shape.iter().filter(|extent| extent.batch).count();
    (unknown <= 1).then(|| shape.iter().map(|extent| extent.known().unwrap_or(-1)).collect())
}
