//! Rows of a weight matrix of a length that is learned.

use std::num::FpCategory;

use fearless_simd::Level;
use ndarray::{Array, Array1, ArrayRef, ArrayViewD, ArrayViewMutD, Axis, Dimension};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::kernels::moments::Spread;
use crate::kernels::normalize::Layer;
use crate::norm::row_norm::{Saved, gradient, slice};
use crate::params::{Affine, Parameters, check_shape};
use crate::rows::{self, Call};
use crate::simd;

/// Weight normalization: each row of a weight matrix is a direction and a length.
///
/// Every row vᵢ becomes
///
/// ```text
/// wᵢ = gainᵢ · vᵢ / ‖vᵢ‖      ‖vᵢ‖ = √Σⱼ vᵢⱼ²
/// ```
///
/// so that the length of vᵢ does not matter: the layer that the weights are for has the inputs' sums divided by ‖vᵢ‖, eq. 5
/// of the layer normalization paper with μ = 0 and σᵢ = ‖vᵢ‖. There is no ε: a row of zeros gives zeros, and its gradient is
/// 0 too.
///
/// Source: Salimans, Kingma, *Weight Normalization*, arXiv:1602.07868, eq. 2 and 3.
///
/// # Shapes
///
/// v is `[outputs, ..]`: a row is everything but the first axis; without axes v is one row of one number. For weights
/// stored `[inputs, outputs]` pass the transposed view. The gain is `[outputs]`.
///
/// # Bits
///
/// As [`LayerNorm`](crate::LayerNorm)'s: a row gives the same bits in any matrix, in any layout, on any number of threads and
/// on every instruction set, at any scale.
///
/// # Example
///
/// ```
/// use layernorm::{WeightNorm, ndarray::{Array2, array}};
///
/// let weights = array![[3.0, 4.0], [0.0, 2.0]];
/// let norm = WeightNorm::<f64>::of(&weights);
/// assert!((norm.gain()[0] - 5.0).abs() < 1e-14 && (norm.gain()[1] - 2.0).abs() < 1e-14);
///
/// // The length of a row is the gain's alone.
/// let (w, saved) = norm.forward(&(&weights * 10.0))?;
/// assert!((&w - &weights).iter().all(|difference| difference.abs() < 1e-15));
///
/// let mut grad = norm.zero_grad();
/// let dv = norm.backward(&(&weights * 10.0), &saved, &Array2::ones((2, 2)), &mut grad)?;
/// assert!((grad.gain().unwrap()[0] - 1.4).abs() < 1e-15);
/// assert!((3.0 * dv[[0, 0]] + 4.0 * dv[[0, 1]]).abs() < 1e-15);
/// # Ok::<(), layernorm::Error>(())
/// ```
///
/// # From PyTorch
///
/// `torch.nn.utils.parametrizations.weight_norm` with `dim=0`: `original0` is the gain, with more axes, and `original1` is v.
#[derive(Clone, Debug)]
pub struct WeightNorm<T> {
    /// Of a gain alone.
    affine: Affine<T>,
    level: Level,
}

const GAIN: &str = "there is always a gain";

impl<T: Element> WeightNorm<T> {
    /// For so many rows, each with gain 1.
    pub fn new(outputs: usize) -> Self {
        Self { affine: Affine { gain: Some(Array1::ones(outputs).into_dyn()), bias: None }, level: simd::level() }
    }

    /// With the lengths of the rows of `weights` as gain: [`forward`](Self::forward) on these weights gives them back, up to
    /// rounding. What a layer that has weights already starts with. A length beyond the largest `T` is infinite.
    ///
    /// # Shapes
    ///
    /// - `weights`: `[outputs, ..]`
    pub fn of<D: Dimension>(weights: &ArrayRef<T, D>) -> Self {
        let outputs = outputs(weights.shape());
        let mut norm = Self::new(outputs);
        let (mut w, mut saved) = (Array::zeros(weights.raw_dim()), Saved::default());
        norm.forward_saving(weights, &mut w, Some(&mut saved));
        let root = (weights.len() as f64 / outputs.max(1) as f64).sqrt();
        for (i, (gain, &rstd)) in norm.gain_mut().iter_mut().zip(saved.rstd()).enumerate() {
            *gain = match rstd.classify() {
                FpCategory::Zero => rstd,
                FpCategory::Normal | FpCategory::Nan => T::nearest(root / rstd.into()),
                // The length is a number, its inverse is none, or a poor one.
                FpCategory::Infinite | FpCategory::Subnormal => {
                    let weights = weights.view().into_dyn();
                    let row = if weights.ndim() == 0 { weights } else { weights.index_axis_move(Axis(0), i) };
                    T::nearest(length(row.iter().map(|&x| x.into())))
                }
            };
        }
        norm
    }

    /// With this gain.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless it has a number for each row.
    pub fn with_gain(mut self, gain: Array1<T>) -> Result<Self> {
        check_shape("gain", self.gain().shape(), gain.shape())?;
        self.affine.gain = Some(gain.as_standard_layout().into_owned().into_dyn());
        Ok(self)
    }

    /// Rows of the weights that it is for.
    pub fn outputs(&self) -> usize {
        self.gain().len()
    }

    /// The gain: the length of each row of w.
    pub fn gain(&self) -> ArrayViewD<'_, T> {
        self.affine.gain().expect(GAIN)
    }

    /// The gain, to be changed.
    pub fn gain_mut(&mut self) -> ArrayViewMutD<'_, T> {
        self.affine.gain_mut().expect(GAIN)
    }

    /// Gradients for [`backward`](Self::backward) to add to, all 0; there is no bias in them.
    pub fn zero_grad(&self) -> Affine<T> {
        self.affine.zeros_like()
    }

    /// Runs this layer on a lower instruction set, by its name; for tests of the bit contract.
    #[doc(hidden)]
    pub fn with_instruction_set(mut self, name: &str) -> Option<Self> {
        self.level = simd::named(name)?;
        Some(self)
    }

    /// w, and what [`backward`](Self::backward) needs of v.
    ///
    /// # Shapes
    ///
    /// - `v` and the returned `w`: `[outputs, ..]`; w is in standard layout
    ///
    /// # Errors
    ///
    /// [`Error::Leading`] unless `v` has as many rows as the gain.
    ///
    /// # Cost
    ///
    /// Reads `v` and writes `w` once; where a row does not fit a core's cache, it reads `v` twice.
    pub fn forward<D: Dimension>(&self, v: &ArrayRef<T, D>) -> Result<(Array<T, D>, WeightSaved<T>)> {
        let (mut w, mut saved) = (self.zeros_like(v)?, WeightSaved::default());
        self.forward_into(v, &mut w, &mut saved)?;
        Ok((w, saved))
    }

    /// w alone, with the bits of [`forward`](Self::forward).
    ///
    /// # Shapes
    ///
    /// - `v` and the returned `w`: `[outputs, ..]`; w is in standard layout
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    pub fn infer<D: Dimension>(&self, v: &ArrayRef<T, D>) -> Result<Array<T, D>> {
        let mut w = self.zeros_like(v)?;
        self.infer_into(v, &mut w)?;
        Ok(w)
    }

    /// [`forward`](Self::forward) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `v`, `w`: `[outputs, ..]`, any strides; `w` is overwritten
    /// - `saved`: from [`WeightSaved::default`] or an earlier call, whatever its shape; it is overwritten
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), and [`Error::Shape`] unless `w` has the shape of `v`. Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once `saved` and its buffers have grown to the shape of `v`.
    pub fn forward_into<D: Dimension>(
        &self,
        v: &ArrayRef<T, D>,
        w: &mut ArrayRef<T, D>,
        saved: &mut WeightSaved<T>,
    ) -> Result<()> {
        self.check_input(v.shape())?;
        check_shape("w", v.shape(), w.shape())?;
        self.forward_saving(v, w, Some(&mut saved.rows));
        Ok(())
    }

    /// [`infer`](Self::infer) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `v`, `w`: `[outputs, ..]`, any strides; `w` is overwritten
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into).
    pub fn infer_into<D: Dimension>(&self, v: &ArrayRef<T, D>, w: &mut ArrayRef<T, D>) -> Result<()> {
        self.check_input(v.shape())?;
        check_shape("w", v.shape(), w.shape())?;
        self.forward_saving(v, w, None);
        Ok(())
    }

    /// Gradients of the loss by v (returned) and by the gain (added to `grad`).
    ///
    /// With v̂ = v/‖v‖, row by row,
    ///
    /// ```text
    /// dv = (gain/‖v‖) · (dw − v̂ · Σ dw ⊙ v̂)      dgain += Σ dw ⊙ v̂
    /// ```
    ///
    /// dv is at right angles to v: a step along it makes v longer, and the next step smaller.
    ///
    /// # Shapes
    ///
    /// - `v`, `dw` and the returned `dv`: `[outputs, ..]`; dv is in standard layout
    /// - `saved`: of the forward call on this `v`
    /// - `grad`: of [`zero_grad`](Self::zero_grad); zero it before the first batch, not between
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward); [`Error::Shape`] unless `dw` has the shape of `v`, [`Error::Saved`] unless `saved` has,
    /// [`Error::Parameter`] unless `grad` has the gain of this layer and no bias.
    ///
    /// # Cost
    ///
    /// Reads `v` and `dw` and writes `dv` once; where rows do not fit a core's cache, it reads `v` and `dw` twice.
    pub fn backward<D: Dimension>(
        &self,
        v: &ArrayRef<T, D>,
        saved: &WeightSaved<T>,
        dw: &ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<Array<T, D>> {
        let mut dv = self.zeros_like(v)?;
        self.backward_into(v, saved, dw, &mut dv, grad)?;
        Ok(dv)
    }

    /// [`backward`](Self::backward) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `v`, `dw`, `dv`: `[outputs, ..]`, any strides; `dv` is overwritten
    /// - `grad`: is added to
    ///
    /// # Errors
    ///
    /// As [`backward`](Self::backward), and [`Error::Shape`] unless `dv` has the shape of `v`. Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once its buffers have grown to the shape of `v`.
    pub fn backward_into<D: Dimension>(
        &self,
        v: &ArrayRef<T, D>,
        saved: &WeightSaved<T>,
        dw: &ArrayRef<T, D>,
        dv: &mut ArrayRef<T, D>,
        grad: &mut Affine<T>,
    ) -> Result<()> {
        self.check_input(v.shape())?;
        saved.rows.check("v", v.shape(), outputs(v.shape()), 0.0)?;
        check_shape("dw", v.shape(), dw.shape())?;
        check_shape("dv", v.shape(), dv.shape())?;
        self.affine.check_same(grad, "grad")?;
        if let (false, Some(gain), Some(dgain)) = (v.is_empty(), slice(&self.affine.gain), gradient(grad).gain) {
            let kept = saved.rows.rows();
            rows::backward_weights(&self.call(v), kept, (gain, dgain), v.view(), dw.view(), dv.view_mut());
        }
        Ok(())
    }

    fn forward_saving<D: Dimension>(&self, v: &ArrayRef<T, D>, w: &mut ArrayRef<T, D>, saved: Option<&mut Saved<T>>) {
        let call = self.call(v);
        let saved = saved.map(|saved| saved.fit(v.shape(), call.rows, 0.0));
        if let (false, Some(gain)) = (v.is_empty(), slice(&self.affine.gain)) {
            rows::forward_weights(&call, gain, v.view(), w.view_mut(), saved);
        }
    }

    /// An array of the shape of an input, which is checked before: 0.
    fn zeros_like<D: Dimension>(&self, input: &ArrayRef<T, D>) -> Result<Array<T, D>> {
        self.check_input(input.shape())?;
        Ok(Array::zeros(input.raw_dim()))
    }

    fn check_input(&self, shape: &[usize]) -> Result<()> {
        let rows = self.outputs();
        if outputs(shape) == rows {
            return Ok(());
        }
        Err(Error::Leading { argument: "v", rows, got: shape.to_vec() })
    }

    fn call<D: Dimension>(&self, v: &ArrayRef<T, D>) -> Call<'_, T> {
        let features = v.shape().iter().skip(1).product();
        let layer = Layer { features, gain: None, bias: None, spread: Spread::about_zero(T::zero()) };
        Call { level: self.level, layer, rows: outputs(v.shape()), trailing: v.ndim().saturating_sub(1) }
    }
}

/// √Σx² of finite numbers that are not all 0, at any scale.
fn length(row: impl Iterator<Item = f64> + Clone) -> f64 {
    let largest = row.clone().fold(0.0, |largest: f64, x| largest.max(x.abs()));
    largest * row.map(|x| x / largest).map(|x| x * x).sum::<f64>().sqrt()
}

/// Rows of weights of a shape.
fn outputs(shape: &[usize]) -> usize {
    shape.first().copied().unwrap_or(1)
}

impl<T: Element> Parameters<T> for WeightNorm<T> {
    type Gradient = Affine<T>;

    fn visit(&self, f: impl FnMut(&str, ArrayViewD<'_, T>)) {
        self.affine.visit(f);
    }

    fn visit_mut(&mut self, f: impl FnMut(&str, ArrayViewMutD<'_, T>)) {
        self.affine.visit_mut(f);
    }

    fn zip(&mut self, grad: &Affine<T>, f: impl FnMut(&str, ArrayViewMutD<'_, T>, ArrayViewD<'_, T>)) -> Result<()> {
        self.affine.zip(grad, f)
    }
}

/// What forward keeps of `v` for backward: a few numbers a row.
///
/// It remembers the shape of that v, and backward refuses another. It does not hold v: pass the same one again.
#[derive(Clone, Debug)]
pub struct WeightSaved<T> {
    rows: Saved<T>,
}

impl<T> Default for WeightSaved<T> {
    /// Belongs to no call yet: for the first [`forward_into`](WeightNorm::forward_into).
    fn default() -> Self {
        Self { rows: Saved::default() }
    }
}
