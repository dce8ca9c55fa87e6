//! A connection to an archive in SQLite: how the file is recognised, made and written.
//!
//! The file says what it is in the two numbers that SQLite keeps for its users: `application_id`
//! is the bytes "weir", `user_version` the version of the schema. Version 1:
//!
//! | column      |                                                                        |
//! |-------------|------------------------------------------------------------------------|
//! | id          | grows in the order of intake                                           |
//! | received_ns | when the hub took the message in, in nanoseconds since 1970            |
//! | topic       |                                                                        |
//! | payload     | TEXT when it is UTF-8, so that SQLite's JSON functions work; else BLOB |

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::TransactionBehavior::Immediate;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde::Deserialize;
use weir_consumer::{Failure, Message, Result};

const APPLICATION_ID: i32 = i32::from_be_bytes(*b"weir");
const USER_VERSION: i32 = 1;

// No index but the primary key. Measured with a million messages of 500 bytes on 200 topics, 1000
// in a transaction, two runs: without one 262,000 and 405,000 messages a second; with one on
// received_ns 252,000 and 300,000 (and 3 % more file); with one on (topic, received_ns) 55,000 and
// 59,000 (and 11 % more file). The second would make catching up five times slower for all to speed
// up the queries of some, who can create it themselves: an archive with indices added is still an
// archive. The first is little needed: ids grow in the order of intake, so a time is found by
// bisection over id, unless the clock went back.
const SCHEMA: &str = "
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY,
        received_ns INTEGER NOT NULL,
        topic TEXT NOT NULL,
        payload NOT NULL
    );
";

const INSERT: &str = "INSERT INTO messages (received_ns, topic, payload) VALUES (?1, ?2, ?3)";

/// How long to wait for another writer before the attempt fails; shorter than the hub's deadline
/// for stopping. Tests that lock the file on purpose don't want to wait.
const BUSY_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 5 });

/// When SQLite waits for the disk; see `sample.toml`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Synchronous {
    Normal,
    Full,
    Off,
}

/// An archive that was recognised, and that is open for writing.
pub(crate) struct Sqlite {
    path: PathBuf,
    connection: Connection,
}

impl Sqlite {
    /// Opens the archive, and makes it when there is no file or an empty one.
    pub(crate) fn connect(path: &Path, synchronous: Synchronous) -> Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|error| {
                Failure::retry(format!("can't make {}: {error}", directory.display()))
            })?;
        }
        // Without SQLITE_OPEN_URI: a path is a path, whatever it begins with.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut connection =
            Connection::open_with_flags(path, flags).map_err(|error| verdict(error, path))?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        // Before anything else, because a change of the journal mode is a change of the file.
        recognise_or_make(&mut connection, path)?;
        // With a write-ahead log readers and the writer don't wait for one another.
        let mode: String =
            connection.pragma_update_and_check(None, "journal_mode", "wal", |row| row.get(0))?;
        if mode != "wal" {
            return Err(Failure::halt(format!(
                "{}: SQLite can't keep a write-ahead log here (journal mode {mode}); is this a \
                 network file system?",
                path.display()
            )));
        }
        let synchronous = match synchronous {
            Synchronous::Normal => "normal",
            Synchronous::Full => "full",
            Synchronous::Off => "off",
        };
        connection.pragma_update(None, "synchronous", synchronous)?;
        Ok(Sqlite {
            path: path.to_owned(),
            connection,
        })
    }

    /// Writes all of these messages, or none when it fails.
    pub(crate) fn insert(&mut self, batch: &[Message]) -> Result {
        self.try_insert(batch)
            .map_err(|error| verdict(error, &self.path))
    }

    fn try_insert(&mut self, batch: &[Message]) -> rusqlite::Result<()> {
        // Immediate: the write lock is waited for at the start, when nothing was done yet. Dropped
        // before its commit, on an error, the transaction is undone.
        let transaction = (self.connection).transaction_with_behavior(Immediate)?;
        let mut insert = transaction.prepare_cached(INSERT)?;
        for message in batch {
            // SQLite's integers are signed; theirs end in the year 2262.
            let received_ns = i64::try_from(message.received_ns()).unwrap_or(i64::MAX);
            insert.execute((received_ns, message.topic(), payload(message)))?;
        }
        drop(insert);
        transaction.commit()
    }
}

/// Makes sure that the file is an archive of this version; an empty file becomes one.
fn recognise_or_make(connection: &mut Connection, path: &Path) -> Result {
    // One transaction that may write, so that of two hubs that come at once only one makes it.
    let transaction =
        (connection.transaction_with_behavior(Immediate)).map_err(|error| verdict(error, path))?;
    let number = |sql: &str| transaction.query_row(sql, (), |row| row.get::<_, i32>(0));
    let application_id = number("PRAGMA application_id")?;
    let user_version = number("PRAGMA user_version")?;
    let tables = number("SELECT count(*) FROM sqlite_schema")?;
    let path = path.display();
    match (application_id, user_version, tables) {
        (APPLICATION_ID, USER_VERSION, _) => Ok(()),
        (APPLICATION_ID, newer, _) => Err(Failure::halt(format!(
            "{path} is an archive of version {newer}; this weir knows versions up to {USER_VERSION}"
        ))),
        (0, 0, 0) => {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", USER_VERSION)?;
            Ok(transaction.commit()?)
        }
        _ => Err(Failure::halt(format!(
            "{path} is a database of something else, not an archive of weir; choose another file"
        ))),
    }
}

/// A file that is no database, or a spoilt one, will be that for the next message too: the consumer
/// stops, and its messages stay unsettled. All else (the disk is full, another writer holds
/// the lock, the directory can't be written) can pass, and is tried again.
fn verdict(error: rusqlite::Error, path: &Path) -> Failure {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            Failure::halt(format!("{}: {error}; choose another file", path.display()))
        }
        _ => error.into(),
    }
}

/// UTF-8 as TEXT, anything else as BLOB. So is UTF-8 that contains NUL, because SQLite's functions
/// on texts stop there, and it can't be JSON anyway.
fn payload(message: &Message) -> ToSqlOutput<'_> {
    match std::str::from_utf8(message.payload()) {
        Ok(text) if !text.contains('\0') => text.into(),
        _ => message.payload().as_ref().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::SystemTime;

    use weir_consumer::Verdict;

    use super::*;

    fn connect(directory: &Path) -> Sqlite {
        Sqlite::connect(&directory.join("archive.db"), Synchronous::Normal).unwrap()
    }

    fn message(payload: &'static str) -> Message {
        Message::new("org.example".into(), payload.into(), SystemTime::now(), 1)
    }

    fn count(sqlite: &Sqlite) -> u32 {
        let count = "SELECT count(*) FROM messages";
        let count = sqlite.connection.query_row(count, (), |row| row.get(0));
        count.unwrap()
    }

    #[test]
    fn a_batch_is_one_transaction() {
        let dir = tempfile::tempdir().unwrap();
        let mut sqlite = connect(dir.path());
        let commits = Arc::new(AtomicUsize::new(0));
        let seen = commits.clone();
        let hook = move || {
            seen.fetch_add(1, Ordering::Relaxed);
            false // false: go on with the commit
        };
        sqlite.connection.commit_hook(Some(hook)).unwrap();
        sqlite.insert(&vec![message("x"); 1000]).unwrap();
        assert_eq!(commits.load(Ordering::Relaxed), 1);
        assert_eq!(count(&sqlite), 1000);
    }

    #[test]
    fn a_commit_that_fails_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let mut sqlite = connect(dir.path());
        sqlite.connection.commit_hook(Some(|| true)).unwrap();
        assert!(sqlite.insert(&[message("x")]).is_err());
        assert_eq!(count(&connect(dir.path())), 0);
    }

    #[test]
    fn a_full_disk_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut sqlite = connect(dir.path());
        // SQLite's own limit ends in the same error as the disk's.
        (sqlite.connection)
            .pragma_update_and_check(None, "max_page_count", 4, |_| Ok(()))
            .unwrap();
        let failure = sqlite
            .insert(&vec![message("some text"); 1000])
            .unwrap_err();
        assert_eq!(failure.verdict(), Verdict::Retry);
        assert!(
            failure.to_string().starts_with("database or disk is full"),
            "{failure}"
        );
        assert_eq!(count(&connect(dir.path())), 0);
    }

    #[test]
    fn a_spoilt_file_halts() {
        let path = Path::new("archive.db");
        let error = |code| rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        let corrupt = verdict(error(rusqlite::ffi::SQLITE_CORRUPT), path);
        assert_eq!(corrupt.verdict(), Verdict::Halt);
        let no_access = verdict(error(rusqlite::ffi::SQLITE_CANTOPEN), path);
        assert_eq!(no_access.verdict(), Verdict::Retry);
    }

    #[test]
    fn synchronous_reaches_sqlite() {
        let dir = tempfile::tempdir().unwrap();
        for (setting, number) in [
            (Synchronous::Off, 0),
            (Synchronous::Normal, 1),
            (Synchronous::Full, 2),
        ] {
            let sqlite = Sqlite::connect(&dir.path().join("archive.db"), setting).unwrap();
            let synchronous = "PRAGMA synchronous";
            let found = (sqlite.connection).query_row(synchronous, (), |row| row.get::<_, i32>(0));
            assert_eq!(found, Ok(number));
        }
    }
}
