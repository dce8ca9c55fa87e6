//! The commands that steer a hub, on one that runs and on one that is stopped.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

use crate::process::{Running, configure, stderr, stdout, weir};
use crate::support::*;

/// The real command, with the journal on.
fn kept() -> Command {
    let mut command = weir();
    command.env_remove("WEIR_JOURNAL__ENABLED");
    command
}

fn run(args: &[&str], data: &Path) -> Output {
    kept()
        .args(args)
        .arg("--data-dir")
        .arg(data)
        .output()
        .unwrap()
}

#[track_caller]
fn good(args: &[&str], data: &Path) -> String {
    let output = run(args, data);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

#[track_caller]
fn bad(args: &[&str], data: &Path, code: i32) -> String {
    let output = run(args, data);
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

struct Setting {
    dir: tempfile::TempDir,
    bus: Bus,
    config: std::path::PathBuf,
}

impl Setting {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bus = Bus::tcp();
        let toml = format!(
            "[hub]\nhttp = '127.0.0.1:0'\ndata_dir = {:?}\n[[backend]]\nconnect = ['{}']\n\
             [consumers.null]\ntopics = ''\n[consumers.file]\nkind = 'log'\ntopics = ''\n\
             file = 'log.txt'\n",
            dir.path().join("data"),
            bus.endpoint
        );
        let config = configure(dir.path(), &toml);
        Setting { dir, bus, config }
    }

    fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    fn start(&self) -> Running {
        Running::start(kept().args(["hub", "--json", "--config"]).arg(&self.config))
    }
}

fn consumer(hub: &Running, name: &str) -> Value {
    let status = hub.status();
    let consumers = status["consumers"].as_array().unwrap();
    let found = consumers.iter().find(|c| c["name"] == name);
    found.unwrap().clone()
}

#[test]
fn a_running_hub_is_steered_through_its_socket() {
    let setting = Setting::new();
    let data = setting.data();
    let hub = setting.start();
    assert_eq!(setting.bus.subscriptions(1), [""]);
    let mode = std::fs::metadata(data.join("control.sock"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(good(&["pause", "null"], &data).contains("null is paused"));
    for _ in 0..100 {
        setting.bus.publish("t", "{}");
    }
    eventually("consumed", || consumer(&hub, "file")["consumed"] == 100);
    eventually("received", || {
        consumer(&hub, "null")["queue_messages"] == 100
    });
    assert_eq!(consumer(&hub, "null")["state"], "paused");
    good(&["skip", "--consumer", "null", "--to-head"], &data);
    eventually("skipped", || {
        consumer(&hub, "null")["dropped"]["skipped"] == 100
    });
    good(&["resume", "null"], &data);
    let said = good(
        &["replay", "--consumer", "null", "--from", "51", "--json"],
        &data,
    );
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["count"], 50);
    eventually("again", || consumer(&hub, "null")["consumed"] == 50);
    good(&["replay", "--consumer", "null", "--since", "1h"], &data);
    eventually("again", || consumer(&hub, "null")["consumed"] == 150);
    good(&["journal", "flush"], &data);
    let info = good(&["journal", "info", "--json"], &data);
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(
        (&info["messages"], &info["end"]),
        (&100.into(), &101.into())
    );
    assert_eq!(info["cursors"][0]["position"], 101, "{info}");
    assert!(good(&["journal", "check"], &data).contains("100 messages"));
    assert!(bad(&["pause", "nul"], &data, 1).contains("did you mean \"null\"?"));
    assert!(bad(&["replay", "--consumer", "null", "--from", "200"], &data, 1).contains("nothing"));
    let second = kept()
        .args(["hub", "--config"])
        .arg(&setting.config)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(
        stderr(&second).contains("in use by another hub"),
        "{}",
        stderr(&second)
    );
    hub.signal("TERM");
    let (code, out, log) = hub.end();
    assert_eq!(code, Some(0), "{log}");
    let ledger: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(ledger["consumers"][0]["queue_messages"], 0);
    assert!(!data.join("control.sock").exists());
    let audit = std::fs::read_to_string(data.join("audit.log")).unwrap();
    assert_eq!(audit.lines().count(), 8, "{audit}");
    assert!(audit.contains("uid "), "{audit}");
}

#[test]
fn a_drain_ends_the_hub_in_order() {
    let setting = Setting::new();
    let hub = setting.start();
    assert_eq!(setting.bus.subscriptions(1), [""]);
    setting.bus.publish("t", "{}");
    eventually("consumed", || consumer(&hub, "file")["consumed"] == 1);
    let said = good(&["log-level", "debug"], &setting.data());
    assert!(said.contains("the log level is debug"), "{said}");
    let said = good(&["drain"], &setting.data());
    assert!(said.contains("no more messages"), "{said}");
    let (code, out, log) = hub.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("an operator wants it"), "{log}");
    let ledger: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(ledger["consumers"][0]["queue_messages"], 0);
    // One that does not run has nothing to stop, and no log.
    assert!(good(&["drain"], &setting.data()).contains("does not run"));
    assert!(bad(&["log-level", "debug"], &setting.data(), 1).contains("--log-level"));
    bad(&["log-level", "loud"], &setting.data(), 2);
}

#[test]
fn the_data_of_a_stopped_hub_is_steered_too() {
    let setting = Setting::new();
    let data = setting.data();
    let hub = setting.start();
    assert_eq!(setting.bus.subscriptions(1), [""]);
    for _ in 0..100 {
        setting.bus.publish("t", "{}");
    }
    for name in ["null", "file"] {
        eventually("consumed", || consumer(&hub, name)["consumed"] == 100);
    }
    hub.signal("TERM");
    assert_eq!(hub.end().0, Some(0));

    good(&["pause", "file"], &data);
    good(&["replay", "--consumer", "null", "--from", "91"], &data);
    good(&["replay", "--consumer", "file", "--since", "1h"], &data);
    let hub = setting.start();
    eventually("again", || consumer(&hub, "null")["consumed"] == 10);
    let file = consumer(&hub, "file");
    assert_eq!(
        (&file["state"], &file["queue_messages"]),
        (&"paused".into(), &100.into())
    );
    hub.signal("TERM");
    let (code, _, log) = hub.end();
    assert_eq!(code, Some(0), "{log}");

    good(&["skip", "--consumer", "file", "--to-head"], &data);
    good(&["resume", "file"], &data);
    let hub = setting.start();
    let file = consumer(&hub, "file");
    assert_eq!(
        (&file["state"], &file["received"]),
        (&"idle".into(), &0.into())
    );
    hub.signal("TERM");
    assert_eq!(hub.end().0, Some(0));
}

#[test]
fn what_is_wrong_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let none = dir.path().join("none");
    for args in [
        &["pause", "a"][..],
        &["dead", "list"],
        &["journal", "info"],
        &["skip", "--consumer", "a", "--to-head"],
    ] {
        assert!(bad(args, &none, 2).contains("there is no data directory"));
    }
    assert!(!none.exists());
    bad(&["skip", "--consumer", "a"], dir.path(), 2);
    bad(
        &["skip", "--consumer", "a", "--older-than", "soon"],
        dir.path(),
        2,
    );
    bad(&["replay", "--consumer", "a"], dir.path(), 2);
    bad(
        &["replay", "--consumer", "a", "--from", "-1"],
        dir.path(),
        2,
    );
    let text = bad(&["pause", "a"], dir.path(), 2);
    assert!(text.contains("no data directory of a hub"), "{text}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    bad(&["journal", "info"], dir.path(), 1);
    std::fs::create_dir_all(dir.path().join("journal")).unwrap();
    std::fs::write(dir.path().join("journal/cursors"), "nonsense").unwrap();
    let text = bad(&["pause", "a"], dir.path(), 1);
    assert!(
        text.contains("cursors") && text.contains("damaged"),
        "{text}"
    );
}
