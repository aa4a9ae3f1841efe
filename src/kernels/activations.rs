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
mod tests {
    use fearless_simd::{Level, dispatch};
    use textbook::Double;

    use super::*;
    use crate::number::power_of_two;
    use crate::simd::{available, load, name};

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Function {
        Exp,
        Sigmoid,
        Tanh,
    }
    use Function::*;

    impl Function {
        const ALL: [Self; 3] = [Exp, Sigmoid, Tanh];

        /// The ulps that the page derives.
        fn budget(self, subnormal: bool) -> f64 {
            match self {
                // It is x.
                Tanh if subnormal => 0.0,
                Exp | Sigmoid if subnormal => 1.1,
                Exp => 1.2,
                Sigmoid => 2.6,
                Tanh => 2.7,
            }
        }
    }

    #[simd]
    fn apply<S: Simd, T: Number>(simd: S, function: Function, x: &[T], y: &mut [T]) {
        for (x, y) in T::chunks(x).0.iter().zip(T::chunks_mut(y).0) {
            let x = load::<S, T>(simd, x);
            let lanes = match function {
                Exp => exp::<S, T>(simd, x),
                Sigmoid => sigmoid::<S, T>(simd, x),
                Tanh => tanh::<S, T>(simd, x),
            };
            lanes.store_array(y);
        }
    }

    /// The function of each number, of any length, on this level.
    fn run<T: Tested>(level: Level, function: Function, x: &[T]) -> Vec<T> {
        let mut padded = x.to_vec();
        padded.resize(x.len().next_multiple_of(T::LANES), T::zero());
        let mut y = vec![T::nan(); padded.len()];
        dispatch!(level, simd => apply(simd, function, &padded, &mut y));
        y.truncate(x.len());
        y
    }

    trait Tested: Number {
        /// The exponents of the lowest normal number and of the last digit of 1.
        const LOWEST: i32;
        const LAST: i32;
        /// Every bit of a number.
        const WIDTH: u32;
        /// The function's value, m·2ⁿ as (m, n), to many more digits than this number has.
        fn right(function: Function, x: Self) -> (Double, i32);
        fn of_bits(bits: u64) -> Self;
        /// One NaN is like another.
        fn bits(self) -> u64;
    }

    impl Tested for f32 {
        const LOWEST: i32 = -126;
        const LAST: i32 = -23;
        const WIDTH: u32 = 32;

        /// By f64, whose own error is below 2⁻²⁷ of an ulp.
        fn right(function: Function, x: Self) -> (Double, i32) {
            let x = f64::from(x);
            let value = match function {
                Exp => x.exp(),
                Sigmoid => 1.0 / (1.0 + (-x).exp()),
                Tanh => x.tanh(),
            };
            (Double::from(value), 0)
        }

        fn of_bits(bits: u64) -> Self {
            Self::from_bits(bits as u32)
        }

        fn bits(self) -> u64 {
            if self.is_nan() { Self::NAN.to_bits().into() } else { self.to_bits().into() }
        }
    }

    impl Tested for f64 {
        const LOWEST: i32 = -1022;
        const LAST: i32 = -52;
        const WIDTH: u32 = 64;

        fn right(function: Function, x: Self) -> (Double, i32) {
            match function {
                Exp => textbook::exp(x),
                Sigmoid => textbook::sigmoid(x),
                Tanh => (textbook::tanh(x), 0),
            }
        }

        fn of_bits(bits: u64) -> Self {
            Self::from_bits(bits)
        }

        fn bits(self) -> u64 {
            if self.is_nan() { Self::NAN.to_bits() } else { self.to_bits() }
        }
    }

    /// ⌊log₂ |x|⌋ of a normal number.
    fn exponent(x: f64) -> i32 {
        (x.to_bits() >> 52 & 0x7ff) as i32 - 1023
    }

    /// The distance of `got` from m·2ⁿ in units of the last place of m·2ⁿ.
    fn ulps<T: Tested>(got: T, (m, n): (Double, i32)) -> f64 {
        // Rounded to nearest, what is beyond the largest number is infinite.
        let largest = 1 - T::LOWEST;
        if exponent(m.hi) + n > largest || got.is_infinite() {
            let half_above = Double::from(2.0) - power_of_two(T::LAST - 1);
            let beyond = m.abs().times_power_of_two(n - largest) >= half_above;
            return if got.is_infinite() && beyond { 0.0 } else { f64::INFINITY };
        }
        if m.hi == 0.0 {
            return if got.is_zero() { 0.0 } else { f64::INFINITY };
        }
        let last = (exponent(m.hi) + n).max(T::LOWEST) + T::LAST;
        let error = Double::from(got.into()).times_power_of_two(-n) - m;
        error.abs().times_power_of_two(n - last).to_f64()
    }

    /// Checks every number against the oracle, on this CPU's level, and the others against that.
    fn check<T: Tested>(function: Function, x: &[T]) -> [(f64, T); 2] {
        let got = run(Level::new(), function, x);
        for level in available() {
            for ((x, got), other) in x.iter().zip(&got).zip(run(level, function, x)) {
                assert!(got.bits() == other.bits(), "{function:?}({x:e}): {got:e}, but {other:e} on {}", name(level));
            }
        }
        let mut worst = [(0.0, T::zero()); 2];
        for (&x, &y) in x.iter().zip(&got).filter(|(x, _)| x.is_finite()) {
            let right = T::right(function, x);
            let error = ulps(y, right);
            let subnormal = exponent(right.0.hi) + right.1 < T::LOWEST;
            let budget = function.budget(subnormal);
            assert!(error <= budget, "{function:?}({x:e}) = {y:e} is off by {error} ulp; right is {right:?}");
            if error > worst[usize::from(subnormal)].0 {
                worst[usize::from(subnormal)] = (error, x);
            }
        }
        worst
    }

    /// Where a step of the algorithm changes its mind, and the numbers around.
    fn switch_points<T: Tested>() -> Vec<T> {
        let constants = T::EXPONENTIAL;
        let ends = [constants.zero, constants.infinite, constants.negligible, T::max_value(), T::zero()];
        let mut points: Vec<f64> = ends.into_iter().map(T::into).collect();
        for half in 0..=2 * (2 - T::LOWEST - T::LAST) {
            // n changes at the odd ones, |x| and 2|x|.
            points.push(f64::from(half) * std::f64::consts::LN_2 / 2.0);
            points.push(f64::from(half) * std::f64::consts::LN_2 / 4.0);
        }
        let near = points.into_iter().flat_map(|point| {
            let bits = T::nearest(point.abs()).bits();
            (bits.saturating_sub(20)..=bits + 20).map(T::of_bits)
        });
        near.filter(|x| !x.is_nan()).flat_map(|x| [x, -x]).collect()
    }

    /// `count` numbers within ±`reach`, evenly spread, and so that no two blocks are alike.
    fn spread<T: Tested>(count: usize, reach: f64) -> Vec<T> {
        let golden = 0.618_033_988_749_894_9;
        (0..count).map(|i| T::nearest(reach * (2.0 * (i as f64 * golden).fract() - 1.0))).collect()
    }

    /// `count` numbers of every magnitude.
    fn every_magnitude<T: Tested>(count: u64) -> Vec<T> {
        let stride = ((1 << (T::WIDTH - 1)) / (count / 2)) | 1;
        let low = (1..=count / 2).map(|i| i * stride).flat_map(|bits| [T::of_bits(bits), -T::of_bits(bits)]);
        low.filter(|x| !x.is_nan()).collect()
    }

    fn check_accuracy<T: Tested>(count: usize) {
        for function in Function::ALL {
            let mut worst = [(0.0, T::zero()); 2];
            let mut all = 0;
            let reaches =
                [1.0, 3.0, 20.0, 1.05 * f64::max(T::EXPONENTIAL.infinite.into(), -T::EXPONENTIAL.zero.into())];
            let inputs = reaches.into_iter().map(|reach| spread(count, reach));
            for x in inputs.chain([switch_points::<T>(), every_magnitude(count as u64)]) {
                all += x.len();
                let here = check(function, &x);
                for (worst, here) in worst.iter_mut().zip(here) {
                    *worst = if here.0 > worst.0 { here } else { *worst };
                }
            }
            println!("{function:?}: {all} numbers, worst {worst:?}");
        }
    }

    /// FNV-1a of the bits of f32 and of f64. Changing a number here is a `Bits` line in CHANGELOG.
    const GOLDEN: [(Function, [u64; 2]); 3] = [
        (Exp, [0xb1f4e6f246a1dfc6, 0x3f31cb0b50f0c16e]),
        (Sigmoid, [0x753cff891a8abcfb, 0x4720eef007fc4d6a]),
        (Tanh, [0x37962a5af17b683c, 0x739758dd3e6dbd96]),
    ];

    /// Of so many numbers that a change of the last coefficient by its last digit is seen.
    fn hash<T: Tested>(level: Level, function: Function) -> u64 {
        let x = [spread(200_000, 20.0), every_magnitude(20_000)].concat();
        let bytes = run::<T>(level, function, &x).into_iter().flat_map(|y| y.bits().to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    }

    #[test]
    fn the_bits_are_those_of_the_last_release() {
        for level in available() {
            let all =
                Function::ALL.map(|function| (function, [hash::<f32>(level, function), hash::<f64>(level, function)]));
            assert!(all == GOLDEN, "other bits than before on {}. They are now {all:#x?}", name(level));
        }
    }

    #[test]
    fn f32_is_within_its_ulps_on_every_level() {
        check_accuracy::<f32>(200_000);
    }

    #[test]
    fn f64_is_within_its_ulps_on_every_level() {
        check_accuracy::<f64>(100_000);
    }

    /// Every `stride`-th f32, both signs.
    fn sweep(stride: usize) {
        for function in Function::ALL {
            let mut worst = [(0.0, 0.0); 2];
            let mut block = Vec::new();
            for bits in (0..=f32::INFINITY.to_bits()).step_by(stride) {
                block.extend([f32::from_bits(bits), -f32::from_bits(bits)]);
                if block.len() >= 1 << 16 {
                    for (worst, here) in worst.iter_mut().zip(check(function, &block)) {
                        *worst = if here.0 > worst.0 { here } else { *worst };
                    }
                    block.clear();
                }
            }
            check(function, &block);
            println!("{function:?}: worst {worst:?}");
        }
    }

    #[test]
    fn f32_of_every_magnitude_are_within_their_ulps() {
        sweep(997);
    }

    fn check_special<T: Tested>() {
        let (zero, one, infinite) = (T::zero(), T::one(), T::infinity());
        let half = one / (one + one);
        let smallest = T::of_bits(1);
        let rows = [
            (Exp, zero, one),
            (Exp, -zero, one),
            (Exp, smallest, one),
            (Exp, -smallest, one),
            (Exp, infinite, infinite),
            (Exp, -infinite, zero),
            (Exp, T::max_value(), infinite),
            (Exp, -T::max_value(), zero),
            (Sigmoid, zero, half),
            (Sigmoid, -zero, half),
            (Sigmoid, smallest, half),
            (Sigmoid, -smallest, half),
            (Sigmoid, infinite, one),
            (Sigmoid, -infinite, zero),
            (Sigmoid, T::max_value(), one),
            (Sigmoid, -T::max_value(), zero),
            (Tanh, zero, zero),
            (Tanh, -zero, -zero),
            (Tanh, smallest, smallest),
            (Tanh, -smallest, -smallest),
            (Tanh, infinite, one),
            (Tanh, -infinite, -one),
            (Tanh, T::max_value(), one),
            (Tanh, -T::max_value(), -one),
            (Exp, T::nan(), T::nan()),
            (Sigmoid, T::nan(), T::nan()),
            (Tanh, T::nan(), T::nan()),
            (Exp, -T::nan(), T::nan()),
            (Sigmoid, -T::nan(), T::nan()),
            (Tanh, -T::nan(), T::nan()),
        ];
        for level in available() {
            for (function, x, y) in rows {
                let got = run(level, function, &[x])[0];
                assert!(got.bits() == y.bits(), "{function:?}({x:e}) = {got:e}, not {y:e}, on {}", name(level));
            }
            // Every payload, and its neighbours in the vector are not touched.
            let x: Vec<T> = (0..T::WIDTH)
                .map(|i| if i % 2 == 0 { T::of_bits(T::nan().bits() | 1 << (i / 2)) } else { one })
                .collect();
            for function in Function::ALL {
                let of_one = run(level, function, &[one])[0];
                for (i, y) in run(level, function, &x).into_iter().enumerate() {
                    assert!(
                        if i % 2 == 0 { y.is_nan() } else { y == of_one },
                        "{function:?} on {}, lane {i}: {y:e}",
                        name(level)
                    );
                }
            }
        }
    }

    #[test]
    fn zeros_infinities_and_nan_are_right() {
        check_special::<f32>();
        check_special::<f64>();
    }

    fn check_symmetry<T: Tested>() {
        let numbers: Vec<T> = [1.0, 20.0, 80.0].into_iter().flat_map(|reach| spread(50_000, reach)).collect();
        let negative: Vec<T> = numbers.iter().map(|&x| -x).collect();
        let of = |function, x: &[T]| run(Level::new(), function, x);
        for ((x, y), opposite) in numbers.iter().zip(of(Tanh, &numbers)).zip(of(Tanh, &negative)) {
            assert!(y.bits() == (-opposite).bits(), "tanh(±{x:e}): {y:e} and {opposite:e}");
            assert!(y.abs() <= T::one() && y.is_sign_negative() == x.is_sign_negative(), "tanh({x:e}) = {y:e}");
        }
        // One is below 1/2, the other above; then the sum's rounding.
        let near = 2.6 / 4.0 + 1.6 / 2.0 + 0.5;
        for ((x, y), opposite) in numbers.iter().zip(of(Sigmoid, &numbers)).zip(of(Sigmoid, &negative)) {
            let error = (y + opposite - T::one()).abs().into() / power_of_two(T::LAST);
            assert!(error <= near, "sigmoid(±{x:e}): {y:e} + {opposite:e} is off by {error} ulp");
            assert!(y <= T::one() && y > T::zero(), "sigmoid({x:e}) = {y:e}");
        }
        for ((x, y), opposite) in numbers.iter().zip(of(Exp, &numbers)).zip(of(Exp, &negative)) {
            assert!((*x > T::zero()) == (y > opposite), "e^±{x:e}: {y:e} and {opposite:e}");
        }
    }

    #[test]
    fn signs_mirror() {
        check_symmetry::<f32>();
        check_symmetry::<f64>();
    }

    #[test]
    fn n_ln2_high_is_exact() {
        fn check<T: Tested>() {
            let constants = T::EXPONENTIAL;
            let largest = 1 - T::LOWEST - T::LAST;
            for n in 0..=largest {
                let product = Double::product(constants.ln2_high.into(), f64::from(n));
                let got = T::nearest(f64::from(n)) * constants.ln2_high;
                assert_eq!((got.into(), 0.0), (product.hi, product.lo), "{n} · {}", constants.ln2_high);
            }
        }
        check::<f32>();
        check::<f64>();
    }
}
