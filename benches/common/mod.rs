//! What the benches share: shapes, inputs, and the loops that layer normalization is measured against.

pub(crate) mod loops;
pub(crate) mod threads;

use fearless_simd::{Level, dispatch};
use layernorm::{LayerNorm, Saved};
use loops::{BOUND, halves, near, near_sum, plain_stream, stream, vector_copy};
use ndarray::{Array1, Array2, Axis};

/// `rows × features`, from one row to the largest caches and beyond, long and short, wide and narrow.
pub(crate) const SHAPES: [(usize, usize); 12] = [
    (1, 400),
    (64, 512),
    (128, 1000),
    (64, 2400),
    (8192, 768),
    (8192, 1024),
    (2048, 4096),
    (512, 12288),
    (16, 65536),
    (65536, 64),
    (32768, 256),
    (4, 1048576),
];

type Call = fn(&mut Case);

/// Everything a call needs.
pub(crate) struct Case {
    pub(crate) norm: LayerNorm<f32>,
    pub(crate) x: Array2<f32>,
    pub(crate) dy: Array2<f32>,
    pub(crate) y: Array2<f32>,
    pub(crate) dx: Array2<f32>,
    pub(crate) saved: Saved<f32>,
    pub(crate) grad: layernorm::Affine<f32>,
}

impl Case {
    pub(crate) fn new(rows: usize, features: usize) -> Self {
        let random = |seed, len| Array1::from_iter(textbook::pattern(len, seed).into_iter().map(|x| x as f32));
        let matrix = |seed| random(seed, rows * features).into_shape_with_order((rows, features)).expect("as many");
        let norm = LayerNorm::new(features).with_gain(random(1, features) + 1.0).expect("as many");
        let norm = norm.with_bias(random(2, features)).expect("as many");
        let (x, dy) = (matrix(3), matrix(4));
        let (y, saved) = norm.forward(&x).expect("the shapes fit");
        let (dx, grad) = (Array2::zeros(x.raw_dim()), norm.zero_grad());
        Self { norm, x, dy, y, dx, saved, grad }
    }

    pub(crate) fn forward(&mut self) {
        self.norm.forward_into(&self.x, &mut self.y, &mut self.saved).expect("the shapes fit");
    }

    pub(crate) fn infer(&mut self) {
        self.norm.infer_into(&self.x, &mut self.y).expect("the shapes fit");
    }

    pub(crate) fn backward(&mut self) {
        let Self { norm, x, dy, dx, saved, grad, .. } = self;
        norm.backward_into(x, saved, dy, dx, grad).expect("the shapes fit");
    }

    /// The least that forward can cost: x read, y written.
    pub(crate) fn copy(&mut self) {
        let (x, y) = (self.x.as_slice().expect("standard"), self.y.as_slice_mut().expect("standard"));
        halves(x, x, y, |x, _, y| y.copy_from_slice(x));
    }

    /// The same with vectors; on small arrays it can be the faster of the two.
    pub(crate) fn vector_copy(&mut self) {
        let (x, y) = (self.x.as_slice().expect("standard"), self.y.as_slice_mut().expect("standard"));
        halves(x, x, y, |x, _, y| dispatch!(Level::new(), simd => vector_copy(simd, x, y)));
    }

    /// The least that backward can cost: x and dy read, dx written.
    pub(crate) fn stream(&mut self) {
        let (x, dy) = (self.x.as_slice().expect("standard"), self.dy.as_slice().expect("standard"));
        let dx = self.dx.as_slice_mut().expect("standard");
        halves(x, dy, dx, |x, dy, dx| dispatch!(Level::new(), simd => stream(simd, x, dy, dx)));
    }

    /// The same without wide vectors; where arrays do not start at cache lines it can be the faster of the two.
    pub(crate) fn plain_stream(&mut self) {
        let (x, dy) = (self.x.as_slice().expect("standard"), self.dy.as_slice().expect("standard"));
        halves(x, dy, self.dx.as_slice_mut().expect("standard"), plain_stream);
    }

    /// Forward as ndarray's documentation teaches it.
    pub(crate) fn textbook_forward(&mut self) {
        let mean = self.x.mean_axis(Axis(1)).expect("features").insert_axis(Axis(1));
        let rstd = self.x.var_axis(Axis(1), 0.0).mapv(|v| 1.0 / (v + 1e-5).sqrt()).insert_axis(Axis(1));
        let (gain, bias) = (self.norm.gain().expect("has one"), self.norm.bias().expect("has one"));
        self.y.assign(&((&self.x - &mean) * &rstd * gain + bias));
    }

    /// Backward likewise.
    pub(crate) fn textbook_backward(&mut self) {
        let mean = self.x.mean_axis(Axis(1)).expect("features").insert_axis(Axis(1));
        let rstd = self.x.var_axis(Axis(1), 0.0).mapv(|v| 1.0 / (v + 1e-5).sqrt()).insert_axis(Axis(1));
        let xhat = (&self.x - &mean) * &rstd;
        let q = &self.dy * &self.norm.gain().expect("has one");
        let mean_q = q.mean_axis(Axis(1)).expect("features").insert_axis(Axis(1));
        let mean_qx = (&q * &xhat).mean_axis(Axis(1)).expect("features").insert_axis(Axis(1));
        self.dx.assign(&((q - mean_q - &xhat * &mean_qx) * &rstd));
        let mut dgain = self.grad.gain_mut().expect("has one");
        dgain += &(&self.dy * &xhat).sum_axis(Axis(0));
        let mut dbias = self.grad.bias_mut().expect("has one");
        dbias += &self.dy.sum_axis(Axis(0));
    }

    /// Panics unless the first and the last row of y and dx are those of the oracle, and the first and the last of dgain and
    /// dbias the sums that they should be: no time without a right result.
    pub(crate) fn check(&mut self) {
        // The textbook code adds a million f32 one after the other, and is off by 2e-4 then.
        let passes: [(Call, Call, f64); 3] = [
            (Self::textbook_forward, Self::textbook_backward, 1e-3),
            (Self::infer, Self::backward, BOUND),
            (Self::forward, Self::backward, BOUND),
        ];
        for (forward, backward, bound) in passes {
            self.y.fill(f32::NAN);
            self.dx.fill(f32::NAN);
            self.grad = self.norm.zero_grad();
            forward(self);
            backward(self);
            self.check_results(bound);
        }
    }

    fn check_results(&self, bound: f64) {
        let wide = |row: ndarray::ArrayView1<'_, f32>| row.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let flat = |view: Option<ndarray::ArrayViewD<'_, f32>>| -> Vec<f64> {
            view.expect("has one").iter().map(|&x| f64::from(x)).collect()
        };
        let (gain, bias) = (flat(self.norm.gain()), flat(self.norm.bias()));
        let eps = f64::from(self.norm.eps());
        for row in [0, self.x.nrows() - 1] {
            let (x, dy) = (wide(self.x.row(row)), wide(self.dy.row(row)));
            let right = textbook::forward(&x, Some(&gain), Some(&bias), eps);
            near(bound, "y", row, &wide(self.y.row(row)), &right.y);
            near(bound, "dx", row, &wide(self.dx.row(row)), &textbook::backward_row(&x, Some(&gain), eps, &dy));
        }
        let (dgain, dbias) = (flat(self.grad.gain()), flat(self.grad.bias()));
        for column in [0, self.x.ncols() - 1] {
            let (x, dy) = (wide(self.x.column(column)), wide(self.dy.column(column)));
            let (mean, rstd) = (wide(self.saved.mean()), wide(self.saved.rstd()));
            let normalized = x.iter().zip(mean.iter().zip(&rstd)).map(|(x, (mean, rstd))| (x - mean) * rstd);
            near_sum(bound, "dgain", column, dgain[column], dy.iter().zip(normalized).map(|(dy, x)| dy * x));
            near_sum(bound, "dbias", column, dbias[column], dy.iter().copied());
        }
    }
}
