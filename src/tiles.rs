//! Rows that are not side by side in memory: copied into a tile, or out of one.

use std::ops::Range;

use ndarray::{ArrayBase, ArrayView, ArrayViewD, ArrayViewMut, ArrayViewMutD, Axis, Dimension, IxDyn, RawData, Slice};

use crate::number::Number;

/// Merges the leading axes of `view` as far as its layout allows and drops those of length 1; a row is what its last
/// `trailing` axes span.
pub(crate) fn merge_leading<S: RawData>(view: &mut ArrayBase<S, IxDyn>, trailing: usize) {
    let leading = view.ndim() - trailing;
    let mut into = leading.saturating_sub(1);
    for axis in (0..into).rev() {
        if !view.merge_axes(Axis(axis), Axis(into)) {
            into = axis;
        }
    }
    for axis in (0..leading).rev() {
        if view.len_of(Axis(axis)) == 1 {
            view.index_axis_inplace(Axis(axis), 0);
        }
    }
}

/// Copies `rows` of `view` into `tile`, side by side.
pub(crate) fn gather<T: Number>(view: &ArrayViewD<'_, T>, trailing: usize, rows: Range<usize>, tile: &mut [T]) {
    for run in Runs::new(view.shape(), trailing, rows) {
        let from = run.of(view.view(), trailing);
        let to = &mut tile[run.tile.clone()];
        let fits = "a run has as many elements as its part of the tile";
        ArrayViewMut::from_shape(from.raw_dim(), to).expect(fits).assign(&from);
    }
}

/// Copies `tile` to `rows` of `view`.
pub(crate) fn scatter<T: Number>(tile: &[T], view: &mut ArrayViewMutD<'_, T>, trailing: usize, rows: Range<usize>) {
    let shape = view.raw_dim();
    for run in Runs::new(shape.slice(), trailing, rows) {
        let mut to = run.of(view.view_mut(), trailing);
        let from = &tile[run.tile.clone()];
        let fits = "a run has as many elements as its part of the tile";
        let from = ArrayView::from_shape(to.raw_dim(), from).expect(fits);
        to.assign(&from);
    }
}

/// Rows that follow each other along the last leading axis.
struct Run {
    /// Their place along the leading axes before the last, counted in order.
    outer: usize,
    /// Their place along the last leading axis.
    inner: Range<usize>,
    /// Their elements in the tile.
    tile: Range<usize>,
}

impl Run {
    /// These rows of `view`.
    fn of<S: RawData>(&self, mut view: ArrayBase<S, IxDyn>, trailing: usize) -> ArrayBase<S, IxDyn> {
        let Some(last) = (view.ndim() - trailing).checked_sub(1) else { return view };
        let mut outer = self.outer;
        view.slice_axis_inplace(Axis(last), Slice::from(self.inner.clone()));
        for axis in (0..last).rev() {
            let len = view.len_of(Axis(axis));
            view.index_axis_inplace(Axis(axis), outer % len);
            outer /= len;
        }
        view
    }
}

/// Cuts a range of rows into runs.
struct Runs {
    inner: usize,
    features: usize,
    start: usize,
    rows: Range<usize>,
}

impl Runs {
    fn new(shape: &[usize], trailing: usize, rows: Range<usize>) -> Self {
        let (leading, row) = shape.split_at(shape.len() - trailing);
        Self { inner: leading.last().copied().unwrap_or(1), features: row.iter().product(), start: rows.start, rows }
    }
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.rows.is_empty() {
            return None;
        }
        let first = self.rows.start;
        let (outer, at) = (first / self.inner, first % self.inner);
        let len = (self.inner - at).min(self.rows.len());
        self.rows.start += len;
        let tile = (first - self.start) * self.features..(first - self.start + len) * self.features;
        Some(Run { outer, inner: at..at + len, tile })
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array;

    use super::*;

    #[test]
    fn rows_of_any_layout_are_gathered_in_order_and_scattered_back() {
        let x = Array::from_shape_fn((3, 1, 4, 5, 2), |(a, _, b, c, d)| (((a * 4 + b) * 5 + c) * 2 + d) as f32);
        let mut reversed = x.view().into_dyn();
        reversed.slice_axis_inplace(Axis(0), Slice::new(0, None, -1));
        reversed.slice_axis_inplace(Axis(2), Slice::new(0, None, 2));
        reversed.slice_axis_inplace(Axis(3), Slice::new(0, None, -2));
        let layouts = [
            x.view().into_dyn(),
            x.view().permuted_axes([2, 1, 0, 3, 4]).into_dyn(),
            x.view().permuted_axes([3, 4, 0, 1, 2]).into_dyn(),
            reversed,
        ];
        for view in layouts {
            for trailing in 0..=view.ndim() {
                let features: usize = view.shape()[view.ndim() - trailing..].iter().product();
                let rows = view.len() / features;
                let expected: Vec<f32> = view.iter().copied().collect();
                let mut merged = view.view();
                merge_leading(&mut merged, trailing);
                let mut back = Array::<f32, _>::zeros(view.raw_dim()).reversed_axes().reversed_axes();
                for start in 0..rows {
                    for end in start..=rows {
                        let mut tile = vec![f32::NAN; (end - start) * features];
                        gather(&merged, trailing, start..end, &mut tile);
                        assert_eq!(tile, expected[start * features..end * features], "rows {start}..{end}");
                        scatter(&tile, &mut back.view_mut(), trailing, start..end);
                    }
                }
                assert_eq!(back, view, "{trailing} trailing axes of {:?}", view.shape());
            }
        }
    }
}
