//! What the paper says of recurrent networks: the scale of the recurrent weights does not matter to a normalized one, so
//! that its state neither dies out nor explodes (section 3.1).

use layernorm::ndarray::{Array2, Array3};
use layernorm::rnn::{GruPlacement, LstmPlacement, RnnPlacement, Start, State};
use layernorm::{Gru, Lstm, Recurrent, Rnn};

use crate::common::{draw, drawn, rng, state};

const HIDDEN: usize = 24;

/// Without input and with ε = 0; the recurrent weights times `scale`.
fn trajectory<C: Recurrent<f64>>(cell: C, scale: f64) -> Array3<f64> {
    let mut cell = cell.with_eps(0.0).unwrap();
    cell.weights_mut().get_mut("recurrent_weight").unwrap().mapv_inplace(|w| w * scale);
    let initial = state(&cell, 3, 1);
    cell.forward(&Array3::zeros((30, 3, 2)), Some(&initial), None).unwrap().0
}

#[test]
fn scaling_the_recurrent_weights_leaves_the_trajectory_as_it_was() {
    let rnn = draw(Rnn::new(2, HIDDEN, RnnPlacement::Sum, Start::Uniform, &mut rng()));
    let lstm = draw(Lstm::new(2, HIDDEN, LstmPlacement::ProductsAndCell, Start::Uniform, &mut rng()));
    let gru = draw(Gru::new(2, HIDDEN, GruPlacement::Products, Start::Uniform, &mut rng()));
    let plain = draw(Rnn::new(2, HIDDEN, RnnPlacement::None, Start::Uniform, &mut rng()));
    // Powers of two round nothing, so that not even a chaotic trajectory can tell.
    for scale in [0.5, 1.0, 2.0, 4.0] {
        assert_eq!(trajectory(rnn.clone(), scale), trajectory(rnn.clone(), 1.0), "Rnn, scale {scale}");
        assert_eq!(trajectory(lstm.clone(), scale), trajectory(lstm.clone(), 1.0), "Lstm, scale {scale}");
        assert_eq!(trajectory(gru.clone(), scale), trajectory(gru.clone(), 1.0), "Gru, scale {scale}");
        assert_eq!(trajectory(plain.clone(), scale) == trajectory(plain.clone(), 1.0), scale == 1.0, "scale {scale}");
    }
}

/// log₁₀ of the length of the gradient by the state, each 100 of 1,000 steps back, without input and with ε = 0; the
/// recurrent weights are `scale` times a rotation.
fn lengths(placement: RnnPlacement, gain: f64, scale: f64) -> Vec<f64> {
    let cell = Rnn::<f64>::new(2, HIDDEN, placement, Start::Orthogonal, &mut rng());
    let mut cell = cell.with_gain_value(gain).with_eps(0.0).unwrap();
    cell.weights_mut().get_mut("recurrent_weight").unwrap().mapv_inplace(|w| w * scale);
    let (x, dy) = (Array3::zeros((100, 1, 2)), Array3::zeros((100, 1, HIDDEN)));
    let mut before = state(&cell, 1, 1);
    before.h.mapv_inplace(|h| h * gain);
    let mut pieces = Vec::new();
    for _ in 0..10 {
        let (_, last, saved) = cell.forward(&x, Some(&before), None).unwrap();
        before = last;
        pieces.push(saved);
    }
    let mut d_state = State { h: drawn((1, HIDDEN), 3), c: None };
    let mut lengths = Vec::new();
    for saved in pieces.iter().rev() {
        (_, d_state) = cell.backward(&x, saved, &dy, Some(&d_state), &mut cell.zero_grad()).unwrap();
        lengths.push(length(&d_state.h).log10());
    }
    lengths
}

fn length(h: &Array2<f64>) -> f64 {
    h.iter().map(|x| x * x).sum::<f64>().sqrt()
}

/// With a small gain tanh is nearly linear, and a normalized step nearly a rotation of the sphere that LN(a) lies on,
/// whatever the scale of the weights. With gain 1 it is chaotic: gradients grow, and by the same at every scale.
#[test]
fn gradients_do_not_vanish_or_explode_with_the_scale_of_the_weights() {
    for gain in [0.01, 1.0] {
        let right = lengths(RnnPlacement::Sum, gain, 1.0);
        for scale in [0.5, 2.0, 4.0] {
            // A power of two is exact here as well.
            assert_eq!(lengths(RnnPlacement::Sum, gain, scale), right, "gain {gain}, scale {scale}");
        }
        if gain < 1.0 {
            assert!(right.iter().all(|length| length.abs() < 1.0), "between a tenth and ten: {right:?}");
        }
    }
    let plain = |scale| lengths(RnnPlacement::None, 1.0, scale)[9];
    assert!(plain(0.5) < -100.0, "{}", plain(0.5));
    assert!(plain(2.0) > 30.0, "{}", plain(2.0));
    assert!(plain(4.0) > 100.0, "{}", plain(4.0));
}
