//! Measures the hub from end to end and prints one table; benches/README.md explains it.
//!
//! Every role (publisher, bare loop, hub) is a process of its own: this program, started again with
//! the role as its first argument. So the CPU time and the memory of the measured process are its
//! own, and what the bare loop and the hub are given differs in nothing.
//!
//! It is a report, not a test: a target that is missed makes no difference to the exit status. A
//! role that fails or a message that is lost does, and leaves no number in the table.
//!
//! Here is what makes a run and a table, and what needs no journal; `kept.rs` has what does, and
//! `watched.rs` what exporters cost.

mod kept;
mod watched;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use weir::backend::memory::Memory;
use weir::stats::Snapshot;
use weir::{Config, Hub, Registry};
use weir_consumer::{Consumer, Context, Kind, Message, from_fn};

/// As in src/main.rs; every role has the same.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOPIC: &str = "org.example.bench";
const SIZES: [usize; 2] = [200, 1000];
const HUBS: [HubCase; 4] = [
    HubCase {
        consumers: 1,
        block: false,
        at_least: Some(0.9),
    },
    HubCase {
        consumers: 4,
        block: false,
        at_least: None,
    },
    HubCase {
        consumers: 16,
        block: false,
        at_least: Some(0.6),
    },
    HubCase {
        consumers: 1,
        block: true,
        at_least: None,
    },
];
const QUEUES: [usize; 2] = [1, 8];
/// The columns of most lines.
const COLUMNS: [&str; 2] = ["bare loop", "weir"];
/// The receive high-water mark of the bare loop and of the hub: what a hub has by default.
const RECEIVE_HWM: i32 = 50_000;
/// A role that makes no progress for so long has lost messages.
const PATIENCE: Duration = Duration::from_secs(10);

type Result<T = (), E = String> = std::result::Result<T, E>;

/// Measures the hub from end to end, against a loop that receives and does nothing.
#[derive(Parser)]
struct Options {
    /// Print JSON instead of the table.
    #[arg(long)]
    json: bool,
    /// A smoke run of some seconds; its numbers mean little.
    #[arg(long)]
    quick: bool,
    /// Measure this part only; may be given several times.
    #[arg(long, value_enum, value_name = "PART")]
    only: Vec<Part>,
    /// How many pairs of runs make a median.
    #[arg(long, default_value_t = 3, value_name = "N")]
    pairs: usize,
    /// Where journals are written, and removed again; it should be on a disk, not in memory.
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"), value_name = "PATH")]
    dir: PathBuf,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Throughput,
    Latency,
    Memory,
    Journal,
    CatchUp,
    Meanwhile,
    Append,
    Backlog,
    Start,
    Watched,
}

/// What a process started by this program does.
#[derive(Subcommand)]
enum Role {
    /// Waits for a subscriber and for a line, and publishes.
    #[command(hide = true)]
    Publisher(Load),
    /// Receives with as little as ZeroMQ needs, and counts.
    #[command(hide = true)]
    Bare(Receiver),
    /// Receives with a hub.
    #[command(hide = true)]
    Hub(HubRole),
    /// Lets consumers read what waits in a journal.
    #[command(hide = true)]
    CatchUp(kept::Fill),
    /// Makes a backlog, and stops or is killed.
    #[command(hide = true)]
    Fill(kept::Fill),
    /// Starts with it.
    #[command(hide = true)]
    Open(kept::Fill),
    /// Looks at a hub's memory, idle and with a backlog.
    #[command(hide = true)]
    Backlog(kept::Waiting),
    /// Appends to a journal, without a hub.
    #[command(hide = true)]
    Append(kept::Append),
    /// Looks at what exporters cost.
    #[command(hide = true)]
    Watched(watched::Watched),
}

#[derive(Args, Clone, Copy)]
struct Load {
    #[arg(long)]
    messages: u64,
    #[arg(long)]
    size: usize,
    /// Messages a second; as fast as it goes without.
    #[arg(long)]
    rate: Option<f64>,
}

#[derive(Args)]
struct Receiver {
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    messages: u64,
    /// Read the time that each message was published at.
    #[arg(long)]
    latency: bool,
}

#[derive(Args)]
struct HubRole {
    #[command(flatten)]
    receiver: Receiver,
    #[arg(long, default_value_t = 1)]
    consumers: usize,
    /// Take no more than one message off each queue until all have been received.
    #[arg(long)]
    stuck: bool,
    /// Bound the queues as they are by default, and let the intake wait when they are full.
    #[arg(long)]
    block: bool,
    /// Bound them as they are by default.
    #[arg(long)]
    bounded: bool,
    /// Keep a journal there.
    #[arg(long)]
    journal: Option<PathBuf>,
    /// One more consumer, for whom so many messages wait when the clock starts.
    #[arg(long, default_value_t = 0)]
    backlog: u64,
    /// Let it take them from when this process is told to go.
    #[arg(long)]
    let_go: bool,
}

fn main() -> ExitCode {
    let options = Options::parse();
    match &options.role {
        Some(Role::Publisher(load)) => say(&publish(load)),
        Some(Role::Bare(receiver)) => say(&bare(receiver)),
        Some(Role::Hub(role)) => say(&hub(role)),
        Some(Role::CatchUp(fill)) => say(&kept::catch_up(fill)),
        Some(Role::Fill(fill)) => say(&kept::fill(fill)),
        Some(Role::Open(fill)) => say(&kept::open(fill)),
        Some(Role::Backlog(waiting)) => say(&kept::backlog(waiting)),
        Some(Role::Append(append)) => say(&kept::append(append)),
        Some(Role::Watched(role)) => say(&watched::watched(role)),
        None => return report(&options),
    }
    ExitCode::SUCCESS
}

/// Says a line to the process that started this one.
fn say(what: &impl Serialize) {
    println!("{}", serde_json::json!(what));
}

// ---- roles

/// What a receiver says at its end.
#[derive(Serialize, Deserialize)]
struct Received {
    last_ns: u64,
    /// Of this process, from when it was ready until the last message.
    cpu_seconds: f64,
    /// How much its resident memory has grown meanwhile.
    rss_bytes: u64,
    latency: Option<Latency>,
    /// What a consumer with a backlog has consumed meanwhile.
    late: u64,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
struct Latency {
    p50_ns: u64,
    p99_ns: u64,
    p999_ns: u64,
}

impl Latency {
    fn of(mut samples: Vec<u64>) -> Option<Self> {
        samples.sort_unstable();
        let at = |part: f64| {
            let place = (samples.len() as f64 * part) as usize;
            samples.get(place.min(samples.len().saturating_sub(1)))
        };
        Some(Latency {
            p50_ns: *at(0.5)?,
            p99_ns: *at(0.99)?,
            p999_ns: *at(0.999)?,
        })
    }
}

/// Says its endpoint, that it has a subscriber, that it has sent everything, and how it ended.
fn publish(load: &Load) -> Result {
    // A sleep is to end when it is due, not up to 50 us later; without the right to say so it is
    // only less even.
    let _ = std::fs::write("/proc/self/timerslack_ns", "1");
    let zmq = |error| format!("publisher: {error}");
    let context = zmq::Context::new();
    let socket = context.socket(zmq::XPUB).map_err(zmq)?;
    socket.set_sndhwm(0).map_err(zmq)?; // what the receiver can't take yet waits here
    (socket.set_rcvtimeo(PATIENCE.as_millis() as i32)).map_err(zmq)?;
    socket.bind("tcp://127.0.0.1:*").map_err(zmq)?;
    let endpoint = socket.get_last_endpoint().map_err(zmq)?;
    let endpoint = endpoint.map_err(|_| "publisher: ZeroMQ named no endpoint")?;
    say(&endpoint.trim_end_matches('\0'));
    (socket.recv_bytes(0)).map_err(|error| format!("publisher: no subscriber: {error}"))?;
    say(&"subscribed");
    hear_go();

    let mut payload = vec![b'x'; load.size.max(8)];
    let begin = Instant::now();
    for n in 0..load.messages {
        if let Some(rate) = load.rate {
            let due = Duration::from_secs_f64(n as f64 / rate);
            if let Some(early) = due.checked_sub(begin.elapsed()) {
                sleep(early);
            }
            payload[..8].copy_from_slice(&now_ns().to_le_bytes());
        }
        socket.send(TOPIC, zmq::SNDMORE).map_err(zmq)?;
        socket.send(&payload[..], 0).map_err(zmq)?;
    }
    say(&"sent");
    // The end of the context waits until all of it is with the receiver.
    Ok(())
}

fn bare(receiver: &Receiver) -> Result<Received> {
    let zmq = |error| format!("bare loop: {error}");
    let context = zmq::Context::new();
    let socket = context.socket(zmq::SUB).map_err(zmq)?;
    socket.set_rcvhwm(RECEIVE_HWM).map_err(zmq)?;
    (socket.set_rcvtimeo(PATIENCE.as_millis() as i32)).map_err(zmq)?;
    socket.connect(&receiver.endpoint).map_err(zmq)?;
    socket.set_subscribe(b"").map_err(zmq)?;
    let mut samples = Vec::with_capacity(if receiver.latency {
        receiver.messages as usize
    } else {
        0
    });
    let mut frame = zmq::Message::new();
    let before = Usage::now()?;
    say(&"ready");
    for n in 0..receiver.messages {
        let mut get = || {
            (socket.recv(&mut frame, 0))
                .map(|()| frame.get_more())
                .map_err(|error| format!("bare loop: {n} of {} came: {error}", receiver.messages))
        };
        if !get()? || get()? {
            return Err("bare loop: a message that is not of two frames".into());
        }
        if receiver.latency {
            samples.push(age_ns(&frame));
        }
    }
    Received::since(&before, Usage::now()?, Latency::of(samples))
}

/// The consumers of the kind `stuck` wait for this.
static LET_GO: AtomicBool = AtomicBool::new(false);
/// What the consumer of the kind `latency` has seen, in nanoseconds.
static LATENCIES: Mutex<Vec<u64>> = Mutex::new(Vec::new());

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

fn latency() -> Kind {
    Kind::consumer("latency", |_: NoSettings, _: &Context| {
        Ok(from_fn(|message| {
            let age = age_ns(message.payload());
            let mut samples = LATENCIES.lock().unwrap_or_else(PoisonError::into_inner);
            samples.push(age);
            Ok(())
        }))
    })
}

fn stuck() -> Kind {
    struct Stuck;
    impl Consumer for Stuck {
        fn consume(&mut self, _message: &Message) -> weir_consumer::Result {
            while !LET_GO.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(10));
            }
            Ok(())
        }
    }
    Kind::consumer("stuck", |_: NoSettings, _: &Context| Ok(Stuck))
}

fn hub(role: &HubRole) -> Result<Received> {
    let (endpoint, messages) = (&role.receiver.endpoint, role.receiver.messages);
    let kind = match (role.stuck, role.receiver.latency) {
        (true, _) => "stuck",
        (false, true) => "latency",
        (false, false) => "null",
    };
    // Without a bound there is room for all, so that no policy matters and nothing is lost.
    let queue = match (role.block, role.bounded) {
        (true, _) => r#"{ overflow = "block" }"#,
        (false, true) => "{}",
        (false, false) => r#"{ messages = 5000000, bytes = "8GiB" }"#,
    };
    let data = match &role.journal {
        None => "[journal]\nenabled = false\n".into(),
        Some(dir) => format!("data_dir = {dir:?}\n"),
    };
    let mut config = format!(
        "[hub]\nname = 'bench'\nhttp = ''\n{data}\
         [[backend]]\nconnect = ['{endpoint}']\nreceive_hwm = {RECEIVE_HWM}\n"
    );
    for n in 0..role.consumers {
        let section = "[consumers.c";
        let _ = writeln!(
            config,
            "{section}{n}]\nkind = '{kind}'\ntopics = ''\nqueue = {queue}"
        );
    }
    if role.backlog > 0 {
        config += "[consumers.late]\nkind = 'stuck'\ntopics = ''\n";
    }
    let config = Config::from_toml(&config, "bench", &registry()).map_err(|m| m.to_string())?;
    let (feed, backend) = Memory::new(10_000);
    let mut more: Vec<Box<dyn weir::backend::Backend>> = Vec::new();
    if role.backlog > 0 {
        more.push(Box::new(backend));
    }
    let hub = Hub::start_with(&config, more)?;
    let watched = 0..role.consumers;
    if role.backlog > 0 {
        kept::feed(&feed, role.backlog, SIZES[0])?;
        await_all(&hub, watched.clone(), role.backlog, |shot| shot.consumed)?;
        let late = role.consumers..role.consumers + 1;
        await_all(&hub, late, role.backlog, |shot| shot.received)?;
        kept::settle(&hub)?;
    }
    if role.let_go {
        std::thread::spawn(|| LET_GO.store(hear_go(), Ordering::Relaxed));
    }
    if role.receiver.latency {
        let mut samples = LATENCIES.lock().unwrap_or_else(PoisonError::into_inner);
        samples.clear();
        samples.reserve(messages as usize);
    }
    let before = Usage::now()?;
    say(&"ready");

    let reached: fn(&Snapshot) -> u64 = match role.stuck {
        true => |shot| shot.received,
        false => |shot| shot.consumed,
    };
    let all = messages + role.backlog;
    await_all(&hub, watched, all, reached)?;
    let after = Usage::now()?;
    let late = (hub.figures().consumers.get(role.consumers))
        .map_or(0, |late| late.stats.snapshot().consumed);
    LET_GO.store(true, Ordering::Relaxed);

    let status = hub.stop().status;
    let sources = status.sources.iter();
    let complete = sources.map(|source| source.counters.received).sum::<u64>() == all
        && (status.consumers.iter()).all(|consumer| consumer.consumed == all);
    if !complete {
        return Err(format!("hub: not each consumer consumed {all}: {status:?}"));
    }
    let samples = std::mem::take(&mut *LATENCIES.lock().unwrap_or_else(PoisonError::into_inner));
    let received = Received::since(&before, after, Latency::of(samples))?;
    Ok(Received { late, ..received })
}

fn registry() -> Registry {
    Registry::builtin().with(latency()).with(stuck())
}

/// Waits until each of these consumers has come to `goal`.
fn await_all(
    hub: &Hub,
    consumers: Range<usize>,
    goal: u64,
    reached: fn(&Snapshot) -> u64,
) -> Result {
    let consumers = &hub.figures().consumers[consumers];
    let (mut seen, mut seen_at) = (0, Instant::now());
    loop {
        let reached = (consumers.iter()).map(|consumer| reached(&consumer.stats.snapshot()));
        let least = reached.min().unwrap_or_default();
        if least >= goal {
            return Ok(());
        }
        if least > seen {
            (seen, seen_at) = (least, Instant::now());
        }
        if seen_at.elapsed() > PATIENCE || !hub.ends().is_empty() {
            return Err(format!("hub: {least} of {goal} came: {:?}", hub.status()));
        }
        sleep(Duration::from_millis(1));
    }
}

/// Waits for a line; answers no when none can come any more.
fn hear_go() -> bool {
    matches!(std::io::stdin().read_line(&mut String::new()), Ok(1..))
}

/// What this process has used.
struct Usage {
    at_ns: u64,
    cpu_seconds: f64,
    rss_bytes: u64,
}

impl Usage {
    fn now() -> Result<Self> {
        let at_ns = now_ns();
        let read = |path| std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"));
        // proc_pid_stat(5): utime and stime, in hundredths of a second, are the 14th and 15th; the
        // 2nd, in parentheses, may hold spaces.
        let stat = read("/proc/self/stat")?;
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).flat_map(str::parse::<u64>).sum();
        let status = read("/proc/self/status")?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss_kib = rss.and_then(|rss| rss.trim().strip_suffix(" kB")?.parse::<u64>().ok());
        Ok(Usage {
            at_ns,
            cpu_seconds: ticks as f64 / 100.0,
            rss_bytes: rss_kib.ok_or("/proc/self/status has no VmRSS")? * 1024,
        })
    }
}

impl Received {
    fn since(before: &Usage, after: Usage, latency: Option<Latency>) -> Result<Self> {
        Ok(Received {
            last_ns: after.at_ns,
            cpu_seconds: after.cpu_seconds - before.cpu_seconds,
            rss_bytes: after.rss_bytes.saturating_sub(before.rss_bytes),
            latency,
            late: 0,
        })
    }
}

fn now_ns() -> u64 {
    weir::stats::now_ns()
}

/// How long ago a message with this payload was published.
fn age_ns(payload: &[u8]) -> u64 {
    let published = payload
        .first_chunk()
        .map(|bytes| u64::from_le_bytes(*bytes));
    now_ns().saturating_sub(published.unwrap_or_default())
}

// ---- runs

/// A process of this program; it does not outlive the value.
struct Process {
    name: String,
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Process {
    fn start(arguments: &[String]) -> Result<Self> {
        let wrong = |error| format!("can't start {}: {error}", arguments[0]);
        let mut child = Command::new(std::env::current_exe().map_err(wrong)?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(wrong)?;
        let lines = child.stdout.take().ok_or("no standard output")?;
        Ok(Process {
            name: arguments[0].clone(),
            child,
            lines: BufReader::new(lines),
        })
    }

    /// A publisher of this load, and its endpoint.
    fn publisher(load: Load) -> Result<(Self, String)> {
        let mut arguments = vec!["publisher".to_owned()];
        arguments.extend(["--messages".into(), load.messages.to_string()]);
        arguments.extend(["--size".into(), load.size.to_string()]);
        let rate = load.rate.into_iter();
        arguments.extend(rate.flat_map(|rate| ["--rate".into(), rate.to_string()]));
        let mut publisher = Process::start(&arguments)?;
        let endpoint = publisher.hear()?;
        Ok((publisher, endpoint))
    }

    fn hear<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        let heard = self.lines.read_line(&mut line);
        if !matches!(heard, Ok(1..)) {
            return Err(format!("{} ended: {:?}", self.name, self.child.wait()));
        }
        serde_json::from_str(&line).map_err(|_| format!("{}: {}", self.name, line.trim()))
    }

    fn hear_outcome<T: DeserializeOwned>(&mut self) -> Result<T> {
        self.hear::<Result<T>>()?
    }

    /// Hears this word, or how it ended instead.
    fn hear_word(&mut self, word: &str) -> Result {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Said {
            Word(String),
            Outcome(Result),
        }
        match self.hear()? {
            Said::Word(said) if said == word => Ok(()),
            Said::Outcome(Err(error)) => Err(error),
            _ => Err(format!("{} did not say `{word}`", self.name)),
        }
    }

    fn go(&mut self) -> Result {
        let stdin = self.child.stdin.as_mut().ok_or("no standard input")?;
        writeln!(stdin, "go").map_err(|error| format!("{}: {error}", self.name))
    }

    fn signal(&self, signal: &str) -> Result {
        let pid = self.child.id().to_string();
        let kill = Command::new("kill").args(["-s", signal, &pid]).status();
        match kill {
            Ok(status) if status.success() => Ok(()),
            failed => Err(format!("kill -s {signal}: {failed:?}")),
        }
    }
}

impl Process {
    /// Ends it as a crash would.
    fn kill(&mut self) -> Result {
        let killed = self.child.kill().and_then(|()| self.child.wait());
        killed
            .map(|_| ())
            .map_err(|error| format!("can't kill {}: {error}", self.name))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Whatever it still does, nobody waits for it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Run {
    messages_per_second: f64,
    cpu_us_per_message: f64,
    rss_bytes_per_message: f64,
    latency: Option<Latency>,
    late_per_second: f64,
}

/// One run: a publisher, and a receiver with these arguments.
///
/// Where no rate is asked for, the receiver stands still until the publisher has made all messages
/// and they wait in its memory. From then on the receiver is what everything waits for; otherwise
/// it would be the publisher, which needs more time for a message than the receiver does.
fn run<A: AsRef<str>>(load: Load, receiver: &[A]) -> Result<Run> {
    let (mut publisher, endpoint) = Process::publisher(load)?;
    let mut arguments: Vec<String> = receiver
        .iter()
        .map(|argument| argument.as_ref().into())
        .collect();
    arguments.extend(["--endpoint".into(), endpoint]);
    arguments.extend(["--messages".into(), load.messages.to_string()]);
    let mut receiver = Process::start(&arguments)?;
    receiver.hear_word("ready")?;
    publisher.hear_word("subscribed")?;
    if load.rate.is_none() {
        receiver.signal("STOP")?;
        publisher.go()?;
        publisher.hear_word("sent")?;
        receiver.go()?;
        receiver.signal("CONT")?;
    } else {
        receiver.go()?;
        publisher.go()?;
    }
    let begin_ns = now_ns();
    let received: Received = receiver.hear_outcome()?;
    if load.rate.is_some() {
        publisher.hear_word("sent")?;
    }
    publisher.hear_outcome::<()>()?;
    let seconds = received.last_ns.saturating_sub(begin_ns) as f64 / 1e9;
    let messages = load.messages as f64;
    Ok(Run {
        messages_per_second: messages / seconds,
        cpu_us_per_message: received.cpu_seconds * 1e6 / messages,
        rss_bytes_per_message: received.rss_bytes as f64 / messages,
        latency: received.latency,
        late_per_second: received.late as f64 / seconds,
    })
}

/// Runs of two kinds in turns: of the bare loop and of the hub, say.
struct Pairs<R = Run>(Vec<(R, R)>);

impl<R> Pairs<R> {
    fn left(&self, of: impl Fn(&R) -> f64) -> f64 {
        median(self.0.iter().map(|(left, _)| of(left)))
    }

    fn right(&self, of: impl Fn(&R) -> f64) -> f64 {
        median(self.0.iter().map(|(_, right)| of(right)))
    }

    /// The median of the ratios, not the ratio of the medians: what disturbs a pair disturbs both
    /// of it.
    fn ratio(&self, of: impl Fn(&R) -> f64) -> f64 {
        median(self.0.iter().map(|(left, right)| of(right) / of(left)))
    }
}

fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    match numbers.len() % 2 {
        _ if numbers.is_empty() => f64::NAN,
        1 => numbers[middle],
        _ => (numbers[middle - 1] + numbers[middle]) / 2.0,
    }
}

// ---- the report

/// A line of the table.
#[derive(Serialize)]
struct Row {
    what: String,
    columns: [&'static str; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    right: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Target>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip)]
    digits: usize,
}

#[derive(Serialize)]
struct Target {
    text: String,
    reached: bool,
}

impl Row {
    fn new(what: String, digits: usize) -> Self {
        Row {
            what,
            columns: COLUMNS,
            left: None,
            right: None,
            ratio: None,
            target: None,
            error: None,
            digits,
        }
    }

    fn paired<R>(what: String, digits: usize, pairs: &Pairs<R>, of: impl Fn(&R) -> f64) -> Self {
        Row {
            left: Some(pairs.left(&of)),
            right: Some(pairs.right(&of)),
            ratio: Some(pairs.ratio(&of)),
            ..Row::new(what, digits)
        }
    }

    fn failed(what: String, error: String) -> Self {
        Row {
            error: Some(error),
            ..Row::new(what, 0)
        }
    }

    fn columns(self, columns: [&'static str; 2]) -> Self {
        Row { columns, ..self }
    }

    fn at_least(self, bound: f64) -> Self {
        let reached = self.ratio.is_some_and(|ratio| ratio >= bound);
        self.target(format!("ratio >= {bound}"), reached)
    }

    fn target(mut self, text: String, reached: bool) -> Self {
        self.target = Some(Target { text, reached });
        self
    }
}

#[derive(Serialize)]
struct Report {
    date: String,
    cpu: String,
    cores: usize,
    pairs: usize,
    quick: bool,
    rows: Vec<Row>,
}

fn report(options: &Options) -> ExitCode {
    let wanted = |part| options.only.is_empty() || options.only.contains(&part);
    let mut bench = Bench {
        quick: options.quick,
        pairs: if options.quick {
            1
        } else {
            options.pairs.max(1)
        },
        dir: options.dir.clone(),
        rows: Vec::new(),
    };
    if wanted(Part::Throughput) {
        bench.throughput();
    }
    if wanted(Part::Latency) {
        bench.latency();
    }
    if wanted(Part::Memory) {
        bench.memory();
    }
    if wanted(Part::Journal) {
        bench.journal();
    }
    if wanted(Part::CatchUp) {
        bench.catch_up();
    }
    if wanted(Part::Meanwhile) {
        bench.meanwhile();
    }
    if wanted(Part::Append) {
        bench.append();
    }
    if wanted(Part::Backlog) {
        bench.backlog();
    }
    if wanted(Part::Start) {
        bench.start();
    }
    if wanted(Part::Watched) {
        bench.watched();
    }
    if options.quick {
        (bench.rows.iter_mut()).for_each(|row| row.target = None); // too short to say
    }
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find(|line| line.starts_with("model name"));
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let report = Report {
        date: date[..10].into(),
        cpu: cpu
            .and_then(|line| line.split_once(": "))
            .map_or("unknown", |(_, it)| it)
            .into(),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        pairs: bench.pairs,
        quick: bench.quick,
        rows: bench.rows,
    };
    match options.json {
        true => say(&report),
        false => print!("{}", table(&report)),
    }
    match report.rows.iter().any(|row| row.error.is_some()) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    }
}

fn table(report: &Report) -> String {
    let mut out = format!(
        "weir from end to end: {}, {}, {} cores; medians of {} pairs{}\n\n",
        report.date,
        report.cpu,
        report.cores,
        report.pairs,
        if report.quick {
            "; QUICK: a smoke run"
        } else {
            ""
        },
    );
    let line = |what: &str, left: &str, right: &str, ratio: &str, target: &str| {
        format!("{what:48} {left:>10} {right:>10} {ratio:>6}  {target}")
            .trim_end()
            .to_owned()
            + "\n"
    };
    let mut columns = None;
    for row in &report.rows {
        if columns.replace(row.columns) != Some(row.columns) {
            let [left, right] = row.columns;
            out += &line("", left, right, "ratio", "target");
        }
        if let Some(error) = &row.error {
            out += &format!("{:48} ERROR: {error}\n", row.what);
            continue;
        }
        let number = |n: Option<f64>, digits| n.map_or(String::new(), |n| format!("{n:.digits$}"));
        let target = row.target.as_ref().map_or(String::new(), |target| {
            format!(
                "{}: {}",
                target.text,
                if target.reached { "reached" } else { "MISSED" }
            )
        });
        let [left, right] = [row.left, row.right].map(|it| number(it, row.digits));
        out += &line(&row.what, &left, &right, &number(row.ratio, 2), &target);
    }
    out
}

/// A hub whose throughput is measured.
struct HubCase {
    consumers: usize,
    block: bool,
    /// The share of the bare loop's rate that it should reach.
    at_least: Option<f64>,
}

impl HubCase {
    fn words(&self) -> String {
        let block = if self.block { ", block" } else { "" };
        format!("consumers: {}{block}", self.consumers)
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            "hub".into(),
            "--consumers".into(),
            self.consumers.to_string(),
        ];
        arguments.extend(self.block.then(|| "--block".into()));
        arguments
    }
}

struct Bench {
    quick: bool,
    pairs: usize,
    /// Where journals are written.
    dir: PathBuf,
    rows: Vec<Row>,
}

impl Bench {
    /// One pair: the bare loop, then the hub.
    fn pair<A: AsRef<str>>(
        &self,
        what: &str,
        number: usize,
        load: Load,
        bare: &[&str],
        hub: &[A],
    ) -> Result<(Run, Run)> {
        eprintln!("{what}: pair {} of {}", number + 1, self.pairs);
        Ok((run(load, bare)?, run(load, hub)?))
    }

    fn throughput(&mut self) {
        for size in SIZES {
            let load = Load {
                messages: match (self.quick, size) {
                    (true, _) => 100_000,
                    (false, ..500) => 1_500_000,
                    (false, _) => 600_000,
                },
                size,
                rate: None,
            };
            // All of them in turns: what changes with time changes for all.
            let mut all: Vec<Result<Vec<(Run, Run)>>> =
                HUBS.iter().map(|_| Ok(Vec::new())).collect();
            for number in 0..self.pairs {
                for (hub, pairs) in HUBS.iter().zip(&mut all) {
                    let what = format!("throughput, {size} bytes, {}", hub.words());
                    if let Ok(so_far) = pairs {
                        match self.pair(&what, number, load, &["bare"], &hub.arguments()) {
                            Ok(pair) => so_far.push(pair),
                            Err(error) => *pairs = Err(error),
                        }
                    }
                }
            }
            let all: Vec<Result<Pairs>> = all.into_iter().map(|pairs| pairs.map(Pairs)).collect();
            self.rows_of_throughput(size, &all);
        }
    }

    fn rows_of_throughput(&mut self, size: usize, all: &[Result<Pairs>]) {
        for (hub, pairs) in HUBS.iter().zip(all) {
            let what = format!("messages/s, {size} bytes, {}", hub.words());
            let row = match pairs {
                Ok(pairs) => Row::paired(what, 0, pairs, |run| run.messages_per_second),
                Err(error) => Row::failed(what, error.clone()),
            };
            self.rows.push(match (hub.at_least, &row.error) {
                (Some(bound), None) => row.at_least(bound),
                _ => row,
            });
        }
        let mut points = Vec::new();
        for (hub, pairs) in HUBS.iter().zip(all) {
            let Ok(pairs) = pairs else { continue };
            let what = format!("CPU us/message, {size} bytes, {}", hub.words());
            let row = Row::paired(what, 3, pairs, |run| run.cpu_us_per_message);
            let point =
                (row.right.filter(|_| !hub.block)).map(|us| (hub.consumers as f64, us * 1000.0));
            points.extend(point);
            self.rows.push(row);
        }
        if points.len() == HUBS.iter().filter(|hub| !hub.block).count() {
            let ns = slope(&points);
            let row = Row::new(
                format!("CPU ns/message, {size} bytes, one more consumer"),
                0,
            );
            let row = row.target("<= 60".into(), ns <= 60.0);
            self.rows.push(Row {
                right: Some(ns),
                ..row
            });
        }
    }

    fn latency(&mut self) {
        let load = Load {
            messages: if self.quick { 10_000 } else { 40_000 },
            size: SIZES[0],
            rate: Some(10_000.0),
        };
        let what = format!("latency us at 10,000 messages/s, {} bytes", load.size);
        let pairs: Result<Vec<_>> = (0..self.pairs)
            .map(|n| {
                self.pair(
                    &what,
                    n,
                    load,
                    &["bare", "--latency"],
                    &["hub", "--latency"],
                )
            })
            .collect();
        let pairs = match pairs {
            Ok(pairs) => Pairs(pairs),
            Err(error) => return self.rows.push(Row::failed(what, error)),
        };
        type Percentile = (&'static str, fn(Latency) -> u64);
        let percentiles: [Percentile; 3] = [
            ("p50", |latency| latency.p50_ns),
            ("p99", |latency| latency.p99_ns),
            ("p99.9", |latency| latency.p999_ns),
        ];
        for (name, of) in percentiles {
            let of = |run: &Run| {
                run.latency
                    .map_or(f64::NAN, |latency| of(latency) as f64 / 1000.0)
            };
            let row = Row::paired(format!("{what}, {name}"), 1, &pairs, of);
            let reached = row.ratio.is_some_and(|ratio| ratio <= 2.0);
            self.rows.push(match name {
                "p99" => row.target("ratio <= 2".into(), reached),
                _ => row,
            });
        }
        let what = format!("CPU us/message at 10,000 messages/s, {} bytes", load.size);
        self.rows
            .push(Row::paired(what, 1, &pairs, |run| run.cpu_us_per_message));
    }

    fn memory(&mut self) {
        // In batches, and (200 bytes only) so slowly that most come one by one.
        let loads = [(SIZES[0], 100_000), (SIZES[1], 100_000), (SIZES[0], 10_000)];
        for (size, rate) in loads {
            for queues in QUEUES {
                let (messages, batches) = match rate {
                    100_000 => (1_000_000, ""),
                    _ => (100_000, ", one by one"),
                };
                let load = Load {
                    messages: if self.quick { messages / 10 } else { messages },
                    size,
                    rate: Some(f64::from(rate)),
                };
                let what = format!("bytes/waiting message over {size}, queues: {queues}{batches}");
                eprintln!("{what}");
                let hub = ["hub", "--stuck", "--consumers", &queues.to_string()];
                self.rows.push(match run(load, &hub) {
                    Ok(run) => {
                        let over = run.rss_bytes_per_message - size as f64;
                        let row = Row::new(what, 0).target("<= 150".into(), over <= 150.0);
                        Row {
                            right: Some(over),
                            ..row
                        }
                    }
                    Err(error) => Row::failed(what, error),
                });
            }
        }
    }
}

/// The slope of the straight line through these points, by least squares.
fn slope(points: &[(f64, f64)]) -> f64 {
    let n = points.len() as f64;
    let mean_x = points.iter().map(|(x, _)| x).sum::<f64>() / n;
    let mean_y = points.iter().map(|(_, y)| y).sum::<f64>() / n;
    let along = points.iter().map(|(x, y)| (x - mean_x) * (y - mean_y));
    let across = points.iter().map(|(x, _)| (x - mean_x).powi(2));
    along.sum::<f64>() / across.sum::<f64>()
}
