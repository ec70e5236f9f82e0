//! Functions of the normal distribution, and sums in log space.

use std::f64::consts::{LN_2, PI, SQRT_2};

/// P(N(0, 1) <= x).
pub(crate) fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / SQRT_2)
}

/// ln erfc(x), also where erfc itself is below the smallest float.
pub(crate) fn ln_erfc(x: f64) -> f64 {
    if x < 25.0 {
        return libm::erfc(x).ln();
    }
    // The asymptotic series: erfc(x) = exp(-x^2) / (x sqrt(pi)) (1 - 1/(2x^2) + 3/(4x^4) - ...)
    let square = x * x;
    let series = 1.0 - 0.5 / square + 0.75 / square.powi(2) - 1.875 / square.powi(3);
    -square - x.ln() - 0.5 * PI.ln() + series.ln()
}

/// ln P(N(0, 1) <= x).
pub(crate) fn ln_normal_cdf(x: f64) -> f64 {
    ln_erfc(-x / SQRT_2) - LN_2
}

/// ln(exp(a) + exp(b)).
pub(crate) fn ln_add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// ln(exp(a) - exp(b)); minus infinity where b is not smaller.
pub(crate) fn ln_sub(a: f64, b: f64) -> f64 {
    if b == f64::NEG_INFINITY {
        a
    } else if a <= b {
        f64::NEG_INFINITY
    } else {
        a + (-(b - a).exp_m1()).ln()
    }
}

/// ln of the binomial coefficient of integers.
pub(crate) fn ln_choose(n: u32, k: u32) -> f64 {
    let ln_factorial = |n: u32| libm::lgamma(f64::from(n) + 1.0);
    ln_factorial(n) - ln_factorial(k) - ln_factorial(n - k)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_goes_on_where_erfc_ends() {
        // ln erfc(25) and ln erfc(100), by mpmath.
        for (x, wanted) in [(25.0, -628.792_039_174_071_7), (100.0, -10_005.177_585_122_664)] {
            assert!((ln_erfc(x) - wanted).abs() < 1e-9 * wanted.abs(), "{x}: {}", ln_erfc(x));
        }
        let (before, after) = (ln_erfc(25.0 - 1e-9), ln_erfc(25.0));
        assert!((before - after).abs() < 1e-7, "{before} {after}");
        assert!((ln_normal_cdf(1.0) - normal_cdf(1.0).ln()).abs() < 1e-14);
    }

    #[test]
    fn sums_in_log_space() {
        assert!((ln_add(2f64.ln(), 3f64.ln()) - 5f64.ln()).abs() < 1e-15);
        assert!((ln_sub(5f64.ln(), 3f64.ln()) - 2f64.ln()).abs() < 1e-15);
        assert_eq!(ln_add(f64::NEG_INFINITY, 1.0), 1.0);
        assert_eq!(ln_sub(1.0, 1.0), f64::NEG_INFINITY);
        assert!((ln_choose(10, 3) - 120f64.ln()).abs() < 1e-13);
    }
}
