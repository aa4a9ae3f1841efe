//! dx of a row, and what it adds to dgain and dbias.
//!
//! ```text
//! each row:                              (docs/backward.md; letters as there)
//!     x̂ = ((x − mean) − low) · rstd
//!     q = gain · dy
//!     c₁ = Σ q / n,   c₂ = Σ q·x̂ / n     first pass
//!     dx = ((q − c₁) − x̂·c₂) · rstd      second pass, from L1; with it
//!     dgain += dy·x̂
//!     dbias += dy
//!
//! Σ of a row:  blocks of BLOCK elements, joined in order, wide
//! Σ of a block:  stretches of 64 vectors, one vector of partial sums each, tree, joined in order, wide
//! ```
//!
//! x̂ is computed again, not stored: three operations cost less than a load and a store. q − c₁ comes first: for a
//! narrow row dx is a small difference, and this one is exact where q is nearly constant.

use std::ops::Range;

use fearless_simd::{Select, Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::element::{Element, LARGEST_BLOCK, Wide, times_power_of_two};
use crate::kernels::moments::Statistics;
use crate::kernels::normalize::Layer;
use crate::kernels::rescale::{rescale, rescued_at};
use crate::simd::{Tail, Vector, load, splat, tree};

/// Vectors of a block whose partial sums are one vector: short enough that its rounding stays below an ulp of q.
const STRETCH: usize = 64;

/// Rows that share the loads and stores of the column sums.
const SHARED: usize = 4;

/// What forward kept of some rows, one number a row in each slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptRows<'a, T> {
    pub(crate) mean: &'a [T],
    pub(crate) low: &'a [T],
    pub(crate) rstd: &'a [T],
    pub(crate) exponent: &'a [i16],
}

impl<'a, T> KeptRows<'a, T> {
    /// Some of the rows.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        Self {
            mean: &self.mean[rows.clone()],
            low: &self.low[rows.clone()],
            rstd: &self.rstd[rows.clone()],
            exponent: &self.exponent[rows],
        }
    }
}

/// Column sums of at most [`CHAIN`](crate::kernels::columns::CHAIN) rows.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    pub(crate) dgain: &'a mut [T],
    pub(crate) dbias: &'a mut [T],
}

/// Σ q and Σ q·x̂ of a block or a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums<W> {
    q: W,
    qx: W,
}

impl<W: Wide> Sums<W> {
    /// With those of the block that follows.
    pub(crate) fn join(self, next: Self) -> Self {
        Self { q: self.q.join(next.q), qx: self.qx.join(next.qx) }
    }
}

/// What dx needs to know of a row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row<T> {
    mean: T,
    low: T,
    rstd: T,
    /// c₁
    q: T,
    /// c₂
    qx: T,
    exponent: i32,
}

impl<T: Element> Row<T> {
    /// A row of which only x̂ can be computed yet.
    pub(crate) fn new<S: Simd>(simd: S, layer: &Layer<'_, T>, kept: &KeptRows<'_, T>, row: usize, x: &[T]) -> Self {
        let exponent = i32::from(kept.exponent[row]);
        let (mean, low, rstd) = if exponent == 0 {
            (kept.mean[row], kept.low[row], kept.rstd[row])
        } else {
            let Statistics { mean, low, rstd, .. } = rescued_at(simd, x, layer.epsilon, exponent).statistics;
            (mean, low, rstd)
        };
        Self { mean, low, rstd, q: T::zero(), qx: T::zero(), exponent }
    }

    /// With c₁ and c₂.
    #[inline(always)]
    pub(crate) fn with_sums(self, sums: Sums<T::Wide>, features: usize) -> Self {
        let n = features as f64;
        Self { q: T::from_f64(sums.q.value() / n), qx: T::from_f64(sums.qx.value() / n), ..self }
    }
}

/// A row's numbers in every lane.
struct Splat<V> {
    mean: V,
    low: V,
    rstd: V,
    q: V,
    qx: V,
}

impl<V> Splat<V> {
    #[inline(always)]
    fn new<S: Simd, T: Element<Vector<S> = V>>(simd: S, row: &Row<T>) -> Self {
        Self {
            mean: splat(simd, row.mean),
            low: splat(simd, row.low),
            rstd: splat(simd, row.rstd),
            q: splat(simd, row.q),
            qx: splat(simd, row.qx),
        }
    }

    #[inline(always)]
    fn xhat<S: Simd>(&self, x: V) -> V
    where
        V: SimdBase<S>,
    {
        ((x - self.mean) - self.low) * self.rstd
    }

    #[inline(always)]
    fn dx<S: Simd>(&self, xhat: V, q: V) -> V
    where
        V: SimdBase<S>,
    {
        ((q - self.q) - xhat * self.qx) * self.rstd
    }
}

/// dx of rows of any number of features, side by side in `x`, `dy` and `dx`; adds their columns to `columns`.
#[simd]
pub(crate) fn backward<S: Simd, T: Element>(
    simd: S,
    layer: Layer<'_, T>,
    kept: KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let rows = x.len() / features;
    let plain = kept.exponent.iter().all(
        #[inline(always)]
        |&exponent| exponent == 0,
    );
    let short = features <= STRETCH * T::LANES;
    let shared = if plain && short { rows / SHARED * SHARED } else { 0 };
    for row in (0..shared).step_by(SHARED) {
        let at = row * features..(row + SHARED) * features;
        backward_group::<S, T, SHARED>(simd, &layer, &kept, row, &x[at.clone()], &dy[at.clone()], &mut dx[at], columns);
    }
    for row in shared..rows {
        let at = row * features..(row + 1) * features;
        let (x, dy, dx) = (&x[at.clone()], &dy[at.clone()], &mut dx[at]);
        if short && kept.exponent[row] == 0 {
            backward_group::<S, T, 1>(simd, &layer, &kept, row, x, dy, dx, columns);
        } else {
            backward_row(simd, &layer, &kept, row, x, dy, dx, columns);
        }
    }
}

/// Rows of one stretch each, which need not be rescaled.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn backward_group<S: Simd, T: Element, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    first: usize,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let tail = Tail::new(simd, features);
    let gain = layer.gain(0, features);
    let mut rows: [_; R] = std::array::from_fn(
        #[inline(always)]
        |i| Row {
            mean: kept.mean[first + i],
            low: kept.low[first + i],
            rstd: kept.rstd[first + i],
            q: T::zero(),
            qx: T::zero(),
            exponent: 0,
        },
    );
    let zero = splat(simd, T::zero());
    let (mut q, mut qx) = ([zero; R], [zero; R]);
    for (i, (x, dy)) in x.chunks_exact(features).zip(dy.chunks_exact(features)).enumerate() {
        (q[i], qx[i]) = stretch_sums(simd, &Splat::new(simd, &rows[i]), gain, x, dy);
        if !tail.is_empty() {
            (q[i], qx[i]) = tail_sums(&tail, zero, &Splat::new(simd, &rows[i]), gain, x, dy, (q[i], qx[i]));
        }
    }
    let (q, qx): (Vector<S, T>, Vector<S, T>) = (tree(q), tree(qx));
    for (i, row) in rows.iter_mut().enumerate() {
        let wide = T::Wide::default;
        *row = row.with_sums(Sums { q: wide().add(q[i].into()), qx: wide().add(qx[i].into()) }, features);
    }
    gradients(simd, &tail, &rows, gain, x, dy, dx, columns);
}

/// A row of any length and scale.
#[inline(never)]
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn backward_row<S: Simd, T: Element>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    row: usize,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let row = Row::new(simd, layer, kept, row, x);
    let mut sums = Sums::default();
    for (block, (x, dy)) in x.chunks(T::BLOCK).zip(dy.chunks(T::BLOCK)).enumerate() {
        sums = sums.join(block_sums(simd, layer, &row, block * T::BLOCK, x, dy));
    }
    block_gradients(simd, layer, &row.with_sums(sums, layer.features), 0, x, dy, dx, columns);
}

/// Σ q and Σ q·x̂ of a block that starts at feature `start`.
#[simd]
pub(crate) fn block_sums<S: Simd, T: Element>(
    simd: S,
    layer: &Layer<'_, T>,
    row: &Row<T>,
    start: usize,
    x: &[T],
    dy: &[T],
) -> Sums<T::Wide> {
    let mut scaled = [T::zero(); LARGEST_BLOCK];
    let x = in_units(row, x, &mut scaled);
    let gain = layer.gain(start, x.len());
    let row = Splat::new(simd, row);
    let tail = Tail::new(simd, x.len());
    let zero = splat(simd, T::zero());
    let stretch = STRETCH * T::LANES;
    let mut sums: Sums<T::Wide> = Sums::default();
    let mut at = 0;
    while at < x.len() {
        let end = (at + stretch).min(tail.at);
        let mut lanes =
            if at < end { stretch_sums(simd, &row, &gain[at..end], &x[at..end], &dy[at..end]) } else { (zero, zero) };
        at += stretch;
        if at > tail.at && !tail.is_empty() {
            lanes = tail_sums(&tail, zero, &row, gain, x, dy, lanes);
        }
        let (q, qx): (Vector<S, T>, Vector<S, T>) = (tree([lanes.0]), tree([lanes.1]));
        sums = Sums { q: sums.q.add(q[0].into()), qx: sums.qx.add(qx[0].into()) };
    }
    sums
}

/// `x`, times a power of two where the row needs it.
#[inline(always)]
fn in_units<'a, T: Element>(row: &Row<T>, x: &'a [T], scaled: &'a mut [T]) -> &'a [T] {
    if row.exponent == 0 {
        return x;
    }
    let scaled = &mut scaled[..x.len()];
    rescale(x, row.exponent, scaled);
    scaled
}

/// The partial sums of the full vectors of a stretch.
#[inline(always)]
fn stretch_sums<S: Simd, T: Element>(
    simd: S,
    row: &Splat<Vector<S, T>>,
    gain: &[T],
    x: &[T],
    dy: &[T],
) -> (Vector<S, T>, Vector<S, T>) {
    let zero = splat(simd, T::zero());
    let (mut sum_q, mut sum_qx) = (zero, zero);
    let lanes = T::LANES;
    let vectors = x.chunks_exact(lanes).zip(dy.chunks_exact(lanes)).zip(gain.chunks_exact(lanes));
    for ((x, dy), gain) in vectors {
        let q = load::<S, T>(simd, gain) * load(simd, dy);
        sum_q += q;
        sum_qx += q * row.xhat(load(simd, x));
    }
    (sum_q, sum_qx)
}

/// `sums` with the tail.
#[inline(always)]
fn tail_sums<S: Simd, T: Element>(
    tail: &Tail<S, T>,
    zero: Vector<S, T>,
    row: &Splat<Vector<S, T>>,
    gain: &[T],
    x: &[T],
    dy: &[T],
    sums: (Vector<S, T>, Vector<S, T>),
) -> (Vector<S, T>, Vector<S, T>) {
    let q = tail.fresh.select(tail.load_all(gain) * tail.load_all(dy), zero);
    (sums.0 + q, sums.1 + q * row.xhat(tail.load_all(x)))
}

/// dx and columns of the features from `start` on of one row.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn block_gradients<S: Simd, T: Element>(
    simd: S,
    layer: &Layer<'_, T>,
    row: &Row<T>,
    start: usize,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let mut scaled = [T::zero(); LARGEST_BLOCK];
    for at in (0..x.len()).step_by(T::BLOCK) {
        let block = at..(at + T::BLOCK).min(x.len());
        let x = in_units(row, &x[block.clone()], &mut scaled);
        let tail = Tail::new(simd, x.len());
        let gain = layer.gain(start + at, x.len());
        let (dy, dx) = (&dy[block.clone()], &mut dx[block.clone()]);
        let mut columns = Columns { dgain: &mut columns.dgain[block.clone()], dbias: &mut columns.dbias[block] };
        gradients(simd, &tail, &[*row], gain, x, dy, dx, &mut columns);
        if row.exponent != 0 {
            dx.iter_mut().for_each(|dx| *dx = times_power_of_two(*dx, -row.exponent));
        }
    }
}

/// dx of `R` rows side by side, and their columns, added in the order of the rows.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn gradients<S: Simd, T: Element, const R: usize>(
    simd: S,
    tail: &Tail<S, T>,
    rows: &[Row<T>; R],
    gain: &[T],
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = gain.len();
    let rows: [_; R] = std::array::from_fn(
        #[inline(always)]
        |i| Splat::new(simd, &rows[i]),
    );
    let lanes = T::LANES;
    let sums = columns.dgain.chunks_exact_mut(lanes).zip(columns.dbias.chunks_exact_mut(lanes));
    for (vector, (gain, (dgain, dbias))) in gain.chunks_exact(lanes).zip(sums).enumerate() {
        let gain = load::<S, T>(simd, gain);
        let (mut sum_gain, mut sum_bias) = (load::<S, T>(simd, dgain), load::<S, T>(simd, dbias));
        for (i, row) in rows.iter().enumerate() {
            let at = i * features + vector * lanes;
            let at = at..at + lanes;
            let (xhat, dy) = (row.xhat(load(simd, &x[at.clone()])), load(simd, &dy[at.clone()]));
            sum_gain += dy * xhat;
            sum_bias += dy;
            row.dx(xhat, gain * dy).store_slice(&mut dx[at]);
        }
        sum_gain.store_slice(dgain);
        sum_bias.store_slice(dbias);
    }
    if tail.is_empty() {
        return;
    }
    let zero = splat(simd, T::zero());
    let gain = tail.load_all(gain);
    let (mut sum_gain, mut sum_bias) = (tail.load_all(columns.dgain), tail.load_all(columns.dbias));
    for (i, row) in rows.iter().enumerate() {
        let at = i * features..(i + 1) * features;
        let (xhat, dy) = (row.xhat(tail.load_all(&x[at.clone()])), tail.load_all(&dy[at.clone()]));
        sum_gain += tail.fresh.select(dy * xhat, zero);
        sum_bias += tail.fresh.select(dy, zero);
        tail.store_all(row.dx(xhat, gain * dy), &mut dx[at]);
    }
    tail.store_all(sum_gain, columns.dgain);
    tail.store_all(sum_bias, columns.dbias);
}
