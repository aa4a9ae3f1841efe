//! Means over y drawn from the model itself, with their standard errors.

use layernorm::Result;
use layernorm::ndarray::{Array, Array1, Array2, ArrayRef, Axis, Dimension, Zip};
use ndarray_rand::rand::{Rng, rngs::StdRng};

use crate::model::Glm;

/// A mean of samples.
pub(crate) struct Sampled<D: Dimension> {
    pub(crate) mean: Array<f64, D>,
    /// The standard error of each element.
    pub(crate) error: Array<f64, D>,
}

impl<D: Dimension> Sampled<D> {
    /// How many standard errors `expected` is off: root mean square over the elements, and largest.
    ///
    /// The root mean square of the right answer is about 1 if there are a thousand samples. Of few, all may miss what is
    /// rare, and then so does their spread.
    pub(crate) fn distance(&self, expected: &ArrayRef<f64, D>) -> (f64, f64) {
        let (mut sum, mut top) = (0.0, 0.0_f64);
        Zip::from(&self.mean).and(&self.error).and(expected).for_each(|mean, error, expected| {
            let errors = ((mean - expected) / error).abs();
            sum += errors * errors;
            top = top.max(errors);
        });
        ((sum / self.mean.len() as f64).sqrt(), top)
    }
}

/// The mean of a statistic of d ln P(y|x)/dθ, over cases x and outputs y of the model.
pub(crate) fn mean<D: Dimension>(
    glm: &Glm,
    samples: usize,
    rng: &mut StdRng,
    statistic: impl Fn(Array1<f64>) -> Array<f64, D>,
) -> Result<Sampled<D>> {
    let (z, back) = glm.forward()?;
    let mut draw = || {
        // Batch norm's statistics are those of all cases; the sampled one alone has a loss.
        let mut dz = Array2::zeros(z.dim());
        let case = rng.random_range(0..z.nrows());
        let z = z.row(case);
        dz.row_mut(case).assign(&(glm.family.draw(z, rng) - glm.family.mean(z)));
        Ok::<_, layernorm::Error>(statistic(back(&dz)?))
    };
    // Welford's recurrence: about the mean so far, so that nothing cancels.
    let mut mean = draw()?;
    let mut squares = Array::zeros(mean.raw_dim());
    for count in 2..=samples {
        Zip::from(&mut mean).and(&mut squares).and(&draw()?).for_each(|mean, squares, &value| {
            let difference = value - *mean;
            *mean += difference / count as f64;
            *squares += difference * (value - *mean);
        });
    }
    let count = samples as f64;
    Ok(Sampled { mean, error: squares.mapv(|squares: f64| (squares / (count * (count - 1.0))).sqrt()) })
}

/// g·gᵀ, whose mean is the Fisher information: `[parameters, parameters]`
pub(crate) fn outer(gradient: Array1<f64>) -> Array2<f64> {
    gradient.view().insert_axis(Axis(1)).dot(&gradient.view().insert_axis(Axis(0)))
}

#[cfg(test)]
mod tests {
    use ndarray_rand::rand::SeedableRng;

    use super::*;
    use crate::model::{Family, Norm};

    #[test]
    fn a_gradient_is_0_in_the_mean() {
        // What the mean should be is known here, and its error is 1/√samples times a spread.
        let mut rng = StdRng::seed_from_u64(1);
        for (norm, family) in Norm::ALL.into_iter().flat_map(|norm| [(norm, Family::Softmax), (norm, Family::Gaussian)])
        {
            let glm = Glm::random(norm, family, [6, 4, 5], &mut rng);
            let sampled = mean(&glm, 2000, &mut rng, |gradient| gradient).unwrap();
            let (rms, largest) = sampled.distance(&Array1::zeros(sampled.mean.len()));
            assert!(rms < 2.0 && largest < 5.0, "{norm:?}, {family:?}: {rms} and {largest} standard errors");
        }
    }
}
