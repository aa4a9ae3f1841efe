//! Derivatives along a direction keep what those of the first order do: f32 is as near as its roundings allow, the bits
//! are the same everywhere, a power of two stays one, and a mistake writes nothing.

mod common;

use common::{
    Norm, Number, SHAPES, bits, direction, drawn, everywhere, extreme, flat, grad_bits, laid, rounding, tests_of_both,
    wide,
};
use layernorm::ndarray::{Array1, Array2, Array3, ArrayD, ArrayViewD, IxDyn, s};
use layernorm::{Affine, LayerNorm, RmsNorm};

tests_of_both! {
    f32: f32_is_near_f64 the_bits_are_the_same_everywhere rows_of_two_axes_are_rows a_power_of_two_stays_one
        a_subnormal_row_has_a_tangent a_penalty_on_the_gradient_has_one_at_any_scale dgain_adds_up constant_rows_are_flat
        nan_stays_in_its_row mistakes_are_named_and_nothing_is_written no_rows_change_nothing
        parameters_may_be_missing;
    f64: the_bits_are_the_same_everywhere dgain_adds_up;
}

/// ẏ, and dx, ddy and dgain of [`double_backward`](Norm::double_backward).
struct All<T> {
    tangent: Array2<T>,
    dx: Array2<T>,
    ddy: Array2<T>,
    grad: Affine<T>,
}

impl<T: Number> All<T> {
    /// Each array in another layout; garbage is in the outputs.
    fn of<N: Norm<T>>(norm: &N, [x, dy, ddx]: [&Array2<T>; 3], affine: &Affine<T>, layout: usize) -> Self {
        let out = |at: usize| laid(&x.mapv(|_| T::of(f64::NAN)), layout * (at + 1));
        let [mut tangent, mut dx, mut ddy] = [0, 1, 2].map(out);
        let [x, dy, ddx] = [(x, 1), (dy, 2), (ddx, 3)].map(|(array, at)| laid(array, layout * at));
        let ((_, saved), mut grad) = (norm.forward(&x).unwrap(), norm.parameters());
        norm.jvp_into(&x, &saved, &ddx, affine, &mut tangent).unwrap();
        norm.double_backward_into(&x, &saved, &dy, &ddx, affine, &mut dx, &mut ddy, &mut grad).unwrap();
        Self { tangent, dx, ddy, grad }
    }

    fn bits(&self) -> [Vec<u64>; 4] {
        [bits(&self.tangent), bits(&self.dx), bits(&self.ddy), grad_bits(&self.grad)]
    }
}

fn the_bits_are_the_same_everywhere<T: Number, N: Norm<T>>() {
    for shape in SHAPES.into_iter().chain([[5100, 7]]) {
        let norm = N::drawn(&shape[1..]).eps(0.0);
        let (x, dy, ddx) = (extreme::<T>(shape, 1), drawn(shape, 2), drawn(shape, 3));
        let affine = direction(&norm, 4);
        let arrays = [&x, &dy, &ddx];
        let want = everywhere(&norm, shape, |norm| All::of(norm, arrays, &affine, 0).bits());
        assert!(want[0] == want[2], "{shape:?}: what arrives at dy is the tangent of y");
        for layout in 1..4 {
            assert!(All::of(&norm, arrays, &affine, layout).bits() == want, "{shape:?}, layout {layout}");
        }
        assert!(everywhere(&norm, shape, |norm| All::of(norm, arrays, &affine, 1).bits()) == want, "{shape:?} turned");
        for row in 0..shape[0].min(10) {
            let [x, dy, ddx] = arrays.map(|array| array.slice(s![row..row + 1, ..]).to_owned());
            let alone = All::of(&norm, [&x, &dy, &ddx], &affine, 0).bits();
            for (alone, want) in alone[..3].iter().zip(&want) {
                assert!(*alone == want[row * shape[1]..][..shape[1]], "{shape:?}, row {row} alone");
            }
        }
    }
}

/// f32 beside f64 on the same numbers, with u = 2^-24 and R = n/16 + 16 roundings at most of a sum (see tests/lean.rs):
///
/// * x̂ is off by R·u·(|x̂| + 1) =: R·u·a, where the 1 is the mean's part; r by R·u/2 of itself, as a root is.
/// * P(t) is off by 3R·u·p(t), p(t) = r·(|t| + mean|t| + a·mean(|t|·a)): r³ has 3/2·R, the sum R, x̂ the rest.
/// * dx is off by 6R·u of its terms' sizes, each a product of two of those.
/// * dgain adds P(X) of at most 64 rows in f32.
fn f32_is_near_f64<T: Number, N: Norm<f32> + Both>() {
    for (shape, mean) in
        [([5, 1], 1e3), ([5, 3], 1e3), ([70, 64], 1e3), ([70, 64], 1e5), ([9, 3000], 1e3), ([9, 3000], 1e5)]
    {
        let n = shape[1];
        let norm = N::drawn(&shape[1..]);
        let x = drawn::<f32, _>(shape, 1).mapv(|x| x * 3.0 + mean as f32);
        let (dy, ddx, affine) = (drawn(shape, 2), drawn(shape, 3), direction(&norm, 4));
        let got = All::of(&norm, [&x, &dy, &ddx], &affine, 0);
        let double = N::Double::drawn(&shape[1..]).gain(widened(norm.parameters().gain(), n));
        let double = double.bias(widened(norm.parameters().bias(), n));
        let wide_affine = double.clone().gain(widened(affine.gain(), n)).bias(widened(affine.bias(), n)).parameters();
        let [x, dy, ddx] = [wide(&x), wide(&dy), wide(&ddx)];
        let want = All::of(&double, [&x, &dy, &ddx], &wide_affine, 0);
        let (y, saved) = double.clone().without_parameters().forward(&x).unwrap();
        let rstd = N::Double::rstd(&saved);
        let (gain, along_gain, along_bias) =
            (flat(norm.parameters().gain(), n), flat(affine.gain(), n), flat(affine.bias(), n));
        let mut of_dgain = Array1::<f64>::zeros(n);
        let ru = (n.div_ceil(16).min(128) + 16) as f64 * rounding::<f32>();
        for row in 0..shape[0] {
            let (r, a) = (rstd[row], y.row(row).mapv(|x| x.abs() + 1.0));
            let mean = |t: &Array1<f64>| t.sum() / n as f64;
            let size = |t: &Array1<f64>| (t + mean(t) + &a * mean(&(t * &a))) * r;
            let abs = |t: Array1<f64>| t.mapv(f64::abs);
            let (along, dy) = (abs(ddx.row(row).to_owned()), abs(dy.row(row).to_owned()));
            let (q, u) = (abs(&gain * &dy), abs(&along_gain * &dy));
            let (alpha, gamma) = (mean(&(&along * &a)), mean(&(&q * &a)));
            let product = mean(&(&along * &q)) + mean(&along) * mean(&q) + alpha * gamma;
            let tangent = abs(gain.clone()) * size(&along) + abs(along_gain.clone()) * &a + abs(along_bias.clone());
            let dx = size(&u) + (size(&along) * gamma + size(&q) * alpha) * r + &a * (r * r * product);
            let near = |name: &str, got: &Array2<f32>, want: &Array2<f64>, bound: Array1<f64>| {
                for i in 0..n {
                    let (got, want, bound) = (f64::from(got[[row, i]]), want[[row, i]], bound[i]);
                    assert!((got - want).abs() <= bound, "{name}, {shape:?}, [{row}, {i}]: {got}, {want}, {bound:e}");
                }
            };
            of_dgain = of_dgain + dy * size(&along);
            near("tangent", &got.tangent, &want.tangent, tangent.clone() * (3.0 * ru));
            near("ddy", &got.ddy, &want.ddy, tangent * (3.0 * ru));
            near("dx", &got.dx, &want.dx, dx * (6.0 * ru));
        }
        let (got, want) = (flat(got.grad.gain(), n), flat(want.grad.gain(), n));
        let bound = (of_dgain + gain.mapv(f64::abs)) * (3.0 * ru + 66.0 * rounding::<f32>());
        for i in 0..n {
            assert!((got[i] - want[i]).abs() <= bound[i], "dgain, {shape:?}, {i}: {}, {}", got[i], want[i]);
        }
    }
}

/// The norm of f64 that belongs to one of f32.
trait Both {
    type Double: Norm<f64>;
}

impl Both for LayerNorm<f32> {
    type Double = LayerNorm<f64>;
}

impl Both for RmsNorm<f32> {
    type Double = RmsNorm<f64>;
}

fn widened(values: Option<ArrayViewD<'_, f32>>, features: usize) -> ArrayD<f64> {
    flat(values, features).into_dyn()
}

fn a_power_of_two_stays_one<T: Number, N: Norm<f32>>() {
    for shape in [[5, 1], [5, 7], [70, 64], [3, 3000]] {
        let norm = N::drawn(&shape[1..]).eps(0.0);
        let (x, dy, affine) = (drawn(shape, 1), drawn(shape, 2), direction(&norm, 4));
        // A direction of the size of x: what is without units stays. Along x itself, nothing cancels in the sums.
        for (direction, ddx) in [("some", drawn(shape, 3)), ("its own", x.clone())] {
            let want = All::of(&norm, [&x, &dy, &ddx], &affine, 0);
            for exponent in [-100, -70, -20, 1, 20, 70, 120] {
                let scale = 2f32.powi(exponent);
                let got = All::of(&norm, [&(&x * scale), &dy, &(&ddx * scale)], &affine, 0);
                let [tangent, dx, ddy, grad] = All { dx: &got.dx * scale, ..got }.bits();
                let place = format!("{shape:?}, 2^{exponent}, along {direction} direction");
                assert!(tangent == bits(&want.tangent) && ddy == bits(&want.ddy), "{place}");
                assert!(grad == grad_bits(&want.grad), "{place}: grad");
                // Beyond, what is left of terms that cancel in dx is subnormal.
                assert!(exponent.abs() > 70 || dx == bits(&want.dx), "{place}: dx");
            }
        }
    }
}

/// In any layout, also where all rows are one run of memory with gaps.
fn rows_of_two_axes_are_rows<T: Number, N: Norm<T>>() {
    let (norm, of_rows) = (N::drawn(&[3, 5]), N::drawn(&[15]));
    let cube = |rows: &Array2<T>| Array3::from_shape_vec((4, 3, 5), rows.iter().copied().collect()).unwrap();
    let (x, dy, ddx) = (drawn([4, 15], 1), drawn([4, 15], 2), drawn([4, 15], 3));
    let want = All::of(&of_rows, [&x, &dy, &ddx], &direction(&of_rows, 4), 0).bits();
    let (affine, [x, dy, ddx]) = (direction(&norm, 4), [&x, &dy, &ddx].map(cube));
    for layout in 0..5 {
        let out = || laid(&x.mapv(|_| T::of(f64::NAN)), layout);
        let ([mut tangent, mut dx, mut ddy], mut grad) = ([out(), out(), out()], norm.parameters());
        let [x, dy, ddx] = [&x, &dy, &ddx].map(|array| laid(array, layout));
        let (_, saved) = norm.forward(&x).unwrap();
        norm.jvp_into(&x, &saved, &ddx, &affine, &mut tangent).unwrap();
        norm.double_backward_into(&x, &saved, &dy, &ddx, &affine, &mut dx, &mut ddy, &mut grad).unwrap();
        assert!([bits(&tangent), bits(&dx), bits(&ddy), grad_bits(&grad)] == want, "layout {layout}");
    }
}

/// The gradient of ½|dx|², whose terms have up to four factors of rstd: where it is a number in f32, so is what it is made of.
fn a_penalty_on_the_gradient_has_one_at_any_scale<T: Number, N: Norm<f32> + Both>() {
    let shape = [3, 40];
    let (norm, double) = (N::drawn(&shape[1..]).eps(0.0), N::Double::drawn(&shape[1..]).eps(0.0));
    let double = double.gain(widened(norm.parameters().gain(), 40));
    let mut still = norm.parameters();
    still.fill_zero();
    let mut still_double = double.parameters();
    still_double.fill_zero();
    for (of_x, of_dy) in [(1e-9, 20.0), (1e8, 1e-5)] {
        let (x, dy) = (drawn::<f32, _>(shape, 1) * of_x, drawn::<f32, _>(shape, 2) * of_dy);
        let (wide_x, wide_dy) = (wide(&x), wide(&dy));
        let (_, saved) = double.forward(&wide_x).unwrap();
        let ddx = double.backward(&wide_x, &saved, &wide_dy, &mut double.parameters()).unwrap();
        let want = All::of(&double, [&wide_x, &wide_dy, &ddx], &still_double, 0).dx;
        let got = All::of(&norm, [&x, &dy, &ddx.mapv(|x| x as f32)], &still, 0).dx;
        let largest = want.iter().fold(0.0, |largest: f64, dx| largest.max(dx.abs()));
        let near = got.iter().zip(&want).all(|(got, want)| (f64::from(*got) - want).abs() < 1e-5 * largest);
        assert!(largest > 0.0 && near, "{of_x:e}, {of_dy:e}: {got}\n{want}");
    }
}

/// 2^-e of such a row is no f32. The sums over X, of about 2^-131, are good to 18 bits.
fn a_subnormal_row_has_a_tangent<T: Number, N: Norm<f32>>() {
    let norm = N::drawn(&[40]).eps(0.0);
    let whole = |seed| drawn::<f32, _>([3, 40], seed).mapv(|x| (x * 64.0).round());
    let (x, along, affine) = (whole(1), whole(2), direction(&norm, 4));
    let tangent = |scale: f32| {
        let x = &x * scale;
        norm.jvp(&x, &norm.forward(&x).unwrap().1, &(&along * scale), &affine).unwrap()
    };
    let (got, want) = (tangent(2f32.powi(-140)), tangent(1.0));
    let largest = want.iter().fold(0.0, |largest: f32, y| largest.max(y.abs()));
    let near = got.iter().zip(&want).all(|(got, want)| (got - want).abs() <= 40.0 * 2f32.powi(-18) * largest);
    assert!(near, "{got}\n{want}");
}

/// Beside Σ dy·P(X), where P(X) is the jvp of a layer without parameters: at most 64 terms are added in T, each a
/// product with its rounding.
fn dgain_adds_up<T: Number, N: Norm<T>>() {
    for shape in [[64, 33], [65, 33], [200, 9], [5100, 20]] {
        let norm = N::drawn(&shape[1..]);
        let (x, dy, ddx) = (drawn(shape, 1), drawn::<T, _>(shape, 2), drawn(shape, 3));
        let ((_, saved), mut grad) = (norm.forward(&x).unwrap(), norm.parameters());
        let plain = norm.clone().without_parameters();
        let p = wide(&plain.jvp(&x, &saved, &ddx, &plain.parameters()).unwrap()) * wide(&dy);
        let affine = direction(&norm, 4);
        for times in 1..3 {
            let before = flat(grad.gain(), shape[1]);
            norm.double_backward(&x, &saved, &dy, &ddx, &affine, &mut grad).unwrap();
            let got = flat(grad.gain(), shape[1]);
            for i in 0..shape[1] {
                let (sum, size) =
                    p.column(i).fold((before[i], 2.0 * before[i].abs()), |(sum, size), p| (sum + p, size + p.abs()));
                let bound = 68.0 * rounding::<T>() * size;
                assert!((got[i] - sum).abs() <= bound, "{shape:?}, {i}, {times}: got {}, want {sum}", got[i]);
            }
        }
        assert_eq!(grad.bias(), norm.parameters().bias());
    }
}

fn constant_rows_are_flat<T: Number, N: Norm<T>>() {
    for features in [1, 20] {
        let norm = N::drawn(&[features]).eps(0.0);
        let centred = norm.parameters().bias().is_some();
        let x = Array2::from_elem((70, features), T::of(if centred { 3.0 } else { 0.0 }));
        let (dy, ddx, affine) = (drawn([70, features], 2), drawn([70, features], 3), direction(&norm, 4));
        let all = All::of(&norm, [&x, &dy, &ddx], &affine, 0);
        assert_eq!(all.dx, Array2::zeros((70, features)));
        let bias = affine.bias().map_or(ArrayD::zeros(IxDyn(&[features])), |bias| bias.to_owned());
        let want = bias.broadcast((70, features)).unwrap().to_owned();
        assert_eq!([all.tangent, all.ddy], [want.clone(), want]);
        assert_eq!(all.grad, norm.parameters());
    }
}

fn nan_stays_in_its_row<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[40]);
    let (mut x, mut dy, ddx) = (drawn::<T, _>([80, 40], 1), drawn::<T, _>([80, 40], 2), drawn::<T, _>([80, 40], 3));
    let affine = direction(&norm, 4);
    let want = All::of(&norm, [&x, &dy, &ddx], &affine, 0);
    (x[[7, 3]], x[[66, 39]], dy[[20, 1]]) = (T::of(f64::NAN), T::of(f64::INFINITY), T::of(f64::NAN));
    let got = All::of(&norm, [&x, &dy, &ddx], &affine, 0);
    for (name, got, want) in
        [("ẏ", &got.tangent, &want.tangent), ("dx", &got.dx, &want.dx), ("ddy", &got.ddy, &want.ddy)]
    {
        for row in 0..80 {
            if [7, 66].contains(&row) || row == 20 && name == "dx" {
                assert!(got.row(row).iter().all(|value| value.is_nan()), "{name}, row {row}");
            } else {
                assert_eq!(got.row(row), want.row(row), "{name}, row {row}");
            }
        }
    }
}

fn mistakes_are_named_and_nothing_is_written<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[4]);
    let arguments = ["x x_tangent y_tangent saved tangent", "x dy ddx dx ddy saved dgrad grad"];
    for wrong in ["x", "x_tangent", "y_tangent", "dy", "ddx", "dx", "ddy", "saved", "tangent", "dgrad", "grad"] {
        for (call, arguments) in arguments.into_iter().enumerate() {
            let array = |name: &str| Array2::from_elem(if name == wrong { (3, 2) } else { (2, 4) }, T::of(7.0));
            let affine = |name: &str| N::drawn(if name == wrong { &[3] } else { &[4] }).parameters();
            let (_, saved) = norm.forward(&Array2::zeros((if wrong == "saved" { 3 } else { 2 }, 4))).unwrap();
            let [x, x_tangent, dy, ddx] = ["x", "x_tangent", "dy", "ddx"].map(array);
            let [mut y_tangent, mut dx, mut ddy] = ["y_tangent", "dx", "ddy"].map(array);
            let mut grad = affine("grad");
            let result = match call {
                0 => norm.jvp_into(&x, &saved, &x_tangent, &affine("tangent"), &mut y_tangent),
                _ => norm.double_backward_into(&x, &saved, &dy, &ddx, &affine("dgrad"), &mut dx, &mut ddy, &mut grad),
            };
            assert_eq!(result.is_err(), arguments.split(' ').any(|argument| argument == wrong), "{wrong}: {arguments}");
            let Err(error) = result else { continue };
            let text = match wrong {
                "x" => "`x` must have shape [_, 4], but has [3, 2]",
                "saved" => {
                    "`saved` must come from a forward call on an `x` of shape [2, 4], but comes from one on [3, 4]"
                }
                "tangent" | "dgrad" | "grad" => &format!("`{wrong}` must have a gain of shape [4], but has one of [3]"),
                _ => &format!("`{wrong}` must have shape [2, 4], but has [3, 2]"),
            };
            assert_eq!(error.to_string(), text);
            assert!([y_tangent, dx, ddy].iter().flatten().all(|&value| value == T::of(7.0)), "{wrong}");
            assert_eq!(grad, affine("grad"), "{wrong}");
        }
    }
    // A direction for a parameter that the layer has not.
    let (x, bare) = (Array2::zeros((2, 4)), norm.clone().without_parameters());
    let (_, saved) = bare.forward(&x).unwrap();
    let text = bare.jvp(&x, &saved, &x, &norm.parameters()).unwrap_err().to_string();
    assert_eq!(text, "`tangent` must have no gain, as the layer has none, but has one");
}

fn no_rows_change_nothing<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[4]);
    let none = Array3::<T>::zeros((2, 0, 4));
    let ((_, saved), mut grad, affine) = (norm.forward(&none).unwrap(), norm.parameters(), direction(&norm, 1));
    assert_eq!(norm.jvp(&none, &saved, &none, &affine).unwrap(), none);
    norm.double_backward(&none, &saved, &none, &none, &affine, &mut grad).unwrap();
    assert_eq!(grad, norm.parameters());
}

/// As with a gain of 1 and a bias of 0 that do not move.
fn parameters_may_be_missing<T: Number, N: Norm<T>>() {
    let (shape, ones) = ([70, 33], ArrayD::ones(IxDyn(&[33])));
    let (x, dy, ddx) = (drawn(shape, 1), drawn(shape, 2), drawn(shape, 3));
    let (norm, bare) =
        (N::drawn(&[33]).gain(ones).bias(ArrayD::zeros(IxDyn(&[33]))), N::drawn(&[33]).without_parameters());
    let mut still = norm.parameters();
    still.fill_zero();
    let want = All::of(&norm, [&x, &dy, &ddx], &still, 0);
    let got = All::of(&bare, [&x, &dy, &ddx], &bare.parameters(), 0);
    assert_eq!([got.tangent, got.dx, got.ddy], [want.tangent, want.dx, want.ddy]);
    assert!(got.grad.gain().is_none() && got.grad.bias().is_none());
}
