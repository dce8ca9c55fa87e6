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

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::dead_letters::{self, DeadLetters};
use crate::forecast::{Accuracy, Drain, Forecast, Forecaster, Health, Rates};
use crate::journal::{self, Journal, Read};
use crate::lifecycle::Flag;
use crate::measured::Measured;
use crate::producer::{ProducerSnapshot, ProducerStats};
use crate::publisher::{PublishSnapshot, PublishStats};
use crate::recent::Lately;
use crate::stats::{
    Dropped, LatestTimes, Reason, Snapshot, SourceSnapshot, SourceStats, State, Stats, now_ns,
};
use crate::why::{GivenUp, InHand, Limits, Share, Why};
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
    /// How often a changed CA or CRL could not be used, if a consumer validates.
    pub certificates_refused: Option<Arc<AtomicU64>>,
    /// What its consumers measure themselves.
    pub measured: Arc<Measured>,
    /// The latest sample.
    pub latest: Latest,
}

/// What is drawn of the past: a point a consumer every five seconds, for ten minutes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When each point was taken, in seconds since 1970.
    pub at: VecDeque<f64>,
    /// The consumers' points, in the order of the configuration.
    pub consumers: Vec<Past>,
}

/// One consumer's part of a [`History`]: as many points as there are times.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Past {
    /// The instance's name.
    pub name: String,
    /// Messages not yet settled.
    pub queue_messages: VecDeque<u64>,
    /// The age of the oldest of them.
    pub lag_seconds: VecDeque<f32>,
    /// Messages a second in.
    #[serde(rename = "in")]
    pub received: VecDeque<f32>,
    /// And out.
    #[serde(rename = "out")]
    pub settled: VecDeque<f32>,
}

const HISTORY_EVERY: Duration = Duration::from_secs(5);
const HISTORY_POINTS: usize = 120;

impl History {
    fn add(&mut self, sample: &Sample) {
        let at = Duration::from_nanos(sample.at_ns).as_secs_f64();
        let every = HISTORY_EVERY.as_secs_f64() - 0.5; // samples are not to the millisecond
        if self
            .at
            .back()
            .is_some_and(|last| (0.0..every).contains(&(at - last)))
        {
            return;
        }
        fn push<T>(points: &mut VecDeque<T>, point: T) {
            if points.len() == HISTORY_POINTS {
                points.pop_front();
            }
            points.push_back(point);
        }
        push(&mut self.at, at);
        self.consumers
            .resize_with(sample.consumers.len(), Past::default);
        for (past, now) in self.consumers.iter_mut().zip(&sample.consumers) {
            past.name.clone_from(&now.name);
            push(&mut past.queue_messages, now.shot.queue_messages);
            push(&mut past.lag_seconds, now.shot.lag.as_secs_f32());
            push(&mut past.received, now.forecast.rates.received as f32);
            push(&mut past.settled, now.forecast.rates.settled as f32);
        }
    }
}

/// The latest sample of a hub, for whoever wants to read it.
#[derive(Default)]
pub struct Latest {
    sample: Mutex<Option<Arc<Sample>>>,
    history: Mutex<History>,
}

impl Latest {
    /// The sample; none before the first.
    pub fn get(&self) -> Option<Arc<Sample>> {
        self.sample.lock().clone()
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
    /// What its configuration holds it to.
    pub limits: Limits,
    /// Its counters.
    pub stats: Arc<Stats>,
    forecaster: Mutex<Forecaster>,
    watched: Mutex<Watched>,
}

/// What the monitor remembers of a consumer for [`ConsumerFigures::why`].
#[derive(Default)]
struct Watched {
    /// Its counters then, oldest first.
    past: VecDeque<Snapshot>,
    /// What each worker had in hand, with its counters then, and since when.
    in_hand: Vec<(Option<(u64, u64)>, u64)>,
}

/// Why a consumer is slow is told from so much of its past...
const WHY_OVER: Duration = Duration::from_secs(300);
/// ...remembered once in so long.
const WHY_EVERY: Duration = Duration::from_secs(10);

impl Watched {
    fn look(&mut self, stats: &Stats, shot: &Snapshot) {
        let now = shot.at_ns;
        let since_last = self.past.back().map(|past| now.saturating_sub(past.at_ns));
        if since_last.is_none_or(|ns| ns >= WHY_EVERY.as_nanos() as u64) {
            self.past.push_back(*shot);
            while self.past.len() > (WHY_OVER.as_secs() / WHY_EVERY.as_secs()) as usize + 1 {
                self.past.pop_front();
            }
        }
        self.in_hand.resize(stats.workers().len(), (None, now));
        for (worker, known) in stats.workers().iter().zip(&mut self.in_hand) {
            let here = worker.in_hand_seq().map(|seq| (seq, worker.settled()));
            if here != known.0 {
                *known = (here, now);
            }
        }
    }
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
            limits: Limits::default(),
            stats,
            forecaster: Mutex::new(Forecaster::new(workers)),
            watched: Mutex::default(),
        }
    }

    /// What follows from the samples so far.
    pub fn forecast(&self) -> Forecast {
        self.limited(self.forecaster.lock().forecast())
    }

    /// What it can do it may not do, if there is a limit that it has not come to yet.
    fn limited(&self, mut forecast: Forecast) -> Forecast {
        let limit = self.limits.rate_per_second.unwrap_or(f64::INFINITY);
        forecast.service = forecast.service.map(|service| service.min(limit));
        forecast
    }

    /// What holds it back; `topic` finds a message's in the journal.
    pub fn why(&self, topic: impl Fn(u64) -> Option<String>) -> Why {
        let shot = self.stats.snapshot();
        let forecast = self.forecast();
        let (first, in_hand) = {
            let watched = self.watched.lock();
            (watched.past.front().copied(), watched.in_hand.clone())
        };
        let before = first.unwrap_or_default();
        let since_ns = before.at_ns;
        let settled = |shot: &Snapshot| shot.received - shot.queue_messages;
        let refused = |shot: &Snapshot| shot.dropped.in_turn() + shot.dead_lettered;
        let spent = shot.spent_ns.iter().zip(before.spent_ns);
        let spent: Vec<u64> = spent.map(|(now, then)| now.saturating_sub(then)).collect();
        let all = spent.iter().sum::<u64>().max(1) as f64;
        let mut time: Vec<Share> = (State::ALL.into_iter().zip(spent))
            .filter(|(_, ns)| *ns > 0)
            .map(|(state, ns)| Share {
                state,
                ratio: ns as f64 / all,
            })
            .collect();
        time.sort_by(|a, b| b.ratio.total_cmp(&a.ratio));
        let workers = self.stats.workers().iter().zip(in_hand).enumerate();
        let in_hand = workers.filter_map(|(number, (worker, (seen, since_ns)))| {
            let seq = worker.in_hand_seq()?;
            let same = seen == Some((seq, worker.settled()));
            let ns = if same {
                shot.at_ns.saturating_sub(since_ns)
            } else {
                0
            };
            Some(InHand {
                worker: number,
                state: worker.doing(),
                seq,
                topic: topic(seq),
                for_seconds: Duration::from_nanos(ns).as_secs_f64(),
            })
        });
        let notes = self.stats.workers().iter().map(|worker| &worker.recent);
        let mut why = Why {
            consumer: self.name.clone(),
            kind: self.kind.clone(),
            state: shot.state,
            health: forecast.health,
            queue_messages: shot.queue_messages,
            lag_seconds: shot.lag.as_secs_f64(),
            drain: forecast.drain,
            rates: forecast.rates,
            service_per_second: forecast.service,
            workers: self.workers,
            limits: self.limits.clone(),
            over_seconds: Duration::from_nanos(shot.at_ns.saturating_sub(since_ns)).as_secs_f64(),
            time,
            given_up: GivenUp {
                messages: refused(&shot).saturating_sub(refused(&before)),
                of: settled(&shot).saturating_sub(settled(&before)),
            },
            in_hand: in_hand.collect(),
            lately: Lately::of(notes, shot.at_ns),
            reason: String::new(),
            advice: String::new(),
        };
        why.explain();
        why
    }

    fn sample(
        &self,
        letters: Option<dead_letters::Summary>,
        before: Option<&ConsumerSample>,
    ) -> ConsumerSample {
        let shot = self.stats.snapshot();
        self.watched.lock().look(&self.stats, &shot);
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
            time_seconds: Spent(shot.spent_ns),
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
    pub time_seconds: Spent,
    pub last_success_timestamp_seconds: Option<f64>,
}

/// How long workers were in each state, by the state's word.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent([u64; State::ALL.len()]);

impl Spent {
    /// The time in this state.
    pub fn of(&self, state: State) -> Duration {
        Duration::from_nanos(self.0[state as usize])
    }
}

impl Serialize for Spent {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let spent = State::ALL.iter().zip(self.0);
        to.collect_map(spent.map(|(state, ns)| (state.as_str(), ns as f64 / 1e9)))
    }
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
            certificates_refused: None,
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

    /// What holds a consumer back; none if there is no such consumer.
    pub fn why(&self, consumer: &str) -> Option<Why> {
        let figures = self
            .consumers
            .iter()
            .find(|figures| figures.name == consumer)?;
        let topic = |seq| {
            let journal = self.journal.as_ref().filter(|journal| journal.has(seq))?;
            let mut any = |topic: &str| Some(Arc::from(topic));
            match journal.reader(seq).read(&mut any, 1, 1, 0).ok()? {
                Read::Messages(messages) => {
                    let message = messages.first().filter(|message| message.seq() == seq)?;
                    Some(message.topic().to_owned())
                }
                _ => None,
            }
        };
        Some(figures.why(topic))
    }

    /// The last ten minutes.
    pub fn history(&self) -> History {
        self.latest.history.lock().clone()
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
            certificates_refused: (self.certificates_refused.as_ref())
                .map(|refused| refused.load(Ordering::Relaxed)),
            measured: self.measured.snapshot(),
            measured_refused: self.measured.refused(),
        });
        self.latest.history.lock().add(&sample);
        *self.latest.sample.lock() = Some(sample.clone());
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
