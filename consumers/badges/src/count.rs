//! Counting: what messages add to what is known of recipients, and which awards that makes.
//!
//! Functions of what was loaded, so that both databases count in the same way:
//!
//! 1. A message counts once for a rule, however often it comes.
//! 2. An award is made when the count is reached, and spends what was counted: the next one begins
//!    at nothing. A rule with `once` makes no second one for a recipient.
//! 3. A period looks back from the newest that was counted for that recipient, by the times at which
//!    the hub took the messages in: how fast they are worked off changes nothing.
//! 4. What takes no award any further is not kept: what is older than the period, and anything about
//!    recipients who have a badge that is given once.

use std::collections::{BTreeMap, HashMap};

use crate::award::Award;
use crate::rules::{Match, Rule};

/// A message that matched a rule.
#[derive(Clone, Debug)]
pub(crate) struct Hit<'r> {
    pub(crate) found: Match<'r>,
    /// What the message is known by.
    pub(crate) message: String,
    /// When it was received.
    pub(crate) at_ns: i64,
}

/// A rule, and one whom it may give its badge.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair<'h> {
    pub(crate) rule: &'h Rule,
    pub(crate) recipient: &'h str,
}

/// How far a recipient has come with a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Standing {
    /// How many awards there were.
    pub(crate) awards: i64,
    /// Messages counted since, for a rule that only counts.
    pub(crate) count: i64,
    /// For any other: when what counts came last, by its value or its message.
    pub(crate) events: BTreeMap<String, i64>,
}

impl Rule {
    /// Whether a number is not enough, because what was counted can expire or come again.
    pub(crate) fn keeps_events(&self) -> bool {
        self.within.is_some() || self.distinct.is_some()
    }

    /// Whether it has to be remembered which messages were counted. Where one message is enough for
    /// the only award, the award itself tells.
    fn remembers(&self) -> bool {
        !(self.once && self.count == 1)
    }

    /// Counts one message; true when it was the last one that an award takes.
    fn reached(&self, standing: &mut Standing, hit: &Hit<'_>) -> bool {
        if !self.keeps_events() {
            standing.count += 1;
            return standing.count >= i64::from(self.count);
        }
        let value = hit.found.value.as_ref().unwrap_or(&hit.message);
        let last = (standing.events.entry(value.clone())).or_insert(hit.at_ns);
        *last = hit.at_ns.max(*last);
        if let Some(horizon) = self.horizon(standing.events.values().copied().max()) {
            standing.events.retain(|_, at_ns| *at_ns > horizon);
        }
        standing.events.len() >= self.count as usize
    }

    /// What came at this time or before is older than the period.
    pub(crate) fn horizon(&self, newest_ns: Option<i64>) -> Option<i64> {
        let within = i64::try_from(self.within?.as_nanos()).unwrap_or(i64::MAX);
        Some(newest_ns?.saturating_sub(within))
    }
}

/// What has to be loaded to count these.
pub(crate) struct Wanted<'h> {
    /// Rule and message of each hit.
    pub(crate) keys: Vec<(&'h str, &'h str)>,
    /// Each once.
    pub(crate) pairs: Vec<Pair<'h>>,
    /// Where in `pairs`, by rule and recipient.
    numbers: HashMap<(&'h str, &'h str), usize>,
}

/// What was loaded: in the order of what was wanted.
pub(crate) struct Known {
    /// Whether it was counted before.
    pub(crate) counted: Vec<bool>,
    pub(crate) standings: Vec<Standing>,
}

/// What has to be written.
#[derive(Default)]
pub(crate) struct Changes<'h> {
    /// Rule, message, and when it was received.
    pub(crate) counted: Vec<(&'h str, &'h str, i64)>,
    pub(crate) counts: Vec<(Pair<'h>, i64)>,
    pub(crate) events_gone: Vec<(Pair<'h>, String)>,
    pub(crate) events: Vec<(Pair<'h>, String, i64)>,
    pub(crate) awards: Vec<Award>,
}

impl<'h> Wanted<'h> {
    pub(crate) fn of(hits: &'h [Hit<'_>]) -> Self {
        let mut wanted = Wanted {
            keys: Vec::with_capacity(hits.len()),
            pairs: Vec::new(),
            numbers: HashMap::new(),
        };
        for hit in hits {
            let rule = hit.found.rule;
            wanted.keys.push((&rule.id, &hit.message));
            for recipient in &hit.found.recipients {
                wanted
                    .numbers
                    .entry((&rule.id, recipient))
                    .or_insert_with(|| {
                        wanted.pairs.push(Pair { rule, recipient });
                        wanted.pairs.len() - 1
                    });
            }
        }
        wanted
    }

    /// Counts the hits in their order.
    pub(crate) fn count(
        &self,
        hits: &'h [Hit<'_>],
        known: Known,
        award_topic: &str,
    ) -> Changes<'h> {
        let mut changes = Changes::default();
        let mut counted: HashMap<(&str, &str), bool> =
            (self.keys.iter().copied()).zip(known.counted).collect();
        let before = known.standings;
        let mut standings = before.clone();
        for hit in hits {
            let rule = hit.found.rule;
            let counted = counted.entry((&rule.id, &hit.message)).or_default();
            if *counted {
                continue;
            }
            for recipient in &hit.found.recipients {
                let Some(number) = self.numbers.get(&(rule.id.as_str(), recipient.as_str())) else {
                    continue; // `of` put them all in
                };
                let standing = &mut standings[*number];
                if rule.once && standing.awards > 0 {
                    continue;
                }
                *counted = rule.remembers();
                if rule.reached(standing, hit) {
                    *standing = Standing {
                        awards: standing.awards + 1,
                        ..Standing::default()
                    };
                    let (number, at_ns, message) = (standing.awards, hit.at_ns, &hit.message);
                    let award = Award::new(rule, recipient, number, at_ns, message, award_topic);
                    changes.awards.push(award);
                }
            }
            if *counted {
                changes.counted.push((&rule.id, &hit.message, hit.at_ns));
            }
        }
        for ((pair, before), after) in self.pairs.iter().zip(before).zip(standings) {
            if after.count != before.count {
                changes.counts.push((*pair, after.count));
            }
            for value in before.events.keys() {
                if !after.events.contains_key(value) {
                    changes.events_gone.push((*pair, value.clone()));
                }
            }
            for (value, at_ns) in after.events {
                if before.events.get(&value) != Some(&at_ns) {
                    changes.events.push((*pair, value, at_ns));
                }
            }
        }
        changes
    }
}
