//! dx of rows of a few vectors, and what they add to dgain and dbias.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::backward::{self, Group};
use crate::kernels::kept::KeptRows;
use crate::kernels::narrow::{at, vectors};
use crate::kernels::normalize::{Layer, Place};
use crate::kernels::passes::{Columns, Lanes};
use crate::number::Number;
use crate::simd::{TURNS, Tail, splat, tree};

/// [`backward::backward`], and rows of 1 to 10 vectors here; `R` is the number of lanes.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn backward<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: Layer<'_, T>,
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
    if const { S::f32s::LEN < 8 } || features < T::LANES || vectors > most || !kept.are_plain() {
        return backward::backward(simd, layer, place, kept, x, dy, dx, columns);
    }
    let streams = place == Place::Memory;
    let groups = match vectors {
        2 | 3 if streams => return backward::backward(simd, layer, place, kept, x, dy, dx, columns),
        1 if streams => groups::<S, T, 2, 1>,
        4 if streams => groups::<S, T, 4, 4>,
        5 if streams => groups::<S, T, 2, 5>,
        6 if streams => groups::<S, T, 2, 6>,
        7 if streams => groups::<S, T, 2, 7>,
        8 if streams => groups::<S, T, 2, 8>,
        9 if streams => groups::<S, T, 2, 9>,
        10 if streams => groups::<S, T, 2, 10>,
        1 => groups::<S, T, R, 1>,
        2 => groups::<S, T, R, 2>,
        3 => groups::<S, T, R, 3>,
        4 => groups::<S, T, R, 4>,
        5 => groups::<S, T, R, 5>,
        6 => groups::<S, T, R, 6>,
        7 => groups::<S, T, R, 7>,
        8 => groups::<S, T, R, 8>,
        9 => groups::<S, T, R, 9>,
        _ => groups::<S, T, R, 10>,
    };
    let done = groups(simd, &layer, &kept, x, dy, dx, columns);
    let rest = done * features..;
    let kept = kept.rows(done..kept.mean.len());
    backward::backward(simd, layer, place, kept, &x[rest.clone()], &dy[rest.clone()], &mut dx[rest], columns);
}

/// dx of groups of `R` rows of `N` vectors, the last of which need not be full; adds to `columns`. Returns the row after
/// the last group.
#[simd]
#[inline(never)]
fn groups<S: Simd, T: Number, const R: usize, const N: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) -> usize {
    let features = layer.features;
    let tail = Tail::<S, T>::new(simd, features);
    let zero = splat(simd, T::zero());
    let gain = vectors::<S, T, N>(simd, features, layer.gain(0, features), 0);
    // Filled up with what adds nothing.
    let mut fresh_gain = gain;
    fresh_gain[N - 1] = tail.keep(gain[N - 1], zero);
    let mut dgain = vectors::<S, T, N>(simd, features, columns.dgain, 0);
    let mut dbias = vectors::<S, T, N>(simd, features, columns.dbias, 0);
    let mut first = 0;
    let inputs = x.chunks_exact(R * features).zip(dy.chunks_exact(R * features));
    for ((x, dy), dx) in inputs.zip(dx.chunks_exact_mut(R * features)) {
        let mut group = Group::<T, R>::new(kept, first);
        let (mut q, mut qd) = ([zero; R], [zero; R]);
        for r in 0..R {
            let row = Lanes::new(simd, &group.row(r));
            let x = vectors::<S, T, N>(simd, features, x, r);
            let mut dy = vectors::<S, T, N>(simd, features, dy, r);
            dy[N - 1] = tail.keep(dy[N - 1], zero);
            let mut turns = [(zero, zero); TURNS];
            for v in 0..N {
                let terms = row.terms(fresh_gain[v], x[v], dy[v]);
                turns[v % TURNS].0 += terms.0;
                turns[v % TURNS].1 += terms.1;
                dgain[v] += terms.2;
                dbias[v] += dy[v];
            }
            (q[r], qd[r]) = (turns[0].0 + turns[1].0, turns[0].1 + turns[1].1);
        }
        group.set_coefficients(layer, tree(simd, &mut q).as_slice(), tree(simd, &mut qd).as_slice());
        for r in 0..R {
            let row = group.second(simd, r);
            let x = vectors::<S, T, N>(simd, features, x, r);
            let dy = vectors::<S, T, N>(simd, features, dy, r);
            for v in 0..N {
                row.dx::<_, true>(gain[v], x[v], dy[v]).store_slice(&mut dx[at::<T, N>(features, r, v)]);
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
