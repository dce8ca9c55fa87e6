//! The npm statsd 0.9.0 server, read back on its management port.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use weir::backend::memory::Memory;
use weir::{Config, Hub, Registry};
use weir_consumer::{Context, Kind, Message, from_fn};

pub struct Server {
    child: Child,
    pub udp: u16,
    management: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    pub fn start(dir: &Path) -> Self {
        let udp = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let management = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let config = format!(
            "{{ port: {udp}, address: '127.0.0.1', mgmt_port: {management}, \
             mgmt_address: '127.0.0.1', backends: [], flushInterval: 3600000 }}"
        );
        let file = dir.join("statsd.js");
        std::fs::write(&file, config).unwrap();
        let server = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/peers/installed/npm/node_modules/statsd/stats.js"
        );
        assert!(
            Path::new(server).exists(),
            "{server} is missing; run `make setup`"
        );
        let child = Command::new("node")
            .arg(server)
            .arg(&file)
            .stdout(Stdio::null())
            .spawn()
            .expect("node; run `make setup`");
        Server {
            child,
            udp,
            management,
        }
    }

    /// What the management port answers, as lines up to END.
    pub fn ask(&self, question: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.management)).ok()?;
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .ok()?;
        writeln!(stream, "{question}").ok()?;
        let mut answer = String::new();
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if line == "END" {
                return Some(answer);
            }
            answer.push_str(&line);
            answer.push('\n');
        }
        None
    }

    /// The value of a gauge or counter in such an answer.
    fn value(&self, of: &str, name: &str) -> Option<f64> {
        let answer = self.ask(of)?;
        let (_, rest) = answer.split_once(&format!("'{name}': "))?;
        rest.split([',', ' ', '\n']).next()?.parse().ok()
    }
}

#[test]
#[ignore = "needs peers: make test"]
fn figures_arrive_at_the_real_statsd() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(dir.path());
    let patience = Instant::now() + Duration::from_secs(60);
    while server.ask("gauges").is_none() {
        assert!(Instant::now() < patience, "statsd did not start");
        std::thread::sleep(Duration::from_millis(10));
    }

    #[derive(serde::Deserialize)]
    struct NoSettings {}
    let (release, released) = crossbeam_channel::bounded::<()>(0);
    let stuck = Kind::consumer("stuck", move |_: NoSettings, _: &Context| {
        let released = released.clone();
        Ok(from_fn(move |_: &Message| {
            let _ = released.recv();
            Ok(())
        }))
    });
    let config = format!(
        "[hub]\nname = 'fedora'\nhttp = ''\n[journal]\nenabled = false\n[statsd]\naddress = '127.0.0.1:{}'\ninterval = '1s'\n\
         [consumers.stuck]\ntopics = ''\nqueue.messages = 5\n[consumers.null]\ntopics = ''",
        server.udp
    );
    let registry = Registry::builtin().with(stuck);
    let config = Config::embedded(&config, &registry).unwrap();
    let (feed, backend) = Memory::new(100);
    let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
    for _ in 0..9 {
        feed.send("t", "x").unwrap();
    }
    let gauge = |name: &str| server.value("gauges", &format!("weir.fedora.consumer.{name}"));
    let counter = |name: &str| server.value("counters", &format!("weir.fedora.consumer.{name}"));
    // Waits for the value; how many intervals it took is measured, not asserted.
    let arrives = |what: &str, read: &dyn Fn() -> Option<f64>, expected: f64| {
        let begin = Instant::now();
        while read() != Some(expected) {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{what}: {:?}",
                read()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        println!("{what} after {:?}", begin.elapsed());
    };
    arrives("depth", &|| gauge("stuck.queue_messages"), 5.0);
    arrives("in flight", &|| gauge("stuck.inflight_messages"), 1.0);
    arrives("capacity", &|| gauge("stuck.queue_capacity_messages"), 5.0);
    arrives("state", &|| gauge("stuck.state.working"), 1.0);
    arrives("received", &|| counter("stuck.received_total"), 9.0);
    arrives("dropped", &|| counter("stuck.dropped_total.overflow"), 4.0);
    arrives("consumed", &|| counter("null.consumed_total"), 9.0);
    assert!(gauge("stuck.lag_seconds").unwrap() > 0.0);
    drop(release);
    arrives("depth", &|| gauge("stuck.queue_messages"), 0.0);
    // What happened last is sent before the end.
    feed.send("t", "x").unwrap();
    while hub
        .status()
        .consumers
        .iter()
        .any(|consumer| consumer.received < 10)
    {
        std::thread::yield_now();
    }
    hub.stop();
    arrives("consumed", &|| counter("null.consumed_total"), 10.0);
}
