//! What the HTTP interface says: the page of figures, held against arithmetic, and the probes.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use weir::backend::memory::{Feed, Memory};
use weir::{Config, Hub};
use weir_consumer::{Failure, Kind, Verdict};

use crate::support::*;

const OPENMETRICS: &str = "application/openmetrics-text;version=1.0.0";

/// An answer: the status line's number, the head, the body.
struct Answer {
    code: u16,
    head: String,
    body: String,
}

fn ask(at: SocketAddr, method: &str, path: &str, accept: &str) -> Answer {
    let stream = TcpStream::connect(at).unwrap();
    ask_on(stream, &at.to_string(), method, path, accept)
}

fn ask_on(
    mut stream: impl Read + Write,
    host: &str,
    method: &str,
    path: &str,
    accept: &str,
) -> Answer {
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\n\
         Connection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    Answer {
        code: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

fn get(at: SocketAddr, path: &str) -> Answer {
    ask(at, "GET", path, "*/*")
}

/// A hub in memory that answers on a free port.
fn served(toml: &str, kinds: impl IntoIterator<Item = Kind>) -> (Feed, Hub, SocketAddr) {
    let toml =
        format!("hub.name = 'fedora'\nhub.http = '127.0.0.1:0'\njournal.enabled = false\n{toml}");
    let config = Config::embedded(&toml, &registry(kinds));
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let (feed, backend) = Memory::new(10_000);
    let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
    let at = hub.http().unwrap();
    (feed, hub, at)
}

/// The samples of a page by name and labels.
type Page = BTreeMap<(String, Vec<(String, String)>), f64>;

/// Reads a page line by line, as strictly as OpenMetrics is.
fn read(text: &str) -> Page {
    let body = text.strip_suffix("# EOF\n").expect("the end");
    let (mut page, mut seen) = (Page::new(), HashSet::new());
    let (mut family, mut sort, mut helped) = (String::new(), String::new(), String::new());
    for line in body.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            helped = help.split_once(' ').unwrap().0.to_owned();
            continue;
        }
        if let Some(of) = line.strip_prefix("# TYPE ") {
            let (name, its) = of.split_once(' ').unwrap();
            assert_eq!(name, helped, "{line}");
            assert!(seen.insert(name.to_owned()), "{name} twice");
            assert!(["counter", "gauge", "histogram"].contains(&its), "{line}");
            (family, sort) = (name.to_owned(), its.to_owned());
            continue;
        }
        let (name, rest) = line.split_once('{').unwrap();
        let (labels, value) = rest.rsplit_once("} ").unwrap();
        let suffix = name.strip_prefix(&family).expect("a sample of the family");
        match &*sort {
            "counter" => assert_eq!(suffix, "_total", "{line}"),
            "gauge" => assert_eq!(suffix, "", "{line}"),
            _ => assert!(["_bucket", "_count", "_sum"].contains(&suffix), "{line}"),
        }
        let mut labels: Vec<(String, String)> = labels
            .split_inclusive("\",")
            .map(|label| {
                let (key, value) = label.trim_end_matches(',').split_once("=\"").unwrap();
                (key.into(), value.strip_suffix('"').unwrap().into())
            })
            .collect();
        labels.sort();
        let key = (name.to_owned(), labels);
        let value = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(page.insert(key, value).is_none(), "{line} twice");
    }
    page
}

fn scrape(at: SocketAddr) -> Page {
    let answer = ask(at, "GET", "/metrics", OPENMETRICS);
    assert_eq!(answer.code, 200);
    let wanted = "content-type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(answer.head.contains(wanted), "{}", answer.head);
    read(&answer.body)
}

/// A figure of a consumer, with one label more or none.
fn of(page: &Page, consumer: &str, name: &str, more: &[(&str, &str)]) -> Option<f64> {
    let mut labels = vec![("hub", "fedora"), ("consumer", consumer)];
    labels.extend(more);
    let mut labels: Vec<(String, String)> = labels
        .iter()
        .map(|(key, value)| ((*key).into(), (*value).into()))
        .collect();
    labels.sort();
    page.get(&(name.to_owned(), labels)).copied()
}

#[test]
fn each_figure_of_a_consumer_is_what_arithmetic_says() {
    let (stuck, release, inside) = stuck("stuck");
    // Of ten, three are refused for good, two are set aside and one is tried again.
    let picky = kind("picky", {
        let tried = Arc::new(AtomicBool::new(false));
        move |message| {
            metrics::counter!("seen").increment(1);
            // Of quicker ones only some are timed, and stand for the others.
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(100) {}
            match &message.payload()[..] {
                b"1" | b"2" | b"3" => Err(Failure::new(Verdict::Drop, "no")),
                b"4" | b"5" => Err(Failure::new(Verdict::DeadLetter, "odd")),
                b"6" if !tried.swap(true, Ordering::SeqCst) => {
                    Err(Failure::new(Verdict::Retry, "later"))
                }
                _ => Ok(()),
            }
        }
    });
    let toml = "[consumers.stuck]\ntopics = ''\nqueue.messages = 5\n\
                [consumers.picky]\ntopics = ''\nretry.delay = '1ms'\nretry.delay_max = '1ms'\n";
    let (feed, hub, at) = served(toml, [stuck, picky]);
    feed.send("t", "0").unwrap();
    inside.recv_timeout(PATIENCE).unwrap();
    for number in 1..10 {
        feed.send("t", number.to_string()).unwrap();
    }
    eventually("all settled and sampled", || {
        let page = scrape(at);
        let is = |consumer, name: &str, more: &[(&str, &str)], value: f64| {
            of(&page, consumer, &format!("weir_consumer_{name}"), more) == Some(value)
        };
        is("picky", "received_total", &[], 10.0)
            && is("picky", "queue_messages", &[], 0.0)
            && is("picky", "state", &[("state", "idle")], 1.0)
            && is("stuck", "received_total", &[], 10.0)
            && is("stuck", "dropped_total", &[("reason", "overflow")], 5.0)
    });
    let page = scrape(at);
    type Expected<'s> = (&'s str, &'s str, &'s [(&'s str, &'s str)], f64);
    let expected: &[Expected<'_>] = &[
        ("picky", "weir_consumer_received_total", &[], 10.0),
        ("picky", "weir_consumer_consumed_total", &[], 5.0),
        ("picky", "weir_consumer_failed_total", &[], 6.0),
        ("picky", "weir_consumer_retried_total", &[], 1.0),
        (
            "picky",
            "weir_consumer_dropped_total",
            &[("reason", "refused")],
            3.0,
        ),
        (
            "picky",
            "weir_consumer_dropped_total",
            &[("reason", "dead_letter")],
            2.0,
        ),
        (
            "picky",
            "weir_consumer_dropped_total",
            &[("reason", "overflow")],
            0.0,
        ),
        ("picky", "weir_consumer_inflight_messages", &[], 0.0),
        ("picky", "weir_consumer_lag_seconds", &[], 0.0),
        ("picky", "weir_consumer_state", &[("state", "idle")], 1.0),
        ("picky", "weir_consumer_state", &[("state", "working")], 0.0),
        ("picky", "seen_total", &[], 11.0),
        ("stuck", "weir_consumer_consumed_total", &[], 0.0),
        ("stuck", "weir_consumer_queue_messages", &[], 5.0),
        ("stuck", "weir_consumer_queue_capacity_messages", &[], 5.0),
        ("stuck", "weir_consumer_inflight_messages", &[], 1.0),
        (
            "stuck",
            "weir_consumer_dropped_total",
            &[("reason", "overflow")],
            5.0,
        ),
        ("stuck", "weir_consumer_state", &[("state", "working")], 1.0),
        ("stuck", "weir_consumer_processing_seconds_count", &[], 0.0),
    ];
    for (consumer, name, more, value) in expected {
        assert_eq!(
            of(&page, consumer, name, more),
            Some(*value),
            "{consumer} {name} {more:?}"
        );
    }
    assert!(of(&page, "stuck", "weir_consumer_lag_seconds", &[]).unwrap() > 0.0);
    assert_eq!(
        of(
            &page,
            "stuck",
            "weir_consumer_last_success_timestamp_seconds",
            &[]
        ),
        None
    );

    // Nothing has changed since, so the ledger says the same of each.
    let status = hub.status();
    assert_conserved(&status);
    for c in &status.consumers {
        let number = |name: &str| of(&page, &c.name, &format!("weir_consumer_{name}"), &[]);
        for (name, value) in [
            ("received_total", c.received),
            ("consumed_total", c.consumed),
            ("failed_total", c.failed),
            ("retried_total", c.retried),
            ("dead_lettered_total", c.dead_lettered),
            ("queue_messages", c.queue_messages),
            ("queue_bytes", c.queue_bytes),
            ("inflight_messages", c.in_flight),
        ] {
            assert_eq!(number(name), Some(value as f64), "{} {name}", c.name);
        }
        for (reason, count) in c.dropped.iter() {
            let more = [("reason", reason.as_str())];
            let exported = of(&page, &c.name, "weir_consumer_dropped_total", &more);
            assert_eq!(exported, Some(count as f64), "{} {reason:?}", c.name);
        }
        // A delivery that has ended is in the histograms, however it ended.
        let deliveries = (c.consumed + c.failed) as f64;
        for histogram in ["processing_seconds", "queue_wait_seconds"] {
            let bucket = format!("weir_consumer_{histogram}_bucket");
            let all = of(&page, &c.name, &bucket, &[("le", "+Inf")]);
            let count = number(&format!("{histogram}_count"));
            assert_eq!(
                (all, count),
                (Some(deliveries), Some(deliveries)),
                "{} {histogram}",
                c.name
            );
            assert!(number(&format!("{histogram}_sum")).unwrap() >= 0.0);
        }
    }
    drop(release);
    hub.stop();
}

#[test]
fn who_does_not_ask_for_openmetrics_gets_the_older_text() {
    let (_feed, hub, at) = served("[consumers.null]\ntopics = ''", []);
    let answer = get(at, "/metrics");
    assert_eq!(answer.code, 200);
    let wanted = "content-type: text/plain; version=0.0.4; charset=utf-8";
    assert!(answer.head.contains(wanted), "{}", answer.head);
    assert!(
        answer
            .body
            .contains("# TYPE weir_consumer_received_total counter\n")
    );
    assert!(!answer.body.contains("# EOF"));
    hub.stop();
}

#[test]
fn probes_answer_while_consumers_are_in_trouble_and_until_the_end() {
    let (stuck, release, inside) = stuck("stuck");
    let halting = kind("halting", |_| Err(Failure::new(Verdict::Halt, "no")));
    let toml = "hub.stop_deadline = '1h'\n[consumers.stuck]\ntopics = ''\n\
                [consumers.halting]\ntopics = ''\n";
    let (feed, hub, at) = served(toml, [stuck, halting]);
    feed.send("t", "x").unwrap();
    inside.recv_timeout(PATIENCE).unwrap();
    eventually("halted", || {
        consumer(&hub, "halting").state == weir::stats::State::Halted
    });
    for path in ["/healthz", "/readyz"] {
        let answer = get(at, path);
        assert_eq!(
            (answer.code, &*answer.body),
            (200, r#"{"status":"ok"}"#),
            "{path}"
        );
        assert!(
            answer.head.contains("content-type: application/json"),
            "{}",
            answer.head
        );
        let head = ask(at, "HEAD", path, "*/*");
        assert_eq!((head.code, &*head.body), (200, ""), "{path}");
        let post = ask(at, "POST", path, "*/*");
        assert_eq!(post.code, 403, "{path}");
    }
    // The stop waits for the consumer that is stuck, which lasts as long as the test wants.
    let stopping = std::thread::spawn(move || hub.stop());
    eventually("not ready", || get(at, "/readyz").code == 503);
    let expected = r#"{"status":"stopping","reason":"the hub takes no more messages in"}"#;
    assert_eq!(get(at, "/readyz").body, expected);
    assert_eq!(get(at, "/healthz").code, 200);
    drop(release);
    stopping.join().unwrap();
}

#[test]
fn the_unix_socket_has_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (_feed, hub) = try_kept(dir.path(), "[consumers.null]\ntopics = ''", []).unwrap();
    let socket = weir::data_dir::control(dir.path());
    let ask = |path, accept| {
        let stream = UnixStream::connect(&socket).unwrap();
        ask_on(stream, "weir", "GET", path, accept)
    };
    let page = read(&ask("/metrics", OPENMETRICS).body);
    assert!(page.keys().any(|(name, _)| name == "weir_journal_bytes"));
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(path, "*/*").body, r#"{"status":"ok"}"#, "{path}");
    }
    hub.stop();
}
