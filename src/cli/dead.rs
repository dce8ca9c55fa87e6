//! `weir dead`: look at dead letters, have them delivered again, delete them.
//!
//! Looking reads the file, also while the hub writes it. What changes something goes through
//! [`act`].

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use serde_json::json;

use super::steer::{Data, DataArgs};
use super::tail::visible;
use super::{Failure, say};
use crate::dead_letters::{DeadLetters, FILE, Filter, Letter, REPLAY, hex};
use crate::registry::Registry;
use crate::stats::now_ns;
use crate::steering::Action;

/// Letters that are read at a time.
const PAGE: usize = 1000;

/// Shows, requeues or purges dead letters: messages that were set aside after their attempts.
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  weir dead list --config weir.toml                        the newest, and why they are here
  weir dead show --config weir.toml 7                      all that is known of one
  weir dead requeue --config weir.toml --consumer mail     deliver them again
  weir dead purge --config weir.toml --before 7d --yes     delete them")]
pub(super) enum Command {
    List(List),
    Show(Show),
    Requeue(Requeue),
    Purge(Purge),
}

/// Lists dead letters, the newest last.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir dead list --config weir.toml
  weir dead list --data-dir /var/lib/weir --consumer mail --cause refused --since 1h
  weir dead list --config weir.toml --json | jq -r '.causes[-1].text' | sort | uniq -c")]
pub(super) struct List {
    #[command(flatten)]
    place: DataArgs,
    #[command(flatten)]
    filters: Filters,
    /// At most so many, the newest.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Print a JSON object a line, payload included.
    #[arg(long)]
    json: bool,
}

/// Shows one dead letter: its payload, and how it failed.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir dead show --config weir.toml 7
  weir dead show --config weir.toml 7 --payload | weir publish org.example.build -")]
pub(super) struct Show {
    /// Its id, as `weir dead list` shows it.
    id: i64,
    #[command(flatten)]
    place: DataArgs,
    /// Print it as a JSON object.
    #[arg(long, conflicts_with = "payload")]
    json: bool,
    /// Print the payload, byte for byte, and nothing else.
    #[arg(long)]
    payload: bool,
}

/// Has dead letters delivered again to their consumer.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir dead requeue --config weir.toml 7 8
  weir dead requeue --config weir.toml --consumer mail --cause 'connection refused'
  weir dead requeue --config weir.toml --all

One that fails again is a dead letter again, with all its causes.")]
pub(super) struct Requeue {
    #[command(flatten)]
    chosen: Chosen,
    /// Print the number as JSON.
    #[arg(long)]
    json: bool,
}

/// Deletes dead letters for good.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir dead purge --config weir.toml 7 8
  weir dead purge --config weir.toml --reason dead_letter --before 7d
  weir dead purge --config weir.toml --all --yes")]
pub(super) struct Purge {
    #[command(flatten)]
    chosen: Chosen,
    /// Don't ask; where there is no terminal to ask on, this is required.
    #[arg(long)]
    yes: bool,
    /// Print the number as JSON.
    #[arg(long)]
    json: bool,
}

/// Which dead letters; all that is given has to apply.
#[derive(Args)]
struct Filters {
    /// Those of this consumer.
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// Those whose topic begins so.
    #[arg(long, value_name = "PREFIX")]
    topic: Option<String>,
    /// Those that are here for this reason.
    #[arg(long, value_name = "REASON", value_parser = reasons())]
    reason: Option<String>,
    /// Those that failed with a text that contains this.
    #[arg(long, value_name = "TEXT")]
    cause: Option<String>,
    /// Those set aside in the last hour, day, ...
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    since: Option<Duration>,
    /// Those set aside before that.
    #[arg(long, value_name = "TIME", value_parser = super::duration)]
    before: Option<Duration>,
}

fn reasons() -> PossibleValuesParser {
    ["attempts", "dead_letter", "crash", REPLAY].into()
}

impl Filters {
    fn filter(&self) -> Filter {
        let ago = |time: Duration| {
            now_ns().saturating_sub(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
        };
        Filter {
            ids: Vec::new(),
            consumer: self.consumer.clone(),
            topic: self.topic.clone(),
            reason: self.reason.clone(),
            cause: self.cause.clone(),
            before_ns: self.before.map(ago),
            since_ns: self.since.map(ago),
        }
    }
}

/// Dead letters to do something with.
#[derive(Args)]
struct Chosen {
    /// Their ids, as `weir dead list` shows them.
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    #[command(flatten)]
    place: DataArgs,
    #[command(flatten)]
    filters: Filters,
    /// All of them.
    #[arg(long)]
    all: bool,
}

impl Chosen {
    /// Where they are, what is meant, and how many there are.
    fn find(&self, registry: &Registry) -> Result<(Data, Filter, u64), Failure> {
        let mut filter = self.filters.filter();
        filter.ids = self.ids.clone();
        match (filter == Filter::default(), self.all) {
            (true, false) => {
                return Err(Failure::usage(
                    "say which dead letters are meant: by their ids, by a filter such as \
                     `--consumer NAME`, or `--all`",
                ));
            }
            (false, true) => {
                return Err(Failure::usage(
                    "`--all` leaves no choice; give it without ids and filters",
                ));
            }
            _ => {}
        }
        let data = self.place.find(registry)?;
        let dead = DeadLetters::read(&data.dir.join(FILE)).map_err(Failure::run)?;
        let count = |filter: &Filter| match &dead {
            Some(dead) => dead.count(filter).map_err(Failure::run),
            None => Ok(0),
        };
        let mut missing = Vec::new();
        for id in self.ids.iter().collect::<BTreeSet<_>>() {
            let ids = vec![*id];
            let one = Filter {
                ids,
                ..Filter::default()
            };
            if count(&one)? == 0 {
                missing.push(*id);
            }
        }
        if !missing.is_empty() {
            return Err(absent(&missing, &data.dir));
        }
        let count = count(&filter)?;
        Ok((data, filter, count))
    }
}

fn absent(ids: &[i64], data_dir: &Path) -> Failure {
    let ids: Vec<String> = ids.iter().map(i64::to_string).collect();
    Failure::run(format!(
        "{} has no dead letter {}; `weir dead list` shows those that there are",
        data_dir.join(FILE).display(),
        ids.join(", ")
    ))
}

impl Command {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        match self {
            Command::List(list) => list.run(registry),
            Command::Show(show) => show.run(registry),
            Command::Requeue(requeue) => requeue.run(registry),
            Command::Purge(purge) => purge.run(registry),
        }
    }
}

impl List {
    fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let data_dir = self.place.find(registry)?.dir;
        let filter = self.filters.filter();
        let dead = DeadLetters::read(&data_dir.join(FILE)).map_err(Failure::run)?;
        let Some(dead) = dead else {
            none(&filter);
            return Ok(());
        };
        let count = dead.count(&filter).map_err(Failure::run)?;
        if count == 0 {
            none(&filter);
            return Ok(());
        }
        let mut out = std::io::stdout().lock();
        let mut rows = vec![HEAD.map(str::to_owned)];
        let now = now_ns();
        let mut left = self.limit;
        let mut after = dead.before_newest(&filter, left).map_err(Failure::run)?;
        while left > 0 {
            let letters = dead
                .list(&filter, after, left.min(PAGE))
                .map_err(Failure::run)?;
            let Some(last) = letters.last() else { break };
            after = last.id;
            left -= letters.len();
            for letter in &letters {
                match self.json {
                    true => writeln!(out, "{}", json!(letter))?,
                    false => rows.push(row(letter, now)),
                }
            }
        }
        if !self.json && rows.len() > 1 {
            let width = match out.is_terminal() {
                true => terminal_size::terminal_size().map(|(width, _)| width.0.into()),
                false => None,
            };
            out.write_all(table(&rows, width).as_bytes())?;
        }
        let shown = self.limit - left;
        if count > shown as u64 {
            let more = count - shown as u64;
            say(&format!(
                "{more} older not shown; `--limit {count}` shows all\n"
            ));
        }
        Ok(())
    }
}

/// Says that there are none of these.
fn none(filter: &Filter) {
    say(match *filter == Filter::default() {
        true => "no dead letters\n",
        false => "no dead letters of this choice\n",
    });
}

const HEAD: [&str; 7] = [
    "id",
    "consumer",
    "topic",
    "reason",
    "attempts",
    "age",
    "last cause",
];

fn row(letter: &Letter, now_ns: u64) -> [String; 7] {
    [
        letter.id.to_string(),
        one_line(&letter.consumer),
        one_line(&letter.topic),
        reason(letter),
        letter.attempts.to_string(),
        age(letter, now_ns),
        letter
            .causes
            .last()
            .map_or(String::new(), |cause| one_line(&cause.text)),
    ]
}

fn reason(letter: &Letter) -> String {
    let requeued = if letter.requeued { ", requeued" } else { "" };
    format!("{}{requeued}", one_line(&letter.reason))
}

/// What a publisher wrote must not be able to steer the terminal.
fn one_line(text: &str) -> String {
    text.chars().flat_map(visible).collect()
}

/// In its two largest units.
fn age(letter: &Letter, now_ns: u64) -> String {
    let seconds = now_ns.saturating_sub(letter.set_aside_ns) / 1_000_000_000;
    let age = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    age.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// The rows in columns; lines end at the terminal's width.
fn table(rows: &[[String; 7]], width: Option<usize>) -> String {
    let mut widths = [0; 7];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (i, (width, cell)) in widths.iter().zip(row).enumerate() {
            let _ = match i {
                0 => write!(line, "{cell:>width$}"),
                4 => write!(line, "  {cell:>width$}"),
                _ => write!(line, "  {cell:width$}"),
            };
        }
        let end = width.and_then(|width| line.char_indices().nth(width));
        let line = end.map_or(&*line, |(end, _)| &line[..end]);
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

impl Show {
    fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let data_dir = self.place.find(registry)?.dir;
        let dead = DeadLetters::read(&data_dir.join(FILE)).map_err(Failure::run)?;
        let letter = match dead {
            Some(dead) => dead.show(self.id).map_err(Failure::run)?,
            None => None,
        };
        let letter = letter.ok_or_else(|| absent(&[self.id], &data_dir))?;
        let mut out = std::io::stdout().lock();
        if self.payload {
            out.write_all(&letter.payload)?;
        } else if self.json {
            writeln!(out, "{}", json!(letter))?;
        } else {
            out.write_all(describe(&letter, now_ns()).as_bytes())?;
        }
        Ok(out.flush()?)
    }
}

fn describe(letter: &Letter, now_ns: u64) -> String {
    let time = |ns| humantime::format_rfc3339_millis(UNIX_EPOCH + Duration::from_nanos(ns));
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:13} {value}");
    };
    line("id", &letter.id.to_string());
    line("consumer", &one_line(&letter.consumer));
    line("topic", &one_line(&letter.topic));
    line("reason", &reason(letter));
    line("attempts", &letter.attempts.to_string());
    let received = time(letter.received_ns);
    line("received", &format!("{received}, as number {}", letter.seq));
    line("first failed", &time(letter.first_failed_ns).to_string());
    line("last failed", &time(letter.last_failed_ns).to_string());
    let (set_aside, age) = (time(letter.set_aside_ns), age(letter, now_ns));
    line("set aside", &format!("{set_aside}, {age} ago"));
    for (i, cause) in letter.causes.iter().enumerate() {
        let name = if i == 0 { "causes" } else { "" };
        line(
            name,
            &format!("{} x {}", cause.times, one_line(&cause.text)),
        );
    }
    let (kind, text) = payload(&letter.payload);
    line("payload", &format!("{} bytes{kind}", letter.payload.len()));
    if !text.is_empty() {
        out.push('\n');
        out.push_str(&text);
        out.push('\n');
    }
    out
}

/// For people: what it is, and JSON with indentation, another text as it is, or else hex.
fn payload(bytes: &[u8]) -> (&'static str, String) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        let lines: Vec<String> = bytes.chunks(32).map(hex).collect();
        return (", in hex", lines.join("\n"));
    };
    let pretty = serde_json::from_str::<serde_json::Value>(text)
        .and_then(|value| serde_json::to_string_pretty(&value));
    let (kind, text) = match &pretty {
        Ok(pretty) => (" of JSON", pretty.as_str()),
        Err(_) => ("", text),
    };
    let lines: Vec<String> = text.lines().map(one_line).collect();
    (kind, lines.join("\n"))
}

impl Requeue {
    fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let (data, filter, count) = self.chosen.find(registry)?;
        let requeued = match count {
            0 => 0,
            _ => {
                let filter = filter.clone();
                data.act(&Action::Requeue { filter })?.count.unwrap_or(0)
            }
        };
        report("requeued", requeued, &filter, count, self.json)
    }
}

impl Purge {
    fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let (data, filter, count) = self.chosen.find(registry)?;
        if count > 0 && !self.yes {
            confirm(count)?;
        }
        let purged = match count {
            0 => 0,
            _ => {
                let filter = filter.clone();
                data.act(&Action::Purge { filter })?.count.unwrap_or(0)
            }
        };
        report("purged", purged, &filter, count, self.json)
    }
}

/// Asks whether to go on.
fn confirm(count: u64) -> Result<(), Failure> {
    let what = letters(count);
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(format!(
            "this would delete {what} for good; add `--yes`"
        )));
    }
    say(&format!("delete {what} for good? [y/N] "));
    let mut answer = String::new();
    stdin.read_line(&mut answer)?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::run("nothing was purged")),
    }
}

fn letters(count: u64) -> String {
    let s = if count == 1 { "" } else { "s" };
    format!("{count} dead letter{s}")
}

/// Says what was done with how many of those that were found.
fn report(done: &str, count: u64, filter: &Filter, found: u64, json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", json!({ done: count }))?;
    } else if found == 0 {
        none(filter);
    } else {
        writeln!(out, "{done} {}", letters(count))?;
    }
    Ok(())
}
