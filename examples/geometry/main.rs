//! Section 5.2 of the paper, measured: what normalization does to the metric of a model, and so to its training.
//!
//! ```sh
//! cargo run --release --example geometry
//! ```
//!
//! * (a) The Fisher information of a normalized generalized linear model by formula, and from outer products of gradients
//!   at outputs drawn from the model. Eq. 13 and 14 of the paper leave out how a weight moves other outputs under layer
//!   norm, eq. 32 leaves out x̂: both are shown beside what is exact.
//! * (b) Weights c times as large have a gradient 1/c and a Fisher information 1/c² as large.
//! * (c) The metric along the gain does not depend on the scale of the inputs under batch and layer norm. For weight norm
//!   and the standard model it grows as the square.
//! * (d) So SGD makes weights grow, and larger weights turn less: a learning rate that decays on its own.
//!
//! The program fails if it does not see what it says. A seed gives the same numbers on one kind of CPU.

#[path = "../common"]
#[allow(dead_code, reason = "trainings need more of it")]
mod common {
    pub(crate) mod arguments;
    pub(crate) mod largest;
    pub(crate) mod plot;
    pub(crate) mod program;
}
mod closed_form;
mod descent;
mod gain;
mod information;
mod model;
mod options;
mod plot;
mod rescaling;
mod sampled;

use std::error::Error;
use std::process::ExitCode;

use common::program;
use options::Options;

fn main() -> ExitCode {
    program::run(Options::parse(std::env::args_os().skip(1)), options::HELP, measure)
}

fn measure(options: &Options) -> Result<(), Box<dyn Error>> {
    let &Options { samples, seed, ref out } = options;
    let information = information::measure(samples, seed)?;
    println!("{information}");
    let rescaling = rescaling::measure(seed)?;
    println!("{rescaling}");
    let gain = gain::measure(samples, seed)?;
    println!("{gain}");
    let descent = descent::measure(seed)?;
    println!("{descent}");

    plot::draw(out, &information, &gain, &descent)?;
    println!("figures: {}", out.display());
    information.check()?;
    rescaling.check()?;
    gain.check()?;
    descent.check()?;
    Ok(())
}
