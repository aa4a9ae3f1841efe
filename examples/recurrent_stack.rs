//! Two layers, the first in both directions: stacking is passing y on as x.
//!
//! ```sh
//! cargo run --release --features rnn --example recurrent_stack
//! ```

use layernorm::ndarray::{Array3, Axis, Slice, concatenate};
use layernorm::rnn::{GruPlacement, LstmPlacement, Start};
use layernorm::{Error, Gru, Lstm, Recurrent};
use ndarray_rand::RandomExt;
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};
use ndarray_rand::rand_distr::StandardNormal;

const INPUT: usize = 8;
const HIDDEN: usize = 16;

/// The same with time running backwards.
fn reversed(x: &Array3<f32>) -> Array3<f32> {
    x.slice_axis(Axis(0), Slice::new(0, None, -1)).to_owned()
}

fn main() -> Result<(), Error> {
    let mut rng = StdRng::seed_from_u64(1);
    let mut lstm = || Lstm::<f32>::new(INPUT, HIDDEN, LstmPlacement::ProductsAndCell, Start::Orthogonal, &mut rng);
    let (forwards, backwards) = (lstm(), lstm());
    let top = Gru::<f32>::new(2 * HIDDEN, HIDDEN, GruPlacement::Products, Start::Orthogonal, &mut rng);
    let x = Array3::random_using((20, 4, INPUT), StandardNormal, &mut rng);

    let (y_forwards, _, saved_forwards) = forwards.forward(&x, None, None)?;
    let x_reversed = reversed(&x);
    let (y_backwards, _, saved_backwards) = backwards.forward(&x_reversed, None, None)?;
    let both = concatenate(Axis(2), &[y_forwards.view(), reversed(&y_backwards).view()]).expect("as many steps");
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
    Ok(())
}
