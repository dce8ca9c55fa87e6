//! `weir publish`: send a message the way other publishers on the bus do.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::json;
use weir_consumer::endpoint::{self, resolved};
use zmq::{Context, Socket, SocketType};

use super::{Failure, PeerArgs, say};
use crate::backend::Source;
use crate::backend::zmq::{Pattern, explain};
use crate::config::Config;
use crate::registry::Registry;

/// Publishes a message, once somebody has subscribed to its topic.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir publish org.example.build '{\"id\": 7}'            to hubs that connect to port 9940
  weir publish --config weir.toml org.example.build '{}'  to the hub of this configuration
  journalctl -o json -n 1 | weir publish --connect tcp://127.0.0.1:9940 org.example.log -

Without --bind, --connect or --config it binds to tcp://127.0.0.1:9940.")]
pub(super) struct Publish {
    /// The topic.
    topic: String,
    /// The payload; `-` reads it from standard input.
    #[arg(default_value = "")]
    body: String,
    #[command(flatten)]
    peer: PeerArgs,
    /// How often to send it.
    #[arg(long, default_value_t = 1, value_name = "N")]
    count: u64,
    /// Wait for so many subscribers: `weir tail` is one, and the hub another.
    #[arg(long, default_value_t = 1, value_name = "N")]
    subscribers: u64,
    /// How long to wait for them.
    #[arg(long, default_value = "10s", value_parser = super::duration, value_name = "TIME")]
    wait: Duration,
    /// Print what was sent as JSON.
    #[arg(long)]
    json: bool,
}

impl Publish {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        self.peer.check()?;
        let (mut bind, mut connect) = (self.peer.bind.clone(), self.peer.connect.clone());
        let mut pull = false;
        if let Some(file) = &self.peer.config {
            let args = super::ConfigArgs {
                config: file.clone(),
                set: Vec::new(),
            };
            (bind, connect, pull) = meeting(&args.load(registry)?);
        } else if bind.is_empty() && connect.is_empty() {
            bind.push("tcp://127.0.0.1:9940".into());
        }
        let mut body = self.body.clone().into_bytes();
        if self.body == "-" {
            body.clear();
            std::io::stdin().lock().read_to_end(&mut body)?;
        }
        // XPUB, unlike PUB, is told of subscriptions.
        let socket = open(
            if pull {
                SocketType::PUSH
            } else {
                SocketType::XPUB
            },
            &bind,
            &connect,
        )?;
        if !pull {
            self.await_subscriber(&socket, &[bind, connect].concat())?;
        }
        socket.set_sndtimeo(millis(self.wait)).map_err(wrong)?;
        for _ in 0..self.count {
            socket
                .send_multipart([self.topic.as_bytes(), &body], 0)
                .map_err(|error| match error {
                    zmq::Error::EAGAIN => self.nobody(&self.peer.connect),
                    error => wrong(error),
                })?;
        }
        let (count, topic, bytes) = (self.count, &self.topic, body.len());
        match self.json {
            true => {
                let sent = json!({ "topic": topic, "count": count, "bytes": bytes });
                writeln!(std::io::stdout(), "{sent}")?;
            }
            false => say(&format!("sent on {topic:?}: {count} x {bytes} bytes\n")),
        }
        Ok(())
    }

    fn await_subscriber(&self, socket: &Socket, endpoints: &[String]) -> Result<(), Failure> {
        let deadline = Instant::now() + self.wait;
        let mut missing = self.subscribers;
        while missing > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            socket.set_rcvtimeo(millis(left)).map_err(wrong)?;
            match socket.recv_bytes(0) {
                // 1 and the prefix: subscribed; 0: unsubscribed (zmq_socket(3)).
                Ok(event) => match event.split_first() {
                    Some((1, prefix)) if self.topic.as_bytes().starts_with(prefix) => missing -= 1,
                    _ => {}
                },
                Err(zmq::Error::EAGAIN) => return Err(self.nobody(endpoints)),
                Err(zmq::Error::EINTR) => {}
                Err(error) => return Err(wrong(error)),
            }
        }
        Ok(())
    }

    fn nobody(&self, endpoints: &[String]) -> Failure {
        Failure::run(format!(
            "nobody listened for {:?} on {} within {:?}, so nothing was sent; is the hub running, \
             does its [[backend]] use this endpoint from the other side (connect here, bind there), \
             and does a consumer want this topic?",
            self.topic,
            endpoints.join(", "),
            self.wait
        ))
    }
}

/// Where somebody who wants to reach this hub has to bind and connect, and whether it pulls.
fn meeting(config: &Config) -> (Vec<String>, Vec<String>, bool) {
    let (mut bind, mut connect, mut pull) = (Vec::new(), Vec::new(), false);
    for Source::Zmq(settings) in config.backends.iter().take(1) {
        bind.extend(settings.connect.iter().take(1).cloned());
        if bind.is_empty() {
            connect.extend(
                settings
                    .bind
                    .iter()
                    .take(1)
                    .map(|endpoint| endpoint.replace("*", "127.0.0.1")),
            );
        }
        pull = settings.socket == Pattern::Pull;
    }
    (bind, connect, pull)
}

/// A socket that is bound and connected, with a context of its own: dropping it waits until what
/// was sent has gone out.
pub(super) fn open(
    kind: SocketType,
    bind: &[String],
    connect: &[String],
) -> Result<Socket, Failure> {
    let socket = Context::new().socket(kind).map_err(wrong)?;
    // What was sent goes out before the process ends, if somebody takes it.
    socket.set_linger(30_000).map_err(wrong)?;
    // XPUB drops what does not fit without a word: let everything fit.
    socket.set_sndhwm(0).map_err(wrong)?;
    for endpoint in bind.iter().chain(connect) {
        endpoint::check(endpoint).map_err(Failure::usage)?;
    }
    for endpoint in bind {
        (socket.bind(&resolved(endpoint)))
            .map_err(|error| Failure::run(explain("bind to", endpoint, error)))?;
    }
    for endpoint in connect {
        (socket.connect(&resolved(endpoint)))
            .map_err(|error| Failure::run(explain("connect to", endpoint, error)))?;
    }
    Ok(socket)
}

pub(super) fn wrong(error: zmq::Error) -> Failure {
    Failure::run(format!("ZeroMQ: {error}"))
}

pub(super) fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}
