//! y, dx, the gradients and the statistics of a batch are right, and so is evaluation.

use layernorm::ndarray::{Array1, Array2, Axis, s};
use layernorm::{BatchNorm, grad_check, instruction_sets};
use textbook::{batch_backward, batch_forward};

use crate::number::{Number, bits, drawn};
use crate::{Step, flat, layer, placed, wide, wild};

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

fn any_scale_is_right<T: Number>() {
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

/// A mean of columns that are taken again needs more digits than an element has.
#[test]
fn columns_taken_again_may_be_far_from_0() {
    let rows = 40_000;
    let (mut x, dy) = (drawn::<f32, _>([rows, 3], 1), drawn::<f32, _>([rows, 3], 2));
    x.column_mut(1).mapv_inplace(|x| x + 1e6);
    x.column_mut(1).iter_mut().step_by(rows / 16).for_each(|x| *x += 50.0);
    // Squares that are no numbers.
    x.column_mut(2).mapv_inplace(|x| x * 1e22 + 1e27);
    check(&layer(3), false, &x, &dy, "far from 0");
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

fn inference_is_right<T: Number>() {
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
