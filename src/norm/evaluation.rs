//! Evaluation of a batch normalization by running statistics, and the way back through it.

use ndarray::{Array, ArrayRef, Dimension};

use crate::batch::{self, call::Call};
use crate::element::Element;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::norm::batch_norm::BatchNorm;
use crate::norm::row_norm::gradient;
use crate::norm::running::Running;
use crate::params::{Affine, check_shape};

/// Evaluation.
impl<T: Element> BatchNorm<T> {
    /// Evaluation: y by the statistics of earlier batches. Every row gives what it gives alone.
    ///
    /// ```text
    /// y = gain ⊙ (x − μ)/√(σ² + ε) + bias      μ, σ²: those of `running`
    /// ```
    ///
    /// σ² is a `T` here, which training does without. A feature whose spread has no square in `T` (in f32 above 1.8e19, and with
    /// ε = 0 below 2.7e-23) has an infinite one in `running`, or 0, and its y is the bias, or NaN where x − μ is not finite. With
    /// ε = 0, spreads whose square is subnormal (in f32 below 1.1e-19, in f64 below 1.5e-154) cost y digits.
    ///
    /// # Shapes
    ///
    /// - `x` and the returned `y`: `[rows.., normalized shape]`; y is in standard layout
    /// - `running`: of a layer of this normalized shape
    ///
    /// # Errors
    ///
    /// [`Error::Trailing`] and [`Error::Empty`] as [`forward`](Self::forward); [`Error::Shape`] unless `running` has the
    /// normalized shape.
    pub fn infer<D: Dimension>(&self, x: &ArrayRef<T, D>, running: &Running<T>) -> Result<Array<T, D>> {
        let mut y = self.inner.zeros_like("x", x)?;
        self.infer_into(x, running, &mut y)?;
        Ok(y)
    }

    /// [`infer`](Self::infer) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `x`, `y`: `[rows.., normalized shape]`, any strides; `y` is overwritten
    ///
    /// # Errors
    ///
    /// As [`infer`](Self::infer), and [`Error::Shape`] unless `y` has the shape of `x`. Nothing is written then.
    pub fn infer_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        running: &Running<T>,
        y: &mut ArrayRef<T, D>,
    ) -> Result<()> {
        let call = self.call(x.shape())?;
        check_shape("y", x.shape(), y.shape())?;
        let (mean, variance) = self.of_running(running)?;
        if !x.is_empty() {
            batch::infer(&call, [mean, variance], x.view(), y.view_mut());
        }
        Ok(())
    }

    /// [`infer`](Self::infer) with y in place of x.
    ///
    /// # Shapes
    ///
    /// - `x`: `[rows.., normalized shape]`, any strides
    ///
    /// # Errors
    ///
    /// As [`infer`](Self::infer).
    pub fn infer_inplace<D: Dimension>(&self, x: &mut ArrayRef<T, D>, running: &Running<T>) -> Result<()> {
        let call = self.call(x.shape())?;
        let (mean, variance) = self.of_running(running)?;
        if !x.is_empty() {
            batch::infer_inplace(&call, [mean, variance], x.view_mut());
        }
        Ok(())
    }

    /// Gradients of the loss by x (returned) and by gain and bias (added to `grad`), through [`infer`](Self::infer): the
    /// statistics are constants. To train on with frozen statistics, as in fine-tuning.
    ///
    /// With μ and σ² of `running`, r = 1/√(σ² + ε) and x̂ = (x − μ)·r,
    ///
    /// ```text
    /// dx = gain · r · dy      dgain += Σ dy ⊙ x̂      dbias += Σ dy
    /// ```
    ///
    /// Where x − μ is not finite dx is NaN, and the dgain of that feature is not finite.
    ///
    /// # Shapes
    ///
    /// - `x`, `dy` and the returned `dx`: `[rows.., normalized shape]`; dx is in standard layout
    /// - `running`: of the [`infer`](Self::infer) call on this `x`
    /// - `grad`: of [`zero_grad`](Self::zero_grad); zero it before the first batch, not between
    ///
    /// # Errors
    ///
    /// As [`infer`](Self::infer); [`Error::Shape`] unless `dy` has the shape of `x`, [`Error::Parameter`] unless `grad` has
    /// the parameters of this layer. Nothing is written then.
    ///
    /// # Cost
    ///
    /// Reads `x` and `dy` twice and writes `dx` once.
    ///
    /// # Example
    ///
    /// ```
    /// use layernorm::{BatchNorm, ndarray::array};
    ///
    /// let norm = BatchNorm::<f32>::new(1).with_eps(0.0)?;
    /// let mut running = norm.running();
    /// running.variance_mut().fill(4.0);
    ///
    /// let mut grad = norm.zero_grad();
    /// let dx = norm.backward_infer(&array![[6.0], [2.0]], &running, &array![[1.0], [0.5]], &mut grad)?;
    /// assert_eq!(dx, array![[0.5], [0.25]]);
    /// assert_eq!((grad.gain().unwrap()[0], grad.bias().unwrap()[0]), (3.5, 1.5));
    /// # Ok::<(), layernorm::Error>(())
    /// ```
    pub fn backward_infer<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        running: &Running<T>,
        dy: &ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<Array<T, D>> {
        let mut dx = self.inner.zeros_like("x", x)?;
        self.backward_infer_into(x, running, dy, &mut dx, grad)?;
        Ok(dx)
    }

    /// [`backward_infer`](Self::backward_infer) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `x`, `dy`, `dx`: `[rows.., normalized shape]`, any strides; `dx` is overwritten
    /// - `grad`: is added to
    ///
    /// # Errors
    ///
    /// As [`backward_infer`](Self::backward_infer), and [`Error::Shape`] unless `dx` has the shape of `x`. Nothing is written
    /// then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once its buffers have grown to the shape of `x`.
    pub fn backward_infer_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        running: &Running<T>,
        dy: &ArrayRef<T, D>,
        dx: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<()> {
        let call = Call { frozen: true, ..self.call(x.shape())? };
        check_shape("dy", x.shape(), dy.shape())?;
        check_shape("dx", x.shape(), dx.shape())?;
        let (mean, variance) = self.of_running(running)?;
        self.inner.affine.check_same(grad, "grad")?;
        if !x.is_empty() {
            batch::backward_infer(&call, [mean, variance], x.view(), dy.view(), dx.view_mut(), gradient(grad));
        }
        Ok(())
    }

    /// Mean and variance of each feature.
    fn of_running<'a>(&self, running: &'a Running<T>) -> Result<(&'a [T], &'a [T])> {
        check_shape("running", &self.inner.shape, running.shape())?;
        Ok(running.slices())
    }
}
