//! `weir hub`: run a hub until it is told to stop.

use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, never, select, tick};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::iterator::Signals;
use tracing::{error, info};

use super::{ConfigArgs, Failure, say};
use crate::config::{Config, Delivery};
use crate::data_dir;
use crate::hub::{self, Stopped};
use crate::monitor::ConsumerStatus;
use crate::registry::Registry;

/// Runs a hub until SIGTERM or SIGINT; a second signal ends it at once.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir hub --config weir.toml
  weir hub --config weir.toml --set hub.name=fedora --set consumers.archive.workers=2
  WEIR_HUB__HTTP=127.0.0.1:9000 weir hub --config weir.toml")]
pub(super) struct Hub {
    #[command(flatten)]
    config: ConfigArgs,
    /// Print the final ledger as JSON on standard output.
    #[arg(long)]
    json: bool,
}

impl Hub {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let config = self.config.load(registry)?;
        let signals = signals()?;
        // A file that reaches a limit of the process (ulimit -f) is to be an error like a full disk.
        signal_hook::flag::register(SIGXFSZ, Arc::default())?;
        let hub = hub::Hub::start(&config).map_err(Failure::run)?;
        say(&banner(&config, &hub));
        let manager = Manager::new()?;
        manager.tell(NotifyState::Ready);
        // Less than this can't be meant, and would be all that the hub does.
        let limit = sd_notify::watchdog_enabled().filter(|l| *l >= Duration::from_millis(10));
        let pulse = limit.map_or(Duration::from_secs(3600), |limit| limit / 3);
        let watchdog = if limit.is_some() {
            tick(pulse)
        } else {
            never()
        };
        let died = loop {
            select! {
                recv(signals) -> signal => {
                    let signal = signal.unwrap_or(SIGTERM);
                    info!(signal, deadline = ?config.hub.stop_deadline, "stopping; again: at once");
                    break None;
                }
                recv(hub.ends()) -> ended => break Some(match ended {
                    Ok(ended) => format!(
                        "thread {} ended: {}",
                        ended.thread,
                        ended.error.unwrap_or_else(|| "for no reason".into())
                    ),
                    Err(_) => "no thread is left".into(),
                }),
                recv(hub.drain()) -> _ => {
                    info!(deadline = ?config.hub.stop_deadline, "stopping; an operator wants it");
                    break None;
                }
                recv(watchdog) -> _ => manager.tell(NotifyState::Watchdog),
            }
        };
        if let Some(died) = &died {
            error!(died, "a thread of the hub died; stopping");
        }
        manager.tell(NotifyState::Stopping);
        let stopped = std::thread::scope(|scope| {
            // The watchdog does not know that a stop may take until its deadline.
            let done = crossbeam_channel::bounded::<()>(0);
            let receiver = done.1;
            let manager = manager.clone();
            scope.spawn(move || {
                while let Err(RecvTimeoutError::Timeout) = receiver.recv_timeout(pulse) {
                    manager.tell(NotifyState::Watchdog);
                }
            });
            let stopped = hub.stop();
            drop(done.0);
            stopped
        });
        match self.json {
            true => writeln!(std::io::stdout(), "{}", serde_json::json!(stopped.status))?,
            false => say(&ledger(&stopped)),
        }
        match died {
            Some(died) => Err(Failure::run(died)),
            None if !stopped.errors.is_empty() => Err(Failure::run(stopped.errors.join("; "))),
            None => Ok(()),
        }
    }
}

/// The service manager, if there is one; a thread tells it, so that one that does not listen holds
/// up nobody.
#[derive(Clone)]
struct Manager(Sender<NotifyState<'static>>);

impl Manager {
    fn new() -> Result<Self, Failure> {
        let (sender, states) = crossbeam_channel::bounded(4);
        std::thread::Builder::new()
            .name("weir-notify".into())
            .spawn(move || {
                for state in states {
                    // Nothing without NOTIFY_SOCKET; and nothing to be done when it is gone.
                    let _ = sd_notify::notify(&[state]);
                }
            })?;
        Ok(Manager(sender))
    }

    fn tell(&self, state: NotifyState<'static>) {
        let _ = self.0.try_send(state);
    }
}

/// The first SIGTERM, SIGINT or SIGHUP; a second one ends the process.
pub(super) fn signals() -> Result<Receiver<i32>, Failure> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let (first, received) = crossbeam_channel::bounded(1);
    std::thread::Builder::new()
        .name("weir-signals".into())
        .spawn(move || {
            for (count, signal) in signals.forever().enumerate() {
                if count > 0 || first.send(signal).is_err() {
                    weir_exec::kill_children();
                    std::process::exit(128 + signal);
                }
            }
        })?;
    Ok(received)
}

/// What was loaded and what it listens on, on one screen.
fn banner(config: &Config, hub: &hub::Hub) -> String {
    let mut out = format!(
        "weir {} hub {}\n",
        env!("CARGO_PKG_VERSION"),
        config.hub.name
    );
    for source in &hub.figures().sources {
        for line in &source.describe {
            let _ = writeln!(out, "  in        {line}");
        }
    }
    for line in hub.publishes() {
        let _ = writeln!(out, "  out       {line}");
    }
    if let Some(http) = hub.http() {
        let scheme = match config.hub.http_tls {
            Some(_) => "https",
            None => "http",
        };
        let _ = writeln!(out, "  status    {scheme}://{http}/status");
    }
    if let Some(journal) = &hub.figures().journal {
        let dir = data_dir::journal(&config.hub.data_dir);
        let mib = journal.snapshot().bytes as f64 / f64::from(1 << 20);
        let _ = writeln!(out, "  journal   {}, {mib:.1} MiB", dir.display());
    }
    if let Some(statsd) = &config.statsd {
        let _ = writeln!(
            out,
            "  statsd    {} every {:?}",
            statsd.address, statsd.interval
        );
    }
    // One screen: with very many consumers, the rest is counted.
    const LINES_MAX: usize = 15;
    for consumer in config.consumers.iter().take(LINES_MAX) {
        let settings = &consumer.settings;
        let mut about = format!("{} ({})", consumer.name, consumer.kind.name());
        let topics: Vec<_> = settings
            .topics
            .iter()
            .map(|t| if t.is_empty() { "everything" } else { t })
            .collect();
        let _ = write!(about, " <- {}", topics.join(", "));
        let _ = write!(about, "; room for {}", settings.queue.messages);
        let durable = settings.delivery == Delivery::AtLeastOnce && config.journal.enabled;
        let then = match durable {
            true => "the journal",
            false => settings.queue.overflow.as_str(),
        };
        let _ = write!(about, ", then {then}");
        if settings.workers > 1 {
            let _ = write!(about, "; {} workers", settings.workers);
        }
        if let Some(lane) = &settings.lane {
            let _ = write!(about, "; lane {lane}");
        }
        let _ = writeln!(out, "  consumer  {about}");
    }
    if let Some(more) = config
        .consumers
        .len()
        .checked_sub(LINES_MAX)
        .filter(|more| *more > 0)
    {
        let _ = writeln!(out, "  ... and {more} consumers more");
    }
    for producer in &config.producers {
        let (name, kind) = (&producer.name, producer.kind.name());
        let _ = writeln!(
            out,
            "  producer  {name} ({kind}) every {:?}",
            producer.interval
        );
    }
    out
}

/// The final ledger: where every message went.
pub(super) fn ledger(stopped: &Stopped) -> String {
    let consumers = &stopped.status.consumers;
    let width = consumers
        .iter()
        .map(|c| c.name.len())
        .max()
        .unwrap_or(0)
        .max(8);
    let mut out = format!(
        "{:width$} {:>12} {:>12} {:>10} {:>12} {:>10} {:>10}\n",
        "consumer", "received", "consumed", "dropped", "dead letters", "waiting", "in flight"
    );
    for consumer in consumers {
        let ConsumerStatus {
            name,
            received,
            consumed,
            dropped,
            ..
        } = consumer;
        let reasons: Vec<String> = (dropped.iter())
            .filter(|(_, count)| *count > 0)
            .map(|(reason, count)| format!("{} {count}", reason.as_str()))
            .collect();
        let reasons = if reasons.is_empty() {
            String::new()
        } else {
            format!("  ({})", reasons.join(", "))
        };
        let _ = writeln!(
            out,
            "{name:width$} {received:>12} {consumed:>12} {:>10} {:>12} {:>10} {:>10}{reasons}",
            dropped.total(),
            consumer.dead_lettered,
            consumer.waiting,
            consumer.in_flight
        );
    }
    let mut notes = Vec::new();
    for source in &stopped.status.sources {
        for (why, count) in source
            .counters
            .refused
            .iter()
            .filter(|(_, count)| *count > 0)
        {
            let endpoints: Vec<&str> = source
                .counters
                .endpoints
                .iter()
                .map(|e| e.endpoint.as_str())
                .collect();
            notes.push(format!(
                "refused from {}: {} {count}",
                endpoints.join(", "),
                why.as_str()
            ));
        }
        for endpoint in &source.counters.endpoints {
            use crate::stats::Loss;
            match endpoint.loss {
                Loss::NoneSeen => {}
                Loss::Possible => notes.push(format!(
                    "{}: loss possible (connections lost: {})",
                    endpoint.endpoint, endpoint.disconnects
                )),
                Loss::Seen => notes.push(format!(
                    "{}: {} messages never came, by their sequence numbers",
                    endpoint.endpoint, endpoint.gaps
                )),
            }
        }
    }
    let waiting: u64 = consumers.iter().map(|c| c.queue_messages).sum();
    if waiting > 0 && stopped.status.journal.is_some() {
        notes.push(format!(
            "{waiting} messages wait in the journal for the next start"
        ));
    }
    notes.extend(stopped.errors.iter().cloned());
    for thread in &stopped.stuck {
        notes.push(format!(
            "thread {thread} did not return in time and was left behind"
        ));
    }
    for note in notes {
        let _ = writeln!(out, "{note}");
    }
    let seconds = Duration::from_millis(stopped.time.as_millis() as u64);
    let _ = writeln!(out, "stopped in {seconds:?}");
    out
}
