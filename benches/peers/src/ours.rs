//! This crate, twice: with new arrays at each call, as the peers have it, and with the caller's memory.

use std::hint::black_box;

use layernorm::ndarray::{Array1, Array2};
use layernorm::{Affine, LayerNorm, Saved};

use crate::contestant::{Contestant, EPS, Input, Outcome};

const FITS: &str = "the shapes fit";

/// `forward` and `backward`: y, what is saved, dx and the gradients are allocated at each call.
pub(crate) struct NewArrays {
    norm: LayerNorm<f32>,
    x: Array2<f32>,
    dy: Array2<f32>,
}

impl NewArrays {
    pub(crate) fn new(input: &Input) -> Self {
        let norm = LayerNorm::new(input.features).with_eps(EPS).expect("positive");
        let norm = norm.with_gain(Array1::from(input.gain.clone())).expect(FITS);
        let norm = norm.with_bias(Array1::from(input.bias.clone())).expect(FITS);
        let x = Array2::from_shape_vec((input.rows, input.features), input.x.clone()).expect(FITS);
        let dy = Array2::ones(x.raw_dim());
        Self { norm, x, dy }
    }

    fn gradients(&self) -> (Array2<f32>, Affine<f32>) {
        let (y, saved) = self.norm.forward(&self.x).expect(FITS);
        black_box(&y);
        let mut grad = self.norm.zero_grad();
        let dx = self.norm.backward(&self.x, &saved, &self.dy, &mut grad).expect(FITS);
        (dx, grad)
    }
}

impl Contestant for NewArrays {
    fn forward(&mut self) {
        black_box(self.norm.forward(&self.x).expect(FITS));
    }

    fn forward_backward(&mut self) {
        black_box(self.gradients());
    }

    fn outcome(&mut self) -> Outcome {
        let (y, _) = self.norm.forward(&self.x).expect(FITS);
        let (dx, grad) = self.gradients();
        outcome(&y, &dx, &grad)
    }
}

/// `forward_into` and `backward_into`: nothing is allocated, and the gradients add up.
pub(crate) struct CallersMemory {
    arrays: NewArrays,
    y: Array2<f32>,
    saved: Saved<f32>,
    dx: Array2<f32>,
    grad: Affine<f32>,
}

impl CallersMemory {
    pub(crate) fn new(input: &Input) -> Self {
        let arrays = NewArrays::new(input);
        let (y, dx) = (Array2::zeros(arrays.x.raw_dim()), Array2::zeros(arrays.x.raw_dim()));
        let grad = arrays.norm.zero_grad();
        Self { arrays, y, saved: Saved::default(), dx, grad }
    }
}

impl Contestant for CallersMemory {
    fn forward(&mut self) {
        let Self { arrays: NewArrays { norm, x, .. }, y, saved, .. } = self;
        norm.forward_into(x, y, saved).expect(FITS);
        black_box(y);
    }

    fn forward_backward(&mut self) {
        self.forward();
        let Self { arrays: NewArrays { norm, x, dy }, saved, dx, grad, .. } = self;
        norm.backward_into(x, saved, dy, dx, grad).expect(FITS);
        black_box((dx, grad));
    }

    fn outcome(&mut self) -> Outcome {
        self.forward_backward();
        outcome(&self.y, &self.dx, &self.grad)
    }
}

fn outcome(y: &Array2<f32>, dx: &Array2<f32>, grad: &Affine<f32>) -> Outcome {
    let matrix = |array: &Array2<f32>| array.iter().copied().collect();
    Outcome {
        y: matrix(y),
        dx: matrix(dx),
        dgain: grad.gain().expect("has one").iter().copied().collect(),
        dbias: grad.bias().expect("has one").iter().copied().collect(),
    }
}
