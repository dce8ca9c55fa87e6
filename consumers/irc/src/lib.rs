//! The kind `irc`: posts messages to channels; and its connection, for other kinds that post.
//!
//! What the kind promises:
//!
//! 1. A message is settled only after the server has answered what was said of it, in each of its
//!    channels.
//! 2. A message that is tried again goes only to those of its channels that did not have it.
//! 3. A channel gets so many lines in a time at most, and one that tells how many more there were.
//!
//! What [`Connection`] promises, it says itself. What both leave to others: trying for as long as a
//! server is away (`retry = { attempts = 0 }`, a key of the hub); whether the people of a channel
//! want to read it; and all of IRC that is not posting.
//!
//! Modules stand in the order in which they may use one another.

mod flood;
mod line;
mod pace;
mod server;

mod wire;

mod session;

#[cfg(test)]
mod fake;

mod connection;

use std::time::Instant;

use metrics::counter;
use serde::Deserialize;
use weir_consumer::conditions::{ByTopic, Conditions};
use weir_consumer::{Consumer, Context, Failure, Kind, Message, Result, Template, Verdict};

pub use connection::Connection;
pub use server::Server;

use flood::{Course, Flood};
use line::Target;

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    /// Where messages go, unless their route says something else.
    #[serde(default)]
    channels: Vec<Target>,
    #[serde(default = "format")]
    format: Template,
    /// Which messages are said, and where. Without any: all.
    #[serde(default)]
    routes: Vec<RouteSettings>,
    #[serde(default)]
    flood: flood::Settings,
    connection: Server,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteSettings {
    #[serde(default = "everything")]
    topics: Vec<String>,
    #[serde(default)]
    when: Conditions,
    channels: Option<Vec<Target>>,
    format: Option<Template>,
}

fn everything() -> Vec<String> {
    vec![String::new()]
}

fn format() -> Template {
    match Template::new("{{ topic }}: {{ payload }}") {
        Ok(template) => template,
        Err(why) => unreachable!("{why}"),
    }
}

struct Irc {
    connection: Connection,
    routes: ByTopic<Route>,
    flood: Flood,
    /// What was done of the message that is to be tried again.
    progress: Option<Progress>,
}

struct Route {
    number: usize,
    when: Conditions,
    channels: Vec<Target>,
    format: Template,
}

/// What was done of a message.
struct Progress {
    seq: u64,
    received_ns: u64,
    /// The channels that are finished with it.
    done: Vec<String>,
    /// Whether any of them got it, or will get it in a summary.
    said: bool,
}

/// The kind `irc`.
pub fn kind() -> Kind {
    Kind::consumer("irc", build)
        .summary("posts messages to IRC channels")
        .sample(include_str!("../sample.toml"))
}

fn build(settings: Settings, context: &Context) -> Result<Irc> {
    if let Some(problem) = settings.connection.problem() {
        return Err(Failure::halt(problem));
    }
    let mut written = settings.routes;
    if written.is_empty() {
        written.push(RouteSettings {
            topics: everything(),
            when: Conditions::default(),
            channels: None,
            format: None,
        });
    }
    let connection = Connection::shared(&settings.connection, context.data_dir());
    let mut routes = ByTopic::default();
    for (number, route) in written.into_iter().enumerate() {
        let channels = route.channels.unwrap_or_else(|| settings.channels.clone());
        if channels.is_empty() {
            return Err(Failure::halt(
                "without `channels`, here or in each of `routes`, there is nowhere to post",
            ));
        }
        for channel in &channels {
            connection.stay_in(channel);
        }
        let (topics, when) = (route.topics, route.when);
        let format = route.format.unwrap_or_else(|| settings.format.clone());
        routes.add(
            &topics,
            Route {
                number,
                when,
                channels,
                format,
            },
        );
    }
    Ok(Irc {
        connection,
        routes,
        flood: Flood::new(settings.flood),
        progress: None,
    })
}

impl Consumer for Irc {
    fn consume(&mut self, message: &Message) -> Result {
        let until = self.connection.patience();
        // What was held came before this message.
        self.tell(Some(Instant::now()), until)?;
        // All texts before the first is said: a message that lacks something is said nowhere.
        let texts = self.texts(message)?;
        if texts.is_empty() {
            return Err(Failure::drop("no route is for it"));
        }
        let mut progress = match self.progress.take() {
            Some(progress) if progress.is_of(message) => progress,
            _ => Progress::new(message),
        };
        let mut failure = None;
        for (channel, text) in texts {
            if progress.done.contains(&channel.folded) {
                continue;
            }
            match self.say(&channel, &text, message.topic(), until) {
                Ok(()) => progress.said = true,
                Err(no) if no.verdict() == Verdict::Drop => {}
                // The other channels are tried all the same: one that is closed to us closes no
                // other.
                Err(why) => {
                    failure.get_or_insert(why);
                    continue;
                }
            }
            progress.done.push(channel.folded);
        }
        match failure {
            Some(failure) => {
                self.progress = Some(progress);
                Err(failure)
            }
            None if progress.said => Ok(()),
            None => Err(Failure::drop("an empty text, or too many for its channels")),
        }
    }

    fn tick(&mut self) -> Result {
        self.connection.tick();
        // While there is no connection, what is held waits; the connection says why.
        if self.connection.is_open() {
            self.tell(Some(Instant::now()), self.connection.patience())?;
        }
        Ok(())
    }
}

impl Irc {
    /// What is said of a message, and where; of several routes to one channel the first counts.
    fn texts(&self, message: &Message) -> Result<Vec<(Target, String)>> {
        let mut routes: Vec<&Route> = (self.routes.of(message.topic()))
            .filter(|route| route.takes(message))
            .collect();
        routes.sort_by_key(|route| route.number);
        let mut texts: Vec<(Target, String)> = Vec::new();
        for route in routes {
            let fresh =
                |channel: &&Target| (texts.iter()).all(|(known, _)| known.folded != channel.folded);
            let channels: Vec<&Target> = route.channels.iter().filter(fresh).collect();
            if !channels.is_empty() {
                let text = route.format.of(message)?;
                texts.extend(channels.into_iter().map(|to| (to.clone(), text.clone())));
            }
        }
        Ok(texts)
    }

    fn say(&mut self, channel: &Target, text: &str, topic: &str, until: Instant) -> Result {
        let now = Instant::now();
        match self.flood.course(&channel.folded, now) {
            Course::Post => {
                let lines = self.connection.post_by(channel, text, until)?;
                self.flood.posted(&channel.folded, lines, now);
                let posted = counter!("irc_lines_total", "channel" => channel.name.clone());
                posted.increment(lines as u64);
            }
            Course::Hold => self.flood.hold(&channel.folded, topic),
            Course::Drop => return Err(Failure::drop("too many for this channel")),
        }
        Ok(())
    }

    /// Tells of what was held: where the time is over, or everywhere.
    fn tell(&mut self, now: Option<Instant>, until: Instant) -> Result {
        for channel in self.flood.due(now) {
            let target = self.routes.all().iter().flat_map(|route| &route.channels);
            let target = target.clone().find(|target| target.folded == channel);
            if let (Some(target), Some((text, held))) = (target, self.flood.summary(&channel)) {
                self.connection.post_by(target, &text, until)?;
                let held_total = counter!("irc_summarised_total", "channel" => target.name.clone());
                held_total.increment(held);
            }
            self.flood.told(&channel);
        }
        Ok(())
    }
}

/// Tells what is held, if it costs no more than saying it.
impl Drop for Irc {
    fn drop(&mut self) {
        if self.connection.is_open() {
            // A failure has nobody left to be told to.
            let _ = self.tell(None, self.connection.patience());
        }
    }
}

impl Route {
    fn takes(&self, message: &Message) -> bool {
        self.when.is_empty() || message.json().is_ok_and(|json| self.when.hold(json))
    }
}

impl Progress {
    fn new(message: &Message) -> Self {
        Progress {
            seq: message.seq(),
            received_ns: message.received_ns(),
            done: Vec::new(),
            said: false,
        }
    }

    fn is_of(&self, message: &Message) -> bool {
        (self.seq, self.received_ns) == (message.seq(), message.received_ns())
    }
}
