//! One step of the LSTM.
//!
//! ```text
//! forward, each row:                       v holds x W_x, or x W_x + h′ W_h
//!     f, i, o, g = LN(u) + LN(v) + bias, or v + bias
//!     f, i, o = σ(f), σ(i), σ(o)           g = tanh(g)
//!     c = f·c′ + i·g                       c itself is carried on, not LN(c)
//!     k = tanh(LN(c)), or tanh(c)
//!     h = o·k
//! backward, each row:                      (docs/recurrent.md; letters as there)
//!     dh = dy + dh                         dn = dh·o·(1 − k²)
//!     dC = dc + P(gain·dn), or dc + dn
//!     dp = dC·c′·f(1−f),  dC·g·i(1−i),  dh·k·o(1−o),  dC·i·(1−g²)
//!     du = P(gain_u·dp),  dv = P(gain_v·dp), or dv = dp
//!     dc = dC·f                            dh = 0: all of it comes through W_h
//! ```
//!
//! What some rows need between two of these lines stays in scratch, in a near cache. The bias is added by the normalization
//! of u.

use fearless_simd::Simd;
use fearless_simd_macros::simd;

use crate::kernels::activations::{sigmoid, tanh};
use crate::kernels::gates::{
    Step, StepBack, add_to, is_padded, map, norm, norm_back, parts, row_of, row_of_mut, split_equal,
};
use crate::kernels::normalize::Layer;
use crate::number::Number;
use crate::simd::{Tail, splat};

/// What a step needs to know of the cell.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lstm<'a, T> {
    pub(crate) hidden: usize,
    pub(crate) bias: &'a [T],
    /// LN of u, which adds the bias, and of v.
    pub(crate) products: Option<[Layer<'a, T>; 2]>,
    /// LN of c.
    pub(crate) cell: Option<Layer<'a, T>>,
}

/// Where the gates are among the numbers that a step keeps; behind them is k.
const GATES: usize = 4;

/// Rows that are normalized together, unless some may be padded: they share the latencies of their sums, and backward the
/// column sums of a pair.
const GROUP: usize = 4;

impl<T> Lstm<'_, T> {
    /// Elements of scratch that a step needs for each piece.
    pub(crate) fn scratch(hidden: usize) -> usize {
        (GROUP * (2 * GATES + 1)) * hidden
    }
}

/// The state and what backward needs of some rows.
#[simd]
pub(crate) fn forward<S: Simd, T: Number>(simd: S, cell: Lstm<'_, T>, mut step: Step<'_, T>) {
    let (rows, hidden) = (step.rows, cell.hidden);
    let width = GATES * hidden;
    let tail = Tail::new(simd, hidden);
    let group = if step.mask.is_some() { 1 } else { GROUP };
    for first in (0..rows).step_by(group) {
        let count = group.min(rows - first);
        let [saved_c, saved_u, saved_v, _] = step.take_saved(count);
        if is_padded(step.mask, first) {
            step.keep_state(first);
            continue;
        }
        for row in first..first + count {
            step.keep_products(row);
        }
        let ([p, q], scratch) = parts(step.scratch, count * width);
        let n = &mut scratch[..count * hidden];
        let at = first * width..(first + count) * width;
        let v = &step.v[at.clone()];
        let p = match &cell.products {
            Some([layer_u, layer_v]) => {
                norm(simd, layer_u, &step.u[at.clone()], p, saved_u);
                norm(simd, layer_v, v, q, saved_v);
                &*p
            }
            None => v,
        };
        for i in 0..count {
            let row = first + i;
            let q = if cell.products.is_some() { row_of(q, count, i) } else { cell.bias };
            let ([f, i_gate, o, g], _) = parts(row_of_mut(step.gates, rows, row), hidden);
            let [p_f, p_i, p_o, p_g] = split_equal(row_of(p, count, i), hidden);
            let [q_f, q_i, q_o, q_g] = split_equal(q, hidden);
            let inputs = [p_f, q_f, p_i, q_i, p_o, q_o, p_g, q_g, row_of(step.c_before, rows, row)];
            map(
                simd,
                &tail,
                inputs,
                [f, i_gate, o, g, row_of_mut(step.c, rows, row)],
                #[inline(always)]
                |[p_f, q_f, p_i, q_i, p_o, q_o, p_g, q_g, c_before]| {
                    let f = sigmoid::<S, T>(simd, p_f + q_f);
                    let i = sigmoid::<S, T>(simd, p_i + q_i);
                    let o = sigmoid::<S, T>(simd, p_o + q_o);
                    let g = tanh::<S, T>(simd, p_g + q_g);
                    [f, i, o, g, f * c_before + i * g]
                },
            );
        }
        let c = &step.c[first * hidden..(first + count) * hidden];
        let n = match &cell.cell {
            Some(layer) => {
                norm(simd, layer, c, n, saved_c);
                &*n
            }
            None => c,
        };
        for i in 0..count {
            let row = first + i;
            let (gates, k) = row_of_mut(step.gates, rows, row).split_at_mut(width);
            let [_, _, o] = split_equal(gates, hidden);
            map(
                simd,
                &tail,
                [row_of(n, count, i), o],
                [k, row_of_mut(step.h, rows, row)],
                #[inline(always)]
                |[n, o]| {
                    let k = tanh::<S, T>(simd, n);
                    [k, o * k]
                },
            );
        }
    }
}

/// du, dv, dh and dc of some rows. The columns are dbias, then, as far as they are there, the gains of v and of u, gain and
/// bias of c.
#[simd]
pub(crate) fn backward<S: Simd, T: Number>(simd: S, cell: Lstm<'_, T>, mut step: StepBack<'_, T>) {
    let (rows, hidden) = (step.rows, cell.hidden);
    let width = GATES * hidden;
    let tail = Tail::new(simd, hidden);
    let one = splat(simd, T::one());
    let pieces = step.pieces();
    debug_assert!(step.piece.is_multiple_of(GROUP), "a group's column sums are those of one piece");
    let group = if step.mask.is_some() { 1 } else { GROUP };
    for first in (0..rows).step_by(group) {
        let count = group.min(rows - first);
        if is_padded(step.mask, first) {
            step.pass_state(first);
            continue;
        }
        let (dp, scratch) = step.scratch.split_at_mut(count * width);
        let (unused, scratch) = scratch.split_at_mut(width);
        let ([dh, dn, dcell], scratch) = parts(scratch, count * hidden);
        let dc = &mut scratch[..hidden];
        let columns = row_of_mut(step.columns, pieces, first / step.piece);
        let (dbias, columns) = columns.split_at_mut(width);
        let products = if cell.products.is_some() { 2 * width } else { 0 };
        let (products, columns) = columns.split_at_mut(products);

        for i in 0..count {
            let row = first + i;
            let (gates, k) = row_of(step.gates, rows, row).split_at(width);
            let [_, _, o] = split_equal(gates, hidden);
            map(
                simd,
                &tail,
                [row_of(step.dy, rows, row), row_of(step.dh, rows, row), o, k],
                [row_of_mut(dh, count, i), row_of_mut(dn, count, i)],
                #[inline(always)]
                |[dy, dh, o, k]| {
                    let dh = dy + dh;
                    [dh, dh * o * (one - k * k)]
                },
            );
        }
        let dn = match &cell.cell {
            Some(layer) => {
                let (kept, c) = (step.kept[0].rows(first..first + count), &step.c[first * hidden..][..count * hidden]);
                let (dgain, dbias) = columns.split_at_mut(hidden);
                norm_back(simd, layer, kept, c, dn, dcell, dgain, dbias);
                &*dcell
            }
            None => &*dn,
        };
        for i in 0..count {
            let row = first + i;
            let (gates, k) = row_of(step.gates, rows, row).split_at(width);
            let [f, i_gate, o, g] = split_equal(gates, hidden);
            let ([dp_f, dp_i, dp_o, dp_g], _) = parts(row_of_mut(dp, count, i), hidden);
            let (dn, dh) = (row_of(dn, count, i), row_of(dh, count, i));
            let inputs = [dn, row_of(step.dc, rows, row), row_of(step.c_before, rows, row), f, i_gate, o, g, dh, k];
            map(
                simd,
                &tail,
                inputs,
                [dp_f, dp_i, dp_o, dp_g, &mut *dc],
                #[inline(always)]
                |[dn, dc, c_before, f, i, o, g, dh, k]| {
                    let d_cell = dc + dn;
                    [
                        d_cell * c_before * (f * (one - f)),
                        d_cell * g * (i * (one - i)),
                        dh * k * (o * (one - o)),
                        d_cell * i * (one - g * g),
                        d_cell * f,
                    ]
                },
            );
            row_of_mut(step.dc, rows, row).copy_from_slice(dc);
            row_of_mut(step.dh, rows, row).fill(T::zero());
        }
        let at = first * width..(first + count) * width;
        let dv = &mut step.dv[at.clone()];
        match &cell.products {
            Some([layer_u, layer_v]) => {
                let (dgain_v, dgain_u) = products.split_at_mut(width);
                let kept = [step.kept[1].rows(first..first + count), step.kept[2].rows(first..first + count)];
                norm_back(simd, layer_u, kept[0], &step.u[at.clone()], dp, &mut step.du[at.clone()], dgain_u, dbias);
                // The bias is the same: its gradient has been added.
                norm_back(simd, layer_v, kept[1], &step.v[at], dp, dv, dgain_v, unused);
            }
            None => {
                for i in 0..count {
                    add_to(dbias, row_of(dp, count, i));
                }
                dv.copy_from_slice(dp);
            }
        }
    }
}
