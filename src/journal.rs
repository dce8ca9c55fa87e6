//! The log: every message once, in the order of intake, for whoever can't keep up.
//!
//! A journal is a directory of segments: files that are appended to, sealed, and removed whole. The
//! enqueuers append to it under one lock ([`Journal::lock`]); each consumer that is behind reads
//! with a [`Reader`] of its own; a thread syncs ([`Journal::run`]). When to remove what, whom to
//! tell of a gap, and that no second hub opens the same directory, is the hub's business.
//!
//! Invariants; a test bears each one's name:
//! 1. Sequence numbers ascend, and none is given twice that stands in the log or in `cursors`.
//!    Within a segment they are dense; a hole stands between two, and a reader is told of it.
//! 2. Readers stop at an atomically published end.
//! 3. Sealed segments never change.
//! 4. The durable mark advances only when all earlier files are synced; the directory is synced
//!    before anything in a new segment counts as durable.
//! 5. Syncing and unlinking never need the append lock.
//! 6. Segments are removed whole, oldest first; whoever still needed one is told of the gap.
//! 7. A failed write leaves nothing of its batch in the log, and the disk alone for a second; then
//!    the journal goes on by itself.
//! 8. After a failed sync its segment is neither synced nor written again, and the durable mark
//!    stays before it.
//! 9. Recovery scans only segments without a footer. Damage with nothing valid behind it is cut off
//!    and counted; damage with valid frames behind it is a gap, and what is behind it stays.
//! 10. Nothing is delivered that its checksum does not vouch for.
//! 11. A segment of an unknown version is refused with a text that says what to do.
//!
//! | file                   | what it has |
//! |------------------------|-------------|
//! | `{base:020}.seg`       | header, frames, footer when sealed: `segment.rs`, `frame.rs` |
//! | `cursors`, `cursors.bak` | where each consumer stands: `cursors.rs` |
//! | `inflight`             | what was in flight when the process died: `suspects.rs` |

mod append;
mod count;
mod cursors;
mod frame;
mod inspect;
mod reader;
mod recovery;
mod segment;
mod settings;
mod suspects;
mod sync;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, RwLock};
use serde::Serialize;

pub use append::{AppendError, Appender};
pub use count::Counted;
pub use cursors::{Cursor, Cursors, Loaded};
pub use frame::Record;
pub use inspect::{CursorReport, Hole, Problem, Report, SegmentReport, inspect};
pub use reader::{Gap, Read, Reader};
pub use recovery::Recovered;
pub use settings::{Keep, OnError, Settings, Sync};
pub use suspects::{Slot, Suspect, Suspects};

use append::Tail;
use reader::Recent;
use segment::{Disk, Filesystem, Segment};
use sync::Pulse;

/// A segment is not appended to beyond this.
const SEGMENT_MAX: u64 = 64 << 20;
/// The same when nothing is synced: the system then writes it back in one go.
const SEGMENT_MAX_UNSYNCED: u64 = 16 << 20;
/// How long the disk is left alone after a failure.
const PAUSE: Duration = Duration::from_secs(1);

/// The log of a hub.
pub struct Journal {
    dir: PathBuf,
    disk: Arc<dyn Disk>,
    sync: Sync,
    segment_max: u64,
    pause: Duration,
    log: RwLock<Log>,
    tail: Mutex<Tail>,
    /// The number behind the last one that was given out.
    written: AtomicU64,
    /// The same of those that were published.
    end: AtomicU64,
    /// How far the last sync round got, whether or not all went well.
    reached: AtomicU64,
    durable: AtomicU64,
    /// The next append is to begin a new segment.
    rotate: AtomicBool,
    fault: Mutex<Option<Fault>>,
    /// Whether there is one.
    faulty: AtomicBool,
    readers: AtomicUsize,
    recent: Mutex<Recent>,
    /// One sync round at a time.
    rounds: Mutex<()>,
    pulse: Mutex<Pulse>,
    /// The sync thread waits for work.
    wake: Condvar,
    asleep: AtomicBool,
    /// Others wait for a round.
    synced: Condvar,
    counters: Counters,
}

/// The segments, oldest first.
struct Log {
    segments: VecDeque<Arc<Segment>>,
    /// Everything below has been removed, or was never there.
    floor: u64,
}

impl Log {
    /// The sequence number behind the last message in a segment.
    fn end(&self) -> u64 {
        self.segments.back().map_or(self.floor, |last| last.end())
    }

    fn has(&self, segment: &Arc<Segment>) -> bool {
        (self.segments.iter()).any(|other| Arc::ptr_eq(other, segment))
    }

    /// The segment that has this message.
    fn at(&self, seq: u64) -> Option<&Arc<Segment>> {
        let next = self.segments.partition_point(|s| s.base <= seq);
        let segment = self.segments.get(next.checked_sub(1)?)?;
        (seq < segment.end()).then_some(segment)
    }
}

/// Why the journal can't be written.
struct Fault {
    why: String,
    full: bool,
    /// The disk is left alone until then.
    until: Option<Instant>,
}

impl Fault {
    fn of(error: &io::Error, pause: Duration) -> Self {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        Fault {
            why: error.to_string(),
            full: matches!(error.kind(), StorageFull | QuotaExceeded),
            until: Instant::now().checked_add(pause),
        }
    }

    fn as_error(&self) -> AppendError {
        AppendError::new(self.why.clone(), self.full)
    }
}

/// What a journal is opened with; tests make it small and faulty.
struct Options {
    sync: Sync,
    segment_max: u64,
    pause: Duration,
    disk: Arc<dyn Disk>,
}

impl Options {
    fn of(settings: &Settings) -> Self {
        Options {
            sync: settings.sync,
            segment_max: match settings.sync {
                Sync::Never => SEGMENT_MAX_UNSYNCED,
                _ => SEGMENT_MAX,
            },
            pause: PAUSE,
            disk: Arc::new(Filesystem),
        }
    }
}

impl Journal {
    /// Opens the journal in this directory, or makes it, and recovers what is there.
    ///
    /// Sequence numbers go on at the log's end or at `next_at_least`, whichever is higher.
    ///
    /// # Errors
    /// Why it can't be opened, and what to do.
    pub fn open(
        dir: &Path,
        settings: &Settings,
        next_at_least: u64,
    ) -> Result<(Arc<Journal>, Recovered), String> {
        Journal::open_with(dir, Options::of(settings), next_at_least)
    }

    fn open_with(
        dir: &Path,
        options: Options,
        next_at_least: u64,
    ) -> Result<(Arc<Journal>, Recovered), String> {
        make(dir, &*options.disk)
            .map_err(|error| format!("can't make the directory {}: {error}", dir.display()))?;
        let mut recovered = Recovered::default();
        let segments = recovery::recover(dir, &*options.disk, &mut recovered)?;
        let next = recovered.messages_end.max(next_at_least).max(1);
        let floor = segments.first().map_or(next, |first| first.after);
        let journal = Journal {
            dir: dir.to_owned(),
            disk: options.disk,
            sync: options.sync,
            segment_max: options.segment_max,
            pause: options.pause,
            log: RwLock::new(Log {
                segments: segments.into_iter().map(Arc::new).collect(),
                floor,
            }),
            tail: Mutex::new(Tail::new(next)),
            written: AtomicU64::new(next),
            end: AtomicU64::new(next),
            reached: AtomicU64::new(floor),
            durable: AtomicU64::new(floor),
            rotate: AtomicBool::new(false),
            fault: Mutex::new(None),
            faulty: AtomicBool::new(false),
            readers: AtomicUsize::new(0),
            recent: Mutex::default(),
            rounds: Mutex::new(()),
            pulse: Mutex::default(),
            wake: Condvar::new(),
            asleep: AtomicBool::new(false),
            synced: Condvar::new(),
            counters: Counters::default(),
        };
        let lost = recovered
            .corrupt
            .iter()
            .map(|range| range.end - range.start);
        (journal.counters.truncated_bytes).add(recovered.truncated_bytes);
        (journal.counters.corrupt_ranges).add(recovered.corrupt.len() as u64);
        journal.counters.corrupt_messages.add(lost.sum());
        Ok((Arc::new(journal), recovered))
    }

    /// Takes the append lock.
    pub fn lock(&self) -> Appender<'_> {
        Appender::new(self)
    }

    /// The oldest sequence number that is still kept; the end when there is none.
    pub fn begin(&self) -> u64 {
        let end = self.end();
        let log = self.log.read();
        log.segments
            .front()
            .map_or(end, |first| first.base.min(end))
    }

    /// The published end: readers stop before it.
    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// Everything below that stands in the log survives a power failure.
    pub fn durable(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    /// Whether this message stands in the log: it was written, and is not removed.
    pub fn has(&self, seq: u64) -> bool {
        seq < self.end() && self.log.read().at(seq).is_some()
    }

    /// The segments, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let log = self.log.read();
        let info = |segment: &Arc<Segment>| {
            let (first_ns, last_ns) = segment.times();
            SegmentInfo {
                base: segment.base,
                end: segment.end(),
                bytes: segment.size(),
                first_ns,
                last_ns,
                sealed: segment.is_closed(),
            }
        };
        log.segments.iter().map(info).collect()
    }

    /// Removes the oldest segment, if it begins with this sequence number and is not written any
    /// more. An unlink takes a while: this is for a thread that has it.
    ///
    /// # Errors
    /// The disk's reason, or that this is not the oldest sealed segment; it is still there then.
    pub fn remove_oldest(&self, base: u64) -> io::Result<()> {
        let (segment, floor) = {
            let mut log = self.log.write();
            let oldest = log
                .segments
                .pop_front_if(|s| s.base == base && s.is_closed());
            let Some(segment) = oldest else {
                let text = format!("the oldest sealed segment does not begin with {base}");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            };
            let floor = log.floor;
            log.floor = segment.end();
            (segment, floor)
        };
        match self.disk.remove(&segment.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let mut log = self.log.write();
                let path = segment.path.clone();
                log.segments.push_front(segment);
                log.floor = floor;
                Err(named("remove", &path, error))
            }
            _ => {
                self.counters.removed_segments.add(1);
                // One that comes back after a power failure is only removed again.
                let _ = self.disk.sync_dir(&self.dir);
                Ok(())
            }
        }
    }

    /// Makes the next append begin a new segment, so that the present one can grow old and go.
    pub fn rotate_soon(&self) {
        self.rotate.store(true, Ordering::Relaxed);
    }

    /// Seals and syncs everything and ends [`run`](Self::run); whoever appends later is refused.
    ///
    /// # Errors
    /// The disk's reason, when not all could be synced.
    pub fn close(&self) -> Result<(), String> {
        self.tail.lock().close(self);
        let result = self.sync_now();
        self.stop_sync();
        result
    }

    /// The error of the last failure, as long as the disk is to be left alone.
    fn paused(&self) -> Option<AppendError> {
        if !self.faulty.load(Ordering::Relaxed) {
            return None;
        }
        let fault = self.fault.lock();
        let fault = fault.as_ref()?;
        let paused = fault.until.is_none_or(|until| Instant::now() < until);
        paused.then(|| fault.as_error())
    }

    fn fail(&self, fault: Fault) -> AppendError {
        let error = fault.as_error();
        *self.fault.lock() = Some(fault);
        self.faulty.store(true, Ordering::Relaxed);
        error
    }

    /// Something has been written.
    fn work_again(&self) {
        if self.faulty.swap(false, Ordering::Relaxed) {
            *self.fault.lock() = None;
        }
    }

    /// The journal's numbers at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let (segments, bytes) = {
            let log = self.log.read();
            let bytes = log.segments.iter().map(|segment| segment.size()).sum();
            (log.segments.len(), bytes)
        };
        let state = match &*self.fault.lock() {
            None => State::Ok,
            Some(fault) => State::Failed {
                why: fault.why.clone(),
            },
        };
        let counters = &self.counters;
        Snapshot {
            state,
            bytes,
            segments,
            begin: self.begin(),
            end: self.end(),
            durable: self.durable(),
            appends: counters.appends.get(),
            appended_messages: counters.appended_messages.get(),
            appended_bytes: counters.appended_bytes.get(),
            append_ns: counters.append_ns.get(),
            append_ns_max: counters.append_ns_max.get(),
            syncs: counters.syncs.get(),
            sync_ns: counters.sync_ns.get(),
            sync_ns_max: counters.sync_ns_max.get(),
            write_errors: counters.write_errors.get(),
            sync_errors: counters.sync_errors.get(),
            unjournaled: counters.unjournaled.get(),
            truncated_bytes: counters.truncated_bytes.get(),
            corrupt_ranges: counters.corrupt_ranges.get(),
            corrupt_messages: counters.corrupt_messages.get(),
            removed_segments: counters.removed_segments.get(),
        }
    }
}

/// Makes the directory, so that its name survives a power failure.
fn make(dir: &Path, disk: &dyn Disk) -> io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir)?;
    match dir.parent() {
        Some(parent) if parent != Path::new("") => disk.sync_dir(parent),
        _ => disk.sync_dir(Path::new(".")),
    }
}

/// The error with the file and what was done to it.
fn named(what: &str, path: &Path, error: io::Error) -> io::Error {
    let text = format!("can't {what} {}: {error}", path.display());
    io::Error::new(error.kind(), text)
}

/// One segment, for those who decide what is kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SegmentInfo {
    /// The sequence number that it begins with.
    pub base: u64,
    /// The one behind its last message.
    pub end: u64,
    /// Its size on the disk.
    pub bytes: u64,
    /// The earliest time of intake in it, in nanoseconds since 1970.
    pub first_ns: u64,
    /// The latest.
    pub last_ns: u64,
    /// Nothing is appended to it any more.
    pub sealed: bool,
}

/// Whether the journal can be written.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum State {
    /// It can, as far as is known.
    Ok,
    /// It could not, when it was last tried.
    Failed {
        /// The disk's reason.
        why: String,
    },
}

/// The numbers of a journal at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct Snapshot {
    /// Whether it can be written.
    #[serde(flatten)]
    pub state: State,
    /// Its size on the disk.
    pub bytes: u64,
    /// How many segments it has.
    pub segments: usize,
    /// See [`Journal::begin`].
    pub begin: u64,
    /// See [`Journal::end`].
    pub end: u64,
    /// See [`Journal::durable`].
    pub durable: u64,
    /// Batches that were appended.
    pub appends: u64,
    /// Messages in them.
    pub appended_messages: u64,
    /// Bytes written for them.
    pub appended_bytes: u64,
    /// Time that took in all.
    pub append_ns: u64,
    /// The longest that one batch took.
    pub append_ns_max: u64,
    /// Files synced, or tried to.
    pub syncs: u64,
    /// Time that took in all.
    pub sync_ns: u64,
    /// The longest that one took.
    pub sync_ns_max: u64,
    /// Batches that could not be written.
    pub write_errors: u64,
    /// Segments that could not be synced.
    pub sync_errors: u64,
    /// Messages that were given numbers without being written.
    pub unjournaled: u64,
    /// Bytes that were cut off at the start.
    pub truncated_bytes: u64,
    /// Damaged parts found at the start.
    pub corrupt_ranges: u64,
    /// The messages in them.
    pub corrupt_messages: u64,
    /// Segments that retention has removed.
    pub removed_segments: u64,
}

/// A number that only ever goes up.
#[derive(Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    fn at_least(&self, value: u64) {
        self.0.fetch_max(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
struct Counters {
    appends: Counter,
    appended_messages: Counter,
    appended_bytes: Counter,
    append_ns: Counter,
    append_ns_max: Counter,
    syncs: Counter,
    sync_ns: Counter,
    sync_ns_max: Counter,
    write_errors: Counter,
    sync_errors: Counter,
    unjournaled: Counter,
    truncated_bytes: Counter,
    corrupt_ranges: Counter,
    corrupt_messages: Counter,
    removed_segments: Counter,
}

impl Counters {
    fn appended(&self, messages: u64, bytes: u64, took: Duration) {
        let took = took.as_nanos() as u64;
        self.appends.add(1);
        self.appended_messages.add(messages);
        self.appended_bytes.add(bytes);
        self.append_ns.add(took);
        self.append_ns_max.at_least(took);
    }

    fn synced(&self, took: Duration) {
        let took = took.as_nanos() as u64;
        self.syncs.add(1);
        self.sync_ns.add(took);
        self.sync_ns_max.at_least(took);
    }
}

#[cfg(test)]
mod tests;
