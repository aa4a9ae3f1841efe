//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::common::arguments::Arguments;
use crate::common::kind::Kind;

pub(crate) const HELP: &str = "\
The permutation-invariant network of the layer normalization paper (section 6.6) on digits.

Usage: cargo run --release --example mnist -- [OPTIONS]

  --norm KIND    layer, none: normalization of the two hidden layers [layer]
  --batch N      images in a step [128]
  --epochs N     walks through the training images [60]
  --hidden N     features of a hidden layer [1000]
  --lr X         Adam's learning rate [0.001]
  --seed N       of the first weights and the order of the images [1]
  --data DIR     four IDX files named as those of MNIST, gzipped or not [10,000 built-in digits]
  --out FILE     the curves, an SVG [target/mnist.svg]
  --help         this text
";

#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) norm: Kind,
    pub(crate) batch: usize,
    pub(crate) epochs: usize,
    pub(crate) hidden: usize,
    pub(crate) lr: f32,
    pub(crate) seed: u64,
    pub(crate) data: Option<PathBuf>,
    pub(crate) out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            norm: Kind::Layer,
            batch: 128,
            epochs: 60,
            hidden: 1000,
            lr: 0.001,
            seed: 1,
            data: None,
            out: "target/mnist.svg".into(),
        }
    }
}

impl Options {
    /// `None` if help is wanted. An option is `--name value` or `--name=value`, and of two the last counts.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let mut options = Self::default();
        let mut arguments = Arguments::new(arguments.into_iter());
        while let Some(name) = arguments.next_name()? {
            match name.as_str() {
                "--norm" => options.norm = arguments.parse()?,
                "--batch" => options.batch = arguments.positive()?,
                "--epochs" => options.epochs = arguments.positive()?,
                "--hidden" => options.hidden = arguments.positive()?,
                "--lr" => options.lr = arguments.above_zero()?,
                "--seed" => options.seed = arguments.parse()?,
                "--data" => options.data = Some(arguments.value()?.into()),
                "--out" => options.out = arguments.value()?.into(),
                "--help" | "-h" => return Ok(None),
                _ => return Err(arguments.unknown()),
            }
        }
        Ok(Some(options))
    }
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
        let Options { norm, batch, epochs, hidden, lr, seed, data: _, out } = Options::default();
        let out = out.display();
        for default in [&norm as &dyn Display, &batch, &epochs, &hidden, &lr, &seed, &out] {
            assert!(HELP.contains(&format!("[{default}]")), "{default}");
        }
    }

    #[test]
    fn a_value_follows_or_is_joined() {
        let expected = Options { norm: Kind::None, batch: 4, data: Some("d".into()), ..Options::default() };
        assert_eq!(options("--norm none --batch=4 --data d").unwrap().unwrap(), expected);
    }

    #[test]
    fn help_is_not_an_error() {
        assert_eq!(options("--batch 4 --help").unwrap(), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, message) in [
            ("--frob 3", "unknown option `--frob`"),
            ("fast", "unknown option `fast`"),
            ("--lr", "`--lr` needs a value"),
            ("--lr fast", "`--lr fast`: invalid float literal"),
            ("--lr -1", "`--lr -1`: must be finite and above 0"),
            ("--lr nan", "`--lr nan`: must be finite and above 0"),
            ("--batch 0", "`--batch 0`: must be at least 1"),
            ("--seed -1", "`--seed -1`: invalid digit found in string"),
            ("--norm group", "`--norm group`: expected `layer` or `none`"),
        ] {
            assert_eq!(options(line).unwrap_err(), message, "{line}");
        }
    }
}
