//! The simple recurrent network.

use crate::element::Element;
use crate::kernels::gates::{Step, StepBack};
use crate::kernels::moments::Spread;
use crate::kernels::normalize::Layer;
use crate::kernels::rnn::Rnn as Kernel;
use crate::rnn::cell::{Base, Cell, Parts, Products, Size, parameters_of_base};
use crate::rnn::start::Start;
use crate::rnn::weights::{BIAS, GAIN};

/// Where an [`Rnn`] normalizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RnnPlacement {
    /// Nowhere: h = tanh(a + bias).
    None,
    /// The sum of both products, eq. 4.
    Sum,
}

/// A recurrent network of one tanh layer.
///
/// With LN(a) = gain ⊙ (a − μ)·r + bias, μ and r of each row of a alone,
///
/// ```text
/// a = h′ W_h + x W_x      h = tanh(LN(a))      h′ the h of the step before
/// ```
///
/// Source: Ba, Kiros, Hinton, *Layer Normalization*, arXiv:1607.06450, eq. 4, with f = tanh. Gain and bias are shared by all
/// steps.
///
/// # Shapes
///
/// Parameters in the order of [`Parameters`](crate::Parameters):
///
/// - `input_weight` (W_x): `[input, hidden]`, `recurrent_weight` (W_h): `[hidden, hidden]`
/// - `bias`: `[hidden]`
/// - `gain`: `[hidden]`, where it normalizes
///
/// # From PyTorch
///
/// Without normalization this is `torch.nn.RNN`: transpose its matrices; `bias` is `bias_ih` + `bias_hh`.
///
/// # Example
///
/// ```
/// use layernorm::ndarray::Array3;
/// use layernorm::rnn::{RnnPlacement, Start};
/// use layernorm::{Recurrent, Rnn};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let mut rng = StdRng::seed_from_u64(1);
/// let rnn = Rnn::<f64>::new(3, 4, RnnPlacement::Sum, Start::Orthogonal, &mut rng);
/// let (y, _, _) = rnn.forward(&Array3::ones((10, 2, 3)), None, None)?;
/// assert_eq!(y.shape(), [10, 2, 4]);
/// # Ok::<(), layernorm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Rnn<T> {
    placement: RnnPlacement,
    base: Base<T>,
}

impl<T: Element> Rnn<T> {
    /// A network with first weights drawn from `rng`; gain 1, bias 0, ε = 1e-5.
    pub fn new(
        input: usize,
        hidden: usize,
        placement: RnnPlacement,
        start: Start,
        rng: &mut (impl rand::Rng + ?Sized),
    ) -> Self {
        let others: &[_] = match placement {
            RnnPlacement::None => &[(BIAS, 1)],
            RnnPlacement::Sum => &[(BIAS, 1), (GAIN, 1)],
        };
        Self { placement, base: Base::new(input, hidden, 1, others, start, rng) }
    }

    /// Where it normalizes.
    pub fn placement(&self) -> RnnPlacement {
        self.placement
    }

    fn kernel(&self) -> Kernel<'_, T> {
        let Base { hidden, eps, weights, .. } = &self.base;
        let bias = weights.slice(BIAS);
        let sum = match self.placement {
            RnnPlacement::None => None,
            RnnPlacement::Sum => Some(Layer {
                features: *hidden,
                gain: Some(weights.slice(GAIN)),
                bias: Some(bias),
                spread: Spread::about_mean(*eps),
            }),
        };
        Kernel { bias, sum }
    }
}

parameters_of_base!(Rnn);

#[expect(private_interfaces, reason = "unreachable from outside")]
impl<T: Element> Cell<T> for Rnn<T> {
    fn base(&self) -> &Base<T> {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base<T> {
        &mut self.base
    }

    fn size(&self) -> Size {
        let norms = match self.placement {
            RnnPlacement::None => 0,
            RnnPlacement::Sum => 1,
        };
        let scratch = Kernel::<T>::scratch(self.base.hidden);
        Size { gates: 1, kept: 0, products: Products::Summed, kept_columns: norms, norms, state: Parts::H, scratch }
    }

    fn forward_rows(&self, step: Step<'_, T>) {
        T::rnn_forward(self.base.level, self.kernel(), step);
    }

    fn backward_rows(&self, step: StepBack<'_, T>) {
        T::rnn_backward(self.base.level, self.kernel(), step);
    }
}
