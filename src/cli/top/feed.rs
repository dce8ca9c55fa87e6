//! The thread that asks the hub, so that nobody waits for it.

use std::path::PathBuf;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::super::ask::Address;
use super::super::steer;
use super::PATIENCE;
use super::seen::Seen;
use crate::monitor::History;
use crate::steering::Action;
use crate::why::Why;

/// Less than the time after which a request tells people, on this terminal, that it still waits.
const ACT_PATIENCE: Duration = Duration::from_secs(4);

/// What comes of the hub.
pub(super) enum News {
    /// Its status, or why there is none.
    Status(Result<Seen, String>),
    /// The past, from before we asked.
    Past(History),
    /// What holds a consumer back, or why it does not tell.
    Why(String, Result<Box<Why>, String>),
    /// What came of an action.
    Done(Result<String, String>),
}

/// Asks the hub again and again, until nobody listens any more. `watched` says of which consumer it
/// is to be asked why it is as it is; whatever comes there, the hub is asked at once.
pub(super) fn follow(
    hub: &Address,
    interval: Duration,
    watched: &Receiver<Option<String>>,
    news: &Sender<News>,
) {
    let mut why: Option<String> = None;
    let mut was_away = true;
    loop {
        let seen = hub.get("/status", PATIENCE);
        let away = seen.is_err();
        let mut all = vec![News::Status(seen.map_err(|why| why.to_string()))];
        if !away {
            // One that does not know it can still be looked at, from now on.
            if was_away && let Ok(past) = hub.get("/v1/history", PATIENCE) {
                all.push(News::Past(past));
            }
            if let Some(name) = &why {
                let path = format!("/v1/consumers/{name}/why");
                let told = hub.get(&path, PATIENCE).map_err(|why| why.to_string());
                all.push(News::Why(name.clone(), told));
            }
        }
        was_away = away;
        for news_of_it in all {
            if news.send(news_of_it).is_err() {
                return;
            }
        }
        match watched.recv_timeout(interval) {
            Ok(name) => why = name,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Tells the hub something, on a thread of its own.
pub(super) fn act(socket: PathBuf, action: Action, news: Sender<News>) -> std::io::Result<()> {
    std::thread::Builder::new()
        .name("weir-act".into())
        .spawn(move || {
            let done = steer::ask(&socket, &action, ACT_PATIENCE);
            let done = done.map(|outcome| outcome.text);
            let _ = news.send(News::Done(done.map_err(|failure| failure.text)));
        })?;
    Ok(())
}
