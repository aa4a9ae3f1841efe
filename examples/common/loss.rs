//! Softmax cross-entropy: −ln p(label) with p = softmax(outputs).

use layernorm::ndarray::{Array2, ArrayView1, Zip};

/// Sums over the rows measured so far.
#[derive(Clone, Copy, Default)]
pub(crate) struct Score {
    rows: usize,
    errors: usize,
    nll: f64,
}

impl Score {
    /// Adds a batch.
    pub(crate) fn add(&mut self, outputs: &Array2<f32>, labels: &[u8]) {
        for (z, &label) in outputs.rows().into_iter().zip(labels) {
            let (top, log_sum) = log_sum_exp(z);
            let label = label as usize;
            self.rows += 1;
            // Asked this way round, NaN is an error.
            let hit = (0..z.len()).all(|class| class == label || z[class] < z[label]);
            self.errors += usize::from(!hit);
            self.nll += log_sum - f64::from(z[label] - top);
        }
    }

    /// Mean negative log likelihood, in nats.
    pub(crate) fn nll(&self) -> f64 {
        self.nll / self.rows as f64
    }

    /// Per cent of rows in which another class has the largest output, or one as large.
    pub(crate) fn error(&self) -> f64 {
        100.0 * self.errors as f64 / self.rows as f64
    }
}

/// Overwrites `doutputs` with the gradient of the batch's mean: (p − 1 at the label) / rows.
pub(crate) fn gradient(outputs: &Array2<f32>, labels: &[u8], doutputs: &mut Array2<f32>) {
    let rows = outputs.nrows() as f64;
    for ((z, mut dz), &label) in outputs.rows().into_iter().zip(doutputs.rows_mut()).zip(labels) {
        let (top, log_sum) = log_sum_exp(z);
        Zip::indexed(&mut dz).and(z).for_each(|class, dz, &z| {
            let p = (f64::from(z - top) - log_sum).exp();
            let hit = if class == label as usize { 1.0 } else { 0.0 };
            *dz = ((p - hit) / rows) as f32;
        });
    }
}

/// The largest z, and ln Σ exp(z − largest): no exponential overflows.
///
/// In f64, because a well trained network has p(label) so near 1 that its logarithm would be 0 in f32.
fn log_sum_exp(z: ArrayView1<'_, f32>) -> (f32, f64) {
    let top = z.fold(f32::NEG_INFINITY, |top, &z| top.max(z));
    let sum: f64 = z.iter().map(|&z| f64::from(z - top).exp()).sum();
    (top, sum.ln())
}

#[cfg(test)]
mod tests {
    use layernorm::ndarray::array;

    use super::*;

    #[test]
    fn equal_outputs_are_an_error_of_ln_classes() {
        let mut score = Score::default();
        score.add(&array![[5.0, 5.0, 5.0, 5.0]], &[2]);
        assert_eq!(score.error(), 100.0);
        assert!((score.nll() - 4.0_f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn large_outputs_neither_overflow_nor_vanish() {
        let mut score = Score::default();
        score.add(&array![[1000.0, 980.0]], &[0]);
        let expected = (-20.0_f64).exp().ln_1p();
        assert!((score.nll() / expected - 1.0).abs() < 1e-6, "{} instead of {expected}", score.nll());
    }

    #[test]
    fn nan_is_not_a_hit() {
        let mut score = Score::default();
        score.add(&array![[f32::NAN, f32::NAN]], &[0]);
        assert_eq!(score.error(), 100.0);
        assert!(score.nll().is_nan());
    }

    #[test]
    fn gradient_is_the_slope() {
        let (outputs, labels) = (array![[0.5, -1.0, 2.0], [0.0, 3.0, 1.0]], [2, 0]);
        let loss = |outputs: &Array2<f32>| {
            let mut score = Score::default();
            score.add(outputs, &labels);
            score.nll()
        };
        let mut doutputs = Array2::from_elem((2, 3), f32::NAN);
        gradient(&outputs, &labels, &mut doutputs);

        // A power of two, so that z ± h is exact; the slope's error is about h²/6.
        let h = 1.0 / 256.0;
        for (at, &got) in doutputs.indexed_iter() {
            let (mut up, mut down) = (outputs.clone(), outputs.clone());
            up[at] += h;
            down[at] -= h;
            let slope = (loss(&up) - loss(&down)) / (2.0 * f64::from(h));
            assert!((f64::from(got) - slope).abs() < 1e-5, "doutputs{at:?}: got {got}, slope {slope}");
        }
    }
}
