//! Two layers, the first in both directions: stacking is passing y on as x.
//!
//! ```sh
//! cargo run --release --features rnn --example recurrent_stack
//! ```
//!
//! In f64, so that slopes can tell whether the gradient is right; training needs no more than f32.

use std::error::Error;

use layernorm::ndarray::{Array3, Axis, Slice, concatenate};
use layernorm::rnn::{GruPlacement, LstmPlacement, Start};
use layernorm::{Gru, Lstm, Recurrent, grad_check};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};
use ndarray_rand::rand_distr::StandardNormal;

const INPUT: usize = 8;
const HIDDEN: usize = 16;

/// The same with time running backwards.
fn reversed(x: &Array3<f64>) -> Array3<f64> {
    x.slice_axis(Axis(0), Slice::new(0, None, -1)).to_owned()
}

/// y of both directions, at the time of the first.
fn side_by_side(forwards: &Array3<f64>, backwards: &Array3<f64>) -> Array3<f64> {
    concatenate(Axis(2), &[forwards.view(), reversed(backwards).view()]).expect("as many steps")
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut lstm = || Lstm::<f64>::new(INPUT, HIDDEN, LstmPlacement::ProductsAndCell, Start::Orthogonal, &mut rng);
    let (forwards, backwards) = (lstm(), lstm());
    let top = Gru::<f64>::new(2 * HIDDEN, HIDDEN, GruPlacement::Products, Start::Orthogonal, &mut rng);
    let x = Array3::random_using((20, 4, INPUT), StandardNormal, &mut rng);

    let (y_forwards, _, saved_forwards) = forwards.forward(&x, None, None)?;
    let x_reversed = reversed(&x);
    let (y_backwards, _, saved_backwards) = backwards.forward(&x_reversed, None, None)?;
    let both = side_by_side(&y_forwards, &y_backwards);
    let (y, _, saved_top) = top.forward(&both, None, None)?;
    println!("x {:?}, both directions {:?}, y {:?}", x.shape(), both.shape(), y.shape());

    // Backward, the same lines from the bottom up; the loss is Σy²/2, so dy = y.
    let (mut dforwards, mut dbackwards, mut dtop) = (forwards.zero_grad(), backwards.zero_grad(), top.zero_grad());
    let (dboth, _) = top.backward(&both, &saved_top, &y, None, &mut dtop)?;
    let (dy_forwards, dy_backwards) = dboth.view().split_at(Axis(2), HIDDEN);
    let (dx_forwards, _) = forwards.backward(&x, &saved_forwards, &dy_forwards, None, &mut dforwards)?;
    let dy_backwards = reversed(&dy_backwards.to_owned());
    let (dx_backwards, _) = backwards.backward(&x_reversed, &saved_backwards, &dy_backwards, None, &mut dbackwards)?;
    let dx = dx_forwards + reversed(&dx_backwards);
    println!("the gradient by x has the length {:.4}", dx.pow2().sum().sqrt());

    // The slopes of the loss say the same, from forward passes alone: a stack of your own is tested so.
    let stack = |x: &Array3<f64>| {
        let (y_forwards, _) = forwards.infer(x, None, None)?;
        let (y_backwards, _) = backwards.infer(&reversed(x), None, None)?;
        top.infer(&side_by_side(&y_forwards, &y_backwards), None, None)
    };
    let loss = |x: &Array3<f64>| stack(x).expect("the shape of x").0.pow2().sum() / 2.0;
    let worst = grad_check::compare(&x, &dx, loss);
    println!("and differs from the slopes of the loss by {:.0e} of the largest one", worst.error);
    // Right as it is, 9e-7: the differences' own error, in the first steps, where norms divide by little.
    if worst.error > 1e-5 {
        return Err(format!("the gradient by x is wrong: {worst:?}").into());
    }
    Ok(())
}
