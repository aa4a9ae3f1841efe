//! Statistics over many batches, which the caller holds.

use layernorm::BatchNorm;
use layernorm::ndarray::{Array, Array2, array};

#[test]
fn a_feature_that_never_varied_is_its_bias() {
    let norm = BatchNorm::<f32>::new(1).with_eps(0.0).unwrap().with_bias(array![0.5]).unwrap();
    let (_, saved) = norm.forward(&array![[10.0], [10.0]]).unwrap();
    let mut running = norm.running();
    running.update(&saved, 1.0).unwrap();
    assert_eq!(norm.infer(&array![[10.0], [11.0]], &running).unwrap(), array![[0.5], [0.5]]);
}

#[test]
fn statistics_without_weight_do_not_matter() {
    let norm = BatchNorm::<f32>::new(1);
    let (_, saved) = norm.forward(&array![[1.0], [5.0]]).unwrap();
    let (_, infinite) = norm.forward(&array![[f32::MAX], [f32::INFINITY]]).unwrap();
    let mut running = norm.running();
    running.update(&infinite, 0.0).unwrap();
    assert_eq!(running, norm.running());
    running.update(&infinite, 0.5).unwrap();
    assert!(running.mean()[0].is_nan() && running.variance()[0].is_nan());
    running.update(&saved, 1.0).unwrap();
    assert_eq!((running.mean()[0], running.variance()[0]), (3.0, 4.0));
}

/// As PyTorch keeps it.
#[test]
fn running_variance_may_be_unbiased_where_y_is_not() {
    let norm = BatchNorm::<f64>::new([1, 2]);
    let x = array![[[[1.0, 2.0]], [[3.0, 10.0]]], [[[5.0, 6.0]], [[7.0, 6.0]]]];
    let (_, saved) = norm.forward(&x).unwrap();
    assert_eq!(saved.variance(), array![[5.0, 8.0]].into_dyn());
    let (mut running, mut of_unbiased) = (norm.running(), norm.running());
    running.update_unbiased(&saved, 0.75).unwrap();
    assert_eq!(running.mean(), array![[3.0, 4.5]].into_dyn());
    assert_eq!(running.variance(), array![[0.25 + 5.0, 0.25 + 8.0]].into_dyn());
    // A layer that has it already.
    let (_, saved) = norm.clone().with_unbiased_variance().forward(&x).unwrap();
    of_unbiased.update_unbiased(&saved, 0.75).unwrap();
    assert_eq!(of_unbiased, running);
    of_unbiased.update(&saved, 0.75).unwrap();
    running.update_unbiased(&saved, 0.75).unwrap();
    assert_eq!(of_unbiased, running);
    // Of no rows nothing is known.
    let (_, saved) = norm.forward(&Array::zeros((3, 0, 1, 2))).unwrap();
    running.update_unbiased(&saved, 0.75).unwrap();
    assert_eq!(of_unbiased, running);
}

#[test]
fn running_statistics_are_what_the_equation_says() {
    let norm = BatchNorm::<f64>::new(2).with_unbiased_variance();
    let mut running = norm.running();
    assert_eq!(
        (running.mean(), running.variance()),
        (array![0.0, 0.0].into_dyn().view(), array![1.0, 1.0].into_dyn().view())
    );
    let (_, saved) = norm.forward(&array![[1.0, 2.0], [3.0, 10.0]]).unwrap();
    assert_eq!(saved.variance(), array![2.0, 32.0].into_dyn());
    running.update(&saved, 0.0).unwrap();
    assert_eq!(running, norm.running());
    running.update(&saved, 0.25).unwrap();
    assert_eq!(
        (running.mean(), running.variance()),
        (array![0.5, 1.5].into_dyn().view(), array![1.25, 8.75].into_dyn().view())
    );
    running.update(&saved, 1.0).unwrap();
    assert_eq!((running.mean(), running.variance()), (saved.mean(), saved.variance()));

    // Into what a call with rows has filled.
    let (mut y, mut saved) = (Array2::zeros((0, 2)), saved);
    norm.forward_into(&y.clone(), &mut y, &mut saved).unwrap();
    let zeros = array![0.0, 0.0].into_dyn();
    assert_eq!([saved.mean(), saved.variance(), saved.rstd()], [zeros.view(), zeros.view(), zeros.view()]);
    let before = running.clone();
    running.update(&saved, 0.5).unwrap();
    assert_eq!(running, before);
    let mut grad = norm.zero_grad();
    grad.gain_mut().unwrap().fill(3.0);
    norm.backward(&y, &saved, &y, &mut grad).unwrap();
    assert_eq!(grad.gain().unwrap(), array![3.0, 3.0].into_dyn());
}

#[test]
fn running_statistics_are_walked_by_name() {
    let mut running = BatchNorm::<f32>::new([2, 3]).running();
    running.visit_mut(|name, mut array| array.fill(if name == "mean" { 2.0 } else { 3.0 }));
    assert!(running.mean() == Array2::from_elem((2, 3), 2.0).into_dyn());
    assert!(running.variance() == Array2::from_elem((2, 3), 3.0).into_dyn());
    let mut names = Vec::new();
    running.visit(|name, value| names.push((name.to_owned(), value[[1, 2]])));
    assert_eq!(names, [("mean".to_owned(), 2.0), ("variance".to_owned(), 3.0)]);
}
