//! What the author of a weir consumer needs, and nothing else.
//!
//! A consumer is a type with one method. The hub takes messages off the bus, queues them, and calls
//! that method on a thread of the consumer's own, one message after another:
//!
//! ```
//! use weir_consumer::{Consumer, Message, OrVerdict, Result};
//!
//! struct Longest(usize);
//!
//! impl Consumer for Longest {
//!     fn consume(&mut self, message: &Message) -> Result {
//!         let text = std::str::from_utf8(message.payload()).or_drop()?; // not text: not for us
//!         self.0 = self.0.max(text.len());
//!         Ok(())
//!     }
//! }
//!
//! // The test kit delivers as the hub does, panics included.
//! let mut harness = weir_consumer::testkit::Harness::new(Longest(0));
//! assert_eq!(harness.feed("org.example.a", "hello"), Ok(()));
//! assert_eq!(harness.feed("org.example.a", b"\xff"), Err(weir_consumer::Verdict::Drop));
//! ```
//!
//! What the hub promises a consumer: messages come in the order in which they were taken in; a
//! message that was not consumed is retried, dropped, set aside or stops the consumer, as its
//! [`Verdict`] says, and is counted; a panic costs the consumer its state (it is built anew), never
//! the hub. What it leaves to the consumer: its connections (connect in `consume` when there is
//! none, discard on error) and being ready to see a message twice.
//!
//! Modules stand in the order in which they may use one another.

mod failure;
mod message;

mod publisher;

mod consumer;
pub mod endpoint;
pub mod settings;

#[cfg(feature = "conditions")]
pub mod conditions;
mod secret;
#[cfg(feature = "template")]
pub mod template;

mod kind;

pub mod testkit;

pub use bytes::Bytes;
pub use consumer::{Consumer, Delivery, Producer, decoding, deliver, from_fn, panic_text, tick};
pub use failure::{Failure, OrVerdict, Result, Verdict};
pub use kind::{Context, HUB_KEYS, Kind, Role};
pub use message::Message;
pub use publisher::{PublishError, Publisher};
pub use secret::{Secret, SecretText};
#[cfg(feature = "template")]
pub use template::Template;

// Compiles and runs the examples of the authoring guide.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/consumers.md")]
struct AuthoringGuide;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/patterns/batching.md")]
struct Batching;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/patterns/connections.md")]
struct Connections;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/patterns/keyed-order.md")]
struct KeyedOrder;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/patterns/lanes.md")]
struct Lanes;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/patterns/metrics.md")]
struct Metrics;

#[cfg(doctest)]
#[doc = include_str!("../../../docs/patterns/testing.md")]
struct Testing;
