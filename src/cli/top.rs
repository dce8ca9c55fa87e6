//! `weir top`: how every consumer does, live.
//!
//! Promises:
//!
//! 1. Reading only, but for pause and resume, which ask first.
//! 2. A hub that is slow or away does not hold up the keys; what it said last stays, greyed, and
//!    how old that is. It is asked again until it answers.
//! 3. Nothing is said by colour alone, and nothing needs more than 80 columns and 24 lines.
//! 4. The terminal is as it was before, however it ends: by key, signal, error or panic.
//! 5. What is no terminal gets a plain table, once.

// The live screen uses more of these than the table.
#[cfg_attr(not(feature = "top"), allow(dead_code))]
mod columns;
#[cfg(feature = "top")]
mod draw;
#[cfg(feature = "top")]
mod feed;
#[cfg(feature = "top")]
mod screen;
#[cfg_attr(not(feature = "top"), allow(dead_code))]
mod seen;
#[cfg(feature = "top")]
mod view;

use std::io::{IsTerminal, Write};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::Failure;
use super::ask::{Address, HubArgs};
use crate::registry::Registry;
use columns::{Sort, arranged, plain};
use seen::{Consumer, Seen};

const PATIENCE: Duration = Duration::from_secs(5);
/// More often than this is no reading, and less often is no watching.
const INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);

/// Shows how every consumer does, live; a plain table, once, where the output is no terminal.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir top --config weir.toml
  weir top --hub http://127.0.0.1:8907 --sort health --interval 5s
  weir top --config weir.toml --filter behind --once
  weir top --config weir.toml --once --json | jq -c '.consumers[] | [.name, .lag_seconds]'

Keys: arrows, Enter (why), s (sort), / (filter), p (pause or resume), ? (help), q (quit).
With NO_COLOR in the environment it has no colours. Pause and resume go through the control.sock in
the hub's data directory: give --config, or the path of that with --hub.")]
pub(super) struct Top {
    #[command(flatten)]
    hub: HubArgs,
    /// How often to ask the hub.
    #[cfg_attr(not(feature = "top"), allow(dead_code))]
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// What to sort by.
    #[arg(long, value_name = "KEY", default_value = "lag")]
    sort: Sort,
    /// Only consumers with this in their name, kind, health or state.
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
    /// Print a plain table, once.
    #[arg(long)]
    once: bool,
    /// Print the hub's status as JSON, once.
    #[arg(long)]
    json: bool,
}

fn interval(text: &str) -> Result<Duration, String> {
    let time = super::duration(text)?;
    match INTERVAL.contains(&time) {
        true => Ok(time),
        false => Err("expected 100ms to 1h".into()),
    }
}

impl Top {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let hub = self.hub.find(registry)?;
        if self.once || self.json || !std::io::stdout().is_terminal() {
            return self.print(&hub);
        }
        #[cfg(feature = "top")]
        {
            screen::run(self, hub, self.hub.socket(registry)?)
        }
        #[cfg(not(feature = "top"))]
        self.print(&hub)
    }

    /// Says it once.
    fn print(&self, hub: &Address) -> Result<(), Failure> {
        let mut status: Value = hub.get("/status", PATIENCE)?;
        let seen = Seen::deserialize(&status).map_err(|error| {
            Failure::run(format!(
                "{hub} does not answer as a hub of this version does: {error}"
            ))
        })?;
        let shown = arranged(&seen.consumers, self.sort, false, &self.filter);
        let text = match self.json {
            true => {
                only(&mut status, &shown);
                format!("{status}\n")
            }
            false => plain(&shown),
        };
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

/// Leaves those consumers only, in the hub's order.
fn only(status: &mut Value, shown: &[&Consumer]) {
    if let Some(consumers) = status["consumers"].as_array_mut() {
        consumers.retain(|consumer| shown.iter().any(|shown| consumer["name"] == *shown.name));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// One that is well.
    pub(super) fn consumer(name: &str) -> Consumer {
        serde_json::from_value(json!({
            "name": name, "kind": "null", "state": "idle", "health": "ok", "queue_messages": 0,
            "lag_seconds": 0.0, "drain": { "forecast": "empty" }, "rates": { "in": 0.0, "out": 0.0 },
        }))
        .unwrap()
    }

    #[test]
    fn what_another_version_tells_is_read() {
        let of = |more: Value| {
            let mut status = json!({
                "name": "a", "state": "dreaming", "health": "sleepy", "queue_messages": 1,
                "lag_seconds": 2.0, "new": [1],
            });
            let (Value::Object(all), Value::Object(more)) = (&mut status, more) else {
                unreachable!()
            };
            all.extend(more);
            serde_json::from_value::<Consumer>(status)
        };
        let seen = of(json!({ "drain": { "forecast": "rather soon" } })).unwrap();
        assert_eq!(seen.drain, crate::forecast::Drain::Unknown);
        assert!(seen.badness() > consumer("a").badness());
        assert!(of(json!({ "lag_seconds": "long" })).is_err());
        assert!(serde_json::from_value::<Seen>(json!({ "weather": "fine" })).is_err());
    }

    #[test]
    fn an_interval_is_neither_none_nor_for_ever() {
        assert_eq!(interval("100ms"), Ok(Duration::from_millis(100)));
        for wrong in ["0s", "99ms", "2h", "soon"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }
}
