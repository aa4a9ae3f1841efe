//! The choice `--norm`.

use std::fmt;
use std::str::FromStr;

use crate::norm::{Batch, Bias, Layer, Norm, Rms};

/// What happens to the sums of a layer before its ReLU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    None,
    Layer,
    Batch,
    Rms,
}

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Layer, Self::Batch, Self::Rms, Self::None];

    /// The norm of a hidden layer, trained with `batch` images in a step.
    pub(crate) fn hidden(self, features: usize, batch: usize) -> Box<dyn Norm> {
        match self {
            Self::None => Box::new(Bias::new(features)),
            Self::Layer => Box::new(Layer::new(features)),
            Self::Batch => Box::new(Batch::new(features, batch)),
            Self::Rms => Box::new(Rms::new(features)),
        }
    }

    /// The norm before the softmax, as in the paper.
    ///
    /// The scale of an image's outputs is how sure the network is of it. Norms of a row would fix it; batch norm gives
    /// each output a scale over all images, and leaves it to them which is sure.
    pub(crate) fn outputs(self, features: usize, batch: usize) -> Box<dyn Norm> {
        match self {
            Self::Batch => self.hidden(features, batch),
            Self::None | Self::Layer | Self::Rms => Self::None.hidden(features, batch),
        }
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|kind| kind.to_string() == name);
        known.ok_or_else(|| "expected `layer`, `batch`, `rms` or `none`".into())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Layer => "layer",
            Self::Batch => "batch",
            Self::Rms => "rms",
        })
    }
}
