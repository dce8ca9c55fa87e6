//! The route `email`: mails by SMTP, one recipient each.
//!
//! 1. No text of a message can add a header, a recipient or a command.
//! 2. A mail has a `Message-ID` made of its messages, so that a repeat can be recognised.
//!
//! The connection is kept for the next mail for some seconds, and given up on any error.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use lettre::Address;
use lettre::message::header::{ContentType, Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message as Mail};
use ring::digest::{Context as Hash, SHA256};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use weir_consumer::{Secret, settings};

use crate::delivery::Outcome;
use crate::outbox::Parcel;
use crate::smtp::{Encryption, Opening, Server, Session, Trouble};

/// A subject is cut there.
const SUBJECT_CHARS_MAX: usize = 200;
/// A connection that is not used for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(20);

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Settings {
    server: Server,
    #[serde(default)]
    tls: Encryption,
    ca: Option<PathBuf>,
    user: Option<String>,
    password: Option<Secret>,
    #[serde(deserialize_with = "mailbox")]
    from: Mailbox,
    hello: Option<String>,
    /// For a whole mail, connection included.
    #[serde(default = "five_seconds", deserialize_with = "settings::duration")]
    timeout: Duration,
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}

impl Settings {
    /// What is wrong with the settings as a whole.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.user.is_some() != self.password.is_some() {
            return Some("email: `user` and `password` belong together".into());
        }
        if self.tls == Encryption::None && self.user.is_some() && !self.server.is_local() {
            return Some(
                "email: with `tls = \"none\"` the password could be read on its way; use \
                 \"starttls\" or \"tls\""
                    .into(),
            );
        }
        if self.tls == Encryption::None && self.ca.is_some() {
            return Some("email: `ca` is for `tls = \"starttls\"` or \"tls\"".into());
        }
        if let Some(hello) = &self.hello {
            let known = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
            if hello.is_empty() || !hello.chars().all(known) {
                return Some("email: `hello` has to be the name of a host".into());
            }
        }
        crate::bad_timeout(self.timeout).map(|problem| format!("email: {problem}"))
    }
}

/// An address such as `ann@example.org`; for `#[serde(deserialize_with)]`.
pub(crate) fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Address>, D::Error> {
    let text = String::deserialize(from)?;
    match text.parse::<Address>() {
        Ok(address) if !text.contains(['<', '>', '\r', '\n']) => Ok(Some(address)),
        _ => Err(D::Error::custom(format!(
            "expected an address such as \"ann@example.org\", found {text:?}"
        ))),
    }
}

fn mailbox<'de, D: Deserializer<'de>>(from: D) -> Result<Mailbox, D::Error> {
    let text = String::deserialize(from)?;
    text.parse().map_err(|_| {
        D::Error::custom(format!(
            "expected an address such as \"weir@example.org\" or \"Weir <weir@example.org>\", \
             found {text:?}"
        ))
    })
}

/// Says that nobody should answer, vacation programs least of all (RFC 3834).
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".into())
    }
}

/// What is in a mail.
pub(crate) struct Letter<'l> {
    pub(crate) to: &'l Address,
    pub(crate) subject: &'l str,
    pub(crate) text: String,
    /// Hub and consumer: what makes a message's number unique.
    pub(crate) origin: &'l str,
}

/// The route: its settings, and a session while there is one.
pub(crate) struct Email {
    settings: Settings,
    data_dir: PathBuf,
    session: Option<Kept>,
}

struct Kept {
    session: Session,
    used: Instant,
}

impl Email {
    pub(crate) fn new(settings: Settings, data_dir: &Path) -> Self {
        Email {
            settings,
            data_dir: data_dir.into(),
            session: None,
        }
    }

    /// Closes a connection that is not used any more.
    pub(crate) fn tick(&mut self) {
        if let Some(kept) = self.session.take_if(|kept| kept.used.elapsed() > IDLE_MAX) {
            kept.session.quit(Instant::now() + Duration::from_secs(1));
        }
    }

    pub(crate) fn deliver(&mut self, letter: Letter<'_>, parcel: &Parcel) -> Outcome {
        let mail = match mail(&self.settings.from, &letter, parcel) {
            Ok(mail) => mail,
            Err(text) => {
                return Outcome::Refused {
                    reason: "unsendable",
                    text,
                };
            }
        };
        let deadline = Instant::now() + self.settings.timeout;
        let to: &str = letter.to.as_ref();
        // One that was kept may have been closed meanwhile, which is nobody's trouble.
        if let Some(kept) = self.session.take() {
            match self.send(kept.session, to, &mail, deadline) {
                Err(Trouble::Session(_)) => {}
                sent => return outcome(sent),
            }
        }
        let opened = self.open(deadline);
        outcome(opened.and_then(|session| self.send(session, to, &mail, deadline)))
    }

    fn send(
        &mut self,
        mut session: Session,
        to: &str,
        mail: &[u8],
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let from: &str = self.settings.from.email.as_ref();
        let sent = session.send(from, to, mail, deadline);
        if !matches!(sent, Err(Trouble::Session(_))) {
            let used = Instant::now();
            self.session = Some(Kept { session, used });
        }
        sent
    }

    fn open(&self, deadline: Instant) -> Result<Session, Trouble> {
        let settings = &self.settings;
        let password = match &settings.password {
            Some(secret) => Some(secret.read(&self.data_dir).map_err(Trouble::Session)?),
            None => None,
        };
        let login = settings.user.as_deref().zip(password.as_ref());
        let opening = Opening {
            server: &settings.server,
            tls: settings.tls,
            ca: settings.ca.as_ref().map(|ca| self.data_dir.join(ca)),
            hello: settings.hello.as_deref(),
            login: login.map(|(user, password)| (user, password.expose())),
        };
        Session::open(&opening, deadline)
    }
}

fn outcome(sent: Result<(), Trouble>) -> Outcome {
    match sent {
        Ok(()) => Outcome::Delivered,
        Err(Trouble::Session(text)) => Outcome::Down(text),
        Err(Trouble::Mail {
            text,
            for_good: true,
        }) => Outcome::Refused {
            reason: "refused",
            text,
        },
        Err(Trouble::Mail { text, .. }) => Outcome::Later { text, after: None },
    }
}

fn mail(from: &Mailbox, letter: &Letter<'_>, parcel: &Parcel) -> Result<Vec<u8>, String> {
    let subject = letter.subject.split(char::is_control);
    let subject: Vec<&str> = subject.filter(|part| !part.is_empty()).collect();
    let subject: String = (subject.join(" ").chars())
        .take(SUBJECT_CHARS_MAX)
        .collect();
    let mail = Mail::builder()
        .from(from.clone())
        .to(Mailbox::new(None, letter.to.clone()))
        .subject(subject)
        .date(SystemTime::now())
        .message_id(Some(message_id(from.email.domain(), letter, parcel)))
        .header(AutoSubmitted)
        .header(ContentType::TEXT_PLAIN)
        // NUL has no place in a mail.
        .body(letter.text.replace('\0', "\u{fffd}"));
    Ok(mail.map_err(|error| error.to_string())?.formatted())
}

fn message_id(domain: &str, letter: &Letter<'_>, parcel: &Parcel) -> String {
    let mut hash = Hash::new(&SHA256);
    let to: &str = letter.to.as_ref();
    for part in [letter.origin, "\0", to, "\0"] {
        hash.update(part.as_bytes());
    }
    for notification in &parcel.notifications {
        hash.update(&notification.received_ns.to_be_bytes());
        hash.update(&notification.seq.to_be_bytes());
    }
    let name = crate::hex(&hash.finish().as_ref()[..16]);
    format!("<{name}@{domain}>")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::outbox::{Notification, Recipient};
    use crate::users::Route;

    fn parcel(seq: u64) -> Parcel {
        let recipient = Recipient {
            route: Route::Email,
            user: "ann".into(),
        };
        Parcel {
            id: 1,
            attempts: 0,
            since: 0,
            notifications: vec![Notification {
                received_ns: 7,
                seq,
                recipient,
                digest: false,
                topic: "t".into(),
                subject: "s".into(),
                text: "x".into(),
                body: Vec::new(),
            }],
        }
    }

    fn written(subject: &str, text: &str, seq: u64) -> String {
        let to = "ann@example.org".parse().unwrap();
        let letter = Letter {
            to: &to,
            subject,
            text: text.into(),
            origin: "weir/notify",
        };
        let from = "Weir <weir@example.org>".parse().unwrap();
        String::from_utf8(mail(&from, &letter, &parcel(seq)).unwrap()).unwrap()
    }

    fn header(mail: &str, name: &str) -> String {
        let line = mail.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {mail}")).into()
    }

    #[test]
    fn a_repeat_has_the_same_message_id_and_another_message_another() {
        let id = |seq| header(&written("s", "t", seq), "Message-ID: ");
        assert_eq!(id(1), id(1));
        assert_ne!(id(1), id(2));
        assert!(id(1).ends_with("@example.org>"), "{}", id(1));
    }

    #[test]
    fn a_subject_beyond_ascii_is_encoded() {
        let mail = written("Grüße", "Grüße", 1);
        assert_eq!(header(&mail, "Subject: "), "=?utf-8?b?R3LDvMOfZQ==?=");
        assert!(
            mail.contains("Content-Type: text/plain; charset=utf-8"),
            "{mail}"
        );
        assert!(mail.is_ascii());
    }

    proptest! {
        #[test]
        fn no_text_can_add_a_header(
            subject in "(\r|\n|\r\n|\0|: |Bcc: eve@example.org|\u{2028}|ü|a){0,80}",
            text in "(\r|\n|\r\n\r\n|\\.|Bcc: eve@example.org|ü|a){0,80}",
        ) {
            let mail = written(&subject, &text, 1);
            let (head, _) = mail.split_once("\r\n\r\n").unwrap();
            let names: Vec<&str> = head
                .split("\r\n")
                .filter(|line| !line.starts_with([' ', '\t']))
                .map(|line| line.split_once(": ").unwrap().0)
                .collect();
            let known = [
                "From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Content-Type",
                "Content-Transfer-Encoding", "MIME-Version",
            ];
            prop_assert!(names.iter().all(|name| known.contains(name)), "{head}");
            prop_assert!(!head.replace("\r\n", "").contains(['\r', '\n', '\0']), "{head:?}");
        }
    }
}
