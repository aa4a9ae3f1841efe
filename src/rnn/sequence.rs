//! Time: the loop over the steps of a sequence, and back.
//!
//! In pieces of about [`ROWS`] rows, because what a piece has made is still in a cache when it is used, and because backward
//! then needs room for the gradients of a piece only. Which rows are a piece follows from the batch alone, and so does the
//! order of all additions.

mod backward;
mod forward;

use std::ops::Range;

use ndarray::{ArrayView3, ArrayViewMut3, Axis, Slice};

use crate::element::Element;
use crate::kernels::columns::CHAIN;
use crate::matmul::{Into, Matrix};
use crate::parallel::{self, Job};
use crate::rnn::cell::{Cell, Size};
use crate::rnn::weights::{INPUT_WEIGHT, RECURRENT_WEIGHT};

pub(crate) use backward::backward;
pub(crate) use forward::{Sequence, forward, infer};

/// Rows of a piece of a sequence, about.
const ROWS: usize = 1024;

/// Steps from which on W_h is copied once so that the products of all steps take less. Of one sequence alone, where a product
/// reads it once, the copy brings little, and only over many steps.
const WORTH_COPYING: usize = 8;
const WORTH_COPYING_ALONE: usize = 512;

/// Rows of a sequence from which on W_x is copied so.
const WORTH_COPYING_INPUT: usize = ROWS;

/// Multiplications of a product from which on it is worth several threads.
const WORTH_THREADS: usize = 1 << 18;

/// The same outside of the pool, which may be asleep then.
const WORTH_THREADS_OUTSIDE: usize = 1 << 21;

/// Steps of a piece.
fn steps_per_piece(batch: usize) -> usize {
    (ROWS / batch.max(1)).max(1)
}

/// Rows of a step that have column sums of their own, and are done by one thread.
fn rows_per_block(batch: usize) -> usize {
    batch.div_ceil(16).next_multiple_of(8).min(CHAIN)
}

/// The lengths that a call is made of.
#[derive(Clone, Copy, Debug)]
struct Lengths {
    steps: usize,
    batch: usize,
    input: usize,
    hidden: usize,
    size: Size,
}

impl Lengths {
    fn new<T: Element, C: Cell<T>>(cell: &C, (steps, batch, input): (usize, usize, usize)) -> Self {
        Self { steps, batch, input, hidden: cell.base().hidden, size: cell.size() }
    }

    /// Columns of v.
    fn columns(&self) -> usize {
        self.size.gates * self.hidden
    }

    /// Blocks of a step's rows.
    fn blocks(&self) -> usize {
        self.batch.div_ceil(rows_per_block(self.batch))
    }

    fn scratch(&self) -> usize {
        self.blocks() * self.size.scratch
    }

    /// Elements of a copy of W_x, if the rows are worth one.
    fn copied_input_weights(&self) -> usize {
        if self.steps * self.batch >= WORTH_COPYING_INPUT { self.input * self.columns() } else { 0 }
    }

    /// Elements of a copy of W_h, if the steps are worth one.
    fn copied_weights(&self) -> usize {
        let worth = if self.batch == 1 { WORTH_COPYING_ALONE } else { WORTH_COPYING };
        if self.steps >= worth { self.hidden * self.columns() } else { 0 }
    }

    /// Elements of a step.
    fn step(&self, width: usize) -> usize {
        self.batch * width
    }

    /// Elements of a step of each array.
    fn of_step(&self) -> StepLengths {
        let (hidden, size) = (self.hidden, self.size);
        StepLengths {
            x: self.step(self.input),
            u: self.step(size.u() * hidden),
            v: self.step(self.columns()),
            h: self.step(hidden),
            c: self.step(size.c() * hidden),
            kept_u: self.step(size.kept_u() * hidden),
            kept_v: self.step(size.kept_columns * hidden),
            gates: self.step(size.kept * hidden),
        }
    }

    /// Bytes that a step's kernel touches, times what exp and tanh cost more than a load.
    fn kernel_bytes<T>(&self) -> usize {
        4 * self.step((2 * self.size.gates + self.size.kept + 4) * self.hidden) * size_of::<T>()
    }

    /// Steps of the longest piece.
    fn longest(&self) -> usize {
        steps_per_piece(self.batch).min(self.steps)
    }

    /// Pieces of the sequence: their first step, and how many they are.
    fn pieces(&self) -> impl DoubleEndedIterator<Item = (usize, usize)> + use<> {
        let (steps, piece) = (self.steps, steps_per_piece(self.batch));
        (0..steps.div_ceil(piece)).map(move |i| (i * piece, piece.min(steps - i * piece)))
    }
}

/// Elements of a step of each array.
#[derive(Clone, Copy, Debug)]
struct StepLengths {
    x: usize,
    u: usize,
    v: usize,
    h: usize,
    c: usize,
    kept_u: usize,
    kept_v: usize,
    gates: usize,
}

/// Elements of a step of an array of which each has `len`.
fn nth(step: usize, len: usize) -> Range<usize> {
    step * len..(step + 1) * len
}

/// c = a·b or c += a·b, on several threads if that pays.
fn multiply<T: Element>(c: &mut [T], into: Into, a: &[T], rows: usize, b: Matrix<'_, T>, inner: usize) {
    let threads = threads_for(c.len().saturating_mul(inner));
    T::multiply(c, into, Matrix::new(rows, inner, a), b, threads);
}

/// Threads for a product of so many multiplications.
fn threads_for(multiplications: usize) -> usize {
    let least = if parallel::in_pool() { WORTH_THREADS } else { WORTH_THREADS_OUTSIDE };
    if multiplications >= least { parallel::threads() } else { 1 }
}

/// Some steps of an array, side by side: in place, or copied into `tile`.
fn adjacent<'a, T: Element>(
    array: &'a ArrayView3<'_, T>,
    (first, count): (usize, usize),
    tile: &'a mut [T],
) -> &'a [T] {
    let step = array.len_of(Axis(1)) * array.len_of(Axis(2));
    if let Some(all) = array.as_slice() {
        return &all[first * step..(first + count) * step];
    }
    copy(array, (first, count), tile);
    &tile[..count * step]
}

fn copy<T: Element>(array: &ArrayView3<'_, T>, (first, count): (usize, usize), tile: &mut [T]) {
    let part = array.slice_axis(Axis(0), Slice::from(first..first + count));
    let len = part.len();
    let fits = "a tile has room for a piece";
    ArrayViewMut3::from_shape(part.raw_dim(), &mut tile[..len]).expect(fits).assign(&part);
}

/// Takes `len` elements off the front of a buffer.
fn take<'a, T>(buffer: &mut &'a mut [T], len: usize) -> &'a mut [T] {
    let (first, rest) = std::mem::take(buffer).split_at_mut(len);
    *buffer = rest;
    first
}

/// Multiplications of a sequence from which on it is worth waking the pool.
const WORTH_WAKING: usize = 1 << 23;

/// Calls `f`, which runs the cell over an x of this shape, where its products and kernels reach other threads soonest.
pub(crate) fn on_pool<T: Element, C: Cell<T>>(cell: &C, [steps, batch, input]: [usize; 3], f: impl FnOnce() + Send) {
    let hidden = cell.base().hidden;
    let factors = [steps, batch, input + hidden, cell.size().gates, hidden];
    let multiplications = factors.into_iter().fold(1, usize::saturating_mul);
    if multiplications >= WORTH_WAKING { parallel::enter(f) } else { f() }
}

/// The weights as matrices.
struct Products<'a, T> {
    input: Matrix<'a, T>,
    recurrent: Matrix<'a, T>,
}

impl<'a, T: Element> Products<'a, T> {
    fn new<C: Cell<T>>(cell: &'a C, lengths: &Lengths) -> Self {
        let weights = &cell.base().weights;
        let columns = lengths.columns();
        Self {
            input: Matrix::new(lengths.input, columns, weights.slice(INPUT_WEIGHT)),
            recurrent: Matrix::new(lengths.hidden, columns, weights.slice(RECURRENT_WEIGHT)),
        }
    }
}

/// Weights as many products like them: a copy in panels, where there is room for one.
fn for_products<'a, T: Element>(weights: Matrix<'a, T>, to: &'a mut [T]) -> Matrix<'a, T> {
    if to.is_empty() { weights } else { weights.panels_into(to) }
}

/// Some rows of a step in either direction, as work for several threads.
struct Rows<'a, S, F> {
    step: S,
    pieces: fn(&S) -> usize,
    split: fn(S, usize) -> (S, S),
    run: &'a F,
}

impl<S: Send, F: Fn(S) + Sync> Job for Rows<'_, S, F> {
    fn pieces(&self) -> usize {
        (self.pieces)(&self.step)
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (first, second) = (self.split)(self.step, pieces);
        (Self { step: first, ..self }, Self { step: second, ..self })
    }

    fn run(self) {
        (self.run)(self.step);
    }
}
