//! `cargo bench --bench rnn --features rnn`: recurrent cells beside the bare matrix products of their size.
//!
//! Each cell is compared with the oracle first: no time without a right result. Then calls take turns, so that what else
//! happens on the machine happens to all of them, and the table gives medians and their ratios of one run. `-- --criterion`
//! times the same calls with criterion; `-- 400/400` takes only the sizes that begin so. `cargo test --benches` only compares
//! the smallest size with the oracle.

use std::hint::black_box;
use std::time::Instant;

use criterion::Criterion;
use faer::linalg::matmul::matmul;
use faer::{Accum, Mat, MatRef, Par};
use layernorm::ndarray::Array3;
use layernorm::rnn::{GruPlacement, LstmPlacement, Saved, Start, State, Weights};
use layernorm::{Gru, Lstm, Recurrent};
use ndarray_rand::rand::{SeedableRng, rngs::StdRng};
use textbook::pattern;
use textbook::recurrent::{Sequence, States};

/// input, hidden, batch, steps
const SIZES: [[usize; 4]; 3] = [[512, 512, 64, 100], [1024, 1024, 16, 50], [400, 400, 1, 100]];

/// Turns of each call.
const TURNS: usize = 15;

/// Everything a call needs.
struct Case<C> {
    cell: C,
    x: Array3<f32>,
    dy: Array3<f32>,
    y: Array3<f32>,
    dx: Array3<f32>,
    state: State<f32>,
    d_state: State<f32>,
    saved: Saved<f32>,
    grad: Weights<f32>,
}

impl<C: Recurrent<f32>> Case<C> {
    fn new(cell: C, batch: usize, steps: usize) -> Self {
        let drawn = |width: usize, seed: u64| {
            let numbers = pattern(steps * batch * width, seed).into_iter().map(|x| x as f32);
            Array3::from_shape_vec((steps, batch, width), numbers.collect()).expect("as many")
        };
        let (x, dy) = (drawn(cell.input(), 1), drawn(cell.hidden(), 2));
        let (state, grad) = (cell.zero_state(batch), cell.zero_grad());
        let (y, dx) = (Array3::zeros(dy.raw_dim()), Array3::zeros(x.raw_dim()));
        Self { cell, x, dy, y, dx, d_state: state.clone(), state, saved: Saved::default(), grad }
    }

    fn forward(&mut self) {
        let Self { cell, x, y, state, saved, .. } = self;
        state.h.fill(0.0);
        state.c.iter_mut().for_each(|c| c.fill(0.0));
        cell.forward_into(x, None, state, y, saved).expect("the shapes fit");
    }

    fn infer(&mut self) {
        let Self { cell, x, y, state, .. } = self;
        state.h.fill(0.0);
        state.c.iter_mut().for_each(|c| c.fill(0.0));
        cell.infer_into(x, None, state, y).expect("the shapes fit");
    }

    fn backward(&mut self) {
        let Self { cell, x, dy, dx, d_state, saved, grad, .. } = self;
        d_state.h.fill(0.0);
        d_state.c.iter_mut().for_each(|c| c.fill(0.0));
        cell.backward_into(x, saved, dy, d_state, dx, grad).expect("the shapes fit");
    }

    /// Panics unless the gradient by the initial state, which comes back through all steps, is the slope of Σ dy·y along
    /// itself.
    fn check_backward(&mut self) {
        self.forward();
        self.backward();
        let gradient = &self.d_state.h;
        let length = gradient.iter().map(|&d| f64::from(d).powi(2)).sum::<f64>().sqrt();
        // The sum moves by much more than its rounding then, and hardly bends.
        let step = 1e-3f64.min(1.0 / length);
        let [above, below] = [step, -step].map(|step| {
            let mut initial = self.cell.zero_state(gradient.nrows());
            initial.h.assign(&(gradient * (step / length) as f32));
            let (y, _) = self.cell.infer(&self.x, Some(&initial), None).expect("the shapes fit");
            y.iter().zip(&self.dy).map(|(&y, &dy)| f64::from(y) * f64::from(dy)).sum::<f64>()
        });
        let slope = (above - below) / (2.0 * step);
        assert!((slope / length - 1.0).abs() < 0.02, "the slope is {slope}, the gradient {length} long");
    }

    /// Panics unless the first sequence is what the oracle says, and infer says the same.
    fn check(&mut self, textbook: fn(&Sequence<'_>) -> States) {
        self.infer();
        let inferred = self.y.clone();
        self.forward();
        assert!(inferred == self.y, "infer has other bits than forward");
        let (steps, _, input) = self.x.dim();
        let steps = steps.min(3);
        let wide = |numbers: ndarray::ArrayView1<'_, f32>| numbers.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let hidden = self.cell.hidden();
        let sequence = Sequence {
            input,
            hidden,
            x: (0..steps).map(|t| wide(self.x.slice(ndarray::s![t, 0, ..]))).collect(),
            mask: vec![true; steps],
            h: vec![0.0; hidden],
            c: vec![0.0; hidden],
            eps: f64::from(self.cell.eps()),
            parameter: &|name| {
                let array = self.cell.weights().get(name).expect("the oracle asks for what there is");
                array.iter().map(|&x| f64::from(x)).collect()
            },
        };
        let (right, _) = textbook(&sequence);
        for (t, right) in right.iter().enumerate() {
            for (j, (got, right)) in wide(self.y.slice(ndarray::s![t, 0, ..])).iter().zip(right).enumerate() {
                // Sums of some thousand products of f32, normalized.
                assert!((got - right).abs() < 2e-5, "y[{t}, 0, {j}]: got {got}, right is {right}");
            }
        }
    }
}

/// The products that a forward pass cannot do without.
struct Bare {
    steps: usize,
    x: Mat<f32>,
    h: Mat<f32>,
    w_x: Mat<f32>,
    w_h: Mat<f32>,
    v: Mat<f32>,
    u: Mat<f32>,
}

impl Bare {
    fn new([input, hidden, batch, steps]: [usize; 4], gates: usize) -> Self {
        let drawn = |rows: usize, columns: usize, seed: u64| {
            let numbers: Vec<f32> = pattern(rows * columns, seed).into_iter().map(|x| x as f32).collect();
            // Faer's matrices have columns side by side; the transpose has rows so, as the cells have them.
            MatRef::from_row_major_slice(&numbers, rows, columns).transpose().to_owned()
        };
        Self {
            steps,
            x: drawn(steps * batch, input, 1),
            h: drawn(batch, hidden, 2),
            w_x: drawn(input, gates * hidden, 3),
            w_h: drawn(hidden, gates * hidden, 4),
            v: drawn(steps * batch, gates * hidden, 5),
            u: drawn(batch, gates * hidden, 6),
        }
    }

    fn run(&mut self) {
        let par = if rayon::current_num_threads() == 1 { Par::Seq } else { Par::rayon(0) };
        let Self { x, h, w_x, w_h, v, u, .. } = self;
        matmul(v.as_mut().transpose_mut(), Accum::Replace, x.transpose(), w_x.transpose(), 1.0, par);
        for _ in 0..self.steps {
            matmul(u.as_mut().transpose_mut(), Accum::Replace, h.transpose(), w_h.transpose(), 1.0, par);
        }
    }
}

/// The median seconds of the products, of infer, of forward and of backward.
fn medians<C: Recurrent<f32>>(case: &mut Case<C>, bare: &mut Bare) -> [f64; 4] {
    let mut samples = [[0.0; TURNS]; 4];
    for turn in 0..TURNS {
        for (call, samples) in samples.iter_mut().enumerate() {
            let start = Instant::now();
            match call {
                0 => black_box(&mut *bare).run(),
                1 => black_box(&mut *case).infer(),
                2 => black_box(&mut *case).forward(),
                _ => black_box(&mut *case).backward(),
            }
            samples[turn] = start.elapsed().as_secs_f64();
        }
    }
    samples.map(|mut samples| {
        samples.sort_by(f64::total_cmp);
        samples[TURNS / 2]
    })
}

/// How the calls are timed, if at all.
enum Timing {
    None,
    Turns,
    Criterion(Box<Criterion>),
}

fn measure<C: Recurrent<f32> + Send>(
    name: &str,
    size: [usize; 4],
    gates: usize,
    cell: C,
    textbook: fn(&Sequence<'_>) -> States,
    timing: &mut Timing,
) {
    let [input, hidden, batch, steps] = size;
    let case = &mut Case::new(cell, batch, steps);
    case.check(textbook);
    case.check_backward();
    if matches!(timing, Timing::None) {
        return;
    }
    let bare = &mut Bare::new(size, gates);
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        if let Timing::Criterion(criterion) = timing {
            let mut group =
                criterion.benchmark_group(format!("{name} {input}/{hidden}/{batch}/{steps}, {threads} threads"));
            group.sample_size(10);
            group.bench_function("bare products", |bencher| pool.install(|| bencher.iter(|| bare.run())));
            group.bench_function("infer", |bencher| pool.install(|| bencher.iter(|| case.infer())));
            group.bench_function("forward", |bencher| pool.install(|| bencher.iter(|| case.forward())));
            group.bench_function("backward", |bencher| pool.install(|| bencher.iter(|| case.backward())));
            group.finish();
            continue;
        }
        let [bare, infer, forward, backward] = pool.install(|| medians(case, bare));
        println!(
            "| {name} | {input}/{hidden}/{batch}/{steps} | {threads} | {:.2} | {:.2} | **{:.2}** | {:.2} | **{:.2}** | {:.2} \
             | **{:.2}** |",
            bare * 1e3,
            infer * 1e3,
            infer / bare,
            forward * 1e3,
            forward / bare,
            backward * 1e3,
            (forward + backward) / bare,
        );
    }
}

fn main() {
    let is_given = |option: &str| std::env::args().any(|argument| argument == option);
    let mut wanted = std::env::args().skip(1).find(|argument| argument.contains('/'));
    let mut timing = if is_given("--criterion") {
        Timing::Criterion(Box::new(Criterion::default().with_output_color(false)))
    } else if is_given("--bench") {
        println!(
            "| cell | input/hidden/batch/steps | threads | bare ms | infer ms | ÷ bare | forward ms | ÷ bare | backward ms \
             | both ÷ bare |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|");
        Timing::Turns
    } else {
        wanted = Some("400/".into());
        Timing::None
    };
    for size in SIZES {
        let [input, hidden, ..] = size;
        if wanted.as_ref().is_some_and(|wanted| !size.map(|n| n.to_string()).join("/").starts_with(wanted)) {
            continue;
        }
        let rng = || StdRng::seed_from_u64(1);
        let lstm = |placement| Lstm::<f32>::new(input, hidden, placement, Start::Orthogonal, &mut rng());
        let gru = |placement| Gru::<f32>::new(input, hidden, placement, Start::Orthogonal, &mut rng());
        let normalized = lstm(LstmPlacement::ProductsAndCell);
        measure("LN-LSTM", size, 4, normalized, |sequence| sequence.lstm(true, true), &mut timing);
        measure("LSTM", size, 4, lstm(LstmPlacement::None), |sequence| sequence.lstm(false, false), &mut timing);
        measure("LN-GRU", size, 3, gru(GruPlacement::Products), |sequence| sequence.gru(true), &mut timing);
        measure("GRU", size, 3, gru(GruPlacement::None), |sequence| sequence.gru(false), &mut timing);
    }
}
