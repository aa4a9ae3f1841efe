//! A file imports only from the floors below it; files of a floor do not know each other. Threads, arrays and arithmetic
//! stay where they are.

use std::path::{Path, PathBuf};

/// From the ground up.
const FLOORS: [&[&str]; 32] = [
    &["error", "number"],
    &["simd", "prefetch", "parallel", "tiles"],
    &["matmul", "kernels/moments", "kernels/narrow", "kernels/columns", "kernels/activations"],
    &["kernels/rescale", "kernels/blocks", "kernels/group"],
    &["kernels/normalize"],
    &["kernels/kept", "kernels/check"],
    &["kernels/ahead", "kernels/alone", "kernels/passes", "kernels/batch", "kernels/elementwise"],
    &["kernels/narrow/forward", "kernels/column", "kernels/batch/write", "kernels/lines"],
    &["kernels/batch/rows"],
    &["kernels/backward", "kernels/gradient", "kernels/second_order", "kernels/weights"],
    &["kernels/narrow/backward"],
    &["kernels/short", "kernels/gates"],
    &["kernels/rnn", "kernels/lstm", "kernels/gru", "kernels/residual"],
    &["kernels"],
    &["element"],
    &["params"],
    &["arrays"],
    &["long", "sweep", "batch/call"],
    &["long/backward"],
    &["batch/flat"],
    &["batch"],
    &["rows"],
    &["norm/row_norm"],
    &["norm/layer_norm", "norm/rms_norm", "norm/weight_norm", "norm/running"],
    &["norm/batch_norm", "norm/residual", "norm/lean", "norm/second_order"],
    &["norm/evaluation"],
    &["rnn/start", "rnn/state", "rnn/weights"],
    &["rnn/cell"],
    &["rnn/saved", "rnn/rnn", "rnn/lstm", "rnn/gru"],
    &["rnn/sequence"],
    &["rnn/sequence/forward", "rnn/sequence/backward"],
    &["rnn/recurrent"],
];

/// Beside the floors: they know the words of the ground and the layers on top, no machine and no kernel.
const SHELF: [&str; 1] = ["grad_check"];
const WORDS: [&str; 4] = ["error", "number", "element", "params"];

/// Pages that only list and re-export.
const PAGES: [&str; 4] = ["lib", "norm", "rnn", "derivations"];

fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().expect("src can be listed").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { sources(&path) } else { vec![path] }).collect()
}

/// Each file of `src` but those of tests, by the name of its module, and its lines that are not comments.
fn modules() -> impl Iterator<Item = (String, Vec<(usize, String)>)> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let sources = sources(&src).into_iter().filter(|path| !path.ends_with("tests.rs"));
    sources.map(move |path| {
        let text = std::fs::read_to_string(&path).expect("a source is text");
        let name =
            path.strip_prefix(&src).expect("it is in src").with_extension("").to_string_lossy().replace('\\', "/");
        let code = text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"));
        (name, code.map(|(i, line)| (i + 1, line.to_owned())).collect())
    })
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|floor| floor.contains(&module))
}

#[test]
fn the_floors_list_files_that_exist() {
    let there: Vec<_> = modules().map(|(name, _)| name).collect();
    for name in FLOORS.iter().copied().flatten().chain(&SHELF).chain(&WORDS).chain(&PAGES) {
        assert!(there.iter().any(|module| module == name), "there is no src/{name}.rs");
    }
}

#[test]
fn files_import_from_floors_below() {
    for (name, code) in modules().filter(|(name, _)| !PAGES.contains(&name.as_str())) {
        let here = floor(&name);
        let on_shelf = SHELF.contains(&name.as_str());
        assert!(here.is_some() || on_shelf, "src/{name}.rs has no floor yet: put it on one in tests/floors.rs");
        for (number, line) in code {
            // Every path, not only those of `use`; the deepest module that it names.
            for path in line.split("crate::").skip(1) {
                let words: Vec<_> = path.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).collect();
                let steps: Vec<_> = words[0].split("::").filter(|step| !step.is_empty()).collect();
                let known = |module: &String| floor(module).is_some() || SHELF.contains(&module.as_str());
                let there = (1..=steps.len()).rev().map(|depth| steps[..depth].join("/")).find(known);
                let there = there.unwrap_or_else(|| panic!("src/{name}.rs:{number}: which file is `crate::{path}`?"));
                let fits = if on_shelf {
                    WORDS.contains(&there.as_str()) || there.starts_with("norm/")
                } else {
                    floor(&there) < here && !SHELF.contains(&there.as_str())
                };
                assert!(fits, "src/{name}.rs:{number} must not know {there}.rs: it is not on a floor below");
            }
        }
    }
}

/// Only these files say this word; a name that ends in `/` is a folder.
fn only(word: &str, files: &[&str]) {
    let says = |name: &str| files.iter().any(|file| name == *file || file.ends_with('/') && name.starts_with(file));
    for (name, code) in modules().filter(|(name, _)| !says(name)) {
        for (number, line) in code {
            assert!(!line.contains(word), "src/{name}.rs:{number} says `{word}`: only {files:?} do");
        }
    }
}

#[test]
fn threads_are_started_in_one_file() {
    only("rayon::", &["parallel"]);
}

#[test]
fn arrays_stay_out_of_the_kernels() {
    only(
        "ndarray",
        &[
            "rows",
            "arrays",
            "tiles",
            "long",
            "long/",
            "batch",
            "batch/",
            "element",
            "params",
            "norm/",
            "rnn/",
            "grad_check",
            "lib",
        ],
    );
}

#[test]
fn matrix_products_are_made_in_one_file() {
    only("faer", &["matmul"]);
}

/// What libm computes, whose digits differ by system, and what is fused or not by CPU.
const LIBM: [&str; 27] = [
    "exp", "exp2", "exp_m1", "ln", "ln_1p", "log", "log2", "log10", "powf", "powi", "sin", "cos", "sin_cos", "tan",
    "asin", "acos", "atan", "atan2", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "cbrt", "hypot", "mul_add",
];

/// Whether the line says `.name` or `::name`. The functions of `kernels/activations` are our own.
fn calls(line: &str, name: &str) -> bool {
    line.match_indices(name).any(|(at, _)| {
        let (before, after) = (&line[..at], &line[at + name.len()..]);
        let whole = !after.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        whole && (before.ends_with('.') || before.ends_with("::") && !before.ends_with("activations::"))
    })
}

#[test]
fn a_call_is_seen_as_a_method_and_by_its_path() {
    for line in ["x.exp()", "f32::exp(x)", "<T as Float>::exp(x)", "xs.map(f64::exp)"] {
        assert!(calls(line, "exp"), "{line}");
    }
    for line in ["exp(x)", "x.exponent", "x.exp2()", "use crate::kernels::activations::exp;"] {
        assert!(!calls(line, "exp"), "{line}");
    }
}

/// What `clippy.toml` refuses of vectors and generic numbers, of `f32` and `f64`; tests may call it.
#[test]
fn the_library_calls_no_libm() {
    // The step of central differences, a power of two near x: under no contract of bits.
    let may = |file: &str, name: &str| file == "grad_check" && ["log2", "exp2"].contains(&name);
    for (file, code) in modules() {
        for (number, line) in code.iter().take_while(|(_, line)| line != "mod tests {") {
            let called = LIBM.into_iter().find(|name| calls(line, name) && !may(&file, name));
            assert!(called.is_none(), "src/{file}.rs:{number} calls `{}`", called.unwrap());
        }
    }
}
