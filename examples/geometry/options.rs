//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::common::arguments::Arguments;

pub(crate) const HELP: &str = "\
The geometry of a normalized model (section 5.2 of the layer normalization paper), measured.

Usage: cargo run --release --example geometry -- [OPTIONS]

  --samples N    outputs to draw for a Fisher information, (a) and (c) [100000]
  --seed N       of all that is drawn [1]
  --out FILE     the figures, an SVG [target/geometry.svg]
  --help         this text
";

#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) samples: usize,
    pub(crate) seed: u64,
    pub(crate) out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self { samples: 100_000, seed: 1, out: "target/geometry.svg".into() }
    }
}

impl Options {
    /// `None` if help is wanted. An option is `--name value` or `--name=value`, and of two the last counts.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut options = Self::default();
        let mut arguments = Arguments::new(arguments.into_iter());
        while let Some(name) = arguments.next_name()? {
            match name.as_str() {
                "--samples" => options.samples = arguments.parse_if(several)?,
                "--seed" => options.seed = arguments.parse()?,
                "--out" => options.out = arguments.value()?.into(),
                "--help" | "-h" => return Ok(None),
                _ => return Err(arguments.unknown()),
            }
        }
        Ok(Some(options))
    }
}

/// Outputs have a standard error.
fn several(&samples: &usize) -> Result<(), &'static str> {
    if samples > 1 { Ok(()) } else { Err("must be at least 2") }
}

#[cfg(test)]
mod tests {
    use std::fmt::Display;

    use super::*;

    fn options(line: &str) -> Result<Option<Options>, String> {
        Options::parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn nothing_is_the_default() {
        assert_eq!(options("").unwrap().unwrap(), Options::default());
    }

    #[test]
    fn help_says_the_defaults() {
        let Options { samples, seed, out } = Options::default();
        let out = out.display();
        for default in [&samples as &dyn Display, &seed, &out] {
            assert!(HELP.contains(&format!("[{default}]")), "{default}");
        }
    }

    #[test]
    fn help_is_not_an_error() {
        assert_eq!(options("--seed 4 --help").unwrap(), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, message) in [
            ("--frob 3", "unknown option `--frob`"),
            ("--out", "`--out` needs a value"),
            ("--samples 1", "`--samples 1`: must be at least 2"),
            ("--seed -1", "`--seed -1`: invalid digit found in string"),
        ] {
            assert_eq!(options(line).unwrap_err(), message, "{line}");
        }
    }
}
