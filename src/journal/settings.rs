//! The `[journal]` section.

use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use weir_consumer::settings::{Mistake, Settings as Tree, duration, size};

/// The least that can be kept: two segments, or the one being written would be all there is.
const KEEP_MIN: u64 = 128 << 20;
const SYNC_MIN: Duration = Duration::from_millis(1);
/// The system writes it back long before.
pub(super) const SYNC_MAX: Duration = HOUR;
const CURSORS_MIN: Duration = Duration::from_millis(10);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// When what was appended is made to survive a power failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sync {
    /// At most so long after it was appended.
    Every(Duration),
    /// Before anybody gets to see it.
    EachBatch,
    /// When the system sees fit, and at the end.
    Never,
}

impl<'de> Deserialize<'de> for Sync {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        match text.as_str() {
            "each-batch" => Ok(Sync::EachBatch),
            "never" => Ok(Sync::Never),
            _ => duration(de::value::StrDeserializer::<D::Error>::new(&text))
                .map(Sync::Every)
                .map_err(|_| {
                    de::Error::custom(format!(
                        "expected a duration such as \"1s\", or \"each-batch\" or \"never\", \
                         found {text:?}"
                    ))
                }),
        }
    }
}

/// What happens to messages while the journal can't be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnError {
    /// They go by without being journaled.
    #[default]
    Memory,
    /// The intake waits.
    Stop,
}

/// How much of the log is kept for replays and for consumers that are behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keep {
    /// At most so many bytes.
    #[serde(deserialize_with = "size_u64")]
    pub bytes: u64,
    /// Nothing older than this.
    #[serde(deserialize_with = "duration")]
    pub age: Duration,
}

impl Default for Keep {
    fn default() -> Self {
        Keep {
            bytes: 10 << 30,
            age: 7 * 24 * HOUR,
        }
    }
}

fn size_u64<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    size(from).map(|size| size as u64)
}

/// The `[journal]` section.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Whether there is a journal.
    pub enabled: bool,
    /// When what was appended is made to survive a power failure.
    pub sync: Sync,
    /// How much is kept.
    pub keep: Keep,
    /// What happens to messages while it can't be written.
    pub on_error: OnError,
    /// How often the consumers' positions are written.
    #[serde(deserialize_with = "duration")]
    pub cursors: Duration,
    /// How long the position of a consumer that is no longer configured is kept.
    #[serde(deserialize_with = "duration")]
    pub forget_after: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            enabled: true,
            sync: Sync::Every(Duration::from_secs(1)),
            keep: Keep::default(),
            on_error: OnError::default(),
            cursors: Duration::from_secs(1),
            forget_after: 7 * 24 * HOUR,
        }
    }
}

impl Settings {
    /// Reads the section.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(section: &Tree) -> Result<Self, Vec<Mistake>> {
        let (settings, mut mistakes) = section.parse_most::<Settings>();
        let Some(settings) = settings else {
            return Err(mistakes);
        };
        if matches!(settings.sync, Sync::Every(time) if !(SYNC_MIN..=SYNC_MAX).contains(&time)) {
            let text = "expected \"1ms\" to \"1h\", or \"each-batch\" or \"never\"";
            mistakes.push(section.mistake_at("sync", text));
        }
        if settings.keep.bytes < KEEP_MIN {
            let text = "expected at least 128MiB: two segments of the log";
            mistakes.push(section.mistake_at("keep.bytes", text));
        }
        if settings.keep.age < MINUTE {
            mistakes.push(section.mistake_at("keep.age", "expected at least \"1m\""));
        }
        if !(CURSORS_MIN..=HOUR).contains(&settings.cursors) {
            mistakes.push(section.mistake_at("cursors", "expected \"10ms\" to \"1h\""));
        }
        if settings.forget_after < MINUTE {
            mistakes.push(section.mistake_at("forget_after", "expected at least \"1m\""));
        }
        match mistakes.is_empty() {
            true => Ok(settings),
            false => Err(mistakes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, Vec<String>> {
        let tree = Tree::from_toml(text, "f").unwrap();
        Settings::from_settings(&tree).map_err(|m| m.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_key_is_read_and_none_is_needed() {
        assert_eq!(read("").unwrap(), Settings::default());
        let text = "enabled = false\nsync = 'each-batch'\nkeep = { bytes = '1GiB', age = '1d' }\n\
                    on_error = 'stop'\ncursors = '5s'\nforget_after = '2d'";
        let expected = Settings {
            enabled: false,
            sync: Sync::EachBatch,
            keep: Keep {
                bytes: 1 << 30,
                age: 24 * HOUR,
            },
            on_error: OnError::Stop,
            cursors: Duration::from_secs(5),
            forget_after: 48 * HOUR,
        };
        assert_eq!(read(text).unwrap(), expected);
        assert_eq!(read("sync = 'never'").unwrap().sync, Sync::Never);
        let fifty = Duration::from_millis(50);
        assert_eq!(read("sync = '50ms'").unwrap().sync, Sync::Every(fifty));
    }

    #[test]
    fn each_mistake_says_what_is_expected() {
        let text = "sync = '0s'\ncursors = '1ms'\nforget_after = '1s'\n\
                    keep = { bytes = 1, age = '1s' }";
        assert_eq!(
            read(text).unwrap_err(),
            [
                "f:1:8: sync: expected \"1ms\" to \"1h\", or \"each-batch\" or \"never\"",
                "f:4:18: keep.bytes: expected at least 128MiB: two segments of the log",
                "f:4:27: keep.age: expected at least \"1m\"",
                "f:2:11: cursors: expected \"10ms\" to \"1h\"",
                "f:3:16: forget_after: expected at least \"1m\"",
            ]
        );
        assert_eq!(
            read("sync = 'sometimes'").unwrap_err(),
            [
                "f:1:8: sync: expected a duration such as \"1s\", or \"each-batch\" or \"never\", \
             found \"sometimes\""
            ]
        );
    }
}
