//! The conversation with a child: greeting, messages and their answers, ticks, the end.
//!
//! Invariants:
//!
//! 1. Every message gets one answer, or the child is [`Broken`]; what was answered before that is
//!    known all the same.
//! 2. A child that says what it should not, or nothing in time, is broken.
//! 3. What it publishes is handed on in the order in which it said it, before an answer that it
//!    gave later.
//!
//! Left to others: starting another child (the crate's top), pipes and signals (`process`).

use std::fmt;
use std::io;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use metrics::counter;
use rustix::process::Signal;
use tracing::warn;
use weir_consumer::{Message, Publisher};

use crate::process::{Limits, Process, soon};
use crate::protocol::{self, Answer, Hello, Lines, Said};
use crate::stderr::Stderr;

/// Messages are turned into lines when less than this waits to be written, so that a batch of large
/// ones is not in memory twice.
const AHEAD: usize = 64 << 10;
/// So often is read from a child between messages, at most: one that never ceases to talk must not
/// hold up the messages.
const IDLE_READS: usize = 64;
/// How long a child has after SIGTERM.
const TERMINATED: Duration = Duration::from_secs(1);

/// Why there can be no more conversation.
#[derive(Debug)]
pub(crate) enum Broken {
    /// It ended, or closed its standard output.
    Ended,
    /// It was silent for too long.
    Silent { over: &'static str, time: Duration },
    /// It said what it should not.
    Wrong(String),
    /// The hub can't talk to it.
    Failed(io::Error),
}

/// A child that has been started.
pub(crate) struct Child {
    process: Process,
    consumer: String,
    publisher: Publisher,
    /// How long to wait for the next answer.
    timeout: Duration,
    /// How many messages it takes at a time.
    batch_max: usize,
    wants_ticks: bool,
    next_id: u64,
    has_settled: bool,
}

impl Child {
    /// Starts a process. It is no child to talk to before [`greet`](Child::greet).
    pub(crate) fn start(
        command: &mut Command,
        limits: &Limits,
        lines: Lines,
        log: Stderr,
        consumer: &str,
        publisher: &Publisher,
        timeout: Duration,
    ) -> io::Result<Self> {
        Ok(Child {
            process: Process::start(command, limits, lines, log)?,
            consumer: consumer.to_owned(),
            publisher: publisher.clone(),
            timeout,
            batch_max: 1,
            wants_ticks: false,
            next_id: 1,
            has_settled: false,
        })
    }

    /// Exchanges the first lines.
    pub(crate) fn greet(&mut self, hello: &Hello<'_>, timeout: Duration) -> Result<(), Broken> {
        let line = self.process.input();
        serde_json::to_writer(&mut *line, hello).map_err(|error| Broken::Failed(error.into()))?;
        line.push(b'\n');
        let silent = Broken::Silent {
            over: "did not answer the first line",
            time: timeout,
        };
        let deadline = Instant::now() + timeout;
        match self.hear(deadline)?.ok_or(silent)? {
            Said::Hello {
                version: protocol::VERSION,
                batch_max,
                tick,
            } => {
                self.wants_ticks = tick;
                self.batch_max = batch_max.unwrap_or(usize::MAX).min(hello.batch_max);
                match self.batch_max {
                    0 => Err(Broken::Wrong("it asked for a `batch_max` of 0".into())),
                    _ => Ok(()),
                }
            }
            Said::Hello { version, .. } => Err(Broken::Wrong(format!(
                "it speaks version {version} of the protocol; this hub speaks {}",
                protocol::VERSION
            ))),
            _ => Err(Broken::Wrong(
                "its first line was not {\"weir\":1}".to_owned(),
            )),
        }
    }

    /// Sends messages and waits for their answers, each of which is handed to `answered`.
    pub(crate) fn deliver<'m>(
        &mut self,
        messages: &[&'m Message],
        mut answered: impl FnMut(&'m Message, Answer),
    ) -> Result<(), Broken> {
        for messages in messages.chunks(self.batch_max) {
            let first_id = self.next_id;
            // Those that were sent, by how much later than the first; none once answered.
            let mut sent: Vec<Option<&Message>> = Vec::with_capacity(messages.len());
            let mut answers = 0;
            let mut deadline = Instant::now() + self.timeout;
            let mut all_consumed = true;
            while answers < messages.len() {
                while let Some(message) = messages.get(sent.len())
                    && self.process.unwritten() < AHEAD
                {
                    protocol::write_message(self.process.input(), self.next_id, message)
                        .map_err(Broken::Failed)?;
                    self.next_id += 1;
                    sent.push(Some(message));
                }
                let Some(said) = self.hear_or_write(deadline, sent.len() < messages.len())? else {
                    if Instant::now() < deadline {
                        continue;
                    }
                    return Err(Broken::Silent {
                        over: "gave no answer",
                        time: self.timeout,
                    });
                };
                let Said::Answer { id, answer } = said else {
                    return Err(out_of_place(&said));
                };
                let nth = (id.checked_sub(first_id)).and_then(|nth| usize::try_from(nth).ok());
                let asked = nth.and_then(|nth| sent.get_mut(nth)).and_then(Option::take);
                let Some(message) = asked else {
                    return Err(out_of_place(&Said::Answer { id, answer }));
                };
                self.has_settled |= answer.is_settling();
                all_consumed &= answer.verdict.is_none();
                answered(message, answer);
                answers += 1;
                deadline = Instant::now() + self.timeout;
            }
            if !all_consumed {
                break; // somebody has to look at that before anything else is sent
            }
        }
        Ok(())
    }

    /// Takes what it said unasked, and asks it once if it wants to know that a second has passed.
    pub(crate) fn tick(&mut self) -> Result<Option<Answer>, Broken> {
        for _ in 0..IDLE_READS {
            if let Some(said) = self.heard()? {
                return Err(out_of_place(&said));
            }
            let read = self.process.turn(Instant::now()).map_err(Broken::Failed)?;
            if !read && self.process.is_gone() {
                return Err(Broken::Ended);
            }
            if !read {
                break;
            }
        }
        self.process.catch_up_log();
        if !self.wants_ticks {
            return Ok(None);
        }
        self.process.input().extend_from_slice(protocol::TICK);
        let silent = Broken::Silent {
            over: "did not answer a tick",
            time: self.timeout,
        };
        match self.hear(Instant::now() + self.timeout)?.ok_or(silent)? {
            Said::Tick(answer) => Ok(Some(answer)),
            said => Err(out_of_place(&said)),
        }
    }

    /// What it says next that is not to be published, if it does until then.
    fn hear(&mut self, deadline: Instant) -> Result<Option<Said>, Broken> {
        self.hear_or_write(deadline, false)
    }

    /// The same; nothing, too, as soon as there is room for more to be written.
    fn hear_or_write(&mut self, deadline: Instant, has_more: bool) -> Result<Option<Said>, Broken> {
        loop {
            if let Some(said) = self.heard()? {
                return Ok(Some(said));
            }
            if self.process.is_gone() {
                return Err(Broken::Ended);
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            self.process.turn(deadline).map_err(Broken::Failed)?;
            if has_more && self.process.unwritten() < AHEAD {
                return Ok(None);
            }
        }
    }

    /// What it has said by now that is not to be published, which is done here.
    fn heard(&mut self) -> Result<Option<Said>, Broken> {
        while let Some(line) = self.process.next_line().map_err(Broken::Wrong)? {
            match protocol::read(line).map_err(Broken::Wrong)? {
                Said::Publish { topic, payload } => match self.publisher.publish(&topic, payload) {
                    Ok(()) => counter!("exec_published_total").increment(1),
                    Err(error) => {
                        counter!("exec_unpublished_total").increment(1);
                        let consumer = &self.consumer;
                        warn!(consumer, topic, %error, "can't publish what the child said");
                    }
                },
                said => return Ok(Some(said)),
            }
        }
        Ok(None)
    }

    /// Its number, for people.
    pub(crate) fn pid(&self) -> i32 {
        self.process.pid()
    }

    /// Whether it was of any use.
    pub(crate) fn has_settled(&self) -> bool {
        self.has_settled
    }

    /// Ends it, and says why in a sentence.
    pub(crate) fn end(mut self, why: &Broken) -> String {
        let status = self.process.end(matches!(why, Broken::Ended));
        let told = match (why, status) {
            (Broken::Ended, Some(status)) => format!("the child ended, {}", ending(status)),
            (Broken::Ended, None) => "the child closed its standard output, and was killed".into(),
            (why, _) => format!("the child was killed: {why}"),
        };
        match self.process.last_words() {
            "" => told,
            words => format!("{told}; the last line of its standard error: {words}"),
        }
    }

    /// Lets it end in order; kills it when it does not.
    pub(crate) fn stop(mut self, timeout: Duration) {
        self.process.close_input();
        let in_time = self.await_end(timeout) || {
            self.process.signal(Signal::TERM);
            self.await_end(TERMINATED)
        };
        let status = self.process.end(in_time);
        let consumer = &self.consumer;
        match status {
            Some(status) if status.success() => {}
            Some(status) => warn!(consumer, "the child ended, {}", ending(status)),
            None => warn!(
                consumer,
                "the child was killed: it did not end within {timeout:?} after the end of its \
                 standard input, nor on SIGTERM"
            ),
        }
    }

    /// Waits for its end; what it still publishes is published.
    fn await_end(&mut self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            match self.heard() {
                Ok(Some(_)) => continue, // an answer that comes too late
                Ok(None) => {}
                Err(_) => return false,
            }
            let has_ended = self.process.has_ended();
            let now = Instant::now();
            let until = match self.process.is_gone() {
                _ if has_ended => now, // what it said last may still be in the pipe
                true => soon(),
                false => deadline,
            };
            match self.process.turn(until.min(deadline)) {
                Ok(false) if has_ended => return true,
                Ok(_) if now < deadline => {}
                Ok(_) | Err(_) => return false,
            }
        }
    }
}

fn ending(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    let what = match status.signal().and_then(Signal::from_named_raw) {
        Some(Signal::XCPU) => ", which is that `limits.cpu` is used up",
        _ => "",
    };
    format!("{status}{what}")
}

fn out_of_place(said: &Said) -> Broken {
    Broken::Wrong(match said {
        Said::Answer { id, .. } => {
            format!("it answered {id}, which is no message that waits for an answer")
        }
        Said::Tick(_) => "it answered a tick that was not asked".into(),
        Said::Hello { .. } => "it said its first line again".into(),
        Said::Publish { .. } => "it published".into(),
    })
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Broken::Ended => f.write_str("it ended"),
            Broken::Silent { over, time } => write!(f, "it {over} within {time:?}"),
            Broken::Wrong(what) => f.write_str(what),
            Broken::Failed(error) => write!(f, "the hub can't talk to it: {error}"),
        }
    }
}
