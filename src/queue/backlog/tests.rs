//! The queue and the journal together beside a model: who has settled what.
//!
//! One thread plays enqueuer, workers and keeper in an order that proptest chooses. What depends on
//! two threads being at the same place at the same time is for the tests of the running hub.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::journal::{self, Journal, Record};
use crate::queue::{Overflow, Settings};
use crate::stats::{Settled, Stats};

const WANTED: &str = "a.x";
const OTHER: &str = "b.x";

#[derive(Clone, Debug)]
enum Operation {
    /// A batch comes; some of it is wanted.
    Push(Vec<bool>),
    /// A batch comes while the journal can't be written.
    PushUnwritten(u8),
    /// The next batch begins a new segment.
    Rotate,
    /// A worker that has nothing in hand takes, and fills up.
    Take(usize, bool),
    /// A worker settles the first that it has in hand.
    Settle(usize),
    /// Back to this part of the way.
    Replay(u8),
    /// The cursor is written.
    Save,
    /// Retention takes the oldest segment.
    Remove,
    /// The process ends without a word, and starts anew.
    Crash,
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        6 => prop::collection::vec(prop::bool::weighted(0.7), 1..12).prop_map(Operation::Push),
        1 => (1..4u8).prop_map(Operation::PushUnwritten),
        1 => Just(Operation::Rotate),
        8 => (0..3usize, any::<bool>()).prop_map(|(worker, fill)| Operation::Take(worker, fill)),
        12 => (0..3usize).prop_map(Operation::Settle),
        1 => any::<u8>().prop_map(Operation::Replay),
        2 => Just(Operation::Save),
        1 => Just(Operation::Remove),
        1 => Just(Operation::Crash),
    ]
}

/// A queue with its journal, and what is known to be true of them.
struct World {
    dir: TempDir,
    journal: Arc<Journal>,
    queue: Arc<Queue>,
    takers: Vec<Taker>,
    hands: Vec<VecDeque<Message>>,
    bound: usize,
    /// Wanted messages and whether they have been settled in any run; those that retention took or
    /// an outage dropped are not in it.
    wanted: BTreeMap<u64, bool>,
    /// Those of them that no journal has: they are gone after a crash.
    unwritten: BTreeSet<u64>,
    saved: Cursor,
    /// Of one worker: the number delivered last, as long as the order is the first one.
    last: u64,
    /// Numbers below it were settled when the last replay was asked for, or are delivered anew.
    replayed_below: u64,
}

impl World {
    fn new(workers: usize, bound: usize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let saved = Cursor {
            position: 1,
            ..Cursor::default()
        };
        let (journal, queue) = World::start(&dir, workers, bound, &saved);
        let mut world = World {
            dir,
            journal,
            queue,
            takers: Vec::new(),
            hands: vec![VecDeque::new(); workers],
            bound,
            wanted: BTreeMap::new(),
            unwritten: BTreeSet::new(),
            saved,
            last: 0,
            replayed_below: 0,
        };
        world.employ();
        world
    }

    fn employ(&mut self) {
        let taker = |worker| Taker::new(self.queue.clone(), Some(worker));
        self.takers = (0..self.hands.len()).map(taker).collect();
    }

    /// As the hub does it.
    fn start(
        dir: &TempDir,
        workers: usize,
        bound: usize,
        saved: &Cursor,
    ) -> (Arc<Journal>, Arc<Queue>) {
        let settings = journal::Settings::default();
        let (journal, _) = Journal::open(dir.path(), &settings, saved.position).unwrap();
        let mut cursor = saved.clone();
        let lost = journal.begin().saturating_sub(cursor.position);
        cursor.position = cursor.position.max(journal.begin());
        let range = cursor.position..journal.end();
        let counted = journal.count(range, &mut |topic| topic == WANTED).unwrap();
        let settings = Settings {
            messages: bound,
            bytes: usize::MAX,
            overflow: Overflow::DropNewest,
        };
        let share_out = (workers > 1).then_some(1);
        let queue = Queue::new(settings, Arc::new(Stats::new(workers)), share_out);
        let start = Start {
            cursor,
            waiting: (
                counted.messages,
                counted.bytes,
                counted.first_ns.unwrap_or(0),
            ),
            lost: [(Reason::Retention, lost), (Reason::Corrupt, counted.lost)],
        };
        let queue = queue.with_journal("test", journal.clone(), vec!["a.".into()], &start);
        (journal, Arc::new(queue))
    }

    fn push(&mut self, wanted: &[bool], journaled: bool) {
        let topic = |wanted: &bool| if *wanted { WANTED } else { OTHER };
        let mut appender = self.journal.lock();
        let records = wanted.iter().map(|wanted| Record {
            topic: topic(wanted),
            payload: b"payload",
            source_seq: None,
        });
        let first = match journaled {
            true => appender.append(0, 1, records).unwrap(),
            false => appender.pass(wanted.len() as u64),
        };
        let message = |(wanted, seq): (&bool, u64)| {
            Message::at_ns(topic(wanted).into(), b"payload".as_slice().into(), 1, seq)
        };
        let all: Arc<[Message]> = wanted.iter().zip(first..).map(message).collect();
        let own: Arc<[Message]> = all
            .iter()
            .filter(|m| m.topic() == WANTED)
            .cloned()
            .collect();
        let dropped = self.dropped();
        if !own.is_empty() {
            self.queue.push(&own, bytes_of(&own), journaled);
        }
        match journaled {
            true => appender.publish(&all),
            false => drop(appender),
        }
        // An outage keeps the oldest of them: the queue's own model is about which.
        let kept = own.len() - (self.dropped() - dropped) as usize;
        assert!(kept == own.len() || !journaled, "the journal has them all");
        for message in &own[..kept] {
            self.wanted.insert(message.seq(), false);
            if !journaled {
                self.unwritten.insert(message.seq());
            }
        }
    }

    fn dropped(&self) -> u64 {
        self.queue.stats().snapshot().dropped.of(Reason::Overflow)
    }

    fn take(&mut self, worker: usize, fill: bool) {
        if !self.hands[worker].is_empty() {
            return;
        }
        // The deadline has passed, so it looks once, and fetches; the second time it finds that.
        for _ in 0..2 {
            if let Taken::Piece(piece) = self.takers[worker].take(|| {}, Instant::now()) {
                self.deliver(worker, &piece);
                break;
            }
        }
        if fill
            && !self.hands[worker].is_empty()
            && let Some(piece) = self.takers[worker].take_more()
        {
            self.deliver(worker, &piece);
        }
    }

    fn deliver(&mut self, worker: usize, piece: &[Message]) {
        for message in piece {
            let seq = message.seq();
            assert_eq!(message.topic(), WANTED);
            assert!(
                self.wanted.contains_key(&seq),
                "{seq} is not to be delivered"
            );
            if message.replayed() {
                assert!(seq < self.replayed_below);
            }
            if self.hands.len() == 1 {
                assert!(seq > self.last, "{seq} after {}", self.last);
                self.last = seq;
            }
            self.hands[worker].push_back(message.clone());
        }
    }

    fn settle(&mut self, worker: usize) {
        if let Some(message) = self.hands[worker].pop_front() {
            let counters = self.queue.stats().worker(worker);
            let one = std::slice::from_ref(&message);
            self.queue.settle(counters, Settled::Consumed, one);
            self.wanted.insert(message.seq(), true);
        }
    }

    fn replay(&mut self, part: u8) {
        let end = self.journal.end();
        let from = 1 + (end - 1) * u64::from(part) / 256;
        if self.queue.replay(from).is_ok() {
            self.replayed_below = end;
            // What is in hand comes first, and then all from there on.
            self.last = from.max(self.journal.begin()) - 1;
        }
    }

    fn remove(&mut self) {
        let segments = self.journal.segments();
        let Some(oldest) = segments.first().filter(|s| s.sealed) else {
            return;
        };
        self.queue.lose_before(oldest.end).unwrap();
        self.journal.remove_oldest(oldest.base).unwrap();
        // What is in memory is still delivered, whatever the journal has lost.
        let gone = self
            .wanted
            .range(..oldest.end)
            .filter(|(_, settled)| !**settled);
        for seq in gone.map(|(seq, _)| *seq).collect::<Vec<_>>() {
            self.unwritten.insert(seq);
        }
    }

    fn crash(&mut self) {
        let workers = self.hands.len();
        self.hands.iter_mut().for_each(VecDeque::clear);
        self.takers.clear();
        // Their numbers may be given to others now.
        let gone = std::mem::take(&mut self.unwritten);
        self.wanted.retain(|seq, _| !gone.contains(seq));
        // The old one is still there, as a process that was killed leaves its files.
        let (journal, queue) = World::start(&self.dir, workers, self.bound, &self.saved);
        (self.journal, self.queue) = (journal, queue);
        self.last = 0;
        self.replayed_below = self.saved.replayed_below;
        self.employ();
        self.check();
    }

    fn check(&self) {
        let shot = self.queue.stats().snapshot();
        let settled = shot.consumed + shot.dropped.total();
        assert_eq!(shot.received, settled + shot.queue_messages);
        let in_memory = shot.queue_messages - shot.behind_messages;
        assert!(in_memory <= self.bound as u64, "{in_memory} in memory");
        let cursor = self.queue.cursor(0).unwrap();
        let first = self.wanted.iter().find(|(_, settled)| !**settled);
        if let Some((seq, _)) = first.filter(|(seq, _)| !self.unwritten.contains(seq)) {
            assert!(cursor.position <= *seq, "cursor {cursor:?} passed {seq}");
        }
    }

    /// Everything is worked off: then nothing may be missing.
    fn drain(&mut self) {
        let mut idle = 0;
        while self.queue.stats().depth() > 0 {
            for worker in 0..self.hands.len() {
                self.take(worker, true);
                idle = if self.hands[worker].is_empty() {
                    idle + 1
                } else {
                    0
                };
                while !self.hands[worker].is_empty() {
                    self.settle(worker);
                }
            }
            assert!(idle < 10_000, "something is counted that never comes");
        }
        self.check();
        let missing = |(seq, settled): (&u64, &bool)| !settled && !self.unwritten.contains(seq);
        assert!(!self.wanted.iter().any(missing), "{:?}", self.wanted);
        assert_eq!(self.queue.cursor(0).unwrap().position, self.journal.end());
        assert_eq!(self.queue.stats().behind(), (0, 0));
    }
}

proptest! {
    /// Order, conservation, the cursor and at-least-once hold whatever happens in whatever order.
    #[test]
    fn queue_and_journal_agree_with_a_model(
        workers in 1..4usize,
        bound in 1..12usize,
        operations in prop::collection::vec(operation(), 1..80),
    ) {
        let mut world = World::new(workers, bound);
        for operation in operations {
            match operation {
                Operation::Push(wanted) => world.push(&wanted, true),
                Operation::PushUnwritten(count) => world.push(&vec![true; count.into()], false),
                Operation::Rotate => world.journal.rotate_soon(),
                Operation::Take(worker, fill) => world.take(worker % workers, fill),
                Operation::Settle(worker) => world.settle(worker % workers),
                Operation::Replay(part) => world.replay(part),
                Operation::Save => world.saved = world.queue.cursor(0).unwrap(),
                Operation::Remove => world.remove(),
                Operation::Crash => world.crash(),
            }
            world.check();
        }
        world.drain();
    }
}
