//! Layers, one a file.
//!
//! | layer | a row becomes | over | when |
//! |---|---|---|---|
//! | [`LayerNorm`] | (x − μ)/√(σ² + ε) ⊙ gain + bias | the features of a row | the paper's; rows whose mean says nothing |
//! | [`RmsNorm`] | x/√(Σx²/n + ε) ⊙ gain | the features of a row | a mean that should stay, or one sum less |

mod layer_norm;
mod lean;
mod residual;
mod rms_norm;
mod row_norm;
mod second_order;
mod weight_norm;

pub use layer_norm::LayerNorm;
pub use rms_norm::{RmsNorm, RmsSaved};
pub use row_norm::Saved;
pub use weight_norm::{WeightNorm, WeightSaved};
