//! The model: characters, embedded, through recurrent layers to the odds of the next one.
//!
//! ```text
//! x = embedding of the characters           [steps, batch, width]
//! each layer:  x = y of the cell            [steps, batch, hidden]
//! z = x·W + bias                            [steps·batch, characters]
//! ```

use layernorm::ndarray::{Array2, Array3, ArrayRef3, ArrayView2, ArrayViewMut2, ArrayViewMutD};
use layernorm::rnn::{Saved, State, Weights};
use layernorm::{Parameters, Recurrent, Result};
use ndarray_rand::rand::rngs::StdRng;

use crate::common::adam::{Trained, Visit};
use crate::embedding::Embedding;
use crate::output::Output;

/// What a model carries from chunk to chunk: the state of each layer.
pub(crate) type States = Vec<State<f32>>;

pub(crate) struct Model<C> {
    embedding: Embedding,
    layers: Vec<Layer<C>>,
    output: Output,

    // Of the last chunk. Made anew when its shape changes, else overwritten.
    /// `[steps, batch, width]`
    x: Array3<f32>,
    dx: Array3<f32>,
    /// `[steps·batch, characters]`
    z: Array2<f32>,
    dz: Array2<f32>,
}

/// How large a model is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// In the alphabet.
    pub(crate) characters: usize,
    /// Of the embedding.
    pub(crate) width: usize,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
}

impl<C: Recurrent<f32>> Model<C> {
    /// `cell` makes one of `hidden` units for as many inputs as it is told.
    pub(crate) fn new(size: Size, cell: impl Fn(usize, &mut StdRng) -> C, rng: &mut StdRng) -> Self {
        let Size { characters, width, hidden, layers } = size;
        Self {
            embedding: Embedding::new(characters, width, rng),
            layers: (0..layers).map(|at| Layer::new(cell(if at == 0 { width } else { hidden }, rng))).collect(),
            output: Output::new(hidden, characters, rng),
            x: Array3::zeros((0, 0, width)),
            dx: Array3::zeros((0, 0, width)),
            z: Array2::zeros((0, characters)),
            dz: Array2::zeros((0, characters)),
        }
    }

    /// The states at the beginning of a text.
    pub(crate) fn zero_states(&self, batch: usize) -> States {
        self.layers.iter().map(|layer| layer.cell.zero_state(batch)).collect()
    }

    /// z for each character of `[steps, batch]`, and the place for the loss's gradient by it, which backward starts from.
    ///
    /// `states` are those in front of the first step, then those behind the last.
    pub(crate) fn forward(
        &mut self,
        characters: &Array2<u8>,
        states: &mut States,
    ) -> Result<(&Array2<f32>, &mut Array2<f32>)> {
        self.fit(characters.dim());
        self.embedding.forward(characters, &mut self.x);
        let mut x = &self.x;
        for (layer, state) in self.layers.iter_mut().zip(states) {
            layer.cell.forward_into(x, None, state, &mut layer.y, &mut layer.saved)?;
            x = &layer.y;
        }
        self.output.forward(&rows(x), &mut self.z);
        Ok((&self.z, &mut self.dz))
    }

    /// Fills all gradients; `characters` are those of the last forward call.
    ///
    /// The chunk is all there is: its first states have no gradient, its last ones none from behind (truncated BPTT).
    pub(crate) fn backward(&mut self, characters: &Array2<u8>) -> Result<()> {
        let Some(last) = self.layers.last_mut() else { return Ok(()) };
        self.output.backward(&rows(&last.y), &self.dz, &mut rows_mut(&mut last.dy));
        let mut layers = &mut self.layers[..];
        while let Some((layer, before)) = layers.split_last_mut() {
            match before.last_mut() {
                Some(Layer { y, dy, .. }) => layer.backward(y, dy)?,
                None => layer.backward(&self.x, &mut self.dx)?,
            }
            layers = before;
        }
        self.embedding.backward(characters, &self.dx);
        Ok(())
    }

    /// z for one character, `[1, characters]`, and the states behind it: nothing is kept.
    pub(crate) fn step(&self, character: u8, states: &mut States) -> Result<Array2<f32>> {
        let mut x = self.embedding.infer(character);
        for (layer, state) in self.layers.iter().zip(states) {
            layer.cell.step_into(&x, state)?;
            x.clone_from(&state.h);
        }
        let mut z = Array2::zeros((1, self.z.ncols()));
        self.output.forward(&x, &mut z);
        Ok(z)
    }

    /// Shortens all gradients alike, so that together they are no longer than `longest`.
    ///
    /// A rare long one would otherwise undo what many short ones have learnt (Pascanu, Mikolov, Bengio, arXiv:1211.5063).
    pub(crate) fn clip(&mut self, longest: f32) {
        let mut squares = 0.0;
        self.each_gradient(&mut |gradient| squares += gradient.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>());
        let factor = longest / squares.sqrt() as f32;
        if factor < 1.0 {
            self.each_gradient(&mut |mut gradient| gradient *= factor);
        }
    }

    fn each_gradient(&mut self, f: &mut dyn FnMut(ArrayViewMutD<'_, f32>)) {
        f(self.embedding.dweight.view_mut().into_dyn());
        for layer in &mut self.layers {
            layer.grad.visit_mut(|_name, gradient| f(gradient));
        }
        f(self.output.dweight.view_mut().into_dyn());
        f(self.output.dbias.view_mut().into_dyn());
    }

    fn fit(&mut self, (steps, batch): (usize, usize)) {
        let buffers = [&mut self.x, &mut self.dx].into_iter();
        for buffer in buffers.chain(self.layers.iter_mut().flat_map(|layer| [&mut layer.y, &mut layer.dy])) {
            let shape = (steps, batch, buffer.dim().2);
            if buffer.dim() != shape {
                *buffer = Array3::zeros(shape);
            }
        }
        for buffer in [&mut self.z, &mut self.dz] {
            let shape = (steps * batch, buffer.ncols());
            if buffer.dim() != shape {
                *buffer = Array2::zeros(shape);
            }
        }
    }
}

impl<C: Recurrent<f32>> Trained for Model<C> {
    fn zip(&mut self, f: Visit<'_>) -> Result<()> {
        self.embedding.zip(f);
        for layer in &mut self.layers {
            layer.cell.zip(&layer.grad, |_name, parameter, gradient| f(parameter, gradient))?;
        }
        self.output.zip(f);
        Ok(())
    }
}

/// A cell with its gradients and the numbers of the last chunk.
struct Layer<C> {
    cell: C,
    grad: Weights<f32>,
    saved: Saved<f32>,
    /// `[steps, batch, hidden]`
    y: Array3<f32>,
    dy: Array3<f32>,
    dstate: State<f32>,
}

impl<C: Recurrent<f32>> Layer<C> {
    fn new(cell: C) -> Self {
        let buffer = || Array3::zeros((0, 0, cell.hidden()));
        Self {
            grad: cell.zero_grad(),
            saved: Saved::default(),
            y: buffer(),
            dy: buffer(),
            dstate: cell.zero_state(0),
            cell,
        }
    }

    /// Takes `dy`, and fills the gradients and `dx`.
    fn backward(&mut self, x: &ArrayRef3<f32>, dx: &mut ArrayRef3<f32>) -> Result<()> {
        let batch = x.dim().1;
        if self.dstate.h.nrows() == batch {
            self.dstate.h.fill(0.0);
            self.dstate.c.iter_mut().for_each(|c| c.fill(0.0));
        } else {
            self.dstate = self.cell.zero_state(batch);
        }
        self.grad.fill_zero();
        self.cell.backward_into(x, &self.saved, &self.dy, &mut self.dstate, dx, &mut self.grad)
    }
}

const STANDARD: &str = "buffers are in standard layout";

/// `[steps, batch, width]` as `[steps·batch, width]`.
fn rows(x: &Array3<f32>) -> ArrayView2<'_, f32> {
    let (steps, batch, width) = x.dim();
    x.view().into_shape_with_order((steps * batch, width)).expect(STANDARD)
}

fn rows_mut(x: &mut Array3<f32>) -> ArrayViewMut2<'_, f32> {
    let (steps, batch, width) = x.dim();
    x.view_mut().into_shape_with_order((steps * batch, width)).expect(STANDARD)
}

#[cfg(test)]
pub(crate) mod tests {
    use layernorm::Lstm;
    use layernorm::ndarray::{ArrayD, ArrayViewD, Axis, array, s};
    use layernorm::rnn::{LstmPlacement, Start};
    use ndarray_rand::rand::SeedableRng;

    use super::*;
    use crate::common::adam::Adam;
    use crate::common::loss::{self, Score};

    const SIZE: Size = Size { characters: 5, width: 3, hidden: 4, layers: 2 };

    pub(crate) fn model() -> Model<Lstm<f32>> {
        let mut rng = StdRng::seed_from_u64(3);
        let cell = |input: usize, rng: &mut StdRng| {
            Lstm::new(input, SIZE.hidden, LstmPlacement::ProductsAndCell, Start::Orthogonal, rng)
        };
        Model::new(SIZE, cell, &mut rng)
    }

    /// Three steps of two streams.
    fn characters() -> (Array2<u8>, [u8; 6]) {
        (array![[0, 4], [1, 2], [1, 0]], [1, 2, 1, 0, 4, 3])
    }

    /// The mean loss from states that are not 0.
    fn loss(model: &mut Model<Lstm<f32>>) -> f64 {
        let (characters, targets) = characters();
        let mut states = model.zero_states(2);
        states.iter_mut().for_each(|state| state.h.fill(0.25));
        let (z, _) = model.forward(&characters, &mut states).unwrap();
        let mut score = Score::default();
        score.add(z, &targets);
        score.nll()
    }

    /// Fills the gradients and hands them out, in order.
    fn gradients(model: &mut Model<Lstm<f32>>) -> Vec<ArrayD<f32>> {
        let (characters, targets) = characters();
        loss(model);
        loss::gradient(&model.z, &targets, &mut model.dz);
        model.backward(&characters).unwrap();
        let mut gradients = Vec::new();
        model.zip(&mut |_, gradient| gradients.push(gradient.to_owned())).unwrap();
        gradients
    }

    /// Moves one element of one parameter.
    fn nudge(model: &mut Model<Lstm<f32>>, parameter: usize, element: usize, by: f32) {
        let mut at = 0;
        let nudge = &mut |mut array: ArrayViewMutD<'_, f32>, _: ArrayViewD<'_, f32>| {
            if at == parameter {
                *array.iter_mut().nth(element).unwrap() += by;
            }
            at += 1;
        };
        model.zip(nudge).unwrap();
    }

    /// Products of other shapes round differently.
    fn assert_near(got: ArrayView2<'_, f32>, expected: ArrayView2<'_, f32>) {
        assert!((&got - &expected).iter().all(|d| d.abs() < 1e-5), "got {got}, expected {expected}");
    }

    #[test]
    fn gradients_are_slopes() {
        let mut model = model();
        let gradients = gradients(&mut model);
        assert_eq!(gradients.len(), 1 + 2 * 7 + 2);
        // f32 leaves about 1e-7/h of noise in a slope of fourth order, whose own error is about h⁴.
        let h = 1.0 / 32.0;
        for (parameter, gradient) in gradients.iter().enumerate() {
            for (element, &got) in gradient.iter().enumerate() {
                let mut at = |by: f32| {
                    nudge(&mut model, parameter, element, by);
                    let loss = loss(&mut model);
                    nudge(&mut model, parameter, element, -by);
                    loss
                };
                let slope = (8.0 * (at(h) - at(-h)) - (at(2.0 * h) - at(-2.0 * h))) / (12.0 * f64::from(h));
                let error = (f64::from(got) - slope).abs();
                assert!(error < 1e-4, "parameter {parameter}, element {element}: got {got}, slope {slope}");
            }
        }
    }

    #[test]
    fn gradients_are_not_added_to_old_ones() {
        let mut model = model();
        assert_eq!(gradients(&mut model), gradients(&mut model));
    }

    #[test]
    fn steps_give_what_a_chunk_gives() {
        let mut model = model();
        let text = array![[0], [3], [1], [4], [4]];
        let (mut states, mut stepped) = (model.zero_states(1), model.zero_states(1));
        let z = model.forward(&text, &mut states).unwrap().0.clone();
        for (expected, &character) in z.rows().into_iter().zip(&text) {
            let got = model.step(character, &mut stepped).unwrap();
            assert_near(got.view(), expected.insert_axis(Axis(0)));
        }
    }

    #[test]
    fn chunks_of_a_text_give_what_all_of_it_gives() {
        let mut model = model();
        let (text, _) = characters();
        let (mut states, mut passed_on) = (model.zero_states(2), model.zero_states(2));
        let whole = model.forward(&text, &mut states).unwrap().0.clone();
        for (at, characters) in text.rows().into_iter().enumerate() {
            let characters = characters.insert_axis(Axis(0)).to_owned();
            let (got, _) = model.forward(&characters, &mut passed_on).unwrap();
            assert_near(got.view(), whole.slice(s![2 * at..2 * at + 2, ..]));
        }
        for (got, expected) in passed_on.iter().zip(&states) {
            assert_near(got.h.view(), expected.h.view());
        }
    }

    #[test]
    fn a_text_that_repeats_is_learnt() {
        let (mut model, mut adam) = (model(), Adam::new());
        let text = Array2::from_shape_fn((20, 3), |(step, row)| ((step + row) % 5) as u8);
        let targets: Vec<u8> = text.iter().map(|character| (character + 1) % 5).collect();
        let mut states = model.zero_states(3);
        let mut update = || {
            let (z, dz) = model.forward(&text, &mut states).unwrap();
            let mut score = Score::default();
            score.add(z, &targets);
            loss::gradient(z, &targets, dz);
            model.backward(&text).unwrap();
            model.clip(1.0);
            adam.step(&mut model, 0.03).unwrap();
            score.nll()
        };
        let first = update();
        let last = (0..200).fold(first, |_, _| update());
        assert!(first > 1.0 && last < 0.05, "{first} at first, {last} at last");
    }

    #[test]
    fn clipping_shortens_and_never_lengthens() {
        let mut model = model();
        let before = gradients(&mut model);
        let length = |gradients: &[ArrayD<f32>]| gradients.iter().flatten().map(|d| d * d).sum::<f32>().sqrt();
        let mut clipped = |longest: f32| {
            model.clip(longest);
            let mut after = Vec::new();
            model.zip(&mut |_, gradient| after.push(gradient.to_owned())).unwrap();
            after
        };
        let longest = length(&before);
        assert_eq!(clipped(2.0 * longest), before);
        let after = clipped(0.5 * longest);
        assert!((length(&after) / longest - 0.5).abs() < 1e-5);
        assert!((&after[0] * 2.0 - &before[0]).iter().all(|d| d.abs() < 1e-6));
    }
}
