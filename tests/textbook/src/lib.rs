//! The oracle: layer normalization by the paper's formulas, in double-double, one plain loop each.
//!
//! ```text
//! μ = Σxᵢ/n      σ² = Σ(xᵢ−μ)²/n      r = 1/√(σ²+ε)      x̂ = (x−μ)·r      y = gain ⊙ x̂ + bias
//!
//! P(t) = r·(t − mean(t) − x̂·mean(t ⊙ x̂))                 the Jacobian ∂x̂/∂x, which is symmetric
//! dx = P(gain ⊙ dy)      dgain = Σ dy ⊙ x̂      dbias = Σ dy      both sums over the rows
//! ```
//!
//! Source: Ba, Kiros, Hinton, *Layer Normalization*, arXiv:1607.06450, eq. 3 and 5; ε is not in the paper. The first
//! line is [`forward`], the last two are [`backward_row`], [`backward`] and [`column_sums`]. Nothing here comes from the
//! crate under test, and nothing is clever: every sum is one loop over [`Double`], and results are rounded to `f64` once,
//! at the end. A missing gain is 1, a missing bias 0.
//!
//! A row of any finite magnitude is right: one outside 2^±300 is first multiplied by a power of two, which is exact and
//! leaves x̂ as it was. A row that holds an infinity or NaN gives NaN.

mod activations;
mod batch;
mod double;
mod pattern;
pub mod recurrent;
mod rms;

pub use activations::{exp, sigmoid, tanh};
pub use batch::{Feature, batch_backward, batch_forward};
pub use double::Double;
pub use pattern::{pattern, prime_pattern};
pub use rms::{RmsRow, rms_backward, rms_forward};

/// What layer normalization makes of one row.
#[derive(Clone, Debug)]
pub struct Row {
    /// μ = Σxᵢ/n
    pub mean: Double,
    /// r = 1/√(σ² + ε), and 0 where σ² + ε = 0.
    pub rstd: Double,
    /// x̂ = (x − μ)·r
    pub xhat: Vec<f64>,
    /// y = gain ⊙ x̂ + bias
    pub y: Vec<f64>,
}

/// Gradients of the loss Σ y ⊙ dy, with dy constant.
#[derive(Clone, Debug)]
pub struct Gradients {
    /// By x: `[rows, features]`, row-major.
    pub dx: Vec<f64>,
    /// By gain: `[features]`.
    pub dgain: Vec<f64>,
    /// By bias: `[features]`.
    pub dbias: Vec<f64>,
}

/// y = gain ⊙ (x − μ)·r + bias of one row.
///
/// A constant row has x̂ = 0 and y = bias exactly; with ε = 0 its `rstd` is 0. An empty row counts as constant, with
/// mean 0.
///
/// # Panics
///
/// Unless `gain` and `bias` are as long as `x`.
pub fn forward(x: &[f64], gain: Option<&[f64]>, bias: Option<&[f64]>, eps: f64) -> Row {
    let n = x.len();
    assert!(gain.is_none_or(|gain| gain.len() == n), "`gain` must have the length of `x`, {n}");
    assert!(bias.is_none_or(|bias| bias.len() == n), "`bias` must have the length of `x`, {n}");
    let mut xhat = vec![Double::ZERO; n];
    let Moments { mean, rstd, scale } = normalize(x, eps, &mut xhat);
    let mut y = vec![0.0; n];
    for i in 0..n {
        y[i] = (xhat[i] * at(gain, i, 1.0) + at(bias, i, 0.0)).to_f64();
    }
    Row { mean, rstd: rstd.times_power_of_two(scale), xhat: xhat.iter().map(|v| v.to_f64()).collect(), y }
}

/// dx = P(gain ⊙ dy) of one row.
///
/// All zeros for a single feature, and for a constant row with ε = 0. Where the terms of P cancel, what is left is off by
/// about 2⁻⁹⁸·r·max|gain·dy|: two features with ε = 0 give such a rest instead of 0.
///
/// # Panics
///
/// Unless `gain` and `dy` are as long as `x`.
pub fn backward_row(x: &[f64], gain: Option<&[f64]>, eps: f64, dy: &[f64]) -> Vec<f64> {
    let n = x.len();
    assert!(gain.is_none_or(|gain| gain.len() == n), "`gain` must have the length of `x`, {n}");
    assert_eq!(dy.len(), n, "`dy` must have the length of `x`");
    let mut xhat = vec![Double::ZERO; n];
    let Moments { rstd, scale, .. } = normalize(x, eps, &mut xhat);
    let (q, q_scale) = scaled_products(n, |i| (at(gain, i, 1.0), dy[i]));

    let (mut sum_q, mut sum_q_xhat) = (Double::ZERO, Double::ZERO);
    for i in 0..n {
        sum_q += q[i];
        sum_q_xhat += q[i] * xhat[i];
    }
    let (mean_q, mean_q_xhat) = (sum_q / n as f64, sum_q_xhat / n as f64);
    let mut dx = vec![0.0; n];
    for i in 0..n {
        let p = rstd * (q[i] - mean_q - xhat[i] * mean_q_xhat);
        dx[i] = p.times_power_of_two(scale - q_scale).to_f64();
    }
    dx
}

/// [`backward_row`] of every row, and dgain = Σ dy ⊙ x̂ and dbias = Σ dy over the rows.
///
/// # Shapes
///
/// - `x`, `dy` and the returned `dx`: `[rows, features]`, row-major
/// - `gain` and the returned `dgain` and `dbias`: `[features]`
///
/// # Panics
///
/// Unless the lengths are those.
pub fn backward(x: &[f64], rows: usize, features: usize, gain: Option<&[f64]>, eps: f64, dy: &[f64]) -> Gradients {
    assert_eq!(x.len(), rows * features, "`x` must have shape [{rows}, {features}]");
    assert_eq!(dy.len(), rows * features, "`dy` must have shape [{rows}, {features}]");
    let row = |i: usize| i * features..(i + 1) * features;
    let mut dx = Vec::with_capacity(rows * features);
    for i in 0..rows {
        dx.extend(backward_row(&x[row(i)], gain, eps, &dy[row(i)]));
    }
    let (dgain, dbias) = column_sums(
        rows,
        features,
        |i, out| out.copy_from_slice(&x[row(i)]),
        |i, out| out.copy_from_slice(&dy[row(i)]),
        eps,
    );
    Gradients { dx, dgain, dbias }
}

/// dgain = Σ dy ⊙ x̂ and dbias = Σ dy over very many rows, of which one is held at a time.
///
/// `x(i, out)` and `dy(i, out)` fill `out`, which has the length `features` and any content, with row i.
pub fn column_sums(
    rows: usize,
    features: usize,
    x: impl Fn(usize, &mut [f64]),
    dy: impl Fn(usize, &mut [f64]),
    eps: f64,
) -> (Vec<f64>, Vec<f64>) {
    let mut dgain = vec![Double::ZERO; features];
    let mut dbias = vec![Double::ZERO; features];
    let mut xhat = vec![Double::ZERO; features];
    let (mut x_row, mut dy_row) = (vec![0.0; features], vec![0.0; features]);
    for i in 0..rows {
        x(i, &mut x_row);
        dy(i, &mut dy_row);
        normalize(&x_row, eps, &mut xhat);
        for j in 0..features {
            dgain[j] += xhat[j] * dy_row[j];
            dbias[j] += dy_row[j];
        }
    }
    let rounded = |sums: Vec<Double>| sums.iter().map(|v| v.to_f64()).collect();
    (rounded(dgain), rounded(dbias))
}

/// The numbers that one row is normalized by.
struct Moments {
    /// μ of the row as it came.
    mean: Double,
    /// r of the row times 2^scale: a number that squares without overflow. That of the row as it came is r·2^scale.
    rstd: Double,
    /// 0 unless the row's magnitude lies outside 2^±300.
    scale: i32,
}

/// Writes x̂ and returns what it was made with.
///
/// With s = 2^scale the row s·x has the mean s·μ, the variance s²·σ² and, by s²·ε, the same x̂.
fn normalize(x: &[f64], eps: f64, xhat: &mut [Double]) -> Moments {
    let n = x.len() as f64;
    let is_constant = x.iter().all(|&a| a == x[0] && a.is_finite());
    // The root must not overflow: it holds (x−μ)², unless that is 0, and ε.
    let spread = if is_constant { 0.0 } else { x.iter().fold(0.0, |peak: f64, a| peak.max(a.abs())) };
    let scale = scale_for(exponent(spread.max(eps.sqrt())));
    let scaled_eps = Double::from(eps).times_power_of_two(2 * scale);
    if is_constant {
        xhat.fill(Double::ZERO);
        let mean = Double::from(x.first().copied().unwrap_or(0.0));
        return Moments { mean, rstd: reciprocal_root(scaled_eps), scale };
    }

    let mut sum = Double::ZERO;
    for i in 0..x.len() {
        xhat[i] = Double::from(x[i]).times_power_of_two(scale);
        sum += xhat[i];
    }
    let mean = sum / n;
    let mut sum_of_squares = Double::ZERO;
    for v in &mut *xhat {
        *v = *v - mean;
        sum_of_squares += *v * *v;
    }
    let rstd = reciprocal_root(sum_of_squares / n + scaled_eps);
    for v in xhat {
        *v = *v * rstd;
    }
    Moments { mean: mean.times_power_of_two(-scale), rstd, scale }
}

/// 1/√v, and 0 for v = 0.
fn reciprocal_root(v: Double) -> Double {
    if v == Double::ZERO { v } else { Double::ONE / v.sqrt() }
}

/// The exact products of n pairs times 2^scale, and that scale: 0 unless the largest lies outside 2^±300.
fn scaled_products(n: usize, pair: impl Fn(usize) -> (f64, f64)) -> (Vec<Double>, i32) {
    let mut largest = None;
    for i in 0..n {
        let (a, b) = pair(i);
        if a != 0.0 && b != 0.0 {
            largest = largest.max(Some(exponent(a) + exponent(b)));
        }
    }
    let scale = scale_for(largest.unwrap_or(0));
    // Each factor is brought near 1 first: neither the product nor its low part leaves the range of f64.
    let near_one = |a: f64| Double::from(a).times_power_of_two(-exponent(a)).to_f64();
    let product = |i: usize| {
        let (a, b) = pair(i);
        Double::product(near_one(a), near_one(b)).times_power_of_two(exponent(a) + exponent(b) + scale)
    };
    ((0..n).map(product).collect(), scale)
}

/// The power of two that a number of this exponent is multiplied by: 0 within 2^±300, where squares are harmless.
fn scale_for(exponent: i32) -> i32 {
    if exponent.abs() <= 300 { 0 } else { -exponent }
}

/// ⌊log₂|a|⌋ of a normal number, −1023 of a subnormal one, 1024 if not finite; 0 for 0.
fn exponent(a: f64) -> i32 {
    if a == 0.0 { 0 } else { (a.to_bits() >> 52 & 0x7ff) as i32 - 1023 }
}

/// Element i, or what a missing argument stands for.
fn at(v: Option<&[f64]>, i: usize, missing: f64) -> f64 {
    v.map_or(missing, |v| v[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean 0 and standard deviation 5: every result below is a short decimal.
    const X: [f64; 4] = [-7.0, -1.0, 1.0, 7.0];
    const XHAT: [f64; 4] = [-1.4, -0.2, 0.2, 1.4];

    fn times(v: &[f64], factor: f64) -> Vec<f64> {
        v.iter().map(|a| a * factor).collect()
    }

    #[test]
    fn a_row_worked_by_hand() {
        let row = forward(&X, None, None, 0.0);
        assert_eq!((row.mean, row.rstd.to_f64()), (Double::ZERO, 0.2));
        assert_eq!((row.xhat, row.y), (XHAT.to_vec(), XHAT.to_vec()));

        let row = forward(&X, Some(&[2.0, 10.0, -5.0, 0.0]), Some(&[1.0, 0.0, 0.5, 3.0]), 0.0);
        assert_eq!(row.xhat, XHAT);
        assert_eq!(row.y, [-1.8, -2.0, -0.5, 3.0]);
    }

    #[test]
    fn eps_is_added_to_the_variance() {
        // 25 + 75 = 10²
        let row = forward(&X, None, None, 75.0);
        assert_eq!(row.rstd.to_f64(), 0.1);
        assert_eq!(row.xhat, [-0.7, -0.1, 0.1, 0.7]);
    }

    #[test]
    fn backward_worked_by_hand() {
        // t − mean(t) = [¾, −¼, −¼, −¼], mean(t ⊙ x̂) = −0.35, r = 1/5
        let dx = [0.052, -0.064, -0.036, 0.048];
        assert_eq!(backward_row(&X, None, 0.0, &[1.0, 0.0, 0.0, 0.0]), dx);
        assert_eq!(backward_row(&X, Some(&[0.5, 9.0, 9.0, 9.0]), 0.0, &[2.0, 0.0, 0.0, 0.0]), dx);

        let x: Vec<f64> = X.iter().chain(&[7.0, 1.0, -1.0, -7.0]).copied().collect();
        let gradients = backward(&x, 2, 4, None, 0.0, &[1.0, 0.0, 0.0, 0.0, 0.0, 5.0, 0.0, -5.0]);
        assert_eq!(gradients.dx[..4], dx);
        assert_eq!(gradients.dgain, [-1.4, 1.0, 0.0, 7.0]);
        assert_eq!(gradients.dbias, [1.0, 5.0, 0.0, -5.0]);
    }

    #[test]
    fn a_constant_row_gives_the_bias() {
        for n in [1, 2, 3, 7, 64] {
            for c in [0.0, 0.1, -1e6 / 3.0, 1e300, 1e-300, f64::MAX, f64::from_bits(1)] {
                for (eps, rstd) in [(0.0, 0.0), (0.25, 2.0), (2f64.powi(-1000), 2f64.powi(500))] {
                    let (x, gain, bias, dy) = (vec![c; n], pattern(n, 1), pattern(n, 2), pattern(n, 3));
                    let row = forward(&x, Some(&gain), Some(&bias), eps);
                    assert_eq!((row.mean, row.rstd), (Double::from(c), Double::from(rstd)), "n {n}, c {c}, ε {eps}");
                    assert_eq!((row.xhat, row.y), (vec![0.0; n], bias), "n {n}, c {c}, ε {eps}");
                    if n == 1 || eps == 0.0 {
                        assert_eq!(backward_row(&x, Some(&gain), eps, &dy), vec![0.0; n], "n {n}, c {c}, ε {eps}");
                    }
                }
            }
        }
        // x̂ = 0 leaves dx = r·(dy − mean(dy)).
        assert_eq!(backward_row(&[3.0; 4], None, 0.25, &[1.0, 0.0, 0.0, 0.0]), [1.5, -0.5, -0.5, -0.5]);
    }

    #[test]
    fn an_empty_row_gives_nothing() {
        let row = forward(&[], None, None, 1e-5);
        assert!(row.xhat.is_empty() && row.y.is_empty());
        assert!(backward_row(&[], None, 1e-5, &[]).is_empty());
        let gradients = backward(&[], 0, 2, None, 1e-5, &[]);
        assert_eq!((gradients.dgain, gradients.dbias), (vec![0.0; 2], vec![0.0; 2]));
    }

    #[test]
    fn a_row_that_is_not_finite_gives_nan() {
        for bad in [f64::NAN, f64::INFINITY] {
            for x in [vec![1.0, bad, 2.0], vec![bad; 3]] {
                assert!(forward(&x, None, None, 1e-5).y.iter().all(|y| y.is_nan()), "{x:?}");
                assert!(backward_row(&x, None, 1e-5, &[1.0, 2.0, 3.0]).iter().all(|dx| dx.is_nan()), "{x:?}");
            }
        }
    }

    /// With X = 64·x and S = ΣX, all integers: x̂ᵢ = (n·Xᵢ − S)/√(n·ΣX² − S²), where nothing is rounded before the root.
    #[test]
    fn a_mean_of_a_million_costs_no_digit() {
        for n in 2..=300 {
            let x: Vec<f64> = prime_pattern(n).iter().map(|v| v + 1e6).collect();
            let integers: Vec<i128> = x.iter().map(|v| (v * 64.0) as i128).collect();
            let (count, sum) = (n as i128, integers.iter().sum::<i128>());
            let root = count * integers.iter().map(|v| v * v).sum::<i128>() - sum * sum;
            let root = Double::from(root as f64).sqrt();

            let row = forward(&x, None, None, 0.0);
            assert_eq!(row.rstd.to_f64(), (Double::from(64.0 * n as f64) / root).to_f64(), "rstd, n {n}");
            let mean = Double::from(sum as f64) / (64 * n) as f64;
            assert!((row.mean - mean).abs().to_f64() < 1e-25, "n {n}: mean {:?}, not {mean:?}", row.mean);
            for (i, &xhat) in row.xhat.iter().enumerate() {
                let want = Double::from((count * integers[i] - sum) as f64) / root;
                assert_eq!(xhat, want.to_f64(), "x̂[{i}], n {n}");
            }
        }
    }

    #[test]
    fn magnitude_changes_nothing_without_eps() {
        let (x, gain, bias, dy) = (pattern(17, 1), pattern(17, 2), pattern(17, 3), pattern(17, 4));
        let near = forward(&x, Some(&gain), Some(&bias), 0.0);
        let near_dx = backward_row(&x, Some(&gain), 0.0, &dy);
        for exponent in [-900, -310, -290, 290, 310, 900, 1020] {
            let scale = 2f64.powi(exponent);
            let far = forward(&times(&x, scale), Some(&gain), Some(&bias), 0.0);
            assert_eq!(far.mean.times_power_of_two(-exponent).to_f64(), near.mean.to_f64(), "μ, 2^{exponent}");
            assert_eq!(far.rstd.times_power_of_two(exponent).to_f64(), near.rstd.to_f64(), "r, 2^{exponent}");
            assert_eq!((&far.xhat, &far.y), (&near.xhat, &near.y), "2^{exponent}");
            let far_dx = backward_row(&times(&x, scale), Some(&gain), 0.0, &times(&dy, scale));
            assert_eq!(far_dx, near_dx, "dx, x and dy times 2^{exponent}");
            let far_dx = backward_row(&x, Some(&times(&gain, scale)), 0.0, &times(&dy, 1.0 / scale));
            assert_eq!(far_dx, near_dx, "dx, gain times 2^{exponent}, dy divided by it");
        }
    }

    #[test]
    fn eps_goes_with_the_square_of_the_magnitude() {
        let x = pattern(17, 5);
        let near = forward(&x, None, None, 0.3);
        for exponent in [-500, -290, 290, 500] {
            let far = forward(&times(&x, 2f64.powi(exponent)), None, None, 0.3 * 2f64.powi(2 * exponent));
            assert_eq!(far.xhat, near.xhat, "2^{exponent}");
        }
    }

    #[test]
    fn rows_at_the_ends_of_the_range() {
        let least = f64::from_bits(1);
        assert_eq!(forward(&[f64::MAX, -f64::MAX], None, None, 0.0).xhat, [1.0, -1.0]);
        assert_eq!(forward(&[f64::MAX, -f64::MAX], None, None, 1e-5).xhat, [1.0, -1.0]);
        assert_eq!(forward(&[least, 0.0], None, None, 0.0).xhat, [1.0, -1.0]);
        // ε = 1 drowns the variance: x̂ = x − μ.
        assert_eq!(forward(&times(&X, 1e-300), None, None, 1.0).xhat, times(&X, 1e-300));
        assert_eq!(forward(&[1e300, -1e300], None, None, 1e-5).rstd.to_f64(), (Double::ONE / 1e300).to_f64());
    }

    #[test]
    fn backward_is_the_slope_of_forward() {
        let h = 2f64.powi(-16);
        for n in [2, 3, 4, 5, 8, 17] {
            for eps in [0.0, 1e-5, 0.5] {
                let (x, gain, bias, dy) = (pattern(n, 11), pattern(n, 12), pattern(n, 13), pattern(n, 14));
                let loss = |x: &[f64], gain: &[f64], bias: &[f64]| {
                    let y = forward(x, Some(gain), Some(bias), eps).y;
                    y.iter().zip(&dy).fold(Double::ZERO, |sum, (&y, &dy)| sum + Double::product(y, dy))
                };
                // Each |y·dy| is below 16: n·2⁻⁵³·16 from rounding y, over h. The rest is h²/6 times a third derivative.
                let tolerance = n as f64 * 2f64.powi(-49) / h + 10.0 * h * h;
                let check = |name: &str, got: &[f64], loss: &dyn Fn(&[f64]) -> Double, at: &[f64]| {
                    for i in 0..n {
                        let (mut up, mut down) = (at.to_vec(), at.to_vec());
                        up[i] += h;
                        down[i] -= h;
                        let slope = ((loss(&up) - loss(&down)) / (up[i] - down[i])).to_f64();
                        let got = got[i];
                        assert!((got - slope).abs() < tolerance, "{name}[{i}], n {n}, ε {eps}: {got}, slope {slope}");
                    }
                };
                let Gradients { dx, dgain, dbias } = backward(&x, 1, n, Some(&gain), eps, &dy);
                check("dx", &dx, &|x| loss(x, &gain, &bias), &x);
                check("dgain", &dgain, &|gain| loss(&x, gain, &bias), &gain);
                check("dbias", &dbias, &|bias| loss(&x, &gain, bias), &bias);
            }
        }
    }

    #[test]
    fn a_shifted_dy_changes_nothing_and_a_row_meets_only_eps() {
        // P(1) = 0 and P(x − μ) = ε·r³·(x − μ)
        let x = pattern(33, 21);
        let row = forward(&x, None, None, 0.5);
        assert!(backward_row(&x, None, 0.5, &[1.0; 33]).iter().all(|dx| dx.abs() < 1e-30));
        for (i, dx) in backward_row(&x, None, 0.5, &x).into_iter().enumerate() {
            let want = row.rstd * row.rstd * row.rstd * (Double::from(x[i]) - row.mean) * 0.5;
            assert!((dx - want.to_f64()).abs() <= 2f64.powi(-53) * want.to_f64().abs(), "dx[{i}]: {dx}, not {want:?}");
        }
    }

    #[test]
    fn column_sums_of_many_rows_are_exact() {
        let rows = 100_000;
        let x = |i: usize, out: &mut [f64]| {
            for j in 0..4 {
                out[j] = X[j] + i as f64;
            }
        };
        let dy = |i: usize, out: &mut [f64]| {
            for (j, v) in out.iter_mut().enumerate() {
                *v = (i * j) as f64;
            }
        };
        let (dgain, dbias) = column_sums(rows, 4, x, dy, 0.0);
        let sum = (rows * (rows - 1) / 2) as f64; // Σ i
        assert_eq!(dgain, [0.0, -sum / 5.0, sum * 2.0 / 5.0, sum * 3.0 * 7.0 / 5.0]);
        assert_eq!(dbias, [0.0, sum, sum * 2.0, sum * 3.0]);
    }

    #[test]
    fn backward_goes_row_by_row() {
        let (rows, features) = (5, 7);
        let (x, dy, gain) = (prime_pattern(35), pattern(35, 31), pattern(7, 32));
        let got = backward(&x, rows, features, Some(&gain), 1e-5, &dy);
        for i in 0..rows {
            let row = i * features..(i + 1) * features;
            assert_eq!(got.dx[row.clone()], backward_row(&x[row.clone()], Some(&gain), 1e-5, &dy[row]), "row {i}");
        }
        for j in 0..features {
            let (mut dgain, mut dbias) = (0.0, 0.0);
            for i in 0..rows {
                let xhat = forward(&x[i * features..(i + 1) * features], None, None, 1e-5).xhat;
                dgain += xhat[j] * dy[i * features + j];
                dbias += dy[i * features + j];
            }
            // 5 terms below 16, each rounded at most three times.
            let tolerance = 15.0 * 16.0 * 2f64.powi(-53);
            assert!((got.dgain[j] - dgain).abs() < tolerance, "dgain[{j}]: {}, not {dgain}", got.dgain[j]);
            assert!((got.dbias[j] - dbias).abs() < tolerance, "dbias[{j}]: {}, not {dbias}", got.dbias[j]);
        }
    }

    #[test]
    #[should_panic(expected = "`gain` must have the length of `x`, 2")]
    fn a_gain_of_another_length_is_named() {
        forward(&[1.0, 2.0], Some(&[1.0]), None, 0.0);
    }
}
