//! The cells are those of PyTorch: y, the final state and every gradient, beside stored values.
//!
//! `tests/data/torch/recurrent.py` made the files, in float64, and describes them: `rnn`, `lstm` and `gru` come from
//! `torch.nn`, the others from the paper's equations written in torch, with gradients by autograd. `cargo test --features
//! rnn --test torch -- --nocapture` prints how far each file is off.
#![cfg(feature = "rnn")]

use std::collections::BTreeMap;

use layernorm::ndarray::{Array, ArrayD, ArrayViewD, Axis, Dimension, Ix2, Ix3, IxDyn, Slice};
use layernorm::rnn::{GruPlacement, LstmPlacement, RnnPlacement, Start, State};
use layernorm::{Element, Gru, Lstm, Recurrent, Rnn};
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};

const INPUT: usize = 4;
const HIDDEN: usize = 6;
/// A vector and more, of f32 and of f64.
const HIDDEN_RNN: usize = 17;

/// A parameter of ours, and the arrays of a file that lie side by side in it.
type Parts = (&'static str, &'static [&'static str]);

/// Of an `Rnn` and an `Lstm` without a norm.
const PLAIN: &[Parts] = &[("input_weight", &["W_x"]), ("recurrent_weight", &["W_h"]), ("bias", &["b"])];
const DRAW: &[Parts] = &[
    ("input_weight", &["W_x"]),
    ("recurrent_weight", &["W_h"]),
    ("bias", &["b"]),
    ("cell_gain", &["a3"]),
    ("cell_bias", &["b3"]),
];
const LN_LSTM: &[Parts] = &[
    ("input_weight", &["W_x"]),
    ("recurrent_weight", &["W_h"]),
    ("bias", &["b"]),
    ("input_gain", &["a2"]),
    ("recurrent_gain", &["a1"]),
    ("cell_gain", &["a3"]),
    ("cell_bias", &["b3"]),
];
const GRU: &[Parts] = &[
    ("input_weight", &["W_x", "W"]),
    ("recurrent_weight", &["W_h", "U"]),
    ("bias", &["b", "b3"]),
    ("recurrent_bias", &["b4"]),
];
const LN_GRU: &[Parts] = &[
    ("input_weight", &["W_x", "W"]),
    ("recurrent_weight", &["W_h", "U"]),
    ("bias", &["b", "b3"]),
    ("recurrent_bias", &["b4"]),
    ("input_gain", &["a2", "a3"]),
    ("recurrent_gain", &["a1", "a4"]),
];
const LN_RNN: &[Parts] =
    &[("input_weight", &["W_x"]), ("recurrent_weight", &["W_h"]), ("bias", &["bias"]), ("gain", &["gain"])];

/// Of the largest element of an array, in multiples of T's epsilon: 2.2e-14 in f64, 1.2e-5 in f32.
///
/// A step of the normalized LSTM, the longest of these ways, rounds a number about 40 times: 6 in h′ W_h, 9 in each of two
/// normalizations, 6 in each of two activations (3 ulp), 4 between them. The way back rounds about 60 times: 24 in the
/// product with W_hᵀ, 13 in each of two normalizations, 10 between them. Each is off by up to half an epsilon of a number
/// of about 1. If 5 steps pass on what they get, 500 of either sign add up to √500/2 = 11 epsilon, and to 16 with torch's
/// own; in f32 torch's do not count, but x and the parameters are rounded first. Found are up to 23 in f64 and 30 in f32, and
/// another CPU's products may add in another order: 100 is six times the 16, and less than half of what 500 of one sign
/// would be.
const TOLERANCE: f64 = 100.0;

/// The arrays of a file that nobody has taken yet.
struct Stored {
    file: &'static str,
    arrays: BTreeMap<&'static str, ArrayD<f64>>,
    /// How far we are off, in the unit of [`TOLERANCE`], and in which array.
    worst: (f64, String),
}

/// Reads a file of `tests/data/torch`.
macro_rules! stored {
    ($file:literal) => {
        Stored::parse($file, include_str!(concat!("data/torch/", $file, ".txt")))
    };
}

impl Stored {
    /// Each line is `name axis axis … : value value …`, row-major, or a comment.
    fn parse(file: &'static str, text: &'static str) -> Self {
        let mut arrays = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (head, values) = line.split_once(" : ").unwrap_or_else(|| panic!("{file}: no array: {line}"));
            let mut words = head.split(' ');
            let name = words.next().unwrap_or_default();
            let shape: Vec<usize> = words.map(|axis| axis.parse().unwrap()).collect();
            let values: Vec<f64> = values.split(' ').map(|value| value.parse().unwrap()).collect();
            let array = ArrayD::from_shape_vec(shape, values).unwrap_or_else(|error| panic!("{file}, {name}: {error}"));
            assert!(arrays.insert(name, array).is_none(), "{file} has {name} twice");
        }
        Self { file, arrays, worst: (0.0, String::new()) }
    }

    fn take<D: Dimension>(&mut self, name: &str) -> Array<f64, D> {
        let array = self.arrays.remove(name).unwrap_or_else(|| panic!("{} has no {name}", self.file));
        array.into_dimensionality().unwrap_or_else(|error| panic!("{}, {name}: {error}", self.file))
    }

    /// h and c of these names; c only if the cell has one.
    fn state<T: Element>(&mut self, h: &str, c: &str, has_c: bool) -> State<T> {
        let h = self.take::<Ix2>(h).mapv(from);
        State { h, c: has_c.then(|| self.take::<Ix2>(c).mapv(from)) }
    }

    /// Compares our array with torch's of this name.
    fn compare<T: Element>(&mut self, name: &str, got: ArrayViewD<'_, T>) {
        let (file, right) = (self.file, self.take::<IxDyn>(name));
        assert_eq!(got.shape(), right.shape(), "shape of {name}, {file}");
        let largest = right.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
        let epsilon = largest * T::epsilon().into();
        for ((at, &right), &got) in right.indexed_iter().zip(&got) {
            let (at, got): (_, f64) = (at.slice(), got.into());
            let error = (got - right).abs() / epsilon;
            assert!(
                error <= TOLERANCE,
                "{name}{at:?}, {file}: got {got:e}, torch {right:e}, off by {error:.0} epsilon"
            );
            if error > self.worst.0 {
                self.worst = (error, name.to_owned());
            }
        }
    }
}

fn from<T: Element>(x: f64) -> T {
    <T as num_traits::NumCast>::from(x).expect("a number")
}

/// Runs a cell with what is stored through the sequence and back, and compares all of the rest.
fn check<T: Element, C: Recurrent<T>>(mut cell: C, table: &[Parts], mut stored: Stored) {
    let file = stored.file;
    let mut places = Vec::new();
    for &(name, parts) in table {
        let mut parameter =
            cell.weights_mut().get_mut(name).unwrap_or_else(|| panic!("{file}: the cell has no {name}"));
        let last = Axis(parameter.ndim() - 1);
        let mut end = 0;
        for &part in parts {
            let array = stored.take::<IxDyn>(part).mapv(from);
            let columns = Slice::from(end..end + array.len_of(last));
            end += array.len_of(last);
            parameter.slice_axis_mut(last, columns).assign(&array);
            places.push((name, part, last, columns));
        }
        assert_eq!(end, parameter.len_of(last), "columns of {name} that {file} has");
    }
    cell.visit(|name, _| assert!(table.iter().any(|(known, _)| *known == name), "{file}: {name} is not in the table"));

    let has_c = cell.zero_state(0).c.is_some();
    let x = stored.take::<Ix3>("x").mapv(from::<T>);
    let dy = stored.take::<Ix3>("dy").mapv(from::<T>);
    let initial = stored.state("h_0", "c_0", has_c);
    let d_final = stored.state("dh_T", "dc_T", has_c);
    let mask = stored.arrays.contains_key("mask").then(|| stored.take::<Ix2>("mask").mapv(|present| present == 1.0));
    let (y, last, saved) = cell.forward(&x, Some(&initial), mask.as_deref()).unwrap();
    let mut grad = cell.zero_grad();
    let (dx, d_initial) = cell.backward(&x, &saved, &dy, Some(&d_final), &mut grad).unwrap();

    stored.compare("y", y.view().into_dyn());
    stored.compare("dx", dx.view().into_dyn());
    for (state, h, c) in [(&last, "h_T", "c_T"), (&d_initial, "dh_0", "dc_0")] {
        stored.compare(h, state.h.view().into_dyn());
        if let Some(array) = &state.c {
            stored.compare(c, array.view().into_dyn());
        }
    }
    for (name, part, last, columns) in places {
        stored.compare(&format!("d{part}"), grad.get(name).unwrap().slice_axis(last, columns));
    }
    assert!(stored.arrays.is_empty(), "{file}: nobody asked for {:?}", stored.arrays.keys());
    let (error, worst) = stored.worst;
    println!("{file}, {}: off by at most {error:.1} epsilon, in {worst}", std::any::type_name::<T>());
}

fn lstm<T: Element>(placement: LstmPlacement) -> Lstm<T> {
    Lstm::new(INPUT, HIDDEN, placement, Start::Uniform, &mut StdRng::seed_from_u64(1))
}

fn gru(placement: GruPlacement) -> Gru<f64> {
    Gru::new(INPUT, HIDDEN, placement, Start::Uniform, &mut StdRng::seed_from_u64(1))
}

fn rnn(hidden: usize, placement: RnnPlacement) -> Rnn<f64> {
    Rnn::new(INPUT, hidden, placement, Start::Uniform, &mut StdRng::seed_from_u64(1))
}

#[test]
fn cells_without_normalization_are_those_of_torch_nn() {
    check(rnn(HIDDEN_RNN, RnnPlacement::None), PLAIN, stored!("rnn"));
    check(lstm::<f64>(LstmPlacement::None), PLAIN, stored!("lstm"));
    check(gru(GruPlacement::None), GRU, stored!("gru"));
}

#[test]
fn normalized_cells_are_their_equations_in_torch() {
    check(lstm::<f64>(LstmPlacement::Cell), DRAW, stored!("draw"));
    check(lstm::<f64>(LstmPlacement::ProductsAndCell), LN_LSTM, stored!("ln_lstm"));
    check(gru(GruPlacement::Products), LN_GRU, stored!("ln_gru"));
    check(rnn(HIDDEN, RnnPlacement::Sum), LN_RNN, stored!("ln_rnn"));
}

#[test]
fn padded_sequences_are_those_of_torch() {
    check(lstm::<f64>(LstmPlacement::Cell), DRAW, stored!("draw_masked"));
    check(lstm::<f64>(LstmPlacement::ProductsAndCell), LN_LSTM, stored!("ln_lstm_masked"));
    check(gru(GruPlacement::Products), LN_GRU, stored!("ln_gru_masked"));
    check(rnn(HIDDEN, RnnPlacement::Sum), LN_RNN, stored!("ln_rnn_masked"));
}

#[test]
fn in_f32_there_are_its_roundings_and_no_more() {
    check(lstm::<f32>(LstmPlacement::ProductsAndCell), LN_LSTM, stored!("ln_lstm"));
}
