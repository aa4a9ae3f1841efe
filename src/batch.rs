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

pub(crate) mod call;
mod flat;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ndarray::{ArrayView, ArrayViewMut, ArrayViewMutD, Dimension};

use crate::batch::call::{Call, Input, coefficients, column_of, enlist, list, rescaled, sampled, steps, take_again};
use crate::element::Element;
use crate::kernels::batch::{Back, KeptColumns, SAMPLE, SavedColumns, Sums};
use crate::kernels::columns::{CHAIN, Gradient, join_block};
use crate::kernels::moments::rstd;
use crate::parallel::{self, Job};
use crate::tiles::{gather, merge_leading, scatter};

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
        return flat::forward(call, &x, y, saved);
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
        return flat::backward(call, kept, (&x, &dy), dx, grad);
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
