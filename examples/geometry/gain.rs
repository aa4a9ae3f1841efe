//! (c) The metric along the gain (eq. 32 to 35) when the inputs grow.
//!
//! ```text
//! ds² = ½·δᵀMδ      Mᵢⱼ = E[Cov(yᵢ, yⱼ|x)·nᵢ·nⱼ]      n: what the gain multiplies
//! ```
//!
//! n is x̂ for batch and layer norm, and does not know how large x is. It is wᵢᵀx/‖wᵢ‖ for weight norm, and for the standard
//! model along the length of wᵢ: M grows as the square of x. For Gaussian y, whose Cov[y|x] is that of any x, this is all
//! that M depends on; a seed draws the same noise at every scale.

use std::fmt;

use layernorm::Result;
use layernorm::ndarray::{Array1, arr0, s};
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};

use crate::closed_form::{Outputs, fisher};
use crate::model::{Family, Glm, Norm, SIZES};
use crate::sampled::{self, Sampled};

/// What the inputs are multiplied by.
const SCALES: [f64; 3] = [0.1, 1.0, 10.0];

pub(crate) struct Gain {
    samples: usize,
    pub(crate) curves: Vec<Curve>,
}

pub(crate) struct Curve {
    pub(crate) norm: Norm,
    /// One for each of SCALES.
    pub(crate) points: Vec<Point>,
}

/// The trace of M.
pub(crate) struct Point {
    pub(crate) scale: f64,
    pub(crate) exact: f64,
    pub(crate) sampled: f64,
    error: f64,
}

pub(crate) fn measure(samples: usize, seed: u64) -> Result<Gain> {
    let curves = Norm::ALL.map(|norm| {
        let points = SCALES.map(|scale| point(norm, scale, samples, seed));
        Ok(Curve { norm, points: points.into_iter().collect::<Result<_>>()? })
    });
    Ok(Gain { samples, curves: curves.into_iter().collect::<Result<_>>()? })
}

fn point(norm: Norm, scale: f64, samples: usize, seed: u64) -> Result<Point> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut glm = Glm::random(norm, Family::Gaussian, SIZES, &mut rng);
    glm.x *= scale;
    let [.., gains] = glm.parts();
    let exact = fisher(&glm, Outputs::All)?.diag().slice(s![gains.clone()]).sum();
    let trace = |gradient: Array1<f64>| arr0(gradient.slice(s![gains.clone()]).pow2().sum());
    let Sampled { mean, error } = sampled::mean(&glm, samples, &mut rng, trace)?;
    Ok(Point { scale, exact, sampled: mean.into_scalar(), error: error.into_scalar() })
}

impl Curve {
    /// d ln M / d ln x between the ends, by formula and from samples.
    fn slopes(&self) -> [f64; 2] {
        let (first, last) = (&self.points[0], &self.points[2]);
        let slope = |m: fn(&Point) -> f64| (m(last) / m(first)).ln() / (last.scale / first.scale).ln();
        [slope(|point| point.exact), slope(|point| point.sampled)]
    }

    /// What theory says they are.
    fn expected(&self) -> f64 {
        if matches!(self.norm, Norm::Batch | Norm::Layer) { 0.0 } else { 2.0 }
    }
}

impl Gain {
    /// Whether the slopes are 0 and 2, and the samples near the formula.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        for curve in &self.curves {
            let (name, slopes) = (curve.norm.name(), curve.slopes());
            if !slopes.iter().all(|slope| (slope - curve.expected()).abs() < 1e-9) {
                return Err(format!("{name}: the gain's metric has slopes {slopes:?}, not {}", curve.expected()));
            }
            for Point { scale, exact, sampled, error } in &curve.points {
                let errors = (sampled - exact).abs() / error;
                if errors.is_nan() || errors > 5.0 {
                    return Err(format!("{name}, inputs x {scale}: {sampled} +- {error} sampled, {exact} by formula"));
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "(c) metric M along the gain, its trace: Gaussian y, {} sampled\n", self.samples)?;
        writeln!(f, "            inputs x 0.1         inputs x 1           inputs x 10          standard   slope in")?;
        writeln!(f, "             formula   sampled    formula   sampled    formula   sampled      error    log-log")?;
        for curve in &self.curves {
            write!(f, "{:<11}", curve.norm.name())?;
            for Point { exact, sampled, .. } in &curve.points {
                write!(f, " {exact:9.4} {sampled:9.4} ")?;
            }
            let Point { sampled, error, .. } = &curve.points[1];
            let slope = (1e4 * curve.slopes()[1]).round().abs() / 1e4;
            writeln!(f, "  {:6.2} %   {slope:8.4}", 100.0 * error / sampled)?;
        }
        writeln!(f, "\nWeight norm divides by the length of w_i and not by that of x: it is as the standard model.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_are_0_and_2() {
        for seed in 1..=3 {
            measure(1000, seed).unwrap().check().unwrap();
        }
    }
}
