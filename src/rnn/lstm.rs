//! Long short-term memory.

use crate::element::Element;
use crate::kernels::gates::{Step, StepBack};
use crate::kernels::lstm::Lstm as Kernel;
use crate::kernels::moments::Spread;
use crate::kernels::normalize::Layer;
use crate::rnn::cell::{Base, Cell, Parts, Products, Size, parameters_of_base};
use crate::rnn::start::Start;
use crate::rnn::weights::{BIAS, CELL_BIAS, CELL_GAIN, INPUT_GAIN, RECURRENT_GAIN};

/// Where an [`Lstm`] normalizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LstmPlacement {
    /// Nowhere: eq. 17–19.
    None,
    /// The cell on its way to the output alone, as the paper does in DRAW: eq. 29–31.
    Cell,
    /// Each of the two products, over all four gates, and the cell on its way to the output: eq. 20–22.
    ProductsAndCell,
}

/// Long short-term memory.
///
/// With σ the logistic function, LN(a) = gain ⊙ (a − μ)·r, μ and r of each row of a alone, and h′, c′ the state before,
///
/// ```text
/// f, i, o, g = LN(h′ W_h) + LN(x W_x) + bias        in this order; each LN over all four together
/// c = σ(f) ⊙ c′ + σ(i) ⊙ tanh(g)                    c itself is carried on, not LN(c)
/// h = σ(o) ⊙ tanh(LN(c) + cell_bias)
/// ```
///
/// Source: Ba, Kiros, Hinton, *Layer Normalization*, arXiv:1607.06450, eq. 17–22 and 29–31. The paper writes three biases in
/// eq. 20, one of each LN and one more; their gradients are the same, so there is one here. Other libraries differ:
/// TensorFlow normalizes each gate alone, and PyTorch's example carries LN(c) on.
///
/// # Shapes
///
/// Parameters in the order of [`Parameters`](crate::Parameters), gates in the order f, i, o, g:
///
/// - `input_weight` (W_x): `[input, 4·hidden]`, `recurrent_weight` (W_h): `[hidden, 4·hidden]`
/// - `bias`: `[4·hidden]`
/// - `input_gain`, `recurrent_gain`: `[4·hidden]`, of the products if they are normalized
/// - `cell_gain`, `cell_bias`: `[hidden]`, of the cell if it is normalized
///
/// # From PyTorch
///
/// Without normalization this is `torch.nn.LSTM`, whose gates are i, f, g, o: transpose its matrices, and put the columns in the
/// order f, i, o, g. `bias` is `bias_ih` + `bias_hh` in the same order.
///
/// # Example
///
/// ```
/// use layernorm::ndarray::Array2;
/// use layernorm::rnn::{LstmPlacement, Start};
/// use layernorm::{Lstm, Recurrent};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let mut rng = StdRng::seed_from_u64(1);
/// let lstm = Lstm::<f32>::new(3, 5, LstmPlacement::ProductsAndCell, Start::Uniform, &mut rng);
/// let lstm = lstm.with_forget_bias(1.0).with_gain_value(0.1);
/// let mut state = lstm.zero_state(2);
/// for _ in 0..10 {
///     state = lstm.step(&Array2::ones((2, 3)), &state)?;
/// }
/// assert_eq!(state.h.shape(), [2, 5]);
/// # Ok::<(), layernorm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Lstm<T> {
    placement: LstmPlacement,
    base: Base<T>,
}

const GATES: usize = 4;

impl<T: Element> Lstm<T> {
    /// A cell with first weights drawn from `rng`; gains 1, biases 0, ε = 1e-5.
    pub fn new(
        input: usize,
        hidden: usize,
        placement: LstmPlacement,
        start: Start,
        rng: &mut (impl rand::Rng + ?Sized),
    ) -> Self {
        let all = [(BIAS, GATES), (INPUT_GAIN, GATES), (RECURRENT_GAIN, GATES), (CELL_GAIN, 1), (CELL_BIAS, 1)];
        let others: &[_] = match placement {
            LstmPlacement::None => &all[..1],
            LstmPlacement::Cell => &[all[0], all[3], all[4]],
            LstmPlacement::ProductsAndCell => &all,
        };
        Self { placement, base: Base::new(input, hidden, GATES, others, start, rng) }
    }

    /// With the bias of the forget gate at this value: 0 in the paper, 1 in many libraries.
    pub fn with_forget_bias(mut self, value: T) -> Self {
        let hidden = self.base.hidden;
        if let Some(mut bias) = self.base.weights.get_mut(BIAS) {
            bias.iter_mut().take(hidden).for_each(|bias| *bias = value);
        }
        self
    }

    /// Where it normalizes.
    pub fn placement(&self) -> LstmPlacement {
        self.placement
    }

    fn kernel(&self) -> Kernel<'_, T> {
        let Base { hidden, eps, weights, .. } = &self.base;
        let (hidden, spread) = (*hidden, Spread::about_mean(*eps));
        let bias = weights.slice(BIAS);
        let product = |gain, bias| Layer { features: GATES * hidden, gain: Some(weights.slice(gain)), bias, spread };
        let cell = || {
            let (gain, bias) = (Some(weights.slice(CELL_GAIN)), Some(weights.slice(CELL_BIAS)));
            Layer { features: hidden, gain, bias, spread }
        };
        let (products, cell) = match self.placement {
            LstmPlacement::None => (None, None),
            LstmPlacement::Cell => (None, Some(cell())),
            LstmPlacement::ProductsAndCell => {
                (Some([product(RECURRENT_GAIN, Some(bias)), product(INPUT_GAIN, None)]), Some(cell()))
            }
        };
        Kernel { hidden, bias, products, cell }
    }
}

parameters_of_base!(Lstm);

#[expect(private_interfaces, reason = "unreachable from outside")]
impl<T: Element> Cell<T> for Lstm<T> {
    fn base(&self) -> &Base<T> {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base<T> {
        &mut self.base
    }

    fn size(&self) -> Size {
        let scratch = Kernel::<T>::scratch(self.base.hidden);
        let (products, kept_columns, norms) = match self.placement {
            LstmPlacement::None => (Products::Summed, 0, 0),
            LstmPlacement::Cell => (Products::Summed, 0, 1),
            LstmPlacement::ProductsAndCell => (Products::Apart, GATES, 3),
        };
        // The gates and k.
        let kept = GATES + 1;
        Size { gates: GATES, kept, products, kept_columns, norms, state: Parts::HAndC, scratch }
    }

    fn forward_rows(&self, step: Step<'_, T>) {
        T::lstm_forward(self.base.level, self.kernel(), step);
    }

    fn backward_rows(&self, step: StepBack<'_, T>) {
        T::lstm_backward(self.base.level, self.kernel(), step);
    }
}
