//! Pinned results, so that a change of the order of additions is noticed.

use layernorm::ndarray::{Array2, ArrayViewD};
use layernorm::{Affine, BatchNorm, Parameters, RmsNorm, WeightNorm};

use crate::{Bits, Input, plain, run};

/// Element, rows, features, and FNV-1a of y, dx and dgain.
///
/// Changing a number here is a `Bits` line in CHANGELOG. The test that fails prints the new table.
#[rustfmt::skip]
const GOLDEN: [(&str, usize, usize, [u64; 3]); 16] = [
    ("f32", 1, 2, [0x55c71efcc5c60a38, 0x15422790b3f92c65, 0x8a301cd2478e1a2c]),
    ("f64", 1, 2, [0x0ecbaa76e28b5e54, 0xc25fc82208226ec5, 0x5d72df7fbcc863ff]),
    ("f32", 7, 3, [0x18d51b8d0c5d7aa9, 0x868c310a0822a877, 0x2f5fa54d29b6a64c]),
    ("f64", 7, 3, [0x70b90505adb00f3f, 0xce18da4147fa1ec8, 0x85a7048ea24ae778]),
    ("f32", 17, 100, [0x69597b7105b049d8, 0x06e08f5619f41fbf, 0xa61fda6e83cb1e15]),
    ("f64", 17, 100, [0xe5808126ba5454ba, 0xb69c4d09de2e0e22, 0x181eb6cb5b184018]),
    ("f32", 130, 768, [0x104c93a301d4a201, 0xee50b35ffdc3c297, 0x5492743d8c891850]),
    ("f64", 130, 768, [0xba314def45e6c23a, 0x8f5d14d323fdb655, 0x6fcd0a367c4d754e]),
    ("f32", 1000, 33, [0xb0c205dd8166b669, 0x85db62f8bed6125c, 0xa46b6b8a5e51d2b3]),
    ("f64", 1000, 33, [0xf6f7d1c783c147ec, 0x5acc2cdba0f43404, 0x16a042389bebb41a]),
    ("f32", 5, 5000, [0xd42806b105f8fc67, 0xa30cec42e4e5f495, 0xd80874359b2312db]),
    ("f64", 5, 5000, [0x060d5cf8eea850a0, 0xc60ef75335356708, 0xf90c333f3ffa556e]),
    ("f32", 6, 40000, [0x202622ed2e56db4e, 0x1e21aff75fa9fed1, 0xf28fb03bd3d90885]),
    ("f64", 6, 40000, [0xa49f6e272a42dafd, 0x4364ba1cb20051a2, 0xd339939a5dfda2b2]),
    ("f32", 3000, 70, [0xf6ffc9cb1e48dd06, 0xb8de8b8425d69e79, 0x4e7dcaa6559c1bcb]),
    ("f64", 3000, 70, [0xada056753b8023de, 0xd3c722f05e08e20d, 0x3bcb3c004f3fde9e]),
];

/// FNV-1a, of the bits with the lowest byte first.
fn hash<T: Bits>(numbers: &[T]) -> u64 {
    let bytes = numbers.iter().flat_map(|x| x.bits().to_le_bytes().into_iter().take(size_of::<T>()));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

fn golden<T: Bits>(rows: usize, features: usize) -> (&'static str, usize, usize, [u64; 3]) {
    let outcome = run(&Input::<T>::new(rows, features, 0), plain());
    let of = |wanted| outcome.iter().find(|(name, _)| *name == wanted).map(|(_, numbers)| hash(numbers));
    (T::NAME, rows, features, ["y", "dx", "dgain"].map(|name| of(name).expect("the layer has a gain")))
}

#[test]
fn the_bits_are_those_of_the_last_release() {
    let shapes = [(1, 2), (7, 3), (17, 100), (130, 768), (1000, 33), (5, 5000), (6, 40_000), (3000, 70)];
    let all =
        shapes.iter().flat_map(|&(rows, features)| [golden::<f32>(rows, features), golden::<f64>(rows, features)]);
    let all: Vec<_> = all.collect();
    let rows: String = all
        .iter()
        .map(|(name, rows, features, [y, dx, dgain])| {
            format!("    (\"{name}\", {rows}, {features}, [{y:#018x}, {dx:#018x}, {dgain:#018x}]),\n")
        })
        .collect();
    let changed = all.iter().zip(&GOLDEN).filter(|(got, expected)| got != expected).map(|(got, _)| got);
    let changed: Vec<_> = changed.map(|(name, rows, features, _)| format!("{name} {rows} x {features}")).collect();
    assert!(all == GOLDEN, "other bits than before for {changed:?}. The table is now (lines: {}):\n{rows}", all.len());
}

/// Element, call, and FNV-1a of what the others write, of four shapes one behind the other.
#[rustfmt::skip]
const OTHERS: [(&str, &str, u64); 12] = [
    ("f32", "RmsNorm", 0xba256d1402c7d0ec),
    ("f32", "BatchNorm", 0x8e96f4c0736c3f1d),
    ("f32", "WeightNorm", 0xa600e79459624584),
    ("f32", "jvp", 0x7defa49b409efe1b),
    ("f32", "double_backward", 0x93dd9b0be4103da5),
    ("f32", "backward_from_normalized", 0x73fc7f064b8e294e),
    ("f64", "RmsNorm", 0x1181a53ba5e1855b),
    ("f64", "BatchNorm", 0x28178cbe5f2f5b89),
    ("f64", "WeightNorm", 0x84823c8caa73f5bb),
    ("f64", "jvp", 0xf7683b21df532f66),
    ("f64", "double_backward", 0x221546b513dc222a),
    ("f64", "backward_from_normalized", 0xc9e86d240d83dfe7),
];

/// A hash of everything that each of the other layers and calls writes.
fn others<T: Bits>() -> [(&'static str, &'static str, u64); 6] {
    let mut written: [Vec<T>; 6] = Default::default();
    for (rows, features) in [(7, 3), (17, 100), (1000, 33), (130, 768)] {
        let Input { layer, eps, x, dy } = Input::<T>::new(rows, features, 0);
        let mut gains = layer.zero_grad();
        layer.visit(|_, parameter| gains.visit_mut(|_, mut gain| gain.assign(&parameter)));
        let keep = |to: &mut Vec<T>, arrays: &[&Array2<T>], grad: Option<&Affine<T>>| {
            arrays.iter().for_each(|array| to.extend(array.iter()));
            grad.into_iter().for_each(|grad| grad.visit(|_, array: ArrayViewD<'_, T>| to.extend(array.iter())));
        };
        let gain = || layer.gain().expect("has one").to_owned();

        let norm = RmsNorm::new(features).with_eps(T::of(eps)).and_then(|norm| norm.with_gain(gain())).expect("fits");
        let ((y, saved), mut grad) = (norm.forward(&x).expect("fits"), norm.zero_grad());
        let dx = norm.backward(&x, &saved, &dy, &mut grad).expect("fits");
        keep(&mut written[0], &[&y, &dx], Some(&grad));

        let tame = Input::<T>::new(rows, features, 0).tame().x;
        let norm = BatchNorm::new(features).with_gain(gain()).expect("fits");
        let ((y, saved), mut grad) = (norm.forward(&tame).expect("fits"), norm.zero_grad());
        let dx = norm.backward(&tame, &saved, &dy, &mut grad).expect("fits");
        keep(&mut written[1], &[&y, &dx], Some(&grad));

        let norm = WeightNorm::of(&dy);
        let ((w, saved), mut grad) = (norm.forward(&x).expect("fits"), norm.zero_grad());
        let dv = norm.backward(&x, &saved, &dy, &mut grad).expect("fits");
        keep(&mut written[2], &[&w, &dv], Some(&grad));

        let ((_, saved), mut grad) = (layer.forward(&x).expect("fits"), layer.zero_grad());
        keep(&mut written[3], &[&layer.jvp(&x, &saved, &dy, &gains).expect("fits")], None);
        let (dx, ddy) = layer.double_backward(&x, &saved, &dy, &tame, &gains, &mut grad).expect("fits");
        keep(&mut written[4], &[&dx, &ddy], Some(&grad));

        let (mut dx, mut grad) = (dy.clone(), layer.zero_grad());
        layer.backward_from_normalized(&tame, &saved, &mut dx, &mut grad).expect("fits");
        keep(&mut written[5], &[&dx], Some(&grad));
    }
    let calls = ["RmsNorm", "BatchNorm", "WeightNorm", "jvp", "double_backward", "backward_from_normalized"];
    let mut hashes = calls.map(|call| (T::NAME, call, 0));
    hashes.iter_mut().zip(&written).for_each(|(hash, written)| hash.2 = self::hash(written));
    hashes
}

#[test]
fn the_bits_of_the_others_are_those_of_the_last_release() {
    let all: Vec<_> = others::<f32>().into_iter().chain(others::<f64>()).collect();
    let rows: String =
        all.iter().map(|(name, call, hash)| format!("    (\"{name}\", \"{call}\", {hash:#018x}),\n")).collect();
    assert!(all == OTHERS, "other bits than before. The table is now (lines: {}):\n{rows}", all.len());
}
