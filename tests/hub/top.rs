//! `weir top` where there is no terminal.

use std::path::Path;
use std::process::Output;

use serde_json::Value;

use crate::process::{Running, configure, stderr, stdout, weir};
use crate::support::*;

fn top(hub: &str, options: &[&str]) -> Output {
    let mut weir = weir();
    weir.args(["top", "--hub", hub]).args(options);
    weir.output().unwrap()
}

fn start(dir: &Path, bus: &Bus) -> Running {
    let toml = format!(
        "[hub]\nname = 'test'\nhttp = '127.0.0.1:0'\n[[backend]]\nconnect = ['{}']\n\
         [consumers.archive]\nkind = 'null'\ntopics = 'org.'\n\
         [consumers.irc]\nkind = 'null'\ntopics = 'org.irc'\nrate = '1/h'\nburst = 1\n",
        bus.endpoint
    );
    let hub = Running::start(weir().args(["hub", "--config"]).arg(configure(dir, &toml)));
    bus.subscriptions(1); // the one covers the other
    hub
}

#[test]
fn a_pipe_gets_a_table_and_programs_get_json() {
    let dir = tempfile::tempdir().unwrap();
    let bus = Bus::tcp();
    let hub = start(dir.path(), &bus);
    for _ in 0..4 {
        bus.publish("org.irc", "{}");
    }
    eventually("three wait", || {
        let status = hub.status();
        let (archive, irc) = (&status["consumers"][0], &status["consumers"][1]);
        archive["consumed"] == 4 && irc["queue_messages"] == 3
    });
    let url = format!("http://{}", hub.http);
    // No terminal is as good as --once.
    for options in [&[][..], &["--once"], &["--interval", "5s"]] {
        let output = top(&url, options);
        assert!(output.status.success(), "{}", stderr(&output));
        let text = stdout(&output);
        let rows: Vec<Vec<&str>> = text
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows.len(), 3, "{text}");
        let titles = "NAME HEALTH STATE DEPTH BEHIND LAG IN/S OUT/S FAILED DEAD FORECAST";
        assert_eq!(rows[0].join(" "), titles);
        // The one with the greater lag comes first.
        assert_eq!((rows[1][0], rows[2][0]), ("irc", "archive"), "{text}");
        assert!(
            rows[1].contains(&"limited") && rows[1].contains(&"3"),
            "{text}"
        );
        assert!(!text.contains('\x1b'));
    }
    let names = stdout(&top(&url, &["--sort", "name", "--filter", "ARCH"]));
    assert_eq!(names.lines().count(), 2, "{names}");
    assert!(names.lines().nth(1).unwrap().starts_with("archive"));

    let json = |options: &[&str]| -> Value {
        let output = top(&url, options);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let all = json(&["--once", "--json"]);
    assert_eq!(
        (&all["hub"], &all["journal"]),
        (&"test".into(), &Value::Null)
    );
    assert_eq!(all["consumers"][1]["queue_messages"], 3);
    assert_eq!(
        all["consumers"][1]["rates"]["out"]
            .as_f64()
            .map(|out| out >= 0.0),
        Some(true)
    );
    let some = json(&["--json", "--filter", "rate limited"]);
    let names: Vec<&Value> = (some["consumers"].as_array().unwrap().iter())
        .map(|consumer| &consumer["name"])
        .collect();
    assert_eq!(names, ["irc"]);
}

#[test]
fn what_does_not_work_is_said_with_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    for hub in ["http://127.0.0.1:1", socket.to_str().unwrap()] {
        let output = top(hub, &["--once"]);
        assert_eq!(output.status.code(), Some(1));
        let text = stderr(&output);
        assert!(
            text.contains(&format!("no hub answers at {hub}")) && text.contains("does it run"),
            "{text}"
        );
    }
    for wrong in [
        &["--interval", "1ms"][..],
        &["--sort", "weight"],
        &["--hub", "x"],
    ] {
        let output = top("http://127.0.0.1:1", wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
    let output = weir().arg("top").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("--config"), "{}", stderr(&output));
}
