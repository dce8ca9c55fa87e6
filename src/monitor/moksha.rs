//! The monitoring socket of Moksha and fedmsg. (In the making.)

use std::time::Duration;

use serde::Deserialize;
use weir_consumer::settings::{self, Mistake, duration};

use super::Exporter;
use super::sample::Sample;

/// The `[moksha]` section; `src/sample.toml` explains each key.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Settings {
    pub socket: String,
    pub mode: String,
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            socket: "ipc:///run/weir/monitoring.socket".into(),
            mode: "0600".into(),
            interval: Duration::from_secs(5),
        }
    }
}

impl Settings {
    /// Reads the section.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(section: &settings::Settings) -> Result<Self, Vec<Mistake>> {
        section.parse()
    }
}

/// Sends the figures of each interval.
pub(crate) struct Moksha {
    interval: Duration,
}

impl Moksha {
    pub(crate) fn open(settings: &Settings) -> Result<Self, String> {
        Ok(Moksha {
            interval: settings.interval,
        })
    }
}

impl Exporter for Moksha {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn export(&mut self, _: &Sample) {}
}
