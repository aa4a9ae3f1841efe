//! The numbers we compute in, and how their sums are kept wider than they are.

use std::cell::RefCell;
use std::fmt::{Debug, Display};

use fearless_simd::{
    Bytes, Simd, SimdFloat, SimdFloatElement, SimdInt, SimdSplit, f32x16, f64x8, u8x64, u32x16, u64x8,
};
use num_traits::Float;

/// The most elements in a block.
pub(crate) const LARGEST_BLOCK: usize = <f32 as Number>::BLOCK;

/// What the kernels need to know of a number: `f32` and `f64`.
///
/// Public because [`Element`](crate::Element) names it. This module is private, so that nobody else can: that seals
/// [`Element`](crate::Element). What is here may change with any release.
pub trait Number: Float + SimdFloatElement + Debug + Display + Default + Into<f64> + Send + Sync + 'static {
    /// 64 bytes of elements, whatever the CPU: it splits where registers are narrower.
    type Vector<S: Simd>: SimdFloat<S, Element = Self, Array = Self::Chunk, ByteVector = u8x64<S>> + SimdSplit<S>;

    /// The bits of a vector.
    type VectorBits<S: Simd>: SimdInt<S> + Bytes<Bytes = u8x64<S>>;

    /// The array that a vector is loaded from.
    type Chunk: AsRef<[Self]> + AsMut<[Self]> + Copy + Debug;

    /// A sum of many sums.
    type Wide: Wide;

    /// Elements in a vector.
    const LANES: usize;

    /// Elements in a block of a row: 128 vectors.
    const BLOCK: usize;

    /// Outside 2^±`SAFE` a variance may have lost bits to squares that overflowed or underflowed.
    const SAFE: i32;

    /// What e^x needs to know of this number.
    const EXPONENTIAL: Exponential<Self>;

    /// A block of ones: the gain of a layer without gain.
    const ONES: &'static [Self];

    /// A block of zeros: the bias of a layer without bias.
    const ZEROS: &'static [Self];

    /// The vectors that fit into a row, and the elements that do not fill one.
    fn chunks(row: &[Self]) -> (&[Self::Chunk], &[Self]);

    /// [`Number::chunks`] to be written.
    fn chunks_mut(row: &mut [Self]) -> (&mut [Self::Chunk], &mut [Self]);

    /// The nearest element.
    fn nearest(value: f64) -> Self;

    /// A wide number as the unevaluated sum of two elements, the second at most half an ulp of the first.
    fn split(wide: Self::Wide) -> (Self, Self);

    /// Calls `f` with this thread's buffers.
    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R;
}

/// The constants of e^x = 2ⁿ · e^r, where n = round(x / ln 2).
#[derive(Clone, Copy, Debug)]
pub struct Exponential<T: 'static> {
    /// 3/2 · 2^`fraction_bits`: what is added to it is rounded to an integer, which is then in the last bits.
    pub integer: T,
    /// What is added to n to get the exponent field of 2ⁿ.
    pub bias: T,
    /// Bits below the exponent field.
    pub fraction_bits: u32,
    /// log₂ e
    pub log2_e: T,
    /// ln 2, of so few bits that n times it is exact.
    pub ln2_high: T,
    /// ln 2 − `ln2_high`
    pub ln2_low: T,
    /// q of e^r = 1 + r + r²·q(r) on |r| ≤ ln 2 / 2, the coefficient of r⁰ first.
    pub q: &'static [T],
    /// From here down e^x is 0.
    pub zero: T,
    /// From here up e^x is infinite.
    pub infinite: T,
    /// From here down e^x is lost beside 1; 2ⁿ is still a normal number here.
    pub negligible: T,
}

/// Buffers of one thread that are not lent, the one that comes next last. They only grow.
#[derive(Debug, Default)]
pub struct Scratch<T: Number> {
    /// Gathered tiles, column sums, and what a call knows while its tasks run.
    pub elements: Vec<Vec<T>>,
    /// Column sums of many rows.
    pub wide: Vec<Vec<T::Wide>>,
    /// Masks.
    pub flags: Vec<Vec<bool>>,
}

/// A number with more digits than an element: `f64` for `f32`, [`Pair`] for `f64`.
pub trait Wide: Copy + Default + Debug + Send + Sync + 'static {
    /// This and a number.
    fn add(self, x: f64) -> Self;
    /// This and another.
    fn join(self, other: Self) -> Self;
    /// This with the other sign.
    fn negate(self) -> Self;
    /// The nearest `f64`.
    fn value(self) -> f64;
}

impl Wide for f64 {
    #[inline(always)]
    fn add(self, x: f64) -> Self {
        self + x
    }
    #[inline(always)]
    fn join(self, other: Self) -> Self {
        self + other
    }
    #[inline(always)]
    fn negate(self) -> Self {
        -self
    }
    #[inline(always)]
    fn value(self) -> f64 {
        self
    }
}

/// The unevaluated sum of two `f64`: about 106 bits.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pair {
    hi: f64,
    lo: f64,
}

/// `a + b` rounded, and what the rounding left behind (Knuth: exact for any two numbers, without a branch).
#[inline(always)]
fn two_sum(a: f64, b: f64) -> Pair {
    let hi = a + b;
    let back = hi - a;
    Pair { hi, lo: (a - (hi - back)) + (b - back) }
}

/// What rounding left behind, or 0 where that is no number: beside an infinite sum nothing is left, and the sum stays infinite.
#[inline(always)]
fn left(lo: f64) -> f64 {
    if lo.is_nan() { 0.0 } else { lo }
}

impl Wide for Pair {
    #[inline(always)]
    fn add(self, x: f64) -> Self {
        let sum = two_sum(self.hi, x);
        two_sum(sum.hi, left(sum.lo + self.lo))
    }
    #[inline(always)]
    fn join(self, other: Self) -> Self {
        let sum = two_sum(self.hi, other.hi);
        two_sum(sum.hi, left(sum.lo + (self.lo + other.lo)))
    }
    #[inline(always)]
    fn negate(self) -> Self {
        Self { hi: -self.hi, lo: -self.lo }
    }
    #[inline(always)]
    fn value(self) -> f64 {
        self.hi + left(self.lo)
    }
}

/// 2^`exponent`, for the exponents of normal numbers.
pub(crate) fn power_of_two(exponent: i32) -> f64 {
    debug_assert!((-1022..=1023).contains(&exponent), "2^{exponent} is not a normal number");
    f64::from_bits(((1023 + exponent) as u64) << 52)
}

/// `x` · 2^`exponent`, in two steps: the power alone need not be a finite number.
#[inline(always)]
pub(crate) fn times_power_of_two<T: Number>(x: T, exponent: i32) -> T {
    let (first, second) = (exponent / 2, exponent - exponent / 2);
    x * T::nearest(power_of_two(first)) * T::nearest(power_of_two(second))
}

thread_local! {
    static SCRATCH_F32: RefCell<Scratch<f32>> = RefCell::default();
    static SCRATCH_F64: RefCell<Scratch<f64>> = RefCell::default();
}

impl Number for f32 {
    type Vector<S: Simd> = f32x16<S>;
    type VectorBits<S: Simd> = u32x16<S>;
    type Chunk = [Self; 16];
    type Wide = f64;
    const LANES: usize = 16;
    const BLOCK: usize = 128 * Self::LANES;
    const SAFE: i32 = 60;
    const EXPONENTIAL: Exponential<Self> = Exponential {
        integer: 12_582_912.0,
        bias: 127.0,
        fraction_bits: 23,
        log2_e: std::f32::consts::LOG2_E,
        ln2_high: 0.693_145_75, // 16 bits: |n| has 8 at most
        ln2_low: 1.428_606_8e-6,
        q: &[0.5, 0.166_665_32, 0.041_666_16, 0.008_368_067, 0.001_397_519],
        zero: -104.0,
        infinite: 89.0,
        negligible: -40.0,
    };
    const ONES: &'static [Self] = &[1.0; Self::BLOCK];
    const ZEROS: &'static [Self] = &[0.0; Self::BLOCK];

    #[inline(always)]
    fn chunks(row: &[Self]) -> (&[Self::Chunk], &[Self]) {
        row.as_chunks()
    }

    #[inline(always)]
    fn chunks_mut(row: &mut [Self]) -> (&mut [Self::Chunk], &mut [Self]) {
        row.as_chunks_mut()
    }

    #[inline(always)]
    fn nearest(value: f64) -> Self {
        value as Self
    }

    #[inline(always)]
    fn split(wide: f64) -> (Self, Self) {
        let hi = wide as Self;
        (hi, (wide - f64::from(hi)) as Self)
    }

    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R {
        SCRATCH_F32.with_borrow_mut(f)
    }
}

impl Number for f64 {
    type Vector<S: Simd> = f64x8<S>;
    type VectorBits<S: Simd> = u64x8<S>;
    type Chunk = [Self; 8];
    type Wide = Pair;
    const LANES: usize = 8;
    const BLOCK: usize = 128 * Self::LANES;
    const SAFE: i32 = 450;
    const EXPONENTIAL: Exponential<Self> = Exponential {
        integer: 6_755_399_441_055_744.0,
        bias: 1023.0,
        fraction_bits: 52,
        log2_e: std::f64::consts::LOG2_E,
        ln2_high: 0.693_147_180_559_890_3, // 42 bits: |n| has 11 at most
        ln2_low: 5.497_923_018_708_371e-14,
        q: &[
            0.500_000_000_000_000_6,
            0.166_666_666_666_665_88,
            0.041_666_666_666_576_77,
            0.008_333_333_333_389_556,
            0.001_388_888_893_155_856_1,
            1.984_126_971_899_125e-4,
            2.480_150_528_176_845e-5,
            2.755_740_756_514_531e-6,
            2.762_603_457_886_602_5e-7,
            2.505_376_497_528_487_7e-8,
        ],
        zero: -746.0,
        infinite: 710.0,
        negligible: -80.0,
    };
    const ONES: &'static [Self] = &[1.0; Self::BLOCK];
    const ZEROS: &'static [Self] = &[0.0; Self::BLOCK];

    #[inline(always)]
    fn chunks(row: &[Self]) -> (&[Self::Chunk], &[Self]) {
        row.as_chunks()
    }

    #[inline(always)]
    fn chunks_mut(row: &mut [Self]) -> (&mut [Self::Chunk], &mut [Self]) {
        row.as_chunks_mut()
    }

    #[inline(always)]
    fn nearest(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn split(wide: Pair) -> (Self, Self) {
        (wide.hi, wide.lo)
    }

    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R {
        SCRATCH_F64.with_borrow_mut(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_keeps_what_f64_drops() {
        let sum = Pair::default().add(1.0).add(2f64.powi(-80)).add(-1.0);
        assert_eq!(sum.value(), 2f64.powi(-80));
        let other = Pair::default().add(1e-30).add(1.0);
        assert_eq!(sum.join(other).join(other.negate()).value(), 2f64.powi(-80));
    }

    #[test]
    fn an_infinite_pair_stays_infinite() {
        let infinite = Pair::default().add(1.0).add(f64::INFINITY);
        assert_eq!(infinite.add(-1.0).join(Pair::default().add(2.0)).value(), f64::INFINITY);
        assert!(infinite.add(f64::NEG_INFINITY).value().is_nan());
        assert!(Pair::default().add(f64::NAN).add(1.0).value().is_nan());
    }

    #[test]
    fn split_loses_nothing_that_fits_two_elements() {
        let (hi, lo) = f32::split(1000.0 + 2f64.powi(-20));
        assert_eq!((hi, lo), (1000.0, 2f32.powi(-20)));
    }
}
