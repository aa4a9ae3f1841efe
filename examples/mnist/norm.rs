//! Normalizations of the sums of a layer, one a file.
//!
//! One more is one more implementation of [`Norm`] and one more [`Kind`](crate::kind::Kind).

mod batch;
mod bias;
mod layer;
mod rms;

use layernorm::Result;
use layernorm::ndarray::Array2;

use crate::common::adam::Visit;

pub(crate) use batch::Batch;
pub(crate) use bias::Bias;
pub(crate) use layer::Layer;
pub(crate) use rms::Rms;

/// A normalization with its parameters, their gradients, and what forward saves for backward.
pub(crate) trait Norm {
    /// Training. Overwrites `y`.
    fn forward(&mut self, x: &Array2<f32>, y: &mut Array2<f32>) -> Result<()>;

    /// What `x` gives when training is over, in its place.
    fn infer(&self, x: &mut Array2<f32>) -> Result<()>;

    /// Overwrites `dx` and the gradients; `x` is that of the last forward call.
    fn backward(&mut self, x: &Array2<f32>, dy: &Array2<f32>, dx: &mut Array2<f32>) -> Result<()>;

    /// Calls `f` with each parameter and its gradient.
    fn zip(&mut self, f: Visit<'_>) -> Result<()>;
}

#[cfg(test)]
mod tests {
    use layernorm::ndarray::Array1;

    use super::*;
    use crate::kind::Kind;

    const FEATURES: usize = 3;

    /// Rows with a period that shares no factor with the features.
    fn pattern(rows: usize) -> Array2<f32> {
        Array2::from_shape_fn((rows, FEATURES), |(i, j)| ((i * 31 + j * 17) % 23) as f32 / 8.0 - 1.0)
    }

    /// Overwritten parameters, so that gain and bias are not what they are at the start.
    fn changed(kind: Kind, batch: usize) -> Box<dyn Norm> {
        let mut norm = kind.hidden(FEATURES, batch);
        let mut number = 0.0;
        norm.zip(&mut |mut parameter, _| {
            parameter.mapv_inplace(|p| {
                number += 0.25;
                p + number
            });
        })
        .unwrap();
        norm
    }

    fn parameters(norm: &mut dyn Norm) -> Vec<Vec<f32>> {
        let mut all = Vec::new();
        norm.zip(&mut |parameter, gradient| {
            assert_eq!(parameter.shape(), gradient.shape());
            all.push(parameter.iter().copied().collect());
        })
        .unwrap();
        all
    }

    #[test]
    fn the_optimizer_meets_every_gain_and_bias() {
        let (gain, bias) = (vec![1.0; FEATURES], vec![0.0; FEATURES]);
        for kind in Kind::ALL {
            let expected = if kind == Kind::None { vec![bias.clone()] } else { vec![gain.clone(), bias.clone()] };
            assert_eq!(parameters(&mut *kind.hidden(FEATURES, 4)), expected, "{kind}");
        }
    }

    #[test]
    fn gradients_are_slopes() {
        // Each of 12 additions below 8 rounds by at most 2⁻²², which makes 12·2⁻²²/h = 2e-4 of slope. A central difference
        // is off by h²/6 times the third derivative, here about 3 (the error grows fourfold with 2h): 2e-4 allow for 5.
        let h = 1.0 / 64.0;
        let x = pattern(4);
        let weights = Array2::from_shape_fn(x.dim(), |(i, j)| ((i * 5 + j * 3) % 7) as f32 / 4.0 - 0.75);
        for kind in Kind::ALL {
            let loss = |norm: &mut dyn Norm, x: &Array2<f32>| {
                let mut y = Array2::from_elem(x.dim(), f32::NAN);
                norm.forward(x, &mut y).unwrap();
                y.iter().zip(&weights).map(|(&y, &w)| y * w).sum::<f32>()
            };
            let mut norm = changed(kind, 4);
            let mut dx = Array2::from_elem(x.dim(), f32::NAN);
            // Twice: gradients are overwritten, not added to.
            for _ in 0..2 {
                loss(&mut *norm, &x);
                norm.backward(&x, &weights, &mut dx).unwrap();
            }
            let mut gradients = Vec::new();
            norm.zip(&mut |_, gradient| gradients.push(gradient.iter().copied().collect::<Array1<f32>>())).unwrap();

            for (at, &got) in dx.indexed_iter() {
                let (mut up, mut down) = (x.clone(), x.clone());
                up[at] += h;
                down[at] -= h;
                let slope = (loss(&mut *norm, &up) - loss(&mut *norm, &down)) / (2.0 * h);
                assert!((got - slope).abs() < 4e-4, "{kind}: dx{at:?}: got {got}, slope {slope}");
            }
            for (which, gradient) in gradients.iter().enumerate() {
                for (at, &got) in gradient.indexed_iter() {
                    let slope = |step: f32| {
                        let (mut norm, mut number) = (changed(kind, 4), 0);
                        norm.zip(&mut |mut parameter, _| {
                            if number == which {
                                parameter[at] += step;
                            }
                            number += 1;
                        })
                        .unwrap();
                        loss(&mut *norm, &x)
                    };
                    let slope = (slope(h) - slope(-h)) / (2.0 * h);
                    assert!((got - slope).abs() < 4e-4, "{kind}: parameter {which}[{at}]: got {got}, slope {slope}");
                }
            }
        }
    }

    #[test]
    fn without_a_batch_training_and_evaluation_are_the_same() {
        let x = pattern(5);
        for kind in [Kind::Layer, Kind::Rms, Kind::None] {
            let (mut norm, mut y) = (changed(kind, 5), Array2::zeros(x.dim()));
            norm.forward(&x, &mut y).unwrap();
            let mut inferred = x.clone();
            norm.infer(&mut inferred).unwrap();
            assert_eq!(inferred, y, "{kind}");
        }
    }

    #[test]
    fn running_statistics_come_near_those_of_the_batch() {
        for batch in [4, 128] {
            let x = pattern(batch);
            let (mut norm, mut y) = (changed(Kind::Batch, batch), Array2::zeros(x.dim()));
            let gap = |norm: &dyn Norm, y: &Array2<f32>| {
                let mut inferred = x.clone();
                norm.infer(&mut inferred).unwrap();
                (inferred - y).iter().fold(0.0_f32, |most, gap| most.max(gap.abs()))
            };
            norm.forward(&x, &mut y).unwrap();
            assert!(gap(&*norm, &y) > 0.1, "batch {batch}: nothing is known after one batch");
            for _ in 0..20 * 320 {
                norm.forward(&x, &mut y).unwrap();
            }
            // What is left of the start is (1 − momentum)^6400 < e⁻²⁰. Each update rounds mean and variance, below 2, to
            // half a unit, at most 2⁻²⁴/momentum = 2e-5 in all; y has that up to gain·rstd·(1 + |x̂|·rstd/2) < 6 times.
            assert!(gap(&*norm, &y) < 1.2e-4, "batch {batch}: {}", gap(&*norm, &y));
        }
    }

    #[test]
    fn few_images_have_the_unbiased_variance() {
        // x̂ = ±1/√2 divided by N − 1, ±1 divided by N; ε takes 5e-6.
        for (batch, expected) in [(2, 0.5_f32.sqrt()), (16, 0.5_f32.sqrt()), (17, 1.0)] {
            let (mut norm, mut y) = (Kind::Batch.hidden(1, batch), Array2::zeros((2, 1)));
            norm.forward(&layernorm::ndarray::array![[-1.0], [1.0]], &mut y).unwrap();
            assert!((y[[1, 0]] - expected).abs() < 1e-5, "batch {batch}: {y}");
        }
    }
}
