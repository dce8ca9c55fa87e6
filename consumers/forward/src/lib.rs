//! The kind `forward`: sends each message on through another ZeroMQ socket, for relays and gateways.
//!
//! 1. *Nothing is lost while nobody takes it*: a message that no receiver takes, or that one of the
//!    subscribers can't take, is tried again, so that it shows as lag of this consumer (with
//!    `wait_for_subscriber` and `slow_subscriber` as they are by default).
//! 2. *Payloads are never changed*: they may be signed. Only the beginning of the topic is.
//! 3. *What comes back is not sent again*, as far as can be told (`guard.rs`).
//! 4. *Nothing waits longer than `timeout`*, and the end of the socket a second.
//!
//! What it leaves to others: retries (the hub), and what libzmq held for a receiver that went away.

mod guard;

use std::ffi::c_int;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::IgnoredAny;
use weir_consumer::endpoint::{check_free, check_list, resolved};
use weir_consumer::settings::duration;
use weir_consumer::{Consumer, Context, Failure, Kind, Message, Result};
use zmq::{DONTWAIT, POLLIN, SNDMORE, Socket, SocketType};

use guard::Guard;

/// A stop of the hub waits for a message in hand.
const TIMEOUT_MAX: Duration = Duration::from_secs(5);
/// How long the end of a socket waits for what it holds to go out, in milliseconds.
const LINGER_MS: i32 = 1000;
/// Some 1.2 GB: more is a slip of the finger.
const GUARDED_MAX: usize = 10_000_000;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    socket: Pattern,
    connect: Vec<String>,
    bind: Vec<String>,
    rewrite: Vec<Rewrite>,
    wait_for_subscriber: bool,
    slow_subscriber: Slow,
    send_hwm: u16,
    #[serde(deserialize_with = "duration")]
    timeout: Duration,
    loop_guard: LoopGuard,
    /// Known so that it can be answered with more than "unknown key".
    curve: Option<IgnoredAny>,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Pattern {
    Pub,
    Push,
}

/// What happens to a message that a subscriber has no room for.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Slow {
    /// It waits, and all subscribers with it.
    Wait,
    /// That subscriber does not get it.
    Drop,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rewrite {
    prefix: String,
    with: String,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(
    untagged,
    expecting = "expected `false`, or a table such as { window = \"60s\", messages = 100000 }"
)]
enum LoopGuard {
    Switch(bool),
    Remember(Remember),
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Remember {
    #[serde(deserialize_with = "duration")]
    window: Duration,
    messages: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            socket: Pattern::Pub,
            connect: Vec::new(),
            bind: Vec::new(),
            rewrite: Vec::new(),
            wait_for_subscriber: true,
            slow_subscriber: Slow::Wait,
            send_hwm: 1000,
            timeout: Duration::from_secs(1),
            loop_guard: LoopGuard::Remember(Remember::default()),
            curve: None,
        }
    }
}

impl Default for Remember {
    fn default() -> Self {
        Remember {
            window: Duration::from_secs(60),
            messages: 100_000,
        }
    }
}

struct Forward {
    settings: Settings,
    guard: Option<Guard>,
    outlet: Option<Outlet>,
}

/// The kind `forward`.
pub fn kind() -> Kind {
    Kind::consumer("forward", build)
        .summary("sends each message on through another ZeroMQ socket, topics rewritten")
        .sample(include_str!("../sample.toml"))
}

fn build(settings: Settings, context: &Context) -> Result<Forward> {
    if let Some(wrong) = wrong(&settings, context) {
        return Err(Failure::halt(wrong));
    }
    let remember = match &settings.loop_guard {
        LoopGuard::Switch(false) => None,
        LoopGuard::Switch(true) => Some(&Remember::default()),
        LoopGuard::Remember(remember) => Some(remember),
    };
    Ok(Forward {
        guard: remember.map(|remember| Guard::new(remember.window, remember.messages)),
        settings,
        outlet: None,
    })
}

/// The first mistake in the settings.
fn wrong(settings: &Settings, context: &Context) -> Option<String> {
    let Settings { connect, bind, .. } = settings;
    if settings.curve.is_some() {
        return Some(
            "`curve`: this build's libzmq has no CURVE (it was built without libsodium); use a \
             tunnel such as stunnel or WireGuard instead"
                .into(),
        );
    }
    if connect.is_empty() && bind.is_empty() {
        return Some(
            "there is nowhere to forward to; give `bind` or `connect`, such as \
             bind = [\"tcp://127.0.0.1:9950\"]"
                .into(),
        );
    }
    if !bind.is_empty() && context.workers() > 1 {
        return Some(format!(
            "`bind`: each of the {} workers would bind to {}, and only one can; leave `workers` at 1",
            context.workers(),
            bind[0]
        ));
    }
    for (key, endpoints) in [("connect", connect), ("bind", bind)] {
        if let Some((_, wrong)) = check_list(endpoints, key == "connect").first() {
            return Some(format!("`{key}`: {wrong}"));
        }
        if let Some(inproc) = endpoints.iter().find(|e| e.starts_with("inproc:")) {
            return Some(format!(
                "`{key}`: {inproc} ends inside this consumer, where nobody else is; use ipc or tcp"
            ));
        }
    }
    if settings.send_hwm == 0 {
        return Some("`send_hwm`: 0 would be without limit; expected 1 to 65535 messages".into());
    }
    if settings.timeout > TIMEOUT_MAX {
        return Some(format!(
            "`timeout`: expected at most {} s, which a stop of the hub may have to wait",
            TIMEOUT_MAX.as_secs()
        ));
    }
    if let LoopGuard::Remember(Remember { window, messages }) = &settings.loop_guard {
        if window.is_zero() {
            return Some("`loop_guard.window`: nothing would be remembered; to have no guard, say loop_guard = false".into());
        }
        if !(1..=GUARDED_MAX).contains(messages) {
            return Some(format!(
                "`loop_guard.messages`: expected 1 to {GUARDED_MAX}"
            ));
        }
    }
    wrong_rewrite(&settings.rewrite).or_else(|| circle(settings, context))
}

fn wrong_rewrite(rules: &[Rewrite]) -> Option<String> {
    for (index, rule) in rules.iter().enumerate() {
        for (key, text) in [("prefix", &rule.prefix), ("with", &rule.with)] {
            if !(text.is_empty() || text.ends_with('.')) {
                return Some(format!(
                    "`rewrite`: {key} = {text:?} would cut a topic within a word; write {:?}",
                    format!("{text}.")
                ));
            }
            if text.contains(['*', '\0']) {
                return Some(format!(
                    "`rewrite`: {key} = {text:?} is taken as it is written, and no topic has that"
                ));
            }
        }
        let earlier =
            (rules[..index].iter()).find(|earlier| rule.prefix.starts_with(&earlier.prefix));
        if let Some(earlier) = earlier {
            return Some(format!(
                "`rewrite`: the rule for {:?} is never reached, as the one for {:?} stands before it",
                rule.prefix, earlier.prefix
            ));
        }
    }
    None
}

/// Says so when the hub reads where this sends to, and gives this what it sent.
///
/// Only the hub's own endpoints can be known here; the guard sees to the rest.
fn circle(settings: &Settings, context: &Context) -> Option<String> {
    let own = (settings.connect.iter().chain(&settings.bind))
        .find(|ours| context.sources().iter().any(|source| same(ours, source)))?;
    for topic in context.topics() {
        for sent in sent_as(&settings.rewrite, topic) {
            let meets = |topic: &&String| topic.starts_with(&sent) || sent.starts_with(*topic);
            if let Some(topic) = context.topics().iter().find(meets) {
                return Some(format!(
                    "this hub reads from {own}, and this consumer gets {topic:?}: what it sends \
                     there as {sent:?} would come round for ever; rewrite it to a topic that it \
                     does not get, or forward to somewhere else"
                ));
            }
        }
    }
    None
}

/// The prefixes under which topics of this prefix are sent.
fn sent_as(rules: &[Rewrite], topic: &str) -> Vec<String> {
    let mut sent = Vec::new();
    for rule in rules {
        if let Some(rest) = topic.strip_prefix(&rule.prefix) {
            sent.push(format!("{}{rest}", rule.with));
            return sent; // no topic is left for the rules after it
        }
        if rule.prefix.starts_with(topic) {
            sent.push(rule.with.clone());
        }
    }
    sent.push(topic.into());
    sent
}

/// Whether two endpoints, one bound and one connected to, are the same place as far as text tells.
fn same(one: &str, other: &str) -> bool {
    let parts = |endpoint: &str| {
        let endpoint = resolved(endpoint);
        let (host, port) = endpoint.strip_prefix("tcp://")?.rsplit_once(':')?;
        Some((host.to_owned(), port.to_owned()))
    };
    let here = |host: &str| ["*", "0.0.0.0", "127.0.0.1"].contains(&host);
    match (parts(one), parts(other)) {
        (Some((host, port)), Some((other_host, other_port))) => {
            port == other_port && (host == other_host || here(&host) && here(&other_host))
        }
        _ => one == other,
    }
}

impl Consumer for Forward {
    fn consume(&mut self, message: &Message) -> Result {
        let now = Instant::now();
        let print = self.guard.as_ref().map(|guard| guard.print(message));
        // What somebody asked for again is no message from outside.
        if let (Some(guard), Some(print), false) = (&mut self.guard, print, message.replayed())
            && guard.came_back(message, print, now)
        {
            return Err(Failure::drop(
                "it was forwarded before: it has come back, or somebody sent it twice \
                 (loop_guard = false lets such messages pass)",
            ));
        }
        let topic = rewritten(&self.settings.rewrite, message.topic());
        // Taken out, and put back unless the socket is broken. One whose receivers take nothing is
        // not: what it holds would be lost with it.
        let mut outlet = match self.outlet.take() {
            Some(outlet) => outlet,
            None => Outlet::open(&self.settings)?,
        };
        let sent = outlet.send(&self.settings, &topic, message.payload())?;
        let subscriptions = outlet.subscriptions;
        self.outlet = Some(outlet);
        if !sent {
            return Err(Failure::retry(nobody(&self.settings, subscriptions)));
        }
        if let (Some(guard), Some(print)) = (&mut self.guard, print) {
            guard.remember(message, print, &topic, now);
        }
        Ok(())
    }

    /// Opens the socket before there is a message, so that receivers have connected by then.
    fn tick(&mut self) -> Result {
        match &mut self.outlet {
            Some(outlet) => outlet.read_subscriptions()?,
            None => self.outlet = Some(Outlet::open(&self.settings)?),
        }
        Ok(())
    }
}

fn rewritten<'t>(rules: &[Rewrite], topic: &'t str) -> std::borrow::Cow<'t, str> {
    let found = rules
        .iter()
        .find_map(|rule| Some((rule, topic.strip_prefix(&rule.prefix)?)));
    match found {
        Some((rule, rest)) => [&rule.with, rest].concat().into(),
        None => topic.into(),
    }
}

fn nobody(settings: &Settings, subscriptions: usize) -> String {
    let endpoints: Vec<&str> = (settings.connect.iter().chain(&settings.bind))
        .map(String::as_str)
        .collect();
    let endpoints = endpoints.join(", ");
    let waited = settings.timeout;
    match settings.socket {
        Pattern::Pub if subscriptions == 0 => {
            format!("nobody has subscribed at {endpoints} for {waited:?}")
        }
        Pattern::Pub => format!(
            "a subscriber at {endpoints} did not take it within {waited:?}: {} messages wait for it \
             already",
            settings.send_hwm
        ),
        Pattern::Push => format!(
            "no receiver at {endpoints} took it within {waited:?}: none is connected, or {} \
             messages wait for each of them already",
            settings.send_hwm
        ),
    }
}

/// The socket.
struct Outlet {
    socket: Socket,
    /// Prefixes that somebody has subscribed to; of a PUSH socket nothing.
    subscriptions: usize,
}

impl Outlet {
    fn open(settings: &Settings) -> Result<Self> {
        let set_up = || -> zmq::Result<Socket> {
            // A context of its own makes the end of the socket wait until all has gone out.
            let mut socket = zmq::Context::new().socket(match settings.socket {
                Pattern::Pub => SocketType::XPUB, // unlike PUB, is told of subscriptions
                Pattern::Push => SocketType::PUSH,
            })?;
            socket.set_linger(LINGER_MS)?;
            socket.set_sndhwm(settings.send_hwm.into())?;
            socket.set_sndtimeo(millis(settings.timeout))?;
            if settings.socket == Pattern::Pub && settings.slow_subscriber == Slow::Wait {
                drop_nothing(&mut socket)?;
            }
            // Nothing is put into the queue of a connection that there is not yet.
            socket.set_immediate(settings.socket == Pattern::Push)?;
            // A receiver that vanished without a word is noticed after 60 + 6 * 10 seconds.
            socket.set_tcp_keepalive(1)?;
            socket.set_tcp_keepalive_idle(60)?;
            socket.set_tcp_keepalive_intvl(10)?;
            socket.set_tcp_keepalive_cnt(6)?;
            Ok(socket)
        };
        let socket = set_up()
            .map_err(|error| Failure::retry(format!("can't set up a ZeroMQ socket: {error}")))?;
        for endpoint in &settings.bind {
            check_free(endpoint).map_err(Failure::retry)?;
            (socket.bind(&resolved(endpoint))).map_err(|error| {
                let remedy = match error {
                    zmq::Error::EADDRINUSE => "; another program has it",
                    _ => "",
                };
                Failure::retry(format!("can't bind to {endpoint}: {error}{remedy}"))
            })?;
        }
        for endpoint in &settings.connect {
            (socket.connect(&resolved(endpoint)))
                .map_err(|error| Failure::retry(format!("can't connect to {endpoint}: {error}")))?;
        }
        Ok(Outlet {
            socket,
            subscriptions: 0,
        })
    }

    /// Hands a message to libzmq; answers whether it went.
    fn send(&mut self, settings: &Settings, topic: &str, payload: &[u8]) -> zmq::Result<bool> {
        self.read_subscriptions()?;
        if settings.socket == Pattern::Pub && settings.wait_for_subscriber {
            let deadline = Instant::now() + settings.timeout;
            while self.subscriptions == 0 {
                let wait = deadline.saturating_duration_since(Instant::now());
                match self.socket.poll(POLLIN, millis(wait).into()) {
                    Ok(0) => return Ok(false),
                    Ok(_) | Err(zmq::Error::EINTR) => self.read_subscriptions()?,
                    Err(error) => return Err(error),
                }
            }
        }
        // Both frames go or none: libzmq takes the first back if it can't take the second.
        for (frame, flags) in [(topic.as_bytes(), SNDMORE), (payload, 0)] {
            loop {
                match self.socket.send(frame, flags) {
                    Ok(()) => break,
                    Err(zmq::Error::EINTR) => {}
                    Err(zmq::Error::EAGAIN) => return Ok(false),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(true)
    }

    /// An XPUB socket tells when somebody is the first to subscribe to a prefix (1 and the prefix),
    /// and when the last one leaves it (0 and the prefix).
    fn read_subscriptions(&mut self) -> zmq::Result<()> {
        if self.socket.get_socket_type()? != SocketType::XPUB {
            return Ok(());
        }
        loop {
            match self.socket.recv_msg(DONTWAIT).as_deref() {
                Ok([1, ..]) => self.subscriptions += 1,
                Ok([0, ..]) => self.subscriptions = self.subscriptions.saturating_sub(1),
                Ok(_) => {} // a peer's own words, which mean nothing here
                Err(zmq::Error::EINTR) => {}
                Err(zmq::Error::EAGAIN) => return Ok(()),
                Err(error) => return Err(*error),
            }
        }
    }
}

/// Makes a publisher say when a subscriber has no room for a message, instead of dropping it there
/// without a word. The crate `zmq` has no function for this option.
#[allow(unsafe_code)]
fn drop_nothing(socket: &mut Socket) -> zmq::Result<()> {
    let on: c_int = 1;
    let option = zmq_sys::ZMQ_XPUB_NODROP as c_int;
    // SAFETY: the socket is open while it is borrowed, and libzmq copies the value: an int, as this
    // option wants it, that lives until the call returns.
    let failed = unsafe {
        let value = (&raw const on).cast();
        zmq_sys::zmq_setsockopt(socket.as_mut_ptr(), option, value, size_of::<c_int>())
    };
    match failed {
        0 => Ok(()),
        // SAFETY: it reads the number of the last error of this thread.
        _ => Err(zmq::Error::from_raw(unsafe { zmq_sys::zmq_errno() })),
    }
}

fn millis(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use weir_consumer::Publisher;
    use weir_consumer::settings::Settings as Toml;
    use weir_consumer::testkit::{build, sample_settings};

    use super::*;

    /// What a hub says that reads from there, and gives these topics to the consumer.
    fn mistake(toml: &str, sources: &[&str], topics: &[&str]) -> String {
        let owned = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        let context = Context::new("forward", Path::new(""), Publisher::nowhere())
            .reading(owned(topics), owned(sources));
        let settings = Toml::from_toml(toml, "forward").unwrap();
        match kind().build_consumer(&settings, &context) {
            Ok(_) => String::new(),
            Err(mistakes) => mistakes[0].to_string(),
        }
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: Settings = sample_settings(&kind()).parse().unwrap();
        let bind = vec!["tcp://127.0.0.1:9950".to_owned()];
        assert_eq!(
            sample,
            Settings {
                bind,
                ..Settings::default()
            }
        );
        let rewrite = (kind().sample_text().lines())
            .find_map(|line| line.strip_prefix("# rewrite"))
            .map(|rest| format!("bind = ['tcp://127.0.0.1:1']\nrewrite{rest}"));
        assert!(build(&kind(), &rewrite.unwrap(), Path::new("")).is_ok());
    }

    #[test]
    fn bad_settings_are_refused_with_what_would_be_right() {
        let bound = "bind = ['tcp://127.0.0.1:1']\n";
        for (toml, expected) in [
            ("", "nowhere to forward to; give `bind` or `connect`"),
            (
                "bind = ['127.0.0.1:1']",
                "`bind`: `127.0.0.1:1` is no endpoint; write it such as",
            ),
            (
                "connect = ['tcp://*:1']",
                "`connect`: `tcp://*:1` can't be connected to",
            ),
            ("bind = ['inproc://a']", "use ipc or tcp"),
            ("send_hwm = 0", "expected 1 to 65535"),
            ("send_hwm = 65536", "65535"),
            ("timeout = '6s'", "`timeout`: expected at most 5 s"),
            (
                "socket = 'dealer'",
                "unknown value `dealer`; known here: pub, push",
            ),
            ("loop_guard = 7", "expected `false`, or a table such as"),
            ("loop_guard = { window = '0s' }", "loop_guard = false"),
            (
                "loop_guard = { messages = 0 }",
                "`loop_guard.messages`: expected 1 to",
            ),
            (
                "curve = { server_key = 'x' }",
                "use a tunnel such as stunnel",
            ),
            (
                "rewrite = [{ prefix = 'org', with = '' }]",
                "write \"org.\"",
            ),
            ("rewrite = [{ prefix = '', with = 'a' }]", "write \"a.\""),
            (
                "rewrite = [{ prefix = 'a.*.', with = '' }]",
                "is taken as it is written",
            ),
            (
                "rewrite = [{ prefix = 'a.', with = '' }, { prefix = 'a.b.', with = '' }]",
                "the rule for \"a.b.\" is never reached, as the one for \"a.\" stands before it",
            ),
        ] {
            let toml = if toml.contains("tcp") || toml.contains("bind") || toml.is_empty() {
                toml.to_owned()
            } else {
                format!("{bound}{toml}")
            };
            let told = mistake(&toml, &[], &[""]);
            assert!(told.contains(expected), "{toml}: {told}");
        }
    }

    #[test]
    fn workers_that_would_all_bind_are_refused() {
        let context = |workers| {
            Context::new("forward", Path::new(""), Publisher::nowhere()).with_workers(workers)
        };
        for (key, workers, good) in [("bind", 1, true), ("bind", 2, false), ("connect", 2, true)] {
            let toml = format!("{key} = ['tcp://127.0.0.1:1']");
            let settings = Toml::from_toml(&toml, "forward").unwrap();
            let built = kind().build_consumer(&settings, &context(workers));
            assert_eq!(built.is_ok(), good, "{key} {workers}");
        }
    }

    #[test]
    fn what_would_come_round_within_the_hub_is_refused() {
        let to =
            |endpoint: &str, rewrite: &str| format!("bind = ['{endpoint}']\nrewrite = [{rewrite}]");
        let away = "{ prefix = 'a.', with = 'b.' }";
        let here = "tcp://127.0.0.1:9";
        for (toml, topics, circles) in [
            (to(here, ""), &["a."][..], true),
            (to("tcp://*:9", ""), &["a."], true),
            (to("tcp://localhost:9", ""), &["a."], true),
            (to("tcp://127.0.0.1:8", ""), &["a."], false),
            (to("tcp://10.0.0.1:9", ""), &["a."], false),
            (to(here, away), &["a."], false),
            (to(here, away), &["a.x."], false),
            (to(here, away), &["a.", "b.x."], true),
            (to(here, away), &["a.", "c."], true),
            (to(here, away), &[""], true),
            (to(here, "{ prefix = '', with = 'b.' }"), &["a."], false),
            (
                to(here, "{ prefix = 'a.x.', with = 'b.' }"),
                &["a.x."],
                false,
            ),
            (to(here, "{ prefix = 'a.x.', with = 'b.' }"), &["a."], true),
        ] {
            let told = mistake(&toml, &["tcp://127.0.0.1:7", here], topics);
            assert_eq!(
                told.contains("come round for ever"),
                circles,
                "{toml} {topics:?}: {told}"
            );
            assert_eq!(told.is_empty(), !circles, "{toml} {topics:?}: {told}");
        }
    }

    #[test]
    fn the_first_rule_that_fits_replaces_the_beginning_of_a_topic() {
        let rule = |prefix: &str, with: &str| Rewrite {
            prefix: prefix.into(),
            with: with.into(),
        };
        let rules = [rule("a.b.", "x."), rule("a.", ""), rule("c.", "c.c.")];
        for (topic, expected) in [
            ("a.b.c", "x.c"),
            ("a.bc", "bc"),
            ("a.", ""),
            ("c.a", "c.c.a"),
            ("a", "a"),
            ("b.a.b.c", "b.a.b.c"),
        ] {
            assert_eq!(rewritten(&rules, topic), expected, "{topic}");
        }
    }
}
