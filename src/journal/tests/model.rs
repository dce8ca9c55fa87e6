//! Anything, in any order, against a plain map of what was sent.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::disk::Faults;
use super::*;

#[derive(Clone, Debug)]
enum Operation {
    /// Append and publish a message to each of these topics.
    Send(Vec<u8>),
    /// Number messages that are not written.
    Pass(u64),
    /// Read on, so many messages at most.
    Read {
        reader: usize,
        max: usize,
    },
    /// Read from somewhere.
    Seek {
        reader: usize,
        place: u8,
    },
    /// Nobody reads from there any more.
    Drop {
        reader: usize,
    },
    Sync,
    Rotate,
    RemoveOldest,
    /// What the disk does not do from now on.
    Fail(Faults),
    /// The process dies.
    Kill {
        next: bool,
    },
    /// The power fails: of what was not synced, this part is left.
    PowerFailure {
        left: u8,
        next: bool,
    },
    /// The hub stops in order and starts again.
    Restart,
    /// A bit of a file changes.
    Flip {
        file: usize,
        place: usize,
        bit: u8,
    },
}

fn operation() -> impl Strategy<Value = Operation> {
    use Operation::*;
    let reader = 0..3_usize;
    let faults = (
        proptest::option::of(0..400_u64),
        any::<[bool; 6]>(),
        any::<bool>(),
    );
    let faults = faults.prop_map(
        |(room, [late, create, set_len, sync, sync_dir, remove], on)| {
            let faults = Faults {
                room,
                late,
                create,
                set_len,
                sync,
                sync_dir,
                remove,
            };
            if on { faults } else { Faults::default() }
        },
    );
    prop_oneof![
        8 => proptest::collection::vec(0..4_u8, 1..9).prop_map(Send),
        1 => (1..9_u64).prop_map(Pass),
        6 => (reader.clone(), 1..20_usize).prop_map(|(reader, max)| Read { reader, max }),
        1 => (reader.clone(), any::<u8>()).prop_map(|(reader, place)| Seek { reader, place }),
        1 => reader.prop_map(|reader| Drop { reader }),
        2 => Just(Sync),
        1 => Just(Rotate),
        1 => Just(RemoveOldest),
        1 => faults.prop_map(Fail),
        1 => any::<bool>().prop_map(|next| Kill { next }),
        1 => any::<(u8, bool)>().prop_map(|(left, next)| PowerFailure { left, next }),
        1 => Just(Restart),
        1 => any::<(usize, usize, u8)>()
            .prop_map(|(file, place, bit)| Flip { file, place, bit: bit % 8 }),
    ]
}

const TOPICS: [&str; 4] = ["a", "b", "c", "rare"];

/// What became of a sequence number.
#[derive(Clone, Debug, PartialEq)]
enum Fate {
    Sent(&'static str, String),
    Passed,
}

struct Model {
    lab: Lab,
    fates: BTreeMap<u64, Fate>,
    /// What batches that were refused would have been: one may stand in the file all the same, but
    /// nobody may see it as long as the process lives.
    refused: Vec<(u64, Fate)>,
    /// Numbers of such batches that were seen after a restart.
    revived: BTreeSet<u64>,
    /// Messages that may be gone: the disk's doing, not the journal's.
    at_risk: Vec<Range<u64>>,
    removed_below: u64,
    /// Nothing has happened to the files that the journal did not do.
    pristine: bool,
    /// Each with the topics that it wants.
    readers: [Option<Reader>; 3],
    sent: usize,
}

fn wants(reader: usize, topic: &str) -> bool {
    match reader {
        0 => true,
        1 => topic != "a",
        _ => topic == "rare",
    }
}

impl Model {
    fn new() -> Self {
        Model {
            lab: Lab::new(),
            fates: BTreeMap::new(),
            refused: Vec::new(),
            revived: BTreeSet::new(),
            at_risk: Vec::new(),
            removed_below: 1,
            pristine: true,
            readers: [None, None, None],
            sent: 0,
        }
    }

    fn apply(&mut self, operation: &Operation) {
        match operation {
            Operation::Send(topics) => {
                let topics: Vec<&'static str> =
                    topics.iter().map(|t| TOPICS[*t as usize]).collect();
                let next = self.lab.journal.end();
                // Differs from what was refused under the same number.
                self.sent += 1;
                let text = format!("x{}", self.sent);
                let fates = (next..)
                    .zip(&topics)
                    .map(|(seq, topic)| (seq, Fate::Sent(topic, payload(&text, seq))));
                match self.lab.send(&topics, &text) {
                    Ok(first) => {
                        assert_eq!(first, next);
                        self.fates.extend(fates);
                    }
                    Err(_) => self.refused.extend(fates),
                }
            }
            Operation::Pass(count) => {
                let first = self.lab.journal.lock().pass(*count);
                self.fates
                    .extend((first..first + count).map(|seq| (seq, Fate::Passed)));
            }
            Operation::Read { reader, max } => self.read(*reader, *max),
            Operation::Seek { reader, place } => {
                let position = 1 + self.lab.journal.end() * u64::from(*place) / 256;
                let begun = || self.lab.journal.reader(position);
                self.readers[*reader]
                    .get_or_insert_with(begun)
                    .seek(position);
            }
            Operation::Drop { reader } => self.readers[*reader] = None,
            Operation::Sync => {
                let result = self.lab.journal.sync_now();
                let given_up = self.lab.journal.snapshot().sync_errors > 0;
                if result.is_ok() && !given_up {
                    assert_eq!(self.lab.journal.durable(), self.lab.journal.end());
                }
            }
            Operation::Rotate => self.lab.journal.rotate_soon(),
            Operation::RemoveOldest => {
                let segments = self.lab.journal.segments();
                let Some(oldest) = segments.first() else {
                    return;
                };
                let result = self.lab.journal.remove_oldest(oldest.base);
                let gone = self.lab.journal.segments().first() != Some(oldest);
                assert!(gone || result.is_err());
                if gone {
                    self.removed_below = oldest.end;
                }
            }
            Operation::Fail(faults) => self.lab.disk.set(*faults),
            Operation::Kill { next } => self.restart(*next),
            Operation::PowerFailure { left, next } => {
                let journal = &self.lab.journal;
                self.at_risk.push(journal.durable()..journal.end());
                self.pristine = false;
                for segment in journal.segments() {
                    let path = self.lab.path(segment.base);
                    let len = std::fs::metadata(&path).unwrap().len();
                    match self.lab.disk.survives(&path) {
                        Some(synced) => {
                            let left = synced + (len - synced.min(len)) * u64::from(*left) / 256;
                            let file = Filesystem.open(&path).unwrap();
                            file.set_len(left.min(len)).unwrap();
                        }
                        None if left % 2 == 0 => std::fs::remove_file(&path).unwrap(),
                        None => {}
                    }
                }
                self.restart(*next);
            }
            Operation::Restart => {
                self.lab.disk.set(Faults::default());
                let _ = self.lab.journal.close();
                self.restart(true);
            }
            Operation::Flip { file, place, bit } => {
                let segments = self.lab.journal.segments();
                if segments.is_empty() {
                    return;
                }
                let file = file % segments.len();
                let segment = &segments[file];
                let path = self.lab.path(segment.base);
                let mut bytes = std::fs::read(&path).unwrap();
                let place = place % bytes.len();
                bytes[place] ^= 1 << bit;
                std::fs::write(&path, bytes).unwrap();
                self.at_risk.push(segment.base..segment.end);
                self.pristine = false;
            }
        }
    }

    /// A new process; with or without cursors that know the next number.
    fn restart(&mut self, next: bool) {
        let end = self.lab.journal.end();
        self.readers = [None, None, None];
        self.lab.reopen(if next { end } else { 1 });
        let begin = self.lab.journal.begin();
        let new_end = self.lab.journal.end();
        assert!(new_end >= end || !next);
        // A batch that was refused may have come to be: nobody was given its numbers since, or what
        // was written under them later is gone for a reason.
        for seq in self.refused.iter().map(|(seq, _)| *seq) {
            let known = matches!(self.fates.get(&seq), Some(Fate::Sent(..)));
            if known && !self.is_at_risk(seq) || !self.lab.journal.has(seq) {
                continue;
            }
            let got = drain(&mut self.lab.journal.reader(seq), 1, |_| true).messages;
            let Some((_, text)) = got.into_iter().find(|(got, _)| *got == seq) else {
                continue;
            };
            let would_be =
                |fate: &Fate| matches!(fate, Fate::Sent(_, would_be) if *would_be == text);
            match self.refused.iter().find(|(_, fate)| would_be(fate)) {
                Some((_, came)) => {
                    self.fates.insert(seq, came.clone());
                    self.revived.insert(seq);
                }
                None => assert!(known, "{seq} {text} was never sent"),
            }
        }
        for seq in end..new_end {
            assert!(self.fates.contains_key(&seq), "{seq} was never sent");
        }
        self.fates.split_off(&new_end);
        // What stood at the beginning or the end may be gone for good, and for a reason.
        if !self.pristine {
            self.at_risk.push(1..begin);
        } else if self.lab.journal.segments().is_empty() {
            self.removed_below = new_end;
        }
    }

    fn is_at_risk(&self, seq: u64) -> bool {
        self.at_risk.iter().any(|range| range.contains(&seq))
    }

    fn read(&mut self, reader: usize, max: usize) {
        let journal = &self.lab.journal;
        let mut own = (self.readers[reader].take()).unwrap_or_else(|| journal.reader(1));
        let start = own.position();
        let mut want = |topic: &str| wants(reader, topic).then(|| topic.into());
        let read = own.read(&mut want, max, 1 << 20, 0).unwrap();
        let end = own.position();
        match read {
            Read::End => assert_eq!((start, end), (journal.end().max(start), start)),
            Read::Gap { range, why } => {
                assert_eq!(range, start..end);
                assert!(start < end && end <= journal.end());
                for seq in range {
                    let fate = self.fates.get(&seq);
                    let explained = match why {
                        Gap::Removed => seq < self.removed_below,
                        // The next segment's header never knew of a batch that was refused.
                        Gap::Outage if self.revived.contains(&seq) => seq < self.removed_below,
                        Gap::Outage => fate.is_none_or(|fate| *fate == Fate::Passed),
                        // The header that would say so may be damaged.
                        Gap::Corrupt => fate == Some(&Fate::Passed) && !self.pristine,
                    };
                    assert!(
                        explained || self.is_at_risk(seq),
                        "{seq} {fate:?} is a gap: {why:?}"
                    );
                }
            }
            Read::Messages(messages) => {
                assert!(messages.len() <= max && start < end && end <= journal.end());
                let mut messages = messages.iter();
                for seq in start..end {
                    match self.fates.get(&seq) {
                        Some(Fate::Sent(topic, payload)) if wants(reader, topic) => {
                            let message = messages.next().unwrap();
                            let text = std::str::from_utf8(message.payload()).unwrap();
                            let got = (message.seq(), message.topic(), text);
                            assert_eq!(got, (seq, *topic, payload.as_str()));
                        }
                        // A sealed segment without what it wants is passed over whole.
                        Some(Fate::Sent(..)) => {}
                        other => panic!("{seq} {other:?} was passed over"),
                    }
                }
                assert!(messages.next().is_none());
            }
        }
        self.readers[reader] = Some(own);
    }

    /// Everything, to the end.
    fn finish(&mut self) {
        for reader in 0..3 {
            self.readers[reader] = Some(self.lab.journal.reader(1));
            while self.readers[reader].as_ref().unwrap().position() < self.lab.journal.end() {
                self.read(reader, 5);
            }
        }
        let report = inspect(self.lab.dir.path(), true).unwrap();
        assert!(report.is_sound() || !self.pristine, "{report:?}");
    }
}

fn run(operations: &[Operation]) {
    let mut model = Model::new();
    for operation in operations {
        model.apply(operation);
    }
    model.finish();
    model.lab.disk.set(Faults::default());
    model.apply(&Operation::Restart);
    model.finish();
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn order_and_every_durable_message_are_kept_whatever_happens(
        operations in proptest::collection::vec(operation(), 1..60)
    ) {
        run(&operations);
    }
}

/// A write that failed after all its bytes were there, and could not be undone.
const HALF_FAILED: Faults = Faults {
    room: None,
    late: true,
    create: false,
    set_len: true,
    sync: false,
    sync_dir: false,
    remove: false,
};

#[test]
fn what_was_refused_may_return_when_the_power_fails_before_its_successor_is_synced() {
    use Operation::*;
    let power = PowerFailure {
        left: 72,
        next: false,
    };
    let (fail, mend) = (Fail(HALF_FAILED), Fail(Faults::default()));
    let send = || Send(vec![0]);
    run(&[send(), send(), fail, send(), mend, Sync, send(), power]);
}

#[test]
fn what_was_refused_and_has_returned_may_be_removed() {
    use Operation::*;
    let (fail, mend) = (Fail(HALF_FAILED), Fail(Faults::default()));
    let send = || Send(vec![0]);
    run(&[
        send(),
        fail,
        send(),
        mend,
        Pass(1),
        send(),
        Restart,
        RemoveOldest,
    ]);
}
