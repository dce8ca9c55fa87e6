//! A connection to an archive in SQLite: how the file is recognised, made and written.
//!
//! The file says what it is in the two numbers that SQLite keeps for its users: `application_id`
//! is the bytes "weir", `user_version` the version of the schema ([`database`](crate::database) has
//! its columns). Version 1 knew neither seq nor hub nor message_id; it becomes version 2 in one
//! transaction, when the archive is opened for writing.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::TransactionBehavior::Immediate;
use rusqlite::types::ToSqlOutput;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use weir_consumer::{Failure, Message, Result};

use crate::database::{Synchronous, VERSION};

const APPLICATION_ID: i32 = i32::from_be_bytes(*b"weir");

// No index but the two that keep a message from being stored twice. Measured with a million
// messages of 500 bytes on 200 topics, 1000 in a transaction, on two busy cores; two runs each:
//
// | index                                          | messages a second   | file    |
// |------------------------------------------------|---------------------|---------|
// | none, as in version 1                          | 144,000 and 122,000 | 559 MiB |
// | `keys`, which grows at its end                 |  89,000 and  80,000 | 589 MiB |
// | the same and `message_ids` without any         |  98,000 and 110,000 | 589 MiB |
// | the same, each message with an id of its own   |  10,200 and  10,100 | 733 MiB |
//
// So the key costs a third of the speed and 5 % of the file, and a `message_ids` without ids
// nothing that can be told from the noise. Ids come in no order: each transaction changes a page of
// the index a message, which a larger cache does not help (9,500). Hence `id` is a setting, and
// unset. WITHOUT ROWID, the key as the table's own order, is as fast or faster with 500 bytes, but
// slower by a third and larger by 13 % with 2,000.
//
// An index on (topic, received_ns) made writing five times slower in version 1: for all, to speed
// up the queries of some, who can create it themselves.
const SCHEMA: &str = "
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY,
        received_ns INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        hub TEXT NOT NULL,
        topic TEXT NOT NULL,
        message_id TEXT,
        payload NOT NULL
    );
    CREATE UNIQUE INDEX keys ON messages (received_ns, seq, hub);
    CREATE UNIQUE INDEX message_ids ON messages (message_id) WHERE message_id IS NOT NULL;
";

// What was stored twice stays so: its second time, too, may have been a message of its own.
const FROM_1: &str = "
    ALTER TABLE messages ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE messages ADD COLUMN hub TEXT NOT NULL DEFAULT '';
    ALTER TABLE messages ADD COLUMN message_id TEXT;
    UPDATE messages SET seq = id;
    CREATE UNIQUE INDEX keys ON messages (received_ns, seq, hub);
    CREATE UNIQUE INDEX message_ids ON messages (message_id) WHERE message_id IS NOT NULL;
";

const INSERT: &str = "
    INSERT INTO messages (received_ns, seq, hub, topic, message_id, payload)
    VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT DO NOTHING";

/// Opens the archive for writing, and makes it when there is no file or an empty one.
pub(crate) fn connect(
    path: &Path,
    synchronous: Synchronous,
    timeout: Duration,
) -> Result<Connection> {
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
    connection.busy_timeout(timeout)?;
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
    Ok(connection)
}

/// Writes those of these messages that are not there yet, or none when it fails.
pub(crate) fn insert(
    connection: &mut Connection,
    hub: &str,
    batch: &[Message],
    ids: &[Option<String>],
) -> rusqlite::Result<()> {
    // Immediate: the write lock is waited for at the start, when nothing was done yet. Dropped
    // before its commit, on an error, the transaction is undone.
    let transaction = connection.transaction_with_behavior(Immediate)?;
    let mut insert = transaction.prepare_cached(INSERT)?;
    for (message, id) in batch.iter().zip(ids) {
        // SQLite's integers are signed; these end in the year 2262.
        let integer = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let (received_ns, seq) = (integer(message.received_ns()), integer(message.seq()));
        let (topic, payload) = (message.topic(), payload(message));
        insert.execute((received_ns, seq, hub, topic, id, payload))?;
    }
    drop(insert);
    transaction.commit()
}

/// Makes sure that the file is an archive of this version; an empty file becomes one.
fn recognise_or_make(connection: &mut Connection, path: &Path) -> Result {
    // One transaction that may write, so that of two hubs that come at once only one makes it.
    let transaction =
        (connection.transaction_with_behavior(Immediate)).map_err(|error| verdict(error, path))?;
    let found = (version(&transaction)?, tables(&transaction)?);
    let path = path.display();
    match found {
        (Some(VERSION), _) => Ok(()),
        (Some(1), _) => {
            transaction.execute_batch(FROM_1)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            Ok(transaction.commit()?)
        }
        (Some(newer), _) => Err(Failure::halt(format!(
            "{path} is an archive of version {newer}; this weir knows versions up to {VERSION}"
        ))),
        (None, 0) => {
            transaction.execute_batch(SCHEMA)?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            Ok(transaction.commit()?)
        }
        _ => Err(Failure::halt(format!(
            "{path} is a database of something else, not an archive of weir; choose another file"
        ))),
    }
}

/// The version of the archive, if it is one.
pub(crate) fn version(connection: &Connection) -> rusqlite::Result<Option<i32>> {
    let number = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i32>(0));
    let version = number("user_version")?;
    Ok((number("application_id")? == APPLICATION_ID).then_some(version))
}

/// How much there is in a file that is no archive: 0 only if nobody has ever used it.
fn tables(connection: &Connection) -> rusqlite::Result<i32> {
    let sql = "SELECT (SELECT count(*) FROM sqlite_schema)
                   + (SELECT user_version <> 0 FROM pragma_user_version)
                   + (SELECT application_id <> 0 FROM pragma_application_id)";
    connection.query_row(sql, (), |row| row.get(0))
}

/// A file that is no database, or a spoilt one, will be that for the next message too: the consumer
/// stops, and its messages stay unsettled. All else (the disk is full, another writer holds
/// the lock, the directory can't be written) can pass, and is tried again.
pub(crate) fn verdict(error: rusqlite::Error, path: impl AsRef<Path>) -> Failure {
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Failure::halt(format!(
            "{}: {error}; choose another file",
            path.as_ref().display()
        )),
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

    fn connect(directory: &Path) -> Connection {
        let path = directory.join("archive.db");
        super::connect(&path, Synchronous::Normal, Duration::from_millis(1)).unwrap()
    }

    /// So many messages, of different numbers.
    fn messages(count: u64) -> Vec<Message> {
        let now = SystemTime::now();
        (0..count)
            .map(|seq| Message::new("org.example".into(), "some text".into(), now, seq))
            .collect()
    }

    fn insert(connection: &mut Connection, batch: &[Message]) -> rusqlite::Result<()> {
        super::insert(connection, "weir", batch, &vec![None; batch.len()])
    }

    fn count(connection: &Connection) -> u32 {
        let count = "SELECT count(*) FROM messages";
        connection.query_row(count, (), |row| row.get(0)).unwrap()
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
        sqlite.commit_hook(Some(hook)).unwrap();
        insert(&mut sqlite, &messages(1000)).unwrap();
        assert_eq!(commits.load(Ordering::Relaxed), 1);
        assert_eq!(count(&sqlite), 1000);
    }

    #[test]
    fn a_commit_that_fails_is_undone() {
        let dir = tempfile::tempdir().unwrap();
        let mut sqlite = connect(dir.path());
        sqlite.commit_hook(Some(|| true)).unwrap();
        assert!(insert(&mut sqlite, &messages(1)).is_err());
        assert_eq!(count(&connect(dir.path())), 0);
    }

    #[test]
    fn a_full_disk_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut sqlite = connect(dir.path());
        // SQLite's own limit ends in the same error as the disk's.
        sqlite
            .pragma_update_and_check(None, "max_page_count", 8, |_| Ok(()))
            .unwrap();
        let error = insert(&mut sqlite, &messages(1000)).unwrap_err();
        let failure = verdict(error, "archive.db");
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
            let path = dir.path().join("archive.db");
            let sqlite = super::connect(&path, setting, Duration::from_secs(1)).unwrap();
            let synchronous = "PRAGMA synchronous";
            let found = sqlite.query_row(synchronous, (), |row| row.get::<_, i32>(0));
            assert_eq!(found, Ok(number));
        }
    }
}
