//! What a burst would do to a queue: arithmetic on rates, no history.

use std::time::Duration;

use serde::Serialize;

/// Messages on top of what arrives anyway.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Burst {
    /// So many a second.
    pub per_second: f64,
    /// For so long.
    pub lasts: Duration,
}

/// What a burst that begins now would do.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WhatIf {
    /// Messages a second that the consumer settles while it never waits for any.
    pub service_per_second: f64,
    /// Messages a second that arrive without the burst.
    pub arriving_per_second: f64,
    /// Messages a second that the queue grows by during the burst; negative: it shrinks.
    pub burst_net_per_second: f64,
    /// The same after the burst.
    pub after_net_per_second: f64,
    /// The greatest depth up to the burst's end; it grows on if the consumer can't keep up then.
    pub peak_messages: f64,
    /// The greatest age that a message reaches of those received up to the burst's end: what it
    /// takes to work through the greatest depth. Infinite, `null` in JSON, if nothing is settled.
    pub peak_lag_seconds: f64,
    /// When the queue is empty, in seconds from the burst's begin; none: never at these rates.
    pub clears_after_seconds: Option<f64>,
}

/// What a burst does to a queue so deep, at these rates of messages a second.
///
/// ```
/// use std::time::Duration;
/// use weir::forecast::{Burst, what_if};
///
/// let burst = Burst { per_second: 120.0, lasts: Duration::from_secs(600) };
/// let result = what_if(0, 10.0, 50.0, burst);
/// assert_eq!(result.peak_messages, 48_000.0);
/// assert_eq!(result.clears_after_seconds, Some(1_800.0));
/// ```
pub fn what_if(depth: u64, arriving: f64, service: f64, burst: Burst) -> WhatIf {
    let sane = |rate: f64| if rate.is_finite() { rate.max(0.0) } else { 0.0 };
    let (arriving, service) = (sane(arriving), sane(service));
    let lasts = burst.lasts.as_secs_f64();
    let depth = depth as f64;
    let during = arriving + sane(burst.per_second) - service;
    let after = arriving - service;
    let at_end = (depth + during * lasts).max(0.0);
    let peak = depth.max(at_end);
    let clears_after_seconds = if peak == 0.0 {
        Some(0.0)
    } else if at_end == 0.0 {
        Some(depth / -during)
    } else {
        (after < 0.0).then(|| lasts + at_end / -after)
    };
    WhatIf {
        service_per_second: service,
        arriving_per_second: arriving,
        burst_net_per_second: during,
        after_net_per_second: after,
        peak_messages: peak,
        peak_lag_seconds: if peak == 0.0 { 0.0 } else { peak / service },
        clears_after_seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn burst(per_second: f64, seconds: u64) -> Burst {
        Burst {
            per_second,
            lasts: Duration::from_secs(seconds),
        }
    }

    #[test]
    fn a_burst_that_the_consumer_keeps_up_with_does_nothing() {
        let result = what_if(0, 1.0, 10.0, burst(5.0, 60));
        assert_eq!(result.peak_messages, 0.0);
        assert_eq!(result.peak_lag_seconds, 0.0);
        assert_eq!(result.clears_after_seconds, Some(0.0));
    }

    #[test]
    fn a_backlog_may_clear_during_the_burst() {
        let result = what_if(100, 1.0, 10.0, burst(5.0, 60));
        assert_eq!(result.peak_messages, 100.0);
        assert_eq!(result.peak_lag_seconds, 10.0);
        assert_eq!(result.clears_after_seconds, Some(25.0));
    }

    #[test]
    fn what_outlasts_the_burst_clears_at_the_rates_after_it() {
        let result = what_if(0, 4.0 / 60.0, 20.0, burst(120.0, 600));
        assert!((result.peak_messages - 60_040.0).abs() < 1e-6);
        assert!((result.peak_lag_seconds - 3_002.0).abs() < 1e-6);
        let clears = result.clears_after_seconds.unwrap();
        assert!((clears - (600.0 + 60_040.0 / (20.0 - 4.0 / 60.0))).abs() < 1e-6);
    }

    #[test]
    fn what_never_clears_is_said_never_to() {
        assert_eq!(
            what_if(0, 10.0, 10.0, burst(5.0, 60)).clears_after_seconds,
            None
        );
        let none = what_if(5, 0.0, 0.0, burst(0.0, 0));
        assert_eq!(none.clears_after_seconds, None);
        assert_eq!(none.peak_lag_seconds, f64::INFINITY);
        let odd = what_if(5, f64::NAN, f64::INFINITY, burst(f64::NAN, u64::MAX));
        assert_eq!((odd.peak_messages, odd.clears_after_seconds), (5.0, None));
    }
}
