//! dx of a row, and what it adds to dgain and dbias.
//!
//! ```text
//! each row:                              (docs/backward.md; letters as there)
//!     d = (x − mean) − low               x̂ = d·rstd
//!     p = dy · rstd
//!     q = gain · p
//!     first pass:   Q = Σ q,   D = Σ q·(x − mean) − low·Q          = Σ q·d
//!     k = Q/n,   m = rstd²·D/n
//!     second pass:  dx = (q − k) − d·m
//!                   dgain += p·d
//!                   dbias += dy
//!
//! R rows at a time: the second pass of these with the first pass of the next R, block by block
//! ```
//!
//! Q and D are sums as in [`moments`](super::moments): turns and tree in a block, blocks joined in order, wide. d is
//! computed again, not stored: two subtractions cost less than a load and a store. rstd goes into q, so that dx needs
//! no multiplication of its own, and k has the rounding of q: of one feature, q − k is 0.

#![doc = include_str!("../../docs/backward.md")]

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::moments::Statistics;
use crate::kernels::normalize::Layer;
use crate::kernels::rescale::{rescale, rescued_at};
use crate::number::{LARGEST_BLOCK, Number, Wide, times_power_of_two};
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

/// Features up to which rows are taken eight at a time: their reductions are a large part of the work.
const SHORT: usize = 128;

/// Column sums of at most [`CHAIN`](crate::kernels::columns::CHAIN) rows.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    pub(crate) dgain: &'a mut [T],
    pub(crate) dbias: &'a mut [T],
}

impl<T> Columns<'_, T> {
    /// Those of some features.
    #[inline(always)]
    fn part(&mut self, features: Range<usize>) -> Columns<'_, T> {
        Columns { dgain: &mut self.dgain[features.clone()], dbias: &mut self.dbias[features] }
    }
}

/// Q and Σ q·(x − mean) of a block or a row.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sums<W> {
    q: W,
    qd: W,
}

impl<W: Wide> Sums<W> {
    /// From the partial sums of a block.
    #[inline(always)]
    fn of_partial<S: Simd, T: Number<Wide = W>>(q: Vector<S, T>, qd: Vector<S, T>) -> Self {
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
    exponent: i32,
}

impl<T: Number> Row<T> {
    /// As forward kept it.
    #[inline(always)]
    fn kept(kept: &KeptRows<'_, T>, row: usize) -> Self {
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
    fn with_rescaled<R>(&self, block: &[T], f: impl FnOnce(&Self, &[T]) -> R) -> R {
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
    k: T,
    m: T,
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
struct Read<'a, T> {
    gain: &'a [T],
    x: &'a [T],
    dy: &'a [T],
}

/// A block of a row to be written, and the columns it is added to.
struct Write<'a, T> {
    dx: &'a mut [T],
    dgain: &'a mut [T],
    dbias: &'a mut [T],
}

/// What the first pass needs of a row, in every lane.
#[derive(Clone, Copy)]
struct First<V> {
    mean: V,
    rstd: V,
}

/// What the second pass needs of a row, in every lane.
#[derive(Clone, Copy)]
struct Second<V> {
    mean: V,
    low: V,
    rstd: V,
    k: V,
    m: V,
}

impl<V: Copy> Second<V> {
    #[inline(always)]
    fn new<S: Simd, T: Number<Vector<S> = V>>(simd: S, row: &Row<T>, coefficients: &Coefficients<T>) -> Self {
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

/// dx of rows of any number of features, side by side in `x`, `dy` and `dx`; adds their columns to `columns`.
#[simd]
pub(crate) fn backward<S: Simd, T: Number>(
    simd: S,
    layer: Layer<'_, T>,
    kept: KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let rows = kept.mean.len();
    let plain = kept.exponent.iter().all(
        #[inline(always)]
        |&exponent| exponent == 0,
    );
    if !plain {
        for row in 0..rows {
            let at = row * features..(row + 1) * features;
            let (x, dy, dx) = (&x[at.clone()], &dy[at.clone()], &mut dx[at]);
            careful_row(simd, &layer, &kept, row, x, dy, dx, columns);
        }
    } else if features > T::BLOCK {
        long_rows(simd, &layer, &kept, x, dy, dx, columns);
    } else {
        if const { S::f32s::LEN < 8 } {
            return groups::<S, T, 1>(simd, &layer, &kept, x, dy, dx, columns, 0..rows);
        }
        let by_eight = if features <= SHORT { rows / 8 * 8 } else { 0 };
        let by_two = rows / 2 * 2;
        groups::<S, T, 8>(simd, &layer, &kept, x, dy, dx, columns, 0..by_eight);
        groups::<S, T, 2>(simd, &layer, &kept, x, dy, dx, columns, by_eight..by_two);
        groups::<S, T, 1>(simd, &layer, &kept, x, dy, dx, columns, by_two..rows);
    }
}

/// Rows of one block that need not be rescaled, `R` at a time; `R` divides their number.
#[simd]
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn groups<S: Simd, T: Number, const R: usize>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
    rows: Range<usize>,
) {
    if rows.is_empty() {
        return;
    }
    let features = layer.features;
    let gain = layer.gain(0, features);
    let tail = Tail::new(simd, features);
    let at = |row: usize| row * features..(row + 1) * features;
    let zeros = [splat(simd, T::zero()); R];
    let (mut q, mut qd) = (zeros, zeros);
    for i in 0..R {
        let row = rows.start + i;
        let block = Read { gain, x: &x[at(row)], dy: &dy[at(row)] };
        (q[i], qd[i]) = partial_sums(simd, &tail, &Row::kept(kept, row), &block);
    }
    for first in rows.clone().step_by(R) {
        let (sum_q, sum_qd) = (tree(&mut q), tree(&mut qd));
        let (sum_q, sum_qd) = (sum_q.as_slice(), sum_qd.as_slice());
        let (mut k, mut m) = ([T::zero(); R], [T::zero(); R]);
        for i in 0..R {
            let wide = T::Wide::default;
            let sums = Sums { q: wide().add(sum_q[i].into()), qd: wide().add(sum_qd[i].into()) };
            Coefficients { k: k[i], m: m[i] } = Row::kept(kept, first + i).coefficients(sums, features);
        }
        for i in 0..R {
            let (row, ahead) = (first + i, first + R + i);
            let coefficients = Coefficients { k: k[i], m: m[i] };
            let second = Second::new(simd, &Row::kept(kept, row), &coefficients);
            let read = Read { gain, x: &x[at(row)], dy: &dy[at(row)] };
            let write = Write { dx: &mut dx[at(row)], dgain: columns.dgain, dbias: columns.dbias };
            if first + R < rows.end {
                let block = Read { gain, x: &x[at(ahead)], dy: &dy[at(ahead)] };
                let next = Row::kept(kept, ahead);
                (q[i], qd[i]) = gradients_and_sums(simd, &tail, &second, &read, write, &next, &block);
            } else {
                gradients(simd, &tail, &second, &read, write);
            }
        }
    }
}

/// Rows of several blocks that need not be rescaled, one at a time.
#[simd]
#[inline(never)]
fn long_rows<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let features = layer.features;
    let rows = kept.mean.len();
    let blocks = || (0..features).step_by(T::BLOCK).map(|start| start..(start + T::BLOCK).min(features));
    let mut sums = Sums::default();
    for block in blocks() {
        let (x, dy) = (&x[block.clone()], &dy[block.clone()]);
        sums = sums.join(row_sums(simd, layer, &Row::kept(kept, 0), block.start, x, dy));
    }
    for row in 0..rows {
        let here = Row::kept(kept, row);
        let second = Second::new(simd, &here, &here.coefficients(sums, features));
        sums = Sums::default();
        for block in blocks() {
            let tail = Tail::new(simd, block.len());
            let gain = layer.gain(block.start, block.len());
            let at = row * features + block.start..row * features + block.end;
            let read = Read { gain, x: &x[at.clone()], dy: &dy[at.clone()] };
            let Columns { dgain, dbias } = columns.part(block.clone());
            let write = Write { dx: &mut dx[at.clone()], dgain, dbias };
            if row + 1 < rows {
                let at = at.start + features..at.end + features;
                let ahead = Read { gain, x: &x[at.clone()], dy: &dy[at] };
                let next = Row::kept(kept, row + 1);
                let (q, qd) = gradients_and_sums(simd, &tail, &second, &read, write, &next, &ahead);
                sums = sums.join(Sums::of_partial::<S, T>(q, qd));
            } else {
                gradients(simd, &tail, &second, &read, write);
            }
        }
    }
}

/// A row of any length and scale.
#[inline(never)]
#[simd]
#[cold]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn careful_row<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: &KeptRows<'_, T>,
    row: usize,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let row = Row::rescaled(simd, layer, kept, row, x);
    let mut sums = Sums::default();
    for (block, (x, dy)) in x.chunks(T::BLOCK).zip(dy.chunks(T::BLOCK)).enumerate() {
        sums = sums.join(row_sums(simd, layer, &row, block * T::BLOCK, x, dy));
    }
    let coefficients = row.coefficients(sums, layer.features);
    row_gradients(simd, layer, &row, &coefficients, 0, x, dy, dx, columns);
}

/// The sums of a block of a row that starts at feature `start`.
#[simd]
pub(crate) fn row_sums<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    row: &Row<T>,
    start: usize,
    x: &[T],
    dy: &[T],
) -> Sums<T::Wide> {
    if row.exponent != 0 {
        return row.with_rescaled(x, |row, x| row_sums(simd, layer, row, start, x, dy));
    }
    let tail = Tail::new(simd, x.len());
    let block = Read { gain: layer.gain(start, x.len()), x, dy };
    let (q, qd) = partial_sums(simd, &tail, row, &block);
    Sums::of_partial::<S, T>(q, qd)
}

/// dx and columns of the features from `start` on of one row.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn row_gradients<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    row: &Row<T>,
    coefficients: &Coefficients<T>,
    start: usize,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    for at in (0..x.len()).step_by(T::BLOCK) {
        let block = at..(at + T::BLOCK).min(x.len());
        let start = start + at;
        let (x, dy, dx) = (&x[block.clone()], &dy[block.clone()], &mut dx[block.clone()]);
        let mut columns = columns.part(block);
        if row.exponent != 0 {
            row.with_rescaled(x, |row, x| {
                row_gradients(simd, layer, row, coefficients, start, x, dy, dx, &mut columns);
            });
            dx.iter_mut().for_each(|dx| *dx = times_power_of_two(*dx, -row.exponent));
            continue;
        }
        let tail = Tail::new(simd, x.len());
        let read = Read { gain: layer.gain(start, x.len()), x, dy };
        let write = Write { dx, dgain: columns.dgain, dbias: columns.dbias };
        gradients(simd, &tail, &Second::new(simd, row, coefficients), &read, write);
    }
}

/// The first pass over a block.
#[inline(always)]
fn partial_sums<S: Simd, T: Number>(
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
fn gradients<S: Simd, T: Number>(
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
fn gradients_and_sums<S: Simd, T: Number>(
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
