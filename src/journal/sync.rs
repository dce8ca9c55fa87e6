//! How what was appended comes to survive a power failure.
//!
//! A round looks where the log ends, syncs every file that is not, in the order of the log, then
//! the directory if it has new names, and only then moves the durable mark. It takes neither the
//! append lock nor, while it waits for the disk, any other that an appender or a reader takes.
//!
//! After a failed `fdatasync` nobody can say what is on the disk, and the system may call the next
//! one a success; so that segment is given up: its messages can be read, the durable mark stays
//! before them as long as they exist, and what comes next goes to a new segment.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::segment::Segment;
use super::settings::SYNC_MAX;
use super::{Fault, Journal, Sync, named};

/// What the sync thread is asked for.
#[derive(Default)]
pub(super) struct Pulse {
    /// Somebody waits until all below is durable.
    wanted: u64,
    /// The sync thread is to end, or has.
    stop: bool,
}

impl Journal {
    /// The sync thread: syncs by the policy until the journal is closed.
    pub fn run(&self) {
        let _stopped = Stopped(self);
        while self.await_work() {
            let _ = self.sync_now(); // who waits asks for the result; all others see the snapshot
        }
    }

    /// Sleeps until there is something to sync; answers no when the journal is closed.
    fn await_work(&self) -> bool {
        let mut pulse = self.pulse.lock();
        let mut due = None;
        loop {
            if pulse.stop {
                return false;
            }
            let reached = self.reached.load(Ordering::Acquire);
            if pulse.wanted > reached {
                return true;
            }
            // Raised before the look at what was written, and looked at after each write, so that
            // one of the two sees the other.
            self.asleep.store(true, Ordering::SeqCst);
            let dirty = self.written.load(Ordering::SeqCst) > reached;
            if dirty {
                self.asleep.store(false, Ordering::SeqCst); // it will wake by itself
            }
            match self.sync {
                Sync::EachBatch if dirty => return true,
                Sync::Every(time) if dirty => {
                    let due = *due.get_or_insert_with(|| Instant::now() + time.min(SYNC_MAX));
                    if self.wake.wait_until(&mut pulse, due).timed_out() {
                        return !pulse.stop;
                    }
                }
                _ => self.wake.wait(&mut pulse),
            }
        }
    }

    /// Wakes the sync thread if it sleeps and there may be work.
    pub(super) fn wake_sync(&self) {
        if self.sync != Sync::Never && self.asleep.swap(false, Ordering::SeqCst) {
            drop(self.pulse.lock());
            self.wake.notify_one();
        }
    }

    /// Waits until what was appended before `seq`, since the last failure, is durable.
    ///
    /// To be called while [`run`](Self::run) is at work. The append lock may be held.
    ///
    /// # Errors
    /// The disk's reason, when the messages right before `seq` could not be synced.
    pub fn wait_durable(&self, seq: u64) -> Result<(), String> {
        let seq = seq.min(self.written.load(Ordering::SeqCst));
        let mut pulse = self.pulse.lock();
        loop {
            if let Some(why) = self.given_up(seq) {
                return Err(why);
            }
            if self.reached.load(Ordering::Acquire) >= seq {
                return Ok(());
            }
            if pulse.stop {
                return Err("the journal's sync thread has ended".into());
            }
            pulse.wanted = pulse.wanted.max(seq);
            self.wake.notify_one();
            self.synced.wait(&mut pulse);
        }
    }

    /// Why the message before `seq` will not become durable.
    fn given_up(&self, seq: u64) -> Option<String> {
        let log = self.log.read();
        let segment = log.at(seq.checked_sub(1)?)?;
        let why = segment.given_up()?;
        (segment.synced() < seq).then(|| why.to_owned())
    }

    /// Syncs everything that was appended before the call.
    ///
    /// # Errors
    /// The disk's reason.
    pub fn sync_now(&self) -> Result<(), String> {
        let result = {
            let _one_at_a_time = self.rounds.lock();
            self.round()
        };
        drop(self.pulse.lock());
        self.synced.notify_all();
        result
    }

    fn round(&self) -> Result<(), String> {
        let end = self.written.load(Ordering::SeqCst);
        // What has no more to sync stands before what has.
        let mut todo: Vec<Arc<Segment>> = {
            let log = self.log.read();
            let unsettled = log.segments.iter().rev().take_while(|s| !s.is_settled());
            unsettled.cloned().collect()
        };
        todo.reverse();
        let mut failed = None;
        let mut synced = Vec::with_capacity(todo.len());
        for segment in &todo {
            // Looked at before the sync: what comes in meanwhile is for the next round.
            let (closed, upto) = (segment.is_closed(), segment.end().min(end));
            let started = Instant::now();
            let result = segment.file(&*self.disk).and_then(|file| file.sync_data());
            self.counters.synced(started.elapsed());
            match result {
                Ok(()) => synced.push((segment, closed, upto)),
                Err(_) if !self.log.read().has(segment) => {} // removed meanwhile
                Err(error) => self.give_up(segment, &error, &mut failed),
            }
        }
        if todo.iter().any(|s| !s.is_named())
            && let Err(error) = self.disk.sync_dir(&self.dir)
        {
            synced.retain(|(segment, ..)| {
                let named = segment.is_named();
                if !named {
                    self.give_up(segment, &error, &mut failed);
                }
                named
            });
        }
        for (segment, closed, upto) in synced {
            segment.set_named();
            segment.set_synced(upto);
            if closed {
                segment.settle();
            }
        }
        let lost = {
            let log = self.log.read();
            let mut given_up = log.segments.iter().filter(|s| s.given_up().is_some());
            given_up.next().map(|segment| segment.synced())
        };
        self.reached.fetch_max(end, Ordering::AcqRel);
        let durable = lost.map_or(end, |lost| lost.min(end));
        self.durable.fetch_max(durable, Ordering::AcqRel);
        failed.map_or(Ok(()), Err)
    }

    fn give_up(&self, segment: &Segment, error: &std::io::Error, failed: &mut Option<String>) {
        let error = named(
            "sync",
            &segment.path,
            std::io::Error::new(error.kind(), error.to_string()),
        );
        self.counters.sync_errors.add(1);
        segment.give_up(error.to_string());
        self.fail(Fault::of(&error, self.pause));
        failed.get_or_insert(error.to_string());
    }

    /// Ends the sync thread.
    pub(super) fn stop_sync(&self) {
        self.pulse.lock().stop = true;
        self.wake.notify_all();
        self.synced.notify_all();
    }
}

/// Nobody waits for a sync thread that is no more.
struct Stopped<'j>(&'j Journal);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.0.stop_sync();
    }
}
