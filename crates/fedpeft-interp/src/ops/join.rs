//! Operators that put values together, or take them apart.

use ndarray::{ArrayD, Axis, IxDyn, Slice, concatenate};

use crate::{
    Value,
    call::{Call, scalar},
    error::{Result, invalid, unsupported},
    shape::{axes, axis, bounded, sizes, standard},
    value::with_array,
};

pub(super) fn concat(call: &Call<'_>) -> Result<Value> {
    let values = call.values()?;
    let Some(wanted) = call.attr_int("axis")? else { invalid!("attribute \"axis\" is missing") };
    let axis = axis(wanted, values[0].shape().len())?;
    let mut shape = values[0].shape().to_vec();
    for value in &values[1..] {
        let fits = value.shape().len() == shape.len()
            && (0..shape.len()).all(|i| i == axis || shape[i] == value.shape()[i]);
        if !fits {
            invalid!("shapes {shape:?} and {:?} do not join along axis {axis}", value.shape());
        }
        shape[axis] = shape[axis].saturating_add(value.shape()[axis]);
    }
    bounded(&shape)?;
    Ok(match values[0] {
        Value::Float(_) => joined(axis, values.into_iter().map(Value::as_float))?.into(),
        Value::Int(_) => joined(axis, values.into_iter().map(Value::as_int))?.into(),
        Value::Bool(_) => joined(axis, values.into_iter().map(Value::as_bool))?.into(),
    })
}

fn joined<'a, T: Clone + 'a>(
    axis: usize,
    arrays: impl Iterator<Item = Result<&'a ArrayD<T>>>,
) -> Result<ArrayD<T>> {
    let arrays = arrays.collect::<Result<Vec<_>>>()?;
    let views: Vec<_> = arrays.iter().map(|array| array.view()).collect();
    match concatenate(Axis(axis), &views) {
        Ok(array) => Ok(standard(array)),
        Err(error) => invalid!("{error}"),
    }
}

pub(super) fn split(call: &Call<'_>) -> Result<Vec<Value>> {
    let value = call.value(0)?;
    let axis = axis(call.attr_int("axis")?.unwrap_or(0), value.shape().len())?;
    let len = value.shape()[axis];
    let parts = match (call.maybe_list(1)?, call.attr_int("num_outputs")?) {
        (Some(parts), None) => sizes(&parts)?,
        (None, Some(count)) => even_parts(len, sizes(&[count])?[0])?,
        _ => invalid!("exactly one of input \"split\" and attribute \"num_outputs\" must be there"),
    };
    if parts.iter().try_fold(0usize, |total, part| total.checked_add(*part)) != Some(len) {
        invalid!("parts {parts:?} do not add up to the {len} entries of axis {axis}");
    }
    let mut start = 0;
    let mut values = Vec::with_capacity(parts.len());
    for part in parts {
        let range = Slice::from(start..start + part);
        values.push(with_array!(value, x => standard(x.slice_axis(Axis(axis), range).to_owned())));
        start += part;
    }
    Ok(values)
}

/// Equal parts, except that the last may be smaller.
fn even_parts(len: usize, count: usize) -> Result<Vec<usize>> {
    if count == 0 || count > len.max(1) {
        invalid!("{len} entries do not split into {count} parts");
    }
    let part = len.div_ceil(count);
    Ok((0..count).map(|i| part.min(len.saturating_sub(i * part))).collect())
}

pub(super) fn pad(call: &Call<'_>) -> Result<Value> {
    let mode = call.attr_text("mode", "constant")?;
    if mode != "constant" {
        unsupported!("mode {mode:?} cannot be evaluated");
    }
    let value = call.value(0)?;
    let rank = value.shape().len();
    let axes = match call.maybe_list(3)? {
        Some(list) => axes(&list, rank)?,
        None => (0..rank).collect(),
    };
    let pads = call.list(1)?;
    if pads.len() != 2 * axes.len() {
        invalid!("{} pads do not fit {} axes", pads.len(), axes.len());
    }
    let mut both = vec![(0, 0); rank];
    for (i, axis) in axes.iter().enumerate() {
        both[*axis] = (pads[i], pads[axes.len() + i]);
    }
    Ok(match (value, call.maybe(2)) {
        (Value::Float(x), None) => padded(x, &both, 0.0)?.into(),
        (Value::Int(x), None) => padded(x, &both, 0)?.into(),
        (Value::Bool(x), None) => padded(x, &both, false)?.into(),
        (Value::Float(x), Some(fill)) => padded(x, &both, scalar(fill.as_float()?)?)?.into(),
        (Value::Int(x), Some(fill)) => padded(x, &both, scalar(fill.as_int()?)?)?.into(),
        (Value::Bool(x), Some(fill)) => padded(x, &both, scalar(fill.as_bool()?)?)?.into(),
    })
}

/// `x` with entries added before and after each axis, or cut off where negative.
fn padded<T: Clone>(x: &ArrayD<T>, pads: &[(i64, i64)], fill: T) -> Result<ArrayD<T>> {
    let mut shape = Vec::with_capacity(x.ndim());
    let mut overlaps = Vec::with_capacity(x.ndim());
    for (len, (before, after)) in x.shape().iter().zip(pads) {
        let new = i128::from(*before) + i128::from(*after) + *len as i128;
        let Ok(new) = usize::try_from(new) else {
            invalid!("pads {pads:?} cut off more than shape {:?} has", x.shape());
        };
        let (from, to) = ((-before.min(&0)) as usize, (*before.max(&0)) as usize);
        overlaps.push((from, to, len.saturating_sub(from).min(new.saturating_sub(to))));
        shape.push(new);
    }
    bounded(&shape)?;
    let mut padded = ArrayD::from_elem(IxDyn(&shape), fill);
    if overlaps.iter().all(|(_, _, len)| *len > 0) {
        let part = |start: usize, len: usize| Slice::from(start..start + len);
        let source = x.slice_each_axis(|axis| {
            let (from, _, len) = overlaps[axis.axis.index()];
            part(from, len)
        });
        let mut target = padded.slice_each_axis_mut(|axis| {
            let (_, to, len) = overlaps[axis.axis.index()];
            part(to, len)
        });
        target.assign(&source);
    }
    Ok(padded)
}

pub(super) fn tile(call: &Call<'_>) -> Result<Value> {
    let value = call.value(0)?;
    let repeats = sizes(&call.list(1)?)?;
    let from = value.shape();
    if repeats.len() != from.len() {
        invalid!("{} repeats do not fit shape {from:?}", repeats.len());
    }
    let to: Vec<usize> = from.iter().zip(&repeats).map(|(dim, repeat)| dim.saturating_mul(*repeat)).collect();
    bounded(&to)?;
    fn tiled<T: Clone>(x: &ArrayD<T>, to: &[usize]) -> ArrayD<T> {
        ArrayD::from_shape_fn(IxDyn(to), |mut at| {
            for (axis, len) in x.shape().iter().enumerate() {
                at[axis] %= len;
            }
            x[at].clone()
        })
    }
    Ok(with_array!(value, x => tiled(x, &to)))
}
