//! What the tests say of an element, and arrays of drawn ones.

use layernorm::Element;
use layernorm::ndarray::{Array, Dimension, IntoDimension};
use textbook::pattern;

/// `f32` or `f64`.
pub(crate) trait Number: Element {
    /// Rows of this scale have squares that overflow, rows of its inverse have squares that underflow.
    const HUGE: f64;
    fn of(value: f64) -> Self;
    /// The same for every NaN: its payload is not promised.
    fn bits(self) -> u64;
}

impl Number for f32 {
    const HUGE: f64 = 1e30;
    fn of(value: f64) -> Self {
        value as Self
    }
    fn bits(self) -> u64 {
        if self.is_nan() { Self::NAN.to_bits().into() } else { self.to_bits().into() }
    }
}

impl Number for f64 {
    const HUGE: f64 = 1e200;
    fn of(value: f64) -> Self {
        value
    }
    fn bits(self) -> u64 {
        if self.is_nan() { Self::NAN.to_bits() } else { self.to_bits() }
    }
}

pub(crate) fn drawn<T: Number, I: IntoDimension>(shape: I, seed: u64) -> Array<T, I::Dim> {
    let shape = shape.into_dimension();
    let values = pattern(shape.size(), seed).into_iter().map(T::of).collect();
    Array::from_shape_vec(shape, values).unwrap()
}

pub(crate) fn bits<'a, T: Number>(values: impl IntoIterator<Item = &'a T>) -> Vec<u64> {
    values.into_iter().map(|value| value.bits()).collect()
}
