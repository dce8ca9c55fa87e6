//! The intake thread: takes messages off a backend and pushes them onto the queues.
//!
//! One hop: backend, batch, queues. Nothing here looks into a payload, takes a lock a message or
//! calls a metric; what is shared by the messages of a batch (their time, their topics) is made
//! once a batch.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use weir_consumer::Message;

use crate::backend::Backend;
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

/// Drives one backend.
pub struct Enqueuer {
    backend: Box<dyn Backend>,
    stats: Arc<SourceStats>,
    router: Router,
    queues: Vec<Arc<Queue>>,
    /// The number of the hub's latest message, shared by all its enqueuers.
    seq: Arc<AtomicU64>,
    stop: Arc<Flag>,
    batch: Batch,
}

/// The batch at hand.
#[derive(Default)]
struct Batch {
    number: u64,
    messages: Vec<(Arc<str>, Bytes)>,
    /// Per consumer, the places of its messages in `messages`.
    picks: Vec<Vec<u32>>,
}

impl Enqueuer {
    /// An enqueuer of this backend for these consumers: the router's n-th gets the n-th queue.
    pub fn new(
        backend: Box<dyn Backend>,
        router: Router,
        queues: Vec<Arc<Queue>>,
        seq: Arc<AtomicU64>,
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
            seq,
            stop,
            batch,
        }
    }

    /// Works until it is told to stop.
    ///
    /// # Errors
    /// What the backend died of.
    pub fn run(mut self) -> Result<(), String> {
        while !self.stop.is_raised() {
            let (batch, router, stats) = (&mut self.batch, &mut self.router, &self.stats);
            let mut accept = |topic: &[u8], payload| batch.accept(topic, payload, router, stats);
            self.backend.receive(&mut accept, BATCH_MAX, IDLE)?;
            self.batch.push_to(&self.queues, &self.seq);
        }
        Ok(())
    }
}

impl Batch {
    fn accept(&mut self, topic: &[u8], payload: Bytes, router: &mut Router, stats: &SourceStats) {
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
        self.messages.push((route.topic.clone(), payload));
    }

    fn push_to(&mut self, queues: &[Arc<Queue>], seq: &AtomicU64) {
        self.number += 1;
        if self.messages.is_empty() {
            return;
        }
        let received_ns = now_ns();
        let first = seq.fetch_add(self.messages.len() as u64, Ordering::Relaxed) + 1;
        let all: Arc<[Message]> = (self.messages.drain(..).zip(first..))
            .map(|((topic, payload), seq)| Message::at_ns(topic, payload, received_ns, seq))
            .collect();
        let all_bytes = bytes_of(&all);
        for (queue, picks) in queues.iter().zip(&mut self.picks) {
            if picks.len() == all.len() {
                queue.push(&all, all_bytes);
            } else if !picks.is_empty() {
                // A list of its own keeps in memory what this consumer waits for, and no more.
                let own: Arc<[Message]> = picks
                    .iter()
                    .map(|place| all[*place as usize].clone())
                    .collect();
                queue.push(&own, bytes_of(&own));
            }
            picks.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::Settings;
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
                &mut router,
                &stats,
            );
        }
        batch.accept(b"\xff", Bytes::new(), &mut router, &stats);
        batch.push_to(&queues, &AtomicU64::new(100));

        let seqs = |queue: &Queue| -> Vec<u64> {
            std::iter::from_fn(|| queue.take_more())
                .flat_map(|piece| piece.iter().map(Message::seq).collect::<Vec<_>>())
                .collect()
        };
        assert_eq!(seqs(&queues[0]), [101, 102, 103, 104]);
        assert_eq!(seqs(&queues[1]), [102, 103]);
        assert_eq!(seqs(&queues[2]), [0; 0]);
        assert_eq!(stats.snapshot().refused.of(Refusal::Topic), 1);
    }
}
