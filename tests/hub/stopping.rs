//! How a hub ends, and what is seen when a thread does.

use std::sync::Arc;
use std::time::Duration;

use weir::backend::Backend;
use weir::stats::{Reason, SourceStats};
use weir::{Config, Hub};

use crate::support::*;

#[test]
fn a_stop_lets_the_queues_empty() {
    let slow = kind("slow", |_| {
        std::thread::sleep(Duration::from_micros(100));
        Ok(())
    });
    let (feed, hub) = fed("[consumers.slow]\ntopics = ''", [slow]);
    for number in 0..1000 {
        feed.send("t", number.to_string()).unwrap();
    }
    eventually("received", || consumer(&hub, "slow").received == 1000);
    let stopped = hub.stop();
    assert_eq!(stopped.status.consumers[0].consumed, 1000);
    assert_eq!(stopped.stuck, [""; 0]);
}

#[test]
fn at_the_deadline_the_rest_is_counted_and_the_stuck_are_named() {
    let (stuck, release, inside) = stuck("stuck");
    let (limited, _seen) = recorder("limited");
    let toml = "hub.stop_deadline = '50ms'\n\
                [consumers.stuck]\ntopics = ''\n\
                [consumers.limited]\ntopics = ''\nrate = '1/h'";
    let (feed, hub) = fed(toml, [stuck, limited]);
    for number in 0..10 {
        feed.send("t", number.to_string()).unwrap();
    }
    inside.recv_timeout(PATIENCE).unwrap();
    for name in ["stuck", "limited"] {
        eventually("received", || consumer(&hub, name).received == 10);
    }
    eventually("the burst of one", || {
        consumer(&hub, "limited").consumed == 1
    });
    let stopped = hub.stop();
    assert_eq!(stopped.stuck, ["stuck"]);
    assert_conserved(&stopped.status);
    let by = |name: &str| {
        stopped
            .status
            .consumers
            .iter()
            .find(|c| c.name == name)
            .unwrap()
    };
    assert_eq!(by("limited").dropped.of(Reason::Stopped), 9);
    assert_eq!((by("stuck").in_flight, by("stuck").waiting), (1, 9));
    drop(release);
}

#[test]
fn an_enqueuer_that_waits_for_room_does_not_hold_up_the_stop() {
    let (stuck, release, inside) = stuck("stuck");
    let toml = "hub.stop_deadline = '50ms'\n[consumers.stuck]\ntopics = ''\n\
                queue = { messages = 1, overflow = 'block' }";
    let (feed, hub) = fed(toml, [stuck]);
    for number in 0..10 {
        feed.send("t", number.to_string()).unwrap();
    }
    inside.recv_timeout(PATIENCE).unwrap();
    let stopped = hub.stop();
    assert_eq!(stopped.stuck, ["stuck"]);
    assert_conserved(&stopped.status);
    drop(release);
}

struct Dies;

impl Backend for Dies {
    fn receive(
        &mut self,
        _: &mut weir::backend::Accept<'_>,
        _: usize,
        _: Duration,
    ) -> Result<usize, String> {
        Err("the disk is on fire".into())
    }
    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        Arc::new(|| {})
    }
    fn stats(&self) -> Arc<SourceStats> {
        Arc::default()
    }
    fn describe(&self) -> Vec<String> {
        Vec::new()
    }
}

#[test]
fn a_thread_that_dies_is_seen() {
    // The stop does not wait for the dead: the test would not end.
    let config = "hub.http = ''\njournal.enabled = false\nhub.stop_deadline = '1h'\n[consumers.null]\ntopics = ''";
    let config = Config::embedded(config, &registry([])).unwrap();
    let hub = Hub::start_with(&config, vec![Box::new(Dies)]).unwrap();
    let ended = hub.ends().recv_timeout(PATIENCE).unwrap();
    assert_eq!(ended.thread, "weir-intake-0");
    assert_eq!(ended.error.as_deref(), Some("the disk is on fire"));
    hub.stop();
}

#[test]
fn what_can_not_start_leaves_nothing_running() {
    let bus = Bus::tcp();
    let toml = format!(
        "[[backend]]\nbind = ['{}']\n[consumers.null]\ntopics = ''",
        bus.endpoint
    );
    let config = Config::from_toml(
        &format!("hub.http = ''\njournal.enabled = false\n{toml}"),
        "test",
        &registry([]),
    )
    .unwrap();
    let error = Hub::start(&config).err().unwrap();
    assert!(
        error.contains(&bus.endpoint) && error.contains("another program"),
        "{error}"
    );
}
