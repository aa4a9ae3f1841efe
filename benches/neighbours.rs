//! `cargo bench --bench neighbours`: the layers beside layer normalization and its other calls, each beside the least that
//! its arrays cost: a loop that reads and writes as many.

#[path = "common/measure.rs"]
mod measure;
#[path = "common/threads.rs"]
mod threads;

use fearless_simd::{Level, Simd, dispatch, f32x16, prelude::*};
use fearless_simd_macros::simd;
use layernorm::{Affine, LayerNorm, RmsNorm, RmsSaved, Saved, WeightNorm, WeightSaved};
use measure::medians;
use ndarray::Array2;
use threads::on_threads;

const SHAPES: [(usize, usize); 9] = [
    (64, 512),
    (128, 1000),
    (64, 2400),
    (8192, 768),
    (8192, 1024),
    (2048, 4096),
    (16, 65536),
    (65536, 64),
    (32768, 256),
];

/// Everything a call needs.
struct Case {
    arrays: [Array2<f32>; 5],
    /// Rows of variance 1. What goes back through them in place again and again stays what it is; with another variance it
    /// would grow beyond all numbers, or become subnormal, which some CPUs take a hundred times as long for.
    unit: (Array2<f32>, Saved<f32>),
    layer: (LayerNorm<f32>, Saved<f32>, Affine<f32>),
    rms: (RmsNorm<f32>, RmsSaved<f32>, Affine<f32>),
    weight: (WeightNorm<f32>, WeightSaved<f32>, Affine<f32>),
}

const FITS: &str = "the shapes fit";

impl Case {
    fn new(rows: usize, features: usize) -> Self {
        let mut seed = 0;
        let arrays = [(); 5].map(|()| {
            seed += 1;
            let values = textbook::pattern(rows * features, seed).into_iter().map(|x| x as f32).collect();
            Array2::from_shape_vec((rows, features), values).expect("as many")
        });
        let (layer, rms, weight) = (LayerNorm::new(features), RmsNorm::new(features), WeightNorm::new(rows));
        let grads = (layer.zero_grad(), rms.zero_grad(), weight.zero_grad());
        let unit = layer.forward(&arrays[0]).expect(FITS).0;
        let (_, of_unit) = layer.forward(&unit).expect(FITS);
        let mut case = Self {
            arrays,
            unit: (unit, of_unit),
            layer: (layer, Saved::default(), grads.0),
            rms: (rms, RmsSaved::default(), grads.1),
            weight: (weight, WeightSaved::default(), grads.2),
        };
        case.check();
        case
    }

    fn rms_forward(&mut self) {
        let ([x, _, y, ..], (norm, saved, _)) = (&mut self.arrays, &mut self.rms);
        norm.forward_into(x, y, saved).expect(FITS);
    }

    fn rms_backward(&mut self) {
        let ([x, dy, dx, ..], (norm, saved, grad)) = (&mut self.arrays, &mut self.rms);
        norm.backward_into(x, saved, dy, dx, grad).expect(FITS);
    }

    fn residual_forward(&mut self) {
        let ([x, residual, y, sum, _], (norm, saved, _)) = (&mut self.arrays, &mut self.layer);
        norm.forward_residual_into(x, residual, y, sum, saved).expect(FITS);
    }

    fn residual_backward(&mut self) {
        let ([_, dy, dsum, sum, dx], (norm, saved, grad)) = (&mut self.arrays, &mut self.layer);
        norm.backward_residual_into(sum, saved, dy, Some(dsum), dx, grad).expect(FITS);
    }

    fn jvp(&mut self) {
        let ([_, tangent, y, sum, _], (norm, saved, grad)) = (&mut self.arrays, &mut self.layer);
        norm.jvp_into(sum, saved, tangent, grad, y).expect(FITS);
    }

    fn backward_inplace(&mut self) {
        let ([.., dy], (x, saved), (norm, _, grad)) = (&mut self.arrays, &self.unit, &mut self.layer);
        norm.backward_inplace(x, saved, dy, grad).expect(FITS);
    }

    fn weight_forward(&mut self) {
        let ([v, _, w, ..], (norm, saved, _)) = (&mut self.arrays, &mut self.weight);
        norm.forward_into(v, w, saved).expect(FITS);
    }

    fn weight_backward(&mut self) {
        let ([v, dw, dv, ..], (norm, saved, grad)) = (&mut self.arrays, &mut self.weight);
        norm.backward_into(v, saved, dw, dv, grad).expect(FITS);
    }

    fn one_to_one(&mut self) {
        let [a, _, out, ..] = &mut self.arrays;
        least([a], [out]);
    }

    fn two_to_one(&mut self) {
        let [a, b, out, ..] = &mut self.arrays;
        least([a, b], [out]);
    }

    fn two_to_two(&mut self) {
        let [a, b, out, other, _] = &mut self.arrays;
        least([a, b], [out, other]);
    }

    fn three_to_one(&mut self) {
        let [a, b, c, _, out] = &mut self.arrays;
        least([a, b, c], [out]);
    }

    /// Panics unless the last row is right: no time without a right result.
    fn check(&mut self) {
        let wide =
            |array: &Array2<f32>| -> Vec<f64> { array.row(array.nrows() - 1).iter().map(|&x| f64::from(x)).collect() };
        let near = |name: &str, got: &Array2<f32>, right: &[f64]| {
            let largest = right.iter().fold(0.0, |largest: f64, x| largest.max(x.abs()));
            let same = wide(got).iter().zip(right).all(|(got, right)| (got - right).abs() <= 1e-6 * largest);
            assert!(same, "{name} of {:?}", got.shape());
        };
        let features = self.arrays[0].ncols();
        let (x, dy) = (wide(&self.arrays[0]), wide(&self.arrays[1]));
        self.rms_forward();
        near("rms y", &self.arrays[2], &textbook::rms_forward(&x, None, 1e-5f32.into()).y);
        self.rms_backward();
        near("rms dx", &self.arrays[2], &textbook::rms_backward(&x, features, None, 1e-5f32.into(), &dy).0);
        self.weight_forward();
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        near("w", &self.arrays[2], &x.iter().map(|x| x / length).collect::<Vec<_>>());
        self.weight_backward();
        // dv = (dw − ŵ·⟨dw, ŵ⟩)/‖v‖
        let along = x.iter().zip(&dy).map(|(x, dy)| x * dy).sum::<f64>() / length;
        let dv = x.iter().zip(&dy).map(|(x, dy)| (dy - x / length * along) / length);
        near("dv", &self.arrays[2], &dv.collect::<Vec<_>>());
        self.residual_forward();
        let sum = &self.arrays[0] + &self.arrays[1];
        near("y of a sum", &self.arrays[2], &textbook::forward(&wide(&sum), None, None, 1e-5f32.into()).y);
        assert_eq!(sum, self.arrays[3]);
        let dsum = wide(&self.arrays[2]);
        self.residual_backward();
        let dx = textbook::backward_row(&wide(&sum), None, 1e-5f32.into(), &dy);
        near("dx of a sum", &self.arrays[4], &dx.iter().zip(&dsum).map(|(dx, dsum)| dx + dsum).collect::<Vec<_>>());
        // Without gain and bias that move, and with a gain of 1, the Jacobian is symmetric: jvp is backward.
        self.layer.2 = self.layer.0.zero_grad();
        self.jvp();
        near("jvp", &self.arrays[2], &textbook::backward_row(&wide(&sum), None, 1e-5f32.into(), &dy));
        let dy = wide(&self.arrays[4]);
        self.backward_inplace();
        near("dx in place", &self.arrays[4], &textbook::backward_row(&wide(&self.unit.0), None, 1e-5f32.into(), &dy));
    }
}

/// A loop that reads these arrays and writes those, on the threads of the pool.
fn least<const R: usize, const W: usize>(from: [&Array2<f32>; R], to: [&mut Array2<f32>; W]) {
    const STANDARD: &str = "standard";
    let from = from.map(|array| array.as_slice().expect(STANDARD));
    let mut to = to.map(|array| array.as_slice_mut().expect(STANDARD));
    if rayon::current_num_threads() == 1 {
        return dispatch!(Level::new(), simd => sums(simd, from, to));
    }
    let half = from[0].len() / 2;
    let first = to.each_mut().map(|slice| slice.split_off_mut(..half).expect("half of it"));
    rayon::join(
        || dispatch!(Level::new(), simd => sums(simd, from.map(|slice| &slice[..half]), first)),
        || dispatch!(Level::new(), simd => sums(simd, from.map(|slice| &slice[half..]), to)),
    );
}

#[simd]
fn sums<S: Simd, const R: usize, const W: usize>(simd: S, from: [&[f32]; R], mut to: [&mut [f32]; W]) {
    for start in (0..from[0].len() / 16 * 16).step_by(16) {
        let mut sum = f32x16::from_slice(simd, &from[0][start..start + 16]);
        for from in &from[1..] {
            sum += f32x16::from_slice(simd, &from[start..start + 16]);
        }
        for to in &mut to {
            sum.store_slice(&mut to[start..start + 16]);
        }
    }
}

type Call = fn(&mut Case);

/// Each call and its least.
const CALLS: [(&str, Call, Call); 8] = [
    ("RmsNorm forward", Case::rms_forward, Case::one_to_one),
    ("RmsNorm backward", Case::rms_backward, Case::two_to_one),
    ("WeightNorm forward", Case::weight_forward, Case::one_to_one),
    ("WeightNorm backward", Case::weight_backward, Case::two_to_one),
    ("forward_residual", Case::residual_forward, Case::two_to_two),
    ("backward_residual", Case::residual_backward, Case::three_to_one),
    ("jvp", Case::jvp, Case::two_to_one),
    ("backward_inplace", Case::backward_inplace, Case::two_to_one),
];

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return drop(Case::new(64, 512));
    }
    let wanted = std::env::args().nth(1).filter(|argument| argument.contains('x'));
    print!("| rows × features | threads |");
    CALLS.iter().for_each(|(name, ..)| print!(" {name} |"));
    println!("\n|---|---|{}", "---|".repeat(CALLS.len()));
    for (rows, features) in SHAPES {
        if wanted.as_ref().is_some_and(|wanted| *wanted != format!("{rows}x{features}")) {
            continue;
        }
        let mut case = Case::new(rows, features);
        // As in the bench `ratios`: on two threads the fastest loop may be that on one.
        let mut fastest = CALLS.map(|_| f64::INFINITY);
        for threads in [1, 2] {
            print!("| {rows} × {features} | {threads} |");
            for ((_, call, least), fastest) in CALLS.into_iter().zip(&mut fastest) {
                let [call, least] = on_threads(threads, || medians(&mut case, [call, least]));
                *fastest = fastest.min(least);
                print!(" {:.2} |", call / *fastest);
            }
            println!();
        }
    }
}
