//! What consumers measure themselves, through the `metrics` facade.
//!
//! A consumer's worker runs with a recorder of its own, so that what its author records carries the
//! consumer's name without a word of theirs. Recording takes no lock that another consumer takes,
//! except the first time a series is used.
//!
//! Promises: what is exported is bounded ([`SERIES_MAX`] series a consumer, [`LABELS_MAX`] labels a
//! series); what is refused is said once a name, and counted.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::histogram::{ANY, Counts, Histogram};

/// What sort of figure it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sort {
    /// It goes up and down.
    Gauge,
    /// It only goes up while the hub runs.
    Counter,
    /// It counts values between bounds.
    Histogram,
}

/// Series that one consumer may have: more is a label whose values have no bound.
pub const SERIES_MAX: usize = 200;
/// Labels that one series may have.
pub const LABELS_MAX: usize = 8;
/// Bytes of a name, a label or its value.
const TEXT_MAX: usize = 100;

/// What all consumers of a hub measure.
#[derive(Default)]
pub struct Measured {
    consumers: Mutex<Vec<Arc<Own>>>,
    names: Mutex<Names>,
    refused: AtomicU64,
}

/// What a name is, in all of the hub.
#[derive(Default)]
struct Names {
    sorts: HashMap<String, Sort>,
    /// What they are called outside, and whose name that is: see [`taken`].
    taken: HashMap<String, String>,
    help: HashMap<String, String>,
    complained: BTreeSet<String>,
}

/// What one consumer measures.
struct Own {
    consumer: String,
    series: RwLock<HashMap<Key, Series, rapidhash::fast::RandomState>>,
}

#[derive(Clone)]
enum Series {
    Counter(Arc<AtomicU64>),
    /// The bits of an `f64`.
    Gauge(Arc<AtomicU64>),
    Histogram(Arc<Histogram>),
    Refused,
}

/// One series at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The name its author gave it.
    pub name: String,
    /// What its author said of it.
    pub help: String,
    /// What sort of figure it is.
    pub sort: Sort,
    /// Who measured it.
    pub consumer: String,
    /// Its author's labels.
    pub labels: Vec<(String, String)>,
    /// Its value.
    pub value: Value,
}

/// A series' value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A gauge's or a counter's.
    Number(f64),
    /// A histogram's.
    Counts(Counts),
}

/// Records what one consumer measures.
#[derive(Clone)]
pub struct OwnRecorder {
    all: Arc<Measured>,
    own: Arc<Own>,
}

impl Measured {
    /// The recorder of one consumer.
    pub fn recorder(self: &Arc<Self>, consumer: &str) -> OwnRecorder {
        let own = Arc::new(Own {
            consumer: consumer.to_owned(),
            series: RwLock::default(),
        });
        self.consumers.lock().push(own.clone());
        OwnRecorder {
            all: self.clone(),
            own,
        }
    }

    /// Series that are not exported.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// All series at this moment, those of a name together.
    pub fn snapshot(&self) -> Vec<Measurement> {
        let mut all = Vec::new();
        for own in &*self.consumers.lock() {
            for (key, series) in &*own.series.read() {
                let (sort, value) = match series {
                    Series::Counter(count) => {
                        let count = count.load(Ordering::Acquire);
                        (Sort::Counter, Value::Number(count as f64))
                    }
                    Series::Gauge(bits) => {
                        let value = f64::from_bits(bits.load(Ordering::Acquire));
                        (Sort::Gauge, Value::Number(value))
                    }
                    Series::Histogram(histogram) => {
                        (Sort::Histogram, Value::Counts(histogram.snapshot()))
                    }
                    Series::Refused => continue,
                };
                let labels = key.labels();
                all.push(Measurement {
                    name: exported(key.name(), sort),
                    help: String::new(),
                    sort,
                    consumer: own.consumer.clone(),
                    labels: labels.map(|l| (l.key().into(), l.value().into())).collect(),
                    value,
                });
            }
        }
        let names = self.names.lock();
        for series in &mut all {
            series.help = names.help.get(&series.name).cloned().unwrap_or_default();
        }
        drop(names);
        all.sort_by(|a, b| {
            (&a.name, &a.consumer, &a.labels).cmp(&(&b.name, &b.consumer, &b.labels))
        });
        all
    }

    /// Whether a series may be exported, and why not.
    fn admit(&self, key: &Key, sort: Sort, there: usize) -> Result<(), String> {
        let name = key.name();
        let named = |text: &str, more: &[u8]| {
            let mut bytes = text.bytes();
            let first = bytes
                .next()
                .is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
            first
                && text.len() <= TEXT_MAX
                && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_' || more.contains(&b))
        };
        if !named(name, b".:") || name.starts_with("weir_") || name == "_total" {
            return Err(
                "expected a name of letters, digits and `_` that does not begin with \
                        `weir_`"
                    .into(),
            );
        }
        let mut keys = BTreeSet::new();
        for label in key.labels() {
            // Prometheus keeps those with two underscores for itself.
            let own = ["hub", "consumer", "le", "quantile"].contains(&label.key())
                || label.key().starts_with("__");
            if own || !named(label.key(), b"") || !keys.insert(label.key().to_owned()) {
                return Err(format!("{:?} can't be the name of a label", label.key()));
            }
            if label.value().len() > TEXT_MAX || label.value().contains(char::is_control) {
                return Err(format!(
                    "the value of the label {:?} is too long",
                    label.key()
                ));
            }
        }
        if keys.len() > LABELS_MAX {
            return Err(format!("more than {LABELS_MAX} labels"));
        }
        if there >= SERIES_MAX {
            return Err(format!(
                "the consumer has {SERIES_MAX} series already; is there a label with ever new \
                 values?"
            ));
        }
        let names = &mut *self.names.lock();
        let name = exported(name, sort);
        if let Some(known) = names.sorts.get(&name) {
            return match *known == sort {
                true => Ok(()),
                false => Err(format!("it is a {known:?} elsewhere in this hub")),
            };
        }
        let outside = taken(&name, sort);
        if let Some(other) = outside.iter().find_map(|name| names.taken.get(name)) {
            return Err(format!("Prometheus would take it for a part of {other:?}"));
        }
        let owned = outside.into_iter().map(|outside| (outside, name.clone()));
        names.taken.extend(owned);
        names.sorts.insert(name, sort);
        Ok(())
    }
}

/// The name that a series is exported by: what every system accepts, and counters end in `_total`.
fn exported(name: &str, sort: Sort) -> String {
    let name = name.replace(['.', ':'], "_");
    match sort {
        Sort::Counter if !name.ends_with("_total") => name + "_total",
        _ => name,
    }
}

/// All names by which a figure of this exported name is known outside: OpenMetrics has a family for
/// a counter without its `_total`, and a histogram is three sorts of samples.
pub(crate) fn taken(name: &str, sort: Sort) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    match sort {
        Sort::Counter => names.extend(name.strip_suffix("_total").map(str::to_owned)),
        Sort::Histogram => {
            names.extend(["_bucket", "_count", "_sum"].map(|part| format!("{name}{part}")));
        }
        Sort::Gauge => {}
    }
    names
}

impl OwnRecorder {
    fn series(&self, key: &Key, sort: Sort, make: impl FnOnce() -> Series) -> Series {
        let known = |series: &Series| {
            matches!(
                (series, sort),
                (Series::Counter(_), Sort::Counter)
                    | (Series::Gauge(_), Sort::Gauge)
                    | (Series::Histogram(_), Sort::Histogram)
            )
        };
        if let Some(series) = self.own.series.read().get(key) {
            return match known(series) {
                true => series.clone(),
                false => Series::Refused,
            };
        }
        let mut all = self.own.series.write();
        let there = all.len();
        if let Some(series) = all.get(key).filter(|series| known(series)) {
            return series.clone();
        }
        let admitted = match all.contains_key(key) {
            true => Err("it is something else already".into()),
            false => self.all.admit(key, sort, there),
        };
        let series = match admitted {
            Ok(()) => make(),
            Err(why) => {
                self.refuse(key, &why);
                Series::Refused
            }
        };
        // Refused ones are remembered only as long as there is room for them too.
        if there < 2 * SERIES_MAX {
            all.entry(key.clone()).or_insert_with(|| series.clone());
        }
        series
    }

    fn refuse(&self, key: &Key, why: &str) {
        self.all.refused.fetch_add(1, Ordering::Relaxed);
        let (consumer, metric) = (&self.own.consumer, key.name());
        let mut names = self.all.names.lock();
        if names.complained.len() < SERIES_MAX
            && names.complained.insert(format!("{consumer} {metric}"))
        {
            warn!(consumer, metric, why, "not exported");
        }
    }

    fn describe(&self, name: &KeyName, sort: Sort, help: &SharedString) {
        let mut names = self.all.names.lock();
        if names.help.len() < SERIES_MAX && help.len() <= 10 * TEXT_MAX {
            names
                .help
                .insert(exported(name.as_str(), sort), help.to_string());
        }
    }
}

impl Recorder for OwnRecorder {
    fn describe_counter(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, Sort::Counter, &help);
    }

    fn describe_gauge(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, Sort::Gauge, &help);
    }

    fn describe_histogram(&self, name: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(&name, Sort::Histogram, &help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, Sort::Counter, || Series::Counter(Arc::default())) {
            Series::Counter(count) => Counter::from_arc(count),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, Sort::Gauge, || Series::Gauge(Arc::default())) {
            Series::Gauge(bits) => Gauge::from_arc(bits),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> metrics::Histogram {
        let make = || Series::Histogram(Arc::new(Histogram::new(ANY)));
        match self.series(key, Sort::Histogram, make) {
            Series::Histogram(histogram) => metrics::Histogram::from_arc(histogram),
            _ => metrics::Histogram::noop(),
        }
    }
}

impl HistogramFn for Histogram {
    fn record(&self, value: f64) {
        Histogram::record(self, value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        Histogram::record(self, value, count as u64);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use metrics::{counter, describe_counter, gauge, histogram, with_local_recorder};

    fn values(measured: &Measured) -> BTreeMap<String, f64> {
        let series = measured.snapshot().into_iter();
        let value = |series: &Measurement| match &series.value {
            Value::Number(number) => *number,
            Value::Counts(counts) => counts.sum,
        };
        series
            .map(|s| {
                (
                    format!("{} {} {:?}", s.consumer, s.name, s.labels),
                    value(&s),
                )
            })
            .collect()
    }

    #[test]
    fn what_is_measured_carries_the_consumers_name() {
        let measured = Arc::new(Measured::default());
        for (consumer, times) in [("irc", 1), ("archive", 2)] {
            with_local_recorder(&measured.recorder(consumer), || {
                describe_counter!("posts", "What was posted.");
                for _ in 0..times {
                    counter!("posts", "channel" => "#weir").increment(2);
                    gauge!("open.connections").increment(1.5);
                    histogram!("rows").record(3.0);
                }
            });
        }
        let values = values(&measured);
        assert_eq!(values[r##"irc posts_total [("channel", "#weir")]"##], 2.0);
        assert_eq!(
            values[r##"archive posts_total [("channel", "#weir")]"##],
            4.0
        );
        assert_eq!(values["archive open_connections []"], 3.0);
        assert_eq!(values["archive rows []"], 6.0);
        assert_eq!(measured.refused(), 0);
        let posts = measured.snapshot();
        assert!(posts.iter().any(|series| series.help == "What was posted."));
    }

    #[test]
    fn series_without_bound_are_refused_and_counted() {
        let measured = Arc::new(Measured::default());
        with_local_recorder(&measured.recorder("irc"), || {
            for id in 0..10_000 {
                counter!("messages", "id" => id.to_string()).increment(1);
            }
        });
        assert_eq!(measured.snapshot().len(), SERIES_MAX);
        assert!(measured.refused() >= SERIES_MAX as u64);
        assert!(measured.consumers.lock()[0].series.read().len() <= 2 * SERIES_MAX);
    }

    #[test]
    fn what_no_system_would_take_is_refused() {
        let measured = Arc::new(Measured::default());
        with_local_recorder(&measured.recorder("irc"), || {
            counter!("weir_consumer_received").increment(1);
            counter!("two words").increment(1);
            gauge!("posts_total").set(1.0);
            counter!("posts").increment(1); // is exported by the name of the gauge
            counter!("sent", "consumer" => "other").increment(1);
            counter!("sent", "text" => "x".repeat(1000)).increment(1);
            counter!("sent", "__name__" => "up").increment(1);
            counter!("_total").increment(1);
            histogram!("rows").record(1.0);
            gauge!("rows_sum").set(1.0); // is a part of the histogram
            counter!("files_total").increment(1);
            gauge!("files").set(1.0); // is the counter's family in OpenMetrics
        });
        let names: Vec<String> = measured.snapshot().into_iter().map(|s| s.name).collect();
        assert_eq!(names, ["files_total", "posts_total", "rows"]);
        assert_eq!(measured.refused(), 9);
    }
}
