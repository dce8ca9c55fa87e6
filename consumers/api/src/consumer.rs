//! The trait that a consumer is, its relative that makes messages, and how the hub calls them.

use std::any::Any;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::de::DeserializeOwned;

use crate::{Failure, Message, Publisher, Result};

/// Code that handles messages, one after another.
///
/// The hub calls it from one thread only (with `workers = N`, N instances have a thread each), and
/// never calls two methods at once. It may block: it holds up nobody but itself.
///
/// Nothing is settled before the method returns. `Ok` settles what was delivered as consumed; an
/// error says in its [`Verdict`](crate::Verdict) what is to become of it. A panic counts as an
/// attempt, and the instance is thrown away and built anew before the next delivery.
pub trait Consumer: Send {
    /// Handles one message.
    ///
    /// # Errors
    /// Whatever went wrong; `?` on any error means that the message is to be tried again.
    fn consume(&mut self, message: &Message) -> Result;

    /// How many messages [`consume_batch`](Consumer::consume_batch) wants at most; asked once,
    /// after building.
    fn batch_max(&self) -> usize {
        1
    }

    /// Handles several messages that were waiting, in order: all of them or none.
    ///
    /// Called instead of `consume` when `batch_max` is more than 1 and more than one message waits.
    /// When it fails, the hub takes the batch apart and delivers its messages one by one, so that
    /// the verdict falls on the one at fault; so what a failed batch did must be undone (or do no
    /// harm when done again).
    ///
    /// # Errors
    /// As `consume`. [`Verdict::Halt`](crate::Verdict::Halt) stops the consumer with the whole
    /// batch unsettled.
    fn consume_batch(&mut self, batch: &[Message]) -> Result {
        batch.iter().try_for_each(|message| self.consume(message))
    }

    /// Called about once a second between messages, whether any came or not: to flush, to send a
    /// digest.
    ///
    /// # Errors
    /// A failure is logged and counted; `Halt` stops the consumer, every other verdict changes
    /// nothing.
    fn tick(&mut self) -> Result {
        Ok(())
    }
}

/// Code that makes messages: it is called at a configured interval, on a thread of its own.
pub trait Producer: Send {
    /// Looks whether there is something to say, and says it with `out`.
    ///
    /// # Errors
    /// A failure or a panic is logged and counted, and the producer is called again at its next
    /// interval.
    fn poll(&mut self, out: &Publisher) -> Result;
}

/// How a delivery ended.
#[derive(Debug)]
pub enum Delivery {
    /// The consumer returned `Ok`.
    Consumed,
    /// The consumer returned a failure.
    Failed(Failure),
    /// The consumer panicked with this text; the instance must not be called again.
    Panicked(String),
}

/// Delivers messages to a consumer as the hub does: one by `consume`, several by `consume_batch`,
/// panics caught.
#[inline]
pub fn deliver(consumer: &mut dyn Consumer, batch: &[Message]) -> Delivery {
    caught(|| match batch {
        [message] => consumer.consume(message),
        batch => consumer.consume_batch(batch),
    })
}

/// Calls a consumer's `tick` as the hub does, panics caught.
pub fn tick(consumer: &mut dyn Consumer) -> Delivery {
    caught(|| consumer.tick())
}

#[inline]
fn caught(call: impl FnOnce() -> Result) -> Delivery {
    // Unwind safety: after a panic the caller discards the consumer, so nobody sees its broken
    // state.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(())) => Delivery::Consumed,
        Ok(Err(failure)) => Delivery::Failed(failure),
        Err(panic) => Delivery::Panicked(panic_text(&*panic).to_owned()),
    }
}

/// The text of a caught panic.
pub fn panic_text(panic: &(dyn Any + Send)) -> &str {
    (panic.downcast_ref::<&str>().copied())
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a text")
}

/// Makes a consumer of a function.
///
/// ```
/// let mut seen = 0;
/// let counter = weir_consumer::from_fn(move |_message| {
///     seen += 1;
///     Ok(())
/// });
/// # let _ = counter;
/// ```
pub fn from_fn(consume: impl FnMut(&Message) -> Result + Send) -> impl Consumer {
    FromFn(consume)
}

struct FromFn<F>(F);

impl<F: FnMut(&Message) -> Result + Send> Consumer for FromFn<F> {
    fn consume(&mut self, message: &Message) -> Result {
        (self.0)(message)
    }
}

/// Makes a consumer of a function that takes the payload decoded from JSON.
///
/// A payload that is not of this shape is set aside.
///
/// ```
/// use serde::Deserialize;
/// use weir_consumer::{Verdict, decoding, testkit::Harness};
///
/// #[derive(Deserialize)]
/// struct Build { id: u64 }
///
/// let consumer = decoding(|build: Build, _message| {
///     assert_eq!(build.id, 7);
///     Ok(())
/// });
/// let mut harness = Harness::new(consumer);
/// assert_eq!(harness.feed("org.example.build", r#"{"id": 7}"#), Ok(()));
/// assert_eq!(harness.feed("org.example.build", r#"{"id": "x"}"#), Err(Verdict::DeadLetter));
/// ```
pub fn decoding<T: DeserializeOwned + Send>(
    consume: impl FnMut(T, &Message) -> Result + Send,
) -> impl Consumer {
    Decoding(consume, PhantomData)
}

// `fn(T)`: the consumer holds no T, so it is Send whatever T is.
struct Decoding<F, T>(F, PhantomData<fn(T)>);

impl<T: DeserializeOwned, F: FnMut(T, &Message) -> Result + Send> Consumer for Decoding<F, T> {
    fn consume(&mut self, message: &Message) -> Result {
        (self.0)(message.decode()?, message)
    }
}
