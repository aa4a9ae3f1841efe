//! `cargo bench --bench instructions`: whether a call needs more instructions than it did.
//!
//! Valgrind counts them, so the answer is the same on a busy machine as on a quiet one. It says nothing about memory:
//! for time there is the bench `ratios`.
//!
//! ```text
//! each call:  many = instructions of a process that does the call MORE + 1 times
//!             one  = instructions of a process that does it once
//!             now  = (many − one) / MORE          start, inputs and first use of buffers are in both
//! now > stored · (1 + TOLERANCE):  an error
//! ```
//!
//! The counts are stored in benches/instructions.txt, which `-- --update` writes anew. They belong to a version of the
//! compiler and to AVX2, the most that valgrind knows: with another compiler the run compares, but does not fail.
//! What callgrind saw stays in target/tmp/*.callgrind, for `callgrind_annotate`.
//! `cargo test --benches` only checks the results of the calls and the stored names.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use layernorm::ndarray::{Array1, Array2};
use layernorm::{Element, LayerNorm, Saved};

/// What is counted.
struct Call {
    name: &'static str,
    rows: usize,
    features: usize,
    /// Makes inputs for `[rows, features]`, does the call so many times and checks the result.
    run: fn([usize; 2], u32),
}

/// Each has a way through the kernels that the others don't take.
const CALLS: [Call; 6] = [
    // The batch of a small network: rows that fill vectors, everything in the cache of a core.
    Call { name: "forward-64x512-f32", rows: 64, features: 512, run: forward::<f32> },
    // Rows that end within a vector.
    Call { name: "backward-128x1000-f32", rows: 128, features: 1000, run: backward::<f32> },
    // Rows of four vectors: what is done once a row counts most.
    Call { name: "forward-4096x64-f32", rows: 4096, features: 64, run: forward::<f32> },
    Call { name: "backward-4096x64-f32", rows: 4096, features: 64, run: backward::<f32> },
    // Rows of many blocks, and nothing kept for backward.
    Call { name: "infer-4x65536-f32", rows: 4, features: 65536, run: infer::<f32> },
    // The other element.
    Call { name: "backward-64x512-f64", rows: 64, features: 512, run: backward::<f64> },
];

/// How many calls `many` has more than `one`.
const MORE: u32 = 2;

/// The share by which a count may grow.
const TOLERANCE: f64 = 0.03;

const INSTRUCTION_SET: &str = "avx2";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().collect();
    let has = |name: &str| arguments.iter().any(|argument| argument == name);
    if let [_, child, name, times] = &arguments[..]
        && child == "--counted"
    {
        counted(call(name)?, times.parse()?)?;
        return Ok(ExitCode::SUCCESS);
    }

    let valgrind = Command::new("valgrind").arg("--version").output().is_ok();
    if !valgrind {
        println!(
            "instructions: there is no `valgrind` on PATH; install the package of that name, as with `apt install valgrind`"
        );
    }
    if has("--test") || !has("--bench") {
        for call in &CALLS {
            (call.run)([call.rows, call.features], 1);
        }
        Stored::read()?;
        return Ok(ExitCode::SUCCESS);
    }
    if !valgrind {
        return Ok(ExitCode::FAILURE);
    }
    if LayerNorm::<f32>::new(1).with_instruction_set(INSTRUCTION_SET).is_none() {
        println!(
            "instructions: nothing is counted, because the counts are of {INSTRUCTION_SET}, which this CPU does not have"
        );
        return Ok(ExitCode::SUCCESS);
    }
    if has("--update") { update() } else { compare() }
}

/// Writes the file of counts.
fn update() -> Result<ExitCode, Box<dyn Error>> {
    let mut text = format!("# {}\n# {:<24}{:>14}{:>14}\n", made_by()?, "call", "instructions", "an element");
    for call in &CALLS {
        let now = count(call)?;
        writeln!(text, "{:<26}{now:>14}{:>14.3}", call.name, now as f64 / (call.rows * call.features) as f64)?;
    }
    print!("{text}");
    fs::write(path(), text)?;
    Ok(ExitCode::SUCCESS)
}

/// Counts again, prints what changed and fails if a count grew too much.
fn compare() -> Result<ExitCode, Box<dyn Error>> {
    let stored = Stored::read()?;
    let made_by = made_by()?;
    println!("{:<26}{:>14}{:>14}{:>14}{:>10}", "call", "stored", "now", "an element", "change");
    let mut grown = 0;
    for (call, stored) in CALLS.iter().zip(stored.counts) {
        let now = count(call)?;
        let change = now as f64 / stored as f64 - 1.0;
        let has_grown = change > TOLERANCE;
        grown += usize::from(has_grown);
        println!(
            "{:<26}{stored:>14}{now:>14}{:>14.3}{:>+9.1}%{}",
            call.name,
            now as f64 / (call.rows * call.features) as f64,
            100.0 * change,
            if has_grown { "  too many" } else { "" },
        );
    }
    if stored.made_by != made_by {
        println!("The stored counts are of {}, these of {made_by}: no reason to fail.", stored.made_by);
        return Ok(ExitCode::SUCCESS);
    }
    if grown > 0 {
        println!(
            "{grown} of {} calls grew by more than {:.0} %. If they are worth it: `cargo bench --bench instructions -- --update`.",
            CALLS.len(),
            100.0 * TOLERANCE
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn call(name: &str) -> Result<&'static Call, Box<dyn Error>> {
    CALLS.iter().find(|call| call.name == name).ok_or_else(|| format!("there is no call {name}").into())
}

/// The content of the file of counts.
struct Stored {
    made_by: String,
    /// In the order of `CALLS`.
    counts: [u64; CALLS.len()],
}

impl Stored {
    fn read() -> Result<Self, Box<dyn Error>> {
        let text = fs::read_to_string(path()).map_err(|error| format!("{}: {error}", path().display()))?;
        let made_by = text.lines().next().and_then(|line| line.strip_prefix("# "));
        let made_by =
            made_by.ok_or("the first line of instructions.txt must be a comment that names the compiler")?.into();
        let mut counts = [0; CALLS.len()];
        for (call, count) in CALLS.iter().zip(&mut counts) {
            let line = text.lines().find_map(|line| line.strip_prefix(call.name)?.strip_prefix(' '));
            let stored = line.and_then(|line| line.split_whitespace().next()).and_then(|count| count.parse().ok());
            *count = stored
                .ok_or_else(|| format!("instructions.txt has no count of {}; `-- --update` writes it", call.name))?;
        }
        Ok(Self { made_by, counts })
    }
}

fn path() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.txt")
}

/// What counts depend on beside the code: `rustc 1.95.0, avx2`.
fn made_by() -> Result<String, Box<dyn Error>> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = String::from_utf8(Command::new(rustc).arg("--version").output()?.stdout)?;
    let words: Vec<_> = version.split_whitespace().take(2).collect();
    Ok(format!("{}, {INSTRUCTION_SET}", words.join(" ")))
}

/// Instructions of one call, once it is warm.
fn count(call: &Call) -> Result<u64, Box<dyn Error>> {
    Ok((count_process(call, 1 + MORE)? - count_process(call, 1)?) / u64::from(MORE))
}

/// Instructions of a process that does the call so many times.
fn count_process(call: &Call, times: u32) -> Result<u64, Box<dyn Error>> {
    let profile = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.callgrind", call.name));
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(std::env::current_exe()?)
        .args(["--counted", call.name, &times.to_string()])
        .env("LAYERNORM_SIMD", INSTRUCTION_SET)
        .output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    // ==4711== Collected : 123456
    let collected = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    match collected {
        Some(collected) if output.status.success() => Ok(collected),
        _ => Err(format!("valgrind could not count {}:\n{said}", call.name).into()),
    }
}

/// The process whose instructions are counted: on its only thread, without one that waits for work.
fn counted(call: &Call, times: u32) -> Result<(), Box<dyn Error>> {
    rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global()?;
    assert_eq!(layernorm::instruction_set(), INSTRUCTION_SET, "valgrind shows another CPU");
    (call.run)([call.rows, call.features], times);
    Ok(())
}

fn forward<T: Element>(shape: [usize; 2], times: u32) {
    let (norm, x) = (norm::<T>(shape[1]), matrix(shape, 3));
    let (mut y, mut saved) = (Array2::zeros(shape), Saved::default());
    for _ in 0..times {
        norm.forward_into(&x, &mut y, &mut saved).expect("the shapes fit");
    }
    check_y(&norm, &x, &y);
}

fn infer<T: Element>(shape: [usize; 2], times: u32) {
    let (norm, x, mut y) = (norm::<T>(shape[1]), matrix(shape, 3), Array2::zeros(shape));
    for _ in 0..times {
        norm.infer_into(&x, &mut y).expect("the shapes fit");
    }
    check_y(&norm, &x, &y);
}

fn backward<T: Element>(shape: [usize; 2], times: u32) {
    let (norm, x, dy) = (norm::<T>(shape[1]), matrix(shape, 3), matrix(shape, 4));
    let (_, saved) = norm.forward(&x).expect("the shapes fit");
    let (mut dx, mut grad) = (Array2::zeros(shape), norm.zero_grad());
    for _ in 0..times {
        norm.backward_into(&x, &saved, &dy, &mut dx, &mut grad).expect("the shapes fit");
    }
    let last = shape[0] - 1;
    let gain = wide(norm.gain().expect("has one"));
    let right = textbook::backward_row(&wide(x.row(last)), Some(&gain), norm.eps().into(), &wide(dy.row(last)));
    near::<T>("dx", &wide(dx.row(last)), &right);
}

fn norm<T: Element>(features: usize) -> LayerNorm<T> {
    let parameter = |seed| Array1::from_vec(numbers::<T>(features, seed));
    let norm = LayerNorm::new(features).with_gain(parameter(1)).expect("as many");
    norm.with_bias(parameter(2)).expect("as many")
}

fn matrix<T: Element>(shape: [usize; 2], seed: u64) -> Array2<T> {
    Array2::from_shape_vec(shape, numbers(shape[0] * shape[1], seed)).expect("as many")
}

fn numbers<T: Element>(len: usize, seed: u64) -> Vec<T> {
    textbook::pattern(len, seed).into_iter().map(|x| num_traits::NumCast::from(x).expect("in range")).collect()
}

fn wide<'a, T: Element>(row: impl IntoIterator<Item = &'a T>) -> Vec<f64> {
    row.into_iter().map(|&x| x.into()).collect()
}

/// The last row of y is that of the oracle.
fn check_y<T: Element>(norm: &LayerNorm<T>, x: &Array2<T>, y: &Array2<T>) {
    let last = x.nrows() - 1;
    let (gain, bias) = (wide(norm.gain().expect("has one")), wide(norm.bias().expect("has one")));
    let right = textbook::forward(&wide(x.row(last)), Some(&gain), Some(&bias), norm.eps().into());
    near::<T>("y", &wide(y.row(last)), &right.y);
}

/// Panics where the two differ by more than 8 ulps of the largest.
fn near<T: Element>(name: &str, got: &[f64], right: &[f64]) {
    let largest = right.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    let ulp: f64 = T::epsilon().into();
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        assert!((got - right).abs() <= 8.0 * ulp * largest, "{name}[last, {i}]: got {got}, right is {right}");
    }
}
