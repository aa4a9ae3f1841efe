//! Gradient descent by hand: dense, layer norm, tanh, dense, fitted to a small function.
//!
//! ```sh
//! cargo run --release --example own_training_loop
//! ```

use layernorm::ndarray::{Array2, Axis};
use layernorm::{Error, LayerNorm, Parameters};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};
use ndarray_rand::rand_distr::{Normal, Uniform};

const SAMPLES: usize = 256;
const INPUTS: usize = 4;
const HIDDEN: usize = 32;
const RATE: f32 = 0.1;

fn main() -> Result<(), Error> {
    let mut rng = StdRng::seed_from_u64(1);
    let x = Array2::random_using((SAMPLES, INPUTS), Uniform::new(-1.0, 1.0).expect("-1 < 1"), &mut rng);
    let target = Array2::from_shape_fn((SAMPLES, 1), |(i, _)| f32::sin(3.0 * x[[i, 0]]) + x[[i, 1]] * x[[i, 2]]);

    // Weights start at spread 1/√inputs, so that sums start near 1.
    let spread = |inputs: usize| Normal::new(0.0, (inputs as f32).sqrt().recip()).expect("finite and positive");
    let mut w1 = Array2::random_using((INPUTS, HIDDEN), spread(INPUTS), &mut rng);
    let mut w2 = Array2::random_using((HIDDEN, 1), spread(HIDDEN), &mut rng);
    // Its bias is the first layer's: the paper adds it after the normalization.
    let mut norm = LayerNorm::<f32>::new(HIDDEN);
    let mut grad = norm.zero_grad();

    for step in 0..=2000 {
        let sums = x.dot(&w1);
        let (normed, saved) = norm.forward(&sums)?;
        let h = normed.mapv(f32::tanh);
        let error = h.dot(&w2) - &target;
        if step % 200 == 0 {
            println!("step {step:4}  loss {:.5}", error.pow2().mean().expect("not empty"));
        }

        // Backward, the same lines from the bottom up; the loss is the mean of error².
        let dy = error * (2.0 / SAMPLES as f32);
        let dw2 = h.t().dot(&dy);
        let dnormed = dy.dot(&w2.t()) * (1.0 - h.pow2());
        grad.fill_zero();
        let dsums = norm.backward(&sums, &saved, &dnormed, &mut grad)?;
        let dw1 = x.t().dot(&dsums);

        w1.scaled_add(-RATE, &dw1);
        w2.scaled_add(-RATE, &dw2);
        norm.zip(&grad, |_name, mut parameter, gradient| parameter.scaled_add(-RATE, &gradient))?;
    }

    println!("the target's variance is {:.5}", target.var_axis(Axis(0), 0.0)[0]);
    Ok(())
}
