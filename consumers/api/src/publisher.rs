//! The way from a consumer or producer back onto the bus.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// Sends messages onto the bus, on the hub's configured publishing endpoints.
///
/// Sending only hands the message to the hub's publishing thread: it never waits for the network,
/// so a consumer that publishes can't be held up by a slow subscriber. Clones are cheap and share
/// the same outlet.
#[derive(Clone)]
pub struct Publisher(Arc<Outlet>);

type Outlet = dyn Fn(&str, Bytes) -> Result<(), PublishError> + Send + Sync;

/// Why a message was not accepted for publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PublishError {
    /// The hub has no publishing endpoint: the configuration lacks a `[publish]` section.
    NoEndpoint,
    /// The hub's outgoing queue is full; the message was counted as dropped.
    Full,
    /// The hub is stopping.
    Closed,
}

impl fmt::Display for PublishError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PublishError::NoEndpoint => {
                "there is nowhere to publish to; add a [publish] section with `bind` or `connect`"
            }
            PublishError::Full => "the hub's outgoing queue is full",
            PublishError::Closed => "the hub is stopping and publishes no more",
        })
    }
}

impl std::error::Error for PublishError {}

impl Publisher {
    /// A publisher that hands each message to `outlet`.
    pub fn new(
        outlet: impl Fn(&str, Bytes) -> Result<(), PublishError> + Send + Sync + 'static,
    ) -> Self {
        Publisher(Arc::new(outlet))
    }

    /// A publisher of a hub that publishes nowhere: each call answers [`PublishError::NoEndpoint`].
    pub fn nowhere() -> Self {
        Publisher::new(|_, _| Err(PublishError::NoEndpoint))
    }

    /// Hands a message over for publishing and returns at once.
    ///
    /// # Errors
    /// See [`PublishError`]; the message was then not sent.
    pub fn publish(&self, topic: &str, payload: impl Into<Bytes>) -> Result<(), PublishError> {
        (self.0)(topic, payload.into())
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Publisher")
    }
}
