//! Operators that put elements at indices.

use ndarray::ArrayD;

use super::{
    elementwise,
    gather::{check_elements, offset, resolved, starts},
};
use crate::{
    Value,
    call::Call,
    error::{Result, invalid, unsupported},
    shape::{axis, filled},
};

pub(super) fn scatter_elements(call: &Call<'_>) -> Result<Value> {
    let (data, indices, updates) = (call.value(0)?, call.int(1)?, call.value(2)?);
    let axis = axis(call.attr_int("axis")?.unwrap_or(0), data.shape().len())?;
    check_elements(data.shape(), indices.shape(), axis)?;
    if updates.shape() != indices.shape() {
        invalid!("updates of shape {:?} do not fit indices of {:?}", updates.shape(), indices.shape());
    }
    let positions = resolved(indices, data.shape()[axis])?;
    let targets = indices.indexed_iter().zip(positions).map(|((mut at, _), position)| {
        at[axis] = position;
        offset(data.shape(), &at)
    });
    scatter(call, data, updates, &targets.collect::<Vec<_>>())
}

pub(super) fn scatter_nd(call: &Call<'_>) -> Result<Value> {
    let (data, indices, updates) = (call.value(0)?, call.int(1)?, call.value(2)?);
    let starts = starts(data.shape(), indices)?;
    let depth = indices.shape()[indices.ndim() - 1];
    let slice = &data.shape()[depth..];
    let wanted = [&indices.shape()[..indices.ndim() - 1], slice].concat();
    if updates.shape() != wanted {
        invalid!("updates have shape {:?}, not {wanted:?}", updates.shape());
    }
    let len: usize = slice.iter().product();
    let targets: Vec<usize> = starts.into_iter().flat_map(|start| start..start + len).collect();
    scatter(call, data, updates, &targets)
}

/// Writes the updates, in row-major order, to `targets`, combining as the node says.
fn scatter(call: &Call<'_>, data: &Value, updates: &Value, targets: &[usize]) -> Result<Value> {
    fn put<T: Copy>(
        data: &ArrayD<T>,
        updates: &ArrayD<T>,
        targets: &[usize],
        combine: fn(T, T) -> T,
    ) -> Result<ArrayD<T>> {
        let mut flat: Vec<T> = data.iter().copied().collect();
        for (target, update) in targets.iter().zip(updates) {
            flat[*target] = combine(flat[*target], *update);
        }
        filled(data.shape(), flat)
    }
    let reduction = call.attr_text("reduction", "none")?;
    Ok(match (data, updates) {
        (Value::Float(data), Value::Float(updates)) => {
            let combine = match reduction {
                "none" => |_, new| new,
                "add" => |old, new| old + new,
                "mul" => |old, new| old * new,
                "max" => elementwise::max,
                "min" => elementwise::min,
                other => unsupported!("reduction {other:?} is not known"),
            };
            Value::Float(put(data, updates, targets, combine)?)
        }
        (Value::Int(data), Value::Int(updates)) => {
            let combine = match reduction {
                "none" => |_, new| new,
                "add" => i64::wrapping_add,
                "mul" => i64::wrapping_mul,
                "max" => i64::max,
                "min" => i64::min,
                other => unsupported!("reduction {other:?} is not known"),
            };
            Value::Int(put(data, updates, targets, combine)?)
        }
        (Value::Bool(data), Value::Bool(updates)) if reduction == "none" => {
            Value::Bool(put(data, updates, targets, |_, new| new)?)
        }
        _ => invalid!("no updates of {} with {} by {reduction:?}", data.kind(), updates.kind()),
    })
}
