//! `cargo bench --bench ratios`: what layer normalization costs beside the least it can cost, all taken in one run.
//!
//! Calls take turns, so that what else happens on the machine happens to all of them; a ratio of two medians of such a
//! run says more than two times of two runs. With `-- --readme` the table of README is written anew.

mod common;
#[path = "common/measure.rs"]
mod measure;

use std::fmt::Write as _;

use common::threads::on_threads;
use common::{Case, SHAPES};
use measure::medians;

type Call = fn(&mut Case);

const CALLS: [Call; 9] = [
    Case::copy,
    Case::vector_copy,
    Case::stream,
    Case::plain_stream,
    Case::forward,
    Case::infer,
    Case::backward,
    Case::textbook_forward,
    Case::textbook_backward,
];

fn table() -> String {
    let mut table = String::new();
    let mut line = |line: String| {
        println!("{line}");
        writeln!(table, "{line}").expect("a string takes everything");
    };
    line("| rows × features | threads | copy µs | forward µs | GB/s | × copy | infer × copy | × textbook | stream µs | backward µs | GB/s | × stream | × textbook |".into());
    line("|---|---|---|---|---|---|---|---|---|---|---|---|---|".into());
    for (rows, features) in SHAPES {
        let mut case = Case::new(rows, features);
        case.check();
        // On two threads the fastest loop may be that on one: a thread that sleeps wakes late.
        let mut least = [f64::INFINITY; 2];
        for threads in [1, 2] {
            let [
                copy,
                vector_copy,
                stream,
                plain_stream,
                forward,
                infer,
                backward,
                textbook_forward,
                textbook_backward,
            ] = on_threads(threads, || medians(&mut case, CALLS));
            for (least, loops) in least.iter_mut().zip([[copy, vector_copy], [stream, plain_stream]]) {
                *least = loops.into_iter().fold(*least, f64::min);
            }
            let [copy, stream] = least;
            let gigabytes = (rows * features * size_of::<f32>()) as f64 / 1e9;
            line(format!(
                "| {rows} × {features} | {threads} | {:.2} | {:.2} | {:.0} | **{:.2}** | {:.2} | 1/{:.1} | {:.2} | {:.2} | {:.0} | **{:.2}** | 1/{:.1} |",
                copy * 1e6,
                forward * 1e6,
                2.0 * gigabytes / forward,
                forward / copy,
                infer / copy,
                textbook_forward / forward,
                stream * 1e6,
                backward * 1e6,
                3.0 * gigabytes / backward,
                backward / stream,
                textbook_backward / backward,
            ));
        }
    }
    table
}

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        let small = SHAPES.iter().filter(|(rows, features)| rows * features < 1_000_000);
        return small.for_each(|&(rows, features)| Case::new(rows, features).check());
    }
    println!(
        "{}, {} threads at most\n",
        layernorm::instruction_set(),
        std::thread::available_parallelism().map_or(1, |n| n.get())
    );
    let table = table();
    if std::env::args().any(|argument| argument == "--readme") {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
        let readme = std::fs::read_to_string(path).expect("README.md is there");
        let (start, end) = ("<!-- ratios -->\n", "<!-- /ratios -->");
        let (head, rest) = readme.split_once(start).expect("README.md marks where the table starts");
        let (_, tail) = rest.split_once(end).expect("README.md marks where the table ends");
        std::fs::write(path, format!("{head}{start}{table}{end}{tail}")).expect("README.md can be written");
    }
}
