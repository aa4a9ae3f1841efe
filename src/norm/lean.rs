//! With fewer arrays: in place, and backward without x.
//!
//! ```text
//! what stays from forward to backward      forward                 backward
//! x                                        forward                 backward_inplace: dx in place of dy
//! y alone, in place of x                   forward_inplace         backward_from_output
//! x̂ alone, in place of x                   forward_inplace *       backward_from_normalized
//! ```
//!
//! \* of a layer without gain and bias, whose y is x̂.
//!
//! x̂ = (y − bias)/gain, and dx = r·P with P as if x̂ were x, whose own mean is 0 and rstd 1 (docs/backward.md, 3): with
//! x̂ nothing is lost, and with y what rounding y took, over the gain.

use ndarray::{ArrayRef, Dimension};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::norm::layer_norm::LayerNorm;
use crate::norm::rms_norm::{RmsNorm, RmsSaved};
use crate::norm::row_norm::{RowNorm, Saved, gradient, slice};
use crate::params::{Affine, check_shape};
use crate::rows::{self, Source};

/// The smallest gain that y is divided by, as a part of |bias|: three digits of x̂ are lost there. Beside no bias, rounding
/// gain·x̂ takes as much from it as rounding x̂ does, as long as the gain is a normal number.
const LEAST_GAIN: f64 = 1e-3;

impl<T: Element> RowNorm<T> {
    fn forward_inplace<D: Dimension>(&self, x: &mut ArrayRef<T, D>, saved: &mut Saved<T>) -> Result<()> {
        self.check_input("x", x.shape())?;
        let rows = self.rows(x.shape());
        let saved = saved.fit(x.shape(), rows, self.spread.eps);
        self.call(rows, |call| rows::forward_inplace(call, x.view_mut(), Some(saved)));
        Ok(())
    }

    fn backward_inplace<D: Dimension>(
        &self,
        x: &ArrayRef<T, D>,
        saved: &Saved<T>,
        dy: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<()> {
        self.check_backward("x", x.shape(), saved, grad)?;
        check_shape("dy", x.shape(), dy.shape())?;
        self.call(self.rows(x.shape()), |call| {
            rows::backward_inplace(call, saved.rows(), x.view(), dy.view_mut(), gradient(grad));
        });
        Ok(())
    }

    fn backward_from<D: Dimension>(
        &self,
        source: Source,
        from: &ArrayRef<T, D>,
        saved: &Saved<T>,
        dy: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<()> {
        let argument = match source {
            Source::Output => "y",
            Source::Normalized => "normalized",
        };
        self.check_backward(argument, from.shape(), saved, grad)?;
        check_shape("dy", from.shape(), dy.shape())?;
        let rows = self.rows(from.shape());
        if rows > 0 && matches!(source, Source::Output) {
            self.check_gain()?;
        }
        self.call(rows, |call| {
            rows::backward_from(call, saved.rows(), source, from.view(), dy.view_mut(), gradient(grad));
        });
        Ok(())
    }

    /// Whether y can be divided by the gain.
    fn check_gain(&self) -> Result<()> {
        let (gain, bias) = (slice(&self.affine.gain), slice(&self.affine.bias));
        for feature in 0..self.features {
            let centre = if self.zero_centred || gain.is_none() { T::one() } else { T::zero() };
            let gain = centre + gain.map_or(T::zero(), |gain| gain[feature]);
            let bias = bias.map_or(T::zero(), |bias| bias[feature]);
            let least = T::min_positive_value().max(T::nearest(LEAST_GAIN) * bias.abs());
            if gain.is_nan() || gain.abs() < least {
                let [least, bias, got] = [least, bias, gain].map(T::into);
                return Err(Error::SmallGain { feature, least, bias, got, zero_centred: self.zero_centred });
            }
        }
        Ok(())
    }
}

macro_rules! lean {
    ($norm:ident, $saved:ident $(, $rows:ident)?) => {
        /// With fewer arrays.
        impl<T: Element> $norm<T> {
            /// `forward` with y in place of x.
            ///
            /// The bits are those of `forward`. x is gone then: backward starts from y
            /// ([`backward_from_output`](Self::backward_from_output)), or, in a layer without gain and bias, whose y is x̂,
            /// [from that](Self::backward_from_normalized). `backward` itself cannot tell y from x, and would give a wrong dx.
            ///
            /// # Shapes
            ///
            /// - `x`: `[.., normalized shape]`, any strides; it is overwritten
            /// - `saved`: from a default or an earlier call, whatever its shape; it is overwritten
            ///
            /// # Errors
            ///
            /// As `forward`. Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once `saved` and its buffers have grown.
            pub fn forward_inplace<D: Dimension>(&self, x: &mut ArrayRef<T, D>, saved: &mut $saved<T>) -> Result<()> {
                self.rows.forward_inplace(x, &mut (*saved) $(.$rows)?)
            }

            /// `backward` with dx in place of dy, and the same bits.
            ///
            /// # Shapes
            ///
            /// - `x`, `dy`: `[.., normalized shape]`, any strides; `dy` is overwritten with dx
            /// - `saved`: of the forward call on this `x`
            /// - `grad`: is added to
            ///
            /// # Errors
            ///
            /// As `backward`. Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once its buffers have grown.
            pub fn backward_inplace<D: Dimension>(
                &self,
                x: &ArrayRef<T, D>,
                saved: &$saved<T>,
                dy: &mut ArrayRef<T, D>,
                grad: &mut Affine<T>,
            ) -> Result<()> {
                self.rows.backward_inplace(x, &(*saved) $(.$rows)?, dy, grad)
            }

            /// `backward` from y instead of x, with dx in place of dy: training then keeps one array where it kept three.
            ///
            /// ```text
            /// x̂ = (y − bias)/gain
            /// ```
            ///
            /// It differs from `backward` by what y lost to rounding, over the gain, and where a row's rstd is not a normal
            /// number, which is taken from `saved` here: where it is infinite, so is dx, or NaN.
            ///
            /// # Shapes
            ///
            /// - `y`, `dy`: `[.., normalized shape]`, any strides; `dy` is overwritten with dx
            /// - `saved`: of the forward call that gave this `y`
            /// - `grad`: is added to
            ///
            /// # Errors
            ///
            /// As `backward`, with `y` in the place of `x`; [`Error::SmallGain`] if a gain is below a thousandth of its bias, in
            /// size, or 0, subnormal or NaN; it is never clamped: that gradient would be wrong. Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once its buffers have grown.
            ///
            /// # Example
            ///
            /// ```
            #[doc = concat!("use layernorm::{", stringify!($norm), ", ", stringify!($saved), ", ndarray::array};")]
            ///
            #[doc = concat!("let norm = ", stringify!($norm), "::<f32>::new(3).with_gain(array![2.0, 0.5, 1.0])?;")]
            #[doc = concat!("let mut saved = ", stringify!($saved), "::default();")]
            /// let x = array![[1.0, 2.0, 6.0]];
            /// let dy = array![[1.0, 0.0, 0.5]];
            ///
            /// let mut activations = x.clone();
            /// norm.forward_inplace(&mut activations, &mut saved)?;
            /// let (mut gradients, mut grad) = (dy.clone(), norm.zero_grad());
            /// norm.backward_from_output(&activations, &saved, &mut gradients, &mut grad)?;
            ///
            /// let dx = norm.backward(&x, &saved, &dy, &mut norm.zero_grad())?;
            /// assert!((gradients - dx).iter().all(|difference| difference.abs() < 1e-6));
            /// # Ok::<(), layernorm::Error>(())
            /// ```
            pub fn backward_from_output<D: Dimension>(
                &self,
                y: &ArrayRef<T, D>,
                saved: &$saved<T>,
                dy: &mut ArrayRef<T, D>,
                grad: &mut Affine<T>,
            ) -> Result<()> {
                self.rows.backward_from(Source::Output, y, &(*saved) $(.$rows)?, dy, grad)
            }

            /// `backward` from x̂ instead of x, with dx in place of dy.
            ///
            /// x̂ is the y of the same layer without gain and bias, and that layer's `saved` serves here; the y of this
            /// layer is gain ⊙ x̂ + bias. Any gain will do.
            ///
            /// It differs from `backward` by what x̂ lost to rounding, and where a row's rstd is not a normal number, which is
            /// taken from `saved` here: where it is infinite, so is dx, or NaN.
            ///
            /// # Shapes
            ///
            /// - `normalized`, `dy`: `[.., normalized shape]`, any strides; `dy` is overwritten with dx
            /// - `saved`: of the forward call that gave this x̂
            /// - `grad`: is added to
            ///
            /// # Errors
            ///
            /// As `backward`, with `normalized` in the place of `x`. Nothing is written then.
            ///
            /// # Cost
            ///
            /// On one thread, allocates nothing once its buffers have grown.
            pub fn backward_from_normalized<D: Dimension>(
                &self,
                normalized: &ArrayRef<T, D>,
                saved: &$saved<T>,
                dy: &mut ArrayRef<T, D>,
                grad: &mut Affine<T>,
            ) -> Result<()> {
                self.rows.backward_from(Source::Normalized, normalized, &(*saved) $(.$rows)?, dy, grad)
            }
        }
    };
}

lean!(LayerNorm, Saved);
lean!(RmsNorm, RmsSaved, rows);
