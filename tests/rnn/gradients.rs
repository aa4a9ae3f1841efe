//! Every gradient of every cell is the slope of its loss.

use std::ops::Range;

use layernorm::ndarray::{Array2, Array3, ArrayViewD, Axis, concatenate, s};
use layernorm::rnn::{RnnPlacement, Saved, Start, State, Weights};
use layernorm::{Parameters, Recurrent, Rnn, grad_check};

use crate::common::{Known, draw, drawn, holes, largest_difference, parameter, rng, state, with_each_cell};

/// Of the largest slope. The differences are of fourth order with steps of 1e-3; after a few steps of time the fifth
/// derivative of a loss is some hundred times the first.
const TOLERANCE: f64 = 1e-8;

/// Σ y ⊙ dy + Σ h ⊙ dh + Σ c ⊙ dc, h and c after the last step.
struct Loss {
    dy: Array3<f64>,
    d_final: State<f64>,
    mask: Option<Array2<bool>>,
}

impl Loss {
    fn of<C: Known>(&self, cell: &C, x: &Array3<f64>, initial: &State<f64>) -> f64 {
        let (y, last, _) = cell.forward(x, Some(initial), self.mask.as_deref()).unwrap();
        let c = last.c.iter().flatten().zip(self.d_final.c.iter().flatten()).map(|(c, dc)| c * dc).sum::<f64>();
        (y * &self.dy).sum() + (last.h * &self.d_final.h).sum() + c
    }
}

fn check<C: Known>(cell: &C, steps: usize, batch: usize, masked: bool, name: &str) {
    let place = format!("{name}, {steps} steps of {batch} × {} to {}, mask {masked}", cell.input(), cell.hidden());
    let (x, initial) = (drawn::<f64, _>([steps, batch, cell.input()], 1), state(cell, batch, 2));
    let loss = Loss {
        dy: drawn::<f64, _>([steps, batch, cell.hidden()], 5),
        d_final: state(cell, batch, 6),
        mask: masked.then(|| holes(steps, batch)),
    };
    let (_, _, saved) = cell.forward(&x, Some(&initial), loss.mask.as_deref()).unwrap();
    let mut grad = cell.zero_grad();
    let (dx, d_initial) = cell.backward(&x, &saved, &loss.dy, Some(&loss.d_final), &mut grad).unwrap();

    let near = |what: &str, worst: grad_check::Worst| {
        assert!(worst.error < TOLERANCE, "{what}: {worst:?}: {place}");
    };
    near("dx", grad_check::compare(&x, &dx, |x| loss.of(cell, x, &initial)));
    let at_h = |h: &Array2<f64>| loss.of(cell, &x, &State { h: h.clone(), ..initial.clone() });
    near("dh", grad_check::compare(&initial.h, &d_initial.h, at_h));
    if let (Some(c), Some(dc)) = (&initial.c, &d_initial.c) {
        let at_c = |c: &Array2<f64>| loss.of(cell, &x, &State { c: Some(c.clone()), ..initial.clone() });
        near("dc", grad_check::compare(c, dc, at_c));
    }
    let mut names = Vec::new();
    cell.visit(|name, _| names.push(name.to_owned()));
    for array in names {
        let gradient = parameter(&grad, &array);
        let worst = grad_check::compare(&parameter(cell, &array), &gradient, |value| {
            let mut moved = cell.clone();
            moved.weights_mut().get_mut(&array).unwrap().assign(value);
            loss.of(&moved, &x, &initial)
        });
        near(&array, worst);
    }
}

/// A row of few units may have next to no spread, and curves within a step of the differences unless ε is large; so may x W_x
/// where x is short.
#[test]
fn gradients_are_slopes() {
    for (input, hidden, eps) in [(8, 17, 1e-5), (2, 4, 0.1), (3, 1, 0.1)] {
        with_each_cell!(f64, input, hidden, |cell, name: &str| {
            let cell = layernorm::Recurrent::with_eps(cell, eps).unwrap();
            check(&cell, 1, 2, false, name);
            check(&cell, 4, 3, false, name);
            check(&cell, 5, 3, true, name);
            // Rows that are normalized together, and one that is left.
            check(&cell, 2, 9, false, name);
        });
    }
}

/// More rows than a block and more than a chain of column sums. Such a sequence is long, and with a small ε a change at its
/// start grows on the way.
#[test]
fn gradients_of_many_rows_are_slopes() {
    with_each_cell!(f64, 2, 3, |cell, name: &str| {
        let cell = layernorm::Recurrent::with_eps(cell, 1.0).unwrap();
        check(&cell, 9, 70, true, name);
    });
}

#[test]
fn gradients_are_added_and_the_others_overwritten() {
    with_each_cell!(f64, 3, 5, |cell, name: &str| added(&cell, name));
}

fn added<C: Known>(cell: &C, name: &str) {
    let (x, dy) = (drawn::<f64, _>([4, 3, 3], 1), drawn::<f64, _>([4, 3, 5], 2));
    let (_, _, saved) = cell.forward(&x, None, None).unwrap();
    let mut once = cell.zero_grad();
    let (dx, d_initial) = cell.backward(&x, &saved, &dy, None, &mut once).unwrap();
    let mut twice = once.clone();
    let (mut dx_again, mut d_state) = (dx.mapv(|_| f64::NAN), cell.zero_state(3));
    cell.backward_into(&x, &saved, &dy, &mut d_state, &mut dx_again, &mut twice).unwrap();
    assert_eq!((dx_again, d_state), (dx, d_initial), "{name}");
    twice
        .zip(&once, |array, twice, once| {
            let error = largest_difference(&twice, once.iter().map(|once| 2.0 * once));
            assert!(error < 1e-13, "{array} is off by {error:e}: {name}");
        })
        .unwrap();
}

#[test]
fn without_steps_gradients_pass_through() {
    with_each_cell!(f64, 3, 5, |cell, name: &str| passes(&cell, name));
}

fn passes<C: Known>(cell: &C, name: &str) {
    let (x, dy) = (Array3::zeros((0, 2, 3)), Array3::zeros((0, 2, 5)));
    let (mut saved, mut initial) = (Saved::default(), state(cell, 2, 1));
    let before = initial.clone();
    cell.forward_into(&x, None, &mut initial, &mut Array3::zeros((0, 2, 5)), &mut saved).unwrap();
    assert_eq!(initial, before, "{name}");
    let mut grad = cell.zero_grad();
    let (dx, d_initial) = cell.backward(&x, &saved, &dy, Some(&before), &mut grad).unwrap();
    assert_eq!((dx, d_initial, grad), (x, before, cell.zero_grad()), "{name}");
}

/// What a padded row holds reaches neither the others nor a gradient.
#[test]
fn padding_may_hold_anything() {
    with_each_cell!(f64, 3, 5, |cell, name: &str| padding(&cell, name));
}

fn padding<C: Known>(cell: &C, name: &str) {
    let (steps, batch) = (6, 5);
    let (clean, mask) = (drawn::<f64, _>([steps, batch, 3], 1), holes(steps, batch));
    let dy = drawn::<f64, _>([steps, batch, 5], 2);
    let run = |x: &Array3<f64>| {
        let (y, last, saved) = cell.forward(x, None, Some(&mask)).unwrap();
        let mut grad = cell.zero_grad();
        let (dx, d_initial) = cell.backward(x, &saved, &dy, Some(&last), &mut grad).unwrap();
        (y, last, dx, d_initial, grad)
    };
    let mut dirty = clean.clone();
    for (t, row, _) in layernorm::ndarray::indices((steps, batch, 1)) {
        if !mask[[t, row]] {
            dirty.slice_mut(layernorm::ndarray::s![t, row, ..]).fill([f64::NAN, f64::INFINITY, 1e300][(t + row) % 3]);
        }
    }
    assert!(dirty.iter().any(|x| x.is_nan()));
    assert_eq!(run(&dirty), run(&clean), "{name}");
}

/// For the whole sequence W_h and its transpose are copied, into several panels; for its halves they are not.
#[test]
fn a_sequence_is_its_first_half_and_then_its_second() {
    with_each_cell!(f64, 3, 100, |cell, name: &str| halves(&cell, 9, 3, false, name));
}

/// The whole sequence is several pieces, its halves are one each; and one of more rows than a piece has.
#[test]
fn a_sequence_of_several_pieces_is_its_halves() {
    with_each_cell!(f64, 3, 7, |cell, name: &str| {
        let cell = layernorm::Recurrent::with_eps(cell, 1.0).unwrap();
        halves(&cell, 20, 70, false, name);
        halves(&cell, 20, 70, true, name);
        halves(&cell, 2, 1100, false, name);
    });
}

fn halves<C: Known>(cell: &C, steps: usize, batch: usize, masked: bool, name: &str) {
    let (x, initial) = (drawn::<f64, _>([steps, batch, cell.input()], 1), state(cell, batch, 2));
    let (dy, d_final) = (drawn::<f64, _>([steps, batch, cell.hidden()], 5), state(cell, batch, 6));
    let mask = masked.then(|| holes(steps, batch));
    let mut whole = cell.zero_grad();
    let (y, last, saved) = cell.forward(&x, Some(&initial), mask.as_deref()).unwrap();
    let (dx, d_initial) = cell.backward(&x, &saved, &dy, Some(&d_final), &mut whole).unwrap();

    let mut added = cell.zero_grad();
    let [(x_first, x_second), (dy_first, dy_second)] = [&x, &dy].map(|all| all.view().split_at(Axis(0), steps / 2));
    let (mask_first, mask_second) = mask.as_ref().map(|all| all.view().split_at(Axis(0), steps / 2)).unzip();
    let (y_first, middle, of_first) = cell.forward(&x_first, Some(&initial), mask_first.as_deref()).unwrap();
    let (y_second, end, of_second) = cell.forward(&x_second, Some(&middle), mask_second.as_deref()).unwrap();
    let (dx_second, d_middle) = cell.backward(&x_second, &of_second, &dy_second, Some(&d_final), &mut added).unwrap();
    let (dx_first, d_start) = cell.backward(&x_first, &of_first, &dy_first, Some(&d_middle), &mut added).unwrap();

    // Rounded in another order, some hundred times in each of some steps.
    let near = |what: &str, got: ArrayViewD<'_, f64>, right: ArrayViewD<'_, f64>| {
        let largest = right.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let error = largest_difference(got, right);
        assert!(largest > 0.0 && error < 1e-11 * largest, "{what}, mask {masked}, {name}: {error:e} of {largest:e}");
    };
    near("y", y.view().into_dyn(), concatenate![Axis(0), y_first, y_second].view().into_dyn());
    near("dx", dx.view().into_dyn(), concatenate![Axis(0), dx_first, dx_second].view().into_dyn());
    near("h", last.h.view().into_dyn(), end.h.view().into_dyn());
    near("dh", d_initial.h.view().into_dyn(), d_start.h.view().into_dyn());
    for (what, got, right) in [("c", &last.c, &end.c), ("dc", &d_initial.c, &d_start.c)] {
        if let (Some(got), Some(right)) = (got, right) {
            near(what, got.view().into_dyn(), right.view().into_dyn());
        }
    }
    whole.zip(&added, |name, whole, added| near(name, whole.view(), added)).unwrap();
}

/// A piece of the whole batch is turned on the way to the gradients of the weights, one of half of it is not.
#[test]
fn gradients_of_the_weights_of_a_batch_are_those_of_its_halves() {
    for (input, hidden) in [(512, 512), (512, 600), (600, 512), (20, 512)] {
        let cell = Rnn::<f64>::new(input, hidden, RnnPlacement::Sum, Start::Orthogonal, &mut rng());
        halves_of_a_batch(&cell, &format!("Rnn, {input}, {hidden}"));
    }
}

/// Several blocks of a step's rows, and other groups of rows in the second half than in the whole.
#[test]
fn gradients_of_a_batch_are_those_of_its_halves() {
    with_each_cell!(f64, 3, 7, |cell, name: &str| {
        halves_of_a_batch(&layernorm::Recurrent::with_eps(cell, 1.0).unwrap(), name);
    });
}

fn halves_of_a_batch<C: Known>(cell: &C, name: &str) {
    let (steps, batch) = (2, 512);
    let (x, initial) = (drawn::<f64, _>([steps, batch, cell.input()], 1), state(cell, batch, 2));
    let dy = drawn::<f64, _>([steps, batch, cell.hidden()], 5);
    let add = |rows: Range<usize>, grad: &mut Weights<f64>| {
        let of_rows = |all: &Array3<f64>| all.slice(s![.., rows.clone(), ..]).to_owned();
        let (x, dy) = (of_rows(&x), of_rows(&dy));
        let of_state = |all: &Array2<f64>| all.slice(s![rows.clone(), ..]).to_owned();
        let initial = State { h: of_state(&initial.h), c: initial.c.as_ref().map(of_state) };
        let (_, _, saved) = cell.forward(&x, Some(&initial), None).unwrap();
        cell.backward(&x, &saved, &dy, None, grad).unwrap();
    };
    let (mut whole, mut halves) = (cell.zero_grad(), cell.zero_grad());
    add(0..batch, &mut whole);
    add(0..batch / 2 - 1, &mut halves);
    add(batch / 2 - 1..batch, &mut halves);
    whole
        .zip(&halves, |array, whole, halves| {
            let largest = halves.iter().fold(0.0, |largest: f64, sum| largest.max(sum.abs()));
            let error = largest_difference(&whole, halves);
            // Sums of 1024 products, in another order.
            assert!(largest > 0.0 && error < 1e-13 * largest, "{array}, {name}: {error:e} of {largest:e}");
        })
        .unwrap();
}

/// Of 200,000 steps, whose terms have one sign: a sum in f32 alone is off by 1e-5.
#[test]
fn column_sums_of_a_long_sequence_are_as_right_as_their_terms() {
    let steps = 200_000;
    let cell = draw(Rnn::<f32>::new(1, 1, RnnPlacement::None, Start::Uniform, &mut rng()));
    let mut double = Rnn::<f64>::new(1, 1, RnnPlacement::None, Start::Uniform, &mut rng());
    cell.visit(|name, array| double.weights_mut().get_mut(name).unwrap().assign(&array.mapv(f64::from)));
    let x = drawn::<f32, _>([steps, 1, 1], 1);
    let (_, _, saved) = cell.forward(&x, None, None).unwrap();
    let (mut got, mut right) = (cell.zero_grad(), double.zero_grad());
    cell.backward(&x, &saved, &Array3::ones((steps, 1, 1)), None, &mut got).unwrap();
    let x = x.mapv(f64::from);
    let (_, _, saved) = double.forward(&x, None, None).unwrap();
    double.backward(&x, &saved, &Array3::ones((steps, 1, 1)), None, &mut right).unwrap();
    let (got, right) = (f64::from(got.get("bias").unwrap()[0]), right.get("bias").unwrap()[0]);
    assert!((got - right).abs() < 1e-6 * right.abs(), "{got}, {right}");
}
