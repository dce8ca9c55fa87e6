//! Reads all counters, about once a second, and says what they mean.
//!
//! [`Figures`] is everything about a hub that can be read. Reading has no side effects: counters
//! only grow, and whoever needs differences keeps what it saw last. The monitor's thread takes a
//! [`Sample`] of everything and feeds it to all exporters, one after another: none of them may wait
//! for its peer.

pub mod collectd;
pub mod moksha;
#[cfg(feature = "http")]
pub mod prometheus;
pub mod sample;
pub mod statsd;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tracing::warn;

use crate::dead_letters::{self, DeadLetters};
use crate::forecast::{Accuracy, Drain, Forecast, Forecaster, Health, Rates};
use crate::journal::{self, Journal};
use crate::lifecycle::Flag;
use crate::measured::Measured;
use crate::producer::{ProducerSnapshot, ProducerStats};
use crate::publisher::{PublishSnapshot, PublishStats};
use crate::stats::{
    Dropped, LatestTimes, Reason, SourceSnapshot, SourceStats, State, Stats, now_ns,
};
use sample::{ConsumerSample, ProducerSample, Sample, SourceLag, SourceSample};

const SAMPLE_EVERY: Duration = Duration::from_secs(1);
const LOSSES_EVERY: Duration = Duration::from_secs(10);

/// Everything about a hub that can be read.
pub struct Figures {
    /// The hub's name.
    pub hub: String,
    /// When it was started.
    pub started: Instant,
    /// Its consumers.
    pub consumers: Vec<ConsumerFigures>,
    /// Its sources.
    pub sources: Vec<SourceFigures>,
    /// Its producers.
    pub producers: Vec<ProducerFigures>,
    /// Its publishing, if it has an outlet.
    pub publish: Option<Arc<PublishStats>>,
    /// Its journal, if it has one.
    pub journal: Option<Arc<Journal>>,
    /// Its dead letters, if it keeps any.
    pub dead_letters: Option<Arc<DeadLetters>>,
    /// What its consumers measure themselves.
    pub measured: Arc<Measured>,
    /// The latest sample.
    pub latest: Latest,
}

/// The latest sample of a hub, for whoever wants to read it.
#[derive(Default)]
pub struct Latest(Mutex<Option<Arc<Sample>>>);

impl Latest {
    /// The sample; none before the first.
    pub fn get(&self) -> Option<Arc<Sample>> {
        self.0.lock().clone()
    }
}

/// Brings samples to one place outside.
pub trait Exporter: Send {
    /// How often.
    fn interval(&self) -> Duration;

    /// Brings it there, or says in the log, once, why that can't be done now. Called on the
    /// monitor's thread, which serves the others too: it must not wait for its peer.
    fn export(&mut self, sample: &Sample);
}

/// One consumer: what it is and its counters.
pub struct ConsumerFigures {
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
    /// Messages a second that its `rate` allows, if it has one.
    pub rate_limit: Option<f64>,
    /// Its counters.
    pub stats: Arc<Stats>,
    forecaster: Mutex<Forecaster>,
}

/// One source: what it is and its counters.
pub struct SourceFigures {
    /// What it listens on or connects to.
    pub describe: Vec<String>,
    /// Its counters.
    pub stats: Arc<SourceStats>,
    /// Where in a payload its publisher's time stands: a JSON pointer, or nothing.
    pub timestamp: String,
    lag: Mutex<Option<SourceLag>>,
}

/// One producer: what it is and its counters.
pub struct ProducerFigures {
    /// The instance's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// How often it is called.
    pub interval: Duration,
    /// Its counters.
    pub stats: Arc<ProducerStats>,
}

impl SourceFigures {
    /// Figures of a source that counts in `stats`.
    pub fn new(describe: Vec<String>, stats: Arc<SourceStats>, timestamp: &str) -> Self {
        SourceFigures {
            describe,
            stats,
            timestamp: timestamp.to_owned(),
            lag: Mutex::default(),
        }
    }

    /// How long the latest message looked at was under way; none if it did not say.
    pub fn lag(&self) -> Option<SourceLag> {
        *self.lag.lock()
    }

    fn look(&self) {
        if self.timestamp.is_empty() {
            return;
        }
        if let Some(message) = self.stats.probe() {
            *self.lag.lock() = SourceLag::of(&message, &self.timestamp);
        }
    }
}

impl ConsumerFigures {
    /// Figures of a consumer that wants these topics and counts in `stats`.
    pub fn new(
        name: &str,
        kind: &str,
        topics: Vec<String>,
        capacity: usize,
        stats: Arc<Stats>,
    ) -> Self {
        let workers = stats.workers().len();
        ConsumerFigures {
            name: name.into(),
            kind: kind.into(),
            topics,
            workers,
            capacity,
            rate_limit: None,
            stats,
            forecaster: Mutex::new(Forecaster::new(workers)),
        }
    }

    /// What follows from the samples so far.
    pub fn forecast(&self) -> Forecast {
        self.limited(self.forecaster.lock().forecast())
    }

    /// What it can do it may not do, if there is a limit that it has not come to yet.
    fn limited(&self, mut forecast: Forecast) -> Forecast {
        let limit = self.rate_limit.unwrap_or(f64::INFINITY);
        forecast.service = forecast.service.map(|service| service.min(limit));
        forecast
    }

    fn sample(
        &self,
        letters: Option<dead_letters::Summary>,
        before: Option<&ConsumerSample>,
    ) -> ConsumerSample {
        let shot = self.stats.snapshot();
        let forecast = {
            let mut forecaster = self.forecaster.lock();
            forecaster.push(&shot);
            self.limited(forecaster.forecast())
        };
        let busy = before.and_then(|before| {
            let worked = shot.processing_ns.saturating_sub(before.shot.processing_ns) as f64;
            let had = shot
                .at_ns
                .checked_sub(before.shot.at_ns)
                .filter(|ns| *ns > 0)?;
            Some((worked / (had as f64 * self.workers as f64)).min(1.0))
        });
        ConsumerSample {
            name: self.name.clone(),
            kind: self.kind.clone(),
            topics: self.topics.clone(),
            workers: self.workers,
            capacity: self.capacity,
            shot,
            forecast,
            busy,
            processing: self.stats.processing(),
            queue_wait: self.stats.queue_wait(),
            dead_letters: letters,
            stats: self.stats.clone(),
        }
    }

    fn status(&self, letters: Option<&dead_letters::Summary>) -> ConsumerStatus {
        let shot = self.stats.snapshot();
        let forecast = self.forecast();
        let age_ns = letters.map_or(0, |letters| shot.at_ns.saturating_sub(letters.oldest_ns));
        ConsumerStatus {
            name: self.name.clone(),
            kind: self.kind.clone(),
            state: shot.state,
            health: forecast.health,
            topics: self.topics.clone(),
            workers: self.workers,
            received: shot.received,
            consumed: shot.consumed,
            failed: shot.failed,
            retried: shot.retried,
            dropped: shot.dropped,
            dead_lettered: shot.dead_lettered,
            panics: shot.panics,
            waiting: shot.waiting,
            in_flight: shot.in_flight,
            retrying: shot.retrying,
            queue_messages: shot.queue_messages,
            queue_bytes: shot.queue_bytes,
            queue_capacity_messages: self.capacity,
            behind_messages: shot.behind_messages,
            retention_used_ratio: shot.retention_used,
            dead_letters: letters.map_or(0, |letters| letters.letters),
            dead_letters_requeued: letters.map_or(0, |letters| letters.requeued),
            dead_letters_age_seconds: Duration::from_nanos(age_ns).as_secs_f64(),
            lag_seconds: shot.lag.as_secs_f64(),
            drain: forecast.drain,
            rates: forecast.rates,
            service_per_second: forecast.service,
            forecast_accuracy: forecast.accuracy,
            processing: Processing {
                mean_seconds: shot.processing_mean().map(|mean| mean.as_secs_f64()),
                max_seconds: Duration::from_nanos(shot.processing_max_ns).as_secs_f64(),
                total_seconds: Duration::from_nanos(shot.processing_ns).as_secs_f64(),
            },
            lane_wait_seconds: Duration::from_nanos(shot.lane_wait_ns).as_secs_f64(),
            last_success_timestamp_seconds: match shot.last_success_ns {
                0 => None,
                ns => Some(ns as f64 / 1e9),
            },
        }
    }
}

/// What `GET /status` answers.
#[derive(Debug, Serialize)]
pub struct Status {
    /// The hub's name.
    pub hub: String,
    /// How long it has been up.
    pub uptime_seconds: f64,
    /// Its sources.
    pub sources: Vec<SourceStatus>,
    /// Its journal, if it has one.
    pub journal: Option<journal::Snapshot>,
    /// Dead letters that were deleted because `dead_letters.keep` allows no more.
    pub dead_letters_expired: u64,
    /// Its consumers.
    pub consumers: Vec<ConsumerStatus>,
    /// Its producers.
    pub producers: Vec<ProducerStatus>,
    /// Its publishing, if it has an outlet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub publish: Option<PublishSnapshot>,
}

/// One source in the status.
#[derive(Debug, Serialize)]
pub struct SourceStatus {
    /// Its number in the configuration, from 0.
    pub source: usize,
    /// Its counters.
    #[serde(flatten)]
    pub counters: SourceSnapshot,
    /// How long the latest message looked at was under way, by its publisher's timestamp.
    pub lag_seconds: Option<f64>,
    /// By how much that timestamp was in the future.
    pub clock_skew_seconds: Option<f64>,
}

/// One consumer in the status: the ledger's fields by the ledger's names.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // said at Snapshot and Forecast
pub struct ConsumerStatus {
    pub name: String,
    pub kind: String,
    pub state: State,
    pub health: Health,
    pub topics: Vec<String>,
    pub workers: usize,
    pub received: u64,
    pub consumed: u64,
    pub failed: u64,
    pub retried: u64,
    pub dropped: Dropped,
    pub dead_lettered: u64,
    pub panics: u64,
    pub waiting: u64,
    pub in_flight: u64,
    pub retrying: u64,
    pub queue_messages: u64,
    pub queue_bytes: u64,
    pub queue_capacity_messages: usize,
    pub behind_messages: u64,
    pub retention_used_ratio: f64,
    pub dead_letters: u64,
    pub dead_letters_requeued: u64,
    pub dead_letters_age_seconds: f64,
    pub lag_seconds: f64,
    pub drain: Drain,
    pub rates: Rates,
    pub service_per_second: Option<f64>,
    pub forecast_accuracy: Option<Accuracy>,
    pub processing: Processing,
    pub lane_wait_seconds: f64,
    pub last_success_timestamp_seconds: Option<f64>,
}

/// How long deliveries take.
#[derive(Debug, Serialize)]
pub struct Processing {
    /// On average since the start.
    pub mean_seconds: Option<f64>,
    /// The longest that was timed.
    pub max_seconds: f64,
    /// All of them together.
    pub total_seconds: f64,
}

/// One producer in the status.
#[derive(Debug, Serialize)]
pub struct ProducerStatus {
    /// The instance's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// How often it is called.
    pub interval_seconds: f64,
    /// Its counters.
    #[serde(flatten)]
    pub counters: ProducerSnapshot,
}

impl Figures {
    /// Figures of a hub that has these consumers and nothing else, and starts now.
    pub fn new(hub: &str, consumers: Vec<ConsumerFigures>) -> Self {
        Figures {
            hub: hub.to_owned(),
            started: Instant::now(),
            consumers,
            sources: Vec::new(),
            producers: Vec::new(),
            publish: None,
            journal: None,
            dead_letters: None,
            measured: Arc::default(),
            latest: Latest::default(),
        }
    }

    /// All figures at this moment.
    pub fn status(&self) -> Status {
        let store = self.dead_letters.as_ref();
        let letters = store.map(|store| store.summary()).unwrap_or_default();
        Status {
            hub: self.hub.clone(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            sources: (self.sources.iter().enumerate())
                .map(|(source, figures)| SourceStatus {
                    source,
                    counters: figures.stats.snapshot(),
                    lag_seconds: figures.lag().map(|lag| lag.lag.as_secs_f64()),
                    clock_skew_seconds: figures.lag().map(|lag| lag.skew.as_secs_f64()),
                })
                .collect(),
            journal: self.journal.as_ref().map(|journal| journal.snapshot()),
            dead_letters_expired: store.map_or(0, |store| store.expired()),
            consumers: (self.consumers.iter())
                .map(|consumer| consumer.status(letters.get(&consumer.name)))
                .collect(),
            producers: (self.producers.iter())
                .map(|producer| ProducerStatus {
                    name: producer.name.clone(),
                    kind: producer.kind.clone(),
                    interval_seconds: producer.interval.as_secs_f64(),
                    counters: producer.stats.snapshot(),
                })
                .collect(),
            publish: self.publish.as_ref().map(|stats| stats.snapshot()),
        }
    }

    /// The latest sample, a second old at most.
    pub fn latest(&self) -> Arc<Sample> {
        self.latest.get().unwrap_or_else(|| self.sample())
    }

    /// The latest times per message of every consumer, by its name.
    pub fn times(&self) -> BTreeMap<String, LatestTimes> {
        let consumers = self.consumers.iter();
        consumers
            .map(|consumer| (consumer.name.clone(), consumer.stats.times()))
            .collect()
    }

    /// Takes a sample of everything.
    fn sample(&self) -> Arc<Sample> {
        let before = self.latest.get();
        let store = self.dead_letters.as_ref();
        let letters = store.map(|store| store.summary());
        let consumers = self.consumers.iter().enumerate();
        let sample = Arc::new(Sample {
            at_ns: now_ns(),
            hub: self.hub.clone(),
            uptime: self.started.elapsed(),
            consumers: consumers
                .map(|(index, consumer)| {
                    let own = |all: &BTreeMap<String, _>| all.get(&consumer.name).copied();
                    let letters = (letters.as_ref()).map(|all| own(all).unwrap_or_default());
                    let before = before.as_ref().map(|before| &before.consumers[index]);
                    consumer.sample(letters, before)
                })
                .collect(),
            sources: (self.sources.iter().enumerate())
                .map(|(index, source)| {
                    source.look();
                    SourceSample {
                        source: index.to_string(),
                        shot: source.stats.snapshot(),
                        lag: source.lag(),
                    }
                })
                .collect(),
            producers: (self.producers.iter())
                .map(|producer| ProducerSample {
                    name: producer.name.clone(),
                    kind: producer.kind.clone(),
                    interval: producer.interval,
                    shot: producer.stats.snapshot(),
                })
                .collect(),
            publish: self.publish.as_ref().map(|stats| stats.snapshot()),
            journal: self.journal.as_ref().map(|journal| journal.snapshot()),
            dead_letters_expired: store.map(|store| store.expired()),
            measured: self.measured.snapshot(),
            measured_refused: self.measured.refused(),
        });
        *self.latest.0.lock() = Some(sample.clone());
        sample
    }
}

/// Tells of losses in the log, summed up: a storm of them is a line now and then.
#[derive(Default)]
struct Losses {
    told: HashMap<String, u64>,
}

impl Losses {
    fn tell(&mut self, figures: &Figures) {
        for consumer in &figures.consumers {
            for (reason, count) in consumer.stats.snapshot().dropped.iter() {
                // Of the others the runner tells with their messages.
                if matches!(reason, Reason::Overflow | Reason::Halted) {
                    let new =
                        self.since_told(format!("{} {}", consumer.name, reason.as_str()), count);
                    if new > 0 {
                        let (consumer, reason) = (&consumer.name, reason.as_str());
                        warn!(consumer, reason, messages = new, "messages dropped");
                    }
                }
            }
        }
        for (source, source_figures) in figures.sources.iter().enumerate() {
            for (why, count) in source_figures.stats.snapshot().refused.iter() {
                let new = self.since_told(format!("{source} {}", why.as_str()), count);
                if new > 0 {
                    let from = source_figures.describe.join(", ");
                    warn!(
                        from,
                        reason = why.as_str(),
                        messages = new,
                        "messages refused"
                    );
                }
            }
        }
    }

    fn since_told(&mut self, what: String, count: u64) -> u64 {
        let told = self.told.entry(what).or_default();
        let new = count - *told;
        *told = count;
        new
    }
}

/// Samples until it is told to stop, and once more then: what happened last is not lost.
pub(crate) fn run(figures: &Figures, exporters: Vec<Box<dyn Exporter>>, stop: &Flag) {
    let mut losses = Losses::default();
    let mut losses_due = Instant::now();
    let mut exporters: Vec<_> = (exporters.into_iter())
        .map(|exporter| (Instant::now(), exporter))
        .collect();
    loop {
        let now = Instant::now();
        let stopping = stop.is_raised();
        let sample = figures.sample();
        for (due, exporter) in &mut exporters {
            if now >= *due || stopping {
                exporter.export(&sample);
                *due = next_after(*due, exporter.interval(), now);
            }
        }
        if now >= losses_due || stopping {
            losses.tell(figures);
            losses_due = now + LOSSES_EVERY;
        }
        if stopping {
            return;
        }
        let due = exporters.iter().map(|(due, _)| *due);
        let due = due.fold(now + SAMPLE_EVERY, Instant::min);
        stop.sleep(due.saturating_duration_since(Instant::now()));
    }
}

/// When what was due is due again: on time, so that a minute has as many intervals as it should,
/// but not several times at once after a delay.
fn next_after(due: Instant, interval: Duration, now: Instant) -> Instant {
    let next = due + interval;
    if next > now { next } else { now + interval }
}
