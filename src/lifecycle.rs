//! Threads that are seen when they end, and the flags by which they are told to.
//!
//! Every thread of the hub is started by [`Watch::spawn`], which reports its end however it came
//! about, so that the hub is never "up" with nobody at work (design invariant 8).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::{Condvar, Mutex};

/// A flag that is raised once and can be waited for.
#[derive(Default)]
pub struct Flag {
    raised: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
}

impl Flag {
    /// Raises it for good and wakes all who wait.
    pub fn raise(&self) {
        let _guard = self.lock.lock(); // so that nobody is between looking and sleeping
        self.raised.store(true, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Whether it has been raised.
    pub fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// Sleeps for so long or until it is raised; answers whether it is.
    pub fn sleep(&self, time: Duration) -> bool {
        // No deadline where the time is beyond the clock's range.
        let deadline = Instant::now().checked_add(time);
        let mut guard = self.lock.lock();
        while !self.is_raised() {
            match deadline {
                Some(deadline) => {
                    if self.changed.wait_until(&mut guard, deadline).timed_out() {
                        break;
                    }
                }
                None => self.changed.wait(&mut guard),
            }
        }
        self.is_raised()
    }
}

/// How a thread ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// What [`Watch::spawn`] answered for it.
    pub id: usize,
    /// The thread's name.
    pub thread: String,
    /// What it died of, if it did not simply return.
    pub error: Option<String>,
}

/// Starts threads and reports their ends.
#[derive(Clone)]
pub struct Watch {
    ended: [Sender<Ended>; 2],
    first: Arc<OnceLock<Ended>>,
    spawned: Arc<AtomicUsize>,
}

impl Watch {
    /// A watch, and where the ends of its threads arrive: twice each, because whoever waits for the
    /// threads must not miss an end that somebody else has seen before.
    pub fn new() -> (Self, [Receiver<Ended>; 2]) {
        // Bounded by the number of threads: each reports once.
        let (first, second) = (
            crossbeam_channel::unbounded(),
            crossbeam_channel::unbounded(),
        );
        let watch = Watch {
            ended: [first.0, second.0],
            first: Arc::default(),
            spawned: Arc::default(),
        };
        (watch, [first.1, second.1])
    }

    /// How the first of its threads to end has ended.
    pub fn first_end(&self) -> Option<&Ended> {
        self.first.get()
    }

    /// Starts a thread of this name; answers the number by which its end will be reported.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn spawn(
        &self,
        name: &str,
        body: impl FnOnce() -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<usize> {
        let (ended, thread) = (self.ended.clone(), name.to_owned());
        let first = self.first.clone();
        let id = self.spawned.fetch_add(1, Ordering::Relaxed);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // What a panicked body leaves behind is only counted, never worked on.
                let error = match catch_unwind(AssertUnwindSafe(body)) {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(error),
                    Err(panic) => Some(format!("panicked: {}", weir_consumer::panic_text(&*panic))),
                };
                let end = Ended { id, thread, error };
                let _ = first.set(end.clone()); // one end tells enough
                for ended in ended {
                    // Nobody listens any more once the hub itself is gone.
                    let _ = ended.send(end.clone());
                }
            })?;
        Ok(id)
    }
}

/// The flags of one hub, in the order in which a stop raises them.
#[derive(Clone, Default)]
pub struct Stop {
    /// No more intake: enqueuers and producers end, queues are worked off.
    pub intake: Arc<Flag>,
    /// The deadline has come: runners end after the message they are at.
    pub deadline: Arc<Flag>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_thread_is_reported_however_it_came_about() {
        let (watch, [reports, again]) = Watch::new();
        let mut ends = Vec::new();
        type Body = fn() -> Result<(), String>;
        let bodies: [(&str, Body); 3] = [
            ("good", || Ok(())),
            ("bad", || Err("disk".into())),
            ("worse", || panic!("bug")),
        ];
        for (name, body) in bodies {
            let id = watch.spawn(name, body).unwrap();
            let end = reports.recv().unwrap();
            assert_eq!(end.id, id);
            assert_eq!(again.recv().unwrap().id, id);
            ends.push((end.thread, end.error));
        }
        assert_eq!(watch.first_end().unwrap().thread, "good");
        let expected = [
            ("good", None),
            ("bad", Some("disk")),
            ("worse", Some("panicked: bug")),
        ]
        .map(|(thread, error)| (thread.to_owned(), error.map(str::to_owned)));
        assert_eq!(ends, expected);
    }

    #[test]
    fn a_raised_flag_ends_a_sleep_of_any_length() {
        let flag = Arc::new(Flag::default());
        assert!(!flag.sleep(Duration::ZERO));
        let raiser = thread::spawn({
            let flag = flag.clone();
            move || flag.raise()
        });
        assert!(flag.sleep(Duration::MAX));
        raiser.join().unwrap();
    }
}
