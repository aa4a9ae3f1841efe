use layernorm::ndarray::Array2;
use layernorm::{Affine, LayerNorm, Parameters, Result, Saved};

use super::Norm;
use crate::common::adam::Visit;

/// y = gain ⊙ (x − μ)·rstd + bias, with μ and rstd of the image.
pub(crate) struct Layer {
    norm: LayerNorm<f32>,
    saved: Saved<f32>,
    grad: Affine<f32>,
}

impl Layer {
    pub(crate) fn new(features: usize) -> Self {
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
