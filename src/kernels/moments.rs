//! Mean and spread of a row, corrected two-pass, block by block.
//!
//! ```text
//! each block b of n elements:            n = BLOCK but for the last block
//!     h  = tree(Σ x) / n                 near the mean, rounded
//!     s  = tree(Σ (x − h))               what the rounding left behind
//!     q  = tree(Σ (x − h)²)
//!     δ  = s / n
//!     μ  = h + δ                         wide
//!     M  = q − s·δ                       Σ (x − μ)²
//! blocks joined in order, wide:          (Chan, Golub, LeVeque 1979)
//!     d  = μ_b − μ
//!     μ += d · n_b/n
//!     M += M_b + d² · n_a·n_b/n          n_a elements before, n with this block
//! row:   σ² = M/n,   rstd = 1/√(σ² + ε),   μ split into mean + low
//! ```
//!
//! Each Σ has four vectors of partial sums that take turns: `(a₀ + a₁) + (a₂ + a₃)`, then the tree. The mean is
//! never rounded to one element: at μ = 1000σ that alone would cost three digits of y.

use fearless_simd::Simd;
use fearless_simd_macros::simd;

use crate::element::{Element, Wide, power_of_two, times_power_of_two};
use crate::simd::{Tail, Vector, load, splat, tree};

/// Vectors of partial sums that take turns, so that an addition need not wait for the one before.
pub(crate) const TURNS: usize = 4;

/// What forward needs to know of a row, and keeps for backward.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Statistics<T> {
    /// μ rounded.
    pub(crate) mean: T,
    /// What the rounding of μ left behind.
    pub(crate) low: T,
    /// 1/√(σ²+ε), or 0 where that is 1/0: a constant row with ε = 0 gives x̂ = 0.
    pub(crate) rstd: T,
    /// σ² had room: no square can have overflowed or underflowed.
    pub(crate) safe: bool,
}

/// ε, and between which variances it makes the squares of a row trustworthy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epsilon {
    eps: f64,
    lowest: f64,
    highest: f64,
}

impl Epsilon {
    /// Squares that underflow do not matter beside an `eps` that is not tiny itself.
    pub(crate) fn new<T: Element>(eps: T) -> Self {
        let (eps, tiny) = (eps.into(), power_of_two(-T::SAFE));
        Self { eps, lowest: if eps < tiny { tiny } else { 0.0 }, highest: power_of_two(T::SAFE) }
    }

    /// ε of a row that was multiplied by 2^-`exponent`.
    pub(crate) fn rescaled(self, exponent: i32) -> Self {
        let eps = times_power_of_two(times_power_of_two(self.eps, -exponent), -exponent);
        Self { eps, lowest: 0.0, highest: f64::INFINITY }
    }
}

/// Mean and spread of some elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moments<T: Element> {
    count: f64,
    mean: T::Wide,
    /// M = Σ (x − μ)²
    squares: T::Wide,
}

impl<T: Element> Moments<T> {
    /// From h, s and q of a block.
    #[inline(always)]
    fn of_block(count: f64, near: T, sum: T, squares: T) -> Self {
        let (sum, delta) = (sum.into(), sum.into() / count);
        let squares = squares.into() - sum * delta;
        // Rounding may take a row without spread below 0; NaN must stay NaN.
        let squares = if squares < 0.0 { 0.0 } else { squares };
        let wide = T::Wide::default;
        Self { count, mean: wide().add(near.into()).add(delta), squares: wide().add(squares) }
    }

    /// With those of the elements that follow.
    fn join(self, next: Self) -> Self {
        let count = self.count + next.count;
        let d = next.mean.join(self.mean.negate()).value();
        Self {
            count,
            mean: self.mean.add(d * (next.count / count)),
            squares: self.squares.join(next.squares).add(d * d * (self.count * (next.count / count))),
        }
    }

    #[inline(always)]
    pub(crate) fn finish(self, epsilon: Epsilon) -> Statistics<T> {
        let variance = self.squares.value() / self.count;
        let spread = variance + epsilon.eps;
        let rstd = if spread == 0.0 { 0.0 } else { 1.0 / spread.sqrt() };
        let (mean, low) = T::split(self.mean);
        let safe = variance >= epsilon.lowest && variance <= epsilon.highest;
        Statistics { mean, low, rstd: T::from_f64(rstd), safe }
    }
}

/// The partial sums of Σ x.
#[inline(always)]
pub(crate) fn lane_sums<S: Simd, T: Element>(simd: S, tail: &Tail<S, T>, x: &[T]) -> Vector<S, T> {
    let zero = splat(simd, T::zero());
    let mut sums = [zero; TURNS];
    let mut turns = x.chunks_exact(TURNS * T::LANES);
    for turn in &mut turns {
        for (sum, x) in sums.iter_mut().zip(turn.chunks_exact(T::LANES)) {
            *sum += load(simd, x);
        }
    }
    let mut vectors = turns.remainder().chunks_exact(T::LANES);
    let mut last = if tail.is_empty() { None } else { Some(tail.load(x, zero)) };
    for sum in &mut sums {
        match vectors.next() {
            Some(x) => *sum += load(simd, x),
            None => last.take().into_iter().for_each(
                #[inline(always)]
                |x| *sum += x,
            ),
        }
    }
    add_turns(sums)
}

/// The partial sums of Σ (x − h) and Σ (x − h)².
#[inline(always)]
pub(crate) fn lane_sums_about<S: Simd, T: Element>(
    simd: S,
    tail: &Tail<S, T>,
    x: &[T],
    near: T,
) -> (Vector<S, T>, Vector<S, T>) {
    let zero = splat(simd, T::zero());
    let near = splat(simd, near);
    let (mut sums, mut squares) = ([zero; TURNS], [zero; TURNS]);
    let mut turns = x.chunks_exact(TURNS * T::LANES);
    for turn in &mut turns {
        for ((sum, square), x) in sums.iter_mut().zip(&mut squares).zip(turn.chunks_exact(T::LANES)) {
            let d = load(simd, x) - near;
            *sum += d;
            *square += d * d;
        }
    }
    let mut vectors = turns.remainder().chunks_exact(T::LANES);
    let mut last = if tail.is_empty() { None } else { Some(tail.load(x, near)) };
    for (sum, square) in sums.iter_mut().zip(&mut squares) {
        let x = match vectors.next() {
            Some(x) => Some(load(simd, x)),
            None => last.take(),
        };
        if let Some(x) = x {
            let d = x - near;
            *sum += d;
            *square += d * d;
        }
    }
    (add_turns(sums), add_turns(squares))
}

#[inline(always)]
pub(crate) fn add_turns<V: std::ops::Add<Output = V> + Copy>(sums: [V; TURNS]) -> V {
    (sums[0] + sums[1]) + (sums[2] + sums[3])
}

/// The statistics of `R` rows of one block each, side by side in memory, from the partial sums of their elements.
#[inline(always)]
pub(crate) fn group_statistics<S: Simd, T: Element, const R: usize>(
    simd: S,
    tail: &Tail<S, T>,
    rows: &[T],
    sums: [Vector<S, T>; R],
    epsilon: Epsilon,
) -> [Statistics<T>; R] {
    let features = rows.len() / R;
    let count = features as f64;
    let near: Vector<S, T> = tree(sums) / splat(simd, T::from_f64(count));
    let zero = splat(simd, T::zero());
    let (mut sums, mut squares) = ([zero; R], [zero; R]);
    for (i, row) in rows.chunks_exact(features).enumerate() {
        (sums[i], squares[i]) = lane_sums_about(simd, tail, row, near[i]);
    }
    let (sums, squares): (Vector<S, T>, Vector<S, T>) = (tree(sums), tree(squares));
    std::array::from_fn(
        #[inline(always)]
        |i| Moments::of_block(count, near[i], sums[i], squares[i]).finish(epsilon),
    )
}

/// The moments of a row's block.
#[simd]
pub(crate) fn block_moments<S: Simd, T: Element>(simd: S, block: &[T]) -> Moments<T> {
    let tail = Tail::new(simd, block.len());
    let count = block.len() as f64;
    let sums: Vector<S, T> = tree([lane_sums(simd, &tail, block)]);
    let near = (sums / splat(simd, T::from_f64(count)))[0];
    let (sums, squares) = lane_sums_about(simd, &tail, block, near);
    let (sums, squares): (Vector<S, T>, Vector<S, T>) = (tree([sums]), tree([squares]));
    Moments::of_block(count, near, sums[0], squares[0])
}

/// The moments of blocks that follow each other.
pub(crate) fn join_moments<T: Element>(blocks: impl Iterator<Item = Moments<T>>) -> Moments<T> {
    blocks.reduce(Moments::join).expect("a row has at least one element")
}

/// The moments of a row of any length.
#[simd]
pub(crate) fn row_moments<S: Simd, T: Element>(simd: S, row: &[T]) -> Moments<T> {
    join_moments(row.chunks(T::BLOCK).map(
        #[inline(always)]
        |block| block_moments(simd, block),
    ))
}
