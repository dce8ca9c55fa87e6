//! The end of a process that leaves a consumer behind. One test: what it calls is for all of the
//! process.

#![allow(missing_docs, clippy::unwrap_used)] // a test's name says what it is about

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use weir_consumer::Verdict;
use weir_consumer::testkit::{Harness, build};

/// Only a test that fails waits for it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Ignores whatever asks it to end, and so does what it starts; writes down when it hangs.
const CHILD: &str = r#"
    trap '' TERM
    read -r hello; echo '{"weir":1}'
    read -r line
    (while :; do sleep 1; done) &
    echo $$ > hangs
    while :; do sleep 1; done"#;

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How many processes of a group run; those that only wait to be reaped do not.
fn running(group: &str) -> usize {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| {
            // pid (name) state ppid pgrp
            let mut fields = stat.rsplit(") ").next().unwrap().split(' ');
            fields.next() != Some("Z") && fields.nth(1) == Some(group)
        })
        .count()
}

#[test]
fn at_the_end_of_the_process_all_groups_are_killed_and_none_is_started() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("child.sh"), CHILD).unwrap();
    let exec = |dir: &Path| {
        let toml = "command = ['sh', 'child.sh']\ntimeout = '1h'\nstart_timeout = '60s'\n\
                    crashes_max = 1\nrestart = { delay = '10ms' }";
        Harness::new(build(&weir_exec::kind(), toml, dir).unwrap())
    };
    let mut left_behind = exec(dir.path());
    let consuming = std::thread::spawn(move || {
        let outcome = left_behind.feed("t", "x");
        (outcome, left_behind)
    });
    let group = eventually("the child hangs", || {
        let written = fs::read_to_string(dir.path().join("hangs")).ok()?;
        Some(written.strip_suffix('\n')?.to_owned())
    });
    assert!(running(&group) >= 2);

    weir_exec::kill_children();
    eventually("nobody of the group is left", || {
        (running(&group) == 0).then_some(())
    });
    // It is not the message that children are lost over.
    let (outcome, mut left_behind) = consuming.join().unwrap();
    assert_eq!(outcome, Err(Verdict::Retry));
    fs::remove_file(dir.path().join("hangs")).unwrap();
    for exec in [&mut left_behind, &mut exec(dir.path())] {
        assert_eq!(exec.feed("t", "x"), Err(Verdict::Retry));
        let told = exec.last_failure().unwrap();
        assert!(told.contains("process is about to end"), "{told}");
    }
    assert!(!dir.path().join("hangs").exists());
}
