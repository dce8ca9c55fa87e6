//! The control interface: what the hub says of itself, and what it can be told, over HTTP.
//!
//! `docs/control.md` has it for people, `docs/openapi.json` for programs; [`requests`] lists it. It
//! is served at the address of the configuration and on a Unix socket in the data directory, which
//! belongs to the hub's user (mode 0600), so that whoever may open it may act.
//!
//! What it promises:
//!
//! 1. *Nobody from outside.* What the TCP listener asks of a request before it is done is
//!    `guard`'s; beyond loopback it is encrypted.
//! 2. *Bounded.* So many connections, each with so large requests; whoever sends a request too
//!    slowly, or does not take the answer, is cut off. The socket and the address have bounds of
//!    their own, so that an operator gets in when the address is flooded.
//! 3. *No harm to the data path.* All of it is one thread that waits for nobody, and a few that
//!    wait for the disk.
//! 4. *A bounded end.* When its [`Quit`] is dropped, answers under way get a moment, and no more.
//!
//! It leaves to others: what an action does and the record of it ([`steering`](crate::steering)),
//! and what is said ([`monitor`](crate::monitor), [`why`](crate::why)).

mod events;
mod guard;
mod patience;
mod routes;
#[cfg(feature = "tls")]
mod tls;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::serve::Listener;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{Semaphore, oneshot, watch};

use crate::data_dir;
use crate::probes::Probes;
use crate::steering::Steering;
use crate::token::Token;
use guard::{Door, Peer, Tcp};
use patience::Patient;
pub use routes::requests;
use routes::{App, router};

/// Connections of one listener.
const CONNECTIONS_MAX: u32 = 256;
/// Between two that are refused because there are so many.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// How long the head of a request may take to come, and its body; an idle connection is closed.
const REQUEST_TIME: Duration = Duration::from_secs(10);
/// How long an answer may wait to be taken.
const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long answers under way get at the end.
const END_TIME: Duration = Duration::from_millis(500);
/// Head and unsent answer of one connection.
const BUFFER_MAX: usize = 64 << 10;

/// Where to listen, and how.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// The TCP address.
    pub http: Option<SocketAddr>,
    /// Names by which it may be asked for besides that address: `NAME` or `NAME:PORT`.
    pub hosts: Vec<String>,
    /// Certificate and key in PEM.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Where the Unix socket and the token are, if the hub keeps anything on disk.
    pub data_dir: Option<PathBuf>,
}

/// The listening sockets and what ends them.
pub struct Control {
    http: Option<(TcpListener, Door, Option<Acceptor>)>,
    local: Option<UnixListener>,
    quit: oneshot::Receiver<()>,
    request_time: Duration,
}

/// Ends the interface when it is dropped.
pub struct Quit {
    _closed: oneshot::Sender<()>,
    socket: Option<PathBuf>,
}

impl Drop for Quit {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            let _ = fs::remove_file(socket);
        }
    }
}

impl Control {
    /// Starts to listen.
    ///
    /// # Errors
    /// Why it can't, and what to do about it.
    pub fn bind(settings: &Settings) -> Result<(Self, Quit), String> {
        let data_dir = settings.data_dir.as_deref();
        let http = match settings.http {
            Some(address) => {
                let acceptor = match &settings.tls {
                    Some((certificate, key)) => Some(Acceptor::open(certificate, key)?),
                    None => None,
                };
                let door = Door::new(Some(Tcp {
                    hosts: settings.hosts.clone(),
                    tls: acceptor.is_some(),
                    token: data_dir.map(Token::open).transpose()?,
                }));
                Some((http(address)?, door, acceptor))
            }
            None => None,
        };
        let socket = data_dir.map(data_dir::control);
        let local = socket.as_deref().map(local).transpose()?;
        let (closed, quit) = oneshot::channel();
        let control = Control {
            http,
            local,
            quit,
            request_time: REQUEST_TIME,
        };
        let quit = Quit {
            _closed: closed,
            socket,
        };
        Ok((control, quit))
    }

    /// The address where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.http.as_ref()?.0.local_addr().ok()
    }

    /// Answers until its [`Quit`] is dropped.
    ///
    /// # Errors
    /// When the runtime can't be set up.
    pub fn run(self, probes: Probes, steering: Arc<Steering>) -> Result<(), String> {
        let failed = |error| format!("can't set up the control interface: {error}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let outcome = runtime.block_on(async {
            let (close, closing) = watch::channel(false);
            let app = App::new(probes, steering, closing.clone(), self.request_time);
            let app = Arc::new(app);
            let mut rooms = Vec::new();
            if let Some((listener, door, acceptor)) = self.http {
                let listener = tokio::net::TcpListener::from_std(listener).map_err(failed)?;
                let server = Server::new(door, router(app.clone(), false), &self.request_time);
                rooms.push(server.room.clone());
                tokio::spawn(server.serve(listener, acceptor, closing.clone()));
            }
            if let Some(listener) = self.local {
                let listener = tokio::net::UnixListener::from_std(listener).map_err(failed)?;
                let server = Server::new(Door::new(None), router(app, true), &self.request_time);
                rooms.push(server.room.clone());
                tokio::spawn(server.serve(listener, None, closing));
            }
            let _ = self.quit.await;
            let _ = close.send(true);
            let all_gone = async {
                for room in &rooms {
                    let _ = room.acquire_many(CONNECTIONS_MAX).await;
                }
            };
            let _ = tokio::time::timeout(END_TIME, all_gone).await;
            Ok(())
        });
        // This cuts whoever is still connected, and waits for nothing.
        runtime.shutdown_background();
        outcome
    }
}

fn http(address: SocketAddr) -> Result<TcpListener, String> {
    let explain = |error| {
        format!(
            "can't listen on http://{address}: {error}; if another hub has the port, give this \
             one another with hub.http = \"127.0.0.1:PORT\" or none with hub.http = \"\""
        )
    };
    let listener = TcpListener::bind(address).map_err(explain)?;
    listener.set_nonblocking(true).map_err(explain)?;
    Ok(listener)
}

/// The directory is locked, so a socket that is there is a dead hub's.
fn local(path: &Path) -> Result<UnixListener, String> {
    let explain = |error: std::io::Error| {
        format!(
            "can't listen on {}: {error}; a path of more than 107 bytes is too long for a socket: \
             give hub.data_dir a shorter one",
            path.display()
        )
    };
    let _ = fs::remove_file(path);
    let listener = UnixListener::bind(path).map_err(explain)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(explain)?;
    listener.set_nonblocking(true).map_err(explain)?;
    Ok(listener)
}

/// Looks whether the interface could be served with these files.
///
/// # Errors
/// Why not, and what to do about it.
pub fn check_tls(certificate: &Path, key: &Path) -> Result<(), String> {
    Acceptor::open(certificate, key).map(drop)
}

#[cfg(feature = "tls")]
use tls::Acceptor;

/// There is none: the configuration is refused before.
#[cfg(not(feature = "tls"))]
#[derive(Clone)]
enum Acceptor {}

#[cfg(not(feature = "tls"))]
impl Acceptor {
    fn open(_: &Path, _: &Path) -> Result<Self, String> {
        Err("this weir was built without the feature `tls`".into())
    }

    async fn accept<S>(&self, _: S) -> std::io::Result<S> {
        match *self {}
    }
}

/// A stream whose two ends can be told.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {
    type Address;

    fn meet(&self, from: &Self::Address) -> Peer;

    /// Says why not, if that can be said without waiting, and hangs up.
    fn refuse(self);
}

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\n\
    Content-Type: application/json\r\n\r\n\
    {\"error\": \"too many connections are open; try again in a while\"}";

impl Stream for TcpStream {
    type Address = SocketAddr;

    fn meet(&self, from: &SocketAddr) -> Peer {
        // An event is to be seen when it is sent, not when there are more.
        let _ = self.set_nodelay(true);
        Peer {
            name: from.to_string(),
            local: self.local_addr().ok(),
        }
    }

    fn refuse(self) {
        if let Ok(mut stream) = self.into_std() {
            let _ = std::io::Write::write(&mut stream, FULL);
        }
    }
}

impl Stream for UnixStream {
    type Address = tokio::net::unix::SocketAddr;

    fn meet(&self, _: &Self::Address) -> Peer {
        let name = match self.peer_cred() {
            Ok(peer) => format!("uid {}", peer.uid()),
            Err(_) => "unknown".into(),
        };
        Peer { name, local: None }
    }

    fn refuse(self) {
        if let Ok(mut stream) = self.into_std() {
            let _ = std::io::Write::write(&mut stream, FULL);
        }
    }
}

/// What answers at one listener.
struct Server {
    app: Router,
    room: Arc<Semaphore>,
    request_time: Duration,
}

impl Server {
    fn new(door: Door, app: Router, request_time: &Duration) -> Self {
        let guard = axum::middleware::from_fn_with_state(Arc::new(door), guard::guard);
        Server {
            app: app.layer(guard),
            room: Arc::new(Semaphore::new(CONNECTIONS_MAX as usize)),
            request_time: *request_time,
        }
    }

    /// Takes connections in until it is over.
    async fn serve<L>(
        self,
        mut listener: L,
        acceptor: Option<Acceptor>,
        mut closing: watch::Receiver<bool>,
    ) where
        L: Listener,
        L::Io: Stream<Address = L::Addr>,
    {
        loop {
            // It has a pause where the system has no more connections to give.
            let (stream, from) = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = closing.wait_for(|closing| *closing) => return,
            };
            let Ok(room) = self.room.clone().try_acquire_owned() else {
                match acceptor {
                    Some(_) => drop(stream),
                    None => stream.refuse(),
                }
                // Whoever knocks again and again takes no more of the machine than this.
                tokio::time::sleep(FULL_PAUSE).await;
                continue;
            };
            let peer = stream.meet(&from);
            let (app, acceptor, time) = (self.app.clone(), acceptor.clone(), self.request_time);
            let closing = closing.clone();
            tokio::spawn(async move {
                let _room = room;
                match acceptor {
                    Some(acceptor) => {
                        let agreed = tokio::time::timeout(time, acceptor.accept(stream)).await;
                        if let Ok(Ok(stream)) = agreed {
                            converse(stream, peer, app, time, closing).await;
                        }
                    }
                    None => converse(stream, peer, app, time, closing).await,
                }
            });
        }
    }
}

/// Answers one connection.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: Peer,
    app: Router,
    request_time: Duration,
    mut closing: watch::Receiver<bool>,
) {
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(peer.clone());
        app.call(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(request_time)
        .max_buf_size(BUFFER_MAX)
        .serve_connection(TokioIo::new(Patient::new(stream, ANSWER_TIME)), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => return,
        _ = closing.wait_for(|closing| *closing) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::Watch;
    use crate::monitor::Figures;
    use std::io::{ErrorKind, Read, Write};

    /// An interface of a hub that has nothing, with little time for requests.
    fn served(
        request_time: Duration,
        data_dir: Option<&Path>,
    ) -> (SocketAddr, Quit, std::thread::JoinHandle<()>) {
        let settings = Settings {
            http: Some(([127, 0, 0, 1], 0).into()),
            data_dir: data_dir.map(Path::to_owned),
            ..Settings::default()
        };
        let (mut control, quit) = Control::bind(&settings).unwrap();
        control.request_time = request_time;
        let figures = Figures::new("a", Vec::new());
        let probes = Probes {
            figures: Arc::new(figures),
            started: Arc::default(),
            stopping: Arc::default(),
            watch: Watch::new().0,
            on_error: crate::journal::OnError::Memory,
        };
        let steering = Steering {
            data_dir: None,
            journal: None,
            keeper: None,
            dead_letters: None,
            queues: Vec::new(),
            drain: crossbeam_channel::bounded(1).0,
        };
        let at = control.address().unwrap();
        let thread = std::thread::spawn(move || {
            control.run(probes, Arc::new(steering)).unwrap();
        });
        (at, quit, thread)
    }

    #[test]
    fn who_sends_a_request_too_slowly_is_cut_off() {
        let (at, quit, thread) = served(Duration::from_millis(100), None);
        let mut slow = std::net::TcpStream::connect(at).unwrap();
        let pause = Some(Duration::from_millis(10));
        slow.set_read_timeout(pause).unwrap();
        // A byte now and then, for as long as the other end lets us.
        let head = format!("GET /healthz HTTP/1.1\r\nHost: {at}\r\nX-Slow: ");
        let head = head.bytes().chain(std::iter::repeat(b'x'));
        let cut = head.into_iter().any(|byte| {
            if slow.write_all(&[byte]).is_err() {
                return true;
            }
            match slow.read(&mut [0; 512]) {
                Ok(length) => length == 0,
                Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
            }
        });
        assert!(cut);
        // And who sends nothing at all, also after a request.
        for before in ["", "GET /healthz HTTP/1.1\r\nHost: "] {
            let mut idle = std::net::TcpStream::connect(at).unwrap();
            if !before.is_empty() {
                idle.write_all(format!("{before}{at}\r\n\r\n").as_bytes())
                    .unwrap();
            }
            let mut answer = String::new();
            idle.read_to_string(&mut answer).unwrap();
            assert_eq!(answer.contains("200 OK"), !before.is_empty(), "{answer}");
        }
        drop(quit);
        thread.join().unwrap();
    }

    #[test]
    fn a_body_that_does_not_come_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (_, quit, thread) = served(Duration::from_millis(100), Some(dir.path()));
        let socket = data_dir::control(dir.path());
        let mut slow = std::os::unix::net::UnixStream::connect(socket).unwrap();
        let head = b"POST /v1/drain HTTP/1.1\r\nHost: weir\r\nContent-Length: 2\r\n\r\n{";
        slow.write_all(head).unwrap();
        let mut answer = String::new();
        slow.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        drop(quit);
        thread.join().unwrap();
    }

    #[test]
    fn the_end_does_not_wait_for_those_who_are_connected() {
        let (at, quit, thread) = served(Duration::from_secs(3600), None);
        let mut half = std::net::TcpStream::connect(at).unwrap();
        half.write_all(b"GET /healthz HT").unwrap();
        let mut events = std::net::TcpStream::connect(at).unwrap();
        let request = format!("GET /v1/events HTTP/1.1\r\nHost: {at}\r\n\r\n");
        events.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 12];
        events.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
        drop(quit);
        thread.join().unwrap();
        let mut rest = String::new();
        events.read_to_string(&mut rest).unwrap();
        // To its end, and not cut off.
        assert!(rest.ends_with("0\r\n\r\n"), "{rest}");
    }
}
