//! The curves of a training as an SVG.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::common::plot::{self, Area, FONT, TEST, TRAIN, line};

/// What is known after so many updates.
#[derive(Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) update: usize,
    /// Mean over the updates since the last measurement, each before its own change.
    pub(crate) train_bits: f64,
    pub(crate) held_out_bits: f64,
}

/// Writes the picture; its directory is made if need be.
pub(crate) fn draw(path: &Path, title: &str, history: &[Measured]) -> Result<(), Box<dyn Error>> {
    plot::save(path, (720, 440), title, |root| picture(root, history))
}

fn picture(root: &Area<'_>, history: &[Measured]) -> Result<(), Box<dyn Error>> {
    let curve = |bits: fn(&Measured) -> f64| {
        history.iter().map(|measured| (measured.update as f64, bits(measured))).collect::<Vec<_>>()
    };
    let train = curve(|measured| measured.train_bits);
    let held_out = curve(|measured| measured.held_out_bits);
    let bits = train.iter().chain(&held_out).map(|&(_, bits)| bits);
    let (low, high) = bits.fold((2.0, 3.0), |(low, high): (f64, f64), bits| (low.min(bits), high.max(bits)));
    let last = history.last().map_or(1, |measured| measured.update) as f64;

    let mut chart = ChartBuilder::on(root)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..last, low - 0.1..high + 0.1)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .axis_desc_style(FONT)
        .label_style(FONT)
        .x_desc("update")
        .y_desc("bits per character")
        .disable_x_mesh()
        .x_label_formatter(&plot::whole)
        .y_label_formatter(&|bits| format!("{bits:.1}"))
        .draw()?;
    for (name, color, points) in [("train", TRAIN, train), ("held out", TEST, held_out)] {
        chart
            .draw_series(line(points, color))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(FONT)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    Ok(())
}
