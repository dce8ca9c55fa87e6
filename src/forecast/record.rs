//! What a consumer's earlier forecasts were worth.
//!
//! Promises: at most [`PENDING_MAX`] forecasts are waited for and as many outcomes remembered. A
//! forecast counts once, when the queue was empty at last or its range has passed.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Forecasts that wait for their outcome, and outcomes that are remembered.
const PENDING_MAX: usize = 64;
/// A forecast is put on record so often, in seconds; less often when many are pending.
const EVERY: f64 = 10.0;

/// How right earlier forecasts were.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Forecasts whose outcome is known, since the start.
    pub forecasts: u64,
    /// The median of what the likely time was off by, in parts of the true time, of the last 64; of
    /// those whose range passed in vain, at that moment.
    pub error_ratio: f64,
    /// How many of the last 64 ranges contained the true time, in parts of all.
    pub contained_ratio: f64,
}

#[derive(Clone, Copy, Debug)]
struct Pending {
    made: f64,
    low: f64,
    high: Option<f64>,
    likely: f64,
}

#[derive(Clone, Copy, Debug)]
struct Outcome {
    error: f64,
    contained: bool,
}

/// Forecasts that wait for their outcome, and the outcomes.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pending: Vec<Pending>,
    every: f64,
    outcomes: VecDeque<Outcome>,
    resolved: u64,
    accuracy: Option<Accuracy>,
}

impl Record {
    pub(super) fn new() -> Self {
        Record {
            pending: Vec::new(),
            every: EVERY,
            outcomes: VecDeque::new(),
            resolved: 0,
            accuracy: None,
        }
    }

    pub(super) fn accuracy(&self) -> Option<Accuracy> {
        self.accuracy
    }

    #[cfg(test)]
    pub(super) fn pending(&self) -> &[impl Sized] {
        &self.pending
    }

    /// What it takes on the heap.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.pending.capacity() * size_of::<Pending>()
            + self.outcomes.capacity() * size_of::<Outcome>()
    }

    /// Puts a forecast on record, unless one was lately.
    pub(super) fn made(&mut self, now: f64, low: f64, high: Option<f64>, likely: f64) {
        if (self.pending.last()).is_some_and(|last| now - last.made < self.every) {
            return;
        }
        if self.pending.len() == PENDING_MAX {
            // Every other one goes, so that those left are spread over all of the time.
            let mut odd = false;
            self.pending.retain(|_| {
                odd = !odd;
                odd
            });
            self.every *= 2.0;
        }
        self.pending.push(Pending {
            made: now,
            low,
            high,
            likely,
        });
    }

    /// The queue is empty: that is what all of them waited for.
    pub(super) fn emptied(&mut self, now: f64) {
        if self.pending.is_empty() {
            return;
        }
        for pending in std::mem::take(&mut self.pending) {
            let actual = now - pending.made;
            let contained = actual >= pending.low && pending.high.is_none_or(|high| actual <= high);
            self.resolve(pending, actual, contained);
        }
        self.every = EVERY;
        self.sum_up();
    }

    /// It is not: those whose range has passed were wrong.
    pub(super) fn not_emptied(&mut self, now: f64) {
        let passed = |pending: &Pending| pending.high.is_some_and(|high| now - pending.made > high);
        if !self.pending.iter().any(passed) {
            return;
        }
        let missed: Vec<Pending> = self.pending.extract_if(.., |p| passed(p)).collect();
        for pending in missed {
            self.resolve(pending, now - pending.made, false);
        }
        self.sum_up();
    }

    /// Somebody interfered: what was forecast can't happen any more.
    pub(super) fn discard(&mut self) {
        self.pending.clear();
        self.every = EVERY;
    }

    fn resolve(&mut self, pending: Pending, actual: f64, contained: bool) {
        if self.outcomes.len() == PENDING_MAX {
            self.outcomes.pop_front();
        }
        self.resolved += 1;
        self.outcomes.push_back(Outcome {
            // A second is as exact as a sample can tell.
            error: (pending.likely - actual).abs() / actual.max(1.0),
            contained,
        });
    }

    fn sum_up(&mut self) {
        let mut errors: Vec<f64> = self.outcomes.iter().map(|outcome| outcome.error).collect();
        errors.sort_by(f64::total_cmp);
        let contained = self.outcomes.iter().filter(|outcome| outcome.contained);
        self.accuracy = errors.get(errors.len() / 2).map(|median| Accuracy {
            forecasts: self.resolved,
            error_ratio: *median,
            contained_ratio: contained.count() as f64 / errors.len() as f64,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forecast_counts_once_when_the_queue_is_empty_or_its_range_has_passed() {
        let mut record = Record::new();
        record.made(0.0, 80.0, Some(120.0), 100.0);
        record.made(5.0, 1.0, Some(2.0), 1.0);
        record.made(10.0, 10.0, Some(20.0), 15.0);
        assert_eq!(record.accuracy(), None);
        record.not_emptied(40.0);
        let accuracy = record.accuracy().unwrap();
        assert_eq!((accuracy.forecasts, accuracy.contained_ratio), (1, 0.0));
        assert_eq!(accuracy.error_ratio, 0.5);
        record.emptied(110.0);
        record.emptied(111.0);
        let accuracy = record.accuracy().unwrap();
        assert_eq!((accuracy.forecasts, accuracy.contained_ratio), (2, 0.5));
    }

    #[test]
    fn a_forecast_without_an_end_is_wrong_only_if_the_queue_is_empty_too_soon() {
        let mut record = Record::new();
        record.made(0.0, 80.0, None, 100.0);
        record.not_emptied(1e6);
        assert_eq!(record.accuracy(), None);
        record.emptied(2e6);
        assert_eq!(record.accuracy().unwrap().contained_ratio, 1.0);
    }

    #[test]
    fn what_was_interfered_with_counts_for_nothing() {
        let mut record = Record::new();
        record.made(0.0, 1.0, Some(2.0), 1.0);
        record.discard();
        record.emptied(1000.0);
        assert_eq!(record.accuracy(), None);
    }

    #[test]
    fn few_are_pending_however_long_it_lasts() {
        let mut record = Record::new();
        for second in 0..100_000 {
            record.made(f64::from(second), 1e6, None, 1e6);
            assert!(record.pending.len() <= PENDING_MAX);
        }
        assert!(record.pending.len() >= PENDING_MAX / 2);
        record.emptied(100_000.0);
        for _ in 0..2 * PENDING_MAX {
            record.made(0.0, 1.0, None, 1.0);
            record.emptied(1.0);
        }
        assert_eq!(record.outcomes.len(), PENDING_MAX);
    }
}
