//! `weir collectd` as collectd's plugin exec runs it, and the hub's own socket to collectd.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};

use crate::process::{Running, configure, stderr, stdout, weir};
use crate::support::*;

/// The program that collectd would have started, killed when it is dropped.
struct Teller {
    child: Child,
    lines: BufReader<ChildStdout>,
    errors: BufReader<ChildStderr>,
}

impl Drop for Teller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Teller {
    fn start(command: &mut Command) -> Self {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let errors = BufReader::new(child.stderr.take().unwrap());
        Teller {
            child,
            lines,
            errors,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "it ended");
        line
    }

    /// Reads on to the next value of this identifier, and answers what follows it.
    fn value(&mut self, identifier: &str) -> String {
        let begin = format!("PUTVAL {identifier} interval=0.05 ");
        loop {
            if let Some(rest) = self.line().strip_prefix(&begin) {
                return rest.trim_end().split_once(':').unwrap().1.to_owned();
            }
        }
    }

    /// Reads on to this value.
    fn until(&mut self, identifier: &str, value: &str) {
        while self.value(identifier) != value {}
    }

    /// Waits for the end; answers the exit code and what it said.
    fn end(mut self) -> (Option<i32>, String) {
        let mut said = String::new();
        self.errors.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), said)
    }
}

/// A hub with a consumer that stands still after its first message, on a port that stays the same
/// when it is started anew.
fn configured(dir: &Path, bus: &Bus) -> (std::path::PathBuf, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let http = port.local_addr().unwrap().to_string();
    let toml = format!(
        "[hub]\nname = 'fed-ora'\nhttp = '{http}'\nstop_deadline = '1ms'\n\
         [[backend]]\nconnect = ['{}']\n\
         [consumers.null]\ntopics = ''\n[consumers.irc]\nkind = 'null'\ntopics = ''\n\
         rate = '1/h'\nqueue.messages = 5\n",
        bus.endpoint
    );
    (configure(dir, &toml), format!("http://{http}"))
}

fn teller(http: &str, more: &[&str]) -> Command {
    let mut command = weir();
    command.args(["collectd", "--hub", http]).args(more);
    command.env("COLLECTD_HOSTNAME", "host.example.org");
    command.env("COLLECTD_INTERVAL", "0.050");
    command
}

#[test]
fn it_follows_the_hub_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    bus.socket.set_xpub_verbose(true).unwrap();
    // The end of a subscription may be told, too.
    let subscribed = || while bus.socket.recv_bytes(0).unwrap()[0] != 1 {};
    let (file, http) = configured(dir.path(), &bus);
    let mut early = Teller::start(&mut teller(&http, &[]));
    // It does not mind that there is no hub yet.
    let mut said = String::new();
    early.errors.read_line(&mut said).unwrap();
    assert!(said.contains("no hub answers"), "{said}");
    let start = || Running::start(weir().args(["hub", "--config"]).arg(&file));
    let hub = start();
    subscribed();
    let id = |rest: &str| format!("host.example.org/weir_fed_ora-irc/{rest}");
    // One is within its rate, and then five wait.
    bus.publish("t", "{}");
    early.until(&id("derive-consumed"), "1");
    for _ in 0..8 {
        bus.publish("t", "{}");
    }
    early.until(&id("queue_length"), "5");
    early.until(&id("derive-dropped_overflow"), "3");
    early.until("host.example.org/weir_fed_ora-null/derive-consumed", "9");
    assert!(early.value(&id("duration-lag")).parse::<f64>().unwrap() > 0.0);
    // The old dashboards' names for the same. What came before it looked is of no interval.
    let mut old = Teller::start(&mut teller(
        &http,
        &[
            "--layout",
            "fedmsg",
            "--service",
            "fedmsg-hub",
            "--host",
            "h",
        ],
    ));
    old.until("h/fedmsg-hub/queue_length-irc_backlog", "5");
    bus.publish("t", "{}");
    old.until("h/fedmsg-hub/gauge-null_in", "1");
    old.until("h/fedmsg-hub/gauge-null_in", "0");
    hub.signal("TERM");
    hub.end();
    early.until(&id("queue_length"), "U");
    old.until("h/fedmsg-hub/queue_length-irc_backlog", "U");
    let hub = start();
    subscribed();
    early.until(&id("queue_length"), "0");
    // Counters are told as they are: collectd sees that they went back.
    early.until("host.example.org/weir_fed_ora-null/derive-consumed", "0");
    bus.publish("t", "{}");
    bus.publish("t", "{}");
    let mut new = 0;
    while new < 2 {
        let value = old.value("h/fedmsg-hub/gauge-null_in");
        new += value.parse::<u64>().unwrap_or(0);
    }
    assert_eq!(new, 2);
    hub.signal("TERM");
    hub.end();
    early.until(&id("queue_length"), "U");

    let pid = early.child.id().to_string();
    let kill = Command::new("kill").args(["-s", "TERM", &pid]).status();
    assert!(kill.unwrap().success());
    let (code, said) = early.end();
    assert_eq!(code, Some(0), "{said}");
    // After the first: back, away, back, away; each said one time.
    assert_eq!(said.matches("no hub answers").count(), 2, "{said}");
    assert_eq!(said.matches("is back").count(), 2, "{said}");
}

#[test]
fn it_ends_when_collectd_has_gone() {
    // Also while there is nothing to tell: nobody answers there.
    let mut teller = Teller::start(&mut teller("/nowhere/control.sock", &[]));
    let mut said = String::new();
    teller.errors.read_line(&mut said).unwrap();
    drop(std::mem::replace(&mut teller.lines, nothing()));
    let (code, said) = teller.end();
    assert_eq!(code, Some(0), "{said}");
}

/// An output that has ended.
fn nothing() -> BufReader<ChildStdout> {
    let mut child = Command::new("true").stdout(Stdio::piped()).spawn().unwrap();
    let out = child.stdout.take().unwrap();
    child.wait().unwrap();
    BufReader::new(out)
}

#[test]
fn wrong_usage_is_said() {
    let run = |args: &[&str], interval: &str| {
        let mut command = teller("http://127.0.0.1:1", args);
        command.env("COLLECTD_INTERVAL", interval).output().unwrap()
    };
    for (args, interval, expected) in [
        (&["--interval", "0"][..], "10", "seconds"),
        (&["--layout", "new"], "10", "fedmsg"),
        (&["--host", "a/b"], "10", "--host a/b"),
        (&["--service", "a"], "10", "--layout fedmsg"),
        (
            &["--service", "a/b", "--layout", "fedmsg"],
            "10",
            "--service a/b",
        ),
        (&["--config", "weir.toml"], "10", "--hub"),
        (&[], "often", "COLLECTD_INTERVAL=often"),
    ] {
        let output = run(args, interval);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    }
    let output = run(&["--once"], "10.000");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no hub answers"));
}

#[test]
fn a_hub_tells_collectd_through_its_socket() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("collectd-unixsock");
    let listener = UnixListener::bind(&socket).unwrap();
    let toml = format!(
        "hub.name = 'fedora'\n[collectd]\nsocket = 'unixsock:{}'\nhost = 'h'\n\
         interval = '20ms'\n[consumers.null]\ntopics = ''\n",
        socket.display()
    );
    let (feed, hub) = fed(&toml, []);
    for _ in 0..7 {
        feed.send("t", "x").unwrap();
    }
    let expected = "PUTVAL h/weir_fedora-null/derive-consumed interval=0.02 ";
    'told: for stream in listener.incoming() {
        let mut stream = stream.unwrap();
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            let line = line.unwrap();
            // A refusal changes nothing for the lines after it.
            let _ = stream.write_all(b"-1 Error\n");
            if line.starts_with(expected) && line.ends_with(":7") {
                break 'told;
            }
        }
    }
    hub.stop();
}

#[test]
fn once_is_what_collectd_would_be_told() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    let (file, http) = configured(dir.path(), &bus);
    let hub = Running::start(weir().args(["hub", "--config"]).arg(&file));
    let mut command = weir();
    command.args(["collectd", "--once", "--config"]).arg(&file);
    let output = command.args(["--host", "h"]).output().unwrap();
    let text = stdout(&output);
    let depth = "PUTVAL h/weir_fed_ora-irc/queue_length interval=10 ";
    let found = text.lines().find(|line| line.starts_with(depth));
    assert!(found.is_some_and(|line| line.ends_with(":0")), "{text}");
    assert!(!http.is_empty());
    hub.signal("TERM");
    assert_eq!(hub.end().0, Some(0));
}
