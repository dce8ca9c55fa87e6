//! How often a value fell between which bounds: what can be added up over threads, time and hubs.
//!
//! Promises: recording takes no lock and its memory is bounded by the bounds given; reading changes
//! nothing. A reader may see a count before its sum, never one that was not recorded.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds in seconds for how long a delivery takes.
pub const PROCESSING: &[f64] = &[
    0.000_01, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 60.0,
];
/// Upper bounds in seconds for how long a message waits before it is delivered.
pub const WAITING: &[f64] = &[
    0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21_600.0, 86_400.0,
];
/// Upper bounds where nothing is known of the values: three to a decade.
pub const ANY: &[f64] = &[
    0.000_001, 0.000_01, 0.000_1, 0.000_2, 0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1,
    0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8,
    1e9,
];

/// Counts of values between bounds, and their sum.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds: the last is for what is above all of them.
    counts: Box<[AtomicU64]>,
    /// The bits of an `f64`.
    sum: AtomicU64,
}

/// The numbers of a [`Histogram`] at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Counts {
    /// The upper bounds, ascending; a value on a bound is below it.
    pub bounds: &'static [f64],
    /// How many fell below each bound and above the one before; the last: above all bounds.
    pub counts: Vec<u64>,
    /// The sum of all values.
    pub sum: f64,
}

impl Histogram {
    /// An empty histogram with these upper bounds, ascending.
    pub fn new(bounds: &'static [f64]) -> Self {
        Histogram {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts a value, `times` over. What is no number is not counted.
    pub fn record(&self, value: f64, times: u64) {
        if value.is_nan() {
            return;
        }
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts[place].fetch_add(times, Ordering::Relaxed);
        let more = |sum: u64| Some((f64::from_bits(sum) + value * times as f64).to_bits());
        let _ = (self.sum).fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
    }

    /// A copy of all numbers at this moment.
    pub fn snapshot(&self) -> Counts {
        Counts {
            bounds: self.bounds,
            sum: f64::from_bits(self.sum.load(Ordering::Relaxed)),
            counts: (self.counts.iter())
                .map(|count| count.load(Ordering::Relaxed))
                .collect(),
        }
    }
}

impl Counts {
    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds the numbers of another histogram with the same bounds.
    pub fn add(&mut self, other: &Counts) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum += other.sum;
    }

    /// What has come since an earlier snapshot.
    pub fn since(&self, earlier: &Counts) -> Counts {
        let counts = self.counts.iter().zip(&earlier.counts);
        Counts {
            bounds: self.bounds,
            counts: counts
                .map(|(now, then)| now.saturating_sub(*then))
                .collect(),
            sum: self.sum - earlier.sum,
        }
    }

    /// The value that a part of all values stays below, as if they were spread evenly between two
    /// bounds; none when there are no values.
    pub fn quantile(&self, part: f64) -> Option<f64> {
        let wanted = self.count() as f64 * part;
        let mut below = 0.0;
        for (place, count) in self
            .counts
            .iter()
            .enumerate()
            .filter(|(_, count)| **count > 0)
        {
            let (before, count) = (below, *count as f64);
            below += count;
            if below >= wanted {
                let low = place.checked_sub(1).map_or(0.0, |place| self.bounds[place]);
                // Nobody knows how far above the last bound they are.
                let high = self.bounds.get(place).copied().unwrap_or(low);
                return Some(low + (high - low) * ((wanted - before) / count).clamp(0.0, 1.0));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_counted_at_the_least_bound_that_is_not_below_it() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for (value, times) in [(0.5, 1), (1.0, 2), (1.5, 3), (9.0, 4), (f64::NAN, 5)] {
            histogram.record(value, times);
        }
        let counts = histogram.snapshot();
        assert_eq!(counts.counts, [3, 3, 4]);
        assert_eq!((counts.count(), counts.sum), (10, 0.5 + 2.0 + 4.5 + 36.0));
    }

    #[test]
    fn a_quantile_lies_between_the_bounds_of_its_value() {
        let histogram = Histogram::new(PROCESSING);
        assert_eq!(histogram.snapshot().quantile(0.5), None);
        histogram.record(0.02, 90);
        let earlier = histogram.snapshot();
        histogram.record(0.7, 10);
        let counts = histogram.snapshot();
        let median = counts.quantile(0.5).unwrap();
        assert!((0.01..=0.05).contains(&median), "{median}");
        let high = counts.quantile(0.99).unwrap();
        assert!((0.5..=1.0).contains(&high), "{high}");
        assert_eq!(counts.since(&earlier).count(), 10);
        histogram.record(1e9, 1000);
        assert_eq!(histogram.snapshot().quantile(0.9), Some(60.0));
    }
}
