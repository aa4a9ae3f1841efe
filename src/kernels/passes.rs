//! The two passes over a block of a row, vector by vector; the page of [`backward`](super::backward) has the equations.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};

use crate::kernels::moments::Statistics;
use crate::kernels::normalize::Layer;
use crate::kernels::rescale::{rescale, rescued_at};
use crate::number::{LARGEST_BLOCK, Number, Wide};
use crate::simd::{TURNS, Tail, Turns, Vector, load, splat, tree, vectors};

/// What forward kept of some rows, one number a row in each slice.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeptRows<'a, T> {
    pub(crate) mean: &'a [T],
    pub(crate) low: &'a [T],
    pub(crate) rstd: &'a [T],
    pub(crate) exponent: &'a [i16],
}

impl<'a, T> KeptRows<'a, T> {
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
    pub(crate) fn of_partial<S: Simd, T: Number<Wide = W>>(q: Vector<S, T>, qd: Vector<S, T>) -> Self {
        let (q, qd) = (tree(&mut [q])[0], tree(&mut [qd])[0]);
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

/// Column sums of at most [`CHAIN`](crate::kernels::columns::CHAIN) rows.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    pub(crate) dgain: &'a mut [T],
    pub(crate) dbias: &'a mut [T],
}

impl<T> Columns<'_, T> {
    /// Those of some features.
    #[inline(always)]
    pub(crate) fn part(&mut self, features: Range<usize>) -> Columns<'_, T> {
        Columns { dgain: &mut self.dgain[features.clone()], dbias: &mut self.dbias[features] }
    }
}

/// What the first pass needs to know of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Row<T> {
    mean: T,
    low: T,
    rstd: T,
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
        let Statistics { mean, low, rstd, .. } = rescued_at(simd, x, layer.epsilon, exponent).statistics;
        Self { mean, low, rstd, exponent }
    }

    /// [`Row::coefficients`] of a row of several blocks.
    #[inline(always)]
    pub(crate) fn coefficients_of(&self, sums: Sums<T::Wide>, features: usize) -> Coefficients<T> {
        self.coefficients(sums.q.value(), sums.qd.value(), features)
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
    pub(crate) fn coefficients(&self, q: f64, qd: f64, features: usize) -> Coefficients<T> {
        let rstd: f64 = self.rstd.into();
        let d = qd - self.low.into() * q;
        let n = features as f64;
        Coefficients { k: T::from_f64(q / n), m: T::from_f64(rstd * rstd * (d / n)) }
    }
}

/// What the second pass needs to know of a row, beside [`Row`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Coefficients<T> {
    pub(crate) k: T,
    pub(crate) m: T,
}

/// The partial sums of Q and Σ q·(x − mean) of a block.
struct Partial<V> {
    row: First<V>,
    q: Turns<V>,
    qd: Turns<V>,
}

impl<V: Copy> Partial<V> {
    #[inline(always)]
    fn new<S: Simd, T: Number<Vector<S> = V>>(simd: S, row: &Row<T>) -> Self {
        let zero = splat(simd, T::zero());
        let row = First { mean: splat(simd, row.mean), rstd: splat(simd, row.rstd) };
        Self { row, q: [zero, zero], qd: [zero, zero] }
    }

    /// With a vector of the block.
    #[inline(always)]
    fn add<S: Simd>(&mut self, turn: usize, gain: V, x: V, dy: V)
    where
        V: SimdBase<S>,
    {
        let q = gain * (dy * self.row.rstd);
        self.q[turn] += q;
        self.qd[turn] += q * (x - self.row.mean);
    }

    /// With the tail of the block: the partial sums.
    #[inline(always)]
    fn end<S: Simd, T: Number<Vector<S> = V>>(mut self, simd: S, tail: &Tail<S, T>, block: &Read<'_, T>) -> (V, V)
    where
        V: SimdBase<S>,
    {
        if !tail.is_empty() {
            // Filled up with zeros, which add nothing.
            let zero = splat(simd, T::zero());
            let (gain, dy) = (tail.load(block.gain, zero), tail.load(block.dy, zero));
            self.add(tail.turn, gain, tail.load(block.x, self.row.mean), dy);
        }
        (self.q[0] + self.q[1], self.qd[0] + self.qd[1])
    }
}

/// A block of a row to be read.
pub(crate) struct Read<'a, T> {
    pub(crate) gain: &'a [T],
    pub(crate) x: &'a [T],
    pub(crate) dy: &'a [T],
}

/// What the first pass needs of a row, in every lane.
#[derive(Clone, Copy)]
struct First<V> {
    mean: V,
    rstd: V,
}

/// What the second pass needs of a row, in every lane.
#[derive(Clone, Copy)]
pub(crate) struct Second<V> {
    mean: V,
    low: V,
    rstd: V,
    k: V,
    m: V,
}

impl<V: Copy> Second<V> {
    #[inline(always)]
    pub(crate) fn new<S: Simd, T: Number<Vector<S> = V>>(
        simd: S,
        row: &Row<T>,
        coefficients: &Coefficients<T>,
    ) -> Self {
        Self {
            mean: splat(simd, row.mean),
            low: splat(simd, row.low),
            rstd: splat(simd, row.rstd),
            k: splat(simd, coefficients.k),
            m: splat(simd, coefficients.m),
        }
    }

    /// dx and p·d.
    #[inline(always)]
    fn gradients<S: Simd>(&self, gain: V, x: V, dy: V) -> (V, V)
    where
        V: SimdBase<S>,
    {
        let d = (x - self.mean) - self.low;
        let p = dy * self.rstd;
        ((gain * p - self.k) - d * self.m, p * d)
    }
}

/// The second pass over a block of each of `P` rows.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn gradients<S: Simd, T: Number, const P: usize>(
    simd: S,
    tail: &Tail<S, T>,
    gain: &[T],
    rows: &[Second<Vector<S, T>>; P],
    x: [&[T]; P],
    dy: [&[T]; P],
    mut dx: [&mut [T]; P],
    columns: &mut Columns<'_, T>,
) {
    let Columns { dgain, dbias } = columns;
    let gains = T::chunks(gain).0;
    let count = gains.len();
    {
        let (dgains, dbiases) = (&mut T::chunks_mut(dgain).0[..count], &mut T::chunks_mut(dbias).0[..count]);
        let (x, dy) = (x.map(|x| &T::chunks(x).0[..count]), dy.map(|dy| &T::chunks(dy).0[..count]));
        let dx = dx.each_mut().map(|dx| &mut T::chunks_mut(dx).0[..count]);
        for i in 0..count {
            let gain = load::<S, T>(simd, &gains[i]);
            let (mut dgain, mut dbias) = (load::<S, T>(simd, &dgains[i]), load::<S, T>(simd, &dbiases[i]));
            for r in 0..P {
                let dy = load::<S, T>(simd, &dy[r][i]);
                let (result, pd) = rows[r].gradients(gain, load::<S, T>(simd, &x[r][i]), dy);
                result.store_array(&mut dx[r][i]);
                dgain += pd;
                dbias += dy;
            }
            dgain.store_array(&mut dgains[i]);
            dbias.store_array(&mut dbiases[i]);
        }
    }
    if tail.is_empty() {
        return;
    }
    let zero = splat(simd, T::zero());
    let (mut dgains, mut dbiases) = (tail.load_all(dgain), tail.load_all(dbias));
    for r in 0..P {
        let dy = tail.load_all(dy[r]);
        let (result, pd) = rows[r].gradients(tail.load_all(gain), tail.load_all(x[r]), dy);
        tail.store_all(result, dx[r]);
        dgains += tail.keep(pd, zero);
        dbiases += tail.keep(dy, zero);
    }
    tail.store_all(dgains, dgain);
    tail.store_all(dbiases, dbias);
}

/// The first pass over a block.
#[inline(always)]
pub(crate) fn partial_sums<S: Simd, T: Number>(
    simd: S,
    tail: &Tail<S, T>,
    row: &Row<T>,
    block: &Read<'_, T>,
) -> (Vector<S, T>, Vector<S, T>) {
    let mut partial = Partial::new(simd, row);
    let (gain, x, dy) = (vectors(block.gain), vectors(block.x), vectors(block.dy));
    for ((gain, x), dy) in gain.pairs.iter().zip(x.pairs).zip(dy.pairs) {
        for t in 0..TURNS {
            partial.add(t, load::<S, T>(simd, &gain[t]), load::<S, T>(simd, &x[t]), load::<S, T>(simd, &dy[t]));
        }
    }
    if let (Some(gain), Some(x), Some(dy)) = (gain.odd, x.odd, dy.odd) {
        partial.add(0, load::<S, T>(simd, gain), load::<S, T>(simd, x), load::<S, T>(simd, dy));
    }
    partial.end(simd, tail, block)
}
