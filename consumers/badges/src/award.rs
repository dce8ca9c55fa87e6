//! An award: its identity, and the message that tells of it.

use serde_json::json;
use uuid::Uuid;

use crate::rules::Rule;

/// The namespace of the ids of awards (RFC 9562, version 5).
const AWARDS: Uuid = uuid::uuid!("6c5f0c0e-3b0f-4a52-9f39-0b1a7d9f6e55");

/// That a recipient got a badge, for the `number`th time, and the message that tells of it.
///
/// The message is kept as it will be sent, so that a second time differs in nothing from the first,
/// whatever became of the rule in between.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Award {
    pub(crate) rule: String,
    pub(crate) recipient: String,
    pub(crate) number: i64,
    /// When the message that made it was received.
    pub(crate) awarded_ns: i64,
    /// The key of that message.
    pub(crate) message: String,
    /// The same for the same award wherever and whenever it is made: of topic, rule, recipient and
    /// number.
    pub(crate) id: String,
    pub(crate) topic: String,
    pub(crate) body: String,
}

impl Award {
    pub(crate) fn new(
        rule: &Rule,
        recipient: &str,
        number: i64,
        awarded_ns: i64,
        message: &str,
        topic: &str,
    ) -> Self {
        // None of them but the recipient, which has no control characters, is free text.
        let identity = format!("{topic}\0{}\0{recipient}\0{number}", rule.id);
        let id = Uuid::new_v5(&AWARDS, identity.as_bytes()).to_string();
        // As Fedora's badges told of awards, so that what reads those reads these.
        let body = json!({
            "topic": topic,
            "msg": {
                "badge": {
                    "badge_id": rule.id,
                    "name": rule.name,
                    "description": rule.description,
                },
                "user": { "username": recipient },
                "number": number,
            },
            "msg_id": id,
            "timestamp": awarded_ns as f64 / 1e9,
        });
        Award {
            rule: rule.id.clone(),
            recipient: recipient.to_owned(),
            number,
            awarded_ns,
            message: message.to_owned(),
            id,
            topic: topic.to_owned(),
            body: body.to_string(),
        }
    }
}
