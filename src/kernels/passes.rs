//! The two passes over a block of a row, vector by vector; the page of [`backward`](super::backward) has the equations.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase, SimdCombine};

use crate::kernels::blocks::{chunks_from, first_of, last_of};
use crate::kernels::kept::{Coefficients, Row, Sums};
use crate::kernels::normalize::Lanes;
use crate::number::Number;
use crate::prefetch::Prefetch;
use crate::simd::{
    Half, TURNS, Tail, Turns, Vector, front_of, is_avx2, is_avx512, load, load_part, splat, store_part, vectors,
};

/// Column sums of the rows of a chain.
#[derive(Debug)]
pub(crate) struct Columns<'a, T> {
    pub(crate) dgain: &'a mut [T],
    pub(crate) dbias: &'a mut [T],
}

impl<'a, T> Columns<'a, T> {
    /// Those of the first features, and of the others.
    pub(crate) fn split(self, features: usize) -> (Self, Self) {
        let (dgain, dgain_second) = self.dgain.split_at_mut(features);
        let (dbias, dbias_second) = self.dbias.split_at_mut(features);
        (Self { dgain, dbias }, Self { dgain: dgain_second, dbias: dbias_second })
    }

    /// Those of some features.
    #[inline(always)]
    pub(crate) fn part(&mut self, features: Range<usize>) -> Columns<'_, T> {
        Columns { dgain: &mut self.dgain[features.clone()], dbias: &mut self.dbias[features] }
    }
}

impl<V: Copy> Lanes<V> {
    #[inline(always)]
    pub(crate) fn of_row<S: Simd, T: Number>(simd: S, row: &Row<T>) -> Self
    where
        V: SimdBase<S, Element = T>,
    {
        Self::new(simd, row.mean, row.low, row.rstd)
    }

    /// q, q·(x − mean) and p·d.
    #[inline(always)]
    pub(crate) fn terms<S: Simd>(&self, gain: V, x: V, dy: V) -> (V, V, V)
    where
        V: SimdBase<S>,
    {
        let p = dy * self.rstd;
        let (q, d) = (gain * p, x - self.mean);
        (q, q * d, p * (d - self.low))
    }

    /// [`Lanes::terms`] but the first, of rows with a spread about 0.
    #[inline(always)]
    pub(crate) fn terms_about_zero<S: Simd>(&self, gain: V, x: V, dy: V) -> (V, V)
    where
        V: SimdBase<S>,
    {
        let p = dy * self.rstd;
        (gain * p * x, p * x)
    }

    /// To the sums of dgain and dbias.
    #[inline(always)]
    pub(crate) fn add_columns<S: Simd>(&self, [x, dy]: [V; 2], columns: &mut [V; 2])
    where
        V: SimdBase<S>,
    {
        columns[0] += dy * self.rstd * ((x - self.mean) - self.low);
        columns[1] += dy;
    }

    /// With the q and q·(x − mean) of a vector; `CENTRED` as in [`sums`].
    #[inline(always)]
    pub(crate) fn add<S: Simd, const CENTRED: bool>(&self, (q, qd): &mut (V, V), gain: V, x: V, dy: V)
    where
        V: SimdBase<S>,
    {
        if CENTRED {
            let terms = self.terms(gain, x, dy);
            *q += terms.0;
            *qd += terms.1;
        } else {
            *qd += self.terms_about_zero(gain, x, dy).0;
        }
    }
}

/// The sums of the first pass over a block of each of `P` rows; `K` registers `V` are a vector for each turn. `CENTRED` as in
/// [`sums`].
struct Turned<V, const P: usize, const K: usize, const CENTRED: bool> {
    lanes: [Lanes<V>; P],
    q: [[V; K]; P],
    qd: [[V; K]; P],
}

impl<V: Copy, const P: usize, const K: usize, const CENTRED: bool> Turned<V, P, K, CENTRED> {
    #[inline(always)]
    fn new<S: Simd, T: Number>(simd: S, rows: &[Row<T>; P]) -> Self
    where
        V: SimdBase<S, Element = T>,
    {
        let zeros = [[V::splat(simd, T::zero()); K]; P];
        let mut sums = Self { lanes: [Lanes::of_row(simd, &rows[0]); P], q: zeros, qd: zeros };
        for (lanes, row) in sums.lanes.iter_mut().zip(rows) {
            *lanes = Lanes::of_row(simd, row);
        }
        sums
    }

    /// With row `r`'s x and dy of some columns, which are added to those of dgain and dbias.
    #[inline(always)]
    fn add<S: Simd>(&mut self, r: usize, k: usize, gain: V, [x, dy]: [V; 2], [dgain, dbias]: &mut [V; 2])
    where
        V: SimdBase<S>,
    {
        if CENTRED {
            let terms = self.lanes[r].terms(gain, x, dy);
            self.q[r][k] += terms.0;
            self.qd[r][k] += terms.1;
            *dgain += terms.2;
            *dbias += dy;
        } else {
            let terms = self.lanes[r].terms_about_zero(gain, x, dy);
            self.qd[r][k] += terms.0;
            *dgain += terms.1;
        }
    }

    /// With the pairs of vectors of a block. Asks for what goes with them meanwhile.
    #[inline(always)]
    fn add_pairs<S: Simd, T: Number, const A: usize>(
        &mut self,
        simd: S,
        gains: &[Turns<T::Chunk>],
        x: [&[Turns<T::Chunk>]; P],
        dy: [&[Turns<T::Chunk>]; P],
        [dgains, dbiases]: [&mut [Turns<T::Chunk>]; 2],
        prefetch: [Prefetch<'_, T>; A],
    ) where
        V: SimdBase<S, Element = T>,
    {
        let count = gains.len();
        let (dgains, dbiases) = (&mut dgains[..count], &mut dbiases[..count]);
        let (x, dy) = (x.map(|x| &x[..count]), dy.map(|dy| &dy[..count]));
        for i in 0..count {
            for t in 0..TURNS {
                Prefetch::lines(prefetch, (TURNS * i + t) * T::LANES);
                for h in 0..K / TURNS {
                    let gain = load_part::<S, T, V>(simd, &gains[i][t], h);
                    let mut columns = [load_part::<S, T, V>(simd, &dgains[i][t], h); 2];
                    if CENTRED {
                        columns[1] = load_part::<S, T, V>(simd, &dbiases[i][t], h);
                    }
                    for r in 0..P {
                        let row =
                            [load_part::<S, T, V>(simd, &x[r][i][t], h), load_part::<S, T, V>(simd, &dy[r][i][t], h)];
                        self.add(r, K / TURNS * t + h, gain, row, &mut columns);
                    }
                    store_part::<S, T, V>(columns[0], &mut dgains[i][t], h);
                    if CENTRED {
                        store_part::<S, T, V>(columns[1], &mut dbiases[i][t], h);
                    }
                }
            }
        }
    }
}

/// What the first pass over `P` rows side by side in `dx` asks for meanwhile, `A / P` of these for each: what follows in x and
/// what follows in dy, the places of dx, so that the second pass does not wait for them, or all three. From memory all three take
/// 0.85 to 0.95 of the time of the two, if the places stay in L1 until then; from a cache they come by themselves, and asking costs
/// a tenth.
#[inline(always)]
pub(crate) fn asked_for<'a, T: Number, const P: usize, const A: usize>(
    [x, dy]: [&'a [T]; 2],
    start: usize,
    dx: &'a [T],
) -> [Prefetch<'a, T>; A] {
    let (features, each) = (dx.len() / P, A / P);
    let mut all = [Prefetch::NONE; A];
    for r in 0..P {
        let at = r * features;
        let (x, dy) = (Prefetch::new(x, start + at), Prefetch::new(dy, start + at));
        let dx = Prefetch::these(dx).skip(at);
        let of_row = if each == 1 { [dx, x, dy] } else { [x, dy, dx] };
        all[r * each..][..each].copy_from_slice(&of_row[..each]);
    }
    all
}

/// The first pass over a block of each of `P` rows: their partial sums; adds to `columns`, and asks for what [`asked_for`]
/// says.
///
/// `CENTRED`: as the spread of the layer. About 0, no Q is needed, and there is no bias: dbias stays as it was. The bits of
/// all else are those of both.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn sums<S: Simd, T: Number, const P: usize, const CENTRED: bool, const A: usize>(
    simd: S,
    tail: &Tail<S, T>,
    gain: &[T],
    rows: &[Row<T>; P],
    x: [&[T]; P],
    dy: [&[T]; P],
    columns: &mut Columns<'_, T>,
    prefetch: [Prefetch<'_, T>; A],
) -> [(Vector<S, T>, Vector<S, T>); P] {
    let zero = splat(simd, T::zero());
    let mut sums = Turned::<Vector<S, T>, P, TURNS, CENTRED>::new(simd, rows);
    let gains = vectors(gain);
    let (xs, dys) = (x.map(vectors), dy.map(vectors));
    let (dgains, odd_dgain) = T::chunks_mut(columns.dgain).0.as_chunks_mut::<TURNS>();
    let (dbiases, odd_dbias) = T::chunks_mut(columns.dbias).0.as_chunks_mut::<TURNS>();
    let (x_pairs, dy_pairs, column_pairs) = (xs.map(|x| x.pairs), dys.map(|dy| dy.pairs), [dgains, dbiases]);
    if const { is_avx2::<S>() } {
        // A register after the other: a vector has two, and their terms side by side are more than there are registers for.
        let mut halves = Turned::<Half<S, T>, P, { 2 * TURNS }, CENTRED>::new(simd, rows);
        halves.add_pairs(simd, gains.pairs, x_pairs, dy_pairs, column_pairs, prefetch);
        for r in 0..P {
            for t in 0..TURNS {
                sums.q[r][t] = halves.q[r][2 * t].combine(halves.q[r][2 * t + 1]);
                sums.qd[r][t] = halves.qd[r][2 * t].combine(halves.qd[r][2 * t + 1]);
            }
        }
    } else {
        sums.add_pairs(simd, gains.pairs, x_pairs, dy_pairs, column_pairs, prefetch);
    }
    if let (Some(gain), [dgains], [dbiases]) = (gains.odd, odd_dgain, odd_dbias) {
        let gain = load::<S, T>(simd, gain);
        let mut columns = [load::<S, T>(simd, dgains), load::<S, T>(simd, dbiases)];
        for r in 0..P {
            if let (Some(x), Some(dy)) = (xs[r].odd, dys[r].odd) {
                sums.add(r, 0, gain, [load::<S, T>(simd, x), load::<S, T>(simd, dy)], &mut columns);
            }
        }
        columns[0].store_array(dgains);
        columns[1].store_array(dbiases);
    }
    if !tail.is_empty() {
        let gain = tail.load(gain, zero);
        let mut column_sums = [tail.load_all(columns.dgain), tail.load_all(columns.dbias)];
        for r in 0..P {
            // Filled up with what adds nothing.
            let row = [tail.load(x[r], sums.lanes[r].mean), tail.load(dy[r], zero)];
            // Not `tail.turn`: sums that are found by a number are in memory, not in registers.
            if tail.turn == 0 {
                sums.add(r, 0, gain, row, &mut column_sums);
            } else {
                sums.add(r, 1, gain, row, &mut column_sums);
            }
        }
        tail.store_all(column_sums[0], columns.dgain);
        tail.store_all(column_sums[1], columns.dbias);
    }
    let mut partial = [(zero, zero); P];
    for (partial, (q, qd)) in partial.iter_mut().zip(sums.q.iter().zip(&sums.qd)) {
        *partial = (q[0] + q[1], qd[0] + qd[1]);
    }
    partial
}

/// The first pass over a block of a row whose columns the second pass adds up.
#[inline(always)]
pub(crate) fn sums_alone<S: Simd, T: Number>(
    simd: S,
    tail: &Tail<S, T>,
    gain: &[T],
    row: &Row<T>,
    x: &[T],
    dy: &[T],
) -> Sums<T::Wide> {
    let (zero, lanes) = (splat(simd, T::zero()), Lanes::of_row(simd, row));
    let mut sums = [(zero, zero); TURNS];
    add_all::<S, T, _, true>(simd, &lanes, gain, x, dy, &mut sums);
    if !tail.is_empty() {
        // Filled up with what adds nothing.
        let (gain, x, dy) = (tail.load(gain, zero), tail.load(x, lanes.mean), tail.load(dy, zero));
        // Not `sums[tail.turn]`: what is found by a number is in memory, not in registers.
        if tail.turn == 0 {
            lanes.add::<S, true>(&mut sums[0], gain, x, dy);
        } else {
            lanes.add::<S, true>(&mut sums[1], gain, x, dy);
        }
    }
    let [(q, qd), other] = sums;
    Sums::of_partial::<S, T>(simd, q + other.0, qd + other.1)
}

/// [`Lanes::add`] of all full vectors of a block.
#[inline(always)]
pub(crate) fn add_all<S: Simd, T: Number<Vector<S> = V>, V: SimdBase<S>, const CENTRED: bool>(
    simd: S,
    lanes: &Lanes<V>,
    gain: &[T],
    x: &[T],
    dy: &[T],
    sums: &mut Turns<(V, V)>,
) {
    let [gains, xs, dys] = [gain, x, dy].map(vectors::<T>);
    let count = gains.pairs.len();
    let (pairs, x_pairs, dy_pairs) = (gains.pairs, &xs.pairs[..count], &dys.pairs[..count]);
    for i in 0..count {
        for t in 0..TURNS {
            let (gain, x) = (load::<S, T>(simd, &pairs[i][t]), load::<S, T>(simd, &x_pairs[i][t]));
            lanes.add::<S, CENTRED>(&mut sums[t], gain, x, load::<S, T>(simd, &dy_pairs[i][t]));
        }
    }
    if let (Some(gain), Some(x), Some(dy)) = (gains.odd, xs.odd, dys.odd) {
        let (gain, x) = (load::<S, T>(simd, gain), load::<S, T>(simd, x));
        lanes.add::<S, CENTRED>(&mut sums[0], gain, x, load::<S, T>(simd, dy));
    }
}

/// What the second pass needs of one row in every lane, or of a row in each.
#[derive(Clone, Copy)]
pub(crate) struct Second<V> {
    pub(crate) row: Lanes<V>,
    pub(crate) k: V,
    pub(crate) m: V,
}

impl<V: Copy> Second<V> {
    #[inline(always)]
    pub(crate) fn new<S: Simd, T: Number>(simd: S, row: &Row<T>, coefficients: &Coefficients<T>) -> Self
    where
        V: SimdBase<S, Element = T>,
    {
        Self { row: Lanes::of_row(simd, row), k: V::splat(simd, coefficients.k), m: V::splat(simd, coefficients.m) }
    }

    /// Not `CENTRED`, if the spread is about 0: mean, low and k are 0, and the bits the same.
    #[inline(always)]
    pub(crate) fn dx<S: Simd, const CENTRED: bool>(&self, gain: V, x: V, dy: V) -> V
    where
        V: SimdBase<S>,
    {
        let q = gain * (dy * self.row.rstd);
        if CENTRED { (q - self.k) - ((x - self.row.mean) - self.row.low) * self.m } else { q - x * self.m }
    }

    /// [`Second::dx`]; adds to those of dgain and dbias.
    #[inline(always)]
    pub(crate) fn write<S: Simd, const CENTRED: bool>(&self, gain: V, [x, dy]: [V; 2], columns: &mut [V; 2]) -> V
    where
        V: SimdBase<S>,
    {
        if CENTRED {
            self.row.add_columns([x, dy], columns);
        } else {
            columns[0] += self.row.terms_about_zero(gain, x, dy).1;
        }
        self.dx::<S, CENTRED>(gain, x, dy)
    }
}

/// The second pass over a block of each of `P` rows; stores to the first meet cache lines where that pays. Asks for `prefetch`
/// meanwhile.
///
/// `CENTRED`: as in [`sums`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn write<S: Simd, T: Number, const P: usize, const CENTRED: bool, const B: usize>(
    simd: S,
    tail: &Tail<S, T>,
    gain: &[T],
    rows: &[Second<Vector<S, T>>; P],
    x: [&[T]; P],
    dy: [&[T]; P],
    mut dx: [&mut [T]; P],
    prefetch: [Prefetch<'_, T>; B],
) {
    // On AVX-512 the loads of a row alone meet lines then, too, as a rule: from memory that takes 0.93 to 1 of the time. (Without
    // mean it takes longer.)
    let alone = const { is_avx512::<S>() && CENTRED };
    let front = front_of(&dx, alone);
    if (const { P > 1 } || alone) && front > 0 {
        let [gain] = first_of::<S, T, 1>(simd, [gain]);
        let (x, dy) = (first_of::<S, T, P>(simd, x), first_of::<S, T, P>(simd, dy));
        for r in 0..P {
            rows[r].dx::<S, CENTRED>(gain, x[r], dy[r]).store_array(&mut T::chunks_mut(dx[r]).0[0]);
        }
    }
    let count = (tail.len() - front) / T::LANES;
    {
        let [gains] = chunks_from::<T, 1>([gain], front, count);
        let (x, dy) = (chunks_from::<T, P>(x, front, count), chunks_from::<T, P>(dy, front, count));
        let dx = dx.each_mut().map(|dx| &mut T::chunks_mut(&mut dx[front..]).0[..count]);
        for i in 0..count {
            Prefetch::lines(prefetch, i * T::LANES);
            let gain = load::<S, T>(simd, &gains[i]);
            let mut result = [gain; P];
            for r in 0..P {
                result[r] = rows[r].dx::<S, CENTRED>(gain, load::<S, T>(simd, &x[r][i]), load::<S, T>(simd, &dy[r][i]));
            }
            for r in 0..P {
                result[r].store_array(&mut dx[r][i]);
            }
        }
    }
    if front + count * T::LANES < tail.len() {
        let [gain] = last_of::<S, T, 1>(simd, tail, [gain]);
        let (x, dy) = (last_of::<S, T, P>(simd, tail, x), last_of::<S, T, P>(simd, tail, dy));
        for r in 0..P {
            tail.store_all(rows[r].dx::<S, CENTRED>(gain, x[r], dy[r]), dx[r]);
        }
    }
}

/// The second pass over some columns of each of `P` rows after [`sums_alone`]: adds to `columns`, too.
///
/// `CENTRED`: as in [`sums`].
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn write_and_add<S: Simd, T: Number, const P: usize, const CENTRED: bool>(
    simd: S,
    tail: &Tail<S, T>,
    gain: &[T],
    rows: &[Second<Vector<S, T>>; P],
    x: [&[T]; P],
    dy: [&[T]; P],
    mut dx: [&mut [T]; P],
    columns: &mut Columns<'_, T>,
) {
    let count = tail.len() / T::LANES;
    {
        let [gains] = chunks_from::<T, 1>([gain], 0, count);
        let (x, dy) = (chunks_from::<T, P>(x, 0, count), chunks_from::<T, P>(dy, 0, count));
        let dx = dx.each_mut().map(|dx| &mut T::chunks_mut(dx).0[..count]);
        let (dgains, dbiases) = (T::chunks_mut(columns.dgain).0, T::chunks_mut(columns.dbias).0);
        let (dgains, dbiases) = (&mut dgains[..count], &mut dbiases[..count]);
        for i in 0..count {
            let gain = load::<S, T>(simd, &gains[i]);
            let mut columns = [load::<S, T>(simd, &dgains[i]); 2];
            if CENTRED {
                columns[1] = load::<S, T>(simd, &dbiases[i]);
            }
            for r in 0..P {
                let from = [load::<S, T>(simd, &x[r][i]), load::<S, T>(simd, &dy[r][i])];
                rows[r].write::<_, CENTRED>(gain, from, &mut columns).store_array(&mut dx[r][i]);
            }
            columns[0].store_array(&mut dgains[i]);
            if CENTRED {
                columns[1].store_array(&mut dbiases[i]);
            }
        }
    }
    if !tail.is_empty() {
        let gain = tail.load_all(gain);
        let mut column_sums = [tail.load_all(columns.dgain), tail.load_all(columns.dbias)];
        for r in 0..P {
            let (x, dy) = (tail.load_all(x[r]), tail.load_all(dy[r]));
            tail.store_all(rows[r].dx::<_, CENTRED>(gain, x, dy), dx[r]);
            // Filled up with what adds nothing.
            let from = [tail.keep(x, rows[r].row.mean), tail.keep(dy, splat(simd, T::zero()))];
            rows[r].write::<_, CENTRED>(gain, from, &mut column_sums);
        }
        tail.store_all(column_sums[0], columns.dgain);
        tail.store_all(column_sums[1], columns.dbias);
    }
}
