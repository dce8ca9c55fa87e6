//! Live and behind: how a queue goes over to the journal when it is full, and comes back.
//!
//! A consumer is *live* as long as all it is to get is in the channel. When a batch does not fit,
//! it turns to *behind*: from then on the enqueuer only counts for it. Its workers empty the
//! channel, and then fill it up from the journal, a part at a time, until nothing of what was
//! left to the journal is missing; then it is live again. A replay and a start with a backlog are
//! the same thing: the consumer is behind from some earlier position on.
//!
//! Invariants, held against a model in `backlog/tests.rs`:
//! 1. *Order.* The channel is filled from the journal only when it is empty, and by an enqueuer
//!    only when nothing is left in the journal.
//! 2. *Nothing twice, nothing missed.* `Behind::end` is raised with the enqueuers' lock held, for
//!    every message left to the journal; the consumer turns to live with that lock held, and only
//!    when its reader has come to that end. The journal shows a batch to readers only after all
//!    queues have been offered it, so a reader never sees what may still come through the channel.
//! 3. *The cursor* never passes a message that is not settled: what is taken is noted with the
//!    workers' lock held, so at any time every message before `Hand::next` is settled or with a
//!    worker that says so.
//! 4. *Bounded memory.* No more is fetched than the queue's bounds have room for.
//!
//! Locks are taken in this order: the workers' side (`hand`), the enqueuers' side (`side`). An
//! enqueuer holds only the second, and while it holds it may wait for workers to settle (policy
//! `block`): so workers take it only when the consumer is behind, when no enqueuer waits.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Select, TryRecvError};
use tracing::{info, warn};
use weir_consumer::Message;

use super::{Piece, Queue, Side, Taken, bytes_of, wait_for};
use crate::journal::{Cursor, Gap, Journal, Read, Reader};
use crate::router::Router;
use crate::stats::{Reason, Worker, now_ns};

/// Fetched from the journal at a time, at most: enough to make the way there cheap, and little
/// beside what the consumers of a hub have in memory anyway.
const FETCH_MESSAGES: usize = 1024;
const FETCH_BYTES: usize = 256 << 10;
/// When an enqueuer is just about to show what it has appended, or the consumer's workers hold as
/// much as the queue allows; doubled each time up to 32-fold. A settling worker has no flag to raise
/// for that: it would be looked at for each message.
const SOON: Duration = Duration::from_millis(1);
/// When the disk can't be read.
const LATER: Duration = Duration::from_secs(1);

/// What a queue needs of the journal.
pub(super) struct Backlog {
    name: String,
    journal: Arc<Journal>,
    prefixes: Vec<Vec<String>>,
}

/// What is in the journal and nowhere else: from here on, and before that.
pub(super) struct Behind {
    start: u64,
    end: u64,
}

/// What the workers of a queue share.
#[derive(Default)]
pub(super) struct Hand {
    /// Everything before it has been taken from the channel.
    next: u64,
    /// Messages before it were settled once, and are delivered again.
    replayed_below: u64,
    /// Raised when the order begins anew, so that nobody puts together what does not belong so.
    epoch: u64,
    /// Reads the journal as long as the consumer is behind.
    reader: Option<Reader>,
    /// Finds what is wanted, and interns topics.
    router: Option<Router>,
    /// Where messages go from worker to worker: those taken and not settled, with how often.
    taken: Option<BTreeMap<u64, u32>>,
    /// Why messages that were counted will not come.
    gap: Option<Reason>,
    /// The disk could not be read the last time.
    unreadable: bool,
    /// How often in a row there was nothing to be fetched yet.
    waits: u32,
}

impl Hand {
    fn soon(&mut self) -> Refill {
        self.waits += 1;
        Refill::After(SOON * (1 << (self.waits - 1).min(5)))
    }
}

/// What came of an attempt to fill the channel up.
enum Refill {
    /// There may be something in it now.
    Done,
    /// There is nothing to come from the journal.
    Live,
    /// There will be something later.
    After(Duration),
}

/// Where a consumer begins.
pub(crate) struct Start {
    /// Everything before it is settled.
    pub(crate) cursor: Cursor,
    /// Messages that wait, of how many bytes, and when the first of them was received.
    pub(crate) waiting: (u64, u64, u64),
    /// Sequence numbers that may have been for it and can't be read any more, and why.
    pub(crate) lost: [(Reason, u64); 2],
}

/// One worker's way to its messages.
pub struct Taker {
    queue: Arc<Queue>,
    /// None: the dispatcher of a keyed consumer.
    worker: Option<usize>,
    epoch: u64,
}

impl Backlog {
    /// How many of these messages the journal does not have, and how many bytes.
    pub(super) fn missing(&self, messages: &[Message]) -> (usize, usize) {
        let missing = messages.iter().filter(|m| !self.journal.has(m.seq()));
        missing.fold((0, 0), |(n, bytes), message| {
            (n + 1, bytes + message.size())
        })
    }
}

impl Queue {
    /// Lets the journal take over when the channel is full, and begins at a cursor. Call before
    /// the queue is shared.
    pub(crate) fn with_journal(
        mut self,
        name: &str,
        journal: Arc<Journal>,
        prefixes: Vec<String>,
        start: &Start,
    ) -> Self {
        let end = journal.end();
        let cursor = &start.cursor;
        let hand = self.hand.get_mut();
        hand.next = cursor.position;
        hand.replayed_below = cursor.replayed_below;
        self.stats.pause(cursor.paused);
        let (messages, bytes, first_ns) = start.waiting;
        for (reason, lost) in start.lost {
            self.stats.received(lost as usize, 0, first_ns);
            self.stats.dropped(reason, lost as usize, 0);
        }
        if messages > 0 {
            self.stats.backlog(messages, bytes, first_ns);
            *self.is_behind.get_mut() = true;
            self.side.get_mut().behind = Some(Behind {
                start: cursor.position,
                end,
            });
        }
        self.backlog = Some(Backlog {
            name: name.to_owned(),
            journal,
            prefixes: vec![prefixes],
        });
        self
    }

    /// Leaves a batch to the journal.
    pub(super) fn defer(&self, side: &mut Side, batch: &[Message], bytes: usize) {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
            return;
        };
        self.stats.received(batch.len(), bytes, first.received_ns());
        self.stats.deferred(batch.len() as u64, bytes as u64);
        let end = last.seq() + 1;
        match &mut side.behind {
            Some(behind) => behind.end = end,
            None => {
                let start = first.seq();
                side.behind = Some(Behind { start, end });
                self.is_behind.store(true, Ordering::SeqCst);
                // All of the channel may be with other workers: then somebody has to come.
                if let Some(sender) = &side.sender {
                    let _ = sender.send(Piece::nudge());
                }
            }
        }
    }

    /// Fills the channel, which is empty, from the journal.
    fn refill(&self, hand: &mut Hand) -> Refill {
        let Some(backlog) = &self.backlog else {
            return Refill::Live;
        };
        if !self.is_behind.load(Ordering::SeqCst) {
            return Refill::Live; // who turns it wakes a worker afterwards
        }
        if hand.reader.is_none() {
            match &self.side.lock().behind {
                None => return Refill::Live,
                Some(behind) => hand.reader = Some(backlog.journal.reader(behind.start)),
            }
        }
        let room = self.room();
        if room.0 == 0 || room.1 == 0 {
            return hand.soon();
        }
        let Hand { reader, router, .. } = hand;
        let Some(reader) = reader else {
            return Refill::Live;
        };
        let router = router.get_or_insert_with(|| Router::new(backlog.prefixes.clone()));
        let mut want = |topic: &str| {
            let route = router.route(topic.as_bytes())?;
            (!route.targets.is_empty()).then(|| route.topic.clone())
        };
        let (messages, bytes) = (room.0.min(FETCH_MESSAGES), room.1.min(FETCH_BYTES));
        let read = reader.read(&mut want, messages, bytes, hand.replayed_below);
        let at = reader.position();
        let mut outcome = Refill::Done;
        match read {
            Ok(Read::Messages(batch)) => {
                hand.unreadable = false;
                hand.waits = 0;
                self.stats
                    .fetched(batch.len() as u64, bytes_of(&batch) as u64);
                if let Some(sender) = &self.side.lock().sender {
                    for piece in Piece::cut(&batch, 0..batch.len(), self.piece_max) {
                        let _ = sender.send(piece);
                    }
                }
            }
            Ok(Read::Gap { range, why }) => self.gap(hand, &range, why),
            Ok(Read::End) => outcome = hand.soon(),
            Err(error) => {
                self.unreadable(hand, &error);
                return Refill::After(LATER);
            }
        }
        let mut side = self.side.lock();
        if side.behind.as_ref().is_none_or(|behind| at >= behind.end) {
            // What was counted and did not come stood in parts that can't be read any more.
            let (messages, bytes) = self.stats.behind();
            if messages > 0 {
                let reason = hand.gap.unwrap_or(Reason::Corrupt);
                self.stats.lost(reason, messages, bytes);
                let (consumer, reason) = (&backlog.name, reason.as_str());
                warn!(consumer, reason, messages, "messages dropped");
            }
            hand.reader = None;
            hand.gap = None;
            side.behind = None;
            self.is_behind.store(false, Ordering::SeqCst);
            if self.closed.load(Ordering::SeqCst) {
                side.sender = None;
            }
            return Refill::Done;
        }
        outcome
    }

    /// How many messages and bytes may still be fetched; one message always, if nothing is there.
    fn room(&self) -> (usize, usize) {
        let (behind, behind_bytes) = self.stats.behind();
        let held = self.stats.depth().saturating_sub(behind) as usize;
        let bytes = self.stats.depth_bytes().saturating_sub(behind_bytes) as usize;
        match held {
            0 => (self.settings.messages, self.settings.bytes),
            _ => (
                self.settings.messages.saturating_sub(held),
                self.settings.bytes.saturating_sub(bytes),
            ),
        }
    }

    fn gap(&self, hand: &mut Hand, range: &Range<u64>, why: Gap) {
        let reason = match why {
            // They went by without being written, and were counted when they did.
            Gap::Outage => return,
            Gap::Removed => Reason::Retention,
            Gap::Corrupt => Reason::Corrupt,
        };
        hand.gap = Some(reason);
        if let Some(backlog) = &self.backlog {
            warn!(
                consumer = backlog.name,
                reason = reason.as_str(),
                from = range.start,
                to = range.end - 1,
                "these sequence numbers can't be read from the journal any more"
            );
        }
    }

    fn unreadable(&self, hand: &mut Hand, error: &io::Error) {
        if let Some(backlog) = &self.backlog
            && !std::mem::replace(&mut hand.unreadable, true)
        {
            let consumer = &backlog.name;
            warn!(consumer, %error, "can't read the journal; trying again each second");
        }
    }

    /// Messages are settled: what that means for the cursor.
    pub(super) fn passed(&self, worker: &Worker, messages: &[Message]) {
        let Some(last) = messages.last() else { return };
        if !self.keyed.load(Ordering::Relaxed) {
            return worker.holds_from(last.seq() + 1);
        }
        let mut hand = self.hand.lock();
        let Some(taken) = &mut hand.taken else { return };
        for message in messages {
            if let Some(times) = taken.get_mut(&message.seq()) {
                *times -= 1;
                if *times == 0 {
                    taken.remove(&message.seq());
                }
            }
        }
    }

    /// Where the consumer would have to go on if the hub ended now; none if it has no journal.
    pub(crate) fn cursor(&self, now_ns: u64) -> Option<Cursor> {
        let journal = &self.backlog.as_ref()?.journal;
        // Read first: whatever is before it has been offered to this queue.
        let end = journal.end();
        let hand = self.hand.lock();
        let position = match self.stats.depth() {
            0 => end,
            _ => {
                let held = self.stats.workers().iter().map(Worker::held).min();
                let taken = hand.taken.as_ref();
                let first = taken.and_then(|taken| taken.keys().next().copied());
                hand.next
                    .min(held.unwrap_or(u64::MAX))
                    .min(first.unwrap_or(u64::MAX))
            }
        };
        let position = position.max(self.skip_below.load(Ordering::SeqCst).min(end));
        let replayed_below = match position < hand.replayed_below {
            true => hand.replayed_below,
            false => 0,
        };
        Some(Cursor {
            position,
            replayed_below,
            paused: self.stats.is_paused(),
            seen_ns: now_ns,
        })
    }

    /// Goes back: what was settled from this number on is delivered again, and then what follows.
    /// Answers how many messages that are.
    pub(crate) fn replay(&self, from: u64) -> Result<u64, String> {
        let Some(backlog) = &self.backlog else {
            return Err(
                "it has no journal to read from (delivery = \"at_most_once\", or \
                        [journal] enabled = false)"
                    .into(),
            );
        };
        let from = from.max(backlog.journal.begin());
        let mut hand = self.hand.lock();
        let Some(mut side) = self.side.try_lock_for(LATER) else {
            return Err(
                "the intake waits for room in its queue (overflow = \"block\"); try again \
                        when it has caught up"
                    .into(),
            );
        };
        let waiting: Vec<Piece> = self.receiver.try_iter().collect();
        let put_back = |side: &Side| {
            for piece in &waiting {
                side.sender.as_ref().map(|s| s.send(piece.clone()));
            }
        };
        if waiting.iter().any(|piece| backlog.missing(piece).0 > 0) {
            put_back(&side);
            return Err(
                "messages that no journal has wait for it, because the journal could \
                        not be written for a time; try again when it has caught up"
                    .into(),
            );
        }
        let first = waiting.iter().find_map(|piece| piece.first());
        let last = waiting.iter().rev().find_map(|piece| piece.last());
        let reading = hand.reader.as_ref().map(Reader::position);
        let behind = side
            .behind
            .as_ref()
            .map(|behind| (behind.start, behind.end));
        // Where the consumer is, and where what is only in the journal ends.
        let here = first
            .map(Message::seq)
            .or(reading)
            .or(behind.map(|(start, _)| start))
            .unwrap_or(hand.next);
        let end = behind
            .map(|(_, end)| end)
            .or(last.map(|last| last.seq() + 1))
            .unwrap_or(here);
        let drained: u64 = waiting.iter().map(|piece| piece.len() as u64).sum();
        let drained_bytes: usize = waiting.iter().map(|piece| bytes_of(piece)).sum();
        if from >= here {
            put_back(&side);
            return Err(format!(
                "there is nothing to replay: it has got as far as sequence number {here}, and \
                 what follows will be delivered anyway"
            ));
        }
        let mut router = Router::new(backlog.prefixes.clone());
        let mut want = |topic: &str| router.wants(topic);
        let counted = match backlog.journal.count(from..end, &mut want) {
            Ok(counted) => counted,
            Err(error) => {
                put_back(&side);
                return Err(format!("can't read the journal: {error}"));
            }
        };
        let (unread, unread_bytes) = self.stats.behind();
        let again = counted.messages.saturating_sub(unread + drained);
        let again_bytes = counted
            .bytes
            .saturating_sub(unread_bytes + drained_bytes as u64);
        let head_ns = counted.first_ns.unwrap_or_else(now_ns);
        self.stats
            .received(again as usize, again_bytes as usize, head_ns);
        self.stats
            .deferred(again + drained, again_bytes + drained_bytes as u64);
        self.stats.head(head_ns);
        side.behind = Some(Behind { start: from, end });
        self.is_behind.store(true, Ordering::SeqCst);
        hand.reader = Some(backlog.journal.reader(from));
        hand.replayed_below = hand.replayed_below.max(here);
        hand.next = from;
        hand.epoch += 1;
        self.skip_below.store(0, Ordering::SeqCst);
        if let Some(sender) = &side.sender {
            let _ = sender.send(Piece::nudge());
        }
        info!(consumer = backlog.name, from, messages = again, "replaying");
        Ok(again)
    }

    /// Retention is about to take everything before this number: what of it waits in the journal
    /// only is dropped. Answers how many messages that were.
    pub(crate) fn lose_before(&self, end: u64) -> io::Result<u64> {
        let Some(backlog) = &self.backlog else {
            return Ok(0);
        };
        let mut hand = self.hand.lock();
        if !self.is_behind.load(Ordering::SeqCst) {
            return Ok(0);
        }
        let start = self.side.lock().behind.as_ref().map(|b| b.start);
        let Some(start) = start else { return Ok(0) };
        let position = hand.reader.as_ref().map_or(start, Reader::position);
        if position >= end {
            return Ok(0);
        }
        let mut router = Router::new(backlog.prefixes.clone());
        let mut want = |topic: &str| router.wants(topic);
        let counted = backlog.journal.count(position..end, &mut want)?;
        let reader = &mut hand.reader;
        reader
            .get_or_insert_with(|| backlog.journal.reader(start))
            .seek(end);
        let all_in_journal = self.receiver.is_empty();
        if all_in_journal {
            hand.next = hand.next.max(end);
        }
        let _side = self.side.lock();
        if all_in_journal && let Some(last_ns) = backlog.journal.last_before(end) {
            self.stats.head(last_ns);
        }
        let (unread, unread_bytes) = self.stats.behind();
        let messages = counted.messages.min(unread);
        self.stats
            .lost(Reason::Retention, messages, counted.bytes.min(unread_bytes));
        Ok(messages)
    }
}

impl Taker {
    /// For the worker of this number, or for the dispatcher of a keyed consumer.
    pub fn new(queue: Arc<Queue>, worker: Option<usize>) -> Self {
        if worker.is_none() {
            queue.keyed.store(true, Ordering::Relaxed);
            queue.hand.lock().taken = Some(BTreeMap::new());
        }
        Taker {
            queue,
            worker,
            epoch: 0,
        }
    }

    /// Whether its consumer is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.queue.stats.is_paused()
    }

    /// Takes the next piece, waiting for it until `deadline` at most.
    ///
    /// `idle` is called when there is nothing, before it waits.
    pub fn take(&mut self, mut idle: impl FnMut(), deadline: Instant) -> Taken {
        let queue = &*self.queue;
        loop {
            let mut until = deadline;
            {
                let mut hand = queue.hand.lock();
                match queue.receiver.try_recv() {
                    Ok(piece) if piece.is_empty() => return Taken::TimedOut,
                    Ok(piece) => {
                        self.epoch = hand.epoch;
                        return Taken::Piece(self.took(&mut hand, piece));
                    }
                    Err(TryRecvError::Disconnected) => return Taken::Closed,
                    Err(TryRecvError::Empty) => {
                        self.epoch = hand.epoch;
                        match queue.refill(&mut hand) {
                            // A long way through what others want is to hold up no tick.
                            Refill::Done if Instant::now() >= deadline => return Taken::TimedOut,
                            Refill::Done => continue,
                            Refill::Live => {}
                            Refill::After(time) => until = deadline.min(Instant::now() + time),
                        }
                        if let Some(worker) = self.worker {
                            queue.stats.worker(worker).holds_from(u64::MAX);
                        }
                    }
                }
            }
            if until == deadline {
                idle();
            }
            let waited = match queue.stats.workers().len() {
                // Nobody else takes, so what it gets can be noted afterwards.
                1 => wait_for(&queue.receiver, until),
                _ => {
                    let mut select = Select::new();
                    select.recv(&queue.receiver);
                    match select.ready_deadline(until) {
                        Ok(_) => continue,
                        Err(_) => Taken::TimedOut,
                    }
                }
            };
            match waited {
                Taken::Piece(piece) if piece.is_empty() => return Taken::TimedOut,
                Taken::Piece(piece) => {
                    let mut hand = queue.hand.lock();
                    return Taken::Piece(self.took(&mut hand, piece));
                }
                Taken::TimedOut if until < deadline => continue,
                waited => return waited,
            }
        }
    }

    /// Takes what is there at once, to fill up a batch.
    pub fn take_more(&mut self) -> Option<Piece> {
        let mut hand = self.queue.hand.lock();
        if hand.epoch != self.epoch {
            return None;
        }
        let piece = self.queue.receiver.try_recv().ok()?;
        if let Some(last) = piece.last() {
            hand.next = last.seq() + 1;
            self.queue.stats.taken(last.received_ns());
        }
        self.note(&mut hand, &piece);
        Some(piece)
    }

    /// Takes what is in memory, and nothing from the journal: for a worker that ends.
    pub fn take_rest(&mut self, deadline: Instant) -> Taken {
        wait_for(&self.queue.receiver, deadline)
    }

    fn took(&self, hand: &mut Hand, piece: Piece) -> Piece {
        let (Some(first), Some(last)) = (piece.first(), piece.last()) else {
            return piece;
        };
        let stats = &self.queue.stats;
        if let Some(worker) = self.worker {
            stats.worker(worker).hold(first.received_ns(), 0);
            stats.worker(worker).holds_from(first.seq());
        }
        stats.taken(last.received_ns());
        // A replay may have begun between the taking and this note: then the order is another.
        if hand.epoch == self.epoch {
            hand.next = last.seq() + 1;
        }
        self.note(hand, &piece);
        piece
    }

    fn note(&self, hand: &mut Hand, piece: &Piece) {
        if let Some(taken) = &mut hand.taken {
            for message in piece.iter() {
                *taken.entry(message.seq()).or_default() += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests;
