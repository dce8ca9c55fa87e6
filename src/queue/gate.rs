//! Where an enqueuer sleeps until its consumer's queue has room.
//!
//! The runner must not take a lock for each message it settles only because somebody might be
//! asleep. So it looks at a flag, and the sleeper looks at the queue once more after it has raised
//! the flag. The two fences make sure that at least one of them sees the other (Dekker):
//!
//! | sleeper             | runner              |
//! |---------------------|---------------------|
//! | raise flag          | settle              |
//! | fence               | fence               |
//! | look at the queue   | look at the flag    |
//!
//! `tests/loom.rs` compiles this file against loom's atomics and locks: without either fence the
//! model finds the lost wake-up.

use super::sync::{AtomicBool, Condvar, Mutex, Ordering, fence};
use std::sync::PoisonError;

/// One sleeper at a time (the queue's lock is held around the sleep), any number of nudgers.
pub(super) struct Gate {
    asleep: AtomicBool,
    lock: Mutex<()>,
    nudged: Condvar,
}

impl Gate {
    pub(super) fn new() -> Self {
        Gate {
            asleep: AtomicBool::new(false),
            lock: Mutex::new(()),
            nudged: Condvar::new(),
        }
    }

    /// Sleeps until `ready`; whatever makes it true has to be followed by a `nudge`.
    pub(super) fn sleep_until(&self, ready: impl Fn() -> bool) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        while !ready() {
            guard = self
                .nudged
                .wait(guard)
                .unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Wakes the sleeper, if there is one, to look again.
    pub(super) fn nudge(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) {
            // Taking the lock waits until the sleeper really sleeps, if it has just looked.
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.nudged.notify_all();
        }
    }
}
