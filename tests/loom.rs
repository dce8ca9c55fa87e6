//! The queue's gate under every interleaving that loom finds.

#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)] // a test's name says what it is about

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;

#[path = "../src/queue/gate.rs"]
mod gate;

mod sync {
    pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
    pub use loom::sync::{Condvar, Mutex};
}

use gate::Gate;
use sync::Ordering;

/// loom reports a deadlock when the sleeper is never woken.
#[test]
fn a_sleeper_is_always_woken() {
    loom::model(|| {
        let gate = Arc::new(Gate::new());
        let settled = Arc::new(AtomicU64::new(0));
        let runner = loom::thread::spawn({
            let (gate, settled) = (gate.clone(), settled.clone());
            move || {
                for _ in 0..2 {
                    // As the runner does: a plain store, it being the only writer.
                    settled.store(settled.load(Ordering::Relaxed) + 1, Ordering::Release);
                    gate.nudge();
                }
            }
        });
        gate.sleep_until(|| settled.load(Ordering::Acquire) >= 1);
        gate.sleep_until(|| settled.load(Ordering::Acquire) >= 2);
        runner.join().unwrap();
    });
}
