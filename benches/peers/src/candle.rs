//! candle-nn: its fused layer for forward, the composite for gradients.
//!
//! `LayerNorm::forward` of a contiguous x runs a fused operation without a backward pass: gradients that go through it
//! are missing from the store, without an error. Who wants them calls `ops::layer_norm_slow`, the same formula in
//! operations that have one.

use std::hint::black_box;

use candle_core::backprop::GradStore;
use candle_core::{Device, Result, Tensor, Var};
use candle_nn::{LayerNorm, Module, ops};

use crate::contestant::{Contestant, EPS, Input, Outcome};

const FITS: &str = "the shapes fit";

pub(crate) struct Candle {
    fused: LayerNorm,
    x: Var,
    gain: Var,
    bias: Var,
}

impl Candle {
    pub(crate) fn new(input: &Input) -> Self {
        let vector = |data: &[f32]| Var::from_slice(data, input.features, &Device::Cpu).expect(FITS);
        let (gain, bias) = (vector(&input.gain), vector(&input.bias));
        let fused = LayerNorm::new(gain.as_detached_tensor(), bias.as_detached_tensor(), f64::from(EPS));
        let x = Var::from_slice(&input.x, (input.rows, input.features), &Device::Cpu).expect(FITS);
        Self { fused, x, gain, bias }
    }

    fn y(&self) -> Tensor {
        self.fused.forward(self.x.as_tensor()).expect(FITS)
    }

    fn gradients(&self) -> Result<GradStore> {
        ops::layer_norm_slow(&self.x, &self.gain, &self.bias, EPS)?.backward()
    }
}

impl Contestant for Candle {
    fn forward(&mut self) {
        black_box(self.y());
    }

    fn forward_backward(&mut self) {
        black_box(self.gradients().expect(FITS));
    }

    fn outcome(&mut self) -> Outcome {
        let flat = |tensor: &Tensor| tensor.flatten_all().and_then(|flat| flat.to_vec1()).expect("contiguous f32");
        let gradients = self.gradients().expect(FITS);
        let of = |variable: &Var| flat(gradients.get(variable).expect("the composite has gradients"));
        Outcome { y: flat(&self.y()), dx: of(&self.x), dgain: of(&self.gain), dbias: of(&self.bias) }
    }
}
