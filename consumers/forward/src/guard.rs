//! Notices messages that come back: two hubs that forward to each other would otherwise send the
//! same message round for ever.
//!
//! 1. *A message that was forwarded, and arrives with the same payload under the topic that it had,
//!    the one that it was given, or one of both with words put in at one place, has come back*, as
//!    long as it is remembered.
//! 2. *A message that is delivered again is none*: it has the number it had.
//! 3. *Memory is bounded*: by messages and by time, whichever is less; some 150 bytes a message.
//! 4. *Every circle of rules ends*, as long as it is remembered, however they put in and take away.
//!
//! 4 follows from 1. Rules change the beginning of a topic. In a circle that never ends its topics
//! either are the same again, or grow; then there are ends of the topic that no rule reaches any
//! more. Of the topics with which the circle gets to these, two have the same beginning, as there
//! are not many, and the later one is the earlier one with words between its beginning and its end.
//!
//! It can't tell a message that came back from one that its publisher sent twice: payloads may be
//! signed, so nothing is added to them by which it could. It forgets all when the process ends.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

use weir_consumer::Message;

/// Words that were put in are found among so many first ones, where rules put them.
const WORDS_MAX: usize = 32;

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
    /// How many messages with this payload are remembered.
    payloads: HashMap<Print, usize, rapidhash::fast::RandomState>,
}

struct Forwarded {
    print: Print,
    /// Of the topic it had, and of the one it was given.
    keys: [u64; 2],
    number: u64,
    at: Instant,
}

/// The hash of a payload, which is what costs.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Print(u64);

impl Guard {
    pub(crate) fn new(window: Duration, messages: usize) -> Self {
        Guard {
            window,
            messages,
            hasher: rapidhash::quality::RandomState::new(),
            forwarded: VecDeque::new(),
            numbers: HashMap::default(),
            payloads: HashMap::default(),
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
        if !self.payloads.contains_key(&print) {
            return false; // as nearly always, and quicker than to look at its topic
        }
        let forwarded = |topic: &str| {
            let number = self.numbers.get(&self.key(topic, print));
            number.is_some_and(|number| *number != message.seq())
        };
        let topic = message.topic();
        let words: Vec<usize> = std::iter::once(0)
            .chain(topic.match_indices('.').map(|(dot, _)| dot + 1))
            .take(WORDS_MAX)
            .collect();
        let mut without = String::with_capacity(topic.len());
        forwarded(topic)
            || words.iter().enumerate().any(|(number, from)| {
                words[number + 1..].iter().any(|to| {
                    without.clear();
                    without.push_str(&topic[..*from]);
                    without.push_str(&topic[*to..]);
                    forwarded(&without)
                })
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
        *self.payloads.entry(print).or_default() += 1;
        self.forwarded.push_back(Forwarded {
            print,
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
        if let Entry::Occupied(mut count) = self.payloads.entry(oldest.print) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;

    use super::*;
    use crate::{Rewrite, rewritten};

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
        for returned in [
            "a.b",
            "x.b",
            "y.x.b",
            "far.away.a.b",
            "a.far.away.b",
            "x.far.away.b",
        ] {
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
        for (seq, (topic, payload)) in [
            ("a.b", "1"),
            ("a.b", "2"),
            ("a.c", "1"),
            ("yx.b", "1"),
            ("c.b", "1"),
            ("b", "1"),
            ("a", "1"),
            ("a.b.d", "1"),
            ("a.yb", "1"),
        ]
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

    /// Rules as a configuration may have them.
    fn rules() -> impl Strategy<Value = Vec<Rewrite>> {
        let text = || prop::sample::select(vec!["", "a.", "b.", "a.a.", "a.b.", "b.a.", "a.b.a."]);
        let rule = (text(), text()).prop_map(|(prefix, with)| Rewrite {
            prefix: prefix.into(),
            with: with.into(),
        });
        prop::collection::vec(rule, 0..4)
    }

    proptest! {
        #[test]
        fn every_circle_of_rules_ends(
            hubs in prop::collection::vec(rules(), 1..4),
            topic in prop::sample::select(vec!["a", "a.x", "a.b.x", "b.a.a.x", "x.y"]),
        ) {
            let now = Instant::now();
            let mut guards: Vec<Guard> = hubs.iter().map(|_| Guard::new(WINDOW, 1000)).collect();
            let mut topic = topic.to_owned();
            let ended = (0..200).any(|round| {
                hubs.iter().zip(&mut guards).any(|(rules, guard)| {
                    let message = message(&topic, "1", round);
                    topic = rewritten(rules, message.topic()).into_owned();
                    forward(guard, &message, &topic, now)
                })
            });
            prop_assert!(ended, "{topic}");
        }

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
                prop_assert_eq!(guard.payloads.values().sum::<usize>(), guard.forwarded.len());
                prop_assert!(guard.payloads.values().all(|count| *count > 0));
                for remembered in &guard.forwarded {
                    prop_assert!(now - remembered.at < WINDOW);
                }
            }
        }
    }
}
