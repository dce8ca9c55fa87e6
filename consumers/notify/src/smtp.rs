//! A session with a mail server.
//!
//! 1. Nothing takes longer than the deadline it was given, however slowly the server answers.
//! 2. No answer takes more memory than 100 lines of 2 KiB.
//! 3. A mail is delivered when the server has said 250 to its end, and not before.
//! 4. What fails tells whose trouble it is: that of the recipient alone, or everybody's.
//!
//! Written by hand although there is lettre, which builds the mails: its transport reads a line
//! however long it is, waits anew for each byte, and does not tell which command was refused, so
//! that a refused recipient looks like a refused sender.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

/// RFC 5321 says 512; some say more.
const LINE_BYTES_MAX: usize = 2048;
const LINES_MAX: usize = 100;
/// A name that resolves to more addresses is tried no longer.
const ADDRESSES_MAX: usize = 4;

/// How a connection is protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Encryption {
    /// Begins in the clear, and goes on encrypted or not at all.
    #[default]
    Starttls,
    /// Encrypted from the first byte.
    Tls,
    /// In the clear.
    None,
}

/// Where a mail server is: a host, and a port if it is not the usual one.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Server {
    pub(crate) host: String,
    pub(crate) port: Option<u16>,
}

impl Server {
    pub(crate) fn port(&self, tls: Encryption) -> u16 {
        self.port.unwrap_or(match tls {
            Encryption::Starttls => 587,
            Encryption::Tls => 465,
            Encryption::None => 25,
        })
    }

    /// Whether what is sent there does not leave the machine.
    pub(crate) fn is_local(&self) -> bool {
        let address = self.host.parse::<std::net::IpAddr>();
        self.host == "localhost" || address.is_ok_and(|address| address.is_loopback())
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.host)?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl<'de> Deserialize<'de> for Server {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let bare = |host: &str| {
            host.trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned()
        };
        let (host, port) = match text.rsplit_once(':') {
            // An IPv6 address without brackets has colons, too.
            Some((host, port)) if host.ends_with(']') || !host.contains(':') => {
                let port = port.parse::<u16>().ok().filter(|port| *port != 0);
                (bare(host), Some(port))
            }
            _ => (bare(&text), None),
        };
        let known = ServerName::try_from(host.clone()).is_ok();
        match (known, port) {
            (true, None) => Ok(Server { host, port: None }),
            (true, Some(Some(port))) => Ok(Server {
                host,
                port: Some(port),
            }),
            _ => Err(D::Error::custom(format!(
                "expected a host and a port such as \"smtp.example.org:587\", found {text:?}"
            ))),
        }
    }
}

/// How a session begins.
pub(crate) struct Opening<'s> {
    pub(crate) server: &'s Server,
    pub(crate) tls: Encryption,
    pub(crate) ca: Option<PathBuf>,
    /// What we call ourselves; the address of the connection otherwise.
    pub(crate) hello: Option<&'s str>,
    /// User and password.
    pub(crate) login: Option<(&'s str, &'s str)>,
}

/// Why something was not done.
#[derive(Debug, PartialEq)]
pub(crate) enum Trouble {
    /// The session is of no use any more, and a new one may fare no better.
    Session(String),
    /// The recipient, or the mail, is refused: for now, or for good.
    Mail { text: String, for_good: bool },
}

/// What the server says to a command.
struct Answer {
    code: u16,
    lines: Vec<String>,
}

impl Answer {
    /// On one line, without anything that could disturb a log.
    fn shown(&self) -> String {
        let text = self.lines.join(" ");
        let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
        format!("{} {text}", self.code)
    }

    fn is(&self, class: u16) -> bool {
        self.code / 100 == class
    }
}

pub(crate) struct Session {
    stream: Stream,
    /// Read, and not yet looked at.
    buffer: Vec<u8>,
    /// What the server can do, as it said after EHLO.
    features: Vec<String>,
    deadline: Instant,
}

impl Session {
    /// Connects, encrypts and logs in.
    pub(crate) fn open(opening: &Opening<'_>, deadline: Instant) -> Result<Self, Trouble> {
        Self::try_open(opening, deadline)
            .map_err(|error| Trouble::Session(format!("{}: {error}", opening.server)))
    }

    fn try_open(opening: &Opening<'_>, deadline: Instant) -> Result<Self, String> {
        let port = opening.server.port(opening.tls);
        let tcp = connect(&opening.server.host, port, deadline).map_err(told)?;
        let hello = match opening.hello {
            Some(hello) => hello.to_owned(),
            None => match tcp.local_addr().map_err(told)?.ip() {
                std::net::IpAddr::V4(ip) => format!("[{ip}]"),
                std::net::IpAddr::V6(ip) => format!("[IPv6:{ip}]"),
            },
        };
        let timed = Timed { tcp, deadline };
        let config = match opening.tls {
            Encryption::None => None,
            Encryption::Tls | Encryption::Starttls => {
                Some(crate::tls::client(opening.ca.as_deref())?)
            }
        };
        let stream = match (opening.tls, &config) {
            (Encryption::Tls, Some(config)) => Stream::encrypted(timed, config, opening.server)?,
            _ => Stream::Plain(timed),
        };
        let mut session = Session {
            stream,
            buffer: Vec::new(),
            features: Vec::new(),
            deadline,
        };
        session.expect(2, "its greeting", |session| session.answer())?;
        session.hello(&hello)?;
        if let (Encryption::Starttls, Some(config)) = (opening.tls, &config) {
            if !session.can("STARTTLS") {
                return Err(
                    "the server does not offer STARTTLS; `tls` has \"tls\" and \"none\", \
                            too"
                    .into(),
                );
            }
            session.expect(2, "STARTTLS", |session| session.command("STARTTLS"))?;
            // What came in the clear must not be taken for what comes encrypted.
            if !session.buffer.is_empty() {
                return Err("the server says more than it should before TLS begins".into());
            }
            session = session.encrypt(config, opening.server)?;
            session.hello(&hello)?;
        }
        if let Some((user, password)) = opening.login {
            session.login(user, password)?;
        }
        Ok(session)
    }

    fn encrypt(self, config: &Arc<ClientConfig>, server: &Server) -> Result<Self, String> {
        let Stream::Plain(timed) = self.stream else {
            return Err("TLS began already".into());
        };
        Ok(Session {
            stream: Stream::encrypted(timed, config, server)?,
            ..self
        })
    }

    fn hello(&mut self, hello: &str) -> Result<(), String> {
        let hello = format!("EHLO {hello}");
        let answer = self.expect(2, "EHLO", |session| session.command(&hello))?;
        self.features = answer.lines.into_iter().skip(1).collect();
        Ok(())
    }

    fn can(&self, feature: &str) -> bool {
        let begins = |line: &String| line.split([' ', '=']).next().map(str::to_ascii_uppercase);
        self.features
            .iter()
            .any(|line| begins(line).as_deref() == Some(feature))
    }

    fn login(&mut self, user: &str, password: &str) -> Result<(), String> {
        let offers = |mechanism: &str| {
            self.features.iter().any(|line| {
                let mut words = line.split([' ', '=']);
                words
                    .next()
                    .is_some_and(|auth| auth.eq_ignore_ascii_case("AUTH"))
                    && words.any(|word| word.eq_ignore_ascii_case(mechanism))
            })
        };
        let told = |error| format!("not logged in as {user}: {error}");
        if offers("PLAIN") {
            let both = BASE64_STANDARD.encode(format!("\0{user}\0{password}"));
            let auth = format!("AUTH PLAIN {both}");
            let answer = self.expect(2, "the password", |session| session.command(&auth));
            answer.map_err(told)?;
        } else if offers("LOGIN") {
            let (user64, password64) = (
                BASE64_STANDARD.encode(user),
                BASE64_STANDARD.encode(password),
            );
            let ask = |session: &mut Self| session.command("AUTH LOGIN");
            self.expect(3, "AUTH LOGIN", ask).map_err(told)?;
            let name = |session: &mut Self| session.command(&user64);
            self.expect(3, "the user", name).map_err(told)?;
            let word = |session: &mut Self| session.command(&password64);
            self.expect(2, "the password", word).map_err(told)?;
        } else {
            return Err(told("the server offers neither PLAIN nor LOGIN".into()));
        }
        Ok(())
    }

    /// Sends a mail to one recipient, and waits until the server has taken it.
    pub(crate) fn send(
        &mut self,
        from: &str,
        to: &str,
        mail: &[u8],
        deadline: Instant,
    ) -> Result<(), Trouble> {
        self.until(deadline);
        let international = !(from.is_ascii() && to.is_ascii());
        if international && !self.can("SMTPUTF8") {
            return Err(Trouble::Mail {
                text: "the server takes no addresses beyond ASCII (SMTPUTF8)".into(),
                for_good: true,
            });
        }
        let option = if international { " SMTPUTF8" } else { "" };
        let lost = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| Trouble::Session(format!("{what}: {}", told(error)))
        };
        let answer = self.command(&format!("MAIL FROM:<{from}>{option}"));
        let answer = answer.map_err(lost("after MAIL"))?;
        if !answer.is(2) {
            let shown = answer.shown();
            return Err(Trouble::Session(format!("the sender is refused: {shown}")));
        }
        let answer = self.command(&format!("RCPT TO:<{to}>"));
        let answer = answer.map_err(lost("after RCPT"))?;
        self.of_this_mail(&answer, 2, "the recipient is refused")?;
        let answer = self.command("DATA").map_err(lost("after DATA"))?;
        self.of_this_mail(&answer, 3, "the mail is refused")?;
        let ended = (self.stream.write_all(&stuffed(mail)))
            .and_then(|()| self.stream.flush())
            .and_then(|()| self.answer());
        let answer = ended.map_err(lost("after the mail, which may have arrived"))?;
        self.of_this_mail(&answer, 2, "the mail is refused")
    }

    /// An answer that concerns this mail, if it is not the one that was hoped for.
    fn of_this_mail(&mut self, answer: &Answer, class: u16, what: &str) -> Result<(), Trouble> {
        let text = format!("{what}: {}", answer.shown());
        match answer.code {
            _ if answer.is(class) => Ok(()),
            421 => Err(Trouble::Session(text)),
            400..=599 => {
                // So that the next mail begins anew.
                match self.command("RSET") {
                    Ok(reset) if reset.is(2) => {}
                    _ => self.close(),
                }
                let for_good = answer.is(5);
                Err(Trouble::Mail { text, for_good })
            }
            _ => Err(Trouble::Session(text)),
        }
    }

    /// Says good-bye, without waiting for an answer.
    pub(crate) fn quit(mut self, deadline: Instant) {
        self.until(deadline);
        let _ = self.stream.write_all(b"QUIT\r\n");
        let _ = self.stream.flush();
        self.close();
    }

    fn close(&mut self) {
        let _ = self.stream.timed().tcp.shutdown(Shutdown::Both);
    }

    fn until(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.stream.timed().deadline = deadline;
    }

    fn expect(
        &mut self,
        class: u16,
        what: &str,
        ask: impl FnOnce(&mut Self) -> io::Result<Answer>,
    ) -> Result<Answer, String> {
        let answer = ask(self).map_err(|error| format!("{what}: {}", told(error)))?;
        match answer.is(class) {
            true => Ok(answer),
            false => Err(format!("{what}: {}", answer.shown())),
        }
    }

    fn command(&mut self, line: &str) -> io::Result<Answer> {
        if line.contains(['\r', '\n', '\0']) {
            // Nothing that gets here has one; what would follow it would be a command.
            return Err(io::Error::other("a line break in a command"));
        }
        self.stream.write_all(format!("{line}\r\n").as_bytes())?;
        self.stream.flush()?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Answer> {
        let mut lines = Vec::new();
        loop {
            let line = self.line()?;
            let bad = || io::Error::other("the answer is none of SMTP");
            let (code, rest) = line.split_at_checked(3).ok_or_else(bad)?;
            let code: u16 = match code.bytes().all(|c| c.is_ascii_digit()) {
                true => code.parse().map_err(|_| bad())?,
                false => return Err(bad()),
            };
            let more = match rest.as_bytes().first() {
                None | Some(b' ') => false,
                Some(b'-') => true,
                Some(_) => return Err(bad()),
            };
            lines.push(rest.get(1..).unwrap_or_default().to_owned());
            if !more {
                return Ok(Answer { code, lines });
            }
            if lines.len() == LINES_MAX {
                return Err(io::Error::other("the answer has too many lines"));
            }
        }
    }

    fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=end).collect();
                line.pop();
                line.pop_if(|byte| *byte == b'\r');
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            if self.buffer.len() >= LINE_BYTES_MAX {
                return Err(io::Error::other("the answer has too long a line"));
            }
            let mut chunk = [0; LINE_BYTES_MAX / 2];
            match self.stream.read(&mut chunk)? {
                0 => return Err(io::Error::other("the server closed the connection")),
                read => self.buffer.extend_from_slice(&chunk[..read]),
            }
        }
    }
}

/// A mail as it is sent: a dot at the beginning of a line is doubled, a line with a dot ends it.
fn stuffed(mail: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(mail.len() + 64);
    for line in mail.split_inclusive(|byte| *byte == b'\n') {
        if line.starts_with(b".") {
            out.push(b'.');
        }
        out.extend_from_slice(line);
    }
    if !out.ends_with(b"\r\n") {
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b".\r\n");
    out
}

fn connect(host: &str, port: u16, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = None;
    for address in (host, port).to_socket_addrs()?.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&address, left(deadline)?) {
            Ok(tcp) => {
                tcp.set_nodelay(true)?;
                return Ok(tcp);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| io::Error::other("the name has no address")))
}

/// The time until the deadline, if there is any.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    match left.is_zero() {
        true => Err(io::ErrorKind::TimedOut.into()),
        false => Ok(left),
    }
}

fn told(error: io::Error) -> String {
    match error.kind() {
        // A socket's own time-out has the one or the other kind.
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => "no answer in time".into(),
        _ => error.to_string(),
    }
}

/// A connection that is given up at a deadline, however it goes on until then.
struct Timed {
    tcp: TcpStream,
    deadline: Instant,
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(Some(left(self.deadline)?))?;
        self.tcp.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(Some(left(self.deadline)?))?;
        self.tcp.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

impl Stream {
    fn encrypted(
        timed: Timed,
        config: &Arc<ClientConfig>,
        server: &Server,
    ) -> Result<Self, String> {
        let name = ServerName::try_from(server.host.clone()).map_err(|error| error.to_string())?;
        let client = ClientConnection::new(config.clone(), name);
        let mut stream = StreamOwned::new(client.map_err(|error| error.to_string())?, timed);
        // Here, so that its error is not taken for one of the greeting.
        while stream.conn.is_handshaking() {
            (stream.conn.complete_io(&mut stream.sock))
                .map_err(|error| format!("TLS: {}", told(error)))?;
        }
        Ok(Stream::Tls(Box::new(stream)))
    }

    fn timed(&mut self) -> &mut Timed {
        match self {
            Stream::Plain(timed) => timed,
            Stream::Tls(stream) => &mut stream.sock,
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(timed) => timed.read(buffer),
            Stream::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(timed) => timed.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(timed) => timed.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}
