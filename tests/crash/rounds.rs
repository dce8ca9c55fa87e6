//! SIGKILL at random moments, from before the hub is up to long after, and started again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::scene::{Chance, Order, Publisher, Role, Scene, eventually};
use crate::witness::{self, Record};

/// The consumers: quick ones, some that are sometimes behind, and one that always is.
pub const ROLES: [Role; 6] = [
    Role {
        name: "quick",
        topics: "",
        order: Order::Intake,
        batch: 1,
        settings: "",
    },
    Role {
        name: "batched",
        topics: "",
        order: Order::Intake,
        batch: 64,
        settings: "pause = '5ms'",
    },
    Role {
        name: "slow",
        topics: "t.0.",
        order: Order::Intake,
        batch: 1,
        settings: "pause = '2ms'\nqueue.messages = 100",
    },
    Role {
        name: "refusing",
        topics: "",
        order: Order::Intake,
        batch: 10,
        settings: "refuses = 200",
    },
    Role {
        name: "many",
        topics: "",
        order: Order::None,
        batch: 8,
        settings: "workers = 4\npause = '1ms'\nqueue.messages = 300",
    },
    Role {
        name: "keyed",
        topics: "",
        order: Order::PerKey,
        batch: 1,
        settings: "workers = 3\nkey = '/k'\nqueue.messages = 2000",
    },
];

pub fn fifty_rounds_of_kill_9() {
    let rounds = std::env::var("WEIR_CRASH_ROUNDS").map_or(50, |rounds| rounds.parse().unwrap());
    kill_9(rounds, "journal.sync = '1s'");
}

pub fn rounds_of_kill_9_when_each_batch_is_synced() {
    let rounds = std::env::var("WEIR_CRASH_ROUNDS").map_or(15, |rounds| rounds.parse().unwrap());
    kill_9(
        rounds,
        "journal.sync = 'each-batch'\njournal.cursors = '50ms'",
    );
}

const ALONE: Role = Role {
    name: "slow",
    topics: "",
    order: Order::Intake,
    batch: 1,
    settings: "pause = '2ms'",
};

pub fn the_cursors_follow_what_is_settled() {
    let mut scene = Scene::new();
    let mut publisher = scene.publisher();
    scene.configure("journal.cursors = '50ms'", [&ALONE]);
    let _hub = scene.start();
    let mut cursors = BTreeSet::new();
    eventually("twenty different cursors", || {
        publisher.try_send();
        cursors.insert(scene.cursors().remove(ALONE.name));
        cursors.len() >= 20
    });
}

/// However long the interval of the cursors is.
pub fn a_hub_that_dies_soon_after_each_start_gets_on() {
    let mut scene = Scene::new();
    let mut publisher = scene.publisher();
    scene.configure("journal.cursors = '1h'", [&ALONE]);
    let mut hub = scene.start();
    (0..300).for_each(|_| publisher.send(false));
    eventually("taken in", || hub.status()["journal"]["end"] == 301);
    hub.kill();
    let cursor = |scene: &Scene| scene.cursors().remove(ALONE.name);
    while cursor(&scene) < Some(301) {
        let before = cursor(&scene);
        let hub = scene.start();
        eventually("the cursor moves", || cursor(&scene) > before);
        hub.kill();
    }
    scene.check(&ALONE, &scene.journal());
}

/// Messages all the time, in bursts.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Publisher>,
}

impl Load {
    pub fn start(mut publisher: Publisher, mut chance: Chance) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let burst = chance.below(200);
                let _ = (0..burst).take_while(|_| publisher.try_send()).count();
                std::thread::sleep(Duration::from_millis(chance.below(40)));
            }
            publisher
        });
        Load { stop, thread }
    }

    fn stop(self) -> Publisher {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

/// How much each consumer has written down, before the cursors were seen to be these bytes.
struct Look {
    counts: Vec<usize>,
    cursors: Vec<u8>,
}

impl Look {
    fn now(scene: &Scene) -> Self {
        let count = |role: &Role| witness::count(scene.path(), role.name);
        let read = |name: &str| fs::read(scene.path().join("journal").join(name));
        Look {
            counts: ROLES.iter().map(count).collect(),
            // For a moment of each writing there is only the one before.
            cursors: (read("cursors").or_else(|_| read("cursors.bak"))).unwrap_or_default(),
        }
    }
}

/// The last look at each different state of the cursors in one run.
struct Looks(Vec<Look>);

impl Looks {
    fn add(&mut self, scene: &Scene) {
        let now = Look::now(scene);
        if (self.0.last()).is_some_and(|last| last.cursors == now.cursors) {
            self.0.pop();
        }
        self.0.push(now);
    }

    /// How much each consumer had written down before the last cursors but one were written.
    ///
    /// Those who wrote the last ones began after those before were there, and so after this look:
    /// what was settled when it was taken has to be before the cursors.
    fn passed(mut self, scene: &Scene) -> Option<Vec<usize>> {
        let end = Look::now(scene);
        if (self.0.last()).is_some_and(|last| last.cursors != end.cursors) {
            self.0.push(end);
        }
        let at = self.0.len().checked_sub(3)?;
        Some(self.0.swap_remove(at).counts)
    }
}

/// What was known when the hub was killed.
struct Killed {
    /// Where each consumer has to go on.
    cursors: BTreeMap<String, u64>,
    passed: Option<Vec<usize>>,
}

/// What the hub has said of its journal in all its runs.
#[derive(Default)]
struct Said {
    end: u64,
    durable: u64,
}

impl Said {
    /// Numbers go on, whatever the end before was like.
    fn hear(&mut self, journal: &Value, first: bool) {
        let number = |key: &str| journal[key].as_u64().unwrap();
        assert_eq!(journal["state"], "ok");
        assert!(number("end") >= self.end, "{journal}, was {}", self.end);
        assert!(!first || number("end") >= self.durable, "{journal}");
        self.end = number("end");
        self.durable = self.durable.max(number("durable"));
    }
}

/// Starts the hub, and kills it at a random moment: one time in four while it starts.
fn round(scene: &mut Scene, chance: &mut Chance, said: &mut Said) -> Killed {
    let (startup, after) = match chance.below(4) {
        0 => (true, chance.below(100)),
        1 | 2 => (false, chance.below(500)),
        _ => (false, 500 + chance.below(1400)),
    };
    let after = Duration::from_millis(after);
    let mut kill_at = startup.then(|| Instant::now() + after);
    let mut looks = Looks(Vec::new());
    let mut hub = scene.start();
    let mut first = true;
    while kill_at.is_none_or(|at| Instant::now() < at) {
        looks.add(scene);
        if let Some(status) = hub.try_status() {
            said.hear(&status["journal"], std::mem::take(&mut first));
            kill_at.get_or_insert_with(|| Instant::now() + after);
        }
        assert!(!hub.has_ended(), "{}", scene.log());
        std::thread::sleep(Duration::from_millis(2));
    }
    hub.kill();
    Killed {
        cursors: scene.cursors(),
        passed: looks.passed(scene),
    }
}

/// Starts the hub a last time, with nothing slow, sends a last message and lets all of it arrive;
/// answers the journal.
pub fn finish(scene: &mut Scene, load: Load, settings: &str) -> Vec<Record> {
    let quick = ROLES.map(|role| Role {
        settings: match role.order {
            Order::Intake if role.name == "refusing" => role.settings,
            Order::Intake => "",
            Order::None => "workers = 4",
            Order::PerKey => "workers = 3\nkey = '/k'",
        },
        ..role
    });
    scene.configure(settings, &quick);
    let mut hub = scene.start();
    hub.status();
    let mut publisher = load.stop();
    publisher.send(false);
    let last = publisher.sent - 1;
    eventually("the last message", || {
        let records = witness::read(scene.path(), "quick");
        records.last().is_some_and(|record| record.number == last)
    });
    eventually("all settled", || hub.is_idle());
    hub.signal("TERM");
    assert_eq!(hub.end(), Some(0));
    let journal = scene.journal();
    assert_eq!(journal.last().map(|message| message.number), Some(last));
    // Each of these once, and no other.
    let mut set_aside: Vec<u64> = Vec::new();
    for letter in scene.letters() {
        assert_eq!(
            (&*letter.consumer, &*letter.reason),
            ("refusing", "dead_letter")
        );
        set_aside.push(letter.seq);
    }
    let refused = journal.iter().filter(|m| m.number.is_multiple_of(200));
    let refused: Vec<u64> = refused.map(|m| m.seq).collect();
    assert_eq!(set_aside, refused);
    journal
}

fn kill_9(rounds: usize, settings: &str) {
    let seed = std::env::var("WEIR_CRASH_SEED").map_or_else(
        |_| SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        |seed| seed.parse().unwrap(),
    );
    println!("{settings:?}: WEIR_CRASH_SEED={seed}");
    let mut chance = Chance(seed);
    let mut scene = Scene::new();
    let load = Load::start(scene.publisher(), Chance(chance.next()));
    scene.configure(settings, &ROLES);
    let mut said = Said::default();
    let kills: Vec<Killed> = (0..rounds)
        .map(|_| round(&mut scene, &mut chance, &mut said))
        .collect();
    let journal = finish(&mut scene, load, settings);
    let (messages, last) = (journal.len() as u64, journal[journal.len() - 1].number);
    assert!(said.end.max(said.durable) <= messages + 1);
    let mut report = format!("{rounds} rounds, {messages} messages of {} sent", last + 1);
    for (index, role) in ROLES.iter().enumerate() {
        let delivered = scene.check(role, &journal);
        let mut looked = 0;
        for (run, killed) in (2..).zip(&kills) {
            let cursor = killed.cursors.get(role.name).copied().unwrap_or(1);
            let went_on = delivered.records.iter().filter(|r| r.run == run);
            let went_on = went_on.map(|r| r.seq).min().unwrap_or(cursor);
            assert!(went_on >= cursor, "{} went back to {went_on}", role.name);
            // Workers that overtake one another leave the cursor where the last of them is.
            let Some(passed) = (killed.passed.as_ref()).filter(|_| role.order == Order::Intake)
            else {
                continue;
            };
            let settled = delivered.records[..passed[index]].iter();
            let settled = settled.filter(|r| r.run == run - 1).map(|r| r.seq).max();
            let again = (journal.iter().filter(|m| role.wants(m)))
                .filter(|m| (cursor..=settled.unwrap_or(0)).contains(&m.seq))
                .count();
            // It may have been written down and not yet settled.
            assert!(again <= role.batch, "{}: {again} too many", role.name);
            looked += 1;
        }
        report += &format!(
            "\n  {:8} wanted {:7}; {:6} came again, at most {:5} after one kill",
            role.name, delivered.wanted, delivered.again, delivered.again_max
        );
        assert!(looked > 0 || role.order != Order::Intake || rounds < 10);
    }
    println!("{report}");
}
