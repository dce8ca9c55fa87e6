//! A connection to a server, plain or encrypted: lines out, lines in, each within a time.
//!
//! 1. No call takes longer than until the time it is given, whatever the peer does.
//! 2. A line that does not end is an error, not a buffer that grows.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{CertificateError, ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::Server;
use crate::server::Address;

/// A line with its tags; without them it is 512.
const LINE_BYTES_MAX: usize = 8191 + 512;

/// Everything here fails with a text: nobody asks for more than to tell it.
type Result<T> = std::result::Result<T, String>;

pub(crate) struct Wire {
    stream: Stream,
    /// What was read and is not yet taken as lines.
    unread: Vec<u8>,
    /// How much of it is known to have no end of a line.
    searched: usize,
}

enum Stream {
    Plain(Timed),
    Tls(Box<StreamOwned<ClientConnection, Timed>>),
}

/// A socket whose calls end by a given time.
struct Timed {
    socket: TcpStream,
    until: Instant,
}

impl Timed {
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.until.saturating_duration_since(Instant::now());
        match left.is_zero() {
            true => Err(ErrorKind::TimedOut.into()),
            false => Ok(Some(left)),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(buffer)
    }
}

impl Write for Timed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Wire {
    /// Connects, and agrees on encryption if it is wanted.
    pub(crate) fn open(server: &Server, data_dir: &Path, until: Instant) -> Result<Wire> {
        let address = &server.server;
        // Before the connection: what is wrong with a file is told without one.
        let tls = match server.tls {
            true => Some(tls(server, data_dir)?),
            false => None,
        };
        let socket = connect(address, until)?;
        let failed = |error: io::Error| format!("can't set up the connection: {error}");
        socket.set_nodelay(true).map_err(failed)?;
        let timed = Timed { socket, until };
        let stream = match tls {
            None => Stream::Plain(timed),
            Some(config) => Stream::Tls(Box::new(encrypt(config, address, timed)?)),
        };
        Ok(Wire {
            stream,
            unread: Vec::new(),
            searched: 0,
        })
    }

    /// Sends lines, each with its end.
    pub(crate) fn send(&mut self, lines: &str, until: Instant) -> Result<()> {
        self.set(until);
        let sent = match &mut self.stream {
            Stream::Plain(stream) => stream.write_all(lines.as_bytes()),
            Stream::Tls(stream) => stream
                .write_all(lines.as_bytes())
                .and_then(|()| stream.flush()),
        };
        sent.map_err(|error| match timed_out(&error) {
            true => "it takes nothing more".to_owned(),
            false => format!("can't send: {error}"),
        })
    }

    /// The next line, or none if none has come until then.
    pub(crate) fn read(&mut self, until: Instant) -> Result<Option<String>> {
        self.set(until);
        loop {
            let fresh = &self.unread[self.searched..];
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let line = String::from_utf8_lossy(&self.unread[..end])
                    .trim_end_matches('\r')
                    .replace('\0', "");
                self.unread.drain(..=end);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.unread.len();
            if self.searched > LINE_BYTES_MAX {
                return Err(format!(
                    "it sends a line of more than {LINE_BYTES_MAX} bytes; is it an IRC server?"
                ));
            }
            let mut chunk = [0; 4096];
            let read = match &mut self.stream {
                Stream::Plain(stream) => stream.read(&mut chunk),
                Stream::Tls(stream) => stream.read(&mut chunk),
            };
            match read {
                Ok(0) => return Err("it closed the connection".into()),
                Ok(bytes) => self.unread.extend_from_slice(&chunk[..bytes]),
                Err(error) if timed_out(&error) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                    return Err("it closed the connection".into());
                }
                Err(error) => return Err(format!("the connection is lost: {error}")),
            }
        }
    }

    fn set(&mut self, until: Instant) {
        match &mut self.stream {
            Stream::Plain(stream) => stream.until = until,
            Stream::Tls(stream) => stream.sock.until = until,
        }
    }
}

fn timed_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}

fn connect(address: &Address, until: Instant) -> Result<TcpStream> {
    let addresses = resolve(address, until)?;
    let mut last = "the name has no address".to_owned();
    for (index, socket_address) in addresses.iter().enumerate() {
        // Each gets its share of the time: an address that does not answer must not hide one that
        // would.
        let left = until.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        if share.is_zero() {
            break;
        }
        match TcpStream::connect_timeout(socket_address, share) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("can't connect: {last}"))
}

/// The addresses of a host.
///
/// On a thread of its own, because the system's resolver knows no time-out: one that hangs is left
/// behind, and ends when the system gives up.
fn resolve(address: &Address, until: Instant) -> Result<Vec<SocketAddr>> {
    if let Ok(literal) = address.host.parse::<IpAddr>() {
        return Ok(vec![(literal, address.port).into()]);
    }
    let (answer, answered) = mpsc::channel();
    let asked = (address.host.clone(), address.port);
    std::thread::Builder::new()
        .name("irc-resolver".into())
        .spawn(move || answer.send(asked.to_socket_addrs().map(Iterator::collect)))
        .map_err(|error| format!("can't start a thread to look up the name: {error}"))?;
    match answered.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(Ok(addresses)) => Ok(addresses),
        Ok(Err(error)) => Err(format!("can't look up the name: {error}")),
        Err(_) => Err("looking up the name takes too long".into()),
    }
}

fn tls(server: &Server, data_dir: &Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(ca) = &server.ca {
        let path = data_dir.join(ca);
        let failed = |error: &dyn std::fmt::Display| {
            format!("can't read certificates in {}: {error}", path.display())
        };
        let certificates: Vec<CertificateDer> = CertificateDer::pem_file_iter(&path)
            .and_then(Iterator::collect)
            .map_err(|error| failed(&error))?;
        if certificates.is_empty() {
            return Err(failed(&"there is none"));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| failed(&error))?;
        }
    }
    if roots.is_empty() {
        return Err(
            "this system has no certificates of authorities; install them (Debian: \
                    ca-certificates), or name those to trust in `ca`"
                .into(),
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots);
    let Some(certificate) = &server.certificate else {
        return Ok(Arc::new(builder.with_no_client_auth()));
    };
    let path = data_dir.join(certificate);
    // The error of a key may not show a part of it: only the place is told, and what is missing.
    let failed = |what: &str| format!("{what} in {}, the `certificate`", path.display());
    let chain: Vec<CertificateDer> = CertificateDer::pem_file_iter(&path)
        .and_then(Iterator::collect)
        .map_err(|error| failed(&format!("can't read a certificate ({error})")))?;
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|_| failed("there is no private key"))?;
    let config = builder
        .with_client_auth_cert(chain, key)
        .map_err(|error| failed(&format!("certificate and key do not fit ({error})")))?;
    Ok(Arc::new(config))
}

fn encrypt(
    config: Arc<ClientConfig>,
    address: &Address,
    timed: Timed,
) -> Result<StreamOwned<ClientConnection, Timed>> {
    let name = ServerName::try_from(address.host.clone())
        .map_err(|error| format!("the host is no name for a certificate: {error}"))?;
    let connection = ClientConnection::new(config, name).map_err(|error| error.to_string())?;
    let mut stream = StreamOwned::new(connection, timed);
    while stream.conn.is_handshaking() {
        match stream.conn.complete_io(&mut stream.sock) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if timed_out(&error) => {
                return Err("it does not answer in TLS; is `tls` right for this port?".into());
            }
            Err(error) => {
                let cause = error.get_ref().and_then(|cause| cause.downcast_ref());
                return Err(match cause {
                    Some(rustls::Error::InvalidCertificate(why)) => not_accepted(why),
                    _ => format!("no TLS with it ({error}); is `tls` right for this port?"),
                });
            }
        }
    }
    Ok(stream)
}

fn not_accepted(why: &CertificateError) -> String {
    match why {
        // What `openssl req -x509` makes. It has no name of its own in rustls.
        CertificateError::Other(other) if other.0.to_string() == "CaUsedAsEndEntity" => {
            "its certificate is one of an authority (CA:TRUE), which can't be a server's own; make \
             one with CA:FALSE, or one that this authority signs"
                .into()
        }
        CertificateError::Other(other) => format!("its certificate is not accepted: {other}"),
        why => format!("invalid peer certificate: {why}"),
    }
}
