//! The same bits everywhere, errors before anything is written, no allocation once warm.

use layernorm::ndarray::{Array1, Array2, Array3, Axis, array};
use layernorm::{BatchNorm, BatchSaved, Error, Parameters, instruction_sets};

use crate::number::{Number, bits, drawn};
use crate::{Step, flat, layer, placed, wild};

/// In any layout, on each instruction set, on threads, whatever the other columns are.
fn same_bits<T: Number>() {
    for (rows, features) in [(1, 5), (4, 1000), (33, 64), (64, 3000), (130, 100), (9, 50_000), (6000, 70)] {
        let norm = layer::<T>(features).with_eps(T::of(0.0)).unwrap();
        let (mut x, dy) = (wild::<T>(rows, features), drawn::<T, _>([rows, features], 2));
        if features > 10 {
            x[[rows / 2, 10]] = T::nan();
        }
        let want = Step::new(&norm, &x, &dy);
        let bits_of_all = want.bits();
        let place = format!("{rows}×{features}");
        for set in instruction_sets().into_iter().filter(|set| *set != "fallback" || rows * features < 10_000) {
            let norm = norm.clone().with_instruction_set(set).unwrap();
            assert!(Step::new(&norm, &x, &dy).bits() == bits_of_all, "{place} on {set}");
        }
        #[cfg(feature = "rayon")]
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let bits = pool.install(|| Step::new(&norm, &x, &dy)).bits();
            assert!(bits == bits_of_all, "{place} on {threads} threads");
        }
        for layout in 0..3 {
            let x = placed(&x, layout);
            assert!(Step::new(&norm, &x, &dy).bits() == bits_of_all, "{place}, x in layout {layout}");
            let step = Step::new(&norm, &x, &placed(&dy, layout));
            assert!(step.bits() == bits_of_all, "{place}, x and dy in layout {layout}");
            let (mut y, mut dx) = (placed(&x, layout), placed(&dy, (layout + 1) % 3));
            let (mut saved, mut grad) = (BatchSaved::default(), norm.zero_grad());
            norm.forward_into(&x, &mut y, &mut saved).unwrap();
            norm.backward_into(&x, &saved, &dy, &mut dx, &mut grad).unwrap();
            let step = Step { saved, y, dx, dgain: flat(grad.gain()), dbias: flat(grad.bias()) };
            assert!(step.bits() == bits_of_all, "{place}, outputs in layout {layout}");
        }
        // Columns far apart, beside each other: row blocks of sums follow from the shape, but a chain is a chain.
        for at in [0, 3, features - 1].into_iter().filter(|&at| at < features && rows <= 64) {
            let columns = [at, features / 2];
            let pick = |values: &Array1<T>| Array1::from_iter(columns.map(|at| values[at]));
            let norm = BatchNorm::new(2).with_eps(T::of(0.0)).unwrap();
            let norm = norm.with_gain(pick(&flat(layer::<T>(features).gain()))).unwrap();
            let norm = norm.with_bias(pick(&flat(layer::<T>(features).bias()))).unwrap();
            let two = Step::new(&norm, &x.select(Axis(1), &columns), &dy.select(Axis(1), &columns));
            let (y, dx) = (want.y.select(Axis(1), &columns), want.dx.select(Axis(1), &columns));
            assert_eq!(bits(&two.y), bits(&y), "{place}, column {at} of {features}");
            assert_eq!(bits(&two.dx), bits(&dx), "{place}, column {at} of {features}");
            assert_eq!(bits(&two.dgain), bits(&pick(&want.dgain)), "{place}, column {at} of {features}");
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

#[test]
fn a_constant_feature_gives_the_bias() {
    for rows in [1, 2, 3, 7, 64, 65, 1000] {
        for (eps, value) in [(0.0, 0.1), (1e-5, 0.1), (0.0, 1e30), (1e-5, 1e30), (0.0, 0.0), (0.0, 1e-42)] {
            let norm = layer::<f32>(20).with_eps(eps).unwrap();
            let (x, dy) = (Array2::from_elem((rows, 20), value), drawn::<f32, _>([rows, 20], 2));
            let step = Step::new(&norm, &x, &dy);
            let place = format!("{rows} rows of {value:e}, ε = {eps:e}");
            let bias = norm.bias().unwrap();
            assert!(step.y.outer_iter().all(|y| y.iter().eq(&bias)), "{place}: {:?}", step.y);
            assert!(step.saved.mean().iter().all(|&mean| mean == value), "{place}");
            assert!(step.saved.variance().iter().all(|&variance| variance == 0.0), "{place}");
            assert!(step.dgain.iter().all(|&dgain| dgain == 0.0), "{place}");
            if eps == 0.0 || rows == 1 {
                assert!(step.dx.iter().all(|&dx| dx == 0.0), "{place}: {:?}", step.dx);
            }
        }
    }
}

#[test]
fn nan_stays_in_its_feature() {
    for rows in [3, 64, 200] {
        let norm = layer::<f32>(40);
        let (mut x, dy) = (drawn::<f32, _>([rows, 40], 1), drawn::<f32, _>([rows, 40], 2));
        let want = Step::new(&norm, &x, &dy);
        x[[rows / 2, 3]] = f32::NAN;
        x[[rows - 1, 17]] = f32::INFINITY;
        x[[0, 39]] = f32::NEG_INFINITY;
        let got = Step::new(&norm, &x, &dy);
        for column in 0..40 {
            if [3, 17, 39].contains(&column) {
                assert!(got.y.column(column).iter().chain(got.dx.column(column)).all(|y| y.is_nan()), "{column}");
                assert!(got.dgain[column].is_nan() && got.saved.variance()[column].is_nan(), "{column}");
            } else {
                assert_eq!(got.y.column(column), want.y.column(column));
                assert_eq!(got.dx.column(column), want.dx.column(column));
                assert_eq!(got.dgain[column], want.dgain[column]);
            }
            assert_eq!(got.dbias[column], want.dbias[column]);
        }
    }
}

#[test]
fn the_trailing_axes_are_the_features() {
    let x = drawn::<f32, _>([30, 12], 1);
    let cube = x.clone().into_shape_with_order((5, 6, 3, 4)).unwrap();
    let (flat_norm, norm) = (BatchNorm::<f32>::new(12), BatchNorm::<f32>::new([3, 4]));
    let (want, want_saved) = flat_norm.forward(&x).unwrap();
    let (y, saved) = norm.forward(&cube).unwrap();
    assert_eq!(saved.mean().shape(), [3, 4]);
    assert!(saved.mean().iter().eq(want_saved.mean().iter()));
    assert!(y.iter().eq(&want));
    // [batch, channels, height, width], channel by channel.
    let images = Array3::from_shape_fn((4, 3, 25), |(n, c, i)| x[[(n * 25 + i) % 30, c]]);
    let norm = BatchNorm::<f32>::new(3);
    let channels_last = images.view().permuted_axes([0, 2, 1]);
    let want = norm.forward(&channels_last.as_standard_layout()).unwrap().0;
    assert_eq!(norm.forward(&channels_last).unwrap().0, want);
}

/// Of two rows the mean is exact at any scale, so y is the same formula of the same numbers.
fn rescaled_columns_follow_the_formula<T: Number>() {
    let x = drawn::<T, _>([2, 200], 1).mapv(|x| T::of((x.into() * 256.0).round() / 256.0));
    let scale = T::of(2f64.powi(T::HUGE.log2() as i32));
    let norm = layer::<T>(200).with_eps(T::of(0.0)).unwrap();
    let [plain, rescaled] = [x.clone(), x.mapv(|x| x * scale)].map(|x| norm.forward(&x).unwrap().0);
    assert_eq!(bits(&plain), bits(&rescaled));
}

#[test]
fn f32_rescaled_columns_follow_the_formula() {
    rescaled_columns_follow_the_formula::<f32>();
}

#[test]
fn f64_rescaled_columns_follow_the_formula() {
    rescaled_columns_follow_the_formula::<f64>();
}

/// Columns that had to be rescaled, and then had not.
#[test]
fn saved_keeps_nothing_of_the_call_before() {
    for rows in [5, 100] {
        let norm = layer::<f64>(7).with_eps(0.0).unwrap();
        let (x, dy) = (drawn::<f64, _>([rows, 7], 1), drawn::<f64, _>([rows, 7], 2));
        let want = Step::new(&norm, &x, &dy);
        let (mut y, mut dx, mut saved, mut grad) = (x.clone(), x.clone(), BatchSaved::default(), norm.zero_grad());
        norm.forward_into(&(&x * 1e200), &mut y, &mut saved).unwrap();
        norm.forward_into(&x, &mut y, &mut saved).unwrap();
        norm.backward_into(&x, &saved, &dy, &mut dx, &mut grad).unwrap();
        let got = Step { saved, y, dx, dgain: flat(grad.gain()), dbias: flat(grad.bias()) };
        assert!(got.bits() == want.bits(), "{rows} rows");
    }
}

#[test]
fn statistics_of_rescaled_columns_are_in_units_of_x() {
    let big = 2.0_f32.powi(40);
    let x = array![[big, 1.0 / big], [3.0 * big, 3.0 / big]];
    let norm = BatchNorm::<f32>::new(2).with_eps(0.0).unwrap();
    for norm in [norm.clone(), norm.without_gain().without_bias()] {
        let (y, saved) = norm.forward(&x).unwrap();
        assert_eq!(saved.mean(), array![2.0 * big, 2.0 / big].into_dyn());
        assert_eq!(saved.variance(), array![big * big, 1.0 / big / big].into_dyn());
        assert_eq!(saved.rstd(), array![1.0 / big, big].into_dyn());
        assert_eq!(y, array![[-1.0, -1.0], [1.0, 1.0]]);
        let mut running = norm.running();
        running.update(&saved, 1.0).unwrap();
        assert_eq!(norm.infer(&x, &running).unwrap(), y);
    }
}

/// Of features that span two axes, columns that are taken again are found in any layout.
#[test]
fn rare_columns_are_found_where_features_have_two_axes() {
    let norm = BatchNorm::<f64>::new([3, 4]).with_eps(0.0).unwrap();
    let mut x = drawn::<f64, _>([4, 3, 30], 1).reversed_axes();
    for (i, mut row) in x.outer_iter_mut().enumerate() {
        (row[[1, 1]], row[[0, 2]]) = (0.3, 1e200 * row[[0, 2]]);
        row[[2, 3]] = if i == 7 { f64::NAN } else { row[[2, 3]] };
    }
    let dy = drawn::<f64, _>([30, 3, 4], 2);
    let all = |x: &Array3<f64>| {
        let (y, saved) = norm.forward(x).unwrap();
        let mut grad = norm.zero_grad();
        let dx = norm.backward(x, &saved, &dy, &mut grad).unwrap();
        bits(y.iter().chain(&dx).chain(grad.gain().unwrap()).chain(grad.bias().unwrap()))
    };
    let standard = x.as_standard_layout().into_owned();
    let want = all(&standard);
    assert!(all(&x) == want);
    // Into arrays of that layout.
    let (mut y, mut dx) = (Array3::zeros((4, 3, 30)).reversed_axes(), Array3::zeros((4, 3, 30)).reversed_axes());
    let (mut saved, mut grad) = (BatchSaved::default(), norm.zero_grad());
    norm.forward_into(&standard, &mut y, &mut saved).unwrap();
    norm.backward_into(&standard, &saved, &dy, &mut dx, &mut grad).unwrap();
    assert!(bits(y.iter().chain(&dx).chain(grad.gain().unwrap()).chain(grad.bias().unwrap())) == want);
}

/// Among a hundred columns, of which some are looked at together, and not in the last ones.
#[test]
fn one_bad_column_is_what_it_is_alone() {
    let good = drawn::<f64, _>([40, 100], 1);
    for bad in [1e200, f64::NAN] {
        for at in [3, 40, 99] {
            let mut x = good.clone();
            x.column_mut(at).mapv_inplace(|x| x * bad);
            let (y, saved) = BatchNorm::new(100).forward(&x).unwrap();
            for column in [at, (at + 1) % 100] {
                let alone = x.column(column).to_owned().insert_axis(Axis(1));
                let (y_alone, saved_alone) = BatchNorm::new(1).forward(&alone).unwrap();
                assert_eq!(bits(y.column(column)), bits(&y_alone), "{bad:e} at {at}: y of {column}");
                let of = |saved: &BatchSaved<f64>, i: usize| [saved.mean()[i], saved.variance()[i], saved.rstd()[i]];
                assert_eq!(bits(&of(&saved, column)), bits(&of(&saved_alone, 0)), "{bad:e} at {at}: saved of {column}");
            }
        }
    }
}

#[test]
fn a_turned_dy_beside_standard_arrays_is_fine() {
    let (norm, x) = (BatchNorm::<f32>::new(5), drawn::<f32, _>([4, 5], 1));
    let dy = drawn::<f32, _>([5, 4], 2).reversed_axes();
    let want = Step::new(&norm, &x, &dy.as_standard_layout().into_owned());
    assert_eq!(Step::new(&norm, &x, &dy).bits(), want.bits());
}

#[test]
fn parameters_are_changed_by_name() {
    let mut norm = BatchNorm::<f32>::new(2);
    norm.gain_mut().unwrap().fill(2.0);
    norm.bias_mut().unwrap().fill(3.0);
    assert_eq!(
        (norm.gain().unwrap(), norm.bias().unwrap()),
        (array![2.0, 2.0].into_dyn().view(), array![3.0, 3.0].into_dyn().view())
    );
}

#[test]
fn a_layer_without_gain_or_bias_is_one_of_ones_and_zeros() {
    let (x, dy) = (drawn::<f32, _>([70, 20], 1), drawn::<f32, _>([70, 20], 2));
    let (plain, bare) = (BatchNorm::<f32>::new(20), BatchNorm::<f32>::new(20).without_gain().without_bias());
    let want = Step::new(&plain, &x, &dy);
    let (y, saved) = bare.forward(&x).unwrap();
    let mut grad = bare.zero_grad();
    assert!(grad.gain().is_none() && grad.bias().is_none());
    assert_eq!(bare.backward(&x, &saved, &dy, &mut grad).unwrap(), want.dx);
    assert_eq!(y, want.y);
}

#[test]
fn gradients_are_added() {
    for rows in [5, 200] {
        let norm = layer::<f64>(20);
        let (x, dy) = (drawn::<f64, _>([rows, 20], 1), drawn::<f64, _>([rows, 20], 2));
        let (_, saved) = norm.forward(&x).unwrap();
        let mut grad = norm.zero_grad();
        norm.backward(&x, &saved, &dy, &mut grad).unwrap();
        let once = grad.clone();
        norm.backward(&x, &saved, &dy, &mut grad).unwrap();
        assert_eq!(grad.gain().unwrap(), once.gain().unwrap().mapv(|dgain| 2.0 * dgain));
        assert_eq!(grad.bias().unwrap(), once.bias().unwrap().mapv(|dbias| 2.0 * dbias));
    }
}

#[test]
fn mistakes_are_named_and_nothing_is_written() {
    let norm = BatchNorm::<f32>::new(4);
    let (x, mut y) = (Array2::ones((2, 4)), Array2::from_elem((2, 4), 7.0));
    let (_, saved) = norm.forward(&x).unwrap();
    let (mut grad, mut kept) = (norm.zero_grad(), saved.clone());
    let text = |result: layernorm::Result<()>| result.unwrap_err().to_string();

    let wide = Array2::ones((2, 3));
    let trailing = "`x` must have shape [_, 4], but has [2, 3]";
    assert_eq!(text(norm.forward(&wide).map(drop)), trailing);
    assert_eq!(text(norm.infer(&wide, &norm.running()).map(drop)), trailing);
    assert_eq!(text(norm.backward(&wide, &saved, &wide, &mut grad).map(drop)), trailing);

    let long = Array2::ones((3, 4));
    assert_eq!(text(norm.forward_into(&long, &mut y, &mut kept)), "`y` must have shape [3, 4], but has [2, 4]");
    assert_eq!(
        text(norm.backward_into(&x, &saved, &long, &mut y, &mut grad)),
        "`dy` must have shape [2, 4], but has [3, 4]"
    );
    assert_eq!(
        text(norm.backward(&long, &saved, &long, &mut grad).map(drop)),
        "`saved` must come from a forward call on an `x` of shape [3, 4], but comes from one on [2, 4]"
    );
    assert_eq!(
        text(norm.backward(&x, &BatchSaved::default(), &x, &mut grad).map(drop)),
        "`saved` must come from a forward call on an `x` of shape [2, 4], but no call has filled it"
    );
    let (_, other) = BatchNorm::new([2, 4]).forward(&x).unwrap();
    assert_eq!(
        text(norm.backward(&x, &other, &x, &mut grad).map(drop)),
        "`saved` must come from a forward call on `x` as 2 rows, but comes from one of a layer of another normalized shape, \
         to which it is 1"
    );
    let unfilled =
        "`saved` must come from a forward call of a layer of normalized shape [4], but no call has filled it";
    assert_eq!(text(norm.running().update(&BatchSaved::default(), 0.5)), unfilled);
    assert_eq!(BatchSaved::<f32>::default().mean().shape(), [0]);
    let (_, of_eps) = norm.clone().with_eps(1e-3).unwrap().forward(&x).unwrap();
    assert_eq!(
        text(norm.backward(&x, &of_eps, &x, &mut grad).map(drop)),
        "`saved` must come from a layer with eps 1e-5, but comes from one with 0.001"
    );
    assert!(!norm.has_unbiased_variance() && norm.clone().with_unbiased_variance().has_unbiased_variance());
    let text_of_other = "`saved` must have shape [4], but has [2, 4]";
    assert_eq!(text(norm.running().update(&other, 0.5)), text_of_other);
    assert_eq!(text(norm.running().update_unbiased(&other, 0.5)), text_of_other);

    let unbiased = norm.clone().with_unbiased_variance();
    let one = Array2::ones((1, 4));
    let (_, saved_of_one) = norm.forward(&one).unwrap();
    let why = "`x` must have at least 2 rows, because the unbiased variance divides by rows − 1, but has 1";
    let mut y_of_one = Array2::from_elem((1, 4), 7.0);
    assert_eq!(text(norm.running().update_unbiased(&saved_of_one, 0.5)), why.replace("`x`", "`saved`"));
    assert_eq!(text(unbiased.forward_into(&one, &mut y_of_one, &mut kept)), why);
    assert_eq!(text(unbiased.backward_into(&one, &saved_of_one, &one, &mut y_of_one, &mut grad)), why);
    assert_eq!(y_of_one, Array2::from_elem((1, 4), 7.0));

    let (_, of_unbiased) = unbiased.forward(&x).unwrap();
    assert_eq!(
        text(norm.backward_into(&x, &of_unbiased, &x, &mut y, &mut grad)),
        "`saved` must come from a layer that takes the biased variance, but comes from one that takes the unbiased"
    );
    assert_eq!(
        text(unbiased.backward_into(&x, &saved, &x, &mut y, &mut grad)),
        "`saved` must come from a layer that takes the unbiased variance, but comes from one that takes the biased"
    );

    let mut of_another_shape = Array2::from_elem((4, 2), 7.0);
    let out = "must have shape [2, 4], but has [4, 2]";
    assert_eq!(text(norm.infer_into(&x, &norm.running(), &mut of_another_shape)), format!("`y` {out}"));
    assert_eq!(text(norm.backward_into(&x, &saved, &x, &mut of_another_shape, &mut grad)), format!("`dx` {out}"));
    assert_eq!(of_another_shape, Array2::from_elem((4, 2), 7.0));

    let mut running = norm.running();
    for momentum in [-0.1, 1.5, f32::NAN] {
        assert_eq!(
            text(running.update(&saved, momentum)),
            format!("`momentum` must be between 0 and 1, but is {momentum}")
        );
    }
    assert_eq!(running, norm.running());
    let of_others = BatchNorm::<f32>::new(3).running();
    let shape = "`running` must have shape [4], but has [3]";
    assert_eq!(text(norm.infer_into(&x, &of_others, &mut y)), shape);
    assert_eq!(text(norm.infer_inplace(&mut y, &of_others)), shape);

    let mut bare = norm.clone().without_bias().zero_grad();
    assert_eq!(
        text(norm.backward_into(&x, &saved, &x, &mut y, &mut bare)),
        "`grad` must have a bias, as the layer has, but has none"
    );
    assert_eq!(y, Array2::from_elem((2, 4), 7.0));
    assert_eq!(grad, norm.zero_grad());
    assert_eq!(format!("{kept:?}"), format!("{saved:?}"));
    assert!(matches!(BatchNorm::<f64>::new(3).with_eps(-1.0), Err(Error::Eps { .. })));
    assert!(matches!(BatchNorm::<f64>::new(3).with_gain(Array1::ones(2)), Err(Error::Shape { .. })));
    assert!(matches!(BatchNorm::<f64>::new(0).forward(&Array2::ones((2, 0))), Err(Error::Empty { .. })));
}

#[test]
fn gain_and_bias_are_its_parameters() {
    let (mut norm, mut names) = (BatchNorm::<f32>::new([2, 3]), Vec::new());
    norm.visit(|name, value| names.push((name.to_owned(), value.shape().to_vec())));
    assert_eq!(names, [("gain".to_owned(), vec![2, 3]), ("bias".to_owned(), vec![2, 3])]);
    norm.visit_mut(|_, mut array| array.fill(2.0));
    let mut grad = norm.zero_grad();
    grad.bias_mut().unwrap().fill(3.0);
    norm.zip(&grad, |_, mut array, gradient| array -= &gradient).unwrap();
    assert_eq!((norm.gain().unwrap()[[1, 2]], norm.bias().unwrap()[[1, 2]]), (2.0, -1.0));
}

#[test]
fn calls_into_memory_of_the_caller_allocate_nothing_once_warm() {
    for (rows, features) in [(1, 5), (32, 768), (64, 100), (65, 100), (300, 33), (3, 9000)] {
        let norm = BatchNorm::<f32>::new(features);
        let (mut running, mut saved, mut grad) = (norm.running(), BatchSaved::default(), norm.zero_grad());
        for layouts in [[false, false], [true, false], [false, true], [true, true]] {
            let [mut x, mut y] = layouts.map(|strided| {
                let values = drawn::<f32, _>([rows, features], 1);
                if strided { placed(&values, 0) } else { values }
            });
            let (dy, mut dx) = (x.clone(), y.clone());
            let mut step = || {
                norm.forward_into(&x, &mut y, &mut saved)?;
                norm.backward_into(&x, &saved, &dy, &mut dx, &mut grad)?;
                running.update(&saved, 0.1)?;
                norm.infer_into(&x, &running, &mut y)?;
                norm.backward_infer_into(&x, &running, &dy, &mut dx, &mut grad)?;
                norm.infer_inplace(&mut x, &running)
            };
            step().unwrap();
            let warm = allocation_counter::measure(|| step().unwrap());
            assert_eq!(warm.count_total, 0, "{rows}×{features}, strided {layouts:?}: {} bytes", warm.bytes_total);
        }
    }
}
