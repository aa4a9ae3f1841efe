//! Table 1 of the paper, all 24 cells, and what it means for gradients. The example `invariance` prints the same
//! measurements.
//!
//! * Exactly, with eps = 0 in f64: where the table says so, a prediction changes by rounding alone, and not at all if what
//!   is scaled is scaled by a power of two. Everywhere else it changes by as much as it is.
//! * With eps = 1e-5 in f32 it changes by no more than eps can do, and by what the formula says.
//! * A loss that does not see a change has a gradient at right angles to it: for layer norm <W, dW> = 0 and 1ᵀdW = 0. And
//!   a weight matrix twice as large has a gradient half as large.

#[path = "../examples/invariance/measure.rs"]
mod measure;

use layernorm::LayerNorm;
use layernorm::ndarray::{Array1, Array2, ArrayView1, Axis};
use measure::{Change, Network, Norm, Number, deviation, doubled, largest};

/// The paper's, in its order; the last row is not in it.
const TABLE: [[bool; 6]; 4] = {
    let (yes, no) = (true, false);
    [
        [yes, no, yes, yes, yes, no],
        [yes, no, yes, no, no, no],
        [yes, yes, no, yes, no, yes],
        [yes, no, no, yes, no, yes],
    ]
};

fn cells() -> impl Iterator<Item = (Norm, Change, bool)> {
    let rows = Norm::ALL.into_iter().zip(TABLE);
    rows.flat_map(|(norm, row)| Change::ALL.into_iter().zip(row).map(move |(change, same)| (norm, change, same)))
}

/// How far a prediction may be from that of exact arithmetic with eps = 0; u is half an ulp of 1, k inputs, n elements in
/// what is normalized.
///
/// An element of x and w is off by u of itself, and their product by another k·u·Σ|x||w|; the mean that is subtracted by
/// n·u·Σ|x||w| at most. A change of a by δ changes x̂ by δ·(1 + mean|x̂| + |x̂|)/σ at most, and mean|x̂| ≤ 1. The variance and
/// what follows it is good to (n + 8)·u of x̂ and the bias. eps takes 1 − 1/√(1 + eps/σ²) ≤ eps/2σ² of x̂.
fn bound(network: &Network, norm: Norm, eps: f64, u: f64) -> f64 {
    let Network { x, weight, gain, bias, .. } = network;
    let (sums, sizes) = (x.dot(&weight.t()), x.mapv(f64::abs).dot(&weight.mapv(f64::abs).t()));
    let along = Axis(if matches!(norm, Norm::Layer | Norm::Rms) { 0 } else { 1 });
    let (mut condition, mut top, mut least) = (0.0_f64, 0.0_f64, f64::INFINITY);
    for (group, (a, size)) in sums.axis_iter(along).zip(sizes.axis_iter(along)).enumerate() {
        let mean_square = |a: ArrayView1<'_, f64>, mean: f64| a.map(|a| (a - mean).powi(2)).mean().unwrap();
        let (mean, sigma) = match norm {
            Norm::Batch | Norm::Layer => (a.mean().unwrap(), mean_square(a, a.mean().unwrap()).sqrt()),
            Norm::Rms => (0.0, mean_square(a, 0.0).sqrt()),
            Norm::Weight => (0.0, weight.row(group).pow2().sum().sqrt()),
        };
        condition = condition.max(largest(size.iter().copied()) / sigma);
        top = top.max(largest(a.iter().map(|a| (a - mean) / sigma)));
        least = least.min(sigma);
    }
    let (k, n) = (x.ncols() as f64, x.nrows().max(weight.nrows()) as f64);
    // Weight norm divides by a length, without eps.
    let eps = if norm == Norm::Weight { 0.0 } else { eps };
    let [gain, bias] = [gain, bias].map(|parameter| largest(parameter.iter().copied()));
    gain * ((2.0 + top) * (k + n + 2.0) * u * condition + top * eps / (2.0 * least.powi(2)))
        + (n + 8.0) * u * (gain * top + bias)
}

fn all_cells<T: Number>(eps: f64, u: f64) {
    for seed in 1..=20 {
        let network = Network::random(seed);
        for ((norm, change, same), factor) in cells().flat_map(|cell| [0.3, 3.0, 5.0].map(|factor| (cell, factor))) {
            let changed = network.changed(change, factor);
            let [h, h_changed] = [&network, &changed].map(|network| network.predict::<T>(norm, eps).unwrap());
            let got = deviation(&h, &h_changed);
            let at = format!("{norm:?}, {change:?} by {factor}, seed {seed}: changed by {got:e}");
            if same {
                // One exact prediction, and each of two computed ones near it.
                let bound = bound(&network, norm, eps, u) + bound(&changed, norm, eps, u);
                assert!(got <= bound, "{at}, not within {bound:e}");
            } else {
                assert!(got > 0.25, "{at}");
            }
        }
    }
}

#[test]
fn f64_without_eps_has_the_papers_table() {
    all_cells::<f64>(0.0, f64::EPSILON / 2.0);
}

#[test]
fn f32_with_eps_has_it_within_what_eps_can_do() {
    all_cells::<f32>(1e-5, f64::from(f32::EPSILON) / 2.0);
}

#[test]
fn scaling_by_a_power_of_two_does_not_even_round() {
    let scalings = [Change::MatrixScaled, Change::VectorScaled, Change::DataScaled, Change::CaseScaled];
    for (norm, change, _) in cells().filter(|(_, change, same)| *same && scalings.contains(change)) {
        let network = Network::random(1);
        let h = network.predict::<f64>(norm, 0.0).unwrap();
        for exponent in [-40, -1, 1, 20] {
            let changed = network.changed(change, 2_f64.powi(exponent)).predict::<f64>(norm, 0.0).unwrap();
            for (at, got) in changed.indexed_iter() {
                let (norm, expected) = (format!("{norm:?}, {change:?} by 2^{exponent}"), h[at]);
                assert_eq!(got.to_bits(), expected.to_bits(), "{norm}, h{at:?}: {got} and {expected}");
            }
        }
    }
}

#[test]
fn eps_changes_small_rows_by_what_the_formula_says() {
    for std in [1.0, 0.1, 0.01, 0.001] {
        // `std` is rounded, then four operations each for y and y': fewer than 16 roundings of numbers below 2.
        let (got, expected) = doubled::<f32>(std, 1e-5).unwrap();
        assert!((got - expected).abs() < 16.0 * f64::from(f32::EPSILON), "f32, {std}: {got:e} and {expected:e}");
        let (got, expected) = doubled::<f64>(std, 1e-5).unwrap();
        assert!((got - expected).abs() < 16.0 * f64::EPSILON, "f64, {std}: {got:e} and {expected:e}");
        // PAPER: a relative change of no more than eps/2s² · (1 − 1/4), which is 3.75e-6 at s = 1.
        assert!(expected <= 0.375 * 1e-5 / (std * std), "{std}: {expected:e}");
    }
}

/// da and dW = daᵀ·X of the loss Σ h ⊙ dh under layer norm.
fn gradients(network: &Network, eps: f64) -> (Array2<f64>, Array2<f64>) {
    let Network { x, weight, gain, .. } = network;
    let norm = LayerNorm::new(gain.len()).with_eps(eps).unwrap().with_gain(gain.clone()).unwrap();
    let sums = x.dot(&weight.t());
    let (_, saved) = norm.forward(&sums).unwrap();
    let dh = Array2::from_shape_fn(sums.dim(), |(n, i)| ((n * 31 + i * 17) % 101) as f64 / 101.0 - 0.4);
    let da = norm.backward(&sums, &saved, &dh, &mut norm.zero_grad()).unwrap();
    let dweight = da.t().dot(x);
    (da, dweight)
}

/// Σ max|da|·|x| over the cases, for each input: what an element of dW may be made of. An element of da is good to
/// 1e-15 < 10u of its row's largest (`accuracy.rs`).
fn sizes(da: &Array2<f64>, x: &Array2<f64>) -> Array1<f64> {
    let tops = da.map_axis(Axis(1), |row| largest(row.iter().copied()));
    tops.dot(&x.mapv(f64::abs))
}

const U: f64 = f64::EPSILON / 2.0;

#[test]
fn the_gradient_is_at_right_angles_to_the_weights() {
    for seed in 1..=20 {
        let network = Network::random(seed);
        let Network { x, weight, .. } = &network;
        let inner = |eps| {
            let (da, dweight) = gradients(&network, eps);
            // A product of k terms before the norm; then da, a product with a term for each case, and the sum over W.
            let terms = x.ncols() + 10 + x.nrows() + weight.len();
            let size = weight.mapv(f64::abs).dot(&sizes(&da, x)).sum();
            ((weight * &dweight).sum(), terms as f64 * U * size)
        };
        let (got, bound) = inner(0.0);
        assert!(got.abs() <= bound, "seed {seed}: {got:e}, not within {bound:e}");
        // eps > 0 sees the scale: <W, dW> = eps·Σ r²·<x̂, gain ⊙ dh>.
        let (got, bound) = inner(1e-2);
        assert!(got.abs() > 1e6 * bound, "seed {seed}, eps = 0.01: {got:e} and {bound:e}");
    }
}

#[test]
fn the_gradient_sums_to_zero_over_the_units() {
    for (seed, eps) in (1..=20).flat_map(|seed| [(seed, 0.0), (seed, 1e-2)]) {
        let network = Network::random(seed);
        let (da, dweight) = gradients(&network, eps);
        let (cases, units) = da.dim();
        for (j, (column, size)) in dweight.columns().into_iter().zip(sizes(&da, &network.x)).enumerate() {
            let (got, bound) = (column.sum(), (10 + cases + units) as f64 * U * size * units as f64);
            assert!(got.abs() <= bound, "seed {seed}, eps = {eps}, input {j}: {got:e}, not within {bound:e}");
            assert!(largest(column.iter().copied()) > 1e6 * bound, "seed {seed}, input {j}: no gradient");
        }
    }
}

#[test]
fn the_gradient_shrinks_as_the_weights_grow() {
    let network = Network::random(1);
    let (_, dweight) = gradients(&network, 0.0);
    for exponent in [-40, -1, 1, 20] {
        let factor = 2_f64.powi(exponent);
        let (_, got) = gradients(&network.changed(Change::MatrixScaled, factor), 0.0);
        for (at, got) in got.indexed_iter() {
            let expected = dweight[at] / factor;
            assert_eq!(got.to_bits(), expected.to_bits(), "W·2^{exponent}, dW{at:?}: {got} and {expected}");
        }
    }
}
