//! Forecasts against queues whose future is known: it is simulated, second by second, to its end.
//!
//! The truth is the time from a forecast until the queue is next empty. The bounds on the width are
//! there because a range from now to never is always right. What is measured is printed:
//! `cargo test -p weir --lib simulation -- --nocapture`.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Drain, Forecaster};
use crate::stats::{Reason, Snapshot, State, Stats};

/// Some time in 2027.
const BEGIN: u64 = 1_800_000_000;

/// splitmix64.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 30.0 {
            // Near enough, and quicker.
            let (a, b) = (self.uniform(), self.uniform());
            let normal = (-2.0 * (1.0 - a).ln()).sqrt() * (std::f64::consts::TAU * b).cos();
            return (mean + mean.sqrt() * normal).round().max(0.0) as u64;
        }
        let (limit, mut product, mut count) = ((-mean).exp(), self.uniform(), 0);
        while product > limit {
            product *= self.uniform();
            count += 1;
        }
        count
    }
}

/// A consumer and its queue.
pub(super) struct World {
    random: Random,
    /// Seconds since the begin.
    now: u64,
    waiting: VecDeque<(u64, u64)>,
    shot: Snapshot,
    /// Only to count drops with.
    stats: Stats,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        World {
            random: Random(seed),
            now: 0,
            waiting: VecDeque::new(),
            shot: Snapshot {
                at_ns: BEGIN * 1_000_000_000,
                ..Snapshot::default()
            },
            stats: Stats::new(1),
        }
    }

    pub(super) fn receive(&mut self, messages: u64) {
        if messages > 0 {
            self.waiting.push_back((self.now, messages));
            self.shot.received += messages;
        }
    }

    fn take(&mut self, messages: u64) -> u64 {
        let mut left = messages;
        while left > 0
            && let Some((_, count)) = self.waiting.front_mut()
        {
            let some = left.min(*count);
            *count -= some;
            left -= some;
            if *count == 0 {
                self.waiting.pop_front();
            }
        }
        messages - left
    }

    /// An operator has so many skipped.
    pub(super) fn skip(&mut self, messages: u64) {
        let skipped = self.take(messages);
        self.stats.received(skipped as usize, 0, 1);
        self.stats.dropped(Reason::Skipped, skipped as usize, 0);
    }

    /// A second in which messages come and are settled at these mean rates.
    pub(super) fn second(&mut self, arriving: f64, serving: f64) -> Snapshot {
        let arrived = self.random.poisson(arriving);
        let able = self.random.poisson(serving);
        let before = self.shot.consumed;
        let mut shot = self.exactly(arrived, able);
        if serving > 0.0 {
            let settled = self.shot.consumed - before;
            self.shot.timed += settled;
            self.shot.processing_ns += (settled as f64 / serving * 1e9) as u64;
        }
        (shot.timed, shot.processing_ns) = (self.shot.timed, self.shot.processing_ns);
        shot
    }

    /// A second in which so many messages come and as many as these can be settled.
    pub(super) fn exactly(&mut self, arrived: u64, able: u64) -> Snapshot {
        self.receive(arrived);
        let taken = self.take(able);
        self.shot.consumed += taken;
        self.now += 1;
        let mut shot = self.shot;
        shot.at_ns += self.now * 1_000_000_000;
        shot.dropped = self.stats.snapshot().dropped;
        shot.queue_messages = self.waiting.iter().map(|(_, count)| count).sum();
        shot.in_flight = shot.queue_messages.min(1);
        shot.waiting = shot.queue_messages - shot.in_flight;
        if let Some((at, _)) = self.waiting.front() {
            shot.lag = Duration::from_secs(self.now - at);
            shot.state = State::Working;
        }
        shot
    }
}

/// A scenario, and what is asked of it.
struct Scenario {
    name: &'static str,
    seeds: u64,
    seconds: u64,
    /// Messages that wait at the begin.
    backlog: u64,
    /// Mean rates of arrival and of service at a time.
    rates: fn(f64) -> (f64, f64),
    /// At least so many of the ranges contain the truth.
    contained: f64,
    /// The median of high to low is at most this; a range without an end is infinitely wide.
    width: f64,
    /// Of the samples from a backlog's height until it is gone, at least so many get a range.
    given: f64,
}

#[derive(Default)]
struct Measured {
    ranges: usize,
    contained: usize,
    widths: Vec<f64>,
    errors: Vec<f64>,
    endless: usize,
    draining: usize,
    given: usize,
    words: std::collections::BTreeMap<&'static str, usize>,
}

impl Measured {
    fn run(&mut self, scenario: &Scenario, seed: u64) {
        let mut world = World::new(seed);
        let mut forecaster = Forecaster::new(1);
        world.receive(scenario.backlog);
        let mut samples = Vec::new();
        for second in 0..scenario.seconds {
            let (arriving, serving) = (scenario.rates)(second as f64);
            let shot = world.second(arriving, serving);
            forecaster.push(&shot);
            samples.push((shot.queue_messages, shot.lag, forecaster.forecast().drain));
        }
        // From when on it was never as deep again before it was empty.
        let mut turned = vec![false; samples.len()];
        let (mut height, mut top) = (0, 0);
        for (at, (depth, ..)) in samples.iter().enumerate() {
            if *depth >= height {
                (height, top) = (*depth, at);
            }
            if *depth == 0 {
                turned[top..at].fill(true);
                (height, top) = (0, at);
            }
        }
        let mut empty = None;
        for (at, (depth, lag, drain)) in samples.into_iter().enumerate().rev() {
            if depth == 0 {
                empty = Some(at);
                continue;
            }
            // What it was not yet at the end may only be missed.
            let truth = empty.map_or(f64::INFINITY, |empty| (empty - at) as f64);
            let left = (scenario.seconds as usize - at) as f64;
            if turned[at] && lag.as_secs() > 10 {
                self.draining += 1;
                self.given += usize::from(matches!(drain, Drain::Draining { .. }));
                let word = match drain {
                    Drain::Empty => "empty",
                    Drain::Draining { .. } => "draining",
                    Drain::Growing { .. } => "growing",
                    Drain::Steady => "steady",
                    Drain::Stalled { .. } => "stalled",
                    Drain::Unknown => "unknown",
                };
                *self.words.entry(word).or_default() += 1;
            }
            if let Drain::Draining {
                low_seconds,
                high_seconds,
                likely_seconds,
                ..
            } = drain
            {
                let high = high_seconds.unwrap_or(f64::INFINITY);
                if truth.is_infinite() && high + 1.0 >= left {
                    continue;
                }
                self.ranges += 1;
                // Samples are a second apart: so is the truth.
                let contained = truth >= low_seconds - 1.0 && truth <= high + 1.0;
                self.contained += usize::from(contained);
                self.endless += usize::from(high.is_infinite());
                self.widths.push(high / low_seconds.max(1.0));
                (self.errors).push((likely_seconds - truth).abs() / truth.min(left));
            }
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn check(scenario: Scenario) {
    let mut all = Measured::default();
    for seed in 1..=scenario.seeds {
        all.run(&scenario, seed);
    }
    let contained = all.contained as f64 / all.ranges as f64;
    let given = all.given as f64 / all.draining as f64;
    let endless = all.endless as f64 / all.ranges as f64;
    let (width, error) = (median(all.widths), median(all.errors));
    println!(
        "{:<28} {:>6} ranges: {:.0} % contain the truth; median high/low {width:.2}, \
         error {:.0} %; {:.1} % without end; given to {:.0} % of draining samples {:?}",
        scenario.name,
        all.ranges,
        100.0 * contained,
        100.0 * error,
        100.0 * endless,
        100.0 * given,
        all.words,
    );
    assert!(all.ranges > 100, "hardly any");
    assert!(contained >= scenario.contained, "contained: {contained}");
    assert!(width <= scenario.width, "width: {width}");
    assert!(given >= scenario.given, "given: {given}");
}

#[test]
fn steady_arrivals_and_a_backlog() {
    check(Scenario {
        name: "steady, 20/s of 50/s",
        seeds: 5,
        seconds: 900,
        backlog: 20_000,
        rates: |_| (20.0, 50.0),
        contained: 0.8,
        width: 1.5,
        given: 0.95,
    });
}

#[test]
fn steady_and_near_capacity() {
    check(Scenario {
        name: "steady, 45/s of 50/s",
        seeds: 5,
        seconds: 4 * 3_600,
        backlog: 10_000,
        rates: |_| (45.0, 50.0),
        contained: 0.8,
        width: 2.2,
        given: 0.95,
    });
}

#[test]
fn steady_and_slow() {
    check(Scenario {
        name: "steady, 2/min of 6/min",
        seeds: 5,
        seconds: 4 * 3_600,
        backlog: 200,
        rates: |_| (2.0 / 60.0, 0.1),
        contained: 0.8,
        // Mostly two or three messages: chance decides.
        width: 4.0,
        given: 0.8,
    });
}

#[test]
fn a_burst_of_120_a_second_on_4_a_minute() {
    for (name, minutes) in [("burst, 2 min", 2.0), ("burst, 10 min", 10.0)] {
        let rates = if minutes == 2.0 {
            |at: f64| {
                if (600.0..720.0).contains(&at) {
                    (120.0, 20.0)
                } else {
                    (4.0 / 60.0, 20.0)
                }
            }
        } else {
            |at: f64| {
                if (600.0..1200.0).contains(&at) {
                    (120.0, 20.0)
                } else {
                    (4.0 / 60.0, 20.0)
                }
            }
        };
        check(Scenario {
            name,
            seeds: 5,
            seconds: 6_000,
            backlog: 0,
            rates,
            contained: 0.8,
            width: 1.5,
            given: 0.95,
        });
    }
}

#[test]
fn a_burst_every_half_hour() {
    check(Scenario {
        name: "burst of 3 min in 30",
        seeds: 5,
        seconds: 6 * 3_600,
        backlog: 0,
        rates: |at| {
            let on = (600.0..780.0).contains(&(at % 1_800.0));
            (if on { 120.0 } else { 4.0 / 60.0 }, 20.0)
        },
        contained: 0.8,
        width: 1.5,
        given: 0.95,
    });
}

#[test]
fn batches_on_a_backlog() {
    check(Scenario {
        name: "batch of 600 every minute",
        seeds: 5,
        // Until it is gone: from then on every batch is a backlog of its own.
        seconds: 3_200,
        backlog: 30_000,
        rates: |at| (if at % 60.0 == 7.0 { 600.0 } else { 0.0 }, 20.0),
        contained: 0.8,
        width: 2.5,
        given: 0.95,
    });
}

#[test]
fn a_day_with_a_peak_above_what_the_consumer_can() {
    fn day(at: f64, mean: f64) -> f64 {
        mean * (1.0 + 0.5 * (at * std::f64::consts::TAU / 86_400.0).sin())
    }
    check(Scenario {
        name: "day, mean 10/s of 13/s",
        seeds: 3,
        seconds: 86_400,
        backlog: 0,
        rates: |at| (day(at, 10.0), 13.0),
        contained: 0.8,
        width: 3.0,
        given: 0.9,
    });
    check(Scenario {
        name: "day, mean 100/s of 130/s",
        seeds: 2,
        seconds: 86_400,
        backlog: 0,
        rates: |at| (day(at, 100.0), 130.0),
        contained: 0.8,
        width: 3.0,
        given: 0.9,
    });
}

#[test]
fn a_consumer_that_is_stuck_and_fast_in_turn() {
    check(Scenario {
        name: "stuck 20 s, fast 10 s",
        seeds: 5,
        seconds: 3_600,
        backlog: 20_000,
        rates: |at| (10.0, if at % 30.0 < 20.0 { 0.0 } else { 60.0 }),
        contained: 0.8,
        width: 2.2,
        given: 0.9,
    });
    check(Scenario {
        name: "fast 20 s, stuck 10 s",
        seeds: 5,
        seconds: 3_600,
        backlog: 20_000,
        rates: |at| (10.0, if at % 30.0 < 20.0 { 30.0 } else { 0.0 }),
        contained: 0.8,
        width: 1.8,
        given: 0.9,
    });
    check(Scenario {
        name: "stuck 2 min, fast 1 min",
        seeds: 5,
        seconds: 3 * 3_600,
        backlog: 50_000,
        rates: |at| (10.0, if at % 180.0 < 120.0 { 0.0 } else { 60.0 }),
        contained: 0.8,
        // Stuck for most of the time, and said to be stalled for much of that.
        width: 5.0,
        given: 0.5,
    });
    check(Scenario {
        name: "fast 2 min, stuck 1 min",
        seeds: 5,
        seconds: 3 * 3_600,
        backlog: 50_000,
        rates: |at| (10.0, if at % 180.0 < 120.0 { 30.0 } else { 0.0 }),
        contained: 0.8,
        width: 3.0,
        given: 0.8,
    });
}
