//! A model of text, character by character: what layer normalization does inside a recurrent network.
//!
//! ```sh
//! cargo run --release --features rnn --example char_lm
//! cargo run --release --features rnn --example char_lm -- --norm none
//! cargo run --release --features rnn --example char_lm -- --cell gru --sample 2000
//! ```
//!
//! Eight plays are cut into streams that are read side by side, some characters between two updates of the weights; the
//! state goes on from one update to the next, the gradient does not (truncated backpropagation through time). The last
//! twentieth of the text, the end of Hamlet, is held out. Bits for each of its characters, seed 1:
//!
//! ```text
//! updates                        95     380     950    1900
//! --norm layer                 2.816   2.344   2.156   2.052
//! --norm none                  2.789   2.402   2.204   2.109
//! --norm none --lr 0.004       2.926   2.492   2.276   2.179
//! ```
//!
//! The cell with layer norm is after 760 updates where the one without is after 950, and after 1235 where that one ends.
//! It is one run each, and rates above 0.008 have not been tried to the end.
//!
//! A seed gives the same numbers on any number of threads of one kind of CPU. On another kind the matrix products round
//! differently, which is like another seed.

mod cell;
#[path = "../common/mod.rs"]
mod common;
mod embedding;
mod kind;
mod model;
mod options;
mod output;
mod plot;
mod sample;
mod text;
mod training;

use std::error::Error;
use std::process::ExitCode;

use indicatif::{ProgressBar, ProgressStyle};
use layernorm::rnn::{GruPlacement, LstmPlacement, RnnPlacement, Start};
use layernorm::{Gru, Lstm, Recurrent, Rnn};
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};

use cell::Cell;
use common::program;
use kind::Kind;
use model::{Model, Size};
use options::Options;
use text::Text;

/// Numbers that stand for a character.
const WIDTH: usize = 64;

fn main() -> ExitCode {
    program::run(Options::parse(std::env::args_os().skip(1)), options::HELP, run)
}

/// Trains the kind of cell that was chosen.
fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let (hidden, normalized) = (options.hidden, options.norm == Kind::Layer);
    match options.cell {
        Cell::Lstm => {
            let placement = if normalized { LstmPlacement::ProductsAndCell } else { LstmPlacement::None };
            // Remembers at first (Jozefowicz, Zaremba, Sutskever 2015): both kinds of norm learn faster so.
            train(options, |input, rng| {
                Lstm::new(input, hidden, placement, Start::Orthogonal, rng).with_forget_bias(1.0)
            })
        }
        Cell::Gru => {
            let placement = if normalized { GruPlacement::Products } else { GruPlacement::None };
            train(options, |input, rng| Gru::new(input, hidden, placement, Start::Orthogonal, rng))
        }
        Cell::Rnn => {
            let placement = if normalized { RnnPlacement::Sum } else { RnnPlacement::None };
            train(options, |input, rng| Rnn::new(input, hidden, placement, Start::Orthogonal, rng))
        }
    }
}

fn train<C: Recurrent<f32>>(options: &Options, cell: impl Fn(usize, &mut StdRng) -> C) -> Result<(), Box<dyn Error>> {
    let text = match &options.text {
        Some(path) => Text::open(path)?,
        None => Text::embedded()?,
    };
    let Options { hidden, layers, batch, steps, updates, .. } = *options;
    let title = format!("{} {layers} x {hidden}, norm {}, batch {batch}, {steps} steps", options.cell, options.norm);
    // Now rather than after the last update: the file may not be writable.
    plot::draw(&options.out, &title, &[])?;

    println!(
        "{} characters to train on, {} held out, {} different",
        text.train.len(),
        text.held_out.len(),
        text.characters()
    );
    println!("{title}, seed {}", options.seed);
    println!(" update   train bits   held-out bits   wrong guesses   characters/s");

    let mut rng = StdRng::seed_from_u64(options.seed);
    let size = Size { characters: text.characters(), width: WIDTH, hidden, layers };
    let mut model = Model::new(size, cell, &mut rng);
    let mut history = Vec::new();
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} updates, {eta} left")?;
    let bar = ProgressBar::new(updates as u64).with_style(style);

    let outcome = training::learn(options, &text, &mut model, &bar, &mut history);
    bar.finish_and_clear();

    // Those of a training that went wrong, too.
    plot::draw(&options.out, &title, &history)?;
    println!("curves: {}", options.out.display());
    outcome?;
    if options.sample > 0 {
        let first = text.encode(b'\n').unwrap_or(0);
        let sample = sample::write(&model, first, options.sample, options.temperature, &mut rng)?;
        println!("\n{}", text.decode(&sample));
    }
    Ok(())
}
