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

/// The version of the protocol, first of all that both sides say.
pub(crate) const VERSION: u64 = 1;

/// What is read at a time.
const CHUNK: usize = 64 << 10;
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
        let reason = self.reason.filter(|reason| !reason.is_empty());
        let reason = reason.unwrap_or_else(|| "the child gave no reason".to_owned());
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
    match said {
        Line {
            weir: Some(version),
            batch_max,
            tick,
            id: None,
            publish: None,
            ..
        } => Ok(Said::Hello {
            version,
            batch_max,
            tick: tick == Some(Value::Bool(true)),
        }),
        Line {
            id: Some(id),
            result: Some(word),
            reason,
            weir: None,
            publish: None,
            ..
        } => Ok(Said::Answer {
            id,
            answer: Answer {
                verdict: word.verdict(),
                reason,
            },
        }),
        Line {
            publish: Some(publish),
            id: None,
            weir: None,
            ..
        } => publish.said(),
        Line {
            tick: Some(word),
            reason,
            id: None,
            weir: None,
            publish: None,
            ..
        } => {
            let word = Word::deserialize(word)
                .map_err(|error| format!("it answered a tick with no known result ({error})"))?;
            Ok(Said::Tick(Answer {
                verdict: word.verdict(),
                reason,
            }))
        }
        Line { id: Some(_), .. } => Err("its answer has no `result`".into()),
        _ => Err("it wrote an object of no known kind".into()),
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
