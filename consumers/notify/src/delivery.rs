//! When what is in the outbox goes out, in which order, and what becomes of it when it does not.
//!
//! 1. Each recipient's notifications go out in the order of intake.
//! 2. Recipients take turns, one parcel each, so that nobody waits for another's backlog.
//! 3. Where there was trouble, nothing is tried for a pause that doubles, or longer if the endpoint
//!    asks for it, never shorter; all others go on.
//! 4. A group that answers slowly takes at most half of the time while others have something to send,
//!    and none while messages come in: it is left to the ticks between them.
//! 5. What went out is not sent again, also when the outbox can't note it just now.
//! 6. What is given up is counted with its reason, and was tried at least once before it was given
//!    up for its age.
//!
//! Trouble is known by two places: the endpoint (an address, a URL) and the group behind one server
//! (the mail server, the connection to IRC, the host of a webhook).

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use metrics::counter;
use tracing::{info, warn};
use weir_consumer::Result;

use crate::outbox::{self, Outbox, Parcel, Recipient};
use crate::users::{Digest, Route};

/// A digest has no more messages than this; what is more makes a digest of its own.
const DIGEST_MESSAGES_MAX: usize = 1000;
/// Nor more text, unless it has a single message: a template makes at most 1 MiB of it.
const DIGEST_BYTES_MAX: usize = 512 << 10;
/// The first pause.
pub(crate) const PAUSE: Duration = Duration::from_secs(1);
/// What takes longer is slow: IRC, where lines have to wait for their turn, above all.
const SLOW: Duration = Duration::from_millis(100);
/// How often what is too old is looked for where nothing is tried.
const EXPIRY: Duration = Duration::from_secs(60);

/// When the outbox is worked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum When {
    /// After messages: more of them may be waiting.
    AfterMessages,
    /// At a tick, or because there is no room.
    AtTick,
}

impl When {
    /// How long, before the hub is let go on; what was begun is ended.
    fn time(self) -> Duration {
        match self {
            // As long as a test takes, however slow the machine is.
            _ if cfg!(test) => Duration::from_secs(3600),
            When::AfterMessages => Duration::from_millis(200),
            When::AtTick => Duration::from_secs(1),
        }
    }
}

/// Why something may be given up on a route.
pub(crate) fn reasons(route: Route) -> &'static [&'static str] {
    let all = &[
        "refused",
        "expired",
        "attempts",
        "full",
        "no_address",
        "unsendable",
    ];
    match route {
        Route::Email => all,
        // Only a mail may be impossible to make.
        Route::Irc | Route::Webhook => &all[..5],
    }
}

/// How delivering a parcel ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Delivered,
    /// It will never be taken.
    Refused {
        reason: &'static str,
        text: String,
    },
    /// The endpoint answers, and does not take it now.
    Later {
        text: String,
        /// When the endpoint wants to be asked again.
        after: Option<Duration>,
    },
    /// The endpoint does not answer, and perhaps nobody of its group would.
    Silent(String),
    /// Nobody of the group can be told.
    Down(String),
}

/// Where a recipient's notifications go, as far as trouble is concerned.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    pub(crate) group: String,
    pub(crate) endpoint: String,
}

/// The ways out.
pub(crate) trait Routes {
    /// Where this recipient is, if there still is such a user with such an address.
    fn place(&self, recipient: &Recipient) -> Option<Place>;
    /// When this recipient's digest is due, if there is to be one.
    fn digest(&self, recipient: &Recipient) -> Option<&Digest>;
    /// Tries to deliver.
    fn deliver(&mut self, recipient: &Recipient, parcel: &Parcel) -> Outcome;
}

/// When to give up.
#[derive(Clone, Debug)]
pub(crate) struct Patience {
    pub(crate) give_up: Duration,
    /// 0: as often as there is time for.
    pub(crate) attempts: u64,
    pub(crate) pause_max: Duration,
}

struct Trouble {
    failures: u32,
    until: Instant,
}

/// What is known of the places, and whose turn it is.
pub(crate) struct Delivery {
    consumer: String,
    patience: Patience,
    troubles: HashMap<String, Trouble>,
    /// Groups that were slow the last time, and until when they let others go first.
    yields: HashMap<String, Instant>,
    last: Option<Recipient>,
    /// Went out, and the outbox does not know it yet.
    done: Vec<(Recipient, i64)>,
    /// Whose refusal is in the log.
    refused: HashSet<Recipient>,
    expiry: Option<Instant>,
    /// How far the tests' clock is ahead.
    #[cfg(test)]
    pub(crate) ahead: Duration,
}

impl Delivery {
    pub(crate) fn new(consumer: &str, patience: Patience) -> Self {
        Delivery {
            consumer: consumer.into(),
            patience,
            troubles: HashMap::new(),
            yields: HashMap::new(),
            last: None,
            done: Vec::new(),
            refused: HashSet::new(),
            expiry: None,
            #[cfg(test)]
            ahead: Duration::ZERO,
        }
    }

    fn ahead(&self) -> Duration {
        #[cfg(test)]
        return self.ahead;
        #[cfg(not(test))]
        Duration::ZERO
    }

    fn now(&self) -> Instant {
        Instant::now() + self.ahead()
    }

    /// Seconds since 1970.
    fn wall_clock(&self) -> i64 {
        outbox::now() + self.ahead().as_secs() as i64
    }

    /// Sends what may go out now, for about as long as there is time for it.
    ///
    /// # Errors
    /// Those of the outbox, which is to be opened anew then.
    pub(crate) fn work(
        &mut self,
        outbox: &mut Outbox,
        routes: &mut dyn Routes,
        when: When,
    ) -> Result {
        let until = Instant::now() + when.time();
        self.note_done(outbox)?;
        self.bundle(outbox, routes)?;
        self.expire(outbox, routes)?;
        let mut alone = false;
        loop {
            let mut tried = false;
            for recipient in self.turns(outbox) {
                if Instant::now() >= until {
                    return Ok(());
                }
                let Some(place) = routes.place(&recipient) else {
                    let count = outbox.forget(&recipient)?;
                    self.given_up(&recipient, "no_address", count, "there is no such address");
                    continue;
                };
                if self.is_held(&place.group) || self.is_held(&place.endpoint) {
                    continue;
                }
                if let Some(end) = self.yields.get(&place.group)
                    && (when == When::AfterMessages || (!alone && self.now() < *end))
                {
                    continue;
                }
                if let Some(parcel) = outbox.next(&recipient)? {
                    tried = true;
                    self.last = Some(recipient.clone());
                    let begin = Instant::now();
                    let outcome = routes.deliver(&recipient, &parcel);
                    self.took(&place.group, begin.elapsed());
                    self.settle(outbox, &recipient, &place, &parcel, outcome)?;
                }
            }
            if !tried && alone {
                return Ok(());
            }
            alone = !tried;
        }
    }

    /// Notes how long a group took for a delivery.
    fn took(&mut self, group: &str, time: Duration) {
        match time > SLOW {
            true => self.yields.insert(group.to_owned(), self.now() + time),
            false => self.yields.remove(group),
        };
    }

    /// The recipients with something to send, beginning with the one after the last.
    fn turns(&self, outbox: &Outbox) -> Vec<Recipient> {
        let ready = |recipient: &&Recipient| outbox.waiting_for(recipient).ready() > 0;
        let all: Vec<Recipient> = (outbox.waiting().keys().filter(ready).cloned()).collect();
        let first = (self.last.as_ref()).map_or(0, |last| all.partition_point(|one| one <= last));
        let (before, after) = all.split_at(first);
        [after, before].concat()
    }

    fn is_held(&self, place: &str) -> bool {
        (self.troubles.get(place)).is_some_and(|trouble| self.now() < trouble.until)
    }

    fn is_failing(&self, place: &str) -> bool {
        self.troubles.contains_key(place)
    }

    /// Whether what waits for a recipient waits for a trouble that is not everybody's.
    pub(crate) fn own_trouble(&self, recipient: &Recipient, place: &Place) -> bool {
        let (group, endpoint) = (
            self.is_failing(&place.group),
            self.is_failing(&place.endpoint),
        );
        match recipient.route {
            Route::Webhook => group || endpoint,
            Route::Email | Route::Irc => endpoint && !group,
        }
    }

    fn settle(
        &mut self,
        outbox: &mut Outbox,
        recipient: &Recipient,
        place: &Place,
        parcel: &Parcel,
        outcome: Outcome,
    ) -> Result {
        let route = recipient.route.name();
        match outcome {
            Outcome::Delivered => {
                counter!("notify_delivered_total", "route" => route)
                    .increment(parcel.notifications.len() as u64);
                self.over(&place.group, route);
                self.over(&place.endpoint, route);
                self.refused.remove(recipient);
                self.done.push((recipient.clone(), parcel.id));
                self.note_done(outbox)
            }
            Outcome::Refused { reason, text } => {
                self.over(&place.group, route);
                self.over(&place.endpoint, route);
                let count = outbox.remove(recipient, parcel.id)?;
                self.given_up(recipient, reason, count, &text);
                Ok(())
            }
            Outcome::Later { text, after } => {
                self.over(&place.group, route);
                self.trouble(&place.endpoint, recipient, &text, after);
                self.failed(outbox, recipient, parcel, &text)
            }
            Outcome::Silent(text) => {
                self.trouble(&place.group, recipient, &text, None);
                self.trouble(&place.endpoint, recipient, &text, None);
                self.failed(outbox, recipient, parcel, &text)
            }
            Outcome::Down(text) => {
                self.trouble(&place.group, recipient, &text, None);
                self.failed(outbox, recipient, parcel, &text)
            }
        }
    }

    /// Tells the outbox what went out.
    fn note_done(&mut self, outbox: &mut Outbox) -> Result {
        while let Some((recipient, parcel)) = self.done.last() {
            outbox.remove(recipient, *parcel)?;
            self.done.pop();
        }
        Ok(())
    }

    fn failed(
        &mut self,
        outbox: &mut Outbox,
        recipient: &Recipient,
        parcel: &Parcel,
        text: &str,
    ) -> Result {
        let give_up = self.patience.give_up.as_secs() as i64;
        let count = outbox.expire(recipient, self.wall_clock() - give_up)?;
        if count > 0 {
            self.given_up(recipient, "expired", count, text);
        }
        if self.patience.attempts > 0 && parcel.attempts + 1 >= self.patience.attempts {
            let count = outbox.remove(recipient, parcel.id)?;
            self.given_up(recipient, "attempts", count, text);
            return Ok(());
        }
        outbox.failed(recipient, parcel.id)
    }

    /// Gives up what is too old where there is trouble: not each of it gets an attempt of its own.
    fn expire(&mut self, outbox: &mut Outbox, routes: &dyn Routes) -> Result {
        let now = self.now();
        if self.expiry.is_some_and(|due| now < due) || self.troubles.is_empty() {
            return Ok(());
        }
        self.expiry = Some(now + EXPIRY);
        let give_up = self.patience.give_up.as_secs() as i64;
        for recipient in self.turns(outbox) {
            let Some(place) = routes.place(&recipient) else {
                continue;
            };
            if self.is_failing(&place.group) || self.is_failing(&place.endpoint) {
                let count = outbox.expire(&recipient, self.wall_clock() - give_up)?;
                if count > 0 {
                    self.given_up(&recipient, "expired", count, "too old");
                }
            }
        }
        Ok(())
    }

    /// Makes the digests that are due.
    fn bundle(&self, outbox: &mut Outbox, routes: &dyn Routes) -> Result {
        let now = self.wall_clock();
        let due = |(recipient, waiting): &(&Recipient, &outbox::Waiting)| {
            // One that is ready goes first; so a digest that can't be sent makes the next longer.
            if waiting.digest == 0 || waiting.ready() > 0 {
                return false;
            }
            routes.digest(recipient).is_none_or(|digest| {
                let age = now - waiting.digest_since;
                waiting.digest >= digest.count.get() || age >= digest.every.as_secs() as i64
            })
        };
        let due: Vec<Recipient> = (outbox.waiting().iter().filter(due))
            .map(|(recipient, _)| recipient.clone())
            .collect();
        (due.iter()).try_for_each(|recipient| {
            outbox.bundle(recipient, DIGEST_MESSAGES_MAX, DIGEST_BYTES_MAX)
        })
    }

    fn trouble(&mut self, place: &str, recipient: &Recipient, text: &str, after: Option<Duration>) {
        let now = self.now();
        let known = self.troubles.get(place).map_or(0, |known| known.failures);
        if known == 0 {
            warn!(
                consumer = self.consumer,
                route = recipient.route.name(),
                user = recipient.user,
                text,
                "not delivered; trying again"
            );
        }
        let pause = PAUSE.saturating_mul(1 << known.min(20));
        let pause = pause.min(self.patience.pause_max);
        // An endpoint that asks for less ("Retry-After: 0") would be asked without an end.
        let pause = after.map_or(pause, |after| after.max(pause));
        let trouble = Trouble {
            failures: known + 1,
            until: now + pause,
        };
        self.troubles.insert(place.to_owned(), trouble);
    }

    fn over(&mut self, place: &str, route: &str) {
        if let Some(trouble) = self.troubles.remove(place) {
            info!(
                consumer = self.consumer,
                route,
                failures = trouble.failures,
                "delivers again"
            );
        }
    }

    /// Counts what nobody will be told, and says so in the log when it is news.
    pub(crate) fn given_up(
        &mut self,
        recipient: &Recipient,
        reason: &'static str,
        count: usize,
        text: &str,
    ) {
        debug_assert!(reasons(recipient.route).contains(&reason), "{reason}");
        let route = recipient.route.name();
        counter!("notify_given_up_total", "route" => route, "reason" => reason)
            .increment(count as u64);
        if self.refused.insert(recipient.clone()) {
            warn!(
                consumer = self.consumer,
                route,
                user = recipient.user,
                reason,
                text,
                "given up; said once until something is delivered there again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::outbox::Notification;

    /// Routes that do what they are told, and tell what they did.
    #[derive(Default)]
    struct Told {
        answers: HashMap<&'static str, fn() -> Outcome>,
        delivered: Vec<(String, Vec<u64>)>,
        digest: Option<Digest>,
        gone: bool,
    }

    impl Routes for Told {
        fn place(&self, recipient: &Recipient) -> Option<Place> {
            // Whoever begins with the same letter is behind the same server.
            (!self.gone).then(|| Place {
                group: recipient.user[..1].into(),
                endpoint: recipient.user.clone(),
            })
        }

        fn digest(&self, _: &Recipient) -> Option<&Digest> {
            self.digest.as_ref()
        }

        fn deliver(&mut self, recipient: &Recipient, parcel: &Parcel) -> Outcome {
            assert!(self.delivered.len() < 1000, "it tries without an end");
            let seqs = parcel.notifications.iter().map(|one| one.seq).collect();
            self.delivered.push((recipient.user.clone(), seqs));
            let answer = self.answers.get(recipient.user.as_str());
            answer.map_or(Outcome::Delivered, |answer| answer())
        }
    }

    impl Told {
        /// What was tried since the last time, as `user seq`.
        fn tried(&mut self) -> Vec<String> {
            let show = |(user, seqs): (String, Vec<u64>)| {
                let seqs: Vec<String> = seqs.iter().map(ToString::to_string).collect();
                format!("{user} {}", seqs.join("+"))
            };
            self.delivered.drain(..).map(show).collect()
        }
    }

    struct Fixture {
        _dir: tempfile::TempDir,
        outbox: Outbox,
        delivery: Delivery,
        routes: Told,
    }

    fn fixture(attempts: u64) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let patience = Patience {
            give_up: Duration::from_secs(3600),
            attempts,
            pause_max: Duration::from_secs(60),
        };
        Fixture {
            outbox: Outbox::open(&dir.path().join("notify.db")).unwrap(),
            _dir: dir,
            delivery: Delivery::new("notify", patience),
            routes: Told::default(),
        }
    }

    impl Fixture {
        fn store(&mut self, seq: u64, user: &str, digest: bool) {
            let recipient = Recipient {
                route: Route::Webhook,
                user: user.into(),
            };
            let new = Notification {
                received_ns: seq,
                seq,
                recipient,
                digest,
                topic: String::new(),
                subject: String::new(),
                text: String::new(),
                body: Vec::new(),
            };
            self.outbox.store(&[new]).unwrap();
        }

        /// Works until nothing is left to do now, and answers what was tried.
        fn work(&mut self) -> Vec<String> {
            self.delivery
                .work(&mut self.outbox, &mut self.routes, When::AtTick)
                .unwrap();
            self.routes.tried()
        }

        fn after(&mut self, seconds: u64) -> Vec<String> {
            self.delivery.ahead += Duration::from_secs(seconds);
            self.work()
        }
    }

    #[test]
    fn recipients_take_turns_and_each_has_its_order() {
        let mut f = fixture(0);
        for seq in 1..=3 {
            f.store(seq, "ann", false);
        }
        f.store(4, "bob", false);
        f.store(5, "cid", false);
        assert_eq!(f.work(), ["ann 1", "bob 4", "cid 5", "ann 2", "ann 3"]);
        assert_eq!(f.outbox.messages(), 0);
    }

    #[test]
    fn an_endpoint_in_trouble_waits_longer_each_time_and_others_go_on() {
        let mut f = fixture(0);
        let later = || Outcome::Later {
            text: "busy".into(),
            after: None,
        };
        f.routes.answers.insert("ann", later);
        f.store(1, "ann", false);
        f.store(2, "ann", false);
        f.store(3, "amy", false);
        assert_eq!(f.work(), ["amy 3", "ann 1"]);
        assert_eq!(f.work(), [""; 0]);
        assert_eq!(f.after(1), ["ann 1"]);
        assert_eq!(f.after(1), [""; 0]);
        assert_eq!(f.after(1), ["ann 1"]);
        assert_eq!(f.after(3), [""; 0]);
        assert_eq!(f.after(1), ["ann 1"]);
        f.routes.answers.clear();
        assert_eq!(f.after(8), ["ann 1", "ann 2"]);
        assert!(f.delivery.troubles.is_empty());
    }

    #[test]
    fn a_slow_group_lets_others_go_first() {
        let mut f = fixture(0);
        for (seq, user) in [(1, "ann"), (2, "ann"), (3, "bob"), (4, "bob")] {
            f.store(seq, user, false);
        }
        f.delivery.took("a", Duration::from_secs(5));
        f.delivery.ahead = Duration::from_secs(4);
        // While it would yield, but nobody is left, it goes on.
        let tried = f.work();
        assert_eq!(tried, ["bob 3", "bob 4", "ann 1", "ann 2"]);
        f.delivery.took("a", Duration::from_secs(5));
        f.store(5, "ann", false);
        f.store(6, "bob", false);
        assert_eq!(f.after(5), ["bob 6", "ann 5"]);
        // While messages come in, it is left alone.
        f.delivery.took("a", Duration::from_secs(5));
        f.store(7, "ann", false);
        f.store(8, "bob", false);
        let between = When::AfterMessages;
        (f.delivery)
            .work(&mut f.outbox, &mut f.routes, between)
            .unwrap();
        assert_eq!(f.routes.tried(), ["bob 8"]);
        assert_eq!(f.work(), ["ann 7"]);
    }

    #[test]
    fn an_endpoint_that_says_when_is_asked_then() {
        let mut f = fixture(0);
        let later = || Outcome::Later {
            text: "429".into(),
            after: Some(Duration::from_secs(30)),
        };
        f.routes.answers.insert("ann", later);
        f.store(1, "ann", false);
        assert_eq!(f.work(), ["ann 1"]);
        assert_eq!(f.after(29), [""; 0]);
        assert_eq!(f.after(1), ["ann 1"]);
    }

    #[test]
    fn an_endpoint_that_asks_for_no_pause_gets_the_one_that_doubles() {
        let mut f = fixture(0);
        let now = || Outcome::Later {
            text: "503".into(),
            after: Some(Duration::ZERO),
        };
        f.routes.answers.insert("ann", now);
        f.store(1, "ann", false);
        assert_eq!(f.work(), ["ann 1"]);
        for pause in [1, 2, 4, 8, 16, 32, 60, 60] {
            assert_eq!(f.after(pause - 1), [""; 0], "{pause}");
            assert_eq!(f.after(1), ["ann 1"], "{pause}");
        }
    }

    #[test]
    fn a_server_that_is_down_is_tried_with_one_of_those_behind_it() {
        let mut f = fixture(0);
        f.routes
            .answers
            .insert("ann", || Outcome::Down("refused".into()));
        f.routes
            .answers
            .insert("amy", || Outcome::Down("refused".into()));
        for (seq, user) in [(1, "amy"), (2, "ann"), (3, "bob")] {
            f.store(seq, user, false);
        }
        assert_eq!(f.work(), ["amy 1", "bob 3"]);
        assert_eq!(f.after(1), ["amy 1"]);
        assert_eq!(f.after(2), ["ann 2"]);
        f.routes.answers.clear();
        assert_eq!(f.after(4), ["amy 1", "ann 2"]);
    }

    #[test]
    fn a_refused_one_is_given_up_and_the_next_is_tried() {
        let mut f = fixture(0);
        let refused = || Outcome::Refused {
            reason: "refused",
            text: "550".into(),
        };
        f.routes.answers.insert("ann", refused);
        f.store(1, "ann", false);
        f.store(2, "ann", false);
        assert_eq!(f.work(), ["ann 1", "ann 2"]);
        assert_eq!(f.outbox.messages(), 0);
    }

    #[test]
    fn what_is_too_old_is_given_up_after_an_attempt() {
        let mut f = fixture(0);
        f.routes
            .answers
            .insert("ann", || Outcome::Down("refused".into()));
        f.store(1, "ann", false);
        f.store(2, "ann", false);
        f.store(3, "amy", false);
        // The hub was down for hours: each server is tried before anything is given up.
        assert_eq!(f.after(5000), ["amy 3", "ann 1"]);
        assert_eq!(f.outbox.messages(), 0);
        assert_eq!(f.after(60), [""; 0]);
    }

    #[test]
    fn what_is_too_old_is_given_up_also_where_it_is_not_tried() {
        let mut f = fixture(0);
        f.routes
            .answers
            .insert("amy", || Outcome::Down("refused".into()));
        f.store(1, "amy", false);
        f.store(2, "ann", false);
        assert_eq!(f.work(), ["amy 1"]);
        f.delivery.troubles.get_mut("a").unwrap().until += Duration::from_secs(100_000);
        assert_eq!(f.after(3600), [""; 0]);
        assert_eq!(f.outbox.messages(), 0);
    }

    #[test]
    fn what_went_out_is_not_sent_again_while_it_can_not_be_noted() {
        let mut f = fixture(0);
        f.store(1, "ann", false);
        f.store(2, "ann", false);
        f.outbox.refuse_removals(true);
        let work = |f: &mut Fixture| f.delivery.work(&mut f.outbox, &mut f.routes, When::AtTick);
        assert!(work(&mut f).is_err());
        assert_eq!(f.routes.tried(), ["ann 1"]);
        assert!(work(&mut f).is_err());
        assert_eq!(f.routes.tried(), [""; 0]);
        f.outbox.refuse_removals(false);
        assert!(work(&mut f).is_ok());
        assert_eq!(f.routes.tried(), ["ann 2"]);
        assert_eq!(f.outbox.messages(), 0);
    }

    #[test]
    fn attempts_are_limited_if_it_is_asked_for() {
        let mut f = fixture(2);
        f.routes
            .answers
            .insert("ann", || Outcome::Silent("hangs".into()));
        f.store(1, "ann", false);
        f.store(2, "ann", false);
        assert_eq!(f.work(), ["ann 1"]);
        assert_eq!(f.after(1), ["ann 1"]);
        assert_eq!(f.after(2), ["ann 2"]);
    }

    #[test]
    fn a_digest_is_due_by_count_or_by_time() {
        let mut f = fixture(0);
        f.routes.digest = Some(Digest {
            every: Duration::from_secs(600),
            count: NonZeroUsize::new(3).unwrap(),
        });
        for seq in 1..=2 {
            f.store(seq, "ann", true);
        }
        assert_eq!(f.work(), [""; 0]);
        f.store(3, "ann", true);
        assert_eq!(f.work(), ["ann 1+2+3"]);
        f.store(4, "ann", true);
        assert_eq!(f.work(), [""; 0]);
        assert_eq!(f.after(601), ["ann 4"]);
    }

    #[test]
    fn what_waits_for_a_digest_that_is_no_more_goes_out() {
        let mut f = fixture(0);
        f.store(1, "ann", true);
        assert_eq!(f.work(), ["ann 1"]);
    }

    #[test]
    fn what_is_for_nobody_is_given_up() {
        let mut f = fixture(0);
        f.store(1, "ann", false);
        f.routes.gone = true;
        assert_eq!(f.work(), [""; 0]);
        assert_eq!(f.outbox.messages(), 0);
    }

    #[test]
    fn whose_trouble_it_is() {
        let mut f = fixture(0);
        let recipient = |route, user: &str| Recipient {
            route,
            user: user.into(),
        };
        let place = |user: &str| Place {
            group: "a".into(),
            endpoint: user.into(),
        };
        let own = |f: &Fixture, route| {
            f.delivery
                .own_trouble(&recipient(route, "ann"), &place("ann"))
        };
        assert!(!own(&f, Route::Webhook) && !own(&f, Route::Email));
        f.delivery
            .trouble("ann", &recipient(Route::Email, "ann"), "", None);
        assert!(own(&f, Route::Webhook) && own(&f, Route::Email));
        f.delivery
            .trouble("a", &recipient(Route::Email, "ann"), "", None);
        assert!(own(&f, Route::Webhook) && !own(&f, Route::Email));
    }
}
