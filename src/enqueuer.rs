//! The intake thread: takes messages off a backend, journals them and pushes them onto the queues.
//!
//! One hop: backend, batch, journal, queues. A batch is appended and offered to all queues with the
//! journal's append lock held, so that the order of the journal is that of every channel. Nothing
//! here looks into a payload, takes a lock a message or calls a metric; what is shared by the
//! messages of a batch (their time, their topics) is made once a batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use weir_consumer::Message;

use tracing::{error, info, warn};

use crate::backend::Backend;
use crate::journal::{Journal, OnError, Record, Sync};
use crate::lifecycle::Flag;
use crate::queue::{Queue, bytes_of};
use crate::router::Router;
use crate::stats::{Refusal, SourceStats, now_ns};

/// Messages taken off a backend before they are pushed on. More makes a hub under load cheaper and
/// the first message of a batch later, by what it takes to read the others: 0.1 ms.
const BATCH_MAX: usize = 512;
/// Messages that share a copy of their topic at least.
const TOPIC_USES: u32 = 64;
/// An end of the wait for a backend that has nothing; the waker ends it earlier.
const IDLE: Duration = Duration::from_secs(3600);

/// Between two attempts to write while the disk can't be written.
const AGAIN: Duration = Duration::from_secs(1);

/// Where messages get their numbers, and are kept.
#[derive(Clone)]
pub enum Log {
    /// Nowhere: the number of the hub's latest message, shared by all its enqueuers.
    Memory(Arc<AtomicU64>),
    /// In the journal.
    Journal {
        /// The journal.
        journal: Arc<Journal>,
        /// When a message counts as written.
        sync: Sync,
        /// What becomes of messages that it can't take.
        on_error: OnError,
    },
}

/// Drives one backend.
pub struct Enqueuer {
    backend: Box<dyn Backend>,
    stats: Arc<SourceStats>,
    router: Router,
    queues: Vec<Arc<Queue>>,
    log: Log,
    /// The backend's place in the configuration.
    source: u16,
    stop: Arc<Flag>,
    batch: Batch,
    /// The journal could not be written the last time.
    failing: bool,
}

struct Incoming {
    topic: Arc<str>,
    payload: Bytes,
    sequence: Option<u64>,
}

/// The batch at hand.
#[derive(Default)]
struct Batch {
    number: u64,
    messages: Vec<Incoming>,
    /// Per consumer, the places of its messages in `messages`.
    picks: Vec<Vec<u32>>,
}

impl Enqueuer {
    /// An enqueuer of this backend for these consumers: the router's n-th gets the n-th queue.
    pub fn new(
        backend: Box<dyn Backend>,
        router: Router,
        queues: Vec<Arc<Queue>>,
        log: Log,
        source: u16,
        stop: Arc<Flag>,
    ) -> Self {
        assert_eq!(router.consumers(), queues.len());
        let batch = Batch {
            picks: vec![Vec::new(); queues.len()],
            ..Batch::default()
        };
        Enqueuer {
            stats: backend.stats(),
            backend,
            router,
            queues,
            log,
            source,
            stop,
            batch,
            failing: false,
        }
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    /// What the backend died of.
    pub fn run(mut self) -> Result<(), String> {
        while !self.stop.is_raised() {
            let (batch, router, stats) = (&mut self.batch, &mut self.router, &self.stats);
            let mut accept = |topic: &[u8], payload, sequence| {
                batch.accept(topic, payload, sequence, router, stats);
            };
            self.backend.receive(&mut accept, BATCH_MAX, IDLE)?;
            self.hand_over();
        }
        Ok(())
    }

    /// Journals the batch and pushes it onto the queues.
    fn hand_over(&mut self) {
        if self.batch.messages.is_empty() {
            return;
        }
        let count = self.batch.messages.len() as u64;
        let received_ns = now_ns();
        let (journal, sync, on_error) = match &self.log {
            Log::Memory(latest) => {
                let first = latest.fetch_add(count, Ordering::Relaxed) + 1;
                let all = self.batch.numbered(received_ns, first);
                self.stats.offer(all.last());
                return self.batch.push_to(&self.queues, &all, false);
            }
            Log::Journal {
                journal,
                sync,
                on_error,
            } => (journal.clone(), *sync, *on_error),
        };
        loop {
            let mut appender = journal.lock();
            let written = appender.append(self.source, received_ns, self.batch.records());
            let (first, journaled) = match written {
                Ok(first) => {
                    if std::mem::take(&mut self.failing) {
                        info!("the journal can be written again");
                    }
                    // Nobody is to work on what a power failure could undo. If the disk fails at
                    // it, the journal has said so, and begins anew with the next batch.
                    if sync == Sync::EachBatch
                        && let Err(why) = journal.wait_durable(first + count)
                    {
                        warn!(why, "a batch is not known to survive a power failure");
                    }
                    (first, true)
                }
                Err(why) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        let until_then = match on_error {
                            OnError::Memory => "messages are in memory only",
                            OnError::Stop => "no message is taken in",
                        };
                        error!(%why, until_then, "can't write the journal; trying again each second");
                    }
                    match on_error {
                        OnError::Memory => (appender.pass(count), false),
                        OnError::Stop => {
                            drop(appender);
                            if self.stop.sleep(AGAIN) {
                                self.batch.forget();
                                return self.stats.refused_all(Refusal::Unwritten, count);
                            }
                            continue;
                        }
                    }
                }
            };
            let all = self.batch.numbered(received_ns, first);
            self.stats.offer(all.last());
            self.batch.push_to(&self.queues, &all, journaled);
            return match journaled {
                true => appender.publish(&all),
                // Kept for readers, they would come to who has already counted them as dropped.
                false => drop(appender),
            };
        }
    }
}

impl Batch {
    fn accept(
        &mut self,
        topic: &[u8],
        payload: Bytes,
        sequence: Option<u64>,
        router: &mut Router,
        stats: &SourceStats,
    ) {
        let Some(route) = router.route(topic) else {
            return stats.refused(Refusal::Topic);
        };
        if route.targets.is_empty() {
            return stats.refused(Refusal::Unrouted);
        }
        route.uses += 1;
        if route.batch != self.number && route.uses > TOPIC_USES {
            // A copy a batch: its count is raised by this thread only until the batch is handed
            // over, and lowered by the consumers' threads only, so the cores never fight for it.
            route.topic = Arc::from(&*route.topic);
            route.batch = self.number;
            route.uses = 1;
        }
        for target in &route.targets {
            self.picks[*target as usize].push(self.messages.len() as u32);
        }
        self.messages.push(Incoming {
            topic: route.topic.clone(),
            payload,
            sequence,
        });
    }

    fn records(&self) -> impl Iterator<Item = Record<'_>> + Clone {
        self.messages.iter().map(|message| Record {
            topic: &message.topic,
            payload: &message.payload,
            source_seq: message.sequence,
        })
    }

    /// The messages with their numbers, from `first` on.
    fn numbered(&mut self, received_ns: u64, first: u64) -> Arc<[Message]> {
        (self.messages.drain(..).zip(first..))
            .map(|(m, seq)| Message::at_ns(m.topic, m.payload, received_ns, seq))
            .collect()
    }

    fn forget(&mut self) {
        self.messages.clear();
        self.picks.iter_mut().for_each(Vec::clear);
        self.number += 1;
    }

    /// Pushes onto each queue what its consumer wants.
    fn push_to(&mut self, queues: &[Arc<Queue>], all: &Arc<[Message]>, journaled: bool) {
        self.number += 1;
        let all_bytes = bytes_of(all);
        for (queue, picks) in queues.iter().zip(&mut self.picks) {
            if picks.len() == all.len() {
                queue.push(all, all_bytes, journaled);
            } else if !picks.is_empty() {
                // A list of its own keeps in memory what this consumer waits for, and no more.
                let own: Arc<[Message]> = picks
                    .iter()
                    .map(|place| all[*place as usize].clone())
                    .collect();
                queue.push(&own, bytes_of(&own), journaled);
            }
            picks.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{Settings, Taker};
    use crate::stats::Stats;

    #[test]
    fn each_consumer_gets_its_messages_in_the_order_of_intake() {
        let wanted = vec![
            vec!["".to_owned()],
            vec!["b".to_owned()],
            vec!["c".to_owned()],
        ];
        let mut router = Router::new(wanted);
        let queues: Vec<Arc<Queue>> = (0..3)
            .map(|_| {
                Arc::new(Queue::new(
                    Settings::default(),
                    Arc::new(Stats::new(1)),
                    None,
                ))
            })
            .collect();
        let stats = SourceStats::default();
        let mut batch = Batch {
            picks: vec![Vec::new(); 3],
            ..Batch::default()
        };
        for topic in ["a", "b", "b1", "\u{e9}"] {
            batch.accept(
                topic.as_bytes(),
                topic.to_owned().into(),
                None,
                &mut router,
                &stats,
            );
        }
        batch.accept(b"\xff", Bytes::new(), None, &mut router, &stats);
        let all = batch.numbered(0, 101);
        batch.push_to(&queues, &all, false);

        let seqs = |queue: &Arc<Queue>| -> Vec<u64> {
            let mut taker = Taker::new(queue.clone(), Some(0));
            std::iter::from_fn(|| taker.take_more())
                .flat_map(|piece| piece.iter().map(Message::seq).collect::<Vec<_>>())
                .collect()
        };
        assert_eq!(seqs(&queues[0]), [101, 102, 103, 104]);
        assert_eq!(seqs(&queues[1]), [102, 103]);
        assert_eq!(seqs(&queues[2]), [0; 0]);
        assert_eq!(stats.snapshot().refused.of(Refusal::Topic), 1);
    }
}
