//! `cargo run --release`: layer normalization by candle-nn, burn and `layernorm`, all in turns in one run.
//!
//! ```text
//! for each number of threads:              a process of its own, with RAYON_NUM_THREADS set
//!     for each shape:
//!         every contestant computes y, dx, dgain and dbias, and the oracle says how far off they are
//!         round after round, each call has its turn; its time is the median of its turns
//! ```
//!
//! Every contestant is called from the main thread, as a program that knows nothing of thread pools does it. The three
//! libraries share rayon's global pool, whose size is settled once in a process: hence one process for each number of
//! threads.

mod burn;
mod candle;
mod contestant;
mod copy;
mod oracle;
mod ours;
mod table;
mod turns;

use std::env;
use std::process::{Command, ExitCode};

use contestant::{Contestant, Input};
use copy::Copy;
use oracle::Oracle;
use table::{CONTESTANTS, Line, Table};
use turns::Effort;

/// `rows × features`: those of the table in the crate's README.
const SHAPES: [(usize, usize); 12] = [
    (1, 400),
    (64, 512),
    (128, 1000),
    (64, 2400),
    (8192, 768),
    (8192, 1024),
    (2048, 4096),
    (512, 12288),
    (16, 65536),
    (65536, 64),
    (32768, 256),
    (4, 1048576),
];

/// `--quick`: one that fits each cache, one of a training loop, one of few long rows.
const QUICK_SHAPES: [(usize, usize); 3] = [(64, 512), (8192, 768), (16, 65536)];

const USAGE: &str = "usage: peers [--quick] [--threads N]   (without --threads: with one, then with two)";

/// What rayon and candle read when they make their pools.
const THREADS: &str = "RAYON_NUM_THREADS";

struct Arguments {
    quick: bool,
    threads: Vec<usize>,
}

impl Arguments {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut parsed = Self { quick: false, threads: vec![1, 2] };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--quick" => parsed.quick = true,
                "--threads" => parsed.threads = vec![arguments.next()?.parse().ok().filter(|&threads| threads > 0)?],
                _ => return None,
            }
        }
        Some(parsed)
    }
}

fn main() -> ExitCode {
    let Some(arguments) = Arguments::parse(env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let [threads] = arguments.threads[..]
        && env::var(THREADS).is_ok_and(|set| set == threads.to_string())
    {
        compare(threads, arguments.quick);
        return ExitCode::SUCCESS;
    }
    for threads in arguments.threads {
        let mut command = Command::new(env::current_exe().expect("this program has a path"));
        command.env(THREADS, threads.to_string()).args(["--threads", &threads.to_string()]);
        command.args(arguments.quick.then_some("--quick"));
        if !command.status().expect("this program can start itself").success() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn compare(threads: usize, quick: bool) {
    println!("## {threads} thread{}, {}\n", if threads == 1 { "" } else { "s" }, layernorm::instruction_set());
    let effort = if quick { Effort::QUICK } else { Effort::FULL };
    let mut table = Table::default();
    for &(rows, features) in if quick { &QUICK_SHAPES[..] } else { &SHAPES[..] } {
        table.push(line(&Input::new(rows, features), effort));
    }
    table.print();
}

/// All contestants on one shape.
fn line(input: &Input, effort: Effort) -> Line {
    let mut contestants: [Box<dyn Contestant>; CONTESTANTS] = [
        Box::new(ours::NewArrays::new(input)),
        Box::new(ours::CallersMemory::new(input)),
        Box::new(candle::Candle::new(input)),
        Box::new(burn::Burn::flex(input)),
        Box::new(burn::Burn::ndarray(input)),
    ];
    let oracle = Oracle::new(input);
    let errors = contestants.each_mut().map(|contestant| oracle.errors(contestant.as_mut()));
    let mut copy = Copy::new(input);
    let calls = 1 + 2 * CONTESTANTS;
    let medians = turns::medians(calls, effort, |call| match call.checked_sub(1) {
        None => copy.run(),
        Some(i) if i < CONTESTANTS => contestants[i].forward(),
        Some(i) => contestants[i - CONTESTANTS].forward_backward(),
    });
    let (forward, forward_backward) = medians[1..].split_at(CONTESTANTS);
    Line {
        rows: input.rows,
        features: input.features,
        copy: medians[0],
        forward: forward.try_into().expect("as many as contestants"),
        forward_backward: forward_backward.try_into().expect("as many as contestants"),
        errors,
    }
}
