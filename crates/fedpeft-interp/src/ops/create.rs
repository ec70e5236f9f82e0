//! Operators that make values from nothing but shapes, attributes and a few numbers.

use fedpeft_onnx::Attribute;
use ndarray::{ArrayD, Axis, IxDyn, arr0};

use crate::{
    Value,
    call::{Call, scalar},
    error::{Result, invalid, unsupported},
    shape::{MAX_ELEMENTS, axis, bounded, filled, index, sizes},
    value::with_array,
};

pub(super) fn constant(call: &Call<'_>) -> Result<Value> {
    let Some((name, attribute)) = call.node.attributes.first_key_value() else {
        invalid!("there is no value");
    };
    let widen = |values: &[f32]| values.iter().copied().map(f64::from).collect();
    Ok(match (name.as_str(), attribute) {
        ("value", Attribute::Tensor(tensor)) => Value::from_tensor(tensor)?,
        ("value_float", Attribute::Float(value)) => Value::Float(arr0(f64::from(*value)).into_dyn()),
        ("value_floats", Attribute::Floats(values)) => Value::Float(filled(&[values.len()], widen(values))?),
        ("value_int", Attribute::Int(value)) => Value::Int(arr0(*value).into_dyn()),
        ("value_ints", Attribute::Ints(values)) => Value::Int(filled(&[values.len()], values.clone())?),
        _ => unsupported!("attribute {name:?} cannot be evaluated"),
    })
}

pub(super) fn constant_of_shape(call: &Call<'_>) -> Result<Value> {
    let shape = sizes(&call.list(0)?)?;
    bounded(&shape)?;
    let value = match call.attr_tensor("value")? {
        Some(tensor) => Value::from_tensor(tensor)?,
        None => Value::Float(arr0(0.0).into_dyn()),
    };
    Ok(with_array!(value, value => ArrayD::from_elem(IxDyn(&shape), scalar(&value)?)))
}

pub(super) fn shape(call: &Call<'_>) -> Result<Value> {
    let shape = call.value(0)?.shape();
    let rank = shape.len() as i64;
    let bound = |name, default| -> Result<usize> {
        let bound = call.attr_int(name)?.unwrap_or(default);
        let from_start = if bound < 0 { bound.saturating_add(rank) } else { bound };
        Ok(from_start.clamp(0, rank) as usize)
    };
    let (start, end) = (bound("start", 0)?, bound("end", rank)?);
    let dims: Vec<i64> = shape.get(start..end).unwrap_or_default().iter().map(|dim| *dim as i64).collect();
    Ok(Value::Int(filled(&[dims.len()], dims)?))
}

pub(super) fn size(call: &Call<'_>) -> Result<Value> {
    let size: usize = call.value(0)?.shape().iter().product();
    Ok(Value::Int(arr0(size as i64).into_dyn()))
}

pub(super) fn range(call: &Call<'_>) -> Result<Value> {
    if let Value::Float(_) = call.value(0)? {
        let (start, limit, delta) = (call.scalar_float(0)?, call.scalar_float(1)?, call.scalar_float(2)?);
        let steps = ((limit - start) / delta).ceil();
        if delta == 0.0 || steps.is_nan() || steps > MAX_ELEMENTS as f64 {
            invalid!("the range from {start} to {limit} by {delta} is too long");
        }
        let values: Vec<f64> = (0..steps.max(0.0) as usize).map(|i| start + i as f64 * delta).collect();
        return Ok(Value::Float(filled(&[values.len()], values)?));
    }
    let (start, limit, delta) = (call.scalar_int(0)?, call.scalar_int(1)?, call.scalar_int(2)?);
    let (wide_start, wide_delta) = (i128::from(start), i128::from(delta));
    let distance = i128::from(limit) - wide_start;
    if delta == 0 || (distance / wide_delta) > MAX_ELEMENTS as i128 {
        invalid!("the range from {start} to {limit} by {delta} is too long");
    }
    let before_limit =
        |value: &i128| if delta > 0 { *value < i128::from(limit) } else { *value > i128::from(limit) };
    let values = (0i128..).map(|i| wide_start + i * wide_delta).take_while(before_limit);
    let values: Vec<i64> = values.map(|value| value as i64).collect();
    Ok(Value::Int(filled(&[values.len()], values)?))
}

pub(super) fn one_hot(call: &Call<'_>) -> Result<Value> {
    fn place<T: Copy>(
        indices: &ArrayD<i64>,
        depth: usize,
        off_on: &ArrayD<T>,
        axis: usize,
    ) -> Result<ArrayD<T>> {
        let [off, on] = off_on.iter().copied().collect::<Vec<_>>()[..] else {
            invalid!("values have shape {:?}, not two elements", off_on.shape());
        };
        let mut shape = indices.shape().to_vec();
        shape.insert(axis, depth);
        bounded(&shape)?;
        let mut hot = ArrayD::from_elem(IxDyn(&shape), off);
        for (mut lane, at) in hot.lanes_mut(Axis(axis)).into_iter().zip(indices) {
            // An index that is out of range is an absent class, not an error.
            if let Some(at) = index(*at, depth) {
                lane[at] = on;
            }
        }
        Ok(hot)
    }
    let indices = call.int(0)?;
    let depth = sizes(&[call.scalar_int(1)?])?[0];
    let axis = axis(call.attr_int("axis")?.unwrap_or(-1), indices.ndim() + 1)?;
    Ok(with_array!(call.value(2)?, values => place(indices, depth, values, axis)?))
}
