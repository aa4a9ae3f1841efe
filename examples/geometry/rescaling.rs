//! (b) What becomes of a gradient and of the Fisher information F of W when weights grow.
//!
//! ```text
//! W → cW      of any normalized model          dW → dW/c      F → F/c²
//! wᵢ → cwᵢ    of batch and weight norm         dwᵢ → dwᵢ/c    Fᵢᵢ → Fᵢᵢ/c²    Fᵢⱼ → Fᵢⱼ/c
//! ```
//!
//! Fᵢⱼ is the block of two rows. The paper says that the curvature changes by 1/2 when wᵢ is doubled: so do the gradient
//! and the blocks with other rows.
//!
//! A model that does not see the change draws the same y from the same seed, so that not even samples differ.

use std::fmt;

use layernorm::Result;
use layernorm::ndarray::{Array2, Axis, s};
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};

use crate::common::largest::largest;
use crate::model::{Family, Glm, Norm, SIZES};
use crate::sampled::{self, outer};

/// Enough to have every element of F.
const SAMPLES: usize = 1000;

/// c: only the last one rounds.
const FACTORS: [f64; 3] = [0.25, 2.0, 10.0];

/// What is multiplied, how many rows of W that are, and the powers of 1/c that multiply dwᵢ, Fᵢᵢ and Fᵢⱼ.
const CHANGES: [(Norm, &str, usize, [i32; 3]); 5] = [
    (Norm::Weight, "W", SIZES[2], [1, 2, 2]),
    (Norm::Batch, "W", SIZES[2], [1, 2, 2]),
    (Norm::Layer, "W", SIZES[2], [1, 2, 2]),
    (Norm::Weight, "w_i", 1, [1, 2, 1]),
    (Norm::Batch, "w_i", 1, [1, 2, 1]),
];

pub(crate) struct Rescaling {
    rows: Vec<Row>,
}

struct Row {
    norm: Norm,
    what: &'static str,
    /// For each of FACTORS, what dwᵢ, Fᵢᵢ and Fᵢⱼ are multiplied by.
    ratios: Vec<Vec<f64>>,
    /// For each of FACTORS, how far an element is from the power of c, in units of the largest.
    defects: Vec<f64>,
}

pub(crate) fn measure(seed: u64) -> Result<Rescaling> {
    let rows = CHANGES.map(|(norm, what, multiplied, powers)| {
        let glm = Glm::random(norm, Family::Softmax, SIZES, &mut StdRng::seed_from_u64(seed));
        let before = metric(&glm, seed)?;
        let mut row = Row { norm, what, ratios: Vec::new(), defects: Vec::new() };
        for factor in FACTORS {
            let mut glm = glm.clone();
            glm.weight.slice_mut(s![..multiplied, ..]).map_inplace(|w| *w *= factor);
            let after = metric(&glm, seed)?;
            let pairs = || after.iter().zip(&before);
            let ratios = pairs().map(|(after, before)| (after * before).sum() / before.pow2().sum());
            let defects = pairs().zip(powers).map(|((after, before), power)| {
                let differences = after * factor.powi(power) - before;
                largest(differences) / largest(before.iter().copied())
            });
            row.defects.push(largest(defects));
            row.ratios.push(ratios.collect());
        }
        Ok(row)
    });
    Ok(Rescaling { rows: rows.into_iter().collect::<Result<_>>()? })
}

/// The gradient by the first row of W for one y; of the Fisher information, the block of that row and those with others.
fn metric(glm: &Glm, seed: u64) -> Result<[Array2<f64>; 3]> {
    let [weights, ..] = glm.parts();
    let inputs = glm.weight.ncols();
    let (z, back) = glm.forward()?;
    let dz = Array2::from_shape_fn(z.dim(), |(case, output)| if case % z.ncols() == output { 1.0 } else { -0.25 });
    let gradient = back(&dz)?.slice_move(s![..inputs]).insert_axis(Axis(0));
    let fisher = sampled::mean(glm, SAMPLES, &mut StdRng::seed_from_u64(seed), outer)?.mean;
    let block = |columns| fisher.slice(s![..inputs, columns]).to_owned();
    Ok([gradient, block(0..inputs), block(inputs..weights.end)])
}

impl Rescaling {
    /// Whether every factor is a power of 1/c, but for rounding.
    pub(crate) fn check(&self) -> std::result::Result<(), String> {
        match self.rows.iter().find(|row| !row.defects.iter().all(|&defect| defect < 1e-12)) {
            Some(Row { norm, what, defects, .. }) => {
                Err(format!("{}: {what} multiplied by {FACTORS:?} is off by {defects:?}", norm.name()))
            }
            None => Ok(()),
        }
    }
}

impl fmt::Display for Rescaling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "(b) weights times c: gradient and Fisher information F of W, {SAMPLES} sampled y\n")?;
        writeln!(f, "                   c = 2 multiplies           largest defect from the powers of 1/c")?;
        writeln!(f, "                   dw_i     F_ii     F_ij     c = 1/4    c = 2   c = 10")?;
        for Row { norm, what, ratios, defects } in &self.rows {
            write!(f, "{:<11} {what:<6}", norm.name())?;
            for ratio in &ratios[1] {
                write!(f, " {ratio:<8}")?;
            }
            for defect in defects {
                let defect = if *defect == 0.0 { "0".into() } else { format!("{defect:.0e}") };
                write!(f, " {defect:>8}")?;
            }
            writeln!(f)?;
        }
        writeln!(f, "\nPowers of two do not round. The paper's factor of 1/2 is that of dw_i and F_ij; F_ii quarters.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_divide_without_rounding() {
        for seed in 1..=5 {
            for Row { norm, what, ratios, defects } in measure(seed).unwrap().rows {
                let here = format!("{norm:?}, {what}, seed {seed}");
                assert_eq!(defects[..2], [0.0, 0.0], "{here}");
                let others = if what == "W" { 0.25 } else { 0.5 };
                assert_eq!(ratios[1], [0.5, 0.25, others], "{here}");
            }
        }
    }
}
