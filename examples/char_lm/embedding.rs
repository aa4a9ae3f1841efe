//! A row of numbers for each character.
//!
//! The same as a product with one-hot rows, without the products by 0:
//!
//! ```text
//! x[t, b] = weight[character[t, b]]        dweight[character[t, b]] += dx[t, b]
//! ```

use layernorm::ndarray::{Array2, Array3, ArrayRef2, ArrayRef3, Axis};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::rngs::StdRng;
use ndarray_rand::rand_distr::StandardNormal;

use crate::common::adam::Visit;

pub(crate) struct Embedding {
    /// `[characters, width]`
    weight: Array2<f32>,
    pub(crate) dweight: Array2<f32>,
}

impl Embedding {
    pub(crate) fn new(characters: usize, width: usize, rng: &mut StdRng) -> Self {
        let weight = Array2::random_using((characters, width), StandardNormal, rng);
        Self { dweight: Array2::zeros(weight.raw_dim()), weight }
    }

    /// Overwrites `x`, `[steps, batch, width]`.
    pub(crate) fn forward(&self, characters: &ArrayRef2<u8>, x: &mut ArrayRef3<f32>) {
        for (&character, mut x) in characters.iter().zip(x.lanes_mut(Axis(2))) {
            x.assign(&self.weight.row(character as usize));
        }
    }

    /// The row of one character, `[1, width]`.
    pub(crate) fn infer(&self, character: u8) -> Array2<f32> {
        self.weight.row(character as usize).insert_axis(Axis(0)).to_owned()
    }

    /// Overwrites the gradient.
    pub(crate) fn backward(&mut self, characters: &ArrayRef2<u8>, dx: &Array3<f32>) {
        self.dweight.fill(0.0);
        for (&character, dx) in characters.iter().zip(dx.lanes(Axis(2))) {
            self.dweight.row_mut(character as usize).scaled_add(1.0, &dx);
        }
    }

    /// Calls `f` with the parameter and its gradient.
    pub(crate) fn zip(&mut self, f: Visit<'_>) {
        f(self.weight.view_mut().into_dyn(), self.dweight.view().into_dyn());
    }
}
