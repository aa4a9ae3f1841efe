//! What the jobs of a batch share: the call, its inputs row by row and column by column, and columns that are taken again.

use std::ops::Range;

use fearless_simd::Level;

use crate::arrays::{Input, RowShape};
use crate::element::Element;
use crate::kernels::batch::{AGAIN, Block, Count, KeptColumns, SAMPLE, SavedColumns};
use crate::kernels::column::{Column, Own, Passes};
use crate::kernels::columns::CHAIN;
use crate::kernels::normalize::Layer;
use crate::number::Wide;
use crate::parallel::{self, steps};

/// What all jobs of a call share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a, T> {
    pub(crate) level: Level,
    pub(crate) layer: Layer<'a, T>,
    /// How many trailing axes are a row.
    pub(crate) trailing: usize,
    pub(crate) rows: usize,
    pub(crate) unbiased: bool,
    /// Whether the statistics are constants: backward does not go through them.
    pub(crate) frozen: bool,
}

/// Bytes of a call's arrays above which they come from memory.
const STREAMS: usize = 12 * 1024 * 1024;

/// Bytes of a tile of columns, about: with its y or dy well within L2.
const TILE: usize = 128 * 1024;

impl<'a, T: Element> Call<'a, T> {
    pub(crate) fn count(&self) -> Count {
        let rows = self.rows as f64;
        Count { rows, divisor: if self.unbiased { rows - 1.0 } else { rows } }
    }

    pub(crate) fn bytes(&self, arrays: usize) -> usize {
        (self.rows * self.layer.features).saturating_mul(arrays * size_of::<T>())
    }

    /// Whether the arrays come from memory, not from a cache.
    pub(crate) fn streams(&self) -> bool {
        self.bytes(2) > STREAMS
    }

    pub(crate) fn gain_of(&self, column: usize) -> T {
        self.layer.gain.map_or(T::one(), |gain| gain[column])
    }

    pub(crate) fn bias_of(&self, column: usize) -> T {
        self.layer.bias.map_or(T::zero(), |bias| bias[column])
    }

    /// rstd·gain of the columns from `start` on.
    pub(crate) fn scale(&self, rstd: &[T], start: usize, scale: &mut [T]) {
        scale.copy_from_slice(rstd);
        if let Some(gain) = self.layer.gain {
            scale.iter_mut().zip(&gain[start..]).for_each(|(scale, &gain)| *scale *= gain);
        }
    }

    pub(crate) fn shape(&self) -> RowShape {
        RowShape { features: self.layer.features, trailing: self.trailing }
    }

    pub(crate) fn block_of<'b>(&self, rows: &'b [T]) -> Block<'b, T> {
        Block { rows, stride: self.layer.features, first: 0 }
    }

    /// Columns of a tile that is taken from its sums to its y.
    pub(crate) fn tile_columns(&self) -> usize {
        (TILE / size_of::<T>() / self.rows).next_multiple_of(4 * T::LANES)
    }

    /// A tile of columns of all rows.
    pub(crate) fn tile_of<'b>(&self, rows: &'b [T], tile: &Range<usize>) -> Block<'b, T> {
        Block { rows: &rows[tile.start..], stride: self.layer.features, first: tile.start }
    }
}

/// The rows of a sample.
pub(crate) fn sampled(rows: usize) -> impl Iterator<Item = usize> {
    let sample = (1 << rows.ilog2()).min(SAMPLE);
    (0..sample).map(move |i| i * rows / sample)
}

pub(crate) const ROWS: &str = "an array has its rows";

/// The column of a call that is taken again, in the units that forward found.
pub(crate) fn rescaled<T: Element>(
    call: &Call<'_, T>,
    x: &Input<'_, T>,
    exponent: &[i16],
    start: usize,
) -> impl Iterator<Item = (usize, Column<T>)> {
    let marked = exponent.iter().enumerate().filter(|(_, exponent)| **exponent != 0);
    marked.map(move |(c, &exponent)| {
        let x = x.column(call.shape(), start + c);
        (c, Column::at(x.iter().copied(), exponent.into(), call.count(), call.layer.spread))
    })
}

/// Columns of which those that are marked are taken again side by side.
const TOGETHER: usize = 256;

/// Takes the statistics of marked columns again.
#[cold]
pub(crate) fn take_again<T: Element>(
    call: &Call<'_, T>,
    x: &Input<'_, T>,
    start: usize,
    saved: &mut SavedColumns<'_, T>,
) {
    let tile = if x.is_strided() { call.layer.features } else { 0 };
    parallel::lend(tile, |tile: &mut [T]| {
        for columns in steps(0..saved.exponent.len(), TOGETHER) {
            let (mut marked, mut count) = ([0; TOGETHER], 0);
            for c in columns.filter(|&c| saved.exponent[c] == AGAIN) {
                marked[count] = c;
                count += 1;
            }
            if count > 0 {
                take_some_again(call, x, start, &marked[..count], saved, tile);
            }
        }
    });
}

/// Takes the statistics of these columns again; `tile` has room for a row of a strided x.
fn take_some_again<T: Element>(
    call: &Call<'_, T>,
    x: &Input<'_, T>,
    start: usize,
    marked: &[usize],
    saved: &mut SavedColumns<'_, T>,
    tile: &mut [T],
) {
    let spread = call.layer.spread;
    let mut passes = [Passes::new(T::zero()); TOGETHER];
    let passes = &mut passes[..marked.len()];
    let first = &x.rows(call.shape(), 0..1, tile)[start..];
    passes.iter_mut().zip(marked).for_each(|(passes, &c)| *passes = Passes::new(first[c]));
    for _ in 0..Passes::<T>::COUNT {
        for row in 0..call.rows {
            let row = &x.rows(call.shape(), row..row + 1, tile)[start..];
            passes.iter_mut().zip(marked).for_each(|(passes, &c)| passes.add(row[c]));
        }
        passes.iter_mut().for_each(|passes| passes.end(call.count()));
    }
    for (passes, &c) in passes.iter().zip(marked) {
        let mut column = passes.column(0, call.count(), spread);
        if !column.holds(spread) {
            column = Column::new(x.column(call.shape(), start + c).iter().copied(), call.count(), spread);
        }
        let Own { mean, low, variance, rstd } = column.own();
        (saved.mean[c], saved.low[c], saved.variance[c], saved.rstd[c]) = (mean, low, variance, rstd);
        saved.exponent[c] = column.exponent as i16;
    }
}

/// k and m of the columns from `start` on, 0 if the statistics are frozen; their totals become what dgain and dbias add.
pub(crate) fn coefficients<T: Element>(
    call: &Call<'_, T>,
    kept: KeptColumns<'_, T>,
    (x, dy): (&Input<'_, T>, &Input<'_, T>),
    start: usize,
    totals: &mut [T::Wide],
    k: &mut [T],
    m: &mut [T],
) {
    T::batch_coefficients(call.level, call.count(), kept, totals, k, m);
    if call.frozen {
        k.fill(T::zero());
        m.fill(T::zero());
    }
    let columns = k.len();
    for (c, column) in rescaled(call, x, kept.exponent, start) {
        let (x, dy) = (x.column(call.shape(), start + c), dy.column(call.shape(), start + c));
        let pairs = x.iter().copied().zip(dy.iter().copied());
        let dgain;
        (k[c], m[c], dgain) = column.coefficients(totals[columns + c].value(), pairs, call.count());
        totals[c] = <T::Wide as Default>::default().add(dgain);
    }
}

/// No rows yet, and room for a chain of them.
pub(crate) fn list<'a, T>() -> [&'a mut [T]; CHAIN] {
    std::array::from_fn(|_| &mut [][..])
}

/// Puts rows into a list. How many there are.
pub(crate) fn enlist<'a, T>(rows: impl Iterator<Item = &'a mut [T]>, list: &mut [&'a mut [T]; CHAIN]) -> usize {
    let mut count = 0;
    for (slot, row) in list.iter_mut().zip(rows) {
        *slot = row;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::sampled;

    /// What docs/bits.md says.
    #[test]
    fn a_sample_is_spread_over_the_rows() {
        assert_eq!(sampled(1).collect::<Vec<_>>(), [0]);
        assert_eq!(sampled(7).collect::<Vec<_>>(), [0, 1, 3, 5]);
        assert_eq!(sampled(100).collect::<Vec<_>>(), [0, 6, 12, 18, 25, 31, 37, 43, 50, 56, 62, 68, 75, 81, 87, 93]);
    }
}
