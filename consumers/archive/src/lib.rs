//! The kind `archive`: every message into a database, where it stays.
//!
//! What it promises:
//!
//! 1. A message is settled only after the transaction that holds it was committed.
//! 2. What waits is written together, in one transaction: all of a batch or nothing of it.
//! 3. What is not a weir archive, or is one of a later version, is not touched.
//! 4. A message is stored once, however often it is delivered: its key is the hub's name, the time
//!    and the number of its intake. With the setting `id` it is also stored once if several hubs
//!    took it in.
//!
//! What it leaves to others: trying for as long as a full disk or a dead server lasts (`retry = {
//! attempts = 0 }`, a key of the hub; after its attempts a message is set aside); deleting what is
//! old; indices for queries by topic (`messages` is a plain table, and whoever queries it often
//! adds the index that the query needs); and leaving the file alone while the hub runs: SQLite does
//! not stand a database that is moved away under it.

pub mod database;
#[cfg(feature = "postgres")]
mod postgres;
pub mod query;
mod sqlite;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use metrics::histogram;
use serde::Deserialize;
use weir_consumer::settings::{Mistake, Settings as Tree, duration};
use weir_consumer::{Consumer, Context, Failure, Kind, Message, Result, Secret};

use database::{Database, Location, Synchronous, Tls, Url};

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    url: Url,
    password: Option<Secret>,
    tls: Tls,
    ca: Option<PathBuf>,
    #[serde(deserialize_with = "duration")]
    timeout: Duration,
    synchronous: Synchronous,
    /// Messages in one transaction.
    batch_max: NonZeroUsize,
    /// Where messages have an id of their own: a JSON pointer.
    id: Option<String>,
}

impl Default for Settings {
    fn default() -> Self {
        let location = Location::default();
        Settings {
            url: location.url,
            password: location.password,
            tls: location.tls,
            ca: location.ca,
            timeout: location.timeout,
            synchronous: location.synchronous,
            batch_max: const { NonZeroUsize::new(1000).expect("1000 is not 0") },
            id: None,
        }
    }
}

/// A longer id is none: an index has its limits.
const ID_BYTES_MAX: usize = 1000;

struct Archive {
    location: Location,
    data_dir: PathBuf,
    hub: String,
    batch_max: usize,
    id: Option<String>,
    /// None before the first message and after an error.
    database: Option<Database>,
}

/// The kind `archive`.
pub fn kind() -> Kind {
    Kind::consumer("archive", build)
        .summary("writes every message into a database, of SQLite or PostgreSQL")
        .sample(include_str!("../sample.toml"))
}

/// Where the archive of a consumer of this kind is, by the kind's part of its section.
///
/// # Errors
/// Every mistake in it.
pub fn location(settings: &Tree) -> std::result::Result<Location, Vec<Mistake>> {
    Ok(settings.parse::<Settings>()?.location())
}

/// The id of a message as a database keeps it, by what stands in its JSON at the place for it.
///
/// A text is kept as it is, a whole number of 64 bits as its digits behind `#`. A text that looks
/// like that gets another `#`: a text and a number never are the same id. Nothing else is an id; any
/// other number was rounded when it was read, and would be the id of its neighbours as well.
///
/// ```
/// use serde_json::json;
/// use weir_archive::message_id;
///
/// assert_eq!(message_id(&json!("2026-7")).as_deref(), Some("2026-7"));
/// assert_eq!(message_id(&json!(7)).as_deref(), Some("#7"));
/// assert_eq!(message_id(&json!("#7")).as_deref(), Some("##7"));
/// assert_eq!(message_id(&json!(7.5)), None);
/// ```
pub fn message_id(found: &serde_json::Value) -> Option<String> {
    let id = match found {
        serde_json::Value::String(text) => match like_a_number(text) {
            true => format!("#{text}"),
            false => text.clone(),
        },
        serde_json::Value::Number(number) if number.is_i64() || number.is_u64() => {
            format!("#{number}")
        }
        _ => return None,
    };
    // PostgreSQL knows no NUL in a text.
    (!id.is_empty() && id.len() <= ID_BYTES_MAX && !id.contains('\0')).then_some(id)
}

/// Whether a text could be a kept number, or is what becomes of such a text.
fn like_a_number(text: &str) -> bool {
    let digits = text.trim_start_matches('#').trim_start_matches('-');
    text.starts_with('#') && digits.bytes().all(|byte| byte.is_ascii_digit())
}

impl Settings {
    fn location(&self) -> Location {
        Location {
            url: self.url.clone(),
            password: self.password.clone(),
            tls: self.tls,
            ca: self.ca.clone(),
            synchronous: self.synchronous,
            timeout: self.timeout,
        }
    }
}

fn build(settings: Settings, context: &Context) -> Result<Archive> {
    let location = settings.location();
    location.check()?;
    if settings.id.as_ref().is_some_and(|id| !id.starts_with('/')) {
        return Err(Failure::halt(
            "`id` has to be a JSON pointer such as \"/msg_id\"",
        ));
    }
    Ok(Archive {
        location,
        data_dir: context.data_dir().to_owned(),
        hub: context.hub().to_owned(),
        batch_max: settings.batch_max.get(),
        id: settings.id,
        database: None,
    })
}

impl Archive {
    /// The id that a message has of its own. Its JSON is not parsed where none is asked for.
    fn id(&self, message: &Message) -> Option<String> {
        let pointer = self.id.as_deref()?;
        message_id(message.json().ok()?.pointer(pointer)?)
    }
}

impl Consumer for Archive {
    fn consume(&mut self, message: &Message) -> Result {
        self.consume_batch(std::slice::from_ref(message))
    }

    fn batch_max(&self) -> usize {
        self.batch_max
    }

    fn consume_batch(&mut self, batch: &[Message]) -> Result {
        let ids: Vec<Option<String>> = batch.iter().map(|message| self.id(message)).collect();
        // Taken out, and put back only after all went well: an error discards the connection, which
        // undoes what it had not committed, and the next attempt connects as the first one did.
        let mut database = match self.database.take() {
            Some(database) => database,
            None => self.location.connect(&self.data_dir)?,
        };
        match &mut database {
            Database::Sqlite(connection) => sqlite::insert(connection, &self.hub, batch, &ids)
                .map_err(|error| sqlite::verdict(error, connection.path().unwrap_or_default()))?,
            #[cfg(feature = "postgres")]
            Database::Postgres(postgres) => postgres.insert(&self.hub, batch, &ids)?,
        }
        histogram!("archive_batch_messages").record(batch.len() as f64);
        self.database = Some(database);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;
    use rusqlite::Connection;
    use weir_consumer::testkit::{Harness, build, conformance, sample_settings};
    use weir_consumer::{Publisher, Verdict};

    use super::*;

    /// An archive in `archive.db` of the directory, not connected yet.
    fn archive(data_dir: &Path) -> Harness<Archive> {
        let context = Context::new("archive", data_dir, Publisher::nowhere());
        // Tests that lock the file on purpose don't want to wait.
        let settings = Settings {
            timeout: Duration::from_millis(1),
            ..Settings::default()
        };
        Harness::new(super::build(settings, &context).unwrap())
    }

    /// A second connection to it.
    fn reader(data_dir: &Path) -> Connection {
        Connection::open(data_dir.join("archive.db")).unwrap()
    }

    fn topics(reader: &Connection) -> Vec<String> {
        let mut select = reader
            .prepare("SELECT topic FROM messages ORDER BY id")
            .unwrap();
        let topics = select.query_map((), |row| row.get(0)).unwrap();
        topics.map(std::result::Result::unwrap).collect()
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: Settings = sample_settings(&kind()).parse().unwrap();
        assert_eq!(sample, Settings::default());
    }

    #[test]
    fn bad_settings_are_refused_with_what_would_be_right() {
        let toml = "batch_max = 0\nsynchronous = 'fast'\nulr = 'sqlite:a'\nurl = 'mysql://host/a'";
        let mistakes = build(&kind(), toml, Path::new("")).err().unwrap();
        let texts: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "archive:1:13: batch_max: expected a whole number of at least 1, found the number 0",
                "archive:2:15: synchronous: unknown value `fast`; known here: normal, full, off",
                "archive:3:1: ulr: unknown key; did you mean `url`?",
                "archive:4:7: url: the scheme `mysql` is not supported; supported is a file of \
                 SQLite, such as \"sqlite:archive.db\" or \"sqlite:/var/lib/weir/archive.db\", and \
                 a database of PostgreSQL, such as \"postgres://weir@db.example.org/weir\"",
            ]
        );
    }

    #[test]
    fn a_url_that_would_surprise_is_refused() {
        let problem = |url: &str| Url::try_from(url.to_owned()).unwrap_err();
        assert!(problem("archive.db").starts_with("\"archive.db\" has no scheme; supported"));
        assert!(problem("sqlite:").starts_with("the path is missing; supported"));
        assert!(problem("sqlite::memory:").starts_with("an archive in memory would"));
        assert!(problem("sqlite://archive.db").contains("names a host"));
        assert!(problem("sqlite:archive.db?mode=ro").contains("options"));
        let sqlite = |path: &str| Ok(Url::Sqlite(path.into()));
        assert_eq!(Url::try_from("sqlite:a/b.db".to_owned()), sqlite("a/b.db"));
        assert_eq!(Url::try_from("sqlite:///a.db".to_owned()), sqlite("/a.db"));
    }

    #[test]
    fn building_creates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let _archive = archive(dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn it_stands_what_every_consumer_has_to_stand() {
        let dir = tempfile::tempdir().unwrap();
        conformance(|| build(&kind(), "url = 'sqlite:new/archive.db'", dir.path()).unwrap());
    }

    #[test]
    fn what_was_settled_is_read_back_with_a_second_connection() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("created/on first use");
        let mut archive = archive(&data_dir);
        let messages: [(&str, &[u8]); 4] = [
            ("org.example.a", br#"{"id": 7}"#),
            ("org.example.b", b"\xff\xfe"),
            ("org.example.c", b"one\0two"),
            ("", b""),
        ];
        assert_eq!(archive.feed_batch(messages), Ok(()));

        let reader = reader(&data_dir);
        for (id, (topic, payload)) in (1..).zip(messages) {
            let found: (String, Vec<u8>, i64) = reader
                .query_row(
                    "SELECT topic, CAST(payload AS BLOB), received_ns FROM messages WHERE id = ?1",
                    [id],
                    |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
                )
                .unwrap();
            assert_eq!((found.0.as_str(), found.1.as_slice()), (topic, payload));
            assert!(found.2 > 1_500_000_000_000_000_000, "{}", found.2);
        }
        let text = |sql: &str| reader.query_row(sql, (), |row| row.get::<_, String>(0));
        assert_eq!(
            text("SELECT group_concat(typeof(payload)) FROM messages").unwrap(),
            "text,blob,blob,text"
        );
        let id = "SELECT CAST(payload ->> '$.id' AS TEXT) FROM messages WHERE id = 1";
        assert_eq!(text(id).unwrap(), "7");
        assert_eq!(text("PRAGMA journal_mode").unwrap(), "wal");
    }

    #[test]
    fn a_failing_transaction_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = archive(dir.path());
        assert_eq!(archive.feed("first", ""), Ok(()));
        let reader = reader(dir.path());
        let trigger = "CREATE TRIGGER refuse BEFORE INSERT ON messages WHEN NEW.topic = 'bad'
                       BEGIN SELECT RAISE(ABORT, 'refused'); END";
        reader.execute_batch(trigger).unwrap();

        let batch = [("good", ""), ("bad", ""), ("good too", "")];
        assert_eq!(archive.feed_batch(batch), Err(Verdict::Retry));
        assert!(archive.last_failure().unwrap().starts_with("refused"));
        assert_eq!(topics(&reader), ["first"]);

        // As the hub then does: one by one.
        assert_eq!(archive.feed("good", ""), Ok(()));
        assert_eq!(archive.feed("bad", ""), Err(Verdict::Retry));
        assert_eq!(archive.feed("good too", ""), Ok(()));
        assert_eq!(topics(&reader), ["first", "good", "good too"]);
    }

    #[test]
    fn an_error_discards_the_connection_and_the_next_attempt_connects() {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = archive(dir.path());
        assert_eq!(archive.feed("first", ""), Ok(()));
        let writer = reader(dir.path());
        writer.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(archive.feed("second", ""), Err(Verdict::Retry));
        let failure = archive.last_failure().unwrap();
        assert!(failure.starts_with("database is locked"), "{failure}");
        assert!(archive.consumer().database.is_none());
        writer.execute_batch("COMMIT").unwrap();
        assert_eq!(archive.feed("second", ""), Ok(()));
        assert_eq!(topics(&writer), ["first", "second"]);
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_tried_again() {
        let dir = tempfile::tempdir().unwrap();
        let in_the_way = dir.path().join("data");
        fs::write(&in_the_way, "").unwrap();
        let mut archive = archive(&in_the_way);
        assert_eq!(archive.feed("a", ""), Err(Verdict::Retry));
        fs::remove_file(&in_the_way).unwrap();
        assert_eq!(archive.feed("a", ""), Ok(()));
    }

    #[test]
    fn two_instances_share_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (archive(dir.path()), archive(dir.path()));
        assert_eq!(one.feed("a", ""), Ok(()));
        assert_eq!(other.feed("b", ""), Ok(()));
        assert_eq!(one.feed("c", ""), Ok(()));
        assert_eq!(topics(&reader(dir.path())), ["a", "b", "c"]);
    }

    #[test]
    fn an_archive_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(archive(dir.path()).feed("before", ""), Ok(()));
        assert_eq!(archive(dir.path()).feed("after", ""), Ok(()));
        assert_eq!(topics(&reader(dir.path())), ["before", "after"]);
    }

    /// Feeds one message to an archive in this file; it must stop and leave the file as it was.
    fn refusal(data_dir: &Path) -> String {
        let path = data_dir.join("archive.db");
        let before = fs::read(&path).unwrap();
        let mut archive = archive(data_dir);
        assert_eq!(archive.feed("a", ""), Err(Verdict::Halt));
        assert_eq!(fs::read(&path).unwrap(), before);
        let path = path.display().to_string();
        archive.last_failure().unwrap().replace(&path, "FILE")
    }

    #[test]
    fn an_archive_of_a_newer_version_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(archive(dir.path()).feed("a", ""), Ok(()));
        let newer = reader(dir.path());
        newer.pragma_update(None, "user_version", 3).unwrap();
        drop(newer);
        assert_eq!(
            refusal(dir.path()),
            "FILE is an archive of version 3; this weir knows versions up to 2"
        );
    }

    #[test]
    fn a_database_of_something_else_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let other = reader(dir.path());
        other.execute_batch("CREATE TABLE messages (id)").unwrap();
        drop(other);
        assert_eq!(
            refusal(dir.path()),
            "FILE is a database of something else, not an archive of weir; choose another file"
        );
    }

    #[test]
    fn a_file_that_is_no_database_is_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let text = "a letter to a friend, ".repeat(100);
        fs::write(dir.path().join("archive.db"), text).unwrap();
        assert_eq!(
            refusal(dir.path()),
            "FILE: file is not a database; choose another file"
        );
    }

    #[test]
    fn an_archive_of_version_1_becomes_one_of_version_2() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("archive.db");
        fs::write(&path, include_bytes!("../tests/fixtures/archive-v1.db")).unwrap();
        let location = Location::default();
        let told = query::Reader::open(&location, dir.path(), query::Filter::default());
        let told = told.err().unwrap().to_string();
        assert!(told.contains("becomes version 2 when"), "{told}");

        assert_eq!(archive(dir.path()).feed("after", ""), Ok(()));
        assert_eq!(
            topics(&reader(dir.path())),
            [
                "org.example.a",
                "org.example.b",
                "org.example.b",
                "",
                "after"
            ]
        );
        let mut archive = query::Reader::open(&location, dir.path(), query::Filter::default());
        let read = archive.as_mut().ok().unwrap().page().unwrap();
        let keys: Vec<(i64, &str)> = read.iter().map(|m| (m.seq, m.hub.as_str())).collect();
        assert_eq!(keys, [(1, ""), (2, ""), (3, ""), (4, ""), (1, "weir")]);
        assert_eq!(read[1].payload, b"\xff\xfe");
        let index = "SELECT count(*) FROM sqlite_schema WHERE name = 'by_topic'";
        let kept: i32 = reader(dir.path())
            .query_row(index, (), |row| row.get(0))
            .unwrap();
        assert_eq!(kept, 1);
    }

    /// A message with this id of its own.
    fn message(hub_seq: u64, received_ns: u64, id: &str) -> Message {
        let payload = format!("{{\"msg_id\": {id}, \"n\": {hub_seq}}}");
        Message::at_ns("t".into(), payload.into(), received_ns, hub_seq)
    }

    fn with_ids(data_dir: &Path, hub: &str) -> Archive {
        let context = Context::new("archive", data_dir, Publisher::nowhere()).in_hub(hub);
        let settings = Settings {
            id: Some("/msg_id".into()),
            timeout: Duration::from_millis(1),
            ..Settings::default()
        };
        super::build(settings, &context).unwrap()
    }

    #[test]
    fn an_id_makes_one_of_what_several_hubs_took_in() {
        let dir = tempfile::tempdir().unwrap();
        let (mut one, mut other) = (with_ids(dir.path(), "one"), with_ids(dir.path(), "other"));
        let long = format!("\"{}\"", "x".repeat(ID_BYTES_MAX + 1));
        let kept_once = [
            "\"a\"",
            "7",
            "\"7\"",
            "\"#7\"",
            "\"##7\"",
            "-9223372036854775808",
            "18446744073709551615",
        ];
        let kept_twice = [
            "null",
            "\"\"",
            "[1]",
            "{}",
            "true",
            "\"a\\u0000\"",
            &long,
            "1.5",
            "7.0",
            "1e2",
            "-9223372036854775809",
            "18446744073709551616",
            // As floats these are one and the same.
            "98765432109876543210987654321",
            "98765432109876543210987654322",
        ];
        for (seq, id) in (1..).zip(kept_once.iter().chain(&kept_twice)) {
            one.consume(&message(seq, seq, id)).unwrap();
            other.consume(&message(seq + 50, seq + 99, id)).unwrap();
        }
        let reader = reader(dir.path());
        let count = |hub: &str| {
            let count = "SELECT count(*) FROM messages WHERE hub = ?";
            reader
                .query_row(count, [hub], |row| row.get::<_, i64>(0))
                .unwrap()
        };
        assert_eq!(count("one"), (kept_once.len() + kept_twice.len()) as i64);
        assert_eq!(count("other"), kept_twice.len() as i64);
    }

    #[test]
    fn an_id_has_to_be_a_pointer() {
        let mistakes = build(&kind(), "id = 'msg_id'", Path::new(""))
            .err()
            .unwrap();
        let text = "archive: `id` has to be a JSON pointer such as \"/msg_id\"";
        assert_eq!(mistakes[0].to_string(), text);
    }

    #[test]
    fn settings_that_do_not_go_together_are_refused() {
        for (toml, text) in [
            ("timeout = '0s'", "`timeout` has to be more than no time"),
            (
                "password = { env = 'X' }",
                "`password` is for PostgreSQL only",
            ),
            ("ca = 'x.pem'", "`ca` is for PostgreSQL only"),
            #[cfg(feature = "postgres")]
            (
                "url = 'postgres://u@h/d'\nca = 'x.pem'",
                "`ca` is used only with tls",
            ),
            #[cfg(feature = "postgres")]
            (
                "url = 'postgres:///d?host=/run'\ntls = 'require'",
                "a Unix socket is not encrypted",
            ),
        ] {
            let mistakes = build(&kind(), toml, Path::new("")).err().unwrap();
            let told = mistakes[0].to_string();
            assert!(told.contains(text), "{told}");
        }
    }

    /// What a hub does with an archive, and the world with both.
    #[derive(Clone, Debug)]
    enum Step {
        /// Delivers these messages, which may have been delivered before.
        Deliver(Vec<u64>),
        /// The same, and the disk is full, or the process ends before the message is settled.
        Fail(Vec<u64>),
        /// A new instance, as after a restart.
        Restart,
    }

    fn step() -> impl Strategy<Value = Step> {
        let numbers = || prop::collection::vec(0..30_u64, 1..12);
        prop_oneof![
            6 => numbers().prop_map(Step::Deliver),
            2 => numbers().prop_map(Step::Fail),
            1 => Just(Step::Restart),
        ]
    }

    proptest! {
        #[test]
        fn different_ids_are_kept_as_different_texts(
            one in "[#-]{0,3}[0-9a]{0,2}", other in "[#-]{0,3}[0-9a]{0,2}", number in -99..99_i64,
        ) {
            let kept = |text: &str| message_id(&text.into());
            prop_assert_eq!(kept(&one) == kept(&other), one == other);
            prop_assert_ne!(kept(&one), message_id(&number.into()));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_message_is_stored_once(steps in prop::collection::vec(step(), 1..30)) {
            let dir = tempfile::tempdir().unwrap();
            let mut archive = with_ids(dir.path(), "hub");
            let mut model = BTreeSet::new();
            // Two in three have an id, and every fourth the id of another.
            let batch = |numbers: &[u64]| -> Vec<Message> {
                let id = |n: u64| match n % 3 {
                    0 => "null".to_owned(),
                    _ => (n - n % 4 / 3).to_string(),
                };
                numbers.iter().map(|n| message(*n, 1000 + n / 5, &id(*n))).collect()
            };
            let key = |message: &Message| {
                let id = message.json().unwrap()["msg_id"].as_u64();
                (id.is_none().then_some(message.seq()), id)
            };
            archive.consume(&message(99, 5, "null")).unwrap();
            let reader = reader(dir.path());
            for step in steps {
                match step {
                    Step::Deliver(numbers) => {
                        let batch = batch(&numbers);
                        archive.consume_batch(&batch).unwrap();
                        model.extend(batch.iter().map(key));
                    }
                    Step::Fail(numbers) => {
                        // Another has the lock: nothing of it is written.
                        reader.execute_batch("BEGIN IMMEDIATE").unwrap();
                        let failed = archive.consume_batch(&batch(&numbers)).unwrap_err();
                        reader.execute_batch("COMMIT").unwrap();
                        prop_assert_eq!(failed.verdict(), Verdict::Retry);
                    }
                    Step::Restart => archive = with_ids(dir.path(), "hub"),
                }
                let count = "SELECT count(*) FROM messages";
                let count: i64 = reader.query_row(count, (), |row| row.get(0)).unwrap();
                prop_assert_eq!(count, model.len() as i64 + 1);
            }
        }
    }
}
