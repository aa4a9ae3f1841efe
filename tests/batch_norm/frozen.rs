//! Backward through evaluation: the statistics are constants.

use layernorm::ndarray::{Array1, Array2, Axis, s};
use layernorm::{Affine, BatchNorm, Running, grad_check, instruction_sets};

use crate::number::{Number, bits, drawn};
use crate::{flat, layer, placed};

/// A layer, and statistics that are those of no batch here.
fn frozen<T: Number>(features: usize) -> (BatchNorm<T>, Running<T>) {
    let norm = layer::<T>(features);
    let mut running = norm.running();
    running.mean_mut().assign(&drawn(features, 5));
    running.variance_mut().assign(&drawn::<T, _>([1, features], 6).remove_axis(Axis(0)).mapv(|v| v * v + T::of(0.1)));
    (norm, running)
}

fn bits_of<T: Number>(dx: &Array2<T>, grad: &Affine<T>) -> Vec<u64> {
    let (dgain, dbias) = (flat(grad.gain()), flat(grad.bias()));
    bits(dx.iter().chain(&dgain).chain(&dbias))
}

fn is_right_with_the_same_bits_everywhere<T: Number>() {
    let u = T::epsilon().into() / 2.0;
    for (rows, features) in [(1, 1), (3, 17), (64, 33), (70, 400), (2000, 33), (3, 40_000)] {
        let (norm, running) = frozen::<T>(features);
        let (x, dy) = (drawn::<T, _>([rows, features], 1), drawn::<T, _>([rows, features], 2));
        let backward = |norm: &BatchNorm<T>, x: &Array2<T>, dy: &Array2<T>| {
            let mut grad = norm.zero_grad();
            let dx = norm.backward_infer(x, &running, dy, &mut grad).unwrap();
            (dx, grad)
        };
        let (dx, grad) = backward(&norm, &x, &dy);
        let place = format!("{rows}×{features}");
        for j in 0..features {
            let [mean, variance, gain] = [running.mean()[j], running.variance()[j], flat(norm.gain())[j]].map(T::into);
            let rstd = 1.0 / (variance + norm.eps().into()).sqrt();
            let [mut dgain, mut dbias, mut of_dgain, mut of_dbias] = [0.0; 4];
            for i in 0..rows {
                let [x, dy, got] = [x[[i, j]], dy[[i, j]], dx[[i, j]]].map(T::into);
                let want = gain * rstd * dy;
                // r, r·gain and their product round.
                assert!((got - want).abs() <= 3.5 * u * want.abs(), "dx[{i}, {j}] of {place}: {got:e}, want {want:e}");
                let term = dy * (x - mean) * rstd;
                (dgain, dbias) = (dgain + term, dbias + dy);
                (of_dgain, of_dbias) = (of_dgain + term.abs(), of_dbias + dy.abs());
            }
            let near = |name: &str, got: Array1<T>, want: f64, bound: f64| {
                let got: f64 = got[j].into();
                assert!((got - want).abs() <= u * bound, "{name}[{j}] of {place}: {got:e}, want {want:e}");
            };
            // A chain of 64 additions, a difference, a product, r, the result; the f64 of these lines in f64.
            let lines = if u < 1e-10 { rows as f64 } else { 0.0 };
            near("dgain", flat(grad.gain()), dgain, (64.0 + 4.0 + lines) * of_dgain);
            near("dbias", flat(grad.bias()), dbias, (64.0 + 1.0 + lines) * of_dbias);
        }
        let want = bits_of(&dx, &grad);
        for set in instruction_sets().into_iter().filter(|set| *set != "fallback" || rows * features < 10_000) {
            let (dx, grad) = backward(&norm.clone().with_instruction_set(set).unwrap(), &x, &dy);
            assert!(bits_of(&dx, &grad) == want, "{place} on {set}");
        }
        #[cfg(feature = "rayon")]
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let (dx, grad) = pool.install(|| backward(&norm, &x, &dy));
            assert!(bits_of(&dx, &grad) == want, "{place} on {threads} threads");
        }
        for layout in 0..3 {
            let (x, dy) = (placed(&x, layout), placed(&dy, (layout + 1) % 3));
            let (mut dx, mut grad) = (placed(&dy, (layout + 2) % 3), norm.zero_grad());
            norm.backward_infer_into(&x, &running, &dy, &mut dx, &mut grad).unwrap();
            assert!(bits_of(&dx, &grad) == want, "{place} in layout {layout}");
        }
        for row in 0..rows.min(5) {
            let [x, dy] = [&x, &dy].map(|array| array.slice(s![row..row + 1, ..]).to_owned());
            assert_eq!(bits(&backward(&norm, &x, &dy).0), bits(dx.row(row)), "{place}, row {row} alone");
        }
    }
}

#[test]
fn f32_is_right_with_the_same_bits_everywhere() {
    is_right_with_the_same_bits_everywhere::<f32>();
}

#[test]
fn f64_is_right_with_the_same_bits_everywhere() {
    is_right_with_the_same_bits_everywhere::<f64>();
}

#[test]
fn gradients_are_slopes_of_infer() {
    let (norm, running) = frozen::<f64>(3);
    let (x, dy) = (drawn::<f64, _>([70, 3], 1), drawn::<f64, _>([70, 3], 2));
    let mut grad = norm.zero_grad();
    let dx = norm.backward_infer(&x, &running, &dy, &mut grad).unwrap();
    let loss = |norm: &BatchNorm<f64>, x: &Array2<f64>| (norm.infer(x, &running).unwrap() * &dy).sum();
    let worst = grad_check::compare(&x, &dx, |x| loss(&norm, x));
    assert!(worst.error < 1e-8, "dx: {worst:?}");
    let of_gain = |gain: &Array1<f64>| loss(&norm.clone().with_gain(gain.clone()).unwrap(), &x);
    let worst = grad_check::compare(&flat(norm.gain()), &flat(grad.gain()), of_gain);
    assert!(worst.error < 1e-8, "dgain: {worst:?}");
    let of_bias = |bias: &Array1<f64>| loss(&norm.clone().with_bias(bias.clone()).unwrap(), &x);
    let worst = grad_check::compare(&flat(norm.bias()), &flat(grad.bias()), of_bias);
    assert!(worst.error < 1e-8, "dbias: {worst:?}");
}

/// In training it would make the whole feature NaN.
#[test]
fn nan_stays_where_it_is() {
    let (norm, running) = frozen::<f32>(20);
    let (mut x, dy) = (drawn::<f32, _>([80, 20], 1), drawn::<f32, _>([80, 20], 2));
    let want = norm.backward_infer(&x, &running, &dy, &mut norm.zero_grad()).unwrap();
    (x[[7, 3]], x[[66, 19]]) = (f32::NAN, f32::INFINITY);
    let mut grad = norm.zero_grad();
    let mut dx = norm.backward_infer(&x, &running, &dy, &mut grad).unwrap();
    assert!(dx[[7, 3]].is_nan() && dx[[66, 19]].is_nan());
    (dx[[7, 3]], dx[[66, 19]]) = (want[[7, 3]], want[[66, 19]]);
    assert_eq!(dx, want);
    let odd = |(feature, dgain): (usize, &f32)| (!dgain.is_finite()).then_some(feature);
    assert_eq!(flat(grad.gain()).iter().enumerate().filter_map(odd).collect::<Vec<_>>(), [3, 19]);
}

#[test]
fn mistakes_are_named_and_nothing_is_written() {
    let (norm, running) = frozen::<f32>(4);
    let (x, long) = (Array2::<f32>::ones((2, 4)), Array2::<f32>::ones((3, 4)));
    let (mut dx, mut grad) = (Array2::from_elem((2, 4), 7.0), norm.zero_grad());
    let mut call = |x: &Array2<f32>, running: &Running<f32>, dy: &Array2<f32>, grad: &mut Affine<f32>| {
        norm.backward_infer_into(x, running, dy, &mut dx, grad).unwrap_err().to_string()
    };
    assert_eq!(call(&Array2::ones((2, 3)), &running, &x, &mut grad), "`x` must have shape [_, 4], but has [2, 3]");
    assert_eq!(call(&x, &running, &long, &mut grad), "`dy` must have shape [2, 4], but has [3, 4]");
    assert_eq!(call(&long, &running, &long, &mut grad), "`dx` must have shape [3, 4], but has [2, 4]");
    let of_others = BatchNorm::new(3).running();
    assert_eq!(call(&x, &of_others, &x, &mut grad), "`running` must have shape [4], but has [3]");
    let mut bare = norm.clone().without_bias().zero_grad();
    assert_eq!(call(&x, &running, &x, &mut bare), "`grad` must have a bias, as the layer has, but has none");
    assert_eq!((dx, grad), (Array2::from_elem((2, 4), 7.0), norm.zero_grad()));

    let none = Array2::zeros((0, 4));
    assert_eq!(norm.backward_infer(&none, &running, &none, &mut norm.zero_grad()).unwrap(), none);
    // The unbiased variance of a batch of one row is no number, but that of earlier ones is.
    let one = Array2::ones((1, 4));
    norm.clone().with_unbiased_variance().backward_infer(&one, &running, &one, &mut norm.zero_grad()).unwrap();
}
