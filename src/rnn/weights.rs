//! The parameters of a recurrent cell by name.

use ndarray::{ArrayD, ArrayViewD, ArrayViewMutD, IxDyn};

use crate::element::Element;
use crate::error::Result;
use crate::params::{Parameters, check_parameter};

pub(crate) const INPUT_WEIGHT: &str = "input_weight";
pub(crate) const RECURRENT_WEIGHT: &str = "recurrent_weight";
pub(crate) const BIAS: &str = "bias";
pub(crate) const RECURRENT_BIAS: &str = "recurrent_bias";
pub(crate) const GAIN: &str = "gain";
pub(crate) const INPUT_GAIN: &str = "input_gain";
pub(crate) const RECURRENT_GAIN: &str = "recurrent_gain";
pub(crate) const CELL_GAIN: &str = "cell_gain";
pub(crate) const CELL_BIAS: &str = "cell_bias";

/// How many of the arrays are matrices; they come first.
pub(crate) const MATRICES: usize = 2;

/// The parameters of a recurrent cell, or their gradients: named arrays in a fixed order.
///
/// [`zero_grad`](crate::Recurrent::zero_grad) makes one that fits a cell; `backward` adds to it. The page of each cell says
/// which arrays it has.
///
/// # Example
///
/// ```
/// use layernorm::rnn::{LstmPlacement, Start};
/// use layernorm::{Lstm, Parameters, Recurrent};
/// use rand::{SeedableRng, rngs::StdRng};
///
/// let mut rng = StdRng::seed_from_u64(1);
/// let lstm = Lstm::<f32>::new(3, 5, LstmPlacement::Cell, Start::Uniform, &mut rng);
/// let grad = lstm.zero_grad();
/// let mut names = Vec::new();
/// grad.visit(|name, array| names.push(format!("{name} {:?}", array.shape())));
/// let matrices = ["input_weight [3, 20]", "recurrent_weight [5, 20]"];
/// assert_eq!(names[..2], matrices);
/// assert_eq!(names[2..], ["bias [20]", "cell_gain [5]", "cell_bias [5]"]);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Weights<T> {
    arrays: Vec<(&'static str, ArrayD<T>)>,
}

const STANDARD: &str = "parameters are kept in standard layout";

impl<T: Element> Weights<T> {
    /// Arrays of these names and shapes: gains 1, all others 0.
    pub(crate) fn new(shapes: &[(&'static str, &[usize])]) -> Self {
        let start = |name: &str| if name.ends_with(GAIN) { T::one() } else { T::zero() };
        let array = |&(name, shape): &(_, &[usize])| (name, ArrayD::from_elem(IxDyn(shape), start(name)));
        Self { arrays: shapes.iter().map(array).collect() }
    }

    /// The array of that name; `None` if there is none.
    pub fn get(&self, name: &str) -> Option<ArrayViewD<'_, T>> {
        self.arrays.iter().find(|(known, _)| *known == name).map(|(_, array)| array.view())
    }

    /// The array of that name, to be changed.
    pub fn get_mut(&mut self, name: &str) -> Option<ArrayViewMutD<'_, T>> {
        self.arrays.iter_mut().find(|(known, _)| *known == name).map(|(_, array)| array.view_mut())
    }

    /// Sets every element to 0: before the first batch of a step, not between batches.
    pub fn fill_zero(&mut self) {
        self.visit_mut(|_, mut array| array.fill(T::zero()));
    }

    /// The elements of an array that is there.
    pub(crate) fn slice(&self, name: &str) -> &[T] {
        let array = self.arrays.iter().find(|(known, _)| *known == name);
        array.expect("a cell asks for what it has").1.as_slice().expect(STANDARD)
    }

    /// The elements of the arrays, in order.
    pub(crate) fn slices_mut(&mut self) -> impl Iterator<Item = &mut [T]> {
        self.arrays.iter_mut().map(|(_, array)| array.as_slice_mut().expect(STANDARD))
    }

    /// Elements of all arrays behind the matrices.
    pub(crate) fn columns(&self) -> usize {
        self.arrays[MATRICES..].iter().map(|(_, array)| array.len()).sum()
    }

    /// Whether `other` has the same arrays; otherwise what is wrong with it.
    pub(crate) fn check_same(&self, other: &Self, argument: &'static str) -> Result<()> {
        other.check(argument, self.arrays.iter().map(|(name, array)| (*name, array.shape())))
    }

    /// Whether these are arrays of such names and shapes; otherwise what is wrong with them.
    pub(crate) fn check<'a>(
        &'a self,
        argument: &'static str,
        expected: impl Iterator<Item = (&'static str, &'a [usize])> + Clone,
    ) -> Result<()> {
        // Of the same cell they are in the same order, too: the step of a small cell feels the search below.
        if self.arrays.iter().map(|(name, array)| (*name, array.shape())).eq(expected.clone()) {
            return Ok(());
        }
        for (name, shape) in expected.clone() {
            let ours = self.get(name);
            check_parameter(argument, name, Some(shape), ours.as_ref().map(|ours| ours.shape()))?;
        }
        match self.arrays.iter().find(|(name, _)| expected.clone().all(|(known, _)| known != *name)) {
            Some((name, ours)) => check_parameter(argument, name, None, Some(ours.shape())),
            None => Ok(()),
        }
    }
}

impl<T: Element> Parameters<T> for Weights<T> {
    type Gradient = Self;

    fn visit(&self, mut f: impl FnMut(&str, ArrayViewD<'_, T>)) {
        self.arrays.iter().for_each(|(name, array)| f(name, array.view()));
    }

    fn visit_mut(&mut self, mut f: impl FnMut(&str, ArrayViewMutD<'_, T>)) {
        self.arrays.iter_mut().for_each(|(name, array)| f(name, array.view_mut()));
    }

    fn zip(
        &mut self,
        grad: &Self::Gradient,
        mut f: impl FnMut(&str, ArrayViewMutD<'_, T>, ArrayViewD<'_, T>),
    ) -> Result<()> {
        self.check_same(grad, "grad")?;
        for ((name, array), (_, gradient)) in self.arrays.iter_mut().zip(&grad.arrays) {
            f(name, array.view_mut(), gradient.view());
        }
        Ok(())
    }
}
