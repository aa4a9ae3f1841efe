//! Rows shorter than a vector, as many at once as a vector has lanes.
//!
//! ```text
//! R = L lanes:  R rows of n < L features
//!     rows[r]    = x[r·n .. r·n + L]               row r, and behind it what follows in memory
//!     columns    = transposed rows                 columns[j]: feature j of row r in lane r
//!     Σ term     = tree [0, …, 0, term(columns[0]), …, term(columns[n−1])]      L vectors, neighbours added
//!     forward:     h, s, q → statistics of R rows;   y of column after column
//!     backward:    Q, D → k and m of R rows;         dx and p·d of column after column
//!     y[r·n .. r·n + L] = transposed back, r = 0, 1, …: what is too much is the next row's, and that comes later
//!     dgain += p·d of row 0, of row 1, …;   dbias += dy of row 0, of row 1, …
//! the last rows: the same from and to a copy that has room behind it
//! ```
//!
//! As the tail of a block such a row costs four times what a full vector costs: its loads and stores are copies of a
//! length that is known only then, and each full load behind such a copy waits until that is in the cache. Here all
//! loads and stores are full ones, no sum needs a shuffle, and L rows share the divisions and square roots. Every
//! instruction set gains: AVX-512 a factor of 4 to 8, the scalar fallback, in backward of f32, one of 1.2.
//!
//! The bits are those of a tail. Its tree is the same: the row's terms in the last lanes, zeros before them. (Zeros are
//! what its fill comes to: 0 in a sample, h − h, and q of gain 0 and dy 0. Where h is not finite h − h is NaN, but then s
//! is not finite here either, and the row is done again; where rstd is NaN so is every q.) A tail also adds each term to
//! the 0 that partial sums start from. That turns a term −0 to 0, which a sum shows only if all its terms are −0, and one
//! at least is the 0 before the row.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::backward;
use crate::kernels::columns::{CHAIN, end_chain};
use crate::kernels::group::Group;
use crate::kernels::kept::KeptRows;
use crate::kernels::narrow;
use crate::kernels::normalize::{self, Layer, Place, SavedRows};
use crate::kernels::passes::{Columns, Second};
use crate::number::Number;
use crate::simd::{Vector, is_avx512, pairs, splat};

/// Elements from the first row's first to the end of the last row's vector.
const fn span(rows: usize, features: usize) -> usize {
    (rows - 1) * features + rows
}

/// A group costs as much as so many rows one by one: 2 to 5 of f32, 1 or 2 of f64.
const fn few(rows: usize) -> usize {
    rows / 4
}

/// [`narrow::forward`](narrow::forward::forward), and rows shorter than a vector here; `R` is the number of lanes.
#[simd]
pub(crate) fn forward<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    place: Place,
    x: &[T],
    y: &mut [T],
    mut saved: Option<SavedRows<'_, T>>,
) {
    let features = layer.features;
    if features >= R || x.len() < few(R) * features {
        return narrow::forward::forward::<S, T, R>(simd, layer, place, x, y, saved);
    }
    let rows = x.len() / features;
    let (mut x_copy, mut y_copy) = ([[T::zero(); R]; R], [[T::zero(); R]; R]);
    let (x_copy, y_copy) = (x_copy.as_flattened_mut(), y_copy.as_flattened_mut());
    for first in (0..rows).step_by(R) {
        let count = R.min(rows - first);
        let at = first * features..(first + count) * features;
        let group = if x.len() - at.start >= span(R, features) {
            normalize_group::<S, T, R>(simd, layer, count, &x[at.start..], &mut y[at.start..])
        } else {
            x_copy[..at.len()].copy_from_slice(&x[at.clone()]);
            let group = normalize_group(simd, layer, count, x_copy, y_copy);
            y[at.clone()].copy_from_slice(&y_copy[..at.len()]);
            group
        };
        group.end(simd, layer, count, &x[at.clone()], &mut y[at], &mut saved, first);
    }
}

/// The statistics of `R` rows, and their y; only `count` of them are there.
#[simd]
#[inline(never)]
fn normalize_group<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    count: usize,
    x: &[T],
    y: &mut [T],
) -> Group<T, R> {
    let features = layer.features;
    let x = transpose(load_rows::<S, T, R>(simd, features, x));
    let zeros = [splat(simd, T::zero()); R];
    let front = R - features;

    let mut terms = zeros;
    terms[front..].copy_from_slice(&x[..features]);
    let centred = layer.spread.centred;
    let near = if centred { pairs(terms) / splat(simd, T::nearest(features as f64)) } else { zeros[0] };
    let (mut sums, mut squares) = (zeros, zeros);
    for j in 0..features {
        let d = x[j] - near;
        sums[front + j] = d;
        squares[front + j] = d * d;
    }
    let (sums, squares) = (if centred { pairs(sums) } else { zeros[0] }, pairs(squares));
    let sums = [near.as_slice(), sums.as_slice(), squares.as_slice()];
    let group = Group::of_sums(features, count, sums, layer.spread);

    let lanes = normalize::Lanes {
        mean: Vector::<S, T>::from_slice(simd, &group.mean),
        low: Vector::<S, T>::from_slice(simd, &group.low),
        rstd: Vector::<S, T>::from_slice(simd, &group.rstd),
    };
    let (gain, bias) = (layer.gain(0, features), layer.bias(0, features));
    let mut result = zeros;
    for j in 0..features {
        result[j] = lanes.affine::<_, true>(x[j], splat(simd, gain[j]), splat(simd, bias[j]));
    }
    store_rows::<S, T, R>(features, &transpose(result), y);
    group
}

/// dx of some rows; adds to `columns`, and each whole chain of them to `block`, if there is one. `R` is the number of lanes.
#[simd]
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
    block: Option<Columns<'_, T::Wide>>,
) {
    if const { is_avx512::<S>() } && narrow::backward::streams(layer, place, &kept) {
        return narrow::backward::stream(simd, layer, &kept, x, dy, dx, columns, block);
    }
    let (rows, features) = (kept.mean.len(), layer.features);
    let Some(mut block) = block else {
        return chain::<S, T, R>(simd, layer, place, kept, x, dy, dx, columns);
    };
    let done = narrow::backward::whole_chains::<S, T, R>(simd, layer, place, &kept, x, dy, dx, columns, &mut block);
    for first in (done..rows).step_by(CHAIN) {
        let rows = first..rows.min(first + CHAIN);
        let at = rows.start * features..rows.end * features;
        let (x, dy, dx) = (&x[at.clone()], &dy[at.clone()], &mut dx[at]);
        chain::<S, T, R>(simd, layer, place, kept.rows(rows), x, dy, dx, columns);
        end_chain(simd, columns.dgain, block.dgain);
        end_chain(simd, columns.dbias, block.dbias);
    }
}

/// [`narrow::backward`](narrow::backward::backward), and rows shorter than a vector here; `R` is the number of lanes.
#[simd]
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn chain<S: Simd, T: Number, const R: usize>(
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
    if features >= R || rows < few(R) || !kept.are_plain() {
        return narrow::backward::backward::<S, T, R>(simd, layer, place, kept, x, dy, dx, columns);
    }
    let (mut x_copy, mut dy_copy, mut dx_copy) = ([[T::zero(); R]; R], [[T::zero(); R]; R], [[T::zero(); R]; R]);
    let (x_copy, dy_copy) = (x_copy.as_flattened_mut(), dy_copy.as_flattened_mut());
    let dx_copy = dx_copy.as_flattened_mut();
    let (mut dgain, mut dbias) = (padded::<T, R>(columns.dgain), padded::<T, R>(columns.dbias));
    let sums = &mut Columns { dgain: &mut dgain, dbias: &mut dbias };
    for first in (0..rows).step_by(R) {
        let count = R.min(rows - first);
        let at = first * features..(first + count) * features;
        let kept = kept.rows(first..first + count);
        if x.len() - at.start >= span(R, features) {
            let (x, dy, dx) = (&x[at.start..], &dy[at.start..], &mut dx[at.start..]);
            backward_group::<S, T, R>(simd, layer, &kept, x, dy, dx, sums);
        } else {
            x_copy[..at.len()].copy_from_slice(&x[at.clone()]);
            dy_copy[..at.len()].copy_from_slice(&dy[at.clone()]);
            backward_group::<S, T, R>(simd, layer, &kept, x_copy, dy_copy, dx_copy, sums);
            dx[at.clone()].copy_from_slice(&dx_copy[..at.len()]);
        }
    }
    columns.dgain.copy_from_slice(&dgain[..features]);
    columns.dbias.copy_from_slice(&dbias[..features]);
}

/// dx of at most `R` rows; adds to `columns`, which have a lane for each of a vector.
#[simd]
#[inline(never)]
fn backward_group<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let gain = layer.gain(0, features);
    let dy_rows = load_rows::<S, T, R>(simd, features, dy);
    let (x, dy) = (transpose(load_rows::<S, T, R>(simd, features, x)), transpose(dy_rows));
    let zero = splat(simd, T::zero());
    let zeros = [zero; R];
    let front = R - features;

    let (mean, low, rstd) = (padded(kept.mean), padded(kept.low), padded(kept.rstd));
    let mut group = backward::Group::<T, R> { mean, low, rstd, k: [T::zero(); R], m: [T::zero(); R] };
    let lanes = normalize::Lanes {
        mean: Vector::<S, T>::from_slice(simd, &group.mean),
        low: Vector::<S, T>::from_slice(simd, &group.low),
        rstd: Vector::<S, T>::from_slice(simd, &group.rstd),
    };
    let (mut q, mut qd, mut pd) = (zeros, zeros, zeros);
    for j in 0..features {
        (q[front + j], qd[front + j], pd[j]) = lanes.terms(splat(simd, gain[j]), x[j], dy[j]);
    }
    group.set_coefficients(layer, pairs(q).as_slice(), pairs(qd).as_slice());

    let second = Second {
        row: lanes,
        k: Vector::<S, T>::from_slice(simd, &group.k),
        m: Vector::<S, T>::from_slice(simd, &group.m),
    };
    let mut result = zeros;
    for j in 0..features {
        result[j] = second.dx::<_, true>(splat(simd, gain[j]), x[j], dy[j]);
    }
    store_rows::<S, T, R>(features, &transpose(result), dx);

    let mut dgain = Vector::<S, T>::from_slice(simd, columns.dgain);
    let mut dbias = Vector::<S, T>::from_slice(simd, columns.dbias);
    let pd = transpose(pd);
    for r in 0..kept.mean.len() {
        dgain += pd[r];
        dbias += dy_rows[r];
    }
    dgain.store_slice(columns.dgain);
    dbias.store_slice(columns.dbias);
}

/// The first elements, and zeros where there are fewer.
#[inline(always)]
fn padded<T: Number, const R: usize>(numbers: &[T]) -> [T; R] {
    if let Some(first) = numbers.first_chunk() {
        return *first;
    }
    let mut lanes = [T::zero(); R];
    lanes[..numbers.len()].copy_from_slice(numbers);
    lanes
}

/// `R` rows, each in the first lanes of a vector.
#[inline(always)]
fn load_rows<S: Simd, T: Number, const R: usize>(simd: S, features: usize, from: &[T]) -> [Vector<S, T>; R] {
    let from = &from[..span(R, features)];
    let mut rows = [splat(simd, T::zero()); R];
    for r in 0..R {
        rows[r] = Vector::<S, T>::from_slice(simd, &from[r * features..][..R]);
    }
    rows
}

/// In order: the lanes behind a row are overwritten by the next.
#[inline(always)]
fn store_rows<S: Simd, T: Number, const R: usize>(features: usize, rows: &[Vector<S, T>; R], to: &mut [T]) {
    let to = &mut to[..span(R, features)];
    for r in 0..R {
        rows[r].store_slice(&mut to[r * features..][..R]);
    }
}

/// Lane i of vector j is lane j of vector i.
///
/// Each step moves the highest bit of the lane to the vector's number, and that of the vector's number to the lane.
#[inline(always)]
fn transpose<S: Simd, V: SimdBase<S>, const R: usize>(mut vectors: [V; R]) -> [V; R] {
    for _ in 0..R.ilog2() {
        let from = vectors;
        for i in 0..R / 2 {
            vectors[2 * i] = from[i].zip_low(from[i + R / 2]);
            vectors[2 * i + 1] = from[i].zip_high(from[i + R / 2]);
        }
    }
    vectors
}

#[cfg(test)]
mod tests {
    use fearless_simd::{Level, dispatch};

    use super::*;
    use crate::kernels::moments::Spread;
    use crate::simd::{available, name};

    /// y, mean, low, rstd, exponent, dx, dgain and dbias.
    type Outcome<T> = [(&'static str, Vec<T>); 8];

    /// By way of the kernels here or by those for rows of any length.
    #[simd]
    fn run<S: Simd, T: Number, const R: usize>(
        simd: S,
        here: bool,
        place: Place,
        layer: &Layer<'_, T>,
        x: &[T],
        dy: &[T],
    ) -> Outcome<T> {
        let (rows, garbage) = (x.len() / layer.features, T::nearest(0.1));
        let (mut y, mut dx) = (vec![garbage; x.len()], vec![garbage; x.len()]);
        let [mut mean, mut low, mut rstd] = [const { Vec::new() }; 3];
        [&mut mean, &mut low, &mut rstd].into_iter().for_each(|numbers| numbers.resize(rows, garbage));
        let mut exponent = vec![7; rows];
        let saved = SavedRows { mean: &mut mean, low: &mut low, rstd: &mut rstd, exponent: &mut exponent };
        if here {
            forward::<S, T, R>(simd, layer, place, x, &mut y, Some(saved));
        } else {
            normalize::forward(simd, layer, x, &mut y, Some(saved));
        }
        let kept = KeptRows { mean: &mean, low: &low, rstd: &rstd, exponent: &exponent };
        let (mut dgain, mut dbias) = (vec![-T::zero(); layer.features], vec![garbage; layer.features]);
        let columns = &mut Columns { dgain: &mut dgain, dbias: &mut dbias };
        if here {
            backward::<S, T, R>(simd, layer, place, kept, x, dy, &mut dx, columns, None);
        } else {
            backward::backward(simd, layer, Place::Core, kept, x, dy, &mut dx, columns);
        }
        let exponent = exponent.iter().map(|&exponent| T::nearest(exponent.into())).collect();
        [
            ("y", y),
            ("mean", mean),
            ("low", low),
            ("rstd", rstd),
            ("exponent", exponent),
            ("dx", dx),
            ("dgain", dgain),
            ("dbias", dbias),
        ]
    }

    /// One NaN is like another.
    fn same<T: Number>(a: T, b: T) -> bool {
        a.is_nan() && b.is_nan() || a.integer_decode() == b.integer_decode()
    }

    fn check<T: Number, const R: usize>(level: Level, kinds: &[fn(T, usize) -> T]) {
        let number = |i: usize, prime: usize| T::nearest((i * prime % 1009) as f64 / 300.0 - 1.5);
        let short = (1..=R).flat_map(|features| (1..=3 * R + 1).map(move |rows| (features, rows)));
        // Of every number of vectors; all `R` rows of a group, and some that are left.
        let narrow = (2..=26).flat_map(|half| [half * R / 2, half * R / 2 + 1].map(|features| (features, 2 * R + 3)));
        // Of each kind of kernel that takes rows one by one or two by two, of one block and of several.
        let wide = [20, 57, 121, 128, 129, 257].map(|vectors| (vectors * R - 3, 5));
        for (features, rows) in short.chain(narrow).chain(wide) {
            let x: Vec<_> = (0..rows * features)
                .map(|i| kinds[(rows + i / features) % kinds.len()](number(i, 37), i % features))
                .collect();
            let dy: Vec<_> = (0..rows * features)
                .map(|i| match i + rows {
                    // Also where two vectors have an element in common.
                    place if place % 1009 == 0 => T::infinity(),
                    place if place % 5 == 0 => -T::zero(),
                    _ => number(i, 31),
                })
                .collect();
            let gain: Vec<_> = (0..features)
                .map(|i| if (i + 17 * features) % 1009 == 0 { T::infinity() } else { number(i + rows, 41) })
                .collect();
            let bias: Vec<_> = (0..features).map(|i| if i % 2 == 0 { -T::zero() } else { number(i, 43) }).collect();
            let eps = if rows % 2 == 0 { 0.0 } else { 1e-5 };
            let spread = Spread::about_mean(T::nearest(eps));
            let centred = (features + rows) % 4 > 0;
            let layer = &Layer {
                features,
                gain: (rows % 3 > 0).then_some(&gain),
                bias: (rows % 4 > 0 && centred).then_some(&bias),
                spread: if centred { spread } else { Spread::about_zero(T::nearest(eps)) },
            };
            for place in [Place::Core, Place::Shared, Place::Memory] {
                let got = dispatch!(level, simd => run::<_, _, R>(simd, true, place, layer, &x, &dy));
                let expected = dispatch!(level, simd => run::<_, _, R>(simd, false, place, layer, &x, &dy));
                for ((what, got), (_, expected)) in got.iter().zip(&expected) {
                    // About 0 there is no bias, and nobody reads what becomes of its gradient.
                    if !centred && *what == "dbias" {
                        continue;
                    }
                    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
                        assert!(
                            same(got, expected),
                            "{what}[{i}] of {rows} x {features}, ε = {eps:e}, {}: got {got:e}, expected {expected:e}",
                            name(level),
                        );
                    }
                }
            }
        }
    }

    fn check_all<T: Number, const R: usize>() {
        let tame: [fn(T, usize) -> T; 6] = [
            |x, _| x,
            |x, j| if j % 2 == 0 { -T::zero() } else { x },
            |x, _| x + T::nearest(1000.0),
            |_, _| -T::zero(),
            |_, _| T::nearest(0.7),
            |x, _| x * T::nearest(1e-3),
        ];
        let wild: [fn(T, usize) -> T; 10] = [
            |x, _| x,
            |x, j| if j == 2 { T::nan() } else { x },
            |x, j| if j == 0 { T::infinity() } else { x },
            |x, j| if j == 1 { T::neg_infinity() } else { x },
            |_, _| -T::infinity(),
            |x, _| x * T::max_value().sqrt(),
            |x, _| x / T::max_value().sqrt(),
            |_, _| T::max_value(),
            |x, _| x * T::min_positive_value(),
            |_, j| if j % 2 == 0 { -T::zero() } else { T::zero() },
        ];
        // NaN in every place of a group, beside rows that are backward's to take as they are.
        let nan: [fn(T, usize) -> T; 3] = [|x, _| x, |x, _| x - T::one(), |x, j| if j == 0 { T::nan() } else { x }];
        for level in available() {
            check::<T, R>(level, &tame);
            check::<T, R>(level, &wild);
            check::<T, R>(level, &nan);
        }
    }

    #[test]
    fn f32_bits_are_those_of_rows_of_any_length() {
        check_all::<f32, { f32::LANES }>();
    }

    #[test]
    fn f64_bits_are_those_of_rows_of_any_length() {
        check_all::<f64, { f64::LANES }>();
    }
}
