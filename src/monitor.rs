//! Reads all counters, about once a second, and says what they mean.
//!
//! [`Figures`] is everything about a hub that can be read. Reading has no side effects: counters
//! only grow, and whoever needs differences keeps what it saw last. The monitor's thread is the
//! only one that calls the metrics facade.

pub mod statsd;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Serialize;
use tracing::warn;

use crate::dead_letters::{self, DeadLetters};
use crate::forecast::{Rates, Window};
use crate::journal::{self, Journal};
use crate::lifecycle::Flag;
use crate::producer::{ProducerSnapshot, ProducerStats};
use crate::publisher::{PublishSnapshot, PublishStats};
use crate::stats::{Dropped, Reason, SourceSnapshot, SourceStats, State, Stats};
use statsd::Statsd;

/// Rates are those of the last ten seconds.
const RATES_OVER: Duration = Duration::from_secs(10);
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
}

/// One consumer: what it is and its counters.
pub struct ConsumerFigures {
    /// The instance's name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// Its threads.
    pub workers: usize,
    /// The bound of its queue.
    pub capacity: usize,
    /// Its counters.
    pub stats: Arc<Stats>,
    window: Mutex<Window>,
}

/// One source: what it is and its counters.
pub struct SourceFigures {
    /// What it listens on or connects to.
    pub describe: Vec<String>,
    /// Its counters.
    pub stats: Arc<SourceStats>,
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

impl ConsumerFigures {
    /// Figures that count in `stats`.
    pub fn new(name: &str, kind: &str, workers: usize, capacity: usize, stats: Arc<Stats>) -> Self {
        let window = Mutex::new(Window::new(RATES_OVER));
        ConsumerFigures {
            name: name.into(),
            kind: kind.into(),
            workers,
            capacity,
            stats,
            window,
        }
    }

    /// The rates of the last ten seconds; zero until the second sample.
    pub fn rates(&self) -> Rates {
        self.window.lock().rates().unwrap_or_default()
    }

    fn status(&self, letters: Option<&dead_letters::Summary>) -> ConsumerStatus {
        let shot = self.stats.snapshot();
        let age_ns = letters.map_or(0, |letters| shot.at_ns.saturating_sub(letters.oldest_ns));
        ConsumerStatus {
            name: self.name.clone(),
            kind: self.kind.clone(),
            state: shot.state,
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
            queue_messages: shot.queue_messages,
            queue_bytes: shot.queue_bytes,
            queue_capacity_messages: self.capacity,
            behind_messages: shot.behind_messages,
            retention_used_ratio: shot.retention_used,
            dead_letters: letters.map_or(0, |letters| letters.letters),
            dead_letters_requeued: letters.map_or(0, |letters| letters.requeued),
            dead_letters_age_seconds: Duration::from_nanos(age_ns).as_secs_f64(),
            lag_seconds: shot.lag.as_secs_f64(),
            rates: self.rates(),
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
}

/// One consumer in the status: the ledger's fields by the ledger's names.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // said at Snapshot
pub struct ConsumerStatus {
    pub name: String,
    pub kind: String,
    pub state: State,
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
    pub queue_messages: u64,
    pub queue_bytes: u64,
    pub queue_capacity_messages: usize,
    pub behind_messages: u64,
    pub retention_used_ratio: f64,
    pub dead_letters: u64,
    pub dead_letters_requeued: u64,
    pub dead_letters_age_seconds: f64,
    pub lag_seconds: f64,
    pub rates: Rates,
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

    /// Takes a sample of each consumer; rates are what lies between samples.
    fn sample(&self) {
        for consumer in &self.consumers {
            consumer.window.lock().push(consumer.stats.snapshot());
        }
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
pub(crate) fn run(figures: &Figures, mut statsd: Option<Statsd>, stop: &Flag) {
    let mut sample_due = Instant::now();
    let mut statsd_due = Instant::now();
    let mut losses = Losses::default();
    let mut losses_due = Instant::now();
    loop {
        let now = Instant::now();
        let stopping = stop.is_raised();
        if now >= sample_due {
            figures.sample();
            sample_due = now + SAMPLE_EVERY;
        }
        if let Some(statsd) = &mut statsd
            && (now >= statsd_due || stopping)
        {
            statsd.send(figures);
            statsd_due = now + statsd.interval();
        }
        if now >= losses_due || stopping {
            losses.tell(figures);
            losses_due = now + LOSSES_EVERY;
        }
        if stopping {
            return;
        }
        let due = if statsd.is_some() {
            sample_due.min(statsd_due)
        } else {
            sample_due
        };
        stop.sleep(due.saturating_duration_since(Instant::now()));
    }
}
