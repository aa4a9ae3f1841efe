//! Which instruction set runs, and the one order in which lanes are added.
//!
//! A row is cut into vectors of 64 bytes. What is left at its end, fewer elements than a vector, is the last
//! vector: its *last* lanes, the others filled up, so that it can be read with one load that reaches back
//! ([`Tail`]). The lanes of a vector are added in pairs of neighbours:
//!
//! ```text
//! tree(v):  while v has more than one lane:  v = [v₀+v₁, v₂+v₃, …]
//! ```
//!
//! Neighbours, not halves: two rows are folded at once by the same two shuffles, so that the trees of 16 rows
//! cost 15 folds and end as one vector with a row in each lane. The order within a row is the same for one row
//! and for 16.

use std::sync::OnceLock;

use fearless_simd::{Level, Select, Simd, SimdBase, SimdSplit, dispatch};

use crate::number::Number;

/// 64 bytes of elements.
pub(crate) type Vector<S, T> = <T as Number>::Vector<S>;

/// Half of a [`Vector`]: a register of AVX2.
pub(crate) type Half<S, T> = <Vector<S, T> as SimdSplit<S>>::Split;

/// The environment variable that lowers the instruction set.
const VARIABLE: &str = "LAYERNORM_SIMD";

/// Names that [`VARIABLE`] takes.
const NAMES: [&str; 7] = ["avx512", "avx2", "sse4.2", "sse2", "neon", "wasm", "fallback"];

/// The instruction set of this process: the best of this CPU, unless the variable `LAYERNORM_SIMD` lowers it.
pub(crate) fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let Some(wanted) = std::env::var_os(VARIABLE) else { return Level::new() };
        let wanted = wanted.to_string_lossy();
        named(&wanted).unwrap_or_else(|| {
            let names = available().map(name).collect::<Vec<_>>().join(", ");
            eprintln!("layernorm: {VARIABLE}={wanted} is ignored: this CPU and build have {names}");
            Level::new()
        })
    })
}

/// The level of that name, if this CPU and build have it.
pub(crate) fn named(wanted: &str) -> Option<Level> {
    available().find(|&level| name(level) == wanted)
}

/// Every level that this CPU and build have, best first.
pub(crate) fn available() -> impl Iterator<Item = Level> {
    NAMES.iter().filter_map(|wanted| {
        let level = candidate(wanted)?;
        // A build for a newer CPU runs nothing below its baseline.
        (name(level) == *wanted).then_some(level)
    })
}

fn candidate(wanted: &str) -> Option<Level> {
    let best = Level::new();
    match wanted {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "avx512" => best.as_avx512().map(Level::Avx512),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "avx2" => best.as_avx2().map(Level::Avx2),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "sse4.2" => best.as_sse4_2().map(Level::Sse4_2),
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        "sse2" => best.as_sse2().map(Level::Sse2),
        #[cfg(feature = "scalar")]
        "fallback" => Some(Level::fallback()),
        wanted => (name(best) == wanted).then_some(best),
    }
}

/// The name of what runs when this level is asked for.
pub(crate) fn name(level: Level) -> &'static str {
    match dispatch!(level, simd => simd.level()) {
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Avx512(_) => "avx512",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Avx2(_) => "avx2",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Sse4_2(_) => "sse4.2",
        #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
        Level::Sse2(_) => "sse2",
        #[cfg(target_arch = "aarch64")]
        Level::Neon(_) => "neon",
        #[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
        Level::WasmSimd128(_) => "wasm",
        _ => "fallback",
    }
}

/// Whether these are AVX2's registers. What is best done there with rows from memory was found on a Skylake and a Zen 3, what
/// is best on AVX-512 on a Zen 4.
pub(crate) const fn is_avx2<S: Simd>() -> bool {
    S::f32s::LEN == 8
}

/// Whether these are AVX-512's registers.
pub(crate) const fn is_avx512<S: Simd>() -> bool {
    S::f32s::LEN >= 16
}

/// Whether this is AVX2 on one of AMD's, which alone have SSE4a.
#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
pub(crate) fn is_amd_with_avx2(level: Level) -> bool {
    matches!(level, Level::Avx2(_)) && std::is_x86_feature_detected!("sse4a")
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
pub(crate) fn is_amd_with_avx2(_level: Level) -> bool {
    false
}

/// All lanes `x`.
#[inline(always)]
pub(crate) fn splat<S: Simd, T: Number>(simd: S, x: T) -> Vector<S, T> {
    Vector::<S, T>::splat(simd, x)
}

/// Vectors of a row that take turns, so that an addition need not wait for the one before.
pub(crate) const TURNS: usize = 2;

/// Partial sums of a block, one for each turn.
pub(crate) type Turns<V> = [V; TURNS];

/// The full vectors of a block: pairs, whose first is turn 0 and second turn 1, and perhaps one more, of turn 0.
#[derive(Clone, Copy)]
pub(crate) struct Vectors<'a, C> {
    pub(crate) pairs: &'a [[C; TURNS]],
    pub(crate) odd: Option<&'a C>,
}

/// The full vectors of a block.
#[inline(always)]
pub(crate) fn vectors<T: Number>(block: &[T]) -> Vectors<'_, T::Chunk> {
    let (pairs, odd) = T::chunks(block).0.as_chunks();
    Vectors { pairs, odd: odd.first() }
}

/// The vector in a chunk.
#[inline(always)]
pub(crate) fn load<S: Simd, T: Number>(simd: S, chunk: &T::Chunk) -> Vector<S, T> {
    Vector::<S, T>::load_array_ref(simd, chunk)
}

/// Part `h` of a chunk, which is as long as `V`: a [`Vector`], or a [`Half`] where a register is no longer.
#[inline(always)]
pub(crate) fn load_part<S: Simd, T: Number, V: SimdBase<S, Element = T>>(simd: S, chunk: &T::Chunk, h: usize) -> V {
    V::from_slice(simd, &chunk.as_ref()[h * V::LEN..][..V::LEN])
}

/// Stores what [`load_part`] loads.
#[inline(always)]
pub(crate) fn store_part<S: Simd, T: Number, V: SimdBase<S, Element = T>>(part: V, chunk: &mut T::Chunk, h: usize) {
    part.store_slice(&mut chunk.as_mut()[h * V::LEN..][..V::LEN]);
}

/// Vectors of a row from which on its stores are made to meet cache lines: arrays are aligned to 16 bytes more often
/// than not, and a store across two lines costs twice.
const ALIGNED: usize = 9;

/// Elements of a row to be written in front of its first cache line; 0 if it is short, or lies at odd bytes. As a rule the
/// vector there is written twice, the same both times.
#[inline(always)]
pub(crate) fn front<T: Number>(row: &[T]) -> usize {
    if row.len() < ALIGNED * T::LANES {
        0
    } else {
        row.as_ptr().align_offset(size_of::<T::Chunk>()).min(T::LANES) % T::LANES
    }
}

/// [`front`] of the first of some rows that are written in turns. A line that is written in two parts, and other lines in
/// between, took 1.4 times as long there as one that is written at once; a row alone writes both parts one after the other,
/// and gains nothing as a rule.
///
/// `alone`: it does here.
#[inline(always)]
pub(crate) fn front_of<T: Number, const P: usize>(rows: &[&mut [T]; P], alone: bool) -> usize {
    if const { P > 1 } || alone { front(rows[0]) } else { 0 }
}

/// The sums over the lanes of some vectors, which it uses up: that of vector i in lane i, and from there in every lane
/// as many further. Their number is a power of two.
#[inline(always)]
pub(crate) fn tree<S: Simd, V: SimdBase<S>>(simd: S, vectors: &mut [V]) -> V {
    if const { S::f32s::LEN < 16 } && vectors.len() <= FEW {
        return tree_of_few(simd, vectors);
    }
    rest_of_tree(vectors, vectors.len())
}

/// [`tree`] of twice as many vectors, whose neighbours are folded.
#[inline(always)]
pub(crate) fn tree_of_folded<S: Simd, V: SimdBase<S>>(folded: &mut [V]) -> V {
    rest_of_tree(folded, 2 * folded.len())
}

/// What is left of the [`tree`] of `count` vectors.
#[inline(always)]
fn rest_of_tree<S: Simd, V: SimdBase<S>>(vectors: &mut [V], count: usize) -> V {
    let mut left = vectors.len();
    while left > 1 {
        left /= 2;
        for i in 0..left {
            vectors[i] = fold(vectors[2 * i], vectors[2 * i + 1]);
        }
    }
    let mut sums = vectors[0];
    let mut done = count;
    while done < V::LEN {
        sums = fold(sums, sums);
        done *= 2;
    }
    sums
}

/// Vectors that are folded as blocks of 16 bytes where they are wider than registers: that moves less across them.
const FEW: usize = 2;

/// [`tree`] of a few vectors.
#[inline(always)]
fn tree_of_few<S: Simd, V: SimdBase<S>>(simd: S, vectors: &[V]) -> V {
    let width = V::Block::LEN;
    let zero = V::Block::splat(simd, V::Element::default());
    let mut blocks = [zero; 4 * FEW];
    let parts = vectors.iter().flat_map(
        #[inline(always)]
        |vector| vector.as_slice().chunks_exact(width),
    );
    for (block, part) in blocks.iter_mut().zip(parts) {
        *block = V::Block::from_slice(simd, part);
    }
    let (mut left, mut lanes) = (vectors.len() * V::LEN / width, V::LEN);
    while lanes > 1 {
        lanes /= 2;
        if left == 1 {
            blocks[0] = fold(blocks[0], blocks[0]);
            continue;
        }
        left /= 2;
        for i in 0..left {
            blocks[i] = fold(blocks[2 * i], blocks[2 * i + 1]);
        }
    }
    V::block_splat(blocks[0])
}

/// The sum of `R` vectors, a power of two of them: neighbours first. That is the [`tree`] of as many rows, one in each lane,
/// whose lanes are these vectors.
#[inline(always)]
pub(crate) fn pairs<S: Simd, V: SimdBase<S>, const R: usize>(mut terms: [V; R]) -> V {
    let mut left = R;
    while left > 1 {
        left /= 2;
        for i in 0..left {
            terms[i] = terms[2 * i] + terms[2 * i + 1];
        }
    }
    terms[0]
}

/// A step of the [`tree`]: the sums of neighbours in `a`, then of those in `b`.
#[inline(always)]
pub(crate) fn fold<S: Simd, V: SimdBase<S>>(a: V, b: V) -> V {
    a.unzip_low(b) + a.unzip_high(b)
}

/// The elements at the end of a row that do not fill a vector.
#[derive(Clone, Copy)]
pub(crate) struct Tail<S: Simd, T: Number> {
    simd: S,
    /// Elements in front of the tail.
    at: usize,
    /// The turn of the tail.
    pub(crate) turn: usize,
    len: usize,
    fresh: <Vector<S, T> as SimdBase<S>>::Mask,
}

impl<S: Simd, T: Number> Tail<S, T> {
    /// The tail of rows of `len` elements.
    #[inline(always)]
    pub(crate) fn new(simd: S, len: usize) -> Self {
        let rest = len % T::LANES;
        let lane = Vector::<S, T>::from_fn(
            simd,
            #[inline(always)]
            |lane| T::nearest(lane as f64),
        );
        let fresh = lane.simd_ge(splat(simd, T::nearest(((T::LANES - rest) % T::LANES) as f64)));
        Self { simd, at: len - rest, turn: len / T::LANES % TURNS, len, fresh }
    }

    /// Elements of a row.
    #[inline(always)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing behind the last full vector.
    #[inline(always)]
    pub(crate) fn is_empty(&self) -> bool {
        self.at == self.len
    }

    /// The tail of `row` in the last lanes, `fill` in the others.
    #[inline(always)]
    pub(crate) fn load(&self, row: &[T], fill: Vector<S, T>) -> Vector<S, T> {
        self.keep(self.load_all(row), fill)
    }

    /// The lanes of the tail from `lanes`, the others from `fill`; all from `lanes` where the last vector is full.
    #[inline(always)]
    pub(crate) fn keep(&self, lanes: Vector<S, T>, fill: Vector<S, T>) -> Vector<S, T> {
        self.fresh.select(lanes, fill)
    }

    /// The last elements of `row`, a vector of them: those of the tail and, where there are any, some before.
    #[inline(always)]
    pub(crate) fn load_all(&self, row: &[T]) -> Vector<S, T> {
        if let Some(start) = self.len.checked_sub(T::LANES) {
            Vector::<S, T>::from_slice(self.simd, &row[start..self.len])
        } else {
            let mut lanes = splat(self.simd, T::zero());
            lanes.as_mut_slice()[T::LANES - self.len..].copy_from_slice(&row[..self.len]);
            lanes
        }
    }

    /// Stores what [`Tail::load_all`] loads: in front of the tail, `lanes` must hold what is there anyway.
    #[inline(always)]
    pub(crate) fn store_all(&self, lanes: Vector<S, T>, row: &mut [T]) {
        if let Some(start) = self.len.checked_sub(T::LANES) {
            lanes.store_slice(&mut row[start..self.len]);
        } else {
            row[..self.len].copy_from_slice(&lanes.as_slice()[T::LANES - self.len..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_are_named_after_what_runs() {
        let names: Vec<_> = available().map(name).collect();
        assert!(names.contains(&name(Level::new())), "{names:?}");
        for wanted in names {
            assert_eq!(named(wanted).map(name), Some(wanted));
        }
        assert!(named("mmx").is_none());
    }

    #[test]
    fn rows_are_added_in_the_same_order_alone_and_together() {
        fn check<S: Simd>(simd: S) {
            let rows: [_; 16] = std::array::from_fn(|row| {
                Vector::<S, f32>::from_fn(simd, |lane| 1.0 / (1.0 + (row * 16 + lane * 7 % 251) as f32))
            });
            let together = tree(simd, &mut { rows });
            for (row, &lanes) in rows.iter().enumerate() {
                let mut scalar: Vec<f32> = lanes.as_slice().to_vec();
                while scalar.len() > 1 {
                    scalar = scalar.chunks(2).map(|pair| pair[0] + pair[1]).collect();
                }
                let [alone, pair] = [tree(simd, &mut [lanes]), tree(simd, &mut [rows[0], lanes])];
                assert_eq!(together[row].to_bits(), scalar[0].to_bits(), "row {row}");
                assert_eq!(alone[0].to_bits(), scalar[0].to_bits(), "row {row} alone");
                assert_eq!(pair[1].to_bits(), scalar[0].to_bits(), "row {row} with another");
                assert_eq!(pair[0].to_bits(), together[0].to_bits(), "row 0 with row {row}");
            }
        }
        for level in available() {
            dispatch!(level, simd => check(simd));
        }
    }
}
