//! dx of rows of a few vectors, and what they add to dgain and dbias.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::backward::{self, Group};
use crate::kernels::columns::CHAIN;
use crate::kernels::kept::{KeptRows, Row};
use crate::kernels::narrow::{Folded, at, end_chain, store, vectors};
use crate::kernels::normalize::Lanes;
use crate::kernels::normalize::{Layer, Place};
use crate::kernels::passes::{Columns, Second, asked_for};
use crate::number::Number;
use crate::prefetch::{Prefetch, ask_for_page};
use crate::simd::{TURNS, Tail, Vector, is_avx2, is_avx512, splat, tree};

/// The most vectors of a row: gain, dgain and dbias should not be many more than the registers hold.
const MOST: usize = 10;

/// The most vectors of a row for [`whole_chains`], which take 0.75 to 1 of the time of kernels that are left after each chain
/// from caches, and 0.7 to 0.85 on AVX2 from memory; of 8 vectors up to 1.1.
const WHOLE: usize = 6;

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
    let done = if const { S::f32s::LEN >= 8 } && pays::<S, T>(features) && kept.are_plain() {
        all_groups::<S, T, R>(simd, layer, place, &kept, x, dy, dx, columns, None)
    } else {
        0
    };
    let rest = done * features..;
    let kept = kept.rows(done..kept.mean.len());
    backward::backward(simd, layer, place, kept, &x[rest.clone()], &dy[rest.clone()], &mut dx[rest], columns);
}

/// Whether rows are taken here, where registers hold two of them.
#[inline(always)]
fn pays<S: Simd, T: Number>(features: usize) -> bool {
    let most = const { if S::f32s::LEN < 16 { 5 } else { MOST } };
    (T::LANES..=most * T::LANES).contains(&features)
}

/// [`backward`] of the whole chains of a block, each of which is added to `block`; `R` is the number of lanes, and `columns` are
/// 0. Returns the row after the last.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn whole_chains<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
    block: &mut Columns<'_, T::Wide>,
) -> usize {
    let rows = kept.mean.len() / CHAIN * CHAIN;
    let all = ..rows * layer.features;
    let few = layer.features <= WHOLE * T::LANES;
    if const { S::f32s::LEN >= 8 } && few && pays::<S, T>(layer.features) && kept.are_plain() {
        all_groups::<S, T, R>(simd, layer, place, kept, &x[all], &dy[all], &mut dx[all], columns, Some(block))
    } else {
        0
    }
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn all_groups<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
    block: Option<&mut Columns<'_, T::Wide>>,
) -> usize {
    let streams = place == Place::Memory;
    if layer.spread.centred {
        groups_of::<S, T, R, true>(simd, layer, streams, kept, x, dy, dx, columns, block)
    } else {
        groups_of::<S, T, R, false>(simd, layer, streams, kept, x, dy, dx, columns, block)
    }
}

/// [`groups`] of as many vectors as a row has. `CENTRED`: as in [`sums`](crate::kernels::passes::sums).
///
/// What AVX2 does not come to is known when it is compiled, and left out.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn groups_of<S: Simd, T: Number, const R: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    streams: bool,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
    block: Option<&mut Columns<'_, T::Wide>>,
) -> usize {
    let vectors = layer.features.div_ceil(T::LANES);
    let groups = if const { !is_avx512::<S>() } && streams {
        match vectors {
            1 => groups::<S, T, 4, 1, CENTRED>,
            2 => groups::<S, T, 4, 2, CENTRED>,
            3 => groups::<S, T, 4, 3, CENTRED>,
            4 => groups::<S, T, 4, 4, CENTRED>,
            _ => groups::<S, T, 4, 5, CENTRED>,
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
    groups(simd, layer, kept, x, dy, dx, columns, block)
}

/// Whether [`asked_for`] is asked for: where rows come from memory, and so fewer than `T::LANES` are taken together. Rows of one
/// vector gain nothing.
const fn asks<S: Simd, T: Number, const R: usize, const N: usize>() -> bool {
    is_avx2::<S>() && R < T::LANES && N > 1
}

/// dx of groups of `R` rows of `N` vectors, the last of which need not be full; adds to `columns`, or if there is one, each whole
/// chain of rows to `block`. Returns the row after the last group.
#[simd]
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn groups<S: Simd, T: Number, const R: usize, const N: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
    mut block: Option<&mut Columns<'_, T::Wide>>,
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
        let prefetch = asked_for::<T, 1, 3>(all, first * features, dx);
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
        if let Some(block) = &mut block
            && first.is_multiple_of(CHAIN)
        {
            end_chain::<S, T, N>(simd, &tail, &mut dgain, block.dgain);
            end_chain::<S, T, N>(simd, &tail, &mut dbias, block.dbias);
        }
    }
    store::<S, T, N>(features, &dgain, columns.dgain);
    store::<S, T, N>(features, &dbias, columns.dbias);
    first
}

/// Whether AVX-512 takes rows by [`stream`].
#[inline(always)]
pub(crate) fn streams<T: Number>(layer: &Layer<'_, T>, place: Place, kept: &KeptRows<'_, T>) -> bool {
    place == Place::Memory && (T::LANES..=MOST * T::LANES).contains(&layer.features) && kept.are_plain()
}

/// dx of rows of 1 to 10 vectors one by one, where memory sets the pace; adds to `columns`, or if there is one, each chain of
/// rows to `block`.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn stream<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
    block: Option<Columns<'_, T::Wide>>,
) {
    if layer.spread.centred {
        stream_rows::<S, T, true>(simd, layer, kept, x, dy, dx, columns, block);
    } else {
        stream_rows::<S, T, false>(simd, layer, kept, x, dy, dx, columns, block);
    }
}

/// [`rows`] of as many vectors as a row has. `CENTRED`: as in [`sums`](crate::kernels::passes::sums).
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn stream_rows<S: Simd, T: Number, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
    block: Option<Columns<'_, T::Wide>>,
) {
    let rows = match layer.features.div_ceil(T::LANES) {
        1 => rows::<S, T, 1, CENTRED>,
        2 => rows::<S, T, 2, CENTRED>,
        3 => rows::<S, T, 3, CENTRED>,
        4 => rows::<S, T, 4, CENTRED>,
        5 => rows::<S, T, 5, CENTRED>,
        6 => rows::<S, T, 6, CENTRED>,
        7 => rows::<S, T, 7, CENTRED>,
        8 => rows::<S, T, 8, CENTRED>,
        9 => rows::<S, T, 9, CENTRED>,
        _ => rows::<S, T, MOST, CENTRED>,
    };
    rows(simd, layer, kept, x, dy, dx, columns, block);
}

/// [`stream`] of rows of `N` vectors, the last of which need not be full.
///
/// The columns belong to the second pass: what the first has to do before the row's sums are there is as little as can be, and
/// the loads of the next row follow soon. Their sums stay in registers, and go to the block from there: a kernel that was left
/// after each chain took half a microsecond more, a quarter of the time of a chain of 64 numbers.
#[simd]
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn rows<S: Simd, T: Number, const N: usize, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    mut x: &[T],
    mut dy: &[T],
    mut dx: &mut [T],
    columns: &mut Columns<'_, T>,
    mut block: Option<Columns<'_, T::Wide>>,
) {
    let features = layer.features;
    // Said once, it need not be asked for each vector.
    assert!(features.div_ceil(T::LANES) == N && features >= T::LANES, "{features} features are not {N} vectors");
    let (tail, zero) = (Tail::<S, T>::new(simd, features), splat(simd, T::zero()));
    let gain = vectors::<S, T, N>(simd, features, layer.gain(0, features), 0);
    // Filled up with what adds nothing.
    let mut fresh_gain = gain;
    fresh_gain[N - 1] = tail.keep(gain[N - 1], zero);
    let mut dgain = vectors::<S, T, N>(simd, features, columns.dgain, 0);
    let mut dbias = vectors::<S, T, N>(simd, features, columns.dbias, 0);
    let mut left = CHAIN;
    for ((&mean, &low), &rstd) in kept.mean.iter().zip(kept.low).zip(kept.rstd) {
        let (Some(x_row), Some(dy_row), Some(dx_row)) =
            (x.split_off(..features), dy.split_off(..features), dx.split_off_mut(..features))
        else {
            unreachable!("there are numbers for each row");
        };
        let row = Row::new(mean, low, rstd);
        let lanes = Lanes::of_row(simd, &row);
        let x_vectors = vectors::<S, T, N>(simd, features, x_row, 0);
        let dy_vectors = vectors::<S, T, N>(simd, features, dy_row, 0);
        let mut fresh_dy = dy_vectors;
        fresh_dy[N - 1] = tail.keep(dy_vectors[N - 1], zero);
        let mut turns = [(zero, zero); TURNS];
        for v in 0..N {
            lanes.add::<S, CENTRED>(&mut turns[v % TURNS], fresh_gain[v], x_vectors[v], fresh_dy[v]);
        }
        for array in [x, dy] {
            ask_for_page(array, 0..features);
        }
        let [(q, qd), other] = turns;
        let sums = tree(simd, &mut [q + other.0, qd + other.1]);
        let second = Second::new(simd, &row, &row.coefficients(sums[0].into(), sums[1].into(), layer));
        for v in 0..N {
            let mut sums = [dgain[v], dbias[v]];
            let result = second.write::<S, CENTRED>(gain[v], [x_vectors[v], dy_vectors[v]], &mut sums);
            [dgain[v], dbias[v]] = sums;
            result.store_slice(&mut dx_row[at::<T, N>(features, 0, v)]);
        }
        left -= 1;
        if let Some(block) = &mut block
            && (left == 0 || x.is_empty())
        {
            end_chain::<S, T, N>(simd, &tail, &mut dgain, block.dgain);
            end_chain::<S, T, N>(simd, &tail, &mut dbias, block.dbias);
            left = CHAIN;
        }
    }
    store::<S, T, N>(features, &dgain, columns.dgain);
    store::<S, T, N>(features, &dbias, columns.dbias);
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
    let row = Lanes::of_row(simd, row);
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

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;
    use crate::kernels::columns;
    use crate::kernels::moments::Spread;
    use crate::number::Wide;
    use crate::simd::available;

    /// dx and the column sums of all rows, chain by chain, of the rows of any number of features.
    #[inline(always)]
    fn backward_of_any<S: Simd, T: Number>(
        simd: S,
        layer: &Layer<'_, T>,
        kept: KeptRows<'_, T>,
        [x, dy]: [&[T]; 2],
        dx: &mut [T],
        columns: &mut Columns<'_, T>,
        block: Option<Columns<'_, T::Wide>>,
    ) {
        let (rows, features) = (kept.mean.len(), layer.features);
        let Some(block) = block else {
            return backward::backward(simd, layer, Place::Core, kept, x, dy, dx, columns);
        };
        for first in (0..rows).step_by(CHAIN) {
            let rows = first..rows.min(first + CHAIN);
            let at = rows.start * features..rows.end * features;
            let (x, dy, dx) = (&x[at.clone()], &dy[at.clone()], &mut dx[at]);
            backward::backward(simd, layer, Place::Core, kept.rows(rows), x, dy, dx, columns);
            columns::end_chain(simd, columns.dgain, block.dgain);
            columns::end_chain(simd, columns.dbias, block.dbias);
        }
    }

    #[simd]
    fn check<S: Simd, T: Number>(simd: S, spread: Spread) {
        // Nowhere else are rows streamed.
        if const { !is_avx512::<S>() } {
            return;
        }
        let numbers = |len: usize, prime: usize| -> Vec<T> {
            (0..len).map(|i| T::nearest((i * prime % 1009) as f64 / 300.0 - 1.5)).collect()
        };
        let lengths = (1..=MOST).flat_map(|vectors| [vectors * T::LANES, vectors * T::LANES - 3]);
        for features in lengths.filter(|&features| features >= T::LANES) {
            for (rows, with_block) in
                [(1, false), (CHAIN - 1, false), (3, true), (2 * CHAIN, true), (2 * CHAIN + 7, true)]
            {
                let [mut x, dy] = [47, 53].map(|prime| numbers(rows * features, prime));
                // What is no number stays in its row and columns.
                (x[features - 1], x[(rows - 1) * features]) = (T::nan(), T::infinity());
                x[features - T::LANES] = -T::infinity();
                let [gain, mean, low, rstd] = [31, 37, 41, 43].map(|prime| numbers(rows.max(features), prime));
                let zeros = vec![T::zero(); rows];
                let low: Vec<T> = low.iter().map(|&x| x * T::epsilon()).collect();
                let (mean, low) = if spread.centred { (&mean[..rows], &low[..rows]) } else { (&zeros[..], &zeros[..]) };
                let kept = KeptRows { mean, low, rstd: &rstd[..rows], exponent: &vec![0; rows] };
                let layer = Layer { features, gain: Some(&gain[..features]), bias: None, spread };
                assert!(streams(&layer, Place::Memory, &kept));
                let run = |streamed: bool| {
                    let mut dx = vec![T::nan(); rows * features];
                    // With a block, chains start from 0.
                    let start = |prime| if with_block { vec![T::zero(); features] } else { numbers(features, prime) };
                    let (mut dgain, mut dbias) = (start(61), start(67));
                    let mut sums = [(); 2].map(|()| vec![T::Wide::default(); features]);
                    let [wide_dgain, wide_dbias] = &mut sums;
                    let block =
                        with_block.then_some(Columns { dgain: &mut wide_dgain[..], dbias: &mut wide_dbias[..] });
                    let columns = &mut Columns { dgain: &mut dgain, dbias: &mut dbias };
                    if streamed {
                        stream(simd, &layer, &kept, &x, &dy, &mut dx, columns, block);
                    } else {
                        backward_of_any(simd, &layer, kept, [&x, &dy], &mut dx, columns, block);
                    }
                    let wide = sums.concat().into_iter().map(|sum| sum.value());
                    let elements = [dx, dgain, dbias].concat();
                    elements.into_iter().map(|x| x.into()).chain(wide).collect::<Vec<f64>>()
                };
                for (i, (got, expected)) in run(true).iter().zip(run(false)).enumerate() {
                    let same = got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan();
                    assert!(same, "{got} {expected}: {rows}×{features}, number {i}");
                }
            }
        }
    }

    #[test]
    fn streamed_rows_have_the_bits_of_rows_of_any_length() {
        for level in available() {
            dispatch!(level, simd => {
                check::<_, f32>(simd, Spread::about_mean(1e-5_f32));
                check::<_, f32>(simd, Spread::about_zero(1e-5_f32));
                check::<_, f64>(simd, Spread::about_mean(1e-5_f64));
                check::<_, f64>(simd, Spread::about_zero(1e-5_f64));
            });
        }
    }
}
