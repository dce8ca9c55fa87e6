//! The kind `notify`: tells people about messages, each by their own preferences.
//!
//! ```text
//! message ─► users.rs: whom, by which routes ─► texts.rs: what they read ─► outbox.rs: a file
//! delivery.rs: what goes out next ─► email.rs (smtp.rs) │ webhook.rs │ weir-irc
//! ```
//!
//! What it promises:
//!
//! 1. A message is settled once all that people are to be told of it is in the outbox, on the disk.
//! 2. What is in the outbox is sent until it is taken or given up, across any crash; it goes out
//!    twice only when it was sent and the answer, or what was noted of it, got lost.
//! 3. One user's or one endpoint's trouble holds up nobody else.
//! 4. Whoever is not told although a rule says so is counted, with the reason.
//! 5. When the outbox is full, messages wait in the hub, where its figures show them.
//!
//! The outbox is worked off on the consumer's thread, after each delivery of the hub and between
//! them, for a second or so at a time. What it leaves to others: the order among users, and telling
//! one user by one route of one message more than once.

mod delivery;
mod email;
mod outbox;
mod smtp;
mod texts;
mod tls;
mod users;
mod webhook;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use metrics::{counter, describe_counter, describe_gauge, gauge};
use serde::Deserialize;
use tracing::{info, warn};
use weir_consumer::{Consumer, Context, Failure, Kind, Message, Result, Verdict, settings};

use delivery::{Delivery, Outcome, PAUSE, Patience, Place, Routes, When};
use email::{Email, Letter};
use outbox::{Notification, Outbox, Parcel, Recipient};
use texts::Texts;
use users::{Digest, Route, User, Users};
use webhook::Webhook;

/// Messages that are stored in one transaction.
const BATCH_MAX: usize = 500;
/// What waits longer for a server would hold up the hub's own stop.
const TIMEOUT_MAX: Duration = Duration::from_secs(8);

#[derive(Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Settings {
    users: Vec<PathBuf>,
    user: Vec<User>,
    /// `NAME.db` in the hub's data directory if it is not said.
    store: Option<PathBuf>,
    outbox: Bounds,
    #[serde(deserialize_with = "settings::duration")]
    give_up: Duration,
    attempts: u64,
    #[serde(deserialize_with = "settings::duration")]
    pause_max: Duration,
    replays: bool,
    texts: Texts,
    email: Option<email::Settings>,
    irc: Option<weir_irc::Server>,
    webhook: Option<webhook::Settings>,
}

/// How much the outbox holds.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Bounds {
    messages: NonZeroUsize,
    #[serde(deserialize_with = "settings::size")]
    bytes: usize,
    /// For one user on one route where nobody else has that trouble.
    each: NonZeroUsize,
}

impl Default for Bounds {
    fn default() -> Self {
        Bounds {
            messages: const { NonZeroUsize::new(100_000).expect("it is not 0") },
            bytes: 256 << 20,
            each: const { NonZeroUsize::new(10_000).expect("it is not 0") },
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            users: Vec::new(),
            user: Vec::new(),
            store: None,
            outbox: Bounds::default(),
            give_up: Duration::from_secs(24 * 3600),
            attempts: 0,
            pause_max: Duration::from_secs(300),
            replays: false,
            texts: Texts::default(),
            email: None,
            irc: None,
            webhook: None,
        }
    }
}

struct Notify {
    name: String,
    hub: String,
    store: PathBuf,
    bounds: Bounds,
    replays: bool,
    routes: Ways,
    delivery: Delivery,
    /// None before the first message and after an error.
    outbox: Option<Outbox>,
    /// Whether the log has it that the outbox can't be used.
    broken: bool,
}

/// The ways out, and who is reached by them.
struct Ways {
    users: Users,
    texts: Texts,
    /// Hub and consumer.
    origin: String,
    configured: Vec<Route>,
    email: Option<Email>,
    irc: Option<weir_irc::Connection>,
    webhook: Option<Webhook>,
}

/// The kind `notify`.
pub fn kind() -> Kind {
    Kind::consumer("notify", build)
        .summary("tells people about messages by mail, IRC and webhooks, each by their own rules")
        .sample(include_str!("../sample.toml"))
}

fn build(settings: Settings, context: &Context) -> Result<Notify> {
    let data_dir = context.data_dir();
    let mut configured = Vec::new();
    let mut mistakes = Vec::new();
    if let Some(email) = &settings.email {
        configured.push(Route::Email);
        mistakes.extend(email.problem());
    }
    if let Some(irc) = &settings.irc {
        configured.push(Route::Irc);
        mistakes.extend(irc.problem().map(|problem| format!("irc: {problem}")));
    }
    if let Some(webhook) = &settings.webhook {
        configured.push(Route::Webhook);
        mistakes.extend(webhook.problem());
    }
    if configured.is_empty() {
        mistakes.push(
            "no route is configured; add a section `email`, `irc` or `webhook` (see \
             `weir kinds notify`)"
                .into(),
        );
    }
    if settings.pause_max < PAUSE {
        mistakes.push("`pause_max` has to be at least 1s, which the first pause is".into());
    }
    let users = Users::read(settings.user, &settings.users, data_dir, &configured);
    let users = users.unwrap_or_else(|more| {
        mistakes.extend(more);
        Users::default()
    });
    if !mistakes.is_empty() {
        return Err(Failure::halt(mistakes.join("\n")));
    }
    describe(&configured);
    let store = (settings.store).unwrap_or_else(|| format!("{}.db", context.name()).into());
    let patience = Patience {
        give_up: settings.give_up,
        attempts: settings.attempts,
        pause_max: settings.pause_max,
    };
    Ok(Notify {
        name: context.name().into(),
        hub: context.hub().into(),
        store: data_dir.join(store),
        bounds: settings.outbox,
        replays: settings.replays,
        routes: Ways {
            users,
            texts: settings.texts,
            origin: format!("{}/{}", context.hub(), context.name()),
            configured,
            email: (settings.email).map(|email| Email::new(email, data_dir)),
            irc: (settings.irc).map(|server| weir_irc::Connection::shared(&server, data_dir)),
            webhook: (settings.webhook).map(|webhook| Webhook::new(webhook, data_dir)),
        },
        delivery: Delivery::new(context.name(), patience),
        outbox: None,
        broken: false,
    })
}

/// Says what the figures are, and has them all from the start: a rate needs the 0 before the first.
fn describe(configured: &[Route]) {
    describe_gauge!(
        "notify_outbox_messages",
        "Notifications that wait in the outbox: one for each message, user and route."
    );
    describe_counter!(
        "notify_delivered_total",
        "Notifications that were delivered: a digest of 40 messages counts 40."
    );
    describe_counter!(
        "notify_given_up_total",
        "Notifications that will never be delivered, by reason."
    );
    describe_counter!(
        "notify_texts_failed_total",
        "Notifications whose template asked for what the message lacks."
    );
    describe_counter!(
        "notify_replayed_total",
        "Messages that nobody is told of because they were replayed or requeued."
    );
    for route in configured {
        let name = route.name();
        counter!("notify_delivered_total", "route" => name).increment(0);
        for reason in delivery::reasons(*route) {
            counter!("notify_given_up_total", "route" => name, "reason" => *reason).increment(0);
        }
    }
    counter!("notify_texts_failed_total").increment(0);
    counter!("notify_replayed_total").increment(0);
}

impl Consumer for Notify {
    fn consume(&mut self, message: &Message) -> Result {
        self.consume_batch(std::slice::from_ref(message))
    }

    fn batch_max(&self) -> usize {
        BATCH_MAX
    }

    fn consume_batch(&mut self, batch: &[Message]) -> Result {
        let taken = self.take(batch);
        // Also when there is no room: no tick comes while the hub waits before it tries again.
        self.measure();
        taken
    }

    fn tick(&mut self) -> Result {
        if let Some(email) = &mut self.routes.email {
            email.tick();
        }
        if let Some(irc) = &self.routes.irc {
            irc.tick();
        }
        self.work(When::AtTick);
        self.measure();
        Ok(())
    }
}

impl Notify {
    /// Stores what people are to be told of these messages, and begins to tell them.
    fn take(&mut self, batch: &[Message]) -> Result {
        let new = self.guarded(|notify| notify.notifications(batch))?;
        if !new.is_empty() {
            if !self.has_room(&new) {
                self.work(When::AtTick);
            }
            if !self.has_room(&new) {
                return Err(Failure::retry(self.full()));
            }
            self.guarded(|notify| notify.opened()?.store(&new))?;
        }
        // What is stored is stored: whatever happens now is no reason to bring it again.
        self.work(When::AfterMessages);
        Ok(())
    }

    /// The outbox, opened if it is not.
    fn opened(&mut self) -> Result<&mut Outbox> {
        let outbox = match self.outbox.take() {
            Some(outbox) => outbox,
            None => Outbox::open(&self.store)?,
        };
        Ok(self.outbox.insert(outbox))
    }

    /// Does something with the outbox; an error discards the connection, which undoes what was not
    /// committed, and the next attempt opens it as the first one did.
    fn guarded<T>(&mut self, mut act: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let done = act(self);
        if done.is_err() {
            self.outbox = None;
        }
        done
    }

    /// What people are to be told of these messages, as far as it was not in the outbox before.
    fn notifications(&mut self, batch: &[Message]) -> Result<Vec<Notification>> {
        let mut new = Vec::new();
        for message in batch {
            if message.replayed() && !self.replays {
                counter!("notify_replayed_total").increment(1);
                continue;
            }
            let matches = self.routes.users.told_of(message);
            if matches.is_empty() {
                continue;
            }
            let outbox = match &mut self.outbox {
                Some(outbox) => outbox,
                closed => closed.insert(Outbox::open(&self.store)?),
            };
            // A replay is wanted again, whatever is known.
            if !message.replayed() && outbox.knows(message.received_ns(), message.seq())? {
                continue;
            }
            for told in matches {
                let recipient = Recipient {
                    route: told.route,
                    user: told.user.name.clone(),
                };
                // Holding up everybody would not help somebody whose own trouble fills the outbox.
                if outbox.waiting_for(&recipient).messages >= self.bounds.each.get()
                    && self.routes.own_trouble(&self.delivery, &recipient)
                {
                    (self.delivery).given_up(&recipient, "full", 1, "too much waits for this user");
                    continue;
                }
                let made = self.routes.texts.of(message, &told);
                if let Some(problem) = &made.problem {
                    counter!("notify_texts_failed_total").increment(1);
                    warn!(
                        consumer = self.name,
                        user = told.user.name,
                        rule = told.rule,
                        problem,
                        "the text can't be made of this message; its topic is told instead"
                    );
                }
                // A webhook's text is in its body.
                let (text, body) = match told.route {
                    Route::Email | Route::Irc => (made.text, Vec::new()),
                    Route::Webhook => {
                        let body = webhook::body(&self.hub, &recipient.user, message, &made.text);
                        (String::new(), body)
                    }
                };
                new.push(Notification {
                    received_ns: message.received_ns(),
                    seq: message.seq(),
                    recipient,
                    digest: told.digest,
                    topic: message.topic().into(),
                    subject: made.subject,
                    text,
                    body,
                });
            }
        }
        Ok(new)
    }

    fn has_room(&self, new: &[Notification]) -> bool {
        let bytes: usize = new.iter().map(Notification::bytes).sum();
        self.outbox.as_ref().is_none_or(|outbox| {
            // Into an empty one goes a message however many are told of it: it would never fit.
            outbox.messages() == 0
                || (outbox.messages() + new.len() <= self.bounds.messages.get()
                    && outbox.bytes() + bytes <= self.bounds.bytes)
        })
    }

    fn full(&self) -> String {
        let (messages, bytes) =
            (self.outbox.as_ref()).map_or((0, 0), |outbox| (outbox.messages(), outbox.bytes()));
        format!(
            "the outbox is full: {messages} notifications of {bytes} bytes wait (`outbox` bounds \
             them); the log has which route does not deliver"
        )
    }

    /// Works at the outbox for a while.
    fn work(&mut self, when: When) {
        if self.outbox.is_none() && !self.store.exists() {
            return; // nobody was ever told anything
        }
        let worked = self.guarded(|notify| {
            notify.opened()?;
            match &mut notify.outbox {
                Some(outbox) => notify.delivery.work(outbox, &mut notify.routes, when),
                None => Ok(()),
            }
        });
        match (&worked, self.broken) {
            (Err(problem), false) => {
                warn!(consumer = self.name, %problem, "the outbox can't be used; trying again");
            }
            (Ok(()), true) => info!(consumer = self.name, "the outbox can be used again"),
            _ => {}
        }
        self.broken = worked.is_err();
    }

    fn measure(&self) {
        if self.outbox.is_none() && self.store.exists() {
            return; // what is in it is not known now
        }
        for route in &self.routes.configured {
            let of_route = (self.outbox.iter())
                .flat_map(|outbox| outbox.waiting())
                .filter(|(recipient, _)| recipient.route == *route);
            let messages: usize = of_route.map(|(_, waiting)| waiting.messages).sum();
            gauge!("notify_outbox_messages", "route" => route.name()).set(messages as f64);
        }
    }
}

impl Ways {
    fn own_trouble(&self, delivery: &Delivery, recipient: &Recipient) -> bool {
        (self.place(recipient)).is_some_and(|place| delivery.own_trouble(recipient, &place))
    }
}

impl Routes for Ways {
    fn place(&self, recipient: &Recipient) -> Option<Place> {
        let user = self.users.named(&recipient.user)?;
        let (group, endpoint) = match recipient.route {
            Route::Email => (
                "email".to_owned(),
                user.email.as_ref().map(ToString::to_string),
            ),
            Route::Irc => (
                "irc".to_owned(),
                user.irc.as_ref().map(|target| target.0.clone()),
            ),
            Route::Webhook => match &user.webhook {
                Some(url) => (url.origin.clone(), Some(url.uri.to_string())),
                None => (String::new(), None),
            },
        };
        let endpoint = format!("{} {}", recipient.route.name(), endpoint?);
        let configured = self.configured.contains(&recipient.route);
        configured.then_some(Place { group, endpoint })
    }

    fn digest(&self, recipient: &Recipient) -> Option<&Digest> {
        self.users.named(&recipient.user)?.digest.as_ref()
    }

    fn deliver(&mut self, recipient: &Recipient, parcel: &Parcel) -> Outcome {
        let nowhere = || Outcome::Refused {
            reason: "no_address",
            text: "there is no such address any more".into(),
        };
        let (Some(user), Some(first)) = (
            self.users.named(&recipient.user),
            parcel.notifications.first(),
        ) else {
            return nowhere();
        };
        match recipient.route {
            Route::Email => {
                let (Some(to), Some(email)) = (&user.email, &mut self.email) else {
                    return nowhere();
                };
                let digest = (parcel.notifications.len() > 1)
                    .then(|| self.texts.digest(&recipient.user, parcel));
                let (subject, text) = match digest {
                    Some(digest) => (digest.subject, digest.text),
                    None => (first.subject.clone(), first.text.clone()),
                };
                let letter = Letter {
                    to,
                    subject: &subject,
                    text,
                    origin: &self.origin,
                };
                email.deliver(letter, parcel)
            }
            Route::Irc => match (&user.irc, &self.irc) {
                (Some(target), Some(irc)) => posted(irc.post(&target.0, &first.text)),
                _ => nowhere(),
            },
            Route::Webhook => match (&user.webhook, &mut self.webhook) {
                (Some(url), Some(webhook)) => webhook.deliver(url, &first.body),
                _ => nowhere(),
            },
        }
    }
}

/// What became of a line on IRC.
fn posted(posted: Result) -> Outcome {
    let Err(failure) = posted else {
        return Outcome::Delivered;
    };
    let text = failure.to_string();
    match failure.verdict() {
        // Of the nick's or of the server's, who knows.
        Verdict::Retry => Outcome::Silent(text),
        Verdict::Halt => Outcome::Down(text),
        Verdict::Drop | Verdict::DeadLetter => Outcome::Refused {
            reason: "refused",
            text,
        },
    }
}

/// What is wrong with a time-out.
fn bad_timeout(timeout: Duration) -> Option<String> {
    (timeout.is_zero() || timeout > TIMEOUT_MAX).then(|| {
        format!(
            "`timeout` has to be more than 0 and at most {}: a stop of the hub waits for it",
            humantime::format_duration(TIMEOUT_MAX)
        )
    })
}

/// Bytes as people write them.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use metrics_util::debugging::{DebugValue, DebuggingRecorder};
    use weir_consumer::Publisher;
    use weir_consumer::testkit::{Harness, build, conformance, sample_settings};

    use super::*;

    const NOBODY_LISTENS: &str = "give_up = '1h'
        email = { server = '127.0.0.1:1', tls = 'none', from = 'weir@example.org' }
        user = [{ name = 'ann', email = 'ann@example.org', rules = [{ topics = ['org.'] }] }]
    ";

    fn notify(dir: &Path, toml: &str) -> Harness<Notify> {
        let settings = settings::Settings::from_toml(toml, "t")
            .unwrap()
            .parse()
            .unwrap();
        let context = Context::new("notify", dir, Publisher::nowhere());
        Harness::new(super::build(settings, &context).unwrap())
    }

    fn waiting(notify: &mut Harness<Notify>) -> usize {
        notify.consumer().outbox.as_ref().unwrap().messages()
    }

    fn mistakes(toml: &str) -> Vec<String> {
        let mistakes = build(&kind(), toml, Path::new("/nowhere")).err().unwrap();
        mistakes.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_sample_shows_the_defaults() {
        let sample: Settings = sample_settings(&kind()).parse().unwrap();
        assert!(sample.email.is_some() && sample.user.len() == 1);
        assert_eq!(sample.webhook, Some(webhook::Settings::default()));
        let rest = Settings {
            email: None,
            webhook: None,
            user: Vec::new(),
            ..sample
        };
        assert_eq!(rest, Settings::default());
    }

    #[test]
    fn what_the_sample_shows_commented_out_is_right_too() {
        let all = include_str!("../sample.toml")
            .replace("\n# ", "\n")
            .lines()
            .fold(String::new(), |all, line| {
                match line.contains(" = ") || line.starts_with('[') {
                    true => all + line + "\n",
                    false => all,
                }
            });
        // `tls = "none"` knows no certificates.
        let all = all.replace("tls = \"none\"", "tls = \"tls\"");
        let sections = settings::Settings::from_toml(&all, "sample").unwrap();
        let section = sections
            .get("consumers")
            .and_then(|all| all.get("notify"))
            .unwrap();
        let (_, own) = section.clone().split(&weir_consumer::HUB_KEYS);
        let (publisher, _) = weir_consumer::testkit::recorder();
        let context = Context::new("notify", Path::new("/nowhere"), publisher);
        let built = kind().build_consumer(&own, &context);
        assert!(built.is_ok(), "{:?}", built.err());
    }

    #[test]
    fn bad_settings_are_refused_with_what_would_be_right() {
        assert_eq!(
            mistakes(
                "give_up = 1\noutbox = { messages = 0 }\nemial = {}\n[email]\nserver = 'a b'\n\
             from = 'nobody'"
            ),
            [
                "notify:1:11: give_up: expected a text in quotes, found the number 1",
                "notify:2:23: outbox.messages: expected a whole number of at least 1, found the \
                 number 0",
                "notify:3:1: emial: unknown key; did you mean `email`?",
                "notify:5:10: email.server: expected a host and a port such as \
                 \"smtp.example.org:587\", found \"a b\"",
                "notify:6:8: email.from: expected an address such as \"weir@example.org\" or \
                 \"Weir <weir@example.org>\", found \"nobody\"",
            ]
        );
        let told = mistakes(
            "[email]\nserver = 'mail.example.org'\nfrom = 'a@example.org'\n\
             tls = 'none'\nuser = 'a'\npassword = { env = 'P' }\n[webhook]\ntimeout = '1m'",
        );
        let told = told.join("\n");
        for part in [
            "email: with `tls = \"none\"` the password could be read on its way",
            "webhook: `timeout` has to be more than 0 and at most 8s",
            "nobody is to be told of anything",
        ] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
        let never = mistakes(&format!("pause_max = '0s'\n{NOBODY_LISTENS}")).join("");
        assert!(
            never.contains("`pause_max` has to be at least 1s"),
            "{never}"
        );
        let none = mistakes("user = [{ name = 'ann', rules = [{ topics = [''] }] }]").join("");
        assert!(none.contains("no route is configured"), "{none}");
    }

    #[test]
    fn building_creates_nothing_and_nobody_told_neither() {
        let dir = tempfile::tempdir().unwrap();
        let mut notify = notify(dir.path(), NOBODY_LISTENS);
        assert_eq!(notify.feed("net.other", "{}"), Ok(()));
        notify.consumer().tick().unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn it_stands_what_every_consumer_has_to_stand() {
        let dir = tempfile::tempdir().unwrap();
        let toml = "webhook = {}
            email = { server = '127.0.0.1:1', tls = 'none', from = 'weir@example.org' }
            [[user]]
            name = 'ann'
            email = 'ann@example.org'
            webhook = 'http://127.0.0.1:1/'
            digest = {}
            rules = [{ topics = [''], format = '{{ json.msg.id }}' }]";
        let mut number = 0;
        conformance(|| {
            number += 1;
            build(&kind(), toml, &dir.path().join(number.to_string())).unwrap()
        });
    }

    #[test]
    fn a_message_is_settled_when_its_notifications_are_stored_and_is_stored_once() {
        let dir = tempfile::tempdir().unwrap();
        let message = Message::at_ns("org.a".into(), "{}".into(), 7, 1);
        let mut first = notify(dir.path(), NOBODY_LISTENS);
        first.consumer().consume(&message).unwrap();
        assert_eq!(waiting(&mut first), 1);
        first.consumer().consume(&message).unwrap();
        drop(first);
        // As after a crash: the hub brings it again.
        let mut second = notify(dir.path(), NOBODY_LISTENS);
        second.consumer().consume(&message).unwrap();
        assert_eq!(waiting(&mut second), 1);
    }

    #[test]
    fn a_replay_is_told_only_if_it_is_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let message = Message::again("org.a".into(), "{}".into(), 7, 1);
        let mut quiet = notify(dir.path(), NOBODY_LISTENS);
        quiet.consumer().consume(&message).unwrap();
        assert!(quiet.consumer().outbox.is_none());
        let mut loud = notify(dir.path(), &format!("replays = true\n{NOBODY_LISTENS}"));
        loud.consumer().consume(&message).unwrap();
        assert_eq!(waiting(&mut loud), 1);
    }

    #[test]
    fn a_full_outbox_lets_messages_wait_in_the_hub() {
        let dir = tempfile::tempdir().unwrap();
        let toml = format!("outbox = {{ messages = 2 }}\n{NOBODY_LISTENS}");
        let mut full = notify(dir.path(), &toml);
        assert_eq!(full.feed("org.a", "1"), Ok(()));
        assert_eq!(full.feed("org.a", "2"), Ok(()));
        assert_eq!(full.feed("org.a", "3"), Err(Verdict::Retry));
        let told = full.last_failure().unwrap();
        assert!(
            told.starts_with("the outbox is full: 2 notifications"),
            "{told}"
        );
        assert_eq!(full.feed("net.other", "4"), Ok(()));
        // What could never fit goes into an empty one.
        let dir = tempfile::tempdir().unwrap();
        let toml = format!("outbox = {{ bytes = 1 }}\n{NOBODY_LISTENS}");
        let mut small = notify(dir.path(), &toml);
        assert_eq!(small.feed("org.a", "1"), Ok(()));
        assert_eq!(small.feed("org.a", "2"), Err(Verdict::Retry));
    }

    /// The figures after this, as `name value value of a label ...`.
    fn figures(act: impl FnOnce()) -> BTreeMap<String, f64> {
        let recorder = DebuggingRecorder::new();
        metrics::with_local_recorder(&recorder, act);
        let all = recorder.snapshotter().snapshot().into_vec().into_iter();
        all.map(|(key, _, help, value)| {
            let mut name = key.key().name().to_owned();
            assert!(help.is_some(), "{name} is not described");
            for label in key.key().labels() {
                name = format!("{name} {}", label.value());
            }
            let value = match value {
                DebugValue::Counter(count) => count as f64,
                DebugValue::Gauge(value) => value.0,
                DebugValue::Histogram(_) => panic!("{name} is a histogram"),
            };
            (name, value)
        })
        .collect()
    }

    #[test]
    fn all_counters_are_there_from_the_start() {
        let figures = figures(|| {
            notify(
                Path::new("/nowhere"),
                &format!("webhook = {{}}\n{NOBODY_LISTENS}"),
            );
        });
        let mut expected = vec!["notify_replayed_total", "notify_texts_failed_total"];
        expected.extend([
            "notify_delivered_total email",
            "notify_delivered_total webhook",
            "notify_given_up_total email attempts",
            "notify_given_up_total email expired",
            "notify_given_up_total email full",
            "notify_given_up_total email no_address",
            "notify_given_up_total email refused",
            "notify_given_up_total email unsendable",
            "notify_given_up_total webhook attempts",
            "notify_given_up_total webhook expired",
            "notify_given_up_total webhook full",
            "notify_given_up_total webhook no_address",
            "notify_given_up_total webhook refused",
        ]);
        expected.sort_unstable();
        assert_eq!(figures.keys().collect::<Vec<_>>(), expected);
        assert!(figures.values().all(|value| *value == 0.0), "{figures:?}");
    }

    #[test]
    fn what_waits_is_measured_also_when_there_is_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let toml = format!("outbox = {{ messages = 2 }}\n{NOBODY_LISTENS}");
        // Without a tick between them.
        let full = figures(|| {
            let mut full = notify(dir.path(), &toml);
            assert_eq!(full.feed("org.a", "1"), Ok(()));
            assert_eq!(full.feed("org.a", "2"), Ok(()));
            assert_eq!(full.feed("org.a", "3"), Err(Verdict::Retry));
        });
        assert_eq!(full["notify_outbox_messages email"], 2.0);
        // After a start, with an outbox that has no room.
        let again = figures(|| {
            let mut again = notify(dir.path(), &toml);
            assert_eq!(again.feed("org.a", "4"), Err(Verdict::Retry));
        });
        assert_eq!(again["notify_outbox_messages email"], 2.0);
        let ticked = figures(|| notify(dir.path(), &toml).consumer().tick().unwrap());
        assert_eq!(ticked["notify_outbox_messages email"], 2.0);
    }

    #[test]
    fn what_waits_is_not_said_to_be_nothing_while_it_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let figures = figures(|| {
            let mut one = notify(dir.path(), NOBODY_LISTENS);
            assert_eq!(one.feed("org.a", "1"), Ok(()));
            one.consumer().outbox = None; // as after an error
            one.consumer().measure();
        });
        assert_eq!(figures["notify_outbox_messages email"], 1.0);
    }

    #[test]
    fn one_whose_own_endpoint_fails_fills_only_a_part() {
        let dir = tempfile::tempdir().unwrap();
        let toml = "webhook = {}
            outbox = { messages = 10, each = 2 }
            [[user]]
            name = 'ann'
            webhook = 'http://127.0.0.1:1/'
            rules = [{ topics = [''] }]";
        let mut part = notify(dir.path(), toml);
        for _ in 0..20 {
            assert_eq!(part.feed("org.a", ""), Ok(()));
        }
        assert_eq!(waiting(&mut part), 2);
    }

    #[test]
    fn a_text_that_can_not_be_made_tells_the_topic() {
        let dir = tempfile::tempdir().unwrap();
        let toml = NOBODY_LISTENS.replace("['org.']", "['org.'], format = '{{ json.id }}'");
        let mut lacking = notify(dir.path(), &toml);
        assert_eq!(lacking.feed("org.a", "{}"), Ok(()));
        let outbox = lacking.consumer().outbox.as_ref().unwrap();
        let recipient = outbox.waiting().keys().next().unwrap();
        let parcel = outbox.next(recipient).unwrap().unwrap();
        assert_eq!(
            parcel.notifications[0].text,
            "org.a\n(template, line 1: `json.id` is undefined)"
        );
    }

    #[test]
    fn a_broken_outbox_is_opened_again() {
        let dir = tempfile::tempdir().unwrap();
        let in_the_way = dir.path().join("data");
        std::fs::write(&in_the_way, "").unwrap();
        let mut broken = notify(&in_the_way, NOBODY_LISTENS);
        assert_eq!(broken.feed("org.a", ""), Err(Verdict::Retry));
        broken.consumer().tick().unwrap();
        std::fs::remove_file(&in_the_way).unwrap();
        assert_eq!(broken.feed("org.a", ""), Ok(()));
        assert_eq!(waiting(&mut broken), 1);
    }

    #[test]
    fn digests_are_made_of_their_messages() {
        let texts = Texts::default();
        let recipient = Recipient {
            route: Route::Email,
            user: "ann".into(),
        };
        let one = |seq: u64| Notification {
            received_ns: 1_700_000_000_000_000_000,
            seq,
            recipient: recipient.clone(),
            digest: true,
            topic: format!("org.{seq}"),
            subject: format!("subject {seq}"),
            text: format!("text {seq}"),
            body: Vec::new(),
        };
        let mut parcel = Parcel {
            id: 1,
            attempts: 0,
            since: 0,
            notifications: vec![one(1), one(2)],
        };
        let digest = texts.digest("ann", &parcel);
        assert_eq!(digest.subject, "2 messages, the last of org.2");
        assert_eq!(
            digest.text,
            "2023-11-14 22:13:20 UTC subject 1\ntext 1\n\n2023-11-14 22:13:20 UTC subject 2\n\
             text 2\n\n"
        );
        assert_eq!(digest.problem, None);
        // As many as a digest can have are no trouble for the template's own bounds.
        parcel.notifications = (0..1000).map(one).collect();
        assert_eq!(texts.digest("ann", &parcel).problem, None);
    }
}
