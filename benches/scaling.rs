//! `cargo bench --bench scaling`: whether an element costs the same in an input of 1 KiB and in one of 1 GiB.
//!
//! For each power of two, what forward and backward cost per element beside the least they can cost: a copy, and a loop
//! that streams as many arrays, over the same bytes on as many threads. Rows have 1024 features; an input of fewer
//! elements is one row. Calls take turns, as in the bench `ratios`, and the median of each counts. The loops always use
//! the threads they are given: on two, what a small copy costs is to wake the second.
//!
//! Inputs go up to 256 MiB; with `-- --full` up to 1 GiB, which takes 6 GiB of memory. With `-- --figure` the curves
//! are drawn to docs/figures/scaling.svg. `cargo test --benches` only checks small inputs.

#[allow(dead_code, reason = "other benches use the rest")]
mod common;

use std::error::Error;
use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use common::Case;
use common::threads::on_threads;
use plotters::coord::Shift;
use plotters::coord::combinators::{BindKeyPoints, IntoLogRange};
use plotters::element::DashedPathElement;
use plotters::prelude::*;

/// The longest row.
const FEATURES: usize = 1024;

/// log₂ of the bytes of an input: the smallest, the largest of a test, of a run, and of a full run.
const SMALLEST: u32 = 10;
const LARGEST_IN_A_TEST: u32 = 14;
const LARGEST: u32 = 28;
const LARGEST_OF_ALL: u32 = 30;

/// A turn repeats its call until it has taken about that long, and there are turns until `POINT` is over.
const TURN: Duration = Duration::from_millis(8);
const POINT: Duration = Duration::from_millis(200);

/// Fewest turns of each call, however long they take.
const TURNS: usize = 5;

type Call = fn(&mut Case);

const CALLS: [Call; 6] =
    [Case::copy, Case::vector_copy, Case::forward, Case::stream, Case::plain_stream, Case::backward];

/// Nanoseconds per element.
#[derive(Clone, Copy)]
struct Cost {
    call: f64,
    /// A loop that only moves what the call must move.
    least: f64,
}

/// What an input of 2^`log_bytes` bytes costs on one and on two threads.
struct Point {
    log_bytes: u32,
    forward: [Cost; 2],
    backward: [Cost; 2],
}

impl Point {
    /// Measures for `time` a call; without time, each call runs just once.
    fn measure(log_bytes: u32, time: Duration) -> Self {
        let [rows, features] = shape(log_bytes);
        let mut case = Case::new(rows, features);
        case.check();
        let costs = [1, 2].map(|threads| {
            let seconds = on_threads(threads, || seconds(&mut case, time));
            let [copy, vector_copy, forward, stream, plain_stream, backward] =
                seconds.map(|s| s * 1e9 / (rows * features) as f64);
            let forward = Cost { call: forward, least: copy.min(vector_copy) };
            (forward, Cost { call: backward, least: stream.min(plain_stream) })
        });
        Self { log_bytes, forward: costs.map(|(forward, _)| forward), backward: costs.map(|(_, backward)| backward) }
    }

    fn print(&self) {
        let [rows, features] = shape(self.log_bytes);
        for (name, [one, two]) in [("forward", self.forward), ("backward", self.backward)] {
            println!(
                "| {} | {rows} × {features} | {name} | {:.3} | {:.3} | **{:.2}** | {:.3} | {:.3} | **{:.2}** | {:.2} | {:.2} |",
                size(self.log_bytes),
                one.least,
                one.call,
                one.call / one.least,
                two.least,
                two.call,
                two.call / two.least,
                one.least / two.least,
                one.call / two.call,
            );
        }
    }
}

/// `[rows, features]` of an input of 2^`log_bytes` bytes.
fn shape(log_bytes: u32) -> [usize; 2] {
    let elements = (1 << log_bytes) / size_of::<f32>();
    let features = FEATURES.min(elements);
    [elements / features, features]
}

/// The median seconds of each call.
fn seconds(case: &mut Case, time: Duration) -> [f64; CALLS.len()] {
    let repeats = CALLS.map(|call| {
        let start = Instant::now();
        call(case);
        (TURN.min(time).as_nanos() / start.elapsed().as_nanos().max(1)).clamp(1, 1_000_000) as u32
    });
    let mut samples = CALLS.map(|_| Vec::new());
    let least_turns = if time.is_zero() { 1 } else { TURNS };
    let start = Instant::now();
    while samples[0].len() < least_turns || start.elapsed() < time * CALLS.len() as u32 {
        for ((call, repeats), samples) in CALLS.iter().zip(repeats).zip(&mut samples) {
            let start = Instant::now();
            for _ in 0..repeats {
                call(black_box(case));
            }
            samples.push(start.elapsed().as_secs_f64() / f64::from(repeats));
        }
    }
    samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples[samples.len() / 2]
    })
}

/// 2^`log_bytes` bytes for the reader.
fn size(log_bytes: u32) -> String {
    format!("{} {}", 1 << (log_bytes % 10), ["B", "KiB", "MiB", "GiB"][log_bytes as usize / 10])
}

const CALL: RGBColor = RGBColor(31, 119, 180);
const LEAST: RGBColor = RGBColor(110, 110, 110);
const TITLE: (&str, i32) = ("sans-serif", 22);
const FONT: (&str, i32) = ("sans-serif", 17);

/// Where an axis of ns may have a tick.
const TICKS: [f64; 13] = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The curves as an SVG: forward on the left, backward on the right.
fn figure(points: &[Point]) -> Result<String, Box<dyn Error>> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, (1100, 460)).into_drawing_area();
    root.fill(&WHITE)?;
    let title = format!("Cost per element, f32, rows of {FEATURES}, {}", layernorm::instruction_set());
    let (left, right) = root.titled(&title, TITLE)?.split_horizontally(550);

    let costs = points.iter().flat_map(|point| point.forward.iter().chain(&point.backward));
    let (low, high) = costs
        .flat_map(|cost| [cost.call, cost.least])
        .fold((f64::MAX, f64::MIN_POSITIVE), |(low, high), ns| (low.min(ns), high.max(ns)));
    // Room for the names of the curves above them.
    let range = (0.8 * low, 4.0 * high);
    panel(&left, range, ["forward", "copy"], points, |point| point.forward)?;
    panel(&right, range, ["backward", "stream"], points, |point| point.backward)?;
    root.present()?;
    drop((left, right, root));
    Ok(svg)
}

/// One call beside its least, on one thread (solid) and two (dashed).
fn panel(
    area: &Area<'_>,
    (low, high): (f64, f64),
    [call, least]: [&str; 2],
    points: &[Point],
    costs: fn(&Point) -> [Cost; 2],
) -> Result<(), Box<dyn Error>> {
    let last = points.last().map_or(LARGEST, |point| point.log_bytes);
    let inputs = (SMALLEST..last).with_key_points((SMALLEST..=last).step_by(4).collect());
    let ticks = TICKS.into_iter().filter(|tick| (low..high).contains(tick)).collect();
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .margin_right(28)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(inputs, (low..high).log_scale().with_key_points(ticks))?;
    chart
        .configure_mesh()
        .axis_desc_style(FONT)
        .label_style(FONT)
        .light_line_style(TRANSPARENT)
        .x_desc("input")
        .y_desc(format!("{call} [ns per element]"))
        .x_label_formatter(&|&log_bytes| size(log_bytes))
        .y_label_formatter(&|ns| ns.to_string())
        .draw()?;
    for (thread, threads) in ["1 thread", "2 threads"].into_iter().enumerate() {
        for (name, color, ns) in
            [(call, CALL, (|cost| cost.call) as fn(Cost) -> f64), (least, LEAST, |cost| cost.least)]
        {
            let (dash, gap) = [(u32::from(u16::MAX), 0), (7, 5)][thread];
            let line = points.iter().map(|point| (point.log_bytes, ns(costs(point)[thread]))).collect::<Vec<_>>();
            let style = color.stroke_width(2);
            let series = chart.draw_series(DashedLineSeries::new(line, dash, gap, style))?;
            series
                .label(format!("{name}, {threads}"))
                .legend(move |(x, y)| DashedPathElement::new([(x, y), (x + 25, y)], dash, gap, style));
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .label_font(FONT)
        .legend_area_size(40)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let has = |name| std::env::args().any(|argument| argument == name);
    let timed = has("--bench") && !has("--test");
    let (largest, time) = match (timed, has("--full")) {
        (false, _) => (LARGEST_IN_A_TEST, Duration::ZERO),
        (true, false) => (LARGEST, POINT),
        (true, true) => (LARGEST_OF_ALL, POINT),
    };
    println!(
        "{}, ns per element; `least` is a copy for forward, a stream loop for backward\n",
        layernorm::instruction_set()
    );
    println!(
        "| input | rows × features | call | 1 thread: least | call | × least | 2 threads: least | call | × least | 2 threads speed up least | call |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut points = Vec::new();
    for log_bytes in SMALLEST..=largest {
        let point = Point::measure(log_bytes, time);
        point.print();
        points.push(point);
    }
    let svg = figure(&points)?;
    if timed && has("--figure") {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/figures/scaling.svg");
        fs::create_dir_all(path.parent().expect("a file is in a directory"))?;
        fs::write(path, svg)?;
    }
    Ok(())
}
