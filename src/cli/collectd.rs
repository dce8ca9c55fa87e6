//! `weir collectd`: a program for collectd's plugin exec.
//!
//! It outlives hubs: while one is away it says so to collectd, and goes on with the next. What it
//! tells is [`lists`](crate::monitor::collectd::lists)'s.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::AsFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Args;
use crossbeam_channel::{bounded, select};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::ask::{Address, HubArgs, Unanswered};
use super::{Failure, duration, hub::signals, say};
use crate::monitor::collectd::lists::{Layout, Lists, Reading};
use crate::monitor::collectd::{INTERVAL_MIN, check_host, own_host};
use crate::monitor::sample::Dump;
use crate::registry::Registry;
use crate::stats::LatestTimes;

/// A hub answers at once; one that does not is away.
const PATIENCE: Duration = Duration::from_secs(4);
const INTERVAL: Duration = Duration::from_secs(10);

/// Tells collectd a hub's figures: a program for its plugin exec.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir collectd --hub http://127.0.0.1:8907 --once           see what collectd would be told
  weir collectd --config weir.toml --interval 10 --layout fedmsg

In collectd.conf:
  LoadPlugin exec
  <Plugin exec>
    Exec \"nobody\" \"/usr/local/bin/weir\" \"collectd\" \"--hub\" \"http://127.0.0.1:8907\"
  </Plugin>

collectd sets COLLECTD_HOSTNAME and COLLECTD_INTERVAL, which hold unless --host and --interval are
given. While the hub is away, gauges are U, which is unknown to collectd.")]
pub(super) struct Collectd {
    #[command(flatten)]
    hub: HubArgs,
    /// How often: seconds, or with a unit [default: collectd's interval, or 10s].
    #[arg(long, value_name = "TIME", value_parser = interval)]
    interval: Option<Duration>,
    /// The host in identifiers [default: collectd's name for it, or the machine's].
    #[arg(long, value_name = "NAME")]
    host: Option<String>,
    /// How identifiers are made.
    #[arg(long, value_enum, default_value_t)]
    layout: Layout,
    /// The service in identifiers of the layout fedmsg [default: the hub's name].
    #[arg(long, value_name = "NAME")]
    service: Option<String>,
    /// Tell it one time and end.
    #[arg(long)]
    once: bool,
}

/// Reads a time as collectd has it, in seconds, or as people write it.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().map(Duration::try_from_secs_f64);
    match seconds.unwrap_or_else(|| Ok(duration(text).unwrap_or_default())) {
        Ok(time) if (INTERVAL_MIN..=Duration::from_secs(86_400)).contains(&time) => Ok(time),
        _ => Err("expected seconds, or a duration such as \"10s\": 10ms to a day".into()),
    }
}

impl Collectd {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        let of_env = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let interval = match (self.interval, of_env("COLLECTD_INTERVAL")) {
            (Some(given), _) => given,
            (None, Some(text)) => interval(&text)
                .map_err(|why| Failure::usage(format!("COLLECTD_INTERVAL={text}: {why}")))?,
            (None, None) => INTERVAL,
        };
        if let Some(host) = &self.host {
            check_host(host).map_err(|why| Failure::usage(format!("--host {host}: {why}")))?;
        }
        if let Some(service) = &self.service {
            if self.layout != Layout::Fedmsg {
                let why = "--service is for --layout fedmsg; the layout weir has the hub's name";
                return Err(Failure::usage(why));
            }
            check_host(service)
                .map_err(|_| Failure::usage(format!("--service {service}: expected a name")))?;
        }
        let host = self.host.clone().or_else(|| of_env("COLLECTD_HOSTNAME"));
        let host = host.unwrap_or_else(own_host);
        let hub = self.hub.find(registry)?;
        let signals = signals()?;
        let lists = Lists::new(&host, self.layout, interval, now());
        let mut teller = Teller {
            hub,
            lists: lists.service(self.service.clone()),
            layout: self.layout,
            interval,
            away: false,
        };
        if self.once {
            let text = teller.read().map_err(Failure::from)?;
            return Ok(std::io::stdout().write_all(text.as_bytes())?);
        }
        // Whatever the hub or collectd keep it waiting for, a signal ends it at once.
        let (end, ended) = bounded(1);
        std::thread::Builder::new()
            .name("weir-tell".into())
            .spawn(move || {
                let _ = end.send(teller.tell());
            })?;
        select! {
            recv(signals) -> _ => Ok(()),
            recv(ended) -> outcome => match outcome {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(Failure::run("the thread that tells collectd died")),
            },
        }
    }
}

fn now() -> f64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_secs_f64()
}

/// Waits until then, or until nobody reads this any more: there may be nothing to write by which
/// that would be noticed, and collectd complains of a line that says nothing.
fn closed(out: &impl AsFd, until: Instant) -> std::io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(std::io::Error::other)?;
        // Errors are told without being asked for.
        let mut outs = [PollFd::new(out, PollFlags::empty())];
        match poll(&mut outs, Some(&left)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

struct Teller {
    hub: Address,
    lists: Lists,
    layout: Layout,
    interval: Duration,
    away: bool,
}

impl Teller {
    /// Tells interval after interval, until nobody listens any more.
    fn tell(&mut self) -> std::io::Result<()> {
        let mut out = std::io::stdout();
        let mut due = Instant::now();
        loop {
            let lines = match self.read() {
                Ok(lines) => {
                    if std::mem::take(&mut self.away) {
                        say(&format!("weir collectd: the hub at {} is back\n", self.hub));
                    }
                    lines
                }
                Err(why) => {
                    if !std::mem::replace(&mut self.away, true) {
                        say(&format!("weir collectd: {why}\n"));
                    }
                    self.lists.unknown(now())
                }
            };
            // A line at a time, so that collectd never reads half a one.
            for line in lines.split_inclusive('\n') {
                out.write_all(line.as_bytes())?;
                out.flush()?;
            }
            due = (due + self.interval).max(Instant::now());
            if closed(&out, due)? {
                return Ok(());
            }
        }
    }

    fn read(&mut self) -> Result<String, Unanswered> {
        let patience = self.interval.clamp(Duration::from_secs(1), PATIENCE);
        let dump: Dump = self.hub.get("/v1/figures", patience)?;
        let times: BTreeMap<String, LatestTimes> = match self.layout {
            Layout::Weir => BTreeMap::new(),
            Layout::Fedmsg => self.hub.get("/v1/times", patience)?,
        };
        Ok(self.lists.lines(&Reading {
            hub: &dump.hub,
            at: now(),
            started: dump.at - dump.uptime_seconds,
            figures: &|each| dump.each(each),
            times: &|name| times.get(name).cloned(),
        }))
    }
}
