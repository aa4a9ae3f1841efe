//! Matrix products: the only file that knows `faer`.
//!
//! Matrices are slices, row after row. The same product gives the same bits on any number of threads, and a row of it does
//! not depend on the contents of other rows; but a row alone may differ in its last bits from the same row among others.

use faer::linalg::matmul::matmul;
use faer::traits::RealField;
use faer::{Accum, MatMut, MatRef, Par};

/// A matrix to be read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Matrix<'a, T> {
    rows: usize,
    columns: usize,
    elements: &'a [T],
    transposed: bool,
}

impl<'a, T> Matrix<'a, T> {
    /// That of `elements`, row after row.
    pub(crate) fn new(rows: usize, columns: usize, elements: &'a [T]) -> Self {
        debug_assert_eq!(elements.len(), rows * columns, "{rows} rows of {columns}");
        Self { rows, columns, elements, transposed: false }
    }

    /// Its transpose; nothing is moved.
    pub(crate) fn transposed(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

impl<T: Copy> Matrix<'_, T> {
    /// Writes the transpose, row after row.
    pub(crate) fn transpose_into<'b>(&self, to: &'b mut [T]) -> Matrix<'b, T> {
        debug_assert!(!self.transposed, "the elements are taken row after row");
        // A tile of each lies in the nearest cache.
        for first in (0..self.rows).step_by(TILE) {
            let end = (first + TILE).min(self.rows);
            for (column, to) in to.chunks_exact_mut(self.rows).enumerate() {
                for (to, row) in to[first..end].iter_mut().zip(first..) {
                    *to = self.elements[row * self.columns + column];
                }
            }
        }
        Matrix::new(self.columns, self.rows, to)
    }
}

impl<'a, T: RealField> Matrix<'a, T> {
    fn view(&self) -> MatRef<'a, T> {
        let view = MatRef::from_row_major_slice(self.elements, self.rows, self.columns);
        if self.transposed { view.transpose() } else { view }
    }
}

/// Rows of a tile of [`Matrix::transpose_into`]: a cache line of `f32`.
const TILE: usize = 16;

/// Whether a product takes the place of what was there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Into {
    /// What was there is not read.
    Replace,
    /// The product is added to it.
    Add,
}

/// c = a·b, or c += a·b, on that many threads of the pool we are in.
pub(crate) fn multiply<T: RealField>(c: &mut [T], into: Into, a: Matrix<'_, T>, b: Matrix<'_, T>, threads: usize) {
    let (a, b) = (a.view(), b.view());
    let c = MatMut::from_row_major_slice_mut(c, a.nrows(), b.ncols());
    let accum = match into {
        Into::Replace => Accum::Replace,
        Into::Add => Accum::Add,
    };
    matmul(c, accum, a, b, T::one_impl(), par(threads));
}

#[cfg(feature = "rayon")]
fn par(threads: usize) -> Par {
    if threads == 1 { Par::Seq } else { Par::rayon(threads) }
}

#[cfg(not(feature = "rayon"))]
fn par(_threads: usize) -> Par {
    Par::Seq
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
        for a in [Matrix::new(rows, inner, &plain_a), Matrix::new(inner, rows, &turned_a).transposed()] {
            for b in [Matrix::new(inner, columns, &plain_b), Matrix::new(columns, inner, &turned_b).transposed()] {
                let mut c = vec![f64::NAN; rows * columns];
                multiply(&mut c, Into::Replace, a, b, 1);
                assert_eq!(c, rights, "{rows}×{inner}×{columns}");
                multiply(&mut c, Into::Add, a, b, 1);
                assert!(c.iter().zip(&rights).all(|(c, right)| *c == 2.0 * right), "{rows}×{inner}×{columns} added");
            }
        }
    }

    #[test]
    fn products_are_sums_of_products() {
        for (rows, inner, columns) in [(1, 1, 1), (2, 3, 5), (1, 40, 7), (17, 33, 65), (0, 3, 2), (3, 0, 2), (3, 2, 0)]
        {
            check(rows, inner, columns);
        }
    }
}
