//! Matrix products: the only file that knows `faer`.
//!
//! Matrices are slices, row after row. The same product gives the same bits on any number of threads, and a row of it does
//! not depend on the contents of other rows; but a row alone may differ in its last bits from the same row among others.

use std::ops::Range;

use faer::linalg::matmul::matmul;
use faer::reborrow::ReborrowMut;
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par};

use crate::number::Number;
use crate::parallel::{self, Job};

/// A matrix to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, T> {
    rows: usize,
    columns: usize,
    elements: &'a [T],
    layout: Layout,
}

/// How the elements of a matrix lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Row after row.
    Rows,
    /// Column after column.
    Columns,
    /// [`Strips`] of [`PANEL`] columns, each row after row.
    Panels,
}

/// Columns of a panel: a multiple of what faer takes at once, on every instruction set.
const PANEL: usize = 96;

/// The least columns of a strip. Faer has other ways, and orders, for a column alone and for very small products.
const LEAST: usize = 24;

/// Columns cut into strips, of which the last has what is left and not less than [`LEAST`], if there are as many.
#[derive(Clone, Copy, Debug)]
struct Strips {
    columns: usize,
    /// Of each but the last.
    width: usize,
}

impl Strips {
    fn count(&self) -> usize {
        self.columns.saturating_sub(LEAST) / self.width + 1
    }

    fn nth(&self, index: usize) -> Range<usize> {
        let start = index * self.width;
        start..if index + 1 == self.count() { self.columns } else { start + self.width }
    }
}

impl<'a, T> Matrix<'a, T> {
    /// That of `elements`, row after row.
    pub(crate) fn new(rows: usize, columns: usize, elements: &'a [T]) -> Self {
        debug_assert_eq!(elements.len(), rows * columns, "{rows} rows of {columns}");
        Self { rows, columns, elements, layout: Layout::Rows }
    }

    /// Its transpose; nothing is moved.
    pub(crate) fn transposed(self) -> Self {
        debug_assert!(self.layout == Layout::Rows, "the elements lie row after row");
        Self { rows: self.columns, columns: self.rows, layout: Layout::Columns, ..self }
    }
}

impl<T: Copy + Send + Sync> Matrix<'_, T> {
    /// Writes the transpose, row after row, on all threads where that pays.
    pub(crate) fn transpose_into<'b>(&self, to: &'b mut [T]) -> Matrix<'b, T> {
        debug_assert!(self.layout == Layout::Rows, "the elements lie row after row");
        let &Self { rows, columns, elements, .. } = self;
        fill(to, TILE * rows, |tile, to| {
            // Some rows of these columns lie in the nearest cache.
            for first in (0..rows).step_by(TILE) {
                let end = (first + TILE).min(rows);
                for (to, column) in to.chunks_exact_mut(rows).zip(tile * TILE..) {
                    for (to, row) in to[first..end].iter_mut().zip(first..) {
                        *to = elements[row * columns + column];
                    }
                }
            }
        });
        Matrix::new(columns, rows, to)
    }

    /// Writes it panel by panel: a product of a few rows with it then takes down to half the time, as faer need not gather what
    /// it takes at once from rows far apart, product after product.
    pub(crate) fn panels_into<'b>(&self, to: &'b mut [T]) -> Matrix<'b, T> {
        let &Self { rows, columns, elements, layout } = self;
        let strips = Strips { columns, width: PANEL };
        let write = |index: usize, panel: &mut [T]| {
            let at = strips.nth(index);
            match layout {
                Layout::Rows => {
                    for (row, to) in panel.chunks_exact_mut(at.len()).enumerate() {
                        to.copy_from_slice(&elements[row * columns..][at.clone()]);
                    }
                }
                Layout::Columns => {
                    Matrix::new(at.len(), rows, &elements[at.start * rows..at.end * rows]).transpose_into(panel);
                }
                Layout::Panels => unreachable!("it lies in panels already"),
            }
        };
        if !to.is_empty() {
            let last = strips.count() - 1;
            let (panels, last_panel) = to.split_at_mut(last * PANEL * rows);
            fill(panels, PANEL * rows, write);
            write(last, last_panel);
        }
        Matrix { rows, columns, elements: to, layout: Layout::Panels }
    }
}

/// Has `f` fill each `width` places of a copy, with their number.
fn fill<T: Send>(to: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if !to.is_empty() {
        let bytes = 2 * size_of_val(to);
        parallel::fill(to, width, bytes, f);
    }
}

impl<'a, T: RealField> Matrix<'a, T> {
    fn view(&self) -> MatRef<'a, T> {
        let &Self { rows, columns, elements, layout } = self;
        debug_assert!(layout != Layout::Panels, "panels have no common stride");
        match layout {
            Layout::Columns => MatRef::from_column_major_slice(elements, rows, columns),
            _ => MatRef::from_row_major_slice(elements, rows, columns),
        }
    }
}

/// Rows and columns of a tile of [`Matrix::transpose_into`]: a cache line of `f32`.
const TILE: usize = 16;

/// Whether a product takes the place of what was there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Into {
    /// What was there is not read.
    Replace,
    /// The product is added to it.
    Add,
}

/// c = a·b, or c += a·b, on so many threads.
pub(crate) fn multiply<T: RealField + Number>(
    c: &mut [T],
    into: Into,
    a: Matrix<'_, T>,
    b: Matrix<'_, T>,
    threads: usize,
) {
    if a.rows == 1 && b.layout == Layout::Rows && b.rows > TERMS && b.columns > 0 {
        return multiply_row(c, into, a.elements, b, threads);
    }
    let accum = match into {
        Into::Replace => Accum::Replace,
        Into::Add => Accum::Add,
    };
    let (right, width) = match b.layout {
        Layout::Panels => (Right::Panels(b.elements), PANEL),
        _ => (Right::Whole(b.view()), strip(b.columns, threads)),
    };
    let c = MatMut::from_row_major_slice_mut(c, a.rows, b.columns);
    let product = Product { c, accum, a: a.view(), right, width };
    parallel::share(product, threads);
}

/// [`multiply`] of one row, which reads b once, along its rows. They are cut into parts that follow from their number; any
/// thread may take a part, and the sums of the parts are added in order. (In strips of columns, two threads took up to
/// twice as long.)
fn multiply_row<T: RealField + Number>(c: &mut [T], into: Into, a: &[T], b: Matrix<'_, T>, threads: usize) {
    let Matrix { rows, columns, elements: b, .. } = b;
    debug_assert_eq!(a.len(), rows, "an element for each row");
    let terms = rows.div_ceil(PARTS).max(TERMS);
    parallel::lend(rows.div_ceil(terms) * columns, |sums: &mut [T]| {
        let product = RowProduct { sums: &mut *sums, a, b, columns, terms };
        parallel::share(product, threads);
        if into == Into::Replace {
            c.fill(T::zero_impl());
        }
        for sums in sums.chunks_exact(columns) {
            c.iter_mut().zip(sums).for_each(|(c, &sum)| *c += sum);
        }
    });
}

/// The most parts that the sums of a row are cut into, and the least terms of each but the last.
const PARTS: usize = 8;
const TERMS: usize = 64;

/// The sums of each `terms` rows of b, times their elements of a row.
struct RowProduct<'a, T> {
    sums: &'a mut [T],
    a: &'a [T],
    b: &'a [T],
    columns: usize,
    terms: usize,
}

impl<T: RealField + Number> Job for RowProduct<'_, T> {
    fn pieces(&self) -> usize {
        self.a.len().div_ceil(self.terms)
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (sums, sums_second) = self.sums.split_at_mut(pieces * self.columns);
        let (a, a_second) = self.a.split_at(pieces * self.terms);
        let (b, b_second) = self.b.split_at(pieces * self.terms * self.columns);
        (Self { sums, a, b, ..self }, Self { sums: sums_second, a: a_second, b: b_second, ..self })
    }

    fn run(self) {
        let columns = self.columns;
        let parts = self.sums.chunks_exact_mut(columns).zip(self.a.chunks(self.terms));
        for ((sums, a), b) in parts.zip(self.b.chunks(self.terms * columns)) {
            let (a, b) = (Matrix::new(1, a.len(), a).view(), Matrix::new(a.len(), columns, b).view());
            let sums = MatMut::from_row_major_slice_mut(sums, 1, columns);
            matmul(sums, Accum::Replace, a, b, T::one_impl(), Par::Seq);
        }
    }
}

/// A product strip by strip of columns, by whatever thread. On a Skylake, one thread then needs up to half, two threads up to
/// four fifths of the time of faer's way through the whole, which on several threads would also cut the sums of one row.
struct Product<'a, T> {
    c: MatMut<'a, T>,
    accum: Accum,
    a: MatRef<'a, T>,
    right: Right<'a, T>,
    /// Of its [`Strips`].
    width: usize,
}

/// What a product multiplies by.
enum Right<'a, T> {
    Whole(MatRef<'a, T>),
    /// Elements in panels.
    Panels(&'a [T]),
}

/// Columns of a strip, if it is not a panel.
const STRIP: usize = 2 * PANEL;

/// Columns of a strip: about [`STRIP`], and the same number of strips for each thread.
fn strip(columns: usize, threads: usize) -> usize {
    let each = ((columns + threads * STRIP / 2) / (threads * STRIP)).max(1);
    columns.div_ceil(threads * each).max(LEAST)
}

impl<T> Product<'_, T> {
    fn strips(&self) -> Strips {
        Strips { columns: self.c.ncols(), width: self.width }
    }
}

impl<T: RealField> Job for Product<'_, T> {
    fn pieces(&self) -> usize {
        self.strips().count()
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let columns = pieces * self.width;
        let (c, c_second) = self.c.split_at_col_mut(columns);
        let (right, right_second) = match self.right {
            Right::Whole(b) => {
                let (b, b_second) = b.split_at_col(columns);
                (Right::Whole(b), Right::Whole(b_second))
            }
            Right::Panels(panels) => {
                let (panels, panels_second) = panels.split_at(columns * self.a.ncols());
                (Right::Panels(panels), Right::Panels(panels_second))
            }
        };
        (Self { c, right, ..self }, Self { c: c_second, right: right_second, ..self })
    }

    fn run(mut self) {
        let (inner, strips) = (self.a.ncols(), self.strips());
        for Range { start, end } in (0..strips.count()).map(|index| strips.nth(index)) {
            let width = end - start;
            let b = match self.right {
                Right::Whole(b) => b.subcols(start, width),
                Right::Panels(panels) => {
                    MatRef::from_row_major_slice(&panels[start * inner..end * inner], inner, width)
                }
            };
            matmul(self.c.rb_mut().subcols_mut(start, width), self.accum, self.a, b, T::one_impl(), Par::Seq);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// c[i, j] = Σ a[i, k]·b[k, j], of small integers: no rounding.
    fn check(rows: usize, inner: usize, columns: usize) {
        let number = |i: usize, j: usize, prime: usize| ((i * prime + j * 7) % 11) as f64 - 5.0;
        let (a, b) = (|i, k| number(i, k, 3), |k, j| number(k, j, 5));
        let right = |i, j| (0..inner).map(|k| a(i, k) * b(k, j)).sum::<f64>();
        let fill = |rows: usize, columns: usize, f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..rows).flat_map(|i| (0..columns).map(move |j| f(i, j))).collect()
        };
        let rights = fill(rows, columns, &right);
        let (plain_a, plain_b) = (fill(rows, inner, &a), fill(inner, columns, &b));
        let (turned_a, turned_b) = (fill(inner, rows, &|k, i| a(i, k)), fill(columns, inner, &|j, k| b(k, j)));
        let (plain, turned) =
            (Matrix::new(inner, columns, &plain_b), Matrix::new(columns, inner, &turned_b).transposed());
        let mut panels = [(); 2].map(|()| vec![f64::NAN; inner * columns]);
        let [of_plain, of_turned] = &mut panels;
        let b = [plain, turned, plain.panels_into(of_plain), turned.panels_into(of_turned)];
        for a in [Matrix::new(rows, inner, &plain_a), Matrix::new(inner, rows, &turned_a).transposed()] {
            for (b, threads) in b.into_iter().flat_map(|b| [(b, 1), (b, 2)]) {
                let mut c = vec![f64::NAN; rows * columns];
                multiply(&mut c, Into::Replace, a, b, threads);
                assert_eq!(c, rights, "{rows}×{inner}×{columns}");
                multiply(&mut c, Into::Add, a, b, threads);
                assert!(c.iter().zip(&rights).all(|(c, right)| *c == 2.0 * right), "{rows}×{inner}×{columns} added");
            }
        }
    }

    #[test]
    fn products_are_sums_of_products() {
        let few =
            [(1, 1, 1), (2, 3, 5), (1, 40, 7), (1, 200, 7), (1, 200, 0), (17, 33, 65), (0, 3, 2), (3, 0, 2), (3, 2, 0)];
        let panels = [(3, 20, PANEL), (2, 5, PANEL + 1), (4, 17, 3 * PANEL - 1), (5, 6, 8 * STRIP - 7)];
        for (rows, inner, columns) in few.into_iter().chain(panels) {
            check(rows, inner, columns);
        }
    }

    /// Numbers whose sums are rounded.
    #[test]
    fn threads_do_not_change_a_bit() {
        fn check<T: RealField + Number>(from: fn(f64) -> T) {
            // Products of a row that faer would cut along `inner` on several threads, and strips of which few columns are left.
            let shapes = [(1, 30, 1436), (1, 190, 1436), (2, 70, 1436), (13, 600, 1436), (64, 129, 1436)];
            let narrow = [1, 2, 49, PANEL + 1, STRIP + 1, STRIP + 2, 2 * STRIP + 1];
            let narrow =
                narrow.into_iter().flat_map(|columns| [(1, 700, columns), (2, 600, columns), (9, 33, columns)]);
            for (rows, inner, columns) in shapes.into_iter().chain(narrow) {
                let numbers = |len: usize, prime: usize| -> Vec<T> {
                    (0..len).map(|i| from(1.0 / (1.0 + (i * prime % 1009) as f64) - 0.01)).collect()
                };
                let (a, b) = (numbers(rows * inner, 31), numbers(inner * columns, 37));
                let a = Matrix::new(rows, inner, &a);
                for b in [Matrix::new(inner, columns, &b), Matrix::new(columns, inner, &b).transposed()] {
                    let product = |b: Matrix<'_, T>, threads: usize| {
                        let mut c = numbers(rows * columns, 41);
                        multiply(&mut c, Into::Add, a, b, threads);
                        c
                    };
                    let right = product(b, 1);
                    let case = format!("{rows} × {inner} × {columns}, {:?}", b.layout);
                    for threads in [2, 3, 16] {
                        assert!(product(b, threads) == right, "{case}, {threads} threads");
                    }
                    let mut panels = vec![from(f64::NAN); inner * columns];
                    let panels = b.panels_into(&mut panels);
                    assert!(product(panels, 2) == product(panels, 1), "{case}, panels, 2 threads");
                }
            }
        }
        check::<f32>(|x| x as f32);
        check::<f64>(|x| x);
    }
}
