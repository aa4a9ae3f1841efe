//! The Fisher information by formula: F = E[Jᵀ·Cov[y|x]·J] with J = dz/dθ, the mean over the cases.
//!
//! ```text
//! standard     dzᵢ/dwᵢ = x                                            dzᵢ/d‖wᵢ‖  = âᵢ = wᵢᵀx/‖wᵢ‖
//! WeightNorm   dzᵢ/dwᵢ = gainᵢ/‖wᵢ‖·(x − âᵢ·wᵢ/‖wᵢ‖)                  dzᵢ/dgainᵢ = âᵢ
//! BatchNorm    dzᵢ/dwᵢ = gainᵢ/σᵢ·(x − E[x] − x̂ᵢ·E[x̂ᵢ·(x − E[x])])    dzᵢ/dgainᵢ = x̂ᵢ
//! LayerNorm    dz/dW   = diag(gain)·(I − 11ᵀ/H − x̂x̂ᵀ/H)/σ ⊗ xᵀ        dzᵢ/dgainᵢ = x̂ᵢ
//! ```
//!
//! and dzᵢ/dbiasᵢ = 1. These are eq. 12, 13, 14 and 35 of the paper, but for two things. Eq. 35 prints ‖wᵢ‖ where ‖wⱼ‖ is
//! meant. And eq. 13 counts how wᵢ moves its own output zᵢ alone; under layer norm wᵢ moves μ and σ of a case, and with
//! them each of its H outputs.

use layernorm::Result;
use layernorm::ndarray::{Array2, Axis, s};
use ndarray_rand::rand::rngs::StdRng;

use crate::model::{Family, Glm, Norm, lengths};

/// Which derivatives of outputs by weights count.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Outputs {
    /// dz/dwᵢ: all that there are.
    All,
    /// dzᵢ/dwᵢ: those of eq. 13 and 14.
    Own,
}

/// `[parameters, parameters]`
pub(crate) fn fisher(glm: &Glm, outputs: Outputs) -> Result<Array2<f64>> {
    let (z, _) = glm.forward()?;
    let jacobians = jacobians(glm, outputs);
    let parameters = glm.parts()[2].end;
    let mut fisher = Array2::zeros((parameters, parameters));
    for (z, jacobian) in z.rows().into_iter().zip(&jacobians) {
        fisher += &jacobian.t().dot(&glm.family.covariance(z)).dot(jacobian);
    }
    Ok(fisher / z.nrows() as f64)
}

/// dz/dθ of each case: `[outputs, parameters]`
pub(crate) fn jacobians(glm: &Glm, outputs: Outputs) -> Vec<Array2<f64>> {
    let Glm { norm, x, weight, gain, .. } = glm;
    let (h, inputs) = weight.dim();
    let [_, biases, gains] = glm.parts();
    let normed = normed(glm);
    let units = weight / &lengths(weight).insert_axis(Axis(1));
    let centred = x - &x.mean_axis(Axis(0)).expect("cases");
    // E[x̂ᵢ·(x − E[x])]
    let together = normed.t().dot(&centred) / x.nrows() as f64;
    let sums = x.dot(&weight.t());

    let of_case = |case: usize| {
        let (x, xhat) = (x.row(case), normed.row(case));
        // dzₖ/dwᵢ is mixing[k, i]·directions[i].
        let (mixing, directions) = match norm {
            Norm::Standard => (Array2::eye(h), Array2::zeros((h, inputs)) + x),
            Norm::Weight => {
                let mixing = Array2::from_diag(&(gain / lengths(weight)));
                (mixing, &x - &units * &xhat.insert_axis(Axis(1)))
            }
            Norm::Batch => {
                let mixing = Array2::from_diag(&(gain / sums.std_axis(Axis(0), 0.0)));
                (mixing, &centred.row(case) - &together * &xhat.insert_axis(Axis(1)))
            }
            Norm::Layer => {
                let outer = xhat.insert_axis(Axis(1)).dot(&xhat.insert_axis(Axis(0)));
                let projection = Array2::eye(h) - (outer + 1.0) / h as f64;
                let mixing = projection * gain.view().insert_axis(Axis(1)) / sums.row(case).std(0.0);
                (mixing, Array2::zeros((h, inputs)) + x)
            }
        };
        let mixing = if outputs == Outputs::Own { Array2::from_diag(&mixing.diag()) } else { mixing };
        let mut jacobian = Array2::zeros((h, gains.end));
        for ((k, i), factor) in mixing.indexed_iter() {
            let weights = i * inputs..(i + 1) * inputs;
            jacobian.slice_mut(s![k, weights]).assign(&(&directions.row(i) * *factor));
        }
        jacobian.slice_mut(s![.., biases.clone()]).diag_mut().fill(1.0);
        jacobian.slice_mut(s![.., gains.clone()]).diag_mut().assign(&xhat);
        jacobian
    };
    (0..x.nrows()).map(of_case).collect()
}

/// x̂ or â: `[cases, outputs]`
pub(crate) fn normed(glm: &Glm) -> Array2<f64> {
    let sums = glm.x.dot(&glm.weight.t());
    let axis = match glm.norm {
        Norm::Standard | Norm::Weight => return sums / lengths(&glm.weight),
        Norm::Batch => Axis(0),
        Norm::Layer => Axis(1),
    };
    let mean = sums.mean_axis(axis).expect("cases and outputs").insert_axis(axis);
    let spread = sums.std_axis(axis, 0.0).insert_axis(axis);
    (sums - mean) / spread
}

/// How much of the trace of the block of W eq. 13 and 14 have for layer norm, with H outputs of equal and independent
/// spread: Σ(1 − 1/H − x̂ᵢ²/H)² of ‖I − 11ᵀ/H − x̂x̂ᵀ/H‖² = H − 2, in the mean over 100 cases.
pub(crate) fn own_share(outputs: usize, rng: &mut StdRng) -> f64 {
    let glm = Glm::random(Norm::Layer, Family::Gaussian, [100, 4 * outputs, outputs], rng);
    let h = outputs as f64;
    let own = normed(&glm).mapv(|xhat| (1.0 - 1.0 / h - xhat * xhat / h).powi(2)).sum_axis(Axis(1));
    (own / (h - 2.0)).mean().expect("cases")
}

#[cfg(test)]
mod tests {
    use ndarray_rand::rand::SeedableRng;

    use super::*;

    /// What both ways to a derivative may round: it is a product of x and no more than four others, x̂ or 1/σ among them,
    /// whose errors are (k + n + 8)·u·Σ|x||w|/σ with k inputs and n cases or outputs in a sum.
    fn bound(glm: &Glm, largest: f64) -> f64 {
        let sums = glm.x.dot(&glm.weight.t());
        let sizes = glm.x.mapv(f64::abs).dot(&glm.weight.mapv(f64::abs).t());
        let spreads = [sums.std_axis(Axis(0), 0.0), sums.std_axis(Axis(1), 0.0), lengths(&glm.weight)];
        let least = spreads.iter().flatten().fold(f64::INFINITY, |least, &spread| least.min(spread));
        let condition = sizes.fold(0.0, |top: f64, &size| top.max(size)) / least;
        let terms = glm.x.ncols() + sums.nrows().max(sums.ncols()) + 8;
        4.0 * terms as f64 * f64::EPSILON / 2.0 * condition * largest
    }

    #[test]
    fn jacobians_are_the_ways_back() {
        for norm in Norm::ALL {
            let glm = Glm::random(norm, Family::Softmax, [6, 4, 5], &mut StdRng::seed_from_u64(1));
            let (z, back) = glm.forward().unwrap();
            for (case, jacobian) in jacobians(&glm, Outputs::All).into_iter().enumerate() {
                let bound = bound(&glm, jacobian.fold(0.0, |top, x| x.abs().max(top)));
                assert!(bound < 1e-11, "{norm:?}, case {case}: {bound:e}");
                for (output, expected) in jacobian.rows().into_iter().enumerate() {
                    let mut dz = Array2::zeros(z.dim());
                    dz[[case, output]] = 1.0;
                    for (at, (got, expected)) in back(&dz).unwrap().iter().zip(expected).enumerate() {
                        let here = format!("{norm:?}, case {case}, dz{output}/dθ{at}");
                        assert!((got - expected).abs() <= bound, "{here}: {got} and {expected}, not within {bound:e}");
                    }
                }
            }
        }
    }

    #[test]
    fn own_outputs_are_all_but_for_layer_norm() {
        for norm in Norm::ALL {
            let glm = Glm::random(norm, Family::Softmax, [6, 4, 5], &mut StdRng::seed_from_u64(1));
            let [all, own] = [Outputs::All, Outputs::Own].map(|outputs| fisher(&glm, outputs).unwrap());
            assert_eq!(all == own, norm != Norm::Layer, "{norm:?}");
        }
    }
}
