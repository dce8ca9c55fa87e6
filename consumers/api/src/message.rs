//! One message, as every consumer sees it.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::{Failure, Result};

/// A message off the bus: its topic, its payload, and when the hub took it in.
///
/// A clone shares everything with the original, the parsed JSON included, and costs one reference
/// count; however many consumers get a message, it is in memory once.
///
/// ```
/// use std::time::SystemTime;
/// use weir_consumer::Message;
///
/// let message = Message::new("org.example.build".into(), r#"{"id": 7}"#.into(), SystemTime::now(), 1);
/// assert_eq!(message.json()?["id"], 7);
/// # Ok::<(), weir_consumer::Failure>(())
/// ```
#[derive(Clone)]
pub struct Message(Arc<Inner>);

// 96 bytes with the counts of the Arc: with the payload's own allocation that leaves a message
// under payload + 150 bytes (benches/README.md), so a new field here has to earn its place.
struct Inner {
    topic: Arc<str>,
    payload: Bytes,
    received_ns: u64,
    /// With [`REPLAYED`] as its top bit: a flag of its own would cost every message eight bytes.
    seq: u64,
    json: OnceLock<Box<std::result::Result<Value, serde_json::Error>>>,
}

/// Set in the stored number of a message that is delivered again because of a replay.
const REPLAYED: u64 = 1 << 63;

impl Message {
    /// A message that was taken in at `received`; `seq` is its number in the hub's order of intake.
    pub fn new(topic: Arc<str>, payload: Bytes, received: SystemTime, seq: u64) -> Self {
        // A clock before 1970 is a broken clock; the age of its messages is then wrong, but nothing
        // else is.
        let since_1970 = received.duration_since(UNIX_EPOCH).unwrap_or_default();
        Message::at_ns(topic, payload, since_1970.as_nanos() as u64, seq)
    }

    /// The same with the time as nanoseconds since 1970.
    #[inline]
    pub fn at_ns(topic: Arc<str>, payload: Bytes, received_ns: u64, seq: u64) -> Self {
        Message(Arc::new(Inner {
            topic,
            payload,
            received_ns,
            seq: seq & !REPLAYED,
            json: OnceLock::new(),
        }))
    }

    /// The same for a message that is delivered again because of a replay.
    pub fn again(topic: Arc<str>, payload: Bytes, received_ns: u64, seq: u64) -> Self {
        Message(Arc::new(Inner {
            topic,
            payload,
            received_ns,
            seq: seq | REPLAYED,
            json: OnceLock::new(),
        }))
    }

    /// The routing name.
    #[inline]
    pub fn topic(&self) -> &str {
        &self.0.topic
    }

    /// The bytes as they came, after decompression if the backend was told to decompress.
    #[inline]
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// When the hub took the message off the bus, by the hub's clock.
    pub fn received(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(self.0.received_ns)
    }

    /// The same as nanoseconds since 1970.
    #[inline]
    pub fn received_ns(&self) -> u64 {
        self.0.received_ns
    }

    /// Its number in the hub's order of intake, from 1.
    #[inline]
    pub fn seq(&self) -> u64 {
        self.0.seq & !REPLAYED
    }

    /// Whether it was settled before and is delivered again because somebody asked for a replay.
    #[inline]
    pub fn replayed(&self) -> bool {
        self.0.seq & REPLAYED != 0
    }

    /// The bytes that a queue's byte limit counts for this message: topic and payload.
    #[inline]
    pub fn size(&self) -> usize {
        self.0.topic.len() + self.0.payload.len()
    }

    /// The payload as JSON, parsed on first use and once for all consumers.
    ///
    /// # Errors
    /// [`Verdict::DeadLetter`](crate::Verdict::DeadLetter) when the payload is not JSON: it will
    /// not become JSON by being tried again.
    pub fn json(&self) -> Result<&Value> {
        let parsed = self
            .0
            .json
            .get_or_init(|| Box::new(serde_json::from_slice(&self.0.payload)));
        parsed.as_ref().as_ref().map_err(not_json)
    }

    /// The payload decoded from JSON into `T`, which may borrow from the message.
    ///
    /// # Errors
    /// [`Verdict::DeadLetter`](crate::Verdict::DeadLetter) when the payload is not JSON or not of
    /// this shape.
    pub fn decode<'m, T: Deserialize<'m>>(&'m self) -> Result<T> {
        serde_json::from_slice(&self.0.payload).map_err(|error| not_json(&error))
    }
}

fn not_json(error: &serde_json::Error) -> Failure {
    Failure::dead_letter(format!("the payload can't be decoded as JSON: {error}"))
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Message #{} {} ({} bytes)",
            self.seq(),
            self.topic(),
            self.payload().len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Verdict;

    fn message(payload: &'static str) -> Message {
        Message::new("t".into(), payload.into(), SystemTime::now(), 1)
    }

    #[test]
    fn json_is_parsed_once_for_all_clones() {
        let first = message(r#"{"a": [1, 2]}"#);
        let second = first.clone();
        assert!(std::ptr::eq(first.json().unwrap(), second.json().unwrap()));
    }

    #[test]
    fn what_is_not_json_is_for_the_dead_letters() {
        assert_eq!(
            message("{").json().unwrap_err().verdict(),
            Verdict::DeadLetter
        );
        assert_eq!(
            message("7").decode::<String>().unwrap_err().verdict(),
            Verdict::DeadLetter
        );
    }

    #[test]
    fn decode_borrows_from_the_payload() {
        let message = message(r#"{"name": "x"}"#);
        #[derive(Deserialize)]
        struct Named<'m> {
            name: &'m str,
        }
        let named: Named<'_> = message.decode().unwrap();
        assert!(
            message
                .payload()
                .as_ptr_range()
                .contains(&named.name.as_ptr())
        );
    }

    #[test]
    fn a_replayed_message_keeps_its_number() {
        let replayed = Message::again("t".into(), Bytes::new(), 5, 7);
        assert_eq!((replayed.seq(), replayed.replayed()), (7, true));
        let fresh = Message::at_ns("t".into(), Bytes::new(), 5, 7);
        assert_eq!((fresh.seq(), fresh.replayed()), (7, false));
    }

    #[test]
    fn the_time_of_intake_survives_to_the_nanosecond() {
        let now = SystemTime::now();
        assert_eq!(
            Message::new("t".into(), Bytes::new(), now, 1).received(),
            now
        );
    }
}
