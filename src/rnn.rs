//! Recurrent networks with layer normalization inside: [`Rnn`], [`Lstm`] and [`Gru`], and their way back through time.
//!
//! Each has the placements of the paper, named by an enum, and none as the baseline. [`Recurrent`] is what one does with
//! them: a step, a sequence, and backward through it. First weights come from a generator of yours, of rand 0.9
//! (`cargo add rand@0.9`).
//!
//! # From PyTorch
//!
//! Steps are the first axis, as where `batch_first` is false: of the other kind pass `x.view().permuted_axes([1, 0, 2])`. A mask
//! stands for a packed sequence; but y of a padded row is its state, carried on, where PyTorch pads with 0: a loss over all of y
//! has to leave these out.
//!
//! # Bits
//!
//! The same call gives the same bits on any number of threads, and a sequence does not depend on what the others of its
//! batch hold. The products are those of `faer`: a sequence alone may differ in its last bits from the same one in a batch,
//! a few steps of it from the same ones in a longer call, and one CPU from another.

#![doc = include_str!("../docs/recurrent.md")]

pub(crate) mod cell;
mod gru;
mod lstm;
mod recurrent;
#[expect(clippy::module_inception, reason = "a file is named after its type")]
mod rnn;
pub(crate) mod saved;
mod sequence;
mod start;
mod state;
mod weights;

pub use gru::{Gru, GruPlacement};
pub use lstm::{Lstm, LstmPlacement};
pub use recurrent::Recurrent;
pub use rnn::{Rnn, RnnPlacement};
pub use saved::Saved;
pub use start::Start;
pub use state::State;
pub use weights::Weights;
