//! burn on its two CPU backends: flex, which it recommends, and ndarray, which it deprecated in 0.22 and which many still
//! run.
//!
//! Forward is the layer on a plain device: one fused operation in flex, seven in ndarray. Gradients are those of the same
//! layer on a device with autodiff, where both compose it of seven operations. The third, burn-cpu, compiles kernels at
//! run time with an LLVM that its build downloads; it is left out.

use std::hint::black_box;

use burn::module::Param;
use burn::nn::{LayerNorm, LayerNormConfig};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::contestant::{Contestant, EPS, Input, Outcome};

pub(crate) struct Burn {
    plain: LayerNorm,
    x: Tensor<2>,
    tracked: LayerNorm,
    tracked_x: Tensor<2>,
}

impl Burn {
    pub(crate) fn flex(input: &Input) -> Self {
        Self::on(Device::flex(), input)
    }

    #[expect(deprecated, reason = "its users are still there")]
    pub(crate) fn ndarray(input: &Input) -> Self {
        Self::on(Device::ndarray(), input)
    }

    fn on(device: Device, input: &Input) -> Self {
        let autodiff = device.clone().autodiff();
        let x = |device| Tensor::from_data(TensorData::new(input.x.clone(), [input.rows, input.features]), device);
        Self {
            plain: layer(&device, input),
            x: x(&device),
            tracked: layer(&autodiff, input),
            tracked_x: x(&autodiff).require_grad(),
        }
    }

    fn y(&self) -> Tensor<2> {
        self.plain.forward(self.x.clone())
    }

    fn gradients(&self) -> Gradients {
        self.tracked.forward(self.tracked_x.clone()).backward()
    }
}

fn layer(device: &Device, input: &Input) -> LayerNorm {
    let parameter = |data: &[f32]| Param::from_data(TensorData::new(data.to_vec(), [input.features]), device);
    let mut layer = LayerNormConfig::new(input.features).with_epsilon(f64::from(EPS)).init(device);
    layer.gamma = parameter(&input.gain);
    layer.beta = Some(parameter(&input.bias));
    layer
}

impl Contestant for Burn {
    fn forward(&mut self) {
        black_box(self.y());
    }

    fn forward_backward(&mut self) {
        black_box(self.gradients());
    }

    fn outcome(&mut self) -> Outcome {
        let gradients = self.gradients();
        let of = |parameter: &Param<Tensor<1>>| flat(parameter.val().grad(&gradients).expect("tracked"));
        Outcome {
            y: flat(self.y()),
            dx: flat(self.tracked_x.grad(&gradients).expect("tracked")),
            dgain: of(&self.tracked.gamma),
            dbias: of(self.tracked.beta.as_ref().expect("has one")),
        }
    }
}

fn flat<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().as_slice().expect("f32").to_vec()
}
