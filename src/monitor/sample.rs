//! All figures of a hub at one moment, by name: what every exporter is fed.
//!
//! [`Sample::each`] is the one list of what there is to export: an exporter knows how its peer
//! writes a gauge, not which gauges there are. `docs/figures.md` has the list for people, and a
//! test holds it against this one.
//!
//! Names are Prometheus's: `weir_` and what it belongs to, the unit last, counters end in `_total`
//! (prometheus.io/docs/practices/naming). Labels are few and bounded: instances of the
//! configuration, words of an enum; never a topic, an identifier or a text.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use weir_consumer::Message;

use crate::dead_letters::Summary;
use crate::forecast::{Drain, Forecast, Health};
use crate::histogram::{ANY, Counts, PROCESSING, WAITING};
use crate::journal;
pub use crate::measured::Sort;
use crate::measured::{self, Measurement};
use crate::producer::ProducerSnapshot;
use crate::publisher::PublishSnapshot;
use crate::stats::{Loss, Snapshot, SourceSnapshot, State, Stats};

/// All figures of a hub at one moment.
#[derive(Clone)]
pub struct Sample {
    /// When, in nanoseconds since 1970.
    pub at_ns: u64,
    /// The hub's name.
    pub hub: String,
    /// How long it has been up.
    pub uptime: Duration,
    /// Its consumers, in the order of the configuration.
    pub consumers: Vec<ConsumerSample>,
    /// Its sources, in the order of the configuration.
    pub sources: Vec<SourceSample>,
    /// Its producers, in the order of the configuration.
    pub producers: Vec<ProducerSample>,
    /// Its publishing, if it has an outlet.
    pub publish: Option<PublishSnapshot>,
    /// Its journal, if it has one.
    pub journal: Option<journal::Snapshot>,
    /// Dead letters that were deleted because there is no room for more; none if it keeps none.
    pub dead_letters_expired: Option<u64>,
    /// Changes of the CA or the CRL that could not be used; none if no consumer validates.
    pub certificates_refused: Option<u64>,
    /// What consumers measured themselves.
    pub measured: Vec<Measurement>,
    /// Series of theirs that were refused.
    pub measured_refused: u64,
}

/// One consumer at one moment.
#[derive(Clone)]
pub struct ConsumerSample {
    /// The instance's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// The prefixes of topics that it wants.
    pub topics: Vec<String>,
    /// Its threads.
    pub workers: usize,
    /// The bound of its queue.
    pub capacity: usize,
    /// Its counters.
    pub shot: Snapshot,
    /// What follows from them and those before.
    pub forecast: Forecast,
    /// The part of its threads' time since the sample before that it was at work; none for the
    /// first.
    pub busy: Option<f64>,
    /// How long deliveries took.
    pub processing: Counts,
    /// How long messages waited for theirs.
    pub queue_wait: Counts,
    /// Its dead letters; none if the hub keeps none.
    pub dead_letters: Option<Summary>,
    /// For [`Stats::times_since`] only: all else stands above, of one moment.
    pub stats: Arc<Stats>,
}

/// One source at one moment.
#[derive(Clone, Debug)]
pub struct SourceSample {
    /// Its number in the configuration, from 0.
    pub source: String,
    /// Its counters.
    pub shot: SourceSnapshot,
    /// How long its latest message had been under way, by its publisher's clock.
    pub lag: Option<SourceLag>,
}

/// How long a message was under way from its publisher, as far as two clocks can tell.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SourceLag {
    /// From the publisher's timestamp to the intake; 0 if the timestamp is later.
    pub lag: Duration,
    /// By how much the timestamp is later than the intake: so much at least the clocks differ.
    pub skew: Duration,
}

/// No larger payload is looked into for its publisher's time.
const LOOK_MAX: usize = 1 << 20;
/// Times before this are a publisher without a clock, or seconds since something else.
const YEAR_2000_NS: u64 = 946_684_800_000_000_000;

impl SourceLag {
    /// The lag of a message that has its publisher's time at this JSON pointer: a number of seconds
    /// since 1970, as fedmsg has it, or a text as in RFC 3339; none if it has not.
    pub fn of(message: &Message, pointer: &str) -> Option<Self> {
        if message.payload().len() > LOOK_MAX {
            return None;
        }
        // Not the message's own parsed form: that is the consumers', and they would wait for it.
        let body: serde_json::Value = serde_json::from_slice(message.payload()).ok()?;
        let sent_ns = match body.pointer(pointer)? {
            serde_json::Value::Number(seconds) => (seconds.as_f64()? * 1e9) as u64,
            serde_json::Value::String(text) => {
                let time = humantime::parse_rfc3339_weak(text.trim()).ok()?;
                time.duration_since(UNIX_EPOCH).ok()?.as_nanos() as u64
            }
            _ => return None,
        };
        if sent_ns < YEAR_2000_NS {
            return None;
        }
        let received_ns = message.received_ns();
        Some(SourceLag {
            lag: Duration::from_nanos(received_ns.saturating_sub(sent_ns)),
            skew: Duration::from_nanos(sent_ns.saturating_sub(received_ns)),
        })
    }
}

/// One producer at one moment.
#[derive(Clone, Debug)]
pub struct ProducerSample {
    /// The instance's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// How often it is called.
    pub interval: Duration,
    /// Its counters.
    pub shot: ProducerSnapshot,
}

/// What a figure is called, and means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family<'s> {
    /// Its name, such as `weir_consumer_lag_seconds`.
    pub name: &'s str,
    /// One sentence.
    pub help: &'s str,
    /// What sort of figure it is.
    pub sort: Sort,
}

/// A figure's value.
#[derive(Clone, Copy, Debug)]
pub enum Value<'s> {
    /// A gauge's or a counter's.
    Number(f64),
    /// A histogram's.
    Counts(&'s Counts),
}

/// Takes one figure after another; those of a family come together.
pub type Each<'f> = dyn FnMut(&Family<'_>, &[(&str, &str)], Value<'_>) + 'f;

/// Takes the values of one family for one thing, each with one more label or none.
type Put<'f> = dyn FnMut(Option<(&str, &str)>, f64) + 'f;

/// A family, and how to read it off a thing.
struct Row<T> {
    family: Family<'static>,
    read: Read<T>,
}

enum Read<T> {
    Number(fn(&T, &mut Put<'_>)),
    Counts(fn(&T) -> &Counts),
}

const fn gauge<T>(name: &'static str, help: &'static str, read: fn(&T, &mut Put<'_>)) -> Row<T> {
    let sort = Sort::Gauge;
    let family = Family { name, help, sort };
    let read = Read::Number(read);
    Row { family, read }
}

const fn counter<T>(name: &'static str, help: &'static str, read: fn(&T, &mut Put<'_>)) -> Row<T> {
    let sort = Sort::Counter;
    let family = Family { name, help, sort };
    let read = Read::Number(read);
    Row { family, read }
}

const fn histogram<T>(name: &'static str, help: &'static str, read: fn(&T) -> &Counts) -> Row<T> {
    let sort = Sort::Histogram;
    let family = Family { name, help, sort };
    let read = Read::Counts(read);
    Row { family, read }
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}

const HUB: &[Row<Sample>] = &[
    gauge(
        "weir_hub_uptime_seconds",
        "How long the hub has been up.",
        |s, put| {
            put(None, s.uptime.as_secs_f64());
        },
    ),
    counter(
        "weir_hub_dead_letters_expired_total",
        "Dead letters deleted because dead_letters.keep allows no more.",
        |s, put| {
            s.dead_letters_expired
                .into_iter()
                .for_each(|n| put(None, n as f64))
        },
    ),
    counter(
        "weir_hub_certificates_refused_total",
        "Changes of fedmsg.ca or fedmsg.crl that could not be used.",
        |s, put| {
            s.certificates_refused
                .into_iter()
                .for_each(|n| put(None, n as f64))
        },
    ),
    gauge(
        "weir_hub_measurements_refused",
        "Series of consumers' own metrics that are not exported: too many, or badly named.",
        |s, put| put(None, s.measured_refused as f64),
    ),
    counter(
        "weir_hub_published_total",
        "Messages handed to ZeroMQ.",
        |s, put| {
            s.publish.iter().for_each(|p| put(None, p.sent as f64));
        },
    ),
    counter(
        "weir_hub_publish_refused_total",
        "Messages not published because the outlet's queue was full.",
        |s, put| s.publish.iter().for_each(|p| put(None, p.refused as f64)),
    ),
];

const JOURNAL: &[Row<journal::Snapshot>] = &[
    gauge(
        "weir_journal_bytes",
        "The journal's size on the disk.",
        |j, put| {
            put(None, j.bytes as f64);
        },
    ),
    gauge("weir_journal_segments", "The journal's files.", |j, put| {
        put(None, j.segments as f64);
    }),
    gauge(
        "weir_journal_begin",
        "The first sequence number that can be read.",
        |j, put| {
            put(None, j.begin as f64);
        },
    ),
    gauge(
        "weir_journal_end",
        "The sequence number of the next message.",
        |j, put| {
            put(None, j.end as f64);
        },
    ),
    gauge(
        "weir_journal_durable",
        "What is before it survives a power failure.",
        |j, put| {
            put(None, j.durable as f64);
        },
    ),
    gauge(
        "weir_journal_failed",
        "1 while the journal can't be written.",
        |j, put| {
            let failed = matches!(j.state, journal::State::Failed { .. });
            put(None, f64::from(u8::from(failed)));
        },
    ),
    counter(
        "weir_journal_appended_total",
        "Messages written to the journal.",
        |j, put| {
            put(None, j.appended_messages as f64);
        },
    ),
    counter(
        "weir_journal_appended_bytes_total",
        "Bytes written for them.",
        |j, put| {
            put(None, j.appended_bytes as f64);
        },
    ),
    counter(
        "weir_journal_append_seconds_total",
        "Time that writing took.",
        |j, put| {
            put(None, seconds(j.append_ns));
        },
    ),
    counter(
        "weir_journal_sync_seconds_total",
        "Time that syncing took.",
        |j, put| {
            put(None, seconds(j.sync_ns));
        },
    ),
    counter(
        "weir_journal_write_errors_total",
        "Batches that could not be written.",
        |j, put| {
            put(None, j.write_errors as f64);
        },
    ),
    counter(
        "weir_journal_sync_errors_total",
        "Files that could not be synced.",
        |j, put| {
            put(None, j.sync_errors as f64);
        },
    ),
    counter(
        "weir_journal_unjournaled_total",
        "Messages that were in memory only because the journal could not be written.",
        |j, put| put(None, j.unjournaled as f64),
    ),
];

const SOURCE: &[Row<SourceSample>] = &[
    counter(
        "weir_source_received_total",
        "Messages that came and could be read.",
        |s, put| {
            put(None, s.shot.received as f64);
        },
    ),
    counter(
        "weir_source_refused_total",
        "Messages refused before any queue.",
        |s, put| {
            for (why, count) in s.shot.refused.iter() {
                put(Some(("reason", why.as_str())), count as f64);
            }
        },
    ),
    gauge(
        "weir_source_lag_seconds",
        "How long the latest message was under way, by its publisher's timestamp; never below 0.",
        |s, put| {
            s.lag
                .iter()
                .for_each(|lag| put(None, lag.lag.as_secs_f64()))
        },
    ),
    gauge(
        "weir_source_clock_skew_seconds",
        "By how much the latest message's timestamp is in the future.",
        |s, put| {
            s.lag
                .iter()
                .for_each(|lag| put(None, lag.skew.as_secs_f64()))
        },
    ),
    gauge(
        "weir_source_connections",
        "Peers connected now.",
        |s, put| {
            for endpoint in &s.shot.endpoints {
                put(
                    Some(("endpoint", &endpoint.endpoint)),
                    endpoint.connections as f64,
                );
            }
        },
    ),
    counter(
        "weir_source_reconnects_total",
        "Connections made after a loss.",
        |s, put| {
            for endpoint in &s.shot.endpoints {
                put(
                    Some(("endpoint", &endpoint.endpoint)),
                    endpoint.reconnects as f64,
                );
            }
        },
    ),
    counter(
        "weir_source_gaps_total",
        "Messages missed, by sequence numbers.",
        |s, put| {
            for endpoint in &s.shot.endpoints {
                put(Some(("endpoint", &endpoint.endpoint)), endpoint.gaps as f64);
            }
        },
    ),
    gauge(
        "weir_source_loss_possible",
        "1 if messages may have been lost before the hub, or were.",
        |s, put| {
            for endpoint in &s.shot.endpoints {
                let possible = u8::from(endpoint.loss != Loss::NoneSeen);
                put(Some(("endpoint", &endpoint.endpoint)), possible.into());
            }
        },
    ),
];

const PRODUCER: &[Row<ProducerSample>] = &[
    counter(
        "weir_producer_runs_total",
        "How often it was called.",
        |p, put| {
            put(None, p.shot.runs as f64);
        },
    ),
    counter(
        "weir_producer_failed_total",
        "How often it failed.",
        |p, put| {
            put(None, p.shot.failed as f64);
        },
    ),
    counter(
        "weir_producer_panics_total",
        "How often it panicked.",
        |p, put| {
            put(None, p.shot.panics as f64);
        },
    ),
    gauge(
        "weir_producer_failed_in_a_row",
        "Failures since the last run that went well.",
        |p, put| put(None, p.shot.failed_in_a_row as f64),
    ),
    gauge(
        "weir_producer_last_run_timestamp_seconds",
        "When it was last called.",
        |p, put| {
            if p.shot.last_ran_ns > 0 {
                put(None, seconds(p.shot.last_ran_ns));
            }
        },
    ),
];

const CONSUMER: &[Row<ConsumerSample>] = &[
    gauge(
        "weir_consumer_queue_messages",
        "Depth: messages not yet settled, waiting and in flight.",
        |c, put| put(None, c.shot.queue_messages as f64),
    ),
    gauge(
        "weir_consumer_queue_capacity_messages",
        "The queue's bound.",
        |c, put| {
            put(None, c.capacity as f64);
        },
    ),
    gauge(
        "weir_consumer_queue_bytes",
        "Topics and payloads not yet settled.",
        |c, put| {
            put(None, c.shot.queue_bytes as f64);
        },
    ),
    gauge(
        "weir_consumer_inflight_messages",
        "Messages with the consumer.",
        |c, put| {
            put(None, c.shot.in_flight as f64);
        },
    ),
    gauge(
        "weir_consumer_retrying_messages",
        "Messages waiting to be tried again.",
        |c, put| {
            put(None, c.shot.retrying as f64);
        },
    ),
    gauge(
        "weir_consumer_behind_messages",
        "Messages waiting in the journal only.",
        |c, put| {
            put(None, c.shot.behind_messages as f64);
        },
    ),
    gauge(
        "weir_consumer_retention_used_ratio",
        "How much of what the journal keeps it takes up; at 1 messages are lost.",
        |c, put| put(None, c.shot.retention_used),
    ),
    gauge(
        "weir_consumer_lag_seconds",
        "The age of the oldest message not yet settled; 0 when there is none.",
        |c, put| put(None, c.shot.lag.as_secs_f64()),
    ),
    gauge(
        "weir_consumer_drain_seconds",
        "When the queue is likely to be empty; absent unless it is draining.",
        |c, put| {
            if let Drain::Draining { likely_seconds, .. } = c.forecast.drain {
                put(None, likely_seconds);
            }
        },
    ),
    gauge(
        "weir_consumer_drain_low_seconds",
        "The earliest that the queue is expected to be empty; absent unless it is draining.",
        |c, put| {
            if let Drain::Draining { low_seconds, .. } = c.forecast.drain {
                put(None, low_seconds);
            }
        },
    ),
    gauge(
        "weir_consumer_drain_high_seconds",
        "The latest that it is expected to be empty; +Inf if it may never be.",
        |c, put| {
            if let Drain::Draining { high_seconds, .. } = c.forecast.drain {
                put(None, high_seconds.unwrap_or(f64::INFINITY));
            }
        },
    ),
    gauge(
        "weir_consumer_growth_messages_per_second",
        "How fast the backlog grows; 0 when it does not.",
        |c, put| {
            put(
                None,
                match c.forecast.drain {
                    Drain::Growing { per_second } => per_second,
                    _ => 0.0,
                },
            );
        },
    ),
    gauge(
        "weir_consumer_service_messages_per_second",
        "What it settles when it never waits for messages; absent until measured.",
        |c, put| {
            c.forecast
                .service
                .into_iter()
                .for_each(|rate| put(None, rate))
        },
    ),
    gauge(
        "weir_consumer_forecast_error_ratio",
        "How far past drain forecasts were off, as part of the time; absent until one came due.",
        |c, put| {
            c.forecast
                .accuracy
                .iter()
                .for_each(|past| put(None, past.error_ratio))
        },
    ),
    gauge(
        "weir_consumer_forecast_contained_ratio",
        "How many past drain forecasts' ranges held the truth; absent until one came due.",
        |c, put| {
            c.forecast
                .accuracy
                .iter()
                .for_each(|past| put(None, past.contained_ratio))
        },
    ),
    gauge(
        "weir_consumer_health",
        "1 for the word that tells its health.",
        |c, put| {
            for health in Health::ALL {
                let here = u8::from(health == c.forecast.health);
                put(Some(("health", health.as_str())), here.into());
            }
        },
    ),
    gauge(
        "weir_consumer_state",
        "1 for what its busiest worker is doing.",
        |c, put| {
            for state in State::ALL {
                put(
                    Some(("state", state.as_str())),
                    u8::from(state == c.shot.state).into(),
                );
            }
        },
    ),
    gauge(
        "weir_consumer_busy_ratio",
        "The part of its threads' time at work.",
        |c, put| {
            c.busy.into_iter().for_each(|busy| put(None, busy));
        },
    ),
    gauge(
        "weir_consumer_last_success_timestamp_seconds",
        "When a delivery last succeeded; absent before the first.",
        |c, put| {
            if c.shot.last_success_ns > 0 {
                put(None, seconds(c.shot.last_success_ns));
            }
        },
    ),
    gauge(
        "weir_consumer_dead_letters",
        "Messages set aside and kept.",
        |c, put| {
            c.dead_letters
                .iter()
                .for_each(|letters| put(None, letters.letters as f64));
        },
    ),
    gauge(
        "weir_consumer_dead_letters_requeued",
        "Those of them that are to be delivered again.",
        |c, put| {
            c.dead_letters
                .iter()
                .for_each(|letters| put(None, letters.requeued as f64))
        },
    ),
    gauge(
        "weir_consumer_dead_letters_age_seconds",
        "How long ago the oldest of them was set aside; 0 when there is none.",
        |c, put| {
            if let Some(letters) = &c.dead_letters {
                let age_ns = match letters.oldest_ns {
                    0 => 0,
                    oldest_ns => c.shot.at_ns.saturating_sub(oldest_ns),
                };
                put(None, seconds(age_ns));
            }
        },
    ),
    counter(
        "weir_consumer_received_total",
        "Messages offered to its queue.",
        |c, put| {
            put(None, c.shot.received as f64);
        },
    ),
    counter(
        "weir_consumer_consumed_total",
        "Messages it took.",
        |c, put| {
            put(None, c.shot.consumed as f64);
        },
    ),
    counter(
        "weir_consumer_failed_total",
        "Deliveries that failed.",
        |c, put| {
            put(None, c.shot.failed as f64);
        },
    ),
    counter(
        "weir_consumer_retried_total",
        "Messages tried again.",
        |c, put| {
            put(None, c.shot.retried as f64);
        },
    ),
    counter(
        "weir_consumer_dropped_total",
        "Messages dropped.",
        |c, put| {
            for (reason, count) in c.shot.dropped.iter() {
                put(Some(("reason", reason.as_str())), count as f64);
            }
        },
    ),
    counter(
        "weir_consumer_dead_lettered_total",
        "Messages set aside.",
        |c, put| {
            put(None, c.shot.dead_lettered as f64);
        },
    ),
    counter(
        "weir_consumer_panics_total",
        "Deliveries that panicked.",
        |c, put| {
            put(None, c.shot.panics as f64);
        },
    ),
    counter(
        "weir_consumer_time_seconds_total",
        "How long its workers were in each state, all together.",
        |c, put| {
            for (state, spent_ns) in State::ALL.iter().zip(c.shot.spent_ns) {
                put(Some(("state", state.as_str())), seconds(spent_ns));
            }
        },
    ),
    histogram(
        "weir_consumer_processing_seconds",
        "How long deliveries took.",
        |c| &c.processing,
    ),
    histogram(
        "weir_consumer_queue_wait_seconds",
        "How long messages waited from intake to delivery: the first of each delivery.",
        |c| &c.queue_wait,
    ),
];

/// All families that a hub can export of its own, in the order of [`Sample::each`].
pub fn families() -> impl Iterator<Item = Family<'static>> {
    let hub = HUB.iter().map(|row| row.family);
    let journal = JOURNAL.iter().map(|row| row.family);
    let source = SOURCE.iter().map(|row| row.family);
    let producer = PRODUCER.iter().map(|row| row.family);
    let consumer = CONSUMER.iter().map(|row| row.family);
    hub.chain(journal)
        .chain(source)
        .chain(producer)
        .chain(consumer)
}

/// Reads all rows off all things of one sort.
fn read<'t, T: 't>(
    rows: &[Row<T>],
    things: impl Iterator<Item = (&'t T, Option<(&'t str, &'t str)>)> + Clone,
    hub: &str,
    each: &mut Each<'_>,
) {
    for row in rows {
        for (thing, label) in things.clone() {
            let mut labels = vec![("hub", hub)];
            labels.extend(label);
            match row.read {
                Read::Counts(counts) => each(&row.family, &labels, Value::Counts(counts(thing))),
                Read::Number(number) => number(thing, &mut |more, value| match more {
                    None => each(&row.family, &labels, Value::Number(value)),
                    Some(more) => {
                        let labels = [&labels[..], &[more]].concat();
                        each(&row.family, &labels, Value::Number(value));
                    }
                }),
            }
        }
    }
}

impl Sample {
    /// Calls `each` with every figure, family by family.
    pub fn each(&self, each: &mut Each<'_>) {
        let hub = self.hub.as_str();
        read(HUB, std::iter::once((self, None)), hub, each);
        read(
            JOURNAL,
            self.journal.iter().map(|journal| (journal, None)),
            hub,
            each,
        );
        let sources = self.sources.iter();
        let sources = sources.map(|source| (source, Some(("source", source.source.as_str()))));
        read(SOURCE, sources, hub, each);
        let producers = self.producers.iter();
        let producers = producers.map(|producer| (producer, Some(("producer", &*producer.name))));
        read(PRODUCER, producers, hub, each);
        let consumers = self.consumers.iter();
        let consumers = consumers.map(|consumer| (consumer, Some(("consumer", &*consumer.name))));
        read(CONSUMER, consumers, hub, each);
        self.each_measured(each);
    }

    /// What consumers measured themselves; `measured` is sorted by family.
    fn each_measured(&self, each: &mut Each<'_>) {
        for series in &self.measured {
            let family = Family {
                name: &series.name,
                help: &series.help,
                sort: series.sort,
            };
            let mut labels = vec![("hub", self.hub.as_str()), ("consumer", &series.consumer)];
            labels.extend(series.labels.iter().map(|(key, value)| (&**key, &**value)));
            let value = match &series.value {
                measured::Value::Number(number) => Value::Number(*number),
                measured::Value::Counts(counts) => Value::Counts(counts),
            };
            each(&family, &labels, value);
        }
    }
}

/// One figure by itself, as `GET /v1/figures` has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// Its name.
    pub name: String,
    /// What sort of figure it is.
    pub sort: Sort,
    /// Its labels.
    pub labels: Vec<(String, String)>,
    /// Its value.
    #[serde(flatten)]
    pub value: FigureValue,
}

/// The value of a [`Figure`]. Counts stand first, because as a number they can be read, too.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum FigureValue {
    /// A histogram's, as [`Counts`] has it.
    Counts {
        /// The upper bounds.
        bounds: Vec<f64>,
        /// How many values fell below each and above the one before, and above the last.
        counts: Vec<u64>,
        /// The sum of all values.
        sum: f64,
    },
    /// A gauge's or a counter's.
    Number {
        /// The number; none if it is infinite.
        value: Option<f64>,
    },
}

/// All figures of a hub, as `GET /v1/figures` has them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Dump {
    /// The hub's name.
    pub hub: String,
    /// When, in seconds since 1970.
    pub at: f64,
    /// How long it has been up: less than the last time, if it was started anew.
    pub uptime_seconds: f64,
    /// The figures, those of a family together.
    pub figures: Vec<Figure>,
}

impl Sample {
    /// All figures by themselves.
    pub fn dump(&self) -> Dump {
        let mut figures = Vec::new();
        self.each(&mut |family, labels, value| {
            let labels = labels.iter();
            figures.push(Figure {
                name: family.name.into(),
                sort: family.sort,
                labels: labels
                    .map(|(key, value)| ((*key).into(), (*value).into()))
                    .collect(),
                value: match value {
                    Value::Number(number) => FigureValue::Number {
                        value: number.is_finite().then_some(number),
                    },
                    Value::Counts(counts) => FigureValue::Counts {
                        bounds: counts.bounds.to_vec(),
                        counts: counts.counts.clone(),
                        sum: counts.sum,
                    },
                },
            });
        });
        Dump {
            hub: self.hub.clone(),
            at: seconds(self.at_ns),
            uptime_seconds: self.uptime.as_secs_f64(),
            figures,
        }
    }
}

impl Dump {
    /// Calls `each` with every figure, as [`Sample::each`] did in the hub that it comes from; an
    /// infinite number is no number here. Histograms with bounds of another version are left out.
    pub fn each(&self, each: &mut Each<'_>) {
        for figure in &self.figures {
            let family = Family {
                name: &figure.name,
                help: "",
                sort: figure.sort,
            };
            let labels = figure.labels.iter();
            let labels: Vec<_> = labels.map(|(key, value)| (&**key, &**value)).collect();
            match &figure.value {
                FigureValue::Number { value } => {
                    each(&family, &labels, Value::Number(value.unwrap_or(f64::NAN)));
                }
                FigureValue::Counts {
                    bounds,
                    counts,
                    sum,
                } => {
                    let known = [PROCESSING, WAITING, ANY].into_iter();
                    if let Some(bounds) = known.into_iter().find(|known| known == bounds) {
                        let counts = Counts {
                            bounds,
                            counts: counts.clone(),
                            sum: *sum,
                        };
                        each(&family, &labels, Value::Counts(&counts));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_say_what_they_are() {
        let mut seen = HashSet::new();
        for family in families() {
            let Family { name, help, sort } = family;
            assert!(seen.insert(name), "{name} twice");
            assert_eq!(sort == Sort::Counter, name.ends_with("_total"), "{name}");
            assert!(help.ends_with('.'), "{name}: {help}");
        }
    }

    #[test]
    fn source_lag_is_read_off_the_publishers_timestamp_and_clamped() {
        let second = |n: u64| n * 1_000_000_000;
        let received_ns = second(1_700_000_010);
        let lag = |body: &str, pointer: &str| {
            let payload = body.to_owned().into();
            SourceLag::of(
                &Message::at_ns("a".into(), payload, received_ns, 1),
                pointer,
            )
        };
        let of = |lag: u64, skew: u64| {
            Some(SourceLag {
                lag: Duration::from_secs(lag),
                skew: Duration::from_secs(skew),
            })
        };
        assert_eq!(lag(r#"{"timestamp": 1700000000}"#, "/timestamp"), of(10, 0));
        assert_eq!(lag(r#"{"timestamp": 1700000015}"#, "/timestamp"), of(0, 5));
        let text = humantime::format_rfc3339(UNIX_EPOCH + Duration::from_secs(1_700_000_008));
        assert_eq!(
            lag(&format!(r#"{{"m": {{"at": "{text}"}}}}"#), "/m/at"),
            of(2, 0)
        );
        for unreadable in ["", "[]", r#"{"timestamp": null}"#, r#"{"timestamp": -1}"#] {
            assert_eq!(lag(unreadable, "/timestamp"), None);
        }
        // Seconds since the machine was started, or milliseconds: nobody knows.
        assert_eq!(lag(r#"{"timestamp": 12345}"#, "/timestamp"), None);
        assert!(lag(r#"{"timestamp": 1e300}"#, "/timestamp").is_some());
    }
}
