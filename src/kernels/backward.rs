//! dx of a row, and what it adds to dgain and dbias.
//!
//! ```text
//! each row:                              (docs/backward.md; letters as there)
//!     d = (x − mean) − low               x̂ = d·rstd
//!     p = dy · rstd
//!     q = gain · p
//!     first pass:   Q = Σ q,   D = Σ q·(x − mean) − low·Q          = Σ q·d
//!                   dgain += p·d
//!                   dbias += dy
//!     k = Q/n,   m = rstd²·D/n
//!     second pass:  dx = (q − k) − d·m
//!
//! R rows at a time: the first pass of P and P, then the second of two and two
//! ```
//!
//! Q and D are sums as in [`moments`](super::moments): turns and tree in a block, blocks joined in order, wide. d is
//! computed again, not stored: two subtractions cost less than a load and a store. rstd goes into q, so that dx needs
//! no multiplication of its own, and k has the rounding of q: of one feature, q − k is 0. Where the spread is about 0,
//! mean and k are 0.
//!
//! The columns belong to the first pass: each pass then stores to few places at a time (P rows of x and dy and three
//! arrays of columns there, two rows of x, dy and dx here), so that rows of 4096 bytes do not push each other out of L1.
//! Where threads share out the columns of some rows, where rows have to be rescaled, and where they are taken as
//! [cache lines](lines) lie, they belong to the second.

use std::iter;
use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::blocks::blocks;
use crate::kernels::kept::{Coefficients, KeptRows, Row, Sums};
use crate::kernels::lines;
use crate::kernels::normalize::{Layer, Place};
use crate::kernels::passes::{Columns, Second, asked_for, sums, sums_alone, write, write_and_add};
use crate::number::{Number, times_power_of_two};
use crate::prefetch::{Prefetch, ask_for_pages, row_ahead};
use crate::simd::{self, Tail, Vector, is_avx2, is_avx512, splat, tree};

/// Vectors of the longest rows that are taken in pairs: of longer ones, the columns are a large part of the traffic, and four
/// rows share it, where there are registers for them.
const PAIRED: usize = 72;

/// Vectors of the longest rows of which AVX2 takes eight at a time: on short rows the reductions are a large part of the work, and
/// of longer ones, eight do not stay in L1 between their passes.
const SHORT: usize = 16;

/// Vectors of the longest rows of which L1 holds two of x and of dy, one of dx and the columns. The first pass asks for what the
/// second writes then, and the second for what the next row reads: memory always has something to do, and rows of 400 features
/// and more took 0.9 to 0.98 of the time on a Zen 3.
const TWO_IN_L1: usize = 56;

/// Vectors of the shortest rows from memory of which the places of dx, asked for in the first pass over two rows, have left L1
/// before the second.
const DX_IS_GONE: usize = 256;

/// dx of rows of any number of features, side by side in `x`, `dy` and `dx`; adds their columns to `columns`.
///
/// `place`: that of the arrays of the whole call.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn backward<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    kept: KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let rows = kept.mean.len();
    if !kept.are_plain() {
        for row in 0..rows {
            let at = row * features..(row + 1) * features;
            let (x, dy, dx) = (&x[at.clone()], &dy[at.clone()], &mut dx[at]);
            careful_row(simd, layer, &kept, row, x, dy, dx, columns);
        }
        return;
    }
    if const { S::f32s::LEN < 8 } {
        // Narrow registers do not hold two rows.
        groups::<S, T, 1, 1, true, 0, 0>(simd, layer, place, &kept, x, dy, dx, columns, 0..rows);
    } else if layer.spread.centred {
        plain_rows::<S, T, true>(simd, layer, place, &kept, x, dy, dx, columns);
    } else {
        plain_rows::<S, T, false>(simd, layer, place, &kept, x, dy, dx, columns);
    }
}

/// Rows that need not be rescaled. `CENTRED`: as the spread of the layer.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn plain_rows<S: Simd, T: Number, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let front = simd::front(dx);
    if const { is_avx512::<S>() } && front > 0 && lines::pays(simd, layer, place) {
        return lines::backward::<S, T, CENTRED>(simd, layer, front, kept, x, dy, dx, columns);
    }
    let rows = kept.mean.len();
    let vectors = layer.features.div_ceil(T::LANES);
    // Memory sets the pace, and it is fastest where each row is read and written before the next.
    let alone = if const { is_avx2::<S>() } {
        place == Place::Shared && vectors > 8 || place == Place::Memory && vectors > 4
    } else {
        place == Place::Memory && (5..=lines::alone(layer.spread)).contains(&vectors)
    };
    let done = if const { is_avx2::<S>() } && place == Place::Memory && layer.features > T::BLOCK {
        // The columns leave L1 before the next row comes: two share their way from L2, 0.83 to 1.02 of the time on a Zen 3.
        let pairs = if vectors < DX_IS_GONE {
            groups::<S, T, 2, 2, CENTRED, 6, 0>
        } else {
            groups::<S, T, 2, 2, CENTRED, 4, 0>
        };
        pairs(simd, layer, place, kept, x, dy, dx, columns, 0..rows / 2 * 2)
    } else if alone {
        0
    } else if const { is_avx2::<S>() } {
        // Registers hold the sums of one row and what they are of, or, without Q, of two.
        if vectors <= SHORT {
            let groups = if const { CENTRED } {
                groups::<S, T, 8, 1, CENTRED, 0, 0>
            } else {
                groups::<S, T, 8, 2, CENTRED, 0, 0>
            };
            groups(simd, layer, place, kept, x, dy, dx, columns, 0..rows / 8 * 8)
        } else {
            let groups = if const { CENTRED } {
                groups::<S, T, 2, 1, CENTRED, 0, 0>
            } else {
                groups::<S, T, 2, 2, CENTRED, 0, 0>
            };
            groups(simd, layer, place, kept, x, dy, dx, columns, 0..rows / 2 * 2)
        }
    } else if vectors <= 8 {
        // The reductions are a large part of the work.
        groups::<S, T, 8, 2, CENTRED, 0, 0>(simd, layer, place, kept, x, dy, dx, columns, 0..rows / 8 * 8)
    } else if vectors <= PAIRED {
        groups::<S, T, 2, 2, CENTRED, 0, 0>(simd, layer, place, kept, x, dy, dx, columns, 0..rows / 2 * 2)
    } else {
        groups::<S, T, 4, 4, CENTRED, 0, 0>(simd, layer, place, kept, x, dy, dx, columns, 0..rows / 4 * 4)
    };
    let groups = match place {
        Place::Memory if const { is_avx2::<S>() } && vectors <= TWO_IN_L1 => groups::<S, T, 1, 1, CENTRED, 1, 2>,
        Place::Memory if const { is_avx2::<S>() } => groups::<S, T, 1, 1, CENTRED, 3, 0>,
        Place::Shared if const { is_avx2::<S>() } => groups::<S, T, 1, 1, CENTRED, 2, 0>,
        _ => groups::<S, T, 1, 1, CENTRED, 0, 0>,
    };
    groups(simd, layer, place, kept, x, dy, dx, columns, done..rows);
}

/// Rows that need not be rescaled, `R` at a time; `R` divides their number, and `P` divides `R`. Returns the row after
/// the last.
///
/// `A`: how many arrays of [`asked_for`] the first pass asks for; `B`: in how many of x and dy the second for what follows.
#[simd]
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn groups<S: Simd, T: Number, const R: usize, const P: usize, const CENTRED: bool, const A: usize, const B: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
    rows: Range<usize>,
) -> usize {
    let all = [x, dy];
    let features = layer.features;
    let (mut first, end) = (rows.start, rows.end);
    let (at, group_len) = (first * features..end * features, R * features);
    let tail = Tail::new(simd, features.min(T::BLOCK));
    let gain = layer.gain(0, tail.len());
    let (mut x, mut dy, mut dx) = (&x[at.clone()], &dy[at.clone()], &mut dx[at]);
    // Not `chunks_exact`, whose divisions are felt where there is one short row.
    while let (Some(x), Some(dy), Some(dx)) =
        (x.split_off(..group_len), dy.split_off(..group_len), dx.split_off_mut(..group_len))
    {
        let mut group = Group::<T, R>::new(kept, first);
        let start = first * features;
        let prefetch = asked_for::<T, P, A>(all, start, dx);
        let in_block = features <= T::BLOCK;
        if in_block {
            group.sum_blocks::<S, P, CENTRED, A>(simd, &tail, layer, x, dy, columns, prefetch);
        } else {
            group.sum_long_rows::<S, P, CENTRED, A>(simd, layer, x, dy, columns, prefetch);
        }
        if const { is_avx512::<S>() } && place == Place::Memory {
            ask_for_pages(all, (first + R) * features..(first + 2 * R) * features);
        }
        if in_block {
            let prefetch = Prefetch::first(Prefetch::all_from(all, start + row_ahead::<T>(group_len)));
            group.write::<S, CENTRED, B>(simd, &tail, gain, features, 0, x, dy, dx, prefetch);
        } else {
            // The last block first, of which L1 has most.
            let last = (features - 1) / T::BLOCK * T::BLOCK;
            for start in iter::once(last).chain((0..last).step_by(T::BLOCK)) {
                let len = (features - start).min(T::BLOCK);
                group.write::<S, CENTRED, 0>(
                    simd,
                    &Tail::new(simd, len),
                    layer.gain(start, len),
                    features,
                    start,
                    x,
                    dy,
                    dx,
                    [],
                );
            }
        }
        first += R;
    }
    end
}

/// What the passes need to know of `R` rows. Arrays, not an array of rows: they are computed as vectors then.
pub(crate) struct Group<T, const R: usize> {
    pub(crate) mean: [T; R],
    pub(crate) low: [T; R],
    pub(crate) rstd: [T; R],
    pub(crate) k: [T; R],
    pub(crate) m: [T; R],
}

impl<T: Number, const R: usize> Group<T, R> {
    #[inline(always)]
    pub(crate) fn new(kept: &KeptRows<'_, T>, first: usize) -> Self {
        let zeros = [T::zero(); R];
        let mut group = Self { mean: zeros, low: zeros, rstd: zeros, k: zeros, m: zeros };
        group.mean.copy_from_slice(&kept.mean[first..][..R]);
        group.low.copy_from_slice(&kept.low[first..][..R]);
        group.rstd.copy_from_slice(&kept.rstd[first..][..R]);
        group
    }

    #[inline(always)]
    pub(crate) fn row(&self, i: usize) -> Row<T> {
        Row::new(self.mean[i], self.low[i], self.rstd[i])
    }

    /// `P` rows from `first` on.
    #[inline(always)]
    fn rows<const P: usize>(&self, first: usize) -> [Row<T>; P] {
        let mut rows = [Row::default(); P];
        for (i, row) in rows.iter_mut().enumerate() {
            *row = self.row(first + i);
        }
        rows
    }

    /// The first pass over rows of one block.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
    pub(crate) fn sum_blocks<S: Simd, const P: usize, const CENTRED: bool, const A: usize>(
        &mut self,
        simd: S,
        tail: &Tail<S, T>,
        layer: &Layer<'_, T>,
        x: &[T],
        dy: &[T],
        columns: &mut Columns<'_, T>,
        prefetch: [Prefetch<'_, T>; A],
    ) {
        let features = layer.features;
        let gain = layer.gain(0, features);
        let zeros = [splat(simd, T::zero()); R];
        let (mut q, mut qd) = (zeros, zeros);
        for (i, (x, dy)) in x.chunks_exact(P * features).zip(dy.chunks_exact(P * features)).enumerate() {
            let (x, dy) = (split(x, features, 0, features), split(dy, features, 0, features));
            let sums = sums::<S, T, P, CENTRED, A>(simd, tail, gain, &self.rows(i * P), x, dy, columns, prefetch);
            for r in 0..P {
                (q[i * P + r], qd[i * P + r]) = sums[r];
            }
        }
        self.set_coefficients(layer, tree(simd, &mut q).as_slice(), tree(simd, &mut qd).as_slice());
    }

    /// k and m, from Q and Σ q·(x − mean) of each row.
    #[inline(always)]
    pub(crate) fn set_coefficients(&mut self, layer: &Layer<'_, T>, q: &[T], qd: &[T]) {
        for i in 0..R {
            Coefficients { k: self.k[i], m: self.m[i] } = self.row(i).coefficients(q[i].into(), qd[i].into(), layer);
        }
    }

    /// The first pass over rows of several blocks.
    #[inline(always)]
    fn sum_long_rows<S: Simd, const P: usize, const CENTRED: bool, const A: usize>(
        &mut self,
        simd: S,
        layer: &Layer<'_, T>,
        x: &[T],
        dy: &[T],
        columns: &mut Columns<'_, T>,
        prefetch: [Prefetch<'_, T>; A],
    ) {
        let features = layer.features;
        for (i, (x, dy)) in x.chunks_exact(P * features).zip(dy.chunks_exact(P * features)).enumerate() {
            let rows = self.rows(i * P);
            let mut total = [Sums::<T::Wide>::default(); P];
            for start in (0..features).step_by(T::BLOCK) {
                let len = (features - start).min(T::BLOCK);
                let (tail, gain) = (Tail::new(simd, len), layer.gain(start, len));
                let (x, dy) = (split(x, features, start, len), split(dy, features, start, len));
                let columns = &mut columns.part(start..start + len);
                let prefetch = Prefetch::skip_all(prefetch, start);
                let block = sums::<S, T, P, CENTRED, A>(simd, &tail, gain, &rows, x, dy, columns, prefetch);
                for r in 0..P {
                    total[r] = total[r].join(Sums::of_partial::<S, T>(simd, block[r].0, block[r].1));
                }
            }
            for r in 0..P {
                Coefficients { k: self.k[i * P + r], m: self.m[i * P + r] } = rows[r].coefficients_of(total[r], layer);
            }
        }
    }

    /// The second pass over the columns from `start` on; asks for `prefetch` with each of them.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
    pub(crate) fn write<S: Simd, const CENTRED: bool, const B: usize>(
        &self,
        simd: S,
        tail: &Tail<S, T>,
        gain: &[T],
        features: usize,
        start: usize,
        x: &[T],
        dy: &[T],
        dx: &mut [T],
        prefetch: [Prefetch<'_, T>; B],
    ) {
        let columns = start..start + tail.len();
        if R == 1 {
            let (x, dy, dx) = ([&x[columns.clone()]], [&dy[columns.clone()]], [&mut dx[columns]]);
            return write::<S, T, 1, CENTRED, B>(simd, tail, gain, &[self.second(simd, 0)], x, dy, dx, prefetch);
        }
        let inputs = x.chunks_exact(2 * features).zip(dy.chunks_exact(2 * features));
        for (i, ((x, dy), dx)) in inputs.zip(dx.chunks_exact_mut(2 * features)).enumerate() {
            let rows = [self.second(simd, 2 * i), self.second(simd, 2 * i + 1)];
            let (x, dy) = (split(x, features, start, tail.len()), split(dy, features, start, tail.len()));
            let dx = dx.split_at_mut(features);
            let dx = [&mut dx.0[columns.clone()], &mut dx.1[columns.clone()]];
            write::<S, T, 2, CENTRED, B>(simd, tail, gain, &rows, x, dy, dx, prefetch);
        }
    }

    #[inline(always)]
    pub(crate) fn second<S: Simd>(&self, simd: S, i: usize) -> Second<Vector<S, T>> {
        Second::new(simd, &self.row(i), &Coefficients { k: self.k[i], m: self.m[i] })
    }
}

/// `len` columns from `start` on of each of `P` rows.
#[inline(always)]
fn split<T, const P: usize>(rows: &[T], features: usize, start: usize, len: usize) -> [&[T]; P] {
    let mut columns = [rows; P];
    for (i, row) in columns.iter_mut().enumerate() {
        *row = &rows[i * features + start..][..len];
    }
    columns
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
    for block in blocks::<T>(x.len()) {
        sums = sums.join(block_sums(simd, layer, &row, block.start, &x[block.clone()], &dy[block]));
    }
    let row = [(row, row.coefficients_of(sums, layer))];
    for block in blocks::<T>(x.len()) {
        let columns = &mut columns.part(block.clone());
        write_tile(simd, layer, &row, block.clone(), x, dy, &mut [&mut dx[block]], columns);
    }
}

/// The first pass over a block of a row that starts at feature `start`, for [`write_tile`].
#[simd]
pub(crate) fn block_sums<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    row: &Row<T>,
    start: usize,
    x: &[T],
    dy: &[T],
) -> Sums<T::Wide> {
    if row.exponent != 0 {
        return row.with_rescaled(x, |row, x| block_sums(simd, layer, row, start, x, dy));
    }
    sums_alone(simd, &Tail::new(simd, x.len()), layer.gain(start, x.len()), row, x, dy)
}

/// dx of a tile of columns, at most a block of them, of rows side by side in `x` and `dy`; adds to `columns`, which like
/// `dx` are those of the tile.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn write_tile<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    rows: &[(Row<T>, Coefficients<T>)],
    tile: Range<usize>,
    x: &[T],
    dy: &[T],
    dx: &mut [&mut [T]],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let (tail, gain) = (Tail::new(simd, tile.len()), layer.gain(tile.start, tile.len()));
    let plain = rows.iter().all(
        #[inline(always)]
        |(row, _)| row.exponent == 0,
    );
    let together = if const { S::f32s::LEN >= 8 } && plain { rows.len() / 2 * 2 } else { 0 };
    let (pairs, singles) = dx.split_at_mut(together);
    // Narrow registers do not hold two rows, and the scalar fallback takes minutes to compile them.
    if const { S::f32s::LEN >= 8 } {
        for (first, [dx, next_dx]) in (0..).step_by(2).zip(pairs.as_chunks_mut().0) {
            let [row, next] = [rows[first], rows[first + 1]];
            let (row, next) = (Second::new(simd, &row.0, &row.1), Second::new(simd, &next.0, &next.1));
            let (x, dy) = (&x[first * features..], &dy[first * features..]);
            let (x, dy) = (split(x, features, tile.start, tail.len()), split(dy, features, tile.start, tail.len()));
            write_and_add::<S, T, 2, true>(
                simd,
                &tail,
                gain,
                &[row, next],
                x,
                dy,
                [&mut dx[..], &mut next_dx[..]],
                columns,
            );
        }
    }
    for ((i, (row, coefficients)), dx) in rows.iter().enumerate().skip(together).zip(singles) {
        let at = i * features + tile.start..i * features + tile.end;
        write_block(simd, layer, row, coefficients, tile.start, &x[at.clone()], &dy[at], dx, columns);
    }
}

/// [`write_tile`] of one row whose tile starts at feature `start`.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn write_block<S: Simd, T: Number>(
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
    if row.exponent != 0 {
        row.with_rescaled(x, |row, x| write_block(simd, layer, row, coefficients, start, x, dy, dx, columns));
        dx.iter_mut().for_each(|dx| *dx = times_power_of_two(*dx, -row.exponent));
        return;
    }
    let (tail, gain) = (Tail::new(simd, x.len()), layer.gain(start, x.len()));
    write_and_add::<S, T, 1, true>(
        simd,
        &tail,
        gain,
        &[Second::new(simd, row, coefficients)],
        [x],
        [dy],
        [dx],
        columns,
    );
}
