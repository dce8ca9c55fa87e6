//! What follows from snapshots: rates, when a queue will be empty, health. No clock and no thread
//! of its own: time is what the snapshots say it is.
//!
//! Promises:
//!
//! 1. A forecast is a range on the wall clock, from what arrives and what is settled while messages
//!    wait; how long deliveries take has no part in it.
//! 2. The range is as wide as the past was uneven: measured, see `series.rs`.
//! 3. A stall is named within two windows; a window is 30 s, or four times the mean processing time
//!    if that is longer. Neither one lucky message nor one empty moment ends it.
//! 4. What an operator or a bound drops is no work of the consumer's; skips, replays, pauses and
//!    halts make earlier forecasts void, neither right nor wrong.
//! 5. Memory of one consumer is bounded, below 16 KiB.
//! 6. A clock that is set back, a gap of a minute, or counters that shrink: it begins anew.
//!
//! It can't foresee a change that nothing announces: then a range is wrong, and [`Accuracy`] tells
//! how often it was. What a snapshot does not tell is left out, too: that an operator has paused a
//! consumer shows when its delivery has ended.

mod record;
mod series;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
mod what_if;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::stats::{Reason, Snapshot, State};
pub use record::Accuracy;
use record::Record;
use series::{Pace, Series, Trend};
pub use what_if::{Burst, WhatIf, what_if};

/// A stall is named when nothing was settled for one and a half of these, although messages wait;
/// it is four times the mean processing time if that is longer.
const STALL_WINDOW: f64 = 30.0;
/// Progress in so many samples ends a stall, each at most a window after the one before.
const STALL_PROGRESS: u32 = 3;
/// So does a queue that is empty for so many seconds.
const EMPTY_AWHILE: f64 = 10.0;
/// Snapshots that come faster than this many seconds are passed over.
const SAMPLE_MIN: f64 = 0.5;
/// After such a gap nothing of the past tells of the present.
const GAP_MAX: f64 = 60.0;
/// [`Rates`] are those of so many seconds.
const RATES_OVER: f64 = 10.0;
/// Growth is measured over so many.
const GROWTH_OVER: f64 = 60.0;
/// So many samples there are in that time, and one before.
const PAST_MAX: usize = (GROWTH_OVER / SAMPLE_MIN) as usize + 2;
/// What is settled this soon is the ordinary in-and-out, in seconds of age and of work.
const ORDINARY: f64 = 3.0;
/// A lag or so much work is behind, in seconds; half of it is so still.
const BEHIND: f64 = 10.0;
/// A lag, in seconds, below which growth is not falling behind.
const FALLING_LAG: f64 = 5.0;
/// Health is worse when it has been so for so many seconds, better when for so many.
const WORSE_AFTER: f64 = 10.0;
const BETTER_AFTER: f64 = 60.0;
/// The probability that a range is meant to contain the truth with.
const CONFIDENCE: f64 = 0.9;
/// Standard deviations for the ends of the range: a queue is empty the first time it is, so the low
/// end is passed twice as often as at a fixed time.
const LOW_DEVIATIONS: f64 = 1.96;
const HIGH_DEVIATIONS: f64 = 1.645;
/// No range is narrower than this much either way: rates wander.
const WANDER: f64 = 0.05;
/// Nobody cares for more, in seconds: 30 days.
const FAR: f64 = 30.0 * 86_400.0;
/// In one sample so many, and more than usual in so many seconds: a batch or a replay, and no rate
/// unless it happens again within so many seconds.
const LEAP_MIN: f64 = 100.0;
const LEAP_SECONDS: f64 = 20.0;
const LEAPS_APART: f64 = 600.0;

/// Messages a second in and out of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Received.
    #[serde(rename = "in")]
    pub received: f64,
    /// Settled, however it ended.
    #[serde(rename = "out")]
    pub settled: f64,
}

/// What one consumer's past tells of its future.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// The rates of the last ten seconds.
    pub rates: Rates,
    /// Messages a second that the consumer settles when it never waits for messages; none before
    /// anything was measured.
    pub service: Option<f64>,
    /// When the queue will be empty.
    pub drain: Drain,
    /// How the consumer does.
    pub health: Health,
    /// How right earlier forecasts were; none before the outcome of one is known.
    pub accuracy: Option<Accuracy>,
}

/// When a queue will be empty.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "forecast", rename_all = "snake_case")]
pub enum Drain {
    /// Nothing waits, or what does is the ordinary in-and-out of a consumer that keeps up.
    Empty,
    /// It will be empty in so many seconds from now.
    Draining {
        /// At the earliest.
        low_seconds: f64,
        /// At the latest; none: perhaps never.
        high_seconds: Option<f64>,
        /// If all goes on as it does.
        likely_seconds: f64,
        /// The probability that low to high is meant to contain the truth with.
        confidence: f64,
    },
    /// More arrives than is settled.
    Growing {
        /// So many messages a second more.
        per_second: f64,
    },
    /// It neither grows nor shrinks by more than chance.
    Steady,
    /// Nothing has been settled for so long, although messages wait.
    Stalled {
        /// In seconds.
        for_seconds: f64,
    },
    /// Too few samples.
    Unknown,
}

/// One word on a consumer. The order is by how much it needs somebody to look: the maximum of
/// several is the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// It keeps up.
    Ok,
    /// An operator has paused it.
    Paused,
    /// Messages wait for more than a few seconds, but not ever longer.
    Behind,
    /// Messages wait longer and longer.
    FallingBehind,
    /// Messages wait and nothing is settled.
    Stalled,
    /// The consumer said `Halt`.
    Halted,
}

impl Health {
    /// All of them, from best to worst.
    pub const ALL: [Health; 6] = [
        Health::Ok,
        Health::Paused,
        Health::Behind,
        Health::FallingBehind,
        Health::Stalled,
        Health::Halted,
    ];

    /// The word for it in figures and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Paused => "paused",
            Health::Behind => "behind",
            Health::FallingBehind => "falling_behind",
            Health::Stalled => "stalled",
            Health::Halted => "halted",
        }
    }
}

/// For people: "clears in 4-7 min", "growing 12/s", "stalled for 3 min".
impl fmt::Display for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Drain::Empty => f.write_str("empty"),
            Drain::Draining {
                low_seconds,
                high_seconds,
                ..
            } => {
                let Some(high_seconds) = high_seconds else {
                    let (low, unit) = spoken(low_seconds, low_seconds);
                    return write!(f, "clears in {low} {unit} at the earliest, perhaps never");
                };
                let (high, unit) = spoken(high_seconds, high_seconds);
                match spoken(low_seconds, high_seconds).0 {
                    low if low == high => write!(f, "clears in {high} {unit}"),
                    low => write!(f, "clears in {low}-{high} {unit}"),
                }
            }
            Drain::Growing { per_second } if per_second >= 10.0 => {
                write!(f, "growing {per_second:.0}/s")
            }
            Drain::Growing { per_second } if per_second >= 0.1 => {
                write!(f, "growing {per_second:.1}/s")
            }
            Drain::Growing { per_second } => write!(f, "growing {:.1}/min", per_second * 60.0),
            Drain::Steady => f.write_str("steady"),
            Drain::Stalled { for_seconds } => {
                let (time, unit) = spoken(for_seconds, for_seconds);
                write!(f, "stalled for {time} {unit}")
            }
            Drain::Unknown => f.write_str("unknown"),
        }
    }
}

/// A time in whole units, or with a decimal below two, in the unit that fits another time.
pub(crate) fn spoken(seconds: f64, unit_of: f64) -> (String, &'static str) {
    let (length, unit) = match unit_of {
        ..120.0 => (1.0, "s"),
        ..7_200.0 => (60.0, "min"),
        ..172_800.0 => (3_600.0, "h"),
        _ => (86_400.0, "d"),
    };
    let time = seconds / length;
    let decimals = usize::from(length > 1.0 && time < 2.0);
    (format!("{time:.decimals$}"), unit)
}

/// What came and went until a moment.
#[derive(Clone, Copy, Debug)]
struct Tally {
    at: f64,
    received: u64,
    settled: u64,
}

/// What of a snapshot the next one is compared with.
#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Seconds by the forecaster's own clock.
    at: f64,
    received: u64,
    /// However they ended.
    settled: u64,
    /// Settled by the consumer's doing.
    worked: u64,
    skipped: u64,
    waiting: u64,
}

impl Mark {
    fn new(at: f64, shot: &Snapshot) -> Self {
        let refused = shot.dropped.in_turn();
        Mark {
            at,
            received: shot.received,
            settled: shot.received.saturating_sub(shot.queue_messages),
            worked: (shot.consumed.saturating_add(shot.dead_lettered)).saturating_add(refused),
            skipped: shot.dropped.of(Reason::Skipped),
            waiting: shot.waiting,
        }
    }

    /// Whether the counters have only grown since.
    fn follows(&self, other: &Mark) -> bool {
        self.received >= other.received
            && self.settled >= other.settled
            && self.worked >= other.worked
            && self.skipped >= other.skipped
    }

    fn depth(&self) -> u64 {
        self.received - self.settled
    }

    fn tally(&self) -> Tally {
        Tally {
            at: self.at,
            received: self.received,
            settled: self.settled,
        }
    }
}

/// One consumer's past, as it was sampled.
#[derive(Clone, Debug)]
pub struct Forecaster {
    workers: usize,
    /// When the last snapshot was taken, in nanoseconds since 1970.
    last_ns: u64,
    last: Option<Mark>,
    /// The last minute.
    past: VecDeque<Tally>,
    /// What arrived and was not dropped before the consumer had it.
    arrived: Series,
    /// What the consumer settled, in such time only as it always had some.
    served: Series,
    /// When messages last came all at once.
    leaped: Option<f64>,
    /// When it was last seen paused or halted.
    stood: f64,
    stall: Stall,
    steady: Steadied,
    record: Record,
    forecast: Forecast,
}

/// Whether a consumer is stalled.
#[derive(Clone, Debug, Default)]
struct Stall {
    /// When it last got anywhere, or had nothing to do.
    since: f64,
    empty_since: Option<f64>,
    named: bool,
    /// Samples with progress since it was named, and when the last of them was.
    progress: u32,
    progress_at: f64,
}

/// Health that does not flap.
#[derive(Clone, Debug)]
struct Steadied {
    health: Health,
    /// Nothing has been said yet: what is said first is said at once.
    fresh: bool,
    worse_since: Option<f64>,
    better_since: Option<f64>,
}

impl Forecaster {
    /// Nothing known yet of a consumer with so many workers.
    pub fn new(workers: usize) -> Self {
        Forecaster {
            workers: workers.max(1),
            last_ns: 0,
            last: None,
            past: VecDeque::with_capacity(PAST_MAX),
            arrived: Series::new(),
            served: Series::new(),
            leaped: None,
            stood: 0.0,
            stall: Stall::default(),
            steady: Steadied {
                health: Health::Ok,
                fresh: true,
                worse_since: None,
                better_since: None,
            },
            record: Record::new(),
            forecast: Forecast {
                rates: Rates::default(),
                service: None,
                drain: Drain::Unknown,
                health: Health::Ok,
                accuracy: None,
            },
        }
    }

    /// What is known as of the last snapshot.
    pub fn forecast(&self) -> Forecast {
        self.forecast.clone()
    }

    /// Adds a snapshot; it is passed over if it is less than half a second younger than the last.
    pub fn push(&mut self, shot: &Snapshot) {
        let before = self
            .last
            .filter(|last| Mark::new(last.at, shot).follows(last));
        let elapsed = (shot.at_ns.checked_sub(self.last_ns))
            .map(|ns| ns as f64 / 1e9)
            .filter(|seconds| *seconds <= GAP_MAX);
        let (Some(elapsed), Some(before)) = (elapsed, before) else {
            return self.begin(shot);
        };
        if elapsed < SAMPLE_MIN {
            return;
        }
        let mark = Mark::new(before.at + elapsed, shot);
        self.remember(&before, &mark, shot);
        self.tell(&before, &mark, shot);
    }

    /// Forgets all but the outcomes of earlier forecasts.
    fn begin(&mut self, shot: &Snapshot) {
        self.record.discard();
        let record = std::mem::replace(&mut self.record, Record::new());
        *self = Forecaster {
            record,
            ..Forecaster::new(self.workers)
        };
        let mark = Mark::new(0.0, shot);
        self.tell(&mark, &mark, shot);
    }

    /// Adds what happened between two samples to what is known of the rates.
    fn remember(&mut self, before: &Mark, mark: &Mark, shot: &Snapshot) {
        let elapsed = mark.at - before.at;
        let received = (mark.received - before.received) as f64;
        let worked = (mark.worked - before.worked) as f64;
        let skipped = (mark.skipped - before.skipped) as f64;
        let lost = (mark.settled - before.settled) as f64 - worked - skipped;

        let usual = self.rate(before, GROWTH_OVER).unwrap_or_default().received;
        let leap = received >= LEAP_MIN && received > LEAP_SECONDS * usual * elapsed;
        let leap = leap && (self.leaped).is_none_or(|at| mark.at - at > LEAPS_APART);
        if leap {
            self.leaped = Some(mark.at);
        } else {
            self.arrived.add(elapsed, received - lost);
        }
        if skipped > 0.0 || leap {
            self.record.discard();
        }

        let busy = shot.lag.as_secs_f64() >= elapsed && mark.waiting > 0 && before.waiting > 0;
        if busy && !matches!(shot.state, State::Paused | State::Halted | State::Stopped) {
            self.served.add(elapsed, worked);
        }
    }

    /// Draws the conclusions.
    fn tell(&mut self, before: &Mark, mark: &Mark, shot: &Snapshot) {
        self.last_ns = shot.at_ns;
        self.last = Some(*mark);
        let begin = mark.at - GROWTH_OVER;
        // The last one before the minute stays, so that all of it is covered.
        while self.past.len() == PAST_MAX || self.past.get(1).is_some_and(|past| past.at <= begin) {
            self.past.pop_front();
        }
        self.past.push_back(mark.tally());
        let stood = matches!(shot.state, State::Paused | State::Halted);
        if stood {
            self.stood = mark.at;
        }
        let processing = shot.processing_mean().map(|mean| mean.as_secs_f64());
        let window = STALL_WINDOW.max(4.0 * processing.unwrap_or_default());
        self.stall.sample(before, mark, shot.state, window);

        let served = self.served.pace();
        // Deliveries that fail are timed too: where none succeeds they tell nothing.
        let timed = shot.consumed > 0 && shot.processing_ns > 0 && shot.timed_messages > 0;
        let timed = timed.then(|| {
            let seconds = Duration::from_nanos(shot.processing_ns).as_secs_f64();
            self.workers as f64 * shot.timed_messages as f64 / seconds
        });
        let service = (served.map(|pace| pace.mean).filter(|mean| *mean > 0.0)).or(timed);
        let drain = self.drain(mark, shot, stood, served, service);

        if stood {
            self.record.discard();
        } else if mark.depth() == 0 || shot.lag.as_secs_f64() < mark.at - before.at {
            // Or as good as: all that was there at the last sample is settled.
            self.record.emptied(mark.at);
        } else {
            self.record.not_emptied(mark.at);
        }
        if let Drain::Draining {
            low_seconds,
            high_seconds,
            likely_seconds,
            ..
        } = drain
        {
            (self.record).made(mark.at, low_seconds, high_seconds, likely_seconds);
        }
        self.forecast = Forecast {
            rates: self.rate(mark, RATES_OVER).unwrap_or_default(),
            service,
            drain,
            health: self.health(mark, shot, service, drain),
            accuracy: self.record.accuracy(),
        };
    }

    /// The rates from so many seconds before a sample until it.
    fn rate(&self, to: &Mark, seconds: f64) -> Option<Rates> {
        let from = (self.past.iter().rev())
            .find(|past| past.at <= to.at - seconds)
            .or(self.past.front())?;
        let seconds = to.at - from.at;
        (seconds > 0.0).then(|| Rates {
            received: (to.received - from.received) as f64 / seconds,
            settled: (to.settled - from.settled) as f64 / seconds,
        })
    }

    fn drain(
        &self,
        mark: &Mark,
        shot: &Snapshot,
        stood: bool,
        served: Option<Pace>,
        service: Option<f64>,
    ) -> Drain {
        if self.stall.named {
            let for_seconds = mark.at - self.stall.since;
            return Drain::Stalled { for_seconds };
        }
        let depth = mark.depth() as f64;
        if depth == 0.0 {
            return Drain::Empty;
        }
        let Some(arrived) = self.arrived.pace() else {
            return Drain::Unknown;
        };
        if stood {
            return match arrived.mean {
                per_second if per_second > 0.0 => Drain::Growing { per_second },
                _ => Drain::Steady,
            };
        }
        let ordinary = service.is_some_and(|service| depth <= ORDINARY * service);
        if mark.waiting == 0 || (ordinary && shot.lag.as_secs_f64() <= ORDINARY) {
            return Drain::Empty;
        }
        match served {
            Some(served) => Net::new(&self.arrived, arrived, &self.served, served).drain(depth),
            None => Drain::Unknown,
        }
    }

    fn health(
        &mut self,
        mark: &Mark,
        shot: &Snapshot,
        service: Option<f64>,
        drain: Drain,
    ) -> Health {
        let now = match shot.state {
            State::Halted => return self.steady.at_once(Health::Halted),
            State::Paused => return self.steady.at_once(Health::Paused),
            _ if self.stall.named => return self.steady.at_once(Health::Stalled),
            _ => self.steady.health,
        };
        let lag = shot.lag.as_secs_f64();
        let work = service.map_or(0.0, |service| mark.waiting as f64 / service);
        let part = if now >= Health::Behind { 0.5 } else { 1.0 };
        // One long delivery that nothing waits for is none.
        let behind = mark.waiting > 0 && lag.max(work) > BEHIND * part;
        // What came while it was paused is no growth.
        let from = self.past.iter().find(|past| past.at >= self.stood);
        let from = from.copied().unwrap_or(mark.tally());
        let received = (mark.received - from.received) as f64;
        let settled = (mark.settled - from.settled) as f64;
        let least = (3.0 * (received + settled).sqrt()).max(0.02 * received);
        // What came all at once and goes away again is no growth either.
        let growing = !matches!(drain, Drain::Draining { .. })
            && mark.at - from.at >= GROWTH_OVER / 2.0
            && received - settled > least * part
            && lag > FALLING_LAG * part;
        let health = match (growing, behind) {
            (true, _) => Health::FallingBehind,
            (false, true) => Health::Behind,
            (false, false) => Health::Ok,
        };
        self.steady.settle(mark.at, health)
    }
}

impl Stall {
    fn sample(&mut self, before: &Mark, mark: &Mark, state: State, window: f64) {
        let now = mark.at;
        self.empty_since = (mark.depth() == 0).then(|| self.empty_since.unwrap_or(now));
        let empty = (self.empty_since).is_some_and(|since| now - since >= EMPTY_AWHILE);
        // These have their reasons.
        let excused = matches!(state, State::Paused | State::Halted | State::RateLimited);
        if empty || excused {
            *self = Stall {
                since: now,
                empty_since: self.empty_since,
                ..Stall::default()
            };
            return;
        }
        let progress = mark.worked > before.worked;
        if !self.named {
            if progress {
                self.since = now;
            }
            self.named = mark.depth() > 0 && now - self.since >= 1.5 * window;
        } else if progress {
            if now - self.progress_at > window {
                self.progress = 0;
            }
            self.progress += 1;
            self.progress_at = now;
            if self.progress >= STALL_PROGRESS {
                *self = Stall {
                    since: now,
                    empty_since: self.empty_since,
                    ..Stall::default()
                };
            }
        }
    }
}

impl Steadied {
    fn at_once(&mut self, health: Health) -> Health {
        *self = Steadied {
            health,
            fresh: false,
            worse_since: None,
            better_since: None,
        };
        health
    }

    fn settle(&mut self, now: f64, health: Health) -> Health {
        // What was said at once ends at once.
        let lasting = matches!(
            self.health,
            Health::Ok | Health::Behind | Health::FallingBehind
        );
        if self.fresh || !lasting {
            return self.at_once(health);
        }
        self.worse_since = (health > self.health).then(|| self.worse_since.unwrap_or(now));
        self.better_since = (health < self.health).then(|| self.better_since.unwrap_or(now));
        let for_long = |since: Option<f64>, seconds| since.is_some_and(|at| now - at >= seconds);
        if for_long(self.worse_since, WORSE_AFTER) || for_long(self.better_since, BETTER_AFTER) {
            return self.at_once(health);
        }
        self.health
    }
}

/// What a queue shrinks by: what is served less what arrives.
struct Net {
    arrived: Pace,
    served: Pace,
    /// Now.
    per_second: f64,
    /// This changes by so much a second, as it has for so many seconds.
    change: Option<(f64, f64)>,
}

impl Net {
    fn new(arrivals: &Series, arrived: Pace, services: &Series, served: Pace) -> Self {
        let arriving = arrivals.trend(&arrived);
        let serving = services.trend(&served);
        let now = |trend: Option<Trend>, pace: Pace| trend.map_or(pace.mean, |trend| trend.now);
        let change = |trend: Option<Trend>| trend.map_or(0.0, |trend| trend.change);
        let spans = [arriving, serving].into_iter().flatten();
        let span = spans.map(|trend| trend.span).reduce(f64::min);
        Net {
            arrived,
            served,
            per_second: now(serving, served) - now(arriving, arrived),
            change: span.map(|span| (change(serving) - change(arriving), span)),
        }
    }

    fn drain(&self, depth: f64) -> Drain {
        let deviation = (self.arrived.mean_variance() + self.served.mean_variance()).sqrt();
        if self.per_second < -1.3 * deviation {
            return Drain::Growing {
                per_second: -self.per_second,
            };
        }
        let about = depth / self.per_second;
        if self.per_second <= 0.5 * deviation || about > FAR {
            return Drain::Steady;
        }
        // A trend may end now, or prove to be half as strong again.
        let likely = self.first(about, depth, |net, at| net.gone(at, 1.0));
        let likely = likely.unwrap_or(about);
        let low = self.first(likely, depth, |net, at| {
            let gone = net.gone(at, 0.0).max(net.gone(at, 1.5));
            gone * (1.0 + net.wander(at)) + LOW_DEVIATIONS * net.deviation(at)
        });
        let high = self.first(likely, depth, |net, at| {
            let gone = net.gone(at, 0.0).min(net.gone(at, 1.5));
            gone * (1.0 - net.wander(at)) - HIGH_DEVIATIONS * net.deviation(at)
        });
        Drain::Draining {
            low_seconds: low.unwrap_or(likely).min(likely),
            high_seconds: (high.filter(|high| *high <= FAR)).map(|high| high.max(likely)),
            likely_seconds: likely,
            confidence: CONFIDENCE,
        }
    }

    /// What is gone after so many seconds, if the pace goes on changing in part as it does, for as
    /// long as it has been seen to.
    fn gone(&self, seconds: f64, part: f64) -> f64 {
        let (change, span) = self.change.unwrap_or_default();
        let bending = seconds.min(span);
        self.per_second * seconds + part * change * bending * (seconds - bending / 2.0)
    }

    fn deviation(&self, seconds: f64) -> f64 {
        (self.arrived.spread(seconds) + self.served.spread(seconds)).sqrt()
    }

    /// How much rates wander beyond what was measured, more the further ahead.
    fn wander(&self, seconds: f64) -> f64 {
        let seen = self.arrived.span.min(self.served.span);
        WANDER + 0.02 * (1.0 + seconds / seen).log2()
    }

    /// When so many are gone, counted by `gone`; none: not in fifty times as long as `about`.
    fn first(&self, about: f64, depth: f64, gone: impl Fn(&Self, f64) -> f64) -> Option<f64> {
        const STEP: f64 = 1.3;
        let (mut before, mut at) = (0.0, about / 50.0);
        while gone(self, at) < depth {
            before = at;
            at *= STEP;
            if at > about * 50.0 {
                return None;
            }
        }
        for _ in 0..8 {
            let middle = (before + at) / 2.0;
            if gone(self, middle) < depth {
                before = middle;
            } else {
                at = middle;
            }
        }
        Some(at)
    }
}
