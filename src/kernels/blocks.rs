//! Sums and maps over the blocks of some rows, for kernels whose terms differ and whose speed is that of memory.
//!
//! A sum has one vector of partial sums in a block, then the tree; blocks are joined in order, wide.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};

use crate::number::{Number, Wide};
use crate::simd::{Tail, Vector, load, splat, tree};

/// The blocks of a row.
#[inline(always)]
pub(crate) fn blocks<T: Number>(features: usize) -> impl Iterator<Item = Range<usize>> {
    (0..features).step_by(T::BLOCK).map(move |start| start..(start + T::BLOCK).min(features))
}

/// `N` sums over a block of `A` arrays; `fills` makes every term of a tail 0.
#[inline(always)]
pub(crate) fn sums<S: Simd, T: Number, const A: usize, const N: usize>(
    simd: S,
    arrays: [&[T]; A],
    fills: [Vector<S, T>; A],
    terms: impl Fn([Vector<S, T>; A]) -> [Vector<S, T>; N],
) -> [T::Wide; N] {
    let tail = Tail::new(simd, arrays[0].len());
    let mut sums = [splat(simd, T::zero()); N];
    let chunks = arrays.map(
        #[inline(always)]
        |array| T::chunks(array).0,
    );
    let mut values = fills;
    let count = chunks[0].len();
    for i in 0..count {
        for (value, chunks) in values.iter_mut().zip(chunks) {
            *value = load::<S, T>(simd, &chunks[i]);
        }
        sums = added::<S, T, N>(sums, terms(values));
    }
    if !tail.is_empty() {
        for a in 0..A {
            values[a] = tail.load(arrays[a], fills[a]);
        }
        sums = added::<S, T, N>(sums, terms(values));
    }
    let mut wide = [T::Wide::default(); N];
    for n in 0..N {
        wide[n] = wide[n].add(tree(&mut [sums[n]])[0].into());
    }
    wide
}

#[inline(always)]
fn added<S: Simd, T: Number, const N: usize>(
    mut sums: [Vector<S, T>; N],
    terms: [Vector<S, T>; N],
) -> [Vector<S, T>; N] {
    for n in 0..N {
        sums[n] += terms[n];
    }
    sums
}

/// The sums of a row with those of its next block.
pub(crate) fn joined<W: Wide, const N: usize>(mut sums: [W; N], next: [W; N]) -> [W; N] {
    for n in 0..N {
        sums[n] = sums[n].join(next[n]);
    }
    sums
}

/// `to[i]` = f of the elements i.
#[inline(always)]
pub(crate) fn map<S: Simd, T: Number, const A: usize>(
    simd: S,
    from: [&[T]; A],
    to: &mut [T],
    f: impl Fn([Vector<S, T>; A]) -> Vector<S, T>,
) {
    let tail = Tail::new(simd, to.len());
    let mut values = [splat(simd, T::zero()); A];
    for (i, place) in T::chunks_mut(to).0.iter_mut().enumerate() {
        for a in 0..A {
            values[a] = load::<S, T>(simd, &T::chunks(from[a]).0[i]);
        }
        f(values).store_array(place);
    }
    if !tail.is_empty() {
        for a in 0..A {
            values[a] = tail.load_all(from[a]);
        }
        tail.store_all(f(values), to);
    }
}

/// `to[i]` += f of the elements i.
#[inline(always)]
pub(crate) fn add<S: Simd, T: Number, const A: usize>(
    simd: S,
    from: [&[T]; A],
    to: &mut [T],
    f: impl Fn([Vector<S, T>; A]) -> Vector<S, T>,
) {
    let (tail, zero) = (Tail::new(simd, to.len()), splat(simd, T::zero()));
    let mut values = [zero; A];
    for (i, place) in T::chunks_mut(to).0.iter_mut().enumerate() {
        for a in 0..A {
            values[a] = load::<S, T>(simd, &T::chunks(from[a]).0[i]);
        }
        (load::<S, T>(simd, place) + f(values)).store_array(place);
    }
    if !tail.is_empty() {
        for a in 0..A {
            values[a] = tail.load_all(from[a]);
        }
        // What is in front of the tail has had its term.
        let term = tail.keep(f(values), zero);
        tail.store_all(tail.load_all(to) + term, to);
    }
}
