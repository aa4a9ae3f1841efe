//! The only place where arrays, threads and kernels meet.
//!
//! What is done to the rows of a call: each function a [`Sweep`] with its kernel. Rows too long for a cache that lie side
//! by side are taken by [`long`].

use fearless_simd::Level;
use ndarray::{ArrayView, ArrayViewMut, Dimension};

use crate::arrays::{Input, Output, RowShape};
use crate::element::Element;
use crate::kernels::columns::Gradient;
use crate::kernels::normalize::{Layer, SavedRows};
use crate::kernels::passes::KeptRows;
use crate::long;
use crate::sweep::{Step, Sweep};

/// What all tasks of a call share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a, T> {
    pub(crate) level: Level,
    pub(crate) layer: Layer<'a, T>,
    /// How many trailing axes are a row.
    pub(crate) trailing: usize,
}

impl<T: Element> Call<'_, T> {
    fn shape(&self) -> RowShape {
        RowShape { features: self.layer.features, trailing: self.trailing }
    }
}

/// Whether so many arrays do not fit into the caches, and come from memory.
fn streams<T>(arrays: usize, elements: usize) -> bool {
    const CACHES: usize = 12 * 1024 * 1024;
    arrays * elements * size_of::<T>() > CACHES
}

/// y of all rows, and what backward needs of each.
pub(crate) fn forward<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    x: ArrayView<'_, T, D>,
    y: ArrayViewMut<'_, T, D>,
    saved: Option<SavedRows<'_, T>>,
) {
    let &Call { level, layer, trailing } = call;
    let (rows, streams) = (x.len() / layer.features, streams::<T>(2, x.len()));
    let (x, mut y) = (Input::new(x, trailing), Output::new(y, trailing));
    if let (Input::Adjacent(x), Output::Adjacent(y), true) = (&x, &mut y, long::is_long::<T>(layer.features)) {
        return long::forward(level, layer, x, y, saved);
    }
    let kernel = |Step { inputs: [x], outputs: [y], saved, .. }: Step<'_, T, 1, 1, 0>| {
        T::forward(level, layer, streams, x, y, saved);
    };
    Sweep::new(call.shape(), rows, [&x], [y.part()], &kernel).saving(saved).run();
}

/// y of all rows in place of x, and what backward needs of each.
pub(crate) fn forward_inplace<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    x: ArrayViewMut<'_, T, D>,
    saved: Option<SavedRows<'_, T>>,
) {
    let &Call { level, layer, trailing } = call;
    let rows = x.len() / layer.features;
    let mut y = Output::new(x, trailing);
    let kernel = |Step { outputs: [y], scratch: [x], saved, .. }: Step<'_, T, 0, 1, 1>| {
        x.copy_from_slice(y);
        T::forward(level, layer, false, x, y, saved);
    };
    Sweep::new(call.shape(), rows, [], [y.part()], &kernel).saving(saved).in_place().run();
}

/// dx of all rows; adds dgain and dbias to `grad`.
pub(crate) fn backward<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    kept: KeptRows<'_, T>,
    x: ArrayView<'_, T, D>,
    dy: ArrayView<'_, T, D>,
    dx: ArrayViewMut<'_, T, D>,
    grad: Gradient<'_, T>,
) {
    let &Call { level, layer, trailing } = call;
    let (rows, streams) = (x.len() / layer.features, streams::<T>(3, x.len()));
    let (x, dy, mut dx) = (Input::new(x, trailing), Input::new(dy, trailing), Output::new(dx, trailing));
    if let (Input::Adjacent(x), Input::Adjacent(dy), Output::Adjacent(dx), true) =
        (&x, &dy, &mut dx, long::is_long::<T>(layer.features))
    {
        return long::backward(level, layer, kept, x, dy, dx, grad);
    }
    let kernel = |step: Step<'_, T, 2, 1, 0>| {
        let Step { rows, inputs: [x, dy], outputs: [dx], mut columns, .. } = step;
        T::backward(level, layer, streams, kept.rows(rows), x, dy, dx, &mut columns);
    };
    Sweep::new(call.shape(), rows, [&x, &dy], [dx.part()], &kernel).sum(grad);
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::kernels::columns::{CHAIN, rows_per_block};
    use crate::kernels::moments::Spread;
    use crate::simd;

    const ROWS: usize = 5000;
    const FEATURES: usize = 33;

    /// y, dx, dgain and dbias, one behind the other.
    fn all_bits(long: bool) -> Vec<u32> {
        let number = |i: usize, j: usize, prime: usize| ((i * FEATURES + j) * prime % 1009) as f32 / 300.0;
        let mut x = Array2::from_shape_fn((ROWS, FEATURES), |(i, j)| number(i, j, 31));
        x.row_mut(70).mapv_inplace(|x| x * 1e30);
        let dy = Array2::from_shape_fn((ROWS, FEATURES), |(i, j)| number(i, j, 37) - 1.0);
        let layer = Layer { features: FEATURES, gain: None, bias: None, spread: Spread::about_mean(1e-5) };
        let call = Call { level: simd::level(), layer, trailing: 1 };

        let (mut y, mut dx) = (x.clone(), x.clone());
        let (mut numbers, mut exponent) = ([0; 3].map(|_| vec![0.0; ROWS]), vec![0; ROWS]);
        let [mean, low, rstd] = &mut numbers;
        let saved = SavedRows { mean, low, rstd, exponent: &mut exponent };
        let slices = (x.as_slice().expect("standard"), dy.as_slice().expect("standard"));
        if long {
            long::forward(call.level, layer, slices.0, y.as_slice_mut().expect("standard"), Some(saved));
        } else {
            forward(&call, x.view(), y.view_mut(), Some(saved));
        }
        let [mean, low, rstd] = &numbers;
        let kept = KeptRows { mean, low, rstd, exponent: &exponent };
        let (mut dgain, mut dbias) = (vec![1.0; FEATURES], vec![2.0; FEATURES]);
        let grad = Gradient { gain: Some(&mut dgain), bias: Some(&mut dbias) };
        if long {
            let dx = dx.as_slice_mut().expect("standard");
            long::backward(call.level, layer, kept, slices.0, slices.1, dx, grad);
        } else {
            backward(&call, kept, x.view(), dy.view(), dx.view_mut(), grad);
        }
        y.iter().chain(&dx).chain(&dgain).chain(&dbias).map(|x| x.to_bits()).collect()
    }

    /// Rows this short never go there; with so many of them, a row block has two chains, which no test with long rows
    /// could afford.
    #[test]
    fn rows_taken_tile_by_tile_have_the_bits_of_rows_taken_one_by_one() {
        assert!(rows_per_block(ROWS, FEATURES) > CHAIN);
        let (tiles, rows) = (all_bits(true), all_bits(false));
        for (i, (tiles, rows)) in tiles.iter().zip(&rows).enumerate() {
            assert_eq!(tiles, rows, "number {i} of y, dx, dgain, dbias; y has {}", ROWS * FEATURES);
        }
    }
}
