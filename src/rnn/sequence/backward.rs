//! The loop over the steps of a sequence, the last first.
//!
//! ```text
//! W_hᵀ in panels                                            a copy, for all steps
//! each piece, the last first:
//!     each step, the last first:
//!         du, dv, dh, dc ← cell(…, dy, dh, dc)              one kernel, its rows over the threads
//!         dh += du W_hᵀ                                     one product
//!     dW_h += h′ᵀ du,  dW_x += xᵀ dv,  dx = dv W_xᵀ         one product each for all steps of the piece
//! ```

use fearless_simd::Level;
use ndarray::{ArrayView3, ArrayViewMut3, Axis, Slice};

use crate::element::Element;
use crate::kernels::columns::CHAIN;
use crate::kernels::gates::StepBack;
use crate::matmul::{Into, Matrix};
use crate::number::Number;
use crate::parallel;
use crate::rnn::cell::Cell;
use crate::rnn::saved::{Norm, Saved, mask_of};
use crate::rnn::sequence::{
    Lengths, Products, Rows, adjacent, copy, for_products, multiply, nth, rows_per_block, take, threads_for,
};
use crate::rnn::state::State;
use crate::rnn::weights::{MATRICES, Weights};

/// Elements of xᵀ or h′ᵀ of a piece from which on a copy pays: read across long rows, they take 6 % longer.
const WORTH_TURNING: usize = 1 << 19;

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
    let lengths = Lengths::new(cell, x.dim());
    let (Lengths { batch, input, .. }, width) = (lengths, lengths.columns());
    let len = lengths.of_step();
    let weights = Products::new(cell, &lengths);
    let (block, blocks) = (rows_per_block(batch), lengths.blocks());
    let columns = grad.columns();

    let longest = lengths.longest();
    let masked = !saved.mask.is_empty();
    let x_tile = if x.as_slice().is_some() && !masked { 0 } else { longest * len.x };
    let dx_tile = if dx.as_slice_mut().is_some() { 0 } else { longest * len.x };
    let dy_tile = if dy.as_slice().is_some() { 0 } else { longest * len.h };
    let transposed = lengths.copied_weights();
    let turned = [len.x, len.h].map(|len| longest * len).into_iter().filter(|&len| len >= WORTH_TURNING).max();
    let turned = turned.unwrap_or(0);
    let tiles = x_tile + dx_tile + dy_tile + transposed + turned;
    let all = tiles + longest * (len.v + len.u) + len.h + len.c + blocks * columns + lengths.scratch();
    parallel::lend_wide::<T, _>(blocks * columns, |sums| {
        sums.fill(T::Wide::default());
        parallel::lend(all, |mut buffer| {
            let buffer = &mut buffer;
            let [x_tile, dx_tile, dy_tile] = [x_tile, dx_tile, dy_tile].map(|len| take(buffer, len));
            let w_h_transposed = for_products(weights.recurrent.transposed(), take(buffer, transposed));
            let turned = take(buffer, turned);
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
                        T::end_chain(cell.base().level, chains, sums);
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
                    let run = |step| cell.backward_rows(step);
                    let rows = Rows { step, pieces: StepBack::pieces, split: StepBack::split, run: &run };
                    parallel::run(rows, lengths.kernel_bytes::<T>());
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
                    add_transposed(dw_x, x, dv, rows, turned);
                    add_transposed(dw_h, h_before, du, rows, turned);
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
            T::end_chain(cell.base().level, chains, sums);
            d_state.copy_from(dh, dc);
        });
        let (total, others) = sums.split_at_mut(columns);
        others.chunks_exact(columns).for_each(|block| T::join_block(cell.base().level, total, block));
        add_columns(cell.base().level, grad, total);
    });
}

/// Sets the rows that are padded to 0: what they hold must not reach a sum, and 0·NaN is not 0.
fn clear_padded<T: Element>(x: &mut [T], mask: &[bool], input: usize) {
    for (row, _) in mask.iter().enumerate().filter(|(_, is_there)| !**is_there) {
        x[row * input..(row + 1) * input].fill(T::zero());
    }
}

/// Adds the column sums to the arrays behind the matrices.
fn add_columns<T: Element>(level: Level, grad: &mut Weights<T>, mut total: &[<T as Number>::Wide]) {
    for array in grad.slices_mut().skip(MATRICES) {
        let (sums, others) = total.split_at(array.len());
        T::add_wide(level, array, sums);
        total = others;
    }
}

/// c += aᵀ·b, by way of a copy of aᵀ if that pays.
fn add_transposed<T: Element>(c: &mut [T], a: &[T], b: &[T], rows: usize, turned: &mut [T]) {
    let threads = threads_for(c.len().saturating_mul(rows));
    let [by_row, b] = [a, b].map(|matrix| Matrix::new(rows, matrix.len() / rows, matrix));
    let a = if a.len() < WORTH_TURNING { by_row.transposed() } else { by_row.transpose_into(&mut turned[..a.len()]) };
    T::multiply(c, Into::Add, a, b, threads);
}
