//! [`backward`](super::backward) of rows in memory that do not start where cache lines do.
//!
//! A large array begins 16 bytes behind a line as a rule, and of vectors that are counted from the start of a row each is in
//! two lines, each of which is read twice. Where a row is a whole number of vectors, the lines lie alike in all rows, and
//! rows are taken by them:
//!
//! ```text
//!             row 0                row 1                row 2
//! |······ 0 1 2|3 4 …|…|… a b ‖ 0 1 2|3 4 …|…|… a b ‖ 0 1 2|3 …
//!    boundary 0   lines    boundary 1   lines    boundary 2
//! ```
//!
//! A lane of the lines is another lane of the row, but what meets in a lane of the row meets in one of the lines, in the same
//! order, and in turns as before. So the partial sums have the same bits, each in another lane: they are moved before their
//! tree is added up. At a boundary, lanes of the other row are filled up with what adds nothing.
//!
//! The columns belong to the second pass: in the first, what is stored to them would wait behind the dx of the row before, and
//! that waits for memory.

use fearless_simd::{Select, Simd, SimdBase, u8x64};
use fearless_simd_macros::simd;

use crate::kernels::kept::{KeptRows, Row};
use crate::kernels::moments::Spread;
use crate::kernels::normalize::{Lanes, Layer, Place};
use crate::kernels::passes::{Columns, Second, add_all, write_and_add};
use crate::number::Number;
use crate::prefetch::ask_for_page;
use crate::simd::{TURNS, Tail, Vector, is_avx512, splat, tree};

/// Vectors of the longest rows that are best read and written one by one where memory sets the pace: x, dy, dx, gain and its
/// gradients stay in L1. Without a bias and its gradient there is room for more.
pub(crate) fn alone(spread: Spread) -> usize {
    if spread.centred { 72 } else { 84 }
}

/// Whether rows of arrays that do not start at a cache line are best taken so.
#[inline(always)]
pub(crate) fn pays<S: Simd, T: Number>(_simd: S, layer: &Layer<'_, T>, place: Place) -> bool {
    let (vectors, rest) = (layer.features / T::LANES, layer.features % T::LANES);
    is_avx512::<S>() && place == Place::Memory && rest == 0 && (5..=alone(layer.spread)).contains(&vectors)
}

/// Where the lines are in rows of a whole number of vectors.
#[derive(Clone, Copy)]
struct Lines<S: Simd, T: Number> {
    simd: S,
    features: usize,
    /// Elements of a row in front of its first line; never 0.
    front: usize,
    /// Elements of a row behind its last line.
    rest: usize,
    /// The lanes of a boundary that begin a row.
    begin: <Vector<S, T> as SimdBase<S>>::Mask,
    /// The lanes of a row's first vector that are in front of its first line.
    first: <Vector<S, T> as SimdBase<S>>::Mask,
    /// Moves lanes of the lines to where they are in a row.
    to_row: u8x64<S>,
    /// And back.
    to_lines: u8x64<S>,
}

impl<S: Simd, T: Number> Lines<S, T> {
    #[inline(always)]
    fn new(simd: S, features: usize, front: usize) -> Self {
        let rest = T::LANES - front;
        let lane = Vector::<S, T>::from_fn(
            simd,
            #[inline(always)]
            |lane| T::nearest(lane as f64),
        );
        let begin = lane.simd_ge(splat(simd, T::nearest(rest as f64)));
        let first = lane.simd_lt(splat(simd, T::nearest(front as f64)));
        let (to_row, to_lines) = (rotation::<S, T>(simd, rest), rotation::<S, T>(simd, front));
        Self { simd, features, front, rest, begin, first, to_row, to_lines }
    }

    /// The boundary between rows that end and begin at element `at`; where that is an end of the array, its other lanes
    /// are any.
    #[inline(always)]
    fn boundary(&self, rows: &[T], at: usize) -> Vector<S, T> {
        if let Some(start) = at.checked_sub(self.rest)
            && let Some(line) = rows.get(start..start + T::LANES)
        {
            return Vector::<S, T>::from_slice(self.simd, line);
        }
        let start = at.saturating_sub(T::LANES);
        Vector::<S, T>::from_slice(self.simd, &rows[start..start + T::LANES]).swizzle_dyn(self.to_lines)
    }

    /// Both ends of a row, each as it lies in its boundary.
    #[inline(always)]
    fn ends(&self, row: &[T]) -> Vector<S, T> {
        let first = Vector::<S, T>::from_slice(self.simd, &row[..T::LANES]);
        let last = Vector::<S, T>::from_slice(self.simd, &row[self.features - T::LANES..]);
        self.first.select(first, last).swizzle_dyn(self.to_lines)
    }

    /// Writes what [`Lines::ends`] reads.
    #[inline(always)]
    fn write_ends(&self, line: Vector<S, T>, row: &mut [T]) {
        row[self.features - self.rest..].copy_from_slice(&line.as_slice()[..self.rest]);
        row[..self.front].copy_from_slice(&line.as_slice()[self.rest..]);
    }
}

/// Which byte is for each: that of so many lanes further, round in a circle.
#[inline(always)]
fn rotation<S: Simd, T: Number>(simd: S, lanes: usize) -> u8x64<S> {
    u8x64::from_fn(
        simd,
        #[inline(always)]
        |byte| ((byte + lanes * size_of::<T>()) % size_of::<T::Chunk>()) as u8,
    )
}

/// Rows that need not be rescaled, of one block each.
///
/// `front`: elements of `dx` in front of its first cache line. It [`pays`] most where x, dy and the columns have as many.
///
/// `CENTRED`: as the spread of the layer.
#[simd]
#[inline(never)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn backward<S: Simd, T: Number, const CENTRED: bool>(
    simd: S,
    layer: &Layer<'_, T>,
    front: usize,
    kept: &KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    columns: &mut Columns<'_, T>,
) {
    let (features, zero) = (layer.features, splat(simd, T::zero()));
    let lines = Lines::<S, T>::new(simd, features, front);
    let within = front..features - lines.rest;
    let whole = Tail::new(simd, within.len());
    let gain = layer.gain(0, features);
    let gain_ends = lines.ends(gain);
    let mut column_ends = [lines.ends(columns.dgain), lines.ends(columns.dbias)];
    let mut boundary = [lines.boundary(x, 0), lines.boundary(dy, 0)];
    let mut ended = zero;
    for row in 0..kept.mean.len() {
        let (start, end) = (row * features, (row + 1) * features);
        let inner = start + within.start..start + within.end;
        let row = Row::kept(kept, row);
        let lanes = Lanes::of_row(simd, &row);

        let mut sums = [(zero, zero); TURNS];
        let begin = [lines.begin.select(boundary[0], lanes.mean), lines.begin.select(boundary[1], zero)];
        lanes.add::<S, CENTRED>(&mut sums[1], gain_ends, begin[0], begin[1]);
        add_all::<S, T, _, CENTRED>(
            simd,
            &lanes,
            &gain[within.clone()],
            &x[inner.clone()],
            &dy[inner.clone()],
            &mut sums,
        );
        // Not earlier: the CPU reads ahead best where lines are read in order.
        boundary = [lines.boundary(x, end), lines.boundary(dy, end)];
        let last = [lines.begin.select(lanes.mean, boundary[0]), lines.begin.select(zero, boundary[1])];
        // Not `sums[turn]`: what is found by a number is in memory, not in registers.
        if whole.turn == 0 {
            lanes.add::<S, CENTRED>(&mut sums[0], gain_ends, last[0], last[1]);
        } else {
            lanes.add::<S, CENTRED>(&mut sums[1], gain_ends, last[0], last[1]);
        }
        let [(q, qd), other] = sums;
        let mut partial = [q + other.0, qd + other.1];
        // A loop: what `array::map` calls is compiled without the instruction set.
        for partial in &mut partial {
            *partial = tree(simd, &mut [partial.swizzle_dyn(lines.to_row)]);
        }
        let [q, qd] = [partial[0][0].into(), partial[1][0].into()];
        let second = Second::new(simd, &row, &row.coefficients(q, qd, layer));

        for array in [x, dy] {
            ask_for_page(array, end..end + features);
        }
        let began = second.write::<S, CENTRED>(gain_ends, begin, &mut column_ends);
        if start > 0 {
            lines.begin.select(began, ended).store_slice(&mut dx[start - lines.rest..start + front]);
        } else {
            dx[..front].copy_from_slice(&began.as_slice()[lines.rest..]);
        }
        let (x, dy, dx) = (&x[inner.clone()], &dy[inner.clone()], &mut dx[inner]);
        let columns = &mut columns.part(within.clone());
        write_and_add::<S, T, 1, CENTRED>(simd, &whole, &gain[within.clone()], &[second], [x], [dy], [dx], columns);
        ended = second.write::<S, CENTRED>(gain_ends, last, &mut column_ends);
    }
    let end = kept.mean.len() * features;
    dx[end - lines.rest..end].copy_from_slice(&ended.as_slice()[..lines.rest]);
    lines.write_ends(column_ends[0], columns.dgain);
    lines.write_ends(column_ends[1], columns.dbias);
}

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;
    use crate::kernels::moments::Spread;
    use crate::kernels::passes::{sums, write};
    use crate::simd::{self, available};

    /// Both passes over each row, from its start.
    #[inline(always)]
    fn backward_from_the_start<S: Simd, T: Number, const CENTRED: bool>(
        simd: S,
        layer: &Layer<'_, T>,
        kept: &KeptRows<'_, T>,
        [x, dy]: [&[T]; 2],
        dx: &mut [T],
        columns: &mut Columns<'_, T>,
    ) {
        let features = layer.features;
        let (tail, gain) = (Tail::new(simd, features), layer.gain(0, features));
        let inputs = x.chunks_exact(features).zip(dy.chunks_exact(features));
        for (i, ((x, dy), dx)) in inputs.zip(dx.chunks_exact_mut(features)).enumerate() {
            let row = Row::kept(kept, i);
            let [(q, qd)] = sums::<S, T, 1, CENTRED, 0>(simd, &tail, gain, &[row], [x], [dy], columns, []);
            let (q, qd) = (tree(simd, &mut [q])[0].into(), tree(simd, &mut [qd])[0].into());
            let second = Second::new(simd, &row, &row.coefficients(q, qd, layer));
            write::<S, T, 1, CENTRED, 0>(simd, &tail, gain, &[second], [x], [dy], [dx], []);
        }
    }

    /// Numbers whose first has so many in front of the next cache line.
    fn behind_a_line<T: Number>(buffer: &mut Vec<T>, front: usize, len: usize, prime: usize) -> &mut [T] {
        *buffer = (0..len + 2 * T::LANES).map(|i| T::nearest((i * prime % 1009) as f64 / 300.0 - 1.5)).collect();
        let start = (buffer.as_ptr().align_offset(size_of::<T::Chunk>()) + T::LANES - front) % T::LANES;
        &mut buffer[start..start + len]
    }

    #[simd]
    fn check<S: Simd, T: Number, const CENTRED: bool>(simd: S) {
        let spread = if CENTRED { Spread::about_mean(1e-5) } else { Spread::about_zero(1e-5) };
        for (vectors, rows) in [(9, 1), (5, 2), (6, 3), (16, 5), (9, 2)] {
            let (features, len) = (vectors * T::LANES, rows * vectors * T::LANES);
            let mut buffers = [const { Vec::new() }; 3];
            let numbers =
                |prime| (0..features.max(rows)).map(|i| T::nearest((i * prime % 89) as f64 / 64.0 - 0.4)).collect();
            let (gain, mean, low, rstd): (Vec<T>, Vec<T>, Vec<T>, Vec<T>) =
                (numbers(31), numbers(37), numbers(41).iter().map(|&x: &T| x * T::epsilon()).collect(), numbers(43));
            let zeros = vec![T::zero(); rows];
            let (mean, low) = if CENTRED { (&mean[..rows], &low[..rows]) } else { (&zeros[..], &zeros[..]) };
            let kept = KeptRows { mean, low, rstd: &rstd[..rows], exponent: &vec![0; rows] };
            for (with_gain, front) in (1..T::LANES).flat_map(|front| [(true, front), (false, front)]) {
                let gain = with_gain.then_some(&gain[..features]);
                let layer = Layer { features, gain, bias: None, spread };
                let [x, dy, dx] = &mut buffers;
                let x = behind_a_line(x, front, len, 47);
                let dy = behind_a_line(dy, front * 3 % T::LANES, len, 53);
                let dx = behind_a_line(dx, front, len, 59);
                assert_eq!(simd::front(dx), front);
                // What is no number stays in its row.
                (x[len - features], x[features - 1]) = (T::infinity(), T::nan());
                let mut results = [(); 2].map(|()| (dx.to_vec(), numbers(61), numbers(67)));
                let [(plain_dx, plain_dgain, plain_dbias), (line_dx, line_dgain, line_dbias)] = &mut results;
                let mut columns = Columns { dgain: &mut plain_dgain[..features], dbias: &mut plain_dbias[..features] };
                backward_from_the_start::<S, T, CENTRED>(simd, &layer, &kept, [x, dy], plain_dx, &mut columns);
                let mut columns = Columns { dgain: &mut line_dgain[..features], dbias: &mut line_dbias[..features] };
                backward::<S, T, CENTRED>(simd, &layer, front, &kept, x, dy, dx, &mut columns);
                line_dx.copy_from_slice(dx);
                let [plain, lines] = results.map(|(dx, dgain, dbias)| [dx, dgain, dbias].concat());
                for (i, (plain, lines)) in plain.iter().zip(&lines).enumerate() {
                    let (plain, lines): (f64, f64) = ((*plain).into(), (*lines).into());
                    let same = plain.to_bits() == lines.to_bits() || plain.is_nan() && lines.is_nan();
                    assert!(same, "{plain} {lines}: {rows}×{features}, {front} in front, number {i}");
                }
            }
        }
    }

    #[test]
    fn rows_taken_by_lines_have_the_bits_of_rows_taken_from_their_start_on_every_level() {
        for level in available() {
            dispatch!(level, simd => {
                check::<_, f32, true>(simd);
                check::<_, f32, false>(simd);
                check::<_, f64, true>(simd);
                check::<_, f64, false>(simd);
            });
        }
    }
}
