//! Work cut into pieces, and the buffers of a thread.
//!
//! Threads fill places that were fixed beforehand; they never decide an order of additions. The only file that
//! knows rayon.

use std::ops::Range;

use crate::number::{Number, Scratch};

/// Work that can be cut in two.
pub(crate) trait Job: Sized + Send {
    /// How many parts it can be cut into.
    fn pieces(&self) -> usize;

    /// The first `pieces` pieces, and the others.
    fn split(self, pieces: usize) -> (Self, Self);

    /// Does all of it, on this thread.
    fn run(self);
}

/// Ranges of at most `step` that make up `all`. Not `step_by`, whose divisions are felt where there is one short row.
pub(crate) fn steps(mut all: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    std::iter::from_fn(move || {
        let next = all.start..(all.start + step).min(all.end);
        all.start = next.end;
        (!next.is_empty()).then_some(next)
    })
}

/// Bytes below which another thread costs more than it brings, for a thread of the pool.
const WORTH_THREADS: usize = 768 * 1024;

/// The same for any other thread, which hands the work over and is woken at its end: that takes some 15 µs.
const WORTH_WAKING: usize = 3 * 1024 * 1024;

/// Whether several threads pay for a job that touches that many bytes.
pub(crate) fn pays(bytes: usize) -> bool {
    bytes >= WORTH_THREADS && (bytes >= WORTH_WAKING || in_pool()) && threads() > 1
}

/// Does a job that touches that many bytes, on the pool this thread is in if that pays.
pub(crate) fn run<J: Job>(job: J, bytes: usize) {
    if pays(bytes) && job.pieces() > 1 { fork(job) } else { job.run() }
}

/// Threads of the pool this thread is in.
#[cfg(feature = "rayon")]
pub(crate) fn threads() -> usize {
    rayon::current_num_threads()
}

#[cfg(not(feature = "rayon"))]
pub(crate) fn threads() -> usize {
    1
}

/// Whether this thread belongs to a pool.
#[cfg(feature = "rayon")]
fn in_pool() -> bool {
    rayon::current_thread_index().is_some()
}

#[cfg(not(feature = "rayon"))]
fn in_pool() -> bool {
    false
}

/// Calls `f` on a thread of the pool: what it does there in parallel need not wake the pool each time.
#[cfg(feature = "rayon")]
pub(crate) fn enter<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    if threads() == 1 || in_pool() { f() } else { rayon::scope(|_| f()) }
}

#[cfg(not(feature = "rayon"))]
pub(crate) fn enter<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    f()
}

/// Does both, at the same time where there is a thread for it.
#[cfg(feature = "rayon")]
fn join(first: impl FnOnce() + Send, second: impl FnOnce() + Send) {
    rayon::join(first, second);
}

#[cfg(not(feature = "rayon"))]
fn join(first: impl FnOnce() + Send, second: impl FnOnce() + Send) {
    first();
    second();
}

/// Does a job on all threads of the pool this thread is in.
pub(crate) fn fork<J: Job>(job: J) {
    match job.pieces() {
        0 | 1 => job.run(),
        pieces => {
            let (first, second) = job.split(pieces / 2);
            join(|| fork(first), || fork(second));
        }
    }
}

/// Has `f` fill each `width` places of `places`, with their number; together that reads about `bytes`.
pub(crate) fn fill<N: Send>(places: &mut [N], width: usize, bytes: usize, f: impl Fn(usize, &mut [N]) + Sync) {
    run(Fill { places, width, first: 0, f: &f }, bytes);
}

struct Fill<'a, N, F> {
    places: &'a mut [N],
    width: usize,
    first: usize,
    f: &'a F,
}

/// Places that are filled by one task.
const FILLED_BY_ONE: usize = 8;

impl<N: Send, F: Fn(usize, &mut [N]) + Sync> Job for Fill<'_, N, F> {
    fn pieces(&self) -> usize {
        self.places.len().div_ceil(self.width * FILLED_BY_ONE)
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let filled = pieces * FILLED_BY_ONE;
        let (first, second) = self.places.split_at_mut(filled * self.width);
        (Self { places: first, ..self }, Self { places: second, first: self.first + filled, ..self })
    }

    fn run(self) {
        for (index, place) in self.places.chunks_mut(self.width).enumerate() {
            (self.f)(self.first + index, place);
        }
    }
}

/// Lends `f` a buffer of `len` elements that starts at a cache line, whatever is in them. It is this thread's, and kept
/// for the next call.
pub(crate) fn lend<T: Number, R>(len: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
    if len == 0 {
        return f(&mut []);
    }
    lend_of(
        |scratch: &mut Scratch<T>| &mut scratch.elements,
        |buffer| {
            let lines = grown(buffer, len + T::LANES);
            let start = lines.as_ptr().align_offset(size_of::<T::Chunk>()).min(T::LANES);
            f(&mut lines[start..start + len])
        },
    )
}

/// Lends `f` a buffer of `len` wide numbers, whatever is in them.
pub(crate) fn lend_wide<T: Number, R>(len: usize, f: impl FnOnce(&mut [T::Wide]) -> R) -> R {
    lend_of::<T, _, _>(|scratch| &mut scratch.wide, |buffer| f(grown(buffer, len)))
}

/// Lends `f` a copy of these flags, side by side.
#[cfg(feature = "rnn")]
pub(crate) fn lend_flags<'a, T: Number, R>(flags: impl Iterator<Item = &'a bool>, f: impl FnOnce(&[bool]) -> R) -> R {
    lend_of::<T, _, _>(
        |scratch| &mut scratch.flags,
        |buffer| {
            buffer.clear();
            buffer.extend(flags);
            f(buffer)
        },
    )
}

/// Lends `f` one of the buffers that `kind` finds. Another job may ask for one on this thread before `f` returns: it gets the
/// next.
fn lend_of<T: Number, N, R>(kind: impl Fn(&mut Scratch<T>) -> &mut Vec<Vec<N>>, f: impl FnOnce(&mut Vec<N>) -> R) -> R {
    let mut buffer = T::with_scratch(|scratch| kind(scratch).pop()).unwrap_or_default();
    let result = f(&mut buffer);
    T::with_scratch(|scratch| kind(scratch).push(buffer));
    result
}

fn grown<N: Copy + Default>(buffer: &mut Vec<N>, len: usize) -> &mut [N] {
    if buffer.len() < len {
        buffer.resize(len, N::default());
    }
    &mut buffer[..len]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_that_are_lent_within_each_other_are_kept() {
        let lend_two = || {
            lend(1000, |first: &mut [f32]| {
                lend(3000, |second: &mut [f32]| assert_ne!(first.as_ptr(), second.as_ptr()));
            });
        };
        lend_two();
        assert_eq!(allocation_counter::measure(lend_two).count_total, 0);
    }
}
