//! `cargo bench --bench layer_norm`: each call beside a copy of the same bytes and ndarray's textbook code.
//!
//! Every case is checked against the oracle before it is timed. Reports with curves: target/criterion/report.

mod common;

use std::time::Duration;

use common::threads::on_threads;
use common::{Case, SHAPES};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

type Call = fn(&mut Case);

/// What is timed, and the arrays of x's size that it reads or writes at least.
const CALLS: [(&str, Call, usize); 9] = [
    ("copy", Case::copy, 2),
    ("vector copy", Case::vector_copy, 2),
    ("forward", Case::forward, 2),
    ("infer", Case::infer, 2),
    ("textbook forward", Case::textbook_forward, 2),
    ("stream", Case::stream, 3),
    ("plain stream", Case::plain_stream, 3),
    ("backward", Case::backward, 3),
    ("textbook backward", Case::textbook_backward, 3),
];

fn layer_norm(criterion: &mut Criterion) {
    for (rows, features) in SHAPES {
        let mut case = Case::new(rows, features);
        case.check();
        for threads in [1, 2] {
            let mut group = criterion.benchmark_group(format!("{rows}x{features}/{threads} threads"));
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = layer_norm
}
criterion_main!(benches);
