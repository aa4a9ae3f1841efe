//! What does not change a bit, and what changes the last ones.

use layernorm::ndarray::{Array3, ArrayView2, Axis, Slice, s};
use layernorm::rnn::{State, Weights};
use layernorm::{Element, Parameters, Recurrent};

use crate::common::{drawn, from, holes, largest_difference, lstm, state, with_each_cell};

type Results<T> = (Array3<T>, State<T>, Array3<T>, State<T>, Weights<T>);

/// Without a mask, where rows are done in groups, and with one.
fn run<T: Element, C: Recurrent<T>>(cell: &C, x: &Array3<T>) -> [Results<T>; 2] {
    let (steps, batch, _) = x.dim();
    let (initial, mask) = (state(cell, batch, 5), holes(steps, batch));
    [None, Some(&*mask)].map(|mask| {
        let (y, last, saved) = cell.forward(x, Some(&initial), mask).unwrap();
        let mut grad = cell.zero_grad();
        let (dx, d_initial) = cell.backward(x, &saved, &y, Some(&last), &mut grad).unwrap();
        (y, last, dx, d_initial, grad)
    })
}

/// Sizes from below to above what is worth several threads, and a copy of W_h.
#[cfg(feature = "rayon")]
#[test]
fn threads_do_not_change_a_bit() {
    use crate::common::on_threads;

    fn check<T: Element, C: Recurrent<T>>(cell: &C, name: &str) {
        for (steps, batch) in [(3, 1), (4, 33), (5, 150), (9, 33)] {
            let x = drawn::<T, _>((steps, batch, cell.input()), 1);
            let right = on_threads(1, || run(cell, &x));
            for threads in [2, 4] {
                assert!(on_threads(threads, || run(cell, &x)) == right, "{threads} threads, {steps} × {batch}, {name}");
            }
            assert!(run(cell, &x) == right, "outside of the pool, {steps} × {batch}, {name}");
        }
    }
    with_each_cell!(f32, 40, 120, |cell, name: &str| check::<f32, _>(&cell, name));
    with_each_cell!(f64, 30, 50, |cell, name: &str| check::<f64, _>(&cell, name));
}

/// Of all that is not a product.
#[test]
fn instruction_sets_do_not_change_a_bit() {
    fn check<T: Element, C: Recurrent<T> + Clone>(cell: &C, name: &str) {
        let x = drawn::<T, _>((4, 6, cell.input()), 1);
        let right = run(cell, &x);
        for set in layernorm::instruction_sets() {
            let lowered = cell.clone().with_instruction_set(set).expect("it is there");
            assert!(run(&lowered, &x) == right, "{set}, {name}");
        }
    }
    for hidden in [5, 16, 35] {
        with_each_cell!(f32, 3, hidden, |cell, name: &str| check::<f32, _>(&cell, name));
        with_each_cell!(f64, 3, hidden, |cell, name: &str| check::<f64, _>(&cell, name));
    }
}

/// NaN in one sequence, an infinity in another, rows of another size in a third.
#[test]
fn other_sequences_do_not_change_a_bit() {
    fn check<T: Element, C: Recurrent<T>>(cell: &C, name: &str) {
        let (steps, batch) = (9, 20);
        let x = drawn::<T, _>((steps, batch, cell.input()), 1);
        let mut others = x.clone();
        others.slice_mut(s![0, 3, ..]).fill(from(f64::NAN));
        others.slice_mut(s![2, 4, ..]).fill(from(f64::INFINITY));
        others.slice_mut(s![.., 5, ..]).mapv_inplace(|x| x * from::<T>(1e30));
        for (right, got) in run(cell, &x).into_iter().zip(run(cell, &others)) {
            for row in (0..batch).filter(|row| ![3, 4, 5].contains(row)) {
                let sequence = |array: &Array3<T>| bits(array.index_axis(Axis(1), row));
                let state = |state: &State<T>| -> Vec<_> {
                    let arrays = std::iter::once(&state.h).chain(&state.c);
                    arrays.map(|array| bits(array.slice(s![row..=row, ..]))).collect()
                };
                assert_eq!(sequence(&got.0), sequence(&right.0), "y, row {row}, {name}");
                assert_eq!(state(&got.1), state(&right.1), "h and c, row {row}, {name}");
                assert_eq!(sequence(&got.2), sequence(&right.2), "dx, row {row}, {name}");
                assert_eq!(state(&got.3), state(&right.3), "dh and dc, row {row}, {name}");
            }
            assert!(got.0.slice(s![.., 3, ..]).iter().any(|y| y.is_nan()), "{name}");
        }
    }
    with_each_cell!(f32, 7, 33, |cell, name: &str| check::<f32, _>(&cell, name));
    with_each_cell!(f64, 7, 33, |cell, name: &str| check::<f64, _>(&cell, name));
}

/// As f64, which every f32 is too.
fn bits<T: Element>(rows: ArrayView2<'_, T>) -> Vec<u64> {
    let wide = rows.iter().map(|&x| -> f64 { x.into() });
    wide.map(f64::to_bits).collect()
}

/// The products of a row alone are added in another order. Each step rounds sums of some fifty products; six steps of f64
/// leave 1e-13 by far.
#[test]
fn a_sequence_alone_is_the_same_within_a_tolerance() {
    fn check<C: Recurrent<f64>>(cell: &C, name: &str) {
        let x = drawn::<f64, _>((6, 20, cell.input()), 1);
        let (y, _, saved) = cell.forward(&x, None, None).unwrap();
        let (dx, _) = cell.backward(&x, &saved, &y, None, &mut cell.zero_grad()).unwrap();
        for row in [0, 7, 19] {
            let alone = x.slice_axis(Axis(1), Slice::from(row..row + 1)).to_owned();
            let (y_alone, _, saved) = cell.forward(&alone, None, None).unwrap();
            let (dx_alone, _) = cell.backward(&alone, &saved, &y_alone, None, &mut cell.zero_grad()).unwrap();
            for (got, right, tolerance) in [(y_alone, &y, 1e-13), (dx_alone, &dx, 1e-11)] {
                let right = right.slice_axis(Axis(1), Slice::from(row..row + 1));
                let largest = right.iter().fold(1.0, |largest: f64, x| largest.max(x.abs()));
                let error = largest_difference(got, right);
                assert!(error <= tolerance * largest, "row {row} is off by {error:e}, {name}");
            }
        }
    }
    with_each_cell!(f64, 7, 33, |cell, name: &str| check(&cell, name));
}

/// Products of 1e25, whose squares are not numbers in f32, are normalized all the same.
#[test]
fn huge_and_tiny_products_are_normalized() {
    let (steps, batch) = (5, 4);
    let x = drawn::<f32, _>((steps, batch, 6), 1);
    let right = lstm::<f32>(6, 20).with_eps(0.0).unwrap();
    let run = |scale: f32| {
        let mut cell = right.clone();
        let mut grad = cell.zero_grad();
        cell.visit_mut(|name, mut array| {
            if name.ends_with("_weight") {
                array.mapv_inplace(|w| w * scale);
            }
        });
        let initial = state(&cell, batch, 5);
        let (y, _, saved) = cell.forward(&x, Some(&initial), None).unwrap();
        let (dx, _) = cell.backward(&x, &saved, &y, None, &mut grad).unwrap();
        (y, dx, grad)
    };
    let (y, dx, grad) = run(1.0);
    for scale in [2f32.powi(80), 2f32.powi(-80)] {
        let (scaled_y, scaled_dx, mut scaled_grad) = run(scale);
        assert_eq!(scaled_y, y, "scale {scale:e}");
        // The loss does not know the scale, so a weight's gradient is divided by it, and x's is not.
        assert_eq!(scaled_dx, dx, "scale {scale:e}");
        scaled_grad
            .zip(&grad, |name, scaled, plain| {
                let factor: f32 = if name.ends_with("_weight") { from(f64::from(scale)) } else { 1.0 };
                assert!(scaled.iter().zip(plain).all(|(scaled, plain)| scaled * factor == *plain), "{name}, {scale:e}");
            })
            .unwrap();
    }
}
