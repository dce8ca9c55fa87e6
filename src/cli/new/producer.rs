//! The kind `{{name}}`: publishes at each interval how often it has done so.
//!
//! It promises that a count which was not taken for publishing is said again. It leaves to others:
//! the interval (the hub calls).

use serde::Deserialize;
use serde_json::json;
use weir_consumer::{Context, Failure, Kind, Producer, Publisher, Result};

/// The kind's own keys of its section; `interval` is the hub's.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    /// Where it publishes.
    topic: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            topic: "org.example.count".into(),
        }
    }
}

struct Counter {
    topic: String,
    published: u64,
}

/// The kind `{{name}}`.
pub fn kind() -> Kind {
    Kind::producer("{{name}}", build)
        .summary("publishes at each interval how often it has done so")
        .sample(include_str!("../sample.toml"))
}

/// Checks settings, and nothing more: `config check` calls it, too.
fn build(settings: Settings, _context: &Context) -> Result<Counter> {
    if settings.topic.is_empty() {
        return Err(Failure::halt(
            "`topic` is empty; give one such as \"org.example.count\"",
        ));
    }
    Ok(Counter {
        topic: settings.topic,
        published: 0,
    })
}

impl Producer for Counter {
    fn poll(&mut self, out: &Publisher) -> Result {
        let body = json!({ "msg": { "count": self.published + 1 } });
        out.publish(&self.topic, serde_json::to_vec(&body)?)?;
        self.published += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weir_consumer::settings::{Mistake, Settings as Toml};
    use weir_consumer::testkit::{recorder, sample_settings};

    use super::*;

    fn built(toml: &str) -> std::result::Result<Box<dyn Producer>, Vec<Mistake>> {
        let context = Context::new("{{name}}", Path::new(""), Publisher::nowhere());
        kind().build_producer(&Toml::from_toml(toml, "{{name}}").unwrap(), &context)
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: Settings = sample_settings(&kind()).parse().unwrap();
        assert_eq!(sample, Settings::default());
    }

    #[test]
    fn bad_settings_are_refused_with_what_would_be_right() {
        let told = |toml: &str| built(toml).err().unwrap()[0].to_string();
        assert!(told("topic = ''").contains("give one such as"));
        assert!(told("topics = ['a']").contains("did you mean `topic`?"));
    }

    #[test]
    fn a_count_that_was_not_taken_is_said_again() {
        let (publisher, published) = recorder();
        let mut counter = built("").unwrap();
        assert!(counter.poll(&Publisher::nowhere()).is_err());
        counter.poll(&publisher).unwrap();
        counter.poll(&publisher).unwrap();
        let published = published.lock().unwrap().clone();
        let expected = [r#"{"msg":{"count":1}}"#, r#"{"msg":{"count":2}}"#]
            .map(|body| ("org.example.count".to_owned(), body.into()));
        assert_eq!(published, expected);
    }
}
