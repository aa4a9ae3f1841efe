//! The three figures, side by side in one SVG.

use std::error::Error;
use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;

use crate::common::plot::{self, Area, FONT};
use crate::descent::{Descent, limit};
use crate::gain::Gain;
use crate::information::Information;
use crate::model::Norm;

const GREY: RGBColor = RGBColor(190, 190, 190);
const BLUE: RGBColor = plot::TRAIN;
const RED: RGBColor = plot::TEST;
const GREEN: RGBColor = RGBColor(44, 160, 44);
const WIDTH: u32 = 500;

/// Writes the picture; its directory is made if need be.
pub(crate) fn draw(
    path: &Path,
    information: &Information,
    gain: &Gain,
    descent: &Descent,
) -> Result<(), Box<dyn Error>> {
    plot::save(path, (3 * WIDTH, 500), "Section 5.2: the geometry of normalized models", |root| {
        let (left, rest) = root.split_horizontally(WIDTH);
        let (middle, right) = rest.split_horizontally(WIDTH);
        points(&left, information)?;
        metric(&middle, gain)?;
        angles(&right, descent)
    })
}

type Chart<'a, 'b, X, Y> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<X, Y>>;

fn chart<'a, 'b, X, Y>(
    area: &'a Area<'b>,
    caption: &str,
    x: X,
    y: Y,
) -> Result<Chart<'a, 'b, X::CoordDescType, Y::CoordDescType>, Box<dyn Error>>
where
    X: AsRangedCoord<Value = f64>,
    Y: AsRangedCoord<Value = f64>,
{
    let mut builder = ChartBuilder::on(area);
    builder.caption(caption, FONT).margin(12).margin_right(32).x_label_area_size(46).y_label_area_size(72);
    Ok(builder.build_cartesian_2d(x, y)?)
}

fn mesh<X, Y>(chart: &mut Chart<'_, '_, X, Y>, x: &str, y: &str) -> Result<(), Box<dyn Error>>
where
    X: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(TRANSPARENT).axis_desc_style(FONT).label_style(FONT).x_desc(x).y_desc(y);
    mesh.x_label_formatter(&short).y_label_formatter(&short).draw()?;
    Ok(())
}

/// Without the digits that steps of the axis leave behind.
fn short(x: &f64) -> String {
    let rounded = (1e6 * x).round() / 1e6;
    // Not -0.
    (rounded + 0.0).to_string()
}

/// A line in the legend.
fn key(color: RGBColor, width: u32) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(width))
}

fn legend<'b: 'a, 'a, X, Y>(
    chart: &mut Chart<'a, 'b, X, Y>,
    position: SeriesLabelPosition,
) -> Result<(), Box<dyn Error>>
where
    X: Ranged<ValueType = f64>,
    Y: Ranged<ValueType = f64>,
{
    let mut labels = chart.configure_series_labels();
    labels.position(position).margin(16).label_font(FONT).background_style(WHITE).border_style(BLACK).draw()?;
    Ok(())
}

/// Layer norm's block of W: formulas over samples.
fn points(area: &Area<'_>, information: &Information) -> Result<(), Box<dyn Error>> {
    let values = || information.points.iter().flatten();
    let low = 1.1 * values().fold(0.0_f64, |low, &value| low.min(value));
    let high = 1.1 * values().fold(0.0_f64, |high, &value| high.max(value));
    let mut chart = chart(area, "Fisher information of W, LayerNorm", low..high, low..high)?;
    mesh(&mut chart, "element, sampled", "element, by formula")?;
    chart.draw_series(LineSeries::new([(low, low), (high, high)], BLACK))?;
    for (at, color, label) in [(2, RED, "eq. 13-14, own output"), (1, BLUE, "eq. 13, every output")] {
        let dots = information.points.iter().map(|point| Circle::new((point[0], point[at]), 3, color.filled()));
        chart.draw_series(dots)?.label(label).legend(move |(x, y)| Circle::new((x + 10, y), 4, color.filled()));
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

/// The gain's metric over the scale of the inputs; of two curves that coincide one is wide.
fn metric(area: &Area<'_>, gain: &Gain) -> Result<(), Box<dyn Error>> {
    let mut chart =
        chart(area, "metric along the gain (dots: sampled)", (0.09..11.0).log_scale(), (0.01..2000.0).log_scale())?;
    mesh(&mut chart, "scale of the inputs", "trace of M")?;
    for curve in &gain.curves {
        let (color, width) = match curve.norm {
            Norm::Standard => (GREY, 7),
            Norm::Weight => (GREEN, 2),
            Norm::Batch => (RGBColor(240, 170, 170), 7),
            Norm::Layer => (BLUE, 2),
        };
        let points = curve.points.iter().map(|point| (point.scale, point.exact));
        let line = LineSeries::new(points, color.filled().stroke_width(width));
        chart.draw_series(line)?.label(curve.norm.name()).legend(key(color, width));
        let dots = curve.points.iter().map(|point| Circle::new((point.scale, point.sampled), 5, color.filled()));
        chart.draw_series(dots)?;
    }
    legend(&mut chart, SeriesLabelPosition::UpperLeft)
}

/// How far W turns, on the way to 1/√(2·steps).
fn angles(area: &Area<'_>, descent: &Descent) -> Result<(), Box<dyn Error>> {
    let mut chart = chart(area, "angle of an SGD step, LayerNorm", (1.0..1e4).log_scale(), (0.1..100.0).log_scale())?;
    mesh(&mut chart, "step", "angle [degrees]")?;
    let ends = [1, 10_000].map(|step| (f64::from(step), limit(step as usize).to_degrees()));
    let line = LineSeries::new(ends, GREY.stroke_width(7));
    chart.draw_series(line)?.label("1/sqrt(2 step)").legend(key(GREY, 7));
    for (run, color) in descent.runs.iter().zip([GREEN, BLUE, RED]) {
        // Eight a decade.
        let steps = (0..=32).map(|at| 10_f64.powf(f64::from(at) / 8.0).round());
        let points = steps.map(|step| (step, run.at(step as usize).1.to_degrees()));
        let line = LineSeries::new(points, color.stroke_width(2));
        chart.draw_series(line)?.label(format!("rate {}", run.rate)).legend(key(color, 2));
    }
    legend(&mut chart, SeriesLabelPosition::LowerLeft)
}
