//! `weir journal`: look into a journal, of a running hub or of one that is stopped.

use std::fmt::Write as _;
use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use clap::{Args, Subcommand};
use serde_json::json;

use super::Failure;
use super::steer::{DataArgs, tell};
use crate::data_dir;
use crate::journal::{Report, inspect};
use crate::registry::Registry;
use crate::steering::Action;

/// Looks into the journal, or has it written to the disk.
#[derive(Subcommand)]
#[command(after_help = "\
Examples:
  weir journal info --config weir.toml                 how far it reaches, how far each consumer is
  weir journal check --data-dir /var/lib/weir          read and verify all of it
  weir journal flush --config weir.toml                write journal and cursors to the disk now")]
pub(super) enum Command {
    /// Shows its segments, and where each consumer is.
    Info(Look),
    /// Reads and verifies every message; exits with 1 if something is damaged.
    Check(Look),
    /// Writes journal and cursors to the disk now.
    Flush(Look),
}

#[derive(Args)]
pub(super) struct Look {
    #[command(flatten)]
    data: DataArgs,
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

impl Command {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let (look, check) = match self {
            Command::Info(look) => (look, false),
            Command::Check(look) => (look, true),
            Command::Flush(look) => {
                let data = look.data.find(registry)?;
                return tell(&data.act(&Action::Flush)?, look.json);
            }
        };
        let dir = data_dir::journal(&look.data.find(registry)?.dir);
        let report = inspect(&dir, check).map_err(Failure::run)?;
        let mut out = std::io::stdout().lock();
        match look.json {
            true => writeln!(out, "{}", json!(report))?,
            false => out.write_all(describe(&report).as_bytes())?,
        }
        match report.is_sound() {
            true => Ok(()),
            false => Err(Failure::run(
                "not all of the journal is sound; messages that can't be read are counted as \
                 dropped{reason=\"corrupt\"} when the hub comes to them",
            )),
        }
    }
}

fn time(ns: u64) -> String {
    match ns {
        0 => "-".into(),
        ns => {
            let time = UNIX_EPOCH + Duration::from_nanos(ns);
            humantime::format_rfc3339_seconds(time).to_string()
        }
    }
}

fn describe(report: &Report) -> String {
    let mut out = String::new();
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let _ = writeln!(
        out,
        "{} messages in {} segment{}, {:.1} MiB; the next gets sequence number {}",
        report.messages,
        report.segments.len(),
        if report.segments.len() == 1 { "" } else { "s" },
        mib(report.bytes),
        report.end
    );
    if !report.segments.is_empty() {
        let _ = writeln!(
            out,
            "\n{:>12} {:>12} {:>10} {:>9}  {:20}  {:20}",
            "from", "messages", "MiB", "sealed", "first", "last"
        );
    }
    for segment in &report.segments {
        let _ = writeln!(
            out,
            "{:>12} {:>12} {:>10.1} {:>9}  {:20}  {:20}",
            segment.base,
            segment.messages,
            mib(segment.bytes),
            if segment.sealed { "yes" } else { "no" },
            time(segment.first_ns),
            time(segment.last_ns)
        );
        for problem in &segment.problems {
            let (file, offset) = (&segment.file, problem.offset);
            let _ = writeln!(out, "  {file}, byte {offset}: {}", problem.what);
        }
    }
    let width = report.cursors.iter().map(|c| c.consumer.len()).max();
    let width = width.unwrap_or(0).max(8);
    if !report.cursors.is_empty() {
        let _ = writeln!(
            out,
            "\n{:width$} {:>12} {:>12}  {:20}",
            "consumer", "position", "behind", "last configured"
        );
    }
    for its in &report.cursors {
        let mut notes = String::new();
        if its.cursor.paused {
            notes.push_str("  paused");
        }
        if its.cursor.replayed_below > its.cursor.position {
            let _ = write!(notes, "  replaying up to {}", its.cursor.replayed_below);
        }
        let _ = writeln!(
            out,
            "{:width$} {:>12} {:>12}  {:20}{notes}",
            its.consumer,
            its.cursor.position,
            its.behind,
            time(its.cursor.seen_ns)
        );
    }
    if !report.cursors.is_empty() {
        let _ = writeln!(
            out,
            "(behind: sequence numbers of the hub, of which the consumer may want only some)"
        );
    }
    for text in report.problems.iter().chain(&report.notes) {
        let _ = writeln!(out, "{text}");
    }
    if report.clean == Some(false) {
        let _ = writeln!(out, "the hub is running, or did not stop in order");
    }
    out
}
