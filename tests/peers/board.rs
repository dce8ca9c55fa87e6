//! The board in a real browser. What it looks like is left in `target/screenshots`.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use weir::backend::memory::{Feed, Memory};
use weir::monitor::ConsumerStatus;
use weir::stats::State;
use weir::{Config, Hub, Registry};
use weir_consumer::{Context, Failure, Kind, Message, Result, from_fn};

use crate::browser::{Browser, ENTER, ESCAPE, PATIENCE, TAB};

/// Browsers are heavy, and times are measured: one at a time.
static ONE: Mutex<()> = Mutex::new(());

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct NoSettings {}

fn kind(name: &str, consume: impl Fn(&Message) -> Result + Clone + Send + Sync + 'static) -> Kind {
    Kind::consumer(name, move |_: NoSettings, _: &Context| {
        Ok(from_fn(consume.clone()))
    })
}

/// How long a consumer of its kind takes for a message, in microseconds.
#[derive(Clone, Default)]
struct Pace(Arc<AtomicU64>);

impl Pace {
    fn of(micros: u64) -> Self {
        Pace(Arc::new(micros.into()))
    }

    fn set(&self, micros: u64) {
        self.0.store(micros, Ordering::Relaxed);
    }

    fn kind(&self, name: &str) -> Kind {
        let pace = self.0.clone();
        kind(name, move |_| {
            std::thread::sleep(Duration::from_micros(pace.load(Ordering::Relaxed)));
            Ok(())
        })
    }
}

/// Publishes at an even rate until it is dropped.
struct Stream {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Stream {
    fn start(feed: &Feed, topic: &'static str, per_second: u64) -> Self {
        let (feed, stop) = (feed.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for number in 0_u64.. {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                let _ = feed.send(topic, format!("{{\"number\": {number}}}"));
                std::thread::sleep(Duration::from_micros(1_000_000 / per_second));
            }
        });
        Stream {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(std::thread::JoinHandle::join);
    }
}

fn free_port() -> SocketAddr {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    free.local_addr().unwrap()
}

/// A hub with a journal that answers at this address.
fn hub(dir: &Path, at: SocketAddr, toml: &str, kinds: &[Kind]) -> (Feed, Hub) {
    let toml = format!(
        "hub.name = 'fedora'\nhub.http = '{at}'\nhub.data_dir = {:?}\nhub.stop_deadline = '1s'\n{toml}",
        dir.join("data")
    );
    let registry = kinds
        .iter()
        .cloned()
        .fold(Registry::builtin(), Registry::with);
    let config = Config::embedded(&toml, &registry).unwrap_or_else(|all| panic!("{all}"));
    let (feed, backend) = Memory::new(100_000);
    let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
    (feed, hub)
}

/// A hub, and a browser that shows its board.
struct Scene {
    browser: Browser,
    feed: Feed,
    hub: Hub,
    at: SocketAddr,
    dir: tempfile::TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Scene {
    fn start(toml: &str, kinds: &[Kind]) -> Self {
        let one = ONE.lock();
        let dir = tempfile::tempdir().unwrap();
        let at = free_port();
        let (feed, hub) = hub(dir.path(), at, toml, kinds);
        let browser = Browser::start();
        browser.open(&format!("http://{at}/"));
        browser.until(LIVE);
        Scene {
            browser,
            feed,
            hub,
            at,
            dir,
            _one: one,
        }
    }

    fn consumer(&self, name: &str) -> ConsumerStatus {
        let mut all = self.hub.status().consumers.into_iter();
        all.find(|consumer| consumer.name == name).unwrap()
    }

    #[track_caller]
    fn eventually(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(Instant::now() < deadline, "still not: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn token(&self) -> String {
        let token = std::fs::read_to_string(self.dir.path().join("data/token")).unwrap();
        token.trim().to_owned()
    }

    fn audit(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("data/audit.log")).unwrap_or_default()
    }
}

const LIVE: &str = "document.querySelector('#link').dataset.is === 'live' && \
                    document.querySelector('.row')";

/// A part of a consumer's row, as a script names it.
fn part(name: &str, part: &str) -> String {
    format!("document.querySelector('[data-name=\"{name}\"] {part}').textContent")
}

#[test]
#[ignore = "needs peers: make test"]
fn falling_behind_and_catching_up_are_seen_as_they_happen() {
    let pace = Pace::of(50_000);
    let scene = Scene::start("[consumers.slow]\ntopics = ''\n", &[pace.kind("slow")]);
    let browser = &scene.browser;
    browser.until(&format!("{} === '0'", part("slow", ".depth .number")));
    browser.until(&format!("{} === 'ok'", part("slow", ".word")));
    let stream = Stream::start(&scene.feed, "t", 60);
    browser.until(&format!("{} === 'falling behind'", part("slow", ".word")));
    browser.until(&format!(
        "{}.startsWith('growing ')",
        part("slow", ".forecast")
    ));
    browser.until("document.title === '(1) fedora · weir'");
    let line = "document.querySelector('.depth .line').getAttribute('d')";
    let before = browser.run(&format!("return {line}"));
    drop(stream);
    pace.set(25_000);
    browser.until(&format!(
        "{}.startsWith('clears ')",
        part("slow", ".forecast")
    ));
    assert_ne!(browser.run(&format!("return {line}")), before);
    pace.set(0);
    browser.until(&format!("{} === '0'", part("slow", ".depth .number")));
    browser.until(&format!("{} === 'empty'", part("slow", ".forecast")));
    // The hub remembers what happened before this page was loaded.
    browser.open(&format!("http://{}/#/slow", scene.at));
    browser.run("location.reload()");
    browser.until(LIVE);
    browser.until(&format!("{line}?.length > 100"));
    browser.until("document.querySelector('.reason')?.textContent");
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
#[ignore = "needs peers: make test"]
fn a_consumer_is_paused_with_the_keyboard_alone() {
    let scene = Scene::start("[consumers.a]\nkind = 'null'\ntopics = ''\n", &[]);
    let browser = &scene.browser;
    let here = |selector: &str| format!("document.activeElement?.matches('{selector}')");
    let tab_to = |selector: &str| {
        for _ in 0..30 {
            browser.press(TAB);
            if browser.run(&format!("return {}", here(selector))) == true {
                return;
            }
        }
        panic!("no {selector} within 30 steps");
    };
    tab_to("[data-name=a] .pause");
    let outline = "return getComputedStyle(document.activeElement).outlineStyle";
    assert_ne!(browser.run(outline), "none");
    browser.press(ENTER);
    browser.until("document.querySelector('#ask').open");
    assert!(
        browser
            .run("return document.querySelector('#ask').innerText")
            .as_str()
            .unwrap()
            .contains("gets no messages until it is resumed")
    );
    browser.press(ESCAPE);
    browser.until("!document.querySelector('#ask').open");
    browser.until(&here("[data-name=a] .pause"));
    browser.press(ENTER);
    browser.until(&here("#token"));
    browser.press(&scene.token());
    browser.press(ENTER);
    scene.eventually("paused", |scene| scene.consumer("a").state == State::Paused);
    browser.until("document.querySelector('#toast').textContent === 'A is paused'");
    browser.until("document.querySelector('[data-name=a] .pause').textContent === 'Resume'");
    browser.until(&here("[data-name=a] .pause"));
    let audit = scene.audit();
    assert!(audit.contains("\"pause\""), "{audit}");
    assert!(audit.contains("token from 127.0.0.1:"), "{audit}");
    // The token was asked for once.
    browser.press(ENTER);
    browser.until(&here("#ask-yes"));
    browser.press(ENTER);
    scene.eventually("resumed", |scene| {
        scene.consumer("a").state != State::Paused
    });
    // The details open, take the focus and give it back.
    browser.until("!document.querySelector('#ask').open");
    browser.run("document.querySelector('[data-name=a] .open').focus()");
    browser.press(ENTER);
    browser.until(&here("#detail-name"));
    browser.press(ESCAPE);
    browser.until(&here("[data-name=a] .open"));
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
#[ignore = "needs peers: make test"]
fn a_wrong_token_does_nothing_and_says_so() {
    let scene = Scene::start("[consumers.a]\nkind = 'null'\ntopics = ''\n", &[]);
    let browser = &scene.browser;
    browser.click("[data-name=a] .pause");
    let wrong = "document.querySelector('#ask-wrong').textContent";
    for (token, said) in [
        ("", "A token is needed"),
        ("nonsense", "refuses this token"),
    ] {
        browser.press(token);
        browser.click("#ask-yes");
        browser.until(&format!("{wrong}.includes('{said}')"));
    }
    assert_eq!(
        browser.run("return document.querySelector('#ask').open"),
        true
    );
    assert_ne!(scene.consumer("a").state, State::Paused);
    // It was not kept.
    assert_eq!(browser.run("return sessionStorage.length"), 0);
    browser.press(&scene.token());
    browser.click("#ask-yes");
    scene.eventually("paused", |scene| scene.consumer("a").state == State::Paused);
}

#[test]
#[ignore = "needs peers: make test"]
fn with_tls_it_shows_nothing_before_it_has_the_token() {
    let _one = ONE.lock();
    let dir = tempfile::tempdir().unwrap();
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("own.pem"), own.cert.pem()).unwrap();
    std::fs::write(dir.path().join("own.key"), own.signing_key.serialize_pem()).unwrap();
    let toml = format!(
        "hub.http_tls = {{ certificate = {:?}, key = {:?} }}\n\
         [consumers.a]\nkind = 'null'\ntopics = ''\n",
        dir.path().join("own.pem"),
        dir.path().join("own.key")
    );
    let at = free_port();
    let (_feed, _hub) = hub(dir.path(), at, &toml, &[]);
    let browser = Browser::start();
    browser.open(&format!("https://{at}/"));
    browser.until("document.activeElement?.id === 'token'");
    browser.press("nonsense");
    browser.press(ENTER);
    browser.until("document.querySelector('#ask-wrong').textContent.includes('refuses')");
    assert_eq!(
        browser.run("return document.querySelectorAll('.row').length"),
        0
    );
    let token = std::fs::read_to_string(dir.path().join("data/token")).unwrap();
    browser.press(token.trim());
    browser.press(ENTER);
    browser.until(LIVE);
    browser.until("!document.querySelector('#ask').open");
    browser.click("[data-name=a] .pause");
    browser.until("document.activeElement?.id === 'ask-yes'");
}

#[test]
#[ignore = "needs peers: make test"]
fn dead_letters_are_looked_at_and_requeued() {
    let broken = Arc::new(AtomicBool::new(true));
    let state = broken.clone();
    let picky = kind("picky", move |_| match state.load(Ordering::Relaxed) {
        true => Err(Failure::dead_letter("no such channel")),
        false => Ok(()),
    });
    let scene = Scene::start("[consumers.picky]\ntopics = ''\n", &[picky]);
    let browser = &scene.browser;
    // Whatever a message says is text.
    let payload = "{\"markup\": \"<img src=x onerror=document.title=1>\"}";
    for _ in 0..3 {
        scene
            .feed
            .send("org.example.<b>topic</b>", payload)
            .unwrap();
    }
    browser.until(&format!("{} === '3'", part("picky", ".dead")));
    browser.click("[data-name=picky] .open");
    browser.until("document.querySelectorAll('.letter').length === 3");
    browser.click(".letter summary");
    browser.until("document.querySelector('.payload').textContent.includes('<img src=x')");
    browser.until("document.querySelector('.letter .topic').textContent.includes('<b>topic</b>')");
    browser.until("document.querySelector('.causes').textContent.includes('no such channel')");
    assert_eq!(
        browser.run("return document.querySelectorAll('img, main b b').length"),
        0
    );
    broken.store(false, Ordering::Relaxed);
    browser.click(".letter .requeue");
    browser.press(&scene.token());
    browser.click("#ask-yes");
    scene.eventually("one again", |scene| scene.consumer("picky").consumed == 1);
    browser.until("document.querySelectorAll('.letter').length === 2");
    browser.click(".purge-all");
    browser.until(
        "document.querySelector('#ask-title').textContent === 'Delete 2 dead letters of picky?'",
    );
    browser.click("#ask-yes");
    scene.eventually("none left", |scene| {
        scene.consumer("picky").dead_letters == 0
    });
    browser.until("document.querySelector('.letters .none').textContent === 'None.'");
    assert_eq!(scene.consumer("picky").consumed, 1);
    assert_eq!(browser.complaints(), [""; 0]);
}

#[test]
#[ignore = "needs peers: make test"]
fn a_hub_that_is_gone_is_said_to_be_and_found_again() {
    let toml = "[consumers.a]\nkind = 'null'\ntopics = ''\n";
    let Scene {
        browser,
        feed,
        hub: first,
        at,
        dir,
        _one,
    } = Scene::start(toml, &[]);
    for _ in 0..7 {
        feed.send("t", "{}").unwrap();
    }
    let ledger = "[...document.querySelectorAll('.ledger div')].map(n => n.textContent)";
    browser.click("[data-name=a] .open");
    browser.until(&format!("{ledger}.includes('Consumed7')"));
    first.stop();
    browser.until("document.body.classList.contains('stale')");
    browser.until("document.querySelector('#link').textContent.startsWith('No connection')");
    browser.until("document.querySelector('#told').textContent.includes('is lost')");
    // The last figures stay.
    assert_eq!(
        browser.run(&format!("return {ledger}.includes('Consumed7')")),
        true
    );
    browser.picture("board-gone");
    let (_feed, _second) = hub(dir.path(), at, toml, &[]);
    browser.until(LIVE);
    browser.until("!document.body.classList.contains('stale')");
    browser.until("document.querySelector('#told').textContent.includes('again')");
    browser.until(&format!("{ledger}.includes('Consumed0')"));
}

/// Printed, not asserted: a machine may be busy.
#[test]
#[ignore = "needs peers: make test"]
fn two_hundred_consumers() {
    let pace = Pace::of(100);
    let toml: String = (0..200)
        .map(|n| {
            format!(
                "[consumers.c{n:03}]\nkind = 'paced'\ntopics = 't{}.'\n",
                n % 10
            )
        })
        .collect();
    let scene = Scene::start(&toml, &[pace.kind("paced")]);
    let browser = &scene.browser;
    let topics = [
        "t0.", "t1.", "t2.", "t3.", "t4.", "t5.", "t6.", "t7.", "t8.", "t9.",
    ];
    let _streams = topics.map(|topic| Stream::start(&scene.feed, topic, 20));
    browser.run(
        "performance.clearMeasures(); window.long = [];
         new PerformanceObserver((list) => window.long.push(...list.getEntries()))
           .observe({ type: 'longtask' });",
    );
    browser.until("performance.getEntriesByName('update').length >= 20");
    let times = browser.run(
        "const times = performance.getEntriesByName('update').map((e) => e.duration);
         times.sort((a, b) => a - b);
         return { updates: times.length, median_ms: times[times.length >> 1],
           worst_ms: times.at(-1), long_tasks: window.long.map((e) => e.duration),
           rows: document.querySelectorAll('.row').length,
           nodes: document.querySelectorAll('*').length };",
    );
    println!("200 consumers: {times}");
    assert_eq!(times["rows"], 200);
    browser.picture("board-200");
    browser.run(
        "document.querySelector('#filter').value = 'c19';
         document.querySelector('#filter').dispatchEvent(new Event('input'))",
    );
    browser.until("document.querySelectorAll('.row').length === 10");
    // To the end and back: rows that come into sight are drawn.
    browser.run("document.querySelector('#filter').value = ''; document.querySelector('#filter').dispatchEvent(new Event('input'))");
    browser.run("document.querySelector('.row:last-child').scrollIntoView()");
    browser.until("document.querySelector('.row:last-child .depth .number').textContent");
}

/// Six consumers in different states, for people to look at.
#[test]
#[ignore = "needs peers: make test"]
fn how_it_looks() {
    let (draining, growing) = (Pace::of(60_000), Pace::of(60_000));
    let refuses = kind("refuses", |message| match message.seq() % 40 {
        39 => Err(Failure::dead_letter(
            "the channel #fedora-meeting is closed",
        )),
        _ => Err(Failure::retry("connection refused: irc.libera.chat:6697")),
    });
    let halts = kind("halts", |_| Err(Failure::halt("the licence has run out")));
    let toml = "[consumers.archive]\nkind = 'draining'\ntopics = 'bulk.'\n\
                [consumers.badges]\nkind = 'growing'\ntopics = 'steady.'\n\
                [consumers.irc]\nkind = 'refuses'\ntopics = 'steady.'\n\
                retry = { attempts = 0, delay_max = '2s' }\n\
                [consumers.mailer]\nkind = 'halts'\ntopics = 'steady.'\n\
                [consumers.search-index]\nkind = 'null'\ntopics = 'steady.'\n\
                [consumers.heartbeat]\nkind = 'null'\ntopics = ''\n";
    let kinds = [
        draining.kind("draining"),
        growing.kind("growing"),
        refuses,
        halts,
    ];
    let scene = Scene::start(toml, &kinds);
    let browser = &scene.browser;
    let pause = weir::steering::Action::Pause {
        consumer: "search-index".into(),
    };
    scene.hub.act(&pause, "the test").unwrap();
    let _steady = Stream::start(&scene.feed, "steady.git.receive", 30);
    let bulk = Stream::start(&scene.feed, "bulk.package.build", 200);
    let health = |name: &str, wanted: &str| {
        browser.until(&format!("{} === '{wanted}'", part(name, ".word")));
    };
    health("mailer", "halted");
    health("search-index", "paused");
    health("badges", "falling behind");
    health("irc", "stalled");
    drop(bulk);
    draining.set(20_000);
    browser.until(&format!(
        "{}.startsWith('clears ')",
        part("archive", ".forecast")
    ));
    for (scheme, width, height) in [
        ("light", 1440, 900),
        ("dark", 1440, 900),
        ("light", 390, 844),
    ] {
        browser.screen(width, height, scheme);
        browser.picture(&format!("board-{scheme}-{width}"));
    }
    browser.click("[data-name=irc] .open");
    browser.until("document.querySelector('.reason')?.textContent");
    browser.picture("board-detail-390");
    // Nothing is wider than the page.
    assert_eq!(
        browser.run("return document.documentElement.scrollWidth"),
        390
    );
    for scheme in ["light", "dark"] {
        browser.screen(1440, 900, scheme);
        browser.picture(&format!("board-detail-{scheme}"));
    }
    browser.click("[data-act=skip]");
    browser.picture("board-dialog");
    assert_eq!(browser.complaints(), [""; 0]);
}
