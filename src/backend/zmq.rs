//! ZeroMQ: SUB and PULL sockets.
//!
//! A message is one of
//!
//! | frames | meaning | who sends it |
//! |---|---|---|
//! | `topic`, `body` | | Moksha, fedmsg, most others |
//! | `topic NUL body` | | older Moksha |
//! | `topic`, `body`, `number` | number: u32, little endian, counts up a topic | Bitcoin Core |
//!
//! Anything else is counted as refused and nothing more. Each endpoint that is connected to has a
//! socket of its own, so that gaps and lost connections are known by endpoint, and one busy
//! publisher can't keep the others waiting; all bound endpoints share one.
//!
//! Payloads below 8 KiB are copied out of libzmq's receive buffer, larger ones are handed on as
//! they are. libzmq cuts small messages out of 8 KiB buffers (18 KiB with their counters), and one
//! that waits in a queue would keep the whole buffer in memory: 2.3 KiB for a message of 1,000
//! bytes, measured. A larger message has an allocation of its own (libzmq `v2_decoder.cpp`).

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ::zmq::{Context, DONTWAIT, PollItem, Socket, SocketEvent, SocketType};
use bytes::Bytes;
use flate2::read::{GzDecoder, ZlibDecoder};
use serde::Deserialize;
use tracing::{info, warn};
use weir_consumer::endpoint::{check_free, check_list, resolved};
use weir_consumer::settings::{self, Mistake, duration, size};

use super::{Accept, BATCH_BYTES, Backend};
use crate::stats::{Refusal, SourceStats};

/// Payloads from this size on are not copied: what libzmq's `in_batch_size` is.
const COPY_BELOW: usize = 8192;
/// libzmq has some 1,000 sockets for a process, and an endpoint takes three.
const CONNECT_MAX: usize = 250;
const MESSAGE_MAX_MAX: usize = 512 << 20;
/// How often at most the same trouble of a connection is told.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// Topics whose sequence numbers are followed; further ones are taken unchecked.
const SEQUENCES_MAX: usize = 16_384;
/// How often connections are looked at while messages never cease.
const EVENTS_INTERVAL: Duration = Duration::from_millis(100);

/// What the socket is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Everything published on the topics that consumers want.
    #[default]
    Sub,
    /// A share of what is pushed.
    Pull,
}

/// How payloads are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Not at all.
    #[default]
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 1950.
    Zlib,
}

/// A `[[backend]]` section of kind `zmq`; `src/sample.toml` explains each key.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Settings {
    pub socket: Pattern,
    pub connect: Vec<String>,
    pub bind: Vec<String>,
    pub receive_hwm: u16,
    #[serde(deserialize_with = "size")]
    pub message_max: usize,
    pub encoding: Encoding,
    pub timestamp: String,
    pub keep_alive: bool,
    #[serde(deserialize_with = "duration")]
    pub reconnect: Duration,
    #[serde(deserialize_with = "duration")]
    pub reconnect_max: Duration,
    pub curve: Option<Curve>,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            socket: Pattern::default(),
            connect: Vec::new(),
            bind: Vec::new(),
            receive_hwm: 50_000,
            message_max: 16 << 20,
            encoding: Encoding::default(),
            timestamp: super::TIMESTAMP.into(),
            keep_alive: true,
            reconnect: Duration::from_millis(100),
            reconnect_max: Duration::from_secs(2),
            curve: None,
        }
    }
}

/// CURVE keys, each 40 characters of Z85.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)]
pub struct Curve {
    pub server_key: String,
    pub public_key: String,
    pub secret_key: String,
}

impl Settings {
    /// Reads a section and checks what can be checked without opening anything.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(section: &settings::Settings) -> Result<Self, Vec<Mistake>> {
        let (settings, mut mistakes) = section.parse_most::<Settings>();
        let Some(settings) = settings else {
            return Err(mistakes);
        };
        if settings.connect.is_empty() && settings.bind.is_empty() {
            mistakes.push(section.mistake(
                "there is nothing to read from; give `connect` or `bind`, \
                 such as connect = [\"tcp://127.0.0.1:9940\"]",
            ));
        }
        mistakes.extend(check_endpoints(section, &settings.connect, &settings.bind));
        if !(1..=MESSAGE_MAX_MAX).contains(&settings.message_max) {
            mistakes.push(section.mistake_at("message_max", "expected 1 byte to 512 MiB"));
        }
        if !settings.timestamp.is_empty() && !settings.timestamp.starts_with('/') {
            let text = "expected a JSON pointer such as \"/timestamp\", or \"\" for nothing";
            mistakes.push(section.mistake_at("timestamp", text));
        }
        if let Some(curve) = &settings.curve {
            if ::zmq::has("curve") != Some(true) {
                mistakes.push(section.mistake_at(
                    "curve",
                    "this build's libzmq has no CURVE (it was built without libsodium); \
                     use a tunnel such as stunnel or WireGuard instead",
                ));
            }
            for (key, value) in [
                ("curve.server_key", &curve.server_key),
                ("curve.public_key", &curve.public_key),
                ("curve.secret_key", &curve.secret_key),
            ] {
                if ::zmq::z85_decode(value).map_or(0, |key| key.len()) != 32 {
                    mistakes.push(section.mistake_at(key, "expected 40 characters of Z85"));
                }
            }
        }
        match mistakes.is_empty() {
            true => Ok(settings),
            false => Err(mistakes),
        }
    }
}

/// Says what is wrong with lists of endpoints of a section, if anything is.
pub fn check_endpoints(
    section: &settings::Settings,
    connect: &[String],
    bind: &[String],
) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (key, endpoints) in [("connect", connect), ("bind", bind)] {
        let places: Vec<_> = section
            .get(key)
            .into_iter()
            .flat_map(|list| list.items())
            .collect();
        for (index, wrong) in check_list(endpoints, key == "connect") {
            if let Some(place) = places.get(index) {
                mistakes.push(Mistake {
                    path: format!("{key}.{index}"),
                    ..place.mistake(wrong)
                });
            }
        }
    }
    if connect.len() > CONNECT_MAX {
        mistakes.push(section.mistake_at(
            "connect",
            format!("more than {CONNECT_MAX} endpoints, each of which takes a socket"),
        ));
    }
    mistakes
}

/// The process's ZeroMQ context: one, so that `inproc` endpoints meet.
pub fn context() -> &'static Context {
    static CONTEXT: OnceLock<Context> = OnceLock::new();
    CONTEXT.get_or_init(Context::new)
}

/// Binds a socket; unlike libzmq, does not take an `ipc` path away from somebody who has it.
///
/// # Errors
/// Why not, and what to do about it.
pub fn bind(socket: &Socket, endpoint: &str) -> Result<(), String> {
    check_free(endpoint)?;
    socket
        .bind(&resolved(endpoint))
        .map_err(|error| explain("bind to", endpoint, error))
}

/// Why a socket could not be set up, for people.
pub fn explain(action: &str, endpoint: &str, error: ::zmq::Error) -> String {
    let remedy = match error {
        ::zmq::Error::EADDRINUSE => {
            "; another program, perhaps another hub, has it: stop that one or use another port"
        }
        ::zmq::Error::EADDRNOTAVAIL | ::zmq::Error::ENODEV => {
            "; the address is none of this machine's: bind to 127.0.0.1, to * or to one that \
             `ip addr` shows"
        }
        ::zmq::Error::EACCES => "; permission denied: use a port above 1023 or another directory",
        ::zmq::Error::ENOENT => "; its directory does not exist: create it first",
        _ => "",
    };
    format!("can't {action} {endpoint}: {error}{remedy}")
}

/// The sockets of one section.
pub struct Zmq {
    inputs: Vec<Input>,
    /// The input to read first, so that none is always last.
    next: usize,
    encoding: Encoding,
    message_max: usize,
    /// The last `receive` has left nothing: looking again before waiting would only cost.
    drained: bool,
    wake: (UnixStream, Arc<UnixStream>),
    stats: Arc<SourceStats>,
    events_due: Instant,
    describe: Vec<String>,
}

/// One socket with its monitor, which has to be closed after it.
struct Input {
    socket: Socket,
    events: Events,
    /// The number that each topic's next message should have.
    sequences: HashMap<Box<[u8]>, u32, rapidhash::fast::RandomState>,
    /// Its endpoints' places in the counters, by what libzmq calls them. The first is the socket's.
    endpoints: Vec<(String, usize)>,
    /// When a trouble of its connections was last told.
    told: Option<Instant>,
    /// The next disconnection is that of a peer which never was connected.
    handshake_failed: bool,
}

impl Zmq {
    /// Opens the sockets, subscribed to these prefixes.
    ///
    /// # Errors
    /// Why not, and what to do about it.
    pub fn open(settings: &Settings, prefixes: &[String]) -> Result<Self, String> {
        let stats = Arc::new(SourceStats::new(&settings.connect, &settings.bind));
        let mut inputs = Vec::new();
        let mut describe = Vec::new();
        for (index, endpoint) in settings.connect.iter().enumerate() {
            let input = Input::new(settings, prefixes)?;
            let resolved = resolved(endpoint);
            (input.socket.connect(&resolved))
                .map_err(|error| explain("connect to", endpoint, error))?;
            describe.push(format!("connects to {endpoint}"));
            inputs.push(Input {
                endpoints: vec![(resolved, index)],
                ..input
            });
        }
        if !settings.bind.is_empty() {
            let mut input = Input::new(settings, prefixes)?;
            for (index, endpoint) in settings.bind.iter().enumerate() {
                bind(&input.socket, endpoint)?;
                let bound = match input.socket.get_last_endpoint() {
                    Ok(Ok(bound)) => bound.trim_end_matches('\0').to_owned(),
                    _ => resolved(endpoint),
                };
                describe.push(format!("bound to {bound}"));
                input
                    .endpoints
                    .push((bound, settings.connect.len() + index));
            }
            inputs.push(input);
        }
        let wake =
            UnixStream::pair().map_err(|error| format!("can't make a socket pair: {error}"))?;
        for end in [&wake.0, &wake.1] {
            (end.set_nonblocking(true))
                .map_err(|error| format!("can't set up a socket: {error}"))?;
        }
        Ok(Zmq {
            inputs,
            next: 0,
            drained: false,
            encoding: settings.encoding,
            message_max: settings.message_max,
            wake: (wake.0, Arc::new(wake.1)),
            stats,
            events_due: Instant::now(),
            describe,
        })
    }

    fn read_events(&mut self) {
        for input in &mut self.inputs {
            input.read_events(&self.stats);
        }
        self.events_due = Instant::now() + EVENTS_INTERVAL;
    }

    fn wait(&mut self, wait: Duration) -> Result<(), String> {
        let mut items: Vec<PollItem<'_>> = (self.inputs.iter())
            .flat_map(|input| [&input.socket, &*input.events])
            .map(|socket| socket.as_poll_item(::zmq::POLLIN))
            .collect();
        items.push(PollItem::from_fd(self.wake.0.as_raw_fd(), ::zmq::POLLIN));
        let wait = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
        match ::zmq::poll(&mut items, wait) {
            Ok(_) | Err(::zmq::Error::EINTR) => {}
            Err(error) => return Err(format!("waiting for messages: {error}")),
        }
        let mut monitors = items.iter().skip(1).step_by(2).take(self.inputs.len());
        let events = monitors.any(PollItem::is_readable);
        if items.last().is_some_and(PollItem::is_readable) {
            let _ = self.wake.0.read(&mut [0; 64]); // it is awake now; more bytes say no more
        }
        if events {
            self.read_events();
        }
        Ok(())
    }
}

/// What libzmq had received and nobody has read goes with the socket.
impl Drop for Zmq {
    fn drop(&mut self) {
        for input in &self.inputs {
            if matches!(input.socket.get_events(), Ok(events) if events.contains(::zmq::POLLIN)) {
                for (_, index) in &input.endpoints {
                    self.stats.endpoint(*index).left_unread();
                }
            }
        }
    }
}

impl Backend for Zmq {
    fn receive(
        &mut self,
        accept: &mut Accept<'_>,
        max: usize,
        wait: Duration,
    ) -> Result<usize, String> {
        let (mut received, mut bytes) = (0, 0);
        if self.drained {
            self.wait(wait)?;
        }
        for turn in 0..self.inputs.len() {
            let index = (self.next + turn) % self.inputs.len();
            let input = &mut self.inputs[index];
            let limits = (self.encoding, self.message_max);
            received += input.receive(accept, max - received, &mut bytes, limits, &self.stats)?;
        }
        self.next = (self.next + 1) % self.inputs.len();
        // Short of `max` it has read each input to its end, or refused some, or has large messages:
        // then `wait` returns at once.
        self.drained = received < max;
        if !self.drained && Instant::now() >= self.events_due {
            self.read_events();
        }
        self.stats.received(received);
        Ok(received)
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        let wake = self.wake.1.clone();
        // A full pipe means that it is going to wake up anyway.
        Arc::new(move || {
            let _ = (&*wake).write(&[1]);
        })
    }

    fn stats(&self) -> Arc<SourceStats> {
        self.stats.clone()
    }

    fn describe(&self) -> Vec<String> {
        self.describe.clone()
    }
}

/// Where libzmq tells of a socket's connections.
///
/// libzmq tells of the socket's own end, too, on the thread that closes all sockets of the process,
/// and waits there until somebody takes it: closed earlier, this end would stop that thread for
/// good (`socket_base.cpp`, `stop_monitor`).
struct Events(Option<Socket>);

impl std::ops::Deref for Events {
    type Target = Socket;

    fn deref(&self) -> &Socket {
        self.0.as_ref().expect("there is one until it is dropped")
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let stopped = SocketEvent::MONITOR_STOPPED.to_raw().to_le_bytes();
        let _ = self.set_rcvtimeo(100);
        while let Ok(event) = self.recv_multipart(0) {
            if event
                .first()
                .is_some_and(|frame| frame.starts_with(&stopped))
            {
                return;
            }
        }
        // An `inproc` peer that is idle delays the end of the socket for as long as it likes. Left
        // open, this one costs a file descriptor.
        std::mem::forget(self.0.take());
    }
}

impl Input {
    fn new(settings: &Settings, prefixes: &[String]) -> Result<Self, String> {
        let pattern = match settings.socket {
            Pattern::Sub => SocketType::SUB,
            Pattern::Pull => SocketType::PULL,
        };
        Self::set_up(settings, pattern, prefixes)
            .map_err(|error| format!("can't set up a ZeroMQ socket: {error}"))
    }

    fn set_up(
        settings: &Settings,
        pattern: SocketType,
        prefixes: &[String],
    ) -> Result<Self, ::zmq::Error> {
        let socket = context().socket(pattern)?;
        socket.set_linger(0)?;
        socket.set_rcvhwm(settings.receive_hwm.into())?;
        // Above `message_max` a message is refused and counted. Far above, libzmq cuts the
        // connection before it makes room for it.
        socket.set_maxmsgsize(settings.message_max.saturating_mul(4).min(1 << 40) as i64)?;
        let millis = |time: Duration| i32::try_from(time.as_millis()).unwrap_or(i32::MAX);
        socket.set_reconnect_ivl(millis(settings.reconnect))?;
        socket.set_reconnect_ivl_max(millis(settings.reconnect_max))?;
        if settings.keep_alive {
            // A peer that vanished without a word is noticed after 60 + 6 * 10 seconds.
            socket.set_tcp_keepalive(1)?;
            socket.set_tcp_keepalive_idle(60)?;
            socket.set_tcp_keepalive_intvl(10)?;
            socket.set_tcp_keepalive_cnt(6)?;
        }
        if let Some(curve) = &settings.curve {
            let key = |text: &str| ::zmq::z85_decode(text).map_err(|_| ::zmq::Error::EINVAL);
            socket.set_curve_serverkey(&key(&curve.server_key)?)?;
            socket.set_curve_publickey(&key(&curve.public_key)?)?;
            socket.set_curve_secretkey(&key(&curve.secret_key)?)?;
        }
        if pattern == SocketType::SUB {
            for prefix in prefixes {
                socket.set_subscribe(prefix.as_bytes())?;
            }
        }
        // Never used twice: a socket that was closed may keep its name for a while.
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let endpoint = format!("inproc://weir-events-{number}");
        let told = [
            SocketEvent::HANDSHAKE_SUCCEEDED,
            SocketEvent::DISCONNECTED,
            SocketEvent::CONNECT_RETRIED,
            SocketEvent::HANDSHAKE_FAILED_NO_DETAIL,
            SocketEvent::HANDSHAKE_FAILED_PROTOCOL,
            SocketEvent::HANDSHAKE_FAILED_AUTH,
            SocketEvent::MONITOR_STOPPED,
        ];
        socket.monitor(
            &endpoint,
            told.iter().fold(0, |mask, event| mask | *event as i32),
        )?;
        let events = context().socket(SocketType::PAIR)?;
        events.set_linger(0)?;
        events.connect(&endpoint)?;
        Ok(Input {
            socket,
            events: Events(Some(events)),
            sequences: HashMap::default(),
            endpoints: Vec::new(),
            told: None,
            handshake_failed: false,
        })
    }

    fn receive(
        &mut self,
        accept: &mut Accept<'_>,
        max: usize,
        bytes: &mut usize,
        (encoding, message_max): (Encoding, usize),
        stats: &SourceStats,
    ) -> Result<usize, String> {
        let mut frames = [
            ::zmq::Message::new(),
            ::zmq::Message::new(),
            ::zmq::Message::new(),
        ];
        let mut received = 0;
        // Refused messages count towards the limit too: a flood of them must not keep it here.
        for _ in 0..max {
            if *bytes >= BATCH_BYTES {
                break;
            }
            let count = match self.read_frames(&mut frames) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) => return Err(format!("reading from {}: {error}", self.endpoints[0].0)),
            };
            let [first, second, third] = &mut frames;
            let (topic, body, sequence) = match count {
                1 => match first.iter().position(|byte| *byte == 0) {
                    Some(nul) => (&first[..nul], Body::Rest(&first[nul + 1..]), None),
                    None => {
                        stats.refused(Refusal::Frames);
                        continue;
                    }
                },
                2 => (&first[..], Body::Frame(second), None),
                3 if third.len() == 4 => {
                    let number = u32::from_le_bytes([third[0], third[1], third[2], third[3]]);
                    let endpoint = stats.endpoint(self.endpoints[0].1);
                    follow(&mut self.sequences, first, number, endpoint);
                    (&first[..], Body::Frame(second), Some(number.into()))
                }
                _ => {
                    stats.refused(Refusal::Frames);
                    continue;
                }
            };
            match payload(body, encoding, message_max) {
                Ok(payload) => {
                    *bytes += payload.len();
                    accept(topic, payload, sequence);
                    received += 1;
                }
                Err(why) => stats.refused(why),
            }
        }
        Ok(received)
    }

    /// Reads one message, at most three frames of which are kept; answers how many it had.
    fn read_frames(&self, frames: &mut [::zmq::Message; 3]) -> Result<usize, ::zmq::Error> {
        let mut count = 0;
        loop {
            let frame = &mut frames[count.min(2)];
            match self.socket.recv(frame, DONTWAIT) {
                Ok(()) => count += 1,
                // Frames of a message arrive together, so this can only be before the first.
                Err(::zmq::Error::EAGAIN) => return Ok(count),
                Err(::zmq::Error::EINTR) => continue,
                Err(error) => return Err(error),
            }
            if !frame.get_more() {
                return Ok(count);
            }
        }
    }

    /// Reads what libzmq tells of connections. An event is two frames: number and value, endpoint
    /// (zmq_socket_monitor(3)).
    fn read_events(&mut self, stats: &SourceStats) {
        while let Ok(event) = self.events.recv_msg(DONTWAIT) {
            let endpoint = match event.get_more() {
                true => self.events.recv_bytes(DONTWAIT).unwrap_or_default(),
                false => Vec::new(),
            };
            let Some(number) = event.get(..2) else {
                continue;
            };
            let number = u16::from_le_bytes([number[0], number[1]]);
            let endpoint = String::from_utf8_lossy(&endpoint);
            let place = (self.endpoints.iter())
                .find(|(known, _)| *known == endpoint)
                .or(self.endpoints.first());
            let Some((known, index)) = place else {
                continue;
            };
            // Compared by number: the binding's own conversion panics on events it doesn't know.
            let is = |event: SocketEvent| number == event.to_raw();
            if is(SocketEvent::HANDSHAKE_SUCCEEDED) {
                self.told = None;
                match stats.endpoint(*index).connected() {
                    1 => info!(endpoint = known, "connected"),
                    times => info!(endpoint = known, times, "connected again"),
                }
            } else if is(SocketEvent::DISCONNECTED) {
                // After a handshake that failed it is told, too: nothing was connected then.
                if !std::mem::take(&mut self.handshake_failed) {
                    stats.endpoint(*index).disconnected();
                    warn!(
                        endpoint = known,
                        "connection lost; messages may have been missed"
                    );
                }
            } else if is(SocketEvent::CONNECT_RETRIED) {
                if tell(&mut self.told) {
                    warn!(
                        endpoint = known,
                        "can't connect; it is tried again and again"
                    );
                }
            } else if !is(SocketEvent::MONITOR_STOPPED) {
                self.handshake_failed = true;
                if tell(&mut self.told) {
                    warn!(endpoint = known, "a peer does not speak ZeroMQ as we do");
                }
            }
        }
    }
}

/// Whether it is time to tell of a trouble, again.
fn tell(told: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let due = told.is_none_or(|told| now.duration_since(told) >= TELL_AGAIN);
    if due {
        *told = Some(now);
    }
    due
}

fn follow(
    sequences: &mut HashMap<Box<[u8]>, u32, rapidhash::fast::RandomState>,
    topic: &[u8],
    number: u32,
    endpoint: &crate::stats::EndpointStats,
) {
    let Some(next) = sequences.get_mut(topic) else {
        if sequences.len() < SEQUENCES_MAX && topic.len() <= crate::stats::TOPIC_MAX {
            endpoint.sequenced();
            sequences.insert(topic.into(), number.wrapping_add(1));
        }
        return;
    };
    match number.wrapping_sub(*next) {
        0 => {}
        missed @ 1..0x8000_0000 => endpoint.missed(missed.into()),
        _ => endpoint.restarted(), // it went back
    }
    *next = number.wrapping_add(1);
}

enum Body<'f> {
    /// A frame of its own, which may be taken out.
    Frame(&'f mut ::zmq::Message),
    /// The rest of a frame.
    Rest(&'f [u8]),
}

fn payload(body: Body<'_>, encoding: Encoding, max: usize) -> Result<Bytes, Refusal> {
    let bytes: &[u8] = match &body {
        Body::Frame(frame) => frame,
        Body::Rest(rest) => rest,
    };
    if bytes.len() > max {
        return Err(Refusal::Size);
    }
    match encoding {
        Encoding::Gzip => return inflate(GzDecoder::new(bytes), max),
        Encoding::Zlib => return inflate(ZlibDecoder::new(bytes), max),
        Encoding::None => {}
    }
    match body {
        Body::Frame(frame) if frame.len() >= COPY_BELOW => Ok(Bytes::from_owner(Frame(
            std::mem::replace(frame, ::zmq::Message::new()),
        ))),
        Body::Frame(frame) => Ok(Bytes::copy_from_slice(frame)),
        Body::Rest(rest) => Ok(Bytes::copy_from_slice(rest)),
    }
}

fn inflate(from: impl Read, max: usize) -> Result<Bytes, Refusal> {
    let mut out = Vec::new();
    // One more than allowed tells a payload that is as large as allowed from one that is larger.
    from.take(max as u64 + 1)
        .read_to_end(&mut out)
        .map_err(|_| Refusal::Encoding)?;
    match out.len() > max {
        true => Err(Refusal::Size),
        false => Ok(out.into()),
    }
}

struct Frame(::zmq::Message);

impl AsRef<[u8]> for Frame {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
