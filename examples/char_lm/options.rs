//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::cell::Cell;
use crate::common::arguments::Arguments;
use crate::kind::Kind;

pub(crate) const HELP: &str = "\
A recurrent network that learns to guess the next character of Shakespeare, and then writes some.

Usage: cargo run --release --features rnn --example char_lm -- [OPTIONS]

  --cell CELL      lstm, gru, rnn: what a layer is made of [lstm]
  --norm KIND      layer, none: normalization inside the cells [layer]
  --hidden N       units of a layer [256]
  --layers N       layers, each on top of the other [1]
  --batch N        streams that the text is cut into [32]
  --steps N        characters of each stream between two updates [64]
  --updates N      changes of the weights [1900]
  --lr X           Adam's first learning rate; falls evenly to 0 [0.008]
  --clip X         the longest that the gradient may be [1]
  --seed N         of the first weights and the sample [1]
  --sample N       characters to write at the end [500]
  --temperature X  of the sample: low is careful, high is wild [0.7]
  --text FILE      what to learn, gzipped or not [1 MB of built-in plays]
  --out FILE       the curves, an SVG [target/char_lm.svg]
  --help           this text
";

#[derive(Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) cell: Cell,
    pub(crate) norm: Kind,
    pub(crate) hidden: usize,
    pub(crate) layers: usize,
    pub(crate) batch: usize,
    pub(crate) steps: usize,
    pub(crate) updates: usize,
    pub(crate) lr: f32,
    pub(crate) clip: f32,
    pub(crate) seed: u64,
    pub(crate) sample: usize,
    pub(crate) temperature: f32,
    pub(crate) text: Option<PathBuf>,
    pub(crate) out: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            cell: Cell::Lstm,
            norm: Kind::Layer,
            hidden: 256,
            layers: 1,
            batch: 32,
            steps: 64,
            updates: 1900,
            lr: 0.008,
            clip: 1.0,
            seed: 1,
            sample: 500,
            temperature: 0.7,
            text: None,
            out: "target/char_lm.svg".into(),
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
                "--cell" => options.cell = arguments.parse()?,
                "--norm" => options.norm = arguments.parse()?,
                "--hidden" => options.hidden = arguments.positive()?,
                "--layers" => options.layers = arguments.positive()?,
                "--batch" => options.batch = arguments.positive()?,
                "--steps" => options.steps = arguments.positive()?,
                "--updates" => options.updates = arguments.positive()?,
                "--lr" => options.lr = arguments.above_zero()?,
                "--clip" => options.clip = arguments.above_zero()?,
                "--seed" => options.seed = arguments.parse()?,
                "--sample" => options.sample = arguments.parse()?,
                "--temperature" => options.temperature = arguments.above_zero()?,
                "--text" => options.text = Some(arguments.value()?.into()),
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
    fn help_says_the_defaults() {
        let options = options("").unwrap().unwrap();
        assert_eq!(options, Options::default());
        let lines = |name: &str, default: &dyn Display| {
            let line = HELP.lines().find(|line| line.trim_start().starts_with(&format!("--{name} "))).unwrap();
            assert!(line.ends_with(&format!("[{default}]")), "{line}");
        };
        let Options { cell, norm, hidden, layers, batch, steps, updates, .. } = options;
        let Options { lr, clip, seed, sample, temperature, text, out, .. } = options;
        lines("cell", &cell);
        lines("norm", &norm);
        for (name, number) in [("hidden", hidden), ("layers", layers), ("batch", batch), ("steps", steps)] {
            lines(name, &number);
        }
        lines("updates", &updates);
        for (name, number) in [("lr", lr), ("clip", clip), ("temperature", temperature)] {
            lines(name, &number);
        }
        lines("seed", &seed);
        lines("sample", &sample);
        lines("out", &out.display());
        assert_eq!(text, None);
    }

    #[test]
    fn every_option_is_taken() {
        let line = "--cell gru --norm=none --hidden 7 --layers 2 --batch 3 --steps=5 --updates 9 --lr 0.5 --clip 2 \
                    --seed 8 --sample 0 --temperature 1.5 --text t --out o";
        let expected = Options {
            cell: Cell::Gru,
            norm: Kind::None,
            hidden: 7,
            layers: 2,
            batch: 3,
            steps: 5,
            updates: 9,
            lr: 0.5,
            clip: 2.0,
            seed: 8,
            sample: 0,
            temperature: 1.5,
            text: Some("t".into()),
            out: "o".into(),
        };
        assert_eq!(options(line).unwrap().unwrap(), expected);
    }

    #[test]
    fn help_is_not_an_error() {
        assert_eq!(options("--batch 4 --help").unwrap(), None);
    }

    #[test]
    fn mistakes_are_named() {
        for (line, message) in [
            ("--frob=3", "unknown option `--frob=3`"),
            ("fast", "unknown option `fast`"),
            ("--cell", "`--cell` needs a value"),
            ("--cell brain", "`--cell brain`: expected `lstm`, `gru` or `rnn`"),
            ("--temperature 0", "`--temperature 0`: must be finite and above 0"),
            ("--steps 0", "`--steps 0`: must be at least 1"),
        ] {
            assert_eq!(options(line).unwrap_err(), message, "{line}");
        }
    }
}
