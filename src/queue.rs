//! One consumer's bounded queue.
//!
//! What stands in the channel are *pieces*: ranges of the enqueuer's batches. All consumers that
//! want the whole of a batch share it, so another consumer costs a channel operation a batch and
//! not an allocation or a reference count a message.
//!
//! With a journal the queue never drops: when it is full, or as long as it has not caught up, its
//! consumer is *behind*, which is what `queue/backlog.rs` is about. The overflow policy then is for
//! messages that no journal has.
//!
//! Invariants, held against a model below:
//! 1. never over its bounds: in messages always; in bytes, unless a single message is larger than
//!    the bound, which is then let in alone
//! 2. what is dropped is counted: received = taken + dropped + still there
//! 3. order is the order of intake, with or without drops
//! 4. drop_oldest drops no more than a sixteenth of the bound at a time
//!
//! The channel itself is crossbeam's unbounded one: the bound stands in messages and bytes, which
//! no channel counts, and is kept here; a bounded channel would take its memory for the worst case
//! (a piece for each message) from the start.

mod backlog;
mod gate;

/// What the gate is built on: the standard library's, because that is what loom models.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering, fence};
    pub(super) use std::sync::{Condvar, Mutex};
}

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use parking_lot::{Condvar, Mutex};
use serde::Deserialize;
use weir_consumer::Message;
use weir_consumer::settings::size;

use crate::stats::{Reason, Settled, Stats, Worker};
pub(crate) use backlog::Start;
pub use backlog::Taker;
use backlog::{Backlog, Behind, Hand};
use gate::Gate;

/// What happens when the queue is full and no journal can take over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overflow {
    /// The enqueuer waits for room, and with it every consumer of the same backend.
    Block,
    /// The new message is dropped.
    #[default]
    DropNewest,
    /// The messages that have waited longest are dropped.
    DropOldest,
}

impl Overflow {
    /// The word for it in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Overflow::Block => "block",
            Overflow::DropNewest => "drop_newest",
            Overflow::DropOldest => "drop_oldest",
        }
    }
}

/// The `queue` settings of a consumer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// At most so many messages not yet settled.
    pub messages: usize,
    /// At most so many bytes of topics and payloads in them.
    #[serde(deserialize_with = "size")]
    pub bytes: usize,
    /// What happens when it is full and no journal can take over.
    pub overflow: Overflow,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            messages: 10_000,
            bytes: 64 << 20,
            overflow: Overflow::default(),
        }
    }
}

/// Part of a batch: what one entry of the channel holds.
#[derive(Clone)]
pub struct Piece {
    batch: Arc<[Message]>,
    range: Range<u32>,
}

impl std::ops::Deref for Piece {
    type Target = [Message];

    fn deref(&self) -> &[Message] {
        &self.batch[self.range.start as usize..self.range.end as usize]
    }
}

impl Piece {
    /// Nothing: it wakes whoever waits for messages.
    fn nudge() -> Self {
        Piece {
            batch: Arc::new([]),
            range: 0..0,
        }
    }

    /// All of a batch, in pieces of at most so many messages.
    fn cut(batch: &Arc<[Message]>, range: Range<usize>, max: usize) -> impl Iterator<Item = Piece> {
        range.clone().step_by(max).map(move |start| Piece {
            batch: batch.clone(),
            range: start as u32..range.end.min(start + max) as u32,
        })
    }

    /// The same messages as pieces of one.
    pub(crate) fn singles(self) -> impl Iterator<Item = Piece> {
        let batch = self.batch;
        self.range.map(move |at| Piece {
            batch: batch.clone(),
            range: at..at + 1,
        })
    }
}

/// Takes the next piece of a channel, waiting for it until `deadline` at most.
///
/// `idle` is called when there is nothing, before it waits.
pub(crate) fn take_from(
    receiver: &Receiver<Piece>,
    idle: impl FnOnce(),
    deadline: Instant,
) -> Taken {
    match receiver.try_recv() {
        Ok(piece) => return Taken::Piece(piece),
        Err(TryRecvError::Disconnected) => return Taken::Closed,
        Err(TryRecvError::Empty) => idle(),
    }
    wait_for(receiver, deadline)
}

fn wait_for(receiver: &Receiver<Piece>, deadline: Instant) -> Taken {
    match receiver.recv_deadline(deadline) {
        Ok(piece) => Taken::Piece(piece),
        Err(RecvTimeoutError::Timeout) => Taken::TimedOut,
        Err(RecvTimeoutError::Disconnected) => Taken::Closed,
    }
}

/// The sum of the sizes of messages.
pub fn bytes_of(messages: &[Message]) -> usize {
    messages.iter().map(Message::size).sum()
}

/// One consumer's bounded queue.
pub struct Queue {
    stats: Arc<Stats>,
    settings: Settings,
    piece_max: usize,
    /// The enqueuers' side. Its lock is what makes pushing one at a time; it is contended only
    /// where several backends feed one consumer, and then a batch at a time.
    side: Mutex<Side>,
    receiver: Receiver<Piece>,
    /// The workers' side: who has taken what, and the way back from the journal.
    hand: Mutex<Hand>,
    /// The journal, if it may take over when the channel is full.
    backlog: Option<Backlog>,
    /// Whether `side.behind` is set, for who must not wait for that lock: an enqueuer that waits for
    /// room holds it. As long as the consumer is behind, none does.
    is_behind: AtomicBool,
    gate: Gate,
    /// Nobody is to wait for room any more.
    turned_away: AtomicBool,
    /// The hub stops: nothing more comes.
    closed: AtomicBool,
    /// Messages before this number are dropped instead of delivered.
    skip_below: AtomicU64,
    /// Dead letters of this consumer are to be delivered again.
    letters: AtomicBool,
    /// Messages go by way of a dispatcher to the workers of their keys.
    keyed: AtomicBool,
    /// Where a paused worker sleeps; what it waits for are `stats.paused` and the two above.
    steered: (Mutex<()>, Condvar),
}

/// What the enqueuers have of a queue.
struct Side {
    /// The sending end, gone when nothing more will come.
    sender: Option<Sender<Piece>>,
    /// Set as long as messages go to the journal only.
    behind: Option<Behind>,
}

/// What [`Taker::take`] found.
pub enum Taken {
    /// The next messages.
    Piece(Piece),
    /// Nothing within the time, or something else is to be looked at.
    TimedOut,
    /// Nothing, and nothing will come any more.
    Closed,
}

impl Queue {
    /// A queue that counts in `stats`. With several workers, no piece is longer than what one of
    /// them takes at a time, so that a burst is shared out.
    pub fn new(settings: Settings, stats: Arc<Stats>, share_out: Option<usize>) -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let piece_max = (settings.messages / 16).clamp(1, share_out.unwrap_or(usize::MAX).max(1));
        Queue {
            stats,
            settings,
            piece_max,
            side: Mutex::new(Side {
                sender: Some(sender),
                behind: None,
            }),
            receiver,
            hand: Mutex::default(),
            backlog: None,
            is_behind: AtomicBool::new(false),
            gate: Gate::new(),
            turned_away: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            skip_below: AtomicU64::new(0),
            letters: AtomicBool::new(false),
            keyed: AtomicBool::new(false),
            steered: Default::default(),
        }
    }

    /// The counters of its consumer.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Whether the journal takes over what does not fit, and keeps what is not settled.
    pub fn is_durable(&self) -> bool {
        self.backlog.is_some()
    }

    /// Puts a batch in, as far as there is room. What there is no room for stays in the journal if
    /// it is there (`journaled`); else the overflow policy decides.
    ///
    /// Returns when every message is in, left to the journal or counted as dropped; only the policy
    /// `block` waits.
    pub fn push(&self, batch: &Arc<[Message]>, batch_bytes: usize, journaled: bool) {
        let mut side = self.side.lock();
        let journaled = journaled && self.backlog.is_some();
        if side.behind.is_none() && self.fits(batch.len(), batch_bytes) {
            return self.admit(side.sender.as_ref(), batch, 0..batch.len(), batch_bytes);
        }
        if journaled {
            return self.defer(&mut side, batch, batch_bytes);
        }
        if side.behind.is_some() {
            // The journal has failed just now. What is in it comes first, so these can't go into
            // the channel without overtaking it; to wait would need this lock by both sides.
            return batch
                .iter()
                .for_each(|message| self.refuse(message, Reason::Overflow));
        }
        let sender = side.sender.as_ref();
        let mut at = 0;
        while at < batch.len() {
            let (fitting, bytes) = self.fitting(&batch[at..]);
            if fitting > 0 {
                self.admit(sender, batch, at..at + fitting, bytes);
                at += fitting;
                continue;
            }
            let first = &batch[at];
            match self.settings.overflow {
                Overflow::DropOldest => match self.receiver.try_recv() {
                    Ok(oldest) => {
                        let (messages, bytes) = (oldest.len(), bytes_of(&oldest));
                        let last_ns = oldest.last().map_or(0, Message::received_ns);
                        let reason = Reason::Overflow;
                        self.stats.dropped_head(reason, messages, bytes, last_ns);
                        continue;
                    }
                    // All that is unsettled is with the workers: then the new one has to go.
                    Err(_) => self.refuse(first, Reason::Overflow),
                },
                Overflow::DropNewest if self.stats.is_halted() => {
                    self.refuse(first, Reason::Halted);
                }
                Overflow::DropNewest => self.refuse(first, Reason::Overflow),
                // Somebody who has stopped for good must not hold up the intake for good.
                Overflow::Block if self.stats.is_halted() => self.refuse(first, Reason::Halted),
                Overflow::Block if self.is_turned_away() => self.refuse(first, Reason::Stopped),
                Overflow::Block => {
                    let size = first.size();
                    self.gate.sleep_until(|| {
                        self.fits(1, size) || self.stats.is_halted() || self.is_turned_away()
                    });
                    continue;
                }
            }
            at += 1;
        }
    }

    fn fits(&self, messages: usize, bytes: usize) -> bool {
        let depth = self.stats.depth() as usize;
        depth + messages <= self.settings.messages
            && (self.stats.depth_bytes() as usize + bytes <= self.settings.bytes
                || (depth == 0 && messages == 1))
    }

    /// How many of these messages, and with how many bytes, there is room for.
    fn fitting(&self, messages: &[Message]) -> (usize, usize) {
        let depth = self.stats.depth() as usize;
        let room = self.settings.messages.saturating_sub(depth);
        let held = self.stats.depth_bytes() as usize;
        let (mut fitting, mut bytes) = (0, 0);
        for message in messages.iter().take(room) {
            let alone = depth == 0 && fitting == 0;
            if held + bytes + message.size() > self.settings.bytes && !alone {
                break;
            }
            fitting += 1;
            bytes += message.size();
        }
        (fitting, bytes)
    }

    fn admit(
        &self,
        sender: Option<&Sender<Piece>>,
        batch: &Arc<[Message]>,
        range: Range<usize>,
        bytes: usize,
    ) {
        if range.is_empty() {
            return;
        }
        let messages = range.len();
        self.stats
            .received(messages, bytes, batch[range.start].received_ns());
        let Some(sender) = sender else {
            return self.stats.dropped(Reason::Stopped, messages, bytes);
        };
        for piece in Piece::cut(batch, range, self.piece_max) {
            // The queue holds a receiver itself, so the channel can't be disconnected here.
            let _ = sender.send(piece);
        }
    }

    fn refuse(&self, message: &Message, reason: Reason) {
        self.stats
            .received(1, message.size(), message.received_ns());
        self.stats.dropped(reason, 1, message.size());
    }

    /// Settles messages that a worker took, in the order in which it took them, and wakes an
    /// enqueuer that waits for their room.
    pub fn settle(&self, worker: &Worker, how: Settled, messages: &[Message]) {
        worker.settle(how, messages.len(), bytes_of(messages));
        if self.backlog.is_some() {
            self.passed(worker, messages);
        }
        if self.settings.overflow == Overflow::Block {
            self.gate.nudge();
        }
    }

    /// Settles a dead letter that was delivered again: it has no place in the order.
    pub fn settle_letter(&self, worker: &Worker, how: Settled, letter: &Message) {
        worker.settle(how, 1, letter.size());
    }

    /// Messages that a worker took and gives back because it ends. What the journal has stays
    /// unsettled and waits there for the next start; the rest is dropped as `stopped`.
    pub fn leave(&self, worker: &Worker, messages: &[Message]) {
        let gone = match &self.backlog {
            Some(backlog) => backlog.missing(messages),
            None => (messages.len(), bytes_of(messages)),
        };
        if gone.0 > 0 {
            worker.settle(Settled::Dropped(Reason::Stopped), gone.0, gone.1);
        }
    }

    /// Stops the consumer's deliveries for good and lets a waiting enqueuer go on.
    pub fn halt(&self) {
        self.stats.halt();
        self.gate.nudge();
    }

    /// Lets no enqueuer wait for room any more: what does not fit is dropped as `stopped`.
    pub fn turn_away(&self) {
        self.turned_away.store(true, Ordering::SeqCst);
        self.gate.nudge();
    }

    fn is_turned_away(&self) -> bool {
        self.turned_away.load(Ordering::SeqCst)
    }

    /// Lets nothing more in. Runners empty the queue, with what the journal has, and then find it
    /// closed; those that deliver nothing find it closed at once.
    ///
    /// Call when no enqueuer runs any more: one that waits for room holds the lock.
    pub fn close(&self) {
        let mut side = self.side.lock();
        self.closed.store(true, Ordering::SeqCst);
        if side.behind.is_none() || self.stats.is_halted() || self.stats.is_paused() {
            side.sender = None;
        }
        drop(side);
        self.notify_steered();
    }

    /// The deadline has come: what the journal has is left to the next start.
    pub fn give_up(&self) {
        self.side.lock().sender = None;
    }

    /// Drops what still waits and is in no journal, as `stopped`: nobody has come for it in time.
    pub fn discard(&self) {
        let _side = self.side.lock();
        while let Ok(piece) = self.receiver.try_recv() {
            let (messages, bytes) = match &self.backlog {
                Some(backlog) => backlog.missing(&piece),
                None => (piece.len(), bytes_of(&piece)),
            };
            self.stats.dropped(Reason::Stopped, messages, bytes);
        }
    }

    /// Pauses the consumer, or lets it go on.
    pub fn pause(&self, paused: bool) {
        self.stats.pause(paused);
        self.notify_steered();
    }

    /// Whether a message is not to be delivered because an operator skips it.
    pub fn skips(&self, message: &Message) -> bool {
        message.seq() < self.skip_below.load(Ordering::SeqCst)
    }

    /// Skips what came before this number.
    pub fn skip(&self, below: u64) {
        self.skip_below.fetch_max(below, Ordering::SeqCst);
        self.notify_steered();
    }

    /// Sleeps while the consumer is paused, and until the message in hand, if there is one, is to be
    /// skipped. Answers whether to go on; `false` when the hub stops.
    pub fn await_steering(&self, in_hand: Option<&Message>) -> bool {
        let mut guard = self.steered.0.lock();
        while self.stats.is_paused() && !in_hand.is_some_and(|message| self.skips(message)) {
            if self.closed.load(Ordering::SeqCst) {
                return false;
            }
            self.steered.1.wait(&mut guard);
        }
        true
    }

    fn notify_steered(&self) {
        drop(self.steered.0.lock()); // nobody is between looking and sleeping
        self.steered.1.notify_all();
    }

    /// Dead letters of this consumer are to be delivered again.
    pub fn announce_letters(&self) {
        self.letters.store(true, Ordering::SeqCst);
        self.wake();
    }

    /// Whether there are such; the asker looks after them.
    pub fn has_letters(&self) -> bool {
        self.letters.load(Ordering::Relaxed) && self.letters.swap(false, Ordering::SeqCst)
    }

    /// Makes a worker that waits for messages look around.
    fn wake(&self) {
        // Somebody is just pushing, or waits for room: then no worker sleeps for long.
        if let Some(side) = self.side.try_lock()
            && let Some(sender) = &side.sender
        {
            let _ = sender.send(Piece::nudge());
        }
    }

    /// The time of the next look at the clock for somebody who has nothing else to wait for.
    pub fn idle_deadline() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::time::SystemTime;

    fn batch(seqs: Range<u64>, size: usize) -> Arc<[Message]> {
        seqs.map(|seq| Message::new("".into(), vec![0; size].into(), SystemTime::UNIX_EPOCH, seq))
            .collect()
    }

    fn queue(messages: usize, bytes: usize, overflow: Overflow) -> Queue {
        Queue::new(
            Settings {
                messages,
                bytes,
                overflow,
            },
            Arc::new(Stats::new(1)),
            None,
        )
    }

    fn push(queue: &Queue, batch: &Arc<[Message]>) {
        queue.push(batch, bytes_of(batch), false);
    }

    fn seqs(piece: &[Message]) -> Vec<u64> {
        piece.iter().map(Message::seq).collect()
    }

    fn rest(queue: &Queue) -> Vec<u64> {
        std::iter::from_fn(|| queue.receiver.try_recv().ok())
            .flat_map(|piece| seqs(&piece))
            .collect()
    }

    #[test]
    fn a_message_larger_than_the_bound_is_let_in_alone() {
        for overflow in [Overflow::DropNewest, Overflow::DropOldest] {
            let queue = queue(10, 100, overflow);
            push(&queue, &batch(1..2, 500));
            assert_eq!(queue.stats.depth(), 1, "{overflow:?}");
            push(&queue, &batch(2..3, 1));
            assert_eq!(queue.stats.depth(), 1, "{overflow:?}");
        }
    }

    #[test]
    fn drop_oldest_drops_no_more_than_a_sixteenth_of_the_bound_at_a_time() {
        let queue = queue(160, usize::MAX, Overflow::DropOldest);
        push(&queue, &batch(0..160, 1));
        push(&queue, &batch(160..161, 1));
        assert_eq!(rest(&queue), (10..161).collect::<Vec<_>>());
        assert_eq!(queue.stats.snapshot().dropped.of(Reason::Overflow), 10);
    }

    #[test]
    fn workers_share_a_burst() {
        let stats = Arc::new(Stats::new(4));
        let queue = Queue::new(Settings::default(), stats, Some(1));
        push(&queue, &batch(0..8, 1));
        assert_eq!(queue.receiver.try_recv().unwrap().len(), 1);
    }

    #[test]
    fn block_waits_for_room_and_loses_nothing() {
        let queue = Arc::new(queue(4, usize::MAX, Overflow::Block));
        let pusher = std::thread::spawn({
            let queue = queue.clone();
            move || push(&queue, &batch(0..1000, 1))
        });
        let worker = queue.stats.worker(0);
        let mut taker = Taker::new(queue.clone(), Some(0));
        let mut seen = Vec::new();
        while seen.len() < 1000 {
            if let Taken::Piece(piece) = taker.take(|| {}, Queue::idle_deadline()) {
                seen.extend(seqs(&piece));
                queue.settle(worker, Settled::Consumed, &piece);
            }
        }
        pusher.join().unwrap();
        assert_eq!(seen, (0..1000).collect::<Vec<_>>());
        assert_eq!(queue.stats.snapshot().dropped.total(), 0);
    }

    #[test]
    fn a_halted_consumer_holds_up_no_enqueuer() {
        let queue = Arc::new(queue(1, usize::MAX, Overflow::Block));
        let pusher = std::thread::spawn({
            let queue = queue.clone();
            move || push(&queue, &batch(0..3, 1))
        });
        queue.halt();
        pusher.join().unwrap();
        assert_eq!(queue.stats.snapshot().dropped.of(Reason::Halted), 2);
    }

    #[test]
    fn a_closed_queue_is_emptied_and_then_says_so() {
        let queue = Arc::new(queue(10, usize::MAX, Overflow::DropNewest));
        push(&queue, &batch(0..1, 1));
        queue.close();
        push(&queue, &batch(1..3, 1));
        let mut taker = Taker::new(queue.clone(), Some(0));
        let taken = taker.take(|| {}, Instant::now());
        assert!(matches!(taken, Taken::Piece(piece) if seqs(&piece) == [0]));
        assert!(matches!(taker.take(|| {}, Instant::now()), Taken::Closed));
        assert_eq!(queue.stats.snapshot().dropped.of(Reason::Stopped), 2);
    }

    #[derive(Clone, Debug)]
    enum Operation {
        Push { messages: u8, size: u8 },
        Take,
        Settle(bool),
    }

    fn operation() -> impl Strategy<Value = Operation> {
        prop_oneof![
            (0..40u8, 0..50u8).prop_map(|(messages, size)| Operation::Push { messages, size }),
            Just(Operation::Take),
            any::<bool>().prop_map(Operation::Settle),
        ]
    }

    proptest! {
        /// The queue and its ledger beside two plain lists: what waits and what is in hand.
        #[test]
        fn queue_and_ledger_agree_with_a_model(
            messages in 1..40usize,
            bytes in 1..400usize,
            oldest: bool,
            operations in prop::collection::vec(operation(), 1..60),
        ) {
            let overflow = if oldest { Overflow::DropOldest } else { Overflow::DropNewest };
            let queue = queue(messages, bytes, overflow);
            let worker = queue.stats.worker(0);
            let piece_max = (messages / 16).max(1);
            let mut waiting: VecDeque<Vec<(u64, usize)>> = VecDeque::new();
            let mut in_hand: VecDeque<Piece> = VecDeque::new();
            let (mut received, mut dropped, mut consumed, mut refused, mut last) = (0, 0, 0, 0, None);

            for operation in operations {
                match operation {
                    Operation::Push { messages: n, size } => {
                        let pushed = batch(received..received + u64::from(n), size.into());
                        push(&queue, &pushed);
                        let mut run = Vec::new(); // admitted together, cut into pieces
                        for message in pushed.iter() {
                            loop {
                                let all = waiting.iter().flatten().chain(&run).map(|m| m.1)
                                    .chain(in_hand.iter().flat_map(|p| p.iter().map(Message::size)));
                                let (depth, held) = all.fold((0, 0), |(n, b), size| (n + 1, b + size));
                                let fits = depth < messages
                                    && (held + message.size() <= bytes || depth == 0);
                                if fits {
                                    run.push((message.seq(), message.size()));
                                } else if oldest {
                                    let cut = std::mem::take(&mut run);
                                    waiting.extend(cut.chunks(piece_max).map(<[_]>::to_vec));
                                    if let Some(piece) = waiting.pop_front() {
                                        dropped += piece.len() as u64;
                                        continue;
                                    }
                                    dropped += 1;
                                } else {
                                    let cut = std::mem::take(&mut run);
                                    waiting.extend(cut.chunks(piece_max).map(<[_]>::to_vec));
                                    dropped += 1;
                                }
                                break;
                            }
                        }
                        waiting.extend(run.chunks(piece_max).map(<[_]>::to_vec));
                        received += u64::from(n);
                    }
                    Operation::Take => {
                        let piece = queue.receiver.try_recv().ok();
                        let expected = waiting.pop_front();
                        prop_assert_eq!(
                            piece.as_ref().map(|p| seqs(p)),
                            expected.map(|p| p.iter().map(|m| m.0).collect::<Vec<_>>())
                        );
                        if let Some(piece) = piece {
                            prop_assert!(last < Some(piece[0].seq()), "order");
                            last = piece.last().map(Message::seq);
                            in_hand.push_back(piece);
                        }
                    }
                    Operation::Settle(ok) => if let Some(piece) = in_hand.pop_front() {
                        let how = match ok {
                            true => Settled::Consumed,
                            false => Settled::Dropped(Reason::Refused),
                        };
                        queue.settle(worker, how, &piece);
                        *(if ok { &mut consumed } else { &mut refused }) += piece.len() as u64;
                    }
                }
                let shot = queue.stats.snapshot();
                let held: Vec<usize> = waiting.iter().flatten().map(|m| m.1)
                    .chain(in_hand.iter().flat_map(|p| p.iter().map(Message::size))).collect();
                prop_assert_eq!(shot.received, received);
                prop_assert_eq!(shot.consumed, consumed);
                prop_assert_eq!(shot.dropped.of(Reason::Overflow), dropped);
                prop_assert_eq!(shot.dropped.of(Reason::Refused), refused);
                prop_assert_eq!(shot.queue_messages, held.len() as u64);
                prop_assert_eq!(shot.queue_bytes, held.iter().sum::<usize>() as u64);
                prop_assert!(held.len() <= messages);
                prop_assert!(shot.queue_bytes <= bytes as u64 || held.len() == 1);
            }
        }
    }
}
