//! Matrix products on several threads: nearly all the time of a step.
//!
//! `general_mat_mul` runs on one thread. Here each thread gets some columns of the result and the columns of `b` they
//! come from. Columns, because in x·W and dy·Wᵀ `b` is much larger than `a`, and each thread rearranges its own part of
//! it; were the rows shared out, each would rearrange the whole. At 4 rows that takes twice the time.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use layernorm::ndarray::{ArrayRef2, Axis, linalg::general_mat_mul};

/// Threads to use. Asked once: the answer may come from files of the system.
static THREADS: LazyLock<usize> = LazyLock::new(|| thread::available_parallelism().map_or(1, usize::from));

/// Products that are being taken: trainings side by side share the threads.
static PRODUCTS: AtomicUsize = AtomicUsize::new(0);

/// Multiplications for each thread, at least. Measured: 4 million are faster on two threads, 1.3 million on one.
const WORTH_A_THREAD: usize = 1 << 20;

/// Overwrites `c` with a·b.
///
/// An element of `c` is the same sum in the same order on any number of threads.
pub(crate) fn matmul(a: &ArrayRef2<f32>, b: &ArrayRef2<f32>, c: &mut ArrayRef2<f32>) {
    let work = a.nrows() * a.ncols() * b.ncols();
    let products = 1 + PRODUCTS.fetch_add(1, Ordering::Relaxed);
    matmul_on((*THREADS / products).min(work / WORTH_A_THREAD), a, b, c);
    PRODUCTS.fetch_sub(1, Ordering::Relaxed);
}

fn matmul_on(threads: usize, a: &ArrayRef2<f32>, b: &ArrayRef2<f32>, c: &mut ArrayRef2<f32>) {
    if threads < 2 {
        return general_mat_mul(1.0, a, b, 0.0, c);
    }
    let columns = b.ncols().div_ceil(threads);
    let parts = c.axis_chunks_iter_mut(Axis(1), columns).zip(b.axis_chunks_iter(Axis(1), columns));
    let a = a.view();
    thread::scope(|scope| {
        for (mut c, b) in parts {
            scope.spawn(move || general_mat_mul(1.0, &a, &b, 0.0, &mut c));
        }
    });
}

#[cfg(test)]
mod tests {
    use layernorm::ndarray::Array2;

    use super::*;

    #[test]
    fn threads_give_the_bits_of_one() {
        let pattern = |(i, j): (usize, usize)| ((i * 31 + j * 17) % 101) as f32 / 101.0 - 0.4;
        let (a, b) = (Array2::from_shape_fn((13, 611), pattern), Array2::from_shape_fn((611, 131), pattern));
        let one_thread = a.dot(&b);
        for threads in 2..9 {
            let mut c = Array2::from_elem(one_thread.dim(), f32::NAN);
            matmul_on(threads, &a, &b, &mut c);
            for (at, &got) in c.indexed_iter() {
                let expected = one_thread[at];
                assert_eq!(got.to_bits(), expected.to_bits(), "{threads} threads, c{at:?}: {got}, {expected}");
            }
        }
    }
}
