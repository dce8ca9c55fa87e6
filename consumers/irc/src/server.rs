//! The settings of a connection: which server, as whom, and how fast.

use std::path::PathBuf;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use weir_consumer::Secret;
use weir_consumer::settings::duration;

use crate::pace::LINES_TO_HEAR;

/// The settings of a connection: which server, as whom, and how fast.
///
/// In a configuration it is a table; all but `server` and `nick` have defaults, which the kind's
/// `sample.toml` explains.
///
/// ```
/// use weir_consumer::settings::Settings;
/// use weir_irc::Server;
///
/// let read = |toml| Settings::from_toml(toml, "weir.toml").unwrap().parse::<Server>();
/// assert!(read("server = 'irc.libera.chat:6697'\nnick = 'weir'").is_ok());
/// assert_eq!(
///     read("server = 'irc.libera.chat:6697'\nnick = '7'").unwrap_err()[0].to_string(),
///     "weir.toml:2:8: nick: \"7\" is no nick: it has letters, digits and -[]\\`_^{|}, and begins \
///      with neither a digit nor a `-`"
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// Host and port.
    pub(crate) server: Address,
    /// Whether the connection is encrypted; the server's certificate is always checked.
    #[serde(default = "yes")]
    pub(crate) tls: bool,
    /// Certificates, in PEM, that are trusted besides those of the system.
    pub(crate) ca: Option<PathBuf>,
    /// Our own certificate and its key, both in this file, in PEM.
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) nick: Nick,
    #[serde(default = "weir")]
    pub(crate) username: Word,
    #[serde(default = "weir")]
    pub(crate) realname: Phrase,
    /// The password of the server itself, which most do not have.
    pub(crate) password: Option<Secret>,
    pub(crate) sasl: Option<Sasl>,
    /// Says it as a notice instead of a message.
    #[serde(default)]
    pub(crate) notice: bool,
    /// How many lines a text takes at most.
    #[serde(default = "three")]
    pub(crate) lines_max: Count,
    #[serde(default)]
    pub(crate) line_rate: LineRate,
    /// How many lines go at once before the rate holds.
    #[serde(default = "six")]
    pub(crate) line_burst: Count,
    /// How long a call waits for its turn and the server before it gives up, and how long for the
    /// answer to what it said.
    #[serde(default = "four_seconds", deserialize_with = "timeout")]
    pub(crate) timeout: Duration,
}

fn yes() -> bool {
    true
}

fn weir<T: From<&'static str>>() -> T {
    "weir".into()
}

fn three() -> Count {
    Count(3)
}

fn six() -> Count {
    Count(6)
}

fn four_seconds() -> Duration {
    Duration::from_secs(4)
}

/// Longer ones no stop of a hub waits for.
const TIMEOUT_MAX: Duration = Duration::from_secs(8);

fn timeout<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let time = duration(from)?;
    match !time.is_zero() && time <= TIMEOUT_MAX {
        true => Ok(time),
        false => Err(D::Error::custom(format!(
            "expected more than no time and at most {}, found {}",
            humantime::format_duration(TIMEOUT_MAX),
            humantime::format_duration(time)
        ))),
    }
}

impl Server {
    /// What is wrong with the settings as a whole, which their types can't say.
    ///
    /// Whoever has them in its settings asks this in its builder.
    pub fn problem(&self) -> Option<String> {
        if self.lines_max.0 + LINES_TO_HEAR > self.line_burst.0 {
            return Some(format!(
                "`lines_max` ({}) has to be less than `line_burst` ({}): a message and the PING \
                 after it are sent together",
                self.lines_max.0, self.line_burst.0
            ));
        }
        if !self.tls && (self.ca.is_some() || self.certificate.is_some()) {
            return Some("`ca` and `certificate` are for `tls = true`".into());
        }
        match &self.sasl {
            Some(Sasl { password: None, .. }) if self.certificate.is_none() => Some(
                "`sasl` without a `password` logs in by the `certificate`, and there is none"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// An account at the services of a network.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Sasl {
    pub(crate) account: Word,
    /// Logs in with it (PLAIN); without one, the certificate does (EXTERNAL).
    pub(crate) password: Option<Secret>,
}

/// Host and port of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let parsed = text.rsplit_once(':').and_then(|(host, port)| {
            let bare = (host.strip_prefix('[')).and_then(|host| host.strip_suffix(']'));
            let known = match bare {
                Some(bare) => bare.parse::<std::net::Ipv6Addr>().is_ok(),
                None => !host.is_empty() && host.chars().all(part_of_a_host),
            };
            let port = port.parse().ok().filter(|port| *port != 0)?;
            known.then(|| Address {
                host: bare.unwrap_or(host).to_owned(),
                port,
            })
        });
        parsed.ok_or_else(|| {
            D::Error::custom(format!(
                "expected a host and a port such as \"irc.libera.chat:6697\" or \"[::1]:6667\", \
                 found {text:?}"
            ))
        })
    }
}

fn part_of_a_host(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_')
}

/// The name that is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Nick(pub(crate) String);

/// Longer ones are known nowhere.
pub(crate) const NICK_BYTES_MAX: usize = 64;

impl<'de> Deserialize<'de> for Nick {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let known = |c: char| c.is_ascii_alphanumeric() || "-[]\\`_^{|}".contains(c);
        let begins = |c: char| !c.is_ascii_digit() && c != '-';
        match text.chars().all(known) && text.starts_with(begins) && text.len() <= NICK_BYTES_MAX {
            true => Ok(Nick(text)),
            false => Err(D::Error::custom(format!(
                "{text:?} is no nick: it has letters, digits and -[]\\`_^{{|}}, and begins with \
                 neither a digit nor a `-`"
            ))),
        }
    }
}

/// A text without spaces or anything that could end it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Word(pub(crate) String);

/// A text that can't end its line.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Phrase(pub(crate) String);

impl From<&'static str> for Word {
    fn from(text: &'static str) -> Self {
        Word(text.into())
    }
}

impl From<&'static str> for Phrase {
    fn from(text: &'static str) -> Self {
        Phrase(text.into())
    }
}

/// What is longer than this could not be said in one line.
const TEXT_BYTES_MAX: usize = 200;

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let Phrase(text) = Phrase::deserialize(from)?;
        match text.contains([' ', '@', '!']) || text.starts_with(':') {
            true => Err(D::Error::custom(format!(
                "expected one word without `@` and `!`, found {text:?}"
            ))),
            false => Ok(Word(text)),
        }
    }
}

impl<'de> Deserialize<'de> for Phrase {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let fits = !text.is_empty() && text.len() <= TEXT_BYTES_MAX;
        match fits && !text.contains(char::is_control) {
            true => Ok(Phrase(text)),
            false => Err(D::Error::custom(format!(
                "expected a text of 1 to {TEXT_BYTES_MAX} bytes without control characters, found \
                 {text:?}"
            ))),
        }
    }
}

/// A number of lines.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Count(pub(crate) usize);

/// More lines at once are a flood anywhere.
const LINES_MAX: usize = 100;

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let count = usize::deserialize(from)?;
        match (1..=LINES_MAX).contains(&count) {
            true => Ok(Count(count)),
            false => Err(D::Error::custom(format!(
                "expected 1 to {LINES_MAX} lines, found {count}"
            ))),
        }
    }
}

/// How many lines go in the long run: `"60/min"` by default, which no server takes for a flood.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct LineRate {
    pub(crate) per_second: f64,
}

impl Default for LineRate {
    fn default() -> Self {
        LineRate { per_second: 1.0 }
    }
}

impl<'de> Deserialize<'de> for LineRate {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        // Written as the hub's `rate`, which counts messages and not lines.
        let text = String::deserialize(from)?;
        let parsed = text.split_once('/').and_then(|(count, unit)| {
            let count: f64 = count.trim().parse().ok()?;
            let seconds = match unit.trim() {
                "s" => 1.0,
                "min" | "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
            let per_second = count / seconds;
            // A slower one would let each message be tried again for hours.
            (1.0 / 60.0..=10_000.0)
                .contains(&per_second)
                .then_some(LineRate { per_second })
        });
        parsed.ok_or_else(|| {
            D::Error::custom(format!(
                "expected a rate such as \"60/min\" or \"2/s\", at least one a minute, found {text:?}"
            ))
        })
    }
}
