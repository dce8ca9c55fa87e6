//! Asks a running hub, over HTTP on a loopback port or on the socket in its data directory.
//!
//! By hand, because these are small requests to our own server, on a Unix socket too, which the
//! HTTP clients there are don't speak without a runtime.

use std::fmt;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{ConfigArgs, Failure, say};
use crate::config::Config;
use crate::data_dir;
use crate::registry::Registry;

/// No answer of a hub is larger.
const ANSWER_MAX: usize = 256 << 20;
/// Before somebody who waits is told so.
const IMPATIENCE: Duration = Duration::from_secs(5);

/// Which hub to ask.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub(super) struct HubArgs {
    /// The hub's configuration, which says where it answers.
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where it answers: http://HOST:PORT, or the path of the `control.sock` in its data directory.
    #[arg(long, value_name = "URL|PATH")]
    hub: Option<String>,
}

impl HubArgs {
    /// What the configuration says, if one was given.
    pub(super) fn config(&self, registry: &Registry) -> Result<Option<Config>, Failure> {
        let load = |config: &PathBuf| {
            let args = ConfigArgs {
                config: config.clone(),
                set: Vec::new(),
            };
            args.load(registry)
        };
        self.config.as_ref().map(load).transpose()
    }

    /// Where the hub answers: its HTTP address if it has one without TLS, which other users may read
    /// as well.
    pub(super) fn find(&self, registry: &Registry) -> Result<Address, Failure> {
        if let Some(hub) = &self.hub {
            return Address::read(hub).map_err(Failure::usage);
        }
        let Some(Config { hub, .. }) = self.config(registry)? else {
            return Err(Failure::usage("give --config FILE or --hub URL|PATH"));
        };
        match hub.http_tls.is_none() && !hub.http.is_empty() {
            true => Ok(Address::Http(hub.http)),
            false => Ok(Address::Socket(data_dir::control(&hub.data_dir))),
        }
    }

    /// The socket in its data directory, if that is known: there it can be told something.
    #[cfg(feature = "top")]
    pub(super) fn socket(&self, registry: &Registry) -> Result<Option<PathBuf>, Failure> {
        if let Some(hub) = &self.hub {
            return match Address::read(hub).map_err(Failure::usage)? {
                Address::Socket(path) => Ok(Some(path)),
                Address::Http(_) => Ok(None),
            };
        }
        let config = self.config(registry)?;
        Ok(config.map(|config| data_dir::control(&config.hub.data_dir)))
    }
}

/// Where a hub answers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Address {
    /// At a host and port.
    Http(String),
    /// On a Unix socket.
    Socket(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Http(host) => write!(f, "http://{host}"),
            Address::Socket(path) => path.display().fmt(f),
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Unanswered {
    /// Nobody is there, or nobody says anything in time.
    Away(String),
    /// The hub refuses, with its reason.
    Refused(String),
    /// It was asked too often, and will answer in a second.
    TooOften(String),
    /// It makes no sense.
    Strange(String),
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unanswered::Away(why)
            | Unanswered::Refused(why)
            | Unanswered::TooOften(why)
            | Unanswered::Strange(why) => f.write_str(why),
        }
    }
}

impl From<Unanswered> for Failure {
    fn from(unanswered: Unanswered) -> Self {
        Failure::run(unanswered.to_string())
    }
}

impl Address {
    fn read(text: &str) -> Result<Self, String> {
        let expected = "expected http://HOST:PORT or the path of a hub's control.sock";
        if let Some(rest) = text.strip_prefix("http://") {
            let host = rest.trim_end_matches('/');
            let port = host.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
            return match port {
                Some(Ok(_)) if !host.contains('/') => Ok(Address::Http(host.into())),
                _ => Err(format!("--hub {text}: {expected}")),
            };
        }
        match text.contains('/') && !text.contains("://") {
            true => Ok(Address::Socket(text.into())),
            false => Err(format!("--hub {text}: {expected}")),
        }
    }

    /// What `GET path` answers, within so long a time.
    pub(super) fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        patience: Duration,
    ) -> Result<T, Unanswered> {
        self.talk(&format!("GET {path}"), "", patience)
    }

    /// What `POST path` answers to this body.
    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        patience: Duration,
    ) -> Result<T, Unanswered> {
        let body =
            serde_json::to_string(body).map_err(|error| Unanswered::Strange(error.to_string()))?;
        self.talk(&format!("POST {path}"), &body, patience)
    }

    fn talk<T: DeserializeOwned>(
        &self,
        request: &str,
        body: &str,
        patience: Duration,
    ) -> Result<T, Unanswered> {
        let host = match self {
            Address::Http(host) => host,
            Address::Socket(_) => "weir",
        };
        let request = format!(
            "{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self
            .exchange(&request, patience)
            .map_err(|error| match error.kind() {
                ErrorKind::PermissionDenied => Unanswered::Refused(self.forbidden(&error)),
                _ => Unanswered::Away(self.away(&error)),
            })?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let strange = |why: &dyn fmt::Display| {
            let what = format!("{self} does not answer as a hub of this version does: {why}");
            Unanswered::Strange(what)
        };
        match head.split(' ').nth(1) {
            Some("200") => serde_json::from_str(body).map_err(|error| strange(&error)),
            Some(status) => match (status, serde_json::from_str(body)) {
                ("429", Ok(Fault { error })) => Err(Unanswered::TooOften(error)),
                (_, Ok(Fault { error })) => Err(Unanswered::Refused(error)),
                ("404" | "405", _) => Err(strange(&"it does not know this request")),
                _ if body.trim().is_empty() => {
                    let said = head.lines().next().unwrap_or_default();
                    Err(strange(&format_args!("it says {said:?} and nothing more")))
                }
                _ => Err(Unanswered::Refused(body.trim_end().into())),
            },
            None => Err(strange(&"that is not HTTP")),
        }
    }

    fn forbidden(&self, error: &std::io::Error) -> String {
        format!(
            "{self}: {error}; only the hub's user may open it: run this as that user, or give the \
             hub an address in `hub.http`, where everybody on this machine may read"
        )
    }

    fn away(&self, error: &std::io::Error) -> String {
        let what = match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => "it has not answered in time".into(),
            _ => error.to_string(),
        };
        match self {
            Address::Http(_) => format!(
                "no hub answers at {self}: {what}; does it run, and is that its `hub.http`?"
            ),
            Address::Socket(path) => format!(
                "no hub answers at {}: {what}; does it run, and as this user?",
                path.display()
            ),
        }
    }

    fn exchange(&self, request: &str, patience: Duration) -> std::io::Result<String> {
        match self {
            Address::Http(host) => {
                let found = host.to_socket_addrs()?.next();
                let address = found.ok_or(ErrorKind::AddrNotAvailable)?;
                let stream = TcpStream::connect_timeout(&address, patience)?;
                stream.set_read_timeout(Some(patience.min(IMPATIENCE)))?;
                stream.set_write_timeout(Some(patience))?;
                converse(stream, request, patience)
            }
            Address::Socket(path) => {
                let stream = connect(path)?;
                stream.set_read_timeout(Some(patience.min(IMPATIENCE)))?;
                stream.set_write_timeout(Some(patience))?;
                converse(stream, request, patience)
            }
        }
    }
}

/// Why a hub refuses, as it says it.
#[derive(Deserialize)]
struct Fault {
    error: String,
}

fn connect(path: &Path) -> std::io::Result<UnixStream> {
    UnixStream::connect(path)
}

/// Asks, and reads to the end; says so when that takes long.
fn converse(
    mut stream: impl Read + Write,
    request: &str,
    patience: Duration,
) -> std::io::Result<String> {
    let begin = Instant::now();
    stream.write_all(request.as_bytes())?;
    let (mut answer, mut part) = (Vec::new(), [0; 65536]);
    loop {
        match stream.read(&mut part) {
            Ok(0) => return Ok(String::from_utf8_lossy(&answer).into_owned()),
            Ok(_) if answer.len() > ANSWER_MAX => {
                return Err(std::io::Error::other("its answer does not end"));
            }
            Ok(length) => answer.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock && begin.elapsed() < patience => {
                if request.starts_with("POST") {
                    say("the hub has not answered yet; it will do it even if you don't wait\n");
                }
            }
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_is_named_by_a_url_or_a_path() {
        let http = |host: &str| Ok(Address::Http(host.into()));
        assert_eq!(
            Address::read("http://127.0.0.1:8907/"),
            http("127.0.0.1:8907")
        );
        assert_eq!(Address::read("http://[::1]:80"), http("[::1]:80"));
        let socket = Ok(Address::Socket("/var/lib/weir/control.sock".into()));
        assert_eq!(Address::read("/var/lib/weir/control.sock"), socket);
        for wrong in [
            "",
            "weir",
            "https://a:1",
            "http://a",
            "http://a:1/status",
            "http://a:x",
        ] {
            assert!(Address::read(wrong).is_err(), "{wrong}");
        }
    }
}
