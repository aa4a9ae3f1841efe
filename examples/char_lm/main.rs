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

use std::error::Error;
use std::f64::consts::LN_2;
use std::process::ExitCode;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use layernorm::rnn::{GruPlacement, LstmPlacement, RnnPlacement, Start};
use layernorm::{Gru, Lstm, Recurrent, Rnn};
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};

use cell::Cell;
use common::adam::Adam;
use common::loss::{self, Score};
use common::program;
use kind::Kind;
use model::{Model, Size};
use options::Options;
use plot::Measured;
use text::{Streams, Text};

/// Numbers that stand for a character.
const WIDTH: usize = 64;

/// Measurements of a training, evenly spaced.
const MEASUREMENTS: usize = 20;

/// Streams and steps of a measurement: as many as are trained on unless told otherwise, so the buffers fit both.
const MEASURED: (usize, usize) = (32, 64);

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

    let outcome = learn(options, &text, &mut model, &bar, &mut history);
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

/// All updates, or those until the loss is no longer finite.
fn learn<C: Recurrent<f32>>(
    options: &Options,
    text: &Text,
    model: &mut Model<C>,
    bar: &ProgressBar,
    history: &mut Vec<Measured>,
) -> Result<(), Box<dyn Error>> {
    let Options { batch, steps, updates, .. } = *options;
    let mut adam = Adam::new();
    let streams = Streams::new(&text.train, batch);
    let mut chunks = streams.chunks(steps);
    let mut states = model.zero_states(streams.batch());
    let (mut score, mut start, mut characters) = (Score::default(), Instant::now(), 0);

    for update in 1..=updates {
        let chunk = match chunks.next() {
            Some(chunk) => chunk,
            None => {
                // The end of the text: from the beginning, where nothing has been read yet.
                chunks = streams.chunks(steps);
                states = model.zero_states(streams.batch());
                chunks.next().expect("streams have at least a character")
            }
        };
        let (z, dz) = model.forward(&chunk.inputs, &mut states)?;
        score.add(z, &chunk.targets);
        loss::gradient(z, &chunk.targets, dz);
        model.backward(&chunk.inputs)?;
        model.clip(options.clip);
        adam.step(model, options.lr * (updates - update + 1) as f32 / updates as f32)?;
        characters += chunk.targets.len();
        bar.inc(1);

        // The k-th of n measurements is at ⌈k·updates/n⌉: the last one at the end, none twice.
        if update * MEASUREMENTS / updates == (update - 1) * MEASUREMENTS / updates {
            continue;
        }
        let speed = characters as f64 / start.elapsed().as_secs_f64();
        let held_out = measure(model, &text.held_out)?;
        let now = Measured { update, train_bits: score.nll() / LN_2, held_out_bits: held_out.nll() / LN_2 };
        let Measured { train_bits, held_out_bits, .. } = now;
        let wrong = held_out.error();
        bar.suspend(|| {
            println!("{update:7}   {train_bits:10.3}   {held_out_bits:13.3}   {wrong:11.1} %   {speed:12.0}");
        });
        if !(train_bits + held_out_bits).is_finite() {
            return Err(format!("the loss is no longer finite; try an `--lr` below {:e}", options.lr).into());
        }
        history.push(now);
        (score, start, characters) = (Score::default(), Instant::now(), 0);
    }
    Ok(())
}

/// How well the model guesses a text that it has not learnt from.
fn measure<C: Recurrent<f32>>(model: &mut Model<C>, text: &[u8]) -> Result<Score, layernorm::Error> {
    let (batch, steps) = MEASURED;
    let streams = Streams::new(text, batch);
    let (mut states, mut score) = (model.zero_states(streams.batch()), Score::default());
    for chunk in streams.chunks(steps) {
        let (z, _) = model.forward(&chunk.inputs, &mut states)?;
        score.add(z, &chunk.targets);
    }
    Ok(score)
}
