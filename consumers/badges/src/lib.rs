//! The kind `badges`: awards badges by rules, and publishes each award.
//!
//! A rule says which messages count ([`rules`]), for whom, and how many it takes. What was counted
//! and who has which badge is kept in the archive's database.
//!
//! What it promises:
//!
//! 1. A message is settled only after what it counted for was committed, with the awards it made.
//! 2. A message that comes again, by whatever way, counts no second time; no award is made twice.
//! 3. An award is published after it was committed. One that the hub does not take stays in the
//!    database and is offered again, by the next tick or after the next start.
//! 4. A crash between taking and marking publishes an award a second time, with the same id.
//!
//! What it leaves to others: what becomes of a message after the hub took it for publishing (the
//! page says how to publish awards once more); deleting what is old from `badge_counted`; and rules
//! that change: they are read at the start, and what was counted is kept under the rule's id.

mod award;
mod count;
pub mod rules;
mod store;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics::counter;
use serde::Deserialize;
use serde::de::IgnoredAny;
use weir_archive::database::Location;
use weir_archive::message_id;
use weir_consumer::conditions::Pointer;
use weir_consumer::settings::{Mistake, Settings as Tree};
use weir_consumer::{Consumer, Context, Failure, Kind, Message, Publisher, Result};

use count::Hit;
use rules::Rules;
use store::Store;

/// What expired is removed about once an hour: a tick is about a second.
const EXPIRE_TICKS: u64 = 3600;
/// Portions of awards that are published in one go, so that a tick has an end.
const PORTIONS_MAX: usize = 100;
/// A key in the database; what is longer is kept as a digest.
const ID_BYTES_MAX: usize = 200;
/// For the digests of long ids.
const DIGESTS: uuid::Uuid = uuid::uuid!("d1a7c1be-6a0c-4d4b-8c62-4a0a6a1a9a10");

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Files of rules, and directories of such files.
    rules: Vec<PathBuf>,
    /// Rules in the section itself. They are read by [`Rules::read`], which knows their places.
    rule: Vec<IgnoredAny>,
    award_topic: String,
    archive: Location,
    /// Where a message says its id ([`message_id`]); what two hubs took in counts once then.
    id: Option<Pointer>,
    /// Messages in one transaction.
    batch_max: NonZeroUsize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            rules: Vec::new(),
            rule: Vec::new(),
            award_topic: "weir.badges.award".into(),
            archive: Location::default(),
            id: None,
            batch_max: const { NonZeroUsize::new(1000).expect("1000 is not 0") },
        }
    }
}

struct Badges {
    settings: Settings,
    rules: Rules,
    hub: String,
    data_dir: PathBuf,
    out: Publisher,
    /// None before the first message or tick and after an error.
    store: Option<Store>,
    /// Whether there may be awards to publish, as there may be at the start.
    to_publish: bool,
    /// The oldest message that counted since what expired was removed.
    oldest_ns: Option<i64>,
    ticks: u64,
}

/// The kind `badges`.
pub fn kind() -> Kind {
    Kind::consumer_from_settings("badges", build)
        .summary("awards badges by rules, and publishes each award")
        .sample(include_str!("../sample.toml"))
}

/// Reads the rules too, so that `weir config check` tells every mistake in them.
fn build(section: &Tree, context: &Context) -> std::result::Result<Badges, Vec<Mistake>> {
    let (settings, mut mistakes) = section.parse_most::<Settings>();
    let settings = settings.unwrap_or_default();
    if settings.award_topic.is_empty() {
        let text = "an award needs a topic such as \"org.example.badges.award\"";
        mistakes.push(section.mistake_at("award_topic", text));
    }
    if let Err(why) = settings.archive.check() {
        mistakes.push(section.mistake_at("archive", why.to_string()));
    }
    let (data_dir, gets) = (context.data_dir(), context.topics());
    let rules = Rules::read(section, data_dir, gets, &settings.award_topic);
    match (rules, mistakes.is_empty()) {
        (Ok(rules), true) => Ok(Badges {
            settings,
            rules,
            hub: context.hub().to_owned(),
            data_dir: context.data_dir().to_owned(),
            out: context.publisher().clone(),
            store: None,
            to_publish: true,
            oldest_ns: None,
            ticks: 0,
        }),
        (rules, _) => {
            mistakes.extend(rules.err().unwrap_or_default());
            Err(mistakes)
        }
    }
}

impl Consumer for Badges {
    fn consume(&mut self, message: &Message) -> Result {
        self.consume_batch(std::slice::from_ref(message))
    }

    fn batch_max(&self) -> usize {
        self.settings.batch_max.get()
    }

    fn consume_batch(&mut self, batch: &[Message]) -> Result {
        let mut hits = Vec::new();
        for message in batch {
            for found in self.rules.matches(message)? {
                hits.push(Hit {
                    found,
                    message: self.key(message),
                    // Signed, as the database has it; that ends in the year 2262.
                    at_ns: i64::try_from(message.received_ns()).unwrap_or(i64::MAX),
                });
            }
        }
        let Some(oldest_ns) = hits.iter().map(|hit| hit.at_ns).min() else {
            return Ok(());
        };
        // Taken out, and put back only after all went well: an error discards the connection, which
        // undoes what it had not committed.
        let mut store = match self.store.take() {
            Some(store) => store,
            None => Store::connect(&self.settings.archive, &self.data_dir)?,
        };
        let awards = store.count(&hits, &self.settings.award_topic)?;
        self.store = Some(store);
        self.oldest_ns = Some(self.oldest_ns.map_or(oldest_ns, |ns| ns.min(oldest_ns)));
        if awards > 0 {
            counter!("badges_awarded_total").increment(awards as u64);
            self.to_publish = true;
            // These messages are settled, whatever becomes of it; the next tick tries again, and
            // says why when it can't either.
            let _ = self.publish();
        }
        Ok(())
    }

    fn tick(&mut self) -> Result {
        self.ticks += 1;
        if self.to_publish {
            self.publish()?;
        }
        if self.ticks.is_multiple_of(EXPIRE_TICKS) {
            self.expire()?;
        }
        Ok(())
    }
}

impl Badges {
    /// What a message is known by in the database.
    fn key(&self, message: &Message) -> String {
        let id = self.settings.id.as_ref().and_then(|pointer| {
            let id = message_id(pointer.of(message.json().ok()?)?)?;
            Some(match id.len() <= ID_BYTES_MAX {
                true => id,
                false => uuid::Uuid::new_v5(&DIGESTS, id.as_bytes()).to_string(),
            })
        });
        id.unwrap_or_else(|| format!("{}/{}/{}", self.hub, message.received_ns(), message.seq()))
    }

    /// Publishes what is in the database for it.
    fn publish(&mut self) -> Result {
        let mut store = match self.store.take() {
            Some(store) => store,
            None => Store::connect(&self.settings.archive, &self.data_dir)?,
        };
        for _ in 0..PORTIONS_MAX {
            let out = &self.out;
            let portion = store.publish(now_ns(), &|award| {
                out.publish(&award.topic, award.body.clone())
            })?;
            counter!("badges_published_total").increment(portion.taken as u64);
            if let Some(why) = portion.refused {
                self.store = Some(store);
                return Err(Failure::retry(format!(
                    "awards wait in the database to be published: {why}"
                )));
            }
            if portion.last {
                self.to_publish = false;
                break;
            }
        }
        self.store = Some(store);
        Ok(())
    }

    /// Removes what is older than the periods of the rules.
    ///
    /// Counting ignores it anyway; this is for recipients who do not come again. Their period ends
    /// now, or, so that a replay of old messages finds what it counted itself, at the oldest that
    /// counted since the last time.
    fn expire(&mut self) -> Result {
        let Some(mut store) = self.store.take() else {
            return Ok(()); // nothing was counted since the last time
        };
        let until_ns = self.oldest_ns.unwrap_or(i64::MAX).min(now_ns());
        let horizons: Vec<(&str, i64)> = (self.rules.all().iter())
            .filter_map(|rule| Some((rule.id.as_str(), rule.horizon(Some(until_ns))?)))
            .collect();
        store.expire(&horizons)?;
        self.store = Some(store);
        self.oldest_ns = None;
        Ok(())
    }
}

fn now_ns() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    i64::try_from(since_1970.unwrap_or_default().as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use serde_json::{Value, json};
    use weir_archive::database::rusqlite::Connection;
    use weir_consumer::testkit::{self, Harness, conformance, sample_settings};
    use weir_consumer::{PublishError, Verdict};

    use super::*;

    const SLOW: &str = "[[rule]]\nid = 'slow'\nname = 'Patience'\ndescription = 'Waited'\n\
                        topics = ['org.example.db.']\nrecipient = '/user'\n";

    fn built(toml: &str, context: &Context) -> Harness<Badges> {
        let section = Tree::from_toml(toml, "badges").unwrap();
        Harness::new(build(&section, context).unwrap())
    }

    fn badges(toml: &str, dir: &Path) -> Harness<Badges> {
        built(toml, &Context::new("badges", dir, testkit::recorder().0))
    }

    fn reader(dir: &Path) -> Connection {
        Connection::open(dir.join("archive.db")).unwrap()
    }

    fn number(dir: &Path, sql: &str) -> i64 {
        reader(dir).query_row(sql, (), |row| row.get(0)).unwrap()
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let (rule, section) = sample_settings(&kind()).split(&["rule"]);
        assert_eq!(section.parse::<Settings>().unwrap(), Settings::default());

        let needed = "[[rule]]\nid = 'slow-query'\nname = 'Patience'\n\
                      topics = ['org.example.db.query']\nrecipient = '/msg/user'";
        let needed = Tree::from_toml(needed, "needed").unwrap();
        let read = |section: &Tree| Rules::read(section, Path::new(""), &[], "").unwrap();
        assert_eq!(read(&rule).all(), read(&needed).all());
    }

    #[test]
    fn the_rules_of_the_page_are_rules() {
        let page = include_str!("../../../docs/kinds/badges.md");
        let blocks = page.split("```toml\n").skip(1);
        let blocks = blocks.filter_map(|block| block.split("```").next());
        let mut read = 0;
        for rules in blocks.filter(|block| block.starts_with("[[rule]]")) {
            let section = Tree::from_toml(rules, "badges.md").unwrap();
            let rules = Rules::read(&section, Path::new(""), &[], "org.example.badges.award");
            read += rules.unwrap().all().len();
        }
        assert_eq!(read, 2);
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let toml = format!(
            "award_topic = ''\nbatch_max = 0\nruels = []\n[archive]\nurl = 'a'\n{SLOW}count = 0"
        );
        let mistakes = testkit::build(&kind(), &toml, Path::new("")).err().unwrap();
        let texts: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts[..3],
            [
                "badges:2:13: batch_max: expected a whole number of at least 1, found the number 0",
                "badges:3:1: ruels: unknown key; did you mean `rules`?",
                "badges:5:7: archive.url: \"a\" has no scheme; supported is a file of SQLite, such \
                 as \"sqlite:archive.db\" or \"sqlite:/var/lib/weir/archive.db\", and a database \
                 of PostgreSQL, such as \"postgres://weir@db.example.org/weir\"",
            ]
        );
        let more = texts[3..].join("\n");
        assert!(
            more.contains("badges:1:15: award_topic: an award needs a topic"),
            "{more}"
        );
        assert!(
            more.contains("rule.0.count: expected a whole number"),
            "{more}"
        );
    }

    #[test]
    fn building_creates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let _badges = badges(SLOW, dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn it_stands_what_every_consumer_has_to_stand() {
        let dir = tempfile::tempdir().unwrap();
        let rules = "[[rule]]\nid = 'a'\nname = 'A'\ntopics = ['']\nrecipient = '/msg/id'\n\
                     count = 2\ndistinct = '/msg'";
        conformance(|| testkit::build(&kind(), rules, dir.path()).unwrap());
    }

    #[test]
    fn an_award_is_published_as_a_message_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let (publisher, published) = testkit::recorder();
        let context = Context::new("badges", dir.path(), publisher).in_hub("fedora");
        let toml = format!("award_topic = 'org.example.badges.award'\n{SLOW}count = 2");
        let mut badges = built(&toml, &context);
        let slow = r#"{"user": "ann"}"#;
        assert_eq!(badges.feed("org.example.db.query", slow), Ok(()));
        assert_eq!(published.lock().unwrap().len(), 0);
        for _ in 0..3 {
            assert_eq!(badges.feed("org.example.db.query", slow), Ok(()));
        }
        let published = published.lock().unwrap();
        let [(topic, body)] = &published[..] else {
            panic!("{published:?}")
        };
        assert_eq!(topic, "org.example.badges.award");
        let mut body: Value = serde_json::from_slice(body).unwrap();
        let timestamp = body["timestamp"].take();
        assert!(timestamp.as_f64().unwrap() > 1.7e9);
        assert_eq!(
            body,
            json!({
                "topic": "org.example.badges.award",
                "msg": {
                    "badge": { "badge_id": "slow", "name": "Patience", "description": "Waited" },
                    "user": { "username": "ann" },
                    "number": 1,
                },
                // Never to be changed: readers tell by it what they had before.
                "msg_id": "682e3424-4d2c-5df3-a8bb-e8c2f6ce64e8",
                "timestamp": null,
            })
        );
        let key =
            "SELECT message LIKE 'fedora/%/2' AND published_ns > awarded_ns FROM badge_awards";
        assert_eq!(number(dir.path(), key), 1);
    }

    #[test]
    fn what_the_hub_does_not_take_stays_until_it_does() {
        let dir = tempfile::tempdir().unwrap();
        let takes = Arc::new(AtomicBool::new(false));
        let published = Arc::new(Mutex::new(0));
        let (open, count) = (takes.clone(), published.clone());
        let publisher = Publisher::new(move |_, _| match open.load(Ordering::Relaxed) {
            true => {
                *count.lock().unwrap() += 1;
                Ok(())
            }
            false => Err(PublishError::NoEndpoint),
        });
        let context = Context::new("badges", dir.path(), publisher);
        let mut badges = built(SLOW, &context);
        badges.consumer().tick().unwrap(); // there is nothing to publish yet
        for user in 0..250 {
            let message = format!(r#"{{"user": {user}}}"#);
            assert_eq!(badges.feed("org.example.db.query", message), Ok(()));
        }
        let failure = badges.consumer().tick().unwrap_err();
        assert_eq!(failure.verdict(), Verdict::Retry);
        let text = failure.to_string();
        assert!(text.contains("wait in the database"), "{text}");
        assert!(text.contains("add a [publish] section"), "{text}");

        // By another instance, as after a restart.
        takes.store(true, Ordering::Relaxed);
        let mut badges = built(SLOW, &context);
        badges.consumer().tick().unwrap();
        badges.consumer().tick().unwrap();
        assert_eq!(*published.lock().unwrap(), 250);
        let left = "SELECT count(*) FROM badge_awards WHERE published_ns IS NULL";
        assert_eq!(number(dir.path(), left), 0);
    }

    #[test]
    fn nothing_is_written_for_who_has_it_already() {
        let dir = tempfile::tempdir().unwrap();
        let mut badges = badges(&format!("{SLOW}count = 2\nwithin = '1h'"), dir.path());
        for _ in 0..5 {
            assert_eq!(
                badges.feed("org.example.db.query", r#"{"user": "ann"}"#),
                Ok(())
            );
        }
        assert_eq!(number(dir.path(), "SELECT count(*) FROM badge_awards"), 1);
        assert_eq!(number(dir.path(), "SELECT count(*) FROM badge_events"), 0);
        assert_eq!(number(dir.path(), "SELECT count(*) FROM badge_counted"), 2);
    }

    #[test]
    fn hubs_that_share_a_bus_and_a_database_count_a_message_once() {
        let dir = tempfile::tempdir().unwrap();
        let hub = |name: &str| {
            let context = Context::new("badges", dir.path(), Publisher::nowhere()).in_hub(name);
            built(&format!("id = '/id'\n{SLOW}once = false"), &context)
        };
        let (mut one, mut other) = (hub("one"), hub("other"));
        let long = "x".repeat(1000);
        let text = |id: &str| format!("\"{id}\"");
        let counts_once = [text("1"), text("2"), text("#1"), text(&long), "1".into()];
        let counts_twice = ["1.5", "18446744073709551616", "\"\"", "[1]", "\"\\u0000\""];
        for id in counts_once.iter().map(String::as_str).chain(counts_twice) {
            let message = format!(r#"{{"user": "ann", "id": {id}}}"#);
            for hub in [&mut one, &mut other] {
                assert_eq!(hub.feed("org.example.db.query", &message), Ok(()));
            }
        }
        let awards = counts_once.len() + 2 * counts_twice.len();
        assert_eq!(
            number(dir.path(), "SELECT count(*) FROM badge_awards"),
            awards as i64
        );
        // Without an id it is known by the hub that took it in.
        assert_eq!(
            one.feed("org.example.db.query", r#"{"user": "ann"}"#),
            Ok(())
        );
        assert_eq!(
            other.feed("org.example.db.query", r#"{"user": "ann"}"#),
            Ok(())
        );
        assert_eq!(
            number(dir.path(), "SELECT count(*) FROM badge_awards"),
            awards as i64 + 2
        );
    }

    #[test]
    fn an_error_discards_the_connection_and_the_next_attempt_connects() {
        let dir = tempfile::tempdir().unwrap();
        let toml = format!("archive = {{ url = 'sqlite:archive.db', timeout = '1ms' }}\n{SLOW}");
        let mut badges = badges(&toml, dir.path());
        let slow = r#"{"user": "ann"}"#;
        let bob = r#"{"user": "bob"}"#;
        assert_eq!(badges.feed("org.example.db.query", slow), Ok(()));
        let writer = reader(dir.path());
        writer.execute_batch("BEGIN IMMEDIATE").unwrap();
        assert_eq!(
            badges.feed("org.example.db.query", bob),
            Err(Verdict::Retry)
        );
        assert!(badges.consumer().store.is_none());
        writer.execute_batch("COMMIT").unwrap();
        assert_eq!(badges.feed("org.example.db.query", bob), Ok(()));
        assert_eq!(number(dir.path(), "SELECT count(*) FROM badge_awards"), 2);
    }

    #[test]
    fn badges_of_a_later_version_are_not_touched() {
        let dir = tempfile::tempdir().unwrap();
        let slow = r#"{"user": "ann"}"#;
        assert_eq!(
            badges(SLOW, dir.path()).feed("org.example.db.query", slow),
            Ok(())
        );
        let later = "UPDATE badge_schema SET version = 2";
        reader(dir.path()).execute(later, ()).unwrap();
        let mut badges = badges(SLOW, dir.path());
        assert_eq!(
            badges.feed("org.example.db.query", slow),
            Err(Verdict::Halt)
        );
        let told = badges.last_failure().unwrap();
        assert!(told.contains("are of version 2"), "{told}");
    }

    #[test]
    fn what_expired_is_removed_and_a_replay_finds_what_it_counted() {
        let dir = tempfile::tempdir().unwrap();
        let mut badges = badges(&format!("{SLOW}count = 3\nwithin = '1h'"), dir.path());
        let badges = badges.consumer();
        let message = |user: &str, at_ns: u64, seq| {
            let payload = format!(r#"{{"user": "{user}"}}"#);
            Message::at_ns("org.example.db.a".into(), payload.into(), at_ns, seq)
        };
        const HOUR: u64 = 3600 * 1_000_000_000;
        let now = now_ns() as u64;
        let events = || number(dir.path(), "SELECT count(*) FROM badge_events");
        badges.consume(&message("ann", now - 2 * HOUR, 1)).unwrap();
        // Long ago, but not for a recipient whose messages are coming just now.
        badges.expire().unwrap();
        assert_eq!(events(), 1);
        badges.consume(&message("bob", now, 2)).unwrap();
        badges.expire().unwrap();
        assert_eq!(events(), 1);
        for tick in 0..EXPIRE_TICKS {
            badges
                .tick()
                .unwrap_or_else(|failure| panic!("{tick}: {failure}"));
        }
        assert_eq!(events(), 1);
        assert_eq!(badges.oldest_ns, None);
    }
}
