//! A real ngircd, a client that sits in a channel, and a gate before the server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Long enough for the slowest machine; only a test that fails waits for it.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until it holds, for what can only be polled.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn free_port() -> u16 {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap().port()
}

/// The server; it ends with this value.
pub struct Ngircd {
    config: PathBuf,
    pub port: u16,
    child: Child,
}

impl Drop for Ngircd {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Ngircd {
    /// Starts it with these lines more in its configuration, and waits until it listens.
    pub fn start(dir: &Path, more: &str) -> Self {
        let port = free_port();
        let config = format!(
            "[Global]\nName = irc.example.test\nInfo = weir's tests\nAdminEMail = a@example.test\n\
             AdminInfo1 = tests\nListen = 127.0.0.1\nPorts = {port}\nMotdPhrase = hello\n\
             HelpFile = /dev/null\n\
             [Limits]\nMaxConnectionsIP = 0\nMaxNickLength = 30\n\
             [Options]\nDNS = no\nIdent = no\nPAM = no\n{more}\n"
        );
        let file = dir.join("ngircd.conf");
        std::fs::write(&file, config).unwrap();
        let mut server = Ngircd {
            child: spawn(&file),
            config: file,
            port,
        };
        server.await_start();
        server
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Starts it again where it was.
    pub fn start_again(&mut self) {
        self.child = spawn(&self.config);
        self.await_start();
    }

    fn await_start(&mut self) {
        let port = self.port;
        eventually("ngircd listens", || {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("ngircd ended with {status}");
            }
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }
}

fn spawn(config: &Path) -> Child {
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/peers/installed");
    // From the crate, and from the root package.
    let unpacked = [
        PathBuf::from(peers.replace("/consumers/irc/", "/")),
        PathBuf::from("/"),
    ]
    .into_iter()
    .flat_map(|root| [root.join("ngircd"), root])
    .find(|root| root.join("usr/sbin/ngircd").exists());
    let root = unpacked.expect("ngircd is missing; run `make setup`");
    Command::new(root.join("usr/sbin/ngircd"))
        // Debian's package is only unpacked, and so is a library of its.
        .env("LD_LIBRARY_PATH", root.join("usr/lib/x86_64-linux-gnu"))
        .args(["--nodaemon", "--config"])
        .arg(config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("ngircd; run `make setup`")
}

/// A client that sits in a channel and notes what is said.
pub struct Watcher {
    socket: TcpStream,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Watcher {
    /// Returns when it is in the channel.
    pub fn join(port: u16, nick: &str, channel: &str) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let watcher = Watcher {
            socket,
            seen: Arc::default(),
        };
        let seen = watcher.seen.clone();
        let socket = watcher.socket.try_clone().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(&socket).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8(line).unwrap();
                let line = line.trim_end_matches('\r').to_owned();
                if let Some(token) = line.strip_prefix("PING ") {
                    let _ = (&socket).write_all(format!("PONG {token}\r\n").as_bytes());
                }
                seen.lock().unwrap().push(line);
            }
        });
        watcher.send(&format!("NICK {nick}\r\nUSER w 0 * :w\r\nJOIN {channel}"));
        let joined = format!(" 366 {nick} {channel} ");
        eventually("the watcher is in", || {
            watcher.lines().iter().any(|line| line.contains(&joined))
        });
        watcher
    }

    pub fn send(&self, line: &str) {
        let line = format!("{line}\r\n");
        (&self.socket).write_all(line.as_bytes()).unwrap();
    }

    /// Everything that came.
    pub fn lines(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// What was said by this nick, in order.
    pub fn said(&self, nick: &str) -> Vec<String> {
        let from = format!(":{nick}!");
        (self.lines().into_iter())
            .filter(|line| line.starts_with(&from))
            .filter_map(|line| {
                let (_, rest) = line.split_once(" PRIVMSG ")?;
                Some(rest.split_once(" :")?.1.to_owned())
            })
            .collect()
    }
}

/// A way to the server that can be shut: what waits there gets through when it is opened.
pub struct Gate {
    pub port: u16,
    open: Arc<Mutex<bool>>,
}

impl Gate {
    /// An open gate before this port.
    pub fn before(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let gate = Gate {
            port: listener.local_addr().unwrap().port(),
            open: Arc::new(Mutex::new(true)),
        };
        let open = gate.open.clone();
        // Ends with the process.
        std::thread::spawn(move || {
            for inner in listener.incoming().map_while(Result::ok) {
                if !*open.lock().unwrap() {
                    continue;
                }
                if let Ok(outer) = TcpStream::connect(("127.0.0.1", port)) {
                    pump(&inner, &outer);
                    pump(&outer, &inner);
                }
            }
        });
        gate
    }

    /// Whether new connections get through.
    pub fn set(&self, open: bool) {
        *self.open.lock().unwrap() = open;
    }
}

fn pump(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(bytes @ 1..) = from.read(&mut buffer) {
            if to.write_all(&buffer[..bytes]).is_err() {
                break;
            }
        }
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}
