//! Layer normalization that does not centre.

use ndarray::{Array, ArrayRef, ArrayView1, ArrayViewD, ArrayViewMutD, Dimension, IntoDimension};

use crate::element::Element;
use crate::error::Result;
use crate::kernels::moments::Spread;
use crate::norm::row_norm::{RowNorm, Saved};
use crate::params::{Affine, Parameters};

/// Root mean square normalization over the trailing axes.
///
/// Every row x of H elements becomes
///
/// ```text
/// y = gain ⊙ x · r      r = 1/√(Σxᵢ²/H + ε)
/// ```
///
/// [`LayerNorm`](crate::LayerNorm) with 0 in place of μ and without a bias: of rows of mean 0 it is the same, but a number
/// added to all of a row is seen, and stays.
///
/// Source: Zhang, Sennrich, *Root Mean Square Layer Normalization*, arXiv:1910.07467, eq. 4. ε is not in the paper; it
/// keeps a row of zeros finite, and may be 0.
///
/// # Shapes
///
/// A row is what the trailing axes span that the layer was made for (the normalized shape); x may have any axes in
/// front of them, and any strides. The gain has the normalized shape.
///
/// # Bits
///
/// As [`LayerNorm`](crate::LayerNorm)'s: the same alone and in any batch, in any layout, on any number of threads and on
/// every instruction set. A row of zeros gives zeros, also with ε = 0. A NaN or infinity makes its own row NaN and no
/// other.
///
/// # Example
///
/// ```
/// use layernorm::{RmsNorm, ndarray::array};
///
/// let norm = RmsNorm::<f32>::new(4).with_eps(0.0)?;
/// let x = array![[1.0, -1.0, 1.0, 1.0], [3.0, -3.0, 3.0, 3.0]];
/// let (y, saved) = norm.forward(&x)?;
/// assert_eq!(y.row(1), x.row(0));
/// assert_eq!(saved.rstd()[0], 1.0);
///
/// let mut grad = norm.zero_grad();
/// let dx = norm.backward(&x, &saved, &y, &mut grad)?;
/// assert_eq!(dx.row(0).to_vec(), [0.0; 4]);
/// assert_eq!(grad.gain().unwrap()[0], 2.0);
/// # Ok::<(), layernorm::Error>(())
/// ```
///
/// # From PyTorch
///
/// `torch.nn.RMSNorm` has the same shape; its `weight` is the gain, and its default ε is that of the type (1.2e-7 for f32), where
/// this one's is 1e-5.
#[derive(Clone, Debug)]
pub struct RmsNorm<T> {
    pub(crate) rows: RowNorm<T>,
}

impl<T: Element> RmsNorm<T> {
    /// A layer over trailing axes of this shape, gain 1, ε = 1e-5.
    pub fn new(normalized_shape: impl IntoDimension) -> Self {
        let mut rows = RowNorm::new(normalized_shape, Spread::about_zero);
        rows.affine.bias = None;
        Self { rows }
    }

    /// With another ε, which is added to the mean square inside the root.
    ///
    /// # Errors
    ///
    /// [`Error::Eps`](crate::Error::Eps) if it is negative, infinite, NaN or a subnormal `f64`. 0 is allowed: a row of
    /// zeros then gives zeros, and dx = 0.
    pub fn with_eps(mut self, eps: T) -> Result<Self> {
        self.rows.set_eps(eps)?;
        Ok(self)
    }

    /// With this gain.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`](crate::Error::Shape) unless it has the normalized shape.
    pub fn with_gain<D: Dimension>(mut self, gain: Array<T, D>) -> Result<Self> {
        self.rows.set_gain(gain)?;
        Ok(self)
    }

    /// With a gain of 1 + γ, where γ starts as 0 and is the parameter.
    ///
    /// ```text
    /// y = (1 + γ) ⊙ x̂             dγ = dgain = Σ dy ⊙ x̂      over the rows
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
    /// As [`LayerNorm::forward`](crate::LayerNorm::forward).
    ///
    /// # Cost
    ///
    /// Reads `x` once, or twice where a row does not fit a core's cache, and writes `y` once.
    pub fn forward<D: Dimension>(&self, x: &ArrayRef<T, D>) -> Result<(Array<T, D>, RmsSaved<T>)> {
        let (mut y, mut saved) = (self.rows.zeros_like("x", x)?, RmsSaved::default());
        self.forward_into(x, &mut y, &mut saved)?;
        Ok((y, saved))
    }

    /// [`forward`](Self::forward) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `x`, `y`: `[.., normalized shape]`, any strides; `y` is overwritten
    /// - `saved`: from [`RmsSaved::default`] or an earlier call, whatever its shape; it is overwritten
    ///
    /// # Errors
    ///
    /// As [`LayerNorm::forward_into`](crate::LayerNorm::forward_into). Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once `saved` and its buffers have grown to the shape of `x`.
    pub fn forward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        y: &mut ArrayRef<T, D>,
        saved: &mut RmsSaved<T>,
    ) -> Result<()> {
        self.rows.forward_into(x, y, &mut saved.rows)
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

    /// Gradients of the loss by x (returned) and by the gain (added to `grad`).
    ///
    /// With x̂ = x·r, q = gain ⊙ dy and the mean over the row,
    ///
    /// ```text
    /// dx = r · (q − x̂ · mean(q ⊙ x̂))      dgain += Σ dy ⊙ x̂      over the rows
    /// ```
    ///
    /// which is [`LayerNorm::backward`](crate::LayerNorm::backward) without what centring brings.
    ///
    /// # Shapes
    ///
    /// - `x`, `dy` and the returned `dx`: `[.., normalized shape]`; dx is in standard layout
    /// - `saved`: of the forward call on this `x`
    /// - `grad`: of [`zero_grad`](Self::zero_grad); zero it before the first batch, not between
    ///
    /// # Errors
    ///
    /// As [`LayerNorm::backward`](crate::LayerNorm::backward).
    ///
    /// # Cost
    ///
    /// Reads `x` and `dy` once, or twice where a row does not fit a core's cache, and writes `dx` once; x̂ is computed
    /// again instead of stored.
    pub fn backward<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &RmsSaved<T>,
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
    /// As [`backward`](Self::backward), and [`Error::Shape`](crate::Error::Shape) unless `dx` has the shape of `x`.
    /// Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once its buffers have grown to the shape of `x`.
    pub fn backward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &RmsSaved<T>,
        dy: &ArrayRef<T, D>,
        dx: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<()> {
        self.rows.backward_into(x, &saved.rows, dy, dx, grad)
    }
}

impl<T: Element> Parameters<T> for RmsNorm<T> {
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

/// What forward keeps of `x` for backward: a few numbers a row. Not interchangeable with [`Saved`].
///
/// It remembers the shape and the rows of that x and the layer's ε, and backward refuses others. It does not hold x: pass the
/// same one again.
#[derive(Clone, Debug)]
pub struct RmsSaved<T> {
    pub(crate) rows: Saved<T>,
}

impl<T> Default for RmsSaved<T> {
    /// Belongs to no call yet: for the first [`forward_into`](RmsNorm::forward_into).
    fn default() -> Self {
        Self { rows: Saved::default() }
    }
}

impl<T: Element> RmsSaved<T> {
    /// 1/√(Σx²/H + ε) of each row; 0 for a row of zeros with ε = 0.
    ///
    /// It may be infinite or subnormal where a row's scale is extreme; y and dx are right all the same.
    ///
    /// # Shapes
    ///
    /// `[rows]`, in the order of the leading axes of x
    pub fn rstd(&self) -> ArrayView1<'_, T> {
        self.rows.rstd()
    }
}
