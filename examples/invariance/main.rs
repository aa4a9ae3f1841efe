//! Table 1 of the paper from measured predictions: what may happen to the weights or to the data without being seen?
//!
//! ```sh
//! cargo run --example invariance
//! ```
//!
//! `tests/invariance.rs` asserts each of its 24 cells, with tolerances derived from the arithmetic.

mod measure;

use layernorm::Error;

use measure::{Change, Network, Norm, deviation, doubled};

/// Not a power of two, which would not even round.
const FACTOR: f64 = 3.0;

fn main() -> Result<(), Error> {
    println!("Table 1 of the paper, measured: is a prediction the same after this, and how far has it moved?\n");
    println!("           weight matrix             weight vector  dataset                   single case");
    println!("           re-scaling   re-centering re-scaling     re-scaling   re-centering re-scaling");
    let network = Network::random(1);
    for norm in Norm::ALL {
        let h = network.predict::<f64>(norm, 0.0)?;
        let mut line = format!("{:<11}", name(norm));
        for change in Change::ALL {
            let changed = network.changed(change, FACTOR).predict::<f64>(norm, 0.0)?;
            let width = if change == Change::VectorScaled { 15 } else { 13 };
            line += &format!("{:<width$}", cell(deviation(&h, &changed)));
        }
        println!("{}", line.trim_end());
    }
    println!("\nThe numbers are max |h' - h| over 12 cases and 16 units of a spread near 1: `yes` is the rounding");
    println!("of f64, `no` a change as large as h. What is re-scaled is multiplied by {FACTOR}; eps = 0. RmsNorm is");
    println!("later than the paper.");

    println!("\nWith eps > 0 a scale is forgotten as far as the spread s of a row is large beside sqrt(eps).");
    println!("LayerNorm in f32, eps = 1e-5, rows multiplied by 2:\n");
    println!("     s   y'/y - 1   sqrt((s^2 + eps) / (s^2 + eps/4)) - 1");
    for std in [1.0, 0.1, 0.01, 0.001] {
        let (measured, expected) = doubled::<f32>(std, 1e-5)?;
        println!("{std:6}   {measured:8.1e}   {expected:.1e}");
    }
    Ok(())
}

fn name(norm: Norm) -> &'static str {
    match norm {
        Norm::Batch => "BatchNorm",
        Norm::Weight => "WeightNorm",
        Norm::Layer => "LayerNorm",
        Norm::Rms => "RmsNorm",
    }
}

/// Nothing lies between rounding and a change that can be seen.
fn cell(deviation: f64) -> String {
    if deviation == 0.0 {
        "yes  0".into()
    } else if deviation < 1e-9 {
        format!("yes  {deviation:.0e}")
    } else {
        format!("no   {deviation:.1}")
    }
}
