//! The kind `heartbeat`: publishes a message at each interval, as a sign of life.
//!
//! ```json
//! {"name": "heartbeat", "i": 1, "timestamp": 1700000000.25}
//! ```
//!
//! `name` is the name of the instance. `i` counts the heartbeats from 1, from the start of the hub:
//! it goes up whether the hub took the message for publishing or not, so that whoever listens sees
//! a lost heartbeat as a gap and a restart as a 1. `timestamp` is the hub's clock.
//!
//! What it leaves to others: the interval (the hub calls) and noticing that none came.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use weir_consumer::{Context, Failure, Kind, Producer, Publisher, Result};

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    topic: String,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            topic: "weir.heartbeat".into(),
        }
    }
}

struct Heartbeat {
    name: String,
    topic: String,
    /// How many there were.
    i: u64,
}

#[derive(Serialize)]
struct Beat<'a> {
    name: &'a str,
    i: u64,
    timestamp: f64,
}

/// The kind `heartbeat`.
pub fn kind() -> Kind {
    Kind::producer("heartbeat", build)
        .summary("publishes a message at each interval, as a sign of life")
        .sample(include_str!("../sample.toml"))
}

fn build(settings: Settings, context: &Context) -> Result<Heartbeat> {
    if settings.topic.is_empty() {
        return Err(Failure::halt(
            "`topic` is empty; a heartbeat needs a topic such as \"weir.heartbeat\"",
        ));
    }
    Ok(Heartbeat {
        name: context.name().into(),
        topic: settings.topic,
        i: 0,
    })
}

impl Producer for Heartbeat {
    fn poll(&mut self, out: &Publisher) -> Result {
        self.i += 1;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let beat = Beat {
            name: &self.name,
            i: self.i,
            timestamp: since_1970.unwrap_or_default().as_secs_f64(),
        };
        out.publish(&self.topic, serde_json::to_vec(&beat)?)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weir_consumer::settings::{Mistake, Settings as Toml};
    use weir_consumer::testkit::{Published, recorder, sample_settings};

    use super::*;

    fn built(toml: &str) -> std::result::Result<Box<dyn Producer>, Vec<Mistake>> {
        let context = Context::new("pulse", Path::new("/nowhere"), Publisher::nowhere());
        kind().build_producer(&Toml::from_toml(toml, "heartbeat").unwrap(), &context)
    }

    /// The topic of the n-th published message, and its payload.
    fn nth(published: &Published, n: usize) -> (String, serde_json::Value) {
        let (topic, payload) = published.lock().unwrap()[n].clone();
        (topic, serde_json::from_slice(&payload).unwrap())
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: Settings = sample_settings(&kind()).parse().unwrap();
        assert_eq!(sample, Settings::default());
    }

    #[test]
    fn bad_settings_are_refused_with_what_would_be_right() {
        let text = |toml: &str| built(toml).err().unwrap()[0].to_string();
        assert_eq!(
            text("topics = ['a']"),
            "heartbeat:1:1: topics: unknown key; did you mean `topic`?"
        );
        assert_eq!(
            text("topic = 7"),
            "heartbeat:1:9: topic: expected a text in quotes, found the number 7"
        );
        assert_eq!(
            text("topic = ''"),
            "heartbeat: `topic` is empty; a heartbeat needs a topic such as \"weir.heartbeat\""
        );
    }

    #[test]
    fn each_call_publishes_one_and_counts_from_1() {
        let (publisher, published) = recorder();
        let mut heartbeat = built("topic = 'org.example.alive'").unwrap();
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        heartbeat.poll(&publisher).unwrap();
        heartbeat.poll(&publisher).unwrap();
        assert_eq!(published.lock().unwrap().len(), 2);
        for n in 0..2 {
            let (topic, beat) = nth(&published, n);
            assert_eq!(topic, "org.example.alive");
            assert_eq!(beat.as_object().unwrap().len(), 3);
            assert_eq!(beat["name"], "pulse");
            assert_eq!(beat["i"], n + 1);
            assert!(beat["timestamp"].as_f64().unwrap() >= before.as_secs_f64());
        }
    }

    #[test]
    fn one_that_was_not_taken_is_a_gap() {
        let (publisher, published) = recorder();
        let mut heartbeat = built("").unwrap();
        assert!(heartbeat.poll(&Publisher::nowhere()).is_err());
        heartbeat.poll(&publisher).unwrap();
        let (topic, beat) = nth(&published, 0);
        assert_eq!((topic.as_str(), &beat["i"]), ("weir.heartbeat", &2.into()));
    }
}
