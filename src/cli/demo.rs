//! `weir demo`: a hub at work, with nothing to set up.
//!
//! The traffic is that of the bus weir comes from: 4 messages a minute, and now and then a burst of
//! 120 a second for five seconds. Everything that takes time (the traffic, a slow query, an IRC
//! server's patience) is sped up by the same factor.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use crossbeam_channel::TryRecvError;
use serde::Deserialize;
use serde_json::json;
use weir_consumer::{Consumer, Context, Failure as Verdict, Kind, Message, Result as Outcome};
use zmq::SocketType;

use super::hub::{ledger, signals};
use super::publish::{millis, open, wrong};
use super::{Failure, say};
use crate::config::Config;
use crate::hub::Hub;
use crate::lifecycle::Flag;
use crate::monitor::{ConsumerStatus, Status};
use crate::registry::Registry;

/// Messages a second between bursts, and in them, before speeding up.
const CALM: f64 = 4.0 / 60.0;
const BURST: f64 = 120.0;
const BURST_LASTS: f64 = 5.0;
/// From the begin of one burst to that of the next.
const BURST_EVERY: f64 = 600.0;

/// Shows a hub at work: a bus in bursts, four consumers, and how far behind each of them is.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir demo               until Ctrl-C
  weir demo --for 30s     ends by itself
  weir demo --speed 1     at the pace of the real bus
  weir demo --for 10s --json | jq -c '.consumers[] | [.name, .queue_messages, .lag_seconds]'")]
pub(super) struct Demo {
    /// End after this time, with an empty queue and a ledger.
    #[arg(long = "for", value_name = "TIME", value_parser = super::duration)]
    lasts: Option<Duration>,
    /// How much faster than the real bus.
    #[arg(long, default_value_t = 60.0, value_name = "FACTOR", value_parser = speed)]
    speed: f64,
    /// Print the status as a JSON object a second.
    #[arg(long)]
    json: bool,
}

fn speed(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(speed) if (0.1..=1000.0).contains(&speed) => Ok(speed),
        _ => Err("expected a factor from 0.1 to 1000".into()),
    }
}

impl Demo {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let signals = signals()?;
        let dir = tempfile::tempdir()?;
        let publisher = Traffic::open(self.speed)?;
        let registry = registry.clone().with(badges()).with(notify());
        let config = format!(
            "[hub]\nname = \"demo\"\nhttp = \"\"\ndata_dir = {dir:?}\n\
             [[backend]]\nconnect = [{endpoint:?}]\n\
             [consumers.archive]\ntopics = \"\"\nurl = \"sqlite:archive.db\"\n\
             [consumers.irc]\nkind = \"log\"\ntopics = \"org.fedoraproject.\"\nfile = \"irc.txt\"\n\
             rate = \"{irc}/s\"\nburst = 4\n\
             [consumers.badges]\nkind = \"demo-badges\"\ntopics = \"\"\nquery_seconds = {query}\n\
             [consumers.notify]\nkind = \"demo-notify\"\ntopics = \"\"\n\
             retry = {{ delay = \"{pause}ms\" }}\n",
            dir = dir.path().display().to_string(),
            endpoint = publisher.endpoint,
            irc = 2.0 * self.speed,
            query = 0.4 / self.speed,
            pause = (20_000.0 / self.speed).max(1.0) as u64,
        );
        let config = Config::from_toml(&config, "demo", &registry)?;
        let hub = Hub::start(&config).map_err(Failure::run)?;
        let mut screen = Screen::new(self);
        screen.say(&format!(
            "weir demo: {:.0} times the pace of the real bus; publishing on {}{}",
            self.speed,
            publisher.endpoint,
            if self.lasts.is_none() {
                "; Ctrl-C ends it"
            } else {
                ""
            }
        ));

        let (stop, published) = (Arc::new(Flag::default()), Arc::new(AtomicU64::new(0)));
        let traffic = {
            let (stop, published) = (stop.clone(), published.clone());
            std::thread::Builder::new()
                .name("demo-publisher".into())
                .spawn(move || publisher.run(&stop, &published))?
        };
        let begin = Instant::now();
        let over = || {
            self.lasts.is_some_and(|lasts| begin.elapsed() >= lasts)
                || !matches!(signals.try_recv(), Err(TryRecvError::Empty))
                || !hub.ends().is_empty()
        };
        while !over() {
            screen.show(
                &hub.status(),
                published.load(Ordering::Relaxed),
                begin.elapsed(),
            );
            stop.sleep(screen.interval());
        }
        stop.raise();
        let sent = traffic
            .join()
            .map_err(|_| Failure::run("the publisher panicked"))?;
        // Its socket stays open until the hub has stopped: the hub is not to miss its publisher.
        let _publisher = sent.map_err(Failure::run)?;
        let published = published.load(Ordering::Relaxed);
        // All of it is on its way; a stop takes no more in, so let it arrive first.
        let arrived = |status: &Status| {
            status
                .sources
                .iter()
                .all(|s| s.counters.received >= published)
        };
        let patience = Instant::now() + Duration::from_secs(5);
        while !arrived(&hub.status()) && Instant::now() < patience {
            Flag::default().sleep(Duration::from_millis(5));
        }
        screen.show(&hub.status(), published, begin.elapsed());
        screen.say("publishing has ended; the queues are worked off");
        if let Ok(died) = hub.ends().try_recv() {
            return Err(Failure::run(format!(
                "thread {} ended: {:?}",
                died.thread, died.error
            )));
        }
        let stopped = hub.stop();
        screen.say(ledger(&stopped).trim_end());
        let short: Vec<&str> = (stopped.status.consumers.iter())
            .filter(|consumer| consumer.consumed != published)
            .map(|consumer| consumer.name.as_str())
            .collect();
        match short.is_empty() {
            true => {
                screen.say(&format!(
                    "published {published}; every consumer has consumed every one"
                ));
                Ok(())
            }
            false => Err(Failure::run(format!(
                "published {published}; not all of them were consumed by {}",
                short.join(", ")
            ))),
        }
    }
}

/// Awards a badge after a database query that takes its time.
fn badges() -> Kind {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        query_seconds: f64,
    }
    struct Badges {
        query: Duration,
    }
    impl Consumer for Badges {
        fn consume(&mut self, _message: &Message) -> Outcome {
            std::thread::sleep(self.query);
            Ok(())
        }
    }
    Kind::consumer("demo-badges", |settings: Settings, _: &Context| {
        Ok(Badges {
            query: Duration::from_secs_f64(settings.query_seconds),
        })
    })
}

/// Sends notifications through a server that refuses one in forty at the first attempt.
fn notify() -> Kind {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {}
    #[derive(Default)]
    struct Notify {
        refused: u64,
    }
    impl Consumer for Notify {
        fn consume(&mut self, message: &Message) -> Outcome {
            if message.seq().is_multiple_of(40) && self.refused != message.seq() {
                self.refused = message.seq();
                return Err(Verdict::retry("451 try again later"));
            }
            Ok(())
        }
    }
    Kind::consumer("demo-notify", |_: Settings, _: &Context| {
        Ok(Notify::default())
    })
}

/// The publisher: a ZeroMQ socket like any other's.
struct Traffic {
    socket: zmq::Socket,
    endpoint: String,
    speed: f64,
}

impl Traffic {
    fn open(speed: f64) -> Result<Self, Failure> {
        let socket = open(SocketType::XPUB, &["tcp://127.0.0.1:*".into()], &[])?;
        let endpoint = socket.get_last_endpoint().map_err(wrong)?;
        let endpoint = endpoint.map_err(|_| Failure::run("ZeroMQ named no endpoint"))?;
        let endpoint = endpoint.trim_end_matches('\0').to_owned();
        Ok(Traffic {
            socket,
            endpoint,
            speed,
        })
    }

    /// Publishes until it is told to stop.
    fn run(self, stop: &Flag, published: &AtomicU64) -> Result<Self, String> {
        let explain = |error: zmq::Error| format!("publishing: {error}");
        self.socket
            .set_rcvtimeo(millis(Duration::from_secs(5)))
            .map_err(explain)?;
        self.socket
            .recv_bytes(0)
            .map_err(|error| format!("the hub did not subscribe: {error}"))?;
        let topics = [
            "buildsys.build.state.change",
            "git.receive",
            "bodhi.update.comment",
        ];
        let begin = Instant::now();
        let mut i = 0_u64;
        let mut due = 0.0; // in seconds of the real bus
        while !stop.is_raised() {
            let now = begin.elapsed().as_secs_f64() * self.speed;
            if now < due {
                stop.sleep(Duration::from_secs_f64((due - now) / self.speed));
                continue;
            }
            i += 1;
            let topic = format!(
                "org.fedoraproject.demo.{}",
                topics[i as usize % topics.len()]
            );
            let timestamp = SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            let body = json!({
                "topic": topic, "i": i, "timestamp": timestamp.as_secs(), "username": "demo",
                "msg": { "id": i, "owner": format!("user{}", i % 7), "instance": "primary" },
            });
            let body = body.to_string();
            self.socket
                .send_multipart([topic.as_bytes(), body.as_bytes()], 0)
                .map_err(explain)?;
            published.fetch_add(1, Ordering::Relaxed);
            // The first burst comes soon, so that there is something to see.
            let bursting = (due + BURST_EVERY * 0.8) % BURST_EVERY < BURST_LASTS;
            due += 1.0 / if bursting { BURST } else { CALM };
        }
        Ok(self)
    }
}

/// Draws the figures: a table in place on a terminal, lines in a pipe, JSON if asked for.
struct Screen {
    terminal: bool,
    json: bool,
    lasts: Option<Duration>,
    /// Each consumer's depth at the last drawings.
    depths: Vec<VecDeque<u64>>,
    /// Lines of the table that is to be drawn over.
    drawn: usize,
}

impl Screen {
    fn new(demo: &Demo) -> Self {
        Screen {
            terminal: std::io::stdout().is_terminal() && !demo.json,
            json: demo.json,
            lasts: demo.lasts,
            depths: Vec::new(),
            drawn: 0,
        }
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(if self.terminal { 250 } else { 1000 })
    }

    /// Says something to people; with `--json`, apart from the figures.
    fn say(&mut self, text: &str) {
        match self.json {
            true => say(&format!("{text}\n")),
            // Somebody who closed the pipe has seen enough; the demo still ends properly.
            false => drop(writeln!(std::io::stdout(), "{text}")),
        }
        self.drawn = 0;
    }

    fn show(&mut self, status: &Status, published: u64, elapsed: Duration) {
        if self.json {
            let _ = writeln!(std::io::stdout(), "{}", json!(status));
            return;
        }
        self.depths.resize(status.consumers.len(), VecDeque::new());
        for (depths, consumer) in self.depths.iter_mut().zip(&status.consumers) {
            if depths.len() == SPARK {
                depths.pop_front();
            }
            depths.push_back(consumer.queue_messages);
        }
        let mut out = String::new();
        let seconds = elapsed.as_secs_f64();
        if self.terminal {
            if self.drawn > 0 {
                let _ = write!(out, "\x1b[{}A\x1b[J", self.drawn); // up, and clear what is below
            }
            let of = self
                .lasts
                .map(|l| format!(" of {}s", l.as_secs()))
                .unwrap_or_default();
            let _ = writeln!(out, "\n{seconds:5.1}s{of}   published {published}");
            let _ = writeln!(
                out,
                "\x1b[1m{:8} {:12} {:>6} {:SPARK$} {:>6} {:>6} {:>6} {:>8} {:>6}\x1b[0m",
                "consumer", "state", "depth", "", "lag", "in/s", "out/s", "consumed", "failed"
            );
            for (consumer, depths) in status.consumers.iter().zip(&self.depths) {
                let _ = writeln!(out, "{}", row(consumer, depths));
            }
            self.drawn = 3 + status.consumers.len();
        } else {
            for c in &status.consumers {
                let _ = writeln!(
                    out,
                    "{seconds:6.1}s {:8} {:12} depth {:5} lag {:7.3}s in {:6.1}/s out {:6.1}/s \
                     consumed {:6} failed {:3}",
                    c.name,
                    c.state.as_str(),
                    c.queue_messages,
                    c.lag_seconds,
                    c.rates.received,
                    c.rates.settled,
                    c.consumed,
                    c.failed
                );
            }
        }
        let mut stdout = std::io::stdout();
        let _ = stdout
            .write_all(out.as_bytes())
            .and_then(|()| stdout.flush());
    }
}

/// How many samples of depth are drawn.
const SPARK: usize = 12;

fn row(c: &ConsumerStatus, depths: &VecDeque<u64>) -> String {
    let color = match c.lag_seconds {
        lag if lag < 0.5 => "32",
        lag if lag < 3.0 => "33",
        _ => "31",
    };
    format!(
        "{:8} {:12} \x1b[{color}m{:>6} {:SPARK$} {:>5.1}s\x1b[0m {:>6.1} {:>6.1} {:>8} {:>6}",
        c.name,
        c.state.as_str(),
        c.queue_messages,
        spark(depths),
        c.lag_seconds,
        c.rates.received,
        c.rates.settled,
        c.consumed,
        c.failed
    )
}

/// Draws numbers as a row of bars; the highest is that of the largest.
pub(super) fn spark(numbers: &VecDeque<u64>) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let max = numbers.iter().max().copied().unwrap_or(0).max(8);
    numbers
        .iter()
        .map(|n| {
            if *n == 0 {
                ' '
            } else {
                BARS[(n * 7 / max) as usize]
            }
        })
        .collect()
}
