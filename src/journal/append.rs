//! The writing end: one batch, one write.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::MutexGuard;
use weir_consumer::Message;

use super::frame::{self, Footer, Record, TABLE_BYTES, TABLE_ENTRY, TABLE_TOPICS, Tally};
use super::segment::{DiskFile, Header, Segment, name};
use super::{Fault, Journal, named};
use crate::stats::now_ns;

/// A larger batch becomes several frames, so that a reader need not take it into memory whole.
const FRAME_MAX: usize = 4 << 20;
/// What the buffer keeps of a batch larger than that.
const BUFFER_KEEP: usize = 8 << 20;

/// Why a batch is not in the journal; nothing of it is.
#[derive(Clone, Debug)]
pub struct AppendError {
    text: String,
    full: bool,
}

impl AppendError {
    pub(super) fn new(text: String, full: bool) -> Self {
        AppendError { text, full }
    }

    /// Whether the disk, or what the hub may use of it, is full.
    pub fn is_full(&self) -> bool {
        self.full
    }
}

impl fmt::Display for AppendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for AppendError {}

/// What the append lock guards.
pub(super) struct Tail {
    pub(super) next: u64,
    pub(super) closed: bool,
    active: Option<Active>,
    /// Batches are made bytes here.
    buffer: Vec<u8>,
}

/// The segment that is written.
struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn DiskFile>,
    topics: Topics,
}

impl Tail {
    pub(super) fn new(next: u64) -> Self {
        Tail {
            next,
            closed: false,
            active: None,
            buffer: Vec::new(),
        }
    }

    /// Whether the batch in the buffer has to begin a new segment.
    fn needs_new(&self, journal: &Journal) -> bool {
        let Some(Active { segment, .. }) = &self.active else {
            return true;
        };
        if segment.given_up().is_some() || segment.end() != self.next {
            return true;
        }
        let full = segment.len() + self.buffer.len() as u64 > journal.segment_max;
        !segment.is_empty() && (full || journal.rotate.load(Ordering::Relaxed))
    }

    /// Writes the batch in the buffer.
    fn write(&mut self, journal: &Journal, messages: u32, received_ns: u64) -> io::Result<()> {
        if self.needs_new(journal) {
            self.begin(journal)?;
        }
        let Some(Active { segment, file, .. }) = &self.active else {
            return Err(io::Error::other("no segment is open"));
        };
        let at = segment.len();
        frame::stamp(&mut self.buffer, segment.base, at);
        if let Err(error) = file.write_all_at(&self.buffer, at) {
            let error = named("write", &segment.path, error);
            if file.set_len(at).is_err() {
                // What stands behind its frames now must not come back to life: the next segment
                // begins with the same sequence number, and recovery lets that one go before.
                match segment.is_empty() {
                    true => self.discard(journal),
                    false => {
                        segment.close();
                        self.active = None;
                    }
                }
            }
            return Err(error);
        }
        segment.grow(self.buffer.len() as u64, messages.into(), received_ns);
        Ok(())
    }

    /// Begins a new segment and seals the one before.
    fn begin(&mut self, journal: &Journal) -> io::Result<()> {
        if self
            .active
            .as_ref()
            .is_some_and(|active| active.segment.is_empty())
        {
            self.discard(journal);
        }
        let header = Header {
            base: self.next,
            after: journal.log.read().end(),
            created_ns: now_ns(),
        };
        let path = journal.dir.join(name(header.base));
        let file = (journal.disk.create(&path)).map_err(|error| named("create", &path, error))?;
        if let Err(error) = file.write_all_at(&header.encode(), 0) {
            let _ = journal.disk.remove(&path); // else recovery does
            return Err(named("write", &path, error));
        }
        // Before the new one can be seen: a sync round that knows it knows that the old is closed.
        self.seal();
        let segment = Arc::new(Segment::new(path, header, Some(file.clone())));
        journal.log.write().segments.push_back(segment.clone());
        journal.rotate.store(false, Ordering::Relaxed);
        self.active = Some(Active {
            segment,
            file,
            topics: Topics::default(),
        });
        Ok(())
    }

    /// Removes the active segment, which has no frames.
    fn discard(&mut self, journal: &Journal) {
        if let Some(Active { segment, .. }) = self.active.take() {
            let mut log = journal.log.write();
            log.segments.retain(|other| !Arc::ptr_eq(other, &segment));
            drop(log);
            let _ = journal.disk.remove(&segment.path); // else recovery does
            segment.settle();
        }
    }

    /// Ends the active segment. A footer that can't be written is only missed by those in a hurry.
    fn seal(&mut self) {
        if let Some(active) = self.active.take() {
            let segment = &active.segment;
            if segment.given_up().is_none() {
                let (first_ns, last_ns) = segment.times();
                let footer = Footer {
                    end: segment.end(),
                    first_ns,
                    last_ns,
                    table: active.topics.table(),
                };
                let _ = segment.seal(&*active.file, &footer);
            }
            segment.close();
        }
    }

    /// Ends the log for good.
    pub(super) fn close(&mut self, journal: &Journal) {
        self.closed = true;
        match &self.active {
            Some(active) if active.segment.is_empty() => self.discard(journal),
            _ => self.seal(),
        }
    }
}

/// The journal's append lock, held.
pub struct Appender<'j> {
    journal: &'j Journal,
    tail: MutexGuard<'j, Tail>,
}

impl<'j> Appender<'j> {
    pub(super) fn new(journal: &'j Journal) -> Self {
        Appender {
            journal,
            tail: journal.tail.lock(),
        }
    }

    /// The number that the next message gets.
    pub fn next(&self) -> u64 {
        self.tail.next
    }

    /// Appends a batch; answers its first sequence number.
    ///
    /// # Errors
    /// The disk's reason, with the file; nothing of the batch is in the log then. For a second
    /// after a failure the answer is the same without a look at the disk.
    pub fn append<'m>(
        &mut self,
        source: u16,
        received_ns: u64,
        records: impl Iterator<Item = Record<'m>> + Clone,
    ) -> Result<u64, AppendError> {
        let (journal, tail) = (self.journal, &mut *self.tail);
        if tail.closed {
            return Err(AppendError::new("the journal is closed".into(), false));
        }
        if let Some(error) = journal.paused() {
            return Err(error);
        }
        let started = Instant::now();
        let first = tail.next;
        tail.buffer.clear();
        let encoded = frame::encode(
            &mut tail.buffer,
            first,
            source,
            received_ns,
            records.clone(),
            FRAME_MAX,
        );
        let Ok(count) = encoded else {
            let text = "a message of more than 4 GiB can't be journaled";
            return Err(AppendError::new(text.into(), false));
        };
        if count == 0 {
            return Ok(first);
        }
        let written = tail.write(journal, count, received_ns);
        let bytes = tail.buffer.len();
        if bytes > BUFFER_KEEP {
            tail.buffer.clear();
            tail.buffer.shrink_to(BUFFER_KEEP);
        }
        if let Err(error) = written {
            journal.counters.write_errors.add(1);
            return Err(journal.fail(Fault::of(&error, journal.pause)));
        }
        if let Some(active) = &mut tail.active {
            active.topics.add(records);
        }
        tail.next += u64::from(count);
        journal.written.store(tail.next, Ordering::SeqCst);
        journal.work_again();
        (journal.counters).appended(u64::from(count), bytes as u64, started.elapsed());
        Ok(first)
    }

    /// Gives numbers to messages that go by without being written; answers the first.
    pub fn pass(&mut self, count: u64) -> u64 {
        let first = self.tail.next;
        self.tail.next += count;
        self.journal.written.store(self.tail.next, Ordering::SeqCst);
        self.journal.counters.unjournaled.add(count);
        first
    }

    /// Makes what was appended readable; `batch` is what was appended, for those who read at the
    /// head.
    pub fn publish(self, batch: &Arc<[Message]>) {
        // In this order: what is kept can be read.
        self.journal.end.store(self.tail.next, Ordering::Release);
        self.journal.keep(batch);
    }
}

impl Drop for Appender<'_> {
    fn drop(&mut self) {
        self.journal.end.store(self.tail.next, Ordering::Release);
        self.journal.wake_sync();
    }
}

/// How many messages and bytes of which topic the active segment has.
pub(super) struct Topics {
    /// None when they are too many for a footer.
    tallies: Option<HashMap<Box<str>, (u64, u64), rapidhash::fast::RandomState>>,
    /// What the table takes in the footer.
    bytes: usize,
}

impl Default for Topics {
    fn default() -> Self {
        Topics {
            tallies: Some(HashMap::default()),
            bytes: 0,
        }
    }
}

impl Topics {
    fn add<'m>(&mut self, records: impl Iterator<Item = Record<'m>>) {
        for record in records {
            let size = record.topic.len() + record.payload.len();
            self.count(record.topic, size as u64);
        }
    }

    /// Counts one message.
    pub(super) fn count(&mut self, topic: &str, size: u64) {
        let Some(tallies) = &mut self.tallies else {
            return;
        };
        if let Some((messages, bytes)) = tallies.get_mut(topic) {
            *messages += 1;
            *bytes += size;
            return;
        }
        self.bytes += TABLE_ENTRY + topic.len();
        if tallies.len() == TABLE_TOPICS || self.bytes > TABLE_BYTES {
            self.tallies = None;
        } else {
            tallies.insert(topic.into(), (1, size));
        }
    }

    /// The footer's table.
    pub(super) fn table(self) -> Option<Vec<Tally>> {
        let tally = |(topic, (messages, bytes))| Tally {
            topic,
            messages,
            bytes,
        };
        let mut table: Vec<Tally> = self.tallies?.into_iter().map(tally).collect();
        table.sort_unstable_by(|a, b| a.topic.cmp(&b.topic));
        Some(table)
    }
}
