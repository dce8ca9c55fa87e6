//! The monitoring socket as its readers see it.

use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Instant;

use serde_json::Value;
use weir::Hub;
use weir_consumer::Failure;
use zmq::{Context, Socket, SocketType};

use crate::support::{PATIENCE, consumer, fed, ipc, kind, recorder, stuck, try_kept};

fn section(endpoint: &str) -> String {
    format!("[moksha]\nsocket = {endpoint:?}\ninterval = '100ms'\n")
}

fn socket_in(dir: &Path) -> String {
    section(&ipc(dir, "socket"))
}

struct Reader {
    socket: Socket,
    deadline: Instant,
}

impl Reader {
    fn connect(endpoint: &str) -> Self {
        let socket = Context::new().socket(SocketType::SUB).unwrap();
        socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        socket.set_subscribe(b"").unwrap();
        socket.connect(endpoint).unwrap();
        Reader {
            socket,
            deadline: Instant::now() + PATIENCE,
        }
    }

    fn frame(&self) -> Value {
        assert!(Instant::now() < self.deadline, "nothing new in frames");
        let frame = self.socket.recv_multipart(0).expect("a frame");
        assert_eq!(frame.len(), 1);
        serde_json::from_slice(&frame[0]).unwrap()
    }

    /// One consumer in the next frame.
    fn next(&self, name: &str) -> Value {
        named(&self.frame(), name).clone()
    }
}

fn named<'f>(frame: &'f Value, name: &str) -> &'f Value {
    let consumers = frame["consumers"].as_array().unwrap();
    let own = consumers.iter().find(|consumer| consumer["name"] == name);
    own.expect("the consumer")
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
    let mut sums = [0; 3];
    // Reads on until so many came, were taken and failed; answers the backlog then.
    let mut until = |expected: [u64; 3]| loop {
        let frame = reader.frame();
        let (stuck, failing) = (named(&frame, "stuck"), named(&frame, "failing"));
        sums[0] += number(stuck, "headcount_in");
        sums[1] += number(stuck, "headcount_out");
        sums[2] += number(failing, "exceptions");
        if sums == expected {
            return number(stuck, "backlog");
        }
        assert!(sums.iter().zip(expected).all(|(sum, all)| *sum <= all));
    };
    assert_eq!(until([7, 1, 7]), 6); // the one in work is not counted
    drop(release);
    assert_eq!(until([7, 7, 7]), 0);
    assert_eq!(until([7, 7, 7]), 0); // and no difference is told twice
    let failing = consumer(&hub, "failing");
    assert_eq!((failing.received, failing.failed), (7, 7));
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
