//! Messages that end the process of whoever handles them.

use crate::scene::{Hub, Order, Publisher, Role, Scene, eventually};
use crate::witness;

/// A consumer that dies of messages, and gives each of them three attempts.
const VICTIM: Role = Role {
    name: "victim",
    topics: "",
    order: Order::Intake,
    batch: 1,
    settings: "dies = 'abort'\nretry.attempts = 3\nstart = 'earliest'",
};
const ATTEMPTS: usize = 3;

const BYSTANDER: Role = Role {
    name: "bystander",
    topics: "",
    order: Order::Intake,
    batch: 1,
    settings: "retry.attempts = 3",
};

/// Starts the hub again and again, as a supervisor does, until nothing waits any more; answers it
/// and how often it died.
#[track_caller]
fn supervise(scene: &mut Scene, deaths_max: usize) -> (Hub, usize) {
    let mut deaths = 0;
    loop {
        let mut hub = scene.start();
        let mut idle = false;
        eventually("idle or dead", || {
            idle = hub.is_idle();
            idle || hub.has_ended()
        });
        if idle {
            return (hub, deaths);
        }
        deaths += 1;
        assert!(deaths <= deaths_max, "no end of it:\n{}", scene.log());
    }
}

/// A journal with messages of which some kill, and a bystander that has had them all.
fn taken_in(scene: &mut Scene, publisher: &mut Publisher, count: u64, killers: &[u64]) {
    scene.configure("", [&BYSTANDER]);
    let hub = scene.start();
    (0..count).for_each(|number| publisher.send(killers.contains(&number)));
    eventually("all there", || {
        witness::count(scene.path(), BYSTANDER.name) as u64 == count && hub.is_idle()
    });
    hub.signal("TERM");
    assert_eq!(hub.end(), Some(0));
}

/// Stops the hub; all that is in the journal has arrived, but for the killers, which are set aside
/// from the victim.
#[track_caller]
fn check(scene: &Scene, hub: Hub, victim: &Role, bystander: &Role, killers: &[u64]) {
    hub.signal("TERM");
    assert_eq!(hub.end(), Some(0));
    let journal = scene.journal();
    scene.check(victim, &journal);
    scene.check(bystander, &journal);
    let letters = scene.letters();
    let mut set_aside: Vec<u64> = Vec::new();
    for letter in &letters {
        assert_eq!((&*letter.consumer, &*letter.reason), ("victim", "crash"));
        assert!(letter.attempts as usize >= ATTEMPTS, "{letter:?}");
        assert!(!letter.causes.is_empty(), "{letter:?}");
        set_aside.push(journal[letter.seq as usize - 1].number);
    }
    set_aside.sort_unstable();
    assert_eq!(set_aside, killers, "{letters:?}");
}

pub fn a_message_that_kills_the_process_is_set_aside() {
    for dies in ["abort", "stack_overflow"] {
        let settings = VICTIM.settings.replace("abort", dies);
        let victim = Role {
            settings: settings.leak(),
            ..VICTIM
        };
        let mut scene = Scene::new();
        let mut publisher = scene.publisher();
        scene.configure("", [&victim, &BYSTANDER]);
        let mut hub = scene.start();
        (0..50).for_each(|_| publisher.send(false));
        let have = |scene: &Scene, count| {
            [&victim, &BYSTANDER].map(|role| witness::count(scene.path(), role.name)) == [count; 2]
        };
        eventually("the first", || have(&scene, 50));
        publisher.send(true);
        eventually("dead", || hub.has_ended());
        assert_eq!(hub.end(), None, "it died of a signal");
        // The first death left no note: nobody knew that there would be one.
        let (hub, deaths) = supervise(&mut scene, ATTEMPTS);
        assert_eq!(deaths, ATTEMPTS, "{}", scene.log());
        (0..50).for_each(|_| publisher.send(false));
        let last = publisher.sent - 1;
        eventually("the rest", || {
            let seen = |role: &Role| witness::read(scene.path(), role.name);
            let has_last = |role| {
                seen(role)
                    .last()
                    .is_some_and(|record| record.number == last)
            };
            has_last(&victim) && has_last(&BYSTANDER)
        });
        check(&scene, hub, &victim, &BYSTANDER, &[50]);
    }
}

pub fn in_a_batch_it_is_found_and_the_others_are_delivered() {
    let victim = Role {
        batch: 50,
        ..VICTIM
    };
    let mut scene = Scene::new();
    let mut publisher = scene.publisher();
    taken_in(&mut scene, &mut publisher, 500, &[222]);
    scene.configure("", [&victim, &BYSTANDER]);
    let (hub, deaths) = supervise(&mut scene, ATTEMPTS + 1);
    assert_eq!(deaths, ATTEMPTS + 1, "{}", scene.log());
    check(&scene, hub, &victim, &BYSTANDER, &[222]);
}

pub fn several_that_kill_the_process_are_all_set_aside() {
    const KILLERS: [u64; 5] = [100, 101, 103, 130, 220];
    for (batch, workers, order) in [
        (1, "", Order::Intake),
        (50, "", Order::Intake),
        (1, "workers = 3", Order::None),
        (10, "workers = 3", Order::None),
        (1, "workers = 3\nkey = '/k'", Order::PerKey),
    ] {
        let settings = format!("{}\n{workers}", VICTIM.settings);
        let victim = Role {
            batch,
            order,
            settings: settings.leak(),
            ..VICTIM
        };
        let mut scene = Scene::new();
        let mut publisher = scene.publisher();
        taken_in(&mut scene, &mut publisher, 300, &KILLERS);
        scene.configure("", [&victim, &BYSTANDER]);
        // Each death but the first is an attempt of one of them.
        let (hub, deaths) = supervise(&mut scene, 1 + KILLERS.len() * ATTEMPTS);
        println!("batch {batch}, {workers:?}: {deaths} deaths");
        check(&scene, hub, &victim, &BYSTANDER, &KILLERS);
    }
}

/// Every death finds a message with the bystander, which loses none by it.
pub fn it_costs_no_other_consumer_a_message() {
    let victim = Role {
        settings: "dies = 'abort'\npause = '50ms'\nretry.attempts = 3\nstart = 'earliest'",
        ..VICTIM
    };
    let slow = Role {
        settings: "pause = '300ms'\nretry.attempts = 3",
        ..BYSTANDER
    };
    let mut scene = Scene::new();
    let mut publisher = scene.publisher();
    scene.configure("", [&slow]);
    let mut hub = scene.start();
    publisher.send(true);
    (0..9).for_each(|_| publisher.send(false));
    eventually("taken in", || hub.status()["journal"]["end"] == 11);
    hub.kill();
    scene.configure("", [&victim, &slow]);
    let (hub, _) = supervise(&mut scene, 2 * ATTEMPTS);
    check(&scene, hub, &victim, &slow, &[0]);
}
