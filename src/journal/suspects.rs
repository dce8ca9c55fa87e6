//! What was in flight when the process died, in the file `inflight`.
//!
//! A message that kills the process (an abort, a stack overflow, no memory) leaves no error behind.
//! So, after a stop that was not in order, each worker notes what it is about to deliver in a slot
//! of this file; the next start reads from the slots what to be careful with, and how often it was
//! tried. A note survives the end of the process, not that of the power: that costs no sync.
//!
//! 1. What was in flight at a death is remembered until it is settled: a second death before that,
//!    of whatever message, forgets nothing.
//! 2. A damaged slot is nobody's.

use std::cmp::Reverse;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::frame::{u32_at, u64_at};
use super::named;
use super::segment::read_at;

const FILE: &str = "inflight";
const SLOT: usize = 64;
/// More workers than this have no slot; the file of another would be no file of ours.
const SLOTS_MAX: usize = 16_384;
const MAGIC: [u8; 8] = *b"weirslot";

/// The slots of all workers.
pub struct Suspects {
    file: Arc<File>,
    old: Arc<[Old]>,
    /// Slots given to workers, behind the old ones.
    given: AtomicUsize,
}

/// A slot as it was found.
struct Old {
    consumer: u64,
    suspect: Suspect,
}

/// Messages that were in flight when the process died.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The first of them.
    pub first: u64,
    /// The last, itself one of them.
    pub last: u64,
    /// How often their delivery was begun.
    pub attempts: u32,
}

impl Suspects {
    /// Opens the slots of a journal's directory; after a clean stop none of them counts.
    ///
    /// # Errors
    /// The disk's reason, with the file.
    pub fn open(dir: &Path, clean: bool) -> io::Result<Suspects> {
        let path = dir.join(FILE);
        Suspects::open_file(&path, clean).map_err(|error| named("open", &path, error))
    }

    fn open_file(path: &Path, clean: bool) -> io::Result<Suspects> {
        let mut options = OpenOptions::new();
        let file = (options.read(true).write(true).create(true).truncate(clean)).open(path)?;
        let bytes = read_at(&file, 0, (SLOT * SLOTS_MAX) as u64)?;
        let mut old: Vec<Old> = bytes.chunks_exact(SLOT).filter_map(decode).collect();
        // Of several deaths with the same message, the last tells of them all.
        old.sort_unstable_by_key(|old| (old.key(), Reverse(old.suspect.attempts)));
        old.dedup_by_key(|old| old.key());
        // Close together, and nothing else: what is free stands behind.
        let mut image = Vec::with_capacity(old.len() * SLOT);
        for slot in &old {
            image.extend_from_slice(&encode(slot.consumer, slot.suspect));
        }
        if image != bytes {
            file.write_all_at(&image, 0)?;
            file.set_len(image.len() as u64)?;
        }
        Ok(Suspects {
            file: Arc::new(file),
            old: old.into(),
            given: AtomicUsize::new(0),
        })
    }

    /// What the workers of this consumer had in flight.
    pub fn of(&self, consumer: &str) -> Vec<Suspect> {
        let consumer = hash(consumer);
        let its = self.old.iter().filter(|old| old.consumer == consumer);
        its.map(|old| old.suspect).collect()
    }

    /// Forgets what this consumer had in flight before this position: it is settled.
    pub fn forget_below(&self, consumer: &str, position: u64) {
        let consumer = hash(consumer);
        for (place, old) in self.old.iter().enumerate() {
            if old.consumer == consumer && old.suspect.last < position {
                erase(&self.file, place);
            }
        }
    }

    /// A slot for one more worker of this consumer.
    pub fn slot(&self, consumer: &str) -> Slot {
        let place = self.old.len() + self.given.fetch_add(1, Ordering::Relaxed);
        Slot {
            file: self.file.clone(),
            old: self.old.clone(),
            consumer: hash(consumer),
            offset: (place < SLOTS_MAX).then_some((place * SLOT) as u64),
        }
    }
}

impl Old {
    fn key(&self) -> (u64, u64, u64) {
        (self.consumer, self.suspect.first, self.suspect.last)
    }
}

/// A note that stays makes its message wait for others under suspicion, no more.
fn erase(file: &File, place: usize) {
    let _ = file.write_all_at(&[0; SLOT], (place * SLOT) as u64);
}

/// Where one worker notes what it delivers.
pub struct Slot {
    file: Arc<File>,
    old: Arc<[Old]>,
    consumer: u64,
    /// None when there are too many workers.
    offset: Option<u64>,
}

impl Slot {
    /// Notes that these messages are about to be delivered for the `attempts`-th time.
    ///
    /// # Errors
    /// The disk's reason; what was noted before may be damaged then.
    pub fn set(&mut self, first: u64, last: u64, attempts: u32) -> io::Result<()> {
        let suspect = Suspect {
            first,
            last,
            attempts,
        };
        self.write(&encode(self.consumer, suspect))
    }

    /// Notes that nothing is in flight.
    ///
    /// # Errors
    /// The disk's reason; what was noted before may still be there.
    pub fn clear(&mut self) -> io::Result<()> {
        self.write(&[0; SLOT])
    }

    /// Notes that a message that was in flight at a death is settled.
    pub fn forget(&mut self, seq: u64) {
        for (place, old) in self.old.iter().enumerate() {
            if old.consumer == self.consumer && old.suspect.last == seq {
                erase(&self.file, place);
            }
        }
    }

    fn write(&self, bytes: &[u8; SLOT]) -> io::Result<()> {
        match self.offset {
            Some(offset) => self.file.write_all_at(bytes, offset),
            None => Ok(()),
        }
    }
}

/// Names are told apart by this for ever: it stands in files.
fn hash(consumer: &str) -> u64 {
    rapidhash::v3::rapidhash_v3(consumer.as_bytes())
}

fn encode(consumer: u64, suspect: Suspect) -> [u8; SLOT] {
    let mut slot = [0; SLOT];
    slot[..8].copy_from_slice(&MAGIC);
    slot[8..16].copy_from_slice(&consumer.to_le_bytes());
    slot[16..24].copy_from_slice(&suspect.first.to_le_bytes());
    slot[24..32].copy_from_slice(&suspect.last.to_le_bytes());
    slot[32..36].copy_from_slice(&suspect.attempts.to_le_bytes());
    let crc = crc32c::crc32c(&slot[..60]);
    slot[60..].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> Option<Old> {
    let sound = slot[..8] == MAGIC && crc32c::crc32c(&slot[..60]) == u32_at(slot, 60);
    sound.then(|| Old {
        consumer: u64_at(slot, 8),
        suspect: Suspect {
            first: u64_at(slot, 16),
            last: u64_at(slot, 24),
            attempts: u32_at(slot, 32),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_flight_is_suspect_at_the_next_start() {
        let dir = tempfile::tempdir().unwrap();
        let suspects = Suspects::open(dir.path(), true).unwrap();
        assert!(suspects.of("a").is_empty());
        let (mut a, mut b) = (suspects.slot("a"), suspects.slot("a"));
        let mut c = suspects.slot("c");
        a.set(5, 5, 1).unwrap();
        b.set(6, 9, 2).unwrap();
        c.set(7, 7, 1).unwrap();
        c.clear().unwrap();
        let suspects = Suspects::open(dir.path(), false).unwrap();
        let suspect = |first, last, attempts| Suspect {
            first,
            last,
            attempts,
        };
        assert_eq!(suspects.of("a"), [suspect(5, 5, 1), suspect(6, 9, 2)]);
        assert!(suspects.of("c").is_empty());
        assert!(Suspects::open(dir.path(), true).unwrap().of("a").is_empty());
    }

    #[test]
    fn what_was_in_flight_is_remembered_until_it_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Suspects::open(dir.path(), false).unwrap();
        let attempts = |consumer: &str| -> Vec<(u64, u32)> {
            let suspects = open().of(consumer);
            suspects.iter().map(|s| (s.first, s.attempts)).collect()
        };
        let suspects = open();
        let (mut b, mut a) = (suspects.slot("b"), suspects.slot("a"));
        a.set(5, 5, 1).unwrap();
        b.set(6, 6, 1).unwrap();
        for round in 2..5 {
            // b's worker is the first at work, and dies again; a's is at another message.
            let suspects = open();
            let (mut a, mut b) = (suspects.slot("a"), suspects.slot("b"));
            b.set(6, 6, round).unwrap();
            a.set(4, 4, 1).unwrap();
            assert_eq!(attempts("b"), [(6, round)]);
            assert_eq!(attempts("a"), [(4, 1), (5, 1)]);
        }
        let suspects = open();
        suspects.slot("a").forget(6);
        suspects.slot("a").forget(5);
        assert_eq!(attempts("a"), [(4, 1)]);
        assert_eq!(attempts("b"), [(6, 4)]);
        let suspects = open();
        suspects.forget_below("a", 5);
        suspects.forget_below("b", 6);
        assert_eq!(attempts("a"), []);
        assert_eq!(attempts("b"), [(6, 4)]);
    }

    #[test]
    fn a_damaged_slot_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let suspects = Suspects::open(dir.path(), true).unwrap();
        let (mut a, mut b) = (suspects.slot("a"), suspects.slot("b"));
        a.set(5, 5, 1).unwrap();
        b.set(6, 6, 1).unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        for place in 0..SLOT {
            let mut bytes = whole.clone();
            bytes[place] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            let suspects = Suspects::open(dir.path(), false).unwrap();
            assert!(suspects.of("a").is_empty());
            assert_eq!(suspects.of("b")[0].first, 6);
        }
    }
}
