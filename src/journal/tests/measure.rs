//! How fast it is here: `cargo test --release -p weir --lib journal::tests::measure -- --ignored
//! --nocapture`.

use super::*;

#[test]
#[ignore = "a measurement, not a test"]
fn append_and_catch_up() {
    const BATCH: usize = 512;
    const BATCHES: usize = 4000;
    let dir = tempfile::tempdir_in(".").unwrap();
    let (journal, _) = Journal::open(dir.path(), &Settings::default(), 1).unwrap();
    let sync = thread::spawn({
        let journal = journal.clone();
        move || journal.run()
    });
    let topics: Vec<String> = (0..40).map(|i| format!("org.example.topic.{i}")).collect();
    let payload = [b'x'; 230];
    let mut took = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let records = (0..BATCH).map(|i| Record {
            topic: &topics[i % topics.len()],
            payload: &payload,
            source_seq: None,
        });
        let begun = Instant::now();
        let mut appender = journal.lock();
        appender.append(0, 1, records).unwrap();
        drop(appender);
        took.push(begun.elapsed());
    }
    let messages = (BATCH * BATCHES) as u128;
    let total: Duration = took.iter().sum();
    took.sort_unstable();
    println!(
        "append: {} ns a message; batches p50 {:?}, p99 {:?}, p99.9 {:?}, max {:?}",
        total.as_nanos() / messages,
        took[BATCHES / 2],
        took[BATCHES * 99 / 100],
        took[BATCHES * 999 / 1000],
        took[BATCHES - 1],
    );
    let shared: Vec<Arc<str>> = topics.iter().map(|topic| topic.as_str().into()).collect();
    for (what, wanted) in [("all", 40), ("one topic of 40", 1), ("none", 0)] {
        let mut reader = journal.reader(1);
        let mut want = |topic: &str| {
            let at: usize = topic.rsplit('.').next()?.parse().ok()?;
            (at < wanted).then(|| shared[at].clone())
        };
        let begun = Instant::now();
        while !matches!(reader.read(&mut want, 512, 4 << 20, 0).unwrap(), Read::End) {}
        let rate = messages as f64 / begun.elapsed().as_secs_f64();
        println!("catch-up, {what}: {:.2} million messages/s", rate / 1e6);
    }
    journal.close().unwrap();
    sync.join().unwrap();
}

use std::thread;
