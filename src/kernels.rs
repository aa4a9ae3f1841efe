//! Slices in, slices out: the arithmetic, without threads, arrays or errors.
//!
//! | kernel | computes |
//! |---|---|
//! | [`moments`] | μ and 1/√(σ²+ε) of a row |
//! | [`rescale`] | the same for rows whose squares overflow or underflow |
//! | [`normalize`] | y from x and the moments |
//! | [`ahead`], [`alone`] | the same for rows from memory, on AVX2 and on AVX-512 |
//! | [`group`] | the moments of several rows |
//! | [`kept`] | what forward kept of rows, for backward |
//! | [`passes`] | the two passes of backward over a block |
//! | [`backward`] | dx, and what each row adds to dgain and dbias |
//! | [`lines`] | the same for rows from memory that do not start at a cache line, on AVX-512 |
//! | [`narrow`] | the same as `normalize` and `backward`, for rows of a few vectors |
//! | [`short`] | the same as `normalize` and `backward`, for rows shorter than a vector |
//! | [`blocks`] | sums and maps over the blocks of rows |
//! | [`gradient`] | what rows add to dgain and dbias, alone |
//! | [`columns`] | dgain and dbias of many rows |
//! | [`second_order`] | how y and the gradients change along a direction |
//! | [`weights`] | dv and dgain of weight normalization |
//! | [`residual`] | a sum before `normalize` and `backward` |
//! | [`elementwise`] | what is done to elements one by one |
//! | [`batch`] | statistics of columns, and y and dx from them |
//! | [`column`] | the same for columns whose squares overflow or underflow |
//! | `activations` | e^x, sigmoid and tanh (feature `rnn`) |
//! | `gates` | what these share: rows of a step, gates, the norms inside a cell (feature `rnn`) |
//! | `rnn`, `lstm`, `gru` | a step of each recurrent cell, from its products on, and back (feature `rnn`) |
//!
//! They are generic over the instruction set and the number. [`Kernels`] is where they meet a [`Level`]: each is
//! compiled once, here, and not again in every crate that has a `LayerNorm`.

use std::ops::Range;

use fearless_simd::{Level, dispatch};

use crate::number::Number;
use crate::prefetch::Prefetch;

#[cfg(feature = "rnn")]
pub(crate) mod activations;
pub(crate) mod ahead;
pub(crate) mod alone;
pub(crate) mod backward;
pub(crate) mod batch;
pub(crate) mod blocks;
#[cfg(test)]
pub(crate) mod check;
pub(crate) mod column;
pub(crate) mod columns;
pub(crate) mod elementwise;
#[cfg(feature = "rnn")]
pub(crate) mod gates;
pub(crate) mod gradient;
pub(crate) mod group;
#[cfg(feature = "rnn")]
pub(crate) mod gru;
pub(crate) mod kept;
pub(crate) mod lines;
#[cfg(feature = "rnn")]
pub(crate) mod lstm;
pub(crate) mod moments;
pub(crate) mod narrow;
pub(crate) mod normalize;
pub(crate) mod passes;
pub(crate) mod rescale;
pub(crate) mod residual;
#[cfg(feature = "rnn")]
pub(crate) mod rnn;
pub(crate) mod second_order;
pub(crate) mod short;
pub(crate) mod weights;

use batch::write::Back;
use batch::{Block, Count, KeptColumns, SavedColumns, Sums};
use columns::Gradient;
use kept::{Coefficients, KeptRows, Row};
use moments::{Moments, Spread};
use normalize::{Layer, Place, SavedRows};
use passes::Columns;
use rescale::Rescaled;
use second_order::Direction;

#[cfg(feature = "rnn")]
use crate::matmul::{self, Into, Matrix};
#[cfg(feature = "rnn")]
use {
    gates::{Step, StepBack},
    gru::Gru,
    lstm::Lstm,
    rnn::Rnn,
};

/// Declares the kernels, and compiles each for each number: what is written once below stands in a trait and in two
/// implementations of it.
macro_rules! kernels {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $(-> $result:ty)? $body:block)*) => {
        /// The kernels of a number, on the instruction set of a level.
        ///
        /// Public because [`Element`](crate::Element) names it; nothing in it can be named from outside.
        #[expect(private_interfaces, reason = "unreachable from outside")]
        #[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
        pub trait Kernels: Number {
            $($(#[$attribute])* fn $name($($argument: $type),*) $(-> $result)?;)*
        }
        kernels!(f32: $($(#[$attribute])* fn $name($($argument: $type),*) $(-> $result)? $body)*);
        kernels!(f64: $($(#[$attribute])* fn $name($($argument: $type),*) $(-> $result)? $body)*);
    };
    ($number:ty: $($methods:tt)*) => {
        #[expect(private_interfaces, reason = "unreachable from outside")]
        impl Kernels for $number {
            $($methods)*
        }
    };
}

kernels! {
    /// [`short::forward`], [`narrow::forward`](narrow::forward::forward) and [`normalize::forward`]
    fn forward(
        level: Level,
        layer: &Layer<'_, Self>,
        place: Place,
        x: &[Self],
        y: &mut [Self],
        saved: Option<SavedRows<'_, Self>>,
    ) {
        dispatch!(level, simd => short::forward::<_, _, { Self::LANES }>(simd, layer, place, x, y, saved));
    }

    /// [`normalize::normalize_any`]
    fn normalize(level: Level, layer: &Layer<'_, Self>, row: &Rescaled<Self>, start: usize, x: &[Self], y: &mut [Self]) {
        dispatch!(level, simd => normalize::normalize_any(simd, layer, row, start, x, y));
    }

    /// [`moments::block_moments`]
    fn block_moments(level: Level, spread: Spread, block: &[Self]) -> Moments<Self> {
        dispatch!(level, simd => moments::block_moments(simd, spread, block))
    }

    /// [`rescale::rescued`]
    fn rescued(level: Level, row: &[Self], spread: Spread) -> Rescaled<Self> {
        dispatch!(level, simd => rescale::rescued(simd, row, spread))
    }

    /// [`short::backward`], [`narrow::backward`](narrow::backward::backward) and [`backward::backward`]
    fn backward(
        level: Level,
        layer: &Layer<'_, Self>,
        place: Place,
        kept: KeptRows<'_, Self>,
        x: &[Self],
        dy: &[Self],
        dx: &mut [Self],
        columns: &mut Columns<'_, Self>,
        block: Option<Columns<'_, Self::Wide>>,
    ) {
        dispatch!(level, simd => {
            short::backward::<_, _, { Self::LANES }>(simd, layer, place, kept, x, dy, dx, columns, block);
        });
    }

    /// [`lines::pays`]
    fn lines_pay(level: Level, layer: &Layer<'_, Self>, place: Place) -> bool {
        dispatch!(level, simd => lines::pays(simd, layer, place))
    }

    /// [`Row::rescaled`]
    fn row(level: Level, layer: &Layer<'_, Self>, kept: &KeptRows<'_, Self>, row: usize, x: &[Self]) -> Row<Self> {
        dispatch!(level, simd => Row::rescaled(simd, layer, kept, row, x))
    }

    /// [`backward::block_sums`]
    fn backward_sums(
        level: Level,
        layer: &Layer<'_, Self>,
        row: &Row<Self>,
        start: usize,
        x: &[Self],
        dy: &[Self],
    ) -> kept::Sums<Self::Wide> {
        dispatch!(level, simd => backward::block_sums(simd, layer, row, start, x, dy))
    }

    /// [`backward::write_tile`]
    fn backward_tile(
        level: Level,
        layer: &Layer<'_, Self>,
        rows: &[(Row<Self>, Coefficients<Self>)],
        tile: Range<usize>,
        x: &[Self],
        dy: &[Self],
        dx: &mut [&mut [Self]],
        columns: &mut Columns<'_, Self>,
    ) {
        dispatch!(level, simd => backward::write_tile(simd, layer, rows, tile, x, dy, dx, columns));
    }

    /// [`gradient::add_tile`]
    fn add_gradient(
        level: Level,
        rows: kept::Rows<'_, Self>,
        tile: Range<usize>,
        columns: &mut Columns<'_, Self>,
    ) {
        dispatch!(level, simd => gradient::add_tile(simd, rows, tile, columns));
    }

    /// [`second_order::jvp`]
    fn jvp(
        level: Level,
        layer: &Layer<'_, Self>,
        kept: KeptRows<'_, Self>,
        x: &[Self],
        direction: Direction<'_, Self>,
        y_tangent: &mut [Self],
    ) {
        dispatch!(level, simd => second_order::jvp(simd, layer, kept, x, direction, y_tangent));
    }

    /// [`second_order::double_backward`]
    fn double_backward(
        level: Level,
        layer: &Layer<'_, Self>,
        kept: KeptRows<'_, Self>,
        x: &[Self],
        dy: &[Self],
        direction: Direction<'_, Self>,
        dx: &mut [Self],
        ddy: &mut [Self],
        dgain: &mut [Self],
    ) {
        dispatch!(level, simd => second_order::double_backward(simd, layer, kept, x, dy, direction, dx, ddy, dgain));
    }

    /// [`weights::forward`]
    fn weight_forward(
        level: Level,
        layer: &Layer<'_, Self>,
        place: Place,
        factors: &[Self],
        v: &[Self],
        w: &mut [Self],
        saved: Option<SavedRows<'_, Self>>,
    ) {
        dispatch!(level, simd => weights::forward(simd, layer, place, factors, v, w, saved));
    }

    /// [`weights::backward`]
    fn weight_backward(
        level: Level,
        layer: &Layer<'_, Self>,
        kept: KeptRows<'_, Self>,
        gain: &[Self],
        v: &[Self],
        dw: &[Self],
        dv: &mut [Self],
        dgain: &mut [Self],
    ) {
        dispatch!(level, simd => weights::backward(simd, layer, kept, gain, v, dw, dv, dgain));
    }

    /// [`residual::forward`]
    fn forward_residual(
        level: Level,
        layer: &Layer<'_, Self>,
        place: Place,
        from: [&[Self]; 3],
        to: [&mut [Self]; 2],
        saved: Option<SavedRows<'_, Self>>,
    ) {
        dispatch!(level, simd => residual::forward::<_, _, { Self::LANES }>(simd, layer, place, from, to, saved));
    }

    /// [`residual::backward`]
    fn backward_residual(
        level: Level,
        layer: &Layer<'_, Self>,
        place: Place,
        kept: KeptRows<'_, Self>,
        from: [&[Self]; 4],
        dresidual: &mut [Self],
        dx: &mut [Self],
        columns: &mut Columns<'_, Self>,
    ) {
        dispatch!(level, simd => {
            residual::backward::<_, _, { Self::LANES }>(simd, layer, place, kept, from, dresidual, dx, columns);
        });
    }

    /// [`elementwise::add_residual`]
    fn add_residual(level: Level, x: &[Self], mask: &[Self], residual: &[Self], sum: &mut [Self]) {
        dispatch!(level, simd => elementwise::add_residual(simd, x, mask, residual, [sum], [Prefetch::NONE; 3]));
    }

    /// [`elementwise::add_to`]
    fn add_to(level: Level, to: &mut [Self], terms: &[Self]) {
        dispatch!(level, simd => elementwise::add_to(simd, to, terms));
    }

    /// [`elementwise::add_zero`]
    fn add_zero(level: Level, to: &mut [Self]) {
        dispatch!(level, simd => elementwise::add_zero(simd, to));
    }

    /// [`elementwise::multiply`]
    fn multiply_elements(level: Level, a: &[Self], b: &[Self], product: &mut [Self]) {
        dispatch!(level, simd => elementwise::multiply(simd, a, b, product));
    }

    /// [`elementwise::normalized`]
    fn normalized(level: Level, layer: &Layer<'_, Self>, y: &[Self], normalized: &mut [Self]) {
        dispatch!(level, simd => elementwise::normalized(simd, layer, y, normalized));
    }

    /// [`elementwise::scale_rows`]
    fn scale_rows(level: Level, factors: &[Self], rows: &mut [Self]) {
        dispatch!(level, simd => elementwise::scale_rows(simd, factors, rows));
    }

    /// [`batch::sample`]
    fn batch_sample(level: Level, rows: &[&[Self]], near: &mut [Self]) {
        dispatch!(level, simd => batch::sample(simd, rows, near));
    }

    /// [`batch::sums`]
    fn batch_sums(
        level: Level,
        streams: bool,
        about: &[Self],
        x: Block<'_, Self>,
        dy: Option<Block<'_, Self>>,
        sums: &mut Sums<'_, Self>,
    ) {
        dispatch!(level, simd => batch::sums(simd, streams, about, x, dy, sums));
    }

    /// [`batch::rows::sums`]
    fn batch_block_sums(
        level: Level,
        streams: bool,
        about: &[Self],
        x: &[Self],
        dy: Option<&[Self]>,
        room: &mut Sums<'_, Self>,
        block: Sums<'_, Self::Wide>,
    ) {
        dispatch!(level, simd => batch::rows::sums(simd, streams, about, x, dy, room, block));
    }

    /// [`columns::end_chain`]
    fn end_chain(level: Level, chain: &mut [Self], block: &mut [Self::Wide]) {
        dispatch!(level, simd => columns::end_chain(simd, chain, block));
    }

    /// [`columns::join_block`]
    fn join_block(level: Level, total: &mut [Self::Wide], block: &[Self::Wide]) {
        dispatch!(level, simd => columns::join_block(simd, total, block));
    }

    /// [`columns::add_wide`]
    fn add_wide(level: Level, gradient: &mut [Self], sums: &[Self::Wide]) {
        dispatch!(level, simd => columns::add_wide(simd, gradient, sums));
    }

    /// [`batch::finish`]
    fn batch_finish(
        level: Level,
        spread: Spread,
        count: Count,
        totals: &[Self::Wide],
        saved: &mut SavedColumns<'_, Self>,
    ) -> bool {
        dispatch!(level, simd => batch::finish(simd, spread, count, totals, saved))
    }

    /// [`batch::coefficients`]
    fn batch_coefficients(
        level: Level,
        count: Count,
        kept: KeptColumns<'_, Self>,
        totals: &mut [Self::Wide],
        k: &mut [Self],
        m: &mut [Self],
    ) {
        dispatch!(level, simd => batch::coefficients(simd, count, kept, totals, k, m));
    }

    /// [`batch::rows::pays`]
    fn batch_by_rows(level: Level, streams: bool, features: usize) -> bool {
        dispatch!(level, simd => batch::rows::pays::<_, Self>(simd, streams, features))
    }

    /// [`batch::rows::write`]
    fn batch_write_rows(level: Level, columns: [&[Self]; 5], x: &[Self], dy: Option<&[Self]>, out: &mut [Self]) {
        dispatch!(level, simd => batch::rows::write(simd, columns, x, dy, out));
    }

    /// [`batch::write::write`]
    fn batch_write(
        level: Level,
        streams: bool,
        layer: &Layer<'_, Self>,
        kept: KeptColumns<'_, Self>,
        scale: &[Self],
        x: Block<'_, Self>,
        back: Option<Back<'_, Self>>,
        out: &mut [&mut [Self]],
    ) {
        dispatch!(level, simd => batch::write::write(simd, streams, layer, kept, scale, x, back, out));
    }

    /// [`matmul::multiply`]
    #[cfg(feature = "rnn")]
    fn multiply(c: &mut [Self], into: Into, a: Matrix<'_, Self>, b: Matrix<'_, Self>, threads: usize) {
        matmul::multiply(c, into, a, b, threads);
    }

    /// [`rnn::forward`]
    #[cfg(feature = "rnn")]
    fn rnn_forward(level: Level, cell: Rnn<'_, Self>, step: Step<'_, Self>) {
        dispatch!(level, simd => rnn::forward(simd, cell, step));
    }

    /// [`rnn::backward`]
    #[cfg(feature = "rnn")]
    fn rnn_backward(level: Level, cell: Rnn<'_, Self>, step: StepBack<'_, Self>) {
        dispatch!(level, simd => rnn::backward(simd, cell, step));
    }

    /// [`lstm::forward`]
    #[cfg(feature = "rnn")]
    fn lstm_forward(level: Level, cell: Lstm<'_, Self>, step: Step<'_, Self>) {
        dispatch!(level, simd => lstm::forward(simd, cell, step));
    }

    /// [`lstm::backward`]
    #[cfg(feature = "rnn")]
    fn lstm_backward(level: Level, cell: Lstm<'_, Self>, step: StepBack<'_, Self>) {
        dispatch!(level, simd => lstm::backward(simd, cell, step));
    }

    /// [`gru::forward`]
    #[cfg(feature = "rnn")]
    fn gru_forward(level: Level, cell: Gru<'_, Self>, step: Step<'_, Self>) {
        dispatch!(level, simd => gru::forward(simd, cell, step));
    }

    /// [`gru::backward`]
    #[cfg(feature = "rnn")]
    fn gru_backward(level: Level, cell: Gru<'_, Self>, step: StepBack<'_, Self>) {
        dispatch!(level, simd => gru::backward(simd, cell, step));
    }
}

impl<T: Kernels> Gradient<'_, T> {
    /// Adds the sums of the only chain.
    pub(crate) fn add(self, level: Level, dgain: &[T], dbias: &[T]) {
        self.gain.into_iter().for_each(|gain| T::add_to(level, gain, dgain));
        self.bias.into_iter().for_each(|bias| T::add_to(level, bias, dbias));
    }

    /// Adds the sums of all blocks: those by the gain, then those by the bias.
    pub(crate) fn add_wide(self, level: Level, total: &[T::Wide]) {
        let (dgain, dbias) = total.split_at(total.len() / 2);
        self.gain.into_iter().for_each(|gain| T::add_wide(level, gain, dgain));
        self.bias.into_iter().for_each(|bias| T::add_wide(level, bias, dbias));
    }
}
