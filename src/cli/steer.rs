//! Commands that tell a hub something: through its socket while it runs, else in its data.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::builder::PossibleValuesParser;
use clap::{ArgGroup, Args};
use serde_json::json;
use weir_consumer::Message;

use super::ask::{Address, Unanswered};
use super::{ConfigArgs, Failure, duration, say};
use crate::config::Config;
use crate::data_dir::{self, DataDir, Refused};
use crate::dead_letters::Fed;
use crate::feed::Line;
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
    /// The hub's name, if its configuration was given.
    hub: Option<String>,
    journal: journal::Settings,
    dead_letters: dead_letters::Settings,
}

impl DataArgs {
    pub(super) fn find(&self, registry: &Registry) -> Result<Data, Failure> {
        let data = match (&self.data_dir, &self.config) {
            (Some(dir), _) => Data {
                dir: dir.clone(),
                hub: None,
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
                    hub: Some(config.hub.name),
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
    /// Whether there is a hub's data to do something with.
    fn check(&self) -> Result<(), Failure> {
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
        Ok(())
    }

    /// The data, if no hub has it.
    fn open(&self) -> Result<Option<DataDir>, Failure> {
        match DataDir::open(&self.dir) {
            Ok(dir) => Ok(Some(dir)),
            Err(Refused::Taken(_)) => Ok(None),
            Err(Refused::Unusable(text)) => {
                Err(Failure::run(format!("{text}; run this as the hub's user")))
            }
        }
    }

    /// Does it, through the hub if one runs.
    pub(super) fn act(&self, action: &Action) -> Result<Outcome, Failure> {
        self.check()?;
        match self.open()? {
            Some(dir) => {
                let by = format!("{} (stopped)", user());
                let settings = (&self.journal, &self.dead_letters);
                steering::offline(&dir, settings, action, &by).map_err(Failure::run)
            }
            None => ask(&data_dir::control(&self.dir), action, PATIENCE),
        }
    }

    /// Feeds messages to a consumer, through the hub if one runs; waits while too much waits there.
    fn feed(
        &self,
        consumer: &str,
        lines: &[Line],
        mut progress: impl FnMut(u64),
    ) -> Result<u64, Failure> {
        let mut pause = Duration::from_millis(100);
        loop {
            let fed = match self.open()? {
                Some(dir) => self.feed_stopped(&dir, consumer, lines)?,
                None => {
                    let hub = Address::Socket(data_dir::control(&self.dir));
                    let body = json!({ "consumer": consumer, "messages": lines });
                    match hub.post("/v1/feed", &body, PATIENCE) {
                        Ok(fed) => Some(fed),
                        Err(Unanswered::TooOften(_)) => None,
                        Err(Unanswered::Away(why)) => return Err(away(&why)),
                        Err(other) => return Err(other.into()),
                    }
                }
            };
            match fed {
                Some(Fed {
                    taken: true,
                    waiting,
                }) => return Ok(waiting),
                Some(Fed { waiting, .. }) => progress(waiting),
                None => {}
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn feed_stopped(
        &self,
        dir: &DataDir,
        consumer: &str,
        lines: &[Line],
    ) -> Result<Option<Fed>, Failure> {
        let messages: Result<Vec<Message>, String> = lines.iter().map(Line::message).collect();
        let messages = messages.map_err(Failure::usage)?;
        let by = format!("{} (stopped)", user());
        let fed = steering::offline_feed(dir, &self.dead_letters, consumer, &messages, &by);
        match fed.map_err(Failure::run)? {
            Fed {
                taken: false,
                waiting,
            } => Err(Failure::run(format!(
                "the hub does not run, and {waiting} dead letters of {consumer} wait to be \
                 delivered again, with which a quarter of dead_letters.keep.bytes is full: start it, \
                 and then feed it the rest"
            ))),
            fed => Ok(Some(fed)),
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
    hub.post("/v1/actions", action, patience)
        .map_err(|unanswered| match unanswered {
            Unanswered::Away(why) => away(&why),
            other => other.into(),
        })
}

fn away(why: &str) -> Failure {
    Failure::run(format!(
        "a process has the data directory, but can't be talked to: {why}; another command may be \
         at work, or the hub just starting or stopping: try again. (A hub built without the feature \
         `http` can't be told anything while it runs.)"
    ))
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

/// Delivers settled messages to a consumer again, marked as replayed.
///
/// Those that the journal has come once more in their order, and then what follows. Those of an
/// archive come between what follows, and one that fails becomes a dead letter.
#[derive(Args)]
#[command(group = ArgGroup::new("where_from").required(true))]
#[command(after_help = "\
Examples:
  weir replay --consumer archive --since 1h --config weir.toml
  weir replay --consumer archive --from 123456 --config weir.toml
  weir archive query --config weir.toml --since 7d --topic org.example. --json |
    weir replay --consumer badges --from-archive - --config weir.toml

How far back the journal goes is up to journal.keep; `weir journal info` shows it. A consumer gets
what it is fed from an archive whatever its `topics` are.")]
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
    /// The messages in this file, as `weir archive query --json` prints them; `-` is standard
    /// input.
    #[arg(long, value_name = "FILE", group = "where_from")]
    from_archive: Option<PathBuf>,
    /// Also messages that another hub took in, as if this one had: archived and counted anew.
    #[arg(long, conflicts_with_all = ["since", "from"])]
    any_hub: bool,
    #[command(flatten)]
    data: DataArgs,
    /// Print the outcome as JSON.
    #[arg(long)]
    json: bool,
}

/// Messages that are fed at a time: so many, or a little more than so many bytes.
const CHUNK: usize = 1000;
const CHUNK_BYTES: usize = 1 << 20;
/// No line is longer: twice 16 MiB of payload, and a topic. A chunk has to fit into a request.
const LINE_MAX: usize = 48 << 20;
/// How often it is said how far it is.
const PROGRESS: Duration = Duration::from_secs(2);

impl Replay {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let consumer = self.consumer.clone();
        let data = self.data.find(registry)?;
        if let Some(file) = &self.from_archive {
            let outcome = match file.as_os_str() == "-" {
                true => self.feed(&data, std::io::stdin().lock())?,
                false => {
                    let opened = File::open(file).map_err(|error| {
                        Failure::usage(format!("can't open {}: {error}", file.display()))
                    })?;
                    self.feed(&data, BufReader::new(opened))?
                }
            };
            return tell(&outcome, self.json);
        }
        let from = match (self.from, self.since) {
            (Some(number), _) => From::Sequence(number),
            (None, since) => From::Seconds(since.unwrap_or_default().as_secs_f64()),
        };
        tell(&data.act(&Action::Replay { consumer, from })?, self.json)
    }

    /// Feeds lines, chunk by chunk: a chunk with a wrong line is not taken.
    fn feed(&self, data: &Data, from: impl BufRead) -> Result<Outcome, Failure> {
        data.check()?;
        let consumer = &self.consumer;
        let of = match self.any_hub {
            true => None,
            false => Some(data.hub.as_deref()),
        };
        let mut chunks = Chunks { from, of, line: 0 };
        let (mut fed, mut waiting) = (0, 0);
        let mut said = Instant::now();
        let before = |failure: Failure, fed: u64| Failure {
            text: match fed {
                1 => format!("{}; 1 message was fed before", failure.text),
                _ => format!("{}; {fed} messages were fed before", failure.text),
            },
            ..failure
        };
        loop {
            let chunk = chunks.next().map_err(|failure| before(failure, fed))?;
            if chunk.is_empty() {
                break;
            }
            let mut progress = |fed: u64, waiting: u64| {
                if said.elapsed() >= PROGRESS {
                    say(&format!(
                        "{fed} fed to {consumer}, {waiting} of them wait\n"
                    ));
                    said = Instant::now();
                }
            };
            waiting = data
                .feed(consumer, &chunk, |waiting| progress(fed, waiting))
                .map_err(|failure| before(failure, fed))?;
            fed += chunk.len() as u64;
            progress(fed, waiting);
        }
        Ok(Outcome {
            count: Some(fed),
            text: match fed {
                1 => format!("1 message fed to {consumer}, which waits to be delivered"),
                _ => format!(
                    "{fed} messages fed to {consumer}, {} of them wait to be delivered",
                    waiting.min(fed)
                ),
            },
        })
    }
}

/// Lines of messages, some at a time.
struct Chunks<'d, R> {
    from: R,
    /// Whose messages they have to be, and its name if that is known; none for any hub's.
    of: Option<Option<&'d str>>,
    /// The number of the last line that was read.
    line: u64,
}

impl<R: BufRead> Chunks<'_, R> {
    /// The next; empty at the end.
    fn next(&mut self) -> Result<Vec<Line>, Failure> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
            let mut text = Vec::new();
            let read = (&mut self.from)
                .take(LINE_MAX as u64 + 1)
                .read_until(b'\n', &mut text)?;
            if read == 0 {
                break;
            }
            self.line += 1;
            let wrong = |why: &dyn std::fmt::Display| {
                Failure::usage(format!(
                    "line {} is no message of an archive, as `weir archive query --json` prints \
                     it: {why}",
                    self.line
                ))
            };
            if text.len() > LINE_MAX {
                return Err(wrong(&format_args!("it has more than {LINE_MAX} bytes")));
            }
            if text.trim_ascii().is_empty() {
                continue;
            }
            let line: Line = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
            line.message().map_err(|why| wrong(&why))?;
            self.whose(&line)?;
            bytes += text.len();
            chunk.push(line);
        }
        Ok(chunk)
    }

    /// Whether a message is of the hub that is to deliver it. An archive keeps a message once, and
    /// badges count it once, for each hub: from another it would be one more.
    fn whose(&self, Line { hub, .. }: &Line) -> Result<(), Failure> {
        let why = match self.of {
            None => return Ok(()),
            Some(_) if hub.is_empty() => return Ok(()),
            Some(Some(name)) if name == hub => return Ok(()),
            Some(Some(name)) => format!(
                "this is the hub {name:?}, for which it would be a new one; feed it to {hub:?}, or \
                 say --any-hub if that is meant"
            ),
            Some(None) => "whether that is this hub says only its configuration; give it with \
                           --config instead of --data-dir, or say --any-hub if it does not matter"
                .into(),
        };
        Err(Failure::usage(format!(
            "line {} is a message of the hub {hub:?}: {why}",
            self.line
        )))
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
