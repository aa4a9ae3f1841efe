//! A column whose sums about its sample do not hold: far from the sample, or with squares that overflow or underflow.
//!
//! ```text
//! e = 0, or as for rows that are rescaled       x′ = x · 2^-e
//! h = x′₀, and then once more h = mean:
//!     s = Σ (x′ − h)       q = Σ (x′ − h)²       wide, one by one
//!     mean + low = h + s/N                       M = q − s²/N
//! ```
//!
//! Such columns are rare, or all of a batch that is wrong anyway, so they are read element by element where they lie.

use crate::kernels::batch::Count;
use crate::kernels::moments::{Spread, rstd};
use crate::kernels::rescale::{exponent_of, largest};
use crate::number::{Number, Wide, times_power_of_two};

/// The statistics of a column, in units of the column times 2^-exponent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column<T> {
    pub(crate) exponent: i32,
    mean: T,
    low: T,
    variance: f64,
    rstd: T,
}

/// Mean, low, variance and rstd in the column's own units, as far as they are numbers there.
pub(crate) struct Own<T> {
    pub(crate) mean: T,
    pub(crate) low: T,
    pub(crate) variance: T,
    pub(crate) rstd: T,
}

impl<T: Number> Column<T> {
    /// Of a column of any scale: NaN if one of its elements is not finite.
    #[cold]
    pub(crate) fn new(x: impl Iterator<Item = T> + Clone, count: Count, spread: Spread) -> Self {
        let first = x.clone().next().expect("a column has at least one row");
        let Some(largest) = largest(x.clone()) else {
            let nan = T::nan();
            return Self { exponent: 0, mean: nan, low: nan, variance: f64::NAN, rstd: nan };
        };
        if x.clone().all(|x| x == first) {
            let rstd = T::from_f64(rstd(spread.eps));
            return Self { exponent: 0, mean: first, low: T::zero(), variance: 0.0, rstd };
        }
        let plain = Self::at(x.clone(), 0, count, spread);
        if spread.holds(plain.variance) { plain } else { Self::at(x, exponent_of(largest, spread), count, spread) }
    }

    /// Of a column whose exponent is known.
    #[cold]
    pub(crate) fn at(x: impl Iterator<Item = T> + Clone, exponent: i32, count: Count, spread: Spread) -> Self {
        let x = x.map(|x| times_power_of_two(x, -exponent));
        let mut near = x.clone().next().expect("a column has at least one row");
        let mut squares = 0.0;
        let mut low = T::zero();
        for _ in 0..2 {
            let (mut sum, mut sum_of_squares) = (T::Wide::default(), T::Wide::default());
            for x in x.clone() {
                let d = x.into() - near.into();
                sum = sum.add(d);
                sum_of_squares = sum_of_squares.add(d * d);
            }
            let delta = sum.value() / count.rows;
            squares = sum_of_squares.value() - sum.value() * delta;
            (near, low) = T::split(T::Wide::default().add(near.into()).add(delta));
        }
        let variance = if squares < 0.0 { 0.0 } else { squares / count.divisor };
        let rstd = T::from_f64(rstd(variance + spread.rescaled(exponent).eps));
        Self { exponent, mean: near, low, variance, rstd }
    }

    /// In the column's own units.
    pub(crate) fn own(&self) -> Own<T> {
        let up = |x| times_power_of_two(x, self.exponent);
        Own {
            mean: up(self.mean),
            low: up(self.low),
            variance: up(up(T::from_f64(self.variance))),
            rstd: times_power_of_two(self.rstd, -self.exponent),
        }
    }

    /// d of an element
    fn d(&self, x: T) -> T {
        (times_power_of_two(x, -self.exponent) - self.mean) - self.low
    }

    /// y of an element
    pub(crate) fn y(&self, x: T, gain: T, bias: T) -> T {
        self.d(x) * self.rstd * gain + bias
    }

    /// k, m and what dgain adds, from B and pairs of x and dy.
    #[cold]
    pub(crate) fn coefficients(&self, b: f64, pairs: impl Iterator<Item = (T, T)>, count: Count) -> (T, T, f64) {
        let mut sum = T::Wide::default();
        for (x, dy) in pairs {
            sum = sum.add(dy.into() * self.d(x).into());
        }
        let (d, r) = (sum.value(), self.rstd.into());
        (T::from_f64(b / count.rows), T::from_f64(r * r * (d / count.divisor)), r * d)
    }

    /// dx of an element
    pub(crate) fn dx(&self, x: T, dy: T, gain: T, (k, m): (T, T)) -> T {
        times_power_of_two(((dy - k) - self.d(x) * m) * (self.rstd * gain), -self.exponent)
    }
}
