//! Operators that keep the elements and change their arrangement.

use ndarray::{ArrayD, IxDyn};

use crate::{
    Value,
    call::Call,
    error::{Result, invalid},
    shape::{self, axes, broadcast, sizes, standard, stretch},
    value::with_array,
};

fn reshaped(value: &Value, to: &[usize]) -> Result<Value> {
    Ok(with_array!(value, x => shape::reshape(x.clone(), to)?))
}

pub(super) fn reshape(call: &Call<'_>) -> Result<Value> {
    let value = call.value(0)?;
    let to = target(value.shape(), &call.list(1)?, call.attr_flag("allowzero", false)?)?;
    reshaped(value, &to)
}

/// The shape that `wanted` asks for: 0 keeps a dimension, -1 takes what is left.
fn target(from: &[usize], wanted: &[i64], allow_zero: bool) -> Result<Vec<usize>> {
    let mut to = Vec::with_capacity(wanted.len());
    let mut rest = None;
    for (i, dim) in wanted.iter().enumerate() {
        to.push(match (*dim, from.get(i)) {
            (-1, _) if rest.is_none() => {
                rest = Some(i);
                1
            }
            (0, Some(dim)) if !allow_zero => *dim,
            (0, None) if !allow_zero => invalid!("shape {wanted:?} keeps a dimension that {from:?} lacks"),
            (dim, _) => match usize::try_from(dim) {
                Ok(dim) => dim,
                Err(_) => invalid!("shape {wanted:?} has a wrong dimension"),
            },
        });
    }
    if let Some(rest) = rest {
        let known = to.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim));
        let elements: usize = from.iter().product();
        match known {
            Some(known) if known > 0 && elements.is_multiple_of(known) => to[rest] = elements / known,
            _ => invalid!("shape {from:?} does not fit into {wanted:?}"),
        }
    }
    shape::bounded(&to)?;
    Ok(to)
}

pub(super) fn flatten(call: &Call<'_>) -> Result<Value> {
    let value = call.value(0)?;
    let rank = value.shape().len();
    let wanted = call.attr_int("axis")?.unwrap_or(1);
    // Unlike elsewhere the axis may lie behind the last dimension.
    let axis = if wanted == rank as i64 { rank } else { shape::axis(wanted, rank)? };
    let (rows, columns) = value.shape().split_at(axis);
    reshaped(value, &[rows.iter().product(), columns.iter().product()])
}

pub(super) fn squeeze(call: &Call<'_>) -> Result<Value> {
    let value = call.value(0)?;
    let from = value.shape();
    let drop = match call.maybe_list(1)? {
        Some(list) => axes(&list, from.len())?,
        None => (0..from.len()).filter(|axis| from[*axis] == 1).collect(),
    };
    if drop.iter().any(|axis| from[*axis] != 1) {
        invalid!("axes {drop:?} of shape {from:?} are not all 1");
    }
    let kept: Vec<usize> =
        (0..from.len()).filter(|axis| !drop.contains(axis)).map(|axis| from[axis]).collect();
    reshaped(value, &kept)
}

pub(super) fn unsqueeze(call: &Call<'_>) -> Result<Value> {
    let value = call.value(0)?;
    let new = call.list(1)?;
    let rank = value.shape().len() + new.len();
    let new = axes(&new, rank)?;
    let mut old = value.shape().iter().copied();
    let to: Vec<usize> =
        (0..rank).map(|axis| if new.contains(&axis) { 1 } else { old.next().unwrap_or(1) }).collect();
    reshaped(value, &to)
}

pub(super) fn transpose(call: &Call<'_>) -> Result<Value> {
    let value = call.value(0)?;
    let rank = value.shape().len();
    let order = match call.attr_ints("perm")? {
        Some(perm) => axes(perm, rank)?,
        None => (0..rank).rev().collect(),
    };
    if order.len() != rank {
        invalid!("permutation {order:?} is not of {rank} dimensions");
    }
    Ok(with_array!(value, x => x.view().permuted_axes(IxDyn(&order)).as_standard_layout().into_owned()))
}

pub(super) fn expand(call: &Call<'_>) -> Result<Value> {
    let value = call.value(0)?;
    let to = broadcast(value.shape(), &sizes(&call.list(1)?)?)?;
    Ok(with_array!(value, x => standard(stretch(x, &to)?.to_owned())))
}

pub(super) fn trilu(call: &Call<'_>) -> Result<Value> {
    fn keep<T: Clone + Default>(x: &ArrayD<T>, shift: i64, upper: bool) -> ArrayD<T> {
        let mut kept = x.clone();
        let last = x.ndim() - 1;
        for (at, element) in kept.indexed_iter_mut() {
            let diagonal = at[last] as i64 - at[last - 1] as i64;
            if (upper && diagonal < shift) || (!upper && diagonal > shift) {
                *element = T::default();
            }
        }
        kept
    }
    let value = call.value(0)?;
    if value.shape().len() < 2 {
        invalid!("shape {:?} is no matrix", value.shape());
    }
    let shift = call.maybe(1).map(|_| call.scalar_int(1)).transpose()?.unwrap_or(0);
    let upper = call.attr_flag("upper", true)?;
    Ok(with_array!(value, x => keep(x, shift, upper)))
}
