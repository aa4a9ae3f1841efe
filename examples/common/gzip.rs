//! Files that may be gzipped.

use std::borrow::Cow;
use std::io::Read;

use flate2::read::MultiGzDecoder;

/// What is in a file; whether it is gzipped follows from its first bytes, not from its name.
pub(crate) fn unpacked(file: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    if !file.starts_with(&[0x1f, 0x8b]) {
        return Ok(file.into());
    }
    let mut bytes = Vec::new();
    MultiGzDecoder::new(file).read_to_end(&mut bytes).map_err(|error| format!("damaged gzip data: {error}"))?;
    Ok(bytes.into())
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    pub(crate) fn gzipped(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    fn assert_damaged(file: &[u8]) {
        let error = unpacked(file).unwrap_err();
        assert!(error.starts_with("damaged gzip data: "), "{} bytes: {error}", file.len());
    }

    #[test]
    fn plain_and_gzipped_are_read_alike() {
        let plain = b"Who's there?";
        assert_eq!(unpacked(plain).unwrap(), &plain[..]);
        assert_eq!(unpacked(&gzipped(plain)).unwrap(), &plain[..]);
    }

    #[test]
    fn parts_that_are_gzipped_one_by_one_are_joined() {
        let parts = [gzipped(b"Who's "), gzipped(b"there?")].concat();
        assert_eq!(unpacked(&parts).unwrap(), &b"Who's there?"[..]);
    }

    #[test]
    fn every_truncation_is_an_error() {
        let file = gzipped(b"Who's there?");
        // Less than its magic number is not known as gzip.
        for length in 2..file.len() {
            assert_damaged(&file[..length]);
        }
    }

    #[test]
    fn a_flipped_bit_is_an_error() {
        let mut file = gzipped(b"Who's there?");
        let checksum = file.len() - 8;
        file[checksum] ^= 1;
        assert_damaged(&file);
    }
}
