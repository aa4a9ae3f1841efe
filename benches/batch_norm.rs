//! `cargo bench --bench batch_norm`: batch normalization beside a copy of its array and loops with its own traffic.
//!
//! Every case is checked against the oracle before it is timed. Reports with curves: target/criterion/report. With
//! `-- --ratios` calls take turns instead, and their ratios are printed.

#[path = "common/loops.rs"]
mod loops;
#[path = "common/measure.rs"]
mod measure;
#[path = "common/threads.rs"]
mod threads;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput};
use fearless_simd::{Level, Simd, dispatch, f32x16, prelude::*};
use fearless_simd_macros::simd;
use layernorm::{Affine, BatchNorm, BatchSaved};
use loops::{BOUND, halves, near, near_sum, stream, vector_copy};
use measure::medians;
use ndarray::{Array1, Array2, ArrayView1};
use threads::on_threads;

/// `rows × features`: in the caches, tall, wide.
const SHAPES: [(usize, usize); 8] =
    [(64, 512), (128, 1000), (8192, 768), (8192, 1024), (2048, 4096), (16, 65536), (65536, 64), (32768, 256)];

/// Everything a call needs.
struct Case {
    norm: BatchNorm<f32>,
    x: Array2<f32>,
    dy: Array2<f32>,
    y: Array2<f32>,
    dx: Array2<f32>,
    saved: BatchSaved<f32>,
    grad: Affine<f32>,
}

impl Case {
    fn new(rows: usize, features: usize) -> Self {
        let random = |seed, len| Array1::from_iter(textbook::pattern(len, seed).into_iter().map(|x| x as f32));
        let matrix = |seed| random(seed, rows * features).into_shape_with_order((rows, features)).expect("as many");
        let norm = BatchNorm::new(features).with_gain(random(1, features) + 1.0).expect("as many");
        let norm = norm.with_bias(random(2, features)).expect("as many");
        let (x, dy) = (matrix(3), matrix(4));
        let (y, saved) = norm.forward(&x).expect("the shapes fit");
        let (dx, grad) = (Array2::zeros(x.raw_dim()), norm.zero_grad());
        Self { norm, x, dy, y, dx, saved, grad }
    }

    fn forward(&mut self) {
        self.norm.forward_into(&self.x, &mut self.y, &mut self.saved).expect("the shapes fit");
    }

    fn backward(&mut self) {
        let Self { norm, x, dy, dx, saved, grad, .. } = self;
        norm.backward_into(x, saved, dy, dx, grad).expect("the shapes fit");
    }

    /// x read, y written.
    fn copy(&mut self) {
        let (x, y) = (self.x.as_slice().expect("standard"), self.y.as_slice_mut().expect("standard"));
        halves(x, x, y, |x, _, y| dispatch!(Level::new(), simd => vector_copy(simd, x, y)));
    }

    /// The least that two passes of forward can cost: x read, then x read and y written.
    fn twice(&mut self) {
        let (x, y) = (self.x.as_slice().expect("standard"), self.y.as_slice_mut().expect("standard"));
        halves(x, x, y, |x, _, _| dispatch!(Level::new(), simd => read(simd, [x])));
        self.copy();
    }

    /// The least that two passes of backward can cost: x and dy read, then both read and dx written.
    fn twice_both(&mut self) {
        let (x, dy) = (self.x.as_slice().expect("standard"), self.dy.as_slice().expect("standard"));
        let dx = self.dx.as_slice_mut().expect("standard");
        halves(x, dy, dx, |x, dy, _| dispatch!(Level::new(), simd => read(simd, [x, dy])));
        halves(x, dy, dx, |x, dy, dx| dispatch!(Level::new(), simd => stream(simd, x, dy, dx)));
    }

    /// Panics unless the first and the last column of y, dx, dgain and dbias are those of the oracle: no time without a right
    /// result.
    fn check(&mut self) {
        self.grad = self.norm.zero_grad();
        self.forward();
        self.backward();
        let wide = |column: ArrayView1<'_, f32>| column.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let eps = f64::from(self.norm.eps());
        for column in [0, self.x.ncols() - 1] {
            let of = |parameter: Option<ndarray::ArrayViewD<'_, f32>>| f64::from(parameter.expect("has one")[column]);
            let (gain, bias) = (of(self.norm.gain()), of(self.norm.bias()));
            let (x, dy) = (wide(self.x.column(column)), wide(self.dy.column(column)));
            let y = textbook::batch_forward(&x, gain, bias, eps, false).y;
            near(BOUND, "y", column, &wide(self.y.column(column)), &y);
            let (dx, ..) = textbook::batch_backward(&x, gain, eps, false, &dy);
            near(BOUND, "dx", column, &wide(self.dx.column(column)), &dx);
            let normalized = textbook::batch_forward(&x, 1.0, 0.0, eps, false).y;
            let terms = normalized.iter().zip(&dy).map(|(x, dy)| x * dy);
            near_sum(BOUND, "dgain", column, of(self.grad.gain()), terms);
            near_sum(BOUND, "dbias", column, of(self.grad.bias()), dy.iter().copied());
        }
    }
}

/// Reads some arrays.
#[simd]
fn read<S: Simd, const R: usize>(simd: S, arrays: [&[f32]; R]) {
    let len = arrays[0].len() / 64 * 64;
    let mut sums = [f32x16::splat(simd, 0.0); 4];
    for start in (0..len).step_by(64) {
        for array in arrays {
            for i in 0..4 {
                sums[i] += f32x16::from_slice(simd, &array[start + 16 * i..][..16]);
            }
        }
    }
    black_box((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

type Call = fn(&mut Case);

/// What is timed, and the arrays of x's size that it reads or writes.
const CALLS: [(&str, Call, usize); 5] = [
    ("copy", Case::copy, 2),
    ("forward", Case::forward, 3),
    ("twice", Case::twice, 3),
    ("backward", Case::backward, 5),
    ("twice both", Case::twice_both, 5),
];

fn print_ratios() {
    println!("| rows × features | threads | copy µs | forward × copy | × twice | backward × copy | × twice |");
    println!("|---|---|---|---|---|---|---|");
    let wanted = std::env::args().skip(1).find(|argument| argument.contains('x'));
    for (rows, features) in SHAPES {
        if wanted.as_ref().is_some_and(|wanted| *wanted != format!("{rows}x{features}")) {
            continue;
        }
        let mut case = Case::new(rows, features);
        case.check();
        // As in the bench `ratios`: on two threads the fastest loop may be that on one.
        let mut least = [f64::INFINITY; 3];
        for threads in [1, 2] {
            let [copy, forward, twice, backward, twice_both] =
                on_threads(threads, || medians(&mut case, CALLS.map(|(_, call, _)| call)));
            least = std::array::from_fn(|i| least[i].min([copy, twice, twice_both][i]));
            let [copy, twice, twice_both] = least;
            println!(
                "| {rows} × {features} | {threads} | {:.2} | {:.2} | **{:.2}** | {:.2} | **{:.2}** |",
                copy * 1e6,
                forward / copy,
                forward / twice,
                backward / copy,
                backward / twice_both,
            );
        }
    }
}

fn batch_norm(criterion: &mut Criterion) {
    for (rows, features) in SHAPES {
        let mut case = Case::new(rows, features);
        case.check();
        for threads in [1, 2] {
            let mut group = criterion.benchmark_group(format!("batch norm {rows}x{features}/{threads} threads"));
            for (name, call, arrays) in CALLS {
                group.throughput(Throughput::Bytes((arrays * rows * features * size_of::<f32>()) as u64));
                group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
                    on_threads(threads, || bencher.iter(|| call(&mut case)));
                });
            }
            group.finish();
        }
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "--ratios") {
        return print_ratios();
    }
    let criterion = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200));
    let mut criterion = criterion.measurement_time(Duration::from_millis(600)).configure_from_args();
    batch_norm(&mut criterion);
    criterion.final_summary();
}
