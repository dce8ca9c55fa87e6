//! What is on the screen, and what keys do to it. No terminal, no clock and no hub here.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::widgets::TableState;

use super::columns::{Sort, arranged};
use super::feed::News;
use super::seen::{Consumer, Seen};
use crate::monitor::History;
use crate::steering::Action;
use crate::why::Why;

/// A point of the past every so long, as the hub has them.
const POINT_EVERY: Duration = Duration::from_millis(4500);
const POINTS: usize = 120;
/// The rate of the sources is one of at least so long.
const RATE_OVER: Duration = Duration::from_millis(500);
/// No filter is longer.
const FILTER_MAX: usize = 48;
const PAGE: isize = 10;

/// The last ten minutes of one consumer.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    pub(super) depth: VecDeque<u64>,
    pub(super) lag_ms: VecDeque<u64>,
}

/// What can be done from here.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Turn {
    Pause(String),
    Resume(String),
}

impl From<Turn> for Action {
    fn from(turn: Turn) -> Self {
        match turn {
            Turn::Pause(consumer) => Action::Pause { consumer },
            Turn::Resume(consumer) => Action::Resume { consumer },
        }
    }
}

/// What is in front of the table.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Front {
    Nothing,
    Help,
    /// A filter is being typed; this was the one before.
    Filter(String),
    /// Nothing is done before somebody says yes.
    Confirm(Turn),
}

/// What a key asks for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Wish {
    Quit,
    /// To hear of this consumer why it is as it is; of none.
    Watch(Option<String>),
    /// To tell the hub that.
    Act(Turn),
}

/// All that is shown.
pub(super) struct View {
    /// Where the hub is.
    pub(super) hub: String,
    pub(super) seen: Option<Seen>,
    /// When it said that.
    pub(super) heard: Option<Instant>,
    /// Why it says nothing now.
    pub(super) away: Option<String>,
    /// Messages a second from all its sources.
    pub(super) source_rate: Option<f64>,
    /// How many there were when that was measured.
    counted: Option<(u64, Instant)>,
    pub(super) past: HashMap<String, Past>,
    pointed: Option<Instant>,
    pub(super) sort: Sort,
    pub(super) reverse: bool,
    pub(super) filter: String,
    /// Whether somebody has put the cursor where it is; before, it is on the first row.
    moved: bool,
    /// The name of the consumer that the cursor is on.
    pub(super) selected: Option<String>,
    pub(super) table: TableState,
    /// Whether one consumer has the screen.
    pub(super) detail: bool,
    pub(super) scroll: u16,
    pub(super) why: Option<(String, Result<Box<Why>, String>)>,
    pub(super) front: Front,
    /// What came of the last action; until the next key.
    pub(super) notice: Option<String>,
    /// Whether the hub can be told something.
    pub(super) steers: bool,
}

impl View {
    pub(super) fn new(hub: String, steers: bool, sort: Sort, filter: &str) -> Self {
        View {
            hub,
            seen: None,
            heard: None,
            away: None,
            source_rate: None,
            counted: None,
            past: HashMap::new(),
            pointed: None,
            sort,
            reverse: false,
            filter: filter.chars().take(FILTER_MAX).collect(),
            moved: false,
            selected: None,
            table: TableState::default(),
            detail: false,
            scroll: 0,
            why: None,
            front: Front::Nothing,
            notice: None,
            steers,
        }
    }

    /// The consumers of the table.
    pub(super) fn shown(&self) -> Vec<&Consumer> {
        let all = self.seen.as_ref().map_or(&[][..], |seen| &seen.consumers);
        arranged(all, self.sort, self.reverse, &self.filter)
    }

    /// The one that the cursor is on.
    pub(super) fn current(&self) -> Option<&Consumer> {
        let name = self.selected.as_ref()?;
        let consumers = &self.seen.as_ref()?.consumers;
        consumers.iter().find(|consumer| consumer.name == *name)
    }

    /// Takes in what the hub said.
    pub(super) fn hear(&mut self, news: News, now: Instant) {
        match news {
            News::Status(Ok(seen)) => self.status(seen, now),
            News::Status(Err(why)) => self.away = Some(why),
            News::Past(history) => self.remember(&history, now),
            News::Why(name, told) => self.why = Some((name, told)),
            News::Done(Ok(text)) => self.notice = Some(text),
            News::Done(Err(why)) => self.notice = Some(format!("not done: {why}")),
        }
    }

    fn status(&mut self, seen: Seen, now: Instant) {
        let received = seen.sources.iter().map(|source| source.received).sum();
        match self.counted {
            Some((_, at)) if now.saturating_duration_since(at) < RATE_OVER => {}
            before => {
                self.counted = Some((received, now));
                self.source_rate = before.and_then(|(count, at)| {
                    let seconds = now.saturating_duration_since(at).as_secs_f64();
                    Some(received.checked_sub(count)? as f64 / seconds)
                });
            }
        }
        if self
            .pointed
            .is_none_or(|at| now.saturating_duration_since(at) >= POINT_EVERY)
        {
            self.pointed = Some(now);
            self.past
                .retain(|name, _| seen.consumers.iter().any(|c| c.name == *name));
            for consumer in &seen.consumers {
                let past = self.past.entry(consumer.name.clone()).or_default();
                push(&mut past.depth, consumer.queue_messages);
                push(&mut past.lag_ms, millis(consumer.lag_seconds));
            }
        }
        self.heard = Some(now);
        self.away = None;
        self.seen = Some(seen);
        self.keep_cursor();
    }

    /// What the hub remembers takes the place of what was seen from here.
    fn remember(&mut self, history: &History, now: Instant) {
        self.pointed = Some(now);
        self.past = HashMap::new();
        for past in &history.consumers {
            let mut points = Past::default();
            for depth in &past.queue_messages {
                push(&mut points.depth, *depth);
            }
            for lag in &past.lag_seconds {
                push(&mut points.lag_ms, millis(f64::from(*lag)));
            }
            self.past.insert(past.name.clone(), points);
        }
    }

    /// The cursor stays with its consumer, and is always on one that is shown.
    fn keep_cursor(&mut self) {
        let at = {
            let shown = self.shown();
            let at = (self.selected.as_ref())
                .and_then(|name| shown.iter().position(|consumer| consumer.name == *name));
            let at = at.or(self.table.selected()).filter(|_| self.moved);
            let at = at.unwrap_or(0);
            let at = at.min(shown.len().saturating_sub(1));
            shown.get(at).map(|consumer| (at, consumer.name.clone()))
        };
        if !self.detail {
            self.selected = at.as_ref().map(|(_, name)| name.clone());
        }
        self.table.select(at.map(|(at, _)| at));
    }

    fn step(&mut self, by: isize) {
        if self.detail {
            self.scroll = self
                .scroll
                .saturating_add_signed(by.clamp(-999, 999) as i16);
            return;
        }
        let name = {
            let shown = self.shown();
            let at = self.table.selected().unwrap_or(0);
            let at = (at.saturating_add_signed(by)).min(shown.len().saturating_sub(1));
            shown.get(at).map(|consumer| consumer.name.clone())
        };
        self.selected = name;
        self.moved = by != isize::MIN;
        self.keep_cursor();
    }

    /// Does what a key means.
    pub(super) fn key(&mut self, key: KeyEvent) -> Option<Wish> {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return (key.code == KeyCode::Char('c')).then_some(Wish::Quit);
        }
        self.notice = None;
        match std::mem::replace(&mut self.front, Front::Nothing) {
            Front::Nothing => self.ordinary(key.code),
            Front::Help => None, // any key closes it
            Front::Filter(before) => {
                self.typed(key.code, before);
                None
            }
            Front::Confirm(turn) => match key.code {
                KeyCode::Char('y' | 'Y') => Some(Wish::Act(turn)),
                _ => {
                    self.notice = Some("nothing was done".into());
                    None
                }
            },
        }
    }

    fn typed(&mut self, key: KeyCode, before: String) {
        match key {
            KeyCode::Enter => return self.keep_cursor(),
            KeyCode::Esc => {
                self.filter = before;
                return self.keep_cursor();
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if self.filter.chars().count() < FILTER_MAX => self.filter.push(c),
            _ => {}
        }
        self.front = Front::Filter(before);
        self.keep_cursor();
    }

    fn ordinary(&mut self, key: KeyCode) -> Option<Wish> {
        match key {
            KeyCode::Char('q') => return Some(Wish::Quit),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => self.front = Front::Help,
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.step(PAGE),
            KeyCode::PageUp => self.step(-PAGE),
            KeyCode::Home | KeyCode::Char('g') => self.step(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.step(isize::MAX),
            KeyCode::Char('p') => self.pause(),
            KeyCode::Enter if !self.detail && self.current().is_some() => {
                self.detail = true;
                self.moved = true;
                self.scroll = 0;
                return Some(Wish::Watch(self.selected.clone()));
            }
            KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace if self.detail => {
                self.detail = false;
                self.why = None;
                self.keep_cursor();
                return Some(Wish::Watch(None));
            }
            KeyCode::Esc => {
                self.filter.clear();
                self.keep_cursor();
            }
            KeyCode::Char('/') if !self.detail => {
                self.front = Front::Filter(self.filter.clone());
            }
            KeyCode::Char('s') if !self.detail => {
                let all = Sort::value_variants();
                let at = all.iter().position(|sort| *sort == self.sort).unwrap_or(0);
                self.sort = all[(at + 1) % all.len()];
                self.keep_cursor();
            }
            KeyCode::Char('r') if !self.detail => {
                self.reverse = !self.reverse;
                self.keep_cursor();
            }
            _ => {}
        }
        None
    }

    fn pause(&mut self) {
        let Some(consumer) = self.current() else {
            return;
        };
        let (name, state) = (consumer.name.clone(), consumer.state.clone());
        let paused = consumer.is_paused();
        if !self.steers {
            self.notice = Some(
                "from here the hub can only be read: start `weir top` with --config, or with --hub \
                 and the path of its control.sock"
                    .into(),
            );
        } else if state == "halted" {
            self.notice = Some(format!(
                "{name} has halted and gets nothing anyway: mend its cause and start the hub again"
            ));
        } else {
            self.front = Front::Confirm(match paused {
                true => Turn::Resume(name),
                false => Turn::Pause(name),
            });
        }
    }
}

fn push(points: &mut VecDeque<u64>, point: u64) {
    if points.len() == POINTS {
        points.pop_front();
    }
    points.push_back(point);
}

fn millis(seconds: f64) -> u64 {
    (seconds * 1000.0) as u64 // saturates
}

#[cfg(test)]
mod tests {
    use super::super::tests::consumer;
    use super::*;

    fn seen(consumers: Vec<Consumer>) -> Seen {
        Seen {
            hub: "test".into(),
            uptime_seconds: 1.0,
            sources: Vec::new(),
            journal: None,
            consumers,
        }
    }

    fn view(names: &[&str]) -> View {
        let mut view = View::new("/run/control.sock".into(), true, Sort::Name, "");
        let consumers = names.iter().map(|name| consumer(name)).collect();
        view.hear(News::Status(Ok(seen(consumers))), Instant::now());
        view
    }

    fn press(view: &mut View, keys: &str) -> Vec<Wish> {
        let code = |c| match c {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            'v' => KeyCode::Down,
            '^' => KeyCode::Up,
            c => KeyCode::Char(c),
        };
        let keys = keys
            .chars()
            .map(|c| KeyEvent::new(code(c), KeyModifiers::NONE));
        keys.filter_map(|key| view.key(key)).collect()
    }

    #[test]
    fn the_cursor_stays_with_its_consumer() {
        let mut view = view(&["a", "b", "c"]);
        assert_eq!(view.selected.as_deref(), Some("a"));
        // As long as nobody moves it, it is on the first.
        press(&mut view, "r");
        assert_eq!(view.selected.as_deref(), Some("c"));
        press(&mut view, "r");
        press(&mut view, "vv^");
        assert_eq!(view.selected.as_deref(), Some("b"));
        press(&mut view, "r");
        assert_eq!((view.selected.as_deref(), view.reverse), (Some("b"), true));
        let mut others = vec![consumer("b"), consumer("z"), consumer("zz")];
        view.hear(News::Status(Ok(seen(others.clone()))), Instant::now());
        assert_eq!(view.table.selected(), Some(2));
        // Its consumer is gone: it is on what stands there now.
        others.remove(0);
        view.hear(News::Status(Ok(seen(others))), Instant::now());
        assert_eq!(view.selected.as_deref(), Some("z"));
        view.hear(News::Status(Ok(seen(Vec::new()))), Instant::now());
        assert_eq!(
            (view.selected.as_deref(), view.table.selected()),
            (None, None)
        );
        assert_eq!(press(&mut view, "vp\n^G"), []);
    }

    #[test]
    fn nothing_is_paused_without_a_yes() {
        let mut view = view(&["a", "b"]);
        assert_eq!(press(&mut view, "vp"), []);
        let pause = Turn::Pause("b".into());
        assert_eq!(view.front, Front::Confirm(pause.clone()));
        assert_eq!(press(&mut view, "n"), []);
        assert_eq!(view.front, Front::Nothing);
        assert_eq!(press(&mut view, "p\n"), []);
        assert_eq!(press(&mut view, "py"), [Wish::Act(pause)]);
        let mut paused = consumer("b");
        paused.state = "paused".into();
        view.hear(News::Status(Ok(seen(vec![paused]))), Instant::now());
        let resume = Turn::Resume("b".into());
        assert_eq!(press(&mut view, "py"), [Wish::Act(resume)]);
        view.steers = false;
        assert_eq!(press(&mut view, "py"), []);
        press(&mut view, "p");
        assert!(view.notice.unwrap().contains("--config"));
    }

    #[test]
    fn a_filter_is_typed_and_left() {
        let mut view = view(&["archive", "irc", "quick"]);
        press(&mut view, "/q");
        assert_eq!(view.shown().len(), 1);
        assert_eq!(view.selected.as_deref(), Some("quick"));
        press(&mut view, "\n/zz\x1b");
        assert_eq!((&*view.filter, view.shown().len()), ("q", 1));
        press(&mut view, "\x1b");
        assert_eq!(view.shown().len(), 3);
        press(&mut view, &format!("/{}", "x".repeat(100)));
        assert_eq!(view.filter.len(), FILTER_MAX);
        assert!(view.shown().is_empty());
    }

    #[test]
    fn the_detail_asks_why_and_ends() {
        let mut view = view(&["a", "b"]);
        assert_eq!(press(&mut view, "v\n"), [Wish::Watch(Some("b".into()))]);
        press(&mut view, "vvvv");
        assert_eq!((view.scroll, view.selected.as_deref()), (4, Some("b")));
        // It stays, even when its consumer does not match the filter any more, or is gone.
        view.hear(News::Status(Ok(seen(vec![consumer("a")]))), Instant::now());
        assert_eq!((view.detail, view.selected.as_deref()), (true, Some("b")));
        assert_eq!(press(&mut view, "\x1b"), [Wish::Watch(None)]);
        assert_eq!((view.detail, view.selected.as_deref()), (false, Some("a")));
        assert_eq!(press(&mut view, "?q"), []);
        assert_eq!(press(&mut view, "q"), [Wish::Quit]);
    }

    #[test]
    fn what_was_said_last_stays_and_the_past_is_bounded() {
        let mut view = view(&["a"]);
        view.hear(News::Status(Err("no hub answers".into())), Instant::now());
        assert_eq!(view.shown().len(), 1);
        assert_eq!(view.away.as_deref(), Some("no hub answers"));
        let begin = Instant::now();
        for second in 0..10_000 {
            let now = begin + Duration::from_secs(second);
            view.hear(News::Status(Ok(seen(vec![consumer("a")]))), now);
        }
        assert_eq!(view.away, None);
        assert_eq!(view.past["a"].depth.len(), POINTS);
        view.hear(
            News::Status(Ok(seen(Vec::new()))),
            begin + Duration::from_secs(20_000),
        );
        assert!(view.past.is_empty());
    }
}
