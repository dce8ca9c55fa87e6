//! The kind `log`: prints the topic and payload of each message, one line a message.
//!
//! It promises that nothing in a message can break the line or the terminal it is shown on: what
//! is a control character, ends a line or turns the direction of writing is printed as an escape.
//! It leaves to others: the rotation of its file (it notices within about a second that the file
//! was moved away), syncing it to the disk, and keeping a payload whole (the kind `archive`).

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use weir_consumer::settings::size;
use weir_consumer::{Consumer, Context, Failure, Kind, Message, Result};

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    format: Format,
    /// The bytes of a payload that are printed.
    #[serde(deserialize_with = "size")]
    payload_max: usize,
    /// Standard output, when there is none.
    file: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            format: Format::Text,
            payload_max: 1024,
            file: None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    Text,
    Json,
}

struct Log {
    format: Format,
    payload_max: usize,
    output: Output,
    /// The line in the making; kept for its capacity.
    line: String,
}

enum Output {
    Stdout,
    File { path: PathBuf, open: Option<File> },
}

pub(crate) fn kind() -> Kind {
    Kind::consumer("log", build)
        .summary("prints topic and payload of each message to standard output or a file")
        .sample(include_str!("../sample.toml"))
}

fn build(settings: Settings, context: &Context) -> Result<Log> {
    let output = match settings.file {
        None => Output::Stdout,
        Some(file) if file.as_os_str().is_empty() => {
            return Err(Failure::halt(
                "`file` is empty; without this key the lines go to standard output",
            ));
        }
        Some(file) => Output::File {
            path: context.data_dir().join(file),
            open: None,
        },
    };
    Ok(Log {
        format: settings.format,
        payload_max: settings.payload_max,
        output,
        line: String::new(),
    })
}

impl Consumer for Log {
    fn consume(&mut self, message: &Message) -> Result {
        self.line.clear();
        match self.format {
            Format::Text => text_line(&mut self.line, message, self.payload_max),
            Format::Json => json_line(&mut self.line, message, self.payload_max),
        }
        self.line.push('\n');
        match &mut self.output {
            Output::Stdout => io::stdout().lock().write_all(self.line.as_bytes())?,
            Output::File { path, open } => {
                // Taken out, and put back only after the write went well: an error discards it, and
                // the next attempt opens the file as the first one did.
                let mut file = match open.take() {
                    Some(file) => file,
                    None => open_to_append(path).map_err(|error| at(path, error))?,
                };
                (file.write_all(self.line.as_bytes())).map_err(|error| at(path, error))?;
                *open = Some(file);
            }
        }
        Ok(())
    }

    /// Closes the file, so that the next line goes to whatever has its name by then: one that was
    /// moved away for rotation is not written to for longer than a second.
    fn tick(&mut self) -> Result {
        if let Output::File { open, .. } = &mut self.output {
            *open = None;
        }
        Ok(())
    }
}

fn at(path: &Path, error: io::Error) -> Failure {
    Failure::retry(format!("can't write to {}: {error}", path.display()))
}

/// Opens the file for whole lines: one that an earlier failure cut short gets its end first.
fn open_to_append(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut options = OpenOptions::new();
    let mut file = options.read(true).append(true).create(true).open(path)?;
    if file.metadata()?.len() > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
        }
    }
    Ok(file)
}

fn text_line(line: &mut String, message: &Message, payload_max: usize) {
    push_escaped(line, message.topic(), Format::Text);
    line.push(' ');
    push_payload(line, message.payload(), payload_max, Format::Text);
}

fn json_line(line: &mut String, message: &Message, payload_max: usize) {
    let micros = message.received_ns() / 1000;
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let _ = write!(line, "{{\"received\":{seconds}.{micros:06},\"topic\":\"");
    push_escaped(line, message.topic(), Format::Json);
    let bytes = message.payload().len();
    let _ = write!(line, "\",\"bytes\":{bytes},\"payload\":\"");
    push_payload(line, message.payload(), payload_max, Format::Json);
    line.push_str("\"}");
}

/// Adds at most `max` bytes of a payload, and an ellipsis when that is not all of it.
fn push_payload(line: &mut String, payload: &[u8], max: usize, format: Format) {
    let mut shown = &payload[..max.min(payload.len())];
    if shown.len() < payload.len() {
        // A character that the cut goes through is left out.
        let start = shown.iter().rposition(|byte| byte & 0xC0 != 0x80);
        if let Some(start) = start
            && std::str::from_utf8(&shown[start..]).is_err_and(|e| e.error_len().is_none())
        {
            shown = &shown[..start];
        }
    }
    for chunk in shown.utf8_chunks() {
        push_escaped(line, chunk.valid(), format);
        match format {
            Format::Text => (chunk.invalid().iter()).for_each(|byte| {
                let _ = write!(line, "\\x{byte:02x}");
            }),
            // JSON has no escape for a byte.
            Format::Json if chunk.invalid().is_empty() => {}
            Format::Json => line.push(char::REPLACEMENT_CHARACTER),
        }
    }
    if shown.len() < payload.len() {
        line.push('…');
    }
}

/// Adds a text with everything escaped that could break the line or the terminal.
///
/// In text, a backslash stands for itself, so that JSON inside it can be copied out.
fn push_escaped(line: &mut String, text: &str, format: Format) {
    for c in text.chars() {
        match (c, format) {
            ('\n', _) => line.push_str("\\n"),
            ('\r', _) => line.push_str("\\r"),
            ('\t', _) => line.push_str("\\t"),
            ('"' | '\\', Format::Json) => line.extend(['\\', c]),
            (c, Format::Text) if breaks_a_line(c) => line.extend(c.escape_unicode()),
            (c, Format::Json) if breaks_a_line(c) => {
                let _ = write!(line, "\\u{:04x}", c as u32);
            }
            (c, _) => line.push(c),
        }
    }
}

/// The control characters of C0 and C1 (a terminal obeys both), those that some programs take for
/// the end of a line, and those that turn the direction of writing.
fn breaks_a_line(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}')
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use weir_consumer::testkit::{Harness, build, conformance, sample_settings};
    use weir_consumer::{Publisher, Verdict};

    use super::*;

    fn to_file(settings: &str, data_dir: &Path) -> Harness<Box<dyn Consumer>> {
        let settings = format!("file = 'logs/messages.log'\n{settings}");
        Harness::new(build(&kind(), &settings, data_dir).unwrap())
    }

    fn read(data_dir: &Path) -> String {
        fs::read_to_string(data_dir.join("logs/messages.log")).unwrap()
    }

    fn text(topic: &str, payload: impl AsRef<[u8]>, payload_max: usize) -> String {
        let payload = payload.as_ref().to_vec().into();
        let message = Message::new(topic.into(), payload, UNIX_EPOCH, 1);
        let mut line = String::new();
        text_line(&mut line, &message, payload_max);
        line
    }

    fn json(topic: &str, payload: impl AsRef<[u8]>, payload_max: usize) -> String {
        let received = UNIX_EPOCH + Duration::from_micros(1_700_000_000_000_250);
        let payload = payload.as_ref().to_vec().into();
        let message = Message::new(topic.into(), payload, received, 1);
        let mut line = String::new();
        json_line(&mut line, &message, payload_max);
        line
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: Settings = sample_settings(&kind()).parse().unwrap();
        assert_eq!(sample, Settings::default());
    }

    #[test]
    fn the_setting_that_the_sample_leaves_out_is_one() {
        let commented = (kind().sample_text().lines())
            .find_map(|line| line.strip_prefix("# file"))
            .map(|rest| format!("file{rest}"));
        assert!(build(&kind(), &commented.unwrap(), Path::new("")).is_ok());
    }

    #[test]
    fn bad_settings_are_refused_with_what_would_be_right() {
        let toml = "format = 'yaml'\npayload_max = 'much'\nfiel = 'x'";
        let mistakes = build(&kind(), toml, Path::new("")).err().unwrap();
        let texts: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "log:1:10: format: unknown value `yaml`; known here: text, json",
                "log:2:15: payload_max: expected a size such as \"64MiB\", found \"much\"",
                "log:3:1: fiel: unknown key; did you mean `file`?",
            ]
        );
        let mistakes = build(&kind(), "file = ''", Path::new("")).err().unwrap();
        let expected = "log: `file` is empty; without this key the lines go to standard output";
        assert_eq!(mistakes[0].to_string(), expected);
    }

    #[test]
    fn it_stands_what_every_consumer_has_to_stand() {
        for format in ["text", "json"] {
            let dir = tempfile::tempdir().unwrap();
            let settings = format!("format = '{format}'\nfile = 'messages.log'");
            conformance(|| build(&kind(), &settings, dir.path()).unwrap());
        }
    }

    #[test]
    fn building_creates_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let _log = to_file("", dir.path());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_message_is_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = to_file("", dir.path());
        assert_eq!(log.feed("org.example.a", r#"{"id": 1}"#), Ok(()));
        assert_eq!(log.feed_batch([("b", "two\nlines"), ("c", "")]), Ok(()));
        assert_eq!(
            read(dir.path()),
            "org.example.a {\"id\": 1}\nb two\\nlines\nc \n"
        );
    }

    #[test]
    fn an_absolute_path_is_taken_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("here.log");
        let settings = format!("file = '{}'", path.display());
        let consumer = build(&kind(), &settings, Path::new("/nowhere")).unwrap();
        assert_eq!(Harness::new(consumer).feed("a", "b"), Ok(()));
        assert_eq!(fs::read_to_string(path).unwrap(), "a b\n");
    }

    #[test]
    fn without_a_file_the_output_is_standard_output() {
        let context = Context::new("log", Path::new(""), Publisher::nowhere());
        let log = super::build(Settings::default(), &context).unwrap();
        assert!(matches!(log.output, Output::Stdout));
    }

    #[test]
    fn nothing_in_a_message_breaks_the_line_or_the_terminal() {
        assert_eq!(
            text("a", "\x1b[2J\r\n\t\x07", 99),
            r"a \u{1b}[2J\r\n\t\u{7}"
        );
        assert_eq!(text("a\nb", "\u{9b}2J\u{7f}", 99), r"a\nb \u{9b}2J\u{7f}");
        assert_eq!(text("a", "\u{2028}\u{202e}", 99), r"a \u{2028}\u{202e}");
        assert_eq!(text("a", b"x\xff\xfe\0", 99), r"a x\xff\xfe\u{0}");
        assert_eq!(
            text("a", r#"{"path": "C:\\"}"#, 99),
            r#"a {"path": "C:\\"}"#
        );
        let line = json("\x1b\"", "\u{9b}\\\"\n\u{202e}é", 99);
        assert!(!line.contains(breaks_a_line), "{line:?}");
    }

    #[test]
    fn a_json_line_is_json_and_says_how_long_the_payload_is() {
        let payload = "\x1b\"\\\n\u{9b}\u{2028}é";
        let line: serde_json::Value = serde_json::from_str(&json("a\"b", payload, 99)).unwrap();
        assert_eq!(line["topic"], "a\"b");
        assert_eq!(line["payload"], payload);
        assert_eq!(line["bytes"], payload.len());
        assert_eq!(line["received"], 1_700_000_000.000_25);
        let line: serde_json::Value = serde_json::from_str(&json("a", b"x\xff!", 99)).unwrap();
        assert_eq!(line["payload"], "x\u{fffd}!");
    }

    #[test]
    fn a_long_payload_is_cut_between_characters() {
        assert_eq!(text("a", "12345", 5), "a 12345");
        assert_eq!(text("a", "12345", 4), "a 1234…");
        assert_eq!(text("a", "ééé", 3), "a é…");
        assert_eq!(text("a", "ééé", 4), "a éé…");
        assert_eq!(text("a", "x😀y", 4), "a x…");
        assert_eq!(text("a", "x😀y", 0), "a …");
        assert_eq!(text("a", b"\x80\x80\x80", 2), r"a \x80\x80…");
        let line: serde_json::Value = serde_json::from_str(&json("a", "12345", 4)).unwrap();
        assert_eq!(
            (&line["payload"], &line["bytes"]),
            (&"1234…".into(), &5.into())
        );
    }

    #[test]
    fn a_failure_is_tried_again_with_a_file_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = to_file("", dir.path());
        fs::write(dir.path().join("logs"), "in the way").unwrap();
        assert_eq!(log.feed("a", "1"), Err(Verdict::Retry));
        fs::remove_file(dir.path().join("logs")).unwrap();
        assert_eq!(log.feed("a", "1"), Ok(()));
        assert_eq!(read(dir.path()), "a 1\n");
    }

    #[test]
    fn a_line_that_was_cut_short_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("logs")).unwrap();
        fs::write(dir.path().join("logs/messages.log"), "a half a li").unwrap();
        assert_eq!(to_file("", dir.path()).feed("a", "1"), Ok(()));
        assert_eq!(read(dir.path()), "a half a li\na 1\n");
    }

    #[test]
    fn after_a_tick_a_file_that_was_moved_away_is_created_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = to_file("", dir.path());
        assert_eq!(log.feed("a", "1"), Ok(()));
        let path = dir.path().join("logs/messages.log");
        fs::rename(&path, path.with_extension("1")).unwrap();
        log.consumer().tick().unwrap();
        assert_eq!(log.feed("a", "2"), Ok(()));
        assert_eq!(read(dir.path()), "a 2\n");
        assert_eq!(
            fs::read_to_string(path.with_extension("1")).unwrap(),
            "a 1\n"
        );
    }
}
