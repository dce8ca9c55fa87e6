//! What happens when more comes for a channel than people can read.
//!
//! 1. In each window of time a channel gets so many lines at most and, when there was more, one
//!    line that tells how much and of what.
//! 2. Each message that was held is counted in exactly one such line.
//! 3. However many topics there are, memory is bounded.
//!
//! A window begins with the first line after the one before it was over. It takes the time as an
//! argument, so that tests have a clock of their own.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::time::{Duration, Instant};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use weir_consumer::settings::duration;

/// Different topics that are counted each; the others are counted together.
const TOPICS_MAX: usize = 200;
/// Topics that a summary names.
const NAMED_MAX: usize = 5;

/// Nobody reads what was summarised later than that.
const WITHIN_MAX: Duration = Duration::from_secs(24 * 3600);

fn within<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let time = duration(from)?;
    match !time.is_zero() && time <= WITHIN_MAX {
        true => Ok(time),
        false => Err(D::Error::custom(format!(
            "expected more than no time and at most {}, found {}",
            humantime::format_duration(WITHIN_MAX),
            humantime::format_duration(time)
        ))),
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    /// Lines that a channel gets within that time.
    pub(crate) lines: NonZeroUsize,
    #[serde(deserialize_with = "within")]
    pub(crate) within: Duration,
    /// What is done with more.
    pub(crate) policy: Policy,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Policy {
    /// They are counted, and one line tells it.
    Summarise,
    /// They are dropped.
    Drop,
    /// They are posted all the same.
    Post,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            lines: const { NonZeroUsize::new(20).expect("20 is not 0") },
            within: Duration::from_secs(60),
            policy: Policy::Summarise,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Flood {
    settings: Settings,
    /// By channel.
    windows: HashMap<String, Window>,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    lines: usize,
    held: BTreeMap<String, u64>,
    /// Held, of topics beyond those that are counted each.
    others: u64,
}

/// What is to be done with a message for a channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Course {
    Post,
    Hold,
    Drop,
}

impl Flood {
    pub(crate) fn new(settings: Settings) -> Self {
        Flood {
            settings,
            windows: HashMap::new(),
        }
    }

    /// What is to be done with a message that has come for this channel.
    pub(crate) fn course(&self, channel: &str, now: Instant) -> Course {
        let full = (self.windows.get(channel)).is_some_and(|window| {
            let over = now.duration_since(window.began) >= self.settings.within;
            // With something held it is over only when that was told.
            (!over || window.held() > 0) && window.lines >= self.settings.lines.get()
        });
        match (full, self.settings.policy) {
            (false, _) | (true, Policy::Post) => Course::Post,
            (true, Policy::Summarise) => Course::Hold,
            (true, Policy::Drop) => Course::Drop,
        }
    }

    /// So many lines were posted there.
    pub(crate) fn posted(&mut self, channel: &str, lines: usize, now: Instant) {
        let within = self.settings.within;
        let window = self.windows.entry(channel.to_owned()).or_insert(Window {
            began: now,
            lines: 0,
            held: BTreeMap::new(),
            others: 0,
        });
        if window.held() == 0 && now.duration_since(window.began) >= within {
            (window.began, window.lines) = (now, 0);
        }
        window.lines += lines;
    }

    /// A message of this topic is not posted there but counted.
    pub(crate) fn hold(&mut self, channel: &str, topic: &str) {
        // There is a window: without one, nothing is held.
        if let Some(window) = self.windows.get_mut(channel) {
            if let Some(count) = window.held.get_mut(topic) {
                *count += 1;
            } else if window.held.len() < TOPICS_MAX {
                window.held.insert(topic.to_owned(), 1);
            } else {
                window.others += 1;
            }
        }
    }

    /// The channels with something to tell: those whose window is over, or all.
    pub(crate) fn due(&self, now: Option<Instant>) -> Vec<String> {
        let over = |window: &Window| {
            now.is_none_or(|now| now.duration_since(window.began) >= self.settings.within)
        };
        let mut due: Vec<String> = (self.windows.iter())
            .filter(|(_, window)| window.held() > 0 && over(window))
            .map(|(channel, _)| channel.clone())
            .collect();
        due.sort();
        due
    }

    /// What is to be told of a channel, and how many messages that are.
    pub(crate) fn summary(&self, channel: &str) -> Option<(String, u64)> {
        let window = self.windows.get(channel)?;
        let held = window.held();
        let mut topics: Vec<(&String, &u64)> = window.held.iter().collect();
        topics.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let mut parts: Vec<String> = (topics.iter().take(NAMED_MAX))
            .map(|(topic, count)| format!("{count} {topic}"))
            .collect();
        let named: u64 = topics
            .iter()
            .take(NAMED_MAX)
            .map(|(_, count)| **count)
            .sum();
        if held > named {
            parts.push(format!("{} of other topics", held - named));
        }
        let within = humantime::format_duration(self.settings.within);
        let text = format!("and {held} more in the last {within}: {}", parts.join(", "));
        Some((text, held))
    }

    /// It was told; the channel begins anew.
    pub(crate) fn told(&mut self, channel: &str) {
        self.windows.remove(channel);
    }
}

impl Window {
    fn held(&self) -> u64 {
        self.held.values().sum::<u64>() + self.others
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn flood(lines: usize, policy: Policy) -> Flood {
        Flood::new(Settings {
            lines: NonZeroUsize::new(lines).unwrap(),
            policy,
            ..Settings::default()
        })
    }

    #[test]
    fn a_summary_names_what_there_was_most_of() {
        let now = Instant::now();
        let mut flood = flood(1, Policy::Summarise);
        flood.posted("#a", 1, now);
        assert_eq!(flood.course("#a", now), Course::Hold);
        assert_eq!(flood.course("#b", now), Course::Post);
        for (topic, times) in [
            ("t.a", 1),
            ("t.b", 20),
            ("t.c", 3),
            ("t.d", 4),
            ("t.e", 5),
            ("t.f", 6),
        ] {
            for _ in 0..times {
                flood.hold("#a", topic);
            }
        }
        assert_eq!(flood.due(Some(now)), Vec::<String>::new());
        assert_eq!(flood.due(None), ["#a"]);
        let later = now + Duration::from_secs(60);
        assert_eq!(flood.due(Some(later)), ["#a"]);
        let text =
            "and 39 more in the last 1m: 20 t.b, 6 t.f, 5 t.e, 4 t.d, 3 t.c, 1 of other topics";
        assert_eq!(flood.summary("#a"), Some((text.to_owned(), 39)));
        // Until it is told, all that comes is a part of it.
        assert_eq!(flood.course("#a", later), Course::Hold);
        flood.told("#a");
        assert_eq!(flood.course("#a", later), Course::Post);
    }

    #[test]
    fn topics_without_an_end_take_no_memory_without_an_end() {
        let now = Instant::now();
        let mut flood = flood(1, Policy::Summarise);
        flood.posted("#a", 1, now);
        for number in 0..10_000 {
            flood.hold("#a", &format!("t.{number}"));
        }
        assert_eq!(flood.windows["#a"].held.len(), TOPICS_MAX);
        assert_eq!(flood.summary("#a").unwrap().1, 10_000);
    }

    #[test]
    fn other_policies_hold_nothing() {
        let now = Instant::now();
        for (policy, course) in [(Policy::Drop, Course::Drop), (Policy::Post, Course::Post)] {
            let mut flood = flood(2, policy);
            flood.posted("#a", 2, now);
            assert_eq!(flood.course("#a", now), course);
            assert_eq!(flood.due(None), Vec::<String>::new());
        }
    }

    proptest! {
        /// Invariants 1 and 2, beside a list of all that happened.
        #[test]
        fn all_is_posted_or_told_once(
            steps in prop::collection::vec((0_u64..30, 0_usize..2, 1_usize..3), 1..300),
        ) {
            const LINES: usize = 5;
            let channels = ["#a", "#b"];
            let mut flood = flood(LINES, Policy::Summarise);
            let mut now = Instant::now();
            let (mut posted, mut held, mut told) = (0, 0, 0);
            let mut lines: Vec<(Instant, usize, usize)> = Vec::new();
            for (pause, channel, taken) in &steps {
                now += Duration::from_secs(*pause);
                for due in flood.due(Some(now)) {
                    told += flood.summary(&due).unwrap().1;
                    flood.told(&due);
                }
                match flood.course(channels[*channel], now) {
                    Course::Post => {
                        flood.posted(channels[*channel], *taken, now);
                        lines.push((now, *channel, *taken));
                        posted += 1;
                    }
                    Course::Hold => {
                        flood.hold(channels[*channel], "t");
                        held += 1;
                    }
                    Course::Drop => prop_assert!(false, "nothing is dropped"),
                }
            }
            for due in flood.due(None) {
                told += flood.summary(&due).unwrap().1;
            }
            prop_assert_eq!(held, told);
            prop_assert_eq!(posted + held, steps.len() as u64);
            // Any stretch as long as a window touches two of them at most, each with the last
            // message whole.
            for (from, channel, _) in &lines {
                let within: usize = (lines.iter())
                    .filter(|(at, other, _)| other == channel && at >= from
                        && at.duration_since(*from) < Duration::from_secs(60))
                    .map(|(_, _, taken)| taken)
                    .sum();
                prop_assert!(within <= 2 * (LINES + 1), "{within}");
            }
        }
    }
}
