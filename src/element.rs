//! The numbers that users compute in.

use crate::kernels::Kernels;

/// An element of the arrays: `f32` or `f64`.
///
/// Sealed: the bit contract is worked out for these two, and their kernels are compiled into this crate.
pub trait Element: Kernels {}

impl Element for f32 {}
impl Element for f64 {}
