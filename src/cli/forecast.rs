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
    /// What if so many came besides: \"120/s\", \"4/min\", \"1000/h\".
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
            "how fast {} is has not been measured yet: it has had nothing to do; try again when it \
             has handled some messages",
            consumer.name
        )));
    };
    let what_if = what_if(
        consumer.queue_messages,
        consumer.rates.received,
        service,
        burst,
    );
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
        "paused" | "stalled" | "halted" => {
            let note = format!("it is {} now; this is as if it were not", consumer.health);
            table.line("note", note);
        }
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
            "{:.0} messages at {ends}, when the burst ends",
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
            Some(after) => format!("{}, {} from now", clock(now, after, after), words(after)),
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
    let health = consumer.health.replace('_', " ");
    let mut table = Table(format!("{}: {health}, {}\n", consumer.name, consumer.drain));
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
            Some(high) => format!("{low} - {}", clock(now, high, far)),
            None => format!("{low} at the earliest, perhaps never"),
        };
        table.line(
            "clears",
            format!("{range} ({:.0} % sure)", confidence * 100.0),
        );
        let likely = clock(now, likely_seconds, far);
        table.line("likely", format!("{likely}, in {}", words(likely_seconds)));
    }
    table.line("accuracy", match consumer.forecast_accuracy {
        Some(past) => format!(
            "{} forecasts came due; lately {:.0} % of the ranges held, the likely time was off by {:.0} %",
            past.forecasts,
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
    let part = time.get(part).unwrap_or(&time).replace('T', " ");
    format!("{part} UTC")
}

/// "120/s", "4/min".
fn per_time(per_second: f64) -> String {
    let (count, unit) = match per_second {
        0.0 => (0.0, "s"),
        0.5.. => (per_second, "s"),
        0.01.. => (per_second * 60.0, "min"),
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
