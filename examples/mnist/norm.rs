//! Normalizations of the sums of a layer, one a file.
//!
//! One more is one more implementation of [`Norm`] and one more [`Kind`](crate::kind::Kind).

mod batch;
mod bias;
mod layer;
mod rms;

use layernorm::Result;
use layernorm::ndarray::Array2;

use crate::common::adam::Visit;

pub(crate) use batch::Batch;
pub(crate) use bias::Bias;
pub(crate) use layer::Layer;
pub(crate) use rms::Rms;

/// A normalization with its parameters, their gradients, and what forward saves for backward.
pub(crate) trait Norm {
    /// Training. Overwrites `y`.
    fn forward(&mut self, x: &Array2<f32>, y: &mut Array2<f32>) -> Result<()>;

    /// What `x` gives when training is over, in its place.
    fn infer(&self, x: &mut Array2<f32>) -> Result<()>;

    /// Overwrites `dx` and the gradients; `x` is that of the last forward call.
    fn backward(&mut self, x: &Array2<f32>, dy: &Array2<f32>, dx: &mut Array2<f32>) -> Result<()>;

    /// Calls `f` with each parameter and its gradient.
    fn zip(&mut self, f: Visit<'_>) -> Result<()>;
}
