//! Mean and spread of a row in one pass, about a number near the mean.
//!
//! ```text
//! each block b of n elements:            n = BLOCK but for the last block
//!     h  = mean of a sample              the first four vectors of the block
//!     s  = Σ (x − h)
//!     q  = Σ (x − h)²
//!     δ  = s / n
//!     M  = q − s·δ                       Σ (x − μ)²
//!     if s·δ > M/4 (δ > σ/2):            a sample that tells nothing of the block
//!         once more with h + δ for h
//!     μ  = h + δ                         wide
//! blocks joined in order, wide:          (Chan, Golub, LeVeque 1979)
//!     d  = μ_b − μ
//!     μ += d · n_b/n
//!     M += M_b + d² · n_a·n_b/n          n_a elements before, n with this block
//! row:   σ² = M/n,   rstd = 1/√(σ² + ε),   μ split into mean + low
//! ```
//!
//! Σ has a vector of partial sums for each turn and chain of [`CARRY`] pairs (the last chain has what is left); chains
//! are added in order, then the turns, then the tree. The sample is the start of the block because that is there:
//! elsewhere it would wait for memory.
//!
//! A [`Spread`] about 0 takes 0 for h and for s: M = q, and μ is 0.
//!
//! Why: Σx² − n·μ² has no digit left where μ is large beside σ; about an h within σ/2 of μ it loses a third of a bit
//! at most. A pass for the mean and one for the squares about it would do the same and read the block twice. The mean
//! is never rounded to one element: at μ = 1000σ that alone would cost three digits of y.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::number::{Number, Wide, power_of_two, times_power_of_two};
use crate::prefetch::Prefetch;
use crate::simd::{TURNS, Tail, Turns, Vector, Vectors, load, splat, tree, vectors};

/// Vectors of a sample: one mean of 64 (f32) numbers is within σ/2 of μ but for one in 15,000 normal blocks.
const SAMPLE: usize = 4;

/// What forward needs to know of a row, and keeps for backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Statistics<T> {
    /// μ rounded.
    pub(crate) mean: T,
    /// What the rounding of μ left behind.
    pub(crate) low: T,
    /// 1/√(σ²+ε), or 0 where that is 1/0: a constant row with ε = 0 gives x̂ = 0.
    pub(crate) rstd: T,
    /// Each h was near, and no square can have overflowed or underflowed.
    pub(crate) safe: bool,
}

/// How the spread of a row is taken: about what, with which ε, and between which squares a row's own are trustworthy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    /// About the mean; otherwise about 0, which then takes the place of μ.
    pub(crate) centred: bool,
    pub(crate) eps: f64,
    lowest: f64,
    highest: f64,
}

impl Spread {
    /// σ² + ε, about the mean.
    pub(crate) fn about_mean<T: Number>(eps: T) -> Self {
        // Squares that underflow do not matter beside an ε that is not tiny itself.
        let (eps, tiny) = (eps.into(), power_of_two(-T::SAFE));
        let lowest = if eps < tiny { tiny } else { 0.0 };
        Self { centred: true, eps, lowest, highest: power_of_two(T::SAFE) }
    }

    /// Σx²/n + ε.
    pub(crate) fn about_zero<T: Number>(eps: T) -> Self {
        Self { centred: false, ..Self::about_mean(eps) }
    }

    /// About the same, with another ε.
    pub(crate) fn with_eps<T: Number>(self, eps: T) -> Self {
        Self { centred: self.centred, ..Self::about_mean(eps) }
    }

    /// Whether no square of a row with this variance can have overflowed or underflowed.
    #[inline(always)]
    pub(crate) fn holds(&self, variance: f64) -> bool {
        (variance >= self.lowest) & (variance <= self.highest)
    }

    /// ε of a row that was multiplied by 2^-`exponent`.
    pub(crate) fn rescaled(self, exponent: i32) -> Self {
        let eps = times_power_of_two(times_power_of_two(self.eps, -exponent), -exponent);
        Self { eps, lowest: 0.0, highest: f64::INFINITY, ..self }
    }
}

/// 1/√x, or 0 where that is 1/0.
#[inline(always)]
pub(crate) fn rstd(x: f64) -> f64 {
    if x == 0.0 { 0.0 } else { 1.0 / x.sqrt() }
}

/// Mean and spread of some elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments<T: Number> {
    count: f64,
    mean: T::Wide,
    /// M = Σ (x − μ)²
    squares: T::Wide,
    /// Each h was within σ/2 of μ.
    near: bool,
}

impl<T: Number> Statistics<T> {
    /// Of a row that is not there yet.
    pub(crate) fn none() -> Self {
        Self { mean: T::zero(), low: T::zero(), rstd: T::zero(), safe: true }
    }

    /// Of a row whose elements are all the same.
    pub(crate) fn constant(x: T, spread: Spread) -> Self {
        Self { mean: x, rstd: T::nearest(rstd(spread.eps)), ..Self::none() }
    }
}

impl<T: Number> Moments<T> {
    /// To be kept: [`Moments::from_wide`] knows the count.
    pub(crate) fn to_wide(self) -> [T::Wide; 2] {
        debug_assert!(self.near, "only moments that hold are kept");
        [self.mean, self.squares]
    }

    /// The moments of `len` elements that were kept.
    pub(crate) fn from_wide(len: usize, [mean, squares]: [T::Wide; 2]) -> Self {
        Self { count: len as f64, mean, squares, near: true }
    }

    /// Those of no element.
    #[inline(always)]
    pub(crate) fn none() -> Self {
        Self { count: 0.0, mean: T::Wide::default(), squares: T::Wide::default(), near: true }
    }

    /// From h, s and q of a block.
    #[inline(always)]
    pub(crate) fn of_block(count: f64, near: T, sum: T, squares: T) -> Self {
        let (sum, delta) = (sum.into(), sum.into() / count);
        let squares = squares.into() - sum * delta;
        let is_near = sum * delta <= squares * 0.25;
        // Rounding may take a row without spread below 0; NaN must stay NaN.
        let squares = if squares < 0.0 { 0.0 } else { squares };
        let wide = T::Wide::default;
        Self { count, mean: wide().add(near.into()).add(delta), squares: wide().add(squares), near: is_near }
    }

    /// These, or where h was far from the mean of the block, those about the mean.
    #[inline(always)]
    pub(crate) fn or_once_more<S: Simd>(self, simd: S, tail: &Tail<S, T>, block: &[T]) -> Self {
        if self.near {
            return self;
        }
        Self { near: true, ..moments_about(simd, tail, block, T::split(self.mean).0) }
    }

    /// With those of the elements that follow.
    #[inline(always)]
    pub(crate) fn join(self, next: Self) -> Self {
        if self.count == 0.0 {
            return next;
        }
        let count = self.count + next.count;
        let d = next.mean.join(self.mean.negate()).value();
        Self {
            count,
            mean: self.mean.add(d * (next.count / count)),
            squares: self.squares.join(next.squares).add(d * d * (self.count * (next.count / count))),
            near: self.near && next.near,
        }
    }

    #[inline(always)]
    pub(crate) fn finish(self, spread: Spread) -> Statistics<T> {
        let variance = self.squares.value() / self.count;
        let rstd = 1.0 / (variance + spread.eps).sqrt();
        let (mean, low) = T::split(self.mean);
        let safe = self.near & spread.holds(variance);
        Statistics { mean, low, rstd: T::nearest(rstd), safe }
    }
}

/// The partial sums of the sample of a block.
#[inline(always)]
pub(crate) fn sample<S: Simd, T: Number>(simd: S, tail: &Tail<S, T>, block: &[T]) -> Vector<S, T> {
    let zero = splat(simd, T::zero());
    let chunks = T::chunks(block).0;
    let count = chunks.len();
    if count >= SAMPLE {
        let [a, b, c, d] = [0, 1, 2, 3].map(
            #[inline(always)]
            |i: usize| load::<S, T>(simd, &chunks[i]),
        );
        return (a + b) + (c + d);
    }
    let mut sum = zero;
    for chunk in chunks {
        sum += load::<S, T>(simd, chunk);
    }
    if tail.is_empty() { sum } else { sum + tail.load(block, zero) }
}

/// h of `R` blocks of `len` elements, from the partial sums of their samples.
#[inline(always)]
pub(crate) fn near_means<S: Simd, T: Number>(simd: S, len: usize, samples: &mut [Vector<S, T>]) -> Vector<S, T> {
    tree(simd, samples) / sampled::<S, T>(simd, len)
}

/// The number of elements in the sample of a block of `len`, in every lane.
#[inline(always)]
pub(crate) fn sampled<S: Simd, T: Number>(simd: S, len: usize) -> Vector<S, T> {
    let count = if len >= SAMPLE * T::LANES { SAMPLE * T::LANES } else { len };
    splat(simd, T::nearest(count as f64))
}

/// Pairs of vectors after which partial sums are carried: long chains of like terms round one way, and carried every 8
/// pairs they cost a tenth of an addition a vector more.
pub(crate) const CARRY: usize = 8;

/// The partial sums of s and q; of q alone, if they are not `CENTRED`, that is about 0.
pub(crate) struct Partial<V, const CENTRED: bool> {
    near: V,
    sum: Turns<V>,
    squares: Turns<V>,
}

impl<V: Copy, const CENTRED: bool> Partial<V, CENTRED> {
    /// Of nothing yet.
    #[inline(always)]
    pub(crate) fn new<S: Simd, T: Number<Vector<S> = V>>(simd: S, near: V) -> Self {
        let zeros = [splat(simd, T::zero()); TURNS];
        Self { near, sum: zeros, squares: zeros }
    }

    /// Of a chain of pairs.
    #[inline(always)]
    fn of_chain<S: Simd, T: Number<Vector<S> = V>, const A: usize>(
        simd: S,
        near: V,
        chain: &[[T::Chunk; TURNS]],
        prefetch: [Prefetch<'_, T>; A],
    ) -> Self
    where
        V: SimdBase<S>,
    {
        let mut partial = Self::new::<S, T>(simd, near);
        let Some(([first, second], chain)) = chain.split_first() else { return partial };
        for (turn, x) in [first, second].into_iter().enumerate() {
            Prefetch::lines(prefetch, turn * T::LANES);
            let d = partial.about_near(load::<S, T>(simd, x));
            partial.squares[turn] = d * d;
            if CENTRED {
                partial.sum[turn] = d;
            }
        }
        for (pair, [first, second]) in chain.iter().enumerate() {
            let at = (pair + 1) * TURNS * T::LANES;
            Prefetch::lines(prefetch, at);
            partial.add(0, load::<S, T>(simd, first));
            Prefetch::lines(prefetch, at + T::LANES);
            partial.add(1, load::<S, T>(simd, second));
        }
        partial
    }

    /// x − h
    #[inline(always)]
    fn about_near<S: Simd>(&self, x: V) -> V
    where
        V: SimdBase<S>,
    {
        if CENTRED { x - self.near } else { x }
    }

    /// With a vector of the block.
    #[inline(always)]
    pub(crate) fn add<S: Simd>(&mut self, turn: usize, x: V)
    where
        V: SimdBase<S>,
    {
        let d = self.about_near(x);
        if CENTRED {
            self.sum[turn] += d;
        }
        self.squares[turn] += d * d;
    }

    /// With those of the chain that follows.
    #[inline(always)]
    pub(crate) fn join<S: Simd>(&mut self, next: &Self)
    where
        V: SimdBase<S>,
    {
        for turn in 0..TURNS {
            if CENTRED {
                self.sum[turn] += next.sum[turn];
            }
            self.squares[turn] += next.squares[turn];
        }
    }

    /// With the tail of the block: those of s and of q, a vector each.
    #[inline(always)]
    pub(crate) fn end<S: Simd, T: Number<Vector<S> = V>>(mut self, tail: &Tail<S, T>, block: &[T]) -> [V; 2]
    where
        V: SimdBase<S>,
    {
        if !tail.is_empty() {
            // Filled up with h, which adds nothing.
            let x = tail.load(block, self.near);
            // Not `add(tail.turn, x)`: sums that are found by a number are in memory, not in registers.
            if tail.turn == 0 { self.add(0, x) } else { self.add(1, x) }
        }
        [self.sum[0] + self.sum[1], self.squares[0] + self.squares[1]]
    }
}

/// The partial sums of s and of q of a block about `near`; of q alone, if they are not `CENTRED`. Asks for what goes with its
/// elements meanwhile.
#[inline(always)]
pub(crate) fn partial_sums<S: Simd, T: Number, const CENTRED: bool, const A: usize>(
    simd: S,
    tail: &Tail<S, T>,
    block: &[T],
    near: T,
    prefetch: [Prefetch<'_, T>; A],
) -> [Vector<S, T>; 2] {
    let near = splat(simd, near);
    let Vectors { pairs, odd } = vectors(block);
    let (first, chains) = pairs.split_at(CARRY.min(pairs.len()));
    let mut partial = Partial::<_, CENTRED>::of_chain::<S, T, A>(simd, near, first, prefetch);
    for (i, chain) in chains.chunks(CARRY).enumerate() {
        let prefetch = Prefetch::skip_all(prefetch, (i + 1) * CARRY * TURNS * T::LANES);
        partial.join(&Partial::of_chain::<S, T, A>(simd, near, chain, prefetch));
    }
    if let Some(x) = odd {
        partial.add(0, load::<S, T>(simd, x));
    }
    partial.end(tail, block)
}

/// The moments of a block about `near`.
#[inline(always)]
fn moments_about<S: Simd, T: Number>(simd: S, tail: &Tail<S, T>, block: &[T], near: T) -> Moments<T> {
    let sums = tree(simd, &mut partial_sums::<S, T, true, 0>(simd, tail, block, near, []));
    Moments::of_block(block.len() as f64, near, sums[0], sums[1])
}

/// h of a block.
#[inline(always)]
pub(crate) fn near_of<S: Simd, T: Number>(simd: S, tail: &Tail<S, T>, block: &[T], spread: Spread) -> T {
    if !spread.centred {
        return T::zero();
    }
    near_means::<S, T>(simd, block.len(), &mut [sample(simd, tail, block)])[0]
}

/// The moments of a block from its partial sums about `near`, whatever its sample is worth.
#[inline(always)]
pub(crate) fn moments_of<S: Simd, T: Number>(
    simd: S,
    tail: &Tail<S, T>,
    block: &[T],
    near: T,
    mut sums: [Vector<S, T>; 2],
    spread: Spread,
) -> Moments<T> {
    let (sums, count) = (tree(simd, &mut sums), block.len() as f64);
    if spread.centred {
        Moments::of_block(count, near, sums[0], sums[1]).or_once_more(simd, tail, block)
    } else {
        // Nothing is nearer to 0 than 0, NaN included.
        Moments { near: true, ..Moments::of_block(count, near, T::zero(), sums[1]) }
    }
}

/// The moments of a block, whatever its sample is worth.
#[simd]
pub(crate) fn block_moments<S: Simd, T: Number>(simd: S, spread: Spread, block: &[T]) -> Moments<T> {
    let tail = Tail::new(simd, block.len());
    let near = near_of(simd, &tail, block, spread);
    let sums = if spread.centred {
        partial_sums::<S, T, true, 0>(simd, &tail, block, near, [])
    } else {
        partial_sums::<S, T, false, 0>(simd, &tail, block, near, [])
    };
    moments_of(simd, &tail, block, near, sums, spread)
}

/// The moments of a row of any length.
#[simd]
pub(crate) fn row_moments<S: Simd, T: Number>(simd: S, spread: Spread, row: &[T]) -> Moments<T> {
    let mut moments = Moments::none();
    for block in row.chunks(T::BLOCK) {
        moments = moments.join(block_moments(simd, spread, block));
    }
    moments
}
