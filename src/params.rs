//! Parameters by name: what an optimizer, a file or a sum over machines walks through.

use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, IxDyn};

use crate::element::Element;
use crate::error::{Error, Result};

/// Named arrays in a fixed order, and gradients that match them one by one.
///
/// # Example
///
/// Gradient descent with clipped gradients, written once for every layer:
///
/// ```
/// use layernorm::{LayerNorm, Parameters, Result};
///
/// fn descend<P: Parameters<f32>>(layer: &mut P, grad: &mut P::Gradient, rate: f32) -> Result<()> {
///     let mut squares = 0.0;
///     grad.visit(|_name, gradient| squares += gradient.iter().map(|g| g * g).sum::<f32>());
///     let rate = rate / squares.sqrt().max(1.0);
///     layer.zip(grad, |_name, mut parameter, gradient| parameter.scaled_add(-rate, &gradient))?;
///     grad.visit_mut(|_name, mut gradient| gradient.fill(0.0));
///     Ok(())
/// }
///
/// let mut norm = LayerNorm::<f32>::new(4);
/// let mut grad = norm.zero_grad();
/// grad.gain_mut().unwrap().fill(1.0);
/// descend(&mut norm, &mut grad, 0.5)?;
/// assert_eq!(norm.gain().unwrap().as_slice().unwrap(), [0.75; 4]);
/// # Ok::<(), layernorm::Error>(())
/// ```
///
/// A file has the arrays of several layers, each under the name of its layer and its own. Not in the walk are ε, which
/// parameters there are, whether a gain is zero-centred and a variance unbiased, where a cell has its norms, and the
/// [`Running`](crate::Running) statistics, which have a [walk](crate::Running::visit) of their own.
///
/// ```
/// use std::collections::BTreeMap;
/// use layernorm::{LayerNorm, Parameters, ndarray::ArrayD};
///
/// type File = BTreeMap<String, ArrayD<f32>>;
///
/// fn save(layer: &impl Parameters<f32>, prefix: &str, file: &mut File) {
///     layer.visit(|name, array| drop(file.insert(format!("{prefix}.{name}"), array.to_owned())));
/// }
///
/// fn load(layer: &mut impl Parameters<f32>, prefix: &str, file: &File) {
///     layer.visit_mut(|name, mut array| {
///         let stored = &file[&format!("{prefix}.{name}")];
///         assert_eq!(stored.shape(), array.shape(), "{prefix}.{name}"); // `assign` would repeat what is too small
///         array.assign(stored);
///     });
/// }
///
/// let (mut trained, mut file) = (LayerNorm::<f32>::new(4), File::new());
/// trained.gain_mut().unwrap().fill(2.0);
/// save(&trained, "block.0.norm", &mut file);
///
/// let mut norm = LayerNorm::<f32>::new(4);
/// load(&mut norm, "block.0.norm", &file);
/// assert_eq!(norm.gain(), trained.gain());
/// ```
///
/// Gradients of parts of a batch, each made by a thread of its own, are walked like parameters to be added up:
/// `total.zip(&part, |_name, mut total, part| total += &part)`.
pub trait Parameters<T: Element> {
    /// What `backward` adds to: one array for each parameter, of the same shape and in the same order. It is walked in the same
    /// way: to be clipped, zeroed, or summed over machines.
    type Gradient: Parameters<T>;

    /// Calls `f` with the name and the value of each parameter.
    fn visit(&self, f: impl FnMut(&str, ArrayViewD<'_, T>));

    /// Calls `f` with the name and the value of each parameter, to be changed.
    fn visit_mut(&mut self, f: impl FnMut(&str, ArrayViewMutD<'_, T>));

    /// Calls `f` with the name, the value and the gradient of each parameter.
    ///
    /// # Errors
    ///
    /// [`Error::Parameter`] if `grad` belongs to a layer with parameters of other shapes, or others; `f` is not called then.
    fn zip(
        &mut self,
        grad: &Self::Gradient,
        f: impl FnMut(&str, ArrayViewMutD<'_, T>, ArrayViewD<'_, T>),
    ) -> Result<()>;
}

/// A gain and a bias, each optional, or their gradients.
///
/// [`zero_grad`](crate::LayerNorm::zero_grad) makes one that fits a layer; `backward` adds to it.
///
/// # Shapes
///
/// Both have the layer's normalized shape; the gain of a [`WeightNorm`](crate::WeightNorm) is `[outputs]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Affine<T> {
    pub(crate) gain: Option<ArrayD<T>>,
    pub(crate) bias: Option<ArrayD<T>>,
}

impl<T: Element> Affine<T> {
    /// Gain 1 and bias 0, as the paper starts.
    pub(crate) fn identity(shape: &[usize]) -> Self {
        Self { gain: Some(ArrayD::from_elem(IxDyn(shape), T::one())), bias: Some(ArrayD::zeros(IxDyn(shape))) }
    }

    /// The gain, or the gradient by it; `None` in a layer without gain.
    pub fn gain(&self) -> Option<ArrayViewD<'_, T>> {
        self.gain.as_ref().map(|gain| gain.view())
    }

    /// The gain, or the gradient by it, to be changed.
    pub fn gain_mut(&mut self) -> Option<ArrayViewMutD<'_, T>> {
        self.gain.as_mut().map(|gain| gain.view_mut())
    }

    /// The bias, or the gradient by it; `None` in a layer without bias.
    pub fn bias(&self) -> Option<ArrayViewD<'_, T>> {
        self.bias.as_ref().map(|bias| bias.view())
    }

    /// The bias, or the gradient by it, to be changed.
    pub fn bias_mut(&mut self) -> Option<ArrayViewMutD<'_, T>> {
        self.bias.as_mut().map(|bias| bias.view_mut())
    }

    /// Sets every element to 0: before the first batch of a step, not between batches.
    pub fn fill_zero(&mut self) {
        self.visit_mut(|_, mut array| array.fill(T::zero()));
    }

    /// Arrays of the same shapes, all 0.
    pub(crate) fn zeros_like(&self) -> Self {
        let mut zeros = self.clone();
        zeros.fill_zero();
        zeros
    }

    /// Whether `other` has the same parameters, of the same shapes; otherwise what is wrong with it.
    pub(crate) fn check_same(&self, other: &Self, argument: &'static str) -> Result<()> {
        let pairs = [("gain", &self.gain, &other.gain), ("bias", &self.bias, &other.bias)];
        for (parameter, ours, theirs) in pairs {
            let [ours, theirs] = [ours, theirs].map(|array| array.as_ref().map(|array| array.shape()));
            check_parameter(argument, parameter, ours, theirs)?;
        }
        Ok(())
    }
}

/// Whether a gradient has a parameter as the layer has it: of that shape, or not at all.
pub(crate) fn check_parameter(
    argument: &'static str,
    parameter: &'static str,
    expected: Option<&[usize]>,
    got: Option<&[usize]>,
) -> Result<()> {
    let same = match (expected, got) {
        (Some(expected), Some(got)) => same_shape(expected, got),
        (expected, got) => expected.is_some() == got.is_some(),
    };
    if same {
        return Ok(());
    }
    let [expected, got] = [expected, got].map(|shape| shape.map(<[usize]>::to_vec));
    Err(Error::Parameter { argument, parameter, expected, got })
}

/// Whether an array has the shape it must have.
pub(crate) fn check_shape(argument: &'static str, expected: &[usize], got: &[usize]) -> Result<()> {
    if same_shape(expected, got) {
        return Ok(());
    }
    Err(Error::Shape { argument, expected: expected.to_vec(), got: got.to_vec() })
}

/// Whether a layer can take this ε. Of a subnormal `f64`, 1/ε is no number; every `f32` is a normal `f64`.
pub(crate) fn check_eps<T: Element>(eps: T) -> Result<()> {
    let wide: f64 = eps.into();
    if wide == 0.0 || wide.is_normal() && wide > 0.0 { Ok(()) } else { Err(Error::Eps { got: wide }) }
}

/// Whether what was kept with `got` is of use to a layer with `expected`.
pub(crate) fn check_saved_eps(expected: f64, got: f64) -> Result<()> {
    if expected == got { Ok(()) } else { Err(Error::SavedEps { expected, got }) }
}

/// Whether two shapes are the same. Not `==`, which calls `memcmp`: where there is one short row, that is felt.
pub(crate) fn same_shape(a: &[usize], b: &[usize]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b)
}

impl<T: Element> Parameters<T> for Affine<T> {
    type Gradient = Self;

    fn visit(&self, mut f: impl FnMut(&str, ArrayViewD<'_, T>)) {
        self.gain().into_iter().for_each(|gain| f("gain", gain));
        self.bias().into_iter().for_each(|bias| f("bias", bias));
    }

    fn visit_mut(&mut self, mut f: impl FnMut(&str, ArrayViewMutD<'_, T>)) {
        self.gain_mut().into_iter().for_each(|gain| f("gain", gain));
        self.bias_mut().into_iter().for_each(|bias| f("bias", bias));
    }

    fn zip(
        &mut self,
        grad: &Self::Gradient,
        mut f: impl FnMut(&str, ArrayViewMutD<'_, T>, ArrayViewD<'_, T>),
    ) -> Result<()> {
        self.check_same(grad, "grad")?;
        if let (Some(gain), Some(dgain)) = (self.gain_mut(), grad.gain()) {
            f("gain", gain, dgain);
        }
        if let (Some(bias), Some(dbias)) = (self.bias_mut(), grad.bias()) {
            f("bias", bias, dbias);
        }
        Ok(())
    }
}
