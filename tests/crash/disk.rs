//! A disk that takes no more, by a limit on the size of files, which is lifted later.

use std::process::Command;

use crate::scene::{Hub, Order, Publisher, Role, Scene, eventually};
use crate::witness;

const QUICK: Role = Role {
    name: "quick",
    topics: "",
    order: Order::Intake,
    batch: 1,
    settings: "queue.messages = 1000",
};
/// So much fits into a file, in blocks of 512 bytes; the signal would end the process.
const LIMIT: &str = "trap '' XFSZ; ulimit -c 0; ulimit -S -f 400";

/// The limit is gone.
fn lift(hub: &Hub) {
    let mut prlimit = Command::new("prlimit");
    let status = prlimit
        .args(["--pid", &hub.pid(), "--fsize=unlimited"])
        .status();
    assert!(status.unwrap().success());
}

fn failed(hub: &mut Hub) -> bool {
    let journal = &hub.status()["journal"];
    match journal["state"].as_str() {
        Some("failed") => {
            let why = journal["why"].as_str().unwrap();
            assert!(why.contains(".seg"), "{why}");
            true
        }
        state => {
            assert_eq!(state, Some("ok"));
            false
        }
    }
}

/// Sends a message, and waits until it is with the consumer.
fn deliver(scene: &Scene, publisher: &mut Publisher) {
    let count = witness::count(scene.path(), QUICK.name) + 1;
    publisher.send(false);
    eventually("delivered", || {
        witness::count(scene.path(), QUICK.name) == count
    });
}

fn numbers(scene: &Scene) -> Vec<u64> {
    let records = witness::read(scene.path(), QUICK.name);
    records.iter().map(|record| record.number).collect()
}

pub fn a_full_disk_is_said_and_the_hub_goes_on() {
    let mut scene = Scene::new();
    let mut publisher = scene.publisher();
    scene.configure("journal.on_error = 'memory'", [&QUICK]);
    let mut hub = scene.start_after(LIMIT);
    while !failed(&mut hub) {
        deliver(&scene, &mut publisher);
    }
    (0..20).for_each(|_| deliver(&scene, &mut publisher));
    assert!(hub.status()["journal"]["unjournaled"].as_u64() >= Some(1));
    lift(&hub);
    // By itself, with the first message a second or more later.
    eventually("written again", || {
        deliver(&scene, &mut publisher);
        !failed(&mut hub)
    });
    let end = hub.status()["journal"]["end"].as_u64().unwrap();
    assert_eq!(end, publisher.sent + 1);
    hub.kill();
    let said = scene.log();
    for expected in [
        "can't write the journal",
        "messages are in memory only",
        "can be written again",
    ] {
        assert!(said.contains(expected), "no {expected:?} in {said}");
    }
    let sent: Vec<u64> = (0..publisher.sent).collect();
    assert_eq!(numbers(&scene), sent);

    // The next start knows what was settled, or delivers it again, and takes more.
    let mut hub = scene.start();
    hub.status();
    deliver_last(&scene, &mut publisher);
    hub.signal("TERM");
    assert_eq!(hub.end(), Some(0));
}

pub fn a_full_disk_stops_the_intake_if_so_told() {
    let mut scene = Scene::new();
    let mut publisher = scene.publisher();
    scene.configure("journal.on_error = 'stop'", [&QUICK]);
    let mut hub = scene.start_after(LIMIT);
    // Once it has stopped, it gives no sign of the messages that it does not take.
    eventually("failed", || {
        publisher.try_send();
        failed(&mut hub)
    });
    (0..20).for_each(|_| publisher.send(false));
    let status = hub.status();
    assert_eq!(status["journal"]["unjournaled"], 0);
    let end = status["journal"]["end"].as_u64().unwrap();
    eventually("delivered", || hub.is_idle());
    assert!(failed(&mut hub));
    assert_eq!(hub.ask("/readyz").unwrap()["status"], "failed");
    assert_eq!(hub.ask("/healthz").unwrap()["status"], "ok");
    assert_eq!(
        numbers(&scene).len() as u64,
        end - 1,
        "what is not in the journal is not delivered"
    );
    assert!(end - 1 < publisher.sent);
    lift(&hub);
    eventually("all delivered", || {
        numbers(&scene).len() as u64 >= publisher.sent
    });
    assert!(!failed(&mut hub));
    assert_eq!(hub.ask("/readyz").unwrap()["status"], "ok");
    hub.signal("TERM");
    assert_eq!(hub.end(), Some(0));
    let journal = scene.journal();
    assert_eq!(journal.len() as u64, publisher.sent, "none is lost");
    let delivered = scene.check(&QUICK, &journal);
    assert_eq!(delivered.again, 0);
}

fn deliver_last(scene: &Scene, publisher: &mut Publisher) {
    publisher.send(false);
    let last = publisher.sent - 1;
    eventually("delivered", || numbers(scene).last() == Some(&last));
}
