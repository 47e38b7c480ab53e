//! Shorthands for registering metrics.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Counters of one label with a small set of values. Each series is looked up once.
pub(super) struct Counters<K>(Vec<(K, Counter)>);

pub(super) type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

// === impl Counters ===

impl<K: Copy + Eq> Counters<K> {
    /// Registers `(name, label, help)` with a series for each of `keys`, at zero.
    pub(super) fn register(
        registry: &mut Registry,
        (name, label, help): (&str, &'static str, &str),
        keys: impl IntoIterator<Item = K>,
        value: fn(K) -> &'static str,
    ) -> Self {
        let series = Family::<[(&'static str, &'static str); 1], Counter>::default();
        registry.register(name, help, series.clone());
        let handle = |key| (key, series.get_or_create_owned(&[(label, value(key))]));
        Self(keys.into_iter().map(handle).collect())
    }

    pub(super) fn inc(&self, key: K) {
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == key) {
            counter.inc();
        }
    }
}

pub(super) fn gauge(registry: &mut Registry, name: &str, help: &str) -> Gauge {
    let gauge = Gauge::default();
    registry.register(name, help, gauge.clone());
    gauge
}

pub(super) fn counter(registry: &mut Registry, name: &str, help: &str) -> Counter {
    let counter = Counter::default();
    registry.register(name, help, counter.clone());
    counter
}

pub(super) fn histogram(registry: &mut Registry, name: &str, help: &str, bounds: &[f64]) -> Histogram {
    let histogram = Histogram::new(bounds.iter().copied());
    registry.register(name, help, histogram.clone());
    histogram
}

pub(super) fn family<L>(registry: &mut Registry, name: &str, help: &str) -> Family<L, Counter>
where
    L: EncodeLabelSet + Clone + Eq + std::hash::Hash + std::fmt::Debug + Send + Sync + 'static,
{
    let family = Family::default();
    registry.register(name, help, family.clone());
    family
}
