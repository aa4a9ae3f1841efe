//! Statistics over many batches, held and seen by the caller.

use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, IxDyn};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::kernels::batch::KeptColumns;
use crate::params::check_shape;

/// What [`BatchNorm::forward`](crate::BatchNorm::forward) keeps of `x` for backward: a few numbers a feature.
///
/// It remembers the shape and the rows of that x, the layer's ε and which variance it takes, and backward refuses others. It does
/// not hold x: pass the same one again.
#[derive(Clone, Debug)]
pub struct BatchSaved<T> {
    /// The shape of x; nothing before the first call.
    pub(crate) shape: Option<Vec<usize>>,
    /// Its trailing axes; of no feature before the first call.
    pub(crate) normalized: Vec<usize>,
    pub(crate) mean: Vec<T>,
    /// What rounding left behind of the mean.
    pub(crate) low: Vec<T>,
    pub(crate) variance: Vec<T>,
    pub(crate) rstd: Vec<T>,
    /// ε of the layer.
    pub(crate) eps: f64,
    /// Whether `variance` is divided by N − 1.
    pub(crate) unbiased: bool,
    /// Not 0 where a column had to be rescaled.
    pub(crate) exponent: Vec<i16>,
}

impl<T> Default for BatchSaved<T> {
    /// Belongs to no call yet: for the first [`forward_into`](crate::BatchNorm::forward_into).
    fn default() -> Self {
        let [mean, low, variance, rstd] = [const { Vec::new() }; 4];
        Self {
            shape: None,
            normalized: vec![0],
            mean,
            low,
            variance,
            rstd,
            eps: 0.0,
            unbiased: false,
            exponent: Vec::new(),
        }
    }
}

impl<T: Element> BatchSaved<T> {
    /// The mean of each feature over the rows, rounded to `T`; 0 of no rows.
    ///
    /// # Shapes
    ///
    /// `[normalized shape]`
    pub fn mean(&self) -> ArrayViewD<'_, T> {
        self.view(&self.mean)
    }

    /// σ² of each feature, biased or unbiased as the layer takes it; 0 of no rows.
    ///
    /// It may be infinite or 0 where a feature's scale is extreme; y and dx are right all the same.
    ///
    /// # Shapes
    ///
    /// `[normalized shape]`
    pub fn variance(&self) -> ArrayViewD<'_, T> {
        self.view(&self.variance)
    }

    /// 1/√(σ² + ε) of each feature; 0 for a constant feature with ε = 0, and of no rows.
    ///
    /// It may be infinite or subnormal where a feature's scale is extreme; y and dx are right all the same.
    ///
    /// # Shapes
    ///
    /// `[normalized shape]`
    pub fn rstd(&self) -> ArrayViewD<'_, T> {
        self.view(&self.rstd)
    }

    fn view<'a>(&self, numbers: &'a [T]) -> ArrayViewD<'a, T> {
        ArrayViewD::from_shape(IxDyn(&self.normalized), numbers).expect("one number a feature")
    }

    pub(crate) fn fit(&mut self, shape: &[usize], normalized: &[usize], eps: f64, unbiased: bool) {
        for (ours, new) in [(self.shape.get_or_insert_default(), shape), (&mut self.normalized, normalized)] {
            ours.clear();
            ours.extend_from_slice(new);
        }
        let features = normalized.iter().product();
        for numbers in [&mut self.mean, &mut self.low, &mut self.variance, &mut self.rstd] {
            numbers.clear();
            numbers.resize(features, T::zero());
        }
        self.exponent.resize(features, 0);
        (self.eps, self.unbiased) = (eps, unbiased);
    }

    pub(crate) fn kept(&self) -> KeptColumns<'_, T> {
        KeptColumns { mean: &self.mean, low: &self.low, rstd: &self.rstd, exponent: &self.exponent }
    }

    /// Rows of the call that filled it.
    pub(crate) fn rows(&self) -> usize {
        self.shape.as_deref().map_or(0, |shape| shape[..shape.len() - self.normalized.len()].iter().product())
    }
}

/// Mean and variance of each feature over many batches, for evaluation.
///
/// [`BatchNorm::running`](crate::BatchNorm::running) makes one, [`update`](Self::update) takes a batch into it, and
/// [`BatchNorm::infer`](crate::BatchNorm::infer) normalizes by it. Nothing else reads or writes it.
///
/// # Example
///
/// ```
/// use layernorm::{BatchNorm, ndarray::array};
///
/// let norm = BatchNorm::<f32>::new(1).with_unbiased_variance();
/// let (_, saved) = norm.forward(&array![[1.0], [5.0]])?;
/// let mut running = norm.running();
/// running.update(&saved, 0.5)?;
/// assert_eq!((running.mean()[0], running.variance()[0]), (1.5, 4.5));
/// # Ok::<(), layernorm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Running<T> {
    mean: ArrayD<T>,
    variance: ArrayD<T>,
}

impl<T: Element> Running<T> {
    /// Mean 0, variance 1.
    pub(crate) fn new(shape: &[usize]) -> Self {
        Self { mean: ArrayD::zeros(IxDyn(shape)), variance: ArrayD::from_elem(IxDyn(shape), T::one()) }
    }

    /// running = (1 − momentum) · running + momentum · batch, of means and of variances.
    ///
    /// Momentum is the weight of the new batch: 1 forgets all others, infinite or NaN as they may be, and 0 the batch. A `saved`
    /// of no rows changes nothing; one of a single row has variance 0, and is better left out.
    ///
    /// # Errors
    ///
    /// [`Error::Momentum`] unless it is within 0 and 1, [`Error::SavedEmpty`] if no call has filled `saved`, [`Error::Shape`] unless
    /// it is of a layer of this shape.
    pub fn update(&mut self, saved: &BatchSaved<T>, momentum: T) -> Result<()> {
        self.blend(saved, momentum, false)
    }

    /// [`update`](Self::update) with the unbiased variance of the batch, Σ(xᵢ − μ)²/(N − 1), whatever the layer normalizes by.
    ///
    /// This is what PyTorch keeps of a batch that it normalizes by the biased one.
    ///
    /// # Errors
    ///
    /// As [`update`](Self::update), and [`Error::OneRow`] if the batch had one row. Nothing is written then.
    ///
    /// # Example
    ///
    /// ```
    /// use layernorm::{BatchNorm, ndarray::array};
    ///
    /// let norm = BatchNorm::<f32>::new(1);
    /// let (_, saved) = norm.forward(&array![[1.0], [5.0]])?;
    /// let mut running = norm.running();
    /// running.update_unbiased(&saved, 0.5)?;
    /// assert_eq!((saved.variance()[0], running.variance()[0]), (4.0, 4.5));
    /// # Ok::<(), layernorm::Error>(())
    /// ```
    pub fn update_unbiased(&mut self, saved: &BatchSaved<T>, momentum: T) -> Result<()> {
        self.blend(saved, momentum, true)
    }

    fn blend(&mut self, saved: &BatchSaved<T>, momentum: T, unbiased: bool) -> Result<()> {
        let weight: f64 = momentum.into();
        if !(0.0..=1.0).contains(&weight) {
            return Err(Error::Momentum { got: weight });
        }
        if saved.shape.is_none() {
            return Err(Error::SavedEmpty { normalized: self.mean.shape().to_vec() });
        }
        check_shape("saved", self.mean.shape(), &saved.normalized)?;
        let rows = saved.rows();
        if unbiased && rows == 1 {
            return Err(Error::OneRow { argument: "saved" });
        }
        if rows > 0 {
            let correction = if unbiased && !saved.unbiased { rows as f64 / (rows - 1) as f64 } else { 1.0 };
            let pairs = [(&mut self.mean, saved.mean(), 1.0), (&mut self.variance, saved.variance(), correction)];
            for (running, batch, factor) in pairs {
                running.zip_mut_with(&batch, |running, &batch| {
                    let parts = [(1.0 - weight, (*running).into()), (weight, factor * batch.into())];
                    // What has no weight is left out: 0 · ∞ is NaN.
                    let weighed = parts.into_iter().filter(|&(weight, _)| weight > 0.0);
                    *running = T::nearest(weighed.map(|(weight, x)| weight * x).sum());
                });
            }
        }
        Ok(())
    }

    /// The mean of each feature.
    pub fn mean(&self) -> ArrayViewD<'_, T> {
        self.mean.view()
    }

    /// The mean of each feature, to be changed.
    pub fn mean_mut(&mut self) -> ArrayViewMutD<'_, T> {
        self.mean.view_mut()
    }

    /// The variance of each feature.
    pub fn variance(&self) -> ArrayViewD<'_, T> {
        self.variance.view()
    }

    /// The variance of each feature, to be changed.
    pub fn variance_mut(&mut self) -> ArrayViewMutD<'_, T> {
        self.variance.view_mut()
    }

    /// Calls `f` with the name and the value of each statistic, as [`Parameters::visit`](crate::Parameters::visit) does with
    /// parameters: for files, which need both.
    pub fn visit(&self, mut f: impl FnMut(&str, ArrayViewD<'_, T>)) {
        f("mean", self.mean());
        f("variance", self.variance());
    }

    /// Calls `f` with the name and the value of each statistic, to be changed.
    pub fn visit_mut(&mut self, mut f: impl FnMut(&str, ArrayViewMutD<'_, T>)) {
        f("mean", self.mean_mut());
        f("variance", self.variance_mut());
    }

    pub(crate) fn shape(&self) -> &[usize] {
        self.mean.shape()
    }

    /// Mean and variance.
    pub(crate) fn slices(&self) -> (&[T], &[T]) {
        let standard = "running statistics are kept in standard layout";
        (self.mean.as_slice().expect(standard), self.variance.as_slice().expect(standard))
    }
}
