//! What pictures of a training have in common.

use std::error::Error;
use std::fs;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

/// Where plotters draws an SVG.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) const TRAIN: RGBColor = RGBColor(31, 119, 180);
pub(crate) const TEST: RGBColor = RGBColor(214, 39, 40);
pub(crate) const TITLE: (&str, i32) = ("sans-serif", 22);
pub(crate) const FONT: (&str, i32) = ("sans-serif", 17);

/// Writes an SVG; its directory is made if need be.
pub(crate) fn save(
    path: &Path,
    size: (u32, u32),
    title: &str,
    picture: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut svg = String::new();
    let root = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    root.fill(&WHITE)?;
    picture(&root.titled(title, TITLE)?)?;
    root.present()?;
    drop(root);
    let written = match path.parent() {
        Some(directory) => fs::create_dir_all(directory).and_then(|()| fs::write(path, svg)),
        None => fs::write(path, svg),
    };
    written.map_err(|error| format!("{}: {error}", path.display()).into())
}

/// Points joined by a line: a single one has no line yet.
pub(crate) fn line(points: Vec<(f64, f64)>, color: RGBColor) -> LineSeries<SVGBackend<'static>, (f64, f64)> {
    LineSeries::new(points, color.filled().stroke_width(2)).point_size(2)
}

/// Only whole numbers are named; where there are few of them there are ticks between.
pub(crate) fn whole(x: &f64) -> String {
    if x.fract() == 0.0 { x.to_string() } else { String::new() }
}
