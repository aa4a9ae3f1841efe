//! A residual connection is its parts: the bits of a sum by ndarray, `forward`, `backward`, another sum and a product.
//!
//! In every layout, at any scale, on each instruction set and on threads; and its gradients are slopes.

mod common;

use common::{Norm, Number, SHAPES, bits, drawn, everywhere, extreme, grad_bits, laid, tests_of_both};
use layernorm::grad_check;
use layernorm::ndarray::{Array, Array2, Array3, ArrayD, Dimension, Ix3};

tests_of_both! {
    f32: a_block_has_the_bits_of_its_parts what_comes_from_memory_as_well few_long_rows_as_well
        three_axes_as_well broadcast_arrays_as_well nan_stays_in_its_row mistakes_are_named_and_nothing_is_written
        no_rows_change_nothing;
    f64: a_block_has_the_bits_of_its_parts what_comes_from_memory_as_well three_axes_as_well gradients_are_slopes;
}

/// What goes into a block.
struct Inputs<T, D> {
    x: Array<T, D>,
    residual: Array<T, D>,
    mask: Option<Array<T, D>>,
    dy: Array<T, D>,
    dsum: Option<Array<T, D>>,
}

/// sum, y, dx and dresidual, one behind the other; saved; dgain and dbias.
type All = (Vec<u64>, String, Vec<u64>);

fn half_kept<T: Number>(mask: T) -> T {
    // One of three is dropped.
    if mask.into().abs() < 0.43 { T::of(0.0) } else { T::of(1.5) }
}

impl<T: Number, D: Dimension> Inputs<T, D> {
    fn drawn(x: Array<T, D>, masked: bool, prenorm: bool) -> Self {
        let more = |seed| drawn(x.raw_dim(), seed);
        Self {
            residual: more(2),
            mask: masked.then(|| more(3).mapv(half_kept)),
            dy: more(4),
            dsum: prenorm.then(|| more(5)),
            x,
        }
    }

    /// Each array in another layout.
    fn turned(&self, turn: usize) -> Self {
        let turned = |array: &Array<T, D>, at: usize| laid(array, turn + at);
        Self {
            x: turned(&self.x, 0),
            residual: turned(&self.residual, 1),
            mask: self.mask.as_ref().map(|mask| turned(mask, 2)),
            dy: turned(&self.dy, 3),
            dsum: self.dsum.as_ref().map(|dsum| turned(dsum, 4)),
        }
    }

    /// Part by part.
    fn parts<N: Norm<T>>(&self, norm: &N) -> All {
        let product = self.mask.as_ref().map_or(self.x.clone(), |mask| mask * &self.x);
        let sum = product + &self.residual;
        let (y, saved) = norm.forward(&sum).unwrap();
        let mut grad = norm.parameters();
        let mut dresidual = norm.backward(&sum, &saved, &self.dy, &mut grad).unwrap();
        if let Some(dsum) = &self.dsum {
            dresidual += dsum;
        }
        let dx = self.mask.as_ref().map_or(dresidual.clone(), |mask| mask * &dresidual);
        let arrays = [&sum, &y, &dx, &dresidual];
        (bits(arrays.into_iter().flatten()), format!("{saved:?}"), grad_bits(&grad))
    }

    /// In one, into outputs each of another layout, or, for turn 0, all in standard layout.
    fn block<N: Norm<T>>(&self, norm: &N, turn: usize) -> All {
        self.block_into(norm, [1, 2, 3, 4].map(|at| turn * at))
    }

    /// In one, into sum, y, dx and dresidual of these layouts; garbage is in them.
    fn block_into<N: Norm<T>>(&self, norm: &N, layouts: [usize; 4]) -> All {
        let out = |layout: usize| laid(&Array::from_elem(self.x.raw_dim(), T::of(f64::NAN)), layout);
        let [mut sum, mut y, mut dx, mut dresidual] = layouts.map(out);
        let (mut saved, mut grad) = (N::Saved::default(), norm.parameters());
        let Self { x, residual, mask, dy, dsum } = self;
        let dsum = dsum.as_deref();
        if let Some(mask) = mask {
            norm.forward_dropout_residual_into(x, mask, residual, &mut y, &mut sum, &mut saved).unwrap();
            norm.backward_dropout_residual_into(&sum, &saved, dy, dsum, mask, &mut dx, &mut dresidual, &mut grad)
                .unwrap();
        } else {
            norm.forward_residual_into(x, residual, &mut y, &mut sum, &mut saved).unwrap();
            norm.backward_residual_into(&sum, &saved, dy, dsum, &mut dx, &mut grad).unwrap();
            dresidual.assign(&dx);
        }
        let arrays = [&sum, &y, &dx, &dresidual];
        (bits(arrays.into_iter().flatten()), format!("{saved:?}"), grad_bits(&grad))
    }
}

/// With and without a mask, and a gradient at the sum.
const KINDS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

fn a_block_has_the_bits_of_its_parts<T: Number, N: Norm<T>>() {
    for shape in SHAPES {
        let norm = N::drawn(&shape[1..]).eps(0.0);
        for (masked, prenorm) in KINDS {
            let mut inputs = Inputs::drawn(extreme(shape, 1), masked, prenorm);
            inputs.residual = extreme(shape, 2);
            let want = inputs.parts(&norm);
            let place = |turn: usize| format!("{shape:?}, masked {masked}, prenorm {prenorm}, turn {turn}");
            let got = everywhere(&norm, shape, |norm| inputs.block(norm, 0));
            assert!(got.0 == want.0, "{}", place(0));
            for turn in 1..6 {
                let turned = inputs.turned(turn);
                assert!(turned.block(&norm, turn / 2) == want, "{}", place(turn));
            }
            if masked != prenorm {
                continue;
            }
            let turned = inputs.turned(1);
            assert!(everywhere(&norm, shape, |norm| turned.block(norm, 1)) == want, "{}, everywhere", place(1));
        }
    }
}

/// Rows whose columns threads share out, forward too.
fn few_long_rows_as_well<T: Number, N: Norm<T>>() {
    for shape in [[1, 300_000], [2, 200_000]] {
        let norm = N::drawn(&shape[1..]);
        for (masked, prenorm) in KINDS {
            let inputs = Inputs::drawn(drawn(shape, 1), masked, prenorm);
            let got = everywhere(&norm, shape, |norm| inputs.block(norm, 0));
            assert!(got == inputs.parts(&norm), "{shape:?}, masked {masked}, prenorm {prenorm}");
        }
    }
    // One array of another layout than all others.
    let shape = [1, 300_000];
    let (norm, inputs) = (N::drawn(&shape[1..]), Inputs::drawn(drawn(shape, 1), true, true));
    let want = inputs.parts(&norm);
    for odd in 0..9 {
        let turned = |array: &Array2<T>, at: usize| laid(array, if odd == at { 3 } else { 0 });
        let inputs = Inputs {
            x: turned(&inputs.x, 0),
            residual: turned(&inputs.residual, 1),
            mask: inputs.mask.as_ref().map(|mask| turned(mask, 2)),
            dy: turned(&inputs.dy, 3),
            dsum: inputs.dsum.as_ref().map(|dsum| turned(dsum, 4)),
        };
        let layouts = [5, 6, 7, 8].map(|at| if odd == at { 3 } else { 0 });
        let got = everywhere(&norm, shape, |norm| inputs.block_into(norm, layouts));
        assert!(got == want, "{shape:?}, array {odd} of another layout");
    }
}

/// More than the caches hold, where rows are taken one by one or block by block; one of them has to be rescaled.
fn what_comes_from_memory_as_well<T: Number, N: Norm<T>>() {
    for shape in [[8000, 130], [700, 1700], [301, 4100]] {
        let norm = N::drawn(&shape[1..]);
        for (masked, prenorm) in KINDS {
            let mut inputs = Inputs::drawn(drawn(shape, 1), masked, prenorm);
            assert!(inputs.block(&norm, 0) == inputs.parts(&norm), "{shape:?}, {masked}, {prenorm}");
            inputs.residual.row_mut(shape[0] / 2).mapv_inplace(|residual| residual * T::of(1e30));
            assert!(inputs.block(&norm, 0) == inputs.parts(&norm), "{shape:?}, {masked}, {prenorm}, rescaled");
        }
    }
}

fn three_axes_as_well<T: Number, N: Norm<T>>() {
    for (shape, trailing) in [([4, 8, 96], 1), ([70, 3, 25], 2), ([3, 33, 10], 1)] {
        let norm = N::drawn(&shape[3 - trailing..]);
        for (masked, prenorm) in KINDS {
            let inputs = Inputs::drawn(drawn(Ix3(shape[0], shape[1], shape[2]), 1), masked, prenorm);
            let want = inputs.parts(&norm);
            for turn in 0..5 {
                assert!(inputs.turned(turn).block(&norm, turn / 2) == want, "{shape:?}, {masked}, {prenorm}, {turn}");
            }
        }
    }
}

/// A row, or a column, that is the same all over.
fn broadcast_arrays_as_well<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[40]);
    let (x, row) = (drawn::<T, _>([70, 40], 1), drawn::<T, _>(40, 2));
    let column = drawn::<T, _>([70, 1], 3);
    let (rows, columns) = (row.broadcast((70, 40)).unwrap(), column.broadcast((70, 40)).unwrap());
    let (y, sum, saved) = norm.forward_dropout_residual(&x, &columns, &rows).unwrap();
    let (same_y, same_sum, same) = norm.forward_dropout_residual(&x, &columns.to_owned(), &rows.to_owned()).unwrap();
    assert_eq!((y, &sum), (same_y, &same_sum));
    assert_eq!(format!("{saved:?}"), format!("{same:?}"));
    let mut grads = [norm.parameters(), norm.parameters()];
    let dx = norm.backward_dropout_residual(&sum, &saved, &rows, Some(&columns), &columns, &mut grads[0]).unwrap();
    let (rows, columns) = (rows.to_owned(), columns.to_owned());
    let same = norm.backward_dropout_residual(&sum, &saved, &rows, Some(&columns), &columns, &mut grads[1]).unwrap();
    assert_eq!(dx, same);
    assert_eq!(grads[0], grads[1]);
}

fn nan_stays_in_its_row<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[40]);
    let mut inputs = Inputs::drawn(drawn([80, 40], 1), true, true);
    let calls = |inputs: &Inputs<T, _>| {
        let Inputs { x, residual, mask, dy, dsum } = inputs;
        let mask = mask.as_ref().unwrap();
        let (y, sum, saved) = norm.forward_dropout_residual(x, mask, residual).unwrap();
        let grad = &mut norm.parameters();
        let (_, dresidual) = norm.backward_dropout_residual(&sum, &saved, dy, dsum.as_deref(), mask, grad).unwrap();
        [y, dresidual]
    };
    let want = calls(&inputs);
    inputs.x[[7, 3]] = T::of(f64::NAN);
    inputs.residual[[66, 39]] = T::of(f64::INFINITY);
    // Dropout is a product: it does not hide what is not a number.
    inputs.mask.as_mut().unwrap()[[7, 3]] = T::of(0.0);
    for (got, want) in calls(&inputs).iter().zip(&want) {
        for (row, (got, want)) in got.outer_iter().zip(want.outer_iter()).enumerate() {
            if row == 7 || row == 66 {
                assert!(got.iter().all(|value| value.is_nan()), "row {row}");
            } else {
                assert_eq!(got, want, "row {row}");
            }
        }
    }
}

/// Of the loss Σ y·dy + Σ sum·dsum, by differences of fourth order: see [`grad_check::slopes`].
fn gradients_are_slopes<T: Number, N: Norm<f64>>() {
    for (shape, eps) in [([3, 20], 0.0), ([2, 100], 0.5), ([70, 4], 0.1)] {
        let norm = N::drawn(&shape[1..]).eps(eps);
        for (masked, prenorm) in KINDS {
            let inputs = Inputs::drawn(drawn(shape, 1), masked, prenorm);
            let Inputs { x, residual, mask, dy, dsum } = &inputs;
            let ones = Array2::ones(shape);
            let (mask, zeros) = (mask.as_ref().unwrap_or(&ones), Array2::zeros(shape));
            let loss = |norm: &N, x: &Array2<f64>, residual: &Array2<f64>| {
                let (y, sum, _) = norm.forward_dropout_residual(x, mask, residual).unwrap();
                (y * dy).sum() + (sum * dsum.as_ref().unwrap_or(&zeros)).sum()
            };
            let (_, sum, saved) = norm.forward_dropout_residual(x, mask, residual).unwrap();
            let mut grad = norm.parameters();
            grad.fill_zero();
            let dsum = dsum.as_deref();
            let (dx, dresidual) = norm.backward_dropout_residual(&sum, &saved, dy, dsum, mask, &mut grad).unwrap();
            let near = |name: &str, worst: grad_check::Worst| {
                assert!(
                    worst.error < 1e-8,
                    "{name}, {shape:?}, eps {eps}, masked {masked}, prenorm {prenorm}: {worst:?}"
                );
            };
            near("dx", grad_check::compare(x, &dx, |x| loss(&norm, x, residual)));
            near("dresidual", grad_check::compare(residual, &dresidual, |residual| loss(&norm, x, residual)));
            let parameters = norm.parameters();
            let of_gain = |gain: &ArrayD<f64>| loss(&norm.clone().gain(gain.clone()), x, residual);
            near("dgain", grad_check::compare(&parameters.gain().unwrap(), &grad.gain().unwrap(), of_gain));
            if let (Some(bias), Some(dbias)) = (parameters.bias(), grad.bias()) {
                let of_bias = |bias: &ArrayD<f64>| loss(&norm.clone().bias(bias.clone()), x, residual);
                near("dbias", grad_check::compare(&bias, &dbias, of_bias));
            }
        }
    }
}

fn mistakes_are_named_and_nothing_is_written<T: Number, N: Norm<T>>() {
    const ARGUMENTS: [&str; 4] = [
        "x residual y sum",
        "x mask residual y sum",
        "sum dy dsum dx saved grad",
        "sum dy dsum mask dx dresidual saved grad",
    ];
    let norm = N::drawn(&[4]);
    let of = |rows| norm.forward(&Array2::zeros((rows, 4))).unwrap().1;
    for wrong in ["x", "mask", "residual", "y", "sum", "dy", "dsum", "dx", "dresidual", "saved", "grad"] {
        for (call, arguments) in ARGUMENTS.into_iter().enumerate() {
            let shape = |name: &str| if name == wrong { (3, 2) } else { (2, 4) };
            let array = |name: &str| Array2::from_elem(shape(name), T::of(7.0));
            let [x, mask, residual, dy, dsum] = ["x", "mask", "residual", "dy", "dsum"].map(array);
            let [mut y, mut sum, mut dx, mut dresidual] = ["y", "sum", "dx", "dresidual"].map(array);
            let mut saved = if wrong == "saved" { of(3) } else { of(2) };
            let mut grad = N::drawn(if wrong == "grad" { &[3] } else { &[4] }).parameters();
            let before = (format!("{saved:?}"), grad.clone());
            let (dsum, kept) = (Some(&*dsum), saved.clone());
            let result = match call {
                0 => norm.forward_residual_into(&x, &residual, &mut y, &mut sum, &mut saved),
                1 => norm.forward_dropout_residual_into(&x, &mask, &residual, &mut y, &mut sum, &mut saved),
                2 => norm.backward_residual_into(&sum, &kept, &dy, dsum, &mut dx, &mut grad),
                _ => norm.backward_dropout_residual_into(
                    &sum,
                    &kept,
                    &dy,
                    dsum,
                    &mask,
                    &mut dx,
                    &mut dresidual,
                    &mut grad,
                ),
            };
            assert_eq!(result.is_err(), arguments.split(' ').any(|argument| argument == wrong), "{wrong}: {arguments}");
            let Err(error) = result else { continue };
            let text = match wrong {
                "saved" => {
                    "`saved` must come from a forward call on an `x` of shape [2, 4], but comes from one on [3, 4]"
                }
                "grad" => "`grad` must have a gain of shape [4], but has one of [3]",
                _ if arguments.starts_with(wrong) => &format!("`{wrong}` must have shape [_, 4], but has [3, 2]"),
                _ => &format!("`{wrong}` must have shape [2, 4], but has [3, 2]"),
            };
            assert_eq!(error.to_string(), text, "{arguments}");
            assert!([y, sum, dx, dresidual].iter().flatten().all(|&value| value == T::of(7.0)), "{wrong}: {arguments}");
            assert_eq!((format!("{saved:?}"), grad), before, "{wrong}: {arguments}");
        }
    }
}

fn no_rows_change_nothing<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[4]);
    let none = Array3::<T>::zeros((2, 0, 4));
    let (y, sum, saved) = norm.forward_residual(&none, &none).unwrap();
    assert_eq!([&y, &sum], [&none, &none]);
    let mut grad = norm.parameters();
    let (dx, dresidual) = norm.backward_dropout_residual(&sum, &saved, &none, None, &none, &mut grad).unwrap();
    assert_eq!([dx, dresidual], [none.clone(), none]);
    assert_eq!(grad, norm.parameters());
}
