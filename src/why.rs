//! What holds a consumer back, in one sentence, and what would help: `weir why`.
//!
//! A pure function of what was measured: where its workers' time went, what is with it now, what it
//! did lately. It names the one thing that takes the most, not all there is.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::forecast::{Drain, Health, Rates};
use crate::recent::Lately;
use crate::stats::State;

/// What is known of a consumer that may hold it back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// The instance's name.
    pub consumer: String,
    /// Its kind.
    pub kind: String,
    /// What its busiest worker is doing.
    pub state: State,
    /// How it does.
    pub health: Health,
    /// Messages not yet settled.
    pub queue_messages: u64,
    /// The age of the oldest of them.
    pub lag_seconds: f64,
    /// When they will be settled.
    pub drain: Drain,
    /// Messages a second in and out.
    pub rates: Rates,
    /// Messages a second that it settles when it never waits for messages.
    pub service_per_second: Option<f64>,
    /// Its threads.
    pub workers: usize,
    /// What its configuration holds it to.
    pub limits: Limits,
    /// `time` is that of so many seconds.
    pub over_seconds: f64,
    /// The part of its workers' time that they were in each state, most first.
    pub time: Vec<Share>,
    /// What it refused or was set aside of what was settled in that time.
    #[serde(default)]
    pub given_up: GivenUp,
    /// What its workers have in hand.
    pub in_hand: Vec<InHand>,
    /// What they did in the last minutes.
    #[serde(flatten)]
    pub lately: Lately,
    /// What holds it back.
    pub reason: String,
    /// What would help; empty if nothing needs to.
    pub advice: String,
}

/// What a consumer's configuration holds it to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Its rate, in messages a second.
    pub rate_per_second: Option<f64>,
    /// Its lane.
    pub lane: Option<String>,
    /// Whether order is kept by key.
    pub keyed: bool,
    /// How often a message is tried; 0: until it is taken.
    pub attempts: u32,
}

/// How many messages were not consumed, of those settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GivenUp {
    /// Refused by the consumer, or set aside.
    pub messages: u64,
    /// Of so many.
    pub of: u64,
}

/// A part of the workers' time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// What they did.
    pub state: State,
    /// The part, from 0 to 1.
    pub ratio: f64,
}

/// What a worker has in hand.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InHand {
    /// The worker, from 0.
    pub worker: usize,
    /// What it is doing.
    pub state: State,
    /// The sequence number of the message, or of the first of a batch.
    pub seq: u64,
    /// Its topic, if the journal has it.
    pub topic: Option<String>,
    /// How long it has been in hand, retries included; looked at once a second.
    pub for_seconds: f64,
}

/// A delivery that takes this much longer than usual hangs.
const HANGS: f64 = 20.0;
/// And one that takes no less than this.
const HANGS_AFTER: Duration = Duration::from_secs(10);
/// The part of its time from which on something holds a consumer back.
const MUCH: f64 = 0.25;

impl Why {
    /// The part of the time in this state.
    fn part(&self, state: State) -> f64 {
        let share = self.time.iter().find(|share| share.state == state);
        share.map_or(0.0, |share| share.ratio)
    }

    /// The worker that has had its message for the longest, if that is unusual.
    fn hanging(&self) -> Option<&InHand> {
        let usual = self
            .service_per_second
            .map(|service| self.workers as f64 / service);
        let limit = usual
            .map_or(0.0, |usual| usual * HANGS)
            .max(HANGS_AFTER.as_secs_f64());
        let working = self
            .in_hand
            .iter()
            .filter(|in_hand| in_hand.state == State::Working);
        working
            .max_by(|a, b| a.for_seconds.total_cmp(&b.for_seconds))
            .filter(|in_hand| in_hand.for_seconds >= limit)
    }

    /// Says what holds it back, and what would help.
    pub fn explain(&mut self) {
        (self.reason, self.advice) = self.explanation();
    }

    fn explanation(&self) -> (String, String) {
        let said = |reason: String, advice: &str| (reason, advice.to_owned());
        let name = &self.consumer;
        let last = self.lately.failures.first();
        let because = last.map_or(String::new(), |failed| format!(": {}", failed.cause));
        if self.state == State::Halted || self.health == Health::Halted {
            return said(
                format!("It has halted and gets nothing any more{because}."),
                "Mend the cause and start the hub again; what waits is kept in the journal.",
            );
        }
        if self.state == State::Paused || self.health == Health::Paused {
            let advice =
                format!("`weir resume {name}` lets it go on; audit.log says who paused it.");
            return said("An operator has paused it.".into(), &advice);
        }
        if let Some(in_hand) = self.hanging() {
            let topic = in_hand
                .topic
                .as_deref()
                .map_or(String::new(), |t| format!(" ({t})"));
            return said(
                format!(
                    "Message {}{topic} has been with it for {}.",
                    in_hand.seq,
                    time(in_hand.for_seconds)
                ),
                "It waits for something: see what that is, and give the call a time-out. A restart \
                 of the hub delivers the message again.",
            );
        }
        let GivenUp { messages, of } = self.given_up;
        if messages > 2 && messages * 2 > of {
            return said(
                format!("It gives up {messages} of {of} messages{because}."),
                "Mend the cause; then `weir dead requeue` delivers those again that were set aside.",
            );
        }
        let idle = self.part(State::Idle);
        let held = [
            State::BackingOff,
            State::Rebuilding,
            State::RateLimited,
            State::LaneWait,
        ];
        let most = held
            .into_iter()
            .max_by(|a, b| self.part(*a).total_cmp(&self.part(*b)));
        let most = most
            .filter(|state| self.part(*state) >= MUCH)
            .unwrap_or(State::Working);
        let percent = |state| format!("{:.0} % of its time", self.part(state) * 100.0);
        match most {
            State::BackingOff => {
                let advice = match self.limits.attempts {
                    0 => {
                        "It tries until it is taken (retry.attempts = 0): mend the cause, or set \
                          attempts."
                    }
                    _ => {
                        "Mend the cause; a message that can't be consumed at all is better \
                          refused at once (verdict dead-letter) than tried again."
                    }
                };
                said(
                    format!("It waits to try again for {}{because}.", percent(most)),
                    advice,
                )
            }
            State::Rebuilding => said(
                format!(
                    "It panics, and is built anew for {}{because}.",
                    percent(most)
                ),
                "That is a mistake in the consumer: the log has the panic's text.",
            ),
            State::RateLimited => {
                let rate = self.limits.rate_per_second.map_or(String::new(), |rate| {
                    format!(
                        " ({} come, {} are let through)",
                        per(self.rates.received),
                        per(rate)
                    )
                });
                said(
                    format!("Its rate limit holds it for {}{rate}.", percent(most)),
                    "A higher `rate`, if whoever receives it bears that; or fewer `topics`.",
                )
            }
            State::LaneWait => {
                let lane = self.limits.lane.as_deref().unwrap_or("its lane");
                said(
                    format!(
                        "Others of the lane {lane} have it wait for {}.",
                        percent(most)
                    ),
                    "Make their work in the lane shorter, or give this consumer a lane of its own.",
                )
            }
            _ if idle >= 0.5 || self.queue_messages == 0 => said(
                format!(
                    "Nothing: it waits for messages for {}.",
                    percent(State::Idle)
                ),
                "",
            ),
            _ => {
                let each = self.service_per_second.map_or(String::new(), |service| {
                    let each = time(self.workers as f64 / service);
                    format!(", {each} a message, {} at most", per(service))
                });
                let topics = self.lately.topics.iter();
                let all: f64 = topics.clone().map(|cost| cost.seconds).sum();
                let costly = self
                    .lately
                    .topics
                    .first()
                    .filter(|cost| cost.seconds >= 0.5 * all && self.lately.topics.len() > 1);
                let costly = costly.map_or(String::new(), |cost| {
                    format!("; {} takes most of it", cost.topic)
                });
                let comes = per(self.rates.received);
                let workers = match (self.workers, self.limits.keyed) {
                    (1, _) => "more `workers`, with a `key` if order matters",
                    (_, true) => "more `workers`, unless one key has most of the messages",
                    (_, false) => "more `workers`",
                };
                (
                    format!("It works all the time{each}, and {comes} come{costly}."),
                    format!(
                        "Make a delivery cheaper (batches, fewer round trips), or give it {workers}."
                    ),
                )
            }
        }
    }
}

/// A rate for people.
fn per(rate: f64) -> String {
    match rate {
        rate if rate >= 10.0 => format!("{rate:.0}/s"),
        rate if rate >= 1.0 => format!("{rate:.1}/s"),
        rate => format!("{:.1}/min", rate * 60.0),
    }
}

/// A time for people.
fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 7200.0 => format!("{:.1} h", s / 3600.0),
        s if s >= 120.0 => format!("{:.0} min", s / 60.0),
        s if s >= 1.0 => format!("{s:.1} s"),
        s if s >= 1e-3 => format!("{:.1} ms", s * 1e3),
        s => format!("{:.0} us", s * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recent::{Cost, Failed};

    fn why(time: &[(State, f64)]) -> Why {
        let share = |(state, ratio): &(State, f64)| Share {
            state: *state,
            ratio: *ratio,
        };
        Why {
            consumer: "irc".into(),
            kind: "log".into(),
            state: time.first().map_or(State::Idle, |(state, _)| *state),
            health: Health::Behind,
            queue_messages: 100,
            lag_seconds: 60.0,
            drain: Drain::Growing { per_second: 3.0 },
            rates: Rates {
                received: 5.0,
                settled: 2.0,
            },
            service_per_second: Some(2.0),
            workers: 1,
            limits: Limits {
                rate_per_second: Some(2.0),
                lane: Some("database".into()),
                keyed: false,
                attempts: 5,
            },
            over_seconds: 300.0,
            time: time.iter().map(share).collect(),
            given_up: GivenUp::default(),
            in_hand: Vec::new(),
            lately: Lately::default(),
            reason: String::new(),
            advice: String::new(),
        }
    }

    fn explained(mut why: Why) -> String {
        why.explain();
        format!("{} {}", why.reason, why.advice)
    }

    #[track_caller]
    fn says(why: Why, words: &[&str]) {
        let text = explained(why);
        for word in words {
            assert!(text.contains(word), "no {word:?} in: {text}");
        }
    }

    #[test]
    fn the_sentence_names_what_takes_the_most() {
        use State::*;
        says(
            why(&[(RateLimited, 0.9), (Working, 0.1)]),
            &["rate limit", "90 %", "5.0/s", "2.0/s"],
        );
        says(
            why(&[(LaneWait, 0.6), (Working, 0.4)]),
            &["lane database", "60 %"],
        );
        says(
            why(&[(BackingOff, 0.5), (Working, 0.4)]),
            &["try again", "50 %"],
        );
        says(why(&[(Rebuilding, 0.5)]), &["panics"]);
        says(
            why(&[(Working, 0.95)]),
            &["works all the time", "500.0 ms", "`workers`"],
        );
        says(why(&[(Idle, 0.95)]), &["Nothing"]);
        says(why(&[(Paused, 1.0)]), &["paused", "weir resume irc"]);
        says(why(&[(Halted, 1.0)]), &["halted"]);
    }

    #[test]
    fn a_failure_is_quoted_and_a_costly_topic_named() {
        let mut failing = why(&[(State::BackingOff, 0.8)]);
        failing.lately.failures.push(Failed {
            cause: "connection refused".into(),
            times: 7,
            seq: 3,
            topic: "a".into(),
            at_ns: 1,
        });
        says(failing.clone(), &["connection refused", "try again"]);
        failing.given_up = GivenUp {
            messages: 38,
            of: 40,
        };
        says(
            failing,
            &[
                "gives up 38 of 40",
                "connection refused",
                "weir dead requeue",
            ],
        );
        let mut busy = why(&[(State::Working, 1.0)]);
        for (topic, seconds) in [("org.db.slow", 9.0), ("org.a", 1.0)] {
            busy.lately.topics.push(Cost {
                topic: topic.into(),
                messages: 10.0,
                seconds,
            });
        }
        says(busy, &["org.db.slow"]);
    }

    #[test]
    fn a_message_that_hangs_is_named() {
        let mut hanging = why(&[(State::Working, 1.0)]);
        hanging.in_hand.push(InHand {
            worker: 0,
            state: State::Working,
            seq: 42,
            topic: Some("org.example.x".into()),
            for_seconds: 600.0,
        });
        says(
            hanging.clone(),
            &["42", "org.example.x", "10 min", "time-out"],
        );
        // Where a message usually takes a minute, ten seconds are nothing.
        hanging.service_per_second = Some(1.0 / 60.0);
        hanging.in_hand[0].for_seconds = 11.0;
        says(hanging, &["works all the time"]);
    }
}
