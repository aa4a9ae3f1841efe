//! Batches of at most a chain of rows, side by side: each tile of columns is taken from its sums to its y, or from its sums
//! to its dx, while it is in a cache.

use std::ops::Range;

use ndarray::{ArrayViewMut2, Axis};

use crate::arrays::Input;
use crate::batch::call::{Call, ROWS, coefficients, enlist, list, rescaled, sampled, take_again};
use crate::element::Element;
use crate::kernels::batch::write::Back;
use crate::kernels::batch::{Block, KeptColumns, SAMPLE, SavedColumns, Sums};
use crate::kernels::columns::Gradient;
use crate::parallel::{self, Job, steps};

/// y of all rows, and what backward needs of each column.
pub(crate) fn forward<T: Element>(call: &Call<'_, T>, x: &Input<'_, T>, y: &mut [T], saved: SavedColumns<'_, T>) {
    let features = call.layer.features;
    let y = ArrayViewMut2::from_shape((call.rows, features), y).expect(ROWS);
    parallel::run(Forward { call, x, y, saved, columns: 0..features }, call.bytes(2));
}

/// dx of all rows; adds dgain and dbias to `grad`.
pub(crate) fn backward<'v, T: Element>(
    call: &Call<'_, T>,
    kept: KeptColumns<'_, T>,
    (x, dy): (&Input<'v, T>, &Input<'v, T>),
    dx: &mut [T],
    grad: Gradient<'_, T>,
) {
    let features = call.layer.features;
    let dx = ArrayViewMut2::from_shape((call.rows, features), dx).expect(ROWS);
    parallel::run(Backward { call, x, dy, dx, kept, grad, columns: 0..features }, call.bytes(3));
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
        let rows = input.rows(call.shape(), 0..call.rows, &mut []);
        with_buffers(call, &columns, |buffer, totals| {
            let width = call.tile_columns().min(columns.len());
            let (sums, scale) = buffer.split_at_mut(2 * width);
            for tile in steps(columns.clone(), width) {
                let here = tile.start - columns.start..tile.end - columns.start;
                let (x, mut saved) = (call.tile_of(rows, &tile), saved.part(here.clone()));
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
                let (kept, scale) = (saved.kept(), &mut scale[..tile.len()]);
                call.scale(kept.rstd, tile.start, scale);
                write_columns(call, (kept, scale), x, None, y.view_mut(), here.clone());
                for (c, column) in rescaled(call, input, kept.exponent, tile.start) {
                    let (gain, bias) = (call.gain_of(tile.start + c), call.bias_of(tile.start + c));
                    let x = input.column(call.shape(), tile.start + c);
                    let y = y.column_mut(here.start + c);
                    y.into_iter().zip(&x).for_each(|(y, &x)| *y = column.y(x, gain, bias));
                }
            }
        });
    }
}

/// Lends `f` a buffer for the column sums of a tile and its scale, and one for the wide sums.
fn with_buffers<T: Element>(call: &Call<'_, T>, columns: &Range<usize>, f: impl FnOnce(&mut [T], &mut [T::Wide])) {
    let width = call.tile_columns().min(columns.len());
    parallel::lend(3 * width, |buffer| {
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
    T::end_chain(call.level, sums, totals);
    totals
}

/// Some columns of y, or with `back` of dx.
fn write_columns<T: Element>(
    call: &Call<'_, T>,
    (kept, scale): (KeptColumns<'_, T>, &[T]),
    x: Block<'_, T>,
    back: Option<Back<'_, T>>,
    mut out: ArrayViewMut2<'_, T>,
    here: Range<usize>,
) {
    let mut list = list();
    let rows = out.rows_mut().into_iter().map(|row| &mut row.into_slice().expect(ROWS)[here.clone()]);
    let count = enlist(rows, &mut list);
    T::batch_write(call.level, call.streams(), &call.layer, kept, scale, x, back, &mut list[..count]);
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
        let (x_rows, dy_rows) =
            (x_input.rows(call.shape(), 0..call.rows, &mut []), dy_input.rows(call.shape(), 0..call.rows, &mut []));
        with_buffers(call, &columns, |buffer, totals| {
            let width = call.tile_columns().min(columns.len());
            let (sums, scale) = buffer.split_at_mut(2 * width);
            for tile in steps(columns.clone(), width) {
                let here = tile.start - columns.start..tile.end - columns.start;
                let kept = kept.part(here.clone());
                let (x, dy) = (call.tile_of(x_rows, &tile), call.tile_of(dy_rows, &tile));
                let totals = sum_chain(call, kept.mean, x, Some(dy), sums, totals);
                let (k, m) = sums[..2 * tile.len()].split_at_mut(tile.len());
                coefficients(call, kept, (x_input, dy_input), tile.start, totals, k, m);
                grad.part(here.clone()).add_wide(call.level, totals);
                let scale = &mut scale[..tile.len()];
                call.scale(kept.rstd, tile.start, scale);
                write_columns(call, (kept, scale), x, Some(Back { dy, k, m }), dx.view_mut(), here.clone());
                for (c, column) in rescaled(call, x_input, kept.exponent, tile.start) {
                    let gain = call.gain_of(tile.start + c);
                    let (x, dy) =
                        (x_input.column(call.shape(), tile.start + c), dy_input.column(call.shape(), tile.start + c));
                    let dx = dx.column_mut(here.start + c);
                    let all = dx.into_iter().zip(x.iter().zip(&dy));
                    all.for_each(|(dx, (&x, &dy))| *dx = column.dx(x, dy, gain, (k[c], m[c])));
                }
            }
        });
    }
}
