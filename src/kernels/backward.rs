//! dx of a row, and what it adds to dgain and dbias.
//!
//! ```text
//! each row:                              (docs/backward.md; letters as there)
//!     d = (x − mean) − low               x̂ = d·rstd
//!     p = dy · rstd
//!     q = gain · p
//!     first pass:   Q = Σ q,   D = Σ q·(x − mean) − low·Q          = Σ q·d
//!     k = Q/n,   m = rstd²·D/n
//!     second pass:  dx = (q − k) − d·m
//!                   dgain += p·d
//!                   dbias += dy
//!
//! R rows at a time: the second pass of these with the first pass of the next R, block by block
//! ```
//!
//! Q and D are sums as in [`moments`](super::moments): turns and tree in a block, blocks joined in order, wide. d is
//! computed again, not stored: two subtractions cost less than a load and a store. rstd goes into q, so that dx needs
//! no multiplication of its own, and k has the rounding of q: of one feature, q − k is 0.

#![doc = include_str!("../../docs/backward.md")]

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::normalize::Layer;
use crate::kernels::passes::{
    Coefficients, KeptRows, Read, Row, Second, Sums, Write, gradients, gradients_and_sums, partial_sums,
};
use crate::number::{Number, Wide, times_power_of_two};
use crate::simd::{Tail, splat, tree};

/// Features up to which rows are taken eight at a time: their reductions are a large part of the work.
const SHORT: usize = 128;

/// Column sums of at most [`CHAIN`](crate::kernels::columns::CHAIN) rows.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    pub(crate) dgain: &'a mut [T],
    pub(crate) dbias: &'a mut [T],
}

impl<T> Columns<'_, T> {
    /// Those of some features.
    #[inline(always)]
    fn part(&mut self, features: Range<usize>) -> Columns<'_, T> {
        Columns { dgain: &mut self.dgain[features.clone()], dbias: &mut self.dbias[features] }
    }
}

/// dx of rows of any number of features, side by side in `x`, `dy` and `dx`; adds their columns to `columns`.
#[simd]
pub(crate) fn backward<S: Simd, T: Number>(
    simd: S,
    layer: Layer<'_, T>,
    kept: KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let rows = kept.mean.len();
    let plain = kept.exponent.iter().all(
        #[inline(always)]
        |&exponent| exponent == 0,
    );
    if !plain {
        for row in 0..rows {
            let at = row * features..(row + 1) * features;
            let (x, dy, dx) = (&x[at.clone()], &dy[at.clone()], &mut dx[at]);
            careful_row(simd, &layer, &kept, row, x, dy, dx, columns);
        }
    } else if features > T::BLOCK {
        long_rows(simd, &layer, &kept, x, dy, dx, columns);
    } else {
        if const { S::f32s::LEN < 8 } {
            return groups::<S, T, 1>(simd, &layer, &kept, x, dy, dx, columns, 0..rows);
        }
        let by_eight = if features <= SHORT { rows / 8 * 8 } else { 0 };
        let by_two = rows / 2 * 2;
        groups::<S, T, 8>(simd, &layer, &kept, x, dy, dx, columns, 0..by_eight);
        groups::<S, T, 2>(simd, &layer, &kept, x, dy, dx, columns, by_eight..by_two);
        groups::<S, T, 1>(simd, &layer, &kept, x, dy, dx, columns, by_two..rows);
    }
}

/// Rows of one block that need not be rescaled, `R` at a time; `R` divides their number.
#[simd]
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn groups<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
    rows: Range<usize>,
) {
    if rows.is_empty() {
        return;
    }
    let features = layer.features;
    let gain = layer.gain(0, features);
    let tail = Tail::new(simd, features);
    let at = |row: usize| row * features..(row + 1) * features;
    let zeros = [splat(simd, T::zero()); R];
    let (mut q, mut qd) = (zeros, zeros);
    for i in 0..R {
        let row = rows.start + i;
        let block = Read { gain, x: &x[at(row)], dy: &dy[at(row)] };
        (q[i], qd[i]) = partial_sums(simd, &tail, &Row::kept(kept, row), &block);
    }
    for first in rows.clone().step_by(R) {
        let (sum_q, sum_qd) = (tree(&mut q), tree(&mut qd));
        let (sum_q, sum_qd) = (sum_q.as_slice(), sum_qd.as_slice());
        let (mut k, mut m) = ([T::zero(); R], [T::zero(); R]);
        for i in 0..R {
            let wide = T::Wide::default;
            let sums = Sums { q: wide().add(sum_q[i].into()), qd: wide().add(sum_qd[i].into()) };
            Coefficients { k: k[i], m: m[i] } = Row::kept(kept, first + i).coefficients(sums, features);
        }
        for i in 0..R {
            let (row, ahead) = (first + i, first + R + i);
            let coefficients = Coefficients { k: k[i], m: m[i] };
            let second = Second::new(simd, &Row::kept(kept, row), &coefficients);
            let read = Read { gain, x: &x[at(row)], dy: &dy[at(row)] };
            let write = Write { dx: &mut dx[at(row)], dgain: columns.dgain, dbias: columns.dbias };
            if first + R < rows.end {
                let block = Read { gain, x: &x[at(ahead)], dy: &dy[at(ahead)] };
                let next = Row::kept(kept, ahead);
                (q[i], qd[i]) = gradients_and_sums(simd, &tail, &second, &read, write, &next, &block);
            } else {
                gradients(simd, &tail, &second, &read, write);
            }
        }
    }
}

/// Rows of several blocks that need not be rescaled, one at a time.
#[simd]
#[inline(never)]
fn long_rows<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let rows = kept.mean.len();
    let blocks = || (0..features).step_by(T::BLOCK).map(|start| start..(start + T::BLOCK).min(features));
    let mut sums = Sums::default();
    for block in blocks() {
        let (x, dy) = (&x[block.clone()], &dy[block.clone()]);
        sums = sums.join(row_sums(simd, layer, &Row::kept(kept, 0), block.start, x, dy));
    }
    for row in 0..rows {
        let here = Row::kept(kept, row);
        let second = Second::new(simd, &here, &here.coefficients(sums, features));
        sums = Sums::default();
        for block in blocks() {
            let tail = Tail::new(simd, block.len());
            let gain = layer.gain(block.start, block.len());
            let at = row * features + block.start..row * features + block.end;
            let read = Read { gain, x: &x[at.clone()], dy: &dy[at.clone()] };
            let Columns { dgain, dbias } = columns.part(block.clone());
            let write = Write { dx: &mut dx[at.clone()], dgain, dbias };
            if row + 1 < rows {
                let at = at.start + features..at.end + features;
                let ahead = Read { gain, x: &x[at.clone()], dy: &dy[at] };
                let next = Row::kept(kept, row + 1);
                let (q, qd) = gradients_and_sums(simd, &tail, &second, &read, write, &next, &ahead);
                sums = sums.join(Sums::of_partial::<S, T>(q, qd));
            } else {
                gradients(simd, &tail, &second, &read, write);
            }
        }
    }
}

/// A row of any length and scale.
#[inline(never)]
#[simd]
#[cold]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn careful_row<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    row: usize,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let row = Row::rescaled(simd, layer, kept, row, x);
    let mut sums = Sums::default();
    for (block, (x, dy)) in x.chunks(T::BLOCK).zip(dy.chunks(T::BLOCK)).enumerate() {
        sums = sums.join(row_sums(simd, layer, &row, block * T::BLOCK, x, dy));
    }
    let coefficients = row.coefficients(sums, layer.features);
    row_gradients(simd, layer, &row, &coefficients, 0, x, dy, dx, columns);
}

/// The sums of a block of a row that starts at feature `start`.
#[simd]
pub(crate) fn row_sums<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    row: &Row<T>,
    start: usize,
    x: &[T],
    dy: &[T],
) -> Sums<T::Wide> {
    if row.exponent != 0 {
        return row.with_rescaled(x, |row, x| row_sums(simd, layer, row, start, x, dy));
    }
    let tail = Tail::new(simd, x.len());
    let block = Read { gain: layer.gain(start, x.len()), x, dy };
    let (q, qd) = partial_sums(simd, &tail, row, &block);
    Sums::of_partial::<S, T>(q, qd)
}

/// dx and columns of the features from `start` on of one row.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn row_gradients<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    row: &Row<T>,
    coefficients: &Coefficients<T>,
    start: usize,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    for at in (0..x.len()).step_by(T::BLOCK) {
        let block = at..(at + T::BLOCK).min(x.len());
        let start = start + at;
        let (x, dy, dx) = (&x[block.clone()], &dy[block.clone()], &mut dx[block.clone()]);
        let mut columns = columns.part(block);
        if row.exponent != 0 {
            row.with_rescaled(x, |row, x| {
                row_gradients(simd, layer, row, coefficients, start, x, dy, dx, &mut columns);
            });
            dx.iter_mut().for_each(|dx| *dx = times_power_of_two(*dx, -row.exponent));
            continue;
        }
        let tail = Tail::new(simd, x.len());
        let read = Read { gain: layer.gain(start, x.len()), x, dy };
        let write = Write { dx, dgain: columns.dgain, dbias: columns.dbias };
        gradients(simd, &tail, &Second::new(simd, row, coefficients), &read, write);
    }
}
