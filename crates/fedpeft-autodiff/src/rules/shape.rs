//! Operators that move, copy or sum values.

use fedpeft_onnx::{Node, Tensor};
use fedpeft_passes::Extent;

use crate::reverse::{AutodiffError, Cx};

type Result<T = ()> = std::result::Result<T, AutodiffError>;

/// Reshape, Flatten, Squeeze, Unsqueeze: back to the input's shape.
pub fn reshape(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    let shape = cx.b.ty(cx.x(0)?)?.shape.clone();
    let dx = cx.b.reshape(&dy, &shape)?;
    cx.give(0, dx);
    Ok(())
}

pub fn transpose(cx: &mut Cx<'_>) -> Result {
    let (dy, rank) = (cx.dy()?, cx.b.ty(cx.x(0)?)?.rank());
    let perm = cx.node.ints("perm").map_or_else(|| (0..rank as i64).rev().collect(), <[_]>::to_vec);
    let mut inverse = vec![0i64; rank];
    perm.iter().enumerate().for_each(|(to, from)| inverse[*from as usize] = to as i64);
    let dx = cx.b.add(Node::new("Transpose", &[&dy], &[]).with("perm", inverse))?;
    cx.give(0, dx);
    Ok(())
}

pub fn expand(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    cx.give_unbroadcast(0, &dy)
}

/// Attribute or constant axis counted from the front.
fn axis(cx: &Cx<'_>, default: i64) -> Result<usize> {
    let rank = cx.b.ty(cx.x(0)?)?.rank() as i64;
    let axis = cx.node.int("axis").unwrap_or(default);
    Ok(if axis < 0 { axis + rank } else { axis } as usize)
}

/// Each input takes its slice.
pub fn concat(cx: &mut Cx<'_>) -> Result {
    let (dy, axis) = (cx.dy()?, axis(cx, 0)?);
    let mut start = 0;
    for i in 0..cx.node.inputs.len() {
        let size = cx.b.ty(cx.x(i)?)?.shape[axis].known();
        let size = size.ok_or_else(|| cx.unsupported("concatenation along the batch has no rule"))?;
        if cx.wants(i) {
            let (starts, ends) = (cx.b.ints(&[start]), cx.b.ints(&[start + size]));
            let axes = cx.b.ints(&[axis as i64]);
            let part = cx.b.op("Slice", &[&dy, &starts, &ends, &axes])?;
            cx.give(i, part);
        }
        start += size;
    }
    Ok(())
}

/// The parts side by side, zeros where the loss does not depend on one.
pub fn split(cx: &mut Cx<'_>) -> Result {
    let axis = axis(cx, 0)?;
    let mut parts = Vec::new();
    for (i, output) in cx.node.outputs.clone().iter().enumerate() {
        parts.push(match cx.output_grads[i].clone() {
            Some(gradient) => gradient,
            None => zeros_like(cx, output)?,
        });
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let dx = cx.b.add(Node::new("Concat", &parts, &[]).with("axis", axis as i64))?;
    cx.give(0, dx);
    Ok(())
}

fn zeros_like(cx: &mut Cx<'_>, value: &str) -> Result<String> {
    let shape = cx.b.ty(value)?.shape.clone();
    let shape = cx.b.extents(&shape)?;
    let zero = Tensor::f32([1], &[0.0]);
    Ok(cx.b.add(Node::new("ConstantOfShape", &[&shape], &[]).with("value", zero))?)
}

/// The known integers of input `index`.
fn known(cx: &Cx<'_>, index: usize) -> Result<Option<Vec<i64>>> {
    let Some(name) = cx.node.input(index) else { return Ok(None) };
    let ints = cx.b.types().ints(name).map(|ints| ints.iter().map(|e| e.known()).collect::<Option<Vec<_>>>());
    match ints.flatten() {
        Some(ints) => Ok(Some(ints)),
        None => Err(cx.unsupported(format!("input {index} must be a constant"))),
    }
}

/// Zeros around what was taken.
pub fn slice(cx: &mut Cx<'_>) -> Result {
    let (dy, shape) = (cx.dy()?, cx.b.ty(cx.x(0)?)?.shape.clone());
    let starts = known(cx, 1)?.unwrap_or_default();
    let axes = known(cx, 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    if known(cx, 4)?.is_some_and(|steps| steps.iter().any(|step| *step != 1)) {
        return Err(cx.unsupported("steps other than 1 have no rule"));
    }
    let taken = cx.b.ty(&dy)?.shape.clone();
    let rank = shape.len();
    let mut pads = vec![0; 2 * rank];
    for (start, axis) in starts.iter().zip(axes) {
        let axis = if axis < 0 { axis + rank as i64 } else { axis } as usize;
        let (Some(size), Some(len)) = (shape[axis].known(), taken[axis].known()) else { continue };
        let start = if *start < 0 { start + size } else { *start }.clamp(0, size);
        (pads[axis], pads[rank + axis]) = (start, size - start - len);
    }
    let dx = padded(cx, &dy, &pads)?;
    cx.give(0, dx);
    Ok(())
}

fn padded(cx: &mut Cx<'_>, value: &str, pads: &[i64]) -> Result<String> {
    let pads = cx.b.ints(pads);
    Ok(cx.b.op("Pad", &[value, &pads])?)
}

/// What was not padding.
pub fn pad(cx: &mut Cx<'_>) -> Result {
    if cx.node.text("mode").unwrap_or("constant") != "constant" {
        return Err(cx.unsupported("only padding with a constant has a rule"));
    }
    let (dy, rank) = (cx.dy()?, cx.b.ty(cx.x(0)?)?.rank());
    let pads = known(cx, 1)?.unwrap_or_default();
    let padded: Vec<usize> = (0..rank).filter(|axis| pads[*axis] != 0 || pads[rank + axis] != 0).collect();
    let starts: Vec<i64> = padded.iter().map(|axis| pads[*axis]).collect();
    let ends: Vec<i64> = padded
        .iter()
        .map(|axis| if pads[rank + axis] == 0 { i64::MAX } else { -pads[rank + axis] })
        .collect();
    let axes: Vec<i64> = padded.iter().map(|axis| *axis as i64).collect();
    let (starts, ends, axes) = (cx.b.ints(&starts), cx.b.ints(&ends), cx.b.ints(&axes));
    let dx = cx.b.op("Slice", &[&dy, &starts, &ends, &axes])?;
    cx.give(0, dx);
    Ok(())
}

/// One index on any axis (a token): zeros around it. Many indices on the first axis (an embedding table): a
/// scatter that adds.
pub fn gather(cx: &mut Cx<'_>) -> Result {
    let (dy, axis) = (cx.dy()?, axis(cx, 0)?);
    let (data, indices) = (cx.x(0)?.to_owned(), cx.x(1)?.to_owned());
    let shape = cx.b.ty(&data)?.shape.clone();
    let index_rank = cx.b.ty(&indices)?.rank();
    let single = cx.b.types().ints(&indices).filter(|ints| ints.len() == 1).and_then(|ints| ints[0].known());
    let dx = match (single, shape[axis].known()) {
        (Some(index), Some(size)) => {
            let mut one = shape.clone();
            one[axis] = Extent::fixed(1);
            let row = cx.b.reshape(&dy, &one)?;
            let index = if index < 0 { index + size } else { index };
            let mut pads = vec![0; 2 * shape.len()];
            (pads[axis], pads[shape.len() + axis]) = (index, size - index - 1);
            padded(cx, &row, &pads)?
        }
        _ if axis == 0 => {
            let zeros = zeros_like(cx, &data)?;
            let last = cx.b.ints(&[index_rank as i64]);
            let places = cx.b.op("Unsqueeze", &[&indices, &last])?;
            cx.b.add(Node::new("ScatterND", &[&zeros, &places, &dy], &[]).with("reduction", "add"))?
        }
        _ => return Err(cx.unsupported("many indices on another axis than the first have no rule")),
    };
    cx.give(0, dx);
    Ok(())
}

pub fn reduce_sum(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    let dx = spread(cx, &dy)?;
    cx.give(0, dx);
    Ok(())
}

pub fn reduce_mean(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    let (from, to) = (cx.b.ty(cx.x(0)?)?.shape.clone(), cx.b.ty(&dy)?.shape.clone());
    let product = |shape: &[Extent]| shape.iter().try_fold(Extent::fixed(1), |p, e| p.times(*e));
    let count = product(&from).zip(product(&to)).and_then(|(all, kept)| all.divided_by(kept));
    let count = count.ok_or_else(|| cx.unsupported("the number of averaged values is not known"))?;
    let scaled = match count.known() {
        Some(count) => {
            let scale = cx.b.scalar(1.0 / count as f32);
            cx.b.op("Mul", &[&dy, &scale])?
        }
        None => {
            let count = cx.b.extents(&[count])?;
            let count = cx.b.add(Node::new("Cast", &[&count], &[]).with("to", 1i64))?;
            let count = cx.b.reshape(&count, &[])?;
            cx.b.op("Div", &[&dy, &count])?
        }
    };
    let dx = spread(cx, &scaled)?;
    cx.give(0, dx);
    Ok(())
}

/// The gradient of a reduction, copied along the reduced axes.
fn spread(cx: &mut Cx<'_>, dy: &str) -> Result<String> {
    let shape = cx.b.ty(cx.x(0)?)?.shape.clone();
    let axes: Vec<usize> = match known(cx, 1)? {
        Some(axes) if !axes.is_empty() => axes
            .iter()
            .map(|axis| if *axis < 0 { axis + shape.len() as i64 } else { *axis } as usize)
            .collect(),
        _ => (0..shape.len()).collect(),
    };
    let kept = (0..shape.len()).map(|axis| if axes.contains(&axis) { Extent::fixed(1) } else { shape[axis] });
    let dy = cx.b.reshape(dy, &kept.collect::<Vec<_>>())?;
    let target = cx.b.extents(&shape)?;
    Ok(cx.b.op("Expand", &[&dy, &target])?)
}
