//! What the recurrent cells' kernels share: the rows of one step of time, forward and backward.
//!
//! A row is one sequence of the batch. Rows do not know each other, so they can be cut into pieces anywhere; they are cut
//! into pieces of a fixed number of rows, because a piece has column sums of its own. A padded row keeps its state: nothing
//! of it is read but that, so it may hold anything.

use std::mem::take;

use fearless_simd::{Simd, SimdBase};

use crate::kernels::backward::backward;
use crate::kernels::kept::KeptRows;
use crate::kernels::normalize::{self, Layer, Place, SavedRows};
use crate::kernels::passes::Columns;
use crate::number::Number;
use crate::simd::{Tail, Vector, load, splat};

/// The most layer normalizations in a cell.
pub(crate) const NORMS: usize = 4;

/// What backward needs of each normalization of a cell.
pub(crate) type Saved<'a, T> = [Option<SavedRows<'a, T>>; NORMS];

/// Some rows of one step, forward. Every slice holds as many elements a row as its cell says.
#[derive(Debug)]
pub(crate) struct Step<'a, T> {
    pub(crate) rows: usize,
    /// Rows of a piece.
    pub(crate) piece: usize,
    /// Which rows are there; the others are padded.
    pub(crate) mask: Option<&'a [bool]>,
    /// h′·W_h, where the cell takes it apart from v.
    pub(crate) u: &'a [T],
    /// x·W_x, or x·W_x + h′·W_h.
    pub(crate) v: &'a [T],
    /// State of the step before.
    pub(crate) h_before: &'a [T],
    pub(crate) c_before: &'a [T],
    /// State of this step.
    pub(crate) h: &'a mut [T],
    pub(crate) c: &'a mut [T],
    /// Copies of u and v for backward; empty if it needs none. The products go to memory that is used again at once, and on
    /// from here row by row: written by the products themselves, memory that is not in a cache would slow them down.
    pub(crate) kept_u: &'a mut [T],
    pub(crate) kept_v: &'a mut [T],
    /// Gates, and what else backward needs.
    pub(crate) gates: &'a mut [T],
    pub(crate) saved: Saved<'a, T>,
    /// As much for each piece, whatever is in it.
    pub(crate) scratch: &'a mut [T],
}

/// Some rows of one step, backward.
#[derive(Debug)]
pub(crate) struct StepBack<'a, T> {
    pub(crate) rows: usize,
    /// Rows of a piece.
    pub(crate) piece: usize,
    /// Which rows are there; the others are padded.
    pub(crate) mask: Option<&'a [bool]>,
    /// As forward left them.
    pub(crate) u: &'a [T],
    pub(crate) v: &'a [T],
    pub(crate) h_before: &'a [T],
    pub(crate) c_before: &'a [T],
    pub(crate) h: &'a [T],
    pub(crate) c: &'a [T],
    pub(crate) gates: &'a [T],
    pub(crate) kept: [KeptRows<'a, T>; NORMS],
    /// The loss's gradient by this step's output.
    pub(crate) dy: &'a [T],
    /// The gradient by this step's state, without dy; then that part of the gradient by the state before which does not
    /// come through W_h.
    pub(crate) dh: &'a mut [T],
    pub(crate) dc: &'a mut [T],
    /// The gradients by u and v.
    pub(crate) du: &'a mut [T],
    pub(crate) dv: &'a mut [T],
    /// Sums over the rows of each piece, to be added to.
    pub(crate) columns: &'a mut [T],
    /// As much for each piece, whatever is in it.
    pub(crate) scratch: &'a mut [T],
}

/// Leaves the first `first` of `all` equal parts in `slice`, and returns the others.
fn part<'a, T>(slice: &mut &'a [T], all: usize, first: usize) -> &'a [T] {
    let (first, rest) = slice.split_at(slice.len() / all * first);
    *slice = first;
    rest
}

/// [`part`] of what is to be written.
fn part_mut<'a, T>(slice: &mut &'a mut [T], all: usize, first: usize) -> &'a mut [T] {
    let len = slice.len() / all * first;
    let (first, rest) = take(slice).split_at_mut(len);
    *slice = first;
    rest
}

/// Elements of `row` in a slice that holds `rows`.
#[inline(always)]
pub(crate) fn row_of<T>(slice: &[T], rows: usize, row: usize) -> &[T] {
    let width = slice.len() / rows;
    &slice[row * width..(row + 1) * width]
}

/// [`row_of`] what is to be written.
#[inline(always)]
pub(crate) fn row_of_mut<T>(slice: &mut [T], rows: usize, row: usize) -> &mut [T] {
    let width = slice.len() / rows;
    &mut slice[row * width..(row + 1) * width]
}

#[inline(always)]
pub(crate) fn is_padded(mask: Option<&[bool]>, row: usize) -> bool {
    mask.is_some_and(
        #[inline(always)]
        |mask| !mask[row],
    )
}

impl<'a, T: Number> Step<'a, T> {
    pub(crate) fn pieces(&self) -> usize {
        self.rows.div_ceil(self.piece)
    }

    /// The rows of the first `pieces` pieces, and the others.
    pub(crate) fn split(mut self, pieces: usize) -> (Self, Self) {
        let (all, first, all_pieces) = (self.rows, pieces * self.piece, self.pieces());
        let (mask, mask_rest) = self.mask.map(|mask| mask.split_at(first)).unzip();
        let mut saved_rest = [const { None }; NORMS];
        for (saved, rest) in self.saved.iter_mut().zip(&mut saved_rest) {
            (*saved, *rest) = saved.take().map(|saved| saved.split(first)).unzip();
        }
        let rest = Self {
            rows: all - first,
            piece: self.piece,
            mask: mask_rest,
            u: part(&mut self.u, all, first),
            v: part(&mut self.v, all, first),
            h_before: part(&mut self.h_before, all, first),
            c_before: part(&mut self.c_before, all, first),
            h: part_mut(&mut self.h, all, first),
            c: part_mut(&mut self.c, all, first),
            kept_u: part_mut(&mut self.kept_u, all, first),
            kept_v: part_mut(&mut self.kept_v, all, first),
            gates: part_mut(&mut self.gates, all, first),
            saved: saved_rest,
            scratch: part_mut(&mut self.scratch, all_pieces, pieces),
        };
        (Self { rows: first, mask, ..self }, rest)
    }

    /// Takes what is saved of the next rows off.
    #[inline(always)]
    pub(crate) fn take_saved(&mut self, rows: usize) -> Saved<'a, T> {
        let mut first = [const { None }; NORMS];
        for (first, saved) in first.iter_mut().zip(&mut self.saved) {
            if let Some(saved) = saved {
                *first = Some(saved.take_first(rows));
            }
        }
        first
    }

    /// Copies u and v of a row for backward.
    #[inline(always)]
    pub(crate) fn keep_products(&mut self, row: usize) {
        for (kept, product) in [(&mut *self.kept_u, self.u), (&mut *self.kept_v, self.v)] {
            if !kept.is_empty() {
                row_of_mut(kept, self.rows, row).copy_from_slice(row_of(product, self.rows, row));
            }
        }
    }

    /// The state of a padded row: that of the step before.
    pub(crate) fn keep_state(&mut self, row: usize) {
        row_of_mut(self.h, self.rows, row).copy_from_slice(row_of(self.h_before, self.rows, row));
        row_of_mut(self.c, self.rows, row).copy_from_slice(row_of(self.c_before, self.rows, row));
    }
}

impl<'a, T: Number> StepBack<'a, T> {
    pub(crate) fn pieces(&self) -> usize {
        self.rows.div_ceil(self.piece)
    }

    /// The rows of the first `pieces` pieces, and the others.
    pub(crate) fn split(mut self, pieces: usize) -> (Self, Self) {
        let (all, first, all_pieces) = (self.rows, pieces * self.piece, self.pieces());
        let (mask, mask_rest) = self.mask.map(|mask| mask.split_at(first)).unzip();
        let rest = Self {
            rows: all - first,
            piece: self.piece,
            mask: mask_rest,
            u: part(&mut self.u, all, first),
            v: part(&mut self.v, all, first),
            h_before: part(&mut self.h_before, all, first),
            c_before: part(&mut self.c_before, all, first),
            h: part(&mut self.h, all, first),
            c: part(&mut self.c, all, first),
            gates: part(&mut self.gates, all, first),
            kept: self.kept.map(|kept| kept.rows(first.min(kept.mean.len())..kept.mean.len())),
            dy: part(&mut self.dy, all, first),
            dh: part_mut(&mut self.dh, all, first),
            dc: part_mut(&mut self.dc, all, first),
            du: part_mut(&mut self.du, all, first),
            dv: part_mut(&mut self.dv, all, first),
            columns: part_mut(&mut self.columns, all_pieces, pieces),
            scratch: part_mut(&mut self.scratch, all_pieces, pieces),
        };
        let kept = self.kept.map(|kept| kept.rows(0..first.min(kept.mean.len())));
        (Self { rows: first, mask, kept, ..self }, rest)
    }

    /// The gradients of a padded row: what comes goes to the state before.
    pub(crate) fn pass_state(&mut self, row: usize) {
        let rows = self.rows;
        row_of_mut(self.du, rows, row).fill(T::zero());
        row_of_mut(self.dv, rows, row).fill(T::zero());
        let (dh, dy) = (row_of_mut(self.dh, rows, row), row_of(self.dy, rows, row));
        dh.iter_mut().zip(dy).for_each(|(dh, &dy)| *dh += dy);
    }
}

/// y = LN(x) of one row.
#[inline(always)]
pub(crate) fn norm<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    x: &[T],
    y: &mut [T],
    saved: Option<SavedRows<'_, T>>,
) {
    normalize::forward(simd, layer, x, y, saved);
}

/// dx of y = LN(x) of one row; adds to the columns.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn norm_back<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    dx: &mut [T],
    dgain: &mut [T],
    dbias: &mut [T],
) {
    backward(simd, layer, Place::Core, kept, x, dy, dx, &mut Columns { dgain, dbias });
}

/// sums += terms
#[inline(always)]
pub(crate) fn add_to<T: Number>(sums: &mut [T], terms: &[T]) {
    for (sum, &term) in sums.iter_mut().zip(terms) {
        *sum += term;
    }
}

/// Fills `outputs`, vector by vector, with what `f` makes of `inputs`; all are as long as a row of `tail`.
///
/// An output must not be an input: at the end of a row a vector reaches back to what has been written.
#[inline(always)]
pub(crate) fn map<S: Simd, T: Number, const I: usize, const O: usize>(
    simd: S,
    tail: &Tail<S, T>,
    inputs: [&[T]; I],
    mut outputs: [&mut [T]; O],
    f: impl Fn([Vector<S, T>; I]) -> [Vector<S, T>; O],
) {
    let zero = splat(simd, T::zero());
    let count = tail.len() / T::LANES;
    {
        let from = inputs.map(
            #[inline(always)]
            |x| &T::chunks(x).0[..count],
        );
        let to = outputs.each_mut().map(
            #[inline(always)]
            |y| &mut T::chunks_mut(y).0[..count],
        );
        for at in 0..count {
            let mut x = [zero; I];
            for i in 0..I {
                x[i] = load::<S, T>(simd, &from[i][at]);
            }
            let y = f(x);
            for i in 0..O {
                y[i].store_array(&mut to[i][at]);
            }
        }
    }
    if tail.is_empty() {
        return;
    }
    let mut x = [zero; I];
    for i in 0..I {
        x[i] = tail.load_all(inputs[i]);
    }
    let y = f(x);
    for i in 0..O {
        tail.store_all(y[i], outputs[i]);
    }
}

/// The first `N` pieces of `len` elements of a buffer, and what is left.
#[inline(always)]
pub(crate) fn parts<T, const N: usize>(buffer: &mut [T], len: usize) -> ([&mut [T]; N], &mut [T]) {
    let mut rest = buffer;
    let parts = [(); N].map(
        #[inline(always)]
        |()| {
            let (first, others) = take(&mut rest).split_at_mut(len);
            rest = others;
            first
        },
    );
    (parts, rest)
}

/// The first `N` pieces of `len` elements of a slice.
#[inline(always)]
pub(crate) fn split_equal<T, const N: usize>(slice: &[T], len: usize) -> [&[T]; N] {
    let mut at = 0;
    [(); N].map(
        #[inline(always)]
        |()| {
            at += len;
            &slice[at - len..at]
        },
    )
}
