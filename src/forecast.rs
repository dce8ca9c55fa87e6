//! What follows from snapshots: pure functions, no clock and no thread of their own.

use std::collections::VecDeque;
use std::time::Duration;

use serde::Serialize;

use crate::stats::Snapshot;

/// Messages a second in and out of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Rates {
    /// Received.
    #[serde(rename = "in")]
    pub received: f64,
    /// Settled, however it ended.
    #[serde(rename = "out")]
    pub settled: f64,
}

/// The latest snapshots of one consumer, a window of time long.
#[derive(Clone, Debug)]
pub struct Window {
    span: Duration,
    snapshots: VecDeque<Snapshot>,
}

impl Window {
    /// An empty window that will hold so much time.
    pub fn new(span: Duration) -> Self {
        Window {
            span,
            snapshots: VecDeque::new(),
        }
    }

    /// Adds the newest snapshot and forgets those that are older than the window is long.
    pub fn push(&mut self, snapshot: Snapshot) {
        let begin = snapshot.at_ns.saturating_sub(self.span.as_nanos() as u64);
        // The one just before the window begins stays, so that the window is always filled.
        while self
            .snapshots
            .get(1)
            .is_some_and(|second| second.at_ns <= begin)
        {
            self.snapshots.pop_front();
        }
        self.snapshots.push_back(snapshot);
    }

    /// The rates over the window; none before there are two snapshots at different times.
    pub fn rates(&self) -> Option<Rates> {
        let (first, last) = (self.snapshots.front()?, self.snapshots.back()?);
        let seconds = last.at_ns.checked_sub(first.at_ns).filter(|ns| *ns > 0)? as f64 / 1e9;
        let settled = |shot: &Snapshot| shot.received - shot.queue_messages;
        Some(Rates {
            received: (last.received - first.received) as f64 / seconds,
            settled: (settled(last) - settled(first)) as f64 / seconds,
        })
    }
}

/// Stub.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Forecast {
    /// Stub.
    pub rates: Rates,
    /// Stub.
    pub service: Option<f64>,
    /// Stub.
    pub drain: Drain,
    /// Stub.
    pub health: Health,
    /// Stub.
    pub accuracy: Option<Accuracy>,
}
/// Stub.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// Stub.
    pub forecasts: u64,
    /// Stub.
    pub error_ratio: f64,
    /// Stub.
    pub contained_ratio: f64,
}
/// Stub.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(tag = "forecast", rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Drain {
    Empty,
    Draining {
        low_seconds: f64,
        high_seconds: Option<f64>,
        likely_seconds: f64,
        confidence: f64,
    },
    Growing {
        per_second: f64,
    },
    Stalled {
        for_seconds: f64,
    },
    Unknown,
}
/// Stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Health {
    Ok,
    Behind,
    FallingBehind,
    Stalled,
    Paused,
    Halted,
}
#[allow(missing_docs)]
impl Health {
    pub const ALL: [Health; 6] = [
        Health::Ok,
        Health::Behind,
        Health::FallingBehind,
        Health::Stalled,
        Health::Paused,
        Health::Halted,
    ];
    pub fn as_str(self) -> &'static str {
        match self {
            Health::Ok => "ok",
            Health::Behind => "behind",
            Health::FallingBehind => "falling_behind",
            Health::Stalled => "stalled",
            Health::Paused => "paused",
            Health::Halted => "halted",
        }
    }
}
/// Stub.
#[derive(Clone, Debug)]
pub struct Forecaster {
    window: Window,
    state: crate::stats::State,
}
#[allow(missing_docs)]
impl Forecaster {
    pub fn new(_workers: usize) -> Self {
        Forecaster {
            window: Window::new(Duration::from_secs(10)),
            state: crate::stats::State::Idle,
        }
    }
    pub fn push(&mut self, snapshot: &Snapshot) {
        self.state = snapshot.state;
        self.window.push(*snapshot);
    }
    pub fn forecast(&self) -> Forecast {
        Forecast {
            rates: self.window.rates().unwrap_or_default(),
            service: None,
            drain: Drain::Unknown,
            health: match self.state {
                crate::stats::State::Halted => Health::Halted,
                crate::stats::State::Paused => Health::Paused,
                _ => Health::Ok,
            },
            accuracy: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64, received: u64, queue_messages: u64) -> Snapshot {
        Snapshot {
            at_ns: second * 1_000_000_000,
            received,
            queue_messages,
            ..Snapshot::default()
        }
    }

    #[test]
    fn rates_are_those_of_the_window_and_no_older() {
        let mut window = Window::new(Duration::from_secs(10));
        assert_eq!(window.rates(), None);
        window.push(at(100, 0, 0));
        assert_eq!(window.rates(), None);
        window.push(at(105, 1000, 500));
        assert_eq!(
            window.rates(),
            Some(Rates {
                received: 200.0,
                settled: 100.0
            })
        );
        for second in 106..=120 {
            window.push(at(second, 1000, 0));
        }
        assert_eq!(
            window.rates(),
            Some(Rates {
                received: 0.0,
                settled: 0.0
            })
        );
        assert!(window.snapshots.len() <= 12);
    }
}
