//! `weir why`: what holds a consumer back, where its time goes, and what would help.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use serde_json::Value;

use super::ask::{Address, HubArgs, Unanswered};
use super::forecast::per_time;
use super::tail::visible;
use super::{Failure, meant, words};
use crate::registry::Registry;
use crate::why::Why as Told;

const PATIENCE: Duration = Duration::from_secs(10);
/// Characters of a bar that stands for all of the time.
const BAR: f64 = 30.0;

/// Says what holds a consumer back, and what would help.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir why irc --config weir.toml
  weir why irc --hub http://127.0.0.1:8907 --json

The time is that of the last five minutes, all workers together; slowest, costliest and failures are
of the last five to ten.")]
pub(super) struct Why {
    /// The consumer's name.
    consumer: String,
    #[command(flatten)]
    hub: HubArgs,
    /// Print a JSON object instead.
    #[arg(long)]
    json: bool,
}

impl Why {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let hub = self.hub.find(registry)?;
        self.check(&hub)?;
        let path = format!("/v1/consumers/{}/why", self.consumer);
        let mut out = std::io::stdout().lock();
        if self.json {
            let told: Value = hub.get(&path, PATIENCE)?;
            writeln!(out, "{told}")?;
        } else {
            let told: Told = hub.get(&path, PATIENCE)?;
            let now_ns = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            out.write_all(tell(&told, now_ns.as_nanos() as u64).as_bytes())?;
        }
        Ok(())
    }

    /// A name that there is not is told with those that there are.
    fn check(&self, hub: &Address) -> Result<(), Failure> {
        let status: Value = hub.get("/status", PATIENCE).map_err(|why| match why {
            Unanswered::Away(why) => Failure::run(why),
            other => other.into(),
        })?;
        let consumers = status["consumers"].as_array().into_iter().flatten();
        let names = consumers.filter_map(|consumer| consumer["name"].as_str());
        match names.clone().any(|name| name == self.consumer) {
            true => Ok(()),
            false => {
                let wanted: String = self.consumer.chars().flat_map(visible).collect();
                Err(Failure::usage(format!(
                    "{hub} has no consumer `{wanted}`{}",
                    meant(&self.consumer, names)
                )))
            }
        }
    }
}

fn plain(text: &str) -> String {
    text.chars().flat_map(visible).collect()
}

fn tell(told: &Told, now_ns: u64) -> String {
    let mut text = String::new();
    let ago = |at_ns: u64| {
        let ns = now_ns.saturating_sub(at_ns);
        format!("{} ago", words(Duration::from_nanos(ns).as_secs_f64()))
    };
    let _ = writeln!(text, "{}: {}", told.consumer, plain(&told.reason));
    if !told.advice.is_empty() {
        let _ = writeln!(text, "  {}", plain(&told.advice));
    }
    let _ = writeln!(
        text,
        "\n  {}, {}, {} waiting or in flight, lag {}, {}",
        told.health.as_str().replace('_', " "),
        told.state.as_str().replace('_', " "),
        told.queue_messages,
        words(told.lag_seconds),
        told.drain,
    );
    let service = told
        .service_per_second
        .map_or("not measured".to_owned(), per_time);
    let _ = writeln!(
        text,
        "  in {}, out {}, at most {service}",
        per_time(told.rates.received),
        per_time(told.rates.settled),
    );
    let workers = if told.workers == 1 {
        "worker"
    } else {
        "workers"
    };
    let over = words(told.over_seconds);
    let _ = writeln!(text, "\nTime of {} {workers} over {over}", told.workers);
    for share in told.time.iter().filter(|share| share.ratio >= 0.0005) {
        let bar = "#".repeat((share.ratio * BAR).round() as usize);
        let state = share.state.as_str().replace('_', " ");
        let _ = writeln!(text, "  {state:13} {:>5.1} %  {bar}", share.ratio * 100.0);
    }
    if !told.in_hand.is_empty() {
        text.push_str("\nIn hand\n");
        for in_hand in &told.in_hand {
            let topic = in_hand.topic.as_deref().map(plain).unwrap_or_default();
            let time = words(in_hand.for_seconds);
            let _ = writeln!(text, "  {:>10}  for {time:9} {topic}", in_hand.seq);
        }
    }
    let lately = &told.lately;
    if !lately.slowest.is_empty() {
        text.push_str("\nSlowest deliveries\n");
        for slow in &lately.slowest {
            let messages = match slow.messages {
                1 => String::new(),
                messages => format!(" and {} more", messages - 1),
            };
            let (time, topic) = (quick(slow.seconds), plain(&slow.topic));
            let _ = writeln!(
                text,
                "  {time:>9}  {} {topic}{messages}, {}",
                slow.seq,
                ago(slow.at_ns)
            );
        }
    }
    if lately.topics.len() > 1 {
        text.push_str("\nCostliest topics\n");
        for cost in &lately.topics {
            let (time, topic) = (quick(cost.seconds), plain(&cost.topic));
            let _ = writeln!(
                text,
                "  {time:>9}  {topic}, about {:.0} messages",
                cost.messages
            );
        }
    }
    if !lately.failures.is_empty() {
        text.push_str("\nFailures\n");
        for failed in &lately.failures {
            let (cause, topic) = (plain(&failed.cause), plain(&failed.topic));
            let times = failed.times;
            let _ = writeln!(text, "  {times:>6} x  {cause}");
            let _ = writeln!(
                text,
                "            last {}: {} {topic}",
                ago(failed.at_ns),
                failed.seq
            );
        }
    }
    text
}

/// A time that may be very short.
fn quick(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => words(s),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} us", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn it_is_told_in_words_and_nothing_steers_the_terminal() {
        let second = 1_000_000_000_u64;
        let told: Told = serde_json::from_value(json!({
            "consumer": "irc", "kind": "irc", "state": "backing_off", "health": "stalled",
            "queue_messages": 12, "lag_seconds": 90.0, "drain": {"forecast": "stalled", "for_seconds": 90.0},
            "rates": {"in": 2.0, "out": 0.0}, "service_per_second": 2.0, "workers": 1,
            "limits": {"rate_per_second": null, "lane": null, "keyed": false, "attempts": 5},
            "over_seconds": 300.0,
            "time": [{"state": "backing_off", "ratio": 0.9}, {"state": "working", "ratio": 0.1}],
            "in_hand": [{"worker": 0, "state": "working", "seq": 7, "topic": "a\u{1b}[2J", "for_seconds": 3.0}],
            "slowest": [{"seq": 5, "topic": "org.a", "messages": 3, "seconds": 0.25, "at_ns": 40 * second}],
            "topics": [],
            "failures": [{"cause": "connection refused", "times": 7, "seq": 7, "topic": "org.a", "at_ns": 90 * second}],
            "reason": "It waits to try again.", "advice": "Mend the cause.",
        }))
        .unwrap();
        let text = tell(&told, 100 * second);
        for line in [
            "irc: It waits to try again.",
            "  Mend the cause.",
            "  backing off    90.0 %  ###########################",
            "   250.0 ms  5 org.a and 2 more, 60 s ago",
            "       7 x  connection refused",
            "            last 10 s ago: 7 org.a",
        ] {
            assert!(
                text.lines().any(|said| said == line),
                "no {line:?} in\n{text}"
            );
        }
        assert!(!text.contains('\u{1b}'));
    }
}
