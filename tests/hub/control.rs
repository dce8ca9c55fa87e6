//! The control interface from outside: each request, and what is refused.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use weir::backend::memory::{Feed, Memory};
use weir::token::Token;
use weir::{Config, Hub};
use weir_consumer::{Failure, Kind, Verdict};

use crate::support::*;

/// What was answered.
#[derive(Debug)]
struct Answer {
    code: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines();
        lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
    }

    /// What is wrong, which has to be said.
    #[track_caller]
    fn refused(&self, code: u16) -> String {
        assert_eq!(self.code, code, "{self:?}");
        let error = self.json()["error"].as_str().unwrap().to_owned();
        assert!(!error.is_empty());
        error
    }
}

/// Sends a request in one piece; reads until the other end closes.
fn exchange(mut stream: impl Read + Write, request: &[u8]) -> Answer {
    // Who is refused early may not get rid of all of it, and hear the end of the connection before
    // the answer.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    Answer {
        code: head
            .split(' ')
            .nth(1)
            .map_or(0, |code| code.parse().unwrap()),
        head: head.to_lowercase(),
        body: body.to_owned(),
    }
}

fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = (headers.iter())
        .map(|(name, value)| format!("{name}: {value}\r\n"))
        .collect();
    format!(
        "{method} {path} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A hub with a journal and a TCP address.
struct Served {
    feed: Feed,
    hub: Hub,
    at: SocketAddr,
    token: String,
    dir: tempfile::TempDir,
}

fn served(toml: &str, kinds: impl IntoIterator<Item = Kind>) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let toml = format!(
        "hub.http = '127.0.0.1:0'\nhub.data_dir = {:?}\n{toml}",
        dir.path()
    );
    let config = Config::embedded(&toml, &registry(kinds));
    let config = config.unwrap_or_else(|mistakes| panic!("{mistakes}"));
    let (feed, backend) = Memory::new(100_000);
    let hub = Hub::start_with(&config, vec![Box::new(backend)]).unwrap();
    let token = std::fs::read_to_string(dir.path().join("token")).unwrap();
    Served {
        feed,
        at: hub.http().unwrap(),
        hub,
        token: token.trim().to_owned(),
        dir,
    }
}

const IRC: &str = "[consumers.irc]\nkind = 'null'\ntopics = ''\n";

impl Served {
    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let request = request(method, path, headers, body);
        exchange(TcpStream::connect(self.at).unwrap(), request.as_bytes())
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[("Host", &self.at.to_string())], "")
    }

    /// As the operator.
    fn tell(&self, method: &str, path: &str, body: &str) -> Answer {
        let (host, bearer) = (self.at.to_string(), format!("Bearer {}", self.token));
        let headers = [("Host", &*host), ("Authorization", &*bearer)];
        self.send(method, path, &headers, body)
    }

    fn on_socket(&self, method: &str, path: &str, body: &str) -> Answer {
        let socket = UnixStream::connect(weir::data_dir::control(self.dir.path())).unwrap();
        exchange(
            socket,
            request(method, path, &[("Host", "weir")], body).as_bytes(),
        )
    }

    fn audit(&self) -> Vec<Value> {
        let log = std::fs::read_to_string(self.dir.path().join("audit.log")).unwrap_or_default();
        log.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }
}

/// Whether a value is as a schema of the description says; why not otherwise.
fn fits(schema: &Value, value: &Value, all: &Value) -> Result<(), String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/components/schemas/").unwrap();
        let schema = &all["components"]["schemas"][name];
        assert!(schema.is_object(), "no schema {name}");
        return fits(schema, value, all);
    }
    if let Some(one_of) = schema["oneOf"].as_array() {
        let fitting = one_of.iter().filter(|one| fits(one, value, all).is_ok());
        return match fitting.count() {
            1 => Ok(()),
            fitting => Err(format!("{value} fits {fitting} of {schema}")),
        };
    }
    let wrong = || Err(format!("{value} is not {schema}"));
    let is = |sort: &str| match sort {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        other => panic!("{other} is no type"),
    };
    let sorts = match &schema["type"] {
        Value::String(sort) => vec![sort.as_str()],
        Value::Array(sorts) => sorts.iter().map(|sort| sort.as_str().unwrap()).collect(),
        _ => Vec::new(),
    };
    if !sorts.is_empty() && !sorts.iter().any(|sort| is(sort)) {
        return wrong();
    }
    if schema["enum"]
        .as_array()
        .is_some_and(|known| !known.contains(value))
    {
        return wrong();
    }
    if schema.get("const").is_some_and(|only| only != value) {
        return wrong();
    }
    for item in value.as_array().into_iter().flatten() {
        fits(&schema["items"], item, all)?;
    }
    let Some(object) = value.as_object() else {
        return Ok(());
    };
    for key in schema["required"].as_array().into_iter().flatten() {
        if !object.contains_key(key.as_str().unwrap()) {
            return Err(format!("{key} is missing in {value}"));
        }
    }
    for (key, value) in object {
        let known = schema["properties"].get(key);
        match (known, &schema["additionalProperties"]) {
            (Some(schema), _) => fits(schema, value, all)?,
            (None, Value::Bool(false)) => return Err(format!("{key} is not described")),
            (None, Value::Null) => {}
            (None, schema) => fits(schema, value, all)?,
        }
    }
    Ok(())
}

/// The path and query with the examples of the parameters.
fn example(path: &str, operation: &Value) -> String {
    let mut path = path.to_owned();
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let name = parameter["name"].as_str().unwrap();
        let value = parameter["example"].to_string().replace('"', "");
        match parameter["in"].as_str() {
            Some("path") => path = path.replace(&format!("{{{name}}}"), &value),
            Some("query") => {
                let mark = if path.contains('?') { '&' } else { '?' };
                path = format!("{path}{mark}{name}={value}");
            }
            other => panic!("{other:?}"),
        }
    }
    path
}

/// What the description says of an answer to this operation.
#[track_caller]
fn as_described(all: &Value, what: &str, operation: &Value, answer: &Answer) {
    let mut described = &operation["responses"][answer.code.to_string()];
    if let Some(name) = described["$ref"].as_str() {
        let name = name.strip_prefix("#/components/responses/").unwrap();
        described = &all["components"]["responses"][name];
    }
    assert!(described.is_object(), "{what}: {answer:?}");
    let kind = answer.header("content-type").unwrap();
    let content = &described["content"][kind];
    assert!(content.is_object(), "{what}: {kind} is not described");
    if kind == "application/json" {
        let fit = fits(&content["schema"], &answer.json(), all);
        assert_eq!(fit, Ok(()), "{what}");
    }
}

/// The description and the server say the same, and each request answers as described: with what it
/// is for, and with what is wrong about it.
#[test]
fn the_description_is_what_is_served() {
    // As a program does; the log is the process's, so it is never told to end here.
    std::mem::forget(weir::logging::start("error", weir::logging::Format::Text).unwrap());
    let refuse = kind("refusing", |_| {
        Err(Failure::new(Verdict::DeadLetter, "odd"))
    });
    let toml = "[consumers.irc]\nkind = 'refusing'\ntopics = ''\n[consumers.null]\ntopics = ''\n\
                [publish]\nbind = ['inproc://control']\n[producers.heartbeat]\n";
    let served = served(toml, [refuse]);
    served.feed.send("t", "letter").unwrap();
    served.feed.send("t", vec![0xff; 5000]).unwrap();
    eventually("letters", || consumer(&served.hub, "irc").dead_letters == 2);

    let all = served.get("/v1/openapi.json").json();
    let paths = all["paths"].as_object().unwrap();
    let mut described = BTreeSet::new();
    for (path, operations) in paths {
        for (method, operation) in operations.as_object().unwrap() {
            let (method, what) = (method.to_uppercase(), format!("{method} {path}"));
            described.insert((method.clone(), path.clone()));
            let path = example(path, operation);
            let content = &operation["requestBody"]["content"]["application/json"];
            let body = match content.get("example") {
                Some(example) => {
                    assert_eq!(fits(&content["schema"], example, &all), Ok(()), "{what}");
                    example.to_string()
                }
                None => String::new(),
            };
            let answer = match &*path {
                "/v1/events" => {
                    let answer = served.tell("HEAD", &path, ""); // without it, it does not end
                    assert_eq!(answer.code, 200, "{answer:?}");
                    as_described(&all, &what, operation, &answer);
                    continue;
                }
                "/v1/actions" | "/v1/feed" => served.on_socket(&method, &path, &body),
                _ => served.tell(&method, &path, &body),
            };
            assert_eq!(answer.code, 200, "{what}: {answer:?}");
            as_described(&all, &what, operation, &answer);
            for (name, value) in [
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
            ] {
                assert_eq!(answer.header(name), Some(value), "{what}");
            }
            let policy = answer.header("content-security-policy").unwrap();
            assert!(policy.starts_with("default-src 'self';"), "{policy}");

            let wrong = [
                served.send(&method, &path, &[("Host", "evil.example.org")], &body),
                match content.is_object() {
                    true => served.tell(&method, &path, "{\"what\": 1}"),
                    false => served.get(&path),
                },
                match path.contains("irc") {
                    true => served.tell(&method, &path.replace("irc", "ircc"), &body),
                    false => served.get(&path),
                },
            ];
            for wrong in wrong.iter().filter(|wrong| wrong.code != 405) {
                // Over TCP there is no such path.
                if !["/v1/actions", "/v1/feed"].contains(&&*path) || wrong.code != 404 {
                    as_described(&all, &what, operation, wrong);
                }
            }
            assert_eq!(wrong[0].code, 421, "{what}");
        }
    }
    let known = weir::control::requests().into_iter();
    let known: BTreeSet<_> = known
        .map(|(method, path)| (method.into(), path.into()))
        .collect();
    assert_eq!(described, known);
    weir::logging::set_level("off").unwrap(); // one of the examples sets it
    assert_eq!(served.get("/v1/nothing").code, 404);
    assert!(
        served
            .tell("DELETE", "/v1/status", "")
            .refused(405)
            .contains("DELETE")
    );
    let audit = served.audit();
    assert!(!audit.is_empty());
    served.hub.stop();
}

#[test]
fn what_is_told_is_done_and_recorded() {
    let (kind, seen) = recorder("recorder");
    let served = served("[consumers.irc]\nkind = 'recorder'\ntopics = ''\n", [kind]);
    let tell = |path: &str, body: &str| {
        let answer = served.tell("POST", path, body);
        assert_eq!(answer.code, 200, "{path}: {answer:?}");
        answer.json()
    };
    let irc = || served.get("/v1/consumers/irc").json();
    served.feed.send("t", "1").unwrap();
    assert_eq!(numbers(&seen, 1), [1]);

    assert_eq!(
        tell("/v1/consumers/irc/pause", "{}")["text"],
        "irc is paused"
    );
    eventually("paused", || irc()["state"] == "paused");
    served.feed.send("t", "2").unwrap();
    eventually("received", || irc()["queue_messages"] == 1);
    tell("/v1/consumers/irc/skip", "{\"to_head\": true}");
    // No body is as good as an empty one.
    tell("/v1/consumers/irc/resume", "");
    eventually("skipped", || irc()["dropped"]["skipped"] == 1);
    let said = tell("/v1/consumers/irc/replay", "{\"from_sequence\": 1}");
    assert_eq!(said["count"], 2);
    assert_eq!(numbers(&seen, 2), [1, 2]);
    tell("/v1/consumers/irc/replay", "{\"since_seconds\": 3600}");
    assert_eq!(numbers(&seen, 2), [1, 2]);
    tell("/v1/journal/flush", "{}");
    let socket = served.on_socket("POST", "/v1/consumers/irc/pause", "{}");
    assert_eq!(socket.code, 200, "{socket:?}");
    served
        .tell(
            "POST",
            "/v1/consumers/irc/replay",
            "{\"from_sequence\": 99}",
        )
        .refused(409);

    let audit = served.audit();
    let by = |line: &Value| line["by"].as_str().unwrap().to_owned();
    assert_eq!(audit.len(), 8, "{audit:?}");
    assert_eq!(audit[0]["action"], json!({"pause": {"consumer": "irc"}}));
    assert!(
        by(&audit[0]).starts_with("token from 127.0.0.1:"),
        "{audit:?}"
    );
    assert!(by(&audit[6]).starts_with("uid "), "{audit:?}");
    assert_eq!(audit[7]["done"], false);
    let text = serde_json::to_string(&audit).unwrap();
    assert!(!text.contains(&served.token));
    served.hub.stop();
}

#[test]
fn dead_letters_are_read_requeued_and_deleted() {
    let refuse = kind("refusing", |_| {
        Err(Failure::new(Verdict::DeadLetter, "odd"))
    });
    let served = served(
        "[consumers.irc]\nkind = 'refusing'\ntopics = ''\n",
        [refuse],
    );
    let euros = "€".repeat(2000); // 6000 bytes; the cut goes through one
    for payload in ["short".into(), euros.clone().into_bytes(), vec![0xff; 3]] {
        let payload: Vec<u8> = payload;
        served.feed.send("t", payload).unwrap();
    }
    let path = "/v1/consumers/irc/dead-letters";
    let letters = |query: &str| served.get(&format!("{path}{query}")).json();
    eventually("letters", || {
        letters("")["letters"].as_array().unwrap().len() == 3
    });
    let all = letters("");
    assert_eq!(all["more"], false);
    let [bytes, long, short] = &all["letters"].as_array().unwrap()[..] else {
        panic!("{all}");
    };
    assert_eq!(
        (&bytes["payload"], &bytes["payload_is"]),
        (&json!("ffffff"), &json!("hex"))
    );
    assert_eq!(
        (&long["payload_bytes"], &long["payload_is"]),
        (&json!(6000), &json!("text"))
    );
    let part = long["payload"].as_str().unwrap();
    assert_eq!(part, &euros[..4095]);
    assert_eq!(short["payload"], "short");
    assert_eq!(short["causes"][0]["text"], "odd");

    let page = letters("?limit=1");
    assert_eq!((&page["letters"][0], &page["more"]), (bytes, &json!(true)));
    let page = letters(&format!("?limit=2&before={}", bytes["id"]));
    assert_eq!(
        (&page["letters"], &page["more"]),
        (&json!([long, short]), &json!(false))
    );
    for query in ["?limit=0", "?limit=501", "?limit=x", "?before=", "?after=1"] {
        served.get(&format!("{path}{query}")).refused(400);
    }

    let tell = |path: &str, body: Value| {
        let answer = served.tell("POST", path, &body.to_string());
        assert_eq!(answer.code, 200, "{answer:?}");
        answer.json()["count"].clone()
    };
    for nothing in ["{}", "", "{\"all\": false}", "{\"ids\": []}"] {
        for path in ["/v1/dead-letters/purge", "/v1/dead-letters/requeue"] {
            served.tell("POST", path, nothing).refused(400);
        }
    }
    assert_eq!(letters("")["letters"].as_array().unwrap().len(), 3);
    assert_eq!(
        tell("/v1/dead-letters/purge", json!({"ids": [short["id"]]})),
        1
    );
    assert_eq!(
        tell("/v1/dead-letters/requeue", json!({"consumer": "irc"})),
        2
    );
    eventually("tried again", || {
        let letters = letters("");
        let letters = letters["letters"].as_array().unwrap();
        letters.len() == 2 && letters.iter().all(|letter| letter["attempts"] == 2)
    });
    assert_eq!(tell("/v1/dead-letters/purge", json!({"all": true})), 2);
    served.hub.stop();
}

#[test]
fn a_request_that_makes_no_sense_is_refused_and_changes_nothing() {
    let served = served(IRC, []);
    let wrong = [
        ("/v1/consumers/irc/pause", "{\"for\": 1}"),
        ("/v1/consumers/irc/pause", "pause"),
        ("/v1/consumers/irc/skip", "{}"),
        ("/v1/consumers/irc/skip", "{\"to_head\": false}"),
        (
            "/v1/consumers/irc/skip",
            "{\"to_head\": true, \"older_than_seconds\": 1}",
        ),
        ("/v1/consumers/irc/skip", "{\"older_than_seconds\": \"1h\"}"),
        ("/v1/consumers/irc/replay", "{}"),
        ("/v1/consumers/irc/replay", "{\"from_sequence\": -1}"),
        (
            "/v1/consumers/irc/replay",
            "{\"from_sequence\": 1, \"since_seconds\": 1}",
        ),
        ("/v1/drain", "{\"now\": true}"),
        ("/v1/dead-letters/purge", "[]"),
        ("/v1/dead-letters/purge", "{\"consumers\": \"irc\"}"),
    ];
    for (path, body) in wrong {
        let why = served.tell("POST", path, body).refused(400);
        assert!(why.contains("docs/control.md") || why.contains("expected") || why.contains("say"));
    }
    let path = "/v1/consumers/irc/skip";
    served
        .tell("POST", path, "{\"older_than_seconds\": -1}")
        .refused(400);
    served
        .tell("POST", path, "{\"older_than_seconds\": 1e300}")
        .refused(400);
    let why = served
        .tell("POST", "/v1/consumers/irk/pause", "{}")
        .refused(404);
    assert!(why.contains("did you mean \"irc\"?"), "{why}");
    served
        .tell("POST", "/v1/consumers/%ff/pause", "{}")
        .refused(400);
    let irc = consumer(&served.hub, "irc");
    assert_eq!(irc.state, weir::stats::State::Idle);
    served.hub.stop();
}

#[test]
fn whoever_may_not_act_does_not() {
    let (one, other) = (served(IRC, []), served(IRC, []));
    let host = one.at.to_string();
    let own = format!("Bearer {}", one.token);
    let foreign = format!("Bearer {}", other.token);
    let port = one.at.port();
    let refused: &[(u16, &[(&str, &str)])] = &[
        (401, &[("Host", &host)]),
        (
            401,
            &[
                ("Host", &host),
                ("Authorization", "Bearer 0123456789abcdef"),
            ],
        ),
        (401, &[("Host", &host), ("Authorization", &foreign)]),
        (401, &[("Host", &host), ("Authorization", &one.token)]),
        (401, &[("Host", &host), ("Cookie", &own)]),
        (
            403,
            &[
                ("Host", &host),
                ("Authorization", &own),
                ("Origin", "https://evil.example.org"),
            ],
        ),
        (
            403,
            &[("Host", &host), ("Authorization", &own), ("Origin", "null")],
        ),
        (
            403,
            &[
                ("Host", &host),
                ("Authorization", &own),
                ("Sec-Fetch-Site", "cross-site"),
            ],
        ),
        (421, &[("Authorization", &own)]),
        (
            421,
            &[("Host", "evil.example.org"), ("Authorization", &own)],
        ),
        (
            421,
            &[
                ("Host", &format!("evil.example.org:{port}")),
                ("Authorization", &own),
            ],
        ),
    ];
    for (code, headers) in refused {
        for (method, path) in weir::control::requests() {
            let path = path.replace("{name}", "irc");
            if method != "GET" {
                one.send(method, &path, headers, "{}").refused(*code);
            }
        }
    }
    assert_eq!(one.audit(), [Value::Null; 0]);
    assert!(one.hub.drain().is_empty());
    assert_eq!(consumer(&one.hub, "irc").state, weir::stats::State::Idle);
    // Reading is refused to foreign pages, and open to everybody else.
    let by_page = [("Host", &*host), ("Origin", "https://evil.example.org")];
    one.send("GET", "/v1/status", &by_page, "").refused(403);
    let rebound = [("Host", "evil.example.org")];
    one.send("GET", "/metrics", &rebound, "").refused(421);
    assert_eq!(one.get("/v1/status").code, 200);
    one.hub.stop();
    other.hub.stop();
}

#[test]
fn a_hub_without_a_data_directory_can_not_be_told_anything() {
    let toml = format!("hub.http = '127.0.0.1:0'\njournal.enabled = false\n{IRC}");
    let config = Config::embedded(&toml, &registry([])).unwrap_or_else(|m| panic!("{m}"));
    let hub = Hub::start_with(&config, vec![Box::new(Memory::new(1).1)]).unwrap();
    let at = hub.http().unwrap();
    let host = at.to_string();
    let headers = [("Host", &*host), ("Authorization", "Bearer ")];
    let request = request("POST", "/v1/consumers/irc/pause", &headers, "{}");
    let answer = exchange(TcpStream::connect(at).unwrap(), request.as_bytes());
    assert!(answer.refused(403).contains("journal.enabled"));
    hub.stop();
}

#[test]
fn the_token_stays_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let token = |dir: &Path| Token::read(dir).unwrap().unwrap().as_str().to_owned();
    let config = format!(
        "hub.http = '127.0.0.1:0'\nhub.data_dir = {:?}\n{IRC}",
        dir.path()
    );
    let config = Config::embedded(&config, &registry([])).unwrap_or_else(|m| panic!("{m}"));
    let start = || Hub::start_with(&config, vec![Box::new(Memory::new(1).1)]).unwrap();
    start().stop();
    let first = token(dir.path());
    start().stop();
    assert_eq!(token(dir.path()), first);
}

#[test]
fn a_large_body_is_refused() {
    let served = served(IRC, []);
    let path = "/v1/consumers/irc/pause";
    let large = " ".repeat(10_000_000);
    // Answered, or cut off while it is still sending; never read to the end.
    let answer = served.tell("POST", path, &large);
    assert!([0, 413].contains(&answer.code), "{answer:?}");
    // One that does not say how long it is.
    let (host, token) = (served.at, &served.token);
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n\
         Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n989680\r\n{large}\r\n0\r\n\r\n"
    );
    let answer = exchange(TcpStream::connect(served.at).unwrap(), head.as_bytes());
    assert!([0, 413].contains(&answer.code), "{answer:?}");
    // One byte too much is small enough for the answer to arrive.
    let answer = served.tell("POST", path, &" ".repeat((1 << 20) + 1));
    assert!([0, 413].contains(&answer.code), "{answer:?}");
    let most = format!("{{}}{}", " ".repeat((1 << 20) - 2));
    assert_eq!(served.tell("POST", path, &most).code, 200);
    // A head without an end, too.
    let head = format!(
        "GET / HTTP/1.1\r\nHost: {host}\r\nX: {}",
        "x".repeat(1_000_000)
    );
    let answer = exchange(TcpStream::connect(served.at).unwrap(), head.as_bytes());
    assert!([0, 431].contains(&answer.code), "{answer:?}");
    assert_eq!(served.get("/healthz").code, 200);
    served.hub.stop();
}

#[test]
fn a_thousand_connections_are_bounded_and_hold_up_nobody() {
    let (kind, seen) = recorder("recorder");
    let served = served("[consumers.irc]\nkind = 'recorder'\ntopics = ''\n", [kind]);
    let mut open = Vec::new();
    for number in 0..1000 {
        let mut stream = TcpStream::connect(served.at).unwrap();
        if number < 256 {
            open.push(stream);
            continue;
        }
        // Those for which there is no room are told so, and closed.
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        assert!(answer.ends_with("try again in a while\"}"), "{answer}");
    }
    // The hub does its work meanwhile, and the operator gets in.
    for number in 0..1000 {
        served.feed.send("t", number.to_string()).unwrap();
    }
    assert_eq!(numbers(&seen, 1000), (0..1000).collect::<Vec<_>>());
    assert_eq!(served.on_socket("GET", "/v1/status", "").code, 200);
    // When they have gone, there is room again.
    drop(open);
    eventually("room", || served.get("/healthz").code == 200);
    served.hub.stop();
}

/// The data of the next event.
fn event(from: &mut impl BufRead) -> Value {
    let mut name = String::new();
    loop {
        let mut line = String::new();
        assert_ne!(
            from.read_line(&mut line).unwrap(),
            0,
            "the stream has ended"
        );
        if let Some(event) = line.strip_prefix("event: ") {
            name = event.trim_end().to_owned();
        } else if let Some(data) = line.strip_prefix("data: ") {
            assert_eq!(name, "status");
            return serde_json::from_str(data).unwrap();
        }
    }
}

fn listen(at: SocketAddr) -> BufReader<TcpStream> {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let request = request("GET", "/v1/events", &[("Host", &at.to_string())], "");
    stream.write_all(request.as_bytes()).unwrap();
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 200"), "{line}");
    while line != "\r\n" {
        line.clear();
        stream.read_line(&mut line).unwrap();
    }
    stream
}

#[test]
fn events_come_at_once_and_then_once_a_second_also_after_a_reconnect() {
    let served = served(IRC, []);
    let mut events = listen(served.at);
    let first = event(&mut events);
    assert_eq!(first["consumers"][0]["name"], "irc");
    let second = event(&mut events);
    let up = |status: &Value| status["uptime_seconds"].as_f64().unwrap();
    assert!(up(&second) > up(&first));
    served.feed.send("t", "1").unwrap();
    while event(&mut events)["consumers"][0]["received"] != 1 {}
    drop(events);
    let mut events = listen(served.at);
    assert_eq!(event(&mut events)["consumers"][0]["received"], 1);

    // There is room for so many; who has no room is told what to do instead.
    let mut all = vec![events];
    all.resize_with(64, || listen(served.at));
    let why = served.get("/v1/events").refused(503);
    assert!(why.contains("/v1/status"), "{why}");
    for events in &mut all {
        event(events);
    }
    all.pop();
    eventually("room", || {
        let mut stream = TcpStream::connect(served.at).unwrap();
        let request = request(
            "HEAD",
            "/v1/events",
            &[("Host", &served.at.to_string())],
            "",
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.starts_with("HTTP/1.1 200")
    });
    // A stop ends them, and does not wait for those who don't read.
    let stopped = served.hub.stop();
    assert_eq!(stopped.stuck, [""; 0]);
    let mut rest = String::new();
    all[0].read_to_string(&mut rest).unwrap();
}

#[test]
fn a_drain_is_answered_and_reaches_whoever_runs_the_hub() {
    let served = served(IRC, []);
    let answer = served.tell("POST", "/v1/drain", "{}");
    assert_eq!(answer.code, 200, "{answer:?}");
    served.hub.drain().recv_timeout(PATIENCE).unwrap();
    served.hub.stop();
}

#[test]
fn with_tls_reading_needs_the_token_too() {
    let files = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (files.path().join("a.crt"), files.path().join("a.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let toml = |key: &Path| {
        format!("hub.http_tls = {{ certificate = {certificate:?}, key = {key:?} }}\n{IRC}")
    };
    let served = served(&toml(&key), []);
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from(made.cert.der().to_vec()))
        .unwrap();
    let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = Arc::new(client);
    let host = format!("localhost:{}", served.at.port());
    let send = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(client.clone(), name).unwrap();
        let stream = TcpStream::connect(served.at).unwrap();
        let headers = [&[("Host", &*host)], headers].concat();
        let request = request(method, path, &headers, "");
        exchange(StreamOwned::new(connection, stream), request.as_bytes())
    };
    let bearer = format!("Bearer {}", served.token);
    let token = [("Authorization", &*bearer)];
    for (method, path) in weir::control::requests() {
        let path = path.replace("{name}", "irc");
        match &*path {
            "/" | "/board.css" | "/board.js" => assert_eq!(send(method, &path, &[]).code, 200),
            _ => drop(send(method, &path, &[]).refused(401)),
        }
    }
    assert_eq!(
        send("GET", "/v1/status", &token).json()["consumers"][0]["name"],
        "irc"
    );
    assert_eq!(send("POST", "/v1/consumers/irc/pause", &token).code, 200);
    let origin = format!("https://{host}");
    let page = [token[0], ("Origin", &*origin)];
    assert_eq!(send("GET", "/v1/status", &page).code, 200);
    // Without encryption nothing is said.
    let plain = served.get("/healthz");
    assert!(!plain.body.contains("status"), "{plain:?}");
    assert_eq!(served.on_socket("GET", "/v1/status", "").code, 200);
    served.hub.stop();

    let dir = tempfile::tempdir().unwrap();
    let wrong = |path: &Path| {
        let why = try_kept_on_a_port(dir.path(), &toml(path)).err().unwrap();
        assert!(why.contains("hub.http_tls"), "{why}");
        assert!(why.contains(path.to_str().unwrap()), "{why}");
    };
    wrong(&files.path().join("none"));
    wrong(&certificate);
}

fn try_kept_on_a_port(dir: &Path, toml: &str) -> Result<Hub, String> {
    let toml = format!("hub.http = '127.0.0.1:0'\nhub.data_dir = {dir:?}\n{toml}");
    let config = Config::embedded(&toml, &registry([])).unwrap_or_else(|m| panic!("{m}"));
    Hub::start_with(&config, vec![Box::new(Memory::new(1).1)])
}
