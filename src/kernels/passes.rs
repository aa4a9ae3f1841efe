//! The two passes over a block of a row, vector by vector; the page of [`backward`](super::backward) has the equations.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};

use crate::kernels::moments::Statistics;
use crate::kernels::normalize::Layer;
use crate::kernels::rescale::{rescale, rescued_at};
use crate::number::{LARGEST_BLOCK, Number, Wide};
use crate::simd::{TURNS, Tail, Turns, Vector, load, splat, tree, vectors, vectors_mut};

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

/// What the first pass needs to know of a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Row<T> {
    mean: T,
    low: T,
    rstd: T,
    pub(crate) exponent: i32,
}

impl<T: Number> Row<T> {
    /// As forward kept it.
    #[inline(always)]
    pub(crate) fn kept(kept: &KeptRows<'_, T>, row: usize) -> Self {
        Self { mean: kept.mean[row], low: kept.low[row], rstd: kept.rstd[row], exponent: 0 }
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
    pub(crate) fn coefficients(&self, sums: Sums<T::Wide>, features: usize) -> Coefficients<T> {
        let (q, rstd): (_, f64) = (sums.q.value(), self.rstd.into());
        let d = sums.qd.value() - self.low.into() * q;
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

/// A block of a row to be written, and the columns it is added to.
pub(crate) struct Write<'a, T> {
    pub(crate) dx: &'a mut [T],
    pub(crate) dgain: &'a mut [T],
    pub(crate) dbias: &'a mut [T],
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

    /// Fills `dx`, adds to the columns.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
    fn step<S: Simd>(
        &self,
        simd: S,
        gain: V,
        x: &V::Array,
        dy: &V::Array,
        dx: &mut V::Array,
        dgain: &mut V::Array,
        dbias: &mut V::Array,
    ) where
        V: SimdBase<S>,
    {
        let load = V::load_array_ref;
        let dy = load(simd, dy);
        let (result, pd) = self.gradients(gain, load(simd, x), dy);
        result.store_array(dx);
        (load(simd, dgain) + pd).store_array(dgain);
        (load(simd, dbias) + dy).store_array(dbias);
    }

    /// [`Second::step`] for the tail of a block.
    #[inline(always)]
    fn step_tail<S: Simd, T: Number<Vector<S> = V>>(
        &self,
        simd: S,
        tail: &Tail<S, T>,
        read: &Read<'_, T>,
        write: &mut Write<'_, T>,
    ) where
        V: SimdBase<S>,
    {
        if tail.is_empty() {
            return;
        }
        let zero = splat(simd, T::zero());
        let dy = tail.load_all(read.dy);
        let (result, pd) = self.gradients(tail.load_all(read.gain), tail.load_all(read.x), dy);
        tail.store_all(result, write.dx);
        tail.store_all(tail.load_all(write.dgain) + tail.keep(pd, zero), write.dgain);
        tail.store_all(tail.load_all(write.dbias) + tail.keep(dy, zero), write.dbias);
    }
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

/// The second pass over a block.
#[inline(always)]
pub(crate) fn gradients<S: Simd, T: Number>(
    simd: S,
    tail: &Tail<S, T>,
    row: &Second<Vector<S, T>>,
    read: &Read<'_, T>,
    mut write: Write<'_, T>,
) {
    let arrays = T::chunks(read.x).0.iter().zip(T::chunks(read.dy).0).zip(T::chunks_mut(write.dx).0);
    let columns = T::chunks_mut(write.dgain).0.iter_mut().zip(T::chunks_mut(write.dbias).0);
    for (((x, dy), dx), (gain, (dgain, dbias))) in arrays.zip(T::chunks(read.gain).0.iter().zip(columns)) {
        row.step(simd, load::<S, T>(simd, gain), x, dy, dx, dgain, dbias);
    }
    row.step_tail(simd, tail, read, &mut write);
}

/// The second pass over a block of one row, and the first over a block `ahead`, of the row `next`.
#[inline(always)]
pub(crate) fn gradients_and_sums<S: Simd, T: Number>(
    simd: S,
    tail: &Tail<S, T>,
    row: &Second<Vector<S, T>>,
    read: &Read<'_, T>,
    mut write: Write<'_, T>,
    next: &Row<T>,
    ahead: &Read<'_, T>,
) -> (Vector<S, T>, Vector<S, T>) {
    let mut partial = Partial::new(simd, next);
    let (gain_, x_, dy_, dx_) = (vectors(read.gain), vectors(read.x), vectors(read.dy), vectors_mut(write.dx));
    let (dgain_, dbias_) = (vectors_mut(write.dgain), vectors_mut(write.dbias));
    let (x_ahead, dy_ahead) = (vectors(ahead.x), vectors(ahead.dy));
    let arrays = x_.pairs.iter().zip(dy_.pairs).zip(dx_.pairs).zip(x_ahead.pairs.iter().zip(dy_ahead.pairs));
    let columns = gain_.pairs.iter().zip(dgain_.pairs.iter_mut().zip(dbias_.pairs));
    for ((((x, dy), dx), (x_ahead, dy_ahead)), (gain, (dgain, dbias))) in arrays.zip(columns) {
        for t in 0..TURNS {
            let gain = load::<S, T>(simd, &gain[t]);
            partial.add(t, gain, load::<S, T>(simd, &x_ahead[t]), load::<S, T>(simd, &dy_ahead[t]));
            row.step(simd, gain, &x[t], &dy[t], &mut dx[t], &mut dgain[t], &mut dbias[t]);
        }
    }
    if let (Some(gain), Some(x), Some(dy), Some(dx)) = (gain_.odd, x_.odd, dy_.odd, dx_.odd)
        && let (Some(dgain), Some(dbias)) = (dgain_.odd, dbias_.odd)
        && let (Some(x_ahead), Some(dy_ahead)) = (x_ahead.odd, dy_ahead.odd)
    {
        let gain = load::<S, T>(simd, gain);
        partial.add(0, gain, load::<S, T>(simd, x_ahead), load::<S, T>(simd, dy_ahead));
        row.step(simd, gain, x, dy, dx, dgain, dbias);
    }
    row.step_tail(simd, tail, read, &mut write);
    partial.end(simd, tail, ahead)
}
