//! Lag: the age of the oldest message that is not settled, whatever the consumer is doing.

use std::time::{Duration, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender, unbounded};
use weir::Hub;
use weir::stats::now_ns;
use weir::steering::{Action, From};
use weir_consumer::{Failure, Kind};

use crate::support::*;

/// A reading of the lag, between two readings of the clock.
struct Reading {
    before_ns: u64,
    lag: f64,
    after_ns: u64,
}

fn read(hub: &Hub) -> Reading {
    let before_ns = now_ns();
    let lag = consumer(hub, "it").lag_seconds;
    Reading {
        before_ns,
        lag,
        after_ns: now_ns(),
    }
}

impl Reading {
    /// It is the age of a message that was received at this time, to the microsecond.
    #[track_caller]
    fn is_age_of(&self, received_ns: u64) {
        let age = |now_ns: u64| Duration::from_nanos(now_ns - received_ns).as_secs_f64();
        let (low, high) = (age(self.before_ns) - 1e-6, age(self.after_ns) + 1e-6);
        assert!(
            (low..=high).contains(&self.lag),
            "{low} {} {high}",
            self.lag
        );
    }
}

/// A consumer that tells when it has been given which message, and waits for leave to go on.
fn stepped() -> (Kind, Receiver<u64>, Sender<bool>) {
    let (entered, inside) = unbounded();
    let (leave, left) = unbounded();
    let kind = kind("it", move |message| {
        entered.send(message.received_ns())?;
        match left.recv() {
            Ok(true) => Err(Failure::halt("not this time")),
            _ => Ok(()),
        }
    });
    (kind, inside, leave)
}

#[track_caller]
fn take(inside: &Receiver<u64>) -> u64 {
    inside.recv_timeout(PATIENCE).expect("a message")
}

fn hub_in(dir: &std::path::Path, kind: Kind) -> (weir::backend::memory::Feed, Hub) {
    let toml = "[consumers.it]\ntopics = ''\nqueue.messages = 3\nretry.delay = '10ms'";
    try_kept(dir, toml, [kind]).unwrap()
}

fn received(hub: &Hub, count: u64) {
    eventually("received", || consumer(hub, "it").received == count);
}

#[test]
fn it_is_exact_while_live_behind_and_caught_up() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, inside, leave) = stepped();
    let (feed, hub) = hub_in(dir.path(), kind);
    assert_eq!(read(&hub).lag, 0.0);
    for number in 0..20 {
        feed.send("t", "x").unwrap();
        received(&hub, number + 1); // each in a batch of its own, with a time of its own
    }
    assert!(consumer(&hub, "it").behind_messages > 0);
    let mut earlier = 0;
    for _ in 0..20 {
        let in_hand = take(&inside);
        assert!(in_hand > earlier);
        earlier = in_hand;
        read(&hub).is_age_of(in_hand);
        leave.send(false).unwrap();
    }
    eventually("settled", || consumer(&hub, "it").queue_messages == 0);
    assert_eq!(read(&hub).lag, 0.0);
    hub.stop();
}

#[test]
fn it_is_exact_while_paused_replaying_and_halted() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, inside, leave) = stepped();
    let (feed, hub) = hub_in(dir.path(), kind);
    let name = || "it".to_owned();
    let pause = Action::Pause { consumer: name() };
    let resume = Action::Resume { consumer: name() };

    hub.act(&pause, "test").unwrap();
    for number in 0..10 {
        feed.send("t", "x").unwrap();
        received(&hub, number + 1);
    }
    let paused = read(&hub);
    hub.act(&resume, "test").unwrap();
    let first = take(&inside);
    paused.is_age_of(first);
    for _ in 0..9 {
        leave.send(false).unwrap();
        let in_hand = take(&inside);
        read(&hub).is_age_of(in_hand);
    }
    leave.send(false).unwrap();
    eventually("settled", || consumer(&hub, "it").queue_messages == 0);

    hub.act(&pause, "test").unwrap();
    let replay = Action::Replay {
        consumer: name(),
        from: From::Sequence(1),
    };
    hub.act(&replay, "test").unwrap();
    read(&hub).is_age_of(first);
    hub.act(&resume, "test").unwrap();
    assert_eq!(take(&inside), first);
    leave.send(false).unwrap();
    let halted_at = take(&inside);
    leave.send(true).unwrap();
    eventually("halted", || {
        consumer(&hub, "it").state == weir::stats::State::Halted
    });
    feed.send("t", "x").unwrap();
    read(&hub).is_age_of(halted_at);
    // What is left to the next start keeps its age.
    let before_ns = now_ns();
    let stopped = hub.stop();
    let last = Reading {
        before_ns,
        lag: stopped.status.consumers[0].lag_seconds,
        after_ns: now_ns(),
    };
    last.is_age_of(halted_at);
}

#[test]
fn it_is_that_of_the_backlog_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, inside, leave) = stepped();
    let (feed, hub) = hub_in(dir.path(), kind);
    for number in 0..10 {
        feed.send("t", "x").unwrap();
        received(&hub, number + 1);
    }
    let first = take(&inside);
    let pause = Action::Pause {
        consumer: "it".into(),
    };
    hub.act(&pause, "test").unwrap();
    drop(leave); // everything passes: but it is paused
    hub.stop();

    let (kind, inside, leave) = stepped();
    let (_feed, hub) = hub_in(dir.path(), kind);
    assert_eq!(consumer(&hub, "it").queue_messages, 9);
    let reading = read(&hub);
    let resume = Action::Resume {
        consumer: "it".into(),
    };
    hub.act(&resume, "test").unwrap();
    let second = take(&inside);
    assert!(second > first);
    reading.is_age_of(second);
    drop(leave);
    hub.stop();
}

#[test]
fn messages_that_wait_to_be_tried_again_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (entered, inside) = unbounded();
    let failing = kind("it", move |message| {
        entered.send(message.received_ns())?;
        Err(Failure::retry("not yet"))
    });
    let toml = "hub.stop_deadline = '0s'\n[consumers.it]\ntopics = ''\n\
                retry = { delay = '1h', delay_max = '1h' }";
    let (feed, hub) = try_kept(dir.path(), toml, [failing]).unwrap();
    feed.send("t", "x").unwrap();
    feed.send("t", "x").unwrap();
    let first = take(&inside);
    eventually("backing off", || consumer(&hub, "it").retrying == 1);
    read(&hub).is_age_of(first);
    let it = consumer(&hub, "it");
    assert_eq!((it.in_flight, it.waiting), (0, 2));
    hub.stop();
}

#[test]
fn source_lag_is_told_apart_from_it() {
    let (idle, _seen) = recorder("it");
    let (feed, hub) = fed("[consumers.it]\ntopics = ''", [idle]);
    let source = || hub.status().sources.remove(0);
    assert_eq!(source().lag_seconds, None);
    let sent = |ago: f64| {
        let now = std::time::SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap();
        format!("{{\"timestamp\": {}}}", now.as_secs_f64() - ago)
    };
    // A message a second is looked at.
    eventually("read off the message", || {
        feed.send("t", sent(90.0)).unwrap();
        source().lag_seconds.is_some()
    });
    let lag = source().lag_seconds.unwrap();
    assert!((90.0..150.0).contains(&lag), "{lag}");
    assert_eq!(source().clock_skew_seconds, Some(0.0));
    eventually("a clock that is ahead", || {
        feed.send("t", sent(-3600.0)).unwrap();
        source()
            .clock_skew_seconds
            .is_some_and(|skew| skew > 3000.0)
    });
    assert_eq!(source().lag_seconds, Some(0.0));
    assert!(consumer(&hub, "it").lag_seconds < 60.0);
    hub.stop();
}

#[test]
fn a_rate_limit_bounds_the_service_rate_before_it_was_ever_met() {
    let (quick, seen) = recorder("it");
    let toml = "[consumers.it]\ntopics = ''\nrate = '10/s'\nburst = 100";
    let (feed, hub) = fed(toml, [quick]);
    feed.send("t", "x").unwrap();
    next(&seen);
    eventually("measured", || {
        consumer(&hub, "it").service_per_second.is_some()
    });
    assert_eq!(consumer(&hub, "it").service_per_second, Some(10.0));
    hub.stop();
}

#[test]
fn a_message_that_is_skipped_waits_for_no_further_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let (entered, inside) = unbounded();
    let (leave, left) = unbounded::<()>();
    let failing = kind("it", move |message| {
        if message.seq() == 1 {
            return Err(Failure::retry("not yet"));
        }
        entered.send(message.received_ns())?;
        let _ = left.recv();
        Ok(())
    });
    let toml = "[consumers.it]\ntopics = ''\nretry = { attempts = 0, delay = '10ms' }";
    let (feed, hub) = try_kept(dir.path(), toml, [failing]).unwrap();
    feed.send("t", "x").unwrap();
    eventually("backing off", || consumer(&hub, "it").retrying == 1);
    let skip = Action::Skip {
        consumer: "it".into(),
        older_than_seconds: None,
    };
    hub.act(&skip, "test").unwrap();
    eventually("skipped", || consumer(&hub, "it").queue_messages == 0);
    feed.send("t", "x").unwrap();
    take(&inside);
    assert_eq!(consumer(&hub, "it").retrying, 0);
    drop(leave);
    hub.stop();
}
