//! `weir forecast`: when a consumer will have caught up, and what a burst would do to it.
//!
//! The hub forecasts, from its samples; here it is said with times of the clock. What a burst would
//! do is arithmetic on the hub's measured rates, and needs nothing of the hub but those.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::de::IntoDeserializer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ask::HubArgs;
use super::{Failure, meant, words};
use crate::forecast::{Accuracy, Burst, Drain, Rates, WhatIf, what_if};
use crate::journal::Keep;
use crate::registry::Registry;
use crate::runner::rate::Rate;

const PATIENCE: Duration = Duration::from_secs(10);
const DAY: f64 = 86_400.0;

/// Says when a consumer will have caught up, or what a burst would do to it.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir forecast --consumer irc --config weir.toml
  weir forecast --consumer irc --config weir.toml --burst 120/s --for 10m
  weir forecast --consumer irc --hub http://127.0.0.1:8907 --json

A burst is thought to begin now, on top of what arrives anyway. Times are UTC.")]
pub(super) struct Forecast {
    #[command(flatten)]
    hub: HubArgs,
    /// The consumer's name.
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// What if so many came besides: 120/s, 4/min, 1000/h.
    #[arg(long, value_name = "RATE", value_parser = rate, requires = "lasts")]
    burst: Option<Rate>,
    /// How long the burst lasts.
    #[arg(long = "for", id = "lasts", value_name = "TIME", value_parser = super::duration, requires = "burst")]
    lasts: Option<Duration>,
    /// Print a JSON object instead.
    #[arg(long)]
    json: bool,
}

/// As a configuration has it.
fn rate(text: &str) -> Result<Rate, String> {
    let text: serde::de::value::StrDeserializer<'_, serde::de::value::Error> =
        text.into_deserializer();
    Rate::deserialize(text).map_err(|error| error.to_string())
}

/// What is read of a hub's status.
#[derive(Debug, Deserialize)]
struct Seen {
    journal: Option<Journal>,
    consumers: Vec<Consumer>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
struct Journal {
    appended_messages: u64,
    appended_bytes: u64,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
struct Consumer {
    name: String,
    state: String,
    health: String,
    queue_messages: u64,
    behind_messages: u64,
    queue_capacity_messages: u64,
    lag_seconds: f64,
    drain: Drain,
    rates: Rates,
    service_per_second: Option<f64>,
    forecast_accuracy: Option<Accuracy>,
}

/// What a burst would do, with what is known of the room for it.
#[derive(Debug, Serialize)]
struct Outlook {
    consumer: String,
    burst_per_second: f64,
    burst_seconds: f64,
    #[serde(flatten)]
    what_if: WhatIf,
    /// The part of the greatest depth that the queue in memory has no room for.
    beyond_memory_messages: f64,
    /// What the journal has to keep for it then, at least; none: no journal, or nothing in it yet.
    journal_bytes: Option<f64>,
    /// Whether that is more than `journal.keep` allows, by bytes or age; none: not known.
    exceeds_keep: Option<bool>,
}

impl Forecast {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let keep = self.hub.config(registry)?.map(|config| config.journal.keep);
        let seen: Seen = self.hub.find(registry)?.get("/status", PATIENCE)?;
        let mut consumers = seen.consumers.iter();
        let Some(consumer) = consumers.find(|consumer| consumer.name == self.consumer) else {
            let instead = meant(&self.consumer, seen.consumers.iter().map(|c| &*c.name));
            let what = format!("this hub has no consumer `{}`{instead}", self.consumer);
            return Err(Failure::usage(what));
        };
        let now = SystemTime::now();
        let text = match (self.burst, self.lasts) {
            (Some(rate), Some(lasts)) => {
                let burst = Burst {
                    per_second: rate.per_second,
                    lasts,
                };
                let outlook = outlook(consumer, burst, seen.journal, keep)?;
                match self.json {
                    true => format!("{}\n", json!(outlook)),
                    false => tell_outlook(consumer, &outlook, seen.journal, keep, now),
                }
            }
            _ if self.json => format!("{}\n", forecast_json(consumer, now)),
            _ => tell_forecast(consumer, now),
        };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

fn outlook(
    consumer: &Consumer,
    burst: Burst,
    journal: Option<Journal>,
    keep: Option<Keep>,
) -> Result<Outlook, Failure> {
    let Some(service) = consumer.service_per_second else {
        return Err(Failure::run(format!(
            "how fast {} is has not been measured yet: it has settled nothing since the hub was \
             started; try again when it has handled some messages",
            consumer.name
        )));
    };
    let mut what_if = what_if(
        consumer.queue_messages,
        consumer.rates.received,
        service,
        burst,
    );
    // What waits now is older than the arithmetic knows.
    what_if.peak_lag_seconds = what_if.peak_lag_seconds.max(consumer.lag_seconds);
    let journal_bytes = journal
        .filter(|journal| journal.appended_messages > 0)
        .map(|journal| {
            what_if.peak_messages * journal.appended_bytes as f64 / journal.appended_messages as f64
        });
    let beyond = what_if.peak_messages - consumer.queue_capacity_messages as f64;
    Ok(Outlook {
        consumer: consumer.name.clone(),
        burst_per_second: burst.per_second,
        burst_seconds: burst.lasts.as_secs_f64(),
        what_if,
        beyond_memory_messages: beyond.max(0.0),
        journal_bytes,
        exceeds_keep: (journal_bytes.zip(keep)).map(|(bytes, keep)| {
            bytes > keep.bytes as f64 || what_if.peak_lag_seconds > keep.age.as_secs_f64()
        }),
    })
}

/// Lines of a name and what is to be said of it, aligned.
struct Table(String);

impl Table {
    fn line(&mut self, name: &str, what: impl std::fmt::Display) {
        let _ = writeln!(self.0, "  {name:13} {what}");
    }
}

fn tell_outlook(
    consumer: &Consumer,
    outlook: &Outlook,
    journal: Option<Journal>,
    keep: Option<Keep>,
    now: SystemTime,
) -> String {
    let what = &outlook.what_if;
    let mut table = Table(format!(
        "{}: if {} came for {} from now on\n",
        consumer.name,
        per_time(outlook.burst_per_second),
        words(outlook.burst_seconds),
    ));
    match &*consumer.health {
        "stalled" => table.line(
            "note",
            "it is stalled now; this is as if its deliveries succeeded",
        ),
        "paused" | "halted" => table.line(
            "note",
            format!("it is {} now; this is as if it were not", consumer.health),
        ),
        _ => {}
    }
    let arriving = per_time(what.arriving_per_second);
    table.line("arriving", format!("{arriving} now, without the burst"));
    let service = per_time(what.service_per_second);
    table.line(
        "service",
        format!("{service} when it never waits for messages"),
    );
    let ends = clock(now, outlook.burst_seconds, outlook.burst_seconds);
    let peak = match what.burst_net_per_second > 0.0 {
        true => format!(
            "{:.0} messages at {ends} UTC, when the burst ends",
            what.peak_messages
        ),
        false => format!(
            "{:.0} messages, now: it keeps up with the burst",
            what.peak_messages
        ),
    };
    table.line("peak depth", peak);
    table.line("peak lag", words(what.peak_lag_seconds));
    table.line(
        "clears",
        match what.clears_after_seconds {
            Some(0.0) => "there is nothing to clear".to_owned(),
            Some(after) => format!("{} UTC, in {}", clock(now, after, after), words(after)),
            None => format!("never: {arriving} arrive and {service} is all it can do"),
        },
    );
    let capacity = consumer.queue_capacity_messages;
    let beyond = outlook.beyond_memory_messages;
    table.line(
        "memory",
        match (beyond > 0.0, journal) {
            (false, _) => format!("enough: its queue holds {capacity}"),
            (true, Some(_)) => {
                format!("its queue holds {capacity}; {beyond:.0} wait in the journal")
            }
            (true, None) => format!(
                "its queue holds {capacity}; without a journal, overflow decides about {beyond:.0}"
            ),
        },
    );
    if let Some(bytes) = outlook.journal_bytes {
        let needs = format!("at least {}", size(bytes));
        table.line("journal", match (outlook.exceeds_keep, keep) {
            (Some(true), Some(keep)) => format!(
                "{needs} and {}: more than journal.keep allows ({}, {}); messages would be lost",
                words(what.peak_lag_seconds),
                size(keep.bytes as f64),
                words(keep.age.as_secs_f64()),
            ),
            (_, Some(keep)) => format!("{needs}; journal.keep allows {}", size(keep.bytes as f64)),
            (_, None) => format!("{needs}; with --config it is held against journal.keep"),
        });
    }
    table.0
}

fn tell_forecast(consumer: &Consumer, now: SystemTime) -> String {
    let mut head = consumer.drain.to_string();
    if !matches!(consumer.drain, Drain::Stalled { .. }) {
        head = format!("{}, {head}", consumer.health.replace('_', " "));
    }
    let mut table = Table(format!("{}: {head}\n", consumer.name));
    let depth = match consumer.behind_messages {
        0 => format!("{} messages", consumer.queue_messages),
        behind => format!(
            "{} messages, {behind} of them in the journal only",
            consumer.queue_messages
        ),
    };
    table.line("depth", depth);
    table.line("lag", words(consumer.lag_seconds));
    let rates = consumer.rates;
    table.line("arriving", per_time(rates.received));
    table.line("settled", per_time(rates.settled));
    table.line(
        "service",
        match consumer.service_per_second {
            Some(service) => format!("{} when it never waits for messages", per_time(service)),
            None => "not measured yet".into(),
        },
    );
    if let Drain::Draining {
        low_seconds,
        high_seconds,
        likely_seconds,
        confidence,
    } = consumer.drain
    {
        let far = high_seconds.unwrap_or(likely_seconds);
        let low = clock(now, low_seconds, far);
        let range = match high_seconds {
            Some(high) => format!("{low} - {} UTC", clock(now, high, far)),
            None => format!("{low} UTC or later, perhaps never"),
        };
        table.line(
            "clears",
            format!("{range} ({:.0} % sure)", confidence * 100.0),
        );
        let likely = clock(now, likely_seconds, far);
        table.line(
            "likely",
            format!("{likely} UTC, in {}", words(likely_seconds)),
        );
    }
    table.line("accuracy", match consumer.forecast_accuracy {
        Some(past) => format!(
            "{} came due; lately {:.0} % of the ranges held, the likely time was off by {:.0} %",
            match past.forecasts {
                1 => "1 forecast".to_owned(),
                several => format!("{several} forecasts"),
            },
            past.contained_ratio * 100.0,
            past.error_ratio * 100.0,
        ),
        None => "no forecast has come due yet".into(),
    });
    table.0
}

/// The hub's words, and the times they mean.
fn forecast_json(consumer: &Consumer, now: SystemTime) -> Value {
    let at = |seconds: f64| humantime::format_rfc3339_seconds(later(now, seconds)).to_string();
    let mut value = json!(consumer);
    if let Drain::Draining {
        low_seconds,
        high_seconds,
        likely_seconds,
        ..
    } = consumer.drain
    {
        value["clears"] = json!({
            "earliest": at(low_seconds),
            "likely": at(likely_seconds),
            "latest": high_seconds.map(at),
        });
    }
    value
}

/// So many seconds later; 100 years at most, so that it can be written.
fn later(now: SystemTime, seconds: f64) -> SystemTime {
    let most = 100.0 * 365.0 * DAY;
    let seconds = if seconds.is_finite() {
        seconds.clamp(0.0, most)
    } else {
        most
    };
    let time = Duration::from_secs_f64(seconds);
    now.checked_add(time).unwrap_or(UNIX_EPOCH)
}

/// The time on the clock in so many seconds, with seconds or the date if what it belongs to is so
/// far away that it matters.
fn clock(now: SystemTime, seconds: f64, far: f64) -> String {
    let time = humantime::format_rfc3339_seconds(later(now, seconds)).to_string();
    let part = match far {
        ..600.0 => 11..19,
        ..72_000.0 => 11..16,
        _ => 0..16,
    };
    time.get(part).unwrap_or(&time).replace('T', " ")
}

/// "120/s", "4/min".
pub(super) fn per_time(per_second: f64) -> String {
    let (count, unit) = match per_second {
        0.0 => (0.0, "s"),
        0.5.. => (per_second, "s"),
        0.02.. => (per_second * 60.0, "min"),
        _ => (per_second * 3600.0, "h"),
    };
    match count {
        0.0 => format!("0/{unit}"),
        100.0.. => format!("{count:.0}/{unit}"),
        _ => format!("{count:.1}/{unit}"),
    }
}

fn size(bytes: f64) -> String {
    const STEP: f64 = 1024.0;
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let step = (bytes.max(1.0).log2() / 10.0).floor().min(4.0);
    let unit = units.get(step as usize).unwrap_or(&"B");
    let decimals = usize::from(step > 0.0);
    format!("{:.decimals$} {unit}", bytes / STEP.powf(step))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2026-11-22T14:31:00Z
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(1_795_357_860)
    }

    fn consumer() -> Consumer {
        Consumer {
            name: "irc".into(),
            state: "working".into(),
            health: "behind".into(),
            queue_messages: 3988,
            behind_messages: 3488,
            queue_capacity_messages: 500,
            lag_seconds: 95.0,
            drain: Drain::Draining {
                low_seconds: 240.0,
                high_seconds: Some(1140.0),
                likely_seconds: 600.0,
                confidence: 0.9,
            },
            rates: Rates {
                received: 4.0 / 60.0,
                settled: 6.6,
            },
            service_per_second: Some(20.0),
            forecast_accuracy: Some(Accuracy {
                forecasts: 34,
                error_ratio: 0.12,
                contained_ratio: 0.9,
            }),
        }
    }

    const JOURNAL: Journal = Journal {
        appended_messages: 1000,
        appended_bytes: 1_024_000,
    };

    fn keep(bytes: u64, seconds: u64) -> Option<Keep> {
        Some(Keep {
            bytes,
            age: Duration::from_secs(seconds),
        })
    }

    fn burst(per_second: f64) -> Burst {
        Burst {
            per_second,
            lasts: Duration::from_secs(600),
        }
    }

    #[test]
    fn a_forecast_is_told_with_times_of_the_clock() {
        assert_eq!(
            tell_forecast(&consumer(), now()),
            "irc: behind, clears in 4-19 min\n  \
             depth         3988 messages, 3488 of them in the journal only\n  \
             lag           95 s\n  \
             arriving      4.0/min\n  \
             settled       6.6/s\n  \
             service       20.0/s when it never waits for messages\n  \
             clears        14:35 - 14:50 UTC (90 % sure)\n  \
             likely        14:41 UTC, in 10 min\n  \
             accuracy      34 forecasts came due; lately 90 % of the ranges held, the likely time \
             was off by 12 %\n"
        );
        let json = forecast_json(&consumer(), now());
        assert_eq!(json["clears"]["earliest"], "2026-11-22T14:35:00Z");
        assert_eq!(json["clears"]["latest"], "2026-11-22T14:50:00Z");
        assert_eq!(json["name"], "irc");
    }

    #[test]
    fn a_stall_is_told_once() {
        let mut stalled = consumer();
        stalled.health = "stalled".into();
        stalled.drain = Drain::Stalled { for_seconds: 180.0 };
        let text = tell_forecast(&stalled, now());
        assert!(text.starts_with("irc: stalled for 3 min\n"), "{text}");
        let outlook = outlook(&stalled, burst(1.0), None, None).unwrap();
        let text = tell_outlook(&stalled, &outlook, None, None, now());
        assert!(text.contains("as if its deliveries succeeded"), "{text}");
    }

    #[test]
    fn what_may_never_clear_is_told_so_and_far_times_have_a_date() {
        let mut far = consumer();
        far.drain = Drain::Draining {
            low_seconds: 100_000.0,
            high_seconds: None,
            likely_seconds: 200_000.0,
            confidence: 0.9,
        };
        let text = tell_forecast(&far, now());
        assert!(
            text.contains("2026-11-23 18:17 UTC or later, perhaps never"),
            "{text}"
        );
        assert!(forecast_json(&far, now())["clears"]["latest"].is_null());
        far.drain = Drain::Draining {
            low_seconds: f64::MAX,
            high_seconds: Some(f64::INFINITY),
            likely_seconds: f64::MAX,
            confidence: 0.9,
        };
        assert!(tell_forecast(&far, now()).contains("2126-"));
        assert_eq!(clock(now(), 5.0, 30.0), "14:31:05");
    }

    #[test]
    fn a_burst_is_told_with_the_room_there_is_for_it() {
        let outlook = outlook(
            &consumer(),
            burst(120.0),
            Some(JOURNAL),
            keep(10 << 30, 86_400),
        );
        let outlook = outlook.unwrap();
        // 3988 + 600 s x (120 + 4/60 - 20)
        assert!((outlook.what_if.peak_messages - 64_028.0).abs() < 1e-6);
        assert!((outlook.beyond_memory_messages - 63_528.0).abs() < 1e-6);
        assert!((outlook.journal_bytes.unwrap() - 64_028.0 * 1024.0).abs() < 1e-3);
        assert_eq!(outlook.exceeds_keep, Some(false));
        let text = tell_outlook(
            &consumer(),
            &outlook,
            Some(JOURNAL),
            keep(10 << 30, 86_400),
            now(),
        );
        assert_eq!(
            text,
            "irc: if 120/s came for 10 min from now on\n  \
             arriving      4.0/min now, without the burst\n  \
             service       20.0/s when it never waits for messages\n  \
             peak depth    64028 messages at 14:41 UTC, when the burst ends\n  \
             peak lag      53 min\n  \
             clears        15:34 UTC, in 64 min\n  \
             memory        its queue holds 500; 63528 wait in the journal\n  \
             journal       at least 62.5 MiB; journal.keep allows 10.0 GiB\n"
        );
        let json = json!(outlook);
        assert_eq!(json["burst_per_second"], 120.0);
        assert!(json["peak_messages"].is_number());
    }

    #[test]
    fn what_is_more_than_the_journal_keeps_is_told() {
        for (keep, exceeded) in [
            (keep(10 << 20, 86_400), Some(true)), // too many bytes
            (keep(10 << 30, 600), Some(true)),    // too old
            (keep(10 << 30, 86_400), Some(false)),
            (None, None),
        ] {
            let outlook = outlook(&consumer(), burst(120.0), Some(JOURNAL), keep).unwrap();
            assert_eq!(outlook.exceeds_keep, exceeded, "{keep:?}");
            let text = tell_outlook(&consumer(), &outlook, Some(JOURNAL), keep, now());
            assert_eq!(
                text.contains("would be lost"),
                exceeded == Some(true),
                "{text}"
            );
        }
        let outlook = outlook(&consumer(), burst(120.0), None, None).unwrap();
        assert_eq!((outlook.journal_bytes, outlook.exceeds_keep), (None, None));
        let text = tell_outlook(&consumer(), &outlook, None, None, now());
        assert!(text.contains("without a journal"), "{text}");
    }

    #[test]
    fn what_never_clears_and_what_does_nothing_is_told() {
        let mut busy = consumer();
        busy.rates.received = 20.0;
        let never = outlook(&busy, burst(1.0), None, None).unwrap();
        let text = tell_outlook(&busy, &never, None, None, now());
        assert!(
            text.contains("never: 20.0/s arrive and 20.0/s is all it can do"),
            "{text}"
        );
        busy.rates.received = 0.0;
        busy.queue_messages = 0;
        busy.health = "paused".into();
        let nothing = outlook(&busy, burst(1.0), None, None).unwrap();
        let text = tell_outlook(&busy, &nothing, None, None, now());
        assert!(text.contains("it keeps up with the burst"), "{text}");
        assert!(text.contains("it is paused now"), "{text}");
        // Of what waits already, the lag is known.
        assert!(text.contains("peak lag      95 s"), "{text}");
        assert!(text.contains("enough: its queue holds 500"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_not_guessed() {
        let mut new = consumer();
        new.service_per_second = None;
        let failure = outlook(&new, burst(1.0), None, None).unwrap_err();
        assert_eq!(failure.code, 1);
        assert!(
            failure.text.contains("not been measured yet"),
            "{}",
            failure.text
        );
        assert!(tell_forecast(&new, now()).contains("not measured yet"));
    }

    #[test]
    fn rates_are_written_as_in_a_configuration() {
        for (text, per_second) in [("120/s", 120.0), ("30/min", 0.5), ("36/h", 0.01)] {
            assert!((rate(text).unwrap().per_second - per_second).abs() < 1e-12);
        }
        assert!(rate("120").is_err());
        for (per_second, text) in [
            (0.0, "0/s"),
            (0.01, "36.0/h"),
            (0.1, "6.0/min"),
            (0.5, "0.5/s"),
            (123.4, "123/s"),
        ] {
            assert_eq!(per_time(per_second), text);
        }
        for (bytes, text) in [
            (0.0, "0 B"),
            (1536.0, "1.5 KiB"),
            (2048.0 * 1024.0, "2.0 MiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
