//! What a layer predicts before and after its weights or its data are changed.
//!
//! ```text
//! h = N(x·Wᵀ)      x: [cases, inputs]      W: [units, inputs]      h: [cases, units]
//! ```
//!
//! N is eq. 5 of the paper with a gain and a bias for each unit: it normalizes the columns of x·Wᵀ (batch norm), its rows
//! (layer norm, RMS norm) or the rows of W (weight norm). What follows, as the nonlinearity f, sees h alone. RMS norm has
//! no bias, and the table does not depend on it.

#[path = "../common/largest.rs"]
mod largest;

use layernorm::ndarray::{Array, Array1, Array2, Axis, Dimension};
use layernorm::{BatchNorm, Element, LayerNorm, Result, RmsNorm, WeightNorm};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};
use ndarray_rand::rand_distr::{StandardNormal, Uniform};

pub(crate) use largest::largest;

/// What a prediction is computed in.
pub(crate) trait Number: Element {
    fn of(value: f64) -> Self;
}

impl Number for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }
}

impl Number for f64 {
    fn of(value: f64) -> Self {
        value
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Norm {
    Batch,
    Weight,
    Layer,
    Rms,
}

impl Norm {
    pub(crate) const ALL: [Self; 4] = [Self::Batch, Self::Weight, Self::Layer, Self::Rms];
}

/// A column of the table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Change {
    /// W → δW
    MatrixScaled,
    /// W → W + δ·1γᵀ: the same γ for every unit
    MatrixCentred,
    /// w → δw for one unit
    VectorScaled,
    /// X → δX
    DataScaled,
    /// X → X + δ·1γᵀ: the same γ for every case
    DataCentred,
    /// x → δx for one case
    CaseScaled,
}

impl Change {
    pub(crate) const ALL: [Self; 6] = [
        Self::MatrixScaled,
        Self::MatrixCentred,
        Self::VectorScaled,
        Self::DataScaled,
        Self::DataCentred,
        Self::CaseScaled,
    ];
}

/// A layer and the data it is shown.
#[derive(Clone)]
pub(crate) struct Network {
    /// `[cases, inputs]`
    pub(crate) x: Array2<f64>,
    /// `[units, inputs]`
    pub(crate) weight: Array2<f64>,
    /// `[units]`
    pub(crate) gain: Array1<f64>,
    pub(crate) bias: Array1<f64>,
    /// `[inputs]`: what a re-centering adds.
    gamma: Array1<f64>,
}

impl Network {
    /// 12 cases, 8 inputs and 16 units, all drawn so that sums and predictions have a spread near 1.
    pub(crate) fn random(seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let (cases, inputs, units) = (12, 8, 16);
        Self {
            x: Array2::random_using((cases, inputs), StandardNormal, &mut rng),
            weight: Array2::random_using((units, inputs), StandardNormal, &mut rng) / (inputs as f64).sqrt(),
            gain: Array1::random_using(units, Uniform::new(0.5, 1.5).expect("0.5 < 1.5"), &mut rng),
            bias: Array1::random_using(units, StandardNormal, &mut rng),
            gamma: Array1::random_using(inputs, StandardNormal, &mut rng),
        }
    }

    /// The same after a change by the factor δ.
    pub(crate) fn changed(&self, change: Change, factor: f64) -> Self {
        let mut network = self.clone();
        match change {
            Change::MatrixScaled => network.weight *= factor,
            Change::MatrixCentred => network.weight.scaled_add(factor, &self.gamma),
            Change::VectorScaled => network.weight.index_axis_mut(Axis(0), 3).map_inplace(|w| *w *= factor),
            Change::DataScaled => network.x *= factor,
            Change::DataCentred => network.x.scaled_add(factor, &self.gamma),
            Change::CaseScaled => network.x.index_axis_mut(Axis(0), 5).map_inplace(|x| *x *= factor),
        }
        network
    }

    /// h, computed in `T`. Weight norm has no ε.
    pub(crate) fn predict<T: Number>(&self, norm: Norm, eps: f64) -> Result<Array2<f64>> {
        let (x, weight): (Array2<T>, Array2<T>) = (rounded(&self.x), rounded(&self.weight));
        let (gain, bias): (Array1<T>, Array1<T>) = (rounded(&self.gain), rounded(&self.bias));
        let (units, eps) = (gain.len(), T::of(eps));
        let sums = || x.dot(&weight.t());
        let h = match norm {
            Norm::Batch => BatchNorm::new(units).with_eps(eps)?.with_gain(gain)?.with_bias(bias)?.forward(&sums())?.0,
            Norm::Weight => x.dot(&WeightNorm::new(units).with_gain(gain)?.forward(&weight)?.0.t()) + bias,
            Norm::Layer => LayerNorm::new(units).with_eps(eps)?.with_gain(gain)?.with_bias(bias)?.infer(&sums())?,
            Norm::Rms => RmsNorm::new(units).with_eps(eps)?.with_gain(gain)?.infer(&sums())?,
        };
        Ok(h.mapv(Into::into))
    }
}

fn rounded<T: Number, D: Dimension>(array: &Array<f64, D>) -> Array<T, D> {
    array.mapv(T::of)
}

/// max |h′ − h|: the largest change of a prediction. NaN if there is one in either.
pub(crate) fn deviation(h: &Array2<f64>, changed: &Array2<f64>) -> f64 {
    largest((changed - h).iter().copied())
}

/// ε > 0 and one row: how much of a prediction changes when a row of spread `std` is doubled, and by
///
/// ```text
/// y(2a)/y(a) − 1 = √((s² + ε) / (s² + ε/4)) − 1      s = std(a)
/// ```
///
/// how much of it should.
pub(crate) fn doubled<T: Number>(std: f64, eps: f64) -> Result<(f64, f64)> {
    // Of mean 0 and variance 1: all rounding is that of `std`.
    let a = Array1::from_shape_fn(16, |i| T::of(if i % 2 == 0 { std } else { -std }));
    let norm = LayerNorm::new(a.len()).with_eps(T::of(eps))?;
    let (y, changed) = (norm.infer(&a)?, norm.infer(&a.mapv(|a| a + a))?);
    let ratio = changed[0].into() / y[0].into();
    let (variance, eps) = (std * std, T::of(eps).into());
    Ok((ratio - 1.0, ((variance + eps) / (variance + eps / 4.0)).sqrt() - 1.0))
}
