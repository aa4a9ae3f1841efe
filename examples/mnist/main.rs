//! Section 6.6 of the paper on 10,000 digits of MNIST: how fast a network learns with and without layer norm.
//!
//! ```sh
//! cargo run --release --example mnist
//! cargo run --release --example mnist -- --norm none
//! cargo run --release --example mnist -- --batch 4 --epochs 5
//! ```
//!
//! The paper has 55,000 images to train on; `--data DIR` reads the original files, or those of Fashion-MNIST. 8,000 show
//! how fast learning starts, and little of how it ends. Test error over seeds 1 to 8, lowest, mean and highest:
//!
//! ```text
//!                 after 1 epoch         after 20
//! --norm layer   5.8  6.6  7.2 %   3.5  3.8  4.6 %
//! --norm none    6.8  7.3  7.8 %   3.5  3.7  3.9 %
//! ```
//!
//! Adam's rate of 0.001 is high for this network: now and then it leaves a minimum again (seeds 4 and 6 with layer norm
//! at epoch 20). Both have settled by epoch 60, the number of the paper.
//!
//! A seed gives the same numbers on any number of threads of one kind of CPU. On another kind the matrix products round
//! differently, which is like another seed.

#[path = "../common/mod.rs"]
mod common;
mod compare;
mod data;
mod figure;
mod idx;
mod kind;
mod network;
mod norm;
mod options;
mod plot;
mod training;

use std::error::Error;
use std::process::ExitCode;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};

use common::program;
use data::{CLASSES, Dataset};
use options::Options;
use training::{Epoch, Training};

fn main() -> ExitCode {
    program::run(Options::parse(std::env::args_os().skip(1)), options::HELP, run)
}

fn run(options: &Options) -> Result<(), Box<dyn Error>> {
    let data = match &options.data {
        Some(directory) => Dataset::open(directory)?,
        None => Dataset::embedded()?,
    };
    let [height, width] = data.train.size;
    println!("{} images to train on, {} to test, {height} x {width} pixels", data.train.len(), data.test.len());
    match options.compare {
        Some(seeds) => compare::run(options, seeds, &data),
        None => train(options, &data),
    }
}

fn train(options: &Options, data: &Dataset) -> Result<(), Box<dyn Error>> {
    let (images, pixels, hidden) = (data.train.len(), data.train.pixels(), options.hidden);
    let title = format!("{pixels}-{hidden}-{hidden}-{CLASSES}, norm {}, batch {}", options.norm, options.batch);
    // Now rather than after the last epoch: the file may not be writable.
    plot::draw(&options.out, &title, &[])?;

    println!("{title}, seed {}", options.seed);
    println!("epoch   train NLL    test NLL   test error   images/s");

    let mut training = Training::new(options, data);
    let mut history = Vec::new();
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} images, {eta} left")?;
    let bar = ProgressBar::new((options.epochs * images) as u64).with_style(style);

    for number in 1..=options.epochs {
        let start = Instant::now();
        let learned = training.learn(|images| bar.inc(images as u64))?;
        let speed = images as f64 / start.elapsed().as_secs_f64();
        let epoch = training.test(learned)?;
        let Epoch { train_nll, test_nll, test_error } = epoch;
        bar.suspend(|| println!("{number:5}  {train_nll:10.3e}  {test_nll:10.3e}   {test_error:8.2} %   {speed:8.0}"));
        epoch.check(options.lr)?;
        history.push(epoch);
    }
    bar.finish_and_clear();

    plot::draw(&options.out, &title, &history)?;
    println!("curves: {}", options.out.display());
    Ok(())
}
