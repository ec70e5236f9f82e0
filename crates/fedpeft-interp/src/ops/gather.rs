//! Operators that pick elements by index.

use ndarray::{ArrayD, Axis, Dimension, IxDyn};

use crate::{
    Value,
    call::Call,
    error::{Result, invalid},
    shape::{self, axes, axis, bounded, index, sizes, standard},
    value::with_array,
};

pub(super) fn slice(call: &Call<'_>) -> Result<Value> {
    let value = call.value(0)?;
    let (starts, ends) = (call.list(1)?, call.list(2)?);
    let count = starts.len();
    let on = call.maybe_list(3)?.unwrap_or_else(|| (0..count as i64).collect());
    let steps = call.maybe_list(4)?.unwrap_or_else(|| vec![1; count]);
    let on = axes(&on, value.shape().len())?;
    if ends.len() != count || on.len() != count || steps.len() != count {
        invalid!("starts, ends, axes and steps differ in length");
    }
    let mut picks = Vec::with_capacity(count);
    for i in 0..count {
        picks.push((on[i], positions(value.shape()[on[i]], starts[i], ends[i], steps[i])?));
    }
    fn picked<T: Clone>(x: &ArrayD<T>, picks: &[(usize, Vec<usize>)]) -> ArrayD<T> {
        let start = x.clone();
        standard(picks.iter().fold(start, |x, (axis, positions)| x.select(Axis(*axis), positions)))
    }
    Ok(with_array!(value, x => picked(x, &picks)))
}

/// The positions a slice takes out of `len` entries.
fn positions(len: usize, start: i64, end: i64, step: i64) -> Result<Vec<usize>> {
    if step == 0 {
        invalid!("a step is zero");
    }
    if len == 0 {
        return Ok(Vec::new());
    }
    let (len, step) = (len as i128, i128::from(step));
    // Where the first position and the end may lie; backwards, the end lies before the first entry.
    let ((first, last), (low, high)) =
        if step > 0 { ((0, len), (0, len)) } else { ((0, len - 1), (-1, len - 1)) };
    let from_start = |bound: i64| i128::from(bound) + if bound < 0 { len } else { 0 };
    let (mut at, end) = (from_start(start).clamp(first, last), from_start(end).clamp(low, high));
    let mut positions = Vec::new();
    while (step > 0 && at < end) || (step < 0 && at > end) {
        positions.push(at as usize);
        at += step;
    }
    Ok(positions)
}

/// `indices` into `len` entries, counted from the start.
pub(super) fn resolved(indices: &ArrayD<i64>, len: usize) -> Result<Vec<usize>> {
    let mut resolved = Vec::with_capacity(indices.len());
    for at in indices {
        match index(*at, len) {
            Some(at) => resolved.push(at),
            None => invalid!("index {at} is out of the range of {len} entries"),
        }
    }
    Ok(resolved)
}

pub(super) fn gather(call: &Call<'_>) -> Result<Value> {
    let (value, indices) = (call.value(0)?, call.int(1)?);
    let axis = axis(call.attr_int("axis")?.unwrap_or(0), value.shape().len())?;
    let positions = resolved(indices, value.shape()[axis])?;
    let (before, after) = (&value.shape()[..axis], &value.shape()[axis + 1..]);
    let to = [before, indices.shape(), after].concat();
    bounded(&to)?;
    Ok(with_array!(value, x => shape::reshape(x.select(Axis(axis), &positions), &to)?))
}

pub(super) fn gather_elements(call: &Call<'_>) -> Result<Value> {
    let (value, indices) = (call.value(0)?, call.int(1)?);
    let axis = axis(call.attr_int("axis")?.unwrap_or(0), value.shape().len())?;
    check_elements(value.shape(), indices.shape(), axis)?;
    let positions = resolved(indices, value.shape()[axis])?;
    fn picked<T: Clone>(x: &ArrayD<T>, to: &[usize], axis: usize, positions: &[usize]) -> ArrayD<T> {
        let mut positions = positions.iter();
        ArrayD::from_shape_fn(IxDyn(to), |mut at| {
            at[axis] = positions.next().copied().unwrap_or_default();
            x[at].clone()
        })
    }
    Ok(with_array!(value, x => picked(x, indices.shape(), axis, &positions)))
}

/// Indices of elements may be fewer than the elements along every axis but the one they index.
pub(super) fn check_elements(data: &[usize], indices: &[usize], axis: usize) -> Result<()> {
    let fits = data.len() == indices.len() && (0..data.len()).all(|i| i == axis || indices[i] <= data[i]);
    if fits { Ok(()) } else { invalid!("indices of shape {indices:?} do not fit data of shape {data:?}") }
}

pub(super) fn gather_nd(call: &Call<'_>) -> Result<Value> {
    let (value, indices) = (call.value(0)?, call.int(1)?);
    let batch = sizes(&[call.attr_int("batch_dims")?.unwrap_or(0)])?[0];
    let (shape, index_shape) = (value.shape(), indices.shape());
    if batch >= shape.len().min(index_shape.len()) || shape[..batch] != index_shape[..batch] {
        invalid!("data {shape:?} and indices {index_shape:?} do not share {batch} batch dimensions");
    }
    let starts = starts(&shape[batch..], indices)?;
    let depth = index_shape[index_shape.len() - 1];
    let slice = &shape[batch + depth..];
    let to = [&index_shape[..index_shape.len() - 1], slice].concat();
    bounded(&to)?;
    let (batches, batch_len): (usize, usize) =
        (shape[..batch].iter().product(), shape[batch..].iter().product());
    let len: usize = slice.iter().product();
    let per_batch = starts.len() / batches.max(1);
    let spans = starts.iter().enumerate().map(|(i, start)| (i / per_batch.max(1)) * batch_len + start);
    let spans: Vec<usize> = spans.collect();
    fn picked<T: Clone>(x: &ArrayD<T>, spans: &[usize], len: usize, to: &[usize]) -> Result<ArrayD<T>> {
        let flat: Vec<T> = x.iter().cloned().collect();
        let parts = spans.iter().flat_map(|start| flat[*start..start + len].iter().cloned());
        shape::filled(to, parts.collect())
    }
    Ok(with_array!(value, x => picked(x, &spans, len, &to)?))
}

/// Where in row-major order each index tuple (the last axis of `indices`) points in an array of `shape`.
pub(super) fn starts(shape: &[usize], indices: &ArrayD<i64>) -> Result<Vec<usize>> {
    let depth = indices.shape().last().copied().unwrap_or(0);
    if depth == 0 || depth > shape.len() {
        invalid!("indices of shape {:?} do not point into shape {shape:?}", indices.shape());
    }
    let mut starts = Vec::with_capacity(indices.len() / depth);
    for tuple in indices.lanes(Axis(indices.ndim() - 1)) {
        let mut start = 0;
        for (dim, at) in shape.iter().zip(tuple) {
            match index(*at, *dim) {
                Some(at) => start = start * dim + at,
                None => invalid!("index {at} is out of the range of {dim} entries"),
            }
        }
        starts.push(start * shape[depth..].iter().product::<usize>());
    }
    Ok(starts)
}

/// The position in row-major order of `at` in an array of `shape`.
pub(super) fn offset(shape: &[usize], at: &IxDyn) -> usize {
    shape.iter().zip(at.slice()).fold(0, |offset, (dim, at)| offset * dim + at)
}
