//! The housekeeping of what is on disk: cursors, retention, dead letters' age.
//!
//! One thread, about once a second, away from every message's way: it may wait for the disk. What
//! it can't do now it does the next time; nothing depends on it being quick but how much comes
//! twice after a crash.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::{error, info, warn};

use crate::dead_letters::DeadLetters;
use crate::journal::{self, Cursor, Cursors, Journal, SegmentInfo};
use crate::lifecycle::Flag;
use crate::queue::Queue;
use crate::stats::now_ns;

/// From this much of what retention allows on, a consumer is warned of.
const WARN_AT: f64 = 0.8;
/// Cursors of consumers say when they were last configured, to the hour.
const HOUR_NS: u64 = 3_600_000_000_000;
/// When the cursors are written after a start, if their interval is longer; each pause is then
/// twice the one before. A hub that dies soon after each start gets on even so.
const FIRST: Duration = Duration::from_millis(20);
const EXPIRE_EVERY: Duration = Duration::from_secs(60);
/// The bounds of the journal are looked at so often at least.
const RETAIN_EVERY: Duration = Duration::from_secs(5);
/// Segments that are removed at a time when the disk is full.
const RECLAIM: usize = 4;

/// Keeps a hub's data in order.
pub struct Keeper {
    dir: PathBuf,
    settings: journal::Settings,
    journal: Arc<Journal>,
    dead_letters: Arc<DeadLetters>,
    queues: Vec<(String, Arc<Queue>)>,
    /// What was saved last, with the cursors of consumers that are no longer configured.
    saved: Mutex<Cursors>,
}

impl Keeper {
    /// A keeper of these consumers, after what was `loaded`.
    pub(crate) fn new(
        dir: PathBuf,
        settings: journal::Settings,
        journal: Arc<Journal>,
        dead_letters: Arc<DeadLetters>,
        queues: Vec<(String, Arc<Queue>)>,
        loaded: Cursors,
    ) -> Self {
        Keeper {
            dir,
            settings,
            journal,
            dead_letters,
            queues,
            saved: Mutex::new(loaded),
        }
    }

    /// Writes the cursors, if they have moved; `clean` says that the hub has stopped in order.
    ///
    /// # Errors
    /// What the disk says; nothing is lost by it, but what was settled since comes again if the
    /// hub ends now.
    pub fn save(&self, clean: bool) -> Result<(), String> {
        let mut saved = self.saved.lock();
        let now = now_ns();
        let mut cursors = Cursors {
            clean,
            next: self.journal.end(),
            consumers: self.others(&saved.consumers, now),
        };
        for (name, queue) in &self.queues {
            let seen_ns = now - now % HOUR_NS;
            let mut cursor = queue.cursor(seen_ns).unwrap_or_else(|| Cursor {
                position: self.journal.end(),
                replayed_below: 0,
                paused: queue.stats().is_paused(),
                seen_ns,
            });
            if clean {
                // What was in memory and retention had taken from the journal is counted by now.
                cursor.position = cursor.position.max(self.journal.begin());
            }
            cursors.consumers.insert(name.clone(), cursor);
        }
        if *saved == cursors {
            return Ok(());
        }
        // A cursor may have passed messages because they were set aside.
        self.dead_letters.sync()?;
        cursors.save(&self.dir).map_err(|error| {
            format!("can't write the cursors in {}: {error}", self.dir.display())
        })?;
        *saved = cursors;
        Ok(())
    }

    /// The cursors of consumers that are not configured, as long as they are remembered.
    fn others(&self, saved: &BTreeMap<String, Cursor>, now: u64) -> BTreeMap<String, Cursor> {
        let mut others = saved.clone();
        others.retain(|name, cursor| {
            let configured = self.queues.iter().any(|(its, _)| its == name);
            let age = Duration::from_nanos(now.saturating_sub(cursor.seen_ns));
            let keep = configured || age <= self.settings.forget_after;
            if !keep {
                info!(
                    consumer = name,
                    "not configured for so long that its cursor is forgotten"
                );
            }
            keep
        });
        others
    }

    /// Works until it is told to stop.
    pub(crate) fn run(&self, stop: &Flag) {
        let mut failing = None;
        let mut warned = vec![false; self.queues.len()];
        let mut expire_due = Instant::now();
        let mut save_due = Instant::now();
        let mut save_every = FIRST.min(self.settings.cursors);
        let mut expired = 0;
        loop {
            if Instant::now() >= save_due {
                save_due = Instant::now() + save_every;
                save_every = (save_every * 2).min(self.settings.cursors);
                let outcome = self.save(false);
                match (&outcome, &failing) {
                    (Err(why), None) => {
                        error!(why, "what is settled now comes again after a crash");
                    }
                    (Ok(()), Some(_)) => info!("the cursors can be written again"),
                    _ => {}
                }
                failing = outcome.err();
            }
            self.retain();
            self.measure(&mut warned);
            if Instant::now() >= expire_due {
                expire_due = Instant::now() + EXPIRE_EVERY;
                if let Err(why) = self.dead_letters.expire(now_ns()) {
                    warn!(why, "can't delete old dead letters");
                }
            }
            // By age just now, or by bytes when others were set aside.
            let letters = self.dead_letters.expired() - expired;
            if letters > 0 {
                expired += letters;
                warn!(
                    letters,
                    "dead letters deleted: dead_letters.keep allows no more"
                );
            }
            if stop.sleep(save_every.min(RETAIN_EVERY)) {
                return;
            }
        }
    }

    /// Removes segments that the bounds of the journal no longer allow; and, when it can't be
    /// written, those that all consumers have settled.
    fn retain(&self) {
        let segments = self.journal.segments();
        let keep = &self.settings.keep;
        let now = now_ns();
        let too_old = |segment: &SegmentInfo| {
            Duration::from_nanos(now.saturating_sub(segment.last_ns)) > keep.age
        };
        let mut bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
        let settled = self
            .saved
            .lock()
            .consumers
            .values()
            .map(|c| c.position)
            .min();
        let settled = settled.unwrap_or(u64::MAX);
        let mut reclaim = match self.journal.snapshot().state {
            journal::State::Failed { .. } => RECLAIM,
            journal::State::Ok => 0,
        };
        for segment in &segments {
            let over = bytes > keep.bytes || too_old(segment);
            if !segment.sealed {
                // So that age is counted in segments, an old one takes no more messages.
                let age = Duration::from_nanos(now.saturating_sub(segment.first_ns));
                if age > keep.age / 8 && segment.first_ns > 0 {
                    self.journal.rotate_soon();
                }
                return;
            }
            if !over && (reclaim == 0 || segment.end > settled) {
                return;
            }
            reclaim = reclaim.saturating_sub(1);
            for (consumer, queue) in &self.queues {
                match queue.lose_before(segment.end) {
                    Ok(0) => {}
                    Ok(messages) => {
                        error!(
                            consumer,
                            messages, "dropped: the journal's bounds took them"
                        );
                    }
                    Err(error) => {
                        // Its reader will find them gone, and count them when it is through.
                        warn!(consumer, %error, "can't count what the journal's bounds take");
                    }
                }
            }
            if let Err(error) = self.journal.remove_oldest(segment.base) {
                warn!(%error, "can't remove a segment of the journal; trying again");
                return;
            }
            bytes -= segment.bytes;
        }
    }

    /// How far retention is from taking unsettled messages.
    fn measure(&self, warned: &mut [bool]) {
        let segments = self.journal.segments();
        let keep = &self.settings.keep;
        for ((consumer, queue), warned) in self.queues.iter().zip(warned) {
            let Some(cursor) = queue.cursor(0).filter(|_| queue.stats().depth() > 0) else {
                queue.stats().retention_used(0.0);
                continue;
            };
            let waiting = segments.iter().filter(|s| s.end > cursor.position);
            let bytes: u64 = waiting.map(|segment| segment.bytes).sum();
            let lag = queue.stats().snapshot().lag;
            let used =
                (bytes as f64 / keep.bytes as f64).max(lag.as_secs_f64() / keep.age.as_secs_f64());
            queue.stats().retention_used(used);
            if used >= WARN_AT && !std::mem::replace(warned, true) {
                let percent = (used * 100.0) as u64;
                warn!(
                    consumer,
                    percent,
                    lag_seconds = lag.as_secs(),
                    "so far behind that the journal's bounds (journal.keep) will soon take \
                     messages from it"
                );
            } else if used < WARN_AT * 0.9 {
                *warned = false;
            }
        }
    }
}
