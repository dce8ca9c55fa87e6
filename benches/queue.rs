//! The steps of a message's way through the hub, one by one: criterion's numbers, for finding out
//! which of them a change has made slower. What they add up to, end_to_end measures.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use weir::queue::{Queue, Settings, Taken, Taker, bytes_of};
use weir::router::Router;
use weir::stats::{Settled, Stats};
use weir_consumer::Message;

/// As in src/main.rs.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn queue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("queue");
    for messages in [1, 512] {
        let batch: Arc<[Message]> = (0..messages)
            .map(|seq| {
                let payload = vec![b'x'; 200].into();
                Message::new("org.example.bench".into(), payload, SystemTime::now(), seq)
            })
            .collect();
        let bytes = bytes_of(&batch);
        let stats = Arc::new(Stats::new(1));
        let queue = Arc::new(Queue::new(Settings::default(), stats, None));
        let mut taker = Taker::new(queue.clone(), Some(0));
        let worker = queue.stats().worker(0);
        group.throughput(Throughput::Elements(messages));
        group.bench_function(format!("push, take and settle each of {messages}"), |b| {
            b.iter(|| {
                queue.push(&batch, bytes, false);
                let Taken::Piece(piece) = taker.take(|| {}, Instant::now()) else {
                    unreachable!("a batch has just been put in");
                };
                for message in piece.iter() {
                    queue.settle(worker, Settled::Consumed, std::slice::from_ref(message));
                }
            });
        });
    }
}

fn route(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("route");
    let wanted: Vec<Vec<String>> = (0..16).map(|n| vec![format!("org.example.{n}.")]).collect();
    let mut router = Router::new(wanted.clone());
    group.bench_function("hit", |b| {
        b.iter(|| {
            let route = router.route(black_box(b"org.example.7.build"));
            route.map(|route| route.targets.len())
        });
    });
    group.bench_function("miss, 16 consumers", |b| {
        b.iter_batched_ref(
            || Router::new(wanted.clone()),
            |router| {
                let route = router.route(black_box(b"org.example.7.build"));
                route.map(|route| route.targets.len())
            },
            BatchSize::SmallInput,
        );
    });
}

criterion_group!(benches, queue, route);
criterion_main!(benches);
