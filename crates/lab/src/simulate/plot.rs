//! Plots of a run over time as SVG, one line for each policy.

use super::tally::{Minute, Tally, percentile};
use plotters::prelude::*;
use std::error::Error;
use std::path::Path;

/// One plot: its file, its title, and the value that it draws for each minute.
struct Plot {
    file: &'static str,
    title: &'static str,
    value: fn(&Minute) -> Option<f64>,
}

const PLOTS: [Plot; 5] = [
    Plot { file: "throughput.svg", title: "Steps finished a minute", value: |minute| Some(minute.steps as f64) },
    Plot {
        file: "hit-rate.svg",
        title: "Prompt tokens found in the prefix cache, %",
        value: |minute| percent(minute.cached_tokens as f64, minute.prompt_tokens as f64),
    },
    Plot { file: "waits.svg", title: "Time to first token, hold included: 95th percentile, s", value: wait },
    Plot {
        file: "kv-occupancy.svg",
        title: "KV blocks in use by running steps, %",
        value: |minute| percent(minute.kv_usage, minute.samples as f64),
    },
    Plot {
        file: "held.svg",
        title: "Steps held in the proxy",
        value: |minute| (minute.samples > 0).then(|| minute.held as f64 / minute.samples as f64),
    },
];

const SIZE: (u32, u32) = (1080, 480);
/// Width of the column with the policies' names.
const LEGEND: u32 = 240;
const TEXT: (&str, u32) = ("sans-serif", 18);

/// Eight colours that colour-blind eyes can tell apart (Okabe and Ito 2008), black last.
const COLOURS: [RGBColor; 8] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(160, 150, 20),
    RGBColor(0, 0, 0),
];

/// Writes every plot into the directory `dir`, which is made if it is missing.
///
/// # Errors
/// The error of the file that could not be written.
pub fn write(dir: &Path, runs: &[(String, &Tally)]) -> Result<(), Box<dyn Error>> {
    std::fs::create_dir_all(dir)?;
    for plot in &PLOTS {
        let mut svg = String::new();
        plot.draw(&mut svg, runs)?;
        std::fs::write(dir.join(plot.file), svg)?;
    }
    Ok(())
}

fn percent(part: f64, whole: f64) -> Option<f64> {
    (whole > 0.0).then(|| part / whole * 100.0)
}

fn wait(minute: &Minute) -> Option<f64> {
    let mut waits = minute.waits.clone();
    waits.sort_unstable();
    percentile(&waits, 0.95)
}

// === impl Plot ===

impl Plot {
    fn points(&self, tally: &Tally) -> Vec<(f64, f64)> {
        let minutes = tally.series().iter().zip(0u32..);
        minutes.filter_map(|(minute, at)| Some((f64::from(at) + 0.5, (self.value)(minute)?))).collect()
    }

    fn draw(&self, svg: &mut String, runs: &[(String, &Tally)]) -> Result<(), Box<dyn Error>> {
        let lines: Vec<_> = runs.iter().map(|(name, tally)| (name, self.points(tally))).collect();
        let points = || lines.iter().flat_map(|(_, points)| points);
        let end = points().map(|point| point.0).fold(1.0, f64::max);
        let top = points().map(|point| point.1).fold(1.0, f64::max) * 1.05;
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let (left, right) = root.split_horizontally(SIZE.0 - LEGEND);
        let mut chart = ChartBuilder::on(&left)
            .caption(self.title, ("sans-serif", 26))
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(56)
            .build_cartesian_2d(0.0..end, 0.0..top)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc("minutes").light_line_style(TRANSPARENT).label_style(TEXT).axis_desc_style(TEXT);
        mesh.x_label_formatter(&|x| format!("{x:.0}")).draw()?;
        for (((name, points), colour), row) in lines.into_iter().zip(COLOURS.iter().cycle()).zip(0..) {
            let stroke = colour.stroke_width(2);
            chart.draw_series(LineSeries::new(points, stroke))?;
            let y = 64 + 24 * row;
            right.draw(&PathElement::new([(4, y), (24, y)], stroke))?;
            right.draw(&Text::new(name.as_str(), (32, y - 7), TEXT))?;
        }
        root.present()?;
        Ok(())
    }
}
