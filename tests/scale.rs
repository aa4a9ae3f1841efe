//! Every finite row is right whatever its scale, and a row that is not finite spoils no other.
//!
//! * With eps = 0 a row times 2^k gives the same bits of y, dgain and dbias, and dx times 2^-k; alone and between rows
//!   of other scales.
//! * The largest numbers, and tiny ones beside any eps, give the y and dx of the oracle.
//! * A constant row gives exactly the bias; with eps = 0 also dx = 0.
//! * NaN or infinity makes y and dx of its row NaN; in dy, dgain and dbias of its column what it is. Subnormal elements give a
//!   finite y.
//!
//! The kernels rescale rows whose variance leaves 2^±60 (f32) or 2^±450 (f64): that is where bits would change first.

use std::fmt::Display;

use layernorm::ndarray::{Array1, Array2, ArrayRef, Axis, Dimension, concatenate, s};
use layernorm::{Affine, Element, LayerNorm};
use textbook::{backward_row, forward, pattern};

trait Number: Element {
    /// The last power of two; that of σ beyond which the kernels rescale a row; and that beyond which they must.
    const EXPONENTS: (i32, i32, i32);
    /// Those of `accuracy.rs`: y from 15 features on, y below, dx.
    const BOUNDS: (f64, f64, f64);
    const LEAST_NORMAL: Self;

    fn of(value: f64) -> Self;
    fn bits(self) -> u64;
    fn of_bits(bits: u64) -> Self;

    /// Rounded once, where the result is subnormal.
    fn times_power_of_two(self, exponent: i32) -> Self {
        self * Self::of(2f64.powi(exponent))
    }
}

impl Number for f32 {
    const EXPONENTS: (i32, i32, i32) = (100, 30, 61);
    const BOUNDS: (f64, f64, f64) = (2.5e-7, 4e-7, 5e-7);
    const LEAST_NORMAL: Self = Self::MIN_POSITIVE;

    fn of(value: f64) -> Self {
        value as Self
    }

    fn bits(self) -> u64 {
        self.to_bits().into()
    }

    fn of_bits(bits: u64) -> Self {
        Self::from_bits(bits as u32)
    }
}

impl Number for f64 {
    const EXPONENTS: (i32, i32, i32) = (900, 225, 508);
    const BOUNDS: (f64, f64, f64) = (6e-16, 1e-15, 1e-15);
    const LEAST_NORMAL: Self = Self::MIN_POSITIVE;

    fn of(value: f64) -> Self {
        value
    }

    fn bits(self) -> u64 {
        self.to_bits()
    }

    fn of_bits(bits: u64) -> Self {
        Self::from_bits(bits)
    }
}

/// More features than a core's cache holds: `src/long.rs` takes such rows in tiles.
const LONG: usize = 45_000;

/// Every 10th exponent, and all within 5 of where rescaling begins and where squares would change bits. Fewer for long
/// rows.
fn exponents<T: Number>(features: usize) -> Vec<i32> {
    let (last, safe, unsafe_from) = T::EXPONENTS;
    let near = |center: i32| center - 5..=center + 5;
    let mut exponents: Vec<i32> = (-last..=last).step_by(10).collect();
    exponents.extend([-unsafe_from, -safe, safe, unsafe_from].into_iter().flat_map(near));
    exponents.retain(|exponent| features < LONG || exponent % 50 == 0);
    exponents
}

/// One call of everything.
struct Pass<T> {
    y: Array2<T>,
    mean: Array1<T>,
    rstd: Array1<T>,
    dx: Array2<T>,
    grad: Affine<T>,
}

fn pass<T: Number>(norm: &LayerNorm<T>, x: &Array2<T>, dy: &Array2<T>) -> Pass<T> {
    let (y, saved) = norm.forward(x).unwrap();
    let mut grad = norm.zero_grad();
    let dx = norm.backward(x, &saved, dy, &mut grad).unwrap();
    Pass { y, mean: saved.mean().to_owned(), rstd: saved.rstd().to_owned(), dx, grad }
}

#[track_caller]
fn assert_bits<T: Number, D: Dimension>(got: &ArrayRef<T, D>, want: &ArrayRef<T, D>, what: impl Display) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.bits() == want.bits(), "{what}: element {index} is {got:e}, not {want:e}");
    }
}

#[track_caller]
fn assert_gradients<T: Number>(got: &Affine<T>, want: &Affine<T>, what: impl Display) {
    assert_bits(&got.gain().unwrap(), &want.gain().unwrap(), format!("dgain, {what}"));
    assert_bits(&got.bias().unwrap(), &want.bias().unwrap(), format!("dbias, {what}"));
}

/// `got` must be `near` times 2^exponent, up to one subnormal step where that is no normal number.
#[track_caller]
fn assert_scaled<T: Number, D: Dimension>(
    got: &ArrayRef<T, D>,
    near: &ArrayRef<T, D>,
    exponent: i32,
    what: impl Display,
) {
    for (index, (&got, &near)) in got.iter().zip(near).enumerate() {
        let want = near.times_power_of_two(exponent);
        let is_normal = want.abs() >= T::LEAST_NORMAL;
        let right = if is_normal { got.bits() == want.bits() } else { (got - want).abs() <= T::of_bits(1) };
        assert!(right, "{what} times 2^{exponent}: element {index} is {got:e}, not {want:e}");
    }
}

fn drawn<T: Number>(rows: usize, features: usize, seed: u64) -> Array2<T> {
    let values = pattern(rows * features, seed).into_iter().map(T::of).collect();
    Array2::from_shape_vec((rows, features), values).unwrap()
}

/// Rows about 0, 3, -30 and 1000 in turns.
fn rows_about_some_means<T: Number>(rows: usize, features: usize, seed: u64) -> Array2<T> {
    let mut x = drawn(rows, features, seed);
    for (row, mut x) in x.rows_mut().into_iter().enumerate() {
        let mean = T::of([0.0, 3.0, -30.0, 1000.0][row % 4]);
        x.mapv_inplace(|x| x + mean);
    }
    x
}

fn layer<T: Number>(features: usize, eps: f64) -> LayerNorm<T> {
    let parameter = |seed| drawn(1, features, seed).remove_axis(Axis(0));
    let norm = LayerNorm::new(features).with_eps(T::of(eps)).unwrap();
    norm.with_gain(parameter(101)).unwrap().with_bias(parameter(102)).unwrap()
}

fn powers_of_two_change_no_bit<T: Number>() {
    for features in [5, 64, 768, 5000, LONG] {
        let norm = layer(features, 0.0);
        let (x, dy) = (rows_about_some_means::<T>(11, features, 1), drawn(11, features, 2));
        let near = pass(&norm, &x, &dy);
        for exponent in exponents::<T>(features) {
            let far_x = x.mapv(|x| x.times_power_of_two(exponent));
            assert_bits(&far_x.mapv(|x| x.times_power_of_two(-exponent)), &x, "x must be scaled exactly");
            let far = pass(&norm, &far_x, &dy);
            let what = format!("{features} features, x times 2^{exponent}");
            assert_bits(&far.y, &near.y, format!("y, {what}"));
            assert_bits(&norm.infer(&far_x).unwrap(), &near.y, format!("infer, {what}"));
            assert_scaled(&far.mean, &near.mean, exponent, format!("mean, {what}"));
            assert_scaled(&far.rstd, &near.rstd, -exponent, format!("rstd, {what}"));
            assert_scaled(&far.dx, &near.dx, -exponent, format!("dx, {what}"));
            assert_gradients(&far.grad, &near.grad, what);
        }
    }
}

fn rows_of_all_scales_share_a_batch<T: Number>() {
    for features in [5, 64, 768, 5000, LONG] {
        let norm = layer(features, 0.0);
        let exponents = exponents::<T>(features);
        // Up through the scales and down at once. More than 64 rows: a chain of the column sums ends between them.
        let rows = 2 * exponents.len();
        let exponent =
            |row: usize| exponents[if row.is_multiple_of(2) { row / 2 } else { exponents.len() - 1 - row / 2 }];
        let (near_x, dy) = (rows_about_some_means::<T>(rows, features, 3), drawn(rows, features, 4));
        let mut x = near_x.clone();
        for (row, mut x) in x.rows_mut().into_iter().enumerate() {
            x.mapv_inplace(|x| x.times_power_of_two(exponent(row)));
        }
        let together = pass(&norm, &x, &dy);
        for row in 0..rows {
            let only = row..row + 1;
            let alone = pass(&norm, &x.slice(s![only.clone(), ..]).to_owned(), &dy.slice(s![only, ..]).to_owned());
            let what = format!("{features} features, row {row} of scale 2^{}", exponent(row));
            assert_bits(&together.y.row(row), &alone.y.row(0), format!("y, {what}"));
            assert_bits(&together.dx.row(row), &alone.dx.row(0), format!("dx, {what}"));
            assert_eq!(together.mean[row].bits(), alone.mean[0].bits(), "mean, {what}");
            assert_eq!(together.rstd[row].bits(), alone.rstd[0].bits(), "rstd, {what}");
        }
        assert_gradients(&together.grad, &pass(&norm, &near_x, &dy).grad, format!("{features} features, all scales"));
    }
}

/// y and dx of every row beside the oracle, dx in units of the row's largest |rstd·gain·dy|.
#[track_caller]
fn assert_right<T: Number>(norm: &LayerNorm<T>, x: &Array2<T>, dy: &Array2<T>, what: impl Display) {
    let got = pass(norm, x, dy);
    let (wide_bound, narrow_bound, dx_bound) = T::BOUNDS;
    let wide = |values: &[T]| -> Vec<f64> { values.iter().map(|&value| value.into()).collect() };
    let largest =
        |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |largest: f64, value| largest.max(value.abs()));
    let [gain, bias] = [norm.gain(), norm.bias()].map(|parameter| wide(parameter.unwrap().as_slice().unwrap()));
    let features = x.ncols();
    let y_bound = if features < 15 { narrow_bound } else { wide_bound };
    for row in 0..x.nrows() {
        let (x, dy) = (wide(x.row(row).as_slice().unwrap()), wide(dy.row(row).as_slice().unwrap()));
        let want = forward(&x, Some(&gain), Some(&bias), norm.eps().into());
        let want_dx = backward_row(&x, Some(&gain), norm.eps().into(), &dy);
        let product = largest(&mut want.xhat.iter().zip(&gain).map(|(xhat, gain)| xhat * gain));
        let y_scale = product.max(largest(&mut bias.iter().copied()));
        let dx_scale = want.rstd.to_f64() * largest(&mut dy.iter().zip(&gain).map(|(dy, gain)| dy * gain));
        for (name, got, want, bound) in
            [("y", got.y.row(row), want.y, y_bound * y_scale), ("dx", got.dx.row(row), want_dx, dx_bound * dx_scale)]
        {
            for (i, (&got, want)) in got.iter().zip(want).enumerate() {
                let got = got.into();
                let error = (got - want).abs();
                assert!(
                    got == want || error <= bound,
                    "{what}, {features} features, {name}[{row}, {i}]: got {got:e}, want {want:e}, off by {error:e} > {bound:e}"
                );
            }
        }
    }
}

/// Gain 1 and bias 0, so that y keeps the scale of x̂, and both random.
fn layers<T: Number>(features: usize, eps: f64) -> [LayerNorm<T>; 2] {
    [LayerNorm::new(features).with_eps(T::of(eps)).unwrap(), layer(features, eps)]
}

/// Rows of about a value, whose dy is multiplied by a number that keeps dx a normal number.
fn rows_of_the_largest_numbers_are_right<T: Number>(values_and_dy: &[(f64, f64)]) {
    for features in [2, 3, 5, 63, 64, 65, 768, 4097, 5000, LONG] {
        let rows = if features < LONG { 9 } else { 4 };
        for &(value, dy_scale) in values_and_dy {
            // About 0, close to `value` with one sign, and `value` itself with either sign.
            let noise = drawn::<f64>(rows, features, 5).mapv(|noise| noise / 6.0);
            let x = Array2::from_shape_fn(noise.dim(), |(row, i)| {
                let noise = noise[[row, i]];
                T::of(value * [noise, 1.0 - noise.abs() / 8.0, noise / 8.0 - 0.8, [1.0, -1.0, 1.0][i % 3]][row % 4])
            });
            let dy = drawn::<T>(rows, features, 6).mapv(|dy| dy * T::of(dy_scale));
            for eps in [0.0, 1e-5] {
                for norm in layers(features, eps) {
                    assert_right(&norm, &x, &dy, format!("rows of {value:e}, eps {eps}"));
                }
            }
        }
    }
}

fn tiny_rows_are_right_beside_eps<T: Number>(scales: &[f64], all_eps: &[f64]) {
    for features in [2, 5, 64, 65, 768, 5000] {
        for &scale in scales {
            // The mean is ten times the spread.
            let x = drawn::<f64>(5, features, 7).mapv(|x| T::of((x + 10.0) * scale));
            for &eps in all_eps {
                for norm in layers(features, eps) {
                    assert_right(&norm, &x, &drawn(5, features, 8), format!("rows of {scale:e}, eps {eps:e}"));
                }
            }
        }
    }
}

fn constant_rows_give_the_bias<T: Number>(constants: &[f64]) {
    for features in [1, 2, 3, 63, 64, 65, 768, 4097, 20_000, LONG] {
        let x = Array2::from_shape_fn((constants.len(), features), |(row, _)| T::of(constants[row]));
        let dy = drawn(x.nrows(), features, 9);
        for eps in [0.0, 1e-5] {
            let norm = layer::<T>(features, eps);
            let (y, saved) = norm.forward(&x).unwrap();
            let dx = norm.backward(&x, &saved, &dy, &mut norm.zero_grad()).unwrap();
            let bias = norm.bias().unwrap();
            for (row, constant) in constants.iter().enumerate() {
                let what = format!("{features} features of {constant:e}, eps {eps}");
                assert_bits(&y.row(row).into_dyn(), &bias, format!("y, {what}"));
                if eps == 0.0 || features == 1 {
                    assert!(dx.row(row).iter().all(|&dx| dx == T::zero()), "dx, {what}: {}", dx.row(row));
                }
                let mean: f64 = saved.mean()[row].into();
                assert_eq!(mean, T::of(*constant).into(), "mean, {what}");
            }
        }
    }
}

fn constant_rows_have_the_dx_of_eps<T: Number>(constants: &[f64]) {
    for features in [1, 2, 3, 63, 64, 65, 768, 4097] {
        let x = Array2::from_shape_fn((constants.len(), features), |(row, _)| T::of(constants[row]));
        let dy = drawn(x.nrows(), features, 10);
        for eps in [1e-5, 0.25] {
            assert_right(&layer(features, eps), &x, &dy, format!("constant rows {constants:?}, eps {eps}"));
        }
    }
}

fn a_row_that_is_not_finite_spoils_no_other<T: Number>() {
    let insert = |array: &Array2<T>, new: &Array2<T>, row: usize| {
        let (before, after) = array.view().split_at(Axis(0), row);
        concatenate(Axis(0), &[before, new.view(), after]).unwrap()
    };
    for features in [1, 5, 64, 65, 768, 5000, LONG] {
        let (x, dy) = (rows_about_some_means::<T>(20, features, 11), drawn(20, features, 12));
        let (mut bad_x, bad_dy) = (drawn::<T>(1, features, 13), drawn(1, features, 14));
        for (eps, bad) in [(0.0, f64::NAN), (1e-5, f64::NAN), (1e-5, f64::INFINITY), (0.0, f64::NEG_INFINITY)] {
            let norm = layer(features, eps);
            let clean = pass(&norm, &x, &dy);
            for at in [0, features / 2, features - 1] {
                let good = std::mem::replace(&mut bad_x[[0, at]], T::of(bad));
                for row in [0, 3, 8, 17, 20] {
                    let mut got = pass(&norm, &insert(&x, &bad_x, row), &insert(&dy, &bad_dy, row));
                    let what = format!("{bad} at [{row}, {at}], {features} features, eps {eps}");
                    for (name, got, clean) in [("y", &mut got.y, &clean.y), ("dx", &mut got.dx, &clean.dx)] {
                        let bad_row = got.row(row);
                        assert!(bad_row.iter().all(|value| value.is_nan()), "{name}, {what}: {bad_row}");
                        got.remove_index(Axis(0), row);
                        assert_bits(got, clean, format!("{name}, {what}"));
                    }
                }
                bad_x[[0, at]] = good;
            }
        }
    }
}

fn an_infinite_dy_makes_its_columns_infinite_and_no_other<T: Number>() {
    for (features, rows) in [(5, 1), (5, 300), (64, 65), (768, 64), (768, 65), (768, 2000), (LONG, 70)] {
        let norm = layer::<T>(features, 1e-5);
        let (x, mut dy) = (drawn(rows, features, 15), drawn(rows, features, 16));
        let clean = pass(&norm, &x, &dy).grad;
        let (row, column) = (rows / 2, features / 2);
        for bad in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN] {
            dy[[row, column]] = T::of(bad);
            let what = format!("{bad} at [{row}, {column}] of {rows} x {features}");
            let (mut got, mut want) = (pass(&norm, &x, &dy).grad, clean.clone());
            let [dgain, dbias] = [got.gain().unwrap()[column], got.bias().unwrap()[column]];
            if bad.is_nan() {
                assert!(dgain.is_nan() && dbias.is_nan(), "{what}: dgain {dgain}, dbias {dbias}");
            } else {
                assert!(dgain.is_infinite() && dbias == T::of(bad), "{what}: dgain {dgain}, dbias {dbias}");
            }
            for grad in [&mut got, &mut want] {
                grad.gain_mut().unwrap()[column] = T::zero();
                grad.bias_mut().unwrap()[column] = T::zero();
            }
            assert_gradients(&got, &want, what);
        }
    }
}

fn subnormal_elements_give_a_finite_y<T: Number>() {
    for features in [1, 2, 5, 64, 65, 768, 5000, LONG] {
        let x = Array2::from_shape_fn((12, features), |(row, i)| {
            let subnormal = T::of_bits((i as u64 * 31 + row as u64) % 251);
            match (row % 4, i % 3) {
                // Alone, about the least normal number, with a normal number, and with the largest.
                (1, 0) => T::LEAST_NORMAL + subnormal,
                (2, 1) => T::of(1e-20),
                (3, 2) => T::max_value(),
                _ => subnormal,
            }
        });
        for eps in [0.0, 1e-5] {
            let (y, _) = layer(features, eps).forward(&x).unwrap();
            for (index, y) in y.indexed_iter() {
                assert!(y.is_finite(), "{features} features, eps {eps}: y{index:?} is {y}");
            }
        }
    }
}

/// `test: (arguments in f32), (arguments in f64);` runs `test::<f32>` and `test::<f64>`.
macro_rules! for_f32_and_f64 {
    ($($test:ident: ($($f32:expr),*), ($($f64:expr),*);)*) => {
        mod in_f32 {
            $(#[test]
            fn $test() {
                super::$test::<f32>($($f32),*);
            })*
        }

        mod in_f64 {
            $(#[test]
            fn $test() {
                super::$test::<f64>($($f64),*);
            })*
        }
    };
}

for_f32_and_f64! {
    powers_of_two_change_no_bit: (), ();
    rows_of_all_scales_share_a_batch: (), ();
    rows_of_the_largest_numbers_are_right:
        (&[(1e18, 1.0), (1e30, 1.0), (3e38, 1e10)]),
        (&[(1e18, 1.0), (1e150, 1.0), (1e300, 1e20), (1.7e308, 1e20)]);
    tiny_rows_are_right_beside_eps:
        (&[1e-5, 1e-10, 1e-20, 1e-30, 1e-36], &[1e-5, 1e-12, 1e-17, 1e-20, 1e-30, 1e-38, 0.0]),
        (&[1e-5, 1e-30, 1e-100, 1e-150, 1e-300], &[1e-5, 1e-30, 1e-130, 1e-140, 1e-200, 1e-300, 0.0]);
    constant_rows_give_the_bias:
        (&[3.3, 12345.678, 1e-30, 3e38, 0.0, -7e-4, -1e20, 1.0 / 3.0, 1e-38]),
        (&[3.3, 12345.678, 1e-30, 3e38, 0.0, -7e-4, -1e200, 1.0 / 3.0, 1e-300, 1.7e308]);
    constant_rows_have_the_dx_of_eps:
        (&[3.3, 12345.678, 1e-30, 3e38, 0.0, -7e-4, -1e20, 1.0 / 3.0, 1e-38]),
        (&[3.3, 12345.678, 1e-30, 3e38, 0.0, -7e-4, -1e200, 1.0 / 3.0, 1e-300, 1.7e308]);
    a_row_that_is_not_finite_spoils_no_other: (), ();
    an_infinite_dy_makes_its_columns_infinite_and_no_other: (), ();
    subnormal_elements_give_a_finite_y: (), ();
}

#[test]
fn a_constant_row_is_the_bias_whatever_the_gain() {
    let mut norm = LayerNorm::<f32>::new(2);
    norm.gain_mut().unwrap().fill(2.0);
    norm.bias_mut().unwrap().fill(3.0);
    assert_eq!(norm.infer(&Array2::from_elem((1, 2), 0.7)).unwrap(), Array2::from_elem((1, 2), 3.0));
    assert_eq!(norm.gain().unwrap(), Array1::from_elem(2, 2.0).into_dyn());
}
