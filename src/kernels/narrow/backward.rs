//! dx of rows of a few vectors, and what they add to dgain and dbias.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::backward::{self, Group};
use crate::kernels::kept::{KeptRows, Row};
use crate::kernels::narrow::{Folded, at, vectors};
use crate::kernels::normalize::{Layer, Place};
use crate::kernels::passes::{Columns, Lanes, asked_for};
use crate::number::Number;
use crate::simd::{Prefetch, TURNS, Tail, Vector, is_avx2, splat};

/// [`backward::backward`], and rows of 1 to 10 vectors here; `R` is the number of lanes.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn backward<S: Simd, T: Number, const R: usize>(
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
    let vectors = features.div_ceil(T::LANES);
    // Gain, dgain and dbias should not be many more than the registers hold.
    let most = const { if S::f32s::LEN < 16 { 5 } else { 10 } };
    let streams = place == Place::Memory;
    let narrow = features >= T::LANES && vectors <= most;
    let done = if const { S::f32s::LEN < 8 } || !narrow || !kept.are_plain() {
        0
    } else if layer.spread.centred {
        all_groups::<S, T, R, true>(simd, layer, streams, &kept, x, dy, dx, columns)
    } else {
        all_groups::<S, T, R, false>(simd, layer, streams, &kept, x, dy, dx, columns)
    };
    let rest = done * features..;
    let kept = kept.rows(done..kept.mean.len());
    backward::backward(simd, layer, place, kept, &x[rest.clone()], &dy[rest.clone()], &mut dx[rest], columns);
}

/// [`groups`] of as many vectors as a row has. `CENTRED`: as in [`sums`](crate::kernels::passes::sums).
///
/// What AVX2 does not come to is known when it is compiled, and left out.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn all_groups<S: Simd, T: Number, const R: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    streams: bool,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) -> usize {
    let vectors = layer.features.div_ceil(T::LANES);
    let groups = if streams {
        match vectors {
            1 => groups::<S, T, 4, 1, CENTRED>,
            2 => groups::<S, T, 4, 2, CENTRED>,
            3 => groups::<S, T, 4, 3, CENTRED>,
            4 => groups::<S, T, 4, 4, CENTRED>,
            _ if const { is_avx2::<S>() } => groups::<S, T, 4, 5, CENTRED>,
            5 => groups::<S, T, 4, 5, CENTRED>,
            6 => groups::<S, T, 4, 6, CENTRED>,
            // Without mean, two take 0.87 to 0.95 of the time.
            7 if const { !CENTRED } => groups::<S, T, 2, 7, CENTRED>,
            8 if const { !CENTRED } => groups::<S, T, 2, 8, CENTRED>,
            7 => groups::<S, T, 4, 7, CENTRED>,
            8 => groups::<S, T, 4, 8, CENTRED>,
            9 => groups::<S, T, 4, 9, CENTRED>,
            _ => groups::<S, T, 4, 10, CENTRED>,
        }
    } else {
        match vectors {
            1 => groups::<S, T, R, 1, CENTRED>,
            2 => groups::<S, T, R, 2, CENTRED>,
            3 => groups::<S, T, R, 3, CENTRED>,
            4 => groups::<S, T, R, 4, CENTRED>,
            _ if const { is_avx2::<S>() } => groups::<S, T, R, 5, CENTRED>,
            5 => groups::<S, T, R, 5, CENTRED>,
            6 => groups::<S, T, R, 6, CENTRED>,
            7 => groups::<S, T, R, 7, CENTRED>,
            8 => groups::<S, T, R, 8, CENTRED>,
            9 => groups::<S, T, R, 9, CENTRED>,
            _ => groups::<S, T, R, 10, CENTRED>,
        }
    };
    groups(simd, layer, kept, x, dy, dx, columns)
}

/// Whether [`asked_for`] is asked for: where rows come from memory, and so fewer than `T::LANES` are taken together. Rows of one
/// vector gain nothing.
const fn asks<S: Simd, T: Number, const R: usize, const N: usize>() -> bool {
    is_avx2::<S>() && R < T::LANES && N > 1
}

/// dx of groups of `R` rows of `N` vectors, the last of which need not be full; adds to `columns`. Returns the row after
/// the last group.
#[simd]
#[inline(never)]
fn groups<S: Simd, T: Number, const R: usize, const N: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) -> usize {
    let all = [x, dy];
    let features = layer.features;
    let tail = Tail::<S, T>::new(simd, features);
    let zero = splat(simd, T::zero());
    let gain = vectors::<S, T, N>(simd, features, layer.gain(0, features), 0);
    // Filled up with what adds nothing.
    let mut fresh_gain = gain;
    fresh_gain[N - 1] = tail.keep(gain[N - 1], zero);
    let mut dgain = vectors::<S, T, N>(simd, features, columns.dgain, 0);
    let mut dbias = vectors::<S, T, N>(simd, features, columns.dbias, 0);
    let mut folded = Folded::<_, R, CENTRED>::new::<S, T>(simd);
    let mut first = 0;
    let inputs = x.chunks_exact(R * features).zip(dy.chunks_exact(R * features));
    for ((x, dy), dx) in inputs.zip(dx.chunks_exact_mut(R * features)) {
        let mut group = Group::<T, R>::new(kept, first);
        let prefetch = asked_for::<T, 3>(all, first * features, dx);
        for pair in 0..R / 2 {
            let (even, odd) = (2 * pair, 2 * pair + 1);
            if const { asks::<S, T, R, N>() } {
                for v in 0..2 * N {
                    Prefetch::lines(prefetch, even * features + v * T::LANES);
                }
            }
            let sums = &mut [&mut dgain, &mut dbias];
            let (row, next) = (group.row(even), group.row(odd));
            let even = first_pass::<S, T, N, CENTRED>(simd, &tail, &row, &fresh_gain, x, dy, sums, even);
            folded.set(pair, even, first_pass::<S, T, N, CENTRED>(simd, &tail, &next, &fresh_gain, x, dy, sums, odd));
        }
        let [q, qd] = folded.trees();
        group.set_coefficients(layer, q.as_slice(), qd.as_slice());
        for r in 0..R {
            let row = group.second(simd, r);
            let x = vectors::<S, T, N>(simd, features, x, r);
            let dy = vectors::<S, T, N>(simd, features, dy, r);
            for v in 0..N {
                row.dx::<_, CENTRED>(gain[v], x[v], dy[v]).store_slice(&mut dx[at::<T, N>(features, r, v)]);
            }
        }
        first += R;
    }
    // The last first: of the elements that it has in common with the one before, it has no sum.
    for v in (0..N).rev() {
        dgain[v].store_slice(&mut columns.dgain[at::<T, N>(features, 0, v)]);
        dbias[v].store_slice(&mut columns.dbias[at::<T, N>(features, 0, v)]);
    }
    first
}

/// The partial sums of q and of q·(x − mean) of row `r`; adds its columns.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn first_pass<S: Simd, T: Number, const N: usize, const CENTRED: bool>(
    simd: S,
    tail: &Tail<S, T>,
    row: &Row<T>,
    gain: &[Vector<S, T>; N],
    x: &[T],
    dy: &[T],
    [dgain, dbias]: &mut [&mut [Vector<S, T>; N]; 2],
    r: usize,
) -> [Vector<S, T>; 2] {
    let zero = splat(simd, T::zero());
    let row = Lanes::new(simd, row);
    let x = vectors::<S, T, N>(simd, tail.len(), x, r);
    let mut dy = vectors::<S, T, N>(simd, tail.len(), dy, r);
    dy[N - 1] = tail.keep(dy[N - 1], zero);
    let mut turns = [(zero, zero); TURNS];
    for v in 0..N {
        if CENTRED {
            let terms = row.terms(gain[v], x[v], dy[v]);
            turns[v % TURNS].0 += terms.0;
            turns[v % TURNS].1 += terms.1;
            dgain[v] += terms.2;
            dbias[v] += dy[v];
        } else {
            let terms = row.terms_about_zero(gain[v], x[v], dy[v]);
            turns[v % TURNS].1 += terms.0;
            dgain[v] += terms.1;
        }
    }
    [turns[0].0 + turns[1].0, turns[0].1 + turns[1].1]
}
