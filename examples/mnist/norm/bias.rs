use layernorm::Result;
use layernorm::ndarray::{Array1, Array2, Axis};

use super::Norm;
use crate::common::adam::Visit;

/// y = x + bias: no normalization, but every layer has a bias.
pub(crate) struct Bias {
    bias: Array1<f32>,
    dbias: Array1<f32>,
}

impl Bias {
    pub(crate) fn new(features: usize) -> Self {
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
