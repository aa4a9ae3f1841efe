//! Is a gradient derived by hand the slope of its function?
//!
//! For layers of your own as well: write the loss as a function of one array, and compare.

use ndarray::{Array, ArrayRef, Dimension};

const STANDARD: &str = "made in standard layout";

/// Where a gradient differs most from the slope of its function.
#[derive(Clone, Debug, PartialEq)]
pub struct Worst {
    /// |gradient − slope| divided by the largest |slope| of the array (by 1e-300 if all slopes are 0); ∞ where one of them is
    /// NaN.
    pub error: f64,
    /// The element's index.
    pub index: Vec<usize>,
    /// What was claimed.
    pub gradient: f64,
    /// What the differences say.
    pub slope: f64,
}

/// The slope of `f` along each element of `at`, by central differences of fourth order.
///
/// ```text
/// f′(x) ≈ (8·(f(x+h) − f(x−h)) − (f(x+2h) − f(x−2h))) / 12h      h = 2^⌊log₂(1e-3·max(1, |x|))⌋
/// ```
///
/// For a smooth `f` whose values are near 1, and that changes over distances near 1 or near |x|, it is good to about 1e-11; a
/// difference of second order to 1e-10 at best. Where `f` changes faster, as a norm does of rows with a spread of 1e-3, h is too
/// large: take the slope along u of f(s·u) with s near that spread, which is s times that along x.
///
/// # Cost
///
/// Calls `f` four times an element.
///
/// # Example
///
/// ```
/// use layernorm::{grad_check::slopes, ndarray::array};
///
/// let slopes = slopes(&array![1.0, 2.0], |x| x[0] * x[0] * x[1]);
/// assert!((slopes[0] - 4.0).abs() < 1e-9 && (slopes[1] - 1.0).abs() < 1e-9);
/// ```
pub fn slopes<D: Dimension>(at: &ArrayRef<f64, D>, mut f: impl FnMut(&Array<f64, D>) -> f64) -> Array<f64, D> {
    let mut moved = at.as_standard_layout().into_owned();
    let mut slopes = Array::zeros(at.raw_dim());
    for (element, slope) in slopes.iter_mut().enumerate() {
        let x = moved.as_slice().expect(STANDARD)[element];
        // A power of two, so that x ± h is h away from x.
        let h = (1e-3 * x.abs().max(1.0)).log2().floor().exp2();
        let mut at_offset = |steps: f64| {
            moved.as_slice_mut().expect(STANDARD)[element] = x + steps * h;
            let value = f(&moved);
            moved.as_slice_mut().expect(STANDARD)[element] = x;
            value
        };
        let (near, far) = (at_offset(1.0) - at_offset(-1.0), at_offset(2.0) - at_offset(-2.0));
        *slope = (8.0 * near - far) / (12.0 * h);
    }
    slopes
}

/// Compares `gradient` with the [`slopes`] of `f` at `at`.
///
/// # Panics
///
/// If `gradient` has another shape than `at`, or no element.
///
/// # Example
///
/// ```
/// use layernorm::{LayerNorm, grad_check, ndarray::{Array2, array}};
///
/// let norm = LayerNorm::<f64>::new(3);
/// let (x, dy) = (array![[0.3, -1.0, 2.0]], array![[1.0, 0.5, -2.0]]);
/// let (_, saved) = norm.forward(&x)?;
/// let dx = norm.backward(&x, &saved, &dy, &mut norm.zero_grad())?;
///
/// let loss = |x: &Array2<f64>| (norm.infer(x).unwrap() * &dy).sum();
/// assert!(grad_check::compare(&x, &dx, loss).error < 1e-9);
/// # Ok::<(), layernorm::Error>(())
/// ```
pub fn compare<D: Dimension>(
    at: &ArrayRef<f64, D>,
    gradient: &ArrayRef<f64, D>,
    f: impl FnMut(&Array<f64, D>) -> f64,
) -> Worst {
    assert_eq!(gradient.shape(), at.shape(), "`gradient` must have the shape of `at`");
    let slopes = slopes(at, f);
    let largest = slopes.iter().fold(1e-300, |largest: f64, slope| largest.max(slope.abs()));
    let elements = slopes.into_dyn().into_iter().zip(gradient.iter());
    let indices = ndarray::indices(at.shape()).into_iter();
    indices
        .zip(elements)
        .map(|(index, (slope, &gradient))| Worst {
            // NaN must win, not vanish in a comparison.
            error: Some((gradient - slope).abs() / largest).filter(|error| !error.is_nan()).unwrap_or(f64::INFINITY),
            index: ndarray::Dimension::slice(&index).to_vec(),
            gradient,
            slope,
        })
        .max_by(|a, b| a.error.total_cmp(&b.error))
        .expect("`gradient` must have at least one element")
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn a_wrong_element_is_found_where_it_is() {
        let x = array![[1.0, -2.0], [0.5, 3.0]];
        let f = |x: &Array<f64, _>| x.iter().map(|x: &f64| x * x * x).sum();
        let mut gradient = x.mapv(|x| 3.0 * x * x);
        assert!(compare(&x, &gradient, f).error < 1e-11);
        gradient[[1, 0]] += 1e-3;
        let worst = compare(&x, &gradient, f);
        assert_eq!((worst.index, worst.gradient), (vec![1, 0], gradient[[1, 0]]));
        assert!((worst.slope - 0.75).abs() < 1e-9);
        gradient[[0, 1]] = f64::NAN;
        let worst = compare(&x, &gradient, f);
        assert_eq!((worst.index, worst.error), (vec![0, 1], f64::INFINITY));
    }

    #[test]
    fn a_step_is_as_large_as_its_place() {
        let slope = slopes(&array![1e6], |x| x[0] * x[0])[0];
        assert!((slope - 2e6).abs() < 2e-3, "{slope}");
    }

    #[test]
    #[should_panic(expected = "`gradient` must have the shape of `at`")]
    fn a_gradient_of_another_shape_panics() {
        compare(&array![1.0, 2.0], &array![1.0], |x| x.sum());
    }

    #[test]
    #[should_panic(expected = "`gradient` must have at least one element")]
    fn a_gradient_without_elements_panics() {
        compare(&Array::zeros(0), &Array::zeros(0), |x| x.sum());
    }
}
