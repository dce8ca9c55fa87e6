//! What is read of a hub's status; all that an older hub may not tell can be missing.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

use crate::forecast::{Accuracy, Drain, Health, Rates};

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Seen {
    pub(super) hub: String,
    pub(super) uptime_seconds: f64,
    #[serde(default)]
    pub(super) sources: Vec<Source>,
    #[serde(default)]
    pub(super) journal: Option<Journal>,
    pub(super) consumers: Vec<Consumer>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Source {
    pub(super) received: u64,
    pub(super) refused: Map<String, Value>,
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Endpoint {
    pub(super) endpoint: String,
    pub(super) bound: bool,
    pub(super) connections: u64,
    pub(super) gaps: u64,
    pub(super) loss: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Journal {
    pub(super) state: String,
    pub(super) why: Option<String>,
    pub(super) bytes: u64,
    pub(super) begin: u64,
    pub(super) end: u64,
    pub(super) durable: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Consumer {
    pub(super) name: String,
    #[serde(default)]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) topics: Vec<String>,
    #[serde(default)]
    pub(super) workers: usize,
    /// A [`crate::stats::State`], or what a newer hub knows.
    pub(super) state: String,
    /// A [`Health`], or what a newer hub knows.
    pub(super) health: String,
    #[serde(default)]
    pub(super) received: u64,
    #[serde(default)]
    pub(super) consumed: u64,
    #[serde(default)]
    pub(super) failed: u64,
    #[serde(default)]
    pub(super) retried: u64,
    #[serde(default)]
    pub(super) panics: u64,
    #[serde(default)]
    pub(super) dropped: Map<String, Value>,
    #[serde(default)]
    pub(super) dead_lettered: u64,
    #[serde(default)]
    pub(super) dead_letters: u64,
    #[serde(default)]
    pub(super) in_flight: u64,
    #[serde(default)]
    pub(super) retrying: u64,
    pub(super) queue_messages: u64,
    #[serde(default)]
    pub(super) queue_capacity_messages: u64,
    #[serde(default)]
    pub(super) behind_messages: u64,
    #[serde(default)]
    pub(super) retention_used_ratio: f64,
    pub(super) lag_seconds: f64,
    #[serde(default = "unknown", deserialize_with = "drain")]
    pub(super) drain: Drain,
    #[serde(default)]
    pub(super) rates: Rates,
    #[serde(default)]
    pub(super) service_per_second: Option<f64>,
    #[serde(default)]
    pub(super) forecast_accuracy: Option<Accuracy>,
    #[serde(default)]
    pub(super) processing: Processing,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Processing {
    pub(super) mean_seconds: Option<f64>,
    pub(super) max_seconds: f64,
}

fn unknown() -> Drain {
    Drain::Unknown
}

/// A [`Drain`], or one that a newer hub knows.
fn drain<'de, D: Deserializer<'de>>(from: D) -> Result<Drain, D::Error> {
    let value = Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or(Drain::Unknown))
}

impl Consumer {
    /// How badly somebody has to look at it; the greatest is the worst.
    pub(super) fn badness(&self) -> usize {
        let known = Health::ALL.iter().position(|h| h.as_str() == self.health);
        known.unwrap_or(Health::ALL.len())
    }

    pub(super) fn is_paused(&self) -> bool {
        self.state == "paused" || self.health == "paused"
    }

    /// Whether a text is found in what a person would look for.
    pub(super) fn matches(&self, text: &str) -> bool {
        let text = text.to_lowercase();
        let health = self.health.replace('_', " ");
        let state = self.state.replace('_', " ");
        [&self.name, &self.kind, &self.health, &health, &state]
            .iter()
            .any(|field| field.to_lowercase().contains(&text))
    }
}

/// The counts of a map, those that are not 0.
pub(super) fn counts(map: &Map<String, Value>) -> Vec<(&str, u64)> {
    let counts = map.iter().map(|(word, n)| (&**word, n.as_u64()));
    counts
        .filter_map(|(word, n)| Some((word, n.filter(|n| *n > 0)?)))
        .collect()
}
