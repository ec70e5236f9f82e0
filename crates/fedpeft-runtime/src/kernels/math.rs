//! Branch-free elementary functions that vectorise.

/// `e^x` for `x` in `[-87.3, 88]`, to 2e-7 relative; NaN for NaN. Outside of that range the result is
/// meaningless: clamp first.
///
/// `e^x = 2^n e^r` with `n` the nearest integer to `x / ln 2` and `|r| <= ln 2 / 2`, where a Taylor
/// polynomial of degree 7 is exact to a rounding error.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves the rounded integer in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has trailing zeros, so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut sum = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        sum = r.mul_add(sum, coefficient);
    }
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    sum * scale
}

/// The derivative of `x Φ(x)`, exact GELU, to 2e-7 absolute. It tends to 0 and 1; at infinities it is the
/// limit to within 1e-36, and NaN for NaN.
///
/// With `a = |x|` it is `h(a) = φ(a) (Φ(-a)/φ(a) - a)` for negative and `1 - h(a)` for positive `x`. The
/// ratio `sqrt(2π) Φ(-a)/φ(a)` (Mills, up to the constant) is smooth, so one polynomial in `1 / (1 + a/3)`
/// serves the whole range: its coefficients are a relative minimax fit on `[0, 13.5]`, off by at most 9e-9.
#[inline(always)]
pub(super) fn gelu_derivative(x: f32) -> f32 {
    const SCALE: f32 = 0.33;
    const MILLS: [f32; 10] = [
        -0.026_388_602,
        0.151_245_55,
        -0.328_255_13,
        0.299_083_86,
        -0.112_614_52,
        0.148_820_69,
        0.102_778_635,
        0.133_863_64,
        0.131_458_62,
        7.263_99e-6,
    ];
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    // e^(-x²/2) leaves the range of normal numbers beyond this. A comparison lets NaN through, min does not.
    const LIMIT: f32 = 13.2;
    let a = x.abs();
    let a = if a > LIMIT { LIMIT } else { a };
    let bell = exp(-0.5 * a * a);
    let t = 1.0 / a.mul_add(SCALE, 1.0);
    let mut mills = MILLS[0];
    for coefficient in &MILLS[1..] {
        mills = mills.mul_add(t, *coefficient);
    }
    let tail = bell * a.mul_add(-INV_SQRT_2PI, mills);
    if x > 0.0 { 1.0 - tail } else { tail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use statrs::function::erf::erfc;

    fn reference(x: f64) -> f64 {
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        0.5 * erfc(-x / std::f64::consts::SQRT_2) + x * density
    }

    #[test]
    fn exp_is_accurate_over_its_range() {
        for i in 0..=1_753_000 {
            let x = -87.3 + i as f32 * 1e-4;
            let (got, want) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((got / want - 1.0).abs() < 2e-7, "exp({x}) = {got}, not {want}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_derivative_is_accurate_everywhere() {
        let grid = (-400_000..=400_000).map(|i| i as f32 * 1e-4);
        let extremes = [0.0, -0.0, 1e-30, -1e-30, 40.0, -40.0, 1e4, -1e4, f32::MAX, f32::MIN];
        for x in grid.chain(extremes) {
            let (got, want) = (f64::from(gelu_derivative(x)), reference(f64::from(x)));
            assert!((got - want).abs() < 2e-7, "gelu'({x}) = {got}, not {want}");
        }
    }

    #[test]
    fn limits_and_nan() {
        assert_eq!(gelu_derivative(f32::INFINITY), 1.0);
        assert!(gelu_derivative(f32::NEG_INFINITY).abs() < 1e-36);
        assert!(gelu_derivative(f32::NAN).is_nan());
    }
}
