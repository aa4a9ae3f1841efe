//! Calls into the caller's memory allocate nothing once `saved` and this thread's buffers have grown.
//!
//! Of calls that run on one thread: where several share the work, there are some small blocks for that.

mod common;

use allocation_counter::measure;
use common::{Norm, Number};
use layernorm::ndarray::{Array, Axis, Dimension, Ix2, Ix3, Slice};
use layernorm::{Element, LayerNorm, RmsNorm};

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
    let count = |name: &str, call: &mut dyn FnMut()| {
        call();
        let warm = measure(call);
        assert_eq!(warm.count_total, 0, "{name}, {place}, {:?}: {} bytes", x.shape(), warm.bytes_total);
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

fn check_norms<T: Number>()
where
    LayerNorm<T>: Norm<T>,
    RmsNorm<T>: Norm<T>,
{
    let calls = || {
        check_shapes::<T, LayerNorm<T>>();
        check_shapes::<T, RmsNorm<T>>();
    };
    #[cfg(feature = "rayon")]
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool").install(calls);
    #[cfg(not(feature = "rayon"))]
    calls();
}

#[test]
fn f32_calls_allocate_nothing_once_warm() {
    check_norms::<f32>();
}

#[test]
fn f64_calls_allocate_nothing_once_warm() {
    check_norms::<f64>();
}

/// The counter would tell.
#[test]
fn a_fresh_result_is_counted() {
    let (norm, x) = (LayerNorm::<f32>::new(100), standard::<f32, _>(Ix2(4, 100)));
    let fresh = measure(|| drop(norm.forward(&x).expect("the shapes fit")));
    assert!(fresh.count_total > 0);
}
