//! What a cell carries from step to step.

use ndarray::{Array2, ArrayView2};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::params::check_shape;

/// What a recurrent cell carries from one step to the next, or the loss's gradient by it.
///
/// [`zero_state`](crate::Recurrent::zero_state) makes one that fits a cell.
///
/// # Shapes
///
/// - `h`: `[batch, hidden]`, the output of the last step
/// - `c`: `[batch, hidden]`, the memory of an LSTM; `None` in other cells
#[derive(Clone, Debug, PartialEq)]
pub struct State<T> {
    /// The output of the last step.
    pub h: Array2<T>,
    /// An LSTM's memory.
    pub c: Option<Array2<T>>,
}

impl<T: Element> State<T> {
    pub(crate) fn zeros(batch: usize, hidden: usize, has_c: bool) -> Self {
        let zeros = Array2::zeros((batch, hidden));
        Self { c: has_c.then(|| zeros.clone()), h: zeros }
    }

    /// Whether it fits; otherwise what is wrong with it.
    pub(crate) fn check(&self, argument: &'static str, shape: [usize; 2], has_c: bool) -> Result<()> {
        if self.c.is_some() != has_c {
            return Err(Error::StateCell { argument, expected: has_c });
        }
        for array in std::iter::once(&self.h).chain(&self.c) {
            check_shape(argument, &shape, array.shape())?;
        }
        Ok(())
    }

    /// Writes h and c into slices, c into as many elements as the cell has.
    pub(crate) fn copy_to(&self, h: &mut [T], c: &mut [T]) {
        h.iter_mut().zip(&self.h).for_each(|(to, &from)| *to = from);
        c.iter_mut().zip(self.c.iter().flatten()).for_each(|(to, &from)| *to = from);
    }

    /// Takes h and c from slices.
    pub(crate) fn copy_from(&mut self, h: &[T], c: &[T]) {
        for (own, slice) in std::iter::once(&mut self.h).zip([h]).chain(self.c.iter_mut().zip([c])) {
            let view = ArrayView2::from_shape(own.raw_dim(), slice).expect("the state has been checked");
            own.assign(&view);
        }
    }
}
