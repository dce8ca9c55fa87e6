//! The way back onto the bus: one thread with a PUB socket, fed by a bounded queue.
//!
//! A consumer that publishes only puts its message into that queue; when it is full the message is
//! refused and counted, never waited for. A ZeroMQ PUB socket itself drops what a subscriber does
//! not take in time (`send_hwm`), and does not say so.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ::zmq::{Context, Socket, SocketType};
use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded, select};
use serde::{Deserialize, Serialize};
use tracing::warn;
use weir_consumer::endpoint::resolved;
use weir_consumer::settings::{Mistake, Settings as Tree};
use weir_consumer::{PublishError, Publisher};

use crate::backend::zmq::{bind, check_endpoints, context, explain};

/// Room is made at the start.
const QUEUE_MAX: usize = 1_000_000;
/// How long a stop waits for what was published to go out, in milliseconds.
const LINGER_MS: i32 = 1000;

/// The `[publish]` section; `src/sample.toml` explains each key.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Settings {
    pub connect: Vec<String>,
    pub bind: Vec<String>,
    pub send_hwm: u16,
    pub queue: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            connect: Vec::new(),
            bind: Vec::new(),
            send_hwm: 10_000,
            queue: 10_000,
        }
    }
}

impl Settings {
    /// Reads the section.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(section: &Tree) -> Result<Self, Vec<Mistake>> {
        let (settings, mut mistakes) = section.parse_most::<Settings>();
        let Some(settings) = settings else {
            return Err(mistakes);
        };
        if settings.connect.is_empty() && settings.bind.is_empty() {
            mistakes
                .push(section.mistake("there is nowhere to publish to; give `bind` or `connect`"));
        }
        mistakes.extend(check_endpoints(section, &settings.connect, &settings.bind));
        if !(1..=QUEUE_MAX).contains(&settings.queue) {
            let text = format!("expected room for 1 to {QUEUE_MAX} messages");
            mistakes.push(section.mistake_at("queue", text));
        }
        match mistakes.is_empty() {
            true => Ok(settings),
            false => Err(mistakes),
        }
    }
}

/// What has been published.
#[derive(Default)]
pub struct PublishStats {
    sent: AtomicU64,
    refused: AtomicU64,
}

/// The numbers of publishing at one moment.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct PublishSnapshot {
    /// Messages handed to ZeroMQ.
    pub sent: u64,
    /// Messages refused because the queue was full.
    pub refused: u64,
}

impl PublishStats {
    /// A copy of all numbers at this moment.
    pub fn snapshot(&self) -> PublishSnapshot {
        PublishSnapshot {
            sent: self.sent.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// The sending thread's side.
pub struct Outlet {
    socket: Socket,
    messages: Receiver<(Box<str>, Bytes)>,
    quit: Receiver<()>,
    stats: Arc<PublishStats>,
}

/// What [`Outlet::open`] gives.
pub struct Opened {
    /// To be run on a thread.
    pub outlet: Outlet,
    /// To be handed to consumers and producers.
    pub publisher: Publisher,
    /// To be dropped at the end.
    pub quit: Quit,
    /// The counters.
    pub stats: Arc<PublishStats>,
    /// Where it listens and connects, for people.
    pub describe: Vec<String>,
}

/// Ends an outlet when it is dropped: what was published before is still sent.
pub struct Quit {
    _closed: Sender<()>,
}

impl Outlet {
    /// Opens the socket.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub fn open(settings: &Settings) -> Result<Opened, String> {
        let set_up = || -> Result<Socket, ::zmq::Error> {
            // A context of its own makes the end of the socket wait until all has gone out; but
            // `inproc` endpoints meet only within one.
            let inproc = [&settings.bind, &settings.connect];
            let inproc = inproc
                .into_iter()
                .flatten()
                .any(|e| e.starts_with("inproc:"));
            let context = if inproc {
                context().clone()
            } else {
                Context::new()
            };
            let socket = context.socket(SocketType::PUB)?;
            socket.set_linger(LINGER_MS)?;
            socket.set_sndhwm(settings.send_hwm.into())?;
            Ok(socket)
        };
        let socket = set_up().map_err(|error| format!("can't set up a ZeroMQ socket: {error}"))?;
        let mut describe = Vec::new();
        for endpoint in &settings.bind {
            bind(&socket, endpoint)?;
            describe.push(format!("publishes on {endpoint}"));
        }
        for endpoint in &settings.connect {
            (socket.connect(&resolved(endpoint)))
                .map_err(|error| explain("connect to", endpoint, error))?;
            describe.push(format!("publishes to {endpoint}"));
        }
        let (sender, messages) = bounded(settings.queue);
        let (closed, quit) = bounded(0);
        let stats = Arc::new(PublishStats::default());
        let counted = stats.clone();
        let publisher = Publisher::new(move |topic, payload| {
            sender
                .try_send((topic.into(), payload))
                .map_err(|error| match error {
                    TrySendError::Full(_) => {
                        counted.refused.fetch_add(1, Ordering::Relaxed);
                        PublishError::Full
                    }
                    TrySendError::Disconnected(_) => PublishError::Closed,
                })
        });
        let outlet = Outlet {
            socket,
            messages,
            quit,
            stats: stats.clone(),
        };
        Ok(Opened {
            outlet,
            publisher,
            quit: Quit { _closed: closed },
            stats,
            describe,
        })
    }

    /// Sends until its [`Quit`] is dropped.
    pub fn run(self) {
        loop {
            select! {
                recv(self.messages) -> message => match message {
                    Ok(message) => self.send(message),
                    Err(_) => return,
                },
                recv(self.quit) -> _ => break,
            }
        }
        while let Ok(message) = self.messages.try_recv() {
            self.send(message);
        }
    }

    fn send(&self, (topic, payload): (Box<str>, Bytes)) {
        let frames = [topic.as_bytes(), &payload];
        match self.socket.send_multipart(frames, ::zmq::DONTWAIT) {
            Ok(()) => drop(self.stats.sent.fetch_add(1, Ordering::Relaxed)),
            Err(error) => {
                self.stats.refused.fetch_add(1, Ordering::Relaxed);
                warn!(topic = &*topic, %error, "could not publish");
            }
        }
    }
}
