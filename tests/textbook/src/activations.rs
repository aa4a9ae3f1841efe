//! e^x, sigmoid and tanh in double-double: the oracle for f64.
//!
//! ```text
//! n = round(x / ln 2),   r = x − n·ln 2                              |r| ≤ 0.35
//! E(r) = r·(1 + r/2·(1 + r/3·(1 + … r/30)))                          e^r − 1: Taylor
//! e^x = (1 + E(r)) · 2ⁿ
//! sigmoid(x) = 1/(1 + e^−x) = e^x/(1 + e^x)                          the one whose power does not grow
//! tanh |x| = −E/(2 + E),   E = e^(−2|x|) − 1                         Taylor again where 2|x| ≤ 0.35
//! ```
//!
//! The thirty-first term is below 2⁻¹⁵⁰; n·ln 2 is off by 1100·2⁻¹⁰⁷ at most, which is then the relative error of e^x:
//! 2⁻⁹⁶. Results may be too small for both parts of a [`Double`], so a power of two is handed out beside it.

use crate::Double;

/// ln 2 = 0.693147180559945309417232121458176568…
const LN_2: Double = Double { hi: std::f64::consts::LN_2, lo: 2.319_046_813_846_299_6e-17 };

/// Terms of Taylor's series.
const TERMS: u32 = 30;

/// e^x = m·2ⁿ as (m, n), with m within [0.7, 1.42]; x beyond ±2000 counts as that.
///
/// NaN gives NaN.
pub fn exp(x: f64) -> (Double, i32) {
    let x = x.clamp(-2000.0, 2000.0);
    let n = (x / LN_2.hi).round();
    (Double::ONE + taylor(Double::from(x) - LN_2 * n), n as i32)
}

/// 1/(1 + e^−x) = m·2ⁿ as (m, n).
pub fn sigmoid(x: f64) -> (Double, i32) {
    let (m, n) = exp(-x.abs());
    let sum = m.times_power_of_two(n) + 1.0;
    if x < 0.0 { (m / sum, n) } else { (Double::ONE / sum, 0) }
}

/// tanh x = (e^2x − 1)/(e^2x + 1).
pub fn tanh(x: f64) -> Double {
    let twice = -2.0 * x.abs();
    let e = if twice > -0.35 {
        taylor(Double::from(twice))
    } else {
        let (m, n) = exp(twice);
        m.times_power_of_two(n) - 1.0
    };
    let y = -e / (e + 2.0);
    if x < 0.0 { -y } else { y }
}

/// e^r − 1 of a small r.
fn taylor(r: Double) -> Double {
    let mut sum = Double::ONE;
    for k in (2..=TERMS).rev() {
        sum = r / f64::from(k) * sum + 1.0;
    }
    r * sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    /// The number with these digits behind its point, 16 each.
    fn decimal(integer: f64, digits: [f64; 2]) -> Double {
        (Double::from(digits[1]) / 1e16 + digits[0]) / 1e16 + integer
    }

    fn assert_near(got: Double, want: Double, what: &str) {
        let error = (got - want).abs().to_f64();
        assert!(error <= 2f64.powi(-94) * want.abs().to_f64(), "{what}: got {got:?}, want {want:?}, off by {error:e}");
    }

    fn scaled((m, n): (Double, i32)) -> Double {
        m.times_power_of_two(n)
    }

    #[test]
    fn known_values_have_their_digits() {
        assert_near(LN_2, decimal(0.0, [6_931_471_805_599_453.0, 941_723_212_145_818.0]), "ln 2");
        let e = decimal(2.0, [7_182_818_284_590_452.0, 3_536_028_747_135_266.0]);
        assert_near(scaled(exp(1.0)), e, "e");
        assert_near(scaled(exp(-1.0)), Double::ONE / e, "1/e");
        assert_near(scaled(exp(3.0)), e * e * e, "e³");
        assert_near(scaled(sigmoid(1.0)), e / (e + 1.0), "sigmoid(1)");
        assert_near(tanh(0.5), (e - 1.0) / (e + 1.0), "tanh(1/2)");
        assert_eq!((exp(0.0), scaled(sigmoid(0.0)).hi, tanh(0.0).hi), ((Double::ONE, 0), 0.5, 0.0));
    }

    #[test]
    fn a_sum_gives_a_product() {
        for (&a, &b) in pattern(2000, 1).iter().zip(&pattern(2000, 2)) {
            // Multiples of 1/64 have an exact sum.
            let (a, b) = ((a * 64.0 * 50.0).round() / 64.0, (b * 64.0 * 50.0).round() / 64.0);
            let product = scaled(exp(a)) * scaled(exp(b));
            assert_near(product, scaled(exp(a + b)), &format!("e^({a} + {b})"));
        }
    }

    #[test]
    fn sigmoid_and_tanh_are_what_they_are_of_e_to_the_x() {
        for &x in &pattern(2000, 3) {
            let e = scaled(exp(x));
            assert_near(scaled(sigmoid(x)), e / (e + 1.0), &format!("sigmoid({x})"));
            assert_near(scaled(sigmoid(x)) + scaled(sigmoid(-x)), Double::ONE, &format!("sigmoid(±{x})"));
            let (sinh, cosh) = (e - Double::ONE / e, e + Double::ONE / e);
            // The difference loses what it cancels.
            let error = (tanh(x) - sinh / cosh).abs().to_f64();
            assert!(error <= 2f64.powi(-94), "tanh({x}) is off by {error:e}");
            assert_eq!(tanh(-x), -tanh(x), "tanh(±{x})");
        }
    }

    #[test]
    fn a_small_tanh_follows_its_series() {
        for &x in &pattern(1000, 4) {
            let x = x * 2f64.powi(-20);
            let square = Double::product(x, x);
            // x − x³/3 + 2x⁵/15 − 17x⁷/315; the next term is below 2⁻¹²⁰ of x.
            let series =
                Double::ONE - square / 3.0 + square * square * 2.0 / 15.0 - square * square * square * 17.0 / 315.0;
            assert_near(tanh(x), series * x, &format!("tanh({x})"));
        }
        assert_eq!(tanh(1e-300).hi, 1e-300);
        assert_eq!(tanh(f64::from_bits(1)).hi, f64::from_bits(1));
    }

    #[test]
    fn ends_are_right() {
        assert_eq!(tanh(400.0), Double::ONE);
        assert_eq!(tanh(f64::NEG_INFINITY), -Double::ONE);
        assert_eq!(sigmoid(f64::INFINITY), (Double::ONE, 0));
        // e^−745 is subnormal, and keeps its digits beside the power.
        let (m, n) = exp(-745.0);
        let ((a, i), (b, j)) = (exp(-345.0), exp(-400.0));
        assert_near(m, (a * b).times_power_of_two(i + j - n), "e^−745");
        assert!(exp(f64::NAN).0.hi.is_nan() && sigmoid(f64::NAN).0.hi.is_nan() && tanh(f64::NAN).hi.is_nan());
    }
}
