//! With fewer arrays the results are the same: in place the same bits, from x̂ or y within what rounding took.

mod common;

use common::{Norm, Number, SHAPES, bits, drawn, everywhere, extreme, grad_bits, laid, rounding, tests_of_both, wide};
use layernorm::Affine;
use layernorm::ndarray::{Array, Array2, Array3, ArrayD, ArrayView1, ArrayViewD, Dimension, IxDyn};

tests_of_both! {
    f32: in_place_has_the_same_bits what_comes_from_memory_as_well rows_of_two_axes_are_rows without_x_is_near
        constant_rows_have_no_slope nan_stays_in_its_row mistakes_are_named_and_nothing_is_written no_rows_change_nothing;
    f64: in_place_has_the_same_bits without_x_is_near a_gain_too_small_is_refused;
}

/// y, dx, saved, dgain and dbias.
type All = (Vec<u64>, Vec<u64>, String, Vec<u64>);

fn in_place<T: Number, N: Norm<T>, D: Dimension>(norm: &N, x: &Array<T, D>, dy: &Array<T, D>, layout: usize) -> All {
    let (mut y, mut dx) = (laid(x, layout), laid(dy, layout + 1));
    let (mut saved, mut grad) = (N::Saved::default(), norm.parameters());
    norm.forward_inplace(&mut y, &mut saved).unwrap();
    norm.backward_inplace(&laid(x, layout + 2), &saved, &mut dx, &mut grad).unwrap();
    (bits(&y), bits(&dx), format!("{saved:?}"), grad_bits(&grad))
}

fn in_place_has_the_same_bits<T: Number, N: Norm<T>>() {
    for shape in SHAPES {
        let norm = N::drawn(&shape[1..]).eps(0.0);
        let (x, dy) = (extreme(shape, 1), drawn(shape, 2));
        let ((y, saved), mut grad) = (norm.forward(&x).unwrap(), norm.parameters());
        let dx = norm.backward(&x, &saved, &dy, &mut grad).unwrap();
        let want = (bits(&y), bits(&dx), format!("{saved:?}"), grad_bits(&grad));
        for layout in 0..5 {
            assert!(in_place(&norm, &x, &dy, layout) == want, "{shape:?}, layout {layout}");
        }
        for layout in [0, 3] {
            assert!(everywhere(&norm, shape, |norm| in_place(norm, &x, &dy, layout)) == want, "{shape:?} everywhere");
        }
    }
}

/// More than the caches hold, where rows are taken in another way.
fn what_comes_from_memory_as_well<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[130]);
    let (x, dy) = (drawn([9000, 130], 1), drawn([9000, 130], 2));
    let ((y, saved), mut grad) = (norm.forward(&x).unwrap(), norm.parameters());
    let dx = norm.backward(&x, &saved, &dy, &mut grad).unwrap();
    let want = (bits(&y), bits(&dx), format!("{saved:?}"), grad_bits(&grad));
    assert!(in_place(&norm, &x, &dy, 0) == want && in_place(&norm, &x, &dy, 3) == want);
}

/// In any layout, also where all rows are one run of memory with gaps.
fn rows_of_two_axes_are_rows<T: Number, N: Norm<T>>() {
    let (norm, of_rows) = (N::drawn(&[3, 5]), N::drawn(&[15]));
    let cube = |rows: &Array2<T>| Array3::from_shape_vec((4, 3, 5), rows.iter().copied().collect()).unwrap();
    let (x, dy) = (drawn::<T, _>([4, 15], 1), drawn::<T, _>([4, 15], 2));
    let (y, saved) = of_rows.forward(&x).unwrap();
    let (x3, y3, dy3) = (cube(&x), cube(&y), cube(&dy));
    let (_, saved3) = norm.forward(&x3).unwrap();
    for layout in 0..5 {
        let (want, got) = (in_place(&of_rows, &x, &dy, 0), in_place(&norm, &x3, &dy3, layout));
        assert!((want.0, want.1, want.3) == (got.0, got.1, got.3), "in place, layout {layout}");
        let (mut dx, mut grad) = (dy.clone(), of_rows.parameters());
        of_rows.backward_from_output(&y, &saved, &mut dx, &mut grad).unwrap();
        let (mut dx3, mut grad3) = (laid(&dy3, layout + 1), norm.parameters());
        norm.backward_from_output(&laid(&y3, layout), &saved3, &mut dx3, &mut grad3).unwrap();
        assert!((bits(&dx), grad_bits(&grad)) == (bits(&dx3), grad_bits(&grad3)), "from y, layout {layout}");
    }
}

/// Beside `backward`, with u the rounding of T, Q = gain·dy, and e what rounding took of x̂:
///
/// * Both compute r·(Q − mean Q − x̂·mean(Q·x̂)) with the same r. A mean is off by at most L·u of the mean of
///   magnitudes, if no term meets more than L roundings: those of a lane of a block, 128 or n/16 (n/8 in f64), of the
///   tree, of the term itself and of what is done with the mean, 16 together. Each of the two is so far from the truth.
/// * From x̂ as forward writes it, e = u·|x̂|. From y, which has two roundings, of gain·x̂ and of the sum, and is
///   undone with two, e = u·(|bias/gain| + 6|x̂|) covers it.
/// * e moves dx by r·(e·mean|Q·x̂| + |x̂|·mean(|Q|·e)), and dgain by Σ |dy|·e.
/// * dgain adds at most 64 rows in T, and each term has 3 roundings at most.
///
/// dbias has the same bits: x is not in it.
fn without_x_is_near<T: Number, N: Norm<T>>() {
    for shape in SHAPES {
        for (eps, mean) in [(0.0, 0.0), (1e-5, 1000.0)] {
            let mut norm = N::drawn(&shape[1..]).eps(eps);
            // None that is refused: beside no bias, any size will do.
            let gain: ArrayD<T> = drawn(IxDyn(&shape[1..]), 101);
            let size = T::of(if norm.parameters().bias().is_some() { 1.0 } else { 1e-20 });
            norm = norm.gain(gain.mapv(|gain| size * (gain + T::of(if gain < T::of(0.0) { -0.25 } else { 0.25 }))));
            let x = if eps == 0.0 { extreme(shape, 1) } else { drawn(shape, 1).mapv(|x: T| x + T::of(mean)) };
            let dy = drawn::<T, _>(shape, 2);
            let ((y, saved), mut want_grad) = (norm.forward(&x).unwrap(), norm.parameters());
            let want = norm.backward(&x, &saved, &dy, &mut want_grad).unwrap();
            let (normalized, same) = norm.clone().without_parameters().forward(&x).unwrap();
            assert_eq!(format!("{saved:?}"), format!("{same:?}"));
            for layout in 0..5 {
                let run = |norm: &N, source: usize| {
                    let (mut dx, mut grad) = (laid(&dy, layout), norm.parameters());
                    let (y, normalized) = (laid(&y, layout + 1), laid(&normalized, layout + 1));
                    match source {
                        0 => norm.backward_from_normalized(&normalized, &saved, &mut dx, &mut grad),
                        _ => norm.backward_from_output(&y, &saved, &mut dx, &mut grad),
                    }
                    .unwrap();
                    (dx, grad)
                };
                for source in [0, 1] {
                    let got = if layout == 1 {
                        everywhere(&norm, shape, |norm| run(norm, source))
                    } else {
                        run(&norm, source)
                    };
                    let place = format!("{shape:?}, eps {eps}, source {source}, layout {layout}");
                    let rstd = N::rstd(&saved).into_iter().map(T::into).collect::<Vec<f64>>();
                    check::<T>(
                        &place,
                        [&wide(&normalized), &wide(&dy), &wide(&got.0), &wide(&want)],
                        &rstd,
                        source,
                        [&norm.parameters(), &got.1, &want_grad],
                    );
                }
            }
        }
    }
}

/// See [`without_x_is_near`].
fn check<T: Number>(
    place: &str,
    [normalized, dy, got, want]: [&Array2<f64>; 4],
    rstd: &[f64],
    source: usize,
    [parameters, got_grad, want_grad]: [&Affine<T>; 3],
) {
    let features = normalized.ncols();
    let flat = |values: Option<ArrayViewD<'_, T>>| -> Vec<f64> {
        values.map_or(vec![0.0; features], |values| values.iter().map(|&value| value.into()).collect())
    };
    let (gain, bias) = (flat(parameters.gain()), flat(parameters.bias()));
    let u = rounding::<T>();
    let lanes = 64 / size_of::<T>();
    let roundings = (features.div_ceil(lanes).min(128) + 16) as f64;
    let n = features as f64;
    let (mut of_dgain, mut terms) = (vec![0.0; features], vec![0.0; features]);
    for (row, normalized) in normalized.outer_iter().enumerate() {
        let lost = |i: usize| match source {
            0 => u * normalized[i].abs(),
            _ => u * ((bias[i] / gain[i]).abs() + 6.0 * normalized[i].abs()),
        };
        let q: Vec<_> = (0..features).map(|i| (gain[i] * dy[[row, i]]).abs()).collect();
        let mean = |f: &dyn Fn(usize) -> f64| (0..features).map(f).sum::<f64>() / n;
        let (q_mean, qx, qe) = (mean(&|i| q[i]), mean(&|i| q[i] * normalized[i].abs()), mean(&|i| q[i] * lost(i)));
        for i in 0..features {
            let x = normalized[i].abs();
            let bound = rstd[row] * (2.0 * roundings * u * (q[i] + q_mean + x * qx) + lost(i) * qx + x * qe);
            let (got, want) = (got[[row, i]], want[[row, i]]);
            assert!(
                (got - want).abs() <= bound,
                "dx[{row}, {i}], {place}: got {got:e}, want {want:e}, bound {bound:e}"
            );
            of_dgain[i] += dy[[row, i]].abs() * lost(i);
            terms[i] += (dy[[row, i]] * normalized[i]).abs();
        }
    }
    let (got, want) = (flat(got_grad.gain()), flat(want_grad.gain()));
    for i in 0..features {
        // What grad held is in the last rounding.
        let bound = of_dgain[i] + 2.0 * (normalized.nrows().min(64) + 3) as f64 * u * (terms[i] + gain[i].abs());
        assert!(
            (got[i] - want[i]).abs() <= bound,
            "dgain[{i}], {place}: got {}, want {}, bound {bound:e}",
            got[i],
            want[i]
        );
    }
    assert_eq!(got_grad.bias(), want_grad.bias(), "{place}");
}

fn constant_rows_have_no_slope<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[20]).eps(0.0).gain(ArrayD::from_elem(IxDyn(&[20]), T::of(0.5)));
    // About 0, only zeros have no spread.
    let constant = if norm.parameters().bias().is_some() { 3.0 } else { 0.0 };
    let (x, zeros) = (Array2::from_elem((70, 20), T::of(constant)), Array2::zeros((70, 20)));
    let dy = drawn::<T, _>([70, 20], 2);
    let (mut y, mut saved) = (x.clone(), N::Saved::default());
    norm.forward_inplace(&mut y, &mut saved).unwrap();
    for source in 0..3 {
        let (mut dx, mut grad) = (dy.clone(), norm.parameters());
        match source {
            0 => norm.backward_inplace(&x, &saved, &mut dx, &mut grad),
            1 => norm.backward_from_normalized(&zeros, &saved, &mut dx, &mut grad),
            _ => norm.backward_from_output(&y, &saved, &mut dx, &mut grad),
        }
        .unwrap();
        assert_eq!(dx, zeros, "source {source}");
        assert_eq!(grad.gain(), norm.parameters().gain(), "source {source}");
    }
}

fn nan_stays_in_its_row<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[40]).gain(ArrayD::from_elem(IxDyn(&[40]), T::of(2.0)));
    let (mut x, dy) = (drawn::<T, _>([80, 40], 1), drawn::<T, _>([80, 40], 2));
    let calls = |x: &Array2<T>| {
        let (mut y, mut saved) = (x.clone(), N::Saved::default());
        norm.forward_inplace(&mut y, &mut saved).unwrap();
        let [mut from_x, mut from_y] = [dy.clone(), dy.clone()];
        norm.backward_inplace(x, &saved, &mut from_x, &mut norm.parameters()).unwrap();
        norm.backward_from_output(&y, &saved, &mut from_y, &mut norm.parameters()).unwrap();
        [y, from_x, from_y]
    };
    let want = calls(&x);
    (x[[7, 3]], x[[66, 39]]) = (T::of(f64::NAN), T::of(f64::INFINITY));
    for (call, (got, want)) in calls(&x).iter().zip(&want).enumerate() {
        for (row, (got, want)) in got.outer_iter().zip(want.outer_iter()).enumerate() {
            let same = |got: ArrayView1<'_, T>| got == want;
            let nan = |got: ArrayView1<'_, T>| got.iter().all(|value| value.is_nan());
            assert!(if row == 7 || row == 66 { nan(got) } else { same(got) }, "call {call}, row {row}");
        }
    }
}

fn a_gain_too_small_is_refused<T: Number, N: Norm<f64>>() {
    let (x, dy) = (drawn::<f64, _>([2, 3], 1), drawn::<f64, _>([2, 3], 2));
    let refusal = |norm: &N| {
        let (y, saved) = norm.forward(&x).unwrap();
        let (mut dx, mut grad) = (dy.clone(), norm.parameters());
        let result = norm.backward_from_output(&y, &saved, &mut dx, &mut grad);
        if result.is_err() {
            assert_eq!(dx, dy);
            assert_eq!(grad_bits(&grad), grad_bits(&norm.parameters()));
        }
        result.map_err(|error| error.to_string())
    };
    let text = |least: &str, got: &str, feature: usize| {
        Err(format!(
            "`gain` must be at least {least} for x̂ to be found from y, but is {got} at feature {feature}: keep x, or x̂, in \
             the place of y"
        ))
    };
    let three = |values: [f64; 3]| ArrayD::from_shape_vec(IxDyn(&[3]), values.to_vec()).unwrap();
    let with = |gain| N::drawn(&[3]).gain(three(gain)).bias(three([0.0; 3]));
    let any = "2.2250738585072014e-308 or at most -2.2250738585072014e-308";
    assert_eq!(refusal(&with([1e-300, -f64::MIN_POSITIVE, 5.0])), Ok(()));
    assert_eq!(refusal(&with([1.0, 0.0, 0.0])), text(any, "0", 1));
    assert_eq!(refusal(&with([1.0, 1.0, -1e-310])), text(any, "-1e-310", 2));
    assert_eq!(refusal(&with([f64::NAN, 1.0, 1.0])), text(any, "NaN", 0));
    let norm = with([0.04, 0.04, 0.04]).bias(three([1.0, -50.0, 1.0]));
    let has_bias = norm.parameters().bias().is_some();
    assert_eq!(
        refusal(&norm),
        if has_bias { text("0.05 or at most -0.05 beside a bias of -50", "0.04", 1) } else { Ok(()) }
    );
    // γ = 0 is a gain of 1, and −1 one of 0.
    let centred = N::drawn(&[3]).zero_centred().bias(three([0.0; 3]));
    assert_eq!(refusal(&centred), Ok(()));
    let of_centred = text(any, "0", 1).map_err(|text| format!("1 + {text}"));
    assert_eq!(refusal(&centred.gain(three([0.0, -1.0, -0.9995]))), of_centred);
    // Any will do for the other calls.
    let norm = with([0.0, f64::NAN, 1e-9]);
    let (normalized, saved) = norm.clone().without_parameters().forward(&x).unwrap();
    norm.backward_from_normalized(&normalized, &saved, &mut dy.clone(), &mut norm.parameters()).unwrap();
    // Without a gain it is 1.
    let norm = norm.without_parameters();
    assert_eq!(refusal(&norm), Ok(()));
    let norm = norm.bias(three([1.0, -3000.0, 1e3]));
    assert_eq!(refusal(&norm), if has_bias { text("3 or at most -3 beside a bias of -3000", "1", 1) } else { Ok(()) });
}

fn mistakes_are_named_and_nothing_is_written<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[4]).gain(ArrayD::from_elem(IxDyn(&[4]), T::of(1.0)));
    for call in 0..4 {
        let from = ["x", "y", "normalized", "x"][call];
        for wrong in ["from", "dy", "saved", "grad"] {
            let array = |name: &str| Array2::from_elem(if name == wrong { (3, 2) } else { (2, 4) }, T::of(7.0));
            let (mut x, mut dy) = (array("from"), array("dy"));
            let mut saved = norm.forward(&Array2::zeros((if wrong == "saved" { 3 } else { 2 }, 4))).unwrap().1;
            let mut grad = N::drawn(if wrong == "grad" { &[3] } else { &[4] }).parameters();
            let before = (x.clone(), dy.clone(), format!("{saved:?}"), grad.clone());
            let result = match call {
                0 => norm.backward_inplace(&x, &saved, &mut dy, &mut grad),
                1 => norm.backward_from_output(&x, &saved, &mut dy, &mut grad),
                2 => norm.backward_from_normalized(&x, &saved, &mut dy, &mut grad),
                _ if wrong == "from" => norm.forward_inplace(&mut x, &mut saved),
                _ => continue,
            };
            let text = match wrong {
                "from" => &format!("`{from}` must have shape [_, 4], but has [3, 2]"),
                "dy" => "`dy` must have shape [2, 4], but has [3, 2]",
                "saved" => {
                    "`saved` must come from a forward call on an `x` of shape [2, 4], but comes from one on [3, 4]"
                }
                _ => "`grad` must have a gain of shape [4], but has one of [3]",
            };
            assert_eq!(result.unwrap_err().to_string(), text, "call {call}");
            assert_eq!((x, dy, format!("{saved:?}"), grad), before, "call {call}, {wrong}");
        }
    }
}

fn no_rows_change_nothing<T: Number, N: Norm<T>>() {
    let norm = N::drawn(&[4]).gain(ArrayD::from_elem(IxDyn(&[4]), T::of(1.0)));
    let (mut x, mut saved, mut grad) = (Array3::<T>::zeros((2, 0, 4)), N::Saved::default(), norm.parameters());
    norm.forward_inplace(&mut x, &mut saved).unwrap();
    let mut dy = x.clone();
    norm.backward_inplace(&x, &saved, &mut dy, &mut grad).unwrap();
    norm.backward_from_output(&x, &saved, &mut dy, &mut grad).unwrap();
    norm.backward_from_normalized(&x, &saved, &mut dy, &mut grad).unwrap();
    assert_eq!(grad, norm.parameters());
    // No y is divided by this gain.
    let norm = norm.gain(ArrayD::zeros(IxDyn(&[4])));
    norm.backward_from_output(&x, &saved, &mut dy, &mut grad).unwrap();
}
