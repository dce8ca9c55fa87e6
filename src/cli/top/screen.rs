//! The terminal: taken, drawn on, given back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, select, tick, unbounded};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};

use super::super::ask::Address;
use super::super::{Failure, hub::signals};
use super::view::{View, Wish};
use super::{Top, draw, feed};

/// The terminal as it is while we have it. A panic gives it back before it is told; whatever else
/// ends us drops this.
struct Screen(DefaultTerminal);

impl Screen {
    fn take() -> std::io::Result<Self> {
        match ratatui::try_init() {
            Ok(terminal) => Ok(Screen(terminal)),
            Err(error) => {
                ratatui::restore();
                Err(error)
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Given back twice, the panic's text would be written over.
        if !std::thread::panicking() {
            ratatui::restore();
        }
    }
}

/// Shows the hub until somebody has seen enough.
pub(super) fn run(top: &Top, hub: Address, socket: Option<PathBuf>) -> Result<(), Failure> {
    let signals = signals()?;
    let mut view = View::new(hub.to_string(), socket.is_some(), top.sort, &top.filter);
    let style = draw::Style::new(std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()));
    // That of the actions is another, so that the end of the thread that asks is seen.
    let ((sender, news), (outcome, outcomes)) = (unbounded(), unbounded());
    let (watch, watched) = unbounded();
    let interval = top.interval;
    std::thread::Builder::new()
        .name("weir-ask".into())
        .spawn(move || feed::follow(&hub, interval, &watched, &sender))?;
    let mut screen = Screen::take()?;
    let events = events()?;
    let clock = tick(Duration::from_secs(1));
    loop {
        screen
            .0
            .draw(|frame| draw::draw(frame, &mut view, &style, Instant::now()))?;
        let wish = select! {
            recv(signals) -> _ => return Ok(()),
            recv(news) -> told => match told {
                Ok(told) => {
                    view.hear(told, Instant::now());
                    None
                }
                Err(_) => return Err(Failure::run("nobody asks the hub any more")),
            },
            recv(outcomes) -> told => {
                told.into_iter().for_each(|told| view.hear(told, Instant::now()));
                None
            }
            recv(events) -> event => match event {
                Ok(Ok(Event::Key(key))) if key.kind != KeyEventKind::Release => view.key(key),
                Ok(Ok(_)) => None, // resized: drawn anew
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(Failure::run("the terminal has gone")),
            },
            recv(clock) -> _ => None,
        };
        match wish {
            None => {}
            Some(Wish::Quit) => return Ok(()),
            Some(Wish::Watch(name)) => drop(watch.send(name)),
            Some(Wish::Act(turn)) => {
                if let Some(socket) = &socket {
                    view.notice = Some("the hub has been told; waiting for its answer".into());
                    feed::act(socket.clone(), turn.into(), outcome.clone())?;
                }
            }
        }
    }
}

/// What happens at the terminal.
fn events() -> std::io::Result<Receiver<std::io::Result<Event>>> {
    let (sender, events) = bounded(100);
    std::thread::Builder::new()
        .name("weir-keys".into())
        .spawn(move || {
            loop {
                let event = event::read();
                let ends = event.is_err();
                if sender.send(event).is_err() || ends {
                    return;
                }
            }
        })?;
    Ok(events)
}
