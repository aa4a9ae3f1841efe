//! Batch normalization of arrays: column sums over blocks of rows, and y or dx from them.
//!
//! ```text
//! at most a chain of rows:    each tile of columns: statistics, then y      tiles in parallel
//! more:                       sums of each block of rows                    blocks in parallel
//!                             blocks joined, in order
//!                             y of each piece of rows                       pieces in parallel
//! ```
//!
//! Rows that are not side by side are gathered into a tile in front of the same kernels, and scattered behind them.
//! Columns that the kernels mark are taken again, one by one.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use fearless_simd::Level;
use ndarray::{
    ArrayBase, ArrayView, ArrayView2, ArrayViewD, ArrayViewMut, ArrayViewMut2, ArrayViewMutD, Axis, Dimension, IxDyn,
    RawData,
};

use crate::element::Element;
use crate::kernels::batch::{AGAIN, Back, Block, Count, KeptColumns, SAMPLE, SavedColumns, Sums};
use crate::kernels::column::{Column, Own};
use crate::kernels::columns::{CHAIN, Gradient, join_block, rows_per_block};
use crate::kernels::moments::rstd;
use crate::kernels::normalize::Layer;
use crate::number::Wide;
use crate::parallel::{self, Job};
use crate::tiles::{gather, merge_leading, scatter};

/// What all jobs of a call share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a, T> {
    pub(crate) level: Level,
    pub(crate) layer: Layer<'a, T>,
    /// How many trailing axes are a row.
    pub(crate) trailing: usize,
    pub(crate) rows: usize,
    pub(crate) unbiased: bool,
}

/// Bytes of a call's arrays above which they come from memory.
const STREAMS: usize = 12 * 1024 * 1024;

/// Bytes of a tile of columns, about: with its y or dy well within L2.
const PACKED: usize = 128 * 1024;

/// Bytes of a tile of rows, about: small beside L2.
const TILE: usize = 64 * 1024;

impl<'a, T: Element> Call<'a, T> {
    fn count(&self) -> Count {
        let rows = self.rows as f64;
        Count { rows, divisor: if self.unbiased { rows - 1.0 } else { rows } }
    }

    fn bytes(&self, arrays: usize) -> usize {
        arrays * self.rows * self.layer.features * size_of::<T>()
    }

    /// Whether the arrays come from memory, not from a cache.
    fn streams(&self) -> bool {
        self.bytes(2) > STREAMS
    }

    /// Rows of a tile.
    fn tile_rows(&self) -> usize {
        (TILE / size_of::<T>() / self.layer.features).clamp(1, CHAIN)
    }

    fn gain_of(&self, column: usize) -> T {
        self.layer.gain.map_or(T::one(), |gain| gain[column])
    }

    fn bias_of(&self, column: usize) -> T {
        self.layer.bias.map_or(T::zero(), |bias| bias[column])
    }

    /// Rows of a row block.
    fn block(&self) -> usize {
        rows_per_block(self.rows, self.layer.features)
    }

    /// The column sums of all row blocks.
    fn sums(&self) -> usize {
        self.rows.div_ceil(self.block()) * 2 * self.layer.features
    }

    fn block_of<'b>(&self, rows: &'b [T]) -> Block<'b, T> {
        Block { rows, stride: self.layer.features, first: 0 }
    }

    /// Columns of a tile that is taken from its sums to its y.
    fn tile_columns(&self) -> usize {
        (PACKED / size_of::<T>() / self.rows).next_multiple_of(4 * T::LANES)
    }

    /// A tile of columns of all rows: in `buffer`, unless it is all columns. Rows of 2ⁿ bytes would push each other out of
    /// a cache.
    fn pack<'b>(&self, rows: &'b [T], tile: &Range<usize>, buffer: &'b mut [T]) -> Block<'b, T> {
        let features = self.layer.features;
        if tile.len() == features {
            return self.block_of(rows);
        }
        for (packed, row) in buffer.chunks_exact_mut(tile.len()).zip(rows.chunks_exact(features)) {
            packed.copy_from_slice(&row[tile.clone()]);
        }
        Block { rows: &buffer[..self.rows * tile.len()], stride: tile.len(), first: tile.start }
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

    fn column(&self, call: &Call<'_, T>, column: usize) -> ArrayViewD<'_, T> {
        match self {
            Self::Adjacent(slice) => column_of_rows(slice, call, column),
            Self::Strided(view) => column_of(view.view(), call.trailing, column),
        }
    }
}

fn column_of_rows<'a, T: Element>(rows: &'a [T], call: &Call<'_, T>, column: usize) -> ArrayViewD<'a, T> {
    let view = ArrayView2::from_shape((call.rows, call.layer.features), rows).expect("whole rows");
    column_of(view.into_dyn(), 1, column)
}

/// One element of each row.
fn column_of<S: RawData>(mut view: ArrayBase<S, IxDyn>, trailing: usize, mut column: usize) -> ArrayBase<S, IxDyn> {
    for _ in 0..trailing {
        let last = view.ndim() - 1;
        let len = view.len_of(Axis(last));
        view.index_axis_inplace(Axis(last), column % len);
        column /= len;
    }
    view
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

    /// Writes a column.
    fn write_column(&mut self, call: &Call<'_, T>, column: usize, values: impl Iterator<Item = T>) {
        let write = |(to, value): (&mut T, T)| *to = value;
        match self {
            Self::Adjacent(slice) => {
                slice[column..].iter_mut().step_by(call.layer.features).zip(values).for_each(write);
            }
            Self::Strided(view) => {
                column_of(lock(view).view_mut(), call.trailing, column).iter_mut().zip(values).for_each(write);
            }
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

fn lock<'a, 'v, T>(view: &'a Mutex<ArrayViewMutD<'v, T>>) -> MutexGuard<'a, ArrayViewMutD<'v, T>> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ranges of at most `step` that make up `all`.
fn steps(all: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    all.clone().step_by(step).map(move |start| start..(start + step).min(all.end))
}

/// The rows of a sample.
fn sampled(rows: usize) -> impl Iterator<Item = usize> {
    let sample = (1 << rows.ilog2()).min(SAMPLE);
    (0..sample).map(move |i| i * rows / sample)
}

const ROWS: &str = "an array has its rows";

/// The column of a call that is taken again, in the units that forward found.
fn rescaled<T: Element>(
    call: &Call<'_, T>,
    x: &Input<'_, T>,
    exponent: &[i16],
    start: usize,
) -> impl Iterator<Item = (usize, Column<T>)> {
    let marked = exponent.iter().enumerate().filter(|(_, exponent)| **exponent != 0);
    marked.map(move |(c, &exponent)| {
        let x = x.column(call, start + c);
        (c, Column::at(x.iter().copied(), exponent.into(), call.count(), call.layer.spread))
    })
}

/// y of all rows, and what backward needs of each column.
pub(crate) fn forward<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    x: ArrayView<'_, T, D>,
    y: ArrayViewMut<'_, T, D>,
    mut saved: SavedColumns<'_, T>,
) {
    let features = call.layer.features;
    let (x, mut y) = (Input::new(x, call.trailing), Output::new(y, call.trailing));
    if let (true, Input::Adjacent(_), Output::Adjacent(y)) = (call.rows <= CHAIN, &x, &mut y) {
        let y = ArrayViewMut2::from_shape((call.rows, features), y).expect(ROWS);
        return parallel::run(Forward { call, x: &x, y, saved, columns: 0..features }, call.bytes(2));
    }
    let tile = if matches!(x, Input::Adjacent(_)) { 0 } else { features };
    parallel::lend(SAMPLE * tile, |buffer: &mut [T]| {
        let mut rows: [&[T]; SAMPLE] = [&[]; SAMPLE];
        let (mut buffer, mut count) = (buffer, 0);
        for (row, slot) in sampled(call.rows).zip(&mut rows) {
            let (tile, rest) = buffer.split_at_mut(tile);
            (*slot, buffer, count) = (x.rows(call, row..row + 1, tile), rest, count + 1);
        }
        T::batch_sample(call.level, &rows[..count], saved.mean);
    });
    parallel::lend_wide::<T, _>(call.sums(), |sums| {
        let totals = sum_columns(call, saved.mean, &x, None, sums);
        if !T::batch_finish(call.level, call.layer.spread, call.count(), totals, &mut saved) {
            take_again(call, &x, 0, &mut saved);
        }
    });
    let kept = saved.kept();
    parallel::run(Write { call, x: Some(&x), back: None, kept, rows: 0..call.rows, out: y.part() }, call.bytes(2));
    for (c, column) in rescaled(call, &x, kept.exponent, 0) {
        let x = x.column(call, c);
        y.write_column(call, c, x.iter().map(|&x| column.y(x, call.gain_of(c), call.bias_of(c))));
    }
}

/// Takes the statistics of marked columns again.
#[cold]
fn take_again<T: Element>(call: &Call<'_, T>, x: &Input<'_, T>, start: usize, saved: &mut SavedColumns<'_, T>) {
    for c in 0..saved.exponent.len() {
        if saved.exponent[c] == AGAIN {
            let x = x.column(call, start + c);
            let column = Column::new(x.iter().copied(), call.count(), call.layer.spread);
            let Own { mean, low, variance, rstd } = column.own();
            (saved.mean[c], saved.low[c], saved.variance[c], saved.rstd[c]) = (mean, low, variance, rstd);
            saved.exponent[c] = column.exponent as i16;
        }
    }
}

/// y of all rows from statistics of other batches.
pub(crate) fn infer<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    mean: &[T],
    variance: &[T],
    x: ArrayView<'_, T, D>,
    y: ArrayViewMut<'_, T, D>,
) {
    let (x, mut y) = (Input::new(x, call.trailing), Output::new(y, call.trailing));
    infer_rows(call, mean, variance, Some(&x), y.part());
}

/// The same in place of x.
pub(crate) fn infer_inplace<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    mean: &[T],
    variance: &[T],
    x: ArrayViewMut<'_, T, D>,
) {
    infer_rows(call, mean, variance, None, Output::new(x, call.trailing).part());
}

fn infer_rows<'v, T: Element>(
    call: &Call<'_, T>,
    mean: &[T],
    variance: &[T],
    x: Option<&Input<'v, T>>,
    out: Part<'_, 'v, T>,
) {
    parallel::lend_columns(2 * mean.len(), |buffer: &mut [T]| {
        let (low, rstds) = buffer.split_at_mut(mean.len());
        low.fill(T::zero());
        for (r, &variance) in rstds.iter_mut().zip(variance) {
            *r = T::from_f64(rstd(variance.into() + call.layer.spread.eps));
        }
        let kept = KeptColumns { mean, low, rstd: rstds, exponent: &[] };
        parallel::run(Write { call, x, back: None, kept, rows: 0..call.rows, out }, call.bytes(2));
    });
}

/// dx of all rows; adds dgain and dbias to `grad`.
pub(crate) fn backward<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    kept: KeptColumns<'_, T>,
    x: ArrayView<'_, T, D>,
    dy: ArrayView<'_, T, D>,
    dx: ArrayViewMut<'_, T, D>,
    grad: Gradient<'_, T>,
) {
    let features = call.layer.features;
    let (x, dy) = (Input::new(x, call.trailing), Input::new(dy, call.trailing));
    let mut dx = Output::new(dx, call.trailing);
    if let (true, Input::Adjacent(_), Input::Adjacent(_), Output::Adjacent(dx)) = (call.rows <= CHAIN, &x, &dy, &mut dx)
    {
        let dx = ArrayViewMut2::from_shape((call.rows, features), dx).expect(ROWS);
        let job = Backward { call, x: &x, dy: &dy, dx, kept, grad, columns: 0..features };
        return parallel::run(job, call.bytes(3));
    }
    parallel::lend_columns(2 * features, |buffer: &mut [T]| {
        let (k, m) = buffer.split_at_mut(features);
        parallel::lend_wide::<T, _>(call.sums(), |sums| {
            let totals = sum_columns(call, kept.mean, &x, Some(&dy), sums);
            coefficients(call, kept, (&x, &dy), 0, totals, k, m);
            grad.add_wide(totals);
        });
        let back = Some(Slopes { dy: &dy, k, m });
        parallel::run(Write { call, x: Some(&x), back, kept, rows: 0..call.rows, out: dx.part() }, call.bytes(3));
        for (c, column) in rescaled(call, &x, kept.exponent, 0) {
            let (x, dy) = (x.column(call, c), dy.column(call, c));
            let pairs = x.iter().zip(&dy);
            dx.write_column(call, c, pairs.map(|(&x, &dy)| column.dx(x, dy, call.gain_of(c), (k[c], m[c]))));
        }
    });
}

/// k and m of the columns from `start` on; their totals become what dgain and dbias add.
fn coefficients<T: Element>(
    call: &Call<'_, T>,
    kept: KeptColumns<'_, T>,
    (x, dy): (&Input<'_, T>, &Input<'_, T>),
    start: usize,
    totals: &mut [T::Wide],
    k: &mut [T],
    m: &mut [T],
) {
    T::batch_coefficients(call.level, call.count(), kept, totals, k, m);
    let columns = k.len();
    for (c, column) in rescaled(call, x, kept.exponent, start) {
        let (x, dy) = (x.column(call, start + c), dy.column(call, start + c));
        let pairs = x.iter().copied().zip(dy.iter().copied());
        let dgain;
        (k[c], m[c], dgain) = column.coefficients(totals[columns + c].value(), pairs, call.count());
        totals[c] = <T::Wide as Default>::default().add(dgain);
    }
}

/// The column sums of all rows, those of products and then those of terms: in the first places of `sums`.
fn sum_columns<'s, 'v, T: Element>(
    call: &Call<'_, T>,
    about: &[T],
    x: &Input<'v, T>,
    dy: Option<&Input<'v, T>>,
    sums: &'s mut [T::Wide],
) -> &'s mut [T::Wide] {
    let arrays = 1 + usize::from(dy.is_some());
    parallel::run(Sum { call, about, x, dy, rows: 0..call.rows, blocks: &mut *sums }, call.bytes(arrays));
    let width = 2 * call.layer.features;
    let (total, others) = sums.split_at_mut(width);
    others.chunks_exact(width).for_each(|block| join_block(total, block));
    total
}

/// The column sums of some row blocks.
struct Sum<'a, 'v, T: Element> {
    call: &'a Call<'a, T>,
    about: &'a [T],
    x: &'a Input<'v, T>,
    dy: Option<&'a Input<'v, T>>,
    rows: Range<usize>,
    blocks: &'a mut [T::Wide],
}

impl<T: Element> Job for Sum<'_, '_, T> {
    fn pieces(&self) -> usize {
        self.rows.len().div_ceil(self.call.block())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let middle = self.rows.start + pieces * self.call.block();
        let (blocks, blocks_second) = self.blocks.split_at_mut(pieces * 2 * self.call.layer.features);
        (
            Self { rows: self.rows.start..middle, blocks, ..self },
            Self { rows: middle..self.rows.end, blocks: blocks_second, ..self },
        )
    }

    fn run(self) {
        let (call, features) = (self.call, self.call.layer.features);
        let direct = matches!((self.x, self.dy), (Input::Adjacent(_), None | Some(Input::Adjacent(_))));
        let step = if direct { CHAIN } else { call.tile_rows() };
        let tile = if direct { 0 } else { step * features };
        parallel::lend(2 * features + 2 * tile, |buffer: &mut [T]| {
            let (sums, tiles) = buffer.split_at_mut(2 * features);
            let (x_tile, dy_tile) = tiles.split_at_mut(tile);
            sums.fill(T::zero());
            let blocks = self.blocks.chunks_exact_mut(2 * features);
            for (rows, block) in steps(self.rows.clone(), call.block()).zip(blocks) {
                for chain in steps(rows, CHAIN) {
                    for rows in steps(chain, step) {
                        let (products, terms) = sums.split_at_mut(features);
                        let x = call.block_of(self.x.rows(call, rows.clone(), x_tile));
                        let dy = self.dy.map(|dy| call.block_of(dy.rows(call, rows, dy_tile)));
                        T::batch_sums(call.level, call.streams(), self.about, x, dy, &mut Sums { products, terms });
                    }
                    T::batch_end(call.level, sums, block);
                }
            }
        });
    }
}

/// What backward needs beside x to write dx.
#[derive(Clone, Copy)]
struct Slopes<'a, 'v, T> {
    dy: &'a Input<'v, T>,
    k: &'a [T],
    m: &'a [T],
}

/// y, or with `back` dx, of some rows.
struct Write<'a, 'v, T> {
    call: &'a Call<'a, T>,
    /// Nothing where y takes the place of x.
    x: Option<&'a Input<'v, T>>,
    back: Option<Slopes<'a, 'v, T>>,
    kept: KeptColumns<'a, T>,
    rows: Range<usize>,
    out: Part<'a, 'v, T>,
}

/// Rows of a task: about this many bytes.
const PIECE: usize = 128 * 1024;

impl<T: Element> Write<'_, '_, T> {
    /// Rows of a piece.
    fn piece(&self) -> usize {
        (PIECE / size_of::<T>() / self.call.layer.features).max(1).next_multiple_of(4)
    }

    fn is_direct(&self) -> bool {
        let dy = self.back.is_none_or(|back| matches!(back.dy, Input::Adjacent(_)));
        dy && matches!((self.x, &self.out), (Some(Input::Adjacent(_)), Part::Adjacent(_)))
    }
}

impl<T: Element> Job for Write<'_, '_, T> {
    fn pieces(&self) -> usize {
        self.rows.len().div_ceil(self.piece())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let rows = pieces * self.piece();
        let middle = self.rows.start + rows;
        let (first, second) = self.out.split(rows * self.call.layer.features);
        (
            Self { rows: self.rows.start..middle, out: first, ..self },
            Self { rows: middle..self.rows.end, out: second, ..self },
        )
    }

    fn run(mut self) {
        let (call, features) = (self.call, self.call.layer.features);
        let direct = self.is_direct();
        let step = if direct { CHAIN } else { call.tile_rows() };
        let tile = if direct { 0 } else { step * features };
        parallel::lend(3 * tile, |buffer: &mut [T]| {
            let (x_tile, tiles) = buffer.split_at_mut(tile);
            let (dy_tile, out_tile) = tiles.split_at_mut(tile);
            for rows in steps(self.rows.clone(), step) {
                let place = (rows.start - self.rows.start) * features..(rows.end - self.rows.start) * features;
                let x = match self.x {
                    Some(x) => x.rows(call, rows.clone(), x_tile),
                    None => {
                        let x_tile = &mut x_tile[..place.len()];
                        match &self.out {
                            Part::Adjacent(slice) => x_tile.copy_from_slice(&slice[place.clone()]),
                            Part::Strided(view) => gather(&lock(view).view(), call.trailing, rows.clone(), x_tile),
                        }
                        x_tile
                    }
                };
                let back = self.back.map(|Slopes { dy, k, m }| {
                    let dy = call.block_of(dy.rows(call, rows.clone(), dy_tile));
                    Back { dy, k, m }
                });
                let out = match &mut self.out {
                    Part::Adjacent(slice) => &mut slice[place],
                    Part::Strided(_) => &mut out_tile[..place.len()],
                };
                let mut list = list();
                let count = enlist(out.chunks_exact_mut(features), &mut list);
                T::batch_write(
                    call.level,
                    call.streams(),
                    &call.layer,
                    self.kept,
                    call.block_of(x),
                    back,
                    &mut list[..count],
                );
                if let Part::Strided(view) = &self.out {
                    scatter(&out_tile[..rows.len() * features], &mut lock(view), call.trailing, rows);
                }
            }
        });
    }
}

/// No rows yet, and room for a chain of them.
fn list<'a, T>() -> [&'a mut [T]; CHAIN] {
    std::array::from_fn(|_| &mut [][..])
}

/// Puts rows into a list. How many there are.
fn enlist<'a, T>(rows: impl Iterator<Item = &'a mut [T]>, list: &mut [&'a mut [T]; CHAIN]) -> usize {
    let mut count = 0;
    for (slot, row) in list.iter_mut().zip(rows) {
        *slot = row;
        count += 1;
    }
    count
}

/// Forward of some columns of at most a chain of rows.
struct Forward<'a, 'v, T> {
    call: &'a Call<'a, T>,
    x: &'a Input<'v, T>,
    /// These columns of y, as of `saved`.
    y: ArrayViewMut2<'a, T>,
    saved: SavedColumns<'a, T>,
    columns: Range<usize>,
}

impl<T: Element> Job for Forward<'_, '_, T> {
    fn pieces(&self) -> usize {
        self.columns.len().div_ceil(self.call.tile_columns())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let middle = self.columns.start + pieces * self.call.tile_columns();
        let (y, y_second) = self.y.split_at(Axis(1), middle - self.columns.start);
        let (saved, saved_second) = self.saved.split(middle - self.columns.start);
        (
            Self { y, saved, columns: self.columns.start..middle, ..self },
            Self { y: y_second, saved: saved_second, columns: middle..self.columns.end, ..self },
        )
    }

    fn run(self) {
        let Self { call, x: input, mut y, mut saved, columns } = self;
        let rows = input.rows(call, 0..call.rows, &mut []);
        with_buffers(call, 1, &columns, |buffer, totals| {
            let width = call.tile_columns().min(columns.len());
            let (sums, packed) = buffer.split_at_mut(2 * width);
            for tile in steps(columns.clone(), width) {
                let here = tile.start - columns.start..tile.end - columns.start;
                let (x, mut saved) = (call.pack(rows, &tile, packed), saved.part(here.clone()));
                let mut sample: [&[T]; SAMPLE] = [&[]; SAMPLE];
                let mut count = 0;
                for (row, slot) in sampled(call.rows).zip(&mut sample) {
                    (*slot, count) = (x.row(row, 0..tile.len()), count + 1);
                }
                T::batch_sample(call.level, &sample[..count], saved.mean);
                let totals = sum_chain(call, saved.mean, x, None, sums, totals);
                if !T::batch_finish(call.level, call.layer.spread, call.count(), totals, &mut saved) {
                    take_again(call, input, tile.start, &mut saved);
                }
                let kept = saved.kept();
                write_columns(call, kept, x, None, y.view_mut(), here.clone());
                for (c, column) in rescaled(call, input, kept.exponent, tile.start) {
                    let (gain, bias) = (call.gain_of(tile.start + c), call.bias_of(tile.start + c));
                    let x = input.column(call, tile.start + c);
                    let y = y.column_mut(here.start + c);
                    y.into_iter().zip(&x).for_each(|(y, &x)| *y = column.y(x, gain, bias));
                }
            }
        });
    }
}

/// Lends `f` a buffer for the column sums of a tile and for so many packed arrays, and one for the wide sums.
fn with_buffers<T: Element>(
    call: &Call<'_, T>,
    arrays: usize,
    columns: &Range<usize>,
    f: impl FnOnce(&mut [T], &mut [T::Wide]),
) {
    let width = call.tile_columns().min(columns.len());
    let packed = if width == call.layer.features { 0 } else { arrays * call.rows * width };
    parallel::lend(2 * width + packed, |buffer| {
        parallel::lend_wide::<T, _>(2 * width, |totals| f(buffer, totals));
    });
}

/// The column sums of the only chain, those of products and then those of terms: in the first places of `totals`.
fn sum_chain<'s, T: Element>(
    call: &Call<'_, T>,
    about: &[T],
    x: Block<'_, T>,
    dy: Option<Block<'_, T>>,
    buffer: &mut [T],
    totals: &'s mut [T::Wide],
) -> &'s mut [T::Wide] {
    let columns = about.len();
    let sums = &mut buffer[..2 * columns];
    let totals = &mut totals[..2 * columns];
    sums.fill(T::zero());
    totals.fill(Default::default());
    let (products, terms) = sums.split_at_mut(columns);
    T::batch_sums(call.level, false, about, x, dy, &mut Sums { products, terms });
    T::batch_end(call.level, sums, totals);
    totals
}

/// Some columns of y, or with `back` of dx.
fn write_columns<T: Element>(
    call: &Call<'_, T>,
    kept: KeptColumns<'_, T>,
    x: Block<'_, T>,
    back: Option<Back<'_, T>>,
    mut out: ArrayViewMut2<'_, T>,
    here: Range<usize>,
) {
    let mut list = list();
    let rows = out.rows_mut().into_iter().map(|row| &mut row.into_slice().expect(ROWS)[here.clone()]);
    let count = enlist(rows, &mut list);
    T::batch_write(call.level, call.streams(), &call.layer, kept, x, back, &mut list[..count]);
}

/// Backward of some columns of at most a chain of rows.
struct Backward<'a, 'v, T> {
    call: &'a Call<'a, T>,
    x: &'a Input<'v, T>,
    dy: &'a Input<'v, T>,
    /// These columns of dx, as of `kept` and `grad`.
    dx: ArrayViewMut2<'a, T>,
    kept: KeptColumns<'a, T>,
    grad: Gradient<'a, T>,
    columns: Range<usize>,
}

impl<T: Element> Job for Backward<'_, '_, T> {
    fn pieces(&self) -> usize {
        self.columns.len().div_ceil(self.call.tile_columns())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let middle = self.columns.start + pieces * self.call.tile_columns();
        let (here, there) = (middle - self.columns.start, self.columns.len());
        let (dx, dx_second) = self.dx.split_at(Axis(1), here);
        let (grad, grad_second) = self.grad.split(here);
        let (kept, kept_second) = (self.kept.part(0..here), self.kept.part(here..there));
        (
            Self { dx, kept, grad, columns: self.columns.start..middle, ..self },
            Self { dx: dx_second, kept: kept_second, grad: grad_second, columns: middle..self.columns.end, ..self },
        )
    }

    fn run(self) {
        let Self { call, x: x_input, dy: dy_input, mut dx, kept, mut grad, columns } = self;
        let (x_rows, dy_rows) = (x_input.rows(call, 0..call.rows, &mut []), dy_input.rows(call, 0..call.rows, &mut []));
        with_buffers(call, 2, &columns, |buffer, totals| {
            let width = call.tile_columns().min(columns.len());
            let (sums, packed) = buffer.split_at_mut(2 * width);
            let (x_packed, dy_packed) = packed.split_at_mut(packed.len() / 2);
            for tile in steps(columns.clone(), width) {
                let here = tile.start - columns.start..tile.end - columns.start;
                let kept = kept.part(here.clone());
                let (x, dy) = (call.pack(x_rows, &tile, x_packed), call.pack(dy_rows, &tile, dy_packed));
                let totals = sum_chain(call, kept.mean, x, Some(dy), sums, totals);
                let (k, m) = sums[..2 * tile.len()].split_at_mut(tile.len());
                coefficients(call, kept, (x_input, dy_input), tile.start, totals, k, m);
                grad.part(here.clone()).add_wide(totals);
                write_columns(call, kept, x, Some(Back { dy, k, m }), dx.view_mut(), here.clone());
                for (c, column) in rescaled(call, x_input, kept.exponent, tile.start) {
                    let gain = call.gain_of(tile.start + c);
                    let (x, dy) = (x_input.column(call, tile.start + c), dy_input.column(call, tile.start + c));
                    let dx = dx.column_mut(here.start + c);
                    let all = dx.into_iter().zip(x.iter().zip(&dy));
                    all.for_each(|(dx, (&x, &dy))| *dx = column.dx(x, dy, gain, (k[c], m[c])));
                }
            }
        });
    }
}
