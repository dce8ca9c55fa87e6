//! Figures to a statsd server.
//!
//! statsd has no labels, so they become parts of the name:
//! `weir_consumer_dropped_total{hub, consumer, reason}` becomes
//! `weir.HUB.consumer.NAME.dropped_total.REASON`. What statsd makes special in a name (`.`, `:`,
//! `|`, `@`, `/`, spaces) becomes `_` (etsy/statsd `stats.js`, and the server measured). With
//! `tags = "dogstatsd"` they are tags as DogStatsD has them
//! (docs.datadoghq.com/developers/dogstatsd/datagram_shell), and the name is
//! `weir.consumer.dropped_total`.
//!
//! The exporter sends a packet a call unless it is given a buffered sink, and never flushes that:
//! so the sink is ours to flush after every interval, and only absolute gauges and counters'
//! differences go through it. A histogram is a gauge for each of some quantiles of the interval.

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::panic::RefUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cadence::{BufferedUdpMetricSink, MetricSink};
use crossbeam_channel::{Receiver, TryRecvError};
use metrics::{Key, Label, Level, Metadata, Recorder};
use metrics_exporter_statsd::{StatsdBuilder, StatsdRecorder};
use serde::Deserialize;
use tracing::{debug, info, warn};
use weir_consumer::settings::{self, Mistake, duration};

use super::Exporter;
use super::sample::{Family, Sample, Sort, Value};
use crate::histogram::Counts;

/// What fits into a packet on every network (IPv6's least MTU less its headers).
const PACKET_MAX: usize = 1232;
/// What is told of a histogram: the parts of its values that stay below the gauge's.
pub const QUANTILES: [(&str, f64); 3] = [("p50", 0.5), ("p95", 0.95), ("p99", 0.99)];
const METADATA: Metadata<'static> = Metadata::new("weir", Level::INFO, None);

/// The `[statsd]` section; `src/sample.toml` explains each key.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Settings {
    pub address: String,
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
    pub prefix: String,
    pub tags: Tags,
}

/// What becomes of labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tags {
    /// Parts of the name.
    #[default]
    None,
    /// DogStatsD's tags.
    Dogstatsd,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            address: "127.0.0.1:8125".into(),
            interval: Duration::from_secs(1),
            prefix: "weir".into(),
            tags: Tags::default(),
        }
    }
}

impl Settings {
    /// Reads the section.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(section: &settings::Settings) -> Result<Self, Vec<Mistake>> {
        let (settings, mut mistakes) = section.parse_most::<Settings>();
        let Some(settings) = settings else {
            return Err(mistakes);
        };
        let port = settings
            .address
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) || settings.address.starts_with(':') {
            mistakes.push(
                section.mistake_at("address", "expected HOST:PORT such as \"127.0.0.1:8125\""),
            );
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
    place: Place,
    address: String,
    prefix: String,
    /// That it has no address was said.
    missed: bool,
    interval: Duration,
    tags: Tags,
    /// What of each counter has been sent.
    sent: HashMap<Key, u64>,
    /// What each histogram was when it was last sent.
    counts: HashMap<Key, Counts>,
    /// The gauges that the server knows.
    gauges: HashSet<Key>,
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

/// What is sent through.
struct Line {
    recorder: StatsdRecorder,
    sink: Sink,
}

/// Before a name that has no address is looked up again.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Where the server is.
enum Place {
    At(Line),
    /// Somebody is looking its name up: that may take long, and the monitor does not wait for it.
    Sought(Receiver<Result<SocketAddr, String>>),
    /// The name has no address; it is sought again then.
    Nowhere(Instant),
}

impl Line {
    fn open(to: SocketAddr, prefix: &str) -> Result<Self, String> {
        let from = if to.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(from).map_err(|error| error.to_string())?;
        socket
            .set_nonblocking(true)
            .map_err(|error| error.to_string())?;
        let sink = BufferedUdpMetricSink::with_capacity(to, socket, PACKET_MAX)
            .map_err(|error| error.to_string())?;
        let sink = Sink(Arc::new(sink));
        let recorder = StatsdBuilder::default()
            .with_sink(sink.clone())
            .build(Some(prefix))
            .map_err(|error| error.to_string())?;
        Ok(Line { recorder, sink })
    }
}

/// Looks a name up on a thread of its own.
fn seek(address: &str) -> Place {
    let (found, sought) = crossbeam_channel::bounded(1);
    let name = address.to_owned();
    let look = move || {
        let found_at = name.to_socket_addrs().map(|mut all| all.next());
        let at = match found_at {
            Ok(Some(at)) => Ok(at),
            Ok(None) => Err("the name has no address".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        let _ = found.send(at);
    };
    // Without the thread the channel is closed, which reads as a name without an address.
    let _ = std::thread::Builder::new()
        .name("weir-lookup".into())
        .spawn(look);
    Place::Sought(sought)
}

impl Statsd {
    /// Sends to this server from now on; statsd being UDP, it need not be there, and its name need
    /// not have an address yet.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        let address = &settings.address;
        let place = match address.parse() {
            Ok(at) => Place::At(
                Line::open(at, &settings.prefix)
                    .map_err(|error| format!("can't send to statsd at {address}: {error}"))?,
            ),
            Err(_) => seek(address),
        };
        Ok(Statsd {
            place,
            address: address.clone(),
            prefix: settings.prefix.clone(),
            missed: false,
            interval: settings.interval,
            tags: settings.tags,
            sent: HashMap::new(),
            counts: HashMap::new(),
            gauges: HashSet::new(),
        })
    }

    /// Goes on looking for the server; answers whether it is known where it is.
    fn find(&mut self) -> bool {
        let found = match &self.place {
            Place::At(_) => return true,
            Place::Nowhere(again) if Instant::now() < *again => return false,
            Place::Nowhere(_) => {
                self.place = seek(&self.address);
                return false;
            }
            Place::Sought(sought) => match sought.try_recv() {
                Ok(found) => found,
                Err(TryRecvError::Empty) => return false,
                Err(TryRecvError::Disconnected) => Err("it can't be looked up now".to_owned()),
            },
        };
        match found.and_then(|at| Line::open(at, &self.prefix)) {
            Ok(line) => {
                if std::mem::take(&mut self.missed) {
                    info!(address = self.address, "statsd has an address now");
                }
                self.place = Place::At(line);
                true
            }
            Err(why) => {
                if !std::mem::replace(&mut self.missed, true) {
                    let address = &self.address;
                    warn!(
                        address,
                        why, "statsd has no address; it is sought again every 10 s"
                    );
                }
                self.place = Place::Nowhere(Instant::now() + LOOK_AGAIN);
                false
            }
        }
    }

    fn figure(&mut self, family: &Family<'_>, labels: &[(&str, &str)], value: Value<'_>) {
        match (family.sort, value) {
            (Sort::Counter, Value::Number(now)) => self.count(key(family, labels, self.tags), now),
            (_, Value::Number(now)) => self.gauge(key(family, labels, self.tags), now),
            (_, Value::Counts(now)) => {
                let own = key(family, labels, self.tags);
                let new = match self.counts.get(&own) {
                    Some(then) => now.since(then),
                    None => now.clone(),
                };
                self.counts.insert(own, now.clone());
                for (name, part) in QUANTILES {
                    if let Some(value) = new.quantile(part) {
                        let name = format!("{}.{name}", family.name);
                        let family = Family {
                            name: &name,
                            ..*family
                        };
                        self.gauge(key(&family, labels, self.tags), value);
                    }
                }
            }
        }
    }

    /// A server knows a counter only once it has heard of it: the first time, also none is sent.
    fn count(&mut self, key: Key, now: f64) {
        let now = now as u64;
        let sent = self.sent.get(&key).copied();
        if sent.is_none_or(|sent| now > sent) {
            let new = now.saturating_sub(sent.unwrap_or(0));
            if let Place::At(line) = &self.place {
                (line.recorder.register_counter(&key, &METADATA)).increment(new);
            }
            self.sent.insert(key, now);
        }
    }

    fn gauge(&mut self, key: Key, now: f64) {
        if !now.is_finite() {
            return;
        }
        let Place::At(line) = &self.place else { return };
        let gauge = line.recorder.register_gauge(&key, &METADATA);
        if now < 0.0 && self.tags == Tags::None {
            gauge.set(0.0); // a sign makes it a difference to what the server has
        }
        gauge.set(now);
        self.gauges.insert(key);
    }
}

impl Exporter for Statsd {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn export(&mut self, sample: &Sample) {
        if !self.find() {
            return;
        }
        let known = std::mem::take(&mut self.gauges);
        sample.each(&mut |family, labels, value| self.figure(family, labels, value));
        let Place::At(line) = &self.place else { return };
        for key in known {
            // The server keeps a gauge for ever: one that is gone is 0 there, and not what it was.
            if !self.gauges.contains(&key) {
                line.recorder.register_gauge(&key, &METADATA).set(0.0);
            }
        }
        if let Err(error) = line.sink.0.flush() {
            debug!(%error, "statsd did not take all figures; the next interval has them again");
        }
    }
}

/// A figure's name there.
fn key(family: &Family<'_>, labels: &[(&str, &str)], tags: Tags) -> Key {
    // `weir_consumer_lag_seconds`: what it is about and the rest; consumers' own have no group.
    let (group, rest) = match family.name.strip_prefix("weir_") {
        Some(name) => name.split_once('_').unwrap_or(("", name)),
        None => ("consumer", family.name),
    };
    match tags {
        Tags::Dogstatsd => {
            let name = match family.name.starts_with("weir_") {
                true => format!("{group}.{rest}"),
                false => rest.to_owned(),
            };
            // `,` and `|` divide tags, and `#` begins them.
            let plain = |text: &str| text.replace([',', '|', '#', '\n'], "_");
            let labels = labels
                .iter()
                .map(|(key, value)| Label::new(plain(key), plain(value)));
            Key::from_parts(name, labels.collect::<Vec<_>>())
        }
        Tags::None => {
            let label = |wanted: &str| labels.iter().find(|(key, _)| *key == wanted);
            let mut parts: Vec<&str> = Vec::new();
            parts.extend(label("hub").map(|(_, value)| *value));
            parts.push(group);
            if group != "hub" {
                parts.extend(label(group).map(|(_, value)| *value));
            }
            let (rest, quantile) = rest.split_once('.').unwrap_or((rest, ""));
            parts.push(rest);
            let others = (labels.iter()).filter(|(key, _)| *key != "hub" && *key != group);
            parts.extend(others.map(|(_, value)| *value));
            parts.push(quantile);
            let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
            let plain = |part: &str| -> String {
                part.chars()
                    .map(|c| if fits(c) { c } else { '_' })
                    .collect()
            };
            let parts = parts.into_iter().filter(|part| !part.is_empty());
            let parts: Vec<String> = parts.map(plain).collect();
            Key::from_name(parts.join("."))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::{ConsumerFigures, Figures};
    use crate::stats::{Reason, Settled, Stats};
    use metrics::with_local_recorder;

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

    fn consumer(stats: &Arc<Stats>) -> Figures {
        let consumer = ConsumerFigures::new("irc", "log", vec![], 100, stats.clone());
        Figures::new("fedora", vec![consumer])
    }

    fn server() -> (UdpSocket, Settings) {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let settings = Settings {
            address: server.local_addr().unwrap().to_string(),
            ..Settings::default()
        };
        (server, settings)
    }

    #[test]
    fn gauges_are_absolute_counters_are_differences_and_every_interval_is_flushed() {
        let (server, settings) = server();
        let stats = Arc::new(Stats::new(1));
        let figures = consumer(&stats);
        let mut statsd = Statsd::new(&settings).unwrap();
        stats.received(5, 50, 1);
        stats.worker(0).settle(Settled::Consumed, 2, 20);
        let wait = Duration::from_secs(20);
        (stats.worker(0)).timed(2, wait, Duration::from_millis(3), 1);
        statsd.export(&figures.sample());
        let first = lines(&server);
        let figure = |lines: &HashMap<String, String>, name: &str| {
            lines
                .get(&format!("weir.fedora.consumer.irc.{name}"))
                .cloned()
        };
        assert_eq!(figure(&first, "queue_messages").unwrap(), "3|g");
        assert_eq!(figure(&first, "received_total").unwrap(), "5|c");
        assert_eq!(figure(&first, "dropped_total.overflow").unwrap(), "0|c");
        assert_eq!(figure(&first, "state.idle").unwrap(), "1|g");
        let half = figure(&first, "processing_seconds.p50").unwrap();
        let half: f64 = half.strip_suffix("|g").unwrap().parse().unwrap();
        assert!((0.001..=0.005).contains(&half), "{half}");

        stats.received(1, 10, 1);
        stats.dropped(Reason::Overflow, 1, 10);
        statsd.export(&figures.sample());
        let second = lines(&server);
        assert_eq!(figure(&second, "queue_messages").unwrap(), "3|g");
        assert_eq!(figure(&second, "received_total").unwrap(), "1|c");
        assert_eq!(figure(&second, "dropped_total.overflow").unwrap(), "1|c");
        assert_eq!(figure(&second, "consumed_total"), None);
        // Nothing was delivered since, so there is nothing to tell of it.
        assert_eq!(figure(&second, "processing_seconds.p50").unwrap(), "0|g");
    }

    #[test]
    fn a_server_without_an_address_is_sought_again_and_nothing_is_lost_meanwhile() {
        let (server, settings) = server();
        let stats = Arc::new(Stats::new(1));
        let figures = consumer(&stats);
        let port = settings.address.rsplit_once(':').unwrap().1;
        let address = format!("no-such-name.invalid:{port}");
        let mut statsd = Statsd::new(&Settings {
            address,
            ..settings.clone()
        })
        .unwrap();
        stats.received(5, 50, 1);
        while !statsd.missed {
            statsd.export(&figures.sample());
            std::thread::yield_now();
        }
        assert!(matches!(statsd.place, Place::Nowhere(_)));
        statsd.address = format!("localhost:{port}");
        statsd.place = Place::Nowhere(Instant::now());
        while statsd.missed {
            statsd.export(&figures.sample());
            std::thread::yield_now();
        }
        // localhost may be ::1, where nobody listens.
        statsd.place = Place::At(Line::open(settings.address.parse().unwrap(), "weir").unwrap());
        statsd.sent.clear();
        statsd.export(&figures.sample());
        assert_eq!(
            lines(&server)["weir.fedora.consumer.irc.received_total"],
            "5|c"
        );
    }

    #[test]
    fn what_consumers_measure_is_sent_with_their_name() {
        let (server, settings) = server();
        let figures = consumer(&Arc::new(Stats::new(1)));
        let mut statsd = Statsd::new(&settings).unwrap();
        with_local_recorder(&figures.measured.recorder("irc"), || {
            metrics::counter!("posts", "channel" => "#weir").increment(2);
            metrics::gauge!("balance").set(-3.0);
        });
        statsd.export(&figures.sample());
        let lines = lines(&server);
        assert_eq!(lines["weir.fedora.consumer.irc.posts_total._weir"], "2|c");
        assert_eq!(lines["weir.fedora.consumer.irc.balance"], "-3|g");
    }

    #[test]
    fn dogstatsd_is_sent_tags() {
        let (server, settings) = server();
        let stats = Arc::new(Stats::new(1));
        let figures = consumer(&stats);
        let tags = Tags::Dogstatsd;
        let mut statsd = Statsd::new(&Settings { tags, ..settings }).unwrap();
        stats.received(5, 50, 1);
        statsd.export(&figures.sample());
        let lines = lines(&server);
        // Lines of one name differ in their tags only: any of them will do.
        assert_eq!(
            lines["weir.consumer.queue_messages"],
            "5|g|#hub:fedora,consumer:irc"
        );
        let dropped = &lines["weir.consumer.dropped_total"];
        assert!(
            dropped.starts_with("0|c|#hub:fedora,consumer:irc,reason:"),
            "{dropped}"
        );
    }

    #[test]
    fn names_hold_nothing_that_statsd_makes_special() {
        let named = |name: &str, labels: &[(&str, &str)]| {
            let family = Family {
                name,
                help: "",
                sort: Sort::Gauge,
            };
            key(&family, labels, Tags::None).name().to_owned()
        };
        let labels = [
            ("hub", "a.b"),
            ("source", "0"),
            ("endpoint", "tcp://h:1|x@y"),
        ];
        assert_eq!(
            named("weir_source_gaps_total", &labels),
            "a_b.source.0.gaps_total.tcp___h_1_x_y"
        );
        let expired = named("weir_hub_dead_letters_expired_total", &[("hub", "a")]);
        assert_eq!(expired, "a.hub.dead_letters_expired_total");
    }
}
