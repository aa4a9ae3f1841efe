//! A caller's mistake is an [`Error`] that names the argument and tells what would be right, and nothing has been
//! written when it comes.

use layernorm::ndarray::{Array1, Array2, Array3, ArrayD, IxDyn, arr0, array};
use layernorm::{Affine, BatchNorm, Error, LayerNorm, Parameters, Result, RmsNorm, Saved, WeightNorm};

/// What a call could write. Every number in it is one that no call computes.
struct Outputs {
    y: Array2<f32>,
    dx: Array2<f32>,
    saved: Saved<f32>,
    grad: Affine<f32>,
}

/// A layer over 3 features, an x of two rows, and outputs for them; `saved` is that of x.
fn setup() -> (LayerNorm<f32>, Array2<f32>, Outputs) {
    let norm = LayerNorm::new(3);
    let x = array![[1.0, 2.0, 4.0], [3.0, -1.0, 0.5]];
    let (_, saved) = norm.forward(&x).expect("the shapes fit");
    let mut grad = norm.zero_grad();
    grad.visit_mut(|_, mut array| array.fill(-77.25));
    (norm, x, Outputs { y: Array2::from_elem((2, 3), -55.5), dx: Array2::from_elem((2, 3), -66.5), saved, grad })
}

/// All bits that a call could have changed.
fn bits(outputs: &Outputs) -> Vec<u32> {
    let Outputs { y, dx, saved, grad } = outputs;
    let mut bits: Vec<u32> = y.iter().chain(dx).map(|x| x.to_bits()).collect();
    bits.extend(saved.mean().iter().chain(saved.rstd()).map(|x| x.to_bits()));
    grad.visit(|_, array| bits.extend(array.iter().map(|x| x.to_bits())));
    bits
}

/// Asserts that the call fails with this text and writes nothing; `saved` still belongs to the same x.
fn refuses<R>(text: &str, outputs: &mut Outputs, call: impl FnOnce(&mut Outputs) -> Result<R>) {
    let before = (bits(outputs), format!("{:?}", outputs.saved));
    let error = call(outputs).err().unwrap_or_else(|| panic!("no error, but `{text}` was expected"));
    assert_eq!(error.to_string(), text);
    assert!(bits(outputs) == before.0, "written in spite of: {text}");
    assert_eq!(format!("{:?}", outputs.saved), before.1, "`saved` has changed in spite of: {text}");
}

#[test]
fn x_with_other_trailing_axes_is_named() {
    let (norm, _, mut outputs) = setup();
    let text = "`x` must have shape [_, 3], but has [2, 4]";
    let mut x = Array2::from_elem((2, 4), 1.0);
    let before = x.clone();
    let same = Array2::zeros((2, 4));
    refuses(text, &mut outputs, |_| norm.forward(&x));
    refuses(text, &mut outputs, |_| norm.infer(&x));
    refuses(text, &mut outputs, |out| norm.forward_into(&x, &mut out.y, &mut out.saved));
    refuses(text, &mut outputs, |out| norm.infer_into(&x, &mut out.y));
    refuses(text, &mut outputs, |_| norm.infer_inplace(&mut x));
    refuses(text, &mut outputs, |out| norm.backward(&x, &out.saved, &same, &mut out.grad));
    refuses(text, &mut outputs, |out| norm.backward_into(&x, &out.saved, &same, &mut out.dx, &mut out.grad));
    assert_eq!(x, before);
    // One axis of the normalized shape is right, but at another place.
    let norm = LayerNorm::<f32>::new([3, 4]);
    let text = "`x` must have shape [_, 3, 4], but has [2, 4, 3]";
    refuses(text, &mut outputs, |_| norm.forward(&Array3::zeros((2, 4, 3))));
    let text = "`x` must have shape [3, 4], but has [4, 3]";
    refuses(text, &mut outputs, |_| norm.forward(&Array2::zeros((4, 3))));
}

#[test]
fn x_with_too_few_axes_is_named() {
    let norm = LayerNorm::<f32>::new([3, 4]);
    let (_, _, mut outputs) = setup();
    let text = "`x` must have shape [.., 3, 4], but has [4]";
    let mut x = Array1::from_elem(4, 1.0);
    let (same, mut out) = (x.clone(), x.clone());
    refuses(text, &mut outputs, |_| norm.forward(&x));
    refuses(text, &mut outputs, |_| norm.infer(&x));
    refuses(text, &mut outputs, |outputs| norm.forward_into(&x, &mut out, &mut outputs.saved));
    refuses(text, &mut outputs, |_| norm.infer_into(&x, &mut out));
    refuses(text, &mut outputs, |_| norm.infer_inplace(&mut x));
    refuses(text, &mut outputs, |outputs| norm.backward(&x, &outputs.saved, &same, &mut norm.zero_grad()));
    assert_eq!([x, out], [same.clone(), same]);
}

#[test]
fn an_output_of_another_shape_is_named() {
    let (norm, x, mut outputs) = setup();
    outputs.y = Array2::from_elem((3, 3), -55.5);
    outputs.dx = Array2::from_elem((1, 3), -66.5);
    let text = "`y` must have shape [2, 3], but has [3, 3]";
    refuses(text, &mut outputs, |out| norm.forward_into(&x, &mut out.y, &mut out.saved));
    refuses(text, &mut outputs, |out| norm.infer_into(&x, &mut out.y));
    let text = "`dx` must have shape [2, 3], but has [1, 3]";
    refuses(text, &mut outputs, |out| norm.backward_into(&x, &out.saved, &x, &mut out.dx, &mut out.grad));
}

#[test]
fn dy_of_another_shape_is_named() {
    let (norm, x, mut outputs) = setup();
    let text = "`dy` must have shape [2, 3], but has [3, 2]";
    let dy = Array2::zeros((3, 2));
    refuses(text, &mut outputs, |out| norm.backward(&x, &out.saved, &dy, &mut out.grad));
    refuses(text, &mut outputs, |out| norm.backward_into(&x, &out.saved, &dy, &mut out.dx, &mut out.grad));
}

#[test]
fn saved_of_another_call_is_refused() {
    let (norm, x, mut outputs) = setup();
    // As many elements, and another shape.
    let (_, saved) = norm.forward(&Array3::<f32>::zeros((2, 1, 3))).expect("the shapes fit");
    let text = "`saved` must come from a forward call on an `x` of shape [2, 3], but comes from one on [2, 1, 3]";
    refuses(text, &mut outputs, |out| norm.backward(&x, &saved, &x, &mut out.grad));
    refuses(text, &mut outputs, |out| norm.backward_into(&x, &saved, &x, &mut out.dx, &mut out.grad));
    let (_, saved) = norm.forward(&Array2::<f32>::zeros((0, 3))).expect("no rows is not an error");
    let text = "`saved` must come from a forward call on an `x` of shape [2, 3], but comes from one on [0, 3]";
    refuses(text, &mut outputs, |out| norm.backward(&x, &saved, &x, &mut out.grad));
}

/// Of an x of the same shape, whose rows were others.
#[test]
fn saved_of_a_layer_of_another_normalized_shape_is_refused() {
    for (images, few, many) in [(2, 2, 8), (40, 40, 160), (100, 100, 400)] {
        let x = Array3::from_shape_fn((images, 4, 4), |(i, j, k)| (i * 16 + j * 4 + k) as f32);
        let (wide, narrow) = (LayerNorm::<f32>::new([4, 4]), LayerNorm::<f32>::new(4));
        let (of_wide, of_narrow) = (wide.forward(&x).expect("they fit").1, narrow.forward(&x).expect("they fit").1);
        for (norm, saved, [expected, got]) in [(&wide, &of_narrow, [few, many]), (&narrow, &of_wide, [many, few])] {
            let text = format!(
                "`saved` must come from a forward call on `x` as {expected} rows, but comes from one of a layer of another \
                 normalized shape, to which it is {got}"
            );
            let (mut dx, mut ddy, mut grad, zero) = (x.clone(), x.clone(), norm.zero_grad(), norm.zero_grad());
            for result in [
                norm.backward(&x, saved, &x, &mut grad).map(drop),
                norm.backward_into(&x, saved, &x, &mut dx, &mut grad),
                norm.backward_inplace(&x, saved, &mut dx, &mut grad),
                norm.backward_from_output(&x, saved, &mut dx, &mut grad),
                norm.backward_from_normalized(&x, saved, &mut dx, &mut grad),
                norm.backward_residual_into(&x, saved, &x, Some(&x), &mut dx, &mut grad),
                norm.jvp_into(&x, saved, &x, &zero, &mut dx),
                norm.double_backward_into(&x, saved, &x, &x, &zero, &mut dx, &mut ddy, &mut grad),
            ] {
                assert_eq!(result.expect_err(&text).to_string(), text);
            }
            assert_eq!((&dx, &ddy, &grad), (&x, &x, &zero), "written in spite of: {text}");
        }
    }
}

#[test]
fn saved_of_no_call_is_refused() {
    let (norm, x, mut outputs) = setup();
    let error = norm.backward(&x, &Saved::default(), &x, &mut norm.zero_grad()).expect_err("nothing was saved");
    assert!(matches!(error, Error::Saved { .. }), "{error:?}");
    let text = error.to_string();
    let expected = "`saved` must come from a forward call on an `x` of shape [2, 3], but no call has filled it";
    assert_eq!(text, expected);
    refuses(&text, &mut outputs, |out| norm.backward(&x, &Saved::default(), &x, &mut out.grad));
    refuses(&text, &mut outputs, |out| norm.backward_into(&x, &Saved::default(), &x, &mut out.dx, &mut out.grad));
}

#[test]
fn a_parameter_of_another_shape_is_named() {
    let text = "`gain` must have shape [3], but has [4]";
    assert_eq!(LayerNorm::<f32>::new(3).with_gain(Array1::ones(4)).unwrap_err().to_string(), text);
    let text = "`bias` must have shape [3], but has [2]";
    assert_eq!(LayerNorm::<f64>::new(3).with_bias(Array1::ones(2)).unwrap_err().to_string(), text);
    // As many elements, in one axis.
    let text = "`gain` must have shape [2, 3], but has [6]";
    assert_eq!(LayerNorm::<f64>::new([2, 3]).with_gain(Array1::ones(6)).unwrap_err().to_string(), text);
    let text = "`bias` must have shape [2, 3], but has [3, 2]";
    assert_eq!(LayerNorm::<f64>::new([2, 3]).with_bias(Array2::ones((3, 2))).unwrap_err().to_string(), text);
}

#[test]
fn a_shape_that_goes_on_is_another() {
    let text = "`gain` must have shape [3], but has [3, 2]";
    assert_eq!(LayerNorm::<f32>::new(3).with_gain(Array2::ones((3, 2))).unwrap_err().to_string(), text);
    let x = Array2::<f32>::zeros((2, 3)).into_dyn();
    let mut y = ArrayD::zeros(IxDyn(&[2, 3, 2]));
    let text = "`y` must have shape [2, 3], but has [2, 3, 2]";
    assert_eq!(LayerNorm::new(3).infer_into(&x, &mut y).unwrap_err().to_string(), text);
}

#[test]
fn saved_of_another_eps_is_refused() {
    let x = Array2::from_shape_fn((2, 3), |(row, i)| (row + i * i) as f64);
    let norm = LayerNorm::<f64>::new(3);
    let other = norm.clone().with_eps(0.25).unwrap();
    let (_, saved) = norm.forward(&x).unwrap();
    let mut grad = norm.zero_grad();
    let text = "`saved` must come from a layer with eps 0.25, but comes from one with 1e-5";
    let mut dx = x.clone();
    assert_eq!(other.backward_into(&x, &saved, &x, &mut dx, &mut grad).unwrap_err().to_string(), text);
    assert_eq!(other.backward_inplace(&x, &saved, &mut dx, &mut grad).unwrap_err().to_string(), text);
    assert_eq!(other.jvp(&x, &saved, &x, &grad).unwrap_err().to_string(), text);
    assert_eq!((dx, grad.gain().unwrap().sum()), (x.clone(), 0.0));

    let norm = RmsNorm::<f32>::new(3);
    let x = x.mapv(|x| x as f32);
    let (_, saved) = norm.clone().with_eps(0.0).unwrap().forward(&x).unwrap();
    let text = "`saved` must come from a layer with eps 1e-5, but comes from one with 0";
    assert_eq!(norm.backward(&x, &saved, &x, &mut norm.zero_grad()).unwrap_err().to_string(), text);
}

#[test]
fn arrays_are_made_after_the_arguments_were_seen() {
    // More memory than there is.
    let number = arr0(0.0_f32);
    let huge = number.broadcast((1 << 44, 3)).unwrap();
    let text = format!("`x` must have shape [_, 4], but has [{}, 3]", 1_u64 << 44);
    assert_eq!(LayerNorm::new(4).forward(&huge).unwrap_err().to_string(), text);
    assert_eq!(RmsNorm::new(4).infer(&huge).unwrap_err().to_string(), text);
    assert_eq!(BatchNorm::new(4).forward(&huge).unwrap_err().to_string(), text);
    assert_eq!(LayerNorm::new(4).forward_residual(&huge, &huge).unwrap_err().to_string(), text);
    let text = format!("`v` must have shape [4, ..], but has [{}, 3]", 1_u64 << 44);
    assert_eq!(WeightNorm::new(4).forward(&huge).unwrap_err().to_string(), text);
}

#[test]
fn of_a_layer_over_no_axes_each_element_is_a_row() {
    let norm = LayerNorm::<f32>::new(()).with_bias(arr0(0.5)).unwrap();
    let x = Array2::from_shape_fn((3, 2), |(row, i)| (row * 2 + i) as f32);
    let (y, saved) = norm.forward(&x).unwrap();
    assert_eq!(y, Array2::from_elem((3, 2), 0.5));
    assert_eq!(saved.mean(), Array1::from_iter(0..6).mapv(|i| i as f32));
    let mut grad = norm.zero_grad();
    assert_eq!(norm.backward(&x, &saved, &x, &mut grad).unwrap(), Array2::zeros((3, 2)));
    assert_eq!(grad.bias().unwrap(), arr0(15.0).into_dyn());
}

#[test]
fn eps_that_no_root_can_have_is_refused() {
    for (eps, text) in [
        (-1e-5, "`eps` must be finite, at least 0 and not subnormal, but is -1e-5"),
        (f64::NAN, "`eps` must be finite, at least 0 and not subnormal, but is NaN"),
        (f64::INFINITY, "`eps` must be finite, at least 0 and not subnormal, but is inf"),
        (1e-310, "`eps` must be finite, at least 0 and not subnormal, but is 1e-310"),
        (f64::NEG_INFINITY, "`eps` must be finite, at least 0 and not subnormal, but is -inf"),
    ] {
        assert_eq!(LayerNorm::<f64>::new(3).with_eps(eps).unwrap_err().to_string(), text);
    }
    for eps in [-1.0, f32::NAN, f32::INFINITY] {
        assert!(matches!(LayerNorm::<f32>::new(3).with_eps(eps), Err(Error::Eps { .. })), "{eps}");
    }
    assert_eq!(LayerNorm::<f32>::new(3).with_eps(1e-40).expect("a normal f64").eps(), 1e-40);
    let defaults: [f32; 3] = [LayerNorm::new(3).eps(), RmsNorm::new(3).eps(), BatchNorm::new(3).eps()];
    assert_eq!(defaults, [1e-5; 3]);
    let defaults: [f64; 3] = [LayerNorm::new(3).eps(), RmsNorm::new(3).eps(), BatchNorm::new(3).eps()];
    assert_eq!(defaults, [1e-5; 3]);
    for eps in [0.0, f64::MIN_POSITIVE, f64::MAX] {
        assert_eq!(LayerNorm::<f64>::new(3).with_eps(eps).expect("one that is allowed").eps(), eps);
    }
}

#[test]
fn a_layer_over_nothing_builds_and_every_call_says_so() {
    let (_, _, mut outputs) = setup();
    let norm = LayerNorm::<f32>::new([0, 3]).with_gain(Array2::ones((0, 3))).expect("the shape fits").without_bias();
    let mut grad = norm.zero_grad();
    assert_eq!(norm.shape(), [0, 3]);
    let text = "a layer of normalized shape [0, 3] has no element to take a mean of: every axis must be at least 1";
    let (mut x, mut out) = (Array3::zeros((2, 0, 3)), Array3::zeros((2, 0, 3)));
    let dy = x.clone();
    refuses(text, &mut outputs, |_| norm.forward(&x));
    refuses(text, &mut outputs, |_| norm.infer(&x));
    refuses(text, &mut outputs, |outputs| norm.forward_into(&x, &mut out, &mut outputs.saved));
    refuses(text, &mut outputs, |_| norm.infer_into(&x, &mut out));
    refuses(text, &mut outputs, |_| norm.infer_inplace(&mut x));
    refuses(text, &mut outputs, |outputs| norm.backward(&x, &outputs.saved, &dy, &mut grad));
    refuses(text, &mut outputs, |outputs| norm.backward_into(&x, &outputs.saved, &dy, &mut out, &mut grad));
    // Also of an x that has elements, and of one with too few axes.
    refuses(text, &mut outputs, |_| norm.forward(&Array2::zeros((2, 3))));
    refuses(text, &mut outputs, |_| norm.forward(&Array1::zeros(3)));
}

/// Gradients that do not belong to a layer of 3 features, and what is wrong with each.
fn wrong_gradients() -> [(LayerNorm<f32>, Affine<f32>, &'static str); 6] {
    let norm = || LayerNorm::<f32>::new(3);
    let text = [
        "`grad` must have a gain of shape [3], but has one of [4]",
        "`grad` must have a gain of shape [3], but has one of [1, 3]",
        "`grad` must have a gain, as the layer has, but has none",
        "`grad` must have a bias, as the layer has, but has none",
        "`grad` must have no gain, as the layer has none, but has one",
        "`grad` must have no bias, as the layer has none, but has one",
    ];
    [
        (norm(), LayerNorm::new(4).zero_grad(), text[0]),
        (norm(), LayerNorm::new([1, 3]).zero_grad(), text[1]),
        (norm(), norm().without_gain().zero_grad(), text[2]),
        (norm(), norm().without_bias().zero_grad(), text[3]),
        (norm().without_gain(), norm().zero_grad(), text[4]),
        (norm().without_bias(), norm().zero_grad(), text[5]),
    ]
}

#[test]
fn the_gradient_of_another_layer_is_refused() {
    for (norm, mut grad, text) in wrong_gradients() {
        let (_, x, mut outputs) = setup();
        grad.visit_mut(|_, mut array| array.fill(-77.25));
        let before = grad.clone();
        refuses(text, &mut outputs, |out| norm.backward(&x, &out.saved, &x, &mut grad));
        refuses(text, &mut outputs, |out| norm.backward_into(&x, &out.saved, &x, &mut out.dx, &mut grad));
        assert_eq!(grad, before, "{text}");
    }
}

#[test]
fn zip_with_the_gradient_of_another_layer_never_calls_f() {
    for (mut norm, grad, text) in wrong_gradients() {
        let error = norm.zip(&grad, |name, _, _| panic!("called for {name}")).unwrap_err();
        assert_eq!(error.to_string(), text);
        // An Affine walks along another one just so.
        let error = norm.zero_grad().zip(&grad, |name, _, _| panic!("called for {name}")).unwrap_err();
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn an_error_goes_wherever_errors_go() {
    fn goes<E: std::error::Error + Send + Sync + 'static>(error: E) -> Box<dyn std::error::Error + Send + Sync> {
        error.into()
    }
    let error = LayerNorm::<f32>::new(3).with_eps(-1.0).unwrap_err();
    assert_eq!(goes(error.clone()).to_string(), error.to_string());
    assert_eq!(error, Error::Eps { got: -1.0 });
    let text = LayerNorm::<f32>::new(3).with_eps(-1e-5).unwrap_err().to_string();
    assert_eq!(text, "`eps` must be finite, at least 0 and not subnormal, but is -1e-5");
    assert!(format!("{error:?}").starts_with("Eps"));
}

#[test]
fn a_refused_call_leaves_saved_to_the_call_before() {
    let norm = LayerNorm::<f32>::new(3);
    let x = Array2::from_shape_fn((2, 3), |(i, j)| (i * 5 + j * j) as f32);
    let (_, mut saved) = norm.forward(&x).expect("the shapes fit");
    let mean = saved.mean().to_vec();
    let longer = Array2::zeros((5, 3));
    norm.forward_into(&longer, &mut Array2::zeros((4, 3)), &mut saved).expect_err("`y` has too few rows");
    assert_eq!(saved.mean().to_vec(), mean);
    norm.backward(&x, &saved, &x, &mut norm.zero_grad()).expect("`saved` is still of `x`");
}
