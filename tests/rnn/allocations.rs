//! Warm calls on one thread allocate nothing.

use allocation_counter::measure;
use layernorm::ndarray::{Array2, Array3};
use layernorm::rnn::Saved;
use layernorm::{Element, Recurrent};

use crate::common::{drawn, holes, state, with_each_cell};

fn check<T: Element, C: Recurrent<T>>(cell: &C, name: &str) {
    // Of a size that other threads are not asked for.
    for (steps, batch, masked) in [(7, 1, false), (5, 3, true), (4, 9, false), (9, 3, false)] {
        let (x, dy) = (drawn::<T, _>((steps, batch, cell.input()), 1), drawn::<T, _>((steps, batch, cell.hidden()), 2));
        let (mut y, mut dx) = (Array3::zeros(dy.raw_dim()), Array3::zeros(x.raw_dim()));
        let mask: Option<Array2<bool>> = masked.then(|| holes(steps, batch));
        let (mut h, mut dh, mut next) = (state(cell, batch, 3), state(cell, batch, 4), state(cell, batch, 5));
        let (mut saved, mut grad) = (Saved::default(), cell.zero_grad());
        let one = x.index_axis(layernorm::ndarray::Axis(0), 0);
        let count = |call: &mut dyn FnMut()| {
            call();
            measure(call).count_total
        };
        let fits = "the shapes fit";
        let counts = [
            count(&mut || cell.forward_into(&x, mask.as_deref(), &mut h, &mut y, &mut saved).expect(fits)),
            count(&mut || cell.infer_into(&x, mask.as_deref(), &mut h, &mut y).expect(fits)),
            count(&mut || cell.backward_into(&x, &saved, &dy, &mut dh, &mut dx, &mut grad).expect(fits)),
            count(&mut || cell.step_into(&one, &mut next).expect(fits)),
        ];
        assert_eq!(counts, [0; 4], "forward, infer, backward and step, {steps} × {batch}, {name}");
    }
}

/// On a thread of a pool of one: no other is woken.
#[test]
fn warm_calls_allocate_nothing() {
    let calls = || {
        with_each_cell!(f32, 5, 11, |cell, name: &str| check::<f32, _>(&cell, name));
        with_each_cell!(f64, 5, 11, |cell, name: &str| check::<f64, _>(&cell, name));
    };
    #[cfg(feature = "rayon")]
    rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool").install(calls);
    #[cfg(not(feature = "rayon"))]
    calls();
}
