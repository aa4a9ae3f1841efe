//! The loop over the steps of a sequence.
//!
//! ```text
//! W_h, W_x in panels                         copies, for all steps
//! each piece of the sequence:
//!     v = x W_x                              one product for all steps of the piece
//!     each step:
//!         u = h′ W_h, or v += h′ W_h         one product
//!         state ← cell(u, v, state)          one kernel, its rows over the threads
//!         y = h                              while h is in a cache
//! ```
//!
//! For a way back, every step has places of its own for what it makes. Without one, the steps take turns in places that stay
//! in a cache; the arithmetic is the same.

use ndarray::{ArrayRef2, ArrayView2, ArrayView3, ArrayViewMut3, Axis};

use crate::element::Element;
use crate::kernels::gates::Step;
use crate::matmul::Into;
use crate::parallel;
use crate::rnn::cell::{Cell, Size};
use crate::rnn::saved::{Norm, Saved, mask_of};
use crate::rnn::sequence::{Lengths, Products, Rows, adjacent, for_products, multiply, nth, rows_per_block, take};
use crate::rnn::state::State;

/// What a call gets, and what it makes of it.
pub(crate) struct Sequence<'a, T> {
    pub(crate) x: ArrayView3<'a, T>,
    /// In front of the first step, then behind the last.
    pub(crate) state: &'a mut State<T>,
    /// Written if it is there.
    pub(crate) y: Option<ArrayViewMut3<'a, T>>,
}

/// Places for what the steps make. Where there are fewer than steps, they are used in turn.
struct Places<'a, T> {
    steps: usize,
    /// Empty if every row is there.
    mask: &'a [bool],
    u: &'a mut [T],
    v: &'a mut [T],
    /// One more than steps: a step reads the one and writes the next.
    h: &'a mut [T],
    c: &'a mut [T],
    gates: &'a mut [T],
    norms: &'a mut [Norm<T>],
}

/// y and the last state of a sequence; fills `saved`, which fits, and whose mask is there.
pub(crate) fn forward<T: Element, C: Cell<T>>(cell: &C, sequence: Sequence<'_, T>, saved: &mut Saved<T>) {
    let lengths = Lengths::new(cell, sequence.x.dim());
    let Saved { mask, u, v, h, c, gates, norms, .. } = saved;
    let norms = &mut norms[..lengths.size.norms];
    let places = Places { steps: lengths.steps, mask, u, v, h, c, gates, norms };
    parallel::lend(room(&lengths, &sequence.x), |buffer| run(cell, &lengths, sequence, places, buffer));
}

/// [`forward`] that keeps nothing.
pub(crate) fn infer<T: Element, C: Cell<T>>(cell: &C, sequence: Sequence<'_, T>, mask: Option<&ArrayRef2<bool>>) {
    let all = Lengths::new(cell, sequence.x.dim());
    let lengths = Lengths { size: Size { kept_columns: 0, norms: 0, ..all.size }, ..all };
    let (len, room) = (lengths.of_step(), room(&lengths, &sequence.x));
    parallel::lend_flags::<T, _>(mask.into_iter().flatten(), |mask| {
        parallel::lend(room + 2 * (len.h + len.c) + len.gates, |buffer| {
            let (buffer, mut rest) = buffer.split_at_mut(room);
            let [h, c, gates] = [2 * len.h, 2 * len.c, len.gates].map(|len| take(&mut rest, len));
            let places = Places { steps: 1, mask, u: &mut [], v: &mut [], h, c, gates, norms: &mut [] };
            run(cell, &lengths, sequence, places, buffer);
        });
    });
}

/// Elements that [`run`] needs beside what it fills.
fn room<T>(lengths: &Lengths, x: &ArrayView3<'_, T>) -> usize {
    let (len, longest) = (lengths.of_step(), lengths.longest());
    let tile = if x.as_slice().is_some() { 0 } else { longest * len.x };
    longest * len.v + len.u + lengths.scratch() + lengths.copied_weights() + lengths.copied_input_weights() + tile
}

/// y and the last state of a sequence, by way of these places.
fn run<T: Element, C: Cell<T>>(
    cell: &C,
    lengths: &Lengths,
    sequence: Sequence<'_, T>,
    places: Places<'_, T>,
    mut buffer: &mut [T],
) {
    let Sequence { x, state, mut y } = sequence;
    let Places { mask, u: kept_u, v: kept_v, h, c, gates, norms, .. } = places;
    let (batch, len) = (lengths.batch, lengths.of_step());
    let weights = Products::new(cell, lengths);
    let v = take(&mut buffer, lengths.longest() * len.v);
    let [u, scratch] = [len.u, lengths.scratch()].map(|len| take(&mut buffer, len));
    let w_h = for_products(weights.recurrent, take(&mut buffer, lengths.copied_weights()));
    let w_x = for_products(weights.input, take(&mut buffer, lengths.copied_input_weights()));
    let tile = buffer;
    let place_of_state = |t: usize| t % (places.steps + 1);
    state.copy_to(&mut h[..len.h], &mut c[..len.c]);
    for (first, count) in lengths.pieces() {
        let x = adjacent(&x, (first, count), tile);
        multiply(&mut v[..count * len.v], Into::Replace, x, count * batch, w_x, lengths.input);
        for (v, t) in v.chunks_exact_mut(len.v).zip(first..first + count) {
            let (at, around) = (t % places.steps, [t, t + 1].map(place_of_state));
            let [h_before, h] = two(h, around, len.h);
            let [c_before, c] = two(c, around, len.c);
            if u.is_empty() {
                multiply(v, Into::Add, h_before, batch, w_h, lengths.hidden);
            } else {
                multiply(u, Into::Replace, h_before, batch, w_h, lengths.hidden);
            }
            let step = Step {
                rows: batch,
                piece: rows_per_block(batch),
                mask: mask_of(mask, batch, t),
                u,
                v,
                h_before,
                c_before,
                h: &mut *h,
                c,
                kept_u: &mut kept_u[nth(at, len.kept_u)],
                kept_v: &mut kept_v[nth(at, len.kept_v)],
                gates: &mut gates[nth(at, len.gates)],
                saved: Norm::saved_rows(norms, nth(at, batch)),
                scratch,
            };
            let run = |step| cell.forward_rows(step);
            let rows = Rows { step, pieces: Step::pieces, split: Step::split, run: &run };
            parallel::run(rows, lengths.kernel_bytes::<T>());
            if let Some(y) = &mut y {
                let h = ArrayView2::from_shape((batch, lengths.hidden), h).expect("a state for each row");
                y.index_axis_mut(Axis(0), t).assign(&h);
            }
        }
    }
    let last = place_of_state(lengths.steps);
    state.copy_from(&h[nth(last, len.h)], &c[nth(last, len.c)]);
}

/// Two places of a slice of which each has `len` elements.
fn two<T>(slice: &mut [T], places: [usize; 2], len: usize) -> [&mut [T]; 2] {
    slice.get_disjoint_mut(places.map(|place| nth(place, len))).expect("there are two")
}
