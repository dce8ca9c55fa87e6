//! SIGKILL at random moments, from before the hub is up to long after, and started again.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crate::scene::{Chance, Order, Publisher, Role, Scene, eventually};
use crate::witness::{self, Record};

/// The consumers: quick ones, some that are sometimes behind, and one that always is.
pub const ROLES: [Role; 5] = [
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
struct Seen {
    counts: Vec<usize>,
    cursors: Vec<u8>,
}

impl Seen {
    fn look(scene: &Scene) -> Self {
        let count = |role: &Role| witness::count(scene.path(), role.name);
        let read = |name: &str| fs::read(scene.path().join("journal").join(name));
        Seen {
            counts: ROLES.iter().map(count).collect(),
            // For a moment of each writing there is only the one before.
            cursors: (read("cursors").or_else(|_| read("cursors.bak"))).unwrap_or_default(),
        }
    }
}

/// What was known when the hub was killed.
struct Killed {
    /// Where each consumer has to go on.
    cursors: BTreeMap<String, u64>,
    /// How much each consumer had written down before the last cursors but one were written.
    passed: Option<Vec<usize>>,
}

/// Starts the hub a last time, with nothing slow, sends a last message and lets all of it arrive;
/// answers the journal.
pub fn finish(scene: &mut Scene, load: Load, settings: &str) -> Vec<Record> {
    let quick = ROLES.map(|role| Role {
        settings: match role.order {
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
    assert_eq!(scene.letters(), []);
    journal
}

fn kill_9(rounds: usize, journal: &str) {
    let seed = std::env::var("WEIR_CRASH_SEED").map_or_else(
        |_| SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        |seed| seed.parse().unwrap(),
    );
    eprintln!("{journal:?}: WEIR_CRASH_SEED={seed}");
    let mut chance = Chance(seed);
    let mut scene = Scene::new();
    let load = Load::start(scene.publisher(), Chance(chance.next()));
    scene.configure(journal, &ROLES);
    let mut kills: Vec<Killed> = Vec::new();
    let (mut durable, mut end) = (0, 0);
    for _ in 0..rounds {
        let after = match chance.below(4) {
            0 => chance.below(100),
            1 | 2 => 100 + chance.below(500),
            _ => 600 + chance.below(1400),
        };
        let kill_at = Instant::now() + Duration::from_millis(after);
        let hub = scene.start();
        let mut up = false;
        // The last look at each different state of the cursors.
        let mut seen = vec![Seen::look(&scene)];
        while Instant::now() < kill_at {
            let now = Seen::look(&scene);
            if seen.last().is_some_and(|last| last.cursors == now.cursors) {
                seen.pop();
            }
            seen.push(now);
            if let Some(status) = hub.try_status() {
                let journal = &status["journal"];
                assert_eq!(journal["state"], "ok");
                let (its_end, its_durable) = (&journal["end"], &journal["durable"]);
                // Numbers go on, whatever the end before was like.
                let begins = !std::mem::replace(&mut up, true);
                assert!(!begins || its_end.as_u64() >= Some(durable), "{journal}");
                assert!(its_end.as_u64() >= Some(end), "{journal}");
                end = its_end.as_u64().unwrap();
                durable = durable.max(its_durable.as_u64().unwrap());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        hub.kill();
        let now = Seen::look(&scene);
        if seen.last().is_some_and(|last| last.cursors != now.cursors) {
            seen.push(now);
        }
        // Those who wrote the last cursors began after the last but one were there, and so after
        // this look. What was settled before it has to be before the cursors.
        let passed = seen.len().checked_sub(3).map(|at| seen[at].counts.clone());
        kills.push(Killed {
            cursors: scene.cursors(),
            passed,
        });
    }

    let journal = finish(&mut scene, load, journal);
    let last = journal[journal.len() - 1].number;
    assert!(durable <= journal.len() as u64 + 1 && end <= journal.len() as u64 + 1);
    let messages = journal.len();
    println!(
        "{rounds} rounds, {messages} messages of {last} sent; durable before a kill: {durable}"
    );
    for (index, role) in ROLES.iter().enumerate() {
        let delivered = scene.check(role, &journal);
        let mut bounded = 0;
        for (run, killed) in kills.iter().enumerate() {
            let cursor = killed.cursors.get(role.name).copied().unwrap_or(1);
            let next_run = run as u32 + 2;
            let back = delivered.records.iter().filter(|r| r.run == next_run);
            let back = back.map(|record| record.seq).min().unwrap_or(cursor);
            assert!(back >= cursor, "{} went back to {back}", role.name);
            // Workers that overtake one another leave the cursor where the last of them is.
            let Some(passed) = killed
                .passed
                .as_ref()
                .filter(|_| role.order == Order::Intake)
            else {
                continue;
            };
            let settled = delivered.records[..passed[index]].iter();
            let settled = settled.filter(|record| record.run + 1 == next_run);
            let highest = settled.map(|record| record.seq).max().unwrap_or(0);
            let wanted = |seq: &u64| {
                role.topics.is_empty() || journal[*seq as usize - 1].number.is_multiple_of(3)
            };
            let unsettled = (cursor..=highest).filter(wanted).count();
            assert!(
                unsettled <= role.batch,
                "{}: {unsettled} settled before the last cursors were written come again",
                role.name
            );
            bounded += 1;
        }
        println!(
            "  {:8} wanted {:7}, {:6} came again, at most {:5} after one kill; bound looked at {bounded} times",
            role.name, delivered.wanted, delivered.again, delivered.again_max
        );
    }
}
