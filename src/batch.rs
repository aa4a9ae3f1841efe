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

use ndarray::{ArrayView, ArrayViewMut, Dimension};

use crate::arrays::{Input, Output};
use crate::batch::call::{Call, coefficients, enlist, list, rescaled, sampled, take_again};
use crate::element::Element;
use crate::kernels::batch::write::Back;
use crate::kernels::batch::{KeptColumns, SAMPLE, SavedColumns, Sums};
use crate::kernels::columns::{CHAIN, Gradient};
use crate::kernels::moments::rstd;
use crate::parallel;
use crate::sweep::{Step, Sweep};

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
    let tile = if x.is_strided() { features } else { 0 };
    parallel::lend(SAMPLE * tile, |buffer: &mut [T]| {
        let mut rows: [&[T]; SAMPLE] = [&[]; SAMPLE];
        let (mut buffer, mut count) = (buffer, 0);
        for (row, slot) in sampled(call.rows).zip(&mut rows) {
            let (tile, rest) = buffer.split_at_mut(tile);
            (*slot, buffer, count) = (x.rows(call.shape(), row..row + 1, tile), rest, count + 1);
        }
        T::batch_sample(call.level, &rows[..count], saved.mean);
    });
    let mut all_hold = true;
    parallel::lend(features, |about: &mut [T]| {
        about.copy_from_slice(saved.mean);
        sum_columns(call, about, [&x, &Input::Absent], |totals| {
            all_hold = T::batch_finish(call.level, call.layer.spread, call.count(), totals, &mut saved);
        });
    });
    if !all_hold {
        take_again(call, &x, 0, &mut saved);
    }
    let kept = saved.kept();
    write_all(call, kept, &x, &mut y);
    for (c, column) in rescaled(call, &x, kept.exponent, 0) {
        let places = y.column_mut(call.shape(), c);
        let x = x.column(call.shape(), c);
        places.into_iter().zip(&x).for_each(|(y, &x)| *y = column.y(x, call.gain_of(c), call.bias_of(c)));
    }
}

/// y of all rows from statistics of other batches.
pub(crate) fn infer<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    [mean, variance]: [&[T]; 2],
    x: ArrayView<'_, T, D>,
    y: ArrayViewMut<'_, T, D>,
) {
    let (x, mut y) = (Input::new(x, call.trailing), Output::new(y, call.trailing));
    with_statistics(call, [mean, variance], |kept| write_all(call, kept, &x, &mut y));
}

/// The same in place of x.
pub(crate) fn infer_inplace<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    [mean, variance]: [&[T]; 2],
    x: ArrayViewMut<'_, T, D>,
) {
    let mut y = Output::new(x, call.trailing);
    with_statistics(call, [mean, variance], |kept| {
        with_scale(call, kept, |scale| {
            let kernel = |step: Step<'_, T, _, 0, 1, 1>| {
                let Step { outputs: [y], scratch: [x], .. } = step;
                x.copy_from_slice(y);
                write(call, (kept, scale), x, None, y);
            };
            Sweep::new(call.shape(), call.rows, [], [y.part()], (), &kernel).in_place().run();
        });
    });
}

/// Calls `f` with these statistics, as if they had been kept.
fn with_statistics<T: Element>(call: &Call<'_, T>, [mean, variance]: [&[T]; 2], f: impl FnOnce(KeptColumns<'_, T>)) {
    parallel::lend(2 * mean.len(), |buffer: &mut [T]| {
        let (low, rstds) = buffer.split_at_mut(mean.len());
        low.fill(T::zero());
        for (r, &variance) in rstds.iter_mut().zip(variance) {
            *r = T::nearest(rstd(variance.into() + call.layer.spread.eps));
        }
        f(KeptColumns { mean, low, rstd: rstds, exponent: &[] });
    });
}

/// Calls `f` with the scale of all columns.
fn with_scale<T: Element>(call: &Call<'_, T>, kept: KeptColumns<'_, T>, f: impl FnOnce(&[T])) {
    parallel::lend(kept.rstd.len(), |scale: &mut [T]| {
        call.scale(kept.rstd, 0, scale);
        f(scale);
    });
}

/// y of all rows.
fn write_all<'v, T: Element>(call: &Call<'_, T>, kept: KeptColumns<'_, T>, x: &Input<'v, T>, y: &mut Output<'v, T>) {
    with_scale(call, kept, |scale| {
        let kernel = |step: Step<'_, T, _, 1, 1, 0>| {
            let Step { inputs: [x], outputs: [y], .. } = step;
            write(call, (kept, scale), x, None, y);
        };
        Sweep::new(call.shape(), call.rows, [x], [y.part()], (), &kernel).run();
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
    let flat = call.rows <= CHAIN && !call.frozen;
    if let (true, Input::Adjacent(_), Input::Adjacent(_), Output::Adjacent(dx)) = (flat, &x, &dy, &mut dx) {
        return flat::backward(call, kept, (&x, &dy), dx, grad);
    }
    parallel::lend(3 * features, |buffer: &mut [T]| {
        let (k, buffer) = buffer.split_at_mut(features);
        let (m, scale) = buffer.split_at_mut(features);
        call.scale(kept.rstd, 0, scale);
        sum_columns(call, kept.mean, [&x, &dy], |totals| {
            coefficients(call, kept, (&x, &dy), 0, totals, k, m);
            grad.add_wide(call.level, totals);
        });
        let kernel = |step: Step<'_, T, _, 2, 1, 0>| {
            let Step { inputs: [x, dy], outputs: [dx], .. } = step;
            write(call, (kept, scale), x, Some((dy, k, m)), dx);
        };
        Sweep::new(call.shape(), call.rows, [&x, &dy], [dx.part()], (), &kernel).run();
        for (c, column) in rescaled(call, &x, kept.exponent, 0) {
            let (x, dy) = (x.column(call.shape(), c), dy.column(call.shape(), c));
            let all = dx.column_mut(call.shape(), c).into_iter().zip(x.iter().zip(&dy));
            all.for_each(|(dx, (&x, &dy))| *dx = column.dx(x, dy, call.gain_of(c), (k[c], m[c])));
        }
    });
}

/// dx of all rows of [`infer`]; adds dgain and dbias to `grad`. The call's statistics are frozen.
pub(crate) fn backward_infer<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    statistics: [&[T]; 2],
    x: ArrayView<'_, T, D>,
    dy: ArrayView<'_, T, D>,
    dx: ArrayViewMut<'_, T, D>,
    grad: Gradient<'_, T>,
) {
    with_statistics(call, statistics, |kept| backward(call, kept, x, dy, dx, grad));
}

/// Has `f` take the column sums of all rows, those of products and then those of terms.
fn sum_columns<T: Element>(
    call: &Call<'_, T>,
    about: &[T],
    inputs: [&Input<'_, T>; 2],
    f: impl FnOnce(&mut [T::Wide]),
) {
    let kernel = |step: Step<'_, T, _, 2, 0, 0>| {
        let Step { inputs: [x, dy], columns, block, .. } = step;
        let dy = (!dy.is_empty()).then_some(dy);
        let mut sums = Sums { products: columns.dgain, terms: columns.dbias };
        if let Some(block) = block {
            let block = Sums { products: block.dgain, terms: block.dbias };
            T::batch_block_sums(call.level, call.streams(), about, x, dy, &mut sums, block);
        } else {
            let dy = dy.map(|dy| call.block_of(dy));
            T::batch_sums(call.level, call.streams(), about, call.block_of(x), dy, &mut sums);
        }
    };
    Sweep::new(call.shape(), call.rows, inputs, [], (), &kernel).ending_chains().totals(call.level, f);
}

/// y, or with dy, k and m dx, of some rows.
fn write<T: Element>(
    call: &Call<'_, T>,
    (kept, scale): (KeptColumns<'_, T>, &[T]),
    x: &[T],
    back: Option<(&[T], &[T], &[T])>,
    out: &mut [T],
) {
    let features = call.layer.features;
    if T::batch_by_rows(call.level, call.streams(), features) {
        let bias = call.layer.bias(0, features);
        let (dy, [k, m]) = back.map_or((None, [bias; 2]), |(dy, k, m)| (Some(dy), [k, m]));
        return T::batch_write_rows(call.level, [kept.mean, kept.low, scale, k, m], x, dy, out);
    }
    let chain = CHAIN * features;
    for (index, (x, out)) in x.chunks(chain).zip(out.chunks_mut(chain)).enumerate() {
        let back = back.map(|(dy, k, m)| Back { dy: call.block_of(&dy[index * chain..]), k, m });
        let mut list = list();
        let count = enlist(out.chunks_exact_mut(features), &mut list);
        let list = &mut list[..count];
        T::batch_write(call.level, call.streams(), &call.layer, kept, scale, call.block_of(x), back, list);
    }
}
