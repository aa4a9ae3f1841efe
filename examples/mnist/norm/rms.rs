use layernorm::ndarray::Array2;
use layernorm::{Affine, Parameters, Result, RmsNorm, RmsSaved};

use super::{Bias, Norm};
use crate::common::adam::Visit;

/// y = gain ⊙ x·r + bias, with r of the image. The bias is not the norm's: every layer has one.
pub(crate) struct Rms {
    norm: RmsNorm<f32>,
    saved: RmsSaved<f32>,
    grad: Affine<f32>,
    bias: Bias,
}

impl Rms {
    pub(crate) fn new(features: usize) -> Self {
        let norm = RmsNorm::new(features);
        let grad = norm.zero_grad();
        Self { norm, saved: RmsSaved::default(), grad, bias: Bias::new(features) }
    }
}

impl Norm for Rms {
    fn forward(&mut self, x: &Array2<f32>, y: &mut Array2<f32>) -> Result<()> {
        self.norm.forward_into(x, y, &mut self.saved)?;
        self.bias.infer(y)
    }

    fn infer(&self, x: &mut Array2<f32>) -> Result<()> {
        self.norm.infer_inplace(x)?;
        self.bias.infer(x)
    }

    fn backward(&mut self, x: &Array2<f32>, dy: &Array2<f32>, dx: &mut Array2<f32>) -> Result<()> {
        self.bias.backward(x, dy, dx)?;
        self.grad.fill_zero();
        self.norm.backward_into(x, &self.saved, dy, dx, &mut self.grad)
    }

    fn zip(&mut self, f: Visit<'_>) -> Result<()> {
        self.norm.zip(&self.grad, |_name, parameter, gradient| f(parameter, gradient))?;
        self.bias.zip(f)
    }
}
