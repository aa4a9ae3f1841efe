//! `layernorm` on numpy's arrays, for `peers.py`: the forms that use the caller's memory, beside peers that do.

use layernorm::{Affine, Error, LayerNorm, Saved};
use numpy::{IntoPyArray, PyArray1, PyReadonlyArray1, PyReadonlyArray2, PyReadwriteArray2};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

#[pymodule]
fn layernorm_numpy(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Layer>()
}

/// A layer with what its calls keep: `backward` is that of the last `forward`.
#[pyclass]
struct Layer {
    norm: LayerNorm<f32>,
    saved: Saved<f32>,
    grad: Affine<f32>,
    /// Calls come from a thread of this pool; without, from Python's, and the threads are those of rayon's global pool.
    pool: Option<ThreadPool>,
}

#[pymethods]
impl Layer {
    /// `threads`: of a pool of its own.
    #[new]
    fn new(
        gain: PyReadonlyArray1<'_, f32>,
        bias: PyReadonlyArray1<'_, f32>,
        eps: f32,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let layer = || -> Result<LayerNorm<f32>, Error> {
            let (gain, bias) = (gain.as_array(), bias.as_array());
            LayerNorm::new(gain.len()).with_eps(eps)?.with_gain(gain.to_owned())?.with_bias(bias.to_owned())
        };
        let norm = layer().map_err(value_error)?;
        let pool = |threads| ThreadPoolBuilder::new().num_threads(threads).build();
        let pool = threads.map(pool).transpose().map_err(value_error)?;
        Ok(Self { saved: Saved::default(), grad: norm.zero_grad(), norm, pool })
    }

    /// y of x, so many times.
    fn forward(
        &mut self,
        x: PyReadonlyArray2<'_, f32>,
        mut y: PyReadwriteArray2<'_, f32>,
        times: usize,
    ) -> PyResult<()> {
        let (x, mut y) = (x.as_array(), y.as_array_mut());
        let Self { norm, saved, pool, .. } = self;
        repeat(pool, times, || norm.forward_into(&x, &mut y, saved))
    }

    /// dx of x and dy, so many times; dgain and dbias are those of one.
    fn backward(
        &mut self,
        x: PyReadonlyArray2<'_, f32>,
        dy: PyReadonlyArray2<'_, f32>,
        mut dx: PyReadwriteArray2<'_, f32>,
        times: usize,
    ) -> PyResult<()> {
        let (x, dy, mut dx) = (x.as_array(), dy.as_array(), dx.as_array_mut());
        let Self { norm, saved, grad, pool } = self;
        repeat(pool, times, || {
            // As those of the peers, they do not add up.
            grad.fill_zero();
            norm.backward_into(&x, saved, &dy, &mut dx, grad)
        })
    }

    /// dgain and dbias of the last `backward`.
    fn gradients<'py>(&self, py: Python<'py>) -> [Bound<'py, PyArray1<f32>>; 2] {
        [self.grad.gain(), self.grad.bias()]
            .map(|sums| sums.into_iter().flatten().copied().collect::<Vec<_>>().into_pyarray(py))
    }
}

fn repeat(pool: &Option<ThreadPool>, times: usize, mut call: impl FnMut() -> Result<(), Error> + Send) -> PyResult<()> {
    let mut all = || (0..times).try_for_each(|_| call());
    match pool {
        Some(pool) => pool.install(all),
        None => all(),
    }
    .map_err(value_error)
}

fn value_error(error: impl ToString) -> PyErr {
    PyValueError::new_err(error.to_string())
}
