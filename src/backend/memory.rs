//! Messages out of the same process: for programs that embed the hub, and for tests.
//!
//! ```
//! use weir::backend::memory::Memory;
//!
//! let (feed, backend) = Memory::new(100);
//! feed.send("org.example.a", "payload").unwrap();
//! # let _ = backend;
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use crossbeam_channel::{Receiver, SendError, Sender, bounded};

use super::{Accept, BATCH_BYTES, Backend};
use crate::stats::SourceStats;

/// The receiving end, for the hub.
pub struct Memory {
    messages: Receiver<(Box<str>, Bytes)>,
    wake: (Sender<()>, Receiver<()>),
    stats: Arc<SourceStats>,
}

/// The sending end; clones send to the same hub.
#[derive(Clone)]
pub struct Feed(Sender<(Box<str>, Bytes)>);

impl Feed {
    /// Sends a message, waiting while the hub is `capacity` messages behind.
    ///
    /// # Errors
    /// Hands the payload back when the hub has gone.
    pub fn send(&self, topic: &str, payload: impl Into<Bytes>) -> Result<(), Bytes> {
        self.0
            .send((topic.into(), payload.into()))
            .map_err(|SendError((_, payload))| payload)
    }
}

impl Memory {
    /// A feed and its backend, with room for so many messages between them.
    pub fn new(capacity: usize) -> (Feed, Self) {
        let (sender, messages) = bounded(capacity);
        let stats = Arc::new(SourceStats::new(&[], &[]));
        (
            Feed(sender),
            Memory {
                messages,
                wake: bounded(1),
                stats,
            },
        )
    }
}

impl Backend for Memory {
    fn receive(
        &mut self,
        accept: &mut Accept<'_>,
        max: usize,
        wait: Duration,
    ) -> Result<usize, String> {
        let mut received = 0;
        if self.messages.is_empty() {
            crossbeam_channel::select! {
                recv(self.messages) -> message => match message {
                    Ok((topic, payload)) => {
                        accept(topic.as_bytes(), payload, None);
                        received = 1;
                    }
                    // Every feed is gone: nothing will come, but the hub lives until it is stopped.
                    Err(_) => {
                        let _ = self.wake.1.recv_timeout(wait);
                    }
                },
                recv(self.wake.1) -> _ => {}
                default(wait) => {}
            }
        }
        let mut bytes = 0;
        while received < max
            && bytes < BATCH_BYTES
            && let Ok((topic, payload)) = self.messages.try_recv()
        {
            bytes += payload.len();
            accept(topic.as_bytes(), payload, None);
            received += 1;
        }
        self.stats.received(received);
        Ok(received)
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let wake = self.wake.0.clone();
        // Full means that it is going to wake up anyway.
        Arc::new(move || {
            let _ = wake.try_send(());
        })
    }

    fn stats(&self) -> Arc<SourceStats> {
        self.stats.clone()
    }

    fn describe(&self) -> Vec<String> {
        vec!["memory".to_owned()]
    }
}
