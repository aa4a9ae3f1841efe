//! What one does with a recurrent cell.

use ndarray::{Array3, ArrayRef2, ArrayRef3, Axis};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::params::{Parameters, check_eps, check_saved_eps, check_shape};
use crate::rnn::cell::Cell;
use crate::rnn::saved::Saved;
use crate::rnn::sequence::{self, Sequence};
use crate::rnn::state::State;
use crate::rnn::weights::{GAIN, Weights};
use crate::simd;

/// A recurrent cell: a step, a sequence, and backward through time.
///
/// Sequences have the axes `[steps, batch, input]`. Layers are stacked by passing one's y to the next as x; both
/// directions are two cells, one of which gets x with its first axis inverted.
///
/// Sealed: [`Rnn`](crate::Rnn), [`Lstm`](crate::Lstm) and [`Gru`](crate::Gru).
///
/// # Bits
///
/// The same call gives the same bits on any number of threads, and a sequence does not depend on what the others of its
/// batch hold, padding included. A sequence alone may differ in its last bits from the same one in a batch, and a few steps of
/// it from the same ones in a longer call.
///
/// # Example
///
/// ```
/// use layernorm::ndarray::{Array3, Axis};
/// use layernorm::rnn::{LstmPlacement, Start};
/// use layernorm::{Lstm, Recurrent};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let mut rng = StdRng::seed_from_u64(1);
/// let lstm = Lstm::<f32>::new(3, 5, LstmPlacement::ProductsAndCell, Start::Orthogonal, &mut rng);
/// let x = Array3::from_shape_fn((7, 2, 3), |(t, row, i)| (t + 2 * row + i) as f32);
/// let (y, state, saved) = lstm.forward(&x, None, None)?;
/// assert_eq!(y.shape(), [7, 2, 5]);
/// assert_eq!(y.index_axis(Axis(0), 6), state.h);
///
/// let mut grad = lstm.zero_grad();
/// let (dx, d_initial) = lstm.backward(&x, &saved, &y, None, &mut grad)?;
/// assert_eq!(dx.shape(), x.shape());
/// assert_eq!(d_initial.h.shape(), [2, 5]);
/// # Ok::<(), layernorm::Error>(())
/// ```
pub trait Recurrent<T: Element>: Cell<T> + Parameters<T, Gradient = Weights<T>> {
    /// Elements of x at each step.
    fn input(&self) -> usize {
        self.base().input
    }

    /// Hidden units: elements of y at each step.
    fn hidden(&self) -> usize {
        self.base().hidden
    }

    /// ε
    fn eps(&self) -> T {
        self.base().eps
    }

    /// With another ε, which is added to σ² inside the root; 1e-5 without. A cell that normalizes nowhere has no use for it.
    ///
    /// # Errors
    ///
    /// [`Error::Eps`] if it is negative, infinite, NaN or a subnormal `f64`.
    fn with_eps(mut self, eps: T) -> Result<Self> {
        check_eps(eps)?;
        self.base_mut().eps = eps;
        Ok(self)
    }

    /// With every gain at this value; a cell that normalizes nowhere has none. The paper starts at 1 and compares 0.1.
    fn with_gain_value(mut self, value: T) -> Self {
        self.base_mut().weights.visit_mut(|name, mut array| {
            if name.ends_with(GAIN) {
                array.fill(value);
            }
        });
        self
    }

    /// Runs the kernels on a lower instruction set, by its name; for tests. The products stay what they are.
    #[doc(hidden)]
    fn with_instruction_set(mut self, name: &str) -> Option<Self> {
        self.base_mut().level = simd::named(name)?;
        Some(self)
    }

    /// The parameters by name.
    fn weights(&self) -> &Weights<T> {
        &self.base().weights
    }

    /// The parameters by name, to be changed. Where all are replaced by those of another kind of cell, the next call is an
    /// [`Error::Parameter`].
    fn weights_mut(&mut self) -> &mut Weights<T> {
        &mut self.base_mut().weights
    }

    /// Gradients for [`backward`](Self::backward) to add to, all 0.
    fn zero_grad(&self) -> Weights<T> {
        let mut zeros = self.base().weights.clone();
        zeros.fill_zero();
        zeros
    }

    /// The state that a sequence starts from if none is given: all 0.
    fn zero_state(&self, batch: usize) -> State<T> {
        State::zeros(batch, self.hidden(), self.size().has_c())
    }

    /// The state after one step, and nothing kept for backward: for sampling.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, input]`
    /// - `state` and the returned state: `[batch, hidden]` each
    ///
    /// # Errors
    ///
    /// [`Error::Trailing`] unless `x` has the input's width, [`Error::Shape`] or [`Error::StateCell`] unless `state` fits
    /// `x` and the cell, [`Error::Hidden`] without hidden units, [`Error::Parameter`] if the weights were replaced by another
    /// cell's.
    fn step(&self, x: &ArrayRef2<T>, state: &State<T>) -> Result<State<T>> {
        let mut next = state.clone();
        self.step_into(x, &mut next)?;
        Ok(next)
    }

    /// [`step`](Self::step) with the new state in place of the old one.
    ///
    /// # Shapes
    ///
    /// - `x`: `[batch, input]`, any strides
    /// - `state`: `[batch, hidden]`; it is overwritten
    ///
    /// # Errors
    ///
    /// As [`step`](Self::step). Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once its buffers have grown.
    fn step_into(&self, x: &ArrayRef2<T>, state: &mut State<T>) -> Result<()> {
        check_input(self, x.shape())?;
        state.check("state", [x.nrows(), self.hidden()], self.size().has_c())?;
        if x.nrows() > 0 {
            let x = x.view().insert_axis(Axis(0));
            sequence::infer(self, Sequence { x, state, y: None }, None);
        }
        Ok(())
    }

    /// y, the state after the last step, and what [`backward`](Self::backward) needs.
    ///
    /// Where `mask` is `false`, a row is padded: its state stays as it was, y is that state's h, and what x holds there does
    /// not matter, NaN included. Steps may be padded anywhere. (A state that is NaN does matter: the gradient of the recurrent
    /// weights has it times 0.)
    ///
    /// Without steps the state passes through.
    ///
    /// # Shapes
    ///
    /// - `x`: `[steps, batch, input]`, any strides
    /// - `initial` and the returned state: `[batch, hidden]` each; 0 if there is none
    /// - `mask`: `[steps, batch]`, `true` where there is input; `true` everywhere if there is none
    /// - the returned `y`: `[steps, batch, hidden]`
    ///
    /// # Errors
    ///
    /// [`Error::Trailing`] unless `x` has the input's width, [`Error::Shape`] unless `mask` fits `x`, [`Error::Shape`] or
    /// [`Error::StateCell`] unless `initial` fits `x` and the cell, [`Error::Hidden`] without hidden units,
    /// [`Error::Parameter`] if the weights were replaced by another cell's.
    ///
    /// # Cost
    ///
    /// See [`Saved`] for the memory. In a loop, [`forward_into`](Self::forward_into) is faster: fresh memory costs a page
    /// fault every 4 KiB.
    fn forward(
        &self,
        x: &ArrayRef3<T>,
        initial: Option<&State<T>>,
        mask: Option<&ArrayRef2<bool>>,
    ) -> Result<(Array3<T>, State<T>, Saved<T>)> {
        check_input(self, x.shape())?;
        let (steps, batch, _) = x.dim();
        let mut state = copy_or_zeros(self, "initial", initial, batch)?;
        let (mut y, mut saved) = (Array3::zeros((steps, batch, self.hidden())), Saved::default());
        self.forward_into(x, mask, &mut state, &mut y, &mut saved)?;
        Ok((y, state, saved))
    }

    /// [`forward`](Self::forward) into memory of the caller.
    ///
    /// Truncated backpropagation passes the state from call to call.
    ///
    /// # Shapes
    ///
    /// - `x`: `[steps, batch, input]`; `y`: `[steps, batch, hidden]`, overwritten; any strides
    /// - `mask`: `[steps, batch]`
    /// - `state`: the state before the first step, then the one after the last
    /// - `saved`: from [`Saved::default`] or an earlier call, whatever its shape; it is overwritten
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward), and [`Error::Shape`] unless `y` fits `x`. Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once `saved` and this thread's buffers have grown; on several, what rayon
    /// needs to wake them, and a buffer that `faer` keeps for each.
    fn forward_into(
        &self,
        x: &ArrayRef3<T>,
        mask: Option<&ArrayRef2<bool>>,
        state: &mut State<T>,
        y: &mut ArrayRef3<T>,
        saved: &mut Saved<T>,
    ) -> Result<()> {
        check_sequence(self, x, mask, state, y)?;
        let (steps, batch, input) = x.dim();
        let shape = [steps, batch, input];
        saved.fit(shape, self.hidden(), self.size(), self.base().eps.into());
        saved.mask.extend(mask.into_iter().flatten());
        if steps * batch > 0 {
            let sequence = Sequence { x: x.view(), state, y: Some(y.view_mut()) };
            sequence::on_pool(self, shape, || sequence::forward(self, sequence, saved));
        }
        Ok(())
    }

    /// y and the state after the last step, with the bits of [`forward`](Self::forward), and nothing kept for backward.
    ///
    /// # Shapes
    ///
    /// As [`forward`](Self::forward):
    ///
    /// - `x`: `[steps, batch, input]`, any strides
    /// - `initial` and the returned state: `[batch, hidden]` each; 0 if there is none
    /// - `mask`: `[steps, batch]`, `true` where there is input; `true` everywhere if there is none
    /// - the returned `y`: `[steps, batch, hidden]`
    ///
    /// # Errors
    ///
    /// As [`forward`](Self::forward).
    ///
    /// # Cost
    ///
    /// The arithmetic of [`forward`](Self::forward), but beside x and y it needs room for the products of a piece of about
    /// 1024 rows, for copies of the weights where many rows and steps are worth them, for the gates of one step and two states;
    /// that is the thread's, and kept. In a loop, [`infer_into`](Self::infer_into) is faster.
    ///
    /// # Example
    ///
    /// ```
    /// use layernorm::ndarray::Array3;
    /// use layernorm::rnn::{GruPlacement, Start};
    /// use layernorm::{Gru, Recurrent};
    /// use rand::{SeedableRng, rngs::StdRng};
    ///
    /// let gru = Gru::<f32>::new(3, 5, GruPlacement::Products, Start::Orthogonal, &mut StdRng::seed_from_u64(1));
    /// let x = Array3::from_shape_fn((7, 2, 3), |(t, row, i)| (t + 2 * row + i) as f32);
    /// let (y, last) = gru.infer(&x, None, None)?;
    /// let (trained_y, trained_last, _) = gru.forward(&x, None, None)?;
    /// assert_eq!((y, last), (trained_y, trained_last));
    /// # Ok::<(), layernorm::Error>(())
    /// ```
    fn infer(
        &self,
        x: &ArrayRef3<T>,
        initial: Option<&State<T>>,
        mask: Option<&ArrayRef2<bool>>,
    ) -> Result<(Array3<T>, State<T>)> {
        check_input(self, x.shape())?;
        let (steps, batch, _) = x.dim();
        let mut state = copy_or_zeros(self, "initial", initial, batch)?;
        let mut y = Array3::zeros((steps, batch, self.hidden()));
        self.infer_into(x, mask, &mut state, &mut y)?;
        Ok((y, state))
    }

    /// [`infer`](Self::infer) into memory of the caller.
    ///
    /// A long sequence can come in parts: the state passes from call to call.
    ///
    /// # Shapes
    ///
    /// - `x`: `[steps, batch, input]`; `y`: `[steps, batch, hidden]`, overwritten; any strides
    /// - `mask`: `[steps, batch]`
    /// - `state`: the state before the first step, then the one after the last
    ///
    /// # Errors
    ///
    /// As [`forward_into`](Self::forward_into). Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once this thread's buffers have grown; on several, what rayon needs to wake them,
    /// and a buffer that `faer` keeps for each.
    fn infer_into(
        &self,
        x: &ArrayRef3<T>,
        mask: Option<&ArrayRef2<bool>>,
        state: &mut State<T>,
        y: &mut ArrayRef3<T>,
    ) -> Result<()> {
        check_sequence(self, x, mask, state, y)?;
        let (steps, batch, input) = x.dim();
        if steps * batch > 0 {
            let sequence = Sequence { x: x.view(), state, y: Some(y.view_mut()) };
            sequence::on_pool(self, [steps, batch, input], || sequence::infer(self, sequence, mask));
        }
        Ok(())
    }

    /// Gradients of the loss by x and by the initial state (returned) and by the parameters (added to `grad`).
    ///
    /// [The module's page](crate::rnn) derives them.
    ///
    /// # Shapes
    ///
    /// - `x` and the returned `dx`: `[steps, batch, input]`
    /// - `saved`: of the forward call on this `x`
    /// - `dy`: `[steps, batch, hidden]`, the loss's gradient by y; what it holds where a row is padded counts, because y is
    ///   the state there
    /// - `d_final` and the returned state: `[batch, hidden]` each, the loss's gradient by the last state, beside that by y,
    ///   and by the initial one; 0 if there is none
    /// - `grad`: of [`zero_grad`](Self::zero_grad); zero it before the first batch, not between
    ///
    /// # Errors
    ///
    /// [`Error::Saved`] unless `saved` comes from a call on an `x` of this shape, [`Error::SavedCell`] unless from a cell
    /// like this, [`Error::SavedEps`] unless with the same ε; [`Error::Shape`] unless `dy` fits, [`Error::Shape`] or
    /// [`Error::StateCell`] unless `d_final` does, [`Error::Parameter`] unless `grad` has the parameters of this cell;
    /// [`Error::Trailing`] and [`Error::Hidden`] as [`forward`](Self::forward).
    fn backward(
        &self,
        x: &ArrayRef3<T>,
        saved: &Saved<T>,
        dy: &ArrayRef3<T>,
        d_final: Option<&State<T>>,
        grad: &mut Weights<T>,
    ) -> Result<(Array3<T>, State<T>)> {
        check_input(self, x.shape())?;
        check_saved(self, x.shape(), saved)?;
        let mut d_state = copy_or_zeros(self, "d_final", d_final, x.dim().1)?;
        let mut dx = Array3::zeros(x.raw_dim());
        self.backward_into(x, saved, dy, &mut d_state, &mut dx, grad)?;
        Ok((dx, d_state))
    }

    /// [`backward`](Self::backward) into memory of the caller.
    ///
    /// # Shapes
    ///
    /// - `x`, `dx`: `[steps, batch, input]`; `dx` is overwritten
    /// - `dy`: `[steps, batch, hidden]`
    /// - `d_state`: the loss's gradient by the last state, beside that by y; then the one by the initial state
    /// - `grad`: is added to
    ///
    /// # Errors
    ///
    /// As [`backward`](Self::backward), and [`Error::Shape`] unless `dx` has the shape of `x`. Nothing is written then.
    ///
    /// # Cost
    ///
    /// On one thread, allocates nothing once its buffers have grown.
    fn backward_into(
        &self,
        x: &ArrayRef3<T>,
        saved: &Saved<T>,
        dy: &ArrayRef3<T>,
        d_state: &mut State<T>,
        dx: &mut ArrayRef3<T>,
        grad: &mut Weights<T>,
    ) -> Result<()> {
        check_input(self, x.shape())?;
        check_saved(self, x.shape(), saved)?;
        let (steps, batch, input) = x.dim();
        let hidden = self.hidden();
        check_shape("dy", &[steps, batch, hidden], dy.shape())?;
        d_state.check("d_state", [batch, hidden], self.size().has_c())?;
        check_shape("dx", x.shape(), dx.shape())?;
        self.base().weights.check_same(grad, "grad")?;
        if steps * batch > 0 {
            let (x, dy, dx) = (x.view(), dy.view(), dx.view_mut());
            let backward = || sequence::backward(self, x, saved, dy, d_state, dx, grad);
            sequence::on_pool(self, [steps, batch, input], backward);
        }
        Ok(())
    }
}

impl<T: Element, C: Cell<T> + Parameters<T, Gradient = Weights<T>>> Recurrent<T> for C {}

fn check_input<T: Element, C: Cell<T>>(cell: &C, shape: &[usize]) -> Result<()> {
    let base = cell.base();
    if base.hidden == 0 {
        return Err(Error::Hidden);
    }
    if shape.last() != Some(&base.input) {
        return Err(Error::Trailing { argument: "x", normalized: vec![base.input], got: shape.to_vec() });
    }
    base.check_weights()
}

/// Checks what backward is given by forward.
fn check_saved<T: Element, C: Cell<T>>(cell: &C, shape: &[usize], saved: &Saved<T>) -> Result<()> {
    if saved.size.is_none() || saved.shape[..] != *shape {
        let got = saved.size.map(|_| saved.shape.to_vec());
        return Err(Error::Saved { argument: "x", expected: shape.to_vec(), got });
    }
    let hidden = cell.base().hidden;
    if saved.hidden != hidden || saved.size != Some(cell.size()) {
        return Err(Error::SavedCell { expected: hidden, got: saved.hidden });
    }
    if cell.size().norms > 0 { check_saved_eps(cell.base().eps.into(), saved.eps) } else { Ok(()) }
}

/// Checks what forward and infer are given.
fn check_sequence<T: Element, C: Cell<T>>(
    cell: &C,
    x: &ArrayRef3<T>,
    mask: Option<&ArrayRef2<bool>>,
    state: &State<T>,
    y: &ArrayRef3<T>,
) -> Result<()> {
    check_input(cell, x.shape())?;
    let (steps, batch, _) = x.dim();
    let hidden = cell.base().hidden;
    if let Some(mask) = mask {
        check_shape("mask", &[steps, batch], mask.shape())?;
    }
    state.check("state", [batch, hidden], cell.size().has_c())?;
    check_shape("y", &[steps, batch, hidden], y.shape())
}

/// A copy of the state, which must fit; zeros if there is none.
fn copy_or_zeros<T: Element, C: Recurrent<T>>(
    cell: &C,
    argument: &'static str,
    state: Option<&State<T>>,
    batch: usize,
) -> Result<State<T>> {
    let Some(state) = state else {
        return Ok(cell.zero_state(batch));
    };
    state.check(argument, [batch, cell.hidden()], cell.size().has_c())?;
    Ok(state.clone())
}
