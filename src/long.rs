//! Few wide rows on several threads: in two sweeps, the first shared out by blocks of rows, the second by tiles of columns.
//!
//! ```text
//! each chain of rows:
//!     first sweep:   the sums of each block of each row       blocks in parallel
//!     each row:      its blocks joined, in order
//!     second sweep:  each tile of columns, row after row      tiles in parallel; its gain and bias stay in L1
//! ```
//!
//! The orders of additions are those of rows taken one by one, so the bits are.

use std::ops::Range;

use fearless_simd::Level;
use ndarray::{ArrayViewMut2, Axis};

use crate::element::Element;
use crate::kernels::columns::CHAIN;
use crate::kernels::moments::{Moments, Statistics};
use crate::kernels::normalize::{Layer, SavedRows};
use crate::kernels::rescale::Rescaled;
use crate::parallel::{self, Job};

pub(crate) mod backward;

/// Whether so many rows are taken here, on all threads, because tasks of `task()` rows would leave these idle for a quarter of
/// the time or more: two sweeps cost about that much more than one.
pub(crate) fn shares_columns<T: Element>(rows: usize, task: impl FnOnce() -> usize, features: usize) -> bool {
    // The bytes of one array alone: two sweeps wait for the other threads twice.
    if features < T::BLOCK / 2 || !parallel::pays(rows * features * size_of::<T>()) {
        return false;
    }
    let (threads, task) = (parallel::threads(), task());
    let room = rows.div_ceil(task).div_ceil(threads) * threads * task;
    4 * rows <= 3 * room
}

/// y of all rows, side by side in `x` and `y`.
pub(crate) fn forward<T: Element>(
    level: Level,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    mut saved: Option<SavedRows<'_, T>>,
) {
    let features = layer.features;
    let blocks = Blocks::new::<T>(features);
    for (x, y) in x.chunks(CHAIN * features).zip(y.chunks_mut(CHAIN * features)) {
        let mut rows = [Rescaled { exponent: 0, statistics: Statistics::none() }; CHAIN];
        let rows = &mut rows[..x.len() / features];
        let mut saved = saved.as_mut().map(|saved| saved.take_first(rows.len()));
        parallel::lend_wide::<T, _>(2 * blocks.count * rows.len(), |sums| {
            parallel::fill(sums, 2, 2 * size_of_val(x), |index, sums| {
                let block = &x[blocks.in_rows(index)];
                sums.copy_from_slice(&T::block_moments(level, layer.spread, block).to_wide());
            });
            for (i, row) in rows.iter_mut().enumerate() {
                let mut moments = Moments::none();
                for block in 0..blocks.count {
                    let sums = &sums[2 * (i * blocks.count + block)..][..2];
                    moments = moments.join(Moments::from_wide(blocks.columns(block).len(), [sums[0], sums[1]]));
                }
                row.statistics = moments.finish(layer.spread);
                if !row.statistics.safe {
                    let x = &x[i * features..][..features];
                    *row = T::rescued(level, x, layer.spread);
                }
                if let Some(saved) = &mut saved {
                    saved.set(i, &row.in_units_of_row(), row.exponent);
                }
            }
        });
        let y = ArrayViewMut2::from_shape((rows.len(), features), y).expect("y has the elements of its rows");
        parallel::run(Write { level, layer, rows, x, y, tiles: Tiles::new::<T>(features) }, 2 * size_of_val(x));
    }
}

/// sum = mask ⊙ x + residual, of all rows; without a mask where that is empty.
pub(crate) fn add_residual<T: Element>(level: Level, x: &[T], mask: &[T], residual: &[T], sum: &mut [T]) {
    parallel::fill(sum, T::BLOCK, 3 * size_of_val(x), |block, sum| {
        let at = block * T::BLOCK..block * T::BLOCK + sum.len();
        let mask = if mask.is_empty() { mask } else { &mask[at.clone()] };
        T::add_residual(level, &x[at.clone()], mask, &residual[at], sum);
    });
}

/// to += terms, if there are any.
pub(crate) fn add_to<T: Element>(level: Level, to: &mut [T], terms: &[T]) {
    if !terms.is_empty() {
        parallel::fill(to, T::BLOCK, 2 * size_of_val(terms), |block, to| {
            T::add_to(level, to, &terms[block * T::BLOCK..][..to.len()]);
        });
    }
}

/// product = a ⊙ b
pub(crate) fn multiply<T: Element>(level: Level, a: &[T], b: &[T], product: &mut [T]) {
    parallel::fill(product, T::BLOCK, 3 * size_of_val(a), |block, product| {
        let at = block * T::BLOCK..block * T::BLOCK + product.len();
        T::multiply_elements(level, &a[at.clone()], &b[at], product);
    });
}

/// The blocks of rows that are side by side.
#[derive(Clone, Copy)]
struct Blocks {
    features: usize,
    len: usize,
    count: usize,
}

impl Blocks {
    fn new<T: Element>(features: usize) -> Self {
        Self { features, len: T::BLOCK, count: features.div_ceil(T::BLOCK) }
    }

    /// The columns of a block.
    fn columns(&self, block: usize) -> Range<usize> {
        block * self.len..((block + 1) * self.len).min(self.features)
    }

    /// The elements of a block, counted row after row.
    fn in_rows(&self, index: usize) -> Range<usize> {
        let (row, columns) = (index / self.count * self.features, self.columns(index % self.count));
        row + columns.start..row + columns.end
    }
}

/// Columns that are cut into tiles.
#[derive(Clone, Debug)]
struct Tiles {
    columns: Range<usize>,
    /// Of each tile but the last: x, y, gain and bias of a tile fit into L1, and every thread has several tiles.
    width: usize,
}

impl Tiles {
    fn new<T: Element>(features: usize) -> Self {
        let share = features / (4 * parallel::threads());
        Self { columns: 0..features, width: share.next_multiple_of(T::LANES).clamp(16 * T::LANES, T::BLOCK) }
    }

    fn count(&self) -> usize {
        self.columns.len().div_ceil(self.width)
    }

    /// The first `count` tiles, and the others.
    fn split(&self, count: usize) -> (Self, Self) {
        let Range { start, end } = self.columns;
        let middle = (start + count * self.width).min(end);
        let width = self.width;
        (Self { columns: start..middle, width }, Self { columns: middle..end, width })
    }

    /// The columns of each tile, and these counted from the first column of all tiles.
    fn iter(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        let Range { start: first, end } = self.columns;
        self.columns.clone().step_by(self.width).map(move |start| {
            let tile = start..(start + self.width).min(end);
            (tile.clone(), tile.start - first..tile.end - first)
        })
    }
}

/// The second sweep of forward over some columns.
struct Write<'a, T> {
    level: Level,
    layer: &'a Layer<'a, T>,
    rows: &'a [Rescaled<T>],
    x: &'a [T],
    /// The columns of these tiles.
    y: ArrayViewMut2<'a, T>,
    tiles: Tiles,
}

impl<T: Element> Job for Write<'_, T> {
    fn pieces(&self) -> usize {
        self.tiles.count()
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (tiles, others) = self.tiles.split(pieces);
        let (y, y_second) = self.y.split_at(Axis(1), tiles.columns.len());
        (Self { y, tiles, ..self }, Self { y: y_second, tiles: others, ..self })
    }

    fn run(mut self) {
        let Layer { features, .. } = self.layer;
        for (tile, here) in self.tiles.iter() {
            for (i, row) in self.rows.iter().enumerate() {
                let x = &self.x[i * features..][tile.clone()];
                let mut y = self.y.row_mut(i);
                let y = &mut y.as_slice_mut().expect(ROW)[here.clone()];
                T::normalize(self.level, self.layer, row, tile.start, x, y);
            }
        }
    }
}

const ROW: &str = "the columns of a row are side by side";
