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

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3, Axis, Slice};

use crate::element::Element;
use crate::kernels::columns::{CHAIN, end_chain, join_block};
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
const WORTH_THREADS: usize = 1 << 21;

/// Steps of a piece.
fn steps_per_piece(batch: usize) -> usize {
    (ROWS / batch.max(1)).max(1)
}

/// Rows of a step that have column sums of their own, and are done by one thread.
fn rows_per_block(batch: usize) -> usize {
    batch.div_ceil(16).clamp(8, CHAIN)
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
    let (hidden, columns, size) = (base.hidden, lengths.columns(), lengths.size);
    let (step_h, step_c) = (lengths.step(hidden), lengths.step(size.c() * hidden));
    let (step_v, step_u) = (lengths.step(columns), lengths.step(size.u() * hidden));
    let step_gates = lengths.step(size.kept * hidden);
    let (step_kept_u, step_kept_v) = (lengths.step(size.kept_u() * hidden), lengths.step(size.kept_columns * hidden));
    let weights = Products::new(cell, &lengths);
    let Saved { mask, u: kept_u, v: kept_v, h, c, gates, norms, .. } = saved;
    state.copy_to(&mut h[..step_h], &mut c[..step_c]);
    let longest = steps_per_piece(batch).min(steps);
    let tile = if x.as_slice().is_some() { 0 } else { longest * lengths.step(input) };
    parallel::lend(tile + longest * step_v + step_u + lengths.scratch(), |mut buffer| {
        let buffer = &mut buffer;
        let (tile, v, u) = (take(buffer, tile), take(buffer, longest * step_v), take(buffer, step_u));
        let scratch = take(buffer, lengths.scratch());
        for (first, count) in lengths.pieces() {
            let x = adjacent(&x, (first, count), tile);
            multiply(&mut v[..count * step_v], Into::Replace, x, count * batch, weights.input, input);
            for (v, t) in v.chunks_exact_mut(step_v).zip(first..first + count) {
                let (h_before, h) = h[t * step_h..].split_at_mut(step_h);
                let (c_before, c) = c[t * step_c..].split_at_mut(step_c);
                weights.recurrent_forward(h_before, u, v, &lengths);
                let step = Step {
                    rows: batch,
                    piece: rows_per_block(batch),
                    mask: mask_of(mask, batch, t),
                    u,
                    v,
                    h_before,
                    c_before,
                    h: &mut h[..step_h],
                    c: &mut c[..step_c],
                    kept_u: &mut kept_u[t * step_kept_u..(t + 1) * step_kept_u],
                    kept_v: &mut kept_v[t * step_kept_v..(t + 1) * step_kept_v],
                    gates: &mut gates[t * step_gates..(t + 1) * step_gates],
                    saved: Norm::saved_rows(norms, size.norms, t * batch..(t + 1) * batch),
                    scratch,
                };
                parallel::run(Forward { cell, step }, lengths.kernel_bytes::<T>());
            }
            let h = &h[(first + 1) * step_h..(first + count + 1) * step_h];
            let h = ArrayView3::from_shape((count, batch, hidden), h).expect("a state for each step");
            y.slice_axis_mut(Axis(0), Slice::from(first..first + count)).assign(&h);
        }
    });
    state.copy_from(&h[steps * step_h..], &c[steps * step_c..]);
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

    /// W_hᵀ row after row: products with it run a fifth faster than with a transposed view of W_h, at every step.
    fn transpose_recurrent<'b>(&self, to: &'b mut [T]) -> Matrix<'b, T> {
        self.recurrent.transpose_into(to)
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
    let (hidden, columns, size) = (base.hidden, lengths.columns(), lengths.size);
    let (step_h, step_c) = (lengths.step(hidden), lengths.step(size.c() * hidden));
    let (step_v, step_u) = (lengths.step(columns), lengths.step(size.u() * hidden));
    let step_gates = lengths.step(size.kept * hidden);
    let x = x.insert_axis(Axis(0));
    let tile = if x.as_slice().is_some() { 0 } else { x.len() };
    let weights = Products::new(cell, &lengths);
    let all = tile + 2 * (step_h + step_c) + step_v + step_u + step_gates + lengths.scratch();
    parallel::lend(all, |mut buffer| {
        let buffer = &mut buffer;
        let x = adjacent(&x, (0, 1), take(buffer, tile));
        let (h_before, c_before) = (take(buffer, step_h), take(buffer, step_c));
        let (h, c) = (take(buffer, step_h), take(buffer, step_c));
        let (v, u, gates) = (take(buffer, step_v), take(buffer, step_u), take(buffer, step_gates));
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
    let (hidden, width, size) = (base.hidden, lengths.columns(), lengths.size);
    let (step_h, step_c) = (lengths.step(hidden), lengths.step(size.c() * hidden));
    let (step_v, step_u) = (lengths.step(width), lengths.step(size.u() * hidden));
    let (step_kept_u, step_kept_v) = (lengths.step(size.kept_u() * hidden), lengths.step(size.kept_columns * hidden));
    let (step_x, step_gates) = (lengths.step(input), lengths.step(size.kept * hidden));
    let weights = Products::new(cell, &lengths);
    let (block, blocks) = (rows_per_block(batch), lengths.blocks());
    let columns = grad.columns();

    let longest = steps_per_piece(batch).min(steps);
    let masked = !saved.mask.is_empty();
    let x_tile = if x.as_slice().is_some() && !masked { 0 } else { longest * step_x };
    let dx_tile = if dx.as_slice_mut().is_some() { 0 } else { longest * step_x };
    let dy_tile = if dy.as_slice().is_some() { 0 } else { longest * step_h };
    let tiles = x_tile + dx_tile + dy_tile + hidden * width;
    let all = tiles + longest * (step_v + step_u) + step_h + step_c + blocks * columns + lengths.scratch();
    parallel::lend_wide::<T, _>(blocks * columns, |sums| {
        parallel::lend(all, |mut buffer| {
            let buffer = &mut buffer;
            let [x_tile, dx_tile, dy_tile] = [x_tile, dx_tile, dy_tile].map(|len| take(buffer, len));
            let w_h_transposed = weights.transpose_recurrent(take(buffer, hidden * width));
            let (du, dv) = (take(buffer, longest * step_u), take(buffer, longest * step_v));
            let (dh, dc) = (take(buffer, step_h), take(buffer, step_c));
            let (chains, scratch) = (take(buffer, blocks * columns), take(buffer, lengths.scratch()));
            chains.fill(T::zero());
            let mut chain = 0;
            d_state.copy_to(dh, dc);
            for (first, count) in lengths.pieces().rev() {
                let rows = count * batch;
                let dy = adjacent(&dy, (first, count), dy_tile);
                for at in (0..count).rev() {
                    let t = first + at;
                    if chain + block > CHAIN {
                        end_chain(chains, sums);
                        chain = 0;
                    }
                    chain += block;
                    let du = &mut du[at * step_u..(at + 1) * step_u];
                    let dv = &mut dv[at * step_v..(at + 1) * step_v];
                    let step = StepBack {
                        rows: batch,
                        piece: block,
                        mask: mask_of(&saved.mask, batch, t),
                        u: &saved.u[t * step_kept_u..(t + 1) * step_kept_u],
                        v: &saved.v[t * step_kept_v..(t + 1) * step_kept_v],
                        h_before: &saved.h[t * step_h..(t + 1) * step_h],
                        c_before: &saved.c[t * step_c..(t + 1) * step_c],
                        h: &saved.h[(t + 1) * step_h..(t + 2) * step_h],
                        c: &saved.c[(t + 1) * step_c..(t + 2) * step_c],
                        gates: &saved.gates[t * step_gates..(t + 1) * step_gates],
                        kept: Norm::kept_rows(&saved.norms, t * batch..(t + 1) * batch),
                        dy: &dy[at * step_h..(at + 1) * step_h],
                        dh,
                        dc,
                        du: &mut *du,
                        dv: &mut *dv,
                        columns: chains,
                        scratch,
                    };
                    parallel::run(Backward { cell, step }, lengths.kernel_bytes::<T>());
                    let du = if step_u == 0 { dv } else { du };
                    multiply(dh, Into::Add, du, batch, w_h_transposed, width);
                }
                let (du, dv) = (&du[..count * step_u], &dv[..count * step_v]);
                let du = if step_u == 0 { dv } else { du };
                let h_before = &saved.h[first * step_h..(first + count) * step_h];
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
                    let dx = &mut dx[first * step_x..(first + count) * step_x];
                    multiply(dx, Into::Replace, dv, rows, inner, width);
                } else {
                    let tile = &mut dx_tile[..count * step_x];
                    multiply(tile, Into::Replace, dv, rows, inner, width);
                    let tile =
                        ArrayView3::from_shape((count, batch, input), &*tile).expect("a row of dx for each of x");
                    dx.slice_axis_mut(Axis(0), Slice::from(first..first + count)).assign(&tile);
                }
            }
            end_chain(chains, sums);
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
