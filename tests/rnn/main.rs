//! Recurrent cells: right, as the paper says, and careful with what they are given.
#![cfg(feature = "rnn")]

mod allocations;
mod bits;
mod common;
mod errors;
mod forward;
mod gradients;
mod infer;
mod paper;
