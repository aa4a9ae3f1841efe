//! One step of the GRU.
//!
//! ```text
//! forward, each row:                       u = h′ W_h,  v = x W_x;  columns (z, r) and candidate apart
//!     z, r = σ(LN(u_zr) + LN(v_zr))        LN adds the biases; without LN they are added to u_zr, u_k and v_k
//!     s = LN(u_k)                          the reset gate acts behind the product
//!     k = tanh(LN(v_k) + r·s)
//!     h = (1 − z)·h′ + z·k
//! backward, each row:                      (docs/recurrent.md; letters as there)
//!     dh = dy + dh
//!     dk = dh·z·(1 − k²)
//!     dp = dh·(k − h′)·z(1−z),  dk·s·r(1−r)
//!     du = P(gain·dp), P(gain·dk·r)        dv = P(gain·dp), P(gain·dk)
//!     dh = dh·(1 − z)                      what does not come through W_h
//! ```

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
pub(crate) struct Gru<'a, T> {
    pub(crate) hidden: usize,
    /// Of z, r and the candidate.
    pub(crate) bias: &'a [T],
    /// Of s.
    pub(crate) recurrent_bias: &'a [T],
    /// LN of u and v, columns z and r, then of u and v, columns of the candidate; they add the biases.
    pub(crate) products: Option<[Layer<'a, T>; 4]>,
}

impl<T> Gru<'_, T> {
    /// Elements of scratch that a step needs for each piece.
    pub(crate) fn scratch(hidden: usize) -> usize {
        7 * hidden
    }
}

/// The state and what backward needs of some rows.
#[simd]
pub(crate) fn forward<S: Simd, T: Number>(simd: S, cell: Gru<'_, T>, mut step: Step<'_, T>) {
    let (rows, hidden) = (step.rows, cell.hidden);
    let tail = Tail::new(simd, hidden);
    let one = splat(simd, T::one());
    for row in 0..rows {
        let [saved_u, saved_v, saved_s, saved_w] = step.take_saved(1);
        if is_padded(step.mask, row) {
            step.keep_state(row);
            continue;
        }
        step.keep_products(row);
        let ([p, q], scratch) = parts(step.scratch, 2 * hidden);
        let w = &mut scratch[..hidden];
        let (u, u_k) = row_of(step.u, rows, row).split_at(2 * hidden);
        let (v, v_k) = row_of(step.v, rows, row).split_at(2 * hidden);
        let ([z, r, k, s], _) = parts(row_of_mut(step.gates, rows, row), hidden);
        let q = match &cell.products {
            Some([layer_u, layer_v, layer_s, layer_w]) => {
                norm(simd, layer_u, u, p, saved_u);
                norm(simd, layer_v, v, q, saved_v);
                norm(simd, layer_s, u_k, s, saved_s);
                norm(simd, layer_w, v_k, w, saved_w);
                &*q
            }
            None => {
                let (bias, bias_k) = cell.bias.split_at(2 * hidden);
                sum(p, u, bias);
                sum(s, u_k, cell.recurrent_bias);
                sum(w, v_k, bias_k);
                v
            }
        };
        let ([p_z, p_r], [q_z, q_r]) = (split_equal(p, hidden), split_equal(q, hidden));
        let h_before = row_of(step.h_before, rows, row);
        map(
            simd,
            &tail,
            [p_z, q_z, p_r, q_r, w, s, h_before],
            [z, r, k, row_of_mut(step.h, rows, row)],
            #[inline(always)]
            |[p_z, q_z, p_r, q_r, w, s, h_before]| {
                let z = sigmoid::<S, T>(simd, p_z + q_z);
                let r = sigmoid::<S, T>(simd, p_r + q_r);
                let k = tanh::<S, T>(simd, w + r * s);
                [z, r, k, (one - z) * h_before + z * k]
            },
        );
    }
}

/// out = a + b
#[inline(always)]
fn sum<T: Number>(out: &mut [T], a: &[T], b: &[T]) {
    for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
        *out = a + b;
    }
}

/// du, dv and dh of some rows. The columns are the gradients of the biases, then, where there are any, of the gains of v and
/// of u.
#[simd]
pub(crate) fn backward<S: Simd, T: Number>(simd: S, cell: Gru<'_, T>, mut step: StepBack<'_, T>) {
    let (rows, hidden) = (step.rows, cell.hidden);
    let tail = Tail::new(simd, hidden);
    let one = splat(simd, T::one());
    let pieces = step.pieces();
    for row in 0..rows {
        if is_padded(step.mask, row) {
            step.pass_state(row);
            continue;
        }
        let [z, r, k, s] = split_equal(row_of(step.gates, rows, row), hidden);
        let ([dp, unused], scratch) = parts(step.scratch, 2 * hidden);
        let ([dk, ds, direct], _) = parts(scratch, hidden);
        let (dy, h_before) = (row_of(step.dy, rows, row), row_of(step.h_before, rows, row));
        let dh = row_of_mut(step.dh, rows, row);
        {
            let ([dp_z, dp_r], _) = parts(dp, hidden);
            map(
                simd,
                &tail,
                [dy, &*dh, z, r, k, s, h_before],
                [dp_z, dp_r, &mut *dk, &mut *ds, &mut *direct],
                #[inline(always)]
                |[dy, dh, z, r, k, s, h_before]| {
                    let dh = dy + dh;
                    let dk = dh * z * (one - k * k);
                    let dp_z = dh * (k - h_before) * (z * (one - z));
                    let dp_r = dk * s * (r * (one - r));
                    [dp_z, dp_r, dk, dk * r, dh * (one - z)]
                },
            );
        }
        dh.copy_from_slice(direct);
        let columns = row_of_mut(step.columns, pieces, row / step.piece);
        let (dbias, columns) = columns.split_at_mut(2 * hidden);
        let ([dbias_w, dbias_s], gains) = parts(columns, hidden);
        let (du, du_k) = row_of_mut(step.du, rows, row).split_at_mut(2 * hidden);
        let (dv, dv_k) = row_of_mut(step.dv, rows, row).split_at_mut(2 * hidden);
        match &cell.products {
            Some([layer_u, layer_v, layer_s, layer_w]) => {
                let (dgain_v, dgain_u) = gains.split_at_mut(3 * hidden);
                let ((dgain_v, dgain_w), (dgain_u, dgain_s)) =
                    (dgain_v.split_at_mut(2 * hidden), dgain_u.split_at_mut(2 * hidden));
                let (u, u_k) = row_of(step.u, rows, row).split_at(2 * hidden);
                let (v, v_k) = row_of(step.v, rows, row).split_at(2 * hidden);
                let [kept_u, kept_v, kept_s, kept_w] = step.kept.map(|kept| kept.rows(row..row + 1));
                norm_back(simd, layer_u, kept_u, u, dp, du, dgain_u, dbias);
                // The bias is the same: its gradient has been added.
                norm_back(simd, layer_v, kept_v, v, dp, dv, dgain_v, unused);
                norm_back(simd, layer_s, kept_s, u_k, ds, du_k, dgain_s, dbias_s);
                norm_back(simd, layer_w, kept_w, v_k, dk, dv_k, dgain_w, dbias_w);
            }
            None => {
                du.copy_from_slice(dp);
                dv.copy_from_slice(dp);
                du_k.copy_from_slice(ds);
                dv_k.copy_from_slice(dk);
                add_to(dbias, dp);
                add_to(dbias_w, dk);
                add_to(dbias_s, ds);
            }
        }
    }
}
