//! Right to the last digits, whatever the mean and however many features, beside the double-double oracle.
//!
//! ```text
//!                                                                 f32      f64
//! y       max|y − ref| / max(|x̂·gain|, |bias|)   over a row       2.5e-7   6e-16      from 15 features on
//!                                                                 4e-7     1e-15      below
//! dx      max|dx − ref| / max|rstd·gain·dy|      over a row       5e-7     1e-15
//! dgain   max|dgain − ref| / max|ref|            over features    5e-7     1e-15
//! dbias   max|dbias − ref| / max|ref|            over features    5e-7     1e-15
//! ```
//!
//! Rows are N(mean, 1) with a mean of up to a million, or of a form of which no part tells the whole; with one feature dx
//! is exactly 0. The bound of y is that of
//! four roundings by half an ulp (2⁻²⁴ in f32, 2⁻⁵³ in f64: x − mean, − low, rstd, their product) and a little for the
//! moments, dx is made of twice as many. `cargo test --test accuracy -- --nocapture` prints the errors found.
//!
//! Where numbers are equal, additions round the same way again and again: 64 in a lane or a chain make 33 half ulps of their
//! sum. Hence, whatever the numbers, with S = Σ|dy|·max(|x̂|, 1) over the rows:
//!
//! ```text
//!                                                                            f32      f64
//! y       max|y − ref|  / max(|x̂·gain| + |bias|)       over a row          4e-7     1e-15
//! dx      max|dx − ref| / max(|rstd·gain·dy|, |dx|)     over a row          5e-6     1e-14
//! dgain   |dgain − ref| / S                             of each feature     2.5e-6   5e-15
//! dbias   |dbias − ref| / Σ|dy|                         of each feature     2.5e-6   5e-15
//! ```
//!
//! dx has 33 from the sum of q and 33 from that of q·x̂. The bound of y is found, not derived: of millions of rows of two
//! values, which are the worst, none was off by more than 3e-7.

use std::fmt::{Display, Write};

use layernorm::ndarray::{Array1, Array2};
use layernorm::{Element, LayerNorm};
use textbook::{backward_row, column_sums, forward, pattern};

const FEATURES: [usize; 14] = [1, 2, 15, 16, 17, 63, 64, 65, 768, 4095, 4096, 4097, 65_536, 1_048_576];

const MEANS: [f64; 5] = [0.0, 1e3, 1e4, 1e5, 1e6];

/// More than 64 rows, and no multiple of the kernels' groups, where the oracle takes that in a moment.
fn rows_of(features: usize) -> usize {
    match features {
        ..769 => 67,
        769..4098 => 9,
        4098..65_537 => 2,
        _ => 1,
    }
}

struct Bounds {
    y: f64,
    /// Below 15 features.
    y_narrow: f64,
    dx: f64,
    columns: f64,
    /// y, dx and columns, whatever the numbers.
    any: [f64; 3],
}

trait Number: Element {
    const NAME: &'static str;
    const BOUNDS: Bounds;

    fn of(value: f64) -> Self;
}

impl Number for f32 {
    const NAME: &'static str = "f32";
    const BOUNDS: Bounds = Bounds { y: 2.5e-7, y_narrow: 4e-7, dx: 5e-7, columns: 5e-7, any: [4e-7, 5e-6, 2.5e-6] };

    fn of(value: f64) -> Self {
        value as Self
    }
}

impl Number for f64 {
    const NAME: &'static str = "f64";
    const BOUNDS: Bounds = Bounds { y: 6e-16, y_narrow: 1e-15, dx: 1e-15, columns: 1e-15, any: [1e-15, 1e-14, 5e-15] };

    fn of(value: f64) -> Self {
        value
    }
}

/// The largest error met, and where.
#[derive(Default)]
struct Worst {
    error: f64,
    place: String,
}

impl Worst {
    fn compare<T: Number>(&mut self, got: &[T], want: &[f64], scale: f64, place: impl Display) {
        assert_eq!(got.len(), want.len(), "{place}");
        for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
            let error = if got.into() == want { 0.0 } else { (got.into() - want).abs() / scale };
            // NaN is an error as well, and the largest.
            let error = if error.is_nan() { f64::INFINITY } else { error };
            if error > self.error {
                *self = Self { error, place: format!("{place}, index {index}: got {got:e}, want {want:e}") };
            }
        }
    }

    /// What is wrong, if the error is above the bound.
    fn beyond(&self, bound: f64, what: &str) -> Option<String> {
        let Self { error, place } = self;
        (*error > bound).then(|| format!("{what}: error {error:.3e}, at most {bound:.1e} promised: {place}"))
    }
}

fn largest(values: impl Iterator<Item = f64>) -> f64 {
    values.fold(0.0, |largest, value| largest.max(value.abs()))
}

fn wide<T: Number>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

/// `rows` of N(mean, 1), rounded to `T`.
fn rows_about<T: Number>(mean: f64, rows: usize, features: usize, seed: u64) -> Array2<T> {
    let values = pattern(rows * features, seed).into_iter().map(|value| T::of(mean + value)).collect();
    Array2::from_shape_vec((rows, features), values).unwrap()
}

/// The layer as it is made, and one whose gain and bias are N(0, 1), each with its name.
fn layers<T: Number>(features: usize) -> [(&'static str, LayerNorm<T>); 2] {
    let drawn = |seed| Array1::from_iter(pattern(features, seed).into_iter().map(T::of));
    let norm = LayerNorm::new(features);
    let random = norm.clone().with_gain(drawn(101)).unwrap().with_bias(drawn(102)).unwrap();
    [("gain 1, bias 0", norm), ("random gain and bias", random)]
}

/// Both errors of some rows.
fn compare_rows<T: Number>(
    norm: &LayerNorm<T>,
    x: &Array2<T>,
    dy: &Array2<T>,
    place: impl Fn(usize) -> String,
    worst: (&mut Worst, &mut Worst),
) {
    let features = x.ncols();
    let (y, saved) = norm.forward(x).unwrap();
    let dx = norm.backward(x, &saved, dy, &mut norm.zero_grad()).unwrap();
    let [gain, bias] = [norm.gain(), norm.bias()].map(|parameter| wide(parameter.unwrap().as_slice().unwrap()));
    let eps = norm.eps().into();
    for row in 0..x.nrows() {
        let place = place(row);
        let (x, dy) = (wide(x.row(row).as_slice().unwrap()), wide(dy.row(row).as_slice().unwrap()));

        let want = forward(&x, Some(&gain), Some(&bias), eps);
        let product = largest(want.xhat.iter().zip(&gain).map(|(xhat, gain)| xhat * gain));
        let scale = product.max(largest(bias.iter().copied()));
        worst.0.compare(y.row(row).as_slice().unwrap(), &want.y, scale, &place);

        let scale = want.rstd.to_f64() * largest(dy.iter().zip(&gain).map(|(dy, gain)| dy * gain));
        let scale = if features == 1 { 0.0 } else { scale };
        let want = backward_row(&x, Some(&gain), eps, &dy);
        worst.1.compare(dx.row(row).as_slice().unwrap(), &want, scale, &place);
    }
}

fn rows_are_right<T: Number>() {
    let Bounds { y, y_narrow, dx, .. } = T::BOUNDS;
    let mut failures = Vec::new();
    let mut table = format!(
        "{}: worst errors over the means        gain 1, bias 0         random gain and bias\n{:>9} {:>5} {:>27} {:>10} {:>12} {:>10}\n",
        T::NAME,
        "features",
        "rows",
        "y",
        "dx",
        "y",
        "dx"
    );
    for features in FEATURES {
        let rows = rows_of(features);
        let dy = rows_about(0.0, rows, features, 100);
        write!(table, "{features:>9} {rows:>5} {:>16}", "").unwrap();
        for (name, norm) in layers::<T>(features) {
            let (mut worst_y, mut worst_dx) = (Worst::default(), Worst::default());
            for (mean, seed) in MEANS.into_iter().zip(1..) {
                let x = rows_about(mean, rows, features, seed);
                let place = |row| format!("{}, {name}, {features} features, mean {mean:e}, row {row}", T::NAME);
                compare_rows(&norm, &x, &dy, place, (&mut worst_y, &mut worst_dx));
            }
            failures.extend(worst_y.beyond(if features < 15 { y_narrow } else { y }, "y"));
            failures.extend(worst_dx.beyond(dx, "dx"));
            write!(table, "  {:>9.2e}  {:>9.2e}  ", worst_y.error, worst_dx.error).unwrap();
        }
        table.push('\n');
    }
    println!("{table}");
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// Element `i` of `n`, as it follows from a number of N(0, 1).
type Form = (&'static str, fn(f64, usize, usize) -> f64);

/// Rows whose first vector, or a few of them, or a block, say nothing of the mean and spread of the rest.
const FORMS: [Form; 16] = [
    ("a ramp", |_, i, n| i as f64 / n as f64),
    ("a noisy ramp", |noise, i, n| 100.0 * i as f64 / n as f64 + noise),
    ("a step", |noise, i, n| if i < n / 2 { 0.0 } else { 1.0 } + 1e-3 * noise),
    ("a late step", |noise, i, n| if i < n / 8 * 7 { 1e-4 * noise } else { 100.0 + noise }),
    ("all but one equal", |_, i, n| if i == n / 3 { 0.0009765625 } else { 0.0 }),
    ("mostly 0", |noise, _, _| (noise - 1.0).max(0.0)),
    ("pixels", |noise, _, _| (60.0 * noise + 100.0).clamp(0.0, 255.0).round()),
    ("few digits", |noise, _, _| (128.0 * noise).round() / 128.0),
    ("both signs", |_, i, _| if i.is_multiple_of(2) { 1.0 } else { -1.0 }),
    ("first far off", |noise, i, _| if i == 0 { 1e4 } else { noise }),
    ("middle far off", |noise, i, n| if i == n / 2 { -1e4 } else { noise }),
    ("last far off", |noise, i, n| if i + 1 == n { 1e4 } else { noise }),
    ("quarters that begin a little above", |noise, i, n| quarter_begins(i, n) * 0.6 + noise),
    ("quarters that begin above", |noise, i, n| quarter_begins(i, n) * 10.0 + noise),
    ("quarters that begin far above", |noise, i, n| quarter_begins(i, n) * 1e4 + noise),
    ("quarters that alone have spread", |noise, i, n| quarter_begins(i, n) * noise),
];

/// 1 in the first 16 elements of each quarter, otherwise 0.
fn quarter_begins(i: usize, n: usize) -> f64 {
    if i % n.div_ceil(4).next_multiple_of(16) < 16 { 1.0 } else { 0.0 }
}

fn rows_of_any_form_are_right<T: Number>() {
    let Bounds { y, y_narrow, dx, .. } = T::BOUNDS;
    let mut failures = Vec::new();
    for features in [3, 15, 64, 65, 130, 768, 2048, 4096, 5000, 50_000] {
        let noise = pattern(FORMS.len() * features, 200);
        let dy = rows_about(0.0, FORMS.len(), features, 100);
        for (name, norm) in layers::<T>(features) {
            for mean in [0.0, 30.0, 1e4] {
                let x = Array2::from_shape_fn((FORMS.len(), features), |(row, i)| {
                    T::of(mean + FORMS[row].1(noise[row * features + i], i, features))
                });
                let (mut worst_y, mut worst_dx) = (Worst::default(), Worst::default());
                let place = |row: usize| {
                    let form = FORMS[row].0;
                    format!("{}, {name}, {features} features, mean {mean:e}, row {row}, {form}", T::NAME)
                };
                compare_rows(&norm, &x, &dy, place, (&mut worst_y, &mut worst_dx));
                failures.extend(worst_y.beyond(if features < 15 { y_narrow } else { y }, "y"));
                failures.extend(worst_dx.beyond(dx, "dx"));
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

fn columns_are_right<T: Number>(rows: usize, features: usize, mean: f64) {
    let (x, dy) = (rows_about::<T>(mean, rows, features, 1), rows_about::<T>(0.0, rows, features, 2));
    let fill = |array: &Array2<T>, row: usize, out: &mut [f64]| {
        out.iter_mut().zip(array.row(row)).for_each(|(out, &value)| *out = value.into());
    };
    let eps = LayerNorm::<T>::new(features).eps().into();
    let want = column_sums(rows, features, |row, out| fill(&x, row, out), |row, out| fill(&dy, row, out), eps);

    let mut failures = Vec::new();
    for (name, norm) in layers::<T>(features) {
        let (_, saved) = norm.forward(&x).unwrap();
        let mut grad = norm.zero_grad();
        norm.backward(&x, &saved, &dy, &mut grad).unwrap();
        let place = format!("{}, {name}, {rows} rows of {features} features, mean {mean:e}", T::NAME);
        for (what, got, want) in [("dgain", grad.gain(), &want.0), ("dbias", grad.bias(), &want.1)] {
            let mut worst = Worst::default();
            worst.compare(got.unwrap().as_slice().unwrap(), want, largest(want.iter().copied()), &place);
            println!("{what}: error {:.2e}, {place}", worst.error);
            failures.extend(worst.beyond(T::BOUNDS.columns, what));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

/// dy of an element, as it follows from x̂ and from how many there are.
type Arriving = (&'static str, fn(f64, usize) -> f64);

/// What a mean, or a difference of means, sends back to a row.
const EQUAL: [Arriving; 4] = [
    ("dy 0.9", |_, _| 0.9),
    ("dy 1/n", |_, n| 1.0 / n as f64),
    ("dy of two signs", |xhat, _| 0.6265_f64.copysign(xhat)),
    ("a dy of few digits", |_, _| 0.52666664),
];

fn rows_are_right_whatever_the_numbers<T: Number>() {
    let [bound_of_y, bound_of_dx, _] = T::BOUNDS.any;
    for features in [20, 64, 768, 1549, 2048, 5000] {
        let noise = pattern(FORMS.len() * features, 300);
        let [(_, plain), (_, random)] = layers::<T>(features);
        let [gain, bias] = [0.69280106, -0.37756342].map(|value| Array1::from_elem(features, T::of(value)));
        let shifted = plain.clone().with_gain(gain).unwrap().with_bias(bias).unwrap();
        let (mut worst_y, mut worst_dx) = (Worst::default(), Worst::default());
        for (form, f) in FORMS {
            let x: Vec<_> = (0..features).map(|i| T::of(f(noise[i], i, features))).collect();
            let x_wide = wide(&x);
            for norm in [&plain, &random, &shifted] {
                let [gain, bias] = [norm.gain(), norm.bias()].map(|view| wide(view.unwrap().as_slice().unwrap()));
                let eps = norm.eps().into();
                let want = forward(&x_wide, Some(&gain), Some(&bias), eps);
                let x = Array2::from_shape_vec((1, features), x.clone()).unwrap();
                let (y, saved) = norm.forward(&x).unwrap();
                let both = want.xhat.iter().zip(gain.iter().zip(&bias));
                let scale = largest(both.map(|(&xhat, (gain, bias))| (xhat * gain).abs() + bias.abs()));
                worst_y.compare(y.as_slice().unwrap(), &want.y, scale, format!("{form}, {features} features"));
                for (kind, of) in EQUAL {
                    let dy: Vec<_> = want.xhat.iter().map(|xhat| T::of(of(*xhat, features))).collect();
                    let dy_wide = wide(&dy);
                    let dx_want = backward_row(&x_wide, Some(&gain), eps, &dy_wide);
                    let dy = Array2::from_shape_vec((1, features), dy).unwrap();
                    let dx = norm.backward(&x, &saved, &dy, &mut norm.zero_grad()).unwrap();
                    let arriving = want.rstd.to_f64() * largest(dy_wide.iter().zip(&gain).map(|(dy, gain)| dy * gain));
                    let scale = arriving.max(largest(dx_want.iter().copied()));
                    worst_dx.compare(dx.as_slice().unwrap(), &dx_want, scale, format!("{form}, {kind}, {features}"));
                }
            }
        }
        println!("{}, {features} features: y {:.2e}, dx {:.2e}", T::NAME, worst_y.error, worst_dx.error);
        let failures = [worst_y.beyond(bound_of_y, "y"), worst_dx.beyond(bound_of_dx, "dx")];
        assert!(failures == [None, None], "{failures:?}");
    }
}

fn columns_are_right_whatever_the_numbers<T: Number>() {
    for rows in [64, 1000, 8192] {
        for dy in [0.001, 0.5550108, 1.0 / rows as f64] {
            // All rows are the same, and so are the terms of a column.
            let x = Array2::from_shape_fn((rows, 3), |(_, feature)| T::of([1.7, -0.3, 0.4][feature]));
            let dy = Array2::from_elem((rows, 3), T::of(dy));
            let norm = LayerNorm::<T>::new(3);
            let (_, saved) = norm.forward(&x).unwrap();
            let mut grad = norm.zero_grad();
            norm.backward(&x, &saved, &dy, &mut grad).unwrap();
            let xhat = forward(&wide(x.row(0).as_slice().unwrap()), None, None, norm.eps().into()).xhat;
            let sum = rows as f64 * dy[[0, 0]].into();
            for (feature, xhat) in xhat.into_iter().enumerate() {
                let (got_dgain, got_dbias) = (grad.gain().unwrap()[feature], grad.bias().unwrap()[feature]);
                let (mut dgain, mut dbias) = (Worst::default(), Worst::default());
                let scale = sum * xhat.abs().max(1.0);
                dgain.compare(&[got_dgain], &[xhat * sum], scale, format!("{rows} rows, {feature}"));
                dbias.compare(&[got_dbias], &[sum], sum, format!("{rows} rows, {feature}"));
                println!("{}: dgain {:.2e}, dbias {:.2e}, {rows} rows", T::NAME, dgain.error, dbias.error);
                let failures = [dgain.beyond(T::BOUNDS.any[2], "dgain"), dbias.beyond(T::BOUNDS.any[2], "dbias")];
                assert!(failures == [None, None], "{failures:?}");
            }
        }
    }
}

#[test]
fn rows_are_right_whatever_the_numbers_in_f32() {
    rows_are_right_whatever_the_numbers::<f32>();
}

#[test]
fn rows_are_right_whatever_the_numbers_in_f64() {
    rows_are_right_whatever_the_numbers::<f64>();
}

#[test]
fn columns_are_right_whatever_the_numbers_of_both() {
    columns_are_right_whatever_the_numbers::<f32>();
    columns_are_right_whatever_the_numbers::<f64>();
}

#[test]
fn rows_of_f32_are_right() {
    rows_are_right::<f32>();
}

#[test]
fn rows_of_f64_are_right() {
    rows_are_right::<f64>();
}

#[test]
fn rows_of_any_form_are_right_in_f32() {
    rows_of_any_form_are_right::<f32>();
}

#[test]
fn rows_of_any_form_are_right_in_f64() {
    rows_of_any_form_are_right::<f64>();
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
    columns_are_right::<f32>(1_000_000, 16, 1e3);
    columns_are_right::<f64>(1_000_000, 16, 1e3);
}

#[test]
fn columns_of_rows_longer_than_a_cache_are_right() {
    columns_are_right::<f32>(130, 41_000, 30.0);
    columns_are_right::<f64>(130, 41_000, 30.0);
}
