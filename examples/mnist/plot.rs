//! The curves of a training as an SVG: log likelihood on the left, errors on the right.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::prelude::*;

use crate::common::plot::{self, Area, FONT, TEST, TRAIN, line};
use crate::training::Epoch;

/// Writes the picture; its directory is made if need be.
pub(crate) fn draw(path: &Path, title: &str, epochs: &[Epoch]) -> Result<(), Box<dyn Error>> {
    plot::save(path, (1000, 440), title, |root| picture(root, epochs))
}

fn picture(root: &Area<'_>, epochs: &[Epoch]) -> Result<(), Box<dyn Error>> {
    let (left, right) = root.split_horizontally(500);
    let last = epochs.len().max(2) as f64;
    let curve = |value: fn(&Epoch) -> f64| {
        let points: Vec<_> = (1..).map(f64::from).zip(epochs.iter().map(value)).collect();
        points
    };
    let train_nll = curve(|epoch| epoch.train_nll);
    let test_nll = curve(|epoch| epoch.test_nll);
    let test_error = curve(|epoch| epoch.test_error);

    // A logarithm has no place for 0, where a likelihood of exactly 1 would be.
    let positive = |points: &[(f64, f64)]| points.iter().copied().filter(|&(_, y)| y > 0.0).collect::<Vec<_>>();
    let (train_nll, test_nll) = (positive(&train_nll), positive(&test_nll));

    let decades = decades(train_nll.iter().chain(&test_nll).map(|&(_, y)| y));
    let mut chart = ChartBuilder::on(&left)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(1.0..last, decades.log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .axis_desc_style(FONT)
        .label_style(FONT)
        .x_desc("epoch")
        .y_desc("negative log likelihood [nats]")
        .disable_x_mesh()
        .x_label_formatter(&plot::whole)
        .y_label_formatter(&power)
        .draw()?;
    for (name, color, points) in [("train", TRAIN, train_nll), ("test", TEST, test_nll)] {
        chart
            .draw_series(line(points, color))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerLeft)
        .label_font(FONT)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;

    let most = test_error.iter().map(|&(_, y)| y).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(&right)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(1.0..last, 0.0..1.1 * most)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .axis_desc_style(FONT)
        .label_style(FONT)
        .x_desc("epoch")
        .y_desc("test error [%]")
        .disable_x_mesh()
        .x_label_formatter(&plot::whole)
        .y_label_formatter(&|y| format!("{y:.1}"))
        .draw()?;
    chart.draw_series(line(test_error, TEST))?;

    Ok(())
}

/// The powers of ten around the values.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((1.0, 1e-3), |(low, high): (f64, f64), y| (low.min(y), high.max(y)));
    decade(low)..10_f64.powf(high.max(10.0 * low).log10().ceil())
}

/// Where an axis starts that has the power of ten below the value: a little lower, so that it gets its label.
pub(crate) fn decade(low: f64) -> f64 {
    0.9 * 10_f64.powf(low.log10().floor())
}

/// A power of ten, the small ones short.
pub(crate) fn power(y: &f64) -> String {
    if *y < 1e-2 { format!("{y:.0e}") } else { y.to_string() }
}
