//! The picture of a comparison, as figure 6 of the paper: a column for each size of a batch, training likelihood above
//! test errors. A line is the mean of the seeds, what is shaded lies between the lowest and the highest of them.

use std::error::Error;
use std::ops::Range;
use std::path::Path;

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

use crate::common::plot::{self, Area, FONT, line};
use crate::compare::{BATCHES, Group};
use crate::kind::Kind;
use crate::plot::{decade, power};
use crate::training::Epoch;

/// Writes the picture; its directory is made if need be.
pub(crate) fn draw(path: &Path, title: &str, groups: &[Group]) -> Result<(), Box<dyn Error>> {
    plot::save(path, (1000, 800), title, |root| picture(root, groups))
}

fn picture(root: &Area<'_>, groups: &[Group]) -> Result<(), Box<dyn Error>> {
    let nll = Measure {
        name: "training NLL [nats]",
        label: power,
        // A logarithm has no place for 0.
        value: |epoch| epoch.train_nll.max(1e-12),
        legend: false,
    };
    let error = Measure {
        name: "test error [%]",
        label: |y| format!("{y:.1}"),
        value: |epoch| epoch.test_error,
        // Errors fall at first: above them, on the right, is room.
        legend: true,
    };
    // The same for all that stand side by side.
    let (nlls, errors) = (nll.range(groups), error.range(groups));
    let nlls = decade(nlls.start)..1.2 * nlls.end;
    let errors = errors.start.floor()..errors.end.floor() + 1.0;

    let columns = root.split_evenly((1, BATCHES.len()));
    for (batch, column) in BATCHES.into_iter().zip(&columns) {
        let groups: Vec<_> = groups.iter().filter(|group| group.batch == batch).collect();
        let column = column.titled(&format!("batch {batch}"), FONT)?;
        let (above, below) = column.split_vertically((50).percent_height());
        panel(&above, &groups, &nll, nlls.clone().log_scale())?;
        panel(&below, &groups, &error, errors.clone())?;
    }
    Ok(())
}

/// What is drawn upwards.
struct Measure {
    name: &'static str,
    label: fn(&f64) -> String,
    value: fn(&Epoch) -> f64,
    legend: bool,
}

impl Measure {
    /// From the lowest to the highest of all groups.
    fn range(&self, groups: &[Group]) -> Range<f64> {
        let spreads = groups.iter().flat_map(|group| (0..group.epochs()).map(|epoch| group.spread(epoch, self.value)));
        let range = spreads.fold(f64::INFINITY..0.0, |range, [low, _, high]| range.start.min(low)..range.end.max(high));
        if range.start > range.end { 0.5..1.0 } else { range }
    }
}

fn panel<Y>(area: &Area<'_>, groups: &[&Group], measure: &Measure, y: Y) -> Result<(), Box<dyn Error>>
where
    Y: AsRangedCoord<Value = f64, CoordDescType: ValueFormatter<f64>>,
{
    let last = groups.iter().map(|group| group.epochs()).max().unwrap_or(0).max(2) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(1.0..last, y)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .axis_desc_style(FONT)
        .label_style(FONT)
        .x_desc("epoch")
        .y_desc(measure.name)
        .disable_x_mesh()
        .x_label_formatter(&plot::whole)
        .y_label_formatter(&measure.label)
        .draw()?;
    for group in groups {
        let color = color(group.norm);
        let spreads: Vec<_> = (0..group.epochs()).map(|epoch| group.spread(epoch, measure.value)).collect();
        let curve = |at: usize| (1..).map(f64::from).zip(spreads.iter().map(move |spread| spread[at]));
        let (lowest, highest): (Vec<_>, Vec<_>) = (curve(0).collect(), curve(2).collect());
        let band: Vec<_> = lowest.into_iter().chain(highest.into_iter().rev()).collect();
        chart.draw_series([Polygon::new(band, color.mix(0.2))])?;
        chart
            .draw_series(line(curve(1).collect(), color))?
            .label(format!("norm {}{}", group.norm, group.left()))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
    }
    if measure.legend {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .label_font(FONT)
            .background_style(WHITE)
            .border_style(BLACK)
            .draw()?;
    }
    Ok(())
}

fn color(norm: Kind) -> RGBColor {
    match norm {
        Kind::Layer => RGBColor(31, 119, 180),
        Kind::Batch => RGBColor(214, 39, 40),
        Kind::Rms => RGBColor(44, 160, 44),
        Kind::None => RGBColor(80, 80, 80),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::KINDS;

    fn svg(trained: usize, histories: &[Vec<Epoch>]) -> String {
        let groups: Vec<_> = BATCHES
            .into_iter()
            .flat_map(|batch| KINDS.map(|norm| Group { norm, batch, trained, seeds: histories.to_vec() }))
            .collect();
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, (1000, 800)).into_drawing_area();
        picture(&root, &groups).unwrap();
        drop(root);
        svg
    }

    #[test]
    fn what_is_compared_is_named() {
        let epoch = |number: f64| Epoch { train_nll: number, test_nll: 1.0, test_error: 10.0 * number };
        let histories = [vec![epoch(0.5), epoch(0.01)], vec![epoch(0.6), epoch(0.02)]];
        let whole = svg(2, &histories);
        for name in ["norm layer", "norm batch", "norm none", "batch 128", "batch 4", "training NLL", "test error"] {
            assert!(whole.contains(&format!("\n{name}")), "{name}");
        }
        assert!(!whole.contains(" of "));
        assert!(svg(3, &histories).contains("\nnorm layer (2 of 3)\n"));
    }

    #[test]
    fn no_seed_one_epoch_and_a_likelihood_of_1_have_axes() {
        for histories in [vec![], vec![vec![Epoch { train_nll: 0.0, test_nll: 0.0, test_error: 0.0 }]]] {
            let svg = svg(histories.len(), &histories);
            // A likelihood's label and one of the errors in the middle.
            let likelihood = if histories.is_empty() { "0.1" } else { "1e-12" };
            for label in [likelihood, "0.5"] {
                assert!(svg.contains(&format!("\n{label}\n")), "{label} in {svg}");
            }
        }
    }
}
