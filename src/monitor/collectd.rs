//! Figures to collectd, over the socket of its plugin unixsock.
//!
//! [`lists`] says what collectd is told; here it is brought there. collectd answers every line, and
//! may be slow, stuck or away, so a thread of its own talks to it: the monitor's leaves it the
//! lines of an interval and goes on. While an interval's lines are still on their way the next ones
//! are dropped. Trouble is said once, and its end.
//!
//! The connection is made anew for every interval: one that has outlived a collectd would cost the
//! first lines to the next.

pub mod lists;

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use serde::{Deserialize, Deserializer};
use tracing::{info, warn};
use weir_consumer::settings::{self, Mistake, duration};

use super::Exporter;
use super::sample::Sample;
use crate::stats::now_ns;
use lists::{Layout, Lists, PART_MAX, Reading};

/// Less would be all that anybody does.
pub const INTERVAL_MIN: Duration = Duration::from_millis(10);
/// How long collectd may take for an answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Lines sent before their answers are read: both fit into the socket, so nobody waits in a circle.
const AT_ONCE: usize = 32;
/// No answer to a line is longer.
const ANSWER_MAX: u64 = 4096;
/// Refused identifiers that are remembered.
const REFUSED_MAX: usize = 10_000;
/// Values that are refused are told of once in so long.
const TELL_EVERY: Duration = Duration::from_secs(60);
/// What the system has for a socket's path, with the NUL.
const PATH_MAX: usize = 108;

/// The `[collectd]` section; `src/sample.toml` explains each key.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Settings {
    #[serde(deserialize_with = "socket")]
    pub socket: PathBuf,
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
    pub layout: Layout,
    pub host: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            socket: "/run/collectd-unixsock".into(),
            interval: Duration::from_secs(10),
            layout: Layout::default(),
            host: String::new(),
        }
    }
}

fn plain(socket: &str) -> &str {
    socket.strip_prefix("unixsock:").unwrap_or(socket)
}

/// A path, also as collectd's own programs write it: `unixsock:PATH`.
fn socket<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
    let text = String::deserialize(from)?;
    Ok(plain(&text).into())
}

impl Settings {
    /// Reads the section.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(section: &settings::Settings) -> Result<Self, Vec<Mistake>> {
        // `collectd = "unixsock:PATH"` is all that most have to say.
        let mut mistakes = Vec::new();
        let settings = match section.as_str() {
            Some(socket) => Settings {
                socket: plain(socket).into(),
                ..Settings::default()
            },
            None => match section.parse_most() {
                (Some(settings), found) => {
                    mistakes = found;
                    settings
                }
                (None, found) => return Err(found),
            },
        };
        let length = settings.socket.as_os_str().len();
        if !settings.socket.is_absolute() || length >= PATH_MAX {
            let text = "expected the whole path of a socket, of 107 bytes at most: the SocketFile \
                        of collectd's plugin unixsock";
            mistakes.push(section.mistake_at("socket", text));
        }
        if settings.interval < INTERVAL_MIN {
            mistakes.push(section.mistake_at("interval", "expected at least 10ms"));
        }
        if !settings.host.is_empty()
            && let Err(why) = check_host(&settings.host)
        {
            mistakes.push(section.mistake_at("host", why));
        }
        match mistakes.is_empty() {
            true => Ok(settings),
            false => Err(mistakes),
        }
    }
}

/// Whether collectd takes this for a host's name.
///
/// # Errors
/// What it takes.
pub fn check_host(host: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let begin = host.starts_with(|c: char| c.is_ascii_alphanumeric());
    match begin && host.len() <= PART_MAX && host.chars().all(fits) {
        true => Ok(()),
        false => Err(format!(
            "expected a host's name: {PART_MAX} letters, digits, `.`, `-` or `_` at most"
        )),
    }
}

/// The name that the machine has for itself.
pub fn own_host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

/// Sends the figures of each interval.
pub(crate) struct Collectd {
    lists: Lists,
    interval: Duration,
    lines: Sender<String>,
    socket: PathBuf,
    stuck: bool,
}

impl Collectd {
    /// Sends to this socket from now on; nobody need be there.
    ///
    /// # Errors
    /// When there is no thread to be had.
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        let host = match settings.host.is_empty() {
            true => own_host(),
            false => settings.host.clone(),
        };
        let (lines, given) = bounded(1);
        let socket = settings.socket.clone();
        // It ends when this exporter does, or with the process if collectd keeps it waiting.
        std::thread::Builder::new()
            .name("weir-collectd".into())
            .spawn(move || send(&given, &socket))
            .map_err(|error| format!("can't start a thread for collectd: {error}"))?;
        let began = seconds(now_ns());
        Ok(Collectd {
            lists: Lists::new(&host, settings.layout, settings.interval, began),
            interval: settings.interval,
            lines,
            socket: settings.socket.clone(),
            stuck: false,
        })
    }
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}

impl Exporter for Collectd {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn export(&mut self, sample: &Sample) {
        let at = seconds(sample.at_ns);
        let lines = self.lists.lines(&Reading {
            hub: &sample.hub,
            at,
            started: at - sample.uptime.as_secs_f64(),
            figures: &|each| sample.each(each),
            times: &|name| {
                let mut consumers = sample.consumers.iter();
                let found = consumers.find(|consumer| consumer.name == name)?;
                Some(found.stats.times())
            },
        });
        let socket = self.socket.display();
        match self.lines.try_send(lines) {
            Ok(()) => self.stuck = false,
            Err(_) if self.stuck => {}
            Err(TrySendError::Full(_)) => {
                self.stuck = true;
                warn!(%socket, "collectd takes longer than an interval; figures are left out");
            }
            Err(TrySendError::Disconnected(_)) => {
                self.stuck = true;
                warn!(%socket, "the thread that talks to collectd died; restart the hub");
            }
        }
    }
}

/// Brings the lines of one interval after another to collectd.
fn send(given: &Receiver<String>, socket: &Path) {
    let (mut trouble, mut refused) = (false, HashSet::new());
    let mut told_refused = None;
    let shown = socket.display();
    for lines in given {
        // All of an interval are one line of the log: a collectd that starts refuses everything.
        let (mut first, mut count) = (None, 0);
        let told = tell(&lines, socket, &mut |line, answer| {
            let identifier = line.split(' ').nth(1).unwrap_or(line);
            if refused.len() < REFUSED_MAX && refused.insert(identifier.to_owned()) {
                count += 1;
                first.get_or_insert((identifier.to_owned(), answer.to_owned()));
            }
        });
        // Values come up one after another, and so would the lines.
        let due = told_refused.is_none_or(|at: Instant| at.elapsed() >= TELL_EVERY);
        if let Some((identifier, answer)) = first.filter(|_| due) {
            told_refused = Some(Instant::now());
            warn!(socket = %shown, count, identifier, answer, "collectd refuses values, such as");
        }
        match told {
            Ok(()) if trouble => {
                trouble = false;
                info!(socket = %shown, "collectd takes figures again");
            }
            Ok(()) => {}
            Err(_) if trouble => {}
            Err(error) => {
                trouble = true;
                warn!(
                    socket = %shown, error,
                    "collectd takes no figures; every interval they are offered anew"
                );
            }
        }
    }
}

/// Tells collectd all lines; what it answers to one that it refuses goes to `refused`.
fn tell(lines: &str, socket: &Path, refused: &mut dyn FnMut(&str, &str)) -> Result<(), String> {
    let wrong = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            "there is no such socket; does it run, with the plugin unixsock?".into()
        }
        std::io::ErrorKind::PermissionDenied => {
            "not for this user; see SocketGroup and SocketPerms of the plugin unixsock".into()
        }
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => {
            format!("no answer in {PATIENCE:?}")
        }
        _ => error.to_string(),
    };
    let mut stream = UnixStream::connect(socket).map_err(wrong)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(wrong)?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(wrong)?;
    let mut answers = BufReader::new(stream.try_clone().map_err(wrong)?);
    let lines: Vec<&str> = lines.lines().collect();
    for some in lines.chunks(AT_ONCE) {
        let mut text = some.join("\n");
        text.push('\n');
        stream.write_all(text.as_bytes()).map_err(wrong)?;
        for line in some {
            let mut answer = String::new();
            let read = answers.by_ref().take(ANSWER_MAX).read_line(&mut answer);
            if read.map_err(wrong)? == 0 {
                return Err("it closed the connection".into());
            }
            let answer = answer.trim_end();
            match answer.split(' ').next().map(str::parse::<i64>) {
                Some(Ok(0)) => {}
                Some(Ok(status)) if status < 0 => refused(line, answer),
                _ => return Err(format!("{answer:?} is no answer of collectd's")),
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::Figures;
    use crossbeam_channel::unbounded;
    use std::os::unix::net::UnixListener;

    fn read(text: &str) -> Result<Settings, Vec<String>> {
        let settings = settings::Settings::from_toml(text, "test").unwrap();
        let texts = |all: Vec<Mistake>| all.iter().map(Mistake::to_string).collect();
        Settings::from_settings(&settings).map_err(texts)
    }

    #[test]
    fn the_settings_mistakes_are_said_at_once() {
        let plain = read("socket = '/a/b'").unwrap();
        assert_eq!(plain, read("socket = 'unixsock:/a/b'").unwrap());
        assert_eq!(plain.socket, Path::new("/a/b"));
        let wrong = read("socket = 'a'\ninterval = '1ms'\nhost = 'a/b'").unwrap_err();
        assert_eq!(wrong.len(), 3, "{wrong:?}");
        assert!(read(&format!("socket = '/{}'", "x".repeat(107))).is_err());
        assert!(read("layout = 'other'").is_err());
    }

    fn figures() -> Figures {
        Figures::new("fedora", Vec::new())
    }

    const LINES: &str = "PUTVAL h/p/gauge-a interval=1 1:1\nPUTVAL h/p/gauge-b interval=1 1:2\n";

    /// Answers every line of one connection, and tells the lines.
    fn answering(socket: &Path, answers: Vec<&'static str>) -> Receiver<String> {
        let listener = UnixListener::bind(socket).unwrap();
        let (sender, lines) = unbounded();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut given = BufReader::new(stream.try_clone().unwrap());
            for answer in answers {
                let mut line = String::new();
                given.read_line(&mut line).unwrap();
                sender.send(line).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        lines
    }

    #[test]
    fn every_line_has_an_answer_and_refusals_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let lines = answering(
            &socket,
            vec!["0 Success: 1 value\n", "-1 Type `x' unknown.\n"],
        );
        let mut refused = Vec::new();
        let told = tell(LINES, &socket, &mut |line, answer| {
            refused.push((line.to_owned(), answer.to_owned()));
        });
        assert_eq!(told, Ok(()));
        let second = LINES.lines().last().unwrap().to_owned();
        assert_eq!(refused, [(second, "-1 Type `x' unknown.".to_owned())]);
        assert_eq!(lines.iter().collect::<String>(), LINES);
    }

    #[test]
    fn what_is_wrong_with_the_socket_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let ignore = &mut |_: &str, _: &str| {};
        assert!(
            tell(LINES, &socket, ignore)
                .unwrap_err()
                .contains("no such socket")
        );
        for (answers, expected) in [
            (
                vec!["HTTP/1.1 400 Bad Request\r\n", ""],
                "no answer of collectd's",
            ),
            (vec!["0 Success\n"], "closed the connection"),
        ] {
            let _ = std::fs::remove_file(&socket);
            let _lines = answering(&socket, answers);
            let why = tell(LINES, &socket, ignore).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    #[test]
    fn a_collectd_that_never_answers_holds_up_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut collectd = Collectd::new(&Settings {
            socket,
            ..Settings::default()
        })
        .unwrap();
        let sample = figures().sample();
        collectd.export(&sample);
        let (mut stuck, _) = listener.accept().unwrap();
        // One interval is with the thread, one waits, and the others are dropped. That this comes
        // to an end is the test: nobody answers.
        for _ in 0..10_000 {
            collectd.export(&sample);
        }
        assert!(collectd.stuck);
        let mut begin = [0; 7];
        stuck.read_exact(&mut begin).unwrap();
        assert_eq!(&begin, b"PUTVAL ");
    }
}
