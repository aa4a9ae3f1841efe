//! [`batch`](super) of whole rows, of 1 to 8 vectors or from memory: one by one, as they lie.
//!
//! Of short rows, what is known of the columns stays in registers, and so do their sums: 32 to 128 features take 0.3 to 0.65 of
//! the time of rows that share loads and stores. A kernel for a chain of rows is left, and then it takes a while until as much is
//! on its way from memory again; a kernel for a block of them takes 0.7 to 0.95 of the time, of 256 to 1024 features.

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::batch::write::{result, write_group};
use crate::kernels::batch::{self, Block, Sums, TILE};
use crate::kernels::columns::{self, CHAIN};
use crate::kernels::narrow::{at, end_chain, vectors};
use crate::number::Number;
use crate::prefetch::{DISTANCE, Prefetch, ask_for_page};
use crate::simd::{Tail, is_avx2, splat};

/// The most vectors of a row whose columns stay in registers.
const MOST: usize = 8;

/// Whether rows are taken so.
#[inline(always)]
pub(crate) fn pays<S: Simd, T: Number>(_simd: S, streams: bool, features: usize) -> bool {
    let most = if streams { TILE } else { MOST };
    S::f32s::LEN >= 8 && (T::LANES..=most * T::LANES).contains(&features)
}

/// Adds the rows of a block to its sums, about h (with `dy`: the mean) of each column, chain by chain; `room`: for the sums of a
/// chain, all 0.
///
/// `streams`: the rows come from memory.
#[simd]
pub(crate) fn sums<S: Simd, T: Number>(
    simd: S,
    streams: bool,
    about: &[T],
    x: &[T],
    dy: Option<&[T]>,
    room: &mut Sums<'_, T>,
    block: Sums<'_, T::Wide>,
) {
    let features = about.len();
    if const { S::f32s::LEN >= 8 } && pays::<S, T>(simd, streams, features) {
        return match dy {
            None => add_all::<S, T, false>(simd, about, x, x, room, block),
            Some(dy) => add_all::<S, T, true>(simd, about, x, dy, room, block),
        };
    }
    let chain = CHAIN * features;
    for (index, x) in x.chunks(chain).enumerate() {
        let block_of = |rows| Block { rows, stride: features, first: 0 };
        let dy = dy.map(|dy| block_of(&dy[index * chain..][..x.len()]));
        batch::sums(simd, streams, about, block_of(x), dy, room);
        columns::end_chain(simd, room.products, block.products);
        columns::end_chain(simd, room.terms, block.terms);
    }
}

#[inline(always)]
fn add_all<S: Simd, T: Number, const BACK: bool>(
    simd: S,
    about: &[T],
    x: &[T],
    dy: &[T],
    room: &mut Sums<'_, T>,
    block: Sums<'_, T::Wide>,
) {
    let add = match about.len().div_ceil(T::LANES) {
        1 => add_rows::<S, T, BACK, 1>,
        2 => add_rows::<S, T, BACK, 2>,
        3 => add_rows::<S, T, BACK, 3>,
        4 => add_rows::<S, T, BACK, 4>,
        5 => add_rows::<S, T, BACK, 5>,
        6 => add_rows::<S, T, BACK, 6>,
        7 => add_rows::<S, T, BACK, 7>,
        MOST => add_rows::<S, T, BACK, MOST>,
        _ => return add_wide_rows::<S, T, BACK>(simd, about, x, dy, room, block),
    };
    add(simd, about, x, dy, block);
}

/// Rows of `N` vectors, the last of which need not be full.
#[simd]
#[inline(never)]
fn add_rows<S: Simd, T: Number, const BACK: bool, const N: usize>(
    simd: S,
    about: &[T],
    mut x: &[T],
    mut dy: &[T],
    block: Sums<'_, T::Wide>,
) {
    let features = about.len();
    let tail = Tail::<S, T>::new(simd, features);
    let about = vectors::<S, T, N>(simd, features, about, 0);
    let zeros = [splat(simd, T::zero()); N];
    let (mut products, mut terms) = (zeros, zeros);
    let mut left = CHAIN;
    while let Some(row) = x.split_off(..features) {
        let xs = vectors::<S, T, N>(simd, features, row, 0);
        let mut dys = xs;
        ask_for_page(x, 0..features);
        if BACK && let Some(row) = dy.split_off(..features) {
            dys = vectors::<S, T, N>(simd, features, row, 0);
            ask_for_page(dy, 0..features);
        }
        for v in 0..N {
            let d = xs[v] - about[v];
            let t = if BACK { dys[v] } else { d };
            products[v] += t * d;
            terms[v] += t;
        }
        left -= 1;
        if left == 0 || x.is_empty() {
            end_chain::<S, T, N>(simd, &tail, &mut products, block.products);
            end_chain::<S, T, N>(simd, &tail, &mut terms, block.terms);
            left = CHAIN;
        }
    }
}

/// The row to be asked for while the one in front of `rows` is read: on AVX2, as in [`ahead`](crate::kernels::ahead).
#[inline(always)]
fn below<S: Simd, T: Number>(rows: &[T], features: usize) -> Prefetch<'_, T> {
    if const { is_avx2::<S>() } {
        Prefetch::these(rows).skip((DISTANCE / size_of::<T>()).saturating_sub(features) / features * features)
    } else {
        Prefetch::NONE
    }
}

/// Rows of more vectors.
#[simd]
#[inline(never)]
fn add_wide_rows<S: Simd, T: Number, const BACK: bool>(
    simd: S,
    about: &[T],
    mut x: &[T],
    mut dy: &[T],
    room: &mut Sums<'_, T>,
    block: Sums<'_, T::Wide>,
) {
    let features = about.len();
    let tail = Tail::<S, T>::new(simd, features);
    let mut left = CHAIN;
    while let Some(row) = x.split_off(..features) {
        let mut dy_row = row;
        ask_for_page(x, 0..features);
        if BACK && let Some(row) = dy.split_off(..features) {
            dy_row = row;
            ask_for_page(dy, 0..features);
        }
        let prefetch = [below::<S, T>(x, features), below::<S, T>(if BACK { dy } else { &[] }, features)];
        batch::add_group::<S, T, BACK, 1>(simd, &tail, about, [row], [dy_row], room, prefetch);
        left -= 1;
        if left == 0 || x.is_empty() {
            columns::end_chain(simd, room.products, block.products);
            columns::end_chain(simd, room.terms, block.terms);
            left = CHAIN;
        }
    }
}

/// y, or with `dy` dx, of rows side by side; `columns`: mean, low, scale, and the bias twice, or k and m.
#[inline(always)]
pub(crate) fn write<S: Simd, T: Number>(simd: S, columns: [&[T]; 5], x: &[T], dy: Option<&[T]>, out: &mut [T]) {
    match dy {
        None => write_all::<S, T, false>(simd, columns, x, x, out),
        Some(dy) => write_all::<S, T, true>(simd, columns, x, dy, out),
    }
}

#[inline(always)]
fn write_all<S: Simd, T: Number, const BACK: bool>(simd: S, columns: [&[T]; 5], x: &[T], dy: &[T], out: &mut [T]) {
    let write = match columns[0].len().div_ceil(T::LANES) {
        // Where it does not pay, nothing more is compiled.
        _ if const { S::f32s::LEN < 8 } => write_wide_rows::<S, T, BACK>,
        1 => write_rows::<S, T, BACK, 1>,
        2 => write_rows::<S, T, BACK, 2>,
        3 => write_rows::<S, T, BACK, 3>,
        4 => write_rows::<S, T, BACK, 4>,
        5 => write_rows::<S, T, BACK, 5>,
        6 => write_rows::<S, T, BACK, 6>,
        7 => write_rows::<S, T, BACK, 7>,
        MOST => write_rows::<S, T, BACK, MOST>,
        _ => write_wide_rows::<S, T, BACK>,
    };
    write(simd, columns, x, dy, out);
}

/// Rows of `N` vectors, the last of which need not be full.
#[simd]
#[inline(never)]
fn write_rows<S: Simd, T: Number, const BACK: bool, const N: usize>(
    simd: S,
    columns: [&[T]; 5],
    mut x: &[T],
    mut dy: &[T],
    mut out: &mut [T],
) {
    let features = columns[0].len();
    let mut known = [vectors::<S, T, N>(simd, features, columns[0], 0); 5];
    for (known, columns) in known.iter_mut().zip(columns) {
        *known = vectors::<S, T, N>(simd, features, columns, 0);
    }
    let [mean, low, scale, bias_or_k, m] = known;
    while let (Some(row), Some(out_row)) = (x.split_off(..features), out.split_off_mut(..features)) {
        let xs = vectors::<S, T, N>(simd, features, row, 0);
        let mut dys = xs;
        if BACK && let Some(row) = dy.split_off(..features) {
            dys = vectors::<S, T, N>(simd, features, row, 0);
            ask_for_page(dy, 0..features);
        } else {
            ask_for_page(out, 0..features);
        }
        ask_for_page(x, 0..features);
        for v in 0..N {
            let known = [mean[v], low[v], scale[v], bias_or_k[v], m[v]];
            result::<S, T, BACK>(known, xs[v], dys[v]).store_slice(&mut out_row[at::<T, N>(features, 0, v)]);
        }
    }
}

/// Rows of more vectors.
#[simd]
#[inline(never)]
fn write_wide_rows<S: Simd, T: Number, const BACK: bool>(
    simd: S,
    columns: [&[T]; 5],
    mut x: &[T],
    mut dy: &[T],
    mut out: &mut [T],
) {
    let features = columns[0].len();
    let tail = Tail::<S, T>::new(simd, features);
    while let (Some(row), Some(out_row)) = (x.split_off(..features), out.split_off_mut(..features)) {
        let mut dy_row = row;
        if BACK && let Some(row) = dy.split_off(..features) {
            dy_row = row;
            ask_for_page(dy, 0..features);
        } else {
            ask_for_page(out, 0..features);
        }
        ask_for_page(x, 0..features);
        let prefetch = [below::<S, T>(x, features), below::<S, T>(if BACK { dy } else { &[] }, features)];
        write_group::<S, T, BACK, 1>(simd, &tail, columns, [row], [dy_row], [out_row], prefetch);
    }
}

#[cfg(test)]
mod tests {
    use fearless_simd::dispatch;

    use super::*;
    use crate::kernels::batch::KeptColumns;
    use crate::kernels::batch::write::{self, Back};
    use crate::kernels::moments::Spread;
    use crate::kernels::normalize::Layer;
    use crate::number::Wide;
    use crate::simd::available;

    /// One NaN is like another.
    fn bits(numbers: impl Iterator<Item = f64>) -> Vec<u64> {
        numbers.map(|x| if x.is_nan() { f64::NAN } else { x }.to_bits()).collect()
    }

    /// Σ of products and of terms, and y or dx: here, and by way of the kernels for blocks of any columns.
    #[simd]
    fn run<S: Simd, T: Number>(
        simd: S,
        here: bool,
        columns: [&[T]; 5],
        x: &[T],
        dy: Option<&[T]>,
    ) -> (Vec<u64>, Vec<u64>) {
        let (features, about) = (columns[0].len(), columns[0]);
        let mut room = vec![T::zero(); 2 * features];
        let mut totals = vec![T::Wide::default(); 2 * features];
        let (products, terms) = room.split_at_mut(features);
        let (wide_products, wide_terms) = totals.split_at_mut(features);
        let (room, block) = (&mut Sums { products, terms }, Sums { products: wide_products, terms: wide_terms });
        let mut out = vec![T::nearest(0.1); x.len()];
        let block_of = |rows| Block { rows, stride: features, first: 0 };
        if here {
            sums(simd, true, about, x, dy, room, block);
            write(simd, columns, x, dy, &mut out);
        } else {
            for first in (0..x.len()).step_by(CHAIN * features) {
                let end = x.len().min(first + CHAIN * features);
                let dy = dy.map(|dy| block_of(&dy[first..end]));
                batch::sums(simd, false, about, block_of(&x[first..end]), dy, room);
                columns::end_chain(simd, room.products, block.products);
                columns::end_chain(simd, room.terms, block.terms);
            }
            let [mean, low, scale, bias_or_k, m] = columns;
            let kept = KeptColumns { mean, low, rstd: scale, exponent: &[] };
            let layer = Layer { features, gain: None, bias: Some(bias_or_k), spread: Spread::about_mean(0.0) };
            let back = dy.map(|dy| Back { dy: block_of(dy), k: bias_or_k, m });
            let mut list: Vec<_> = out.chunks_exact_mut(features).collect();
            write::write(simd, false, &layer, kept, scale, block_of(x), back, &mut list);
        }
        (bits(totals.iter().map(|sum| sum.value())), bits(out.iter().map(|&x| x.into())))
    }

    fn check<T: Number>() {
        let number = |i: usize, prime: usize| T::nearest((i * prime % 1009) as f64 / 300.0 - 1.5);
        for level in available() {
            if !dispatch!(level, simd => pays::<_, T>(simd, true, T::LANES)) {
                continue;
            }
            let narrow = (1..=MOST + 2).flat_map(|vectors| [0, 1, T::LANES / 2].map(|more| vectors * T::LANES + more));
            for features in narrow.chain([TILE * T::LANES - 1, TILE * T::LANES]) {
                assert!(dispatch!(level, simd => pays::<_, T>(simd, true, features)));
                for rows in [1, 3, CHAIN, CHAIN + 1, 2 * CHAIN + 7] {
                    let numbers = |len, prime| (0..len).map(|i| number(i, prime)).collect::<Vec<_>>();
                    let (mut x, dy) = (numbers(rows * features, 37), numbers(rows * features, 31));
                    x[features / 2] = T::infinity();
                    let columns = [41, 43, 47, 53, 59].map(|prime| numbers(features, prime));
                    let columns = columns.each_ref().map(Vec::as_slice);
                    for dy in [None, Some(&dy[..])] {
                        let columns = if dy.is_some() { columns } else { [0, 1, 2, 3, 3].map(|i| columns[i]) };
                        let got = dispatch!(level, simd => run(simd, true, columns, &x, dy));
                        let expected = dispatch!(level, simd => run(simd, false, columns, &x, dy));
                        assert!(got == expected, "{rows} x {features}, backward: {}", dy.is_some());
                    }
                }
            }
        }
    }

    #[test]
    fn bits_are_those_of_blocks_of_any_columns() {
        check::<f32>();
        check::<f64>();
    }
}
