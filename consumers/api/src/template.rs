//! Texts made of messages, as IRC lines and mails are.

use std::borrow::Cow;
use std::fmt;

use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value};
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
/// What is undefined is an error and not an empty text; `{{ json.agent | default("somebody") }}`
/// says what to write instead. That `json` itself or something on the way is not there is an error
/// before `default` is asked, so there is a filter `at`, with a JSON pointer as in conditions:
/// `{{ json | at("/msg/agent") | default("somebody") }}` is never an error. The language is that of
/// the crate `minijinja`.
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
        environment.set_debug(true); // so that an error knows what was undefined
        environment.add_filter("at", at);
        environment
            .add_template_owned(NAME, source.clone())
            .map_err(|error| told(&error, &source))?;
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
        let failed = |error| Failure::dead_letter(told(&error, &self.source));
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

fn told(error: &minijinja::Error, source: &str) -> String {
    let line = error.line().unwrap_or(1);
    let expression = error.range().and_then(|range| source.get(range));
    let what = match (error.kind(), error.detail(), expression) {
        (ErrorKind::UndefinedError, Some(detail), _) => detail.to_owned(),
        (ErrorKind::UndefinedError, None, Some(expression)) => {
            format!("`{expression}` is undefined")
        }
        (kind, Some(detail), _) => format!("{kind}: {detail}"),
        (kind, None, Some(expression)) => format!("{kind} in `{expression}`"),
        (kind, None, None) => kind.to_string(),
    };
    format!("template, line {line}: {what}")
}

/// The filter: what is at this JSON pointer, or undefined, however much of the way is not there.
fn at(value: &Value, pointer: &str) -> std::result::Result<Value, minijinja::Error> {
    if !(pointer.is_empty() || pointer.starts_with('/')) {
        return Err(minijinja::Error::new(
            ErrorKind::InvalidOperation,
            format!("`at` expects a JSON pointer such as \"/msg/user\", found {pointer:?}"),
        ));
    }
    let mut found = value.clone();
    for key in pointer.split('/').skip(1) {
        let key = key.replace("~1", "/").replace("~0", "~");
        found = match found.kind() {
            ValueKind::Map => found.get_attr(&key)?,
            ValueKind::Seq => match key.parse::<usize>() {
                Ok(index) if index.to_string() == key => found.get_item_by_index(index)?,
                _ => Value::UNDEFINED,
            },
            _ => Value::UNDEFINED,
        };
    }
    Ok(found)
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
            "template, line 1: `json.who` is undefined"
        );
        assert_eq!(
            failure("\n{{ json.msg.who | default('nobody') }}", "{}"),
            "template, line 2: `json.msg` is undefined"
        );
        assert_eq!(
            failure("{{ json.who }}", "no json"),
            "template, line 1: `json` is undefined"
        );
        assert_eq!(
            failure("{{ json | at('/who') }}", "{}"),
            "template, line 1: `at('/who')` is undefined"
        );
        let given = Template::new("{{ json.who | default('nobody') }}").unwrap();
        assert_eq!(given.of(&message("{}")).unwrap(), "nobody");
    }

    #[test]
    fn what_is_at_a_pointer_may_be_undefined_anywhere_on_the_way() {
        let at = |pointer: &str, payload: &'static str| {
            let template = format!("{{{{ json | at('{pointer}') | default('-') }}}}");
            Template::new(template).unwrap().of(&message(payload))
        };
        let deep = r#"{"a": {"b": [1, {"c/d": 2}], "": 3}}"#;
        for (pointer, payload, expected) in [
            ("/a/b/0", deep, "1"),
            ("/a/b/1/c~1d", deep, "2"),
            ("/a/", deep, "3"),
            ("/a/b/01", deep, "-"),
            ("/a/b/2", deep, "-"),
            ("/a/b/c", deep, "-"),
            ("/a/b/0/c", deep, "-"),
            ("/a/x/y/z", deep, "-"),
            ("/a/b", "{}", "-"),
            ("/a/b", "7", "-"),
            ("/a/b", "null", "-"),
            ("/a/b", "no json", "-"),
            ("/a/b", "", "-"),
            ("", "7", "7"),
        ] {
            assert_eq!(
                at(pointer, payload).unwrap(),
                expected,
                "{pointer} {payload}"
            );
        }
        let told = at("a", "{}").unwrap_err().to_string();
        assert!(
            told.contains("such as \"/msg/user\", found \"a\""),
            "{told}"
        );
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
