//! Calls into the caller's memory allocate nothing once `saved` and the threads' buffers have grown; where several threads share
//! the work, a few small blocks, however many rows there are.

mod common;

#[cfg(feature = "rayon")]
use std::sync::mpsc::{self, TryRecvError};

use allocation_counter::measure;
use common::{Norm, Number};
use layernorm::ndarray::{Array, Axis, Dimension, Ix2, Ix3, Ix4, IxDyn, Slice};
use layernorm::{Element, LayerNorm, RmsNorm};

/// Blocks that a call allocates on a pool of one or two threads, of which this is one.
///
/// A thread's counter knows that thread alone. So the other one counts too while it does its part of the call.
#[cfg(feature = "rayon")]
fn allocated(call: &mut (dyn FnMut() + Send)) -> u64 {
    let (at_work, ended) = mpsc::channel::<()>();
    let here = move || {
        let here = measure(call).count_total;
        drop(at_work);
        here
    };
    let there = move || {
        while ended.try_recv() == Err(TryRecvError::Empty) {
            rayon::yield_now();
        }
    };
    let (here, there) = rayon::join(here, || measure(there).count_total);
    here + there
}

/// On two threads one for their shares, and the first buffers of a thread that had no part in such a call so far.
#[cfg(feature = "rayon")]
fn most() -> u64 {
    if rayon::current_num_threads() == 1 { 0 } else { 8 }
}

#[cfg(not(feature = "rayon"))]
fn allocated(call: &mut (dyn FnMut() + Send)) -> u64 {
    measure(call).count_total
}

#[cfg(not(feature = "rayon"))]
fn most() -> u64 {
    0
}

/// Makes every call twice, and counts what the second time allocates.
fn check<T: Number, D: Dimension, N: Norm<T>>(
    norm: &N,
    place: &str,
    x: &Array<T, D>,
    dy: &Array<T, D>,
    y: &mut Array<T, D>,
    dx: &mut Array<T, D>,
) {
    let (mut inplace, mut second, mut saved) = (x.clone(), dx.clone(), N::Saved::default());
    let (mut grad, along) = (norm.parameters(), norm.parameters());
    let count = |name: &str, call: &mut (dyn FnMut() + Send)| {
        call();
        let blocks = allocated(call);
        assert!(blocks <= most(), "{name}, {place}, {:?}: {blocks} blocks", x.shape());
    };
    let fits = "the shapes fit";
    count("forward_into", &mut || norm.forward_into(x, y, &mut saved).expect(fits));
    count("backward_into", &mut || norm.backward_into(x, &saved, dy, dx, &mut grad).expect(fits));
    count("infer_into", &mut || norm.infer_into(x, y).expect(fits));
    count("infer_inplace", &mut || norm.infer_inplace(&mut inplace).expect(fits));
    count("forward_inplace", &mut || norm.forward_inplace(&mut inplace, &mut saved).expect(fits));
    count("backward_inplace", &mut || norm.backward_inplace(x, &saved, &mut inplace, &mut grad).expect(fits));
    count("backward_from_output", &mut || {
        norm.backward_from_output(x, &saved, &mut inplace, &mut grad).expect(fits);
    });
    count("backward_from_normalized", &mut || {
        norm.backward_from_normalized(x, &saved, &mut inplace, &mut grad).expect(fits);
    });
    count("forward_residual_into", &mut || {
        norm.forward_residual_into(x, dy, y, &mut second, &mut saved).expect(fits);
    });
    count("forward_dropout_residual_into", &mut || {
        norm.forward_dropout_residual_into(x, dy, dy, y, &mut second, &mut saved).expect(fits);
    });
    count("backward_residual_into", &mut || {
        norm.backward_residual_into(x, &saved, dy, Some(dy), dx, &mut grad).expect(fits);
    });
    count("backward_dropout_residual_into", &mut || {
        norm.backward_dropout_residual_into(x, &saved, dy, Some(dy), dy, dx, &mut second, &mut grad).expect(fits);
    });
    count("jvp_into", &mut || norm.jvp_into(x, &saved, dy, &along, dx).expect(fits));
    count("double_backward_into", &mut || {
        norm.double_backward_into(x, &saved, dy, dy, &along, dx, &mut second, &mut grad).expect(fits);
    });
}

/// An array of that shape in standard layout, from 0 to 1.
fn standard<T: Element, D: Dimension>(shape: D) -> Array<T, D> {
    let mut i = 0;
    Array::from_shape_simple_fn(shape, || {
        i += 1;
        <T as num_traits::NumCast>::from(i % 251).expect("a small number")
            / <T as num_traits::NumCast>::from(251).expect("a small number")
    })
}

/// The same shape with its axes in the opposite order in memory, and every second element skipped along the last.
fn strided<T: Element, D: Dimension>(shape: D) -> Array<T, D> {
    let mut memory = shape.clone();
    memory.slice_mut().reverse();
    let last = memory.ndim() - 1;
    memory[last] *= 2;
    let mut array = standard::<T, D>(memory);
    array.slice_axis_inplace(Axis(last), Slice::new(0, None, 2));
    array.reversed_axes()
}

/// Both layouts for inputs and outputs.
fn check_layouts<T: Number, D: Dimension, N: Norm<T>>(norm: &N, shape: &D) {
    let [flat, across] = [standard::<T, D>, strided].map(|make| make(shape.clone()));
    assert!(across.shape() == shape.slice() && across.as_slice().is_none(), "another layout");
    check(norm, "side by side", &flat, &flat, &mut flat.clone(), &mut flat.clone());
    check(norm, "strided inputs", &across, &across, &mut flat.clone(), &mut flat.clone());
    let mut outputs = [strided(shape.clone()), strided(shape.clone())];
    let [y, dx] = &mut outputs;
    check(norm, "strided outputs", &flat, &flat, y, dx);
    check(norm, "all strided", &across, &across, y, dx);
}

fn check_shapes<T: Number, N: Norm<T>>() {
    // A gain of 1 is none too small to divide by.
    let plain = |shape: &[usize]| N::drawn(shape).gain(Array::ones(shape)).bias(Array::ones(shape));
    // One block of rows, and some more.
    for (rows, features) in [(1, 5), (32, 768), (64, 100), (65, 100), (300, 33), (3, 9000)] {
        check_layouts(&plain(&[features]), &Ix2(rows, features));
        check_layouts(&plain(&[features]).zero_centred(), &Ix2(rows, features));
    }
    for (shape, trailing) in [([4, 8, 96], 1), ([16, 3, 25], 2), ([2, 33, 10], 1)] {
        check_layouts(&plain(&shape[3 - trailing..]), &Ix3(shape[0], shape[1], shape[2]));
    }
}

fn on_one_thread(calls: impl FnOnce() + Send) {
    #[cfg(feature = "rayon")]
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool").install(calls);
    #[cfg(not(feature = "rayon"))]
    calls();
}

fn check_norms<T: Number>()
where
    LayerNorm<T>: Norm<T>,
    RmsNorm<T>: Norm<T>,
{
    on_one_thread(|| {
        check_shapes::<T, LayerNorm<T>>();
        check_shapes::<T, RmsNorm<T>>();
    });
}

#[test]
fn f32_calls_allocate_nothing_once_warm() {
    check_norms::<f32>();
}

#[test]
fn f64_calls_allocate_nothing_once_warm() {
    check_norms::<f64>();
}

fn check_four_axes<T: Number, N: Norm<T>>() {
    for (shape, trailing) in [([4, 3, 8, 96], 1), ([5, 16, 3, 25], 2), ([2, 33, 2, 10], 3)] {
        let normalized = &shape[4 - trailing..];
        let norm = N::drawn(normalized).gain(Array::ones(normalized));
        check_layouts(&norm, &Ix4(shape[0], shape[1], shape[2], shape[3]));
        check_layouts(&norm, &IxDyn(&shape));
    }
}

/// Of one layer and type: each rank takes long to compile.
#[test]
fn calls_on_four_axes_allocate_nothing_once_warm() {
    on_one_thread(check_four_axes::<f32, LayerNorm<f32>>);
}

#[cfg(feature = "rayon")]
fn check_threads<T: Number, N: Norm<T>>() {
    for rows in [2000, 20_000] {
        check_layouts(&N::drawn(&[64]).gain(Array::ones(&[64][..])), &Ix2(rows, 64));
    }
}

#[cfg(feature = "rayon")]
#[test]
fn two_threads_allocate_a_few_blocks_however_many_rows_there_are() {
    rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("a pool").install(|| {
        check_threads::<f32, LayerNorm<f32>>();
        check_threads::<f64, RmsNorm<f64>>();
    });
}

/// The counter would tell.
#[test]
fn a_fresh_result_is_counted() {
    let (norm, x) = (LayerNorm::<f32>::new(100), standard::<f32, _>(Ix2(4, 100)));
    let fresh = measure(|| drop(norm.forward(&x).expect("the shapes fit")));
    assert!(fresh.count_total > 0);
}
