//! The status once a second, to whoever wants to hear it: server-sent events.
//!
//! 1. *However many listen, the status is put together once a second*, and not at all when nobody
//!    listens.
//! 2. *A slow listener costs nothing.* It gets the next status when it has taken the one before;
//!    nothing queues up for it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Interval, MissedTickBehavior};

use crate::monitor::Figures;

const EVERY: Duration = Duration::from_secs(1);
/// What is younger is sent again: streams that tick at different times share one status.
const FRESH: Duration = Duration::from_millis(900);

/// What all streams share.
pub(super) struct Events {
    figures: Arc<Figures>,
    latest: Mutex<Option<(Instant, Bytes)>>,
}

struct Stream {
    events: Arc<Events>,
    ticks: Interval,
    closing: watch::Receiver<bool>,
    /// Another one may be opened when this one ends.
    _room: OwnedSemaphorePermit,
}

impl Events {
    pub(super) fn new(figures: Arc<Figures>) -> Self {
        Events {
            figures,
            latest: Mutex::default(),
        }
    }

    /// The event with the status of now.
    fn status(&self, now: Instant) -> Bytes {
        let mut latest = self.latest.lock();
        match &*latest {
            Some((at, event)) if now.saturating_duration_since(*at) < FRESH => event.clone(),
            _ => {
                // On one line, because serde_json writes no line ends into a text.
                let status = serde_json::to_string(&self.figures.status()).unwrap_or_default();
                let event = Bytes::from(format!("event: status\ndata: {status}\n\n"));
                *latest = Some((now, event.clone()));
                event
            }
        }
    }

    /// Events until the listener has gone or the interface ends.
    pub(super) fn stream(
        self: Arc<Self>,
        room: OwnedSemaphorePermit,
        closing: watch::Receiver<bool>,
    ) -> Response {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stream = Stream {
            events: self,
            ticks,
            closing,
            _room: room,
        };
        let body = stream::unfold(stream, |mut stream| async move {
            tokio::select! {
                _ = stream.ticks.tick() => {}
                _ = stream.closing.wait_for(|closing| *closing) => return None,
            }
            let event = stream.events.status(Instant::now());
            Some((Ok::<_, Infallible>(event), stream))
        });
        let kind = [(header::CONTENT_TYPE, "text/event-stream")];
        (kind, Body::from_stream(body)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_listen_the_status_is_put_together_once_a_second() {
        let figures = Figures::new("a", Vec::new());
        let events = Events::new(Arc::new(figures));
        let now = Instant::now();
        let first = events.status(now);
        let text = String::from_utf8(first.to_vec()).unwrap();
        let data = text.strip_prefix("event: status\ndata: ").unwrap();
        let data = data.strip_suffix("\n\n").unwrap();
        let data: serde_json::Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["hub"], "a");
        // The same bytes, not only equal ones.
        let again = events.status(now + Duration::from_millis(500));
        assert_eq!(again.as_ptr(), first.as_ptr());
        let next = events.status(now + EVERY);
        assert_ne!(next.as_ptr(), first.as_ptr());
    }
}
