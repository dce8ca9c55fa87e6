//! The kind `notify` in a hub that is killed: a real mail server and a receiver of webhooks.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use zmq::{Socket, SocketType};

const PATIENCE: Duration = Duration::from_secs(60);

/// A program that ends with the test.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn server(script: &str, port: u16, arguments: &[&str]) -> Program {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/");
    let python = format!("{root}installed/venv/bin/python");
    assert!(Path::new(&python).exists(), "run `make setup`");
    let mut command = Command::new(python);
    command.arg(format!("{root}{script}")).args(arguments);
    let program = Program(command.stdin(Stdio::null()).spawn().unwrap());
    eventually(script, || TcpStream::connect(("127.0.0.1", port)).is_ok());
    program
}

fn hub(config: &Path) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command
        .args(["hub", "--config"])
        .arg(config)
        .env_remove("NOTIFY_SOCKET")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    Program(command.spawn().unwrap())
}

/// How often each number came, in this file of lines of JSON.
fn came(file: &Path, number: impl Fn(&Value) -> Option<u64>) -> BTreeMap<u64, usize> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let line: Option<Value> = serde_json::from_str(line).ok();
        if let Some(number) = line.as_ref().and_then(&number) {
            *counts.entry(number).or_default() += 1;
        }
    }
    counts
}

fn metrics(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let request = format!("GET /metrics HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    Some(page)
}

/// Publishes, and waits for subscribers.
fn bus() -> (Socket, String) {
    let socket = weir::backend::zmq::context()
        .socket(SocketType::XPUB)
        .unwrap();
    socket.set_linger(0).unwrap();
    socket.set_sndhwm(0).unwrap();
    socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
    // Also for a subscription like one that there is already: that of the hub before.
    socket.set_xpub_verbose(true).unwrap();
    socket.bind("tcp://127.0.0.1:*").unwrap();
    let endpoint = socket.get_last_endpoint().unwrap().unwrap();
    (socket, endpoint.trim_end_matches('\0').to_owned())
}

#[test]
#[ignore = "needs peers: make test"]
fn a_hub_that_is_killed_tells_everybody_everything() {
    const MESSAGES: u64 = 50;
    const KILLS: u64 = 4;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("mode"), "slow").unwrap();
    std::fs::write(path("secret"), "s3cret").unwrap();
    let (mail_port, hook_port, http_port) = (free_port(), free_port(), free_port());
    let shown = dir.path().display().to_string();
    let (mail, hook) = (mail_port.to_string(), hook_port.to_string());
    let _mail = server(
        "smtp_server.py",
        mail_port,
        &["--dir", &shown, "--port", &mail],
    );
    let _hooks = server("webhook_server.py", hook_port, &[&shown, &hook, "s3cret"]);
    let (bus, endpoint) = bus();
    let config = format!(
        "[hub]\nname = 'test'\ndata_dir = {shown:?}\nhttp = '127.0.0.1:{http_port}'\n\
         [[backend]]\nconnect = [{endpoint:?}]\n\
         [consumers.log]\ntopics = ['org.']\nfile = 'log'\n\
         [consumers.notify]\ntopics = ['org.']\nretry = {{ attempts = 0 }}\n\
         email = {{ server = '127.0.0.1:{mail_port}', tls = 'none', from = 'weir@example.org' }}\n\
         webhook = {{ secret = {{ file = 'secret' }} }}\n\
         [consumers.notify.texts]\nmail = '{{{{ payload }}}}'\n\
         [[consumers.notify.user]]\nname = 'ann'\nemail = 'ann@example.org'\n\
         webhook = 'http://127.0.0.1:{hook_port}/ok'\nrules = [{{ topics = ['org.'] }}]\n"
    );
    std::fs::write(path("weir.toml"), config).unwrap();
    let mails = || {
        came(&path("mails"), |mail| {
            mail["text"].as_str()?.trim().parse().ok()
        })
    };
    let hooks = || {
        came(&path("hooks"), |hook| {
            (hook["signed"] == true).then(|| hook["body"]["json"].as_u64())?
        })
    };
    let mut published = 0;
    for _ in 0..KILLS {
        let hub = hub(&path("weir.toml"));
        // Two consumers, one subscription of the backend's.
        while bus.recv_bytes(0).expect("a subscription")[0] != 1 {}
        for _ in 0..MESSAGES {
            published += 1;
            let payload = published.to_string();
            bus.send_multipart([b"org.a".as_slice(), payload.as_bytes()], 0)
                .unwrap();
        }
        // What the log has seen is in the journal. Mails are on their way meanwhile.
        eventually("all taken in", || {
            let log = std::fs::read_to_string(path("log")).unwrap_or_default();
            log.lines()
                .any(|line| line.ends_with(&format!(" {published}")))
        });
        let sent = mails().len();
        eventually("some sent", || mails().len() > sent);
        drop(hub); // kill -9
    }
    let _hub = hub(&path("weir.toml"));
    while bus.recv_bytes(0).expect("a subscription")[0] != 1 {}
    // So that also the last hub has something to tell, whatever was left to it.
    let all = MESSAGES * KILLS + 1;
    bus.send_multipart(["org.a", &all.to_string()], 0).unwrap();
    eventually("all mails", || mails().len() as u64 == all);
    eventually("all hooks", || hooks().len() as u64 == all);
    eventually("an empty outbox, and what went out, in the figures", || {
        let page = metrics(http_port).expect("an answer");
        let value = |name: &str, route: &str| -> Option<f64> {
            let label = format!("route=\"{route}\"");
            let mut of = page.lines().filter(|line| line.starts_with(name));
            let line = of.find(|line| line.contains(&label))?;
            line.rsplit_once(' ')?.1.parse().ok()
        };
        ["email", "webhook"].iter().all(|route| {
            value("notify_outbox_messages{", route) == Some(0.0)
                && value("notify_delivered_total{", route) > Some(0.0)
        })
    });
    for (route, came) in [("mails", mails()), ("hooks", hooks())] {
        let more: u64 = came.values().map(|count| *count as u64 - 1).sum();
        println!("{all} {route}, {KILLS} kills, {more} came twice");
        // At each kill one may have been taken whose answer was not noted.
        assert!(more <= KILLS, "{route}: {came:?}");
    }
}
