//! The kind `null`: consumes and forgets.
//!
//! It is for measuring. What a hub with `null` can't do, no other consumer can do on it; so its
//! `consume` does nothing at all, and it takes messages one by one as most consumers do.

use serde::Deserialize;
use weir_consumer::{Consumer, Context, Kind, Message, Result};

/// None; the struct is there to refuse every key.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {}

struct Null;

pub(crate) fn kind() -> Kind {
    Kind::consumer("null", build)
        .summary("consumes and forgets: for measuring")
        .sample(include_str!("../null.sample.toml"))
}

fn build(_settings: Settings, _context: &Context) -> Result<Null> {
    Ok(Null)
}

impl Consumer for Null {
    fn consume(&mut self, _message: &Message) -> Result {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weir_consumer::testkit::{build, conformance, sample_settings};

    use super::*;

    #[test]
    fn the_sample_has_no_settings() {
        assert_eq!(sample_settings(&kind()).parse(), Ok(Settings {}));
        assert_eq!(sample_settings(&kind()).entries().count(), 0);
    }

    #[test]
    fn every_key_is_refused() {
        let mistakes = build(&kind(), "file = 'x'", Path::new("")).err().unwrap();
        let expected = "null:1:1: file: unknown key; there are none here";
        assert_eq!(mistakes[0].to_string(), expected);
    }

    #[test]
    fn it_stands_what_every_consumer_has_to_stand() {
        conformance(|| Null);
    }
}
