//! The gated recurrent unit.

use crate::element::Element;
use crate::kernels::gates::{Step, StepBack};
use crate::kernels::gru::Gru as Kernel;
use crate::kernels::moments::Spread;
use crate::kernels::normalize::Layer;
use crate::rnn::cell::{Base, Cell, Parts, Products, Size, parameters_of_base};
use crate::rnn::start::Start;
use crate::rnn::weights::{BIAS, INPUT_GAIN, RECURRENT_BIAS, RECURRENT_GAIN};

/// Where a [`Gru`] normalizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum GruPlacement {
    /// Nowhere: eq. 23–25.
    None,
    /// Each of the products, over both gates together and over the candidate: eq. 26–28.
    Products,
}

/// The gated recurrent unit.
///
/// With σ the logistic function, LN(a) = gain ⊙ (a − μ)·rstd, μ and rstd of each row of a alone, and h′ the state before,
///
/// ```text
/// z, r = LN(h′ W_h) + LN(x W_x) + bias               each LN over both together
/// k = tanh(LN(x W) + bias + σ(r) ⊙ (LN(h′ U) + recurrent_bias))
/// h = (1 − σ(z)) ⊙ h′ + σ(z) ⊙ k                     r acts behind the product
/// ```
///
/// Source: Ba, Kiros, Hinton, *Layer Normalization*, arXiv:1607.06450, eq. 23–28. Of the two biases that eq. 26 adds to z
/// and r there is one here: their gradients are the same. Eq. 23–25 have no bias at all; the cell without normalization has
/// the same as the other, which start at 0.
///
/// # Shapes
///
/// Parameters in the order of [`Parameters`](crate::Parameters), columns in the order z, r, candidate:
///
/// - `input_weight` (W_x beside W): `[input, 3·hidden]`, `recurrent_weight` (W_h beside U): `[hidden, 3·hidden]`
/// - `bias`: `[3·hidden]`; `recurrent_bias`: `[hidden]`
/// - `input_gain`, `recurrent_gain`: `[3·hidden]`, if the products are normalized
///
/// # From PyTorch
///
/// Without normalization this is `torch.nn.GRU`, whose gates are r, z, n and whose z keeps the old state, where this one takes the
/// new: transpose its matrices, put the columns in the order z, r, n, and negate those of z. `bias` is `bias_ih` + `bias_hh` in the
/// same order, z negated too, but for n `bias_ih` alone; `bias_hh` of n is `recurrent_bias`.
///
/// # Example
///
/// ```
/// use layernorm::ndarray::{Array2, Array3, s};
/// use layernorm::rnn::{GruPlacement, Start};
/// use layernorm::{Gru, Recurrent};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let mut rng = StdRng::seed_from_u64(1);
/// let gru = Gru::<f32>::new(3, 5, GruPlacement::Products, Start::Orthogonal, &mut rng);
/// // The second sequence is one step shorter.
/// let mask = Array2::from_shape_fn((4, 2), |(t, row)| t < 4 - row);
/// let (y, last, _) = gru.forward(&Array3::ones((4, 2, 3)), None, Some(&mask))?;
/// assert_eq!(last.h.row(1), y.slice(s![2, 1, ..]));
/// # Ok::<(), layernorm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Gru<T> {
    placement: GruPlacement,
    base: Base<T>,
}

const GATES: usize = 3;

impl<T: Element> Gru<T> {
    /// A cell with first weights drawn from `rng`; gains 1, biases 0, ε = 1e-5.
    pub fn new(
        input: usize,
        hidden: usize,
        placement: GruPlacement,
        start: Start,
        rng: &mut (impl rand::Rng + ?Sized),
    ) -> Self {
        let all = [(BIAS, GATES), (RECURRENT_BIAS, 1), (INPUT_GAIN, GATES), (RECURRENT_GAIN, GATES)];
        let others = match placement {
            GruPlacement::None => &all[..2],
            GruPlacement::Products => &all,
        };
        Self { placement, base: Base::new(input, hidden, GATES, others, start, rng) }
    }

    /// Where it normalizes.
    pub fn placement(&self) -> GruPlacement {
        self.placement
    }

    fn kernel(&self) -> Kernel<'_, T> {
        let Base { hidden, eps, weights, .. } = &self.base;
        let (hidden, spread) = (*hidden, Spread::about_mean(*eps));
        let (bias, recurrent_bias) = (weights.slice(BIAS), weights.slice(RECURRENT_BIAS));
        let products = match self.placement {
            GruPlacement::None => None,
            GruPlacement::Products => {
                let (gain_v, gain_w) = weights.slice(INPUT_GAIN).split_at(2 * hidden);
                let (gain_u, gain_s) = weights.slice(RECURRENT_GAIN).split_at(2 * hidden);
                let (bias_u, bias_w) = bias.split_at(2 * hidden);
                let pairs =
                    [(gain_u, Some(bias_u)), (gain_v, None), (gain_s, Some(recurrent_bias)), (gain_w, Some(bias_w))];
                Some(pairs.map(|(gain, bias)| Layer { features: gain.len(), gain: Some(gain), bias, spread }))
            }
        };
        Kernel { hidden, bias, recurrent_bias, products }
    }
}

parameters_of_base!(Gru);

#[expect(private_interfaces, reason = "unreachable from outside")]
impl<T: Element> Cell<T> for Gru<T> {
    fn base(&self) -> &Base<T> {
        &self.base
    }

    fn base_mut(&mut self) -> &mut Base<T> {
        &mut self.base
    }

    fn size(&self) -> Size {
        let (kept_columns, norms) = match self.placement {
            GruPlacement::None => (0, 0),
            GruPlacement::Products => (GATES, 4),
        };
        let scratch = Kernel::<T>::scratch(self.base.hidden);
        // The gates, k and s.
        Size { gates: GATES, kept: 4, products: Products::Apart, kept_columns, norms, state: Parts::H, scratch }
    }

    fn forward_rows(&self, step: Step<'_, T>) {
        T::gru_forward(self.base.level, self.kernel(), step);
    }

    fn backward_rows(&self, step: StepBack<'_, T>) {
        T::gru_backward(self.base.level, self.kernel(), step);
    }
}
