//! A message as a line of JSON: how it leaves an archive, and how a consumer is fed with it again.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use weir_consumer::Message;

use crate::dead_letters::hex;

/// A message of an archive.
///
/// ```
/// use weir::feed::Line;
///
/// let line = r#"{"seq":7,"hub":"fedora","received_ns":5,"topic":"org.example.a","payload":{"hex":"ff00"}}"#;
/// let read: Line = serde_json::from_str(line)?;
/// assert_eq!(read.message()?.payload(), &b"\xff\x00"[..]);
/// assert_eq!(serde_json::to_string(&read)?, line);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Its number in the order of intake.
    pub seq: u64,
    /// The hub that took it in.
    #[serde(default)]
    pub hub: String,
    /// When, in nanoseconds since 1970.
    pub received_ns: u64,
    /// Its topic.
    pub topic: String,
    /// Its payload.
    pub payload: Payload,
}

/// A payload in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, or {\"hex\": \"two digits for each byte\"}"
)]
pub enum Payload {
    /// As it is.
    Text(String),
    /// When it is no UTF-8, or this is shorter.
    Bytes(Hex),
}

/// Bytes in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hex {
    /// Two digits for each.
    pub hex: String,
}

impl Payload {
    /// As it is written: in no more than two characters a byte, and a few.
    pub fn of(bytes: Vec<u8>) -> Self {
        let hex = |bytes: &[u8]| Payload::Bytes(Hex { hex: hex(bytes) });
        match String::from_utf8(bytes) {
            // Of `{"hex":""}` a text needs only the quotes.
            Ok(text) if escaped(&text) <= 2 * text.len() + 8 => Payload::Text(text),
            Ok(text) => hex(text.as_bytes()),
            Err(error) => hex(error.as_bytes()),
        }
    }
}

/// How many bytes a text has in JSON, without its quotes.
fn escaped(text: &str) -> usize {
    let length = |byte| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(length).sum()
}

impl Line {
    /// The message, to be delivered again.
    ///
    /// # Errors
    /// That its payload is no bytes, or its numbers are none that a hub gives.
    pub fn message(&self) -> Result<Message, String> {
        // Signed in an archive: a larger one would be stored as another.
        for (key, number) in [("seq", self.seq), ("received_ns", self.received_ns)] {
            if i64::try_from(number).is_err() {
                return Err(format!("`{key}` is more than {}", i64::MAX));
            }
        }
        let payload: Bytes = match &self.payload {
            Payload::Text(text) => text.clone().into(),
            Payload::Bytes(Hex { hex }) => bytes(hex).ok_or("`hex` has to be two digits a byte")?,
        };
        let topic = self.topic.as_str().into();
        Ok(Message::again(topic, payload, self.received_ns, self.seq))
    }
}

fn bytes(hex: &str) -> Option<Bytes> {
    let (pairs, []) = hex.as_bytes().as_chunks::<2>() else {
        return None;
    };
    let digit = |digit: u8| char::from(digit).to_digit(16);
    let byte = |[high, low]: &[u8; 2]| u8::try_from(digit(*high)? * 16 + digit(*low)?).ok();
    pairs.iter().map(byte).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_message_comes_back_as_it_was(
            (seq, received_ns) in (0..=u64::MAX >> 1, 0..=u64::MAX >> 1),
            (hub, topic) in any::<(String, String)>(),
            payload in any::<Vec<u8>>(),
        ) {
            let line = Line { seq, hub, received_ns, topic, payload: Payload::of(payload.clone()) };
            let text = serde_json::to_string(&line).unwrap();
            prop_assert!(!text.contains('\n'));
            let message = serde_json::from_str::<Line>(&text).unwrap().message().unwrap();
            prop_assert_eq!(&message.payload()[..], &payload[..]);
            prop_assert_eq!((message.topic(), message.seq()), (&*line.topic, seq));
            prop_assert_eq!((message.received_ns(), message.replayed()), (received_ns, true));
        }
    }

    proptest! {
        #[test]
        fn a_line_is_at_most_twice_as_long_as_its_payload(
            payload in "[a-c\"\\x00-\\x20\\\\\u{7f}é]{0,40}",
        ) {
            let text = serde_json::to_string(&Payload::Text(payload.clone())).unwrap();
            prop_assert_eq!(escaped(&payload) + 2, text.len());
            let hex = 2 * payload.len() + "{'hex':''}".len();
            let line = serde_json::to_string(&Payload::of(payload.into_bytes())).unwrap();
            prop_assert_eq!(line.len(), text.len().min(hex));
        }
    }

    #[test]
    fn numbers_that_no_archive_has_are_refused() {
        let line = |seq: u64, received_ns: u64| Line {
            seq,
            hub: String::new(),
            received_ns,
            topic: "t".into(),
            payload: Payload::Text(String::new()),
        };
        let (most, more) = (u64::MAX >> 1, 1 << 63);
        assert!(line(most, most).message().is_ok());
        let why = line(more, 1).message().unwrap_err();
        assert_eq!(why, "`seq` is more than 9223372036854775807");
        let why = line(1, more).message().unwrap_err();
        assert_eq!(why, "`received_ns` is more than 9223372036854775807");
    }

    #[test]
    fn what_is_no_payload_is_refused() {
        let line = |payload: &str| {
            let text = format!(r#"{{"seq":1,"received_ns":2,"topic":"t","payload":{payload}}}"#);
            let line: Line = serde_json::from_str(&text).map_err(|error| error.to_string())?;
            line.message().map(drop)
        };
        assert_eq!(line(r#""text""#), Ok(()));
        assert_eq!(line(r#"{"hex": ""}"#), Ok(()));
        for wrong in [
            "7",
            r#"{"hex": "f"}"#,
            r#"{"hex": "fg"}"#,
            r#"{"hex": "é0"}"#,
            r#"{"a": 1}"#,
        ] {
            assert!(line(wrong).is_err(), "{wrong}");
        }
    }
}
