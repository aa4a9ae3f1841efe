//! What the layers that normalize rows share: shapes, parameters, errors, and the way to the kernels.

use fearless_simd::Level;
use ndarray::{Array, ArrayD, ArrayRef, ArrayView1, Dimension, IntoDimension};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::kernels::columns::Gradient;
use crate::kernels::moments::Spread;
use crate::kernels::normalize::{Layer, SavedRows};
use crate::kernels::passes::KeptRows;
use crate::params::Affine;
use crate::rows::{self, Call};
use crate::simd;

/// y = (x − μ)·r ⊙ gain + bias over the trailing axes, with r and μ as a [`Spread`] takes them.
#[derive(Clone, Debug)]
pub(crate) struct RowNorm<T> {
    pub(crate) shape: Vec<usize>,
    pub(crate) affine: Affine<T>,
    pub(crate) eps: T,
    spread: fn(T) -> Spread,
    pub(crate) level: Level,
}

impl<T: Element> RowNorm<T> {
    /// Gain 1, bias 0, ε = 1e-5.
    pub(crate) fn new(normalized_shape: impl IntoDimension, spread: fn(T) -> Spread) -> Self {
        let shape = normalized_shape.into_dimension().slice().to_vec();
        let affine = Affine::identity(&shape);
        Self { shape, affine, eps: T::from_f64(1e-5), spread, level: simd::level() }
    }

    pub(crate) fn set_eps(&mut self, eps: T) -> Result<()> {
        if !(eps.is_finite() && eps >= T::zero()) {
            return Err(Error::Eps { got: eps.into() });
        }
        self.eps = eps;
        Ok(())
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

    pub(crate) fn forward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        y: &mut ArrayRef<T, D>,
        saved: &mut Saved<T>,
    ) -> Result<()> {
        self.check_input("x", x.shape())?;
        check_shape("y", x.shape(), y.shape())?;
        saved.fit(x.shape(), x.len() / self.features());
        if !x.is_empty() {
            rows::forward(&self.call(), x.view(), y.view_mut(), Some(saved.rows_mut()));
        }
        Ok(())
    }

    pub(crate) fn infer_into<D: Dimension>(&self, x: &ArrayRef<T, D>, y: &mut ArrayRef<T, D>) -> Result<()> {
        self.check_input("x", x.shape())?;
        check_shape("y", x.shape(), y.shape())?;
        if !x.is_empty() {
            rows::forward(&self.call(), x.view(), y.view_mut(), None);
        }
        Ok(())
    }

    pub(crate) fn infer_inplace<D: Dimension>(&self, x: &mut ArrayRef<T, D>) -> Result<()> {
        self.check_input("x", x.shape())?;
        if !x.is_empty() {
            rows::forward_inplace(&self.call(), x.view_mut());
        }
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
        self.check_input("x", x.shape())?;
        if saved.shape != x.shape() {
            let got = Some(saved.shape.clone()).filter(|shape| *shape != NO_CALL);
            return Err(Error::Saved { expected: x.shape().to_vec(), got });
        }
        check_shape("dy", x.shape(), dy.shape())?;
        check_shape("dx", x.shape(), dx.shape())?;
        self.affine.check_same(grad, "grad")?;
        if !x.is_empty() {
            let gradient = Gradient { gain: slice_mut(&mut grad.gain), bias: slice_mut(&mut grad.bias) };
            rows::backward(&self.call(), saved.rows(), x.view(), dy.view(), dx.view_mut(), gradient);
        }
        Ok(())
    }

    pub(crate) fn check_input(&self, argument: &'static str, shape: &[usize]) -> Result<()> {
        if self.shape.contains(&0) {
            return Err(Error::Empty { normalized: self.shape.clone() });
        }
        if !shape.ends_with(&self.shape) {
            return Err(Error::Trailing { argument, normalized: self.shape.clone(), got: shape.to_vec() });
        }
        Ok(())
    }

    pub(crate) fn features(&self) -> usize {
        self.shape.iter().product()
    }

    fn call(&self) -> Call<'_, T> {
        let layer = Layer {
            features: self.features(),
            gain: slice(&self.affine.gain),
            bias: slice(&self.affine.bias),
            spread: (self.spread)(self.eps),
        };
        Call { level: self.level, layer, trailing: self.shape.len() }
    }
}

const STANDARD: &str = "parameters are kept in standard layout";

pub(crate) fn slice<T: Element>(parameter: &Option<ArrayD<T>>) -> Option<&[T]> {
    parameter.as_ref().map(|parameter| parameter.as_slice().expect(STANDARD))
}

pub(crate) fn slice_mut<T: Element>(parameter: &mut Option<ArrayD<T>>) -> Option<&mut [T]> {
    parameter.as_mut().map(|parameter| parameter.as_slice_mut().expect(STANDARD))
}

pub(crate) fn check_shape(argument: &'static str, expected: &[usize], got: &[usize]) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Shape { argument, expected: expected.to_vec(), got: got.to_vec() })
}

/// What forward keeps of `x` for backward: a few numbers a row.
///
/// It remembers the shape of that x, and backward refuses another. It does not hold x: pass the same one again.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    shape: Vec<usize>,
    mean: Vec<T>,
    /// What rounding left behind of the mean.
    low: Vec<T>,
    rstd: Vec<T>,
    /// Not 0 where a row had to be rescaled.
    exponent: Vec<i16>,
}

/// A shape that no call has: a row has at least one element.
pub(crate) const NO_CALL: [usize; 1] = [0];

impl<T> Default for Saved<T> {
    /// Belongs to no call yet: for the first [`forward_into`](crate::LayerNorm::forward_into).
    fn default() -> Self {
        Self { shape: NO_CALL.to_vec(), mean: Vec::new(), low: Vec::new(), rstd: Vec::new(), exponent: Vec::new() }
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

    fn fit(&mut self, shape: &[usize], rows: usize) {
        self.shape.clear();
        self.shape.extend_from_slice(shape);
        for numbers in [&mut self.mean, &mut self.low, &mut self.rstd] {
            numbers.resize(rows, T::zero());
        }
        self.exponent.resize(rows, 0);
    }

    fn rows(&self) -> KeptRows<'_, T> {
        KeptRows { mean: &self.mean, low: &self.low, rstd: &self.rstd, exponent: &self.exponent }
    }

    fn rows_mut(&mut self) -> SavedRows<'_, T> {
        SavedRows { mean: &mut self.mean, low: &mut self.low, rstd: &mut self.rstd, exponent: &mut self.exponent }
    }
}
