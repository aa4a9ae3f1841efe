//! A residual connection and the norm behind it, in one sweep each way.
//!
//! ```text
//! sum = mask ⊙ x + residual      y = norm(sum)
//! dresidual = norm′(dy) + dsum   dx = mask ⊙ dresidual
//! ```
//!
//! where norm′(dy) is the dx of the norm's backward on `sum`. Between its two additions the sum stays in the cache of a
//! core, so each array is read or written once; a row longer than that cache is swept twice.

use ndarray::{Array, ArrayRef, Dimension};

use crate::element::Element;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::norm::layer_norm::LayerNorm;
use crate::norm::rms_norm::{RmsNorm, RmsSaved};
use crate::norm::row_norm::{RowNorm, Saved, gradient};
use crate::params::{Affine, check_shape};
use crate::rows::{self, Residual, ResidualGradient};

/// A mask, and where dx goes: without a mask it is dresidual.
type Masked<'a, T, D> = (&'a ArrayRef<T, D>, &'a mut ArrayRef<T, D>);

impl<T: Element> RowNorm<T> {
    fn forward_residual<D: Dimension>(
        &self,
        [x, residual]: [&ArrayRef<T, D>; 2],
        mask: Option<&ArrayRef<T, D>>,
        [y, sum]: [&mut ArrayRef<T, D>; 2],
        saved: &mut Saved<T>,
    ) -> Result<()> {
        self.check_input("x", x.shape())?;
        mask.map_or(Ok(()), |mask| check_shape("mask", x.shape(), mask.shape()))?;
        check_shape("residual", x.shape(), residual.shape())?;
        check_shape("y", x.shape(), y.shape())?;
        check_shape("sum", x.shape(), sum.shape())?;
        let rows = self.rows(x.shape());
        let saved = saved.fit(x.shape(), rows, self.spread.eps);
        let (mask, residual) = (mask.map(|mask| mask.view()), residual.view());
        let arrays = Residual { x: x.view(), mask, residual, y: y.view_mut(), sum: sum.view_mut() };
        self.call(rows, |call| rows::forward_residual(call, arrays, saved));
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the arrays of the public calls")]
    fn backward_residual<D: Dimension>(
        &self,
        sum: &ArrayRef<T, D>,
        saved: &Saved<T>,
        dy: &ArrayRef<T, D>,
        dsum: Option<&ArrayRef<T, D>>,
        masked: Option<Masked<'_, T, D>>,
        dresidual: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<()> {
        self.check_backward("sum", sum.shape(), saved, grad)?;
        check_shape("dy", sum.shape(), dy.shape())?;
        dsum.map_or(Ok(()), |dsum| check_shape("dsum", sum.shape(), dsum.shape()))?;
        match &masked {
            None => check_shape("dx", sum.shape(), dresidual.shape())?,
            Some((mask, dx)) => {
                check_shape("mask", sum.shape(), mask.shape())?;
                check_shape("dx", sum.shape(), dx.shape())?;
                check_shape("dresidual", sum.shape(), dresidual.shape())?;
            }
        }
        let arrays = ResidualGradient {
            sum: sum.view(),
            dy: dy.view(),
            dsum: dsum.map(|dsum| dsum.view()),
            dresidual: dresidual.view_mut(),
            masked: masked.map(|(mask, dx)| (mask.view(), dx.view_mut())),
        };
        self.call(self.rows(sum.shape()), |call| rows::backward_residual(call, saved.rows(), arrays, gradient(grad)));
        Ok(())
    }
}

macro_rules! residual {
    ($norm:ident, $saved:ident $(, $rows:ident)?) => {
        /// With a residual connection in front.
        impl<T: Element> $norm<T> {
            /// y of x + residual, that sum, and what [`backward_residual`](Self::backward_residual) needs of it.
            ///
            /// In a pre-norm block the sum goes on as the next residual; in a post-norm block y does, and the sum is for
            /// backward alone. y and saved have the bits of `forward` on the sum.
            ///
            /// # Shapes
            ///
            /// - `x`, `residual` and the returned `y` and `sum`: `[.., normalized shape]`; these are in standard layout
            ///
            /// # Errors
            ///
            /// As `forward`; [`Error::Shape`] unless `residual` has the shape of `x`.
            ///
            /// # Cost
            ///
            /// Reads `x` and `residual` once, or twice where a row does not fit a core's cache, and writes `sum` and `y`
            /// once.
            ///
            /// # Example
            ///
            /// ```
            #[doc = concat!("use layernorm::{", stringify!($norm), ", ndarray::array};")]
            ///
            #[doc = concat!("let norm = ", stringify!($norm), "::<f32>::new(3);")]
            /// let (x, residual) = (array![[1.0, 2.0, 6.0]], array![[0.5, -1.0, 0.0]]);
            /// let (y, sum, saved) = norm.forward_residual(&x, &residual)?;
            /// assert_eq!(sum, array![[1.5, 1.0, 6.0]]);
            /// assert_eq!(y, norm.infer(&sum)?);
            ///
            /// // What arrives at y, and at the sum from the next block.
            /// let (dy, dsum) = (array![[1.0, 0.0, 0.0]], array![[0.5, 0.5, 0.5]]);
            /// let mut grad = norm.zero_grad();
            /// let dx = norm.backward_residual(&sum, &saved, &dy, Some(&dsum), &mut grad)?;
            /// assert_eq!(dx, norm.backward(&sum, &saved, &dy, &mut grad)? + &dsum);
            /// # Ok::<(), layernorm::Error>(())
            /// ```
            pub fn forward_residual<D: Dimension>(
                &self,
                x: &ArrayRef<T, D>,
                residual: &ArrayRef<T, D>,
            ) -> Result<(Array<T, D>, Array<T, D>, $saved<T>)> {
                let mut y = self.rows.zeros_like("x", x)?;
                let mut sum = self.rows.zeros_like("x", x)?;
                let mut saved = $saved::default();
                self.forward_residual_into(x, residual, &mut y, &mut sum, &mut saved)?;
                Ok((y, sum, saved))
            }

            /// [`forward_residual`](Self::forward_residual) into memory of the caller.
            ///
            /// # Shapes
            ///
            /// - `x`, `residual`, `y`, `sum`: `[.., normalized shape]`, any strides; `y` and `sum` are overwritten
            /// - `saved`: from a default or an earlier call, whatever its shape; it is overwritten
            ///
            /// # Errors
            ///
            /// As [`forward_residual`](Self::forward_residual), and [`Error::Shape`] unless `y` and `sum` have the shape of
            /// `x`. Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once `saved` and its buffers have grown to the shape of `x`.
            pub fn forward_residual_into<D: Dimension>(
                &self,
                x: &ArrayRef<T, D>,
                residual: &ArrayRef<T, D>,
                y: &mut ArrayRef<T, D>,
                sum: &mut ArrayRef<T, D>,
                saved: &mut $saved<T>,
            ) -> Result<()> {
                self.rows.forward_residual([x, residual], None, [y, sum], &mut (*saved) $(.$rows)?)
            }

            /// y of mask ⊙ x + residual, that sum, and what
            /// [`backward_dropout_residual`](Self::backward_dropout_residual) needs of it.
            ///
            /// Dropout is a mask of zeros and, so that the mean stays, of 1/(1 − p) where nothing is dropped; any other
            /// scaling of single elements is as good.
            ///
            /// # Shapes
            ///
            /// - `x`, `mask`, `residual` and the returned `y` and `sum`: `[.., normalized shape]`; these are in standard
            ///   layout
            ///
            /// # Errors
            ///
            /// As `forward`; [`Error::Shape`] unless `mask` and `residual` have the shape of `x`.
            ///
            /// # Cost
            ///
            /// Reads `x`, `mask` and `residual` once, or twice where a row does not fit a core's cache, and writes `sum`
            /// and `y` once.
            pub fn forward_dropout_residual<D: Dimension>(
                &self,
                x: &ArrayRef<T, D>,
                mask: &ArrayRef<T, D>,
                residual: &ArrayRef<T, D>,
            ) -> Result<(Array<T, D>, Array<T, D>, $saved<T>)> {
                let mut y = self.rows.zeros_like("x", x)?;
                let mut sum = self.rows.zeros_like("x", x)?;
                let mut saved = $saved::default();
                self.forward_dropout_residual_into(x, mask, residual, &mut y, &mut sum, &mut saved)?;
                Ok((y, sum, saved))
            }

            /// [`forward_dropout_residual`](Self::forward_dropout_residual) into memory of the caller.
            ///
            /// # Shapes
            ///
            /// - `x`, `mask`, `residual`, `y`, `sum`: `[.., normalized shape]`, any strides; `y` and `sum` are overwritten
            /// - `saved`: from a default or an earlier call, whatever its shape; it is overwritten
            ///
            /// # Errors
            ///
            /// As [`forward_dropout_residual`](Self::forward_dropout_residual), and [`Error::Shape`] unless `y` and `sum`
            /// have the shape of `x`. Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once `saved` and its buffers have grown to the shape of `x`.
            pub fn forward_dropout_residual_into<D: Dimension>(
                &self,
                x: &ArrayRef<T, D>,
                mask: &ArrayRef<T, D>,
                residual: &ArrayRef<T, D>,
                y: &mut ArrayRef<T, D>,
                sum: &mut ArrayRef<T, D>,
                saved: &mut $saved<T>,
            ) -> Result<()> {
                self.rows.forward_residual([x, residual], Some(mask), [y, sum], &mut (*saved) $(.$rows)?)
            }

            /// The gradient of the loss by x, which is that by residual too; those by the parameters are added to `grad`.
            ///
            /// ```text
            /// dx = dresidual = norm′(dy) + dsum
            /// ```
            ///
            /// # Shapes
            ///
            /// - `sum`, `dy`, `dsum` and the returned `dx`: `[.., normalized shape]`; dx is in standard layout
            /// - `sum`, `saved`: of [`forward_residual`](Self::forward_residual)
            /// - `dsum`: what arrives at the sum from elsewhere; nothing does in a post-norm block
            /// - `grad`: of [`zero_grad`](Self::zero_grad); it is added to
            ///
            /// # Errors
            ///
            /// As `backward`, with `sum` in the place of `x`; [`Error::Shape`] unless `dsum` has its shape.
            ///
            /// # Cost
            ///
            /// Reads `sum`, `dy` and `dsum` once, or twice where a row does not fit a core's cache, and writes `dx` once.
            pub fn backward_residual<D: Dimension>(
                &self,
                sum: &ArrayRef<T, D>,
                saved: &$saved<T>,
                dy: &ArrayRef<T, D>,
                dsum: Option<&ArrayRef<T, D>>,
                grad: &mut Affine<T>,
            ) -> Result<Array<T, D>> {
                let mut dx = self.rows.zeros_like("sum", sum)?;
                self.backward_residual_into(sum, saved, dy, dsum, &mut dx, grad)?;
                Ok(dx)
            }

            /// [`backward_residual`](Self::backward_residual) into memory of the caller.
            ///
            /// # Shapes
            ///
            /// - `sum`, `dy`, `dsum`, `dx`: `[.., normalized shape]`, any strides; `dx` is overwritten
            /// - `grad`: is added to
            ///
            /// # Errors
            ///
            /// As [`backward_residual`](Self::backward_residual), and [`Error::Shape`] unless `dx` has the shape of `sum`.
            /// Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once its buffers have grown to the shape of `sum`.
            pub fn backward_residual_into<D: Dimension>(
                &self,
                sum: &ArrayRef<T, D>,
                saved: &$saved<T>,
                dy: &ArrayRef<T, D>,
                dsum: Option<&ArrayRef<T, D>>,
                dx: &mut ArrayRef<T, D>,
                grad: &mut Affine<T>,
            ) -> Result<()> {
                self.rows.backward_residual(sum, &(*saved) $(.$rows)?, dy, dsum, None, dx, grad)
            }

            /// The gradients of the loss by x and by residual; those by the parameters are added to `grad`.
            ///
            /// ```text
            /// dresidual = norm′(dy) + dsum      dx = mask ⊙ dresidual
            /// ```
            ///
            /// # Shapes
            ///
            /// - `sum`, `dy`, `dsum`, `mask` and the returned `dx` and `dresidual`: `[.., normalized shape]`; these are in
            ///   standard layout
            /// - `sum`, `saved`: of [`forward_dropout_residual`](Self::forward_dropout_residual) with that `mask`
            /// - `dsum`: what arrives at the sum from elsewhere; nothing does in a post-norm block
            /// - `grad`: of [`zero_grad`](Self::zero_grad); it is added to
            ///
            /// # Errors
            ///
            /// As `backward`, with `sum` in the place of `x`; [`Error::Shape`] unless `dsum` and `mask` have its shape.
            ///
            /// # Cost
            ///
            /// Reads `sum`, `dy`, `dsum` and `mask` once, or twice where a row does not fit a core's cache, and writes
            /// `dx` and `dresidual` once.
            pub fn backward_dropout_residual<D: Dimension>(
                &self,
                sum: &ArrayRef<T, D>,
                saved: &$saved<T>,
                dy: &ArrayRef<T, D>,
                dsum: Option<&ArrayRef<T, D>>,
                mask: &ArrayRef<T, D>,
                grad: &mut Affine<T>,
            ) -> Result<(Array<T, D>, Array<T, D>)> {
                let mut dx = self.rows.zeros_like("sum", sum)?;
                let mut dresidual = self.rows.zeros_like("sum", sum)?;
                self.backward_dropout_residual_into(sum, saved, dy, dsum, mask, &mut dx, &mut dresidual, grad)?;
                Ok((dx, dresidual))
            }

            /// [`backward_dropout_residual`](Self::backward_dropout_residual) into memory of the caller.
            ///
            /// # Shapes
            ///
            /// - `sum`, `dy`, `dsum`, `mask`, `dx`, `dresidual`: `[.., normalized shape]`, any strides; `dx` and
            ///   `dresidual` are overwritten
            /// - `grad`: is added to
            ///
            /// # Errors
            ///
            /// As [`backward_dropout_residual`](Self::backward_dropout_residual), and [`Error::Shape`] unless `dx` and
            /// `dresidual` have the shape of `sum`. Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once its buffers have grown to the shape of `sum`.
            #[expect(clippy::too_many_arguments, reason = "each is an array of the equations")]
            pub fn backward_dropout_residual_into<D: Dimension>(
                &self,
                sum: &ArrayRef<T, D>,
                saved: &$saved<T>,
                dy: &ArrayRef<T, D>,
                dsum: Option<&ArrayRef<T, D>>,
                mask: &ArrayRef<T, D>,
                dx: &mut ArrayRef<T, D>,
                dresidual: &mut ArrayRef<T, D>,
                grad: &mut Affine<T>,
            ) -> Result<()> {
                self.rows.backward_residual(sum, &(*saved) $(.$rows)?, dy, dsum, Some((mask, dx)), dresidual, grad)
            }
        }
    };
}

residual!(LayerNorm, Saved);
residual!(RmsNorm, RmsSaved, rows);
