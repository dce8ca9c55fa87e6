//! The HTTP interface: what the hub says of itself, and what it can be told.
//!
//! | request | answer |
//! |---|---|
//! | `GET /status` | [`Status`] as JSON |
//! | `GET /v1/figures` | [`Dump`] as JSON |
//! | `GET /v1/consumers/NAME/why` | [`Why`] as JSON |
//! | `GET /v1/times` | the [`LatestTimes`] of each consumer as JSON |
//! | `GET /metrics` | the same for [`prometheus`]; 503 when there is only an old sample |
//! | `GET /healthz` | 200 or 503: [`Probes::alive`] |
//! | `GET /readyz` | 200 or 503: [`Probes::ready`] |
//! | `POST /v1/actions` | takes an [`Action`], answers with an [`Outcome`] |
//!
//! All but the last are served on the loopback address of the configuration: nothing there protects
//! what it shows. All are served on a Unix socket in the data directory, which belongs to the hub's
//! user (mode 0600), so that whoever may open it may act.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::{DefaultBodyLimit, Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::IncomingStream;
use axum::{Json, Router, routing::get, routing::post};

use crate::monitor::sample::Dump;
use crate::monitor::{Figures, Status, prometheus};
use crate::probes::{Condition, Probes};
use crate::stats::LatestTimes;
use crate::steering::{Action, Outcome, Steering};
use crate::why::Why;

/// A filter with very many numbers of letters is some kilobytes.
const BODY_MAX: usize = 1 << 20;

/// The listening sockets and what ends them.
pub struct Control {
    http: Option<TcpListener>,
    local: Option<UnixListener>,
    quit: tokio::sync::oneshot::Receiver<()>,
}

/// Ends the interface when it is dropped.
pub struct Quit {
    _closed: tokio::sync::oneshot::Sender<()>,
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
    /// Starts to listen on an address, and on a Unix socket at a path.
    ///
    /// # Errors
    /// Why it can't, and what to do about it.
    pub fn bind(address: Option<SocketAddr>, path: Option<&Path>) -> Result<(Self, Quit), String> {
        let http = address.map(http).transpose()?;
        let local = path.map(local).transpose()?;
        let (closed, quit) = tokio::sync::oneshot::channel();
        let socket = path.map(Path::to_owned);
        Ok((
            Control { http, local, quit },
            Quit {
                _closed: closed,
                socket,
            },
        ))
    }

    /// The address where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.http.as_ref()?.local_addr().ok()
    }

    /// Answers until its [`Quit`] is dropped.
    ///
    /// # Errors
    /// When the runtime can't be set up.
    pub fn run(self, probes: Probes, steering: Arc<Steering>) -> Result<(), String> {
        let failed = |error| format!("can't set up the HTTP interface: {error}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let outcome = runtime.block_on(async {
            let figures = probes.figures.clone();
            let probing = Router::new()
                .route("/metrics", get(metrics))
                .route("/healthz", get(healthz))
                .route("/readyz", get(readyz))
                .with_state(Arc::new(probes));
            let open = Router::new()
                .route("/status", get(status))
                .route("/v1/figures", get(dump))
                .route("/v1/consumers/{name}/why", get(why))
                .route("/v1/times", get(times))
                .with_state(figures)
                .merge(probing);
            if let Some(http) = self.http {
                let listener = tokio::net::TcpListener::from_std(http).map_err(failed)?;
                let app = open.clone();
                tokio::spawn(async move { axum::serve(listener, app).await });
            }
            if let Some(local) = self.local {
                let listener = tokio::net::UnixListener::from_std(local).map_err(failed)?;
                let acting = Router::new()
                    .route("/v1/actions", post(act))
                    .layer(DefaultBodyLimit::max(BODY_MAX))
                    .with_state(steering);
                let app = open
                    .merge(acting)
                    .into_make_service_with_connect_info::<Peer>();
                tokio::spawn(async move { axum::serve(listener, app).await });
            }
            let _ = self.quit.await;
            Ok(())
        });
        // This cuts whoever is still connected, and waits for nothing: a stop is bounded.
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

/// Who is at the other end of the Unix socket.
#[derive(Clone)]
struct Peer(String);

impl Connected<IncomingStream<'_, tokio::net::UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, tokio::net::UnixListener>) -> Self {
        Peer(match stream.io().peer_cred() {
            Ok(peer) => format!("uid {}", peer.uid()),
            Err(_) => "unknown".into(),
        })
    }
}

async fn status(State(figures): State<Arc<Figures>>) -> Json<Status> {
    Json(figures.status())
}

async fn why(
    State(figures): State<Arc<Figures>>,
    UrlPath(name): UrlPath<String>,
) -> Result<Json<Why>, (StatusCode, String)> {
    // It reads the journal.
    let found = tokio::task::spawn_blocking(move || figures.why(&name).ok_or(name)).await;
    match found {
        Ok(Ok(why)) => Ok(Json(why)),
        Ok(Err(name)) => Err((
            StatusCode::NOT_FOUND,
            format!("there is no consumer {name:?}"),
        )),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}

async fn dump(State(figures): State<Arc<Figures>>) -> Json<Dump> {
    Json(figures.latest().dump())
}

async fn times(State(figures): State<Arc<Figures>>) -> Json<BTreeMap<String, LatestTimes>> {
    Json(figures.times())
}

async fn metrics(State(probes): State<Arc<Probes>>, headers: HeaderMap) -> Response {
    let accept: Vec<&str> = (headers.get_all(header::ACCEPT).iter())
        .filter_map(|value| value.to_str().ok())
        .collect();
    let format = prometheus::Format::accepted(&accept.join(","));
    let sample = match probes.sample() {
        Ok(sample) => sample,
        // What scrapes them would take old figures for new ones.
        Err(why) => return (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    };
    match prometheus::page(&sample, format) {
        Ok(page) => ([(header::CONTENT_TYPE, format.content_type())], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn healthz(State(probes): State<Arc<Probes>>) -> (StatusCode, Json<Condition>) {
    answer(probes.alive())
}

async fn readyz(State(probes): State<Arc<Probes>>) -> (StatusCode, Json<Condition>) {
    answer(probes.ready())
}

fn answer(condition: Condition) -> (StatusCode, Json<Condition>) {
    let status = match condition.is_ok() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(condition))
}

async fn act(
    State(steering): State<Arc<Steering>>,
    ConnectInfo(Peer(by)): ConnectInfo<Peer>,
    Json(action): Json<Action>,
) -> Result<Json<Outcome>, (StatusCode, String)> {
    // It may wait for the disk, or read much of it.
    let done = tokio::task::spawn_blocking(move || steering.act(&action, &by)).await;
    match done {
        Ok(Ok(outcome)) => Ok(Json(outcome)),
        Ok(Err(why)) => Err((StatusCode::CONFLICT, why)),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, error.to_string())),
    }
}
