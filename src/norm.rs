//! Layers, one a file, and what several of them can do.
//!
//! | layer | x becomes | over | state | when |
//! |---|---|---|---|---|
//! | [`LayerNorm`] | (x − μ)/√(σ² + ε) ⊙ gain + bias | the features of a row | none | the paper's; rows whose mean says nothing |
//! | [`RmsNorm`] | x/√(Σx²/n + ε) ⊙ gain | the features of a row | none | a mean that should stay, or one sum less |
//! | [`BatchNorm`] | (x − μ)/√(σ² + ε) ⊙ gain + bias | the rows of a batch, each feature alone | [`Running`] statistics, held by the caller, for evaluation | large batches of like rows, convolutions; to compare with |
//! | [`WeightNorm`] | gainᵢ · vᵢ/‖vᵢ‖ | the inputs of each output of a weight matrix | none | weights whose length should be learned apart; no batch to look at |
//!
//! Group normalization is a `LayerNorm` without gain and bias over a view `[batch, groups, channels / groups, ..]`, then the
//! gain and bias of each channel.
//!
//! | calls of `LayerNorm` and `RmsNorm` | for | file |
//! |---|---|---|
//! | `forward`, `infer`, `backward` | every training loop | the layer's |
//! | `forward_residual`, `backward_residual`, with dropout too | blocks with residual connections, in one sweep | `residual` |
//! | `forward_inplace`, `backward_inplace`, `backward_from_output`, `backward_from_normalized` | training with fewer arrays | `lean` |
//! | `jvp`, `double_backward` | forward mode, Hessians, penalties on gradients | `second_order` |
//!
//! `BatchNorm` has the calls of its evaluation, and of training with frozen statistics, in `evaluation`.

mod batch_norm;
mod evaluation;
mod layer_norm;
mod lean;
mod residual;
mod rms_norm;
mod row_norm;
mod running;
mod second_order;
mod weight_norm;

pub use batch_norm::BatchNorm;
pub use layer_norm::LayerNorm;
pub use rms_norm::{RmsNorm, RmsSaved};
pub use row_norm::Saved;
pub use running::{BatchSaved, Running};
pub use weight_norm::{WeightNorm, WeightSaved};
