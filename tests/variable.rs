//! `LAYERNORM_SIMD` lowers the instruction set of a process, and changes no bit.

use std::env;
use std::process::{Command, Output};

use layernorm::ndarray::Array2;
use layernorm::{LayerNorm, instruction_set, instruction_sets};
use textbook::pattern;

/// The bits of y, folded, on the instruction set of the process.
fn bits() -> u64 {
    let x = pattern(21 * 100, 1).into_iter().map(|x| x as f32).collect();
    let x = Array2::from_shape_vec((21, 100), x).expect("as many");
    let y = LayerNorm::new(100).infer(&x).expect("the shapes fit");
    y.iter().fold(0, |folded: u64, y| folded.rotate_left(7) ^ u64::from(y.to_bits()))
}

/// Tells the child process from its parent.
const CHILD: &str = "LAYERNORM_TEST_CHILD";

/// Starts `test` of this file in a process of its own, in which the variable has a value.
fn child(test: &str, value: &str) -> Output {
    let program = env::current_exe().expect("a test runs from a file");
    Command::new(program)
        .args([test, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .env("LAYERNORM_SIMD", value)
        .output()
        .expect("the test starts again")
}

#[test]
fn the_variable_changes_the_instruction_set_and_no_bit() {
    let test = "the_variable_changes_the_instruction_set_and_no_bit";
    let bits = bits();
    if env::var_os(CHILD).is_some() {
        println!("<{} {bits:016x}>", instruction_set());
        return;
    }
    let sets = instruction_sets();
    let all = ["avx512", "avx2", "sse4.2", "sse2", "neon", "wasm", "fallback"];
    let missing = all.into_iter().filter(|name| !sets.contains(name)).chain(["mmx", ""]);
    for (wanted, runs) in sets.iter().map(|&name| (name, name)).chain(missing.map(|name| (name, sets[0]))) {
        let Output { status, stdout, stderr } = child(test, wanted);
        let [stdout, stderr] = [stdout, stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let told = format!("<{runs} {bits:016x}>");
        assert!(status.success() && stdout.contains(&told), "{wanted}: expected {told}, got {stdout}{stderr}");
        let lines: Vec<_> = stderr.lines().collect();
        if wanted == runs {
            assert!(lines.is_empty(), "{wanted}: {lines:?}");
        } else {
            assert!(lines.len() == 1 && lines[0].contains("LAYERNORM_SIMD"), "{wanted}: {lines:?}");
        }
    }
}
