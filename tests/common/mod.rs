//! What the tests of both norms share: one name for each of their calls, drawn arrays, layouts, instruction sets and
//! threads.
#![allow(dead_code, unused_macros, unused_imports, reason = "each test uses its part")]

mod number;

use layernorm::ndarray::{
    Array, Array1, Array2, ArrayD, ArrayRef, ArrayViewD, Axis, Dimension, IntoDimension, ShapeBuilder, Slice,
};
use layernorm::{Affine, Element, LayerNorm, Parameters, Result, RmsNorm, RmsSaved, Saved, instruction_sets};

pub(crate) use number::{Number, bits, drawn};

/// u: half the distance from 1 to the next number.
pub(crate) fn rounding<T: Number>() -> f64 {
    T::epsilon().into() / 2.0
}

pub(crate) fn wide<T: Number, D: Dimension>(values: &Array<T, D>) -> Array<f64, D> {
    values.mapv(T::into)
}

/// The bits of dgain, and of dbias where there is one.
pub(crate) fn grad_bits<T: Number>(grad: &Affine<T>) -> Vec<u64> {
    bits(grad.gain().iter().flatten().chain(grad.bias().iter().flatten()))
}

/// The same values in another layout: 0 standard, 1 Fortran's, 2 the first axis backwards, 3 the last one, 4 with gaps.
pub(crate) fn laid<T: Number, D: Dimension>(values: &Array<T, D>, layout: usize) -> Array<T, D> {
    let (shape, last) = (values.raw_dim(), Axis(values.ndim() - 1));
    let mut laid = Array::zeros(shape.clone());
    match layout % 5 {
        0 => (),
        1 => laid = Array::zeros(shape.f()),
        2 => laid.invert_axis(Axis(0)),
        3 => laid.invert_axis(last),
        _ => {
            let mut memory = shape;
            memory[last.index()] *= 2;
            laid = Array::zeros(memory);
            laid.slice_axis_inplace(last, Slice::new(0, None, 2));
        }
    }
    laid.assign(values);
    laid
}

/// Few rows and many, short rows and long; with column sums of one chain, of some, and of several blocks.
pub(crate) const SHAPES: [[usize; 2]; 8] =
    [[1, 5], [9, 3], [33, 64], [65, 100], [200, 768], [9, 2049], [3, 50_000], [2000, 130]];

/// x whose row 1 has squares that overflow, row 2 ones that underflow; the layer's ε is 0 then.
pub(crate) fn extreme<T: Number>(shape: [usize; 2], seed: u64) -> Array2<T> {
    let mut x = drawn(shape, seed);
    for (row, scale) in [(1, T::HUGE), (2, 1.0 / T::HUGE)] {
        if row < shape[0] {
            x.row_mut(row).mapv_inplace(|x| x * T::of(scale));
        }
    }
    x
}

/// The calls that both norms have, and a few words for making one.
macro_rules! norms {
    ($(fn $name:ident(&self $(, $argument:ident: $type:ty)*) -> $returned:ty;)*) => {
        pub(crate) trait Norm<T: Number>: Clone + Sync + Parameters<T, Gradient = Affine<T>> {
            type Saved: Clone + Default + std::fmt::Debug + Send + Sync;
            /// With a drawn gain, and a drawn bias where the layer has one.
            fn drawn(shape: &[usize]) -> Self;
            fn eps(self, eps: f64) -> Self;
            /// On another instruction set.
            fn on(&self, set: &str) -> Self;
            fn without_parameters(self) -> Self;
            fn gain(self, gain: ArrayD<T>) -> Self;
            /// With γ = 0.
            fn zero_centred(self) -> Self;
            fn bias(self, bias: ArrayD<T>) -> Self;
            fn parameters(&self) -> Affine<T>;
            fn rstd(saved: &Self::Saved) -> Vec<T>;
            $(#[allow(clippy::too_many_arguments, reason = "the arrays of the call")]
            fn $name<D: Dimension>(&self $(, $argument: $type)*) -> $returned;)*
        }
        norms!(LayerNorm, Saved, bias, $(fn $name($($argument: $type),*) -> $returned;)*);
        norms!(RmsNorm, RmsSaved, none, $(fn $name($($argument: $type),*) -> $returned;)*);
    };
    ($norm:ident, $saved:ident, $bias:ident, $(fn $name:ident($($argument:ident: $type:ty),*) -> $returned:ty;)*) => {
        impl<T: Number> Norm<T> for $norm<T> {
            type Saved = $saved<T>;
            fn drawn(shape: &[usize]) -> Self {
                Norm::bias(Norm::gain($norm::new(shape), drawn(shape, 101)), drawn(shape, 102))
            }
            fn eps(self, eps: f64) -> Self {
                self.with_eps(T::of(eps)).unwrap()
            }
            fn on(&self, set: &str) -> Self {
                self.clone().with_instruction_set(set).unwrap()
            }
            fn without_parameters(self) -> Self {
                norms!(without $bias, self.without_gain())
            }
            fn gain(self, gain: ArrayD<T>) -> Self {
                self.with_gain(gain).unwrap()
            }
            fn zero_centred(self) -> Self {
                self.with_zero_centred_gain()
            }
            fn bias(self, bias: ArrayD<T>) -> Self {
                norms!(with $bias, self, bias)
            }
            fn parameters(&self) -> Affine<T> {
                let mut parameters = self.zero_grad();
                self.visit(|name, value| {
                    parameters.visit_mut(|other, mut place| {
                        if name == other {
                            place.assign(&value);
                        }
                    });
                });
                parameters
            }
            fn rstd(saved: &Self::Saved) -> Vec<T> {
                saved.rstd().to_vec()
            }
            $(fn $name<D: Dimension>(&self $(, $argument: $type)*) -> $returned {
                $norm::$name(self $(, $argument)*)
            })*
        }
    };
    (with bias, $norm:expr, $bias:expr) => { $norm.with_bias($bias).unwrap() };
    (with none, $norm:expr, $bias:expr) => { { let _ = $bias; $norm } };
    (without bias, $norm:expr) => { $norm.without_bias() };
    (without none, $norm:expr) => { $norm };
}

type Two<T, D> = (Array<T, D>, Array<T, D>);
type Three<T, D, S> = (Array<T, D>, Array<T, D>, S);

norms! {
    fn forward(&self, x: &ArrayRef<T, D>) -> Result<(Array<T, D>, Self::Saved)>;
    fn infer(&self, x: &ArrayRef<T, D>) -> Result<Array<T, D>>;
    fn infer_into(&self, x: &ArrayRef<T, D>, y: &mut ArrayRef<T, D>) -> Result<()>;
    fn infer_inplace(&self, x: &mut ArrayRef<T, D>) -> Result<()>;
    fn forward_inplace(&self, x: &mut ArrayRef<T, D>, saved: &mut Self::Saved) -> Result<()>;
    fn forward_into(&self, x: &ArrayRef<T, D>, y: &mut ArrayRef<T, D>, saved: &mut Self::Saved) -> Result<()>;
    fn backward(
        &self, x: &ArrayRef<T, D>, saved: &Self::Saved, dy: &ArrayRef<T, D>, grad: &mut Affine<T>
    ) -> Result<Array<T, D>>;
    fn backward_into(
        &self, x: &ArrayRef<T, D>, saved: &Self::Saved, dy: &ArrayRef<T, D>, dx: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>
    ) -> Result<()>;
    fn backward_inplace(
        &self, x: &ArrayRef<T, D>, saved: &Self::Saved, dy: &mut ArrayRef<T, D>, grad: &mut Affine<T>
    ) -> Result<()>;
    fn backward_from_output(
        &self, y: &ArrayRef<T, D>, saved: &Self::Saved, dy: &mut ArrayRef<T, D>, grad: &mut Affine<T>
    ) -> Result<()>;
    fn backward_from_normalized(
        &self, normalized: &ArrayRef<T, D>, saved: &Self::Saved, dy: &mut ArrayRef<T, D>, grad: &mut Affine<T>
    ) -> Result<()>;
    fn forward_residual(
        &self, x: &ArrayRef<T, D>, residual: &ArrayRef<T, D>
    ) -> Result<Three<T, D, Self::Saved>>;
    fn forward_residual_into(
        &self, x: &ArrayRef<T, D>, residual: &ArrayRef<T, D>, y: &mut ArrayRef<T, D>, sum: &mut ArrayRef<T, D>,
        saved: &mut Self::Saved
    ) -> Result<()>;
    fn forward_dropout_residual(
        &self, x: &ArrayRef<T, D>, mask: &ArrayRef<T, D>, residual: &ArrayRef<T, D>
    ) -> Result<Three<T, D, Self::Saved>>;
    fn forward_dropout_residual_into(
        &self, x: &ArrayRef<T, D>, mask: &ArrayRef<T, D>, residual: &ArrayRef<T, D>, y: &mut ArrayRef<T, D>,
        sum: &mut ArrayRef<T, D>, saved: &mut Self::Saved
    ) -> Result<()>;
    fn backward_residual(
        &self, sum: &ArrayRef<T, D>, saved: &Self::Saved, dy: &ArrayRef<T, D>, dsum: Option<&ArrayRef<T, D>>,
        grad: &mut Affine<T>
    ) -> Result<Array<T, D>>;
    fn backward_residual_into(
        &self, sum: &ArrayRef<T, D>, saved: &Self::Saved, dy: &ArrayRef<T, D>, dsum: Option<&ArrayRef<T, D>>,
        dx: &mut ArrayRef<T, D>, grad: &mut Affine<T>
    ) -> Result<()>;
    fn backward_dropout_residual(
        &self, sum: &ArrayRef<T, D>, saved: &Self::Saved, dy: &ArrayRef<T, D>, dsum: Option<&ArrayRef<T, D>>,
        mask: &ArrayRef<T, D>, grad: &mut Affine<T>
    ) -> Result<Two<T, D>>;
    fn backward_dropout_residual_into(
        &self, sum: &ArrayRef<T, D>, saved: &Self::Saved, dy: &ArrayRef<T, D>, dsum: Option<&ArrayRef<T, D>>,
        mask: &ArrayRef<T, D>, dx: &mut ArrayRef<T, D>, dresidual: &mut ArrayRef<T, D>, grad: &mut Affine<T>
    ) -> Result<()>;
    fn jvp(
        &self, x: &ArrayRef<T, D>, saved: &Self::Saved, x_tangent: &ArrayRef<T, D>, tangent: &Affine<T>
    ) -> Result<Array<T, D>>;
    fn jvp_into(
        &self, x: &ArrayRef<T, D>, saved: &Self::Saved, x_tangent: &ArrayRef<T, D>, tangent: &Affine<T>,
        y_tangent: &mut ArrayRef<T, D>
    ) -> Result<()>;
    fn double_backward(
        &self, x: &ArrayRef<T, D>, saved: &Self::Saved, dy: &ArrayRef<T, D>, ddx: &ArrayRef<T, D>,
        dgrad: &Affine<T>, grad: &mut Affine<T>
    ) -> Result<Two<T, D>>;
    fn double_backward_into(
        &self, x: &ArrayRef<T, D>, saved: &Self::Saved, dy: &ArrayRef<T, D>, ddx: &ArrayRef<T, D>,
        dgrad: &Affine<T>, dx: &mut ArrayRef<T, D>, ddy: &mut ArrayRef<T, D>, grad: &mut Affine<T>
    ) -> Result<()>;
}

/// How gain and bias move.
pub(crate) fn direction<T: Number, N: Norm<T>>(norm: &N, seed: u64) -> Affine<T> {
    let shape = norm.parameters().gain().map_or(vec![], |gain| gain.shape().to_vec());
    norm.clone().gain(drawn(&*shape, seed)).bias(drawn(&*shape, seed + 1)).parameters()
}

/// The gain, or the bias: zeros where there is none.
pub(crate) fn flat<T: Number>(values: Option<ArrayViewD<'_, T>>, features: usize) -> Array1<f64> {
    values.map_or(Array1::zeros(features), |values| values.iter().map(|&value| value.into()).collect())
}

/// Calls each function as a test of each norm in each of some types.
macro_rules! tests_of_both {
    ($($type:ident: $($test:ident)*;)*) => {$(
        mod $type {
            $(mod $test {
                #[test]
                fn layer_norm() {
                    crate::$test::<$type, layernorm::LayerNorm<$type>>();
                }

                #[test]
                fn rms_norm() {
                    crate::$test::<$type, layernorm::RmsNorm<$type>>();
                }
            })*
        }
    )*};
}

pub(crate) use tests_of_both;

/// Asserts that `run` gives the same on every instruction set, and on 1 and 3 threads; returns it.
pub(crate) fn everywhere<T: Number, N: Norm<T>, R: PartialEq + Send>(
    norm: &N,
    shape: [usize; 2],
    run: impl Fn(&N) -> R + Sync,
) -> R {
    let want = run(norm);
    let small = shape[0] * shape[1] < 10_000;
    for set in instruction_sets().into_iter().filter(|set| *set != "fallback" || small) {
        assert!(run(&norm.on(set)) == want, "{shape:?} on {set}");
    }
    #[cfg(feature = "rayon")]
    for threads in [1, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert!(pool.install(|| run(norm)) == want, "{shape:?} on {threads} threads");
    }
    want
}
