//! What every library is given, and what it is asked for.

use textbook::pattern;

/// ε of every layer here: each library's default.
pub(crate) const EPS: f32 = 1e-5;

/// x, gain and bias of one shape; dy is 1 everywhere.
///
/// candle and burn start a backward pass at dy = 1 and take no other: to give them one, a program multiplies y by it and
/// sums, two operations more that a comparison would charge them for.
pub(crate) struct Input {
    pub(crate) rows: usize,
    pub(crate) features: usize,
    pub(crate) x: Vec<f32>,
    pub(crate) gain: Vec<f32>,
    pub(crate) bias: Vec<f32>,
}

impl Input {
    pub(crate) fn new(rows: usize, features: usize) -> Self {
        let random = |seed, len| pattern(len, seed).into_iter().map(|x| x as f32);
        Self {
            rows,
            features,
            x: random(3, rows * features).collect(),
            gain: random(1, features).map(|gain| gain + 1.0).collect(),
            bias: random(2, features).collect(),
        }
    }
}

/// What a training step takes from a layer, row-major.
pub(crate) struct Outcome {
    pub(crate) y: Vec<f32>,
    pub(crate) dx: Vec<f32>,
    pub(crate) dgain: Vec<f32>,
    pub(crate) dbias: Vec<f32>,
}

/// One library, one way to call it, one input.
///
/// A call makes what the library makes and drops it again, as a training loop does: memory is part of its time.
pub(crate) trait Contestant {
    /// y alone, unless a library's forward keeps more.
    fn forward(&mut self);

    /// y, dx, dgain and dbias.
    fn forward_backward(&mut self);

    /// What these two calls computed: y of the first, gradients of the second.
    fn outcome(&mut self) -> Outcome;
}
