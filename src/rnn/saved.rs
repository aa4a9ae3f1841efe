//! What a sequence keeps for its way back.

use std::ops::Range;

use crate::element::Element;
use crate::kernels::gates::{NORMS, Saved as SavedNorms};
use crate::kernels::kept::KeptRows;
use crate::kernels::normalize::SavedRows;
use crate::rnn::cell::Size;

/// What forward keeps of a sequence for backward.
///
/// Its buffers are used again by the next call. It does not hold x: pass the same one again.
///
/// # Memory
///
/// For each step, sequence and hidden unit, in elements, beside a few numbers a row:
///
/// | cell | without normalization | normalized |
/// |---|---|---|
/// | [`Rnn`](crate::Rnn) | 1 | 2 |
/// | [`Lstm`](crate::Lstm) | 7 | 7 (`Cell`), 15 (`ProductsAndCell`) |
/// | [`Gru`](crate::Gru) | 5 | 11 |
///
/// Both ways work through the sequence in pieces of about 1024 rows. Forward needs room for the products of a piece, backward
/// for their gradients, and both, where many rows and steps are worth it, for a copy of the recurrent weights, forward for one
/// of the input weights, too; that is the thread's, and kept.
#[derive(Clone, Debug)]
pub struct Saved<T> {
    /// Of x.
    pub(crate) shape: [usize; 3],
    pub(crate) hidden: usize,
    /// Of the cell; nothing before the first call.
    pub(crate) size: Option<Size>,
    /// Of the cell's normalizations.
    pub(crate) eps: f64,
    /// Empty if every row is there.
    pub(crate) mask: Vec<bool>,
    pub(crate) u: Vec<T>,
    pub(crate) v: Vec<T>,
    /// The state in front of each step, and the last one.
    pub(crate) h: Vec<T>,
    pub(crate) c: Vec<T>,
    pub(crate) gates: Vec<T>,
    pub(crate) norms: [Norm<T>; NORMS],
}

/// What a normalization keeps of each row of each step.
#[derive(Clone, Debug)]
pub(crate) struct Norm<T> {
    mean: Vec<T>,
    low: Vec<T>,
    rstd: Vec<T>,
    exponent: Vec<i16>,
}

impl<T> Default for Saved<T> {
    /// Belongs to no call yet: for the first [`forward_into`](crate::Recurrent::forward_into).
    fn default() -> Self {
        let norm = || Norm { mean: Vec::new(), low: Vec::new(), rstd: Vec::new(), exponent: Vec::new() };
        let [u, v, h, c, gates] = [const { Vec::new() }; 5];
        let (shape, norms) = ([0; 3], [norm(), norm(), norm(), norm()]);
        Self { shape, hidden: 0, size: None, eps: 0.0, mask: Vec::new(), u, v, h, c, gates, norms }
    }
}

impl<T: Element> Saved<T> {
    pub(crate) fn fit(&mut self, shape: [usize; 3], hidden: usize, size: Size, eps: f64) {
        let [steps, batch, _] = shape;
        let rows = steps * batch;
        (self.shape, self.hidden, self.size, self.eps) = (shape, hidden, Some(size), eps);
        self.mask.clear();
        self.u.resize(rows * size.kept_u() * hidden, T::zero());
        self.v.resize(rows * size.kept_columns * hidden, T::zero());
        self.h.resize((rows + batch) * hidden, T::zero());
        self.c.resize((rows + batch) * size.c() * hidden, T::zero());
        self.gates.resize(rows * size.kept * hidden, T::zero());
        for (index, norm) in self.norms.iter_mut().enumerate() {
            let rows = if index < size.norms { rows } else { 0 };
            for numbers in [&mut norm.mean, &mut norm.low, &mut norm.rstd] {
                numbers.resize(rows, T::zero());
            }
            norm.exponent.resize(rows, 0);
        }
    }
}

/// The mask of a step; nothing if every row is there.
pub(crate) fn mask_of(mask: &[bool], batch: usize, step: usize) -> Option<&[bool]> {
    if mask.is_empty() { None } else { Some(&mask[step * batch..(step + 1) * batch]) }
}

impl<T: Element> Norm<T> {
    /// Some rows of each of these normalizations, to be filled.
    pub(crate) fn saved_rows(norms: &mut [Self], rows: Range<usize>) -> SavedNorms<'_, T> {
        let mut saved = [const { None }; NORMS];
        for (saved, norm) in saved.iter_mut().zip(norms) {
            *saved = Some(SavedRows {
                mean: &mut norm.mean[rows.clone()],
                low: &mut norm.low[rows.clone()],
                rstd: &mut norm.rstd[rows.clone()],
                exponent: &mut norm.exponent[rows.clone()],
            });
        }
        saved
    }

    /// Some rows of each normalization that the cell has; none of those that it lacks.
    pub(crate) fn kept_rows(norms: &[Self; NORMS], rows: Range<usize>) -> [KeptRows<'_, T>; NORMS] {
        norms.each_ref().map(|Norm { mean, low, rstd, exponent }| {
            let rows = rows.start.min(mean.len())..rows.end.min(mean.len());
            KeptRows { mean, low, rstd, exponent }.rows(rows)
        })
    }
}
