//! Any sequence of messages, redeliveries, outages, crashes and restarts makes the awards that a
//! naive model makes, and publishes each.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // a test's name says what it is about

#[cfg(feature = "postgres")]
#[path = "../../archive/tests/server/mod.rs"]
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use serde_json::json;
use weir_archive::database::rusqlite::{Connection, Row};
use weir_consumer::settings::Settings;
use weir_consumer::{
    Consumer, Context, Delivery, Message, PublishError, Publisher, Verdict, deliver, tick,
};

/// As of two workers.
const INSTANCES: usize = 2;
const START_NS: u64 = 1_700_000_000_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;
const WITHIN_NS: u64 = 10 * SECOND_NS;

struct Rule {
    id: &'static str,
    topic: &'static str,
    count: usize,
    within: bool,
    distinct: bool,
    once: bool,
}

/// Some of each sort.
#[rustfmt::skip]
const RULES: [Rule; 10] = [
    Rule { id: "first", topic: "t.a", count: 1, within: false, distinct: false, once: true },
    Rule { id: "each", topic: "t.a", count: 1, within: false, distinct: false, once: false },
    Rule { id: "third", topic: "t.", count: 3, within: false, distinct: false, once: true },
    Rule { id: "each-second", topic: "t.", count: 2, within: false, distinct: false, once: false },
    Rule { id: "hasty", topic: "t.", count: 3, within: true, distinct: false, once: true },
    Rule { id: "ever-hasty", topic: "t.", count: 2, within: true, distinct: false, once: false },
    Rule { id: "various", topic: "t.", count: 3, within: false, distinct: true, once: true },
    Rule { id: "ever-various", topic: "t.b", count: 2, within: false, distinct: true, once: false },
    Rule { id: "both", topic: "t.", count: 3, within: true, distinct: true, once: true },
    Rule { id: "ever-both", topic: "t.", count: 2, within: true, distinct: true, once: false },
];

fn rules() -> String {
    let rules = RULES.iter().map(|rule| {
        let within = if rule.within { "within = '10s'" } else { "" };
        let distinct = if rule.distinct {
            "distinct = '/value'"
        } else {
            ""
        };
        format!(
            "[[rule]]\nid = '{}'\nname = 'N'\ntopics = ['{}']\nrecipient = '/users'\ncount = {}\n\
             once = {}\nwhen = [{{ at = '/counts', is = true }}]\n{within}\n{distinct}\n",
            rule.id, rule.topic, rule.count, rule.once
        )
    });
    rules.collect()
}

/// What is on the bus.
#[derive(Clone, Debug)]
struct Sent {
    topic: &'static str,
    counts: bool,
    users: Vec<&'static str>,
    value: u8,
    /// After the start.
    second: u64,
}

impl Sent {
    fn at_ns(&self) -> u64 {
        START_NS + self.second * SECOND_NS
    }

    fn message(&self, number: usize) -> Message {
        let payload = json!({ "counts": self.counts, "users": self.users, "value": self.value });
        let payload = payload.to_string().into();
        Message::at_ns(self.topic.into(), payload, self.at_ns(), number as u64 + 1)
    }
}

/// What the publisher does with what it is given.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Takes,
    /// Takes so many, then refuses.
    Full(usize),
    /// Takes so many; then the process ends.
    Crashes(usize),
}

#[derive(Clone, Debug)]
enum Operation {
    /// New messages for an instance, with the publisher in this mood.
    Deliver(usize, Vec<Sent>, Mood),
    /// Old ones for an instance: from so many back, so many.
    Redeliver(usize, usize, usize, Mood),
    /// New messages while nobody can write, and again when it is possible.
    Outage(usize, Vec<Sent>),
    Restart(usize),
    Tick(usize, Mood),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let sent = (
        prop::sample::select(vec!["t.a", "t.b", "u"]),
        prop::bool::weighted(0.9),
        prop::sample::subsequence(vec!["ann", "bob", "eve"], 0..3),
        0_u8..4,
        0_u64..40,
    );
    let sent = sent.prop_map(|(topic, counts, users, value, second)| Sent {
        topic,
        counts,
        users,
        value,
        second,
    });
    let batch = prop::collection::vec(sent, 1..8);
    let mood = prop_oneof![
        4 => Just(Mood::Takes),
        2 => (0_usize..3).prop_map(Mood::Full),
        2 => (0_usize..3).prop_map(Mood::Crashes),
    ];
    let at = 0..INSTANCES;
    let operation = prop_oneof![
        8 => (at.clone(), batch.clone(), mood.clone())
            .prop_map(|(at, batch, mood)| Operation::Deliver(at, batch, mood)),
        4 => (at.clone(), 1_usize..30, 1_usize..10, mood.clone())
            .prop_map(|(at, back, count, mood)| Operation::Redeliver(at, back, count, mood)),
        1 => (at.clone(), batch).prop_map(|(at, batch)| Operation::Outage(at, batch)),
        1 => at.clone().prop_map(Operation::Restart),
        2 => (at, mood).prop_map(|(at, mood)| Operation::Tick(at, mood)),
    ];
    prop::collection::vec(operation, 1..30)
}

/// Rule, recipient, number, and when.
type Award = (String, String, i64, i64);

/// Counts as the page says, and forgets nothing.
#[derive(Default)]
struct Model {
    /// Rule and message.
    counted: BTreeSet<(usize, usize)>,
    /// What counted since the last award: when, and which value.
    events: BTreeMap<(usize, &'static str), Vec<(u64, u8)>>,
    awards: BTreeSet<Award>,
}

impl Model {
    fn consume(&mut self, message: usize, sent: &Sent) {
        for (number, rule) in RULES.iter().enumerate() {
            let matches = sent.counts && sent.topic.starts_with(rule.topic);
            if !matches || !self.counted.insert((number, message)) {
                continue;
            }
            for user in &sent.users {
                let has = |award: &&Award| award.0 == rule.id && award.1 == *user;
                let has = self.awards.iter().filter(has).count();
                if rule.once && has > 0 {
                    continue;
                }
                let events = self.events.entry((number, user)).or_default();
                events.push((sent.at_ns(), sent.value));
                let newest = events.iter().map(|event| event.0).max().unwrap();
                let counted =
                    (events.iter()).filter(|event| !rule.within || event.0 > newest - WITHIN_NS);
                let reached = match rule.distinct {
                    true => counted.map(|event| event.1).collect::<BTreeSet<_>>().len(),
                    false => counted.count(),
                };
                if reached >= rule.count {
                    events.clear();
                    let (number, at_ns) = (has as i64 + 1, sent.at_ns() as i64);
                    (self.awards).insert((rule.id.into(), (*user).into(), number, at_ns));
                }
            }
        }
    }
}

/// A database, looked at from outside.
trait Database {
    /// The setting `archive`.
    fn location(&self) -> String;
    fn awards(&self) -> BTreeSet<Award>;
    /// The ids of those that are marked as published.
    fn published(&self) -> BTreeSet<String>;
    /// Nobody can write while `during` runs.
    fn outage(&mut self, during: &mut dyn FnMut());
}

/// Instances over one database, and the bus.
struct World<'d> {
    database: &'d mut dyn Database,
    instances: Vec<Box<dyn Consumer>>,
    mood: Arc<Mutex<Mood>>,
    /// The ids that went out.
    bus: Arc<Mutex<Vec<String>>>,
    /// How many went out just before a crash.
    unmarked: usize,
    sent: Vec<Sent>,
    model: Model,
}

impl<'d> World<'d> {
    fn new(database: &'d mut dyn Database) -> Self {
        let mut world = World {
            database,
            instances: Vec::new(),
            mood: Arc::new(Mutex::new(Mood::Takes)),
            bus: Arc::default(),
            unmarked: 0,
            sent: Vec::new(),
            model: Model::default(),
        };
        world.instances = (0..INSTANCES).map(|_| world.build()).collect();
        world
    }

    fn build(&self) -> Box<dyn Consumer> {
        let (mood, bus) = (self.mood.clone(), self.bus.clone());
        let publisher = Publisher::new(move |_, body| {
            let mut mood = mood.lock().unwrap();
            match &mut *mood {
                Mood::Takes => {}
                Mood::Full(0) => return Err(PublishError::Full),
                Mood::Crashes(0) => {
                    drop(mood);
                    std::panic::resume_unwind(Box::new("the end of the process"));
                }
                Mood::Full(left) | Mood::Crashes(left) => *left -= 1,
            }
            let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let id = body["msg_id"].as_str().unwrap();
            bus.lock().unwrap().push(id.into());
            Ok(())
        });
        let toml = format!("{}\n{}", self.database.location(), rules());
        let section = Settings::from_toml(&toml, "model").unwrap();
        let context = Context::new("badges", Path::new(""), publisher);
        let built = weir_badges::kind().build_consumer(&section, &context);
        built.unwrap()
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn send(&mut self, sent: Vec<Sent>) -> Vec<usize> {
        let from = self.sent.len();
        self.sent.extend(sent);
        (from..self.sent.len()).collect()
    }

    fn batch(&self, numbers: &[usize]) -> Vec<Message> {
        let message = |number: &usize| self.sent[*number].message(*number);
        numbers.iter().map(message).collect()
    }

    /// Delivers as a hub does: what failed or was interrupted by a crash comes again.
    fn deliver(&mut self, at: usize, numbers: &[usize]) {
        let batch = self.batch(numbers);
        for number in numbers {
            self.model.consume(*number, &self.sent[*number]);
        }
        for _ in 0..3 {
            let before = self.bus.lock().unwrap().len();
            match deliver(&mut *self.instances[at], &batch) {
                Delivery::Consumed => return,
                // A connection to a server that was ended in between.
                Delivery::Failed(failure) => assert_eq!(failure.verdict(), Verdict::Retry),
                Delivery::Panicked(_) => self.crash(at, before),
            }
        }
        panic!("tried three times");
    }

    fn crash(&mut self, at: usize, before: usize) {
        self.unmarked += self.bus.lock().unwrap().len() - before;
        self.set(Mood::Takes);
        self.instances[at] = self.build();
    }

    fn operate(&mut self, operation: Operation) {
        match operation {
            Operation::Deliver(at, batch, mood) => {
                self.set(mood);
                let numbers = self.send(batch);
                self.deliver(at, &numbers);
            }
            Operation::Redeliver(at, back, count, mood) => {
                self.set(mood);
                let from = self.sent.len().saturating_sub(back);
                let numbers: Vec<usize> = (from..self.sent.len()).take(count).collect();
                self.deliver(at, &numbers);
            }
            Operation::Outage(at, batch) => {
                self.set(Mood::Takes);
                let matches = (batch.iter())
                    .any(|sent| sent.counts && sent.topic != "u" && !sent.users.is_empty());
                let numbers = self.send(batch);
                let batch = self.batch(&numbers);
                let instance = &mut self.instances[at];
                self.database
                    .outage(&mut || match deliver(&mut **instance, &batch) {
                        Delivery::Consumed => assert!(!matches),
                        Delivery::Failed(failure) => {
                            assert_eq!(failure.verdict(), Verdict::Retry, "{failure}");
                        }
                        Delivery::Panicked(text) => panic!("{text}"),
                    });
                self.deliver(at, &numbers);
            }
            Operation::Restart(at) => self.instances[at] = self.build(),
            Operation::Tick(at, mood) => {
                self.set(mood);
                let before = self.bus.lock().unwrap().len();
                if let Delivery::Panicked(_) = tick(&mut *self.instances[at]) {
                    self.crash(at, before);
                }
            }
        }
    }
}

fn holds(database: &mut dyn Database, operations: Vec<Operation>) {
    let mut world = World::new(database);
    for operation in operations {
        world.operate(operation);
    }
    // A last start, after which all goes well.
    for at in 0..INSTANCES {
        world.operate(Operation::Restart(at));
        world.operate(Operation::Tick(at, Mood::Takes));
    }
    assert_eq!(world.database.awards(), world.model.awards);
    let bus = world.bus.lock().unwrap().clone();
    let ids: BTreeSet<String> = bus.iter().cloned().collect();
    assert_eq!(ids.len(), world.model.awards.len());
    assert_eq!(world.database.published(), ids);
    let (again, unmarked) = (bus.len() - ids.len(), world.unmarked);
    assert!(
        again <= unmarked,
        "{again} went out again; {unmarked} were not marked"
    );
}

struct Sqlite(tempfile::TempDir);

impl Sqlite {
    fn reader(&self) -> Connection {
        Connection::open(self.0.path().join("archive.db")).unwrap()
    }

    fn rows<T>(&self, sql: &str, row: impl Fn(&Row<'_>) -> T) -> Vec<T> {
        let reader = self.reader();
        let mut select = reader.prepare(sql).unwrap();
        let rows = select.query_map((), |found| Ok(row(found))).unwrap();
        rows.map(Result::unwrap).collect()
    }
}

impl Database for Sqlite {
    fn location(&self) -> String {
        let url = format!("sqlite:{}", self.0.path().join("archive.db").display());
        format!("archive = {{ url = '{url}', synchronous = 'off', timeout = '1ms' }}")
    }

    fn awards(&self) -> BTreeSet<Award> {
        let sql = "SELECT rule, recipient, number, awarded_ns FROM badge_awards";
        let text = |row: &Row<'_>, at| row.get(at).unwrap();
        let number = |row: &Row<'_>, at| row.get(at).unwrap();
        let rows = self.rows(sql, |row| {
            (text(row, 0), text(row, 1), number(row, 2), number(row, 3))
        });
        rows.into_iter().collect()
    }

    fn published(&self) -> BTreeSet<String> {
        let sql = "SELECT id FROM badge_awards WHERE published_ns IS NOT NULL";
        self.rows(sql, |row| row.get(0).unwrap())
            .into_iter()
            .collect()
    }

    fn outage(&mut self, during: &mut dyn FnMut()) {
        let writer = self.reader();
        writer.execute_batch("BEGIN EXCLUSIVE").unwrap();
        during();
        writer.execute_batch("ROLLBACK").unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn awards_are_those_of_a_naive_model_and_each_is_published(operations in operations()) {
        holds(&mut Sqlite(tempfile::tempdir().unwrap()), operations);
    }
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::server::Server;
    use super::*;

    struct Postgres {
        server: Server,
        name: String,
        url: String,
    }

    impl Postgres {
        fn columns(&self, sql: &str) -> Vec<Vec<String>> {
            let rows = self.server.sql(&self.name, sql).unwrap();
            let columns = |row: &str| row.split('|').map(str::to_owned).collect();
            rows.lines().map(columns).collect()
        }
    }

    impl Database for Postgres {
        fn location(&self) -> String {
            format!("archive = {{ url = '{}' }}", self.url)
        }

        fn awards(&self) -> BTreeSet<Award> {
            let sql = "SELECT rule, recipient, number, awarded_ns FROM weir.badge_awards";
            let award = |row: Vec<String>| {
                let number = |at: usize| row[at].parse().unwrap();
                (row[0].clone(), row[1].clone(), number(2), number(3))
            };
            self.columns(sql).into_iter().map(award).collect()
        }

        fn published(&self) -> BTreeSet<String> {
            let sql = "SELECT id FROM weir.badge_awards WHERE published_ns IS NOT NULL";
            self.columns(sql).into_iter().flatten().collect()
        }

        fn outage(&mut self, during: &mut dyn FnMut()) {
            self.server.crash();
            during();
            self.server.go_on();
        }
    }

    #[test]
    #[ignore = "needs peers: make test"]
    fn so_they_are_in_postgresql_which_is_killed_and_started_again() {
        let database = std::cell::RefCell::new(Postgres {
            server: Server::start(None),
            name: String::new(),
            url: String::new(),
        });
        let cases = std::cell::Cell::new(0);
        proptest!(ProptestConfig { max_shrink_iters: 100, ..ProptestConfig::with_cases(20) },
            |(operations in operations())| {
                let database = &mut *database.borrow_mut();
                cases.set(cases.get() + 1);
                database.name = format!("badges{}", cases.get());
                database.url = database.server.database(&database.name);
                holds(database, operations);
            }
        );
    }
}
