//! The only place where arrays, threads and kernels meet.
//!
//! Rows side by side in memory go to the kernels as they are. All others are gathered into a tile in front of the same
//! kernels, and scattered behind them. Rows are cut into jobs; what a job writes is its own, but for strided outputs,
//! which the jobs fill one after the other.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fearless_simd::Level;
use ndarray::{ArrayView, ArrayViewD, ArrayViewMut, ArrayViewMutD, Dimension};

use crate::element::Element;
use crate::kernels::columns::{CHAIN, Gradient, end_chain, join_block, rows_per_block};
use crate::kernels::normalize::{Layer, SavedRows};
use crate::kernels::passes::{Columns, KeptRows};
use crate::long;
use crate::parallel::{self, Job};
use crate::tiles::{gather, merge_leading, scatter};

/// What all jobs of a call share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a, T> {
    pub(crate) level: Level,
    pub(crate) layer: Layer<'a, T>,
    /// How many trailing axes are a row.
    pub(crate) trailing: usize,
}

/// Bytes of a tile, about: small beside L2.
const TILE: usize = 64 * 1024;

impl<T: Element> Call<'_, T> {
    /// Rows of a tile.
    fn tile_rows(&self) -> usize {
        (TILE / size_of::<T>() / self.layer.features).clamp(1, CHAIN)
    }
}

/// Rows to be read.
#[derive(Debug)]
enum Input<'a, T> {
    Adjacent(&'a [T]),
    Strided(ArrayViewD<'a, T>),
}

impl<'a, T: Element> Input<'a, T> {
    fn new<D: Dimension>(view: ArrayView<'a, T, D>, trailing: usize) -> Self {
        match view.to_slice() {
            Some(slice) => Self::Adjacent(slice),
            None => {
                let mut view = view.into_dyn();
                merge_leading(&mut view, trailing);
                Self::Strided(view)
            }
        }
    }

    /// Some rows, in `tile` if they are not side by side.
    fn rows<'b>(&'b self, call: &Call<'_, T>, rows: Range<usize>, tile: &'b mut [T]) -> &'b [T] {
        let features = call.layer.features;
        match self {
            Self::Adjacent(slice) => &slice[rows.start * features..rows.end * features],
            Self::Strided(view) => {
                let tile = &mut tile[..rows.len() * features];
                gather(view, call.trailing, rows, tile);
                tile
            }
        }
    }
}

/// Rows to be written.
#[derive(Debug)]
enum Output<'a, T> {
    Adjacent(&'a mut [T]),
    Strided(Mutex<ArrayViewMutD<'a, T>>),
}

impl<'a, T: Element> Output<'a, T> {
    fn new<D: Dimension>(mut view: ArrayViewMut<'a, T, D>, trailing: usize) -> Self {
        if view.as_slice_mut().is_some() {
            Self::Adjacent(view.into_slice().expect("it was a slice a line ago"))
        } else {
            let mut view = view.into_dyn();
            merge_leading(&mut view, trailing);
            Self::Strided(Mutex::new(view))
        }
    }

    fn part(&mut self) -> Part<'_, 'a, T> {
        match self {
            Self::Adjacent(slice) => Part::Adjacent(slice),
            Self::Strided(view) => Part::Strided(view),
        }
    }
}

/// What one job writes of an output.
#[derive(Debug)]
enum Part<'a, 'v, T> {
    Adjacent(&'a mut [T]),
    Strided(&'a Mutex<ArrayViewMutD<'v, T>>),
}

impl<T: Element> Part<'_, '_, T> {
    fn split(self, elements: usize) -> (Self, Self) {
        match self {
            Self::Adjacent(slice) => {
                let (first, second) = slice.split_at_mut(elements);
                (Self::Adjacent(first), Self::Adjacent(second))
            }
            Self::Strided(view) => (Self::Strided(view), Self::Strided(view)),
        }
    }
}

/// Has `f` fill some rows of a part that starts at row `first`, by way of `tile` if they are not side by side.
fn fill<T: Element>(
    call: &Call<'_, T>,
    part: &mut Part<'_, '_, T>,
    first: usize,
    rows: Range<usize>,
    tile: &mut [T],
    f: impl FnOnce(&mut [T]),
) {
    let features = call.layer.features;
    match part {
        Part::Adjacent(slice) => f(&mut slice[(rows.start - first) * features..(rows.end - first) * features]),
        Part::Strided(view) => {
            let tile = &mut tile[..rows.len() * features];
            f(tile);
            scatter(tile, &mut lock(view), call.trailing, rows);
        }
    }
}

fn lock<'a, 'v, T>(view: &'a Mutex<ArrayViewMutD<'v, T>>) -> MutexGuard<'a, ArrayViewMutD<'v, T>> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ranges of at most `step` that make up `rows`.
fn steps(rows: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    rows.clone().step_by(step).map(move |start| start..(start + step).min(rows.end))
}

/// Bytes of a call's arrays above which they come from memory, not from a cache.
const STREAMS: usize = 12 * 1024 * 1024;

/// y of all rows, and what backward needs of each.
pub(crate) fn forward<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    x: ArrayView<'_, T, D>,
    y: ArrayViewMut<'_, T, D>,
    saved: Option<SavedRows<'_, T>>,
) {
    let rows = x.len() / call.layer.features;
    let (x, mut y) = (Input::new(x, call.trailing), Output::new(y, call.trailing));
    if let (Input::Adjacent(x), Output::Adjacent(y), true) = (&x, &mut y, long::is_long::<T>(call.layer.features)) {
        return long::forward(call.level, call.layer, x, y, saved);
    }
    let bytes = 2 * rows * call.layer.features * size_of::<T>();
    let job = Forward { call, streams: bytes > STREAMS, rows: 0..rows, x: Some(&x), y: y.part(), saved };
    parallel::run(job, bytes);
}

/// y of all rows, in place of x.
pub(crate) fn forward_inplace<T: Element, D: Dimension>(call: &Call<'_, T>, x: ArrayViewMut<'_, T, D>) {
    let rows = x.len() / call.layer.features;
    let mut y = Output::new(x, call.trailing);
    let job = Forward { call, streams: false, rows: 0..rows, x: None, y: y.part(), saved: None };
    parallel::run(job, 2 * rows * call.layer.features * size_of::<T>());
}

/// Forward of some rows.
struct Forward<'a, 'v, T> {
    call: &'a Call<'a, T>,
    /// The arrays of the call do not fit into the caches.
    streams: bool,
    rows: Range<usize>,
    /// Nothing where y takes the place of x.
    x: Option<&'a Input<'v, T>>,
    y: Part<'a, 'v, T>,
    saved: Option<SavedRows<'a, T>>,
}

/// Rows of a task of forward: about this many bytes.
const PIECE: usize = 128 * 1024;

impl<T: Element> Forward<'_, '_, T> {
    /// Rows of a piece.
    fn piece(&self) -> usize {
        (PIECE / size_of::<T>() / self.call.layer.features).max(1).next_multiple_of(8)
    }
}

impl<T: Element> Job for Forward<'_, '_, T> {
    fn pieces(&self) -> usize {
        self.rows.len().div_ceil(self.piece())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let rows = pieces * self.piece();
        let middle = self.rows.start + rows;
        let (first, second) = self.y.split(rows * self.call.layer.features);
        let (saved_first, saved_second) = self.saved.map(|saved| saved.split(rows)).unzip();
        (
            Self { rows: self.rows.start..middle, y: first, saved: saved_first, ..self },
            Self { rows: middle..self.rows.end, y: second, saved: saved_second, ..self },
        )
    }

    fn run(mut self) {
        let Call { level, layer, trailing } = *self.call;
        let direct = matches!((self.x, &self.y), (Some(Input::Adjacent(_)), Part::Adjacent(_)));
        let step = if direct { self.rows.len() } else { self.call.tile_rows() };
        let tile = if direct { 0 } else { step * layer.features };
        let mut saved = self.saved.take();
        parallel::lend(2 * tile, |buffer| {
            let (x_tile, y_tile) = buffer.split_at_mut(tile);
            for rows in steps(self.rows.clone(), step.max(1)) {
                let x = match (self.x, &self.y) {
                    (Some(x), _) => x.rows(self.call, rows.clone(), x_tile),
                    (None, part) => {
                        let x_tile = &mut x_tile[..rows.len() * layer.features];
                        match part {
                            Part::Adjacent(slice) => {
                                let start = (rows.start - self.rows.start) * layer.features;
                                x_tile.copy_from_slice(&slice[start..start + x_tile.len()]);
                            }
                            Part::Strided(view) => gather(&lock(view).view(), trailing, rows.clone(), x_tile),
                        }
                        x_tile
                    }
                };
                let now = saved.as_mut().map(|saved| saved.take_first(rows.len()));
                fill(self.call, &mut self.y, self.rows.start, rows, y_tile, |y| {
                    T::forward(level, layer, self.streams, x, y, now);
                });
            }
        });
    }
}

/// dx of all rows; adds dgain and dbias to `grad`.
pub(crate) fn backward<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    kept: KeptRows<'_, T>,
    x: ArrayView<'_, T, D>,
    dy: ArrayView<'_, T, D>,
    dx: ArrayViewMut<'_, T, D>,
    grad: Gradient<'_, T>,
) {
    let features = call.layer.features;
    let rows = x.len() / features;
    let (x, dy) = (Input::new(x, call.trailing), Input::new(dy, call.trailing));
    let mut dx = Output::new(dx, call.trailing);
    if let (Input::Adjacent(x), Input::Adjacent(dy), Output::Adjacent(dx), true) =
        (&x, &dy, &mut dx, long::is_long::<T>(features))
    {
        return long::backward(call.level, call.layer, kept, x, dy, dx, grad);
    }
    let bytes = 3 * rows * features * size_of::<T>();
    let streams = bytes > STREAMS;
    let job =
        Backward { call, streams, rows: 0..rows, all: rows, kept, x: &x, dy: &dy, dx: dx.part(), blocks: &mut [] };
    if rows <= CHAIN {
        // One chain: nothing wider is needed.
        job.with_buffers(|job, mut buffers| {
            job.run_chain(0..rows, &mut buffers);
            grad.add(buffers.columns.dgain, buffers.columns.dbias);
        });
        return;
    }
    let block = rows_per_block(rows, features);
    let blocks = rows.div_ceil(block);
    parallel::lend_wide::<T, _>(blocks * 2 * features, |sums| {
        parallel::run(Backward { blocks: sums, ..job }, bytes);
        let (total, others) = sums.split_at_mut(2 * features);
        others.chunks_exact(2 * features).for_each(|block| join_block(total, block));
        grad.add_wide(total);
    });
}

/// Backward of some row blocks.
struct Backward<'a, 'v, T: Element> {
    call: &'a Call<'a, T>,
    /// The arrays of the call do not fit into the caches.
    streams: bool,
    rows: Range<usize>,
    /// Rows of the whole call: they decide what a block is.
    all: usize,
    kept: KeptRows<'a, T>,
    x: &'a Input<'v, T>,
    dy: &'a Input<'v, T>,
    dx: Part<'a, 'v, T>,
    /// dgain and dbias of each block, one behind the other.
    blocks: &'a mut [T::Wide],
}

/// Column sums, and a tile each for x, dy and dx.
struct Buffers<'a, T> {
    columns: Columns<'a, T>,
    x: &'a mut [T],
    dy: &'a mut [T],
    dx: &'a mut [T],
}

impl<T: Element> Backward<'_, '_, T> {
    /// Elements of a tile: 0 if the kernels can have the rows as they are.
    fn tile(&self) -> usize {
        let direct = matches!((self.x, self.dy, &self.dx), (Input::Adjacent(_), Input::Adjacent(_), Part::Adjacent(_)));
        if direct { 0 } else { self.call.tile_rows() * self.call.layer.features }
    }

    /// Lends `f` its buffers, the columns zeroed.
    fn with_buffers(mut self, f: impl FnOnce(&mut Self, Buffers<'_, T>)) {
        let (features, tile) = (self.call.layer.features, self.tile());
        // dbias starts at a cache line, as dgain does.
        let line = features.next_multiple_of(T::LANES);
        parallel::lend(2 * line + 3 * tile, |buffer: &mut [T]| {
            let (columns, tiles) = buffer.split_at_mut(2 * line);
            let (x, tiles) = tiles.split_at_mut(tile);
            let (dy, dx) = tiles.split_at_mut(tile);
            columns.fill(T::zero());
            let (dgain, dbias) = columns.split_at_mut(line);
            let columns = Columns { dgain: &mut dgain[..features], dbias: &mut dbias[..features] };
            f(&mut self, Buffers { columns, x, dy, dx });
        });
    }

    /// dx of some rows, at most a chain; adds to the columns.
    fn run_chain(&mut self, rows: Range<usize>, buffers: &mut Buffers<'_, T>) {
        let Call { level, layer, .. } = *self.call;
        let columns = &mut buffers.columns;
        let step = if buffers.x.is_empty() { CHAIN } else { self.call.tile_rows() };
        for rows in steps(rows, step) {
            let x = self.x.rows(self.call, rows.clone(), buffers.x);
            let dy = self.dy.rows(self.call, rows.clone(), buffers.dy);
            let kept = self.kept.rows(rows.clone());
            fill(self.call, &mut self.dx, self.rows.start, rows, buffers.dx, |dx| {
                T::backward(level, layer, self.streams, kept, x, dy, dx, columns);
            });
        }
    }

    fn block(&self) -> usize {
        rows_per_block(self.all, self.call.layer.features)
    }
}

impl<T: Element> Job for Backward<'_, '_, T> {
    fn pieces(&self) -> usize {
        self.rows.len().div_ceil(self.block())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (rows, features) = (pieces * self.block(), self.call.layer.features);
        let middle = self.rows.start + rows;
        let (first, second) = self.dx.split(rows * features);
        let (blocks_first, blocks_second) = self.blocks.split_at_mut(pieces * 2 * features);
        (
            Self { rows: self.rows.start..middle, dx: first, blocks: blocks_first, ..self },
            Self { rows: middle..self.rows.end, dx: second, blocks: blocks_second, ..self },
        )
    }

    fn run(self) {
        let (block, features) = (self.block(), self.call.layer.features);
        self.with_buffers(|job, mut buffers| {
            for (index, rows) in steps(job.rows.clone(), block).enumerate() {
                for chain in steps(rows, CHAIN) {
                    job.run_chain(chain, &mut buffers);
                    let (dgain, dbias) = job.blocks[2 * index * features..][..2 * features].split_at_mut(features);
                    end_chain(buffers.columns.dgain, dgain);
                    end_chain(buffers.columns.dbias, dbias);
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::kernels::moments::Epsilon;
    use crate::simd;

    const ROWS: usize = 5000;
    const FEATURES: usize = 33;

    /// y, dx, dgain and dbias, one behind the other.
    fn all_bits(long: bool) -> Vec<u32> {
        let number = |i: usize, j: usize, prime: usize| ((i * FEATURES + j) * prime % 1009) as f32 / 300.0;
        let mut x = Array2::from_shape_fn((ROWS, FEATURES), |(i, j)| number(i, j, 31));
        x.row_mut(70).mapv_inplace(|x| x * 1e30);
        let dy = Array2::from_shape_fn((ROWS, FEATURES), |(i, j)| number(i, j, 37) - 1.0);
        let layer = Layer { features: FEATURES, gain: None, bias: None, epsilon: Epsilon::new(1e-5) };
        let call = Call { level: simd::level(), layer, trailing: 1 };

        let (mut y, mut dx) = (x.clone(), x.clone());
        let (mut numbers, mut exponent) = ([0; 3].map(|_| vec![0.0; ROWS]), vec![0; ROWS]);
        let [mean, low, rstd] = &mut numbers;
        let saved = SavedRows { mean, low, rstd, exponent: &mut exponent };
        let slices = (x.as_slice().expect("standard"), dy.as_slice().expect("standard"));
        if long {
            long::forward(call.level, layer, slices.0, y.as_slice_mut().expect("standard"), Some(saved));
        } else {
            forward(&call, x.view(), y.view_mut(), Some(saved));
        }
        let [mean, low, rstd] = &numbers;
        let kept = KeptRows { mean, low, rstd, exponent: &exponent };
        let (mut dgain, mut dbias) = (vec![1.0; FEATURES], vec![2.0; FEATURES]);
        let grad = Gradient { gain: Some(&mut dgain), bias: Some(&mut dbias) };
        if long {
            let dx = dx.as_slice_mut().expect("standard");
            long::backward(call.level, layer, kept, slices.0, slices.1, dx, grad);
        } else {
            backward(&call, kept, x.view(), dy.view(), dx.view_mut(), grad);
        }
        y.iter().chain(&dx).chain(&dgain).chain(&dbias).map(|x| x.to_bits()).collect()
    }

    /// Rows this short never go there; with so many of them, a row block has two chains, which no test with long rows
    /// could afford.
    #[test]
    fn rows_taken_tile_by_tile_have_the_bits_of_rows_taken_one_by_one() {
        assert!(rows_per_block(ROWS, FEATURES) > CHAIN);
        let (tiles, rows) = (all_bits(true), all_bits(false));
        for (i, (tiles, rows)) in tiles.iter().zip(&rows).enumerate() {
            assert_eq!(tiles, rows, "number {i} of y, dx, dgain, dbias; y has {}", ROWS * FEATURES);
        }
    }
}
