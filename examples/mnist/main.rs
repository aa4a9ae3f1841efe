//! Section 6.6 of the paper on 10,000 digits of MNIST: how fast a network learns with layer norm, with others and without.
//!
//! ```sh
//! cargo run --release --example mnist
//! cargo run --release --example mnist -- --norm none
//! cargo run --release --example mnist -- --norm batch --batch 4 --epochs 5
//! cargo run --release --example mnist -- --compare
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
//! `--compare` draws the paper's figure 6, smaller: 256 features, 30 epochs, seeds 1 to 3. Lowest, mean and highest:
//!
//! ```text
//!                                train NLL, epoch 30     test error, epoch 1                epoch 30
//! norm layer  batch 128     1.9e-4   1.9e-4   2.0e-4    6.65   7.02   7.20 %    4.15   4.32   4.40 %
//! norm batch  batch 128     2.7e-2   2.7e-2   2.8e-2    6.10   6.43   6.65 %    3.50   3.63   3.75 %
//! norm none   batch 128     5.3e-4   5.5e-4   5.7e-4    8.65   9.68  10.60 %    3.85   4.10   4.30 %
//! norm layer  batch   4     2.5e-6   3.9e-3   7.3e-3    7.90   8.50   9.40 %    3.45   4.25   5.00 %
//! norm batch  batch   4     5.1e-1   5.2e-1   5.4e-1    9.50  10.82  12.05 %    4.65   4.82   5.00 %
//! norm none   batch   4     1.9e-2   2.5e-2   3.3e-2    6.80   7.35   8.25 %    4.25   4.57   5.00 %
//! ```
//!
//! As in the paper, layer norm is fastest on the training digits (at 4 only after some epochs), and small batches harm batch
//! norm most. Other than there, batch norm with 128 has the lowest test error in every epoch, though its norm
//! before the softmax keeps it from a fit: on the hidden layers alone it ends at 3e-4 to 1e-3, and 3.6 to 4.1 %. With 4, no
//! norm is best after an epoch, and after 30 the seeds of all three overlap.
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
    if data.train.len() < 2 {
        return Err("a training needs at least 2 images: one has no spread for batch norm".into());
    }
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

    let mut history = Vec::new();
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} images, {eta} left")?;
    let bar = ProgressBar::new((options.epochs * images) as u64).with_style(style);

    let outcome = learn(options, data, &bar, &mut history);
    bar.finish_and_clear();

    // Those of a training that went wrong, too.
    plot::draw(&options.out, &title, &history)?;
    println!("curves: {}", options.out.display());
    outcome
}

/// All epochs, or those until the loss is no longer finite.
fn learn(options: &Options, data: &Dataset, bar: &ProgressBar, history: &mut Vec<Epoch>) -> Result<(), Box<dyn Error>> {
    let mut training = Training::new(options, data);
    for number in 1..=options.epochs {
        let start = Instant::now();
        let learned = training.learn(|images| bar.inc(images as u64))?;
        let speed = data.train.len() as f64 / start.elapsed().as_secs_f64();
        let epoch = training.test(learned)?;
        let Epoch { train_nll, test_nll, test_error } = epoch;
        bar.suspend(|| println!("{number:5}  {train_nll:10.3e}  {test_nll:10.3e}   {test_error:8.2} %   {speed:8.0}"));
        epoch.check(options.lr)?;
        history.push(epoch);
    }
    Ok(())
}
