//! What tests of kernels share.

use fearless_simd::{Level, dispatch};

use crate::kernels::moments::Spread;
use crate::kernels::normalize::{Layer, SavedRows, forward};
use crate::number::Number;
use crate::simd::name;

/// Holds another way to normalize rows to the bits of [`normalize::forward`](forward): y, mean, low, rstd and exponent of rows of
/// all kinds and lengths. `other` returns whether it took them.
pub(crate) fn check_bits<T: Number>(
    level: Level,
    other: impl Fn(&Layer<'_, T>, &[T], &mut [T], &mut Option<SavedRows<'_, T>>) -> bool,
) {
    let kinds: [fn(T, usize) -> T; 8] = [
        |x, _| x,
        |x, j| x + T::nearest(j as f64),
        |x, _| x,
        |x, j| if j == 3 { T::nan() } else { x },
        |x, _| x * T::max_value().sqrt(),
        |_, _| -T::zero(),
        |x, j| if j == 0 { T::infinity() } else { x },
        |x, _| x + T::nearest(1e4),
    ];
    let number = |i: usize| T::nearest((i * 37 % 1009) as f64 / 300.0 - 1.5);
    let (lanes, block) = (T::LANES, T::BLOCK);
    let lengths = [lanes, 2 * lanes, 3 * lanes + 1, 5 * lanes - 1, 16 * lanes, 17 * lanes + 2, 35 * lanes];
    for features in lengths.into_iter().chain([block - 1, block, block + 1, 2 * block + lanes]) {
        let (gain, bias): (Vec<T>, Vec<T>) = (0..features).map(|j| (number(3 * j + 1), number(2 * j))).unzip();
        for (rows, spread) in [
            (kinds.len(), Spread::about_mean(T::nearest(1e-5))),
            (kinds.len() - 1, Spread::about_zero(T::zero())),
            (1, Spread::about_mean(T::zero())),
            (0, Spread::about_mean(T::zero())),
        ] {
            let x: Vec<T> = (0..rows * features).map(|i| kinds[i / features](number(i), i % features)).collect();
            for affine in [true, false] {
                let gain = affine.then_some(&gain[..]);
                let bias = (affine && spread.centred).then_some(&bias[..]);
                let layer = &Layer { features, gain, bias, spread };
                let run = |other_way: bool| {
                    let [mut mean, mut low, mut rstd] = [(); 3].map(|()| vec![T::nan(); rows]);
                    let (mut y, mut exponent) = (vec![T::nan(); x.len()], vec![7; rows]);
                    let (mean_of, low_of, rstd_of) = (&mut mean[..], &mut low[..], &mut rstd[..]);
                    let mut saved =
                        Some(SavedRows { mean: mean_of, low: low_of, rstd: rstd_of, exponent: &mut exponent });
                    if other_way {
                        if !other(layer, &x, &mut y, &mut saved) {
                            return None;
                        }
                    } else {
                        dispatch!(level, simd => forward(simd, layer, &x, &mut y, saved));
                    }
                    let exponent = exponent.into_iter().map(|exponent| T::nearest(exponent.into())).collect();
                    Some([y, mean, low, rstd, exponent])
                };
                let (Some(got), Some(expected)) = (run(true), run(false)) else { continue };
                for (what, (got, expected)) in got.iter().zip(&expected).enumerate() {
                    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                        let same =
                            got.is_nan() && expected.is_nan() || got.integer_decode() == expected.integer_decode();
                        let level = name(level);
                        assert!(
                            same,
                            "array {what}, number {i} of {rows} x {features}, {level}: got {got:e}, expected {expected:e}",
                        );
                    }
                }
            }
        }
    }
}
