//! The oracle of root mean square normalization, in double-double, one plain loop each.
//!
//! ```text
//! r = 1/√(Σxᵢ²/n + ε)      x̂ = x·r      y = gain ⊙ x̂
//! dx = r·(q − x̂·mean(q ⊙ x̂))      q = gain ⊙ dy      dgain = Σ dy ⊙ x̂ over the rows
//! ```
//!
//! Source: Zhang, Sennrich, *Root Mean Square Layer Normalization*, arXiv:1910.07467, eq. 4.

use crate::Double;
use crate::{at, exponent, reciprocal_root, scale_for};

/// What root mean square normalization makes of one row.
#[derive(Clone, Debug)]
pub struct RmsRow {
    /// r, and 0 where Σx² + ε = 0.
    pub rstd: Double,
    /// y = gain ⊙ x̂
    pub y: Vec<f64>,
    /// x·rstd
    pub xhat: Vec<Double>,
}

/// y of one row.
///
/// # Panics
///
/// Unless `gain` is as long as `x`.
pub fn rms_forward(x: &[f64], gain: Option<&[f64]>, eps: f64) -> RmsRow {
    assert!(gain.is_none_or(|gain| gain.len() == x.len()), "`gain` must have the length of `x`");
    // A power of two changes nothing but keeps the squares in range.
    let largest = x.iter().fold(eps.sqrt(), |peak: f64, x| peak.max(x.abs()));
    let scale = scale_for(exponent(largest));
    let scaled: Vec<_> = x.iter().map(|&x| Double::from(x).times_power_of_two(scale)).collect();
    let mut squares = Double::ZERO;
    for &x in &scaled {
        squares += x * x;
    }
    let eps = Double::from(eps).times_power_of_two(2 * scale);
    let mean = if x.is_empty() { Double::ZERO } else { squares / x.len() as f64 };
    let rstd = reciprocal_root(mean + eps);
    let xhat: Vec<_> = scaled.iter().map(|&x| x * rstd).collect();
    let y = (0..x.len()).map(|i| (xhat[i] * at(gain, i, 1.0)).to_f64()).collect();
    RmsRow { rstd: rstd.times_power_of_two(scale), y, xhat }
}

/// dx and dgain of rows `[rows, features]`, row after row.
///
/// # Panics
///
/// Unless `x` and `dy` have that many elements, and `gain` one for each feature.
pub fn rms_backward(x: &[f64], features: usize, gain: Option<&[f64]>, eps: f64, dy: &[f64]) -> (Vec<f64>, Vec<f64>) {
    assert_eq!(x.len(), dy.len(), "`dy` must have the length of `x`");
    let mut dx = Vec::with_capacity(x.len());
    let mut dgain = vec![Double::ZERO; features];
    for (x, dy) in x.chunks(features).zip(dy.chunks(features)) {
        let RmsRow { rstd, xhat, .. } = rms_forward(x, gain, eps);
        let mut sum = Double::ZERO;
        let q: Vec<_> = (0..features).map(|i| Double::product(at(gain, i, 1.0), dy[i])).collect();
        for i in 0..features {
            sum += q[i] * xhat[i];
            dgain[i] += xhat[i] * dy[i];
        }
        let mean = sum / features as f64;
        dx.extend((0..features).map(|i| (rstd * (q[i] - xhat[i] * mean)).to_f64()));
    }
    (dx, dgain.iter().map(|sum| sum.to_f64()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_worked_by_hand() {
        // Σx²/n = 25
        let x = [1.0, -7.0, 7.0, 1.0];
        let row = rms_forward(&x, None, 0.0);
        assert_eq!((row.rstd.to_f64(), row.y), (0.2, vec![0.2, -1.4, 1.4, 0.2]));
        assert_eq!(rms_forward(&x, Some(&[5.0, 0.0, -5.0, 10.0]), 75.0).y, [0.5, 0.0, -3.5, 1.0]);

        // mean(q ⊙ x̂) = 0.05: dx = 0.2·(q − 0.05·x̂)
        let (dx, dgain) = rms_backward(&x, 4, None, 0.0, &[1.0, 0.0, 0.0, 0.0]);
        assert_eq!((dx, dgain), (vec![0.198, 0.014, -0.014, -0.002], vec![0.2, 0.0, 0.0, 0.0]));
    }

    #[test]
    fn zeros_stay_zeros_and_scale_does_not_matter() {
        assert_eq!(rms_forward(&[0.0; 3], None, 0.0).y, [0.0; 3]);
        for scale in [1e-300, 1e300] {
            let y = rms_forward(&[scale, -scale], None, 0.0).y;
            assert_eq!(y, [1.0, -1.0], "{scale}");
        }
    }
}
