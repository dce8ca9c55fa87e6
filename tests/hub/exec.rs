//! A child process behind a real hub: killed, left alone, and stopped in order.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use crate::process::{Running, configure, weir};
use crate::support::*;

/// Notes each payload in `seen` and answers it; waits before it answers the payload 100 until there
/// is a file `go`.
const CHILD: &str = r#"
    echo $$ > pid
    read -r hello; echo '{"weir":1}'
    echo 'the child is at work' >&2
    while read -r line; do
        id=${line#*'"id":'}; id=${id%%,*}
        payload=${line#*'"payload":"'}; payload=${payload%%'"'*}
        echo "$payload" >> seen
        if [ "$payload" = 100 ]; then while [ ! -e go ]; do sleep 0.01; done; fi
        echo "{\"id\":$id,\"result\":\"ok\"}"
    done
    echo finished >> finished"#;

/// A section whose child is that, in this directory.
fn section(dir: &Path, more: &str) -> String {
    std::fs::write(dir.join("child.sh"), CHILD).unwrap();
    format!(
        "[consumers.exec]\ntopics = ['']\ncommand = ['sh', 'child.sh']\ndirectory = {dir:?}\n\
         retry = {{ attempts = 0, delay = '1ms', delay_max = '1ms' }}\ntimeout = '60s'\n\
         start_timeout = '60s'\nrestart = {{ delay = '10ms', delay_max = '10ms' }}\n{more}\n"
    )
}

fn read(dir: &Path, file: &str) -> String {
    std::fs::read_to_string(dir.join(file)).unwrap_or_default()
}

fn seen(dir: &Path) -> Vec<u64> {
    let text = read(dir, "seen");
    // The last line may still be in the making.
    let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
    whole.lines().map(|line| line.parse().unwrap()).collect()
}

/// The numbers without those that came before.
fn first_seen(dir: &Path) -> Vec<u64> {
    let mut known = HashSet::new();
    let seen = seen(dir).into_iter();
    seen.filter(|number| known.insert(*number)).collect()
}

fn pid(dir: &Path) -> String {
    let mut pid = String::new();
    eventually("the child wrote its number", || {
        pid = read(dir, "pid");
        pid.ends_with('\n')
    });
    pid.trim().to_owned()
}

fn process(pid: &str) -> PathBuf {
    Path::new("/proc").join(pid)
}

#[test]
fn a_child_that_is_killed_under_load_loses_nothing() {
    const MESSAGES: u64 = 4000;
    const KILLS: usize = 10;
    const BATCH: usize = 20;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("go"), "").unwrap();
    let toml = section(dir.path(), &format!("batch_max = {BATCH}"));
    let (feed, hub) = try_kept(dir.path(), &toml, []).unwrap();
    for number in 0..MESSAGES {
        feed.send("t", number.to_string()).unwrap();
    }
    for kill in 0..KILLS {
        let progress = kill * MESSAGES as usize / KILLS;
        eventually("it has come so far", || {
            first_seen(dir.path()).len() > progress
        });
        // It may be between two children: then there is nobody to kill.
        let mut command = std::process::Command::new("kill");
        let _ = command.args(["-9", &pid(dir.path())]).status();
    }
    let consumed = || consumer(&hub, "exec").consumed;
    eventually("all are consumed", || consumed() == MESSAGES);
    // The last kill may have come after all others; whoever answers this one is alive.
    feed.send("t", MESSAGES.to_string()).unwrap();
    eventually("this one, too", || consumed() == MESSAGES + 1);
    let last = process(&pid(dir.path()));
    assert!(last.exists());
    let stopped = hub.stop();
    assert!(stopped.stuck.is_empty());
    assert_conserved(&stopped.status);
    assert_eq!(stopped.status.consumers[0].dead_lettered, 0);
    assert_eq!(first_seen(dir.path()), (0..=MESSAGES).collect::<Vec<_>>());
    // Only what was not answered came twice.
    let most = MESSAGES as usize + 1 + KILLS * BATCH;
    assert!(seen(dir.path()).len() <= most);
    assert!(!last.exists());
    assert_eq!(read(dir.path(), "finished"), "finished\n");
}

/// A hub whose child waits within the message 100.
struct Waiting {
    hub: Running,
    file: PathBuf,
    /// What is fed to it; kept, so that the hub stays connected.
    _bus: Bus,
}

const MESSAGES: u64 = 300;

fn start(dir: &Path, file: &Path) -> Running {
    let mut command = weir();
    command.env_remove("WEIR_JOURNAL__ENABLED");
    command.arg("hub").arg("--config").arg(file);
    let data_dir = format!("hub.data_dir={}", dir.display());
    Running::start(command.arg("--set").arg(data_dir))
}

fn waiting(dir: &Path, section: &str) -> Waiting {
    let bus = Bus::tcp();
    let backend = connect(&[&bus.endpoint]);
    let file = configure(
        dir,
        &format!("hub.http = '127.0.0.1:0'\n{backend}{section}"),
    );
    let hub = start(dir, &file);
    bus.subscriptions(1);
    for number in 0..MESSAGES {
        bus.publish("t", number.to_string());
    }
    eventually("all have come", || {
        hub.status()["consumers"][0]["received"].as_u64() == Some(MESSAGES)
    });
    eventually("the child is at work", || seen(dir).len() == 101);
    Waiting {
        hub,
        file,
        _bus: bus,
    }
}

#[test]
fn when_the_hub_is_killed_the_child_ends_and_the_next_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let waiting = waiting(dir.path(), &section(dir.path(), ""));
    let first = process(&pid(dir.path()));
    waiting.hub.signal("KILL");
    let (_, _, log) = waiting.hub.end();
    assert!(
        log.contains("stderr: the child is at work consumer=\"exec\""),
        "{log}"
    );
    // Nobody tells it but the end of its input, which it sees once it reads on.
    std::fs::write(dir.path().join("go"), "").unwrap();
    eventually("the child has ended", || !first.exists());

    let hub = start(dir.path(), &waiting.file);
    let all = || first_seen(dir.path()).len() == MESSAGES as usize;
    eventually("all were seen", all);
    assert_eq!(first_seen(dir.path()), (0..MESSAGES).collect::<Vec<_>>());
    hub.signal("TERM");
    let (code, _, log) = hub.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(read(dir.path(), "finished").ends_with("finished\n"));
}

#[test]
fn a_child_that_setpriv_watches_ends_with_the_hub_wherever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let watched = "['setpriv', '--pdeathsig', 'KILL', 'sh', 'child.sh']";
    let section = section(dir.path(), "").replace("['sh', 'child.sh']", watched);
    let waiting = waiting(dir.path(), &section);
    let child = process(&pid(dir.path()));
    assert!(child.exists());
    waiting.hub.signal("KILL");
    waiting.hub.end();
    eventually("the child has ended", || !child.exists());
}

/// Ignores whatever asks it to end, and so does what it starts; writes down when it hangs.
const HANGING: &str = r#"
    trap '' TERM
    read -r hello; echo '{"weir":1}'
    read -r line
    (while :; do sleep 1; done) &
    echo $$ > pid
    while :; do sleep 1; done"#;

/// A hub whose child hangs within a message, and the child's group.
fn hanging(dir: &Path, stop_deadline: &str) -> (Running, String, Bus) {
    let bus = Bus::tcp();
    let section = section(dir, "stop_timeout = '1h'").replace("child.sh", "hanging.sh");
    std::fs::write(dir.join("hanging.sh"), HANGING).unwrap();
    let toml = format!(
        "hub.http = '127.0.0.1:0'\nhub.stop_deadline = '{stop_deadline}'\n{}{section}",
        connect(&[&bus.endpoint])
    );
    let hub = start(dir, &configure(dir, &toml));
    bus.subscriptions(1);
    bus.publish("t", "x");
    let group = pid(dir);
    assert!(running(&group) >= 2);
    (hub, group, bus)
}

/// How many processes of a group run; those that only wait to be reaped do not.
fn running(group: &str) -> usize {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let stats = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    let of_it = |stat: &String| {
        // pid (name) state ppid pgrp
        let mut fields = stat.rsplit(") ").next().unwrap().split(' ');
        fields.next() != Some("Z") && fields.nth(1) == Some(group)
    };
    stats.filter(of_it).count()
}

#[test]
fn a_child_that_hangs_at_the_deadline_of_a_stop_ends_with_the_hub() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, group, _bus) = hanging(dir.path(), "50ms");
    hub.signal("TERM");
    let (code, _, log) = hub.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("and was left behind"), "{log}");
    // It was killed before the hub ended; the kernel may still be about to do it.
    eventually("nobody is left", || running(&group) == 0);
}

#[test]
fn a_child_that_hangs_ends_with_a_hub_that_a_second_signal_ends() {
    let dir = tempfile::tempdir().unwrap();
    let (hub, group, _bus) = hanging(dir.path(), "1h");
    hub.signal("TERM");
    hub.signal("INT");
    let (code, _, log) = hub.end();
    assert!(matches!(code, Some(130 | 143)), "{code:?}: {log}");
    eventually("nobody is left", || running(&group) == 0);
}
