//! Commands that tell a hub something: through its socket while it runs, else in its data.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args};
use serde_json::json;

use super::ask::{Address, Unanswered};
use super::{ConfigArgs, Failure, duration};
use crate::config::Config;
use crate::data_dir::{self, DataDir, Refused};
use crate::logging::LEVELS;
use crate::registry::Registry;
use crate::steering::{self, Action, From, Outcome};
use crate::{dead_letters, journal};

/// A replay reads what it goes back over.
const PATIENCE: Duration = Duration::from_secs(600);

/// Where a hub's data is.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct DataArgs {
    /// The hub's configuration, which says where its data is.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The hub's data directory.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

/// A hub's data, and how it wants to be treated.
pub(super) struct Data {
    pub(super) dir: PathBuf,
    journal: journal::Settings,
    dead_letters: dead_letters::Settings,
}

impl DataArgs {
    pub(super) fn find(&self, registry: &Registry) -> Result<Data, Failure> {
        let data = match (&self.data_dir, &self.config) {
            (Some(dir), _) => Data {
                dir: dir.clone(),
                journal: journal::Settings::default(),
                dead_letters: dead_letters::Settings::default(),
            },
            (None, config) => {
                let args = ConfigArgs {
                    config: config.clone().unwrap_or_default(),
                    set: Vec::new(),
                };
                let config: Config = args.load(registry)?;
                Data {
                    dir: config.hub.data_dir,
                    journal: config.journal,
                    dead_letters: config.dead_letters,
                }
            }
        };
        if data.dir.is_dir() {
            return Ok(data);
        }
        let hint = match data.dir.is_relative() {
            true => {
                "; a relative one starts where the hub was started: go there, or give its \
                 whole path with --data-dir"
            }
            false => {
                "; it is `data_dir` in the section [hub] of the hub's configuration, and the \
                 hub makes it"
            }
        };
        Err(Failure::usage(format!(
            "there is no data directory {}{hint}",
            data.dir.display()
        )))
    }
}

impl Data {
    /// Does it, through the hub if one runs.
    pub(super) fn act(&self, action: &Action) -> Result<Outcome, Failure> {
        if !self.journal.enabled {
            return Err(Failure::usage(
                "this hub keeps nothing on disk (journal.enabled = false in its configuration), \
                 and can't be told anything",
            ));
        }
        let known = ["LOCK", "journal", dead_letters::FILE];
        if !known.iter().any(|name| self.dir.join(name).exists()) {
            return Err(Failure::usage(format!(
                "{} is no data directory of a hub: it has none of {}",
                self.dir.display(),
                known.join(", ")
            )));
        }
        match DataDir::open(&self.dir) {
            Ok(dir) => {
                let by = format!("{} (stopped)", user());
                let settings = (&self.journal, &self.dead_letters);
                steering::offline(&dir, settings, action, &by).map_err(Failure::run)
            }
            Err(Refused::Taken(_)) => ask(&data_dir::control(&self.dir), action, PATIENCE),
            Err(Refused::Unusable(text)) => {
                Err(Failure::run(format!("{text}; run this as the hub's user")))
            }
        }
    }
}

/// Whose process this is, as the hub says it of whoever is at its socket.
fn user() -> String {
    match std::fs::metadata("/proc/self") {
        Ok(process) => format!("uid {}", process.uid()),
        Err(_) => "unknown".into(),
    }
}

/// Asks the running hub, and waits so long for its answer.
pub(super) fn ask(socket: &Path, action: &Action, patience: Duration) -> Result<Outcome, Failure> {
    let hub = Address::Socket(socket.to_owned());
    hub.post("/v1/actions", action, patience).map_err(|unanswered| match unanswered {
        Unanswered::Away(why) => Failure::run(format!(
            "a process has the data directory, but can't be talked to: {why}; another command may \
             be at work, or the hub just starting or stopping: try again. (A hub built without the \
             feature `http` can't be told anything while it runs.)"
        )),
        other => other.into(),
    })
}

/// Prints what came of it.
pub(super) fn tell(outcome: &Outcome, as_json: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match as_json {
        true => writeln!(out, "{}", json!(outcome))?,
        false => writeln!(out, "{}", outcome.text)?,
    }
    Ok(())
}

/// Stops deliveries to a consumer until `weir resume`, also after a restart.
///
/// What comes meanwhile waits in its queue and in the journal.
#[derive(Args)]
#[command(after_help = "Example:\n  weir pause irc --config weir.toml")]
pub(super) struct Pause {
    /// The consumer's name.
    consumer: String,
    #[command(flatten)]
    data: DataArgs,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

impl Pause {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let consumer = self.consumer.clone();
        let data = self.data.find(registry)?;
        tell(&data.act(&Action::Pause { consumer })?, self.json)
    }
}

/// Delivers to a paused consumer again.
#[derive(Args)]
#[command(after_help = "Example:\n  weir resume irc --config weir.toml")]
pub(super) struct Resume {
    /// The consumer's name.
    consumer: String,
    #[command(flatten)]
    data: DataArgs,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

impl Resume {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let consumer = self.consumer.clone();
        let data = self.data.find(registry)?;
        tell(&data.act(&Action::Resume { consumer })?, self.json)
    }
}

/// Drops what waits for a consumer; it is counted as dropped{reason="skipped"}.
#[derive(Args)]
#[command(group = ArgGroup::new("what").required(true))]
#[command(after_help = "\
Examples:
  weir skip --consumer irc --older-than 1h --config weir.toml
  weir skip --consumer irc --to-head --config weir.toml")]
pub(super) struct Skip {
    /// The consumer's name.
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// What was received longer ago.
    #[arg(long, value_name = "TIME", value_parser = duration, group = "what")]
    older_than: Option<Duration>,
    /// All that waits now.
    #[arg(long, group = "what")]
    to_head: bool,
    #[command(flatten)]
    data: DataArgs,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

impl Skip {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let action = Action::Skip {
            consumer: self.consumer.clone(),
            older_than_seconds: self.older_than.map(|time| time.as_secs_f64()),
        };
        tell(&self.data.find(registry)?.act(&action)?, self.json)
    }
}

/// Delivers settled messages to a consumer again, marked as replayed, and then what follows.
#[derive(Args)]
#[command(group = ArgGroup::new("where_from").required(true))]
#[command(after_help = "\
Examples:
  weir replay --consumer archive --since 1h --config weir.toml
  weir replay --consumer archive --from 123456 --config weir.toml

How far back that goes is up to journal.keep; `weir journal info` shows it.")]
pub(super) struct Replay {
    /// The consumer's name.
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// What was received within so long a time.
    #[arg(long, value_name = "TIME", value_parser = duration, group = "where_from")]
    since: Option<Duration>,
    /// From this sequence number on.
    #[arg(long, value_name = "SEQ", group = "where_from")]
    from: Option<u64>,
    #[command(flatten)]
    data: DataArgs,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

impl Replay {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let from = match (self.from, self.since) {
            (Some(number), _) => From::Sequence(number),
            (None, since) => From::Seconds(since.unwrap_or_default().as_secs_f64()),
        };
        let consumer = self.consumer.clone();
        let data = self.data.find(registry)?;
        tell(&data.act(&Action::Replay { consumer, from })?, self.json)
    }
}

/// Stops a hub as SIGTERM does: no more intake, then empty queues or the deadline.
///
/// Returns as soon as the hub has been told; `hub.stop_deadline` says how long it may take.
#[derive(Args)]
#[command(after_help = "Example:\n  weir drain --config weir.toml")]
pub(super) struct Drain {
    #[command(flatten)]
    data: DataArgs,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

impl Drain {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let data = self.data.find(registry)?;
        tell(&data.act(&Action::Drain)?, self.json)
    }
}

/// Has a running hub log more, or less, until it ends.
#[derive(Args)]
#[command(after_help = "Example:\n  weir log-level debug --config weir.toml")]
pub(super) struct SetLogLevel {
    /// How much.
    #[arg(value_parser = PossibleValuesParser::new(LEVELS))]
    level: String,
    #[command(flatten)]
    data: DataArgs,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

impl SetLogLevel {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let level = self.level.clone();
        let data = self.data.find(registry)?;
        tell(&data.act(&Action::LogLevel { level })?, self.json)
    }
}
