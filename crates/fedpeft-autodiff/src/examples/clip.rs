//! Lengths of the examples' gradients, and the sum of what is left of them when each is clipped.

use std::collections::BTreeMap;

use fedpeft_onnx::{DType, Node};
use fedpeft_passes::{Builder, Extent, PassError};

use crate::{AutodiffError, rules::transposed};

/// Values of the graph that hold what is left of the gradients of a batch.
#[derive(Debug)]
pub struct Clipped {
    /// By tensor, the sum of the examples' clipped gradients, of the tensor's shape.
    pub sums: BTreeMap<String, String>,
    /// Examples whose gradient was too long, `i64` scalar.
    pub count: String,
}

/// Gradients of fewer values are joined, so that hundreds of small tensors take a few operators.
const SMALL: i64 = 1 << 16;

/// Values whose squares are added up at once: sums of tens of thousands in `f32` would be off by 1e-5.
const RUN: i64 = 512;

/// Most values that the gradients of one example may have which are written to memory, 64 MiB.
const MOST: i64 = 1 << 24;

type Result<T> = std::result::Result<T, PassError>;

/// The gradients of some tensors.
enum Part {
    /// Tensors by name with the shape of each, and their gradients side by side, `[N, values]`.
    Values { tensors: Vec<(String, Vec<Extent>)>, flat: String },
    /// One matrix that is a product of `[N, rows, inner]` and `[N, inner, columns]`, and what becomes of the product.
    Product { tensor: String, left: String, right: String, moves: Vec<Move> },
}

/// What rearranges each example's values without changing one.
enum Move {
    Reshape(Vec<Extent>),
    Transpose(Vec<i64>),
}

pub(super) fn clip(
    b: &mut Builder,
    each: &BTreeMap<String, String>,
    limit: &str,
) -> std::result::Result<Clipped, AutodiffError> {
    let parts = parts(b, each)?;
    let squares = parts.iter().map(|part| part.square(b)).collect::<Result<Vec<_>>>()?;
    let square = match &squares[..] {
        [one] => one.clone(),
        all => b.op("Sum", &all.iter().map(String::as_str).collect::<Vec<_>>())?,
    };
    let norm = b.op("Sqrt", &[&square])?;
    // A gradient of zeros divides to infinity, and is left as it is.
    let (share, one) = (b.op("Div", &[limit, &norm])?, b.scalar(1.0));
    let scale = b.op("Min", &[&share, &one])?;
    let mut sums = BTreeMap::new();
    for part in parts {
        part.sum(b, &scale, &mut sums)?;
    }
    let long = b.op("Greater", &[&norm, limit])?;
    let long = b.add(Node::new("Cast", &[&long], &[]).with("to", i64::from(DType::I64.code())))?;
    let count = b.add(Node::new("ReduceSum", &[&long], &[]).with("keepdims", 0i64))?;
    Ok(Clipped { sums, count })
}

/// Decides how the gradients are held.
fn parts(b: &mut Builder, each: &BTreeMap<String, String>) -> std::result::Result<Vec<Part>, AutodiffError> {
    let (mut parts, mut small, mut held) = (Vec::new(), Vec::new(), 0);
    for (tensor, gradient) in each {
        let shape = b.ty(gradient)?.shape[1..].to_vec();
        if let Some(product) = product(b, tensor, gradient)? {
            parts.push(product);
            continue;
        }
        let size = values(&shape);
        held += size;
        if held > MOST {
            return Err(AutodiffError::TooLarge { tensor: tensor.clone(), mebibytes: held >> 18 });
        }
        let flat = b.reshape(gradient, &[Extent::N, Extent::fixed(size)])?;
        let named = (tensor.clone(), shape);
        if size < SMALL {
            small.push((named, flat));
        } else {
            parts.push(Part::Values { tensors: vec![named], flat });
        }
    }
    let (tensors, flats): (Vec<_>, Vec<_>) = small.into_iter().unzip();
    let flat = match &flats[..] {
        [] => return Ok(parts),
        [one] => one.clone(),
        all => {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            b.add(Node::new("Concat", &all, &[]).with("axis", 1i64))?
        }
    };
    parts.push(Part::Values { tensors, flat });
    Ok(parts)
}

fn values(shape: &[Extent]) -> i64 {
    shape.iter().map(|extent| extent.factor).product()
}

/// The gradient of `tensor` as a product that is better not made: with R rows, C columns and sums of I terms, both
/// factors' products with themselves, I^2 (R + C) multiplications, cost less than R C I and writing R C values.
fn product(b: &Builder, tensor: &str, gradient: &str) -> Result<Option<Part>> {
    let (mut value, mut moves) = (gradient, Vec::new());
    let node = loop {
        let Some(node) = b.producer(value) else { return Ok(None) };
        let shape = &b.ty(value)?.shape;
        if shape.first() != Some(&Extent::N) || shape[1..].iter().any(|extent| extent.batch) {
            return Ok(None);
        }
        match (node.op.as_str(), node.ints("perm")) {
            ("MatMul", _) => break node,
            ("Reshape", _) => moves.push(Move::Reshape(shape[1..].to_vec())),
            ("Transpose", Some([0, rest @ ..])) => {
                moves.push(Move::Transpose(rest.iter().map(|axis| axis - 1).collect()));
            }
            _ => return Ok(None),
        }
        value = &node.inputs[0];
    };
    let (left, right) = (node.inputs[0].clone(), node.inputs[1].clone());
    let sizes = |value: &str| match b.types().get(value).map(|ty| &ty.shape[..]) {
        Some([Extent::N, rows, columns]) => rows.known().zip(columns.known()),
        _ => None,
    };
    let (Some((rows, inner)), Some((_, columns))) = (sizes(&left), sizes(&right)) else { return Ok(None) };
    moves.reverse();
    let pays = rows * columns >= SMALL && inner * (rows + columns) <= rows * columns;
    Ok(pays.then(|| Part::Product { tensor: tensor.to_owned(), left, right, moves }))
}

impl Part {
    /// The square of each example's length, `[N]`.
    fn square(&self, b: &mut Builder) -> Result<String> {
        let sum = |b: &mut Builder, op: &str, value: &str, axes: &[i64]| {
            let axes = b.ints(axes);
            b.add(Node::new(op, &[value, &axes], &[]).with("keepdims", 0i64))
        };
        match self {
            Self::Values { flat, .. } => {
                let size = b.ty(flat)?.last().unwrap_or(0);
                if size <= RUN {
                    return sum(b, "ReduceSumSquare", flat, &[1]);
                }
                let mut flat = flat.clone();
                let runs = (size as u64).div_ceil(RUN as u64) as i64;
                if runs * RUN > size {
                    let pads = b.ints(&[0, 0, 0, runs * RUN - size]);
                    flat = b.op("Pad", &[&flat, &pads])?;
                }
                let runs = b.reshape(&flat, &[Extent::N, Extent::fixed(runs), Extent::fixed(RUN)])?;
                let squares = sum(b, "ReduceSumSquare", &runs, &[2])?;
                sum(b, "ReduceSum", &squares, &[1])
            }
            // |P Q|^2 is the sum of all values of (P^T P) * (Q Q^T).
            Self::Product { left, right, .. } => {
                let (left_t, right_t) = (transposed(b, left)?, transposed(b, right)?);
                let inner = b.op("MatMul", &[&left_t, left])?;
                let outer = b.op("MatMul", &[right, &right_t])?;
                let product = b.op("Mul", &[&inner, &outer])?;
                sum(b, "ReduceSum", &product, &[1, 2])
            }
        }
    }

    /// The sum over the examples, each times its `scale` `[N]`.
    fn sum(self, b: &mut Builder, scale: &str, sums: &mut BTreeMap<String, String>) -> Result<()> {
        match self {
            Self::Values { tensors, flat } => {
                let row = b.reshape(scale, &[Extent::fixed(1), Extent::N])?;
                let sum = b.op("MatMul", &[&row, &flat])?;
                let sizes: Vec<i64> = tensors.iter().map(|(_, shape)| values(shape)).collect();
                let parts: Vec<String> = match &tensors[..] {
                    [_] => vec![sum],
                    all => {
                        let parts: Vec<String> = all.iter().map(|_| b.fresh("part")).collect();
                        let sizes = b.ints(&sizes);
                        let outputs: Vec<&str> = parts.iter().map(String::as_str).collect();
                        b.push(Node::new("Split", &[&sum, &sizes], &outputs).with("axis", 1i64))?;
                        parts
                    }
                };
                for ((tensor, shape), part) in tensors.into_iter().zip(parts) {
                    sums.insert(tensor, b.reshape(&part, &shape)?);
                }
            }
            Self::Product { tensor, left, right, moves } => {
                let column = b.reshape(scale, &[Extent::N, Extent::fixed(1), Extent::fixed(1)])?;
                let scaled = b.op("Mul", &[&right, &column])?;
                let left = transposed(b, &left)?;
                let (left, right) = (b.rows(&left)?, b.rows(&scaled)?);
                let mut value = b.add(Node::new("Gemm", &[&left, &right], &[]).with("transA", 1i64))?;
                for step in moves {
                    value = match step {
                        Move::Reshape(shape) => b.reshape(&value, &shape)?,
                        Move::Transpose(perm) => {
                            b.add(Node::new("Transpose", &[&value], &[]).with("perm", perm))?
                        }
                    };
                }
                sums.insert(tensor, value);
            }
        }
        Ok(())
    }
}
