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
//! R rows at a time: the first pass of each, then the second of two and two
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
use crate::kernels::passes::{Coefficients, Columns, KeptRows, Read, Row, Second, Sums, gradients, partial_sums};
use crate::number::{Number, times_power_of_two};
use crate::simd::{Tail, Vector, splat, tree};

/// dx of rows of any number of features, side by side in `x`, `dy` and `dx`; adds their columns to `columns`.
///
/// `streams`: the arrays of the whole call do not fit into the caches.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn backward<S: Simd, T: Number>(
    simd: S,
    layer: Layer<'_, T>,
    streams: bool,
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
        return;
    }
    let vectors = features.div_ceil(T::LANES);
    let narrow = const { S::f32s::LEN < 8 };
    let done = if narrow || streams && vectors > 4 && features <= T::BLOCK {
        // Memory sets the pace, and it is fastest where each row is read and written before the next.
        0
    } else if vectors <= 8 {
        // The reductions are a large part of the work.
        groups::<S, T, 8>(simd, &layer, &kept, x, dy, dx, columns, 0..rows / 8 * 8)
    } else {
        groups::<S, T, 4>(simd, &layer, &kept, x, dy, dx, columns, 0..rows / 4 * 4)
    };
    groups::<S, T, 1>(simd, &layer, &kept, x, dy, dx, columns, done..rows);
}

/// Rows that need not be rescaled, `R` at a time; `R` divides their number. Returns the row after the last.
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
) -> usize {
    let features = layer.features;
    let end = rows.end;
    let at = rows.start * features..end * features;
    let tail = Tail::new(simd, features.min(T::BLOCK));
    let inputs = x[at.clone()].chunks_exact(R * features).zip(dy[at.clone()].chunks_exact(R * features));
    for ((first, (x, dy)), dx) in rows.step_by(R).zip(inputs).zip(dx[at].chunks_exact_mut(R * features)) {
        let group = if features <= T::BLOCK {
            Group::<T, R>::of_blocks(simd, &tail, layer, kept, first, x, dy)
        } else {
            Group::of_long_rows(simd, layer, kept, first, x, dy)
        };
        group.gradients(simd, layer, x, dy, dx, columns);
    }
    end
}

/// What the second pass needs to know of `R` rows. Arrays, not an array of rows: they are computed as vectors then.
struct Group<T, const R: usize> {
    mean: [T; R],
    low: [T; R],
    rstd: [T; R],
    k: [T; R],
    m: [T; R],
}

impl<T: Number, const R: usize> Group<T, R> {
    #[inline(always)]
    fn new(kept: &KeptRows<'_, T>, first: usize) -> Self {
        let mut group = Self {
            mean: [T::zero(); R],
            low: [T::zero(); R],
            rstd: [T::zero(); R],
            k: [T::zero(); R],
            m: [T::zero(); R],
        };
        group.mean.copy_from_slice(&kept.mean[first..][..R]);
        group.low.copy_from_slice(&kept.low[first..][..R]);
        group.rstd.copy_from_slice(&kept.rstd[first..][..R]);
        group
    }

    #[inline(always)]
    fn row(&self, i: usize) -> Row<T> {
        Row::new(self.mean[i], self.low[i], self.rstd[i])
    }

    /// Of rows of one block.
    #[inline(always)]
    fn of_blocks<S: Simd>(
        simd: S,
        tail: &Tail<S, T>,
        layer: &Layer<'_, T>,
        kept: &KeptRows<'_, T>,
        first: usize,
        x: &[T],
        dy: &[T],
    ) -> Self {
        let mut group = Self::new(kept, first);
        let features = tail.len();
        let gain = layer.gain(0, features);
        let zeros = [splat(simd, T::zero()); R];
        let (mut q, mut qd) = (zeros, zeros);
        for (i, (x, dy)) in x.chunks_exact(features).zip(dy.chunks_exact(features)).enumerate() {
            (q[i], qd[i]) = partial_sums(simd, tail, &group.row(i), &Read { gain, x, dy });
        }
        let (q, qd) = (tree(&mut q), tree(&mut qd));
        let (q, qd) = (q.as_slice(), qd.as_slice());
        for i in 0..R {
            Coefficients { k: group.k[i], m: group.m[i] } =
                group.row(i).coefficients(q[i].into(), qd[i].into(), features);
        }
        group
    }

    /// Of rows of several blocks.
    #[inline(always)]
    fn of_long_rows<S: Simd>(
        simd: S,
        layer: &Layer<'_, T>,
        kept: &KeptRows<'_, T>,
        first: usize,
        x: &[T],
        dy: &[T],
    ) -> Self {
        let mut group = Self::new(kept, first);
        let features = layer.features;
        for (i, (x, dy)) in x.chunks_exact(features).zip(dy.chunks_exact(features)).enumerate() {
            let row = group.row(i);
            Coefficients { k: group.k[i], m: group.m[i] } =
                row.coefficients_of(all_sums(simd, layer, &row, x, dy), features);
        }
        group
    }

    /// dx and columns of the rows.
    #[inline(always)]
    fn gradients<S: Simd>(
        &self,
        simd: S,
        layer: &Layer<'_, T>,
        x: &[T],
        dy: &[T],
        dx: &mut [T],
        columns: &mut Columns<'_, T>,
    ) {
        let features = layer.features;
        for start in (0..features).step_by(T::BLOCK) {
            let at = start..(start + T::BLOCK).min(features);
            let (tail, gain) = (Tail::new(simd, at.len()), layer.gain(start, at.len()));
            let columns = &mut columns.part(at.clone());
            if R == 1 {
                let (x, dy, dx) = ([&x[at.clone()]], [&dy[at.clone()]], [&mut dx[at]]);
                gradients(simd, &tail, gain, &[self.second(simd, 0)], x, dy, dx, columns);
                continue;
            }
            let inputs = x.chunks_exact(2 * features).zip(dy.chunks_exact(2 * features));
            for (i, ((x, dy), dx)) in inputs.zip(dx.chunks_exact_mut(2 * features)).enumerate() {
                let (x, dy, dx) = (x.split_at(features), dy.split_at(features), dx.split_at_mut(features));
                let rows = [self.second(simd, 2 * i), self.second(simd, 2 * i + 1)];
                let x = [&x.0[at.clone()], &x.1[at.clone()]];
                let dy = [&dy.0[at.clone()], &dy.1[at.clone()]];
                let dx = [&mut dx.0[at.clone()], &mut dx.1[at.clone()]];
                gradients(simd, &tail, gain, &rows, x, dy, dx, columns);
            }
        }
    }

    #[inline(always)]
    fn second<S: Simd>(&self, simd: S, i: usize) -> Second<Vector<S, T>> {
        Second::new(simd, &self.row(i), &Coefficients { k: self.k[i], m: self.m[i] })
    }
}

/// The sums of a whole row.
#[simd]
fn all_sums<S: Simd, T: Number>(simd: S, layer: &Layer<'_, T>, row: &Row<T>, x: &[T], dy: &[T]) -> Sums<T::Wide> {
    let mut sums = Sums::default();
    for (block, (x, dy)) in x.chunks(T::BLOCK).zip(dy.chunks(T::BLOCK)).enumerate() {
        sums = sums.join(row_sums(simd, layer, row, block * T::BLOCK, x, dy));
    }
    sums
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
    let coefficients = row.coefficients_of(all_sums(simd, layer, &row, x, dy), layer.features);
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
        let gain = layer.gain(start, x.len());
        gradients(simd, &tail, gain, &[Second::new(simd, row, coefficients)], [x], [dy], [dx], &mut columns);
    }
}
