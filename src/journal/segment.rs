//! One file of the log: header, frames, footer; how one is read, sealed and recovered.
//!
//! A segment knows its file and its numbers; in which order segments stand, and which of them is
//! written, is known to `journal.rs`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::frame::{Footer, HEAD, Head, MARKER, TRAILER, u32_at, u64_at};

/// Bytes of a segment's header: magic, version, base, log end before it, time, crc.
pub(super) const HEADER: usize = 40;
/// The version of the format that is written.
pub(super) const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"weirseg\n";
/// Bytes read at a time.
const CHUNK: u64 = 256 << 10;
/// A place in the index for about so many bytes.
const INDEX_STEP: u64 = 1 << 20;

/// What the journal asks of the disk when it writes; tests put faults in here.
pub(super) trait Disk: Send + std::marker::Sync {
    /// Makes a new file, in place of one that may have been left over.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens a file to truncate, write and sync it.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Removes a file.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names of a directory's files survive a power failure.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
}

/// A file that is written.
pub(super) trait DiskFile: Send + std::marker::Sync {
    /// Writes all of this at an offset.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Cuts or extends the file.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Makes what was written survive a power failure.
    fn sync_data(&self) -> io::Result<()>;
}

/// The real disk.
pub(super) struct Filesystem;

impl Disk for Filesystem {
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(Arc::new(File::create_new(path)?)),
        }
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(OpenOptions::new().write(true).open(path)?))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }
}

impl DiskFile for File {
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        File::sync_data(self)
    }
}

/// What stands at the beginning of a segment's file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Header {
    /// The sequence number of its first message.
    pub(super) base: u64,
    /// Where the log ended before: numbers from here to `base` were given to messages that were
    /// never written.
    pub(super) after: u64,
    pub(super) created_ns: u64,
}

/// What the first bytes of a file are.
#[derive(Debug, PartialEq)]
pub(super) enum Beginning {
    Header(Header),
    /// Another version's; the place of version and checksum stays the same in all versions.
    Version(u32),
    Damaged,
}

impl Header {
    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut out = [0; HEADER];
        out[..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..20].copy_from_slice(&self.base.to_le_bytes());
        out[20..28].copy_from_slice(&self.after.to_le_bytes());
        out[28..36].copy_from_slice(&self.created_ns.to_le_bytes());
        let crc = crc32c::crc32c(&out[..36]);
        out[36..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(super) fn read(bytes: &[u8]) -> Beginning {
        let Some(bytes) = bytes.get(..HEADER) else {
            return Beginning::Damaged;
        };
        if bytes[..8] != MAGIC || crc32c::crc32c(&bytes[..36]) != u32_at(bytes, 36) {
            return Beginning::Damaged;
        }
        match u32_at(bytes, 8) {
            VERSION => Beginning::Header(Header {
                base: u64_at(bytes, 12),
                after: u64_at(bytes, 20),
                created_ns: u64_at(bytes, 28),
            }),
            version => Beginning::Version(version),
        }
    }
}

/// The name of the segment that begins with this sequence number.
pub(super) fn name(base: u64) -> String {
    format!("{base:020}.seg")
}

/// The sequence number that a segment of this name begins with.
pub(super) fn base_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    let all_digits = digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit());
    all_digits.then(|| digits.parse().ok()).flatten()
}

/// A segment of the log, shared by the appender, the sync thread and the readers.
pub(super) struct Segment {
    pub(super) base: u64,
    /// See [`Header::after`]; `base` when the header is damaged.
    pub(super) after: u64,
    pub(super) path: PathBuf,
    /// Where the frames end in the file. Written by the appender only, `len` before `end`.
    len: AtomicU64,
    /// The sequence number behind the last message.
    end: AtomicU64,
    /// The file's size: with the footer, if it has one.
    size: AtomicU64,
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    /// Nothing is appended any more.
    closed: AtomicBool,
    /// What is below survives a power failure.
    synced: AtomicU64,
    /// The directory's entry does.
    named: AtomicBool,
    /// There is nothing left to sync, or nothing that may be.
    settled: AtomicBool,
    /// Why it is neither synced nor written any more.
    given_up: OnceLock<String>,
    /// What is synced; a recovered segment's is opened when it is needed.
    file: Mutex<Option<Arc<dyn DiskFile>>>,
    /// Sequence numbers and offsets of some frames, so that a reader need not begin at the front.
    index: Mutex<Vec<(u64, u64)>>,
}

impl Segment {
    /// A segment without frames.
    pub(super) fn new(path: PathBuf, header: Header, file: Option<Arc<dyn DiskFile>>) -> Self {
        Segment {
            base: header.base,
            after: header.after,
            path,
            len: AtomicU64::new(HEADER as u64),
            end: AtomicU64::new(header.base),
            size: AtomicU64::new(HEADER as u64),
            first_ns: AtomicU64::new(u64::MAX),
            last_ns: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            synced: AtomicU64::new(header.base),
            named: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            given_up: OnceLock::new(),
            file: Mutex::new(file),
            index: Mutex::new(Vec::new()),
        }
    }

    /// Notes frames that now stand in the file.
    pub(super) fn grow(&self, bytes: u64, messages: u64, received_ns: u64) {
        let (at, seq) = (self.len(), self.end());
        self.remember(seq, at);
        self.saw(received_ns);
        self.size.store(at + bytes, Ordering::Relaxed);
        self.len.store(at + bytes, Ordering::Release);
        self.end.store(seq + messages, Ordering::Release);
    }

    /// Notes what recovery found in the file.
    pub(super) fn restore(&self, len: u64, end: u64, size: u64) {
        self.len.store(len, Ordering::Release);
        self.end.store(end, Ordering::Release);
        self.size.store(size, Ordering::Relaxed);
    }

    pub(super) fn saw(&self, received_ns: u64) {
        self.first_ns.fetch_min(received_ns, Ordering::Relaxed);
        self.last_ns.fetch_max(received_ns, Ordering::Relaxed);
    }

    pub(super) fn remember(&self, seq: u64, at: u64) {
        let mut index = self.index.lock();
        if index.last().is_none_or(|(_, last)| at >= last + INDEX_STEP) {
            index.push((seq, at));
        }
    }

    /// The offset of a frame at or before the one that has this message.
    pub(super) fn offset_before(&self, seq: u64) -> u64 {
        let index = self.index.lock();
        let next = index.partition_point(|(first, _)| *first <= seq);
        match next.checked_sub(1) {
            Some(place) => index[place].1,
            None => HEADER as u64,
        }
    }

    pub(super) fn len(&self) -> u64 {
        self.len.load(Ordering::Acquire)
    }

    pub(super) fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// The earliest and the latest time of intake.
    pub(super) fn times(&self) -> (u64, u64) {
        let first = self.first_ns.load(Ordering::Relaxed);
        let last = self.last_ns.load(Ordering::Relaxed);
        (first.min(last), last)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.end() == self.base
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Writes the footer behind the frames. The segment is as good without one, only slower.
    pub(super) fn seal(&self, file: &dyn DiskFile, footer: &Footer) -> io::Result<()> {
        let at = self.len();
        let bytes = footer.encode(self.base, at);
        let written = file.write_all_at(&bytes, at);
        match written {
            Ok(()) => self.size.store(at + bytes.len() as u64, Ordering::Relaxed),
            Err(_) => drop(file.set_len(at)),
        }
        written
    }

    pub(super) fn file(&self, disk: &dyn Disk) -> io::Result<Arc<dyn DiskFile>> {
        match &*self.file.lock() {
            Some(file) => Ok(file.clone()),
            None => disk.open(&self.path),
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    /// Everything in it and its name survive a power failure.
    pub(super) fn settle(&self) {
        self.settled.store(true, Ordering::Release);
        *self.file.lock() = None;
    }

    pub(super) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    pub(super) fn set_synced(&self, seq: u64) {
        self.synced.store(seq, Ordering::Release);
    }

    /// Whether its name survives a power failure.
    pub(super) fn is_named(&self) -> bool {
        self.named.load(Ordering::Relaxed)
    }

    pub(super) fn set_named(&self) {
        self.named.store(true, Ordering::Relaxed);
    }

    /// Nobody syncs or writes it any more.
    pub(super) fn give_up(&self, why: String) {
        let _ = self.given_up.set(why);
        self.settle();
    }

    pub(super) fn given_up(&self) -> Option<&str> {
        self.given_up.get().map(String::as_str)
    }

    /// Begins to read at an offset.
    pub(super) fn scan(&self, offset: u64) -> io::Result<Scan> {
        Ok(Scan::new(File::open(&self.path)?, self.base, offset))
    }

    /// The footer, if there is a sound one.
    pub(super) fn footer(&self) -> io::Result<Option<Footer>> {
        if self.size() == self.len() {
            return Ok(None);
        }
        let file = File::open(&self.path)?;
        Ok(read_footer(&file, self.base, file.metadata()?.len())?.map(|(_, footer)| footer))
    }
}

/// The footer of a sealed file of this size, and its offset.
pub(super) fn read_footer(file: &File, base: u64, size: u64) -> io::Result<Option<(u64, Footer)>> {
    let Some(trailer) = size.checked_sub(TRAILER as u64) else {
        return Ok(None);
    };
    let bytes = read_at(file, trailer, TRAILER as u64)?;
    let Some(offset) = Footer::offset(&bytes, base) else {
        return Ok(None);
    };
    if offset < HEADER as u64 || offset >= trailer {
        return Ok(None);
    }
    let bytes = read_at(file, offset, trailer - offset)?;
    let footer = Head::read(&bytes, base, offset)
        .filter(|head| head.is_footer() && head.vouches_for(&bytes[HEAD..]))
        .and_then(|_| Footer::read(&bytes[HEAD..]));
    Ok(footer.map(|footer| (offset, footer)))
}

/// So many bytes, fewer at the end of the file.
pub(super) fn read_at(file: &File, offset: u64, len: u64) -> io::Result<Bytes> {
    read_into(BytesMut::new(), file, offset, len)
}

/// The same in memory that was used before.
fn read_into(mut bytes: BytesMut, file: &File, offset: u64, len: u64) -> io::Result<Bytes> {
    bytes.resize(len as usize, 0);
    let mut done = 0;
    while done < bytes.len() {
        match file.read_at(&mut bytes[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(done);
    Ok(bytes.freeze())
}

/// Reads the frames of one file, one after another.
pub(super) struct Scan {
    file: File,
    base: u64,
    offset: u64,
    chunk: Bytes,
    chunk_at: u64,
}

/// What [`Scan::next`] found.
pub(super) enum Found {
    /// A whole frame.
    Frame {
        offset: u64,
        head: Head,
        body: Bytes,
    },
    /// No more frames.
    End,
}

impl Scan {
    pub(super) fn new(file: File, base: u64, offset: u64) -> Self {
        Scan {
            file,
            base,
            offset: offset.max(HEADER as u64),
            chunk: Bytes::new(),
            chunk_at: 0,
        }
    }

    /// Where it will look next.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes on at this offset if it is further on.
    pub(super) fn skip_to(&mut self, offset: u64) {
        self.offset = self.offset.max(offset);
    }

    /// The next frame that is whole and undamaged and ends before `limit`; what stands between is
    /// damage and passed over. After an error the same frame is looked for again.
    pub(super) fn next(&mut self, limit: u64) -> io::Result<Found> {
        while self.offset + HEAD as u64 <= limit {
            let offset = self.offset;
            let bytes = self.get(offset, HEAD as u64, limit)?;
            if bytes.len() < HEAD {
                break; // the file is shorter than it was
            }
            let Some(head) = Head::read(&bytes, self.base, offset) else {
                self.offset = self.find(offset + 1, limit)?;
                continue;
            };
            let whole = HEAD as u64 + u64::from(head.body_len);
            if offset + whole > limit {
                self.offset = self.find(offset + HEAD as u64, limit)?;
                continue;
            }
            let bytes = self.get(offset, whole, limit)?;
            self.offset = offset + whole;
            let body = bytes.slice(HEAD.min(bytes.len())..);
            if head.vouches_for(&body) {
                return Ok(Found::Frame { offset, head, body });
            }
        }
        self.offset = self.offset.max(limit);
        Ok(Found::End)
    }

    /// Where the next marker stands, or `limit`.
    fn find(&mut self, from: u64, limit: u64) -> io::Result<u64> {
        let mut at = from;
        while at + HEAD as u64 <= limit {
            let bytes = self.get(at, CHUNK.min(limit - at), limit)?;
            if let Some(found) = bytes.windows(4).position(|four| four == MARKER) {
                return Ok(at + found as u64);
            }
            if bytes.len() < HEAD {
                break;
            }
            at += bytes.len() as u64 - 3;
        }
        Ok(limit)
    }

    fn get(&mut self, offset: u64, len: u64, limit: u64) -> io::Result<Bytes> {
        let have = offset.checked_sub(self.chunk_at);
        if let Some(from) = have
            && from + len <= self.chunk.len() as u64
        {
            return Ok(self.chunk.slice(from as usize..(from + len) as usize));
        }
        // When no message was taken out of the last chunk, or all were copied, it is free again.
        let chunk = std::mem::take(&mut self.chunk);
        let memory = chunk.try_into_mut().ok();
        let memory = memory.filter(|memory| memory.capacity() as u64 <= 2 * CHUNK);
        let memory = memory.unwrap_or_default();
        let len_read = CHUNK.max(len).min(limit - offset);
        self.chunk = read_into(memory, &self.file, offset, len_read)?;
        self.chunk_at = offset;
        Ok(self.chunk.slice(..self.chunk.len().min(len as usize)))
    }
}
