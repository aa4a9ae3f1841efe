//! Infer keeps nothing, and has the bits of forward.

use layernorm::ndarray::{Array2, Array3};
use layernorm::rnn::State;
use layernorm::{Element, Recurrent};

use crate::common::{drawn, from, holes, state, turned, turned_mask, with_each_cell};

/// An x with NaN where the mask says that nothing is there, and a state to start from.
fn padded<T: Element, C: Recurrent<T>>(cell: &C, mask: &Array2<bool>) -> (Array3<T>, State<T>) {
    let (steps, batch) = mask.dim();
    let mut x = drawn::<T, _>((steps, batch, cell.input()), 1);
    for (mut row, _) in x.rows_mut().into_iter().zip(mask).filter(|(_, is_there)| !**is_there) {
        row.fill(from(f64::NAN));
    }
    (x, state(cell, batch, 5))
}

fn check<T: Element, C: Recurrent<T>>(cell: &C, steps: usize, batch: usize, name: &str) {
    let place = format!("{steps} × {batch}, {name}");
    let (some, all) = (holes(steps, batch), Array2::from_elem((steps, batch), true));
    for mask in [None, Some(&all), Some(&some)] {
        let (x, initial) = padded(cell, mask.unwrap_or(&all));
        for initial in [None, Some(&initial)] {
            let (y, last, _) = cell.forward(&x, initial, mask.map(|mask| &**mask)).unwrap();
            let right = (y, last);
            assert!(right.0.iter().all(|y| y.is_finite()), "{place}");
            assert!(cell.infer(&x, initial, mask.map(|mask| &**mask)).unwrap() == right, "{place}");

            let (x, mask) = (turned(&x), mask.map(turned_mask));
            let mut y = turned(&right.0).mapv(|_| from(f64::NAN));
            let mut state = initial.cloned().unwrap_or_else(|| cell.zero_state(batch));
            cell.infer_into(&x, mask.as_deref(), &mut state, &mut y).unwrap();
            assert!((y, state) == right, "another layout, {place}");
        }
    }
}

/// Nothing, one step, an odd and an even number of them, several pieces of a sequence, several blocks of a step's rows.
#[test]
fn infer_has_the_bits_of_forward() {
    for (steps, batch) in [(0, 2), (3, 0), (1, 1), (1, 9), (5, 3), (6, 9), (20, 70), (3, 600), (2, 1100)] {
        with_each_cell!(f32, 3, 7, |cell, name: &str| check::<f32, _>(&cell, steps, batch, name));
        with_each_cell!(f64, 2, 17, |cell, name: &str| check::<f64, _>(&cell, steps, batch, name));
    }
}

/// Sizes from below to above what is worth several threads.
#[cfg(feature = "rayon")]
#[test]
fn infer_has_the_bits_of_forward_on_any_number_of_threads() {
    use crate::common::on_threads;

    fn check<T: Element, C: Recurrent<T>>(cell: &C, name: &str) {
        for (steps, batch) in [(3, 1), (4, 33), (5, 150), (9, 33)] {
            let (some, all) = (holes(steps, batch), Array2::from_elem((steps, batch), true));
            for mask in [None, Some(&some)] {
                let place = format!("{steps} × {batch}, mask {}, {name}", mask.is_some());
                let (x, initial) = padded(cell, mask.unwrap_or(&all));
                let mask = mask.map(|mask| &**mask);
                let (y, last, _) = on_threads(1, || cell.forward(&x, Some(&initial), mask).unwrap());
                let right = (y, last);
                let infer = || cell.infer(&x, Some(&initial), mask).unwrap();
                for threads in [1, 2, 4] {
                    assert!(on_threads(threads, infer) == right, "{threads} threads, {place}");
                }
                assert!(infer() == right, "outside of the pool, {place}");
            }
        }
    }
    with_each_cell!(f32, 40, 120, |cell, name: &str| check::<f32, _>(&cell, name));
    with_each_cell!(f64, 30, 50, |cell, name: &str| check::<f64, _>(&cell, name));
}
