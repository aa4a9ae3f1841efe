//! Forward is what the paper's equations say.

use layernorm::ndarray::{Array2, Array3, Axis, Ix2, Slice};
use layernorm::rnn::Saved;
use layernorm::{Gru, Lstm, Parameters, Recurrent, Rnn};

use crate::common::{Known, drawn, holes, largest_difference, state, textbook, turned, turned_mask, with_each_cell};

/// y and states lie within ±1 or so and each step rounds some hundred times: 1e-12 is a thousand times more.
const TOLERANCE: f64 = 1e-12;

fn check<C: Known>(cell: &C, steps: usize, batch: usize, name: &str) {
    let x: Array3<f64> = drawn([steps, batch, cell.input()], 1);
    let (initial, mask) = (state(cell, batch, 2), holes(steps, batch));
    for (initial, mask) in [(None, None), (Some(&initial), None), (Some(&initial), Some(&mask))] {
        let place = format!(
            "{name}, {steps} steps of {batch} × {} to {}, initial {}, mask {}",
            cell.input(),
            cell.hidden(),
            initial.is_some(),
            mask.is_some()
        );
        let (y, last, _) = cell.forward(&x, initial, mask.map(|mask| &**mask)).unwrap();
        let zero = cell.zero_state(batch);
        let (right, right_c) = textbook(cell, &x, initial.unwrap_or(&zero), mask);
        let error = largest_difference(&y, &right);
        assert!(error < TOLERANCE, "y is off by {error:e}: {place}");
        if steps > 0 {
            assert_eq!(y.index_axis(Axis(0), steps - 1), last.h, "{place}");
        } else {
            assert_eq!(&last, initial.unwrap_or(&zero), "{place}");
        }
        if let (Some(c), Some(right)) = (last.c, right_c) {
            let error = largest_difference(c, right);
            assert!(error < TOLERANCE, "c is off by {error:e}: {place}");
        }
    }
}

#[test]
fn a_sequence_follows_the_paper() {
    for (input, hidden) in [(3, 1), (1, 5), (4, 8), (2, 17), (0, 3)] {
        with_each_cell!(f64, input, hidden, |cell, name: &str| {
            for (steps, batch) in [(1, 1), (5, 3), (6, 9), (0, 2), (3, 0)] {
                check(&cell, steps, batch, name);
            }
        });
    }
}

/// So many steps that W_h is copied, into several panels.
#[test]
fn a_sequence_with_a_copy_of_the_weights_follows_the_paper() {
    with_each_cell!(f64, 3, 70, |cell, name: &str| {
        check(&cell, 8, 2, name);
        check(&cell, 9, 5, name);
    });
}

/// Several pieces of a sequence, and several blocks of a step's rows.
#[test]
fn a_long_or_wide_sequence_follows_the_paper() {
    with_each_cell!(f64, 2, 3, |cell, name: &str| {
        check(&cell, 20, 70, name);
        check(&cell, 3, 600, name);
    });
}

#[test]
fn a_step_is_a_sequence_of_one() {
    with_each_cell!(f64, 3, 7, |cell, name: &str| step_is_sequence(&cell, name));
}

fn step_is_sequence<C: Known>(cell: &C, name: &str) {
    let x: Array2<f64> = drawn([5, 3], 1);
    let initial = state(cell, 5, 2);
    let (_, right, _) = cell.forward(&x.clone().insert_axis(Axis(0)), Some(&initial), None).unwrap();
    assert_eq!(cell.step(&x, &initial).unwrap(), right, "{name}");
    let columns_first = x.t().as_standard_layout().into_owned().reversed_axes();
    assert_eq!(cell.step(&columns_first, &initial).unwrap(), right, "{name}");
}

#[test]
fn the_state_carries_a_sequence_on() {
    with_each_cell!(f64, 3, 7, |cell, name: &str| state_carries_on(&cell, name));
}

fn state_carries_on<C: Known>(cell: &C, name: &str) {
    let (x, initial) = (drawn::<f64, _>([6, 5, 3], 1), state(cell, 5, 2));
    let (y, last, _) = cell.forward(&x, Some(&initial), None).unwrap();
    let (first, second) = x.view().split_at(Axis(0), 4);
    let (y_first, between, _) = cell.forward(&first, Some(&initial), None).unwrap();
    let (y_second, end, _) = cell.forward(&second, Some(&between), None).unwrap();
    assert!(largest_difference(y_first.into_iter().chain(y_second), y) < TOLERANCE, "{name}");
    assert!(largest_difference(end.h, last.h) < TOLERANCE, "{name}");
}

/// Of one piece and of several.
#[test]
fn buffers_are_overwritten_and_any_layout_will_do() {
    with_each_cell!(f64, 3, 7, |cell, name: &str| any_layout(&cell, name));
}

fn any_layout<C: Known>(cell: &C, name: &str) {
    let mut saved = Saved::default();
    for (steps, batch, masked) in
        [(4, 5, true), (7, 2, true), (7, 2, false), (3, 9, true), (3, 9, false), (20, 70, true), (20, 70, false)]
    {
        let place = format!("{name}, {steps} × {batch}, mask {masked}");
        let x = drawn::<f64, _>([steps, batch, 3], 1);
        let mask = masked.then(|| holes(steps, batch));
        let initial = state(cell, batch, 2);
        let (y, last, fresh) = cell.forward(&x, Some(&initial), mask.as_deref()).unwrap();
        let dy = drawn::<f64, _>([steps, batch, 7], 3);
        let mut grad = cell.zero_grad();
        let (dx, d_initial) = cell.backward(&x, &fresh, &dy, Some(&initial), &mut grad).unwrap();

        let (x, dy) = (turned(&x), turned(&dy));
        let (mut y_out, mut dx_out) = (turned(&y).mapv(|_| f64::NAN), turned(&dx).mapv(|_| f64::NAN));
        let mut state = initial.clone();
        let mask = mask.map(|mask| turned_mask(&mask));
        cell.forward_into(&x, mask.as_deref(), &mut state, &mut y_out, &mut saved).unwrap();
        assert_eq!((y_out, state), (y, last), "{place}");
        let mut d_state = initial.clone();
        let mut turned_grad = cell.zero_grad();
        cell.backward_into(&x, &saved, &dy, &mut d_state, &mut dx_out, &mut turned_grad).unwrap();
        assert_eq!((dx_out, d_state, turned_grad), (dx, d_initial, grad), "{place}");
    }
}

/// Every kind of cell, by its parameters.
#[test]
fn parameters_have_a_fixed_order() {
    let mut all = Vec::new();
    with_each_cell!(f64, 2, 3, |cell, name: &str| names(&cell, name, &mut all));
    let matrices = |columns: usize| format!("input_weight [2, {columns}] recurrent_weight [3, {columns}]");
    let right = [
        format!("Rnn None: {} bias [3]", matrices(3)),
        format!("Rnn Sum: {} bias [3] gain [3]", matrices(3)),
        format!("Lstm None: {} bias [12]", matrices(12)),
        format!("Lstm Cell: {} bias [12] cell_gain [3] cell_bias [3]", matrices(12)),
        format!(
            "Lstm ProductsAndCell: {} bias [12] input_gain [12] recurrent_gain [12] cell_gain [3] cell_bias [3]",
            matrices(12)
        ),
        format!("Gru None: {} bias [9] recurrent_bias [3]", matrices(9)),
        format!("Gru Products: {} bias [9] recurrent_bias [3] input_gain [9] recurrent_gain [9]", matrices(9)),
    ];
    assert_eq!(all, right);
}

fn names<C: Known>(cell: &C, name: &str, all: &mut Vec<String>) {
    let mut names = Vec::new();
    cell.visit(|name, array| names.push(format!("{name} {:?}", array.shape())));
    all.push(format!("{name}: {}", names.join(" ")));
    let (mut zipped, mut copy) = (Vec::new(), cell.clone());
    copy.zip(&cell.zero_grad(), |name, _, zeros| {
        assert!(zeros.iter().all(|&zero| zero == 0.0));
        zipped.push(format!("{name} {:?}", zeros.shape()));
    })
    .unwrap();
    assert_eq!(zipped, names);
}

/// Starting values that the paper names.
#[test]
fn gains_and_biases_start_as_they_are_told() {
    use crate::common::rng;
    use layernorm::rnn::{GruPlacement, LstmPlacement, RnnPlacement, Start};

    let lstm = Lstm::<f32>::new(13, 4, LstmPlacement::ProductsAndCell, Start::Uniform, &mut rng());
    lstm.visit(|name, array| match name {
        "input_weight" | "recurrent_weight" => {
            assert!(array.iter().all(|w| w.abs() <= 0.1), "{name}");
            assert!(array.iter().any(|&w| w > 0.08) && array.iter().any(|&w| w < -0.08), "{name}");
        }
        _ => assert!(array.iter().all(|&x| x == if name.ends_with("gain") { 1.0 } else { 0.0 }), "{name}"),
    });
    assert_eq!(lstm.eps(), 1e-5);
    let lstm = lstm.with_gain_value(0.1).with_forget_bias(2.0).with_eps(0.0).unwrap();
    lstm.visit(|name, array| {
        if name.ends_with("gain") {
            assert!(array.iter().all(|&gain| gain == 0.1), "{name}");
        }
    });
    let bias: Vec<f32> = lstm.weights().get("bias").unwrap().iter().copied().collect();
    assert_eq!(bias, [[2.0; 4], [0.0; 4], [0.0; 4], [0.0; 4]].concat());
    assert_eq!(lstm.eps(), 0.0);

    let rnn = Rnn::<f64>::new(3, 4, RnnPlacement::Sum, Start::Orthogonal, &mut rng()).with_gain_value(0.5);
    assert_eq!(rnn.weights().get("gain").unwrap().iter().copied().collect::<Vec<_>>(), [0.5; 4]);
    let gru = Gru::<f64>::new(3, 4, GruPlacement::Products, Start::Orthogonal, &mut rng());
    let recurrent = gru.weights().get("recurrent_weight").unwrap().into_dimensionality::<Ix2>().unwrap();
    let candidate = recurrent.slice_axis(Axis(1), Slice::from(8..));
    let square = candidate.dot(&candidate.t());
    assert!(square.indexed_iter().all(|((i, j), x)| (x - f64::from(u8::from(i == j))).abs() < 1e-14), "{square}");
}
