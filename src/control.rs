//! The HTTP interface: what the hub says of itself.
//!
//! `GET /status` answers with [`Status`] as JSON. Loopback only: nothing
//! here protects what it shows.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use axum::extract::State;
use axum::{Json, Router, routing::get};

use crate::monitor::{Figures, Status};

/// The listening socket and what ends it.
pub struct Control {
    listener: TcpListener,
    quit: tokio::sync::oneshot::Receiver<()>,
}

/// Ends the interface when it is dropped.
pub struct Quit {
    _closed: tokio::sync::oneshot::Sender<()>,
}

impl Control {
    /// Starts to listen.
    ///
    /// # Errors
    /// Why it can't, and what to do about it.
    pub fn bind(address: SocketAddr) -> Result<(Self, Quit), String> {
        let explain = |error| {
            format!(
                "can't listen on http://{address}: {error}; if another hub has the port, give this \
                 one another with hub.http = \"127.0.0.1:PORT\" or none with hub.http = \"\""
            )
        };
        let listener = TcpListener::bind(address).map_err(explain)?;
        listener.set_nonblocking(true).map_err(explain)?;
        let (closed, quit) = tokio::sync::oneshot::channel();
        Ok((Control { listener, quit }, Quit { _closed: closed }))
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Answers until its [`Quit`] is dropped.
    ///
    /// # Errors
    /// When the runtime can't be set up.
    pub fn run(self, figures: Arc<Figures>) -> Result<(), String> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| format!("can't set up the HTTP interface: {error}"))?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(self.listener)
                .map_err(|error| format!("can't set up the HTTP interface: {error}"))?;
            let app = Router::new()
                .route("/status", get(status))
                .with_state(figures);
            tokio::spawn(async move { axum::serve(listener, app).await });
            // Dropping the runtime then cuts whoever is still connected: a stop is bounded.
            let _ = self.quit.await;
            Ok(())
        })
    }
}

async fn status(State(figures): State<Arc<Figures>>) -> Json<Status> {
    Json(figures.status())
}
