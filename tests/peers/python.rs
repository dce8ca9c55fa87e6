//! The Python package `weir_consumer`: its own tests, its types, and its consumers behind a hub.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weir::monitor::ConsumerStatus;
use weir::{Config, Hub, Registry};
use zmq::{Socket, SocketType};

const PATIENCE: Duration = Duration::from_secs(60);

/// A program of the environment in Python that `tests/peers/setup` made.
fn installed(program: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("tests/peers/installed/venv/bin").join(program);
    assert!(path.exists(), "{path:?} is missing; run `make setup`");
    path
}

fn package() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("consumers/exec/python")
}

#[test]
#[ignore = "needs peers: make test"]
fn the_packages_own_tests_pass() {
    let mut command = Command::new(installed("python"));
    command.args(["-m", "unittest", "discover", "tests"]);
    let output = command.current_dir(package()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // Those of the bridge would be without Moksha.
    assert!(!said.contains("skipped"), "{said}");
}

#[test]
#[ignore = "needs peers: make test"]
fn the_package_is_typed() {
    let mut mypy = Command::new(installed("mypy"));
    let output = mypy.current_dir(package()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

#[test]
#[ignore = "needs peers: make test"]
fn the_examples_of_the_page_are_typed() {
    let dir = tempfile::tempdir().unwrap();
    let files = ["worker.py", "tally.py", "harness.py"];
    for (nth, file) in files.iter().enumerate() {
        std::fs::write(dir.path().join(file), example(nth)).unwrap();
    }
    let mut mypy = Command::new(installed("mypy"));
    mypy.arg("--strict").args(files);
    mypy.current_dir(&dir)
        .env("MYPYPATH", package().join("src"));
    let output = mypy.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}");
}

/// A hub with one consumer on a bus, and a subscriber to what the hub publishes.
struct Scene {
    _dir: tempfile::TempDir,
    hub: Hub,
    bus: Socket,
    out: Socket,
}

impl Scene {
    /// Writes this as `worker.py`, and starts a hub whose consumer has these keys.
    fn start(source: &str, section: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("worker.py"), source).unwrap();
        let [bus_at, out_at] =
            ["bus", "out"].map(|name| format!("ipc://{}", dir.path().join(name).display()));
        let context = weir::backend::zmq::context();
        let bus = context.socket(SocketType::XPUB).unwrap();
        bus.set_linger(0).unwrap();
        bus.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        bus.bind(&bus_at).unwrap();
        let out = context.socket(SocketType::SUB).unwrap();
        out.set_subscribe(b"").unwrap();
        out.connect(&out_at).unwrap();
        let toml = format!(
            "[hub]\nhttp = ''\ndata_dir = {data:?}\n[[backend]]\nconnect = [{bus_at:?}]\n\
             [publish]\nbind = [{out_at:?}]\n\
             [consumers.python]\nkind = 'exec'\ntopics = ['org.example.']\n\
             retry = {{ attempts = 2, delay = '1ms', delay_max = '1ms' }}\n\
             directory = {dir:?}\nenvironment = {{ PYTHONPATH = {path:?} }}\n\
             start_timeout = '60s'\ntimeout = '60s'\nstop_timeout = '60s'\n{section}",
            data = dir.path().join("data"),
            dir = dir.path(),
            path = package().join("src"),
        );
        let config = Config::from_toml(&toml, "test", &Registry::builtin());
        let hub = Hub::start(&config.unwrap_or_else(|mistakes| panic!("{mistakes}"))).unwrap();
        assert_eq!(bus.recv_bytes(0).unwrap(), b"\x01org.example.");
        Scene {
            _dir: dir,
            hub,
            bus,
            out,
        }
    }

    fn publish(&self, topic: &str, payload: &str) {
        self.bus.send_multipart([topic, payload], 0).unwrap();
    }

    fn consumer(&self) -> ConsumerStatus {
        self.hub.status().consumers.remove(0)
    }

    fn eventually(&self, what: &str, holds: impl Fn(&ConsumerStatus) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(&self.consumer()) {
            let status = self.consumer();
            assert!(Instant::now() < deadline, "still not: {what}; {status:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The next message that the hub publishes, if one is there within this time.
    fn published(&self, within: Duration) -> Option<(String, Value)> {
        self.out.set_rcvtimeo(within.as_millis() as i32).unwrap();
        let frames = self.out.recv_multipart(0).ok()?;
        let topic = String::from_utf8(frames[0].clone()).unwrap();
        Some((topic, serde_json::from_slice(&frames[1]).unwrap()))
    }

    /// Publishes this until what the consumer makes of it arrives: then all ways are open. Answers
    /// how often.
    fn open(&self, topic: &str, payload: &str) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        let mut sent = 0;
        loop {
            assert!(Instant::now() < deadline, "{:?}", self.consumer());
            self.publish(topic, payload);
            sent += 1;
            if self.published(Duration::from_millis(20)).is_some() {
                return sent;
            }
        }
    }
}

/// Knows nothing of weir.
const LEGACY: &str = r#"
from moksha.hub.api.consumer import Consumer

class Twice(Consumer):
    topic = ["org.example.a", "org.example.b"]

    def consume(self, message):
        number = message["body"]["number"]
        prefix = self.hub.config["my.prefix"]
        self.send_message(prefix + message["topic"], {"twice": number * 2})
"#;

#[test]
#[ignore = "needs peers: make test"]
fn a_class_of_moksha_runs_behind_a_hub() {
    const MESSAGES: u64 = 500;
    let command = format!(
        "command = [{:?}, '-m', 'weir_consumer.moksha', 'worker:Twice']\nbatch_max = 50\n\
         settings = {{ 'my.prefix' = 'out.' }}",
        installed("python")
    );
    let scene = Scene::start(LEGACY, &command);
    let probes = scene.open("org.example.b", r#"{"number": 0}"#);
    for number in 1..=MESSAGES {
        scene.publish("org.example.a", &format!(r#"{{"number": {number}}}"#));
    }
    let mut number = 0;
    while number < MESSAGES {
        let (topic, body) = scene.published(PATIENCE).expect("a message");
        if topic == "out.org.example.b" {
            continue; // a probe that was late
        }
        number += 1;
        let expected = ("out.org.example.a".to_owned(), json!({"twice": number * 2}));
        assert_eq!((topic, body), expected);
    }

    scene.publish("org.example.a", "[]"); // TypeError
    scene.publish("org.example.other", "{}"); // of no topic of the class
    scene.eventually("all are settled", |it| {
        it.received == probes + MESSAGES + 2 && it.waiting + it.in_flight == 0
    });
    let settled = scene.consumer();
    assert_eq!(settled.consumed, probes + MESSAGES);
    assert_eq!(settled.dead_lettered, 1);
    assert_eq!(settled.dropped.total(), 1);
    assert!(scene.hub.stop().stuck.is_empty());
}

/// A block in Python of docs/kinds/python.md; the first is 0.
fn example(nth: usize) -> String {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/kinds/python.md");
    let page = std::fs::read_to_string(page).unwrap();
    let block = page.split("```python\n").nth(nth + 1).unwrap();
    block.split("```").next().unwrap().to_owned()
}

#[test]
#[ignore = "needs peers: make test"]
fn the_example_of_the_page_runs_behind_a_hub() {
    let command = format!(
        "command = [{:?}, 'worker.py']\nbatch_max = 10\nsettings = {{ topic = 'org.done' }}",
        installed("python")
    );
    let scene = Scene::start(&example(0), &command);
    let done = r#"{"name": "weir", "state": "done"}"#;
    let probes = scene.open("org.example.build", done);
    scene.publish("org.example.build", r#"{"name": "weir", "state": "begun"}"#);
    scene.publish("org.example.build", "no json");
    scene.publish("org.example.build", r#"{"state": "done"}"#);
    scene.eventually("all are settled", |it| {
        it.received == probes + 3 && it.waiting + it.in_flight == 0
    });
    let settled = scene.consumer();
    assert_eq!(settled.consumed, probes);
    assert_eq!(settled.dropped.total(), 1);
    assert_eq!(settled.dead_lettered, 2);
    assert!(scene.hub.stop().stuck.is_empty());
}
