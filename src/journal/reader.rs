//! The reading end: one consumer that is behind.
//!
//! A reader takes no lock that an appender waits for: it looks up its segment, then reads the file
//! up to the published end. Batches at the head are still in memory while anybody reads.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use weir_consumer::Message;

use super::Journal;
use super::frame::Head;
use super::segment::{Found, Scan, Segment};

/// So much of the log is looked at in one call, so that a consumer with rare topics comes back to
/// its thread now and then.
const LOOK_MAX: u64 = 1 << 20;
/// Batches that are kept in memory for readers at the head.
const RECENT_BATCHES: usize = 1024;
/// And their bytes.
const RECENT_BYTES: usize = 4 << 20;

/// What a reader finds at its position.
#[derive(Debug)]
pub enum Read {
    /// Messages in order; none when nothing in the part looked at was wanted.
    Messages(Arc<[Message]>),
    /// Messages that can't be read; the position is behind them now.
    Gap {
        /// Their sequence numbers.
        range: Range<u64>,
        /// What became of them.
        why: Gap,
    },
    /// Nothing: the position is the log's end.
    End,
}

/// Why messages can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gap {
    /// Retention has removed them.
    Removed,
    /// The file is damaged or gone.
    Corrupt,
    /// They were never written.
    Outage,
}

fn bytes_of(messages: &[Message]) -> usize {
    messages.iter().map(Message::size).sum()
}

/// The last batches, oldest first.
#[derive(Default)]
pub(super) struct Recent {
    batches: VecDeque<Arc<[Message]>>,
    bytes: usize,
}

impl Recent {
    fn keep(&mut self, batch: &Arc<[Message]>) {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
            return;
        };
        // The ranges must ascend, and each be dense, for the search.
        let dense = last.seq().checked_sub(first.seq()) == Some(batch.len() as u64 - 1);
        if !dense || self.end().is_some_and(|end| end > first.seq()) {
            return self.clear();
        }
        self.bytes += bytes_of(batch);
        self.batches.push_back(batch.clone());
        while self.batches.len() > RECENT_BATCHES || self.bytes > RECENT_BYTES {
            match self.batches.pop_front() {
                Some(oldest) => self.bytes -= bytes_of(&oldest),
                None => break,
            }
        }
    }

    fn end(&self) -> Option<u64> {
        Some(self.batches.back()?.last()?.seq() + 1)
    }

    fn clear(&mut self) {
        self.batches.clear();
        self.bytes = 0;
    }

    /// The batch that has this message.
    fn batch_of(&self, seq: u64) -> Option<Arc<[Message]>> {
        let ends_before = |batch: &Arc<[Message]>| batch.last().is_some_and(|m| m.seq() < seq);
        let batch = self
            .batches
            .get(self.batches.partition_point(ends_before))?;
        (batch.first()?.seq() <= seq).then(|| batch.clone())
    }
}

impl Journal {
    /// A reader that begins at this sequence number.
    pub fn reader(self: &Arc<Self>, position: u64) -> Reader {
        self.readers.fetch_add(1, Ordering::Relaxed);
        Reader {
            journal: self.clone(),
            position,
            open: None,
            gap: None,
        }
    }

    /// Keeps a published batch for those who read at the head.
    pub(super) fn keep(&self, batch: &Arc<[Message]>) {
        if self.readers.load(Ordering::Relaxed) > 0 {
            self.recent.lock().keep(batch);
        }
    }
}

/// Reads the log from a position on; owned by one consumer.
pub struct Reader {
    journal: Arc<Journal>,
    position: u64,
    open: Option<Open>,
    /// Found behind messages that were handed out first.
    gap: Option<(Range<u64>, Gap)>,
}

/// The segment that is read.
struct Open {
    segment: Arc<Segment>,
    scan: Scan,
    frame: Option<Frame>,
}

/// A frame of which some records are left.
struct Frame {
    head: Head,
    body: Bytes,
    /// Where the next record begins, and its sequence number.
    at: usize,
    seq: u64,
}

/// Where a position is found.
enum Place {
    In(Arc<Segment>),
    Gap(Range<u64>, Gap),
}

/// A wanted record, before it is made a message.
struct Pick {
    topic: Arc<str>,
    payload: Bytes,
    received_ns: u64,
    seq: u64,
}

/// What one call has gathered.
#[derive(Default)]
struct Gathered {
    picks: Vec<Pick>,
    /// Of topics and payloads picked.
    bytes: usize,
    /// Of the log that was looked at.
    looked: u64,
}

impl Reader {
    /// The next sequence number that it will look at.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at another sequence number.
    pub fn seek(&mut self, position: u64) {
        if position != self.position {
            self.position = position;
            self.open = None;
            self.gap = None;
        }
    }

    /// The next messages that are wanted: `want` answers the shared topic for those.
    ///
    /// About `max_bytes` at most, but at least one message if there is one. Messages below
    /// `replayed_below` are marked as replayed.
    ///
    /// # Errors
    /// When the disk can't be read just now: the position has not moved.
    pub fn read(
        &mut self,
        want: &mut dyn FnMut(&str) -> Option<Arc<str>>,
        max_messages: usize,
        max_bytes: usize,
        replayed_below: u64,
    ) -> io::Result<Read> {
        let end = self.journal.end();
        if let Some((range, why)) = self.gap.take() {
            self.position = range.end;
            return Ok(Read::Gap { range, why });
        }
        if self.position >= end {
            return Ok(Read::End);
        }
        let max_messages = max_messages.max(1);
        if let Some(messages) = self.recent(want, max_messages, max_bytes, replayed_below) {
            return Ok(Read::Messages(messages));
        }
        let start = self.position;
        let mut gathered = Gathered::default();
        let (picks, bytes) = (max_messages, max_bytes);
        while gathered.picks.len() < picks && gathered.bytes < bytes.max(1) {
            if self.position >= end || gathered.looked >= LOOK_MAX {
                break;
            }
            match self.step(end, want, &mut gathered, max_messages, max_bytes) {
                Ok(None) => {}
                Ok(Some((range, why))) if self.position == start => {
                    self.position = range.end;
                    return Ok(Read::Gap { range, why });
                }
                Ok(Some(gap)) => {
                    self.gap = Some(gap);
                    break;
                }
                Err(error) => {
                    self.open = None;
                    if self.position == start {
                        return Err(error);
                    }
                    break;
                }
            }
        }
        Ok(Read::Messages(gathered.messages(replayed_below)))
    }

    /// From the batches in memory; none when they do not have the position.
    fn recent(
        &mut self,
        want: &mut dyn FnMut(&str) -> Option<Arc<str>>,
        max_messages: usize,
        max_bytes: usize,
        replayed_below: u64,
    ) -> Option<Arc<[Message]>> {
        let mut messages: Vec<Message> = Vec::new();
        let mut bytes = 0;
        let mut found = false;
        loop {
            // Not held while `want` is at work.
            let batch = self.journal.recent.lock().batch_of(self.position);
            let Some(batch) = batch else { break };
            found = true;
            let skip = (self.position - batch[0].seq()) as usize;
            for message in &batch[skip..] {
                if messages.len() >= max_messages || (bytes >= max_bytes && bytes > 0) {
                    return Some(messages.into());
                }
                self.position = message.seq() + 1;
                let Some(topic) = want(message.topic()) else {
                    continue;
                };
                bytes += message.size();
                messages.push(if message.seq() < replayed_below {
                    let payload = message.payload().clone();
                    Message::again(topic, payload, message.received_ns(), message.seq())
                } else {
                    message.clone()
                });
            }
        }
        found.then(|| messages.into())
    }

    /// Looks at the rest of a frame, or finds the next one; answers a gap that is in the way.
    fn step(
        &mut self,
        end: u64,
        want: &mut dyn FnMut(&str) -> Option<Arc<str>>,
        gathered: &mut Gathered,
        max_messages: usize,
        max_bytes: usize,
    ) -> io::Result<Option<(Range<u64>, Gap)>> {
        let here = self.position;
        let open = match &mut self.open {
            Some(open) if (open.segment.base..open.segment.end()).contains(&here) => open,
            _ => match self.journal.place(here, end) {
                Place::Gap(range, why) => return Ok(Some((range, why))),
                Place::In(segment) => {
                    if self.pass_over(&segment, want)? {
                        self.position = segment.end().min(end);
                        gathered.looked += 1;
                        return Ok(None);
                    }
                    let scan = segment.scan(segment.offset_before(here))?;
                    let frame = None;
                    self.open.insert(Open {
                        segment,
                        scan,
                        frame,
                    })
                }
            },
        };
        if self.journal.begin() > here {
            // Removed while it was read.
            self.open = None;
            return Ok(None);
        }
        let limit = open.segment.end().min(end);
        let Some(frame) = &mut open.frame else {
            open.scan.skip_to(open.segment.offset_before(here));
            return match open.scan.next(open.segment.len())? {
                Found::Frame { head, .. } if head.is_footer() || head.end() <= here => Ok(None),
                Found::Frame { head, body, .. } => {
                    let (at, seq) = (0, head.first);
                    let gap = (seq > here).then(|| (here..seq.min(limit), Gap::Corrupt));
                    open.frame = Some(Frame {
                        head,
                        body,
                        at,
                        seq,
                    });
                    Ok(gap)
                }
                Found::End => Ok(Some((here..limit, Gap::Corrupt))),
            };
        };
        let (picked, bytes, looked) = (gathered.picks.len(), gathered.bytes, gathered.looked);
        while frame.seq < frame.head.end().min(limit) {
            let Some(entry) = frame.head.record(&frame.body, frame.at) else {
                let rest = self.position..frame.head.end().min(limit);
                open.frame = None;
                return Ok(Some((rest, Gap::Corrupt)));
            };
            let size = entry.size();
            gathered.looked += size as u64;
            if frame.seq >= here
                && let Some(topic) = want(entry.topic)
            {
                gathered.bytes += size;
                gathered.picks.push(Pick {
                    topic,
                    payload: frame.body.slice(entry.payload.clone()),
                    received_ns: frame.head.received_ns,
                    seq: frame.seq,
                });
            }
            frame.at = entry.payload.end;
            frame.seq += 1;
            self.position = self.position.max(frame.seq);
            if gathered.picks.len() >= max_messages || gathered.bytes >= max_bytes.max(1) {
                break;
            }
        }
        if frame.seq >= frame.head.end().min(limit) {
            open.frame = None;
        }
        // A few messages out of much would keep all of it in memory.
        if gathered.bytes - bytes < (gathered.looked - looked) as usize / 4 {
            for pick in &mut gathered.picks[picked..] {
                pick.payload = Bytes::copy_from_slice(&pick.payload);
            }
        }
        Ok(None)
    }

    /// Whether a sealed segment has nothing that is wanted, and is whole, by its footer.
    fn pass_over(
        &self,
        segment: &Segment,
        want: &mut dyn FnMut(&str) -> Option<Arc<str>>,
    ) -> io::Result<bool> {
        if !segment.is_closed() {
            return Ok(false);
        }
        let Some(table) = segment.footer()?.and_then(|footer| footer.table) else {
            return Ok(false);
        };
        let messages: u64 = table.iter().map(|tally| tally.messages).sum();
        let whole = messages == segment.end() - segment.base;
        Ok(whole && !table.iter().any(|tally| want(&tally.topic).is_some()))
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.journal.readers.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.journal.recent.lock().clear();
        }
    }
}

impl Gathered {
    fn messages(self, replayed_below: u64) -> Arc<[Message]> {
        let picks = self.picks.into_iter();
        let messages = picks.map(|pick| {
            let Pick {
                topic,
                payload,
                received_ns,
                seq,
            } = pick;
            match seq < replayed_below {
                true => Message::again(topic, payload, received_ns, seq),
                false => Message::at_ns(topic, payload, received_ns, seq),
            }
        });
        messages.collect()
    }
}

impl Journal {
    /// Where a position before `end` is found.
    fn place(&self, position: u64, end: u64) -> Place {
        let log = self.log.read();
        if position < log.floor {
            return Place::Gap(position..log.floor.min(end), Gap::Removed);
        }
        let next = log.segments.partition_point(|s| s.base <= position);
        if let Some(segment) = next.checked_sub(1).and_then(|at| log.segments.get(at))
            && position < segment.end()
        {
            return Place::In(segment.clone());
        }
        match log.segments.get(next) {
            Some(segment) if position < segment.after => {
                Place::Gap(position..segment.after.min(end), Gap::Corrupt)
            }
            Some(segment) => Place::Gap(position..segment.base.min(end), Gap::Outage),
            None => Place::Gap(position..end, Gap::Outage),
        }
    }
}
