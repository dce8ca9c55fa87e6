//! Counters of one consumer and of one source, and plain copies of them.
//!
//! Promises: reading changes nothing, never waits and never holds anybody up; at every snapshot
//! received = consumed + dropped + dead_lettered + waiting + in_flight, because waiting and in
//! flight are derived from the rest.
//!
//! How that holds without a lock: each number has one kind of writer and only grows. A message is
//! counted as received before it can be dropped or settled; [`Stats::snapshot`] reads in the other
//! direction, settled first and received last, so what it has seen settled it also sees received.
//!
//! What the enqueuers write and what each worker writes stands on cache lines of its own, so that
//! counting makes nobody wait for another core.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use weir_consumer::Message;

use crate::histogram::{Counts, Histogram, PROCESSING, WAITING};
use crate::recent::Recent;

/// So many of the latest times per message are kept, for readers who want them one by one.
const TIMES: usize = 1024;

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its queue was full, no journal could take it over, and the overflow policy said so.
    Overflow,
    /// Its queue was full because the consumer has halted.
    Halted,
    /// The consumer gave the verdict `Drop`.
    Refused,
    /// The consumer gave the verdict `DeadLetter`, and this hub keeps no dead letters.
    DeadLetter,
    /// Its attempts were used up, and this hub keeps no dead letters.
    Attempts,
    /// The hub stopped before its turn came, and it is in no journal.
    Stopped,
    /// The journal's bounds took it before the consumer was there.
    Retention,
    /// It could not be read from the journal any more: the file is damaged.
    Corrupt,
    /// An operator had it skipped.
    Skipped,
}

impl Reason {
    /// All of them, in the order of their numbers.
    pub const ALL: [Reason; 9] = [
        Reason::Overflow,
        Reason::Halted,
        Reason::Refused,
        Reason::DeadLetter,
        Reason::Attempts,
        Reason::Stopped,
        Reason::Retention,
        Reason::Corrupt,
        Reason::Skipped,
    ];

    /// The word for it in figures and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Overflow => "overflow",
            Reason::Halted => "halted",
            Reason::Refused => "refused",
            Reason::DeadLetter => "dead_letter",
            Reason::Attempts => "attempts",
            Reason::Stopped => "stopped",
            Reason::Retention => "retention",
            Reason::Corrupt => "corrupt",
            Reason::Skipped => "skipped",
        }
    }
}

const REASONS: usize = Reason::ALL.len();

/// What a consumer's worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum State {
    /// It has ended.
    Stopped,
    /// It waits for messages.
    Idle,
    /// A message is with the consumer.
    Working,
    /// It waits for its rate limit.
    RateLimited,
    /// It waits for its lane.
    LaneWait,
    /// It waits before it tries a message again.
    BackingOff,
    /// It builds the consumer anew after a panic.
    Rebuilding,
    /// An operator has paused it: nothing is delivered until it is resumed.
    Paused,
    /// The consumer said `Halt`: nothing is delivered any more.
    Halted,
}

impl State {
    /// All of them, in the order of their numbers.
    pub const ALL: [State; 9] = [
        State::Stopped,
        State::Idle,
        State::Working,
        State::RateLimited,
        State::LaneWait,
        State::BackingOff,
        State::Rebuilding,
        State::Paused,
        State::Halted,
    ];

    /// The word for it in figures and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Stopped => "stopped",
            State::Idle => "idle",
            State::Working => "working",
            State::RateLimited => "rate_limited",
            State::LaneWait => "lane_wait",
            State::BackingOff => "backing_off",
            State::Rebuilding => "rebuilding",
            State::Paused => "paused",
            State::Halted => "halted",
        }
    }
}

/// The counters of one consumer.
pub struct Stats {
    intake: Intake,
    fetched: Fetched,
    workers: Box<[Worker]>,
    halted: AtomicBool,
    paused: AtomicBool,
    /// How far retention is from taking unsettled messages, as the bits of an `f64`.
    retention: AtomicU64,
}

/// What came back of it; written by the workers, one at a time: the lock of their side is held.
#[repr(align(128))]
#[derive(Default)]
struct Fetched {
    messages: AtomicU64,
    bytes: AtomicU64,
    /// When the last message was received that a worker has taken, in nanoseconds since 1970: what
    /// waits is no older.
    taken_ns: AtomicU64,
}

/// Written by enqueuers, one at a time: the queue's lock is held.
#[repr(align(128))]
#[derive(Default)]
struct Intake {
    received: AtomicU64,
    received_bytes: AtomicU64,
    /// Dropped before a worker had them.
    dropped: [AtomicU64; REASONS],
    dropped_bytes: AtomicU64,
    /// Received, and left for the time being to the journal.
    deferred: AtomicU64,
    deferred_bytes: AtomicU64,
    /// When the first message came that found the queue empty, or the last was received that was
    /// dropped from its head, in nanoseconds since 1970: what waits is no older.
    head_ns: AtomicU64,
}

/// The counters of one worker thread, written by that thread only.
#[repr(align(128))]
pub struct Worker {
    consumed: AtomicU64,
    dropped: [AtomicU64; REASONS],
    dead_lettered: AtomicU64,
    settled: AtomicU64,
    settled_bytes: AtomicU64,
    in_flight: AtomicU64,
    /// Messages that it waits to try again.
    retrying: AtomicU64,
    /// When the oldest message it holds was received, in nanoseconds since 1970; 0: it holds none.
    head_ns: AtomicU64,
    /// The number of the first message that it has taken and not settled; MAX: there is none.
    held: AtomicU64,
    /// Dead letters that it delivers again: received by itself, and not by way of the queue.
    letters: AtomicU64,
    letter_bytes: AtomicU64,
    failed: AtomicU64,
    retried: AtomicU64,
    panics: AtomicU64,
    state: AtomicU8,
    last_success_ns: AtomicU64,
    /// How long it was in each state, up to when it came into the present one.
    spent_ns: [AtomicU64; State::ALL.len()],
    /// When that was, by the process's own clock.
    since_ns: AtomicU64,
    /// The number of the first message that was last with the consumer.
    in_hand: AtomicU64,
    /// What it did lately.
    pub recent: Recent,
    processing_ns: AtomicU64,
    processing_max_ns: AtomicU64,
    timed: AtomicU64,
    timed_messages: AtomicU64,
    processing: Histogram,
    queue_wait: Histogram,
    times: Times,
}

/// The latest times per message in seconds; written by one thread.
struct Times {
    /// The bits of an `f32`.
    ring: Box<[AtomicU32]>,
    /// How many there ever were.
    count: AtomicU64,
}

impl Times {
    fn add(&self, seconds: f32) {
        let count = self.count.load(Ordering::Relaxed);
        let place = count as usize % self.ring.len();
        self.ring[place].store(seconds.to_bits(), Ordering::Relaxed);
        self.count.store(count + 1, Ordering::Release);
    }
}

/// The latest times per message of one consumer, as `GET /v1/times` has them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LatestTimes {
    /// How many each worker ever took.
    pub counts: Vec<u64>,
    /// The latest of each worker in seconds, oldest first: 1024 at most.
    pub seconds: Vec<Vec<f32>>,
}

impl LatestTimes {
    /// Those that were taken since `seen`, which is brought up to date; it begins empty.
    pub fn since(&self, seen: &mut Vec<u64>) -> Vec<f32> {
        seen.resize(self.counts.len(), 0);
        let workers = self.counts.iter().zip(&self.seconds).zip(seen);
        let mut times = Vec::new();
        for ((count, seconds), seen) in workers {
            // A count that went back is another hub's: all of them are new.
            let new = count.checked_sub(*seen).unwrap_or(*count);
            let known = seconds.len().saturating_sub(new as usize);
            times.extend_from_slice(&seconds[known..]);
            *seen = *count;
        }
        times
    }
}

impl Default for Worker {
    fn default() -> Self {
        Worker {
            consumed: AtomicU64::new(0),
            dropped: Default::default(),
            dead_lettered: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            settled_bytes: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            retrying: AtomicU64::new(0),
            head_ns: AtomicU64::new(0),
            held: AtomicU64::new(u64::MAX),
            letters: AtomicU64::new(0),
            letter_bytes: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            panics: AtomicU64::new(0),
            state: AtomicU8::new(State::Idle as u8),
            last_success_ns: AtomicU64::new(0),
            spent_ns: Default::default(),
            since_ns: AtomicU64::new(clock_ns()),
            in_hand: AtomicU64::new(0),
            recent: Recent::default(),
            processing_ns: AtomicU64::new(0),
            processing_max_ns: AtomicU64::new(0),
            timed: AtomicU64::new(0),
            timed_messages: AtomicU64::new(0),
            processing: Histogram::new(PROCESSING),
            queue_wait: Histogram::new(WAITING),
            times: Times {
                ring: (0..TIMES).map(|_| AtomicU32::new(0)).collect(),
                count: AtomicU64::new(0),
            },
        }
    }
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The consumer took it.
    Consumed,
    /// It was dropped, for this reason.
    Dropped(Reason),
    /// It was set aside.
    DeadLettered,
}

/// Adds to a counter that only this thread writes: a plain store, where `fetch_add` would lock the
/// bus for each message.
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Release);
}

/// Nanoseconds since 1970 by the wall clock.
pub fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos() as u64
}

/// Nanoseconds by a clock that is never set, since some moment of this process.
fn clock_ns() -> u64 {
    static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);
    nanos(BEGIN.elapsed())
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Worker {
    /// Messages from this time on are held, and so many of them are with the consumer.
    pub fn hold(&self, head_ns: u64, in_flight: usize) {
        self.head_ns.store(head_ns, Ordering::Release);
        self.in_flight.store(in_flight as u64, Ordering::Release);
    }

    /// Nothing is with the consumer at the moment, though messages may be held.
    pub fn in_hand(&self) {
        self.in_flight.store(0, Ordering::Release);
    }

    /// So many messages wait to be tried again.
    pub fn retrying(&self, messages: usize) {
        self.retrying.store(messages as u64, Ordering::Release);
    }

    /// Nothing is held, and it waits for messages, or to be resumed.
    pub fn rest(&self, paused: bool) {
        self.release();
        self.state(if paused { State::Paused } else { State::Idle });
    }

    /// Nothing is held.
    pub fn release(&self) {
        self.in_flight.store(0, Ordering::Release);
        self.head_ns.store(0, Ordering::Release);
    }

    /// So many messages, of so many bytes, ended in this way.
    pub fn settle(&self, how: Settled, messages: usize, bytes: usize) {
        match how {
            Settled::Consumed => add(&self.consumed, messages as u64),
            Settled::Dropped(reason) => add(&self.dropped[reason as usize], messages as u64),
            Settled::DeadLettered => add(&self.dead_lettered, messages as u64),
        }
        add(&self.settled_bytes, bytes as u64);
        add(&self.settled, messages as u64);
    }

    /// It is about to deliver a dead letter of so many bytes again.
    pub fn letter(&self, bytes: usize) {
        add(&self.letter_bytes, bytes as u64);
        add(&self.letters, 1);
    }

    /// It has taken messages from this number on and settled those before; MAX: all of them.
    pub fn holds_from(&self, seq: u64) {
        self.held.store(seq, Ordering::Release);
    }

    /// The number of the first message that it has taken and not settled; MAX: there is none.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Acquire)
    }

    /// A delivery failed.
    pub fn failed(&self) {
        add(&self.failed, 1);
    }

    /// A message is going to be tried again.
    pub fn retried(&self) {
        add(&self.retried, 1);
    }

    /// The consumer panicked.
    pub fn panicked(&self) {
        add(&self.panics, 1);
    }

    /// What the worker does now. A look at the clock only if it did something else before.
    pub fn state(&self, state: State) {
        let before = self.state.load(Ordering::Relaxed);
        if before == state as u8 {
            return;
        }
        let now = clock_ns();
        let since = self.since_ns.load(Ordering::Relaxed);
        add(
            &self.spent_ns[usize::from(before)],
            now.saturating_sub(since),
        );
        self.since_ns.store(now, Ordering::Release);
        self.state.store(state as u8, Ordering::Release);
    }

    /// The message of this number is with the consumer, and perhaps others behind it.
    pub fn takes_in_hand(&self, seq: u64) {
        self.in_hand.store(seq, Ordering::Release);
    }

    /// The number of the first message that is with the consumer, if one is.
    pub fn in_hand_seq(&self) -> Option<u64> {
        let there = self.in_flight.load(Ordering::Acquire) > 0;
        there.then(|| self.in_hand.load(Ordering::Acquire))
    }

    /// How long it was in each state, in the order of [`State::ALL`].
    pub fn spent_ns(&self) -> [u64; State::ALL.len()] {
        // A change of state in between counts twice or not at all: some microseconds.
        let state = usize::from(self.state.load(Ordering::Acquire));
        let since = self.since_ns.load(Ordering::Acquire);
        let mut spent = self
            .spent_ns
            .each_ref()
            .map(|ns| ns.load(Ordering::Acquire));
        spent[state] += clock_ns().saturating_sub(since);
        spent
    }

    /// Messages that it has settled.
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::Acquire)
    }

    /// What it does.
    pub fn doing(&self) -> State {
        State::ALL[usize::from(self.state.load(Ordering::Acquire))]
    }

    /// A delivery of so many messages took so long, after the first of them had waited for it, and
    /// stands for so many deliveries that were not timed.
    pub fn timed(&self, messages: usize, waited: Duration, time: Duration, weight: u32) {
        self.processing.record(time.as_secs_f64(), weight.into());
        self.queue_wait.record(waited.as_secs_f64(), weight.into());
        self.times.add(time.as_secs_f32() / messages.max(1) as f32);
        let time = nanos(time);
        add(&self.processing_ns, time.saturating_mul(u64::from(weight)));
        add(&self.timed, u64::from(weight));
        add(&self.timed_messages, messages as u64 * u64::from(weight));
        if time > self.processing_max_ns.load(Ordering::Relaxed) {
            self.processing_max_ns.store(time, Ordering::Release);
        }
    }

    /// A delivery succeeded at this time.
    pub fn succeeded_at(&self, ns: u64) {
        self.last_success_ns.store(ns, Ordering::Release);
    }
}

impl Stats {
    /// Counters for a consumer with so many workers.
    pub fn new(workers: usize) -> Self {
        Stats {
            intake: Intake::default(),
            fetched: Fetched::default(),
            workers: (0..workers).map(|_| Worker::default()).collect(),
            halted: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            retention: AtomicU64::new(0),
        }
    }

    /// The counters of one worker.
    pub fn worker(&self, index: usize) -> &Worker {
        &self.workers[index]
    }

    /// The counters of all workers.
    pub fn workers(&self) -> &[Worker] {
        &self.workers
    }

    /// Counts messages into the queue. Call with the queue's lock held, before they can be taken.
    pub fn received(&self, messages: usize, bytes: usize, head_ns: u64) {
        if self.depth() == 0 {
            self.intake.head_ns.store(head_ns, Ordering::Release);
        }
        add(&self.intake.received_bytes, bytes as u64);
        add(&self.intake.received, messages as u64);
    }

    /// Counts messages that were received and stay in the journal for the time being. Call with the
    /// queue's lock held.
    pub fn deferred(&self, messages: u64, bytes: u64) {
        add(&self.intake.deferred_bytes, bytes);
        add(&self.intake.deferred, messages);
    }

    /// Counts messages of a former run that still wait in the journal; the first of them was
    /// received at this time. Call with the queue's lock held.
    pub fn backlog(&self, messages: u64, bytes: u64, head_ns: u64) {
        self.received(messages as usize, bytes as usize, head_ns);
        self.deferred(messages, bytes);
    }

    /// Counts deferred messages that are in memory now. Call with the lock of the workers' side
    /// held.
    pub fn fetched(&self, messages: u64, bytes: u64) {
        add(&self.fetched.bytes, bytes);
        add(&self.fetched.messages, messages);
    }

    /// Counts deferred messages that will never be in memory. Call with both locks held.
    pub fn lost(&self, reason: Reason, messages: u64, bytes: u64) {
        self.dropped(reason, messages as usize, bytes as usize);
        self.fetched(messages, bytes);
    }

    /// A worker took messages up to one that was received at this time. Call with the lock of the
    /// workers' side held.
    pub fn taken(&self, received_ns: u64) {
        self.fetched.taken_ns.store(received_ns, Ordering::Release);
    }

    /// What waits now begins with a message received at this time, or later. Call with both locks
    /// held, because it may be an earlier one than before.
    pub fn head(&self, received_ns: u64) {
        self.intake.head_ns.store(received_ns, Ordering::Release);
        self.fetched.taken_ns.store(received_ns, Ordering::Release);
    }

    /// How long deliveries took.
    pub fn processing(&self) -> Counts {
        self.all(|worker| &worker.processing)
    }

    /// How long messages waited before they were delivered: the first of each delivery.
    pub fn queue_wait(&self) -> Counts {
        self.all(|worker| &worker.queue_wait)
    }

    fn all(&self, of: impl Fn(&Worker) -> &Histogram) -> Counts {
        let mut workers = self.workers.iter();
        let mut all = workers.next().map(|first| of(first).snapshot());
        for worker in workers {
            if let Some(all) = &mut all {
                all.add(&of(worker).snapshot());
            }
        }
        all.unwrap_or_else(|| Histogram::new(PROCESSING).snapshot())
    }

    /// The times per message, in seconds, that were taken since `seen`, which is brought up to date:
    /// the latest 1024 of each worker at most. It begins empty.
    pub fn times_since(&self, seen: &mut Vec<u64>) -> Vec<f32> {
        self.times().since(seen)
    }

    /// The latest times per message.
    pub fn times(&self) -> LatestTimes {
        let workers = self.workers.iter().map(|worker| {
            let ring = &worker.times.ring;
            let count = worker.times.count.load(Ordering::Acquire);
            let first = count.saturating_sub(ring.len() as u64);
            let place = |index: u64| &ring[index as usize % ring.len()];
            let seconds = (first..count).map(|i| f32::from_bits(place(i).load(Ordering::Relaxed)));
            (count, seconds.collect())
        });
        let (counts, seconds) = workers.unzip();
        LatestTimes { counts, seconds }
    }

    /// Messages and bytes that wait in the journal only.
    pub fn behind(&self) -> (u64, u64) {
        let bytes = self.fetched.bytes.load(Ordering::Acquire);
        let messages = self.fetched.messages.load(Ordering::Acquire);
        let deferred = self.intake.deferred.load(Ordering::Acquire);
        let deferred_bytes = self.intake.deferred_bytes.load(Ordering::Acquire);
        (
            deferred.saturating_sub(messages),
            deferred_bytes.saturating_sub(bytes),
        )
    }

    /// Whether an operator has paused the consumer.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// An operator has paused or resumed the consumer.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
    }

    /// How much of what retention allows its unsettled messages take up: at 1 it takes them.
    pub fn retention_used(&self, used: f64) {
        self.retention.store(used.to_bits(), Ordering::Release);
    }

    /// Counts messages that were dropped from the head of the queue, the last of them received at
    /// this time. Call with the queue's lock held.
    pub fn dropped_head(&self, reason: Reason, messages: usize, bytes: usize, last_ns: u64) {
        self.intake.head_ns.store(last_ns, Ordering::Release);
        self.dropped(reason, messages, bytes);
    }

    /// Counts messages that were received and are dropped before a worker had them. Call with the
    /// queue's lock held.
    pub fn dropped(&self, reason: Reason, messages: usize, bytes: usize) {
        add(&self.intake.dropped_bytes, bytes as u64);
        add(&self.intake.dropped[reason as usize], messages as u64);
    }

    /// Whether the consumer said `Halt`.
    pub fn is_halted(&self) -> bool {
        self.halted.load(Ordering::SeqCst)
    }

    /// The consumer said `Halt`.
    pub fn halt(&self) {
        self.halted.store(true, Ordering::SeqCst);
    }

    /// Messages not yet settled.
    pub fn depth(&self) -> u64 {
        let settled: u64 = self
            .workers
            .iter()
            .map(|w| w.settled.load(Ordering::Acquire))
            .sum();
        let dropped: u64 = self
            .intake
            .dropped
            .iter()
            .map(|count| count.load(Ordering::Acquire))
            .sum();
        self.received_all() - dropped - settled
    }

    /// Messages received: those of the queue, and letters. Read after what is subtracted from it.
    fn received_all(&self) -> u64 {
        let letters = self.workers.iter();
        let letters: u64 = letters.map(|w| w.letters.load(Ordering::Acquire)).sum();
        letters + self.intake.received.load(Ordering::Acquire)
    }

    /// Their bytes.
    pub fn depth_bytes(&self) -> u64 {
        let settled: u64 = self
            .workers
            .iter()
            .map(|w| w.settled_bytes.load(Ordering::Acquire))
            .sum();
        let dropped = self.intake.dropped_bytes.load(Ordering::Acquire);
        let letters = self.workers.iter();
        let letters: u64 = letters
            .map(|w| w.letter_bytes.load(Ordering::Acquire))
            .sum();
        letters + self.intake.received_bytes.load(Ordering::Acquire) - dropped - settled
    }

    /// A copy of all numbers at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let mut shot = Snapshot {
            at_ns: now_ns(),
            ..Snapshot::default()
        };
        let mut head_ns = u64::MAX;
        let mut in_flight = 0;
        let mut state = State::Stopped;
        for worker in &self.workers {
            in_flight += worker.in_flight.load(Ordering::Acquire);
            shot.retrying += worker.retrying.load(Ordering::Acquire);
            // 0, nothing held, wraps to the latest time there is.
            head_ns = head_ns.min(worker.head_ns.load(Ordering::Acquire).wrapping_sub(1));
            shot.consumed += worker.consumed.load(Ordering::Acquire);
            shot.dead_lettered += worker.dead_lettered.load(Ordering::Acquire);
            for (total, count) in shot.dropped.0.iter_mut().zip(&worker.dropped) {
                *total += count.load(Ordering::Acquire);
            }
            shot.failed += worker.failed.load(Ordering::Acquire);
            shot.retried += worker.retried.load(Ordering::Acquire);
            shot.panics += worker.panics.load(Ordering::Acquire);
            shot.last_success_ns = shot
                .last_success_ns
                .max(worker.last_success_ns.load(Ordering::Acquire));
            for (all, own) in shot.spent_ns.iter_mut().zip(worker.spent_ns()) {
                *all += own;
            }
            shot.processing_ns += worker.processing_ns.load(Ordering::Acquire);
            shot.processing_max_ns = shot
                .processing_max_ns
                .max(worker.processing_max_ns.load(Ordering::Acquire));
            shot.timed += worker.timed.load(Ordering::Acquire);
            shot.timed_messages += worker.timed_messages.load(Ordering::Acquire);
            state = state.max(worker.doing());
        }
        for (total, count) in shot.dropped.0.iter_mut().zip(&self.intake.dropped) {
            *total += count.load(Ordering::Acquire);
        }
        shot.queue_bytes = self.depth_bytes();
        let (behind, _) = self.behind();
        let taken_ns = self.fetched.taken_ns.load(Ordering::Acquire);
        let queue_head_ns = taken_ns.max(self.intake.head_ns.load(Ordering::Acquire));
        shot.received = self.received_all();

        let settled = shot.consumed + shot.dropped.total() + shot.dead_lettered;
        shot.queue_messages = shot.received - settled;
        // A worker that settles between the two readings shows as still in flight: at most depth.
        shot.in_flight = in_flight.min(shot.queue_messages);
        shot.retrying = shot.retrying.min(shot.queue_messages);
        shot.waiting = shot.queue_messages - shot.in_flight;
        shot.behind_messages = behind.min(shot.queue_messages);
        shot.retention_used = f64::from_bits(self.retention.load(Ordering::Acquire));
        if shot.queue_messages > 0 {
            // What waits is younger than what is held, except after a replay has begun.
            let head_ns = head_ns.saturating_add(1).min(queue_head_ns);
            shot.lag = Duration::from_nanos(shot.at_ns.saturating_sub(head_ns));
        }
        shot.state = match state {
            _ if self.is_halted() => State::Halted,
            State::Idle if self.is_paused() => State::Paused,
            state => state,
        };
        shot
    }
}

/// Messages dropped, by [`Reason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped([u64; REASONS]);

impl Dropped {
    /// How many for this reason.
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// All reasons with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::ALL.into_iter().zip(self.0)
    }
}

/// As a map from each reason's word to its count, zeros included: a reader finds every key.
impl Serialize for Dropped {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter().map(|(reason, count)| (reason.as_str(), count)))
    }
}

/// The numbers of one consumer at one moment: the ledger, and what is known of its work.
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// When, in nanoseconds since 1970.
    pub at_ns: u64,
    /// Messages offered to the queue.
    pub received: u64,
    /// Messages the consumer took.
    pub consumed: u64,
    /// Messages dropped, by reason.
    pub dropped: Dropped,
    /// Messages set aside.
    pub dead_lettered: u64,
    /// Messages in the queue and not with the consumer.
    pub waiting: u64,
    /// Messages with the consumer.
    pub in_flight: u64,
    /// Those that wait to be tried again; they are among `waiting`.
    pub retrying: u64,
    /// Depth: waiting and in flight.
    pub queue_messages: u64,
    /// Their topics' and payloads' bytes.
    pub queue_bytes: u64,
    /// Those of them that are in the journal only, and not in memory.
    pub behind_messages: u64,
    /// How much of what retention allows the unsettled messages take up: at 1 it takes them.
    pub retention_used: f64,
    /// The age of the oldest message not yet settled; zero when there is none.
    pub lag: Duration,
    /// Deliveries that failed.
    pub failed: u64,
    /// Messages tried again.
    pub retried: u64,
    /// Deliveries that panicked.
    pub panics: u64,
    /// When a delivery last succeeded, in nanoseconds since 1970; 0: never.
    pub last_success_ns: u64,
    /// How long its workers were in each state, all together, in the order of [`State::ALL`].
    pub spent_ns: [u64; State::ALL.len()],
    /// Time spent in deliveries; cheap ones are timed one in 128 and counted 128-fold.
    pub processing_ns: u64,
    /// The longest delivery that was timed.
    pub processing_max_ns: u64,
    /// How many deliveries `processing_ns` stands for.
    pub timed: u64,
    /// How many messages were in those.
    pub timed_messages: u64,
    /// What the busiest of its workers is doing.
    pub state: State,
}

impl Default for Snapshot {
    fn default() -> Self {
        Snapshot {
            at_ns: 0,
            received: 0,
            consumed: 0,
            dropped: Dropped::default(),
            dead_lettered: 0,
            waiting: 0,
            in_flight: 0,
            retrying: 0,
            queue_messages: 0,
            queue_bytes: 0,
            behind_messages: 0,
            retention_used: 0.0,
            lag: Duration::ZERO,
            failed: 0,
            retried: 0,
            panics: 0,
            last_success_ns: 0,
            spent_ns: [0; State::ALL.len()],
            processing_ns: 0,
            processing_max_ns: 0,
            timed: 0,
            timed_messages: 0,
            state: State::Idle,
        }
    }
}

impl Snapshot {
    /// The mean time of a delivery, if any was timed.
    pub fn processing_mean(&self) -> Option<Duration> {
        (self.processing_ns.checked_div(self.timed)).map(Duration::from_nanos)
    }
}

/// The longest topic, in bytes: topics are remembered, and memory is bounded.
pub const TOPIC_MAX: usize = 1024;

/// Why a message was refused at the source, before it had a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not one, two or three frames, or one frame without a NUL after the topic.
    Frames,
    /// The topic is not UTF-8, or longer than [`TOPIC_MAX`].
    Topic,
    /// Larger than `message_max`, as it came or decompressed.
    Size,
    /// It can't be decompressed.
    Encoding,
    /// No consumer wants its topic.
    Unrouted,
    /// The hub stopped while the journal could not be written (`on_error = "stop"`).
    Unwritten,
}

impl Refusal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Refusal; 6] = [
        Refusal::Frames,
        Refusal::Topic,
        Refusal::Size,
        Refusal::Encoding,
        Refusal::Unrouted,
        Refusal::Unwritten,
    ];

    /// The word for it in figures and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Frames => "frames",
            Refusal::Topic => "topic",
            Refusal::Size => "size",
            Refusal::Encoding => "encoding",
            Refusal::Unrouted => "unrouted",
            Refusal::Unwritten => "unwritten",
        }
    }
}

/// The counters of one source (a backend), written by its enqueuer's thread only.
#[derive(Default)]
pub struct SourceStats {
    received: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    endpoints: Vec<EndpointStats>,
    /// Somebody wants to look at a message.
    wanted: AtomicBool,
    latest: Mutex<Option<Message>>,
}

/// The counters of one endpoint of a source.
#[derive(Default)]
pub struct EndpointStats {
    name: String,
    bound: bool,
    connections: AtomicU64,
    connects: AtomicU64,
    disconnects: AtomicU64,
    missed: AtomicU64,
    restarts: AtomicU64,
    sequenced: AtomicBool,
    unread: AtomicBool,
}

impl SourceStats {
    /// Counters for a source that connects to some endpoints and binds others, in this order.
    pub fn new(connect: &[String], bind: &[String]) -> Self {
        let stats = |name: &String, bound| EndpointStats {
            name: name.clone(),
            bound,
            ..Default::default()
        };
        let connected = connect.iter().map(|name| stats(name, false));
        SourceStats {
            endpoints: connected
                .chain(bind.iter().map(|name| stats(name, true)))
                .collect(),
            ..Default::default()
        }
    }

    /// So many messages came that could be read.
    pub fn received(&self, messages: usize) {
        add(&self.received, messages as u64);
    }

    /// A message was refused.
    pub fn refused(&self, why: Refusal) {
        self.refused_all(why, 1);
    }

    /// So many messages were refused.
    pub fn refused_all(&self, why: Refusal, messages: u64) {
        add(&self.refused[why as usize], messages);
    }

    /// Asks for one of the messages that come next, and takes the one that came since it last did.
    pub fn probe(&self) -> Option<Message> {
        let latest = self.latest.lock().take();
        self.wanted.store(true, Ordering::Release);
        latest
    }

    /// Gives the latest message to whoever asked for one: looked at once a batch, and no more.
    pub fn offer(&self, latest: Option<&Message>) {
        if self.wanted.load(Ordering::Relaxed) && latest.is_some() {
            *self.latest.lock() = latest.cloned();
            self.wanted.store(false, Ordering::Release);
        }
    }

    /// One endpoint's counters, by its place in the list given to `new`.
    pub fn endpoint(&self, index: usize) -> &EndpointStats {
        &self.endpoints[index]
    }

    /// A copy of all numbers at this moment.
    pub fn snapshot(&self) -> SourceSnapshot {
        SourceSnapshot {
            received: self.received.load(Ordering::Acquire),
            refused: Refused(
                self.refused
                    .each_ref()
                    .map(|count| count.load(Ordering::Acquire)),
            ),
            endpoints: self.endpoints.iter().map(EndpointStats::snapshot).collect(),
        }
    }
}

impl EndpointStats {
    /// A peer connected; answers how often one has.
    pub fn connected(&self) -> u64 {
        add(&self.connects, 1);
        add(&self.connections, 1);
        self.connects.load(Ordering::Relaxed)
    }

    /// A peer went away.
    pub fn disconnected(&self) {
        add(&self.disconnects, 1);
        let connections = self.connections.load(Ordering::Relaxed);
        self.connections
            .store(connections.saturating_sub(1), Ordering::Release);
    }

    /// Its messages carry sequence numbers.
    pub fn sequenced(&self) {
        self.sequenced.store(true, Ordering::Release);
    }

    /// So many sequence numbers were skipped.
    pub fn missed(&self, messages: u64) {
        add(&self.missed, messages);
    }

    /// The hub stopped before it had read all that had come.
    pub fn left_unread(&self) {
        self.unread.store(true, Ordering::Release);
    }

    /// The sequence began anew.
    pub fn restarted(&self) {
        add(&self.restarts, 1);
    }

    fn snapshot(&self) -> EndpointSnapshot {
        let connects = self.connects.load(Ordering::Acquire);
        let disconnects = self.disconnects.load(Ordering::Acquire);
        let missed = self.missed.load(Ordering::Acquire);
        let restarts = self.restarts.load(Ordering::Acquire);
        let sequenced = self.sequenced.load(Ordering::Acquire);
        EndpointSnapshot {
            endpoint: self.name.clone(),
            bound: self.bound,
            connections: self.connections.load(Ordering::Acquire),
            connects,
            disconnects,
            reconnects: connects.saturating_sub(1).min(disconnects),
            gaps: missed,
            loss: match (missed, restarts, sequenced, disconnects) {
                (1.., ..) => Loss::Seen,
                _ if self.unread.load(Ordering::Acquire) => Loss::Possible,
                (0, 0, true, _) | (0, 0, false, 0) => Loss::NoneSeen,
                _ => Loss::Possible,
            },
        }
    }
}

/// The numbers of one source at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct SourceSnapshot {
    /// Messages that came and could be read.
    pub received: u64,
    /// Messages refused, by reason.
    pub refused: Refused,
    /// The source's endpoints.
    pub endpoints: Vec<EndpointSnapshot>,
}

/// Messages refused, by [`Refusal`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Refused([u64; Refusal::ALL.len()]);

impl Refused {
    /// How many for this reason.
    pub fn of(&self, why: Refusal) -> u64 {
        self.0[why as usize]
    }

    /// All reasons with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Refusal, u64)> {
        Refusal::ALL.into_iter().zip(self.0)
    }
}

/// As a map from each reason's word to its count.
impl Serialize for Refused {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.iter().map(|(why, count)| (why.as_str(), count)))
    }
}

/// The numbers of one endpoint at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointSnapshot {
    /// The endpoint, as the configuration says it.
    pub endpoint: String,
    /// Whether it is bound, so that peers come to it, and none may be there.
    pub bound: bool,
    /// Peers connected now; always 0 for `inproc`, which libzmq does not monitor.
    pub connections: u64,
    /// Connections made since the start.
    pub connects: u64,
    /// Connections lost since the start.
    pub disconnects: u64,
    /// Connections made after one was lost.
    pub reconnects: u64,
    /// Messages that never came, by their sequence numbers.
    pub gaps: u64,
    /// What is known of loss before the hub.
    pub loss: Loss,
}

/// What is known of messages lost between the publisher and the hub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Sequence numbers without a gap, or no connection was ever lost.
    NoneSeen,
    /// A connection was lost, or a sequence began anew, and nothing tells what passed meanwhile; or
    /// the hub stopped before it had read all that had come.
    Possible,
    /// Sequence numbers were skipped.
    Seen,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conservation_holds_at_every_step() {
        let stats = Stats::new(2);
        let check = |waiting, in_flight| {
            let shot = stats.snapshot();
            assert_eq!((shot.waiting, shot.in_flight), (waiting, in_flight));
            let sum = shot.consumed + shot.dropped.total() + shot.waiting + shot.in_flight;
            assert_eq!(shot.received, sum);
        };
        check(0, 0);
        stats.received(3, 30, 1);
        check(3, 0);
        stats.worker(0).hold(1, 1);
        stats.worker(1).hold(2, 1);
        check(1, 2);
        stats.worker(0).settle(Settled::Consumed, 1, 10);
        stats.worker(0).release();
        check(1, 1);
        stats.dropped(Reason::Overflow, 1, 10);
        check(0, 1);
        stats
            .worker(1)
            .settle(Settled::Dropped(Reason::Refused), 1, 10);
        stats.worker(1).release();
        check(0, 0);
        assert_eq!((stats.depth(), stats.depth_bytes()), (0, 0));
    }

    #[test]
    fn lag_is_the_age_of_the_oldest_message_anybody_holds() {
        let stats = Stats::new(2);
        assert_eq!(stats.snapshot().lag, Duration::ZERO);
        let now = now_ns();
        let second = 1_000_000_000;
        stats.received(2, 2, now - 5 * second);
        assert!(stats.snapshot().lag >= Duration::from_secs(5));
        stats.taken(now - 3 * second);
        stats.worker(1).hold(now - 3 * second, 1);
        let lag = stats.snapshot().lag;
        assert!(
            lag >= Duration::from_secs(3) && lag < Duration::from_secs(5),
            "{lag:?}"
        );
    }

    #[test]
    fn loss_is_never_called_none_when_it_can_not_be_known() {
        let source = SourceStats::new(&["a".to_owned()], &[]);
        let loss = || source.snapshot().endpoints[0].loss;
        source.endpoint(0).connected();
        assert_eq!(loss(), Loss::NoneSeen);
        source.endpoint(0).disconnected();
        source.endpoint(0).connected();
        assert_eq!(loss(), Loss::Possible);
        assert_eq!(source.snapshot().endpoints[0].reconnects, 1);
        source.endpoint(0).sequenced();
        assert_eq!(loss(), Loss::NoneSeen);
        source.endpoint(0).missed(2);
        assert_eq!(loss(), Loss::Seen);
    }
}
