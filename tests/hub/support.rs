//! A bus, a hub and consumers that tell what they see.

use std::path::Path;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use serde::Deserialize;
use weir::backend::memory::{Feed, Memory};
use weir::monitor::ConsumerStatus;
use weir::{Config, Hub, Registry};
use weir_consumer::{Consumer, Context, Kind, Message, Result, from_fn};
use zmq::{Socket, SocketType};

/// Long enough for the slowest machine; only a test that fails waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until it holds, for what can only be polled.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoSettings {}

/// A kind whose instances all call this function.
pub fn kind(
    name: &str,
    consume: impl Fn(&Message) -> Result + Clone + Send + Sync + 'static,
) -> Kind {
    Kind::consumer(name, move |_: NoSettings, _: &Context| {
        Ok(from_fn(consume.clone()))
    })
}

/// What a recording consumer saw: topic and payload.
pub type Seen = Receiver<(String, Vec<u8>)>;

/// A kind that tells what it sees.
pub fn recorder(name: &str) -> (Kind, Seen) {
    let (sender, seen) = unbounded();
    (kind(name, move |message| record(&sender, message)), seen)
}

pub fn record(sender: &Sender<(String, Vec<u8>)>, message: &Message) -> Result {
    sender.send((message.topic().into(), message.payload().to_vec()))?;
    Ok(())
}

/// A kind that waits inside `consume` until the sender is dropped, and tells when it is there.
pub fn stuck(name: &str) -> (Kind, Sender<()>, Receiver<()>) {
    let (release, released) = unbounded::<()>();
    let (entered, inside) = unbounded();
    let kind = kind(name, move |_| {
        let _ = entered.send(());
        let _ = released.recv();
        Ok(())
    });
    (kind, release, inside)
}

#[track_caller]
pub fn next(seen: &Seen) -> (String, Vec<u8>) {
    seen.recv_timeout(PATIENCE).expect("a message")
}

/// The payloads of the next messages as numbers.
#[track_caller]
pub fn numbers(seen: &Seen, count: usize) -> Vec<u64> {
    (0..count)
        .map(|_| String::from_utf8(next(seen).1).unwrap().parse().unwrap())
        .collect()
}

pub fn registry(kinds: impl IntoIterator<Item = Kind>) -> Registry {
    kinds.into_iter().fold(Registry::builtin(), Registry::with)
}

/// What the tests of everything but the journal begin with.
const MEMORY: &str = "hub.http = ''\njournal.enabled = false\n";

/// A hub that is fed by the test and keeps nothing.
pub fn fed(toml: &str, kinds: impl IntoIterator<Item = Kind>) -> (Feed, Hub) {
    let config = Config::embedded(&format!("{MEMORY}{toml}"), &registry(kinds));
    let (feed, backend) = Memory::new(10_000);
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    (
        feed,
        Hub::start_with(&config, vec![Box::new(backend)]).unwrap(),
    )
}

/// A hub that is fed by the test and keeps a journal in this directory.
pub fn try_kept(
    dir: &Path,
    toml: &str,
    kinds: impl IntoIterator<Item = Kind>,
) -> std::result::Result<(Feed, Hub), String> {
    let toml = format!("hub.http = ''\nhub.data_dir = {dir:?}\n{toml}");
    let config = Config::embedded(&toml, &registry(kinds));
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let (feed, backend) = Memory::new(10_000);
    let hub = Hub::start_with(&config, vec![Box::new(backend)])?;
    Ok((feed, hub))
}

/// A hub with sockets.
pub fn hub(toml: &str, kinds: impl IntoIterator<Item = Kind>) -> Hub {
    let config = Config::from_toml(&format!("{MEMORY}{toml}"), "test", &registry(kinds));
    Hub::start(&config.unwrap_or_else(|mistakes| panic!("{mistakes}"))).unwrap()
}

pub fn consumer(hub: &Hub, name: &str) -> ConsumerStatus {
    hub.status()
        .consumers
        .into_iter()
        .find(|consumer| consumer.name == name)
        .unwrap()
}

#[track_caller]
pub fn assert_conserved(status: &weir::monitor::Status) {
    for c in &status.consumers {
        let sum = c.consumed + c.dropped.total() + c.dead_lettered + c.waiting + c.in_flight;
        assert_eq!(c.received, sum, "{c:?}");
    }
}

/// A publisher that knows who has subscribed.
pub struct Bus {
    pub socket: Socket,
    pub endpoint: String,
}

impl Bus {
    /// A publisher on a free port.
    pub fn tcp() -> Self {
        Bus::bind("tcp://127.0.0.1:*")
    }

    pub fn bind(endpoint: &str) -> Self {
        let socket = weir::backend::zmq::context()
            .socket(SocketType::XPUB)
            .unwrap();
        socket.set_linger(0).unwrap();
        socket.set_sndhwm(0).unwrap();
        socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        socket.bind(endpoint).unwrap();
        let endpoint = socket.get_last_endpoint().unwrap().unwrap();
        Bus {
            socket,
            endpoint: endpoint.trim_end_matches('\0').to_owned(),
        }
    }

    /// Waits for subscriptions and answers their prefixes.
    #[track_caller]
    pub fn subscriptions(&self, count: usize) -> Vec<String> {
        let mut prefixes: Vec<String> = (0..count)
            .map(|_| {
                let event = self.socket.recv_bytes(0).expect("a subscription");
                assert_eq!(event[0], 1);
                String::from_utf8(event[1..].to_vec()).unwrap()
            })
            .collect();
        prefixes.sort();
        prefixes
    }

    pub fn publish(&self, topic: &str, payload: impl AsRef<[u8]>) {
        self.frames(&[topic.as_bytes(), payload.as_ref()]);
    }

    pub fn frames(&self, frames: &[&[u8]]) {
        self.socket.send_multipart(frames, 0).unwrap();
    }
}

/// The section of a backend that connects there.
pub fn connect(endpoints: &[&str]) -> String {
    format!("[[backend]]\nconnect = {endpoints:?}\n")
}

/// A consumer with a batch size of its own.
pub struct Batched<F>(pub usize, pub F);

impl<F: FnMut(&[Message]) -> Result + Send> Consumer for Batched<F> {
    fn consume(&mut self, message: &Message) -> Result {
        (self.1)(std::slice::from_ref(message))
    }
    fn batch_max(&self) -> usize {
        self.0
    }
    fn consume_batch(&mut self, batch: &[Message]) -> Result {
        (self.1)(batch)
    }
}

pub fn ipc(dir: &Path, name: &str) -> String {
    format!("ipc://{}", dir.join(name).display())
}
