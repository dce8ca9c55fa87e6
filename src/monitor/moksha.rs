//! The monitoring socket of Moksha and fedmsg: what `fedmsg-check` and Nagios checks read.
//!
//! A ZeroMQ PUB socket that sends one JSON frame an interval, to whoever is connected. Differences
//! (`headcount_in`, `headcount_out`, `exceptions`, `times`) are from one frame to the next and the
//! same for all readers: Moksha reset its counters for them, here this exporter remembers what it
//! has told.
//!
//! 1. Nobody's socket is taken away: where another process listens, the hub does not start. (A
//!    second Moksha hub took over the first one's, and neither said so.)
//! 2. What a dead hub left behind is replaced; a file that is no socket is not.
//! 3. From its first moment on, the socket's file has the mode of the configuration.
//! 4. At the end the hub removes its own file and nobody else's.
//! 5. No reader holds up the monitor's thread: frames for one who does not read are dropped.
//!
//! libzmq alone would break the first three: it deletes what is at the path, and makes the file by
//! the umask, which is the whole process's (`ipc_listener.cpp`). So it binds inside a fresh
//! directory that nobody else may enter, and the file is moved from there when it is ready.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata, Permissions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ::zmq::{Context, Socket, SocketType};
use serde::{Deserialize, Serialize};
use tracing::warn;
use weir_consumer::endpoint::{self, resolved};
use weir_consumer::settings::{self, Mistake, duration};

use super::Exporter;
use super::sample::{ConsumerSample, ProducerSample, Sample};
use crate::backend::zmq::explain;
use crate::forecast::{Drain, Health};
use crate::measured::{Measurement, Value};
use crate::stats::{Reason, Snapshot, State};

/// Frames that wait for a slow reader; further ones are dropped.
const FRAMES_MAX: i32 = 8;
/// Times in a frame, as Moksha has it.
const TIMES_MAX: usize = 1024;
/// What the path of a socket may be (107 bytes, unix(7)), less what the private directory takes.
const PATH_MAX: usize = 99;
/// How long another hub that is starting may have the directory locked.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
const LOCK_AGAIN: Duration = Duration::from_millis(10);

/// The `[moksha]` section; `src/sample.toml` explains each key.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Settings {
    pub socket: String,
    pub mode: String,
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            socket: "ipc:///run/weir/monitoring.socket".into(),
            mode: "0600".into(),
            interval: Duration::from_secs(5),
        }
    }
}

impl Settings {
    /// Reads the section.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(section: &settings::Settings) -> Result<Self, Vec<Mistake>> {
        let (settings, mut mistakes) = section.parse_most::<Settings>();
        let Some(settings) = settings else {
            return Err(mistakes);
        };
        if let Err(text) = check_socket(&settings.socket) {
            mistakes.push(section.mistake_at("socket", text));
        }
        match mode(&settings.mode) {
            None => {
                let text = "expected an octal mode such as \"0600\" or \"0660\"";
                mistakes.push(section.mistake_at("mode", text));
            }
            Some(mode) if mode & 0o222 == 0 => {
                let text = "nobody could read the socket: connecting takes the right to write, \
                            as in \"0600\" or \"0660\"";
                mistakes.push(section.mistake_at("mode", text));
            }
            Some(_) => {}
        }
        if settings.interval < Duration::from_millis(100) {
            mistakes.push(section.mistake_at("interval", "expected at least 100ms"));
        }
        match mistakes.is_empty() {
            true => Ok(settings),
            false => Err(mistakes),
        }
    }
}

fn check_socket(endpoint: &str) -> Result<(), String> {
    let wrong = |what: &str| {
        Err(format!(
            "`{endpoint}` {what}; write it such as \"ipc:///run/weir/monitoring.socket\" or \
             \"tcp://127.0.0.1:9941\""
        ))
    };
    if let Some(path) = endpoint.strip_prefix("ipc://") {
        let named = Path::new(path).file_name().is_some() && !path.ends_with('/');
        return match path {
            _ if path.contains('\0') => wrong("has a NUL in its path"),
            _ if !path.starts_with('/') || !named => wrong("is no absolute path of a file"),
            _ if path.len() > PATH_MAX => {
                wrong(&format!("has a path of more than {PATH_MAX} bytes"))
            }
            _ => Ok(()),
        };
    }
    if !endpoint.starts_with("tcp://") {
        return wrong("is neither ipc:// nor tcp://");
    }
    if endpoint.ends_with(":*") || endpoint.ends_with(":0") {
        return wrong("has no port that readers could know");
    }
    endpoint::check(endpoint)
}

/// `0600` or `600`: the rights of a file and nothing else.
fn mode(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let mode = u32::from_str_radix(text, 8).ok()?;
    (digits && (3..=4).contains(&text.len()) && mode <= 0o777).then_some(mode)
}

/// Sends the figures of each interval.
pub(crate) struct Moksha {
    frames: Frames,
    interval: Duration,
    /// It goes before the socket closes: nobody can have replaced it until then.
    file: Option<SocketFile>,
    socket: Socket,
}

impl Moksha {
    /// Listens for readers.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub(crate) fn open(settings: &Settings) -> Result<Self, String> {
        let set_up = || -> Result<Socket, ::zmq::Error> {
            // A context of its own: when it has ended, the address is free again.
            let socket = Context::new().socket(SocketType::PUB)?;
            socket.set_linger(0)?;
            socket.set_sndhwm(FRAMES_MAX)?;
            Ok(socket)
        };
        let socket = set_up().map_err(|error| format!("can't set up a ZeroMQ socket: {error}"))?;
        let endpoint = &settings.socket;
        let file = match endpoint.strip_prefix("ipc://") {
            Some(path) => {
                let mode = mode(&settings.mode).unwrap_or(0o600); // it was checked
                let listening = SocketFile::listen(&socket, Path::new(path), mode);
                Some(listening.map_err(|why| format!("moksha.socket: {why}"))?)
            }
            None => {
                (socket.bind(&resolved(endpoint))).map_err(|error| {
                    format!("moksha.socket: {}", explain("bind to", endpoint, error))
                })?;
                None
            }
        };
        Ok(Moksha {
            frames: Frames::default(),
            interval: settings.interval,
            file,
            socket,
        })
    }
}

impl Exporter for Moksha {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn export(&mut self, sample: &Sample) {
        if let Some(file) = &mut self.file {
            file.watch();
        }
        let Some(frame) = self.frames.next(sample) else {
            return;
        };
        // The type of socket that drops what is not taken, and never waits.
        let sent =
            (serde_json::to_vec(&frame).map_err(|error| error.to_string())).and_then(|json| {
                (self.socket.send(json, ::zmq::DONTWAIT)).map_err(|error| error.to_string())
            });
        if let Err(error) = sent {
            warn!(error, "a frame for the monitoring socket is lost");
        }
    }
}

/// The file of a socket that listens here.
struct SocketFile {
    path: PathBuf,
    made: (u64, u64),
    /// It is gone, or somebody else's, and that has been said.
    told: bool,
}

/// What tells a file from others for as long as it is there.
fn identity(file: &Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl SocketFile {
    fn listen(socket: &Socket, path: &Path, mode: u32) -> Result<Self, String> {
        let at = path.display();
        let wrong = |what: &str, error| format!("can't {what} {at}: {error}");
        let parent = path.parent().unwrap_or(Path::new("/"));
        let dir = File::open(parent).map_err(|error| {
            let parent = parent.display();
            let remedy = match error.kind() {
                ErrorKind::NotFound => {
                    "; create it first, for the hub's user (with systemd: RuntimeDirectory=)"
                }
                _ => "",
            };
            format!("can't listen on {at}: can't open the directory {parent}: {error}{remedy}")
        })?;
        // Of two hubs that start at once, one looks after the other has finished.
        lock(&dir).map_err(|why| format!("can't lock the directory of {at}: {why}"))?;
        make_way(path)?;

        let private = tempfile::Builder::new()
            .prefix(".")
            .rand_bytes(6)
            .permissions(Permissions::from_mode(0o700))
            .tempdir_in(parent)
            .map_err(|error| {
                let remedy = "give moksha.socket a path in a directory that the hub may write";
                format!("can't listen on {at}: {error}; {remedy}")
            })?;
        let made = private.path().join("s");
        (socket.bind(&format!("ipc://{}", made.display())))
            .map_err(|error| format!("can't listen on {at}: {error}"))?;
        fs::set_permissions(&made, Permissions::from_mode(mode))
            .map_err(|error| wrong("set the mode of", error))?;
        let file = fs::symlink_metadata(&made).map_err(|error| wrong("make", error))?;
        fs::rename(&made, path).map_err(|error| wrong("make", error))?;
        Ok(SocketFile {
            path: path.to_owned(),
            made: identity(&file),
            told: false,
        })
    }

    fn is_here(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|file| identity(&file) == self.made)
    }

    /// Says once when somebody has taken it away.
    fn watch(&mut self) {
        if !self.told && !self.is_here() {
            let path = self.path.display();
            warn!(
                %path,
                "the monitoring socket is gone or replaced by another program; readers that \
                 connect from now on do not reach this hub until it is started again"
            );
            self.told = true;
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.is_here()
            && let Err(error) = fs::remove_file(&self.path)
        {
            let path = self.path.display();
            warn!(%path, %error, "can't remove the monitoring socket; the next start will");
        }
    }
}

fn lock(dir: &File) -> Result<(), String> {
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        match dir.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if Instant::now() < patience => {
                std::thread::sleep(LOCK_AGAIN);
            }
            Err(TryLockError::WouldBlock) => {
                return Err(
                    "another process has it locked; give moksha.socket a directory of its \
                            own"
                    .into(),
                );
            }
            Err(TryLockError::Error(error)) => return Err(error.to_string()),
        }
    }
}

/// Makes sure that what is at the path, if anything is, may be replaced.
fn make_way(path: &Path) -> Result<(), String> {
    let at = path.display();
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => {}
        Ok(_) => {
            return Err(format!(
                "{at} is there and is no socket; remove it, or give moksha.socket another path"
            ));
        }
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("can't look at {at}: {error}")),
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(format!(
            "another process, perhaps another hub, listens on {at}; stop that one, or give this \
             hub a moksha.socket of its own"
        )),
        // Nobody listens: it was left behind.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(format!(
            "can't tell whether another hub listens on {at}: {error}; if none does, remove the \
             file"
        )),
    }
}

/// Makes a frame of each sample.
#[derive(Default)]
struct Frames {
    started: bool,
    /// What has been told of each consumer.
    told: Vec<Told>,
}

#[derive(Default)]
struct Told {
    received: u64,
    taken: u64,
    failed: u64,
    times: Vec<u64>,
}

impl Frames {
    /// The next frame; none for the first sample, taken at the start: the first frame is sent an
    /// interval later and tells what happened in it.
    fn next<'s>(&mut self, sample: &'s Sample) -> Option<Frame<'s>> {
        if !std::mem::replace(&mut self.started, true) {
            return None;
        }
        self.told.resize_with(sample.consumers.len(), Told::default);
        let mut metrics: BTreeMap<&str, Metrics<'s>> = BTreeMap::new();
        for series in &sample.measured {
            let own = metrics.entry(&series.consumer).or_default();
            own.insert(series_name(series), Measure(&series.value));
        }
        Some(Frame {
            consumers: (sample.consumers.iter().zip(&mut self.told))
                .map(|(consumer, told)| {
                    let metrics = metrics.remove(&*consumer.name).unwrap_or_default();
                    ConsumerFrame::new(consumer, told, metrics)
                })
                .collect(),
            producers: sample.producers.iter().map(ProducerFrame::new).collect(),
        })
    }
}

/// What is sent.
#[derive(Serialize)]
struct Frame<'s> {
    consumers: Vec<ConsumerFrame<'s>>,
    producers: Vec<ProducerFrame<'s>>,
}

#[derive(Serialize)]
struct ConsumerFrame<'s> {
    name: &'s str,
    module: String,
    topic: Topic<'s>,
    initialized: bool,
    jsonify: bool,
    backlog: u64,
    headcount_in: u64,
    headcount_out: u64,
    exceptions: u64,
    times: Vec<f32>,
    // From here on: what Moksha does not say.
    lag: f64,
    health: Health,
    drain: Drain,
    metrics: Metrics<'s>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Topic<'s> {
    One(&'s str),
    Several(&'s [String]),
}

/// Its author's own metrics, since the start.
type Metrics<'s> = BTreeMap<String, Measure<'s>>;

struct Measure<'s>(&'s Value);

#[derive(Serialize)]
struct ProducerFrame<'s> {
    name: &'s str,
    module: String,
    initialized: bool,
    exceptions: u64,
    frequency: f64,
    now: bool,
    last_ran: Option<f64>,
}

impl<'s> ConsumerFrame<'s> {
    fn new(consumer: &'s ConsumerSample, told: &mut Told, metrics: Metrics<'s>) -> Self {
        let shot = &consumer.shot;
        // Messages that go back to wait for a retry are not taken twice.
        let taken = taken(shot).max(told.taken);
        let mut times = consumer.stats.times_since(&mut told.times);
        if times.len() > TIMES_MAX {
            // There are several workers: some of the times of each.
            let every = times.len().div_ceil(TIMES_MAX);
            times = times.into_iter().step_by(every).collect();
        }
        let frame = ConsumerFrame {
            name: &consumer.name,
            module: module(&consumer.kind),
            topic: match consumer.topics.as_slice() {
                [topic] => Topic::One(topic),
                topics => Topic::Several(topics),
            },
            initialized: !matches!(
                shot.state,
                State::Stopped | State::Halted | State::Rebuilding
            ),
            jsonify: true,
            backlog: shot.waiting,
            headcount_in: shot.received.saturating_sub(told.received),
            headcount_out: taken - told.taken,
            exceptions: shot.failed.saturating_sub(told.failed),
            times,
            lag: shot.lag.as_secs_f64(),
            health: consumer.forecast.health,
            drain: consumer.forecast.drain,
            metrics,
        };
        told.received = shot.received;
        told.taken = taken;
        told.failed = shot.failed;
        frame
    }
}

/// Messages that the consumer has had: what it has, and what ended with it.
fn taken(shot: &Snapshot) -> u64 {
    let verdicts = [Reason::Refused, Reason::DeadLetter, Reason::Attempts];
    let dropped: u64 = verdicts.map(|reason| shot.dropped.of(reason)).iter().sum();
    shot.consumed + shot.dead_lettered + dropped + shot.in_flight
}

impl<'s> ProducerFrame<'s> {
    fn new(producer: &'s ProducerSample) -> Self {
        let shot = &producer.shot;
        ProducerFrame {
            name: &producer.name,
            module: module(&producer.kind),
            initialized: true, // or the hub would not have started
            exceptions: shot.failed_in_a_row,
            frequency: producer.interval.as_secs_f64(),
            now: false,
            last_ran: match shot.last_ran_ns {
                0 => None,
                ns => Some(Duration::from_nanos(ns).as_secs_f64()),
            },
        }
    }
}

fn module(kind: &str) -> String {
    format!("weir.{kind}")
}

/// `posts_total`, or `posts_total{channel="weir"}`.
fn series_name(series: &Measurement) -> String {
    let labels = series.labels.iter();
    let labels: Vec<String> = labels
        .map(|(key, value)| format!("{key}={value:?}"))
        .collect();
    match labels.is_empty() {
        true => series.name.clone(),
        false => format!("{}{{{}}}", series.name, labels.join(",")),
    }
}

/// A number, or `{"count", "sum"}` of a histogram.
impl Serialize for Measure<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::Number(number) => to.serialize_f64(*number),
            Value::Counts(counts) => {
                to.collect_map([("count", counts.count() as f64), ("sum", counts.sum)])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::{ConsumerFigures, Figures, ProducerFigures};
    use crate::producer::ProducerStats;
    use crate::stats::{Settled, Stats};
    use metrics::with_local_recorder;
    use serde_json::json;
    use std::os::unix::net::UnixListener;
    use std::sync::Arc;

    fn figures(consumers: Vec<ConsumerFigures>) -> Figures {
        Figures::new("fedora", consumers)
    }

    fn consumer(topics: &[&str], stats: &Arc<Stats>) -> ConsumerFigures {
        let topics = topics.iter().map(ToString::to_string).collect();
        ConsumerFigures::new("irc", "log", topics, 100, stats.clone())
    }

    /// Frames of a hub that has started.
    fn running(figures: &Figures) -> Frames {
        let mut frames = Frames::default();
        assert!(frames.next(&figures.sample()).is_none());
        frames
    }

    fn frame(frames: &mut Frames, figures: &Figures) -> serde_json::Value {
        let sample = figures.sample();
        let json = serde_json::to_vec(&frames.next(&sample).unwrap()).unwrap();
        serde_json::from_slice(&json).unwrap()
    }

    #[test]
    fn differences_are_from_one_frame_to_the_next_and_gauges_are_not() {
        let stats = Arc::new(Stats::new(1));
        let figures = figures(vec![consumer(&["org.example."], &stats)]);
        let mut frames = running(&figures);
        let worker = stats.worker(0);
        let timed = |ms| worker.timed(1, Duration::ZERO, Duration::from_millis(ms), 1);
        stats.received(10, 100, 1);
        worker.settle(Settled::Consumed, 2, 20);
        worker.settle(Settled::Dropped(Reason::Refused), 1, 10);
        worker.hold(1, 1);
        worker.failed();
        timed(250);
        timed(500);

        let first = frame(&mut frames, &figures);
        let own = &first["consumers"][0];
        let told = |own: &serde_json::Value| {
            ["backlog", "headcount_in", "headcount_out", "exceptions"]
                .map(|key| own[key].as_u64().unwrap())
        };
        // 10 came, 3 have ended and 1 is in work.
        assert_eq!(told(own), [6, 10, 4, 1]);
        assert_eq!(own["times"], json!([0.25, 0.5]));
        assert_eq!(own["name"], "irc");
        assert_eq!(own["module"], "weir.log");
        assert_eq!(own["topic"], "org.example.");
        assert_eq!(own["initialized"], true);
        assert_eq!(own["jsonify"], true);
        assert!(own["lag"].as_f64().unwrap() > 0.0);
        assert!(own["health"].is_string(), "{own}");
        assert!(!own["drain"].is_null(), "{own}");
        assert_eq!(first["producers"], json!([]));

        // The one in work goes back, waits and is taken again; an operator has one skipped.
        worker.in_hand();
        assert_eq!(
            told(&frame(&mut frames, &figures)["consumers"][0]),
            [7, 0, 0, 0]
        );
        worker.hold(1, 1);
        stats.received(2, 20, 1);
        stats.dropped(Reason::Skipped, 1, 10);
        timed(125);
        let third = frame(&mut frames, &figures);
        assert_eq!(told(&third["consumers"][0]), [7, 2, 0, 0]);
        assert_eq!(third["consumers"][0]["times"], json!([0.125]));

        worker.settle(Settled::DeadLettered, 1, 10);
        worker.hold(1, 1);
        let fourth = frame(&mut frames, &figures);
        assert_eq!(told(&fourth["consumers"][0]), [6, 0, 1, 0]);
        // Telling has changed nothing.
        assert_eq!(stats.snapshot().received, 12);
        assert_eq!(stats.snapshot().failed, 1);
    }

    #[test]
    fn a_consumer_that_does_not_work_is_not_initialized() {
        let stats = Arc::new(Stats::new(1));
        let figures = figures(vec![consumer(&["a", "b"], &stats)]);
        let mut frames = running(&figures);
        let mut initialized = || {
            let frame = frame(&mut frames, &figures);
            assert_eq!(frame["consumers"][0]["topic"], json!(["a", "b"]));
            frame["consumers"][0]["initialized"].as_bool().unwrap()
        };
        for state in State::ALL {
            stats.worker(0).state(state);
            let works = !["stopped", "halted", "rebuilding"].contains(&state.as_str());
            assert_eq!(initialized(), works, "{}", state.as_str());
        }
        stats.worker(0).state(State::Idle);
        assert!(initialized());
        stats.halt();
        assert!(!initialized());
    }

    #[test]
    fn times_are_bounded_and_of_all_workers() {
        let stats = Arc::new(Stats::new(3));
        let figures = figures(vec![consumer(&[""], &stats)]);
        let mut frames = running(&figures);
        for (worker, seconds) in stats.workers().iter().zip(1..) {
            for _ in 0..2000 {
                worker.timed(1, Duration::ZERO, Duration::from_secs(seconds), 1);
            }
        }
        let frame = frame(&mut frames, &figures);
        let times = frame["consumers"][0]["times"].as_array().unwrap();
        assert_eq!(times.len(), 1024);
        for seconds in [1.0, 2.0, 3.0] {
            let its = times.iter().filter(|time| **time == json!(seconds)).count();
            assert!((341..=342).contains(&its), "{its}");
        }
    }

    #[test]
    fn what_consumers_measure_is_told_with_them() {
        let figures = figures(vec![consumer(&[""], &Arc::new(Stats::new(1)))]);
        let mut frames = running(&figures);
        with_local_recorder(&figures.measured.recorder("irc"), || {
            metrics::counter!("posts", "channel" => "#\"weir").increment(2);
            metrics::gauge!("balance").set(-3.5);
            metrics::gauge!("unknown").set(f64::NAN);
            metrics::histogram!("sizes").record(7.0);
        });
        let frame = frame(&mut frames, &figures);
        let metrics = &frame["consumers"][0]["metrics"];
        let expected = json!({
            "balance": -3.5,
            "posts_total{channel=\"#\\\"weir\"}": 2.0,
            "sizes": {"count": 1.0, "sum": 7.0},
            "unknown": null,
        });
        assert_eq!(metrics, &expected);
    }

    #[test]
    fn producers_are_told_as_moksha_does() {
        let stats = Arc::new(ProducerStats::default());
        let mut figures = figures(Vec::new());
        figures.producers.push(ProducerFigures {
            name: "beat".into(),
            kind: "heartbeat".into(),
            interval: Duration::from_millis(1500),
            stats,
        });
        let mut frames = running(&figures);
        let expected = json!({
            "name": "beat", "module": "weir.heartbeat", "initialized": true, "exceptions": 0,
            "frequency": 1.5, "now": false, "last_ran": null,
        });
        assert_eq!(frame(&mut frames, &figures)["producers"], json!([expected]));
        let mut sample = (*figures.sample()).clone();
        sample.producers[0].shot.failed_in_a_row = 3;
        sample.producers[0].shot.last_ran_ns = 1_700_000_000_250_000_000;
        let frame = serde_json::to_value(frames.next(&sample).unwrap()).unwrap();
        assert_eq!(frame["producers"][0]["exceptions"], 3);
        assert_eq!(frame["producers"][0]["last_ran"], 1_700_000_000.25);
    }

    #[test]
    fn all_mistakes_of_the_section_are_told_at_once() {
        let mistakes = |toml: &str| -> Vec<String> {
            let section = settings::Settings::from_toml(toml, "weir.toml").unwrap();
            let mistakes = Settings::from_settings(&section).err().unwrap_or_default();
            mistakes.iter().map(ToString::to_string).collect()
        };
        let all = mistakes("socket = 'udp://a:1'\nmode = '0o600'\ninterval = '1ms'");
        assert_eq!(all.len(), 3, "{all:?}");
        for (told, key) in all.iter().zip(["socket", "mode", "interval"]) {
            assert!(told.contains(key), "{told}");
        }
        for right in ["600", "0600", "0660", "0222", "777"] {
            assert_eq!(mistakes(&format!("mode = '{right}'")), [""; 0]);
        }
        for wrong in ["", "6", "+600", "1777", "00600", "0680", "0440", "rw-"] {
            assert_eq!(mistakes(&format!("mode = '{wrong}'")).len(), 1, "{wrong}");
        }
        for right in ["ipc:///a", "tcp://*:1", "tcp://localhost:9941"] {
            assert_eq!(mistakes(&format!("socket = '{right}'")), [""; 0]);
        }
        let long = format!("ipc:///{}", "a".repeat(PATH_MAX));
        let wrong = [
            "",
            "ipc://",
            "ipc://a",
            "ipc:///",
            "ipc:///a/",
            "ipc:///a/..",
            "ipc://@a",
            "ipc://*",
            "inproc://a",
            "tcp://:1",
            "tcp://h",
            "tcp://h:*",
            "tcp://h:0",
            "tcp://h:65536",
            &long,
        ];
        for wrong in wrong {
            assert_eq!(mistakes(&format!("socket = '{wrong}'")).len(), 1, "{wrong}");
        }
    }

    fn open(path: &Path) -> Result<Moksha, String> {
        Moksha::open(&Settings {
            socket: format!("ipc://{}", path.display()),
            mode: "0642".into(),
            ..Settings::default()
        })
    }

    /// What is in a directory.
    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        entries
            .map(|entry| name(entry).into_string().unwrap())
            .collect()
    }

    #[test]
    fn the_sockets_file_has_the_configured_mode_and_is_removed_at_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let open = open(&path).unwrap();
        let file = fs::symlink_metadata(&path).unwrap();
        assert!(file.file_type().is_socket());
        assert_eq!(file.permissions().mode() & 0o7777, 0o642);
        assert_eq!(names(dir.path()), ["socket"]);
        drop(open);
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn nobodys_socket_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let first = open(&path).unwrap();
        let refusal = open(&path).err().unwrap();
        assert!(refusal.contains("another hub, listens on"), "{refusal}");
        assert!(refusal.contains(&*path.to_string_lossy()), "{refusal}");
        UnixStream::connect(&path).unwrap();
        drop(first);
        // The end of the first one is the end of it: what is refused now is somebody else's.
        let other = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        let refusal = open(&path).err().unwrap();
        assert!(refusal.contains("can't tell whether"), "{refusal}");
        drop(other);
        open(&path).unwrap();
    }

    #[test]
    fn what_a_dead_hub_left_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(names(dir.path()), ["socket"]);
        let hub = open(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(hub);

        fs::write(&path, "valuable").unwrap();
        let refusal = open(&path).err().unwrap();
        assert!(refusal.contains("is no socket"), "{refusal}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "valuable");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let refusal = open(&link).err().unwrap();
        assert!(refusal.contains("is no socket"), "{refusal}");
    }

    #[test]
    fn somebody_elses_file_is_noticed_and_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let mut hub = open(&path).unwrap();
        let told = |hub: &mut Moksha| {
            let file = hub.file.as_mut().unwrap();
            file.watch();
            file.told
        };
        assert!(!told(&mut hub));
        // As Moksha does it.
        fs::remove_file(&path).unwrap();
        let other = UnixListener::bind(&path).unwrap();
        assert!(told(&mut hub));
        drop(hub);
        UnixStream::connect(&path).unwrap();
        drop(other);
    }

    #[test]
    fn of_hubs_that_start_at_once_one_has_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let opened: Vec<_> = std::thread::scope(|scope| {
            let hubs: Vec<_> = (0..8).map(|_| scope.spawn(|| open(&path))).collect();
            hubs.into_iter().map(|hub| hub.join().unwrap()).collect()
        });
        let winners: Vec<_> = opened.iter().flatten().collect();
        assert_eq!(winners.len(), 1);
        assert!(winners[0].file.as_ref().unwrap().is_here());
        assert_eq!(names(dir.path()), ["socket"]);
    }

    #[test]
    fn a_missing_directory_and_a_taken_port_say_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let refusal = open(&dir.path().join("none/socket")).err().unwrap();
        assert!(refusal.contains("create it first"), "{refusal}");
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let tcp = || {
            Moksha::open(&Settings {
                socket: format!("tcp://{}", taken.local_addr().unwrap()),
                ..Settings::default()
            })
        };
        let refusal = tcp().err().unwrap();
        assert!(refusal.contains("moksha.socket"), "{refusal}");
        assert!(refusal.contains("another hub, has it"), "{refusal}");
    }
}
