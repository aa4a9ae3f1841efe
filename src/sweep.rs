//! A kernel taken over all rows of some arrays.
//!
//! ```text
//! tasks of rows, in parallel:                 without column sums: about 32 KiB, or 8 rows; with them: a block
//!     chains of 64 rows:                      only with column sums
//!         steps of rows that fit a tile:      all at once, if no array needs a tile
//!             gather what is strided;   kernel;   scatter
//!         the block's sums += the chain's     by the kernel, if it takes a block at once
//! ```
//!
//! What a task writes is its own, but for strided outputs, which the tasks fill one after the other.

use std::array;
use std::ops::Range;

use fearless_simd::Level;

use crate::arrays::{Input, Part, RowShape};
use crate::element::Element;
use crate::kernels::columns::{CHAIN, Gradient, rows_per_block};
use crate::kernels::normalize::SavedRows;
use crate::kernels::passes::Columns;
use crate::parallel::{self, Job, steps};

/// A few numbers a row, to be filled.
pub(crate) trait PerRow: Send + Sized {
    /// Those of the first `rows` rows, and of the others.
    fn split(self, rows: usize) -> (Self, Self);

    /// Takes those of the first `rows` rows off.
    fn take_first(&mut self, rows: usize) -> Self;
}

/// None.
impl PerRow for () {
    fn split(self, _rows: usize) -> (Self, Self) {
        ((), ())
    }

    fn take_first(&mut self, _rows: usize) -> Self {}
}

impl<T: Element> PerRow for &mut [T] {
    fn split(self, rows: usize) -> (Self, Self) {
        self.split_at_mut(rows)
    }

    fn take_first(&mut self, rows: usize) -> Self {
        self.split_off_mut(..rows).expect("a number for each row")
    }
}

impl<T: Element> PerRow for Option<SavedRows<'_, T>> {
    fn split(self, rows: usize) -> (Self, Self) {
        self.map(|saved| saved.split(rows)).unzip()
    }

    fn take_first(&mut self, rows: usize) -> Self {
        self.as_mut().map(|saved| saved.take_first(rows))
    }
}

/// Some rows of every array of a sweep.
#[derive(Debug)]
pub(crate) struct Step<'a, T: Element, N, const I: usize, const O: usize, const W: usize> {
    pub(crate) rows: Range<usize>,
    /// Of an absent one, nothing.
    pub(crate) inputs: [&'a [T]; I],
    pub(crate) outputs: [&'a mut [T]; O],
    /// Room for as many rows, whatever is in it.
    pub(crate) scratch: [&'a mut [T]; W],
    pub(crate) per_row: N,
    /// Empty in a sweep without column sums.
    pub(crate) columns: Columns<'a, T>,
    /// What the kernel adds each chain of its rows to, if it has whole ones and [does](Sweep::ending_chains).
    pub(crate) block: Option<Columns<'a, T::Wide>>,
}

/// A kernel and its arrays: `I` to be read, `O` to be written, and `W` tiles to work in.
pub(crate) struct Sweep<'a, 'v, T: Element, F, N, const I: usize, const O: usize, const W: usize> {
    shape: RowShape,
    rows: Range<usize>,
    inputs: [&'a Input<'v, T>; I],
    outputs: [Part<'a, 'v, T>; O],
    per_row: N,
    /// Rows of a task without column sums.
    task: usize,
    /// See the methods of these names.
    in_place: bool,
    front: usize,
    ends_chains: bool,
    sums: ColumnSums<'a, T>,
    kernel: &'a F,
}

/// Where the column sums go.
enum ColumnSums<'a, T: Element> {
    None,
    /// Of the only chain.
    Gradient {
        level: Level,
        grad: Gradient<'a, T>,
    },
    /// Those of each block of that many rows, one behind the other; `in_order`, the total and those of one block.
    Blocks {
        level: Level,
        blocks: &'a mut [T::Wide],
        rows: usize,
        in_order: bool,
    },
}

/// Bytes of a tile, about: small beside L2.
const TILE: usize = 64 * 1024;

/// Bytes of one array in a task without column sums, about; of long rows, a group of them. What a thread takes last is a task.
const TASK: usize = 32 * 1024;

/// Rows that most kernels take together: tasks have whole groups of them, if there are enough.
const GROUP: usize = 8;

impl<'a, 'v, T, F, N, const I: usize, const O: usize, const W: usize> Sweep<'a, 'v, T, F, N, I, O, W>
where
    T: Element,
    N: PerRow,
    F: Fn(Step<'_, T, N, I, O, W>) + Sync,
{
    /// `per_row` are to be filled as well.
    pub(crate) fn new(
        shape: RowShape,
        rows: usize,
        inputs: [&'a Input<'v, T>; I],
        outputs: [Part<'a, 'v, T>; O],
        per_row: N,
        kernel: &'a F,
    ) -> Self {
        let task = (TASK / size_of::<T>() / shape.features).max(1).next_multiple_of(GROUP);
        let (in_place, front, ends_chains, sums) = (false, 0, false, ColumnSums::None);
        let rows = 0..rows;
        Self { shape, rows, inputs, outputs, per_row, task, in_place, front, ends_chains, sums, kernel }
    }

    /// With something in the first output that the kernel wants to see.
    pub(crate) fn in_place(self) -> Self {
        Self { in_place: true, ..self }
    }

    /// With column sums that have so many elements in front of their first cache line.
    pub(crate) fn with_front(self, front: usize) -> Self {
        Self { front, ..self }
    }

    /// Where no array needs a tile, the kernel takes the rows of a whole block, and ends their chains itself: each time that
    /// it is left, it takes 0.7 µs until as much is on its way from memory again.
    pub(crate) fn ending_chains(self) -> Self {
        Self { ends_chains: true, ..self }
    }

    /// Runs the kernel over all rows.
    pub(crate) fn run(mut self) {
        let bytes = self.bytes();
        if parallel::pays(bytes) {
            // As many tasks of one size for each thread.
            let each = self.rows.len().div_ceil(parallel::threads());
            self.task = each.div_ceil(each.div_ceil(self.task));
        }
        parallel::run(self, bytes);
    }

    /// Runs the kernel over all rows, and adds its column sums to `grad`.
    pub(crate) fn sum(self, level: Level, grad: Gradient<'_, T>) {
        if self.rows.len() <= CHAIN {
            // One chain: nothing wider is needed.
            return Job::run(Sweep { sums: ColumnSums::Gradient { level, grad }, ..self });
        }
        self.totals(level, |totals| grad.add_wide(level, totals));
    }

    /// Runs the kernel over all rows. Its column sums, the first and then the second of each column, are for `f`.
    pub(crate) fn totals(self, level: Level, f: impl FnOnce(&mut [T::Wide])) {
        let (all, features) = (self.rows.len(), self.shape.features);
        let (rows, bytes) = (rows_per_block(all, features), self.bytes());
        // Where one thread does all, a block joins the total as soon as it is there, and both stay in a cache.
        let in_order = !parallel::pays(bytes);
        let room = if in_order { 2 } else { all.div_ceil(rows) };
        parallel::lend_wide::<T, _>(room * 2 * features, |blocks| {
            let sums = ColumnSums::Blocks { level, blocks, rows, in_order };
            parallel::run(Sweep { sums, ..self }, bytes);
            let (totals, others) = blocks.split_at_mut(2 * features);
            if !in_order {
                others.chunks_exact(2 * features).for_each(|block| T::join_block(level, totals, block));
            }
            f(totals);
        });
    }

    /// Rows of a task.
    fn task(&self) -> usize {
        match self.sums {
            ColumnSums::None => self.task,
            ColumnSums::Gradient { .. } => CHAIN,
            ColumnSums::Blocks { rows, .. } => rows,
        }
    }

    /// Bytes that all of it touches.
    fn bytes(&self) -> usize {
        let read = self.inputs.iter().filter(|input| !matches!(input, Input::Absent)).count();
        (read + O + usize::from(self.in_place)) * self.rows.len() * self.shape.features * size_of::<T>()
    }
}

impl<T, F, N, const I: usize, const O: usize, const W: usize> Job for Sweep<'_, '_, T, F, N, I, O, W>
where
    T: Element,
    N: PerRow,
    F: Fn(Step<'_, T, N, I, O, W>) + Sync,
{
    fn pieces(&self) -> usize {
        self.rows.len().div_ceil(self.task())
    }

    fn split(self, pieces: usize) -> (Self, Self) {
        let (rows, features) = (pieces * self.task(), self.shape.features);
        let middle = self.rows.start + rows;
        let (outputs, outputs_second) = unzip(self.outputs.map(|part| part.split(rows * features)));
        let (per_row, per_row_second) = self.per_row.split(rows);
        let (sums, sums_second) = self.sums.split(pieces * 2 * features);
        (
            Self { rows: self.rows.start..middle, outputs, per_row, sums, ..self },
            Self {
                rows: middle..self.rows.end,
                outputs: outputs_second,
                per_row: per_row_second,
                sums: sums_second,
                ..self
            },
        )
    }

    fn run(mut self) {
        let features = self.shape.features;
        let strided = self.inputs.iter().any(|input| input.is_strided()) || self.outputs.iter().any(Part::is_strided);
        let all = self.rows.len().max(1);
        let step = if strided || W > 0 { (TILE / size_of::<T>() / features).clamp(1, CHAIN) } else { all };
        let (task, chain, line) = match self.sums {
            ColumnSums::None => (all, all, 0),
            _ => (self.task(), CHAIN, whole_lines::<T>(features)),
        };
        let tile = if strided { step * features } else { 0 };
        let room = if W > 0 { step * features } else { 0 };
        let before = if self.front > 0 { T::LANES - self.front } else { 0 };
        parallel::lend(before + 2 * line + (I + O) * tile + W * room, |buffer: &mut [T]| {
            let (columns, buffer) = buffer[before..].split_at_mut(2 * line);
            columns.fill(T::zero());
            let mut columns = columns_in(columns, features.min(line));
            let (inputs, buffer) = cut(buffer, tile);
            let (outputs, buffer) = cut(buffer, tile);
            let mut tiles = Tiles { inputs, outputs, scratch: cut(buffer, room).0 };
            let mut sums = std::mem::replace(&mut self.sums, ColumnSums::None);
            for (index, task) in steps(self.rows.clone(), task).enumerate() {
                let mut block = sums.block(index, features);
                if self.ends_chains && step == all && block.is_some() {
                    self.step(task, &mut tiles, &mut columns, block.map(|(_, block)| block));
                } else {
                    for chain in steps(task, chain) {
                        for rows in steps(chain, step) {
                            self.step(rows, &mut tiles, &mut columns, None);
                        }
                        if let Some((level, block)) = &mut block {
                            T::end_chain(*level, columns.dgain, block.dgain);
                            T::end_chain(*level, columns.dbias, block.dbias);
                        }
                    }
                }
                if let ColumnSums::Blocks { level, blocks, in_order: true, .. } = &mut sums
                    && index > 0
                {
                    let (total, block) = blocks.split_at_mut(2 * features);
                    T::join_block(*level, total, block);
                }
            }
            if let ColumnSums::Gradient { level, grad } = sums {
                grad.add(level, columns.dgain, columns.dbias);
            }
        });
    }
}

impl<T, F, N, const I: usize, const O: usize, const W: usize> Sweep<'_, '_, T, F, N, I, O, W>
where
    T: Element,
    N: PerRow,
    F: Fn(Step<'_, T, N, I, O, W>) + Sync,
{
    /// The kernel on some rows.
    fn step(
        &mut self,
        rows: Range<usize>,
        tiles: &mut Tiles<'_, T, I, O, W>,
        columns: &mut Columns<'_, T>,
        block: Option<Columns<'_, T::Wide>>,
    ) {
        let (shape, first) = (self.shape, self.rows.start);
        let elements = rows.len() * shape.features;
        if self.in_place {
            self.outputs[0].gather(shape, rows.clone(), tiles.outputs[0]);
        }
        let mut inputs = self.inputs.iter().zip(&mut tiles.inputs);
        let inputs = array::from_fn(|_| {
            let (input, tile) = inputs.next().expect("a tile for each input");
            input.rows(shape, rows.clone(), tile)
        });
        let mut outputs = self.outputs.iter_mut().zip(&mut tiles.outputs);
        let outputs = array::from_fn(|_| {
            let (part, tile) = outputs.next().expect("a tile for each output");
            part.rows(shape, rows.start - first..rows.end - first, tile)
        });
        let scratch = tiles.scratch.each_mut().map(|tile| &mut tile[..elements]);
        let per_row = self.per_row.take_first(rows.len());
        let columns = Columns { dgain: &mut *columns.dgain, dbias: &mut *columns.dbias };
        (self.kernel)(Step { rows: rows.clone(), inputs, outputs, scratch, per_row, columns, block });
        for (part, tile) in self.outputs.iter().zip(&tiles.outputs) {
            part.scatter(shape, rows.clone(), tile);
        }
    }
}

impl<T: Element> ColumnSums<'_, T> {
    /// Where the chains of block `index` go, all 0.
    fn block(&mut self, index: usize, features: usize) -> Option<(Level, Columns<'_, T::Wide>)> {
        let Self::Blocks { level, blocks, in_order, .. } = self else { return None };
        let place = if *in_order { index.min(1) } else { index };
        let sums = &mut blocks[place * 2 * features..][..2 * features];
        sums.fill(T::Wide::default());
        Some((*level, columns_in(sums, features)))
    }

    /// Those of the first blocks, and of the others.
    fn split(self, sums: usize) -> (Self, Self) {
        match self {
            Self::None => (Self::None, Self::None),
            Self::Gradient { .. } => unreachable!("one chain is one task"),
            Self::Blocks { level, blocks, rows, in_order } => {
                let (first, second) = blocks.split_at_mut(sums);
                (
                    Self::Blocks { level, blocks: first, rows, in_order },
                    Self::Blocks { level, blocks: second, rows, in_order },
                )
            }
        }
    }
}

/// The kernel on all rows of arrays that need no tile, as one chain, without the cost of a sweep: that is felt where there are
/// few and short ones.
pub(crate) fn one_chain<T: Element>(
    level: Level,
    rows: usize,
    features: usize,
    grad: Gradient<'_, T>,
    kernel: impl FnOnce(&mut Columns<'_, T>),
) {
    parallel::lend(2 * whole_lines::<T>(features), |buffer: &mut [T]| {
        if rows > 1 {
            buffer.fill(T::zero());
            let mut columns = columns_in(buffer, features);
            kernel(&mut columns);
            return grad.add(level, columns.dgain, columns.dbias);
        }
        // The sum of one term is that term; but a chain starts from 0, and makes 0 of two −0.
        fn ready<'a, T: Element>(level: Level, gradient: Option<&'a mut [T]>, room: &'a mut [T]) -> &'a mut [T] {
            if let Some(gradient) = gradient {
                T::add_zero(level, gradient);
                gradient
            } else {
                room.fill(T::zero());
                room
            }
        }
        let Columns { dgain, dbias } = columns_in(buffer, features);
        kernel(&mut Columns { dgain: ready(level, grad.gain, dgain), dbias: ready(level, grad.bias, dbias) });
    });
}

/// Room for a sum of each column, up to the end of a cache line: dbias starts at one then, as dgain does.
fn whole_lines<T: Element>(features: usize) -> usize {
    features.next_multiple_of(T::LANES)
}

/// The two halves of a buffer, as far as they are wanted.
fn columns_in<T>(buffer: &mut [T], wanted: usize) -> Columns<'_, T> {
    let (dgain, dbias) = buffer.split_at_mut(buffer.len() / 2);
    Columns { dgain: &mut dgain[..wanted], dbias: &mut dbias[..wanted] }
}

/// The buffers of a thread.
struct Tiles<'a, T, const I: usize, const O: usize, const W: usize> {
    inputs: [&'a mut [T]; I],
    outputs: [&'a mut [T]; O],
    scratch: [&'a mut [T]; W],
}

/// `N` parts of `len` elements, and what is left.
fn cut<T, const N: usize>(mut buffer: &mut [T], len: usize) -> ([&mut [T]; N], &mut [T]) {
    let parts = array::from_fn(|_| buffer.split_off_mut(..len).expect("room for all parts"));
    (parts, buffer)
}

/// The firsts, and the seconds.
fn unzip<A, B, const N: usize>(pairs: [(A, B); N]) -> ([A; N], [B; N]) {
    let mut seconds = [const { None }; N];
    let mut place = seconds.iter_mut();
    let firsts = pairs.map(|(first, second)| {
        *place.next().expect("a place for each") = Some(second);
        first
    });
    (firsts, seconds.map(|second| second.expect("filled a line ago")))
}
