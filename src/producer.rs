//! One producer's thread: calls it at its interval.
//!
//! A producer that fails or panics is called again at its next interval; in Moksha one that raised
//! once was dead for good.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use tracing::{error, warn};
use weir_consumer::settings::Mistake;
use weir_consumer::{Producer, Publisher, panic_text};

use crate::lifecycle::Flag;
use crate::stats::now_ns;

/// Makes a producer's instance, at the start and after each panic.
pub type Build = Arc<dyn Fn() -> Result<Box<dyn Producer>, Vec<Mistake>> + Send + Sync>;

/// The counters of one producer.
#[derive(Default)]
pub struct ProducerStats {
    runs: AtomicU64,
    failed: AtomicU64,
    panics: AtomicU64,
    /// Failures and panics since the last run that went well.
    in_a_row: AtomicU64,
    last_ran_ns: AtomicU64,
}

/// The numbers of one producer at one moment.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ProducerSnapshot {
    /// How often it was called.
    pub runs: u64,
    /// How often it failed.
    pub failed: u64,
    /// How often it panicked.
    pub panics: u64,
    /// Failures and panics since the last run that went well.
    pub failed_in_a_row: u64,
    /// When it was last called, in nanoseconds since 1970; 0: never.
    pub last_ran_ns: u64,
}

impl ProducerStats {
    /// A copy of all numbers at this moment.
    pub fn snapshot(&self) -> ProducerSnapshot {
        ProducerSnapshot {
            runs: self.runs.load(Ordering::Acquire),
            failed: self.failed.load(Ordering::Acquire),
            panics: self.panics.load(Ordering::Acquire),
            failed_in_a_row: self.in_a_row.load(Ordering::Acquire),
            last_ran_ns: self.last_ran_ns.load(Ordering::Acquire),
        }
    }
}

/// Calls the producer at each interval until it is told to stop.
pub(crate) fn run(
    name: &str,
    interval: Duration,
    producer: Box<dyn Producer>,
    build: &Build,
    publisher: &Publisher,
    stats: &ProducerStats,
    stop: &Flag,
) {
    let mut producer = Some(producer);
    while !stop.sleep(interval) {
        stats.last_ran_ns.store(now_ns(), Ordering::Release);
        stats.runs.fetch_add(1, Ordering::AcqRel);
        // After a panic the instance is thrown away, so nobody sees its broken state.
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            if producer.is_none() {
                producer = Some(build().map_err(|mistakes| {
                    let texts: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                    weir_consumer::Failure::retry(texts.join("; "))
                })?);
            }
            producer
                .as_mut()
                .map_or(Ok(()), |producer| producer.poll(publisher))
        }));
        match outcome {
            Ok(Ok(())) => {
                stats.in_a_row.store(0, Ordering::Release);
                continue;
            }
            Ok(Err(cause)) => {
                stats.failed.fetch_add(1, Ordering::AcqRel);
                warn!(producer = name, %cause, "failed; it is called again at its next interval");
            }
            Err(panic) => {
                producer = None;
                stats.panics.fetch_add(1, Ordering::AcqRel);
                let text = panic_text(&*panic);
                error!(
                    producer = name,
                    text, "panicked; it is built anew at its next interval"
                );
            }
        }
        stats.in_a_row.fetch_add(1, Ordering::AcqRel);
    }
}
