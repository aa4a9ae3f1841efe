//! Arrays of any rank, any strides and any owner: the bits are those of a copy in standard layout.

use layernorm::ndarray::{
    ArcArray, Array, Array1, Array2, Array3, ArrayBase, ArrayD, ArrayRef, ArrayView, ArrayView2, Axis, CowArray,
    Dimension, Ix1, Ix2, Ix3, Ix4, Ix5, Ix6, IxDyn, RawData, Slice, s,
};
use layernorm::{Affine, Element, LayerNorm, Saved};
use proptest::prelude::*;

/// Of an `f64` with the same value: no NaN comes up here.
fn bits<T: Element>(x: T) -> u64 {
    x.into().to_bits()
}

/// Element `i` of a pattern with a prime period, with full mantissas.
fn pattern<T: Element>(i: usize) -> T {
    let i = i % 1009;
    <T as num_traits::NumCast>::from((31 * i * i + 17 * i) % 1009).expect("a small number")
        / <T as num_traits::NumCast>::from(297).expect("a small number")
}

fn filled<T: Element, D: Dimension>(shape: D, first: usize) -> Array<T, D> {
    let mut i = first;
    Array::from_shape_simple_fn(shape, || {
        i += 1;
        pattern(i)
    })
}

/// The same elements in standard layout.
fn copy<T: Element, D: Dimension>(array: &ArrayRef<T, D>) -> Array<T, D> {
    let elements = array.iter().copied().collect();
    Array::from_shape_vec(array.raw_dim(), elements).expect("as many elements as the shape has")
}

/// Fails at the first element that differs.
#[track_caller]
fn same<T: Element, D: Dimension>(name: &str, got: &ArrayRef<T, D>, expected: &ArrayRef<T, D>) {
    assert_eq!(got.shape(), expected.shape(), "{name}");
    let shape = expected.shape();
    for ((at, &got), &expected) in got.indexed_iter().zip(expected) {
        assert!(bits(got) == bits(expected), "{name} at {at:?} of {shape:?}: {got}, not {expected}");
    }
}

/// What a layer makes of arrays in standard layout.
struct Expected<T, D: Dimension> {
    y: Array<T, D>,
    saved: Saved<T>,
    dx: Array<T, D>,
    grad: Affine<T>,
}

impl<T: Element, D: Dimension> Expected<T, D> {
    fn new(norm: &LayerNorm<T>, x: &ArrayRef<T, D>, dy: &ArrayRef<T, D>) -> Self {
        let fits = "the shapes fit";
        let (x, dy) = (copy(x), copy(dy));
        let (mut y, mut saved) = (Array::zeros(x.raw_dim()), Saved::default());
        norm.forward_into(&x, &mut y, &mut saved).expect(fits);
        let (mut dx, mut grad) = (Array::zeros(x.raw_dim()), norm.zero_grad());
        norm.backward_into(&x, &saved, &dy, &mut dx, &mut grad).expect(fits);
        Self { y, saved, dx, grad }
    }

    /// Makes every call, with outputs of any layout. `inplace` has the elements of `x`.
    fn check(&self, norm: &LayerNorm<T>, [x, dy]: [&ArrayRef<T, D>; 2], [y, dx, inplace]: [&mut ArrayRef<T, D>; 3]) {
        let fits = "the shapes fit";
        let (fresh, saved) = norm.forward(x).expect(fits);
        assert!(fresh.is_standard_layout());
        same("forward", &fresh, &self.y);
        same("mean", &saved.mean(), &self.saved.mean());
        same("rstd", &saved.rstd(), &self.saved.rstd());
        same("infer", &norm.infer(x).expect(fits), &self.y);
        let mut grad = norm.zero_grad();
        let fresh = norm.backward(x, &saved, dy, &mut grad).expect(fits);
        assert!(fresh.is_standard_layout());
        same("backward", &fresh, &self.dx);
        assert_eq!(grad, self.grad, "backward");

        let mut saved = Saved::default();
        norm.infer_into(x, y).expect(fits);
        same("infer_into", y, &self.y);
        y.fill(T::nan());
        norm.forward_into(x, y, &mut saved).expect(fits);
        same("forward_into", y, &self.y);
        norm.infer_inplace(inplace).expect(fits);
        same("infer_inplace", inplace, &self.y);
        let mut grad = norm.zero_grad();
        norm.backward_into(x, &saved, dy, dx, &mut grad).expect(fits);
        same("backward_into", dx, &self.dx);
        assert_eq!(grad, self.grad, "backward_into");
    }
}

/// Where the elements of an array lie.
#[derive(Clone, Debug)]
struct Layout {
    /// The axes, from the slowest in memory to the fastest.
    order: Vec<usize>,
    /// The step along each axis; backwards if negative.
    steps: Vec<isize>,
    /// Elements in front of the first along each axis.
    front: Vec<usize>,
}

impl Layout {
    /// The shape of the memory.
    fn memory(&self, shape: &[usize]) -> IxDyn {
        let len = |&axis: &usize| self.front[axis] + (shape[axis] - 1) * self.steps[axis].unsigned_abs() + 1;
        IxDyn(&self.order.iter().map(len).collect::<Vec<_>>())
    }

    /// The array that lies in `memory`.
    fn of<S: RawData>(&self, memory: ArrayBase<S, IxDyn>) -> ArrayBase<S, IxDyn> {
        let mut places = vec![0; self.order.len()];
        self.order.iter().enumerate().for_each(|(place, &axis)| places[axis] = place);
        let mut array = memory.permuted_axes(places);
        for (axis, (&front, &step)) in self.front.iter().zip(&self.steps).enumerate() {
            array.slice_axis_inplace(Axis(axis), Slice::new(front as isize, None, step));
        }
        array
    }
}

/// An array's shape, how many of its axes are a row, and the layouts of all arguments.
#[derive(Clone, Debug)]
struct Case {
    shape: Vec<usize>,
    trailing: usize,
    /// Whether x and dy repeat one element along an axis.
    repeat: Vec<[bool; 2]>,
    /// Of x, dy, y, dx and the array that is normalized in place.
    layouts: Vec<Layout>,
    /// Of gain and bias.
    parameters: Vec<Layout>,
}

fn layout(rank: usize) -> impl Strategy<Value = Layout> {
    let axes: Vec<_> = (0..rank).collect();
    let step = prop_oneof![5 => Just(1), 1 => Just(2), 1 => Just(3), 2 => Just(-1), 1 => Just(-2)];
    let front = prop_oneof![4 => Just(0), 1 => Just(1)];
    let any =
        (Just(axes.clone()).prop_shuffle(), prop::collection::vec(step, rank), prop::collection::vec(front, rank));
    let any = any.prop_map(|(order, steps, front)| Layout { order, steps, front });
    let standard = Layout { order: axes, steps: vec![1; rank], front: vec![0; rank] };
    prop_oneof![3 => any, 1 => Just(standard)]
}

fn case() -> impl Strategy<Value = Case> {
    let sizes = (1..=6usize).prop_flat_map(|rank| {
        // One axis may be longer than a vector.
        (prop::collection::vec(1..=4usize, rank), 0..rank, 1..=40usize, 1..=rank.min(3))
    });
    sizes.prop_flat_map(|(mut shape, long, len, trailing)| {
        let rank = shape.len();
        shape[long] = len;
        let repeats = prop::bool::weighted(0.1);
        (
            Just(shape),
            Just(trailing),
            prop::collection::vec([repeats, repeats], rank),
            prop::collection::vec(layout(rank), 5),
            prop::collection::vec(layout(trailing), 2),
        )
            .prop_map(|(shape, trailing, repeat, layouts, parameters)| Case {
                shape,
                trailing,
                repeat,
                layouts,
                parameters,
            })
    })
}

fn check_case<T: Element>(case: &Case) {
    let Case { shape, trailing, repeat, layouts, parameters } = case;
    let fits = "the shapes fit";
    let row = &shape[shape.len() - trailing..];
    let [gain, bias] = [0, 1].map(|i| parameters[i].of(filled::<T, _>(parameters[i].memory(row), 100 * i)));
    let norm = LayerNorm::<T>::new(IxDyn(row));
    let plain = norm.clone().with_gain(copy(&gain)).and_then(|norm| norm.with_bias(copy(&bias))).expect(fits);
    let norm = norm.with_gain(gain).and_then(|norm| norm.with_bias(bias)).expect(fits);

    let [x, dy] = [0, 1].map(|i| {
        let once: Vec<_> = shape.iter().zip(repeat).map(|(&len, repeat)| if repeat[i] { 1 } else { len }).collect();
        filled::<T, _>(layouts[i].memory(&once), 500 * i)
    });
    let (x, dy) = (layouts[0].of(x.view()), layouts[1].of(dy.view()));
    let [x, dy] =
        [&x, &dy].map(|once| once.broadcast(IxDyn(shape)).expect("an axis is repeated or as long as it should be"));

    let garbage = <T as num_traits::NumCast>::from(-12345.0).expect("a small number");
    let mut memories = [2, 3, 4].map(|i| ArrayD::from_elem(layouts[i].memory(shape), garbage));
    {
        let [y, dx, inplace] = &mut memories;
        let mut inplace = layouts[4].of(inplace.view_mut());
        inplace.assign(&x);
        let (mut y, mut dx) = (layouts[2].of(y.view_mut()), layouts[3].of(dx.view_mut()));
        Expected::new(&plain, &x, &dy).check(&norm, [&x, &dy], [&mut y, &mut dx, &mut inplace]);
    }
    for (memory, name) in memories.iter().zip(["y", "dx", "x in place"]) {
        let between = memory.iter().filter(|&&x| x == garbage).count();
        assert_eq!(between, memory.len() - x.len(), "elements between those of {name} have changed");
    }
}

proptest! {
    // A failure becomes a test of its own, not a file of seeds.
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(600) })]

    #[test]
    fn f32_layouts_give_the_same_bits(case in case()) {
        check_case::<f32>(&case);
    }

    #[test]
    fn f64_layouts_give_the_same_bits(case in case()) {
        check_case::<f64>(&case);
    }
}

/// Every static rank, its axes in the opposite order and every second one backwards.
fn check_rank<D: Dimension>(shape: D, trailing: usize) {
    let across = |first| {
        let mut reversed = shape.clone();
        reversed.slice_mut().reverse();
        let mut array = filled::<f32, D>(reversed, first).reversed_axes();
        (0..shape.ndim()).step_by(2).for_each(|axis| array.invert_axis(Axis(axis)));
        array
    };
    let norm = LayerNorm::new(IxDyn(&shape.slice()[shape.ndim() - trailing..]));
    let (x, dy) = (across(0), across(50));
    let mut outputs = [across(1), across(2), x.clone()];
    Expected::new(&norm, &x, &dy).check(&norm, [&x, &dy], outputs.each_mut().map(|output| &mut **output));
}

#[test]
fn arrays_of_a_static_rank_give_the_same_bits() {
    check_rank(Ix1(37), 1);
    check_rank(Ix2(9, 21), 1);
    check_rank(Ix2(9, 21), 2);
    check_rank(Ix3(4, 5, 19), 1);
    check_rank(Ix3(4, 5, 19), 2);
    check_rank(Ix3(4, 5, 19), 3);
    check_rank(Ix4(3, 4, 5, 6), 2);
    check_rank(Ix5(3, 1, 4, 2, 5), 3);
    check_rank(Ix6(2, 3, 1, 4, 2, 3), 3);
}

/// So large that there are many tiles, and that threads run.
fn check_images<T: Element>() {
    let (batch, channels, height, width) = (4, 48, 33, 35);
    let pixels = filled::<T, _>(Ix4(batch, channels, height, width), 0);
    let slopes = filled::<T, _>(Ix4(batch, channels, height, width), 500);
    // The channels of each pixel, channels lying outside or inside.
    let channels_last = [0, 2, 3, 1];
    let (x, dy) = (pixels.view().permuted_axes(channels_last), slopes.view().permuted_axes(channels_last));
    let mut outputs = [(); 3].map(|()| pixels.clone().permuted_axes(channels_last));
    let norm = LayerNorm::new(channels);
    Expected::new(&norm, &x, &dy).check(&norm, [&x, &dy], outputs.each_mut().map(|output| &mut **output));
    // All of an image that lies in memory with its channels inside.
    let inside = |first| filled::<T, _>(Ix4(batch, height, width, channels), first).permuted_axes([0, 3, 1, 2]);
    let (x, dy) = (inside(0), inside(500));
    let mut outputs = [inside(1), inside(2), x.clone()];
    let norm = LayerNorm::new([channels, height, width]);
    Expected::new(&norm, &x, &dy).check(&norm, [&x, &dy], outputs.each_mut().map(|output| &mut **output));
    // A time step after the other of sequences that lie side by side, every second one.
    let steps = [1, 0, 2, 3];
    let (mut x, mut dy) = (pixels.view().permuted_axes(steps), slopes.view().permuted_axes(steps));
    let mut outputs = [(); 3].map(|()| pixels.clone().permuted_axes(steps));
    x.slice_axis_inplace(Axis(0), Slice::new(0, None, -2));
    dy.slice_axis_inplace(Axis(0), Slice::new(1, None, 2));
    outputs.iter_mut().for_each(|output| output.slice_axis_inplace(Axis(0), Slice::new(0, None, 2)));
    outputs[2].assign(&x);
    let norm = LayerNorm::new([height, width]);
    Expected::new(&norm, &x, &dy).check(&norm, [&x, &dy], outputs.each_mut().map(|output| &mut **output));
}

#[test]
fn images_of_any_order_of_axes_give_the_same_bits() {
    check_images::<f32>();
    check_images::<f64>();
}

#[test]
fn an_array_of_no_rows_changes_nothing() {
    fn check<D: Dimension>(shape: D, trailing: usize) {
        let norm = LayerNorm::<f32>::new(IxDyn(&shape.slice()[shape.ndim() - trailing..]));
        let mut reversed = shape.clone();
        reversed.slice_mut().reverse();
        for array in [Array::zeros(shape.clone()), Array::zeros(reversed).reversed_axes()] {
            let mut outputs = [array.clone(), array.clone(), array.clone()];
            let expected = Expected::new(&norm, &array, &array);
            expected.check(&norm, [&array, &array], outputs.each_mut().map(|output| &mut **output));
            assert_eq!((expected.y.shape(), expected.saved.mean().len()), (shape.slice(), 0));
            let mut grad = norm.zero_grad();
            grad.gain_mut().expect("a new layer has a gain").fill(-0.0);
            norm.backward(&array, &expected.saved, &array, &mut grad).expect("the shapes fit");
            let untouched = |&dgain: &f32| dgain.to_bits() == (-0.0f32).to_bits();
            assert!(grad.gain().expect("a new layer has a gain").iter().all(untouched), "{:?}", shape.slice());
        }
    }
    check(Ix2(0, 3), 1);
    check(Ix3(0, 2, 3), 1);
    check(Ix3(2, 0, 3), 1);
    check(Ix3(0, 2, 3), 2);
    check(Ix4(0, 5, 0, 3), 1);
    check(Ix4(7, 0, 2, 3), 2);
    check(IxDyn(&[3, 0, 2, 1, 4]), 3);
}

#[test]
fn saved_takes_the_shape_of_each_call() {
    let norm = LayerNorm::<f32>::new(4);
    let mut saved = Saved::default();
    for rows in [5, 2, 0, 9] {
        let x = filled(Ix2(rows, 4), 0);
        norm.forward_into(&x, &mut x.clone(), &mut saved).expect("the shapes fit");
        let expected = Expected::new(&norm, &x, &x);
        same("mean", &saved.mean(), &expected.saved.mean());
        same("dx", &norm.backward(&x, &saved, &x, &mut norm.zero_grad()).expect("the shapes fit"), &expected.dx);
    }
}

#[test]
fn any_owner_is_an_argument() {
    let norm = LayerNorm::<f64>::new(3);
    let x: Array2<f64> = filled(Ix2(4, 3), 0);
    let Expected { y, saved, dx, .. } = Expected::new(&norm, &x, &x);
    let wide: Array2<f64> = filled(Ix2(4, 7), 0);

    fn by_reference(norm: &LayerNorm<f64>, x: &ArrayRef<f64, Ix2>) -> Array2<f64> {
        norm.infer(x).expect("the shapes fit")
    }
    same("by reference", &by_reference(&norm, &x), &y);
    let view: ArrayView2<'_, f64> = x.view();
    same("view", &norm.infer(&view).expect("the shapes fit"), &y);
    let shared: ArcArray<f64, Ix2> = x.to_shared();
    same("shared", &norm.forward(&shared).expect("the shapes fit").0, &y);
    let cow = CowArray::from(&x);
    let mut grad = norm.zero_grad();
    same("cow", &norm.backward(&cow, &saved, &view, &mut grad).expect("the shapes fit"), &dx);
    let slice = wide.slice(s![.., 1..;2]);
    same("slice", &norm.infer(&slice).expect("the shapes fit"), &norm.infer(&copy(&slice)).expect("the shapes fit"));
    let of_view = slice.slice(s![..;-2, ..]);
    same("slice of a view", &norm.infer(&wide.slice(s![..;-2, 1..;2])).expect("the shapes fit"), &{
        norm.infer(&of_view).expect("the shapes fit")
    });
    same("dynamic", &norm.infer(&x.view().into_dyn()).expect("the shapes fit"), &y.view().into_dyn());

    // Outputs: a slice of an array, and an array that is shared with another.
    let mut all = Array3::zeros((2, 4, 3));
    norm.infer_into(&x, &mut all.slice_mut(s![1, .., ..])).expect("the shapes fit");
    same("slice of the output", &all.index_axis(Axis(0), 1), &y);
    assert!(all.index_axis(Axis(0), 0).iter().all(|&untouched| untouched == 0.0));
    let mut second = shared.clone();
    norm.infer_inplace(&mut second).expect("the shapes fit");
    same("shared, in place", &second, &y);
    same("shared with it", &shared, &x);
    let mut cow = CowArray::from(&x);
    norm.infer_inplace(&mut cow).expect("the shapes fit");
    same("cow, in place", &cow, &y);
}

#[test]
fn one_row_may_have_no_leading_axis() {
    let x: Array1<f32> = filled(Ix1(100), 0);
    let norm = LayerNorm::new(100);
    let (y, saved) = norm.forward(&x).expect("the shapes fit");
    assert_eq!((y.len(), saved.mean().len(), saved.rstd().len()), (100, 1, 1));
    let rows = ArrayView::from_shape((1, 100), x.as_slice().expect("standard layout")).expect("as many elements");
    same("one row of a batch", &norm.infer(&rows).expect("the shapes fit").row(0), &y);
}

#[test]
fn parameters_are_given_in_their_logical_order() {
    let rows: Array2<f32> = filled(Ix2(3, 5), 7);
    let standard = copy(&rows);
    let mut backwards = rows.clone();
    backwards.invert_axis(Axis(1));
    let owners = [copy(&rows.t()).reversed_axes(), copy(&backwards).slice_move(s![.., ..;-1])];
    let x: Array3<f32> = filled(Ix3(4, 3, 5), 0);
    let expected = LayerNorm::new([3, 5]).with_gain(standard.clone()).and_then(|norm| norm.with_bias(standard.clone()));
    let expected = expected.and_then(|norm| norm.infer(&x)).expect("the shapes fit");
    for owner in owners {
        assert!(!owner.is_standard_layout() && owner == standard);
        let norm = LayerNorm::new([3, 5]).with_gain(owner.clone()).and_then(|norm| norm.with_bias(owner));
        let norm = norm.expect("the shapes fit");
        same("gain", &norm.gain().expect("it has one"), &standard.view().into_dyn());
        same("bias", &norm.bias().expect("it has one"), &standard.view().into_dyn());
        same("y", &norm.infer(&x).expect("the shapes fit"), &expected);
    }
}
