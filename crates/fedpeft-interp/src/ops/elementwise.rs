//! Operators that act on each element, after broadcasting.

use std::f64::consts::{FRAC_1_SQRT_2, PI};

use ndarray::{ArrayD, Zip};

use crate::{
    Value,
    call::{Call, scalar},
    error::{Result, invalid, unsupported},
    shape::{broadcast, standard, stretch},
};

/// `f` of every pair of elements.
pub(crate) fn zip<A: Copy, B: Copy, R: Clone>(
    a: &ArrayD<A>,
    b: &ArrayD<B>,
    mut f: impl FnMut(A, B) -> R,
) -> Result<ArrayD<R>> {
    let shape = broadcast(a.shape(), b.shape())?;
    Ok(standard(Zip::from(stretch(a, &shape)?).and(stretch(b, &shape)?).map_collect(|a, b| f(*a, *b))))
}

pub(super) fn map(call: &Call<'_>, f: fn(f64) -> f64) -> Result<Value> {
    Ok(Value::Float(call.float(0)?.mapv(f)))
}

/// Operators on real numbers and integers alike.
pub(super) fn signed(call: &Call<'_>, real: fn(f64) -> f64, int: fn(i64) -> i64) -> Result<Value> {
    match call.value(0)? {
        Value::Float(x) => Ok(Value::Float(x.mapv(real))),
        Value::Int(x) => Ok(Value::Int(x.mapv(int))),
        Value::Bool(_) => invalid!("truth values are no numbers"),
    }
}

pub(super) fn arithmetic(
    call: &Call<'_>,
    real: fn(f64, f64) -> f64,
    int: fn(i64, i64) -> i64,
) -> Result<Value> {
    arithmetic_of(call.value(0)?, call.value(1)?, real, int)
}

fn arithmetic_of(a: &Value, b: &Value, real: fn(f64, f64) -> f64, int: fn(i64, i64) -> i64) -> Result<Value> {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => Ok(Value::Float(zip(a, b, real)?)),
        (Value::Int(a), Value::Int(b)) => Ok(Value::Int(zip(a, b, int)?)),
        _ => invalid!("no arithmetic between {} and {}", a.kind(), b.kind()),
    }
}

/// The same operator between all inputs.
pub(super) fn variadic(
    call: &Call<'_>,
    real: fn(f64, f64) -> f64,
    int: fn(i64, i64) -> i64,
) -> Result<Value> {
    let values = call.values()?;
    let first = values[0].clone();
    if matches!(first, Value::Bool(_)) {
        invalid!("truth values are no numbers");
    }
    values[1..].iter().try_fold(first, |total, value| arithmetic_of(&total, value, real, int))
}

pub(super) fn div(call: &Call<'_>) -> Result<Value> {
    refuse_zero_divisors(call)?;
    arithmetic(call, |a, b| a / b, i64::wrapping_div)
}

/// The result has the sign of the dividend with `fmod`, of the divisor without.
pub(super) fn modulo(call: &Call<'_>) -> Result<Value> {
    refuse_zero_divisors(call)?;
    if call.attr_flag("fmod", false)? {
        return arithmetic(call, |a, b| a % b, i64::wrapping_rem);
    }
    Ok(Value::Int(zip(call.int(0)?, call.int(1)?, |a, b| {
        let rest = a.wrapping_rem(b);
        if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }
    })?))
}

fn refuse_zero_divisors(call: &Call<'_>) -> Result<()> {
    match call.value(1)? {
        Value::Int(divisors) if divisors.iter().any(|divisor| *divisor == 0) => {
            invalid!("an integer is divided by zero")
        }
        _ => Ok(()),
    }
}

/// The base decides the type of the result, whatever the type of the exponent.
pub(super) fn pow(call: &Call<'_>) -> Result<Value> {
    Ok(match (call.value(0)?, call.value(1)?) {
        (Value::Float(base), Value::Float(exponent)) => Value::Float(zip(base, exponent, power)?),
        (Value::Float(base), Value::Int(exponent)) => {
            Value::Float(zip(base, exponent, |base, exponent| power(base, exponent as f64))?)
        }
        (Value::Int(base), Value::Float(exponent)) => {
            Value::Int(zip(base, exponent, |base, exponent| power(base as f64, exponent) as i64)?)
        }
        (Value::Int(base), Value::Int(exponent)) => {
            Value::Int(zip(base, exponent, |base, exponent| match u32::try_from(exponent) {
                Ok(exponent) => base.wrapping_pow(exponent),
                Err(_) => power(base as f64, exponent as f64) as i64,
            })?)
        }
        (base, exponent) => invalid!("no powers of {} by {}", base.kind(), exponent.kind()),
    })
}

/// Multiplying out small whole exponents is exact where `powf` may be off by a rounding.
fn power(base: f64, exponent: f64) -> f64 {
    if exponent == 2.0 { base * base } else { base.powf(exponent) }
}

pub(super) fn compare(
    call: &Call<'_>,
    real: fn(f64, f64) -> bool,
    int: fn(i64, i64) -> bool,
) -> Result<Value> {
    match (call.value(0)?, call.value(1)?) {
        (Value::Float(a), Value::Float(b)) => Ok(Value::Bool(zip(a, b, real)?)),
        (Value::Int(a), Value::Int(b)) => Ok(Value::Bool(zip(a, b, int)?)),
        (a, b) => invalid!("no comparison between {} and {}", a.kind(), b.kind()),
    }
}

pub(super) fn equal(call: &Call<'_>) -> Result<Value> {
    match (call.value(0)?, call.value(1)?) {
        (Value::Bool(a), Value::Bool(b)) => Ok(Value::Bool(zip(a, b, |a, b| a == b)?)),
        _ => compare(call, |a, b| a == b, |a, b| a == b),
    }
}

pub(super) fn logic(call: &Call<'_>, f: fn(bool, bool) -> bool) -> Result<Value> {
    Ok(Value::Bool(zip(call.value(0)?.as_bool()?, call.value(1)?.as_bool()?, f)?))
}

pub(super) fn not(call: &Call<'_>) -> Result<Value> {
    Ok(Value::Bool(call.value(0)?.as_bool()?.mapv(|x| !x)))
}

/// `Where`.
pub(super) fn select(call: &Call<'_>) -> Result<Value> {
    fn choose<T: Copy>(condition: &ArrayD<bool>, yes: &ArrayD<T>, no: &ArrayD<T>) -> Result<ArrayD<T>> {
        let shape = broadcast(condition.shape(), &broadcast(yes.shape(), no.shape())?)?;
        let (condition, yes, no) = (stretch(condition, &shape)?, stretch(yes, &shape)?, stretch(no, &shape)?);
        let chosen = Zip::from(condition).and(yes).and(no);
        Ok(standard(chosen.map_collect(|condition, yes, no| if *condition { *yes } else { *no })))
    }
    let condition = call.value(0)?.as_bool()?;
    Ok(match (call.value(1)?, call.value(2)?) {
        (Value::Float(yes), Value::Float(no)) => Value::Float(choose(condition, yes, no)?),
        (Value::Int(yes), Value::Int(no)) => Value::Int(choose(condition, yes, no)?),
        (Value::Bool(yes), Value::Bool(no)) => Value::Bool(choose(condition, yes, no)?),
        (yes, no) => invalid!("no choice between {} and {}", yes.kind(), no.kind()),
    })
}

pub(super) fn clip(call: &Call<'_>) -> Result<Value> {
    // Each bound in turn, and not `clamp`: where they cross, the upper one wins.
    match call.value(0)? {
        Value::Float(x) => {
            let low = call.maybe_float(1)?.map(scalar).transpose()?.unwrap_or(f64::NEG_INFINITY);
            let high = call.maybe_float(2)?.map(scalar).transpose()?.unwrap_or(f64::INFINITY);
            Ok(Value::Float(x.mapv(|x| min(max(x, low), high))))
        }
        Value::Int(x) => {
            let low = call.maybe(1).map(|_| call.scalar_int(1)).transpose()?.unwrap_or(i64::MIN);
            let high = call.maybe(2).map(|_| call.scalar_int(2)).transpose()?.unwrap_or(i64::MAX);
            Ok(Value::Int(x.mapv(|x| x.max(low).min(high))))
        }
        Value::Bool(_) => invalid!("truth values are no numbers"),
    }
}

/// The greater, or NaN if one of them is.
pub(super) fn max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

/// The lesser, or NaN if one of them is.
pub(super) fn min(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

pub(super) fn sign(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { x.signum() }
}

pub(super) fn relu(x: f64) -> f64 {
    max(x, 0.0)
}

/// Written so that neither end overflows.
pub(super) fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) }
}

/// Written so that neither end overflows or loses digits.
pub(super) fn softplus(x: f64) -> f64 {
    max(x, 0.0) + (-x.abs()).exp().ln_1p()
}

pub(super) fn gelu(call: &Call<'_>) -> Result<Value> {
    match call.attr_text("approximate", "none")? {
        "none" => map(call, |x| 0.5 * x * (1.0 + libm::erf(x * FRAC_1_SQRT_2))),
        "tanh" => map(call, |x| 0.5 * x * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())),
        other => unsupported!("approximation {other:?} is not known"),
    }
}
