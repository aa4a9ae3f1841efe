//! dx, dgain and dbias of few wide rows.
//!
//! ```text
//! each chain of rows:
//!     first sweep:   dx of each thread's rows                 dgain and dbias of the first thread's
//!     second sweep:  dgain and dbias of all others            tiles of columns in parallel, row after row
//! ```
//!
//! where rows stay in a core's cache, and none has to be rescaled. Others go by the sweeps of [`long`](super): dx, dgain and dbias
//! belong to the second. The longest do so on one thread, too.

use std::array;
use std::ops::Range;

use fearless_simd::Level;
use ndarray::{ArrayViewMut2, Axis};

use crate::element::Element;
use crate::kernels::columns::{CHAIN, Gradient, rows_per_block};
use crate::kernels::kept::{Coefficients, Row, Rows, Sums};
use crate::kernels::normalize::{Layer, Place};
use crate::kernels::passes::Columns;
use crate::long::{Blocks, ROW, Tiles, shares_columns};
use crate::number::LARGEST_BLOCK;
use crate::parallel::{self, Job};

/// Bytes of the shortest rows whose gain, dgain and dbias leave the cache of a core from row to row.
const LONG: usize = 1024 * 1024;

/// Bytes of the longest rows that threads share out. Of 9600 to 49152 bytes, two threads take 0.65 to 1 of the time of sweeps by
/// columns; of 65536 bytes 1.2 to 1.3.
const SHORT: usize = 48 * 1024;

/// Whether rows are taken here: where these [share columns](shares_columns), or are so long that even one thread is faster where
/// each tile of columns is read once.
pub(crate) fn pays<T: Element>(rows: usize, features: usize) -> bool {
    features * size_of::<T>() >= LONG || shares_columns::<T>(rows, || rows_per_block(rows, features), features)
}

/// dx of all rows; adds dgain and dbias to `grad`.
pub(crate) fn backward<T: Element>(
    level: Level,
    layer: &Layer<'_, T>,
    place: Place,
    rows: Rows<'_, T>,
    dx: &mut [T],
    mut grad: Gradient<'_, T>,
) {
    let (features, all) = (layer.features, rows.count());
    let wide = if all <= CHAIN { 0 } else { 2 * features };
    let per_block = rows_per_block(all, features);
    let room = 2 * Blocks::new::<T>(features).count;
    let chains = |scratch: &mut [T::Wide]| {
        let (total, scratch) = scratch.split_at_mut(wide);
        let (block, sums) = scratch.split_at_mut(wide);
        total.fill(T::Wide::default());
        block.fill(T::Wide::default());
        let mut others = rows;
        for (index, dx) in dx.chunks_mut(CHAIN * features).enumerate() {
            let (rows, next) = others.split(dx.len() / features);
            others = next;
            let end = if wide == 0 {
                End::Gradient(grad.part(0..features))
            } else {
                let (dgain, dbias) = block.split_at_mut(features);
                End::Block(Columns { dgain, dbias })
            };
            if shares_rows(&rows) {
                by_rows(level, layer, place, rows, dx, end);
            } else {
                by_columns(level, layer, rows, &mut sums[..room * rows.count()], dx, end);
            }
            let done = (index + 1) * CHAIN;
            if wide > 0 && (done.is_multiple_of(per_block) || done >= all) {
                T::join_block(level, total, block);
                block.fill(T::Wide::default());
            }
        }
        if wide > 0 {
            grad.add_wide(level, total);
        }
    };
    parallel::lend_wide::<T, _>(2 * wide + room * CHAIN.min(all), chains);
}

/// Whether each thread takes some rows of a chain: where it has several, and they stay in a core's cache between their passes.
fn shares_rows<T: Element>(rows: &Rows<'_, T>) -> bool {
    let threads = parallel::threads();
    let short = rows.features * size_of::<T>() <= SHORT;
    threads > 1 && rows.count() >= 2 * threads && short && rows.kept.are_plain()
}

/// dx of a chain, whose rows are shared out, and its columns.
fn by_rows<T: Element>(
    level: Level,
    layer: &Layer<'_, T>,
    place: Place,
    rows: Rows<'_, T>,
    dx: &mut [T],
    end: End<'_, T>,
) {
    let features = layer.features;
    let each = rows.count().div_ceil(parallel::threads()).next_multiple_of(2);
    parallel::lend(2 * features, |columns| {
        let share = Share { level, layer, place, rows, dx, each, columns: Some(&mut *columns) };
        parallel::share(share, parallel::threads());
        let (dgain, dbias) = columns.split_at_mut(features);
        let (columns, tiles) = (Columns { dgain, dbias }, Tiles::new::<T>(features));
        parallel::share(AddGradient { level, rows: rows.split(each).1, columns, end, tiles }, parallel::threads());
    });
}

/// dx of some rows of a chain.
struct Share<'a, T> {
    level: Level,
    layer: &'a Layer<'a, T>,
    place: Place,
    rows: Rows<'a, T>,
    dx: &'a mut [T],
    /// Rows for each thread.
    each: usize,
    /// Where their dgain and dbias go, if they are the first.
    columns: Option<&'a mut [T]>,
}

impl<T: Element> Job for Share<'_, T> {
    fn pieces(&self) -> usize {
        self.rows.count().div_ceil(self.each)
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (rows, others) = self.rows.split(pieces * self.each);
        let (dx, dx_second) = self.dx.split_at_mut(rows.x.len());
        (Self { rows, dx, ..self }, Self { rows: others, dx: dx_second, columns: None, ..self })
    }

    fn run(self) {
        debug_assert!(self.columns.is_none() || self.rows.count() <= self.each, "the others' sums come behind");
        let Self { level, layer, place, rows: Rows { features, kept, x, dy }, dx, .. } = self;
        let line = features.next_multiple_of(T::LANES);
        parallel::lend(2 * line, |sums: &mut [T]| {
            sums.fill(T::zero());
            let (dgain, dbias) = sums.split_at_mut(line);
            let (dgain, dbias) = (&mut dgain[..features], &mut dbias[..features]);
            T::backward(level, layer, place, kept, x, dy, dx, &mut Columns { dgain, dbias }, None);
            if let Some(columns) = self.columns {
                columns[..features].copy_from_slice(dgain);
                columns[features..].copy_from_slice(dbias);
            }
        });
    }
}

/// What rows add to some columns of dgain and dbias.
struct AddGradient<'a, T: Element> {
    level: Level,
    rows: Rows<'a, T>,
    /// What the rows before have added to these columns.
    columns: Columns<'a, T>,
    /// For these columns.
    end: End<'a, T>,
    tiles: Tiles,
}

impl<T: Element> Job for AddGradient<'_, T> {
    fn pieces(&self) -> usize {
        self.tiles.count()
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (tiles, others) = self.tiles.split(pieces);
        let (columns, columns_second) = self.columns.split(tiles.columns.len());
        let (end, end_second) = self.end.split(tiles.columns.len());
        (Self { columns, end, tiles, ..self }, Self { columns: columns_second, end: end_second, tiles: others, ..self })
    }

    fn run(mut self) {
        for (tile, here) in self.tiles.iter() {
            let mut columns = self.columns.part(here.clone());
            T::add_gradient(self.level, self.rows, tile, &mut columns);
            self.end.add(self.level, here, &mut columns);
        }
    }
}

/// dx of a chain, whose columns are shared out; `sums`: room for two of each block of each row.
fn by_columns<T: Element>(
    level: Level,
    layer: &Layer<'_, T>,
    rows: Rows<'_, T>,
    sums: &mut [T::Wide],
    dx: &mut [T],
    end: End<'_, T>,
) {
    let Rows { features, kept, x, dy } = rows;
    let blocks = Blocks::new::<T>(features);
    let mut rows = [Default::default(); CHAIN];
    let rows = &mut rows[..kept.mean.len()];
    for (i, (row, _)) in rows.iter_mut().enumerate() {
        *row = T::row(level, layer, &kept, i, &x[i * features..][..features]);
    }
    parallel::fill(sums, 2, 2 * size_of_val(x), |index, sums| {
        let (row, start) = (&rows[index / blocks.count].0, blocks.columns(index % blocks.count).start);
        let block = blocks.in_rows(index);
        let of_block = T::backward_sums(level, layer, row, start, &x[block.clone()], &dy[block]);
        sums.copy_from_slice(&of_block.to_wide());
    });
    for ((row, coefficients), sums) in rows.iter_mut().zip(sums.chunks(2 * blocks.count)) {
        let of_blocks = sums.as_chunks().0.iter().map(|&sums| Sums::from_wide(sums));
        *coefficients = row.coefficients_of(of_blocks.fold(Sums::default(), Sums::join), layer);
    }
    let dx = ArrayViewMut2::from_shape((rows.len(), features), dx).expect("dx has the elements of its rows");
    let tiles = Tiles::new::<T>(features);
    parallel::run(WriteGradient { level, layer, rows, x, dy, dx, end, tiles }, 3 * size_of_val(x));
}

/// The second sweep over some columns.
struct WriteGradient<'a, T: Element> {
    level: Level,
    layer: &'a Layer<'a, T>,
    rows: &'a [(Row<T>, Coefficients<T>)],
    x: &'a [T],
    dy: &'a [T],
    /// The columns of these tiles.
    dx: ArrayViewMut2<'a, T>,
    /// For these columns.
    end: End<'a, T>,
    tiles: Tiles,
}

impl<T: Element> Job for WriteGradient<'_, T> {
    fn pieces(&self) -> usize {
        self.tiles.count()
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (tiles, others) = self.tiles.split(pieces);
        let (dx, dx_second) = self.dx.split_at(Axis(1), tiles.columns.len());
        let (end, end_second) = self.end.split(tiles.columns.len());
        (Self { dx, end, tiles, ..self }, Self { dx: dx_second, end: end_second, tiles: others, ..self })
    }

    fn run(mut self) {
        let (mut dgain, mut dbias) = ([T::zero(); LARGEST_BLOCK], [T::zero(); LARGEST_BLOCK]);
        for (tile, here) in self.tiles.iter() {
            let (dgain, dbias) = (&mut dgain[..tile.len()], &mut dbias[..tile.len()]);
            dgain.fill(T::zero());
            dbias.fill(T::zero());
            let mut columns = Columns { dgain, dbias };
            let mut dx = self.dx.slice_axis_mut(Axis(1), here.clone().into());
            let mut dx = dx.axis_iter_mut(Axis(0)).map(|row| row.into_slice().expect(ROW));
            let mut dx: [_; CHAIN] = array::from_fn(|_| dx.next().unwrap_or_default());
            let dx = &mut dx[..self.rows.len()];
            T::backward_tile(self.level, self.layer, self.rows, tile, self.x, self.dy, dx, &mut columns);
            self.end.add(self.level, here, &mut columns);
        }
    }
}

/// Where the column sums of a chain go.
enum End<'a, T: Element> {
    Gradient(Gradient<'a, T>),
    Block(Columns<'a, T::Wide>),
}

impl<T: Element> End<'_, T> {
    /// Those of the first columns, and of the others.
    fn split(self, columns: usize) -> (Self, Self) {
        match self {
            Self::Gradient(grad) => {
                let (first, second) = grad.split(columns);
                (Self::Gradient(first), Self::Gradient(second))
            }
            Self::Block(block) => {
                let (first, second) = block.split(columns);
                (Self::Block(first), Self::Block(second))
            }
        }
    }

    /// Adds the sums of some columns.
    fn add(&mut self, level: Level, columns: Range<usize>, sums: &mut Columns<'_, T>) {
        match self {
            Self::Gradient(grad) => grad.part(columns).add(level, sums.dgain, sums.dbias),
            Self::Block(block) => {
                let block = block.part(columns);
                T::end_chain(level, sums.dgain, block.dgain);
                T::end_chain(level, sums.dbias, block.dbias);
            }
        }
    }
}
