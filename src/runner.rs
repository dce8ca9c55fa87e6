//! One worker thread of one consumer: takes messages from the queue, delivers them, settles them.
//!
//! Invariants, each shown in `tests/hub/delivery.rs` or `stopping.rs`:
//! 1. every message taken is settled exactly once (consumed, set aside, or dropped with a reason),
//!    or is left unsettled in the journal for the next start
//! 2. messages are delivered in order, retries included: one that is tried again holds the others
//! 3. a panic costs the consumer its state and the message an attempt, nothing more
//! 4. a halted consumer gets nothing any more
//! 5. consumers of one lane never run at the same time
//! 6. after the deadline the worker ends with the delivery it is at
//! 7. a message is set aside, durably against the end of the process, before it counts as settled
//! 8. after an unclean stop, what is delivered is noted first, so that a message that ends the
//!    process is set aside after its attempts (`journal::Suspects`)
//! 9. messages under that suspicion are delivered one at a time in the whole hub, so that a further
//!    end of the process counts against one of them and not against all that were at work
//! 10. what the consumer's filter refuses is dropped with the filter's reason and reaches no
//!     consumer, also not from the dead letters (`tests/hub/fedmsg.rs`)
//!
//! Left to others: what is in the queue (`queue`), when to stop (`hub`).

pub(crate) mod keyed;
pub mod rate;

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use serde::Deserialize;
use tracing::{debug, error, info, warn};
use weir_consumer::settings::{Mistake, duration};
use weir_consumer::{Consumer, Delivery, Failure, Message, Verdict, deliver, tick};

use crate::dead_letters::{self, Cause, DeadLetters, Letter};
use crate::filter::{Filter, Judged, NewFilter};
use crate::journal::{Slot, Suspect};
use crate::lifecycle::Stop;
use crate::queue::{Piece, Queue, Taken, Taker};
use crate::stats::{Reason, Settled, State, Worker, now_ns};
use rate::Bucket;

/// Deliveries quicker than this are timed one in [`SAMPLE`]: looking at the clock costs more than
/// they do.
const CHEAP: Duration = Duration::from_micros(20);
const SAMPLE: u32 = 128;
const TICK: Duration = Duration::from_secs(1);
/// A delivery under suspicion that takes longer than this does not keep others waiting: it may be
/// stuck, and what ends the process seldom takes so long.
const ALONE: Duration = Duration::from_secs(10);
/// Dead letters that are read at a time to be delivered again.
const LETTERS: usize = 64;

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

/// What went wrong with a message so far.
#[derive(Default)]
struct Trouble {
    attempts: u32,
    /// Each different failure, and how often.
    causes: Vec<Cause>,
    first_ns: u64,
}

impl Trouble {
    fn note(&mut self, text: &str) {
        if self.first_ns == 0 {
            self.first_ns = now_ns();
        }
        Cause::add(&mut self.causes, text, 1);
    }
}

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
    /// Held while a message is delivered that may have ended the process; shared by all of the hub.
    pub(crate) alone: Arc<Mutex<()>>,
    /// Makes an instance.
    pub build: Build,
    /// Makes what says which messages the consumer is not to see, if anything does.
    pub filter: Option<NewFilter>,
    /// Where messages are set aside; without it they are dropped.
    pub dead_letters: Option<Arc<DeadLetters>>,
}

/// What was in flight when the process last ended without a stop, and how far that may reach.
pub(crate) struct Careful {
    /// What this consumer's workers had in flight.
    pub(crate) suspects: Vec<Suspect>,
    /// From here on nothing was in flight.
    pub(crate) until: u64,
    /// What is among the dead letters though its cursor may not have passed it.
    pub(crate) set_aside: Arc<HashSet<(u64, u64)>>,
    /// Where this worker notes what it delivers.
    pub(crate) slot: Slot,
}

impl Careful {
    /// The suspicion on this message, if there is one.
    fn of(&self, message: &Message) -> Option<&Suspect> {
        let seq = message.seq();
        (self.suspects.iter())
            .filter(|suspect| (suspect.first..=suspect.last).contains(&seq))
            .max_by_key(|suspect| suspect.attempts)
    }
}

/// Where a worker's messages come from.
pub(crate) trait Supply: Send {
    /// The next messages, waiting until `deadline` at most.
    fn take(&mut self, worker: &Worker, deadline: Instant) -> Taken;
    /// What is there at once.
    fn take_more(&mut self) -> Option<Piece>;
    /// The next messages in memory, for a worker that ends.
    fn take_rest(&mut self, deadline: Instant) -> Taken;
}

impl Supply for Taker {
    fn take(&mut self, worker: &Worker, deadline: Instant) -> Taken {
        let paused = self.is_paused();
        Taker::take(self, || worker.rest(paused), deadline)
    }
    fn take_more(&mut self) -> Option<Piece> {
        Taker::take_more(self)
    }
    fn take_rest(&mut self, deadline: Instant) -> Taken {
        Taker::take_rest(self, deadline)
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
    filter: Option<Box<dyn Filter>>,
    batch_max: usize,
    /// Panics and failed builds in a row.
    crashes: u32,
    /// Deliveries since the last that was timed, and whether the next has to be.
    untimed: u32,
    tick_due: Instant,
    careful: Option<Careful>,
    /// The dead letter that is being delivered again.
    letter: Option<i64>,
    /// Behind this one more letters may wait to be delivered again.
    letters_after: Option<i64>,
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
        careful: Option<Careful>,
    ) -> Self {
        let batch_max = consumer.batch_max().clamp(1, settings.batch_limit);
        Runner {
            settings,
            queue,
            worker,
            supply,
            stop,
            consumer: Some(consumer),
            filter: settings.filter.as_ref().map(|new| new()),
            batch_max,
            crashes: 0,
            untimed: SAMPLE,
            tick_due: Instant::now() + TICK,
            careful,
            letter: None,
            letters_after: None,
        }
    }

    /// Works until the queue is closed and empty, the consumer halts, or the deadline has come.
    pub(crate) fn run(mut self) {
        let mut gathered: Vec<Message> = Vec::new();
        loop {
            if self.letters_after.is_none() && self.queue.has_letters() {
                self.letters_after = Some(0);
            }
            let mut deadline = self.tick_due;
            if let Some(after) = self.letters_after {
                if self.deliver_letters(after) == Next::End {
                    break;
                }
                // Letters and messages take turns, however many there are of either.
                if self.letters_after.is_some() {
                    deadline = Instant::now();
                }
            }
            let piece = match self.supply.take(self.worker, deadline) {
                Taken::Piece(piece) => piece,
                Taken::TimedOut => match self.rest() {
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

    /// Nothing has come for a while.
    fn rest(&mut self) -> Next {
        if let Some(careful) = &mut self.careful {
            // What was noted last is settled. A note that stays costs a message an attempt, no more.
            let _ = careful.slot.clear();
        }
        self.tick_if_due()
    }

    /// Settles messages in order; on `End`, counts those that are left.
    fn work(&mut self, messages: &[Message]) -> Next {
        let mut left = messages;
        while let Some(first) = left.first() {
            if self.queue.stats().is_paused() && !self.await_steering(first) {
                self.leave(left);
                return Next::End;
            }
            let skipped = left.iter().take_while(|m| self.queue.skips(m)).count();
            if skipped > 0 {
                let skipped = left.split_at(skipped);
                let how = Settled::Dropped(Reason::Skipped);
                self.queue.settle(self.worker, how, skipped.0);
                left = skipped.1;
                continue;
            }
            if self.is_set_aside(first) {
                // Once more would end the process once more, if that is why it is there.
                let first = left.split_at(1);
                self.queue
                    .settle(self.worker, Settled::DeadLettered, first.0);
                left = first.1;
                continue;
            }
            let fit = match self.judge(left) {
                Judged::Fit(fit) => &left[..fit],
                Judged::Refused(reason) => {
                    let first = left.split_at(1);
                    self.queue
                        .settle(self.worker, Settled::Dropped(reason), first.0);
                    left = first.1;
                    if self.tick_if_due() == Next::End {
                        self.leave(left);
                        return Next::End;
                    }
                    continue;
                }
            };
            let (batch, after) = left.split_at(self.batch_len(fit));
            match self.settle(batch) {
                Ok(()) => {
                    self.forget(&batch[0]);
                    left = after;
                }
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

    /// What the filter says of the first of these messages.
    fn judge(&mut self, messages: &[Message]) -> Judged {
        let Some(filter) = &mut self.filter else {
            return Judged::Fit(messages.len());
        };
        // Its time is the consumer's, though nothing is in flight.
        self.worker.hold(messages[0].received_ns(), 0);
        self.worker.state(State::Working);
        filter.judge(messages, self.batch_max)
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
        self.queue.leave(worker, messages);
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
            match self.supply.take_rest(Queue::idle_deadline()) {
                Taken::Piece(piece) => queue.leave(worker, &piece),
                Taken::TimedOut => {}
                Taken::Closed => break,
            }
        }
        // What is left keeps its age: its first message is the one that was last held.
        match queue.stats().depth() {
            0 => worker.release(),
            _ => worker.in_hand(),
        }
        worker.state(State::Stopped);
    }

    /// Delivers until all of the batch is settled. On an early end, says how many are.
    fn settle(&mut self, batch: &[Message]) -> Result<(), usize> {
        let first = &batch[0];
        let mut trouble = Trouble::default();
        if let Some(careful) = &self.careful
            && let Some(suspect) = careful.of(first).filter(|_| self.letter.is_none())
        {
            trouble.attempts = suspect.attempts;
            trouble.note(&format!(
                "it was with the consumer when the process ended without a stop, {} times",
                suspect.attempts
            ));
            let limit = self.settings.retry.attempts;
            if limit > 0 && trouble.attempts >= limit {
                return self.give_up(first, "crash", &trouble).ok_or(0);
            }
        }
        loop {
            let Some(delivery) = self.deliver(batch, trouble.attempts + 1) else {
                return Err(0);
            };
            let (verdict, cause, crashed) = match delivery {
                Delivery::Consumed => {
                    self.crashes = 0;
                    self.settled(Settled::Consumed, batch);
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
            (self.worker.recent).failed(first, &cause.to_string(), now_ns());
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
            trouble.attempts += 1;
            trouble.note(&cause.to_string());
            let reason = match verdict {
                Verdict::Drop => {
                    debug!(consumer = self.settings.name, seq = first.seq(), %cause, "refused");
                    self.settled(Settled::Dropped(Reason::Refused), batch);
                    return Ok(());
                }
                Verdict::DeadLetter => "dead_letter",
                _ if trouble.attempts == self.settings.retry.attempts => "attempts",
                _ => {
                    warn!(
                        consumer = self.settings.name, topic = first.topic(), seq = first.seq(),
                        attempt = trouble.attempts, %cause, "failed; trying again"
                    );
                    self.worker.retried();
                    // After a panic the pause is before the rebuilding.
                    let pause = self.settings.retry.pause(trouble.attempts);
                    self.worker.retrying(1);
                    if !crashed && !self.pause(State::BackingOff, pause) {
                        return Err(0);
                    }
                    if self.queue.stats().is_paused() && !self.await_steering(first) {
                        return Err(0);
                    }
                    if self.queue.skips(first) && self.letter.is_none() {
                        self.worker.retrying(0);
                        self.settled(Settled::Dropped(Reason::Skipped), batch);
                        return Ok(());
                    }
                    continue;
                }
            };
            return self.give_up(first, reason, &trouble).ok_or(0);
        }
    }

    /// Counts what has been settled; a dead letter that was delivered again is none any more.
    fn settled(&self, how: Settled, batch: &[Message]) {
        let Some(letter) = self.letter else {
            return self.queue.settle(self.worker, how, batch);
        };
        if let Some(store) = &self.settings.dead_letters
            && let Err(why) = store.settled(letter)
        {
            let consumer = &self.settings.name;
            warn!(
                consumer,
                letter, why, "this dead letter will come once more"
            );
        }
        self.queue.settle_letter(self.worker, how, &batch[0]);
    }

    /// Sets a message aside and settles it so; none when the worker has to end before it could.
    fn give_up(&self, message: &Message, reason: &str, trouble: &Trouble) -> Option<()> {
        let (consumer, attempts) = (&self.settings.name, trouble.attempts);
        let cause = trouble
            .causes
            .last()
            .map_or("", |cause| cause.text.as_str());
        let batch = std::slice::from_ref(message);
        let Some(store) = &self.settings.dead_letters else {
            error!(
                consumer,
                topic = message.topic(),
                seq = message.seq(),
                attempts,
                cause,
                "given up; the message is lost"
            );
            let reason = match reason {
                "attempts" => Reason::Attempts,
                _ => Reason::DeadLetter,
            };
            self.settled(Settled::Dropped(reason), batch);
            return Some(());
        };
        let mut told = false;
        loop {
            let kept = match self.letter {
                Some(letter) => store
                    .failed_again(letter, reason, &trouble.causes, attempts, now_ns())
                    .map(|()| letter),
                None => store.set_aside(&dead_letters::New {
                    consumer,
                    message,
                    reason,
                    causes: &trouble.causes,
                    attempts,
                    first_failed_ns: trouble.first_ns,
                    last_failed_ns: now_ns(),
                }),
            };
            match kept {
                Ok(letter) => {
                    error!(
                        consumer,
                        topic = message.topic(),
                        seq = message.seq(),
                        attempts,
                        cause,
                        letter,
                        "given up and set aside"
                    );
                    match self.letter {
                        Some(_) => {
                            self.queue
                                .settle_letter(self.worker, Settled::DeadLettered, message);
                        }
                        None => self.queue.settle(self.worker, Settled::DeadLettered, batch),
                    }
                    return Some(());
                }
                Err(why) => {
                    if !std::mem::replace(&mut told, true) {
                        error!(consumer, why, "can't set a message aside; trying again");
                    }
                    if !self.pause(State::BackingOff, TICK) {
                        return None;
                    }
                }
            }
        }
    }

    /// Delivers some of the dead letters of this consumer that were requeued: the next of them.
    fn deliver_letters(&mut self, after: i64) -> Next {
        self.letters_after = None;
        let Some(store) = self.settings.dead_letters.clone() else {
            return Next::GoOn;
        };
        let letters = match store.requeued(&self.settings.name, after, LETTERS) {
            Ok(letters) => letters,
            Err(why) => {
                let consumer = &self.settings.name;
                warn!(
                    consumer,
                    why, "can't read the dead letters to deliver again"
                );
                return Next::GoOn;
            }
        };
        self.letters_after = letters.last().map(|last| last.id);
        for letter in letters {
            if self.deliver_letter(letter) == Next::End {
                return Next::End;
            }
        }
        Next::GoOn
    }

    fn deliver_letter(&mut self, letter: Letter) -> Next {
        let (topic, seq) = (letter.topic.into(), letter.seq);
        let message = Message::again(topic, letter.payload, letter.received_ns, seq);
        self.letter = Some(letter.id);
        if self.queue.stats().is_paused() && !self.await_steering(&message) {
            return Next::End;
        }
        let marked = match &self.settings.dead_letters {
            Some(store) => store.delivering(letter.id),
            None => Ok(false),
        };
        if let Err(why) = &marked {
            let (consumer, letter) = (&self.settings.name, letter.id);
            warn!(consumer, letter, why, "not delivered again now");
        }
        if marked != Ok(true) {
            self.letter = None;
            return Next::GoOn;
        }
        self.worker.letter(message.size());
        let judged = self.filter.as_mut().map(|one| one.judge_again(&message));
        let one = std::slice::from_ref(&message);
        let outcome = match judged {
            Some(Judged::Refused(reason)) => {
                self.settled(Settled::Dropped(reason), one);
                Ok(())
            }
            _ => self.settle(one),
        };
        self.letter = None;
        match outcome {
            Ok(()) => self.tick_if_due(),
            Err(_) => {
                // It is delivered after the next start.
                let one = dead_letters::Filter {
                    ids: vec![letter.id],
                    ..dead_letters::Filter::default()
                };
                if let Some(store) = &self.settings.dead_letters
                    && let Err(why) = store.requeue(&one)
                {
                    let (consumer, letter) = (&self.settings.name, letter.id);
                    warn!(
                        consumer,
                        letter, why, "this dead letter has to be requeued once more"
                    );
                }
                self.worker.hold(message.received_ns(), 0);
                if self.queue.stats().is_halted() {
                    self.worker.state(State::Halted);
                    self.stop.intake.sleep(Duration::MAX);
                }
                let how = Settled::Dropped(Reason::Stopped);
                self.queue.settle_letter(self.worker, how, &message);
                Next::End
            }
        }
    }

    /// Whether a message may be what ended the process.
    fn is_suspect(&self, message: &Message) -> bool {
        let careful = self.careful.as_ref().filter(|_| self.letter.is_none());
        careful.is_some_and(|careful| careful.of(message).is_some())
    }

    /// Whether a message was set aside before the process ended without a stop.
    fn is_set_aside(&self, message: &Message) -> bool {
        let key = (message.seq(), message.received_ns());
        let careful = self.careful.as_ref().filter(|_| !message.replayed());
        careful.is_some_and(|careful| careful.set_aside.contains(&key))
    }

    /// How many of these messages to deliver at a time.
    fn batch_len(&self, messages: &[Message]) -> usize {
        let most = messages.len().min(self.batch_max);
        match &self.careful {
            // One by one, so that the suspicion falls on the one at fault.
            Some(careful) if most > 1 => (messages[..most].iter())
                .position(|message| careful.of(message).is_some() || self.is_set_aside(message))
                .map_or(most, |first| first.max(1)),
            _ => most,
        }
    }

    /// Notes what is about to be delivered, where the end of the process leaves it to be read.
    fn beware(&mut self, batch: &[Message], attempts: u32) {
        let (Some(careful), Some(last)) = (&mut self.careful, batch.last()) else {
            return;
        };
        if self.letter.is_some() {
            return;
        }
        let noted = match batch[0].seq() < careful.until {
            true => careful.slot.set(batch[0].seq(), last.seq(), attempts),
            false => careful.slot.clear(),
        };
        if let Err(error) = noted {
            let consumer = &self.settings.name;
            warn!(consumer, %error, "can't note what is delivered after an unclean stop");
        }
        if batch[0].seq() >= careful.until {
            self.careful = None;
        }
    }

    /// What may have ended the process and is settled is under no suspicion any more.
    fn forget(&mut self, message: &Message) {
        if self.is_suspect(message)
            && let Some(careful) = &mut self.careful
        {
            careful.slot.forget(message.seq());
        }
    }

    /// Waits while the consumer is paused; answers whether to go on. No skip concerns a letter.
    fn await_steering(&self, message: &Message) -> bool {
        self.worker.hold(message.received_ns(), 0);
        self.worker.state(State::Paused);
        let in_hand = Some(message).filter(|_| self.letter.is_none());
        self.queue.await_steering(in_hand)
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
    fn deliver(&mut self, batch: &[Message], attempt: u32) -> Option<Delivery> {
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
        let suspect = self.is_suspect(&batch[0]);
        let alone = match suspect {
            true => {
                worker.hold(head_ns, 0);
                self.enter_for(&settings.alone, ALONE)
            }
            false => None,
        };
        if self.ends_now() {
            return None;
        }
        self.beware(batch, attempt);
        if attempt > 1 {
            worker.retrying(0);
        }
        worker.takes_in_hand(batch[0].seq());
        worker.hold(head_ns, batch.len());
        worker.state(State::Working);
        let consumer = self.consumer.as_deref_mut()?;
        let delivery = if self.untimed < SAMPLE - 1 {
            self.untimed += 1;
            deliver(consumer, batch)
        } else {
            let waited = Duration::from_nanos(now_ns().saturating_sub(head_ns));
            let begin = Instant::now();
            let delivery = deliver(consumer, batch);
            let time = begin.elapsed();
            // The quick ones before it that were not timed count as this one.
            let untimed = self.untimed % SAMPLE; // SAMPLE itself: this one had to be
            let weight = if time < CHEAP { untimed + 1 } else { 1 };
            worker.timed(batch.len(), waited, time, weight);
            let now_ns = now_ns();
            worker.recent.delivered(batch, time, weight, now_ns);
            if matches!(delivery, Delivery::Consumed) {
                worker.succeeded_at(now_ns);
            }
            self.untimed = if time < CHEAP { 0 } else { SAMPLE };
            delivery
        };
        if let Some(careful) = self.careful.as_mut().filter(|_| suspect) {
            // Before another one is delivered, or its end would count against this one too.
            let _ = careful.slot.clear();
        }
        if let Some(alone) = alone {
            MutexGuard::unlock_fair(alone);
        }
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

    /// Waits for a lane; none when the worker has to end instead.
    fn enter<'l>(&self, lane: &'l Mutex<()>) -> Option<MutexGuard<'l, ()>> {
        self.enter_for(lane, Duration::MAX)
    }

    /// Waits for a lane, so long at most.
    fn enter_for<'l>(&self, lane: &'l Mutex<()>, most: Duration) -> Option<MutexGuard<'l, ()>> {
        if let Some(guard) = lane.try_lock() {
            return Some(guard);
        }
        self.worker.state(State::LaneWait);
        let begin = Instant::now();
        loop {
            // Wakes up now and then to see the deadline: the one inside may be stuck.
            let guard = lane.try_lock_for(Duration::from_millis(100));
            let ends = self.stop.deadline.is_raised() || begin.elapsed() >= most;
            if guard.is_some() || ends {
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
        if self.queue.stats().is_paused() {
            return Next::GoOn;
        }
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
