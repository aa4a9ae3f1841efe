#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod arrays;
mod batch;
mod element;
mod error;
mod kernels;
mod long;
#[cfg(feature = "rnn")]
mod matmul;
mod norm;
mod number;
mod parallel;
mod params;
mod prefetch;
mod rows;
mod simd;
mod sweep;
mod tiles;

pub mod derivations;
pub mod grad_check;
#[cfg(feature = "rnn")]
#[cfg_attr(docsrs, doc(cfg(feature = "rnn")))]
pub mod rnn;

pub use element::Element;
pub use error::{Error, Result};
pub use ndarray;
pub use norm::{BatchNorm, BatchSaved, LayerNorm, RmsNorm, RmsSaved, Running, Saved, WeightNorm, WeightSaved};
pub use params::{Affine, Parameters};
#[cfg(feature = "rnn")]
pub use rnn::{Gru, Lstm, Recurrent, Rnn};

/// The instruction set this process runs on: `avx512`, `avx2`, `sse4.2`, `sse2`, `neon`, `wasm` or `fallback`.
///
/// The best of this CPU, unless the environment variable `LAYERNORM_SIMD` names a lower one. It changes the speed, not
/// the bits.
pub fn instruction_set() -> &'static str {
    simd::name(simd::level())
}

/// Every name that `LAYERNORM_SIMD` takes on this CPU and in this build, best first; for tests of the bit contract.
#[doc(hidden)]
pub fn instruction_sets() -> Vec<&'static str> {
    simd::available().map(simd::name).collect()
}
