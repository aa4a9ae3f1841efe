//! From the last hidden units to a number for each character: z = h·W + bias, of which the softmax is taken.
//!
//! ```text
//! dW = hᵀ dz      dbias = Σ dz over the rows      dh = dz Wᵀ
//! ```
//!
//! Not normalized: how sure the model is shows in the scale of z.

use layernorm::ndarray::{Array1, Array2, ArrayRef2, Axis};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::rngs::StdRng;
use ndarray_rand::rand_distr::Normal;

use crate::common::adam::Visit;
use crate::common::matmul::matmul;

pub(crate) struct Output {
    /// `[hidden, characters]`
    weight: Array2<f32>,
    bias: Array1<f32>,
    pub(crate) dweight: Array2<f32>,
    pub(crate) dbias: Array1<f32>,
}

impl Output {
    pub(crate) fn new(hidden: usize, characters: usize, rng: &mut StdRng) -> Self {
        let spread = Normal::new(0.0, (hidden as f32).sqrt().recip()).expect("finite");
        let weight = Array2::random_using((hidden, characters), spread, rng);
        let (dweight, bias) = (Array2::zeros(weight.raw_dim()), Array1::zeros(characters));
        Self { weight, dbias: bias.clone(), bias, dweight }
    }

    /// Overwrites `z`, `[rows, characters]`.
    pub(crate) fn forward(&self, h: &ArrayRef2<f32>, z: &mut ArrayRef2<f32>) {
        matmul(h, &self.weight, z);
        *z += &*self.bias;
    }

    /// Overwrites the gradients and `dh`; `h` is that of the forward call.
    pub(crate) fn backward(&mut self, h: &ArrayRef2<f32>, dz: &ArrayRef2<f32>, dh: &mut ArrayRef2<f32>) {
        matmul(&h.t(), dz, &mut self.dweight);
        self.dbias.assign(&dz.sum_axis(Axis(0)));
        matmul(dz, &self.weight.t(), dh);
    }

    /// Calls `f` with each parameter and its gradient.
    pub(crate) fn zip(&mut self, f: Visit<'_>) {
        f(self.weight.view_mut().into_dyn(), self.dweight.view().into_dyn());
        f(self.bias.view_mut().into_dyn(), self.dbias.view().into_dyn());
    }
}
