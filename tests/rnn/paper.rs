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

/// log₁₀ of the length of the gradient by the initial state, after every 100 of 1,000 steps back; recurrent weights
/// `scale` times a rotation.
fn lengths(placement: RnnPlacement, scale: f64) -> Vec<f64> {
    let mut cell = Rnn::<f64>::new(2, HIDDEN, placement, Start::Orthogonal, &mut rng()).with_eps(0.0).unwrap();
    cell.weights_mut().get_mut("recurrent_weight").unwrap().mapv_inplace(|w| w * scale);
    let initial = state(&cell, 1, 1);
    let pieces: Vec<_> = {
        let mut before = initial;
        let mut forward = |_| {
            let x = Array3::zeros((100, 1, 2));
            let (_, last, saved) = cell.forward(&x, Some(&before), None).unwrap();
            before = last;
            (x, saved)
        };
        (0..10).map(&mut forward).collect()
    };
    let mut d_state = State { h: drawn((1, HIDDEN), 3), c: None };
    let dy = Array3::zeros((100, 1, HIDDEN));
    let mut lengths = Vec::new();
    for (x, saved) in pieces.iter().rev() {
        (_, d_state) = cell.backward(x, saved, &dy, Some(&d_state), &mut cell.zero_grad()).unwrap();
        lengths.push(length(&d_state.h).log10());
    }
    lengths
}

fn length(h: &Array2<f64>) -> f64 {
    h.iter().map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn gradients_neither_vanish_nor_explode_with_the_scale_of_the_weights() {
    let scales = [0.5, 1.0, 2.0, 4.0];
    let normalized = scales.map(|scale| lengths(RnnPlacement::Sum, scale));
    // Scaling by a power of two is exact: W·P(da) is the same number.
    for lengths in &normalized {
        assert_eq!(lengths, &normalized[1]);
    }
    println!("normalized {:?}", normalized[1]);
    println!("plain {:?}", scales.map(|scale| lengths(RnnPlacement::None, scale)));
}
