//! How fast lines go: a token bucket, as the hub has one for messages, but for lines.

use std::time::{Duration, Instant};

/// What a JOIN takes, and what a text takes besides its own lines: the PINGs after them.
pub(crate) const LINES_TO_KNOCK: usize = 2;
pub(crate) const LINES_TO_HEAR: usize = 1;

/// Lets `burst` lines go at once and then so many a second.
#[derive(Debug)]
pub(crate) struct Pace {
    per_second: f64,
    burst: f64,
    tokens: f64,
    filled: Instant,
}

impl Pace {
    pub(crate) fn new(per_second: f64, burst: usize, now: Instant) -> Self {
        Pace {
            per_second,
            burst: burst as f64,
            tokens: burst as f64,
            filled: now,
        }
    }

    /// Takes the tokens for so many lines, no more than the burst, or says how long until it can.
    pub(crate) fn take(&mut self, lines: usize, now: Instant) -> Result<(), Duration> {
        let since = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + since * self.per_second).min(self.burst);
        self.filled = now;
        let missing = (lines as f64).min(self.burst) - self.tokens;
        // A hair less than needed is rounding, not debt.
        if missing > 1e-9 {
            return Err(Duration::from_secs_f64(missing / self.per_second));
        }
        self.tokens -= lines as f64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In any stretch of time no more lines go than the burst and what the rate allows, and who
        /// waits as long as it was told may go.
        #[test]
        fn no_more_goes_than_allowed(
            steps in prop::collection::vec((0_u64..5_000, 1_usize..=4), 1..200),
        ) {
            let start = Instant::now();
            let mut pace = Pace::new(0.5, 4, start);
            let mut now = start;
            let mut gone: Vec<(Instant, usize)> = Vec::new();
            for (pause, lines) in steps {
                now += Duration::from_millis(pause);
                if let Err(wait) = pace.take(lines, now) {
                    now += wait;
                    prop_assert_eq!(pace.take(lines, now), Ok(()));
                }
                gone.push((now, lines));
            }
            for (index, (from, _)) in gone.iter().enumerate() {
                let mut lines = 0;
                for (until, more) in &gone[index..] {
                    lines += more;
                    let seconds = until.duration_since(*from).as_secs_f64();
                    prop_assert!(lines as f64 <= 4.0 + seconds * 0.5 + 1e-6);
                }
            }
        }
    }
}
