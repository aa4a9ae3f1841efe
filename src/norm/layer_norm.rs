//! The layer of the paper.

use fearless_simd::Level;
use ndarray::{Array, ArrayD, ArrayRef, ArrayView1, ArrayViewD, ArrayViewMutD, Dimension, IntoDimension};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::kernels::columns::Gradient;
use crate::kernels::moments::Epsilon;
use crate::kernels::normalize::{Layer, SavedRows};
use crate::kernels::passes::KeptRows;
use crate::params::{Affine, Parameters};
use crate::rows::{self, Call};
use crate::simd;

/// Layer normalization over the trailing axes.
///
/// Every row x of H elements becomes
///
/// ```text
/// y = gain ⊙ (x − μ) · r + bias      μ = Σxᵢ/H      r = 1/√(σ² + ε)      σ² = Σ(xᵢ − μ)²/H
/// ```
///
/// where μ and σ² are those of that row alone: neither the other rows nor the past matter, so training and test
/// compute the same thing.
///
/// Source: Ba, Kiros, Hinton, *Layer Normalization*, arXiv:1607.06450, eq. 3, 15 and 16 (there α is the gain, β the
/// bias). ε is not in the paper; it keeps a constant row finite, and may be 0.
///
/// # Shapes
///
/// A row is what the trailing axes span that the layer was made for (the normalized shape); x may have any axes in
/// front of them, and any strides. Gain and bias have the normalized shape.
///
/// # Bits
///
/// A row gives the same bits alone and in any batch, in any memory layout, on any number of threads and on every
/// instruction set. So do the gradients of gain and bias. A constant row gives exactly the bias, also with ε = 0. A
/// NaN or infinity makes its own row NaN and no other.
///
/// # Example
///
/// ```
/// use layernorm::{LayerNorm, ndarray::array};
///
/// let norm = LayerNorm::<f32>::new(4);
/// let x = array![[1.0, 2.0, 3.0, 4.0], [1001.0, 1002.0, 1003.0, 1004.0]];
/// let (y, saved) = norm.forward(&x)?;
/// assert_eq!(y.row(0), y.row(1));
/// assert_eq!(saved.mean().to_vec(), [2.5, 1002.5]);
///
/// let mut grad = norm.zero_grad();
/// let dx = norm.backward(&x, &saved, &y, &mut grad)?;
/// assert_eq!(dx.shape(), x.shape());
/// assert_eq!(grad.bias().unwrap()[0], 2.0 * y[[0, 0]]);
/// # Ok::<(), layernorm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct LayerNorm<T> {
    shape: Vec<usize>,
    affine: Affine<T>,
    eps: T,
    level: Level,
}

impl<T: Element> LayerNorm<T> {
    /// A layer over trailing axes of this shape, gain 1 and bias 0 as in the paper, ε = 1e-5.
    ///
    /// # Example
    ///
    /// ```
    /// use layernorm::LayerNorm;
    ///
    /// assert_eq!(LayerNorm::<f32>::new(768).shape(), [768]);
    /// assert_eq!(LayerNorm::<f64>::new([3, 32, 32]).shape(), [3, 32, 32]);
    /// ```
    pub fn new(normalized_shape: impl IntoDimension) -> Self {
        let shape = normalized_shape.into_dimension().slice().to_vec();
        let affine = Affine::identity(&shape);
        Self { shape, affine, eps: T::from_f64(1e-5), level: simd::level() }
    }

    /// With another ε, which is added to σ² inside the root.
    ///
    /// # Errors
    ///
    /// [`Error::Eps`] if it is negative, infinite or NaN. 0 is allowed: a constant row then still gives the bias, and
    /// dx = 0.
    pub fn with_eps(mut self, eps: T) -> Result<Self> {
        if !(eps.is_finite() && eps >= T::zero()) {
            return Err(Error::Eps { got: eps.into() });
        }
        self.eps = eps;
        Ok(self)
    }

    /// With this gain.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless it has the normalized shape.
    pub fn with_gain<D: Dimension>(mut self, gain: Array<T, D>) -> Result<Self> {
        self.affine.gain = Some(self.parameter("gain", gain)?);
        Ok(self)
    }

    /// With this bias.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless it has the normalized shape.
    pub fn with_bias<D: Dimension>(mut self, bias: Array<T, D>) -> Result<Self> {
        self.affine.bias = Some(self.parameter("bias", bias)?);
        Ok(self)
    }

    fn parameter<D: Dimension>(&self, argument: &'static str, array: Array<T, D>) -> Result<ArrayD<T>> {
        check_shape(argument, &self.shape, array.shape())?;
        let array = array.into_dyn();
        Ok(if array.is_standard_layout() { array } else { array.as_standard_layout().into_owned() })
    }

    /// Without gain: as with a gain of 1 that is not learned.
    pub fn without_gain(mut self) -> Self {
        self.affine.gain = None;
        self
    }

    /// Without bias: as with a bias of 0 that is not learned.
    pub fn without_bias(mut self) -> Self {
        self.affine.bias = None;
        self
    }

    /// The gain; `None` in a layer without.
    pub fn gain(&self) -> Option<ArrayViewD<'_, T>> {
        self.affine.gain()
    }

    /// The gain, to be changed.
    pub fn gain_mut(&mut self) -> Option<ArrayViewMutD<'_, T>> {
        self.affine.gain_mut()
    }

    /// The bias; `None` in a layer without.
    pub fn bias(&self) -> Option<ArrayViewD<'_, T>> {
        self.affine.bias()
    }

    /// The bias, to be changed.
    pub fn bias_mut(&mut self) -> Option<ArrayViewMutD<'_, T>> {
        self.affine.bias_mut()
    }

    /// ε
    pub fn eps(&self) -> T {
        self.eps
    }

    /// The normalized shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Gradients for [`backward`](Self::backward) to add to, all 0.
    pub fn zero_grad(&self) -> Affine<T> {
        self.affine.zeros_like()
    }

    /// Runs this layer on a lower instruction set, by its name; for tests of the bit contract.
    #[doc(hidden)]
    pub fn with_instruction_set(mut self, name: &str) -> Option<Self> {
        self.level = simd::named(name)?;
        Some(self)
    }

    /// y, and what [`backward`](Self::backward) needs of x.
    ///
    /// # Shapes
    ///
    /// - `x` and the returned `y`: `[.., normalized shape]`; y is in standard layout
    ///
    /// # Errors
    ///
    /// [`Error::Trailing`] unless the trailing axes of `x` are the normalized shape, [`Error::Empty`] if that has no
    /// element. No rows is not an error.
    ///
    /// # Cost
    ///
    /// Reads `x` once and writes `y` once. A fresh `y` of some MiB costs more in page faults than in arithmetic: in a
    /// loop, [`forward_into`](Self::forward_into) is much faster.
    pub fn forward<D: Dimension>(&self, x: &ArrayRef<T, D>) -> Result<(Array<T, D>, Saved<T>)> {
        let (mut y, mut saved) = (Array::zeros(x.raw_dim()), Saved::default());
        self.forward_into(x, &mut y, &mut saved)?;
        Ok((y, saved))
    }

    /// [`forward`](Self::forward) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `x`, `y`: `[.., normalized shape]`, any strides; `y` is overwritten
    /// - `saved`: from [`Saved::default`] or an earlier call, whatever its shape; it is overwritten
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), and [`Error::Shape`] unless `y` has the shape of `x`. Nothing is written then.
    ///
    /// # Cost
    ///
    /// Allocates nothing once `saved` and this thread's buffers have grown to the shape of `x`.
    pub fn forward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        y: &mut ArrayRef<T, D>,
        saved: &mut Saved<T>,
    ) -> Result<()> {
        self.check_input("x", x.shape())?;
        check_shape("y", x.shape(), y.shape())?;
        saved.fit(x.shape(), self.rows(x.len()));
        if !x.is_empty() {
            rows::forward(&self.call(), x.view(), y.view_mut(), Some(saved.rows_mut()));
        }
        Ok(())
    }

    /// y alone, with the bits of [`forward`](Self::forward).
    ///
    /// # Shapes
    ///
    /// - `x` and the returned `y`: `[.., normalized shape]`; y is in standard layout
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    pub fn infer<D: Dimension>(&self, x: &ArrayRef<T, D>) -> Result<Array<T, D>> {
        let mut y = Array::zeros(x.raw_dim());
        self.infer_into(x, &mut y)?;
        Ok(y)
    }

    /// [`infer`](Self::infer) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `x`, `y`: `[.., normalized shape]`, any strides; `y` is overwritten
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into).
    pub fn infer_into<D: Dimension>(&self, x: &ArrayRef<T, D>, y: &mut ArrayRef<T, D>) -> Result<()> {
        self.check_input("x", x.shape())?;
        check_shape("y", x.shape(), y.shape())?;
        if !x.is_empty() {
            rows::forward(&self.call(), x.view(), y.view_mut(), None);
        }
        Ok(())
    }

    /// [`infer`](Self::infer) with y in place of x.
    ///
    /// # Shapes
    ///
    /// - `x`: `[.., normalized shape]`, any strides
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    pub fn infer_inplace<D: Dimension>(&self, x: &mut ArrayRef<T, D>) -> Result<()> {
        self.check_input("x", x.shape())?;
        if !x.is_empty() {
            rows::forward_inplace(&self.call(), x.view_mut());
        }
        Ok(())
    }

    /// Gradients of the loss by x (returned) and by gain and bias (added to `grad`).
    ///
    /// With x̂ = (x − μ)·r, q = gain ⊙ dy and means over the row,
    ///
    /// ```text
    /// dx = r · (q − mean(q) − x̂ · mean(q ⊙ x̂))      dgain += Σ dy ⊙ x̂      dbias += Σ dy      over the rows
    /// ```
    ///
    /// # Shapes
    ///
    /// - `x`, `dy` and the returned `dx`: `[.., normalized shape]`; dx is in standard layout
    /// - `saved`: of the forward call on this `x`
    /// - `grad`: of [`zero_grad`](Self::zero_grad); zero it before the first batch, not between
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward); [`Error::Shape`] unless `dy` has the shape of `x`, [`Error::Saved`] unless
    /// `saved` has, [`Error::Shape`] or [`Error::Parameter`] unless `grad` has the parameters of this layer.
    ///
    /// # Cost
    ///
    /// Reads `x` and `dy` once and writes `dx` once; x̂ is computed again instead of stored.
    pub fn backward<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &Saved<T>,
        dy: &ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<Array<T, D>> {
        let mut dx = Array::zeros(x.raw_dim());
        self.backward_into(x, saved, dy, &mut dx, grad)?;
        Ok(dx)
    }

    /// [`backward`](Self::backward) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `x`, `dy`, `dx`: `[.., normalized shape]`, any strides; `dx` is overwritten
    /// - `grad`: is added to
    ///
    /// # Errors
    ///
    /// As [`backward`](Self::backward), and [`Error::Shape`] unless `dx` has the shape of `x`. Nothing is written then.
    ///
    /// # Cost
    ///
    /// Allocates nothing once this thread's buffers have grown to the shape of `x`.
    pub fn backward_into<D: Dimension>(
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

    fn check_input(&self, argument: &'static str, shape: &[usize]) -> Result<()> {
        if self.shape.contains(&0) {
            return Err(Error::Empty { normalized: self.shape.clone() });
        }
        if !shape.ends_with(&self.shape) {
            return Err(Error::Trailing { argument, normalized: self.shape.clone(), got: shape.to_vec() });
        }
        Ok(())
    }

    fn features(&self) -> usize {
        self.shape.iter().product()
    }

    fn rows(&self, elements: usize) -> usize {
        elements / self.features()
    }

    fn call(&self) -> Call<'_, T> {
        let layer = Layer {
            features: self.features(),
            gain: slice(&self.affine.gain),
            bias: slice(&self.affine.bias),
            epsilon: Epsilon::new(self.eps),
        };
        Call { level: self.level, layer, trailing: self.shape.len() }
    }
}

const STANDARD: &str = "parameters are kept in standard layout";

fn slice<T: Element>(parameter: &Option<ArrayD<T>>) -> Option<&[T]> {
    parameter.as_ref().map(|parameter| parameter.as_slice().expect(STANDARD))
}

fn slice_mut<T: Element>(parameter: &mut Option<ArrayD<T>>) -> Option<&mut [T]> {
    parameter.as_mut().map(|parameter| parameter.as_slice_mut().expect(STANDARD))
}

fn check_shape(argument: &'static str, expected: &[usize], got: &[usize]) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::Shape { argument, expected: expected.to_vec(), got: got.to_vec() })
}

impl<T: Element> Parameters<T> for LayerNorm<T> {
    type Gradient = Affine<T>;

    fn visit(&self, f: impl FnMut(&str, ArrayViewD<'_, T>)) {
        self.affine.visit(f);
    }

    fn visit_mut(&mut self, f: impl FnMut(&str, ArrayViewMutD<'_, T>)) {
        self.affine.visit_mut(f);
    }

    fn zip(&mut self, grad: &Affine<T>, f: impl FnMut(&str, ArrayViewMutD<'_, T>, ArrayViewD<'_, T>)) -> Result<()> {
        self.affine.zip(grad, f)
    }
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
const NO_CALL: [usize; 1] = [0];

impl<T> Default for Saved<T> {
    /// Belongs to no call yet: for the first [`forward_into`](LayerNorm::forward_into).
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
