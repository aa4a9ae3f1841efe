//! What measurements are held against.

/// max |x|, and NaN if there is one.
pub(crate) fn largest(numbers: impl IntoIterator<Item = f64>) -> f64 {
    numbers.into_iter().map(f64::abs).fold(0.0, |top, x| if x > top || x.is_nan() { x } else { top })
}
