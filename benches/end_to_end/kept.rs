//! What a journal costs, and what it gives: messages that wait on the disk.
//!
//! Every run gets a directory of its own, which is removed afterwards.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use weir::backend::memory::{Feed, Memory};
use weir::journal::{Journal, Record, Settings, Sync};
use weir::steering::Action;
use weir::{Config, Hub};
use weir_consumer::Message;

use crate::{
    Bench, LET_GO, Latency, Load, Pairs, Process, RECEIVE_HWM, Result, Row, Run, SIZES, TOPIC,
    Usage, await_all, hear_go, now_ns, registry, run, say,
};

const CONSUMERS: [usize; 2] = [1, 4];
/// As in the comparison of logs that weir's own was chosen by.
const BATCH: u64 = 512;
const APPEND_RATE: u64 = 700_000;
const APPEND_SIZE: usize = 230;
/// Of what is appended for measuring, so much is kept on the disk.
const APPEND_KEEP: u64 = 512 << 20;
const MIB: f64 = 1_048_576.0;

// ---- roles

/// A hub with a backlog.
#[derive(Args)]
pub(crate) struct Fill {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    consumers: usize,
    #[arg(long)]
    messages: u64,
    #[arg(long)]
    size: usize,
}

impl Fill {
    fn start(&self, kind: &str) -> Result<(Hub, Feed)> {
        let (feed, backend) = Memory::new(10_000);
        let config = config(&self.dir, self.consumers, kind, "");
        let config = Config::embedded(&config, &registry()).map_err(|m| m.to_string())?;
        Ok((Hub::start_with(&config, vec![Box::new(backend)])?, feed))
    }

    fn feed(&self, hub: &Hub, feed: &Feed) -> Result {
        self::feed(feed, self.messages, self.size)?;
        await_all(hub, 0..self.consumers, self.messages, |shot| shot.received)?;
        settle(hub)
    }
}

/// A hub with a journal and these consumers, whose queues are bounded as they are by default.
fn config(dir: &Path, consumers: usize, kind: &str, backend: &str) -> String {
    let mut config = format!("[hub]\nname = 'bench'\nhttp = ''\ndata_dir = {dir:?}\n{backend}");
    for n in 0..consumers {
        let section = "[consumers.c";
        let _ = writeln!(config, "{section}{n}]\nkind = '{kind}'\ntopics = ''");
    }
    config
}

/// Gives a hub of this process messages to journal.
pub(crate) fn feed(feed: &Feed, messages: u64, size: usize) -> Result {
    let payload = Bytes::from(vec![b'x'; size]);
    for _ in 0..messages {
        feed.send(TOPIC, payload.clone())
            .map_err(|_| "hub: its source has gone")?;
    }
    Ok(())
}

/// Leaves nothing to be written back while something else is measured.
pub(crate) fn settle(hub: &Hub) -> Result {
    match &hub.figures().journal {
        Some(journal) => journal.sync_now(),
        None => Ok(()),
    }
}

/// Says that it is ready; when it is told to, its consumers catch up. Answers the seconds it took
/// and the CPU time.
pub(crate) fn catch_up(fill: &Fill) -> Result<(f64, f64)> {
    let (hub, feed) = fill.start("stuck")?;
    fill.feed(&hub, &feed)?;
    say(&"ready");
    hear_go();
    let before = Usage::now()?;
    LET_GO.store(true, Ordering::Relaxed);
    await_all(&hub, 0..fill.consumers, fill.messages, |s| s.consumed)?;
    let after = Usage::now()?;
    let status = hub.stop().status;
    match (status.consumers.iter()).all(|consumer| consumer.consumed == fill.messages) {
        true => Ok((
            after.at_ns.saturating_sub(before.at_ns) as f64 / 1e9,
            after.cpu_seconds - before.cpu_seconds,
        )),
        false => Err(format!(
            "catch-up: not each consumer consumed {}: {status:?}",
            fill.messages
        )),
    }
}

/// Says that it is ready; stops when it is told to. Its consumers are paused.
pub(crate) fn fill(fill: &Fill) -> Result {
    let (hub, feed) = fill.start("null")?;
    for n in 0..fill.consumers {
        let consumer = format!("c{n}");
        hub.act(&Action::Pause { consumer }, "bench")?;
    }
    fill.feed(&hub, &feed)?;
    say(&"ready");
    hear_go();
    match hub.stop() {
        stopped if stopped.errors.is_empty() && stopped.stuck.is_empty() => Ok(()),
        stopped => Err(format!("fill: {stopped:?}")),
    }
}

/// Answers how many seconds the start took.
pub(crate) fn open(fill: &Fill) -> Result<f64> {
    let begin = Instant::now();
    let (hub, _feed) = fill.start("null")?;
    let seconds = begin.elapsed().as_secs_f64();
    let consumers = hub.status().consumers;
    match (consumers.iter()).all(|consumer| consumer.waiting == fill.messages) {
        true => Ok(seconds),
        false => Err(format!("open: not all waits: {consumers:?}")),
    }
}

/// A hub whose memory is looked at.
#[derive(Args)]
pub(crate) struct Waiting {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    consumers: usize,
    /// Of the publisher of the messages that warm it up.
    #[arg(long)]
    warm_endpoint: String,
    #[arg(long)]
    warm_messages: u64,
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    messages: u64,
}

/// The memory of a hub, in bytes, and how long the consumers took to catch up.
#[derive(Serialize, Deserialize)]
pub(crate) struct Memories {
    idle: u64,
    /// The backlog has come.
    full: u64,
    /// It has gone.
    after: u64,
    /// The most there was at any time.
    peak: u64,
    seconds: f64,
}

/// Says when it is ready, and when it has been warmed up.
pub(crate) fn backlog(role: &Waiting) -> Result<Memories> {
    let backend = format!(
        "[[backend]]\nconnect = ['{}', '{}']\nreceive_hwm = {RECEIVE_HWM}\n",
        role.warm_endpoint, role.endpoint
    );
    let config = config(&role.dir, role.consumers, "stuck", &backend);
    let config = Config::from_toml(&config, "bench", &registry()).map_err(|m| m.to_string())?;
    let hub = Hub::start(&config)?;
    LET_GO.store(true, Ordering::Relaxed);
    say(&"ready");
    let (all, messages) = (0..role.consumers, role.warm_messages + role.messages);
    await_all(&hub, all.clone(), role.warm_messages, |s| s.consumed)?;
    let idle = Usage::now()?.rss_bytes;
    LET_GO.store(false, Ordering::Relaxed);
    say(&"warm");
    await_all(&hub, all.clone(), messages, |shot| shot.received)?;
    let full = Usage::now()?.rss_bytes;
    let begin = Instant::now();
    LET_GO.store(true, Ordering::Relaxed);
    await_all(&hub, all, messages, |shot| shot.consumed)?;
    let seconds = begin.elapsed().as_secs_f64();
    let after = Usage::now()?.rss_bytes;
    let status = hub.stop().status;
    if (status.consumers.iter()).any(|consumer| consumer.consumed != messages) {
        return Err(format!(
            "backlog: not each consumer consumed {messages}: {status:?}"
        ));
    }
    Ok(Memories {
        idle,
        full,
        after,
        peak: peak()?,
        seconds,
    })
}

/// The most memory that this process ever had.
fn peak() -> Result<u64> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    Ok(kib.ok_or("/proc/self/status has no VmHWM")? * 1024)
}

/// A journal that is appended to as an enqueuer does.
#[derive(Args)]
pub(crate) struct Append {
    #[arg(long)]
    dir: PathBuf,
    #[arg(long)]
    sync_ms: u64,
    #[arg(long)]
    seconds: u64,
}

/// How it went.
#[derive(Serialize, Deserialize)]
pub(crate) struct Appended {
    /// Of batches, from before the append lock until it is released.
    latency: Latency,
    max_ns: u64,
    messages_per_second: f64,
    bytes_per_second: f64,
    /// CPU time of the process by the wall clock, with what makes the load.
    cores: f64,
    rss_bytes: u64,
}

/// Appends at a steady rate, while a thread syncs and another removes what is old.
pub(crate) fn append(role: &Append) -> Result<Appended> {
    let _ = fs::write("/proc/self/timerslack_ns", "1"); // as the publisher
    let settings = Settings {
        sync: Sync::Every(Duration::from_millis(role.sync_ms)),
        ..Settings::default()
    };
    let (journal, _) = Journal::open(&role.dir, &settings, 1)?;
    let syncs = std::thread::spawn({
        let journal = journal.clone();
        move || journal.run()
    });
    std::thread::spawn({
        let journal = journal.clone();
        move || remove_old(&journal)
    });
    let payload = vec![b'x'; APPEND_SIZE - TOPIC.len()];
    let record = Record {
        topic: TOPIC,
        payload: &payload,
        source_seq: None,
    };
    let nobody_reads: Arc<[Message]> = Arc::new([]);
    let batches = APPEND_RATE * role.seconds / BATCH;
    let mut took = Vec::with_capacity(batches as usize);
    let before = Usage::now()?;
    let begin = Instant::now();
    for n in 0..batches {
        let due = Duration::from_secs_f64((n * BATCH) as f64 / APPEND_RATE as f64);
        if let Some(early) = due.checked_sub(begin.elapsed()) {
            sleep(early);
        }
        let records = std::iter::repeat_n(record, BATCH as usize);
        let started = Instant::now();
        let mut appender = journal.lock();
        let appended = appender.append(0, now_ns(), records);
        appended.map_err(|error| format!("append: {error}"))?;
        appender.publish(&nobody_reads);
        took.push(started.elapsed().as_nanos() as u64);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let after = Usage::now()?;
    let appended = journal.snapshot();
    journal.close()?;
    syncs.join().map_err(|_| "append: the sync thread died")?;
    let max_ns = took.iter().max().copied().unwrap_or_default();
    Ok(Appended {
        latency: Latency::of(took).ok_or("append: nothing was appended")?,
        max_ns,
        messages_per_second: appended.appended_messages as f64 / seconds,
        bytes_per_second: appended.appended_bytes as f64 / seconds,
        cores: (after.cpu_seconds - before.cpu_seconds) / seconds,
        rss_bytes: after.rss_bytes,
    })
}

/// Does what a hub's retention does, ten times a second, as long as the process lives.
fn remove_old(journal: &Journal) {
    loop {
        let segments = journal.segments();
        let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
        for oldest in segments {
            if bytes <= APPEND_KEEP || journal.remove_oldest(oldest.base).is_err() {
                break;
            }
            bytes -= oldest.bytes;
        }
        sleep(Duration::from_millis(100));
    }
}

// ---- the report

impl Bench {
    /// A directory on the disk for one run.
    fn fresh(&self) -> Result<TempDir> {
        let wrong = |error| format!("can't write in {}: {error}", self.dir.display());
        fs::create_dir_all(&self.dir).map_err(wrong)?;
        tempfile::Builder::new()
            .prefix("weir-bench-")
            .tempdir_in(&self.dir)
            .map_err(wrong)
    }

    /// A role that has a directory of its own.
    fn start_in(&self, role: &str, dir: &TempDir, arguments: &[(&str, u64)]) -> Result<Process> {
        let mut all = vec![role.to_owned(), "--dir".into(), shown(dir.path())];
        for (name, value) in arguments {
            all.extend([format!("--{name}"), value.to_string()]);
        }
        Process::start(&all)
    }

    /// A run of a hub that keeps a journal.
    fn run_kept(&self, load: Load, arguments: &[&str]) -> Result<Run> {
        let dir = self.fresh()?;
        let dir = shown(dir.path());
        run(load, &[&["hub", "--journal", &dir], arguments].concat())
    }

    /// Pairs of runs in turns, as many as make a median.
    pub(crate) fn turns<R>(
        &self,
        what: &str,
        mut left: impl FnMut() -> Result<R>,
        mut right: impl FnMut() -> Result<R>,
    ) -> Result<Pairs<R>> {
        let pair = |number| {
            eprintln!("{what}: pair {} of {}", number + 1, self.pairs);
            Ok((left()?, right()?))
        };
        (0..self.pairs).map(pair).collect::<Result<_>>().map(Pairs)
    }

    fn messages(&self, messages: u64) -> u64 {
        if self.quick { messages / 20 } else { messages }
    }

    /// Adds the rows, or says in place of the first why there are none.
    pub(crate) fn push<R>(
        &mut self,
        what: &str,
        columns: [&'static str; 2],
        outcome: Result<R>,
        rows: impl FnOnce(&R) -> Vec<Row>,
    ) {
        let rows = match &outcome {
            Ok(outcome) => rows(outcome),
            Err(error) => vec![Row::failed(what.into(), error.clone())],
        };
        self.rows
            .extend(rows.into_iter().map(|row| row.columns(columns)));
    }

    pub(crate) fn journal(&mut self) {
        let size = SIZES[0];
        let load = Load {
            messages: self.messages(3_000_000),
            size,
            rate: None,
        };
        // First with room for everything, so that the journal is all that differs; then with the
        // queues that a hub has by default, where a consumer may fall behind and read the journal.
        for (consumers, bounded) in [(1, None), (4, None), (4, Some("--bounded"))] {
            let bound = bounded.map_or("", |_| ", bounded");
            let words = format!("{size} bytes, consumers: {consumers}{bound}");
            let number = consumers.to_string();
            let consumers = ["--consumers", &*number];
            let on = [&consumers[..], bounded.as_slice()].concat();
            let pairs = self.turns(
                &format!("journal, {words}"),
                || run(load, &[&["hub"], &consumers[..]].concat()),
                || self.run_kept(load, &on),
            );
            let what = format!("messages/s, {words}");
            self.push(&what, ["off", "journal"], pairs, |pairs| {
                let rate = Row::paired(what.clone(), 0, pairs, |r| r.messages_per_second);
                let cpu = format!("CPU us/message, {words}");
                vec![
                    rate.at_least(0.7),
                    Row::paired(cpu, 3, pairs, |run| run.cpu_us_per_message),
                ]
            });
        }
    }

    pub(crate) fn catch_up(&mut self) {
        let (messages, size) = (self.messages(2_000_000), SIZES[0]);
        for consumers in CONSUMERS {
            let words = format!("{size} bytes, consumers: {consumers}");
            let load = Load {
                messages,
                size,
                rate: None,
            };
            let pairs = self.turns(
                &format!("catch-up, {words}"),
                || {
                    let run = self.run_kept(load, &["--consumers", &consumers.to_string()])?;
                    Ok((run.messages_per_second, run.cpu_us_per_message))
                },
                || {
                    let dir = self.fresh()?;
                    let mut hub = self.filled("catch-up", &dir, consumers, messages)?;
                    hub.go()?;
                    let (seconds, cpu): (f64, f64) = hub.hear_outcome()?;
                    let messages = messages as f64;
                    Ok((messages / seconds, cpu * 1e6 / messages))
                },
            );
            let what = format!("messages/s, {words}");
            self.push(&what, ["live", "catch-up"], pairs, |pairs| {
                let cpu = format!("CPU us/message, {words}");
                vec![
                    Row::paired(what.clone(), 0, pairs, |(rate, _)| *rate),
                    Row::paired(cpu, 3, pairs, |(_, cpu)| *cpu),
                ]
            });
        }
    }

    /// A hub in this directory for whose consumers so many messages wait.
    fn filled(
        &self,
        role: &str,
        dir: &TempDir,
        consumers: usize,
        messages: u64,
    ) -> Result<Process> {
        let arguments = [
            ("consumers", consumers as u64),
            ("messages", messages),
            ("size", SIZES[0] as u64),
        ];
        let mut process = self.start_in(role, dir, &arguments)?;
        process.hear_word("ready")?;
        Ok(process)
    }

    /// What live consumers get while another catches up, beside while it stands still.
    pub(crate) fn meanwhile(&mut self) {
        let size = SIZES[0];
        let loads = [
            (None, 1_500_000, 3_000_000, "as fast as it goes"),
            (Some(100_000.0), 100_000, 6_000_000, "100,000 messages/s"),
        ];
        // The backlog is to last as long as the load does.
        for (rate, messages, backlog, words) in loads {
            let messages = self.messages(messages);
            let backlog = self.messages(backlog).to_string();
            let load = Load {
                messages,
                size,
                rate,
            };
            let mut arguments = vec!["--backlog", &backlog];
            arguments.extend(rate.map(|_| "--latency"));
            let go = [&arguments[..], &["--let-go"]].concat();
            let pairs = self.turns(
                &format!("meanwhile, {words}"),
                || self.run_kept(load, &arguments),
                || self.run_kept(load, &go),
            );
            let what = format!("live messages/s, {words}");
            self.push(&what, ["behind", "catching up"], pairs, |pairs| {
                let row = Row::paired(what.clone(), 0, pairs, |run| run.messages_per_second);
                let late = format!("messages/s caught up, {words}");
                let mut rows = vec![
                    row.at_least(0.85),
                    Row {
                        right: Some(pairs.right(|run| run.late_per_second)),
                        ..Row::new(late, 0)
                    },
                ];
                type Percentile = (&'static str, fn(Latency) -> u64);
                let percentiles: [Percentile; 2] =
                    [("p50", |it| it.p50_ns), ("p99", |it| it.p99_ns)];
                for (name, of) in percentiles.into_iter().filter(|_| rate.is_some()) {
                    let what = format!("live latency us, {words}, {name}");
                    let of = |run: &Run| run.latency.map_or(f64::NAN, |it| of(it) as f64 / 1e3);
                    rows.push(Row::paired(what, 1, pairs, of));
                }
                rows
            });
        }
    }

    pub(crate) fn append(&mut self) {
        let columns = ["sync 50ms", "sync 1s"];
        let seconds = if self.quick { 1 } else { 6 };
        let one = |sync_ms| {
            let dir = self.fresh()?;
            let arguments = [("sync-ms", sync_ms), ("seconds", seconds)];
            self.start_in("append", &dir, &arguments)?.hear_outcome()
        };
        let name = format!("append at {APPEND_RATE} messages/s of {APPEND_SIZE} bytes");
        eprintln!("{name}");
        // Two of each: what a virtual disk does once in a while is in one of them.
        let pairs: Result<Vec<(Appended, Appended)>> =
            (0..2).map(|_| Ok((one(50)?, one(1000)?))).collect();
        self.push(&name, columns, pairs.map(Pairs), |pairs| {
            type Figure = (&'static str, usize, fn(&Appended) -> f64);
            let figures: [Figure; 7] = [
                ("messages/s", 0, |it| it.messages_per_second),
                ("ms a batch, p99", 3, |it| it.latency.p99_ns as f64 / 1e6),
                ("ms a batch, p99.9", 3, |it| it.latency.p999_ns as f64 / 1e6),
                ("ms a batch, max", 1, |it| it.max_ns as f64 / 1e6),
                ("cores", 3, |it| it.cores),
                ("MB/s written", 0, |it| it.bytes_per_second / 1e6),
                ("RSS, MiB", 1, |it| it.rss_bytes as f64 / MIB),
            ];
            let row = |(what, digits, of): Figure| {
                let row = Row {
                    left: Some(pairs.left(of)),
                    right: Some(pairs.right(of)),
                    ..Row::new(format!("append: {what}"), digits)
                };
                let reached = |most: f64| row.left.is_some_and(|left| left <= most);
                match what {
                    "ms a batch, p99.9" => {
                        let reached = reached(5.0);
                        row.target("50ms: <= 5".into(), reached)
                    }
                    "cores" => {
                        let reached = reached(0.16);
                        row.target("50ms: <= 0.16".into(), reached)
                    }
                    _ => row,
                }
            };
            figures.into_iter().map(row).collect()
        });
    }

    pub(crate) fn backlog(&mut self) {
        let (messages, consumers) = (self.messages(5_000_000), 4);
        let what = format!("RSS MiB, {messages} messages in {consumers} queues");
        eprintln!("{what}");
        let outcome = self.memories(messages, consumers);
        self.push(&what, ["idle", "backlog"], outcome, |memories| {
            let row = |what: String, bytes: u64| {
                let row = Row {
                    left: Some(memories.idle as f64 / MIB),
                    right: Some(bytes as f64 / MIB),
                    ..Row::new(what, 1)
                };
                let reached = bytes <= memories.idle + (64 << 20);
                row.target("<= idle + 64".into(), reached)
            };
            vec![
                row(what.clone(), memories.full),
                row(
                    "RSS MiB, when they have been caught up".into(),
                    memories.after,
                ),
                row("RSS MiB, the most in all this time".into(), memories.peak),
                Row {
                    right: Some(messages as f64 / memories.seconds),
                    ..Row::new("messages/s caught up by all 4".into(), 0)
                },
            ]
        });
    }

    fn memories(&self, messages: u64, consumers: usize) -> Result<Memories> {
        let load = |messages, rate| Load {
            messages,
            size: SIZES[0],
            rate: Some(rate),
        };
        let warm_messages = self.messages(300_000);
        let (mut warmer, warm_endpoint) = Process::publisher(load(warm_messages, 150_000.0))?;
        let (mut publisher, endpoint) = Process::publisher(load(messages, 400_000.0))?;
        let dir = self.fresh()?;
        let arguments = [
            ("--dir", shown(dir.path())),
            ("--consumers", consumers.to_string()),
            ("--warm-endpoint", warm_endpoint),
            ("--warm-messages", warm_messages.to_string()),
            ("--endpoint", endpoint),
            ("--messages", messages.to_string()),
        ];
        let arguments = (arguments.into_iter()).flat_map(|(name, value)| [name.into(), value]);
        let arguments: Vec<String> = std::iter::once("backlog".into()).chain(arguments).collect();
        let mut hub = Process::start(&arguments)?;
        hub.hear_word("ready")?;
        for publisher in [&mut warmer, &mut publisher] {
            publisher.hear_word("subscribed")?;
        }
        warmer.go()?;
        hub.hear_word("warm")?;
        publisher.go()?;
        hub.hear_outcome()
    }

    pub(crate) fn start(&mut self) {
        let (messages, consumers) = (self.messages(2_000_000), 4);
        let words = format!("{messages} messages in {consumers} queues");
        let started = |killed: bool| {
            let dir = self.fresh()?;
            let mut hub = self.filled("fill", &dir, consumers, messages)?;
            if killed {
                hub.kill()?;
            } else {
                hub.go()?;
                hub.hear_outcome::<()>()?;
            }
            let arguments = [
                ("consumers", consumers as u64),
                ("messages", messages),
                ("size", SIZES[0] as u64),
            ];
            self.start_in("open", &dir, &arguments)?
                .hear_outcome::<f64>()
        };
        let what = format!("start-up ms, {words}");
        let pairs = self.turns(&what, || started(false), || started(true));
        self.push(&what, ["stopped", "kill -9"], pairs, |pairs| {
            vec![Row::paired(what.clone(), 1, pairs, |seconds| seconds * 1e3)]
        });
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
