//! A gain of 1 + γ is the layer with that gain, in every call; and γ is the parameter.

mod common;

use common::{Norm, Number, bits, drawn, everywhere, extreme, grad_bits, tests_of_both};
use layernorm::ndarray::{Array2, ArrayD, IxDyn};
use layernorm::{Affine, LayerNorm, RmsNorm};

tests_of_both! {
    f32: every_call_has_the_bits_of_the_gain small_steps_add_up gamma_is_the_parameter;
    f64: every_call_has_the_bits_of_the_gain gamma_is_the_parameter;
}

/// All that every call gives, with the gradients by γ or by the gain that start as `grad`.
fn all<T: Number, N: Norm<T>>(norm: &N, arrays: [&Array2<T>; 3], affine: &Affine<T>) -> Vec<Vec<u64>> {
    let [x, dy, third] = arrays;
    let mut grad = affine.clone();
    let (y, saved) = norm.forward(x).unwrap();
    let mut outputs = vec![y.clone(), norm.infer(x).unwrap()];
    outputs.push(norm.backward(x, &saved, dy, &mut grad).unwrap());

    let [mut inferred, mut inplace] = [x.clone(), x.clone()];
    norm.infer_inplace(&mut inferred).unwrap();
    norm.forward_inplace(&mut inplace, &mut N::Saved::default()).unwrap();
    let [mut from_x, mut from_normalized, mut from_output] = [dy.clone(), dy.clone(), dy.clone()];
    norm.backward_inplace(x, &saved, &mut from_x, &mut grad).unwrap();
    norm.backward_from_normalized(third, &saved, &mut from_normalized, &mut grad).unwrap();
    norm.backward_from_output(&y, &saved, &mut from_output, &mut grad).unwrap();
    outputs.extend([inferred, inplace, from_x, from_normalized, from_output]);

    let (y, sum, kept) = norm.forward_residual(x, third).unwrap();
    let dx = norm.backward_residual(&sum, &kept, dy, Some(third), &mut grad).unwrap();
    outputs.extend([y, dx]);

    outputs.push(norm.jvp(x, &saved, third, affine).unwrap());
    let (dx, ddy) = norm.double_backward(x, &saved, dy, third, affine, &mut grad).unwrap();
    outputs.extend([dx, ddy]);
    outputs.iter().map(bits).chain([grad_bits(&grad)]).collect()
}

fn every_call_has_the_bits_of_the_gain<T: Number, N: Norm<T>>() {
    for shape in [[1, 5], [70, 33], [200, 768], [3, 50_000]] {
        // No gain so small that y cannot be divided by it; 1 + γ is rounded.
        let gamma: ArrayD<T> = drawn(IxDyn(&shape[1..]), 7).mapv(|gamma: T| gamma * T::of(0.1));
        let gain = gamma.mapv(|gamma| T::of(1.0) + gamma);
        let norm = N::drawn(&shape[1..]).eps(0.0);
        let (centred, plain) = (norm.clone().zero_centred().gain(gamma), norm.gain(gain));
        let arrays = [&extreme(shape, 1), &drawn(shape, 2), &drawn(shape, 3)];
        // Directions and gradients are those of γ: as they would be of the gain.
        let affine = N::drawn(&shape[1..]).parameters();
        let want = all(&plain, arrays, &affine);
        let got = everywhere(&centred, shape, |norm| all(norm, arrays, &affine));
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(got == want, "{shape:?}, output {at}");
        }
    }
}

fn small_steps_add_up<T: Number, N: Norm<f32>>() {
    let (mut centred, mut plain) = (N::drawn(&[3]).zero_centred(), N::drawn(&[3]).gain(ArrayD::ones(IxDyn(&[3]))));
    let mut grad = centred.parameters();
    grad.fill_zero();
    grad.gain_mut().unwrap().fill(1e-9);
    for _ in 0..1000 {
        for norm in [&mut centred, &mut plain] {
            norm.zip(&grad, |name, mut value, step| {
                if name == "gain" {
                    value += &step;
                }
            })
            .unwrap();
        }
    }
    // A gain is lost in a gain of 1: the next number is 1e-7 away.
    assert_eq!(plain.parameters().gain().unwrap(), ArrayD::ones(IxDyn(&[3])));
    // Each of 1000 additions rounds to u of 1e-6 at most.
    let gamma = centred.parameters().gain().unwrap().to_owned();
    assert!(gamma.iter().all(|gamma| (gamma - 1e-6).abs() <= 1000.0 * f32::EPSILON / 2.0 * 1e-6), "{gamma}");
    let x = drawn::<f32, _>([2, 3], 1);
    assert_ne!(centred.infer(&x).unwrap(), plain.infer(&x).unwrap());
}

fn gamma_is_the_parameter<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[2, 3]).zero_centred();
    let zeros = ArrayD::zeros(IxDyn(&[2, 3]));
    let mut seen = Vec::new();
    norm.visit(|name, value| seen.push((name.to_owned(), value.to_owned())));
    assert_eq!(seen[0], ("gain".to_owned(), zeros.clone()));

    // What draws a parameter to 0 draws the layer to the plain one.
    let gamma = drawn::<T, _>(IxDyn(&[2, 3]), 5);
    let mut moved = norm.clone().gain(gamma.clone());
    assert_eq!(moved.parameters().gain().unwrap(), gamma);
    let x = drawn::<T, _>([4, 2, 3], 1);
    assert_ne!(moved.infer(&x).unwrap(), norm.infer(&x).unwrap());
    moved.visit_mut(|name, mut value| {
        if name == "gain" {
            value.fill(T::of(0.0));
        }
    });
    assert_eq!(bits(&moved.infer(&x).unwrap()), bits(&norm.infer(&x).unwrap()));
}

/// The layers' own words, beside the trait's.
#[test]
fn gain_and_gain_mut_are_gamma() {
    let mut layer = LayerNorm::<f32>::new(2).with_zero_centred_gain();
    layer.gain_mut().unwrap().fill(0.5);
    assert_eq!(LayerNorm::gain(&layer).unwrap(), ArrayD::from_elem(IxDyn(&[2]), 0.5));
    let mut rms = RmsNorm::<f32>::new(2).with_zero_centred_gain().with_eps(0.0).unwrap();
    rms.gain_mut().unwrap().fill(0.5);
    assert_eq!(rms.infer(&Array2::from_elem((1, 2), 3.0)).unwrap(), Array2::from_elem((1, 2), 1.5));
    assert!(layer.has_zero_centred_gain() && rms.has_zero_centred_gain());
    assert!(!LayerNorm::<f32>::new(2).has_zero_centred_gain() && !RmsNorm::<f32>::new(2).has_zero_centred_gain());
    // Without a gain, no γ is left.
    let x = Array2::from_shape_fn((3, 2), |(i, j)| (i + 3 * j) as f32);
    assert!(!layer.clone().without_gain().has_zero_centred_gain());
    assert_eq!(layer.without_gain().infer(&x).unwrap(), LayerNorm::<f32>::new(2).infer(&x).unwrap());
}
