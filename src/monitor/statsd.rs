//! Figures to a statsd server.
//!
//! statsd has no labels, so a small layer makes them parts of the name:
//! `weir_consumer_dropped_total{hub, consumer, reason}` becomes
//! `weir.HUB.consumer.NAME.dropped_total.REASON`. What statsd makes special in a name (`.`, `:`,
//! `|`, `@`, `/`, spaces) becomes `_` (etsy/statsd `stats.js`, and the server measured).
//!
//! The exporter sends a packet a call unless it is given a buffered sink, and never flushes that:
//! so the sink is ours to flush after every interval, and only absolute gauges and counters'
//! differences go through it.

use std::net::{ToSocketAddrs, UdpSocket};
use std::panic::RefUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use cadence::{BufferedUdpMetricSink, MetricSink};
use metrics::{
    Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit, counter,
    gauge, with_local_recorder,
};
use metrics_exporter_statsd::{StatsdBuilder, StatsdRecorder};
use serde::Deserialize;
use tracing::debug;
use weir_consumer::settings::{self, Mistake, duration};

use super::{ConsumerFigures, Figures};
use crate::journal;
use crate::stats::{Reason, Refusal, Snapshot, State};

/// What fits into a packet on every network (IPv6's least MTU less its headers).
const PACKET_MAX: usize = 1232;

/// The `[statsd]` section; `src/sample.toml` explains each key.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Settings {
    pub address: String,
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
    pub prefix: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            address: "127.0.0.1:8125".into(),
            interval: Duration::from_secs(1),
            prefix: "weir".into(),
        }
    }
}

impl Settings {
    /// Reads the section.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(section: &settings::Settings) -> Result<Self, Vec<Mistake>> {
        let settings: Settings = section.parse()?;
        let mut mistakes = Vec::new();
        let port = settings
            .address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) || settings.address.starts_with(':') {
            mistakes.push(section.mistake_at("address", "expected HOST:PORT"));
        }
        if settings.interval < Duration::from_millis(10) {
            mistakes.push(section.mistake_at("interval", "expected at least 10ms"));
        }
        if settings.prefix.is_empty() || settings.prefix.contains([':', '|', '@', '#', ' ', '\n']) {
            let text = "expected a name without the characters that statsd makes special";
            mistakes.push(section.mistake_at("prefix", text));
        }
        match mistakes.is_empty() {
            true => Ok(settings),
            false => Err(mistakes),
        }
    }
}

/// Sends the figures of each interval.
pub(crate) struct Statsd {
    recorder: Flatten<StatsdRecorder>,
    sink: Sink,
    interval: Duration,
    /// What each consumer's counters were when they were last sent.
    sent: Vec<Snapshot>,
    sources: Vec<[u64; Refusal::ALL.len() + 1]>,
    /// Dead letters that had expired then.
    expired: u64,
    begun: bool,
}

#[derive(Clone)]
struct Sink(Arc<BufferedUdpMetricSink>);

// The exporter asks for it; a panic inside the sink poisons its lock, which it then reports.
impl RefUnwindSafe for Sink {}

impl MetricSink for Sink {
    fn emit(&self, metric: &str) -> std::io::Result<usize> {
        self.0.emit(metric)
    }
}

impl Statsd {
    /// Sends to this server from now on; statsd being UDP, it need not be there.
    ///
    /// # Errors
    /// When the host has no address or there is no socket to be had.
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        let wrong =
            |error: String| format!("can't send to statsd at {}: {error}", settings.address);
        let to = (settings.address.to_socket_addrs())
            .map_err(|error| wrong(error.to_string()))?
            .next()
            .ok_or_else(|| wrong("the host has no address".into()))?;
        let from = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(from).map_err(|error| wrong(error.to_string()))?;
        socket
            .set_nonblocking(true)
            .map_err(|error| wrong(error.to_string()))?;
        let sink = BufferedUdpMetricSink::with_capacity(to, socket, PACKET_MAX)
            .map_err(|error| wrong(error.to_string()))?;
        let sink = Sink(Arc::new(sink));
        let recorder = StatsdBuilder::default()
            .with_sink(sink.clone())
            .build(Some(&settings.prefix))
            .map_err(|error| wrong(error.to_string()))?;
        Ok(Statsd {
            recorder: Flatten(recorder),
            sink,
            interval: settings.interval,
            sent: Vec::new(),
            sources: Vec::new(),
            expired: 0,
            begun: false,
        })
    }

    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    /// Sends all figures as they are now.
    pub(crate) fn send(&mut self, figures: &Figures) {
        let shots: Vec<Snapshot> = figures
            .consumers
            .iter()
            .map(|consumer| consumer.stats.snapshot())
            .collect();
        self.sent.resize_with(shots.len(), Snapshot::default);
        self.sources
            .resize(figures.sources.len(), Default::default());
        let (sent, sources, begun) = (&self.sent, &mut self.sources, self.begun);
        let expired = &mut self.expired;
        let letters = figures
            .dead_letters
            .as_ref()
            .map(|letters| letters.summary());
        with_local_recorder(&self.recorder, || {
            for ((consumer, shot), sent) in figures.consumers.iter().zip(&shots).zip(sent) {
                record(&figures.hub, consumer, shot, sent, begun);
                if let Some(letters) = &letters {
                    let letters = letters.get(&consumer.name).cloned().unwrap_or_default();
                    let labels = [
                        ("hub", figures.hub.clone()),
                        ("consumer", consumer.name.clone()),
                    ];
                    let age_ns = match letters.oldest_ns {
                        0 => 0,
                        oldest_ns => shot.at_ns.saturating_sub(oldest_ns),
                    };
                    gauge!("weir_consumer_dead_letters", &labels).set(letters.letters as f64);
                    gauge!("weir_consumer_dead_letters_requeued", &labels)
                        .set(letters.requeued as f64);
                    gauge!("weir_consumer_dead_letters_age_seconds", &labels)
                        .set(age_ns as f64 / 1e9);
                }
            }
            if let Some(store) = &figures.dead_letters {
                let labels = [("hub", figures.hub.clone())];
                let now = store.expired();
                if now > *expired || !begun {
                    counter!("weir_hub_dead_letters_expired_total", &labels)
                        .increment(now - *expired);
                    *expired = now;
                }
            }
            if let Some(journal) = &figures.journal {
                let shot = journal.snapshot();
                let labels = [("hub", figures.hub.clone())];
                let failed = matches!(shot.state, journal::State::Failed { .. });
                for (name, value) in [
                    ("weir_journal_bytes", shot.bytes as f64),
                    ("weir_journal_segments", shot.segments as f64),
                    ("weir_journal_begin", shot.begin as f64),
                    ("weir_journal_end", shot.end as f64),
                    ("weir_journal_durable", shot.durable as f64),
                    ("weir_journal_failed", f64::from(u8::from(failed))),
                ] {
                    gauge!(name, &labels).set(value);
                }
            }
            for (index, (source, sent)) in figures.sources.iter().zip(sources).enumerate() {
                let shot = source.stats.snapshot();
                let count = |name: &'static str, reason: &'static str, now: u64, then: &mut u64| {
                    if now > *then || !begun {
                        let source = index.to_string();
                        let labels = [
                            ("hub", figures.hub.clone()),
                            ("source", source),
                            ("reason", reason.into()),
                        ];
                        let labels = &labels[..if reason.is_empty() { 2 } else { 3 }];
                        counter!(name, labels).increment(now - *then);
                        *then = now;
                    }
                };
                let [received, refused @ ..] = sent;
                count("weir_source_received_total", "", shot.received, received);
                for ((why, now), then) in shot.refused.iter().zip(refused) {
                    count("weir_source_refused_total", why.as_str(), now, then);
                }
            }
        });
        (self.sent, self.begun) = (shots, true);
        if let Err(error) = self.sink.0.flush() {
            debug!(%error, "statsd did not take all figures; the next interval has them again");
        }
    }
}

fn record(hub: &str, consumer: &ConsumerFigures, shot: &Snapshot, sent: &Snapshot, begun: bool) {
    let labels = [("hub", hub.to_owned()), ("consumer", consumer.name.clone())];
    let gauges = [
        ("weir_consumer_queue_messages", shot.queue_messages as f64),
        (
            "weir_consumer_queue_capacity_messages",
            consumer.capacity as f64,
        ),
        ("weir_consumer_queue_bytes", shot.queue_bytes as f64),
        ("weir_consumer_inflight_messages", shot.in_flight as f64),
        ("weir_consumer_behind_messages", shot.behind_messages as f64),
        ("weir_consumer_retention_used_ratio", shot.retention_used),
        ("weir_consumer_lag_seconds", shot.lag.as_secs_f64()),
        (
            "weir_consumer_last_success_timestamp_seconds",
            shot.last_success_ns as f64 / 1e9,
        ),
    ];
    for (name, value) in gauges {
        gauge!(name, &labels).set(value);
    }
    if let Some(mean) = shot.processing_mean() {
        gauge!("weir_consumer_processing_mean_seconds", &labels).set(mean.as_secs_f64());
    }
    if begun && shot.at_ns > sent.at_ns {
        let worked = shot.processing_ns.saturating_sub(sent.processing_ns) as f64;
        let had = (shot.at_ns - sent.at_ns) as f64 * consumer.workers as f64;
        gauge!("weir_consumer_busy_ratio", &labels).set((worked / had).min(1.0));
    }
    for state in State::ALL {
        let [hub, name] = labels.clone();
        let labels = [hub, name, ("state", state.as_str().to_owned())];
        let here = if state == shot.state { 1.0 } else { 0.0 };
        gauge!("weir_consumer_state", &labels).set(here);
    }
    let counters = [
        ("weir_consumer_received_total", shot.received, sent.received),
        ("weir_consumer_consumed_total", shot.consumed, sent.consumed),
        ("weir_consumer_failed_total", shot.failed, sent.failed),
        ("weir_consumer_retried_total", shot.retried, sent.retried),
        (
            "weir_consumer_dead_lettered_total",
            shot.dead_lettered,
            sent.dead_lettered,
        ),
        ("weir_consumer_panics_total", shot.panics, sent.panics),
    ];
    // A server knows a counter only once it has heard of it: the first time, all are sent.
    for (name, now, then) in counters {
        if now > then || !begun {
            counter!(name, &labels).increment(now - then);
        }
    }
    for reason in Reason::ALL {
        let (now, then) = (shot.dropped.of(reason), sent.dropped.of(reason));
        if now > then || !begun {
            let [hub, name] = labels.clone();
            let labels = [hub, name, ("reason", reason.as_str().to_owned())];
            counter!("weir_consumer_dropped_total", &labels).increment(now - then);
        }
    }
}

/// Makes labels parts of the name.
struct Flatten<R>(R);

fn flat(key: &Key) -> Key {
    let name = key.name().strip_prefix("weir_").unwrap_or(key.name());
    let (group, rest) = name.split_once('_').unwrap_or(("", name));
    let label = |wanted: &str| key.labels().find(|label| label.key() == wanted);
    let mut parts: Vec<&str> = Vec::new();
    parts.extend(label("hub").map(|label| label.value()));
    parts.push(group);
    if group != "hub" {
        parts.extend(label(group).map(|label| label.value()));
    }
    parts.push(rest);
    let others = key
        .labels()
        .filter(|label| label.key() != "hub" && label.key() != group);
    parts.extend(others.map(|label| label.value()));
    let plain = |part: &&str| !part.is_empty();
    let parts: Vec<String> = parts
        .into_iter()
        .filter(plain)
        .map(|part| {
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            part.chars()
                .map(|c| if fits(c) { c } else { '_' })
                .collect()
        })
        .collect();
    Key::from_name(parts.join("."))
}

impl<R: Recorder> Recorder for Flatten<R> {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_counter(key, unit, description);
    }
    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_gauge(key, unit, description);
    }
    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.0.describe_histogram(key, unit, description);
    }
    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.0.register_counter(&flat(key), metadata)
    }
    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.0.register_gauge(&flat(key), metadata)
    }
    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.0.register_histogram(&flat(key), metadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::{Settled, Stats};
    use std::collections::HashMap;
    use std::time::Instant;

    fn lines(server: &UdpSocket) -> HashMap<String, String> {
        let mut lines = HashMap::new();
        let mut packet = [0; 65536];
        server
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut length = server.recv(&mut packet).unwrap();
        server.set_nonblocking(true).unwrap(); // the rest was sent before: loopback keeps it
        loop {
            assert!(length <= PACKET_MAX, "{length}");
            let text = std::str::from_utf8(&packet[..length]).unwrap();
            lines.extend(text.lines().filter_map(|line| {
                line.split_once(':')
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
            }));
            match server.recv(&mut packet) {
                Ok(more) => length = more,
                Err(_) => break,
            }
        }
        server.set_nonblocking(false).unwrap();
        lines
    }

    #[test]
    fn gauges_are_absolute_counters_are_differences_and_every_interval_is_flushed() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let settings = Settings {
            address: server.local_addr().unwrap().to_string(),
            ..Settings::default()
        };
        let stats = Arc::new(Stats::new(1));
        let figures = Figures {
            hub: "fedora".into(),
            started: Instant::now(),
            consumers: vec![ConsumerFigures::new("irc", "log", 1, 100, stats.clone())],
            sources: Vec::new(),
            producers: Vec::new(),
            publish: None,
            journal: None,
            dead_letters: None,
        };
        let mut statsd = Statsd::new(&settings).unwrap();
        stats.received(5, 50, 1);
        stats.worker(0).settle(Settled::Consumed, 2, 20);
        statsd.send(&figures);
        let first = lines(&server);
        assert_eq!(first["weir.fedora.consumer.irc.queue_messages"], "3|g");
        assert_eq!(first["weir.fedora.consumer.irc.received_total"], "5|c");
        assert_eq!(
            first["weir.fedora.consumer.irc.dropped_total.overflow"],
            "0|c"
        );
        assert_eq!(first["weir.fedora.consumer.irc.state.idle"], "1|g");

        stats.received(1, 10, 1);
        stats.dropped(Reason::Overflow, 1, 10);
        statsd.send(&figures);
        let second = lines(&server);
        assert_eq!(second["weir.fedora.consumer.irc.queue_messages"], "3|g");
        assert_eq!(second["weir.fedora.consumer.irc.received_total"], "1|c");
        assert_eq!(
            second["weir.fedora.consumer.irc.dropped_total.overflow"],
            "1|c"
        );
        assert_eq!(second.get("weir.fedora.consumer.irc.consumed_total"), None);
    }

    #[test]
    fn names_hold_nothing_that_statsd_makes_special() {
        let labels = [("hub", "a.b"), ("endpoint", "tcp://h:1|x@y")];
        let key = Key::from_parts("weir_source_gaps_total", &labels);
        assert_eq!(flat(&key).name(), "a_b.source.gaps_total.tcp___h_1_x_y");
        let key = Key::from_parts("weir_hub_dead_letters_expired_total", &[("hub", "a")]);
        assert_eq!(flat(&key).name(), "a.hub.dead_letters_expired_total");
    }
}
