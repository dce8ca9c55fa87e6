//! The children of this process that live, of all its consumers, so that its end can be theirs.
//!
//! A consumer ends its own child when it is dropped. One whose thread is left behind by a hub at the
//! deadline of its stop is never dropped: the process's end takes the thread, and this the child.
//!
//! Invariants:
//!
//! 1. Who is killed here is a child, or was started by one: a group is removed from the list before
//!    its leader is reaped, and until then nobody else can have its number.
//! 2. After [`kill_children`] no child is left, and none is started any more.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

/// So long [`kill_children`] waits for a start that is under way. One can hang in the kernel, on a
/// file system that does not answer.
const STARTED: Duration = Duration::from_secs(1);

struct Living {
    groups: Vec<Pid>,
    /// Starts under way; not in the list yet.
    starting: usize,
    is_over: bool,
}

static LIVING: Mutex<Living> = Mutex::new(Living {
    groups: Vec::new(),
    starting: 0,
    is_over: false,
});
static HAS_STARTED: Condvar = Condvar::new();

fn living() -> MutexGuard<'static, Living> {
    LIVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a process at the head of a group of its own.
///
/// # Errors
/// Why it could not be started.
pub(crate) fn start(command: &mut Command) -> io::Result<Child> {
    {
        let mut living = living();
        if living.is_over {
            return Err(io::Error::other("the hub's own process is about to end"));
        }
        living.starting += 1;
    }
    let started = command.process_group(0).spawn();
    let mut living = living();
    living.starting -= 1;
    living.groups.extend(started.as_ref().ok().and_then(group));
    HAS_STARTED.notify_all();
    started
}

/// The group that a child leads.
pub(crate) fn group(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Removes a group whose leader is about to be reaped.
pub(crate) fn forget(group: Pid) {
    living().groups.retain(|living| *living != group);
}

/// Whether the children were killed because the process is to end.
pub(crate) fn is_over() -> bool {
    living().is_over
}

/// Kills the children of all consumers of this process, and lets no other be started.
///
/// For the very end of a process that ran a hub: a consumer that did not return in time, and that
/// the hub had to leave behind, does not end its child itself.
pub fn kill_children() {
    let mut living = living();
    living.is_over = true;
    let (living, _) = HAS_STARTED
        .wait_timeout_while(living, STARTED, |living| living.starting > 0)
        .unwrap_or_else(PoisonError::into_inner);
    // Under the lock, so that none of them is reaped meanwhile.
    for group in &living.groups {
        // An error is that there is nobody left.
        let _ = kill_process_group(*group, Signal::KILL);
    }
}
