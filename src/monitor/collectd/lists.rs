//! Value lists: a hub's figures as collectd wants to hear them.
//!
//! Pure: what goes in are figures, from a [`Sample`](crate::monitor::sample::Sample) in the hub or
//! from a [`Dump`](crate::monitor::sample::Dump) outside of it; what comes out are `PUTVAL` lines
//! (collectd-exec(5), collectd-unixsock(5)). Who carries them is not known here.
//!
//! 1. Every type is one of collectd's own `types.db`: it drops other types without a word.
//! 2. No part of an identifier is longer than 63 bytes, which is all that collectd takes, and all
//!    are letters, digits, `_`, `-` and `.`, which stand in a path and in a graph definition as
//!    they are.
//! 3. A gauge that was told once and is not known now is told as `U`. A counter is left out then:
//!    collectd refuses `U` for it, and what it does not hear of it takes for unknown itself.
//! 4. What is told of an interval is of that interval: a hub that was started anew begins at 0.
//!
//! In the layout `weir`, `weir_consumer_dropped_total{hub, consumer, reason}` becomes
//! `HOST/weir_HUB-CONSUMER/derive-dropped_REASON`; `docs/collectd.md` has a table. In the layout
//! `fedmsg` there are only the identifiers that collectd's plugin for fedmsg used.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{Display, Write};
use std::time::Duration;

use clap::ValueEnum;
use serde::Deserialize;

use crate::forecast::Health;
use crate::histogram::Counts;
use crate::monitor::sample::{Each, Family, Sort, Value};
use crate::monitor::statsd::QUANTILES;
use crate::stats::{LatestTimes, Reason, State};

/// What a part of an identifier may have: older versions have room for 64 with the NUL.
pub const PART_MAX: usize = 63;
/// A hub's start is told by two clocks, which are read one after the other and may be set between.
const START_SLACK: f64 = 0.5;

/// How identifiers are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// All figures, a plugin instance a consumer.
    #[default]
    Weir,
    /// The identifiers of existing dashboards for fedmsg.
    Fedmsg,
}

/// The figures of a hub at one moment.
pub struct Reading<'r> {
    /// The hub's name.
    pub hub: &'r str,
    /// When, in seconds since 1970.
    pub at: f64,
    /// When the hub was started, in seconds since 1970.
    pub started: f64,
    /// Calls with every figure.
    pub figures: &'r dyn Fn(&mut Each<'_>),
    /// The latest times of a consumer; asked only in the layout `fedmsg`.
    pub times: &'r dyn Fn(&str) -> Option<LatestTimes>,
}

/// Makes value lists of one hub's figures, interval by interval.
pub struct Lists {
    host: String,
    layout: Layout,
    service: Option<String>,
    interval: f64,
    /// What stands between every identifier and its value.
    middle: String,
    /// Since when it looks: a hub that was started later was seen from its beginning.
    began: f64,
    /// When the hub that it saw last was started.
    started: Option<f64>,
    whole: bool,
    /// The gauges that collectd has heard of, and in which round last.
    known: HashMap<String, u64>,
    round: u64,
    before: Before,
    out: String,
}

/// What the last reading had, where only the difference is told.
#[derive(Default)]
struct Before {
    counts: HashMap<String, Counts>,
    numbers: HashMap<String, f64>,
    times: HashMap<String, Vec<u64>>,
}

/// One consumer in the layout `fedmsg`.
#[derive(Default)]
struct Fedmsg {
    depth: f64,
    in_flight: f64,
    failed: f64,
    received: f64,
    settled: f64,
}

impl Lists {
    /// Lists from this host, told so often, by somebody who begins to look at this time.
    pub fn new(host: &str, layout: Layout, interval: Duration, began: f64) -> Self {
        Lists {
            host: part(host),
            layout,
            service: None,
            interval: interval.as_secs_f64(),
            middle: String::new(),
            began,
            started: None,
            whole: false,
            known: HashMap::new(),
            round: 0,
            before: Before::default(),
            out: String::new(),
        }
    }

    /// Gives the layout `fedmsg` another name than the hub's.
    pub fn service(mut self, service: Option<String>) -> Self {
        self.service = service;
        self
    }

    /// The lines for this reading.
    pub fn lines(&mut self, reading: &Reading<'_>) -> String {
        let same = |started: f64| (started - reading.started).abs() <= START_SLACK;
        let restarted = self.started.is_some_and(|started| !same(started));
        if self.started.is_none() || restarted {
            self.before = Before::default();
            self.whole = reading.started + START_SLACK >= self.began;
        }
        self.started = Some(reading.started);
        self.begin(reading.at);
        match self.layout {
            Layout::Weir => (reading.figures)(&mut |family, labels, value| {
                self.weir(reading, family, labels, value);
            }),
            Layout::Fedmsg => self.fedmsg(reading),
        }
        self.whole = true; // whoever appears from now on began at 0
        self.tell_unknown();
        if restarted {
            // Those it does not have any more belong to an older configuration.
            self.known.retain(|_, round| *round == self.round);
        }
        std::mem::take(&mut self.out)
    }

    /// The lines for a time when the hub is away: nothing before it was seen.
    pub fn unknown(&mut self, at: f64) -> String {
        self.begin(at);
        self.tell_unknown();
        std::mem::take(&mut self.out)
    }

    fn begin(&mut self, at: f64) {
        self.round += 1;
        self.middle = format!(" interval={} {at:.3}:", self.interval);
    }

    fn tell_unknown(&mut self) {
        let known = self.known.iter();
        let missing = known.filter(|(_, round)| **round != self.round);
        let mut missing: Vec<_> = missing.map(|(identifier, _)| identifier).collect();
        missing.sort_unstable();
        for identifier in missing {
            line(&mut self.out, &self.host, identifier, &self.middle, &"U");
        }
    }

    fn gauge(&mut self, identifier: String, value: f64) {
        // What is no number, or infinite, is unknown to collectd.
        if value.is_finite() {
            line(&mut self.out, &self.host, &identifier, &self.middle, &value);
            self.known.insert(identifier, self.round);
        }
    }

    /// What a number has grown by; none when that can't be known, or it is another's.
    fn growth(&mut self, of: String, now: f64) -> Option<f64> {
        let before = self.before.numbers.insert(of, now);
        let before = before.or(self.whole.then_some(0.0))?;
        Some((now - before).max(0.0))
    }

    fn weir(
        &mut self,
        reading: &Reading<'_>,
        family: &Family<'_>,
        labels: &[(&str, &str)],
        value: Value<'_>,
    ) {
        let label = |wanted: &str| {
            let mut found = labels.iter().filter(|(key, _)| *key == wanted);
            found.next().map(|(_, value)| *value)
        };
        let own = !family.name.starts_with("weir_");
        let (group, rest) = match family.name.strip_prefix("weir_") {
            Some(name) => name.split_once('_').unwrap_or(("hub", name)),
            None => ("consumer", family.name),
        };
        // A plugin's name ends at the first `-`.
        let mut place = format!("weir_{}", reading.hub.replace('-', "_"));
        // No instance has a `.` in its name, so consumers have no other's place.
        let of = label(group)
            .filter(|_| group != "hub")
            .map(|name| match group {
                "consumer" => part(name),
                _ => part(&format!("{group}.{name}")),
            });
        place = part(&place);
        if let Some(name) = of {
            place = format!("{place}-{name}");
        }
        if let (Value::Number(here), "health" | "state") = (value, rest)
            && !own
            && let Some(word) = label(rest)
        {
            let number = match rest {
                "health" => Health::ALL
                    .iter()
                    .position(|health| health.as_str() == word),
                _ => State::ALL.iter().position(|state| state.as_str() == word),
            };
            if let (Some(number), true) = (number, here == 1.0) {
                self.gauge(format!("{place}/gauge-{rest}"), number as f64);
            }
            return;
        }
        let rest = match (own, group) {
            (true, _) => format!("own_{rest}"),
            (_, "journal") => format!("journal_{rest}"),
            _ => rest.to_owned(),
        };
        let (sort, rest, factor) = match own {
            true => match family.sort {
                Sort::Counter => ("derive", rest.strip_suffix("_total").unwrap_or(&rest), 1.0),
                _ => ("gauge", &*rest, 1.0),
            },
            false => sort(family.sort, &rest),
        };
        let others = labels.iter();
        let others = others.filter(|(key, _)| !matches!(*key, "hub" | "consumer") && *key != group);
        let values: Vec<String> = others.map(|(_, value)| part(value)).collect();
        let named = |last: Option<&str>| {
            let words = [rest].into_iter().chain(values.iter().map(String::as_str));
            let words: Vec<&str> = words.chain(last).filter(|word| !word.is_empty()).collect();
            match words.is_empty() {
                true => format!("{place}/{sort}"),
                false => format!("{place}/{sort}-{}", part(&words.join("_"))),
            }
        };
        match (family.sort, value) {
            (Sort::Counter, Value::Number(now)) => {
                let now = (now * factor) as u64; // a counter of collectd's is whole
                line(&mut self.out, &self.host, &named(None), &self.middle, &now);
            }
            (_, Value::Number(now)) => self.gauge(named(None), now),
            (_, Value::Counts(now)) => {
                let before = self.before.counts.insert(named(None), now.clone());
                let new = match before {
                    Some(before) => now.since(&before),
                    None if self.whole => now.clone(),
                    None => return,
                };
                for (name, part) in QUANTILES {
                    if let Some(value) = new.quantile(part) {
                        self.gauge(named(Some(name)), value);
                    }
                }
            }
        }
    }

    fn fedmsg(&mut self, reading: &Reading<'_>) {
        let (mut consumers, mut producers) = (BTreeMap::new(), BTreeMap::new());
        (reading.figures)(&mut |family, labels, value| {
            let Value::Number(now) = value else { return };
            let label = |wanted: &str| {
                let found = labels.iter().find(|(key, _)| *key == wanted);
                found.map(|(_, value)| (*value).to_owned())
            };
            if family.name == "weir_producer_failed_in_a_row" {
                producers.extend(label("producer").map(|name| (name, now)));
                return;
            }
            // What its author calls so is not the hub's.
            let Some(name) = label("consumer").filter(|_| family.name.starts_with("weir_")) else {
                return;
            };
            let consumer: &mut Fedmsg = consumers.entry(name).or_default();
            match family.name {
                "weir_consumer_queue_messages" => consumer.depth = now,
                "weir_consumer_inflight_messages" => consumer.in_flight = now,
                "weir_consumer_failed_total" => consumer.failed = now,
                "weir_consumer_received_total" => consumer.received = now,
                "weir_consumer_consumed_total" | "weir_consumer_dead_lettered_total" => {
                    consumer.settled += now;
                }
                // Other reasons took it before its turn came.
                "weir_consumer_dropped_total" => {
                    let reason = label("reason").unwrap_or_default();
                    let mut reasons = Reason::ALL.iter().filter(|own| own.in_turn());
                    if reasons.any(|own| own.as_str() == reason) {
                        consumer.settled += now;
                    }
                }
                _ => {}
            }
        });
        // A plugin's name ends at the first `-`: it can't begin with it.
        let service = part(self.service.as_deref().unwrap_or(reading.hub));
        let service = match service.starts_with('-') {
            true => format!("_{service}"),
            false => service,
        };
        let named = |sort: &str, name: &str, what: &str| {
            format!("{service}/{sort}-{}", part(&format!("{name}_{what}")))
        };
        for (name, now) in consumers {
            let backlog = (now.depth - now.in_flight).max(0.0);
            self.gauge(named("queue_length", &name, "backlog"), backlog);
            for (what, now) in [
                ("exceptions", now.failed),
                ("in", now.received),
                ("out", now.settled + now.in_flight),
            ] {
                let identifier = named("gauge", &name, what);
                if let Some(new) = self.growth(identifier.clone(), now) {
                    self.gauge(identifier, new);
                }
            }
            let Some(latest) = (reading.times)(&name) else {
                continue;
            };
            let seen = self.before.times.get(&name).cloned();
            let known = seen.is_some() || self.whole;
            let mut seen = seen.unwrap_or_default();
            let times = latest.since(&mut seen);
            self.before.times.insert(name.clone(), seen);
            if times.is_empty() || !known {
                continue;
            }
            let milliseconds = times.iter().map(|seconds| f64::from(*seconds) * 1000.0);
            let average = milliseconds.clone().sum::<f64>() / times.len() as f64;
            let least = milliseconds.clone().fold(f64::INFINITY, f64::min);
            let most = milliseconds.fold(0.0, f64::max);
            for (what, value) in [("min", least), ("max", most), ("avg", average)] {
                self.gauge(named("response_time", &name, what), value);
            }
        }
        for (name, failed) in producers {
            self.gauge(named("gauge", &name, "exceptions"), failed);
        }
    }
}

/// The type of a figure of the hub's, what is left of its name, and the factor for its value.
fn sort(sort: Sort, name: &str) -> (&'static str, &str, f64) {
    let ends = |end: &str| name.strip_suffix(end);
    match sort {
        Sort::Counter => match (ends("_seconds_total"), ends("_total")) {
            (Some(rest), _) => ("total_time_in_ms", rest, 1000.0),
            (_, rest) => ("derive", rest.unwrap_or(name), 1.0),
        },
        Sort::Gauge | Sort::Histogram => {
            let units = [
                ("_timestamp_seconds", "timestamp"),
                ("_seconds", "duration"),
                ("_bytes", "bytes"),
                ("_messages", "queue_length"),
            ];
            for (unit, sort) in units {
                if let Some(rest) = ends(unit) {
                    // The queue's own length has no instance.
                    let queue = rest
                        .strip_prefix("queue")
                        .filter(|_| sort == "queue_length");
                    let rest = queue.map_or(rest, |rest| rest.trim_start_matches('_'));
                    return (sort, rest, 1.0);
                }
            }
            ("gauge", name, 1.0)
        }
    }
}

/// A part of an identifier. What does not fit is replaced or cut off, and then the part ends in a
/// checksum of the whole, so that it stays another's.
fn part(text: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    if text.len() <= PART_MAX && text.chars().all(fits) && !text.starts_with('.') {
        return text.to_owned();
    }
    let sum = format!("_{:08x}", crc32c::crc32c(text.as_bytes()));
    let plain = text.trim_start_matches('.').chars();
    let plain = plain.map(|c| if fits(c) { c } else { '_' });
    plain
        .take(PART_MAX - sum.len())
        .chain(sum.chars())
        .collect()
}

fn line(out: &mut String, host: &str, identifier: &str, middle: &str, value: &dyn Display) {
    // Writing to a string can't fail.
    let _ = writeln!(out, "PUTVAL {host}/{identifier}{middle}{value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::sample::{Dump, Figure, FigureValue, families};
    use proptest::prelude::*;

    /// The types that are used here, as collectd 5's own types.db has them. `tests/peers` holds
    /// this against the real one.
    const TYPES: [(&str, bool); 8] = [
        ("bytes", true),
        ("derive", false),
        ("duration", true),
        ("gauge", true),
        ("queue_length", true),
        ("response_time", true),
        ("timestamp", true),
        ("total_time_in_ms", false),
    ];

    fn figure(name: &str, sort: Sort, labels: &[(&str, &str)], value: f64) -> Figure {
        let labels = [&[("hub", "fedora")], labels].concat();
        Figure {
            name: name.into(),
            sort,
            labels: (labels.iter())
                .map(|(key, value)| (key.to_string(), value.to_string()))
                .collect(),
            value: FigureValue::Number { value: Some(value) },
        }
    }

    fn gauge(name: &str, value: f64) -> Figure {
        let name = format!("weir_consumer_{name}");
        figure(&name, Sort::Gauge, &[("consumer", "irc")], value)
    }

    fn counter(name: &str, value: f64) -> Figure {
        let name = format!("weir_consumer_{name}");
        figure(&name, Sort::Counter, &[("consumer", "irc")], value)
    }

    /// The lines of a hub that was started at this time.
    fn lines(lists: &mut Lists, started: f64, figures: Vec<Figure>) -> Vec<String> {
        timed(lists, started, figures, &LatestTimes::default())
    }

    fn timed(
        lists: &mut Lists,
        started: f64,
        figures: Vec<Figure>,
        times: &LatestTimes,
    ) -> Vec<String> {
        let dump = Dump {
            hub: "fedora".into(),
            at: 1000.0,
            uptime_seconds: 1000.0 - started,
            figures,
        };
        // Through JSON, as `weir collectd` has it.
        let dump: Dump = serde_json::from_str(&serde_json::to_string(&dump).unwrap()).unwrap();
        let text = lists.lines(&Reading {
            hub: &dump.hub,
            at: dump.at,
            started: dump.at - dump.uptime_seconds,
            figures: &|each| dump.each(each),
            times: &|_| Some(times.clone()),
        });
        bare(&text)
    }

    fn bare(text: &str) -> Vec<String> {
        let lines = text.lines().map(|line| {
            let rest = line.strip_prefix("PUTVAL host.example.org/").unwrap();
            rest.replace(" interval=10 1000.000:", " ")
        });
        lines.collect()
    }

    fn lists(layout: Layout, began: f64) -> Lists {
        let interval = Duration::from_secs(10);
        Lists::new("host.example.org", layout, interval, began)
    }

    #[test]
    fn a_figure_becomes_a_line() {
        let mut lists = lists(Layout::Weir, 0.0);
        let mut dropped = counter("dropped_total", 7.0);
        dropped.labels.push(("reason".into(), "overflow".into()));
        let mut health = gauge("health", 1.0);
        health.labels.push(("health".into(), "behind".into()));
        let mut other = gauge("health", 0.0);
        other.labels.push(("health".into(), "ok".into()));
        let figures = vec![
            figure("weir_hub_uptime_seconds", Sort::Gauge, &[], 1.5),
            figure("weir_journal_bytes", Sort::Gauge, &[], 100.0),
            figure(
                "weir_journal_append_seconds_total",
                Sort::Counter,
                &[],
                0.25,
            ),
            figure(
                "weir_source_received_total",
                Sort::Counter,
                &[("source", "0")],
                9.0,
            ),
            figure(
                "weir_producer_runs_total",
                Sort::Counter,
                &[("producer", "beat")],
                3.0,
            ),
            gauge("queue_messages", 5.0),
            gauge("inflight_messages", 1.0),
            gauge("lag_seconds", 0.5),
            gauge("last_success_timestamp_seconds", 999.0),
            gauge("busy_ratio", 0.1),
            other,
            health,
            dropped,
            figure(
                "posts_total",
                Sort::Counter,
                &[("consumer", "irc"), ("to", "#weir")],
                2.0,
            ),
            figure("drift_seconds", Sort::Gauge, &[("consumer", "irc")], -3.0),
        ];
        let expected = [
            "weir_fedora/duration-uptime 1.5",
            "weir_fedora/bytes-journal 100",
            "weir_fedora/total_time_in_ms-journal_append 250",
            "weir_fedora-source.0/derive-received 9",
            "weir_fedora-producer.beat/derive-runs 3",
            "weir_fedora-irc/queue_length 5",
            "weir_fedora-irc/queue_length-inflight 1",
            "weir_fedora-irc/duration-lag 0.5",
            "weir_fedora-irc/timestamp-last_success 999",
            "weir_fedora-irc/gauge-busy_ratio 0.1",
            "weir_fedora-irc/gauge-health 2",
            "weir_fedora-irc/derive-dropped_overflow 7",
            "weir_fedora-irc/derive-own_posts__weir_19392697 2",
            "weir_fedora-irc/gauge-own_drift_seconds -3",
        ];
        assert_eq!(lines(&mut lists, 0.0, figures), expected);
    }

    #[test]
    fn every_type_is_one_of_collectds_own() {
        for family in families() {
            let mut lists = lists(Layout::Weir, 0.0);
            let labels = [("consumer", "c"), ("source", "0"), ("producer", "p")];
            let counts = crate::histogram::Histogram::new(crate::histogram::WAITING);
            counts.record(2.0, 1);
            let counts = counts.snapshot();
            let text = lists.lines(&Reading {
                hub: "h",
                at: 0.0,
                started: 0.0,
                figures: &|each| {
                    for state in ["health", "state"] {
                        let word = if state == "health" { "ok" } else { "idle" };
                        let mut labels = labels.to_vec();
                        labels.push((state, word));
                        let value = match family.sort {
                            Sort::Histogram => Value::Counts(&counts),
                            _ => Value::Number(1.0),
                        };
                        each(&family, &labels, value);
                    }
                },
                times: &|_| None,
            });
            assert!(!text.is_empty(), "{family:?}");
            for line in text.lines() {
                let sort = line.split(['/', ' ']).nth(3).unwrap();
                let sort = sort.split('-').next().unwrap();
                let known = TYPES.iter().find(|(name, _)| *name == sort);
                let (_, gauge) = known.unwrap_or_else(|| panic!("{line}"));
                assert_eq!(*gauge, family.sort != Sort::Counter, "{line}");
            }
        }
    }

    #[test]
    fn what_is_not_known_any_more_is_told_as_u_but_for_counters() {
        let mut lists = lists(Layout::Weir, 2000.0);
        assert_eq!(lists.unknown(1000.0), "");
        let drain = || gauge("drain_seconds", 9.0);
        let figures = || vec![gauge("lag_seconds", 1.0), counter("failed_total", 1.0)];
        lines(&mut lists, 0.0, [figures(), vec![drain()]].concat());
        let (lag, drained) = (
            "weir_fedora-irc/duration-lag",
            "weir_fedora-irc/duration-drain",
        );
        assert_eq!(
            lines(&mut lists, 0.0, figures()),
            [
                format!("{lag} 1"),
                "weir_fedora-irc/derive-failed 1".into(),
                format!("{drained} U")
            ]
        );
        let away = bare(&lists.unknown(1000.0));
        assert_eq!(away, [format!("{drained} U"), format!("{lag} U")]);
        // Another hub in its place, and another configuration: once more, and then no more.
        let other = || vec![figure("weir_hub_uptime_seconds", Sort::Gauge, &[], 1.0)];
        let uptime = "weir_fedora/duration-uptime";
        assert_eq!(lines(&mut lists, 900.0, other()).len(), 3);
        assert_eq!(lines(&mut lists, 900.0, other()), [format!("{uptime} 1")]);
        assert_eq!(bare(&lists.unknown(1000.0)), [format!("{uptime} U")]);
        // Infinity stands for what is not known, too.
        let mut high = gauge("drain_high_seconds", 0.0);
        high.value = FigureValue::Number { value: None };
        assert_eq!(
            lines(&mut lists, 900.0, vec![high]),
            [format!("{uptime} U")]
        );
    }

    #[test]
    fn quantiles_are_those_of_the_interval() {
        let counts = |fast: u64, slow: u64| {
            let histogram = crate::histogram::Histogram::new(crate::histogram::PROCESSING);
            histogram.record(0.000_001, fast);
            histogram.record(7.0, slow);
            let counts = histogram.snapshot();
            let mut figure = gauge("processing_seconds", 0.0);
            figure.sort = Sort::Histogram;
            figure.value = FigureValue::Counts {
                bounds: counts.bounds.to_vec(),
                counts: counts.counts,
                sum: counts.sum,
            };
            vec![figure]
        };
        let median = |lines: Vec<String>| {
            let name = "weir_fedora-irc/duration-processing_p50 ";
            let found = lines
                .iter()
                .find_map(|line| line.strip_prefix(name))
                .map(str::to_owned);
            found.map(|value| value.parse::<f64>().unwrap_or(f64::NAN))
        };
        // A hub that was there before: of what time is it?
        let mut late = lists(Layout::Weir, 500.0);
        assert_eq!(median(lines(&mut late, 0.0, counts(9, 0))), None);
        assert!((5.0..=10.0).contains(&median(lines(&mut late, 0.0, counts(9, 1))).unwrap()));
        assert!(
            median(lines(&mut late, 0.0, counts(9, 1)))
                .unwrap()
                .is_nan()
        );
        // The hub was started anew since.
        assert!(median(lines(&mut late, 700.0, counts(3, 0))).unwrap() < 0.001);
        // Seen from the beginning.
        let mut early = lists(Layout::Weir, 0.0);
        assert!(median(lines(&mut early, 0.0, counts(9, 0))).unwrap() < 0.001);
    }

    fn old(depth: f64, in_flight: f64, received: f64, consumed: f64, failed: f64) -> Vec<Figure> {
        let mut refused = counter("dropped_total", 1.0);
        refused.labels.push(("reason".into(), "refused".into()));
        let mut overflow = counter("dropped_total", 100.0);
        overflow.labels.push(("reason".into(), "overflow".into()));
        vec![
            gauge("queue_messages", depth),
            gauge("inflight_messages", in_flight),
            counter("received_total", received),
            counter("consumed_total", consumed),
            counter("failed_total", failed),
            refused,
            overflow,
            figure(
                "weir_producer_failed_in_a_row",
                Sort::Gauge,
                &[("producer", "beat")],
                2.0,
            ),
        ]
    }

    #[test]
    fn the_layout_fedmsg_is_what_its_dashboards_know() {
        let mut lists = lists(Layout::Fedmsg, 500.0).service(Some("fedmsg-hub".into()));
        let times = |counts: u64, seconds: &[f32]| LatestTimes {
            counts: vec![counts],
            seconds: vec![seconds.to_vec()],
        };
        let first = timed(
            &mut lists,
            0.0,
            old(4.0, 1.0, 10.0, 5.0, 1.0),
            &times(5, &[9.0; 5]),
        );
        let exceptions = "fedmsg-hub/gauge-beat_exceptions 2";
        assert_eq!(first, ["fedmsg-hub/queue_length-irc_backlog 3", exceptions]);
        let latest = times(7, &[9.0, 9.0, 9.0, 9.0, 9.0, 0.25, 0.75]);
        let second = timed(&mut lists, 0.0, old(5.0, 1.0, 13.0, 7.0, 3.0), &latest);
        let expected = [
            "fedmsg-hub/queue_length-irc_backlog 4",
            "fedmsg-hub/gauge-irc_exceptions 2",
            "fedmsg-hub/gauge-irc_in 3",
            "fedmsg-hub/gauge-irc_out 2",
            "fedmsg-hub/response_time-irc_min 250",
            "fedmsg-hub/response_time-irc_max 750",
            "fedmsg-hub/response_time-irc_avg 500",
            exceptions,
        ];
        assert_eq!(second, expected);
        // Nothing has happened: there are no times to tell of.
        let third = timed(&mut lists, 0.0, old(5.0, 1.0, 13.0, 7.0, 3.0), &latest);
        assert!(third.contains(&"fedmsg-hub/gauge-irc_in 0".into()));
        assert!(third.contains(&"fedmsg-hub/response_time-irc_min U".into()));
        assert_eq!(third.len(), 8);
        // Started anew, it begins at 0, and all of it is of this interval.
        let fourth = timed(
            &mut lists,
            900.0,
            old(1.0, 0.0, 14.0, 8.0, 3.0),
            &times(1, &[0.5]),
        );
        assert!(
            fourth.contains(&"fedmsg-hub/gauge-irc_in 14".into()),
            "{fourth:?}"
        );
        assert!(fourth.contains(&"fedmsg-hub/gauge-irc_out 9".into()));
        assert!(fourth.contains(&"fedmsg-hub/response_time-irc_max 500".into()));
    }

    proptest! {
        #[test]
        fn identifiers_fit(
            host in ".{1,80}", hub in "[A-Za-z0-9_-]{1,48}", consumer in "[A-Za-z0-9_-]{1,48}",
            name in ".{1,100}", value in ".{0,100}", layout in prop::bool::ANY,
        ) {
            let layout = if layout { Layout::Weir } else { Layout::Fedmsg };
            let mut lists = Lists::new(&host, layout, Duration::from_secs(1), 0.0);
            let text = lists.lines(&Reading {
                hub: &hub,
                at: 1.0,
                started: 0.0,
                figures: &|each| {
                    let labels = [("hub", &*hub), ("consumer", &*consumer), ("key", &*value)];
                    let families = families().collect::<Vec<_>>();
                    let own = Family { name: &name, help: "", sort: Sort::Gauge };
                    for family in families.iter().chain([&own]) {
                        each(family, &labels, Value::Number(1.0));
                    }
                },
                times: &|_| None,
            });
            for line in text.lines() {
                let words: Vec<&str> = line.split(' ').collect();
                prop_assert_eq!(words.len(), 4, "{}", line);
                let parts: Vec<&str> = words[1].split('/').collect();
                prop_assert_eq!(parts.len(), 3, "{}", line);
                let divided = parts[1..].iter().flat_map(|part| part.splitn(2, '-'));
                let firsts = parts[1..].iter().map(|part| part.split('-').next().unwrap());
                prop_assert!(firsts.into_iter().all(|part| !part.is_empty()), "{}", line);
                for part in divided.chain([parts[0]]) {
                    prop_assert!(part.len() <= PART_MAX, "{}", line);
                    let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
                    prop_assert!(part.chars().all(fits), "{}", line);
                }
            }
        }
    }

    #[test]
    fn what_is_cut_stays_another() {
        let long = "x".repeat(100);
        let (one, other) = (part(&format!("{long}1")), part(&format!("{long}2")));
        assert_eq!((one.len(), other.len()), (PART_MAX, PART_MAX));
        assert_ne!(one, other);
        assert_ne!(part("#a"), part("@a"));
        assert_eq!(part("a-b_c.9"), "a-b_c.9");
    }
}
