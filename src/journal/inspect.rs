//! What `weir journal info` and `weir journal check` know: a journal as it lies on the disk.
//!
//! Only reads, so that it can look at the journal of a hub that runs: what such a hub is just
//! writing or removing may be seen half, and is no damage.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use serde::Serialize;

use super::cursors::{Cursor, Cursors, Loaded};
use super::recovery::{header, list};
use super::segment::{Found, HEADER, Scan, read_footer};

/// A journal as it lies on the disk.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Oldest first.
    pub segments: Vec<SegmentReport>,
    /// The oldest sequence number there is.
    pub begin: u64,
    /// The one behind the last.
    pub end: u64,
    /// Messages that are whole; of a sealed segment without a check, what it says itself.
    pub messages: u64,
    /// Of all segments, on the disk.
    pub bytes: u64,
    /// Numbers between segments: what was never written, or is missing.
    pub holes: Vec<Hole>,
    /// Whether the hub stopped in order; none without cursors.
    pub clean: Option<bool>,
    /// Where the consumers stand.
    pub cursors: Vec<CursorReport>,
    /// What is not as it should be, segments' own problems aside.
    pub problems: Vec<String>,
    /// What is as it should be and still worth knowing.
    pub notes: Vec<String>,
}

/// One segment.
#[derive(Clone, Debug, Serialize)]
pub struct SegmentReport {
    /// The file's name.
    pub file: String,
    /// The sequence number that it begins with.
    pub base: u64,
    /// The one behind its last message.
    pub end: u64,
    /// Messages that are whole; of a sealed segment without a check, what it says itself.
    pub messages: u64,
    /// The file's size.
    pub bytes: u64,
    /// The earliest time of intake in it, in nanoseconds since 1970.
    pub first_ns: u64,
    /// The latest.
    pub last_ns: u64,
    /// Whether it has a footer.
    pub sealed: bool,
    /// What is damaged.
    pub problems: Vec<Problem>,
}

/// Something damaged in a segment.
#[derive(Clone, Debug, Serialize)]
pub struct Problem {
    /// Where in the file.
    pub offset: u64,
    /// The sequence numbers that can't be read; empty when none are lost by it.
    pub range: Range<u64>,
    /// What it is.
    pub what: String,
}

/// Numbers that stand in no segment.
#[derive(Clone, Debug, Serialize)]
pub struct Hole {
    /// The sequence numbers.
    pub range: Range<u64>,
    /// They were written once and are gone.
    pub missing: bool,
}

/// One consumer's position.
#[derive(Clone, Debug, Serialize)]
pub struct CursorReport {
    /// The consumer's name.
    pub consumer: String,
    /// As it was written last.
    #[serde(flatten)]
    pub cursor: Cursor,
    /// Sequence numbers from there to the end.
    pub behind: u64,
}

impl Report {
    /// Whether nothing is damaged or missing.
    pub fn is_sound(&self) -> bool {
        let segments = self.segments.iter().all(|s| s.problems.is_empty());
        self.problems.is_empty() && segments && !self.holes.iter().any(|hole| hole.missing)
    }
}

/// Looks at the journal in a directory; `check` reads every frame of it.
///
/// # Errors
/// When there is none, or it can't be read.
pub fn inspect(dir: &Path, check: bool) -> Result<Report, String> {
    let listing = list(dir).map_err(|error| {
        format!(
            "can't read the journal's directory {}: {error}",
            dir.display()
        )
    })?;
    // Before the segments: what they know of is there by then.
    let loaded = Cursors::load(dir);
    let mut report = Report {
        problems: listing.strange,
        ..Report::default()
    };
    // From the end, as recovery does it.
    let mut segments: Vec<(u64, SegmentReport)> = Vec::new();
    for (base, path) in listing.segments.iter().rev() {
        let next = segments.iter().rev().find(|(_, next)| next.end > next.base);
        let next = next.map(|(_, next)| next.base);
        match look(path, *base, next, check, &mut report.notes) {
            Ok((_, segment)) if segment.messages == 0 && segment.problems.is_empty() => {
                let text = format!("{} has no message yet, or none any more", path.display());
                report.notes.push(text);
            }
            Ok(segment) => segments.push(segment),
            // The hub has removed it meanwhile.
            Err(Unreadable::Gone) => {}
            Err(Unreadable::Because(why)) => report.problems.push(why),
        }
    }
    let mut log_end = None;
    for (after, segment) in segments.into_iter().rev() {
        let base = segment.base;
        if segment.end > base {
            if let Some(end) = log_end {
                report.hole(end..after.min(base), true);
                report.hole(after.clamp(end, base.max(end))..base, false);
            } else {
                report.begin = base;
            }
            log_end = Some(segment.end);
        }
        report.messages += segment.messages;
        report.bytes += segment.bytes;
        report.segments.push(segment);
    }
    report.end = log_end.unwrap_or(0);
    report.cursors(loaded);
    Ok(report)
}

impl Report {
    fn hole(&mut self, range: Range<u64>, missing: bool) {
        if !range.is_empty() {
            self.holes.push(Hole { range, missing });
        }
    }

    fn cursors(&mut self, loaded: Result<Loaded, String>) {
        let loaded = match loaded {
            Ok(loaded) => loaded,
            Err(why) => return self.problems.push(why),
        };
        self.problems.extend(loaded.note);
        let Some(cursors) = loaded.cursors else {
            return;
        };
        self.clean = Some(cursors.clean);
        // A log without a message may have been removed whole, by its bounds.
        if (1..cursors.next).contains(&self.end) {
            self.problems.push(format!(
                "sequence numbers {} to {} were given out and are not in the log: cut off as \
                 damaged, lost with the power, or never written because the disk was full or broken",
                self.end,
                cursors.next - 1
            ));
        }
        self.end = self.end.max(cursors.next);
        for (consumer, cursor) in cursors.consumers {
            self.cursors.push(CursorReport {
                consumer,
                behind: self.end.saturating_sub(cursor.position),
                cursor,
            });
        }
    }
}

enum Unreadable {
    Gone,
    Because(String),
}

/// Looks at one segment; answers also where its header says that the log ended before it.
fn look(
    path: &Path,
    base: u64,
    next: Option<u64>,
    check: bool,
    notes: &mut Vec<String>,
) -> Result<(u64, SegmentReport), Unreadable> {
    let limit = next.unwrap_or(u64::MAX);
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Unreadable::Gone,
        _ => Unreadable::Because(format!("can't read {}: {error}", path.display())),
    };
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let head = header(&file, path, base).map_err(Unreadable::Because)?;
    let footer = read_footer(&file, base, size).map_err(failed)?;
    let file_name = path.file_name().unwrap_or_default();
    let mut report = SegmentReport {
        file: file_name.to_string_lossy().into_owned(),
        base,
        end: base,
        messages: 0,
        bytes: size,
        first_ns: u64::MAX,
        last_ns: 0,
        sealed: footer.is_some(),
        problems: Vec::new(),
    };
    if head.is_none() && size >= HEADER as u64 {
        report.problem(0, base..base, "the header is damaged");
    }
    let mut len = size;
    if let Some((offset, footer)) = footer {
        report.end = footer.end.min(limit).max(base);
        report.messages = report.end - base;
        (report.first_ns, report.last_ns) = (footer.first_ns, footer.last_ns);
        len = offset;
    }
    if !report.sealed || check {
        let rest = report
            .frames(Scan::new(file, base, 0), len, limit)
            .map_err(failed)?;
        if rest > 0 && report.sealed {
            report.problem(len - rest, base..base, "damaged in front of the footer");
        } else if rest > 0 {
            // Nothing is lost by it that the next segment does not tell of.
            let whole = len - rest;
            notes.push(format!("{} ends within a frame at {whole}", path.display()));
        }
    }
    report.first_ns = report.first_ns.min(report.last_ns);
    Ok((head.map_or(base, |head| head.after), report))
}

impl SegmentReport {
    fn problem(&mut self, offset: u64, range: Range<u64>, what: &str) {
        self.problems.push(Problem {
            offset,
            range,
            what: what.into(),
        });
    }

    /// Reads all frames; answers how many bytes at the end are none.
    fn frames(&mut self, mut scan: Scan, len: u64, limit: u64) -> io::Result<u64> {
        let (mut next, mut whole) = (self.base, HEADER as u64);
        self.messages = 0;
        while let Found::Frame { offset, head, .. } = scan.next(len)? {
            if head.first > next && head.first < limit && !head.is_footer() {
                self.problem(whole, next..head.first, "damaged");
            } else if offset > whole {
                self.problem(whole, next..next, "damaged");
            }
            whole = scan.offset();
            if head.is_footer() || head.first >= limit {
                // An unsealed segment's own end, or a batch that was given up.
                self.end = self.end.max(next);
                return Ok(0);
            }
            if head.first < next {
                continue; // nothing that a hub wrote
            }
            next = head.end().min(limit);
            self.messages += head.end().min(limit) - head.first;
            self.first_ns = self.first_ns.min(head.received_ns);
            self.last_ns = self.last_ns.max(head.received_ns);
        }
        if self.sealed && next < self.end {
            self.problem(whole, next..self.end, "damaged");
            return Ok(0);
        }
        self.end = self.end.max(next);
        Ok(len.saturating_sub(whole))
    }
}
