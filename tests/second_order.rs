//! Derivatives along a direction are slopes of forward, those of gradients slopes of backward, and their own slopes are
//! differences of differences: docs/second_order.md.

mod common;

use common::{Norm, Number, direction, drawn, flat, tests_of_both};
use layernorm::Affine;
use layernorm::grad_check::slopes;
use layernorm::ndarray::{Array, Array2, ArrayD, Axis, Dimension};

tests_of_both! {
    f64: a_jvp_is_the_slope_of_forward double_backward_is_the_slope_of_backward second_derivatives_are_symmetric
        third_derivatives_are_differences_of_differences;
}

/// The layer with gain and bias that have gone `t` along.
fn moved<N: Norm<f64>>(norm: &N, along: &Affine<f64>, t: f64) -> N {
    let parameters = norm.parameters();
    let moved = norm.clone().gain(&parameters.gain().unwrap() + &along.gain().unwrap() * t);
    match (parameters.bias(), along.bias()) {
        (Some(bias), Some(along)) => moved.bias(&bias + &along * t),
        _ => moved,
    }
}

/// f′(0), by the differences of [`slopes`].
fn slope(f: impl Fn(f64) -> Array2<f64>) -> Array2<f64> {
    let h = 1.0 / 1024.0;
    ((f(h) - f(-h)) * 8.0 - (f(2.0 * h) - f(-2.0 * h))) / (12.0 * h)
}

/// f″(0), good to h⁴·f⁗″/90 and 64·u/12h² of the largest value.
fn second_slope(f: impl Fn(f64) -> Array2<f64>) -> Array2<f64> {
    let h = 1.0 / 128.0;
    let (near, far) = (f(h) + f(-h), f(2.0 * h) + f(-2.0 * h));
    (near * 16.0 - far - f(0.0) * 30.0) / (12.0 * h * h)
}

/// Of the largest slope, or of 1, which the data are near: what differences can say.
fn assert_near<D: Dimension>(place: &str, got: &Array<f64, D>, want: &Array<f64, D>, tolerance: f64) {
    let largest = want.iter().fold(1.0, |largest: f64, want| largest.max(want.abs()));
    for ((at, got), want) in got.indexed_iter().zip(want) {
        assert!((got - want).abs() <= tolerance * largest, "{place}, {at:?}: got {got}, slope {want}");
    }
}

/// Rows about 2 whose spread is near 1; a constant one too where ε lets it have a slope.
fn rows(features: usize, eps: f64) -> Array2<f64> {
    let side = |i: usize| if i.is_multiple_of(2) { 3.0 } else { 1.0 };
    let mut x = drawn::<f64, _>([4, features], 1) * 0.3;
    x.indexed_iter_mut().for_each(|((_, i), x)| *x += side(i));
    if eps >= 0.1 {
        x.row_mut(2).fill(1.5);
    }
    x
}

const FEATURES: [usize; 5] = [1, 3, 20, 100, 1500];
const EPS: [f64; 3] = [0.0, 1e-5, 0.5];

fn a_jvp_is_the_slope_of_forward<T: Number, N: Norm<f64>>() {
    for features in FEATURES {
        for eps in EPS {
            let norm = N::drawn(&[features]).eps(eps);
            let (x, along, affine) = (rows(features, eps), drawn([4, features], 2), direction(&norm, 3));
            let want = slope(|t| moved(&norm, &affine, t).infer(&(&x + &along * t)).unwrap());
            let (_, saved) = norm.forward(&x).unwrap();
            let got = norm.jvp(&x, &saved, &along, &affine).unwrap();
            assert_near(&format!("{features} features, eps {eps}"), &got, &want, 1e-8);
        }
    }
}

fn double_backward_is_the_slope_of_backward<T: Number, N: Norm<f64>>() {
    for features in FEATURES {
        for eps in EPS {
            let norm = N::drawn(&[features]).eps(eps);
            let (x, dy, ddx) = (rows(features, eps), drawn([4, features], 2), drawn([4, features], 3));
            let dgrad = direction(&norm, 4);
            let loss = |norm: &N, x: &Array2<f64>, dy: &Array2<f64>| {
                let ((_, saved), mut grad) = (norm.forward(x).unwrap(), zeros(norm));
                let dx = norm.backward(x, &saved, dy, &mut grad).unwrap();
                let of = |a: Option<_>, b: Option<_>| (flat(a, features) * flat(b, features)).sum();
                (dx * &ddx).sum() + of(grad.gain(), dgrad.gain()) + of(grad.bias(), dgrad.bias())
            };
            let ((_, saved), mut grad) = (norm.forward(&x).unwrap(), zeros(&norm));
            let (dx, ddy) = norm.double_backward(&x, &saved, &dy, &ddx, &dgrad, &mut grad).unwrap();
            let place = |name: &str| format!("{name}, {features} features, eps {eps}");
            let (gain, dgain) = (norm.parameters().gain().unwrap().to_owned(), grad.gain().unwrap().to_owned());
            if features <= 20 {
                assert_near(&place("dx"), &dx, &slopes(&x, |x| loss(&norm, x, &dy)), 1e-8);
                assert_near(&place("ddy"), &ddy, &slopes(&dy, |dy| loss(&norm, &x, dy)), 1e-8);
                let of_gain = slopes(&gain, |gain: &ArrayD<f64>| loss(&norm.clone().gain(gain.clone()), &x, &dy));
                assert_near(&place("dgain"), &dgain, &of_gain, 1e-8);
            } else {
                // Along all three at once.
                let (vx, vdy, vgain) = (drawn([4, features], 6), drawn([4, features], 7), direction(&norm, 8));
                let along = |t: f64| loss(&moved(&norm, &vgain, t), &(&x + &vx * t), &(&dy + &vdy * t));
                let want = slope(|t| Array2::from_elem((1, 1), along(t)));
                let got = (dx * vx).sum() + (ddy * vdy).sum() + (dgain * vgain.gain().unwrap()).sum();
                assert_near(&place("all"), &Array2::from_elem((1, 1), got), &want, 1e-8);
            }
            assert!(grad.bias().iter().flatten().all(|&dbias| dbias == 0.0), "{}", place("dbias"));
        }
    }
}

fn zeros<N: Norm<f64>>(norm: &N) -> Affine<f64> {
    let mut zeros = norm.parameters();
    zeros.fill_zero();
    zeros
}

/// Of L = Σ y·dy by x and gain. A sum of n terms loses (n/8 + 16)·u, less than 1e-13 of the terms here; (2) has some.
fn second_derivatives_are_symmetric<T: Number, N: Norm<f64>>() {
    for features in FEATURES {
        for eps in EPS {
            let norm = N::drawn(&[features]).eps(eps);
            let (x, dy) = (rows(features, eps), drawn([4, features], 2));
            let (_, saved) = norm.forward(&x).unwrap();
            let directions = [3, 4].map(|seed| (drawn([4, features], seed), direction(&norm, seed + 10)));
            // This direction times H times that.
            let product = |(z, k): &(Array2<f64>, Affine<f64>), (v, g): &(Array2<f64>, Affine<f64>)| {
                let mut grad = zeros(&norm);
                let (dx, _) = norm.double_backward(&x, &saved, &dy, v, g, &mut grad).unwrap();
                let terms = (dx * z).into_iter().chain(flat(grad.gain(), features) * flat(k.gain(), features));
                terms.fold((0.0, 0.0), |(sum, size), term: f64| (sum + term, size + term.abs()))
            };
            let [first, second] = &directions;
            let ((one, size), (other, _)) = (product(first, second), product(second, first));
            assert!((one - other).abs() <= 1e-12 * size.max(1.0), "{features}, eps {eps}: {one}, {other}");
        }
    }
}

fn third_derivatives_are_differences_of_differences<T: Number, N: Norm<f64>>() {
    for (features, eps) in [(3, 0.5), (20, 0.0), (20, 0.5), (100, 1e-5), (1500, 0.5)] {
        let norm = N::drawn(&[features]).eps(eps);
        let (x, dy, along, ddx) =
            (rows(features, eps), drawn([4, features], 2), drawn([4, features], 3), drawn([4, features], 4));
        let at = |t: f64| {
            let x = &x + &along * t;
            let (_, saved) = norm.forward(&x).unwrap();
            (x, saved)
        };
        let place = |name: &str| format!("{name}, {features} features, eps {eps}");
        let still = zeros(&norm);

        let jvp = |t| {
            let (x, saved) = at(t);
            norm.jvp(&x, &saved, &along, &still).unwrap()
        };
        let want = second_slope(|t| norm.infer(&at(t).0).unwrap());
        assert_near(&place("jvp"), &slope(jvp), &want, 1e-6);

        // φ(t) = Σ ddx·dx(x + t·along) of each row: φ′ = Σ along·double_backward, φ″ its slope.
        let by_row = |products: Array2<f64>| products.sum_axis(Axis(1)).insert_axis(Axis(1));
        let first = |t| {
            let (x, saved) = at(t);
            let (dx, _) = norm.double_backward(&x, &saved, &dy, &ddx, &still, &mut still.clone()).unwrap();
            by_row(dx * &along)
        };
        let backward = |t| {
            let (x, saved) = at(t);
            by_row(norm.backward(&x, &saved, &dy, &mut still.clone()).unwrap() * &ddx)
        };
        assert_near(&place("backward"), &first(0.0), &slope(backward), 1e-8);
        assert_near(&place("double_backward"), &slope(first), &second_slope(backward), 1e-6);
    }
}
