//! dgain and dbias: sums over the rows, column by column.
//!
//! ```text
//! each block of rows, fixed by (rows, features):
//!     each chain of 64 rows:   column = Σ term, in the order of the rows      (element)
//!         block += column                                                     (wide)
//! total = block₀ + block₁ + …, in order                                       (wide)
//! ```
//!
//! A sum of a million rows in one `f32` has an error of 2e-6 of its value; chains of 64 that end in something wider
//! keep it below 1e-7.

use std::ops::Range;

use fearless_simd::Simd;
use fearless_simd_macros::simd;

use crate::number::{Number, Wide};

/// Rows whose terms are added as elements before they are added to something wider.
pub(crate) const CHAIN: usize = 64;

/// Rows in a block: a function of the shape alone, because it decides the order of additions.
///
/// A multiple of [`CHAIN`]. There are enough blocks to keep threads busy and few enough that their sums take at most
/// about 1 MiB, or 16 times the parameters.
pub(crate) fn rows_per_block(rows: usize, features: usize) -> usize {
    let blocks = (65536 / features).clamp(16, 64);
    rows.div_ceil(blocks).next_multiple_of(CHAIN)
}

/// Adds a chain to its block, and starts the next one.
#[simd]
pub(crate) fn end_chain<S: Simd, T: Number>(_simd: S, chain: &mut [T], block: &mut [T::Wide]) {
    for (sum, term) in block.iter_mut().zip(chain) {
        *sum = sum.add((*term).into());
        *term = T::zero();
    }
}

/// Adds a block to those before it.
#[simd]
pub(crate) fn join_block<S: Simd, W: Wide>(_simd: S, total: &mut [W], block: &[W]) {
    for (total, &block) in total.iter_mut().zip(block) {
        *total = total.join(block);
    }
}

/// Adds the sums of all blocks to a gradient.
#[simd]
pub(crate) fn add_wide<S: Simd, T: Number>(_simd: S, gradient: &mut [T], sums: &[T::Wide]) {
    for (gradient, sum) in gradient.iter_mut().zip(sums) {
        *gradient = T::nearest(sum.add((*gradient).into()).value());
    }
}

/// What a backward call adds to: dgain and dbias of some columns, each if the layer has the parameter.
#[derive(Debug)]
pub(crate) struct Gradient<'a, T> {
    pub(crate) gain: Option<&'a mut [T]>,
    pub(crate) bias: Option<&'a mut [T]>,
}

impl<T> Gradient<'_, T> {
    /// Those of some of the columns.
    pub(crate) fn part(&mut self, columns: Range<usize>) -> Gradient<'_, T> {
        Gradient {
            gain: self.gain.as_deref_mut().map(|gain| &mut gain[columns.clone()]),
            bias: self.bias.as_deref_mut().map(|bias| &mut bias[columns]),
        }
    }
}

impl<'a, T> Gradient<'a, T> {
    /// Those of the first columns, and of the others.
    pub(crate) fn split(self, columns: usize) -> (Self, Self) {
        let (gain, gain_second) = self.gain.map(|gain| gain.split_at_mut(columns)).unzip();
        let (bias, bias_second) = self.bias.map(|bias| bias.split_at_mut(columns)).unzip();
        (Self { gain, bias }, Self { gain: gain_second, bias: bias_second })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What docs/bits.md says.
    #[test]
    fn blocks_follow_from_the_shape() {
        for (rows, features, block) in [
            (1, 1, 64),
            (4096, 768, 64),
            (8192, 768, 128),
            (1025, 4096, 128),
            (100_000, 2048, 3136),
            (100_000, 100_000, 6272),
        ] {
            assert_eq!(rows_per_block(rows, features), block, "{rows} × {features}");
        }
    }
}
