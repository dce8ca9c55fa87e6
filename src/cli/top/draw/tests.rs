//! Content, on screens of many sizes.

use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};

use super::super::columns::Sort;
use super::super::feed::News;
use super::*;

fn status() -> Value {
    let consumer = |name: &str, health: &str, state: &str, depth: u64, drain: Value| {
        json!({
            "name": name, "kind": "log", "topics": [""], "workers": 2, "health": health,
            "state": state, "received": depth + 1000, "consumed": 990, "failed": 7, "retried": 6,
            "panics": 0, "dropped": { "refused": 3, "overflow": 0 }, "dead_lettered": 7,
            "dead_letters": 7, "queue_messages": depth, "queue_capacity_messages": 500,
            "behind_messages": depth.saturating_sub(500), "lag_seconds": depth as f64 / 10.0,
            "drain": drain, "rates": { "in": 12.25, "out": 3.0 }, "service_per_second": 3.1,
            "processing": { "mean_seconds": 0.002, "max_seconds": 1.5 },
        })
    };
    json!({
        "hub": "fedora", "uptime_seconds": 300_000.0,
        "sources": [{ "source": 0, "received": 123_456, "refused": { "size": 2 }, "endpoints": [
            { "endpoint": "tcp://a:9940", "connections": 1, "gaps": 0, "loss": "none_seen" },
            { "endpoint": "tcp://b:9940", "connections": 0, "gaps": 5, "loss": "seen" },
        ] }],
        "journal": { "state": "failed", "why": "No space left on device", "bytes": 3 << 20,
            "begin": 1, "end": 123_457, "durable": 123_400 },
        "consumers": [
            consumer("archive", "ok", "idle", 0, json!({ "forecast": "empty" })),
            consumer("irc", "falling_behind", "rate_limited", 4242, json!({
                "forecast": "draining", "low_seconds": 240.0, "high_seconds": 420.0,
                "likely_seconds": 300.0, "confidence": 0.9 })),
            consumer("badges", "stalled", "backing_off", 99, json!({
                "forecast": "stalled", "for_seconds": 180.0 })),
        ],
    })
}

fn why() -> Value {
    json!({
        "consumer": "irc", "kind": "log", "state": "rate_limited", "health": "falling_behind",
        "queue_messages": 4242, "lag_seconds": 424.2, "drain": { "forecast": "steady" },
        "rates": { "in": 12.0, "out": 3.0 }, "service_per_second": 3.1, "workers": 2,
        "limits": { "rate_per_second": 3.0, "lane": null, "keyed": false, "attempts": 5 },
        "over_seconds": 300.0,
        "time": [{ "state": "rate_limited", "ratio": 0.9 }, { "state": "working", "ratio": 0.1 }],
        "in_hand": [{ "worker": 0, "state": "working", "seq": 4711, "topic": "org.example.x",
            "for_seconds": 12.0 }],
        "slowest": [{ "seq": 3, "topic": "org.example.slow", "messages": 1, "seconds": 1.5,
            "at_ns": 1 }],
        "topics": [{ "topic": "org.example.much", "messages": 900.0, "seconds": 3.0 }],
        "failures": [{ "cause": "451 try again later", "times": 7, "seq": 9,
            "topic": "org.example.y", "at_ns": 1 }],
        "reason": "Its rate limit holds it for 90 % of its time (12/s come, 3.0/s are let through).",
        "advice": "A higher `rate`, if whoever receives it bears that; or fewer `topics`.",
    })
}

fn view(now: Instant) -> View {
    let mut view = View::new("http://127.0.0.1:8907".into(), true, Sort::Lag, "");
    let seen = || serde_json::from_value(status()).unwrap();
    view.hear(News::Status(Ok(seen())), now - Duration::from_secs(20));
    let past = json!({ "at": [1.0, 2.0, 3.0], "consumers": [
        { "name": "irc", "queue_messages": [0, 100, 4242], "lag_seconds": [0.0, 1.0, 424.2],
          "in": [0.0, 0.0, 0.0], "out": [0.0, 0.0, 0.0] },
    ] });
    view.hear(
        News::Past(serde_json::from_value(past).unwrap()),
        now - Duration::from_secs(20),
    );
    view.hear(News::Status(Ok(seen())), now - Duration::from_secs(18));
    view
}

fn press(view: &mut View, key: KeyCode) {
    view.key(KeyEvent::new(key, KeyModifiers::NONE));
}

fn screen(view: &mut View, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let style = Style::new(true);
    let frame = |frame: &mut Frame<'_>| draw(frame, view, &style, Instant::now());
    terminal.draw(frame).unwrap();
    terminal
}

fn shown(view: &mut View, width: u16, height: u16) -> Vec<String> {
    let terminal = screen(view, width, height);
    let cells = &terminal.backend().buffer().content;
    let lines = cells.chunks(usize::from(width));
    lines
        .map(|line| {
            let line: String = line.iter().map(|cell| cell.symbol()).collect();
            line.trim_end().to_owned()
        })
        .collect()
}

#[track_caller]
fn has(lines: &[String], words: &[&str]) {
    let all = lines.join("\n");
    for word in words {
        assert!(all.contains(word), "no {word:?} in\n{all}");
    }
}

#[test]
fn a_small_screen_has_who_is_behind_and_until_when() {
    let lines = shown(&mut view(Instant::now()), 80, 24);
    assert_eq!(lines.len(), 24);
    has(
        &lines,
        &[
            "weir top  fedora  up 3 d  http://127.0.0.1:8907",
            "123k received, 5 never came, 2 refused, 1 of 2 away: tcp://b:9940",
            "failed: No space left on device, 3.0 MiB, 123k messages, 57 unsynced",
            "consumers 3: 1 stalled, 1 falling behind, 1 ok; by lag",
            "Enter why  s sort",
        ],
    );
    assert!(lines[4].starts_with("NAME"), "{}", lines[4]);
    let irc = [
        "irc",
        "falling behind",
        "4242",
        "7 min",
        "12",
        "3.0",
        "clears in 4-7 min",
    ];
    has(&lines[5..6], &irc);
    has(&lines[6..7], &["badges", "stalled", "stalled for 3 min"]);
    has(&lines[7..8], &["archive", "ok", "empty"]);
}

#[test]
fn an_endpoint_that_nobody_has_come_to_yet_is_not_away() {
    let now = Instant::now();
    let mut view = view(now);
    let mut status = status();
    status["sources"] = json!([{ "source": 0, "received": 0, "refused": {}, "endpoints": [
        { "endpoint": "tcp://*:9940", "bound": true, "connections": 0, "gaps": 0,
          "loss": "none_seen" },
    ] }]);
    view.hear(
        News::Status(Ok(serde_json::from_value(status).unwrap())),
        now,
    );
    let lines = shown(&mut view, 80, 24);
    has(&lines, &["0 received, 1 endpoint listening"]);
    assert!(!lines.join("").contains("away"), "{lines:?}");
}

#[test]
fn a_large_screen_has_all_columns_and_the_past() {
    let lines = shown(&mut view(Instant::now()), 200, 50);
    let titles = "NAME HEALTH STATE DEPTH BEHIND LAG IN/S OUT/S FAILED DEAD FORECAST DEPTH, 10 MIN";
    let found: Vec<&str> = lines[4].split_whitespace().collect();
    assert_eq!(found.join(" "), titles);
    has(
        &lines[5..6],
        &["rate limited", "3742", "clears in 4-7 min", "▁█"],
    );
    assert_eq!(lines.len(), 50);
    assert!(lines[49].contains("q quit"));
}

#[test]
fn the_detail_says_why() {
    for (width, height) in [(80, 24), (200, 50)] {
        let mut view = view(Instant::now());
        press(&mut view, KeyCode::Enter);
        has(
            &shown(&mut view, width, height),
            &["irc (log), 2 workers, everything", "asking ..."],
        );
        let why = serde_json::from_value(why()).unwrap();
        view.hear(News::Why("irc".into(), Ok(Box::new(why))), Instant::now());
        let mut all = shown(&mut view, width, height);
        has(
            &all,
            &[
                "rate limit holds it for 90 %",
                "rate limited 90 %, working 10 %",
            ],
        );
        has(&all[23..], &["Esc back"]);
        press(&mut view, KeyCode::End);
        all.extend(shown(&mut view, width, height));
        let words = [
            "message 4711 org.example.x, for 12 s",
            "7 x 451 try again later",
            "1.5 s: message 3 org.example.slow",
            "2.0 ms a message on average",
            "refused 3",
            "7 letters; weir dead list --consumer irc",
            "up to 4242",
        ];
        has(&all, &words);
        // Nothing runs out of the screen.
        assert!(
            all.iter()
                .all(|line| line.chars().count() <= usize::from(width))
        );
    }
}

#[test]
fn a_hub_that_does_not_tell_why_is_shown_without() {
    let mut view = view(Instant::now());
    press(&mut view, KeyCode::Enter);
    let told = Err("it does not know this request".to_owned());
    view.hear(News::Why("irc".into(), told), Instant::now());
    has(
        &shown(&mut view, 80, 24),
        &["the hub does not tell: it does not know this request"],
    );
    view.hear(
        News::Status(Ok(serde_json::from_value(
            json!({ "hub": "a", "uptime_seconds": 1, "consumers": [] }),
        )
        .unwrap())),
        Instant::now(),
    );
    has(&shown(&mut view, 80, 24), &["no consumer irc any more"]);
    press(&mut view, KeyCode::Esc);
    has(&shown(&mut view, 80, 24), &["this hub has no consumers"]);
}

#[test]
fn what_was_said_before_is_grey_and_how_old_it_is_is_told() {
    let now = Instant::now();
    let mut view = view(now);
    let before = screen(&mut view, 80, 24);
    let cell = |terminal: &Terminal<TestBackend>| terminal.backend().buffer()[(0, 6)].clone();
    assert_ne!(cell(&before).fg, Color::DarkGray);
    let why = "no hub answers at http://127.0.0.1:8907: Connection refused (os error 111)";
    view.hear(News::Status(Err(why.into())), now);
    let after = screen(&mut view, 80, 24);
    assert_eq!(
        (cell(&after).symbol(), cell(&after).fg),
        ("b", Color::DarkGray)
    );
    has(
        &shown(&mut view, 80, 24),
        &["Connection refused", "said 18 s ago", "falling behind"],
    );
}

#[test]
fn nothing_is_said_by_colour_alone() {
    let mut view = view(Instant::now());
    let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
    let style = Style::new(false);
    terminal
        .draw(|frame| draw(frame, &mut view, &style, Instant::now()))
        .unwrap();
    let cells = &terminal.backend().buffer().content;
    assert!(
        cells
            .iter()
            .all(|c| (c.fg, c.bg) == (Color::Reset, Color::Reset))
    );
    let stalled = terminal.backend().buffer()[(8, 6)].clone();
    assert_eq!(
        (stalled.symbol(), stalled.modifier.contains(Modifier::BOLD)),
        ("s", true)
    );
}

#[test]
fn questions_and_help_are_in_front() {
    let mut view = view(Instant::now());
    press(&mut view, KeyCode::Char('p'));
    has(
        &shown(&mut view, 80, 24),
        &[
            "Pause irc?",
            "also after a restart",
            "in the journal.",
            "y  yes",
        ],
    );
    press(&mut view, KeyCode::Esc);
    has(&shown(&mut view, 80, 24), &["nothing was done"]);
    press(&mut view, KeyCode::Char('?'));
    has(
        &shown(&mut view, 80, 24),
        &["FORECAST  when the queue", "Up Down j k"],
    );
    press(&mut view, KeyCode::Esc);
    press(&mut view, KeyCode::Char('/'));
    press(&mut view, KeyCode::Char('z'));
    has(
        &shown(&mut view, 80, 24),
        &["filter: z_", "no consumer with \"z\""],
    );
}

#[test]
fn no_size_is_too_small() {
    for width in [1, 2, 3, 5, 10, 11, 20, 30, 79, 81, 300] {
        for height in [1, 2, 3, 4, 5, 6, 10, 100] {
            let mut view = view(Instant::now());
            shown(&mut view, width, height);
            press(&mut view, KeyCode::Char('p'));
            shown(&mut view, width, height);
            press(&mut view, KeyCode::Esc);
            press(&mut view, KeyCode::Enter);
            let why = serde_json::from_value(why()).unwrap();
            view.hear(News::Why("irc".into(), Ok(Box::new(why))), Instant::now());
            press(&mut view, KeyCode::End);
            shown(&mut view, width, height);
            press(&mut view, KeyCode::Char('?'));
            view.hear(News::Status(Err("away ".repeat(50))), Instant::now());
            shown(&mut view, width, height);
        }
    }
}

#[test]
fn what_the_hub_says_can_not_steer_the_terminal() {
    let mut status = status();
    status["consumers"][0]["name"] = "\x1b[2J\nx".into();
    status["hub"] = "\x1b]0;title\x07".into();
    status["journal"]["why"] = "\x1b[31m".into();
    let mut view = view(Instant::now());
    let seen = serde_json::from_value(status).unwrap();
    view.hear(News::Status(Ok(seen)), Instant::now());
    for detail in [false, true] {
        if detail {
            press(&mut view, KeyCode::End);
            press(&mut view, KeyCode::Enter);
        }
        let lines = shown(&mut view, 200, 50);
        assert!(!lines.join("").contains(char::is_control), "{lines:#?}");
    }
}

#[test]
fn a_long_line_is_broken_between_words() {
    let text = "a few words that are rather long for so narrow a screen and averyveryverylongonethatdoesnotfit";
    let lines = broken(line("advice", text), 40);
    let texts: Vec<String> = lines.iter().map(ToString::to_string).collect();
    assert!(
        texts.iter().all(|line| line.chars().count() <= 40),
        "{texts:#?}"
    );
    assert!(texts[0].starts_with(" advice    a few words"));
    let rest = texts[1..]
        .iter()
        .all(|line| line.starts_with("           "));
    assert!(rest && texts.len() > 2, "{texts:#?}");
    let joined: String = texts.concat().split_whitespace().collect();
    let all: String = format!("advice{text}").split_whitespace().collect();
    assert_eq!(joined, all);
}

#[test]
fn many_points_are_drawn_by_their_highest() {
    let points: VecDeque<u64> = (0..120).map(|n| if n == 60 { 8 } else { 0 }).collect();
    let bars = drawn(&points, 20);
    assert_eq!((bars.chars().count(), bars.trim()), (20, "█"));
    assert_eq!(drawn(&VecDeque::new(), 20), "");
    assert_eq!(drawn(&points, 0).chars().count(), 1);
}
