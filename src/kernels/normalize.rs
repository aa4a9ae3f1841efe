//! y from x, its moments, gain and bias.
//!
//! ```text
//! x̂ = ((x − mean) − low) · rstd
//! y = x̂ · gain + bias
//!
//! rows of one block, R at a time:
//!     sums of the first R rows
//!     while there are rows:
//!         statistics of these R rows from their sums
//!         for each of them: write its y, and sum the row R further on
//! ```
//!
//! Never `x·rstd + (−mean·rstd)`: at a large mean that is the difference of two large numbers. Reading the next
//! rows while these are written keeps memory busy both ways, and `R` rows at once let their reductions, divisions
//! and square roots overlap. Neither changes the order of additions within a row, so neither changes a bit.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::element::{Element, LARGEST_BLOCK};
use crate::kernels::moments::{Epsilon, Statistics, TURNS, add_turns, group_statistics, lane_sums, row_moments};
use crate::kernels::rescale::{Rescaled, rescale, rescued};
use crate::simd::{Tail, Vector, load, splat};

/// Gain and bias of a block of features: ones and zeros where the layer has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layer<'a, T> {
    pub(crate) features: usize,
    pub(crate) gain: Option<&'a [T]>,
    pub(crate) bias: Option<&'a [T]>,
    pub(crate) epsilon: Epsilon,
}

impl<'a, T: Element> Layer<'a, T> {
    /// The gain of `len` features from `start` on, at most a block of them.
    #[inline(always)]
    pub(crate) fn gain(&self, start: usize, len: usize) -> &'a [T] {
        self.gain.map_or(&T::ONES[..len], |gain| &gain[start..start + len])
    }

    /// The bias of `len` features from `start` on, at most a block of them.
    #[inline(always)]
    fn bias(&self, start: usize, len: usize) -> &'a [T] {
        self.bias.map_or(&T::ZEROS[..len], |bias| &bias[start..start + len])
    }
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

impl<'a, T: Element> SavedRows<'a, T> {
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
    fn set(&mut self, row: usize, statistics: &Statistics<T>, exponent: i32) {
        self.mean[row] = statistics.mean;
        self.low[row] = statistics.low;
        self.rstd[row] = statistics.rstd;
        self.exponent[row] = exponent as i16;
    }
}

/// Normalizes rows of any number of features, side by side in `x` and `y`.
#[simd]
pub(crate) fn forward<S: Simd, T: Element>(
    simd: S,
    layer: Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    mut saved: Option<SavedRows<'_, T>>,
) {
    let features = layer.features;
    if features > T::BLOCK {
        for (row, (x, y)) in x.chunks_exact(features).zip(y.chunks_exact_mut(features)).enumerate() {
            let statistics = row_moments(simd, x).finish(layer.epsilon);
            if statistics.safe {
                normalize(simd, layer, &statistics, 0, x, y);
                save(&mut saved, row, &statistics, 0);
            } else {
                normalize_rescued(simd, layer, x, y, &mut saved, row);
            }
        }
        return;
    }
    let rows = x.len() / features;
    let single = if features <= 8 * 64 { rows % 8 } else { rows };
    let grouped = rows - single;
    group_rows::<S, T, 8>(simd, layer, x, y, &mut saved, 0, grouped);
    group_rows::<S, T, 1>(simd, layer, x, y, &mut saved, grouped, rows);
}

#[inline(always)]
fn save<T: Element>(saved: &mut Option<SavedRows<'_, T>>, row: usize, statistics: &Statistics<T>, exponent: i32) {
    if let Some(saved) = saved {
        saved.set(row, statistics, exponent);
    }
}

/// Rows `start..end` of one block each, `R` at a time; `R` divides their number.
#[inline(always)]
fn group_rows<S: Simd, T: Element, const R: usize>(
    simd: S,
    layer: Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    start: usize,
    end: usize,
) {
    if start == end {
        return;
    }
    let features = layer.features;
    let tail = Tail::new(simd, features);
    let rows = |row: usize| &x[row * features..][..R * features];
    let mut sums = [splat(simd, T::zero()); R];
    for (sum, x) in sums.iter_mut().zip(rows(start).chunks_exact(features)) {
        *sum = lane_sums(simd, &tail, x);
    }
    for row in (start..end).step_by(R) {
        let statistics: [_; R] = group_statistics(simd, &tail, rows(row), sums, layer.epsilon);
        let out = &mut y[row * features..][..R * features];
        let next = if row + R < end { Some(rows(row + R)) } else { None };
        for i in 0..R {
            let at = i * features..(i + 1) * features;
            let (x, y) = (&rows(row)[at.clone()], &mut out[at.clone()]);
            match next {
                Some(next) => sums[i] = normalize_and_sum(simd, &tail, layer, &statistics[i], x, y, &next[at]),
                None => normalize_block(simd, &tail, layer, &statistics[i], 0, x, y),
            }
            save(saved, row + i, &statistics[i], 0);
        }
        if statistics.iter().any(
            #[inline(always)]
            |statistics| !statistics.safe,
        ) {
            for i in (0..R).filter(|&i| !statistics[i].safe) {
                let at = i * features..(i + 1) * features;
                normalize_rescued(simd, layer, &rows(row)[at.clone()], &mut out[at], saved, row + i);
            }
        }
    }
}

/// y of the features from `start` on of a row of any length.
#[simd]
pub(crate) fn normalize<S: Simd, T: Element>(
    simd: S,
    layer: Layer<'_, T>,
    statistics: &Statistics<T>,
    start: usize,
    x: &[T],
    y: &mut [T],
) {
    for (block, (x, y)) in x.chunks(T::BLOCK).zip(y.chunks_mut(T::BLOCK)).enumerate() {
        let tail = Tail::new(simd, x.len());
        normalize_block(simd, &tail, layer, statistics, start + block * T::BLOCK, x, y);
    }
}

/// y of a whole row that is not [`Statistics::safe`].
#[simd]
#[cold]
#[inline(never)]
fn normalize_rescued<S: Simd, T: Element>(
    simd: S,
    layer: Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    row: usize,
) {
    let rescued = rescued(simd, x, layer.epsilon);
    normalize_rescaled(simd, layer, &rescued, 0, x, y);
    save(saved, row, &rescued.in_units_of_row(), rescued.exponent);
}

/// y of the features from `start` on of a rescaled row.
#[simd]
#[cold]
#[inline(never)]
pub(crate) fn normalize_rescaled<S: Simd, T: Element>(
    simd: S,
    layer: Layer<'_, T>,
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

/// The statistics of a row in every lane.
struct Splat<V> {
    mean: V,
    low: V,
    rstd: V,
}

impl<V> Splat<V> {
    #[inline(always)]
    fn new<S: Simd, T: Element<Vector<S> = V>>(simd: S, statistics: &Statistics<T>) -> Self {
        Self {
            mean: splat(simd, statistics.mean),
            low: splat(simd, statistics.low),
            rstd: splat(simd, statistics.rstd),
        }
    }

    /// x̂·gain + bias
    #[inline(always)]
    fn affine<S: Simd>(&self, x: V, gain: V, bias: V) -> V
    where
        V: SimdBase<S>,
    {
        ((x - self.mean) - self.low) * self.rstd * gain + bias
    }
}

/// y of at most a block of features.
#[inline(always)]
fn normalize_block<S: Simd, T: Element>(
    simd: S,
    tail: &Tail<S, T>,
    layer: Layer<'_, T>,
    statistics: &Statistics<T>,
    start: usize,
    x: &[T],
    y: &mut [T],
) {
    let (gain, bias) = (layer.gain(start, x.len()), layer.bias(start, x.len()));
    let row = Splat::new(simd, statistics);
    let lanes = T::LANES;
    let vectors = x.chunks_exact(lanes).zip(y.chunks_exact_mut(lanes));
    for ((x, y), (gain, bias)) in vectors.zip(gain.chunks_exact(lanes).zip(bias.chunks_exact(lanes))) {
        row.affine(load(simd, x), load(simd, gain), load(simd, bias)).store_slice(y);
    }
    normalize_tail(tail, &row, gain, bias, x, y);
}

/// y of the last elements of a row, and the partial sums of the next row.
#[inline(always)]
fn normalize_and_sum<S: Simd, T: Element>(
    simd: S,
    tail: &Tail<S, T>,
    layer: Layer<'_, T>,
    statistics: &Statistics<T>,
    x: &[T],
    y: &mut [T],
    next: &[T],
) -> Vector<S, T> {
    let (gain, bias) = (layer.gain(0, x.len()), layer.bias(0, x.len()));
    let row = Splat::new(simd, statistics);
    let zero = splat(simd, T::zero());
    let mut sums = [zero; TURNS];
    let turn = TURNS * T::LANES;
    let whole = x.len() / turn * turn;
    let arrays = x.chunks_exact(turn).zip(y.chunks_exact_mut(turn)).zip(next.chunks_exact(turn));
    for (((x, y), next), (gain, bias)) in arrays.zip(gain.chunks_exact(turn).zip(bias.chunks_exact(turn))) {
        for i in 0..TURNS {
            let at = i * T::LANES..(i + 1) * T::LANES;
            sums[i] += load(simd, &next[at.clone()]);
            row.affine(load(simd, &x[at.clone()]), load(simd, &gain[at.clone()]), load(simd, &bias[at.clone()]))
                .store_slice(&mut y[at]);
        }
    }
    let mut at = whole;
    for sum in &mut sums {
        if at + T::LANES <= x.len() {
            let range = at..at + T::LANES;
            *sum += load(simd, &next[range.clone()]);
            row.affine(
                load(simd, &x[range.clone()]),
                load(simd, &gain[range.clone()]),
                load(simd, &bias[range.clone()]),
            )
            .store_slice(&mut y[range]);
        } else if at < x.len() {
            *sum += tail.load(next, zero);
        }
        at += T::LANES;
    }
    normalize_tail(tail, &row, gain, bias, x, y);
    add_turns(sums)
}

#[inline(always)]
fn normalize_tail<S: Simd, T: Element>(
    tail: &Tail<S, T>,
    row: &Splat<Vector<S, T>>,
    gain: &[T],
    bias: &[T],
    x: &[T],
    y: &mut [T],
) {
    if !tail.is_empty() {
        tail.store_all(row.affine(tail.load_all(x), tail.load_all(gain), tail.load_all(bias)), y);
    }
}
