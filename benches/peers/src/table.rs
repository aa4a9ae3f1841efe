//! The tables at the end, in Markdown.

use crate::oracle::Errors;

pub(crate) const CONTESTANTS: usize = 5;

/// The contestants, in the order of every array here.
const NAMES: [&str; CONTESTANTS] = ["ours, new arrays", "ours, caller's memory", "candle", "burn-flex", "burn-ndarray"];

/// So many of them are ours.
const OURS: usize = 2;

/// One shape, measured; times are seconds.
pub(crate) struct Line {
    pub(crate) rows: usize,
    pub(crate) features: usize,
    pub(crate) copy: f64,
    pub(crate) forward: [f64; CONTESTANTS],
    pub(crate) forward_backward: [f64; CONTESTANTS],
    pub(crate) errors: [Errors; CONTESTANTS],
}

#[derive(Default)]
pub(crate) struct Table {
    lines: Vec<Line>,
}

impl Table {
    pub(crate) fn push(&mut self, line: Line) {
        eprintln!("{} × {} done", line.rows, line.features);
        self.lines.push(line);
    }

    pub(crate) fn print(&self) {
        self.print_times("forward", |line| line.forward);
        self.print_times("forward + backward", |line| line.forward_backward);
        self.print_errors();
    }

    fn print_times(&self, call: &str, times: impl Fn(&Line) -> [f64; CONTESTANTS]) {
        println!("### {call}, as multiples of a copy of x\n");
        let columns = NAMES.map(|name| format!("{name} × copy")).join(" | ");
        println!("| rows × features | copy µs | {columns} | best peer / new arrays | best peer / caller's memory |");
        println!("|---|{}", "---|".repeat(CONTESTANTS + 3));
        for line in &self.lines {
            let times = times(line);
            let (ours, peers) = times.split_at(OURS);
            let best = peers.iter().copied().fold(f64::INFINITY, f64::min);
            let multiples = times.map(|time| digits(time / line.copy)).join(" | ");
            let faster = ours.iter().map(|time| format!("**{}**", digits(best / time))).collect::<Vec<_>>().join(" | ");
            println!("| {} × {} | {:.2} | {multiples} | {faster} |", line.rows, line.features, line.copy * 1e6);
        }
        println!();
    }

    fn print_errors(&self) {
        println!("### largest errors of y, dx, dgain and dbias, relative to the largest of the row\n");
        println!("| rows × features | {} |", NAMES.join(" | "));
        println!("|---|{}", "---|".repeat(CONTESTANTS));
        for line in &self.lines {
            let errors = line.errors.map(|e| format!("{:.0e} {:.0e} {:.0e} {:.0e}", e.y, e.dx, e.dgain, e.dbias));
            println!("| {} × {} | {} |", line.rows, line.features, errors.join(" | "));
        }
        println!();
    }
}

/// Three digits are more than a time is good for.
fn digits(ratio: f64) -> String {
    if ratio < 99.95 { format!("{ratio:.2}") } else { format!("{ratio:.0}") }
}
