//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::common::arguments::Arguments;
use crate::kind::Kind;

pub(crate) const HELP: &str = "\
The permutation-invariant network of the layer normalization paper (section 6.6) on digits.

Usage: cargo run --release --example mnist -- [OPTIONS]

  --norm KIND    layer, batch, rms, none: what normalizes the layers [layer]
  --batch N      images in a step [128]
  --epochs N     walks through the training images [60; 30 with --compare]
  --hidden N     features of a hidden layer [1000; 256 with --compare]
  --lr X         Adam's learning rate [0.001]
  --seed N       of the first weights and the order of the images [1]
  --data DIR     four IDX files named as those of MNIST, gzipped or not [10,000 built-in digits]
  --out FILE     the curves, an SVG [target/mnist.svg; target/mnist-compare.svg with --compare]
  --compare      the paper's figure 6: trains with layer, batch and none, with 128 and with 4 images in a step, each with
                 several seeds, as many at a time as there are CPUs; ends with a table and a picture, after some minutes
  --seeds N      with --compare: trainings of each kind, with this many seeds from --seed on [3]
  --help         this text

Layer and rms normalize the two hidden layers, batch also the outputs, as in the paper. Batch divides by the unbiased
variance where a step has at most 16 images (the paper: at 4), else by the biased one, and is tested with running
statistics.
";

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Options {
    pub(crate) norm: Kind,
    pub(crate) batch: usize,
    pub(crate) epochs: usize,
    pub(crate) hidden: usize,
    pub(crate) lr: f32,
    pub(crate) seed: u64,
    pub(crate) data: Option<PathBuf>,
    pub(crate) out: PathBuf,
    /// How many seeds to compare with; `None` for a single training.
    pub(crate) compare: Option<usize>,
}

impl Options {
    /// One training, as in the paper.
    fn single() -> Self {
        Self {
            norm: Kind::Layer,
            batch: 128,
            epochs: 60,
            hidden: 1000,
            lr: 0.001,
            seed: 1,
            data: None,
            out: "target/mnist.svg".into(),
            compare: None,
        }
    }

    /// Many, each smaller.
    fn comparison() -> Self {
        let out = "target/mnist-compare.svg".into();
        Self { epochs: 30, hidden: 256, out, compare: Some(3), ..Self::single() }
    }

    /// `None` if help is wanted. An option is `--name value` or `--name=value`, and of two the last counts.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Option<Self>, String> {
        let arguments: Vec<_> = arguments.into_iter().collect();
        let compare = arguments.iter().any(|argument| argument == "--compare");
        let mut options = if compare { Self::comparison() } else { Self::single() };
        let mut arguments = Arguments::new(arguments.into_iter());
        while let Some(name) = arguments.next_name()? {
            match name.as_str() {
                "--norm" | "--batch" if compare => return Err(format!("`{name}`: `--compare` trains with several")),
                "--norm" => options.norm = arguments.parse()?,
                "--batch" => options.batch = arguments.positive()?,
                "--epochs" => options.epochs = arguments.positive()?,
                "--hidden" => options.hidden = arguments.positive()?,
                "--lr" => options.lr = arguments.above_zero()?,
                "--seed" => options.seed = arguments.parse()?,
                "--data" => options.data = Some(arguments.value()?.into()),
                "--out" => options.out = arguments.value()?.into(),
                "--compare" if compare => {}
                "--seeds" if compare => options.compare = Some(arguments.positive()?),
                "--seeds" => return Err("`--seeds` is for `--compare`".into()),
                "--help" | "-h" => return Ok(None),
                _ => return Err(arguments.unknown()),
            }
        }
        if options.norm == Kind::Batch && options.batch == 1 {
            return Err("`--norm batch`: `--batch` must be at least 2, one image has no spread".into());
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

    /// The line of the help for an option.
    fn help(name: &str) -> &str {
        HELP.lines().find(|line| line.trim_start().starts_with(&format!("{name} "))).expect(name)
    }

    #[test]
    fn nothing_is_the_default() {
        assert_eq!(options("").unwrap().unwrap(), Options::single());
    }

    #[test]
    fn help_says_the_defaults() {
        let Options { norm, batch, epochs, hidden, lr, seed, data: _, out, compare } = Options::single();
        assert_eq!(compare, None);
        for (name, default) in
            [("--norm", &norm as &dyn Display), ("--batch", &batch), ("--lr", &lr), ("--seed", &seed)]
        {
            assert!(help(name).ends_with(&format!("[{default}]")), "{}", help(name));
        }
        let many = Options::comparison();
        for (name, default, compared) in [
            ("--epochs", &epochs as &dyn Display, &many.epochs as &dyn Display),
            ("--hidden", &hidden, &many.hidden),
            ("--out", &out.display(), &many.out.display()),
        ] {
            assert!(help(name).ends_with(&format!("[{default}; {compared} with --compare]")), "{}", help(name));
        }
        assert!(help("--seeds").ends_with(&format!("[{}]", many.compare.unwrap())));
        assert_eq!((many.lr, many.seed), (lr, seed));
    }

    #[test]
    fn help_names_every_norm() {
        for kind in Kind::ALL {
            assert!(help("--norm").contains(&kind.to_string()), "{kind}");
            assert_eq!(options(&format!("--norm {kind}")).unwrap().unwrap().norm, kind);
        }
    }

    #[test]
    fn every_option_is_taken() {
        let line = "--norm none --batch=4 --epochs 5 --hidden 7 --lr=0.5 --seed 8 --data d --out o";
        let expected = Options {
            norm: Kind::None,
            batch: 4,
            epochs: 5,
            hidden: 7,
            lr: 0.5,
            seed: 8,
            data: Some("d".into()),
            out: "o".into(),
            compare: None,
        };
        assert_eq!(options(line).unwrap().unwrap(), expected);
        let line = "--compare --seeds 2 --epochs=5 --hidden 7 --lr 0.5 --seed 8 --data=d --out o";
        let (norm, batch) = (Kind::Layer, 128);
        assert_eq!(options(line).unwrap().unwrap(), Options { norm, batch, compare: Some(2), ..expected });
    }

    #[test]
    fn compare_has_its_own_defaults_wherever_it_stands() {
        let expected = Options { hidden: 7, ..Options::comparison() };
        for line in ["--compare --hidden 7", "--hidden 7 --compare", "--hidden=7 --compare --seeds 3"] {
            assert_eq!(options(line).unwrap().unwrap(), expected, "{line}");
        }
    }

    #[test]
    fn help_is_not_an_error() {
        assert_eq!(options("--batch 4 --help").unwrap(), None);
        assert_eq!(options("--compare --help").unwrap(), None);
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
            ("--norm group", "`--norm group`: expected `layer`, `batch`, `rms` or `none`"),
            ("--norm batch --batch 1", "`--norm batch`: `--batch` must be at least 2, one image has no spread"),
            ("--norm rms --compare", "`--norm`: `--compare` trains with several"),
            ("--compare --batch 4", "`--batch`: `--compare` trains with several"),
            ("--seeds 2", "`--seeds` is for `--compare`"),
            ("--compare --seeds 0", "`--seeds 0`: must be at least 1"),
            ("--compare=3", "unknown option `--compare=3`"),
        ] {
            assert_eq!(options(line).unwrap_err(), message, "{line}");
        }
    }
}
