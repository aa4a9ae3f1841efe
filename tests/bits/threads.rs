//! Calls on pools of several sizes, and from outside of a pool.

#[cfg(feature = "rayon")]
use std::sync::OnceLock;

pub(crate) const THREADS: [usize; 4] = [1, 2, 3, 8];

/// Threads of the global pool, which works for those that are in none, as is the one that a test runs on.
#[cfg(feature = "rayon")]
const GLOBAL: usize = 3;

/// Calls `f` on a pool of so many threads, or, if the global one has as many, outside of a pool.
#[cfg(feature = "rayon")]
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    static POOLS: OnceLock<Vec<rayon::ThreadPool>> = OnceLock::new();
    if threads == GLOBAL {
        static READY: OnceLock<()> = OnceLock::new();
        // Another test may have used it by then: it has a thread for each CPU.
        READY.get_or_init(|| _ = rayon::ThreadPoolBuilder::new().num_threads(GLOBAL).build_global());
        return f();
    }
    let build = |&threads: &usize| rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pools = POOLS.get_or_init(|| THREADS.iter().map(build).collect::<Result<_, _>>().expect("threads start"));
    let pool = pools.iter().find(|pool| pool.current_num_threads() == threads).expect("a pool of each size");
    pool.install(f)
}

#[cfg(not(feature = "rayon"))]
pub(crate) fn on_threads<R>(_threads: usize, f: impl FnOnce() -> R) -> R {
    f()
}
