//! No time without a right result: how far a contestant is from the textbook in double-double.

use textbook::Gradients;

use crate::contestant::{Contestant, EPS, Input};

/// More than the worst rounding of a contestant here, less than what any mistake in a formula makes.
const WRONG: f64 = 1e-2;

/// The largest error: of y and dx relative to the largest |y| and |dx| of their row, of dgain and dbias relative to
/// the largest there is.
#[derive(Clone, Copy)]
pub(crate) struct Errors {
    pub(crate) y: f64,
    pub(crate) dx: f64,
    pub(crate) dgain: f64,
    pub(crate) dbias: f64,
}

pub(crate) struct Oracle {
    features: usize,
    y: Vec<f64>,
    gradients: Gradients,
}

impl Oracle {
    pub(crate) fn new(input: &Input) -> Self {
        let wide = |narrow: &[f32]| narrow.iter().copied().map(f64::from).collect::<Vec<_>>();
        let (x, gain, bias) = (wide(&input.x), wide(&input.gain), wide(&input.bias));
        let (rows, features, eps) = (input.rows, input.features, f64::from(EPS));
        Self {
            features,
            y: x.chunks(features).flat_map(|x| textbook::forward(x, Some(&gain), Some(&bias), eps).y).collect(),
            gradients: textbook::backward(&x, rows, features, Some(&gain), eps, &vec![1.0; x.len()]),
        }
    }

    /// # Panics
    ///
    /// If the contestant computes something else than layer normalization.
    pub(crate) fn errors(&self, contestant: &mut dyn Contestant) -> Errors {
        let got = contestant.outcome();
        let Gradients { dx, dgain, dbias } = &self.gradients;
        let errors = Errors {
            y: worst(&got.y, &self.y, self.features),
            dx: worst(&got.dx, dx, self.features),
            dgain: worst(&got.dgain, dgain, self.features),
            dbias: worst(&got.dbias, dbias, self.features),
        };
        for (name, error) in [("y", errors.y), ("dx", errors.dx), ("dgain", errors.dgain), ("dbias", errors.dbias)] {
            assert!(error < WRONG, "{name} is off by {error:e} of the largest");
        }
        errors
    }
}

/// The largest |got − right| of any row, relative to the largest |right| of that row; NaN if any is.
fn worst(got: &[f32], right: &[f64], features: usize) -> f64 {
    assert_eq!(got.len(), right.len());
    let mut worst = 0.0;
    for (got, right) in got.chunks(features).zip(right.chunks(features)) {
        let largest = right.iter().fold(0.0, |largest: f64, right| largest.max(right.abs()));
        for (&got, right) in got.iter().zip(right) {
            let error = (f64::from(got) - right).abs() / largest;
            if error.is_nan() || error > worst {
                worst = error;
            }
        }
    }
    worst
}
