//! One step of the simple recurrent network.
//!
//! ```text
//! forward, each row:                       v holds a = W_h h′ + W_x x
//!     p = LN(a; gain, bias), or a + bias
//!     h = tanh(p)
//! backward, each row:
//!     da = (dy + dh)·(1 − h²)              dbias += da
//!     dv = P(gain·da), or da               dgain += da·â
//!     dh = 0                               all of it comes through W_h
//! ```

use fearless_simd::Simd;
use fearless_simd_macros::simd;

use crate::kernels::activations::tanh;
use crate::kernels::gates::{Step, StepBack, add_to, is_padded, map, norm, norm_back, row_of, row_of_mut};
use crate::kernels::normalize::Layer;
use crate::number::Number;
use crate::simd::{Tail, splat};

/// What a step needs to know of the network.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rnn<'a, T> {
    pub(crate) bias: &'a [T],
    /// LN of the sum, with its gain and this bias.
    pub(crate) sum: Option<Layer<'a, T>>,
}

impl<T> Rnn<'_, T> {
    /// Elements of scratch that a step needs for each piece.
    pub(crate) fn scratch(hidden: usize) -> usize {
        hidden
    }
}

/// h of some rows.
#[simd]
pub(crate) fn forward<S: Simd, T: Number>(simd: S, cell: Rnn<'_, T>, mut step: Step<'_, T>) {
    let (rows, hidden) = (step.rows, cell.bias.len());
    let tail = Tail::new(simd, hidden);
    for row in 0..rows {
        let [saved, ..] = step.take_saved(1);
        if is_padded(step.mask, row) {
            step.keep_state(row);
            continue;
        }
        step.keep_products(row);
        let a = row_of(step.v, rows, row);
        let p = &mut step.scratch[..hidden];
        match &cell.sum {
            Some(layer) => norm(simd, layer, a, p, saved),
            None => map(
                simd,
                &tail,
                [a, cell.bias],
                [&mut *p],
                #[inline(always)]
                |[a, bias]| [a + bias],
            ),
        }
        let h = row_of_mut(step.h, rows, row);
        map(
            simd,
            &tail,
            [p],
            [h],
            #[inline(always)]
            |[p]| [tanh::<S, T>(simd, p)],
        );
    }
}

/// dv and dh of some rows; the columns are dbias and, where there is one, dgain.
#[simd]
pub(crate) fn backward<S: Simd, T: Number>(simd: S, cell: Rnn<'_, T>, mut step: StepBack<'_, T>) {
    let (rows, hidden) = (step.rows, cell.bias.len());
    let tail = Tail::new(simd, hidden);
    let one = splat(simd, T::one());
    let pieces = step.pieces();
    for row in 0..rows {
        if is_padded(step.mask, row) {
            step.pass_state(row);
            continue;
        }
        let (dh, dy) = (row_of_mut(step.dh, rows, row), row_of(step.dy, rows, row));
        let dv = row_of_mut(step.dv, rows, row);
        let columns = row_of_mut(step.columns, pieces, row / step.piece);
        let (dbias, dgain) = columns.split_at_mut(hidden);
        let da = &mut step.scratch[..hidden];
        let inputs = [&*dh, dy, row_of(step.h, rows, row)];
        map(
            simd,
            &tail,
            inputs,
            [&mut *da],
            #[inline(always)]
            |[dh, dy, h]| [(dy + dh) * (one - h * h)],
        );
        match &cell.sum {
            Some(layer) => {
                let kept = step.kept[0].rows(row..row + 1);
                norm_back(simd, layer, kept, row_of(step.v, rows, row), da, dv, dgain, dbias);
            }
            None => {
                add_to(dbias, da);
                dv.copy_from_slice(da);
            }
        }
        dh.fill(T::zero());
    }
}
