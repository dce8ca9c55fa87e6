//! Figures to collectd. (In the making.)

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use weir_consumer::settings::{self, Mistake, duration};

use super::Exporter;
use super::sample::Sample;

/// The `[collectd]` section; `src/sample.toml` explains each key.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Settings {
    pub socket: PathBuf,
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            socket: "/run/collectd-unixsock".into(),
            interval: Duration::from_secs(10),
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
pub(crate) struct Collectd {
    interval: Duration,
}

impl Collectd {
    pub(crate) fn new(settings: &Settings) -> Result<Self, String> {
        Ok(Collectd {
            interval: settings.interval,
        })
    }
}

impl Exporter for Collectd {
    fn interval(&self) -> Duration {
        self.interval
    }

    fn export(&mut self, _: &Sample) {}
}
