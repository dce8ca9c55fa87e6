//! Every figure of a hub, through every exporter, against arithmetic.
//!
//! A consumer that settles 20 messages a second is sent 50 a second. What follows from that is held
//! against the figures; then all stands still, and whatever the hub says of itself has to be at the
//! other end of each exporter, to the last digit.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use weir::backend::memory::{Feed, Memory};
use weir::monitor::sample::{Dump, Figure, FigureValue, Sort};
use weir::stats::Reason;
use weir::steering::Action;
use weir::{Config, Hub, Registry};
use weir_consumer::{Context, Failure, Kind, Message, from_fn};

use crate::collectd::{Collectd, wait};
use crate::{prometheus, statsd};

const IN: f64 = 50.0;
const OUT: f64 = 20.0;
/// How long it is driven: long enough for every rate to be one of a steady state.
const DRIVEN: Duration = Duration::from_secs(25);
/// Of the messages, every so many-th is refused, and every so many-th set aside.
const REFUSED: u64 = 10;
const SET_ASIDE: u64 = 15;

/// What goes on by itself though nothing comes, and what is worked out from that.
const MOVING: [&str; 8] = [
    "weir_hub_uptime_seconds",
    "weir_consumer_lag_seconds",
    "weir_consumer_dead_letters_age_seconds",
    "weir_consumer_growth_messages_per_second",
    "weir_consumer_service_messages_per_second",
    "weir_consumer_busy_ratio",
    "weir_consumer_time_seconds_total",
    "weir_consumer_retention_used_ratio",
];

fn kind() -> Kind {
    #[derive(serde::Deserialize)]
    struct NoSettings {}
    Kind::consumer("it", |_: NoSettings, _: &Context| {
        Ok(from_fn(|message: &Message| {
            metrics::counter!("seen", "parity" => ["even", "odd"][message.seq() as usize % 2])
                .increment(1);
            metrics::gauge!("latest").set(-(message.seq() as f64));
            match message.seq() {
                seq if seq % REFUSED == 0 => Err(Failure::drop("refused")),
                seq if seq % SET_ASIDE == 0 => Err(Failure::dead_letter("set aside")),
                _ => Ok(()),
            }
        }))
    })
}

/// Sends at the rate until it is told to stop; answers how many it sent, and over what time.
fn drive(feed: &Feed) -> (u64, Duration) {
    let begin = Instant::now();
    let mut sent = 0;
    while begin.elapsed() < DRIVEN {
        feed.send("org.example.a", "{}").unwrap();
        sent += 1;
        let due = Duration::from_secs_f64(sent as f64 / IN);
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    (sent, begin.elapsed())
}

#[track_caller]
fn about(what: &str, value: f64, expected: f64) {
    let off = (value - expected).abs() / expected;
    println!("{what}: {value:.2}, by arithmetic {expected:.2}");
    assert!(off < 0.2, "{what}: {value} instead of {expected}");
}

fn number(dump: &Dump, name: &str, label: Option<(&str, &str)>) -> f64 {
    let has = |figure: &&Figure| {
        let labelled = |(key, value): (&str, &str)| {
            let mut labels = figure.labels.iter();
            labels.any(|label| (&*label.0, &*label.1) == (key, value))
        };
        figure.name == name && label.is_none_or(labelled)
    };
    match dump.figures.iter().find(has).map(|figure| &figure.value) {
        Some(FigureValue::Number { value }) => value.unwrap_or(f64::INFINITY),
        other => panic!("{name} {label:?}: {other:?}"),
    }
}

/// What a statsd server calls it: the page figures.md says how.
fn path(figure: &Figure) -> String {
    let name = figure.name.strip_prefix("weir_");
    let (group, rest) = name.map_or(("consumer", &*figure.name), |name| {
        name.split_once('_').unwrap()
    });
    let label = |key: &str| {
        let mut labels = figure.labels.iter();
        labels
            .find(|(k, _)| k == key)
            .map(|(_, value)| value.clone())
    };
    let mut parts = vec!["weir".to_owned(), label("hub").unwrap(), group.to_owned()];
    parts.extend(label(group).filter(|_| group != "hub"));
    parts.push(rest.to_owned());
    let others = figure.labels.iter();
    parts.extend(
        others
            .filter(|(key, _)| key != "hub" && key != group)
            .map(|(_, value)| value.clone()),
    );
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let plain = |part: String| part.replace(|c| !fits(c), "_");
    parts.into_iter().map(plain).collect::<Vec<_>>().join(".")
}

/// What is in the answer of statsd's management port: a JavaScript object, a name a line.
fn values(answer: &str) -> BTreeMap<String, f64> {
    let lines = answer.lines().filter_map(|line| {
        let (name, value) = line.trim().trim_end_matches(',').rsplit_once(": ")?;
        let name = name.trim_start_matches("{ ").trim_matches('\'');
        Some((name.to_owned(), value.trim_end_matches(" }").parse().ok()?))
    });
    lines.collect()
}

/// The figures that stand still.
fn still(dump: &Dump) -> Vec<&Figure> {
    let figures = dump.figures.iter();
    figures
        .filter(|figure| !MOVING.contains(&&*figure.name))
        .collect()
}

#[test]
#[ignore = "needs peers: make test"]
fn every_figure_is_right_at_the_end_of_every_exporter() {
    let dir = tempfile::tempdir().unwrap();
    let statsd = statsd::Server::start(dir.path());
    let collectd = Collectd::start(Collectd::dir(), "");
    wait("statsd answers", || statsd.ask("gauges"));
    let moksha = format!("ipc://{}", dir.path().join("moksha").display());
    let config = format!(
        "[hub]\nname = 'fedora'\nhttp = '127.0.0.1:0'\ndata_dir = '{}'\n\
         [statsd]\naddress = '127.0.0.1:{}'\n\
         [collectd]\nsocket = '{}'\ninterval = '1s'\nhost = 'host.example.org'\n\
         [moksha]\nsocket = '{moksha}'\ninterval = '1s'\n\
         [consumers.it]\ntopics = ''\nrate = '{OUT}/s'\nqueue.messages = 100\n\
         [consumers.null]\ntopics = ''\n",
        dir.path().join("data").display(),
        statsd.udp,
        collectd.socket().display(),
    );
    let config = Config::embedded(&config, &Registry::builtin().with(kind())).unwrap();
    let (feed, backend) = Memory::new(1000);
    let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
    let prometheus = prometheus::Server::start(hub.http().unwrap());
    let context = zmq::Context::new();
    let reader = context.socket(zmq::SUB).unwrap();
    reader.set_subscribe(b"").unwrap();
    reader.set_rcvtimeo(60_000).unwrap();
    reader.connect(&moksha).unwrap();
    let frame = || -> Value { serde_json::from_slice(&reader.recv_bytes(0).unwrap()).unwrap() };
    frame();

    let (sent, time) = drive(&feed);
    driven(&hub, &prometheus, sent, time);
    let act = |action| hub.act(&action, "test").unwrap();
    act(Action::Pause {
        consumer: "it".into(),
    });
    let dump = stands_still(&hub, sent);

    at_statsd(&statsd, &dump);
    at_prometheus(&prometheus, &dump);
    at_collectd(&collectd, &dump);
    // What was read off the socket since the first frame adds up to the ledger.
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    let it = |name: &str| number(&dump, name, Some(("consumer", "it"))) as u64;
    loop {
        let frame = frame();
        let consumer = &frame["consumers"][0];
        assert_eq!(consumer["name"], "it");
        for key in ["headcount_in", "headcount_out", "exceptions"] {
            *sums.entry(key).or_default() += consumer[key].as_u64().unwrap();
        }
        let times = consumer["times"].as_array().unwrap().len();
        *sums.entry("times").or_default() += times as u64;
        if sums["headcount_in"] == sent && consumer["backlog"] == it("weir_consumer_queue_messages")
        {
            break;
        }
    }
    let settled = sent - it("weir_consumer_queue_messages");
    assert_eq!(sums["headcount_out"], settled);
    assert_eq!(sums["exceptions"], it("weir_consumer_failed_total"));
    hub.stop();
}

/// What follows from the two rates.
fn driven(hub: &Hub, prometheus: &prometheus::Server, sent: u64, time: Duration) {
    let dump = hub.figures().latest().dump();
    let it = |name: &str| number(&dump, name, Some(("consumer", "it")));
    let seconds = time.as_secs_f64();
    about("sent a second", sent as f64 / seconds, IN);
    about(
        "depth",
        it("weir_consumer_queue_messages"),
        (IN - OUT) * seconds,
    );
    // The message in hand came when as many had come as are settled now.
    about(
        "lag",
        it("weir_consumer_lag_seconds"),
        seconds * (1.0 - OUT / IN),
    );
    about(
        "growth",
        it("weir_consumer_growth_messages_per_second"),
        IN - OUT,
    );
    about(
        "service",
        it("weir_consumer_service_messages_per_second"),
        OUT,
    );
    let rates = hub.figures().consumers[0].forecast().rates;
    about("in", rates.received, IN);
    about("out", rates.settled, OUT);
    let rate = |what: &str| {
        let question = format!("rate(weir_consumer_{what}_total{{consumer=\"it\"}}[15s])");
        wait(&question, || Some(prometheus.ask(&question)?.first()?.1))
    };
    about("Prometheus's rate of received", rate("received"), IN);
}

/// Waits until nothing moves any more, and holds the ledger against arithmetic.
fn stands_still(hub: &Hub, sent: u64) -> Dump {
    let dump = wait("all stands still", || {
        let before = hub.figures().latest();
        let after = wait("another sample", || {
            let latest = hub.figures().latest();
            (latest.at_ns > before.at_ns).then_some(latest)
        });
        let (before, after) = (before.dump(), after.dump());
        let same = still(&before) == still(&after);
        let paused = number(&after, "weir_consumer_state", Some(("state", "paused"))) == 1.0;
        (same && paused).then_some(after)
    });
    let it = |name: &str| number(&dump, name, Some(("consumer", "it"))) as u64;
    let settled = sent - it("weir_consumer_queue_messages");
    let (refused, both) = (settled / REFUSED, settled / (REFUSED * 3));
    let set_aside = settled / SET_ASIDE - both; // what is both is refused
    assert_eq!(it("weir_consumer_received_total"), sent);
    let paused = Some(("health", "paused"));
    assert_eq!(number(&dump, "weir_consumer_health", paused), 1.0);
    let reason = Some(("reason", Reason::Refused.as_str()));
    assert_eq!(
        number(&dump, "weir_consumer_dropped_total", reason) as u64,
        refused
    );
    assert_eq!(it("weir_consumer_dead_lettered_total"), set_aside);
    assert_eq!(it("weir_consumer_dead_letters"), set_aside);
    assert_eq!(it("weir_consumer_failed_total"), refused + set_aside);
    assert_eq!(
        it("weir_consumer_consumed_total"),
        settled - refused - set_aside
    );
    assert_eq!(number(&dump, "latest", None), -(settled as f64));
    let odd = number(&dump, "seen_total", Some(("parity", "odd"))) as u64;
    assert_eq!(odd, settled.div_ceil(2));
    assert_eq!(
        number(&dump, "weir_journal_appended_total", None) as u64,
        sent
    );
    let quick = Some(("consumer", "null"));
    assert_eq!(
        number(&dump, "weir_consumer_consumed_total", quick) as u64,
        sent
    );
    dump
}

fn at_statsd(server: &statsd::Server, dump: &Dump) {
    let figures = still(dump);
    wait("all figures at statsd", || {
        let mut known = values(&server.ask("gauges")?);
        known.extend(values(&server.ask("counters")?));
        for figure in &figures {
            let FigureValue::Number { value: Some(value) } = figure.value else {
                continue;
            };
            let expected = match figure.sort {
                Sort::Counter => value.floor(), // it counts whole ones
                _ => value,
            };
            if known.get(&path(figure)) != Some(&expected) {
                eprintln!(
                    "{}: {:?}, not {expected}",
                    path(figure),
                    known.get(&path(figure))
                );
                return None;
            }
        }
        Some(())
    });
    assert!(figures.len() > 100, "{}", figures.len());
}

fn at_prometheus(server: &prometheus::Server, dump: &Dump) {
    type Series = (String, BTreeSet<(String, String)>);
    let mut expected: BTreeMap<Series, f64> = BTreeMap::new();
    for figure in still(dump) {
        let labels: BTreeSet<_> = figure.labels.iter().cloned().collect();
        match &figure.value {
            FigureValue::Number { value } => {
                expected.insert(
                    (figure.name.clone(), labels),
                    value.unwrap_or(f64::INFINITY),
                );
            }
            FigureValue::Counts {
                counts,
                sum,
                bounds,
            } => {
                let all: u64 = counts.iter().sum();
                let of = |part: &str| (format!("{}_{part}", figure.name), labels.clone());
                expected.insert(of("count"), all as f64);
                expected.insert(of("sum"), *sum);
                let buckets = of("bucket").0;
                let mut below = 0;
                for (bound, count) in bounds.iter().zip(counts) {
                    below += count;
                    // By its value: 1 and 1.0 are one bound.
                    let mut labels = labels.clone();
                    labels.insert(("le".into(), bound.to_string()));
                    expected.insert((buckets.clone(), labels), below as f64);
                }
            }
        }
    }
    wait("all figures at Prometheus", || {
        let known: BTreeMap<Series, f64> = (server.ask("{job='weir'}")?.into_iter())
            .map(|(labels, value)| {
                let labels = labels.as_object().unwrap();
                let name = labels["__name__"].as_str().unwrap().to_owned();
                let own = labels
                    .iter()
                    .filter(|(key, _)| !["__name__", "instance", "job"].contains(&key.as_str()));
                let own = own.map(|(key, value)| {
                    let text = value.as_str().unwrap();
                    match (key.as_str(), text.parse::<f64>()) {
                        ("le", Ok(bound)) => (key.clone(), bound.to_string()),
                        _ => (key.clone(), text.to_owned()),
                    }
                });
                ((name, own.collect()), value)
            })
            .collect();
        for (series, value) in &expected {
            let there = known.get(series);
            if there.is_none_or(|there| (there - value).abs() > value.abs() * 1e-12) {
                eprintln!("{series:?}: {there:?}, not {value}");
                return None;
            }
        }
        Some(())
    });
}

fn at_collectd(collectd: &Collectd, dump: &Dump) {
    for (identifier, name) in [
        ("queue_length", "queue_messages"),
        ("queue_length-capacity", "queue_capacity_messages"),
        ("queue_length-inflight", "inflight_messages"),
        ("queue_length-behind", "behind_messages"),
        ("queue_length-retrying", "retrying_messages"),
        ("gauge-dead_letters", "dead_letters"),
    ] {
        let name = format!("weir_consumer_{name}");
        let value = number(dump, &name, Some(("consumer", "it")));
        let identifier = format!("weir_fedora-it/{identifier}");
        wait(&identifier, || {
            (collectd.value(&identifier) == Some(value)).then_some(())
        });
    }
    // All counters stand still, so all rates are 0; they were known before.
    for counter in [
        "received",
        "consumed",
        "failed",
        "dropped_refused",
        "dead_lettered",
    ] {
        let identifier = format!("weir_fedora-it/derive-{counter}");
        wait(&identifier, || {
            (collectd.value(&identifier) == Some(0.0)).then_some(())
        });
    }
    let lag = number(dump, "weir_consumer_lag_seconds", Some(("consumer", "it")));
    wait("the lag goes on growing", || {
        collectd
            .value("weir_fedora-it/duration-lag")
            .filter(|now| *now > lag)
    });
}
