//! A consumer that writes down what it gets, and dies of what it is told to die of.
//!
//! What it writes is in the page cache, and so survives the end of the process, before it answers.
//! A record has 32 bytes, so that none lies across two pages: a SIGKILL may cut a write there.

use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use weir_consumer::settings::duration;
use weir_consumer::{Consumer, Context, Failure, Kind, Message, Result};

use crate::scene::RUN;

const RECORD: usize = 32;

/// A delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub seq: u64,
    /// The publisher's number for it.
    pub number: u64,
    pub received_ns: u64,
    /// Of the payload.
    pub crc: u32,
    /// Which start of the hub delivered it.
    pub run: u32,
}

impl Record {
    pub fn of(message: &Message, run: u32) -> Result<Self> {
        Ok(Record {
            seq: message.seq(),
            number: message.json()?["n"].as_u64().unwrap_or(u64::MAX),
            received_ns: message.received_ns(),
            crc: crc32c::crc32c(message.payload()),
            run,
        })
    }

    fn encode(&self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.seq.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.received_ns.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.crc.to_le_bytes());
        bytes[28..].copy_from_slice(&self.run.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let short = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Record {
            seq: long(0),
            number: long(8),
            received_ns: long(16),
            crc: short(24),
            run: short(28),
        }
    }
}

fn file(data_dir: &Path, consumer: &str) -> PathBuf {
    data_dir.join(format!("{consumer}.seen"))
}

/// How much this consumer has written down.
pub fn count(data_dir: &Path, consumer: &str) -> usize {
    let length = std::fs::metadata(file(data_dir, consumer)).map_or(0, |data| data.len());
    length as usize / RECORD
}

/// What this consumer has written down.
pub fn read(data_dir: &Path, consumer: &str) -> Vec<Record> {
    let bytes = std::fs::read(file(data_dir, consumer)).unwrap_or_default();
    assert_eq!(bytes.len() % RECORD, 0);
    bytes.chunks(RECORD).map(Record::decode).collect()
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    batch: usize,
    /// What a delivery takes.
    #[serde(deserialize_with = "duration")]
    pause: Duration,
    dies: Death,
    /// It has every message set aside whose number is a multiple of this.
    refuses: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            batch: 1,
            pause: Duration::ZERO,
            dies: Death::Never,
            refuses: None,
        }
    }
}

/// How it ends the process when a message says so.
#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Death {
    Never,
    Abort,
    StackOverflow,
}

struct Witness {
    settings: Settings,
    path: PathBuf,
    run: u32,
    file: Option<File>,
}

pub fn kind() -> Kind {
    Kind::consumer("witness", |settings: Settings, context: &Context| {
        Ok(Witness {
            settings,
            path: file(context.data_dir(), context.name()),
            run: std::env::var(RUN)?.parse()?,
            file: None,
        })
    })
}

impl Consumer for Witness {
    fn consume(&mut self, message: &Message) -> Result {
        self.consume_batch(std::slice::from_ref(message))
    }

    fn batch_max(&self) -> usize {
        self.settings.batch
    }

    fn consume_batch(&mut self, batch: &[Message]) -> Result {
        std::thread::sleep(self.settings.pause);
        let mut bytes = Vec::with_capacity(batch.len() * RECORD);
        for message in batch {
            if message.json()?["kills"] == true {
                die(self.settings.dies);
            }
            let record = Record::of(message, self.run)?;
            if (self.settings.refuses).is_some_and(|every| record.number.is_multiple_of(every)) {
                return Err(Failure::dead_letter("refused"));
            }
            bytes.extend_from_slice(&record.encode());
        }
        if self.file.is_none() {
            let opened = File::options().append(true).create(true).open(&self.path);
            self.file = Some(opened?);
        }
        if let Some(file) = &mut self.file {
            file.write_all(&bytes)?;
        }
        Ok(())
    }
}

fn die(how: Death) {
    match how {
        Death::Never => {}
        Death::Abort => std::process::abort(),
        Death::StackOverflow => {
            black_box(dig(0));
        }
    }
}

/// Uses up the stack: no depth ends it.
fn dig(depth: u64) -> u64 {
    let page = black_box([depth; 64]);
    match depth {
        u64::MAX => 0,
        _ => dig(depth + 1) + page[63],
    }
}
