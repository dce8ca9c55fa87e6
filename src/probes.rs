//! What a supervisor asks: whether the hub must be started anew, and whether it takes messages.
//!
//! 1. *Alive* is about the hub and never about a consumer. One that is slow, stalled or halted is
//!    what the figures and alerts are for: were the hub called dead for it, its supervisor would
//!    end all the others too, again and again, and the consumer would be where it was.
//! 2. *Ready* is about the intake: started, not stopping, and able to keep what it takes.
//! 3. Both look at what is there already. Asking costs nothing and waits for nothing.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::journal::{OnError, State};
use crate::lifecycle::{Flag, Watch};
use crate::monitor::Figures;
use crate::monitor::sample::Sample;

/// A hub whose monitor is silent for so long is stuck: it takes a sample a second.
pub const SILENT_MAX: Duration = Duration::from_secs(30);

/// What is looked at.
pub struct Probes {
    /// The hub's figures.
    pub figures: Arc<Figures>,
    /// All its threads have been started.
    pub started: Arc<Flag>,
    /// It has been told to stop.
    pub stopping: Arc<Flag>,
    /// Sees its threads end.
    pub watch: Watch,
    /// What becomes of messages when the journal can't be written.
    pub on_error: OnError,
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// `ok`, `starting`, `stopping` or `failed`.
    pub status: &'static str,
    /// Why it is not `ok`, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Condition {
    const OK: Condition = Condition {
        status: "ok",
        reason: None,
    };

    fn not(status: &'static str, reason: String) -> Self {
        let reason = Some(reason);
        Condition { status, reason }
    }

    /// Whether it is `ok`.
    pub fn is_ok(&self) -> bool {
        self.reason.is_none()
    }
}

impl Probes {
    /// Whether all threads of the hub are at work.
    pub fn alive(&self) -> Condition {
        let ended = self.watch.first_end();
        // In this order: at a stop they end because they are told to.
        if let Some(end) = ended.filter(|_| !self.stopping.is_raised()) {
            let why = end.error.as_deref().unwrap_or("it returned");
            return Condition::not("failed", format!("thread {} has ended: {why}", end.thread));
        }
        match self.silence() {
            Some(reason) => Condition::not("failed", reason),
            None => Condition::OK,
        }
    }

    /// Whether the hub takes messages in.
    pub fn ready(&self) -> Condition {
        if self.stopping.is_raised() {
            return Condition::not("stopping", "the hub takes no more messages in".into());
        }
        let alive = self.alive();
        if !alive.is_ok() {
            return alive;
        }
        if !self.started.is_raised() {
            return Condition::not("starting", "not all threads have been started".into());
        }
        match &self.figures.journal {
            Some(journal) => kept(&journal.snapshot().state, self.on_error),
            None => Condition::OK,
        }
    }

    /// The latest sample, if it still says something of the present.
    ///
    /// # Errors
    /// Why it does not.
    pub fn sample(&self) -> Result<Arc<Sample>, String> {
        match self.silence() {
            Some(reason) => Err(reason),
            None => Ok(self.figures.latest()),
        }
    }

    /// Why the monitor is as good as dead. Measured on the clock that can't be set.
    fn silence(&self) -> Option<String> {
        let sampled = self.figures.latest.get().map(|sample| sample.uptime);
        let silent = (self.figures.started.elapsed()).saturating_sub(sampled.unwrap_or_default());
        (silent > SILENT_MAX).then(|| {
            format!(
                "the monitor has taken no sample for {} s: is the machine overloaded, or was the \
                 hub suspended?",
                silent.as_secs()
            )
        })
    }
}

/// Whether what comes in finds a place.
fn kept(journal: &State, on_error: OnError) -> Condition {
    match (journal, on_error) {
        (State::Failed { why }, OnError::Stop) => {
            let why = format!("the journal can't be written, and on_error is \"stop\": {why}");
            Condition::not("failed", why)
        }
        _ => Condition::OK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn probes() -> Probes {
        let figures = Figures::new("a", Vec::new());
        Probes {
            figures: Arc::new(figures),
            started: Arc::default(),
            stopping: Arc::default(),
            watch: Watch::new().0,
            on_error: OnError::Memory,
        }
    }

    /// The hub as it is so much later, if nothing has happened since.
    fn later(probes: &mut Probes, time: Duration) {
        let figures = Arc::get_mut(&mut probes.figures).unwrap();
        figures.started = figures.started.checked_sub(time).unwrap();
    }

    #[test]
    fn a_hub_is_alive_before_it_is_ready_and_while_it_stops() {
        let probes = probes();
        assert!(probes.alive().is_ok());
        assert_eq!(probes.ready().status, "starting");
        probes.started.raise();
        assert!(probes.ready().is_ok());
        probes.stopping.raise();
        assert!(probes.alive().is_ok());
        assert_eq!(probes.ready().status, "stopping");
    }

    #[test]
    fn a_thread_that_ends_before_a_stop_is_the_hubs_death() {
        let (watch, [ends, _again]) = Watch::new();
        let probes = Probes { watch, ..probes() };
        probes.started.raise();
        (probes.watch)
            .spawn("weir-intake-0", || Err("no such device".into()))
            .unwrap();
        ends.recv().unwrap();
        for condition in [probes.alive(), probes.ready()] {
            assert_eq!(condition.status, "failed");
            let reason = condition.reason.unwrap();
            assert_eq!(reason, "thread weir-intake-0 has ended: no such device");
        }
        // At a stop they are meant to.
        probes.stopping.raise();
        assert!(probes.alive().is_ok());
    }

    #[test]
    fn a_monitor_that_is_silent_is_the_hubs_death() {
        let mut probes = probes();
        probes.started.raise();
        probes.figures.latest();
        later(&mut probes, SILENT_MAX - Duration::from_secs(5));
        assert!(probes.alive().is_ok());
        later(&mut probes, Duration::from_secs(10));
        assert_eq!(probes.alive().status, "failed");
        assert_eq!(probes.ready().status, "failed");
        // Old figures look like new ones to whoever scrapes them.
        assert!(probes.sample().is_err());
    }

    #[test]
    fn a_journal_that_fails_keeps_messages_out_only_if_it_is_to() {
        let failed = State::Failed {
            why: "no space left on device".into(),
        };
        let refused = kept(&failed, OnError::Stop);
        assert_eq!(refused.status, "failed");
        let reason = refused.reason.unwrap();
        assert!(reason.ends_with(": no space left on device"), "{reason}");
        assert!(kept(&failed, OnError::Memory).is_ok());
        assert!(kept(&State::Ok, OnError::Stop).is_ok());
    }
}
