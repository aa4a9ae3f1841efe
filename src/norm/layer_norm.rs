//! The layer of the paper.

use ndarray::{Array, ArrayRef, ArrayViewD, ArrayViewMutD, Dimension, IntoDimension};

use crate::element::Element;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::kernels::moments::Spread;
use crate::norm::row_norm::{RowNorm, Saved};
use crate::params::{Affine, Parameters};

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
/// front of them, and any strides. Gain and bias have the normalized shape. Arrays in standard layout are read and written
/// where they are; rows of others go through a copy of some of them that stays in a cache.
///
/// # Bits
///
/// A row gives the same bits alone and in any batch, in any memory layout, on any number of threads and on every
/// instruction set. The gradients of gain and bias have the same bits for the same rows in the same order. A constant row
/// gives exactly the bias, also with ε = 0. A NaN or infinity makes its own row NaN and no other.
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
///
/// # Group normalization
///
/// Rows of a view are the groups of channels; gain and bias belong to channels, and stay outside. With as many groups as
/// channels this is instance normalization. An x that is not in standard layout is copied into it first.
///
/// ```
/// use layernorm::{LayerNorm, ndarray::{Array1, Array4, Axis}};
///
/// let (batch, groups, channels, height, width) = (2, 3, 6, 4, 5);
/// let (grouped, flat) = ((batch, groups, channels / groups, height, width), (batch, channels, height * width));
/// let norm = LayerNorm::<f64>::new([channels / groups, height, width]).without_gain().without_bias();
/// let (gain, bias) = (Array1::from_elem((channels,), 2.0), Array1::from_elem((channels,), 0.5));
/// let of_channel = |parameter: Array1<f64>| parameter.insert_axis(Axis(1));
///
/// let x = Array4::from_shape_fn((batch, channels, height, width), |(b, c, i, j)| ((b + c + 3 * i * j) % 7) as f64);
/// let x = x.into_shape_with_order(grouped).expect("as many elements");
/// let (normalized, saved) = norm.forward(&x)?;
/// let normalized = normalized.into_shape_with_order(flat).expect("as many elements");
/// let y = &normalized * &of_channel(gain.clone()) + of_channel(bias);
/// assert!((y.mean().unwrap() - 0.5).abs() < 1e-12);
///
/// let dy = y.mapv(|y| y * y); // from your loss
/// let dgain = (&dy * &normalized).sum_axis(Axis(2)).sum_axis(Axis(0));
/// let dbias = dy.sum_axis(Axis(2)).sum_axis(Axis(0));
/// let dnormalized = (dy * of_channel(gain)).into_shape_with_order(grouped).expect("as many elements");
/// let dx = norm.backward(&x, &saved, &dnormalized, &mut norm.zero_grad())?;
/// assert_eq!((dx.dim(), dgain.len(), dbias.len()), (x.dim(), channels, channels));
/// # Ok::<(), layernorm::Error>(())
/// ```
///
/// # From PyTorch
///
/// `torch.nn.LayerNorm` has the same shape, ε and default of ε; its `weight` is the gain.
#[derive(Clone, Debug)]
pub struct LayerNorm<T> {
    pub(crate) rows: RowNorm<T>,
}

impl<T: Element> LayerNorm<T> {
    /// A layer over trailing axes of this shape, gain 1 and bias 0 as in the paper, ε = 1e-5.
    ///
    /// Of no axes, `()`, each element is a row of its own.
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
        Self { rows: RowNorm::new(normalized_shape, Spread::about_mean) }
    }

    /// With another ε, which is added to σ² inside the root.
    ///
    /// # Errors
    ///
    /// [`Error::Eps`] if it is negative, infinite, NaN or a subnormal `f64`. 0 is allowed: a constant row then still
    /// gives the bias, and dx = 0.
    pub fn with_eps(mut self, eps: T) -> Result<Self> {
        self.rows.set_eps(eps)?;
        Ok(self)
    }

    /// With this gain.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless it has the normalized shape.
    pub fn with_gain<D: Dimension>(mut self, gain: Array<T, D>) -> Result<Self> {
        self.rows.set_gain(gain)?;
        Ok(self)
    }

    /// With this bias.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless it has the normalized shape.
    pub fn with_bias<D: Dimension>(mut self, bias: Array<T, D>) -> Result<Self> {
        self.rows.set_bias(bias)?;
        Ok(self)
    }

    /// With a gain of 1 + γ, where γ starts as 0 and is the parameter.
    ///
    /// ```text
    /// y = (1 + γ) ⊙ x̂ + bias      dγ = dgain = Σ dy ⊙ x̂      over the rows
    /// ```
    ///
    /// For weight decay, which draws a parameter to 0: γ to the plain layer, a gain to an output that is lost.
    /// [`gain`](Self::gain), [`with_gain`](Self::with_gain), [`Parameters`] and the gradients by the gain are those of γ
    /// then; a gain that was set before is forgotten. 1 + γ is rounded to `T`; γ is not, so that small steps add up.
    ///
    /// # Cost
    ///
    /// Computes 1 + γ once a call.
    pub fn with_zero_centred_gain(mut self) -> Self {
        self.rows.centre_gain();
        self
    }

    /// Without gain: as with a gain of 1 that is not learned.
    pub fn without_gain(mut self) -> Self {
        self.rows.remove_gain();
        self
    }

    /// Without bias: as with a bias of 0 that is not learned.
    pub fn without_bias(mut self) -> Self {
        self.rows.affine.bias = None;
        self
    }

    /// The gain; `None` in a layer without.
    pub fn gain(&self) -> Option<ArrayViewD<'_, T>> {
        self.rows.affine.gain()
    }

    /// The gain, to be changed.
    pub fn gain_mut(&mut self) -> Option<ArrayViewMutD<'_, T>> {
        self.rows.affine.gain_mut()
    }

    /// Whether the gain is 1 + γ, and what [`gain`](Self::gain) and [`Parameters`] show is γ.
    pub fn has_zero_centred_gain(&self) -> bool {
        self.rows.zero_centred
    }

    /// The bias; `None` in a layer without.
    pub fn bias(&self) -> Option<ArrayViewD<'_, T>> {
        self.rows.affine.bias()
    }

    /// The bias, to be changed.
    pub fn bias_mut(&mut self) -> Option<ArrayViewMutD<'_, T>> {
        self.rows.affine.bias_mut()
    }

    /// ε
    pub fn eps(&self) -> T {
        self.rows.eps()
    }

    /// The normalized shape.
    pub fn shape(&self) -> &[usize] {
        &self.rows.shape
    }

    /// Gradients for [`backward`](Self::backward) to add to, all 0.
    pub fn zero_grad(&self) -> Affine<T> {
        self.rows.affine.zeros_like()
    }

    /// Runs this layer on a lower instruction set, by its name; for tests of the bit contract.
    #[doc(hidden)]
    pub fn with_instruction_set(mut self, name: &str) -> Option<Self> {
        self.rows.set_instruction_set(name)?;
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
    /// Reads `x` once, or twice where a row does not fit a core's cache, and writes `y` once. A fresh `y` of some MiB
    /// costs more in page faults than in arithmetic: in a loop, [`forward_into`](Self::forward_into) is much faster.
    pub fn forward<D: Dimension>(&self, x: &ArrayRef<T, D>) -> Result<(Array<T, D>, Saved<T>)> {
        let (mut y, mut saved) = (self.rows.zeros_like("x", x)?, Saved::default());
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
    /// On one thread, allocates nothing once `saved` and its buffers have grown to the shape of `x`.
    pub fn forward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        y: &mut ArrayRef<T, D>,
        saved: &mut Saved<T>,
    ) -> Result<()> {
        self.rows.forward_into(x, y, saved)
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
        let mut y = self.rows.zeros_like("x", x)?;
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
        self.rows.infer_into(x, y)
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
        self.rows.infer_inplace(x)
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
    /// As [`forward`](Self::forward); [`Error::Shape`] unless `dy` has the shape of `x`, [`Error::Saved`] or
    /// [`Error::SavedRows`] unless `saved` has and has its rows, [`Error::SavedEps`] unless it comes from a layer with the ε of
    /// this one, [`Error::Parameter`] unless `grad` has the parameters of this layer.
    ///
    /// # Cost
    ///
    /// Reads `x` and `dy` once, or twice where a row does not fit a core's cache, and writes `dx` once; x̂ is computed
    /// again instead of stored.
    pub fn backward<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &Saved<T>,
        dy: &ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<Array<T, D>> {
        let mut dx = self.rows.zeros_like("x", x)?;
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
    /// On one thread, allocates nothing once its buffers have grown to the shape of `x`.
    pub fn backward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &Saved<T>,
        dy: &ArrayRef<T, D>,
        dx: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<()> {
        self.rows.backward_into(x, saved, dy, dx, grad)
    }
}

impl<T: Element> Parameters<T> for LayerNorm<T> {
    type Gradient = Affine<T>;

    fn visit(&self, f: impl FnMut(&str, ArrayViewD<'_, T>)) {
        self.rows.affine.visit(f);
    }

    fn visit_mut(&mut self, f: impl FnMut(&str, ArrayViewMutD<'_, T>)) {
        self.rows.affine.visit_mut(f);
    }

    fn zip(&mut self, grad: &Affine<T>, f: impl FnMut(&str, ArrayViewMutD<'_, T>, ArrayViewD<'_, T>)) -> Result<()> {
        self.rows.affine.zip(grad, f)
    }
}
