//! A caller's mistake is named, and nothing has been written when it comes.

use layernorm::ndarray::{Array2, Array3};
use layernorm::rnn::{GruPlacement, LstmPlacement, Saved, Start, State, Weights};
use layernorm::{Gru, Lstm, Parameters, Recurrent, Result};

use crate::common::{drawn, lstm, rng};

const STEPS: usize = 4;
const BATCH: usize = 2;

/// What a call could write.
#[derive(Clone, Debug)]
struct Outputs {
    state: State<f64>,
    y: Array3<f64>,
    saved: Saved<f64>,
    dx: Array3<f64>,
    grad: Weights<f64>,
}

/// A cell from 3 to 5, an x, a dy, and outputs; `saved` is that of x.
fn setup() -> (Lstm<f64>, Array3<f64>, Array3<f64>, Outputs) {
    let cell = lstm::<f64>(3, 5);
    let (x, dy) = (drawn((STEPS, BATCH, 3), 1), drawn((STEPS, BATCH, 5), 2));
    let (y, state, saved) = cell.forward(&x, None, None).unwrap();
    let grad = cell.zero_grad();
    (cell, x.clone(), dy, Outputs { state, y, saved, dx: x, grad })
}

/// Asserts that the call fails with this text and writes nothing.
fn refuses<R>(text: &str, outputs: &mut Outputs, call: impl FnOnce(&mut Outputs) -> Result<R>) {
    let before = format!("{outputs:?}");
    let error = call(outputs).err().unwrap_or_else(|| panic!("no error, but `{text}` was expected"));
    assert_eq!(error.to_string(), text);
    assert!(format!("{outputs:?}") == before, "written in spite of: {text}");
}

#[test]
fn x_with_another_width_is_named() {
    let (cell, _, dy, mut outputs) = setup();
    let x = Array3::zeros((STEPS, BATCH, 4));
    let text = "`x` must have shape [_, _, 3], but has [4, 2, 4]";
    refuses(text, &mut outputs, |_| cell.forward(&x, None, None));
    refuses(text, &mut outputs, |out| cell.forward_into(&x, None, &mut out.state, &mut out.y, &mut out.saved));
    refuses(text, &mut outputs, |_| cell.infer(&x, None, None));
    refuses(text, &mut outputs, |out| cell.infer_into(&x, None, &mut out.state, &mut out.y));
    refuses(text, &mut outputs, |out| cell.backward(&x, &out.saved, &dy, None, &mut out.grad));
    refuses(text, &mut outputs, |out| {
        cell.backward_into(&x, &out.saved, &dy, &mut out.state, &mut out.dx, &mut out.grad)
    });
    let text = "`x` must have shape [_, 3], but has [2, 4]";
    refuses(text, &mut outputs, |out| cell.step(&Array2::zeros((2, 4)), &out.state));
    refuses(text, &mut outputs, |out| cell.step_into(&Array2::zeros((2, 4)), &mut out.state));
}

/// Weights can be replaced as a whole.
#[test]
fn weights_of_another_cell_are_named() {
    let (cell, x, dy, outputs) = setup();
    let of = |placement, hidden| Lstm::<f64>::new(3, hidden, placement, Start::Uniform, &mut rng());
    let all = LstmPlacement::ProductsAndCell;
    let gru = Gru::<f64>::new(3, 5, GruPlacement::Products, Start::Uniform, &mut rng());
    for (cell, weights, text) in [
        (&cell, of(LstmPlacement::Cell, 5).weights().clone(), "have an input_gain, as the layer has, but has none"),
        (&of(LstmPlacement::Cell, 5), cell.weights().clone(), "have no input_gain, as the layer has none, but has one"),
        (&cell, of(all, 4).weights().clone(), "have an input_weight of shape [3, 20], but has one of [3, 16]"),
        (&cell, gru.weights().clone(), "have an input_weight of shape [3, 20], but has one of [3, 15]"),
    ] {
        let text = format!("`weights` must {text}");
        let (mut outputs, mut cell) = (outputs.clone(), cell.clone());
        outputs.saved = cell.forward(&x, None, None).unwrap().2;
        outputs.grad = weights.clone();
        *cell.weights_mut() = weights;
        refuses(&text, &mut outputs, |_| cell.forward(&x, None, None));
        refuses(&text, &mut outputs, |out| cell.forward_into(&x, None, &mut out.state, &mut out.y, &mut out.saved));
        refuses(&text, &mut outputs, |_| cell.infer(&x, None, None));
        refuses(&text, &mut outputs, |out| cell.infer_into(&x, None, &mut out.state, &mut out.y));
        refuses(&text, &mut outputs, |out| cell.backward(&x, &out.saved, &dy, None, &mut out.grad));
        refuses(&text, &mut outputs, |out| cell.step_into(&Array2::zeros((2, 3)), &mut out.state));
    }
    // Those of a cell of the same kind are welcome.
    let (mut other, input) = (of(all, 5), x);
    *other.weights_mut() = cell.weights().clone();
    assert_eq!(other.infer(&input, None, None).unwrap().0, outputs.y);
}

#[test]
fn a_state_of_another_shape_is_named() {
    let (cell, x, dy, mut outputs) = setup();
    let wrong = cell.zero_state(3);
    let text = |name: &str| format!("`{name}` must have shape [2, 5], but has [3, 5]");
    refuses(&text("initial"), &mut outputs, |_| cell.forward(&x, Some(&wrong), None));
    refuses(&text("initial"), &mut outputs, |_| cell.infer(&x, Some(&wrong), None));
    refuses(&text("d_final"), &mut outputs, |out| cell.backward(&x, &out.saved, &dy, Some(&wrong), &mut out.grad));
    refuses(&text("state"), &mut outputs, |_| cell.step(&Array2::zeros((2, 3)), &wrong));
    outputs.state = wrong;
    refuses(&text("state"), &mut outputs, |out| {
        cell.forward_into(&x, None, &mut out.state, &mut out.y, &mut out.saved)
    });
    refuses(&text("state"), &mut outputs, |out| cell.infer_into(&x, None, &mut out.state, &mut out.y));
    refuses(&text("d_state"), &mut outputs, |out| {
        cell.backward_into(&x, &out.saved, &dy, &mut out.state, &mut out.dx, &mut out.grad)
    });
    let mut half = cell.zero_state(2);
    half.c = Some(Array2::zeros((2, 4)));
    let text = "`initial` must have shape [2, 5], but has [2, 4]";
    refuses(text, &mut outputs, |_| cell.forward(&x, Some(&half), None));
}

#[test]
fn a_state_with_or_without_c_is_named() {
    let (cell, x, dy, mut outputs) = setup();
    let gru = Gru::<f64>::new(3, 5, GruPlacement::Products, Start::Uniform, &mut rng());
    let (with, without) = (cell.zero_state(BATCH), gru.zero_state(BATCH));
    let text = "`initial` must have a c, as an LSTM's state has, but has none";
    refuses(text, &mut outputs, |_| cell.forward(&x, Some(&without), None));
    refuses(text, &mut outputs, |_| cell.infer(&x, Some(&without), None));
    let row = Array2::zeros((BATCH, 3));
    let text = "`state` must have a c, as an LSTM's state has, but has none";
    outputs.state = without.clone();
    refuses(text, &mut outputs, |_| cell.step(&row, &without));
    refuses(text, &mut outputs, |out| cell.step_into(&row, &mut out.state));
    refuses(text, &mut outputs, |out| cell.forward_into(&x, None, &mut out.state, &mut out.y, &mut out.saved));
    refuses(text, &mut outputs, |out| cell.infer_into(&x, None, &mut out.state, &mut out.y));
    let text = "`d_final` must have a c, as an LSTM's state has, but has none";
    refuses(text, &mut outputs, |out| cell.backward(&x, &out.saved, &dy, Some(&without), &mut out.grad));
    let text = "`d_state` must have a c, as an LSTM's state has, but has none";
    refuses(text, &mut outputs, |out| {
        cell.backward_into(&x, &out.saved, &dy, &mut out.state, &mut out.dx, &mut out.grad)
    });
    let text = "`initial` must have no c, which only an LSTM's state has, but has one";
    refuses(text, &mut outputs, |_| gru.forward(&x, Some(&with), None));
}

#[test]
fn a_saved_of_another_eps_is_named() {
    let (cell, x, dy, mut outputs) = setup();
    let other = cell.with_eps(1e-3).unwrap();
    let text = "`saved` must come from a layer with eps 0.001, but comes from one with 1e-5";
    refuses(text, &mut outputs, |out| other.backward(&x, &out.saved, &dy, None, &mut out.grad));
    refuses(text, &mut outputs, |out| {
        other.backward_into(&x, &out.saved, &dy, &mut out.state, &mut out.dx, &mut out.grad)
    });
    // Without normalization there is none.
    let plain = Lstm::<f64>::new(3, 5, LstmPlacement::None, Start::Uniform, &mut rng());
    let ((_, _, saved), mut grad) = (plain.forward(&x, None, None).unwrap(), plain.zero_grad());
    plain.with_eps(1e-3).unwrap().backward(&x, &saved, &dy, None, &mut grad).unwrap();
}

#[test]
fn a_mask_or_output_of_another_shape_is_named() {
    let (cell, x, dy, mut outputs) = setup();
    let mask = Array2::from_elem((BATCH, STEPS), true);
    let text = "`mask` must have shape [4, 2], but has [2, 4]";
    refuses(text, &mut outputs, |_| cell.forward(&x, None, Some(&mask)));
    refuses(text, &mut outputs, |out| cell.infer_into(&x, Some(&mask), &mut out.state, &mut out.y));
    let text = "`y` must have shape [4, 2, 5], but has [4, 2, 3]";
    refuses(text, &mut outputs, |out| cell.forward_into(&x, None, &mut out.state, &mut out.dx, &mut out.saved));
    refuses(text, &mut outputs, |out| cell.infer_into(&x, None, &mut out.state, &mut out.dx));
    let text = "`dy` must have shape [4, 2, 5], but has [4, 2, 3]";
    refuses(text, &mut outputs, |out| cell.backward(&x, &out.saved, &x, None, &mut out.grad));
    let text = "`dx` must have shape [4, 2, 3], but has [4, 2, 5]";
    refuses(text, &mut outputs, |out| {
        cell.backward_into(&x, &out.saved, &dy, &mut out.state, &mut out.y, &mut out.grad)
    });
}

#[test]
fn saved_of_another_call_is_named() {
    let (cell, x, dy, mut outputs) = setup();
    let text = "`saved` must come from a forward call on an `x` of shape [4, 2, 3], but no call has filled it";
    refuses(text, &mut outputs, |out| cell.backward(&x, &Saved::default(), &dy, None, &mut out.grad));
    let (_, _, other) = cell.forward(&Array3::zeros((3, 2, 3)), None, None).unwrap();
    let text = "`saved` must come from a forward call on an `x` of shape [4, 2, 3], but comes from one on [3, 2, 3]";
    refuses(text, &mut outputs, |out| cell.backward(&x, &other, &dy, None, &mut out.grad));
    for (hidden, placement, came) in [
        (6, LstmPlacement::ProductsAndCell, "comes from one with 6"),
        (5, LstmPlacement::Cell, "comes from one of another kind, or with norms elsewhere"),
    ] {
        let text = &format!("`saved` must come from a forward call of such a cell with 5 hidden units, but {came}");
        let cell = Lstm::<f64>::new(3, hidden, placement, Start::Uniform, &mut rng());
        let (_, _, other) = cell.forward(&x, None, None).unwrap();
        refuses(text, &mut outputs, |out| setup().0.backward(&x, &other, &dy, None, &mut out.grad));
    }
}

#[test]
fn a_gradient_of_another_cell_is_named() {
    let (cell, x, dy, mut outputs) = setup();
    let grad = |hidden, placement| Lstm::<f64>::new(3, hidden, placement, Start::Uniform, &mut rng()).zero_grad();
    let text = "`grad` must have an input_weight of shape [3, 20], but has one of [3, 24]";
    let mut wrong = grad(6, LstmPlacement::ProductsAndCell);
    refuses(text, &mut outputs, |out| cell.backward(&x, &out.saved, &dy, None, &mut wrong));
    let text = "`grad` must have an input_gain, as the layer has, but has none";
    let mut wrong = grad(5, LstmPlacement::Cell);
    refuses(text, &mut outputs, |out| cell.backward(&x, &out.saved, &dy, None, &mut wrong));
    assert_eq!(cell.clone().zip(&wrong, |_, _, _| panic!("not called")).unwrap_err().to_string(), text);
    let plain = Lstm::<f64>::new(3, 5, LstmPlacement::None, Start::Uniform, &mut rng());
    let (_, _, saved) = plain.forward(&x, None, None).unwrap();
    let text = "`grad` must have no input_gain, as the layer has none, but has one";
    refuses(text, &mut outputs, |out| plain.backward(&x, &saved, &dy, None, &mut out.grad));
}

#[test]
fn a_cell_without_hidden_units_is_refused() {
    let (_, x, _, mut outputs) = setup();
    let text = "a cell without hidden units has no state: `hidden` must be at least 1, but is 0";
    for placement in [LstmPlacement::None, LstmPlacement::ProductsAndCell] {
        let cell = Lstm::<f64>::new(3, 0, placement, Start::Orthogonal, &mut rng());
        refuses(text, &mut outputs, |_| cell.forward(&x, None, None));
        refuses(text, &mut outputs, |_| cell.infer(&x, None, None));
        refuses(text, &mut outputs, |out| cell.step(&Array2::zeros((2, 3)), &out.state));
    }
}

#[test]
fn eps_that_is_no_addend_is_refused() {
    for (eps, shown) in [(-1.0, "-1"), (f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
        let error = lstm::<f64>(3, 5).with_eps(eps).unwrap_err();
        assert_eq!(error.to_string(), format!("`eps` must be finite, at least 0 and not subnormal, but is {shown}"));
    }
}
