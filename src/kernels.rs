//! Slices in, slices out: the arithmetic, without threads, arrays or errors.
//!
//! | kernel | computes |
//! |---|---|
//! | [`moments`] | μ and 1/√(σ²+ε) of a row |
//! | [`normalize`] | y from x and the moments |
//! | [`backward`] | dx, and what each row adds to dgain and dbias |
//! | [`columns`] | dgain and dbias of many rows |
//! | [`rescale`] | rows whose squares overflow or underflow |

pub(crate) mod backward;
pub(crate) mod columns;
pub(crate) mod moments;
pub(crate) mod normalize;
pub(crate) mod rescale;
