//! The choice `--cell`.

use std::fmt;
use std::str::FromStr;

/// What a layer is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Cell {
    Lstm,
    Gru,
    Rnn,
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "lstm" => Ok(Self::Lstm),
            "gru" => Ok(Self::Gru),
            "rnn" => Ok(Self::Rnn),
            _ => Err("expected `lstm`, `gru` or `rnn`".into()),
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lstm => "lstm",
            Self::Gru => "gru",
            Self::Rnn => "rnn",
        })
    }
}
