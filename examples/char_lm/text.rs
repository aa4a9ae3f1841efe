//! Text as small numbers, and cut into streams for a batch.

use std::error::Error;
use std::fs;
use std::path::Path;

use layernorm::ndarray::Array2;

use crate::common::gzip;

/// One of so many characters is held out, at the end of the text.
const HELD_OUT: usize = 20;

/// A text whose characters are their numbers in its alphabet.
#[derive(Debug)]
pub(crate) struct Text {
    /// The bytes that occur, in ascending order: a character is a byte.
    alphabet: Vec<u8>,
    pub(crate) train: Vec<u8>,
    /// What the model is measured by, and never learns from.
    pub(crate) held_out: Vec<u8>,
}

impl Text {
    /// Eight plays of Shakespeare; see `examples/data/README.md`.
    pub(crate) fn embedded() -> Result<Self, Box<dyn Error>> {
        let file = include_bytes!("../data/shakespeare.txt.gz");
        Self::read(file).map_err(|problem| format!("shakespeare.txt.gz: {problem}").into())
    }

    /// Any file, gzipped or not.
    pub(crate) fn open(path: &Path) -> Result<Self, Box<dyn Error>> {
        let bytes = fs::read(path).map_err(|error| error.to_string());
        bytes.and_then(|bytes| Self::read(&bytes)).map_err(|problem| format!("{}: {problem}", path.display()).into())
    }

    fn read(file: &[u8]) -> Result<Self, String> {
        Self::new(&gzip::unpacked(file)?)
    }

    /// The characters themselves.
    pub(crate) fn new(bytes: &[u8]) -> Result<Self, String> {
        let mut numbers = [None; 256];
        bytes.iter().for_each(|&byte| numbers[byte as usize] = Some(0));
        let alphabet: Vec<u8> = (0..=255).filter(|&byte| numbers[byte as usize].is_some()).collect();
        (0..=255).zip(&alphabet).for_each(|(number, &byte)| numbers[byte as usize] = Some(number));
        let mut train: Vec<u8> = bytes.iter().filter_map(|&byte| numbers[byte as usize]).collect();
        let held_out = train.split_off(train.len() - train.len() / HELD_OUT);
        // A stream is a character and the one to be guessed.
        match held_out.len() {
            0 | 1 => Err(format!("too short: {} characters, {} are the least", bytes.len(), 2 * HELD_OUT)),
            _ => Ok(Self { alphabet, train, held_out }),
        }
    }

    /// Number of different characters.
    pub(crate) fn characters(&self) -> usize {
        self.alphabet.len()
    }

    /// The number of a character, if it occurs.
    pub(crate) fn encode(&self, byte: u8) -> Option<u8> {
        self.alphabet.binary_search(&byte).ok().map(|number| number as u8)
    }

    /// As people read it; bytes that are not UTF-8 become question marks.
    pub(crate) fn decode(&self, numbers: &[u8]) -> String {
        let bytes: Vec<u8> = numbers.iter().map(|&number| self.alphabet[number as usize]).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Some steps of all streams: the characters, and those that follow each.
pub(crate) struct Chunk {
    /// `[steps, batch]`
    pub(crate) inputs: Array2<u8>,
    /// In the order of `inputs`.
    pub(crate) targets: Vec<u8>,
}

/// A text cut into as many streams of the same length as a batch has rows.
///
/// Row b of one chunk goes on in row b of the next: that is what a state is passed on for.
#[derive(Clone, Copy)]
pub(crate) struct Streams<'a> {
    text: &'a [u8],
    batch: usize,
    /// Characters of a stream that have a next one in it or behind it.
    length: usize,
}

impl<'a> Streams<'a> {
    /// At most `batch` streams: fewer if the text is too short for that many.
    pub(crate) fn new(text: &'a [u8], batch: usize) -> Self {
        let guesses = text.len() - 1;
        let batch = batch.min(guesses);
        Self { text, batch, length: guesses / batch }
    }

    pub(crate) fn batch(&self) -> usize {
        self.batch
    }

    /// Chunks of that many steps, from the beginning to the end; the last one may be shorter.
    pub(crate) fn chunks(self, steps: usize) -> impl Iterator<Item = Chunk> + 'a {
        (0..self.length).step_by(steps).map(move |first| {
            let at = |(step, row): (usize, usize)| row * self.length + first + step;
            let shape = (steps.min(self.length - first), self.batch);
            let inputs = Array2::from_shape_fn(shape, |place| self.text[at(place)]);
            let targets = Array2::from_shape_fn(shape, |place| self.text[at(place) + 1]);
            Chunk { inputs, targets: targets.into_raw_vec_and_offset().0 }
        })
    }
}

#[cfg(test)]
mod tests {
    use layernorm::ndarray::array;

    use super::*;
    use crate::common::gzip::tests::gzipped;

    #[test]
    fn the_embedded_text_is_whole() {
        let text = Text::embedded().unwrap();
        assert_eq!((text.train.len(), text.held_out.len(), text.characters()), (999_901, 52_626, 73));
        assert!(text.decode(&text.train).starts_with("ROMEO AND JULIET\n"));
        assert!(text.decode(&text.held_out).ends_with("ordnance is shot off.]\n"));
    }

    #[test]
    fn decoding_gives_the_text_back() {
        let bytes: Vec<u8> = (0..100).map(|i| b"to be, or not"[i % 13]).collect();
        let text = Text::new(&bytes).unwrap();
        assert_eq!((text.train.len(), text.held_out.len(), text.characters()), (95, 5, 8));
        assert_eq!((text.decode(&text.train) + &text.decode(&text.held_out)).as_bytes(), bytes);
        assert_eq!((text.encode(b' '), text.encode(b't'), text.encode(b'x')), (Some(0), Some(7), None));
    }

    #[test]
    fn every_byte_may_occur() {
        let bytes: Vec<u8> = (0..=255).cycle().take(512).collect();
        let text = Text::new(&bytes).unwrap();
        assert_eq!((text.characters(), text.encode(255)), (256, Some(255)));
        assert_eq!(text.decode(&[b'a', 255]), "a\u{fffd}");
    }

    #[test]
    fn plain_and_gzipped_are_read_alike() {
        let plain = "Who's there?".repeat(9);
        let gzipped = gzipped(plain.as_bytes());
        assert_eq!(Text::read(&gzipped).unwrap().train, Text::read(plain.as_bytes()).unwrap().train);
        let error = Text::read(&gzipped[..20]).unwrap_err();
        assert!(error.starts_with("damaged gzip data: "), "{error}");
    }

    #[test]
    fn a_text_too_short_is_named() {
        assert_eq!(Text::new(&[b'a'; 39]).unwrap_err(), "too short: 39 characters, 40 are the least");
        assert_eq!(Text::new(b"").unwrap_err(), "too short: 0 characters, 40 are the least");
        assert!(Text::new(&[b'a'; 40]).is_ok());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Text::open(Path::new("no/such/file")).unwrap_err().to_string();
        assert!(error.starts_with("no/such/file: "), "{error}");
    }

    #[test]
    fn streams_go_on_from_chunk_to_chunk() {
        let text: Vec<u8> = (0..12).collect();
        let chunks: Vec<_> = Streams::new(&text, 2).chunks(3).collect();
        assert_eq!(chunks.len(), 2);
        assert_eq!(chunks[0].inputs, array![[0, 5], [1, 6], [2, 7]]);
        assert_eq!(chunks[0].targets, [1, 6, 2, 7, 3, 8]);
        assert_eq!(chunks[1].inputs, array![[3, 8], [4, 9]]);
        assert_eq!(chunks[1].targets, [4, 9, 5, 10]);
    }

    #[test]
    fn a_short_text_has_fewer_streams() {
        let streams = Streams::new(&[3, 1, 4], 9);
        assert_eq!(streams.batch(), 2);
        let chunks: Vec<_> = streams.chunks(64).collect();
        assert_eq!((chunks.len(), &chunks[0].targets[..]), (1, &[1, 4][..]));
    }
}
