//! What it costs to be watched: the CPU time of the monitor's thread, by exporters.

use std::fs;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, Instant};

use clap::Args;
use serde::{Deserialize, Serialize};
use weir::backend::memory::Memory;
use weir::{Config, Hub, Registry};

use super::{Bench, Process, Result, Row};

const CONSUMERS: usize = 64;
/// Messages a second, all of them for every consumer: what a busy bus has, and little work.
const RATE: u64 = 1000;

#[derive(Args)]
pub(crate) struct Watched {
    /// With all exporters; without, none.
    #[arg(long)]
    exporters: bool,
    #[arg(long)]
    seconds: u64,
}

/// Cores that threads took.
#[derive(Serialize, Deserialize)]
pub(crate) struct Cores {
    monitor: f64,
    http: f64,
}

/// A hub with many consumers, and everybody at the other end of its exporters.
pub(crate) fn watched(role: &Watched) -> Result<Cores> {
    let wrong = |error: std::io::Error| format!("watched: {error}");
    let dir = tempfile::tempdir().map_err(wrong)?;
    let statsd = UdpSocket::bind("127.0.0.1:0").map_err(wrong)?;
    let address = statsd.local_addr().map_err(wrong)?;
    let mut toml = String::from("[journal]\nenabled = false\n[hub]\nhttp = '127.0.0.1:0'\n");
    if role.exporters {
        let path = |name: &str| dir.path().join(name).display().to_string();
        let (collectd, moksha) = (path("collectd"), path("moksha"));
        let listener = UnixListener::bind(&collectd).map_err(wrong)?;
        std::thread::spawn(move || answer(&listener));
        std::thread::spawn(move || {
            let mut packet = [0; 65536];
            while statsd.recv(&mut packet).is_ok() {}
        });
        toml += &format!(
            "[statsd]\naddress = '{address}'\n[collectd]\nsocket = '{collectd}'\ninterval = '1s'\n\
             [moksha]\nsocket = 'ipc://{moksha}'\ninterval = '1s'\n"
        );
    }
    for number in 0..CONSUMERS {
        toml += &format!("[consumers.consumer-{number}]\nkind = 'null'\ntopics = ''\n");
    }
    let config = Config::embedded(&toml, &Registry::builtin()).map_err(|m| m.to_string())?;
    let (feed, backend) = Memory::new(10_000);
    let hub = Hub::start_with(&config, vec![Box::new(backend)])?;
    let http = hub.http().filter(|_| role.exporters);

    let before = Cores::now(role.seconds)?;
    let begin = Instant::now();
    for second in 0..role.seconds {
        for _ in 0..RATE {
            (feed.send("org.example.bench", "x")).map_err(|_| "the hub takes nothing in")?;
        }
        if let Some(http) = http {
            scrape(http).map_err(wrong)?;
        }
        let due = Duration::from_secs(second + 1);
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
    }
    let after = Cores::now(role.seconds)?;
    hub.stop();
    Ok(Cores {
        monitor: after.monitor - before.monitor,
        http: after.http - before.http,
    })
}

/// Takes what the hub writes as collectd does.
fn answer(listener: &UnixListener) {
    for stream in listener.incoming().map_while(|stream| stream.ok()) {
        let Ok(mut answers) = stream.try_clone() else {
            return;
        };
        for line in BufReader::new(stream).lines().map_while(|line| line.ok()) {
            if line.starts_with("PUTVAL") {
                let _ = answers.write_all(b"0 Success: 1 value has been dispatched.\n");
            }
        }
    }
}

fn scrape(http: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(http)?;
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: {http}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    match answer.starts_with(b"HTTP/1.1 200") {
        true => Ok(()),
        false => Err(std::io::Error::other("GET /metrics is refused")),
    }
}

impl Cores {
    /// The CPU time of the threads so far, as a part of so many seconds.
    fn now(seconds: u64) -> Result<Self> {
        let of = |name: &str| -> Result<f64> {
            let tasks = fs::read_dir("/proc/self/task").map_err(|error| error.to_string())?;
            for task in tasks.flatten() {
                let read = |file: &str| fs::read_to_string(task.path().join(file));
                if read("comm").is_ok_and(|comm| comm.trim() == name) {
                    return cpu_ns(&task.path()).map(|ns| ns / 1e9 / seconds as f64);
                }
            }
            Ok(0.0) // the exporter's that is off
        };
        Ok(Cores {
            // The exporter to collectd has a thread of its own.
            monitor: of("weir-monitor")? + of("weir-collectd")?,
            http: of("weir-http")?,
        })
    }
}

/// The first number of schedstat is the time on a core (Linux, Documentation/scheduler/sched-stats).
fn cpu_ns(task: &Path) -> Result<f64> {
    let text = fs::read_to_string(task.join("schedstat")).map_err(|error| error.to_string())?;
    let first = text.split(' ').next().and_then(|ns| ns.parse().ok());
    first.ok_or_else(|| format!("schedstat has no time: {text}"))
}

// ---- the report

impl Bench {
    pub(crate) fn watched(&mut self) {
        let seconds = if self.quick { 2 } else { 20 };
        let measured = |exporters: bool| -> Result<Cores> {
            let mut arguments = vec![
                "watched".to_owned(),
                "--seconds".into(),
                seconds.to_string(),
            ];
            arguments.extend(exporters.then(|| "--exporters".to_owned()));
            Process::start(&arguments)?.hear_outcome()
        };
        let what = format!("% of a core: monitor, {CONSUMERS} consumers, every second");
        let pairs = self.turns(&what, || measured(false), || measured(true));
        self.push(&what, ["no exporter", "all exporters"], pairs, |pairs| {
            let monitor = Row::paired(what.clone(), 2, pairs, |cores| cores.monitor * 100.0);
            let reached = monitor.right.is_some_and(|percent| percent <= 1.0);
            let http = Row::paired(
                "% of a core: HTTP, /metrics read every second".into(),
                2,
                pairs,
                |cores| cores.http * 100.0,
            );
            vec![monitor.target("<= 1 %".into(), reached), http]
        });
    }
}
