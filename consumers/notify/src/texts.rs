//! What people read: templates, for all or a rule's own, and what they are filled with.
//!
//! A text that can't be made, because the message lacks what the template asks for, does not keep a
//! person from being told: the topic is, and that there is no text.

use serde::{Deserialize, Serialize};
use weir_consumer::template::Variables;
use weir_consumer::{Message, Result, Template};

use crate::outbox::Parcel;
use crate::users::Match;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Texts {
    subject: Template,
    mail: Template,
    line: Template,
    digest_subject: Template,
    digest: Template,
}

impl Default for Texts {
    fn default() -> Self {
        Texts {
            subject: own("{{ topic }}"),
            mail: own("{{ payload[:20000] }}\n\n{{ topic }}\n{{ time }}\n"),
            line: own("{{ topic }}: {{ payload[:300] }}"),
            digest_subject: own("{{ count }} messages, the last of {{ messages[-1].topic }}"),
            digest: own(
                "{% for message in messages %}{{ message.time }} {{ message.subject }}\n{{ \
                 message.text }}\n\n{% endfor %}",
            ),
        }
    }
}

/// One of our own, of which a test makes sure that it is right.
fn own(source: &str) -> Template {
    match Template::new(source) {
        Ok(template) => template,
        Err(problem) => unreachable!("{source}: {problem}"),
    }
}

/// What a template knows of a message.
#[derive(Serialize)]
struct OfMessage<'m> {
    #[serde(flatten)]
    message: Variables<'m>,
    time: String,
    user: &'m str,
}

/// What a digest's template knows.
#[derive(Serialize)]
struct OfDigest<'m> {
    user: &'m str,
    count: usize,
    messages: Vec<Digested<'m>>,
}

#[derive(Serialize)]
struct Digested<'m> {
    topic: &'m str,
    received: f64,
    time: String,
    seq: u64,
    subject: &'m str,
    text: &'m str,
}

/// A subject and a text, and why they are not what they should be.
#[derive(Debug, PartialEq)]
pub(crate) struct Text {
    pub(crate) subject: String,
    pub(crate) text: String,
    pub(crate) problem: Option<String>,
}

impl Text {
    fn made(
        subject: Result<String>,
        text: Result<String>,
        instead: impl Fn() -> [String; 2],
    ) -> Self {
        match (subject, text) {
            (Ok(subject), Ok(text)) => Text {
                subject,
                text,
                problem: None,
            },
            (Err(problem), _) | (_, Err(problem)) => {
                let [subject, text] = instead();
                Text {
                    subject,
                    text: format!("{text}\n({problem})"),
                    problem: Some(problem.to_string()),
                }
            }
        }
    }
}

impl Texts {
    /// What somebody is told of a message.
    pub(crate) fn of(&self, message: &Message, told: &Match<'_>) -> Text {
        let variables = OfMessage {
            message: Variables::of(message),
            time: time(message.received_ns()),
            user: &told.user.name,
        };
        let mail = told.route == crate::users::Route::Email;
        let usual = if mail { &self.mail } else { &self.line };
        let subject = match mail {
            true => (told.subject.unwrap_or(&self.subject)).render(&variables),
            false => Ok(String::new()),
        };
        let text = told.format.unwrap_or(usual).render(&variables);
        let topic = message.topic();
        Text::made(subject, text, || [topic.to_owned(), topic.to_owned()])
    }

    /// A digest.
    pub(crate) fn digest(&self, user: &str, parcel: &Parcel) -> Text {
        let messages: Vec<Digested<'_>> = (parcel.notifications.iter())
            .map(|one| Digested {
                topic: &one.topic,
                received: one.received_ns as f64 / 1e9,
                time: time(one.received_ns),
                seq: one.seq,
                subject: &one.subject,
                text: &one.text,
            })
            .collect();
        let variables = OfDigest {
            user,
            count: messages.len(),
            messages,
        };
        let subject = self.digest_subject.render(&variables);
        let text = self.digest.render(&variables);
        Text::made(subject, text, || {
            let texts: Vec<&str> = (parcel.notifications.iter())
                .map(|one| one.text.as_str())
                .collect();
            [format!("{} messages", texts.len()), texts.join("\n\n")]
        })
    }
}

/// As people write it, in UTC.
fn time(received_ns: u64) -> String {
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(received_ns);
    // A clock that is right has no time beyond what can be written.
    let text = humantime::format_rfc3339_seconds(time).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}
