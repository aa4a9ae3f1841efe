//! The command line.

use std::ffi::OsString;
use std::fmt::Display;
use std::path::PathBuf;
use std::str::FromStr;

use crate::norm::Kind;

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
        let mut arguments = arguments
            .into_iter()
            .map(|argument| argument.into_string().map_err(|argument| format!("{} is not UTF-8", argument.display())));
        while let Some(argument) = arguments.next().transpose()? {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (argument.as_str(), None),
            };
            let value = || match inline {
                Some(value) => Ok(value),
                None => arguments.next().unwrap_or_else(|| Err(format!("`{name}` needs a value"))),
            };
            match name {
                "--norm" => options.norm = parse(name, &value()?)?,
                "--batch" => options.batch = positive(name, &value()?)?,
                "--epochs" => options.epochs = positive(name, &value()?)?,
                "--hidden" => options.hidden = positive(name, &value()?)?,
                "--lr" => options.lr = rate(name, &value()?)?,
                "--seed" => options.seed = parse(name, &value()?)?,
                "--data" => options.data = Some(value()?.into()),
                "--out" => options.out = value()?.into(),
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown option `{argument}`")),
            }
        }
        Ok(Some(options))
    }
}

fn parse<T: FromStr<Err: Display>>(name: &str, value: &str) -> Result<T, String> {
    value.parse().map_err(|error| bad(name, value, error))
}

fn positive(name: &str, value: &str) -> Result<usize, String> {
    match parse(name, value)? {
        0 => Err(bad(name, value, "must be at least 1")),
        number => Ok(number),
    }
}

fn rate(name: &str, value: &str) -> Result<f32, String> {
    match parse(name, value)? {
        rate if f32::is_finite(rate) && rate > 0.0 => Ok(rate),
        _ => Err(bad(name, value, "must be finite and above 0")),
    }
}

fn bad(name: &str, value: &str, reason: impl Display) -> String {
    format!("`{name} {value}`: {reason}")
}

#[cfg(test)]
mod tests {
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
