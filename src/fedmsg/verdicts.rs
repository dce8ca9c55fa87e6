//! What was found of the latest messages, for all workers of the hub.
//!
//! Several consumers get the same messages, each on a thread of its own; whoever comes first
//! validates, and the others find the verdict here. Nobody ever waits: who finds a message claimed
//! by another goes on with the next, and validates it too if it still is when nothing else is left.
//!
//! 1. a verdict that is found is one that was noted for this message under these certificates
//! 2. what is claimed and never noted costs the others their share and nothing else
//!
//! A message has a place by its number, and may lose it to a later one. All that is known of it is
//! in one word, so that there is nothing for memory orderings to put in order: who reads a word has
//! the whole of what was noted, or something about another message.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::stats::Reason;

/// So many messages: several times what the workers of a hub have in hand while all keep up.
const PLACES: usize = 4096;

/// The reasons for which validation refuses; a word says which by its place here.
const REASONS: [Reason; 7] = [
    Reason::Unsigned,
    Reason::Malformed,
    Reason::Untrusted,
    Reason::Expired,
    Reason::Revoked,
    Reason::BadSignature,
    Reason::NotAllowed,
];

// The last four bits of a word; 0 there is a place that nobody has had.
const CLAIMED: u64 = 1;
const VALID: u64 = 2;
const REFUSED: u64 = 3;
const CODE_BITS: u32 = 4;
const GENERATION_BITS: u32 = 8;

/// What there is to know of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing; it is the caller's to find out now.
    Nothing,
    /// Another worker is at it.
    Claimed,
    /// It is valid, or why it is not.
    Verdict(Result<(), Reason>),
}

pub(super) struct Verdicts(Box<[AtomicU64]>);

impl Default for Verdicts {
    fn default() -> Self {
        Verdicts((0..PLACES).map(|_| AtomicU64::new(0)).collect())
    }
}

/// Message and certificates, as the upper bits of a word. Of the generation the last bits: one
/// comes again after 256 reloads, when its verdicts have long lost their places or are 256 times
/// the shortest pause between two looks at the files old.
fn key(seq: u64, generation: u64) -> u64 {
    (seq << GENERATION_BITS | generation & ((1 << GENERATION_BITS) - 1)) << CODE_BITS
}

impl Verdicts {
    fn place(&self, seq: u64) -> &AtomicU64 {
        &self.0[seq as usize % PLACES]
    }

    /// What is known; claims the message if that is nothing.
    pub(super) fn claim(&self, seq: u64, generation: u64) -> Known {
        let key = key(seq, generation);
        let place = self.place(seq);
        let word = place.load(Relaxed);
        let known = Known::of(word ^ key);
        if known == Known::Nothing {
            // Another claim may come first: then both find out.
            let _ = place.compare_exchange(word, key | CLAIMED, Relaxed, Relaxed);
        }
        known
    }

    pub(super) fn note(&self, seq: u64, generation: u64, verdict: Result<(), Reason>) {
        let code = match verdict {
            Ok(()) => Some(VALID),
            Err(why) => (REASONS.iter().zip(REFUSED..))
                .find(|(reason, _)| **reason == why)
                .map(|(_, code)| code),
        };
        if let Some(code) = code {
            self.place(seq).store(key(seq, generation) | code, Relaxed);
        }
    }
}

impl Known {
    /// From a word whose upper bits are 0 if it is about this message.
    fn of(word: u64) -> Self {
        match word {
            CLAIMED => Known::Claimed,
            VALID => Known::Verdict(Ok(())),
            REFUSED.. => match REASONS.get((word - REFUSED) as usize) {
                Some(reason) => Known::Verdict(Err(*reason)),
                None => Known::Nothing,
            },
            _ => Known::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn verdict(seq: u64, generation: u64) -> Result<(), Reason> {
        match (seq ^ generation) as usize % (REASONS.len() + 1) {
            0 => Ok(()),
            n => Err(REASONS[n - 1]),
        }
    }

    proptest! {
        /// Against all that was ever noted: what is found is the last of it.
        #[test]
        fn what_is_found_is_what_was_noted(
            steps in prop::collection::vec((0u64..3, 0u64..4, 0u64..3, any::<bool>()), 1..200),
        ) {
            let verdicts = Verdicts::default();
            let mut noted = HashMap::new();
            for (lap, seq, generation, note) in steps {
                let seq = lap * PLACES as u64 + seq;
                if note {
                    let verdict = verdict(seq, generation);
                    verdicts.note(seq, generation, verdict);
                    noted.insert((seq, generation), verdict);
                    prop_assert_eq!(verdicts.claim(seq, generation), Known::Verdict(verdict));
                } else if let Known::Verdict(found) = verdicts.claim(seq, generation) {
                    prop_assert_eq!(Some(&found), noted.get(&(seq, generation)));
                }
            }
        }
    }

    #[test]
    fn a_claim_is_seen_and_stands_until_the_verdict() {
        let verdicts = Verdicts::default();
        assert_eq!(verdicts.claim(7, 0), Known::Nothing);
        assert_eq!(verdicts.claim(7, 0), Known::Claimed);
        assert_eq!(verdicts.claim(7, 1), Known::Nothing);
        verdicts.note(7, 1, Err(Reason::Revoked));
        assert_eq!(verdicts.claim(7, 1), Known::Verdict(Err(Reason::Revoked)));
        assert_eq!(verdicts.claim(7, 0), Known::Nothing);
        // A later message in the same place.
        assert_eq!(verdicts.claim(7 + PLACES as u64, 1), Known::Nothing);
        assert_eq!(verdicts.claim(7, 1), Known::Nothing);
    }

    #[test]
    fn every_reason_of_validation_has_a_code() {
        let verdicts = Verdicts::default();
        for (seq, reason) in (1..).zip(REASONS) {
            verdicts.note(seq, 3, Err(reason));
            assert_eq!(verdicts.claim(seq, 3), Known::Verdict(Err(reason)));
        }
        let validation = Reason::ALL.iter().filter(|reason| reason.of_validation());
        assert_eq!(validation.count(), REASONS.len());
    }

    #[test]
    fn threads_at_the_same_messages_find_only_what_is_so() {
        let verdicts = Verdicts::default();
        let found: usize = std::thread::scope(|scope| {
            let worker = |_| {
                scope.spawn(|| {
                    let mut found = 0;
                    for seq in 1..50_000 {
                        match verdicts.claim(seq, 1) {
                            Known::Verdict(told) => {
                                assert_eq!(told, verdict(seq, 1));
                                found += 1;
                            }
                            _ => verdicts.note(seq, 1, verdict(seq, 1)),
                        }
                    }
                    found
                })
            };
            let workers: Vec<_> = (0..4).map(worker).collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .sum()
        });
        // The last ones are still there, whoever noted them.
        assert!((49_000..50_000).all(|seq| matches!(verdicts.claim(seq, 1), Known::Verdict(_))));
        assert!(found <= 3 * 50_000);
    }
}
