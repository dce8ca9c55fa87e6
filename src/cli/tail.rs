//! `weir tail`: see what passes over the bus.

use std::io::{IsTerminal, Write};

use clap::Args;
use crossbeam_channel::TryRecvError;
use serde_json::json;
use zmq::SocketType;

use super::publish::{open, wrong};
use super::{Failure, PeerArgs, hub::signals};
use crate::backend::Source;
use crate::registry::Registry;
use crate::router::prefix;

/// Prints what is published, until it is interrupted.
#[derive(Args)]
#[command(after_help = "\
Examples:
  weir tail org.example.                         all topics that begin so, from port 9940
  weir tail --config weir.toml                   what the hub of this configuration hears
  weir tail --connect tcp://127.0.0.1:9941 --count 1 --json

Without --bind, --connect or --config it connects to tcp://127.0.0.1:9940.")]
pub(super) struct Tail {
    /// A prefix of topics; everything if left out.
    #[arg(default_value = "")]
    topic: String,
    #[command(flatten)]
    peer: PeerArgs,
    /// End after so many messages.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Print a JSON object a line; payloads that are JSON are embedded, others are text.
    #[arg(long)]
    json: bool,
}

impl Tail {
    pub(super) fn run(&self, registry: &Registry) -> Result<(), Failure> {
        self.peer.check()?;
        let (mut bind, mut connect) = (self.peer.bind.clone(), self.peer.connect.clone());
        if let Some(file) = &self.peer.config {
            let args = super::ConfigArgs {
                config: file.clone(),
                set: Vec::new(),
            };
            for Source::Zmq(settings) in args.load(registry)?.backends {
                connect.extend(settings.connect);
                bind.extend(settings.bind);
            }
            if !bind.is_empty() {
                return Err(Failure::usage(format!(
                    "the hub itself is bound to {}, and only one can be; publish a second time on \
                     an endpoint of the publisher's and `--connect` there",
                    bind.join(", ")
                )));
            }
        } else if bind.is_empty() && connect.is_empty() {
            connect.push("tcp://127.0.0.1:9940".into());
        }
        let signals = signals()?;
        let socket = open(SocketType::SUB, &bind, &connect)?;
        socket
            .set_subscribe(prefix(&self.topic).as_bytes())
            .map_err(wrong)?;
        socket.set_rcvtimeo(100).map_err(wrong)?;
        socket.set_linger(0).map_err(wrong)?;
        let mut out = std::io::stdout();
        let terminal = out.is_terminal();
        if terminal {
            eprintln!(
                "waiting for messages on {}",
                [bind, connect].concat().join(", ")
            );
        }
        let mut left = self.count.unwrap_or(u64::MAX);
        while left > 0 && matches!(signals.try_recv(), Err(TryRecvError::Empty)) {
            let frames = match socket.recv_multipart(0) {
                Ok(frames) => frames,
                Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => continue,
                Err(error) => return Err(wrong(error)),
            };
            let (topic, body) = match frames.as_slice() {
                [only] => match only.iter().position(|byte| *byte == 0) {
                    Some(nul) => (&only[..nul], &only[nul + 1..]),
                    None => (&only[..], &b""[..]),
                },
                [topic, body, ..] => (&topic[..], &body[..]),
                [] => continue,
            };
            let topic = String::from_utf8_lossy(topic);
            let line = match self.json {
                true => json!({ "topic": topic, "payload": payload(body) }).to_string(),
                false => {
                    let text = String::from_utf8_lossy(body);
                    let text: String = text.chars().flat_map(visible).collect();
                    let topic: String = topic.chars().flat_map(visible).collect();
                    match terminal {
                        true => format!("\x1b[1m{topic}\x1b[0m {text}"),
                        false => format!("{topic} {text}"),
                    }
                }
            };
            writeln!(out, "{line}")?;
            out.flush()?;
            left -= 1;
        }
        Ok(())
    }
}

fn payload(body: &[u8]) -> serde_json::Value {
    serde_json::from_slice(body).unwrap_or_else(|_| String::from_utf8_lossy(body).into())
}

/// A payload must not be able to steer the terminal.
pub(super) fn visible(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control();
    escaped
        .then(|| c.escape_default())
        .into_iter()
        .flatten()
        .chain((!escaped).then_some(c))
}
