//! Real servers of IRC, a client that sits in a channel, and a gate before a server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
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

/// Where `tests/peers/setup` unpacks Debian's packages.
fn installed() -> PathBuf {
    // From the crate, and from the root package.
    let root = env!("CARGO_MANIFEST_DIR").trim_end_matches("/consumers/irc");
    let installed = Path::new(root).join("tests/peers/installed/irc");
    let shown = installed.display();
    assert!(installed.exists(), "{shown} is missing; run `make setup`");
    installed
}

/// A program; it ends with this value.
struct Process(Child);

impl Process {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let installed = installed();
        let libraries = std::fs::read_dir(installed.join("usr/lib")).unwrap();
        // "x86_64-linux-gnu" or another.
        let libraries = libraries
            .map(|entry| entry.unwrap().path())
            .find(|path| path.join("libident.so.0").exists());
        let child = Command::new(installed.join(program))
            .env("LD_LIBRARY_PATH", libraries.unwrap())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        Process(child.expect("the program; run `make setup`"))
    }

    /// Waits until it listens there.
    #[track_caller]
    fn await_port(&mut self, port: u16) {
        eventually("the server listens", || {
            if let Some(status) = self.0.try_wait().unwrap() {
                panic!("the server ended with {status}");
            }
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A server without services, which delays those who are too fast.
pub struct Ngircd {
    config: String,
    pub port: u16,
    process: Option<Process>,
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
            config: file.to_str().unwrap().to_owned(),
            port,
            process: None,
        };
        server.start_again();
        server
    }

    /// Ends it at once, as a crash does.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Starts it where it was.
    pub fn start_again(&mut self) {
        let arguments = ["--nodaemon", "--config", &self.config];
        let mut process = Process::start("usr/sbin/ngircd", &arguments);
        process.await_port(self.port);
        self.process = Some(process);
    }
}

/// A server that throws out those who are too fast, with services at which accounts are registered.
#[allow(dead_code)] // not by the tests with a hub
pub struct Inspircd {
    pub port: u16,
    _server: Process,
    _services: Process,
}

#[allow(dead_code)]
impl Inspircd {
    pub fn start(dir: &Path) -> Self {
        let (port, link) = (free_port(), free_port());
        let (shown, installed) = (dir.display(), installed());
        let config = format!(
            r#"<config format="xml">
            <server name="irc.example.test" description="tests" network="Test">
            <admin name="a" nick="a" email="a@example.test">
            <bind address="127.0.0.1" port="{port}" type="clients">
            <bind address="127.0.0.1" port="{link}" type="servers">
            <path moduledir="{modules}" datadir="{shown}" logdir="{shown}" configdir="{shown}"
                runtimedir="{shown}">
            <connect name="main" allow="*" timeout="60" threshold="10" commandrate="1000"
                fakelag="no" localmax="100" globalmax="100" resolvehostnames="no" useident="no"
                hardsendq="1M" softsendq="8192" recvq="64K" pingfreq="120" modes="">
            <pid file="{shown}/inspircd.pid">
            <module name="cap"> <module name="sasl"> <module name="services_account">
            <module name="spanningtree">
            <sasl target="services.example.test" requiressl="no">
            <link name="services.example.test" ipaddr="127.0.0.1" port="{link}"
                allowmask="127.0.0.1" sendpass="link" recvpass="link">
            <uline server="services.example.test" silent="yes">"#,
            modules = installed.join("usr/lib/inspircd/modules").display(),
        );
        let file = dir.join("inspircd.conf");
        std::fs::write(&file, config).unwrap();
        let arguments = ["--nofork", "--nolog", "--runasroot", "--config"];
        let arguments = [&arguments[..], &[file.to_str().unwrap()]].concat();
        let mut server = Process::start("usr/sbin/inspircd", &arguments);
        server.await_port(port);
        let services = services(dir, link);
        Inspircd {
            port,
            _server: server,
            _services: services,
        }
    }

    /// A watcher whose nick is an account with this password.
    pub fn register(&self, nick: &str, password: &str) -> Watcher {
        let watcher = Watcher::join(self.port, nick, "#weir");
        // The services may not be there yet. No faster than the server allows.
        eventually("the account is registered", || {
            watcher.send(&format!(
                "PRIVMSG NickServ :REGISTER {password} a@example.test"
            ));
            std::thread::sleep(Duration::from_secs(3));
            watcher
                .lines()
                .iter()
                .any(|line| line.contains(" is now registered to "))
        });
        watcher
    }
}

/// The services, which link to the server at this port.
#[allow(dead_code)]
fn services(dir: &Path, link: u16) -> Process {
    let libraries = std::fs::read_dir(installed().join("usr/lib")).unwrap();
    let modules = libraries
        .map(|entry| entry.unwrap().path().join("atheme/modules"))
        .find(|path| path.exists())
        .unwrap();
    // With what each of them needs before it: by itself it would look for that in /usr/lib.
    let loaded: String = [
        "transport/rfc1459",
        "protocol/base36uid",
        "protocol/inspircd",
        "backend/corestorage",
        "backend/opensex",
        "crypto/pbkdf2v2",
        "nickserv/main",
        "nickserv/register",
        "saslserv/main",
        "saslserv/plain",
    ]
    .iter()
    .map(|name| format!("loadmodule \"{}/{name}\";\n", modules.display()))
    .collect();
    let service = |kind: &str, nick: &str| {
        format!(
            "{kind} {{ nick = \"{nick}\"; user = \"{nick}\"; host = \"services.example.test\"; \
             real = \"{nick}\"; }};\n"
        )
    };
    let config = format!(
        "{loaded}serverinfo {{ name = \"services.example.test\"; desc = \"tests\"; numeric = \
         \"00A\"; recontime = 1; netname = \"Test\"; adminname = \"a\"; adminemail = \
         \"a@example.test\"; registeremail = \"a@example.test\"; auth = none; casemapping = \
         rfc1459; }};\nuplink \"irc.example.test\" {{ host = \"127.0.0.1\"; send_password = \
         \"link\"; receive_password = \"link\"; port = {link}; }};\n{}{}general {{ }};\n",
        service("nickserv", "NickServ"),
        service("saslserv", "SaslServ"),
    );
    let file = dir.join("atheme.conf");
    std::fs::write(&file, config).unwrap();
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (config, log, pid) = (path("atheme.conf"), path("atheme.log"), path("atheme.pid"));
    let data = path("");
    let arguments = ["-n", "-c", &config, "-D", &data, "-l", &log, "-p", &pid];
    Process::start("usr/bin/atheme-services", &arguments)
}

/// A client that sits in a channel and notes what is said.
pub struct Watcher {
    socket: TcpStream,
    seen: Arc<Mutex<Vec<String>>>,
    cut_off: Arc<AtomicBool>,
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
            cut_off: Arc::default(),
        };
        let (seen, cut_off) = (watcher.seen.clone(), watcher.cut_off.clone());
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
            cut_off.store(true, SeqCst);
        });
        watcher.send(&format!("NICK {nick}\r\nUSER w 0 * :w"));
        let welcomed = format!(" 001 {nick} ");
        eventually("the watcher is welcome", || {
            watcher.lines().iter().any(|line| line.contains(&welcomed))
        });
        watcher.send(&format!("JOIN {channel}"));
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

    /// Whether the connection has ended, and all that came has been noted.
    pub fn is_cut_off(&self) -> bool {
        self.cut_off.load(SeqCst)
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
