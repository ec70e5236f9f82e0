//! Shapes of all values, and the values of shape tensors.

use std::collections::HashMap;

use fedpeft_onnx::{Attribute, DType, Dim, Graph, Node, Tensor};

use crate::{
    Extent, PassError, Type,
    extent::{broadcast, reshape_target},
};

/// What is known of every value of a graph.
#[derive(Debug, Clone, Default)]
pub struct Types {
    types: HashMap<String, Type>,
    ints: HashMap<String, Vec<Extent>>,
}

/// What inference tells of one output of a node.
#[derive(Debug, Clone)]
pub(crate) struct Fact {
    pub ty: Type,
    /// Elements, row-major, of an integer or bool tensor whose elements are known up to the batch.
    pub ints: Option<Vec<Extent>>,
}

/// Integer tensors longer than this are data. Shapes are short; the sizes of a `Split` are as many as its outputs.
const MAX_INTS: usize = 4096;

impl Types {
    /// Type of `name`.
    pub fn get(&self, name: &str) -> Option<&Type> {
        self.types.get(name)
    }

    /// Elements of the integer tensor `name`, where they are known up to the batch.
    pub fn ints(&self, name: &str) -> Option<&[Extent]> {
        self.ints.get(name).map(Vec::as_slice)
    }

    pub(crate) fn set(&mut self, name: &str, fact: Fact) {
        if let Some(ints) = fact.ints {
            self.ints.insert(name.to_owned(), ints);
        }
        self.types.insert(name.to_owned(), fact.ty);
    }

    pub(crate) fn set_initializer(&mut self, name: &str, tensor: &Tensor) {
        self.set(name, tensor_fact(tensor));
    }
}

fn tensor_fact(tensor: &Tensor) -> Fact {
    let shape = tensor.shape.iter().map(|dim| Extent::from(*dim)).collect();
    let small = tensor.len() <= MAX_INTS && !tensor.dtype.is_float();
    let ints = small.then(|| tensor.as_i64()).flatten();
    Fact {
        ty: Type::new(tensor.dtype, shape),
        ints: ints.map(|v| v.into_iter().map(Extent::fixed).collect()),
    }
}

/// Types of the inputs and initializers of `graph`. The first dimension of an input may be symbolic: it is the
/// batch.
pub(crate) fn seed_types(graph: &Graph) -> Result<Types, PassError> {
    let mut types = Types::default();
    for (name, tensor) in &graph.initializers {
        types.set_initializer(name, tensor);
    }
    for input in &graph.inputs {
        let dims = input
            .shape
            .as_deref()
            .ok_or_else(|| PassError::Input(format!("input {:?} has no shape", input.name)))?;
        let extent = |(i, dim): (usize, &Dim)| match dim {
            Dim::Fixed(size) => Ok(Extent::from(*size)),
            Dim::Symbol(_) if i == 0 => Ok(Extent::N),
            Dim::Symbol(symbol) => Err(PassError::Input(format!(
                "dimension {i} ({symbol}) of input {:?} is not fixed: only the first, the batch, may vary",
                input.name
            ))),
        };
        let shape = dims.iter().enumerate().map(extent).collect::<Result<_, _>>()?;
        types.set(&input.name, Fact { ty: Type::new(input.dtype, shape), ints: None });
    }
    Ok(types)
}

/// Types of every value of `graph`, whose nodes are in order.
pub fn infer_graph(graph: &Graph) -> Result<Types, PassError> {
    let mut types = seed_types(graph)?;
    for node in &graph.nodes {
        let facts = infer_node(node, &types)?;
        for (name, fact) in node.outputs.iter().zip(facts).filter(|(name, _)| !name.is_empty()) {
            types.set(name, fact);
        }
    }
    Ok(types)
}

struct Context<'a> {
    node: &'a Node,
    types: &'a Types,
}

impl<'a> Context<'a> {
    fn error(&self, reason: impl Into<String>) -> PassError {
        PassError::node(self.node, reason)
    }

    fn ty(&self, index: usize) -> Result<&'a Type, PassError> {
        let name = self.node.input(index).ok_or_else(|| self.error(format!("input {index} is missing")))?;
        self.types.get(name).ok_or_else(|| self.error(format!("the type of input {name:?} is not known")))
    }

    fn shape(&self, index: usize) -> Result<&'a [Extent], PassError> {
        Ok(&self.ty(index)?.shape)
    }

    fn maybe_ints(&self, index: usize) -> Option<&'a [Extent]> {
        self.types.ints(self.node.input(index)?)
    }

    fn ints(&self, index: usize) -> Result<&'a [Extent], PassError> {
        self.maybe_ints(index)
            .ok_or_else(|| self.error(format!("input {index} must be known when the graph is built")))
    }

    fn known_ints(&self, index: usize) -> Result<Vec<i64>, PassError> {
        let known = self.ints(index)?.iter().map(|extent| extent.known()).collect::<Option<_>>();
        known.ok_or_else(|| self.error(format!("input {index} must not depend on the batch")))
    }

    /// An axis counted from the front.
    fn axis(&self, axis: i64, rank: usize) -> Result<usize, PassError> {
        let counted = if axis < 0 { axis + rank as i64 } else { axis };
        usize::try_from(counted)
            .ok()
            .filter(|a| *a < rank)
            .ok_or_else(|| self.error(format!("axis {axis} does not exist in a tensor of rank {rank}")))
    }

    /// Axes of a reduction or squeeze: input 1, or the older attribute.
    fn axes(&self, rank: usize) -> Result<Option<Vec<usize>>, PassError> {
        let given = match (self.node.input(1), self.node.ints("axes")) {
            (Some(_), _) => Some(self.known_ints(1)?),
            (None, Some(axes)) => Some(axes.to_vec()),
            (None, None) => None,
        };
        given.map(|axes| axes.into_iter().map(|axis| self.axis(axis, rank)).collect()).transpose()
    }

    fn broadcast(&self, count: usize) -> Result<Vec<Extent>, PassError> {
        (1..count).try_fold(self.shape(0)?.to_vec(), |shape, i| {
            broadcast(&shape, self.shape(i)?).ok_or_else(|| {
                self.error(format!(
                    "shapes {shape:?} and {:?} cannot be broadcast together",
                    self.types.get(&self.node.inputs[i])
                ))
            })
        })
    }

    /// Elementwise integer arithmetic on shape tensors.
    fn fold_ints(
        &self,
        shape: &[Extent],
        f: impl Fn(Extent, Extent) -> Option<Extent>,
    ) -> Option<Vec<Extent>> {
        let (a, b) = (self.maybe_ints(0)?, self.maybe_ints(1)?);
        let len =
            shape.iter().try_fold(1usize, |product, e| Some(product * usize::try_from(e.known()?).ok()?))?;
        let pick =
            |ints: &[Extent], i: usize| if ints.len() == 1 { Some(ints[0]) } else { ints.get(i).copied() };
        let same = |n: usize| n == 1 || n == len;
        (same(a.len()) && same(b.len())).then_some(())?;
        (0..len).map(|i| f(pick(a, i)?, pick(b, i)?)).collect()
    }
}

/// Facts of the outputs of `node`, from those of its inputs.
pub(crate) fn infer_node(node: &Node, types: &Types) -> Result<Vec<Fact>, PassError> {
    let cx = Context { node, types };
    if node.domain == DOMAIN {
        return fedpeft_domain::infer(&cx);
    }
    if !node.domain.is_empty() {
        return Err(cx.error(format!("operators of domain {:?} are not supported", node.domain)));
    }
    let fact = |dtype, shape| Fact { ty: Type::new(dtype, shape), ints: None };
    let one = |dtype, shape| Ok(vec![fact(dtype, shape)]);
    let like_first = || Ok(vec![Fact { ty: cx.ty(0)?.clone(), ints: cx.maybe_ints(0).map(<[_]>::to_vec) }]);
    match node.op.as_str() {
        "Identity" | "Dropout" => like_first(),
        "Cast" => {
            let dtype = node.int("to").and_then(|code| DType::from_code(code as i32));
            let dtype = dtype.ok_or_else(|| cx.error("attribute \"to\" names no supported type"))?;
            let ints = (!dtype.is_float()).then(|| cx.maybe_ints(0)).flatten().map(<[_]>::to_vec);
            Ok(vec![Fact { ty: Type::new(dtype, cx.shape(0)?.to_vec()), ints }])
        }
        "Constant" => match node.attributes.iter().next() {
            Some((_, Attribute::Tensor(tensor))) => Ok(vec![tensor_fact(tensor)]),
            _ => Err(cx.error("only constant tensors are supported")),
        },
        "Shape" => {
            let shape = cx.shape(0)?;
            let clamp = |at: i64| {
                let at = if at < 0 { at + shape.len() as i64 } else { at };
                at.clamp(0, shape.len() as i64) as usize
            };
            let start = clamp(node.int("start").unwrap_or(0));
            let end = clamp(node.int("end").unwrap_or(shape.len() as i64)).max(start);
            let ints = shape[start..end].to_vec();
            Ok(vec![Fact { ty: Type::new(DType::I64, vec![Extent::from(ints.len())]), ints: Some(ints) }])
        }
        "Size" => {
            let product = cx.shape(0)?.iter().try_fold(Extent::fixed(1), |p, e| p.times(*e));
            Ok(vec![Fact { ty: Type::new(DType::I64, vec![]), ints: product.map(|size| vec![size]) }])
        }
        "ConstantOfShape" => {
            let shape = cx.ints(0)?.to_vec();
            let value = match node.attributes.get("value") {
                Some(Attribute::Tensor(tensor)) => tensor.clone(),
                _ => Tensor::scalar(0.0),
            };
            let len = shape.iter().try_fold(1i64, |product, e| product.checked_mul(e.known()?));
            let element = value.as_i64().and_then(|v| v.first().copied());
            let ints = match (len, element) {
                (Some(len), Some(v)) if (0..=MAX_INTS as i64).contains(&len) => {
                    Some(vec![Extent::fixed(v); len as usize])
                }
                _ => None,
            };
            Ok(vec![Fact { ty: Type::new(value.dtype, shape), ints }])
        }
        "Add" | "Sub" | "Mul" | "Div" | "Min" | "Max" | "Mod" => {
            let shape = cx.broadcast(node.inputs.len())?;
            let negative = |e: Extent| Extent { factor: -e.factor, ..e };
            let ints = match node.op.as_str() {
                _ if cx.ty(0)?.dtype.is_float() || node.inputs.len() != 2 => None,
                "Add" => cx.fold_ints(&shape, Extent::plus),
                "Sub" => cx.fold_ints(&shape, |a, b| a.plus(negative(b))),
                "Mul" => cx.fold_ints(&shape, Extent::times),
                // Exact where it divides; else C division, which ONNX prescribes, on plain numbers.
                "Div" => cx.fold_ints(&shape, |a, b| {
                    a.divided_by(b).or_else(|| Some(Extent::fixed(a.known()?.checked_div(b.known()?)?)))
                }),
                "Min" => cx.fold_ints(&shape, |a, b| Some(Extent::fixed(a.known()?.min(b.known()?)))),
                "Max" => cx.fold_ints(&shape, |a, b| Some(Extent::fixed(a.known()?.max(b.known()?)))),
                _ => None,
            };
            Ok(vec![Fact { ty: Type::new(cx.ty(0)?.dtype, shape), ints }])
        }
        "Pow" => one(cx.ty(0)?.dtype, cx.broadcast(2)?),
        "Sum" => one(cx.ty(0)?.dtype, cx.broadcast(node.inputs.len())?),
        "Equal" => {
            let shape = cx.broadcast(2)?;
            // N is at least 1: it equals no number below that.
            let equal = |a: Extent, b: Extent| match (a.batch, b.batch) {
                (x, y) if x == y => Some(a.factor == b.factor),
                (true, false) if b.factor < a.factor => Some(false),
                (false, true) if a.factor < b.factor => Some(false),
                _ => None,
            };
            let ints = cx.fold_ints(&shape, |a, b| equal(a, b).map(|e| Extent::fixed(e.into())));
            Ok(vec![Fact { ty: Type::new(DType::Bool, shape), ints }])
        }
        "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" | "And" | "Or" | "Xor" => {
            one(DType::Bool, cx.broadcast(2)?)
        }
        "Not" | "IsNaN" => one(DType::Bool, cx.shape(0)?.to_vec()),
        "Where" => {
            let shape = cx.broadcast(3)?;
            let ints = match (cx.maybe_ints(0), cx.maybe_ints(1), cx.maybe_ints(2)) {
                (Some(c), Some(a), Some(b)) if c.len() == a.len() && a.len() == b.len() => {
                    let choose = |(i, c): (usize, &Extent)| if c.factor != 0 { a[i] } else { b[i] };
                    Some(c.iter().enumerate().map(choose).collect())
                }
                _ => None,
            };
            Ok(vec![Fact { ty: Type::new(cx.ty(1)?.dtype, shape), ints }])
        }
        "Sqrt" | "Neg" | "Abs" | "Sign" | "Reciprocal" | "Exp" | "Log" | "Erf" | "Tanh" | "Sigmoid"
        | "Relu" | "Gelu" | "Floor" | "Ceil" | "Softmax" | "LogSoftmax" | "Clip" | "Sin" | "Cos"
        | "Softplus" | "Round" | "Trilu" | "CumSum" => one(cx.ty(0)?.dtype, cx.shape(0)?.to_vec()),
        "Reshape" => {
            let shape = reshape(&cx)?;
            Ok(vec![Fact {
                ty: Type::new(cx.ty(0)?.dtype, shape),
                ints: cx.maybe_ints(0).map(<[_]>::to_vec),
            }])
        }
        "Flatten" => {
            let shape = cx.shape(0)?;
            let axis = node.int("axis").unwrap_or(1);
            let axis = if axis == shape.len() as i64 { shape.len() } else { cx.axis(axis, shape.len())? };
            let product = |extents: &[Extent]| extents.iter().try_fold(Extent::fixed(1), |p, e| p.times(*e));
            match (product(&shape[..axis]), product(&shape[axis..])) {
                (Some(rows), Some(columns)) => one(cx.ty(0)?.dtype, vec![rows, columns]),
                _ => Err(cx.error("the flattened shape is quadratic in the batch")),
            }
        }
        "Transpose" => {
            let shape = cx.shape(0)?;
            let permuted = match node.ints("perm") {
                Some(perm) if perm.len() != shape.len() => return Err(cx.error("perm does not fit the rank")),
                Some(perm) => {
                    perm.iter()
                        .map(|p| Ok(shape[cx.axis(*p, shape.len())?]))
                        .collect::<Result<_, PassError>>()?
                }
                None => shape.iter().rev().copied().collect(),
            };
            one(cx.ty(0)?.dtype, permuted)
        }
        "Unsqueeze" => {
            let shape = cx.shape(0)?;
            let rank = shape.len() + cx.ints(1)?.len();
            let axes = cx.axes(rank)?.unwrap_or_default();
            let mut rest = shape.iter();
            let out = (0..rank)
                .map(|i| if axes.contains(&i) { Some(Extent::fixed(1)) } else { rest.next().copied() })
                .collect::<Option<_>>();
            let shape = out.ok_or_else(|| cx.error("axes repeat"))?;
            Ok(vec![Fact {
                ty: Type::new(cx.ty(0)?.dtype, shape),
                ints: cx.maybe_ints(0).map(<[_]>::to_vec),
            }])
        }
        "Squeeze" => {
            let shape = cx.shape(0)?;
            let axes = cx.axes(shape.len())?;
            let one_sized = |e: &Extent| *e == Extent::fixed(1);
            let keep = |(i, e): &(usize, &Extent)| match &axes {
                Some(axes) => !axes.contains(i),
                None => !one_sized(e),
            };
            if axes.iter().flatten().any(|i| !one_sized(&shape[*i])) {
                return Err(cx.error("only dimensions of size 1 can be squeezed"));
            }
            let shape = shape.iter().enumerate().filter(keep).map(|(_, e)| *e).collect();
            Ok(vec![Fact {
                ty: Type::new(cx.ty(0)?.dtype, shape),
                ints: cx.maybe_ints(0).map(<[_]>::to_vec),
            }])
        }
        "Concat" => {
            let first = cx.shape(0)?;
            let axis = cx.axis(node.int("axis").ok_or_else(|| cx.error("axis is missing"))?, first.len())?;
            let mut shape = first.to_vec();
            for i in 1..node.inputs.len() {
                let other = cx.shape(i)?;
                let same =
                    other.len() == shape.len() && (0..other.len()).all(|d| d == axis || other[d] == shape[d]);
                let sum = other.get(axis).and_then(|extent| shape[axis].plus(*extent));
                shape[axis] = sum.filter(|_| same).ok_or_else(|| {
                    cx.error(format!("shapes {shape:?} and {other:?} do not fit along axis {axis}"))
                })?;
            }
            let parts: Option<Vec<_>> = (0..node.inputs.len()).map(|i| cx.maybe_ints(i)).collect();
            let ints = parts.filter(|_| shape.len() == 1).map(|parts| parts.concat());
            Ok(vec![Fact { ty: Type::new(cx.ty(0)?.dtype, shape), ints }])
        }
        "Split" => {
            let shape = cx.shape(0)?;
            let axis = cx.axis(node.int("axis").unwrap_or(0), shape.len())?;
            let parts = match (node.input(1), shape[axis].known()) {
                (Some(_), _) => cx.known_ints(1)?,
                (None, Some(size)) => {
                    let count = node.outputs.len() as i64;
                    let chunk = (size + count - 1) / count;
                    (0..count).map(|i| chunk.min(size - i * chunk)).collect()
                }
                (None, None) => return Err(cx.error("the batch cannot be split")),
            };
            let part = |size: i64| {
                let mut shape = shape.to_vec();
                shape[axis] = Extent::fixed(size);
                Ok(fact(cx.ty(0)?.dtype, shape))
            };
            parts.into_iter().map(part).collect()
        }
        "Slice" => slice(&cx),
        "Gather" => {
            let (shape, indices) = (cx.shape(0)?, cx.shape(1)?);
            let axis = cx.axis(node.int("axis").unwrap_or(0), shape.len())?;
            let out = [&shape[..axis], indices, &shape[axis + 1..]].concat();
            let ints = match (cx.maybe_ints(0), cx.maybe_ints(1)) {
                (Some(data), Some(at)) if shape.len() == 1 => at
                    .iter()
                    .map(|i| {
                        let i = i.known()?;
                        data.get(usize::try_from(if i < 0 { i + data.len() as i64 } else { i }).ok()?)
                            .copied()
                    })
                    .collect(),
                _ => None,
            };
            Ok(vec![Fact { ty: Type::new(cx.ty(0)?.dtype, out), ints }])
        }
        "GatherElements" => one(cx.ty(0)?.dtype, cx.shape(1)?.to_vec()),
        "GatherND" => {
            let (shape, indices) = (cx.shape(0)?, cx.shape(1)?);
            let batched = node.int("batch_dims").unwrap_or(0);
            let split = indices.split_last().and_then(|(depth, lead)| Some((lead, depth.known()?)));
            let rest = split.and_then(|(_, depth)| shape.get(usize::try_from(batched + depth).ok()?..));
            match (split, rest) {
                (Some((lead, _)), Some(rest)) => one(cx.ty(0)?.dtype, [lead, rest].concat()),
                _ => Err(cx.error(format!("indices of shape {indices:?} do not fit a tensor of {shape:?}"))),
            }
        }
        "Expand" => {
            let shape = broadcast(cx.shape(0)?, &expand_target(cx.ints(1)?));
            one(cx.ty(0)?.dtype, shape.ok_or_else(|| cx.error("the shapes cannot be broadcast together"))?)
        }
        "Tile" => {
            let (shape, repeats) = (cx.shape(0)?, cx.ints(1)?);
            let out = shape.iter().zip(repeats).map(|(e, r)| e.times(*r)).collect::<Option<Vec<_>>>();
            let out = out.filter(|out| out.len() == shape.len() && repeats.len() == shape.len());
            one(cx.ty(0)?.dtype, out.ok_or_else(|| cx.error("the repeats do not fit the shape"))?)
        }
        "Pad" => {
            let (shape, pads) = (cx.shape(0)?, cx.known_ints(1)?);
            if pads.len() != 2 * shape.len() || node.input(3).is_some() {
                return Err(cx.error("the pads do not fit the rank"));
            }
            let padded = |(i, e): (usize, &Extent)| e.plus(Extent::fixed(pads[i] + pads[i + shape.len()]));
            let out = shape.iter().enumerate().map(padded).collect::<Option<_>>();
            one(cx.ty(0)?.dtype, out.ok_or_else(|| cx.error("the batch cannot be padded"))?)
        }
        "MatMul" => matmul(&cx),
        "Gemm" => {
            let (a, b) = (cx.shape(0)?, cx.shape(1)?);
            if a.len() != 2 || b.len() != 2 {
                return Err(cx.error("both factors must have rank 2"));
            }
            let flag = |name: &str| usize::from(node.int(name).unwrap_or(0) != 0);
            let (ta, tb) = (flag("transA"), flag("transB"));
            if a[1 - ta] != b[tb] {
                return Err(cx.error(format!("factors of shape {a:?} and {b:?} do not fit")));
            }
            one(cx.ty(0)?.dtype, vec![a[ta], b[1 - tb]])
        }
        "Conv" => conv(&cx),
        "ConvTranspose" => conv_transpose(&cx),
        "ScatterND" => like_first(),
        "LayerNormalization" => {
            let ty = cx.ty(0)?;
            let axis = cx.axis(node.int("axis").unwrap_or(-1), ty.rank())?;
            let mut moments = ty.shape.clone();
            moments[axis..].fill(Extent::fixed(1));
            Ok(vec![
                Fact { ty: ty.clone(), ints: None },
                fact(DType::F32, moments.clone()),
                fact(DType::F32, moments),
            ])
        }
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL2"
        | "ReduceSumSquare" => {
            let shape = cx.shape(0)?;
            let axes = match cx.axes(shape.len())? {
                Some(axes) if !axes.is_empty() => axes,
                _ if node.int("noop_with_empty_axes") == Some(1) => return like_first(),
                _ => (0..shape.len()).collect(),
            };
            let keep = node.int("keepdims").unwrap_or(1) != 0;
            one(cx.ty(0)?.dtype, reduced(shape, &axes, keep))
        }
        "ArgMax" => {
            let shape = cx.shape(0)?;
            let axis = cx.axis(node.int("axis").unwrap_or(0), shape.len())?;
            one(DType::I64, reduced(shape, &[axis], node.int("keepdims").unwrap_or(1) != 0))
        }
        "OneHot" => {
            let depth = cx.known_ints(1)?;
            let axis = node.int("axis").unwrap_or(-1);
            if axis != -1 || depth.len() != 1 {
                return Err(cx.error("only a new last axis is supported"));
            }
            one(cx.ty(2)?.dtype, [cx.shape(0)?, &[Extent::fixed(depth[0])]].concat())
        }
        "Resize" => {
            let sizes = node.input(3).map(|_| cx.known_ints(3)).transpose()?;
            match sizes {
                Some(sizes) if sizes.len() == cx.shape(0)?.len() => {
                    one(cx.ty(0)?.dtype, sizes.into_iter().map(Extent::fixed).collect())
                }
                _ => Err(cx.error("only resizing to given sizes is supported")),
            }
        }
        "Range" => range(&cx),
        "SoftmaxCrossEntropyLoss" => {
            let scores = cx.ty(0)?.clone();
            let loss = match node.text("reduction").unwrap_or("mean") {
                "none" => cx.shape(1)?.to_vec(),
                _ => Vec::new(),
            };
            Ok(vec![fact(scores.dtype, loss), Fact { ty: scores, ints: None }])
        }
        other => Err(cx.error(format!("shapes of operator {other} are not known to this program"))),
    }
}

fn reduced(shape: &[Extent], axes: &[usize], keep: bool) -> Vec<Extent> {
    let kept = |(i, e): (usize, &Extent)| match (axes.contains(&i), keep) {
        (false, _) => Some(*e),
        (true, true) => Some(Extent::fixed(1)),
        (true, false) => None,
    };
    shape.iter().enumerate().filter_map(kept).collect()
}

/// `Expand` treats -1 (which PyTorch writes for "as it is") like 1.
fn expand_target(ints: &[Extent]) -> Vec<Extent> {
    ints.iter().map(|e| if *e == Extent::fixed(-1) { Extent::fixed(1) } else { *e }).collect()
}

/// `start, start + delta, ...` below a limit that is a number, or a multiple of the batch: one position per
/// example, as masks are indexed with.
fn range(cx: &Context<'_>) -> Result<Vec<Fact>, PassError> {
    let known = || cx.error("only ranges known up to the batch, ascending from a known start, are supported");
    let scalar = |index: usize| match cx.maybe_ints(index) {
        Some(&[extent]) => Ok(extent),
        _ => Err(known()),
    };
    let (start, limit, delta) = (scalar(0)?.known(), scalar(1)?, scalar(2)?.known());
    let (Some(start), Some(delta @ 1..)) = (start, delta) else { return Err(known()) };
    let dtype = cx.ty(0)?.dtype;
    let Some(limit) = limit.known() else {
        let len = limit.divided_by(Extent::fixed(delta)).filter(|_| start == 0).ok_or_else(known)?;
        return Ok(vec![Fact { ty: Type::new(dtype, vec![len]), ints: None }]);
    };
    let values: Vec<_> = (start..limit).step_by(delta as usize).take(MAX_INTS + 1).collect();
    let len = (limit.saturating_sub(start).max(0) as u64).div_ceil(delta as u64);
    let ints = (values.len() <= MAX_INTS).then(|| values.into_iter().map(Extent::fixed).collect());
    Ok(vec![Fact { ty: Type::new(dtype, vec![Extent::fixed(len as i64)]), ints }])
}

fn reshape(cx: &Context<'_>) -> Result<Vec<Extent>, PassError> {
    let (shape, target) = (cx.shape(0)?, cx.ints(1)?);
    let product = |extents: &[Extent]| extents.iter().try_fold(Extent::fixed(1), |p, e| p.times(*e));
    let all = product(shape).ok_or_else(|| cx.error("the shape is quadratic in the batch"))?;
    let allow_zero = cx.node.int("allowzero") == Some(1);
    let mut out = Vec::with_capacity(target.len());
    let mut unknown = None;
    for (i, extent) in target.iter().enumerate() {
        match extent.known() {
            Some(-1) if unknown.replace(i).is_some() => return Err(cx.error("two dimensions are -1")),
            Some(-1) => out.push(Extent::fixed(1)),
            Some(0) if !allow_zero => {
                out.push(*shape.get(i).ok_or_else(|| cx.error("0 copies a dimension that does not exist"))?);
            }
            _ => out.push(*extent),
        }
    }
    let rest = product(&out);
    let mismatch = || cx.error(format!("a tensor of shape {shape:?} cannot take the shape {target:?}"));
    match unknown {
        Some(i) => out[i] = rest.and_then(|rest| all.divided_by(rest)).ok_or_else(mismatch)?,
        None if rest != Some(all) => return Err(mismatch()),
        None => {}
    }
    Ok(out)
}

fn slice(cx: &Context<'_>) -> Result<Vec<Fact>, PassError> {
    let shape = cx.shape(0)?;
    let (starts, ends) = (cx.known_ints(1)?, cx.known_ints(2)?);
    let axes = match cx.node.input(3) {
        Some(_) => cx.known_ints(3)?,
        None => (0..starts.len() as i64).collect(),
    };
    let steps = if cx.node.input(4).is_some() { cx.known_ints(4)? } else { vec![1; starts.len()] };
    if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
        return Err(cx.error("starts, ends, axes and steps differ in length"));
    }
    let mut out = shape.to_vec();
    let mut ints = cx.maybe_ints(0).filter(|_| shape.len() == 1).map(<[_]>::to_vec);
    for i in 0..starts.len() {
        let axis = cx.axis(axes[i], shape.len())?;
        let Some(size) = shape[axis].known() else {
            if starts[i] == 0 && ends[i] >= i64::from(i32::MAX) && steps[i] == 1 {
                continue;
            }
            return Err(cx.error("the batch cannot be sliced"));
        };
        if steps[i] < 1 {
            return Err(cx.error("negative steps are not supported"));
        }
        let clamp = |at: i64| (if at < 0 { at.saturating_add(size) } else { at }).clamp(0, size);
        let (start, end) = (clamp(starts[i]), clamp(ends[i]));
        out[axis] = Extent::fixed(((end - start).max(0) + steps[i] - 1) / steps[i]);
        ints = ints.map(|v| {
            v.into_iter()
                .take(end.max(start) as usize)
                .skip(start as usize)
                .step_by(steps[i] as usize)
                .collect()
        });
    }
    Ok(vec![Fact { ty: Type::new(cx.ty(0)?.dtype, out), ints }])
}

fn matmul(cx: &Context<'_>) -> Result<Vec<Fact>, PassError> {
    let (a, b) = (cx.shape(0)?, cx.shape(1)?);
    let ([lead_a @ .., rows, inner_a], [lead_b @ .., inner_b, columns]) = (a, b) else {
        return Err(cx.error("both factors must have rank 2 or more"));
    };
    let lead = broadcast(lead_a, lead_b).filter(|_| inner_a == inner_b);
    let lead = lead.ok_or_else(|| cx.error(format!("factors of shape {a:?} and {b:?} do not fit")))?;
    let ty = Type::new(cx.ty(0)?.dtype, [&lead[..], &[*rows, *columns]].concat());
    Ok(vec![Fact { ty, ints: None }])
}

fn conv(cx: &Context<'_>) -> Result<Vec<Fact>, PassError> {
    let (x, w) = (cx.shape(0)?, cx.shape(1)?);
    let spatial = x.len().checked_sub(2).filter(|n| *n > 0 && w.len() == x.len());
    let spatial = spatial.ok_or_else(|| cx.error("input and weight must have one rank of at least 3"))?;
    if !matches!(cx.node.text("auto_pad"), None | Some("NOTSET")) {
        return Err(cx.error("auto_pad is not supported: export with explicit pads"));
    }
    let of = |name: &str, default: i64, len: usize| {
        cx.node.ints(name).filter(|v| v.len() == len).map_or_else(|| vec![default; len], <[_]>::to_vec)
    };
    let (strides, dilations) = (of("strides", 1, spatial), of("dilations", 1, spatial));
    let pads = of("pads", 0, 2 * spatial);
    let mut out = vec![x[0], w[0]];
    for i in 0..spatial {
        let (Some(size), Some(kernel)) = (x[i + 2].known(), w[i + 2].known()) else {
            return Err(cx.error("spatial dimensions must be known"));
        };
        let span = size + pads[i] + pads[i + spatial] - dilations[i] * (kernel - 1) - 1;
        if span < 0 || strides[i] < 1 {
            return Err(cx.error(format!("a kernel of {kernel} does not fit into {size}: enlarge the input")));
        }
        out.push(Extent::fixed(span / strides[i] + 1));
    }
    Ok(vec![Fact { ty: Type::new(cx.ty(0)?.dtype, out), ints: None }])
}

fn conv_transpose(cx: &Context<'_>) -> Result<Vec<Fact>, PassError> {
    let (x, w) = (cx.shape(0)?, cx.shape(1)?);
    let of = |name: &str, default: i64| {
        let given = cx.node.ints(name).map(<[_]>::to_vec);
        given.filter(|v| v.len() >= 2).unwrap_or_else(|| vec![default; 4])
    };
    let (strides, dilations) = (of("strides", 1), of("dilations", 1));
    let (pads, extra) = (of("pads", 0), of("output_padding", 0));
    if x.len() != 4 || w.len() != 4 || pads.len() != 4 {
        return Err(cx.error("input and weight must have rank 4"));
    }
    let mut out = vec![x[0], w[1]];
    for i in 0..2 {
        let (Some(size), Some(kernel)) = (x[i + 2].known(), w[i + 2].known()) else {
            return Err(cx.error("spatial dimensions must be known"));
        };
        let span =
            strides[i] * (size - 1) + extra[i] + (kernel - 1) * dilations[i] + 1 - pads[i] - pads[i + 2];
        out.push(Extent::fixed(span));
    }
    Ok(vec![Fact { ty: Type::new(cx.ty(0)?.dtype, out), ints: None }])
}

/// Domain of our own operators, which model-local functions define.
pub const DOMAIN: &str = "fedpeft";

/// Our own operators.
mod fedpeft_domain {
    use super::{Context, Fact, PassError, Type};

    pub fn infer(cx: &Context<'_>) -> Result<Vec<Fact>, PassError> {
        let first = cx.ty(0)?;
        let ty = match cx.node.op.as_str() {
            "GeluGrad" | "LayerNormGrad" | "SoftmaxGrad" | "StopGradient" | "Shadow" | "Dropout" => {
                first.clone()
            }
            "ReduceRows" => Type::new(first.dtype, first.shape.last().copied().into_iter().collect()),
            other => return Err(cx.error(format!("operator {other} is not known to this program"))),
        };
        Ok(vec![Fact { ty, ints: None }])
    }
}

/// A shape of which at most one dimension depends on the batch, as `Reshape` wants it.
pub(crate) fn as_reshape_target(ints: &[Extent]) -> Option<Vec<i64>> {
    reshape_target(ints)
}
