//! y and dx of batch normalization, from what is known of the columns.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::batch::{Block, KeptColumns, are_together, tiles};
use crate::kernels::blocks::{chunks_from, first_of, last_of, vectors_at};
use crate::kernels::normalize::Layer;
use crate::number::Number;
use crate::prefetch::Prefetch;
use crate::simd::{Tail, Vector, front};

/// What backward needs beside x to write dx.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Back<'a, T> {
    pub(crate) dy: Block<'a, T>,
    pub(crate) k: &'a [T],
    pub(crate) m: &'a [T],
}

/// y of some columns of some rows, or with `back` dx.
///
/// `streams`: the rows come from memory. `scale`: rstd·gain of each column.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn write<S: Simd, T: Number>(
    simd: S,
    streams: bool,
    layer: &Layer<'_, T>,
    kept: KeptColumns<'_, T>,
    scale: &[T],
    x: Block<'_, T>,
    back: Option<Back<'_, T>>,
    out: &mut [&mut [T]],
) {
    let rows = out.len();
    let forward = Back { dy: x, k: kept.mean, m: kept.mean };
    if const { S::f32s::LEN < 8 } {
        match back {
            None => write_rows::<S, T, false, 1>(simd, layer, kept, scale, x, forward, out, 0..rows),
            Some(back) => write_rows::<S, T, true, 1>(simd, layer, kept, scale, x, back, out, 0..rows),
        };
        return;
    }
    let together = if are_together::<S, T>(streams, kept.mean.len()) { rows } else { 0 };
    match back {
        None => {
            let back = forward;
            let done = write_rows::<S, T, false, 4>(simd, layer, kept, scale, x, back, out, 0..together / 4 * 4);
            write_rows::<S, T, false, 1>(simd, layer, kept, scale, x, back, out, done..rows);
        }
        Some(back) => {
            // Of four rows of x, dy and dx that lie a multiple of 4096 bytes apart, L1 has room for no more than two.
            let done = if streams || (x.stride * size_of::<T>()).is_multiple_of(4096) {
                write_rows::<S, T, true, 2>(simd, layer, kept, scale, x, back, out, 0..together / 2 * 2)
            } else {
                write_rows::<S, T, true, 4>(simd, layer, kept, scale, x, back, out, 0..together / 4 * 4)
            };
            write_rows::<S, T, true, 1>(simd, layer, kept, scale, x, back, out, done..rows);
        }
    }
}

/// `R` rows at a time; `R` divides their number. Returns the row after the last.
#[simd]
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn write_rows<'a, S: Simd, T: Number, const BACK: bool, const R: usize>(
    simd: S,
    layer: &Layer<'a, T>,
    kept: KeptColumns<'a, T>,
    scale: &'a [T],
    x: Block<'_, T>,
    back: Back<'a, T>,
    out: &mut [&mut [T]],
    rows: Range<usize>,
) -> usize {
    if rows.is_empty() {
        return rows.end;
    }
    let groups = out[rows.clone()].as_chunks_mut::<R>().0;
    for tile in tiles::<T>(kept.mean.len()) {
        let (start, len) = (x.first + tile.start, tile.len());
        let of_tile = |numbers: &'a [T]| &numbers[tile.clone()];
        let bias = layer.bias(start, len);
        let [mean, low, scale, k, m] = [kept.mean, kept.low, scale, back.k, back.m].map(of_tile);
        let columns = if BACK { [mean, low, scale, k, m] } else { [mean, low, scale, bias, bias] };
        let tail = Tail::new(simd, len);
        for (first, out) in rows.clone().step_by(R).zip(groups.iter_mut()) {
            x.ask_for_page::<S, R>(first, &tile);
            if BACK {
                back.dy.ask_for_page::<S, R>(first, &tile);
            }
            let of_dy = if BACK { back.dy.prefetch::<S, R>(first, &tile) } else { Prefetch::NONE };
            let prefetch = [x.prefetch::<S, R>(first, &tile), of_dy];
            let (x, dy) = (x.group(first, &tile), back.dy.group(first, &tile));
            let out = out.each_mut().map(|out| &mut out[tile.clone()]);
            write_group::<S, T, BACK, R>(simd, &tail, columns, x, dy, out, prefetch);
        }
    }
    rows.end
}

/// y, or with `BACK` dx, of a tile of columns of `R` rows. Of `columns` the last two are the bias twice, or k and m.
#[inline(always)]
pub(super) fn write_group<S: Simd, T: Number, const BACK: bool, const R: usize>(
    simd: S,
    tail: &Tail<S, T>,
    columns: [&[T]; 5],
    x: [&[T]; R],
    dy: [&[T]; R],
    mut out: [&mut [T]; R],
    prefetch: [Prefetch<'_, T>; 2],
) {
    let front = front(out[0]);
    if front > 0 {
        let (columns, xs) = (first_of::<S, T, 5>(simd, columns), first_of::<S, T, R>(simd, x));
        let dys = if BACK { first_of::<S, T, R>(simd, dy) } else { xs };
        for r in 0..R {
            result::<S, T, BACK>(columns, xs[r], dys[r]).store_array(&mut T::chunks_mut(out[r]).0[0]);
        }
    }
    let count = (tail.len() - front) / T::LANES;
    {
        let columns = chunks_from::<T, 5>(columns, front, count);
        let (x, dy) = (chunks_from::<T, R>(x, front, count), chunks_from::<T, R>(dy, front, count));
        let mut out = out.each_mut().map(|out| &mut T::chunks_mut(&mut out[front..]).0[..count]);
        for i in 0..count {
            Prefetch::lines(prefetch, front + i * T::LANES);
            let (columns, xs) = (vectors_at::<S, T, 5>(simd, columns, i), vectors_at::<S, T, R>(simd, x, i));
            let dys = if BACK { vectors_at::<S, T, R>(simd, dy, i) } else { xs };
            let mut results = xs;
            for r in 0..R {
                results[r] = result::<S, T, BACK>(columns, xs[r], dys[r]);
            }
            for (out, result) in out.iter_mut().zip(results) {
                result.store_array(&mut out[i]);
            }
        }
    }
    if front + count * T::LANES < tail.len() {
        let (columns, xs) = (last_of::<S, T, 5>(simd, tail, columns), last_of::<S, T, R>(simd, tail, x));
        let dys = if BACK { last_of::<S, T, R>(simd, tail, dy) } else { xs };
        for r in 0..R {
            tail.store_all(result::<S, T, BACK>(columns, xs[r], dys[r]), out[r]);
        }
    }
}

/// y, or with `BACK` dx, of a vector.
#[inline(always)]
pub(super) fn result<S: Simd, T: Number, const BACK: bool>(
    [mean, low, scale, bias_or_k, m]: [Vector<S, T>; 5],
    x: Vector<S, T>,
    dy: Vector<S, T>,
) -> Vector<S, T> {
    let d = (x - mean) - low;
    if BACK { ((dy - bias_or_k) - d * m) * scale } else { d * scale + bias_or_k }
}
