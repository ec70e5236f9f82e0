//! Normalisations along axes.

use ndarray::{ArrayD, Axis};

use super::{elementwise::zip, reduce};
use crate::{
    Value,
    call::Call,
    error::{Result, invalid},
    shape::{axis, bounded, filled, reshape, stretch},
};

pub(super) fn softmax(call: &Call<'_>) -> Result<Value> {
    let (x, axis) = normalized(call)?;
    Ok(Value::Float(log_softmax_along(x, axis).mapv(f64::exp)))
}

pub(super) fn log_softmax(call: &Call<'_>) -> Result<Value> {
    let (x, axis) = normalized(call)?;
    Ok(Value::Float(log_softmax_along(x, axis)))
}

fn normalized<'a>(call: &Call<'a>) -> Result<(&'a ArrayD<f64>, usize)> {
    let x = call.float(0)?;
    Ok((x, axis(call.attr_int("axis")?.unwrap_or(-1), x.ndim())?))
}

pub(super) fn log_softmax_along(x: &ArrayD<f64>, axis: usize) -> ArrayD<f64> {
    let mut y = x.clone();
    for mut lane in y.lanes_mut(Axis(axis)) {
        let total = reduce::log_sum_exp(lane.view());
        lane.mapv_inplace(|x| x - total);
    }
    y
}

/// Outputs the normalised value, the means, and the inverse standard deviations.
pub(super) fn layer_normalization(call: &Call<'_>) -> Result<Vec<Value>> {
    let x = call.float(0)?;
    let first = axis(call.attr_int("axis")?.unwrap_or(-1), x.ndim())?;
    let epsilon = call.attr_float("epsilon", f64::from(1e-5_f32))?;
    let (outer, inner) = x.shape().split_at(first);
    let (rows, columns): (usize, usize) = (outer.iter().product(), inner.iter().product());
    let mut stats_shape = outer.to_vec();
    stats_shape.resize(x.ndim(), 1);
    bounded(&stats_shape)?;

    let mut lanes = reshape(x.clone(), &[rows, columns])?;
    let (mut means, mut inverse_deviations) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
    for mut lane in lanes.outer_iter_mut() {
        let mean = lane.sum() / columns as f64;
        lane.mapv_inplace(|x| x - mean);
        let variance = lane.iter().map(|x| x * x).sum::<f64>() / columns as f64;
        let inverse_deviation = (variance + epsilon).sqrt().recip();
        lane.mapv_inplace(|x| x * inverse_deviation);
        means.push(mean);
        inverse_deviations.push(inverse_deviation);
    }
    let mut y = reshape(lanes, x.shape())?;
    for (index, factor) in [(1, true), (2, false)] {
        let Some(parameter) = call.maybe_float(index)? else {
            if factor {
                invalid!("input {index} is missing");
            }
            continue;
        };
        // Only towards the data: a parameter must not stretch it.
        stretch(parameter, x.shape())?;
        y = zip(&y, parameter, if factor { |y, p| y * p } else { |y, p| y + p })?;
    }
    Ok(vec![
        Value::Float(y),
        Value::Float(filled(&stats_shape, means)?),
        Value::Float(filled(&stats_shape, inverse_deviations)?),
    ])
}
