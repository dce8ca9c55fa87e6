//! Reading an archive: in order, page by page, while a hub may be writing to it.
//!
//! What it promises:
//!
//! 1. Every message that was there at the beginning and that the filter asks for comes once, in the
//!    order of its time of intake (or in the reverse order).
//! 2. However large the archive is, no statement looks at more than `WINDOW` messages and no page
//!    has much more than `PAGE_BYTES` of them.
//! 3. Nothing is written, and no archive made.
//!
//! What is in payloads is left to [`Predicate`], which sees them the same whatever the database
//! is: the JSON of SQLite and of PostgreSQL differ.

use std::cmp::Ordering;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

#[cfg(feature = "postgres")]
use futures_util::TryStreamExt;
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde_json::Value;
use weir_consumer::{Failure, Result};

use crate::database::{Database, Location, Url, VERSION};
use crate::sqlite;

/// So many messages are looked at for one page.
const WINDOW: i64 = if cfg!(test) { 7 } else { 10_000 };
/// A page ends after so many bytes.
const PAGE_BYTES: usize = if cfg!(test) { 100 } else { 16 << 20 };

/// A message in an archive.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// When the hub took it in, in nanoseconds since 1970.
    pub received_ns: i64,
    /// Its number in that hub's order of intake.
    pub seq: i64,
    /// The hub's name; empty in what came from an archive of version 1.
    pub hub: String,
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Which messages are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Those taken in at this time or later.
    pub since_ns: Option<i64>,
    /// Those taken in before this time.
    pub until_ns: Option<i64>,
    /// Those whose topic begins so.
    pub topic: String,
    /// The newest first.
    pub newest: bool,
}

/// A place in the order of an archive.
#[derive(Clone, Debug, PartialEq)]
struct Key(i64, i64, String);

/// An archive that is being read.
pub struct Reader {
    database: Database,
    filter: Filter,
    /// What comes next is behind this one, and not behind that.
    after: Key,
    window: Option<Key>,
    ended: bool,
}

impl Reader {
    /// Opens an archive that there is.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub fn open(location: &Location, data_dir: &Path, filter: Filter) -> Result<Self> {
        let database = match &location.url {
            Url::Sqlite(path) => {
                Database::Sqlite(open_sqlite(&data_dir.join(path), location.timeout)?)
            }
            #[cfg(feature = "postgres")]
            Url::Postgres(url) => {
                let mut postgres = crate::postgres::Postgres::open(url, location, data_dir)?;
                postgres.expect_archive()?;
                Database::Postgres(postgres)
            }
            #[cfg(not(feature = "postgres"))]
            Url::Postgres(_) => {
                return Err(Failure::halt("this weir was built without PostgreSQL"));
            }
        };
        let after = match filter.newest {
            false => Key(i64::MIN, i64::MIN, String::new()),
            true => Key(i64::MAX, i64::MAX, char::MAX.into()),
        };
        Ok(Reader {
            database,
            filter,
            after,
            window: None,
            ended: false,
        })
    }

    /// The next messages; none at the end.
    ///
    /// # Errors
    /// Why the archive could not be read; the reader is of no use then.
    pub fn page(&mut self) -> Result<Vec<Stored>> {
        while !self.ended {
            let window = match self.window.take() {
                Some(window) => window,
                None => match self.next_window()? {
                    Some(window) => window,
                    None => {
                        self.ended = true;
                        break;
                    }
                },
            };
            let (page, cut) = self.read(&window)?;
            self.after = match page.last() {
                Some(last) if cut => Key(last.received_ns, last.seq, last.hub.clone()),
                _ => window.clone(),
            };
            self.window = cut.then_some(window);
            if !page.is_empty() {
                return Ok(page);
            }
        }
        Ok(Vec::new())
    }

    /// Conditions with $1 to $5 as `since`, `until` and the key to come after, and the order.
    fn range(&self) -> (String, &'static str) {
        let (compare, order) = match self.filter.newest {
            false => (">", "received_ns, seq, hub"),
            true => ("<", "received_ns DESC, seq DESC, hub DESC"),
        };
        let range = format!(
            "received_ns >= $1 AND received_ns < $2 AND (received_ns, seq, hub) {compare} ($3, $4, $5)"
        );
        (range, order)
    }

    fn since_until(&self) -> (i64, i64) {
        let Filter {
            since_ns, until_ns, ..
        } = self.filter;
        (since_ns.unwrap_or(i64::MIN), until_ns.unwrap_or(i64::MAX))
    }

    /// Where the next window ends: at the last message that there is, or after so many.
    fn next_window(&mut self) -> Result<Option<Key>> {
        let (range, order) = self.range();
        let (since, until) = self.since_until();
        // As a list of keys alone this is read from the index.
        let sql = format!(
            "SELECT received_ns, seq, hub FROM (
                 SELECT received_ns, seq, hub FROM messages WHERE {range}
                 ORDER BY {order} LIMIT {WINDOW}
             ) AS keys ORDER BY {} LIMIT 1",
            match self.filter.newest {
                false => "received_ns DESC, seq DESC, hub DESC",
                true => "received_ns, seq, hub",
            }
        );
        let Key(time, seq, hub) = &self.after;
        match &mut self.database {
            Database::Sqlite(connection) => {
                let mut query = connection.prepare_cached(&sql)?;
                let found = query.query_row(params![since, until, time, seq, hub], |row| {
                    Ok(Key(row.get(0)?, row.get(1)?, row.get(2)?))
                });
                Ok(found.optional()?)
            }
            #[cfg(feature = "postgres")]
            Database::Postgres(postgres) => postgres.run(async |client| {
                let row = client
                    .query_opt(&sql, &[&since, &until, time, seq, hub])
                    .await?;
                row.map(|row| Ok(Key(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)))
                    .transpose()
            }),
        }
    }

    /// What is wanted up to the window's end, and whether it was cut before that.
    fn read(&mut self, window: &Key) -> Result<(Vec<Stored>, bool)> {
        let (range, order) = self.range();
        let (since, until) = self.since_until();
        let within = if self.filter.newest { ">=" } else { "<=" };
        // As bytes: SQLite's functions on texts stop at a NUL. Of no bytes its substr makes NULL.
        let topic = match &self.database {
            Database::Sqlite(_) => {
                "(length($9) = 0 OR substr(CAST(topic AS BLOB), 1, length($9)) = $9)"
            }
            #[cfg(feature = "postgres")]
            Database::Postgres(_) => "starts_with(topic, $9)",
        };
        let sql = format!(
            "SELECT received_ns, seq, hub, topic, payload FROM messages
             WHERE {range} AND (received_ns, seq, hub) {within} ($6, $7, $8) AND {topic}
             ORDER BY {order}"
        );
        let Key(time, seq, hub) = &self.after;
        let Key(last_time, last_seq, last_hub) = window;
        let prefix = &self.filter.topic;
        let (mut page, mut bytes, mut cut) = (Vec::new(), 0, false);
        match &mut self.database {
            Database::Sqlite(connection) => {
                let mut query = connection.prepare_cached(&sql)?;
                let prefix = prefix.as_bytes();
                let mut rows = query.query(params![
                    since, until, time, seq, hub, last_time, last_seq, last_hub, prefix
                ])?;
                while let Some(row) = rows.next()? {
                    if bytes >= PAGE_BYTES {
                        cut = true;
                        break;
                    }
                    let stored = Stored {
                        received_ns: row.get(0)?,
                        seq: row.get(1)?,
                        hub: row.get(2)?,
                        topic: row.get(3)?,
                        payload: row.get_ref(4)?.as_bytes()?.to_vec(),
                    };
                    bytes += stored.topic.len() + stored.payload.len();
                    page.push(stored);
                }
            }
            #[cfg(feature = "postgres")]
            Database::Postgres(postgres) => {
                let prefix = prefix.replace('\0', "");
                let values: [&(dyn tokio_postgres::types::ToSql + Sync); 9] = [
                    &since, &until, time, seq, hub, last_time, last_seq, last_hub, &prefix,
                ];
                (page, cut) = postgres.run(async |client| {
                    // What is not read any more is thrown away by the connection, not kept.
                    let mut rows = std::pin::pin!(client.query_raw(&sql, values).await?);
                    while let Some(row) = rows.try_next().await? {
                        if bytes >= PAGE_BYTES {
                            return Ok((page, true));
                        }
                        let stored = Stored {
                            received_ns: row.try_get(0)?,
                            seq: row.try_get(1)?,
                            hub: row.try_get(2)?,
                            topic: row.try_get(3)?,
                            payload: row.try_get(4)?,
                        };
                        bytes += stored.topic.len() + stored.payload.len();
                        page.push(stored);
                    }
                    Ok((page, false))
                })?;
            }
        }
        Ok((page, cut))
    }
}

fn open_sqlite(path: &Path, timeout: Duration) -> Result<Connection> {
    let shown = path.display();
    if !path.exists() {
        return Err(Failure::halt(format!(
            "there is no archive {shown}; a hub makes it with the first message that it archives"
        )));
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let open = || {
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(timeout)?;
        let version = sqlite::version(&connection)?;
        Ok((connection, version))
    };
    let (connection, version) = open().map_err(|error| sqlite::verdict(error, path))?;
    match version {
        Some(VERSION) => Ok(connection),
        Some(1) => Err(Failure::halt(format!(
            "{shown} is an archive of version 1; it becomes version {VERSION} when a hub of this \
             weir archives the next message"
        ))),
        Some(newer) => Err(Failure::halt(format!(
            "{shown} is an archive of version {newer}; this weir knows versions up to {VERSION}"
        ))),
        None => Err(Failure::halt(format!("{shown} is no archive of weir"))),
    }
}

/// What is asked of a message's JSON: that there is something at a path, or how it compares.
///
/// It is a small part of the path language of SQL (`jsonpath`): `$`, members by `.name` or
/// `."any name"`, elements by `[0]`, and after the path one comparison (`==`, `!=`, `<`, `<=`, `>`,
/// `>=`) with a JSON value. Numbers and texts have an order; nothing is looked for inside of lists.
///
/// ```
/// use serde_json::json;
/// use weir_archive::query::Predicate;
///
/// let message = json!({"msg": {"agent": "ann", "builds": [{"id": 7}]}});
/// for holds in ["$.msg.agent", "$.msg.agent == \"ann\"", "$.msg.builds[0].id >= 7"] {
///     assert!(holds.parse::<Predicate>()?.holds(&message), "{holds}");
/// }
/// assert!(!"$.msg.agent != \"ann\"".parse::<Predicate>()?.holds(&message));
/// assert!("$.msg.agent = ann".parse::<Predicate>().is_err());
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Predicate {
    path: Vec<Step>,
    comparison: Option<(Comparison, Value)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Member(String),
    Element(usize),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    AtMost,
    Greater,
    AtLeast,
}

impl Comparison {
    // The longer ones first.
    const ALL: [(&str, Comparison); 6] = [
        ("==", Comparison::Equal),
        ("!=", Comparison::NotEqual),
        ("<=", Comparison::AtMost),
        (">=", Comparison::AtLeast),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ];
}

impl Predicate {
    /// Whether a message with this JSON is asked for. Where there is nothing at the path, nothing
    /// holds.
    pub fn holds(&self, json: &Value) -> bool {
        let found = self.path.iter().try_fold(json, |value, step| match step {
            Step::Member(name) => value.as_object()?.get(name),
            Step::Element(number) => value.as_array()?.get(*number),
        });
        let (found, (comparison, expected)) = match (found, &self.comparison) {
            (None, _) => return false,
            (Some(_), None) => return true,
            (Some(found), Some(comparison)) => (found, comparison),
        };
        let order = match (found, expected) {
            // As integers while they are: a float has only 53 bits.
            (Value::Number(found), Value::Number(expected)) => {
                match (found.as_i64(), expected.as_i64()) {
                    (Some(found), Some(expected)) => Some(found.cmp(&expected)),
                    _ => (found.as_f64()).and_then(|found| found.partial_cmp(&expected.as_f64()?)),
                }
            }
            (Value::String(found), Value::String(expected)) => Some(found.cmp(expected)),
            (found, expected) => (found == expected).then_some(Ordering::Equal),
        };
        match comparison {
            Comparison::Equal => order == Some(Ordering::Equal),
            Comparison::NotEqual => order != Some(Ordering::Equal),
            Comparison::Less => order == Some(Ordering::Less),
            Comparison::AtMost => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Comparison::Greater => order == Some(Ordering::Greater),
            Comparison::AtLeast => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

impl FromStr for Predicate {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        const EXPECTED: &str = "expected a path such as $.msg.agent, and after it a comparison with \
                                a JSON value if you like, such as $.msg.agent == \"ann\" or \
                                $.msg.builds[0].id >= 7";
        let wrong = |rest: &str| match rest.is_empty() {
            true => format!("it ends too early; {EXPECTED}"),
            false => format!("can't read it from {rest:?} on; {EXPECTED}"),
        };
        let mut rest = text.trim().strip_prefix('$').ok_or_else(|| wrong(text))?;
        let mut path = Vec::new();
        loop {
            let before = rest;
            if let Some(member) = rest.strip_prefix('.') {
                if member.starts_with('"') {
                    let mut texts =
                        serde_json::Deserializer::from_str(member).into_iter::<String>();
                    let name = texts.next().and_then(std::result::Result::ok);
                    path.push(Step::Member(name.ok_or_else(|| wrong(before))?));
                    rest = &member[texts.byte_offset()..];
                } else {
                    let end = |c: char| !(c.is_alphanumeric() || c == '_' || c == '-');
                    let (name, after) = member.split_at(member.find(end).unwrap_or(member.len()));
                    if name.is_empty() {
                        return Err(wrong(before));
                    }
                    path.push(Step::Member(name.into()));
                    rest = after;
                }
            } else if let Some(element) = rest.strip_prefix('[') {
                let (number, after) = element.split_once(']').ok_or_else(|| wrong(before))?;
                let number = number.trim().parse().map_err(|_| wrong(before))?;
                path.push(Step::Element(number));
                rest = after;
            } else {
                break;
            }
        }
        let rest = rest.trim_start();
        let comparison = match rest {
            "" => None,
            rest => {
                let mut known = Comparison::ALL.into_iter();
                let found = known
                    .find_map(|(sign, comparison)| Some((rest.strip_prefix(sign)?, comparison)));
                let (value, comparison) = found.ok_or_else(|| wrong(rest))?;
                let value = serde_json::from_str(value.trim()).map_err(|_| wrong(value.trim()))?;
                Some((comparison, value))
            }
        };
        Ok(Predicate { path, comparison })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;
    use weir_consumer::Message;

    use super::*;

    fn predicate(text: &str) -> std::result::Result<Predicate, String> {
        text.parse()
    }

    #[test]
    fn a_predicate_compares_what_is_there() {
        let json = json!({
            "n": 7, "big": 9_007_199_254_740_993_i64, "text": "b", "no": null, "list": [1, [2]],
            "odd \"name\"": true, "f": 1.0
        });
        for holds in [
            "$",
            "$.n",
            "$.no",
            "$.no == null",
            "$.n==7",
            "$.n >= 7",
            "$.n <= 7.0",
            "$.n != 8",
            "$.big == 9007199254740993",
            "$.big != 9007199254740992",
            "$.f == 1",
            "$.text < \"c\"",
            "$.text != 7",
            "$.list[1][0] == 2",
            "$.list == [1, [2]]",
            "$.\"odd \\\"name\\\"\"",
            " $.n > 6 ",
        ] {
            assert!(predicate(holds).unwrap().holds(&json), "{holds}");
        }
        for fails in [
            "$.m",
            "$.n.m",
            "$.m != 1",
            "$.n > 7",
            "$.n < \"8\"",
            "$.list[2]",
            "$.n[0]",
            "$.list > 0",
            "$.text == \"B\"",
        ] {
            assert!(!predicate(fails).unwrap().holds(&json), "{fails}");
        }
    }

    #[test]
    fn what_is_no_predicate_is_told_from_where_on() {
        for (wrong, from) in [
            ("", "it ends too early"),
            ("n", "\"n\""),
            ("$n", "\"n\""),
            ("$.", "\".\""),
            ("$.a b", "\"b\""),
            ("$.a = 1", "\"= 1\""),
            ("$.a ==", "ends too early"),
            ("$.a == ann", "\"ann\""),
            ("$[x]", "\"[x]\""),
            ("$[-1]", "\"[-1]\""),
            ("$[*]", "\"[*]\""),
            ("$.\"a", "\".\\\"a\""),
        ] {
            let told = predicate(wrong).unwrap_err();
            assert!(
                told.contains(from) && told.contains("expected a path"),
                "{wrong}: {told}"
            );
        }
    }

    fn topic(seq: u64) -> String {
        ["", "t.0", "t.1", "t.1\0a"][(seq % 4) as usize].into()
    }

    fn insert(connection: &mut Connection, hub: &str, received_ns: u64, seq: u64) {
        let topic = topic(seq);
        let payload = vec![b'x'; (seq % 5 * 20) as usize];
        let message = Message::at_ns(topic.into(), payload.into(), received_ns, seq);
        sqlite::insert(connection, hub, &[message], &[None]).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_is_judged_without_a_panic(text in r#"\$([.\[\]"a0=<>! é\\]|.)*"#) {
            let _ = predicate(&text);
        }

        #[test]
        fn every_message_comes_once_and_in_order(
            stored in prop::collection::btree_set((0..40_u64, 0..50_u64, 0..3_usize), 0..60),
            (since, until) in (prop::option::of(0..45_i64), prop::option::of(0..45_i64)),
            (topic, newest) in (prop_oneof![Just(""), Just("t."), Just("t.1\0"), Just("u")], any::<bool>()),
        ) {
            const HUBS: [&str; 3] = ["", "a", "b"];
            let dir = tempfile::tempdir().unwrap();
            let location = Location::default();
            let path = dir.path().join("archive.db");
            let mut connection =
                sqlite::connect(&path, location.synchronous, location.timeout).unwrap();
            for (received_ns, seq, hub) in &stored {
                insert(&mut connection, HUBS[*hub], *received_ns, *seq);
            }
            let filter = Filter { since_ns: since, until_ns: until, topic: topic.into(), newest };
            let mut reader = Reader::open(&location, dir.path(), filter).unwrap();
            let mut read = Vec::new();
            loop {
                let page = reader.page().unwrap();
                if page.is_empty() {
                    break;
                }
                let before_last: usize = page[..page.len() - 1]
                    .iter()
                    .map(|m| m.topic.len() + m.payload.len())
                    .sum();
                prop_assert!(before_last < PAGE_BYTES && page.len() <= WINDOW as usize);
                let keys = page.iter().map(|m| (m.received_ns, m.seq, m.hub.clone()));
                read.extend(keys);
            }
            prop_assert!(reader.page().unwrap().is_empty());
            let mut expected: Vec<(i64, i64, String)> = (stored.iter())
                .map(|(time, seq, hub)| (*time as i64, *seq as i64, HUBS[*hub].to_owned()))
                .filter(|(time, ..)| since.is_none_or(|since| *time >= since))
                .filter(|(time, ..)| until.is_none_or(|until| *time < until))
                .filter(|(_, seq, _)| self::topic(*seq as u64).starts_with(topic))
                .collect();
            if newest {
                expected.reverse();
            }
            prop_assert_eq!(read, expected);
        }
    }

    #[test]
    fn what_is_no_archive_is_told_and_none_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Reader::open(&Location::default(), dir.path(), Filter::default());
        let told = || open().err().unwrap().to_string();
        assert!(told().contains("there is no archive"), "{}", told());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        let path = dir.path().join("archive.db");
        let other = Connection::open(&path).unwrap();
        other.execute_batch("CREATE TABLE messages (id)").unwrap();
        assert!(told().contains("is no archive of weir"), "{}", told());
        other
            .pragma_update(None, "application_id", i32::from_be_bytes(*b"weir"))
            .unwrap();
        other.pragma_update(None, "user_version", 3).unwrap();
        assert!(told().contains("version 3"), "{}", told());
        drop(other);
        std::fs::write(&path, "a letter to a friend, ".repeat(100)).unwrap();
        assert!(told().contains("not a database"), "{}", told());
    }
}
