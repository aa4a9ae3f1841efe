//! What the trainings share: `mnist` and `char_lm`.

pub(crate) mod adam;
pub(crate) mod arguments;
pub(crate) mod gzip;
pub(crate) mod loss;
pub(crate) mod matmul;
pub(crate) mod plot;
pub(crate) mod program;
