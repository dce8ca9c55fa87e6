//! What an operator can tell a hub, and the record of it.
//!
//! [`Steering`] acts on a running hub, [`offline`] on the data of one that is stopped; both leave a
//! line in `audit.log`, and one in the hub's log. Reading figures is no business of this module.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use crate::data_dir::{self, DataDir};
use crate::dead_letters::{self, DeadLetters, Fed, Filter};
use crate::journal::{self, Cursors, Journal};
use crate::keeper::Keeper;
use crate::logging;
use crate::queue::Queue;
use crate::stats::now_ns;
use weir_consumer::Message;
use weir_consumer::settings::nearest;

/// A larger audit log is put aside, over the one put aside before.
const AUDIT_MAX: u64 = 10 << 20;

/// Something to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Action {
    /// Deliver nothing to this consumer until it is resumed, also after a restart.
    Pause {
        /// Its name.
        consumer: String,
    },
    /// Deliver again.
    Resume {
        /// Its name.
        consumer: String,
    },
    /// Drop what waits for this consumer.
    Skip {
        /// Its name.
        consumer: String,
        /// Only what was received longer ago than so many seconds.
        older_than_seconds: Option<f64>,
    },
    /// Deliver settled messages of this consumer again.
    Replay {
        /// Its name.
        consumer: String,
        /// From where on.
        from: From,
    },
    /// Deliver dead letters again.
    Requeue {
        /// Which.
        filter: Filter,
    },
    /// Delete dead letters.
    Purge {
        /// Which.
        filter: Filter,
    },
    /// Write cursors and journal to the disk now.
    Flush,
    /// Stop the hub as SIGTERM does it.
    Drain,
    /// Log more, or less.
    LogLevel {
        /// How much.
        level: String,
    },
}

impl Action {
    /// The consumer that it is about, if it is about one.
    pub fn consumer(&self) -> Option<&str> {
        match self {
            Action::Pause { consumer }
            | Action::Resume { consumer }
            | Action::Skip { consumer, .. }
            | Action::Replay { consumer, .. } => Some(consumer),
            Action::Requeue { .. }
            | Action::Purge { .. }
            | Action::Flush
            | Action::Drain
            | Action::LogLevel { .. } => None,
        }
    }
}

/// Where a replay begins.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum From {
    /// At this sequence number.
    Sequence(u64),
    /// At the first message received within so many seconds.
    Seconds(f64),
}

/// What came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// How many messages or letters it concerns, where that is known.
    pub count: Option<u64>,
    /// The same for people.
    pub text: String,
}

impl Outcome {
    fn said(text: impl Into<String>) -> Self {
        Outcome {
            count: None,
            text: text.into(),
        }
    }

    fn counted(count: u64, what: &str) -> Self {
        Outcome {
            count: Some(count),
            text: format!("{count} {what}"),
        }
    }
}

/// The handles of a running hub.
pub struct Steering {
    pub(crate) data_dir: Option<Arc<DataDir>>,
    pub(crate) journal: Option<Arc<Journal>>,
    pub(crate) keeper: Option<Arc<Keeper>>,
    pub(crate) dead_letters: Option<Arc<DeadLetters>>,
    pub(crate) queues: Vec<(String, Arc<Queue>)>,
    /// Where it is said that the hub is to stop; it has room for one.
    pub(crate) drain: crossbeam_channel::Sender<()>,
}

impl Steering {
    /// Does it; `by` says who wanted it.
    ///
    /// # Errors
    /// Why it can't be done, and what to do about it. Nothing was done then.
    pub fn act(&self, action: &Action, by: &str) -> Result<Outcome, String> {
        let outcome = self.perform(action);
        if let Some(data_dir) = &self.data_dir {
            audit(data_dir.path(), action, by, &outcome);
        }
        outcome
    }

    fn perform(&self, action: &Action) -> Result<Outcome, String> {
        match action {
            Action::Pause { consumer } | Action::Resume { consumer } => {
                let paused = matches!(action, Action::Pause { .. });
                self.queue(consumer)?.pause(paused);
                let done = if paused { "paused" } else { "resumed" };
                match self.keeper.as_ref().map(|keeper| keeper.save(false)) {
                    Some(Ok(())) => Ok(Outcome::said(format!("{consumer} is {done}"))),
                    Some(Err(why)) => Ok(Outcome::said(format!(
                        "{consumer} is {done}, but that may not survive a restart: {why}"
                    ))),
                    None => Ok(Outcome::said(format!(
                        "{consumer} is {done}, until the hub stops: it has no journal"
                    ))),
                }
            }
            Action::Skip {
                consumer,
                older_than_seconds,
            } => {
                let queue = self.queue(consumer)?;
                let journal = self.journal()?;
                let below = match older_than_seconds {
                    None => journal.end(),
                    Some(seconds) => first_since(journal, *seconds)?,
                };
                queue.skip(below);
                Ok(Outcome::said(format!(
                    "{consumer} skips what waits before sequence number {below}; dropped \
                     {{reason=\"skipped\"}} says how many messages that were"
                )))
            }
            Action::Replay { consumer, from } => {
                let queue = self.queue(consumer)?;
                let from = position(self.journal()?, *from)?;
                let count = queue.replay(from)?;
                let what = format!("messages from sequence number {from} on come again");
                Ok(Outcome::counted(count, &what))
            }
            Action::Requeue { filter } => {
                let count = self.dead_letters()?.requeue(filter)?;
                self.queues
                    .iter()
                    .for_each(|(_, queue)| queue.announce_letters());
                Ok(Outcome::counted(
                    count,
                    "dead letters will be delivered again",
                ))
            }
            Action::Purge { filter } => {
                let count = self.dead_letters()?.purge(filter)?;
                Ok(Outcome::counted(count, "dead letters deleted"))
            }
            Action::Flush => {
                self.journal()?.sync_now()?;
                self.keeper
                    .as_ref()
                    .map_or(Ok(()), |keeper| keeper.save(false))?;
                Ok(Outcome::said("journal and cursors are on the disk"))
            }
            Action::Drain => match self.drain.try_send(()) {
                Ok(()) => Ok(Outcome::said(
                    "the hub takes no more messages in, and ends when its queues are empty or \
                     hub.stop_deadline has passed",
                )),
                Err(_) => Err("the hub is already told to stop".into()),
            },
            Action::LogLevel { level } => {
                logging::set_level(level)?;
                Ok(Outcome::said(format!("the log level is {level}")))
            }
        }
    }

    /// Feeds messages to a consumer again, all of them or, while too much waits, none.
    ///
    /// Its topics are not asked: whoever feeds it has chosen what.
    ///
    /// # Errors
    /// Why it can't be done, and what to do about it. Nothing was taken then.
    pub fn feed(&self, consumer: &str, messages: &[Message], by: &str) -> Result<Fed, String> {
        let feed = || {
            let queue = self.queue(consumer)?;
            let fed = self.dead_letters()?.feed(consumer, messages)?;
            if fed.taken {
                queue.announce_letters();
            }
            Ok(fed)
        };
        let outcome = feed();
        if let Some(data_dir) = &self.data_dir {
            audit_fed(data_dir.path(), consumer, messages, by, &outcome);
        }
        outcome
    }

    /// Whether there is a consumer of this name.
    ///
    /// # Errors
    /// That there is no such consumer, and which there are.
    pub fn known(&self, consumer: &str) -> Result<(), String> {
        self.queue(consumer).map(drop)
    }

    fn queue(&self, consumer: &str) -> Result<&Queue, String> {
        let queue = self.queues.iter().find(|(name, _)| name == consumer);
        queue
            .map(|(_, queue)| &**queue)
            .ok_or_else(|| unknown(consumer, self.queues.iter().map(|(name, _)| name.as_str())))
    }

    fn journal(&self) -> Result<&Arc<Journal>, String> {
        self.journal.as_ref().ok_or_else(|| NO_JOURNAL.to_owned())
    }

    fn dead_letters(&self) -> Result<&DeadLetters, String> {
        self.dead_letters
            .as_deref()
            .ok_or_else(|| NO_JOURNAL.to_owned())
    }
}

const NO_JOURNAL: &str = "this hub keeps nothing on disk (journal.enabled = false)";

fn unknown<'n>(consumer: &str, names: impl Iterator<Item = &'n str> + Clone) -> String {
    let instead = match nearest(consumer, names.clone()) {
        Some(near) => format!("did you mean {near:?}?"),
        None if names.clone().next().is_none() => "no hub has been started here yet".into(),
        None => format!("known: {}", names.collect::<Vec<_>>().join(", ")),
    };
    format!("there is no consumer {consumer:?}; {instead}")
}

fn first_since(journal: &Journal, seconds: f64) -> Result<u64, String> {
    let ago = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    let since = now_ns().saturating_sub(u64::try_from(ago.as_nanos()).unwrap_or(u64::MAX));
    journal
        .first_since(since)
        .map_err(|error| format!("can't read the journal: {error}"))
}

fn position(journal: &Journal, from: From) -> Result<u64, String> {
    match from {
        From::Sequence(number) => Ok(number.max(journal.begin())),
        From::Seconds(seconds) => first_since(journal, seconds),
    }
}

/// Does it to the data of a hub that does not run.
///
/// # Errors
/// Why it can't be done, and what to do about it.
pub fn offline(
    data_dir: &DataDir,
    settings: (&journal::Settings, &dead_letters::Settings),
    action: &Action,
    by: &str,
) -> Result<Outcome, String> {
    let outcome = offline_perform(data_dir.path(), settings, action);
    audit(data_dir.path(), action, by, &outcome);
    outcome
}

/// Feeds messages to a consumer of a hub that does not run; they are delivered when it is started.
///
/// # Errors
/// Why it can't be done, and what to do about it. Nothing was taken then.
pub fn offline_feed(
    data_dir: &DataDir,
    letters: &dead_letters::Settings,
    consumer: &str,
    messages: &[Message],
    by: &str,
) -> Result<Fed, String> {
    let path = data_dir.path();
    let feed = || {
        let cursors = Cursors::load(&data_dir::journal(path))?.cursors;
        let consumers = cursors.unwrap_or_default().consumers;
        if !consumers.contains_key(consumer) {
            return Err(unknown(consumer, consumers.keys().map(String::as_str)));
        }
        DeadLetters::open(&path.join(dead_letters::FILE), letters)?.feed(consumer, messages)
    };
    let outcome = feed();
    audit_fed(path, consumer, messages, by, &outcome);
    outcome
}

/// Leaves a line on a feed that was taken, or refused for good. Whoever feeds much does so portion by
/// portion, and is told the sum: nobody wants each of them in the log.
fn audit_fed(
    data_dir: &Path,
    consumer: &str,
    messages: &[Message],
    by: &str,
    outcome: &Result<Fed, String>,
) {
    let count = messages.len();
    let outcome = match outcome {
        // The same comes once more, and again, until there is room.
        Ok(Fed { taken: false, .. }) => return,
        Ok(_) => Ok(Outcome::counted(
            count as u64,
            "messages will be delivered again",
        )),
        Err(why) => Err(why.clone()),
    };
    let action = serde_json::json!({ "feed": { "consumer": consumer, "messages": count } });
    match outcome {
        Ok(Outcome { text, .. }) => {
            debug!(by, %action, outcome = text, "operator");
            record(data_dir, &action, by, true, &text);
        }
        refused => audit(data_dir, &action, by, &refused),
    }
}

fn offline_perform(
    data_dir: &Path,
    (settings, letters): (&journal::Settings, &dead_letters::Settings),
    action: &Action,
) -> Result<Outcome, String> {
    let dir = data_dir::journal(data_dir);
    let store = || DeadLetters::open(&data_dir.join(dead_letters::FILE), letters);
    let consumer = match action {
        Action::Requeue { filter } => {
            let count = store()?.requeue(filter)?;
            let what = "dead letters will be delivered again when the hub is started";
            return Ok(Outcome::counted(count, what));
        }
        Action::Purge { filter } => {
            return Ok(Outcome::counted(
                store()?.purge(filter)?,
                "dead letters deleted",
            ));
        }
        Action::Flush => return Ok(Outcome::said("the hub does not run: all is on the disk")),
        Action::Drain => return Ok(Outcome::said("the hub does not run")),
        Action::LogLevel { .. } => {
            return Err("the hub does not run; start it with --log-level".into());
        }
        Action::Pause { consumer }
        | Action::Resume { consumer }
        | Action::Skip { consumer, .. }
        | Action::Replay { consumer, .. } => consumer,
    };
    let loaded = Cursors::load(&dir)?;
    let mut cursors = loaded.cursors.unwrap_or_default();
    let next = cursors.next_number();
    let names: Vec<String> = cursors.consumers.keys().cloned().collect();
    let Some(cursor) = cursors.consumers.get_mut(consumer) else {
        let names = names.iter().map(String::as_str);
        return Err(unknown(consumer, names));
    };
    let before = cursor.position;
    let text = match action {
        Action::Pause { .. } => {
            cursor.paused = true;
            format!("{consumer} will be paused when the hub is started")
        }
        Action::Resume { .. } => {
            cursor.paused = false;
            format!("{consumer} will not be paused when the hub is started")
        }
        _ => {
            let (journal, _) = Journal::open(&dir, settings, next)?;
            let to = match action {
                Action::Replay { from, .. } => position(&journal, *from),
                Action::Skip {
                    older_than_seconds: Some(seconds),
                    ..
                } => first_since(&journal, *seconds),
                _ => Ok(journal.end()),
            };
            journal.close()?;
            let to = to?;
            let replay = matches!(action, Action::Replay { .. });
            if replay && to >= before {
                return Err(format!(
                    "there is nothing to replay: {consumer} has got as far as sequence number \
                     {before}, and what follows will be delivered anyway"
                ));
            }
            if replay {
                cursor.replayed_below = cursor.replayed_below.max(before);
            } else if to <= before {
                return Ok(Outcome::said(format!(
                    "nothing so old waits for {consumer}"
                )));
            }
            cursor.position = to;
            if to >= cursor.replayed_below {
                cursor.replayed_below = 0;
            }
            format!("{consumer} goes on at sequence number {to} instead of {before}")
        }
    };
    cursors
        .save(&dir)
        .map_err(|error| format!("can't write the cursors in {}: {error}", dir.display()))?;
    Ok(Outcome::said(text))
}

/// Leaves a line on what was done, or refused.
fn audit(data_dir: &Path, action: &impl Serialize, by: &str, outcome: &Result<Outcome, String>) {
    let (done, text) = match outcome {
        Ok(outcome) => (true, &outcome.text),
        Err(why) => (false, why),
    };
    info!(by, action = %serde_json::json!(action), done, outcome = text, "operator");
    record(data_dir, action, by, done, text);
}

/// Writes a line to the audit log.
fn record(data_dir: &Path, action: &impl Serialize, by: &str, done: bool, text: &str) {
    let line = serde_json::json!({
        "at": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        "by": by, "action": action, "done": done, "outcome": text,
    });
    let path = data_dir.join("audit.log");
    if let Err(error) = append(&path, &line.to_string()) {
        warn!(path = %path.display(), %error, "can't write the audit log");
    }
}

fn append(path: &PathBuf, line: &str) -> std::io::Result<()> {
    if fs::metadata(path).is_ok_and(|file| file.len() > AUDIT_MAX) {
        fs::rename(path, path.with_extension("log.1"))?;
    }
    let mut file = File::options().create(true).append(true).open(path)?;
    // One write, so that the lines of two commands don't mix.
    file.write_all(format!("{line}\n").as_bytes())
}
