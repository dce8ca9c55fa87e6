//! The outbox: a file of SQLite with all that people are still to be told.
//!
//! 1. The notifications of a batch are in the file together, and on the disk, or not at all.
//! 2. A message that comes again is stored once, also when its notifications have gone out already.
//! 3. What goes out together stays together: a digest is put together once, in the file, before it
//!    is sent, so that a repeat has the same name.
//! 4. What the file is said to hold is what it holds: numbers are read when it is opened, and after
//!    any error it is opened anew.
//!
//! Where something goes does not stand in the file but in the configuration. When to send is
//! `delivery.rs`.
//!
//! | table         |                                                                         |
//! |---------------|-------------------------------------------------------------------------|
//! | notifications | one for each message, user and route; `parcel` is the number under which |
//! |               | it goes out, NULL while it waits for a digest                            |
//! | told          | the latest messages that were stored, by `received_ns` and `seq`         |

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::TransactionBehavior::Immediate;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, params};
use weir_consumer::{Failure, Result};

use crate::users::Route;

/// "weno": an outbox, and not an archive ("weir").
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"weno");
const USER_VERSION: i32 = 1;

const SCHEMA: &str = "
    CREATE TABLE notifications (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        received_ns INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        user TEXT NOT NULL,
        route TEXT NOT NULL,
        parcel INTEGER,
        attempts INTEGER NOT NULL DEFAULT 0,
        since INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        topic TEXT NOT NULL,
        subject TEXT NOT NULL,
        text TEXT NOT NULL,
        body BLOB NOT NULL,
        UNIQUE (received_ns, seq, user, route)
    );
    CREATE INDEX by_recipient ON notifications (route, user, parcel, id);
    CREATE TABLE told (
        n INTEGER PRIMARY KEY,
        received_ns INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        UNIQUE (received_ns, seq)
    );
";

/// So many messages are known again. What comes again after a crash is at most a batch and what was
/// settled in the seconds before.
const TOLD_MAX: i64 = if cfg!(test) { 20 } else { 100_000 };

/// How long to wait for whoever else reads the file, a backup say.
const BUSY_TIMEOUT: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 4 });

/// What a row costs besides its texts; about what SQLite needs for it and its indices.
const ROW_BYTES: usize = 200;

/// A user and a route: what waits for them goes out in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Recipient {
    pub(crate) route: Route,
    pub(crate) user: String,
}

/// What waits for a recipient.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Waiting {
    /// Notifications, ready and waiting for a digest.
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
    /// Those that wait for a digest.
    pub(crate) digest: usize,
    /// When the first of them was stored, in seconds since 1970.
    pub(crate) digest_since: i64,
}

impl Waiting {
    /// Notifications that may go out.
    pub(crate) fn ready(&self) -> usize {
        self.messages - self.digest
    }
}

/// One user's news of one message by one route.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Notification {
    pub(crate) received_ns: u64,
    pub(crate) seq: u64,
    pub(crate) recipient: Recipient,
    /// Waits for a digest.
    pub(crate) digest: bool,
    pub(crate) topic: String,
    pub(crate) subject: String,
    pub(crate) text: String,
    /// What a webhook posts.
    pub(crate) body: Vec<u8>,
}

impl Notification {
    pub(crate) fn bytes(&self) -> usize {
        let texts = [&self.topic, &self.subject, &self.text];
        texts.iter().map(|text| text.len()).sum::<usize>() + self.body.len() + ROW_BYTES
    }
}

/// What goes out together: one notification, or a digest.
#[derive(Debug, PartialEq)]
pub(crate) struct Parcel {
    pub(crate) id: i64,
    pub(crate) attempts: u64,
    /// Since when it is ready, in seconds since 1970.
    pub(crate) since: i64,
    pub(crate) notifications: Vec<Notification>,
}

/// An outbox that was recognised, and that is open for writing.
pub(crate) struct Outbox {
    path: PathBuf,
    connection: Connection,
    waiting: BTreeMap<Recipient, Waiting>,
    messages: usize,
    bytes: usize,
}

impl Outbox {
    /// Opens the outbox, and makes it when there is no file or an empty one.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(|error| {
                Failure::retry(format!("can't make {}: {error}", directory.display()))
            })?;
        }
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(path, flags).and_then(|connection| {
            connection.busy_timeout(BUSY_TIMEOUT)?;
            // Two who send from one outbox would send everything twice.
            connection.pragma_update_and_check(None, "locking_mode", "exclusive", |_| Ok(()))?;
            Ok(connection)
        });
        let mut connection = opened.map_err(|error| verdict(error, path))?;
        recognise_or_make(&mut connection, path)?;
        let mut outbox = Outbox {
            path: path.to_owned(),
            connection,
            waiting: BTreeMap::new(),
            messages: 0,
            bytes: 0,
        };
        (outbox.load()).map_err(|error| verdict(error, path))?;
        Ok(outbox)
    }

    fn load(&mut self) -> rusqlite::Result<()> {
        let mode = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
        (self.connection).pragma_update_and_check(None, "journal_mode", "wal", mode)?;
        // Takes the lock, which is then kept, even if there is nothing to do.
        (self.connection).execute_batch("BEGIN IMMEDIATE; COMMIT")?;
        let mut select = self.connection.prepare(
            "SELECT route, user, count(*), sum(bytes), count(*) - count(parcel),
                    min(CASE WHEN parcel IS NULL THEN since END)
             FROM notifications GROUP BY route, user",
        )?;
        let mut rows = select.query(())?;
        while let Some(row) = rows.next()? {
            // A route of a later version: left alone.
            let Some(route) = Route::named(&row.get::<_, String>(0)?) else {
                continue;
            };
            let user = row.get(1)?;
            let waiting = Waiting {
                messages: row.get(2)?,
                bytes: row.get(3)?,
                digest: row.get(4)?,
                digest_since: row.get::<_, Option<i64>>(5)?.unwrap_or(0),
            };
            self.messages += waiting.messages;
            self.bytes += waiting.bytes;
            self.waiting.insert(Recipient { route, user }, waiting);
        }
        Ok(())
    }

    /// All notifications in it.
    pub(crate) fn messages(&self) -> usize {
        self.messages
    }

    /// About the bytes that they take.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What waits, by recipient; only those for whom something waits.
    pub(crate) fn waiting(&self) -> &BTreeMap<Recipient, Waiting> {
        &self.waiting
    }

    /// What waits for this recipient.
    pub(crate) fn waiting_for(&self, recipient: &Recipient) -> Waiting {
        self.waiting.get(recipient).copied().unwrap_or_default()
    }

    /// Whether a message was stored already.
    pub(crate) fn knows(&self, received_ns: u64, seq: u64) -> Result<bool> {
        self.connection
            .prepare_cached("SELECT 1 FROM told WHERE received_ns = ?1 AND seq = ?2")
            .and_then(|mut select| select.exists((received_ns as i64, seq as i64)))
            .map_err(|error| verdict(error, &self.path))
    }

    /// Stores these, all or, on an error, none; what is there already stays as it is.
    pub(crate) fn store(&mut self, notifications: &[Notification]) -> Result {
        self.try_store(notifications)
            .map_err(|error| verdict(error, &self.path))
    }

    fn try_store(&mut self, notifications: &[Notification]) -> rusqlite::Result<()> {
        // On the disk before the message is settled: the hub will not bring it again.
        self.connection.pragma_update(None, "synchronous", "full")?;
        let transaction = (self.connection).transaction_with_behavior(Immediate)?;
        let mut stored = Vec::with_capacity(notifications.len());
        for new in notifications {
            stored.push(insert(&transaction, new)?);
        }
        (transaction
            .prepare_cached("DELETE FROM told WHERE n <= (SELECT max(n) FROM told) - ?1")?)
        .execute([TOLD_MAX])?;
        transaction.commit()?;
        for (new, stored) in notifications.iter().zip(stored) {
            if let Some(since) = stored {
                let waiting = self.waiting.entry(new.recipient.clone()).or_default();
                waiting.messages += 1;
                waiting.bytes += new.bytes();
                if new.digest {
                    if waiting.digest == 0 {
                        waiting.digest_since = since;
                    }
                    waiting.digest += 1;
                }
                self.messages += 1;
                self.bytes += new.bytes();
            }
        }
        Ok(())
    }

    /// Puts what waits for a recipient's digest into one parcel: the first `messages_max`, and no
    /// more than `bytes_max` unless the first alone is more.
    pub(crate) fn bundle(
        &mut self,
        recipient: &Recipient,
        messages_max: usize,
        bytes_max: usize,
    ) -> Result {
        let bundled = (|| {
            let transaction = (self.connection).transaction_with_behavior(Immediate)?;
            let of = (recipient.route.name(), &recipient.user);
            let rows: Vec<(i64, usize, i64)> = transaction
                .prepare_cached(
                    "SELECT id, bytes, since FROM notifications
                     WHERE route = ?1 AND user = ?2 AND parcel IS NULL ORDER BY id LIMIT ?3",
                )?
                .query_map((of.0, of.1, messages_max + 1), |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
                })?
                .collect::<rusqlite::Result<_>>()?;
            let mut bytes = 0;
            let fits = (rows.iter().take(messages_max))
                .take_while(|(_, more, _)| {
                    bytes += more;
                    bytes <= bytes_max
                })
                .count()
                .max(1);
            let Some((last, ..)) = rows.get(fits - 1) else {
                return Ok((0, 0)); // nothing waits
            };
            transaction.execute(
                "UPDATE notifications SET parcel = ?3, since = ?4
                 WHERE route = ?1 AND user = ?2 AND parcel IS NULL AND id <= ?3",
                params![of.0, of.1, last, now()],
            )?;
            transaction.commit()?;
            let next = rows.get(fits).map_or(0, |(_, _, since)| *since);
            Ok((fits, next))
        })();
        let (bundled, next) = bundled.map_err(|error| verdict(error, &self.path))?;
        if let Some(waiting) = self.waiting.get_mut(recipient) {
            waiting.digest = waiting.digest.saturating_sub(bundled);
            waiting.digest_since = next;
        }
        Ok(())
    }

    /// What goes out next to a recipient.
    pub(crate) fn next(&self, recipient: &Recipient) -> Result<Option<Parcel>> {
        self.try_next(recipient)
            .map_err(|error| verdict(error, &self.path))
    }

    fn try_next(&self, recipient: &Recipient) -> rusqlite::Result<Option<Parcel>> {
        let of = (recipient.route.name(), &recipient.user);
        let parcel: Option<i64> = (self.connection)
            .prepare_cached(
                "SELECT min(parcel) FROM notifications
                 WHERE route = ?1 AND user = ?2 AND parcel IS NOT NULL",
            )?
            .query_row(of, |row| row.get(0))
            .optional()?
            .flatten();
        let Some(id) = parcel else {
            return Ok(None);
        };
        let mut select = self.connection.prepare_cached(
            "SELECT received_ns, seq, topic, subject, text, body, attempts, since
             FROM notifications WHERE route = ?1 AND user = ?2 AND parcel = ?3 ORDER BY id",
        )?;
        let mut rows = select.query((of.0, of.1, id))?;
        let mut parcel = Parcel {
            id,
            attempts: 0,
            since: 0,
            notifications: Vec::new(),
        };
        while let Some(row) = rows.next()? {
            parcel.attempts = row.get::<_, i64>(6)? as u64;
            parcel.since = row.get(7)?;
            parcel.notifications.push(Notification {
                received_ns: row.get::<_, i64>(0)? as u64,
                seq: row.get::<_, i64>(1)? as u64,
                recipient: recipient.clone(),
                digest: false,
                topic: row.get(2)?,
                subject: row.get(3)?,
                text: row.get(4)?,
                body: row.get(5)?,
            });
        }
        Ok(Some(parcel))
    }

    /// Notes that a parcel could not be delivered now.
    pub(crate) fn failed(&mut self, recipient: &Recipient, parcel: i64) -> Result {
        self.relaxed(
            "UPDATE notifications SET attempts = attempts + 1
             WHERE route = ?1 AND user = ?2 AND parcel = ?3 RETURNING 0",
            (recipient.route.name(), &recipient.user, parcel),
        )?;
        Ok(())
    }

    /// Forgets a parcel, and answers how many notifications it had.
    pub(crate) fn remove(&mut self, recipient: &Recipient, parcel: i64) -> Result<usize> {
        let removed = self.relaxed(
            "DELETE FROM notifications WHERE route = ?1 AND user = ?2 AND parcel = ?3
             RETURNING bytes",
            (recipient.route.name(), &recipient.user, parcel),
        )?;
        Ok(self.removed(recipient, &removed))
    }

    /// Forgets what has been ready for a recipient since that time or longer.
    pub(crate) fn expire(&mut self, recipient: &Recipient, since: i64) -> Result<usize> {
        let removed = self.relaxed(
            "DELETE FROM notifications
             WHERE route = ?1 AND user = ?2 AND parcel IS NOT NULL AND since <= ?3
             RETURNING bytes",
            (recipient.route.name(), &recipient.user, since),
        )?;
        Ok(self.removed(recipient, &removed))
    }

    /// Forgets all that waits for a recipient.
    pub(crate) fn forget(&mut self, recipient: &Recipient) -> Result<usize> {
        let removed = self.relaxed(
            "DELETE FROM notifications WHERE route = ?1 AND user = ?2 RETURNING bytes",
            (recipient.route.name(), &recipient.user),
        )?;
        let count = self.removed(recipient, &removed);
        Ok(count)
    }

    /// A change that a crash of the process keeps, and that a power failure may undo: then something
    /// goes out twice, which is better than to wait for the disk after each.
    fn relaxed(&mut self, sql: &str, of: impl rusqlite::Params) -> Result<Vec<usize>> {
        let changed = (|| {
            (self.connection).pragma_update(None, "synchronous", "normal")?;
            let mut statement = self.connection.prepare_cached(sql)?;
            let bytes = statement.query_map(of, |row| row.get(0))?;
            bytes.collect::<rusqlite::Result<_>>()
        })();
        changed.map_err(|error| verdict(error, &self.path))
    }

    /// Lets every removal fail, or none.
    #[cfg(test)]
    pub(crate) fn refuse_removals(&self, refuse: bool) {
        let sql = match refuse {
            true => {
                "CREATE TEMP TRIGGER refuse BEFORE DELETE ON notifications
                 BEGIN SELECT RAISE(ABORT, 'refused'); END"
            }
            false => "DROP TRIGGER refuse",
        };
        self.connection.execute_batch(sql).unwrap();
    }

    fn removed(&mut self, recipient: &Recipient, bytes: &[usize]) -> usize {
        let total: usize = bytes.iter().sum();
        self.messages -= bytes.len();
        self.bytes -= total;
        if let Some(waiting) = self.waiting.get_mut(recipient) {
            waiting.messages -= bytes.len();
            waiting.bytes -= total;
            if waiting.messages == 0 {
                self.waiting.remove(recipient);
            }
        }
        bytes.len()
    }
}

/// Answers when it was stored, or nothing if it was there.
fn insert(transaction: &Transaction<'_>, new: &Notification) -> rusqlite::Result<Option<i64>> {
    let (received_ns, seq) = (new.received_ns as i64, new.seq as i64);
    (transaction
        .prepare_cached("INSERT OR IGNORE INTO told (received_ns, seq) VALUES (?1, ?2)")?)
    .execute((received_ns, seq))?;
    let since = now();
    let stored = transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO notifications
             (received_ns, seq, user, route, since, bytes, topic, subject, text, body)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            received_ns,
            seq,
            new.recipient.user,
            new.recipient.route.name(),
            since,
            new.bytes(),
            new.topic,
            new.subject,
            new.text,
            new.body,
        ])?;
    if stored == 0 {
        return Ok(None);
    }
    if !new.digest {
        (transaction.prepare_cached("UPDATE notifications SET parcel = id WHERE id = ?1")?)
            .execute([transaction.last_insert_rowid()])?;
    }
    Ok(Some(since))
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |since| since.as_secs() as i64)
}

/// Makes sure that the file is an outbox of this version; an empty file becomes one.
fn recognise_or_make(connection: &mut Connection, path: &Path) -> Result {
    let made = (|| {
        let transaction = connection.transaction_with_behavior(Immediate)?;
        let number = |sql: &str| transaction.query_row(sql, (), |row| row.get::<_, i32>(0));
        let application_id = number("PRAGMA application_id")?;
        let user_version = number("PRAGMA user_version")?;
        let tables = number("SELECT count(*) FROM sqlite_schema")?;
        Ok(match (application_id, user_version, tables) {
            (APPLICATION_ID, USER_VERSION, _) => None,
            (0, 0, 0) => {
                transaction.execute_batch(SCHEMA)?;
                transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
                transaction.pragma_update(None, "user_version", USER_VERSION)?;
                transaction.commit()?;
                None
            }
            (APPLICATION_ID, newer, _) => Some(format!(
                "an outbox of version {newer}; this weir knows versions up to {USER_VERSION}"
            )),
            _ => Some("no outbox of weir; choose another file with `store`".into()),
        })
    })();
    match made.map_err(|error| verdict(error, path))? {
        None => Ok(()),
        Some(other) => Err(Failure::halt(format!("{} is {other}", path.display()))),
    }
}

/// As in the archive: a file that is none, or a spoilt one, will be that for the next message, too.
fn verdict(error: rusqlite::Error, path: &Path) -> Failure {
    let shown = path.display();
    match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => Failure::halt(format!(
            "{shown}: {error}; choose another file with `store`"
        )),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Failure::retry(format!(
            "{shown}: {error}; an outbox has one user: no other consumer, no other hub, and \
             `workers = 1`"
        )),
        _ => Failure::retry(format!("{shown}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weir_consumer::Verdict;

    use super::*;

    fn recipient(route: Route, user: &str) -> Recipient {
        let user = user.into();
        Recipient { route, user }
    }

    fn notification(seq: u64, user: &str, digest: bool) -> Notification {
        Notification {
            received_ns: 1_000 + seq,
            seq,
            recipient: recipient(Route::Email, user),
            digest,
            topic: "t".into(),
            subject: format!("s{seq}"),
            text: "x".repeat(seq as usize),
            body: vec![0, 255],
        }
    }

    fn open(dir: &Path) -> Outbox {
        Outbox::open(&dir.join("notify.db")).unwrap()
    }

    #[test]
    fn a_file_has_one_user() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path());
        let second = Outbox::open(&dir.path().join("notify.db")).err().unwrap();
        assert_eq!(second.verdict(), Verdict::Retry);
        assert!(
            second.to_string().contains("an outbox has one user"),
            "{second}"
        );
        drop(first);
        open(dir.path());
    }

    #[test]
    fn a_file_of_something_else_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE messages (id)").unwrap();
        drop(other);
        let before = fs::read(&path).unwrap();
        let refused = Outbox::open(&path).err().unwrap();
        assert_eq!(refused.verdict(), Verdict::Halt);
        assert!(
            refused
                .to_string()
                .ends_with("choose another file with `store`")
        );
        fs::write(&path, "a letter to a friend ".repeat(100)).unwrap();
        let refused = Outbox::open(&path).err().unwrap();
        assert_eq!(refused.verdict(), Verdict::Halt);
        fs::write(&path, before).unwrap();
        let newer = dir.path().join("newer.db");
        drop(Outbox::open(&newer).unwrap());
        let connection = Connection::open(&newer).unwrap();
        connection.pragma_update(None, "user_version", 2).unwrap();
        drop(connection);
        let refused = Outbox::open(&newer).err().unwrap();
        assert!(refused.to_string().contains("version 2"), "{refused}");
    }

    #[test]
    fn a_full_disk_is_tried_again_and_stores_nothing_by_halves() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(dir.path());
        (outbox.connection)
            .pragma_update_and_check(None, "max_page_count", 12, |_| Ok(()))
            .unwrap();
        let many: Vec<Notification> = (1..500)
            .map(|seq| notification(seq, "ann", false))
            .collect();
        let failure = outbox.store(&many).unwrap_err();
        assert_eq!(failure.verdict(), Verdict::Retry);
        assert!(failure.to_string().contains("disk is full"), "{failure}");
        drop(outbox);
        let outbox = open(dir.path());
        assert_eq!((outbox.messages(), outbox.bytes()), (0, 0));
        assert!(!outbox.knows(1_001, 1).unwrap());
    }

    #[test]
    fn a_message_is_known_after_it_went_out_and_forgotten_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(dir.path());
        let ann = recipient(Route::Email, "ann");
        outbox.store(&[notification(1, "ann", false)]).unwrap();
        let parcel = outbox.next(&ann).unwrap().unwrap();
        assert_eq!(outbox.remove(&ann, parcel.id).unwrap(), 1);
        assert!(outbox.next(&ann).unwrap().is_none());
        assert!(outbox.knows(1_001, 1).unwrap());
        // The same number at another time is another message.
        assert!(!outbox.knows(1_002, 1).unwrap());
        for seq in 2..=TOLD_MAX as u64 + 1 {
            outbox.store(&[notification(seq, "ann", false)]).unwrap();
        }
        assert!(!outbox.knows(1_001, 1).unwrap());
        assert!(outbox.knows(1_002, 2).unwrap());
    }

    #[test]
    fn a_digest_stays_as_it_was_put_together() {
        let dir = tempfile::tempdir().unwrap();
        let mut outbox = open(dir.path());
        let ann = recipient(Route::Email, "ann");
        let of = |seqs: std::ops::Range<u64>| -> Vec<Notification> {
            seqs.map(|seq| notification(seq, "ann", true)).collect()
        };
        outbox.store(&of(1..4)).unwrap();
        assert!(outbox.next(&ann).unwrap().is_none());
        outbox.bundle(&ann, 2, usize::MAX).unwrap();
        outbox.store(&of(4..6)).unwrap();
        drop(outbox);
        let mut outbox = open(dir.path());
        assert_eq!(outbox.waiting_for(&ann).digest, 3);
        let seqs = |parcel: &Parcel| -> Vec<u64> {
            parcel.notifications.iter().map(|one| one.seq).collect()
        };
        let parcel = outbox.next(&ann).unwrap().unwrap();
        assert_eq!(seqs(&parcel), [1, 2]);
        assert_eq!(outbox.remove(&ann, parcel.id).unwrap(), 2);
        // By bytes: at least one, however large.
        outbox.bundle(&ann, 1000, 1).unwrap();
        assert_eq!(seqs(&outbox.next(&ann).unwrap().unwrap()), [3]);
        outbox.bundle(&ann, 1000, usize::MAX).unwrap();
        assert_eq!(outbox.waiting_for(&ann).ready(), 3);
        outbox.bundle(&ann, 1000, usize::MAX).unwrap(); // nothing waits: nothing happens
        assert_eq!(outbox.forget(&ann).unwrap(), 3);
        assert_eq!((outbox.messages(), outbox.bytes()), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Store(Vec<(u64, usize, bool)>),
        Next(usize),
        Failed(usize),
        Bundle(usize, usize),
        Reopen,
    }

    fn operation() -> impl Strategy<Value = Operation> {
        let stored = prop::collection::vec((1..12_u64, 0..3_usize, any::<bool>()), 1..6);
        prop_oneof![
            4 => stored.prop_map(Operation::Store),
            4 => (0..3_usize).prop_map(Operation::Next),
            1 => (0..3_usize).prop_map(Operation::Failed),
            2 => (0..3_usize, 1..4_usize).prop_map(|(user, max)| Operation::Bundle(user, max)),
            1 => Just(Operation::Reopen),
        ]
    }

    const USERS: [&str; 3] = ["ann", "bob", "eve"];

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Against lists of numbers: ready parcels, and what waits for a digest.
        #[test]
        fn what_is_stored_goes_out_once_and_in_order(
            operations in prop::collection::vec(operation(), 1..40)
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut outbox = open(dir.path());
            let mut ready: [Vec<Vec<u64>>; 3] = Default::default();
            let mut digest: [Vec<u64>; 3] = Default::default();
            for operation in operations {
                match operation {
                    Operation::Store(new) => {
                        let rows: Vec<Notification> = (new.iter())
                            .map(|(seq, user, digest)| notification(*seq, USERS[*user], *digest))
                            .collect();
                        outbox.store(&rows).unwrap();
                        for (seq, user, waits) in new {
                            let there = digest[user].contains(&seq)
                                || ready[user].iter().flatten().any(|known| *known == seq);
                            match (there, waits) {
                                (true, _) => {}
                                (false, true) => digest[user].push(seq),
                                (false, false) => ready[user].push(vec![seq]),
                            }
                        }
                    }
                    Operation::Next(user) => {
                        let to = recipient(Route::Email, USERS[user]);
                        let parcel = outbox.next(&to).unwrap();
                        let found = parcel.as_ref().map(|parcel| {
                            parcel.notifications.iter().map(|one| one.seq).collect::<Vec<_>>()
                        });
                        // A digest takes the place of its last message.
                        prop_assert_eq!(found.is_some(), !ready[user].is_empty());
                        if let (Some(parcel), Some(seqs)) = (parcel, found) {
                            let at = ready[user].iter().position(|known| *known == seqs);
                            let at = at.expect("a parcel that was not stored");
                            ready[user].remove(at);
                            let removed = outbox.remove(&to, parcel.id).unwrap();
                            prop_assert_eq!(removed, seqs.len());
                        }
                    }
                    Operation::Failed(user) => {
                        let to = recipient(Route::Email, USERS[user]);
                        if let Some(parcel) = outbox.next(&to).unwrap() {
                            outbox.failed(&to, parcel.id).unwrap();
                            let again = outbox.next(&to).unwrap().unwrap();
                            prop_assert_eq!(again.attempts, parcel.attempts + 1);
                            prop_assert_eq!(again.notifications, parcel.notifications);
                        }
                    }
                    Operation::Bundle(user, max) => {
                        let to = recipient(Route::Email, USERS[user]);
                        outbox.bundle(&to, max, usize::MAX).unwrap();
                        let taken = max.min(digest[user].len());
                        if taken > 0 {
                            ready[user].push(digest[user].drain(..taken).collect());
                        }
                    }
                    Operation::Reopen => {
                        drop(outbox);
                        outbox = open(dir.path());
                    }
                }
                for (user, name) in USERS.iter().enumerate() {
                    let waiting = outbox.waiting_for(&recipient(Route::Email, name));
                    let sizes = ready[user].iter().map(Vec::len).sum::<usize>();
                    prop_assert_eq!(waiting.ready(), sizes);
                    prop_assert_eq!(waiting.digest, digest[user].len());
                }
                let all = outbox.waiting().values();
                let (messages, bytes) = all.fold((0, 0), |(messages, bytes), waiting| {
                    (messages + waiting.messages, bytes + waiting.bytes)
                });
                prop_assert_eq!((outbox.messages(), outbox.bytes()), (messages, bytes));
            }
        }
    }
}
