//! y from x, its moments, gain and bias.
//!
//! ```text
//! x̂ = ((x − mean) − low) · rstd
//! y = x̂ · gain + bias
//!
//! R rows at a time:
//!     sums of each row, statistics of all, y of P and P
//! ```
//!
//! Never `x·rstd + (−mean·rstd)`: at a large mean that is the difference of two large numbers. Rows taken together
//! share the latencies of their reductions, divisions and square roots, and the loads of gain and bias, and the next rows' h is
//! on its way while these wait for theirs. Rows of one block that come from memory are taken [`alone`](super::alone) on
//! AVX-512; on AVX2 what follows is asked for meanwhile ([`ahead`](super::ahead)). None of it changes the order of additions
//! within a row, so none changes a bit.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::blocks::{chunks_from, first_of, last_of};
use crate::kernels::group::{Group, near_means_of};
use crate::kernels::moments::{Spread, Statistics, row_moments};
use crate::kernels::rescale::{Rescaled, rescale, rescued};
use crate::number::{LARGEST_BLOCK, Number};
use crate::prefetch::Prefetch;
use crate::simd::{Tail, Vector, front_of, load, splat};

/// Gain and bias of a block of features: ones and zeros where the layer has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer<'a, T> {
    pub(crate) features: usize,
    pub(crate) gain: Option<&'a [T]>,
    pub(crate) bias: Option<&'a [T]>,
    pub(crate) spread: Spread,
}

impl<'a, T: Number> Layer<'a, T> {
    /// The gain of `len` features from `start` on, at most a block of them.
    #[inline(always)]
    pub(crate) fn gain(&self, start: usize, len: usize) -> &'a [T] {
        self.gain.map_or(&T::ONES[..len], |gain| &gain[start..start + len])
    }

    /// The bias of `len` features from `start` on, at most a block of them.
    #[inline(always)]
    pub(crate) fn bias(&self, start: usize, len: usize) -> &'a [T] {
        self.bias.map_or(&T::ZEROS[..len], |bias| &bias[start..start + len])
    }
}

/// Where the arrays of a whole call are, at best.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub(crate) enum Place {
    /// In a core's own cache.
    Core,
    /// In a cache that cores share.
    Shared,
    Memory,
}

/// What forward keeps of some rows, one number a row in each slice.
#[derive(Debug)]
pub(crate) struct SavedRows<'a, T> {
    pub(crate) mean: &'a mut [T],
    pub(crate) low: &'a mut [T],
    pub(crate) rstd: &'a mut [T],
    /// Not 0 where a row had to be rescaled: backward then takes its moments again, in units of the rescaled row.
    pub(crate) exponent: &'a mut [i16],
}

impl<'a, T: Number> SavedRows<'a, T> {
    /// The first `rows` rows, and the others.
    pub(crate) fn split(self, rows: usize) -> (Self, Self) {
        let (mean, mean_rest) = self.mean.split_at_mut(rows);
        let (low, low_rest) = self.low.split_at_mut(rows);
        let (rstd, rstd_rest) = self.rstd.split_at_mut(rows);
        let (exponent, exponent_rest) = self.exponent.split_at_mut(rows);
        (
            Self { mean, low, rstd, exponent },
            Self { mean: mean_rest, low: low_rest, rstd: rstd_rest, exponent: exponent_rest },
        )
    }

    /// Takes the first `rows` rows off.
    pub(crate) fn take_first(&mut self, rows: usize) -> Self {
        let all = Self {
            mean: std::mem::take(&mut self.mean),
            low: std::mem::take(&mut self.low),
            rstd: std::mem::take(&mut self.rstd),
            exponent: std::mem::take(&mut self.exponent),
        };
        let (first, rest) = all.split(rows);
        *self = rest;
        first
    }

    #[inline(always)]
    pub(crate) fn set(&mut self, row: usize, statistics: &Statistics<T>, exponent: i32) {
        self.mean[row] = statistics.mean;
        self.low[row] = statistics.low;
        self.rstd[row] = statistics.rstd;
        self.exponent[row] = exponent as i16;
    }
}

/// Vectors of a tile of columns: gain and bias of a tile stay in L1 from pair of rows to pair of rows.
const TILE: usize = 64;

/// The most vectors of the last tile: a few elements are not worth one of their own.
const LAST_TILE: usize = 72;

/// Normalizes rows of any number of features, side by side in `x` and `y`.
#[inline(always)]
pub(crate) fn forward<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    mut saved: Option<SavedRows<'_, T>>,
) {
    let rows = x.len() / layer.features;
    if const { S::f32s::LEN < 8 } {
        // Narrow registers do not hold two rows, and the scalar fallback takes minutes to compile them.
        groups::<S, T, 1, 1, true>(simd, layer, x, y, &mut saved, 0..rows);
    } else if layer.spread.centred {
        all_rows::<S, T, true>(simd, layer, x, y, &mut saved);
    } else {
        all_rows::<S, T, false>(simd, layer, x, y, &mut saved);
    }
}

/// [`forward`] of rows of several blocks that come from memory, on AVX-512: their columns are written four at once, which
/// memory likes better (0.92 to 0.95 of the time), but caches do not (1.1).
#[inline(always)]
pub(crate) fn forward_from_memory<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) {
    if layer.spread.centred {
        groups_of_four::<S, T, 4, true>(simd, layer, x, y, saved, 0);
    } else {
        groups_of_four::<S, T, 4, false>(simd, layer, x, y, saved, 0);
    }
}

/// [`forward`] where registers hold two rows. `CENTRED`: as the spread of the layer.
#[inline(always)]
fn all_rows<S: Simd, T: Number, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) {
    let rows = x.len() / layer.features;
    // Of shorter rows, the reductions are a large part of the work.
    let done = if layer.features <= 16 * T::LANES && T::LANES > 8 {
        groups::<S, T, 16, 2, CENTRED>(simd, layer, x, y, saved, 0..rows / 16 * 16)
    } else {
        0
    };
    groups_of_four::<S, T, 2, CENTRED>(simd, layer, x, y, saved, done);
}

/// Four rows at a time from row `first` on, and what is left alone.
#[inline(always)]
fn groups_of_four<S: Simd, T: Number, const P: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    first: usize,
) {
    let rows = x.len() / layer.features;
    let done = groups::<S, T, 4, P, CENTRED>(simd, layer, x, y, saved, first..rows / 4 * 4);
    groups::<S, T, 1, 1, CENTRED>(simd, layer, x, y, saved, done..rows);
}

/// `R` rows at a time; `R` divides their number. Their y is written `P` at a time; `P` divides `R`. Returns the row after
/// the last.
#[simd]
#[inline(never)]
fn groups<S: Simd, T: Number, const R: usize, const P: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    rows: Range<usize>,
) -> usize {
    let &Layer { features, spread, .. } = layer;
    let (mut first, end) = (rows.start, rows.end);
    if rows.is_empty() {
        return end;
    }
    let (at, group_len) = (first * features..end * features, R * features);
    let tail = Tail::new(simd, features.min(T::BLOCK));
    let affine = (layer.gain(0, tail.len()), layer.bias(0, tail.len()));
    let (mut inputs, mut outputs) = (&x[at.clone()], &mut y[at]);
    let in_blocks = features <= T::BLOCK;
    let mut next = splat(simd, T::zero());
    if in_blocks {
        next = near_means_of::<S, T, R>(simd, &tail, &inputs[..group_len], spread);
    }
    // Not `chunks_exact`, whose divisions are felt where there is one short row.
    while let (Some(x), Some(y)) = (inputs.split_off(..group_len), outputs.split_off_mut(..group_len)) {
        let group = if in_blocks {
            let near = next;
            if let Some(x) = inputs.get(..group_len) {
                next = near_means_of::<S, T, R>(simd, &tail, x, spread);
            }
            Group::<T, R>::of_blocks::<S, CENTRED>(simd, &tail, x, near, spread)
        } else {
            Group::of_long_rows(simd, features, x, spread)
        };
        if features <= LAST_TILE * T::LANES {
            write_group::<S, T, R, P, CENTRED>(simd, &tail, affine, &group, features, 0, x, y);
        } else {
            let mut start = 0;
            while start < features {
                let rest = features - start;
                let len = if rest <= LAST_TILE * T::LANES { rest } else { TILE * T::LANES };
                let affine = (layer.gain(start, len), layer.bias(start, len));
                write_group::<S, T, R, P, CENTRED>(simd, &Tail::new(simd, len), affine, &group, features, start, x, y);
                start += len;
            }
        }
        group.end(simd, layer, R, x, y, saved, first);
        first += R;
    }
    end
}

/// y of the columns from `start` on of a group of rows.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn write_group<S: Simd, T: Number, const R: usize, const P: usize, const CENTRED: bool>(
    simd: S,
    tail: &Tail<S, T>,
    affine: (&[T], &[T]),
    group: &Group<T, R>,
    features: usize,
    start: usize,
    x: &[T],
    y: &mut [T],
) {
    let columns = start..start + tail.len();
    for (i, (x, mut y)) in x.chunks_exact(P * features).zip(y.chunks_exact_mut(P * features)).enumerate() {
        let mut rows = [group.lanes(simd, P * i); P];
        let mut from = [&x[columns.clone()]; P];
        let mut to: [&mut [T]; P] = [(); P].map(
            #[inline(always)]
            |()| Default::default(),
        );
        for r in 0..P {
            let row;
            (row, y) = y.split_at_mut(features);
            rows[r] = group.lanes(simd, P * i + r);
            from[r] = &x[r * features..][columns.clone()];
            to[r] = &mut row[columns.clone()];
        }
        write::<S, T, P, CENTRED, 0>(simd, tail, affine, &rows, from, to, []);
    }
}

impl<T: Number, const R: usize> Group<T, R> {
    /// Keeps the statistics of the `count` rows in `x`, and takes them again if not all are safe.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
    pub(crate) fn end<S: Simd>(
        &self,
        simd: S,
        layer: &Layer<'_, T>,
        count: usize,
        x: &[T],
        y: &mut [T],
        saved: &mut Option<SavedRows<'_, T>>,
        first: usize,
    ) {
        let features = layer.features;
        if let Some(saved) = saved {
            saved.mean[first..][..count].copy_from_slice(&self.mean[..count]);
            saved.low[first..][..count].copy_from_slice(&self.low[..count]);
            saved.rstd[first..][..count].copy_from_slice(&self.rstd[..count]);
            saved.exponent[first..][..count].fill(0);
        }
        if !self.safe {
            for (i, (x, y)) in x.chunks_exact(features).zip(y.chunks_exact_mut(features)).enumerate() {
                careful_row(simd, layer, x, y, saved, first + i);
            }
        }
    }

    /// The statistics of row `i` in every lane.
    #[inline(always)]
    pub(crate) fn lanes<S: Simd>(&self, simd: S, i: usize) -> Lanes<Vector<S, T>> {
        Lanes::new(simd, self.mean[i], self.low[i], self.rstd[i])
    }
}

#[inline(always)]
fn save<T: Number>(saved: &mut Option<SavedRows<'_, T>>, row: usize, statistics: &Statistics<T>, exponent: i32) {
    if let Some(saved) = saved {
        saved.set(row, statistics, exponent);
    }
}

/// Keeps the statistics of a row, and takes them again if they are not safe.
#[inline(always)]
pub(crate) fn end_row<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    statistics: &Statistics<T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    row: usize,
) {
    if statistics.safe {
        save(saved, row, statistics, 0);
    } else {
        careful_row(simd, layer, x, y, saved, row);
    }
}

/// y of the features from `start` on of a row of any length.
#[simd]
pub(crate) fn normalize<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    statistics: &Statistics<T>,
    start: usize,
    x: &[T],
    y: &mut [T],
) {
    for (block, (x, y)) in x.chunks(T::BLOCK).zip(y.chunks_mut(T::BLOCK)).enumerate() {
        let (start, len) = (start + block * T::BLOCK, x.len());
        let affine = (layer.gain(start, len), layer.bias(start, len));
        let row = Lanes::new(simd, statistics.mean, statistics.low, statistics.rstd);
        write::<S, T, 1, true, 0>(simd, &Tail::new(simd, len), affine, &[row], [x], [y], []);
    }
}

/// y of a whole row whose statistics were not [`Statistics::safe`].
#[simd]
#[cold]
#[inline(never)]
fn careful_row<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    row: usize,
) {
    let statistics = row_moments(simd, layer.spread, x).finish(layer.spread);
    if statistics.safe {
        normalize(simd, layer, &statistics, 0, x, y);
        save(saved, row, &statistics, 0);
    } else {
        let rescued = rescued(simd, x, layer.spread);
        normalize_rescaled(simd, layer, &rescued, 0, x, y);
        save(saved, row, &rescued.in_units_of_row(), rescued.exponent);
    }
}

/// y of the features from `start` on of a row that may be rescaled.
#[simd]
pub(crate) fn normalize_any<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    row: &Rescaled<T>,
    start: usize,
    x: &[T],
    y: &mut [T],
) {
    if row.exponent == 0 {
        normalize(simd, layer, &row.statistics, start, x, y);
    } else {
        normalize_rescaled(simd, layer, row, start, x, y);
    }
}

/// y of the features from `start` on of a rescaled row.
#[simd]
#[cold]
#[inline(never)]
pub(crate) fn normalize_rescaled<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    rescued: &Rescaled<T>,
    start: usize,
    x: &[T],
    y: &mut [T],
) {
    let mut scaled = [T::zero(); LARGEST_BLOCK];
    for (block, (x, y)) in x.chunks(T::BLOCK).zip(y.chunks_mut(T::BLOCK)).enumerate() {
        let scaled = &mut scaled[..x.len()];
        rescale(x, rescued.exponent, scaled);
        normalize(simd, layer, &rescued.statistics, start + block * T::BLOCK, scaled, y);
    }
}

/// The statistics of one row in every lane, or of a row in each.
#[derive(Clone, Copy)]
pub(crate) struct Lanes<V> {
    pub(crate) mean: V,
    pub(crate) low: V,
    pub(crate) rstd: V,
}

impl<V> Lanes<V> {
    #[inline(always)]
    pub(crate) fn new<S: Simd, T: Number>(simd: S, mean: T, low: T, rstd: T) -> Self
    where
        V: SimdBase<S, Element = T>,
    {
        Self { mean: V::splat(simd, mean), low: V::splat(simd, low), rstd: V::splat(simd, rstd) }
    }

    /// x̂·gain + bias. Not `CENTRED`, if the spread is about 0: mean and low are 0, and the bits the same.
    #[inline(always)]
    pub(crate) fn affine<S: Simd, const CENTRED: bool>(&self, x: V, gain: V, bias: V) -> V
    where
        V: SimdBase<S>,
    {
        let d = if CENTRED { (x - self.mean) - self.low } else { x };
        d * self.rstd * gain + bias
    }
}

/// y of a block of each of `P` rows; of several rows, stores to the first meet cache lines. Asks for `prefetch` meanwhile.
///
/// `CENTRED`: as the spread of the layer. About 0, there is no bias: what is added is 0.
#[inline(always)]
pub(crate) fn write<S: Simd, T: Number, const P: usize, const CENTRED: bool, const B: usize>(
    simd: S,
    tail: &Tail<S, T>,
    (gain, bias): (&[T], &[T]),
    rows: &[Lanes<Vector<S, T>>; P],
    x: [&[T]; P],
    mut y: [&mut [T]; P],
    prefetch: [Prefetch<'_, T>; B],
) {
    let front = front_of(&y, false);
    if const { P > 1 } && front > 0 {
        let ([gain, bias], x) = (first_of::<S, T, 2>(simd, [gain, bias]), first_of::<S, T, P>(simd, x));
        for r in 0..P {
            rows[r].affine::<S, CENTRED>(x[r], gain, bias).store_array(&mut T::chunks_mut(y[r]).0[0]);
        }
    }
    let count = (tail.len() - front) / T::LANES;
    {
        let [gains, biases] = chunks_from::<T, 2>([gain, bias], front, count);
        let from = chunks_from::<T, P>(x, front, count);
        let to = y.each_mut().map(|y| &mut T::chunks_mut(&mut y[front..]).0[..count]);
        for i in 0..count {
            Prefetch::lines(prefetch, i * T::LANES);
            let gain = load::<S, T>(simd, &gains[i]);
            let bias = if CENTRED { load::<S, T>(simd, &biases[i]) } else { splat(simd, T::zero()) };
            let mut result = [gain; P];
            for r in 0..P {
                result[r] = rows[r].affine::<S, CENTRED>(load::<S, T>(simd, &from[r][i]), gain, bias);
            }
            for r in 0..P {
                result[r].store_array(&mut to[r][i]);
            }
        }
    }
    if front + count * T::LANES < tail.len() {
        let [gain, bias] = last_of::<S, T, 2>(simd, tail, [gain, bias]);
        let x = last_of::<S, T, P>(simd, tail, x);
        for r in 0..P {
            tail.store_all(rows[r].affine::<S, CENTRED>(x[r], gain, bias), y[r]);
        }
    }
}
