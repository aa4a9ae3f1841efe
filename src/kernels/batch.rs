//! Batch normalization: statistics of columns, y, and back.
//!
//! ```text
//! each column of N rows:
//!     h = mean of a sample               as many rows as fit evenly into the batch, a power of two, at most 16
//!     s = Σ (x − h)        q = Σ (x − h)²
//!     δ = s / N            M = q − s·δ                                    Σ (x − μ)²
//!     μ = h + δ, wide, split into mean + low        σ² = M/N or M/(N − 1)        rstd = 1/√(σ² + ε)
//!     unless s·δ ≤ M (|δ| ≤ σ) and the squares are within range:          taken again, see `column`
//! y = ((x − mean) − low) · (rstd·gain) + bias
//! ```
//!
//! and backward (docs/batch_norm.md; letters as there)
//!
//! ```text
//! each column:
//!     B = Σ dy        D = Σ dy·(x − mean) − low·B        = Σ dy·d         d = (x − mean) − low
//!     k = B/N         m = rstd²·D/N or rstd²·D/(N − 1)
//!     dgain += rstd·D        dbias += B
//! dx = ((dy − k) − d·m) · (rstd·gain)
//! ```
//!
//! A lane is a column: no sum crosses lanes. Sums take the rows one after the other, in chains that end in something wider
//! as in [`columns`](super::columns). From a cache, four rows at a time share a load and a store of each sum; from memory
//! rows are read one by one, because memory likes one line after the other, and so are short [`rows`]. Neither changes the order
//! of additions.
//!
//! Why a sample: Σx² − N·μ² has no digit left where |μ| is large beside σ; about an h within σ of μ it loses one bit at
//! most. The rows of the sample are spread over the batch, because batches may be sorted. A sample of a power of two of
//! rows that are all the same gives h = x exactly, so a constant column has s = q = 0.

pub(crate) mod rows;
pub(crate) mod write;

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::moments::Spread;
use crate::number::{Number, Wide};
use crate::prefetch::{DISTANCE, Prefetch, ask_for_page};
use crate::simd::{Tail, is_avx2, is_avx512, load, pairs, splat};

/// The most rows of a sample: their mean is within σ of μ but for one in 15,000 normal columns.
pub(crate) const SAMPLE: usize = 16;

/// Vectors of a tile of columns: what is known of them stays in L1 from row to row.
const TILE: usize = 64;

/// What a mean over the rows, and a variance, are divided by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) rows: f64,
    /// Rows, or one less where the variance is unbiased.
    pub(crate) divisor: f64,
}

/// Columns of rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a, T> {
    /// From the first of these columns in the first row on.
    pub(crate) rows: &'a [T],
    /// Elements from row to row.
    pub(crate) stride: usize,
    /// The feature in the first column.
    pub(crate) first: usize,
}

impl<'a, T: Number> Block<'a, T> {
    /// Some columns of a row.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize, columns: Range<usize>) -> &'a [T] {
        &self.rows[row * self.stride + columns.start..][..columns.len()]
    }

    /// These columns of a row below, to be asked for while a row is read: on AVX2, as in [`ahead`](super::ahead), where rows
    /// are taken one by one.
    #[inline(always)]
    fn prefetch<S: Simd, const R: usize>(&self, row: usize, columns: &Range<usize>) -> Prefetch<'a, T> {
        if const { R == 1 && is_avx2::<S>() } {
            let below = (DISTANCE / size_of::<T>() / columns.len()).max(1);
            Prefetch::these(self.rows).skip((row + below) * self.stride + columns.start)
        } else {
            Prefetch::NONE
        }
    }

    /// Asks for the page that these columns of the row below go over to: on AVX-512, where rows are taken one by one.
    #[inline(always)]
    fn ask_for_page<S: Simd, const R: usize>(&self, row: usize, columns: &Range<usize>) {
        if const { R == 1 && is_avx512::<S>() } {
            let below = (row + 1) * self.stride;
            ask_for_page(self.rows, below + columns.start..below + columns.end);
        }
    }

    /// These columns of `R` rows.
    #[inline(always)]
    fn group<const R: usize>(&self, first: usize, columns: &Range<usize>) -> [&'a [T]; R] {
        let mut rows = [self.rows; R];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = self.row(first + i, columns.clone());
        }
        rows
    }
}

/// What forward keeps of some columns, one number a column in each slice.
#[derive(Debug)]
pub(crate) struct SavedColumns<'a, T> {
    pub(crate) mean: &'a mut [T],
    pub(crate) low: &'a mut [T],
    pub(crate) variance: &'a mut [T],
    pub(crate) rstd: &'a mut [T],
    /// Not 0 where a column had to be rescaled.
    pub(crate) exponent: &'a mut [i16],
}

/// The exponent of a column that has to be taken again.
pub(crate) const AGAIN: i16 = i16::MAX;

impl<'a, T> SavedColumns<'a, T> {
    /// The first columns, and the others.
    pub(crate) fn split(self, columns: usize) -> (Self, Self) {
        let (mean, mean_rest) = self.mean.split_at_mut(columns);
        let (low, low_rest) = self.low.split_at_mut(columns);
        let (variance, variance_rest) = self.variance.split_at_mut(columns);
        let (rstd, rstd_rest) = self.rstd.split_at_mut(columns);
        let (exponent, exponent_rest) = self.exponent.split_at_mut(columns);
        (
            Self { mean, low, variance, rstd, exponent },
            Self { mean: mean_rest, low: low_rest, variance: variance_rest, rstd: rstd_rest, exponent: exponent_rest },
        )
    }

    /// Some of the columns.
    pub(crate) fn part(&mut self, columns: Range<usize>) -> SavedColumns<'_, T> {
        SavedColumns {
            mean: &mut self.mean[columns.clone()],
            low: &mut self.low[columns.clone()],
            variance: &mut self.variance[columns.clone()],
            rstd: &mut self.rstd[columns.clone()],
            exponent: &mut self.exponent[columns],
        }
    }

    /// To be read.
    pub(crate) fn kept(&self) -> KeptColumns<'_, T> {
        KeptColumns { mean: self.mean, low: self.low, rstd: self.rstd, exponent: self.exponent }
    }
}

/// What forward kept of some columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptColumns<'a, T> {
    pub(crate) mean: &'a [T],
    pub(crate) low: &'a [T],
    pub(crate) rstd: &'a [T],
    pub(crate) exponent: &'a [i16],
}

impl<'a, T> KeptColumns<'a, T> {
    /// Some of the columns.
    pub(crate) fn part(self, columns: Range<usize>) -> Self {
        Self {
            mean: &self.mean[columns.clone()],
            low: &self.low[columns.clone()],
            rstd: &self.rstd[columns.clone()],
            exponent: &self.exponent[columns],
        }
    }
}

/// The tiles of `len` columns.
#[inline(always)]
fn tiles<T: Number>(len: usize) -> impl Iterator<Item = Range<usize>> {
    let tile = TILE * T::LANES;
    (0..len).step_by(tile).map(move |start| start..(start + tile).min(len))
}

/// h of each column: the mean of these rows, a power of two of them and at most [`SAMPLE`].
#[simd]
pub(crate) fn sample<S: Simd, T: Number>(simd: S, rows: &[&[T]], near: &mut [T]) {
    match rows {
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] => {
            mean_of(simd, [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p], near);
        }
        [a, b, c, d, e, f, g, h] => mean_of(simd, [a, b, c, d, e, f, g, h], near),
        [a, b, c, d] => mean_of(simd, [a, b, c, d], near),
        [a, b] => mean_of(simd, [a, b], near),
        _ => near.copy_from_slice(rows[0]),
    }
}

#[inline(always)]
fn mean_of<S: Simd, T: Number, const R: usize>(simd: S, rows: [&&[T]; R], near: &mut [T]) {
    let tail = Tail::new(simd, near.len());
    let share = splat(simd, T::nearest(1.0 / R as f64));
    let mut terms = [share; R];
    for (i, near) in T::chunks_mut(near).0.iter_mut().enumerate() {
        for r in 0..R {
            terms[r] = load::<S, T>(simd, &T::chunks(rows[r]).0[i]);
        }
        (pairs(terms) * share).store_array(near);
    }
    if !tail.is_empty() {
        for r in 0..R {
            terms[r] = tail.load_all(rows[r]);
        }
        tail.store_all(pairs(terms) * share, near);
    }
}

/// Sums over some rows, one number a column in each slice.
#[derive(Debug)]
pub(crate) struct Sums<'a, T> {
    /// Σ (x − h)², or Σ dy·(x − mean)
    pub(crate) products: &'a mut [T],
    /// Σ (x − h), or Σ dy
    pub(crate) terms: &'a mut [T],
}

/// Adds some rows to the sums, about h (with `dy`: the mean) of each column.
///
/// `streams`: the rows come from memory.
#[simd]
pub(crate) fn sums<S: Simd, T: Number>(
    simd: S,
    streams: bool,
    about: &[T],
    x: Block<'_, T>,
    dy: Option<Block<'_, T>>,
    sums: &mut Sums<'_, T>,
) {
    let rows = x.rows.len().div_ceil(x.stride);
    if const { S::f32s::LEN < 8 } {
        // Narrow registers do not hold several rows.
        match dy {
            None => add_rows::<S, T, false, 1>(simd, about, x, x, sums, 0..rows),
            Some(dy) => add_rows::<S, T, true, 1>(simd, about, x, dy, sums, 0..rows),
        };
        return;
    }
    // Of more, rows of 4096 bytes would push each other out of L1.
    let together = if are_together::<S, T>(streams, about.len()) { rows / 4 * 4 } else { 0 };
    match dy {
        None => {
            let done = add_rows::<S, T, false, 4>(simd, about, x, x, sums, 0..together);
            add_rows::<S, T, false, 1>(simd, about, x, x, sums, done..rows);
        }
        Some(dy) => {
            let done = add_rows::<S, T, true, 4>(simd, about, x, dy, sums, 0..together);
            add_rows::<S, T, true, 1>(simd, about, x, dy, sums, done..rows);
        }
    }
}

/// Whether several rows of these columns are best taken together.
#[inline(always)]
pub(super) fn are_together<S: Simd, T: Number>(streams: bool, columns: usize) -> bool {
    // Where memory sets the pace, it is fastest where rows are read one after the other, unless a tile is left for the next
    // row anyway; on AVX2 that row has been asked for.
    !(streams && (is_avx2::<S>() || columns <= TILE * T::LANES))
}

/// `R` rows at a time; `R` divides their number. Returns the row after the last.
#[simd]
#[inline(never)]
fn add_rows<S: Simd, T: Number, const BACK: bool, const R: usize>(
    simd: S,
    about: &[T],
    x: Block<'_, T>,
    dy: Block<'_, T>,
    sums: &mut Sums<'_, T>,
    rows: Range<usize>,
) -> usize {
    if rows.is_empty() {
        return rows.end;
    }
    for tile in tiles::<T>(about.len()) {
        let tail = Tail::new(simd, tile.len());
        let about = &about[tile.clone()];
        let sums = &mut Sums { products: &mut sums.products[tile.clone()], terms: &mut sums.terms[tile.clone()] };
        for first in rows.clone().step_by(R) {
            x.ask_for_page::<S, R>(first, &tile);
            if BACK {
                dy.ask_for_page::<S, R>(first, &tile);
            }
            let of_dy = if BACK { dy.prefetch::<S, R>(first, &tile) } else { Prefetch::NONE };
            let prefetch = [x.prefetch::<S, R>(first, &tile), of_dy];
            let (x, dy) = (x.group(first, &tile), dy.group(first, &tile));
            add_group::<S, T, BACK, R>(simd, &tail, about, x, dy, sums, prefetch);
        }
    }
    rows.end
}

#[inline(always)]
fn add_group<S: Simd, T: Number, const BACK: bool, const R: usize>(
    simd: S,
    tail: &Tail<S, T>,
    about: &[T],
    x: [&[T]; R],
    dy: [&[T]; R],
    sums: &mut Sums<'_, T>,
    prefetch: [Prefetch<'_, T>; 2],
) {
    let abouts = T::chunks(about).0;
    let count = abouts.len();
    {
        let (x, dy) = (x.map(|x| &T::chunks(x).0[..count]), dy.map(|dy| &T::chunks(dy).0[..count]));
        let products = &mut T::chunks_mut(sums.products).0[..count];
        let terms = &mut T::chunks_mut(sums.terms).0[..count];
        for i in 0..count {
            Prefetch::lines(prefetch, i * T::LANES);
            let about = load::<S, T>(simd, &abouts[i]);
            let (mut product, mut term) = (load::<S, T>(simd, &products[i]), load::<S, T>(simd, &terms[i]));
            for r in 0..R {
                let d = load::<S, T>(simd, &x[r][i]) - about;
                let t = if BACK { load::<S, T>(simd, &dy[r][i]) } else { d };
                product += t * d;
                term += t;
            }
            product.store_array(&mut products[i]);
            term.store_array(&mut terms[i]);
        }
    }
    if !tail.is_empty() {
        let (about, zero) = (tail.load_all(about), splat(simd, T::zero()));
        let (mut product, mut term) = (tail.load_all(sums.products), tail.load_all(sums.terms));
        for r in 0..R {
            // In front of the tail is what has been added already.
            let d = tail.keep(tail.load_all(x[r]) - about, zero);
            let t = if BACK { tail.load(dy[r], zero) } else { d };
            product += t * d;
            term += t;
        }
        tail.store_all(product, sums.products);
        tail.store_all(term, sums.terms);
    }
}

/// The statistics of columns whose h is in `saved.mean`, from Σ (x − h)² of each and then Σ (x − h) of each. Whether all
/// of them hold; where they do not, the exponent is [`AGAIN`].
#[simd]
pub(crate) fn finish<S: Simd, T: Number>(
    simd: S,
    spread: Spread,
    count: Count,
    totals: &[T::Wide],
    saved: &mut SavedColumns<'_, T>,
) -> bool {
    let columns = saved.mean.len();
    let (squares, sums) = totals.split_at(columns);
    let in_parts = columns / PART * PART;
    let mut all_hold = true;
    for start in (0..in_parts).step_by(PART) {
        let part = &mut saved.part(start..start + PART);
        let at = start..start + PART;
        all_hold &= finish_part(simd, PART, spread, count, &squares[at.clone()], &sums[at], part);
    }
    let rest = &mut saved.part(in_parts..columns);
    let len = columns - in_parts;
    all_hold & finish_part(simd, len, spread, count, &squares[in_parts..], &sums[in_parts..], rest)
}

/// Columns whose statistics are computed together.
const PART: usize = 32;

/// Loops of one kind of number each: they are computed as vectors then.
#[inline(always)]
fn finish_part<S: Simd, T: Number>(
    _simd: S,
    len: usize,
    spread: Spread,
    count: Count,
    squares: &[T::Wide],
    sums: &[T::Wide],
    saved: &mut SavedColumns<'_, T>,
) -> bool {
    let (squares, sums) = (&squares[..len], &sums[..len]);
    let (share, divisor) = (1.0 / count.rows, 1.0 / count.divisor);
    let mut fails = [0_u64; PART];
    let mut wide = [[0.0; PART]; 3];
    let mut elements = [[T::zero(); PART]; 4];
    let [delta, variance, r] = &mut wide;
    let [mean, low, variances, rstds] = &mut elements;
    mean[..len].copy_from_slice(saved.mean);
    for c in 0..len {
        let sum = sums[c].value();
        delta[c] = sum * share;
        let m = squares[c].value() - sum * delta[c];
        let near = sum * delta[c] <= m;
        // Rounding may take a column without spread below 0; NaN must stay NaN.
        let m = if m < 0.0 { 0.0 } else { m };
        variance[c] = m * divisor;
        fails[c] = if near & spread.holds(variance[c]) { 0 } else { 1 };
    }
    for c in 0..len {
        // 1/0 where σ² and ε are 0 does not hold.
        r[c] = 1.0 / (variance[c] + spread.eps).sqrt();
    }
    for c in 0..len {
        (mean[c], low[c]) = T::split(T::Wide::default().add(mean[c].into()).add(delta[c]));
        (variances[c], rstds[c]) = (T::nearest(variance[c]), T::nearest(r[c]));
    }
    saved.mean.copy_from_slice(&mean[..len]);
    saved.low.copy_from_slice(&low[..len]);
    saved.variance.copy_from_slice(&variances[..len]);
    saved.rstd.copy_from_slice(&rstds[..len]);
    saved.exponent.fill(0);
    let all_hold = fails[..len].iter().all(
        #[inline(always)]
        |&fails| fails == 0,
    );
    if !all_hold {
        for (exponent, fails) in saved.exponent.iter_mut().zip(fails) {
            *exponent = if fails == 0 { 0 } else { AGAIN };
        }
    }
    all_hold
}

/// k and m of some columns; `totals`, Σ dy·(x − mean) of each and then B of each, becomes what dgain and dbias add.
#[simd]
pub(crate) fn coefficients<S: Simd, T: Number>(
    _simd: S,
    count: Count,
    kept: KeptColumns<'_, T>,
    totals: &mut [T::Wide],
    k: &mut [T],
    m: &mut [T],
) {
    let columns = k.len();
    let (share, divisor) = (1.0 / count.rows, 1.0 / count.divisor);
    let (dgain, dbias) = totals.split_at_mut(columns);
    let (dbias, low, rstd, m) = (&dbias[..columns], &kept.low[..columns], &kept.rstd[..columns], &mut m[..columns]);
    for c in 0..columns {
        let (b, r) = (dbias[c].value(), rstd[c].into());
        let d = dgain[c].value() - low[c].into() * b;
        k[c] = T::nearest(b * share);
        m[c] = T::nearest(r * r * (d * divisor));
        dgain[c] = T::Wide::default().add(r * d);
    }
}
