//! Figure 6 of the paper: norms beside each other, with large and with small batches.

use std::error::Error;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::data::{CLASSES, Dataset};
use crate::figure;
use crate::kind::Kind;
use crate::options::Options;
use crate::training::{Epoch, Training};

pub(crate) const KINDS: [Kind; 3] = [Kind::Layer, Kind::Batch, Kind::None];
pub(crate) const BATCHES: [usize; 2] = [128, 4];

/// Trainings that differ in their seeds alone.
pub(crate) struct Group {
    pub(crate) norm: Kind,
    pub(crate) batch: usize,
    /// How many seeds there were.
    pub(crate) trained: usize,
    /// The epochs of each seed that ended well.
    pub(crate) seeds: Vec<Vec<Epoch>>,
}

impl Group {
    pub(crate) fn epochs(&self) -> usize {
        self.seeds.first().map_or(0, Vec::len)
    }

    /// What a name is followed by: of how many seeds the numbers are, where some did not end well.
    pub(crate) fn left(&self) -> String {
        let (left, trained) = (self.seeds.len(), self.trained);
        if left < trained { format!(" ({left} of {trained})") } else { String::new() }
    }

    /// Lowest, mean and highest of the seeds after `epoch`, counted from 0.
    pub(crate) fn spread(&self, epoch: usize, value: fn(&Epoch) -> f64) -> [f64; 3] {
        let values = self.seeds.iter().map(|epochs| value(&epochs[epoch]));
        let (low, sum, high) = values.fold((f64::INFINITY, 0.0, f64::NEG_INFINITY), |(low, sum, high), value| {
            (value.min(low), sum + value, value.max(high))
        });
        [low, sum / self.seeds.len() as f64, high]
    }
}

/// Trains all kinds with all batches and `seeds` seeds; prints a table and draws a picture.
pub(crate) fn run(options: &Options, seeds: usize, data: &Dataset) -> Result<(), Box<dyn Error>> {
    let Options { epochs, hidden, .. } = *options;
    let title = format!("{}-{hidden}-{hidden}-{}, {seeds} seeds", data.train.pixels(), CLASSES);
    // Now rather than after the last epoch: the file may not be writable.
    figure::draw(&options.out, &title, &[])?;
    println!("{title}, {epochs} epochs");

    let runs = runs(options, seeds);
    let start = Instant::now();
    let mut histories = vec![Vec::new(); runs.len()];
    let outcome = train(&runs, data, &mut histories);
    let groups: Vec<_> = runs.chunks(seeds).zip(histories.chunks(seeds)).filter_map(group).collect();

    // What ended well, even if a training did not.
    print!("\n{}", table(&groups));
    figure::draw(&options.out, &title, &groups)?;
    println!("\n{} trainings in {} s; curves: {}", runs.len(), start.elapsed().as_secs(), options.out.display());
    Ok(outcome?)
}

/// The runs of a group that went to their end, if any did.
fn group((runs, histories): (&[Options], &[Vec<Epoch>])) -> Option<Group> {
    let seeds: Vec<_> = histories.iter().filter(|epochs| !epochs.is_empty()).cloned().collect();
    (!seeds.is_empty()).then(|| Group { norm: runs[0].norm, batch: runs[0].batch, trained: runs.len(), seeds })
}

/// The trainings, those of a group one after another.
fn runs(options: &Options, seeds: usize) -> Vec<Options> {
    let mut runs = Vec::new();
    for batch in BATCHES {
        for norm in KINDS {
            let seeds = (0..seeds as u64).map(|more| options.seed.wrapping_add(more));
            runs.extend(seeds.map(|seed| Options { norm, batch, seed, ..options.clone() }));
        }
    }
    runs
}

/// Fills in the epochs of each run that ends well, and says what one met that did not.
///
/// As many runs at a time as there are CPUs: what a run gives does not depend on the others.
fn train(runs: &[Options], data: &Dataset, histories: &mut [Vec<Epoch>]) -> Result<(), String> {
    let images = runs.iter().map(|run| run.epochs * data.train.len()).sum::<usize>();
    let style =
        ProgressStyle::with_template("{wide_bar} {percent} %, {eta} left").map_err(|error| error.to_string())?;
    let bar = ProgressBar::new(images as u64).with_style(style);
    bar.enable_steady_tick(Duration::from_secs(1));

    // The last ones, of small batches, take longest: they come first.
    let queue = Mutex::new(runs.iter().zip(histories).rev());
    let queue = || queue.lock().unwrap_or_else(PoisonError::into_inner);
    let threads = thread::available_parallelism().map_or(1, usize::from).min(runs.len());
    let work = || -> Result<(), String> {
        let mut outcome = Ok(());
        loop {
            let next = queue().next();
            let Some((run, history)) = next else { return outcome };
            match train_one(run, data, &bar) {
                Ok(epochs) => *history = epochs,
                Err(problem) => {
                    bar.suspend(|| println!("{problem}"));
                    outcome = outcome.and(Err(problem));
                }
            }
        }
    };
    let results: Vec<_> = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a training does not panic")).collect()
    });
    bar.finish_and_clear();
    results.into_iter().collect()
}

fn train_one(run: &Options, data: &Dataset, bar: &ProgressBar) -> Result<Vec<Epoch>, String> {
    let Options { norm, batch, seed, .. } = *run;
    let name = format!("norm {norm:5}  batch {batch:3}  seed {seed}");
    let mut training = Training::new(run, data);
    let mut history = Vec::new();
    for _ in 0..run.epochs {
        let learned = training.learn(|images| bar.inc(images as u64));
        let epoch = learned.and_then(|score| training.test(score)).map_err(|error| error.to_string())?;
        epoch.check(run.lr).map_err(|problem| format!("{name}: {problem}"))?;
        history.push(epoch);
    }
    let Epoch { train_nll, test_error, .. } = history[history.len() - 1];
    bar.suspend(|| println!("{name}   train NLL {train_nll:9.2e}   test error {test_error:5.2} %"));
    Ok(history)
}

fn table(groups: &[Group]) -> String {
    let last = groups.first().map_or(1, Group::epochs);
    let name = |group: &Group| format!("norm {:5}  batch {:3}{}", group.norm, group.batch, group.left());
    let names: Vec<_> = groups.iter().map(name).collect();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut table = format!(
        "lowest, mean and highest of the seeds\n\
         {:width$}   {:>26}   {:>21}   {:>21}\n",
        "",
        format!("train NLL, epoch {last}"),
        "test error, epoch 1",
        format!("epoch {last}")
    );
    for (name, group) in names.iter().zip(groups) {
        let [low, mean, high] = group.spread(last - 1, |epoch| epoch.train_nll);
        table += &format!("{name:width$}   {low:8.1e} {mean:8.1e} {high:8.1e}");
        for epoch in [0, last - 1] {
            let [low, mean, high] = group.spread(epoch, |epoch| epoch.test_error);
            table += &format!("   {low:5.2}  {mean:5.2}  {high:5.2} %");
        }
        table.push('\n');
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn epoch(number: f64) -> Epoch {
        Epoch { train_nll: number / 100.0, test_nll: 0.0, test_error: number }
    }

    fn options(line: &str) -> Options {
        let arguments = line.split_whitespace().map(Into::into);
        Options::parse(arguments).unwrap().unwrap()
    }

    #[test]
    fn every_kind_meets_every_batch_with_every_seed() {
        let runs = runs(&options("--compare --seed 7 --lr 0.5"), 2);
        let expected: Vec<_> = [(128, "layer"), (128, "batch"), (128, "none"), (4, "layer"), (4, "batch"), (4, "none")]
            .into_iter()
            .flat_map(|(batch, norm)| [7, 8].map(|seed| (batch, norm.to_string(), seed)))
            .collect();
        assert_eq!(runs.iter().map(|run| (run.batch, run.norm.to_string(), run.seed)).collect::<Vec<_>>(), expected);
        assert!(runs.iter().all(|run| run.lr == 0.5));
    }

    #[test]
    fn a_group_is_of_the_runs_that_ended_well() {
        let runs = runs(&options("--compare"), 2);
        let (good, bad) = (vec![epoch(1.0)], Vec::new());
        let left = group((&runs[..2], &[bad.clone(), good.clone()])).unwrap();
        assert_eq!((left.trained, &left.seeds[..]), (2, &[good][..]));
        assert!(group((&runs[..2], &[bad.clone(), bad])).is_none());
    }

    #[test]
    fn the_table_has_lowest_mean_and_highest() {
        let seeds = [[6.0, 2.0], [5.0, 4.0], [10.0, 3.0]].map(|numbers| numbers.map(epoch).to_vec()).to_vec();
        let table = table(&[Group { norm: Kind::None, batch: 4, trained: 3, seeds }]);
        let row = table.lines().last().unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(row, "norm none batch 4 2.0e-2 3.0e-2 4.0e-2 5.00 7.00 10.00 % 2.00 3.00 4.00 %");
    }

    #[test]
    fn a_row_says_of_how_many_seeds_it_is() {
        let group = |batch, trained| Group { norm: Kind::Layer, batch, trained, seeds: vec![vec![epoch(1.0)]; 2] };
        let table = table(&[group(128, 2), group(4, 3)]);
        let [title, whole, part] = table.lines().skip(1).collect::<Vec<_>>()[..] else { panic!("{table}") };
        assert!(whole.starts_with("norm layer  batch 128              1.0e-2"), "{table}");
        assert!(part.starts_with("norm layer  batch   4 (2 of 3)     1.0e-2"), "{table}");
        assert_eq!([title.len(), whole.len()], [part.len(); 2], "{table}");
    }
}
