//! The kind `{{name}}`: prints what one field of each message says.
//!
//! It promises that a message is printed, or tried again. It leaves to others: what the text means.

use std::io::Write;

use serde::Deserialize;
use weir_consumer::{Consumer, Context, Failure, Kind, Message, OrVerdict, Result};

/// The kind's own keys of its section; `topics`, `retry` and such are the hub's.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// What is printed: a JSON pointer.
    field: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            field: "/msg".into(),
        }
    }
}

struct Printer {
    field: String,
}

/// The kind `{{name}}`.
pub fn kind() -> Kind {
    Kind::consumer("{{name}}", build)
        .summary("prints what one field of each message says")
        .sample(include_str!("../sample.toml"))
}

/// Checks settings, and nothing more: `config check` calls it, too.
fn build(settings: Settings, _context: &Context) -> Result<Printer> {
    if !settings.field.starts_with('/') {
        return Err(Failure::halt(
            "`field` has to be a JSON pointer such as \"/msg/state\"",
        ));
    }
    Ok(Printer {
        field: settings.field,
    })
}

impl Consumer for Printer {
    fn consume(&mut self, message: &Message) -> Result {
        let json = message.json()?; // what is not JSON is set aside
        let said = json.pointer(&self.field).or_drop()?; // not for us: dropped, and counted
        writeln!(std::io::stdout().lock(), "{} {said}", message.topic())?; // or tried again
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weir_consumer::Verdict;
    use weir_consumer::testkit::{Harness, build, conformance, sample_settings};

    use super::*;

    fn printer(toml: &str) -> Box<dyn Consumer> {
        build(&kind(), toml, Path::new("")).unwrap_or_else(|mistakes| panic!("{}", mistakes[0]))
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: Settings = sample_settings(&kind()).parse().unwrap();
        assert_eq!(sample, Settings::default());
    }

    #[test]
    fn bad_settings_are_refused_with_what_would_be_right() {
        let told = |toml: &str| build(&kind(), toml, Path::new("")).err().unwrap()[0].to_string();
        assert!(told("field = 'msg'").contains("JSON pointer such as"));
        assert!(told("feild = '/msg'").contains("did you mean `field`?"));
    }

    #[test]
    fn what_is_not_for_it_is_dropped_and_what_is_broken_is_set_aside() {
        let mut harness = Harness::new(printer(""));
        assert_eq!(harness.feed("org.example.a", r#"{"msg": "hello"}"#), Ok(()));
        assert_eq!(harness.feed("org.example.a", "{}"), Err(Verdict::Drop));
        assert_eq!(harness.feed("org.example.a", "{"), Err(Verdict::DeadLetter));
    }

    #[test]
    fn it_stands_what_every_consumer_has_to_stand() {
        conformance(|| printer(""));
    }
}
