//! Where arrays, threads and kernels meet.
//!
//! What is done to the rows of a call: each function a [`Sweep`] with its kernel. Few wide rows that lie side by side are
//! taken by [`long`] on several threads.

use fearless_simd::Level;
use ndarray::{ArrayView, ArrayViewMut, Dimension};

use crate::arrays::{Input, Output, RowShape};
use crate::element::Element;
use crate::kernels::columns::{CHAIN, Gradient, rows_per_block};
use crate::kernels::kept::{KeptRows, Rows};
use crate::kernels::normalize::{Layer, Place, SavedRows};
use crate::kernels::second_order::Direction;
use crate::long;
use crate::parallel;
use crate::simd;
use crate::sweep::{Step, Sweep, one_chain};

/// What all tasks of a call share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call<'a, T> {
    pub(crate) level: Level,
    pub(crate) layer: Layer<'a, T>,
    pub(crate) rows: usize,
    /// How many trailing axes are a row.
    pub(crate) trailing: usize,
}

impl<T: Element> Call<'_, T> {
    fn shape(&self) -> RowShape {
        RowShape { features: self.layer.features, trailing: self.trailing }
    }
}

/// Where so many arrays are, at best.
///
/// From the cache that cores share, asking ahead gained on a Skylake with AVX2. On a Zen 3, what is best from a core's own cache
/// took 0.78 to 0.97 of that time up to arrays of `NEAR` bytes; from there on, what is best from memory was best.
fn place<T>(level: Level, arrays: usize, elements: usize) -> Place {
    // Three quarters of the 1 MiB that a core has on a Skylake server and on a Zen 4.
    const CORE: usize = 768 * 1024;
    // From here on, what is best from memory was best on both, which share their last cache with others.
    const SHARED: usize = 12 * 1024 * 1024;
    const NEAR: usize = 2816 * 1024;
    let (core, shared) = if simd::is_amd_with_avx2(level) { (arrays * NEAR, arrays * NEAR) } else { (CORE, SHARED) };
    match elements.saturating_mul(arrays * size_of::<T>()) {
        bytes if bytes <= core => Place::Core,
        bytes if bytes <= shared => Place::Shared,
        _ => Place::Memory,
    }
}

/// y of all rows, and what backward needs of each.
pub(crate) fn forward<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    x: ArrayView<'_, T, D>,
    y: ArrayViewMut<'_, T, D>,
    saved: Option<SavedRows<'_, T>>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let place = place::<T>(level, 2, x.len());
    let (x, mut y) = (Input::new(x, trailing), Output::new(y, trailing));
    if let (Input::Adjacent(x), Output::Adjacent(y)) = (&x, &mut y) {
        if !parallel::pays(2 * size_of_val(*x)) {
            return T::forward(level, layer, place, x, y, saved);
        }
        if long::shares_columns::<T>(rows, || 1, layer.features) {
            return long::forward(level, layer, x, y, saved);
        }
    }
    let kernel = |Step { inputs: [x], outputs: [y], per_row: saved, .. }: Step<'_, T, _, 1, 1, 0>| {
        T::forward(level, layer, place, x, y, saved);
    };
    Sweep::new(call.shape(), rows, [&x], [y.part()], saved, &kernel).run();
}

/// y of all rows in place of x, and what backward needs of each.
pub(crate) fn forward_inplace<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    x: ArrayViewMut<'_, T, D>,
    saved: Option<SavedRows<'_, T>>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let mut y = Output::new(x, trailing);
    let kernel = |Step { outputs: [y], scratch: [x], per_row: saved, .. }: Step<'_, T, _, 0, 1, 1>| {
        x.copy_from_slice(y);
        T::forward(level, layer, Place::Core, x, y, saved);
    };
    Sweep::new(call.shape(), rows, [], [y.part()], saved, &kernel).in_place().run();
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
    let &Call { level, ref layer, rows, trailing } = call;
    let place = place::<T>(level, 3, x.len());
    let (x, dy, mut dx) = (Input::new(x, trailing), Input::new(dy, trailing), Output::new(dx, trailing));
    if let (Input::Adjacent(x), Input::Adjacent(dy), Output::Adjacent(dx)) = (&x, &dy, &mut dx) {
        if long::backward::pays::<T>(rows, layer.features) {
            let rows = Rows { features: layer.features, kept, x, dy };
            return long::backward::backward(level, layer, place, rows, dx, grad);
        }
        if rows <= CHAIN {
            return one_chain(level, rows, layer.features, grad, |columns| {
                T::backward(level, layer, place, kept, x, dy, dx, columns, None);
            });
        }
    }
    let kernel = |step: Step<'_, T, _, 2, 1, 0>| {
        let Step { rows, inputs: [x, dy], outputs: [dx], mut columns, block, .. } = step;
        T::backward(level, layer, place, kept.rows(rows), x, dy, dx, &mut columns, block);
    };
    let front = if T::lines_pay(level, layer, place) { dx.front() } else { 0 };
    let sweep = Sweep::new(call.shape(), rows, [&x, &dy], [dx.part()], (), &kernel);
    sweep.with_front(front).ending_chains().sum(level, grad);
}

/// The arrays of a residual forward call.
pub(crate) struct Residual<'a, T, D> {
    pub(crate) x: ArrayView<'a, T, D>,
    /// What x is multiplied by, if by anything.
    pub(crate) mask: Option<ArrayView<'a, T, D>>,
    pub(crate) residual: ArrayView<'a, T, D>,
    pub(crate) y: ArrayViewMut<'a, T, D>,
    pub(crate) sum: ArrayViewMut<'a, T, D>,
}

/// sum = mask ⊙ x + residual, its y, and what backward needs of each row.
pub(crate) fn forward_residual<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    arrays: Residual<'_, T, D>,
    saved: SavedRows<'_, T>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let (elements, masked) = (arrays.x.len(), arrays.mask.is_some());
    let place = place::<T>(level, 4 + usize::from(masked), elements);
    let [x, residual] = [arrays.x, arrays.residual].map(|view| Input::new(view, trailing));
    let mask = arrays.mask.map_or(Input::Absent, |view| Input::new(view, trailing));
    let [mut y, mut sum] = [arrays.y, arrays.sum].map(|view| Output::new(view, trailing));
    if long::shares_columns::<T>(rows, || 1, layer.features)
        && let (Some(x), Some(mask), Some(residual)) = (x.adjacent(), mask.adjacent(), residual.adjacent())
        && let (Output::Adjacent(y), Output::Adjacent(sum)) = (&mut y, &mut sum)
    {
        long::add_residual(level, x, mask, residual, sum);
        return long::forward(level, layer, sum, y, Some(saved));
    }
    let kernel = |step: Step<'_, T, _, 3, 2, 0>| {
        T::forward_residual(level, layer, place, step.inputs, step.outputs, step.per_row);
    };
    let outputs = [y.part(), sum.part()];
    Sweep::new(call.shape(), rows, [&x, &mask, &residual], outputs, Some(saved), &kernel).run();
}

/// The arrays of a residual backward call.
pub(crate) struct ResidualGradient<'a, T, D> {
    pub(crate) sum: ArrayView<'a, T, D>,
    pub(crate) dy: ArrayView<'a, T, D>,
    /// What else arrives at the sum.
    pub(crate) dsum: Option<ArrayView<'a, T, D>>,
    pub(crate) dresidual: ArrayViewMut<'a, T, D>,
    /// The mask, and where dx goes: without a mask it is dresidual.
    pub(crate) masked: Option<(ArrayView<'a, T, D>, ArrayViewMut<'a, T, D>)>,
}

/// dresidual and dx of all rows; adds dgain and dbias to `grad`.
pub(crate) fn backward_residual<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    kept: KeptRows<'_, T>,
    arrays: ResidualGradient<'_, T, D>,
    grad: Gradient<'_, T>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let elements = arrays.sum.len();
    let place = place::<T>(level, 3, elements);
    let [sum, dy] = [arrays.sum, arrays.dy].map(|view| Input::new(view, trailing));
    let dsum = arrays.dsum.map_or(Input::Absent, |view| Input::new(view, trailing));
    let mut dresidual = Output::new(arrays.dresidual, trailing);
    let mut masked = arrays.masked.map(|(mask, dx)| (Input::new(mask, trailing), Output::new(dx, trailing)));
    if long::shares_columns::<T>(rows, || rows_per_block(rows, layer.features), layer.features)
        && let (Some(sum), Some(dy), Some(dsum)) = (sum.adjacent(), dy.adjacent(), dsum.adjacent())
        && let Output::Adjacent(dresidual) = &mut dresidual
        && let None | Some((Input::Adjacent(_), Output::Adjacent(_))) = &masked
    {
        let rows = Rows { features: layer.features, kept, x: sum, dy };
        long::backward::backward(level, layer, place, rows, dresidual, grad);
        long::add_to(level, dresidual, dsum);
        if let Some((Input::Adjacent(mask), Output::Adjacent(dx))) = &mut masked {
            long::multiply(level, mask, dresidual, dx);
        }
        return;
    }
    let Some((mask, dx)) = &mut masked else {
        let kernel = |step: Step<'_, T, _, 3, 1, 0>| {
            let Step { rows, inputs: [sum, dy, dsum], outputs: [dresidual], mut columns, .. } = step;
            let from = [sum, dy, dsum, &[]];
            T::backward_residual(level, layer, place, kept.rows(rows), from, dresidual, &mut [], &mut columns);
        };
        return Sweep::new(call.shape(), rows, [&sum, &dy, &dsum], [dresidual.part()], (), &kernel).sum(level, grad);
    };
    let kernel = |step: Step<'_, T, _, 4, 2, 0>| {
        let Step { rows, inputs, outputs: [dresidual, dx], mut columns, .. } = step;
        T::backward_residual(level, layer, place, kept.rows(rows), inputs, dresidual, dx, &mut columns);
    };
    let outputs = [dresidual.part(), dx.part()];
    Sweep::new(call.shape(), rows, [&sum, &dy, &dsum, mask], outputs, (), &kernel).sum(level, grad);
}

/// dx of all rows in place of dy; adds dgain and dbias to `grad`.
pub(crate) fn backward_inplace<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    kept: KeptRows<'_, T>,
    x: ArrayView<'_, T, D>,
    dy: ArrayViewMut<'_, T, D>,
    grad: Gradient<'_, T>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let place = place::<T>(level, 3, x.len());
    let (x, mut dx) = (Input::new(x, trailing), Output::new(dy, trailing));
    let kernel = |step: Step<'_, T, _, 1, 1, 1>| {
        let Step { rows, inputs: [x], outputs: [dx], scratch: [dy], mut columns, .. } = step;
        dy.copy_from_slice(dx);
        T::backward(level, layer, place, kept.rows(rows), x, dy, dx, &mut columns, None);
    };
    Sweep::new(call.shape(), rows, [&x], [dx.part()], (), &kernel).in_place().sum(level, grad);
}

/// What [`backward_from`] has in the place of x.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Source {
    /// y; no gain is 0.
    Output,
    /// x̂
    Normalized,
}

/// dx of all rows in place of dy, from another array than x; adds dgain and dbias to `grad`.
pub(crate) fn backward_from<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    kept: KeptRows<'_, T>,
    source: Source,
    from: ArrayView<'_, T, D>,
    dy: ArrayViewMut<'_, T, D>,
    grad: Gradient<'_, T>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let (from, mut dx) = (Input::new(from, trailing), Output::new(dy, trailing));
    let kernel = |step: Step<'_, T, _, 1, 1, 2>| {
        let Step { rows, inputs: [from], outputs: [dx], scratch: [dy, normalized], mut columns, .. } = step;
        let x = match source {
            Source::Normalized => from,
            Source::Output => {
                T::normalized(level, layer, from, normalized);
                normalized
            }
        };
        dy.copy_from_slice(dx);
        // As if x̂ were x: its own mean is 0 and its rstd 1. What the rstd of x does to dx is done behind that.
        let none = &T::ZEROS[..rows.len()];
        let like =
            KeptRows { mean: none, low: none, rstd: &T::ONES[..rows.len()], exponent: &[0; CHAIN][..rows.len()] };
        T::backward(level, layer, Place::Core, like, x, dy, dx, &mut columns, None);
        T::scale_rows(level, &kept.rstd[rows], dx);
    };
    Sweep::new(call.shape(), rows, [&from], [dx.part()], (), &kernel).in_place().sum(level, grad);
}

/// How gain and bias move; nothing where the layer has none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AffineDirection<'a, T> {
    pub(crate) gain: Option<&'a [T]>,
    pub(crate) bias: Option<&'a [T]>,
}

impl<'a, T> AffineDirection<'a, T> {
    fn with(self, x: &'a [T]) -> Direction<'a, T> {
        Direction { x, gain: self.gain, bias: self.bias }
    }
}

/// How y moves with x, gain and bias.
pub(crate) fn jvp<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    kept: KeptRows<'_, T>,
    x: ArrayView<'_, T, D>,
    x_tangent: ArrayView<'_, T, D>,
    affine: AffineDirection<'_, T>,
    y_tangent: ArrayViewMut<'_, T, D>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let [x, x_tangent] = [x, x_tangent].map(|view| Input::new(view, trailing));
    let mut y_tangent = Output::new(y_tangent, trailing);
    let kernel = |step: Step<'_, T, _, 2, 1, 0>| {
        let Step { rows, inputs: [x, x_tangent], outputs: [y_tangent], .. } = step;
        T::jvp(level, layer, kept.rows(rows), x, affine.with(x_tangent), y_tangent);
    };
    Sweep::new(call.shape(), rows, [&x, &x_tangent], [y_tangent.part()], (), &kernel).run();
}

/// The arrays of the gradient of backward.
pub(crate) struct DoubleBackward<'a, T, D> {
    pub(crate) x: ArrayView<'a, T, D>,
    pub(crate) dy: ArrayView<'a, T, D>,
    /// The gradient that arrives at backward's dx.
    pub(crate) ddx: ArrayView<'a, T, D>,
    pub(crate) dx: ArrayViewMut<'a, T, D>,
    pub(crate) ddy: ArrayViewMut<'a, T, D>,
}

/// The gradients by x and dy of a loss of backward's results; adds that by the gain to `grad`.
pub(crate) fn double_backward<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    kept: KeptRows<'_, T>,
    arrays: DoubleBackward<'_, T, D>,
    affine: AffineDirection<'_, T>,
    grad: Gradient<'_, T>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let [x, dy, ddx] = [arrays.x, arrays.dy, arrays.ddx].map(|view| Input::new(view, trailing));
    let [mut dx, mut ddy] = [arrays.dx, arrays.ddy].map(|view| Output::new(view, trailing));
    let kernel = |step: Step<'_, T, _, 3, 2, 0>| {
        let Step { rows, inputs: [x, dy, ddx], outputs: [dx, ddy], columns, .. } = step;
        T::double_backward(level, layer, kept.rows(rows), x, dy, affine.with(ddx), dx, ddy, columns.dgain);
    };
    Sweep::new(call.shape(), rows, [&x, &dy, &ddx], [dx.part(), ddy.part()], (), &kernel).sum(level, grad);
}

/// w of all rows of weights, and what backward needs of each; `call` has neither gain nor bias.
pub(crate) fn forward_weights<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    gain: &[T],
    v: ArrayView<'_, T, D>,
    w: ArrayViewMut<'_, T, D>,
    saved: Option<SavedRows<'_, T>>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let place = place::<T>(level, 2, v.len());
    let (v, mut w) = (Input::new(v, trailing), Output::new(w, trailing));
    parallel::lend(gain.len(), |factors: &mut [T]| {
        let root = (layer.features as f64).sqrt();
        for (factor, &gain) in factors.iter_mut().zip(gain) {
            *factor = T::nearest(gain.into() / root);
        }
        let kernel = |step: Step<'_, T, _, 1, 1, 0>| {
            let Step { rows, inputs: [v], outputs: [w], per_row: saved, .. } = step;
            T::weight_forward(level, layer, place, &factors[rows], v, w, saved);
        };
        Sweep::new(call.shape(), rows, [&v], [w.part()], saved, &kernel).run();
    });
}

/// dv of all rows of weights; adds to `dgain`, which has a number for each.
pub(crate) fn backward_weights<T: Element, D: Dimension>(
    call: &Call<'_, T>,
    kept: KeptRows<'_, T>,
    (gain, dgain): (&[T], &mut [T]),
    v: ArrayView<'_, T, D>,
    dw: ArrayView<'_, T, D>,
    dv: ArrayViewMut<'_, T, D>,
) {
    let &Call { level, ref layer, rows, trailing } = call;
    let [v, dw] = [v, dw].map(|view| Input::new(view, trailing));
    let mut dv = Output::new(dv, trailing);
    let kernel = |step: Step<'_, T, _, 2, 1, 0>| {
        let Step { rows, inputs: [v, dw], outputs: [dv], per_row: dgain, .. } = step;
        T::weight_backward(level, layer, kept.rows(rows.clone()), &gain[rows], v, dw, dv, dgain);
    };
    Sweep::new(call.shape(), rows, [&v, &dw], [dv.part()], dgain, &kernel).run();
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;
    use crate::kernels::columns::rows_per_block;
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
        let call = Call { level: simd::level(), layer, rows: ROWS, trailing: 1 };

        let (mut y, mut dx) = (x.clone(), x.clone());
        let (mut numbers, mut exponent) = ([0; 3].map(|_| vec![0.0; ROWS]), vec![0; ROWS]);
        let [mean, low, rstd] = &mut numbers;
        let saved = SavedRows { mean, low, rstd, exponent: &mut exponent };
        let slices = (x.as_slice().expect("standard"), dy.as_slice().expect("standard"));
        if long {
            long::forward(call.level, &call.layer, slices.0, y.as_slice_mut().expect("standard"), Some(saved));
        } else {
            forward(&call, x.view(), y.view_mut(), Some(saved));
        }
        let [mean, low, rstd] = &numbers;
        let kept = KeptRows { mean, low, rstd, exponent: &exponent };
        let (mut dgain, mut dbias) = (vec![1.0; FEATURES], vec![2.0; FEATURES]);
        let grad = Gradient { gain: Some(&mut dgain), bias: Some(&mut dbias) };
        if long {
            let dx = dx.as_slice_mut().expect("standard");
            let rows = Rows { features: FEATURES, kept, x: slices.0, dy: slices.1 };
            long::backward::backward(call.level, &call.layer, Place::Core, rows, dx, grad);
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
