//! Weight normalization keeps what the other layers promise: right beside the double-double oracle, slopes, the same bits
//! everywhere, any scale, and errors before anything is written.

#[path = "common/number.rs"]
mod number;

use allocation_counter::measure;
use layernorm::ndarray::{Array, Array1, Array2, Array3, arr0, array, s};
use layernorm::{Affine, Error, Parameters, WeightNorm, WeightSaved, grad_check, instruction_sets};
use number::{Number, bits, drawn};
use textbook::{Double, rms_forward};

/// How near a result must be.
trait Bounds: Number {
    /// w, dv and dgain: roundings of rstd, x̂, c and their product; of each factor, the products and the difference; of 3
    /// factors and of the sum, whose blocks are added in this type. Each times 6e-8, or 1.1e-16.
    const BOUNDS: [f64; 3];
    /// dv and dgain whatever the numbers: of equal ones, 128 additions in a lane are off by 65 times that.
    const ANY: f64;
    /// Rows times 2^-LAST to 2^LAST give the same bits.
    const LAST: i32;
}

impl Bounds for f32 {
    const BOUNDS: [f64; 3] = [2.5e-7, 5e-7, 5e-7];
    const ANY: f64 = 5e-6;
    const LAST: i32 = 100;
}

impl Bounds for f64 {
    const BOUNDS: [f64; 3] = [6e-16, 1e-15, 1e-15];
    const ANY: f64 = 1e-14;
    const LAST: i32 = 900;
}

fn layer<T: Number>(outputs: usize) -> WeightNorm<T> {
    WeightNorm::new(outputs).with_gain(drawn(outputs, 101)).unwrap()
}

/// w, dv and dgain.
fn all<T: Number>(norm: &WeightNorm<T>, v: &Array2<T>, dw: &Array2<T>) -> [Vec<T>; 3] {
    let (w, saved) = norm.forward(v).unwrap();
    let mut grad = norm.zero_grad();
    let dv = norm.backward(v, &saved, dw, &mut grad).unwrap();
    assert!(grad.bias().is_none());
    [w.into_iter().collect(), dv.into_iter().collect(), grad.gain().unwrap().iter().copied().collect()]
}

fn is_right<T: Bounds>() {
    for columns in [1, 2, 15, 16, 17, 64, 130, 768, 2049, 5000, 50_000] {
        let rows = if columns > 1000 { 3 } else { 70 };
        let norm = layer::<T>(rows);
        let (v, dw) = (drawn::<T, _>([rows, columns], 1), drawn::<T, _>([rows, columns], 2));
        let [w, dv, dgain] = all(&norm, &v, &dw);
        for (row, dgain) in dgain.into_iter().enumerate() {
            let gain: f64 = norm.gain()[row].into();
            let wide = |values: &Array2<T>| values.row(row).iter().map(|&value| value.into()).collect::<Vec<f64>>();
            let (v, dw) = (wide(&v), wide(&dw));
            let unit = rms_forward(&v, None, 0.0);
            let root = Double::from(columns as f64).sqrt();
            let unit: Vec<_> = unit.xhat.iter().map(|&xhat| xhat / root).collect();
            let length = v.iter().fold(Double::ZERO, |sum, &v| sum + Double::product(v, v)).sqrt();
            let dot = unit.iter().zip(&dw).fold(Double::ZERO, |sum, (&unit, &dw)| sum + unit * dw);
            let absolute: f64 = unit.iter().zip(&dw).map(|(unit, dw)| (unit.to_f64() * dw).abs()).sum();
            let largest = dw.iter().fold(0.0, |largest: f64, dw| largest.max(dw.abs()));
            let check = |what: &str, at: usize, got: T, want: f64, scale: f64, bound: f64| {
                let error = (got.into() - want).abs() / scale;
                assert!(
                    error <= bound,
                    "{what}, {rows}×{columns}, {row}, {at}: got {got}, want {want}, error {error:.2e}"
                );
            };
            for j in 0..columns {
                let at = row * columns + j;
                let want = (unit[j] * gain).to_f64();
                check("w", j, w[at], want, want.abs(), T::BOUNDS[0]);
                let of_dw = Double::from(gain) / length;
                let want = (of_dw * (Double::from(dw[j]) - unit[j] * dot)).to_f64();
                check("dv", j, dv[at], want, (of_dw * largest).to_f64().abs(), T::BOUNDS[1]);
            }
            check("dgain", 0, dgain, dot.to_f64(), absolute, T::BOUNDS[2]);
        }
    }
}

/// Of equal numbers dv is 0, and w and dgain are as near as they can be.
fn is_right_of_equal_numbers<T: Bounds>() {
    for columns in [2, 17, 768, 1024, 2048, 5000] {
        for (v, dw) in [(1.0, 0.52666664), (0.7, 0.97666), (-1.3, 0.001)].map(|(v, dw)| (T::of(v), T::of(dw))) {
            let norm = WeightNorm::<T>::new(1);
            let arrays = [v, dw].map(|value| Array2::from_elem((1, columns), value));
            let [w, dv, dgain] = all(&norm, &arrays[0], &arrays[1]);
            let (v, dw, root): (f64, f64, f64) = (v.into(), dw.into(), (columns as f64).sqrt());
            for (w, dv) in w.into_iter().zip(dv) {
                let (w, dv): (f64, f64) = (w.into(), dv.into());
                assert!((w - v.signum() / root).abs() <= T::BOUNDS[0] / root, "w of {columns}: {w}");
                assert!(dv.abs() <= T::ANY * dw / (v.abs() * root), "dv of {columns}: {dv}");
            }
            let (got, want): (f64, f64) = (dgain[0].into(), v.signum() * dw * root);
            assert!((got - want).abs() <= T::ANY * want.abs(), "dgain of {columns}: {got}, want {want}");
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

#[test]
fn gradients_are_slopes() {
    for columns in [1, 2, 20, 300] {
        let (norm, v, dw) = (layer::<f64>(4), drawn::<f64, _>([4, columns], 1), drawn::<f64, _>([4, columns], 2));
        let loss = |norm: &WeightNorm<f64>, v: &Array2<f64>| (norm.forward(v).unwrap().0 * &dw).sum();
        let [_, dv, dgain] = all(&norm, &v, &dw);
        let dv = Array2::from_shape_vec((4, columns), dv).unwrap();
        if columns > 1 {
            let worst = grad_check::compare(&v, &dv, |v| loss(&norm, v));
            assert!(worst.error < 1e-8, "dv, {columns} columns: {worst:?}");
        } else {
            assert!(dv.iter().all(|dv| dv.abs() < 1e-15), "one column is a sign: {dv}");
        }
        let gain = Array1::from_iter(norm.gain().iter().copied());
        let worst = grad_check::compare(&gain, &Array1::from(dgain), |gain| {
            loss(&norm.clone().with_gain(gain.clone()).unwrap(), &v)
        });
        assert!(worst.error < 1e-8, "dgain, {columns} columns: {worst:?}");
    }
}

/// Alone, in another matrix, strided, on each instruction set, on threads.
fn same_bits<T: Number>() {
    for (rows, columns) in [(9, 3), (33, 64), (70, 100), (9, 2049), (8, 20_000), (3000, 130)] {
        let norm = layer::<T>(rows);
        let mut v = drawn::<T, _>([rows, columns], 1);
        // Squares that overflow, that underflow, and none.
        v.row_mut(1).mapv_inplace(|v| v * T::of(T::HUGE));
        v.row_mut(2).mapv_inplace(|v| v / T::of(T::HUGE));
        v.row_mut(0).fill(T::of(0.0));
        // Beside rows that are taken again, and beside none.
        (v[[3, 0]], v[[7, 1]]) = (T::of(-0.0), T::of(-0.0));
        let dw = drawn::<T, _>([rows, columns], 2);
        let want = all(&norm, &v, &dw);
        assert!(want.iter().flatten().all(|value| value.is_finite()), "{rows}×{columns}");
        let same = |got: [Vec<T>; 3], place: &str| {
            for (what, (got, want)) in ["w", "dv", "dgain"].iter().zip(got.iter().zip(&want)) {
                assert!(bits(got) == bits(want), "{what}, {rows}×{columns} {place}");
            }
        };
        for set in instruction_sets().into_iter().filter(|set| *set != "fallback" || rows * columns < 10_000) {
            same(all(&norm.clone().with_instruction_set(set).unwrap(), &v, &dw), set);
        }
        #[cfg(feature = "rayon")]
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            same(pool.install(|| all(&norm, &v, &dw)), "on threads");
        }
        let turned = |array: &Array2<T>| array.t().as_standard_layout().into_owned().reversed_axes();
        same(all(&norm, &turned(&v), &turned(&dw)), "turned");
        for row in 0..rows.min(8) {
            let alone = WeightNorm::new(1).with_gain(norm.gain().iter().copied().skip(row).take(1).collect()).unwrap();
            let part = |array: &Array2<T>| array.slice(s![row..row + 1, ..]).to_owned();
            let got = all(&alone, &part(&v), &part(&dw));
            assert!(bits(&got[0]) == bits(&want[0])[row * columns..][..columns], "{rows}×{columns}, row {row} alone");
            assert!(bits(&got[1]) == bits(&want[1])[row * columns..][..columns], "{rows}×{columns}, row {row} alone");
        }
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
    for columns in [5, 70, 3000] {
        let (norm, v, dw) = (layer::<T>(5), drawn::<T, _>([5, columns], 1), drawn::<T, _>([5, columns], 2));
        let [w, dv, dgain] = all(&norm, &v, &dw);
        for exponent in (-T::LAST..=T::LAST).step_by(10) {
            let scale = T::of(2f64.powi(exponent));
            let far_v = v.mapv(|v| v * scale);
            let [far_w, far_dv, far_dgain] = all(&norm, &far_v, &dw);
            let dv: Vec<_> = dv.iter().map(|&dv| dv / scale).collect();
            let place = format!("{columns} columns, 2^{exponent}");
            assert!(bits(&far_w) == bits(&w), "w, {place}");
            assert!(bits(&norm.infer(&far_v).unwrap()) == bits(&w), "infer, {place}");
            assert!(bits(&far_dv) == bits(&dv), "dv, {place}");
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
fn the_gradient_is_at_right_angles_to_v() {
    let (norm, v, dw) = (layer::<f64>(6), drawn::<f64, _>([6, 100], 1), drawn::<f64, _>([6, 100], 2));
    let [_, dv, _] = all(&norm, &v, &dw);
    for (row, (v, dv)) in v.outer_iter().zip(dv.chunks(100)).enumerate() {
        let (dot, absolute) =
            v.iter().zip(dv).fold((0.0, 0.0), |(dot, absolute), (v, dv)| (dot + v * dv, absolute + (v * dv).abs()));
        assert!(dot.abs() < 1e-15 * 10.0 * absolute, "row {row}: {dot:e} of {absolute:e}");
    }
}

#[test]
fn weights_come_back_from_their_lengths() {
    let mut weights = drawn::<f32, _>([4, 60], 3);
    weights.row_mut(2).fill(0.0);
    let norm = WeightNorm::of(&weights);
    assert_eq!(norm.gain()[2], 0.0);
    let (w, saved) = norm.forward(&weights).unwrap();
    for (got, want) in w.iter().zip(&weights) {
        assert!((got - want).abs() <= 4.0 * f32::EPSILON * want.abs(), "{got} {want}");
    }
    let dv = norm.backward(&weights, &saved, &Array::ones((4, 60)), &mut norm.zero_grad()).unwrap();
    assert!(dv.row(2).iter().all(|&dv| dv == 0.0), "a row of zeros stays where it is");
}

/// √n over a length is no `f32`, or a subnormal one. A gain/√n that is subnormal is off by half of the smallest number, of which
/// x̂ = 10 makes more.
#[test]
fn rows_of_a_length_at_either_end_have_it_as_gain() {
    let mut weights = Array2::<f32>::zeros((3, 100));
    (weights[[0, 7]], weights[[1, 7]], weights[[2, 7]]) = (1.2e-38, -1e-42, 3e38);
    for weights in [weights.clone(), weights.t().as_standard_layout().into_owned().reversed_axes()] {
        let norm = WeightNorm::of(&weights);
        assert_eq!(norm.gain().iter().copied().collect::<Vec<_>>(), [1.2e-38, 1e-42, 3e38]);
        for (got, want) in norm.infer(&weights).unwrap().iter().zip(&weights) {
            assert!(
                (got - want).abs() <= 4.0 * f32::EPSILON * want.abs() + 5.0 * f32::from_bits(1),
                "{got:e} {want:e}"
            );
        }
    }
    assert_eq!(WeightNorm::of(&array![[3e38_f32]]).gain()[0], 3e38);
    assert_eq!(WeightNorm::of(&arr0(1e-310_f64)).gain()[0], 1e-310);
}

#[test]
fn a_gain_is_taken_in_its_logical_order() {
    let turned = array![3.0_f32, 2.0, 1.0].slice_move(s![..;-1]);
    let norm = WeightNorm::new(3).with_gain(turned).unwrap();
    assert_eq!(norm.infer(&Array2::ones((3, 1))).unwrap(), array![[1.0], [2.0], [3.0]]);
}

#[test]
fn nan_stays_in_its_row_and_grad_is_added_to() {
    let norm = layer::<f32>(4);
    let (mut v, dw) = (drawn::<f32, _>([4, 30], 1), drawn::<f32, _>([4, 30], 2));
    let want = all(&norm, &v, &dw);
    v[[1, 7]] = f32::INFINITY;
    let (w, saved) = norm.forward(&v).unwrap();
    let mut grad = norm.zero_grad();
    grad.gain_mut().unwrap().fill(2.0);
    norm.backward(&v, &saved, &dw, &mut grad).unwrap();
    for row in 0..4 {
        let dgain = grad.gain().unwrap()[row];
        if row == 1 {
            assert!(w.row(row).iter().all(|w| w.is_nan()) && dgain.is_nan());
        } else {
            assert_eq!(w.row(row).to_vec(), want[0][row * 30..][..30]);
            assert_eq!(dgain, 2.0 + want[2][row]);
        }
    }
}

#[test]
fn more_axes_are_one_row_and_nothing_is_allocated_once_warm() {
    let norm = layer::<f32>(70);
    let flat = drawn::<f32, _>([70, 60], 1);
    let v = Array3::from_shape_vec((70, 4, 15), flat.iter().copied().collect()).unwrap();
    let (mut w, mut dv, mut saved, mut grad) = (v.clone(), v.clone(), WeightSaved::default(), norm.zero_grad());
    let mut calls = || {
        norm.forward_into(&v, &mut w, &mut saved).unwrap();
        norm.backward_into(&v, &saved, &v, &mut dv, &mut grad).unwrap();
        norm.infer_into(&v, &mut w).unwrap();
    };
    calls();
    assert_eq!(measure(calls).count_total, 0);
    assert_eq!(bits(&w), bits(&all(&norm, &flat, &flat)[0]));
}

/// Weights of a convolution, turned.
#[test]
fn rows_of_several_axes_may_have_any_strides() {
    let norm = layer::<f32>(70);
    let v = drawn::<f32, _>([4, 70, 15], 1).permuted_axes([1, 0, 2]);
    let dw = drawn::<f32, _>([70, 4, 15], 2);
    let all = |v: &Array3<f32>| {
        let (w, saved) = norm.forward(v).unwrap();
        let mut grad = norm.zero_grad();
        let dv = norm.backward(v, &saved, &dw, &mut grad).unwrap();
        bits(w.iter().chain(&dv).chain(grad.gain().unwrap()))
    };
    assert!(all(&v) == all(&v.as_standard_layout().into_owned()));
}

#[test]
fn mistakes_are_named_and_nothing_is_written() {
    let norm = WeightNorm::<f32>::new(2);
    let (v, mut w) = (Array2::ones((2, 4)), Array2::from_elem((2, 4), 7.0));
    let text = |result: layernorm::Result<()>| result.unwrap_err().to_string();
    let forward = |v: &Array2<f32>| norm.forward(v).map(drop);
    let (tall, shapes) = (Array2::ones((3, 2)), "`v` must have shape [2, ..], but has [3, 2]");
    let (mut out, of_tall) = (Array2::from_elem((3, 2), 7.0), WeightNorm::new(3).forward(&tall).unwrap().1);
    assert_eq!(text(forward(&tall)), shapes);
    assert_eq!(text(norm.infer_into(&tall, &mut out)), shapes);
    assert_eq!(text(norm.backward_into(&tall, &of_tall, &tall, &mut out, &mut norm.zero_grad())), shapes);
    assert_eq!(out, Array2::from_elem((3, 2), 7.0));
    let message = text(norm.backward_into(&v, &WeightSaved::default(), &v, &mut w, &mut norm.zero_grad()));
    assert_eq!(message, "`saved` must come from a forward call on a `v` of shape [2, 4], but no call has filled it");
    let (_, saved) = norm.forward(&v).unwrap();
    let mut other: Affine<f32> = layernorm::LayerNorm::new(2).zero_grad();
    let message = text(norm.backward_into(&v, &saved, &v, &mut w, &mut other));
    assert_eq!(message, "`grad` must have no bias, as the layer has none, but has one");
    let wrong = Array2::ones((2, 3));
    let message = text(norm.backward_into(&v, &saved, &wrong, &mut w, &mut norm.zero_grad()));
    assert_eq!(message, "`dw` must have shape [2, 4], but has [2, 3]");
    let (mut out, shapes) = (Array2::from_elem((4, 2), 7.0), "must have shape [2, 4], but has [4, 2]");
    assert_eq!(text(norm.forward_into(&v, &mut out, &mut WeightSaved::default())), format!("`w` {shapes}"));
    assert_eq!(text(norm.infer_into(&v, &mut out)), format!("`w` {shapes}"));
    assert_eq!(text(norm.backward_into(&v, &saved, &v, &mut out, &mut norm.zero_grad())), format!("`dv` {shapes}"));
    assert_eq!((w, out), (Array2::from_elem((2, 4), 7.0), Array2::from_elem((4, 2), 7.0)));
    assert!(matches!(WeightNorm::<f64>::new(3).with_gain(Array1::ones(2)), Err(Error::Shape { .. })));
}

#[test]
fn a_number_without_axes_is_one_row() {
    let v = arr0(-4.0_f32);
    let norm = WeightNorm::of(&v);
    let (w, saved) = norm.forward(&v).unwrap();
    let mut grad = norm.zero_grad();
    let dv = norm.backward(&v, &saved, &arr0(2.0), &mut grad).unwrap();
    assert_eq!((norm.gain()[0], w, dv, grad.gain().unwrap()[0]), (4.0, v, arr0(0.0), -2.0));
    let mistake = WeightNorm::new(2).forward(&arr0(1.0_f32)).unwrap_err().to_string();
    assert_eq!(mistake, "`v` must have shape [2, ..], but has []");
}

#[test]
fn no_rows_and_no_columns_are_fine() {
    for shape in [(0, 3), (3, 0)] {
        let norm = WeightNorm::<f32>::new(shape.0);
        let v = Array2::zeros(shape);
        let (w, saved) = norm.forward(&v).unwrap();
        let mut grad = norm.zero_grad();
        let dv = norm.backward(&v, &saved, &v, &mut grad).unwrap();
        assert_eq!((w, dv, grad), (v.clone(), v.clone(), norm.zero_grad()));
        assert_eq!(WeightNorm::of(&v).gain().len(), shape.0);
    }
}

#[test]
fn the_gain_is_its_only_parameter() {
    let (mut norm, mut names) = (WeightNorm::<f32>::new(3), Vec::new());
    assert_eq!((norm.outputs(), norm.gain().to_owned()), (3, Array1::ones(3).into_dyn()));
    norm.visit(|name, value| names.push((name.to_owned(), value.shape().to_vec())));
    assert_eq!(names, [("gain".to_owned(), vec![3])]);
    norm.visit_mut(|_, mut gain| gain.fill(2.0));
    let mut grad = norm.zero_grad();
    grad.gain_mut().unwrap()[1] = 3.0;
    norm.zip(&grad, |_, mut gain, dgain| gain -= &dgain).unwrap();
    assert_eq!(norm.gain().iter().copied().collect::<Vec<_>>(), [2.0, -1.0, 2.0]);
}
