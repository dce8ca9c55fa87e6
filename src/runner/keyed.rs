//! Order per key over several workers: messages of one key go to one worker.
//!
//! The key stands in the payload, and payloads are not parsed on the enqueuer; so a consumer with
//! `key` has one more thread, which parses (once for all consumers, as ever) and hands each message
//! to its key's worker. What it has handed on still counts in the queue's bounds, so the workers'
//! inboxes need none of their own, and a key that is stuck does not hold up the others before the
//! whole queue is full.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use weir_consumer::Message;

use super::Supply;
use crate::queue::{Piece, Queue, Taken, Taker, take_from};
use crate::stats::Worker;

/// What one worker has to do.
pub(crate) struct Inbox(Receiver<Piece>);

impl Supply for Inbox {
    fn take(&mut self, worker: &Worker, deadline: Instant) -> Taken {
        take_from(&self.0, || worker.rest(false), deadline)
    }
    fn take_more(&mut self) -> Option<Piece> {
        self.0.try_recv().ok()
    }
    fn take_rest(&mut self, deadline: Instant) -> Taken {
        take_from(&self.0, || {}, deadline)
    }
}

/// Hands messages to the workers of their keys.
pub(crate) struct Dispatcher {
    taker: Taker,
    pointer: String,
    inboxes: Vec<Sender<Piece>>,
}

impl Dispatcher {
    /// A dispatcher by the value at this JSON pointer (RFC 6901), and its workers' inboxes.
    pub(crate) fn new(queue: Arc<Queue>, pointer: String, workers: usize) -> (Self, Vec<Inbox>) {
        let (inboxes, outlets) = (0..workers)
            .map(|_| unbounded())
            .map(|(i, o)| (i, Inbox(o)))
            .unzip();
        (
            Dispatcher {
                taker: Taker::new(queue, None),
                pointer,
                inboxes,
            },
            outlets,
        )
    }

    /// Works until the queue is closed and empty.
    pub(crate) fn run(mut self) {
        loop {
            match self.taker.take(|| {}, Queue::idle_deadline()) {
                Taken::Piece(piece) => {
                    for single in piece.singles() {
                        // A worker that has ended has counted what was in its inbox; this piece is
                        // counted by the worker's end, or the worker has died and the hub with it.
                        let _ = self.inboxes[self.place(&single[0])].send(single);
                    }
                }
                Taken::TimedOut => {}
                Taken::Closed => return,
            }
        }
    }

    /// Messages without the key, and those that are not JSON, are one key: they stay in order.
    fn place(&self, message: &Message) -> usize {
        let key = message
            .json()
            .ok()
            .and_then(|json| json.pointer(&self.pointer));
        let key = key.map(ToString::to_string).unwrap_or_default();
        (rapidhash::v3::rapidhash_v3(key.as_bytes()) % self.inboxes.len() as u64) as usize
    }
}
