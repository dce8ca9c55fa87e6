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
    /// When it is UTF-8.
    Text(String),
    /// When it is not.
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
    /// As it is written.
    pub fn of(bytes: Vec<u8>) -> Self {
        match String::from_utf8(bytes) {
            Ok(text) => Payload::Text(text),
            Err(error) => Payload::Bytes(Hex {
                hex: hex(error.as_bytes()),
            }),
        }
    }
}

impl Line {
    /// The message, to be delivered again.
    ///
    /// # Errors
    /// That its payload is no bytes.
    pub fn message(&self) -> Result<Message, String> {
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
            (seq, received_ns) in (0..u64::MAX >> 1, any::<u64>()),
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
