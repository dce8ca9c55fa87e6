//! The text of `GET /metrics`, as Prometheus and all who read its formats take it.
//!
//! A page is the monitor's last sample written down: asking for it measures nothing and changes
//! nothing. It comes as OpenMetrics 1.0 to who accepts that, and in Prometheus' older text format
//! 0.0.4 to everybody else, such as `curl`, a browser or `promtool check metrics`. The two differ
//! only in what a counter's family is called and in the mark at the end; names, labels and values
//! of samples are the same, so that a server may change over without a break in its series.
//!
//! Promises:
//!
//! 1. The samples of a family stand together, behind its one `HELP` and `TYPE`.
//! 2. What can't be said now is absent: there is no `drain_seconds` while nothing drains.
//! 3. No text from outside breaks a line.
//!
//! `metrics-exporter-prometheus` speaks no OpenMetrics, can't take a gauge back and wants the
//! values of a histogram one by one; `prometheus-client` is handed ready numbers here instead.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use super::sample::{Family, Sample, Sort, Value};
use crate::histogram::Counts;
use crate::measured;

/// The formats of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// The better one of those that the header `Accept` names.
    pub fn accepted(accept: &str) -> Self {
        let wants_it = accept.split(',').any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = (parts.next())
                .is_some_and(|name| name.eq_ignore_ascii_case("application/openmetrics-text"));
            // `q=0` is how a client says that it does not take it.
            let quality = parts.find_map(|part| part.strip_prefix("q="));
            named && quality.and_then(|q| q.parse().ok()) != Some(0.0)
        });
        match wants_it {
            true => Format::OpenMetrics,
            false => Format::Text,
        }
    }

    /// The header `Content-Type` of a page in it.
    pub fn content_type(self) -> &'static str {
        match self {
            Format::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Format::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// A help text in one line.
    fn escaped(self, help: &str) -> String {
        let help = help.replace('\\', r"\\").replace('\n', r"\n");
        match self {
            Format::OpenMetrics => help.replace('"', "\\\""),
            Format::Text => help,
        }
    }
}

/// Writes down a sample.
///
/// # Errors
/// None that is known of: the encoder has an error in its signature.
pub fn page(sample: &Arc<Sample>, format: Format) -> Result<String, fmt::Error> {
    let sample = sample.clone();
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page { sample, format }));
    let mut text = String::new();
    encode_registry(&mut text, &registry)?;
    if format == Format::OpenMetrics {
        encode_eof(&mut text)?;
    }
    Ok(text)
}

struct Page {
    sample: Arc<Sample>,
    format: Format,
}

impl fmt::Debug for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Page({})", self.sample.hub)
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // A family's head must be written once and the encoder keeps it borrowed until its end, so
        // each is gathered first.
        let mut families: Vec<Gathered> = Vec::new();
        self.sample.each(&mut |family, labels, value| {
            let series = Series::new(labels, value);
            match families.last_mut() {
                Some(last) if last.name == family.name => last.series.push(series),
                _ => families.push(Gathered::new(family, series)),
            }
        });
        (families.iter()).try_for_each(|family| family.encode(&mut encoder, self.format))
    }
}

struct Gathered {
    name: String,
    help: String,
    sort: Sort,
    series: Vec<Series>,
}

struct Series {
    labels: Vec<(String, String)>,
    value: measured::Value,
}

impl Series {
    fn new(labels: &[(&str, &str)], value: Value<'_>) -> Self {
        let labels = labels.iter();
        Series {
            labels: labels
                .map(|(key, value)| ((*key).into(), (*value).into()))
                .collect(),
            value: match value {
                Value::Number(number) => measured::Value::Number(number),
                Value::Counts(counts) => measured::Value::Counts(counts.clone()),
            },
        }
    }
}

impl Gathered {
    fn new(family: &Family<'_>, first: Series) -> Self {
        Gathered {
            name: family.name.into(),
            help: match family.help {
                "" => "What a consumer's author measures.".into(),
                help => help.into(),
            },
            sort: family.sort,
            series: vec![first],
        }
    }

    fn encode(&self, encoder: &mut DescriptorEncoder<'_>, format: Format) -> fmt::Result {
        // In OpenMetrics `_total` belongs to a counter's samples, in the older format to its name.
        let (name, sort) = match (self.sort, format) {
            (Sort::Counter, Format::OpenMetrics) => {
                let name = self.name.strip_suffix("_total");
                (name.unwrap_or(&self.name), MetricType::Counter)
            }
            (Sort::Counter, Format::Text) => (&*self.name, MetricType::Counter),
            (Sort::Gauge, _) => (&*self.name, MetricType::Gauge),
            (Sort::Histogram, _) => (&*self.name, MetricType::Histogram),
        };
        let help = format.escaped(&self.help);
        let mut head = encoder.encode_descriptor(name, &help, None, sort)?;
        for series in &self.series {
            let mut line = head.encode_family(&series.labels)?;
            match (&series.value, self.sort, format) {
                (measured::Value::Number(number), Sort::Counter, Format::OpenMetrics) => {
                    line.encode_counter::<NoLabelSet, f64, f64>(number, None)?;
                }
                // A plain sample by the family's name.
                (measured::Value::Number(number), ..) => line.encode_gauge(number)?,
                (measured::Value::Counts(counts), ..) => {
                    let (sum, buckets) = (counts.sum, buckets(counts));
                    line.encode_histogram::<NoLabelSet>(sum, counts.count(), &buckets, None)?;
                }
            }
        }
        Ok(())
    }
}

/// Every bound with the number of values below it and above the one before: the encoder adds up.
fn buckets(counts: &Counts) -> Vec<(f64, u64)> {
    let bounds = counts.bounds.iter().copied();
    let bounds = bounds.chain(std::iter::once(f64::INFINITY));
    bounds.zip(counts.counts.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::sample::families;
    use crate::monitor::{ConsumerFigures, Figures};
    use crate::stats::{Settled, Stats};
    use metrics::with_local_recorder;
    use std::collections::HashSet;
    use std::time::Duration;

    fn figures(stats: &Arc<Stats>) -> Figures {
        let consumer = ConsumerFigures::new("irc", "log", vec![], 100, stats.clone());
        Figures::new("fe\"do\\ra", vec![consumer])
    }

    /// The lines that have this in them.
    fn lines<'t>(text: &'t str, what: &str) -> Vec<&'t str> {
        text.lines().filter(|line| line.contains(what)).collect()
    }

    #[test]
    fn a_family_stands_together_in_both_formats() {
        let stats = Arc::new(Stats::new(1));
        stats.received(5, 50, 1);
        stats.worker(0).settle(Settled::Consumed, 2, 20);
        let sample = figures(&stats).latest();
        let modern = page(&sample, Format::OpenMetrics).unwrap();
        let plain = page(&sample, Format::Text).unwrap();
        let labels = r#"{hub="fe\"do\\ra",consumer="irc"}"#;
        let expected = [
            "# HELP weir_consumer_received Messages offered to its queue.",
            "# TYPE weir_consumer_received counter",
            &format!("weir_consumer_received_total{labels} 5.0"),
        ];
        assert_eq!(lines(&modern, "weir_consumer_received"), expected);
        let expected = [
            "# HELP weir_consumer_received_total Messages offered to its queue.",
            "# TYPE weir_consumer_received_total counter",
            &format!("weir_consumer_received_total{labels} 5.0"),
        ];
        assert_eq!(lines(&plain, "weir_consumer_received"), expected);
        let depth = format!("weir_consumer_queue_messages{labels} 3.0");
        for text in [&modern, &plain] {
            assert!(text.lines().any(|line| line == depth), "{text}");
            let heads = lines(text, "# TYPE");
            let names: HashSet<&str> = heads.iter().copied().collect();
            assert_eq!(names.len(), heads.len());
        }
        assert!(modern.ends_with("\n# EOF\n"));
        assert!(!plain.contains("EOF"));
        let samples = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(samples(&modern), samples(&plain));
    }

    #[test]
    fn what_can_not_be_said_now_is_absent() {
        let sample = figures(&Arc::new(Stats::new(1))).latest();
        let text = page(&sample, Format::OpenMetrics).unwrap();
        assert_eq!(lines(&text, "drain_seconds"), [""; 0]);
        assert_eq!(lines(&text, "weir_journal"), [""; 0]);
        assert!(!lines(&text, "lag_seconds").is_empty());
    }

    #[test]
    fn a_histogram_adds_up() {
        let stats = Arc::new(Stats::new(1));
        let worker = stats.worker(0);
        for (wait, took) in [(1, 1), (1, 3), (2, 90_000)] {
            let wait = Duration::from_secs(wait);
            worker.timed(1, wait, Duration::from_millis(took), 1);
        }
        let text = page(&figures(&stats).latest(), Format::OpenMetrics).unwrap();
        let value = |start: &str| {
            let name = format!("weir_consumer_processing_seconds_{start}");
            let line = text.lines().find(|line| line.starts_with(&name)).unwrap();
            line.rsplit_once(' ').unwrap().1.to_owned()
        };
        assert_eq!(value("count"), "3");
        assert_eq!(value("sum"), "90.004");
        assert_eq!(value("bucket{le=\"0.001\""), "1");
        assert_eq!(value("bucket{le=\"0.005\""), "2");
        assert_eq!(value("bucket{le=\"60.0\""), "2");
        assert_eq!(value("bucket{le=\"+Inf\""), "3");
    }

    #[test]
    fn no_text_from_outside_breaks_a_line() {
        let figures = figures(&Arc::new(Stats::new(1)));
        with_local_recorder(&figures.measured.recorder("irc"), || {
            metrics::describe_counter!("posts", "Said \"so\"\nor C:\\so");
            metrics::counter!("posts", "channel" => "\"#a\\b\"").increment(2);
        });
        let sample = figures.latest();
        let labels = r##"{hub="fe\"do\\ra",consumer="irc",channel="\"#a\\b\""}"##;
        let modern = page(&sample, Format::OpenMetrics).unwrap();
        let expected = [
            r#"# HELP posts Said \"so\"\nor C:\\so"#,
            "# TYPE posts counter",
            &format!("posts_total{labels} 2.0"),
        ];
        assert_eq!(lines(&modern, "posts"), expected);
        let plain = page(&sample, Format::Text).unwrap();
        let help = r#"# HELP posts_total Said "so"\nor C:\\so"#;
        assert_eq!(lines(&plain, "HELP posts"), [help]);
    }

    #[test]
    fn no_family_has_the_name_of_anothers_samples() {
        let mut taken = HashSet::new();
        for family in families() {
            for name in measured::taken(family.name, family.sort) {
                assert!(taken.insert(name.clone()), "{name} twice");
            }
        }
    }

    #[test]
    fn the_format_is_what_the_client_takes() {
        let prometheus = "application/openmetrics-text;version=1.0.0,\
                          application/openmetrics-text;version=0.0.1;q=0.75,\
                          text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        assert_eq!(Format::accepted(prometheus), Format::OpenMetrics);
        assert_eq!(
            Format::accepted("text/plain, Application/OpenMetrics-Text; q=0.1"),
            Format::OpenMetrics
        );
        for other in [
            "",
            "*/*",
            "text/plain;version=0.0.4",
            "application/openmetrics-text;version=1.0.0;q=0",
            "text/html,application/xml;q=0.9",
        ] {
            assert_eq!(Format::accepted(other), Format::Text, "{other}");
        }
    }
}
