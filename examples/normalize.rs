//! Normalizes two rows. Their scales differ by a factor of 1000; the results do not.
//!
//! ```sh
//! cargo run --release --example normalize
//! ```

use layernorm::{Error, LayerNorm, ndarray::array};

fn main() -> Result<(), Error> {
    let norm = LayerNorm::<f32>::new(4);
    let x = array![[1.0, 2.0, 3.0, 6.0], [1000.0, 2000.0, 3000.0, 6000.0]];
    let (y, saved) = norm.forward(&x)?;

    println!("mean {:.2}\nrstd {:.6}\ny\n{y:.4}", saved.mean(), saved.rstd());
    Ok(())
}
