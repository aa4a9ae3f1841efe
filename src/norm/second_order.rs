//! Derivatives along a direction, and of the gradients themselves.

use ndarray::{Array, ArrayRef, Dimension};

use crate::element::Element;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::kernels::columns::Gradient;
use crate::norm::layer_norm::LayerNorm;
use crate::norm::rms_norm::{RmsNorm, RmsSaved};
use crate::norm::row_norm::{RowNorm, Saved, gradient, slice};
use crate::params::{Affine, check_shape};
use crate::rows::{self, AffineDirection, DoubleBackward};

impl<T: Element> RowNorm<T> {
    fn jvp_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &Saved<T>,
        x_tangent: &ArrayRef<T, D>,
        tangent: &Affine<T>,
        y_tangent: &mut ArrayRef<T, D>,
    ) -> Result<()> {
        self.check_input("x", x.shape())?;
        saved.check("x", x.shape(), self.rows(x.shape()), self.spread.eps)?;
        check_shape("x_tangent", x.shape(), x_tangent.shape())?;
        self.affine.check_same(tangent, "tangent")?;
        check_shape("y_tangent", x.shape(), y_tangent.shape())?;
        self.call(self.rows(x.shape()), |call| {
            let views = (x.view(), x_tangent.view(), y_tangent.view_mut());
            rows::jvp(call, saved.rows(), views.0, views.1, direction(tangent), views.2);
        });
        Ok(())
    }

    #[expect(clippy::too_many_arguments, reason = "the arrays of the public call")]
    fn double_backward_into<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &Saved<T>,
        dy: &ArrayRef<T, D>,
        ddx: &ArrayRef<T, D>,
        dgrad: &Affine<T>,
        [dx, ddy]: [&mut ArrayRef<T, D>; 2],
        grad: &mut Affine<T>,
    ) -> Result<()> {
        self.check_backward("x", x.shape(), saved, grad)?;
        check_shape("dy", x.shape(), dy.shape())?;
        check_shape("ddx", x.shape(), ddx.shape())?;
        self.affine.check_same(dgrad, "dgrad")?;
        check_shape("dx", x.shape(), dx.shape())?;
        check_shape("ddy", x.shape(), ddy.shape())?;
        self.call(self.rows(x.shape()), |call| {
            let (x, dy, ddx) = (x.view(), dy.view(), ddx.view());
            let arrays = DoubleBackward { x, dy, ddx, dx: dx.view_mut(), ddy: ddy.view_mut() };
            // The bias is in no gradient.
            let gain = gradient(grad).gain;
            rows::double_backward(call, saved.rows(), arrays, direction(dgrad), Gradient { gain, bias: None });
        });
        Ok(())
    }
}

fn direction<T: Element>(affine: &Affine<T>) -> AffineDirection<'_, T> {
    AffineDirection { gain: slice(&affine.gain), bias: slice(&affine.bias) }
}

macro_rules! second_order {
    ($norm:ident, $saved:ident, $p:literal, $a:literal $(, $rows:ident)?) => {
        /// Forward mode and second order.
        impl<T: Element> $norm<T> {
            /// How y moves while x, gain and bias move: the Jacobian-vector product of `forward`.
            ///
            /// ```text
            /// ẏ = gain ⊙ P(ẋ) + ġain ⊙ x̂ + ḃias
            #[doc = $p]
            /// ```
            ///
            /// P is the Jacobian of x̂ by x. Derived in [`second_order`](crate::derivations::second_order), equation (1).
            ///
            /// # Shapes
            ///
            /// - `x`, `x_tangent` (ẋ) and the returned ẏ: `[.., normalized shape]`; ẏ is in standard layout
            /// - `saved`: of the forward call on this `x`
            /// - `tangent`: ġain and ḃias, as [`zero_grad`](Self::zero_grad) makes them
            ///
            /// # Errors
            ///
            /// As `backward`, with the names of these arguments.
            ///
            /// # Cost
            ///
            /// Reads `x` and `x_tangent` once, or twice where a row does not fit a core's cache, and writes ẏ once, row
            /// by row.
            ///
            /// # Example
            ///
            /// ```
            #[doc = concat!("use layernorm::{", stringify!($norm), ", ndarray::array};")]
            ///
            #[doc = concat!("let norm = ", stringify!($norm), "::<f64>::new(3);")]
            /// let (x, along) = (array![[1.0, 2.0, 6.0]], array![[0.0, 1.0, -0.5]]);
            /// let (y, saved) = norm.forward(&x)?;
            /// let moves = norm.jvp(&x, &saved, &along, &norm.zero_grad())?;
            /// let difference = (norm.infer(&(&x + &along * 1e-6))? - y) / 1e-6;
            /// assert!((moves - difference).iter().all(|error| error.abs() < 1e-5));
            /// # Ok::<(), layernorm::Error>(())
            /// ```
            pub fn jvp<D: Dimension>(
                &self,
                x: &ArrayRef<T, D>,
                saved: &$saved<T>,
                x_tangent: &ArrayRef<T, D>,
                tangent: &Affine<T>,
            ) -> Result<Array<T, D>> {
                let mut y_tangent = self.rows.zeros_like("x", x)?;
                self.jvp_into(x, saved, x_tangent, tangent, &mut y_tangent)?;
                Ok(y_tangent)
            }

            /// [`jvp`](Self::jvp) into memory of the caller.
            ///
            /// # Shapes
            ///
            /// - `x`, `x_tangent`, `y_tangent`: `[.., normalized shape]`, any strides; `y_tangent` is overwritten
            ///
            /// # Errors
            ///
            /// As [`jvp`](Self::jvp), and [`Error::Shape`] unless `y_tangent` has the shape of `x`. Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once its buffers have grown to the shape of `x`.
            pub fn jvp_into<D: Dimension>(
                &self,
                x: &ArrayRef<T, D>,
                saved: &$saved<T>,
                x_tangent: &ArrayRef<T, D>,
                tangent: &Affine<T>,
                y_tangent: &mut ArrayRef<T, D>,
            ) -> Result<()> {
                self.rows.jvp_into(x, &(*saved) $(.$rows)?, x_tangent, tangent, y_tangent)
            }

            /// The gradient of `backward`: of a loss of its dx, dgain and dbias, by x and dy (returned) and by the gain (added
            /// to `grad`).
            ///
            /// With X, G and B for the loss's gradients by them (`ddx`, and gain and bias of `dgrad`), q = gain ⊙ dy, means over
            /// a row and P as of [`jvp`](Self::jvp),
            ///
            /// ```text
            /// by x    = P(G ⊙ dy) − r·(mean(x̂ ⊙ q)·P(X) + mean(x̂ ⊙ X)·P(q)) − r²·x̂·(A − mean(x̂ ⊙ X)·mean(x̂ ⊙ q))
            #[doc = $a]
            /// by dy   = gain ⊙ P(X) + G ⊙ x̂ + B                             that is jvp along X, G and B
            /// by gain = Σ dy ⊙ P(X)      over the rows
            /// ```
            ///
            /// For penalties on gradients, and, with ẋ for `ddx`, for products with the Hessian. Derived in
            /// [`second_order`](crate::derivations::second_order), equation (2).
            ///
            /// # Shapes
            ///
            /// - `x`, `dy`, `ddx` and the returned gradients by x and by dy: `[.., normalized shape]`; these are in standard
            ///   layout
            /// - `x`, `saved`, `dy`: of the backward call
            /// - `ddx`: the gradient of the loss by that call's dx
            /// - `dgrad`: the gradients of the loss by that call's dgain and dbias, as [`zero_grad`](Self::zero_grad) makes
            ///   them
            /// - `grad`: its gain is added to; backward does not know the bias
            ///
            /// # Errors
            ///
            /// As `backward`, with the names of these arguments.
            ///
            /// # Cost
            ///
            /// Reads `x`, `dy` and `ddx` once, or twice where a row does not fit a core's cache, and writes both
            /// gradients once, row by row.
            ///
            /// # Example
            ///
            /// A penalty of ½|dx|² on the gradient of Σ dy ⊙ y, and how it falls against its own gradient:
            ///
            /// ```
            #[doc = concat!("use layernorm::{", stringify!($norm), ", ndarray::{Array2, array}};")]
            ///
            #[doc = concat!("let norm = ", stringify!($norm), "::<f64>::new(3);")]
            /// let (x, dy) = (array![[1.0, 2.0, 6.0]], array![[0.3, -1.0, 0.5]]);
            /// let gradient = |x: &Array2<f64>| {
            ///     let (_, saved) = norm.forward(x)?;
            ///     let dx = norm.backward(x, &saved, &dy, &mut norm.zero_grad())?;
            ///     Ok::<_, layernorm::Error>((dx, saved))
            /// };
            /// let penalty = |dx: &Array2<f64>| (dx * dx).sum() / 2.0;
            ///
            /// let (dx, saved) = gradient(&x)?;
            /// // The penalty's gradient by dx is dx.
            /// let (by_x, _by_dy) =
            ///     norm.double_backward(&x, &saved, &dy, &dx, &norm.zero_grad(), &mut norm.zero_grad())?;
            /// let step = 1e-6;
            /// let falls = penalty(&dx) - penalty(&gradient(&(&x - &by_x * step))?.0);
            /// assert!((falls / step / (&by_x * &by_x).sum() - 1.0).abs() < 1e-3);
            /// # Ok::<(), layernorm::Error>(())
            /// ```
            pub fn double_backward<D: Dimension>(
                &self,
                x: &ArrayRef<T, D>,
                saved: &$saved<T>,
                dy: &ArrayRef<T, D>,
                ddx: &ArrayRef<T, D>,
                dgrad: &Affine<T>,
                grad: &mut Affine<T>,
            ) -> Result<(Array<T, D>, Array<T, D>)> {
                let mut dx = self.rows.zeros_like("x", x)?;
                let mut ddy = self.rows.zeros_like("x", x)?;
                self.double_backward_into(x, saved, dy, ddx, dgrad, &mut dx, &mut ddy, grad)?;
                Ok((dx, ddy))
            }

            /// [`double_backward`](Self::double_backward) into memory of the caller.
            ///
            /// # Shapes
            ///
            /// - `x`, `dy`, `ddx`, `dx`, `ddy`: `[.., normalized shape]`, any strides; `dx` and `ddy` are overwritten
            /// - `grad`: its gain is added to
            ///
            /// # Errors
            ///
            /// As [`double_backward`](Self::double_backward), and [`Error::Shape`] unless `dx` and `ddy` have the shape of
            /// `x`. Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once its buffers have grown to the shape of `x`.
            #[expect(clippy::too_many_arguments, reason = "each is an array of the equations")]
            pub fn double_backward_into<D: Dimension>(
                &self,
                x: &ArrayRef<T, D>,
                saved: &$saved<T>,
                dy: &ArrayRef<T, D>,
                ddx: &ArrayRef<T, D>,
                dgrad: &Affine<T>,
                dx: &mut ArrayRef<T, D>,
                ddy: &mut ArrayRef<T, D>,
                grad: &mut Affine<T>,
            ) -> Result<()> {
                self.rows.double_backward_into(x, &(*saved) $(.$rows)?, dy, ddx, dgrad, [dx, ddy], grad)
            }
        }
    };
}

second_order!(
    LayerNorm,
    Saved,
    "P(t) = r·(t − mean(t) − x̂·mean(t ⊙ x̂))      means over the row",
    "A       = mean(X ⊙ q) − mean(X)·mean(q)"
);
second_order!(
    RmsNorm,
    RmsSaved,
    "P(t) = r·(t − x̂·mean(t ⊙ x̂))      the mean over the row",
    "A       = mean(X ⊙ q)",
    rows
);
