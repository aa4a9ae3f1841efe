//! The numbers that users compute in.

use ndarray::NdFloat;

use crate::kernels::Kernels;

/// An element of the arrays: `f32` or `f64`.
///
/// Sealed: the bit contract is worked out for these two, and their kernels are compiled into this crate. What code that is
/// generic over it needs, it has from [`NdFloat`]: the arithmetic of `num_traits::Float`, with assignment, and that of arrays
/// with a number.
///
/// ```
/// use layernorm::{Element, LayerNorm, Parameters, Result};
///
/// fn descend<T: Element>(norm: &mut LayerNorm<T>, grad: &<LayerNorm<T> as Parameters<T>>::Gradient, rate: T) -> Result<()> {
///     norm.zip(grad, |_name, mut parameter, gradient| parameter -= &(&gradient * rate))
/// }
///
/// let mut norm = LayerNorm::<f64>::new(2);
/// let mut grad = norm.zero_grad();
/// grad.gain_mut().unwrap().fill(2.0);
/// descend(&mut norm, &grad, 0.25)?;
/// assert_eq!(norm.gain().unwrap()[0], 0.5);
/// # Ok::<(), layernorm::Error>(())
/// ```
pub trait Element: Kernels + NdFloat {}

impl Element for f32 {}
impl Element for f64 {}
