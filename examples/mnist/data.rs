//! Labelled images, from the files beside this example or from a directory.

use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use layernorm::ndarray::{Array1, Array2, ArrayView2, Axis, Zip};

use crate::idx::Idx;

/// Labels are 0 to 9.
pub(crate) const CLASSES: usize = 10;

const TRAIN: [&str; 2] = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"];
const TEST: [&str; 2] = ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];

/// What to learn from, and what to be measured by.
#[derive(PartialEq)]
pub(crate) struct Dataset {
    pub(crate) train: Images,
    pub(crate) test: Images,
}

/// Images, a row each, and what they show.
#[derive(PartialEq)]
pub(crate) struct Images {
    /// `[images, pixels]`, 0 to 255: a fourth of the memory of `f32`.
    pixels: Array2<u8>,
    labels: Array1<u8>,
    /// Height and width.
    pub(crate) size: [usize; 2],
}

/// A file that cannot be used, and why.
#[derive(Debug)]
pub(crate) struct DataError {
    file: PathBuf,
    problem: String,
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.problem)
    }
}

impl std::error::Error for DataError {}

/// A file in memory and the name to report it under.
type File = (PathBuf, Vec<u8>);

impl Dataset {
    /// 10,000 digits of MNIST; see `examples/data/README.md`.
    pub(crate) fn embedded() -> Result<Self, DataError> {
        macro_rules! file {
            ($name:literal) => {
                (PathBuf::from($name), include_bytes!(concat!("../data/mnist/", $name)).to_vec())
            };
        }
        Self::new(
            [file!("train-images-idx3-ubyte.gz"), file!("train-labels-idx1-ubyte.gz")],
            [file!("t10k-images-idx3-ubyte.gz"), file!("t10k-labels-idx1-ubyte.gz")],
        )
    }

    /// The four files of MNIST, Fashion-MNIST or another dataset of that form, each with or without `.gz`.
    pub(crate) fn open(directory: &Path) -> Result<Self, DataError> {
        let [train_images, train_labels] = TRAIN.map(|name| find(directory, name));
        let [test_images, test_labels] = TEST.map(|name| find(directory, name));
        Self::new([train_images?, train_labels?], [test_images?, test_labels?])
    }

    fn new(train: [File; 2], test: [File; 2]) -> Result<Self, DataError> {
        let test_file = test[0].0.clone();
        let (train, test) = (Images::new(train)?, Images::new(test)?);
        if train.size != test.size {
            let ([train_height, train_width], [height, width]) = (train.size, test.size);
            let problem = format!(
                "images of {height} x {width} pixels, but those to train on have {train_height} x {train_width}"
            );
            return Err(DataError { file: test_file, problem });
        }
        Ok(Self { train, test })
    }
}

/// The plain file if there is one, else the gzipped one.
fn find(directory: &Path, name: &str) -> Result<File, DataError> {
    let plain = directory.join(name);
    let gzipped = directory.join(format!("{name}.gz"));
    for file in [&plain, &gzipped] {
        match fs::read(file) {
            Ok(bytes) => return Ok((file.clone(), bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(DataError { file: file.clone(), problem: error.to_string() }),
        }
    }
    Err(DataError { file: plain, problem: "no such file, and none with `.gz` after its name".into() })
}

impl Images {
    fn new([(images_file, images), (labels_file, labels)]: [File; 2]) -> Result<Self, DataError> {
        let images = Idx::<3>::read(&images).map_err(|problem| DataError { file: images_file, problem })?;
        let fail = |problem| DataError { file: labels_file.clone(), problem };
        let labels = Idx::<1>::read(&labels).map_err(fail)?;

        let [count, height, width] = images.lengths;
        if labels.lengths != [count] {
            return Err(fail(format!("{} labels for {count} images", labels.lengths[0])));
        }
        if let Some(at) = labels.elements.iter().position(|&label| label as usize >= CLASSES) {
            return Err(fail(format!(
                "label {at} is {}, the largest there may be is {}",
                labels.elements[at],
                CLASSES - 1
            )));
        }
        let pixels = Array2::from_shape_vec((count, height * width), images.elements)
            .expect("the reader compares lengths and elements");
        Ok(Self { pixels, labels: labels.elements.into(), size: [height, width] })
    }

    /// Number of images.
    pub(crate) fn len(&self) -> usize {
        self.pixels.nrows()
    }

    /// Number of pixels of an image.
    pub(crate) fn pixels(&self) -> usize {
        self.pixels.ncols()
    }

    /// The images and labels at `indices`. Both buffers are overwritten and get that many rows.
    pub(crate) fn gather(&self, indices: &[usize], x: &mut Array2<f32>, labels: &mut Vec<u8>) {
        if x.nrows() != indices.len() {
            *x = Array2::zeros((indices.len(), self.pixels()));
        }
        for (mut row, &index) in x.rows_mut().into_iter().zip(indices) {
            Zip::from(&mut row).and(self.pixels.row(index)).for_each(|x, &pixel| *x = scaled(pixel));
        }
        labels.clear();
        labels.extend(indices.iter().map(|&index| self.labels[index]));
    }

    /// All images and labels in order, at most `rows` at a time.
    pub(crate) fn chunks(&self, rows: usize) -> impl Iterator<Item = (Array2<f32>, &[u8])> {
        let pixels = self.pixels.axis_chunks_iter(Axis(0), rows);
        let labels = self.labels.as_slice().expect("made from a vector").chunks(rows);
        pixels.map(|pixels: ArrayView2<'_, u8>| pixels.mapv(scaled)).zip(labels)
    }
}

fn scaled(pixel: u8) -> f32 {
    f32::from(pixel) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files of `count` images of 1 x `width` pixels, each pixel the number of its image.
    fn files(count: u8, width: u8, labels: &[u8]) -> [File; 2] {
        let mut images = vec![0, 0, 8, 3, 0, 0, 0, count, 0, 0, 0, 1, 0, 0, 0, width];
        images.extend((0..count).flat_map(|image| vec![image; width as usize]));
        let mut numbers = vec![0, 0, 8, 1, 0, 0, 0, labels.len() as u8];
        numbers.extend(labels);
        [("images".into(), images), ("labels".into(), numbers)]
    }

    fn message<T>(result: Result<T, DataError>) -> String {
        result.err().expect("an error").to_string()
    }

    #[test]
    fn the_embedded_files_are_whole() {
        let data = Dataset::embedded().unwrap();
        assert_eq!((data.train.len(), data.test.len()), (8000, 2000));
        assert_eq!(data.train.size, [28, 28]);
    }

    #[test]
    fn gather_takes_images_with_their_labels() {
        let images = Images::new(files(3, 2, &[7, 8, 9])).unwrap();
        let (mut x, mut labels) = (Array2::from_elem((5, 2), f32::NAN), vec![1]);
        images.gather(&[2, 0], &mut x, &mut labels);
        assert_eq!(x, layernorm::ndarray::array![[2.0 / 255.0, 2.0 / 255.0], [0.0, 0.0]]);
        assert_eq!(labels, [9, 7]);
    }

    #[test]
    fn chunks_cover_all_images() {
        let images = Images::new(files(3, 2, &[7, 8, 9])).unwrap();
        let chunks: Vec<_> = images.chunks(2).map(|(x, labels)| (x.dim(), labels.to_vec())).collect();
        assert_eq!(chunks, [((2, 2), vec![7, 8]), ((1, 2), vec![9])]);
    }

    #[test]
    fn as_many_labels_as_images() {
        assert_eq!(message(Images::new(files(3, 2, &[7, 8]))), "labels: 2 labels for 3 images");
    }

    #[test]
    fn a_label_past_9_is_named() {
        let error = message(Images::new(files(3, 2, &[7, 10, 9])));
        assert_eq!(error, "labels: label 1 is 10, the largest there may be is 9");
    }

    #[test]
    fn any_size_that_train_and_test_share() {
        assert!(Dataset::new(files(2, 5, &[0, 1]), files(1, 5, &[2])).is_ok());
        let error = message(Dataset::new(files(2, 5, &[0, 1]), files(1, 4, &[2])));
        assert_eq!(error, "images: images of 1 x 4 pixels, but those to train on have 1 x 5");
    }

    #[test]
    fn a_directory_of_the_embedded_files_is_the_embedded_dataset() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/mnist");
        // The pixels of 10,000 images say nothing in a message.
        assert!(Dataset::open(&directory).unwrap() == Dataset::embedded().unwrap());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = message(Dataset::open(Path::new("no/such/directory")));
        let expected = "train-images-idx3-ubyte: no such file, and none with `.gz` after its name";
        assert!(error.ends_with(expected), "{error}");
    }
}
