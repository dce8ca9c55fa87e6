//! What a journal's directory has to say after the hub has stopped, in whatever way.
//!
//! A sealed segment is believed by its footer; others are scanned, cut behind their last whole
//! frame, and sealed if the disk lets it. What can't be read is reported, and never reason enough
//! not to start; what this version can't know (another version's segment, a renamed one) is.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::append::Topics;
use super::frame::Footer;
use super::segment::{
    self, Beginning, Disk, Found, HEADER, Header, Scan, Segment, VERSION, read_at, read_footer,
};

/// What [`Journal::open`](super::Journal::open) found.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Recovered {
    /// How many segments there are.
    pub segments: usize,
    /// The sequence number behind the last message in the log; 1 when there is none.
    pub messages_end: u64,
    /// Bytes at the end of the log, or of a segment, that were no whole frame and are cut off.
    pub truncated_bytes: u64,
    /// Sequence numbers that stood in parts of the log that can't be read or are missing. Those
    /// within sealed segments are only found when they are read.
    pub corrupt: Vec<Range<u64>>,
    /// Files without a message that were removed.
    pub removed_files: usize,
    /// What a person should know, in sentences.
    pub notes: Vec<String>,
}

/// The segment files of a directory, in order, and what else looks like one.
pub(super) struct Listing {
    pub(super) segments: Vec<(u64, PathBuf)>,
    pub(super) strange: Vec<String>,
}

/// Lists a journal's directory.
pub(super) fn list(dir: &Path) -> io::Result<Listing> {
    let mut listing = Listing {
        segments: Vec::new(),
        strange: Vec::new(),
    };
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let (file_name, path) = (entry.file_name(), entry.path());
        let file_name = file_name.to_string_lossy();
        if !file_name.ends_with(".seg") {
            continue;
        }
        match segment::base_of(&file_name) {
            // Not of the entry itself: a segment may be a link to another disk.
            Some(base) if path.metadata().is_ok_and(|data| data.is_file()) => {
                listing.segments.push((base, path));
            }
            Some(_) => (listing.strange).push(format!("{} is not a file", path.display())),
            None => (listing.strange).push(format!("{} is not a segment's name", path.display())),
        }
    }
    listing.segments.sort_unstable();
    listing.strange.sort_unstable();
    Ok(listing)
}

/// Reads a segment's header.
///
/// # Errors
/// Why the segment can't be used at all, and what to do.
pub(super) fn header(file: &File, path: &Path, base: u64) -> Result<Option<Header>, String> {
    let path = path.display();
    let bytes =
        read_at(file, 0, HEADER as u64).map_err(|error| format!("can't read {path}: {error}"))?;
    match Header::read(&bytes) {
        Beginning::Header(header) if header.base == base => Ok(Some(header)),
        Beginning::Header(header) => Err(format!(
            "{path} begins with sequence number {}: it was renamed; give it back its name {}, or \
             move it away to go on without it",
            header.base,
            segment::name(header.base)
        )),
        Beginning::Version(version) => Err(format!(
            "{path} is of version {version} of the journal's format, and this hub knows version \
             {VERSION}; start the hub that wrote it, or move the file away to go on without what \
             is in it"
        )),
        Beginning::Damaged => Ok(None),
    }
}

/// Recovers all segments of a directory, in order.
pub(super) fn recover(
    dir: &Path,
    disk: &dyn Disk,
    recovered: &mut Recovered,
) -> Result<Vec<Segment>, String> {
    let listing = list(dir)
        .map_err(|error| format!("can't read the directory {}: {error}", dir.display()))?;
    recovered.notes.extend(listing.strange);
    // From the end, so that only a segment with messages bounds the one before it.
    let mut segments: Vec<Segment> = Vec::new();
    for (base, path) in listing.segments.iter().rev() {
        let next = segments.last().map(|next| next.base);
        segments.extend(one(disk, path, *base, next, recovered)?);
    }
    segments.reverse();
    recovered.notes.reverse();
    for pair in segments.windows(2) {
        let missing = pair[0].end()..pair[1].after.min(pair[1].base);
        if !missing.is_empty() {
            recovered.lost(missing, "before", &pair[1].path);
        }
    }
    recovered.corrupt.sort_unstable_by_key(|range| range.start);
    recovered.segments = segments.len();
    recovered.messages_end = segments.last().map_or(1, Segment::end);
    Ok(segments)
}

impl Recovered {
    fn lost(&mut self, range: Range<u64>, place: &str, path: &Path) {
        let count = range.end - range.start;
        let (first, last) = (range.start, range.end - 1);
        self.notes.push(format!(
            "{count} messages can't be read {place} {}: sequence numbers {first} to {last}",
            path.display()
        ));
        self.corrupt.push(range);
    }
}

/// Recovers one segment; `next` is what the one behind it begins with.
fn one(
    disk: &dyn Disk,
    path: &Path,
    base: u64,
    next: Option<u64>,
    recovered: &mut Recovered,
) -> Result<Option<Segment>, String> {
    let unreadable = |error: io::Error| {
        format!(
            "can't read {}: {error}; mend that, or move the file away to go on without what is in \
             it",
            path.display()
        )
    };
    let file = File::open(path).map_err(unreadable)?;
    let size = file.metadata().map_err(unreadable)?.len();
    let head = header(&file, path, base)?;
    if head.is_none() && size > HEADER as u64 {
        (recovered.notes).push(format!("the header of {} is damaged", path.display()));
    }
    let head = head.unwrap_or(Header {
        base,
        after: base,
        created_ns: 0,
    });
    let limit = next.unwrap_or(u64::MAX);
    let segment = Segment::new(path.to_owned(), head, None);
    segment.close();
    if let Some((offset, footer)) = read_footer(&file, base, size).map_err(unreadable)?
        && footer.end > base
    {
        segment.restore(offset, footer.end.min(limit), size);
        segment.saw(footer.first_ns);
        segment.saw(footer.last_ns);
        return Ok(Some(segment));
    }

    let mut scan = Scan::new(file, base, 0);
    let (mut len, mut end) = (HEADER as u64, base);
    let mut topics = Topics::default();
    // Whole frames behind `len` that are not used: the next segment begins with their numbers.
    let mut abandoned = false;
    let mut footer_end = None;
    while let Found::Frame { offset, head, body } = scan.next(size).map_err(unreadable)? {
        if head.is_footer() {
            // Only its trailer is damaged; it still knows where the log ended.
            footer_end = Footer::read(&body).map(|footer| footer.end);
            len = offset;
            break;
        }
        if head.first >= limit {
            abandoned = true;
            break;
        }
        if head.first < end {
            continue; // nothing that this hub wrote
        }
        if head.first > end {
            recovered.lost(end..head.first, "in", path);
        }
        segment.remember(head.first, offset);
        segment.saw(head.received_ns);
        let mut at = 0;
        for _ in 0..head.count {
            let Some(entry) = head.record(&body, at) else {
                break;
            };
            topics.count(entry.topic, entry.size() as u64);
            at = entry.payload.end;
        }
        end = head.end();
        len = scan.offset();
    }
    let footer_end = footer_end.filter(|footer_end| (base + 1..=limit).contains(footer_end));
    if let Some(footer_end) = footer_end
        && footer_end > end
    {
        recovered.lost(end..footer_end, "in", path);
        end = footer_end;
    }
    segment.restore(len, end.min(limit), len);
    let rest = size.saturating_sub(len);
    if end == base {
        empty(disk, path, next, size, recovered);
        return Ok(None);
    }
    if rest > 0 && !abandoned && footer_end.is_none() {
        recovered.truncated_bytes += rest;
        recovered.notes.push(format!(
            "{} ended in {rest} bytes that are no whole frame, and is cut there",
            path.display()
        ));
    }
    let (first_ns, last_ns) = segment.times();
    let footer = Footer {
        end: segment.end(),
        first_ns,
        last_ns,
        table: topics.table(),
    };
    let sealed = disk.open(path).and_then(|file| {
        file.set_len(len)?;
        segment.seal(&*file, &footer)
    });
    if let Err(error) = sealed {
        let path = path.display();
        recovered.notes.push(format!("can't seal {path}: {error}"));
    }
    Ok(Some(segment))
}

/// A file without a whole frame: set aside if it may have had some, else removed.
fn empty(disk: &dyn Disk, path: &Path, next: Option<u64>, size: u64, recovered: &mut Recovered) {
    let shown = path.display();
    let rest = size.saturating_sub(HEADER as u64);
    let result = if rest > 0 && next.is_some() {
        let aside = path.with_extension("seg.damaged");
        let note = format!(
            "there is no whole frame in {shown}: it is now {}; delete it if you have no use for it",
            aside.display()
        );
        recovered.notes.push(note);
        std::fs::rename(path, aside)
    } else {
        // A hub that died before its first message leaves a header and nothing to say.
        if size != 0 && size != HEADER as u64 {
            (recovered.notes).push(format!("there is no whole frame in {shown}: it is removed"));
        }
        recovered.truncated_bytes += rest;
        recovered.removed_files += 1;
        disk.remove(path)
    };
    if let Err(error) = result {
        (recovered.notes).push(format!("can't remove {shown}: {error}"));
    }
}
