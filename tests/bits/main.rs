//! The bit contract: a row gives the same bits alone and in any batch, in any memory layout, on any number of threads
//! and on every instruction set. So do the gradients of gain and bias of the same rows.

mod golden;
mod threads;

use std::sync::OnceLock;

use layernorm::ndarray::{Array1, Array2, ArrayBase, ArrayView2, ArrayViewMut2, Axis, Ix2, RawData, Slice};
use layernorm::{Element, LayerNorm, Parameters, Saved, instruction_sets};
use threads::{THREADS, on_threads};

/// An element whose bits can be compared.
trait Bits: Element {
    const NAME: &'static str;
    /// Rows of this scale have squares that overflow, rows of its inverse have squares that underflow.
    const HUGE: f64;
    fn of(x: f64) -> Self;
    /// One NaN is like another: the contract leaves their payload and sign open.
    fn bits(self) -> u64;
}

impl Bits for f32 {
    const NAME: &'static str = "f32";
    const HUGE: f64 = 1e30;
    fn of(x: f64) -> Self {
        x as Self
    }
    fn bits(self) -> u64 {
        if self.is_nan() { Self::NAN.to_bits().into() } else { self.to_bits().into() }
    }
}

impl Bits for f64 {
    const NAME: &'static str = "f64";
    const HUGE: f64 = 1e200;
    fn of(x: f64) -> Self {
        x
    }
    fn bits(self) -> u64 {
        if self.is_nan() { Self::NAN.to_bits() } else { self.to_bits() }
    }
}

/// Element `i` of a pattern with a prime period: full mantissas, so that every order of additions rounds differently,
/// and no two blocks alike, so that swapped ones show.
fn pattern(i: usize) -> f64 {
    const PERIOD: usize = 10_007;
    static NUMBERS: OnceLock<Vec<f64>> = OnceLock::new();
    NUMBERS.get_or_init(|| textbook::pattern(PERIOD, 1))[i % PERIOD]
}

/// A layer, and arrays for it.
struct Input<T> {
    layer: LayerNorm<T>,
    eps: f64,
    x: Array2<T>,
    dy: Array2<T>,
}

impl<T: Bits> Input<T> {
    /// Among every 13 rows one is huge, one tiny, one constant, one far from 0 and one has other numbers at the head of
    /// each block than behind it; `shift` says which, whether ε is 0 and what the layer lacks.
    fn new(rows: usize, features: usize, shift: usize) -> Self {
        let x = Array2::from_shape_fn((rows, features), |(row, feature)| {
            let x = pattern(row * features + feature);
            T::of(match (row + shift) % 13 {
                1 if feature % 1024 < 8 => x + 50.0,
                3 => x * T::HUGE,
                5 => x / T::HUGE,
                8 => 0.7,
                10 => x + 1000.0,
                _ => x,
            })
        });
        let dy = Array2::from_shape_fn((rows, features), |(row, feature)| T::of(pattern(row * features + feature + 5)));
        let eps = if shift.is_multiple_of(2) { 0.0 } else { 1e-5 };
        let mut layer = LayerNorm::new(features)
            .with_eps(T::of(eps))
            .and_then(|layer| layer.with_gain(Array1::from_shape_fn(features, |i| T::of(1.0 + pattern(i + 11) / 7.0))))
            .and_then(|layer| layer.with_bias(Array1::from_shape_fn(features, |i| T::of(pattern(i + 17)))))
            .expect("gain and bias have the layer's shape");
        if shift % 8 / 2 % 2 == 1 {
            layer = layer.without_gain();
        }
        if shift % 8 / 4 == 1 {
            layer = layer.without_bias();
        }
        Self { layer, eps, x, dy }
    }

    /// Without rows that have to be rescaled: one such row, and others are not taken together.
    fn tame(mut self) -> Self {
        for mut row in self.x.rows_mut() {
            let largest = row.iter().fold(T::zero(), |largest, x| x.abs().max(largest));
            if largest > T::of(1e6) {
                row.mapv_inplace(|x| x / T::of(T::HUGE));
            } else if largest < T::of(1e-6) {
                row.mapv_inplace(|x| x * T::of(T::HUGE));
            }
        }
        self
    }

    /// These rows alone.
    fn rows(&self, rows: std::ops::Range<usize>) -> Self {
        let part = |array: &Array2<T>| array.slice_axis(Axis(0), rows.clone().into()).to_owned();
        Self { layer: self.layer.clone(), eps: self.eps, x: part(&self.x), dy: part(&self.dy) }
    }
}

/// Where the elements of an array of two axes lie.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    Standard,
    Transposed,
    Reversed,
    SecondColumns,
    PaddedRows,
    SecondRows,
}
use Layout::*;

impl Layout {
    /// The array that lies in `memory`.
    fn of<S: RawData>(self, mut memory: ArrayBase<S, Ix2>) -> ArrayBase<S, Ix2> {
        match self {
            Standard => {}
            Transposed => memory.swap_axes(0, 1),
            Reversed => [0, 1].into_iter().for_each(|axis| memory.invert_axis(Axis(axis))),
            SecondColumns => memory.slice_axis_inplace(Axis(1), Slice::new(1, None, 2)),
            PaddedRows => memory.slice_axis_inplace(Axis(1), Slice::new(3, Some(-1), 1)),
            SecondRows => memory.slice_axis_inplace(Axis(0), Slice::new(0, None, 2)),
        }
        memory
    }
}

/// An array in a layout; what lies between its elements is garbage, and has to stay.
struct Placed<T> {
    layout: Layout,
    memory: Array2<T>,
}

impl<T: Bits> Placed<T> {
    fn garbage((rows, features): (usize, usize), layout: Layout) -> Self {
        let shape = match layout {
            Standard | Reversed => (rows, features),
            Transposed => (features, rows),
            SecondColumns => (rows, 2 * features + 1),
            PaddedRows => (rows, features + 4),
            SecondRows => (2 * rows, features),
        };
        Self { layout, memory: Array2::from_elem(shape, T::of(-12345.678)) }
    }

    fn new(values: &Array2<T>, layout: Layout) -> Self {
        let mut placed = Self::garbage(values.dim(), layout);
        placed.view_mut().assign(values);
        placed
    }

    fn view(&self) -> ArrayView2<'_, T> {
        self.layout.of(self.memory.view())
    }

    fn view_mut(&mut self) -> ArrayViewMut2<'_, T> {
        self.layout.of(self.memory.view_mut())
    }

    /// The elements in order; none of them is garbage, and nothing between them has been touched.
    fn written(&self, operation: &str) -> Vec<T> {
        let garbage = T::of(-12345.678).bits();
        let untouched = self.memory.iter().filter(|x| x.bits() == garbage).count();
        let values = self.view();
        assert_eq!(untouched, self.memory.len() - values.len(), "{operation}: garbage left {:?}", self.layout);
        values.iter().copied().collect()
    }
}

/// How a call is made.
#[derive(Clone, Copy, Debug)]
struct Variant {
    set: &'static str,
    threads: usize,
    x: Layout,
    dy: Layout,
    out: Layout,
}

/// Of x (also in place), dy, and y or dx.
const LAYOUTS: [[Layout; 3]; 10] = [
    [Standard, Standard, Standard],
    [Transposed, Transposed, Transposed],
    [Reversed, Reversed, Reversed],
    [SecondColumns, SecondColumns, SecondColumns],
    [PaddedRows, PaddedRows, PaddedRows],
    [SecondRows, PaddedRows, Standard],
    [Standard, Standard, Transposed],
    [Standard, Transposed, SecondColumns],
    [Transposed, Standard, Standard],
    [PaddedRows, SecondColumns, Reversed],
];

/// Every pair of instruction set, threads and layout.
fn variants() -> impl Iterator<Item = Variant> {
    let sets = instruction_sets();
    LAYOUTS.iter().enumerate().flat_map(move |(i, &[x, dy, out])| {
        let sets = sets.clone();
        (0..sets.len().max(THREADS.len())).map(move |j| {
            let (set, threads) = (sets[j % sets.len()], THREADS[(i + j) % THREADS.len()]);
            Variant { set, threads, x, dy, out }
        })
    })
}

/// The lowest instruction set and the plainest layout: what all others must agree with.
fn plain() -> Variant {
    let set = *instruction_sets().last().expect("there is at least one instruction set");
    Variant { set, threads: 1, x: Standard, dy: Standard, out: Standard }
}

/// What each operation writes; a row of y, mean, rstd and dx is `features` or 1 elements long.
type Outcome<T> = Vec<(&'static str, Vec<T>)>;

fn run<T: Bits>(input: &Input<T>, variant: Variant) -> Outcome<T> {
    let layer = input.layer.clone().with_instruction_set(variant.set).expect("the set is available");
    let (x, dy) = (Placed::new(&input.x, variant.x), Placed::new(&input.dy, variant.dy));
    let out = || Placed::garbage(input.x.dim(), variant.out);
    let (mut y, mut inferred, mut inplace, mut dx) = (out(), out(), Placed::new(&input.x, variant.x), out());
    let (mut saved, mut grad) = (Saved::default(), layer.zero_grad());
    // Backward adds to what is there.
    grad.visit_mut(|_, mut array| array.fill(T::of(0.1)));
    on_threads(variant.threads, || {
        layer.forward_into(&x.view(), &mut y.view_mut(), &mut saved)?;
        layer.infer_into(&x.view(), &mut inferred.view_mut())?;
        layer.infer_inplace(&mut inplace.view_mut())?;
        layer.backward_into(&x.view(), &saved, &dy.view(), &mut dx.view_mut(), &mut grad)
    })
    .expect("the shapes fit");
    let mut outcome = vec![
        ("y", y.written("y")),
        ("infer", inferred.written("infer")),
        ("infer_inplace", inplace.written("infer_inplace")),
        ("mean", saved.mean().to_vec()),
        ("rstd", saved.rstd().to_vec()),
        ("dx", dx.written("dx")),
    ];
    outcome.extend(grad.gain().map(|dgain| ("dgain", dgain.iter().copied().collect())));
    outcome.extend(grad.bias().map(|dbias| ("dbias", dbias.iter().copied().collect())));
    outcome
}

/// Fails at the first element that is not as expected, and tells where that was.
fn compare<T: Bits>(input: &Input<T>, variant: Variant, place: &str, got: &Outcome<T>, expected: &Outcome<T>) {
    let (rows, features) = input.x.dim();
    for ((operation, got), (_, expected)) in got.iter().zip(expected) {
        assert_eq!(got.len(), expected.len(), "{operation} of {rows} x {features} {}{place}, {variant:?}", T::NAME);
        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
            assert!(
                got.bits() == expected.bits(),
                "{operation}[{i}] of {rows} x {features} {}, ε = {:e}{place}, {variant:?}: \
                 got {got:e} ({:#x}), expected {expected:e} ({:#x})",
                T::NAME,
                input.eps,
                got.bits(),
                expected.bits(),
            );
        }
    }
}

/// Of one row, without dgain and dbias: they are sums over all rows.
fn of_row<T: Bits>(outcome: &Outcome<T>, rows: usize, row: usize) -> Outcome<T> {
    let part = |all: &[T]| all[row * (all.len() / rows)..(row + 1) * (all.len() / rows)].to_vec();
    outcome[..6].iter().map(|(operation, all)| (*operation, part(all))).collect()
}

/// What each operation should write.
fn expected<T: Bits>(input: &Input<T>) -> Outcome<T> {
    let mut expected = run(input, plain());
    // Inference has the bits of forward.
    (expected[1].1, expected[2].1) = (expected[0].1.clone(), expected[0].1.clone());
    expected
}

/// Runs rows of `features` in every way, all together and each alone.
fn check<T: Bits>(rows: usize, features: usize, shift: usize) {
    let input = Input::<T>::new(rows, features, shift);
    // Many elements take every third or seventh way, and the next shape takes others: no number of sets, threads or
    // layouts is a multiple of these. (The fallback is a hundred times slower than the rest at opt-level 2.)
    let every = [1, 3, 7][usize::from(rows * features > 2000) + usize::from(rows * features > 100_000)];
    let expected = expected(&input);
    let variants: Vec<_> = variants().skip(shift % every).step_by(every).collect();
    for &variant in &variants {
        compare(&input, variant, "", &run(&input, variant), &expected);
    }
    // Of many rows the first and the last, and some between.
    let alone = (0..rows).filter(|row| rows <= 300 || *row < 40 || *row >= rows - 40 || row % 97 == 0);
    for (row, &variant) in alone.zip(variants.iter().cycle()) {
        let place = format!(", row {row} of {rows} alone");
        compare(&input, variant, &place, &run(&input.rows(row..row + 1), variant), &of_row(&expected, rows, row));
    }
}

/// One less, and one more.
fn around(lengths: &[usize]) -> impl Iterator<Item = usize> {
    lengths.iter().flat_map(|&length| [length - 1, length, length + 1])
}

/// Vectors (8, 16), several of them, groups of short rows (256, 512), blocks (1024 to 4096), several blocks, rows that
/// leave the cache of a core (20,480 in f64, 40,960 in f32).
fn check_lengths<T: Bits>() {
    let lengths = [1, 2, 3].into_iter().chain(around(&[8, 16, 24, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192]));
    for (shift, features) in lengths.enumerate() {
        check::<T>(19, features, shift);
    }
    let long = [20_000, 40_000, 70_000].into_iter().chain(around(&[20_480, 40_960]));
    for (shift, features) in long.enumerate() {
        check::<T>(3, features, 3 * shift);
    }
}

/// Groups of 4, 8 and 16 rows, chains of 64, blocks of chains.
fn check_row_counts<T: Bits>() {
    let rows = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000];
    for (shift, rows) in rows.into_iter().enumerate() {
        for features in [1, 3, 9, 16, 37] {
            check::<T>(rows, features, shift + features);
        }
    }
    check::<T>(4097, 3, 0);
    check::<T>(4097, 17, 1);
}

/// So many bytes that threads really run: at least 3 MiB of x and y, where 1 MiB was the threshold when this was written.
fn check_threads<T: Bits>() {
    let shapes = [
        (1, 399_999),
        (1, 1_000_003),
        (3, 133_000),
        (66, 25_000),
        (53, 9001),
        (97, 4099),
        (61, 1701),
        (511, 770),
        (513, 768),
        (1025, 388),
        (2000, 257),
        (5700, 70),
        (20_000, 20),
    ];
    for (shift, (rows, features)) in shapes.into_iter().enumerate() {
        check::<T>(rows, features, shift);
        // Only rows side by side, and none to be rescaled, are shared out in every way.
        let input = Input::<T>::new(rows, features, shift).tame();
        let expected = expected(&input);
        for (set, threads) in
            instruction_sets().into_iter().take(2).flat_map(|set| THREADS.map(|threads| (set, threads)))
        {
            let variant = Variant { set, threads, ..plain() };
            compare(&input, variant, ", tame", &run(&input, variant), &expected);
        }
    }
}

#[test]
fn f32_bits_of_every_length_are_the_same() {
    check_lengths::<f32>();
}

#[test]
fn f64_bits_of_every_length_are_the_same() {
    check_lengths::<f64>();
}

#[test]
fn f32_bits_of_any_number_of_rows_are_the_same() {
    check_row_counts::<f32>();
}

#[test]
fn f64_bits_of_any_number_of_rows_are_the_same() {
    check_row_counts::<f64>();
}

#[test]
fn f32_bits_on_any_number_of_threads_are_the_same() {
    check_threads::<f32>();
}

#[test]
fn f64_bits_on_any_number_of_threads_are_the_same() {
    check_threads::<f64>();
}

/// Rows of a batch.
const BATCH: usize = 21;

/// Every kind of row at every place of a batch, beside rows that are not finite.
fn check_places<T: Bits>() {
    for (features, set) in
        [5, 100, 600].into_iter().flat_map(|features| instruction_sets().into_iter().map(move |set| (features, set)))
    {
        let kinds = Input::<T>::new(13, features, 0);
        let variant = Variant { set, ..plain() };
        for row in [0, 1, 3, 5, 8, 10] {
            let alone = run(&kinds.rows(row..row + 1), variant);
            for place in 0..BATCH {
                let mut batch = Input::<T>::new(BATCH, features, 2);
                batch.layer = kinds.layer.clone();
                for (row, x) in [(9, T::nan()), (10, T::infinity()), (19, T::neg_infinity())] {
                    batch.x[[row, features / 2]] = x;
                }
                batch.x.row_mut(place).assign(&kinds.x.row(row));
                batch.dy.row_mut(place).assign(&kinds.dy.row(row));
                let got = of_row(&run(&batch, variant), BATCH, place);
                compare(&batch, variant, &format!(", row of kind {row} at place {place}"), &got, &of_row(&alone, 1, 0));
            }
        }
    }
}

#[test]
fn a_row_has_its_bits_at_every_place_of_a_batch() {
    check_places::<f32>();
    check_places::<f64>();
}

/// Stores meet cache lines, wherever the arrays start.
fn check_starts<T: Bits>() {
    const ROWS: usize = 7;
    for features in [72, 143, 144, 176, 301, 1100] {
        let input = Input::<T>::new(ROWS, features, 2);
        let expected = run(&input, plain());
        let [y, dx] = [0, 5].map(|index: usize| &expected[index].1);
        let garbage = T::of(-12345.678);
        for (set, start) in instruction_sets().into_iter().flat_map(|set| (0..16).map(move |start| (set, start))) {
            let layer = input.layer.clone().with_instruction_set(set).expect("the set is available");
            let (mut saved, mut grad) = (Saved::default(), layer.zero_grad());
            let mut memory = [0; 2].map(|_| vec![garbage; start + ROWS * features + 16]);
            let [got_y, got_dx] = memory.each_mut().map(|memory| {
                ArrayViewMut2::from_shape((ROWS, features), &mut memory[start..][..ROWS * features]).expect("as long")
            });
            let mut outputs = [got_y, got_dx];
            layer.forward_into(&input.x, &mut outputs[0], &mut saved).expect("the shapes fit");
            layer.backward_into(&input.x, &saved, &input.dy, &mut outputs[1], &mut grad).expect("the shapes fit");
            for (what, memory, expected) in [("y", &memory[0], y), ("dx", &memory[1], dx)] {
                let bits = |numbers: &[T]| numbers.iter().map(|x| x.bits()).collect::<Vec<_>>();
                let around = [vec![garbage; start], vec![garbage; 16]];
                let expected = [&around[0][..], expected, &around[1]].concat();
                assert!(bits(memory) == bits(&expected), "{what} of {ROWS} x {features} {}, {set}, {start}", T::NAME);
            }
        }
    }
}

#[test]
fn bits_are_the_same_wherever_the_arrays_start() {
    check_starts::<f32>();
    check_starts::<f64>();
}

/// Each thread's buffers are then needed by a call while they are lent to another.
#[cfg(feature = "rayon")]
#[test]
fn calls_side_by_side_on_one_pool_have_the_same_bits() {
    use rayon::prelude::*;

    let inputs: Vec<_> = (0..6).map(|shift| Input::<f32>::new(1000 + 100 * shift, 300, shift)).collect();
    let expected: Vec<_> = inputs.iter().map(|input| run(input, plain())).collect();
    for threads in THREADS {
        on_threads(threads, || {
            (0..24).into_par_iter().for_each(|call| {
                let (input, expected) = (&inputs[call % 6], &expected[call % 6]);
                let [x, dy, out] = LAYOUTS[call % LAYOUTS.len()];
                let variant = Variant { set: layernorm::instruction_set(), threads, x, dy, out };
                compare(input, variant, ", one call of many", &run(input, variant), expected);
            });
        });
    }
}
