//! y of rows from memory, whose lines are asked for before they are read or written.
//!
//! ```text
//! R rows of one block:            s and q of each, asking for what comes 2 KiB behind and for its y,   then y of each;
//!                                 of some lengths the next row is asked for, half of it during each
//! each block of a longer row:     h of this block of the next row
//!     each vector:                y of this row,   s and q of the next, asking for what comes behind both
//! ```
//!
//! A line of y is read before it is written, and the processor waits for only so many. Asked for while x is read, they are on
//! their way when nothing else is, and forward takes less time than a copy that does not ask.
//!
//! From memory R is 1; from a cache that cores share, two short rows share their latencies. A longer row does not stay in
//! L1 with its y, gain and bias: there, loads and stores come in turns, as in a copy, and no load waits for the statistics of
//! a row. The equations and the order of additions are those of [`normalize`](super::normalize). On a Skylake, with AVX2,
//! rows summed ahead took 0.75 to 0.95 of the time of the kernels there; rows from memory that are asked for take 0.8 to
//! 0.98 of that, and 0.8 to 0.95 of it again if y is, too. On a Zen 4, with AVX-512, both took longer from memory: rows summed
//! ahead 1.2 to 1.5 times, asking for x, y or both 1 to 1.6 times, at any distance and into any cache.

use std::ops::{Range, RangeInclusive};

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::moments::{
    CARRY, Moments, Partial, Spread, Statistics, moments_of, near_of, partial_sums, row_moments,
};
use crate::kernels::normalize::{Lanes, Layer, Place, SavedRows, end_row, write};
use crate::number::Number;
use crate::prefetch::{Prefetch, row_ahead};
use crate::simd::{TURNS, Tail, Vector, Vectors, load, splat, vectors};

/// Vectors of the longest rows that are taken in pairs from a shared cache.
const PAIRED: usize = 16;

/// Vectors of the rows from memory of which one half is asked for while a row is read, and one while it is written: memory
/// always has something to do, which takes 0.9 to 0.97 of the time. Of shorter and longer rows it takes up to 1.12 times.
const IN_HALVES: RangeInclusive<usize> = 24..=112;

/// Normalizes rows of any number of features, side by side in `x` and `y`.
///
/// `place`: that of the arrays of the whole call.
#[simd]
pub(crate) fn forward<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) {
    if layer.spread.centred {
        all_rows::<S, T, true>(simd, layer, place, x, y, saved);
    } else {
        all_rows::<S, T, false>(simd, layer, place, x, y, saved);
    }
}

/// [`forward`]. `CENTRED`: as the spread of the layer.
#[inline(always)]
fn all_rows<S: Simd, T: Number, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) {
    let features = layer.features;
    // What is in a cache comes by itself.
    let asks = place == Place::Memory;
    if features > T::BLOCK {
        let long_rows = if asks { long_rows::<S, T, CENTRED, 2> } else { long_rows::<S, T, CENTRED, 1> };
        return long_rows(simd, layer, x, y, saved);
    }
    let rows = x.len() / features;
    let done = if place == Place::Shared && features <= PAIRED * T::LANES {
        blocks::<S, T, 2, CENTRED, 1, 0>(simd, layer, x, y, saved, 0..rows / 2 * 2)
    } else {
        0
    };
    let blocks = match asks {
        true if IN_HALVES.contains(&features.div_ceil(T::LANES)) => blocks::<S, T, 1, CENTRED, 2, 1>,
        true => blocks::<S, T, 1, CENTRED, 2, 0>,
        false => blocks::<S, T, 1, CENTRED, 1, 0>,
    };
    blocks(simd, layer, x, y, saved, done..rows);
}

/// Rows of one block, `R` at a time; `R` divides their number. Returns the row after the last.
///
/// `A`: how many of these are asked for while x is read: what follows in x, and the places of y. `B`: whether half of what
/// follows is asked for while y is written.
#[simd]
#[inline(never)]
fn blocks<S: Simd, T: Number, const R: usize, const CENTRED: bool, const A: usize, const B: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    rows: Range<usize>,
) -> usize {
    let &Layer { features, spread, .. } = layer;
    let tail = &Tail::new(simd, features);
    let affine = (layer.gain(0, features), layer.bias(0, features));
    let end = rows.end;
    let (ahead, half) = (row_ahead::<T>(features), features / T::LANES / 2 * T::LANES);
    for first in rows.step_by(R) {
        let at = |r: usize| (first + r) * features..(first + r + 1) * features;
        let next_row = |r: usize| Prefetch::these(x).skip(at(r).start + ahead);
        let mut near = [T::zero(); R];
        for r in 0..R {
            near[r] = near_of(simd, tail, &x[at(r)], spread);
        }
        let mut sums = [[splat(simd, T::zero()); 2]; R];
        for r in 0..R {
            let of_x = if B == 0 { Prefetch::new(x, at(r).start) } else { next_row(r).until(half) };
            let prefetch = Prefetch::first([of_x, Prefetch::these(&y[at(r)])]);
            sums[r] = partial_sums::<S, T, CENTRED, A>(simd, tail, &x[at(r)], near[r], prefetch);
        }
        let mut statistics = [Statistics::none(); R];
        for r in 0..R {
            statistics[r] = moments_of(simd, tail, &x[at(r)], near[r], sums[r], spread).finish(spread);
        }
        for r in 0..R {
            let lanes = Lanes::new(simd, statistics[r].mean, statistics[r].low, statistics[r].rstd);
            let prefetch = Prefetch::first([next_row(r).skip(half).until(features - half)]);
            write::<S, T, 1, CENTRED, B>(simd, tail, affine, &[lanes], [&x[at(r)]], [&mut y[at(r)]], prefetch);
        }
        for r in 0..R {
            end_row(simd, layer, &statistics[r], &x[at(r)], &mut y[at(r)], saved, first + r);
        }
    }
    end
}

/// Rows of several blocks.
///
/// `A`: how many of these are asked for while a block is written: what follows in the next row, and the places of the next y.
#[simd]
#[inline(never)]
fn long_rows<S: Simd, T: Number, const CENTRED: bool, const A: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) {
    let &Layer { features, spread, .. } = layer;
    let tails = [T::BLOCK, features % T::BLOCK].map(
        #[inline(always)]
        |len| Tail::new(simd, len),
    );
    let all = x;
    let mut rows = x.chunks_exact(features);
    let mut next = rows.next();
    let mut statistics = row_moments(simd, spread, next.unwrap_or_default()).finish(spread);
    for (row, y) in y.chunks_exact_mut(features).enumerate() {
        let Some(x) = next else { return };
        next = rows.next();
        let lanes = Lanes::new(simd, statistics.mean, statistics.low, statistics.rstd);
        let mut moments = Moments::none();
        for start in (0..features).step_by(T::BLOCK) {
            let at = start..(start + T::BLOCK).min(features);
            let tail = if at.len() == T::BLOCK { &tails[0] } else { &tails[1] };
            let affine = (layer.gain(start, at.len()), layer.bias(start, at.len()));
            let (y, y_behind) = y[start..].split_at_mut(at.len());
            let prefetch =
                Prefetch::first([Prefetch::new(all, (row + 1) * features + start), Prefetch::these(y_behind)]);
            let x = &x[at.clone()];
            match next {
                Some(next) => {
                    let next = &next[at];
                    moments = moments.join(write_and_sum::<S, T, CENTRED, A>(
                        simd, tail, affine, &lanes, x, y, next, spread, prefetch,
                    ));
                }
                None => write::<S, T, 1, CENTRED, 0>(simd, tail, affine, &[lanes], [x], [y], []),
            }
        }
        end_row(simd, layer, &statistics, x, y, saved, row);
        statistics = moments.finish(spread);
    }
}

/// y of a block, and the moments of the one below it.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn write_and_sum<S: Simd, T: Number, const CENTRED: bool, const A: usize>(
    simd: S,
    tail: &Tail<S, T>,
    (gain, bias): (&[T], &[T]),
    lanes: &Lanes<Vector<S, T>>,
    x: &[T],
    y: &mut [T],
    next: &[T],
    spread: Spread,
    prefetch: [Prefetch<'_, T>; A],
) -> Moments<T> {
    let near = near_of(simd, tail, next, spread);
    let (near_lanes, zero) = (splat(simd, near), splat(simd, T::zero()));
    let mut partial = Partial::<_, CENTRED>::new::<S, T>(simd, near_lanes);
    let (gains, biases, xs) = (vectors(gain), vectors(bias), vectors(x));
    let Vectors { pairs, odd } = vectors(next);
    let count = pairs.len();
    let (gain_pairs, bias_pairs, x_pairs) = (&gains.pairs[..count], &biases.pairs[..count], &xs.pairs[..count]);
    let (y_pairs, y_odd) = T::chunks_mut(y).0.as_chunks_mut::<TURNS>();
    let y_pairs = &mut y_pairs[..count];
    let mut at = 0;
    while at < count {
        let end = (at + CARRY).min(count);
        let mut chain = Partial::new::<S, T>(simd, near_lanes);
        while at < end {
            for t in 0..TURNS {
                Prefetch::lines(prefetch, (TURNS * at + t) * T::LANES);
                chain.add(t, load::<S, T>(simd, &pairs[at][t]));
                let gain = load::<S, T>(simd, &gain_pairs[at][t]);
                let bias = if CENTRED { load::<S, T>(simd, &bias_pairs[at][t]) } else { zero };
                lanes
                    .affine::<S, CENTRED>(load::<S, T>(simd, &x_pairs[at][t]), gain, bias)
                    .store_array(&mut y_pairs[at][t]);
            }
            at += 1;
        }
        partial.join(&chain);
    }
    if let (Some(next), Some(x), Some(gain), Some(bias), [y]) = (odd, xs.odd, gains.odd, biases.odd, y_odd) {
        partial.add(0, load::<S, T>(simd, next));
        lanes
            .affine::<S, CENTRED>(load::<S, T>(simd, x), load::<S, T>(simd, gain), load::<S, T>(simd, bias))
            .store_array(y);
    }
    if !tail.is_empty() {
        tail.store_all(lanes.affine::<S, CENTRED>(tail.load_all(x), tail.load_all(gain), tail.load_all(bias)), y);
    }
    moments_of(simd, tail, next, near, partial.end(tail, next), spread)
}

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;
    use crate::kernels::check::check_bits;
    use crate::simd::{available, is_avx2};

    #[simd]
    fn run<S: Simd, T: Number>(
        simd: S,
        place: Place,
        layer: &Layer<'_, T>,
        x: &[T],
        y: &mut [T],
        saved: &mut Option<SavedRows<'_, T>>,
    ) -> bool {
        // Nowhere else does it run, and the scalar fallback takes minutes to compile.
        if const { is_avx2::<S>() } {
            forward(simd, layer, place, x, y, saved);
        }
        is_avx2::<S>()
    }

    #[test]
    fn bits_are_those_of_rows_taken_one_after_the_other() {
        for level in available() {
            for place in [Place::Shared, Place::Memory] {
                check_bits::<f32>(
                    level,
                    |layer, x, y, saved| dispatch!(level, simd => run(simd, place, layer, x, y, saved)),
                );
                check_bits::<f64>(
                    level,
                    |layer, x, y, saved| dispatch!(level, simd => run(simd, place, layer, x, y, saved)),
                );
            }
        }
    }
}
