//! `weir archive query` and `weir replay --from-archive`: the real binary beside a hub.

use std::ffi::OsStr;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crossbeam_channel::{Receiver, unbounded};
use serde_json::Value;
use weir::Hub;
use weir::dead_letters::{DeadLetters, FILE, Filter};
use weir_consumer::{Failure, Kind, Message};

use crate::process::{stderr, stdout};
use crate::support::*;

/// What a consumer was given: payload, and whether it comes again.
type Given = Receiver<(Vec<u8>, bool)>;

/// A kind that tells what it gets, and sets aside what is `bad`.
fn seen() -> (Kind, Given) {
    let (sender, seen) = unbounded();
    let kind = kind("seen", move |message: &Message| {
        sender.send((message.payload().to_vec(), message.replayed()))?;
        match &message.payload()[..] {
            b"bad" => Err(Failure::dead_letter("it is bad")),
            _ => Ok(()),
        }
    });
    (kind, seen)
}

const CONSUMERS: &str = "[consumers.archive]\ntopics = ''\n[consumers.seen]\ntopics = 'nothing.'\n";

fn weir(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

fn query(dir: &Path, args: &[&str]) -> Output {
    let url = format!("sqlite:{}/archive.db", dir.display());
    weir(&["archive", "query", "--url", &url])
        .args(args)
        .output()
        .unwrap()
}

/// The lines of what is in the archive.
fn lines(dir: &Path, args: &[&str]) -> Vec<Value> {
    let output = query(dir, &[&["--json"], args].concat());
    assert!(output.status.success(), "{output:?}");
    let lines = stdout(&output);
    lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Begins to feed this to the consumer `seen`, of the hub that has its data there.
fn feeding(dir: &Path, lines: &str) -> Child {
    feeding_with(&["--data-dir".as_ref(), dir.as_os_str()], lines)
}

fn feeding_with(args: &[&OsStr], lines: &str) -> Child {
    let mut child = weir(&["replay", "--consumer", "seen", "--from-archive", "-"])
        .args(args)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    // On a thread: the command reads no further while too much waits.
    let (mut stdin, lines) = (child.stdin.take().unwrap(), lines.to_owned());
    std::thread::spawn(move || {
        let _ = stdin.write_all(lines.as_bytes());
    });
    child
}

fn feed(dir: &Path, lines: &str) -> Output {
    feeding(dir, lines).wait_with_output().unwrap()
}

/// A configuration that says which hub it is that has its data there.
fn config(dir: &Path, hub: &str) -> PathBuf {
    let file = dir.join(format!("{hub}.toml"));
    let toml = format!(
        "[hub]\nname = '{hub}'\ndata_dir = {dir:?}\n[[backend]]\nconnect = ['inproc://a']\n\
         [consumers.archive]\ntopics = ''\n"
    );
    std::fs::write(&file, toml).unwrap();
    file
}

/// Feeds this to the consumer `seen` of the hub of this name.
fn feed_hub(dir: &Path, hub: &str, args: &[&str], lines: &str) -> Output {
    let config = config(dir, hub);
    let mut all = vec![OsStr::new("--config"), config.as_os_str()];
    all.extend(args.iter().map(OsStr::new));
    feeding_with(&all, lines).wait_with_output().unwrap()
}

/// Lines of messages with these payloads.
fn made(payloads: impl IntoIterator<Item = String>) -> String {
    let line = |(seq, payload): (usize, String)| {
        format!("{{\"seq\":{seq},\"received_ns\":5,\"topic\":\"t\",\"payload\":\"{payload}\"}}\n")
    };
    payloads.into_iter().enumerate().map(line).collect()
}

fn letters(hub: &Hub) -> u64 {
    consumer(hub, "seen").dead_letters
}

#[track_caller]
fn given(seen: &Given) -> (Vec<u8>, bool) {
    seen.recv_timeout(PATIENCE).expect("a message")
}

#[test]
fn what_is_asked_of_an_archive_is_fed_to_a_consumer() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, seen) = seen();
    let (bus, hub) = try_kept(dir.path(), CONSUMERS, [kind]).unwrap();
    for n in 0..2500 {
        bus.send("org.example.a", format!("{{\"msg\": {{\"n\": {n}}}}}"))
            .unwrap();
    }
    bus.send("org.example.b", &b"\xff\x00 bytes"[..]).unwrap();
    eventually("all archived", || {
        consumer(&hub, "archive").consumed == 2501
    });

    let all = lines(dir.path(), &[]);
    assert_eq!(all.len(), 2501);
    assert_eq!(all[0]["seq"], 1);
    assert_eq!(all[0]["hub"], "weir");
    assert_eq!(all[0]["payload"], "{\"msg\": {\"n\": 0}}");
    assert_eq!(all[2500]["payload"]["hex"], "ff00206279746573");
    let numbers = |args: &[&str]| -> Vec<u64> {
        let lines = lines(dir.path(), args);
        lines
            .iter()
            .map(|line| line["seq"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(numbers(&["--newest", "--limit", "3"]), [2501, 2500, 2499]);
    assert_eq!(numbers(&["--topic", "org.example.b*"]), [2501]);
    assert_eq!(numbers(&["--json-path", "$.msg.n < 2"]), [1, 2]);
    assert_eq!(numbers(&["--since", "1h", "--limit", "1"]), [1]);
    assert!(numbers(&["--until", "1h"]).is_empty());
    let people = stdout(&query(dir.path(), &["--newest", "--limit", "1"]));
    assert!(
        people.contains("weir     2501  org.example.b  (8 bytes)\n"),
        "{people}"
    );

    let lines = stdout(&query(dir.path(), &["--json"]));
    let fed = feed_hub(dir.path(), "weir", &[], &lines);
    assert!(fed.status.success(), "{fed:?}");
    assert!(
        stdout(&fed).starts_with("2501 messages fed to seen"),
        "{fed:?}"
    );
    for n in 0..2500 {
        let payload = format!("{{\"msg\": {{\"n\": {n}}}}}");
        assert_eq!(given(&seen), (payload.into_bytes(), true));
    }
    assert_eq!(given(&seen), (b"\xff\x00 bytes".to_vec(), true));
    eventually("no letter is left", || letters(&hub) == 0);
    assert_conserved(&hub.status());

    // Fed to the archive, nothing of it is new.
    let file = dir.path().join("all.jsonl");
    std::fs::write(&file, &lines).unwrap();
    let again = weir(&[
        "replay",
        "--consumer",
        "archive",
        "--json",
        "--from-archive",
    ])
    .arg(&file)
    .arg("--config")
    .arg(config(dir.path(), "weir"))
    .output()
    .unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(&stdout(&again)).unwrap()["count"],
        2501
    );
    eventually("all consumed again", || {
        consumer(&hub, "archive").consumed == 5002
    });
    assert_eq!(self::lines(dir.path(), &[]).len(), 2501);
    hub.stop();
    assert!(seen.is_empty());
}

#[test]
fn what_can_not_be_asked_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("weir.toml");
    let consumers = "[[backend]]\nconnect = ['inproc://a']\n[consumers.a]\nkind = 'archive'\ntopics = ''\n\
                     [consumers.b]\nkind = 'archive'\ntopics = ''\nurl = 'sqlite:b.db'\n";
    std::fs::write(
        &config,
        format!("hub.data_dir = {:?}\n{consumers}", dir.path()),
    )
    .unwrap();
    let config = config.display().to_string();
    for (code, args, told) in [
        (
            2,
            &["--url", "postgres://u:hunter2@h/d"][..],
            "--url: a password does not stand in",
        ),
        (
            2,
            &["--url", "mysql://h/d"],
            "--url: the scheme `mysql` is not supported",
        ),
        (
            1,
            &["--url", "sqlite:/nowhere/a.db"],
            "there is no archive /nowhere/a.db",
        ),
        (2, &["--config", &config], "say which with --consumer: a, b"),
        (
            2,
            &["--config", &config, "--consumer", "c"],
            "there is no archive \"c\"",
        ),
        (
            1,
            &["--config", &config, "--consumer", "b"],
            "/b.db; a hub makes it",
        ),
        (
            2,
            &["--url", "sqlite:a", "--json-path", "n"],
            "expected a path such as $.msg.agent",
        ),
        (
            2,
            &["--url", "sqlite:a", "--since", "soon"],
            "expected a time such as 2026-11-01",
        ),
        (2, &[], "required arguments were not provided"),
    ] {
        let output = weir(&["archive", "query"]).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        let said = stderr(&output);
        assert!(said.contains(told) && !said.contains("hunter2"), "{said}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn a_wrong_line_is_told_and_nothing_of_its_chunk_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, seen) = seen();
    let (_bus, hub) = try_kept(dir.path(), CONSUMERS, [kind]).unwrap();
    let good = made((0..1005).map(|n| n.to_string()));
    for wrong in [
        "{\"seq\":1,\"received_ns\":5,\"topic\":\"t\"}",
        "{\"seq\":1,\"received_ns\":5,\"topic\":\"t\",\"payload\":{\"hex\":\"f\"}}",
        "{\"seq\":1,\"received_ns\":5,\"topic\":\"t\",\"payload\":\"\",\"more\":1}",
        "{\"seq\":9223372036854775808,\"received_ns\":5,\"topic\":\"t\",\"payload\":\"\"}",
        "{\"seq\":1,\"received_ns\":9223372036854775808,\"topic\":\"t\",\"payload\":\"\"}",
        "\u{fffd}",
    ] {
        let output = feed(dir.path(), &format!("{good}\n{wrong}\n{good}"));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = stderr(&output);
        assert!(
            said.contains("line 1007 is no message of an archive"),
            "{said}"
        );
        assert!(said.contains("; 1000 messages were fed before"), "{said}");
        for n in 0..1000 {
            assert_eq!(given(&seen), (n.to_string().into_bytes(), true));
        }
        eventually("no letter is left", || letters(&hub) == 0);
    }
    let nobody = weir(&["replay", "--consumer", "sen", "--from-archive", "/dev/null"])
        .arg("--data-dir")
        .arg(dir.path())
        .output()
        .unwrap();
    assert!(nobody.status.success(), "nothing to feed: {nobody:?}");
    hub.stop();
    assert!(seen.is_empty());
}

#[test]
fn a_message_of_another_hub_is_fed_only_if_that_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, seen) = seen();
    let (_bus, hub) = try_kept(dir.path(), CONSUMERS, [kind]).unwrap();
    let line = |hub: &str| {
        format!("{{\"seq\":1,{hub}\"received_ns\":5,\"topic\":\"t\",\"payload\":\"\"}}\n")
    };
    let nobodys = line("") + &line("\"hub\":\"\",");
    let lines = nobodys.clone() + &line("\"hub\":\"weir\",");
    let refused = |output: Output, told: &str| {
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let said = stderr(&output);
        assert!(
            said.contains(told) && said.contains("--any-hub"),
            "{told}: {said}"
        );
        assert!(said.contains("; 0 messages were fed before"), "{said}");
    };
    refused(
        feed_hub(dir.path(), "other", &[], &lines),
        "line 3 is a message of the hub \"weir\": this is the hub \"other\"",
    );
    refused(
        feed(dir.path(), &lines),
        "line 3 is a message of the hub \"weir\": whether that is this hub says only its \
         configuration; give it with --config",
    );
    assert!(seen.is_empty());
    for (count, output) in [
        (2, feed(dir.path(), &nobodys)),
        (2, feed_hub(dir.path(), "other", &[], &nobodys)),
        (3, feed_hub(dir.path(), "weir", &[], &lines)),
        (3, feed_hub(dir.path(), "other", &["--any-hub"], &lines)),
    ] {
        let fed = format!("{count} messages fed to seen, ");
        assert!(stdout(&output).starts_with(&fed), "{output:?}");
        for _ in 0..count {
            assert_eq!(given(&seen), (vec![], true));
        }
    }
    eventually("no letter is left", || letters(&hub) == 0);
    hub.stop();
    assert!(seen.is_empty());
}

#[test]
fn the_largest_payload_that_a_hub_takes_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, seen) = seen();
    let (bus, hub) = try_kept(dir.path(), CONSUMERS, [kind]).unwrap();
    let payload = vec![1; 16 << 20];
    bus.send("t", payload.clone()).unwrap();
    bus.send("t", "small").unwrap();
    eventually("both archived", || consumer(&hub, "archive").consumed == 2);
    let lines = stdout(&query(dir.path(), &["--json"]));
    let output = feed_hub(dir.path(), "weir", &[], &lines);
    assert!(output.status.success(), "{output:?}");
    let (read, replayed) = given(&seen);
    assert!(read == payload && replayed);
    assert_eq!(given(&seen), (b"small".to_vec(), true));
    eventually("no letter is left", || letters(&hub) == 0);
    hub.stop();
}

#[test]
fn what_fails_again_is_kept_and_the_rest_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, seen) = seen();
    let (_bus, hub) = try_kept(dir.path(), CONSUMERS, [kind]).unwrap();
    let output = feed(dir.path(), &made(["a", "bad", "b"].map(String::from)));
    assert!(output.status.success(), "{output:?}");
    for payload in ["a", "bad", "b"] {
        assert_eq!(given(&seen), (payload.into(), true));
    }
    eventually("one is left", || letters(&hub) == 1);
    hub.stop();
    let store = DeadLetters::read(&dir.path().join(FILE)).unwrap().unwrap();
    let left = store.list(&Filter::default(), 0, 10).unwrap();
    assert_eq!(
        (&left[0].payload[..], &*left[0].reason),
        (&b"bad"[..], "dead_letter")
    );
    assert_eq!(left[0].causes[0].text, "it is bad");
}

#[test]
fn too_much_that_waits_displaces_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, seen) = seen();
    let toml = format!("dead_letters.keep.bytes = '400KiB'\n{CONSUMERS}");
    let (_bus, hub) = try_kept(dir.path(), &toml, [kind]).unwrap();
    assert!(feed(dir.path(), &made(["bad".into()])).status.success());
    assert_eq!(given(&seen), (b"bad".to_vec(), true));
    eventually("one is left", || letters(&hub) == 1);

    let steer = |what: &str| {
        let mut command = weir(&[what, "seen", "--data-dir"]);
        assert!(command.arg(dir.path()).output().unwrap().status.success());
    };
    steer("pause");
    let child = feeding(dir.path(), &made((0..3500).map(|n| n.to_string())));
    eventually("the first chunk waits", || letters(&hub) == 1001);
    steer("resume");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    for n in 0..3500 {
        assert_eq!(given(&seen), (n.to_string().into_bytes(), true));
    }
    eventually("only the one is left", || letters(&hub) == 1);
    let line = made(["x".repeat(500_000)]);
    let output = feed(dir.path(), &line);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        stderr(&output).contains("there is no room for"),
        "{output:?}"
    );
    assert_eq!(hub.status().consumers.len(), 2);
    hub.stop();
    assert!(seen.is_empty());
}

#[test]
fn a_hub_that_is_stopped_delivers_it_after_its_start() {
    let dir = tempfile::tempdir().unwrap();
    let (kind, given_before) = seen();
    let (_bus, hub) = try_kept(dir.path(), CONSUMERS, [kind]).unwrap();
    hub.stop();
    let output = feed(dir.path(), &made(["a", "b"].map(String::from)));
    assert!(
        stdout(&output).starts_with("2 messages fed to seen, 2 of them wait"),
        "{output:?}"
    );
    assert!(given_before.is_empty());
    let (kind, seen) = seen();
    let (_bus, hub) = try_kept(dir.path(), CONSUMERS, [kind]).unwrap();
    assert_eq!(given(&seen), (b"a".to_vec(), true));
    assert_eq!(given(&seen), (b"b".to_vec(), true));
    eventually("no letter is left", || letters(&hub) == 0);
    hub.stop();
    let output = weir(&[
        "replay",
        "--consumer",
        "sene",
        "--from-archive",
        "-",
        "--data-dir",
    ])
    .arg(dir.path())
    .output()
    .unwrap();
    assert!(output.status.success(), "nothing to feed: {output:?}");
}

#[test]
fn letters_and_messages_take_turns() {
    let dir = tempfile::tempdir().unwrap();
    let (release, released) = unbounded::<()>();
    let (sender, seen) = unbounded();
    let kind = kind("seen", move |message: &Message| {
        sender.send(message.replayed())?;
        let _ = released.recv(); // until it is dropped
        Ok(())
    });
    let toml = "[consumers.seen]\ntopics = ''\n";
    let (bus, hub) = try_kept(dir.path(), toml, [kind]).unwrap();
    bus.send("t", "first").unwrap();
    assert!(!seen.recv_timeout(PATIENCE).unwrap());
    assert!(
        feed(dir.path(), &made((0..500).map(|n| n.to_string())))
            .status
            .success()
    );
    bus.send("t", "second").unwrap();
    eventually("it is there", || consumer(&hub, "seen").waiting == 1);
    drop(release);
    let after: Vec<bool> = (0..501)
        .map(|_| seen.recv_timeout(PATIENCE).unwrap())
        .collect();
    let turn = after.iter().position(|replayed| !replayed).unwrap();
    assert!(
        turn < 300,
        "the message of the bus came after {turn} letters"
    );
    hub.stop();
}
