//! What is kept: behind and live, restarts, replay, skip, pause, dead letters.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crossbeam_channel::{Receiver, Sender, unbounded};
use weir::Hub;
use weir::backend::memory::Feed;
use weir::dead_letters::Filter;
use weir::stats::{Reason, State};
use weir::steering::{Action, From};
use weir_consumer::{Failure, Kind, Message};

use crate::support::*;

fn send(feed: &Feed, topic: &str, numbers: std::ops::Range<u64>) {
    for number in numbers {
        feed.send(topic, number.to_string()).unwrap();
    }
}

fn number(message: &Message) -> u64 {
    let text = std::str::from_utf8(message.payload()).unwrap();
    text.trim().parse().unwrap()
}

/// A consumer that lets a message pass for each permission, and tells what passed.
struct Gated {
    kind: Kind,
    permits: Sender<()>,
    seen: Receiver<(u64, bool)>,
}

fn gated(name: &str) -> Gated {
    let (permits, permitted) = unbounded::<()>();
    let (sender, seen) = unbounded();
    let kind = kind(name, move |message| {
        // Without the sender: everything passes.
        let _ = permitted.recv();
        sender.send((number(message), message.replayed()))?;
        Ok(())
    });
    Gated {
        kind,
        permits,
        seen,
    }
}

impl Gated {
    fn permit(&self, count: u64) {
        (0..count).for_each(|_| self.permits.send(()).unwrap());
    }

    #[track_caller]
    fn take(&self, count: u64) -> Vec<(u64, bool)> {
        (0..count)
            .map(|_| self.seen.recv_timeout(PATIENCE).expect("a message"))
            .collect()
    }
}

fn fresh(range: std::ops::Range<u64>) -> Vec<(u64, bool)> {
    range.map(|n| (n, false)).collect()
}

const SLOW: &str = "[consumers.slow]\ntopics = ''\nqueue.messages = 16\n";

#[test]
fn a_consumer_that_falls_behind_loses_nothing_and_keeps_its_order() {
    let dir = tempfile::tempdir().unwrap();
    let slow = gated("slow");
    let (quick, others) = recorder("quick");
    let toml = format!("{SLOW}[consumers.quick]\ntopics = ''");
    let (feed, hub) = kept(dir.path(), &toml, [slow.kind.clone(), quick]);
    send(&feed, "t", 0..5000);
    assert_eq!(numbers(&others, 5000), (0..5000).collect::<Vec<_>>());
    let it = consumer(&hub, "slow");
    assert_eq!((it.received, it.queue_messages), (5000, 5000));
    assert!(it.behind_messages >= 4900, "{it:?}");
    assert!(it.queue_bytes > 0 && it.lag_seconds > 0.0);
    slow.permit(5000);
    assert_eq!(slow.take(5000), fresh(0..5000));
    // It is live again, and goes on in order.
    eventually("settled", || consumer(&hub, "slow").consumed == 5000);
    assert_eq!(consumer(&hub, "slow").behind_messages, 0);
    send(&feed, "t", 5000..5010);
    slow.permit(10);
    assert_eq!(slow.take(10), fresh(5000..5010));
    let stopped = hub.stop();
    assert_conserved(&stopped.status);
    assert_eq!(stopped.status.consumers[0].dropped.total(), 0);
}

#[test]
fn it_falls_behind_and_catches_up_again_and_again_while_messages_come() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, seen) = recorder("slow");
    let (feed, hub) = kept(
        dir.path(),
        "[consumers.slow]\ntopics = ''\nqueue.messages = 3\n",
        [kind],
    );
    let feeder = std::thread::spawn(move || send(&feed, "t", 0..50_000));
    assert_eq!(numbers(&seen, 50_000), (0..50_000).collect::<Vec<_>>());
    feeder.join().unwrap();
    let stopped = hub.stop();
    assert_conserved(&stopped.status);
    assert_eq!(stopped.status.consumers[0].consumed, 50_000);
}

#[test]
fn behind_only_what_is_wanted_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let slow = gated("slow");
    let toml = "[consumers.slow]\ntopics = 'a.'\nqueue.messages = 4\n[consumers.null]\ntopics = ''";
    let (feed, hub) = kept(dir.path(), toml, [slow.kind.clone()]);
    for n in 0..1000 {
        send(&feed, if n % 10 == 0 { "a.x" } else { "b.x" }, n..n + 1);
    }
    eventually("all there", || consumer(&hub, "null").consumed == 1000);
    eventually("also there", || {
        consumer(&hub, "slow").queue_messages == 100
    });
    slow.permit(100);
    let seen: Vec<u64> = slow.take(100).into_iter().map(|(n, _)| n).collect();
    assert_eq!(seen, (0..1000).step_by(10).collect::<Vec<_>>());
    assert_conserved(&hub.stop().status);
}

#[test]
fn what_is_not_settled_at_a_stop_comes_after_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let toml = format!("hub.stop_deadline = '50ms'\n{SLOW}");
    let slow = gated("slow");
    let (feed, hub) = kept(dir.path(), &toml, [slow.kind.clone()]);
    send(&feed, "t", 0..1000);
    slow.permit(100);
    assert_eq!(slow.take(100), fresh(0..100));
    eventually("received", || consumer(&hub, "slow").received == 1000);
    let stopped = hub.stop();
    // The delivery at which it was is still under way: the thread is left behind.
    assert_eq!(stopped.stuck, ["slow"]);
    let it = &stopped.status.consumers[0];
    assert_eq!((it.dropped.total(), it.queue_messages), (0, 900));
    drop(slow);

    let slow = gated("slow");
    let (feed, hub) = kept(dir.path(), &toml, [slow.kind.clone()]);
    let it = consumer(&hub, "slow");
    assert_eq!((it.received, it.queue_messages), (900, 900));
    assert!(it.lag_seconds > 0.0 && it.queue_bytes > 0);
    send(&feed, "t", 1000..1100);
    slow.permit(1000);
    assert_eq!(slow.take(1000), fresh(100..1100));
    eventually("settled", || consumer(&hub, "slow").queue_messages == 0);
    assert_conserved(&hub.stop().status);

    let (_feed, hub) = kept(dir.path(), &toml, [gated("slow").kind]);
    assert_eq!(consumer(&hub, "slow").received, 0);
    hub.stop();
}

#[test]
fn a_new_consumer_begins_at_the_head_or_with_all_that_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (feed, hub) = kept(dir.path(), "[consumers.null]\ntopics = ''", []);
    send(&feed, "t", 0..100);
    eventually("consumed", || consumer(&hub, "null").consumed == 100);
    hub.stop();
    let ((head, head_seen), (earliest, earliest_seen)) = (recorder("head"), recorder("earliest"));
    let toml = "[consumers.head]\ntopics = ''\n\
                [consumers.earliest]\ntopics = ''\nstart = 'earliest'";
    let (feed, hub) = kept(dir.path(), toml, [head, earliest]);
    send(&feed, "t", 100..110);
    assert_eq!(numbers(&head_seen, 10), (100..110).collect::<Vec<_>>());
    assert_eq!(numbers(&earliest_seen, 110), (0..110).collect::<Vec<_>>());
    assert_conserved(&hub.stop().status);
}

#[test]
fn workers_that_overtake_each_other_leave_the_cursor_at_the_lowest() {
    let dir = tempfile::tempdir().unwrap();
    for (more, restart) in [("", 5), ("key = '/k'\n", 5)] {
        let toml = format!(
            "hub.stop_deadline = '50ms'\n[consumers.many]\ntopics = ''\nworkers = 3\n{more}"
        );
        let (release, released) = unbounded::<()>();
        let (sender, seen) = unbounded();
        let many = kind("many", move |message| {
            let n = message.json()?["k"].as_u64().unwrap_or_default();
            if n == restart {
                let _ = released.recv();
            }
            sender.send(n)?;
            Ok(())
        });
        let (feed, hub) = kept(dir.path(), &toml, [many]);
        for n in 0..100 {
            feed.send("t", format!("{{\"k\": {n}}}")).unwrap();
        }
        // Without a key all others are settled; with one, some wait behind the stuck message.
        let enough = |others: &[u64]| match more {
            "" => others.len() == 99,
            _ => (0..5).all(|n| others.contains(&n)),
        };
        let mut others: Vec<u64> = Vec::new();
        while !enough(&others) {
            others.push(seen.recv_timeout(PATIENCE).unwrap());
        }
        eventually("settled", || {
            consumer(&hub, "many").consumed >= others.len() as u64
        });
        assert!(!others.contains(&5));
        hub.stop();
        drop(release);

        let (sender, seen) = unbounded();
        let many = kind("many", move |message| {
            sender.send(message.json()?["k"].as_u64().unwrap_or_default())?;
            Ok(())
        });
        let (_feed, hub) = kept(dir.path(), &toml, [many]);
        let it = consumer(&hub, "many");
        assert_eq!(it.received, 95, "{more}");
        let mut again: Vec<u64> = (0..95)
            .map(|_| seen.recv_timeout(PATIENCE).unwrap())
            .collect();
        again.sort_unstable();
        assert_eq!(again, (5..100).collect::<Vec<_>>(), "{more}");
        eventually("settled", || consumer(&hub, "many").queue_messages == 0);
        hub.stop();
    }
}

#[test]
fn a_replay_brings_settled_messages_again_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let slow = gated("slow");
    let (feed, hub) = kept(dir.path(), SLOW, [slow.kind.clone()]);
    send(&feed, "t", 0..100);
    slow.permit(60);
    assert_eq!(slow.take(60), fresh(0..60));
    eventually("settled", || consumer(&hub, "slow").consumed == 60);
    // Sequence numbers begin with 1.
    eventually("the 61st in hand", || consumer(&hub, "slow").in_flight == 1);
    let from = From::Sequence(41);
    let outcome = hub.act(&replay("slow", from), "test").unwrap();
    assert!(
        outcome.count.is_some_and(|count| count >= 20),
        "{outcome:?}"
    );
    slow.permit(1 + 60);
    assert_eq!(slow.take(1), fresh(60..61));
    let again = slow.take(60);
    assert_eq!(
        again.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
        (40..100).collect::<Vec<_>>()
    );
    assert!(again[..20].iter().all(|(_, replayed)| *replayed));
    assert!(again[40..].iter().all(|(_, replayed)| !*replayed));
    eventually("live again", || consumer(&hub, "slow").queue_messages == 0);
    assert_conserved(&hub.status());
    let error = hub
        .act(&replay("slow", From::Sequence(1000)), "test")
        .unwrap_err();
    assert!(error.contains("nothing to replay"), "{error}");
    hub.stop();

    // A replay goes on after a restart, and is still one.
    let toml = format!("hub.stop_deadline = '50ms'\n{SLOW}");
    let slow = gated("slow");
    let (_feed, hub) = kept(dir.path(), &toml, [slow.kind.clone()]);
    hub.act(&replay("slow", From::Seconds(3600.0)), "test")
        .unwrap();
    slow.permit(10);
    slow.take(10);
    eventually("settled", || consumer(&hub, "slow").consumed == 10);
    hub.stop();
    drop(slow);
    let slow = gated("slow");
    let (_feed, hub) = kept(dir.path(), SLOW, [slow.kind.clone()]);
    assert_eq!(consumer(&hub, "slow").received, 90);
    slow.permit(90);
    let rest: Vec<(u64, bool)> = (10..100).map(|n| (n, true)).collect();
    assert_eq!(slow.take(90), rest);
    hub.stop();
}

fn replay(consumer: &str, from: From) -> Action {
    Action::Replay {
        consumer: consumer.into(),
        from,
    }
}

#[test]
fn replays_while_messages_come_and_workers_work_keep_the_ledger() {
    let dir = tempfile::tempdir().unwrap();
    let count = Arc::new(AtomicU64::new(0));
    let counted = count.clone();
    let busy = kind("busy", move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    let toml = "[consumers.busy]\ntopics = ''\nworkers = 3\nqueue.messages = 64";
    let (feed, hub) = kept(dir.path(), toml, [busy]);
    let feeder = std::thread::spawn(move || send(&feed, "t", 0..20_000));
    let mut again = 0;
    while again < 10 {
        let seq = consumer(&hub, "busy").consumed % 10_000 + 1;
        if hub
            .act(&replay("busy", From::Sequence(seq)), "test")
            .is_ok()
        {
            again += 1;
        }
        assert_conserved(&hub.status());
    }
    feeder.join().unwrap();
    eventually("settled", || {
        let it = consumer(&hub, "busy");
        it.received >= 20_000 && it.queue_messages == 0
    });
    let it = consumer(&hub, "busy");
    assert_eq!(it.consumed, count.load(Ordering::SeqCst));
    assert_eq!((it.dropped.total(), it.behind_messages), (0, 0));
    assert_conserved(&hub.stop().status);
}

#[test]
fn a_skip_drops_what_waits_and_counts_it() {
    let dir = tempfile::tempdir().unwrap();
    let slow = gated("slow");
    let (feed, hub) = kept(dir.path(), SLOW, [slow.kind.clone()]);
    send(&feed, "t", 0..1000);
    eventually("received", || consumer(&hub, "slow").received == 1000);
    let skip = |older_than_seconds| Action::Skip {
        consumer: "slow".into(),
        older_than_seconds,
    };
    eventually("in hand", || consumer(&hub, "slow").in_flight == 1);
    hub.act(&skip(Some(3600.0)), "test").unwrap(); // nothing is so old
    hub.act(&skip(None), "test").unwrap();
    send(&feed, "t", 1000..1010);
    slow.permit(1 + 10);
    assert_eq!(slow.take(1), fresh(0..1)); // it was in hand
    assert_eq!(slow.take(10), fresh(1000..1010));
    eventually("settled", || consumer(&hub, "slow").queue_messages == 0);
    let it = consumer(&hub, "slow");
    assert_eq!((it.consumed, it.dropped.of(Reason::Skipped)), (11, 999));
    assert_conserved(&hub.stop().status);
    let audit = std::fs::read_to_string(dir.path().join("audit.log")).unwrap();
    assert_eq!(audit.lines().count(), 2);
    assert!(audit.contains("\"by\":\"test\""), "{audit}");
}

#[test]
fn a_pause_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let pause = Action::Pause {
        consumer: "paused".into(),
    };
    let resume = Action::Resume {
        consumer: "paused".into(),
    };
    let toml =
        "[consumers.paused]\ntopics = ''\nqueue.messages = 10\n[consumers.null]\ntopics = ''";
    let (kind, seen) = recorder("paused");
    let (feed, hub) = kept(dir.path(), toml, [kind]);
    hub.act(&pause, "test").unwrap();
    send(&feed, "t", 0..100);
    eventually("passed by", || consumer(&hub, "null").consumed == 100);
    // The other queue may have been offered them first.
    eventually("received", || consumer(&hub, "paused").received == 100);
    let it = consumer(&hub, "paused");
    assert_eq!((it.consumed, it.queue_messages), (0, 100));
    assert_eq!(it.state, State::Paused);
    let stopped = hub.stop();
    assert_eq!((stopped.stuck, stopped.errors), (vec![], vec![]));
    assert!(seen.is_empty());

    let (kind, seen) = recorder("paused");
    let (feed, hub) = kept(dir.path(), toml, [kind]);
    send(&feed, "t", 100..110);
    eventually("received", || consumer(&hub, "null").consumed == 10);
    assert_eq!(consumer(&hub, "paused").state, State::Paused);
    hub.act(&resume, "test").unwrap();
    assert_eq!(numbers(&seen, 110), (0..110).collect::<Vec<_>>());
    let wrong = Action::Pause {
        consumer: "pauzed".into(),
    };
    let error = hub.act(&wrong, "test").unwrap_err();
    assert!(error.contains("did you mean \"paused\"?"), "{error}");
    assert_conserved(&hub.stop().status);
}

#[test]
fn what_is_given_up_is_set_aside_and_can_be_delivered_again() {
    let dir = tempfile::tempdir().unwrap();
    let good = Arc::new(AtomicBool::new(false));
    let (sender, seen) = unbounded();
    let kind = || {
        let (good, sender) = (good.clone(), sender.clone());
        kind("picky", move |message| {
            if number(message) % 2 == 1 && !good.load(Ordering::SeqCst) {
                return Err(match number(message) {
                    1 => Failure::retry("the server is away"),
                    _ => Failure::dead_letter("odd"),
                });
            }
            sender.send((number(message), message.replayed()))?;
            Ok(())
        })
    };
    let toml = "[consumers.picky]\ntopics = ''\nretry = { attempts = 2, delay = '1ms' }";
    let (feed, hub) = kept(dir.path(), toml, [kind()]);
    send(&feed, "org.t", 0..10);
    eventually("settled", || {
        consumer(&hub, "picky").queue_messages == 0 && !seen.is_empty()
    });
    let it = consumer(&hub, "picky");
    assert_eq!(
        (it.consumed, it.dead_lettered, it.dropped.total()),
        (5, 5, 0)
    );
    assert_eq!(it.dead_letters, 5);
    assert_eq!(seen.try_iter().count(), 5);
    let store = dir.path().join("dead-letters.db");
    let store = weir::dead_letters::DeadLetters::read(&store)
        .unwrap()
        .unwrap();
    let letters = store.list(&Filter::default(), 0, 10).unwrap();
    assert_eq!(letters.len(), 5);
    let first = &letters[0];
    assert_eq!(
        (&*first.topic, &*first.payload, first.seq),
        ("org.t", &b"1"[..], 2)
    );
    assert_eq!((&*first.reason, first.attempts), ("attempts", 2));
    assert_eq!(first.causes.len(), 1);
    assert_eq!(
        (&*first.causes[0].text, first.causes[0].times),
        ("the server is away", 2)
    );
    assert_eq!(letters[1].reason, "dead_letter");

    // Requeued too early, they come back; requeued when it is mended, they are gone.
    let all = || Action::Requeue {
        filter: Filter::default(),
    };
    assert_eq!(hub.act(&all(), "test").unwrap().count, Some(5));
    eventually("failed again", || {
        consumer(&hub, "picky").dead_lettered == 10
    });
    assert_eq!(consumer(&hub, "picky").dead_letters, 5);
    assert_conserved(&hub.status());
    good.store(true, Ordering::SeqCst);
    let one = Filter {
        ids: vec![first.id],
        ..Filter::default()
    };
    assert_eq!(
        hub.act(&Action::Requeue { filter: one }, "test")
            .unwrap()
            .count,
        Some(1)
    );
    assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), (1, true));
    eventually("gone", || consumer(&hub, "picky").dead_letters == 4);
    assert_conserved(&hub.stop().status);

    // Those requeued while the hub is stopped come at its start.
    let store = dir.path().join("dead-letters.db");
    let settings = weir::dead_letters::Settings::default();
    let store = weir::dead_letters::DeadLetters::open(&store, &settings).unwrap();
    assert_eq!(store.requeue(&Filter::default()).unwrap(), 4);
    drop(store);
    let (_feed, hub) = kept(dir.path(), toml, [kind()]);
    let mut again: Vec<u64> = (0..4)
        .map(|_| seen.recv_timeout(PATIENCE).unwrap().0)
        .collect();
    again.sort_unstable();
    assert_eq!(again, [3, 5, 7, 9]);
    eventually("gone", || consumer(&hub, "picky").dead_letters == 0);
    assert_conserved(&hub.stop().status);
}

#[test]
fn a_paused_consumer_gets_no_dead_letters_either() {
    let dir = tempfile::tempdir().unwrap();
    let good = Arc::new(AtomicBool::new(false));
    let (sender, seen) = unbounded();
    let mended = good.clone();
    let picky = kind("picky", move |message| {
        if !mended.load(Ordering::SeqCst) {
            return Err(Failure::dead_letter("not yet"));
        }
        sender.send(number(message))?;
        Ok(())
    });
    let toml = "[consumers.picky]\ntopics = ''";
    let (feed, hub) = kept(dir.path(), toml, [picky]);
    send(&feed, "t", 0..3);
    eventually("set aside", || consumer(&hub, "picky").dead_letters == 3);
    good.store(true, Ordering::SeqCst);
    let consumer_name = || "picky".to_owned();
    let act = |action| hub.act(&action, "test").unwrap();
    act(Action::Pause {
        consumer: consumer_name(),
    });
    act(Action::Requeue {
        filter: Filter::default(),
    });
    eventually("at the first letter", || {
        consumer(&hub, "picky").state == State::Paused
    });
    act(Action::Skip {
        consumer: consumer_name(),
        older_than_seconds: None,
    });
    send(&feed, "t", 3..4); // the letters come before it, and they wait
    eventually("received", || consumer(&hub, "picky").received >= 4);
    assert!(seen.is_empty());
    assert_eq!(consumer(&hub, "picky").dead_letters, 3);
    assert_eq!(consumer(&hub, "picky").dead_letters_requeued, 3);
    let first = Filter {
        ids: vec![1],
        ..Filter::default()
    };
    act(Action::Purge { filter: first }); // though it is in hand
    act(Action::Resume {
        consumer: consumer_name(),
    });
    let all: Vec<u64> = (0..3)
        .map(|_| seen.recv_timeout(PATIENCE).unwrap())
        .collect();
    assert_eq!(all, [1, 2, 3]);
    eventually("gone", || consumer(&hub, "picky").dead_letters == 0);
    assert_conserved(&hub.stop().status);
}

#[test]
fn a_dead_letter_passes_an_intake_that_waits_for_room() {
    let dir = tempfile::tempdir().unwrap();
    let good = Arc::new(AtomicBool::new(false));
    let (permits, permitted) = unbounded::<()>();
    let (sender, seen) = unbounded();
    let mended = good.clone();
    let picky = kind("picky", move |message| {
        if !mended.load(Ordering::SeqCst) {
            return Err(Failure::dead_letter("not yet"));
        }
        let _ = permitted.recv();
        sender.send(number(message))?;
        Ok(())
    });
    let toml = "[consumers.picky]\ntopics = ''\ndelivery = 'at_most_once'\n\
                queue = { messages = 1, overflow = 'block' }";
    let (feed, hub) = kept(dir.path(), toml, [picky]);
    send(&feed, "t", 0..1);
    eventually("set aside", || consumer(&hub, "picky").dead_letters == 1);
    good.store(true, Ordering::SeqCst);
    send(&feed, "t", 1..20);
    eventually("full", || consumer(&hub, "picky").in_flight == 1);
    let filter = Filter::default();
    hub.act(&Action::Requeue { filter }, "test").unwrap();
    drop(permits);
    let mut all: Vec<u64> = (0..20)
        .map(|_| seen.recv_timeout(PATIENCE).unwrap())
        .collect();
    all.sort_unstable();
    assert_eq!(all, (0..20).collect::<Vec<_>>());
    assert_conserved(&hub.stop().status);
}

#[test]
fn at_most_once_keeps_to_its_queue_beside_consumers_that_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let slow = gated("slow");
    let (quick, others) = recorder("quick");
    let toml = format!(
        "hub.stop_deadline = '50ms'\n{SLOW}delivery = 'at_most_once'\n\
         [consumers.quick]\ntopics = ''"
    );
    let (feed, hub) = kept(dir.path(), &toml, [slow.kind.clone(), quick]);
    send(&feed, "t", 0..100);
    assert_eq!(numbers(&others, 100).len(), 100);
    eventually("dropped", || {
        consumer(&hub, "slow").dropped.of(Reason::Overflow) == 84
    });
    hub.stop();
    drop(slow);
    let slow = gated("slow");
    let (_feed, hub) = kept(dir.path(), &toml, [slow.kind.clone(), recorder("quick").0]);
    assert_eq!(consumer(&hub, "slow").received, 0);
    hub.stop();
}

#[test]
fn a_second_hub_on_the_same_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_feed, hub) = kept(dir.path(), "[consumers.null]\ntopics = ''", []);
    let error = try_kept(dir.path(), "[consumers.null]\ntopics = ''", [])
        .err()
        .unwrap();
    assert!(error.contains("in use by another hub"), "{error}");
    hub.stop();
    let (_feed, hub) = kept(dir.path(), "[consumers.null]\ntopics = ''", []);
    hub.stop();
}

#[test]
fn each_batch_is_durable_before_anybody_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, seen) = recorder("a");
    let (feed, hub) = kept(
        dir.path(),
        "journal.sync = 'each-batch'\n[consumers.a]\ntopics = ''",
        [kind],
    );
    for n in 0..20 {
        send(&feed, "t", n..n + 1);
        assert_eq!(numbers(&seen, 1), [n]);
        let journal = hub.status().journal.unwrap();
        assert!(journal.durable > n + 1, "{journal:?}");
    }
    assert_conserved(&hub.stop().status);
}

#[test]
fn retention_takes_from_a_consumer_that_is_too_far_behind_and_counts_it() {
    let dir = tempfile::tempdir().unwrap();
    let slow = gated("slow");
    // The smallest there is: two segments of 64 MiB.
    let toml =
        format!("journal.keep = {{ bytes = '128 MiB' }}\n{SLOW}[consumers.null]\ntopics = ''");
    let (feed, hub) = kept(dir.path(), &toml, [slow.kind.clone()]);
    let payload = vec![b' '; 1 << 20];
    const COUNT: u64 = 300;
    for n in 0..COUNT {
        let mut payload = payload.clone();
        payload.extend_from_slice(n.to_string().as_bytes());
        feed.send("t", payload).unwrap();
    }
    eventually("all there", || consumer(&hub, "null").consumed == COUNT);
    eventually("taken", || {
        consumer(&hub, "slow").dropped.of(Reason::Retention) > 0
    });
    eventually("within bounds", || {
        hub.status().journal.unwrap().bytes <= 200 << 20
    });
    eventually("measured", || {
        consumer(&hub, "slow").retention_used_ratio > 0.2
    });
    let left = consumer(&hub, "slow").queue_messages;
    assert_conserved(&hub.status());
    slow.permit(left);
    eventually("settled", || consumer(&hub, "slow").queue_messages == 0);
    let it = consumer(&hub, "slow");
    assert_eq!(it.consumed + it.dropped.of(Reason::Retention), COUNT);
    assert_conserved(&hub.stop().status);
}

#[test]
fn what_retention_took_is_counted_once_and_not_again_after_a_stop() {
    let dir = tempfile::tempdir().unwrap();
    let toml = "journal.keep = { bytes = '128 MiB' }\n\
                [consumers.a]\ntopics = ''\nqueue.messages = 8\n[consumers.null]\ntopics = ''";
    let (kind, _seen) = recorder("a");
    let (feed, hub) = kept(dir.path(), toml, [kind]);
    let pause = Action::Pause {
        consumer: "a".into(),
    };
    hub.act(&pause, "test").unwrap();
    const COUNT: u64 = 250;
    for _ in 0..COUNT {
        feed.send("t", vec![b' '; 1 << 20]).unwrap();
    }
    eventually("all there", || consumer(&hub, "null").consumed == COUNT);
    eventually("within bounds", || {
        hub.status().journal.unwrap().bytes <= 128 << 20
    });
    let stopped = hub.stop();
    assert_conserved(&stopped.status);
    let it = stopped
        .status
        .consumers
        .iter()
        .find(|c| c.name == "a")
        .unwrap();
    let waiting = it.queue_messages;
    assert!(it.dropped.of(Reason::Retention) > 0, "{it:?}");
    assert_eq!(it.dropped.total() + waiting, COUNT);

    let (_feed, hub) = kept(dir.path(), toml, [recorder("a").0]);
    let it = consumer(&hub, "a");
    assert_eq!((it.received, it.queue_messages), (waiting, waiting));
    assert_eq!(it.dropped.total(), 0);
    hub.stop();
}

#[test]
fn the_journal_can_be_turned_off() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let (kind, seen) = recorder("a");
    let toml = format!("hub.data_dir = {data:?}\n[consumers.a]\ntopics = ''");
    let (feed, hub) = fed(&toml, [kind]);
    send(&feed, "t", 0..10);
    assert_eq!(numbers(&seen, 10), (0..10).collect::<Vec<_>>());
    assert!(hub.status().journal.is_none());
    hub.stop();
    assert!(!data.exists());
}

fn kept(dir: &Path, toml: &str, kinds: impl IntoIterator<Item = Kind>) -> (Feed, Hub) {
    try_kept(dir, toml, kinds).unwrap()
}

#[test]
fn several_sources_are_one_order_for_all_consumers_live_or_behind() {
    let dir = tempfile::tempdir().unwrap();
    let ((quick, quick_seen), (slow, slow_seen)) = (recorder("quick"), recorder("slow"));
    let toml = format!(
        "hub.http = ''\nhub.data_dir = {:?}\n[consumers.quick]\ntopics = ''\n\
         [consumers.slow]\ntopics = ''\nqueue.messages = 2",
        dir.path()
    );
    let config = weir::Config::embedded(&toml, &registry([quick, slow])).unwrap();
    let (feeds, backends): (Vec<_>, Vec<_>) = (0..3)
        .map(|_| weir::backend::memory::Memory::new(100))
        .map(|(feed, backend)| (feed, Box::new(backend) as Box<dyn weir::backend::Backend>))
        .unzip();
    let hub = Hub::start_with(&config, backends).unwrap();
    let feeders: Vec<_> = (0..)
        .zip(feeds)
        .map(|(source, feed)| {
            std::thread::spawn(move || {
                send(&feed, "t", source * 10_000..source * 10_000 + 3000);
            })
        })
        .collect();
    let (quick, slow) = (numbers(&quick_seen, 9000), numbers(&slow_seen, 9000));
    assert!(quick == slow, "two orders");
    for source in 0..3 {
        let own: Vec<u64> = quick
            .iter()
            .copied()
            .filter(|n| n / 10_000 == source)
            .collect();
        let sent: Vec<u64> = (source * 10_000..source * 10_000 + 3000).collect();
        assert!(own == sent, "source {source}");
    }
    feeders
        .into_iter()
        .for_each(|feeder| feeder.join().unwrap());
    assert_conserved(&hub.stop().status);
}

#[test]
fn what_a_halted_consumer_did_not_settle_waits_for_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mended = Arc::new(AtomicBool::new(false));
    let (sender, seen) = unbounded();
    let halting = || {
        let (mended, sender) = (mended.clone(), sender.clone());
        kind("halting", move |message| {
            if number(message) == 50 && !mended.load(Ordering::SeqCst) {
                return Err(Failure::halt("the licence has run out"));
            }
            sender.send(number(message))?;
            Ok(())
        })
    };
    // The stop does not wait for a consumer that delivers nothing.
    let toml = "hub.stop_deadline = '1h'\n\
                [consumers.halting]\ntopics = ''\nqueue.messages = 8\n[consumers.null]\ntopics = ''";
    let (feed, hub) = kept(dir.path(), toml, [halting()]);
    send(&feed, "t", 0..1000);
    eventually("all there", || consumer(&hub, "null").consumed == 1000);
    eventually("halted", || {
        consumer(&hub, "halting").state == State::Halted
    });
    let it = consumer(&hub, "halting");
    assert_eq!((it.consumed, it.queue_messages), (50, 950));
    let stopped = hub.stop();
    assert_eq!(stopped.stuck, [""; 0]);
    assert_conserved(&stopped.status);
    let it = stopped
        .status
        .consumers
        .iter()
        .find(|c| c.name == "halting")
        .unwrap();
    assert_eq!((it.dropped.total(), it.queue_messages), (0, 950));

    mended.store(true, Ordering::SeqCst);
    let (_feed, hub) = kept(dir.path(), toml, [halting()]);
    let all: Vec<u64> = (0..1000)
        .map(|_| seen.recv_timeout(PATIENCE).unwrap())
        .collect();
    assert_eq!(all, (0..1000).collect::<Vec<_>>());
    assert_conserved(&hub.stop().status);
}
