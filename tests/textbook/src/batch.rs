//! The oracle of batch normalization, in double-double, one plain loop each.
//!
//! ```text
//! μ = Σxᵢ/N      σ² = Σ(xᵢ−μ)²/N′      r = 1/√(σ²+ε)      x̂ = (x−μ)·r      y = gain·x̂ + bias      over the rows
//! dx = gain·r·(dy − Σdy/N − x̂·Σ(dy·x̂)/N′)      dgain = Σ dy·x̂      dbias = Σ dy
//! ```
//!
//! N′ is N, or N − 1 for the unbiased variance.
//!
//! Source: Ba, Kiros, Hinton, *Layer Normalization*, arXiv:1607.06450, eq. 2.

use crate::{Double, exponent, reciprocal_root, scale_for};

/// What batch normalization makes of one feature.
#[derive(Clone, Debug)]
pub struct Feature {
    /// μ
    pub mean: Double,
    /// σ²
    pub variance: Double,
    /// r, and 0 where σ² + ε = 0.
    pub rstd: Double,
    /// y = gain·x̂ + bias
    pub y: Vec<f64>,
    xhat: Vec<Double>,
}

/// y of one feature of all rows.
pub fn batch_forward(x: &[f64], gain: f64, bias: f64, eps: f64, unbiased: bool) -> Feature {
    let rows = x.len() as f64;
    // A power of two changes nothing but keeps the squares in range.
    let largest = x.iter().fold(eps.sqrt(), |peak: f64, x| peak.max(x.abs()));
    let scale = scale_for(exponent(largest));
    let mut sum = Double::ZERO;
    let mut xhat: Vec<_> = x.iter().map(|&x| Double::from(x).times_power_of_two(scale)).collect();
    for &x in &xhat {
        sum += x;
    }
    // Rounding would leave a constant feature with a spread.
    let mean = if x.iter().all(|&other| other == x[0]) { xhat[0] } else { sum / rows };
    let mut squares = Double::ZERO;
    for x in &mut xhat {
        *x = *x - mean;
        squares += *x * *x;
    }
    let variance = squares / if unbiased { rows - 1.0 } else { rows };
    let rstd = reciprocal_root(variance + Double::from(eps).times_power_of_two(2 * scale));
    for x in &mut xhat {
        *x = *x * rstd;
    }
    let y = xhat.iter().map(|&xhat| (xhat * gain + bias).to_f64()).collect();
    Feature {
        mean: mean.times_power_of_two(-scale),
        variance: variance.times_power_of_two(-2 * scale),
        rstd: rstd.times_power_of_two(scale),
        y,
        xhat,
    }
}

/// dx, dgain and dbias of one feature.
///
/// # Panics
///
/// Unless `dy` has the rows of `x`.
pub fn batch_backward(x: &[f64], gain: f64, eps: f64, unbiased: bool, dy: &[f64]) -> (Vec<f64>, f64, f64) {
    assert_eq!(x.len(), dy.len(), "`dy` must have the length of `x`");
    let rows = x.len() as f64;
    let Feature { rstd, xhat, .. } = batch_forward(x, gain, 0.0, eps, unbiased);
    let (mut dgain, mut dbias) = (Double::ZERO, Double::ZERO);
    for (&xhat, &dy) in xhat.iter().zip(dy) {
        dgain += xhat * dy;
        dbias += Double::from(dy);
    }
    let (mean, slope) = (dbias / rows, dgain / if unbiased { rows - 1.0 } else { rows });
    let dx = xhat.iter().zip(dy).map(|(&xhat, &dy)| (rstd * gain * (Double::from(dy) - mean - xhat * slope)).to_f64());
    (dx.collect(), dgain.to_f64(), dbias.to_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_feature_worked_by_hand() {
        // μ = 3, Σ(x−μ)² = 16
        let x = [1.0, 1.0, 5.0, 5.0];
        let feature = batch_forward(&x, 2.0, 1.0, 0.0, false);
        assert_eq!((feature.mean.to_f64(), feature.variance.to_f64(), feature.rstd.to_f64()), (3.0, 4.0, 0.5));
        assert_eq!(feature.y, [-1.0, -1.0, 3.0, 3.0]);
        let feature = batch_forward(&[1.0, 1.0, 5.0, 5.0, 3.0], 1.0, 0.0, 0.0, true);
        assert_eq!((feature.variance.to_f64(), feature.y), (4.0, vec![-1.0, -1.0, 1.0, 1.0, 0.0]));

        // x̂ = ±1, Σdy/4 = 0.25, Σ(dy·x̂)/4 = −0.25: dx = dy − 0.25 + 0.25·x̂
        let (dx, dgain, dbias) = batch_backward(&x, 2.0, 0.0, false, &[1.0, 0.0, 0.0, 0.0]);
        assert_eq!((dx, dgain, dbias), (vec![0.5, -0.5, 0.0, 0.0], -1.0, 1.0));
    }

    #[test]
    fn slopes_meet_differences() {
        let (x, dy) = (crate::pattern(9, 1), crate::pattern(9, 2));
        for unbiased in [false, true] {
            let loss = |x: &[f64]| {
                let y = batch_forward(x, 1.5, 0.0, 0.1, unbiased).y;
                y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
            };
            let (dx, ..) = batch_backward(&x, 1.5, 0.1, unbiased, &dy);
            for (i, dx) in dx.iter().enumerate() {
                let (mut up, mut down) = (x.clone(), x.clone());
                up[i] += 1e-5;
                down[i] -= 1e-5;
                let slope = (loss(&up) - loss(&down)) / 2e-5;
                assert!((dx - slope).abs() < 1e-8, "dx[{i}], unbiased {unbiased}: {dx}, slope {slope}");
            }
        }
    }

    #[test]
    fn a_constant_feature_gives_the_bias() {
        let feature = batch_forward(&[0.1; 7], 3.0, 0.5, 0.0, false);
        assert_eq!((feature.y, feature.variance), (vec![0.5; 7], Double::ZERO));
        assert_eq!(batch_backward(&[0.1; 7], 3.0, 0.0, false, &[1.0; 7]), (vec![0.0; 7], 0.0, 7.0));
    }
}
