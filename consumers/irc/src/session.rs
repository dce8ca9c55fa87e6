//! One stay at a server: registration, channels, what was said and whether the server had it.
//!
//! 1. An error of a session means that it is over: whoever has it drops it and opens another.
//! 2. What was said counts as heard only when the server has answered a PING that came after it.
//! 3. Whatever the server sends, in whatever state: no panic, and no wait without an end.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use metrics::counter;
use weir_consumer::{Failure, Result, Secret, SecretText};

use crate::Server;
use crate::line::{Line, Target, folded, room, shown};
use crate::server::NICK_BYTES_MAX;
use crate::wire::Wire;

/// How long a server may be silent before it is asked, how long after that until it is given up,
/// and how long registration may take; some servers look up names and ask for identities first.
const SILENCE_MAX: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 60 });
const ANSWER_MAX: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 30 });
const REGISTRATION_MAX: Duration = Duration::from_secs(if cfg!(test) { 3 } else { 60 });
/// How long a channel that did not let us in, or threw us out, is left alone.
const CHANNEL_PAUSE: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 10 });
/// How often a nick that somebody else had is asked for again.
const NICK_PAUSE: Duration = Duration::from_secs(if cfg!(test) { 0 } else { 60 });
/// How many other nicks are tried.
const NICKS_MAX: usize = 5;
/// The channels that are remembered; servers allow fewer.
const CHANNELS_MAX: usize = 1000;
/// How long sending may take at least: it waits only for a server that has long stopped reading.
const SEND_TIME: Duration = Duration::from_secs(1);
/// Time for a farewell.
const QUIT_TIME: Duration = Duration::from_millis(200);
/// A line of SASL has no more.
const SASL_BYTES_MAX: usize = 400;

pub(crate) struct Session {
    wire: Wire,
    server: Server,
    /// As the server knows us, or as we have asked to be known.
    nick: String,
    nicks_tried: usize,
    nick_due: Instant,
    opened: Instant,
    /// When the server last said something.
    heard: Instant,
    registered: bool,
    login: Login,
    channels: HashMap<String, Channel>,
    /// PINGs are numbered; a PONG answers all up to its own.
    pinged: u64,
    answered: u64,
    /// When the first PING that is not answered was sent.
    waiting_since: Option<Instant>,
    said: Option<Said>,
    /// Why the server closed the connection, when it said so.
    farewell: Option<String>,
}

/// How far logging in by SASL has come.
enum Login {
    NotWanted,
    /// The capabilities that the server has listed so far.
    Asked {
        offered: String,
    },
    Requested,
    Done,
}

/// How we stand with a channel.
enum Channel {
    /// Asked to be let in; this PING came after it.
    Asked(u64),
    In,
    Out {
        why: String,
        again: Instant,
    },
}

/// What was said last, and what became of it.
struct Said {
    target: String,
    text: String,
    lines: usize,
    ping: u64,
    refused: Option<String>,
}

/// What became of what was said.
pub(crate) enum Heard {
    /// The server had all of these lines.
    Yes(usize),
    /// The server refused it, for this reason.
    Refused(String),
    /// No answer has come yet.
    NotYet,
    /// This was not said in this session.
    NotSaid,
}

/// How a channel stands with us.
pub(crate) enum Door {
    Open,
    Closed(String),
    NotYet,
}

impl Session {
    /// Connects and begins to register.
    pub(crate) fn open(server: &Server, data_dir: &Path, until: Instant) -> Result<Session> {
        let failed = |why: String| failure(server, &why);
        let password = secret(&server.password, data_dir).map_err(failed)?;
        // Only for its mistakes, before anything is sent.
        sasl_answer(server, data_dir).map_err(failed)?;
        let wire = Wire::open(server, data_dir, until).map_err(failed)?;
        let now = Instant::now();
        let login = match server.sasl {
            Some(_) => Login::Asked {
                offered: String::new(),
            },
            None => Login::NotWanted,
        };
        let mut session = Session {
            wire,
            server: server.clone(),
            nick: server.nick.0.clone(),
            nicks_tried: 0,
            nick_due: now + NICK_PAUSE,
            opened: now,
            heard: now,
            registered: false,
            login,
            channels: HashMap::new(),
            pinged: 0,
            answered: 0,
            waiting_since: None,
            said: None,
            farewell: None,
        };
        let mut lines = String::new();
        if server.sasl.is_some() {
            lines += "CAP LS 302\r\n";
        }
        if let Some(password) = password {
            lines += &format!("PASS :{}\r\n", password.expose());
        }
        let (nick, username, realname) = (&session.nick, &server.username.0, &server.realname.0);
        lines += &format!("NICK {nick}\r\nUSER {username} 0 * :{realname}\r\n");
        session.send(&lines, until)?;
        Ok(session)
    }

    /// Goes on with the registration; whether it is done.
    pub(crate) fn register(&mut self, data_dir: &Path, until: Instant) -> Result<bool> {
        while !self.registered {
            if self.opened.elapsed() > REGISTRATION_MAX {
                return Err(self.over("it does not finish the registration"));
            }
            let Some(line) = self.next(until)? else {
                return Ok(false);
            };
            self.registering(&line, data_dir, until)?;
        }
        Ok(true)
    }

    /// For how long it has lasted.
    pub(crate) fn age(&self) -> Duration {
        self.opened.elapsed()
    }

    /// The nick as the server knows it.
    #[cfg(test)]
    pub(crate) fn nick(&self) -> &str {
        &self.nick
    }

    /// How many bytes of text fit into a line to this target.
    pub(crate) fn room(&self, target: &Target) -> usize {
        let (username, command) = (&self.server.username.0, self.command());
        room(&self.nick, username, command, &target.name)
    }

    /// How we stand with a channel, when it has answered if it was asked.
    pub(crate) fn door(&mut self, channel: &Target, until: Instant) -> Result<Door> {
        loop {
            match self.channels.get(&channel.folded) {
                Some(Channel::In) => return Ok(Door::Open),
                Some(Channel::Out { why, .. }) => return Ok(Door::Closed(why.clone())),
                // A server says nothing when we are there already.
                Some(Channel::Asked(ping)) if self.answered >= *ping => {
                    self.channels.insert(channel.folded.clone(), Channel::In);
                    return Ok(Door::Open);
                }
                Some(Channel::Asked(_)) => {}
                None => return Ok(Door::Closed("not in the channel".into())),
            }
            if !self.one(until)? {
                return Ok(Door::NotYet);
            }
        }
    }

    /// Whether to ask to be let into a channel: we are not in it, have not asked, and need not leave
    /// it alone.
    pub(crate) fn may_knock(&self, channel: &Target) -> bool {
        match self.channels.get(&channel.folded) {
            Some(Channel::In | Channel::Asked(_)) => false,
            Some(Channel::Out { again, .. }) => *again <= Instant::now(),
            None => self.channels.len() < CHANNELS_MAX,
        }
    }

    /// Asks to be let into a channel: `LINES_TO_KNOCK`.
    pub(crate) fn knock(&mut self, channel: &Target, data_dir: &Path, until: Instant) -> Result {
        let key = match &channel.key {
            None => String::new(),
            Some(key) => match key.read(data_dir) {
                Ok(key) => format!(" {key}"),
                // A matter of this channel alone, and it may be mended by the next time.
                Err(why) => {
                    let again = Instant::now() + CHANNEL_PAUSE;
                    let out = Channel::Out { why, again };
                    self.channels.insert(channel.folded.clone(), out);
                    return Ok(());
                }
            },
        };
        let ping = self.ping();
        let lines = format!("JOIN {}{key}\r\n{}", channel.name, pinged(ping));
        self.send(&lines, until)?;
        let asked = Channel::Asked(ping);
        self.channels.insert(channel.folded.clone(), asked);
        Ok(())
    }

    /// Says the lines of a text.
    pub(crate) fn say(
        &mut self,
        target: &Target,
        text: &str,
        pieces: &[String],
        until: Instant,
    ) -> Result {
        let ping = self.ping();
        let command = self.command();
        let mut lines = String::new();
        for piece in pieces {
            lines += &format!("{command} {} :{piece}\r\n", target.name);
        }
        lines += &pinged(ping);
        self.send(&lines, until)?;
        self.said = Some(Said {
            target: target.folded.clone(),
            text: text.to_owned(),
            lines: pieces.len(),
            ping,
            refused: None,
        });
        Ok(())
    }

    /// What became of this text, which was said or not.
    pub(crate) fn heard(&mut self, target: &Target, text: &str, until: Instant) -> Result<Heard> {
        loop {
            let Some(said) = &self.said else {
                return Ok(Heard::NotSaid);
            };
            if self.answered >= said.ping {
                let this = said.target == target.folded && said.text == text;
                return Ok(match self.said.take() {
                    Some(said) if this => match said.refused {
                        None => Heard::Yes(said.lines),
                        Some(why) => Heard::Refused(why),
                    },
                    _ => Heard::NotSaid,
                });
            }
            if !self.one(until)? {
                return Ok(Heard::NotYet);
            }
        }
    }

    /// Handles what comes until then.
    pub(crate) fn listen(&mut self, until: Instant) -> Result {
        while self.one(until)? {}
        Ok(())
    }

    /// Asks a silent server whether it is there, and for the nick that we wanted.
    pub(crate) fn keep(&mut self, until: Instant) -> Result {
        let now = Instant::now();
        if let Some(since) = self.waiting_since {
            if now.duration_since(since) > ANSWER_MAX {
                return Err(self.over("it does not answer"));
            }
        } else if now.duration_since(self.heard) > SILENCE_MAX {
            let ping = self.ping();
            self.send(&pinged(ping), until)?;
        }
        let wanted = &self.server.nick.0;
        if folded(wanted) != folded(&self.nick) && now >= self.nick_due {
            self.nick_due = now + NICK_PAUSE;
            let line = format!("NICK {wanted}\r\n");
            self.send(&line, until)?;
        }
        Ok(())
    }

    fn command(&self) -> &'static str {
        match self.server.notice {
            true => "NOTICE",
            false => "PRIVMSG",
        }
    }

    fn ping(&mut self) -> u64 {
        self.pinged += 1;
        self.waiting_since.get_or_insert_with(Instant::now);
        self.pinged
    }

    fn send(&mut self, lines: &str, until: Instant) -> Result {
        // A line that is half sent can't be finished later. So what there is to send, such as the
        // answer to a PING that was read in the last instant, has a time of its own.
        let until = until.max(Instant::now() + SEND_TIME);
        (self.wire.send(lines, until)).map_err(|why| self.over(&why))
    }

    fn next(&mut self, until: Instant) -> Result<Option<Line>> {
        loop {
            match self.wire.read(until) {
                Ok(None) => return Ok(None),
                Ok(Some(text)) => {
                    self.heard = Instant::now();
                    if let Some(line) = Line::parse(&text) {
                        return Ok(Some(line));
                    }
                }
                Err(why) => return Err(self.over(&why)),
            }
        }
    }

    /// Handles one line; false when none has come until then.
    fn one(&mut self, until: Instant) -> Result<bool> {
        let Some(line) = self.next(until)? else {
            // Not a matter of one call's patience.
            if (self.waiting_since).is_some_and(|since| since.elapsed() > ANSWER_MAX) {
                return Err(self.over("it does not answer"));
            }
            return Ok(false);
        };
        self.handle(&line, until)?;
        Ok(true)
    }

    /// The failure with which the session ends.
    fn over(&self, why: &str) -> Failure {
        match &self.farewell {
            Some(farewell) => failure(&self.server, &format!("{why}: {farewell}")),
            None => failure(&self.server, why),
        }
    }

    /// The failure that only somebody who changes the configuration can end.
    fn hopeless(&self, why: &str) -> Failure {
        Failure::halt(format!("{}: {why}", self.server.server))
    }

    fn registering(&mut self, line: &Line, data_dir: &Path, until: Instant) -> Result {
        let told = line.told();
        match line.command.as_str() {
            "CAP" => match line.param(1).to_ascii_uppercase().as_str() {
                "LS" => self.offered(line, until)?,
                "ACK" if matches!(self.login, Login::Requested) => {
                    let mechanism = self.mechanism();
                    self.send(&format!("AUTHENTICATE {mechanism}\r\n"), until)?;
                }
                "NAK" => return Err(self.over("it refuses to begin a login (SASL)")),
                _ => {}
            },
            "AUTHENTICATE" if matches!(self.login, Login::Requested) => {
                let answer = sasl_answer(&self.server, data_dir).map_err(|why| self.over(&why))?;
                self.send(&answer, until)?;
            }
            "903" | "907" if matches!(self.login, Login::Requested) => {
                self.login = Login::Done;
                self.send("CAP END\r\n", until)?;
            }
            "902" | "904" | "905" => {
                let what = match &self.server.sasl {
                    Some(sasl) => format!("the login as {} (SASL) is refused", sasl.account.0),
                    None => "the login is refused".to_owned(),
                };
                return Err(self.hopeless(&format!("{what}: {told}")));
            }
            "906" => return Err(self.over(&format!("it ended the login (SASL): {told}"))),
            "421" if line.param(1).eq_ignore_ascii_case("CAP") && self.server.sasl.is_some() => {
                return Err(self.over("it knows no login by SASL"));
            }
            "433" | "436" | "437" => {
                self.nicks_tried += 1;
                if self.nicks_tried > NICKS_MAX {
                    let wanted = &self.server.nick.0;
                    return Err(self.over(&format!(
                        "the nick {wanted} is in use, and so are those with up to {NICKS_MAX} `_` \
                         after it"
                    )));
                }
                self.nick.push('_');
                let line = format!("NICK {}\r\n", self.nick);
                self.send(&line, until)?;
            }
            "432" => {
                let why = format!("it refuses the nick {}: {told}", self.nick);
                return Err(self.hopeless(&why));
            }
            "464" => return Err(self.hopeless(&format!("it refuses the password: {told}"))),
            "465" => return Err(self.over(&format!("we are banned: {told}"))),
            "001" => {
                if self.server.sasl.is_some() && !matches!(self.login, Login::Done) {
                    return Err(self.over("it lets us in without a login (SASL)"));
                }
                self.known_as(line.param(0));
                self.registered = true;
                counter!("irc_connects_total").increment(1);
            }
            _ => self.handle(line, until)?,
        }
        Ok(())
    }

    /// Takes one line of the capabilities that a server lists.
    fn offered(&mut self, line: &Line, until: Instant) -> Result {
        let Login::Asked { offered } = &mut self.login else {
            return Ok(());
        };
        // With a `*` before them, more follow. A list without an end is ended by the time.
        let more = line.params.len() > 3 && line.param(2) == "*";
        let listed = line.params.last().map_or("", String::as_str);
        if let Some(sasl) = (listed.split(' '))
            .find(|capability| *capability == "sasl" || capability.starts_with("sasl="))
        {
            *offered = sasl.to_owned();
        }
        if more {
            return Ok(());
        }
        let offered = std::mem::take(offered);
        let mechanism = self.mechanism();
        let known = match offered.split_once('=') {
            Some((_, mechanisms)) => mechanisms.split(',').any(|known| known == mechanism),
            None => offered == "sasl",
        };
        if !known {
            return Err(self.over(&format!(
                "it offers no login by SASL {mechanism} now; are its services away?"
            )));
        }
        self.login = Login::Requested;
        self.send("CAP REQ :sasl\r\n", until)
    }

    fn mechanism(&self) -> &'static str {
        match &self.server.sasl {
            Some(sasl) if sasl.password.is_none() => "EXTERNAL",
            _ => "PLAIN",
        }
    }

    /// What may come at any time.
    fn handle(&mut self, line: &Line, until: Instant) -> Result {
        let ours = folded(&line.from) == folded(&self.nick);
        match line.command.as_str() {
            "PING" => {
                let token = line.params.last().map_or("", String::as_str);
                self.send(&format!("PONG :{token}\r\n"), until)?;
            }
            "PONG" => self.pong(line),
            "JOIN" if ours => self.stand(line.param(0), Channel::In),
            "PART" if ours => self.thrown(line.param(0), "we were made to leave".into()),
            "KICK" if folded(line.param(1)) == folded(&self.nick) => {
                let by = shown(&line.from);
                let why = format!("kicked out by {by}: {}", line.told());
                self.thrown(line.param(0), why);
            }
            "NICK" if ours => self.known_as(line.param(0)),
            "KILL" if folded(line.param(0)) == folded(&self.nick) => {
                let by = shown(&line.from);
                self.farewell = Some(format!("killed by {by}: {}", line.told()));
            }
            "ERROR" => {
                // More than a farewell that came before it says.
                let told = line.told();
                self.farewell.get_or_insert(told);
                return Err(self.over("it closes the connection"));
            }
            "FAIL" if ["PRIVMSG", "NOTICE"].contains(&line.param(0)) => {
                self.refused(None, line.told());
            }
            // What was said was too long, or empty: not with whom it was said to.
            "411" | "412" | "417" => {
                let told = format!("{} ({})", line.told(), line.command);
                self.refused(None, told);
            }
            "716" => self.numeric(line),
            error if error.len() == 3 && error.starts_with(['4', '5']) => self.numeric(line),
            _ => {}
        }
        Ok(())
    }

    fn known_as(&mut self, nick: &str) {
        // What is no nick is no reason to forget ours.
        if (1..=NICK_BYTES_MAX + NICKS_MAX).contains(&nick.len()) {
            self.nick = nick.to_owned();
        }
    }

    fn pong(&mut self, line: &Line) {
        // Ours have our token; a server that sends another answers one after the other.
        let token = line.params.last().and_then(|last| last.strip_prefix(TOKEN));
        let answered = match token.and_then(|number| number.parse().ok()) {
            Some(number) => number,
            None => self.answered + 1,
        };
        if answered <= self.pinged {
            self.answered = self.answered.max(answered);
        }
        if self.answered == self.pinged {
            self.waiting_since = None;
        }
    }

    /// An error of the server: about a channel, or about what was said.
    fn numeric(&mut self, line: &Line) {
        let about = line.param(1);
        let told = format!("{} ({})", line.told(), line.command);
        match self.channels.get(&folded(about)) {
            Some(Channel::Asked(_)) => self.thrown(about, format!("not let in: {told}")),
            // It says that we are not in it, or that we may not speak. Asking to be let in again
            // does no harm when we are.
            Some(Channel::In) if matches!(line.command.as_str(), "403" | "404" | "442") => {
                self.channels.remove(&folded(about));
            }
            _ => {}
        }
        self.refused(Some(about), told);
    }

    /// Something that was said was refused; a text without a name is about the last.
    fn refused(&mut self, about: Option<&str>, why: String) {
        let (answered, known) = (self.answered, about.map(folded));
        if let Some(said) = &mut self.said
            && answered < said.ping
            && known.is_none_or(|name| name == said.target)
        {
            said.refused.get_or_insert(why);
        }
    }

    fn stand(&mut self, channel: &str, stand: Channel) {
        // Only of channels that we have asked for: a server can't fill our memory.
        if let Some(known) = self.channels.get_mut(&folded(channel)) {
            *known = stand;
        }
    }

    fn thrown(&mut self, channel: &str, why: String) {
        let again = Instant::now() + CHANNEL_PAUSE;
        self.stand(channel, Channel::Out { why, again });
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // To a connection that is lost it does no harm.
        let until = Instant::now() + QUIT_TIME;
        let _ = self.wire.send("QUIT :weir\r\n", until);
    }
}

const TOKEN: &str = "weir-";

fn pinged(number: u64) -> String {
    format!("PING :{TOKEN}{number}\r\n")
}

fn failure(server: &Server, why: &str) -> Failure {
    Failure::retry(format!("{}: {why}", server.server))
}

/// The secret, if there is one to read; it has to fit into a line.
fn secret(
    secret: &Option<Secret>,
    data_dir: &Path,
) -> std::result::Result<Option<SecretText>, String> {
    let Some(place) = secret else {
        return Ok(None);
    };
    let text = place.read(data_dir)?;
    match text.expose().contains(char::is_control) || text.expose().len() > SASL_BYTES_MAX {
        true => Err(format!(
            "the secret in {place} has control characters, or more than {SASL_BYTES_MAX} bytes"
        )),
        false => Ok(Some(text)),
    }
}

/// What is sent to log in: the lines that answer the server's `AUTHENTICATE +`.
pub(crate) fn sasl_answer(server: &Server, data_dir: &Path) -> std::result::Result<String, String> {
    let Some(sasl) = &server.sasl else {
        return Ok(String::new());
    };
    let account = &sasl.account.0;
    let plain = match secret(&sasl.password, data_dir)? {
        Some(password) => format!("\0{account}\0{}", password.expose()),
        None => account.clone(),
    };
    let encoded = BASE64.encode(plain);
    let mut lines = String::new();
    let mut rest = encoded.as_str();
    loop {
        let (piece, after) = rest.split_at(rest.len().min(SASL_BYTES_MAX));
        let shown = if piece.is_empty() { "+" } else { piece };
        lines += &format!("AUTHENTICATE {shown}\r\n");
        rest = after;
        // A last piece of full length is followed by an empty one.
        if piece.len() < SASL_BYTES_MAX {
            return Ok(lines);
        }
    }
}
