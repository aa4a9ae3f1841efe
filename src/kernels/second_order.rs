//! Along a direction: how y changes, and how the gradients do.
//!
//! ```text
//! each row:                                     (docs/second_order.md; letters as there)
//!     d = (x − mean) − low     x̂ = d·rstd     q = gain·dy     u = G·dy
//!     first pass:    Σt and Σ t·(x − mean) of t = X, q, u;    Σ X·q
//!     P(t) = (t·rstd − k) − d·m                 k = rstd·Σt/n,   m = rstd³·Σ(t·d)/n
//!     second pass:
//!         ẏ     = gain·P(X) + (G·x̂ + B)         the tangent of y, and the gradient by dy
//!         dgain += dy·P(X)
//!         dx    = P(u) − (c₁·P(X) + c₂·P(q)) − x̂·c₃
//! ```
//!
//! A row that had to be rescaled by 2^-e has d and rstd in units of the rescaled row: P(t) is multiplied by 2^-e, a term with
//! a c by 2^-2e. P(X) and every such term have X in them once: if e > 0, X is multiplied by 2^-e before it is summed, P(X) by
//! nothing and those terms by 2^-e. (The sums of a direction as large as a row of 1e37 would be infinite.) Rows are taken one
//! by one, each sum in one vector: there are seven.

use std::ops::Range;

use fearless_simd::{Simd, SimdBase};
use fearless_simd_macros::simd;

use crate::kernels::blocks::{blocks, joined, map, sums, update};
use crate::kernels::kept::{KeptRows, Row, Scale};
use crate::kernels::normalize::{Lanes, Layer};
use crate::kernels::rescale::rescale;
use crate::number::{LARGEST_BLOCK, Number, Wide};
use crate::simd::{Vector, splat};

/// X of some rows, G and B: how x, gain and bias move.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Direction<'a, T> {
    pub(crate) x: &'a [T],
    /// Nothing in a layer without gain.
    pub(crate) gain: Option<&'a [T]>,
    /// Nothing in a layer without bias.
    pub(crate) bias: Option<&'a [T]>,
}

/// The features of a block, of all that has features.
#[derive(Clone, Copy)]
struct Block<'a, T> {
    gain: &'a [T],
    /// X
    along_x: &'a [T],
    /// G
    along_gain: &'a [T],
    /// B
    along_bias: &'a [T],
}

impl<'a, T: Number> Block<'a, T> {
    /// Of the row that starts at element `row` of the direction.
    #[inline(always)]
    fn new(layer: &Layer<'a, T>, direction: &Direction<'a, T>, row: usize, features: &Range<usize>) -> Self {
        let zeros = &T::ZEROS[..features.len()];
        Self {
            gain: layer.gain(features.start, features.len()),
            along_x: &direction.x[row + features.start..row + features.end],
            along_gain: direction.gain.map_or(zeros, |gain| &gain[features.clone()]),
            along_bias: direction.bias.map_or(zeros, |bias| &bias[features.clone()]),
        }
    }

    /// Calls `f` with x and this in the units in which a rescaled row is summed.
    #[cold]
    #[inline(never)]
    fn with_rescaled<R>(&self, row: &Row<T>, x: &[T], f: impl FnOnce(&Row<T>, &[T], &Block<'_, T>) -> R) -> R {
        let mut scaled = [T::zero(); LARGEST_BLOCK];
        let along_x = if row.exponent > 0 {
            let scaled = &mut scaled[..x.len()];
            rescale(self.along_x, row.exponent, scaled);
            scaled
        } else {
            self.along_x
        };
        row.with_rescaled(x, |row, x| f(row, x, &Block { along_x, ..*self }))
    }
}

/// What P(X) is multiplied by: 2^-e, if X was not.
#[inline(always)]
fn scale_along<S: Simd, T: Number>(simd: S, row: &Row<T>) -> Scale<Vector<S, T>> {
    Row { exponent: row.exponent.min(0), ..*row }.scale(simd)
}

/// ẏ of rows side by side in `x`, `direction.x` and `y_tangent`.
#[simd]
pub(crate) fn jvp<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: KeptRows<'_, T>,
    x: &[T],
    direction: Direction<'_, T>,
    y_tangent: &mut [T],
) {
    let features = layer.features;
    for i in 0..kept.mean.len() {
        let at = i * features;
        let row = Row::rescaled(simd, layer, &kept, i, &x[at..at + features]);
        let mut sums = [T::Wide::default(); 2];
        for block in blocks::<T>(features) {
            let x = &x[at + block.start..at + block.end];
            sums = joined(sums, sums_along(simd, &row, x, &Block::new(layer, &direction, at, &block)));
        }
        let (p, scale) = (Projection::new(&row, layer, sums), scale_along(simd, &row));
        for block in blocks::<T>(features) {
            let (x, y) = (&x[at + block.start..at + block.end], &mut y_tangent[at + block.start..at + block.end]);
            write_tangent(simd, &row, scale, p, x, &Block::new(layer, &direction, at, &block), y);
        }
    }
}

/// What a row of [`double_backward`] reads beside x, and writes.
struct Outputs<'a, T> {
    dx: &'a mut [T],
    ddy: &'a mut [T],
    dgain: &'a mut [T],
}

/// The gradients of a loss of dx, dgain and dbias whose gradients by these are `direction`: by x, by dy, and, added to
/// `dgain`, by the gain. Rows are side by side in `x`, `dy`, `direction.x`, `dx` and `ddy`.
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
pub(crate) fn double_backward<S: Simd, T: Number>(
    simd: S,
    layer: &Layer<'_, T>,
    kept: KeptRows<'_, T>,
    x: &[T],
    dy: &[T],
    direction: Direction<'_, T>,
    dx: &mut [T],
    ddy: &mut [T],
    dgain: &mut [T],
) {
    let features = layer.features;
    for i in 0..kept.mean.len() {
        let at = i * features;
        let row = Row::rescaled(simd, layer, &kept, i, &x[at..at + features]);
        let mut sums = [T::Wide::default(); 7];
        for block in blocks::<T>(features) {
            let (x, dy) = (&x[at + block.start..at + block.end], &dy[at + block.start..at + block.end]);
            sums = joined(sums, sums_of_all(simd, &row, x, dy, &Block::new(layer, &direction, at, &block)));
        }
        let coefficients = Coefficients::new(&row, layer, sums);
        let scales = [scale_along(simd, &row), row.scale(simd)];
        for block in blocks::<T>(features) {
            let of_row = at + block.start..at + block.end;
            let (x, dy) = (&x[of_row.clone()], &dy[of_row.clone()]);
            let (dx, ddy) = (&mut dx[of_row.clone()], &mut ddy[of_row]);
            let outputs = Outputs { dx, ddy, dgain: &mut dgain[block.clone()] };
            write_all(simd, &row, scales, &coefficients, x, dy, &Block::new(layer, &direction, at, &block), outputs);
        }
    }
}

/// ΣX and Σ X·(x − mean) of a block.
#[simd]
fn sums_along<S: Simd, T: Number>(simd: S, row: &Row<T>, x: &[T], block: &Block<'_, T>) -> [T::Wide; 2] {
    if row.exponent != 0 {
        return block.with_rescaled(row, x, |row, x, block| sums_along(simd, row, x, block));
    }
    let Lanes { mean, .. } = Lanes::of_row(simd, row);
    sums::<S, T, 2, 2>(
        simd,
        [x, block.along_x],
        [mean, splat(simd, T::zero())],
        #[inline(always)]
        |[x, along]| [along, along * (x - mean)],
    )
}

/// Σt and Σ t·(x − mean) of t = X, q, u, and Σ X·q of a block.
#[simd]
fn sums_of_all<S: Simd, T: Number>(simd: S, row: &Row<T>, x: &[T], dy: &[T], block: &Block<'_, T>) -> [T::Wide; 7] {
    if row.exponent != 0 {
        return block.with_rescaled(row, x, |row, x, block| sums_of_all(simd, row, x, dy, block));
    }
    let (Lanes { mean, .. }, zero) = (Lanes::of_row(simd, row), splat(simd, T::zero()));
    sums::<S, T, 5, 7>(
        simd,
        [x, dy, block.along_x, block.gain, block.along_gain],
        [mean, zero, zero, zero, zero],
        #[inline(always)]
        |[x, dy, along, gain, along_gain]| {
            let (d, q, u) = (x - mean, gain * dy, along_gain * dy);
            [along, along * d, q, q * d, u, u * d, along * q]
        },
    )
}

/// k and m of P(t).
#[derive(Clone, Copy, Debug)]
struct Projection<V> {
    k: V,
    m: V,
}

impl<T: Number> Projection<T> {
    /// From Σt and Σ t·(x − mean).
    fn new(row: &Row<T>, layer: &Layer<'_, T>, [sum, with_d]: [T::Wide; 2]) -> Self {
        let (rstd, n) = (row.rstd.into(), layer.features as f64);
        let k = if layer.spread.centred { rstd * (sum.value() / n) } else { 0.0 };
        let d = with_d.value() - row.low.into() * sum.value();
        Self { k: T::nearest(k), m: T::nearest(rstd * rstd * (rstd * (d / n))) }
    }

    #[inline(always)]
    fn splat<S: Simd>(self, simd: S) -> Projection<Vector<S, T>> {
        Projection { k: splat(simd, self.k), m: splat(simd, self.m) }
    }
}

impl<V: Copy> Projection<V> {
    /// P(t), from t·rstd.
    #[inline(always)]
    fn of<S: Simd>(&self, t: V, d: V) -> V
    where
        V: SimdBase<S>,
    {
        (t - self.k) - d * self.m
    }
}

/// What the second pass of [`double_backward`] needs to know of a row.
struct Coefficients<T> {
    x: Projection<T>,
    q: Projection<T>,
    u: Projection<T>,
    /// c₁, c₂, c₃
    c: [T; 3],
}

impl<T: Number> Coefficients<T> {
    fn new(row: &Row<T>, layer: &Layer<'_, T>, [x, xd, q, qd, u, ud, xq]: [T::Wide; 7]) -> Self {
        let (rstd, n): (f64, _) = (row.rstd.into(), layer.features as f64);
        let mean_with_xhat =
            |sum: T::Wide, with_d: T::Wide| rstd * ((with_d.value() - row.low.into() * sum.value()) / n);
        let (alpha, gamma) = (mean_with_xhat(x, xd), mean_with_xhat(q, qd));
        let product_of_means = if layer.spread.centred { x.value() / n * (q.value() / n) } else { 0.0 };
        let c = xq.value() / n - product_of_means - alpha * gamma;
        Self {
            x: Projection::new(row, layer, [x, xd]),
            q: Projection::new(row, layer, [q, qd]),
            u: Projection::new(row, layer, [u, ud]),
            c: [rstd * gamma, rstd * alpha, rstd * (rstd * c)].map(T::nearest),
        }
    }
}

/// What both second passes know of a row in every lane.
#[derive(Clone, Copy)]
struct Tangent<V> {
    row: Lanes<V>,
    p: Projection<V>,
    scale: Scale<V>,
}

impl<V: Copy> Tangent<V> {
    #[inline(always)]
    fn new<S: Simd, T: Number<Vector<S> = V>>(simd: S, row: &Row<T>, scale: Scale<V>, p: Projection<T>) -> Self
    where
        V: SimdBase<S, Element = T>,
    {
        Self { row: Lanes::of_row(simd, row), p: p.splat(simd), scale }
    }

    /// d and P(X).
    #[inline(always)]
    fn project<S: Simd>(&self, x: V, along_x: V) -> (V, V)
    where
        V: SimdBase<S>,
    {
        let d = (x - self.row.mean) - self.row.low;
        (d, self.p.of(along_x * self.row.rstd, d))
    }

    /// gain·P(X) + (G·x̂ + B)
    #[inline(always)]
    fn of_y<S: Simd>(&self, [x, along_x, gain, along_gain, along_bias]: [V; 5]) -> V
    where
        V: SimdBase<S>,
    {
        let (d, p) = self.project(x, along_x);
        gain * self.scale.times(p) + (along_gain * (d * self.row.rstd) + along_bias)
    }
}

/// ẏ of a block; `scale` is [`scale_along`].
#[simd]
fn write_tangent<S: Simd, T: Number>(
    simd: S,
    row: &Row<T>,
    scale: Scale<Vector<S, T>>,
    p: Projection<T>,
    x: &[T],
    block: &Block<'_, T>,
    y_tangent: &mut [T],
) {
    if row.exponent != 0 {
        return block.with_rescaled(row, x, |row, x, block| write_tangent(simd, row, scale, p, x, block, y_tangent));
    }
    let tangent = Tangent::new(simd, row, scale, p);
    map(
        simd,
        [x, block.along_x, block.gain, block.along_gain, block.along_bias],
        y_tangent,
        #[inline(always)]
        |values| tangent.of_y(values),
    );
}

/// The outputs of a block; the second scale is 2^-e, the first [`scale_along`].
#[simd]
#[expect(clippy::too_many_arguments, reason = "a kernel's arrays")]
fn write_all<S: Simd, T: Number>(
    simd: S,
    row: &Row<T>,
    [scale_along, scale]: [Scale<Vector<S, T>>; 2],
    coefficients: &Coefficients<T>,
    x: &[T],
    dy: &[T],
    block: &Block<'_, T>,
    outputs: Outputs<'_, T>,
) {
    if row.exponent != 0 {
        return block.with_rescaled(row, x, |row, x, block| {
            write_all(simd, row, [scale_along, scale], coefficients, x, dy, block, outputs);
        });
    }
    let &Coefficients { x: along, q, u, c } = coefficients;
    let tangent = Tangent::new(simd, row, scale_along, along);
    let (rstd, q, u, c) = (
        tangent.row.rstd,
        q.splat(simd),
        u.splat(simd),
        c.map(
            #[inline(always)]
            |c| splat(simd, c),
        ),
    );
    let Outputs { dx, ddy, dgain } = outputs;
    map(
        simd,
        [x, block.along_x, block.gain, block.along_gain, block.along_bias],
        ddy,
        #[inline(always)]
        |values| tangent.of_y(values),
    );
    map(
        simd,
        [x, block.along_x, block.gain, block.along_gain, dy],
        dx,
        #[inline(always)]
        |[x, along_x, gain, along_gain, dy]| {
            let (d, p) = tangent.project(x, along_x);
            let (p_q, p_u) = (q.of(gain * dy * rstd, d), u.of(along_gain * dy * rstd, d));
            let twice = (c[0] * p + c[1] * p_q) + d * rstd * c[2];
            scale.times(p_u - scale_along.times(twice))
        },
    );
    update(
        simd,
        dgain,
        [x, block.along_x, dy],
        #[inline(always)]
        |dgain, [x, along_x, dy]| dgain + dy * scale_along.times(tangent.project(x, along_x).1),
    );
}
