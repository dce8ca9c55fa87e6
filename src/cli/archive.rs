//! `weir archive`: read what a consumer of the kind `archive` has stored.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{ArgGroup, Args, Subcommand};
use weir_archive::database::{Location, Url};
use weir_archive::query::{Filter, Predicate, Reader, Stored};
use weir_consumer::settings::DURATION_MAX;

use super::tail::visible;
use super::{ConfigArgs, Failure};
use crate::config::{Config, Mistakes};
use crate::feed::{Line, Payload};
use crate::registry::Registry;
use crate::router::prefix;
use crate::stats::now_ns;

/// More of a payload is not shown in a line for people.
const SHOWN: usize = 1000;

/// Looks into an archive, also while a hub writes to it.
#[derive(Subcommand)]
pub(super) enum Command {
    Query(Query),
}

/// Prints messages of an archive, the oldest first.
#[derive(Args)]
#[command(group = ArgGroup::new("which").required(true))]
#[command(after_help = "\
Examples:
  weir archive query --config weir.toml --since 1h
  weir archive query --config weir.toml --topic org.example. --newest --limit 20
  weir archive query --url sqlite:/var/lib/weir/archive.db --json-path '$.msg.agent == \"ann\"' --json
  weir archive query --config weir.toml --since 2026-11-01 --until 2026-11-02 --json > day.jsonl
  weir replay --consumer badges --from-archive day.jsonl --config weir.toml

A time is a date, a date and a time in UTC (2026-11-01T12:30:00Z), or how long ago it was (90m).
A --json-path asks for messages in whose JSON there is something at that path, or something that
compares so (==, !=, <, <=, >, >=) with a JSON value; it is looked at here, after time and topic.")]
pub(super) struct Query {
    /// The configuration of the hub whose archive it is.
    #[arg(long, short, value_name = "FILE", group = "which")]
    config: Option<PathBuf>,
    /// Which of its consumers, if several are archives.
    #[arg(long, value_name = "NAME", conflicts_with = "url")]
    consumer: Option<String>,
    /// The archive, as `url` in a configuration; for one that asks for no password.
    #[arg(long, value_name = "URL", group = "which")]
    url: Option<String>,
    /// Those taken in at that time or later.
    #[arg(long, value_name = "TIME", value_parser = time)]
    since: Option<i64>,
    /// Those taken in before that time.
    #[arg(long, value_name = "TIME", value_parser = time)]
    until: Option<i64>,
    /// Those whose topic begins so.
    #[arg(long, value_name = "PREFIX", default_value = "")]
    topic: String,
    /// Those whose JSON is so; may be repeated, and all have to hold.
    #[arg(long, value_name = "EXPR")]
    json_path: Vec<Predicate>,
    /// At most so many.
    #[arg(long, value_name = "N")]
    limit: Option<u64>,
    /// The newest first.
    #[arg(long)]
    newest: bool,
    /// Print a JSON object a line, as `weir replay --from-archive` takes it.
    #[arg(long)]
    json: bool,
}

/// A point in time, in nanoseconds since 1970.
fn time(text: &str) -> Result<i64, String> {
    let since_1970 = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let at = humantime::parse_rfc3339_weak(text)
        .or_else(|_| humantime::parse_rfc3339_weak(&format!("{text} 00:00:00")))
        .map(since_1970);
    let ago = || match humantime::parse_duration(text) {
        Ok(ago) if ago <= DURATION_MAX => Ok(Duration::from_nanos(now_ns()).saturating_sub(ago)),
        Ok(_) => Err("that is more than 10 years ago; give the date instead".to_owned()),
        Err(_) => Err(
            "expected a time such as 2026-11-01, 2026-11-01T12:30:00Z or, for so long \
                       ago, 90m"
                .into(),
        ),
    };
    let time = at.or_else(|_| ago())?;
    Ok(i64::try_from(time.as_nanos()).unwrap_or(i64::MAX))
}

impl Command {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        match self {
            Command::Query(query) => query.run(registry),
        }
    }
}

impl Query {
    fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let (location, data_dir) = self.find(registry)?;
        let filter = Filter {
            since_ns: self.since,
            until_ns: self.until,
            topic: prefix(&self.topic),
            newest: self.newest,
        };
        let failed = |failure: weir_consumer::Failure| Failure::run(failure.to_string());
        let mut reader = Reader::open(&location, &data_dir, filter).map_err(failed)?;
        let stdout = std::io::stdout();
        let width = match stdout.is_terminal() {
            true => terminal_size::terminal_size().map(|(width, _)| width.0.into()),
            false => None,
        };
        let mut out = BufWriter::new(stdout.lock());
        let mut left = self.limit.unwrap_or(u64::MAX);
        while left > 0 {
            let page = reader.page().map_err(failed)?;
            if page.is_empty() {
                break;
            }
            for stored in page {
                if left == 0 || !self.wants(&stored) {
                    continue;
                }
                left -= 1;
                match self.json {
                    true => {
                        let line = serde_json::to_string(&line(stored));
                        let line = line.map_err(|error| Failure::run(error.to_string()))?;
                        writeln!(out, "{line}")?;
                    }
                    false => writeln!(out, "{}", shown(&stored, width))?,
                }
            }
            // Who reads along wants to see what there is.
            out.flush()?;
        }
        Ok(())
    }

    fn wants(&self, stored: &Stored) -> bool {
        if self.json_path.is_empty() {
            return true;
        }
        let json = serde_json::from_slice(&stored.payload);
        json.is_ok_and(|json| {
            self.json_path
                .iter()
                .all(|predicate| predicate.holds(&json))
        })
    }

    /// Where the archive is, and where its relative paths start.
    fn find(&self, registry: &Registry) -> Result<(Location, PathBuf), Failure> {
        if let Some(url) = &self.url {
            // Here, because an error of clap's would show what may have a password in it.
            let url = Url::try_from(url.clone());
            let location = Location {
                url: url.map_err(|why| Failure::usage(format!("--url: {why}")))?,
                ..Location::default()
            };
            return Ok((location, Path::new("").into()));
        }
        let args = ConfigArgs {
            config: self.config.clone().unwrap_or_default(),
            set: Vec::new(),
        };
        let config: Config = args.load(registry)?;
        let archives = || {
            let consumers = config.consumers.iter();
            consumers.filter(|consumer| consumer.kind.name() == "archive")
        };
        let names: Vec<&str> = archives().map(|archive| archive.name.as_str()).collect();
        let found = match (&self.consumer, &names[..]) {
            (_, []) => Err("no consumer of this configuration is an archive".into()),
            (None, [_]) => Ok(archives().next()),
            (None, _) => Err(format!("say which with --consumer: {}", names.join(", "))),
            (Some(name), _) => Ok(archives().find(|archive| archive.name == *name)),
        };
        let archive = found.map_err(Failure::usage)?.ok_or_else(|| {
            let name = self.consumer.as_deref().unwrap_or_default();
            let meant = super::meant(name, names.iter().copied());
            Failure::usage(format!("there is no archive {name:?}{meant}"))
        })?;
        let location = weir_archive::location(&archive.own)
            .map_err(|mistakes| Failure::from(Mistakes(mistakes)))?;
        Ok((location, config.hub.data_dir))
    }
}

fn line(stored: Stored) -> Line {
    let number = |number| u64::try_from(number).unwrap_or(0);
    Line {
        seq: number(stored.seq),
        hub: stored.hub,
        received_ns: number(stored.received_ns),
        topic: stored.topic,
        payload: Payload::of(stored.payload),
    }
}

/// A line for people, that ends at the terminal's width. What a publisher wrote must not be able to
/// steer the terminal.
fn shown(stored: &Stored, width: Option<usize>) -> String {
    let visible = |text: &str| text.chars().flat_map(visible).collect::<String>();
    let received = Duration::from_nanos(u64::try_from(stored.received_ns).unwrap_or(0));
    let received = humantime::format_rfc3339_millis(UNIX_EPOCH + received);
    let payload = match std::str::from_utf8(&stored.payload) {
        Ok(text) => {
            let end = text.char_indices().nth(SHOWN).map(|(end, _)| end);
            let cut = if end.is_some() { "..." } else { "" };
            format!("{}{cut}", visible(&text[..end.unwrap_or(text.len())]))
        }
        Err(_) => format!("({} bytes)", stored.payload.len()),
    };
    let (hub, topic) = (visible(&stored.hub), visible(&stored.topic));
    let line = format!("{received}  {hub} {:>8}  {topic}  {payload}", stored.seq);
    let end = width.and_then(|width| line.char_indices().nth(width));
    match end {
        Some((end, _)) => line[..end].into(),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_date_or_so_long_ago() {
        let day = 1_793_491_200 * 1_000_000_000;
        assert_eq!(time("2026-11-01"), Ok(day));
        assert_eq!(time("2026-11-01T00:00:01Z"), Ok(day + 1_000_000_000));
        assert_eq!(time("2026-11-01 00:01:00"), Ok(day + 60_000_000_000));
        let hour_ago = time("1h").unwrap();
        let now = i64::try_from(now_ns()).unwrap();
        assert!((now - 3_700_000_000_000..=now - 3_600_000_000_000).contains(&hour_ago));
        for wrong in ["", "yesterday", "2026-13-01", "30y", "-1h"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_line_for_people_steers_no_terminal_and_ends_at_its_width() {
        let stored = |payload: &[u8]| Stored {
            received_ns: 1_793_491_200_000_000_000,
            seq: 7,
            hub: "fedora".into(),
            topic: "org.example\x1b[2J".into(),
            payload: payload.into(),
        };
        let line = "2026-11-01T00:00:00.000Z  fedora        7  org.example\\u{1b}[2J  ";
        assert_eq!(
            shown(&stored("a\nä".as_bytes()), None),
            format!("{line}a\\nä")
        );
        assert_eq!(
            shown(&stored(b"\xff\x00"), None),
            format!("{line}(2 bytes)")
        );
        assert_eq!(shown(&stored(b"x"), Some(10)), "2026-11-01");
        let long = shown(&stored(&b"x".repeat(2000)), None);
        assert!(long.ends_with("x..."), "{long}");
    }
}
