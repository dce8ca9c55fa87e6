//! What consumers see: order, isolation, overflow, retries, panics, lanes, rates.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use crossbeam_channel::unbounded;
use weir::monitor::sample::FigureValue;
use weir::stats::{Reason, State};
use weir_consumer::{Consumer, Context, Failure, Kind, Message, Producer, Publisher, Result};

use crate::support::*;

fn send(feed: &weir::backend::memory::Feed, numbers: std::ops::Range<u64>) {
    for number in numbers {
        feed.send("t", number.to_string()).unwrap();
    }
}

#[test]
fn every_consumer_gets_every_message_in_order() {
    let bus = Bus::tcp();
    let (kinds, seen): (Vec<_>, Vec<_>) = ["a", "b", "c", "d"].into_iter().map(recorder).unzip();
    let consumers: String = ["a", "b", "c", "d"]
        .iter()
        .map(|name| format!("[consumers.{name}]\ntopics = ''\n"))
        .collect();
    let hub = hub(&format!("{}{consumers}", connect(&[&bus.endpoint])), kinds);
    bus.subscriptions(1);
    for number in 0..5000 {
        bus.publish(&format!("t.{}", number % 10), number.to_string());
    }
    for seen in &seen {
        assert_eq!(numbers(seen, 5000), (0..5000).collect::<Vec<_>>());
    }
    let stopped = hub.stop();
    assert_conserved(&stopped.status);
    assert!(stopped.status.consumers.iter().all(|c| c.consumed == 5000));
}

#[test]
fn a_stuck_consumer_changes_nothing_for_the_others() {
    let bus = Bus::tcp();
    let (stuck, release, inside) = stuck("stuck");
    let (mut kinds, seen): (Vec<_>, Vec<_>) = ["a", "b", "c"].into_iter().map(recorder).unzip();
    kinds.push(stuck);
    let consumers: String = ["a", "b", "c"]
        .iter()
        .map(|name| format!("[consumers.{name}]\ntopics = ''\n"))
        .collect();
    let toml = format!(
        "{}{consumers}[consumers.stuck]\ntopics = ''\nqueue.messages = 100\n",
        connect(&[&bus.endpoint])
    );
    let hub = hub(&toml, kinds);
    bus.subscriptions(1);
    bus.publish("t", "0");
    inside.recv_timeout(PATIENCE).unwrap();
    // While it is stuck, a hundred times its queue passes by the others: none is lost or late.
    for number in 1..10_000 {
        bus.publish("t", number.to_string());
        if number % 1000 == 0 {
            for seen in &seen {
                assert_eq!(numbers(seen, 1000).len(), 1000);
            }
        }
    }
    for seen in &seen {
        assert_eq!(numbers(seen, 1000).last(), Some(&9999));
    }
    for name in ["a", "b", "c"] {
        eventually("settled", || consumer(&hub, name).consumed == 10_000);
        assert_eq!(consumer(&hub, name).dropped.total(), 0);
    }
    let stuck = consumer(&hub, "stuck");
    assert_eq!((stuck.waiting, stuck.in_flight), (99, 1));
    assert_eq!(stuck.dropped.of(Reason::Overflow), 9900);
    assert!(stuck.lag_seconds > 0.0);
    assert_conserved(&hub.status());
    drop(release);
    let stopped = hub.stop();
    assert_conserved(&stopped.status);
    assert_eq!(stopped.stuck, [""; 0]);
}

/// One suite over every policy: a queue of 16 whose consumer is stuck at the first message.
#[test]
fn each_overflow_policy_keeps_what_it_promises() {
    for policy in ["drop_newest", "drop_oldest", "block"] {
        let (release, released) = unbounded::<()>();
        let (entered, inside) = unbounded();
        let (sender, seen) = unbounded();
        let slow = kind("slow", move |message| {
            entered.send(())?;
            let _ = released.recv();
            record(&sender, message)
        });
        let (free, others) = recorder("free");
        let toml = format!(
            "[consumers.slow]\ntopics = ''\nqueue = {{ messages = 16, overflow = '{policy}' }}\n\
             [consumers.free]\ntopics = ''"
        );
        let (feed, hub) = fed(&toml, [slow, free]);
        send(&feed, 0..1);
        inside.recv_timeout(PATIENCE).unwrap();
        let feeder = std::thread::spawn(move || send(&feed, 1..40));
        let survivors: Vec<u64> = match policy {
            "drop_newest" => (0..16).collect(),
            "drop_oldest" => [0].into_iter().chain(25..40).collect(),
            _ => (0..40).collect(),
        };
        if policy == "block" {
            eventually("full", || consumer(&hub, "slow").queue_messages == 16);
            feeder.join().unwrap();
        } else {
            feeder.join().unwrap();
            assert_eq!(numbers(&others, 40), (0..40).collect::<Vec<_>>());
            eventually("settled", || consumer(&hub, "free").consumed == 40);
            // It may be offered the last one after the other queue.
            eventually("offered", || consumer(&hub, "slow").received == 40);
        }
        drop(release);
        assert_eq!(numbers(&seen, survivors.len()), survivors, "{policy}");
        if policy == "block" {
            assert_eq!(numbers(&others, 40), (0..40).collect::<Vec<_>>());
        }
        let stopped = hub.stop();
        assert_conserved(&stopped.status);
        let slow = stopped
            .status
            .consumers
            .iter()
            .find(|c| c.name == "slow")
            .unwrap();
        assert_eq!(
            slow.dropped.of(Reason::Overflow),
            40 - survivors.len() as u64,
            "{policy}"
        );
    }
}

#[test]
fn a_failed_message_is_tried_again_in_place_and_then_given_up() {
    let (sender, seen) = unbounded();
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let tried = attempts.clone();
    let flaky = kind("flaky", move |message| {
        let number = String::from_utf8_lossy(message.payload()).parse::<u64>()?;
        let mut tried = tried.lock().unwrap();
        tried.push(number);
        let before = tried.iter().filter(|n| **n == number).count();
        match number {
            1 if before <= 2 => Err(Failure::retry("not yet")),
            2 => Err(Failure::retry("never")),
            3 => Err(Failure::drop("not for me")),
            4 => Err(Failure::dead_letter("broken")),
            _ => record(&sender, message),
        }
    });
    let toml = "[consumers.flaky]\ntopics = ''\nretry = { attempts = 4, delay = '1ms' }";
    let (feed, hub) = fed(toml, [flaky]);
    send(&feed, 0..6);
    assert_eq!(numbers(&seen, 3), [0, 1, 5]);
    assert_eq!(*attempts.lock().unwrap(), [0, 1, 1, 1, 2, 2, 2, 2, 3, 4, 5]);
    let status = hub.stop().status;
    let flaky = &status.consumers[0];
    assert_eq!(
        (flaky.consumed, flaky.failed, flaky.retried),
        (3, 2 + 4 + 1 + 1, 2 + 3)
    );
    for (reason, count) in [
        (Reason::Attempts, 1),
        (Reason::Refused, 1),
        (Reason::DeadLetter, 1),
    ] {
        assert_eq!(flaky.dropped.of(reason), count, "{reason:?}");
    }
    assert_conserved(&status);
}

#[test]
fn a_failed_batch_is_taken_apart_so_that_the_verdict_falls_on_the_one_at_fault() {
    let (sender, seen) = unbounded();
    let (release, released) = unbounded::<()>();
    let (entered, inside) = unbounded();
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let counted = sizes.clone();
    let batched = Kind::consumer("batched", move |_: NoSettings, _: &Context| {
        let (sender, sizes, released) = (sender.clone(), counted.clone(), released.clone());
        let entered = entered.clone();
        Ok(Batched(10, move |batch: &[Message]| {
            let _ = entered.send(());
            let _ = released.recv();
            sizes.lock().unwrap().push(batch.len());
            if batch.iter().any(|message| message.payload() == "3") {
                return Err(Failure::drop("three"));
            }
            batch
                .iter()
                .try_for_each(|message| record(&sender, message))
        }))
    });
    let (feed, hub) = fed("[consumers.batched]\ntopics = ''", [batched]);
    send(&feed, 0..1);
    inside.recv_timeout(PATIENCE).unwrap();
    send(&feed, 1..9); // these wait one by one and are delivered together
    eventually("received", || consumer(&hub, "batched").received == 9);
    drop(release);
    assert_eq!(numbers(&seen, 8), [0, 1, 2, 4, 5, 6, 7, 8]);
    let status = hub.stop().status;
    assert_eq!(*sizes.lock().unwrap(), [1, 8, 1, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(status.consumers[0].dropped.of(Reason::Refused), 1);
    assert_conserved(&status);
}

#[test]
fn a_panic_costs_the_state_and_an_attempt_and_nothing_more() {
    let (sender, seen) = unbounded();
    let built = Arc::new(AtomicUsize::new(0));
    let counted = built.clone();
    let panics = Kind::consumer("panics", move |_: NoSettings, _: &Context| {
        counted.fetch_add(1, Ordering::SeqCst);
        let (sender, mut since) = (sender.clone(), 0);
        Ok(weir_consumer::from_fn(move |message: &Message| {
            since += 1;
            // The third message of an instance is its death; the next instance takes it.
            assert!(since < 3, "the third");
            record(&sender, message)
        }))
    });
    let (other, others) = recorder("other");
    let toml =
        "[consumers.panics]\ntopics = ''\nretry.delay = '1ms'\n[consumers.other]\ntopics = ''";
    let (feed, hub) = fed(toml, [panics, other]);
    send(&feed, 0..10);
    assert_eq!(numbers(&seen, 10), (0..10).collect::<Vec<_>>());
    assert_eq!(numbers(&others, 10), (0..10).collect::<Vec<_>>());
    let status = hub.stop().status;
    let it = status
        .consumers
        .iter()
        .find(|c| c.name == "panics")
        .unwrap();
    assert_eq!((it.consumed, it.panics, it.dropped.total()), (10, 4, 0));
    assert_eq!(built.load(Ordering::SeqCst), 1 + 4 + 1); // the check of the configuration builds one
}

#[test]
fn a_destructor_that_panics_costs_nothing_more_either() {
    struct Broken(crossbeam_channel::Sender<(String, Vec<u8>)>);
    impl Consumer for Broken {
        fn consume(&mut self, message: &Message) -> Result {
            assert!(message.payload() != "1", "the message");
            record(&self.0, message)
        }
    }
    impl Drop for Broken {
        fn drop(&mut self) {
            // Only the instances on the consumer's own thread, and only after their panic.
            assert!(std::thread::current().name() != Some("broken") || self.0.is_empty());
        }
    }
    let (sender, seen) = unbounded();
    let broken = Kind::consumer("broken", move |_: NoSettings, _: &Context| {
        Ok(Broken(sender.clone()))
    });
    let toml = "[consumers.broken]\ntopics = ''\nretry = { attempts = 2, delay = '1ms' }";
    let (feed, hub) = fed(toml, [broken]);
    send(&feed, 0..3); // what was recorded is not taken yet, so the destructor panics
    eventually("settled", || {
        consumer(&hub, "broken").queue_messages == 0 && seen.len() == 2
    });
    assert!(hub.ends().is_empty());
    assert_eq!(numbers(&seen, 2), [0, 2]);
    assert_eq!(consumer(&hub, "broken").dropped.of(Reason::Attempts), 1);
    hub.stop();
}

#[test]
fn a_message_that_always_panics_is_given_up_after_its_attempts() {
    let (sender, seen) = unbounded();
    let poison = kind("poison", move |message| {
        assert!(message.payload() != "1");
        record(&sender, message)
    });
    let toml = "[consumers.poison]\ntopics = ''\nretry = { attempts = 3, delay = '1ms' }";
    let (feed, hub) = fed(toml, [poison]);
    send(&feed, 0..3);
    assert_eq!(numbers(&seen, 2), [0, 2]);
    let status = hub.stop().status;
    assert_eq!(
        (status.consumers[0].panics, status.consumers[0].failed),
        (3, 3)
    );
    assert_eq!(status.consumers[0].dropped.of(Reason::Attempts), 1);
}

#[test]
fn halt_stops_that_consumer_and_no_other() {
    let (halting, halted_seen) = {
        let (sender, seen) = unbounded();
        let kind = kind("halting", move |message| {
            if message.payload() == "3" {
                return Err(Failure::halt("no licence"));
            }
            record(&sender, message)
        });
        (kind, seen)
    };
    let (other, others) = recorder("other");
    let toml = "[consumers.halting]\ntopics = ''\nqueue = { messages = 8, overflow = 'block' }\n\
                [consumers.other]\ntopics = ''";
    let (feed, hub) = fed(toml, [halting, other]);
    send(&feed, 0..100); // its queue is full long before, and blocks nobody
    assert_eq!(numbers(&others, 100), (0..100).collect::<Vec<_>>());
    assert_eq!(numbers(&halted_seen, 3), [0, 1, 2]);
    eventually("all counted", || consumer(&hub, "halting").received == 100);
    let it = consumer(&hub, "halting");
    assert_eq!(
        (it.state, it.consumed, it.queue_messages),
        (State::Halted, 3, 8)
    );
    assert_eq!(it.dropped.of(Reason::Halted), 100 - 3 - 8);
    assert!(it.lag_seconds > 0.0);
    let stopped = hub.stop();
    assert_eq!(stopped.stuck, [""; 0]);
    let it = stopped
        .status
        .consumers
        .iter()
        .find(|c| c.name == "halting")
        .unwrap();
    assert_eq!((it.dropped.of(Reason::Stopped), it.queue_messages), (8, 0));
    assert_conserved(&stopped.status);
}

#[test]
fn consumers_of_one_lane_never_run_at_the_same_time() {
    let inside = Arc::new(AtomicBool::new(false));
    let (sender, seen) = unbounded();
    let kinds = ["a", "b", "c"].map(|name| {
        let (inside, sender) = (inside.clone(), sender.clone());
        kind(name, move |message| {
            assert!(!inside.swap(true, Ordering::SeqCst), "two at once");
            std::thread::yield_now();
            std::thread::sleep(Duration::from_micros(50)); // gives the others time to be wrong
            inside.store(false, Ordering::SeqCst);
            record(&sender, message)
        })
    });
    let consumers: String = ["a", "b", "c"]
        .iter()
        .map(|name| format!("[consumers.{name}]\ntopics = ''\nlane = 'database'\n"))
        .collect();
    let (feed, hub) = fed(&consumers, kinds);
    send(&feed, 0..200);
    numbers(&seen, 600);
    let status = hub.stop().status;
    assert_eq!(status.consumers.iter().map(|c| c.panics).sum::<u64>(), 0);
    assert!(
        status
            .consumers
            .iter()
            .any(|c| c.time_seconds.of(State::LaneWait) > Duration::ZERO)
    );
}

#[test]
fn a_rate_limit_is_kept() {
    let (kind, seen) = recorder("slow");
    let toml = "[consumers.slow]\ntopics = ''\nrate = '100/s'\nburst = 5";
    let (feed, hub) = fed(toml, [kind]);
    let begin = Instant::now();
    send(&feed, 0..25);
    assert_eq!(numbers(&seen, 25), (0..25).collect::<Vec<_>>());
    // 5 at once and 20 at 100/s: no quicker, however fast or slow the machine.
    assert!(
        begin.elapsed() >= Duration::from_millis(200),
        "{:?}",
        begin.elapsed()
    );
    hub.stop();
}

#[test]
fn workers_share_a_burst_and_run_at_the_same_time() {
    let barrier = Arc::new(Barrier::new(4));
    let meets = kind("meets", move |_| {
        barrier.wait(); // four messages have to be in work at once, or none returns
        Ok(())
    });
    let (feed, hub) = fed("[consumers.meets]\ntopics = ''\nworkers = 4", [meets]);
    send(&feed, 0..4);
    eventually("all four met", || consumer(&hub, "meets").consumed == 4);
    hub.stop();
}

#[test]
fn keyed_workers_keep_the_order_of_each_key() {
    let (sender, seen) = unbounded();
    let (blocked, unblock) = unbounded::<()>();
    let keyed = kind("keyed", move |message| {
        let json = message.json().ok();
        if json.is_some_and(|json| json["k"] == 0 && json["n"] == 0) {
            let _ = unblock.recv(); // the first key is stuck: the others go on
        }
        record(&sender, message)
    });
    let toml = "[consumers.keyed]\ntopics = ''\nworkers = 4\nkey = '/k'";
    let (feed, hub) = fed(toml, [keyed]);
    for n in 0..100 {
        for k in 0..8 {
            feed.send("t", format!("{{\"k\": {k}, \"n\": {n}}}"))
                .unwrap();
        }
    }
    feed.send("t", "not JSON").unwrap();
    eventually("other keys go on", || seen.len() >= 100);
    drop(blocked);
    let mut latest = [-1; 8];
    let mut others = 0;
    for _ in 0..801 {
        let (_, payload) = next(&seen);
        let Ok(json) = serde_json::from_slice::<serde_json::Value>(&payload) else {
            others += 1;
            continue;
        };
        let (k, n) = (
            json["k"].as_u64().unwrap() as usize,
            json["n"].as_i64().unwrap(),
        );
        assert_eq!(n, latest[k] + 1, "key {k}");
        latest[k] = n;
    }
    assert_eq!((latest, others), ([99; 8], 1));
    assert_conserved(&hub.stop().status);
}

#[test]
fn tick_comes_between_messages_and_without_any() {
    struct Ticks(crossbeam_channel::Sender<()>);
    impl Consumer for Ticks {
        fn consume(&mut self, _: &Message) -> Result {
            Ok(())
        }
        fn tick(&mut self) -> Result {
            self.0.send(())?;
            Err(Failure::retry("a tick that fails is counted"))
        }
    }
    let (sender, ticks) = unbounded();
    let kind = Kind::consumer("ticks", move |_: NoSettings, _: &Context| {
        Ok(Ticks(sender.clone()))
    });
    let (_feed, hub) = fed("[consumers.ticks]\ntopics = ''", [kind]);
    ticks.recv_timeout(PATIENCE).unwrap();
    ticks.recv_timeout(PATIENCE).unwrap();
    eventually("counted", || consumer(&hub, "ticks").failed >= 1);
    hub.stop();
}

#[test]
fn a_producer_that_fails_or_panics_is_called_again() {
    struct Moody(Arc<AtomicUsize>);
    impl Producer for Moody {
        fn poll(&mut self, out: &Publisher) -> Result {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => Err(Failure::retry("not today")),
                1 => panic!("no"),
                call => Ok(out.publish("weir.moody", call.to_string())?),
            }
        }
    }
    let calls = Arc::new(AtomicUsize::new(0));
    let moody = Kind::producer("moody", move |_: NoSettings, _: &Context| {
        Ok(Moody(calls.clone()))
    });
    let (kind, seen) = recorder("recorder");
    // The hub hears itself: what is published arrives over a real socket.
    let toml = "[publish]\nbind = ['inproc://moody']\n\
                [[backend]]\nconnect = ['inproc://moody']\n\
                [consumers.recorder]\ntopics = 'weir.'\n\
                [producers.moody]\ninterval = '5ms'";
    let hub = hub(toml, [moody, kind]);
    let first = numbers(&seen, 2);
    assert_eq!(first[1], first[0] + 1);
    let producer = &hub.status().producers[0];
    assert_eq!((producer.counters.failed, producer.counters.panics), (1, 1));
    assert_eq!(producer.counters.failed_in_a_row, 0);
    hub.stop();
}

#[test]
fn consumers_publish_without_waiting() {
    let echo = Kind::consumer("echo", |_: NoSettings, context: &Context| {
        let publisher = context.publisher().clone();
        Ok(weir_consumer::from_fn(move |message: &Message| {
            Ok(publisher.publish("echo", message.payload().clone())?)
        }))
    });
    let toml = "[publish]\nbind = ['tcp://127.0.0.1:*']\n[consumers.echo]\ntopics = ''";
    let (feed, hub) = fed(toml, [echo]);
    send(&feed, 0..100); // nobody has subscribed: PUB drops, the consumer does not wait
    eventually("consumed", || consumer(&hub, "echo").consumed == 100);
    assert_eq!(hub.stop().status.publish.unwrap().sent, 100);
}

#[test]
fn publishing_without_an_endpoint_is_a_failure_that_says_so() {
    let echo = Kind::consumer("echo", |_: NoSettings, context: &Context| {
        let publisher = context.publisher().clone();
        Ok(weir_consumer::from_fn(move |_: &Message| {
            Ok(publisher.publish("echo", "")?)
        }))
    });
    let (feed, hub) = fed("[consumers.echo]\ntopics = ''\nretry.attempts = 1", [echo]);
    send(&feed, 0..1);
    eventually("given up", || {
        consumer(&hub, "echo").dropped.of(Reason::Attempts) == 1
    });
    hub.stop();
}

#[test]
fn what_an_author_measures_is_a_figure_with_the_consumers_name() {
    let measuring = |name: &str| {
        kind(name, |_| {
            metrics::counter!("posts", "channel" => "#weir").increment(2);
            Ok(())
        })
    };
    let toml = "[consumers.irc]\ntopics = ''\n[consumers.mail]\ntopics = 'mail'";
    let (feed, hub) = fed(toml, [measuring("irc"), measuring("mail")]);
    for topic in ["a", "mail"] {
        feed.send(topic, "x").unwrap();
    }
    let posts = || {
        let figures = hub.figures().latest().dump().figures.into_iter();
        let posts = figures.filter(|figure| figure.name == "posts_total");
        let posts = posts.map(|figure| {
            let label = |name: &str| {
                let mut labels = figure.labels.iter();
                labels.find(|(key, _)| key == name).unwrap().1.clone()
            };
            assert_eq!(label("channel"), "#weir");
            (label("consumer"), figure.value)
        });
        posts.collect::<Vec<_>>()
    };
    let value = |value| FigureValue::Number { value: Some(value) };
    let expected = [("irc", value(4.0)), ("mail", value(2.0))];
    let expected = expected.map(|(name, value)| (name.to_owned(), value));
    eventually("measured", || posts() == expected);
    hub.stop();
}
