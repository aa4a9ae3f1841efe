//! The network of section 6.6: pixels, two hidden layers of ReLUs, one output for each class.
//!
//! A layer is h = relu(norm(x·W)). The norm has the bias, so the product needs none.

use layernorm::Result;
use layernorm::ndarray::{Array2, Zip};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::rngs::StdRng;
use ndarray_rand::rand_distr::Normal;

use crate::common::adam::{Trained, Visit};
use crate::common::matmul::matmul;
use crate::kind::Kind;
use crate::norm::Norm;

/// Layers, each with its weight, gradients and the numbers of the last batch.
pub(crate) struct Network {
    layers: [Layer; 3],
}

impl Network {
    /// To be trained with `batch` rows in a step, some steps with less.
    ///
    /// The weights depend on `rng` and the widths alone, so all kinds of norm start from the same.
    pub(crate) fn new(kind: Kind, batch: usize, [pixels, hidden, classes]: [usize; 3], rng: &mut StdRng) -> Self {
        Self {
            layers: [
                Layer::new(pixels, hidden, kind.hidden(hidden, batch), true, rng),
                Layer::new(hidden, hidden, kind.hidden(hidden, batch), true, rng),
                Layer::new(hidden, classes, kind.outputs(classes, batch), false, rng),
            ],
        }
    }

    /// Training: the outputs for a batch, and the place for the loss's gradient by them, which backward starts from.
    pub(crate) fn forward(&mut self, x: &Array2<f32>) -> Result<(&Array2<f32>, &mut Array2<f32>)> {
        let mut input = x;
        for layer in &mut self.layers {
            layer.forward(input)?;
            input = &layer.output;
        }
        let [.., last] = &mut self.layers;
        Ok((&last.output, &mut last.doutput))
    }

    /// Evaluation: the outputs alone. Nothing is kept, and a row gives what it gives alone.
    pub(crate) fn infer(&self, x: Array2<f32>) -> Result<Array2<f32>> {
        self.layers.iter().try_fold(x, |x, layer| layer.infer(&x))
    }

    /// Fills all gradients; `x` is that of the last forward call.
    pub(crate) fn backward(&mut self, x: &Array2<f32>) -> Result<()> {
        let mut layers = &mut self.layers[..];
        while let Some((layer, before)) = layers.split_last_mut() {
            match before.last_mut() {
                Some(previous) => layer.backward(&previous.output, Some(&mut previous.doutput))?,
                None => layer.backward(x, None)?,
            }
            layers = before;
        }
        Ok(())
    }
}

impl Trained for Network {
    fn zip(&mut self, f: Visit<'_>) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| {
            f(layer.weight.view_mut().into_dyn(), layer.dweight.view().into_dyn());
            layer.norm.zip(f)
        })
    }
}

/// h = relu(norm(x·W)), the ReLU only if there is one.
struct Layer {
    /// `[inputs, outputs]`
    weight: Array2<f32>,
    dweight: Array2<f32>,
    norm: Box<dyn Norm>,
    relu: bool,

    // Of the last batch, `[rows, outputs]`. Made anew when the number of rows changes, else overwritten.
    /// x·W
    sums: Array2<f32>,
    output: Array2<f32>,
    dsums: Array2<f32>,
    doutput: Array2<f32>,
}

impl Layer {
    fn new(inputs: usize, outputs: usize, norm: Box<dyn Norm>, relu: bool, rng: &mut StdRng) -> Self {
        // The sums of a layer start about as large as its inputs. The paper does not say how it starts.
        let spread = (inputs as f32).sqrt().recip();
        let buffer = || Array2::zeros((0, outputs));
        Self {
            weight: Array2::random_using((inputs, outputs), Normal::new(0.0, spread).expect("finite"), rng),
            dweight: Array2::zeros((inputs, outputs)),
            norm,
            relu,
            sums: buffer(),
            output: buffer(),
            dsums: buffer(),
            doutput: buffer(),
        }
    }

    fn forward(&mut self, x: &Array2<f32>) -> Result<()> {
        let shape = (x.nrows(), self.weight.ncols());
        for buffer in [&mut self.sums, &mut self.output, &mut self.dsums, &mut self.doutput] {
            if buffer.dim() != shape {
                *buffer = Array2::zeros(shape);
            }
        }
        matmul(x, &self.weight, &mut self.sums);
        self.norm.forward(&self.sums, &mut self.output)?;
        if self.relu {
            self.output.mapv_inplace(relu);
        }
        Ok(())
    }

    fn infer(&self, x: &Array2<f32>) -> Result<Array2<f32>> {
        let mut h = Array2::zeros((x.nrows(), self.weight.ncols()));
        matmul(x, &self.weight, &mut h);
        self.norm.infer(&mut h)?;
        if self.relu {
            h.mapv_inplace(relu);
        }
        Ok(h)
    }

    /// Takes `doutput` and fills the gradients, and `dx` if somebody wants it: nobody does below the first layer.
    fn backward(&mut self, x: &Array2<f32>, dx: Option<&mut Array2<f32>>) -> Result<()> {
        if self.relu {
            Zip::from(&mut self.doutput).and(&self.output).for_each(|d, &h| *d = if h > 0.0 { *d } else { 0.0 });
        }
        self.norm.backward(&self.sums, &self.doutput, &mut self.dsums)?;
        matmul(&x.t(), &self.dsums, &mut self.dweight);
        if let Some(dx) = dx {
            matmul(&self.dsums, &self.weight.t(), dx);
        }
        Ok(())
    }
}

/// Not `max`, which would turn a NaN into 0 and hide that training went wrong.
fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use ndarray_rand::rand::SeedableRng;

    use super::*;

    #[test]
    fn batch_norm_has_all_layers_the_others_the_hidden_ones() {
        // A weight and a bias each, and the gains.
        for (kind, gains) in [(Kind::Layer, 2), (Kind::Rms, 2), (Kind::Batch, 3), (Kind::None, 0)] {
            let mut network = Network::new(kind, 4, [5, 3, 2], &mut StdRng::seed_from_u64(1));
            let mut parameters = 0;
            network.zip(&mut |_, _| parameters += 1).unwrap();
            assert_eq!(parameters, 6 + gains, "{kind}");
        }
    }
}
