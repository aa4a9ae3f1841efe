//! What the time loop needs to know of a cell.

use fearless_simd::Level;

use crate::element::Element;
use crate::error::Result;
use crate::kernels::gates::{Step, StepBack};
use crate::rnn::start::Start;
use crate::rnn::weights::{INPUT_WEIGHT, RECURRENT_WEIGHT, Weights};
use crate::simd;

/// What every cell has.
#[derive(Clone, Debug)]
pub struct Base<T> {
    pub(crate) input: usize,
    pub(crate) hidden: usize,
    pub(crate) eps: T,
    pub(crate) level: Level,
    pub(crate) weights: Weights<T>,
    /// Names and shapes of the weights, which can be replaced as a whole.
    shapes: Vec<(&'static str, Vec<usize>)>,
}

impl<T: Element> Base<T> {
    /// With weights drawn, and these arrays behind them, of as many elements as there are hidden units, times something.
    pub(crate) fn new(
        input: usize,
        hidden: usize,
        gates: usize,
        others: &[(&'static str, usize)],
        start: Start,
        rng: &mut (impl rand::Rng + ?Sized),
    ) -> Self {
        let columns = gates.checked_mul(hidden).expect("weights fit the address space");
        let others: Vec<_> = others.iter().map(|&(name, width)| (name, [width * hidden])).collect();
        let mut shapes: Vec<(_, &[usize])> = Vec::new();
        let matrices = [[input, columns], [hidden, columns]];
        shapes.push((INPUT_WEIGHT, &matrices[0]));
        shapes.push((RECURRENT_WEIGHT, &matrices[1]));
        shapes.extend(others.iter().map(|(name, shape)| (*name, &shape[..])));
        let mut weights = Weights::new(&shapes);
        let mut slices = weights.slices_mut();
        if let (Some(input_weight), Some(recurrent_weight)) = (slices.next(), slices.next()) {
            start.draw(hidden, input_weight, recurrent_weight, columns, rng);
        }
        drop(slices);
        let shapes = shapes.into_iter().map(|(name, shape)| (name, shape.to_vec())).collect();
        Self { input, hidden, eps: T::nearest(1e-5), level: simd::level(), weights, shapes }
    }

    /// Whether the weights are those of this cell.
    pub(crate) fn check_weights(&self) -> Result<()> {
        self.weights.check("weights", self.shapes.iter().map(|(name, shape)| (*name, &shape[..])))
    }
}

/// What a cell keeps of a row, in multiples of its hidden units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Columns of the products.
    pub(crate) gates: usize,
    /// Numbers that backward needs beside the products and the state.
    pub(crate) kept: usize,
    /// How h′·W_h meets x·W_x.
    pub(crate) products: Products,
    /// Columns of each product that backward needs: all, if they are normalized, or none.
    pub(crate) kept_columns: usize,
    /// Normalizations.
    pub(crate) norms: usize,
    /// Whether there is a c.
    pub(crate) state: Parts,
    /// Elements of scratch for a piece of a step.
    pub(crate) scratch: usize,
}

/// How h′·W_h meets x·W_x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Products {
    /// They are added.
    Summed,
    /// The cell takes them one by one.
    Apart,
}

/// What a state is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parts {
    /// The output alone.
    H,
    /// The output and a memory.
    HAndC,
}

impl Size {
    /// Columns of u.
    pub(crate) fn u(self) -> usize {
        if self.products == Products::Apart { self.gates } else { 0 }
    }

    /// Columns of u that backward needs.
    pub(crate) fn kept_u(self) -> usize {
        if self.products == Products::Apart { self.kept_columns } else { 0 }
    }

    /// Columns of c.
    pub(crate) fn c(self) -> usize {
        usize::from(self.has_c())
    }

    pub(crate) fn has_c(self) -> bool {
        self.state == Parts::HAndC
    }
}

/// A cell: what [`Recurrent`](crate::Recurrent) runs through time.
///
/// Public because `Recurrent` names it. This module is private, so that nobody else can: that seals `Recurrent`. What is here may
/// change with any release.
#[expect(private_interfaces, reason = "nobody else can name them")]
pub trait Cell<T: Element>: Sized + Sync {
    fn base(&self) -> &Base<T>;
    fn base_mut(&mut self) -> &mut Base<T>;
    fn size(&self) -> Size;

    /// The state of some rows after a step, from the products on.
    fn forward_rows(&self, step: Step<'_, T>);

    /// The gradients of some rows of a step by the products and by the state before.
    fn backward_rows(&self, step: StepBack<'_, T>);
}

/// The parameters of a cell are those of its base.
macro_rules! parameters_of_base {
    ($cell:ident) => {
        impl<T: Element> crate::params::Parameters<T> for $cell<T> {
            type Gradient = crate::rnn::weights::Weights<T>;

            fn visit(&self, f: impl FnMut(&str, ndarray::ArrayViewD<'_, T>)) {
                self.base.weights.visit(f);
            }

            fn visit_mut(&mut self, f: impl FnMut(&str, ndarray::ArrayViewMutD<'_, T>)) {
                self.base.weights.visit_mut(f);
            }

            fn zip(
                &mut self,
                grad: &Self::Gradient,
                f: impl FnMut(&str, ndarray::ArrayViewMutD<'_, T>, ndarray::ArrayViewD<'_, T>),
            ) -> crate::error::Result<()> {
                self.base.weights.zip(grad, f)
            }
        }
    };
}

pub(crate) use parameters_of_base;
