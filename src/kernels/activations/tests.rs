//! How far e^x, sigmoid and tanh are from the truth, in ulps, and their bits.

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
        let reaches = [1.0, 3.0, 20.0, 1.05 * f64::max(T::EXPONENTIAL.infinite.into(), -T::EXPONENTIAL.zero.into())];
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
    (Exp, [0x217f752e46a5a5cd, 0xea0becf6919d9eec]),
    (Sigmoid, [0x709d332d74caa3a7, 0x7615f8155f8fa92a]),
    (Tanh, [0xc4cfbb6e242e79ab, 0x8d4029a5a8f59dfd]),
];

/// A coefficient of f32 that is off by its last digit changes one of 100,000 results, near 0 where r is all of x.
fn hash<T: Tested>(level: Level, function: Function) -> u64 {
    let x = [spread(1_000_000, 0.5), spread(100_000, 20.0), every_magnitude(20_000)].concat();
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
        let x: Vec<T> =
            (0..T::WIDTH).map(|i| if i % 2 == 0 { T::of_bits(T::nan().bits() | 1 << (i / 2)) } else { one }).collect();
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
