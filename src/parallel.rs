//! Work cut into pieces, and the buffers of a thread.
//!
//! Threads fill places that were fixed beforehand; they never decide an order of additions. The only file that
//! knows rayon.

use std::ops::Range;
use std::sync::Mutex;
#[cfg(feature = "rayon")]
use std::sync::atomic::AtomicBool;
use std::sync::atomic::{AtomicUsize, Ordering};
#[cfg(feature = "rayon")]
use std::thread;

use crate::number::{Number, Scratch};

/// Work that can be cut in two.
pub(crate) trait Job: Sized + Send {
    /// How many parts it can be cut into.
    fn pieces(&self) -> usize;

    /// The first `pieces` pieces, and the others.
    fn split(self, pieces: usize) -> (Self, Self);

    /// Does all of it, on this thread: as many pieces as it may have.
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

/// Bytes below which another thread costs more than it brings, for a thread of the pool. From here on, where calls follow each
/// other, two threads take 0.65 of the time of one. If the others sleep, waking them costs 20 µs: a call of just this size then
/// takes 1.5 times as long as on one thread, and two threads win from twice the size on.
const WORTH_THREADS: usize = 448 * 1024;

/// The same for any other thread, which has to wait until the pool has taken what is for it.
const WORTH_WAKING: usize = 896 * 1024;

/// Bytes for each thread, at least.
const EACH: usize = WORTH_THREADS / 2;

/// Whether several threads pay for a job that touches that many bytes.
pub(crate) fn pays(bytes: usize) -> bool {
    bytes >= WORTH_THREADS && (bytes >= WORTH_WAKING || in_pool()) && threads() > 1
}

/// Does a job that touches that many bytes, on several threads if that pays.
pub(crate) fn run<J: Job>(job: J, bytes: usize) {
    if pays(bytes) { share(job, threads().min(bytes / EACH)) } else { job.run() }
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
pub(crate) fn in_pool() -> bool {
    rayon::current_thread_index().is_some()
}

#[cfg(not(feature = "rayon"))]
pub(crate) fn in_pool() -> bool {
    false
}

/// Calls `f` on a thread of the pool: what it does there in parallel need not wake the pool each time.
#[cfg(all(feature = "rnn", feature = "rayon"))]
pub(crate) fn enter<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    if threads() == 1 || in_pool() { f() } else { rayon::scope(|_| f()) }
}

#[cfg(all(feature = "rnn", not(feature = "rayon")))]
pub(crate) fn enter<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    f()
}

/// Does a job on so many threads of the pool this thread is in, or, if it is in none, on this one and one less of the global
/// pool.
///
/// Each thread begins with a share of its own, part by part, and goes on with what is left of the others': a thread that wakes up
/// late finds little to do. With as many threads as the pool has, its share is the same in the next call, and in its cache.
///
/// Of a pool whose threads are busy with something else, one of its own threads does all by itself; any other has to wait until
/// the pool has looked at what was for it.
pub(crate) fn share<J: Job>(job: J, threads: usize) {
    let threads = threads.min(job.pieces());
    if threads < 2 {
        return job.run();
    }
    let mut shares = Vec::with_capacity(threads);
    let mut rest = job;
    for left in (2..=threads).rev() {
        let pieces = rest.pieces() / left;
        let (share, next) = rest.split(pieces);
        shares.push(Mutex::new(Some(share)));
        rest = next;
    }
    shares.push(Mutex::new(Some(rest)));
    let left = AtomicUsize::new(threads);
    on_threads(threads, &|thread| {
        for share in shares[thread..].iter().chain(&shares[..thread]) {
            while left.load(Ordering::Relaxed) > 0
                && let Some((part, last)) = take_part(share)
            {
                left.fetch_sub(usize::from(last), Ordering::Relaxed);
                part.run();
            }
        }
    });
}

/// Half of what is left of a share, if something is, and whether that was all.
fn take_part<J: Job>(share: &Mutex<Option<J>>) -> Option<(J, bool)> {
    let mut share = share.lock().expect("`split` does not panic");
    let job = share.take()?;
    let pieces = job.pieces();
    if pieces <= 1 {
        return Some((job, true));
    }
    let (part, rest) = job.split(pieces.div_ceil(2));
    *share = Some(rest);
    Some((part, false))
}

/// Has as many threads do `work`, of which this is one, with a number below `threads` that each has to itself, if the pool
/// has no more.
#[cfg(feature = "rayon")]
fn on_threads(threads: usize, work: &(impl Fn(usize) + Sync)) {
    fn of_pool(threads: usize, work: &(impl Fn(usize) + Sync)) {
        if threads == 1 {
            return work(rayon::current_thread_index().expect("a thread of a pool"));
        }
        rayon::join(|| of_pool(threads / 2, work), || of_pool(threads - threads / 2, work));
    }
    if in_pool() {
        return of_pool(threads, &|index| work(index % threads));
    }
    let done = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        scope.spawn(|_| {
            of_pool(threads - 1, &|index| work(1 + index % (threads - 1)));
            done.store(true, Ordering::Release);
        });
        work(0);
        // The others are at their last parts, as a rule: to fall asleep and be woken takes longer. Behind `done`, rayon has still
        // to say so.
        for _ in 0..YIELDS {
            let done = done.load(Ordering::Acquire);
            thread::yield_now();
            if done {
                break;
            }
        }
    });
}

/// Times that a thread outside of the pool looks whether the others are done before it falls asleep: some 80 µs.
#[cfg(feature = "rayon")]
const YIELDS: usize = 100;

#[cfg(not(feature = "rayon"))]
fn on_threads(_threads: usize, work: &impl Fn(usize)) {
    work(0);
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

    #[cfg(feature = "rayon")]
    #[test]
    fn threads_of_a_pool_and_others_do_every_piece_once() {
        let count_up = |places: usize| {
            let mut done = vec![0; places];
            fill(&mut done, 3, WORTH_WAKING, |index, places| {
                places.iter_mut().zip(3 * index + 1..).for_each(|(place, number)| *place += number);
            });
            assert!(done.iter().copied().eq(1..=places), "{done:?}");
        };
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
            for places in [0, 1, 24, 25, 1000] {
                pool.install(|| count_up(places));
                std::thread::scope(|scope| (0..3).for_each(|_| _ = scope.spawn(|| count_up(places))));
            }
        }
    }

    #[cfg(feature = "rayon")]
    #[test]
    fn a_thread_of_the_pool_waits_for_no_other_that_has_something_else_to_do() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool");
        let (free, blocked) = std::sync::mpsc::channel::<()>();
        pool.spawn(move || _ = blocked.recv());
        let mut done = vec![0; 1000];
        pool.install(|| fill(&mut done, 1, WORTH_WAKING, |_, places| places[0] += 1));
        drop(free);
        assert_eq!(done, [1; 1000]);
    }

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
