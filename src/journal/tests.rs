//! The journal's invariants by name, on a small log and a disk with faults.

mod damage;
mod disk;
mod fixture;
mod invariants;
mod model;

use super::*;
use disk::TestDisk;
use tempfile::TempDir;
use weir_consumer::Message;

/// Small, so that a few messages fill several segments.
const SMALL: u64 = 700;

/// A journal in a directory of its own.
struct Lab {
    dir: TempDir,
    disk: Arc<TestDisk>,
    journal: Arc<Journal>,
    recovered: Recovered,
}

impl Lab {
    fn new() -> Lab {
        Lab::with(Sync::Every(Duration::from_secs(3600)), Duration::ZERO)
    }

    fn with(sync: Sync, pause: Duration) -> Lab {
        let dir = tempfile::tempdir().unwrap();
        let (disk, journal, recovered) = open(dir.path(), sync, pause, 1).unwrap();
        Lab {
            dir,
            disk,
            journal,
            recovered,
        }
    }

    /// What a new process would find: the old one is not asked.
    fn reopen(&mut self, next_at_least: u64) {
        let every = Sync::Every(Duration::from_secs(3600));
        let opened = open(self.dir.path(), every, Duration::ZERO, next_at_least);
        (self.disk, self.journal, self.recovered) = opened.unwrap();
    }

    /// Appends and publishes messages of these topics; `text` makes their payloads.
    fn send(&self, topics: &[&str], text: &str) -> Result<u64, AppendError> {
        send(&self.journal, topics, text)
    }

    /// Fills segments until there are so many.
    fn fill(&self, segments: usize) {
        while self.journal.segments().len() < segments {
            self.send(&["a", "b"], "fill").unwrap();
        }
    }

    fn path(&self, base: u64) -> PathBuf {
        self.dir.path().join(segment::name(base))
    }
}

type Opened = (Arc<TestDisk>, Arc<Journal>, Recovered);

fn open(dir: &Path, sync: Sync, pause: Duration, next_at_least: u64) -> Result<Opened, String> {
    let disk = Arc::new(TestDisk::default());
    let options = Options {
        sync,
        segment_max: SMALL,
        pause,
        disk: disk.clone(),
    };
    let (journal, recovered) = Journal::open_with(dir, options, next_at_least)?;
    Ok((disk, journal, recovered))
}

/// The payload of a message: says its number, so that one in the wrong place is seen.
fn payload(text: &str, seq: u64) -> String {
    format!("{text} {seq}")
}

fn send(journal: &Journal, topics: &[&str], text: &str) -> Result<u64, AppendError> {
    let mut appender = journal.lock();
    let first = appender.next();
    let messages: Arc<[Message]> = (topics.iter().zip(first..))
        .map(|(topic, seq)| Message::at_ns((*topic).into(), payload(text, seq).into(), seq, seq))
        .collect();
    let records = messages.iter().map(|message| Record {
        topic: message.topic(),
        payload: message.payload(),
        source_seq: None,
    });
    let appended = appender.append(0, first, records)?;
    assert_eq!(appended, first);
    appender.publish(&messages);
    Ok(first)
}

/// What a reader got until the end.
#[derive(Debug, Default, PartialEq)]
struct Got {
    messages: Vec<(u64, String)>,
    gaps: Vec<(Range<u64>, Gap)>,
}

use std::ops::Range;

impl Got {
    fn seqs(&self) -> Vec<u64> {
        self.messages.iter().map(|(seq, _)| *seq).collect()
    }
}

/// Reads on until the end, `max` messages at a time.
fn drain(reader: &mut Reader, max: usize, wants: impl Fn(&str) -> bool) -> Got {
    let mut got = Got::default();
    loop {
        let before = reader.position();
        let mut want = |topic: &str| wants(topic).then(|| topic.into());
        match reader.read(&mut want, max, usize::MAX, 0).unwrap() {
            Read::End => return got,
            Read::Gap { range, why } => {
                assert_eq!((range.start, range.end), (before, reader.position()));
                got.gaps.push((range, why));
            }
            Read::Messages(messages) => {
                assert!(messages.len() <= max);
                for message in messages.iter() {
                    let text = String::from_utf8(message.payload().to_vec()).unwrap();
                    got.messages.push((message.seq(), text));
                }
            }
        }
        assert!(reader.position() > before, "it stands still at {before}");
    }
}

/// Everything from a position on, off the disk.
fn all(journal: &Arc<Journal>, position: u64) -> Got {
    drain(&mut journal.reader(position), 7, |_| true)
}
