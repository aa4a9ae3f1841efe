//! Every gradient is the slope of its function, and each call does to its buffers what it says.
//!
//! * dx, dgain and dbias meet central differences in f64, with and without gain and bias.
//! * `grad` is added to. y, dx and `saved` are overwritten, whatever is in them; no rows change nothing.
//! * `infer` gives the bits of `forward`, in place as well.
//! * The directions that y does not depend on have no slope: 1ᵀdx = 0, and with eps = 0 x̂ᵀdx = 0.

use layernorm::ndarray::{Array, Array2, ArrayD, ArrayRef, Axis, Dimension, IxDyn, ShapeBuilder, Slice};
use layernorm::{Affine, Element, LayerNorm, Parameters, Saved, grad_check};
use textbook::pattern;

/// Of the largest slope: what the differences can say. See [`grad_check::slopes`].
const TOLERANCE: f64 = 1e-8;

fn drawn(shape: &[usize], seed: u64) -> ArrayD<f64> {
    Array::from_shape_vec(shape, pattern(shape.iter().product(), seed)).unwrap()
}

/// Rows about 0, ½ and -½ whose spread is near 1, beside which a difference's step of 1e-3 is small.
///
/// A few elements drawn at random might lie anywhere: they are put one spread above or below the mean, and a little off.
/// Two features have x̂ = ±1 wherever they are, and a slope of eps/spread³ alone: they lie closer, so that it is not lost
/// in the digits of the loss.
fn spread_rows(rows: usize, features: usize, seed: u64) -> Array2<f64> {
    let (side, off) = match features {
        2 => (0.2, 0.02),
        ..=8 => (1.0, 0.2),
        _ => (0.0, 1.0),
    };
    let noise = drawn(&[rows, features], seed);
    Array2::from_shape_fn((rows, features), |(row, i)| {
        [0.0, 0.5, -0.5][row % 3] + if i % 2 == 0 { side } else { -side } + off * noise[[row, i]]
    })
}

/// The layer with and without gain and bias, each drawn at random.
fn layers(shape: &[usize], eps: f64) -> [LayerNorm<f64>; 4] {
    let both = LayerNorm::new(shape).with_eps(eps).unwrap();
    let both = both.with_gain(drawn(shape, 101)).unwrap().with_bias(drawn(shape, 102)).unwrap();
    let (no_gain, no_bias) = (both.clone().without_gain(), both.clone().without_bias());
    let neither = no_gain.clone().without_bias();
    [both, no_gain, no_bias, neither]
}

/// Compares dx, dgain and dbias of the loss Σ y ⊙ dy with its slopes.
fn assert_slopes<D: Dimension>(norm: &LayerNorm<f64>, x: &Array<f64, D>, dy: &Array<f64, D>) {
    let (has_gain, has_bias) = (norm.gain().is_some(), norm.bias().is_some());
    let place = format!("x {:?}, eps {}, gain {has_gain}, bias {has_bias}", x.shape(), norm.eps());
    let loss = |norm: &LayerNorm<f64>, x: &Array<f64, D>| -> f64 {
        norm.infer(x).unwrap().iter().zip(dy).map(|(y, dy)| y * dy).sum()
    };
    let assert_near = |name: &str, worst: grad_check::Worst| {
        assert!(worst.error < TOLERANCE, "{name}, {place}: {worst:?}");
    };

    let (_, saved) = norm.forward(x).unwrap();
    let mut grad = norm.zero_grad();
    let dx = norm.backward(x, &saved, dy, &mut grad).unwrap();
    assert_near("dx", grad_check::compare(x, &dx, |x| loss(norm, x)));

    assert_eq!((grad.gain().is_some(), grad.bias().is_some()), (has_gain, has_bias), "{place}");
    if let (Some(gain), Some(dgain)) = (norm.gain(), grad.gain()) {
        let at = |gain: &ArrayD<f64>| loss(&norm.clone().with_gain(gain.clone()).unwrap(), x);
        assert_near("dgain", grad_check::compare(&gain, &dgain, at));
    }
    if let (Some(bias), Some(dbias)) = (norm.bias(), grad.bias()) {
        let at = |bias: &ArrayD<f64>| loss(&norm.clone().with_bias(bias.clone()).unwrap(), x);
        assert_near("dbias", grad_check::compare(&bias, &dbias, at));
    }
}

#[test]
fn gradients_are_slopes() {
    for features in 1..=70 {
        for eps in [1e-5, 0.1] {
            for norm in layers(&[features], eps) {
                let (x, dy) = (spread_rows(3, features, 1), drawn(&[3, features], 2).into_dimensionality().unwrap());
                assert_slopes(&norm, &x, &dy);
            }
        }
    }
}

#[test]
fn gradients_of_long_rows_are_slopes() {
    for (features, rows) in [(130, 9), (513, 5), (2049, 2), (4100, 1)] {
        for norm in layers(&[features], 1e-5) {
            let dy = drawn(&[rows, features], 2).into_dimensionality().unwrap();
            assert_slopes(&norm, &spread_rows(rows, features, 1), &dy);
        }
    }
}

#[test]
fn gradients_of_many_rows_are_slopes() {
    // More rows than a chain of column sums, and than two.
    for rows in [64, 65, 130] {
        for norm in layers(&[5], 1e-5) {
            assert_slopes(&norm, &spread_rows(rows, 5, 1), &drawn(&[rows, 5], 2).into_dimensionality().unwrap());
        }
    }
}

#[test]
fn gradients_over_several_axes_are_slopes() {
    for eps in [1e-5, 0.1] {
        for norm in layers(&[3, 4], eps) {
            assert_slopes(&norm, &drawn(&[2, 3, 4], 1), &drawn(&[2, 3, 4], 2));
        }
        for norm in layers(&[2, 3, 4], eps) {
            assert_slopes(&norm, &drawn(&[2, 3, 4], 1), &drawn(&[2, 3, 4], 2));
        }
    }
}

/// Shapes and normalized shapes: rows below, at and above the groups and chains of the kernels, features about a vector,
/// and longer than a block.
const SHAPES: [(&[usize], usize); 10] = [
    (&[1, 1], 1),
    (&[3, 5], 1),
    (&[70, 5], 1),
    (&[8, 64], 1),
    (&[65, 65], 1),
    (&[130, 768], 1),
    (&[2, 5000], 1),
    (&[2, 3, 4, 5], 1),
    (&[2, 3, 4, 5], 2),
    (&[3, 4, 5], 3),
];

fn layer(shape: &[usize], axes: usize) -> LayerNorm<f64> {
    let [norm, ..] = layers(&shape[shape.len() - axes..], 1e-5);
    norm
}

#[track_caller]
fn assert_bits<D: Dimension>(got: &ArrayRef<f64, D>, want: &ArrayRef<f64, D>, what: &str) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    for (index, (got, want)) in got.iter().zip(want).enumerate() {
        assert!(got.to_bits() == want.to_bits(), "{what}: element {index} is {got:e}, not {want:e}");
    }
}

#[track_caller]
fn assert_grad_bits(got: &Affine<f64>, want: &Affine<f64>, what: &str) {
    assert_bits(&got.gain().unwrap(), &want.gain().unwrap(), &format!("dgain, {what}"));
    assert_bits(&got.bias().unwrap(), &want.bias().unwrap(), &format!("dbias, {what}"));
}

/// Memory that a call must overwrite, in both orders of the axes.
fn garbage(shape: &[usize]) -> [ArrayD<f64>; 2] {
    [ArrayD::from_elem(shape, f64::NAN), ArrayD::from_elem(shape.f(), f64::NAN)]
}

#[test]
fn outputs_are_overwritten_and_infer_has_the_bits_of_forward() {
    let mut saved = Saved::default();
    for (shape, axes) in SHAPES {
        let (norm, x, dy) = (layer(shape, axes), drawn(shape, 1), drawn(shape, 2));
        let what = format!("{shape:?}, {axes} axes");
        let (want_y, want_saved) = norm.forward(&x).unwrap();
        let mut want_grad = norm.zero_grad();
        let want_dx = norm.backward(&x, &want_saved, &dy, &mut want_grad).unwrap();
        assert_bits(&norm.infer(&x).unwrap(), &want_y, &format!("infer, {what}"));
        for (mut y, mut dx) in garbage(shape).into_iter().zip(garbage(shape)) {
            norm.forward_into(&x, &mut y, &mut saved).unwrap();
            assert_bits(&y, &want_y, &format!("forward_into, {what}"));
            assert_bits(&saved.mean(), &want_saved.mean(), &format!("mean, {what}"));
            assert_bits(&saved.rstd(), &want_saved.rstd(), &format!("rstd, {what}"));

            y.fill(f64::NAN);
            norm.infer_into(&x, &mut y).unwrap();
            assert_bits(&y, &want_y, &format!("infer_into, {what}"));

            y.assign(&x);
            norm.infer_inplace(&mut y).unwrap();
            assert_bits(&y, &want_y, &format!("infer_inplace, {what}"));

            let mut grad = norm.zero_grad();
            norm.backward_into(&x, &saved, &dy, &mut dx, &mut grad).unwrap();
            assert_bits(&dx, &want_dx, &format!("backward_into, {what}"));
            assert_grad_bits(&grad, &want_grad, &what);
        }
    }
}

/// Adds dgain and dbias of one call and then of another into one `grad`, and compares with the sum of both alone.
fn assert_added<T: Element>(of: fn(f64) -> T) {
    for (shape, axes) in SHAPES {
        let norm = LayerNorm::<T>::new(&shape[shape.len() - axes..]);
        let add = |seed: u64, grad: &mut Affine<T>| {
            let (x, dy) = (drawn(shape, seed).mapv(of), drawn(shape, seed + 1).mapv(of));
            let (_, saved) = norm.forward(&x).unwrap();
            norm.backward(&x, &saved, &dy, grad).unwrap();
        };
        // Half an ulp for rounding the second sum alone, and half an ulp for each addition; none of the latter two in
        // one + one.
        for (first, second, ulps) in [(1, 1, 1.0), (1, 3, 1.5)] {
            let [mut one, mut other, mut both] = std::array::from_fn(|_| norm.zero_grad());
            add(first, &mut one);
            add(second, &mut other);
            add(first, &mut both);
            add(second, &mut both);
            for (name, one, other, both) in [
                ("dgain", one.gain().unwrap(), other.gain().unwrap(), both.gain().unwrap()),
                ("dbias", one.bias().unwrap(), other.bias().unwrap(), both.bias().unwrap()),
            ] {
                for ((&one, &other), (index, &got)) in one.iter().zip(&other).zip(both.indexed_iter()) {
                    let want = one + other;
                    let ulp = T::epsilon() * want.abs().max(one.abs()).max(other.abs());
                    let right = (got - want).abs() <= of(ulps) * ulp;
                    assert!(right, "{name}{index:?}, {shape:?}, {axes} axes: {one:e} + {other:e} gave {got:e}");
                }
            }
        }
    }
}

#[test]
fn gradients_are_added() {
    assert_added(|value| value as f32);
    assert_added(|value| value);
}

/// The sum over one row starts from 0, which turns a term of −0 to 0, and so the gradient it is added to.
#[test]
fn a_gradient_of_minus_zero_becomes_zero_in_any_layout() {
    let norm = LayerNorm::<f64>::new(20);
    let (x, dy) = (drawn(&[1, 20], 5), ArrayD::from_elem(IxDyn(&[1, 20]), -0.0));
    let (_, saved) = norm.forward(&x).unwrap();
    let strided = ArrayD::from_elem(IxDyn(&[1, 40]), -0.0);
    for dy in [dy.view(), strided.slice_axis(Axis(1), Slice::from(0..40).step_by(2))] {
        let mut grad = norm.zero_grad();
        grad.visit_mut(|_, mut array| array.fill(-0.0));
        norm.backward(&x, &saved, &dy, &mut grad).unwrap();
        assert_grad_bits(&grad, &norm.zero_grad(), &format!("dy with the strides {:?}", dy.strides()));
    }
}

#[test]
fn saved_goes_from_a_larger_shape_to_a_smaller() {
    let norm = layer(&[5], 1);
    let mut saved = Saved::default();
    // The larger rows have to be rescaled: nothing of that may stay behind.
    let large = drawn(&[9, 5], 1).mapv(|x| x * 1e200);
    norm.forward_into(&large, &mut large.clone(), &mut saved).unwrap();
    for shape in [[4, 5], [9, 5], [1, 5]] {
        let (x, dy) = (drawn(&shape, 2), drawn(&shape, 3));
        norm.forward_into(&x, &mut x.clone(), &mut saved).unwrap();
        assert_eq!((saved.mean().len(), saved.rstd().len()), (shape[0], shape[0]));
        let (mut grad, mut want_grad) = (norm.zero_grad(), norm.zero_grad());
        let dx = norm.backward(&x, &saved, &dy, &mut grad).unwrap();
        let want = norm.backward(&x, &norm.forward(&x).unwrap().1, &dy, &mut want_grad).unwrap();
        assert_bits(&dx, &want, &format!("dx, {shape:?}"));
        assert_grad_bits(&grad, &want_grad, &format!("{shape:?}"));
    }
}

#[test]
fn no_rows_change_nothing() {
    for (shape, axes) in [(&[0, 5][..], 1), (&[0, 3, 5], 1), (&[3, 0, 5], 1), (&[0, 4, 5], 2)] {
        let (norm, mut x) = (layer(shape, axes), drawn(shape, 1));
        let (y, mut saved) = norm.forward(&x).unwrap();
        assert_eq!((y.shape(), saved.mean().len(), saved.rstd().len()), (shape, 0, 0));
        norm.forward_into(&x, &mut y.clone(), &mut saved).unwrap();
        assert_eq!(norm.infer(&x).unwrap().shape(), shape);
        norm.infer_into(&x, &mut y.clone()).unwrap();

        let mut grad = norm.zero_grad();
        grad.gain_mut().unwrap().fill(1.5);
        grad.bias_mut().unwrap().fill(-2.5);
        let before = grad.clone();
        assert_eq!(norm.backward(&x, &saved, &y, &mut grad).unwrap().shape(), shape);
        norm.backward_into(&x, &saved, &y, &mut y.clone(), &mut grad).unwrap();
        assert_grad_bits(&grad, &before, &format!("{shape:?}"));
        norm.infer_inplace(&mut x).unwrap();
    }
}

#[test]
fn absent_parameters_have_no_gradient() {
    let [both, no_gain, no_bias, neither] = layers(&[5], 1e-5).map(|norm| {
        let (x, dy) = (drawn(&[3, 5], 1), drawn(&[3, 5], 2));
        let mut grad = norm.zero_grad();
        norm.backward(&x, &norm.forward(&x).unwrap().1, &dy, &mut grad).unwrap();
        grad
    });
    assert!(no_gain.gain().is_none() && no_bias.bias().is_none());
    assert!(neither.gain().is_none() && neither.bias().is_none());
    // What is there does not depend on what is not.
    assert_bits(&no_gain.bias().unwrap(), &both.bias().unwrap(), "dbias without gain");
    assert_bits(&no_bias.gain().unwrap(), &both.gain().unwrap(), "dgain without bias");
}

#[test]
fn what_y_does_not_depend_on_has_no_slope() {
    for features in [1, 2, 3, 15, 16, 17, 64, 100, 768, 2049, 5000] {
        for norm in layers(&[features], 0.0) {
            let (x, dy) = (spread_rows(9, features, 1), drawn(&[9, features], 2).into_dimensionality().unwrap());
            let (_, saved) = norm.forward(&x).unwrap();
            let dx = norm.backward(&x, &saved, &dy, &mut norm.zero_grad()).unwrap();
            let xhat = LayerNorm::new(features).with_eps(0.0).unwrap().infer(&x).unwrap();
            for row in 0..9 {
                let q = match norm.gain() {
                    Some(gain) => &dy.row(row) * &gain,
                    None => dy.row(row).to_owned().into_dyn(),
                };
                let largest = |values: &mut dyn Iterator<Item = &f64>| values.fold(0.0, |m: f64, v| m.max(v.abs()));
                let largest_xhat = largest(&mut xhat.row(row).iter()).max(1.0);
                // dx = r·((q − c₁) − x̂·c₂), and |c₁| ≤ max|q|, |c₂| ≤ max|q|: each term is three times max|q|·max|x̂| at
                // most, and rounded six times.
                let term = 18.0 * f64::EPSILON / 2.0 * saved.rstd()[row] * largest(&mut q.iter()) * largest_xhat;
                let along_ones: f64 = dx.row(row).sum();
                let along_xhat: f64 = dx.row(row).dot(&xhat.row(row));
                let bound = features as f64 * term;
                assert!(along_ones.abs() <= bound, "1ᵀdx, {features} features, row {row}: {along_ones:e} > {bound:e}");
                let bound = bound * largest_xhat;
                assert!(along_xhat.abs() <= bound, "x̂ᵀdx, {features} features, row {row}: {along_xhat:e} > {bound:e}");
            }
        }
    }
}
