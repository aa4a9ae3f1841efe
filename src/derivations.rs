//! How the backward passes were derived, and the order of additions that fixes the bits.
//!
//! | page | of |
//! |---|---|
//! | [`backward`] | [`LayerNorm`](crate::LayerNorm), [`RmsNorm`](crate::RmsNorm) |
//! | [`batch_norm`] | [`BatchNorm`](crate::BatchNorm) |
//! | [`weight_norm`] | [`WeightNorm`](crate::WeightNorm) |
//! | [`second_order`] | `jvp` and `double_backward` of [`LayerNorm`](crate::LayerNorm) and [`RmsNorm`](crate::RmsNorm) |
//! | the module `rnn` | `Rnn`, `Lstm` and `Gru` (feature `rnn`) |
//! | [`bits`] | all of them |

#[doc = include_str!("../docs/backward.md")]
pub mod backward {}

#[doc = include_str!("../docs/batch_norm.md")]
pub mod batch_norm {}

#[doc = include_str!("../docs/weight_norm.md")]
pub mod weight_norm {}

#[doc = include_str!("../docs/second_order.md")]
pub mod second_order {}

#[doc = include_str!("../docs/bits.md")]
pub mod bits {}
