//! Who is let in: what each listener asks of a request before anything is done for it.
//!
//! On the Unix socket the file's mode has decided already. Over TCP:
//!
//! 1. *Only by a name that is ours.* A page that has its own name point to this machine (DNS
//!    rebinding) sends that name as `Host`.
//! 2. *Not from another site's page.* Browsers say so in `Origin` and `Sec-Fetch-Site`.
//! 3. *Acting needs the token.* So does every method but GET and HEAD, known or not.
//! 4. *Reading needs it too where the address may be reached from other machines*: with TLS.
//! 5. *Not too often.* What acts is done so many times a second at most.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Semaphore;
use tracing::warn;

use crate::runner::rate::{Bucket, Rate};
use crate::token::Token;

/// Acting requests a second, and at once.
const ACTING_MAX: usize = 50;
/// Event streams of one listener.
const STREAMS_MAX: usize = 64;

/// Asked by other programs, and of no use to a page of another site.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];
/// The board without anything on it: a browser that fetches it has no token yet.
const PAGE: [&str; 3] = ["/", "/board.css", "/board.js"];

/// What one listener asks for.
pub(super) struct Door {
    /// Nothing of the kind on the Unix socket.
    tcp: Option<Tcp>,
    acting: Mutex<Bucket>,
    /// Room for event streams.
    pub(super) streams: Arc<Semaphore>,
}

/// What is asked for over TCP.
pub(super) struct Tcp {
    /// Names that are ours besides the address: `NAME` with any port, or `NAME:PORT`.
    pub(super) hosts: Vec<String>,
    /// Whether what is said is encrypted.
    pub(super) tls: bool,
    /// None if the hub keeps nothing on disk.
    pub(super) token: Option<Token>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// In words.
    pub(super) name: String,
    /// The address at our end.
    pub(super) local: Option<SocketAddr>,
}

/// Who sent a request, for the audit log.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct By(pub(super) String);

/// Why a request is not done, and what to do about it.
#[derive(Debug)]
pub(super) struct Fault(pub(super) StatusCode, pub(super) String);

impl Fault {
    pub(super) fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Fault(status, text.into())
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        let Fault(status, text) = self;
        let mut response = (status, Json(json!({ "error": text }))).into_response();
        let more = match status {
            StatusCode::UNAUTHORIZED => Some((header::WWW_AUTHENTICATE, "Bearer")),
            StatusCode::TOO_MANY_REQUESTS => Some((header::RETRY_AFTER, "1")),
            _ => None,
        };
        let headers = response.headers_mut();
        headers.extend(more.map(|(name, value)| (name, HeaderValue::from_static(value))));
        response
    }
}

/// Asks, hands on, and adds what every answer says to browsers.
pub(super) async fn guard(
    State(door): State<Arc<Door>>,
    Extension(peer): Extension<Peer>,
    mut request: Request,
    next: Next,
) -> Response {
    let (method, uri) = (request.method(), request.uri());
    let mut response = match door.admit(&peer, method, uri, request.headers(), Instant::now()) {
        Ok(by) => {
            request.extensions_mut().insert(by);
            request.extensions_mut().insert(door.clone());
            next.run(request).await
        }
        Err(fault) => fault.into_response(),
    };
    let policy = "default-src 'self'; img-src 'self' data:; base-uri 'none'; \
                  form-action 'none'; frame-ancestors 'none'";
    let headers = [
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    let headers = headers.map(|(name, value)| (name, HeaderValue::from_static(value)));
    response.headers_mut().extend(headers);
    response
}

impl Door {
    pub(super) fn new(tcp: Option<Tcp>) -> Self {
        let rate = Rate {
            per_second: ACTING_MAX as f64,
        };
        Door {
            tcp,
            acting: Mutex::new(Bucket::new(rate, ACTING_MAX, Instant::now())),
            streams: Arc::new(Semaphore::new(STREAMS_MAX)),
        }
    }

    /// Whether a request is let in, and whose it is.
    fn admit(
        &self,
        peer: &Peer,
        method: &Method,
        uri: &Uri,
        headers: &HeaderMap,
        now: Instant,
    ) -> Result<By, Fault> {
        let acts = !matches!(*method, Method::GET | Method::HEAD);
        let mut by = By(peer.name.clone());
        if let (Some(tcp), Some(local)) = (&self.tcp, peer.local) {
            tcp.check_host(local, uri, headers)?;
            if acts || !PROBES.contains(&uri.path()) {
                tcp.check_site(local, acts, uri, headers)?;
            }
            if acts || tcp.tls && !PAGE.contains(&uri.path()) {
                tcp.check_token(&peer.name, headers)?;
                by = By(format!("token from {}", peer.name));
            }
        }
        if acts && self.acting.lock().take(1, now).is_err() {
            let text =
                format!("more than {ACTING_MAX} requests that act in a second; wait for one");
            return Err(Fault(StatusCode::TOO_MANY_REQUESTS, text));
        }
        Ok(by)
    }
}

impl Tcp {
    fn check_host(&self, local: SocketAddr, uri: &Uri, headers: &HeaderMap) -> Result<(), Fault> {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = hosts.next().and_then(|host| host.to_str().ok());
        let ours = |host: &str| self.is_ours(host, local);
        let right = hosts.next().is_none()
            && host.is_some_and(ours)
            && uri
                .authority()
                .is_none_or(|authority| ours(authority.as_str()));
        if right {
            return Ok(());
        }
        Err(Fault(
            StatusCode::MISDIRECTED_REQUEST,
            format!(
                "this hub is not {:?}: ask for {local}, or add the name to hub.http_hosts",
                host.unwrap_or_default()
            ),
        ))
    }

    fn check_site(
        &self,
        local: SocketAddr,
        acts: bool,
        uri: &Uri,
        headers: &HeaderMap,
    ) -> Result<(), Fault> {
        let scheme = if self.tls { "https" } else { "http" };
        for origin in headers.get_all(header::ORIGIN) {
            let origin = origin.to_str().unwrap_or_default();
            let ours = match origin.split_once("://") {
                // A proxy before it may have another scheme.
                Some((its, host)) => {
                    its == scheme && self.is_ours(host, local) || self.is_named(host)
                }
                None => false,
            };
            if !ours {
                return Err(Fault(
                    StatusCode::FORBIDDEN,
                    format!(
                        "a page of {origin:?} may not use this hub; if that is a proxy before it, \
                         add its name to hub.http_hosts"
                    ),
                ));
            }
        }
        let says = |name: &str, value: &str| {
            headers
                .get_all(name)
                .iter()
                .any(|said| said.as_bytes() == value.as_bytes())
        };
        // Who follows a link to the board gets it: it is empty, and can't be put into a frame.
        let followed = !acts
            && uri.path() == "/"
            && says("sec-fetch-mode", "navigate")
            && says("sec-fetch-dest", "document");
        if says("sec-fetch-site", "cross-site") && !followed {
            let text = "a page of another site may not use this hub";
            return Err(Fault::new(StatusCode::FORBIDDEN, text));
        }
        Ok(())
    }

    fn check_token(&self, from: &str, headers: &HeaderMap) -> Result<(), Fault> {
        let Some(token) = &self.token else {
            let text = "this hub keeps nothing on disk (journal.enabled = false), so it has no \
                        token, and can't be told anything";
            return Err(Fault::new(StatusCode::FORBIDDEN, text));
        };
        let refused = |text: &str| Err(Fault::new(StatusCode::UNAUTHORIZED, text));
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(given), None) = (given.next(), given.next()) else {
            return refused(
                "this needs the header `Authorization: Bearer TOKEN`; the token is in the file \
                 `token` in the hub's data_dir",
            );
        };
        let given = given.as_bytes();
        let right = match given.split_at_checked(7) {
            Some((scheme, given)) => scheme.eq_ignore_ascii_case(b"bearer ") && token.is(given),
            None => false,
        };
        if !right {
            warn!(from, "a request with a wrong token was refused");
            return refused(
                "that is not this hub's token, which is in the file `token` in its data_dir",
            );
        }
        Ok(())
    }

    /// Whether a `HOST` or `HOST:PORT` is this listener.
    fn is_ours(&self, host: &str, local: SocketAddr) -> bool {
        let Some((name, port)) = parts(host) else {
            return false;
        };
        let default = if self.tls { 443 } else { 80 };
        let address = name.trim_start_matches('[').trim_end_matches(']').parse();
        let ours = name.eq_ignore_ascii_case("localhost")
            || address.is_ok_and(|address: IpAddr| {
                address.is_loopback() || address == local.ip().to_canonical()
            });
        ours && port.unwrap_or(default) == local.port() || self.is_named(host)
    }

    /// Whether the configuration has given it this name.
    fn is_named(&self, host: &str) -> bool {
        let named = |known: &String| {
            let (Some((name, port)), Some((known, its))) = (parts(host), parts(known)) else {
                return false;
            };
            name.eq_ignore_ascii_case(known) && (its.is_none() || its == port)
        };
        self.hosts.iter().any(named)
    }
}

/// The name or address, and the port if there is one.
fn parts(host: &str) -> Option<(&str, Option<u16>)> {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => Some((name, Some(port.parse().ok()?))),
        _ => Some((host, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "127.0.0.1:8907";

    struct Asked {
        door: Door,
        peer: Peer,
        method: Method,
        uri: &'static str,
        headers: HeaderMap,
        dir: tempfile::TempDir,
    }

    /// A request that a local program sends.
    fn asked(method: Method, uri: &'static str) -> Asked {
        let dir = tempfile::tempdir().unwrap();
        let tcp = Tcp {
            hosts: vec!["weir.example.org".into(), "other.example.org:81".into()],
            tls: false,
            token: Some(Token::open(dir.path()).unwrap()),
        };
        let peer = Peer {
            name: "127.0.0.1:50000".into(),
            local: Some(HERE.parse().unwrap()),
        };
        let asked = Asked {
            door: Door::new(Some(tcp)),
            peer,
            method,
            uri,
            headers: HeaderMap::new(),
            dir,
        };
        asked.with("host", HERE)
    }

    impl Asked {
        fn with(mut self, name: &'static str, value: &str) -> Self {
            self.headers.insert(name, value.parse().unwrap());
            self
        }

        fn tcp(&mut self) -> &mut Tcp {
            self.door.tcp.as_mut().unwrap()
        }

        fn with_token(self) -> Self {
            let token = Token::open(self.dir.path()).unwrap();
            self.with("authorization", &format!("Bearer {}", token.as_str()))
        }

        fn answer(&self) -> u16 {
            let uri = self.uri.parse().unwrap();
            let (peer, method) = (&self.peer, &self.method);
            match (self.door).admit(peer, method, &uri, &self.headers, Instant::now()) {
                Ok(_) => 200,
                Err(fault) => fault.0.as_u16(),
            }
        }
    }

    #[test]
    fn only_by_a_name_that_is_ours() {
        let by = |host: &str| asked(Method::GET, "/v1/status").with("host", host).answer();
        let ours = [
            HERE,
            "localhost:8907",
            "LocalHost:8907",
            "[::1]:8907",
            "weir.example.org",
            "weir.example.org:443",
            "Other.example.org:81",
        ];
        for host in ours {
            assert_eq!(by(host), 200, "{host}");
        }
        let foreign = [
            "",
            "localhost",
            "localhost:80",
            "127.0.0.1",
            "127.0.0.1:8908",
            "192.0.2.1:8907",
            "evil.example.org:8907",
            "weir.example.org.evil.example:8907",
            "localhost.evil.example:8907",
            "other.example.org",
            "other.example.org:82",
            "localhost:8907@evil.example",
            "evil.example#localhost:8907",
            "weir.example.org:80@evil.example",
        ];
        for host in foreign {
            assert_eq!(by(host), 421, "{host}");
        }
        let mut none = asked(Method::GET, "/v1/status");
        none.headers.remove("host");
        assert_eq!(none.answer(), 421);
        let mut twice = asked(Method::GET, "/v1/status");
        twice.headers.append("host", HERE.parse().unwrap());
        assert_eq!(twice.answer(), 421);
        let whole = asked(Method::GET, "http://evil.example.org:8907/v1/status");
        assert_eq!(whole.answer(), 421);
        // Also for what anybody may ask: a page must not read figures under its own name.
        let probe = asked(Method::GET, "/metrics").with("host", "evil.example.org:8907");
        assert_eq!(probe.answer(), 421);
    }

    #[test]
    fn the_address_of_another_machine_is_ours_if_we_are_asked_there() {
        let mut there = asked(Method::GET, "/").with("host", "192.0.2.1:8907");
        there.peer.local = Some("192.0.2.1:8907".parse().unwrap());
        assert_eq!(there.answer(), 200);
        there.peer.local = Some("[::ffff:192.0.2.1]:8907".parse().unwrap());
        assert_eq!(there.answer(), 200);
    }

    #[test]
    fn not_from_another_sites_page() {
        let get = |path| asked(Method::GET, path);
        let own = [
            "http://127.0.0.1:8907",
            "http://localhost:8907",
            "https://weir.example.org",
        ];
        for origin in own {
            assert_eq!(
                get("/v1/status").with("origin", origin).answer(),
                200,
                "{origin}"
            );
        }
        let foreign = [
            "null",
            "",
            "https://127.0.0.1:8907",
            "http://127.0.0.1:8908",
            "http://localhost",
            "http://evil.example.org",
            "http://evil.example.org:8907",
        ];
        for origin in foreign {
            let asked = get("/v1/status").with("origin", origin);
            assert_eq!(asked.answer(), 403, "{origin}");
            let acting = asked_to_act().with("origin", origin);
            assert_eq!(acting.answer(), 403, "{origin}");
            assert_eq!(get("/metrics").with("origin", origin).answer(), 200);
        }
        for site in ["same-origin", "same-site", "none"] {
            assert_eq!(get("/v1/events").with("sec-fetch-site", site).answer(), 200);
        }
        let cross = |path| get(path).with("sec-fetch-site", "cross-site");
        assert_eq!(cross("/v1/events").answer(), 403);
        assert_eq!(cross("/").answer(), 403);
        assert_eq!(cross("/healthz").answer(), 200);
        let followed = |asked: Asked| {
            let asked = asked.with("sec-fetch-mode", "navigate");
            asked.with("sec-fetch-dest", "document").answer()
        };
        assert_eq!(followed(cross("/")), 200);
        assert_eq!(followed(cross("/v1/status")), 403);
        let framed = cross("/").with("sec-fetch-mode", "navigate");
        assert_eq!(framed.with("sec-fetch-dest", "iframe").answer(), 403);
        let acting = asked_to_act().with("sec-fetch-site", "cross-site");
        assert_eq!(followed(acting), 403);
    }

    fn asked_to_act() -> Asked {
        asked(Method::POST, "/v1/drain").with_token()
    }

    #[test]
    fn acting_needs_the_token() {
        assert_eq!(asked_to_act().answer(), 200);
        for method in [Method::POST, Method::PUT, Method::DELETE, Method::OPTIONS] {
            assert_eq!(asked(method, "/healthz").answer(), 401);
        }
        let other = tempfile::tempdir().unwrap();
        let other = Token::open(other.path()).unwrap();
        let own = asked_to_act();
        let own = own.headers["authorization"].to_str().unwrap();
        let digits = own.strip_prefix("Bearer ").unwrap();
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            digits,
            &format!("Basic {digits}"),
            &format!("{own}0"),
            &own[..own.len() - 1],
            &format!("Bearer {}", other.as_str()),
        ] {
            let asked = asked_to_act().with("authorization", wrong);
            assert_eq!(asked.answer(), 401, "{wrong}");
        }
        let mut twice = asked_to_act();
        twice
            .headers
            .append("authorization", "Bearer 0".parse().unwrap());
        assert_eq!(twice.answer(), 401);
        let mut without = asked_to_act();
        without.tcp().token = None;
        assert_eq!(without.answer(), 403);
    }

    #[test]
    fn with_tls_reading_needs_the_token_too() {
        for path in [
            "/status",
            "/v1/events",
            "/metrics",
            "/healthz",
            "/v1/openapi.json",
            "/x",
        ] {
            let mut asked = asked(Method::GET, path);
            asked.tcp().tls = true;
            assert_eq!(asked.answer(), 401, "{path}");
            assert_eq!(asked.with_token().answer(), 200, "{path}");
        }
        for path in PAGE {
            let mut asked = asked(Method::GET, path);
            asked.tcp().tls = true;
            assert_eq!(asked.answer(), 200, "{path}");
        }
    }

    #[test]
    fn acting_too_often_is_refused_and_reading_is_not() {
        let often = asked_to_act();
        let (uri, now) = (often.uri.parse().unwrap(), Instant::now());
        let answer = |headers: &HeaderMap| {
            let admitted = often
                .door
                .admit(&often.peer, &often.method, &uri, headers, now);
            admitted.err().map(|fault| fault.0.as_u16())
        };
        // Who has no token takes nothing from those who have one.
        for _ in 0..ACTING_MAX {
            assert_eq!(answer(&asked(Method::POST, "/").headers), Some(401));
        }
        for _ in 0..ACTING_MAX {
            assert_eq!(answer(&often.headers), None);
        }
        assert_eq!(answer(&often.headers), Some(429));
        let read = (often.door).admit(&often.peer, &Method::GET, &uri, &often.headers, now);
        assert_eq!(read.unwrap(), By("127.0.0.1:50000".into()));
    }

    #[test]
    fn on_the_unix_socket_the_files_mode_has_decided() {
        let mut asked = asked(Method::POST, "/v1/drain").with("host", "weir");
        asked.door.tcp = None;
        asked.peer.local = None;
        assert_eq!(asked.answer(), 200);
    }
}
