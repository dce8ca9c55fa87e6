//! The monitoring socket as its readers see it.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use serde_json::Value;
use weir::Hub;
use weir_consumer::Failure;
use zmq::{Context, Socket, SocketType};

use crate::support::{PATIENCE, fed, ipc, kind, recorder, stuck, try_kept};

fn section(endpoint: &str) -> String {
    format!("[moksha]\nsocket = {endpoint:?}\ninterval = '100ms'\n")
}

fn socket_in(dir: &Path) -> String {
    section(&ipc(dir, "socket"))
}

struct Reader(Socket);

impl Reader {
    fn connect(endpoint: &str) -> Self {
        let socket = Context::new().socket(SocketType::SUB).unwrap();
        socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        socket.set_subscribe(b"").unwrap();
        socket.connect(endpoint).unwrap();
        Reader(socket)
    }

    /// One consumer in the next frame.
    fn next(&self, name: &str) -> Value {
        let frame = self.0.recv_multipart(0).expect("a frame");
        assert_eq!(frame.len(), 1);
        let frame: Value = serde_json::from_slice(&frame[0]).unwrap();
        let consumers = frame["consumers"].as_array().unwrap();
        let own = consumers.iter().find(|consumer| consumer["name"] == name);
        own.expect("the consumer").clone()
    }
}

fn number(consumer: &Value, key: &str) -> u64 {
    consumer[key].as_u64().unwrap()
}

#[test]
fn differences_add_up_to_what_has_happened() {
    let dir = tempfile::tempdir().unwrap();
    let (stuck, release, inside) = stuck("stuck");
    let failing = kind("failing", |_| Err(Failure::drop("no")));
    let toml = format!(
        "{}[consumers.stuck]\ntopics = ''\n[consumers.failing]\ntopics = ''",
        socket_in(dir.path())
    );
    let (feed, hub) = fed(&toml, [stuck, failing]);
    let reader = Reader::connect(&ipc(dir.path(), "socket"));
    // From here on it misses nothing.
    assert_eq!(number(&reader.next("stuck"), "headcount_in"), 0);

    for _ in 0..7 {
        feed.send("t", "x").unwrap();
    }
    inside.recv_timeout(PATIENCE).unwrap();
    let (mut came, mut out) = (0, 0);
    let backlog = loop {
        let own = reader.next("stuck");
        came += number(&own, "headcount_in");
        out += number(&own, "headcount_out");
        if (came, out) == (7, 1) {
            break number(&own, "backlog");
        }
    };
    assert_eq!(backlog, 6); // the one in work is not counted
    drop(release);
    while out < 7 {
        let own = reader.next("stuck");
        assert_eq!(number(&own, "headcount_in"), 0);
        out += number(&own, "headcount_out");
    }
    assert_eq!(out, 7);

    // The other one has failed on these seven, and fails on three more.
    let reader = Reader::connect(&ipc(dir.path(), "socket"));
    while number(&reader.next("failing"), "exceptions") != 0 {}
    for _ in 0..3 {
        feed.send("t", "x").unwrap();
    }
    let (mut failed, mut times) = (0, 0);
    while failed < 3 || times < 3 {
        let own = reader.next("failing");
        failed += number(&own, "exceptions");
        times += own["times"].as_array().unwrap().len();
        assert!(failed <= 3 && times <= 3, "{own}");
    }
    // What was read in pieces is whole in the counters.
    let status = hub.status();
    let failing = status.consumers.iter().find(|c| c.name == "failing");
    assert_eq!(failing.unwrap().failed, 10);
    hub.stop();
}

#[test]
fn two_readers_are_told_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, _seen) = recorder("r");
    let toml = format!("{}[consumers.r]\ntopics = ''", socket_in(dir.path()));
    let (feed, hub) = fed(&toml, [kind]);
    let readers = [0, 1].map(|_| Reader::connect(&ipc(dir.path(), "socket")));
    for reader in &readers {
        assert_eq!(number(&reader.next("r"), "headcount_in"), 0);
    }
    for _ in 0..5 {
        feed.send("t", "x").unwrap();
    }
    for reader in &readers {
        let mut came = 0;
        while came < 5 {
            came += number(&reader.next("r"), "headcount_in");
        }
        assert_eq!(came, 5);
    }
    hub.stop();
}

#[test]
fn a_second_hub_is_refused_and_the_first_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let consumer = "[consumers.null]\ntopics = ''";
    let toml = format!("{}{consumer}", socket_in(dir.path()));
    let (_feed, first) = fed(&toml, []);
    let second = |toml: &str| -> Result<Hub, String> {
        let data = tempfile::tempdir().unwrap();
        try_kept(data.path(), toml, []).map(|(_, hub)| hub)
    };
    let refusal = second(&toml).err().expect("a refusal");
    assert!(refusal.contains("another hub, listens on"), "{refusal}");
    Reader::connect(&ipc(dir.path(), "socket")).next("null");
    first.stop();

    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("tcp://{}", port.local_addr().unwrap());
    let toml = format!("{}{consumer}", section(&endpoint));
    let refusal = second(&toml).err().expect("a refusal");
    assert!(refusal.contains("another hub, has it"), "{refusal}");
    drop(port);
    // Free again: at once after a stop, too.
    for _ in 0..2 {
        let hub = second(&toml).unwrap();
        Reader::connect(&endpoint).next("null");
        hub.stop();
    }
}

#[test]
fn a_stop_removes_the_hubs_own_socket_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let toml = format!("{}[consumers.null]\ntopics = ''", socket_in(dir.path()));
    // Left behind by a hub that died.
    drop(UnixListener::bind(&path).unwrap());
    let (_feed, hub) = fed(&toml, []);
    assert!(path.symlink_metadata().unwrap().file_type().is_socket());
    Reader::connect(&ipc(dir.path(), "socket")).next("null");
    hub.stop();
    assert!(path.symlink_metadata().is_err());

    let (_feed, hub) = fed(&toml, []);
    std::fs::remove_file(&path).unwrap();
    let _other = UnixListener::bind(&path).unwrap();
    hub.stop();
    UnixStream::connect(&path).unwrap();
}
