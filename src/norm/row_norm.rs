//! What the layers that normalize rows share: shapes, parameters, errors, and the way to the kernels.

use fearless_simd::Level;
use ndarray::{Array, ArrayD, ArrayRef, ArrayView1, Dimension, IntoDimension, IxDyn};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::kernels::columns::Gradient;
use crate::kernels::kept::KeptRows;
use crate::kernels::moments::Spread;
use crate::kernels::normalize::{Layer, SavedRows};
use crate::parallel;
use crate::params::{Affine, check_eps, check_saved_eps, check_shape, same_shape};
use crate::rows::{self, Call};
use crate::simd;

/// y = (x − μ)·r ⊙ gain + bias over the trailing axes, with r and μ as a [`Spread`] takes them.
#[derive(Clone, Debug)]
pub(crate) struct RowNorm<T> {
    pub(crate) shape: Vec<usize>,
    /// The elements of that shape.
    pub(crate) features: usize,
    pub(crate) affine: Affine<T>,
    /// The gain is 1 + what the parameter holds.
    pub(crate) zero_centred: bool,
    pub(crate) spread: Spread,
    pub(crate) level: Level,
}

impl<T: Element> RowNorm<T> {
    /// Gain 1, bias 0, ε = 1e-5.
    pub(crate) fn new(normalized_shape: impl IntoDimension, spread: impl FnOnce(T) -> Spread) -> Self {
        let shape = normalized_shape.into_dimension().slice().to_vec();
        let affine = Affine::identity(&shape);
        let (features, spread) = (shape.iter().product(), spread(T::nearest(1e-5)));
        Self { shape, features, affine, zero_centred: false, spread, level: simd::level() }
    }

    pub(crate) fn set_eps(&mut self, eps: T) -> Result<()> {
        check_eps(eps)?;
        self.spread = self.spread.with_eps(eps);
        Ok(())
    }

    pub(crate) fn eps(&self) -> T {
        T::nearest(self.spread.eps)
    }

    /// A parameter of the normalized shape, in standard layout.
    pub(crate) fn parameter<D: Dimension>(&self, argument: &'static str, array: Array<T, D>) -> Result<ArrayD<T>> {
        check_shape(argument, &self.shape, array.shape())?;
        let array = array.into_dyn();
        Ok(if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() })
    }

    pub(crate) fn set_instruction_set(&mut self, name: &str) -> Option<()> {
        self.level = simd::named(name)?;
        Some(())
    }

    /// With γ = 0 for a parameter, and 1 + γ for a gain.
    pub(crate) fn centre_gain(&mut self) {
        self.affine.gain = Some(ArrayD::zeros(IxDyn(&self.shape)));
        self.zero_centred = true;
    }

    /// Without gain, whatever its centre.
    pub(crate) fn remove_gain(&mut self) {
        self.affine.gain = None;
        self.zero_centred = false;
    }

    /// With this gain, or γ.
    pub(crate) fn set_gain<D: Dimension>(&mut self, gain: Array<T, D>) -> Result<()> {
        self.affine.gain = Some(self.parameter("gain", gain)?);
        Ok(())
    }

    pub(crate) fn set_bias<D: Dimension>(&mut self, bias: Array<T, D>) -> Result<()> {
        self.affine.bias = Some(self.parameter("bias", bias)?);
        Ok(())
    }

    pub(crate) fn forward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        y: &mut ArrayRef<T, D>,
        saved: &mut Saved<T>,
    ) -> Result<()> {
        self.check_input("x", x.shape())?;
        check_shape("y", x.shape(), y.shape())?;
        let rows = self.rows(x.shape());
        let saved = saved.fit(x.shape(), rows, self.spread.eps);
        self.call(rows, |call| rows::forward(call, x.view(), y.view_mut(), Some(saved)));
        Ok(())
    }

    pub(crate) fn infer_into<D: Dimension>(&self, x: &ArrayRef<T, D>, y: &mut ArrayRef<T, D>) -> Result<()> {
        self.check_input("x", x.shape())?;
        check_shape("y", x.shape(), y.shape())?;
        self.call(self.rows(x.shape()), |call| rows::forward(call, x.view(), y.view_mut(), None));
        Ok(())
    }

    pub(crate) fn infer_inplace<D: Dimension>(&self, x: &mut ArrayRef<T, D>) -> Result<()> {
        self.check_input("x", x.shape())?;
        self.call(self.rows(x.shape()), |call| rows::forward_inplace(call, x.view_mut(), None));
        Ok(())
    }

    pub(crate) fn backward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &Saved<T>,
        dy: &ArrayRef<T, D>,
        dx: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<()> {
        self.check_backward("x", x.shape(), saved, grad)?;
        check_shape("dy", x.shape(), dy.shape())?;
        check_shape("dx", x.shape(), dx.shape())?;
        self.call(self.rows(x.shape()), |call| {
            rows::backward(call, saved.rows(), x.view(), dy.view(), dx.view_mut(), gradient(grad));
        });
        Ok(())
    }

    /// An array of the shape of an input, which is checked before: 0.
    pub(crate) fn zeros_like<D: Dimension>(
        &self,
        argument: &'static str,
        input: &ArrayRef<T, D>,
    ) -> Result<Array<T, D>> {
        self.check_input(argument, input.shape())?;
        Ok(Array::zeros(input.raw_dim()))
    }

    pub(crate) fn check_input(&self, argument: &'static str, shape: &[usize]) -> Result<()> {
        if self.features == 0 {
            return Err(Error::Empty { normalized: self.shape.clone() });
        }
        let trailing = shape.len().checked_sub(self.shape.len()).map(|leading| &shape[leading..]);
        if !trailing.is_some_and(|trailing| same_shape(trailing, &self.shape)) {
            return Err(Error::Trailing { argument, normalized: self.shape.clone(), got: shape.to_vec() });
        }
        Ok(())
    }

    /// What every call checks that takes `saved` and adds to `grad`.
    pub(crate) fn check_backward(
        &self,
        argument: &'static str,
        shape: &[usize],
        saved: &Saved<T>,
        grad: &Affine<T>,
    ) -> Result<()> {
        self.check_input(argument, shape)?;
        saved.check("x", shape, self.rows(shape), self.spread.eps)?;
        self.affine.check_same(grad, "grad")
    }

    /// The rows of arrays of a shape that was checked.
    pub(crate) fn rows(&self, shape: &[usize]) -> usize {
        shape[..shape.len() - self.shape.len()].iter().product()
    }

    /// Makes a call on arrays of so many rows, if there are any.
    pub(crate) fn call(&self, rows: usize, f: impl FnOnce(&Call<'_, T>)) {
        if rows == 0 {
            return;
        }
        let (features, gain) = (self.features, slice(&self.affine.gain));
        let with_gain = |gain: Option<&[T]>| {
            let layer = Layer { features, gain, bias: slice(&self.affine.bias), spread: self.spread };
            f(&Call { level: self.level, layer, rows, trailing: self.shape.len() });
        };
        match gain.filter(|_| self.zero_centred) {
            None => with_gain(gain),
            Some(centred) => parallel::lend(features, |gain: &mut [T]| {
                gain.iter_mut().zip(centred).for_each(|(gain, &centred)| *gain = T::one() + centred);
                with_gain(Some(gain));
            }),
        }
    }
}

const STANDARD: &str = "parameters are kept in standard layout";

pub(crate) fn slice<T: Element>(parameter: &Option<ArrayD<T>>) -> Option<&[T]> {
    parameter.as_ref().map(|parameter| parameter.as_slice().expect(STANDARD))
}

fn slice_mut<T: Element>(parameter: &mut Option<ArrayD<T>>) -> Option<&mut [T]> {
    parameter.as_mut().map(|parameter| parameter.as_slice_mut().expect(STANDARD))
}

/// What kernels add to.
pub(crate) fn gradient<T: Element>(grad: &mut Affine<T>) -> Gradient<'_, T> {
    Gradient { gain: slice_mut(&mut grad.gain), bias: slice_mut(&mut grad.bias) }
}

/// What forward keeps of `x` for backward: a few numbers a row.
///
/// It remembers the shape and the rows of that x and the layer's ε, and backward refuses others. It does not hold x: pass the
/// same one again.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    /// The shape of x; nothing before the first call.
    shape: Option<Vec<usize>>,
    /// ε of the layer.
    eps: f64,
    mean: Vec<T>,
    /// What rounding left behind of the mean.
    low: Vec<T>,
    rstd: Vec<T>,
    /// Not 0 where a row had to be rescaled.
    exponent: Vec<i16>,
}

impl<T> Default for Saved<T> {
    /// Belongs to no call yet: for the first [`forward_into`](crate::LayerNorm::forward_into).
    fn default() -> Self {
        Self { shape: None, eps: 0.0, mean: Vec::new(), low: Vec::new(), rstd: Vec::new(), exponent: Vec::new() }
    }
}

impl<T: Element> Saved<T> {
    /// The mean of each row, rounded to `T`.
    ///
    /// # Shapes
    ///
    /// `[rows]`, in the order of the leading axes of x
    pub fn mean(&self) -> ArrayView1<'_, T> {
        self.mean.as_slice().into()
    }

    /// 1/√(σ² + ε) of each row; 0 for a constant row with ε = 0.
    ///
    /// It may be infinite or subnormal where a row's scale is extreme; y and dx are right all the same.
    ///
    /// # Shapes
    ///
    /// `[rows]`, in the order of the leading axes of x
    pub fn rstd(&self) -> ArrayView1<'_, T> {
        self.rstd.as_slice().into()
    }

    /// Whether it comes from a call on an array of that shape, of so many rows, with this ε.
    pub(crate) fn check(&self, argument: &'static str, expected: &[usize], rows: usize, eps: f64) -> Result<()> {
        if !self.shape.as_deref().is_some_and(|shape| same_shape(shape, expected)) {
            return Err(Error::Saved { argument, expected: expected.to_vec(), got: self.shape.clone() });
        }
        if self.mean.len() != rows {
            return Err(Error::SavedRows { argument, expected: rows, got: self.mean.len() });
        }
        check_saved_eps(eps, self.eps)
    }

    /// Room for the rows of an array of that shape, of which there are so many, for a layer with this ε.
    pub(crate) fn fit(&mut self, shape: &[usize], rows: usize, eps: f64) -> SavedRows<'_, T> {
        self.eps = eps;
        let ours = self.shape.get_or_insert_default();
        if !same_shape(ours, shape) {
            ours.clear();
            ours.extend_from_slice(shape);
        }
        if self.mean.len() != rows {
            for numbers in [&mut self.mean, &mut self.low, &mut self.rstd] {
                numbers.resize(rows, T::zero());
            }
            self.exponent.resize(rows, 0);
        }
        SavedRows { mean: &mut self.mean, low: &mut self.low, rstd: &mut self.rstd, exponent: &mut self.exponent }
    }

    pub(crate) fn rows(&self) -> KeptRows<'_, T> {
        KeptRows { mean: &self.mean, low: &self.low, rstd: &self.rstd, exponent: &self.exponent }
    }
}
