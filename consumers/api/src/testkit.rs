//! Testing a consumer without a hub.
//!
//! [`Harness`] feeds messages and shows the verdicts; [`conformance`] checks what every consumer
//! has to stand, whatever it does.
//!
//! ```
//! use weir_consumer::testkit::{Harness, conformance};
//! use weir_consumer::{Verdict, from_fn};
//!
//! let consumer = || from_fn(|message| message.json().map(|_| ()));
//! assert_eq!(Harness::new(consumer()).feed("org.example.a", "{"), Err(Verdict::DeadLetter));
//! conformance(consumer);
//! ```

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use crate::settings::{Mistake, Settings};
use crate::{Consumer, Context, Delivery, Kind, Message, Publisher, Verdict, deliver};

/// Delivers messages to one consumer as the hub does.
pub struct Harness<C: Consumer> {
    consumer: C,
    seq: u64,
    last_failure: Option<String>,
}

impl<C: Consumer> Harness<C> {
    /// A harness around this consumer.
    pub fn new(consumer: C) -> Self {
        Harness {
            consumer,
            seq: 0,
            last_failure: None,
        }
    }

    /// Delivers one message and answers the verdict.
    ///
    /// # Panics
    /// When the consumer panics: a test should see that.
    pub fn feed(
        &mut self,
        topic: impl AsRef<str>,
        payload: impl AsRef<[u8]>,
    ) -> Result<(), Verdict> {
        self.feed_batch([(topic, payload)])
    }

    /// Delivers several messages at once, as `consume_batch` gets them.
    ///
    /// # Panics
    /// When the consumer panics.
    pub fn feed_batch<T: AsRef<str>, P: AsRef<[u8]>>(
        &mut self,
        messages: impl IntoIterator<Item = (T, P)>,
    ) -> Result<(), Verdict> {
        let batch: Vec<Message> = (messages.into_iter())
            .map(|(topic, payload)| {
                self.seq += 1;
                let payload = Bytes::copy_from_slice(payload.as_ref());
                Message::new(topic.as_ref().into(), payload, SystemTime::now(), self.seq)
            })
            .collect();
        self.last_failure = None;
        match deliver(&mut self.consumer, &batch) {
            Delivery::Consumed => Ok(()),
            Delivery::Failed(failure) => {
                self.last_failure = Some(failure.to_string());
                Err(failure.verdict())
            }
            Delivery::Panicked(text) => panic!("the consumer panicked: {text}"),
        }
    }

    /// What the last delivery's failure said.
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    /// The consumer, to look at or to call.
    pub fn consumer(&mut self) -> &mut C {
        &mut self.consumer
    }
}

impl Consumer for Box<dyn Consumer> {
    fn consume(&mut self, message: &Message) -> crate::Result {
        (**self).consume(message)
    }
    fn batch_max(&self) -> usize {
        (**self).batch_max()
    }
    fn consume_batch(&mut self, batch: &[Message]) -> crate::Result {
        (**self).consume_batch(batch)
    }
    fn tick(&mut self) -> crate::Result {
        (**self).tick()
    }
}

/// Builds a consumer of a kind from settings in TOML, as the hub would.
///
/// # Errors
/// The mistakes that `weir config check` would report.
pub fn build(kind: &Kind, toml: &str, data_dir: &Path) -> Result<Box<dyn Consumer>, Vec<Mistake>> {
    let settings = Settings::from_toml(toml, kind.name()).map_err(|mistake| vec![mistake])?;
    let (publisher, _) = recorder();
    kind.build_consumer(&settings, &Context::new(kind.name(), data_dir, publisher))
}

/// The kind's own settings of its sample section: what is left without the keys of the hub.
///
/// # Panics
/// When the sample is not a section `[consumers.NAME]` or `[producers.NAME]`.
pub fn sample_settings(kind: &Kind) -> Settings {
    let sample = match Settings::from_toml(kind.sample_text(), "sample.toml") {
        Ok(sample) => sample,
        Err(mistake) => panic!("{mistake}"),
    };
    let section = (sample.entries())
        .flat_map(|(_, sections)| sections.entries())
        .map(|(_, section)| section.clone())
        .next();
    let Some(section) = section else {
        panic!("the sample of `{}` has no section", kind.name())
    };
    section.split(&crate::HUB_KEYS).1
}

/// What a consumer published, in order.
pub type Published = Arc<Mutex<Vec<(String, Bytes)>>>;

/// A publisher that keeps what it is given, and where it keeps it.
pub fn recorder() -> (Publisher, Published) {
    let published = Published::default();
    let kept = published.clone();
    let publisher = Publisher::new(move |topic, payload| {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push((topic.to_owned(), payload));
        Ok(())
    });
    (publisher, published)
}

/// The payloads that a bus brings sooner or later.
fn awkward_payloads() -> Vec<Vec<u8>> {
    let mut payloads: Vec<Vec<u8>> = [
        &b""[..],
        b"{}",
        b"[]",
        b"null",
        b"0",
        b"\"text\"",
        b"{",
        b"\xff\xfe\x00",
        br#"{"msg": {"id": 1}}"#,
        br#"{"msg": {"id": 1}}"#, // the same again: at least once means that it happens
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    payloads.push(vec![b'x'; 4 << 20]);
    payloads.push([b"[".repeat(100_000), b"]".repeat(100_000)].concat());
    payloads
}

/// Checks what every consumer has to stand: empty, huge, non-JSON, deep and repeated payloads
/// without a panic, and that a batch says the same as its messages one by one.
///
/// # Panics
/// When it does not; the text says with which payload.
pub fn conformance<C: Consumer>(mut build: impl FnMut() -> C) {
    let payloads = awkward_payloads();
    let mut single = Harness::new(build());
    let mut outcomes = Vec::new();
    for payload in &payloads {
        outcomes.push(single.feed("org.example.conformance", payload));
    }
    if let Err(failure) = single.consumer().tick() {
        assert_ne!(
            failure.verdict(),
            Verdict::Halt,
            "a tick halted the consumer: {failure}"
        );
    }

    let batch_max = single.consumer().batch_max();
    assert!(
        batch_max > 0,
        "batch_max is 0, so nothing could ever be delivered"
    );
    for (payloads, outcomes) in payloads
        .chunks(batch_max.max(2))
        .zip(outcomes.chunks(batch_max.max(2)))
    {
        let batch = payloads
            .iter()
            .map(|payload| ("org.example.conformance", payload));
        let together = Harness::new(build()).feed_batch(batch);
        let alone = outcomes.iter().all(Result::is_ok);
        assert_eq!(
            together.is_ok(),
            alone,
            "a batch ended with {together:?}, its messages one by one with {outcomes:?}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_fn;

    #[test]
    #[should_panic(expected = "a batch ended with Ok")]
    fn conformance_catches_a_batch_that_hides_a_failure() {
        struct Hides;
        impl Consumer for Hides {
            fn consume(&mut self, message: &Message) -> crate::Result {
                message.json().map(|_| ())
            }
            fn batch_max(&self) -> usize {
                100
            }
            fn consume_batch(&mut self, _batch: &[Message]) -> crate::Result {
                Ok(())
            }
        }
        conformance(|| Hides);
    }

    #[test]
    #[should_panic(expected = "the consumer panicked")]
    fn conformance_catches_a_panic() {
        conformance(|| {
            from_fn(|message| {
                assert!(!message.payload().is_empty());
                Ok(())
            })
        });
    }

    #[test]
    fn a_publisher_under_test_keeps_what_it_was_given() {
        let (publisher, published) = recorder();
        publisher.publish("a", "b").unwrap();
        assert_eq!(
            *published.lock().unwrap(),
            [("a".to_owned(), Bytes::from("b"))]
        );
    }
}
