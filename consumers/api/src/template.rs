//! Texts made of messages, as IRC lines and mails are.

use std::borrow::Cow;
use std::fmt;

use minijinja::value::Serde;
use minijinja::{Environment, UndefinedBehavior};
use serde::{Deserialize, Serialize};

use crate::{Failure, Message, Result};

/// No rendering takes more steps: a template that loops over a huge message must end.
const STEPS_MAX: u64 = 100_000;
/// No rendered text is longer.
const BYTES_MAX: usize = 1 << 20;
const NAME: &str = "template";

/// A template in the language of Jinja2, read from the settings and checked there.
///
/// A message's template knows `topic`, `payload` (as text, with what is not UTF-8 replaced), `json`
/// (the payload as JSON, undefined when it is none), `received` (seconds since 1970) and `seq`.
/// What is undefined is an error and not an empty text; `{{ json.msg.agent | default("somebody") }}`
/// says what to write instead. The language is that of the crate `minijinja`.
///
/// ```
/// use std::time::SystemTime;
/// use weir_consumer::{Message, Template, Verdict};
///
/// let template = Template::new("{{ json.who }} did {{ topic | replace('org.', '') }}").unwrap();
/// let message = |json: &'static str| {
///     Message::new("org.build".into(), json.into(), SystemTime::now(), 1)
/// };
/// assert_eq!(template.of(&message(r#"{"who": "Ann"}"#)).unwrap(), "Ann did build");
/// assert_eq!(template.of(&message("{}")).unwrap_err().verdict(), Verdict::DeadLetter);
/// ```
#[derive(Clone)]
pub struct Template {
    source: String,
    environment: Environment<'static>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// What is wrong with it, and in which line.
    pub fn new(source: impl Into<String>) -> std::result::Result<Self, String> {
        let source = source.into();
        let mut environment = Environment::new();
        environment.set_undefined_behavior(UndefinedBehavior::SemiStrict);
        environment.set_fuel(Some(STEPS_MAX));
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(|error| told(&error))?;
        Ok(Template {
            source,
            environment,
        })
    }

    /// The text for a message.
    ///
    /// # Errors
    /// [`Verdict::DeadLetter`](crate::Verdict::DeadLetter): the message lacks what the template
    /// asks for, or the text would be longer than 1 MiB.
    pub fn of(&self, message: &Message) -> Result<String> {
        self.render(Variables::of(message))
    }

    /// The text for other variables: whatever serialises as a map.
    ///
    /// # Errors
    /// As [`of`](Template::of).
    pub fn render(&self, variables: impl Serialize) -> Result<String> {
        let failed = |error| Failure::dead_letter(told(&error));
        let template = self.environment.get_template(NAME).map_err(failed)?;
        let text = template.render(Serde(variables)).map_err(failed)?;
        match text.len() <= BYTES_MAX {
            true => Ok(text),
            false => Err(Failure::dead_letter(format!(
                "the template makes a text of {} bytes; at most {BYTES_MAX} are sent",
                text.len()
            ))),
        }
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }
}

fn told(error: &minijinja::Error) -> String {
    let line = error.line().unwrap_or(1);
    let what = error.detail().map_or_else(
        || error.kind().to_string(),
        |detail| format!("{}: {detail}", error.kind()),
    );
    format!("template, line {line}: {what}")
}

/// What a template knows of a message; a part of what a digest's template gets.
#[derive(Serialize)]
pub struct Variables<'m> {
    topic: &'m str,
    payload: Cow<'m, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<&'m serde_json::Value>,
    received: f64,
    seq: u64,
}

impl<'m> Variables<'m> {
    /// Those of this message.
    pub fn of(message: &'m Message) -> Self {
        Variables {
            topic: message.topic(),
            payload: String::from_utf8_lossy(message.payload()),
            json: message.json().ok(),
            received: message.received_ns() as f64 / 1e9,
            seq: message.seq(),
        }
    }
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        Template::new(String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

impl PartialEq for Template {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Template({:?})", self.source)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::Verdict;

    fn message(payload: impl Into<crate::Bytes>) -> Message {
        Message::new("org.example.a".into(), payload.into(), SystemTime::now(), 7)
    }

    fn failure(template: &str, payload: &'static str) -> String {
        let failure = Template::new(template)
            .unwrap()
            .of(&message(payload))
            .unwrap_err();
        assert_eq!(failure.verdict(), Verdict::DeadLetter);
        failure.to_string()
    }

    #[test]
    fn a_message_can_be_told() {
        let template =
            "{{ topic }} #{{ seq }}: {{ json.a[1] }}{% if json.b is defined %}!{% endif %}";
        let text = Template::new(template)
            .unwrap()
            .of(&message(r#"{"a": [1, 2]}"#));
        assert_eq!(text.unwrap(), "org.example.a #7: 2");
        let text = Template::new("{{ payload }}").unwrap();
        assert_eq!(text.of(&message(&b"a\xff"[..])).unwrap(), "a\u{fffd}");
    }

    #[test]
    fn what_is_not_there_is_an_error_unless_a_default_is_given() {
        assert_eq!(
            failure("{{ json.who }}", "{}"),
            "template, line 1: undefined value"
        );
        assert_eq!(
            failure("\n{{ json.who }}", "no json"),
            "template, line 2: undefined value"
        );
        let given = Template::new("{{ json.who | default('nobody') }}").unwrap();
        assert_eq!(given.of(&message("{}")).unwrap(), "nobody");
    }

    #[test]
    fn a_template_that_would_never_end_ends() {
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}.{% endfor %}{% endfor %}";
        assert!(failure(endless, "{}").contains("fuel"));
        let long = "{% set a = 'x' * 99999 %}{% for b in range(99) %}{{ a }}{% endfor %}";
        let told = failure(long, "{}");
        assert!(told.contains("at most 1048576"), "{told}");
    }

    #[test]
    fn a_mistake_in_a_template_is_told_with_its_line() {
        let told = Template::new("a\n{{ b").unwrap_err();
        assert!(told.starts_with("template, line 2: syntax error"), "{told}");
    }
}
