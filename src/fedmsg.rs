//! Whether a message is what a publisher of fedmsg has signed.
//!
//! A [`Validator`] is the hub's; each worker of a consumer that asks for it has a [`Checker`], a
//! [`Filter`]. The rules are those of fedmsg 1.1.7, in this order, and the first that is broken gives
//! the reason:
//!
//! 1. the payload is a JSON object that is signed by way of `x509`, and its topic is the message's
//! 2. the certificate is signed by the CA, in date, and not in the CRL, which is in date too
//! 3. the signature is the certificate's over the text that [`canonical`] makes
//! 4. the routing policy lets a certificate of this common name send on this topic
//!
//! And of the files: what has changed is read again; what can't be used then changes nothing, and
//! is logged and counted.
//!
//! Left to others: what happens to a message that is refused (`runner`).

mod base64;
pub mod canonical;
mod certificates;
mod verdicts;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, RwLock};
use serde::Deserialize;
use tracing::{error, info, warn};
use weir_consumer::Message;
use weir_consumer::settings::{self, Mistake};

use crate::filter::{Filter, Judged};
use crate::stats::Reason;
use canonical::{Document, Edit};
use certificates::{Authority, BadFile, Signer};
use verdicts::{Known, Verdicts};

/// How often somebody looks whether the files have changed.
const LOOK: Duration = Duration::from_secs(10);
/// Signers that a worker remembers, by the text of their certificates: one for each service and
/// host. One who writes a certificate in a thousand ways crowds out the others, and no more.
const SIGNERS_MAX: usize = 512;
/// A certificate of more characters, in base64 of PEM, is not read. Most have 2 to 4 thousand.
const CERTIFICATE_MAX: usize = 16 << 10;
/// Messages that are judged at a time, at least.
const AHEAD: usize = 64;

/// The `[fedmsg]` section; `src/sample.toml` explains each key.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)] // said in the sample, which a test holds against this
pub struct Settings {
    pub ca: PathBuf,
    pub crl: PathBuf,
    pub validate: bool,
    pub routing_policy: BTreeMap<String, Vec<String>>,
    pub routing_nitpicky: bool,
}

impl Settings {
    /// Reads the section, and the files that it names.
    ///
    /// # Errors
    /// Every mistake in it, in the files too.
    pub fn from_settings(section: &settings::Settings) -> Result<Self, Vec<Mistake>> {
        let (settings, mut mistakes) = section.parse_most::<Settings>();
        let Some(settings) = settings else {
            return Err(mistakes);
        };
        let mut wrong = |key: &str, text: &str| mistakes.push(section.mistake_at(key, text));
        if settings.can_validate() {
            if let Err(bad) = Authority::read(&settings.ca, &settings.crl) {
                wrong(bad.key, &bad.why);
            }
        } else if settings.validate {
            wrong("validate", NO_CA);
        } else if !settings.crl.as_os_str().is_empty() {
            wrong("crl", "expected `ca` beside it, which has signed it");
        }
        let starred = |topic: &&String| topic.contains('*') || topic.is_empty();
        if let Some(topic) = settings.routing_policy.keys().find(starred) {
            let text = format!("expected whole topics, found {topic:?}: no prefixes here");
            wrong("routing_policy", &text);
        }
        match mistakes.is_empty() {
            true => Ok(settings),
            false => Err(mistakes),
        }
    }

    /// Whether there is a CA to validate by.
    pub fn can_validate(&self) -> bool {
        !self.ca.as_os_str().is_empty()
    }
}

/// What is missing of a section that is to validate.
pub const NO_CA: &str = "nothing says whom to believe: give `ca = \"FILE\"` in the section \
                         [fedmsg], the CA's certificate in PEM";

/// Why a message is not valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The reason under which it is counted.
    pub reason: Reason,
    /// What exactly is wrong, for the log.
    pub why: String,
}

impl Refused {
    fn new(reason: Reason, why: impl Into<String>) -> Self {
        Refused {
            reason,
            why: why.into(),
        }
    }
}

/// The files as they were when they were read.
#[derive(PartialEq)]
struct Stamps([Option<(SystemTime, u64, u64)>; 2]);

impl Stamps {
    fn of(settings: &Settings) -> Self {
        let stamp = |path: &Path| {
            let file = std::fs::metadata(path).ok()?;
            Some((file.modified().ok()?, file.len(), file.ino()))
        };
        Stamps([stamp(&settings.ca), stamp(&settings.crl)])
    }
}

/// What all workers of a hub validate by.
pub struct Validator {
    settings: Settings,
    authority: RwLock<Arc<Authority>>,
    /// Grows with each authority.
    generation: AtomicU64,
    stamps: Mutex<Stamps>,
    reload_errors: Arc<AtomicU64>,
    verdicts: Verdicts,
}

impl Validator {
    /// Reads the files.
    ///
    /// # Errors
    /// Which file can't be used and why.
    pub fn open(settings: &Settings) -> Result<Self, String> {
        // Before they are read: what changes in between is read once more.
        let stamps = Stamps::of(settings);
        let authority = Authority::read(&settings.ca, &settings.crl).map_err(|bad| told(&bad))?;
        if let Err(refused) = authority.out_of_date(unix_now()) {
            let why = refused.why;
            warn!(why, "validation refuses all messages until it is replaced");
        }
        Ok(Validator {
            settings: settings.clone(),
            authority: RwLock::new(Arc::new(authority)),
            generation: AtomicU64::new(0),
            stamps: Mutex::new(stamps),
            reload_errors: Arc::default(),
            verdicts: Verdicts::default(),
        })
    }

    /// Whether consumers that say nothing of it get only what is valid.
    pub fn is_default(&self) -> bool {
        self.settings.validate
    }

    /// How often a file had changed and could not be used.
    pub fn reload_errors(&self) -> &Arc<AtomicU64> {
        &self.reload_errors
    }

    /// Reads the files again if they have changed; nobody waits for whoever is at it.
    pub fn look(&self) {
        let Some(mut stamps) = self.stamps.try_lock() else {
            return;
        };
        let now = Stamps::of(&self.settings);
        if *stamps == now {
            return;
        }
        *stamps = now;
        match Authority::read(&self.settings.ca, &self.settings.crl) {
            Ok(authority) => {
                let mut held = self.authority.write();
                *held = Arc::new(authority);
                // With the lock held, so that nobody takes the new one for the old generation.
                self.generation.fetch_add(1, Ordering::Release);
                info!("the CA or its CRL has changed and is in force");
            }
            Err(bad) => {
                self.reload_errors.fetch_add(1, Ordering::Relaxed);
                let why = told(&bad);
                error!(why, "the CA and CRL from before stay in force");
            }
        }
    }

    /// The routing policy's word.
    fn allows(&self, topic: &str, signer: &str) -> Result<(), Refused> {
        let refused = |why| Err(Refused::new(Reason::NotAllowed, why));
        match self.settings.routing_policy.get(topic) {
            Some(signers) if signers.iter().any(|known| known == signer) => Ok(()),
            Some(_) => refused(format!("{signer} may not send on this topic")),
            None if self.settings.routing_nitpicky => {
                refused(format!("no policy for this topic; signed by {signer}"))
            }
            None => Ok(()),
        }
    }
}

fn told(bad: &BadFile) -> String {
    format!("fedmsg.{}: {}", bad.key, bad.why)
}

fn unix_now() -> i64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.unwrap_or_default().as_secs() as i64
}

/// One worker's way to validate: it remembers signers, so that a certificate is parsed and verified
/// once.
pub struct Checker {
    validator: Arc<Validator>,
    /// For the log.
    consumer: String,
    authority: Arc<Authority>,
    generation: u64,
    /// By the certificate as the message has it. Only those whom the authority vouches for, so that
    /// nobody else can crowd them out.
    signers: HashMap<Vec<u8>, Signer>,
    look_due: Instant,
    /// Verdicts on the messages that come next, by their numbers.
    ahead: VecDeque<(u64, Result<(), Reason>)>,
}

impl Checker {
    /// A checker for a worker of this consumer.
    pub fn new(validator: Arc<Validator>, consumer: &str) -> Self {
        let held = validator.authority.read();
        let (authority, generation) = (held.clone(), validator.generation.load(Ordering::Acquire));
        drop(held);
        Checker {
            validator,
            consumer: consumer.to_owned(),
            authority,
            generation,
            signers: HashMap::new(),
            look_due: Instant::now() + LOOK,
            ahead: VecDeque::new(),
        }
    }

    /// Whether a payload that came with this topic is valid.
    ///
    /// # Errors
    /// Why it is not.
    pub fn check(&mut self, topic: &str, payload: &[u8]) -> Result<(), Refused> {
        self.check_at(topic, payload, unix_now())
    }

    fn check_at(&mut self, topic: &str, payload: &[u8], now: i64) -> Result<(), Refused> {
        let malformed = |why: &str| Refused::new(Reason::Malformed, why);
        let document = Document::parse(payload)
            .map_err(|error| Refused::new(Reason::Malformed, error.to_string()))?;
        if !document.is_object() {
            return Err(malformed("the payload is JSON, but no object"));
        }
        let (certificate, signature) = (document.get("certificate"), document.get("signature"));
        match document.get("crypto") {
            Some(br#""x509""#) => {}
            Some(_) => return Err(malformed("`crypto` is not \"x509\"")),
            // fedmsg did not say until 0.7.2.
            None if certificate.is_some() => {}
            None if signature.is_some() => return Err(malformed("signed with GPG")),
            None => return Err(Refused::new(Reason::Unsigned, "it is not signed")),
        }
        let (Some(certificate), Some(_)) = (certificate, signature) else {
            let why = "`signature` or `certificate` is missing";
            return Err(Refused::new(Reason::Unsigned, why));
        };
        if document.string("topic").as_deref() != Some(topic) {
            return Err(malformed("`topic` is not the topic it came with"));
        }
        if !self.signers.contains_key(certificate) {
            let text = (document.string("certificate"))
                .filter(|text| text.len() <= CERTIFICATE_MAX)
                .and_then(|text| base64::decode(&text))
                .ok_or_else(|| malformed("`certificate` is no base64"))?;
            let signer = self.authority.vouches(&text)?;
            if self.signers.len() >= SIGNERS_MAX {
                self.signers.clear();
            }
            self.signers.insert(certificate.to_vec(), signer);
        }
        let Some(signer) = self.signers.get(certificate) else {
            return Err(malformed("no certificate"));
        };
        self.authority.out_of_date(now)?;
        signer.check(now)?;
        let signature = (document.string("signature"))
            .and_then(|text| base64::decode(&text))
            .ok_or_else(|| malformed("`signature` is no base64"))?;
        if !is_signed(&document, signer, &signature) {
            let why = format!("not what {} has signed", signer.name);
            return Err(Refused::new(Reason::BadSignature, why));
        }
        self.validator.allows(topic, &signer.name)
    }

    /// Sees to it that the certificates are those in force.
    fn refresh(&mut self) {
        let now = Instant::now();
        if now >= self.look_due {
            self.look_due = now + LOOK;
            self.validator.look();
        }
        if self.validator.generation.load(Ordering::Acquire) != self.generation {
            let held = self.validator.authority.read();
            self.authority = held.clone();
            self.generation = self.validator.generation.load(Ordering::Acquire);
            self.signers.clear();
            self.ahead.clear();
        }
    }

    fn find_out(&mut self, message: &Message) -> Result<(), Reason> {
        let checked = self.check(message.topic(), message.payload());
        checked.map_err(|refused| {
            let (topic, seq) = (message.topic(), message.seq());
            let (reason, cause) = (refused.reason.as_str(), &refused.why);
            let consumer = &self.consumer;
            warn!(
                consumer,
                topic, seq, reason, cause, "dropped: validation refuses it"
            );
            refused.reason
        })
    }

    /// Fills `ahead` with the verdicts on these messages.
    fn look_ahead(&mut self, messages: &[Message]) {
        self.ahead.clear();
        let mut open = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            let seq = message.seq();
            let verdict = match self.validator.verdicts.claim(seq, self.generation) {
                Known::Verdict(verdict) => verdict,
                Known::Claimed => {
                    open.push(index);
                    Ok(()) // until the second round
                }
                Known::Nothing => self.find_out_for_all(message),
            };
            self.ahead.push_back((seq, verdict));
        }
        for index in open {
            let message = &messages[index];
            let verdict = match (self.validator.verdicts).claim(message.seq(), self.generation) {
                Known::Verdict(verdict) => verdict,
                _ => self.find_out_for_all(message),
            };
            self.ahead[index].1 = verdict;
        }
    }

    fn find_out_for_all(&mut self, message: &Message) -> Result<(), Reason> {
        let verdict = self.find_out(message);
        (self.validator.verdicts).note(message.seq(), self.generation, verdict);
        verdict
    }
}

/// Whether the signature is over this message, as it was before others added to it.
fn is_signed(document: &Document, signer: &Signer, signature: &[u8]) -> bool {
    let bare = |key: &[u8]| match key {
        b"signature" | b"certificate" => Edit::LeaveOut,
        _ => Edit::Keep,
    };
    let has = |key| document.get(key).is_some();
    let no_headers = matches!(document.get("headers"), Some(b"{" | b"null"));
    let archived = has("source_name") && has("source_version");
    // As fedmsg mends what comes from the archive service, which makes a float of it.
    let timestamp = document.get("timestamp").filter(|_| archived);
    let timestamp = timestamp.and_then(|text| std::str::from_utf8(text).ok()?.parse::<f64>().ok());
    let added = |key: &[u8]| match key {
        b"seq_id" | b"source_name" | b"source_version" => Edit::LeaveOut,
        b"headers" if no_headers => Edit::LeaveOut,
        b"timestamp" => match timestamp {
            Some(seconds) if seconds.abs() < 1e15 => Edit::Instead(format!("{}", seconds as i64)),
            _ => Edit::Keep,
        },
        _ => bare(key),
    };
    let changed = ["seq_id", "source_name", "source_version"]
        .into_iter()
        .any(has)
        || no_headers;
    // Whoever has signed such a key too has signed it as it is.
    (changed && signer.has_signed(&document.edited(added), signature))
        || signer.has_signed(&document.edited(bare), signature)
}

impl Filter for Checker {
    fn judge(&mut self, messages: &[Message], most: usize) -> Judged {
        self.refresh();
        let known = |ahead: &VecDeque<(u64, _)>| {
            ahead
                .front()
                .is_some_and(|(seq, _)| *seq == messages[0].seq())
        };
        // Those between were skipped by an operator.
        while !self.ahead.is_empty() && !known(&self.ahead) {
            self.ahead.pop_front();
        }
        if self.ahead.is_empty() {
            let window = messages.len().min(most.max(AHEAD));
            self.look_ahead(&messages[..window]);
        }
        let next = messages.iter().zip(&self.ahead).take(most);
        let fit = next
            .take_while(|(message, (seq, verdict))| message.seq() == *seq && verdict.is_ok())
            .count();
        match self.ahead.front() {
            Some((_, Err(reason))) => Judged::Refused(*reason),
            _ => Judged::Fit(fit.max(1)),
        }
    }

    fn judge_again(&mut self, message: &Message) -> Judged {
        self.refresh();
        match self.find_out(message) {
            Ok(()) => Judged::Fit(1),
            Err(reason) => Judged::Refused(reason),
        }
    }
}

#[cfg(test)]
mod tests;
