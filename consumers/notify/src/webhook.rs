//! The route `webhook`: a POST of JSON to an address of the user's.
//!
//! 1. Nothing is sent to an address that does not stand in the configuration: no redirect is
//!    followed, no proxy is asked.
//! 2. A repeat has the same body, and its `id` tells that it is one.
//! 3. An endpoint that says when it wants to be asked again is not asked before.
//!
//! Of an answer at most 64 KiB are read, and none of it but the status counts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ring::hmac;
use serde::{Deserialize, Serialize};
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, http};
use weir_consumer::{Message, Secret, settings};

use crate::delivery::Outcome;
use crate::users::Url;

const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// What is longer of a payload is not posted.
const PAYLOAD_BYTES_MAX: usize = 256 << 10;

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    secret: Option<Secret>,
    ca: Option<PathBuf>,
    /// For a whole request, connection included.
    #[serde(deserialize_with = "settings::duration")]
    timeout: Duration,
    #[serde(deserialize_with = "settings::duration")]
    retry_after_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            secret: None,
            ca: None,
            timeout: Duration::from_secs(5),
            retry_after_max: Duration::from_secs(3600),
        }
    }
}

impl Settings {
    /// What is wrong with the settings as a whole.
    pub(crate) fn problem(&self) -> Option<String> {
        crate::bad_timeout(self.timeout).map(|problem| format!("webhook: {problem}"))
    }
}

/// What is posted.
#[derive(Serialize)]
struct Posted<'p> {
    id: String,
    user: &'p str,
    topic: &'p str,
    received: f64,
    text: &'p str,
    #[serde(skip_serializing_if = "Option::is_none")]
    json: Option<&'p serde_json::Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'p str>,
    /// The payload is not there, or not all of it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    cut: bool,
}

/// The body for a message.
pub(crate) fn body(hub: &str, user: &str, message: &Message, text: &str) -> Vec<u8> {
    let payload = message.payload();
    let whole = payload.len() <= PAYLOAD_BYTES_MAX;
    let json = message.json().ok().filter(|_| whole);
    let text_of_payload = String::from_utf8_lossy(&payload[..payload.len().min(PAYLOAD_BYTES_MAX)]);
    let posted = Posted {
        id: format!("{hub}-{}-{}", message.received_ns(), message.seq()),
        user,
        topic: message.topic(),
        received: message.received_ns() as f64 / 1e9,
        text,
        json,
        payload: json.is_none().then_some(&text_of_payload),
        cut: !whole,
    };
    // Nothing in it can fail: no map has keys that are not texts.
    serde_json::to_vec(&posted).unwrap_or_default()
}

/// The route: its settings, and a client once there is one.
pub(crate) struct Webhook {
    settings: Settings,
    data_dir: PathBuf,
    agent: Option<Agent>,
}

impl Webhook {
    pub(crate) fn new(settings: Settings, data_dir: &Path) -> Self {
        Webhook {
            settings,
            data_dir: data_dir.into(),
            agent: None,
        }
    }

    pub(crate) fn deliver(&mut self, url: &Url, body: &[u8]) -> Outcome {
        let origin = &url.origin;
        let signed = match self.headers(body) {
            Ok(signed) => signed,
            Err(text) => return Outcome::Down(text),
        };
        let agent = match self.agent() {
            Ok(agent) => agent,
            Err(text) => return Outcome::Down(text),
        };
        let mut request = (agent.post(&url.uri)).content_type("application/json");
        for (name, value) in &signed {
            request = request.header(*name, value);
        }
        match request.send(body) {
            Ok(answer) => self.answered(origin, answer),
            // Neither the path nor anything else of the address is shown: it can be a secret.
            Err(ureq::Error::Timeout(_)) => Outcome::Silent(format!("{origin}: no answer in time")),
            Err(ureq::Error::Io(error)) => {
                if error.kind() == std::io::ErrorKind::InvalidData {
                    self.agent = None; // of a certificate: those that are trusted are read anew
                }
                Outcome::Down(format!("{origin}: {error}"))
            }
            Err(ureq::Error::HostNotFound) => {
                Outcome::Down(format!("{origin}: the name has no address"))
            }
            Err(ureq::Error::Rustls(error)) => {
                self.agent = None;
                Outcome::Down(format!("{origin}: TLS: {error}"))
            }
            Err(error @ (ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..))) => {
                Outcome::Silent(format!("{origin}: the answer is none of HTTP: {error}"))
            }
            Err(ureq::Error::ConnectionFailed) => Outcome::Down(format!("{origin}: no connection")),
            Err(_) => Outcome::Silent(format!("{origin}: not posted")),
        }
    }

    fn answered(&self, origin: &str, answer: http::Response<ureq::Body>) -> Outcome {
        let status = answer.status();
        let text = format!("{origin} answers {status}");
        let wait = (answer.headers().get("retry-after"))
            .and_then(|value| value.to_str().ok())
            .and_then(|value| retry_after(value, SystemTime::now()))
            .map(|wait| wait.min(self.settings.retry_after_max));
        // Read, so that the connection can be used again; what is more ends the connection.
        let body = answer.into_body().into_with_config();
        let _ = body.limit(ANSWER_BYTES_MAX).read_to_vec();
        match status.as_u16() {
            200..=299 => Outcome::Delivered,
            // They say that it can be taken another time.
            408 | 425 | 429 => Outcome::Later { text, after: wait },
            500..=599 => Outcome::Later { text, after: wait },
            300..=399 => Outcome::Refused {
                reason: "refused",
                text: format!("{text}; redirects are not followed, write the address itself"),
            },
            _ => Outcome::Refused {
                reason: "refused",
                text,
            },
        }
    }

    fn headers(&self, body: &[u8]) -> Result<Vec<(&'static str, String)>, String> {
        let Some(secret) = &self.settings.secret else {
            return Ok(Vec::new());
        };
        let secret = secret.read(&self.data_dir)?;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let timestamp = since_1970.unwrap_or_default().as_secs().to_string();
        let signature = signature(secret.expose(), &timestamp, body);
        Ok(vec![
            ("X-Weir-Timestamp", timestamp),
            ("X-Weir-Signature", signature),
        ])
    }

    fn agent(&mut self) -> Result<Agent, String> {
        if let Some(agent) = &self.agent {
            return Ok(agent.clone());
        }
        let ca = self.settings.ca.as_ref().map(|ca| self.data_dir.join(ca));
        let roots = crate::tls::roots(ca.as_deref());
        // Without any root, `http` still works.
        let roots = match roots {
            Ok(roots) => roots,
            Err(_) if ca.is_none() => Vec::new(),
            Err(problem) => return Err(problem),
        };
        let roots: Vec<_> = (roots.iter())
            .map(|der| Certificate::from_der(der).to_owned())
            .collect();
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .root_certs(RootCerts::Specific(Arc::new(roots)))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_global(Some(self.settings.timeout))
            .max_response_header_size(ANSWER_BYTES_MAX as usize)
            .user_agent(concat!("weir/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        self.agent = Some(agent.clone());
        Ok(agent)
    }
}

/// The value of `X-Weir-Signature`: over the time, a dot and the body.
fn signature(secret: &str, timestamp: &str, body: &[u8]) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes());
    let mut context = hmac::Context::with_key(&key);
    context.update(timestamp.as_bytes());
    context.update(b".");
    context.update(body);
    format!("sha256={}", crate::hex(context.sign().as_ref()))
}

/// How long to wait: given in seconds, or as a date.
fn retry_after(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    if !value.is_empty() && value.bytes().all(|c| c.is_ascii_digit()) {
        // More digits than a number has room for are a long time, too.
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_signature_is_that_of_openssl() {
        // printf '1700000000.{"id":1}' | openssl dgst -sha256 -hmac secret
        assert_eq!(
            signature("secret", "1700000000", br#"{"id":1}"#),
            "sha256=3dd1b9aef568d75f6790a84bd2e5dfa1f44409eef3cbdbd3f10b837376100c11"
        );
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_767);
        let seconds = |value| retry_after(value, now).map(|wait| wait.as_secs());
        assert_eq!(seconds("120"), Some(120));
        assert_eq!(seconds(" 0 "), Some(0));
        assert_eq!(seconds("99999999999999999999999"), Some(u64::MAX));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(10));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:17 GMT"), Some(0));
        for wrong in ["", "-1", "1.5", "soon", "1e3"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn retry_after_stands_anything(value in ".{0,60}") {
            let _ = retry_after(&value, SystemTime::now());
        }
    }

    #[test]
    fn a_body_has_json_as_json_and_all_else_as_text() {
        let message = |payload: Vec<u8>| Message::at_ns("t".into(), payload.into(), 7, 3);
        let read = |payload: &[u8]| -> serde_json::Value {
            serde_json::from_slice(&body("hub", "ann", &message(payload.to_vec()), "x")).unwrap()
        };
        let json = read(br#"{"a": 1}"#);
        assert_eq!(json["id"], "hub-7-3");
        assert_eq!(json["json"]["a"], 1);
        assert!(json.get("payload").is_none() && json.get("cut").is_none());
        let text = read(b"a\xff");
        assert_eq!(text["payload"], "a\u{fffd}");
        let long = read(&[b"1".repeat(PAYLOAD_BYTES_MAX + 1)].concat());
        assert_eq!((&long["cut"], long.get("json")), (&true.into(), None));
        assert_eq!(long["payload"].as_str().unwrap().len(), PAYLOAD_BYTES_MAX);
    }
}
