//! What forward kept of rows, and what backward's passes need to know of them.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};

use crate::kernels::moments::Statistics;
use crate::kernels::normalize::Layer;
use crate::kernels::rescale::{rescale, rescued_at};
use crate::number::{LARGEST_BLOCK, Number, Wide, power_of_two};
use crate::simd::{Vector, splat, tree};

/// What forward kept of some rows, one number a row in each slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptRows<'a, T> {
    pub(crate) mean: &'a [T],
    pub(crate) low: &'a [T],
    pub(crate) rstd: &'a [T],
    pub(crate) exponent: &'a [i16],
}

impl<'a, T> KeptRows<'a, T> {
    /// Whether none of them had to be rescaled.
    #[inline(always)]
    pub(crate) fn are_plain(&self) -> bool {
        self.exponent.iter().all(
            #[inline(always)]
            |&exponent| exponent == 0,
        )
    }

    /// Some of the rows.
    pub(crate) fn rows(self, rows: Range<usize>) -> Self {
        Self {
            mean: &self.mean[rows.clone()],
            low: &self.low[rows.clone()],
            rstd: &self.rstd[rows.clone()],
            exponent: &self.exponent[rows],
        }
    }
}

/// Q and Σ q·(x − mean) of a block or a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums<W> {
    pub(crate) q: W,
    pub(crate) qd: W,
}

impl<W: Wide> Sums<W> {
    /// From the partial sums of a block.
    #[inline(always)]
    pub(crate) fn of_partial<S: Simd, T: Number<Wide = W>>(simd: S, q: Vector<S, T>, qd: Vector<S, T>) -> Self {
        let (q, qd) = (tree(simd, &mut [q])[0], tree(simd, &mut [qd])[0]);
        Self { q: W::default().add(q.into()), qd: W::default().add(qd.into()) }
    }

    /// To be kept.
    pub(crate) fn to_wide(self) -> [W; 2] {
        [self.q, self.qd]
    }

    /// As they were kept.
    pub(crate) fn from_wide([q, qd]: [W; 2]) -> Self {
        Self { q, qd }
    }

    /// With those of the block that follows.
    #[inline(always)]
    pub(crate) fn join(self, next: Self) -> Self {
        Self { q: self.q.join(next.q), qd: self.qd.join(next.qd) }
    }
}

/// What the first pass needs to know of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Row<T> {
    pub(crate) mean: T,
    pub(crate) low: T,
    pub(crate) rstd: T,
    pub(crate) exponent: i32,
}

impl<T: Number> Row<T> {
    /// A row that need not be rescaled.
    #[inline(always)]
    pub(crate) fn new(mean: T, low: T, rstd: T) -> Self {
        Self { mean, low, rstd, exponent: 0 }
    }

    /// As forward kept it.
    #[inline(always)]
    pub(crate) fn kept(kept: &KeptRows<'_, T>, row: usize) -> Self {
        Self::new(kept.mean[row], kept.low[row], kept.rstd[row])
    }

    /// As forward kept it, or in units of the rescaled row where it had to be.
    pub(crate) fn rescaled<S: Simd>(
        simd: S,
        layer: &Layer<'_, T>,
        kept: &KeptRows<'_, T>,
        row: usize,
        x: &[T],
    ) -> Self {
        let exponent = i32::from(kept.exponent[row]);
        if exponent == 0 {
            return Self::kept(kept, row);
        }
        let Statistics { mean, low, rstd, .. } = rescued_at(simd, x, layer.spread, exponent).statistics;
        Self { mean, low, rstd, exponent }
    }

    /// 2^-e: what a gradient in units of the rescaled row is multiplied by.
    #[inline(always)]
    pub(crate) fn scale<S: Simd>(&self, simd: S) -> Scale<Vector<S, T>> {
        // Two factors: 2^-e alone may be no number, where a gradient times it is.
        let half = -self.exponent / 2;
        let [first, second] = [half, -self.exponent - half].map(|half| T::nearest(power_of_two(half)));
        Scale([splat(simd, first), splat(simd, second)])
    }

    /// [`Row::coefficients`] of a row of several blocks.
    #[inline(always)]
    pub(crate) fn coefficients_of(&self, sums: Sums<T::Wide>, layer: &Layer<'_, T>) -> Coefficients<T> {
        self.coefficients(sums.q.value(), sums.qd.value(), layer)
    }

    /// Calls `f` with a block times the power of two, and with this row in these units.
    #[cold]
    #[inline(never)]
    pub(crate) fn with_rescaled<R>(&self, block: &[T], f: impl FnOnce(&Self, &[T]) -> R) -> R {
        let mut scaled = [T::zero(); LARGEST_BLOCK];
        let scaled = &mut scaled[..block.len()];
        rescale(block, self.exponent, scaled);
        f(&Self { exponent: 0, ..*self }, scaled)
    }

    /// k and m.
    #[inline(always)]
    pub(crate) fn coefficients(&self, q: f64, qd: f64, layer: &Layer<'_, T>) -> Coefficients<T> {
        let rstd: f64 = self.rstd.into();
        let n = layer.features as f64;
        let (k, d) = if layer.spread.centred { (q / n, qd - self.low.into() * q) } else { (0.0, qd) };
        Coefficients { k: T::nearest(k), m: T::nearest(rstd * rstd * (d / n)) }
    }
}

/// What backward reads of rows side by side.
#[derive(Clone, Copy)]
pub(crate) struct Rows<'a, T> {
    pub(crate) features: usize,
    pub(crate) kept: KeptRows<'a, T>,
    pub(crate) x: &'a [T],
    pub(crate) dy: &'a [T],
}

impl<'a, T: Number> Rows<'a, T> {
    pub(crate) fn count(&self) -> usize {
        self.kept.mean.len()
    }

    /// The first `rows` rows, and the others.
    pub(crate) fn split(self, rows: usize) -> (Self, Self) {
        let (first, second) = (self.kept.rows(0..rows), self.kept.rows(rows..self.count()));
        let (x, x_second) = self.x.split_at(rows * self.features);
        let (dy, dy_second) = self.dy.split_at(rows * self.features);
        (Self { kept: first, x, dy, ..self }, Self { kept: second, x: x_second, dy: dy_second, ..self })
    }

    /// x and dy of some columns of each.
    #[inline(always)]
    pub(crate) fn columns(self, columns: Range<usize>) -> impl Iterator<Item = (Row<T>, &'a [T], &'a [T])> {
        (0..self.count()).map(
            #[inline(always)]
            move |row| {
                let at = row * self.features + columns.start..row * self.features + columns.end;
                (Row::kept(&self.kept, row), &self.x[at.clone()], &self.dy[at])
            },
        )
    }
}

/// A power of two in every lane.
#[derive(Clone, Copy)]
pub(crate) struct Scale<V>([V; 2]);

impl<V: Copy> Scale<V> {
    /// x times this.
    #[inline(always)]
    pub(crate) fn times<S: Simd>(&self, x: V) -> V
    where
        V: SimdBase<S>,
    {
        x * self.0[0] * self.0[1]
    }
}

/// What the second pass needs to know of a row, beside [`Row`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Coefficients<T> {
    pub(crate) k: T,
    pub(crate) m: T,
}
