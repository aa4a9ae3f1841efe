//! What happens to the sums of a layer before its ReLU: the choice `--norm`.
//!
//! One more normalization is one more [`Kind`] and one more implementation of [`Norm`].

use layernorm::ndarray::{Array1, Array2, Axis};
use layernorm::{Affine, LayerNorm, Parameters, Result, Saved};

use crate::common::adam::Visit;
use crate::common::kind::Kind;

impl Kind {
    pub(crate) fn with_features(self, features: usize) -> Box<dyn Norm> {
        match self {
            Self::None => Box::new(Bias::new(features)),
            Self::Layer => Box::new(Layer::new(features)),
        }
    }
}

/// A normalization with its parameters, their gradients, and what forward saves for backward.
pub(crate) trait Norm {
    /// Overwrites `y`.
    fn forward(&mut self, x: &Array2<f32>, y: &mut Array2<f32>) -> Result<()>;

    /// What forward gives when training is over, in the place of `x`.
    fn infer(&self, x: &mut Array2<f32>) -> Result<()>;

    /// Overwrites `dx` and the gradients; `x` is that of the last forward call.
    fn backward(&mut self, x: &Array2<f32>, dy: &Array2<f32>, dx: &mut Array2<f32>) -> Result<()>;

    /// Calls `f` with each parameter and its gradient.
    fn zip(&mut self, f: Visit<'_>) -> Result<()>;
}

/// y = x + bias: no normalization, but every layer has a bias.
struct Bias {
    bias: Array1<f32>,
    dbias: Array1<f32>,
}

impl Bias {
    fn new(features: usize) -> Self {
        Self { bias: Array1::zeros(features), dbias: Array1::zeros(features) }
    }
}

impl Norm for Bias {
    fn forward(&mut self, x: &Array2<f32>, y: &mut Array2<f32>) -> Result<()> {
        y.assign(x);
        self.infer(y)
    }

    fn infer(&self, x: &mut Array2<f32>) -> Result<()> {
        *x += &self.bias;
        Ok(())
    }

    fn backward(&mut self, _x: &Array2<f32>, dy: &Array2<f32>, dx: &mut Array2<f32>) -> Result<()> {
        self.dbias.assign(&dy.sum_axis(Axis(0)));
        dx.assign(dy);
        Ok(())
    }

    fn zip(&mut self, f: Visit<'_>) -> Result<()> {
        f(self.bias.view_mut().into_dyn(), self.dbias.view().into_dyn());
        Ok(())
    }
}

/// y = gain ⊙ (x − μ)·rstd + bias
struct Layer {
    norm: LayerNorm<f32>,
    saved: Saved<f32>,
    grad: Affine<f32>,
}

impl Layer {
    fn new(features: usize) -> Self {
        let norm = LayerNorm::new(features);
        let grad = norm.zero_grad();
        Self { norm, saved: Saved::default(), grad }
    }
}

impl Norm for Layer {
    fn forward(&mut self, x: &Array2<f32>, y: &mut Array2<f32>) -> Result<()> {
        self.norm.forward_into(x, y, &mut self.saved)
    }

    fn infer(&self, x: &mut Array2<f32>) -> Result<()> {
        self.norm.infer_inplace(x)
    }

    fn backward(&mut self, x: &Array2<f32>, dy: &Array2<f32>, dx: &mut Array2<f32>) -> Result<()> {
        self.grad.fill_zero();
        self.norm.backward_into(x, &self.saved, dy, dx, &mut self.grad)
    }

    fn zip(&mut self, f: Visit<'_>) -> Result<()> {
        self.norm.zip(&self.grad, |_name, parameter, gradient| f(parameter, gradient))
    }
}
