//! y of rows of a few vectors.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::ahead;
use crate::kernels::alone;
use crate::kernels::group::Group;
use crate::kernels::moments::sampled;
use crate::kernels::narrow::{Folded, at, vectors};
use crate::kernels::normalize::{self, Lanes, Layer, Place, SavedRows};
use crate::number::Number;
use crate::prefetch::{Prefetch, ask_for_page};
use crate::simd::{TURNS, Tail, Vector, fold, is_avx2, is_avx512, splat, tree_of_folded};

/// Bytes of the longest rows that are summed ahead: what is written was read a row ago, and should still be in L2.
const LONGEST: usize = 224 * 1024;

/// [`normalize::forward`], [`ahead::forward`] and [`alone::forward`], and rows of 1 to 12 vectors here; `R` is the number of
/// lanes.
#[inline(always)]
pub(crate) fn forward<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    x: &[T],
    y: &mut [T],
    mut saved: Option<SavedRows<'_, T>>,
) {
    let vectors = layer.features.div_ceil(T::LANES);
    let streams = place == Place::Memory || const { is_avx2::<S>() } && place == Place::Shared;
    let most = const { if S::f32s::LEN < 16 { 10 } else { 12 } };
    if const { is_avx2::<S>() } && streams && vectors > 8 && layer.features * size_of::<T>() <= LONGEST {
        return ahead::forward(simd, layer, place, x, y, &mut saved);
    }
    if const { is_avx512::<S>() } && streams && vectors > most && layer.features <= T::BLOCK {
        return alone::forward(simd, layer, x, y, &mut saved);
    }
    if const { is_avx512::<S>() } && streams && layer.features > T::BLOCK {
        return normalize::forward_from_memory(simd, layer, x, y, &mut saved);
    }
    let done = if const { S::f32s::LEN < 8 } || layer.features < T::LANES || vectors > most {
        // Narrow registers do not hold a row.
        0
    } else if layer.spread.centred {
        all_groups::<S, T, R, true>(simd, layer, streams, x, y, &mut saved)
    } else {
        all_groups::<S, T, R, false>(simd, layer, streams, x, y, &mut saved)
    };
    let rest = done * layer.features..;
    let saved = saved.map(|saved| saved.split(done).1);
    normalize::forward(simd, layer, &x[rest.clone()], &mut y[rest], saved);
}

/// [`groups`] or [`interleaved`] of as many vectors as a row has. `CENTRED`: as in [`normalize::write`].
///
/// Summing ahead gains where the reductions are a large part of the work, on AVX-512 from caches only; there, up to 8 vectors
/// take 0.7 to 0.95 of the time.
#[inline(always)]
fn all_groups<S: Simd, T: Number, const R: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    streams: bool,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) -> usize {
    let vectors = layer.features.div_ceil(T::LANES);
    // Branches on the instruction set are known when this is compiled: kernels that it does not come to are left out.
    if const { is_avx2::<S>() } && (streams || vectors == 1) {
        let interleaved = match vectors {
            1 if !streams => interleaved::<S, T, 8, 1, CENTRED, 0>,
            1 => interleaved::<S, T, 8, 1, CENTRED, 2>,
            2 => interleaved::<S, T, 4, 2, CENTRED, 2>,
            3 => interleaved::<S, T, 4, 3, CENTRED, 2>,
            4 => interleaved::<S, T, 4, 4, CENTRED, 2>,
            5 => interleaved::<S, T, 4, 5, CENTRED, 2>,
            6 => interleaved::<S, T, 4, 6, CENTRED, 2>,
            7 => interleaved::<S, T, 4, 7, CENTRED, 2>,
            _ => interleaved::<S, T, 4, 8, CENTRED, 2>,
        };
        return interleaved(simd, layer, x, y, saved);
    }
    if const { !is_avx2::<S>() } && !streams && vectors <= 8 {
        let interleaved = match vectors {
            1 => interleaved::<S, T, R, 1, CENTRED, 0>,
            2 => interleaved::<S, T, R, 2, CENTRED, 0>,
            3 => interleaved::<S, T, R, 3, CENTRED, 0>,
            4 => interleaved::<S, T, R, 4, CENTRED, 0>,
            5 => interleaved::<S, T, R, 5, CENTRED, 0>,
            6 => interleaved::<S, T, R, 6, CENTRED, 0>,
            7 => interleaved::<S, T, R, 7, CENTRED, 0>,
            _ => interleaved::<S, T, R, 8, CENTRED, 0>,
        };
        return interleaved(simd, layer, x, y, saved);
    }
    let groups = if const { is_avx2::<S>() } {
        match vectors {
            2 => groups::<S, T, R, 2, CENTRED>,
            3 => groups::<S, T, R, 3, CENTRED>,
            4 => groups::<S, T, R, 4, CENTRED>,
            5 => groups::<S, T, R, 5, CENTRED>,
            6 => groups::<S, T, R, 6, CENTRED>,
            7 => groups::<S, T, R, 7, CENTRED>,
            8 => groups::<S, T, R, 8, CENTRED>,
            9 => groups::<S, T, R, 9, CENTRED>,
            _ => groups::<S, T, R, 10, CENTRED>,
        }
    } else if streams {
        match vectors {
            1 => groups::<S, T, R, 1, CENTRED>,
            2 => groups::<S, T, R, 2, CENTRED>,
            3 => groups::<S, T, R, 3, CENTRED>,
            4 => groups::<S, T, R, 4, CENTRED>,
            5 => groups::<S, T, 4, 5, CENTRED>,
            6 => groups::<S, T, 4, 6, CENTRED>,
            7 if const { T::LANES > 8 } => groups::<S, T, 4, 7, CENTRED>,
            8 if const { T::LANES > 8 } => groups::<S, T, 4, 8, CENTRED>,
            7 => groups::<S, T, 2, 7, CENTRED>,
            8 => groups::<S, T, 2, 8, CENTRED>,
            9 => groups::<S, T, 2, 9, CENTRED>,
            10 => groups::<S, T, 2, 10, CENTRED>,
            11 => groups::<S, T, 2, 11, CENTRED>,
            _ => groups::<S, T, 2, 12, CENTRED>,
        }
    } else {
        match vectors {
            9 => groups::<S, T, R, 9, CENTRED>,
            10 => groups::<S, T, R, 10, CENTRED>,
            11 => groups::<S, T, R, 11, CENTRED>,
            _ => groups::<S, T, R, 12, CENTRED>,
        }
    };
    groups(simd, layer, x, y, saved, !streams)
}

/// y of groups of `R` rows of `N` vectors, the last of which need not be full. Returns the row after the last group.
///
/// `ahead`: the sample of the rows that follow is taken first, and does not wait for anything of these.
#[simd]
#[inline(never)]
fn groups<S: Simd, T: Number, const R: usize, const N: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
    ahead: bool,
) -> usize {
    let &Layer { features, spread, .. } = layer;
    let tail = Tail::new(simd, features);
    let gain = vectors::<S, T, N>(simd, features, layer.gain(0, features), 0);
    let bias = vectors::<S, T, N>(simd, features, layer.bias(0, features), 0);
    let (all, mut outputs) = (x, y);
    let mut to_sample = x.chunks_exact(R * features);
    let mut next = splat(simd, T::zero());
    if ahead && let Some(x) = to_sample.next() {
        next = near_means_of::<S, T, R, N, CENTRED>(simd, &tail, x);
    }
    let mut first = 0;
    let mut inputs = x.chunks_exact(R * features);
    while let (Some(x), Some(y)) = (inputs.next(), outputs.split_off_mut(..R * features)) {
        let mut near = next;
        if let Some(x) = to_sample.next() {
            next = near_means_of::<S, T, R, N, CENTRED>(simd, &tail, x);
        }
        if !ahead {
            near = next;
        }
        let sums = trees::<S, T, R, N, CENTRED>(simd, &tail, x, near);
        let group = Group::<T, R>::of_trees(simd, &tail, x, near, sums, spread);
        if const { is_avx512::<S>() } && !ahead {
            ask_for_page(outputs, 0..R * features);
            ask_for_page(all, (first + R) * features..(first + 2 * R) * features);
        }
        for r in 0..R {
            write_row::<S, T, N, CENTRED>(simd, features, group.lanes(simd, r), &gain, &bias, x, y, r);
        }
        group.end(simd, layer, R, x, y, saved, first);
        first += R;
    }
    first
}

/// [`groups`], where a row of the next group is summed and a row of this one written, in turns: loads and stores come as in
/// a copy, and no load waits for statistics or, if it was asked for in time, for memory.
///
/// `A`: how many of these are asked for meanwhile: what follows in x, and the places of the next group's y.
#[simd]
#[inline(never)]
fn interleaved<S: Simd, T: Number, const R: usize, const N: usize, const CENTRED: bool, const A: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: &mut Option<SavedRows<'_, T>>,
) -> usize {
    let &Layer { features, spread, .. } = layer;
    let tail = Tail::new(simd, features);
    let gain = vectors::<S, T, N>(simd, features, layer.gain(0, features), 0);
    let bias = vectors::<S, T, N>(simd, features, layer.bias(0, features), 0);
    let (all, mut outputs) = (x, y);
    let mut inputs = x.chunks_exact(R * features);
    let Some(mut x) = inputs.next() else { return 0 };
    let mut near = near_means_of::<S, T, R, N, CENTRED>(simd, &tail, x);
    let mut sums = trees::<S, T, R, N, CENTRED>(simd, &tail, x, near);
    let mut folded = Folded::<_, R, CENTRED>::new::<S, T>(simd);
    let mut first = 0;
    while let Some(y) = outputs.split_off_mut(..R * features) {
        // Behind the last group nothing is summed that anybody asks for.
        let next = inputs.next().unwrap_or(x);
        let next_near = near_means_of::<S, T, R, N, CENTRED>(simd, &tail, next);
        let group = Group::<T, R>::of_trees(simd, &tail, x, near, sums, spread);
        near = next_near;
        let prefetch: [_; A] = Prefetch::first([Prefetch::new(all, (first + R) * features), Prefetch::these(outputs)]);
        for pair in 0..R / 2 {
            let (even, odd) = (2 * pair, 2 * pair + 1);
            for v in 0..2 * N {
                Prefetch::lines(prefetch, even * features + v * T::LANES);
            }
            let even_sums = partial_sums::<S, T, N, CENTRED>(simd, &tail, next, near, even);
            write_row::<S, T, N, CENTRED>(simd, features, group.lanes(simd, even), &gain, &bias, x, y, even);
            let odd_sums = partial_sums::<S, T, N, CENTRED>(simd, &tail, next, near, odd);
            write_row::<S, T, N, CENTRED>(simd, features, group.lanes(simd, odd), &gain, &bias, x, y, odd);
            folded.set(pair, even_sums, odd_sums);
        }
        sums = folded.trees();
        group.end(simd, layer, R, x, y, saved, first);
        first += R;
        x = next;
    }
    first
}

/// y of row `r`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn write_row<S: Simd, T: Number, const N: usize, const CENTRED: bool>(
    simd: S,
    features: usize,
    row: Lanes<Vector<S, T>>,
    gain: &[Vector<S, T>; N],
    bias: &[Vector<S, T>; N],
    x: &[T],
    y: &mut [T],
    r: usize,
) {
    let x = vectors::<S, T, N>(simd, features, x, r);
    for v in 0..N {
        row.affine::<_, CENTRED>(x[v], gain[v], bias[v]).store_slice(&mut y[at::<T, N>(features, r, v)]);
    }
}

/// h of each of `R` rows: [`sample`](crate::kernels::moments::sample) of each.
#[inline(always)]
fn near_means_of<S: Simd, T: Number, const R: usize, const N: usize, const CENTRED: bool>(
    simd: S,
    tail: &Tail<S, T>,
    rows: &[T],
) -> Vector<S, T> {
    let zero = splat(simd, T::zero());
    if !CENTRED {
        return zero;
    }
    let mut samples = [zero; R];
    let folded = &mut samples[..R / 2];
    for (pair, folded) in folded.iter_mut().enumerate() {
        let even = sample::<S, T, N>(simd, tail, rows, 2 * pair);
        *folded = fold(even, sample::<S, T, N>(simd, tail, rows, 2 * pair + 1));
    }
    tree_of_folded(folded) / sampled::<S, T>(simd, tail.len())
}

/// The partial sums of the sample of row `r`.
#[inline(always)]
fn sample<S: Simd, T: Number, const N: usize>(simd: S, tail: &Tail<S, T>, rows: &[T], r: usize) -> Vector<S, T> {
    let x = vectors::<S, T, N>(simd, tail.len(), rows, r);
    let last = tail.keep(x[N - 1], splat(simd, T::zero()));
    match N {
        1 => last,
        2 => x[0] + last,
        3 => x[0] + x[1] + last,
        5.. => (x[0] + x[1]) + (x[2] + x[3]),
        _ if tail.is_empty() => (x[0] + x[1]) + (x[2] + last),
        _ => x[0] + x[1] + x[2] + last,
    }
}

/// s and q of each of `R` rows, one in each lane.
#[inline(always)]
fn trees<S: Simd, T: Number, const R: usize, const N: usize, const CENTRED: bool>(
    simd: S,
    tail: &Tail<S, T>,
    rows: &[T],
    near: Vector<S, T>,
) -> [Vector<S, T>; 2] {
    let mut folded = Folded::<_, R, CENTRED>::new::<S, T>(simd);
    for pair in 0..R / 2 {
        let even = partial_sums::<S, T, N, CENTRED>(simd, tail, rows, near, 2 * pair);
        folded.set(pair, even, partial_sums::<S, T, N, CENTRED>(simd, tail, rows, near, 2 * pair + 1));
    }
    folded.trees()
}

/// The partial sums of s and of q of row `r`: [`partial_sums`](crate::kernels::moments::partial_sums).
#[inline(always)]
fn partial_sums<S: Simd, T: Number, const N: usize, const CENTRED: bool>(
    simd: S,
    tail: &Tail<S, T>,
    rows: &[T],
    near: Vector<S, T>,
    r: usize,
) -> [Vector<S, T>; 2] {
    let zero = splat(simd, T::zero());
    let near = splat(simd, near.as_slice()[r]);
    let mut d = vectors::<S, T, N>(simd, tail.len(), rows, r);
    d[N - 1] = tail.keep(d[N - 1], near);
    let mut turns = [(zero, zero); TURNS];
    for v in 0..N {
        let d = if CENTRED { d[v] - near } else { d[v] };
        let (sum, squares) = &mut turns[v % TURNS];
        if v < TURNS {
            (*sum, *squares) = (d, d * d);
        } else {
            *sum += d;
            *squares += d * d;
        }
    }
    let [(sum, square), others] = turns;
    if N == 1 { [sum, square] } else { [sum + others.0, square + others.1] }
}

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;
    use crate::kernels::check::check_bits;
    use crate::simd::available;

    #[simd]
    fn run<S: Simd, T: Number>(
        simd: S,
        layer: &Layer<'_, T>,
        x: &[T],
        y: &mut [T],
        saved: &mut Option<SavedRows<'_, T>>,
    ) -> bool {
        let runs = const { S::f32s::LEN >= 8 };
        if runs {
            normalize::forward_from_memory(simd, layer, x, y, saved);
        }
        runs
    }

    #[test]
    fn bits_of_rows_written_four_at_once_are_those_of_pairs() {
        for level in available() {
            check_bits::<f32>(level, |layer, x, y, saved| dispatch!(level, simd => run(simd, layer, x, y, saved)));
            check_bits::<f64>(level, |layer, x, y, saved| dispatch!(level, simd => run(simd, layer, x, y, saved)));
        }
    }
}
