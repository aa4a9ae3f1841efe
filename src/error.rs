//! What a caller can get wrong, every message in one place.

use std::fmt;

/// The result of a call that checks what it was given.
pub type Result<T> = std::result::Result<T, Error>;

/// A mistake in a call, found before anything was written.
///
/// The text names the argument as in the signature, says what would be right and what came.
///
/// # Example
///
/// ```
/// use layernorm::{LayerNorm, ndarray::Array2};
///
/// let norm = LayerNorm::<f32>::new(4);
/// let error = norm.forward(&Array2::zeros((2, 3))).unwrap_err();
/// assert_eq!(error.to_string(), "`x` must have shape [_, 4], but has [2, 3]");
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// The trailing axes of an input are not the normalized shape, or there are too few axes.
    Trailing {
        /// The argument's name.
        argument: &'static str,
        /// The normalized shape of the layer.
        normalized: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// The first axis of an input is not as long as the layer has rows.
    Leading {
        /// The argument's name.
        argument: &'static str,
        /// Rows of the layer.
        rows: usize,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// An array must have exactly one shape, and has another.
    Shape {
        /// The argument's name.
        argument: &'static str,
        /// The shape that is right.
        expected: Vec<usize>,
        /// The shape that came.
        got: Vec<usize>,
    },
    /// `saved` was filled by a forward call on an array of another shape.
    Saved {
        /// The name of what forward was called on.
        argument: &'static str,
        /// The shape of `x` in this call.
        expected: Vec<usize>,
        /// The shape of `x` in the call that filled `saved`; nothing if none has.
        got: Option<Vec<usize>>,
    },
    /// `saved` was filled by a forward call on an array of this shape, by a layer of another normalized shape.
    SavedRows {
        /// The name of what forward was called on.
        argument: &'static str,
        /// Rows that `x` has in this call.
        expected: usize,
        /// Rows that it had in the call that filled `saved`.
        got: usize,
    },
    /// Running statistics were to take a `saved` that no forward call has filled.
    SavedEmpty {
        /// Their shape.
        normalized: Vec<usize>,
    },
    /// `saved` was filled by a batch normalization that takes the other variance.
    SavedVariance {
        /// Whether this layer takes the unbiased variance.
        unbiased: bool,
    },
    /// `saved` was filled by a layer with another ε.
    SavedEps {
        /// ε of this layer.
        expected: f64,
        /// ε of the layer that filled `saved`.
        got: f64,
    },
    /// `saved` was filled by a recurrent cell of another kind, placement of norms or number of hidden units.
    SavedCell {
        /// Hidden units of this cell.
        expected: usize,
        /// Hidden units of the cell that filled `saved`; if they are as many, it is of another kind or placement.
        got: usize,
    },
    /// A recurrent state lacks the c that the cell has, or has one that the cell lacks.
    StateCell {
        /// The argument's name.
        argument: &'static str,
        /// Whether the cell has a c.
        expected: bool,
    },
    /// A recurrent cell without hidden units.
    Hidden,
    /// A gradient, or what was put in the place of a recurrent cell's weights, has not the parameters of the layer: one is
    /// missing, one too many, or of another shape.
    Parameter {
        /// The argument's name.
        argument: &'static str,
        /// The parameter's name.
        parameter: &'static str,
        /// The shape of the layer's parameter; nothing if the layer has none.
        expected: Option<Vec<usize>>,
        /// The shape that came; nothing if none did.
        got: Option<Vec<usize>>,
    },
    /// `eps` is negative, infinite, NaN or a subnormal `f64`.
    Eps {
        /// The value that came.
        got: f64,
    },
    /// The gain of a feature is too small to divide y by.
    SmallGain {
        /// The feature, counted in the order of the normalized shape.
        feature: usize,
        /// The smallest gain of that feature, of either sign, that would do: a thousandth of its bias, but a normal number.
        least: f64,
        /// Its bias; 0 if the layer has none.
        bias: f64,
        /// Its gain; 1 if the layer has none.
        got: f64,
        /// Whether the gain is 1 + γ.
        zero_centred: bool,
    },
    /// The unbiased variance of a batch of one row.
    OneRow {
        /// The argument that has the row.
        argument: &'static str,
    },
    /// The weight of a batch in running statistics is not within 0 and 1.
    Momentum {
        /// The value that came.
        got: f64,
    },
    /// The layer normalizes over no element at all.
    Empty {
        /// The normalized shape of the layer.
        normalized: Vec<usize>,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Trailing { argument, normalized, got } => {
                write!(f, "`{argument}` must have shape [")?;
                if got.len() < normalized.len() {
                    f.write_str("..")?;
                } else {
                    let leading = vec!["_"; got.len() - normalized.len()];
                    f.write_str(&leading.join(", "))?;
                }
                for (axis, length) in normalized.iter().enumerate() {
                    let first = axis == 0 && got.len() == normalized.len();
                    write!(f, "{}{length}", if first { "" } else { ", " })?;
                }
                write!(f, "], but has {got:?}")
            }
            Self::Shape { argument, expected, got } => {
                write!(f, "`{argument}` must have shape {expected:?}, but has {got:?}")
            }
            Self::Leading { argument, rows, got } => {
                write!(f, "`{argument}` must have shape [{rows}, ..], but has {got:?}")
            }
            Self::Saved { argument, expected, got } => {
                let article = article(argument);
                write!(
                    f,
                    "`saved` must come from a forward call on {article} `{argument}` of shape {expected:?}, but "
                )?;
                match got {
                    Some(got) => write!(f, "comes from one on {got:?}"),
                    None => f.write_str("no call has filled it"),
                }
            }
            Self::SavedRows { argument, expected, got } => write!(
                f,
                "`saved` must come from a forward call on `{argument}` as {expected} rows, but comes from one of a layer of \
                 another normalized shape, to which it is {got}"
            ),
            Self::SavedEmpty { normalized } => write!(
                f,
                "`saved` must come from a forward call of a layer of normalized shape {normalized:?}, but no call has filled it"
            ),
            Self::SavedVariance { unbiased } => {
                let [ours, other] = if *unbiased { ["unbiased", "biased"] } else { ["biased", "unbiased"] };
                write!(
                    f,
                    "`saved` must come from a layer that takes the {ours} variance, but comes from one that takes the {other}"
                )
            }
            Self::SavedEps { expected, got } => {
                let [expected, got] = [expected, got].map(|eps| shortest(*eps));
                write!(f, "`saved` must come from a layer with eps {expected}, but comes from one with {got}")
            }
            Self::SavedCell { expected, got } => {
                write!(f, "`saved` must come from a forward call of such a cell with {expected} hidden units, but ")?;
                if expected == got {
                    f.write_str("comes from one of another kind, or with norms elsewhere")
                } else {
                    write!(f, "comes from one with {got}")
                }
            }
            Self::StateCell { argument, expected: true } => {
                write!(f, "`{argument}` must have a c, as an LSTM's state has, but has none")
            }
            Self::StateCell { argument, expected: false } => {
                write!(f, "`{argument}` must have no c, which only an LSTM's state has, but has one")
            }
            Self::Hidden => {
                f.write_str("a cell without hidden units has no state: `hidden` must be at least 1, but is 0")
            }
            Self::Parameter { argument, parameter, expected: Some(expected), got } => {
                let article = article(parameter);
                match got {
                    Some(got) => write!(
                        f,
                        "`{argument}` must have {article} {parameter} of shape {expected:?}, but has one of {got:?}"
                    ),
                    None => write!(f, "`{argument}` must have {article} {parameter}, as the layer has, but has none"),
                }
            }
            Self::Parameter { argument, parameter, expected: None, .. } => {
                write!(f, "`{argument}` must have no {parameter}, as the layer has none, but has one")
            }
            Self::Eps { got } => {
                write!(f, "`eps` must be finite, at least 0 and not subnormal, but is {}", shortest(*got))
            }
            Self::SmallGain { feature, least, bias, got, zero_centred } => {
                let gain = if *zero_centred { "1 + `gain`" } else { "`gain`" };
                let beside = if *bias == 0.0 { "".into() } else { format!(" beside a bias of {}", shortest(*bias)) };
                let [least, got] = [least, got].map(|gain| shortest(*gain));
                write!(
                    f,
                    "{gain} must be at least {least} or at most -{least}{beside} for x̂ to be found from y, but is {got} at \
                     feature {feature}: keep x, or x̂, in the place of y"
                )
            }
            Self::OneRow { argument } => write!(
                f,
                "`{argument}` must have at least 2 rows, because the unbiased variance divides by rows − 1, but has 1",
            ),
            Self::Momentum { got } => {
                write!(f, "`momentum` must be between 0 and 1, but is {}", shortest(*got))
            }
            Self::Empty { normalized } => write!(
                f,
                "a layer of normalized shape {normalized:?} has no element to take a mean of: every axis must be at least 1"
            ),
        }
    }
}

/// The digits that say which number it is: of an `f32`, those of an `f32`.
fn shortest(x: f64) -> String {
    let narrow = x as f32;
    let digits = if f64::from(narrow) == x { format!("{narrow:?}") } else { format!("{x:?}") };
    digits.trim_end_matches(".0").into()
}

/// As it is said before a name: an x, a y.
fn article(name: &str) -> &'static str {
    let said_with_a_vowel = name == "x" || name.starts_with(['a', 'e', 'i', 'o', 'u']);
    if said_with_a_vowel { "an" } else { "a" }
}

impl std::error::Error for Error {}
