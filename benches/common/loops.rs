//! The loops that a layer is measured against, and whether its result is right.

use fearless_simd::{Simd, f32x16, prelude::*};
use fearless_simd_macros::simd;

/// How far a layer may be off, relative to the largest of a line.
pub(crate) const BOUND: f64 = 1e-6;

pub(crate) fn near(bound: f64, name: &str, line: usize, got: &[f64], right: &[f64]) {
    let largest = right.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    for (i, (got, right)) in got.iter().zip(right).enumerate() {
        assert!((got - right).abs() <= bound * largest, "{name}[{line}, {i}]: got {got}, right is {right}");
    }
}

/// Whether a sum is right: rounding grows with what is added, not with the result.
pub(crate) fn near_sum(bound: f64, name: &str, column: usize, got: f64, terms: impl Iterator<Item = f64>) {
    let (right, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
    assert!((got - right).abs() <= bound * size, "{name}[{column}]: got {got}, right is {right}");
}

/// Has each thread of the pool do its part of a loop, as far as there are two.
pub(crate) fn halves(a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(&[f32], &[f32], &mut [f32]) + Sync) {
    if rayon::current_num_threads() == 1 {
        return f(a, b, out);
    }
    let half = (out.len() / 2).next_multiple_of(16).min(out.len());
    let (first, second) = out.split_at_mut(half);
    rayon::join(|| f(&a[..half], &b[..half], first), || f(&a[half..], &b[half..], second));
}

#[simd]
pub(crate) fn vector_copy<S: Simd>(simd: S, x: &[f32], y: &mut [f32]) {
    let (x, x_rest) = x.as_chunks();
    let (y, y_rest) = y.as_chunks_mut();
    for (x, y) in x.iter().zip(y) {
        f32x16::load_array_ref(simd, x).store_array(y);
    }
    y_rest.copy_from_slice(x_rest);
}

#[simd]
pub(crate) fn stream<S: Simd>(simd: S, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    let ((x, x_rest), (dy, dy_rest)) = (x.as_chunks(), dy.as_chunks());
    let (dx, dx_rest) = dx.as_chunks_mut();
    for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
        (f32x16::load_array_ref(simd, x) + f32x16::load_array_ref(simd, dy)).store_array(dx);
    }
    plain_stream(x_rest, dy_rest, dx_rest);
}

/// [`stream`] as the compiler makes it of a plain loop: 16 bytes at a time on x86-64.
pub(crate) fn plain_stream(x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for ((x, dy), dx) in x.iter().zip(dy).zip(dx) {
        *dx = x + dy;
    }
}
