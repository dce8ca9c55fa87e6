//! What stands in a part of the log, without handing it out.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::Journal;
use super::frame::{Footer, Head};
use super::segment::{Found, Segment};

/// What [`Journal::count`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Messages that are wanted.
    pub messages: u64,
    /// The bytes of their topics and payloads.
    pub bytes: u64,
    /// When the first of them was taken in.
    pub first_ns: Option<u64>,
    /// Sequence numbers in damaged or removed parts: nobody knows whether they were wanted.
    pub lost: u64,
    /// Sequence numbers that were never written.
    pub unwritten: u64,
}

impl Journal {
    /// Counts the messages of a part of the log whose topic is wanted.
    ///
    /// A sealed segment that lies wholly in it is counted by its footer, others are read.
    ///
    /// # Errors
    /// When the disk can't be read just now.
    pub fn count(
        &self,
        range: Range<u64>,
        want: &mut dyn FnMut(&str) -> bool,
    ) -> io::Result<Counted> {
        let range = range.start.max(1)..range.end.min(self.end());
        let mut counted = Counted::default();
        if range.is_empty() {
            return Ok(counted);
        }
        let (segments, floor) = self.overlapping(&range);
        let mut here = range.start.max(floor).min(range.end);
        counted.lost += here - range.start;
        for segment in segments {
            let part = here.max(segment.base)..range.end.min(segment.end());
            // A hole before it: see `Header::after`.
            let missing = segment.after.clamp(here, part.start) - here;
            counted.lost += missing;
            counted.unwritten += part.start - here - missing;
            counted.part(&segment, &part, want)?;
            here = part.end.max(here);
        }
        counted.unwritten += range.end - here;
        Ok(counted)
    }

    /// The segments with a part of this range, and below what all is removed.
    fn overlapping(&self, range: &Range<u64>) -> (Vec<Arc<Segment>>, u64) {
        let log = self.log.read();
        let overlaps = |s: &&Arc<Segment>| s.base < range.end && s.end() > range.start;
        let segments = log.segments.iter().filter(overlaps).cloned().collect();
        (segments, log.floor)
    }

    /// When the last message before this number was taken in, as far as whole segments tell.
    pub fn last_before(&self, seq: u64) -> Option<u64> {
        let (segments, _) = self.overlapping(&(0..seq));
        let whole = segments.iter().rfind(|segment| segment.end() <= seq);
        whole.map(|segment| segment.times().1)
    }

    /// The first sequence number, in the order of the log, that was taken in at or after this time;
    /// the end when there is none.
    ///
    /// # Errors
    /// When the disk can't be read just now.
    pub fn first_since(&self, ns: u64) -> io::Result<u64> {
        let end = self.end();
        let (segments, _) = self.overlapping(&(0..end));
        for segment in segments.iter().filter(|segment| segment.times().1 >= ns) {
            let mut first = None;
            segment.frames(segment.base..end, |head, _| {
                if head.received_ns >= ns && first.is_none() {
                    first = Some(head.first);
                }
                first.is_none()
            })?;
            if let Some(first) = first {
                return Ok(first.min(end));
            }
        }
        Ok(end)
    }
}

impl Counted {
    /// Counts a part of one segment.
    fn part(
        &mut self,
        segment: &Segment,
        part: &Range<u64>,
        want: &mut dyn FnMut(&str) -> bool,
    ) -> io::Result<()> {
        let all = part.end - part.start;
        let whole = segment.is_closed() && *part == (segment.base..segment.end());
        let table = match whole {
            true => segment.footer()?.and_then(|footer: Footer| footer.table),
            false => None,
        };
        let mut first_ns = None;
        let found = if let Some(table) = table {
            let mut wanted = 0;
            let mut found = 0;
            for tally in &table {
                found += tally.messages;
                if want(&tally.topic) {
                    wanted += tally.messages;
                    self.bytes += tally.bytes;
                }
            }
            self.messages += wanted;
            if wanted > 0 && self.first_ns.is_none() {
                segment.records(part, |head, topic, _| {
                    if want(topic) {
                        first_ns = Some(head.received_ns);
                    }
                    first_ns.is_none()
                })?;
            }
            found
        } else {
            let mut found = 0;
            segment.records(part, |head, topic, size| {
                found += 1;
                if want(topic) {
                    self.messages += 1;
                    self.bytes += size as u64;
                    first_ns.get_or_insert(head.received_ns);
                }
                true
            })?;
            found
        };
        self.lost += all.saturating_sub(found);
        self.first_ns = self.first_ns.or(first_ns);
        Ok(())
    }
}

impl Segment {
    /// Looks at the sound frames with a part of this range, until it is told not to go on.
    fn frames(
        &self,
        part: Range<u64>,
        mut look: impl FnMut(&Head, &[u8]) -> bool,
    ) -> io::Result<()> {
        let mut scan = self.scan(self.offset_before(part.start))?;
        while let Found::Frame { head, body, .. } = scan.next(self.len())? {
            if head.is_footer() || head.first >= part.end {
                break;
            }
            if head.end() > part.start && !look(&head, &body) {
                break;
            }
        }
        Ok(())
    }

    /// The same for records: their frame's head, topic and size.
    fn records(
        &self,
        part: &Range<u64>,
        mut look: impl FnMut(&Head, &str, usize) -> bool,
    ) -> io::Result<()> {
        self.frames(part.clone(), |head, body| {
            let mut at = 0;
            for seq in head.first..head.end().min(part.end) {
                let Some(entry) = head.record(body, at) else {
                    break;
                };
                at = entry.payload.end;
                if seq >= part.start && !look(head, entry.topic, entry.size()) {
                    return false;
                }
            }
            true
        })
    }
}
