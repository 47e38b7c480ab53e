//! The price of a bound on waiting: simulated throughput beside the longest wait of a started program, for a range of
//! `scheduler.fair.bound`, at four times the load that fits.
//!
//! `cargo bench --bench tradeoff` prints a table and writes `bench/tradeoff.svg`; `-- 1 2 3` names other seeds.

use plotters::prelude::*;
use std::error::Error;
use std::path::Path;
use std::process::Command;

const WORKLOADS: [(&str, u32); 3] = [("swe", 320), ("openhands", 128), ("mixed", 256)];
/// Bounds in seconds. The last is beyond the simulated hour, which leaves no bound but `hold.max`.
const BOUNDS: [u32; 6] = [120, 300, 450, 600, 1200, 7200];
const SEEDS: [&str; 3] = ["101", "102", "103"];

struct Point {
    bound: u32,
    steps: f64,
    p95: f64,
    longest: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let named: Vec<String> = std::env::args().skip(1).filter(|arg| arg.parse::<u64>().is_ok()).collect();
    let seeds = if named.is_empty() { SEEDS.map(str::to_owned).to_vec() } else { named };
    println!("seeds {}\n", seeds.join(", "));
    println!("| workload | fair.bound s | steps/min | step p95 s | longest wait of a started program s |");
    println!("|---|--:|--:|--:|--:|");
    let mut lines = Vec::new();
    for (workload, programs) in WORKLOADS {
        let mut points = Vec::new();
        for bound in BOUNDS {
            let point = measure(workload, programs, bound, &seeds)?;
            let Point { steps, p95, longest, .. } = point;
            println!("| {workload} {programs} | {bound} | {steps:.1} | {p95:.1} | {longest:.0} |");
            points.push(point);
        }
        lines.push((format!("{workload} {programs}"), points));
    }
    draw(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/tradeoff.svg"), &lines)
}

/// Medians over the seeds, and the longest wait over all of them.
fn measure(workload: &str, programs: u32, bound: u32, seeds: &[String]) -> Result<Point, Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let config = dir.path().join("config.yaml");
    std::fs::write(&config, format!("backends: [http://a]\nscheduler: {{fair: {{bound: {bound}s}}}}\n"))?;
    let mut runs = Vec::new();
    for seed in seeds {
        let output = Command::new(env!("CARGO_BIN_EXE_thundergate-lab"))
            .args(["simulate", "--policies", "ours", "--format", "json", "--quiet", "--workload", workload])
            .args(["--seed", seed, "--programs", &programs.to_string()])
            .arg("--config")
            .arg(&config)
            .output()?;
        let figures: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)
            .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(&output.stderr)))?;
        runs.extend(figures);
    }
    let all = |key: &str| {
        let mut values: Vec<f64> = runs.iter().filter_map(|run| run[key].as_f64()).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let median = |key| all(key).get(runs.len() / 2).copied().unwrap_or(f64::NAN);
    let longest = all("longest_started_wait_s").last().copied().unwrap_or(0.0);
    Ok(Point { bound, steps: median("steps_per_min"), p95: median("step_p95_s"), longest })
}

/// Draws the throughput, as a share of the throughput without a bound, over the longest wait.
fn draw(file: &Path, lines: &[(String, Vec<Point>)]) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(file, (860, 480)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("What a bound on waiting costs (labels: fair.bound in seconds)", ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..2_000.0, 85.0..105.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("longest wait of a started program, seconds")
        .y_desc("steps/min, % of those without a bound")
        .draw()?;
    for ((name, points), colour) in lines.iter().zip([&BLUE, &RED, &GREEN]) {
        let whole = points.last().map_or(1.0, |point| point.steps);
        let at = |point: &Point| (point.longest, 100.0 * point.steps / whole);
        chart.draw_series(LineSeries::new(points.iter().map(at), colour.stroke_width(2)))?;
        for point in points {
            let label = if point.bound > 3_600 { name.clone() } else { point.bound.to_string() };
            chart.plotting_area().draw(&Circle::new(at(point), 3, colour.filled()))?;
            let text =
                EmptyElement::at(at(point)) + Text::new(label, (5, -14), ("sans-serif", 13).into_font().color(colour));
            chart.plotting_area().draw(&text)?;
        }
    }
    root.present()?;
    Ok(())
}
