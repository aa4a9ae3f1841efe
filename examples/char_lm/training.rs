//! A training, update by update.

use std::error::Error;
use std::f64::consts::LN_2;
use std::time::Instant;

use indicatif::ProgressBar;
use layernorm::Recurrent;

use crate::common::adam::Adam;
use crate::common::loss::{self, Score};
use crate::model::Model;
use crate::options::Options;
use crate::plot::Measured;
use crate::text::{Streams, Text};

/// Measurements of a training, evenly spaced.
const MEASUREMENTS: usize = 20;

/// Streams and steps of a measurement: as many as are trained on unless told otherwise, so the buffers fit both.
const MEASURED: (usize, usize) = (32, 64);

/// All updates, or those until the loss is no longer finite.
pub(crate) fn learn<C: Recurrent<f32>>(
    options: &Options,
    text: &Text,
    model: &mut Model<C>,
    bar: &ProgressBar,
    history: &mut Vec<Measured>,
) -> Result<(), Box<dyn Error>> {
    let Options { batch, steps, updates, .. } = *options;
    let mut adam = Adam::new();
    let streams = Streams::new(&text.train, batch);
    let mut chunks = streams.chunks(steps);
    let mut states = model.zero_states(streams.batch());
    let (mut score, mut start, mut characters) = (Score::default(), Instant::now(), 0);

    for update in 1..=updates {
        let chunk = match chunks.next() {
            Some(chunk) => chunk,
            None => {
                // The end of the text: from the beginning, where nothing has been read yet.
                chunks = streams.chunks(steps);
                states = model.zero_states(streams.batch());
                chunks.next().expect("streams have at least a character")
            }
        };
        let (z, dz) = model.forward(&chunk.inputs, &mut states)?;
        score.add(z, &chunk.targets);
        loss::gradient(z, &chunk.targets, dz);
        model.backward(&chunk.inputs)?;
        model.clip(options.clip);
        adam.step(model, options.lr * (updates - update + 1) as f32 / updates as f32)?;
        characters += chunk.targets.len();
        bar.inc(1);

        // The k-th of n measurements is at ⌈k·updates/n⌉: the last one at the end, none twice.
        if update * MEASUREMENTS / updates == (update - 1) * MEASUREMENTS / updates {
            continue;
        }
        let speed = characters as f64 / start.elapsed().as_secs_f64();
        let held_out = measure(model, &text.held_out)?;
        let now = Measured { update, train_bits: score.nll() / LN_2, held_out_bits: held_out.nll() / LN_2 };
        let Measured { train_bits, held_out_bits, .. } = now;
        let wrong = held_out.error();
        bar.suspend(|| {
            println!("{update:7}   {train_bits:10.3}   {held_out_bits:13.3}   {wrong:11.1} %   {speed:12.0}");
        });
        if !(train_bits + held_out_bits).is_finite() {
            return Err(format!("the loss is no longer finite; try an `--lr` below {:e}", options.lr).into());
        }
        history.push(now);
        (score, start, characters) = (Score::default(), Instant::now(), 0);
    }
    Ok(())
}

/// How well the model guesses a text that it has not learnt from.
fn measure<C: Recurrent<f32>>(model: &mut Model<C>, text: &[u8]) -> Result<Score, layernorm::Error> {
    let (batch, steps) = MEASURED;
    let streams = Streams::new(text, batch);
    let (mut states, mut score) = (model.zero_states(streams.batch()), Score::default());
    for chunk in streams.chunks(steps) {
        let (z, _) = model.forward(&chunk.inputs, &mut states)?;
        score.add(z, &chunk.targets);
    }
    Ok(score)
}

#[cfg(test)]
mod tests {
    use layernorm::Lstm;
    use layernorm::ndarray::{Array2, ArrayD};

    use super::*;
    use crate::common::adam::Trained;
    use crate::model::tests::model;

    /// Of five characters, as many as the model knows.
    fn text(length: usize) -> Text {
        let bytes: Vec<u8> = (0..length).map(|i| b"to beet"[i % 7]).collect();
        Text::new(&bytes).unwrap()
    }

    fn parameters(model: &mut Model<Lstm<f32>>) -> Vec<ArrayD<f32>> {
        let mut parameters = Vec::new();
        model.zip(&mut |parameter, _| parameters.push(parameter.to_owned())).unwrap();
        parameters
    }

    fn trained(line: &str, text: &Text) -> (Model<Lstm<f32>>, Vec<Measured>, Result<(), String>) {
        let options = Options::parse(line.split_whitespace().map(Into::into)).unwrap().unwrap();
        let (mut model, mut history) = (model(), Vec::new());
        let outcome = learn(&options, text, &mut model, &ProgressBar::hidden(), &mut history);
        (model, history, outcome.map_err(|error| error.to_string()))
    }

    /// Two streams of 18 characters that are guessed, in chunks of 12 and 6: the third update is at the beginning again.
    #[test]
    fn learning_is_its_updates_one_by_one() {
        let text = text(40);
        assert_eq!(text.train.len(), 38);
        let (mut learnt, history, outcome) = trained("--batch 2 --steps 12 --updates 3 --lr 0.1875 --clip 0.25", &text);
        outcome.unwrap();

        let (mut model, mut adam) = (model(), Adam::new());
        let mut states = model.zero_states(2);
        // Its rate falls by a third of 0.1875 at a time.
        for (update, first, steps, rate) in [(1, 0, 12, 0.1875), (2, 12, 6, 0.125), (3, 0, 12, 0.0625)] {
            if first == 0 {
                states = model.zero_states(2);
            }
            let inputs = Array2::from_shape_fn((steps, 2), |(step, row)| text.train[18 * row + first + step]);
            let targets = Array2::from_shape_fn((steps, 2), |(step, row)| text.train[18 * row + first + step + 1]);
            let targets: Vec<u8> = targets.into_iter().collect();
            let (z, dz) = model.forward(&inputs, &mut states).unwrap();
            let mut score = Score::default();
            score.add(z, &targets);
            loss::gradient(z, &targets, dz);
            model.backward(&inputs).unwrap();
            model.clip(0.25);
            adam.step(&mut model, rate).unwrap();

            let measured = history[update - 1];
            assert_eq!((measured.update, measured.train_bits), (update, score.nll() / LN_2));
            let held_out = measure(&mut model, &text.held_out).unwrap();
            assert_eq!(measured.held_out_bits, held_out.nll() / LN_2, "update {update}");
        }
        assert_eq!(history.len(), 3);
        assert_eq!(parameters(&mut learnt), parameters(&mut model));
    }

    #[test]
    fn measurements_are_evenly_spaced_up_to_the_last_update() {
        let (_, history, outcome) = trained("--batch 2 --steps 4 --updates 30", &text(40));
        outcome.unwrap();
        let updates: Vec<_> = history.iter().map(|measured| measured.update).collect();
        assert_eq!(updates, [2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18, 20, 21, 23, 24, 26, 27, 29, 30]);
    }

    #[test]
    fn a_loss_that_is_not_finite_ends_the_training() {
        let (_, history, outcome) = trained("--batch 2 --steps 4 --updates 30 --lr 1e38", &text(40));
        assert_eq!(outcome.unwrap_err(), "the loss is no longer finite; try an `--lr` below 1e38");
        assert!(history.len() < 20, "{} measurements", history.len());
    }

    /// 32 streams of 100 characters: more than a chunk of a measurement has.
    #[test]
    fn a_measurement_reads_every_stream_to_its_end() {
        let text = text(3370);
        let (mut model, characters) = (model(), &text.train[..3201]);
        let mut expected = Score::default();
        for row in 0..32 {
            let mut states = model.zero_states(1);
            for pair in characters[100 * row..=100 * (row + 1)].windows(2) {
                expected.add(&model.step(pair[0], &mut states).unwrap(), &pair[1..]);
            }
        }
        let got = measure(&mut model, characters).unwrap();
        // Products of other shapes round differently.
        assert!((got.nll() - expected.nll()).abs() < 1e-6, "{} instead of {}", got.nll(), expected.nll());
    }
}
