//! What a worker did lately: its slowest deliveries, the topics that took the most of its time, and
//! its failures by cause. For `weir why`.
//!
//! Promises: only deliveries that were timed anyway are noted, so a cheap one costs nothing; memory
//! is bounded; what is older than two [`SPAN`]s is forgotten. The lock is taken by the worker and,
//! when somebody asks, by a reader who copies and goes.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use weir_consumer::Message;

/// What is remembered is of this span and the one before.
pub const SPAN: Duration = Duration::from_secs(300);
const SLOWEST: usize = 8;
const TOPICS: usize = 48;
const CAUSES: usize = 8;
/// Bytes of a cause that are kept.
const CAUSE_MAX: usize = 300;
/// So many messages of a batch stand for all of it.
const LOOKED_AT: usize = 8;

/// The notes of one worker.
#[derive(Default)]
pub struct Recent(Mutex<Notes>);

#[derive(Default)]
struct Notes {
    now: Span,
    before: Span,
}

#[derive(Default)]
struct Span {
    since_ns: u64,
    slowest: Vec<Slow>,
    topics: Vec<Cost>,
    failures: Vec<Failed>,
}

/// A delivery that took long.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slow {
    /// The sequence number of its first message.
    pub seq: u64,
    /// The topic of that.
    pub topic: Arc<str>,
    /// How many messages it had.
    pub messages: usize,
    /// How long it took.
    pub seconds: f64,
    /// When it ended, in nanoseconds since 1970.
    pub at_ns: u64,
}

/// What a topic took of the consumer's time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// The topic.
    pub topic: Arc<str>,
    /// Its messages, about.
    pub messages: f64,
    /// The time that they took, about.
    pub seconds: f64,
}

/// Failures with one cause.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// What the consumer said.
    pub cause: String,
    /// How often.
    pub times: u64,
    /// The last message that it was said of.
    pub seq: u64,
    /// Its topic.
    pub topic: Arc<str>,
    /// When that was, in nanoseconds since 1970.
    pub at_ns: u64,
}

/// What some workers did lately.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lately {
    /// The slowest deliveries, slowest first.
    pub slowest: Vec<Slow>,
    /// The topics that took the most time, most first.
    pub topics: Vec<Cost>,
    /// Failures by cause, latest first.
    pub failures: Vec<Failed>,
}

impl Recent {
    /// Notes a delivery that stands for `weight` of its like.
    pub fn delivered(&self, batch: &[Message], time: Duration, weight: u32, now_ns: u64) {
        let Some(first) = batch.first() else { return };
        let mut notes = self.0.lock();
        let span = notes.at(now_ns);
        let seconds = time.as_secs_f64();
        let least = match span.slowest.len() {
            SLOWEST => span
                .slowest
                .iter()
                .map(|slow| slow.seconds)
                .fold(f64::MAX, f64::min),
            _ => 0.0,
        };
        if seconds > least {
            let slow = Slow {
                seq: first.seq(),
                topic: Arc::from(first.topic()),
                messages: batch.len(),
                seconds,
                at_ns: now_ns,
            };
            span.slowest.push(slow);
            span.slowest.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
            span.slowest.truncate(SLOWEST);
        }
        let step = batch.len().div_ceil(LOOKED_AT);
        let looked_at = batch.len().div_ceil(step);
        let weight = f64::from(weight);
        for message in batch.iter().step_by(step) {
            let messages = weight * batch.len() as f64 / looked_at as f64;
            span.cost(
                message.topic(),
                messages,
                weight * seconds / looked_at as f64,
            );
        }
    }

    /// Notes a failure.
    pub fn failed(&self, message: &Message, cause: &str, now_ns: u64) {
        let mut end = cause.len().min(CAUSE_MAX);
        while !cause.is_char_boundary(end) {
            end -= 1;
        }
        let mut notes = self.0.lock();
        let failures = &mut notes.at(now_ns).failures;
        let known = failures
            .iter()
            .position(|failed| failed.cause == cause[..end]);
        let times = known.map_or(0, |known| failures.remove(known).times);
        failures.truncate(CAUSES - 1);
        let failed = Failed {
            cause: cause[..end].to_owned(),
            times: times + 1,
            seq: message.seq(),
            topic: Arc::from(message.topic()),
            at_ns: now_ns,
        };
        failures.insert(0, failed);
    }
}

impl Notes {
    fn at(&mut self, now_ns: u64) -> &mut Span {
        let age = now_ns.saturating_sub(self.now.since_ns);
        let span = SPAN.as_nanos() as u64;
        if age >= span {
            let now = Span {
                since_ns: now_ns,
                ..Span::default()
            };
            let before = std::mem::replace(&mut self.now, now);
            self.before = match age < 2 * span {
                true => before,
                false => Span::default(),
            };
        }
        &mut self.now
    }
}

impl Span {
    /// Adds to what a topic took. When there are too many, the least gives its place and its numbers
    /// to the new one (Metwally et al., "Space-Saving", 2005): what takes much is never missed.
    fn cost(&mut self, topic: &str, messages: f64, seconds: f64) {
        if let Some(known) = self.topics.iter_mut().find(|cost| &*cost.topic == topic) {
            known.messages += messages;
            known.seconds += seconds;
            return;
        }
        let new = Cost {
            topic: Arc::from(topic),
            messages,
            seconds,
        };
        if self.topics.len() < TOPICS {
            return self.topics.push(new);
        }
        let least = self
            .topics
            .iter_mut()
            .min_by(|a, b| a.seconds.total_cmp(&b.seconds));
        if let Some(least) = least {
            *least = Cost {
                messages: least.messages + messages,
                seconds: least.seconds + seconds,
                ..new
            };
        }
    }
}

impl Lately {
    /// What these workers noted of the two last spans.
    pub fn of<'r>(workers: impl Iterator<Item = &'r Recent>, now_ns: u64) -> Self {
        let mut all = Span::default();
        let mut slowest = Vec::new();
        let mut failures: Vec<Failed> = Vec::new();
        for worker in workers {
            let mut notes = worker.0.lock();
            notes.at(now_ns); // forgets what is old
            for span in [&notes.now, &notes.before] {
                slowest.extend(span.slowest.iter().cloned());
                for cost in &span.topics {
                    all.cost(&cost.topic, cost.messages, cost.seconds);
                }
                for failed in &span.failures {
                    match failures
                        .iter_mut()
                        .find(|known| known.cause == failed.cause)
                    {
                        Some(known) => {
                            known.times += failed.times;
                            if failed.at_ns > known.at_ns {
                                let times = known.times;
                                *known = Failed {
                                    times,
                                    ..failed.clone()
                                };
                            }
                        }
                        None => failures.push(failed.clone()),
                    }
                }
            }
        }
        slowest.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        slowest.truncate(SLOWEST);
        failures.sort_by_key(|failed| std::cmp::Reverse(failed.at_ns));
        failures.truncate(CAUSES);
        let mut topics = all.topics;
        topics.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        topics.truncate(SLOWEST);
        Lately {
            slowest,
            topics,
            failures,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(topic: &str, seq: u64) -> Message {
        Message::at_ns(topic.into(), "x".into(), 0, seq)
    }

    fn lately(recent: &Recent, now_ns: u64) -> Lately {
        Lately::of(std::iter::once(recent), now_ns)
    }

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_slowest_and_the_costliest_are_found_among_many() {
        let recent = Recent::default();
        for n in 1..=5000_u64 {
            let topic = format!("rare.{n}");
            let time = Duration::from_millis(n % 7);
            recent.delivered(&[message(&topic, n)], time, 1, SECOND);
            recent.delivered(&[message("often", 0)], Duration::from_millis(2), 1, SECOND);
        }
        let slow = Duration::from_secs(3);
        recent.delivered(&[message("slow", 7)], slow, 1, SECOND);
        let lately = lately(&recent, SECOND);
        assert_eq!((lately.slowest[0].seq, lately.slowest[0].seconds), (7, 3.0));
        assert_eq!(&*lately.topics[0].topic, "often");
        assert!(lately.topics.iter().any(|cost| &*cost.topic == "slow"));
        assert!(recent.0.lock().now.topics.len() <= TOPICS);
    }

    #[test]
    fn a_batch_is_shared_out_among_its_topics() {
        let recent = Recent::default();
        let batch: Vec<Message> = (0..100)
            .map(|n| message(if n < 50 { "a" } else { "b" }, n))
            .collect();
        recent.delivered(&batch, Duration::from_secs(1), 1, SECOND);
        let lately = lately(&recent, SECOND);
        let sum: f64 = lately.topics.iter().map(|cost| cost.messages).sum();
        assert!((sum - 100.0).abs() < 1e-9, "{sum}");
        let seconds: f64 = lately.topics.iter().map(|cost| cost.seconds).sum();
        assert!((seconds - 1.0).abs() < 1e-9, "{seconds}");
        assert_eq!(lately.topics.len(), 2);
        assert_eq!(lately.slowest.len(), 1);
    }

    #[test]
    fn failures_are_grouped_and_bounded_and_old_ones_forgotten() {
        let recent = Recent::default();
        let span = SPAN.as_nanos() as u64;
        for n in 0..100 {
            recent.failed(&message("t", n), &format!("cause {}", n % 20), span);
            recent.failed(&message("t", n), "refused", span + 1);
        }
        recent.failed(&message("t", 7), &"é".repeat(1000), 2 * span);
        let soon = lately(&recent, 2 * span);
        assert_eq!(soon.failures.len(), CAUSES);
        assert!(soon.failures[0].cause.len() <= CAUSE_MAX);
        let refused = soon
            .failures
            .iter()
            .find(|failed| failed.cause == "refused");
        assert_eq!(
            refused.map(|failed| (failed.times, failed.seq)),
            Some((100, 99))
        );
        assert_eq!(lately(&recent, 5 * span), Lately::default());
    }
}
