//! The log on standard error: for people, for machines, or for journald.
//!
//! Promises:
//!
//! 1. Who logs waits for nobody: a thread writes, and what does not fit meanwhile is lost.
//! 2. Of a storm, more than five warnings or errors that are alike in ten seconds, the first five
//!    are told, and how many more there were when the ten seconds are over, or the process ends.
//! 3. What is told and what is counted make up all that was said, exactly.
//! 4. Memory is bounded, however many different things are said.
//!
//! Alike are those from one place in the code with the same texts, such as the consumer's name and
//! the cause; numbers, digits in texts, and the topic do not matter. What only the log's own thread
//! loses, because nobody reads, is in no count.

mod storm;

use std::fmt;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use clap::ValueEnum;
use serde_json::json;
use tracing::{Event, Level, Subscriber};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields};
use tracing_subscriber::fmt::{FmtContext, FormattedFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry, reload};

use storm::Storms;

/// The words of a level.
pub const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// How the log is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// journald's if standard error is connected to it, else text.
    Auto,
    /// Lines for people, in colour on a terminal.
    Text,
    /// A JSON object a line.
    Json,
    /// Lines without a time and with a priority, as sd-daemon(3) describes.
    Journald,
}

/// Where everything on standard error goes.
static STDERR: OnceLock<(NonBlocking, Format)> = OnceLock::new();
static LEVEL: OnceLock<Handle> = OnceLock::new();

/// Tells the last of the log when it is dropped, and waits a moment until it is written.
pub struct Guard {
    storms: Arc<Storms>,
    _writer: WorkerGuard,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.storms.end();
    }
}

/// Begins to log; once in a process.
///
/// # Errors
/// When the level is none of [`LEVELS`], or this process logs already.
pub fn start(level: &str, format: Format) -> Result<Guard, String> {
    let level = read(level)?;
    let format = match format {
        Format::Auto if is_journal() => Format::Journald,
        Format::Auto => Format::Text,
        format => format,
    };
    let (stderr, writer) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(10_000)
        .thread_name("weir-log")
        .finish(std::io::stderr());
    let storms = Arc::new(Storms::default());
    let (subscriber, handle) = stack(level, format, storms.clone(), stderr.clone());
    tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())?;
    let _ = STDERR.set((stderr, format));
    let _ = LEVEL.set(handle);
    let watching = storms.clone();
    std::thread::Builder::new()
        .name("weir-storms".into())
        .spawn(move || watching.run())
        .map_err(|error| format!("can't start the thread that sums up the log: {error}"))?;
    Ok(Guard {
        storms,
        _writer: writer,
    })
}

/// From now on only what is as grave as this, one of [`LEVELS`], is logged.
///
/// # Errors
/// When it is none of them, or this process does not log by way of [`start`].
pub fn set_level(level: &str) -> Result<(), String> {
    let level = read(level)?;
    let handle = LEVEL
        .get()
        .ok_or("this hub is part of a program that logs in its own way: it has no level to set")?;
    handle.reload(level).map_err(|error| error.to_string())
}

fn read(level: &str) -> Result<LevelFilter, String> {
    let known = LEVELS
        .contains(&level)
        .then(|| LevelFilter::from_str(level));
    known.and_then(Result::ok).ok_or_else(|| {
        let levels = LEVELS.join(", ");
        format!("{level:?} is no level of the log; there are: {levels}")
    })
}

/// Says something to people on standard error, in its place between the lines of the log.
pub fn say(text: &str) {
    tell(Level::INFO, text);
}

/// Says what went wrong, likewise.
pub fn complain(text: &str) {
    tell(Level::ERROR, text);
}

fn tell(level: Level, text: &str) {
    let _ = match STDERR.get() {
        Some((stderr, Format::Json)) => {
            let line = json!({
                "timestamp": humantime::format_rfc3339_micros(std::time::SystemTime::now())
                    .to_string(),
                "level": level.as_str(),
                "message": text.trim_end(),
            });
            stderr.clone().write_all(format!("{line}\n").as_bytes())
        }
        Some((stderr, Format::Journald)) => {
            let text = prefixed(level, text);
            stderr.clone().write_all(text.as_bytes())
        }
        Some((stderr, _)) => stderr.clone().write_all(text.as_bytes()),
        None => std::io::stderr().write_all(text.as_bytes()),
    };
}

/// Whether standard error is the socket that journald gave this process.
fn is_journal() -> bool {
    let Some(named) = std::env::var_os("JOURNAL_STREAM") else {
        return false;
    };
    let stderr = std::io::stderr().as_fd().try_clone_to_owned();
    let file = stderr.and_then(|fd| std::fs::File::from(fd).metadata());
    file.is_ok_and(|file| named.to_str() == Some(&*format!("{}:{}", file.dev(), file.ino())))
}

type Handle = reload::Handle<LevelFilter, Registry>;

/// What an event goes through: the level, the storms, the form.
fn stack<W>(
    level: LevelFilter,
    format: Format,
    storms: Arc<Storms>,
    to: W,
) -> (impl Subscriber + Send + Sync, Handle)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let (level, handle) = reload::Layer::new(level);
    let subscriber = tracing_subscriber::registry()
        .with(level)
        .with(storm::Filter(storms))
        .with(layer(format, to));
    (subscriber, handle)
}

type Boxed<S> = Box<dyn Layer<S> + Send + Sync>;

fn layer<S, W>(format: Format, to: W) -> Boxed<S>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(to)
        .with_target(false)
        .log_internal_errors(false);
    match format {
        Format::Json => Box::new(layer.json().flatten_event(true).with_current_span(false)),
        Format::Journald => Box::new(layer.with_ansi(false).map_event_format(|_| Prefixed)),
        Format::Auto | Format::Text => Box::new(layer.with_ansi(std::io::stderr().is_terminal())),
    }
}

/// Lines as journald reads them: it knows the time itself, and the level from a number.
struct Prefixed;

impl<S, N> FormatEvent<S, N> for Prefixed
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut to: format::Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = FormattedFields::<N>::new(String::new());
        context.format_fields(fields.as_writer(), event)?;
        to.write_str(&prefixed(*event.metadata().level(), &fields))
    }
}

/// Every line with its priority.
fn prefixed(level: Level, text: &str) -> String {
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    let lines = text.lines().map(|line| format!("<{priority}>{line}\n"));
    lines.collect()
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use serde_json::Value;
    use tracing::{debug, info, warn};

    use super::*;

    /// What is written meanwhile.
    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format, talk: impl FnOnce(&Handle)) -> String {
        let written = Written::default();
        let to = written.clone();
        let stack = stack(LevelFilter::WARN, format, Arc::default(), move || {
            to.clone()
        });
        tracing::subscriber::with_default(stack.0, || talk(&stack.1));
        String::from_utf8(written.0.lock().clone()).unwrap()
    }

    #[test]
    fn the_level_can_be_set_while_it_logs() {
        let say = || {
            warn!("grave");
            info!("ordinary");
            debug!("minute");
        };
        let text = written(Format::Journald, |level| {
            for filter in ["debug", "off", "info"] {
                say();
                level.reload(read(filter).unwrap()).unwrap();
            }
            say();
        });
        let all = "<4>grave\n<4>grave\n<6>ordinary\n<7>minute\n<4>grave\n<6>ordinary\n";
        assert_eq!(text, all);
    }

    #[test]
    fn machines_get_an_object_a_line() {
        let text = written(Format::Json, |_| {
            warn!(consumer = "irc", seq = 7, cause = "a\nb", "failed");
        });
        assert_eq!(text.lines().count(), 1);
        let line: Value = serde_json::from_str(&text).unwrap();
        let fields = (&line["level"], &line["message"], &line["consumer"]);
        assert_eq!(fields, (&"WARN".into(), &"failed".into(), &"irc".into()));
        assert_eq!((&line["seq"], &line["cause"]), (&7.into(), &"a\nb".into()));
        assert!(line["timestamp"].is_string());
    }

    #[test]
    fn every_line_for_journald_has_its_priority() {
        assert_eq!(prefixed(Level::WARN, "a\nb"), "<4>a\n<4>b\n");
        assert_eq!(prefixed(Level::ERROR, "a\n"), "<3>a\n");
        assert_eq!(prefixed(Level::DEBUG, "a"), "<7>a\n");
    }

    #[test]
    fn a_level_is_one_of_the_words() {
        for level in LEVELS {
            assert!(read(level).is_ok(), "{level}");
        }
        for wrong in ["", "loud", "5", "INFO "] {
            assert!(read(wrong).unwrap_err().contains("off, error, warn"));
        }
        // Nothing has begun to log here.
        assert!(set_level("debug").unwrap_err().contains("in its own way"));
    }
}
