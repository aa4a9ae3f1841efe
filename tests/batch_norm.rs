//! Batch normalization: right beside the double-double oracle, slopes, the same bits everywhere, any scale, statistics that
//! the caller holds, and errors before anything is written.

#[path = "common/number.rs"]
mod number;

use layernorm::ndarray::{Array, Array1, Array2, Array3, ArrayView1, ArrayViewD, Axis, Ix2, Slice, array, s};
use layernorm::{BatchNorm, BatchSaved, Error, Parameters, grad_check, instruction_sets};
use number::{Number, bits, drawn};
use textbook::{batch_backward, batch_forward};

/// A column of this scale has squares that overflow, one of its inverse squares that underflow.
trait Huge: Number {
    const HUGE: f64;
}

impl Huge for f32 {
    const HUGE: f64 = 1e30;
}

impl Huge for f64 {
    const HUGE: f64 = 1e200;
}

fn layer<T: Number>(features: usize) -> BatchNorm<T> {
    let parameter = |seed| drawn(features, seed);
    BatchNorm::new(features).with_gain(parameter(101)).unwrap().with_bias(parameter(102)).unwrap()
}

fn wide<T: Number>(values: ArrayView1<'_, T>) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

fn flat<T: Number>(values: Option<ArrayViewD<'_, T>>) -> Array1<T> {
    values.unwrap().iter().copied().collect()
}

/// What one training step computes.
struct Step<T> {
    saved: BatchSaved<T>,
    y: Array2<T>,
    dx: Array2<T>,
    dgain: Array1<T>,
    dbias: Array1<T>,
}

impl<T: Number> Step<T> {
    fn new(norm: &BatchNorm<T>, x: &Array2<T>, dy: &Array2<T>) -> Self {
        let (y, saved) = norm.forward(x).unwrap();
        let mut grad = norm.zero_grad();
        let dx = norm.backward(x, &saved, dy, &mut grad).unwrap();
        let (dgain, dbias) = (flat(grad.gain()), flat(grad.bias()));
        Self { saved, y, dx, dgain, dbias }
    }

    fn bits(&self) -> Vec<u64> {
        let Self { saved, y, dx, dgain, dbias } = self;
        let of_columns =
            [saved.mean(), saved.variance(), saved.rstd(), dgain.view().into_dyn(), dbias.view().into_dyn()];
        bits(of_columns.iter().flatten().chain(y).chain(dx))
    }
}

/// Compares every column with the oracle.
///
/// Roundings u that meet at worst, in units of what is rounded: a sum has 64 additions of its element (a chain), what
/// comes after is wider. h lies within σ of μ, so that Σ|x−h| ≤ 1.42·Nσ and Σ(x−h)² ≤ 2Nσ².
///
/// Additions of a chain round either way, and partial sums grow: √64 = 8 stands for them, times 2 for the worst column of
/// thousands, is 16.
///
/// * μ: (1 + 16)·1.42 σ, below 25 σ
/// * σ²: (2 + 1 + 16)·2 = 38, so r: 19 + 1 = 20
/// * y: 25 from μ; x̂·(2 + 20 + 2) with two subtractions and two products; the sum 1 of y, and 1 of the oracle's y
/// * dbias: 16 of Σ|dy|;  dgain: (2 + 16) of Σ|dy·x̂|, 20 of r, 25 of Σ|dy| from μ;  the result 2, as y
/// * dx: dy 3, the mean of dy as dbias + 1, x̂ times (24 and the mean of dy·x̂ with what dgain has), then 20 + 3 of all
fn check<T: Number>(norm: &BatchNorm<T>, unbiased: bool, x: &Array2<T>, dy: &Array2<T>, place: &str) {
    let u = T::epsilon().into() / 2.0;
    let got = Step::new(norm, x, dy);
    let (rows, eps) = (x.nrows() as f64, norm.eps().into());
    let (gains, biases) = (flat(norm.gain()), flat(norm.bias()));
    for column in 0..x.ncols() {
        let (gain, bias): (f64, f64) = (gains[column].into(), biases[column].into());
        let (x, dy) = (wide(x.column(column)), wide(dy.column(column)));
        let want = batch_forward(&x, gain, bias, eps, unbiased);
        let xhat = batch_forward(&x, 1.0, 0.0, eps, unbiased).y;
        let near = |what: &str, i: usize, got: T, want: f64, bound: f64| {
            let error = (got.into() - want).abs();
            let shape = format!("{}×{}", x.len(), gains.len());
            assert!(
                error <= bound,
                "{what}, {shape} {place}, column {column}, {i}: got {got:e}, want {want:e}, {:.2} of the bound",
                error / bound
            );
        };
        let (mean, variance, rstd) = (want.mean.to_f64(), want.variance.to_f64(), want.rstd.to_f64());
        // Where squares underflow, σ is at most the largest deviation.
        let largest = x.iter().fold(0.0, |largest: f64, x| largest.max((x - mean).abs()));
        let sigma = if variance.is_normal() { variance.sqrt() } else { largest };
        near("mean", 0, got.saved.mean()[column], mean, u * (25.0 * sigma + 2.0 * mean.abs()));
        if T::of(variance).is_normal() && T::of(rstd).is_normal() {
            near("variance", 0, got.saved.variance()[column], variance, 40.0 * u * variance);
            near("rstd", 0, got.saved.rstd()[column], rstd, 22.0 * u * rstd);
        }
        for (i, &want) in want.y.iter().enumerate() {
            let bound = (25.0 + 24.0 * xhat[i].abs()) * gain.abs() + 2.0 * want.abs();
            near("y", i, got.y[[i, column]], want, u * bound);
        }
        let (want_dx, want_dgain, want_dbias) = batch_backward(&x, gain, eps, unbiased, &dy);
        let sum_dy: f64 = dy.iter().map(|dy| dy.abs()).sum();
        let sum_both: f64 = dy.iter().zip(&xhat).map(|(dy, xhat)| (dy * xhat).abs()).sum();
        near("dbias", 0, got.dbias[column], want_dbias, u * (16.0 * sum_dy + 2.0 * want_dbias.abs()));
        let dgain_error = 38.0 * sum_both + 25.0 * sum_dy;
        near("dgain", 0, got.dgain[column], want_dgain, u * (dgain_error + 2.0 * want_dgain.abs()));
        for (i, &want) in want_dx.iter().enumerate() {
            let divisor = if unbiased { rows - 1.0 } else { rows };
            let slope = want_dgain.abs() / divisor;
            let terms = 3.0 * dy[i].abs()
                + 17.0 * sum_dy / rows
                + xhat[i].abs() * (24.0 * slope + dgain_error / divisor)
                + 25.0 * slope;
            let scale = rstd * gain.abs();
            near("dx", i, got.dx[[i, column]], want, u * (terms * scale + 23.0 * want.abs()));
        }
    }
}

fn is_right<T: Number>() {
    for features in [1, 15, 16, 17, 33, 400] {
        for rows in [1, 2, 3, 7, 8, 9, 31, 63, 64, 65, 1000] {
            if rows * features > 40_000 {
                continue;
            }
            let dy = drawn::<T, _>([rows, features], 2).mapv(|dy| dy + T::of(0.5));
            for (mean, eps) in [(0.0, 1e-5), (1e4, 1e-5), (1e6, 0.0)] {
                let norm = layer::<T>(features).with_eps(T::of(eps)).unwrap();
                let x = drawn::<T, _>([rows, features], 1).mapv(|x| x + T::of(mean));
                check(&norm, false, &x, &dy, &format!("mean {mean}"));
                if rows > 1 {
                    check(&norm.with_unbiased_variance(), true, &x, &dy, &format!("mean {mean}, unbiased"));
                }
            }
        }
    }
    // Several blocks of several chains.
    let (x, dy) = (drawn::<T, _>([9000, 5], 1).mapv(|x| x - T::of(300.0)), drawn::<T, _>([9000, 5], 2));
    check(&layer(5), false, &x, &dy, "");
    let (x, dy) = (drawn::<T, _>([70, 3000], 1), drawn::<T, _>([70, 3000], 2));
    check(&layer(3000), false, &x, &dy, "");
}

#[test]
fn f32_is_right() {
    is_right::<f32>();
}

#[test]
fn f64_is_right() {
    is_right::<f64>();
}

/// Columns that the hot path cannot take: huge, tiny, constant, and with a sample that tells nothing of the rest.
fn wild<T: Huge>(rows: usize, features: usize) -> Array2<T> {
    let mut x = drawn::<T, _>([rows, features], 1);
    for (j, mut column) in x.axis_iter_mut(Axis(1)).enumerate() {
        match j % 8 {
            1 => column.mapv_inplace(|x| x * T::of(T::HUGE)),
            3 => column.mapv_inplace(|x| x / T::of(T::HUGE)),
            4 => column.fill(T::of(0.7)),
            6 => column.indexed_iter_mut().for_each(|(i, x)| {
                if i * 16 % rows < 16 {
                    *x = T::of(1e6);
                }
            }),
            _ => {}
        }
    }
    x
}

fn any_scale_is_right<T: Huge>() {
    for (rows, features) in [(2, 17), (5, 33), (64, 40), (65, 40), (1000, 33)] {
        for eps in [0.0, 1e-5] {
            let norm = layer::<T>(features).with_eps(T::of(eps)).unwrap();
            let (x, dy) = (wild::<T>(rows, features), drawn([rows, features], 2));
            check(&norm, false, &x, &dy, &format!("wild, ε = {eps:e}"));
            check(&norm.with_unbiased_variance(), true, &x, &dy, &format!("wild, ε = {eps:e}, unbiased"));
        }
    }
}

#[test]
fn f32_of_any_scale_is_right() {
    any_scale_is_right::<f32>();
}

#[test]
fn f64_of_any_scale_is_right() {
    any_scale_is_right::<f64>();
}

/// Σ(x−h)² is 2500 times Σ(x−μ)² here: taken about h, the variance would lose eleven bits.
#[test]
fn a_sample_that_tells_nothing_of_the_rest_is_noticed() {
    let rows = 40_000;
    let (mut x, dy) = (drawn::<f32, _>([rows, 3], 1), drawn::<f32, _>([rows, 3], 2));
    x.column_mut(1).iter_mut().step_by(rows / 16).for_each(|x| *x = 1e6);
    check(&layer(3), false, &x, &dy, "with an odd sample");
}

#[test]
fn gradients_are_slopes() {
    for (rows, features, eps, unbiased) in
        [(2, 3, 0.1, false), (2, 2, 0.1, true), (5, 3, 0.0, true), (9, 20, 1e-5, false), (70, 3, 0.5, true)]
    {
        let mut norm = layer::<f64>(features).with_eps(eps).unwrap();
        if unbiased {
            norm = norm.with_unbiased_variance();
        }
        let (x, dy) = (drawn::<f64, _>([rows, features], 1).mapv(|x| x + 2.0), drawn::<f64, _>([rows, features], 2));
        let loss = |norm: &BatchNorm<f64>, x: &Array2<f64>| (norm.forward(x).unwrap().0 * &dy).sum();
        let step = Step::new(&norm, &x, &dy);
        let place = format!("{rows}×{features}, ε = {eps}, unbiased {unbiased}");
        let worst = grad_check::compare(&x, &step.dx, |x| loss(&norm, x));
        assert!(worst.error < 1e-8, "dx, {place}: {worst:?}");
        let (gain, bias) = (flat(norm.gain()), flat(norm.bias()));
        let of_gain = |gain: &Array1<f64>| loss(&norm.clone().with_gain(gain.clone()).unwrap(), &x);
        let worst = grad_check::compare(&gain, &step.dgain, of_gain);
        assert!(worst.error < 1e-8, "dgain, {place}: {worst:?}");
        let of_bias = |bias: &Array1<f64>| loss(&norm.clone().with_bias(bias.clone()).unwrap(), &x);
        let worst = grad_check::compare(&bias, &step.dbias, of_bias);
        assert!(worst.error < 1e-8, "dbias, {place}: {worst:?}");
    }
}

/// The same numbers in other places of memory.
fn placed<T: Number>(values: &Array2<T>, layout: usize) -> Array<T, Ix2> {
    let (rows, features) = values.dim();
    let mut placed = match layout {
        0 => Array2::zeros((features, rows)).reversed_axes(),
        1 => {
            let mut apart = Array2::zeros((2 * rows, features + 3));
            apart.slice_axis_inplace(Axis(0), Slice::new(1, None, 2));
            apart.slice_axis_inplace(Axis(1), Slice::new(2, Some(-1), 1));
            apart
        }
        _ => {
            let mut turned = Array2::zeros((rows, features));
            turned.invert_axis(Axis(0));
            turned.invert_axis(Axis(1));
            turned
        }
    };
    placed.assign(values);
    placed
}

/// In any layout, on each instruction set, on threads, whatever the other columns are.
fn same_bits<T: Huge>() {
    for (rows, features) in [(1, 5), (4, 1000), (33, 64), (64, 3000), (130, 100), (9, 50_000), (6000, 70)] {
        let norm = layer::<T>(features).with_eps(T::of(0.0)).unwrap();
        let (mut x, dy) = (wild::<T>(rows, features), drawn::<T, _>([rows, features], 2));
        if features > 10 {
            x[[rows / 2, 10]] = T::nan();
        }
        let want = Step::new(&norm, &x, &dy);
        let bits_of_all = want.bits();
        let place = format!("{rows}×{features}");
        for set in instruction_sets().into_iter().filter(|set| *set != "fallback" || rows * features < 10_000) {
            let norm = norm.clone().with_instruction_set(set).unwrap();
            assert!(Step::new(&norm, &x, &dy).bits() == bits_of_all, "{place} on {set}");
        }
        #[cfg(feature = "rayon")]
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let bits = pool.install(|| Step::new(&norm, &x, &dy)).bits();
            assert!(bits == bits_of_all, "{place} on {threads} threads");
        }
        for layout in 0..3 {
            let x = placed(&x, layout);
            assert!(Step::new(&norm, &x, &dy).bits() == bits_of_all, "{place}, x in layout {layout}");
            let step = Step::new(&norm, &x, &placed(&dy, layout));
            assert!(step.bits() == bits_of_all, "{place}, x and dy in layout {layout}");
            let (mut y, mut dx) = (placed(&x, layout), placed(&dy, (layout + 1) % 3));
            let (mut saved, mut grad) = (BatchSaved::default(), norm.zero_grad());
            norm.forward_into(&x, &mut y, &mut saved).unwrap();
            norm.backward_into(&x, &saved, &dy, &mut dx, &mut grad).unwrap();
            let step = Step { saved, y, dx, dgain: flat(grad.gain()), dbias: flat(grad.bias()) };
            assert!(step.bits() == bits_of_all, "{place}, outputs in layout {layout}");
        }
        // Columns far apart, beside each other: row blocks of sums follow from the shape, but a chain is a chain.
        for at in [0, 3, features - 1].into_iter().filter(|&at| at < features && rows <= 64) {
            let columns = [at, features / 2];
            let pick = |values: &Array1<T>| Array1::from_iter(columns.map(|at| values[at]));
            let norm = BatchNorm::new(2).with_eps(T::of(0.0)).unwrap();
            let norm = norm.with_gain(pick(&flat(layer::<T>(features).gain()))).unwrap();
            let norm = norm.with_bias(pick(&flat(layer::<T>(features).bias()))).unwrap();
            let two = Step::new(&norm, &x.select(Axis(1), &columns), &dy.select(Axis(1), &columns));
            let (y, dx) = (want.y.select(Axis(1), &columns), want.dx.select(Axis(1), &columns));
            assert_eq!(bits(&two.y), bits(&y), "{place}, column {at} of {features}");
            assert_eq!(bits(&two.dx), bits(&dx), "{place}, column {at} of {features}");
            assert_eq!(bits(&two.dgain), bits(&pick(&want.dgain)), "{place}, column {at} of {features}");
        }
    }
}

#[test]
fn f32_has_the_same_bits_everywhere() {
    same_bits::<f32>();
}

#[test]
fn f64_has_the_same_bits_everywhere() {
    same_bits::<f64>();
}

#[test]
fn a_constant_feature_gives_the_bias() {
    for rows in [1, 2, 3, 7, 64, 65, 1000] {
        for (eps, value) in [(0.0, 0.1), (1e-5, 0.1), (0.0, 1e30), (1e-5, 1e30), (0.0, 0.0), (0.0, 1e-42)] {
            let norm = layer::<f32>(20).with_eps(eps).unwrap();
            let (x, dy) = (Array2::from_elem((rows, 20), value), drawn::<f32, _>([rows, 20], 2));
            let step = Step::new(&norm, &x, &dy);
            let place = format!("{rows} rows of {value:e}, ε = {eps:e}");
            let bias = norm.bias().unwrap();
            assert!(step.y.outer_iter().all(|y| y.iter().eq(&bias)), "{place}: {:?}", step.y);
            assert!(step.saved.mean().iter().all(|&mean| mean == value), "{place}");
            assert!(step.saved.variance().iter().all(|&variance| variance == 0.0), "{place}");
            assert!(step.dgain.iter().all(|&dgain| dgain == 0.0), "{place}");
            if eps == 0.0 || rows == 1 {
                assert!(step.dx.iter().all(|&dx| dx == 0.0), "{place}: {:?}", step.dx);
            }
        }
    }
}

#[test]
fn nan_stays_in_its_feature() {
    for rows in [3, 64, 200] {
        let norm = layer::<f32>(40);
        let (mut x, dy) = (drawn::<f32, _>([rows, 40], 1), drawn::<f32, _>([rows, 40], 2));
        let want = Step::new(&norm, &x, &dy);
        x[[rows / 2, 3]] = f32::NAN;
        x[[rows - 1, 17]] = f32::INFINITY;
        x[[0, 39]] = f32::NEG_INFINITY;
        let got = Step::new(&norm, &x, &dy);
        for column in 0..40 {
            if [3, 17, 39].contains(&column) {
                assert!(got.y.column(column).iter().chain(got.dx.column(column)).all(|y| y.is_nan()), "{column}");
                assert!(got.dgain[column].is_nan() && got.saved.variance()[column].is_nan(), "{column}");
            } else {
                assert_eq!(got.y.column(column), want.y.column(column));
                assert_eq!(got.dx.column(column), want.dx.column(column));
                assert_eq!(got.dgain[column], want.dgain[column]);
            }
            assert_eq!(got.dbias[column], want.dbias[column]);
        }
    }
}

#[test]
fn the_trailing_axes_are_the_features() {
    let x = drawn::<f32, _>([30, 12], 1);
    let cube = x.clone().into_shape_with_order((5, 6, 3, 4)).unwrap();
    let (flat_norm, norm) = (BatchNorm::<f32>::new(12), BatchNorm::<f32>::new([3, 4]));
    let (want, want_saved) = flat_norm.forward(&x).unwrap();
    let (y, saved) = norm.forward(&cube).unwrap();
    assert_eq!(saved.mean().shape(), [3, 4]);
    assert!(saved.mean().iter().eq(want_saved.mean().iter()));
    assert!(y.iter().eq(&want));
    // [batch, channels, height, width], channel by channel.
    let images = Array3::from_shape_fn((4, 3, 25), |(n, c, i)| x[[(n * 25 + i) % 30, c]]);
    let norm = BatchNorm::<f32>::new(3);
    let channels_last = images.view().permuted_axes([0, 2, 1]);
    let want = norm.forward(&channels_last.as_standard_layout()).unwrap().0;
    assert_eq!(norm.forward(&channels_last).unwrap().0, want);
}

#[test]
fn running_statistics_are_what_the_equation_says() {
    let norm = BatchNorm::<f64>::new(2).with_unbiased_variance();
    let mut running = norm.running();
    assert_eq!(
        (running.mean(), running.variance()),
        (array![0.0, 0.0].into_dyn().view(), array![1.0, 1.0].into_dyn().view())
    );
    let (_, saved) = norm.forward(&array![[1.0, 2.0], [3.0, 10.0]]).unwrap();
    assert_eq!(saved.variance(), array![2.0, 32.0].into_dyn());
    running.update(&saved, 0.0).unwrap();
    assert_eq!(running, norm.running());
    running.update(&saved, 0.25).unwrap();
    assert_eq!(
        (running.mean(), running.variance()),
        (array![0.5, 1.5].into_dyn().view(), array![1.25, 8.75].into_dyn().view())
    );
    running.update(&saved, 1.0).unwrap();
    assert_eq!((running.mean(), running.variance()), (saved.mean(), saved.variance()));

    let (y, saved) = norm.forward(&Array2::zeros((0, 2))).unwrap();
    assert_eq!(y.dim(), (0, 2));
    let before = running.clone();
    running.update(&saved, 0.5).unwrap();
    assert_eq!(running, before);
    let mut grad = norm.zero_grad();
    grad.gain_mut().unwrap().fill(3.0);
    norm.backward(&y, &saved, &y, &mut grad).unwrap();
    assert_eq!(grad.gain().unwrap(), array![3.0, 3.0].into_dyn());
}

fn inference_is_right<T: Huge>() {
    for (rows, features) in [(1, 1), (3, 17), (70, 400), (2000, 33), (3, 40_000)] {
        let norm = layer::<T>(features);
        let mut running = norm.running();
        running.mean_mut().assign(&drawn(features, 5));
        running.variance_mut().assign(&drawn::<T, _>([1, features], 6).remove_axis(Axis(0)).mapv(|v| v * v));
        let x = drawn::<T, _>([rows, features], 1);
        let y = norm.infer(&x, &running).unwrap();
        let eps: f64 = norm.eps().into();
        for ((i, j), &got) in y.indexed_iter() {
            let (mean, variance): (f64, f64) = (running.mean()[j].into(), running.variance()[j].into());
            let (gain, bias): (f64, f64) = (norm.gain().unwrap()[j].into(), norm.bias().unwrap()[j].into());
            let product = (x[[i, j]].into() - mean) / (variance + eps).sqrt() * gain;
            // x − mean, r, r·gain and their product round; then y; and the f64 of this line.
            let bound = T::epsilon().into() / 2.0 * (4.0 * product.abs() + (product + bias).abs())
                + 4.0 * f64::EPSILON * (product.abs() + bias.abs());
            let error = (got.into() - (product + bias)).abs();
            assert!(error <= bound, "y[{i}, {j}] of {rows}×{features}: got {got:e}, want {:e}", product + bias);
        }
        let want = bits(&y);
        for set in instruction_sets().into_iter().filter(|set| *set != "fallback" || rows * features < 10_000) {
            let norm = norm.clone().with_instruction_set(set).unwrap();
            assert!(bits(&norm.infer(&x, &running).unwrap()) == want, "{rows}×{features} on {set}");
        }
        let mut inplace = x.clone();
        norm.infer_inplace(&mut inplace, &running).unwrap();
        assert!(bits(&inplace) == want, "{rows}×{features} in place");
        for layout in 0..3 {
            let mut x = placed(&x, layout);
            let mut y = placed(&x, (layout + 1) % 3);
            norm.infer_into(&x, &running, &mut y).unwrap();
            assert!(bits(&y) == want, "{rows}×{features} in layout {layout}");
            norm.infer_inplace(&mut x, &running).unwrap();
            assert!(bits(&x) == want, "{rows}×{features} in place in layout {layout}");
        }
        for row in 0..rows.min(5) {
            let alone = norm.infer(&x.slice(s![row..row + 1, ..]), &running).unwrap();
            assert!(bits(&alone) == want[row * features..][..features], "{rows}×{features}, row {row} alone");
        }
    }
}

#[test]
fn f32_inference_is_right() {
    inference_is_right::<f32>();
}

#[test]
fn f64_inference_is_right() {
    inference_is_right::<f64>();
}

#[test]
fn a_layer_without_gain_or_bias_is_one_of_ones_and_zeros() {
    let (x, dy) = (drawn::<f32, _>([70, 20], 1), drawn::<f32, _>([70, 20], 2));
    let (plain, bare) = (BatchNorm::<f32>::new(20), BatchNorm::<f32>::new(20).without_gain().without_bias());
    let want = Step::new(&plain, &x, &dy);
    let (y, saved) = bare.forward(&x).unwrap();
    let mut grad = bare.zero_grad();
    assert!(grad.gain().is_none() && grad.bias().is_none());
    assert_eq!(bare.backward(&x, &saved, &dy, &mut grad).unwrap(), want.dx);
    assert_eq!(y, want.y);
}

#[test]
fn gradients_are_added() {
    for rows in [5, 200] {
        let norm = layer::<f64>(20);
        let (x, dy) = (drawn::<f64, _>([rows, 20], 1), drawn::<f64, _>([rows, 20], 2));
        let (_, saved) = norm.forward(&x).unwrap();
        let mut grad = norm.zero_grad();
        norm.backward(&x, &saved, &dy, &mut grad).unwrap();
        let once = grad.clone();
        norm.backward(&x, &saved, &dy, &mut grad).unwrap();
        assert_eq!(grad.gain().unwrap(), once.gain().unwrap().mapv(|dgain| 2.0 * dgain));
        assert_eq!(grad.bias().unwrap(), once.bias().unwrap().mapv(|dbias| 2.0 * dbias));
    }
}

#[test]
fn mistakes_are_named_and_nothing_is_written() {
    let norm = BatchNorm::<f32>::new(4);
    let (x, mut y) = (Array2::ones((2, 4)), Array2::from_elem((2, 4), 7.0));
    let (_, saved) = norm.forward(&x).unwrap();
    let (mut grad, mut kept) = (norm.zero_grad(), saved.clone());
    let text = |result: layernorm::Result<()>| result.unwrap_err().to_string();

    let wide = Array2::ones((2, 3));
    let trailing = "`x` must have shape [_, 4], but has [2, 3]";
    assert_eq!(text(norm.forward(&wide).map(drop)), trailing);
    assert_eq!(text(norm.infer(&wide, &norm.running()).map(drop)), trailing);
    assert_eq!(text(norm.backward(&wide, &saved, &wide, &mut grad).map(drop)), trailing);

    let long = Array2::ones((3, 4));
    assert_eq!(text(norm.forward_into(&long, &mut y, &mut kept)), "`y` must have shape [3, 4], but has [2, 4]");
    assert_eq!(
        text(norm.backward_into(&x, &saved, &long, &mut y, &mut grad)),
        "`dy` must have shape [2, 4], but has [3, 4]"
    );
    assert_eq!(
        text(norm.backward(&long, &saved, &long, &mut grad).map(drop)),
        "`saved` must come from a forward call on an `x` of shape [3, 4], but comes from one on [2, 4]"
    );
    assert_eq!(
        text(norm.backward(&x, &BatchSaved::default(), &x, &mut grad).map(drop)),
        "`saved` must come from a forward call on an `x` of shape [2, 4], but no call has filled it"
    );
    let (_, other) = BatchNorm::new([2, 4]).forward(&x).unwrap();
    let text_of_other = "`saved` must have shape [4], but has [2, 4]";
    assert_eq!(text(norm.backward(&x, &other, &x, &mut grad).map(drop)), text_of_other);
    assert_eq!(text(norm.running().update(&other, 0.5)), text_of_other);

    let unbiased = norm.clone().with_unbiased_variance();
    let one = Array2::ones((1, 4));
    let (_, saved_of_one) = norm.forward(&one).unwrap();
    let why = "`x` must have at least 2 rows, because the unbiased variance divides by rows − 1, but has 1";
    let mut y_of_one = Array2::from_elem((1, 4), 7.0);
    assert_eq!(text(unbiased.forward_into(&one, &mut y_of_one, &mut kept)), why);
    assert_eq!(text(unbiased.backward_into(&one, &saved_of_one, &one, &mut y_of_one, &mut grad)), why);
    assert_eq!(y_of_one, Array2::from_elem((1, 4), 7.0));

    let mut running = norm.running();
    for momentum in [-0.1, 1.5, f32::NAN] {
        assert_eq!(
            text(running.update(&saved, momentum)),
            format!("`momentum` must be between 0 and 1, but is {}", f64::from(momentum))
        );
    }
    assert_eq!(running, norm.running());
    let of_others = BatchNorm::<f32>::new(3).running();
    let shape = "`running` must have shape [4], but has [3]";
    assert_eq!(text(norm.infer_into(&x, &of_others, &mut y)), shape);
    assert_eq!(text(norm.infer_inplace(&mut y, &of_others)), shape);

    let mut bare = norm.clone().without_bias().zero_grad();
    assert_eq!(
        text(norm.backward_into(&x, &saved, &x, &mut y, &mut bare)),
        "`grad` must have a bias, as the layer has, but has none"
    );
    assert_eq!(y, Array2::from_elem((2, 4), 7.0));
    assert_eq!(grad, norm.zero_grad());
    assert_eq!(format!("{kept:?}"), format!("{saved:?}"));
    assert!(matches!(BatchNorm::<f64>::new(3).with_eps(-1.0), Err(Error::Eps { .. })));
    assert!(matches!(BatchNorm::<f64>::new(3).with_gain(Array1::ones(2)), Err(Error::Shape { .. })));
    assert!(matches!(BatchNorm::<f64>::new(0).forward(&Array2::ones((2, 0))), Err(Error::Empty { .. })));
}

#[test]
fn gain_and_bias_are_its_parameters() {
    let mut names = Vec::new();
    BatchNorm::<f32>::new([2, 3]).visit(|name, value| names.push((name.to_owned(), value.shape().to_vec())));
    assert_eq!(names, [("gain".to_owned(), vec![2, 3]), ("bias".to_owned(), vec![2, 3])]);
}

#[test]
fn calls_into_memory_of_the_caller_allocate_nothing_once_warm() {
    for (rows, features) in [(1, 5), (32, 768), (64, 100), (65, 100), (300, 33), (3, 9000)] {
        let norm = BatchNorm::<f32>::new(features);
        let (mut running, mut saved, mut grad) = (norm.running(), BatchSaved::default(), norm.zero_grad());
        for layouts in [[false, false], [true, false], [false, true], [true, true]] {
            let [mut x, mut y] = layouts.map(|strided| {
                let values = drawn::<f32, _>([rows, features], 1);
                if strided { placed(&values, 0) } else { values }
            });
            let (dy, mut dx) = (x.clone(), y.clone());
            let mut step = || {
                norm.forward_into(&x, &mut y, &mut saved)?;
                norm.backward_into(&x, &saved, &dy, &mut dx, &mut grad)?;
                running.update(&saved, 0.1)?;
                norm.infer_into(&x, &running, &mut y)?;
                norm.infer_inplace(&mut x, &running)
            };
            step().unwrap();
            let warm = allocation_counter::measure(|| step().unwrap());
            assert_eq!(warm.count_total, 0, "{rows}×{features}, strided {layouts:?}: {} bytes", warm.bytes_total);
        }
    }
}
