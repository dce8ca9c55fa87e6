//! `weir dead`: the real binary on a file that the library wrote.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use weir::dead_letters::{Cause, DeadLetters, FILE, Filter, New, Settings};
use weir_consumer::Message;

fn weir(args: &[&str], data_dir: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
    command.stdin(Stdio::null()).arg("dead").args(args);
    command.arg("--data-dir").arg(data_dir).output().unwrap()
}

/// Its output, after an exit with 0.
#[track_caller]
fn done(args: &[&str], data_dir: &Path) -> String {
    let output = weir(args, data_dir);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// What it said on standard error, after an exit with this code.
#[track_caller]
fn fails(code: i32, args: &[&str], data_dir: &Path) -> String {
    let output = weir(args, data_dir);
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert_eq!(output.stdout, b"", "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

fn open(dir: &Path) -> DeadLetters {
    DeadLetters::open(&dir.join(FILE), &Settings::default()).unwrap()
}

fn put(dead: &DeadLetters, consumer: &str, topic: &str, payload: &[u8], causes: &[(&str, u32)]) {
    let message = Message::at_ns(
        topic.into(),
        payload.to_vec().into(),
        1_700_000_000_000_000_000,
        41,
    );
    let causes: Vec<Cause> = (causes.iter())
        .map(|(text, times)| Cause {
            text: (*text).into(),
            times: *times,
        })
        .collect();
    let reason = if causes.len() == 1 {
        "attempts"
    } else {
        "dead_letter"
    };
    dead.set_aside(&New {
        consumer,
        message: &message,
        reason,
        causes: &causes,
        attempts: 5,
        first_failed_ns: 1_700_000_001_000_000_000,
        last_failed_ns: 1_700_000_002_500_000_000,
    })
    .unwrap();
}

/// Three letters, in a store that stays open as a hub's does.
fn some() -> (tempfile::TempDir, DeadLetters) {
    let dir = tempfile::tempdir().unwrap();
    let dead = open(dir.path());
    let refused = [("connection refused", 5)];
    put(&dead, "mail", "org.example.a", br#"{"id": 7}"#, &refused);
    let two = [("no such column", 2), ("bell \x07 and\nnewline", 1)];
    put(
        &dead,
        "archive",
        "org.example.b",
        b"two\nlines\x1b[2J",
        &two,
    );
    put(&dead, "mail", "org.other", b"\xff\x00", &refused);
    (dir, dead)
}

fn count(dead: &DeadLetters) -> u64 {
    dead.count(&Filter::default()).unwrap()
}

/// The first column, without its head.
fn ids(table: &str) -> Vec<&str> {
    let lines = table.lines().skip(1);
    lines
        .map(|line| line.split_whitespace().next().unwrap())
        .collect()
}

#[test]
fn list_is_a_table() {
    let (dir, dead) = some();
    dead.requeue(&Filter {
        ids: vec![3],
        ..Filter::default()
    })
    .unwrap();
    let table = done(&["list"], dir.path());
    let columns: Vec<Vec<&str>> = table
        .lines()
        .map(|line| {
            line.split("  ")
                .map(str::trim)
                .filter(|cell| !cell.is_empty())
                .collect()
        })
        .collect();
    assert_eq!(
        columns[0],
        [
            "id",
            "consumer",
            "topic",
            "reason",
            "attempts",
            "age",
            "last cause"
        ]
    );
    assert_eq!(
        columns[1][..5],
        ["1", "mail", "org.example.a", "attempts", "5"]
    );
    assert_eq!(columns[1][6], "connection refused");
    assert_eq!(columns[2][3], "dead_letter");
    assert_eq!(columns[2][6], r"bell \u{7} and\nnewline");
    assert_eq!(columns[3][3], "attempts, requeued");
    assert_eq!(columns.len(), 4);
    let topics = table.lines().skip(1).map(|line| line.find("org"));
    assert!(
        topics.clone().all(|at| at == table.find("topic")),
        "{table}"
    );
}

#[test]
fn list_takes_filters() {
    let (dir, _dead) = some();
    for (filter, expected) in [
        (&["--consumer", "mail"][..], &["1", "3"][..]),
        (&["--topic", "org.example.*"], &["1", "2"]),
        (&["--reason", "dead_letter"], &["2"]),
        (&["--cause", "refused"], &["1", "3"]),
        (&["--since", "1h"], &["1", "2", "3"]),
        (&["--consumer", "mail", "--topic", "org.other"], &["3"]),
        (&["--limit", "2"], &["2", "3"]),
        (&["--limit", "2", "--consumer", "mail"], &["1", "3"]),
    ] {
        let args = [&["list"], filter].concat();
        assert_eq!(ids(&done(&args, dir.path())), expected, "{filter:?}");
    }
    for filter in [["--before", "1h"], ["--consumer", "nobody"]] {
        let output = weir(&["list", filter[0], filter[1]], dir.path());
        assert!(output.status.success());
        assert_eq!(output.stdout, b"");
        assert_eq!(output.stderr, b"no dead letters of this choice\n");
    }
}

#[test]
fn list_says_how_many_are_not_shown() {
    let (dir, dead) = some();
    for _ in 0..50 {
        put(&dead, "mail", "org.example.a", b"", &[]);
    }
    let output = weir(&["list"], dir.path());
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(ids(&table).len(), 50);
    assert_eq!(ids(&table).last(), Some(&"53"));
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(said, "3 older not shown; `--limit 53` shows all\n");
    let output = weir(&["list", "--limit", "0"], dir.path());
    assert_eq!(output.stdout, b"");
    let output = weir(&["list", "--limit", "5000"], dir.path());
    assert_eq!(ids(&String::from_utf8(output.stdout).unwrap()).len(), 53);
    assert_eq!(output.stderr, b"");
}

#[test]
fn json_has_everything() {
    let (dir, _dead) = some();
    let lines = done(&["list", "--json"], dir.path());
    let letters: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(letters.len(), 3);
    let mut first = letters[0].clone();
    let set_aside = first.as_object_mut().unwrap().remove("set_aside_ns");
    assert!(set_aside.unwrap().as_u64().unwrap() > 1_700_000_000_000_000_000);
    let expected = json!({
        "id": 1, "consumer": "mail", "topic": "org.example.a", "payload": "{\"id\": 7}",
        "seq": 41, "received_ns": 1_700_000_000_000_000_000_u64, "reason": "attempts",
        "causes": [{ "text": "connection refused", "times": 5 }], "attempts": 5,
        "first_failed_ns": 1_700_000_001_000_000_000_u64,
        "last_failed_ns": 1_700_000_002_500_000_000_u64, "requeued": false,
    });
    assert_eq!(first, expected);
    assert_eq!(letters[2]["payload"], json!({ "hex": "ff00" }));
    let shown = done(&["show", "3", "--json"], dir.path());
    assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), letters[2]);
}

#[test]
fn show_tells_all_that_is_known() {
    let (dir, _dead) = some();
    let first = done(&["show", "1"], dir.path());
    for line in [
        "id            1\n",
        "consumer      mail\n",
        "received      2023-11-14T22:13:20.000Z, as number 41\n",
        "last failed   2023-11-14T22:13:22.500Z\n",
        "causes        5 x connection refused\n",
        "payload       9 bytes of JSON\n\n{\n  \"id\": 7\n}\n",
    ] {
        assert!(first.contains(line), "{line:?} in {first}");
    }
    let second = done(&["show", "2"], dir.path());
    let causes = "causes        2 x no such column\n              1 x bell \\u{7} and\\nnewline\n";
    assert!(second.contains(causes), "{second}");
    assert!(second.ends_with("\n\ntwo\nlines\\u{1b}[2J\n"), "{second}");
    let third = done(&["show", "3"], dir.path());
    assert!(
        third.ends_with("payload       2 bytes, in hex\n\nff00\n"),
        "{third}"
    );

    let output = weir(&["show", "3", "--payload"], dir.path());
    assert_eq!(output.stdout, b"\xff\x00");
    let error = fails(1, &["show", "99"], dir.path());
    assert!(
        error.contains("has no dead letter 99; `weir dead list`"),
        "{error}"
    );
    fails(2, &["show", "x"], dir.path());
    fails(2, &["show"], dir.path());
}

#[test]
fn requeue_marks_what_was_chosen() {
    let (dir, dead) = some();
    assert_eq!(
        done(&["requeue", "2", "3"], dir.path()),
        "requeued 2 dead letters\n"
    );
    assert_eq!(
        done(&["requeue", "3"], dir.path()),
        "requeued 0 dead letters\n"
    );
    let mail = ["requeue", "--consumer", "mail", "--json"];
    assert_eq!(done(&mail, dir.path()), "{\"requeued\":1}\n");
    let ids = |consumer| {
        let letters = dead.requeued(consumer, 0, 10).unwrap();
        letters.iter().map(|letter| letter.id).collect::<Vec<_>>()
    };
    assert_eq!((ids("mail"), ids("archive")), (vec![1, 3], vec![2]));
}

#[test]
fn purge_deletes_what_was_chosen() {
    let (dir, dead) = some();
    let error = fails(2, &["purge", "--consumer", "mail"], dir.path());
    assert_eq!(
        error,
        "weir: this would delete 2 dead letters for good; add `--yes`\n"
    );
    assert_eq!(count(&dead), 3);
    assert_eq!(
        done(&["purge", "2", "--yes"], dir.path()),
        "purged 1 dead letter\n"
    );
    let all = ["purge", "--all", "--yes", "--json"];
    assert_eq!(done(&all, dir.path()), "{\"purged\":2}\n");
    assert_eq!(count(&dead), 0);
    let output = weir(&["purge", "--all"], dir.path());
    assert!(output.status.success());
    assert_eq!(output.stderr, b"no dead letters\n");
}

#[test]
fn nothing_is_done_without_a_choice_or_with_a_wrong_one() {
    let (dir, dead) = some();
    for command in ["requeue", "purge"] {
        let error = fails(2, &[command, "--json"], dir.path());
        assert!(
            error.contains("say which dead letters are meant"),
            "{error}"
        );
        let error = fails(2, &[command, "--all", "1"], dir.path());
        assert!(error.contains("`--all` leaves no choice"), "{error}");
        let error = fails(1, &[command, "1", "98", "99", "98"], dir.path());
        assert!(error.contains("has no dead letter 98, 99;"), "{error}");
        let error = fails(2, &[command, "--reason", "bad luck"], dir.path());
        assert!(error.contains("attempts, dead_letter, crash"), "{error}");
        fails(2, &[command, "--since", "yesterday"], dir.path());
        fails(2, &[command, "one"], dir.path());
    }
    assert_eq!(count(&dead), 3);
    assert!(dead.requeued("mail", 0, 10).unwrap().is_empty());
}

#[test]
fn where_nothing_was_set_aside_there_is_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["list"][..], &["list", "--json"], &["requeue", "--all"]] {
        let output = weir(args, dir.path());
        assert!(output.status.success(), "{output:?}");
        assert_eq!(output.stdout, b"");
        assert_eq!(output.stderr, b"no dead letters\n");
    }
    let error = fails(1, &["purge", "7"], dir.path());
    assert!(error.contains("has no dead letter 7"), "{error}");
    assert!(!dir.path().join(FILE).exists(), "looking makes no file");
}

#[test]
fn the_place_is_given_and_there() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = fails(2, &["list"], &missing);
    assert!(error.contains(missing.to_str().unwrap()), "{error}");
    assert!(error.contains("`data_dir` in the section [hub]"), "{error}");
    let error = fails(2, &["list"], Path::new("missing-here"));
    assert!(
        error.contains("starts where the hub was started"),
        "{error}"
    );

    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.stdin(Stdio::null()).arg("dead").args(args);
        command.output().unwrap()
    };
    let output = run(&["list"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("--config <FILE>|--data-dir <DIR>"), "{said}");

    put(&open(dir.path()), "mail", "t", b"", &[]);
    let config = configuration(dir.path());
    let config = config.to_str().unwrap();
    let output = run(&["list", "--config", config]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(ids(&table), ["1"], "{:?}", output.stderr);
    let both = run(&["list", "-c", config, "--data-dir", "."]);
    assert_eq!(both.status.code(), Some(2), "{both:?}");
}

fn configuration(data_dir: &Path) -> PathBuf {
    let file = data_dir.join("weir.toml");
    let toml = format!(
        "[hub]\ndata_dir = {data_dir:?}\n[[backend]]\nconnect = ['tcp://127.0.0.1:9940']\n\
         [consumers.null]\ntopics = ''\n"
    );
    std::fs::write(&file, toml).unwrap();
    file
}

#[test]
fn a_file_that_is_no_store_is_refused_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    std::fs::write(&file, "not a database\n".repeat(100)).unwrap();
    for args in [&["list"][..], &["show", "1"], &["purge", "--all", "--yes"]] {
        let error = fails(1, args, dir.path());
        assert!(error.contains(file.to_str().unwrap()), "{error}");
        assert!(error.contains("move it away"), "{error}");
    }
}
