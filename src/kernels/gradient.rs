//! dgain and dbias alone, of rows whose dx is there.
//!
//! ```text
//! dgain += dy·rstd · ((x − mean) − low)      dbias += dy      in the order of the rows
//! ```

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::kept::Rows;
use crate::kernels::normalize::Lanes;
use crate::kernels::passes::Columns;
use crate::number::Number;
use crate::simd::{Tail, is_avx512, load, splat};

/// Adds to `columns`, which are those of a tile, what each row adds; none had to be rescaled.
#[simd]
pub(crate) fn add_tile<S: Simd, T: Number>(
    simd: S,
    rows: Rows<'_, T>,
    tile: Range<usize>,
    columns: &mut Columns<'_, T>,
) {
    let len = tile.len();
    let mut done = 0;
    if const { is_avx512::<S>() } {
        done = add_vectors::<S, T, 8>(simd, rows, &tile, done, columns);
    }
    done = add_vectors::<S, T, 2>(simd, rows, &tile, done, columns);
    done = add_vectors::<S, T, 1>(simd, rows, &tile, done, columns);
    if done < len {
        let (tail, zero) = (Tail::new(simd, len), splat(simd, T::zero()));
        let mut sums = [tail.load_all(columns.dgain), tail.load_all(columns.dbias)];
        for (row, x, dy) in rows.columns(tile) {
            // Filled up with what adds nothing.
            Lanes::of_row(simd, &row).add_columns([tail.load(x, zero), tail.load(dy, zero)], &mut sums);
        }
        tail.store_all(sums[0], columns.dgain);
        tail.store_all(sums[1], columns.dbias);
    }
}

/// [`add_tile`] from its column `done` on as long as there are `N` vectors, whose sums stay in registers. Returns the column
/// after the last.
#[inline(always)]
fn add_vectors<S: Simd, T: Number, const N: usize>(
    simd: S,
    rows: Rows<'_, T>,
    tile: &Range<usize>,
    mut done: usize,
    columns: &mut Columns<'_, T>,
) -> usize {
    while done + N * T::LANES <= tile.len() {
        let at = done..done + N * T::LANES;
        let Columns { dgain, dbias } = columns.part(at.clone());
        let (dgain, dbias) = (&mut T::chunks_mut(dgain).0[..N], &mut T::chunks_mut(dbias).0[..N]);
        let mut sums = [[splat(simd, T::zero()); 2]; N];
        for v in 0..N {
            sums[v] = [load::<S, T>(simd, &dgain[v]), load::<S, T>(simd, &dbias[v])];
        }
        for (row, x, dy) in rows.columns(tile.start + at.start..tile.start + at.end) {
            let lanes = Lanes::of_row(simd, &row);
            let (x, dy) = (&T::chunks(x).0[..N], &T::chunks(dy).0[..N]);
            for v in 0..N {
                lanes.add_columns([load::<S, T>(simd, &x[v]), load::<S, T>(simd, &dy[v])], &mut sums[v]);
            }
        }
        for v in 0..N {
            sums[v][0].store_array(&mut dgain[v]);
            sums[v][1].store_array(&mut dbias[v]);
        }
        done = at.end;
    }
    done
}
