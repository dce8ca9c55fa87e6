//! The connection that all of a process share who post at one server under one nick.
//!
//! 1. Two handles for an equal server and nick are one connection: a network sees one client.
//! 2. `Ok` of [`Connection::post`] means that the server has answered what was said; whatever may
//!    have been lost on the way is said again by whoever asks again.
//! 3. No call takes longer than twice the `timeout` (and a second, if the server stops reading).
//! 4. The pace is kept across connections: losing one does not make us a flood.
//!
//! There is no thread: what comes from the server is read when somebody posts, and by `tick`.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Weak};
use std::time::{Duration, Instant};

use metrics::{describe_counter, describe_histogram, histogram};
use parking_lot::Mutex;
use tracing::{info, warn};
use weir_consumer::{Failure, Result};

use crate::Server;
use crate::line::{Target, pieces};
use crate::pace::{LINES_TO_HEAR, LINES_TO_KNOCK, Pace};
use crate::server::{Address, Nick};
use crate::session::{Door, Heard, Session};

/// The pauses of `tick` between attempts to connect: the first, and what doubling ends at.
const PAUSE_MIN: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 1 });
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// A connection that lasted so long was a good one.
const GOOD: Duration = Duration::from_secs(60);
/// How long `tick` reads what has come; what is more waits for the next one.
const LISTEN: Duration = Duration::from_millis(2);

/// A connection to a server, shared by all of a process that post there under one nick.
///
/// Cheap to clone. Nothing is opened before the first [`post`](Connection::post) or
/// [`tick`](Connection::tick), and it is closed with a QUIT when the last handle is dropped.
///
/// Who shares it should share a lane, too (`lane`, a key of the hub): otherwise they wait for one
/// another here, where it counts as time of the consumer.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
    /// Whether others have it with other settings.
    differs: bool,
}

struct Shared {
    server: Server,
    data_dir: PathBuf,
    /// Channels to be in, by their folded names. Never locked for longer than a look.
    channels: Mutex<BTreeMap<String, Target>>,
    state: Mutex<State>,
}

struct State {
    session: Option<Session>,
    pace: Pace,
    /// When `tick` may connect again, and how long it waits after that.
    connect_due: Instant,
    pause: Duration,
}

type Shares = HashMap<(Address, Nick), Weak<Shared>>;

/// Every connection of this process.
static SHARES: LazyLock<Mutex<Shares>> = LazyLock::new(Mutex::default);

impl Connection {
    /// The connection to this server under this nick: one for all who ask with an equal `server`
    /// and `nick`, whose other settings have to be equal, too. Opens nothing.
    ///
    /// Relative paths in the settings start at `data_dir`.
    pub fn shared(server: &Server, data_dir: &Path) -> Connection {
        describe_counter!(
            "irc_connects_total",
            "Connections that were made: the server took the nick and let us in."
        );
        describe_histogram!(
            "irc_answer_seconds",
            "How long the server took to answer what was said."
        );
        let mut shares = SHARES.lock();
        shares.retain(|_, shared| shared.strong_count() > 0);
        let key = (server.server.clone(), server.nick.clone());
        if let Some(shared) = shares.get(&key).and_then(Weak::upgrade) {
            let differs = shared.server != *server || shared.data_dir != data_dir;
            return Connection { shared, differs };
        }
        let now = Instant::now();
        let shared = Arc::new(Shared {
            server: server.clone(),
            data_dir: data_dir.to_owned(),
            channels: Mutex::default(),
            state: Mutex::new(State {
                session: None,
                pace: Pace::new(server.line_rate.per_second, server.line_burst.0, now),
                connect_due: now,
                pause: PAUSE_MIN,
            }),
        });
        shares.insert(key, Arc::downgrade(&shared));
        Connection {
            shared,
            differs: false,
        }
    }

    /// Says the text there, and returns when the server has answered what was said.
    ///
    /// The target is a channel (`"#weir"`, or with its key `"#weir key"`), which is joined, or a
    /// nick. Connects if need be. A text of several lines becomes as many lines, at most
    /// `lines_max`. Takes twice `timeout` at most, and a second if the server stops reading.
    ///
    /// # Errors
    /// [`Verdict::Retry`](weir_consumer::Verdict::Retry) on all that may pass: no connection, not
    /// let into the channel, too fast. `DeadLetter` for a target that can be none. `Drop` for a
    /// text of which nothing is left without control characters. `Halt` when the server refuses the
    /// nick or the password, or another consumer has the connection with other settings.
    pub fn post(&self, target: &str, text: &str) -> Result {
        let target: Target = target
            .parse()
            .map_err(|why: String| Failure::dead_letter(why))?;
        self.post_by(&target, text, self.patience()).map(|_| ())
    }

    /// Until when a call that begins now waits for anything but the answer to what it said.
    pub(crate) fn patience(&self) -> Instant {
        Instant::now() + self.shared.server.timeout
    }

    /// As [`post`](Connection::post), with the time until which it waits for its turn; answers how
    /// many lines it took.
    pub(crate) fn post_by(&self, target: &Target, text: &str, until: Instant) -> Result<usize> {
        let server = &self.shared.server;
        if self.differs {
            return Err(Failure::halt(format!(
                "{}: another consumer has this connection as {} with other settings; make them \
                 equal, or give this one another nick",
                server.server, server.nick.0
            )));
        }
        let Some(mut state) = self.shared.state.try_lock_until(until) else {
            return Err(Failure::retry(format!(
                "{}: other consumers have the connection as {} all the time; put them into one \
                 lane",
                server.server, server.nick.0
            )));
        };
        state.post(&self.shared, target, text, until)
    }

    /// Keeps the connection: answers the server's pings, asks whether it is still there, connects
    /// and joins again what was lost. To be called about once a second, as a consumer's own `tick`.
    ///
    /// What goes wrong is logged; the next post says it, too.
    pub fn tick(&self) {
        // Whoever has it now does the same.
        if !self.differs
            && let Some(mut state) = self.shared.state.try_lock()
        {
            state.tick(&self.shared);
        }
    }

    /// Has `tick` join this channel from the beginning, and not only when something is said there.
    pub(crate) fn stay_in(&self, channel: &Target) {
        self.shared.stay_in(channel);
    }

    /// Whether there is a connection, as far as can be seen until then.
    pub(crate) fn is_open(&self, until: Instant) -> bool {
        let state = self.shared.state.try_lock_until(until);
        state.is_some_and(|state| state.session.is_some())
    }
}

impl Shared {
    fn stay_in(&self, channel: &Target) {
        let mut channels = self.channels.lock();
        channels.insert(channel.folded.clone(), channel.clone());
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Server { server, nick, .. } = &self.shared.server;
        write!(f, "Connection({server} as {})", nick.0)
    }
}

impl State {
    /// Calls this with the session, and drops the session when it fails.
    fn with<T>(
        &mut self,
        shared: &Shared,
        until: Instant,
        call: impl FnOnce(&mut Session, &mut Pace) -> Result<T>,
    ) -> Result<T> {
        // Taken out, and put back only after all went well.
        let session = match self.session.take() {
            Some(session) => Ok(session),
            None => Session::open(&shared.server, &shared.data_dir, until),
        };
        let called = session.and_then(|mut session| {
            let answer = call(&mut session, &mut self.pace)?;
            if session.age() > GOOD {
                self.pause = PAUSE_MIN;
            }
            Ok((session, answer))
        });
        match called {
            Ok((session, answer)) => {
                self.session = Some(session);
                Ok(answer)
            }
            Err(failure) => {
                self.connect_due = Instant::now() + self.pause;
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                Err(failure)
            }
        }
    }

    fn post(
        &mut self,
        shared: &Shared,
        target: &Target,
        text: &str,
        until: Instant,
    ) -> Result<usize> {
        let server = &shared.server;
        let posted = self.with(shared, until, |session, pace| {
            if !session.register(&shared.data_dir, until)? {
                return Ok(Posted::Not("the registration takes its time".into()));
            }
            // An earlier attempt may have said it, and waited in vain for the answer.
            match session.heard(target, text, until)? {
                Heard::Yes(lines) => return Ok(Posted::Yes(lines)),
                Heard::Refused(why) => return Ok(Posted::Not(format!("refused: {why}"))),
                Heard::NotYet => {
                    return Ok(Posted::Not("no answer yet to what was said before".into()));
                }
                Heard::NotSaid => {}
            }
            let pieces = pieces(text, session.room(target), server.lines_max.0);
            if pieces.is_empty() {
                return Ok(Posted::Empty);
            }
            if target.is_channel() {
                if session.may_knock(target) {
                    if let Some(why) = turn(session, pace, LINES_TO_KNOCK, until)? {
                        return Ok(Posted::Not(why));
                    }
                    session.knock(target, &shared.data_dir, until)?;
                }
                match session.door(target, until)? {
                    Door::Open => {}
                    Door::Closed(why) => return Ok(Posted::Not(why)),
                    Door::NotYet => {
                        return Ok(Posted::Not("no answer yet to JOIN".into()));
                    }
                }
            }
            if let Some(why) = turn(session, pace, pieces.len() + LINES_TO_HEAR, until)? {
                return Ok(Posted::Not(why));
            }
            let said = Instant::now();
            let until = said + server.timeout;
            session.say(target, text, &pieces, until)?;
            match session.heard(target, text, until)? {
                Heard::Yes(lines) => {
                    histogram!("irc_answer_seconds").record(said.elapsed().as_secs_f64());
                    Ok(Posted::Yes(lines))
                }
                Heard::Refused(why) => Ok(Posted::Not(format!("refused: {why}"))),
                Heard::NotYet | Heard::NotSaid => {
                    Ok(Posted::Not("no answer yet to what was said".into()))
                }
            }
        });
        match posted? {
            Posted::Yes(lines) => {
                if target.is_channel() {
                    shared.stay_in(target);
                }
                Ok(lines)
            }
            Posted::Empty => Err(Failure::drop("an empty text, which can't be said")),
            Posted::Not(why) => Err(Failure::retry(format!(
                "{}: {}: {why}",
                server.server, target.name
            ))),
        }
    }

    fn tick(&mut self, shared: &Shared) {
        let now = Instant::now();
        let server = &shared.server;
        let had = self.session.is_some();
        if !had && now < self.connect_due {
            return;
        }
        let until = now + server.timeout;
        let channels: Vec<Target> = shared.channels.lock().values().cloned().collect();
        let kept = self.with(shared, until, |session, pace| {
            let patience = if had { LISTEN } else { server.timeout };
            if !session.register(&shared.data_dir, Instant::now() + patience)? {
                return Ok(false);
            }
            session.listen(Instant::now() + LISTEN)?;
            session.keep(until)?;
            // Those for which there is no line left now have their turn with a later tick.
            for channel in &channels {
                if session.may_knock(channel) && pace.take(LINES_TO_KNOCK, now).is_ok() {
                    session.knock(channel, &shared.data_dir, until)?;
                }
            }
            Ok(true)
        });
        match kept {
            Ok(true) if !had => info!(server = %server.server, nick = server.nick.0, "connected"),
            Ok(_) => {}
            Err(cause) => warn!(%cause, again_in = ?self.pause, "no connection"),
        }
    }
}

/// Waits until so many lines may go, or says why they can't before that time.
fn turn(
    session: &mut Session,
    pace: &mut Pace,
    lines: usize,
    until: Instant,
) -> Result<Option<String>> {
    while let Err(wait) = pace.take(lines, Instant::now()) {
        let then = Instant::now() + wait;
        if then > until {
            return Ok(Some(format!(
                "`line_rate` lets the next {lines} lines go in {:.1} s",
                wait.as_secs_f64()
            )));
        }
        session.listen(then)?;
    }
    Ok(None)
}

/// How an attempt to post ended while the connection lasts.
enum Posted {
    /// In so many lines.
    Yes(usize),
    Empty,
    Not(String),
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

    use weir_consumer::Verdict;

    use super::*;
    use crate::fake::{Answer, Fake, eventually, say};

    fn connect(fake: &Fake, more: &str) -> Connection {
        Connection::shared(&fake.server(more), Path::new(""))
    }

    /// The verdict and the text, without the server that the text begins with.
    #[track_caller]
    fn failure(result: Result) -> (Verdict, String) {
        let failure = result.unwrap_err();
        let told = failure.to_string();
        let told = match told.strip_prefix("127.0.0.1:") {
            Some(rest) => rest.split_once(": ").unwrap().1.to_owned(),
            None => told,
        };
        (failure.verdict(), told)
    }

    #[track_caller]
    fn retried(result: Result) -> String {
        let (verdict, told) = failure(result);
        assert_eq!(verdict, Verdict::Retry, "{told}");
        told
    }

    /// Answers lines that begin so, and is honest otherwise.
    fn answering(prefix: &'static str, answer: &'static str) -> Fake {
        Fake::start(move |_, line| match line.starts_with(prefix) {
            true => say(answer),
            false => Answer::Honest,
        })
    }

    #[test]
    fn what_was_said_is_answered_before_the_call_returns() {
        let fake = Fake::honest();
        let irc = connect(&fake, "password = { env = 'PATH' }\nlines_max = 3");
        irc.post("#weir key", "hello\nworld").unwrap();
        irc.post("#WEIR", "again").unwrap();
        irc.post("ann", "\u{2}psst").unwrap();
        let seen = fake.seen();
        assert!(seen[0].starts_with("PASS :/"), "{seen:?}");
        assert_eq!(
            seen[1..],
            [
                "NICK weir",
                "USER weir 0 * :weir",
                "JOIN #weir key",
                "PING :weir-1",
                "PRIVMSG #weir :hello",
                "PRIVMSG #weir :world",
                "PING :weir-2",
                "PRIVMSG #WEIR :again",
                "PING :weir-3",
                "PRIVMSG ann :\u{2}psst",
                "PING :weir-4",
            ]
        );
        drop(irc);
        eventually("a farewell", || fake.seen().last().unwrap() == "QUIT :weir");
    }

    #[test]
    fn a_text_can_not_become_a_command() {
        let fake = Fake::honest();
        let irc = connect(&fake, "line_burst = 100\nlines_max = 99\nnotice = true");
        irc.post("#a", "a\r\nQUIT :b\nJOIN #c\0\rd\u{1}VERSION\u{1}\u{85}e")
            .unwrap();
        assert_eq!(
            fake.seen()[4..9],
            [
                "NOTICE #a :a",
                "NOTICE #a :QUIT :b",
                "NOTICE #a :JOIN #c",
                "NOTICE #a :dVERSION",
                "NOTICE #a :e",
            ]
        );
        for target in [
            "#a b c",
            "#a,#b",
            "a\r\nQUIT",
            "",
            " ",
            ":a",
            "#a ",
            "ann key",
        ] {
            let (verdict, told) = failure(irc.post(target, "x"));
            assert_eq!(verdict, Verdict::DeadLetter, "{target:?}: {told}");
        }
        let (verdict, _) = failure(irc.post("#a", "\r\n\0 \u{1}\u{2}\n"));
        assert_eq!(verdict, Verdict::Drop);
        assert_eq!(fake.said().len(), 5);
    }

    #[test]
    fn equal_server_and_nick_are_one_connection() {
        let fake = Fake::honest();
        let (one, other) = (connect(&fake, ""), connect(&fake, ""));
        one.post("#a", "1").unwrap();
        other.post("#a", "2").unwrap();
        drop(one);
        other.post("#a", "3").unwrap();
        assert_eq!(
            fake.said(),
            ["PRIVMSG #a :1", "PRIVMSG #a :2", "PRIVMSG #a :3"]
        );
        let users = fake
            .seen()
            .iter()
            .filter(|line| line.starts_with("USER"))
            .count();
        assert_eq!(users, 1);

        let (verdict, told) = failure(connect(&fake, "notice = true").post("#a", "4"));
        assert_eq!(verdict, Verdict::Halt);
        assert!(told.contains("with other settings"), "{told}");
    }

    #[test]
    fn a_nick_in_use_is_asked_for_again() {
        let free = Arc::new(AtomicBool::new(false));
        let now_free = free.clone();
        let fake = Fake::start(move |_, line| match line {
            "NICK weir" if !now_free.load(SeqCst) => {
                say(":t 433 * weir :Nickname is already in use")
            }
            _ => Answer::Honest,
        });
        let irc = connect(&fake, "");
        irc.post("#a", "1").unwrap();
        assert_eq!(fake.seen()[2], "NICK weir_");
        irc.tick();
        irc.tick();
        irc.post("#a", "2").unwrap();
        free.store(true, SeqCst);
        eventually("the nick is regained", || {
            irc.tick();
            let state = irc.shared.state.lock();
            state
                .session
                .as_ref()
                .is_some_and(|session| session.nick() == "weir")
        });
        irc.post("#a", "3").unwrap();
        assert_eq!(fake.said().len(), 3);
    }

    #[test]
    fn nicks_run_out() {
        let fake = answering("NICK", ":t 433 * weir :Nickname is already in use");
        let told = retried(connect(&fake, "").post("#a", "1"));
        assert!(told.starts_with("the nick weir is in use"), "{told}");
        let fake = answering("NICK", ":t 432 * weir :Erroneous Nickname");
        let (verdict, told) = failure(connect(&fake, "").post("#a", "1"));
        assert_eq!(
            (verdict, told.as_str()),
            (
                Verdict::Halt,
                "it refuses the nick weir: Erroneous Nickname"
            )
        );
    }

    #[test]
    fn a_refused_password_halts_and_is_not_shown() {
        let fake = answering("USER", ":t 464 * :Password incorrect");
        let irc = connect(&fake, "password = { env = 'PATH' }");
        let (verdict, told) = failure(irc.post("#a", "1"));
        assert_eq!(
            (verdict, told.as_str()),
            (Verdict::Halt, "it refuses the password: Password incorrect")
        );
        drop(irc);
        let irc = connect(&fake, "password = { env = 'NOT_SET_ANYWHERE' }");
        assert!(retried(irc.post("#a", "1")).contains("NOT_SET_ANYWHERE"));
    }

    /// A server that knows SASL; this is its answer to the credentials.
    fn services(answer: &'static str) -> Fake {
        Fake::start(move |_, line| match line {
            "CAP LS 302" => Answer::Say(
                ":t CAP * LS * :multi-prefix sasl=EXTERNAL,PLAIN\r\n:t CAP * LS :tls\r\n".into(),
            ),
            "CAP REQ :sasl" => say(":t CAP * ACK :sasl"),
            "AUTHENTICATE PLAIN" => say("AUTHENTICATE +"),
            "CAP END" => say(":t 001 weir :Welcome"),
            line if line.starts_with("AUTHENTICATE ") => say(answer),
            line if line.starts_with("USER") => Answer::Say(String::new()),
            _ => Answer::Honest,
        })
    }

    /// Settings that log in with this password.
    fn login(dir: &Path, password: &str) -> String {
        let file = dir.join("password");
        std::fs::write(&file, password).unwrap();
        format!("sasl = {{ account = 'ann', password = {{ file = {file:?} }} }}")
    }

    #[test]
    fn an_account_is_logged_in_to_before_anything_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let fake = services(":t 903 weir :SASL authentication successful");
        let irc = connect(&fake, &login(dir.path(), "hunter2"));
        irc.post("#a", "1").unwrap();
        assert_eq!(
            fake.seen()[..7],
            [
                "CAP LS 302",
                "NICK weir",
                "USER weir 0 * :weir",
                "CAP REQ :sasl",
                "AUTHENTICATE PLAIN",
                "AUTHENTICATE AGFubgBodW50ZXIy",
                "CAP END",
            ]
        );
    }

    #[test]
    fn a_refused_login_halts() {
        let dir = tempfile::tempdir().unwrap();
        let fake = services(":t 904 weir :SASL authentication failed");
        let (verdict, told) =
            failure(connect(&fake, &login(dir.path(), "hunter2")).post("#a", "1"));
        assert_eq!(verdict, Verdict::Halt);
        let expected = "the login as ann (SASL) is refused: SASL authentication failed";
        assert_eq!(told, expected);
        assert!(fake.said().is_empty());
    }

    #[test]
    fn without_services_nothing_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let login = login(dir.path(), "hunter2");
        for (request, answer, expected) in [
            (
                "CAP LS",
                ":t CAP * LS :tls",
                "it offers no login by SASL PLAIN now",
            ),
            (
                "CAP LS",
                ":t CAP * LS :sasl=EXTERNAL",
                "it offers no login by SASL PLAIN now",
            ),
            (
                "CAP LS",
                ":t 421 * CAP :Unknown command",
                "it knows no login by SASL",
            ),
            (
                "CAP LS",
                ":t 001 weir :Welcome",
                "it lets us in without a login",
            ),
        ] {
            let fake = answering(request, answer);
            let told = retried(connect(&fake, &login).post("#a", "1"));
            assert!(told.starts_with(expected), "{told}");
            assert!(fake.said().is_empty());
        }
    }

    #[test]
    fn long_credentials_go_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let lines = |password: &str| {
            let toml = format!(
                "server = 'localhost:1'\nnick = 'a'\n{}",
                login(dir.path(), password)
            );
            let server = weir_consumer::settings::Settings::from_toml(&toml, "t").unwrap();
            crate::session::sasl_answer(&server.parse().unwrap(), Path::new("")).unwrap()
        };
        // With "\0ann\0" 300 bytes, which are 400 in base64.
        let exact = lines(&"x".repeat(295));
        let exact: Vec<&str> = exact.lines().collect();
        assert_eq!(exact.len(), 2);
        assert_eq!(exact[0].len(), "AUTHENTICATE ".len() + 400);
        assert_eq!(exact[1], "AUTHENTICATE +");
        assert_eq!(lines(&"x".repeat(296)).lines().count(), 2);
        assert_eq!(lines(&"x".repeat(292)).lines().count(), 1);
    }

    #[test]
    fn a_closed_channel_is_told_and_tried_again() {
        let refusals = AtomicUsize::new(0);
        let fake = Fake::start(move |_, line| match line {
            "JOIN #a" => match refusals.fetch_add(1, SeqCst) {
                0 => say(":t 473 weir #a :Cannot join channel (+i)"),
                1 => say(":t 474 weir #A :Cannot join channel (+b)"),
                _ => Answer::Honest,
            },
            _ => Answer::Honest,
        });
        let irc = connect(&fake, "");
        let expected = "#a: not let in: Cannot join channel (+i) (473)";
        assert_eq!(retried(irc.post("#a", "1")), expected);
        let expected = "#a: not let in: Cannot join channel (+b) (474)";
        assert_eq!(retried(irc.post("#a", "1")), expected);
        irc.post("#a", "1").unwrap();
        assert_eq!(fake.said(), ["PRIVMSG #a :1"]);
    }

    #[test]
    fn what_the_server_refuses_is_a_failure_with_its_text() {
        let refusals = AtomicUsize::new(0);
        let fake = Fake::start(move |_, line| match line.starts_with("PRIVMSG") {
            true => match refusals.fetch_add(1, SeqCst) {
                0 => say(":t 404 weir #A :Cannot send to channel"),
                1 => say("FAIL PRIVMSG X :not now"),
                2 => say(":t 417 weir :Input line was too long"),
                3 => say(":t 401 weir somebody :No such nick"), // somebody else's
                _ => Answer::Honest,
            },
            false => Answer::Honest,
        });
        let irc = connect(&fake, "");
        assert_eq!(
            retried(irc.post("#a", "1")),
            "#a: refused: Cannot send to channel (404)"
        );
        assert_eq!(retried(irc.post("#a", "1")), "#a: refused: not now");
        let expected = "#a: refused: Input line was too long (417)";
        assert_eq!(retried(irc.post("#a", "1")), expected);
        irc.post("#a", "1").unwrap();
        assert_eq!(fake.said().len(), 4);
        // After 404 it asked to be let in again: it may have been thrown out.
        let joins = fake.seen().iter().filter(|line| *line == "JOIN #a").count();
        assert_eq!(joins, 2);
    }

    #[test]
    fn a_channel_that_we_were_kicked_from_is_joined_again() {
        let fake = Fake::honest();
        let irc = connect(&fake, "");
        irc.post("#a", "1").unwrap();
        fake.interject(":op!u@h KICK #A weir :too loud\r\n");
        eventually("it is in again", || {
            irc.tick();
            fake.seen().iter().filter(|line| *line == "JOIN #a").count() == 2
        });
        irc.post("#a", "2").unwrap();
        assert_eq!(fake.said().len(), 2);
    }

    #[test]
    fn an_answer_that_comes_late_is_waited_for_and_nothing_is_said_twice() {
        let held = Arc::new(Mutex::new(String::new()));
        let late = held.clone();
        let fake = Fake::start(move |_, line| match line {
            "PING :weir-2" => {
                *late.lock() = ":t PONG t :weir-2\r\n".into();
                Answer::Say(String::new())
            }
            _ => Answer::Honest,
        });
        let irc = connect(&fake, "timeout = '20ms'");
        eventually("it is said", || {
            retried(irc.post("#a", "1")) == "#a: no answer yet to what was said"
        });
        fake.interject(&held.lock());
        eventually("it is heard", || irc.post("#a", "1").is_ok());
        // The same text once more is another one.
        eventually("it is heard again", || irc.post("#a", "1").is_ok());
        assert_eq!(fake.said(), ["PRIVMSG #a :1", "PRIVMSG #a :1"]);
    }

    #[test]
    fn a_server_that_never_answers_is_given_up_and_all_is_said_again() {
        let fake = Fake::start(|connection, line| match line {
            line if line.starts_with("PING :weir-2") && connection == 1 => {
                Answer::Say(String::new())
            }
            _ => Answer::Honest,
        });
        let irc = connect(&fake, "timeout = '20ms'");
        eventually("it is said", || irc.post("#a", "1").is_ok());
        assert_eq!(fake.said(), ["PRIVMSG #a :1", "PRIVMSG #a :1"]);
    }

    #[test]
    fn a_registration_goes_on_with_the_next_call() {
        let fake = answering("USER", "");
        let irc = connect(&fake, "timeout = '20ms'");
        let told = retried(irc.post("#a", "1"));
        assert_eq!(told, "#a: the registration takes its time");
        fake.interject(":t 001 weir :Welcome\r\n");
        eventually("it is said", || irc.post("#a", "1").is_ok());
        assert_eq!(
            fake.seen()
                .iter()
                .filter(|line| line.starts_with("USER"))
                .count(),
            1
        );

        let silent = answering("USER", "");
        let irc = connect(&silent, "timeout = '20ms'");
        eventually("it is given up", || {
            retried(irc.post("#a", "1")) == "it does not finish the registration"
        });
    }

    /// Invariant 3.
    #[test]
    fn a_trickle_does_not_stretch_the_time() {
        let fake = answering("USER", "");
        let irc = connect(&fake, "timeout = '50ms'");
        let slow = "#a: the registration takes its time";
        assert_eq!(retried(irc.post("#a", "1")), slow);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(SeqCst) {
                    fake.interject("x");
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            // A time-out that begins anew with each byte would end only with the longest line.
            let told = irc.post("#a", "1").unwrap_err().to_string();
            done.store(true, SeqCst);
            assert!(!told.contains("a line of more than"), "{told}");
        });
    }

    #[test]
    fn an_idle_connection_is_kept_and_one_that_is_dead_is_noticed() {
        let fake = Fake::start(|connection, line| match line.starts_with("PING") {
            true if connection == 1 => Answer::Say(String::new()),
            _ => Answer::Honest,
        });
        let irc = connect(&fake, "");
        irc.stay_in(&"#a".parse().unwrap());
        irc.tick();
        fake.interject("PING :are you there\r\n");
        eventually("it answers", || {
            irc.tick();
            fake.seen().contains(&"PONG :are you there".to_owned())
        });
        assert!(fake.seen().contains(&"JOIN #a".to_owned()));
        // The first connection answers no PING, so there will be a second.
        eventually("it connects again", || {
            irc.tick();
            fake.seen().iter().filter(|line| *line == "JOIN #a").count() == 2
        });
    }

    #[test]
    fn many_channels_are_joined_at_the_pace_of_lines() {
        let fake = Fake::honest();
        let toml = fake.toml().replace("1000/s", "1/min");
        let server = weir_consumer::settings::Settings::from_toml(&toml, "t").unwrap();
        let irc = Connection::shared(&server.parse().unwrap(), Path::new(""));
        for number in 0..20 {
            irc.stay_in(&format!("#{number}").parse().unwrap());
        }
        irc.tick();
        irc.tick();
        let told = retried(irc.post("#a", "1"));
        assert!(
            told.starts_with("#a: `line_rate` lets the next 2 lines go in"),
            "{told}"
        );
        drop(irc);
        eventually("it says that it goes", || {
            fake.seen().contains(&"QUIT :weir".into())
        });
        let joins = fake
            .seen()
            .iter()
            .filter(|line| line.starts_with("JOIN"))
            .count();
        assert_eq!(joins, 3); // of six lines, with the PING after each
    }

    #[test]
    fn whatever_comes_it_goes_on() {
        let fake = Fake::honest();
        let irc = connect(&fake, "");
        irc.post("#a", "1").unwrap();
        let many = format!("404 weir{}\r\n", " #a".repeat(1000));
        for garbage in [
            "\r\n\n\r\n \r\n",
            ":\r\n@\r\n@a\r\n:a\r\n: : :\r\n",
            "PING\r\nPONG\r\nJOIN\r\nKICK\r\nNICK\r\nKILL\r\nFAIL\r\nCAP\r\nPART\r\n",
            "001\r\n404\r\n433\r\n471 weir\r\n903\r\nAUTHENTICATE +\r\n",
            "PONG :weir-99999999999999999999\r\nPONG :weir-18446744073709551615\r\nPONG :weir-x\r\n",
            ":weir!u@h KICK #a\r\n:x!u@h KICK #a weir\r\n:weir!u@h PART #a\r\n",
            ":weir!u@h NICK :\r\n:weir!u@h NICK somebody\r\n:somebody!u@h JOIN #unasked\r\n",
            &many,
        ] {
            fake.interject(garbage);
            eventually("it is said", || irc.post("#a", "2").is_ok());
        }
        fake.interject_bytes(b"\xff\xfe\0\0 \xc3\r\n");
        irc.post("#a", "3").unwrap();
        let users = fake
            .seen()
            .iter()
            .filter(|line| line.starts_with("USER"))
            .count();
        assert_eq!(users, 1, "none of it ends the connection");
    }

    /// The time for reading is over before all of them are answered.
    #[test]
    fn pings_are_answered_however_many_and_late() {
        const PINGS: usize = 5000;
        let fake = Fake::honest();
        let irc = connect(&fake, "");
        irc.post("#a", "1").unwrap();
        let pings: String = (1..=PINGS)
            .map(|number| format!("PING :{number}\r\n"))
            .collect();
        fake.interject(&pings);
        let last = format!("PONG :{PINGS}");
        eventually("all are answered", || {
            irc.tick();
            fake.seen().contains(&last)
        });
        let users = fake
            .seen()
            .iter()
            .filter(|line| line.starts_with("USER"))
            .count();
        assert_eq!(users, 1, "the connection was given up");
    }

    #[test]
    fn lies_are_told_as_what_they_are() {
        let endless = "x".repeat(20_000);
        for (lie, expected) in [
            (Answer::Close(String::new()), "it closed the connection"),
            (
                Answer::Close(":t 001 we".into()),
                "it closed the connection",
            ),
            (
                Answer::Close("ERROR :Closing Link: (Excess Flood)\r\n".into()),
                "it closes the connection: Closing Link: (Excess Flood)",
            ),
            (
                Answer::Say(endless),
                "it sends a line of more than 8703 bytes; is it an IRC server?",
            ),
            (
                say(":t 465 * :You are banned\u{7} from this server"),
                "we are banned: You are banned from this server",
            ),
        ] {
            let mut lie = Some(lie);
            let fake = Fake::start(move |_, line| match line.starts_with("USER") {
                true => lie.take().unwrap_or(Answer::Honest),
                false => Answer::Honest,
            });
            let irc = connect(&fake, "");
            assert_eq!(retried(irc.post("#a", "1")), expected);
            irc.post("#a", "1").unwrap(); // the next connection
        }
    }

    #[test]
    fn why_a_connection_ended_is_told() {
        let fake = Fake::start(|connection, line| match line.starts_with("PRIVMSG") {
            true if connection == 1 => {
                Answer::Close(":oper!u@h KILL weir :go away\r\nERROR :Closing Link\r\n".into())
            }
            _ => Answer::Honest,
        });
        let irc = connect(&fake, "");
        assert_eq!(
            retried(irc.post("#a", "1")),
            "it closes the connection: killed by oper: go away"
        );
        irc.post("#a", "1").unwrap();
    }

    #[test]
    fn nobody_there_and_no_tls_are_told() {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let server = |toml: String| {
            let toml = weir_consumer::settings::Settings::from_toml(&toml, "t").unwrap();
            Connection::shared(&toml.parse().unwrap(), Path::new("/data"))
        };
        let nobody = format!("server = '127.0.0.1:{port}'\nnick = 'a'\ntls = false");
        let told = retried(server(nobody).post("#a", "1"));
        assert!(
            told.starts_with("can't connect: Connection refused"),
            "{told}"
        );
        let fake = Fake::start(|_, _| say(":t NOTICE * :speak IRC"));
        let toml = format!(
            "server = 'localhost:{}'\nnick = 'a'\nca = 'ca.pem'",
            fake.port
        );
        let told = retried(server(toml).post("#a", "1"));
        assert!(
            told.contains("can't read certificates in /data/ca.pem"),
            "{told}"
        );
    }
}
