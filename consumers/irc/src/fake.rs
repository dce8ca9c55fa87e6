//! A server for tests: honest, but for what a test has it say instead.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use weir_consumer::settings::Settings;

use crate::Server;

/// Long enough for the slowest machine; only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it does about a line.
pub(crate) enum Answer {
    /// What a server does.
    Honest,
    /// Sends this instead; nothing when it is empty.
    Say(String),
    /// Sends this and closes the connection.
    Close(String),
}

/// Shorthand for one line.
pub(crate) fn say(line: &str) -> Answer {
    Answer::Say(format!("{line}\r\n"))
}

pub(crate) struct Fake {
    pub(crate) port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    connected: Arc<Mutex<Option<TcpStream>>>,
}

impl Fake {
    pub(crate) fn honest() -> Fake {
        Fake::start(|_, _| Answer::Honest)
    }

    /// Asks for each line, with the number of the connection from 1, what to do about it.
    pub(crate) fn start(mut answer: impl FnMut(usize, &str) -> Answer + Send + 'static) -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fake = Fake {
            port,
            seen: Arc::default(),
            connected: Arc::default(),
        };
        let (seen, connected) = (fake.seen.clone(), fake.connected.clone());
        // Ends with the process.
        std::thread::spawn(move || {
            for (number, stream) in (1..).zip(listener.incoming()) {
                let stream = stream.unwrap();
                *connected.lock().unwrap() = Some(stream.try_clone().unwrap());
                let mut user = User::default();
                for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                    seen.lock().unwrap().push(line.clone());
                    let (text, close) = match answer(number, &line) {
                        Answer::Honest => (user.honest(&line), line.starts_with("QUIT")),
                        Answer::Say(text) => (text, false),
                        Answer::Close(text) => (text, true),
                    };
                    let sent = (&stream).write_all(text.as_bytes());
                    if close || sent.is_err() {
                        break;
                    }
                }
                let _ = stream.shutdown(std::net::Shutdown::Both);
            }
        });
        fake
    }

    /// The settings of a connection there.
    pub(crate) fn server(&self, more: &str) -> Server {
        let toml = format!("{}\n{more}", self.toml());
        Settings::from_toml(&toml, "t").unwrap().parse().unwrap()
    }

    pub(crate) fn toml(&self) -> String {
        format!(
            "server = '127.0.0.1:{}'\nnick = 'weir'\ntls = false\nline_rate = '1000/s'",
            self.port
        )
    }

    /// The lines that it got so far.
    pub(crate) fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }

    /// Those that say something to somebody.
    pub(crate) fn said(&self) -> Vec<String> {
        let seen = self.seen().into_iter();
        seen.filter(|line| line.starts_with("PRIVMSG") || line.starts_with("NOTICE"))
            .collect()
    }

    /// Sends something of its own accord.
    pub(crate) fn interject(&self, text: &str) {
        self.interject_bytes(text.as_bytes());
    }

    pub(crate) fn interject_bytes(&self, bytes: &[u8]) {
        let mut connected = self.connection();
        let stream = connected.as_mut().unwrap();
        stream.write_all(bytes).unwrap();
    }

    fn connection(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.connected.lock().unwrap()
    }
}

#[derive(Default)]
struct User {
    nick: String,
    named: bool,
    registered: bool,
}

impl User {
    fn honest(&mut self, line: &str) -> String {
        let words: Vec<&str> = line.split(' ').collect();
        let nick = self.nick.clone();
        match words[0] {
            "NICK" => self.nick = words[1].to_owned(),
            "USER" => self.named = true,
            "JOIN" => return format!(":{nick}!u@h JOIN {}\r\n", words[1]),
            "PING" => return format!(":irc.test PONG irc.test {}\r\n", words[1]),
            _ => return String::new(),
        }
        if self.registered {
            return format!(":{nick}!u@h NICK :{}\r\n", self.nick);
        }
        self.registered = self.named && !self.nick.is_empty();
        match self.registered {
            true => format!(":irc.test 001 {} :Welcome\r\n", self.nick),
            false => String::new(),
        }
    }
}

/// Waits until it holds.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
