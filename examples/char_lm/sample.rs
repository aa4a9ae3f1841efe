//! Text that the model writes: a character is drawn, and is the next one's input.

use layernorm::ndarray::ArrayView1;
use layernorm::{Recurrent, Result};
use ndarray_rand::rand::{Rng, rngs::StdRng};

use crate::model::Model;

/// That many characters, as if `first` had stood in front of them.
pub(crate) fn write<C: Recurrent<f32>>(
    model: &Model<C>,
    first: u8,
    count: usize,
    temperature: f32,
    rng: &mut StdRng,
) -> Result<Vec<u8>> {
    let (mut states, mut last) = (model.zero_states(1), first);
    let next = |_| {
        let z = model.step(last, &mut states)?;
        last = draw(z.row(0), temperature, rng.random());
        Ok(last)
    };
    (0..count).map(next).collect()
}

/// The character at `chance`, 0 to 1, of the distribution softmax(z/temperature).
///
/// Below 1 the temperature prefers what is likely anyway, above 1 less so.
fn draw(z: ArrayView1<'_, f32>, temperature: f32, chance: f64) -> u8 {
    let top = z.fold(f32::NEG_INFINITY, |top, &z| top.max(z));
    // In f64 a low temperature makes differences large, but never infinite.
    let odds = |z: f32| (f64::from(z - top) / f64::from(temperature)).exp();
    let mut left = chance * z.iter().map(|&z| odds(z)).sum::<f64>();
    let found = z.iter().position(|&z| {
        left -= odds(z);
        left < 0.0
    });
    // Rounding may leave a last bit of `left`.
    let likeliest = || z.iter().position(|&z| z == top).unwrap_or(0);
    found.unwrap_or_else(likeliest) as u8
}

#[cfg(test)]
mod tests {
    use layernorm::ndarray::array;

    use super::*;

    #[test]
    fn characters_come_as_often_as_they_are_likely() {
        let odds = [0.5_f32, 0.125, 0.375];
        let z = array![odds[0].ln() + 90.0, odds[1].ln() + 90.0, odds[2].ln() + 90.0];
        let mut counts = [0; 3];
        (0..800).for_each(|i| counts[draw(z.view(), 1.0, (f64::from(i) + 0.5) / 800.0) as usize] += 1);
        assert_eq!(counts, [400, 100, 300]);
    }

    #[test]
    fn temperature_sharpens_and_flattens() {
        let z = array![1.0, 0.0];
        let zeros =
            |temperature| (0..1000).filter(|&i| draw(z.view(), temperature, f64::from(i) / 1000.0) == 0).count();
        assert_eq!(zeros(1e-30), 1000);
        assert_eq!(zeros(1e30), 500);
        // 1/(1 + e^-2)
        assert_eq!(zeros(0.5), 881);
    }

    #[test]
    fn the_ends_of_chance_have_a_character() {
        let z = array![f32::NEG_INFINITY, 0.0, 0.0, f32::NEG_INFINITY];
        assert_eq!((draw(z.view(), 1.0, 0.0), draw(z.view(), 1.0, 0.75)), (1, 2));
        // What rounding may leave has no character of its own.
        assert_eq!(draw(z.view(), 1.0, 1.0), 1);
        assert_eq!(draw(array![f32::NAN, f32::NAN].view(), 1.0, 0.5), 0);
    }
}
