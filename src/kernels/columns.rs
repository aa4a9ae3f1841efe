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

use crate::element::{Element, Wide};

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
pub(crate) fn end_chain<T: Element>(chain: &mut [T], block: &mut [T::Wide]) {
    for (sum, term) in block.iter_mut().zip(chain) {
        *sum = sum.add((*term).into());
        *term = T::zero();
    }
}

/// Adds a block to those before it.
pub(crate) fn join_block<W: Wide>(total: &mut [W], block: &[W]) {
    for (total, &block) in total.iter_mut().zip(block) {
        *total = total.join(block);
    }
}

/// Adds a sum to what a gradient holds.
pub(crate) fn add_to_gradient<T: Element>(gradient: &mut [T], total: &[T::Wide]) {
    for (gradient, total) in gradient.iter_mut().zip(total) {
        *gradient = T::from_f64(total.add((*gradient).into()).value());
    }
}
