//! Sums and maps over the blocks of some rows, for kernels whose terms differ and whose speed is that of memory.
//!
//! A sum has one vector of partial sums in a block, then the tree; blocks are joined in order, wide.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};

use crate::number::{Number, Wide};
use crate::prefetch::Prefetch;
use crate::simd::{Tail, Vector, front, load, splat, tree};

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
        wide[n] = wide[n].add(tree(simd, &mut [sums[n]])[0].into());
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

/// Element i of `to` = f of the elements i of `from`; stores meet cache lines.
#[inline(always)]
pub(crate) fn map<S: Simd, T: Number, const A: usize>(
    simd: S,
    from: [&[T]; A],
    to: &mut [T],
    f: impl Fn([Vector<S, T>; A]) -> Vector<S, T>,
) {
    map_ahead(simd, from, [to], [Prefetch::NONE; A], f);
}

/// [`map`] to each of `to`, the first of which the stores meet at cache lines; what follows in `from` is asked for meanwhile.
#[inline(always)]
pub(crate) fn map_ahead<S: Simd, T: Number, const A: usize, const B: usize>(
    simd: S,
    from: [&[T]; A],
    mut to: [&mut [T]; B],
    prefetch: [Prefetch<'_, T>; A],
    f: impl Fn([Vector<S, T>; A]) -> Vector<S, T>,
) {
    let (tail, front) = (Tail::new(simd, to[0].len()), front(to[0]));
    if front > 0 {
        let first = f(first_of(simd, from));
        for to in &mut to {
            first.store_array(&mut T::chunks_mut(to).0[0]);
        }
    }
    let count = (tail.len() - front) / T::LANES;
    let chunks = chunks_from(from, front, count);
    for i in 0..count {
        Prefetch::lines(prefetch, front + i * T::LANES);
        let value = f(vectors_at::<S, T, A>(simd, chunks, i));
        for to in &mut to {
            value.store_array(&mut T::chunks_mut(&mut to[front..]).0[i]);
        }
    }
    if front + count * T::LANES < tail.len() {
        let last = f(last_of(simd, &tail, from));
        for to in &mut to {
            tail.store_all(last, to);
        }
    }
}

/// `to[i]` = f of itself and the elements i; stores meet cache lines.
#[inline(always)]
pub(crate) fn update<S: Simd, T: Number, const A: usize>(
    simd: S,
    to: &mut [T],
    from: [&[T]; A],
    f: impl Fn(Vector<S, T>, [Vector<S, T>; A]) -> Vector<S, T>,
) {
    let (tail, front) = (Tail::new(simd, to.len()), front(to));
    // What is written twice must be read before.
    let first = (front > 0).then(
        #[inline(always)]
        || f(load::<S, T>(simd, &T::chunks(to).0[0]), first_of(simd, from)),
    );
    let last = f(tail.load_all(to), last_of(simd, &tail, from));
    let places = T::chunks_mut(&mut to[front..]).0;
    let count = places.len();
    let chunks = chunks_from(from, front, count);
    for (i, place) in places.iter_mut().enumerate() {
        f(load::<S, T>(simd, place), vectors_at::<S, T, A>(simd, chunks, i)).store_array(place);
    }
    if let Some(first) = first {
        first.store_array(&mut T::chunks_mut(to).0[0]);
    }
    if front + count * T::LANES < tail.len() {
        tail.store_all(last, to);
    }
}

/// The first vector of each array.
#[inline(always)]
pub(crate) fn first_of<S: Simd, T: Number, const A: usize>(simd: S, from: [&[T]; A]) -> [Vector<S, T>; A] {
    vectors_at::<S, T, A>(simd, chunks_from(from, 0, 1), 0)
}

/// The last elements of each array, a vector of them.
#[inline(always)]
pub(crate) fn last_of<S: Simd, T: Number, const A: usize>(
    simd: S,
    tail: &Tail<S, T>,
    from: [&[T]; A],
) -> [Vector<S, T>; A] {
    let mut vectors = [splat(simd, T::zero()); A];
    for a in 0..A {
        vectors[a] = tail.load_all(from[a]);
    }
    vectors
}

/// `count` vectors of each array, from element `start` on.
#[inline(always)]
pub(crate) fn chunks_from<T: Number, const A: usize>(from: [&[T]; A], start: usize, count: usize) -> [&[T::Chunk]; A] {
    let mut chunks: [&[T::Chunk]; A] = [&[]; A];
    for a in 0..A {
        chunks[a] = &T::chunks(&from[a][start..]).0[..count];
    }
    chunks
}

/// Vector `i` of each array. A loop: what `array::map` calls is compiled without the instruction set.
#[inline(always)]
pub(crate) fn vectors_at<S: Simd, T: Number, const A: usize>(
    simd: S,
    chunks: [&[T::Chunk]; A],
    i: usize,
) -> [Vector<S, T>; A] {
    let mut vectors = [splat(simd, T::zero()); A];
    for a in 0..A {
        vectors[a] = load::<S, T>(simd, &chunks[a][i]);
    }
    vectors
}
