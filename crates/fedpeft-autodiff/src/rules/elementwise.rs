//! Operators that work value by value. Derivatives are written with the output where that is cheaper.

use fedpeft_onnx::Node;

use crate::{
    functions,
    reverse::{AutodiffError, Cx},
};

type Result = std::result::Result<(), AutodiffError>;

/// Gives `dy * factor` to the only input.
fn times(cx: &mut Cx<'_>, factor: &str) -> Result {
    let dy = cx.dy()?;
    let dx = cx.b.op("Mul", &[&dy, factor])?;
    cx.give(0, dx);
    Ok(())
}

/// The first output of the node.
fn y(cx: &Cx<'_>) -> String {
    cx.node.outputs[0].clone()
}

pub fn identity(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    cx.give(0, dy);
    Ok(())
}

/// Linear in its input, with a mask that depends on places only: the gradient is dropped alike.
pub fn dropout(cx: &mut Cx<'_>) -> Result {
    let (dy, seed, layer, rate) = (cx.dy()?, cx.x(1)?.to_owned(), cx.x(2)?.to_owned(), cx.x(3)?.to_owned());
    let dx = cx.b.add(functions::node("Dropout", &[&dy, &seed, &layer, &rate]))?;
    cx.give(0, dx);
    Ok(())
}

/// The inputs are worth the same, and the loss depends on all.
pub fn shadow(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    (0..cx.node.inputs.len()).for_each(|i| cx.give(i, dy.clone()));
    Ok(())
}

pub fn cast(cx: &mut Cx<'_>) -> Result {
    let (dy, dtype) = (cx.dy()?, cx.b.ty(cx.x(0)?)?.dtype);
    let dx = cx.b.add(Node::new("Cast", &[&dy], &[]).with("to", i64::from(dtype.code())))?;
    cx.give(0, dx);
    Ok(())
}

pub fn sum(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    (0..cx.node.inputs.len())
        .filter(|i| cx.wants(*i))
        .collect::<Vec<_>>()
        .into_iter()
        .try_for_each(|i| cx.give_unbroadcast(i, &dy))
}

pub fn add(cx: &mut Cx<'_>) -> Result {
    sum(cx)
}

pub fn sub(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    if cx.wants(0) {
        cx.give_unbroadcast(0, &dy)?;
    }
    if cx.wants(1) {
        let negative = cx.b.op("Neg", &[&dy])?;
        cx.give_unbroadcast(1, &negative)?;
    }
    Ok(())
}

pub fn mul(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    for (i, other) in [(0, 1), (1, 0)] {
        if cx.wants(i) {
            let other = cx.x(other)?.to_owned();
            let product = cx.b.op("Mul", &[&dy, &other])?;
            cx.give_unbroadcast(i, &product)?;
        }
    }
    Ok(())
}

pub fn div(cx: &mut Cx<'_>) -> Result {
    let (dy, divisor) = (cx.dy()?, cx.x(1)?.to_owned());
    let quotient = cx.b.op("Div", &[&dy, &divisor])?;
    if cx.wants(0) {
        cx.give_unbroadcast(0, &quotient)?;
    }
    if cx.wants(1) {
        // d(x / d) = -(x / d) / d
        let y = y(cx);
        let product = cx.b.op("Mul", &[&quotient, &y])?;
        let negative = cx.b.op("Neg", &[&product])?;
        cx.give_unbroadcast(1, &negative)?;
    }
    Ok(())
}

pub fn pow(cx: &mut Cx<'_>) -> Result {
    if cx.wants(1) {
        return Err(cx.unsupported("the exponent of Pow has no rule"));
    }
    let (dy, x, exponent) = (cx.dy()?, cx.x(0)?.to_owned(), cx.x(1)?.to_owned());
    let one = cx.b.scalar(1.0);
    let lower = cx.b.op("Sub", &[&exponent, &one])?;
    let power = cx.b.op("Pow", &[&x, &lower])?;
    let slope = cx.b.op("Mul", &[&exponent, &power])?;
    let dx = cx.b.op("Mul", &[&dy, &slope])?;
    cx.give_unbroadcast(0, &dx)
}

pub fn neg(cx: &mut Cx<'_>) -> Result {
    let dy = cx.dy()?;
    let dx = cx.b.op("Neg", &[&dy])?;
    cx.give(0, dx);
    Ok(())
}

pub fn abs(cx: &mut Cx<'_>) -> Result {
    let x = cx.x(0)?.to_owned();
    let sign = cx.b.op("Sign", &[&x])?;
    times(cx, &sign)
}

pub fn sqrt(cx: &mut Cx<'_>) -> Result {
    let half = cx.b.scalar(0.5);
    let y = y(cx);
    let slope = cx.b.op("Div", &[&half, &y])?;
    times(cx, &slope)
}

pub fn reciprocal(cx: &mut Cx<'_>) -> Result {
    let y = y(cx);
    let square = cx.b.op("Mul", &[&y, &y])?;
    let slope = cx.b.op("Neg", &[&square])?;
    times(cx, &slope)
}

pub fn exp(cx: &mut Cx<'_>) -> Result {
    let y = y(cx);
    times(cx, &y)
}

pub fn log(cx: &mut Cx<'_>) -> Result {
    let (dy, x) = (cx.dy()?, cx.x(0)?.to_owned());
    let dx = cx.b.op("Div", &[&dy, &x])?;
    cx.give(0, dx);
    Ok(())
}

pub fn erf(cx: &mut Cx<'_>) -> Result {
    let x = cx.x(0)?.to_owned();
    let square = cx.b.op("Mul", &[&x, &x])?;
    let negative = cx.b.op("Neg", &[&square])?;
    let exp = cx.b.op("Exp", &[&negative])?;
    let scale = cx.b.scalar(std::f32::consts::FRAC_2_SQRT_PI);
    let slope = cx.b.op("Mul", &[&exp, &scale])?;
    times(cx, &slope)
}

pub fn tanh(cx: &mut Cx<'_>) -> Result {
    let (y, one) = (y(cx), cx.b.scalar(1.0));
    let square = cx.b.op("Mul", &[&y, &y])?;
    let slope = cx.b.op("Sub", &[&one, &square])?;
    times(cx, &slope)
}

pub fn sigmoid(cx: &mut Cx<'_>) -> Result {
    let (y, one) = (y(cx), cx.b.scalar(1.0));
    let rest = cx.b.op("Sub", &[&one, &y])?;
    let slope = cx.b.op("Mul", &[&y, &rest])?;
    times(cx, &slope)
}

/// The derivative of `log(1 + e^x)` is the sigmoid.
pub fn softplus(cx: &mut Cx<'_>) -> Result {
    let x = cx.x(0)?.to_owned();
    let slope = cx.b.op("Sigmoid", &[&x])?;
    times(cx, &slope)
}

/// 0 at the kink, as PyTorch has it.
pub fn relu(cx: &mut Cx<'_>) -> Result {
    let (dy, y, zero) = (cx.dy()?, y(cx), cx.b.scalar(0.0));
    let positive = cx.b.op("Greater", &[&y, &zero])?;
    let dx = cx.b.op("Where", &[&positive, &dy, &zero])?;
    cx.give(0, dx);
    Ok(())
}

pub fn gelu(cx: &mut Cx<'_>) -> Result {
    let (dy, x) = (cx.dy()?, cx.x(0)?.to_owned());
    let dx = match cx.node.text("approximate").unwrap_or("none") {
        "none" => cx.b.add(functions::node("GeluGrad", &[&dy, &x]))?,
        "tanh" => {
            let slope = tanh_gelu_slope(cx, &x)?;
            cx.b.op("Mul", &[&dy, &slope])?
        }
        other => return Err(cx.unsupported(format!("the approximation {other:?} of Gelu has no rule"))),
    };
    cx.give(0, dx);
    Ok(())
}

/// With `u = sqrt(2/pi) (x + 0.044715 x^3)` and `t = tanh u`:
/// `(1 + t) / 2 + x (1 - t^2) / 2 * sqrt(2/pi) (1 + 3 * 0.044715 x^2)` (Hendrycks and Gimpel, arXiv 1606.08415).
fn tanh_gelu_slope(cx: &mut Cx<'_>, x: &str) -> std::result::Result<String, AutodiffError> {
    const ROOT: f32 = 0.797_884_6; // sqrt(2 / pi)
    const CUBE: f32 = 0.044_715;
    let b = &mut *cx.b;
    let (one, half, root) = (b.scalar(1.0), b.scalar(0.5), b.scalar(ROOT));
    let (cube, cube3) = (b.scalar(ROOT * CUBE), b.scalar(3.0 * ROOT * CUBE));
    let x2 = b.op("Mul", &[x, x])?;
    let inner = b.op("Mul", &[&x2, &cube])?;
    let inner = b.op("Add", &[&inner, &root])?;
    let u = b.op("Mul", &[x, &inner])?;
    let t = b.op("Tanh", &[&u])?;
    let slope_u = b.op("Mul", &[&x2, &cube3])?;
    let slope_u = b.op("Add", &[&slope_u, &root])?;
    let t2 = b.op("Mul", &[&t, &t])?;
    let sech2 = b.op("Sub", &[&one, &t2])?;
    let right = b.op("Mul", &[&sech2, &slope_u])?;
    let right = b.op("Mul", &[x, &right])?;
    let left = b.op("Add", &[&one, &t])?;
    let sum = b.op("Add", &[&left, &right])?;
    Ok(b.op("Mul", &[&sum, &half])?)
}

pub fn r#where(cx: &mut Cx<'_>) -> Result {
    let (dy, condition, zero) = (cx.dy()?, cx.x(0)?.to_owned(), cx.b.scalar(0.0));
    if cx.wants(1) {
        let chosen = cx.b.op("Where", &[&condition, &dy, &zero])?;
        cx.give_unbroadcast(1, &chosen)?;
    }
    if cx.wants(2) {
        let chosen = cx.b.op("Where", &[&condition, &zero, &dy])?;
        cx.give_unbroadcast(2, &chosen)?;
    }
    Ok(())
}
