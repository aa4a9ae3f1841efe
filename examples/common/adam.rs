//! Adam (Kingma, Ba, arXiv:1412.6980, algorithm 1).
//!
//! ```text
//! m = β₁·m + (1 − β₁)·g              mean of the gradients
//! v = β₂·v + (1 − β₂)·g²             mean of their squares
//! p = p − rate · m̂ / (√v̂ + ε)       m̂ = m/(1 − β₁ᵗ), v̂ = v/(1 − β₂ᵗ): both means start from 0
//! ```

use layernorm::Result;
use layernorm::ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, Zip};

/// What a walk over parameters calls with each of them and its gradient.
pub(crate) type Visit<'a> = &'a mut dyn FnMut(ArrayViewMutD<'_, f32>, ArrayViewD<'_, f32>);

/// A network as its optimizer sees it.
pub(crate) trait Trained {
    /// Calls `f` with each parameter and its gradient, always in the same order.
    fn zip(&mut self, f: Visit<'_>) -> Result<()>;
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPS: f32 = 1e-8;

/// The optimizer of all experiments of the paper.
pub(crate) struct Adam {
    steps: i32,
    /// m and v of each parameter, in the order in which the network names them.
    moments: Vec<[ArrayD<f32>; 2]>,
}

impl Adam {
    pub(crate) fn new() -> Self {
        Self { steps: 0, moments: Vec::new() }
    }

    /// Moves every parameter of the network against its gradient, most by about `rate`.
    pub(crate) fn step(&mut self, network: &mut impl Trained, rate: f32) -> Result<()> {
        self.steps += 1;
        let mut at = 0;
        network.zip(&mut |parameter, gradient| {
            if at == self.moments.len() {
                self.moments.push([ArrayD::zeros(parameter.raw_dim()), ArrayD::zeros(parameter.raw_dim())]);
            }
            update(parameter, gradient, &mut self.moments[at], rate, self.steps);
            at += 1;
        })
    }
}

fn update(
    parameter: ArrayViewMutD<'_, f32>,
    gradient: ArrayViewD<'_, f32>,
    [mean, square]: &mut [ArrayD<f32>; 2],
    rate: f32,
    steps: i32,
) {
    let scale = |beta: f32| 1.0 / (1.0 - beta.powi(steps));
    let (mean_scale, square_scale) = (scale(BETA1), scale(BETA2));
    Zip::from(parameter).and(gradient).and(mean).and(square).for_each(|p, &g, m, v| {
        *m = BETA1 * *m + (1.0 - BETA1) * g;
        *v = BETA2 * *v + (1.0 - BETA2) * g * g;
        *p -= rate * (*m * mean_scale) / ((*v * square_scale).sqrt() + EPS);
    });
}

#[cfg(test)]
mod tests {
    use layernorm::ndarray::array;

    use super::*;

    #[test]
    fn first_steps_are_as_long_as_the_rate() {
        let mut parameter = array![1.0_f32, 1.0, 1.0].into_dyn();
        let gradient = array![3.0_f32, -1e-4, 0.0].into_dyn();
        let mut moments = [ArrayD::zeros(gradient.raw_dim()), ArrayD::zeros(gradient.raw_dim())];
        for steps in 1..=2 {
            update(parameter.view_mut(), gradient.view(), &mut moments, 0.5, steps);
        }
        // A constant gradient gives m̂ = g and v̂ = g², so that a step is the rate, but for ε beside |g| = 1e-4.
        for (got, expected) in parameter.iter().zip([0.0, 2.0, 1.0]) {
            assert!((got - expected).abs() < 3e-4, "{parameter}");
        }
    }

    /// By hand, for the gradients 4 and 1:
    ///
    /// ```text
    /// m = 0.1·4       then  0.9·0.4 + 0.1·1 = 0.46               m̂ = 0.46/(1 − 0.9²) = 0.46/0.19
    /// v = 0.001·16    then  0.999·0.016 + 0.001·1 = 0.016984     v̂ = 0.016984/(1 − 0.999²) = 0.016984/0.001999
    /// ```
    #[test]
    fn a_second_step_remembers_the_first_gradient() {
        let mut parameter = array![0.0_f32].into_dyn();
        let mut moments = [ArrayD::zeros(parameter.raw_dim()), ArrayD::zeros(parameter.raw_dim())];
        for (steps, gradient) in [(1, 4.0_f32), (2, 1.0)] {
            parameter.fill(0.0);
            update(parameter.view_mut(), array![gradient].into_dyn().view(), &mut moments, 1.0, steps);
        }
        let (got, expected) = (f64::from(parameter[[0]]), -(0.46 / 0.19) / (0.016984_f64 / 0.001999).sqrt());
        // β₂² is rounded by up to 2⁻²⁵, 1.5e-5 of 1 − β₂², and the root takes half of it. β₂ = 0.9989 is 2.2e-5 off.
        assert!((got - expected).abs() < 1e-5, "{got} instead of {expected}");
    }
}
