//! Losses of classification.

use ndarray::{ArrayD, Axis, arr0};

use super::norm::log_softmax_along;
use crate::{
    Value,
    call::Call,
    error::{Result, invalid},
    shape::{filled, index},
};

/// Outputs the loss and the log-probabilities.
pub(super) fn softmax_cross_entropy(call: &Call<'_>) -> Result<Vec<Value>> {
    let scores = call.float(0)?;
    if scores.ndim() < 2 {
        invalid!("scores have shape {:?}, without classes", scores.shape());
    }
    let log_probabilities = log_softmax_along(scores, 1);
    let loss = likelihood_loss(call, &log_probabilities)?;
    Ok(vec![loss, Value::Float(log_probabilities)])
}

pub(super) fn negative_log_likelihood(call: &Call<'_>) -> Result<Value> {
    likelihood_loss(call, call.float(0)?)
}

/// The loss of labels (input 1) with class weights (input 2) under log-probabilities of shape `[N, C, ...]`.
fn likelihood_loss(call: &Call<'_>, log_probabilities: &ArrayD<f64>) -> Result<Value> {
    let labels = call.int(1)?;
    let shape = log_probabilities.shape();
    let fits = shape.len() >= 2
        && labels.ndim() == shape.len() - 1
        && labels.shape()[0] == shape[0]
        && labels.shape()[1..] == shape[2..];
    if !fits {
        invalid!("labels {:?} do not fit scores {shape:?}", labels.shape());
    }
    let classes = shape[1];
    let weights = call.maybe_float(2)?;
    if let Some(weights) = weights
        && weights.shape() != [classes]
    {
        invalid!("weights have shape {:?}, not one number for each of {classes} classes", weights.shape());
    }
    let ignored = call.attr_int("ignore_index")?;
    let (mut losses, mut total_weight) = (Vec::with_capacity(labels.len()), 0.0);
    for (lane, label) in log_probabilities.lanes(Axis(1)).into_iter().zip(labels) {
        if Some(*label) == ignored {
            losses.push(0.0);
            continue;
        }
        let Some(label) = index(*label, classes).filter(|_| *label >= 0) else {
            invalid!("label {label} is none of {classes} classes");
        };
        let weight = weights.map_or(1.0, |weights| weights[[label]]);
        losses.push(-lane[label] * weight);
        total_weight += weight;
    }
    let total: f64 = losses.iter().sum();
    Ok(Value::Float(match call.attr_text("reduction", "mean")? {
        "none" => filled(labels.shape(), losses)?,
        "sum" => arr0(total).into_dyn(),
        "mean" => arr0(total / total_weight).into_dyn(),
        other => invalid!("reduction {other:?} is not known"),
    }))
}
