//! Dead letters: messages set aside after their attempts, with the reason, in a file beside the
//! journal that other processes can read while the hub writes.
//!
//! What it promises:
//!
//! 1. *Bounded.* The letters take at most `keep.bytes`, unless a single one is larger, which is
//!    then kept alone; the oldest go first, and each that goes is counted.
//! 2. *All or nothing.* A change that fails leaves the file and the figures as they were.
//! 3. *The figures are the file's.* The summary is what a fresh query would say.
//! 4. *An id names one letter for ever.* None is used a second time.
//! 5. *Nothing foreign is touched.* A file of something else, of a newer weir, or a damaged one is
//!    refused with what to do about it, and not changed.
//! 6. *Exact.* Topic and payload come back byte for byte.
//! 7. *Fed is not lost.* What is fed from an archive displaces no letter: it is refused while there
//!    is no room or too much waits.
//!
//! It leaves to others: when a message is one for here, and what a chain of causes is
//! ([`runner`](crate::runner)); to look at the clock for [`DeadLetters::expire`], and to have only
//! one process write at a time: the figures of the hub know only what the hub did.
//!
//! The file is an SQLite database with a write-ahead log. Every change is a transaction of its
//! own, without waiting for the disk: it survives the end of the process, and after
//! [`DeadLetters::sync`] the end of the power. `application_id` is the bytes "weir",
//! `user_version` the version of the schema.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rusqlite::TransactionBehavior::Immediate;
use rusqlite::types::{Type, Value};
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension, Params, Row, Transaction, params,
    params_from_iter,
};
use serde::{Deserialize, Serialize, Serializer};
use weir_consumer::Message;
use weir_consumer::settings::{Mistake, Settings as Tree, duration, size};

use crate::router::prefix;
use crate::stats::now_ns;

/// The file's name in the hub's `data_dir`.
pub const FILE: &str = "dead-letters.db";

/// At most so many different causes are told apart in one letter.
pub const CAUSES_MAX: usize = 16;
/// At most so many characters of a cause are kept.
pub const CAUSE_CHARS_MAX: usize = 1000;
const CUT: &str = " (cut)";
const OTHERS: &str = "others, the last: ";

/// What a letter takes beside its texts and its payload: the numbers, the entries in the indices,
/// and what SQLite leaves unused in its pages.
const OVERHEAD: u64 = 256;

const APPLICATION_ID: i32 = i32::from_be_bytes(*b"weir");
const USER_VERSION: i32 = 1;

// AUTOINCREMENT: without it the id of the last letter would be given anew when that is deleted.
// Large columns last: SQLite reads the ones before them without those.
// The first index has all that the summary needs, so a start does not read the letters.
const SCHEMA: &str = "
    CREATE TABLE letters (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        consumer TEXT NOT NULL,
        topic TEXT NOT NULL,
        seq INTEGER NOT NULL,
        received_ns INTEGER NOT NULL,
        reason TEXT NOT NULL,
        attempts INTEGER NOT NULL,
        first_failed_ns INTEGER NOT NULL,
        last_failed_ns INTEGER NOT NULL,
        set_aside_ns INTEGER NOT NULL,
        requeued INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        causes TEXT NOT NULL,
        payload BLOB NOT NULL
    ) STRICT;
    CREATE INDEX figures ON letters (consumer, set_aside_ns, bytes, requeued);
    CREATE INDEX requeued ON letters (consumer) WHERE requeued;
";

const COLUMNS: &str = "id, consumer, topic, seq, received_ns, reason, attempts, first_failed_ns, \
                       last_failed_ns, set_aside_ns, requeued, causes, payload";

const INSERT: &str = "
    INSERT INTO letters (consumer, topic, seq, received_ns, reason, attempts, first_failed_ns,
        last_failed_ns, set_aside_ns, requeued, bytes, causes, payload)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13)";

/// The reason of a letter that was fed from an archive and has not failed.
pub const REPLAY: &str = "replay";
/// What waits of the messages that a consumer was fed takes at most this part of `keep.bytes`.
const FED_PART: u64 = 4;

/// Letters that one transaction deletes or marks, so that a large purge neither fills the
/// write-ahead log nor holds up a consumer whose message is to be set aside.
const CHUNK: u64 = if cfg!(test) { 3 } else { 1000 };
/// A page of a list ends after so many bytes, though it may have more letters.
const PAGE_BYTES: usize = if cfg!(test) { 4096 } else { 64 << 20 };
/// The write-ahead log is cut to this size when it begins anew.
const LOG_BYTES: i64 = 16 << 20;
/// How long to wait for another writer. Tests that lock the file on purpose don't want to wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 5 });

/// The `[dead_letters]` section.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// How much is kept.
    pub keep: Keep,
}

/// Bounds; what is over one of them is deleted, oldest first.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// At most so many bytes in all letters.
    #[serde(deserialize_with = "size")]
    pub bytes: usize,
    /// For so long after it was set aside.
    #[serde(deserialize_with = "duration")]
    pub age: Duration,
}

impl Default for Keep {
    fn default() -> Self {
        Keep {
            bytes: 1 << 30,
            age: Duration::from_secs(30 * 24 * 3600),
        }
    }
}

impl Settings {
    /// Reads the section.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(section: &Tree) -> Result<Self, Vec<Mistake>> {
        let (settings, mut mistakes) = section.parse_most::<Settings>();
        let Some(settings) = settings else {
            return Err(mistakes);
        };
        if settings.keep.bytes == 0 {
            mistakes.push(section.mistake_at("keep.bytes", "expected room for at least 1 byte"));
        }
        if settings.keep.age.is_zero() {
            mistakes.push(section.mistake_at("keep.age", "expected more than no time"));
        }
        match mistakes.is_empty() {
            true => Ok(settings),
            false => Err(mistakes),
        }
    }
}

/// One way in which a message failed, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// What the failure said.
    pub text: String,
    /// How often it was said.
    pub times: u32,
}

impl Cause {
    /// Adds failures to a chain of causes, within its bounds.
    ///
    /// Each different text stands in it once, in order of first appearance. A long one is cut, and
    /// says so. When there are too many, the last stands for all others, with the latest text.
    ///
    /// ```
    /// use weir::dead_letters::Cause;
    ///
    /// let mut chain = Vec::new();
    /// for text in ["refused", "refused", "timed out"] {
    ///     Cause::add(&mut chain, text, 1);
    /// }
    /// assert_eq!((&*chain[0].text, chain[0].times), ("refused", 2));
    /// assert_eq!(chain[1].text, "timed out");
    /// ```
    pub fn add(chain: &mut Vec<Cause>, text: &str, times: u32) {
        let text = cut(text);
        if let Some(same) = chain.iter_mut().find(|cause| cause.text == text) {
            same.times = same.times.saturating_add(times);
        } else if chain.len() < CAUSES_MAX {
            let text = text.into_owned();
            chain.push(Cause { text, times });
        } else if let Some(last) = chain.last_mut() {
            let text = text.strip_prefix(OTHERS).unwrap_or(&text);
            last.text = cut(&format!("{OTHERS}{text}")).into_owned();
            last.times = last.times.saturating_add(times);
        }
    }
}

/// The text within [`CAUSE_CHARS_MAX`]; one that was cut is not cut again.
fn cut(text: &str) -> Cow<'_, str> {
    match text.char_indices().nth(CAUSE_CHARS_MAX) {
        Some((end, _)) if &text[end..] != CUT => format!("{}{CUT}", &text[..end]).into(),
        _ => text.into(),
    }
}

/// A message to be set aside.
#[derive(Clone, Copy, Debug)]
pub struct New<'m> {
    /// The consumer that did not consume it.
    pub consumer: &'m str,
    /// The message.
    pub message: &'m Message,
    /// Why it is here: `attempts`, `dead_letter` or `crash`.
    pub reason: &'m str,
    /// What its failures said.
    pub causes: &'m [Cause],
    /// How often it was delivered.
    pub attempts: u32,
    /// When it failed for the first time, in nanoseconds since 1970.
    pub first_failed_ns: u64,
    /// When it failed for the last time.
    pub last_failed_ns: u64,
}

/// A message that was set aside. Times are nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Letter {
    /// Names it; a later letter has a higher one.
    pub id: i64,
    /// The consumer that did not consume it.
    pub consumer: String,
    /// Its topic.
    pub topic: String,
    /// Its payload: in JSON a text, or `{"hex": ...}` when it is none.
    #[serde(serialize_with = "text_or_hex")]
    pub payload: Bytes,
    /// Its number in the order of intake.
    pub seq: u64,
    /// When the hub took it in.
    pub received_ns: u64,
    /// Why it is here: `attempts`, `dead_letter`, `crash` or `replay`.
    pub reason: String,
    /// What its failures said, each different text once, in order of first appearance.
    pub causes: Vec<Cause>,
    /// How often it was delivered.
    pub attempts: u32,
    /// When it failed for the first time.
    pub first_failed_ns: u64,
    /// When it failed for the last time.
    pub last_failed_ns: u64,
    /// When it came here, for the first time.
    pub set_aside_ns: u64,
    /// Whether it is to be delivered again.
    pub requeued: bool,
}

/// Two digits for each byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text_or_hex<S: Serializer>(payload: &Bytes, to: S) -> Result<S::Ok, S::Error> {
    match std::str::from_utf8(payload) {
        Ok(text) => to.serialize_str(text),
        Err(_) => to.collect_map([("hex", hex(payload))]),
    }
}

/// Which letters are meant: those to which all that is given applies.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// Those with these ids; any, if empty.
    pub ids: Vec<i64>,
    /// Those of this consumer.
    pub consumer: Option<String>,
    /// Those whose topic begins so; a `*` is ignored.
    pub topic: Option<String>,
    /// Those that are here for this reason.
    pub reason: Option<String>,
    /// Those with a cause that contains this text.
    pub cause: Option<String>,
    /// Those set aside before this time, in nanoseconds since 1970.
    pub before_ns: Option<u64>,
    /// Those set aside at this time or later.
    pub since_ns: Option<u64>,
}

impl Filter {
    /// The condition in SQL, and the values of its parameters.
    fn condition(&self) -> (String, Vec<Value>) {
        let mut sql = String::from("TRUE");
        let mut values = Vec::new();
        let mut and = |condition: &str, value: Value| {
            sql.push_str(" AND ");
            sql.push_str(condition);
            values.push(value);
        };
        if !self.ids.is_empty() {
            // As one value, because the number of parameters is limited.
            let ids: Vec<String> = self.ids.iter().map(i64::to_string).collect();
            and(
                "id IN (SELECT value FROM json_each(?))",
                format!("[{}]", ids.join(",")).into(),
            );
        }
        if let Some(consumer) = &self.consumer {
            and("consumer = ?", consumer.clone().into());
        }
        if let Some(topic) = &self.topic {
            // As bytes: LIKE ignores case, and the functions on texts stop at a NUL.
            let prefix = prefix(topic).into_bytes();
            let condition = format!("substr(CAST(topic AS BLOB), 1, {}) = ?", prefix.len());
            and(&condition, prefix.into());
        }
        if let Some(reason) = &self.reason {
            and("reason = ?", reason.clone().into());
        }
        if let Some(cause) = &self.cause {
            and(
                "EXISTS (SELECT 1 FROM json_each(causes) WHERE instr(value ->> 'text', ?))",
                cause.clone().into(),
            );
        }
        if let Some(before) = self.before_ns {
            and("set_aside_ns < ?", integer(before).into());
        }
        if let Some(since) = self.since_ns {
            and("set_aside_ns >= ?", integer(since).into());
        }
        (sql, values)
    }
}

/// SQLite's integers are signed; as times theirs end in the year 2262.
fn integer(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn number(row: &Row<'_>, column: &str) -> rusqlite::Result<u64> {
    Ok(u64::try_from(row.get::<_, i64>(column)?).unwrap_or(0))
}

fn small(row: &Row<'_>, column: &str) -> rusqlite::Result<u32> {
    Ok(u32::try_from(number(row, column)?).unwrap_or(u32::MAX))
}

fn causes(row: &Row<'_>) -> rusqlite::Result<Vec<Cause>> {
    serde_json::from_str(row.get_ref("causes")?.as_str()?)
        .map_err(|error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error)))
}

fn letter(row: &Row<'_>) -> rusqlite::Result<Letter> {
    Ok(Letter {
        id: row.get("id")?,
        consumer: row.get("consumer")?,
        topic: row.get("topic")?,
        payload: row.get::<_, Vec<u8>>("payload")?.into(),
        seq: number(row, "seq")?,
        received_ns: number(row, "received_ns")?,
        reason: row.get("reason")?,
        causes: causes(row)?,
        attempts: small(row, "attempts")?,
        first_failed_ns: number(row, "first_failed_ns")?,
        last_failed_ns: number(row, "last_failed_ns")?,
        set_aside_ns: number(row, "set_aside_ns")?,
        requeued: row.get("requeued")?,
    })
}

/// A letter as it is shown among many: with the beginning of its payload.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Glance {
    /// Names it; a later letter has a higher one.
    pub id: i64,
    /// Its number in the order of intake.
    pub seq: u64,
    /// Its topic.
    pub topic: String,
    /// Why it is here: `attempts`, `dead_letter`, `crash` or `replay`.
    pub reason: String,
    /// How often it was delivered.
    pub attempts: u32,
    /// When it came here, in seconds since 1970.
    pub set_aside_at: f64,
    /// Whether it is to be delivered again.
    pub requeued: bool,
    /// What its failures said.
    pub causes: Vec<Cause>,
    /// How large the payload is.
    pub payload_bytes: u64,
    /// Its beginning: as text, or two digits for each byte.
    pub payload: String,
    /// `text` or `hex`.
    pub payload_is: &'static str,
}

fn glance(row: &Row<'_>, payload_max: usize) -> rusqlite::Result<Glance> {
    let payload_bytes = number(row, "payload_bytes")?;
    let beginning = row.get_ref("beginning")?.as_blob()?;
    // A character that the cut goes through is left out, and makes no text into bytes.
    let (payload, payload_is) = match std::str::from_utf8(beginning) {
        Ok(text) => (text.to_owned(), "text"),
        Err(error) if error.error_len().is_none() && payload_bytes > payload_max as u64 => {
            let (text, _) = beginning.split_at(error.valid_up_to());
            (String::from_utf8_lossy(text).into_owned(), "text")
        }
        Err(_) => (hex(beginning), "hex"),
    };
    Ok(Glance {
        id: row.get("id")?,
        seq: number(row, "seq")?,
        topic: row.get("topic")?,
        reason: row.get("reason")?,
        attempts: small(row, "attempts")?,
        set_aside_at: Duration::from_nanos(number(row, "set_aside_ns")?).as_secs_f64(),
        requeued: row.get("requeued")?,
        causes: causes(row)?,
        payload_bytes,
        payload,
        payload_is,
    })
}

/// The dead letters of one consumer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many there are.
    pub letters: u64,
    /// The bytes that they take.
    pub bytes: u64,
    /// When the oldest was set aside, in nanoseconds since 1970.
    pub oldest_ns: u64,
    /// How many of them are to be delivered again.
    pub requeued: u64,
    /// The bytes that those take.
    pub requeued_bytes: u64,
}

impl Summary {
    /// A letter of so many bytes is to be delivered again.
    fn mark(&mut self, bytes: u64) {
        self.requeued += 1;
        self.requeued_bytes += bytes;
    }

    /// It is no more.
    fn unmark(&mut self, bytes: u64) {
        self.requeued = self.requeued.saturating_sub(1);
        self.requeued_bytes = self.requeued_bytes.saturating_sub(bytes);
    }
}

/// What came of messages that were to be fed to a consumer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fed {
    /// Whether they were taken: all of them, or none while too much waits.
    pub taken: bool,
    /// How many letters of the consumer wait to be delivered again.
    pub waiting: u64,
}

/// All that is known without asking the file.
#[derive(Clone, Debug, Default)]
struct Figures {
    consumers: BTreeMap<String, Summary>,
    /// Letters deleted by the bounds.
    expired: u64,
}

impl Figures {
    fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let mut query = connection.prepare(
            "SELECT consumer, count(*) AS letters, sum(bytes) AS bytes,
                 min(set_aside_ns) AS oldest_ns, sum(requeued) AS requeued,
                 sum(bytes * requeued) AS requeued_bytes
             FROM letters GROUP BY consumer",
        )?;
        let consumers = query.query_map((), |row| {
            let summary = Summary {
                letters: number(row, "letters")?,
                bytes: number(row, "bytes")?,
                oldest_ns: number(row, "oldest_ns")?,
                requeued: number(row, "requeued")?,
                requeued_bytes: number(row, "requeued_bytes")?,
            };
            Ok((row.get("consumer")?, summary))
        })?;
        Ok(Figures {
            consumers: consumers.collect::<Result<_, _>>()?,
            expired: 0,
        })
    }

    fn letters(&self) -> u64 {
        self.consumers.values().map(|summary| summary.letters).sum()
    }

    fn bytes(&self) -> u64 {
        self.consumers.values().map(|summary| summary.bytes).sum()
    }

    fn add(&mut self, consumer: &str, bytes: u64, set_aside_ns: u64) {
        let summary = self.consumers.entry(consumer.into()).or_default();
        summary.oldest_ns = match summary.letters {
            0 => set_aside_ns,
            _ => summary.oldest_ns.min(set_aside_ns),
        };
        summary.letters += 1;
        summary.bytes += bytes;
    }

    /// Deletes the letters whose ids this query answers, and says how many there were.
    fn delete(
        &mut self,
        transaction: &Transaction<'_>,
        ids: &str,
        parameters: impl Params,
    ) -> rusqlite::Result<u64> {
        let mut delete = transaction.prepare_cached(&format!(
            "DELETE FROM letters WHERE id IN ({ids}) RETURNING consumer, bytes, requeued"
        ))?;
        let mut deleted = delete.query(parameters)?;
        let mut touched = BTreeSet::new();
        let mut count = 0;
        while let Some(row) = deleted.next()? {
            let consumer: String = row.get("consumer")?;
            if let Some(summary) = self.consumers.get_mut(&consumer) {
                summary.letters = summary.letters.saturating_sub(1);
                summary.bytes = summary.bytes.saturating_sub(number(row, "bytes")?);
                if row.get("requeued")? {
                    summary.unmark(number(row, "bytes")?);
                }
            }
            touched.insert(consumer);
            count += 1;
        }
        let mut oldest = transaction
            .prepare_cached("SELECT min(set_aside_ns) AS oldest FROM letters WHERE consumer = ?")?;
        for consumer in touched {
            let found: Option<i64> = oldest.query_row([&consumer], |row| row.get("oldest"))?;
            match (found, self.consumers.get_mut(&consumer)) {
                (Some(oldest_ns), Some(summary)) => {
                    summary.oldest_ns = u64::try_from(oldest_ns).unwrap_or(0);
                }
                _ => drop(self.consumers.remove(&consumer)),
            }
        }
        Ok(count)
    }

    /// Deletes the oldest letters but this one until there is room for so many bytes more.
    fn make_room(
        &mut self,
        transaction: &Transaction<'_>,
        keep: u64,
        bytes: u64,
        but: i64,
        limit: u64,
    ) -> rusqlite::Result<u64> {
        // A letter that is larger than all that may be kept is kept alone.
        let rest = u64::from(bytes == 0);
        let mut deleted = 0;
        while deleted < limit && self.letters() > rest && self.bytes() + bytes > keep {
            let oldest = "SELECT id FROM letters WHERE id != ? ORDER BY id LIMIT 1";
            match self.delete(transaction, oldest, [but])? {
                0 => break,
                count => deleted += count,
            }
        }
        self.expired += deleted;
        Ok(deleted)
    }
}

/// What a letter takes.
fn bytes_of(letter: &New<'_>, causes: &str) -> u64 {
    let message = letter.message;
    let texts = [letter.consumer, letter.reason, message.topic(), causes];
    let texts: usize = texts.into_iter().map(str::len).sum();
    (texts + message.payload().len()) as u64 + OVERHEAD
}

fn insert(
    transaction: &Transaction<'_>,
    letter: &New<'_>,
    causes: &str,
    set_aside_ns: u64,
    requeued: bool,
) -> rusqlite::Result<()> {
    let message = letter.message;
    transaction.prepare_cached(INSERT)?.execute(params![
        letter.consumer,
        message.topic(),
        integer(message.seq()),
        integer(message.received_ns()),
        letter.reason,
        letter.attempts,
        integer(letter.first_failed_ns),
        integer(letter.last_failed_ns),
        integer(set_aside_ns),
        requeued,
        integer(bytes_of(letter, causes)),
        causes,
        &message.payload()[..],
    ])?;
    Ok(())
}

/// No letter: ids begin at 1.
const NONE: i64 = 0;

struct Store {
    connection: Connection,
    /// SQLite's count of changes at the last sync.
    synced: Option<u64>,
    /// What a sync said that the disk failed.
    spoilt: Option<String>,
}

/// The dead letters of a hub.
///
/// ```
/// use weir::dead_letters::{Cause, DeadLetters, Filter, New, Settings};
/// use weir_consumer::Message;
///
/// let dir = tempfile::tempdir().unwrap();
/// let dead = DeadLetters::open(&dir.path().join("dead-letters.db"), &Settings::default())?;
/// let message = Message::at_ns("org.example.a".into(), "hello".into(), 0, 1);
/// let id = dead.set_aside(&New {
///     consumer: "mail",
///     message: &message,
///     reason: "attempts",
///     causes: &[Cause { text: "connection refused".into(), times: 5 }],
///     attempts: 5,
///     first_failed_ns: 1,
///     last_failed_ns: 2,
/// })?;
/// let mail = Filter { consumer: Some("mail".into()), ..Filter::default() };
/// assert_eq!(dead.list(&mail, 0, 10)?[0].payload, "hello");
///
/// assert_eq!(dead.requeue(&mail)?, 1); // it is to be delivered again,
/// assert_eq!(dead.requeued("mail", 0, 10)?[0].id, id); // the hub does so,
/// dead.settled(id)?; // and it was consumed
/// assert_eq!(dead.count(&mail)?, 0);
/// # Ok::<(), String>(())
/// ```
pub struct DeadLetters {
    path: PathBuf,
    keep: Keep,
    store: Mutex<Store>,
    /// Apart from the store, so that who reads them never waits for the disk. Changed only by who
    /// holds the store.
    figures: Mutex<Figures>,
}

impl DeadLetters {
    /// Opens the file, and makes it when there is none or an empty one.
    ///
    /// What is over the bounds stays until something is set aside or [`DeadLetters::expire`] is
    /// called.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub fn open(path: &Path, settings: &Settings) -> Result<Self, String> {
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .map_err(|error| format!("can't make {}: {error}", directory.display()))?;
        }
        let explain = |error| explain(path, &error);
        // Without SQLITE_OPEN_URI: a path is a path, whatever it begins with.
        let mut connection = Connection::open_with_flags(
            path,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(explain)?;
        connection.busy_timeout(BUSY_TIMEOUT).map_err(explain)?;
        // Before anything else, because the settings below change a file.
        if !recognise(&connection, path)? {
            make(&mut connection).map_err(explain)?;
            recognise(&connection, path)?;
        }
        let mode: String = connection
            .pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))
            .map_err(explain)?;
        if mode != "wal" {
            return Err(format!(
                "{}: SQLite can't keep a write-ahead log here (journal mode {mode}); is this a \
                 network file system? put hub.data_dir on a local one",
                path.display()
            ));
        }
        (connection.pragma_update(None, "synchronous", "normal")).map_err(explain)?;
        connection
            .pragma_update_and_check(None, "journal_size_limit", LOG_BYTES, |_| Ok(()))
            .map_err(explain)?;
        Self::of(path, &settings.keep, connection)
    }

    /// Opens what another process may have open, for reading; none if there is no file.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub fn read(path: &Path) -> Result<Option<Self>, String> {
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(error) => return Err(format!("can't look at {}: {error}", path.display())),
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection =
            Connection::open_with_flags(path, flags).map_err(|error| explain(path, &error))?;
        connection
            .busy_timeout(BUSY_TIMEOUT)
            .map_err(|error| explain(path, &error))?;
        match recognise(&connection, path)? {
            true => Self::of(path, &Keep::default(), connection).map(Some),
            false => Ok(None),
        }
    }

    fn of(path: &Path, keep: &Keep, connection: Connection) -> Result<Self, String> {
        let figures = Figures::read(&connection).map_err(|error| explain(path, &error))?;
        connection.set_prepared_statement_cache_capacity(32);
        Ok(DeadLetters {
            path: path.to_owned(),
            keep: keep.clone(),
            store: Mutex::new(Store {
                connection,
                // What a process before this one wrote is not known to be on the disk.
                synced: None,
                spoilt: None,
            }),
            figures: Mutex::new(figures),
        })
    }

    /// Sets a message aside, and answers its id. When there is no room, the oldest letters expire.
    ///
    /// # Errors
    /// Why it could not be written; nothing has changed then, and it can be tried again.
    pub fn set_aside(&self, letter: &New<'_>) -> Result<i64, String> {
        self.set_aside_at(letter, now_ns())
    }

    fn set_aside_at(&self, letter: &New<'_>, set_aside_ns: u64) -> Result<i64, String> {
        let causes = chain(letter.causes);
        let bytes = bytes_of(letter, &causes);
        self.change(|transaction, figures| {
            // First, because what is deleted is room in the file for what comes.
            figures.make_room(transaction, self.keep_bytes(), bytes, NONE, u64::MAX)?;
            insert(transaction, letter, &causes, set_aside_ns, false)?;
            figures.add(letter.consumer, bytes, set_aside_ns);
            Ok(transaction.last_insert_rowid())
        })
    }

    /// Takes messages that are to be delivered to a consumer once more, all of them or none.
    ///
    /// None while so much waits for that consumer that more could displace other letters: it can be
    /// tried again when some of that has been delivered.
    ///
    /// # Errors
    /// Why they could not be written, or that there will be no room for them.
    pub fn feed(&self, consumer: &str, messages: &[Message]) -> Result<Fed, String> {
        let now = now_ns();
        let letters = messages.iter().map(|message| New {
            consumer,
            message,
            reason: REPLAY,
            causes: &[],
            attempts: 0,
            first_failed_ns: now,
            last_failed_ns: now,
        });
        let causes = chain(&[]);
        let bytes: u64 = (letters.clone())
            .map(|letter| bytes_of(&letter, &causes))
            .sum();
        let keep = self.keep_bytes();
        let fed = self.change(|transaction, figures| {
            let known = figures.consumers.get(consumer).copied().unwrap_or_default();
            let waiting = known.requeued;
            let full = figures.bytes() + bytes > keep;
            if waiting > 0 && (full || known.requeued_bytes + bytes > keep / FED_PART) {
                let taken = false;
                return Ok(Some(Fed { taken, waiting }));
            }
            if full {
                return Ok(None);
            }
            for letter in letters {
                insert(transaction, &letter, &causes, now, true)?;
                let bytes = bytes_of(&letter, &causes);
                figures.add(consumer, bytes, now);
                if let Some(summary) = figures.consumers.get_mut(consumer) {
                    summary.mark(bytes);
                }
            }
            Ok(Some(Fed {
                taken: true,
                waiting: waiting + messages.len() as u64,
            }))
        })?;
        fed.ok_or_else(|| {
            format!(
                "{}: there is no room for {bytes} bytes more beside the dead letters; purge some, \
                 or set dead_letters.keep.bytes higher than {keep}",
                self.path.display()
            )
        })
    }

    /// The letters after this id, in the order in which they were set aside.
    ///
    /// A page may end before the limit, when its letters are large; an empty one is the end.
    ///
    /// # Errors
    /// Why the file could not be read.
    pub fn list(&self, filter: &Filter, after: i64, limit: usize) -> Result<Vec<Letter>, String> {
        let (condition, values) = filter.condition();
        self.page(&condition, values, after, limit)
    }

    /// The id after which a list has the newest letters, so many of them.
    ///
    /// # Errors
    /// Why the file could not be read.
    pub fn before_newest(&self, filter: &Filter, count: usize) -> Result<i64, String> {
        let (condition, mut values) = filter.condition();
        values.push(limited(count).into());
        let sql =
            format!("SELECT id FROM letters WHERE {condition} ORDER BY id DESC LIMIT 1 OFFSET ?");
        self.query(|connection| {
            let found = connection.query_row(&sql, params_from_iter(values), |row| row.get("id"));
            Ok(found.optional()?.unwrap_or(NONE))
        })
    }

    /// The newest letters of a consumer before this id, newest first, so many of them at most, with
    /// so much of their payloads; and whether there are more.
    ///
    /// # Errors
    /// Why the file could not be read.
    pub fn newest(
        &self,
        consumer: &str,
        before: i64,
        limit: usize,
        payload_max: usize,
    ) -> Result<(Vec<Glance>, bool), String> {
        let sql = "SELECT id, seq, topic, reason, attempts, set_aside_ns, requeued, causes,
                       length(payload) AS payload_bytes, substr(payload, 1, ?) AS beginning
                   FROM letters WHERE consumer = ? AND id < ? ORDER BY id DESC";
        self.query(|connection| {
            let mut query = connection.prepare_cached(sql)?;
            let mut rows = query.query(params![limited(payload_max), consumer, before])?;
            let (mut letters, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                // SQLite reads the whole of a payload to cut it.
                if letters.len() == limit || bytes >= PAGE_BYTES as u64 {
                    return Ok((letters, true));
                }
                let letter = glance(row, payload_max)?;
                bytes += letter.payload_bytes;
                letters.push(letter);
            }
            Ok((letters, false))
        })
    }

    /// One letter, if there is one with this id.
    ///
    /// # Errors
    /// Why the file could not be read.
    pub fn show(&self, id: i64) -> Result<Option<Letter>, String> {
        let letters = self.page("id = ?", vec![id.into()], NONE, 1)?;
        Ok(letters.into_iter().next())
    }

    /// How many letters there are.
    ///
    /// # Errors
    /// Why the file could not be read.
    pub fn count(&self, filter: &Filter) -> Result<u64, String> {
        let (condition, values) = filter.condition();
        let sql = format!("SELECT count(*) AS count FROM letters WHERE {condition}");
        self.query(|connection| {
            connection.query_row(&sql, params_from_iter(values), |row| number(row, "count"))
        })
    }

    /// Marks letters to be delivered again to their consumer, and answers how many were not marked
    /// before.
    ///
    /// # Errors
    /// Why the file could not be written; some may have been marked.
    pub fn requeue(&self, filter: &Filter) -> Result<u64, String> {
        let (condition, values) = filter.condition();
        let sql = format!(
            "UPDATE letters SET requeued = TRUE WHERE id IN (
                 SELECT id FROM letters WHERE id > ? AND id <= ? AND NOT requeued AND {condition}
                 ORDER BY id LIMIT {CHUNK}
             ) RETURNING id, consumer, bytes"
        );
        // Up to the newest at the begin: one that fails again meanwhile is not marked again.
        let newest = self.before_newest(&Filter::default(), 0)?;
        let mut after = NONE;
        self.repeat(|transaction, figures| {
            let bounds = [after.into(), newest.into()];
            let values = params_from_iter(bounds.into_iter().chain(values.iter().cloned()));
            let mut update = transaction.prepare_cached(&sql)?;
            let mut rows = update.query(values)?;
            let mut marked = 0;
            while let Some(row) = rows.next()? {
                let consumer: String = row.get("consumer")?;
                if let Some(summary) = figures.consumers.get_mut(&consumer) {
                    summary.mark(number(row, "bytes")?);
                }
                after = after.max(row.get("id")?);
                marked += 1;
            }
            Ok(marked)
        })
    }

    /// Deletes letters, and answers how many.
    ///
    /// # Errors
    /// Why the file could not be written; some may have been deleted.
    pub fn purge(&self, filter: &Filter) -> Result<u64, String> {
        let (condition, mut values) = filter.condition();
        let newest = self.before_newest(&Filter::default(), 0)?;
        values.push(newest.into());
        let ids = format!("SELECT id FROM letters WHERE {condition} AND id <= ? LIMIT {CHUNK}");
        let purged = self.repeat(|transaction, figures| {
            figures.delete(transaction, &ids, params_from_iter(&values))
        })?;
        self.give_back();
        Ok(purged)
    }

    /// For the hub: this consumer's letters after this id that are to be delivered again.
    ///
    /// As with [`DeadLetters::list`], an empty page is the end.
    ///
    /// # Errors
    /// Why the file could not be read.
    pub fn requeued(
        &self,
        consumer: &str,
        after: i64,
        limit: usize,
    ) -> Result<Vec<Letter>, String> {
        let consumer = consumer.to_owned().into();
        self.page("requeued AND consumer = ?", vec![consumer], after, limit)
    }

    /// For the hub after an unclean stop: which messages of this consumer in this range of sequence
    /// numbers were set aside, as sequence numbers and times of intake.
    ///
    /// # Errors
    /// Why the file could not be read.
    pub fn known(&self, consumer: &str, range: Range<u64>) -> Result<HashSet<(u64, u64)>, String> {
        let sql = "SELECT seq, received_ns FROM letters
             WHERE consumer = ? AND seq >= ? AND seq < ? AND reason <> 'replay'";
        // SQLite counts up to i64::MAX, and so do sequence numbers.
        let end = i64::try_from(range.end).unwrap_or(i64::MAX);
        let start = i64::try_from(range.start).unwrap_or(i64::MAX);
        self.query(|connection| {
            let mut query = connection.prepare_cached(sql)?;
            let rows = query.query_map(params![consumer, start, end], |row| {
                Ok((number(row, "seq")?, number(row, "received_ns")?))
            })?;
            rows.collect()
        })
    }

    /// A letter is about to be delivered again. Its mark goes first: if the delivery ends the
    /// process, it is a dead letter as before, and not the first thing of the next start. Answers
    /// whether it was still there and marked; else it is not to be delivered.
    ///
    /// # Errors
    /// Why the file could not be written.
    pub fn delivering(&self, id: i64) -> Result<bool, String> {
        self.change(|transaction, figures| {
            let update = "UPDATE letters SET requeued = FALSE WHERE id = ? AND requeued
                          RETURNING consumer, bytes";
            let found = transaction
                .prepare_cached(update)?
                .query_row([id], |row| {
                    Ok((row.get::<_, String>("consumer")?, number(row, "bytes")?))
                })
                .optional()?;
            let Some((consumer, bytes)) = found else {
                return Ok(false);
            };
            if let Some(summary) = figures.consumers.get_mut(&consumer) {
                summary.unmark(bytes);
            }
            Ok(true)
        })
    }

    /// A letter that was delivered again is done with: it is deleted, if it is still there.
    ///
    /// # Errors
    /// Why the file could not be written.
    pub fn settled(&self, id: i64) -> Result<(), String> {
        self.change(|transaction, figures| figures.delete(transaction, "?", [id]))
            .map(drop)
    }

    /// A letter that was delivered again is back among the dead, if it was not purged or expired
    /// meanwhile. What is new is added to what was known; its age stays.
    ///
    /// # Errors
    /// Why the file could not be written.
    pub fn failed_again(
        &self,
        id: i64,
        reason: &str,
        causes: &[Cause],
        attempts: u32,
        last_failed_ns: u64,
    ) -> Result<(), String> {
        self.change(|transaction, figures| {
            let mut known = transaction.prepare_cached(
                "SELECT consumer, reason, causes, attempts, bytes, requeued
                 FROM letters WHERE id = ?",
            )?;
            let mut rows = known.query([id])?;
            let Some(row) = rows.next()? else {
                return Ok(());
            };
            let consumer: String = row.get("consumer")?;
            let requeued: bool = row.get("requeued")?;
            let attempts = small(row, "attempts")?.saturating_add(attempts);
            let mut all = self::causes(row)?;
            for cause in causes {
                Cause::add(&mut all, &cause.text, cause.times);
            }
            let all = chain(&all);
            let bytes = number(row, "bytes")?;
            let replaced =
                row.get_ref("reason")?.as_str()?.len() + row.get_ref("causes")?.as_str()?.len();
            let new_bytes =
                bytes.saturating_sub(replaced as u64) + (reason.len() + all.len()) as u64;
            drop(rows);
            let update = "UPDATE letters SET reason = ?1, causes = ?2, attempts = ?3,
                              last_failed_ns = ?4, bytes = ?5, requeued = FALSE WHERE id = ?6";
            transaction.prepare_cached(update)?.execute(params![
                reason,
                all,
                attempts,
                integer(last_failed_ns),
                integer(new_bytes),
                id
            ])?;
            if let Some(summary) = figures.consumers.get_mut(&consumer) {
                summary.bytes = summary.bytes.saturating_sub(bytes) + new_bytes;
                if requeued {
                    summary.unmark(bytes);
                }
            }
            figures.make_room(transaction, self.keep_bytes(), 0, id, u64::MAX)?;
            Ok(())
        })
    }

    /// Deletes what is older than the bound, and what is over the bound in bytes; answers how many.
    ///
    /// # Errors
    /// Why the file could not be written; some may have been deleted.
    pub fn expire(&self, now_ns: u64) -> Result<u64, String> {
        let age = u64::try_from(self.keep.age.as_nanos()).unwrap_or(u64::MAX);
        let oldest_ns = now_ns.saturating_sub(age);
        let over: Vec<String> = (self.figures.lock().consumers.iter())
            .filter(|(_, summary)| summary.oldest_ns < oldest_ns)
            .map(|(consumer, _)| consumer.clone())
            .collect();
        let ids =
            format!("SELECT id FROM letters WHERE consumer = ? AND set_aside_ns < ? LIMIT {CHUNK}");
        let mut total = 0;
        for consumer in over {
            total += self.repeat(|transaction, figures| {
                let expired = figures.delete(transaction, &ids, (&consumer, integer(oldest_ns)))?;
                figures.expired += expired;
                Ok(expired)
            })?;
        }
        if self.figures.lock().bytes() > self.keep_bytes() {
            total += self.repeat(|transaction, figures| {
                figures.make_room(transaction, self.keep_bytes(), 0, NONE, CHUNK)
            })?;
        }
        if total > 0 {
            self.give_back();
        }
        Ok(total)
    }

    /// When it returns, all that was written survives a power failure; cheap if nothing was
    /// written since the last time.
    ///
    /// # Errors
    /// Why that is not so. After a failure of the disk itself every later call fails, because a
    /// second attempt would succeed without having written what the first one lost.
    pub fn sync(&self) -> Result<(), String> {
        let mut store = self.store.lock();
        let changes = store.connection.total_changes();
        if store.synced == Some(changes) {
            return Ok(());
        }
        if let Some(spoilt) = &store.spoilt {
            return Err(spoilt.clone());
        }
        // A commit with synchronous = FULL syncs the log, and with it all commits before. This one
        // changes nothing.
        let connection = &store.connection;
        let synced = connection
            .pragma_update(None, "synchronous", "full")
            .and_then(|()| connection.pragma_update(None, "user_version", USER_VERSION));
        let normal = connection.pragma_update(None, "synchronous", "normal");
        match synced.and(normal) {
            Ok(()) => {
                store.synced = Some(changes);
                Ok(())
            }
            Err(error) => {
                let mut text = explain(&self.path, &error);
                if is_failed_sync(&error) {
                    text.push_str("; restart the hub when it works again");
                    store.spoilt = Some(text.clone());
                }
                Err(text)
            }
        }
    }

    /// The figures by consumer, of those that have letters; never waits for the disk.
    pub fn summary(&self) -> BTreeMap<String, Summary> {
        self.figures.lock().consumers.clone()
    }

    /// How many letters the bounds have deleted since this was opened.
    pub fn expired(&self) -> u64 {
        self.figures.lock().expired
    }

    fn keep_bytes(&self) -> u64 {
        self.keep.bytes as u64
    }

    /// Does all of this work, on the file and on the figures, or none of it.
    fn change<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>, &mut Figures) -> rusqlite::Result<T>,
    ) -> Result<T, String> {
        let mut store = self.store.lock();
        let mut figures = self.figures.lock().clone();
        let change = || {
            // Immediate: the lock is waited for at the start, when nothing was done yet. Dropped
            // before its commit, on an error, the transaction is undone.
            let transaction = store.connection.transaction_with_behavior(Immediate)?;
            let answer = work(&transaction, &mut figures)?;
            transaction.commit()?;
            Ok(answer)
        };
        let answer = change().map_err(|error| explain(&self.path, &error))?;
        *self.figures.lock() = figures;
        Ok(answer)
    }

    fn query<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, String> {
        work(&self.store.lock().connection).map_err(|error| explain(&self.path, &error))
    }

    fn page(
        &self,
        condition: &str,
        mut values: Vec<Value>,
        after: i64,
        limit: usize,
    ) -> Result<Vec<Letter>, String> {
        let sql = format!(
            "SELECT {COLUMNS} FROM letters WHERE {condition} AND id > ? ORDER BY id LIMIT ?"
        );
        values.extend([after.into(), limited(limit).into()]);
        self.query(|connection| {
            let mut query = connection.prepare_cached(&sql)?;
            let mut rows = query.query(params_from_iter(values))?;
            let mut letters = Vec::new();
            let mut bytes = 0;
            while bytes < PAGE_BYTES
                && let Some(row) = rows.next()?
            {
                let letter = letter(row)?;
                bytes += letter.topic.len() + letter.payload.len();
                letters.push(letter);
            }
            Ok(letters)
        })
    }

    /// Does steps of at most [`CHUNK`] letters until there are no more, and answers how many.
    fn repeat(
        &self,
        mut step: impl FnMut(&Transaction<'_>, &mut Figures) -> rusqlite::Result<u64>,
    ) -> Result<u64, String> {
        let mut total = 0;
        loop {
            let done = self.change(&mut step)?;
            total += done;
            if done < CHUNK {
                return Ok(total);
            }
        }
    }

    /// Gives the file system back what deleted letters took, when that is much of the file. A
    /// failure does no harm: the room is used for letters to come.
    fn give_back(&self) {
        let step = |connection: &Connection| {
            let number = |name| connection.pragma_query_value(None, name, |row| row.get(0));
            let (pages, free): (i64, i64) = (number("page_count")?, number("freelist_count")?);
            if free * 4 < pages {
                return Ok(false);
            }
            // Every row of the answer is one page; the pragma stops where the reader does.
            let mut vacuum = connection.prepare("PRAGMA incremental_vacuum(1000)")?;
            let mut given = vacuum.query(())?;
            while given.next()?.is_some() {}
            Ok(number("freelist_count")? < free)
        };
        while self.query(step) == Ok(true) {}
    }
}

/// A limit as SQLite takes it; to it a negative one is none.
fn limited(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}

/// The chain within its bounds, as it stands in the file.
fn chain(causes: &[Cause]) -> String {
    let mut bounded = Vec::with_capacity(causes.len().min(CAUSES_MAX));
    for cause in causes {
        Cause::add(&mut bounded, &cause.text, cause.times);
    }
    serde_json::json!(bounded).to_string()
}

/// Whether the file has dead letters of this version, and false when it is still empty.
fn recognise(connection: &Connection, path: &Path) -> Result<bool, String> {
    let numbers = "SELECT application_id, user_version,
                       (SELECT count(*) FROM sqlite_schema),
                       (SELECT count(*) FROM sqlite_schema WHERE name = 'letters')
                   FROM pragma_application_id, pragma_user_version";
    let numbers = connection.query_row(numbers, (), |row| {
        Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?))
    });
    let numbers: (i32, i32, i64, i64) = numbers.map_err(|error| explain(path, &error))?;
    let path = path.display();
    match numbers {
        (0, 0, 0, _) => Ok(false),
        // An archive has the same application id.
        (APPLICATION_ID, USER_VERSION, _, 1) => Ok(true),
        (APPLICATION_ID, newer, _, 1) => Err(format!(
            "{path}: these dead letters are of version {newer}, and this weir knows versions up to \
             {USER_VERSION}; run the newer weir, or move the file away and begin a new one"
        )),
        _ => Err(format!(
            "{path} is a database of something else, not dead letters of weir; move it away"
        )),
    }
}

fn make(connection: &mut Connection) -> rusqlite::Result<()> {
    // Has an effect only before there is a table.
    connection.pragma_update(None, "auto_vacuum", "incremental")?;
    // One transaction, so that of two processes that come at once only one makes it.
    let transaction = connection.transaction_with_behavior(Immediate)?;
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = transaction.query_row(tables, (), |row| row.get(0))?;
    if tables == 0 {
        transaction.execute_batch(SCHEMA)?;
        transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
        transaction.pragma_update(None, "user_version", USER_VERSION)?;
    }
    transaction.commit()
}

/// Names the file, and says what to do.
fn explain(path: &Path, error: &rusqlite::Error) -> String {
    let path = path.display();
    let damaged = || {
        format!(
            "{path} is damaged: {error}; move it away together with {path}-wal and {path}-shm, and \
             a new one is begun; `sqlite3 FILE .recover` saves what can be read of the old one"
        )
    };
    let remedy = match error {
        rusqlite::Error::FromSqlConversionFailure(..)
        | rusqlite::Error::InvalidColumnType(..)
        | rusqlite::Error::IntegralValueOutOfRange(..)
        | rusqlite::Error::Utf8Error(..) => return damaged(),
        _ => match error.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => return damaged(),
            Some(ErrorCode::DiskFull) => "; make room on the disk",
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                "; the user of this process must be allowed to write the file and its directory"
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                "; another process is writing it: let that one end"
            }
            Some(ErrorCode::SystemIoFailure) => "; the disk or its file system has failed",
            _ => "",
        },
    };
    format!("{path}: {error}{remedy}")
}

fn is_failed_sync(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error().map(|error| error.extended_code),
        Some(rusqlite::ffi::SQLITE_IOERR_FSYNC | rusqlite::ffi::SQLITE_IOERR_DIR_FSYNC)
    )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn keep(bytes: usize) -> Settings {
        let age = Duration::from_nanos(100);
        Settings {
            keep: Keep { bytes, age },
        }
    }

    /// A directory for the file, and the file in it.
    fn place() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        (dir, path)
    }

    fn open(path: &Path) -> DeadLetters {
        DeadLetters::open(path, &Settings::default()).unwrap()
    }

    fn message(topic: &str, payload: &[u8]) -> Message {
        Message::at_ns(topic.into(), Bytes::copy_from_slice(payload), 7, 8)
    }

    fn cause(text: &str, times: u32) -> Cause {
        let text = text.into();
        Cause { text, times }
    }

    fn new<'m>(consumer: &'m str, message: &'m Message, causes: &'m [Cause]) -> New<'m> {
        New {
            consumer,
            message,
            reason: "attempts",
            causes,
            attempts: 5,
            first_failed_ns: 9,
            last_failed_ns: 10,
        }
    }

    /// Sets aside a message with a payload of this length.
    fn put(dead: &DeadLetters, consumer: &str, length: usize) -> Result<i64, String> {
        dead.set_aside(&new(consumer, &message("t", &vec![b'x'; length]), &[]))
    }

    fn put_some(dead: &DeadLetters, count: usize, length: usize) {
        for _ in 0..count {
            put(dead, "c", length).unwrap();
        }
    }

    /// Page by page.
    fn letters(dead: &DeadLetters, filter: &Filter) -> Vec<Letter> {
        let mut letters: Vec<Letter> = Vec::new();
        loop {
            let after = letters.last().map_or(NONE, |letter| letter.id);
            let page = dead.list(filter, after, 1000).unwrap();
            if page.is_empty() {
                return letters;
            }
            letters.extend(page);
        }
    }

    fn ids(dead: &DeadLetters, filter: &Filter) -> Vec<i64> {
        let letters = letters(dead, filter);
        letters.iter().map(|letter| letter.id).collect()
    }

    fn all(dead: &DeadLetters) -> Vec<i64> {
        ids(dead, &Filter::default())
    }

    fn of_ids(ids: impl Into<Vec<i64>>) -> Filter {
        Filter {
            ids: ids.into(),
            ..Filter::default()
        }
    }

    fn pragma(dead: &DeadLetters, name: &str, value: i64) {
        let store = dead.store.lock();
        let sql = format!("PRAGMA {name} = {value}");
        let mut pragma = store.connection.prepare(&sql).unwrap();
        pragma.query(()).unwrap().next().unwrap();
    }

    #[test]
    fn exact() {
        let (_dir, path) = place();
        let dead = open(&path);
        let every: Vec<u8> = (0..=255).collect();
        for (topic, payload) in [("", &b""[..]), ("a\0b.\u{1f980}", &every)] {
            let message = Message::at_ns(topic.into(), payload.to_vec().into(), u64::MAX, 1 << 40);
            let causes = [cause("it's \"so\"\n\0", 3), cause("%_", u32::MAX)];
            let id = dead
                .set_aside_at(&new("C-1", &message, &causes), 11)
                .unwrap();
            let expected = Letter {
                id,
                consumer: "C-1".into(),
                topic: topic.into(),
                payload: payload.to_vec().into(),
                seq: 1 << 40,
                received_ns: i64::MAX as u64, // the year 2262
                reason: "attempts".into(),
                causes: causes.into(),
                attempts: 5,
                first_failed_ns: 9,
                last_failed_ns: 10,
                set_aside_ns: 11,
                requeued: false,
            };
            assert_eq!(dead.show(id).unwrap(), Some(expected));
        }
        assert_eq!(dead.show(99).unwrap(), None);
    }

    #[test]
    fn in_json_a_payload_is_text_or_hex() {
        let (_dir, path) = place();
        let dead = open(&path);
        let text = message("t", b"{\"a\": 1}");
        let bytes = message("t", b"\xff\x00");
        for (message, expected) in [(text, r#""{\"a\": 1}""#), (bytes, r#"{"hex":"ff00"}"#)] {
            let id = dead.set_aside(&new("c", &message, &[])).unwrap();
            let json = serde_json::to_string(&dead.show(id).unwrap()).unwrap();
            assert!(
                json.contains(&format!(r#""payload":{expected},"#)),
                "{json}"
            );
        }
    }

    #[test]
    fn bounded() {
        let (_dir, path) = place();
        let room = 1 + 1 + 8 + 2 + 100 + OVERHEAD as usize; // consumer, topic, reason, [], payload
        let dead = DeadLetters::open(&path, &keep(3 * room)).unwrap();
        for id in 1..=5 {
            assert_eq!(put(&dead, "c", 100), Ok(id));
        }
        assert_eq!(all(&dead), [3, 4, 5]);
        assert_eq!(dead.expired(), 2);
        assert_eq!(dead.summary()["c"].bytes, 3 * room as u64);
        // One byte more than two of them: both go.
        assert_eq!(put(&dead, "d", 101), Ok(6));
        assert_eq!(all(&dead), [5, 6]);
        assert_eq!(dead.expired(), 4);
    }

    #[test]
    fn a_letter_larger_than_all_that_is_kept_is_kept_alone() {
        let (_dir, path) = place();
        let dead = DeadLetters::open(&path, &keep(1000)).unwrap();
        put(&dead, "small", 1).unwrap();
        let large = put(&dead, "large", 5000).unwrap();
        assert_eq!(all(&dead), [large]);
        assert_eq!(dead.expire(0), Ok(0));
        assert_eq!(all(&dead), [large]);
        let small = put(&dead, "small", 1).unwrap();
        assert_eq!(all(&dead), [small]);
        assert_eq!(dead.expired(), 2);
    }

    #[test]
    fn a_letter_that_grows_makes_others_expire() {
        let (_dir, path) = place();
        let dead = DeadLetters::open(&path, &keep(1000)).unwrap();
        let first = put(&dead, "c", 100).unwrap();
        let second = put(&dead, "c", 100).unwrap();
        let more = [cause(&"x".repeat(500), 1)];
        dead.failed_again(first, "attempts", &more, 1, 1).unwrap();
        assert_eq!((all(&dead), dead.expired()), (vec![first], 1));
        let more = [cause(&"y".repeat(500), 1)];
        dead.failed_again(second, "attempts", &more, 1, 1).unwrap();
        assert_eq!(all(&dead), [first], "what has expired stays so");
    }

    #[test]
    fn what_is_older_than_the_bound_expires() {
        let (_dir, path) = place();
        let dead = DeadLetters::open(&path, &keep(1 << 20)).unwrap();
        let message = message("t", b"");
        // The clock may go back.
        for (consumer, at) in [
            ("a", 1000),
            ("b", 500),
            ("a", 900),
            ("a", 1100),
            ("b", 1001),
        ] {
            dead.set_aside_at(&new(consumer, &message, &[]), at)
                .unwrap();
        }
        assert_eq!(dead.expire(1000), Ok(1));
        assert_eq!(all(&dead), [1, 3, 4, 5]);
        assert_eq!(dead.summary()["a"].oldest_ns, 900);
        assert_eq!(dead.expire(1101), Ok(2), "at the bound is within it");
        assert_eq!(all(&dead), [4, 5]);
        assert_eq!(dead.expired(), 3);
    }

    #[test]
    fn a_bound_that_was_lowered_holds_after_expire() {
        let (_dir, path) = place();
        let dead = open(&path);
        put_some(&dead, 10, 100);
        drop(dead);
        let dead = DeadLetters::open(&path, &keep(1000)).unwrap();
        dead.expire(0).unwrap();
        assert_eq!(all(&dead), [9, 10]);
        assert_eq!(dead.expired(), 8);
    }

    #[test]
    fn all_or_nothing() {
        let (_dir, path) = place();
        let dead = DeadLetters::open(&path, &keep(5000)).unwrap();
        for _ in 0..4 {
            put(&dead, "c", 500).unwrap();
        }
        dead.requeue(&of_ids([1])).unwrap();
        let before = (dead.list(&Filter::default(), 0, 9).unwrap(), dead.summary());
        let unchanged = || {
            let letters = dead.list(&Filter::default(), 0, 9).unwrap();
            assert_eq!((letters, dead.summary()), before);
            let fresh = DeadLetters::read(&path).unwrap().unwrap();
            assert_eq!(fresh.summary(), before.1);
            assert_eq!(dead.expired(), 0);
        };
        let everything_fails = |text: &str| {
            let failures = [
                put(&dead, "d", 4000).map(drop), // would make others expire
                dead.requeue(&Filter::default()).map(drop),
                dead.purge(&Filter::default()).map(drop),
                dead.failed_again(1, "crash", &[cause("x", 1)], 1, 1),
                dead.settled(1),
                dead.expire(u64::MAX).map(drop),
            ];
            for failure in failures {
                let failure = failure.unwrap_err();
                assert!(failure.starts_with(path.to_str().unwrap()), "{failure}");
                assert!(failure.contains(text), "{failure}");
                unchanged();
            }
        };
        pragma(&dead, "query_only", 1);
        everything_fails("must be allowed to write the file and its directory");
        pragma(&dead, "query_only", 0);

        let other = Connection::open(&path).unwrap();
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        everything_fails("another process is writing it");
        other.execute_batch("ROLLBACK").unwrap();

        // SQLite's own limit ends in the same error as the disk's.
        pragma(&dead, "max_page_count", 8);
        let full = put(&dead, "d", 100_000).unwrap_err();
        assert!(full.ends_with("; make room on the disk"), "{full}");
        unchanged();
        pragma(&dead, "max_page_count", 1_000_000);
        put(&dead, "d", 100_000).unwrap();
    }

    #[test]
    fn an_id_names_one_letter_for_ever() {
        let (_dir, path) = place();
        let dead = open(&path);
        assert_eq!(put(&dead, "c", 1), Ok(1));
        assert_eq!(put(&dead, "c", 1), Ok(2));
        assert_eq!(dead.purge(&Filter::default()), Ok(2));
        drop(dead);
        assert_eq!(put(&open(&path), "c", 1), Ok(3));
    }

    #[test]
    fn requeued_letters_are_settled_or_fail_again() {
        let (_dir, path) = place();
        let dead = open(&path);
        let message = message("t", b"x");
        for consumer in ["a", "b", "a", "a"] {
            let causes = [cause("refused", 5)];
            dead.set_aside_at(&new(consumer, &message, &causes), 50)
                .unwrap();
        }
        assert_eq!(dead.requeue(&of_ids([1, 2, 3, 99])), Ok(3));
        assert_eq!(dead.requeue(&of_ids([1, 2, 3])), Ok(0));
        assert_eq!(dead.summary()["a"].requeued, 2);
        let requeued = |after| {
            let letters = dead.requeued("a", after, 10).unwrap();
            letters.iter().map(|letter| letter.id).collect::<Vec<_>>()
        };
        assert_eq!(requeued(0), [1, 3]);
        assert_eq!(requeued(1), [3]);
        dead.settled(1).unwrap();
        dead.settled(1).unwrap();
        let causes = [cause("refused", 1), cause("timed out", 2)];
        dead.failed_again(3, "dead_letter", &causes, 3, 77).unwrap();
        dead.failed_again(1, "dead_letter", &causes, 3, 77).unwrap();
        assert!(requeued(0).is_empty());
        assert_eq!(all(&dead), [2, 3, 4]);
        let letter = dead.show(3).unwrap().unwrap();
        assert_eq!(letter.causes, [cause("refused", 6), cause("timed out", 2)]);
        assert_eq!((letter.attempts, &*letter.reason), (8, "dead_letter"));
        assert_eq!((letter.first_failed_ns, letter.last_failed_ns), (9, 77));
        assert_eq!((letter.set_aside_ns, letter.requeued), (50, false));
        assert_eq!(dead.summary()["a"].requeued, 0);
        assert_eq!(dead.summary()["b"].requeued, 1);
    }

    #[test]
    fn a_filter_means_what_it_says() {
        let (_dir, path) = place();
        let dead = open(&path);
        let letters = [
            ("a", "org.x.one", "attempts", "it's refused", 10),
            ("b", "org.x.two", "dead_letter", "100% \"bad\"", 20),
            ("a", "orgax", "crash", "1000 bad", 30),
            ("A", "ORG.x\0.one", "attempts", "nul \0 in it", 40),
        ];
        for (consumer, topic, reason, text, at) in letters {
            let (message, causes) = (message(topic, b""), [cause("first", 1), cause(text, 1)]);
            let letter = New {
                reason,
                ..new(consumer, &message, &causes)
            };
            dead.set_aside_at(&letter, at).unwrap();
        }
        let check = |filter: Filter, expected: &[i64]| {
            assert_eq!(ids(&dead, &filter), expected, "{filter:?}");
            assert_eq!(dead.count(&filter), Ok(expected.len() as u64), "{filter:?}");
            let newest = dead.before_newest(&filter, 1).unwrap();
            let before = expected.iter().rev().nth(1).copied().unwrap_or(NONE);
            assert_eq!(newest, before, "{filter:?}");
        };
        let text = |text: &str| Some(text.to_owned());
        let none = Filter::default;
        check(none(), &[1, 2, 3, 4]);
        check(of_ids([4, 2, 99, -1]), &[2, 4]);
        for (consumer, expected) in [("a", &[1, 3][..]), ("A", &[4]), ("", &[]), ("a' OR 1", &[])] {
            let consumer = text(consumer);
            check(Filter { consumer, ..none() }, expected);
        }
        for (topic, expected) in [
            ("", &[1, 2, 3, 4][..]),
            ("*", &[1, 2, 3, 4]),
            ("org.x.*", &[1, 2]),
            ("org.", &[1, 2]), // a dot is a dot
            ("org_", &[]),
            ("ORG.x\0.o", &[4]),
            ("ORG.x\0.t", &[]),
            ("%", &[]),
        ] {
            let topic = text(topic);
            check(Filter { topic, ..none() }, expected);
        }
        let reason = text("attempts");
        check(Filter { reason, ..none() }, &[1, 4]);
        for (cause, expected) in [
            ("first", &[1, 2, 3, 4][..]),
            ("it's", &[1]),
            ("100%", &[2]),
            ("\"bad\"", &[2]),
            ("BAD", &[]),
            ("text", &[]),
            ("\0 in", &[4]),
            ("first100", &[]), // one cause ends where it ends
        ] {
            let cause = text(cause);
            check(Filter { cause, ..none() }, expected);
        }
        let (before_ns, since_ns) = (Some(30), Some(20));
        check(
            Filter {
                before_ns,
                ..none()
            },
            &[1, 2],
        );
        check(Filter { since_ns, ..none() }, &[2, 3, 4]);
        let (consumer, topic) = (text("a"), text("org."));
        let both = Filter {
            consumer,
            topic,
            ..none()
        };
        check(both.clone(), &[1]);
        assert_eq!(dead.requeue(&both), Ok(1));
        assert_eq!(dead.purge(&both), Ok(1));
        check(none(), &[2, 3, 4]);
    }

    #[test]
    fn a_list_has_pages_bounded_in_letters_and_bytes() {
        let (_dir, path) = place();
        let dead = open(&path);
        put_some(&dead, 6, PAGE_BYTES / 2);
        let page = |after, limit| {
            let letters = dead.list(&Filter::default(), after, limit).unwrap();
            letters.iter().map(|letter| letter.id).collect::<Vec<_>>()
        };
        assert_eq!(page(0, 1), [1]);
        assert_eq!(page(0, 100), [1, 2]);
        assert_eq!(page(2, 100), [3, 4]);
        assert!(page(6, 100).is_empty());
        assert!(page(0, 0).is_empty());
        assert_eq!(page(0, usize::MAX), [1, 2]);
    }

    #[test]
    fn the_newest_letters_come_first_and_without_the_end_of_their_payloads() {
        let (_dir, path) = place();
        let dead = open(&path);
        put_some(&dead, 6, PAGE_BYTES / 2);
        let consumer = dead.show(1).unwrap().unwrap().consumer;
        let page = |before, limit| {
            let (letters, more) = dead.newest(&consumer, before, limit, 10).unwrap();
            let cut = |letter: &Glance| {
                letter.payload_bytes == PAGE_BYTES as u64 / 2 && letter.payload.len() <= 20
            };
            assert!(letters.iter().all(cut), "{letters:?}");
            let ids: Vec<i64> = letters.iter().map(|letter| letter.id).collect();
            (ids, more)
        };
        assert_eq!(page(i64::MAX, 1), (vec![6], true));
        assert_eq!(page(i64::MAX, 100), (vec![6, 5], true));
        assert_eq!(page(3, 100), (vec![2, 1], false));
        assert_eq!(page(2, 1), (vec![1], false));
        assert_eq!(page(1, 100), (vec![], false));
        assert_eq!(dead.newest("nobody", 7, 1, 10), Ok((Vec::new(), false)));
    }

    #[test]
    fn a_chain_of_causes_is_bounded() {
        let long = "\u{1f980}".repeat(CAUSE_CHARS_MAX);
        let mut chain = Vec::new();
        Cause::add(&mut chain, &long, 1);
        assert_eq!(chain[0].text, long);
        for _ in 0..2 {
            // The second time with what the first has left.
            let longer = format!("{long}{}", "y".repeat(1_000_000));
            Cause::add(&mut chain, &longer, 1);
            let known = chain[1].text.clone();
            Cause::add(&mut chain, &known, 1);
        }
        assert_eq!(chain.len(), 2);
        assert_eq!(chain[1], cause(&format!("{long} (cut)"), 4));

        for i in 2..CAUSES_MAX {
            Cause::add(&mut chain, &format!("text {i}"), 2);
        }
        assert_eq!(chain.last().unwrap(), &cause("text 15", 2));
        Cause::add(&mut chain, "one more", 1);
        Cause::add(&mut chain, "yet another", 1);
        Cause::add(&mut chain, "text 2", 1);
        assert_eq!(chain.len(), CAUSES_MAX);
        assert_eq!(
            chain.last().unwrap(),
            &cause("others, the last: yet another", 4)
        );
        assert_eq!(chain[2], cause("text 2", 3));
        // A chain that came from a chain keeps its bounds and its sum.
        let mut again = chain.clone();
        for cause in &chain {
            Cause::add(&mut again, &cause.text, cause.times);
        }
        assert_eq!(again.len(), CAUSES_MAX);
        let times = |chain: &[Cause]| chain.iter().map(|cause| cause.times).sum::<u32>();
        assert_eq!(times(&again), 2 * times(&chain));

        let (_dir, path) = place();
        let dead = open(&path);
        let many: Vec<Cause> = (0..100).map(|i| cause(&format!("{i} {long}"), 1)).collect();
        let id = dead
            .set_aside(&new("c", &message("t", b""), &many))
            .unwrap();
        let kept = dead.show(id).unwrap().unwrap().causes;
        assert_eq!((kept.len(), times(&kept)), (CAUSES_MAX, 100));
    }

    #[test]
    fn others_read_while_one_writes() {
        let (dir, path) = place();
        assert!(DeadLetters::read(&path).unwrap().is_none());
        assert!(!path.exists());
        std::fs::write(&path, "").unwrap();
        assert!(DeadLetters::read(&path).unwrap().is_none());

        let dead = open(&path);
        let reader = DeadLetters::read(&path).unwrap().unwrap();
        assert!(all(&reader).is_empty());
        put(&dead, "c", 1).unwrap();
        assert_eq!(all(&reader), [1]);
        assert!(put(&reader, "c", 1).is_err());
        assert!(reader.purge(&Filter::default()).is_err());
        assert_eq!(all(&dead), [1]);

        let error = DeadLetters::read(dir.path()).err().unwrap();
        assert!(error.starts_with(dir.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn what_was_written_survives_the_end_of_the_process() {
        let (dir, path) = place();
        let dead = open(&path);
        put_some(&dead, 5, 10_000);
        dead.requeue(&of_ids([2])).unwrap();
        // The files as they are at this moment, without a proper end.
        let later = dir.path().join("later.db");
        for end in ["", "-wal"] {
            let name = |path: &Path| format!("{}{end}", path.display());
            std::fs::copy(name(&path), name(&later)).unwrap();
        }
        let later = open(&later);
        assert_eq!(later.summary(), dead.summary());
        assert_eq!(all(&later), [1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_sync_writes_only_when_something_was_written() {
        let (_dir, path) = place();
        let dead = open(&path);
        let log = || {
            let log = std::fs::read(format!("{}-wal", path.display())).unwrap();
            log.len()
        };
        put(&dead, "c", 1).unwrap();
        let written = log();
        dead.sync().unwrap();
        let synced = log();
        assert!(synced > written, "a commit of its own");
        dead.sync().unwrap();
        assert_eq!(log(), synced);
        put(&dead, "c", 1).unwrap();
        let written = log();
        dead.sync().unwrap();
        assert!(log() > written);
        let synchronous: i64 = (dead.store.lock().connection)
            .pragma_query_value(None, "synchronous", |row| row.get(0))
            .unwrap();
        assert_eq!(synchronous, 1, "set_aside does not wait for the disk");
    }

    #[test]
    fn several_threads_at_once_lose_no_count() {
        let (_dir, path) = place();
        let dead = DeadLetters::open(&path, &keep(3000)).unwrap();
        let mut purged = 0;
        std::thread::scope(|scope| {
            for consumer in ["a", "b"] {
                let dead = &dead;
                scope.spawn(move || {
                    for _ in 0..300 {
                        put(dead, consumer, 100).unwrap();
                    }
                });
            }
            for _ in 0..100 {
                dead.expire(now_ns()).unwrap();
                purged += dead.purge(&of_ids(all(&dead))).unwrap();
            }
        });
        let left = dead.count(&Filter::default()).unwrap();
        assert_eq!(left + purged + dead.expired(), 600);
        let fresh = DeadLetters::read(&path).unwrap().unwrap();
        assert_eq!(dead.summary(), fresh.summary());
    }

    /// Written by the first version of this module; never to be written anew.
    #[test]
    fn a_file_of_version_1_is_read() {
        let (_dir, path) = place();
        std::fs::write(&path, include_bytes!("dead_letters/v1.db")).unwrap();
        let dead = open(&path);
        let first = Letter {
            id: 1,
            consumer: "mail".into(),
            topic: "org.example.a".into(),
            payload: Bytes::from_static(b"\xff\x00{}"),
            seq: 41,
            received_ns: 1_700_000_000_000_000_000,
            reason: "attempts".into(),
            causes: vec![cause("connection \"refused\"", 5), cause("timed out", 1)],
            attempts: 6,
            first_failed_ns: 1_700_000_001_000_000_000,
            last_failed_ns: 1_700_000_002_000_000_000,
            set_aside_ns: 1_700_000_003_000_000_000,
            requeued: true,
        };
        let second = Letter {
            id: 3, // the second was purged
            consumer: "archive".into(),
            requeued: false,
            ..first.clone()
        };
        assert_eq!(dead.summary()["mail"].bytes, bytes(&first));
        assert_eq!(letters(&dead, &Filter::default()), [first, second]);
        assert_eq!(put(&dead, "c", 1), Ok(4));
    }

    #[test]
    fn a_failed_sync_is_told_from_a_full_disk() {
        let error = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        assert!(is_failed_sync(&error(rusqlite::ffi::SQLITE_IOERR_FSYNC)));
        assert!(!is_failed_sync(&error(rusqlite::ffi::SQLITE_IOERR_WRITE)));
        assert!(!is_failed_sync(&error(rusqlite::ffi::SQLITE_FULL)));

        let (_dir, path) = place();
        let dead = open(&path);
        put(&dead, "c", 1).unwrap();
        pragma(&dead, "query_only", 1);
        assert!(dead.sync().is_err());
        pragma(&dead, "query_only", 0);
        assert_eq!(dead.sync(), Ok(()), "that can pass");
    }

    #[test]
    fn a_purge_gives_the_room_back() {
        let (_dir, path) = place();
        let dead = open(&path);
        put_some(&dead, 20, 100_000);
        let pages = || {
            let store = dead.store.lock();
            let pages = (store.connection).pragma_query_value(None, "page_count", |row| row.get(0));
            pages.unwrap()
        };
        let full: i64 = pages();
        assert!(full > 20 * 24);
        assert_eq!(dead.purge(&of_ids((1..=19).collect::<Vec<_>>())), Ok(19));
        let rest = pages();
        assert!(rest < full / 10, "{rest} of {full}");
    }

    #[test]
    fn nothing_foreign_is_touched() {
        let foreign = "CREATE TABLE messages (id INTEGER PRIMARY KEY);";
        let archive = format!("{foreign} PRAGMA application_id = {APPLICATION_ID};");
        let archive = format!("{archive} PRAGMA user_version = 1;");
        let newer = format!("{SCHEMA} PRAGMA application_id = {APPLICATION_ID};");
        let newer = format!("{newer} PRAGMA user_version = 2;");
        for (sql, text) in [
            (foreign, "is a database of something else"),
            (&archive, "is a database of something else"),
            (
                &newer,
                "are of version 2, and this weir knows versions up to 1",
            ),
        ] {
            let (_dir, path) = place();
            Connection::open(&path).unwrap().execute_batch(sql).unwrap();
            refused(&path, text);
        }
        let (_dir, path) = place();
        std::fs::write(&path, "dead letters\n".repeat(1000)).unwrap();
        refused(&path, "is damaged");
        assert!(open_error(&path).contains("move it away"));
    }

    fn open_error(path: &Path) -> String {
        let error = DeadLetters::open(path, &Settings::default()).err().unwrap();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        error
    }

    #[track_caller]
    fn refused(path: &Path, text: &str) {
        let before = std::fs::read(path).unwrap();
        let error = open_error(path);
        assert!(error.contains(text), "{error}");
        let error = DeadLetters::read(path).err().unwrap();
        assert!(error.contains(text), "{error}");
        assert!(std::fs::read(path).unwrap() == before);
    }

    /// A file with some letters, as it is when it was closed.
    fn sound() -> Vec<u8> {
        let (_dir, path) = place();
        let dead = open(&path);
        let causes = [cause("refused", 5)];
        for length in [1, 300, 9000] {
            let message = message("org.example", &vec![b'x'; length]);
            dead.set_aside(&new("c", &message, &causes)).unwrap();
        }
        dead.requeue(&of_ids([2])).unwrap();
        drop(dead);
        std::fs::read(&path).unwrap()
    }

    /// Everything that can be done with a file, whatever it answers.
    fn use_all(path: &Path) -> Vec<String> {
        let dead = match DeadLetters::open(path, &keep(20_000)) {
            Ok(dead) => dead,
            Err(error) => return vec![error],
        };
        let text = Some("x".to_owned());
        let filter = Filter {
            cause: text,
            ..Filter::default()
        };
        let outcomes = [
            dead.list(&Filter::default(), 0, 10).map(drop),
            dead.count(&filter).map(drop),
            dead.requeued("c", 0, 10).map(drop),
            dead.failed_again(2, "attempts", &[], 1, 1),
            put(&dead, "c", 15_000).map(drop),
            dead.requeue(&Filter::default()).map(drop),
            dead.sync(),
            dead.expire(u64::MAX).map(drop),
            dead.purge(&Filter::default()).map(drop),
        ];
        outcomes.into_iter().filter_map(Result::err).collect()
    }

    #[test]
    fn a_damaged_file_is_an_error_and_never_a_panic() {
        let sound = sound();
        let (_dir, path) = place();
        let mut damaged = 0;
        let mut attempt = |bytes: &[u8]| {
            for end in ["-wal", "-shm"] {
                let _ = std::fs::remove_file(format!("{}{end}", path.display()));
            }
            std::fs::write(&path, bytes).unwrap();
            for error in use_all(&path) {
                assert!(error.contains(path.to_str().unwrap()), "{error}");
                damaged += usize::from(error.contains("is damaged"));
            }
        };
        attempt(&sound);
        // Every page in some places; each byte takes minutes.
        for at in (0..sound.len()).step_by(61) {
            let mut bytes = sound.clone();
            bytes[at] ^= 0xff;
            attempt(&bytes);
        }
        for page in 1..sound.len() / 4096 {
            attempt(&sound[..page * 4096]);
            attempt(&sound[..page * 4096 + 100]);
            let mut bytes = sound.clone();
            bytes[page * 4096..][..4096].fill(0);
            attempt(&bytes);
        }
        assert!(damaged > 0);
    }

    #[test]
    fn settings_are_checked() {
        let read = |toml: &str| Settings::from_settings(&Tree::from_toml(toml, "f").unwrap());
        assert_eq!(read(""), Ok(Settings::default()));
        let keep = read("keep = { bytes = '1 MiB', age = '7d' }").unwrap().keep;
        assert_eq!(keep.bytes, 1 << 20);
        assert_eq!(keep.age, Duration::from_secs(7 * 24 * 3600));
        let mistakes = read("keep = { bytes = 0, age = '0s' }").unwrap_err();
        let texts: Vec<String> = mistakes.iter().map(Mistake::to_string).collect();
        assert_eq!(
            texts,
            [
                "f:1:18: keep.bytes: expected room for at least 1 byte",
                "f:1:27: keep.age: expected more than no time"
            ]
        );
        assert!(read("keep = { messages = 1 }").is_err());
        assert!(read("age = '7d'").is_err());
    }

    #[derive(Clone, Debug)]
    enum Operation {
        SetAside {
            consumer: usize,
            payload: usize,
            cause: usize,
        },
        Feed {
            consumer: usize,
            payloads: Vec<usize>,
        },
        Requeue(Chosen),
        Delivering(usize),
        Purge(Chosen),
        Settled(usize),
        FailedAgain {
            which: usize,
            cause: usize,
        },
        Expire,
        Reopen,
        Sync,
        /// From here on, or no longer, nothing can be written.
        Spoil(bool),
    }

    #[derive(Clone, Debug)]
    enum Chosen {
        All,
        Consumer(usize),
        Ids(Vec<i64>),
    }

    const CONSUMERS: [&str; 3] = ["a", "b", "long-name"];
    const KEEP: u64 = 4000;

    fn chosen() -> impl Strategy<Value = Chosen> {
        prop_oneof![
            1 => Just(Chosen::All),
            3 => (0..3_usize).prop_map(Chosen::Consumer),
            5 => prop::collection::vec(0..30_i64, 1..4).prop_map(Chosen::Ids),
        ]
    }

    fn operation() -> impl Strategy<Value = Operation> {
        use Operation::*;
        let payload = prop_oneof![20 => 0..700_usize, 1 => 3000..6000_usize];
        prop_oneof![
            20 => (0..3_usize, payload, 0..400_usize).prop_map(|(consumer, payload, cause)| {
                SetAside { consumer, payload, cause }
            }),
            6 => (0..3_usize, prop::collection::vec(0..700_usize, 1..4)).prop_map(|(consumer, payloads)| {
                Feed { consumer, payloads }
            }),
            5 => chosen().prop_map(Requeue),
            5 => (0..8_usize).prop_map(Delivering),
            2 => chosen().prop_map(Purge),
            3 => (0..8_usize).prop_map(Settled),
            4 => (0..8_usize, 0..400_usize).prop_map(|(which, cause)| FailedAgain { which, cause }),
            3 => Just(Expire),
            1 => Just(Reopen),
            1 => Just(Sync),
            1 => prop_oneof![1 => Just(true), 3 => Just(false)].prop_map(Spoil),
        ]
    }

    /// What the file should have.
    #[derive(Default)]
    struct Model {
        letters: Vec<Letter>,
        last_id: i64,
        expired: u64,
    }

    fn bytes(letter: &Letter) -> u64 {
        let causes = serde_json::to_string(&letter.causes).unwrap();
        let texts = [&letter.consumer, &letter.topic, &letter.reason, &causes];
        let texts: usize = texts.into_iter().map(String::len).sum();
        256 + (texts + letter.payload.len()) as u64
    }

    impl Model {
        fn bytes(&self) -> u64 {
            self.letters.iter().map(bytes).sum()
        }

        fn matches(chosen: &Chosen, letter: &Letter) -> bool {
            match chosen {
                Chosen::All => true,
                Chosen::Consumer(consumer) => letter.consumer == CONSUMERS[*consumer],
                Chosen::Ids(ids) => ids.contains(&letter.id),
            }
        }

        /// The oldest go until the rest is within the bound; this one, the newest, stays.
        fn bound(&mut self, stays: i64) {
            while self.bytes() > KEEP && self.letters.len() > 1 {
                let oldest = usize::from(self.letters[0].id == stays);
                self.letters.remove(oldest);
                self.expired += 1;
            }
        }

        /// How many of a consumer wait to be delivered again, and what they take.
        fn waiting(&self, consumer: usize) -> (u64, u64) {
            let summary = self.summary();
            let own = summary
                .get(CONSUMERS[consumer])
                .copied()
                .unwrap_or_default();
            (own.requeued, own.requeued_bytes)
        }

        fn retain(&mut self, holds: impl Fn(&Letter) -> bool) -> u64 {
            let before = self.letters.len();
            self.letters.retain(holds);
            (before - self.letters.len()) as u64
        }

        fn summary(&self) -> BTreeMap<String, Summary> {
            let mut summary: BTreeMap<String, Summary> = BTreeMap::new();
            for letter in &self.letters {
                let entry = summary.entry(letter.consumer.clone()).or_insert(Summary {
                    oldest_ns: u64::MAX,
                    ..Summary::default()
                });
                entry.letters += 1;
                entry.bytes += bytes(letter);
                entry.oldest_ns = entry.oldest_ns.min(letter.set_aside_ns);
                if letter.requeued {
                    entry.requeued += 1;
                    entry.requeued_bytes += bytes(letter);
                }
            }
            summary
        }
    }

    fn filter(chosen: &Chosen) -> Filter {
        match chosen {
            Chosen::All => Filter::default(),
            Chosen::Consumer(consumer) => Filter {
                consumer: Some(CONSUMERS[*consumer].into()),
                ..Filter::default()
            },
            Chosen::Ids(ids) => of_ids(ids.clone()),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_figures_are_the_files(
            operations in prop::collection::vec((operation(), 0..40_u64), 1..60),
        ) {
            let (_dir, path) = place();
            let mut dead = DeadLetters::open(&path, &keep(KEEP as usize)).unwrap();
            let mut model = Model::default();
            let mut spoilt = false;
            let mut now = 1000;
            for (operation, passes) in operations {
                now += passes;
                match operation {
                    Operation::SetAside { consumer, payload, cause: length } => {
                        let message = message("t", &vec![b'x'; payload]);
                        let causes = [cause(&"c".repeat(length), 1)];
                        let letter = new(CONSUMERS[consumer], &message, &causes);
                        let id = dead.set_aside_at(&letter, now);
                        prop_assert_eq!(id.is_err(), spoilt);
                        let Ok(id) = id else { continue };
                        prop_assert!(id > model.last_id);
                        model.last_id = id;
                        let written = dead.show(id).unwrap().unwrap();
                        prop_assert_eq!(written.payload.len(), payload);
                        prop_assert_eq!(&written.causes, &causes);
                        prop_assert_eq!(written.set_aside_ns, now);
                        model.letters.push(written);
                        model.bound(id);
                    }
                    Operation::Feed { consumer, payloads } => {
                        let messages: Vec<_> = (payloads.iter())
                            .map(|bytes| message("t", &vec![b'x'; *bytes]))
                            .collect();
                        let taken: u64 = (payloads.iter())
                            .map(|payload| {
                                (CONSUMERS[consumer].len() + "treplay[]".len() + payload) as u64 + 256
                            })
                            .sum();
                        let full = model.bytes() + taken > KEEP;
                        let (waiting, waiting_bytes) = model.waiting(consumer);
                        let fed = dead.feed(CONSUMERS[consumer], &messages);
                        if spoilt {
                            // Whether there is room is known without writing.
                            prop_assert!(!fed.is_ok_and(|fed| fed.taken));
                        } else if waiting > 0 && (full || waiting_bytes + taken > KEEP / 4) {
                            prop_assert_eq!(fed, Ok(Fed { taken: false, waiting }));
                        } else if full {
                            prop_assert!(fed.unwrap_err().contains("no room"));
                        } else {
                            let waiting = waiting + messages.len() as u64;
                            prop_assert_eq!(fed, Ok(Fed { taken: true, waiting }));
                            let written = dead.list(&Filter::default(), model.last_id, 10).unwrap();
                            prop_assert_eq!(written.len(), messages.len());
                            for (letter, message) in written.into_iter().zip(&messages) {
                                prop_assert!(letter.requeued && letter.reason == REPLAY);
                                prop_assert_eq!(&letter.payload, message.payload());
                                model.last_id = letter.id;
                                // By the clock, which the model does not know.
                                now = now.max(letter.set_aside_ns);
                                model.letters.push(letter);
                            }
                        }
                    }
                    Operation::Delivering(which) => {
                        let Some(letter) = model.letters.get_mut(which) else { continue };
                        let marked = dead.delivering(letter.id);
                        match spoilt {
                            true => prop_assert!(marked.is_err()),
                            false => {
                                prop_assert_eq!(marked, Ok(letter.requeued));
                                letter.requeued = false;
                            }
                        }
                    }
                    Operation::Requeue(chosen) => {
                        let requeued = dead.requeue(&filter(&chosen));
                        prop_assert_eq!(requeued.is_err(), spoilt);
                        let Ok(requeued) = requeued else { continue };
                        let mut expected = 0;
                        for letter in &mut model.letters {
                            if !letter.requeued && Model::matches(&chosen, letter) {
                                letter.requeued = true;
                                expected += 1;
                            }
                        }
                        prop_assert_eq!(requeued, expected);
                    }
                    Operation::Purge(chosen) => {
                        let purged = dead.purge(&filter(&chosen));
                        prop_assert_eq!(purged.is_err(), spoilt);
                        let Ok(purged) = purged else { continue };
                        let expected = model.retain(|letter| !Model::matches(&chosen, letter));
                        prop_assert_eq!(purged, expected);
                    }
                    Operation::Settled(which) => {
                        let id = model.letters.get(which).map_or(999, |letter| letter.id);
                        prop_assert_eq!(dead.settled(id).is_err(), spoilt);
                        if !spoilt {
                            model.retain(|letter| letter.id != id);
                        }
                    }
                    Operation::FailedAgain { which, cause: length } => {
                        let id = model.letters.get(which).map_or(999, |letter| letter.id);
                        let causes = [cause(&"d".repeat(length), 1)];
                        let failed = dead.failed_again(id, "crash", &causes, 1, now);
                        prop_assert_eq!(failed.is_err(), spoilt);
                        if spoilt {
                            continue;
                        }
                        if let Some(letter) = model.letters.get_mut(which) {
                            Cause::add(&mut letter.causes, &causes[0].text, 1);
                            letter.reason = "crash".into();
                            letter.attempts += 1;
                            letter.last_failed_ns = now;
                            letter.requeued = false;
                            model.bound(id);
                        }
                    }
                    Operation::Expire => {
                        let expired = dead.expire(now);
                        if spoilt {
                            continue;
                        }
                        let expected = model.retain(|letter| letter.set_aside_ns + 100 >= now);
                        model.expired += expected;
                        prop_assert_eq!(expired, Ok(expected));
                    }
                    Operation::Reopen => {
                        drop(dead);
                        dead = DeadLetters::open(&path, &keep(KEEP as usize)).unwrap();
                        (spoilt, model.expired) = (false, 0);
                    }
                    Operation::Sync => {
                        let _ = dead.sync();
                    }
                    Operation::Spoil(whether) => {
                        spoilt = whether;
                        pragma(&dead, "query_only", spoilt.into());
                    }
                }
                prop_assert_eq!(&letters(&dead, &Filter::default()), &model.letters);
                prop_assert_eq!(dead.summary(), model.summary());
                let fresh = DeadLetters::read(&path).unwrap().unwrap();
                prop_assert_eq!(dead.summary(), fresh.summary());
                prop_assert_eq!(dead.expired(), model.expired);
                prop_assert!(model.bytes() <= KEEP || model.letters.len() == 1);
            }
        }
    }
}
