//! The configuration: TOML with layers over it, checked as a whole.
//!
//! Each module owns its settings struct; this one knows the sections, and puts together every
//! mistake in all of them before it says no. What it promises is a [`Config`] with which a hub can
//! start: kinds exist, settings are complete, builders have agreed to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use weir_consumer::settings::{Mistake, Origin, Settings, duration, nearest};
use weir_consumer::{Context, HUB_KEYS, Kind, Publisher};

use crate::backend::Source;
#[cfg(feature = "fedmsg")]
use crate::fedmsg;
use crate::monitor::{collectd, moksha, statsd};
use crate::registry::Registry;
use crate::router::prefix;
use crate::runner::{self, rate::Rate};
use crate::{dead_letters, journal, publisher, queue};

/// Every key with its default and what it means.
pub const SAMPLE: &str = include_str!("sample.toml");

/// Threads of one consumer at most: a slip of the finger must not start a million.
const WORKERS_MAX: usize = 256;

/// Everything a hub needs to start.
pub struct Config {
    /// The `[hub]` section.
    pub hub: Hub,
    /// The `[[backend]]` sections.
    pub backends: Vec<Source>,
    /// The `[publish]` section.
    pub publish: Option<publisher::Settings>,
    /// The `[statsd]` section.
    pub statsd: Option<statsd::Settings>,
    /// The `[collectd]` section.
    pub collectd: Option<collectd::Settings>,
    /// The `[moksha]` section.
    pub moksha: Option<moksha::Settings>,
    /// The `[fedmsg]` section.
    #[cfg(feature = "fedmsg")]
    pub fedmsg: fedmsg::Settings,
    /// The `[journal]` section.
    pub journal: journal::Settings,
    /// The `[dead_letters]` section.
    pub dead_letters: dead_letters::Settings,
    /// The `[consumers.*]` sections.
    pub consumers: Vec<Consumer>,
    /// The `[producers.*]` sections.
    pub producers: Vec<Producer>,
}

/// The `[hub]` section; `src/sample.toml` explains each key.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Hub {
    pub name: String,
    pub data_dir: PathBuf,
    pub http: String,
    pub http_hosts: Vec<String>,
    pub http_tls: Option<Tls>,
    #[serde(deserialize_with = "duration")]
    pub stop_deadline: Duration,
}

/// The files of `hub.http_tls`, in PEM.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate, and after it those that lead to one that clients know.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Default for Hub {
    fn default() -> Self {
        Hub {
            name: "weir".into(),
            data_dir: "weir-data".into(),
            http: "127.0.0.1:8907".into(),
            http_hosts: Vec::new(),
            http_tls: None,
            stop_deadline: Duration::from_secs(10),
        }
    }
}

/// One consumer: what the hub reads of its section, and what is left for its kind.
pub struct Consumer {
    /// The instance's name.
    pub name: String,
    /// What builds it.
    pub kind: Kind,
    /// The hub's part of the section.
    pub settings: ConsumerSettings,
    /// The kind's part.
    pub own: Settings,
}

/// The hub's part of a `[consumers.*]` section.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct ConsumerSettings {
    pub kind: Option<String>,
    #[serde(deserialize_with = "one_or_many")]
    pub topics: Vec<String>,
    pub queue: queue::Settings,
    pub delivery: Delivery,
    pub start: Start,
    pub workers: usize,
    pub key: Option<String>,
    pub retry: runner::Retry,
    pub rate: Option<Rate>,
    pub burst: usize,
    pub lane: Option<String>,
    pub validate: Option<bool>,
}

impl Default for ConsumerSettings {
    fn default() -> Self {
        ConsumerSettings {
            kind: None,
            topics: Vec::new(),
            queue: queue::Settings::default(),
            delivery: Delivery::default(),
            start: Start::default(),
            workers: 1,
            key: None,
            retry: runner::Retry::default(),
            rate: None,
            burst: 1,
            lane: None,
            validate: None,
        }
    }
}

/// What a consumer is promised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// What the journal has is delivered, also after a crash, and then perhaps twice.
    #[default]
    AtLeastOnce,
    /// From memory only: what does not fit into the queue is dropped, what waits at the end too.
    AtMostOnce,
}

/// Where a consumer begins that has no cursor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// With the next message that comes.
    #[default]
    Head,
    /// With the oldest that the journal has.
    Earliest,
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(
        untagged,
        expecting = "expected topics such as [\"org.example.\"], or \"\" for all"
    )]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    Ok(match OneOrMany::deserialize(from)? {
        OneOrMany::One(topic) => vec![topic],
        OneOrMany::Many(topics) => topics,
    })
}

/// One producer: what the hub reads of its section, and what is left for its kind.
pub struct Producer {
    /// The instance's name.
    pub name: String,
    /// What builds it.
    pub kind: Kind,
    /// How often it is called.
    pub interval: Duration,
    /// The kind's part of the section.
    pub own: Settings,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct ProducerSettings {
    kind: Option<String>,
    #[serde(deserialize_with = "duration")]
    interval: Duration,
}

impl Default for ProducerSettings {
    fn default() -> Self {
        ProducerSettings {
            kind: None,
            interval: Duration::from_secs(10),
        }
    }
}

/// What is wrong with a configuration: everything at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistakes(pub Vec<Mistake>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = if self.0.len() == 1 { "" } else { "s" };
        write!(f, "{} mistake{s} in the configuration:", self.0.len())?;
        self.0
            .iter()
            .try_for_each(|mistake| write!(f, "\n  {mistake}"))
    }
}

impl std::error::Error for Mistakes {}

/// Reads the layers of a configuration: a file, over it the environment, over that assignments.
///
/// `environment` may be all of it: only variables `WEIR_SECTION__KEY` are looked at.
///
/// # Errors
/// When the file can't be read or parsed, or an assignment leads nowhere.
pub fn layers(
    file: &Path,
    environment: impl IntoIterator<Item = (String, String)>,
    assignments: &[String],
) -> Result<Settings, Mistakes> {
    let name = file.display().to_string();
    let text = std::fs::read_to_string(file).map_err(|error| {
        let text = format!(
            "can't be read: {error}{}",
            match error.kind() {
                std::io::ErrorKind::NotFound =>
                    format!("; `weir config sample > {name}` writes one to begin with"),
                _ => String::new(),
            }
        );
        Mistakes(vec![Mistake {
            origin: Origin::named(&name),
            path: String::new(),
            text,
        }])
    })?;
    let mut settings =
        Settings::from_toml(&text, &name).map_err(|mistake| Mistakes(vec![mistake]))?;
    let mut mistakes = Vec::new();
    for (variable, value) in environment {
        let Some(path) = variable
            .strip_prefix("WEIR_")
            .filter(|path| path.contains("__"))
        else {
            continue;
        };
        let path = path.to_ascii_lowercase().replace("__", ".");
        let origin = Origin::named(&format!("environment {variable}"));
        mistakes.extend(settings.set(&path, &value, origin).err());
    }
    for assignment in assignments {
        let origin = Origin::named(&format!("--set {assignment}"));
        match assignment.split_once('=') {
            Some((path, value)) => {
                mistakes.extend(settings.set(path.trim(), value.trim(), origin).err());
            }
            None => mistakes.push(Mistake {
                origin,
                path: String::new(),
                text: "expected KEY=VALUE, such as hub.name=fedora".into(),
            }),
        }
    }
    match mistakes.is_empty() {
        true => Ok(settings),
        false => Err(Mistakes(mistakes)),
    }
}

impl Config {
    /// Reads a configuration from TOML text; `source` names the text in mistakes.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_toml(text: &str, source: &str, registry: &Registry) -> Result<Self, Mistakes> {
        let settings = Settings::from_toml(text, source).map_err(|m| Mistakes(vec![m]))?;
        Config::from_settings(settings, registry)
    }

    /// Reads the configuration of a hub that a program feeds itself: it needs no `[[backend]]`.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn embedded(text: &str, registry: &Registry) -> Result<Self, Mistakes> {
        let settings = Settings::from_toml(text, "weir").map_err(|m| Mistakes(vec![m]))?;
        Config::check(settings, registry, false)
    }

    /// Checks a configuration and takes it apart.
    ///
    /// # Errors
    /// Every mistake in it.
    pub fn from_settings(settings: Settings, registry: &Registry) -> Result<Self, Mistakes> {
        Config::check(settings, registry, true)
    }

    /// What its backends connect to and are bound to.
    pub fn sources(&self) -> Vec<String> {
        sources_of(&self.backends)
    }

    fn check(settings: Settings, registry: &Registry, sources: bool) -> Result<Self, Mistakes> {
        let mut check = Check {
            mistakes: Vec::new(),
        };
        let sections = [
            "hub",
            "backend",
            "publish",
            "statsd",
            "collectd",
            "moksha",
            "fedmsg",
            "journal",
            "dead_letters",
            "consumers",
            "producers",
        ];
        let top = settings.mistake("");
        let (known, unknown) = settings.split(&sections);
        for (key, value) in unknown.entries() {
            let instead = match nearest(key, sections) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known here: {}", sections.join(", ")),
            };
            check.mistakes.push(Mistake {
                path: key.into(),
                ..value.mistake(format!("unknown section; {instead}"))
            });
        }

        let hub = match known.get("hub") {
            Some(section) => check.under("hub", hub(section)).unwrap_or_default(),
            None => Hub::default(),
        };
        let mut backends = Vec::new();
        if let Some(list) = known.get("backend") {
            if !list.is_table() && list.items().next().is_none() {
                let text = "expected sections [[backend]] with `connect` or `bind`";
                check.mistakes.push(list.mistake(text).under("backend"));
            }
            // `[backend]` for the only one is what people write.
            let lone = list.is_table().then_some(list);
            for (index, section) in lone.into_iter().chain(list.items()).enumerate() {
                let source = Source::from_settings(section);
                backends.extend(check.under(&format!("backend.{index}"), source));
            }
        }
        let publish = known.get("publish").and_then(|section| {
            check.under("publish", publisher::Settings::from_settings(section))
        });
        let statsd = known
            .get("statsd")
            .and_then(|section| check.under("statsd", statsd::Settings::from_settings(section)));
        let collectd = known
            .get("collectd")
            .and_then(|own| check.under("collectd", collectd::Settings::from_settings(own)));
        let moksha = known
            .get("moksha")
            .and_then(|own| check.under("moksha", moksha::Settings::from_settings(own)));
        #[cfg(feature = "fedmsg")]
        let (fedmsg, can_validate) = match known.get("fedmsg") {
            Some(own) => {
                let read = check.under("fedmsg", fedmsg::Settings::from_settings(own));
                // What is wrong in itself is told already.
                let can = read.as_ref().is_none_or(fedmsg::Settings::can_validate);
                let why = fedmsg::NO_CA;
                (read.unwrap_or_default(), Some(why).filter(|_| !can))
            }
            None => (fedmsg::Settings::default(), Some(fedmsg::NO_CA)),
        };
        #[cfg(not(feature = "fedmsg"))]
        let can_validate = Some("this weir was built without the feature `fedmsg`");
        #[cfg(not(feature = "fedmsg"))]
        if let (Some(own), Some(text)) = (known.get("fedmsg"), can_validate) {
            check.mistakes.push(own.mistake(text).under("fedmsg"));
        }
        let journal = known
            .get("journal")
            .and_then(|section| check.under("journal", journal::Settings::from_settings(section)))
            .unwrap_or_default();
        let dead_letters = known
            .get("dead_letters")
            .and_then(|section| {
                let read = dead_letters::Settings::from_settings(section);
                check.under("dead_letters", read)
            })
            .unwrap_or_default();
        let mut consumers = Vec::new();
        for (name, section) in known
            .get("consumers")
            .into_iter()
            .flat_map(Settings::entries)
        {
            let context = Context::new(name, &hub.data_dir, Publisher::nowhere()).in_hub(&hub.name);
            let mut read = consumer(name, section, registry, context, &sources_of(&backends));
            if let (Some(why), Ok(Consumer { settings, .. })) = (can_validate, &read)
                && settings.validate == Some(true)
            {
                read = Err(vec![section.mistake_at("validate", why)]);
            }
            consumers.extend(check.under(&format!("consumers.{name}"), read));
        }
        let mut producers = Vec::new();
        for (name, section) in known
            .get("producers")
            .into_iter()
            .flat_map(Settings::entries)
        {
            let context = Context::new(name, &hub.data_dir, Publisher::nowhere()).in_hub(&hub.name);
            let read = producer(name, section, registry, &context);
            producers.extend(check.under(&format!("producers.{name}"), read));
        }
        for group in ["consumers", "producers"] {
            if let Some(section) = known.get(group).filter(|section| !section.is_table()) {
                let text = format!("expected sections [{group}.NAME]");
                check.mistakes.push(section.mistake(text).under(group));
            }
        }
        if let (Some(section), None) = (known.get("producers"), known.get("publish"))
            && section.entries().next().is_some()
        {
            let text =
                "producers publish, and there is nowhere to: add a section [publish] with `bind`";
            check
                .mistakes
                .push(section.mistake(text).under("producers"));
        }
        let at_top = |text: &str| Mistake {
            text: text.into(),
            ..top.clone()
        };
        if known
            .get("consumers")
            .is_none_or(|section| section.is_table() && section.entries().next().is_none())
        {
            check.mistakes.push(at_top(
                "there is no consumer, so there is nothing to do; add a section [consumers.NAME] \
                 (`weir kinds` lists what there is)",
            ));
        }
        if sources && known.get("backend").is_none() {
            check.mistakes.push(at_top(
                "there is nowhere to get messages from; add a section [[backend]] with \
                 connect = [\"tcp://HOST:PORT\"]",
            ));
        }
        if hub.http_tls.is_some() && !journal.enabled {
            check.mistakes.push(at_top(
                "hub.http_tls needs a token, which is kept in data_dir: journal.enabled must be \
                 true",
            ));
        }
        if check.mistakes.is_empty() {
            return Ok(Config {
                hub,
                backends,
                publish,
                statsd,
                collectd,
                moksha,
                #[cfg(feature = "fedmsg")]
                fedmsg,
                journal,
                dead_letters,
                consumers,
                producers,
            });
        }
        check
            .mistakes
            .sort_by(|a, b| (&a.origin, &a.path).cmp(&(&b.origin, &b.path)));
        Err(Mistakes(check.mistakes))
    }
}

struct Check {
    mistakes: Vec<Mistake>,
}

impl Check {
    fn under<T>(&mut self, path: &str, read: Result<T, Vec<Mistake>>) -> Option<T> {
        read.map_err(|mistakes| {
            // What is wrong in itself counts as left out in what is checked afterwards.
            let mut told = BTreeSet::new();
            for mistake in mistakes {
                let mistake = mistake.under(path);
                if told.insert(mistake.path.clone()) {
                    self.mistakes.push(mistake);
                }
            }
        })
        .ok()
    }
}

fn hub(section: &Settings) -> Result<Hub, Vec<Mistake>> {
    let (hub, mut mistakes) = section.parse_most::<Hub>();
    let Some(hub) = hub else {
        return Err(mistakes);
    };
    if let Err(why) = check_name(&hub.name) {
        mistakes.push(section.mistake_at("name", why));
    }
    if hub.data_dir.as_os_str().is_empty() {
        mistakes.push(section.mistake_at("data_dir", "expected a directory; \".\" is this one"));
    }
    if !hub.http.is_empty()
        && let Err(why) = address(&hub.http, hub.http_tls.is_some())
    {
        mistakes.push(section.mistake_at("http", why));
    }
    for host in &hub.http_hosts {
        let name = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        if host.is_empty() || !host.chars().all(name) {
            let text = format!("expected names such as \"weir.example.org\", found {host:?}");
            mistakes.push(section.mistake_at("http_hosts", text));
        }
    }
    if hub.http_tls.is_some() && !cfg!(feature = "tls") {
        let text = "this weir was built without the feature `tls`";
        mistakes.push(section.mistake_at("http_tls", text));
    }
    if mistakes.is_empty() {
        Ok(hub)
    } else {
        Err(mistakes)
    }
}

/// The socket address that an `http` setting means; beyond loopback only with TLS.
///
/// # Errors
/// Why it is none.
pub fn address(address: &str, tls: bool) -> Result<SocketAddr, String> {
    let socket = address
        .to_socket_addrs()
        .ok()
        .and_then(|mut found| found.next())
        .ok_or_else(|| {
            format!("expected an address and port such as \"127.0.0.1:8907\", found {address:?}")
        })?;
    match tls || socket.ip().is_loopback() {
        true => Ok(socket),
        false => Err(format!(
            "expected a loopback address and port such as \"127.0.0.1:8907\": {address:?} could \
             be reached by others, and nothing protects it; give http_tls = {{ certificate = \
             \"FILE\", key = \"FILE\" }}, or let a reverse proxy on this machine serve it"
        )),
    }
}

/// Names end up in gauges, thread names and paths: what every such system accepts.
fn check_name(name: &str) -> Result<(), String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    match (1..=48).contains(&name.len()) && name.chars().all(fits) {
        true => Ok(()),
        false => Err(format!(
            "{name:?} can't be a name: 1 to 48 letters, digits, `_` or `-`, \
             so that every monitoring system accepts it"
        )),
    }
}

fn sources_of(backends: &[Source]) -> Vec<String> {
    (backends.iter().flat_map(Source::endpoints).cloned()).collect()
}

/// Splits a section, finds its kind, and reads what is the hub's.
fn instance<T: serde::de::DeserializeOwned>(
    name: &str,
    section: &Settings,
    registry: &Registry,
    mistakes: &mut Vec<Mistake>,
) -> (Option<T>, Option<Kind>, Settings) {
    if !section.is_table() {
        mistakes.push(section.mistake("expected a section of keys"));
        return (None, None, Settings::empty(section.origin().clone()));
    }
    if let Err(why) = check_name(name) {
        mistakes.push(section.mistake(why));
    }
    let (hub, own) = section.clone().split(&HUB_KEYS);
    let (settings, found) = hub.parse_most();
    mistakes.extend(found);
    let asked = section.get("kind").map_or(Some(name), Settings::as_str);
    let kind = asked.and_then(|asked| {
        let kind = registry.get(asked);
        if kind.is_none() {
            let names: Vec<&str> = registry.iter().map(Kind::name).collect();
            let instead = match nearest(asked, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("known: {}", names.join(", ")),
            };
            mistakes
                .push(section.mistake_at("kind", format!("there is no kind `{asked}`; {instead}")));
        }
        kind.cloned()
    });
    (settings, kind, own)
}

/// What the kind says of its part; an unknown key may have been meant for the hub.
fn kinds_own(checked: Result<(), Vec<Mistake>>) -> Vec<Mistake> {
    let mut mistakes = checked.err().unwrap_or_default();
    for mistake in &mut mistakes {
        let unknown = mistake.text.starts_with("unknown key") && !mistake.text.contains("mean");
        if let Some(near) = nearest(&mistake.path, HUB_KEYS).filter(|_| unknown) {
            mistake.text = format!("unknown key; did you mean `{near}`?");
        }
    }
    mistakes
}

fn consumer(
    name: &str,
    section: &Settings,
    registry: &Registry,
    context: Context,
    sources: &[String],
) -> Result<Consumer, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let (settings, kind, own) =
        instance::<ConsumerSettings>(name, section, registry, &mut mistakes);
    if let Some(kind) = &kind {
        let topics = settings.as_ref().map(ConsumerSettings::prefixes);
        let workers = settings.as_ref().map_or(1, |settings| settings.workers);
        let context =
            (context.reading(topics.unwrap_or_default(), sources.to_vec())).with_workers(workers);
        mistakes.extend(kinds_own(kind.build_consumer(&own, &context).map(drop)));
    }
    if let Some(settings) = &settings {
        let mut wrong = |key: &str, text: &str| mistakes.push(section.mistake_at(key, text));
        if section.get("topics").is_none() {
            wrong("topics", "this key is missing; \"\" is everything");
        } else if settings.topics.is_empty() {
            wrong(
                "topics",
                "an empty list is nothing at all; \"\" is everything",
            );
        }
        let starred = |topic: &&String| topic.trim_end_matches('*').contains('*');
        if let Some(topic) = settings.topics.iter().find(starred) {
            let text = format!(
                "{topic:?} has a `*` that is not at its end: topics are prefixes, so it would \
                 never match"
            );
            wrong("topics", &text);
        }
        if settings.delivery == Delivery::AtMostOnce && section.get("start").is_some() {
            wrong(
                "start",
                "delivery = \"at_most_once\" always begins at the head",
            );
        }
        if settings.lane.as_deref() == Some("") {
            wrong("lane", "expected a name");
        }
        if settings.retry.delay_max < settings.retry.delay {
            wrong(
                "retry.delay_max",
                "expected at least `delay`, with which the pauses begin",
            );
        }
        if !(1..=WORKERS_MAX).contains(&settings.workers) {
            wrong("workers", &format!("expected 1 to {WORKERS_MAX} threads"));
        }
        if settings.queue.messages == 0 {
            wrong("queue.messages", "expected room for at least 1 message");
        }
        if settings.queue.bytes == 0 {
            wrong("queue.bytes", "expected room for at least 1 byte");
        }
        if settings.burst == 0 {
            wrong("burst", "expected at least 1 message");
        }
        if settings.rate.is_none() && section.get("burst").is_some() {
            wrong("burst", "a burst needs a `rate` to be an exception of");
        }
        if let Some(key) = &settings.key {
            if !key.starts_with('/') {
                wrong(
                    "key",
                    "expected a JSON pointer, which begins with `/`, such as \"/msg/id\"",
                );
            }
            if settings.workers == 1 {
                wrong(
                    "key",
                    "one worker keeps the order of all messages; \
                              give `workers` or leave out `key`",
                );
            }
            if settings.queue.overflow == queue::Overflow::DropOldest {
                wrong(
                    "key",
                    "can't be combined with overflow = \"drop_oldest\": messages are \
                              handed to the workers of their keys at once",
                );
            }
        }
    }
    match (settings, kind) {
        (Some(settings), Some(kind)) if mistakes.is_empty() => Ok(Consumer {
            name: name.into(),
            kind,
            settings,
            own,
        }),
        _ => Err(mistakes),
    }
}

fn producer(
    name: &str,
    section: &Settings,
    registry: &Registry,
    context: &Context,
) -> Result<Producer, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let (settings, kind, own) =
        instance::<ProducerSettings>(name, section, registry, &mut mistakes);
    if let Some(kind) = &kind {
        mistakes.extend(kinds_own(kind.build_producer(&own, context).map(drop)));
    }
    if settings
        .as_ref()
        .is_some_and(|settings| settings.interval < Duration::from_millis(1))
    {
        mistakes.push(section.mistake_at("interval", "expected at least 1ms"));
    }
    match (settings, kind) {
        (Some(settings), Some(kind)) if mistakes.is_empty() => Ok(Producer {
            name: name.into(),
            kind,
            interval: settings.interval,
            own,
        }),
        _ => Err(mistakes),
    }
}

impl ConsumerSettings {
    /// The prefixes that its topics mean.
    pub fn prefixes(&self) -> Vec<String> {
        self.topics.iter().map(|topic| prefix(topic)).collect()
    }
}

/// The effective configuration as TOML: every key with what it means, its value, and where a value
/// that is not the default was written.
///
/// Values of keys that name a secret are not shown.
pub fn show(settings: &Settings, registry: &Registry) -> String {
    let mut out = String::new();
    let sample = sample_sections(SAMPLE);
    let mut write = |header: String, section: &Settings, samples: &[&SampleSection]| {
        out.push_str(&format!("{header}\n"));
        let mut shown = Vec::new();
        for sample in samples {
            for entry in &sample.entries {
                out.push_str(&entry.comment);
                let value = section.get(&entry.key);
                match value {
                    Some(value) => out.push_str(&assignment(&entry.key, value)),
                    None => out.push_str(&format!("{} = {}\n", entry.key, entry.value)),
                }
                shown.push(entry.key.clone());
            }
            out.push_str(&sample.trailing);
        }
        for (key, value) in section
            .entries()
            .filter(|(key, _)| !shown.iter().any(|s| s == key))
        {
            out.push_str(&assignment(key, value));
        }
        out.push('\n');
    };
    let empty = Settings::empty(Origin::named(""));
    let section = |name: &str| -> Vec<&SampleSection> { sample.get(name).into_iter().collect() };
    write(
        "[hub]".into(),
        settings.get("hub").unwrap_or(&empty),
        &section("hub"),
    );
    if let Some(list) = settings.get("backend") {
        for backend in list
            .is_table()
            .then_some(list)
            .into_iter()
            .chain(list.items())
        {
            // Whichever way it gets its messages, the sample's address is not where.
            write(
                "[[backend]]".into(),
                &with_lists(backend),
                &section("backend"),
            );
        }
    }
    for name in ["journal", "dead_letters"] {
        let given = settings.get(name).unwrap_or(&empty);
        write(format!("[{name}]"), given, &section(name));
    }
    for name in ["publish", "statsd", "collectd", "moksha", "fedmsg"] {
        if let Some(given) = settings.get(name) {
            let given = match (name, given.as_str()) {
                ("publish", _) => with_lists(given),
                // `collectd = "unixsock:PATH"` stands for a section.
                (_, Some(socket)) => {
                    let mut section = Settings::empty(given.origin().clone());
                    let _ = section.set("socket", &format!("{socket:?}"), given.origin().clone());
                    section
                }
                _ => given.clone(),
            };
            write(format!("[{name}]"), &given, &section(name));
        }
    }
    for (group, common) in [
        ("consumers", "consumers.example"),
        ("producers", "producers.heartbeat"),
    ] {
        for (name, given) in settings.get(group).into_iter().flat_map(Settings::entries) {
            let kind = given.get("kind").map_or(Some(name), Settings::as_str);
            let own = kind.and_then(|kind| registry.get(kind));
            let own = own
                .map(|kind| sample_sections(kind.sample_text()))
                .unwrap_or_default();
            let mut own = own.into_values().next().unwrap_or_default();
            own.entries
                .retain(|entry| !HUB_KEYS.contains(&entry.key.as_str()));
            let mut given = given.clone();
            if given.get("kind").is_none() {
                let _ = given.set(
                    "kind",
                    &format!("{name:?}"),
                    Origin::named("the section's name"),
                );
            }
            let mut samples = section(common);
            samples.push(&own);
            write(format!("[{group}.{name}]"), &given, &samples);
        }
    }
    out.truncate(out.trim_end().len());
    out + "\n"
}

/// `connect` and `bind` have no default that is of use: what is not given is empty.
fn with_lists(section: &Settings) -> Settings {
    let mut section = section.clone();
    for key in ["connect", "bind"] {
        if section.get(key).is_none() {
            let _ = section.set(key, "[]", Origin::named(""));
        }
    }
    section
}

fn assignment(key: &str, value: &Settings) -> String {
    let secret = ["secret", "password", "token"]
        .iter()
        .any(|word| key.contains(word) || value.entries().any(|(inner, _)| inner.contains(word)));
    let origin = value.origin().to_string();
    let from = if origin.is_empty() {
        origin
    } else {
        format!("  # {origin}")
    };
    match secret {
        true => format!("# {key} is set but not shown{from}\n"),
        false => format!("{key} = {value}{from}\n"),
    }
}

/// A section of a sample: its keys in order, with the comments before them.
#[derive(Default)]
struct SampleSection {
    entries: Vec<SampleEntry>,
    /// Comments after the last key: optional keys, commented out.
    trailing: String,
}

struct SampleEntry {
    key: String,
    value: String,
    comment: String,
}

/// Reads a sample line by line: the parser keeps comments, but not those after the last key with
/// the section they belong to.
fn sample_sections(text: &str) -> BTreeMap<String, SampleSection> {
    let mut sections: BTreeMap<String, SampleSection> = BTreeMap::new();
    let mut here = String::new();
    let mut comment = String::new();
    for line in text.lines() {
        if line.starts_with('[') {
            // What stands right above a header belongs to the header; an empty line divides.
            comment.clear();
            here = line.trim_matches(['[', ']']).to_owned();
            sections.entry(here.clone()).or_default();
        } else if line.trim().is_empty() {
            if let Some(section) = sections.get_mut(&here) {
                section.trailing.push_str(&std::mem::take(&mut comment));
            }
            comment.clear();
        } else if line.starts_with('#') {
            comment.push_str(&format!("{line}\n"));
        } else if let (Some((key, value)), Some(section)) =
            (line.split_once(" = "), sections.get_mut(&here))
        {
            section.entries.push(SampleEntry {
                key: key.into(),
                value: value.into(),
                comment: std::mem::take(&mut comment),
            });
        }
    }
    if let Some(section) = sections.get_mut(&here) {
        section.trailing.push_str(&comment);
    }
    sections
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, Mistakes> {
        Config::from_toml(text, "weir.toml", &Registry::builtin())
    }

    fn mistakes(text: &str) -> Vec<String> {
        match read(text) {
            Ok(_) => Vec::new(),
            Err(mistakes) => mistakes.0.iter().map(ToString::to_string).collect(),
        }
    }

    const GOOD: &str = "[[backend]]\nconnect = ['tcp://127.0.0.1:1']\n\
                        [consumers.null]\ntopics = ''\n";

    /// Every default is what the sample says.
    #[test]
    fn the_sample_shows_the_defaults() {
        let sample = read(SAMPLE).unwrap();
        let plain = read(GOOD).unwrap();
        let debug = |hub: &Hub| format!("{hub:?}");
        assert_eq!(debug(&sample.hub), debug(&Hub::default()));
        let Source::Zmq(mut zmq) = sample.backends[0].clone();
        zmq.connect = Vec::new();
        assert_eq!(
            format!("{zmq:?}"),
            format!("{:?}", crate::backend::zmq::Settings::default())
        );
        let mut publish = sample.publish.unwrap();
        publish.bind = Vec::new();
        assert_eq!(
            format!("{publish:?}"),
            format!("{:?}", publisher::Settings::default())
        );
        assert_eq!(sample.statsd, Some(statsd::Settings::default()));
        assert_eq!(sample.collectd, Some(collectd::Settings::default()));
        assert_eq!(sample.moksha, Some(moksha::Settings::default()));
        #[cfg(feature = "fedmsg")]
        assert_eq!(sample.fedmsg, plain.fedmsg);
        let debug = |journal: &journal::Settings| format!("{journal:?}");
        assert_eq!(debug(&sample.journal), debug(&plain.journal));
        let debug = |letters: &dead_letters::Settings| format!("{letters:?}");
        assert_eq!(debug(&sample.dead_letters), debug(&plain.dead_letters));
        let mut settings = sample.consumers[0].settings.clone();
        settings.kind = None;
        assert_eq!(settings, plain.consumers[0].settings);
        assert_eq!(
            sample.producers[0].interval,
            ProducerSettings::default().interval
        );
    }

    /// What the sample shows commented out is right as well.
    #[test]
    fn the_samples_optional_keys_are_read() {
        let text: String = SAMPLE
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key) if key.contains(" = ") && !key.contains("...") => format!("{key}\n"),
                _ => format!("{line}\n"),
            })
            .collect::<String>()
            .replace("workers = 1", "workers = 2");
        let config = read(&text).unwrap();
        let settings = &config.consumers[0].settings;
        assert!(settings.key.is_some() && settings.rate.is_some() && settings.lane.is_some());
    }

    #[test]
    fn every_section_reports_its_mistakes_at_once() {
        let text = "[hub]\nname = 'a b'\nhttp = '0.0.0.0:80'\n\
                    [[backend]]\nconnect = ['127.0.0.1:1']\nrecieve_hwm = 1\n\
                    [consumers.log]\ntopics = []\nworker = 2\n\
                    [consumers.x]\nkind = 'nul'\ntopics = ''\nrate = 'often'\n\
                    [producers.archive]\n[wier]\n";
        let expected = [
            "weir.toml:2:8: hub.name: \"a b\" can't be a name",
            "weir.toml:3:8: hub.http: expected a loopback address",
            "weir.toml:5:12: backend.0.connect.0: `127.0.0.1:1` is no endpoint",
            "weir.toml:6:1: backend.0.recieve_hwm: unknown key; did you mean `receive_hwm`?",
            "weir.toml:8:10: consumers.log.topics: an empty list is nothing at all",
            "weir.toml:9:1: consumers.log.worker: unknown key; did you mean `workers`?",
            "weir.toml:11:8: consumers.x.kind: there is no kind `nul`; did you mean `null`?",
            "weir.toml:13:8: consumers.x.rate: expected a rate such as",
            "weir.toml:14:1: producers.archive: `archive` is a kind of consumer",
            "weir.toml:14:2: producers: producers publish, and there is nowhere to",
            "weir.toml:15:1: wier: unknown section",
        ];
        let found = mistakes(text);
        assert_eq!(found.len(), expected.len(), "{found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}\n{expected}");
        }
    }

    #[test]
    fn mistakes_of_type_and_of_range_come_together_and_once() {
        let text = format!(
            "[hub]\nname = 1\nhttp = '0.0.0.0:80'\n\
             [statsd]\ninterval = 'soon'\nprefix = 'a b'\n\
             [collectd]\nlayout = 'other'\nsocket = 'a'\n\
             [moksha]\nmode = 7\nsocket = 'udp://x'\n\
             [consumers.x]\nkind = 'null'\ntopics = 3\nworkers = 0\n{GOOD}"
        );
        let found = mistakes(&text);
        let paths = [
            "hub.name",
            "hub.http",
            "statsd.interval",
            "statsd.prefix",
            "collectd.layout",
            "collectd.socket",
            "moksha.mode",
            "moksha.socket",
            "consumers.x.topics",
            "consumers.x.workers",
        ];
        for path in paths {
            let told = found
                .iter()
                .filter(|text| text.contains(&format!(" {path}: ")));
            assert_eq!(told.count(), 1, "{path}: {found:#?}");
        }
        assert_eq!(found.len(), paths.len(), "{found:#?}");
    }

    #[test]
    fn no_consumer_and_no_backend_are_mistakes() {
        let found = mistakes("");
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("there is no consumer"));
        assert!(found[1].contains("[[backend]]"));
    }

    #[test]
    fn what_can_not_work_together_is_refused() {
        let with = |more: &str| mistakes(&format!("{GOOD}{more}\n"));
        assert_eq!(with(""), [""; 0]);
        assert!(with("key = '/id'")[0].contains("give `workers`"));
        assert!(with("key = 'id'\nworkers = 2")[0].contains("begins with `/`"));
        assert!(
            with("key = '/id'\nworkers = 2\nqueue.overflow = 'drop_oldest'")[0]
                .contains("drop_oldest")
        );
        assert!(with("burst = 5")[0].contains("needs a `rate`"));
        assert!(with("workers = 0")[0].contains("1 to 256"));
        assert!(with("queue = { messages = 0 }")[0].contains("queue.messages"));
    }

    #[test]
    fn beyond_loopback_there_is_tls_or_nothing() {
        let with = |hub: &str| mistakes(&format!("[hub]\n{hub}\n{GOOD}"));
        let tls = "http_tls = { certificate = 'a.pem', key = 'a.key' }";
        for beyond in ["0.0.0.0:1", "[::]:1", "192.0.2.1:1"] {
            let found = with(&format!("http = '{beyond}'"));
            assert!(found[0].contains("give http_tls"), "{found:?}");
            assert_eq!(with(&format!("http = '{beyond}'\n{tls}")), [""; 0]);
        }
        assert_eq!(with("http = '[::1]:1'"), [""; 0]);
        let found = mistakes(&format!("[hub]\n{tls}\n{GOOD}[journal]\nenabled = false\n"));
        assert!(found[0].contains("needs a token"), "{found:?}");
        assert!(with("http_tls = { key = 'a' }")[0].contains("certificate"));
        assert_eq!(with("http_hosts = ['weir.example.org', 'a:1']"), [""; 0]);
        assert!(with("http_hosts = ['https://a']")[0].contains("weir.example.org"));
    }

    #[test]
    fn layers_go_over_one_another() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weir.toml");
        std::fs::write(&file, format!("[hub]\nname = 'file'\nhttp = ''\n{GOOD}")).unwrap();
        let environment = [
            ("WEIR_HUB__NAME", "environment"),
            ("WEIR_HUB__STOP_DEADLINE", "3s"),
            ("WEIR_LOG", "no setting"),
            ("HOME", "/"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let settings = layers(&file, environment, &["hub.name = assigned".to_owned()]).unwrap();
        let shown = show(&settings, &Registry::builtin());
        let config = Config::from_settings(settings, &Registry::builtin()).unwrap();
        assert_eq!(config.hub.name, "assigned");
        assert_eq!(config.hub.stop_deadline, Duration::from_secs(3));
        assert!(shown.contains("stop_deadline = \"3s\"  # environment WEIR_HUB__STOP_DEADLINE"));
        assert!(layers(&file, [], &["hub.name".to_owned()]).is_err());
        assert!(layers(&dir.path().join("none"), [], &[]).is_err());
    }

    #[test]
    fn what_is_shown_is_the_same_configuration() {
        let registry = Registry::builtin();
        let text = format!(
            "{GOOD}workers = 3\nkey = '/id'\n[statsd]\n[publish]\nbind = ['inproc://x']\n[producers.heartbeat]\n\
             [consumers.archive]\ntopics = 'a'\nurl = 'sqlite:x.db'\n"
        );
        let settings = Settings::from_toml(&text, "weir.toml").unwrap();
        let shown = show(&settings, &registry);
        let again = Config::from_toml(&shown, "shown", &registry).map_err(|m| m.to_string());
        let again = again.unwrap_or_else(|mistakes| panic!("{mistakes}\n{shown}"));
        let first = Config::from_settings(settings, &registry).unwrap();
        for (first, again) in first.consumers.iter().zip(&again.consumers) {
            let settings = ConsumerSettings {
                kind: again.settings.kind.clone(),
                ..first.settings.clone()
            };
            assert_eq!(settings, again.settings);
        }
        assert!(shown.contains("# weir.toml:"), "{shown}");
        assert!(shown.contains("on_error = \"memory\""), "{shown}");
        assert!(shown.contains("url = \"sqlite:x.db\""), "{shown}");
    }

    #[test]
    fn collectd_may_be_a_socket_and_nothing_more() {
        let socket = |text: &str| {
            let config = read(text).map_err(|mistakes| mistakes.to_string()).unwrap();
            config.collectd.unwrap().socket
        };
        let short = format!("collectd = 'unixsock:/a/b'\n{GOOD}");
        assert_eq!(socket(&short), Path::new("/a/b"));
        assert_eq!(
            socket(&format!("{GOOD}[collectd]\nsocket = '/a/b'\n")),
            Path::new("/a/b")
        );
        assert!(mistakes(&format!("collectd = 'a/b'\n{GOOD}"))[0].contains("whole path"));
        let settings = Settings::from_toml(&short, "weir.toml").unwrap();
        let shown = show(&settings, &Registry::builtin());
        assert_eq!(socket(&shown), Path::new("/a/b"), "{shown}");
    }

    #[test]
    fn secrets_are_not_shown() {
        let text = format!("{GOOD}[statsd]\npassword = 'hush'\n");
        let settings = Settings::from_toml(&text, "weir.toml").unwrap();
        assert!(!show(&settings, &Registry::builtin()).contains("hush"));
    }
}
