//! The norm that the paper compares with.

use ndarray::{Array, ArrayRef, ArrayViewD, ArrayViewMutD, Dimension, IntoDimension};

use crate::batch::{self, call::Call};
use crate::element::Element;
use crate::error::{Error, Result};
use crate::kernels::batch::SavedColumns;
use crate::kernels::moments::Spread;
use crate::kernels::normalize::Layer;
use crate::norm::row_norm::{RowNorm, gradient, slice};
use crate::norm::running::{BatchSaved, Running};
use crate::params::{Affine, Parameters, check_saved_eps, check_shape};

/// Batch normalization: each feature over the rows of a batch.
///
/// A feature x₁ … x_N of the N rows of a batch becomes
///
/// ```text
/// y = gain · (x − μ) · r + bias      μ = Σxᵢ/N      r = 1/√(σ² + ε)      σ² = Σ(xᵢ − μ)²/N
/// ```
///
/// so what a row gives depends on the rows beside it. To evaluate single rows, [`Running`] statistics of earlier batches
/// take the place of μ and σ²: [`forward`](Self::forward) trains, [`infer`](Self::infer) evaluates, and neither is the
/// other in disguise.
///
/// Source: Ba, Kiros, Hinton, *Layer Normalization*, arXiv:1607.06450, eq. 2, after Ioffe, Szegedy, *Batch
/// Normalization*, arXiv:1502.03167. ε is not in the paper's equation; it keeps a constant feature finite, and may be 0.
///
/// # Shapes
///
/// The features are the trailing axes that the layer was made for (the normalized shape); all axes of x in front of them
/// are rows, and x may have any strides. So images `[batch, height, width, channels]` are normalized by
/// `BatchNorm::new(channels)`, and others by a permuted view of them. Gain and bias have the normalized shape.
///
/// # Bits
///
/// A batch gives the same bits in any memory layout, on any number of threads and on every instruction set. So do the
/// gradients of gain and bias. What a feature gives does not depend on what the others hold: in training, a NaN or infinity
/// makes its own feature NaN and no other. A constant feature gives exactly the bias, also with ε = 0.
///
/// # Example
///
/// ```
/// use layernorm::{BatchNorm, ndarray::array};
///
/// let norm = BatchNorm::<f32>::new(2).with_eps(0.0)?;
/// let mut running = norm.running();
/// let x = array![[1.0, 10.0], [3.0, 10.0]];
/// let (y, saved) = norm.forward(&x)?;
/// assert_eq!(y, array![[-1.0, 0.0], [1.0, 0.0]]);
///
/// let mut grad = norm.zero_grad();
/// let dx = norm.backward(&x, &saved, &y, &mut grad)?;
/// assert_eq!(dx.shape(), x.shape());
/// assert_eq!(grad.gain().unwrap()[0], 2.0);
///
/// running.update(&saved, 0.1)?;
/// let y = norm.infer(&array![[0.2, 1.0]], &running)?;
/// assert_eq!(y[[0, 0]], 0.0);
/// # Ok::<(), layernorm::Error>(())
/// ```
///
/// # From PyTorch
///
/// `torch.nn.BatchNorm1d` has the same ε; its `weight` is the gain, its `momentum` (0.1 unless told otherwise) is that of
/// [`Running::update_unbiased`], whose variance it keeps, and in `eval` mode its way back is that of
/// [`backward_infer`](Self::backward_infer). `BatchNorm2d` has channels in front of the image: for x `[batch, channels, height,
/// width]` pass `x.view().permuted_axes([0, 2, 3, 1])`.
#[derive(Clone, Debug)]
pub struct BatchNorm<T> {
    pub(crate) inner: RowNorm<T>,
    unbiased: bool,
}

impl<T: Element> BatchNorm<T> {
    /// A layer over features of this shape, gain 1 and bias 0, ε = 1e-5, biased variance.
    pub fn new(features: impl IntoDimension) -> Self {
        Self { inner: RowNorm::new(features, Spread::about_mean), unbiased: false }
    }

    /// With another ε, which is added to σ² inside the root.
    ///
    /// # Errors
    ///
    /// [`Error::Eps`] if it is negative, infinite, NaN or a subnormal `f64`. 0 is allowed: a constant feature then still
    /// gives the bias, and dx = 0.
    pub fn with_eps(mut self, eps: T) -> Result<Self> {
        self.inner.set_eps(eps)?;
        Ok(self)
    }

    /// With this gain.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless it has the normalized shape.
    pub fn with_gain<D: Dimension>(mut self, gain: Array<T, D>) -> Result<Self> {
        self.inner.set_gain(gain)?;
        Ok(self)
    }

    /// With this bias.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless it has the normalized shape.
    pub fn with_bias<D: Dimension>(mut self, bias: Array<T, D>) -> Result<Self> {
        self.inner.set_bias(bias)?;
        Ok(self)
    }

    /// Without gain: as with a gain of 1 that is not learned.
    pub fn without_gain(mut self) -> Self {
        self.inner.remove_gain();
        self
    }

    /// Without bias: as with a bias of 0 that is not learned.
    pub fn without_bias(mut self) -> Self {
        self.inner.affine.bias = None;
        self
    }

    /// With σ² = Σ(xᵢ − μ)²/(N − 1), as the paper's runs with 4 rows a batch; both for y and for what
    /// [`Running::update`] takes from a batch. (PyTorch has it in the running statistics alone, as
    /// [`Running::update_unbiased`] does for a layer without this.)
    pub fn with_unbiased_variance(mut self) -> Self {
        self.unbiased = true;
        self
    }

    /// The gain; `None` in a layer without.
    pub fn gain(&self) -> Option<ArrayViewD<'_, T>> {
        self.inner.affine.gain()
    }

    /// The gain, to be changed.
    pub fn gain_mut(&mut self) -> Option<ArrayViewMutD<'_, T>> {
        self.inner.affine.gain_mut()
    }

    /// The bias; `None` in a layer without.
    pub fn bias(&self) -> Option<ArrayViewD<'_, T>> {
        self.inner.affine.bias()
    }

    /// The bias, to be changed.
    pub fn bias_mut(&mut self) -> Option<ArrayViewMutD<'_, T>> {
        self.inner.affine.bias_mut()
    }

    /// ε
    pub fn eps(&self) -> T {
        self.inner.eps()
    }

    /// The normalized shape.
    pub fn shape(&self) -> &[usize] {
        &self.inner.shape
    }

    /// Gradients for [`backward`](Self::backward) to add to, all 0.
    pub fn zero_grad(&self) -> Affine<T> {
        self.inner.affine.zeros_like()
    }

    /// Whether the variance is unbiased: [`with_unbiased_variance`](Self::with_unbiased_variance).
    pub fn has_unbiased_variance(&self) -> bool {
        self.unbiased
    }

    /// Running statistics for [`infer`](Self::infer): mean 0 and variance 1, as of no batch yet.
    pub fn running(&self) -> Running<T> {
        Running::new(&self.inner.shape)
    }

    /// Runs this layer on a lower instruction set, by its name; for tests of the bit contract.
    #[doc(hidden)]
    pub fn with_instruction_set(mut self, name: &str) -> Option<Self> {
        self.inner.set_instruction_set(name)?;
        Some(self)
    }

    /// Training: y by the statistics of this batch, and what [`backward`](Self::backward) and [`Running::update`] need
    /// of them.
    ///
    /// # Shapes
    ///
    /// - `x` and the returned `y`: `[rows.., normalized shape]`; y is in standard layout
    ///
    /// # Errors
    ///
    /// [`Error::Trailing`] unless the trailing axes of `x` are the normalized shape, [`Error::Empty`] if that has no
    /// element, [`Error::OneRow`] if the variance is unbiased and `x` has one row: 0/0. No rows is not an error. One row
    /// and a biased variance give the bias.
    ///
    /// # Cost
    ///
    /// Reads `x` twice (from a cache the second time, if there are at most 64 rows) and writes `y` once.
    pub fn forward<D: Dimension>(&self, x: &ArrayRef<T, D>) -> Result<(Array<T, D>, BatchSaved<T>)> {
        let (mut y, mut saved) = (self.inner.zeros_like("x", x)?, BatchSaved::default());
        self.forward_into(x, &mut y, &mut saved)?;
        Ok((y, saved))
    }

    /// [`forward`](Self::forward) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `x`, `y`: `[rows.., normalized shape]`, any strides; `y` is overwritten
    /// - `saved`: from [`BatchSaved::default`] or an earlier call, whatever its shape; it is overwritten
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), and [`Error::Shape`] unless `y` has the shape of `x`. Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once `saved` and its buffers have grown to the shape of `x`.
    pub fn forward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        y: &mut ArrayRef<T, D>,
        saved: &mut BatchSaved<T>,
    ) -> Result<()> {
        let call = self.call(x.shape())?;
        check_shape("y", x.shape(), y.shape())?;
        self.check_rows(&call)?;
        saved.fit(x.shape(), &self.inner.shape, self.inner.spread.eps, self.unbiased);
        if !x.is_empty() {
            let BatchSaved { mean, low, variance, rstd, exponent, .. } = saved;
            let saved = SavedColumns { mean, low, variance, rstd, exponent };
            batch::forward(&call, x.view(), y.view_mut(), saved);
        }
        Ok(())
    }

    /// Gradients of the loss by x (returned) and by gain and bias (added to `grad`), through the statistics of the batch.
    ///
    /// With x̂ = (x − μ)·r, sums over the rows, and N − 1 for N′ where the variance is unbiased, else N,
    ///
    /// ```text
    /// dx = gain · r · (dy − Σdy/N − x̂ · Σ(dy ⊙ x̂)/N′)      dgain += Σ dy ⊙ x̂      dbias += Σ dy
    /// ```
    ///
    /// # Shapes
    ///
    /// - `x`, `dy` and the returned `dx`: `[rows.., normalized shape]`; dx is in standard layout
    /// - `saved`: of the forward call on this `x`
    /// - `grad`: of [`zero_grad`](Self::zero_grad); zero it before the first batch, not between
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward); [`Error::Shape`] unless `dy` has the shape of `x`, [`Error::Saved`] or
    /// [`Error::SavedRows`] unless `saved` comes from a call on x of this shape, by a layer over as many features,
    /// [`Error::SavedVariance`] and [`Error::SavedEps`] unless that layer took the variance and the ε that this one takes,
    /// [`Error::Parameter`] unless `grad` has the parameters of this layer.
    ///
    /// # Cost
    ///
    /// Reads `x` and `dy` twice (as [`forward`](Self::forward)) and writes `dx` once.
    pub fn backward<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &BatchSaved<T>,
        dy: &ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<Array<T, D>> {
        let mut dx = self.inner.zeros_like("x", x)?;
        self.backward_into(x, saved, dy, &mut dx, grad)?;
        Ok(dx)
    }

    /// [`backward`](Self::backward) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `x`, `dy`, `dx`: `[rows.., normalized shape]`, any strides; `dx` is overwritten
    /// - `grad`: is added to
    ///
    /// # Errors
    ///
    /// As [`backward`](Self::backward), and [`Error::Shape`] unless `dx` has the shape of `x`. Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once its buffers have grown to the shape of `x`.
    pub fn backward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &BatchSaved<T>,
        dy: &ArrayRef<T, D>,
        dx: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<()> {
        let call = self.call(x.shape())?;
        if saved.shape.as_deref() != Some(x.shape()) {
            return Err(Error::Saved { argument: "x", expected: x.shape().to_vec(), got: saved.shape.clone() });
        }
        if saved.rows() != call.rows {
            return Err(Error::SavedRows { argument: "x", expected: call.rows, got: saved.rows() });
        }
        check_shape("dy", x.shape(), dy.shape())?;
        check_shape("dx", x.shape(), dx.shape())?;
        self.inner.affine.check_same(grad, "grad")?;
        self.check_rows(&call)?;
        if saved.unbiased != self.unbiased {
            return Err(Error::SavedVariance { unbiased: self.unbiased });
        }
        check_saved_eps(self.inner.spread.eps, saved.eps)?;
        if !x.is_empty() {
            batch::backward(&call, saved.kept(), x.view(), dy.view(), dx.view_mut(), gradient(grad));
        }
        Ok(())
    }

    pub(crate) fn call(&self, shape: &[usize]) -> Result<Call<'_, T>> {
        self.inner.check_input("x", shape)?;
        let layer = Layer {
            features: self.inner.features,
            gain: slice(&self.inner.affine.gain),
            bias: slice(&self.inner.affine.bias),
            spread: self.inner.spread,
        };
        let (trailing, rows) = (self.inner.shape.len(), self.inner.rows(shape));
        Ok(Call { level: self.inner.level, layer, trailing, rows, unbiased: self.unbiased, frozen: false })
    }

    fn check_rows(&self, call: &Call<'_, T>) -> Result<()> {
        if self.unbiased && call.rows == 1 { Err(Error::OneRow { argument: "x" }) } else { Ok(()) }
    }
}

impl<T: Element> Parameters<T> for BatchNorm<T> {
    type Gradient = Affine<T>;

    fn visit(&self, f: impl FnMut(&str, ArrayViewD<'_, T>)) {
        self.inner.affine.visit(f);
    }

    fn visit_mut(&mut self, f: impl FnMut(&str, ArrayViewMutD<'_, T>)) {
        self.inner.affine.visit_mut(f);
    }

    fn zip(&mut self, grad: &Affine<T>, f: impl FnMut(&str, ArrayViewMutD<'_, T>, ArrayViewD<'_, T>)) -> Result<()> {
        self.inner.affine.zip(grad, f)
    }
}
