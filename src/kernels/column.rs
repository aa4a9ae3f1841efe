//! A column whose sums about its sample do not hold: far from the sample, or with squares that overflow or underflow.
//!
//! ```text
//! e = 0, or as for rows that are rescaled       x′ = x · 2^-e
//! h = x′₀, and then once more h = mean:
//!     s = Σ (x′ − h)       q = Σ (x′ − h)²       wide, one by one
//!     mean + low = h + s/N                       M = q − s²/N
//! ```
//!
//! Columns that are merely far from their sample (of a feature with a period, say) are taken some at a time, row by row as
//! they lie; the others are rare, or all of a batch that is wrong anyway, and are read one by one.

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

/// A column on its way through its rows, which it is given twice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passes<T: Number> {
    /// h
    near: T,
    low: T,
    sum: T::Wide,
    squares: T::Wide,
    /// M of the pass that ended.
    m: f64,
}

impl<T: Number> Passes<T> {
    /// How many passes there are.
    pub(crate) const COUNT: usize = 2;

    /// Of a column that begins so.
    pub(crate) fn new(first: T) -> Self {
        let zero = T::Wide::default();
        Self { near: first, low: T::zero(), sum: zero, squares: zero, m: 0.0 }
    }

    #[inline(always)]
    pub(crate) fn add(&mut self, x: T) {
        let d = x.into() - self.near.into();
        self.sum = self.sum.add(d);
        self.squares = self.squares.add(d * d);
    }

    /// Ends a pass: h becomes the mean.
    pub(crate) fn end(&mut self, count: Count) {
        let delta = self.sum.value() / count.rows;
        let m = self.squares.value() - self.sum.value() * delta;
        let (near, low) = T::split(T::Wide::default().add(self.near.into()).add(delta));
        *self = Self { low, m, ..Self::new(near) };
    }

    /// The statistics of a column whose elements were times 2^-`exponent`.
    pub(crate) fn column(&self, exponent: i32, count: Count, spread: Spread) -> Column<T> {
        let variance = if self.m < 0.0 { 0.0 } else { self.m / count.divisor };
        let rstd = T::nearest(rstd(variance + spread.rescaled(exponent).eps));
        Column { exponent, mean: self.near, low: self.low, variance, rstd }
    }
}

impl<T: Number> Column<T> {
    /// Whether its squares are within range: then it is right as it is, and not constant without an ε.
    pub(crate) fn holds(&self, spread: Spread) -> bool {
        spread.holds(self.variance)
    }

    /// Of a column of any scale: NaN if one of its elements is not finite.
    #[cold]
    pub(crate) fn new(x: impl Iterator<Item = T> + Clone, count: Count, spread: Spread) -> Self {
        let first = x.clone().next().expect("a column has at least one row");
        let Some(largest) = largest(x.clone()) else {
            let nan = T::nan();
            return Self { exponent: 0, mean: nan, low: nan, variance: f64::NAN, rstd: nan };
        };
        if x.clone().all(|x| x == first) {
            let rstd = T::nearest(rstd(spread.eps));
            return Self { exponent: 0, mean: first, low: T::zero(), variance: 0.0, rstd };
        }
        let plain = Self::at(x.clone(), 0, count, spread);
        if plain.holds(spread) { plain } else { Self::at(x, exponent_of(largest, spread), count, spread) }
    }

    /// Of a column whose exponent is known.
    #[cold]
    pub(crate) fn at(x: impl Iterator<Item = T> + Clone, exponent: i32, count: Count, spread: Spread) -> Self {
        let x = x.map(|x| times_power_of_two(x, -exponent));
        let mut passes = Passes::new(x.clone().next().expect("a column has at least one row"));
        for _ in 0..Passes::<T>::COUNT {
            x.clone().for_each(|x| passes.add(x));
            passes.end(count);
        }
        passes.column(exponent, count, spread)
    }

    /// In the column's own units.
    pub(crate) fn own(&self) -> Own<T> {
        let up = |x| times_power_of_two(x, self.exponent);
        Own {
            mean: up(self.mean),
            low: up(self.low),
            variance: up(up(T::nearest(self.variance))),
            rstd: times_power_of_two(self.rstd, -self.exponent),
        }
    }

    /// d of an element
    fn d(&self, x: T) -> T {
        (times_power_of_two(x, -self.exponent) - self.mean) - self.low
    }

    /// y of an element
    pub(crate) fn y(&self, x: T, gain: T, bias: T) -> T {
        self.d(x) * (self.rstd * gain) + bias
    }

    /// k, m and what dgain adds, from B and pairs of x and dy.
    #[cold]
    pub(crate) fn coefficients(&self, b: f64, pairs: impl Iterator<Item = (T, T)>, count: Count) -> (T, T, f64) {
        let mut sum = T::Wide::default();
        for (x, dy) in pairs {
            sum = sum.add(dy.into() * self.d(x).into());
        }
        let (d, r) = (sum.value(), self.rstd.into());
        (T::nearest(b / count.rows), T::nearest(r * r * (d / count.divisor)), r * d)
    }

    /// dx of an element
    pub(crate) fn dx(&self, x: T, dy: T, gain: T, (k, m): (T, T)) -> T {
        times_power_of_two(((dy - k) - self.d(x) * m) * (self.rstd * gain), -self.exponent)
    }
}
