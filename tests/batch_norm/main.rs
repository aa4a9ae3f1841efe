//! Batch normalization: right beside the double-double oracle at any scale, and what else every layer promises.

mod accuracy;
mod contract;
mod frozen;
#[path = "../common/number.rs"]
mod number;
mod running;

use layernorm::ndarray::{Array, Array1, Array2, ArrayView1, ArrayViewD, Axis, Ix2, Slice};
use layernorm::{BatchNorm, BatchSaved};
use number::{Number, bits, drawn};

fn layer<T: Number>(features: usize) -> BatchNorm<T> {
    let parameter = |seed| drawn(features, seed);
    BatchNorm::new(features).with_gain(parameter(101)).unwrap().with_bias(parameter(102)).unwrap()
}

fn wide<T: Number>(values: ArrayView1<'_, T>) -> Vec<f64> {
    values.iter().map(|&value| value.into()).collect()
}

fn flat<T: Number>(values: Option<ArrayViewD<'_, T>>) -> Array1<T> {
    values.unwrap().iter().copied().collect()
}

/// What one training step computes.
struct Step<T> {
    saved: BatchSaved<T>,
    y: Array2<T>,
    dx: Array2<T>,
    dgain: Array1<T>,
    dbias: Array1<T>,
}

impl<T: Number> Step<T> {
    fn new(norm: &BatchNorm<T>, x: &Array2<T>, dy: &Array2<T>) -> Self {
        let (y, saved) = norm.forward(x).unwrap();
        let mut grad = norm.zero_grad();
        let dx = norm.backward(x, &saved, dy, &mut grad).unwrap();
        let (dgain, dbias) = (flat(grad.gain()), flat(grad.bias()));
        Self { saved, y, dx, dgain, dbias }
    }

    fn bits(&self) -> Vec<u64> {
        let Self { saved, y, dx, dgain, dbias } = self;
        let of_columns =
            [saved.mean(), saved.variance(), saved.rstd(), dgain.view().into_dyn(), dbias.view().into_dyn()];
        bits(of_columns.iter().flatten().chain(y).chain(dx))
    }
}

/// Columns that the hot path cannot take: huge, tiny, constant, and with a sample that tells nothing of the rest.
fn wild<T: Number>(rows: usize, features: usize) -> Array2<T> {
    let mut x = drawn::<T, _>([rows, features], 1);
    for (j, mut column) in x.axis_iter_mut(Axis(1)).enumerate() {
        match j % 8 {
            1 => column.mapv_inplace(|x| x * T::of(T::HUGE)),
            3 => column.mapv_inplace(|x| x / T::of(T::HUGE)),
            4 => column.fill(T::of(0.7)),
            6 => column.indexed_iter_mut().for_each(|(i, x)| {
                if i * 16 % rows < 16 {
                    *x = T::of(1e6);
                }
            }),
            _ => {}
        }
    }
    x
}

/// The same numbers in other places of memory.
fn placed<T: Number>(values: &Array2<T>, layout: usize) -> Array<T, Ix2> {
    let (rows, features) = values.dim();
    let mut placed = match layout {
        0 => Array2::zeros((features, rows)).reversed_axes(),
        1 => {
            let mut apart = Array2::zeros((2 * rows, features + 3));
            apart.slice_axis_inplace(Axis(0), Slice::new(1, None, 2));
            apart.slice_axis_inplace(Axis(1), Slice::new(2, Some(-1), 1));
            apart
        }
        _ => {
            let mut turned = Array2::zeros((rows, features));
            turned.invert_axis(Axis(0));
            turned.invert_axis(Axis(1));
            turned
        }
    };
    placed.assign(values);
    placed
}
