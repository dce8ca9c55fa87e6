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
use std::collections::{BTreeMap, BTreeSet};
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
    VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, FALSE, ?10, ?11, ?12)";

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
        let settings: Settings = section.parse()?;
        let mut mistakes = Vec::new();
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
    /// Why it is here: `attempts`, `dead_letter` or `crash`.
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
                 min(set_aside_ns) AS oldest_ns, sum(requeued) AS requeued
             FROM letters GROUP BY consumer",
        )?;
        let consumers = query.query_map((), |row| {
            let summary = Summary {
                letters: number(row, "letters")?,
                bytes: number(row, "bytes")?,
                oldest_ns: number(row, "oldest_ns")?,
                requeued: number(row, "requeued")?,
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
                summary.requeued = summary.requeued.saturating_sub(number(row, "requeued")?);
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
        let message = letter.message;
        let causes = chain(letter.causes);
        let texts = [letter.consumer, letter.reason, message.topic(), &causes];
        let texts: usize = texts.into_iter().map(str::len).sum();
        let bytes = (texts + message.payload().len()) as u64 + OVERHEAD;
        self.change(|transaction, figures| {
            // First, because what is deleted is room in the file for what comes.
            figures.make_room(transaction, self.keep_bytes(), bytes, NONE, u64::MAX)?;
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
                integer(bytes),
                causes,
                &message.payload()[..],
            ])?;
            figures.add(letter.consumer, bytes, set_aside_ns);
            Ok(transaction.last_insert_rowid())
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
             ) RETURNING id, consumer"
        );
        // Up to the newest at the begin: one that fails again meanwhile is not marked again.
        let newest = self.before_newest(&Filter::default(), 0)?;
        let mut after = NONE;
        let mut total = 0;
        loop {
            let bounds = [after.into(), newest.into()];
            let values = params_from_iter(bounds.into_iter().chain(values.iter().cloned()));
            let marked = self.change(|transaction, figures| {
                let mut update = transaction.prepare_cached(&sql)?;
                let mut rows = update.query(values)?;
                let mut marked = 0;
                while let Some(row) = rows.next()? {
                    let consumer: String = row.get("consumer")?;
                    if let Some(summary) = figures.consumers.get_mut(&consumer) {
                        summary.requeued += 1;
                    }
                    after = after.max(row.get("id")?);
                    marked += 1;
                }
                Ok(marked)
            })?;
            total += marked;
            if marked < CHUNK {
                return Ok(total);
            }
        }
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
        let purged = self.delete_all(&ids, &values)?;
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
            let known = "SELECT consumer, reason, causes, attempts, bytes, requeued
                         FROM letters WHERE id = ?";
            let known = transaction.prepare_cached(known)?.query_row([id], |row| {
                let texts =
                    row.get_ref("reason")?.as_str()?.len() + row.get_ref("causes")?.as_str()?.len();
                let mut all = self::causes(row)?;
                for cause in causes {
                    Cause::add(&mut all, &cause.text, cause.times);
                }
                let all = chain(&all);
                let bytes = number(row, "bytes")?;
                Ok((
                    row.get::<_, String>("consumer")?,
                    small(row, "attempts")?.saturating_add(attempts),
                    bytes,
                    bytes.saturating_sub(texts as u64) + (reason.len() + all.len()) as u64,
                    row.get::<_, bool>("requeued")?,
                    all,
                ))
            });
            let Some((consumer, attempts, bytes, new_bytes, requeued, all)) = known.optional()?
            else {
                return Ok(());
            };
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
                summary.requeued = summary.requeued.saturating_sub(requeued.into());
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
            let expired = self.delete_all(&ids, &[consumer.into(), integer(oldest_ns).into()])?;
            self.figures.lock().expired += expired;
            total += expired;
        }
        loop {
            let expired = self.change(|transaction, figures| {
                figures.make_room(transaction, self.keep_bytes(), 0, NONE, CHUNK)
            })?;
            total += expired;
            if expired < CHUNK {
                break;
            }
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
                    text.push_str("; the disk has failed: look after it, then restart the hub");
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

    /// Deletes by this query, which answers at most [`CHUNK`] ids, until there are no more.
    fn delete_all(&self, ids: &str, values: &[Value]) -> Result<u64, String> {
        let mut total = 0;
        loop {
            let deleted = self.change(|transaction, figures| {
                figures.delete(transaction, ids, params_from_iter(values))
            })?;
            total += deleted;
            if deleted < CHUNK {
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
