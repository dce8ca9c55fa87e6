//! Debian's Chromium, driven through `chromedriver`: the few requests of WebDriver that tests need.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Only a test that fails waits for so long.
pub const PATIENCE: Duration = Duration::from_secs(120);

pub const TAB: &str = "\u{E004}";
pub const ENTER: &str = "\u{E007}";
pub const ESCAPE: &str = "\u{E00C}";

/// One window, and the programs behind it.
pub struct Browser {
    driver: Child,
    _input: ChildStdin,
    port: u16,
    session: String,
    _profile: tempfile::TempDir,
}

/// A test that fails leaves no browser behind.
impl Drop for Browser {
    fn drop(&mut self) {
        let _ = ask(self.port, "DELETE", &self.session, &Value::Null);
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

fn ask(port: u16, method: &str, path: &str, body: &Value) -> Result<Value, String> {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    let said = |error: std::io::Error| format!("{method} {path}: {error}");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).map_err(said)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(said)?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).map_err(said)?;
    let mut answer = BufReader::new(stream);
    let (mut line, mut length) = (String::new(), 0);
    loop {
        line.clear();
        answer.read_line(&mut line).map_err(said)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut text = vec![0; length];
    answer.read_exact(&mut text).map_err(said)?;
    let answer: Value = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
    match answer["value"]["error"].as_str() {
        Some(error) => Err(format!("{path}: {error}: {}", answer["value"]["message"])),
        None => Ok(answer["value"].clone()),
    }
}

/// A PNG as WebDriver sends it.
fn base64(text: &str) -> Vec<u8> {
    let value = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let digits: Vec<u8> = text.bytes().filter(|c| *c != b'=').map(value).collect();
    let bytes = digits.chunks(4).flat_map(|four| {
        let bits = (0..4).fold(0, |bits, place| {
            bits << 6 | u32::from(four.get(place).copied().unwrap_or(0))
        });
        let [_, bytes @ ..] = bits.to_be_bytes();
        bytes.into_iter().take(four.len() - 1)
    });
    bytes.collect()
}

impl Browser {
    pub fn start() -> Self {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("chromedriver; run `make setup`");
        let said = BufReader::new(driver.stdout.take().unwrap());
        let port = said.lines().map_while(Result::ok).find_map(|line| {
            let port = line.split_once("started successfully on port ")?.1;
            port.trim_end_matches('.').parse().ok()
        });
        let port = port.expect("chromedriver says its port");
        let profile = tempfile::tempdir().unwrap();
        let arguments = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            "--window-size=1440,900",
            &format!("--user-data-dir={}", profile.path().display()),
        ];
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "acceptInsecureCerts": true,
            "goog:loggingPrefs": {"browser": "ALL"},
            "goog:chromeOptions": {"args": arguments},
        }}});
        let input = driver.stdin.take().unwrap();
        let mut browser = Browser {
            driver,
            _input: input,
            port,
            session: String::from("/shutdown"),
            _profile: profile,
        };
        let session = ask(port, "POST", "/session", &wanted).unwrap();
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    #[track_caller]
    fn tell(&self, what: &str, body: Value) -> Value {
        let path = format!("{}/{what}", self.session);
        let method = if body.is_null() { "GET" } else { "POST" };
        ask(self.port, method, &path, &body).unwrap_or_else(|why| panic!("{why}"))
    }

    #[track_caller]
    pub fn open(&self, url: &str) {
        self.tell("url", json!({ "url": url }));
    }

    /// What a function with this body returns in the page.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.tell("execute/sync", json!({"script": script, "args": []}))
    }

    /// Waits until an expression is true in the page.
    #[track_caller]
    pub fn until(&self, expression: &str) {
        let deadline = Instant::now() + PATIENCE;
        let script = format!("return Boolean({expression})");
        while self.run(&script) != true {
            let page = || self.run("return document.body.innerText");
            assert!(
                Instant::now() < deadline,
                "still not: {expression} in\n{}",
                page().as_str().unwrap()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Presses and releases these keys, one after another, wherever the focus is.
    #[track_caller]
    pub fn press(&self, keys: &str) {
        let presses: Vec<Value> = (keys.chars())
            .flat_map(|key| ["keyDown", "keyUp"].map(|sort| json!({"type": sort, "value": key})))
            .collect();
        let keyboard = json!({"type": "key", "id": "keyboard", "actions": presses});
        self.tell("actions", json!({"actions": [keyboard]}));
    }

    /// Clicks in the middle of an element, which must be in sight there.
    #[track_caller]
    pub fn click(&self, selector: &str) {
        let wanted = json!({"using": "css selector", "value": selector});
        let found = self.tell("element", wanted);
        let id = found.as_object().unwrap().values().next().unwrap();
        let path = format!("element/{}/click", id.as_str().unwrap());
        self.tell(&path, json!({}));
    }

    /// As a screen of this size shows it, light or dark.
    #[track_caller]
    pub fn screen(&self, width: u32, height: u32, scheme: &str) {
        let tell = |command: &str, parameters: Value| {
            self.tell(
                "goog/cdp/execute",
                json!({"cmd": command, "params": parameters}),
            );
        };
        tell(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}),
        );
        tell(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]}),
        );
    }

    /// Leaves a picture in `target/screenshots`.
    #[track_caller]
    pub fn picture(&self, name: &str) {
        // So that what was just changed is drawn.
        self.tell(
            "execute/async",
            json!({"script": "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))", "args": []}),
        );
        let picture = self.tell("screenshot", Value::Null);
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/screenshots");
        std::fs::create_dir_all(&dir).unwrap();
        let picture = base64(picture.as_str().unwrap());
        assert!(picture.starts_with(b"\x89PNG"));
        std::fs::write(dir.join(format!("{name}.png")), picture).unwrap();
    }

    /// What the page's console has said since it was last asked.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let said = self.tell("se/log", json!({"type": "browser"}));
        let bad = said.as_array().unwrap().iter();
        bad.filter(|line| line["level"] == "SEVERE")
            .map(|line| line["message"].as_str().unwrap().to_owned())
            .collect()
    }
}
