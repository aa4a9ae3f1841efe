//! e^x, sigmoid and tanh of a vector, with the same bits on every instruction set.
//!
//! ```text
//! n = round(x / ln 2)                            x = n·ln 2 + r,  |r| ≤ ln 2 / 2
//! r = (x − n·ln2_high) − n·ln2_low
//! m = r + r²·q(r)                                e^r − 1
//!
//! exp:      x held within [zero, infinite]
//!           y = (1 + m) · 2^⌊n/2⌋ · 2^⌈n/2⌉
//!
//! sigmoid:  z = exp(−|x|)
//!           y = (x < 0 ? z : 1) / (1 + z)
//!
//! tanh:     n, m of −2|x|, held above `negligible`
//!           t = 2ⁿ·m                             e^(−2|x|) = 2ⁿ + t
//!           y = ((1 − 2ⁿ) − t) / ((1 + 2ⁿ) + t), with the sign of x
//! ```
//!
//! Only +, −, ·, /, comparisons and bits: no library's e^x, no FMA, no reciprocal that differs by CPU. No table and no
//! branch, and one division each in sigmoid and tanh.
//!
//! Why this order:
//! * ln 2 is two numbers, and `ln2_high` so short that n·ln2_high is exact; so is its difference to x. Only the last
//!   subtraction of r rounds.
//! * What is large is added last and exact until then: 1 to m, 1 ± 2ⁿ to t. Near 0, tanh has n = 0 and is −m/(2 + m),
//!   every digit kept; of a tiny x it is x itself.
//! * 2ⁿ is two factors where e^x may be subnormal or n one above the largest exponent, because no number is then 2ⁿ. The
//!   first product is exact, and the second rounds only to a subnormal number.
//! * −|x| keeps e^x from overflow: sigmoid of a very negative x is e^x, subnormal numbers included.
//! * Every comparison is false for NaN, so that NaN passes all of them and comes out.
//!
//! q has degree 4 in f32 and 9 in f64: the polynomial whose largest error in units of e^r − 1 on |r| ≤ 0.3466 is smallest
//! (exchange of extrema). f32's begins with 1/2, and its coefficients are rounded one after the other, the next ones
//! fitted again to what is left; f64's are rounded at once. Rounded, r²·q is off by 2^−25.9 (f32) and 2^−54.7 (f64) of
//! e^r − 1, and by 2^−27.2 and 2^−56.0 of e^r.
//!
//! Errors, with u = half an ulp of 1: the ulp is 2u from 1 up, u from 1/2, u/2 from 1/4.
//!
//! ```text
//! m:        r u/4·e^r, q u/8·e^r, rounding r²·q u/6, the sum u/4; less for |r| < 1/4    0.7u for r < 0, else 0.95u
//! exp:      m, and half an ulp for the last sum                                   1.2 ulp      measured 1.03
//! sigmoid:  from 1/2 up: z 0.6u, 1 + z u, times y²; the division half an ulp      1.6 ulp
//!           below: z 1.2 ulp at worst, 1 + z u, where an ulp of y is the smaller  2.6 ulp      measured 2.41
//! tanh:     2ⁿ·m, and the sums and the division half an ulp each                  2.7 ulp      measured 2.06
//! ```
//!
//! An ulp of a subnormal number is at least two of the normal one it was: 1.2/2 and half an ulp for its rounding, 1.1 ulp.
//! Measured: every f32 from 2^−30 to 128 and its negative, ten million f64.

use fearless_simd::{Bytes, Select, Simd, SimdBase, SimdFloat};
use fearless_simd_macros::simd;

use crate::number::Number;
use crate::simd::{Vector, splat};

/// e^x: 0 and ∞ at the infinities, NaN for NaN. Off by 1.2 ulp at most, subnormal results included.
#[cfg_attr(not(test), expect(dead_code, reason = "the cells need what is made of it"))]
#[inline(always)]
pub(crate) fn exp<S: Simd, T: Number>(simd: S, x: Vector<S, T>) -> Vector<S, T> {
    let infinite = splat(simd, T::EXPONENTIAL.infinite);
    exp_of_low::<S, T>(simd, x.simd_gt(infinite).select(infinite, x))
}

/// σ(x) = 1/(1 + e^−x): 0 and 1 at the infinities, NaN for NaN. Off by 2.6 ulp at most, subnormal results included.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd, T: Number>(simd: S, x: Vector<S, T>) -> Vector<S, T> {
    called(
        simd,
        x,
        #[inline(always)]
        |x| {
            let (zero, one) = (splat(simd, T::zero()), splat(simd, T::one()));
            let z = exp_of_low::<S, T>(simd, -x.abs());
            x.simd_lt(zero).select(z, one) / (one + z)
        },
    )
}

/// tanh x, ±1 at the infinities, NaN for NaN. Off by 2.7 ulp at most; tanh(−x) = −tanh x, and tanh x = x for a tiny x
/// and ±0.
#[inline(always)]
pub(crate) fn tanh<S: Simd, T: Number>(simd: S, x: Vector<S, T>) -> Vector<S, T> {
    called(
        simd,
        x,
        #[inline(always)]
        |x| {
            let one = splat(simd, T::one());
            let twice = x.abs() * (-T::one() - T::one());
            let twice = at_least(simd, twice, T::EXPONENTIAL.negligible);
            let (biased, m) = reduce::<S, T>(simd, twice, T::EXPONENTIAL.bias);
            let power = exponent_field::<S, T>(biased);
            let t = power * m;
            (((one - power) - t) / ((one + power) + t)).copysign(x)
        },
    )
}

/// f(x), by a call where registers are narrow: what a cell computes of a vector is thousands of instructions there, and the
/// scalar fallback would take ten minutes to compile them.
#[inline(always)]
fn called<S: Simd, V>(simd: S, x: V, f: impl FnOnce(V) -> V) -> V {
    if const { S::f32s::LEN < 8 } { apart(simd, x, f) } else { f(x) }
}

#[simd]
#[inline(never)]
fn apart<S: Simd, V>(_simd: S, x: V, f: impl FnOnce(V) -> V) -> V {
    f(x)
}

/// e^x of an x that is not above `infinite`.
#[inline(always)]
fn exp_of_low<S: Simd, T: Number>(simd: S, x: Vector<S, T>) -> Vector<S, T> {
    let x = at_least(simd, x, T::EXPONENTIAL.zero);
    let (biased, m) = reduce::<S, T>(simd, x, T::EXPONENTIAL.bias + T::EXPONENTIAL.bias);
    let half = biased >> 1;
    (splat(simd, T::one()) + m) * exponent_field::<S, T>(half) * exponent_field::<S, T>(biased - half)
}

/// x, or `lowest` where that is more.
#[inline(always)]
fn at_least<S: Simd, T: Number>(simd: S, x: Vector<S, T>, lowest: T) -> Vector<S, T> {
    let lowest = splat(simd, lowest);
    x.simd_lt(lowest).select(lowest, x)
}

/// Bits whose last ones are `bias` + n, and m.
#[inline(always)]
fn reduce<S: Simd, T: Number>(simd: S, x: Vector<S, T>, bias: T) -> (T::VectorBits<S>, Vector<S, T>) {
    let constants = T::EXPONENTIAL;
    let integer = splat(simd, constants.integer + bias);
    let shifted = x * constants.log2_e + integer;
    let n = shifted - integer;
    let r = (x - n * constants.ln2_high) - n * constants.ln2_low;
    let mut q = splat(simd, constants.q[constants.q.len() - 1]);
    for &coefficient in constants.q[..constants.q.len() - 1].iter().rev() {
        q = q * r + coefficient;
    }
    (shifted.bitcast(), r + r * r * q)
}

/// The number with these last bits as its exponent field and nothing else.
#[inline(always)]
fn exponent_field<S: Simd, T: Number>(bits: T::VectorBits<S>) -> Vector<S, T> {
    (bits << T::EXPONENTIAL.fraction_bits).bitcast()
}

#[cfg(test)]
mod tests;
