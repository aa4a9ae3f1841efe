//! A number of about 106 bits: the unevaluated sum of two `f64`.
//!
//! ```text
//! two_sum(a, b)  = (s, e)   s = fl(a + b),  s + e = a + b exactly     Knuth: any order of magnitudes
//! two_prod(a, b) = (p, e)   p = fl(a · b),  p + e = a · b exactly     Dekker, on halves split by Veltkamp
//! ```
//!
//! Every operation forms the leading terms exactly by these two, adds what is smaller in plain `f64`, and normalizes, so
//! that `hi` is the value rounded to `f64`. The relative error of one operation is at most about 2⁻¹⁰².

use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// The number `hi + lo`, where `hi` is that sum rounded to `f64`.
///
/// Source: Dekker, *A floating-point technique for extending the available precision* (1971), with the addition that
/// also keeps the low parts' rounding error, so that a difference of near numbers keeps its digits.
///
/// `hi` has the range of `f64`. A result beyond it is not finite. An operation whose low part falls below 2⁻¹⁰⁷⁴ is
/// rounded there.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd)]
pub struct Double {
    /// The value, rounded to `f64`.
    pub hi: f64,
    /// What `hi` misses: at most half a unit in its last place.
    pub lo: f64,
}

impl Double {
    /// The number 0.
    pub const ZERO: Double = Double { hi: 0.0, lo: 0.0 };

    /// The number 1.
    pub const ONE: Double = Double { hi: 1.0, lo: 0.0 };

    /// a + b, exactly.
    pub fn sum(a: f64, b: f64) -> Double {
        let (hi, lo) = two_sum(a, b);
        Double { hi, lo }
    }

    /// a · b, exactly.
    pub fn product(a: f64, b: f64) -> Double {
        let (hi, lo) = two_prod(a, b);
        Double { hi, lo }
    }

    /// The nearest `f64`.
    pub fn to_f64(self) -> f64 {
        self.hi
    }

    /// |self|
    pub fn abs(self) -> Double {
        if self < Double::ZERO { -self } else { self }
    }

    /// √self: NaN below 0.
    ///
    /// One step of Newton from the `f64` root, which doubles its 53 bits. Below about 2⁻⁹⁰⁰ the step's residual
    /// underflows and bits are lost; bring such a number up by [`times_power_of_two`](Double::times_power_of_two).
    pub fn sqrt(self) -> Double {
        let root = self.hi.sqrt();
        if root == 0.0 {
            return Double::ZERO;
        }
        let residual = self - Double::product(root, root);
        let (hi, lo) = fast_two_sum(root, residual.hi / (2.0 * root));
        Double { hi, lo }
    }

    /// self · 2^exponent: exact where both parts stay normal numbers.
    pub fn times_power_of_two(self, exponent: i32) -> Double {
        let Double { mut hi, mut lo } = self;
        let mut left = exponent;
        while left != 0 {
            let step = left.clamp(-1000, 1000);
            let power = f64::from_bits(((1023 + step) as u64) << 52);
            hi *= power;
            lo *= power;
            left -= step;
        }
        Double { hi, lo }
    }
}

impl From<f64> for Double {
    fn from(hi: f64) -> Double {
        Double { hi, lo: 0.0 }
    }
}

impl Neg for Double {
    type Output = Double;

    fn neg(self) -> Double {
        Double { hi: -self.hi, lo: -self.lo }
    }
}

impl<T: Into<Double>> Add<T> for Double {
    type Output = Double;

    fn add(self, other: T) -> Double {
        let other = other.into();
        let (high, high_error) = two_sum(self.hi, other.hi);
        let (low, low_error) = two_sum(self.lo, other.lo);
        let (high, rest) = fast_two_sum(high, high_error + low);
        let (hi, lo) = fast_two_sum(high, rest + low_error);
        Double { hi, lo }
    }
}

impl<T: Into<Double>> AddAssign<T> for Double {
    fn add_assign(&mut self, other: T) {
        *self = *self + other;
    }
}

impl<T: Into<Double>> Sub<T> for Double {
    type Output = Double;

    fn sub(self, other: T) -> Double {
        self + -other.into()
    }
}

impl<T: Into<Double>> Mul<T> for Double {
    type Output = Double;

    fn mul(self, other: T) -> Double {
        let other = other.into();
        let (high, error) = two_prod(self.hi, other.hi);
        let (hi, lo) = fast_two_sum(high, error + (self.hi * other.lo + self.lo * other.hi));
        Double { hi, lo }
    }
}

impl<T: Into<Double>> Div<T> for Double {
    type Output = Double;

    /// Long division: two digits of 53 bits.
    fn div(self, other: T) -> Double {
        let other = other.into();
        let first = self.hi / other.hi;
        let rest = self - other * first;
        let (hi, lo) = fast_two_sum(first, rest.hi / other.hi);
        Double { hi, lo }
    }
}

/// a + b = sum + error, exactly.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    let a_part = sum - b_part;
    (sum, (a - a_part) + (b - b_part))
}

/// As [`two_sum`], where |a| ≥ |b| or a = 0.
fn fast_two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    (sum, b - (sum - a))
}

/// a · b = product + error, exactly unless the error is below 2⁻¹⁰⁷⁴.
fn two_prod(a: f64, b: f64) -> (f64, f64) {
    /// Splitting multiplies by 2²⁷ and must not overflow.
    const SPLITTABLE: f64 = f64::from_bits((1023 + 990) << 52);

    let product = a * b;
    if a.abs() < SPLITTABLE && b.abs() < SPLITTABLE && product.abs() < SPLITTABLE {
        let ((a_high, a_low), (b_high, b_low)) = (split(a), split(b));
        let error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
        return (product, error);
    }
    (product, two_prod_error_of_large(a, b, product))
}

/// `mul_add` is right for every magnitude, but without the instruction it is a slow call: kept out of the way.
#[cold]
fn two_prod_error_of_large(a: f64, b: f64, product: f64) -> f64 {
    if product.is_infinite() { 0.0 } else { a.mul_add(b, -product) }
}

/// `a` as a sum of two numbers of 26 bits, whose products are exact.
fn split(a: f64) -> (f64, f64) {
    let shifted = a * 134_217_729.0; // 2²⁷ + 1
    let high = shifted - (shifted - a);
    (high, a - high)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    /// The exact integer value of a `Double` whose parts are integers.
    fn integer(a: Double) -> i128 {
        assert!(a.hi.fract() == 0.0 && a.lo.fract() == 0.0, "{a:?} is no integer");
        a.hi as i128 + a.lo as i128
    }

    /// Integers of up to `bits` bits and either sign.
    fn integers(bits: i32, seed: u64) -> Vec<f64> {
        pattern(1000, seed).iter().map(|v| (v / 6.0 * f64::from(bits).exp2()).trunc()).collect()
    }

    fn assert_near(got: Double, want: Double, relative: f64) {
        let error = (got - want).abs().to_f64();
        assert!(error <= relative * want.abs().to_f64(), "got {got:?}, want {want:?}, off by {error:e}");
    }

    #[test]
    fn a_sum_of_two_f64_is_exact() {
        for (&a, &b) in integers(100, 1).iter().zip(&integers(70, 2)) {
            assert_eq!(integer(Double::sum(a, b)), a as i128 + b as i128, "{a} + {b}");
            assert_eq!(integer(Double::sum(b, a)), a as i128 + b as i128, "{b} + {a}");
        }
    }

    #[test]
    fn a_product_of_two_f64_is_exact() {
        for (&a, &b) in integers(53, 3).iter().zip(&integers(53, 4)) {
            assert_eq!(integer(Double::product(a, b)), a as i128 * b as i128, "{a} · {b}");
        }
    }

    #[test]
    fn a_product_beyond_splitting_is_that_of_mul_add() {
        for (a, b) in [(1.1e300, 1.3), (-1.7e308, 0.9), (1.3e-5, 1e305), (1.1e155, 1.3e153), (1.1e308, 1.1e-308)] {
            let p = a * b;
            assert_eq!(Double::product(a, b), Double { hi: p, lo: a.mul_add(b, -p) }, "{a:e} · {b:e}");
        }
        assert_eq!(Double::product(1e200, 1e200).to_f64(), f64::INFINITY);
        assert!(Double::product(f64::NAN, 1.0).to_f64().is_nan());
    }

    #[test]
    fn what_is_added_comes_back_when_the_rest_is_taken_away() {
        for (&a, &b) in pattern(1000, 5).iter().zip(&pattern(1000, 6)) {
            for small in [1.0, 1e-5, 1e-15] {
                let b = b * small;
                assert_eq!((Double::from(a) + b - a).to_f64(), b, "({a} + {b}) − {a}");
            }
        }
        assert_eq!((Double::from(1e16) + 1.0 - 1e16).to_f64(), 1.0);
    }

    #[test]
    fn sums_of_wide_integers_are_exact() {
        let (a, b) = (integers(53, 7), integers(53, 8));
        for i in 0..999 {
            // 2⁵⁰ keeps |v| below 2¹⁰⁴: nothing needs rounding.
            let wide = |high: f64, low: f64| Double::from(high) * 2f64.powi(50) + low;
            let (v, w) = (wide(a[i], b[i]), wide(b[i + 1], a[i + 1]));
            assert_eq!(integer(v + w), integer(v) + integer(w), "{v:?} + {w:?}");
            assert_eq!(integer(v - w), integer(v) - integer(w), "{v:?} − {w:?}");
        }
    }

    #[test]
    fn low_parts_keep_their_digits_when_high_parts_cancel() {
        let (tiny, tinier) = (2f64.powi(-60), 2f64.powi(-120));
        assert_eq!(Double::sum(1.0, tiny) + Double::sum(-1.0, tinier), Double { hi: tiny, lo: tinier });
        assert_eq!(Double::sum(1.0, tiny) - Double::sum(1.0, -tinier), Double { hi: tiny, lo: tinier });
    }

    #[test]
    fn division_undoes_multiplication() {
        assert_near(Double::ONE / 3.0 * 3.0, Double::ONE, 1e-31);
        assert_eq!(Double::from(3.0) / 3.0, Double::ONE);
        for (&a, &b) in pattern(1000, 9).iter().zip(&pattern(1000, 10)) {
            let (v, w) = (Double::from(a) / 7.0, Double::from(b) / 11.0);
            assert_near(v / w * w, v, 1e-31);
            assert_near(v * w / w, v, 1e-31);
        }
    }

    #[test]
    fn a_quotient_that_is_an_f64_is_exact() {
        for (i, &c) in pattern(1000, 11).iter().enumerate() {
            let n = (i + 1) as f64;
            assert_eq!(Double::product(c, n) / n, Double::from(c), "{c} · {n} / {n}");
        }
    }

    #[test]
    fn a_product_keeps_its_terms() {
        // (a + b)(a − b) = a² − b², where all but the first product is exact.
        for (&a, &b) in pattern(1000, 12).iter().zip(&pattern(1000, 13)) {
            let (sum, difference) = (Double::sum(a, b), Double::sum(a, -b));
            let error = sum * difference - (Double::product(a, a) - Double::product(b, b));
            assert!(error.abs().to_f64() <= 1e-31 * (a * a + b * b), "a {a}, b {b}, off by {error:?}");
        }
    }

    #[test]
    fn a_root_squared_is_the_number() {
        assert_near(Double::from(2.0).sqrt() * Double::from(2.0).sqrt(), Double::from(2.0), 1e-31);
        assert_eq!(Double::from(9.0).sqrt(), Double::from(3.0));
        assert_eq!(Double::ZERO.sqrt(), Double::ZERO);
        assert!(Double::from(-1.0).sqrt().to_f64().is_nan());
        for &a in &pattern(1000, 14) {
            for exponent in [-800, 0, 900] {
                let v = (Double::from(a).abs() / 7.0).times_power_of_two(exponent);
                assert_near(v.sqrt() * v.sqrt(), v, 1e-31);
            }
        }
    }

    #[test]
    fn constants_have_their_digits() {
        // √2 = 1.4142135623730950488016887242096980785696…, 1/3 = 0.33…
        let digits = Double::from(14_142_135_623_730_950.0) * 1e16 + 4_880_168_872_420_970.0;
        assert_near(Double::from(2.0).sqrt(), digits / 1e16 / 1e16, 1e-31);
        assert_eq!(Double::ONE / 3.0, Double { hi: 1.0 / 3.0, lo: 2f64.powi(-54) / 3.0 });
    }

    #[test]
    fn order_is_that_of_the_values() {
        let (below, one, above) = (Double::sum(1.0, -1e-20), Double::ONE, Double::sum(1.0, 1e-20));
        assert!(below < one && one < above && -above < -one);
        assert_eq!((-below).abs(), below);
        assert_eq!((below - one).to_f64(), -1e-20);
    }

    #[test]
    fn powers_of_two_are_exact() {
        let third = Double::ONE / 3.0;
        for exponent in [-900, -1, 0, 1, 1000, 1020] {
            assert_eq!(third.times_power_of_two(exponent).times_power_of_two(-exponent), third, "2^{exponent}");
        }
        assert_eq!(Double::from(f64::from_bits(1)).times_power_of_two(1074), Double::ONE);
        assert_eq!(Double::ONE.times_power_of_two(-1074).to_f64(), f64::from_bits(1));
    }
}
