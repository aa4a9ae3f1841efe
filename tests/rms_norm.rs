//! Root mean square normalization keeps what layer normalization promises: right beside the double-double oracle, slopes,
//! the same bits everywhere, any scale, and errors before anything is written.
//!
//! Its kernels are those of layer normalization about 0, so layouts, threads and long rows are sampled here, and tried one by
//! one in the tests of that.

#[path = "common/number.rs"]
mod number;

use layernorm::ndarray::{Array1, Array2, s};
use layernorm::{Error, LayerNorm, Parameters, RmsNorm, RmsSaved, grad_check, instruction_sets};
use number::{Number, bits, drawn};
use textbook::{rms_backward, rms_forward};

/// How near a result must be.
trait Bounds: Number {
    /// y, dx and dgain, of the largest in the row (dgain: of all).
    const BOUNDS: [f64; 3];
    /// y, dx and dgain whatever the numbers (`accuracy.rs`).
    const ANY: [f64; 3];
    /// Rows times 2^-LAST to 2^LAST give the same bits.
    const LAST: i32;
}

impl Bounds for f32 {
    const BOUNDS: [f64; 3] = [2.5e-7, 5e-7, 5e-7];
    const ANY: [f64; 3] = [4e-7, 5e-6, 2.5e-6];
    const LAST: i32 = 100;
}

impl Bounds for f64 {
    const BOUNDS: [f64; 3] = [6e-16, 1e-15, 1e-15];
    const ANY: [f64; 3] = [1e-15, 1e-14, 5e-15];
    const LAST: i32 = 900;
}

fn layer<T: Number>(features: usize) -> RmsNorm<T> {
    RmsNorm::new(features).with_gain(drawn(features, 101)).unwrap()
}

fn wide<'a, T: Number>(values: impl IntoIterator<Item = &'a T>) -> Vec<f64> {
    values.into_iter().map(|&value| value.into()).collect()
}

/// y, dx and dgain.
fn all<T: Number>(norm: &RmsNorm<T>, x: &Array2<T>, dy: &Array2<T>) -> (Array2<T>, Array2<T>, Array1<T>) {
    let (y, saved) = norm.forward(x).unwrap();
    let mut grad = norm.zero_grad();
    let dx = norm.backward(x, &saved, dy, &mut grad).unwrap();
    let dgain = Array1::from_iter(grad.gain().unwrap().iter().copied());
    assert!(grad.bias().is_none());
    (y, dx, dgain)
}

fn is_right<T: Bounds>() {
    for features in [1, 2, 15, 16, 17, 64, 65, 130, 768, 2048, 2049, 5000, 50_000] {
        let rows = if features > 1000 { 3 } else { 70 };
        let norm = layer::<T>(features);
        let gain = wide(norm.gain().unwrap());
        let dy = drawn::<T, _>([rows, features], 2);
        for mean in [0.0, 1.0, 1e3, 1e6] {
            let x = drawn::<T, _>([rows, features], 1).mapv(|x| x + T::of(mean));
            let (y, dx, dgain) = all(&norm, &x, &dy);
            let eps = norm.eps().into();
            let (want_dx, want_dgain) = rms_backward(&wide(&x), features, Some(&gain), eps, &wide(&dy));
            let check = |what: &str, got: &[f64], want: &[f64], scale: f64, bound: f64| {
                for (i, (got, want)) in got.iter().zip(want).enumerate() {
                    let error = (got - want).abs() / scale;
                    let place = format!("{what}, {rows}×{features}, mean {mean}, index {i}");
                    assert!(error <= bound, "{place}: got {got:e}, want {want:e}, error {error:.2e}");
                }
            };
            let largest = |values: &[f64]| values.iter().fold(0.0, |largest: f64, value| largest.max(value.abs()));
            for row in 0..rows {
                let want = rms_forward(&wide(x.row(row)), Some(&gain), eps);
                check("y", &wide(y.row(row)), &want.y, largest(&want.y), T::BOUNDS[0]);
                let q: Vec<_> = wide(dy.row(row)).iter().zip(&gain).map(|(dy, gain)| dy * gain).collect();
                let want_dx = &want_dx[row * features..][..features];
                check("dx", &wide(dx.row(row)), want_dx, want.rstd.to_f64() * largest(&q), T::BOUNDS[1]);
            }
            check("dgain", &wide(&dgain), &want_dgain, largest(&want_dgain), T::BOUNDS[2]);
        }
    }
}

/// x̂ is 1 nearly, dx 0, and sums round the same way at every addition.
fn is_right_of_equal_numbers<T: Bounds>() {
    for (rows, features) in [(64, 20), (1000, 3), (3, 768), (3, 1024), (3, 2048), (3, 5000)] {
        for (x, dy) in [(1.0, 0.9), (0.7, 0.52666664), (-1.3, 0.001)] {
            let norm = RmsNorm::<T>::new(features);
            let [x, dy] = [x, dy].map(|value| Array2::from_elem((rows, features), T::of(value)));
            let (y, dx, dgain) = all(&norm, &x, &dy);
            let want = rms_forward(&wide(x.row(0)), None, norm.eps().into());
            let (want_dx, want_dgain) = rms_backward(&wide(&x), features, None, norm.eps().into(), &wide(&dy));
            let near = |what: &str, got: f64, want: f64, bound: f64| {
                assert!((got - want).abs() <= bound, "{what}, {rows}×{features}: got {got:e}, want {want:e}");
            };
            let dy: f64 = dy[[0, 0]].into();
            near("y", y[[0, 0]].into(), want.y[0], T::ANY[0]);
            near("dx", dx[[0, 0]].into(), want_dx[0], T::ANY[1] * want.rstd.to_f64() * dy);
            near("dgain", dgain[0].into(), want_dgain[0], T::ANY[2] * rows as f64 * dy);
        }
    }
}

#[test]
fn equal_numbers_are_right() {
    is_right_of_equal_numbers::<f32>();
    is_right_of_equal_numbers::<f64>();
}

#[test]
fn f32_is_right() {
    is_right::<f32>();
}

#[test]
fn f64_is_right() {
    is_right::<f64>();
}

/// dgain of many rows, whose sums are those of many chains.
fn columns_are_right<T: Bounds>(rows: usize, features: usize, mean: f64) {
    let x = drawn::<T, _>([rows, features], 1).mapv(|x| x + T::of(mean));
    let dy = drawn::<T, _>([rows, features], 2);
    let norm = layer::<T>(features);
    let (.., dgain) = all(&norm, &x, &dy);
    let (_, want) = rms_backward(&wide(&x), features, None, norm.eps().into(), &wide(&dy));
    let largest = want.iter().fold(0.0, |largest: f64, want| largest.max(want.abs()));
    for (i, (got, want)) in wide(&dgain).into_iter().zip(want).enumerate() {
        let error = (got - want).abs() / largest;
        let place = format!("dgain, {rows}×{features}, mean {mean}, index {i}");
        assert!(error <= T::BOUNDS[2], "{place}: got {got:e}, want {want:e}, error {error:.2e}");
    }
}

#[test]
fn columns_of_8192_rows_are_right() {
    for mean in [0.0, 1e6] {
        columns_are_right::<f32>(8192, 768, mean);
        columns_are_right::<f64>(8192, 768, mean);
    }
}

#[test]
fn columns_of_a_million_rows_are_right() {
    columns_are_right::<f32>(1_000_000, 5, 1e3);
    columns_are_right::<f64>(1_000_000, 5, 1e3);
}

/// Σ gain·dy/r overflows here; Σ gain·dy·x/r, which is all that dx needs, does not.
#[test]
fn a_sum_that_dx_does_not_need_may_overflow() {
    for features in [64, 640, 5120] {
        let norm = RmsNorm::<f32>::new(features);
        let x = Array2::from_shape_fn((3, features), |(_, j)| if j / 32 % 2 == 0 { 1.0 } else { -1.0 });
        let dy = Array2::from_elem((3, features), 1e38);
        let (want, _) = rms_backward(&wide(&x), features, None, norm.eps().into(), &wide(&dy));
        for set in instruction_sets() {
            let norm = norm.clone().with_instruction_set(set).expect("it is there");
            let (_, dx, _) = all(&norm, &x, &dy);
            for (i, (&got, want)) in dx.iter().zip(&want).enumerate() {
                let error = (f64::from(got) - want).abs() / 1e38;
                assert!(error <= f32::BOUNDS[1], "{set}, {features} features, index {i}: got {got:e}, want {want:e}");
            }
        }
    }
}

#[test]
fn gradients_are_slopes() {
    for (features, eps) in [(1, 0.1), (3, 0.0), (20, 1e-5), (100, 0.5)] {
        let norm = layer::<f64>(features).with_eps(eps).unwrap();
        let (x, dy) = (drawn::<f64, _>([4, features], 1).mapv(|x| x + 2.0), drawn::<f64, _>([4, features], 2));
        let loss = |norm: &RmsNorm<f64>, x: &Array2<f64>| (norm.infer(x).unwrap() * &dy).sum();
        let (_, dx, dgain) = all(&norm, &x, &dy);
        let worst = grad_check::compare(&x, &dx, |x| loss(&norm, x));
        assert!(worst.error < 1e-8, "dx, {features} features: {worst:?}");
        let gain = Array1::from_iter(norm.gain().unwrap().iter().copied());
        let worst = grad_check::compare(&gain, &dgain, |gain| loss(&norm.clone().with_gain(gain.clone()).unwrap(), &x));
        assert!(worst.error < 1e-8, "dgain, {features} features: {worst:?}");
    }
}

/// Alone, in a batch, strided, in place, on each instruction set, on threads.
fn same_bits<T: Number>() {
    for (rows, features) in [(9, 3), (33, 64), (70, 100), (9, 2049), (3, 50_000), (2000, 130)] {
        let norm = layer::<T>(features).with_eps(T::of(0.0)).unwrap();
        let mut x = drawn::<T, _>([rows, features], 1);
        // Squares that overflow, that underflow, and none.
        x.row_mut(1).mapv_inplace(|x| x * T::of(T::HUGE));
        x.row_mut(2).mapv_inplace(|x| x / T::of(T::HUGE));
        x.row_mut(0).fill(T::of(0.0));
        let dy = drawn::<T, _>([rows, features], 2);
        let (y, dx, dgain) = all(&norm, &x, &dy);
        let want = (bits(&y), bits(&dx), bits(&dgain));
        assert!(y.iter().all(|y| y.is_finite()), "{rows}×{features}");

        for set in instruction_sets().into_iter().filter(|set| *set != "fallback" || rows * features < 10_000) {
            let norm = norm.clone().with_instruction_set(set).unwrap();
            let (y, dx, dgain) = all(&norm, &x, &dy);
            assert!((bits(&y), bits(&dx), bits(&dgain)) == want, "{rows}×{features} on {set}");
        }
        #[cfg(feature = "rayon")]
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (y, dx, dgain) = pool.install(|| all(&norm, &x, &dy));
            assert!((bits(&y), bits(&dx), bits(&dgain)) == want, "{rows}×{features} on {threads} threads");
        }
        for row in 0..rows.min(10) {
            let alone = norm.infer(&x.slice(s![row..row + 1, ..])).unwrap();
            assert!(bits(&alone) == want.0[row * features..][..features], "{rows}×{features}, row {row} alone");
        }
        let turned = x.t().as_standard_layout().into_owned();
        assert!(bits(&norm.infer(&turned.t()).unwrap()) == want.0, "{rows}×{features} turned");
        let mut inplace = x.clone();
        norm.infer_inplace(&mut inplace).unwrap();
        assert!(bits(&inplace) == want.0, "{rows}×{features} in place");
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

fn powers_of_two_change_no_bit<T: Bounds>() {
    for features in [5, 64, 3000, 45_000] {
        let norm = layer::<T>(features).with_eps(T::of(0.0)).unwrap();
        let (x, dy) = (drawn::<T, _>([3, features], 1), drawn::<T, _>([3, features], 2));
        let (y, dx, dgain) = all(&norm, &x, &dy);
        for exponent in (-T::LAST..=T::LAST).step_by(if features < 45_000 { 10 } else { 50 }) {
            let scale = T::of(2f64.powi(exponent));
            let far_x = x.mapv(|x| x * scale);
            let (far_y, far_dx, far_dgain) = all(&norm, &far_x, &dy);
            let place = format!("{features} features, 2^{exponent}");
            assert!(bits(&far_y) == bits(&y), "y, {place}");
            assert!(bits(&norm.infer(&far_x).unwrap()) == bits(&y), "infer, {place}");
            assert!(bits(&far_dx) == bits(&dx.mapv(|dx| dx / scale)), "dx, {place}");
            assert!(bits(&far_dgain) == bits(&dgain), "dgain, {place}");
        }
    }
}

#[test]
fn powers_of_two_change_no_bit_of_f32() {
    powers_of_two_change_no_bit::<f32>();
}

#[test]
fn powers_of_two_change_no_bit_of_f64() {
    powers_of_two_change_no_bit::<f64>();
}

#[test]
fn zeros_give_zeros_and_constant_rows_ones() {
    for eps in [0.0, 1e-5] {
        let norm = RmsNorm::<f32>::new(5).with_eps(eps).unwrap();
        let (zeros, dy) = (Array2::zeros((3, 5)), Array2::ones((3, 5)));
        let (y, saved) = norm.forward(&zeros).unwrap();
        assert_eq!(y, zeros);
        let dx = norm.backward(&zeros, &saved, &dy, &mut norm.zero_grad()).unwrap();
        assert_eq!(dx, dy.mapv(|dy| dy * saved.rstd()[0]), "eps {eps}");
    }
    let norm = RmsNorm::<f64>::new(5).with_eps(0.0).unwrap();
    assert_eq!(norm.infer(&Array2::from_elem((2, 5), -3.0)).unwrap(), Array2::from_elem((2, 5), -1.0));
}

#[test]
fn nan_stays_in_its_row() {
    let norm = RmsNorm::<f32>::new(40);
    let mut x = drawn::<f32, _>([20, 40], 1);
    let want = norm.infer(&x).unwrap();
    x[[7, 3]] = f32::NAN;
    x[[11, 39]] = f32::INFINITY;
    for (row, (got, want)) in norm.infer(&x).unwrap().outer_iter().zip(want.outer_iter()).enumerate() {
        if row == 7 || row == 11 {
            assert!(got.iter().all(|y| y.is_nan()), "row {row}");
        } else {
            assert_eq!(got, want, "row {row}");
        }
    }
}

#[test]
fn rows_of_mean_0_are_those_of_layer_norm() {
    let x = Array2::from_shape_fn((3, 64), |(row, i)| if i % 2 == 0 { 1.0 + row as f32 } else { -1.0 - row as f32 });
    let (rms, layer) = (RmsNorm::new(64), LayerNorm::new(64));
    assert_eq!(rms.infer(&x).unwrap(), layer.infer(&x).unwrap());
}

#[test]
fn mistakes_are_named_and_nothing_is_written() {
    let norm = RmsNorm::<f32>::new(4);
    let (x, mut y) = (Array2::ones((2, 4)), Array2::from_elem((2, 4), 7.0));
    let text = |result: layernorm::Result<()>| result.unwrap_err().to_string();
    assert_eq!(
        norm.infer(&Array2::ones((2, 3))).unwrap_err().to_string(),
        "`x` must have shape [_, 4], but has [2, 3]"
    );
    let saved = RmsSaved::default();
    let mut grad = norm.zero_grad();
    let result = norm.backward_into(&x, &saved, &x, &mut y, &mut grad);
    assert!(matches!(result, Err(Error::Saved { .. })), "{}", text(result));
    let (_, saved) = norm.forward(&x).unwrap();
    let mut other = LayerNorm::<f32>::new(4).zero_grad();
    let message = text(norm.backward_into(&x, &saved, &x, &mut y, &mut other));
    assert_eq!(message, "`grad` must have no bias, as the layer has none, but has one");
    assert_eq!(y, Array2::from_elem((2, 4), 7.0));
    assert_eq!(grad, norm.zero_grad());
    assert!(matches!(RmsNorm::<f64>::new(3).with_eps(-1.0), Err(Error::Eps { .. })));
    assert!(matches!(RmsNorm::<f64>::new(3).with_gain(Array1::ones(2)), Err(Error::Shape { .. })));
    assert!(matches!(RmsNorm::<f64>::new(0).infer(&Array2::ones((2, 0))), Err(Error::Empty { .. })));
}

/// A row whose columns two threads share out.
#[test]
fn nan_in_a_long_row_is_no_panic() {
    let norm = RmsNorm::<f32>::new(1 << 19);
    let mut x = Array2::from_elem((1, 1 << 19), 1.5);
    x[[0, 70_000]] = f32::NAN;
    let (y, saved) = norm.forward(&x).unwrap();
    assert!(y.iter().all(|y| y.is_nan()));
    let dx = norm.backward(&x, &saved, &x, &mut norm.zero_grad()).unwrap();
    assert!(dx.iter().all(|dx| dx.is_nan()));
}

#[test]
fn the_gain_is_its_only_parameter() {
    let mut names = Vec::new();
    RmsNorm::<f32>::new([2, 3]).visit(|name, value| names.push((name.to_owned(), value.shape().to_vec())));
    assert_eq!(names, [("gain".to_owned(), vec![2, 3])]);
}
