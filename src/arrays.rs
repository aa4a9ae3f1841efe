//! Arrays of any layout, some rows at a time.
//!
//! Rows side by side in memory are lent as they are. All others are gathered into a tile, and scattered from one.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ndarray::{
    ArrayBase, ArrayView, ArrayView1, ArrayViewD, ArrayViewMut, ArrayViewMutD, Axis, Dimension, IxDyn, RawData,
};

use crate::number::Number;
use crate::simd::front;
use crate::tiles::{gather, merge_leading, scatter};

/// What a row is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RowShape {
    pub(crate) features: usize,
    /// How many trailing axes are a row.
    pub(crate) trailing: usize,
}

impl RowShape {
    /// The elements of some rows that are side by side.
    fn elements(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.features..rows.end * self.features
    }
}

/// Rows to be read.
#[derive(Debug)]
pub(crate) enum Input<'a, T> {
    /// An array that this call is made without.
    Absent,
    Adjacent(&'a [T]),
    Strided(ArrayViewD<'a, T>),
}

impl<'a, T: Number> Input<'a, T> {
    pub(crate) fn new<D: Dimension>(view: ArrayView<'a, T, D>, trailing: usize) -> Self {
        match view.to_slice() {
            Some(slice) => Self::Adjacent(slice),
            None => {
                let mut view = view.into_dyn();
                merge_leading(&mut view, trailing);
                Self::Strided(view)
            }
        }
    }

    /// Whether rows need a tile.
    pub(crate) fn is_strided(&self) -> bool {
        matches!(self, Self::Strided(_))
    }

    /// One element of each row.
    pub(crate) fn column(&self, shape: RowShape, column: usize) -> ArrayViewD<'_, T> {
        match self {
            Self::Absent => ArrayView1::from(&[]).into_dyn(),
            Self::Adjacent(slice) => {
                let rows = slice.len() / shape.features;
                let view = ArrayView::from_shape((rows, shape.features), slice).expect(WHOLE);
                column_of(view.into_dyn(), 1, column)
            }
            Self::Strided(view) => column_of(view.view(), shape.trailing, column),
        }
    }

    /// All rows, if they need no tile.
    pub(crate) fn adjacent(&self) -> Option<&[T]> {
        match self {
            Self::Absent => Some(&[]),
            Self::Adjacent(slice) => Some(slice),
            Self::Strided(_) => None,
        }
    }

    /// Some rows, in `tile` if they are not side by side.
    pub(crate) fn rows<'b>(&'b self, shape: RowShape, rows: Range<usize>, tile: &'b mut [T]) -> &'b [T] {
        match self {
            Self::Absent => &[],
            Self::Adjacent(slice) => &slice[shape.elements(&rows)],
            Self::Strided(view) => {
                let tile = &mut tile[..rows.len() * shape.features];
                gather(view, shape.trailing, rows, tile);
                tile
            }
        }
    }
}

/// One element of each row.
fn column_of<S: RawData>(mut view: ArrayBase<S, IxDyn>, trailing: usize, mut column: usize) -> ArrayBase<S, IxDyn> {
    for _ in 0..trailing {
        let last = view.ndim() - 1;
        let len = view.len_of(Axis(last));
        view.index_axis_inplace(Axis(last), column % len);
        column /= len;
    }
    view
}

const WHOLE: &str = "an array has whole rows";

/// Rows to be written.
#[derive(Debug)]
pub(crate) enum Output<'a, T> {
    Adjacent(&'a mut [T]),
    Strided(Mutex<ArrayViewMutD<'a, T>>),
}

impl<'a, T: Number> Output<'a, T> {
    pub(crate) fn new<D: Dimension>(mut view: ArrayViewMut<'a, T, D>, trailing: usize) -> Self {
        if view.as_slice_mut().is_some() {
            Self::Adjacent(view.into_slice().expect("it was a slice a line ago"))
        } else {
            let mut view = view.into_dyn();
            merge_leading(&mut view, trailing);
            Self::Strided(Mutex::new(view))
        }
    }

    /// One element of each row.
    pub(crate) fn column_mut(&mut self, shape: RowShape, column: usize) -> ArrayViewMutD<'_, T> {
        match self {
            Self::Adjacent(slice) => {
                let rows = slice.len() / shape.features;
                let view = ArrayViewMut::from_shape((rows, shape.features), slice).expect(WHOLE);
                column_of(view.into_dyn(), 1, column)
            }
            Self::Strided(view) => {
                let view = view.get_mut().unwrap_or_else(PoisonError::into_inner);
                column_of(view.view_mut(), shape.trailing, column)
            }
        }
    }

    /// [`front`]; 0 if rows need a tile, which starts at a line.
    pub(crate) fn front(&self) -> usize {
        match self {
            Self::Adjacent(slice) => front(slice),
            Self::Strided(_) => 0,
        }
    }

    pub(crate) fn part(&mut self) -> Part<'_, 'a, T> {
        match self {
            Self::Adjacent(slice) => Part::Adjacent(slice),
            Self::Strided(view) => Part::Strided(view),
        }
    }
}

/// What one job writes of an output: jobs share one that is strided, and fill it one after the other.
#[derive(Debug)]
pub(crate) enum Part<'a, 'v, T> {
    Adjacent(&'a mut [T]),
    Strided(&'a Mutex<ArrayViewMutD<'v, T>>),
}

impl<T: Number> Part<'_, '_, T> {
    /// Whether rows need a tile.
    pub(crate) fn is_strided(&self) -> bool {
        matches!(self, Self::Strided(_))
    }

    pub(crate) fn split(self, elements: usize) -> (Self, Self) {
        match self {
            Self::Adjacent(slice) => {
                let (first, second) = slice.split_at_mut(elements);
                (Self::Adjacent(first), Self::Adjacent(second))
            }
            Self::Strided(view) => (Self::Strided(view), Self::Strided(view)),
        }
    }

    /// The place of some rows, counted from the first of this part; `tile` if they are not side by side.
    pub(crate) fn rows<'b>(&'b mut self, shape: RowShape, rows: Range<usize>, tile: &'b mut [T]) -> &'b mut [T] {
        match self {
            Self::Adjacent(slice) => &mut slice[shape.elements(&rows)],
            Self::Strided(_) => &mut tile[..rows.len() * shape.features],
        }
    }

    /// Fills `tile` with some rows, counted from the first of the array, if they are not side by side.
    pub(crate) fn gather(&self, shape: RowShape, rows: Range<usize>, tile: &mut [T]) {
        if let Self::Strided(view) = self {
            let tile = &mut tile[..rows.len() * shape.features];
            gather(&lock(view).view(), shape.trailing, rows, tile);
        }
    }

    /// Fills some rows, counted from the first of the array, from `tile` if they are not side by side.
    pub(crate) fn scatter(&self, shape: RowShape, rows: Range<usize>, tile: &[T]) {
        if let Self::Strided(view) = self {
            scatter(&tile[..rows.len() * shape.features], &mut lock(view), shape.trailing, rows);
        }
    }
}

fn lock<'a, 'v, T>(view: &'a Mutex<ArrayViewMutD<'v, T>>) -> MutexGuard<'a, ArrayViewMutD<'v, T>> {
    view.lock().unwrap_or_else(PoisonError::into_inner)
}
