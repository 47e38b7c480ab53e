//! The two text formats of `GET /metrics`, and the choice between them.

use super::current::CurrentMetrics;
use super::metrics::Metrics;
use prometheus_client::encoding::text;

/// A text format for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposition {
    /// Prometheus text 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

// === impl Exposition ===

impl Exposition {
    /// The format that an `Accept` header prefers; `None` when the header names neither. A range (`*/*`, `text/*`) names
    /// neither: browsers and plain HTTP clients send ranges.
    #[must_use]
    pub fn accepted(accept: &str) -> Option<Self> {
        let quality = |wanted: &str| {
            accept
                .split(',')
                .filter_map(|item| {
                    let (media, parameters) = item.split_once(';').unwrap_or((item, ""));
                    let wanted = media.trim().eq_ignore_ascii_case(wanted);
                    wanted.then(|| parameter_q(parameters))
                })
                .fold(0.0, f64::max)
        };
        let open = quality("application/openmetrics-text");
        let plain = quality("text/plain");
        if open > 0.0 && open >= plain { Some(Self::OpenMetrics) } else { (plain > 0.0).then_some(Self::Prometheus) }
    }

    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

// === impl Metrics ===

impl Metrics {
    /// All counters and histograms, and the gauges of `current`, as text.
    #[must_use]
    pub fn encode(&self, current: &CurrentMetrics, format: Exposition) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail, and none of our metrics fails to encode.
        let encoded =
            text::encode_registry(&mut out, &self.registry).and_then(|()| text::encode(&mut out, &current.registry()));
        debug_assert!(encoded.is_ok());
        match format {
            Exposition::OpenMetrics => out,
            Exposition::Prometheus => to_prometheus(&out),
        }
    }
}

/// The `q` of a media range, 1 when absent.
fn parameter_q(parameters: &str) -> f64 {
    parameters
        .split(';')
        .filter_map(|parameter| parameter.trim().split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("q"))
        .map_or(1.0, |(_, q)| q.trim().parse().unwrap_or(0.0))
}

/// OpenMetrics text as Prometheus text 0.0.4, which old scrapers and people read. OpenMetrics names the family of a counter
/// without `_total`; 0.0.4 names the family as its samples are named, and has no `# UNIT` and `# EOF`.
fn to_prometheus(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len() + 1024);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap_or((rest, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            if let Some((_, help)) = help.take() {
                out.extend(["# HELP ", name, suffix, " ", help, "\n"]);
            }
            out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            out.extend([line, "\n"]);
        }
    }
    out
}
