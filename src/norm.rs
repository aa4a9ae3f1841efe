//! Layers, one a file.
//!
//! | layer | x becomes | over | state | when |
//! |---|---|---|---|---|
//! | [`LayerNorm`] | (x − μ)/√(σ² + ε) ⊙ gain + bias | the features of a row | none | the paper's; rows whose mean says nothing |
//! | [`RmsNorm`] | x/√(Σx²/n + ε) ⊙ gain | the features of a row | none | a mean that should stay, or one sum less |
//! | [`BatchNorm`] | (x − μ)/√(σ² + ε) ⊙ gain + bias | the rows of a batch, each feature alone | [`Running`] statistics, held by the caller, for evaluation | large batches of like rows, convolutions; to compare with |

mod batch_norm;
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
