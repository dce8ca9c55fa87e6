//! A process with pipes to all three of its standard streams, which nothing it does can block.
//!
//! Invariants:
//!
//! 1. No call waits longer than it was told, whatever the process reads, writes or ignores.
//! 2. What is written to standard output and error is read side by side, so that neither fills up.
//! 3. The process leads a group of its own; when this value is dropped, all of the group is killed
//!    and the process reaped. Where it never is, `living` kills the group.
//!
//! Left to others: what the lines mean (`child`). Not possible: to reach processes that made a group
//! of their own, and to act when the hub itself is killed; a process notices that by the end of its
//! standard input.

use std::io::{self, ErrorKind, Read, Write};
use std::ops::Range;
use std::os::fd::AsFd;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{
    Pid, Resource, Rlimit, Signal, WaitId, WaitIdOptions, kill_process_group, prlimit, waitid,
};

use crate::living;
use crate::protocol::Lines;
use crate::stderr::Stderr;

/// How often a wait looks whether the process has ended: a process that it left behind may hold the
/// pipes open, so that their end alone says nothing.
const LOOK: Duration = Duration::from_millis(100);
/// So long a process that closed its pipes has to end by itself, so that its exit status is known.
const LAST_MOMENT: Duration = Duration::from_millis(500);
/// So long a killed process is waited for. One that hangs in the kernel can take longer.
const REAPED: Duration = Duration::from_secs(1);
/// More than a pipe holds.
const LAST_READS: usize = 16;

/// What the kernel allows the process; nothing where none is given.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Limits {
    /// Bytes of address space.
    pub(crate) memory: Option<u64>,
    /// Seconds of processor time in all of its life.
    pub(crate) cpu: Option<u64>,
    /// Open files, the three standard streams among them.
    pub(crate) files: Option<u64>,
}

/// A running process.
pub(crate) struct Process {
    /// None once it has been reaped; until then nobody else can have its number.
    child: Option<Child>,
    pid: Option<Pid>,
    /// None once it is closed, by us or by the process.
    stdin: Option<ChildStdin>,
    /// None at its end.
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    unwritten: Vec<u8>,
    written: usize,
    lines: Lines,
    log: Stderr,
    is_gone: bool,
}

impl Process {
    /// Starts a process, in a group of its own and with its limits set before it gets any input.
    ///
    /// # Errors
    /// Why it could not be started.
    pub(crate) fn start(
        command: &mut Command,
        limits: &Limits,
        lines: Lines,
        log: Stderr,
    ) -> io::Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = living::start(command)?;
        let process = Process {
            stdin: child.stdin.take(),
            stdout: child.stdout.take(),
            stderr: child.stderr.take(),
            pid: living::group(&child),
            child: Some(child),
            unwritten: Vec::new(),
            written: 0,
            lines,
            log,
            is_gone: false,
        };
        // From here on an error drops, and so ends, it.
        // Our ends only: the process may block on its own.
        (process.stdin.as_ref()).map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
        (process.stdout.as_ref()).map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
        (process.stderr.as_ref()).map_or(Ok(()), |pipe| ioctl_fionbio(pipe, true))?;
        (process.limit(limits))
            .map_err(|error| io::Error::other(format!("its limits can't be set: {error}")))?;
        Ok(process)
    }

    /// From outside, because between fork and exec only unsafe code can run.
    fn limit(&self, limits: &Limits) -> io::Result<()> {
        let set = |resource, soft: Option<u64>, spare: u64| {
            let Some(soft) = soft else { return Ok(()) };
            let limit = Rlimit {
                current: Some(soft),
                maximum: Some(soft.saturating_add(spare)),
            };
            prlimit(self.pid, resource, limit).map(drop)
        };
        set(Resource::As, limits.memory, 0)?;
        // SIGXCPU at the limit, SIGKILL a second later for who ignores it.
        set(Resource::Cpu, limits.cpu, 1)?;
        set(Resource::Nofile, limits.files, 0)?;
        Ok(())
    }

    /// Where to append what is to be written; [`turn`](Process::turn) writes it.
    pub(crate) fn input(&mut self) -> &mut Vec<u8> {
        self.unwritten.drain(..self.written);
        self.written = 0;
        &mut self.unwritten
    }

    /// How much is still to be written.
    pub(crate) fn unwritten(&self) -> usize {
        self.unwritten.len() - self.written
    }

    /// Its number, for people.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.map_or(0, Pid::as_raw_pid)
    }

    /// Says by the end of its input that there will be nothing more.
    pub(crate) fn close_input(&mut self) {
        self.stdin = None;
    }

    /// The next line that was read from its standard output.
    ///
    /// # Errors
    /// It is too long.
    pub(crate) fn next_line(&mut self) -> Result<Option<&[u8]>, String> {
        self.lines.next()
    }

    /// Whether no more lines will come.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone
    }

    /// Writes and reads what can be, waiting until `deadline` for the first of it; answers whether
    /// anything was read.
    pub(crate) fn turn(&mut self, deadline: Instant) -> io::Result<bool> {
        self.write();
        let mut fds = Vec::with_capacity(3);
        let stdout = watch(&mut fds, self.stdout.as_ref(), PollFlags::IN);
        let stderr = watch(&mut fds, self.stderr.as_ref(), PollFlags::IN);
        let stdin = self.stdin.as_ref().filter(|_| self.unwritten() > 0);
        watch(&mut fds, stdin, PollFlags::OUT);
        let wait = deadline.saturating_duration_since(Instant::now()).min(LOOK);
        let wait = Timespec {
            tv_sec: 0,
            tv_nsec: wait.subsec_nanos().into(),
        };
        let is_quiet = match poll(&mut fds, Some(&wait)) {
            Ok(ready) => ready == 0,
            Err(rustix::io::Errno::INTR) => false,
            Err(error) => return Err(error.into()),
        };
        let is_ready = |at: Range<usize>| fds[at].iter().any(|fd| !fd.revents().is_empty());
        let (stdout, stderr) = (is_ready(stdout), is_ready(stderr));
        self.write();
        // What it said just before its end may have come since.
        let is_over = is_quiet && self.has_ended();
        let has_said = (stdout || is_over) && self.read_stdout();
        self.is_gone |= is_over && !has_said;
        let has_complained = stderr && self.read_stderr();
        Ok(has_said || has_complained)
    }

    fn write(&mut self) {
        while let Some(stdin) = &mut self.stdin
            && self.written < self.unwritten.len()
        {
            match stdin.write(&self.unwritten[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // It reads no more. Whether it said something before that, `read` finds out.
                Err(_) => self.stdin = None,
            }
        }
        if self.stdin.is_none() {
            self.unwritten.clear();
            self.written = 0;
        }
    }

    fn read_stdout(&mut self) -> bool {
        let Some(stdout) = &mut self.stdout else {
            return false;
        };
        match self.lines.fill(stdout) {
            Ok(1..) => return true,
            Err(error) if is_for_later(&error) => {}
            Ok(_) | Err(_) => {
                self.stdout = None;
                self.is_gone = true;
            }
        }
        false
    }

    fn read_stderr(&mut self) -> bool {
        let Some(stderr) = &mut self.stderr else {
            return false;
        };
        let mut chunk = [0; 16 << 10];
        match stderr.read(&mut chunk) {
            Ok(read @ 1..) => {
                self.log.take(&chunk[..read], Instant::now());
                return true;
            }
            Err(error) if is_for_later(&error) => {}
            Ok(_) | Err(_) => self.stderr = None,
        }
        false
    }

    /// Whether it has ended. It stays unreaped until its group has been killed.
    pub(crate) fn has_ended(&self) -> bool {
        let (Some(pid), Some(_)) = (self.pid, &self.child) else {
            return true;
        };
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        // An error is that there is no such child: somebody else has reaped it.
        !matches!(waitid(WaitId::Pid(pid), look), Ok(None))
    }

    /// Sends its group a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        if let (Some(pid), Some(_)) = (self.pid, &self.child) {
            // An error is that there is nobody left.
            let _ = kill_process_group(pid, signal);
        }
    }

    /// Ends it and all of its group, at once or after the moment that one needs which is about to
    /// end by itself. Answers how it ended, unless it had to be killed.
    pub(crate) fn end(&mut self, is_ending: bool) -> Option<ExitStatus> {
        self.stdin = None;
        // Nobody wants to hear more of it.
        self.stdout = None;
        let by_itself = is_ending && self.await_end(LAST_MOMENT);
        self.signal(Signal::KILL);
        // It may have left its group.
        let _ = self.child.as_mut().map(Child::kill);
        let has_ended = self.await_end(REAPED);
        // Its last words are still in the pipe, which others may go on filling.
        for _ in 0..LAST_READS {
            if !self.read_stderr() {
                break;
            }
        }
        self.stderr = None;
        self.log.flush(Instant::now());
        let mut child = self.child.take()?;
        // First: once it is reaped, its number may be another's.
        self.pid.into_iter().for_each(living::forget);
        if has_ended {
            return child.wait().ok().filter(|_| by_itself);
        }
        // It hangs in the kernel, out of reach even of SIGKILL. Whenever that ends, it is reaped.
        let reaper = std::thread::Builder::new().name("weir-exec-reaper".into());
        let _ = reaper.spawn(move || child.wait());
        None
    }

    /// Waits for its end, reading its standard error meanwhile.
    fn await_end(&mut self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        while !self.has_ended() {
            if Instant::now() >= deadline || self.turn(deadline.min(soon())).is_err() {
                return false;
            }
        }
        true
    }

    /// Tells of its standard error what was put off.
    pub(crate) fn catch_up_log(&mut self) {
        self.log.catch_up(Instant::now());
    }

    /// The last line on its standard error.
    pub(crate) fn last_words(&self) -> &str {
        self.log.last()
    }
}

/// For a wait that nothing but a look ends.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_millis(5)
}

/// Adds a pipe to those that are polled; answers where it is, if there is one.
fn watch<'p>(
    fds: &mut Vec<PollFd<'p>>,
    pipe: Option<&'p impl AsFd>,
    flags: PollFlags,
) -> Range<usize> {
    let at = fds.len();
    fds.extend(pipe.map(|pipe| PollFd::new(pipe, flags)));
    at..fds.len()
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(false);
    }
}
