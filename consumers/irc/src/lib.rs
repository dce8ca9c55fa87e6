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

use std::time::{Duration, Instant};

use metrics::{counter, describe_counter};
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
    /// Where its format stands, for an error.
    written: String,
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
    let all = written.is_empty();
    if all {
        written.push(RouteSettings {
            topics: everything(),
            when: Conditions::default(),
            channels: None,
            format: None,
        });
    }
    describe();
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
        let written = match (&route.format, all) {
            (_, true) => "`format`".to_owned(),
            (Some(_), false) => format!("`routes.{number}.format`"),
            (None, false) => format!("`format`, for `routes.{number}`"),
        };
        let format = route.format.unwrap_or_else(|| settings.format.clone());
        routes.add(
            &topics,
            Route {
                number,
                written,
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

/// Says what the figures are; the connection does so of its own.
fn describe() {
    describe_counter!(
        "irc_lines_total",
        "Lines that the server had, those that tell how many more there were included."
    );
    describe_counter!(
        "irc_summarised_total",
        "Messages that were told only as a part of how many more there were."
    );
}

/// Lines were posted there.
fn count_lines(channel: &Target, lines: usize) {
    counter!("irc_lines_total", "channel" => channel.name.clone()).increment(lines as u64);
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
        if self.connection.is_open(Instant::now()) {
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
                let text = (route.format.of(message)).map_err(|failure| {
                    Failure::new(failure.verdict(), format!("{}: {failure}", route.written))
                })?;
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
                count_lines(channel, lines);
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
                let lines = self.connection.post_by(target, &text, until)?;
                count_lines(target, lines);
                let held_total = counter!("irc_summarised_total", "channel" => target.name.clone());
                held_total.increment(held);
            }
            self.flood.told(&channel);
        }
        Ok(())
    }
}

/// Time for a farewell: whoever ends may have waited for the server just before.
const FAREWELL: Duration = Duration::from_secs(1);

/// Tells what is held, if there is a connection for it.
impl Drop for Irc {
    fn drop(&mut self) {
        let until = Instant::now() + FAREWELL;
        if !self.flood.due(None).is_empty() && self.connection.is_open(until) {
            // A failure has nobody left to be told to.
            let _ = self.tell(None, until);
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    use weir_consumer::testkit::{Harness, build, conformance, sample_settings};

    use super::*;
    use crate::fake::{Answer, Fake, say};

    fn irc(fake: &Fake, toml: &str) -> Harness<Box<dyn Consumer>> {
        let toml = format!("{toml}\n[connection]\n{}\nline_burst = 100", fake.toml());
        match build(&kind(), &toml, Path::new("")) {
            Ok(consumer) => Harness::new(consumer),
            Err(mistakes) => panic!("{}", mistakes[0]),
        }
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: Settings = sample_settings(&kind()).parse().unwrap();
        let least = "channels = ['#weir']\n[connection]\nserver = 'irc.libera.chat:6697'\n\
                     nick = 'weir-example'";
        let least = weir_consumer::settings::Settings::from_toml(least, "t").unwrap();
        assert_eq!(sample, least.parse().unwrap());
    }

    #[test]
    fn the_sample_with_all_that_is_commented_out_is_read() {
        let sample = include_str!("../sample.toml");
        let switched_on: String = (sample.lines())
            .map(|line| match line.strip_prefix("# ") {
                Some(rest) if rest.contains(" = ") || rest.starts_with([' ', ']']) => rest,
                _ => line,
            })
            .fold(String::new(), |text, line| text + line + "\n");
        let all = weir_consumer::settings::Settings::from_toml(&switched_on, "t").unwrap();
        let section = all.get("consumers").unwrap().get("irc").unwrap().clone();
        let (_, own) = section.split(&weir_consumer::HUB_KEYS);
        let settings: Settings = own.parse().unwrap();
        assert_eq!(settings.routes.len(), 2);
        assert!(settings.connection.sasl.is_some() && settings.connection.ca.is_some());
    }

    #[test]
    fn bad_settings_are_refused_with_what_would_be_right() {
        let mistakes = |toml: &str| -> Vec<String> {
            let mistakes = build(&kind(), toml, Path::new("")).err().unwrap();
            mistakes.iter().map(ToString::to_string).collect()
        };
        let toml = "channels = ['weir']\nformat = '{{ a'\nchanels = []\n\
                    flood = { lines = 0, within = '0s', policy = 'sumarise' }\n[connection]\n\
                    server = 'irc.libera.chat'\nnick = 'a b'\nline_rate = '30'\nline_burst = 0\n\
                    username = 'a b'\nrealname = \"a\\n\"\npassword = 'hunter2'\ntimeout = '20h'\nnik = 'a'";
        assert_eq!(
            mistakes(toml),
            [
                "irc:1:13: channels.0: \"weir\" is no channel: one begins with `#`, `&`, `+` or `!`",
                "irc:2:10: format: template, line 1: syntax error: unexpected end of input, \
                 expected end of variable block",
                "irc:3:1: chanels: unknown key; did you mean `channels`?",
                "irc:4:19: flood.lines: expected a whole number of at least 1, found the number 0",
                "irc:4:31: flood.within: expected more than no time and at most 1day, found 0s",
                "irc:4:46: flood.policy: unknown value `sumarise`; did you mean `summarise`?",
                "irc:6:10: connection.server: expected a host and a port such as \
                 \"irc.libera.chat:6697\" or \"[::1]:6667\", found \"irc.libera.chat\"",
                "irc:7:8: connection.nick: \"a b\" is no nick: it has letters, digits and \
                 -[]\\`_^{|}, and begins with neither a digit nor a `-`",
                "irc:8:13: connection.line_rate: expected a rate such as \"60/min\" or \"2/s\", at \
                 least one a minute, found \"30\"",
                "irc:9:14: connection.line_burst: expected 1 to 100 lines, found 0",
                "irc:10:12: connection.username: expected one word without `@` and `!`, found \
                 \"a b\"",
                "irc:11:12: connection.realname: expected a text of 1 to 200 bytes without control \
                 characters, found \"a\\n\"",
                "irc:12:12: connection.password: expected { file = \"PATH\" } or { env = \"NAME\" }, one \
                 of them: a secret does not stand in the configuration itself",
                "irc:13:11: connection.timeout: expected more than no time and at most 8s, found 20h",
                "irc:14:1: connection.nik: unknown key; did you mean `nick`?",
            ]
        );
        let connection = "[connection]\nserver = '[::1]:6697'\nnick = 'weir'";
        let with = |more: &str| mistakes(&format!("channels = ['#a']\n{connection}\n{more}"));
        assert!(mistakes(connection)[0].contains("there is nowhere to post"));
        let keys = mistakes(&format!(
            "channels = ['#a hunter2', {{ name = '#b', key = 'hunter2' }}, \
             {{ name = '#b', kex = 1 }}, {{ name = 'b' }}, 7]\n{connection}"
        ));
        let in_file = "does not stand in the configuration itself; write";
        assert!(
            keys[0].contains(&format!("the key of #a {in_file}")),
            "{keys:?}"
        );
        assert!(
            keys.iter().all(|told| !told.contains("hunter2")),
            "{keys:?}"
        );
        assert!(keys.iter().any(|told| told.contains(in_file)), "{keys:?}");
        assert!(with("lines_max = 6")[0].contains("less than `line_burst` (6)"));
        assert!(with("tls = false\nca = 'a'")[0].contains("for `tls = true`"));
        let external = "sasl = { account = 'a' }";
        assert!(with(external)[0].contains("by the `certificate`, and there is none"));
        assert!(
            build(
                &kind(),
                &format!("channels = ['#a']\n{connection}\n{external}\ncertificate = 'a'"),
                Path::new("")
            )
            .is_ok()
        );
    }

    /// A page is copied: what it shows must not set aside the first message of another form.
    #[test]
    fn what_the_page_and_the_sample_show_fails_on_no_message() {
        let page = include_str!("../../../docs/kinds/irc.md");
        let mut seen = 0;
        for text in [page, include_str!("../sample.toml")] {
            for written in text.split("format = ").skip(1) {
                let quote = written.chars().next().unwrap();
                let source = written[1..].split(quote).next().unwrap();
                let template = Template::new(source).unwrap();
                for payload in [
                    &br#"{"msg": {"summary": "s", "agent": "ann", "repo": "r", "commit": "c"}}"#[..],
                    br#"{"commit": 7}"#,
                    br#"{"msg": null}"#,
                    b"{}",
                    b"[]",
                    b"null",
                    b"no json",
                    b"",
                    b"\xff\x00",
                ] {
                    let now = std::time::SystemTime::UNIX_EPOCH;
                    let message = Message::new("org.a".into(), payload.into(), now, 1);
                    template.of(&message).expect(source);
                }
                seen += 1;
            }
        }
        assert_eq!(seen, 4);
    }

    #[test]
    fn it_stands_what_every_consumer_has_to_stand() {
        let fake = Fake::honest();
        conformance(|| {
            let toml = format!(
                "channels = ['#weir']\nflood.policy = 'post'\n[connection]\n{}\ntimeout = '8s'",
                fake.toml()
            );
            build(&kind(), &toml, Path::new("")).unwrap()
        });
    }

    #[test]
    fn routes_say_what_goes_where() {
        let fake = Fake::honest();
        let mut irc = irc(
            &fake,
            "channels = ['#all']\nformat = '{{ topic }}'\nroutes = [\
             { topics = ['org.git'], channels = ['#git', '#all'], format = 'git {{ json.who }}' },\
             { when = [{ at = '/level', is = 'error' }] }]",
        );
        assert_eq!(irc.feed("org.git.push", r#"{"who": "ann"}"#), Ok(()));
        let both = r#"{"who": "ann", "level": "error"}"#;
        assert_eq!(irc.feed("org.git.push", both), Ok(()));
        assert_eq!(irc.feed("org.other", r#"{"level": "error"}"#), Ok(()));
        assert_eq!(
            irc.feed("org.other", r#"{"level": "info"}"#),
            Err(Verdict::Drop)
        );
        assert_eq!(irc.feed("org.other", "no json"), Err(Verdict::Drop));
        assert_eq!(irc.feed("org.git.push", "{}"), Err(Verdict::DeadLetter));
        assert_eq!(
            irc.last_failure().unwrap(),
            "`routes.0.format`: template, line 1: `json.who` is undefined"
        );
        assert_eq!(
            fake.said(),
            [
                "PRIVMSG #git :git ann",
                "PRIVMSG #all :git ann",
                "PRIVMSG #git :git ann",
                "PRIVMSG #all :git ann",
                "PRIVMSG #all :org.other",
            ]
        );
    }

    /// Invariant 2.
    #[test]
    fn a_message_that_is_tried_again_goes_only_to_those_that_did_not_have_it() {
        let banned = Arc::new(AtomicBool::new(true));
        let still = banned.clone();
        let fake = Fake::start(move |_, line| match line {
            "JOIN #b" if still.load(SeqCst) => say(":t 474 weir #b :Cannot join channel (+b)"),
            _ => Answer::Honest,
        });
        let mut irc = irc(
            &fake,
            "channels = ['#a', '#b', '#c']\nformat = '{{ payload }}'",
        );
        let message = |text: &'static str, seq| {
            let now = std::time::SystemTime::UNIX_EPOCH;
            Message::new("t".into(), text.into(), now, seq)
        };
        let first = message("1", 1);
        for _ in 0..3 {
            let failure = irc.consumer().consume(&first).unwrap_err();
            assert_eq!(failure.verdict(), Verdict::Retry);
            assert!(failure.to_string().contains("#b: not let in"), "{failure}");
        }
        assert_eq!(fake.said(), ["PRIVMSG #a :1", "PRIVMSG #c :1"]);
        banned.store(false, SeqCst);
        irc.consumer().consume(&first).unwrap();
        assert_eq!(fake.said().last().unwrap(), "PRIVMSG #b :1");
        // Another one goes to all, also after one that was given up.
        irc.consumer().consume(&message("2", 2)).unwrap();
        assert_eq!(fake.said().len(), 6);
    }

    #[test]
    fn a_flood_is_told_in_one_line() {
        let fake = Fake::honest();
        let toml = "channels = ['#a']\nformat = '{{ payload }}'\n\
                    flood = { lines = 2, within = '1h' }";
        let mut irc = irc(&fake, toml);
        for number in 0..1000 {
            assert_eq!(irc.feed("org.x.git", number.to_string()), Ok(()));
        }
        irc.consumer().tick().unwrap();
        assert_eq!(fake.said(), ["PRIVMSG #a :0", "PRIVMSG #a :1"]);
        drop(irc); // as when the hub stops
        let summary = "PRIVMSG #a :and 998 more in the last 1h: 998 org.x.git";
        assert_eq!(fake.said()[2..], [summary]);
    }

    #[test]
    fn what_is_counted_is_what_the_server_had() {
        // The first two connections are closed before anybody is let in.
        let fake = Fake::start(|connection, _| match connection {
            1 | 2 => Answer::Close(String::new()),
            _ => Answer::Honest,
        });
        let recorder = DebuggingRecorder::new();
        metrics::with_local_recorder(&recorder, || {
            let toml = "channels = ['#a']\nformat = '{{ payload }}'\n\
                        flood = { lines = 2, within = '1h' }";
            let mut irc = irc(&fake, toml);
            for _ in 0..2 {
                assert_eq!(irc.feed("t", "no"), Err(Verdict::Retry));
            }
            for number in 0..5 {
                assert_eq!(irc.feed("t", number.to_string()), Ok(()));
            }
        }); // with the summary
        assert_eq!(fake.said().len(), 3);
        let mut counted = Vec::new();
        for (key, _, help, value) in recorder.snapshotter().snapshot().into_vec() {
            let name = key.key().name();
            assert!(help.is_some(), "{name} is not described");
            if let DebugValue::Counter(count) = value {
                counted.push(format!("{name} {count}"));
            }
        }
        counted.sort();
        let expected = [
            "irc_connects_total 1",
            "irc_lines_total 3",
            "irc_summarised_total 3",
        ];
        assert_eq!(counted, expected);
    }

    #[test]
    fn a_summary_is_sent_when_its_time_is_over() {
        let fake = Fake::honest();
        // No time at all: it is over at once.
        let toml = "channels = ['#a']\nflood = { lines = 1, within = '10ms' }";
        let mut irc = irc(&fake, toml);
        crate::fake::eventually("one is held, and told", || {
            assert_eq!(irc.feed("t", "x"), Ok(()));
            assert_eq!(irc.feed("t", "x"), Ok(()));
            irc.consumer().tick().unwrap();
            let said = fake.said();
            said.contains(&"PRIVMSG #a :and 1 more in the last 10ms: 1 t".to_owned())
        });
    }

    #[test]
    fn too_many_are_dropped_if_that_is_wanted() {
        let fake = Fake::honest();
        let toml = "channels = ['#a']\nflood = { lines = 2, within = '1h', policy = 'drop' }";
        let mut irc = irc(&fake, toml);
        let verdicts: Vec<_> = (0..4).map(|_| irc.feed("t", "x")).collect();
        let dropped = Err(Verdict::Drop);
        assert_eq!(verdicts, [Ok(()), Ok(()), dropped, dropped]);
        drop(irc);
        assert_eq!(fake.said().len(), 2);
    }
}
