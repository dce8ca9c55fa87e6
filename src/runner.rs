//! One worker thread of one consumer: takes messages from the queue, delivers them, settles them.
//!
//! Invariants, each shown in `tests/hub/delivery.rs` or `stopping.rs`:
//! 1. every message taken is settled exactly once: consumed, or dropped with a reason
//! 2. messages are delivered in order, retries included: one that is tried again holds the others
//! 3. a panic costs the consumer its state and the message an attempt, nothing more
//! 4. a halted consumer gets nothing any more
//! 5. consumers of one lane never run at the same time
//! 6. after the deadline the worker ends with the delivery it is at
//!
//! Left to others: what is in the queue (`queue`), when to stop (`hub`).

pub(crate) mod keyed;
pub mod rate;

use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use tracing::{debug, error, info, warn};
use weir_consumer::settings::{Mistake, duration};
use weir_consumer::{Consumer, Delivery, Failure, Message, Verdict, deliver, tick};

use crate::lifecycle::Stop;
use crate::queue::{Queue, Taken};
use crate::stats::{Reason, Settled, State, Worker, now_ns};
use rate::Bucket;

/// Deliveries quicker than this are timed one in [`SAMPLE`]: looking at the clock costs more than
/// they do.
const CHEAP: Duration = Duration::from_micros(20);
const SAMPLE: u32 = 128;
const TICK: Duration = Duration::from_secs(1);

/// The `retry` settings of a consumer.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Retry {
    /// How often a message is delivered at most; 0: until it is taken.
    pub attempts: u32,
    /// The pause after the first failure; it doubles with each further one.
    #[serde(deserialize_with = "duration")]
    pub delay: Duration,
    /// The longest pause.
    #[serde(deserialize_with = "duration")]
    pub delay_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Retry {
            attempts: 5,
            delay: Duration::from_millis(100),
            delay_max: Duration::from_secs(30),
        }
    }
}

impl Retry {
    /// The pause after so many failures: doubled each time, and between half and all of that by
    /// chance, so that consumers of one dead server don't come back all at once.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = self
            .delay
            .saturating_mul(1 << failures.saturating_sub(1).min(30));
        // A hash with a random key: one number a pause is not worth a crate of random numbers.
        let chance = (RandomState::new().hash_one(failures) >> 11) as f64 / (1u64 << 53) as f64;
        doubled.min(self.delay_max).mul_f64(0.5 + chance / 2.0)
    }
}

/// Makes a consumer's instance, at the start and after each panic.
pub type Build = Arc<dyn Fn() -> Result<Box<dyn Consumer>, Vec<Mistake>> + Send + Sync>;

/// What the workers of one consumer have in common.
pub struct Settings {
    /// The consumer's name.
    pub name: String,
    /// How failures are tried again.
    pub retry: Retry,
    /// The consumer's rate limit, shared by its workers.
    pub(crate) rate: Option<Mutex<Bucket>>,
    /// No larger batches than this, so that a rate limit is kept within a burst.
    pub(crate) batch_limit: usize,
    /// What consumers of the same lane share.
    pub lane: Option<Arc<Mutex<()>>>,
    /// Makes an instance.
    pub build: Build,
}

/// Where a worker's messages come from.
pub(crate) trait Supply: Send {
    /// The next messages, waiting until `deadline` at most.
    fn take(&mut self, worker: &Worker, deadline: Instant) -> Taken;
    /// What is there at once.
    fn take_more(&mut self) -> Option<crate::queue::Piece>;
}

impl Supply for Arc<Queue> {
    fn take(&mut self, worker: &Worker, deadline: Instant) -> Taken {
        Queue::take(self, || worker.release(), deadline)
    }
    fn take_more(&mut self) -> Option<crate::queue::Piece> {
        Queue::take_more(self)
    }
}

/// One worker. It borrows what it shares, so that a delivery touches no reference count.
pub(crate) struct Runner<'h> {
    settings: &'h Settings,
    queue: &'h Queue,
    worker: &'h Worker,
    supply: Box<dyn Supply>,
    stop: &'h Stop,
    /// The instance; none after a panic until it has been built anew.
    consumer: Option<Box<dyn Consumer>>,
    batch_max: usize,
    /// Panics and failed builds in a row.
    crashes: u32,
    /// Deliveries since the last that was timed, and whether the next has to be.
    untimed: u32,
    tick_due: Instant,
}

/// Whether to go on with the next message.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    GoOn,
    /// The consumer has halted or the deadline has come; what was not settled stays so.
    End,
}

impl<'h> Runner<'h> {
    pub(crate) fn new(
        settings: &'h Settings,
        queue: &'h Queue,
        worker: &'h Worker,
        supply: Box<dyn Supply>,
        stop: &'h Stop,
        consumer: Box<dyn Consumer>,
    ) -> Self {
        let batch_max = consumer.batch_max().clamp(1, settings.batch_limit);
        Runner {
            settings,
            queue,
            worker,
            supply,
            stop,
            consumer: Some(consumer),
            batch_max,
            crashes: 0,
            untimed: SAMPLE,
            tick_due: Instant::now() + TICK,
        }
    }

    /// Works until the queue is closed and empty, the consumer halts, or the deadline has come.
    pub(crate) fn run(mut self) {
        let mut gathered: Vec<Message> = Vec::new();
        loop {
            self.worker.state(State::Idle);
            let piece = match self.supply.take(self.worker, self.tick_due) {
                Taken::Piece(piece) => piece,
                Taken::TimedOut => match self.tick_if_due() {
                    Next::GoOn => continue,
                    Next::End => break,
                },
                Taken::Closed => break,
            };
            let mut messages: &[Message] = &piece;
            if piece.len() < self.batch_max {
                // Small pieces make a poor transaction: fill up with what waits.
                gathered.clear();
                while gathered.len() + piece.len() < self.batch_max
                    && let Some(more) = self.supply.take_more()
                {
                    if gathered.is_empty() {
                        gathered.extend_from_slice(&piece);
                    }
                    gathered.extend_from_slice(&more);
                }
                if !gathered.is_empty() {
                    messages = &gathered;
                }
            }
            let next = self.work(messages);
            gathered.clear();
            if next == Next::End || self.tick_if_due() == Next::End {
                break;
            }
        }
        self.end();
    }

    /// Settles messages in order; on `End`, counts those that are left.
    fn work(&mut self, messages: &[Message]) -> Next {
        let mut left = messages;
        while !left.is_empty() {
            let (batch, after) = left.split_at(left.len().min(self.batch_max));
            match self.settle(batch) {
                Ok(()) => left = after,
                // A batch that was taken apart may have been settled in part.
                Err(settled) => {
                    self.leave(&left[settled..]);
                    return Next::End;
                }
            }
            // Only after a delivery that was timed: the others are too cheap to look at the clock.
            if self.untimed.is_multiple_of(SAMPLE) && self.tick_if_due() == Next::End {
                self.leave(left);
                return Next::End;
            }
        }
        Next::GoOn
    }

    /// Messages that this worker has taken and will not settle in the ordinary way. Those of a
    /// halted consumer stay where an operator sees them until the hub stops.
    fn leave(&self, messages: &[Message]) {
        let Some(first) = messages.first() else {
            return;
        };
        let worker = self.worker;
        worker.hold(first.received_ns(), 0);
        if self.queue.stats().is_halted() {
            worker.state(State::Halted);
            self.stop.intake.sleep(Duration::MAX);
        }
        self.queue
            .settle(worker, Settled::Dropped(Reason::Stopped), messages);
    }

    /// The last of a worker: nothing may stay uncounted.
    fn end(mut self) {
        let (queue, worker) = (self.queue, self.worker);
        if queue.stats().is_halted() {
            worker.state(State::Halted);
            self.stop.intake.sleep(Duration::MAX);
        }
        // After a normal drain there is nothing. Otherwise the queue may not yet be closed: an
        // enqueuer may still be at its last batch.
        loop {
            match self.supply.take(worker, Queue::idle_deadline()) {
                Taken::Piece(piece) => {
                    queue.settle(worker, Settled::Dropped(Reason::Stopped), &piece);
                }
                Taken::TimedOut => {}
                Taken::Closed => break,
            }
        }
        worker.release();
        worker.state(State::Stopped);
    }

    /// Delivers until all of the batch is settled. On an early end, says how many are.
    fn settle(&mut self, batch: &[Message]) -> Result<(), usize> {
        let mut failures = 0;
        loop {
            let Some(delivery) = self.deliver(batch) else {
                return Err(0);
            };
            let (verdict, cause, crashed) = match delivery {
                Delivery::Consumed => {
                    self.crashes = 0;
                    self.queue.settle(self.worker, Settled::Consumed, batch);
                    return Ok(());
                }
                Delivery::Failed(failure) => (failure.verdict(), failure, false),
                Delivery::Panicked(text) => {
                    self.crashes += 1;
                    self.worker.panicked();
                    self.discard();
                    (
                        Verdict::Retry,
                        Failure::retry(format!("panicked: {text}")),
                        true,
                    )
                }
            };
            self.worker.failed();
            failures += 1;
            let first = &batch[0];
            if verdict == Verdict::Halt {
                self.halt(first, &cause);
                return Err(0);
            }
            if batch.len() > 1 {
                debug!(consumer = self.settings.name, %cause, "batch failed; one by one from here");
                for (settled, message) in batch.iter().enumerate() {
                    self.settle(std::slice::from_ref(message))
                        .map_err(|_| settled)?;
                }
                return Ok(());
            }
            let reason = match verdict {
                Verdict::Drop => Reason::Refused,
                Verdict::DeadLetter => Reason::DeadLetter,
                _ if failures == self.settings.retry.attempts => Reason::Attempts,
                _ => {
                    warn!(
                        consumer = self.settings.name, topic = first.topic(), seq = first.seq(),
                        attempt = failures, %cause, "failed; trying again"
                    );
                    self.worker.retried();
                    // After a panic the pause is before the rebuilding.
                    if !crashed
                        && !self.pause(State::BackingOff, self.settings.retry.pause(failures))
                    {
                        return Err(0);
                    }
                    continue;
                }
            };
            if reason == Reason::Refused {
                debug!(consumer = self.settings.name, seq = first.seq(), %cause, "refused");
            } else {
                error!(
                    consumer = self.settings.name, topic = first.topic(), seq = first.seq(),
                    attempts = failures, %cause, "given up; the message is lost"
                );
            }
            self.queue
                .settle(self.worker, Settled::Dropped(reason), batch);
            return Ok(());
        }
    }

    fn halt(&self, message: &Message, cause: &Failure) {
        self.queue.halt();
        self.worker.state(State::Halted);
        error!(
            consumer = self.settings.name, topic = message.topic(), seq = message.seq(), %cause,
            "halted: it gets no more messages until the hub is started again"
        );
    }

    /// One delivery; none when the worker has to end instead.
    fn deliver(&mut self, batch: &[Message]) -> Option<Delivery> {
        let worker = self.worker;
        let head_ns = batch[0].received_ns();
        if self.settings.rate.is_some() {
            worker.hold(head_ns, 0);
            self.pass_rate(batch.len())?;
        }
        if self.consumer.is_none() {
            worker.hold(head_ns, 0);
            self.rebuild()?;
        }
        let settings = self.settings;
        let lane = match &settings.lane {
            Some(lane) => {
                worker.hold(head_ns, 0);
                Some(self.enter(lane)?)
            }
            None => None,
        };
        if self.ends_now() {
            return None;
        }
        worker.hold(head_ns, batch.len());
        worker.state(State::Working);
        let consumer = self.consumer.as_deref_mut()?;
        let delivery = if self.untimed < SAMPLE - 1 {
            self.untimed += 1;
            deliver(consumer, batch)
        } else {
            let begin = Instant::now();
            let delivery = deliver(consumer, batch);
            let time = begin.elapsed();
            // The quick ones before it that were not timed count as this one.
            worker.timed(time, if time < CHEAP { self.untimed + 1 } else { 1 });
            if matches!(delivery, Delivery::Consumed) {
                worker.succeeded_at(now_ns());
            }
            self.untimed = if time < CHEAP { 0 } else { SAMPLE };
            delivery
        };
        if let Some(lane) = lane {
            // To whoever waits for it, in turn: an ordinary unlock lets this thread take it again.
            MutexGuard::unlock_fair(lane);
        }
        Some(delivery)
    }

    /// Whether to deliver nothing any more.
    fn ends_now(&self) -> bool {
        self.queue.stats().is_halted() || self.stop.deadline.is_raised()
    }

    /// Sleeps; answers whether to go on.
    fn pause(&self, state: State, time: Duration) -> bool {
        let worker = self.worker;
        worker.in_hand();
        worker.state(state);
        !self.stop.deadline.sleep(time)
    }

    fn pass_rate(&self, messages: usize) -> Option<()> {
        let Some(bucket) = &self.settings.rate else {
            return Some(());
        };
        loop {
            let taken = bucket.lock().take(messages, Instant::now());
            match taken {
                Ok(()) => return Some(()),
                Err(wait) if self.pause(State::RateLimited, wait) => {}
                Err(_) => return None,
            }
        }
    }

    fn enter<'l>(&self, lane: &'l Mutex<()>) -> Option<MutexGuard<'l, ()>> {
        if let Some(guard) = lane.try_lock() {
            return Some(guard);
        }
        self.worker.state(State::LaneWait);
        let begin = Instant::now();
        loop {
            // Wakes up now and then to see the deadline: the one inside may be stuck.
            let guard = lane.try_lock_for(Duration::from_millis(100));
            if guard.is_some() || self.stop.deadline.is_raised() {
                self.worker.lane_waited(begin.elapsed());
                return guard;
            }
        }
    }

    /// Throws away an instance that has panicked; its destructor may panic as well.
    fn discard(&mut self) {
        let broken = self.consumer.take();
        let dropped = catch_unwind(AssertUnwindSafe(|| drop(broken)));
        if let Err(panic) = dropped {
            let text = weir_consumer::panic_text(&*panic);
            error!(
                consumer = self.settings.name,
                text, "panicked in its destructor"
            );
        }
    }

    /// Builds the consumer anew, with longer and longer pauses while it does not work out.
    fn rebuild(&mut self) -> Option<()> {
        loop {
            if !self.pause(State::Rebuilding, self.settings.retry.pause(self.crashes)) {
                return None;
            }
            let build = &self.settings.build;
            let built = catch_unwind(AssertUnwindSafe(|| build()));
            let why = match built {
                Ok(Ok(consumer)) => {
                    info!(
                        consumer = self.settings.name,
                        panics = self.crashes,
                        "built anew"
                    );
                    self.consumer = Some(consumer);
                    return Some(());
                }
                Ok(Err(mistakes)) => {
                    let mistakes: Vec<String> = mistakes.iter().map(ToString::to_string).collect();
                    mistakes.join("; ")
                }
                Err(panic) => weir_consumer::panic_text(&*panic).to_owned(),
            };
            self.crashes += 1;
            error!(
                consumer = self.settings.name,
                why, "can't be built anew; trying again"
            );
        }
    }

    fn tick_if_due(&mut self) -> Next {
        if self.ends_now() {
            return Next::End;
        }
        let now = Instant::now();
        if now < self.tick_due {
            return Next::GoOn;
        }
        self.tick_due = now + TICK;
        let settings = self.settings;
        let lane = match &settings.lane {
            Some(lane) => match self.enter(lane) {
                Some(guard) => Some(guard),
                None => return Next::End,
            },
            None => None,
        };
        let Some(consumer) = self.consumer.as_deref_mut() else {
            return Next::GoOn;
        };
        let outcome = tick(consumer);
        if let Some(lane) = lane {
            MutexGuard::unlock_fair(lane);
        }
        match outcome {
            Delivery::Consumed => {}
            Delivery::Failed(cause) => {
                self.worker.failed();
                if cause.verdict() == Verdict::Halt {
                    self.queue.halt();
                    error!(consumer = self.settings.name, %cause, "halted by its tick");
                    return Next::End;
                }
                warn!(consumer = self.settings.name, %cause, "tick failed");
            }
            Delivery::Panicked(text) => {
                self.worker.panicked();
                self.crashes += 1;
                self.discard();
                error!(consumer = self.settings.name, text, "panicked in its tick");
            }
        }
        Next::GoOn
    }
}
