//! Where messages come from.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use weir_consumer::settings::{Mistake, Settings};

use crate::stats::SourceStats;

pub mod memory;
pub mod zmq;

/// No more is taken at a time once so many bytes of payload are: a batch is held in memory whole.
const BATCH_BYTES: usize = 8 << 20;

/// Where fedmsg bodies have their publisher's time.
pub const TIMESTAMP: &str = "/timestamp";

/// Takes a message: its topic, its payload, and its number at the source if it carries one.
pub type Accept<'a> = dyn FnMut(&[u8], Bytes, Option<u64>) + 'a;

/// A source of messages, driven by one enqueuer on its thread.
///
/// It finds messages and names their topics; it neither routes nor queues, and never parses a
/// payload. What it can't read it counts in its [`SourceStats`], and goes on.
pub trait Backend: Send {
    /// Hands over what is there, at most `max` messages, and waits `wait` at most when there is
    /// nothing. Answers how many it handed over.
    ///
    /// # Errors
    /// When it can't go on at all: the hub stops then. What can heal, such as a lost connection,
    /// it heals itself.
    fn receive(
        &mut self,
        accept: &mut Accept<'_>,
        max: usize,
        wait: Duration,
    ) -> Result<usize, String>;

    /// What makes a waiting `receive` return; called from other threads.
    fn waker(&self) -> Arc<dyn Fn() + Send + Sync>;

    /// Its counters.
    fn stats(&self) -> Arc<SourceStats>;

    /// What it listens on or connects to, for people: a line each.
    fn describe(&self) -> Vec<String>;
}

/// One `[[backend]]` section.
#[derive(Clone, Debug)]
pub enum Source {
    /// ZeroMQ SUB or PULL sockets.
    Zmq(zmq::Settings),
}

impl Source {
    /// Reads a section.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(settings: &Settings) -> Result<Self, Vec<Mistake>> {
        #[derive(Deserialize)]
        #[serde(rename_all = "snake_case")]
        enum Kind {
            Zmq,
        }
        #[derive(Deserialize)]
        struct Common {
            kind: Kind,
        }
        let (common, own) = settings.clone().split(&["kind"]);
        // Both halves are read before either is refused, so that all mistakes come at once.
        let kind = match common.get("kind") {
            Some(_) => common.parse::<Common>().map(|common| common.kind),
            None => Ok(Kind::Zmq),
        };
        match kind {
            Ok(Kind::Zmq) => zmq::Settings::from_settings(&own).map(Source::Zmq),
            Err(mistakes) => Err(mistakes),
        }
    }

    /// Where its messages have their publisher's time: a JSON pointer (RFC 6901), or nothing.
    pub fn timestamp(&self) -> &str {
        match self {
            Source::Zmq(settings) => &settings.timestamp,
        }
    }

    /// What it connects to and is bound to.
    pub fn endpoints(&self) -> impl Iterator<Item = &String> {
        match self {
            Source::Zmq(settings) => settings.connect.iter().chain(&settings.bind),
        }
    }

    /// Opens it, asking for no more than these prefixes of topics.
    ///
    /// # Errors
    /// Why it can't be opened, and what to do about it.
    pub fn open(&self, prefixes: &[String]) -> Result<Box<dyn Backend>, String> {
        match self {
            Source::Zmq(settings) => Ok(Box::new(zmq::Zmq::open(settings, prefixes)?)),
        }
    }
}
