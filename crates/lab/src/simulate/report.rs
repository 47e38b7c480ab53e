//! The outcome of the runs, as a table or as JSON.

use super::tally::Figures;
use comfy_table::{CellAlignment, Table, TableComponent, presets};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Table,
    /// A list with one object for each policy
    Json,
}

// === impl Format ===

impl Format {
    #[must_use]
    pub fn render(self, figures: &[Figures]) -> String {
        match self {
            Self::Table => table(figures),
            Self::Json => json(figures),
        }
    }
}

/// Writes one object a line, so that two outputs can be compared with diff.
fn json(figures: &[Figures]) -> String {
    let line = |figures: &Figures| serde_json::to_string(figures).unwrap_or_default();
    let lines: Vec<String> = figures.iter().map(line).collect();
    format!("[\n{}\n]\n", lines.join(",\n"))
}

fn table(figures: &[Figures]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.remove_style(TableComponent::HorizontalLines).remove_style(TableComponent::MiddleIntersections);
    table.set_header([
        "policy",
        "steps\n/min",
        "of\nbound",
        "programs\n/min",
        "prefix\nhits",
        "step\np50 s",
        "\np95 s",
        "\np99 s",
        "program\np50 s",
        "\np95 s",
        "longest\nwait s",
        "started\nwait s",
        "preemp-\ntions",
        "imba-\nlance",
    ]);
    for row in figures {
        let seconds = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.1}"));
        let share = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{:.1}%", value * 100.0));
        let bound = (row.bound_steps_per_min > 0.0).then(|| row.steps_per_min / row.bound_steps_per_min);
        table.add_row([
            row.policy.clone(),
            format!("{:.1}", row.steps_per_min),
            share(bound),
            format!("{:.2}", row.programs_per_min),
            share(row.hit_rate),
            seconds(row.step_p50_s),
            seconds(row.step_p95_s),
            seconds(row.step_p99_s),
            seconds(row.completion_p50_s),
            seconds(row.completion_p95_s),
            format!("{:.0}", row.longest_wait_s),
            format!("{:.0}", row.longest_started_wait_s),
            row.preemptions.to_string(),
            row.imbalance.map_or("–".to_owned(), |value| format!("{value:.2}")),
        ]);
    }
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    format!("{table}\n")
}
