//! Few long rows on several threads: in two sweeps, each shared out by columns, tile by tile.
//!
//! ```text
//! each chain of rows:
//!     first sweep:   the sums of each block of each row       blocks in parallel
//!     each row:      its blocks joined, in order
//!     second sweep:  each tile of columns, row after row      tiles in parallel; its gain and bias stay in L1
//! ```
//!
//! Backward adds dgain and dbias in the first sweep, which therefore goes by tiles as well.
//!
//! The orders of additions are those of rows taken one by one, so the bits are.

use std::ops::Range;

use fearless_simd::Level;
use ndarray::{ArrayViewMut2, Axis};

use crate::element::Element;
use crate::kernels::columns::{CHAIN, Gradient, join_block, rows_per_block};
use crate::kernels::moments::{Moments, Statistics};
use crate::kernels::normalize::{Layer, SavedRows};
use crate::kernels::passes::{Coefficients, Columns, KeptRows, Row, Sums};
use crate::kernels::rescale::Rescaled;
use crate::number::LARGEST_BLOCK;
use crate::parallel::{self, Job};

/// Whether so many rows are taken here, on all threads, because tasks of `task` rows would leave these idle for a quarter of
/// the time or more: two sweeps cost about that much more than one.
pub(crate) fn shares_columns<T: Element>(rows: usize, task: usize, features: usize) -> bool {
    if features < 2 * T::BLOCK || !parallel::pays(2 * rows * features * size_of::<T>()) {
        return false;
    }
    let threads = parallel::threads();
    let room = rows.div_ceil(task).div_ceil(threads) * threads * task;
    4 * rows <= 3 * room
}

/// y of all rows, side by side in `x` and `y`.
pub(crate) fn forward<T: Element>(
    level: Level,
    layer: Layer<'_, T>,
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
            parallel::fill(sums, 2, size_of_val(x), |index, sums| {
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
        parallel::run(Write { level, layer, rows, x, y, columns: 0..features }, 2 * size_of_val(x));
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

/// Columns of a tile: x, y, gain and bias of a tile fit into L1.
const fn tile<T: Element>() -> usize {
    T::BLOCK
}

/// The tiles of some columns.
fn tiles<T: Element>(columns: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let end = columns.end;
    columns.clone().step_by(tile::<T>()).map(move |start| start..(start + tile::<T>()).min(end))
}

/// The column where `tiles` tiles of `columns` end.
fn after<T: Element>(columns: &Range<usize>, tiles: usize) -> usize {
    (columns.start + tiles * tile::<T>()).min(columns.end)
}

/// The second sweep of forward over some columns.
struct Write<'a, T> {
    level: Level,
    layer: Layer<'a, T>,
    rows: &'a [Rescaled<T>],
    x: &'a [T],
    /// These columns of y.
    y: ArrayViewMut2<'a, T>,
    columns: Range<usize>,
}

impl<T: Element> Job for Write<'_, T> {
    fn pieces(&self) -> usize {
        self.columns.len().div_ceil(tile::<T>())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let middle = after::<T>(&self.columns, pieces);
        let (first, second) = self.y.split_at(Axis(1), middle - self.columns.start);
        (
            Self { y: first, columns: self.columns.start..middle, ..self },
            Self { y: second, columns: middle..self.columns.end, ..self },
        )
    }

    fn run(mut self) {
        let Layer { features, .. } = self.layer;
        for tile in tiles::<T>(&self.columns) {
            let here = tile.start - self.columns.start..tile.end - self.columns.start;
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

/// dx of all rows, side by side in `x`, `dy` and `dx`; adds dgain and dbias to `grad`.
pub(crate) fn backward<T: Element>(
    level: Level,
    layer: Layer<'_, T>,
    kept: KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    mut grad: Gradient<'_, T>,
) {
    let features = layer.features;
    let all = x.len() / features;
    let wide = if all <= CHAIN { 0 } else { 2 * features };
    let per_block = rows_per_block(all, features);
    let chain = CHAIN * features;
    let blocks = Blocks::new::<T>(features);
    let chains = |scratch: &mut [T::Wide]| {
        let (total, scratch) = scratch.split_at_mut(wide);
        let (block, sums) = scratch.split_at_mut(wide);
        for (index, ((x, dy), dx)) in x.chunks(chain).zip(dy.chunks(chain)).zip(dx.chunks_mut(chain)).enumerate() {
            let first = index * CHAIN;
            let mut rows = [Default::default(); CHAIN];
            let rows = &mut rows[..x.len() / features];
            let kept = kept.rows(first..first + rows.len());
            for (i, (row, _)) in rows.iter_mut().enumerate() {
                *row = T::row(level, &layer, &kept, i, &x[i * features..][..features]);
            }
            let end = if wide == 0 {
                End::Gradient(grad.part(0..features))
            } else {
                let (dgain, dbias) = block.split_at_mut(features);
                End::Block { dgain, dbias }
            };
            let sums = &mut sums.as_chunks_mut().0[..blocks.count * rows.len()];
            let job = Sum { level, layer, rows, x, dy, sums, end, columns: 0..features };
            parallel::run(job, 2 * size_of_val(x));
            for (i, (row, coefficients)) in rows.iter_mut().enumerate() {
                let of_blocks = sums.iter().skip(i).step_by(x.len() / features);
                let total = of_blocks.fold(Sums::default(), |sum, &next| sum.join(Sums::from_wide(next)));
                *coefficients = row.coefficients_of(total, &layer);
            }
            let dx = ArrayViewMut2::from_shape((rows.len(), features), dx).expect("dx has the elements of its rows");
            parallel::run(WriteGradient { level, layer, rows, x, dy, dx, columns: 0..features }, 3 * size_of_val(x));
            if wide > 0 && ((first + CHAIN).is_multiple_of(per_block) || first + CHAIN >= all) {
                join_block(total, block);
                block.fill(T::Wide::default());
            }
        }
        if wide > 0 {
            grad.add_wide(total);
        }
    };
    // Not one wake-up for each sweep of each chain.
    parallel::enter(|| parallel::lend_wide::<T, _>(2 * wide + 2 * blocks.count * CHAIN.min(all), chains));
}

/// Where the column sums of a chain go.
enum End<'a, T: Element> {
    Gradient(Gradient<'a, T>),
    Block { dgain: &'a mut [T::Wide], dbias: &'a mut [T::Wide] },
}

impl<T: Element> End<'_, T> {
    /// Those of the first columns, and of the others.
    fn split(self, columns: usize) -> (Self, Self) {
        match self {
            Self::Gradient(grad) => {
                let (first, second) = grad.split(columns);
                (Self::Gradient(first), Self::Gradient(second))
            }
            Self::Block { dgain, dbias } => {
                let (dgain, dgain_second) = dgain.split_at_mut(columns);
                let (dbias, dbias_second) = dbias.split_at_mut(columns);
                (Self::Block { dgain, dbias }, Self::Block { dgain: dgain_second, dbias: dbias_second })
            }
        }
    }

    /// Adds the sums of some columns.
    fn add(&mut self, level: Level, columns: Range<usize>, sums: &mut Columns<'_, T>) {
        match self {
            Self::Gradient(grad) => grad.part(columns).add(sums.dgain, sums.dbias),
            Self::Block { dgain, dbias } => {
                T::end_chain(level, sums.dgain, &mut dgain[columns.clone()]);
                T::end_chain(level, sums.dbias, &mut dbias[columns]);
            }
        }
    }
}

/// The first sweep of backward over some columns.
struct Sum<'a, T: Element> {
    level: Level,
    layer: Layer<'a, T>,
    rows: &'a [(Row<T>, Coefficients<T>)],
    x: &'a [T],
    dy: &'a [T],
    /// Of each row in each of these tiles, tile by tile.
    sums: &'a mut [[T::Wide; 2]],
    /// For these columns.
    end: End<'a, T>,
    columns: Range<usize>,
}

impl<T: Element> Job for Sum<'_, T> {
    fn pieces(&self) -> usize {
        self.columns.len().div_ceil(tile::<T>())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let middle = after::<T>(&self.columns, pieces);
        let (first, second) = self.end.split(middle - self.columns.start);
        let (sums, sums_second) = self.sums.split_at_mut(pieces * self.rows.len());
        (
            Self { sums, end: first, columns: self.columns.start..middle, ..self },
            Self { sums: sums_second, end: second, columns: middle..self.columns.end, ..self },
        )
    }

    fn run(mut self) {
        let (mut dgain, mut dbias) = ([T::zero(); LARGEST_BLOCK], [T::zero(); LARGEST_BLOCK]);
        for (tile, sums) in tiles::<T>(&self.columns).zip(self.sums.chunks_exact_mut(self.rows.len())) {
            let (dgain, dbias) = (&mut dgain[..tile.len()], &mut dbias[..tile.len()]);
            dgain.fill(T::zero());
            dbias.fill(T::zero());
            let mut columns = Columns { dgain, dbias };
            T::tile_sums(self.level, &self.layer, self.rows, tile.clone(), self.x, self.dy, sums, &mut columns);
            self.end.add(self.level, tile.start - self.columns.start..tile.end - self.columns.start, &mut columns);
        }
    }
}

/// The second sweep of backward over some columns.
struct WriteGradient<'a, T> {
    level: Level,
    layer: Layer<'a, T>,
    rows: &'a [(Row<T>, Coefficients<T>)],
    x: &'a [T],
    dy: &'a [T],
    /// These columns of dx.
    dx: ArrayViewMut2<'a, T>,
    columns: Range<usize>,
}

impl<T: Element> Job for WriteGradient<'_, T> {
    fn pieces(&self) -> usize {
        self.columns.len().div_ceil(tile::<T>())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let middle = after::<T>(&self.columns, pieces);
        let (first, second) = self.dx.split_at(Axis(1), middle - self.columns.start);
        (
            Self { dx: first, columns: self.columns.start..middle, ..self },
            Self { dx: second, columns: middle..self.columns.end, ..self },
        )
    }

    fn run(mut self) {
        let Layer { features, .. } = self.layer;
        for tile in tiles::<T>(&self.columns) {
            let here = tile.start - self.columns.start..tile.end - self.columns.start;
            for (i, row) in self.rows.iter().enumerate() {
                let at = i * features + tile.start..i * features + tile.end;
                let (x, dy) = (&self.x[at.clone()], &self.dy[at]);
                let mut dx = self.dx.row_mut(i);
                let dx = &mut dx.as_slice_mut().expect(ROW)[here.clone()];
                T::write_row(self.level, &self.layer, row, tile.start, x, dy, dx);
            }
        }
    }
}
