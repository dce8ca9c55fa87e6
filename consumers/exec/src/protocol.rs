//! The lines that hub and child exchange, version 1: JSON objects, one a line.
//!
//! Invariants:
//!
//! 1. What is written for the child is one line, whatever topic and payload are.
//! 2. Whatever the child writes is read as what it is or refused with a text: nothing panics, and no
//!    more than `line_max` of an unfinished line is kept.
//!
//! Left to others: when to write and to read (`child`), and what answers mean (the crate's top).

use std::io::{self, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use weir_consumer::{Bytes, Failure, Message, Verdict};

use crate::stderr::printable;

/// The version of the protocol, first of all that both sides say.
pub(crate) const VERSION: u64 = 1;

/// What is read at a time.
const CHUNK: usize = 64 << 10;
/// So much of a reason is kept; it goes into the log and to the dead letters.
const REASON_MAX: usize = 4 << 10;
/// No longer topics are published: they go into everybody's figures and logs.
const TOPIC_MAX: usize = 1 << 10;
/// So much of a line that was not understood is shown.
const SHOWN: usize = 120;

/// The hub's first line.
#[derive(Serialize)]
pub(crate) struct Hello<'a> {
    pub(crate) weir: u64,
    pub(crate) hub: &'a str,
    pub(crate) consumer: &'a str,
    pub(crate) batch_max: usize,
    pub(crate) settings: &'a Map<String, Value>,
}

/// The line about a second that has passed.
pub(crate) const TICK: &[u8] = b"{\"tick\":true}\n";

/// Appends the line of a message. By hand, because the time has more digits than an `f64` keeps.
pub(crate) fn write_message(line: &mut Vec<u8>, id: u64, message: &Message) -> io::Result<()> {
    use io::Write as _;
    write!(line, "{{\"id\":{id},\"topic\":")?;
    serde_json::to_writer(&mut *line, message.topic())?;
    match std::str::from_utf8(message.payload()) {
        Ok(text) => {
            line.extend_from_slice(b",\"payload\":");
            serde_json::to_writer(&mut *line, text)?;
        }
        Err(_) => {
            let text = BASE64.encode(message.payload());
            write!(line, ",\"payload_base64\":\"{text}\"")?;
        }
    }
    let (ns, seq, replayed) = (message.received_ns(), message.seq(), message.replayed());
    let (seconds, ns) = (ns / 1_000_000_000, ns % 1_000_000_000);
    writeln!(
        line,
        ",\"received\":{seconds}.{ns:09},\"seq\":{seq},\"replayed\":{replayed}}}"
    )
}

/// What a child has said.
#[derive(Debug, PartialEq)]
pub(crate) enum Said {
    /// Its first line.
    Hello {
        version: u64,
        batch_max: Option<usize>,
        tick: bool,
    },
    /// What became of a message.
    Answer { id: u64, answer: Answer },
    /// What became of a tick.
    Tick(Answer),
    /// Something for the bus.
    Publish { topic: String, payload: Bytes },
}

/// What became of a message: no verdict is that it was consumed.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) verdict: Option<Verdict>,
    reason: Option<String>,
}

impl Answer {
    /// Whether the message is done with.
    pub(crate) fn is_settling(&self) -> bool {
        !matches!(self.verdict, Some(Verdict::Retry | Verdict::Halt))
    }

    /// The same as the hub wants to hear it.
    pub(crate) fn outcome(self) -> weir_consumer::Result {
        let Some(verdict) = self.verdict else {
            return Ok(());
        };
        let mut reason = printable(self.reason.unwrap_or_default().as_bytes());
        if reason.is_empty() {
            reason.push_str("the child gave no reason");
        }
        reason.truncate(reason.floor_char_boundary(REASON_MAX));
        Err(Failure::new(verdict, reason))
    }
}

/// Everything that may be in a line; what is not listed is for later versions.
#[derive(Deserialize)]
struct Line {
    weir: Option<u64>,
    batch_max: Option<usize>,
    tick: Option<Value>,
    id: Option<u64>,
    result: Option<Word>,
    reason: Option<String>,
    publish: Option<Publish>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Word {
    Ok,
    Retry,
    Drop,
    DeadLetter,
    Halt,
}

#[derive(Deserialize)]
struct Publish {
    topic: String,
    payload: Option<String>,
    payload_base64: Option<String>,
}

impl Word {
    fn verdict(&self) -> Option<Verdict> {
        match self {
            Word::Ok => None,
            Word::Retry => Some(Verdict::Retry),
            Word::Drop => Some(Verdict::Drop),
            Word::DeadLetter => Some(Verdict::DeadLetter),
            Word::Halt => Some(Verdict::Halt),
        }
    }
}

/// Reads a line of the child.
///
/// # Errors
/// What is wrong with it; the line is in it, cut.
pub(crate) fn read(line: &[u8]) -> Result<Said, String> {
    understand(line).map_err(|why| {
        let mut shown: String = String::from_utf8_lossy(line).chars().take(SHOWN).collect();
        if shown.len() < line.len() {
            shown.push_str("...");
        }
        format!("{why}: {shown:?}")
    })
}

fn understand(line: &[u8]) -> Result<Said, String> {
    if line.trim_ascii_start().first() != Some(&b'{') {
        return Err(
            "it wrote a line that is no JSON object (standard output belongs to the protocol; \
             print to standard error)"
                .into(),
        );
    }
    let said: Line = serde_json::from_slice(line)
        .map_err(|error| format!("it wrote a line that can't be understood ({error})"))?;
    let answer = |word: Word| Answer {
        verdict: word.verdict(),
        reason: said.reason,
    };
    match (said.weir, said.id, said.publish, said.tick) {
        (Some(version), None, None, tick) => Ok(Said::Hello {
            version,
            batch_max: said.batch_max,
            tick: tick == Some(Value::Bool(true)),
        }),
        (None, Some(id), None, None) => match said.result {
            Some(word) => Ok(Said::Answer {
                id,
                answer: answer(word),
            }),
            None => Err("its answer has no `result`".into()),
        },
        (None, None, Some(publish), None) => publish.said(),
        (None, None, None, Some(word)) => match Word::deserialize(word) {
            Ok(word) => Ok(Said::Tick(answer(word))),
            Err(error) => Err(format!("it answered a tick with no known result ({error})")),
        },
        (None, None, None, None) => Err("it wrote an object of no known kind".into()),
        _ => Err("it wrote an object that says several things at once".into()),
    }
}

impl Publish {
    fn said(self) -> Result<Said, String> {
        let payload = match (self.payload, self.payload_base64) {
            (Some(text), None) => text.into(),
            (None, Some(coded)) => (BASE64.decode(coded))
                .map_err(|error| format!("its `payload_base64` is no base64 ({error})"))?
                .into(),
            _ => return Err("`publish` needs either `payload` or `payload_base64`".into()),
        };
        let topic = self.topic;
        if topic.len() > TOPIC_MAX {
            return Err(format!(
                "the topic that it publishes has more than {TOPIC_MAX} bytes"
            ));
        }
        Ok(Said::Publish { topic, payload })
    }
}

/// Takes what a child writes apart into lines.
pub(crate) struct Lines {
    line_max: usize,
    /// What was read and not yet handed out. Read by way of `chunk`, so that an unfinished line
    /// takes no more than its length.
    buffer: Vec<u8>,
    chunk: Box<[u8]>,
    /// Where the next line begins.
    begin: usize,
    /// Up to where no end of a line was found yet.
    searched: usize,
}

impl Lines {
    pub(crate) fn new(line_max: usize) -> Self {
        Lines {
            line_max,
            buffer: Vec::new(),
            chunk: vec![0; CHUNK].into(),
            begin: 0,
            searched: 0,
        }
    }

    /// Reads once; answers how much. 0 is the end.
    pub(crate) fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        // What was handed out is done with.
        self.buffer.drain(..self.begin);
        self.searched -= self.begin;
        self.begin = 0;
        let read = from.read(&mut self.chunk)?;
        self.buffer.extend_from_slice(&self.chunk[..read]);
        Ok(read)
    }

    /// The next whole line without its end, if it is here.
    ///
    /// # Errors
    /// It is longer than allowed.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, String> {
        let ahead = &self.buffer[self.searched..];
        let end = match ahead.iter().position(|byte| *byte == b'\n') {
            Some(at) => self.searched + at,
            None => self.buffer.len(),
        };
        let is_whole = end < self.buffer.len();
        self.searched = end;
        if end - self.begin > self.line_max {
            return Err(format!(
                "it wrote a line of more than {} bytes (`line_max`)",
                self.line_max
            ));
        }
        if !is_whole {
            return Ok(None);
        }
        let begin = std::mem::replace(&mut self.begin, end + 1);
        self.searched = end + 1;
        Ok(Some(&self.buffer[begin..end]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn written(topic: &str, payload: &[u8], received_ns: u64) -> (Vec<u8>, Value) {
        let payload = Bytes::copy_from_slice(payload);
        let message = Message::again(topic.into(), payload, received_ns, 18);
        let mut line = Vec::new();
        write_message(&mut line, 17, &message).unwrap();
        let value = serde_json::from_slice(&line).unwrap();
        (line, value)
    }

    #[test]
    fn a_message_is_written_as_the_page_shows_it() {
        let (line, _) = written("org.example.a", b"text", 1_700_000_000_000_000_009);
        let expected = "{\"id\":17,\"topic\":\"org.example.a\",\"payload\":\"text\",\
                        \"received\":1700000000.000000009,\"seq\":18,\"replayed\":true}\n";
        assert_eq!(String::from_utf8(line).unwrap(), expected);
        let (_, value) = written("a", b"\xff\x00", 0);
        assert_eq!(value["payload_base64"], "/wA=");
        assert_eq!(value.get("payload"), None);
    }

    fn said(line: &str) -> Result<Said, String> {
        read(line.as_bytes())
    }

    fn answer(id: u64, verdict: Option<Verdict>, reason: Option<&str>) -> Result<Said, String> {
        let reason = reason.map(str::to_owned);
        let answer = Answer { verdict, reason };
        Ok(Said::Answer { id, answer })
    }

    #[test]
    fn a_reason_can_be_shown() {
        let reason = |text: &str| {
            let reason = Some(text.to_owned());
            let verdict = Some(Verdict::Drop);
            let failure = Answer { verdict, reason }.outcome().unwrap_err();
            failure.to_string()
        };
        assert_eq!(reason("a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert_eq!(reason(&"\u{e4}".repeat(10_000)).len(), REASON_MAX);
    }

    #[test]
    fn every_kind_of_line_is_read() {
        assert_eq!(said(r#"{"id":1,"result":"ok"}"#), answer(1, None, None));
        let halt = r#" {"reason":"x","id":18446744073709551615,"result":"halt","new":{}} "#;
        assert_eq!(said(halt), answer(u64::MAX, Some(Verdict::Halt), Some("x")));
        let hello = |batch_max, tick| {
            let version = 1;
            Ok(Said::Hello {
                version,
                batch_max,
                tick,
            })
        };
        assert_eq!(said(r#"{"weir":1}"#), hello(None, false));
        let all = r#"{"weir":1,"batch_max":9,"tick":true,"name":"x"}"#;
        assert_eq!(said(all), hello(Some(9), true));
        let tick = Answer {
            verdict: None,
            reason: None,
        };
        assert_eq!(said(r#"{"tick":"ok"}"#), Ok(Said::Tick(tick)));
        let publish = |payload: &'static [u8]| {
            let topic = "t".to_owned();
            Ok(Said::Publish {
                topic,
                payload: payload.into(),
            })
        };
        let text = r#"{"publish":{"topic":"t","payload":"a\u0000"}}"#;
        assert_eq!(said(text), publish(b"a\0"));
        let coded = r#"{"publish":{"topic":"t","payload_base64":"/w=="}}"#;
        assert_eq!(said(coded), publish(b"\xff"));
    }

    #[test]
    fn what_is_no_line_of_the_protocol_is_refused_with_what_it_is() {
        let cases = [
            ("", "no JSON object"),
            ("[]", "no JSON object"),
            ("\u{feff}{\"id\":1,\"result\":\"ok\"}", "no JSON object"),
            ("{", "can't be understood (EOF"),
            (
                "{\"id\":1,\"result\":\"ok\"} {}",
                "can't be understood (trailing",
            ),
            (
                "{\"id\":1,\"id\":1,\"result\":\"ok\"}",
                "duplicate field `id`",
            ),
            (
                "{\"id\":-1,\"result\":\"ok\"}",
                "can't be understood (invalid value",
            ),
            (
                "{\"id\":1.0,\"result\":\"ok\"}",
                "can't be understood (invalid type",
            ),
            (
                "{\"id\":\"1\",\"result\":\"ok\"}",
                "can't be understood (invalid type",
            ),
            (
                "{\"id\":1,\"result\":\"OK\"}",
                "unknown variant `OK`, expected one of `ok`",
            ),
            ("{\"id\":1}", "no `result`"),
            ("{\"id\":1,\"result\":\"ok\",\"weir\":1}", "several things"),
            ("{\"result\":\"ok\"}", "no known kind"),
            ("{\"log\":{}}", "no known kind"),
            ("{\"tick\":\"tock\"}", "unknown variant `tock`"),
            ("{\"publish\":{\"topic\":\"t\"}}", "either `payload` or"),
            (
                "{\"publish\":{\"topic\":\"t\",\"payload_base64\":\"!\"}}",
                "is no base64",
            ),
        ];
        for (line, expected) in cases {
            let told = said(line).unwrap_err();
            assert!(told.contains(expected), "{line}: {told}");
        }
        let long = format!("x{}", "\u{1f600}".repeat(1000));
        let told = said(&long).unwrap_err();
        assert!(told.len() < 1000 && told.ends_with("...\""), "{told}");
        let topic = "t".repeat(TOPIC_MAX + 1);
        let told = said(&format!(
            r#"{{"publish":{{"topic":"{topic}","payload":""}}}}"#
        ));
        assert!(told.unwrap_err().contains("more than 1024 bytes"));
        let deep = format!("{{\"a\":{}", "[".repeat(1_000_000));
        assert!(said(&deep).is_err());
    }

    /// Gives out what it has in pieces of these sizes.
    struct Pieces<'p>(&'p [u8], std::iter::Cycle<std::slice::Iter<'p, usize>>);

    impl Read for Pieces<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let piece = self.1.next().copied().unwrap_or(1);
            let read = piece.min(self.0.len()).min(buffer.len());
            buffer[..read].copy_from_slice(&self.0[..read]);
            self.0 = &self.0[read..];
            Ok(read)
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_one_line_that_has_everything(
            topic in any::<String>(), payload in any::<Vec<u8>>(), text in any::<String>(),
            received_ns in any::<u64>(),
        ) {
            for payload in [payload.as_slice(), text.as_bytes()] {
                let (line, value) = written(&topic, payload, received_ns);
                prop_assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
                prop_assert_eq!(&value["topic"], &json!(topic));
                let read = match std::str::from_utf8(payload) {
                    Ok(_) => value["payload"].as_str().unwrap().as_bytes().to_vec(),
                    Err(_) => BASE64.decode(value["payload_base64"].as_str().unwrap()).unwrap(),
                };
                prop_assert_eq!(read, payload);
                let line = String::from_utf8(line).unwrap();
                let (_, received) = line.rsplit_once("\"received\":").unwrap();
                let (received, _) = received.split_once(',').unwrap();
                prop_assert_eq!(received.replace('.', "").parse::<u128>().unwrap(), u128::from(received_ns));
            }
        }

        #[test]
        fn whatever_a_child_writes_is_read_or_refused(line in any::<Vec<u8>>(), text in r#"\{("(id|result|publish|tick|weir|payload)":[0-9a-z"{}\[\],]{0,5},?){0,4}\}?"#) {
            let _ = read(&line);
            if let Err(told) = read(text.as_bytes()) {
                prop_assert!(!told.is_empty());
            }
        }

        #[test]
        fn lines_are_the_same_in_whatever_pieces_they_come(
            lines in prop::collection::vec("[^\n]{0,30}", 0..20), torn in "[^\n]{0,30}",
            pieces in prop::collection::vec(1..50usize, 1..10),
        ) {
            let mut text: String = lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect();
            text.push_str(&torn);
            let mut from = Pieces(text.as_bytes(), pieces.iter().cycle());
            let mut reader = Lines::new(120);
            let mut found = Vec::new();
            while reader.fill(&mut from).unwrap() > 0 {
                while let Some(line) = reader.next().unwrap() {
                    found.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(found, lines);
        }

        #[test]
        fn no_more_of_a_line_is_kept_than_is_allowed(
            before in 0..3usize, excess in 1..5_000_000usize, line_max in 0..100_000usize,
        ) {
            let text = ["\n".repeat(before), "x".repeat(line_max + excess)].concat();
            let pieces = [usize::MAX];
            let mut from = Pieces(text.as_bytes(), pieces.iter().cycle());
            let mut reader = Lines::new(line_max);
            let mut is_refused = false;
            while reader.fill(&mut from).unwrap() > 0 && !is_refused {
                while let Some(next) = reader.next().transpose() {
                    is_refused = next.is_err();
                    if is_refused {
                        break;
                    }
                }
                prop_assert!(reader.buffer.len() <= line_max + 2 * CHUNK);
            }
            prop_assert!(is_refused);
        }
    }
}
