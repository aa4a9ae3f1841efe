//! Time: the loop over the steps of a sequence, and back.
//!
//! ```text
//! each piece of the sequence, about ROWS rows:
//!     v = x W_x                                  one product for all steps of the piece
//!     each step:
//!         u = h′ W_h, or v += h′ W_h             one product
//!         state ← cell(u, v, state)              one kernel, its rows over the threads
//!
//! each piece, the last first:
//!     each step, the last first:
//!         du, dv, dh, dc ← cell(…, dy, dh, dc)   one kernel
//!         dh += du W_hᵀ                          one product
//!     dW_h += h′ᵀ du,  dW_x += xᵀ dv,  dx = dv W_xᵀ     one product each for all steps of the piece
//! ```
//!
//! In pieces, because what a piece has made is still in a cache when it is used, and because backward then needs room for
//! the gradients of a piece only. Which rows are a piece follows from the batch alone, and so does the order of all
//! additions.

use std::ops::Range;

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3, Axis, Slice};

use crate::element::Element;
use crate::kernels::columns::{CHAIN, join_block};
use crate::kernels::gates::{NORMS, Step, StepBack};
use crate::matmul::{Into, Matrix};
use crate::number::{Number, Wide};
use crate::parallel::{self, Job};
use crate::rnn::cell::{Cell, Size};
use crate::rnn::saved::{Norm, Saved, mask_of};
use crate::rnn::state::State;
use crate::rnn::weights::{INPUT_WEIGHT, MATRICES, RECURRENT_WEIGHT, Weights};

/// Rows of a piece of a sequence, about.
const ROWS: usize = 1024;

/// Multiplications of a product from which on it is worth several threads.
const WORTH_THREADS: usize = 1 << 18;

/// Rows of a sequence from which on W_h is transposed once, and not by every product of the way back.
const WORTH_TRANSPOSING: usize = 512;

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
    let threads = if c.len() * inner >= WORTH_THREADS { parallel::threads() } else { 1 };
    T::multiply(c, into, Matrix::new(rows, inner, a), b, threads);
}

/// c += aᵀ·b
fn add_transposed<T: Element>(c: &mut [T], a: &[T], b: &[T], rows: usize) {
    let (columns_a, columns_b) = (a.len() / rows, b.len() / rows);
    let threads = if c.len() * rows >= WORTH_THREADS { parallel::threads() } else { 1 };
    let (a, b) = (Matrix::new(rows, columns_a, a).transposed(), Matrix::new(rows, columns_b, b));
    T::multiply(c, Into::Add, a, b, threads);
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

/// Some rows of a step, as work for several threads.
struct Forward<'a, C, T> {
    cell: &'a C,
    step: Step<'a, T>,
}

impl<T: Element, C: Cell<T>> Job for Forward<'_, C, T> {
    fn pieces(&self) -> usize {
        self.step.pieces()
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (first, second) = self.step.split(pieces);
        (Self { step: first, ..self }, Self { step: second, ..self })
    }

    fn run(self) {
        self.cell.forward_rows(self.step);
    }
}

/// Some rows of a step backward, as work for several threads.
struct Backward<'a, C, T> {
    cell: &'a C,
    step: StepBack<'a, T>,
}

impl<T: Element, C: Cell<T>> Job for Backward<'_, C, T> {
    fn pieces(&self) -> usize {
        self.step.pieces()
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (first, second) = self.step.split(pieces);
        (Self { step: first, ..self }, Self { step: second, ..self })
    }

    fn run(self) {
        self.cell.backward_rows(self.step);
    }
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
    let multiplications = steps * batch * (input + hidden) * cell.size().gates * hidden;
    if multiplications >= WORTH_WAKING { parallel::enter(f) } else { f() }
}

/// y and the last state of a sequence; fills `saved`, which fits, and whose mask is there.
pub(crate) fn forward<T: Element, C: Cell<T>>(
    cell: &C,
    x: ArrayView3<'_, T>,
    state: &mut State<T>,
    mut y: ArrayViewMut3<'_, T>,
    saved: &mut Saved<T>,
) {
    let (steps, batch, input) = x.dim();
    let base = cell.base();
    let lengths = Lengths { steps, batch, input, hidden: base.hidden, size: cell.size() };
    let (hidden, size) = (base.hidden, lengths.size);
    let len = lengths.of_step();
    let weights = Products::new(cell, &lengths);
    let Saved { mask, u: kept_u, v: kept_v, h, c, gates, norms, .. } = saved;
    state.copy_to(&mut h[..len.h], &mut c[..len.c]);
    let longest = steps_per_piece(batch).min(steps);
    let tile = if x.as_slice().is_some() { 0 } else { longest * lengths.step(input) };
    parallel::lend(tile + longest * len.v + len.u + lengths.scratch(), |mut buffer| {
        let buffer = &mut buffer;
        let (tile, v, u) = (take(buffer, tile), take(buffer, longest * len.v), take(buffer, len.u));
        let scratch = take(buffer, lengths.scratch());
        for (first, count) in lengths.pieces() {
            let x = adjacent(&x, (first, count), tile);
            multiply(&mut v[..count * len.v], Into::Replace, x, count * batch, weights.input, input);
            for (v, t) in v.chunks_exact_mut(len.v).zip(first..first + count) {
                let (h_before, h) = h[t * len.h..].split_at_mut(len.h);
                let (c_before, c) = c[t * len.c..].split_at_mut(len.c);
                weights.recurrent_forward(h_before, u, v, &lengths);
                let step = Step {
                    rows: batch,
                    piece: rows_per_block(batch),
                    mask: mask_of(mask, batch, t),
                    u,
                    v,
                    h_before,
                    c_before,
                    h: &mut h[..len.h],
                    c: &mut c[..len.c],
                    kept_u: &mut kept_u[nth(t, len.kept_u)],
                    kept_v: &mut kept_v[nth(t, len.kept_v)],
                    gates: &mut gates[nth(t, len.gates)],
                    saved: Norm::saved_rows(norms, size.norms, t * batch..(t + 1) * batch),
                    scratch,
                };
                parallel::run(Forward { cell, step }, lengths.kernel_bytes::<T>());
            }
            let h = &h[(first + 1) * len.h..(first + count + 1) * len.h];
            let h = ArrayView3::from_shape((count, batch, hidden), h).expect("a state for each step");
            y.slice_axis_mut(Axis(0), Slice::from(first..first + count)).assign(&h);
        }
    });
    state.copy_from(&h[steps * len.h..], &c[steps * len.c..]);
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

    /// W_hᵀ: a copy where there is room, because products with it run a fifth faster than with a view.
    fn recurrent_transposed<'b>(&self, to: &'b mut [T]) -> Matrix<'b, T>
    where
        'a: 'b,
    {
        if to.is_empty() { self.recurrent.transposed() } else { self.recurrent.transpose_into(to) }
    }

    /// u = h′ W_h, or v += h′ W_h where there is no u.
    fn recurrent_forward(&self, h_before: &[T], u: &mut [T], v: &mut [T], lengths: &Lengths) {
        let (c, into) = if u.is_empty() { (v, Into::Add) } else { (u, Into::Replace) };
        multiply(c, into, h_before, lengths.batch, self.recurrent, lengths.hidden);
    }
}

/// The state after one step, into `state`; keeps nothing.
pub(crate) fn step<T: Element, C: Cell<T>>(cell: &C, x: ArrayView2<'_, T>, state: &mut State<T>) {
    let (batch, input) = x.dim();
    let base = cell.base();
    let lengths = Lengths { steps: 1, batch, input, hidden: base.hidden, size: cell.size() };
    let x = x.insert_axis(Axis(0));
    let tile = if x.as_slice().is_some() { 0 } else { x.len() };
    let len = lengths.of_step();
    let weights = Products::new(cell, &lengths);
    let all = tile + 2 * (len.h + len.c) + len.v + len.u + len.gates + lengths.scratch();
    parallel::lend(all, |mut buffer| {
        let buffer = &mut buffer;
        let x = adjacent(&x, (0, 1), take(buffer, tile));
        let (h_before, c_before) = (take(buffer, len.h), take(buffer, len.c));
        let (h, c) = (take(buffer, len.h), take(buffer, len.c));
        let (v, u, gates) = (take(buffer, len.v), take(buffer, len.u), take(buffer, len.gates));
        let scratch = take(buffer, lengths.scratch());
        state.copy_to(h_before, c_before);
        multiply(v, Into::Replace, x, batch, weights.input, input);
        weights.recurrent_forward(h_before, u, v, &lengths);
        let saved = [const { None }; NORMS];
        let (h_before, c_before, piece) = (&*h_before, &*c_before, rows_per_block(batch));
        let (h_out, c_out) = (&mut *h, &mut *c);
        let step = Step {
            rows: batch,
            piece,
            mask: None,
            u,
            v,
            h_before,
            c_before,
            h: h_out,
            c: c_out,
            kept_u: &mut [],
            kept_v: &mut [],
            gates,
            saved,
            scratch,
        };
        parallel::run(Forward { cell, step }, lengths.kernel_bytes::<T>());
        state.copy_from(h, c);
    });
}

/// dx, and the gradient by the first state in place of that by the last; adds to `grad`.
pub(crate) fn backward<T: Element, C: Cell<T>>(
    cell: &C,
    x: ArrayView3<'_, T>,
    saved: &Saved<T>,
    dy: ArrayView3<'_, T>,
    d_state: &mut State<T>,
    mut dx: ArrayViewMut3<'_, T>,
    grad: &mut Weights<T>,
) {
    let (steps, batch, input) = x.dim();
    let base = cell.base();
    let lengths = Lengths { steps, batch, input, hidden: base.hidden, size: cell.size() };
    let (hidden, width) = (base.hidden, lengths.columns());
    let len = lengths.of_step();
    let weights = Products::new(cell, &lengths);
    let (block, blocks) = (rows_per_block(batch), lengths.blocks());
    let columns = grad.columns();

    let longest = steps_per_piece(batch).min(steps);
    let masked = !saved.mask.is_empty();
    let x_tile = if x.as_slice().is_some() && !masked { 0 } else { longest * len.x };
    let dx_tile = if dx.as_slice_mut().is_some() { 0 } else { longest * len.x };
    let dy_tile = if dy.as_slice().is_some() { 0 } else { longest * len.h };
    let transposed = if steps * batch >= WORTH_TRANSPOSING { hidden * width } else { 0 };
    let tiles = x_tile + dx_tile + dy_tile + transposed;
    let all = tiles + longest * (len.v + len.u) + len.h + len.c + blocks * columns + lengths.scratch();
    parallel::lend_wide::<T, _>(blocks * columns, |sums| {
        parallel::lend(all, |mut buffer| {
            let buffer = &mut buffer;
            let [x_tile, dx_tile, dy_tile] = [x_tile, dx_tile, dy_tile].map(|len| take(buffer, len));
            let w_h_transposed = weights.recurrent_transposed(take(buffer, transposed));
            let (du, dv) = (take(buffer, longest * len.u), take(buffer, longest * len.v));
            let (dh, dc) = (take(buffer, len.h), take(buffer, len.c));
            let (chains, scratch) = (take(buffer, blocks * columns), take(buffer, lengths.scratch()));
            chains.fill(T::zero());
            let mut chain = 0;
            d_state.copy_to(dh, dc);
            for (first, count) in lengths.pieces().rev() {
                let rows = count * batch;
                let dy = adjacent(&dy, (first, count), dy_tile);
                for i in (0..count).rev() {
                    let t = first + i;
                    if chain + block > CHAIN {
                        T::end_chain(base.level, chains, sums);
                        chain = 0;
                    }
                    chain += block;
                    let du = &mut du[nth(i, len.u)];
                    let dv = &mut dv[nth(i, len.v)];
                    let step = StepBack {
                        rows: batch,
                        piece: block,
                        mask: mask_of(&saved.mask, batch, t),
                        u: &saved.u[nth(t, len.kept_u)],
                        v: &saved.v[nth(t, len.kept_v)],
                        h_before: &saved.h[nth(t, len.h)],
                        c_before: &saved.c[nth(t, len.c)],
                        h: &saved.h[nth(t + 1, len.h)],
                        c: &saved.c[nth(t + 1, len.c)],
                        gates: &saved.gates[nth(t, len.gates)],
                        kept: Norm::kept_rows(&saved.norms, t * batch..(t + 1) * batch),
                        dy: &dy[nth(i, len.h)],
                        dh,
                        dc,
                        du: &mut *du,
                        dv: &mut *dv,
                        columns: chains,
                        scratch,
                    };
                    parallel::run(Backward { cell, step }, lengths.kernel_bytes::<T>());
                    let du = if len.u == 0 { dv } else { du };
                    multiply(dh, Into::Add, du, batch, w_h_transposed, width);
                }
                let (du, dv) = (&du[..count * len.u], &dv[..count * len.v]);
                let du = if len.u == 0 { dv } else { du };
                let h_before = &saved.h[first * len.h..(first + count) * len.h];
                let x = if masked {
                    copy(&x, (first, count), x_tile);
                    let mask = &saved.mask[first * batch..(first + count) * batch];
                    clear_padded(&mut x_tile[..rows * input], mask, input);
                    &x_tile[..rows * input]
                } else {
                    adjacent(&x, (first, count), x_tile)
                };
                let mut slices = grad.slices_mut();
                if let (Some(dw_x), Some(dw_h)) = (slices.next(), slices.next()) {
                    add_transposed(dw_x, x, dv, rows);
                    add_transposed(dw_h, h_before, du, rows);
                }
                let inner = weights.input.transposed();
                if let Some(dx) = dx.as_slice_mut() {
                    let dx = &mut dx[first * len.x..(first + count) * len.x];
                    multiply(dx, Into::Replace, dv, rows, inner, width);
                } else {
                    let tile = &mut dx_tile[..count * len.x];
                    multiply(tile, Into::Replace, dv, rows, inner, width);
                    let tile =
                        ArrayView3::from_shape((count, batch, input), &*tile).expect("a row of dx for each of x");
                    dx.slice_axis_mut(Axis(0), Slice::from(first..first + count)).assign(&tile);
                }
            }
            T::end_chain(base.level, chains, sums);
            d_state.copy_from(dh, dc);
        });
        let (total, others) = sums.split_at_mut(columns);
        others.chunks_exact(columns).for_each(|block| join_block(total, block));
        add_columns(grad, total);
    });
}

/// Sets the rows that are padded to 0: what they hold must not reach a sum, and 0·NaN is not 0.
fn clear_padded<T: Element>(x: &mut [T], mask: &[bool], input: usize) {
    for (row, _) in mask.iter().enumerate().filter(|(_, is_there)| !**is_there) {
        x[row * input..(row + 1) * input].fill(T::zero());
    }
}

/// Adds the column sums to the arrays behind the matrices.
fn add_columns<T: Element>(grad: &mut Weights<T>, total: &[<T as Number>::Wide]) {
    let mut sums = total.iter();
    for array in grad.slices_mut().skip(MATRICES) {
        for (gradient, sum) in array.iter_mut().zip(&mut sums) {
            *gradient = T::from_f64(sum.add((*gradient).into()).value());
        }
    }
}
