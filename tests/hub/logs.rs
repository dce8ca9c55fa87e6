//! The log of the real binary: its formats, and storms.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use serde_json::Value;

use crate::process::{configure, stderr, stdout, weir};
use crate::support::*;

/// A hub whose standard error is a file.
struct Logging {
    child: Child,
    file: PathBuf,
}

impl Drop for Logging {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Logging {
    fn start(dir: &Path, toml: &str, options: &[&str], is_journal: bool) -> Self {
        let file = dir.join("log");
        let log = std::fs::File::create(&file).unwrap();
        let about = log.metadata().unwrap();
        let mut weir = weir();
        weir.arg("hub").args(options).arg("--config");
        weir.arg(configure(dir, toml)).env_remove("JOURNAL_STREAM");
        if is_journal {
            let stream = format!("{}:{}", about.dev(), about.ino());
            weir.env("JOURNAL_STREAM", stream);
        }
        let child = weir.stderr(log).spawn().unwrap();
        let hub = Logging { child, file };
        eventually("it has started", || {
            hub.text().contains("status    http://")
        });
        hub
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap()
    }

    /// What it has logged when it has stopped.
    fn stop(mut self) -> String {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(id).status().unwrap().success());
        assert!(self.child.wait().unwrap().success(), "{}", self.text());
        self.text()
    }
}

fn json(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

#[test]
fn a_consumer_that_fails_very_often_fills_no_disk_and_the_count_is_right() {
    const ALL: u64 = 100_000;
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    let toml = format!(
        "[hub]\nhttp = '127.0.0.1:0'\n{}[consumers.full]\nkind = 'log'\nfile = '/dev/full'\n\
         topics = ''\nretry = {{ attempts = 1 }}\nqueue = {{ messages = 200000, bytes = '1GiB' }}\n",
        connect(&[&bus.endpoint])
    );
    let hub = Logging::start(dir.path(), &toml, &["--log-format", "json"], false);
    bus.subscriptions(1);
    for i in 0..ALL {
        bus.publish("org.example.fails", i.to_string());
    }
    let text = hub.text();
    let at = text.split_once("http://").unwrap().1;
    let url = format!("http://{}", at.split_once("/status").unwrap().0);
    eventually("all have failed", || {
        let top = weir()
            .args(["top", "--json", "--hub", &url])
            .output()
            .unwrap();
        let status: Value = serde_json::from_str(&stdout(&top)).unwrap_or_default();
        status["consumers"][0]["failed"] == ALL
    });
    let lines = json(&hub.stop());
    let about = |word: &str| -> Vec<&Value> {
        let said = |line: &&Value| line["message"].as_str().unwrap().starts_with(word);
        lines.iter().filter(said).collect()
    };
    let given_up = about("given up; the message is lost");
    let more: Vec<u64> = given_up
        .iter()
        .filter_map(|line| line["more"].as_u64())
        .collect();
    let told = (given_up.len() - more.len()) as u64;
    assert_eq!(told + more.iter().sum::<u64>(), ALL);
    // Five of each window, and perhaps a last one that was no storm.
    assert!(told <= 5 * (more.len() as u64 + 1), "{told}");
    let cause = given_up.last().unwrap()["cause"].as_str().unwrap();
    assert!(cause.contains("/dev/full"), "{cause}");
    assert_eq!(given_up.last().unwrap()["consumer"], "full");
    assert_eq!(given_up.last().unwrap()["level"], "ERROR");
    // Besides: what a hub says anyway.
    assert!(lines.len() - given_up.len() < 50, "{}", lines.len());
}

#[test]
fn journald_gets_priorities_and_no_times() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    let toml = format!(
        "[hub]\nhttp = '127.0.0.1:0'\n{}[consumers.full]\nkind = 'log'\nfile = '/dev/full'\n\
         topics = ''\nretry = {{ attempts = 1 }}\n",
        connect(&[&bus.endpoint])
    );
    let log = |is_journal, options: &[&str]| {
        let hub = Logging::start(dir.path(), &toml, options, is_journal);
        bus.subscriptions(1);
        bus.publish("a", "{}");
        eventually("it failed", || hub.text().contains("given up"));
        let text = hub.stop();
        // It has unsubscribed.
        assert_eq!(bus.socket.recv_bytes(0).unwrap()[0], 0);
        text
    };
    let text = log(true, &[]);
    assert!(
        text.contains("\n<3>given up; the message is lost consumer=\"full\""),
        "{text}"
    );
    assert!(text.lines().all(|line| line.starts_with('<')), "{text}");
    // Whoever asks for another gets that; and a stream that is not ours is none.
    assert!(!log(true, &["--log-format", "text"]).contains("<3>"));
    let text = log(false, &[]);
    assert!(text.contains(" ERROR given up"), "{text}");
    assert!(!text.contains("<3>") && !text.contains('\x1b'), "{text}");
}

#[test]
fn what_is_wrong_is_said_in_the_format_too() {
    let output = weir()
        .args(["top", "--hub", "http://127.0.0.1:1", "--log-format", "json"])
        .output()
        .unwrap();
    let lines = json(&stderr(&output));
    assert_eq!((lines.len(), &lines[0]["level"]), (1, &"ERROR".into()));
    let message = lines[0]["message"].as_str().unwrap();
    assert!(message.starts_with("weir: no hub answers"), "{message}");
    let output = weir()
        .args(["kinds", "--log-level", "loud"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("trace"), "{}", stderr(&output));
}
