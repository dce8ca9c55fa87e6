//! How often a consumer may be called: a token bucket.
//!
//! Thirty lines instead of the `governor` crate, whose buckets can't be overdrawn by a batch.

use std::time::{Duration, Instant};

use serde::{Deserialize, Deserializer, de};

/// A rate such as `"2/s"`, `"120/min"` or `"1000/h"`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Messages a second.
    pub per_second: f64,
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let parsed = text.split_once('/').and_then(|(count, unit)| {
            let count: f64 = count
                .trim()
                .parse()
                .ok()
                .filter(|n: &f64| n.is_finite() && *n > 0.0)?;
            let seconds = match unit.trim() {
                "s" => 1.0,
                "min" | "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            let per_second = count / seconds;
            (per_second >= 1.0 / 86_400.0).then_some(Rate { per_second })
        });
        parsed.ok_or_else(|| {
            de::Error::custom(format!(
                "expected a rate such as \"2/s\", \"120/min\" or \"1000/h\", at least one a day, \
                 found {text:?}"
            ))
        })
    }
}

/// Lets `burst` messages through at once and then `rate`.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    burst: f64,
    /// What is left; below zero after a batch that was larger than what was left.
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    pub(crate) fn new(rate: Rate, burst: usize, now: Instant) -> Self {
        Bucket {
            rate,
            burst: burst as f64,
            tokens: burst as f64,
            filled: now,
        }
    }

    /// Takes the tokens for so many messages, or says how long to wait before asking again.
    pub(crate) fn take(&mut self, messages: usize, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * self.rate.per_second).min(self.burst);
        self.filled = now;
        // A burst's worth is enough for a batch that is larger: otherwise it could never go.
        let needed = (messages as f64).min(self.burst);
        // A hair less than needed is rounding, not debt.
        if self.tokens + 1e-9 >= needed {
            self.tokens -= messages as f64;
            return Ok(());
        }
        Err(Duration::from_secs_f64(
            (needed - self.tokens) / self.rate.per_second,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 2.0 }, 3, start);
        let mut now = start;
        for _ in 0..3 {
            assert_eq!(bucket.take(1, now), Ok(()));
        }
        for _ in 0..100 {
            let wait = bucket.take(1, now).unwrap_err();
            assert!((wait.as_secs_f64() - 0.5).abs() < 1e-6, "{wait:?}");
            now += wait + Duration::from_nanos(1);
            assert_eq!(bucket.take(1, now), Ok(()));
        }
    }

    #[test]
    fn a_batch_larger_than_the_burst_is_paid_for_afterwards() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate { per_second: 10.0 }, 5, start);
        assert_eq!(bucket.take(25, start), Ok(()));
        assert!(bucket.take(1, start).unwrap_err() > Duration::from_secs(2));
    }
}
