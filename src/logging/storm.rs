//! Holds back what is said again and again, and counts it.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, error, warn};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// So many that are alike are told...
const TOLD: u64 = 5;
/// ...in so long a time.
const WINDOW: Duration = Duration::from_secs(10);
/// So many different storms are told apart; beyond them, all from one place in the code are alike.
const STORMS: usize = 256;
/// A text is looked at up to here.
const TEXT_MAX: usize = 300;

/// What is alike, in one window.
struct Storm {
    since: Instant,
    all: u64,
    /// What is told of it at the end.
    subject: Subject,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Subject {
    is_error: bool,
    message: String,
    consumer: String,
    cause: String,
}

/// What is told when a window is over.
#[derive(Clone, Debug, PartialEq)]
struct Summary {
    subject: Subject,
    more: u64,
}

#[derive(Default)]
struct State {
    storms: HashMap<u64, Storm>,
    /// Those of windows that are over, and not told yet.
    over: Vec<Summary>,
    ended: bool,
}

/// All that is said more than once.
#[derive(Default)]
pub(super) struct Storms {
    state: Mutex<State>,
    changed: Condvar,
}

impl State {
    /// Whether it is to be told now.
    fn admit(&mut self, place: u64, alike: u64, now: Instant, subject: Subject) -> bool {
        if self.ended {
            return true;
        }
        let known = self.storms.contains_key(&alike);
        // The places in the code are few, and so are these.
        let alike = if known || self.storms.len() < STORMS {
            alike
        } else {
            place
        };
        let storm = self.storms.entry(alike).or_insert_with(|| Storm {
            since: now,
            all: 0,
            subject: subject.clone(),
        });
        if now.saturating_duration_since(storm.since) >= WINDOW {
            let before = std::mem::replace(
                storm,
                Storm {
                    since: now,
                    all: 0,
                    subject,
                },
            );
            self.over.extend(before.summary());
        }
        let storm = self.storms.get_mut(&alike);
        storm.is_none_or(|storm| {
            storm.all += 1;
            storm.all <= TOLD
        })
    }

    /// What is to be told by now, and when there may be more.
    fn due(&mut self, now: Instant) -> (Vec<Summary>, Option<Instant>) {
        let mut over = std::mem::take(&mut self.over);
        self.storms.retain(|_, storm| {
            let lasts = now.saturating_duration_since(storm.since) < WINDOW;
            if !lasts {
                over.extend(storm.summary());
            }
            lasts
        });
        let next = self.storms.values().map(|storm| storm.since + WINDOW).min();
        (over, next)
    }
}

impl Storm {
    fn summary(&self) -> Option<Summary> {
        let more = self.all.checked_sub(TOLD).filter(|more| *more > 0)?;
        Some(Summary {
            subject: self.subject.clone(),
            more,
        })
    }
}

impl Summary {
    fn tell(&self) {
        let Subject {
            is_error,
            message,
            consumer,
            cause,
        } = &self.subject;
        let (more, seconds) = (self.more, WINDOW.as_secs());
        let text = format!(
            "{message}: … and {} more like it in {seconds} s",
            grouped(more)
        );
        match is_error {
            true => error!(consumer, cause, more, "{text}"),
            false => warn!(consumer, cause, more, "{text}"),
        }
    }
}

/// A number with its thousands apart.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

impl Storms {
    /// Tells of each storm when its window is over, until all end.
    pub(super) fn run(&self) {
        loop {
            let over = {
                let mut state = self.state.lock();
                if state.ended {
                    return;
                }
                let (over, next) = state.due(Instant::now());
                if over.is_empty() {
                    match next {
                        Some(next) => drop(self.changed.wait_until(&mut state, next)),
                        None => self.changed.wait(&mut state),
                    }
                }
                over
            };
            over.iter().for_each(Summary::tell);
        }
    }

    /// Tells of all that were held back; from now on nothing is.
    pub(super) fn end(&self) {
        let over = {
            let mut state = self.state.lock();
            state.ended = true;
            let mut over = std::mem::take(&mut state.over);
            over.extend(
                state
                    .storms
                    .drain()
                    .filter_map(|(_, storm)| storm.summary()),
            );
            over
        };
        self.changed.notify_all();
        over.iter().for_each(Summary::tell);
    }
}

/// Asks [`Storms`] about every warning and error.
pub(super) struct Filter(pub(super) std::sync::Arc<Storms>);

impl<S: Subscriber> Layer<S> for Filter {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        let is_error = *metadata.level() == Level::ERROR;
        if !is_error && *metadata.level() != Level::WARN || metadata.target() == module_path!() {
            return true;
        }
        let mut place = DefaultHasher::new();
        metadata.callsite().hash(&mut place);
        let mut fields = Fields {
            alike: place.clone(),
            subject: Subject {
                is_error,
                ..Subject::default()
            },
        };
        event.record(&mut fields);
        let (place, alike) = (place.finish(), fields.alike.finish());
        let mut state = self.0.state.lock();
        let was_quiet = state.storms.is_empty();
        let told = state.admit(place, alike, Instant::now(), fields.subject);
        if was_quiet {
            self.0.changed.notify_all();
        }
        told
    }
}

/// Reads the texts of an event.
struct Fields {
    alike: DefaultHasher,
    subject: Subject,
}

impl Fields {
    fn text(&mut self, name: &str, text: &str) {
        let mut end = text.len().min(TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        let text = &text[..end];
        match name {
            "topic" => return,
            "message" => text.clone_into(&mut self.subject.message),
            "consumer" => text.clone_into(&mut self.subject.consumer),
            "cause" | "error" | "why" | "text" | "reason" => {
                text.clone_into(&mut self.subject.cause);
            }
            _ => {}
        }
        name.hash(&mut self.alike);
        // A message that tells its number, or the time, is still like the others. A name with a
        // number in it is not.
        let is_name = name == "consumer";
        let mut in_number = false;
        for c in text.chars() {
            if c.is_ascii_digit() && !is_name {
                if !in_number {
                    '0'.hash(&mut self.alike);
                }
                in_number = true;
            } else {
                c.hash(&mut self.alike);
                in_number = false;
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.text(field.name(), value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let mut text = Cut(String::new());
        let _ = write!(text, "{value:?}"); // an error means that it is long enough
        self.text(field.name(), &text.0);
    }

    // Numbers tell nothing of what it is about.
    fn record_u64(&mut self, _: &Field, _: u64) {}
    fn record_i64(&mut self, _: &Field, _: i64) {}
    fn record_u128(&mut self, _: &Field, _: u128) {}
    fn record_i128(&mut self, _: &Field, _: i128) {}
    fn record_f64(&mut self, _: &Field, _: f64) {}
}

/// A text that does not become long.
struct Cut(String);

impl fmt::Write for Cut {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if self.0.len() >= TEXT_MAX {
            return Err(fmt::Error);
        }
        self.0.push_str(more);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use proptest::prelude::*;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    fn subject(cause: &str) -> Subject {
        Subject {
            cause: cause.to_owned(),
            ..Subject::default()
        }
    }

    proptest! {
        #[test]
        fn what_is_told_and_what_is_counted_make_up_all(
            steps in prop::collection::vec((0..4_u64, 0..3000_u64), 0..2000),
        ) {
            let (mut state, mut now) = (State::default(), Instant::now());
            let (mut said, mut told, mut counted) = ([0; 4], [0; 4], [0; 4]);
            let mut sum = |over: Vec<Summary>| for summary in over {
                counted[summary.subject.cause.parse::<usize>().unwrap()] += summary.more;
            };
            for (what, millis) in steps {
                now += Duration::from_millis(millis);
                if millis % 7 == 0 {
                    sum(state.due(now).0);
                }
                said[what as usize] += 1;
                if state.admit(99, what, now, subject(&what.to_string())) {
                    told[what as usize] += 1;
                }
            }
            sum(state.due(now + WINDOW).0);
            prop_assert!(state.storms.is_empty());
            for what in 0..4 {
                prop_assert_eq!(said[what], told[what] + counted[what]);
            }
        }
    }

    #[test]
    fn memory_is_bounded_and_what_is_beyond_is_counted_by_its_place() {
        let (mut state, now) = (State::default(), Instant::now());
        let mut told = 0;
        for what in 0..100_000_u64 {
            told += u64::from(state.admit(u64::MAX, what, now, subject("x")));
        }
        assert_eq!(state.storms.len(), STORMS + 1);
        assert_eq!(told, STORMS as u64 + TOLD);
        let (over, next) = state.due(now + WINDOW);
        assert_eq!((over.len(), next), (1, None));
        assert_eq!(told + over[0].more, 100_000);
    }

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// The log of what is said meanwhile.
    fn logged(talk: impl FnOnce()) -> Vec<serde_json::Value> {
        let (lines, storms) = (Lines::default(), Arc::new(Storms::default()));
        let to = lines.clone();
        let layer = tracing_subscriber::fmt::layer().json().flatten_event(true);
        let subscriber = tracing_subscriber::registry()
            .with(Filter(storms.clone()))
            .with(layer.with_writer(move || to.clone()));
        tracing::subscriber::with_default(subscriber, || {
            talk();
            storms.end();
        });
        let text = String::from_utf8(lines.0.lock().clone()).unwrap();
        let lines = text.lines().map(serde_json::from_str);
        lines.collect::<Result<_, _>>().unwrap()
    }

    #[test]
    fn a_hundred_thousand_failures_are_a_few_lines_with_the_right_count() {
        let lines = logged(|| {
            for seq in 0..100_000 {
                let (topic, cause) = (format!("org.{seq}"), format!("no room for message {seq}"));
                warn!(consumer = "irc", topic, seq, %cause, "failed; trying again");
            }
            warn!(
                consumer = "irc2",
                cause = "no room for message 1",
                "failed; trying again"
            );
            error!(consumer = "irc", cause = "another", "failed; trying again");
            tracing::info!(consumer = "irc", "fine");
        });
        let more: Vec<_> = lines
            .iter()
            .filter(|line| !line["more"].is_null())
            .collect();
        let told = lines.iter().filter(|line| line["seq"].is_number()).count() as u64;
        let counted: u64 = more.iter().map(|line| line["more"].as_u64().unwrap()).sum();
        assert_eq!(told + counted, 100_000);
        // It may take more than one window, and the last one may be no storm.
        assert!(told <= TOLD * (more.len() as u64 + 1), "{told}");
        assert_eq!(lines.len() as u64, told + more.len() as u64 + 3);
        let last = more.last().unwrap();
        assert_eq!(
            (&last["consumer"], &last["level"]),
            (&"irc".into(), &"WARN".into())
        );
        let message = last["message"].as_str().unwrap();
        assert!(
            message.starts_with("failed; trying again: … and "),
            "{message}"
        );
        assert!(message.ends_with(" more like it in 10 s"), "{message}");
    }

    #[test]
    fn few_are_no_storm_and_others_are_others() {
        let lines = logged(|| {
            for _ in 0..TOLD {
                for note in ["this", "that"] {
                    warn!(note);
                }
                error!(consumer = "a", "x");
                error!(consumer = "b", "x");
            }
        });
        assert_eq!(lines.len(), 4 * TOLD as usize);
    }

    #[test]
    fn a_storm_is_told_when_its_window_is_over() {
        let (mut state, now) = (State::default(), Instant::now());
        for _ in 0..8 {
            state.admit(0, 1, now, subject("x"));
        }
        let soon = now + WINDOW - Duration::from_millis(1);
        assert_eq!(state.due(soon), (Vec::new(), Some(now + WINDOW)));
        let (over, next) = state.due(now + WINDOW);
        assert_eq!((over[0].more, next), (3, None));
        assert_eq!(grouped(1234), "1,234");
        assert_eq!(grouped(123), "123");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }
}
