//! A generalized linear model whose sums may be normalized (eq. 10 to 13 of the paper), and the gradient of its log
//! likelihood through the crate's backward passes.
//!
//! ```text
//! z = N(x·Wᵀ)      y ~ P(y|z)      d ln P(y|z)/dz = y − E[y|z]
//!
//! x: [cases, inputs]      W: [outputs, inputs]      z: [cases, outputs]
//! θ = (W, bias, gain), row by row in one vector: [parameters]
//! ```
//!
//! The dispersion φ of the paper is 1, and ε is 0.

use std::ops::Range;

use layernorm::ndarray::{Array1, Array2, ArrayView1, Axis};
use layernorm::{BatchNorm, LayerNorm, Result, WeightNorm};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::{Rng, rngs::StdRng};
use ndarray_rand::rand_distr::{StandardNormal, Uniform};

/// Cases, inputs and outputs where little of each is enough.
pub(crate) const SIZES: [usize; 3] = [24, 4, 5];

/// What is normalized.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Norm {
    /// Nothing: z = x·Wᵀ + bias. There is no gain; the length of a row of W takes its part.
    Standard,
    Weight,
    Batch,
    Layer,
}

impl Norm {
    pub(crate) const ALL: [Self; 4] = [Self::Standard, Self::Weight, Self::Batch, Self::Layer];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Weight => "WeightNorm",
            Self::Batch => "BatchNorm",
            Self::Layer => "LayerNorm",
        }
    }
}

/// P(y|z), with z as its natural parameter.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Family {
    /// y is one of the outputs, with probability softmax(z).
    Softmax,
    /// y is z and noise of variance 1: Cov[y|x] does not depend on x.
    Gaussian,
}

impl Family {
    /// E[y|z] of one case.
    pub(crate) fn mean(self, z: ArrayView1<'_, f64>) -> Array1<f64> {
        match self {
            Self::Softmax => {
                let top = z.fold(f64::NEG_INFINITY, |top, &z| top.max(z));
                let p = z.mapv(|z| (z - top).exp());
                &p / p.sum()
            }
            Self::Gaussian => z.to_owned(),
        }
    }

    /// Cov[y|z] of one case: `[outputs, outputs]`
    pub(crate) fn covariance(self, z: ArrayView1<'_, f64>) -> Array2<f64> {
        match self {
            Self::Softmax => {
                let p = self.mean(z);
                Array2::from_diag(&p) - p.view().insert_axis(Axis(1)).dot(&p.view().insert_axis(Axis(0)))
            }
            Self::Gaussian => Array2::eye(z.len()),
        }
    }

    /// y of one case.
    pub(crate) fn draw(self, z: ArrayView1<'_, f64>, rng: &mut StdRng) -> Array1<f64> {
        match self {
            Self::Softmax => {
                let mut left = rng.random::<f64>();
                let drawn = self.mean(z).iter().position(|p| {
                    left -= p;
                    left < 0.0
                });
                let mut y = Array1::zeros(z.len());
                // Rounding may leave a little above 0.
                y[drawn.unwrap_or(z.len() - 1)] = 1.0;
                y
            }
            Self::Gaussian => Array1::random_using(z.len(), StandardNormal, rng) + z,
        }
    }
}

/// θ and the cases that it is looked at with.
#[derive(Clone)]
pub(crate) struct Glm {
    pub(crate) norm: Norm,
    pub(crate) family: Family,
    pub(crate) x: Array2<f64>,
    pub(crate) weight: Array2<f64>,
    pub(crate) gain: Array1<f64>,
    pub(crate) bias: Array1<f64>,
}

/// From the gradient by z to that by θ.
pub(crate) type Back<'a> = Box<dyn Fn(&Array2<f64>) -> Result<Array1<f64>> + 'a>;

impl Glm {
    /// Drawn so that sums have a spread near 1.
    pub(crate) fn random(norm: Norm, family: Family, [cases, inputs, outputs]: [usize; 3], rng: &mut StdRng) -> Self {
        Self {
            norm,
            family,
            x: Array2::random_using((cases, inputs), StandardNormal, rng),
            weight: Array2::random_using((outputs, inputs), StandardNormal, rng) / (inputs as f64).sqrt(),
            gain: Array1::random_using(outputs, Uniform::new(0.5, 1.5).expect("0.5 < 1.5"), rng),
            bias: Array1::random_using(outputs, StandardNormal, rng) * 0.5,
        }
    }

    /// Where W, bias and gain are in θ.
    pub(crate) fn parts(&self) -> [Range<usize>; 3] {
        let (weights, outputs) = (self.weight.len(), self.bias.len());
        [0..weights, weights..weights + outputs, weights + outputs..weights + 2 * outputs]
    }

    /// z, and the way back.
    ///
    /// In the place of the gain, the standard model has the length of each row of W, as eq. 35 has.
    pub(crate) fn forward(&self) -> Result<(Array2<f64>, Back<'_>)> {
        let Self { x, weight, .. } = self;
        let (outputs, gain, bias) = (self.gain.len(), self.gain.clone(), self.bias.clone());
        Ok(match self.norm {
            Norm::Standard => {
                let back = move |dz: &Array2<f64>| {
                    let dweight = dz.t().dot(x);
                    let dlength = (&dweight * weight).sum_axis(Axis(1)) / lengths(weight);
                    Ok(join(&dweight, &dz.sum_axis(Axis(0)), &dlength))
                };
                (x.dot(&weight.t()) + bias, Box::new(back))
            }
            Norm::Weight => {
                let norm = WeightNorm::new(outputs).with_gain(gain)?;
                let (normed, saved) = norm.forward(weight)?;
                let back = move |dz: &Array2<f64>| {
                    let mut grad = norm.zero_grad();
                    let dweight = norm.backward(weight, &saved, &dz.t().dot(x), &mut grad)?;
                    Ok(join(&dweight, &dz.sum_axis(Axis(0)), grad.gain().iter().flatten()))
                };
                (x.dot(&normed.t()) + bias, Box::new(back))
            }
            Norm::Batch => {
                let norm = BatchNorm::new(outputs).with_eps(0.0)?.with_gain(gain)?.with_bias(bias)?;
                let sums = x.dot(&weight.t());
                let (z, saved) = norm.forward(&sums)?;
                let back = move |dz: &Array2<f64>| {
                    let mut grad = norm.zero_grad();
                    let dsums = norm.backward(&sums, &saved, dz, &mut grad)?;
                    Ok(join(&dsums.t().dot(x), grad.bias().iter().flatten(), grad.gain().iter().flatten()))
                };
                (z, Box::new(back))
            }
            Norm::Layer => {
                let norm = LayerNorm::new(outputs).with_eps(0.0)?.with_gain(gain)?.with_bias(bias)?;
                let sums = x.dot(&weight.t());
                let (z, saved) = norm.forward(&sums)?;
                let back = move |dz: &Array2<f64>| {
                    let mut grad = norm.zero_grad();
                    let dsums = norm.backward(&sums, &saved, dz, &mut grad)?;
                    Ok(join(&dsums.t().dot(x), grad.bias().iter().flatten(), grad.gain().iter().flatten()))
                };
                (z, Box::new(back))
            }
        })
    }
}

/// ‖w‖ of each row.
pub(crate) fn lengths(weight: &Array2<f64>) -> Array1<f64> {
    weight.map_axis(Axis(1), |w| w.pow2().sum().sqrt())
}

fn join<'a>(
    dweight: &'a Array2<f64>,
    dbias: impl IntoIterator<Item = &'a f64>,
    dgain: impl IntoIterator<Item = &'a f64>,
) -> Array1<f64> {
    dweight.iter().chain(dbias).chain(dgain).copied().collect()
}
