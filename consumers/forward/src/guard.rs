//! Notices messages that come back: two hubs that forward to each other would otherwise send the
//! same message round for ever.
//!
//! 1. *A message that was forwarded under a topic, and arrives with the same payload under that
//!    topic, the one it had before, or one that ends in either after a dot, has come back*, as long
//!    as it is remembered.
//! 2. *A message that is delivered again is none*: it has the number it had.
//! 3. *Memory is bounded*: by messages and by time, whichever is less; some 120 bytes a message.
//!
//! It can't tell a message that came back from one that its publisher sent twice: payloads may be
//! signed, so nothing is added to them by which it could. It forgets all when the process ends.

use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use weir_consumer::Message;

/// A topic with more parts than this is compared by its last ones.
const PARTS_MAX: usize = 64;

/// What was forwarded lately.
pub(crate) struct Guard {
    window: Duration,
    messages: usize,
    /// Seeded anew in each process: nobody can send what collides.
    hasher: rapidhash::quality::RandomState,
    /// Oldest first.
    forwarded: VecDeque<Forwarded>,
    /// The number of the message that was forwarded under this key.
    numbers: HashMap<u64, u64, rapidhash::fast::RandomState>,
}

struct Forwarded {
    /// Of the topic it had, and of the one it was given.
    keys: [u64; 2],
    number: u64,
    at: Instant,
}

/// The hash of a payload, which is what costs.
#[derive(Clone, Copy)]
pub(crate) struct Print(u64);

impl Guard {
    pub(crate) fn new(window: Duration, messages: usize) -> Self {
        Guard {
            window,
            messages,
            hasher: rapidhash::quality::RandomState::new(),
            forwarded: VecDeque::new(),
            numbers: HashMap::default(),
        }
    }

    pub(crate) fn print(&self, message: &Message) -> Print {
        Print(self.hasher.hash_one(&message.payload()[..]))
    }

    /// Whether the message was forwarded before.
    pub(crate) fn came_back(&mut self, message: &Message, print: Print, now: Instant) -> bool {
        while let Some(oldest) = self.forwarded.front()
            && now.saturating_duration_since(oldest.at) >= self.window
        {
            self.forget_oldest();
        }
        let ends = (message.topic().rmatch_indices('.'))
            .take(PARTS_MAX)
            .map(|(dot, _)| &message.topic()[dot + 1..]);
        std::iter::once(message.topic()).chain(ends).any(|topic| {
            let number = self.numbers.get(&self.key(topic, print));
            number.is_some_and(|number| *number != message.seq())
        })
    }

    /// Remembers that the message was forwarded under this topic.
    pub(crate) fn remember(&mut self, message: &Message, print: Print, topic: &str, now: Instant) {
        let keys = [message.topic(), topic].map(|topic| self.key(topic, print));
        if self.numbers.get(&keys[0]) == Some(&message.seq()) {
            return; // delivered again
        }
        if self.forwarded.len() >= self.messages {
            self.forget_oldest();
        }
        for key in keys {
            self.numbers.insert(key, message.seq());
        }
        self.forwarded.push_back(Forwarded {
            keys,
            number: message.seq(),
            at: now,
        });
    }

    fn key(&self, topic: &str, print: Print) -> u64 {
        self.hasher.hash_one((print.0, topic))
    }

    fn forget_oldest(&mut self) {
        let Some(oldest) = self.forwarded.pop_front() else {
            return;
        };
        for key in oldest.keys {
            // Unless a later message has it: the same payload under a topic that is rewritten alike.
            if self.numbers.get(&key) == Some(&oldest.number) {
                self.numbers.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn message(topic: &str, payload: &str, seq: u64) -> Message {
        let payload = payload.to_owned().into();
        Message::new(topic.into(), payload, SystemTime::now(), seq)
    }

    /// Forwards a message at this time under this topic; answers whether it had come back instead.
    fn forward(guard: &mut Guard, message: &Message, under: &str, now: Instant) -> bool {
        let print = guard.print(message);
        let back = guard.came_back(message, print, now);
        if !back {
            guard.remember(message, print, under, now);
        }
        back
    }

    #[test]
    fn a_message_that_was_forwarded_and_arrives_has_come_back() {
        let now = Instant::now();
        for returned in ["a.b", "x.b", "y.x.b", "far.away.a.b"] {
            let mut guard = Guard::new(WINDOW, 10);
            assert!(!forward(&mut guard, &message("a.b", "1", 1), "x.b", now));
            assert!(
                forward(&mut guard, &message(returned, "1", 2), "x.b", now),
                "{returned}"
            );
        }
    }

    #[test]
    fn another_payload_or_topic_is_another_message() {
        let now = Instant::now();
        let mut guard = Guard::new(WINDOW, 10);
        for (seq, (topic, payload)) in [("a.b", "1"), ("a.b", "2"), ("a.c", "1"), ("yx.b", "1")]
            .into_iter()
            .enumerate()
        {
            let message = message(topic, payload, seq as u64);
            assert!(!forward(&mut guard, &message, "x.b", now), "{topic}");
        }
    }

    #[test]
    fn a_message_that_is_delivered_again_is_none() {
        let now = Instant::now();
        let mut guard = Guard::new(WINDOW, 10);
        for _ in 0..3 {
            assert!(!forward(&mut guard, &message("a", "1", 7), "x.a", now));
        }
        assert_eq!(guard.forwarded.len(), 1);
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let begin = Instant::now();
        let mut guard = Guard::new(WINDOW, 10);
        assert!(!forward(&mut guard, &message("a", "1", 1), "a", begin));
        let late = begin + WINDOW - Duration::from_nanos(1);
        assert!(forward(&mut guard, &message("a", "1", 2), "a", late));
        assert!(!forward(
            &mut guard,
            &message("a", "1", 3),
            "a",
            begin + WINDOW
        ));
    }

    #[test]
    fn a_topic_of_nothing_but_dots_costs_no_more_than_others() {
        let now = Instant::now();
        let mut guard = Guard::new(WINDOW, 10);
        let dots = ".".repeat(100_000);
        assert!(!forward(&mut guard, &message(&dots, "1", 1), &dots, now));
        assert!(forward(&mut guard, &message(&dots, "1", 2), &dots, now));
    }

    proptest! {
        #[test]
        fn memory_is_bounded(
            sent in prop::collection::vec((0..4_u8, 0..4_u8, 0..3_u8, 0..40_u64), 0..60),
            messages in 1..8_usize,
        ) {
            let mut guard = Guard::new(WINDOW, messages);
            let mut now = Instant::now();
            for (seq, (topic, under, payload, pause)) in sent.into_iter().enumerate() {
                now += Duration::from_secs(pause);
                let message = message(&topic.to_string(), &payload.to_string(), seq as u64);
                forward(&mut guard, &message, &under.to_string(), now);
                prop_assert!(guard.forwarded.len() <= messages);
                prop_assert!(guard.numbers.len() <= 2 * guard.forwarded.len());
                for remembered in &guard.forwarded {
                    prop_assert!(now - remembered.at < WINDOW);
                }
            }
        }
    }
}
