//! What can be asked and told: one function a request.
//!
//! Nothing here may hold up the thread that serves everybody. What reads the disk or waits for it
//! is done on other threads, a few at a time; whoever comes then waits in line, and loses the place
//! when the connection ends.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post, put};
use axum::{Extension, Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use weir_consumer::Message;
use weir_consumer::settings::DURATION_MAX;

use super::events::Events;
use super::guard::{By, Door, Fault};
use crate::dead_letters::{Fed, Filter};
use crate::feed::Line;
use crate::logging::LEVELS;
use crate::monitor::prometheus;
use crate::monitor::sample::Dump;
use crate::monitor::{ConsumerStatus, History, Status};
use crate::probes::{Condition, Probes};
use crate::stats::LatestTimes;
use crate::steering::{Action, From, Outcome, Steering};
use crate::why::Why;

/// A filter with very many numbers of letters is some kilobytes.
const BODY_MAX: usize = 1 << 20;
/// Messages to feed a consumer with are larger: `weir replay` sends a line of 48 MiB at most, and up
/// to 1 MiB before it.
const FEED_MAX: usize = 64 << 20;
/// Threads that read the disk, and as many that act.
const AT_ONCE: usize = 4;
/// Dead letters that one answer has.
const LETTERS: usize = 50;
const LETTERS_MAX: usize = 500;
/// How much it has of each of their payloads.
const PAYLOAD_MAX: usize = 4096;

/// What answers are made of.
pub(super) struct App {
    probes: Probes,
    steering: Arc<Steering>,
    events: Arc<Events>,
    closing: watch::Receiver<bool>,
    /// How long the body of a request may take to come.
    body_time: Duration,
    reading: Arc<Semaphore>,
    acting: Arc<Semaphore>,
}

impl App {
    pub(super) fn new(
        probes: Probes,
        steering: Arc<Steering>,
        closing: watch::Receiver<bool>,
        body_time: Duration,
    ) -> Self {
        App {
            events: Arc::new(Events::new(probes.figures.clone())),
            probes,
            steering,
            closing,
            body_time,
            reading: Arc::new(Semaphore::new(AT_ONCE)),
            acting: Arc::new(Semaphore::new(AT_ONCE)),
        }
    }
}

type Shared = State<Arc<App>>;
type Route = (&'static str, &'static str, MethodRouter<Arc<App>>);

/// Method, path, and what answers.
fn routes() -> Vec<Route> {
    vec![
        ("GET", "/", get(board)),
        ("GET", "/board.css", get(board_css)),
        ("GET", "/board.js", get(board_js)),
        ("GET", "/healthz", get(healthz)),
        ("GET", "/metrics", get(metrics)),
        ("GET", "/readyz", get(readyz)),
        ("GET", "/status", get(status)),
        ("GET", "/v1/consumers", get(consumers)),
        ("GET", "/v1/consumers/{name}", get(consumer)),
        ("GET", "/v1/consumers/{name}/dead-letters", get(letters)),
        ("GET", "/v1/consumers/{name}/why", get(why)),
        ("GET", "/v1/events", get(events)),
        ("GET", "/v1/figures", get(dump)),
        ("GET", "/v1/history", get(history)),
        ("GET", "/v1/openapi.json", get(openapi)),
        ("GET", "/v1/status", get(status)),
        ("GET", "/v1/times", get(times)),
        ("POST", "/v1/consumers/{name}/pause", post(pause)),
        ("POST", "/v1/consumers/{name}/replay", post(replay)),
        ("POST", "/v1/consumers/{name}/resume", post(resume)),
        ("POST", "/v1/consumers/{name}/skip", post(skip)),
        ("POST", "/v1/dead-letters/purge", post(purge)),
        ("POST", "/v1/dead-letters/requeue", post(requeue)),
        ("POST", "/v1/drain", post(drain)),
        ("POST", "/v1/journal/flush", post(flush)),
        ("PUT", "/v1/log-level", put(log_level)),
        ("POST", "/v1/actions", post(act_as_told)),
        ("POST", "/v1/feed", post(feed)),
    ]
}

/// For the command line: what takes any [`Action`], and what takes much.
const SOCKET_ONLY: [&str; 2] = ["/v1/actions", "/v1/feed"];

/// Every request that is answered: its method and path.
pub fn requests() -> Vec<(&'static str, &'static str)> {
    let routes = routes().into_iter();
    routes.map(|(method, path, _)| (method, path)).collect()
}

/// The routes of a listener.
pub(super) fn router(app: Arc<App>, socket: bool) -> Router {
    (routes().into_iter())
        .filter(|(_, path, _)| socket || !SOCKET_ONLY.contains(path))
        .fold(Router::new(), |router, (_, path, answer)| {
            router.route(path, answer)
        })
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

async fn unknown(uri: Uri) -> Fault {
    let text = format!(
        "there is no {}; /v1/openapi.json and docs/control.md say what there is",
        uri.path()
    );
    Fault(StatusCode::NOT_FOUND, text)
}

async fn wrong_method(method: Method, uri: Uri) -> Fault {
    let text = format!("{} does not take {method}", uri.path());
    Fault(StatusCode::METHOD_NOT_ALLOWED, text)
}

async fn board() -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/html; charset=utf-8")];
    (kind, include_str!("board.html"))
}

async fn board_css() -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/css; charset=utf-8")];
    (kind, include_str!("board.css"))
}

async fn board_js() -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "text/javascript; charset=utf-8")];
    (kind, include_str!("board.js"))
}

async fn openapi() -> impl IntoResponse {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, include_str!("../../docs/openapi.json"))
}

async fn healthz(State(app): Shared) -> (StatusCode, Json<Condition>) {
    condition(app.probes.alive())
}

async fn readyz(State(app): Shared) -> (StatusCode, Json<Condition>) {
    condition(app.probes.ready())
}

fn condition(condition: Condition) -> (StatusCode, Json<Condition>) {
    let status = match condition.is_ok() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(condition))
}

async fn metrics(State(app): Shared, headers: HeaderMap) -> Response {
    let accept: Vec<&str> = (headers.get_all(header::ACCEPT).iter())
        .filter_map(|value| value.to_str().ok())
        .collect();
    let format = prometheus::Format::accepted(&accept.join(","));
    let sample = match app.probes.sample() {
        Ok(sample) => sample,
        // What scrapes them would take old figures for new ones.
        Err(why) => return (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
    };
    match prometheus::page(&sample, format) {
        Ok(page) => ([(header::CONTENT_TYPE, format.content_type())], page).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn status(State(app): Shared) -> Json<Status> {
    Json(app.probes.figures.status())
}

async fn times(State(app): Shared) -> Json<BTreeMap<String, LatestTimes>> {
    Json(app.probes.figures.times())
}

async fn dump(State(app): Shared) -> Json<Dump> {
    Json(app.probes.figures.latest().dump())
}

async fn history(State(app): Shared) -> Json<History> {
    Json(app.probes.figures.history())
}

async fn consumers(State(app): Shared) -> Json<Vec<ConsumerStatus>> {
    Json(app.probes.figures.status().consumers)
}

type Name = Result<Path<String>, PathRejection>;

/// The consumer that a path names.
fn named(app: &App, name: Name) -> Result<String, Fault> {
    let Path(name) = name.map_err(|error| Fault::new(error.status(), error.body_text()))?;
    match app.steering.known(&name) {
        Ok(()) => Ok(name),
        Err(why) => Err(Fault(StatusCode::NOT_FOUND, why)),
    }
}

async fn consumer(State(app): Shared, name: Name) -> Result<Json<ConsumerStatus>, Fault> {
    let name = named(&app, name)?;
    let consumers = app.probes.figures.status().consumers.into_iter();
    let found = consumers.into_iter().find(|consumer| consumer.name == name);
    found.map(Json).ok_or_else(|| missing(&name))
}

fn missing(name: &str) -> Fault {
    Fault(
        StatusCode::NOT_FOUND,
        format!("there is no consumer {name:?}"),
    )
}

async fn why(State(app): Shared, name: Name) -> Result<Json<Why>, Fault> {
    let name = named(&app, name)?;
    let figures = app.probes.figures.clone();
    let asked = name.clone();
    let why = aside(&app.reading, move || figures.why(&asked)).await?;
    why.map(Json).ok_or_else(|| missing(&name))
}

async fn letters(State(app): Shared, name: Name, uri: Uri) -> Result<Json<Value>, Fault> {
    let name = named(&app, name)?;
    let (mut limit, mut before) = (LETTERS, i64::MAX);
    let asked = uri.query().unwrap_or_default().split('&');
    for asked in asked.filter(|asked| !asked.is_empty()) {
        let right = match asked.split_once('=') {
            Some(("limit", number)) => number.parse().map(|number| limit = number).is_ok(),
            Some(("before", number)) => number.parse().map(|number| before = number).is_ok(),
            _ => false,
        };
        if !right || !(1..=LETTERS_MAX).contains(&limit) {
            let text = format!("expected limit=1...{LETTERS_MAX} and before=ID, found {asked:?}");
            return Err(Fault(StatusCode::BAD_REQUEST, text));
        }
    }
    let Some(store) = app.probes.figures.dead_letters.clone() else {
        return Ok(Json(json!({ "letters": [], "more": false })));
    };
    let read = move || store.newest(&name, before, limit, PAYLOAD_MAX);
    let (letters, more) = aside(&app.reading, read)
        .await?
        .map_err(|why| Fault(StatusCode::INTERNAL_SERVER_ERROR, why))?;
    Ok(Json(json!({ "letters": letters, "more": more })))
}

async fn events(
    State(app): Shared,
    Extension(door): Extension<Arc<Door>>,
) -> Result<Response, Fault> {
    match door.streams.clone().try_acquire_owned() {
        Ok(room) => Ok(app.events.clone().stream(room, app.closing.clone())),
        Err(_) => {
            let text = "too many event streams are open; ask for /v1/status now and then instead";
            Err(Fault::new(StatusCode::SERVICE_UNAVAILABLE, text))
        }
    }
}

/// Does it on another thread, when one is free.
async fn aside<T: Send + 'static>(
    threads: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fault> {
    let failed =
        |error: &dyn std::fmt::Display| Fault(StatusCode::INTERNAL_SERVER_ERROR, error.to_string());
    let thread = threads
        .clone()
        .acquire_owned()
        .await
        .map_err(|error| failed(&error))?;
    let work = move || {
        let _thread = thread;
        work()
    };
    // It is done even if whoever wanted it does not wait.
    (tokio::task::spawn_blocking(work).await).map_err(|error| failed(&error))
}

async fn act(app: &App, By(by): By, action: Action) -> Result<Json<Outcome>, Fault> {
    let steering = app.steering.clone();
    let done = aside(&app.acting, move || {
        let outcome = steering.act(&action, &by);
        outcome.map_err(|why| match action.consumer() {
            Some(name) if steering.known(name).is_err() => Fault(StatusCode::NOT_FOUND, why),
            _ => Fault(StatusCode::CONFLICT, why),
        })
    });
    Ok(Json(done.await??))
}

/// Reads the body of a request; none is `{}`.
async fn body<T: DeserializeOwned>(app: &App, request: Request) -> Result<T, Fault> {
    body_of(app, request, BODY_MAX).await
}

/// The same with so many bytes at most.
async fn body_of<T: DeserializeOwned>(
    app: &App,
    request: Request,
    bytes_max: usize,
) -> Result<T, Fault> {
    let too_large = || {
        let text = format!("a body may have {bytes_max} bytes at most");
        Fault(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > bytes_max) {
        return Err(too_large());
    }
    let read = to_bytes(request.into_body(), bytes_max);
    let Ok(read) = tokio::time::timeout(app.body_time, read).await else {
        let text = format!("the body has not come within {:?}", app.body_time);
        return Err(Fault(StatusCode::REQUEST_TIMEOUT, text));
    };
    let read = read.map_err(|error| {
        let error: &(dyn std::error::Error + 'static) = &error;
        let causes = std::iter::successors(Some(error), |error| error.source());
        let mut causes = causes.map(ToString::to_string);
        match causes.any(|cause| cause.contains("length limit exceeded")) {
            true => too_large(),
            false => Fault(
                StatusCode::BAD_REQUEST,
                format!("can't read the body: {error}"),
            ),
        }
    })?;
    let text: &[u8] = if read.is_empty() { b"{}" } else { &read };
    serde_json::from_slice(text).map_err(|error| {
        let text = format!("that is not what {BODY_HELP}: {error}");
        Fault(StatusCode::BAD_REQUEST, text)
    })
}

const BODY_HELP: &str = "this takes (docs/control.md)";

/// Nothing more to be said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

async fn pause(
    State(app): Shared,
    Extension(by): Extension<By>,
    name: Name,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let consumer = named(&app, name)?;
    let Nothing {} = body(&app, request).await?;
    act(&app, by, Action::Pause { consumer }).await
}

async fn resume(
    State(app): Shared,
    Extension(by): Extension<By>,
    name: Name,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let consumer = named(&app, name)?;
    let Nothing {} = body(&app, request).await?;
    act(&app, by, Action::Resume { consumer }).await
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Skip {
    older_than_seconds: Option<f64>,
    to_head: bool,
}

async fn skip(
    State(app): Shared,
    Extension(by): Extension<By>,
    name: Name,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let consumer = named(&app, name)?;
    let older_than_seconds = match body(&app, request).await? {
        Skip {
            older_than_seconds: Some(seconds),
            to_head: false,
        } => Some(age("older_than_seconds", seconds)?),
        Skip {
            older_than_seconds: None,
            to_head: true,
        } => None,
        _ => {
            return Err(one_of(
                "{\"older_than_seconds\": NUMBER}",
                "{\"to_head\": true}",
            ));
        }
    };
    let action = Action::Skip {
        consumer,
        older_than_seconds,
    };
    act(&app, by, action).await
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
#[derive(Default)]
struct Replay {
    since_seconds: Option<f64>,
    from_sequence: Option<u64>,
}

async fn replay(
    State(app): Shared,
    Extension(by): Extension<By>,
    name: Name,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let consumer = named(&app, name)?;
    let from = match body(&app, request).await? {
        Replay {
            since_seconds: Some(seconds),
            from_sequence: None,
        } => From::Seconds(age("since_seconds", seconds)?),
        Replay {
            since_seconds: None,
            from_sequence: Some(number),
        } => From::Sequence(number),
        _ => {
            return Err(one_of(
                "{\"since_seconds\": NUMBER}",
                "{\"from_sequence\": NUMBER}",
            ));
        }
    };
    act(&app, by, Action::Replay { consumer, from }).await
}

/// A time that has passed, in seconds.
fn age(key: &str, seconds: f64) -> Result<f64, Fault> {
    match (0.0..=DURATION_MAX.as_secs_f64()).contains(&seconds) {
        true => Ok(seconds),
        false => Err(Fault(
            StatusCode::BAD_REQUEST,
            format!("`{key}` is {seconds}: expected seconds from 0 to ten years"),
        )),
    }
}

fn one_of(one: &str, other: &str) -> Fault {
    Fault(
        StatusCode::BAD_REQUEST,
        format!("expected either {one} or {other}"),
    )
}

async fn requeue(
    State(app): Shared,
    Extension(by): Extension<By>,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let filter = filter(body(&app, request).await?)?;
    act(&app, by, Action::Requeue { filter }).await
}

async fn purge(
    State(app): Shared,
    Extension(by): Extension<By>,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let filter = filter(body(&app, request).await?)?;
    act(&app, by, Action::Purge { filter }).await
}

/// Which letters are meant. All of them only if it says so: a client that forgets what it wanted to
/// say must not delete everything.
fn filter(mut asked: serde_json::Map<String, Value>) -> Result<Filter, Fault> {
    let wrong = |text: String| Fault(StatusCode::BAD_REQUEST, text);
    let all = asked.remove("all");
    if asked
        .get("ids")
        .and_then(Value::as_array)
        .is_some_and(Vec::is_empty)
    {
        return Err(wrong(
            "`ids` names no letter; leave it out if the rest says which".into(),
        ));
    }
    // All begin with nothing, and all contain it: that is not what anybody means.
    let mut texts = ["consumer", "topic", "reason", "cause"].into_iter();
    let blank = |key: &&str| {
        let text = asked.get(*key).and_then(Value::as_str);
        text.is_some_and(|text| text.trim_end_matches('*').is_empty())
    };
    if let Some(key) = texts.find(blank) {
        let text = format!("`{key}` says nothing; leave it out if the rest says which");
        return Err(wrong(text));
    }
    let filter: Filter = serde_json::from_value(asked.into())
        .map_err(|error| wrong(format!("that is not what {BODY_HELP}: {error}")))?;
    match (all, filter == Filter::default()) {
        (Some(Value::Bool(true)), _) | (None | Some(Value::Bool(false)), false) => Ok(filter),
        (None | Some(Value::Bool(false)), true) => Err(wrong(
            "say which letters, such as {\"consumer\": \"NAME\"}, or {\"all\": true}".into(),
        )),
        (Some(_), _) => Err(wrong("`all` is true or false".into())),
    }
}

async fn flush(
    State(app): Shared,
    Extension(by): Extension<By>,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let Nothing {} = body(&app, request).await?;
    act(&app, by, Action::Flush).await
}

async fn drain(
    State(app): Shared,
    Extension(by): Extension<By>,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let Nothing {} = body(&app, request).await?;
    act(&app, by, Action::Drain).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogLevel {
    level: String,
}

async fn log_level(
    State(app): Shared,
    Extension(by): Extension<By>,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let LogLevel { level } = body(&app, request).await?;
    if !LEVELS.contains(&level.as_str()) {
        let text = format!(
            "`level` is {level:?}: expected one of {}",
            LEVELS.join(", ")
        );
        return Err(Fault(StatusCode::BAD_REQUEST, text));
    }
    act(&app, by, Action::LogLevel { level }).await
}

async fn act_as_told(
    State(app): Shared,
    Extension(by): Extension<By>,
    request: Request,
) -> Result<Json<Outcome>, Fault> {
    let action = body(&app, request).await?;
    act(&app, by, action).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Feed {
    consumer: String,
    messages: Vec<Line>,
}

async fn feed(
    State(app): Shared,
    Extension(By(by)): Extension<By>,
    request: Request,
) -> Result<Json<Fed>, Fault> {
    let Feed { consumer, messages } = body_of(&app, request, FEED_MAX).await?;
    app.steering
        .known(&consumer)
        .map_err(|why| Fault(StatusCode::NOT_FOUND, why))?;
    let messages: Result<Vec<Message>, String> = messages.iter().map(Line::message).collect();
    let messages = messages.map_err(|why| Fault(StatusCode::BAD_REQUEST, why))?;
    let steering = app.steering.clone();
    let feed = move || steering.feed(&consumer, &messages, &by);
    let fed = aside(&app.acting, feed).await?;
    fed.map(Json)
        .map_err(|why| Fault(StatusCode::CONFLICT, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letters(asked: Value) -> Result<Filter, String> {
        let Value::Object(asked) = asked else {
            panic!("no object");
        };
        filter(asked).map_err(|fault| fault.1)
    }

    #[test]
    fn times_are_those_that_have_passed() {
        for wrong in [-1.0, f64::NAN, f64::INFINITY, 1e30] {
            assert!(age("since_seconds", wrong).is_err(), "{wrong}");
        }
        assert_eq!(age("since_seconds", 0.5).map_err(|fault| fault.1), Ok(0.5));
    }

    #[test]
    fn all_letters_are_meant_only_if_it_is_said() {
        for asked in [json!({}), json!({"all": false}), json!({"ids": []})] {
            assert!(letters(asked.clone()).is_err(), "{asked}");
        }
        // What had been selected is no more: that is not everything of the consumer.
        assert!(letters(json!({"ids": [], "consumer": "a"})).is_err());
        for nothing in [
            json!({"cause": ""}),
            json!({"topic": "*"}),
            json!({"reason": ""}),
        ] {
            assert!(letters(nothing.clone()).is_err(), "{nothing}");
        }
        assert!(letters(json!({"all": "yes"})).is_err());
        assert!(
            letters(json!({"consumers": "a"}))
                .unwrap_err()
                .contains("consumers")
        );
        assert_eq!(letters(json!({"all": true})), Ok(Filter::default()));
        let filter = letters(json!({"ids": [1, 2]})).unwrap();
        assert_eq!(filter.ids, [1, 2]);
        let filter = letters(json!({"consumer": "a", "reason": "crash"})).unwrap();
        assert_eq!(filter.consumer.as_deref(), Some("a"));
    }
}
