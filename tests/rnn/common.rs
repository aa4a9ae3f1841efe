//! Every cell, with parameters drawn.

use std::borrow::Borrow;

use layernorm::ndarray::{Array, Array2, Array3, ArrayD, Axis, Dimension, IntoDimension, Slice};
use layernorm::rnn::{GruPlacement, LstmPlacement, RnnPlacement, Start, State};
use layernorm::{Element, Gru, Lstm, Parameters, Recurrent, Rnn};
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};
use textbook::pattern;
use textbook::recurrent::{Sequence, States};

/// What the tests ask of a cell beside what its users do.
pub(crate) trait Known: Recurrent<f64> + Clone {
    /// What the paper says.
    fn textbook(&self, sequence: &Sequence<'_>) -> States;
}

impl Known for Rnn<f64> {
    fn textbook(&self, sequence: &Sequence<'_>) -> States {
        sequence.rnn(self.placement() == RnnPlacement::Sum)
    }
}

impl Known for Lstm<f64> {
    fn textbook(&self, sequence: &Sequence<'_>) -> States {
        let products = self.placement() == LstmPlacement::ProductsAndCell;
        sequence.lstm(products, self.placement() != LstmPlacement::None)
    }
}

impl Known for Gru<f64> {
    fn textbook(&self, sequence: &Sequence<'_>) -> States {
        sequence.gru(self.placement() == GruPlacement::Products)
    }
}

pub(crate) const RNNS: [RnnPlacement; 2] = [RnnPlacement::None, RnnPlacement::Sum];
pub(crate) const LSTMS: [LstmPlacement; 3] = [LstmPlacement::None, LstmPlacement::Cell, LstmPlacement::ProductsAndCell];
pub(crate) const GRUS: [GruPlacement; 2] = [GruPlacement::None, GruPlacement::Products];

pub(crate) fn rng() -> StdRng {
    StdRng::seed_from_u64(1)
}

/// Calls a function with each kind of cell, parameters drawn, and its name.
macro_rules! with_each_cell {
    ($number:ty, $input:expr, $hidden:expr, $f:expr) => {{
        use crate::common::{GRUS, LSTMS, RNNS, draw, rng};
        use layernorm::rnn::Start;
        for placement in RNNS {
            let cell = layernorm::Rnn::<$number>::new($input, $hidden, placement, Start::Uniform, &mut rng());
            $f(draw(cell), &format!("Rnn {placement:?}"));
        }
        for placement in LSTMS {
            let cell = layernorm::Lstm::<$number>::new($input, $hidden, placement, Start::Uniform, &mut rng());
            $f(draw(cell), &format!("Lstm {placement:?}"));
        }
        for placement in GRUS {
            let cell = layernorm::Gru::<$number>::new($input, $hidden, placement, Start::Uniform, &mut rng());
            $f(draw(cell), &format!("Gru {placement:?}"));
        }
    }};
}
pub(crate) use with_each_cell;

/// Draws every parameter: gains about 1, all others about 0.
pub(crate) fn draw<T: Element, C: Recurrent<T>>(mut cell: C) -> C {
    let mut seed = 100;
    cell.visit_mut(|name, mut array| {
        seed += 1;
        let (centre, spread) = match name {
            "input_weight" | "recurrent_weight" => (0.0, 0.5),
            name if name.ends_with("gain") => (1.0, 0.3),
            _ => (0.0, 0.3),
        };
        let numbers = pattern(array.len(), seed);
        array.iter_mut().zip(numbers).for_each(|(x, number)| *x = from(centre + spread * number));
    });
    cell
}

pub(crate) fn from<T: Element>(x: f64) -> T {
    <T as num_traits::NumCast>::from(x).expect("a number")
}

pub(crate) fn drawn<T: Element, S: IntoDimension>(shape: S, seed: u64) -> Array<T, S::Dim> {
    let shape = shape.into_dimension();
    let mut numbers = pattern(shape.size(), seed).into_iter();
    Array::from_shape_simple_fn(shape, || from(numbers.next().expect("as many as the shape has")))
}

pub(crate) fn state<T: Element, C: Recurrent<T>>(cell: &C, batch: usize, seed: u64) -> State<T> {
    let mut state = cell.zero_state(batch);
    state.h = drawn::<T, _>([batch, cell.hidden()], seed).mapv(|h| h * from::<T>(0.5));
    if let Some(c) = &mut state.c {
        *c = drawn([batch, cell.hidden()], seed + 1);
    }
    state
}

/// ∞ where a difference is NaN.
pub(crate) fn largest_difference(
    got: impl IntoIterator<Item = impl Borrow<f64>>,
    right: impl IntoIterator<Item = impl Borrow<f64>>,
) -> f64 {
    let differences = got.into_iter().zip(right).map(|(got, right)| (got.borrow() - right.borrow()).abs());
    differences.fold(0.0, |largest: f64, x| if x.is_nan() { f64::INFINITY } else { largest.max(x) })
}

pub(crate) fn parameter<C: Parameters<f64>>(cell: &C, wanted: &str) -> ArrayD<f64> {
    let mut found = None;
    cell.visit(|name, array| {
        if name == wanted {
            found = Some(array.to_owned());
        }
    });
    found.unwrap_or_else(|| panic!("no parameter {wanted}"))
}

/// Padding at the end of some sequences, in the middle of one, and a step where there is nothing at all.
pub(crate) fn holes(steps: usize, batch: usize) -> Array2<bool> {
    Array2::from_shape_fn((steps, batch), |(t, row)| {
        let ends = steps.saturating_sub(row % 3);
        t < ends && !(row % 4 == 1 && t == 1) && !(steps > 4 && t == 3)
    })
}

/// In another layout: batch first in memory, and the features behind each other backwards.
pub(crate) fn turned<T: Element>(array: &Array3<T>) -> Array3<T> {
    let mut memory = array.view().permuted_axes([1, 0, 2]).as_standard_layout().into_owned();
    memory.slice_axis_mut(Axis(2), Slice::new(0, None, -1)).assign(&array.view().permuted_axes([1, 0, 2]));
    memory.slice_axis_inplace(Axis(2), Slice::new(0, None, -1));
    memory.permuted_axes([1, 0, 2])
}

/// A mask with the axes the other way round in memory.
pub(crate) fn turned_mask(mask: &Array2<bool>) -> Array2<bool> {
    mask.t().as_standard_layout().into_owned().reversed_axes()
}

#[cfg(feature = "rayon")]
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool").install(f)
}

/// The paper's y and last c of a batch.
pub(crate) fn textbook<C: Known>(
    cell: &C,
    x: &Array3<f64>,
    initial: &State<f64>,
    mask: Option<&Array2<bool>>,
) -> (Array3<f64>, Option<Array2<f64>>) {
    let (steps, batch, input) = x.dim();
    let hidden = cell.hidden();
    let mut y = Array3::zeros((steps, batch, hidden));
    let mut last = initial.c.clone();
    for row in 0..batch {
        let sequence = Sequence {
            input,
            hidden,
            x: (0..steps).map(|t| (0..input).map(|i| x[[t, row, i]]).collect()).collect(),
            mask: (0..steps).map(|t| mask.is_none_or(|mask| mask[[t, row]])).collect(),
            h: initial.h.row(row).to_vec(),
            c: initial.c.as_ref().map(|c| c.row(row).to_vec()).unwrap_or_default(),
            eps: cell.eps(),
            parameter: &|name| parameter(cell, name).into_iter().collect(),
        };
        let (h, c) = cell.textbook(&sequence);
        for t in 0..steps {
            for j in 0..hidden {
                y[[t, row, j]] = h[t][j];
            }
        }
        if let Some(last) = &mut last {
            last.row_mut(row).iter_mut().zip(c).for_each(|(to, from)| *to = from);
        }
    }
    (y, last)
}

/// A normalized cell of some size, weights as they are drawn at the start.
pub(crate) fn lstm<T: Element>(input: usize, hidden: usize) -> Lstm<T> {
    draw(Lstm::new(input, hidden, LstmPlacement::ProductsAndCell, Start::Uniform, &mut rng()))
}
