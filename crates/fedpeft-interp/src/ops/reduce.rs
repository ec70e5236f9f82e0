//! Operators that fold elements along axes.

use ndarray::{Array2, ArrayD, ArrayView1, Axis, IxDyn, Slice};

use super::elementwise;
use crate::{
    Value,
    call::Call,
    error::{Result, invalid, unsupported},
    shape::{axes, axis, filled, reshape, standard},
};

type Real = fn(ArrayView1<'_, f64>) -> f64;
type Int = fn(ArrayView1<'_, i64>) -> Option<i64>;

/// `Reduce*`: one number for all the elements along some axes. `int` is there where integers are supported,
/// and gives none where no elements have no result.
pub(super) fn reduce(call: &Call<'_>, real: Real, int: Option<Int>) -> Result<Value> {
    let value = call.value(0)?;
    let rank = value.shape().len();
    if call.attr_ints("axes")?.is_some() {
        unsupported!("axes are an attribute: lift the model to operator set 20 first");
    }
    let along = match call.maybe_list(1)?.filter(|list| !list.is_empty()) {
        Some(list) => axes(&list, rank)?,
        None if call.attr_flag("noop_with_empty_axes", false)? => Vec::new(),
        None => (0..rank).collect(),
    };
    let keep = call.attr_flag("keepdims", true)?;
    let dims = value.shape().iter().enumerate();
    let to: Vec<usize> = dims
        .filter(|(axis, _)| keep || !along.contains(axis))
        .map(|(axis, dim)| if along.contains(&axis) { 1 } else { *dim })
        .collect();
    Ok(match (value, int) {
        (Value::Float(x), _) => {
            Value::Float(filled(&to, lanes(x, &along)?.outer_iter().map(real).collect())?)
        }
        (Value::Int(x), Some(int)) => {
            let Some(results) = lanes(x, &along)?.outer_iter().map(int).collect() else {
                invalid!("no integers have no result");
            };
            Value::Int(filled(&to, results)?)
        }
        _ => unsupported!("{} cannot be reduced", value.kind()),
    })
}

/// A matrix with the elements along some axes in each row, one row for each of the others.
fn lanes<T: Clone>(x: &ArrayD<T>, along: &[usize]) -> Result<Array2<T>> {
    let kept: Vec<usize> = (0..x.ndim()).filter(|axis| !along.contains(axis)).collect();
    let count = |axes: &[usize]| axes.iter().map(|axis| x.shape()[*axis]).product::<usize>();
    let (rows, columns) = (count(&kept), count(along));
    let order = [&kept, along].concat();
    let sorted = x.view().permuted_axes(IxDyn(&order)).as_standard_layout().into_owned();
    match sorted.into_shape_with_order((rows, columns)) {
        Ok(lanes) => Ok(lanes),
        Err(error) => invalid!("{error}"),
    }
}

pub(super) fn sum(lane: ArrayView1<'_, f64>) -> f64 {
    lane.sum()
}
pub(super) fn product(lane: ArrayView1<'_, f64>) -> f64 {
    lane.product()
}
pub(super) fn max(lane: ArrayView1<'_, f64>) -> f64 {
    lane.iter().copied().fold(f64::NEG_INFINITY, elementwise::max)
}
pub(super) fn min(lane: ArrayView1<'_, f64>) -> f64 {
    lane.iter().copied().fold(f64::INFINITY, elementwise::min)
}
pub(super) fn mean(lane: ArrayView1<'_, f64>) -> f64 {
    lane.sum() / lane.len() as f64
}
pub(super) fn l1(lane: ArrayView1<'_, f64>) -> f64 {
    lane.iter().map(|x| x.abs()).sum()
}
pub(super) fn l2(lane: ArrayView1<'_, f64>) -> f64 {
    sum_square(lane).sqrt()
}
pub(super) fn sum_square(lane: ArrayView1<'_, f64>) -> f64 {
    lane.dot(&lane)
}
/// Shifted by the greatest element so that nothing overflows.
pub(super) fn log_sum_exp(lane: ArrayView1<'_, f64>) -> f64 {
    let max = max(lane);
    let shift = if max.is_finite() { max } else { 0.0 };
    lane.iter().map(|x| (x - shift).exp()).sum::<f64>().ln() + shift
}

pub(super) fn int_sum(lane: ArrayView1<'_, i64>) -> Option<i64> {
    Some(lane.iter().copied().fold(0, i64::wrapping_add))
}
pub(super) fn int_product(lane: ArrayView1<'_, i64>) -> Option<i64> {
    Some(lane.iter().copied().fold(1, i64::wrapping_mul))
}
pub(super) fn int_max(lane: ArrayView1<'_, i64>) -> Option<i64> {
    lane.iter().copied().max()
}
pub(super) fn int_min(lane: ArrayView1<'_, i64>) -> Option<i64> {
    lane.iter().copied().min()
}

/// `ArgMax` and `ArgMin`: where along an axis the element is that is better than all others.
pub(super) fn arg(call: &Call<'_>, better: fn(f64, f64) -> bool) -> Result<Value> {
    let ints;
    let x = match call.value(0)? {
        Value::Float(x) => x,
        // Exact below 2^53, far beyond any integer whose order a model asks for.
        Value::Int(x) => {
            ints = x.mapv(|x| x as f64);
            &ints
        }
        other @ Value::Bool(_) => unsupported!("{} cannot be reduced", other.kind()),
    };
    let axis = axis(call.attr_int("axis")?.unwrap_or(0), x.ndim())?;
    let last = call.attr_flag("select_last_index", false)?;
    if x.shape()[axis] == 0 {
        invalid!("axis {axis} of shape {:?} is empty", x.shape());
    }
    let best = x.map_axis(Axis(axis), |lane| {
        let first = (0usize, lane[0]);
        let best = lane.iter().enumerate().skip(1).fold(first, |(at, best), (i, x)| {
            if better(*x, best) || (last && *x == best) { (i, *x) } else { (at, best) }
        });
        best.0 as i64
    });
    let keep = call.attr_flag("keepdims", true)?;
    let best = if keep { best.insert_axis(Axis(axis)) } else { best };
    let to = best.shape().to_vec();
    Ok(Value::Int(reshape(best, &to)?))
}

pub(super) fn cum_sum(call: &Call<'_>) -> Result<Value> {
    fn summed<T: Copy + Default>(
        x: &ArrayD<T>,
        axis: usize,
        (exclusive, reverse): (bool, bool),
        add: fn(T, T) -> T,
    ) -> ArrayD<T> {
        let mut sums = x.clone();
        if reverse {
            sums.slice_axis_inplace(Axis(axis), Slice::new(0, None, -1));
        }
        for mut lane in sums.lanes_mut(Axis(axis)) {
            let mut total = T::default();
            for element in &mut lane {
                let next = add(total, *element);
                *element = if exclusive { total } else { next };
                total = next;
            }
        }
        if reverse {
            sums.slice_axis_inplace(Axis(axis), Slice::new(0, None, -1));
        }
        standard(sums)
    }
    let value = call.value(0)?;
    let axis = axis(call.scalar_int(1)?, value.shape().len())?;
    let order = (call.attr_flag("exclusive", false)?, call.attr_flag("reverse", false)?);
    Ok(match value {
        Value::Float(x) => Value::Float(summed(x, axis, order, |a, b| a + b)),
        Value::Int(x) => Value::Int(summed(x, axis, order, i64::wrapping_add)),
        Value::Bool(_) => invalid!("truth values are no numbers"),
    })
}
