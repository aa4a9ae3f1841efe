//! IDX, the format of MNIST and its relatives.
//!
//! ```text
//! 0  0  8  axes          8: the elements are unsigned bytes
//! length of each axis    4 bytes, big-endian
//! elements               row-major, to the end of the file
//! ```
//!
//! Every byte of a file is accounted for: what is cut off, too long or of another kind is an error, never a panic and
//! never a smaller dataset.

use crate::common::gzip;

/// The elements of a file whose array has `AXES` axes, and their lengths.
#[derive(Debug, PartialEq)]
pub(crate) struct Idx<const AXES: usize> {
    pub(crate) lengths: [usize; AXES],
    pub(crate) elements: Vec<u8>,
}

impl<const AXES: usize> Idx<AXES> {
    /// Reads a whole file, gzipped or not.
    pub(crate) fn read(file: &[u8]) -> Result<Self, String> {
        Self::parse(&gzip::unpacked(file)?)
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let (words, _) = bytes.as_chunks::<4>();
        let mut words = words.iter().map(|&word| u32::from_be_bytes(word));
        let mut word =
            || words.next().ok_or_else(|| format!("truncated: {} bytes are less than a header", bytes.len()));

        let (magic, expected) = (word()?, 0x800 + AXES as u32);
        if magic != expected {
            return Err(format!(
                "wrong magic number 0x{magic:08x}, expected 0x{expected:08x} (unsigned bytes, number of axes: {AXES})"
            ));
        }
        let mut lengths = [0; AXES];
        for length in &mut lengths {
            *length = word()? as usize;
        }

        let elements = &bytes[4 + 4 * AXES..];
        let announced = lengths.iter().try_fold(1_usize, |product, &length| product.checked_mul(length));
        let what = || lengths.map(|length| length.to_string()).join(" x ");
        match announced {
            Some(0) => Err(format!("no data: the header announces {} elements", what())),
            Some(announced) if announced == elements.len() => Ok(Self { lengths, elements: elements.to_vec() }),
            Some(announced) if announced < elements.len() => {
                Err(format!("too long: the header announces {} elements, but {} follow", what(), elements.len()))
            }
            _ => Err(format!("truncated: the header announces {} elements, but {} follow", what(), elements.len())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::gzip::tests::gzipped;

    /// Two images of 2 x 3 pixels.
    fn images() -> Vec<u8> {
        let mut file = vec![0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 3];
        file.extend(1..=12);
        file
    }

    fn message<const AXES: usize>(file: &[u8]) -> String {
        Idx::<AXES>::read(file).unwrap_err()
    }

    #[test]
    fn plain_and_gzipped_are_read_alike() {
        let expected = Idx { lengths: [2, 2, 3], elements: (1..=12).collect() };
        assert_eq!(Idx::<3>::read(&images()).unwrap(), expected);
        assert_eq!(Idx::<3>::read(&gzipped(&images())).unwrap(), expected);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = images();
        for length in 0..file.len() {
            let error = message::<3>(&file[..length]);
            assert!(error.starts_with("truncated: "), "{length} bytes: {error}");
        }
        assert_eq!(message::<3>(&file[..7]), "truncated: 7 bytes are less than a header");
        assert_eq!(message::<3>(&file[..27]), "truncated: the header announces 2 x 2 x 3 elements, but 11 follow");
    }

    #[test]
    fn every_truncation_of_gzip_is_an_error() {
        let file = gzipped(&images());
        for length in 0..file.len() {
            let error = message::<3>(&file[..length]);
            let expected = if length < 2 { "truncated: " } else { "damaged gzip data: " };
            assert!(error.starts_with(expected), "{length} bytes: {error}");
        }
    }

    #[test]
    fn bytes_after_the_end_are_an_error() {
        let mut file = images();
        file.push(0);
        assert_eq!(message::<3>(&file), "too long: the header announces 2 x 2 x 3 elements, but 13 follow");
    }

    #[test]
    fn labels_are_not_read_as_images() {
        let labels = [0, 0, 8, 1, 0, 0, 0, 1, 7];
        assert_eq!(Idx::<1>::read(&labels).unwrap().elements, [7]);
        assert_eq!(
            message::<3>(&labels),
            "wrong magic number 0x00000801, expected 0x00000803 (unsigned bytes, number of axes: 3)"
        );
    }

    #[test]
    fn a_length_that_overflows_is_truncation() {
        let mut file = images();
        file[4..16].fill(0xff);
        assert_eq!(
            message::<3>(&file),
            "truncated: the header announces 4294967295 x 4294967295 x 4294967295 elements, but 12 follow"
        );
    }

    #[test]
    fn an_empty_array_is_an_error() {
        assert_eq!(message::<1>(&[0, 0, 8, 1, 0, 0, 0, 0]), "no data: the header announces 0 elements");
    }
}
